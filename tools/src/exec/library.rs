//! Where the shared library is: beside this program, in `../lib/softkvm`, or where cargo leaves it.

use super::protocol::{BUILD_ID, MARK};
use crate::outcome::Failure;
use std::io::Read;
use std::path::{Path, PathBuf};

const NAME: &str = "libsoftkvm.so";

/// The newest library that is of this program's build: cargo may have left an older one beside the program.
pub fn find() -> Result<PathBuf, Failure> {
    let program = std::env::current_exe().map_err(|e| Failure::host("this program's own path", e))?;
    let here = program.parent().unwrap_or(Path::new("/"));
    // `deps` is where cargo puts the library of `cargo run`.
    let places = [here.join(NAME), here.join("../lib/softkvm").join(NAME), here.join("deps").join(NAME)];
    let (mut ours, mut other) = (None, None);
    for place in &places {
        match begin(place) {
            Ok(bytes) if is_ours(&bytes) => {
                let age = place.metadata().and_then(|m| m.modified()).ok();
                if ours.as_ref().is_none_or(|(newest, _)| age > *newest) {
                    ours = Some((age, place));
                }
            }
            Ok(_) => other = Some(place),
            Err(_) => {}
        }
    }
    if let Some((_, place)) = ours {
        return place.canonicalize().map_err(|e| Failure::host(place.display(), e));
    }
    Err(Failure::Host(match other {
        Some(place) => format!("{} is of another build than this program", place.display()),
        None => format!("{NAME} is neither in {} nor in ../lib/softkvm beside it", here.display()),
    }))
}

/// So much of the file as holds its notes.
fn begin(file: &Path) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    std::fs::File::open(file)?.take(64 << 10).read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn is_ours(library: &[u8]) -> bool {
    let wanted = [MARK, BUILD_ID.as_bytes()].concat();
    library.windows(wanted.len()).any(|w| w == wanted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_library_of_another_build_is_not_taken() {
        let library = |id: &str| [b"\x7fELF...", MARK, id.as_bytes(), b"..."].concat();
        assert!(is_ours(&library(BUILD_ID)));
        assert!(!is_ours(&library("0000000000000000")));
        assert!(!is_ours(b""));
    }
}
