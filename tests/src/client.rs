//! `softkvm exec` from outside: VMMs in C that are compiled here, and what running them says.
//!
//! Not here: the VMMs (`tests/clients`), and what is expected of them (`tests/tests/exec*.rs`).

use crate::program;
use crate::skip::skip;
use crate::workspace::root;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::{Mutex, OnceLock};

/// Runs a command to its end.
pub fn run(command: &mut Command) -> Output {
    command.output().unwrap_or_else(|e| panic!("{command:?}: {e}"))
}

/// Bytes as text.
pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The program; cargo builds its library with it.
pub fn softkvm() -> &'static Path {
    program::path().expect("softkvm builds")
}

/// A folder for what the tests compile and write.
pub fn scratch() -> &'static Path {
    static FOLDER: OnceLock<tempfile::TempDir> = OnceLock::new();
    FOLDER.get_or_init(|| tempfile::tempdir().expect("a temporary folder")).path()
}

/// Compiles a program in C; `None`, and a printed skip, where that cannot be.
pub fn compile(name: &str, source: &Path, options: &[&str]) -> Option<PathBuf> {
    let program = scratch().join(name);
    let mut cc = Command::new("cc");
    cc.args(options).arg("-O1").arg("-o").arg(&program).arg(source).arg("-lpthread");
    let why = match cc.output() {
        Ok(out) if out.status.success() => return Some(program),
        Ok(out) => format!("cc failed: {}", text(&out.stderr)),
        Err(e) => format!("no C compiler: {e}"),
    };
    skip(name, false, &why);
    None
}

/// A VMM of `tests/clients`, compiled once.
pub fn client(name: &str) -> Option<PathBuf> {
    static CLIENTS: Mutex<Option<HashMap<String, Option<PathBuf>>>> = Mutex::new(None);
    let mut clients = CLIENTS.lock().unwrap_or_else(|e| e.into_inner());
    let clients = clients.get_or_insert_with(HashMap::new);
    let source = root().join("tests/clients").join(name).with_extension("c");
    clients.entry(name.into()).or_insert_with(|| compile(name, &source, &[])).clone()
}

/// `softkvm exec OPTIONS -- PROGRAM ARGUMENTS`, ended after `seconds` if it hangs.
pub fn exec_within(seconds: u32, options: &[&str], program: &Path, arguments: &[&str]) -> Output {
    let mut c = Command::new("timeout");
    c.arg(seconds.to_string())
        .arg(softkvm())
        .arg("exec")
        .args(options)
        .arg("--")
        .arg(program)
        .args(arguments);
    run(&mut c)
}

/// A case of a VMM holds.
pub fn holds(client_name: &str, case: &str) {
    let Some(client) = client(client_name) else { return };
    // Long ones take seconds; a busy machine may be slow.
    let out = exec_within(300, &[], &client, &[case]);
    assert!(out.status.success(), "{case}: {}\n{}", out.status, text(&out.stderr));
}

/// `cases! { CLIENT; NAME "what it is about."; … }`: a test for each case of a VMM.
#[macro_export]
macro_rules! cases {
    ($client:literal; $($name:ident $what:literal;)*) => { $(
        #[doc = $what]
        #[test]
        fn $name() {
            $crate::client::holds($client, stringify!($name));
        }
    )* };
}
