//! Cases and outcomes for people: the disassembly, the registers and the memory that an instruction names, and both
//! outcomes in one list in which what differs is marked. The form that is read back is `text`'s.

use crate::case::{Bits, Case, End, LINE, Outcome};
use crate::compare::{self, GPR, RFLAGS, SEGMENTS};
use crate::image::{self, Image};
use crate::layout;
use crate::operand;
use iced_x86::{Formatter, InstructionInfoFactory, IntelFormatter, OpKind, Register};
use std::fmt::Write;

/// The instruction in Intel syntax, or `(bad)`.
pub fn disassembly(case: &Case) -> String {
    let mut formatter = IntelFormatter::new();
    formatter.options_mut().set_space_after_operand_separator(false);
    formatter.options_mut().set_hex_prefix("0x");
    formatter.options_mut().set_hex_suffix("");
    let mut out = String::new();
    formatter.format(&operand::decode(case), &mut out);
    out
}

/// What a case is: the instruction, and of the machine what the instruction names.
pub fn describe(case: &Case) -> String {
    let insn = operand::decode(case);
    let bytes = case.bytes.iter().map(|b| format!("{b:02x}")).collect::<Vec<_>>().join(" ");
    let end = match case.end {
        End::SingleStep => "single step",
        End::Trap => "to the trap behind it",
    };
    let mut out = format!(
        "{}\n  {bytes}  ({}-bit, at {:#x}, {end})\n",
        disassembly(case),
        case.bits.number(),
        case.rip()
    );
    let mut names = Vec::new();
    for used in InstructionInfoFactory::new().info(&insn).used_registers() {
        let register = used.register();
        let full = register.full_register();
        let number = full.number();
        let line = match full {
            _ if full.is_gpr() => (GPR[number & 15].into(), format!("{:#x}", case.gpr[number & 15])),
            _ if full.is_vector_register() => {
                (format!("zmm{number}"), hex(&image::zmm(&image::normalised(&case.xsave), number)))
            }
            _ if register.is_k() => (format!("k{number}"), format!("{:#x}", image::k(&case.xsave, number))),
            _ if register.is_st() || register.is_mm() => {
                (format!("st{number}"), hex(&image::st(&image::normalised(&case.xsave), number)))
            }
            _ if register.is_segment_register() && case.bits != Bits::Bits64 => {
                let n = register.number() % 6;
                (SEGMENTS[n].into(), format!("{:#x}", case.selectors[n]))
            }
            Register::FS => ("fs_base".into(), format!("{:#x}", case.fs_base)),
            Register::GS => ("gs_base".into(), format!("{:#x}", case.gs_base)),
            _ => continue,
        };
        if !names.contains(&line) {
            names.push(line);
        }
    }
    if case.rflags != 2 || insn.rflags_read() != 0 {
        names.push(("rflags".into(), flags(case.rflags)));
    }
    let x87 = (0..insn.op_count()).any(|n| insn.op_register(n).is_st())
        || insn.cpuid_features().iter().any(|f| format!("{f:?}").starts_with("FPU"));
    let state = image::normalised(&case.xsave);
    let word = |at| u16::from_le_bytes(image::get(&state, at));
    if x87 {
        names.push(("fcw".into(), format!("{:#x}", word(image::FCW))));
        names.push(("fsw".into(), format!("{:#x}", word(image::FSW))));
        names.push(("ftw".into(), format!("{:#x}", state[image::FTW])));
    }
    let mxcsr = u32::from_le_bytes(image::get(&state, image::MXCSR));
    if mxcsr != image::MXCSR_INITIAL {
        names.push(("mxcsr".into(), format!("{mxcsr:#x}")));
    }
    for n in (0..insn.op_count()).filter(|&n| is_memory(insn.op_kind(n))) {
        let Some(address) = operand::linear_address(case, &insn, n) else { continue };
        names.push((
            format!("mem {address:x}"),
            bytes_at(case, address, insn.memory_size().size().clamp(1, 64)),
        ));
    }
    for (name, value) in names {
        let _ = writeln!(out, "  {name:<8} {value}");
    }
    out
}

fn is_memory(kind: OpKind) -> bool {
    use OpKind::*;
    matches!(
        kind,
        Memory
            | MemorySegSI
            | MemorySegESI
            | MemorySegRSI
            | MemorySegDI
            | MemorySegEDI
            | MemorySegRDI
            | MemoryESDI
            | MemoryESEDI
            | MemoryESRDI
    )
}

/// Memory before the case runs, `--` where there is none.
fn bytes_at(case: &Case, address: u64, len: usize) -> String {
    let backing = case.backing(operand::template());
    let byte =
        |n: usize| layout::backing_offset(address.wrapping_add(n as u64)).and_then(|at| backing.get(at));
    (0..len).map(|n| byte(n).map_or("--".into(), |b| format!("{b:02x}"))).collect()
}

/// RFLAGS with the names of its bits.
fn flags(value: u64) -> String {
    let names: Vec<&str> =
        RFLAGS.iter().filter(|(n, _)| value >> n & 1 != 0).map(|(_, name)| *name).collect();
    format!("{value:#x} [{}]", names.join(" "))
}

/// A little-endian number without leading zeros.
fn hex(bytes: &[u8]) -> String {
    let len = bytes.iter().rposition(|&b| b != 0).map_or(1, |last| last + 1);
    bytes[..len].iter().rev().fold(String::from("0x"), |text, b| text + &format!("{b:02x}"))
}

/// All of an outcome but its memory, by name.
fn listing(outcome: &Outcome) -> Vec<(String, String)> {
    let mut out = vec![
        ("vector".into(), compare::exception(outcome.vector)),
        ("error_code".into(), format!("{:#x}", outcome.error_code)),
        ("cr2".into(), format!("{:#x}", outcome.cr2)),
        ("rip".into(), format!("{:#x}", outcome.rip)),
        ("rflags".into(), flags(outcome.rflags)),
    ];
    out.extend(GPR.iter().zip(outcome.gpr).map(|(name, value)| (name.to_string(), format!("{value:#x}"))));
    out.extend(
        SEGMENTS.iter().zip(outcome.selectors).map(|(name, value)| (name.to_string(), format!("{value:#x}"))),
    );
    out.push(("fs_base".into(), format!("{:#x}", outcome.fs_base)));
    out.push(("gs_base".into(), format!("{:#x}", outcome.gs_base)));
    let state = image::normalised(&outcome.xsave);
    image_listing(&state, &mut out);
    out
}

fn image_listing(state: &Image, out: &mut Vec<(String, String)>) {
    let mut control = |name: &str, at: usize, len: usize| out.push((name.into(), hex(&state[at..at + len])));
    control("fcw", image::FCW, 2);
    control("fsw", image::FSW, 2);
    control("ftw", image::FTW, 1);
    control("fop", image::FOP, 2);
    control("fip", image::FIP, 8);
    control("fdp", image::FDP, 8);
    control("mxcsr", image::MXCSR, 4);
    out.push(("pkru".into(), format!("{:#x}", image::pkru(state))));
    for physical in 0..8 {
        let logical = (physical + 8 - image::top(state)) % 8;
        out.push((format!("x87 R{physical}"), format!("{} (st{logical})", hex(&image::st(state, logical)))));
    }
    out.extend((0..8).map(|n| (format!("k{n}"), format!("{:#x}", image::k(state, n)))));
    out.extend((0..32).map(|n| (format!("zmm{n}"), hex(&image::zmm(state, n)))));
}

/// The name in [`listing`] of a difference's place.
fn listed(place: &str) -> String {
    let vector = ["xmm", "ymm", "zmm"].iter().find_map(|class| place.strip_prefix(class));
    match vector {
        Some(n) => format!("zmm{n}"),
        None if place.starts_with("rflags.") => "rflags".into(),
        None => place.split(" (").next().unwrap_or(place).into(),
    }
}

/// Both outcomes: how they ended, all that either changed, and all that differs. `*` marks a difference, `~` one that
/// is left out of the comparison.
pub fn describe_outcomes(case: &Case, oracle: &Outcome, engine: &Outcome) -> String {
    let differences = compare::differences(case, oracle, engine);
    let found: Vec<String> = differences.iter().map(|d| listed(&d.place)).collect();
    let before = listing(&Outcome::unchanged(case));
    let mut out = String::new();
    let mut row = |mark: char, name: &str, host: &str, softkvm: &str| {
        let _ = if host == softkvm {
            writeln!(out, "  {name:<12} {host}")
        } else {
            writeln!(out, "{mark} {name:<12} host    {host}\n{mark} {:<12} softkvm {softkvm}", "")
        };
    };
    for ((host, softkvm), old) in listing(oracle).iter().zip(&listing(engine)).zip(&before) {
        let name = host.0.as_str();
        let always = matches!(name, "vector" | "rip" | "rflags");
        if always || host.1 != softkvm.1 || host.1 != old.1 {
            let physical = name.starts_with("x87 R");
            let mark = if physical || found.iter().any(|place| place == name) { '*' } else { '~' };
            row(mark, name, &host.1, &softkvm.1);
        }
    }
    let template = case.backing(operand::template());
    let mut offsets: Vec<u32> = oracle.memory.iter().chain(&engine.memory).map(|(at, _)| *at).collect();
    offsets.sort_unstable();
    offsets.dedup();
    for at in offsets {
        let line = |outcome: &Outcome| -> String {
            let changed =
                outcome.memory.iter().find(|(offset, _)| *offset == at).map(|(_, bytes)| &bytes[..]);
            let old = template.get(at as usize..at as usize + LINE).unwrap_or(&[]);
            changed.unwrap_or(old).iter().map(|b| format!("{b:02x}")).collect()
        };
        let start = layout::address_of(at as usize).unwrap_or(0);
        let inside = differences.iter().any(|d| {
            let address = d.place.strip_prefix("mem ").and_then(|text| u64::from_str_radix(text, 16).ok());
            address.is_some_and(|address| (start..start + LINE as u64).contains(&address))
        });
        row(if inside { '*' } else { '~' }, &format!("mem {start:x}"), &line(oracle), &line(engine));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::DATA;

    #[test]
    fn a_case_names_what_its_instruction_names() {
        let mut case = Case::new(Bits::Bits64);
        // SHLD [RBX+8],RAX,CL
        case.bytes = vec![0x48, 0x0f, 0xa5, 0x43, 0x08];
        (case.gpr[0], case.gpr[1], case.gpr[2], case.gpr[3]) = (0x11, 5, 7, DATA);
        case.memory = vec![(DATA + 8, vec![1, 2, 3, 4, 5, 6, 7, 8])];
        let text = describe(&case);
        assert!(
            text.starts_with("shld [rbx+8],rax,cl\n  48 0f a5 43 08  (64-bit, at 0x10000800, single step)\n"),
            "{text}"
        );
        for line in ["\n  rax      0x11\n", "\n  rcx      0x5\n", "\n  mem 20000008 0102030405060708\n"] {
            assert!(text.contains(line), "{text}");
        }
        assert!(!text.contains("rdx"), "{text}");
        case.bytes = vec![0x62, 0xf1, 0x7c, 0x4b, 0x58, 0x0b];
        let text = describe(&case);
        assert!(text.contains("zmm0") && text.contains("k3") && text.contains("mem 20000000"), "{text}");
        case.bytes = vec![0xd8, 0xc1];
        assert!(describe(&case).contains("fcw      0x37f"), "{}", describe(&case));
        case.bytes = vec![0xff, 0xff];
        assert!(describe(&case).starts_with("(bad)"));
    }

    #[test]
    fn outcomes_stand_side_by_side() {
        let mut case = Case::new(Bits::Bits64);
        // SHL EAX,2: OF and AF are undefined.
        case.bytes = vec![0xc1, 0xe0, 2];
        let mut oracle = Outcome::unchanged(&case);
        oracle.gpr[0] = 4;
        let mut engine = oracle.clone();
        engine.rflags ^= 0x810;
        let text = describe_outcomes(&case, &oracle, &engine);
        assert!(
            text.contains(
                "\n~ rflags       host    0x302 [TF IF]\n~              softkvm 0xb12 [AF TF IF OF]\n"
            ),
            "{text}"
        );
        assert!(text.contains("\n  rax          0x4\n") && !text.contains("rcx"), "{text}");
        engine.rflags ^= 1;
        engine.gpr[0] = 5;
        engine.memory = vec![(4096, [0; LINE])];
        let text = describe_outcomes(&case, &oracle, &engine);
        for line in [
            "* rflags       host",
            "* rax          host    0x4\n*              softkvm 0x5",
            "* mem 20000000",
        ] {
            assert!(text.contains(line), "{text}");
        }
    }
}
