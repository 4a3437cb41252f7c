//! Makes the machine code that executes one guest instruction on guest state.
//!
//! A stub is a function of the System V ABI: `(buffer rdi, -, scratch rsi→rdx, rflags rcx, registers r8, image r9)`.
//! It loads the vector registers, opmasks and general registers that the instruction names, executes the
//! instruction with its memory operand at `[rdi]` and its explicit general register renamed to RAX, and stores what the
//! instruction wrote. It returns RFLAGS (if the instruction writes flags), or [`FAULT`].
//!
//! Nothing of the guest's encoding is kept: iced decodes the bytes, this file changes the operands, iced encodes.

use super::allow::{self, Row, Unit};
use super::code_buf::CodeBuf;
use crate::host_rules::host_rules;
use crate::xstate;
use decoder::Insn;
use iced_x86::{
    Code, Decoder, DecoderOptions, Encoder, IcedError, Instruction, InstructionInfoFactory, MemoryOperand,
    Mnemonic, OpAccess, OpKind, Register, RflagsBits,
};
use x86_arch::xsave;

/// Set in a stub's result: the instruction raised an exception that MXCSR does not mask.
pub(super) const FAULT: u64 = 1 << 63;

/// How a mask governs the memory operand.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Masked {
    /// All of it is accessed.
    No,
    /// Element `n` only if bit `n` is set.
    Elements,
    /// The one element if any of `count` bits is set.
    Broadcast,
    /// Element `n` of a tuple if any of the bits is set whose destination element it becomes (VBROADCASTF32X4 and its
    /// like).
    Repeated,
    /// As many elements as there are bits set, from the start (VPEXPAND, VPCOMPRESS).
    Packed,
}

/// A stub, and what its handler must do around it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Stub {
    /// Its address, 0 for an instruction that cannot be made into a stub.
    pub(super) entry: usize,
    /// Bytes of the memory operand, 0 if there is none.
    pub(super) size: u8,
    /// Alignment that the memory operand must have, 1 for none.
    pub(super) align: u8,
    /// It is a move that is aligned by name: MXCSR.MM does not excuse it.
    pub(super) moves: bool,
    /// Alignment at which #AC looks, 1 for none.
    pub(super) checked: u8,
    /// The operand must be accessible as a whole although elements are masked out.
    pub(super) whole: bool,
    /// The memory operand is read.
    pub(super) reads: bool,
    /// The memory operand is written.
    pub(super) writes: bool,
    /// The result's status flags go to RFLAGS.
    pub(super) flags: bool,
    /// MXCSR is loaded.
    pub(super) mxcsr: bool,
    /// The mask's rule.
    pub(super) masked: Masked,
    /// The mask register, 0 for all elements.
    pub(super) mask: u8,
    /// Bytes of an element under the mask.
    pub(super) element: u8,
    /// Elements under the mask.
    pub(super) count: u8,
    /// State components that are in use once the instruction has executed.
    pub(super) in_use: u64,
}

impl Stub {
    /// Stands for an instruction that has no stub.
    pub(super) const NONE: Stub = Stub {
        entry: 0,
        size: 0,
        align: 1,
        moves: false,
        checked: 1,
        whole: false,
        reads: false,
        writes: false,
        flags: false,
        mxcsr: false,
        masked: Masked::No,
        mask: 0,
        element: 0,
        count: 0,
        in_use: 0,
    };
}

/// Why there is no stub.
pub(super) enum Failed {
    /// The instruction is not on the list, or iced cannot encode what we made of it.
    Refused,
    /// The code buffer is full.
    Full,
}

impl From<IcedError> for Failed {
    fn from(_: IcedError) -> Failed {
        Failed::Refused
    }
}

/// iced's flags include the x87 condition codes.
const STATUS: u32 =
    RflagsBits::CF | RflagsBits::PF | RflagsBits::AF | RflagsBits::ZF | RflagsBits::SF | RflagsBits::OF;

const BUFFER: Register = Register::RDI;
const SCRATCH: Register = Register::RDX;
const REGISTERS: Register = Register::R8;
const IMAGE: Register = Register::R9;
const FAULT_EXIT: Register = Register::R10;

struct Emitter {
    encoder: Encoder,
    start: u64,
    len: u64,
}

impl Emitter {
    fn put(&mut self, i: &Instruction) -> Result<(), Failed> {
        self.len += self.encoder.encode(i, self.start + self.len)? as u64;
        Ok(())
    }

    fn reg_mem(&mut self, code: Code, r: Register, m: MemoryOperand) -> Result<(), Failed> {
        self.put(&Instruction::with2(code, r, m)?)
    }

    fn mem_reg(&mut self, code: Code, m: MemoryOperand, r: Register) -> Result<(), Failed> {
        self.put(&Instruction::with2(code, m, r)?)
    }

    fn mem(&mut self, code: Code, m: MemoryOperand) -> Result<(), Failed> {
        self.put(&Instruction::with1(code, m)?)
    }

    fn bare(&mut self, code: Code) -> Result<(), Failed> {
        self.put(&Instruction::with(code))
    }
}

fn image(offset: usize) -> MemoryOperand {
    MemoryOperand::with_base_displ(IMAGE, offset as i64)
}

fn register(n: usize) -> MemoryOperand {
    MemoryOperand::with_base_displ(REGISTERS, 8 * n as i64)
}

/// One register that the instruction names.
#[derive(Clone, Copy)]
struct Used {
    n: usize,
    written: bool,
}

fn note(list: &mut Vec<Used>, n: usize, written: bool) {
    match list.iter_mut().find(|u| u.n == n) {
        Some(u) => u.written |= written,
        None => list.push(Used { n, written }),
    }
}

fn writes(a: OpAccess) -> bool {
    matches!(a, OpAccess::Write | OpAccess::CondWrite | OpAccess::ReadWrite | OpAccess::ReadCondWrite)
}

fn reads(a: OpAccess) -> bool {
    matches!(a, OpAccess::Read | OpAccess::CondRead | OpAccess::ReadWrite | OpAccess::ReadCondWrite)
}

/// Which registers an instruction names, after its operands have been changed.
struct Plan {
    insn: Instruction,
    vectors: Vec<Used>,
    masks: Vec<Used>,
    /// (host register, guest register, written).
    general: Vec<(Register, usize, bool)>,
    /// Bytes of the widest vector operand.
    width: usize,
}

fn plan(i: &Insn, factory: &mut InstructionInfoFactory, stub: &mut Stub) -> Result<Plan, Failed> {
    let mut insn = Decoder::with_ip(i.mode.bitness(), i.bytes(), 0, DecoderOptions::NONE).decode();
    if insn.code() != i.code || insn.len() != i.bytes().len() {
        return Err(Failed::Refused);
    }
    let mut explicit = None;
    let mut width = 16;
    for n in 0..insn.op_count() {
        match insn.op_kind(n) {
            OpKind::Memory => {
                let size = insn.memory_size().size();
                if size == 0 || size > 64 {
                    return Err(Failed::Refused);
                }
                stub.size = size as u8;
            }
            OpKind::Register => {
                let r = insn.op_register(n);
                if r.is_gpr() {
                    let guest = r.full_register().number();
                    if explicit.is_some_and(|e| e != guest) {
                        return Err(Failed::Refused);
                    }
                    explicit = Some(guest);
                    let host = match r.size() {
                        4 => Register::EAX,
                        8 => Register::RAX,
                        _ => return Err(Failed::Refused),
                    };
                    insn.set_op_register(n, host);
                } else if r.is_vector_register() {
                    width = width.max(r.size());
                }
            }
            OpKind::Immediate8 | OpKind::Immediate8_2nd => {}
            _ => return Err(Failed::Refused),
        }
    }
    // Instructions whose implied width is not an operand's have none wider than memory's.
    if stub.size != 0 {
        insn.set_memory_base(BUFFER);
        insn.set_memory_index(Register::None);
        insn.set_memory_index_scale(1);
        insn.set_memory_displacement64(0);
        insn.set_memory_displ_size(0);
        insn.set_segment_prefix(Register::None);
    }
    let info = factory.info(&insn);
    let (mut vectors, mut masks, mut general) = (Vec::new(), Vec::new(), Vec::new());
    for used in info.used_registers() {
        let (r, written) = (used.register(), writes(used.access()));
        if r.is_vector_register() {
            note(&mut vectors, r.number(), written);
        } else if r.is_k() {
            note(&mut masks, r.number(), written);
        } else if r.is_gpr() {
            match (r.full_register(), explicit) {
                (Register::RAX, Some(guest)) => {
                    let access = written;
                    match general.iter_mut().find(|g: &&mut (Register, usize, bool)| g.0 == Register::RAX) {
                        Some(g) => g.2 |= access,
                        None => general.push((Register::RAX, guest, access)),
                    }
                }
                (BUFFER, _) if stub.size != 0 => {}
                (full @ (Register::RAX | Register::RCX | Register::RDX), None) => {
                    match general.iter_mut().find(|g| g.0 == full) {
                        Some(g) => g.2 |= written,
                        None => general.push((full, full.number(), written)),
                    }
                }
                _ => return Err(Failed::Refused),
            }
        }
    }
    for n in 0..insn.op_count() {
        if insn.op_kind(n) == OpKind::Memory {
            let a = info.op_access(n);
            stub.reads = reads(a);
            stub.writes = writes(a);
        }
    }
    if stub.size != 0 && !stub.reads && !stub.writes {
        return Err(Failed::Refused);
    }
    Ok(Plan { insn, vectors, masks, general, width })
}

/// What an opmask means for the memory operand (SDM vol. 2A, 2.7 and 2.8), and where #AC looks.
fn set_mask(stub: &mut Stub, insn: &Instruction, row: Row) {
    use Mnemonic as M;
    stub.checked = host_rules().alignment(stub.size);
    if stub.size == 0 {
        return;
    }
    // The unit of masking is the element that a broadcast would repeat: VPDPBUSD's are 32 bits although it multiplies
    // bytes.
    let op = insn.code().op_code();
    let element =
        if op.can_broadcast() { op.broadcast_memory_size() } else { insn.memory_size().element_type() };
    let element = element.size().clamp(1, 64) as u8;
    let compress = matches!(
        insn.mnemonic(),
        M::Vcompressps | M::Vcompresspd | M::Vpcompressb | M::Vpcompressw | M::Vpcompressd | M::Vpcompressq
    );
    let expand = matches!(
        insn.mnemonic(),
        M::Vexpandps | M::Vexpandpd | M::Vpexpandb | M::Vpexpandw | M::Vpexpandd | M::Vpexpandq
    );
    if compress {
        stub.checked = element;
    }
    let k = insn.op_mask();
    // VPCOMPRESS stores its elements one by one without a mask too.
    if k == Register::None && !compress {
        return;
    }
    stub.mask = if k == Register::None { 0 } else { (k.number() & 7) as u8 };
    stub.element = element;
    stub.count = (stub.size / element).max(1);
    let repeats = || (insn.op_register(0).size() / element as usize).clamp(1, 64) as u8;
    if compress || expand {
        stub.masked = Masked::Packed;
    } else if matches!(
        insn.mnemonic(),
        M::Vbroadcastss
            | M::Vbroadcastsd
            | M::Vpbroadcastb
            | M::Vpbroadcastw
            | M::Vpbroadcastd
            | M::Vpbroadcastq
    ) {
        stub.masked = Masked::Broadcast;
        stub.count = repeats();
    } else if row.repeats {
        stub.masked = Masked::Repeated;
        stub.count = repeats();
    } else if insn.is_broadcast() {
        stub.masked = if row.suppresses { Masked::Broadcast } else { Masked::No };
        // The size without broadcasting says how many elements there are.
        stub.count = (op.memory_size().size() / element as usize).clamp(1, 64) as u8;
    } else if stub.writes || row.suppresses {
        stub.masked = Masked::Elements;
        stub.whole = !row.suppresses;
    }
    if stub.masked != Masked::No && !stub.whole {
        stub.checked = element;
    }
}

/// Makes the stub for an instruction.
pub(super) fn make(
    i: &Insn,
    buf: &mut CodeBuf,
    factory: &mut InstructionInfoFactory,
) -> Result<Stub, Failed> {
    let row = allow::get(i.code).ok_or(Failed::Refused)?;
    let mut stub = Stub { mxcsr: row.mxcsr, ..Stub::NONE };
    #[cfg_attr(not(feature = "fault-injection"), allow(unused_mut))]
    let mut plan = plan(i, factory, &mut stub)?;
    #[cfg(feature = "fault-injection")]
    crate::faults::encoding(&mut plan.insn);
    stub.align = if row.aligned { stub.size } else { 1 };
    stub.moves = row.moves;
    stub.flags = plan.insn.rflags_modified() & STATUS != 0;
    set_mask(&mut stub, &plan.insn, row);
    let (prologue, start) = buf.addresses();
    let mut e = Emitter { encoder: Encoder::new(64), start, len: 0 };
    let entry = match row.unit {
        Unit::Mmx | Unit::X87 => emit_fx(&mut e, &plan, &stub, row, prologue)?,
        _ => emit_vector(&mut e, &plan, &mut stub, row, prologue)?,
    };
    let code = e.encoder.take_buffer();
    stub.entry = buf.append(&code).ok_or(Failed::Full)? + entry as usize;
    Ok(stub)
}

fn default_mxcsr(e: &mut Emitter, prologue: u64) -> Result<(), Failed> {
    e.mem(Code::Ldmxcsr_m32, MemoryOperand::with_base_displ(Register::RIP, prologue as i64))
}

/// What RIP becomes after SIGFPE.
fn fault_exit(e: &mut Emitter, prologue: u64, fx: bool) -> Result<(), Failed> {
    e.mem(Code::Stmxcsr_m32, image(xsave::MXCSR))?;
    default_mxcsr(e, prologue)?;
    if fx {
        e.bare(Code::Fninit)?;
    } else if xstate::host_has_avx() {
        e.bare(Code::VEX_Vzeroupper)?;
    }
    e.put(&Instruction::with2(Code::Mov_r64_imm64, Register::RAX, FAULT)?)?;
    e.bare(Code::Retnq)
}

fn load_general(e: &mut Emitter, plan: &Plan) -> Result<(), Failed> {
    for (host, guest, _) in &plan.general {
        e.reg_mem(Code::Mov_r64_rm64, *host, register(*guest))?;
    }
    Ok(())
}

fn store_general(e: &mut Emitter, plan: &Plan) -> Result<(), Failed> {
    for (host, guest, written) in &plan.general {
        if *written {
            e.mem_reg(Code::Mov_rm64_r64, register(*guest), *host)?;
        }
    }
    Ok(())
}

fn finish(e: &mut Emitter, stub: &Stub) -> Result<(), Failed> {
    if stub.flags {
        e.bare(Code::Pushfq)?;
        e.put(&Instruction::with1(Code::Pop_r64, Register::RAX)?)?;
    } else {
        e.put(&Instruction::with2(Code::Xor_r32_rm32, Register::EAX, Register::EAX)?)?;
    }
    Ok(())
}

fn xmm(n: usize) -> Register {
    Register::XMM0 + n as u32
}
fn ymm(n: usize) -> Register {
    Register::YMM0 + n as u32
}
fn zmm(n: usize) -> Register {
    Register::ZMM0 + n as u32
}

/// SSE, AVX and AVX-512. Returns where the entry is.
fn emit_vector(
    e: &mut Emitter,
    plan: &Plan,
    stub: &mut Stub,
    row: Row,
    prologue: u64,
) -> Result<u64, Failed> {
    let layout = xstate::layout();
    let mut entry = 0;
    if stub.mxcsr {
        fault_exit(e, prologue, false)?;
        entry = e.len;
        let exit = MemoryOperand::with_base_displ(Register::RIP, e.start as i64);
        e.reg_mem(Code::Lea_r64_m, FAULT_EXIT, exit)?;
    }
    let legacy = row.unit == Unit::Sse;
    // Legacy SSE leaves bits 128 and up of a register alone: they need not even be loaded.
    let width = if legacy { 16 } else { plan.width };
    for v in &plan.vectors {
        if v.n >= 16 {
            e.reg_mem(
                Code::EVEX_Vmovdqu64_zmm_k1z_zmmm512,
                zmm(v.n),
                image(layout.hi16_zmm + 64 * (v.n - 16)),
            )?;
            continue;
        }
        let low = image(xsave::XMM0 + 16 * v.n);
        if legacy {
            e.reg_mem(Code::Movups_xmm_xmmm128, xmm(v.n), low)?;
            continue;
        }
        e.reg_mem(Code::VEX_Vmovups_xmm_xmmm128, xmm(v.n), low)?;
        if width >= 32 {
            let high = image(layout.avx + 16 * v.n);
            e.put(&Instruction::with4(
                Code::VEX_Vinsertf128_ymm_ymm_xmmm128_imm8,
                ymm(v.n),
                ymm(v.n),
                high,
                1,
            )?)?;
        }
        if width >= 64 {
            let high = image(layout.zmm_hi256 + 32 * v.n);
            let code = Code::EVEX_Vinsertf64x4_zmm_k1z_zmm_ymmm256_imm8;
            e.put(&Instruction::with4(code, zmm(v.n), zmm(v.n), high, 1)?)?;
        }
    }
    for k in &plan.masks {
        e.reg_mem(kmov_load(), Register::K0 + k.n as u32, image(layout.opmask + 8 * k.n))?;
    }
    load_general(e, plan)?;
    if stub.mxcsr {
        e.mem(Code::Ldmxcsr_m32, image(xsave::MXCSR))?;
    }
    e.put(&plan.insn)?;
    if stub.mxcsr {
        e.mem(Code::Stmxcsr_m32, image(xsave::MXCSR))?;
        default_mxcsr(e, prologue)?;
        stub.in_use |= 2;
    }
    for v in plan.vectors.iter().filter(|v| v.written) {
        if v.n >= 16 {
            e.mem_reg(
                Code::EVEX_Vmovdqu64_zmmm512_k1z_zmm,
                image(layout.hi16_zmm + 64 * (v.n - 16)),
                zmm(v.n),
            )?;
            stub.in_use |= 1 << 7;
            continue;
        }
        stub.in_use |= 2;
        let low = image(xsave::XMM0 + 16 * v.n);
        if legacy {
            e.mem_reg(Code::Movups_xmmm128_xmm, low, xmm(v.n))?;
            continue;
        }
        // A destination of VEX or EVEX is cleared above its width by the instruction: all of it is stored.
        e.mem_reg(Code::VEX_Vmovups_xmmm128_xmm, low, xmm(v.n))?;
        let high = image(layout.avx + 16 * v.n);
        e.put(&Instruction::with3(Code::VEX_Vextractf128_xmmm128_ymm_imm8, high, ymm(v.n), 1)?)?;
        if width >= 32 {
            stub.in_use |= 4;
        }
        if xstate::host_has_avx512() {
            let high = image(layout.zmm_hi256 + 32 * v.n);
            e.put(&Instruction::with3(Code::EVEX_Vextractf64x4_ymmm256_k1z_zmm_imm8, high, zmm(v.n), 1)?)?;
            if width >= 64 {
                stub.in_use |= 1 << 6;
            }
        }
    }
    for k in plan.masks.iter().filter(|k| k.written) {
        e.mem_reg(kmov_store(), image(layout.opmask + 8 * k.n), Register::K0 + k.n as u32)?;
        stub.in_use |= 1 << 5;
    }
    store_general(e, plan)?;
    finish(e, stub)?;
    if width > 16 {
        e.bare(Code::VEX_Vzeroupper)?;
    }
    e.bare(Code::Retnq)?;
    Ok(entry)
}

/// Opmask registers have 64 bits with AVX512BW, else 16.
fn kmov_load() -> Code {
    if xstate::host_has_avx512bw() { Code::VEX_Kmovq_kr_km64 } else { Code::VEX_Kmovw_kr_km16 }
}
fn kmov_store() -> Code {
    if xstate::host_has_avx512bw() { Code::VEX_Kmovq_m64_kr } else { Code::VEX_Kmovw_m16_kr }
}

/// x87 and MMX: the whole legacy region is loaded, and saved to the scratch area. Returns where the entry is.
fn emit_fx(e: &mut Emitter, plan: &Plan, stub: &Stub, row: Row, prologue: u64) -> Result<u64, Failed> {
    let mut entry = 0;
    if stub.mxcsr {
        fault_exit(e, prologue, true)?;
        entry = e.len;
        let exit = MemoryOperand::with_base_displ(Register::RIP, e.start as i64);
        e.reg_mem(Code::Lea_r64_m, FAULT_EXIT, exit)?;
    }
    e.mem(Code::Fxrstor64_m512byte, image(0))?;
    if row.unit == Unit::X87 && plan.insn.rflags_read() & STATUS != 0 {
        // FCMOVcc looks at CF, PF and ZF.
        e.put(&Instruction::with2(Code::Mov_r8_rm8, Register::AH, Register::CL)?)?;
        e.bare(Code::Sahf)?;
    }
    load_general(e, plan)?;
    e.put(&plan.insn)?;
    e.mem(Code::Fxsave64_m512byte, MemoryOperand::with_base(SCRATCH))?;
    store_general(e, plan)?;
    finish(e, stub)?;
    e.bare(Code::Fninit)?;
    default_mxcsr(e, prologue)?;
    e.bare(Code::Retnq)?;
    Ok(entry)
}
