//! Each bit of an outcome is seen, but for what a rule leaves out; and each rule leaves out that alone.

use super::*;
use crate::case::{Bits, End, XSAVE};
use crate::layout::{DATA, PAGE};
use crate::undefined::{AF, CF, OF, PF, SF, STATUS, ZF};

/// A case with something in every register.
fn case(bits: Bits, bytes: &[u8]) -> Case {
    let mut case = Case::new(bits);
    case.bytes = bytes.to_vec();
    case.gpr = std::array::from_fn(|n| if n == 4 { case.gpr[4] } else { DATA + 64 * n as u64 });
    for (n, byte) in case.xsave.iter_mut().enumerate() {
        *byte = (n as u8).wrapping_mul(37) | 1;
    }
    // With an exception pending, in which every processor shows its pointers.
    case.xsave[image::FSW] |= 0x80;
    image::set_xstate_bv(&mut case.xsave, image::components());
    case
}

fn nop() -> (Case, Outcome) {
    let case = case(Bits::Bits64, &[0x90]);
    let mut outcome = Outcome::unchanged(&case);
    outcome.memory = vec![(PAGE as u32, [0x11; LINE]), (2 * PAGE as u32, [0x22; LINE])];
    (case, outcome)
}

/// The kinds of the differences after a change, the same whichever side has it.
fn kinds(case: &Case, change: impl Fn(&mut Outcome)) -> Vec<String> {
    let outcome = Outcome::unchanged(case);
    let mut other = outcome.clone();
    change(&mut other);
    let of = |a, b| differences(case, a, b).iter().map(|d| d.kind.to_string()).collect::<Vec<_>>();
    let found = of(&outcome, &other);
    assert_eq!(found.len(), of(&other, &outcome).len());
    found
}

#[test]
fn equal_outcomes_have_no_differences() {
    let (case, outcome) = nop();
    assert_eq!(differences(&case, &outcome, &outcome), []);
}

#[test]
fn a_bit_flipped_anywhere_is_seen() {
    let (case, outcome) = nop();
    let seen = |change: &dyn Fn(&mut Outcome)| {
        let mut other = outcome.clone();
        change(&mut other);
        let one = differences(&case, &outcome, &other);
        assert_eq!(one.len(), differences(&case, &other, &outcome).len());
        one.len()
    };
    for bit in 0..8 {
        assert_eq!(seen(&|o| o.vector ^= 1 << bit), 1);
    }
    for bit in 0..32 {
        assert_eq!(seen(&|o| o.error_code ^= 1 << bit), 1);
    }
    for bit in 0..64 {
        assert_eq!(seen(&|o| o.cr2 ^= 1 << bit), 1);
        assert_eq!(seen(&|o| o.rip ^= 1 << bit), 1);
        assert_eq!(seen(&|o| o.rflags ^= 1 << bit), 1);
        assert_eq!(seen(&|o| o.fs_base ^= 1 << bit), 1);
        assert_eq!(seen(&|o| o.gs_base ^= 1 << bit), 1);
        for n in 0..16 {
            assert_eq!(seen(&|o| o.gpr[n] ^= 1 << bit), 1);
        }
    }
    for n in 0..6 {
        for bit in 0..16 {
            let mut other = outcome.clone();
            other.selectors[n] ^= 1 << bit;
            assert_eq!(differences(&case, &other, &outcome).len(), 1);
            // A null selector of softkvm's may keep its RPL: the host's kernel drops it.
            let null = outcome.selectors[n] == 0 && other.selectors[n] <= 3;
            assert_eq!(differences(&case, &outcome, &other).len(), usize::from(!null));
        }
    }
    for line in 0..2 {
        for at in 0..LINE {
            assert_eq!(seen(&|o| o.memory[line].1[at] ^= 1 << (at % 8)), 1);
        }
    }
    // A line more, a line less, a line elsewhere.
    assert_eq!(seen(&|o| o.memory.push((3 * PAGE as u32, [0x33; LINE]))), 1);
    assert_eq!(seen(&|o| o.memory.truncate(1)), 1);
    assert_eq!(seen(&|o| o.memory[0].0 += LINE as u32), 2);
}

/// Whether a byte of the image is somebody's state: not reserved, not MXCSR_MASK, not software's, not the header's.
fn is_state(at: usize) -> bool {
    match at {
        0..=4 | 6..28 => true,
        32..160 => at % 16 < 10,
        160..416 => true,
        512..520 => true,
        576.. => (2..64).filter_map(image::component).any(|(start, len)| (start..start + len).contains(&at)),
        _ => false,
    }
}

#[test]
fn a_bit_flipped_in_the_image_is_seen() {
    let (case, outcome) = nop();
    for at in 0..XSAVE {
        for bit in 0..8 {
            let mut other = outcome.clone();
            other.xsave[at] ^= 1 << bit;
            let found = differences(&case, &outcome, &other);
            assert_eq!(!found.is_empty(), is_state(at), "byte {at}, bit {bit}: {found:?}");
            assert_eq!(found.is_empty(), differences(&case, &other, &outcome).is_empty());
        }
    }
}

#[test]
fn a_component_that_is_not_in_use_is_initial() {
    let mut case = case(Bits::Bits64, &[0x90]);
    image::set_xstate_bv(&mut case.xsave, 0);
    // Bytes of components that are not in use are nobody's.
    let kinds_of = |change: &dyn Fn(&mut Outcome)| kinds(&case, change);
    assert!(kinds_of(&|o| o.xsave[..512].fill(0x77)).is_empty());
    assert!(kinds_of(&|o| o.xsave[576..].fill(0x77)).is_empty());
    // In use with initial contents is the same as not in use.
    assert!(
        kinds_of(&|o| {
            o.xsave = image::initial();
            image::set_xstate_bv(&mut o.xsave, image::components());
        })
        .is_empty()
    );
    // In use with other contents is not.
    assert_eq!(
        kinds_of(&|o| {
            o.xsave = image::initial();
            o.xsave[image::XMM + 16] = 1;
            image::set_xstate_bv(&mut o.xsave, 1 << image::SSE);
        }),
        ["xmm"]
    );
    // MXCSR comes with AVX alone, too.
    assert_eq!(
        kinds_of(&|o| {
            o.xsave = image::initial();
            o.xsave[image::MXCSR] = 1;
            image::set_xstate_bv(&mut o.xsave, 1 << image::AVX);
        }),
        ["mxcsr"]
    );
}

#[test]
fn x87_registers_are_compared_by_their_physical_numbers() {
    let mut case = case(Bits::Bits64, &[0x90]);
    image::put(&mut case.xsave, image::FSW, &[0, 0]);
    // The same registers seen from another TOP: only FSW differs.
    let turned = kinds(&case, |o| {
        let old = o.xsave.clone();
        image::put(&mut o.xsave, image::FSW, &(3_u16 << 11).to_le_bytes());
        for i in 0..8 {
            image::put(&mut o.xsave, image::ST + i * 16, &image::st(&old, (i + 3) % 8));
        }
    });
    assert_eq!(turned, ["fsw"]);
}

#[test]
fn differences_read_well() {
    let (case, outcome) = nop();
    let mut other = outcome.clone();
    other.rflags ^= OF;
    other.gpr[0] = 0x12;
    other.memory[0].1[5] = 0xab;
    other.xsave[image::XMM + 3 * 16 + 1] = 0;
    let text: Vec<String> = differences(&case, &outcome, &other).iter().map(ToString::to_string).collect();
    assert_eq!(text[0], "rax: host 0x20000000, softkvm 0x12");
    assert_eq!(text[1], "rflags.OF: host 0, softkvm 1");
    let value = |image: &Image| hex(&image::zmm(image, 3)[..16]);
    assert_eq!(text[2], format!("xmm3: host {}, softkvm {}", value(&outcome.xsave), value(&other.xsave)));
    assert_eq!(text[3], "mem 20000005: host 11, softkvm ab");
}

/// Instruction, RCX, and which status flags are undefined.
#[rustfmt::skip]
const UNDEFINED: &[(&str, Bits, &[u8], u64, u64)] = &[
    ("add eax,ecx", Bits::Bits64, &[0x01, 0xc8], 5, 0),
    ("and eax,ecx", Bits::Bits64, &[0x21, 0xc8], 5, AF),
    ("shl eax,1", Bits::Bits64, &[0xd1, 0xe0], 0, AF),
    ("shl eax,0", Bits::Bits64, &[0xc1, 0xe0, 0x00], 0, 0),
    ("shl eax,32", Bits::Bits64, &[0xc1, 0xe0, 0x20], 0, 0),
    ("shl eax,33", Bits::Bits64, &[0xc1, 0xe0, 0x21], 0, AF),
    ("shl rax,32", Bits::Bits64, &[0x48, 0xc1, 0xe0, 0x20], 0, AF | OF),
    ("shl eax,cl", Bits::Bits64, &[0xd3, 0xe0], 0x100, 0),
    ("shl eax,cl", Bits::Bits64, &[0xd3, 0xe0], 0x102, AF | OF),
    ("shl al,7", Bits::Bits64, &[0xc0, 0xe0, 7], 0, AF | OF),
    ("shl al,8", Bits::Bits64, &[0xc0, 0xe0, 8], 0, AF | OF | CF),
    ("shr ax,cl", Bits::Bits64, &[0x66, 0xd3, 0xe8], 31, AF | OF | CF),
    ("sar al,31", Bits::Bits64, &[0xc0, 0xf8, 31], 0, AF | OF),
    ("rol eax,cl", Bits::Bits64, &[0xd3, 0xc0], 1, 0),
    ("rol eax,cl", Bits::Bits64, &[0xd3, 0xc0], 2, OF),
    ("rcl al,9", Bits::Bits64, &[0xc0, 0xd0, 9], 0, OF),
    ("rcl al,0", Bits::Bits64, &[0xc0, 0xd0, 0], 0, 0),
    ("shld eax,ecx,1", Bits::Bits64, &[0x0f, 0xa4, 0xc8, 1], 0, AF),
    ("shld ax,cx,16", Bits::Bits64, &[0x66, 0x0f, 0xa4, 0xc8, 16], 0, AF | OF),
    ("shld ax,cx,17", Bits::Bits64, &[0x66, 0x0f, 0xa4, 0xc8, 17], 0, STATUS),
    ("shrd rax,rcx,cl", Bits::Bits64, &[0x48, 0x0f, 0xad, 0xc8], 63, AF | OF),
    ("bt eax,ecx", Bits::Bits64, &[0x0f, 0xa3, 0xc8], 0, OF | SF | AF | PF),
    ("tzcnt eax,ecx", Bits::Bits64, &[0xf3, 0x0f, 0xbc, 0xc1], 0, OF | SF | AF | PF),
    ("popcnt eax,ecx", Bits::Bits64, &[0xf3, 0x0f, 0xb8, 0xc1], 0, 0),
    ("mul ecx", Bits::Bits64, &[0xf7, 0xe1], 5, SF | ZF | AF | PF),
    ("imul eax,ecx", Bits::Bits64, &[0x0f, 0xaf, 0xc1], 5, SF | ZF | AF | PF),
    ("div ecx", Bits::Bits64, &[0xf7, 0xf1], 5, STATUS),
    ("aaa", Bits::Bits32, &[0x37], 5, OF | SF | ZF | PF),
    ("aam", Bits::Bits32, &[0xd4, 0x0a], 5, OF | AF | CF),
    ("daa", Bits::Bits32, &[0x27], 5, OF),
    ("bzhi eax,ecx,eax", Bits::Bits64, &[0xc4, 0xe2, 0x78, 0xf5, 0xc1], 5, AF | PF),
    ("bextr eax,ecx,eax", Bits::Bits64, &[0xc4, 0xe2, 0x78, 0xf7, 0xc1], 5, AF | PF | SF),
];

#[test]
fn undefined_flags_are_left_out_and_no_others() {
    for &(name, bits, bytes, rcx, undefined) in UNDEFINED {
        let mut case = case(bits, bytes);
        case.gpr[1] = rcx;
        for bit in 0..64 {
            let found = kinds(&case, |o| o.rflags ^= 1 << bit);
            assert_eq!(found.is_empty(), undefined >> bit & 1 != 0, "{name}, bit {bit}: {found:?}");
        }
        // An instruction that faulted has no undefined flags.
        let mut fault = Outcome::unchanged(&case);
        fault.vector = 14;
        fault.rip = case.rip();
        let mut other = fault.clone();
        other.rflags ^= 1;
        assert_eq!(differences(&case, &fault, &other).len(), 1, "{name}");
    }
}

#[test]
fn undefined_results_are_left_out_as_wide_as_they_are() {
    // BSF EAX,ECX
    let mut case = case(Bits::Bits64, &[0x0f, 0xbc, 0xc1]);
    assert_eq!(kinds(&case, |o| o.gpr[0] ^= 1), ["gpr"]);
    case.gpr[1] = 0xffff_ffff_0000_0000;
    assert!(kinds(&case, |o| o.gpr[0] ^= 1 << 40).is_empty());
    assert_eq!(kinds(&case, |o| o.gpr[1] ^= 1), ["gpr"]);
    // BSWAP AX
    case.bytes = vec![0x66, 0x0f, 0xc8];
    assert!(kinds(&case, |o| o.gpr[0] ^= 0x8001).is_empty());
    assert_eq!(kinds(&case, |o| o.gpr[0] ^= 1 << 16), ["gpr"]);
    // SHLD [RBX],AX,17
    case.bytes = vec![0x66, 0x0f, 0xa4, 0x03, 17];
    let line = |at: usize| {
        move |o: &mut Outcome| {
            let mut bytes = [0; LINE];
            let start = crate::layout::backing_offset(DATA + 192).unwrap();
            bytes.copy_from_slice(&operand::template()[start..start + LINE]);
            bytes[at] ^= 1;
            o.memory = vec![(start as u32, bytes)];
        }
    };
    assert!(kinds(&case, line(0)).is_empty() && kinds(&case, line(1)).is_empty());
    assert_eq!(kinds(&case, line(2)), ["mem"]);
    case.bytes[4] = 16;
    assert_eq!(kinds(&case, line(0)), ["mem"]);
}

#[test]
fn undefined_condition_codes_are_left_out() {
    // FADD ST0,ST1: C1 is defined.
    let mut case = case(Bits::Bits64, &[0xd8, 0xc1]);
    for bit in 0..16 {
        let empty = kinds(&case, |o| o.xsave[image::FSW + bit / 8] ^= 1 << (bit % 8)).is_empty();
        assert_eq!(empty, [8, 10, 14].contains(&bit), "bit {bit}");
    }
    // FCOS: C1 only if ST0 is out of range.
    case.bytes = vec![0xd9, 0xff];
    for (exponent, undefined) in
        [(0x3fff_u16, false), (0x3fff + 62, false), (0x3fff + 63, true), (0x7fff, false)]
    {
        image::put(&mut case.xsave, image::ST + 8, &exponent.to_le_bytes());
        assert_eq!(kinds(&case, |o| o.xsave[image::FSW + 1] ^= 2).is_empty(), undefined, "{exponent:#x}");
        assert!(!kinds(&case, |o| o.xsave[image::FSW + 1] ^= 4).is_empty());
    }
}

/// Instruction, RAX, RCX; the general registers' bits and RFLAGS' bits that are left out.
#[rustfmt::skip]
type Row = (&'static [u8], u64, u64, &'static [(usize, u64)], u64);
const LOW: u64 = 0xffff_ffff;
#[rustfmt::skip]
const EXEMPT: &[Row] = &[
    (&[0x0f, 0x31], 0, 0, &[(0, LOW), (2, LOW)], 0),
    (&[0x0f, 0x01, 0xf9], 0, 0, &[(0, LOW), (1, LOW), (2, LOW)], 0),
    (&[0x0f, 0xa2], 0, 0, &[(0, LOW), (1, LOW), (2, LOW), (3, LOW)], 0),
    (&[0x0f, 0xc7, 0xf2], 0, 0, &[(2, LOW)], CF),
    (&[0x66, 0x0f, 0xc7, 0xf2], 0, 0, &[(2, 0xffff)], CF),
    (&[0x48, 0x0f, 0xc7, 0xfa], 0, 0, &[(2, u64::MAX)], CF),
    (&[0xf3, 0x0f, 0xc7, 0xfa], 0, 0, &[(2, LOW)], 0),
    (&[0x0f, 0x01, 0xd0], 0, 0, &[], 0),
    (&[0x0f, 0x02, 0xd1], 0, 0x2b, &[(2, 0xf_0000)], 0),
    (&[0x66, 0x0f, 0x02, 0xd1], 0, 0x2b, &[], 0),
    (&[0x0f, 0x02, 0xd1], 0, 0x40, &[(2, LOW)], ZF),
    (&[0x0f, 0x02, 0xd1], 0, 2, &[(2, 0xf_0000)], 0),
    (&[0x66, 0x0f, 0x03, 0xd1], 0, 0x1_0010, &[(2, 0xffff)], ZF),
    (&[0x0f, 0x00, 0xe1], 0, 0x10, &[], ZF),
    (&[0x0f, 0x00, 0xe1], 0, 0x17, &[], 0),
];

#[test]
fn exemptions_are_as_narrow_as_they_say() {
    for &(bytes, rax, rcx, registers, flags) in EXEMPT {
        let mut case = case(Bits::Bits64, bytes);
        (case.gpr[0], case.gpr[1]) = (rax, rcx);
        for bit in 0..64 {
            for n in 0..16 {
                let masked = registers.iter().any(|&(r, bits)| r == n && bits >> bit & 1 != 0);
                assert_eq!(
                    kinds(&case, |o| o.gpr[n] ^= 1 << bit).is_empty(),
                    masked,
                    "{bytes:x?} r{n} bit {bit}"
                );
            }
            let masked = flags >> bit & 1 != 0;
            assert_eq!(kinds(&case, |o| o.rflags ^= 1 << bit).is_empty(), masked, "{bytes:x?} flag {bit}");
        }
    }
    // XGETBV of XINUSE: bits that the host has no component for stay.
    let mut case = case(Bits::Bits64, &[0x0f, 0x01, 0xd0]);
    case.gpr[1] = 1;
    assert!(kinds(&case, |o| o.gpr[0] ^= 2).is_empty());
    assert_eq!(kinds(&case, |o| o.gpr[0] ^= 1 << 63), ["gpr"]);
}

#[test]
fn what_the_kernel_answers_under_umip_is_not_compared() {
    // SMSW EAX
    let case = case(Bits::Bits64, &[0x0f, 0x01, 0xe0]);
    let oracle = Outcome::unchanged(&case);
    let mut engine = oracle.clone();
    engine.vector = 13;
    engine.rip = case.rip();
    assert_eq!(differences(&case, &oracle, &engine), []);
    assert!(!differences(&case, &engine, &oracle).is_empty());
    engine.vector = 14;
    assert!(!differences(&case, &oracle, &engine).is_empty());
}

#[test]
fn x87_pointers_that_the_host_does_not_show_are_left_out_and_no_others() {
    let mut case = case(Bits::Bits64, &[0xd9, 0xe8]);
    image::put(&mut case.xsave, image::FSW, &[0, 0]);
    case.xsave[image::FOP..image::MXCSR].fill(0);
    let hidden = Outcome::unchanged(&case);
    let amd = differences(&case, &hidden, &{
        let mut engine = hidden.clone();
        engine.xsave[image::FIP] = 1;
        engine
    })
    .is_empty();
    for (fsw, fip, compared) in [(0, 0, !amd), (0x80, 0, true)] {
        let mut oracle = hidden.clone();
        oracle.xsave[image::FSW] = fsw;
        oracle.xsave[image::FIP] = fip;
        for at in [image::FOP, image::FIP + 3, image::FDP] {
            let mut engine = oracle.clone();
            engine.xsave[at] ^= 2;
            assert_eq!(!differences(&case, &oracle, &engine).is_empty(), compared, "{fsw:#x} {fip} {at}");
        }
    }
}

#[test]
fn a_mask_of_zeros_may_fault() {
    // MASKMOVDQU XMM1,XMM2
    let mut case = case(Bits::Bits64, &[0x66, 0x0f, 0xf7, 0xca]);
    for (byte, hidden) in [(0x7f, true), (0x80, false)] {
        image::put(&mut case.xsave, image::XMM + 32, &[byte; 16]);
        let done = Outcome::unchanged(&case);
        let mut fault = done.clone();
        (fault.vector, fault.rip, fault.cr2, fault.error_code) = (14, case.rip(), 0, 6);
        assert_eq!(differences(&case, &done, &fault).is_empty(), hidden);
        assert_eq!(differences(&case, &fault, &done).is_empty(), hidden);
        let mut other = done.clone();
        other.gpr[0] ^= 1;
        assert_eq!(differences(&case, &done, &other).len(), 1);
        fault.vector = 13;
        assert!(!differences(&case, &done, &fault).is_empty());
    }
    // MASKMOVQ MM1,MM2 with TOP = 3: MM2 is ST7.
    case.bytes.remove(0);
    case.xsave[image::ST..image::XMM].fill(0xff);
    image::put(&mut case.xsave, image::FSW, &(3_u16 << 11).to_le_bytes());
    let done = Outcome::unchanged(&case);
    let mut fault = done.clone();
    (fault.vector, fault.rip) = (14, case.rip());
    assert!(!differences(&case, &done, &fault).is_empty());
    image::put(&mut case.xsave, image::ST + 7 * 16, &[0; 8]);
    assert_eq!(differences(&case, &done, &fault), []);
}

#[test]
fn the_present_bit_is_hidden_in_the_upper_half_only() {
    for (cr2, hidden) in
        [(0xffff_8000_0000_0000_u64, true), (0x7fff_ffff_f000, true), (0x7fff_ffff_efff, false)]
    {
        let mut case = case(Bits::Bits64, &[0x8b, 0x00]);
        case.gpr[0] = cr2;
        let mut oracle = Outcome::unchanged(&case);
        (oracle.vector, oracle.rip, oracle.cr2, oracle.error_code) = (14, case.rip(), cr2, 5);
        let mut engine = oracle.clone();
        engine.error_code = 4;
        assert_eq!(differences(&case, &oracle, &engine).is_empty(), hidden, "{cr2:#x}");
        engine.error_code = 7;
        assert!(!differences(&case, &oracle, &engine).is_empty());
    }
}

#[test]
fn an_xsave_area_may_tell_of_initial_components() {
    // XSAVEC [RBX], all components, of which none but x87 is out of its initial state.
    let mut case = case(Bits::Bits64, &[0x0f, 0xc7, 0x23]);
    case.end = End::Trap;
    case.gpr[0] = LOW;
    case.gpr[3] = DATA;
    case.xsave = image::initial();
    image::put(&mut case.xsave, image::FCW, &[0x40, 0]);
    image::set_xstate_bv(&mut case.xsave, 1);
    let flip = |at: u64, bit: u8| {
        kinds(&case, |o| {
            let start = crate::layout::backing_offset((DATA + at) & !63).unwrap();
            let mut bytes = [0; LINE];
            bytes.copy_from_slice(&operand::template()[start..start + LINE]);
            bytes[at as usize % LINE] ^= 1 << bit;
            o.memory = vec![(start as u32, bytes)];
        })
        .is_empty()
    };
    assert!(!flip(512, 0), "x87's own bit");
    assert!(flip(512, 1), "SSE's bit");
    assert!(!flip(0, 0) && !flip(40, 0), "x87's bytes");
    assert!(flip(160, 0), "XMM0");
    assert!(!flip(520, 0), "XCOMP_BV");
}
