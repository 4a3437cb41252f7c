//! What the two machines cannot agree on, each with its reason: time, chance, identity, and what the host's kernel
//! does in the middle. A row leaves out as little as it can: bits of a register, not a case. What the SDM leaves
//! undefined is [`crate::undefined`]'s. Approximations are not here: both machines have the same silicon.

use crate::case::{Bits, Case, Outcome};
use crate::coverage::features;
use crate::image;
use crate::layout;
use crate::operand;
use crate::undefined::{self, Place, ZF};
use iced_x86::{Instruction, Mnemonic, OpKind};
use std::sync::LazyLock;

/// What is left out of one comparison.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Mask {
    /// Bits of the general registers.
    pub gpr: [u64; 16],
    /// Bits of RFLAGS.
    pub rflags: u64,
    /// Bits of FSW.
    pub fsw: u16,
    /// Bits of the error code.
    pub error_code: u32,
    /// RIP.
    pub rip: u64,
    /// Bits of CR2.
    pub cr2: u64,
    /// TOP and the tags.
    pub mmx: bool,
    /// Bytes of memory: linear address, how many, and which bits of each.
    pub memory: Vec<(u64, usize, u8)>,
    /// FOP, FIP and FDP.
    pub pointers: bool,
    /// Nothing can be compared, and why.
    pub everything: Option<&'static str>,
}

impl Mask {
    fn place(&mut self, place: Place) {
        match place {
            Place::Register(n, bits) => self.gpr[n & 15] |= bits,
            Place::Memory(address, len) => self.memory.push((address, len, 0xff)),
        }
    }

    /// The low half of RAX, RCX, RDX, RBX.
    fn low(&mut self, registers: &[usize]) {
        registers.iter().for_each(|&n| self.gpr[n] |= 0xffff_ffff);
    }

    /// The first operand, as wide as it is.
    fn destination(&mut self, insn: &Instruction, case: &Case) {
        let size = operand::size(insn, 0);
        match insn.op_kind(0) {
            OpKind::Register => {
                let bits = operand::truncate(u64::MAX, size);
                self.gpr[insn.op_register(0).full_register().number() & 15] |= bits;
            }
            OpKind::Memory => {
                self.memory
                    .extend(operand::linear_address(case, insn, 0).map(|address| (address, size, 0xff)));
            }
            _ => {}
        }
    }
}

const AX: usize = 0;
const CX: usize = 1;
const DX: usize = 2;
const BX: usize = 3;

/// What a row leaves out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum What {
    /// The low halves of EDX:EAX's registers.
    EdxEax,
    /// The low halves of RDX, RAX and RCX.
    EdxEaxEcx,
    /// The low halves of RAX, RBX, RCX and RDX.
    CpuidRegisters,
    /// The first operand, as wide as it is.
    Destination,
    /// The first operand, and CF, which says whether there was a number.
    DestinationAndCarry,
    /// The low half of the first operand's register.
    LowHalf,
    /// With ECX = 1: component bits of EDX:EAX.
    InUse,
    /// The first operand; all, where the host's kernel emulates the instruction and softkvm raises #GP.
    Descriptor,
    /// With the selector of a GDT descriptor that is the host kernel's own: ZF and the first operand.
    Selector,
    /// With the selector of a GDT descriptor that is the host kernel's own: ZF.
    SelectorFlag,
    /// With a mask of zeros: all, where one machine raises #PF and the other none.
    ZeroMask,
    /// CR2, within its page.
    FaultAddress,
    /// What POPA loads, if it faults.
    Popped,
    /// TOP and the tags, if the instruction faults.
    MmxTransition,
    /// XSTATE_BV bits, and with an optimization the bytes, of components that are asked for and in their initial state.
    Area,
}

/// Why an instruction's results cannot agree.
#[derive(Clone, Copy, Debug)]
pub struct Exemption {
    /// Of which instructions.
    pub mnemonics: &'static [Mnemonic],
    /// What is left out.
    pub what: What,
    /// Why.
    pub why: &'static str,
}

const fn row(mnemonics: &'static [Mnemonic], what: What, why: &'static str) -> Exemption {
    Exemption { mnemonics, what, why }
}

use Mnemonic as M;

/// All exemptions for instructions that complete.
#[rustfmt::skip]
pub const EXEMPTIONS: &[Exemption] = &[
    row(&[M::Rdtsc], What::EdxEax, "the guest's time-stamp counter is its own"),
    row(&[M::Rdtscp], What::EdxEaxEcx, "the time-stamp counter, and IA32_TSC_AUX, which the host's kernel sets"),
    row(&[M::Rdpid], What::LowHalf, "IA32_TSC_AUX is the host kernel's"),
    row(&[M::Rdpmc], What::EdxEax, "a counter's value"),
    row(&[M::Rdpru], What::EdxEax, "MPERF and APERF count"),
    row(&[M::Cpuid], What::CpuidRegisters, "the guest has its own CPUID table"),
    row(&[M::Rdrand, M::Rdseed], What::DestinationAndCarry, "a random number, or none at the moment"),
    row(&[M::Xgetbv], What::InUse, "XINUSE may be set for a component in its initial state (SDM vol. 1, 13.6)"),
    row(&[M::Sgdt, M::Sidt, M::Sldt, M::Str, M::Smsw], What::Descriptor, "the host kernel's own tables, or its answer under UMIP"),
    row(&[M::Lar, M::Lsl], What::Selector, "the descriptor is the host kernel's"),
    row(&[M::Verr, M::Verw], What::SelectorFlag, "the descriptor is the host kernel's"),
    row(&[M::Maskmovq, M::Maskmovdqu, M::Vmaskmovdqu], What::ZeroMask, "page faults with a mask of zeros are implementation dependent (SDM vol. 2B, MASKMOVQ)"),
    row(&[M::Fbld, M::Fbstp], What::FaultAddress, "the operand is read and written in parts"),
    row(&[M::Fnsave, M::Frstor, M::Fnstenv, M::Fldenv, M::Fxsave, M::Fxsave64, M::Fxrstor, M::Fxrstor64], What::FaultAddress, "some processors touch the operand's last byte first"),
    row(&[M::Xsave, M::Xsave64, M::Xsavec, M::Xsavec64, M::Xsaveopt, M::Xsaveopt64, M::Xrstor, M::Xrstor64], What::FaultAddress, "which part of the area is touched first is the processor's choice"),
    row(&[M::Popa, M::Popad], What::Popped, "processors of AMD have loaded what came before the fault (docs/deviations.md)"),
    row(&[M::Cvtpd2pi, M::Cvttpd2pi, M::Cvtps2pi, M::Cvttps2pi, M::Cvtpi2ps, M::Cvtpi2pd, M::Maskmovq], What::MmxTransition, "processors of AMD enter MMX state before the fault (docs/deviations.md)"),
    row(&[M::Xsave, M::Xsave64, M::Xsavec, M::Xsavec64, M::Xsaveopt, M::Xsaveopt64], What::Area, "XINUSE may be set for a component in its initial state (SDM vol. 1, 13.6)"),
];

/// Addresses from here on: the host's kernel sets the P bit in the error code that it shows, whatever the page is.
pub const UPPER_HALF: u64 = 0x7fff_ffff_f000;

/// Far JMP, CALL and RET, and IRET.
pub(crate) fn is_far(insn: &Instruction) -> bool {
    let far_pointer =
        insn.is_call_far() || insn.is_jmp_far() || insn.is_call_far_indirect() || insn.is_jmp_far_indirect();
    far_pointer || matches!(insn.mnemonic(), M::Retf | M::Iret | M::Iretd | M::Iretq)
}

/// CMPS and SCAS.
fn compares_strings(insn: &Instruction) -> bool {
    let string = insn.op_count() == 2 && insn.op_kind(1) != OpKind::Register && insn.is_string_instruction();
    let scan = matches!(insn.mnemonic(), M::Scasb | M::Scasw | M::Scasd | M::Scasq);
    scan || string && matches!(insn.mnemonic(), M::Cmpsb | M::Cmpsw | M::Cmpsd | M::Cmpsq)
}

/// Whether the host's CPUID lacks what the instruction needs.
fn lacks(insn: &Instruction) -> bool {
    !insn.cpuid_features().iter().all(|feature| features::has(&features::host_cpuid, *feature))
}

/// Exception vectors that matter here.
const DB: u8 = 1;
const UD: u8 = 6;
const AC: u8 = 17;
const TS: u8 = 10;
const GP: u8 = 13;
const PF: u8 = 14;

/// Whether the instruction completed: it was stepped over, or the trap behind it was met.
pub fn completed(case: &Case, insn: &Instruction, outcome: &Outcome) -> bool {
    let behind = case.rip().wrapping_add(insn.len() as u64);
    match outcome.vector {
        1 => true,
        // It fetched what lies behind it, on a page that is not there.
        PF if outcome.error_code & 0x10 != 0 => outcome.rip == behind,
        6 => outcome.rip != case.rip() && !insn.is_invalid() && outcome.rip == behind,
        _ => false,
    }
}

/// All that is left out of the comparison of two outcomes: for completed instructions what is undefined and what is
/// exempt, and for page faults what the host's kernel hides.
pub fn mask(case: &Case, insn: &Instruction, oracle: &Outcome, engine: &Outcome) -> Mask {
    let mut mask = Mask::default();
    if oracle.vector == PF && oracle.cr2 >= UPPER_HALF {
        mask.error_code |= 1;
    }
    mask.pointers = hides_pointers(oracle);
    let rows = || EXEMPTIONS.iter().filter(|row| row.mnemonics.contains(&insn.mnemonic()));
    let one_faults = |a: &Outcome, b: &Outcome| a.vector == PF && completed(case, insn, b);
    if one_faults(oracle, engine) || one_faults(engine, oracle) {
        let row = rows().find(|row| row.what == What::ZeroMask && mask_is_zero(case, insn));
        mask.everything = row.map(|row| row.why);
    }
    // A trap behind the instruction (SDM vol. 2A, INT n); a hypervisor below the host may show it as a fault.
    if insn.mnemonic() == M::Int1 && oracle.vector == DB && engine.vector == DB && oracle.rip == case.rip() {
        mask.rip = u64::MAX;
    }
    // UMIP (SDM vol. 3A, 2.5): the host's kernel answers in the processor's place, with faults of its own.
    let tables = |row: &&Exemption| row.what == What::Descriptor && row.mnemonics.contains(&insn.mnemonic());
    if let Some(row) = EXEMPTIONS.iter().find(tables)
        && engine.vector == GP
        && engine.rip == case.rip()
    {
        mask.everything = Some(row.why);
    }
    // An instruction of class software (docs/cpuid.md) is offered whether the host has it or not. And a hypervisor below the
    // host may answer for an instruction that its CPUID denies.
    let undefined = |o: &Outcome| o.vector == UD && o.rip == case.rip();
    if undefined(oracle) != undefined(engine) && lacks(insn) {
        mask.everything = Some("the host's processor does not have the instruction");
    }
    // The SDM leaves open what is reported of several faults that a far transfer meets.
    let faulted = |o: &Outcome| matches!(o.vector, TS..=PF | AC) && o.rip == case.rip();
    // docs/deviations.md, "far CALL between 64-bit and compatibility mode".
    let other = |o: &Outcome| (o.selectors[1] == layout::CODE64) != (case.bits == Bits::Bits64);
    if is_far(insn) && other(oracle) && other(engine) {
        // Upper halves do not survive compatibility mode (SDM vol. 1, 3.4.1.1).
        mask.gpr[4] |= 0xffff_ffff_0000_0000;
    }
    let calls = insn.is_call_far() || insn.is_call_far_indirect();
    if calls && (other(oracle) || other(engine)) {
        mask.everything = Some("the stack of a far CALL that changes the mode");
    }
    if compares_strings(insn) && faulted(oracle) && faulted(engine) {
        mask.everything = Some("which operand is looked at first");
    }
    if is_far(insn) && faulted(oracle) && faulted(engine) && oracle.gpr == engine.gpr {
        mask.everything = Some("several faults");
    }
    // F2H and F3H before LOOPE and LOOPNE are reserved (SDM vol. 2A, 2.1.1); processors of AMD take them as a condition.
    let prefix = case.bytes.iter().take(insn.len()).any(|byte| matches!(byte, 0xf2 | 0xf3));
    if matches!(insn.mnemonic(), M::Loope | M::Loopne) && prefix {
        mask.everything = Some("a reserved prefix");
    }
    // Linux's own data segment of the processor's number, whose descriptor is the kernel's.
    if oracle.selectors.iter().any(|selector| selector & !7 == 0x78) {
        mask.everything = Some("a selector of the host's kernel");
    }
    if engine.vector == UD && engine.rip == case.rip() && reserved_vex_bit(case, insn) {
        mask.everything = Some("the SDM says #UD for a reserved VEX bit, the host ignores it");
    }
    if engine.vector == UD && engine.rip == case.rip() && insn.is_invalid() && locked_verw(case) {
        mask.everything = Some("the SDM says #UD for LOCK VERW, the host ignores the prefix");
    }
    // docs/deviations.md, "undefined encodings of more than 15 bytes".
    let fault = |o: &Outcome, vector: u8| o.vector == vector && o.error_code == 0 && o.rip == case.rip();
    let nothing = insn.is_invalid() || matches!(insn.mnemonic(), M::Ud0 | M::Ud1);
    let both = |one, other| fault(oracle, one) && fault(engine, other);
    if nothing && case.bytes.len() >= 15 && (both(GP, UD) || both(UD, GP)) {
        mask.everything = Some("whether it is undefined or too long");
    }
    // How much of an encoding without meaning is fetched: #UD, or #PF for what lies on the next page.
    let fetch = |o: &Outcome| o.vector == PF && o.error_code & 0x10 != 0;
    if nothing && (fetch(oracle) && undefined(engine) || undefined(oracle) && fetch(engine)) {
        mask.everything = Some("how many bytes of an undefined encoding are fetched");
    }
    let page_faults = oracle.vector == PF && engine.vector == PF && oracle.error_code == engine.error_code;
    for row in rows() {
        match row.what {
            // CR2 is the address that faulted, which may be any byte of a large operand in the page.
            What::FaultAddress
                if oracle.vector == PF && engine.vector == PF && oracle.cr2.abs_diff(engine.cr2) < 4096 =>
            {
                mask.cr2 = u64::MAX;
                // Another page may be there, and read-only.
                mask.error_code |= 1;
            }
            // Nor in which order it looks at the limit and at pages.
            What::FaultAddress if faulted(oracle) && faulted(engine) && oracle.vector != engine.vector => {
                mask.everything = Some(row.why);
            }
            What::Popped if faulted(oracle) && faulted(engine) && oracle.vector == engine.vector => {
                for n in (1..16).filter(|n| *n != 4) {
                    mask.gpr[n] = u64::MAX;
                }
            }
            What::MmxTransition if oracle.vector == engine.vector && fault(oracle, oracle.vector) => {
                mask.mmx = true;
            }
            What::MmxTransition if page_faults => mask.mmx = true,
            _ => {}
        }
    }
    // SDM vol. 2B, REP: restored to what they were before; processors of AMD leave those of some iteration.
    let repeats = insn.has_rep_prefix() || insn.has_repne_prefix();
    if repeats && oracle.vector == engine.vector && oracle.rip == case.rip() && compares_strings(insn) {
        mask.rflags |= undefined::STATUS;
    }
    if engine.vector == UD && engine.rip == case.rip() && reserved_evex_bit(case, insn) {
        // docs/deviations.md, "reserved EVEX bits".
        mask.everything = Some("the SDM says #UD for a reserved EVEX bit, the host ignores it");
        return mask;
    }
    if !completed(case, insn, oracle) {
        return mask;
    }
    let both = completed(case, insn, engine);
    if both {
        mask.rflags |= undefined::undefined_flags(insn, case);
        mask.fsw |= undefined::undefined_codes(insn, case);
        if let Some(place) = undefined::undefined_result(insn, case) {
            mask.place(place);
        }
    }
    for row in rows() {
        if both {
            apply(row.what, case, insn, &mut mask);
        }
    }
    mask
}

/// VERW with LOCK (docs/deviations.md).
fn locked_verw(case: &Case) -> bool {
    let mut without = case.clone();
    let locks = without.bytes.iter_mut().take_while(|byte| **byte != 0x0f).filter(|byte| **byte == 0xf0);
    // CS, which means nothing to the length.
    let count = locks.map(|byte| *byte = 0x2e).count();
    count != 0 && operand::decode(&without).mnemonic() == M::Verw
}

/// Whether an instruction is invalid only for VEX.R, X, B or vvvv beside an opmask register, of which there are eight, or for
/// VEX.W (docs/deviations.md, "reserved VEX bits").
fn reserved_vex_bit(case: &Case, insn: &Instruction) -> bool {
    let prefix = |byte: &u8| matches!(byte, 0x26 | 0x2e | 0x36 | 0x3e | 0x64 | 0x65 | 0x67);
    let Some(at) = case.bytes.iter().position(|byte| !prefix(byte)) else { return false };
    let with = |change: &dyn Fn(&mut [u8])| {
        let mut without = case.clone();
        change(&mut without.bytes[at..]);
        operand::decode(&without)
    };
    let opmask = |clean: &Instruction| (0..clean.op_count()).any(|n| clean.op_register(n).is_k());
    if !insn.is_invalid() || case.bytes.len() < at + 3 {
        return false;
    }
    match case.bytes[at] {
        0xc4 => {
            let wide = with(&|bytes| bytes[2] ^= 0x80);
            let clean = with(&|bytes| {
                bytes[1] |= 0xe0;
                bytes[2] |= 0x40;
            });
            opmask(&clean) || !wide.is_invalid()
        }
        0xc5 => opmask(&with(&|bytes| bytes[1] |= 0xc0)),
        _ => false,
    }
}

/// Whether an instruction is invalid for EVEX.V' = 0 outside 64-bit mode, for EVEX.b = 1 with a register in
/// ModRM.r/m where it means nothing, or for EVEX.z = 1 without a mask, and for nothing else (SDM vol. 2A, tables 2-36 and 2-39).
pub fn reserved_evex_bit(case: &Case, insn: &Instruction) -> bool {
    const V: u8 = 1 << 3;
    const B: u8 = 1 << 4;
    const Z: u8 = 1 << 7;
    let prefix = |byte: &u8| matches!(byte, 0x26 | 0x2e | 0x36 | 0x3e | 0x64 | 0x65 | 0x67);
    let Some(at) = case.bytes.iter().position(|byte| !prefix(byte)) else { return false };
    let (Some(0x62), Some(p2), Some(modrm)) =
        (case.bytes.get(at), case.bytes.get(at + 3), case.bytes.get(at + 5))
    else {
        return false;
    };
    let candidates = [
        (V, case.bits != Bits::Bits64 && p2 & V == 0),
        (B, p2 & B != 0 && modrm >> 6 == 3),
        (Z, p2 & Z != 0 && p2 & 7 == 0),
    ];
    let reserved: u8 = candidates.iter().filter(|(_, set)| *set).map(|(bit, _)| bit).sum();
    // Some of them, or all: a bit may have a meaning beside another that has none.
    let subsets = (1..=u8::MAX).filter(|bits| bits & !reserved == 0);
    insn.is_invalid()
        && subsets.into_iter().any(|bits| {
            let mut without = case.clone();
            without.bytes[at + 3] ^= bits;
            !operand::decode(&without).is_invalid()
        })
}

fn apply(what: What, case: &Case, insn: &Instruction, mask: &mut Mask) {
    match what {
        What::FaultAddress | What::MmxTransition | What::Popped => {}
        What::EdxEax => mask.low(&[AX, DX]),
        What::EdxEaxEcx => mask.low(&[AX, DX, CX]),
        What::CpuidRegisters => mask.low(&[AX, BX, CX, DX]),
        What::Destination | What::Descriptor => mask.destination(insn, case),
        What::DestinationAndCarry => {
            mask.destination(insn, case);
            mask.rflags |= undefined::CF;
        }
        What::LowHalf => mask.low(&[insn.op_register(0).full_register().number() & 15]),
        What::InUse => {
            if case.gpr[CX] as u32 == 1 {
                mask.gpr[AX] |= image::components() & 0xffff_ffff;
                mask.gpr[DX] |= image::components() >> 32;
            }
        }
        What::Selector | What::SelectorFlag => {
            let source = insn.op_count().saturating_sub(1);
            if operand::value(case, insn, source).is_some_and(|s| is_the_kernels(s as u16)) {
                mask.rflags |= ZF;
                if what == What::Selector {
                    mask.destination(insn, case);
                }
            }
        }
        What::Area => area(case, insn, mask),
        // Of two machines that complete, nothing is left out.
        What::ZeroMask => {}
    }
}

/// Whether a selector names a descriptor in the GDT that is not one of [`layout::DESCRIPTORS`], nor null.
fn is_the_kernels(selector: u16) -> bool {
    selector & 4 == 0 && selector > 3 && !layout::DESCRIPTORS.iter().any(|d| d.selector & !3 == selector & !3)
}

/// Whether the oracle cannot show FIP, FDP and FOP: AMD's XSAVE, which makes the signal frame, stores them as 0 (or, older
/// ones, not at all) unless FSW.ES says that an exception is pending (APM vol. 5, FXSAVE; docs/deviations.md, "x87
/// pointers"). What FNSTENV and FNSAVE store is compared always.
fn hides_pointers(oracle: &Outcome) -> bool {
    const ES: u8 = 1 << 7;
    static AMD: LazyLock<bool> = LazyLock::new(features::host_is_amd);
    // RstrFpErrPtrs: CPUID 80000008H, EBX bit 2 (APM vol. 3, appendix E).
    static STORES_ZEROS: LazyLock<bool> = LazyLock::new(|| {
        let cpuid = core::arch::x86_64::__cpuid_count;
        cpuid(0x8000_0000, 0).eax >= 0x8000_0008 && cpuid(0x8000_0008, 0).ebx & 4 != 0
    });
    let state = image::normalised(&oracle.xsave);
    let zeros = state[image::FOP..image::MXCSR].iter().all(|&b| b == 0);
    *AMD && state[image::FSW] & ES == 0 && (zeros || !*STORES_ZEROS)
}

/// Whether the last operand, MASKMOVQ's or MASKMOVDQU's mask, has no sign bit set.
fn mask_is_zero(case: &Case, insn: &Instruction) -> bool {
    let state = image::normalised(&case.xsave);
    let register = insn.op_register(insn.op_count().saturating_sub(1));
    let n = register.number();
    let signs = |bytes: &[u8]| bytes.iter().any(|b| b & 0x80 != 0);
    // MMn is the low part of the physical register n (SDM vol. 1, 9.2.2).
    let physical = (n + 8 - image::top(&state) % 8) % 8;
    if register.is_mm() {
        !signs(&image::st(&state, physical)[..8])
    } else {
        !signs(&image::zmm(&state, n)[..16])
    }
}

/// Masks for an XSAVE area (SDM vol. 1, 13.4, 13.7 to 13.10).
fn area(case: &Case, insn: &Instruction, mask: &mut Mask) {
    let Some(start) = operand::linear_address(case, insn, 0) else { return };
    let asked = (case.gpr[DX] << 32 | case.gpr[AX] & 0xffff_ffff) & image::components();
    let state = image::normalised(&case.xsave);
    let initial = (0..64).filter(|&n| asked >> n & 1 != 0 && image::is_initial(&state, n));
    let compact = matches!(insn.mnemonic(), M::Xsavec | M::Xsavec64);
    let optimizes = !matches!(insn.mnemonic(), M::Xsave | M::Xsave64);
    for number in initial {
        let at = start.wrapping_add(image::XSTATE_BV as u64 + u64::from(number) / 8);
        mask.memory.push((at, 1, 1 << (number % 8)));
        let Some((offset, size)) = image::component(number) else { continue };
        if !optimizes {
            continue;
        }
        let mut bytes = |at: usize, len: usize| mask.memory.push((start.wrapping_add(at as u64), len, 0xff));
        match number {
            // MXCSR stands between the x87 parts, and is saved with SSE or AVX.
            image::X87 => {
                bytes(0, image::MXCSR);
                bytes(image::ST, image::XMM - image::ST);
            }
            image::SSE => {
                bytes(image::XMM, 256);
                bytes(image::MXCSR, 8);
            }
            _ if compact => {
                if let Some(at) = image::compact_offset(asked, number) {
                    bytes(at, size);
                }
            }
            _ => bytes(offset, size),
        }
    }
}
