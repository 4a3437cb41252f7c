//! What two machines may meet differently: which of several faults, prefixes and encodings without meaning, and what the
//! host's kernel puts between. A row names the processors that differ, so that on another host the rest is compared.

use super::{AC, DB, GP, Mask, PF, TS, UD, completed, encodings, is_far};
use crate::case::{Bits, Case, Outcome};
use crate::coverage::features;
use crate::image;
use crate::layout;
use crate::operand;
use crate::undefined;
use iced_x86::{Code, Instruction, Mnemonic as M, Register};
use std::sync::LazyLock;

/// A case's two outcomes.
pub struct Pair<'a> {
    /// The case.
    pub case: &'a Case,
    /// Its instruction.
    pub insn: &'a Instruction,
    /// What the host did.
    pub oracle: &'a Outcome,
    /// What softkvm did.
    pub engine: &'a Outcome,
}

impl Pair<'_> {
    fn is(&self, mnemonics: &[M]) -> bool {
        mnemonics.contains(&self.insn.mnemonic())
    }

    /// Both completed.
    pub fn completed(&self) -> bool {
        completed(self.case, self.insn, self.oracle) && completed(self.case, self.insn, self.engine)
    }

    /// An exception of this sort, of the instruction itself.
    fn raised(&self, o: &Outcome, vector: u8) -> bool {
        o.vector == vector && o.rip == self.case.rip()
    }

    /// A fault of segmentation, paging or alignment.
    fn faulted(&self, o: &Outcome) -> bool {
        matches!(o.vector, TS..=PF | AC) && o.rip == self.case.rip()
    }

    fn both_faulted(&self) -> bool {
        self.faulted(self.oracle) && self.faulted(self.engine)
    }

    /// One machine raised the one, the other the other.
    fn either_way(&self, one: impl Fn(&Outcome) -> bool, other: impl Fn(&Outcome) -> bool) -> bool {
        one(self.oracle) && other(self.engine) || other(self.oracle) && one(self.engine)
    }

    /// Both met a page fault of one sort.
    fn page_faults(&self) -> bool {
        self.oracle.vector == PF
            && self.engine.vector == PF
            && self.oracle.error_code == self.engine.error_code
    }

    /// Bytes without an instruction.
    fn nothing(&self) -> bool {
        self.insn.is_invalid() || self.is(&[M::Ud0, M::Ud1])
    }

    /// Whether a machine is in the other one of 64-bit and compatibility mode now.
    fn changed_mode(&self, o: &Outcome) -> bool {
        (o.selectors[1] == layout::CODE64) != (self.case.bits == Bits::Bits64)
    }

    fn far_call(&self) -> bool {
        self.insn.is_call_far() || self.insn.is_call_far_indirect()
    }
}

/// On which hosts the machines differ.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Host {
    /// All: the manual leaves it open, or the kernel does it.
    Any,
    /// Processors of AMD, against the SDM or where that leaves it open.
    Amd,
}

impl Host {
    /// Whether it is the one that this runs on.
    pub fn is_this(self) -> bool {
        static AMD: LazyLock<bool> = LazyLock::new(features::host_is_amd);
        self == Host::Any || *AMD
    }
}

/// What is left out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Leave {
    /// The whole comparison.
    Everything,
    /// The error code's P bit.
    Present,
    /// CR2 and the error code's P bit.
    FaultAddress,
    /// RIP.
    Rip,
    /// The upper half of RSP.
    UpperRsp,
    /// RSP, and what a far CALL may have pushed.
    ReturnAddress,
    /// The general registers but RSP and RAX's part that POPA loads last.
    Popped,
    /// The status flags.
    StatusFlags,
    /// TOP and the tags.
    MmxState,
    /// FOP, FIP and FDP.
    Pointers,
}

/// A row.
pub struct Situation {
    /// What it is.
    pub why: &'static str,
    /// Where.
    pub host: Host,
    /// Whether a case's outcomes are such.
    pub applies: fn(&Pair<'_>) -> bool,
    /// What is left out then.
    pub leave: Leave,
}

const fn row(why: &'static str, host: Host, leave: Leave, applies: fn(&Pair<'_>) -> bool) -> Situation {
    Situation { why, host, applies, leave }
}

/// Addresses from here on: the host's kernel sets the P bit in the error code that it shows, whatever the page is.
const UPPER_HALF: u64 = 0x7fff_ffff_f000;

/// Linux's own data segment of the processor's number, whose descriptor is the kernel's.
const CPU_NUMBER_SEGMENT: u16 = 0x78;

const STATE_AREAS: &[M] = &[
    M::Fbld,
    M::Fbstp,
    M::Fnsave,
    M::Frstor,
    M::Fnstenv,
    M::Fldenv,
    M::Fxsave,
    M::Fxsave64,
    M::Fxrstor,
    M::Fxrstor64,
    M::Xsave,
    M::Xsave64,
    M::Xsavec,
    M::Xsavec64,
    M::Xsaveopt,
    M::Xsaveopt64,
    M::Xrstor,
    M::Xrstor64,
];
const TABLES: &[M] = &[M::Sgdt, M::Sidt, M::Sldt, M::Str, M::Smsw];
const MASKED_BYTES: &[M] = &[M::Maskmovq, M::Maskmovdqu, M::Vmaskmovdqu];
const MMX_CONVERSIONS: &[M] =
    &[M::Cvtpd2pi, M::Cvttpd2pi, M::Cvtps2pi, M::Cvttps2pi, M::Cvtpi2ps, M::Cvtpi2pd];
const COMPARE_STRINGS: &[M] = &[M::Cmpsb, M::Cmpsw, M::Cmpsq];
const SCAN_STRINGS: &[M] = &[M::Scasb, M::Scasw, M::Scasd, M::Scasq];

/// CMPS: CMPSD is two instructions' name.
fn compares_strings(p: &Pair<'_>) -> bool {
    p.is(COMPARE_STRINGS) || p.is(&[M::Cmpsd]) && p.insn.is_string_instruction()
}

/// Operands that a processor may take in parts, each with its own checks.
fn large_operand(p: &Pair<'_>) -> bool {
    p.is(STATE_AREAS) || matches!(p.insn.code(), Code::Fld_m80fp | Code::Fstp_m80fp)
}

/// All of them.
#[rustfmt::skip]
pub const SITUATIONS: &[Situation] = &[
    row("the host's kernel hides which pages of the upper half exist", Host::Any, Leave::Present,
        |p| p.oracle.vector == PF && p.oracle.cr2 >= UPPER_HALF),
    row("XSAVE, which makes the signal frame, does not store them", Host::Amd, Leave::Pointers,
        |p| hides_pointers(p.oracle)),
    row("page faults with a mask of zeros are implementation dependent (SDM vol. 2B, MASKMOVQ)", Host::Any, Leave::Everything,
        |p| p.is(MASKED_BYTES) && mask_is_zero(p.case, p.insn)
            && p.either_way(|o| o.vector == PF, |o| completed(p.case, p.insn, o))),
    row("a trap behind INT1 (SDM vol. 2A, INT n), which a hypervisor below the host may show as a fault", Host::Any, Leave::Rip,
        |p| p.is(&[M::Int1]) && p.engine.vector == DB && p.raised(p.oracle, DB)),
    row("under UMIP (SDM vol. 3A, 2.5) the host's kernel answers, with faults of its own", Host::Any, Leave::Everything,
        |p| p.is(TABLES) && p.raised(p.engine, GP)),
    // Of class software (docs/cpuid.md); or a hypervisor below the host answers for what its CPUID denies.
    row("the host's processor does not have the instruction", Host::Any, Leave::Everything,
        |p| p.raised(p.oracle, UD) != p.raised(p.engine, UD) && lacks(p.insn)),
    row("a selector of the host's kernel", Host::Any, Leave::Everything,
        |p| p.oracle.selectors.iter().any(|selector| selector & !7 == CPU_NUMBER_SEGMENT)),

    row("upper halves do not survive compatibility mode (SDM vol. 1, 3.4.1.1)", Host::Any, Leave::UpperRsp,
        |p| is_far(p.insn) && p.changed_mode(p.oracle) && p.changed_mode(p.engine)),
    row("several faults of a far transfer have no order", Host::Any, Leave::Everything,
        |p| is_far(p.insn) && p.both_faulted() && p.oracle.gpr == p.engine.gpr),
    row("which mode's stack a far CALL uses that changes the mode: both did", Host::Amd, Leave::ReturnAddress,
        |p| p.far_call() && p.changed_mode(p.oracle) && p.changed_mode(p.engine)),
    row("which mode's stack a far CALL uses that changes the mode: one of them cannot be written", Host::Amd, Leave::Everything,
        |p| p.far_call() && p.either_way(|o| p.changed_mode(o), |o| p.faulted(o))),

    row("which of CMPS' two operands is looked at first", Host::Any, Leave::Everything,
        |p| compares_strings(p) && p.both_faulted()
            && (p.oracle.vector, p.oracle.error_code, p.oracle.cr2) != (p.engine.vector, p.engine.error_code, p.engine.cr2)),
    row("the flags of an iteration before the one that faulted (SDM vol. 2B, REP: those before all)", Host::Amd, Leave::StatusFlags,
        |p| (compares_strings(p) || p.is(SCAN_STRINGS)) && (p.insn.has_rep_prefix() || p.insn.has_repne_prefix())
            && p.oracle.vector == p.engine.vector && p.oracle.rip == p.case.rip()),
    row("POPA has loaded what came before the fault", Host::Amd, Leave::Popped,
        |p| p.is(&[M::Popa, M::Popad]) && p.both_faulted() && p.oracle.vector == p.engine.vector),
    row("the transition to MMX state before the fault", Host::Amd, Leave::MmxState,
        |p| p.is(MMX_CONVERSIONS) && (p.page_faults() || p.oracle.vector == p.engine.vector
            && p.raised(p.oracle, p.oracle.vector) && p.oracle.error_code == 0)),
    row("which byte in a page of a large operand is touched first", Host::Any, Leave::FaultAddress,
        |p| large_operand(p) && p.oracle.vector == PF && p.engine.vector == PF
            && p.oracle.cr2.abs_diff(p.engine.cr2) < layout::PAGE),
    row("whether a large operand's limit or its pages are looked at first", Host::Any, Leave::Everything,
        |p| large_operand(p) && p.both_faulted() && p.oracle.vector != p.engine.vector),

    row("F2H and F3H before LOOPE and LOOPNE are reserved (SDM vol. 2A, 2.1.1), and taken as a condition", Host::Amd, Leave::Everything,
        |p| p.is(&[M::Loope, M::Loopne])
            && p.case.bytes.iter().take(p.insn.len()).any(|byte| matches!(byte, 0xf2 | 0xf3))),
    row("the SDM says #UD for a reserved VEX bit, the host ignores it", Host::Amd, Leave::Everything,
        |p| p.raised(p.engine, UD) && encodings::reserved_vex_bit(p.case, p.insn)),
    row("the SDM says #UD for a reserved EVEX bit, the host ignores it", Host::Amd, Leave::Everything,
        |p| p.raised(p.engine, UD) && encodings::reserved_evex_bit(p.case, p.insn)),
    row("the SDM says #UD for LOCK VERW, the host ignores the prefix", Host::Amd, Leave::Everything,
        |p| p.raised(p.engine, UD) && p.insn.is_invalid() && encodings::locked_verw(p.case)),
    row("whether bytes are undefined or too long", Host::Any, Leave::Everything,
        |p| p.nothing() && p.case.bytes.len() >= 15
            && p.either_way(|o| p.raised(o, GP) && o.error_code == 0, |o| p.raised(o, UD))),
    row("how many bytes of an undefined encoding are fetched", Host::Any, Leave::Everything,
        |p| p.nothing() && p.either_way(|o| o.vector == PF && o.error_code & 0x10 != 0, |o| p.raised(o, UD))),
];

/// Puts into the mask what a row leaves out.
pub(super) fn leave_out(row: &Situation, pair: &Pair<'_>, mask: &mut Mask) {
    const RSP: usize = 4;
    match row.leave {
        Leave::Everything => mask.everything = Some(row.why),
        Leave::Present => mask.error_code |= 1,
        Leave::FaultAddress => {
            mask.cr2 = u64::MAX;
            // Another page may be there, and read-only.
            mask.error_code |= 1;
        }
        Leave::Rip => mask.rip = u64::MAX,
        Leave::UpperRsp => mask.gpr[RSP] |= 0xffff_ffff_0000_0000,
        Leave::ReturnAddress => {
            mask.gpr[RSP] = u64::MAX;
            let rsp = pair.case.gpr[RSP];
            let base = operand::segment_base(pair.case, Register::SS);
            // Two words of up to 8 bytes, below the pointer as each mode and stack has it.
            for top in [rsp, rsp & 0xffff_ffff, base + (rsp & 0xffff_ffff), base + (rsp & 0xffff)] {
                mask.memory.push((top.wrapping_sub(16), 16, 0xff));
            }
        }
        Leave::Popped => (1..16).filter(|n| *n != RSP).for_each(|n| mask.gpr[n] = u64::MAX),
        Leave::StatusFlags => mask.rflags |= undefined::STATUS,
        Leave::MmxState => mask.mmx = true,
        Leave::Pointers => mask.pointers = true,
    }
}

/// Whether the oracle cannot show FIP, FDP and FOP: AMD's XSAVE, which makes the signal frame, stores them as 0 (or, older
/// ones, not at all) unless FSW.ES says that an exception is pending (APM vol. 5, FXSAVE; docs/deviations.md, "x87
/// pointers"). What FNSTENV and FNSAVE store is compared always.
fn hides_pointers(oracle: &Outcome) -> bool {
    const ES: u8 = 1 << 7;
    // RstrFpErrPtrs: CPUID 80000008H, EBX bit 2 (APM vol. 3, appendix E).
    static STORES_ZEROS: LazyLock<bool> = LazyLock::new(|| {
        let cpuid = core::arch::x86_64::__cpuid_count;
        cpuid(0x8000_0000, 0).eax >= 0x8000_0008 && cpuid(0x8000_0008, 0).ebx & 4 != 0
    });
    let state = image::normalised(&oracle.xsave);
    let zeros = state[image::FOP..image::MXCSR].iter().all(|&b| b == 0);
    state[image::FSW] & ES == 0 && (zeros || !*STORES_ZEROS)
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

/// Whether the host's CPUID lacks what the instruction needs.
fn lacks(insn: &Instruction) -> bool {
    !insn.cpuid_features().iter().all(|feature| features::has(&features::host_cpuid, *feature))
}
