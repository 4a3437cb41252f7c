//! Where two outcomes of one case differ. What is left out stands in two tables: [`crate::undefined`] and
//! [`crate::exempt`]. How a difference is shown to people beside its case is `describe`'s.
//!
//! XSAVE images are compared by what they mean: a component whose bit in XSTATE_BV is clear is in its initial state
//! whatever its bytes (docs/deviations.md, "XSAVEOPT, XSAVES": a component may count as in use while its contents
//! are initial). Reserved bytes, MXCSR_MASK and the bytes that software may use are nobody's state.

use crate::case::{Case, LINE, Outcome};
use crate::exempt::{self, Mask};
use crate::image::{self, Image};
use crate::layout;
use crate::operand;
use std::borrow::Cow;
use std::fmt;

/// One place in which two outcomes differ.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Difference {
    /// Groups differences of the same sort: `rflags.OF`, `xmm`, `gpr`, `mem`, `vector 13/6` …
    pub kind: Cow<'static, str>,
    /// The place: `rflags.OF`, `xmm3`, `rax`, `mem 20000040` …
    pub place: Cow<'static, str>,
    /// What the host has there.
    pub host: String,
    /// What softkvm has there.
    pub softkvm: String,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: host {}, softkvm {}", self.place, self.host, self.softkvm)
    }
}

/// Names of the general registers in the order of [`Outcome::gpr`].
pub const GPR: [&str; 16] = [
    "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13", "r14",
    "r15",
];

/// Names of the segment registers in the order of [`Outcome::selectors`].
pub const SEGMENTS: [&str; 6] = ["es", "cs", "ss", "ds", "fs", "gs"];

/// Names of RFLAGS' bits.
pub const RFLAGS: [(u32, &str); 17] = [
    (0, "CF"),
    (2, "PF"),
    (4, "AF"),
    (6, "ZF"),
    (7, "SF"),
    (8, "TF"),
    (9, "IF"),
    (10, "DF"),
    (11, "OF"),
    (12, "IOPL0"),
    (13, "IOPL1"),
    (14, "NT"),
    (16, "RF"),
    (17, "VM"),
    (18, "AC"),
    (20, "VIP"),
    (21, "ID"),
];

/// Names of exceptions.
const EXCEPTIONS: [&str; 22] = [
    "#DE", "#DB", "NMI", "#BP", "#OF", "#BR", "#UD", "#NM", "#DF", "", "#TS", "#NP", "#SS", "#GP", "#PF", "",
    "#MF", "#AC", "#MC", "#XM", "#VE", "#CP",
];

/// An exception's name, `vector 33` for one without.
pub fn exception(vector: u8) -> String {
    match EXCEPTIONS.get(usize::from(vector)) {
        Some(name) if !name.is_empty() => format!("{vector} ({name})"),
        _ => vector.to_string(),
    }
}

/// Where two outcomes of a case differ, the exception first. Empty if they agree in all that can be compared.
pub fn differences(case: &Case, oracle: &Outcome, engine: &Outcome) -> Vec<Difference> {
    if oracle == engine {
        return Vec::new();
    }
    let insn = operand::decode(case);
    let mask = exempt::mask(case, &insn, oracle, engine);
    if mask.everything.is_some() {
        return Vec::new();
    }
    let mut out = Found(Vec::new());
    exceptions(oracle, engine, &mask, &mut out);
    registers(oracle, engine, &mask, &mut out);
    if oracle.xsave != engine.xsave {
        let (a, b) = (image::normalised(&oracle.xsave), image::normalised(&engine.xsave));
        x87(&a, &b, &mask, &mut out);
        vectors(&a, &b, &mut out);
        others(&a, &b, &mut out);
    }
    if oracle.memory != engine.memory {
        memory(case, oracle, engine, &mask, &mut out);
    }
    out.0
}

/// Collects differences.
struct Found(Vec<Difference>);

impl Found {
    fn push(
        &mut self,
        kind: impl Into<Cow<'static, str>>,
        place: impl Into<Cow<'static, str>>,
        host: String,
        softkvm: String,
    ) {
        self.0.push(Difference { kind: kind.into(), place: place.into(), host, softkvm });
    }

    /// A number outside `mask`.
    fn number(&mut self, name: &'static str, host: u64, softkvm: u64, mask: u64) {
        if (host ^ softkvm) & !mask != 0 {
            self.push(name, name, format!("{host:#x}"), format!("{softkvm:#x}"));
        }
    }
}

fn exceptions(a: &Outcome, b: &Outcome, mask: &Mask, out: &mut Found) {
    if a.vector != b.vector {
        let kind = format!("vector {}/{}", a.vector, b.vector);
        out.push(kind, "vector", exception(a.vector), exception(b.vector));
    }
    out.number("error_code", a.error_code.into(), b.error_code.into(), mask.error_code.into());
    out.number("cr2", a.cr2, b.cr2, mask.cr2);
    out.number("rip", a.rip, b.rip, mask.rip);
}

fn registers(a: &Outcome, b: &Outcome, mask: &Mask, out: &mut Found) {
    for (n, name) in GPR.into_iter().enumerate() {
        if (a.gpr[n] ^ b.gpr[n]) & !mask.gpr[n] != 0 {
            out.push("gpr", name, format!("{:#x}", a.gpr[n]), format!("{:#x}", b.gpr[n]));
        }
    }
    let flags = (a.rflags ^ b.rflags) & !mask.rflags;
    let bit = |value: u64, n: u32| (value >> n & 1).to_string();
    for n in (0..64).filter(|n| flags >> n & 1 != 0) {
        let place: Cow<'static, str> = match RFLAGS.iter().find(|(bit, _)| *bit == n) {
            Some((_, name)) => format!("rflags.{name}").into(),
            None => format!("rflags.{n}").into(),
        };
        out.push(place.clone(), place, bit(a.rflags, n), bit(b.rflags, n));
    }
    for (n, name) in SEGMENTS.into_iter().enumerate() {
        // The kernel's IRET to user mode makes every null selector 0 (SDM vol. 2A, IRET).
        let null = a.selectors[n] == 0 && b.selectors[n] <= 3;
        if a.selectors[n] != b.selectors[n] && !null {
            out.push("selector", name, format!("{:#x}", a.selectors[n]), format!("{:#x}", b.selectors[n]));
        }
    }
    out.number("fs_base", a.fs_base, b.fs_base, 0);
    out.number("gs_base", a.gs_base, b.gs_base, 0);
}

/// FCW to FDP, and the data registers by their physical numbers: ST(i) is R((TOP + i) mod 8). Empty registers keep their
/// contents (SDM vol. 1, 8.1.2, and FXSAVE shows them), so they count too.
fn x87(a: &Image, b: &Image, mask: &Mask, out: &mut Found) {
    let word = |image: &Image, at: usize| u64::from(u16::from_le_bytes(image::get(image, at)));
    let quad = |image: &Image, at: usize| u64::from_le_bytes(image::get(image, at));
    out.number("fcw", word(a, image::FCW), word(b, image::FCW), 0);
    let (top, tags) = if mask.mmx { (0x3800, 0xff) } else { (0, 0) };
    out.number("fsw", word(a, image::FSW), word(b, image::FSW), u64::from(mask.fsw) | top);
    out.number("ftw", a[image::FTW].into(), b[image::FTW].into(), tags);
    let pointers = if mask.pointers { u64::MAX } else { 0 };
    out.number("fop", word(a, image::FOP), word(b, image::FOP), pointers);
    out.number("fip", quad(a, image::FIP), quad(b, image::FIP), pointers);
    out.number("fdp", quad(a, image::FDP), quad(b, image::FDP), pointers);
    for physical in 0..8 {
        let logical = |image: &Image| (physical + 8 - image::top(image)) % 8;
        let (i, j) = (logical(a), logical(b));
        let (x, y) = (image::st(a, i), image::st(b, j));
        if x != y {
            let place = if i == j { format!("st{i}") } else { format!("x87 R{physical} (st{i}, st{j})") };
            out.push("st", place, hex(&x), hex(&y));
        }
    }
}

/// XMM, YMM or ZMM registers by the smallest name that shows the difference, mask registers, and MXCSR.
fn vectors(a: &Image, b: &Image, out: &mut Found) {
    let mxcsr = |image: &Image| u64::from(u32::from_le_bytes(image::get(image, image::MXCSR)));
    out.number("mxcsr", mxcsr(a), mxcsr(b), 0);
    for n in 0..32 {
        let (x, y) = (image::zmm(a, n), image::zmm(b, n));
        let Some(last) = (0..64).rev().find(|&at| x[at] != y[at]) else { continue };
        let (kind, len) = match last {
            0..16 => ("xmm", 16),
            16..32 => ("ymm", 32),
            _ => ("zmm", 64),
        };
        out.push(kind, format!("{kind}{n}"), hex(&x[..len]), hex(&y[..len]));
    }
    for n in 0..8 {
        let (x, y) = (image::k(a, n), image::k(b, n));
        if x != y {
            out.push("k", format!("k{n}"), format!("{x:#x}"), format!("{y:#x}"));
        }
    }
}

/// Components that have no registers above: PKRU, and whatever else the host has, by number.
fn others(a: &Image, b: &Image, out: &mut Found) {
    out.number("pkru", image::pkru(a).into(), image::pkru(b).into(), 0);
    let named = [image::X87, image::SSE, image::AVX, image::OPMASK, image::ZMM_HI256, image::HI16_ZMM];
    for number in (0..64).filter(|n| !named.contains(n)) {
        let Some((at, len)) = image::component(number) else { continue };
        // PKRU's own four bytes are done.
        let at = if number == image::PKRU { at + 4 } else { at };
        let end = if number == image::PKRU { at + len - 4 } else { at + len };
        if a[at..end] != b[at..end] {
            out.push("component", format!("component {number}"), hex(&a[at..end]), hex(&b[at..end]));
        }
    }
    // Bits of components that have bytes are told by the bytes.
    let (x, y) = (image::xstate_bv(a), image::xstate_bv(b));
    out.number("xstate_bv", x, y, image::components());
}

/// Memory, line by line. A line that one side alone changed is as it was before on the other.
fn memory(case: &Case, a: &Outcome, b: &Outcome, mask: &Mask, out: &mut Found) {
    let before = case.backing(operand::template());
    let line = |outcome: &Outcome, at: u32| -> [u8; LINE] {
        let changed = outcome.memory.iter().find(|(offset, _)| *offset == at).map(|(_, bytes)| *bytes);
        changed.unwrap_or_else(|| {
            let mut bytes = [0; LINE];
            if let Some(old) = before.get(at as usize..at as usize + LINE) {
                bytes.copy_from_slice(old);
            }
            bytes
        })
    };
    let mut offsets: Vec<u32> = a.memory.iter().chain(&b.memory).map(|(offset, _)| *offset).collect();
    offsets.sort_unstable();
    offsets.dedup();
    for offset in offsets {
        let Some(address) = layout::address_of(offset as usize) else {
            out.push("mem", format!("mem at {offset:#x} of the backing"), "?".into(), "?".into());
            continue;
        };
        let (x, y) = (line(a, offset), line(b, offset));
        let differs = |n: &usize| {
            let at = address + *n as u64;
            let inside = |&&(start, len, _): &&(u64, usize, u8)| at.wrapping_sub(start) < len as u64;
            let masked = mask.memory.iter().filter(inside).fold(0, |bits, (_, _, mask)| bits | mask);
            (x[*n] ^ y[*n]) & !masked != 0
        };
        let Some(first) = (0..LINE).find(differs) else { continue };
        let last = (0..LINE).rev().find(differs).unwrap_or(first);
        let bytes = |line: &[u8]| line[first..=last].iter().map(|b| format!("{b:02x}")).collect::<String>();
        out.push("mem", format!("mem {:x}", address + first as u64), bytes(&x), bytes(&y));
    }
}

/// A little-endian number of any length.
fn hex(bytes: &[u8]) -> String {
    bytes.iter().rev().fold(String::from("0x"), |text, b| text + &format!("{b:02x}"))
}

#[cfg(test)]
#[path = "compare/tests.rs"]
mod tests;
