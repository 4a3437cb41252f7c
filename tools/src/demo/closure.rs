//! Which packages a guest's root needs: the named ones and what they depend on, as apt would install them on an
//! empty system, less the drivers for hardware that no guest has.
//!
//! Not the fetching, which is `packages`', nor the unpacking, which is `root`'s.

use std::collections::{BTreeMap, BTreeSet};

/// Packages that programs ask for at run time, by the hardware they find. Here there is none to find, and what
/// only they depend on (LLVM, 115 MB) is not needed either. Who names one gets it.
const DRIVERS: [&str; 3] = ["libgl1-mesa-dri", "mesa-va-drivers", "mesa-vulkan-drivers"];

/// Of the packages that `show` describes (as `apt-cache show` prints them), those that `named` need without
/// drivers, in alphabetical order.
pub fn without_drivers(named: &[String], show: &str) -> Vec<String> {
    let records: Vec<Record<'_>> = show.split("\n\n").filter_map(Record::parse).collect();
    let mut providers: BTreeMap<&str, Vec<&Record<'_>>> = BTreeMap::new();
    for record in &records {
        for name in record.provides.iter().chain([&record.name]) {
            providers.entry(name).or_default().push(record);
        }
    }
    let mut reached = BTreeSet::new();
    let mut open: Vec<&str> = named.iter().map(String::as_str).collect();
    while let Some(name) = open.pop() {
        if DRIVERS.contains(&name) && !named.iter().any(|wanted| wanted == name) {
            continue;
        }
        // Of alternatives and of several that provide a name, apt chose; whatever it chose is here.
        for record in providers.get(name).into_iter().flatten() {
            if reached.insert(record.name) {
                open.extend(&record.depends);
            }
        }
    }
    reached.into_iter().map(str::to_string).collect()
}

/// A package as apt-cache describes it.
struct Record<'a> {
    name: &'a str,
    depends: Vec<&'a str>,
    provides: Vec<&'a str>,
}

impl<'a> Record<'a> {
    fn parse(text: &'a str) -> Option<Record<'a>> {
        let field = |wanted: &str| text.lines().find_map(|line| line.strip_prefix(wanted)).unwrap_or("");
        let name = field("Package: ").trim();
        if name.is_empty() {
            return None;
        }
        let depends = names(field("Depends: ")).chain(names(field("Pre-Depends: "))).collect();
        Some(Record { name, depends, provides: names(field("Provides: ")).collect() })
    }
}

/// The names in a list such as `libc6 (>= 2.36), perl:any | awk`.
fn names(list: &str) -> impl Iterator<Item = &str> {
    list.split([',', '|'])
        .filter_map(|item| item.trim().split([' ', '(', ':']).next())
        .filter(|name| !name.is_empty())
}

/// A package's name by Debian's policy (5.6.7), for the command line.
pub fn package_name(text: &str) -> Result<String, String> {
    let good = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let first = text.bytes().next().is_some_and(good);
    if first && text.len() > 1 && text.bytes().all(|byte| good(byte) || b"+-.".contains(&byte)) {
        Ok(text.into())
    } else {
        Err("a Debian package's name has lower-case letters, digits, + - and . (commas between names)".into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drivers_and_what_only_they_need_stay_away() {
        let show = "Package: player\nDepends: libgl1, libc6 (>= 2.36), tool:any | other\n\n\
                    Package: libgl1\nPre-Depends: libc6\nDepends: libgl1-mesa-dri (= 22)\n\n\
                    Package: libgl1-mesa-dri\nDepends: libllvm15, libc6\n\n\
                    Package: libllvm15\nDepends: libc6\n\n\
                    Package: real-tool\nProvides: tool (= 1), thing\n\n\
                    Package: libc6\nVersion: 2.36\n";
        let wanted = |named: &[&str]| {
            let named: Vec<String> = named.iter().map(|name| name.to_string()).collect();
            without_drivers(&named, show)
        };
        assert_eq!(wanted(&["player"]), ["libc6", "libgl1", "player", "real-tool"]);
        assert_eq!(wanted(&["libllvm15"]), ["libc6", "libllvm15"]);
        assert_eq!(wanted(&["libgl1-mesa-dri"]), ["libc6", "libgl1-mesa-dri", "libllvm15"]);
        assert_eq!(wanted(&["absent"]), Vec::<String>::new());
    }

    #[test]
    fn names_of_packages() {
        for good in ["openssl", "libstdc++6", "libpython3.11-testsuite", "7zip"] {
            assert_eq!(package_name(good).as_deref(), Ok(good));
        }
        for bad in ["", "x", "-y", "--force", "a b", "../etc", "Zstd", "zstd/bookworm"] {
            assert!(package_name(bad).is_err(), "{bad}");
        }
    }
}
