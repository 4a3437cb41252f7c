//! Files of minimal failures: `*.case`, each a case in its text form behind comment lines that say what failed, why,
//! and where the SDM says what is right. [`save`] makes a new one; a person adds the reason.

use crate::case::Case;
use crate::operand;
use crate::text::{self, TextError};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// Why a corpus could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum CorpusError {
    /// The file system's answer.
    #[error("{}: {error}", path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// What happened.
        error: io::Error,
    },
    /// A file that is no case.
    #[error("{}: {error}", path.display())]
    Text {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        error: TextError,
    },
}

/// The suffix of a case's file.
pub const SUFFIX: &str = "case";

/// All cases of a directory, in the order of their names. A case with a register that the host does not have is left out.
pub fn load(dir: &Path) -> Result<Vec<(PathBuf, Case)>, CorpusError> {
    let io = |error| CorpusError::Io { path: dir.to_owned(), error };
    let mut paths = Vec::new();
    for entry in fs::read_dir(dir).map_err(io)? {
        let path = entry.map_err(io)?.path();
        if path.extension().is_some_and(|suffix| suffix == SUFFIX) {
            paths.push(path);
        }
    }
    paths.sort();
    let mut cases = Vec::new();
    for path in paths {
        let contents =
            fs::read_to_string(&path).map_err(|error| CorpusError::Io { path: path.clone(), error })?;
        match text::parse(&contents) {
            Ok(case) => cases.push((path, case)),
            Err(error) if error.absent => {}
            Err(error) => return Err(CorpusError::Text { path, error }),
        }
    }
    Ok(cases)
}

/// The name that [`save`] gives a case's file: its mnemonic, code size and a hash of its text.
pub fn file_name(case: &Case) -> String {
    let insn = operand::decode(case);
    let mnemonic =
        if insn.is_invalid() { "invalid".into() } else { format!("{:?}", insn.mnemonic()).to_lowercase() };
    // FNV-1a, folded to 32 bits.
    let hash = text::to_text(case)
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, b| (hash ^ u64::from(b)).wrapping_mul(0x100_0000_01b3));
    format!("{mnemonic}-{}-{:08x}.{SUFFIX}", case.bits.number(), hash as u32 ^ (hash >> 32) as u32)
}

/// Writes a case with what failed in its comment lines; the directory is made if it is missing.
pub fn save(dir: &Path, case: &Case, why: &str) -> Result<PathBuf, CorpusError> {
    let path = dir.join(file_name(case));
    let mut contents = String::new();
    for line in std::iter::once(crate::describe::disassembly(case).as_str()).chain(why.lines()) {
        contents.push_str(format!("# {line}").trim_end());
        contents.push('\n');
    }
    contents.push_str(&text::to_lines(case));
    let written = fs::create_dir_all(dir).and_then(|()| fs::write(&path, contents));
    written.map_err(|error| CorpusError::Io { path: path.clone(), error })?;
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::case::Bits;

    #[test]
    fn what_is_saved_is_loaded() {
        let dir = tempfile::tempdir().unwrap();
        let mut shl = Case::new(Bits::Bits64);
        (shl.bytes, shl.gpr[1]) = (vec![0xd3, 0xe0], 0x21);
        let mut bad = Case::new(Bits::Bits32);
        bad.bytes = vec![0x0f, 0xff, 0xff];
        let why = "rflags.OF: host 1, softkvm 0\n\nSDM vol. 2B, SHL";
        let one = save(&dir.path().join("new"), &shl, why).unwrap();
        let two = save(&dir.path().join("new"), &bad, "").unwrap();
        fs::write(dir.path().join("new/README"), "not a case").unwrap();
        assert!(one.file_name().unwrap().to_str().unwrap().starts_with("shl-64-"));
        let contents = fs::read_to_string(&one).unwrap();
        assert!(contents.starts_with("# shl eax,cl"), "{contents}");
        assert!(
            contents.contains("\n# rflags.OF: host 1, softkvm 0\n#\n# SDM vol. 2B, SHL\nbits=64"),
            "{contents}"
        );
        let mut want = vec![(one, shl.clone()), (two, bad)];
        want.sort_by(|a, b| a.0.cmp(&b.0));
        assert_eq!(load(&dir.path().join("new")).unwrap(), want);
        // The same case is the same file.
        assert!(want.contains(&(save(&dir.path().join("new"), &shl, "again").unwrap(), shl)));
        assert_eq!(load(&dir.path().join("new")).unwrap().len(), 2);
    }

    #[test]
    fn a_bad_file_is_named() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("a.case"), "# why\nrax=z\n").unwrap();
        let error = load(dir.path()).unwrap_err().to_string();
        assert!(error.contains("a.case: line 2, column 1: `rax=z`"), "{error}");
        assert!(load(&dir.path().join("nowhere")).is_err());
    }
}
