//! What the program `softkvm exec` and the shared library say to each other: names in the environment, and the build id.
//!
//! Both crates compile this file. Not here: what either does with it.

/// Names the library's file for the dynamic linker.
pub const PRELOAD: &str = "LD_PRELOAD";
/// Carries [`BUILD_ID`]: the library is inert without it.
pub const EXEC: &str = "SOFTKVM_EXEC";
/// The trace's file, or `-` for stderr.
pub const TRACE: &str = "SOFTKVM_TRACE";
/// Set when the host can fault on CPUID.
pub const CPUID: &str = "SOFTKVM_CPUID";

/// FNV-1a, of what the two must agree on.
const fn hash(bytes: &[u8]) -> u64 {
    let mut h = 0xcbf2_9ce4_8422_2325u64;
    let mut n = 0;
    while n < bytes.len() {
        h = (h ^ bytes[n] as u64).wrapping_mul(0x100_0000_01b3);
        n += 1;
    }
    h
}

const fn hex(h: u64) -> [u8; 16] {
    let mut text = [0; 16];
    let mut n = 0;
    while n < 16 {
        text[n] = b"0123456789abcdef"[(h >> (60 - 4 * n)) as usize & 15];
        n += 1;
    }
    text
}

const ID: [u8; 16] = hex(hash(include_bytes!("protocol.rs")) ^ hash(env!("CARGO_PKG_VERSION").as_bytes()));

/// The version and this file, as a number in hex: a library of another build is refused.
pub const BUILD_ID: &str = match core::str::from_utf8(&ID) {
    Ok(id) => id,
    Err(_) => panic!("hex digits are UTF-8"),
};

/// What stands before [`BUILD_ID`] in the library's file: the head of an ELF note of type 1 with 16 bytes, named softkvm.
pub const MARK: &[u8] = b"\x08\0\0\0\x10\0\0\0\x01\0\0\0softkvm\0";
