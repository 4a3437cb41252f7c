//! Vector instructions that are done in software: MXCSR, VZEROUPPER, masked moves, gathers and scatters, MOVNTI and the
//! direct stores. All other vector instructions run on the host: [`crate::native`].

use super::Handler;
use super::operand::Int;
use crate::exit::{Result, Stop};
use crate::host_rules::host_rules;
use crate::native::To;
use crate::vcpu::Vcpu;
use crate::{host_cpu, xstate};
use decoder::{Insn, OperandKind};
use iced_x86::{Code, EncodingKind, MemorySize, Mnemonic, OpCodeOperandKind};
use softmmu::Access;
use x86_arch::{Gpr, Rflags};

pub(crate) fn select(i: &Insn) -> Option<Handler> {
    use Mnemonic as M;
    Some(match i.code.mnemonic() {
        M::Ldmxcsr => ldmxcsr::<false>,
        M::Vldmxcsr => ldmxcsr::<true>,
        M::Stmxcsr => stmxcsr::<false>,
        M::Vstmxcsr => stmxcsr::<true>,
        M::Vzeroupper => vzero::<false>,
        M::Vzeroall => vzero::<true>,
        M::Maskmovdqu => maskmovdqu::<false>,
        M::Vmaskmovdqu => maskmovdqu::<true>,
        M::Maskmovq => maskmovq,
        M::Vmaskmovps | M::Vpmaskmovd if i.is_mem(2) => masked_load::<4>,
        M::Vmaskmovpd | M::Vpmaskmovq if i.is_mem(2) => masked_load::<8>,
        M::Vmaskmovps | M::Vpmaskmovd => masked_store::<4>,
        M::Vmaskmovpd | M::Vpmaskmovq => masked_store::<8>,
        M::Movnti | M::Movdiri => match i.op_size {
            4 => movnti::<u32>,
            _ => movnti::<u64>,
        },
        M::Movdir64b => movdir64b,
        _ => return vsib(i),
    })
}

fn ldmxcsr<const VEX: bool>(c: &mut Vcpu, i: &Insn) -> Result {
    if VEX {
        c.check_vex()?
    } else {
        c.check_sse()?
    }
    let v = c.load_mem::<u32>(i)?;
    if v & !host_cpu::mxcsr_mask() != 0 {
        return c.gp0();
    }
    c.xsave.set_mxcsr(v);
    c.xsave.set_xstate_bv(c.xsave.xstate_bv() | 2);
    Ok(())
}

fn stmxcsr<const VEX: bool>(c: &mut Vcpu, i: &Insn) -> Result {
    if VEX {
        c.check_vex()?
    } else {
        c.check_sse()?
    }
    let v = c.xsave.mxcsr();
    c.store_mem::<u32>(i, v)
}

/// VZEROUPPER and VZEROALL: registers 0 to 15, or 0 to 7 outside 64-bit mode.
fn vzero<const ALL: bool>(c: &mut Vcpu, _: &Insn) -> Result {
    c.check_vex()?;
    let bv = c.xsave.xstate_bv();
    if !ALL && bv & 0x44 == 0 {
        return Ok(());
    }
    let n = if c.long64() { 16 } else { 8 };
    let l = xstate::layout();
    if ALL {
        c.xsave.bytes[x86_arch::xsave::XMM0..][..16 * n].fill(0);
    }
    if l.avx != 0 {
        c.xsave.bytes[l.avx..][..16 * n].fill(0);
    }
    if l.zmm_hi256 != 0 {
        c.xsave.bytes[l.zmm_hi256..][..32 * n].fill(0);
    }
    if n == 16 {
        c.xsave.set_xstate_bv(bv & !0x44);
    }
    Ok(())
}

/// Bit `n`: the sign of element `n` of `size` bytes.
fn signs(v: &[u8], size: usize) -> u64 {
    v.chunks_exact(size).enumerate().fold(0, |k, (n, e)| k | (e[size - 1] as u64 >> 7) << n)
}

/// (V)MASKMOVDQU: bytes of the first operand to seg:[rDI] where the second operand's sign is set.
fn maskmovdqu<const VEX: bool>(c: &mut Vcpu, i: &Insn) -> Result {
    if VEX {
        c.check_vex()?
    } else {
        c.check_sse()?
    }
    let (a, b) = if i.kinds[0] == OperandKind::MaskDst { (i.r[1], i.r[2]) } else { (i.r[0], i.r[1]) };
    let data = c.xsave.vector(a, 16);
    let k = signs(&c.xsave.vector(b, 16)[..16], 1);
    store_bytes(c, i, k, &data[..16])
}

fn maskmovq(c: &mut Vcpu, i: &Insn) -> Result {
    c.check_mmx()?;
    let (a, b) = if i.kinds[0] == OperandKind::MaskDst { (i.r[1], i.r[2]) } else { (i.r[0], i.r[1]) };
    let data = c.mm(a).to_le_bytes();
    let k = signs(&c.mm(b).to_le_bytes(), 1);
    // Processors of AMD do so before a fault too.
    if !host_rules().maskmov_reaches_all {
        store_bytes(c, i, k, &data)?;
        c.enter_mmx();
        return Ok(());
    }
    c.enter_mmx();
    store_bytes(c, i, k, &data)
}

/// Stores bytes under a mask at seg:[rDI]. `data` is all of the destination.
fn store_bytes(c: &mut Vcpu, i: &Insn, k: u64, data: &[u8]) -> Result {
    let ea = c.hot.regs[Gpr::Rdi as usize] & i.mem.mask();
    let seg = i.mem.seg;
    if host_rules().maskmov_reaches_all {
        // In parts of 8 bytes, the first with a fault says which.
        for part in (0..data.len() as u64).step_by(8) {
            let gva = c.linear(seg, ea.wrapping_add(part), 8, true)?;
            c.check_aligned(gva, 8, 8)?;
            c.probe_lin(seg, gva, 8, Access::write(c.cpl == 3))?;
        }
    }
    c.store_masked(To { seg, ea, wrap: i.mem.mask(), align: 1, probe: false }, 1, k, data)
}

/// The width in bytes of a VEX or EVEX instruction's vectors.
fn width(i: &Insn) -> usize {
    use OpCodeOperandKind as K;
    let mut w = 16;
    for k in i.code.op_code().op_kinds() {
        match k {
            K::ymm_reg | K::ymm_vvvv | K::ymm_rm | K::ymm_or_mem | K::mem_vsib32y | K::mem_vsib64y => {
                w = w.max(32)
            }
            K::zmm_reg | K::zmm_vvvv | K::zmm_rm | K::zmm_or_mem | K::mem_vsib32z | K::mem_vsib64z => w = 64,
            _ => {}
        }
    }
    w
}

/// VMASKMOVPS/PD, VPMASKMOVD/Q from memory: only elements whose mask is set are read.
fn masked_load<const SIZE: usize>(c: &mut Vcpu, i: &Insn) -> Result {
    c.check_vex()?;
    let w = width(i);
    let k = signs(&c.xsave.vector(i.r[1], w)[..w], SIZE);
    let mut v = [0; 64];
    let ea = c.ea(i);
    for n in (0..w / SIZE).filter(|n| k >> n & 1 != 0) {
        let at = ea.wrapping_add((n * SIZE) as u64) & i.mem.mask();
        c.read_aligned(
            i.mem.seg,
            at,
            &mut v[n * SIZE..(n + 1) * SIZE],
            host_rules().element_alignment(SIZE),
        )?;
    }
    c.xsave.set_vector(i.r[0], &v);
    Ok(())
}

fn masked_store<const SIZE: usize>(c: &mut Vcpu, i: &Insn) -> Result {
    c.check_vex()?;
    let w = width(i);
    let k = signs(&c.xsave.vector(i.r[1], w)[..w], SIZE);
    let data = c.xsave.vector(i.r[2], w);
    let align = host_rules().element_alignment(SIZE);
    let to = To { seg: i.mem.seg, ea: c.ea(i), wrap: i.mem.mask(), align, probe: false };
    c.store_masked(to, SIZE, k, &data[..w])
}

fn movnti<T: Int>(c: &mut Vcpu, i: &Insn) -> Result {
    let v = c.reg::<T>(i.r[1]);
    c.store_mem(i, v)
}

/// MOVDIR64B: 64 bytes from memory to ES:[reg], which must be 64-byte aligned.
fn movdir64b(c: &mut Vcpu, i: &Insn) -> Result {
    let mut b = [0; 64];
    let ea = c.ea(i);
    c.read_bytes(i.mem.seg, ea, &mut b)?;
    let to = c.reg::<u64>(i.r[0]) & i.mem.mask();
    let es = x86_arch::Seg::Es as u8;
    if c.linear(es, to, 64, true)? & 63 != 0 {
        return c.gp0();
    }
    c.write_bytes(es, to, &b)
}

// ---- gathers and scatters --------------------------------------------------------------------

fn vsib(i: &Insn) -> Option<Handler> {
    use Mnemonic as M;
    if !i.mem.is_vsib() {
        return None;
    }
    let evex = i.code.encoding() == EncodingKind::EVEX;
    Some(match i.code.mnemonic() {
        M::Vgatherdps | M::Vgatherdpd | M::Vgatherqps | M::Vgatherqpd => gather_of(evex),
        M::Vpgatherdd | M::Vpgatherdq | M::Vpgatherqd | M::Vpgatherqq => gather_of(evex),
        M::Vscatterdps | M::Vscatterdpd | M::Vscatterqps | M::Vscatterqpd => scatter,
        M::Vpscatterdd | M::Vpscatterdq | M::Vpscatterqd | M::Vpscatterqq => scatter,
        _ => return None,
    })
}

fn gather_of(evex: bool) -> Handler {
    if evex { gather_evex } else { gather_vex }
}

/// What VSIB says: index size, elements, element size.
struct Vsib {
    index: usize,
    element: usize,
    count: usize,
    /// Of the vector of indices.
    bytes: usize,
    indices: [u8; 64],
}

impl Vsib {
    fn of(c: &Vcpu, i: &Insn, data: usize) -> Vsib {
        use OpCodeOperandKind as K;
        let kind = i.code.op_code().op_kinds().iter().copied().find(|k| {
            matches!(
                k,
                K::mem_vsib32x
                    | K::mem_vsib32y
                    | K::mem_vsib32z
                    | K::mem_vsib64x
                    | K::mem_vsib64y
                    | K::mem_vsib64z
            )
        });
        let (index, bytes) = match kind {
            Some(K::mem_vsib32x) => (4, 16),
            Some(K::mem_vsib32y) => (4, 32),
            Some(K::mem_vsib32z) => (4, 64),
            Some(K::mem_vsib64y) => (8, 32),
            Some(K::mem_vsib64z) => (8, 64),
            _ => (8, 16),
        };
        let element = match i.code.op_code().memory_size() {
            MemorySize::Float64 | MemorySize::UInt64 | MemorySize::Int64 => 8,
            _ => 4,
        };
        let count = (bytes / index).min(data / element);
        Vsib { index, element, count, bytes, indices: c.xsave.vector(i.mem.vsib, bytes) }
    }

    fn ea(&self, c: &Vcpu, i: &Insn, n: usize) -> u64 {
        let b = &self.indices;
        let index = if self.index == 4 {
            let at = 4 * (n & 15);
            i32::from_le_bytes([b[at], b[at + 1], b[at + 2], b[at + 3]]) as u64
        } else {
            let at = 8 * (n & 7);
            let mut q = [0; 8];
            q.copy_from_slice(&b[at..at + 8]);
            u64::from_le_bytes(q)
        };
        c.ea(i).wrapping_add(index << (i.mem.scale & 3)) & i.mem.mask()
    }
}

/// The width of the data operand's register.
fn data_width(kind: OpCodeOperandKind) -> usize {
    use OpCodeOperandKind as K;
    match kind {
        K::ymm_reg => 32,
        K::zmm_reg => 64,
        _ => 16,
    }
}

/// A gather or scatter that has done elements before one that faults: a trap that is due for these is delivered in
/// lieu of the fault, and the instruction goes on after it (SDM vol. 2C, VGATHERDPS).
fn interrupted(c: &mut Vcpu, i: &Insn, fault: Stop) -> Result {
    if c.flag(Rflags::TF) || c.events.debug_trap != 0 {
        c.again(i);
        return Ok(());
    }
    Err(fault)
}

/// AVX2 gathers: the mask is a vector register, whose elements are cleared as theirs are loaded
/// (SDM vol. 2C, VGATHERDPS): a fault leaves the elements before it loaded.
fn gather_vex(c: &mut Vcpu, i: &Insn) -> Result {
    c.check_vex()?;
    // Destination, index and mask must differ.
    let (d, x, m) = (i.r[0], i.mem.vsib, i.r[2]);
    if d == x || d == m || x == m {
        return c.ud();
    }
    let w = data_width(i.code.op_code().op0_kind());
    let v = Vsib::of(c, i, w);
    // Above their width the registers are cleared by completion only.
    let mut data = c.xsave.vector(d, 64);
    let mut mask = c.xsave.vector(m, 64);
    let size = v.element;
    let mut loaded = false;
    for n in 0..v.count {
        let part = n * size..(n + 1) * size;
        if mask[part.end - 1] & 0x80 != 0 {
            let ea = v.ea(c, i, n);
            let mut b = [0; 8];
            let align = host_rules().element_alignment(size);
            if let Err(stop) = c.read_aligned(i.mem.seg, ea, &mut b[..size], align) {
                if !matches!(stop, Stop::Exception(_)) || n == 0 {
                    return Err(stop);
                }
                c.xsave.set_vector(d, &data);
                c.xsave.set_vector(m, &mask);
                return if loaded { interrupted(c, i, stop) } else { Err(stop) };
            }
            data[part.clone()].copy_from_slice(&b[..size]);
            loaded = true;
        }
        mask[part].fill(0);
    }
    data[v.count * size..].fill(0);
    c.xsave.set_vector(d, &data);
    c.xsave.set_vector(m, &[0; 64]);
    Ok(())
}

/// The opmask register of an EVEX instruction: the last byte of its prefix has it (SDM vol. 2A, 2.7.1).
fn evex_mask(i: &Insn) -> u8 {
    let b = i.bytes();
    b.iter().position(|b| *b == 0x62).and_then(|n| b.get(n + 3)).map_or(0, |p| p & 7)
}

/// AVX-512 gathers: bits of the opmask are cleared as their elements are loaded.
fn gather_evex(c: &mut Vcpu, i: &Insn) -> Result {
    c.check_evex()?;
    let k = evex_mask(i);
    if k == 0 || i.r[0] == i.mem.vsib {
        return c.ud();
    }
    let w = data_width(i.code.op_code().op0_kind());
    let v = Vsib::of(c, i, w);
    // What a fault leaves is cleared above the wider of the two vectors, completion clears above the elements.
    let mut data = c.xsave.vector(i.r[0], w.max(v.bytes));
    let mut mask = c.xsave.opmask(k);
    let size = v.element;
    let mut loaded = false;
    for n in 0..v.count {
        if mask >> n & 1 != 0 {
            let ea = v.ea(c, i, n);
            let mut b = [0; 8];
            let align = host_rules().element_alignment(size);
            if let Err(stop) = c.read_aligned(i.mem.seg, ea, &mut b[..size], align) {
                if matches!(stop, Stop::Exception(_)) && loaded {
                    c.xsave.set_vector(i.r[0], &data);
                    c.xsave.set_opmask(k, mask);
                    return interrupted(c, i, stop);
                }
                return Err(stop);
            }
            data[n * size..(n + 1) * size].copy_from_slice(&b[..size]);
            loaded = true;
        }
        mask &= !(1 << n);
    }
    data[v.count * size..].fill(0);
    c.xsave.set_vector(i.r[0], &data);
    c.xsave.set_opmask(k, 0);
    Ok(())
}

/// AVX-512 scatters: in order, each element stored before its bit is cleared.
fn scatter(c: &mut Vcpu, i: &Insn) -> Result {
    c.check_evex()?;
    let k = evex_mask(i);
    if k == 0 {
        return c.ud();
    }
    let w = data_width(i.code.op_code().op1_kind());
    let v = Vsib::of(c, i, w);
    let data = c.xsave.vector(i.r[1], w);
    let mut mask = c.xsave.opmask(k);
    let mut stored = false;
    for n in 0..v.count {
        if mask >> n & 1 != 0 {
            let ea = v.ea(c, i, n);
            let part = &data[n * v.element..(n + 1) * v.element];
            let done = c.write_aligned(i.mem.seg, ea, part, host_rules().element_alignment(v.element));
            if let Err(stop) = done {
                if matches!(stop, Stop::Exception(_)) && stored {
                    c.xsave.set_opmask(k, mask);
                    return interrupted(c, i, stop);
                }
                return Err(stop);
            }
            stored = true;
        }
        mask &= !(1 << n);
    }
    c.xsave.set_opmask(k, 0);
    Ok(())
}

impl Vcpu {
    /// MMX register `n`: the significand of physical x87 register `n`.
    pub(crate) fn mm(&self, n: u8) -> u64 {
        let st = (n & 7).wrapping_sub(self.xsave.top()) & 7;
        self.xsave.get(x86_arch::xsave::ST0 + 16 * st as usize)
    }

    /// What each MMX instruction does to the x87 state: TOP 0, all tags valid (SDM vol. 3A, 12.2).
    pub(crate) fn enter_mmx(&mut self) {
        self.xsave.replace_fsw(self.xsave.fsw() & !0x3800);
        self.xsave.set_ftw(0xff);
        self.xsave.set_xstate_bv(self.xsave.xstate_bv() | 1);
    }
}

const _: () = assert!(Code::INVALID as u32 == 0);
