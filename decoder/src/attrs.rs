//! What is known about an instruction from its [`Code`] alone: a table, computed once.
//!
//! Not here: what depends on the operands of one decoded instruction ([`crate::insn`]; but see
//! [`flag_use`]), or on the mode and CPUID ([`crate::validity`]).

use std::sync::LazyLock;

use bitflags::bitflags;
use iced_x86::{
    Code, CpuidFeature, EncodingKind, FlowControl, Instruction, InstructionInfoFactory,
    InstructionInfoOptions, Mnemonic, OpAccess, OpCodeOperandKind, OpKind, RflagsBits,
};
use x86_arch::regs::{Rflags, Seg};

use crate::insn::{Insn, OperandKind};

bitflags! {
    /// Properties of an instruction.
    #[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Hash)]
    pub struct Attr: u32 {
        /// A block ends behind it: it transfers control, or changes what the rest of the block was decoded or
        /// translated under, or lets an interrupt in, or leaves to the outside world.
        const ENDS_BLOCK = 1 << 0;
        /// A direct near branch: jmp, jcc, loop, jrcxz, call.
        const NEAR_BRANCH = 1 << 1;
        /// May fall through: jcc, loop, jrcxz.
        const CONDITIONAL = 1 << 2;
        /// A near branch through a register or memory.
        const INDIRECT = 1 << 3;
        /// A near call, direct or indirect.
        const CALL = 1 << 4;
        /// A near return.
        const RETURN = 1 << 5;
        /// A transfer that may change CS or the privilege level: far branches, IRET, INT, SYSCALL and their like.
        const FAR = 1 << 6;
        /// #GP(0) unless CPL is 0.
        const PRIVILEGED = 1 << 7;
        /// IOPL, VME, PVI or the I/O permission bitmap decides: CLI, STI, PUSHF, POPF, IRET, INT n, IN, OUT.
        const IOPL_SENSITIVE = 1 << 8;
        /// IN, OUT, INS, OUTS.
        const IO = 1 << 9;
        /// Interrupts are held off until the next instruction has completed: MOV SS, POP SS, STI with IF=0
        /// (SDM vol. 3A, 6.8.3).
        const SHADOW = 1 << 10;
        /// Serializing (SDM vol. 3A, 9.3).
        const SERIALIZING = 1 << 11;
        /// MOVS, CMPS, STOS, LODS, SCAS, INS, OUTS: REP applies.
        const STRING = 1 << 12;
        /// Pushes or pops.
        const STACK = 1 << 13;
        /// Loads a segment register other than CS.
        const LOADS_SEGMENT = 1 << 14;
        /// x87.
        const X87 = 1 << 15;
        /// Has an MMX register among its operands, or is EMMS.
        const MMX = 1 << 16;
        /// Legacy-encoded, with vector registers.
        const SSE = 1 << 17;
        /// VEX- or XOP-encoded (BMI and opmask instructions too).
        const VEX = 1 << 18;
        /// EVEX-encoded.
        const EVEX = 1 << 19;
        /// Whether it writes flags depends on a count: shifts by CL, shifts by an immediate (see [`flag_use`]),
        /// CMPS and SCAS under REP.
        const FLAGS_BY_COUNT = 1 << 20;
        /// LOCK is allowed with a memory destination.
        const LOCKABLE = 1 << 21;
        /// UMIP makes it privileged: SGDT, SIDT, SLDT, SMSW, STR.
        const UMIP = 1 << 22;
        /// VSIB addressing: gather, scatter.
        const VSIB = 1 << 23;
    }
}

/// What an instruction does with its memory operand, or its string operands together. The stack is apart
/// ([`Attr::STACK`]).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Hash)]
#[repr(u8)]
pub enum MemAccess {
    /// No memory operand, or only its address counts (LEA, NOP, prefetches).
    #[default]
    None,
    /// Reads it.
    Read,
    /// Writes it.
    Write,
    /// Reads and writes it.
    ReadWrite,
}

impl MemAccess {
    /// Whether it is read.
    pub const fn reads(self) -> bool {
        matches!(self, MemAccess::Read | MemAccess::ReadWrite)
    }

    /// Whether it is written.
    pub const fn writes(self) -> bool {
        matches!(self, MemAccess::Write | MemAccess::ReadWrite)
    }

    const fn or(self, reads: bool, writes: bool) -> MemAccess {
        match (self.reads() || reads, self.writes() || writes) {
            (false, false) => MemAccess::None,
            (true, false) => MemAccess::Read,
            (false, true) => MemAccess::Write,
            (true, true) => MemAccess::ReadWrite,
        }
    }
}

/// Flags as masks of RFLAGS: the six status flags and DF. Their bits lie below bit 16.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Hash)]
pub struct FlagUse {
    /// Read.
    pub read: u16,
    /// Written on every execution that does not fault, with a defined or an undefined value: what they held before is dead.
    pub written: u16,
    /// Those of `may_write` whose new value the manual leaves undefined, under some operand.
    pub undefined: u16,
    /// Written on some execution. A superset of `written`.
    pub may_write: u16,
}

/// Status flags and DF as [`FlagUse`] has them.
const FLAG_MASK: u16 = (Rflags::STATUS.bits() | Rflags::DF.bits()) as u16;

/// The attributes of a [`Code`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Attrs {
    /// The properties.
    pub attr: Attr,
    /// The flags; for a shift or rotate by an immediate, over all counts. See [`flag_use`].
    pub flags: FlagUse,
    /// The explicit memory operand or the string operands, where there are any.
    pub mem: MemAccess,
    /// See [`op_size`].
    pub op_size: u8,
}

static TABLE: LazyLock<Box<[Attrs]>> = LazyLock::new(|| {
    let mut factory = InstructionInfoFactory::new();
    Code::values().map(|code| compute(code, &mut factory)).collect()
});

/// The attributes of `code`.
#[inline]
pub fn attrs(code: Code) -> &'static Attrs {
    // The table has a row for each value of the enumeration.
    &TABLE[code as usize]
}

/// The size in bytes of the main operation of `code`: 1, 2, 4 or 8 for an instruction on general registers, the
/// stack, the instruction pointer or a string; 0 where that has no meaning (vector and x87
/// instructions without an operand-size form).
///
/// In 64-bit mode a near branch is always 8: the operand-size prefix is ignored there, as on Intel
/// processors (SDM vol. 2A, JMP; AMD's truncate to 16 bits, APM vol. 3).
#[inline]
pub fn op_size(code: Code) -> u8 {
    attrs(code).op_size
}

/// The flags that this instruction reads and writes: [`Attrs::flags`] made exact by its immediate count and its REP
/// prefix.
pub fn flag_use(insn: &Insn) -> FlagUse {
    let attrs = attrs(insn.code);
    let mut flags = attrs.flags;
    if attrs.attr.contains(Attr::FLAGS_BY_COUNT) {
        if attrs.attr.contains(Attr::STRING) {
            if insn.rep() {
                flags.written = 0;
            }
        } else if let Some(count) = immediate_count(insn) {
            let bits = iced_flags(insn.code, count);
            flags = FlagUse { may_write: bits.written, ..bits };
        }
    }
    flags
}

/// Whether interrupts are held off for one instruction behind this one: [`Attr::SHADOW`], with the operand of MOV to a
/// segment register looked at. (STI does so only if IF was 0.)
pub fn casts_shadow(insn: &Insn) -> bool {
    let attr = attrs(insn.code).attr;
    attr.contains(Attr::SHADOW) && (insn.kinds[0] != OperandKind::Reg || insn.r[0] == Seg::Ss as u8)
}

/// The immediate count of a shift or rotate.
fn immediate_count(insn: &Insn) -> Option<u8> {
    let last = insn.op_count().checked_sub(1)?;
    (insn.kinds[last] == OperandKind::Imm).then_some(insn.imm as u8)
}

fn compute(code: Code, factory: &mut InstructionInfoFactory) -> Attrs {
    Attrs {
        attr: attr(code),
        flags: flags_of(code),
        mem: mem_access(code, factory),
        op_size: compute_op_size(code),
    }
}

fn attr(code: Code) -> Attr {
    use Mnemonic as M;
    let info = code.op_code();
    let mnemonic = code.mnemonic();
    let mut a = Attr::empty();

    match code.flow_control() {
        FlowControl::Next => {}
        FlowControl::ConditionalBranch => a |= Attr::ENDS_BLOCK | Attr::NEAR_BRANCH | Attr::CONDITIONAL,
        FlowControl::UnconditionalBranch if code.is_jmp_short_or_near() => {
            a |= Attr::ENDS_BLOCK | Attr::NEAR_BRANCH
        }
        FlowControl::IndirectBranch if code.is_jmp_near_indirect() => a |= Attr::ENDS_BLOCK | Attr::INDIRECT,
        FlowControl::IndirectCall if code.is_call_near_indirect() => {
            a |= Attr::ENDS_BLOCK | Attr::INDIRECT | Attr::CALL
        }
        FlowControl::Call if code.is_call_near() => a |= Attr::ENDS_BLOCK | Attr::NEAR_BRANCH | Attr::CALL,
        FlowControl::Return if mnemonic == M::Ret => a |= Attr::ENDS_BLOCK | Attr::RETURN,
        FlowControl::Exception | FlowControl::XbeginXabortXend => a |= Attr::ENDS_BLOCK,
        _ => a |= Attr::ENDS_BLOCK | Attr::FAR,
    }

    if ends_block(code, mnemonic) {
        a |= Attr::ENDS_BLOCK;
    }
    if loads_segment(code) {
        // The translator assumes flat segments, and the stack's address size is SS.B.
        a |= Attr::LOADS_SEGMENT | Attr::ENDS_BLOCK;
    }
    a.set(Attr::PRIVILEGED, info.must_be_cpl0());
    a.set(Attr::IO, info.is_input_output());
    a.set(
        Attr::IOPL_SENSITIVE,
        info.is_input_output()
            || matches!(
                mnemonic,
                M::Cli
                    | M::Sti
                    | M::Pushf
                    | M::Pushfd
                    | M::Pushfq
                    | M::Popf
                    | M::Popfd
                    | M::Popfq
                    | M::Iret
                    | M::Iretd
                    | M::Iretq
                    | M::Int
            ),
    );
    a.set(
        Attr::SHADOW,
        mnemonic == M::Sti
            || matches!(code, Code::Popw_SS | Code::Popd_SS)
            // Whether the destination is SS is known only with the operand.
            || matches!(code, Code::Mov_Sreg_rm16 | Code::Mov_Sreg_r32m16 | Code::Mov_Sreg_r64m16),
    );
    a.set(Attr::SERIALIZING, info.is_serializing_intel());
    a.set(Attr::STRING, is_string(mnemonic, code));
    a.set(Attr::STACK, info.is_stack_instruction());
    a.set(Attr::LOCKABLE, info.can_use_lock_prefix());
    a.set(Attr::UMIP, matches!(mnemonic, M::Sgdt | M::Sidt | M::Sldt | M::Smsw | M::Str));
    a.set(
        Attr::FLAGS_BY_COUNT,
        is_shift(mnemonic) && !is_shift_by_one(code)
            || matches!(
                mnemonic,
                M::Cmpsb | M::Cmpsw | M::Cmpsd | M::Cmpsq | M::Scasb | M::Scasw | M::Scasd | M::Scasq
            ) && is_string(mnemonic, code),
    );

    let kinds = info.op_kinds();
    let legacy = code.encoding() == EncodingKind::Legacy;
    a.set(Attr::VSIB, kinds.iter().any(|k| is_vsib(*k)));
    a.set(
        Attr::MMX,
        kinds.iter().any(|k| {
            matches!(k, OpCodeOperandKind::mm_or_mem | OpCodeOperandKind::mm_reg | OpCodeOperandKind::mm_rm)
        }) || mnemonic == M::Emms,
    );
    a.set(
        Attr::SSE,
        legacy
            && kinds.iter().any(|k| {
                matches!(
                    k,
                    OpCodeOperandKind::xmm_or_mem | OpCodeOperandKind::xmm_reg | OpCodeOperandKind::xmm_rm
                )
            }),
    );
    a.set(Attr::VEX, matches!(code.encoding(), EncodingKind::VEX | EncodingKind::XOP));
    a.set(Attr::EVEX, code.encoding() == EncodingKind::EVEX);
    a.set(Attr::X87, is_x87(code));
    a
}

fn is_vsib(kind: OpCodeOperandKind) -> bool {
    matches!(
        kind,
        OpCodeOperandKind::mem_vsib32x
            | OpCodeOperandKind::mem_vsib64x
            | OpCodeOperandKind::mem_vsib32y
            | OpCodeOperandKind::mem_vsib64y
            | OpCodeOperandKind::mem_vsib32z
            | OpCodeOperandKind::mem_vsib64z
    )
}

fn is_x87(code: Code) -> bool {
    // WAIT is not an escape opcode, and iced does not list it with them, but it waits for the same unit.
    code == Code::Wait
        || code.encoding() == EncodingKind::Legacy
            && code.cpuid_features().iter().any(|f| {
                matches!(
                    f,
                    CpuidFeature::FPU
                        | CpuidFeature::FPU287
                        | CpuidFeature::FPU287XL_ONLY
                        | CpuidFeature::FPU387
                        | CpuidFeature::FPU387SL_ONLY
                )
            })
}

/// Instructions that fall through but behind which a block ends nevertheless.
fn ends_block(code: Code, mnemonic: Mnemonic) -> bool {
    use Mnemonic as M;
    if code.op_code().is_input_output() {
        return true;
    }
    match mnemonic {
        // A write; a read of a control or debug register changes nothing.
        M::Mov => {
            matches!(code, Code::Mov_cr_r32 | Code::Mov_cr_r64 | Code::Mov_dr_r32 | Code::Mov_dr_r64)
        }
        // Control registers by other names, and MSRs. (A read of an MSR may be the caller's to answer.)
        M::Lmsw | M::Clts | M::Xsetbv | M::Wrmsr | M::Wrmsrns | M::Rdmsr => true,
        // What the TLB holds, or which view of it is used: SMAP's override and protection keys. XRSTOR may write PKRU.
        M::Invlpg | M::Invpcid | M::Stac | M::Clac | M::Wrpkru => true,
        M::Xrstor | M::Xrstor64 | M::Xrstors | M::Xrstors64 => true,
        // IF, TF: an interrupt or a trap may have become deliverable.
        M::Sti | M::Popf | M::Popfd | M::Popfq => true,
        // Waiting.
        M::Hlt | M::Mwait | M::Mwaitx | M::Monitor | M::Monitorx => true,
        // What was fetched is fetched again.
        M::Serialize | M::Wbinvd | M::Invd | M::Wbnoinvd => true,
        _ => {
            // Virtualization instructions all change what runs next or leave.
            code.cpuid_features().iter().any(|f| {
                matches!(
                    f,
                    CpuidFeature::VMX
                        | CpuidFeature::SVM
                        | CpuidFeature::SKINIT_or_SVM
                        | CpuidFeature::INVEPT
                        | CpuidFeature::INVVPID
                )
            })
        }
    }
}

fn loads_segment(code: Code) -> bool {
    use Mnemonic as M;
    match code.mnemonic() {
        M::Lds | M::Les | M::Lfs | M::Lgs | M::Lss => true,
        M::Mov => matches!(code, Code::Mov_Sreg_rm16 | Code::Mov_Sreg_r32m16 | Code::Mov_Sreg_r64m16),
        M::Pop => {
            use OpCodeOperandKind as K;
            let kinds = code.op_code().op_kinds();
            matches!(kinds.first(), Some(K::es | K::ss | K::ds | K::fs | K::gs))
        }
        _ => false,
    }
}

fn is_string(mnemonic: Mnemonic, code: Code) -> bool {
    use Mnemonic as M;
    match mnemonic {
        // MOVSD and CMPSD are names of SSE2 instructions too.
        M::Movsd => code == Code::Movsd_m32_m32,
        M::Cmpsd => code == Code::Cmpsd_m32_m32,
        M::Movsb | M::Movsw | M::Movsq | M::Cmpsb | M::Cmpsw | M::Cmpsq => true,
        M::Stosb | M::Stosw | M::Stosd | M::Stosq | M::Lodsb | M::Lodsw | M::Lodsd | M::Lodsq => true,
        M::Scasb | M::Scasw | M::Scasd | M::Scasq => true,
        M::Insb | M::Insw | M::Insd | M::Outsb | M::Outsw | M::Outsd => true,
        _ => false,
    }
}

fn is_shift(mnemonic: Mnemonic) -> bool {
    use Mnemonic as M;
    matches!(
        mnemonic,
        M::Rol | M::Ror | M::Rcl | M::Rcr | M::Shl | M::Shr | M::Sal | M::Sar | M::Shld | M::Shrd
    )
}

fn is_shift_by_one(code: Code) -> bool {
    code.op_code().op_kinds().last() == Some(&OpCodeOperandKind::imm8_const_1)
}

fn flags_of(code: Code) -> FlagUse {
    if !is_shift(code.mnemonic()) {
        let mut flags = iced_flags(code, 0);
        flags.may_write = flags.written;
        return flags;
    }
    let last = code.op_code().op_kinds().last().copied();
    if last == Some(OpCodeOperandKind::imm8_const_1) {
        let mut flags = iced_flags(code, 1);
        flags.may_write = flags.written;
        return flags;
    }
    // By CL, or by an immediate of any value: a count of 0 writes nothing (SDM vol. 2B, SAL/SAR/SHL/SHR).
    let mut union = FlagUse::default();
    for count in [0, 1, 2, 9, 17, 31, 33, 63] {
        let one = iced_flags(code, count);
        union.read |= one.read;
        union.may_write |= one.written;
        union.undefined |= one.undefined;
    }
    union
}

/// What iced's table says, with this shift count. `written` includes undefined flags; `may_write` is not set.
fn iced_flags(code: Code, count: u8) -> FlagUse {
    let mut insn = Instruction::default();
    insn.set_code(code);
    let last = code.op_code().op_count().saturating_sub(1);
    let by_immediate = matches!(
        code.op_code().op_kinds().last(),
        Some(OpCodeOperandKind::imm8 | OpCodeOperandKind::imm8_const_1)
    );
    if is_shift(code.mnemonic()) && by_immediate {
        insn.set_op_kind(last, OpKind::Immediate8);
        insn.set_immediate8(count);
    }
    FlagUse {
        read: rflags_mask(insn.rflags_read()),
        written: rflags_mask(insn.rflags_modified()),
        undefined: rflags_mask(insn.rflags_undefined()),
        may_write: 0,
    }
}

fn rflags_mask(bits: u32) -> u16 {
    let rows = [
        (RflagsBits::CF, Rflags::CF),
        (RflagsBits::PF, Rflags::PF),
        (RflagsBits::AF, Rflags::AF),
        (RflagsBits::ZF, Rflags::ZF),
        (RflagsBits::SF, Rflags::SF),
        (RflagsBits::OF, Rflags::OF),
        (RflagsBits::DF, Rflags::DF),
    ];
    let mask = rows.iter().filter(|(bit, _)| bits & bit != 0).fold(Rflags::empty(), |m, (_, f)| m | *f);
    mask.bits() as u16 & FLAG_MASK
}

fn mem_access(code: Code, factory: &mut InstructionInfoFactory) -> MemAccess {
    let info = code.op_code();
    let mut insn = Instruction::default();
    insn.set_code(code);
    let mut is_mem = [false; 5];
    for (i, kind) in info.op_kinds().iter().enumerate().take(5) {
        if let Some(op_kind) = memory_kind(*kind) {
            is_mem[i] = true;
            // Only the fifth operand's kind cannot be set, and that is never memory.
            let _ = insn.try_set_op_kind(i as u32, op_kind);
        }
    }
    let used = factory.info_options(
        &insn,
        InstructionInfoOptions::NO_MEMORY_USAGE | InstructionInfoOptions::NO_REGISTER_USAGE,
    );
    let mut access = MemAccess::None;
    for (i, _) in is_mem.iter().enumerate().filter(|(_, m)| **m) {
        access = match used.try_op_access(i as u32).unwrap_or(OpAccess::None) {
            OpAccess::None | OpAccess::NoMemAccess => access,
            OpAccess::Read | OpAccess::CondRead => access.or(true, false),
            OpAccess::Write | OpAccess::CondWrite => access.or(false, true),
            OpAccess::ReadWrite | OpAccess::ReadCondWrite => access.or(true, true),
        };
    }
    access
}

/// The memory form of an operand that is memory or can be.
fn memory_kind(kind: OpCodeOperandKind) -> Option<OpKind> {
    use OpCodeOperandKind as K;
    match kind {
        K::mem_offs
        | K::mem
        | K::mem_mpx
        | K::mem_mib
        | K::mem_vsib32x
        | K::mem_vsib64x
        | K::mem_vsib32y
        | K::mem_vsib64y
        | K::mem_vsib32z
        | K::mem_vsib64z
        | K::r8_or_mem
        | K::r16_or_mem
        | K::r32_or_mem
        | K::r32_or_mem_mpx
        | K::r64_or_mem
        | K::r64_or_mem_mpx
        | K::mm_or_mem
        | K::xmm_or_mem
        | K::ymm_or_mem
        | K::zmm_or_mem
        | K::bnd_or_mem_mpx
        | K::k_or_mem
        | K::seg_rBX_al
        | K::sibmem => Some(OpKind::Memory),
        K::seg_rSI => Some(OpKind::MemorySegRSI),
        K::es_rDI => Some(OpKind::MemoryESRDI),
        K::seg_rDI => Some(OpKind::MemorySegRDI),
        _ => None,
    }
}

fn compute_op_size(code: Code) -> u8 {
    use OpCodeOperandKind as K;
    let info = code.op_code();
    if matches!(code, Code::Lgdt_m1664 | Code::Lidt_m1664 | Code::Sgdt_m1664 | Code::Sidt_m1664) {
        return 8;
    }
    let bits = info.operand_size();
    if bits != 0 {
        return (bits / 8) as u8;
    }
    if is_string(code.mnemonic(), code) {
        return 1;
    }
    let mut size = 0;
    for kind in info.op_kinds() {
        let this = match kind {
            K::r8_or_mem | K::r8_reg | K::r8_opcode | K::al => 1,
            K::r16_or_mem | K::r16_reg | K::r16_rm | K::r16_opcode | K::ax => 2,
            K::r32_or_mem | K::r32_reg | K::r32_rm | K::r32_opcode | K::r32_vvvv | K::eax => 4,
            K::r64_or_mem | K::r64_reg | K::r64_rm | K::r64_opcode | K::r64_vvvv | K::rax => 8,
            // XLAT, and MOV from and to an absolute address.
            K::mem_offs | K::seg_rBX_al => info.memory_size().size().min(8) as u8,
            _ => 0,
        };
        size = size.max(this);
    }
    size
}

#[cfg(test)]
mod tests;
