//! The text form of a case: words `name=value` for what differs from [`Case::new`], on one line or on several.
//!
//! | word | what |
//! |---|---|
//! | `bits=64` | code size: 16, 32 or 64 (64 if it is not said) |
//! | `end=step`, `end=trap` | [`End`] |
//! | `code=480fc7c8` | the instruction's bytes |
//! | `at=7f8` | [`Case::code_offset`] |
//! | `rax=1f` … `r15=`, `flags=`, `es=` … `gs=`, `fs_base=`, `gs_base=` | registers |
//! | `xmm3=`, `ymm3=`, `zmm3=`, `k1=`, `st0=`, `fcw=`, `fsw=`, `ftw=`, `fop=`, `fip=`, `fdp=`, `mxcsr=`, `pkru=` | what the XSAVE image holds |
//! | `xstate_bv=` | components in use; if it is not said, those of the registers that are named |
//! | `mem:20000040=00ff` | bytes of memory, in the order of their addresses |
//! | `xsave:1d0=00ff` | bytes of the XSAVE image that have no name |
//!
//! Numbers are hexadecimal, with or without `0x`; the bytes of `code=`, `mem:` and `xsave:` stand as in memory. `#` begins a
//! comment up to the end of its line. The order of words does not matter, but for overlapping `mem:`.

use crate::case::{Bits, Case, End, XSAVE};
use crate::compare::{GPR, SEGMENTS};
use crate::image;
use std::collections::HashSet;

/// A text that is not a case's.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("line {line}, column {column}: `{word}`: expected {expected}")]
pub struct TextError {
    /// Line, from 1 on.
    pub line: usize,
    /// Column of the word, from 1 on.
    pub column: usize,
    /// The word.
    pub word: String,
    /// What should stand in its place.
    pub expected: String,
    /// The text is in order, but the host has no such register.
    pub absent: bool,
}

/// What is wrong with a word.
struct Wrong {
    expected: String,
    absent: bool,
}

fn wrong<T>(expected: impl Into<String>) -> Result<T, Wrong> {
    Err(Wrong { expected: expected.into(), absent: false })
}

/// The x87 and SSE control registers: name, offset in the image, bytes, component.
const CONTROL: [(&str, usize, usize, u32); 7] = [
    ("fcw", image::FCW, 2, image::X87),
    ("fsw", image::FSW, 2, image::X87),
    ("ftw", image::FTW, 1, image::X87),
    ("fop", image::FOP, 2, image::X87),
    ("fip", image::FIP, 8, image::X87),
    ("fdp", image::FDP, 8, image::X87),
    ("mxcsr", image::MXCSR, 4, image::SSE),
];

/// Where a register's bytes stand in the image, least significant first, and the components that they belong to.
type Parts = Vec<(u32, usize, usize)>;

/// The parts of a register by its name; none for a name that is not an image's, an empty list if the host has no such one.
fn parts(name: &str) -> Option<Parts> {
    if let Some((_, at, len, component)) = CONTROL.iter().find(|(n, ..)| *n == name) {
        return Some(vec![(*component, *at, *len)]);
    }
    if name == "pkru" {
        return Some(image::pkru_offset().map(|at| (image::PKRU, at, 4)).into_iter().collect());
    }
    let digits = name.find(|c: char| c.is_ascii_digit())?;
    let (class, number) = name.split_at(digits);
    if number.len() > 1 && number.starts_with('0') {
        return None;
    }
    let n: usize = number.parse().ok()?;
    match (class, n) {
        ("st", 0..8) => Some(vec![(image::X87, image::ST + n * 16, 10)]),
        ("k", 0..8) => Some(image::k_offset(n).map(|at| (image::OPMASK, at, 8)).into_iter().collect()),
        ("xmm" | "ymm" | "zmm", 0..32) => {
            let mut wanted = match class {
                "xmm" => 16,
                "ymm" => 32,
                _ => 64,
            };
            let mut out = Parts::new();
            for (component, at, len) in image::zmm_parts(n) {
                let len = len.min(wanted);
                wanted -= len;
                if len > 0 {
                    out.push((component, at, len));
                }
            }
            Some(if wanted == 0 { out } else { Parts::new() })
        }
        _ => None,
    }
}

/// Digits of a hexadecimal number of at most `len` bytes, least significant byte first.
fn number(text: &str, len: usize) -> Result<Vec<u8>, Wrong> {
    let digits = text.strip_prefix("0x").unwrap_or(text);
    let digits = if digits.len() > 1 { digits.trim_start_matches('0') } else { digits };
    if text.is_empty() || !digits.bytes().all(|b| b.is_ascii_hexdigit()) || digits.len() > 2 * len {
        return wrong(format!("a hexadecimal number of at most {} digits", 2 * len));
    }
    let nibble = |b: u8| (b as char).to_digit(16).unwrap_or(0) as u8;
    let mut out = vec![0; len];
    for (n, digit) in digits.bytes().rev().enumerate() {
        out[n / 2] |= nibble(digit) << (n % 2 * 4);
    }
    Ok(out)
}

fn number64(text: &str) -> Result<u64, Wrong> {
    Ok(number(text, 8)?.iter().rev().fold(0, |value, &b| value << 8 | u64::from(b)))
}

fn number16(text: &str) -> Result<u16, Wrong> {
    Ok(number(text, 2)?.iter().rev().fold(0, |value, &b| value << 8 | u16::from(b)))
}

/// Bytes as they stand in memory.
fn bytes(text: &str) -> Result<Vec<u8>, Wrong> {
    if !text.len().is_multiple_of(2) || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
        return wrong("bytes, two hexadecimal digits each");
    }
    let pairs = text.as_bytes().chunks_exact(2);
    let nibble = |b: u8| (b as char).to_digit(16).unwrap_or(0) as u8;
    Ok(pairs.map(|pair| nibble(pair[0]) << 4 | nibble(pair[1])).collect())
}

/// Applies a word to a case; gives the components that it names.
fn apply(case: &mut Case, name: &str, value: &str) -> Result<u64, Wrong> {
    if let Some(n) = GPR.iter().position(|r| *r == name) {
        case.gpr[n] = number64(value)?;
        return Ok(0);
    }
    if let Some(n) = SEGMENTS.iter().position(|r| *r == name) {
        case.selectors[n] = number16(value)?;
        return Ok(0);
    }
    if let Some(address) = name.strip_prefix("mem:") {
        case.memory.push((number64(address)?, bytes(value)?));
        return Ok(0);
    }
    if let Some(offset) = name.strip_prefix("xsave:") {
        let (offset, bytes) = (number64(offset)? as usize, bytes(value)?);
        if offset > XSAVE || bytes.len() > XSAVE - offset {
            return wrong(format!("bytes inside the XSAVE image's {XSAVE:x}"));
        }
        image::put(&mut case.xsave, offset, &bytes);
        return Ok(0);
    }
    match name {
        "end" => {
            case.end = match value {
                "step" => End::SingleStep,
                "trap" => End::Trap,
                _ => return wrong("end=step or end=trap"),
            };
        }
        "code" => case.bytes = bytes(value)?,
        "at" => case.code_offset = number16(value)?,
        "flags" => case.rflags = number64(value)?,
        "fs_base" => case.fs_base = number64(value)?,
        "gs_base" => case.gs_base = number64(value)?,
        "xstate_bv" => image::set_xstate_bv(&mut case.xsave, number64(value)?),
        _ => {
            let Some(parts) = parts(name) else {
                return wrong(
                    "a name: bits, end, code, at, flags, a register, mem:ADDRESS, xsave:OFFSET, xstate_bv",
                );
            };
            if parts.is_empty() {
                let expected = format!("a register that this host has, which is not so of {name}");
                return Err(Wrong { expected, absent: true });
            }
            let mut rest = &number(value, parts.iter().map(|(_, _, len)| len).sum())?[..];
            for (_, at, len) in &parts {
                let (now, later) = rest.split_at(*len);
                image::put(&mut case.xsave, *at, now);
                rest = later;
            }
            return Ok(parts.iter().fold(0, |bits, (component, ..)| bits | 1 << component));
        }
    }
    Ok(0)
}

/// A word and where it stands.
struct Word<'a> {
    line: usize,
    column: usize,
    text: &'a str,
}

impl Word<'_> {
    fn error(&self, wrong: Wrong) -> TextError {
        TextError {
            line: self.line,
            column: self.column,
            word: self.text.into(),
            expected: wrong.expected,
            absent: wrong.absent,
        }
    }
}

fn words(text: &str) -> impl Iterator<Item = Word<'_>> {
    text.lines().enumerate().flat_map(|(line, text)| {
        let code = text.split('#').next().unwrap_or("");
        code.split_whitespace().map(move |word| Word {
            line: line + 1,
            // A word is a part of its line.
            column: word.as_ptr().addr() - text.as_ptr().addr() + 1,
            text: word,
        })
    })
}

/// Reads a case.
pub fn parse(text: &str) -> Result<Case, TextError> {
    let words: Vec<Word<'_>> = words(text).collect();
    let mut bits = Bits::Bits64;
    for word in &words {
        match word.text.strip_prefix("bits=") {
            None => {}
            Some("16") => bits = Bits::Bits16,
            Some("32") => bits = Bits::Bits32,
            Some("64") => bits = Bits::Bits64,
            Some(_) => {
                return Err(word.error(Wrong { expected: "bits=16, 32 or 64".into(), absent: false }));
            }
        }
    }
    let mut case = Case::new(bits);
    let mut named = 0;
    let mut seen = HashSet::new();
    for word in &words {
        let Some((name, value)) = word.text.split_once('=') else {
            return Err(word.error(Wrong { expected: "name=value".into(), absent: false }));
        };
        let again = !seen.insert(name) && !name.contains(':');
        if again {
            return Err(word.error(Wrong { expected: format!("{name}= once"), absent: false }));
        }
        if name != "bits" {
            named |= apply(&mut case, name, value).map_err(|wrong| word.error(wrong))?;
        }
    }
    if !seen.contains("xstate_bv") && !seen.iter().any(|name| name.starts_with("xsave:")) {
        image::set_xstate_bv(&mut case.xsave, named);
    } else if !seen.contains("xstate_bv") {
        let bits = image::xstate_bv(&case.xsave) | named;
        image::set_xstate_bv(&mut case.xsave, bits);
    }
    Ok(case)
}

/// A little-endian number without leading zeros.
fn hex(bytes: &[u8]) -> String {
    let digits = bytes.iter().rev().map(|b| format!("{b:02x}")).collect::<String>();
    let short = digits.trim_start_matches('0');
    if short.is_empty() { "0".into() } else { short.into() }
}

fn memory_hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// The words of a case, in groups that belong on one line.
fn grouped(case: &Case) -> Vec<Vec<String>> {
    let normal = Case::new(case.bits);
    let mut head = vec![format!("bits={}", case.bits.number())];
    head.push(format!("end={}", if case.end == End::SingleStep { "step" } else { "trap" }));
    head.push(format!("code={}", memory_hex(&case.bytes)));
    let mut differing = |name: &str, value: u64, normal: u64| {
        if value != normal {
            head.push(format!("{name}={value:x}"));
        }
    };
    differing("at", case.code_offset.into(), normal.code_offset.into());
    differing("flags", case.rflags, normal.rflags);
    for (n, name) in SEGMENTS.into_iter().enumerate() {
        differing(name, case.selectors[n].into(), normal.selectors[n].into());
    }
    differing("fs_base", case.fs_base, normal.fs_base);
    differing("gs_base", case.gs_base, normal.gs_base);
    let gpr = (0..16).filter(|&n| case.gpr[n] != normal.gpr[n]);
    let gpr = gpr.map(|n| format!("{}={:x}", GPR[n], case.gpr[n])).collect();
    let memory = case.memory.iter().map(|(at, bytes)| format!("mem:{at:x}={}", memory_hex(bytes))).collect();
    let mut groups = vec![head, gpr];
    groups.extend(image_words(case));
    groups.push(memory);
    groups.retain(|group| !group.is_empty());
    groups
}

/// The words of the XSAVE image: registers by name, XSTATE_BV where the names do not tell it, and the rest by offset.
fn image_words(case: &Case) -> Vec<Vec<String>> {
    let image = &case.xsave;
    let mut copy = Case::new(case.bits);
    let mut named = 0;
    let mut word = |copy: &mut Case, out: &mut Vec<String>, name: &str, value: &[u8]| {
        let value = hex(value);
        // The name is one of `parts`, and the value as long as they are.
        if let Ok(bits) = apply(copy, name, &value) {
            named |= bits;
            out.push(format!("{name}={value}"));
        }
    };
    let mut control = Vec::new();
    for (name, at, len, _) in CONTROL {
        if image[at..at + len] != copy.xsave[at..at + len] {
            word(&mut copy, &mut control, name, &image[at..at + len]);
        }
    }
    if image::pkru(image) != 0 {
        word(&mut copy, &mut control, "pkru", &image::pkru(image).to_le_bytes());
    }
    let mut stack = Vec::new();
    for i in 0..8 {
        let value = image::st(image, i);
        if value != [0; 10] {
            word(&mut copy, &mut stack, &format!("st{i}"), &value);
        }
    }
    let mut masks = Vec::new();
    for n in 0..8 {
        let value = image::k(image, n);
        if value != 0 {
            word(&mut copy, &mut masks, &format!("k{n}"), &value.to_le_bytes());
        }
    }
    let mut vectors = Vec::new();
    for n in 0..32 {
        let value = image::zmm(image, n);
        let (class, len) = match value.iter().rposition(|&b| b != 0) {
            None => continue,
            Some(0..16) => ("xmm", 16),
            Some(16..32) => ("ymm", 32),
            Some(_) => ("zmm", 64),
        };
        word(&mut copy, &mut vectors, &format!("{class}{n}"), &value[..len]);
    }
    if image::xstate_bv(image) != named {
        control.push(format!("xstate_bv={:x}", image::xstate_bv(image)));
    }
    image::set_xstate_bv(&mut copy.xsave, image::xstate_bv(image));
    let mut rest = Vec::new();
    let mut at = 0;
    while at < XSAVE {
        let len = (at..XSAVE).take_while(|&n| image[n] != copy.xsave[n]).count();
        if len > 0 {
            rest.push(format!("xsave:{at:x}={}", memory_hex(&image[at..at + len])));
        }
        at += len.max(1);
    }
    let mut groups = vec![control, stack, masks];
    groups.extend(vectors.into_iter().map(|word| vec![word]));
    groups.push(rest);
    groups
}

/// The case on one line: what a command line repeats.
pub fn to_text(case: &Case) -> String {
    grouped(case).concat().join(" ")
}

/// The case on several lines: what a file of the corpus holds.
pub fn to_lines(case: &Case) -> String {
    let mut out = String::new();
    for group in grouped(case) {
        let mut width = 0;
        for word in group {
            if width > 0 && width + word.len() > 100 {
                out.push('\n');
                width = 0;
            }
            if width > 0 {
                out.push(' ');
            }
            out.push_str(&word);
            width += word.len() + 1;
        }
        out.push('\n');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_default_case_says_little() {
        for (bits, text) in [
            (Bits::Bits16, "bits=16 end=step code="),
            (Bits::Bits32, "bits=32 end=step code="),
            (Bits::Bits64, "bits=64 end=step code="),
        ] {
            assert_eq!(to_text(&Case::new(bits)), text);
            assert_eq!(parse(text), Ok(Case::new(bits)));
        }
    }

    #[test]
    fn words_mean_what_they_say() {
        let text = "bits=32 end=trap code=0fa2 at=ffe rcx=0x12 flags=46 fs=f # comment rax=1\n\
                    xmm3=0102 st0=3fff8000000000000000 fcw=40 mem:20000010=00ff mem:20000012=01";
        let case = parse(text).unwrap();
        assert_eq!((case.bits, case.end, case.code_offset), (Bits::Bits32, End::Trap, 0xffe));
        assert_eq!(
            (case.bytes.as_slice(), case.gpr[0], case.gpr[1], case.rflags),
            (&[0x0f, 0xa2][..], 0, 0x12, 0x46)
        );
        assert_eq!(case.selectors[4], 0xf);
        assert_eq!(image::zmm(&case.xsave, 3)[..3], [2, 1, 0]);
        assert_eq!(image::st(&case.xsave, 0), [0, 0, 0, 0, 0, 0, 0, 0x80, 0xff, 0x3f]);
        assert_eq!(image::xstate_bv(&case.xsave), 3);
        assert_eq!(case.memory, [(0x2000_0010, vec![0, 0xff]), (0x2000_0012, vec![1])]);
        // A name that follows from none: no component in use although a register has contents.
        let unused = parse("code=90 xmm3=1 xstate_bv=0").unwrap();
        assert_eq!(image::xstate_bv(&unused.xsave), 0);
        assert_eq!(to_text(&unused), "bits=64 end=step code=90 xstate_bv=0 xmm3=1");
    }

    #[test]
    fn errors_point_at_the_word() {
        for (text, line, column, word, expected) in [
            ("bits=64 rax", 1, 9, "rax", "name=value"),
            ("bits=65", 1, 1, "bits=65", "16, 32 or 64"),
            ("code=90\n  rbx=1g", 2, 3, "rbx=1g", "hexadecimal number of at most 16"),
            ("es=12345", 1, 1, "es=12345", "at most 4 digits"),
            ("code=123", 1, 1, "code=123", "two hexadecimal digits"),
            ("end=never", 1, 1, "end=never", "end=step"),
            ("xmm32=1", 1, 1, "xmm32=1", "a name"),
            ("xmm03=1", 1, 1, "xmm03=1", "a name"),
            ("st8=1", 1, 1, "st8=1", "a name"),
            ("foo=1", 1, 1, "foo=1", "a name"),
            ("xsave:fff=0000", 1, 1, "xsave:fff=0000", "inside"),
            ("mem:zz=00", 1, 1, "mem:zz=00", "hexadecimal"),
            ("rax=1 rax=2", 1, 7, "rax=2", "once"),
            ("rax=", 1, 1, "rax=", "hexadecimal"),
        ] {
            let error = parse(text).unwrap_err();
            assert_eq!((error.line, error.column, error.word.as_str()), (line, column, word), "{text}");
            assert!(error.to_string().contains(expected), "{error}");
        }
    }

    /// Any case at all, most of them with few things that differ from the default.
    fn cases() -> impl Strategy<Value = Case> {
        let bits = prop_oneof![Just(Bits::Bits16), Just(Bits::Bits32), Just(Bits::Bits64)];
        let overlay = (any::<u64>(), proptest::collection::vec(any::<u8>(), 0..40));
        let image = proptest::collection::vec((0..XSAVE, any::<u8>()), 0..60);
        (
            (bits, any::<bool>(), proptest::collection::vec(any::<u8>(), 0..20), any::<u16>()),
            proptest::array::uniform16(prop_oneof![Just(0), any::<u64>()]),
            (any::<u64>(), proptest::array::uniform6(any::<u16>()), any::<u64>(), any::<u64>()),
            proptest::collection::vec(overlay, 0..4),
            (image, any::<bool>()),
        )
            .prop_map(
                |(
                    (bits, step, bytes, at),
                    gpr,
                    (rflags, selectors, fs, gs),
                    memory,
                    (bytes_of_image, full),
                )| {
                    let mut case = Case::new(bits);
                    case.end = if step { End::SingleStep } else { End::Trap };
                    (case.bytes, case.code_offset, case.gpr, case.rflags) = (bytes, at, gpr, rflags);
                    (case.selectors, case.fs_base, case.gs_base, case.memory) = (selectors, fs, gs, memory);
                    for (at, byte) in bytes_of_image {
                        case.xsave[at] = byte;
                    }
                    if full {
                        image::set_xstate_bv(&mut case.xsave, image::components());
                    }
                    case
                },
            )
    }

    proptest! {
        #[test]
        fn nothing_is_lost(case in cases()) {
            prop_assert_eq!(parse(&to_text(&case)), Ok(case.clone()));
            prop_assert_eq!(parse(&to_lines(&case)), Ok(case));
        }

        #[test]
        fn no_text_makes_it_panic(text in "[ -~\n]{0,80}", word in "(xmm|st|k|mem:|xsave:|code)[0-9a-fx]{0,6}=[0-9a-f]{0,40}") {
            let _ = parse(&text);
            let _ = parse(&word);
        }
    }
}
