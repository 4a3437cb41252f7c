//! One decoded instruction, in the form that the interpreter and the translator work on.
//!
//! An [`Insn`] is position independent: it holds no linear address, so that a block cached by its
//! physical address may run at any number of linear ones. RIP-relative operands and branch targets
//! are displacements from the next instruction.
//!
//! Not here: whether the instruction is allowed ([`crate::validity`]), and what is true of every
//! instruction with the same [`Code`] ([`mod@crate::attrs`]).

use bitflags::bitflags;
use iced_x86::{Code, Instruction, OpKind, Register};
use x86_arch::exception::Vector;
use x86_arch::regs::Seg;

use crate::attrs;

/// Index of RIP (of the *next* instruction) in the register file that [`Mem::ea`] reads.
pub const REG_RIP: u8 = 16;
/// Index of the constant zero in the register file: an absent base or index.
pub const REG_ZERO: u8 = 17;
/// The number of entries in the register file: 16 general registers, RIP, zero.
pub const REG_COUNT: usize = 18;
/// In [`Insn::r`], marks AH, CH, DH and BH: they are 0x20 to 0x23.
pub const HIGH_BYTE: u8 = 0x20;
/// In [`Mem::vsib`]: the index is not a vector register.
pub const NO_VSIB: u8 = 0xff;
/// The longest instruction (SDM vol. 2A, 2.3.11).
pub const MAX_INSN_LEN: usize = 15;

/// The code size: CS.D and CS.L with EFER.LMA.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum CpuMode {
    /// Real mode, virtual-8086 mode, and 16-bit code segments.
    Bits16,
    /// 32-bit code segments, in legacy and in compatibility mode.
    Bits32,
    /// 64-bit mode.
    Bits64,
}

impl CpuMode {
    /// 16, 32 or 64, as iced's decoder takes it.
    pub const fn bitness(self) -> u32 {
        match self {
            CpuMode::Bits16 => 16,
            CpuMode::Bits32 => 32,
            CpuMode::Bits64 => 64,
        }
    }
}

bitflags! {
    /// The prefixes that an instruction has, apart from REX, VEX, EVEX and those that select its opcode.
    #[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Hash)]
    pub struct Prefixes: u8 {
        /// F0: LOCK.
        const LOCK = 1 << 0;
        /// F3: REP, REPE, XRELEASE.
        const REP = 1 << 1;
        /// F2: REPNE, XACQUIRE, BND.
        const REPNE = 1 << 2;
        /// 66: operand size.
        const OPSIZE = 1 << 3;
        /// 67: address size.
        const ADDRSIZE = 1 << 4;
        /// A segment override that has an effect in this mode.
        const SEG = 1 << 5;
    }
}

/// What an operand is. Which register, memory or value it is stands in [`Insn::r`], [`Insn::mem`],
/// [`Insn::imm`] and [`Insn::imm2`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Hash)]
#[repr(u8)]
pub enum OperandKind {
    /// There is no such operand.
    #[default]
    None,
    /// A register: `r[i]`.
    Reg,
    /// Memory: `mem`.
    Mem,
    /// An immediate: `imm`.
    Imm,
    /// The second of two immediates (ENTER, EXTRQ, INSERTQ): `imm2`.
    Imm2,
    /// A near branch target: `imm` is the displacement from the next instruction.
    Near,
    /// A far branch target: `imm2` is the selector, `imm` the offset.
    Far,
    /// A string source, `seg:[rSI]`, the segment and address size from `mem`.
    StringSrc,
    /// A string destination, `ES:[rDI]`, the address size from `mem`.
    StringDst,
    /// The destination of MASKMOVQ and MASKMOVDQU, `seg:[rDI]`: `mem` addresses it.
    MaskDst,
}

/// The kinds of an instruction's first two operands. See [`Insn::form2`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
#[allow(missing_docs)]
pub enum Form {
    /// No operands.
    None,
    R,
    M,
    I,
    RR,
    RM,
    RI,
    MR,
    MI,
    /// Immediate and register: OUT.
    IR,
    /// Two immediates: ENTER.
    II,
    /// A near branch target.
    Near,
    /// A direct far branch target.
    Far,
    /// A string operand or two, alone or with a register.
    String,
}

/// A memory operand: `seg:[base + (index << scale) + disp]`, truncated to the address size.
///
/// For an instruction with string operands: base is rSI if it reads through rSI, else rDI. For one
/// without a memory operand (LOOP, MONITOR): no base nor index, but segment and
/// address size are still those that the prefixes choose.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub struct Mem {
    /// The displacement, sign-extended. Relative to the next instruction if the base is RIP.
    pub disp: u64,
    /// Register-file index of the base: 0 to 15, [`REG_RIP`] or [`REG_ZERO`].
    pub base: u8,
    /// Register-file index of the index: 0 to 15 or [`REG_ZERO`].
    ///
    /// XLAT has [`REG_ZERO`] here although it adds AL: only the handler can add 8 bits of a register.
    pub index: u8,
    /// The index is shifted left by this much: 0 to 3.
    pub scale: u8,
    /// The segment register, override included, numbered as [`Seg`].
    pub seg: u8,
    /// The address size: the sum is truncated to `64 - shift` bits. 0, 32 or 48.
    pub shift: u8,
    /// VSIB: the number of the vector register that holds the indices, or [`NO_VSIB`]. `index` is then
    /// [`REG_ZERO`], so that the address is that of index 0.
    pub vsib: u8,
    /// The operand's size in bytes, or 0 if the instruction's state decides it (XSAVE).
    pub size: u16,
}

impl Mem {
    const NONE: Mem = Mem {
        disp: 0,
        base: REG_ZERO,
        index: REG_ZERO,
        scale: 0,
        seg: Seg::Ds as u8,
        shift: 0,
        vsib: NO_VSIB,
        size: 0,
    };

    /// The address mask: 16, 32 or 64 ones.
    #[inline(always)]
    pub const fn mask(&self) -> u64 {
        u64::MAX >> (self.shift & 63)
    }

    /// The address size in bytes: 2, 4 or 8.
    #[inline(always)]
    pub const fn addr_size(&self) -> u8 {
        8 - self.shift / 8
    }

    /// The effective address: the offset into the segment. `regs` is the vCPU's register file, where RIP
    /// already points to the next instruction. (POP to memory addressed by rSP uses rSP after its increment, SDM vol. 2B,
    /// POP: its handler's business.)
    #[inline(always)]
    pub fn ea(&self, regs: &[u64; REG_COUNT]) -> u64 {
        self.ea_plus(regs, 0)
    }

    /// The effective address of the byte `offset` behind the operand's start: an operand of several parts
    /// wraps around at the address size (SDM vol. 1, 3.3.7).
    #[inline(always)]
    pub fn ea_plus(&self, regs: &[u64; REG_COUNT], offset: u64) -> u64 {
        let base = regs[usize::from(self.base)];
        let index = regs[usize::from(self.index)];
        base.wrapping_add(index << (self.scale & 3)).wrapping_add(self.disp).wrapping_add(offset)
            & self.mask()
    }

    /// The segment register.
    #[inline(always)]
    pub const fn segment(&self) -> Seg {
        match Seg::from_index(self.seg) {
            Some(seg) => seg,
            None => Seg::Ds,
        }
    }

    /// Whether the index is a vector register.
    #[inline(always)]
    pub const fn is_vsib(&self) -> bool {
        self.vsib != NO_VSIB
    }
}

/// A decoded instruction. 56 bytes: with a handler's address it fills a cache line.
#[derive(Clone, PartialEq, Eq, Debug, Hash)]
pub struct Insn {
    /// The memory operand; see [`Mem`] for what it holds where there is none.
    pub mem: Mem,
    /// The immediate, extended as the operation consumes it; or the displacement of a near branch from the next
    /// instruction, sign-extended; or the offset of a far one; or, with [`Code::INVALID`], the exception's vector.
    pub imm: u64,
    bytes: [u8; MAX_INSN_LEN],
    /// The length in bytes, 1 to 15. In a [fault](Insn::fault), the bytes that led to it: 0 to 15.
    pub len: u8,
    /// What the instruction is: opcode, operand size and operand kinds. [`Code::INVALID`]: see [`Insn::fault`].
    pub code: Code,
    /// The second immediate, or a far branch's selector.
    pub imm2: u16,
    /// Register numbers of register operands, by position (Intel order: the destination first). General registers 0 to 15,
    /// AH CH DH BH 0x20 to 0x23 ([`HIGH_BYTE`]), segment registers as [`Seg`], else the number in the register's name.
    pub r: [u8; 4],
    /// The operands' kinds, by position.
    pub kinds: [OperandKind; 5],
    /// The code size that it was decoded for.
    pub mode: CpuMode,
    /// Its prefixes.
    pub prefixes: Prefixes,
    /// The size in bytes of the main operation; see [`attrs::op_size`].
    pub op_size: u8,
}

const _: () = assert!(size_of::<Insn>() == 56);

impl Insn {
    /// From iced's form, and the bytes that it was decoded from (at least as many as its length).
    ///
    /// An invalid instruction becomes #UD.
    pub fn from_iced(i: &Instruction, bytes: &[u8], mode: CpuMode) -> Insn {
        let code = i.code();
        let len = i.len().min(bytes.len()).min(MAX_INSN_LEN);
        if code == Code::INVALID {
            return Insn::new_fault(Vector::Ud, &bytes[..len], mode);
        }
        let mut insn = Insn::empty(bytes, len, mode);
        insn.code = code;
        insn.op_size = attrs::op_size(code);
        insn.prefixes = prefixes(i, &bytes[..len], mode);

        // Without a memory operand the prefixes alone choose segment and address size.
        let addr32_16 = match (mode, insn.prefixes.contains(Prefixes::ADDRSIZE)) {
            (CpuMode::Bits64, false) => 0,
            (CpuMode::Bits64, true) | (CpuMode::Bits32, false) | (CpuMode::Bits16, true) => 32,
            (CpuMode::Bits32, true) | (CpuMode::Bits16, false) => 48,
        };
        insn.mem.shift = addr32_16;
        let seg = segment_override(i, mode);
        insn.prefixes.set(Prefixes::SEG, seg.is_some());
        if let Some(seg) = seg {
            insn.mem.seg = seg;
        }

        let count = i.op_count();
        if count > 0 {
            insn.operand(0, i.op0_kind(), i);
        }
        if count > 1 {
            insn.operand(1, i.op1_kind(), i);
        }
        if count > 2 {
            insn.operand(2, i.op2_kind(), i);
        }
        if count > 3 {
            insn.operand(3, i.op3_kind(), i);
        }
        if count > 4 {
            insn.operand(4, i.op4_kind(), i);
        }
        insn
    }

    /// With the first `len` of `bytes`, which are at least as many, and at most 15.
    #[inline(always)]
    fn empty(bytes: &[u8], len: usize, mode: CpuMode) -> Insn {
        let mut kept = [0; MAX_INSN_LEN];
        if let Some(chunk) = bytes.first_chunk::<16>() {
            // A copy of constant length and a mask, where a copy of variable length is a call.
            let masked = u128::from_le_bytes(*chunk) & !(u128::MAX << (8 * len));
            kept.copy_from_slice(&masked.to_le_bytes()[..MAX_INSN_LEN]);
        } else {
            kept[..len].copy_from_slice(&bytes[..len]);
        }
        Insn {
            mem: Mem::NONE,
            imm: 0,
            bytes: kept,
            len: len as u8,
            code: Code::INVALID,
            imm2: 0,
            r: [0; 4],
            kinds: [OperandKind::None; 5],
            mode,
            prefixes: Prefixes::empty(),
            op_size: 0,
        }
    }

    /// An entry that stands for a fault which executing these bytes raises: #UD, or #GP(0) for an instruction that
    /// is too long. At most 15 of the bytes are kept.
    pub fn new_fault(vector: Vector, bytes: &[u8], mode: CpuMode) -> Insn {
        let mut insn = Insn::empty(bytes, bytes.len().min(MAX_INSN_LEN), mode);
        insn.imm = vector as u64;
        insn
    }

    /// The exception that this entry stands for, if it stands for one: its error code, if it has one, is 0.
    #[inline]
    pub fn fault(&self) -> Option<Vector> {
        if self.code != Code::INVALID {
            return None;
        }
        Some(Vector::from_number(self.imm as u8).unwrap_or(Vector::Ud))
    }

    /// The instruction's bytes.
    #[inline]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len).min(MAX_INSN_LEN)]
    }

    /// The instruction's bytes, with zeros behind its end: a key to find things by.
    #[inline(always)]
    pub fn padded_bytes(&self) -> &[u8; MAX_INSN_LEN] {
        &self.bytes
    }

    /// The number of operands.
    #[inline]
    pub fn op_count(&self) -> usize {
        self.kinds.iter().position(|&k| k == OperandKind::None).unwrap_or(self.kinds.len())
    }

    /// Whether operand `i` is explicit memory (not a string operand).
    #[inline(always)]
    pub fn is_mem(&self, i: usize) -> bool {
        matches!(self.kinds.get(i), Some(OperandKind::Mem))
    }

    /// Whether operand `i` is a register.
    #[inline(always)]
    pub fn is_reg(&self, i: usize) -> bool {
        matches!(self.kinds.get(i), Some(OperandKind::Reg))
    }

    /// Whether operand `i` is an immediate in `imm`.
    #[inline(always)]
    pub fn is_imm(&self, i: usize) -> bool {
        matches!(self.kinds.get(i), Some(OperandKind::Imm))
    }

    /// Whether there is an explicit memory operand.
    #[inline]
    pub fn has_mem(&self) -> bool {
        self.kinds.contains(&OperandKind::Mem)
    }

    /// Whether the prefix LOCK is present.
    #[inline(always)]
    pub fn lock(&self) -> bool {
        self.prefixes.contains(Prefixes::LOCK)
    }

    /// Whether F3 or F2 is present: for a string instruction that it repeats.
    #[inline(always)]
    pub fn rep(&self) -> bool {
        self.prefixes.intersects(Prefixes::REP.union(Prefixes::REPNE))
    }

    /// The kinds of the first two operands, to choose a handler by. `shl rm, 1` has the immediate 1, `shl rm, cl` the
    /// register CL, and `imul r, rm, imm` is RM or RR.
    pub fn form2(&self) -> Form {
        use OperandKind as K;
        match (self.kinds[0], self.kinds[1]) {
            (K::None, _) => Form::None,
            (K::Near, _) => Form::Near,
            (K::Far, _) => Form::Far,
            (K::StringSrc | K::StringDst | K::MaskDst, _) | (_, K::StringSrc | K::StringDst | K::MaskDst) => {
                Form::String
            }
            (K::Reg, K::Reg) => Form::RR,
            (K::Reg, K::Mem) => Form::RM,
            (K::Reg, K::None) => Form::R,
            (K::Reg, _) => Form::RI,
            (K::Mem, K::None) => Form::M,
            (K::Mem, K::Reg) => Form::MR,
            (K::Mem, _) => Form::MI,
            (K::Imm | K::Imm2, K::None) => Form::I,
            (K::Imm | K::Imm2, K::Reg | K::Mem) => Form::IR,
            (K::Imm | K::Imm2, _) => Form::II,
        }
    }

    fn operand(&mut self, at: usize, kind: OpKind, i: &Instruction) {
        let next_ip = i.next_ip();
        self.kinds[at] = match kind {
            OpKind::Register => {
                // The fifth operand is never a register (XOP's VPERMIL2PS has an immediate there).
                if let Some(r) = self.r.get_mut(at) {
                    *r = register_index(i.op_register(at as u32));
                }
                OperandKind::Reg
            }
            OpKind::Memory => {
                self.memory(i, next_ip);
                OperandKind::Mem
            }
            OpKind::NearBranch16 => {
                self.imm = i.near_branch16().wrapping_sub(next_ip as u16) as i16 as u64;
                OperandKind::Near
            }
            OpKind::NearBranch32 => {
                self.imm = i.near_branch32().wrapping_sub(next_ip as u32) as i32 as u64;
                OperandKind::Near
            }
            OpKind::NearBranch64 => {
                self.imm = i.near_branch64().wrapping_sub(next_ip);
                OperandKind::Near
            }
            OpKind::FarBranch16 => {
                self.imm = u64::from(i.far_branch16());
                self.imm2 = i.far_branch_selector();
                OperandKind::Far
            }
            OpKind::FarBranch32 => {
                self.imm = u64::from(i.far_branch32());
                self.imm2 = i.far_branch_selector();
                OperandKind::Far
            }
            OpKind::Immediate8_2nd => {
                self.imm2 = u16::from(i.immediate8_2nd());
                OperandKind::Imm2
            }
            OpKind::Immediate8 => self.immediate(u64::from(i.immediate8())),
            OpKind::Immediate16 => self.immediate(u64::from(i.immediate16())),
            OpKind::Immediate32 => self.immediate(u64::from(i.immediate32())),
            OpKind::Immediate64 => self.immediate(i.immediate64()),
            OpKind::Immediate8to16 => self.immediate(i.immediate8to16() as u64),
            OpKind::Immediate8to32 => self.immediate(i.immediate8to32() as u64),
            OpKind::Immediate8to64 => self.immediate(i.immediate8to64() as u64),
            OpKind::Immediate32to64 => self.immediate(i.immediate32to64() as u64),
            OpKind::MemorySegSI => self.string(OperandKind::StringSrc, 48, i),
            OpKind::MemorySegESI => self.string(OperandKind::StringSrc, 32, i),
            OpKind::MemorySegRSI => self.string(OperandKind::StringSrc, 0, i),
            OpKind::MemorySegDI => self.string(OperandKind::MaskDst, 48, i),
            OpKind::MemorySegEDI => self.string(OperandKind::MaskDst, 32, i),
            OpKind::MemorySegRDI => self.string(OperandKind::MaskDst, 0, i),
            OpKind::MemoryESDI => self.string(OperandKind::StringDst, 48, i),
            OpKind::MemoryESEDI => self.string(OperandKind::StringDst, 32, i),
            OpKind::MemoryESRDI => self.string(OperandKind::StringDst, 0, i),
        };
    }

    fn immediate(&mut self, value: u64) -> OperandKind {
        self.imm = value;
        OperandKind::Imm
    }

    fn string(&mut self, kind: OperandKind, shift: u8, i: &Instruction) -> OperandKind {
        const RSI: u8 = 6;
        const RDI: u8 = 7;
        if kind == OperandKind::StringSrc {
            self.mem.base = RSI;
        } else if self.mem.base != RSI {
            self.mem.base = RDI;
        }
        self.mem.shift = shift;
        self.mem.size = i.memory_size().size() as u16;
        kind
    }

    fn memory(&mut self, i: &Instruction, next_ip: u64) {
        let mem = &mut self.mem;
        mem.size = i.memory_size().size() as u16;
        mem.scale = i.memory_index_scale().trailing_zeros() as u8;
        mem.disp = i.memory_displacement64();
        let base = i.memory_base();
        let index = i.memory_index();
        match base {
            Register::None => {}
            // SDM vol. 1, 3.7.4: the stack segment is the default with these.
            Register::BP | Register::EBP | Register::ESP | Register::RBP | Register::RSP => {
                mem.base = register_index(base);
                if !self.prefixes.contains(Prefixes::SEG) {
                    mem.seg = Seg::Ss as u8;
                }
            }
            Register::RIP => {
                mem.base = REG_RIP;
                mem.disp = mem.disp.wrapping_sub(next_ip);
            }
            Register::EIP => {
                mem.base = REG_RIP;
                mem.disp = (mem.disp as u32).wrapping_sub(next_ip as u32) as u64;
            }
            _ => mem.base = register_index(base),
        }
        if index.is_vector_register() {
            mem.vsib = register_index(index);
        } else if index != Register::None && index != Register::AL {
            mem.index = register_index(index);
        }
        // iced zero-extends a 16- or 32-bit displacement; one form for one meaning.
        mem.disp = ((mem.disp << mem.shift) as i64 >> mem.shift) as u64;
    }
}

/// F0, F2 and F3 as iced saw them (it drops those that select an opcode);
/// 66 and 67 from the bytes, which iced folds into `code` and the operands.
fn prefixes(i: &Instruction, raw: &[u8], mode: CpuMode) -> Prefixes {
    let mut p = Prefixes::empty();
    for &b in raw {
        match b {
            0x66 => p |= Prefixes::OPSIZE,
            0x67 => p |= Prefixes::ADDRSIZE,
            0xf0 | 0xf2 | 0xf3 | 0x26 | 0x2e | 0x36 | 0x3e | 0x64 | 0x65 => {}
            // A REX prefix that another prefix follows has no effect (SDM vol. 2A, 2.2.1).
            0x40..=0x4f if mode == CpuMode::Bits64 => {}
            _ => break,
        }
    }
    p.set(Prefixes::LOCK, i.has_lock_prefix());
    p.set(Prefixes::REP, i.has_rep_prefix());
    p.set(Prefixes::REPNE, i.has_repne_prefix());
    p
}

/// The segment that a prefix chooses. In 64-bit mode only FS and GS count (SDM vol. 1, 3.7.4).
fn segment_override(i: &Instruction, mode: CpuMode) -> Option<u8> {
    let seg = i.segment_prefix();
    if seg == Register::None {
        return None;
    }
    let number = register_index(seg);
    (mode != CpuMode::Bits64 || number >= Seg::Fs as u8).then_some(number)
}

/// The number of a register as [`Insn::r`] has it; 0 for none.
pub fn register_index(r: Register) -> u8 {
    REGISTER_INDEX[r as usize & 0xff]
}

static REGISTER_INDEX: [u8; 256] = register_indices();

const fn register_indices() -> [u8; 256] {
    let mut table = [0; 256];
    // First register of a run, its length, the number of the first.
    let runs: [(Register, u8, u8); 21] = [
        (Register::AL, 4, 0),
        (Register::AH, 4, HIGH_BYTE),
        (Register::SPL, 12, 4),
        (Register::AX, 16, 0),
        (Register::EAX, 16, 0),
        (Register::RAX, 16, 0),
        (Register::EIP, 1, REG_RIP),
        (Register::RIP, 1, REG_RIP),
        (Register::ES, 6, 0),
        (Register::XMM0, 32, 0),
        (Register::YMM0, 32, 0),
        (Register::ZMM0, 32, 0),
        (Register::K0, 8, 0),
        (Register::BND0, 4, 0),
        (Register::CR0, 16, 0),
        (Register::DR0, 16, 0),
        (Register::ST0, 8, 0),
        (Register::MM0, 8, 0),
        (Register::TR0, 8, 0),
        (Register::TMM0, 8, 0),
        (Register::None, 1, 0),
    ];
    let mut run = 0;
    while run < runs.len() {
        let (first, count, number) = runs[run];
        let mut k = 0;
        while k < count {
            table[first as usize + k as usize] = number + k;
            k += 1;
        }
        run += 1;
    }
    table
}

#[cfg(test)]
mod tests;
