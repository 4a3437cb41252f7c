//! Each listed instruction through its handler, against the host's own execution of the same bytes.

use super::allow::{self, Unit};
use super::oracle::{self, State};
use crate::exit::Stop;
use crate::rig::{DATA, Mode, Rig};
use crate::xstate;
use iced_x86::{Code, Encoder, Instruction, OpCodeOperandKind, OpKind, Register};
use x86_arch::{Exception, Gpr, Rflags, Vector, xsave};

/// A small generator of test data.
pub(super) struct Random(pub u64);

impl Random {
    pub(super) fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }
    pub(super) fn below(&mut self, n: u64) -> u64 {
        (self.next() >> 11) % n
    }
    /// Bytes that look like small integers, floats of every class, or noise.
    fn fill(&mut self, b: &mut [u8]) {
        for chunk in b.chunks_mut(8) {
            let v = match self.below(8) {
                0 => 0,
                1 => f64::from_bits(0x3ff0_0000_0000_0000).to_bits() ^ self.below(1 << 20),
                2 => (self.below(2000) as f64 - 1000.0).to_bits(),
                3 => {
                    let a = (self.below(2000) as f32 - 1000.0).to_bits() as u64;
                    a | (1.5f32.to_bits() as u64) << 32
                }
                4 => [0x7ff0_0000_0000_0000, 0xfff8_0000_0000_0001, 0x7f80_0000_ff80_0001, 1]
                    [self.below(4) as usize],
                _ => self.next(),
            };
            chunk.copy_from_slice(&v.to_le_bytes()[..chunk.len()]);
        }
    }
}

/// The bytes where guest and oracle keep the operand of memory.
#[repr(C, align(64))]
struct Memory([u8; 64]);

const BASE: Register = Register::RBX;

/// An instruction of this code with operands by chance, or `None` where the encoder refuses.
fn instruction(code: Code, memory: bool, r: &mut Random) -> Option<Vec<u8>> {
    instruction_of(code, memory, false, r).map(|b| b.0)
}

/// The same with the registers that every mode has: its bytes in 32-bit and in 64-bit code.
fn narrow_instruction(code: Code, memory: bool, r: &mut Random) -> Option<(Vec<u8>, Vec<u8>)> {
    let (wide, narrow) = instruction_of(code, memory, true, r)?;
    Some((narrow?, wide))
}

/// The bytes in 64-bit code and, if asked for, in 32-bit code.
fn instruction_of(
    code: Code,
    memory: bool,
    narrow: bool,
    r: &mut Random,
) -> Option<(Vec<u8>, Option<Vec<u8>>)> {
    use OpCodeOperandKind as K;
    let op = code.op_code();
    let mut i = Instruction::default();
    i.set_code(code);
    let evex = allow::get(code)?.unit == Unit::Evex && op.is_available_vectors();
    let mut used_memory = false;
    for (n, k) in op.op_kinds().iter().enumerate() {
        let n = n as u32;
        let v = r.below(if narrow {
            8
        } else if evex {
            32
        } else {
            16
        }) as u32;
        let gpr = |r: &mut Random, wide: bool| {
            let g = [0u32, 1, 2, 6, 8, 9, 10, 13, 14, 15][r.below(if narrow { 4 } else { 10 }) as usize];
            if wide { Register::RAX + g } else { Register::EAX + g }
        };
        let register = match k {
            K::xmm_or_mem | K::xmm_rm | K::xmm_reg | K::xmm_vvvv | K::xmm_is4 => Register::XMM0 + v,
            K::ymm_or_mem | K::ymm_rm | K::ymm_reg | K::ymm_vvvv | K::ymm_is4 => Register::YMM0 + v,
            K::zmm_or_mem | K::zmm_rm | K::zmm_reg | K::zmm_vvvv => Register::ZMM0 + v,
            K::mm_or_mem | K::mm_reg | K::mm_rm => Register::MM0 + v % 8,
            K::k_or_mem | K::k_reg | K::k_rm | K::k_vvvv => Register::K0 + v % 8,
            K::kp1_reg => Register::K0 + v % 4 * 2,
            K::r32_or_mem | K::r32_reg | K::r32_rm => gpr(r, false),
            K::r64_or_mem | K::r64_reg | K::r64_rm => gpr(r, true),
            K::st0 => Register::ST0,
            K::sti_opcode => Register::ST0 + v % 8,
            K::mem => Register::None,
            K::imm8 => {
                i.set_op_kind(
                    n,
                    if i.op_count() > n && n > 0 && i.op_kind(n - 1) == OpKind::Immediate8 {
                        OpKind::Immediate8_2nd
                    } else {
                        OpKind::Immediate8
                    },
                );
                if i.op_kind(n) == OpKind::Immediate8 {
                    i.set_immediate8(r.next() as u8);
                } else {
                    i.set_immediate8_2nd(r.next() as u8);
                }
                continue;
            }
            _ => return None,
        };
        let can_be_memory = matches!(
            k,
            K::mem
                | K::xmm_or_mem
                | K::ymm_or_mem
                | K::zmm_or_mem
                | K::mm_or_mem
                | K::k_or_mem
                | K::r32_or_mem
                | K::r64_or_mem
        );
        if can_be_memory && (memory || *k == K::mem) {
            i.set_op_kind(n, OpKind::Memory);
            i.set_memory_base(BASE);
            used_memory = true;
        } else {
            i.set_op_kind(n, OpKind::Register);
            i.set_op_register(n, register);
        }
    }
    if used_memory != memory {
        return None;
    }
    if op.can_use_op_mask_register() && (r.below(2) == 0 || op.require_op_mask_register()) {
        i.set_op_mask(Register::K1 + r.below(7) as u32);
        if op.can_use_zeroing_masking() && r.below(2) == 0 && i.op_kind(0) != OpKind::Memory {
            i.set_zeroing_masking(true);
        }
    }
    if memory && op.can_broadcast() && r.below(2) == 0 {
        i.set_is_broadcast(true);
    }
    let mut e = Encoder::new(64);
    e.encode(&i, 0).ok()?;
    let wide = e.take_buffer();
    if !narrow {
        return Some((wide, None));
    }
    if used_memory {
        i.set_memory_base(Register::EBX);
    }
    let mut e = Encoder::new(32);
    e.encode(&i, 0).ok()?;
    Some((wide, Some(e.take_buffer())))
}

trait Vectors {
    fn is_available_vectors(&self) -> bool;
}
impl Vectors for iced_x86::OpCodeInfo {
    /// Whether registers 16 to 31 can be named.
    fn is_available_vectors(&self) -> bool {
        self.encoding() == iced_x86::EncodingKind::EVEX
    }
}

/// Random state for both sides.
fn randomize(rig: &mut Rig, s: &mut State, m: &mut Memory, r: &mut Random, x87: bool) {
    let l = xstate::layout();
    s.xsave.fill(0);
    let parts = [(xsave::XMM0, 256), (l.avx, 256), (l.zmm_hi256, 512), (l.hi16_zmm, 1024)];
    for (at, len) in parts {
        if at != 0 {
            r.fill(&mut s.xsave[at..at + len]);
        }
    }
    if l.opmask != 0 {
        for n in 0..8 {
            let at = l.opmask + 8 * n;
            s.xsave[at..at + 8].copy_from_slice(&r.next().to_le_bytes());
        }
    }
    s.xsave[xsave::FCW..xsave::FCW + 2].copy_from_slice(&0x37fu16.to_le_bytes());
    if x87 {
        // Half of the time some exceptions are not masked.
        let masks = if r.below(2) == 0 { 0x3f } else { r.next() as u16 & 0x3f };
        let fcw = 0x40 | masks | (r.below(16) as u16) << 8;
        let fsw = (r.below(8) as u16) << 11 | (r.below(16) as u16 & 7) << 8;
        s.xsave[0..2].copy_from_slice(&fcw.to_le_bytes());
        s.xsave[2..4].copy_from_slice(&fsw.to_le_bytes());
        s.xsave[4] = r.next() as u8 | r.next() as u8;
        for n in 0..8 {
            let at = xsave::ST0 + 16 * n;
            let (sig, exp) = match r.below(6) {
                0 => (0, 0),
                1 => (r.next(), r.next() as u16),
                2 => (1 << 63, 0x3fff + r.below(70) as u16),
                _ => (r.next() | 1 << 63, (0x3fff - 32 + r.below(64) as u16) | (r.next() as u16 & 0x8000)),
            };
            s.xsave[at..at + 8].copy_from_slice(&sig.to_le_bytes());
            s.xsave[at + 8..at + 10].copy_from_slice(&exp.to_le_bytes());
        }
    }
    let mxcsr = 0x1f80 | (r.below(4) as u32) << 13 | (r.next() as u32 & 0x8040 & host_mask());
    s.xsave[24..28].copy_from_slice(&mxcsr.to_le_bytes());
    s.xsave[28..32].copy_from_slice(&host_mask().to_le_bytes());
    s.xsave[xsave::XSTATE_BV] = (crate::host_cpu::xcr0() & 0xe7) as u8;
    for g in s.gpr.iter_mut() {
        *g = r.next();
    }
    s.rflags = 2 | r.next() & Rflags::STATUS.bits();
    r.fill(&mut m.0);
    let v = rig.cpu();
    v.xsave.bytes.copy_from_slice(&s.xsave);
    v.hot.regs[..16].copy_from_slice(&s.gpr);
    v.hot.rflags = s.rflags;
    v.hot.regs[BASE.number()] = DATA;
    rig.write(DATA, &m.0);
    s.gpr[BASE.number()] = m.0.as_ptr() as u64;
}

fn host_mask() -> u32 {
    crate::host_cpu::mxcsr_mask()
}

/// Runs both and compares everything.
fn compare(rig: &mut Rig, s: &mut State, m: &mut Memory, bytes: &[u8], what: Code) {
    compare_forms(rig, s, m, (bytes, bytes), what);
}

/// The first form on the rig, the second on the host, which runs 64-bit code: outside it the upper halves of general
/// registers do not count.
fn compare_forms(rig: &mut Rig, s: &mut State, m: &mut Memory, forms: (&[u8], &[u8]), what: Code) {
    let bytes = forms.0;
    rig.step(bytes).unwrap_or_else(|e| panic!("{what:?} {bytes:02x?}: {e:?}"));
    oracle::execute(forms.1, s);
    let (count, counted) = if rig.cpu().long64() { (16, u64::MAX) } else { (8, 0xffff_ffff) };
    let l = xstate::layout();
    let bv = rig.cpu().xsave.xstate_bv();
    let v = rig.cpu();
    let same = |name: &str, at: usize, len: usize, component: u32| {
        if len == 0 || at == 0 && component != 0 {
            return;
        }
        // XSAVE leaves a component that it found initial unwritten only where XSTATE_BV says so.
        assert_eq!(
            v.xsave.bytes[at..at + len],
            s.xsave[at..at + len],
            "{what:?} {bytes:02x?}: {name} (in use {bv:#x})"
        );
    };
    same("FCW, FSW, FTW", 0, 5, 0);
    for n in 0..8 {
        same("x87 register", xsave::ST0 + 16 * n, 10, 0);
    }
    same("MXCSR", 24, 4, 0);
    same("XMM", xsave::XMM0, 256, 0);
    let host = s.xsave[xsave::XSTATE_BV] as u64;
    for (name, at, len, n) in [
        ("YMM", l.avx, 256, 2),
        ("opmask", l.opmask, 64, 5),
        ("ZMM", l.zmm_hi256, 512, 6),
        ("ZMM16 and up", l.hi16_zmm, 1024, 7),
    ] {
        if host >> n & 1 != 0 {
            same(name, at, len, n);
        }
    }
    for (n, g) in s.gpr.iter().enumerate().take(count) {
        if n != 4 && n != BASE.number() {
            let (got, want) = (v.hot.regs[n] & counted, g & counted);
            assert_eq!(got, want, "{what:?} {bytes:02x?}: general register {n}");
        }
    }
    assert_eq!(v.hot.rflags & 0x8d5, s.rflags & 0x8d5, "{what:?} {bytes:02x?}: flags");
    let mut got = [0; 64];
    rig.read(DATA, &mut got);
    assert_eq!(got, m.0, "{what:?} {bytes:02x?}: memory");
}

fn sweep(wanted: impl Fn(Unit) -> bool, rounds: usize, seed: u64) -> usize {
    let mut rig = Rig::new(Mode::Long);
    let (mut s, mut m, mut r) = (State::new(), Box::new(Memory([0; 64])), Random(seed));
    let mut done = 0;
    for code in Code::values() {
        let Some(row) = allow::get(code) else { continue };
        if !wanted(row.unit) || !code.op_code().mode64() || approximate(code) {
            continue;
        }
        for memory in [false, true] {
            for _ in 0..rounds {
                let Some(bytes) = instruction(code, memory, &mut r) else { break };
                if rig.decode(&bytes).code != code {
                    break;
                }
                let fx = matches!(row.unit, Unit::X87 | Unit::Mmx);
                randomize(&mut rig, &mut s, &mut m, &mut r, fx);
                compare(&mut rig, &mut s, &mut m, &bytes, code);
                done += 1;
            }
        }
    }
    done
}

/// In 32-bit code, in compatibility and in protected mode: what both code sizes have does the same in both.
fn narrow_sweep(wanted: impl Fn(Unit) -> bool, rounds: usize, seed: u64) -> usize {
    let (mut s, mut m, mut r) = (State::new(), Box::new(Memory([0; 64])), Random(seed));
    let mut done = 0;
    for mode in [Mode::Compat, Mode::Protected] {
        let mut rig = Rig::new(mode);
        for code in Code::values() {
            let Some(row) = allow::get(code) else { continue };
            let op = code.op_code();
            if !wanted(row.unit) || !op.mode64() || !op.mode32() {
                continue;
            }
            for memory in [false, true] {
                for _ in 0..rounds {
                    let Some((bytes, wide)) = narrow_instruction(code, memory, &mut r) else { break };
                    if rig.decode(&bytes).code != code {
                        break;
                    }
                    let fx = matches!(row.unit, Unit::X87 | Unit::Mmx);
                    randomize(&mut rig, &mut s, &mut m, &mut r, fx);
                    compare_forms(&mut rig, &mut s, &mut m, (&bytes, &wide), code);
                    done += 1;
                }
            }
        }
    }
    done
}

#[test]
fn in_32_bit_code_sse_is_the_hosts() {
    assert!(narrow_sweep(|u| u == Unit::Sse, 3, 21) > 1000);
}

#[test]
fn in_32_bit_code_mmx_and_x87_are_the_hosts() {
    assert!(narrow_sweep(|u| matches!(u, Unit::Mmx | Unit::X87), 6, 22) > 1000);
}

#[test]
fn in_32_bit_code_avx_is_the_hosts() {
    if !xstate::host_has_avx() {
        println!("skipped: no AVX here");
        return;
    }
    assert!(narrow_sweep(|u| matches!(u, Unit::Vex | Unit::Evex), 2, 23) > 1000);
}

/// Bits that name registers 8 and up are ignored outside 64-bit mode (SDM vol. 2A, 2.3.5.6, 2.3.6 and 2.7.1).
#[test]
fn in_32_bit_code_the_highest_register_bit_is_ignored() {
    if !xstate::host_has_avx() {
        println!("skipped: no AVX here");
        return;
    }
    // vaddps xmm1, xmm2, xmm3 and vblendvps xmm1, xmm2, xmm3, xmm4: VEX.vvvv and the immediate's bit 7.
    let rows: &[(&[u8], &[u8])] = &[
        (&[0xc4, 0xe1, 0x68, 0x58, 0xcb], &[0xc4, 0xe1, 0x28, 0x58, 0xcb]),
        (&[0xc4, 0xe3, 0x69, 0x4a, 0xcb, 0x40], &[0xc4, 0xe3, 0x69, 0x4a, 0xcb, 0xc0]),
    ];
    for (plain, marked) in rows {
        let mut results = Vec::new();
        for bytes in [plain, marked] {
            let mut rig = Rig::new(Mode::Protected);
            for n in 0..8 {
                rig.cpu().xsave.set_xmm(n, 0x3f80_0000_bf80_0000_4000_0000_c000_0000 + n as u128);
            }
            rig.step(bytes).unwrap();
            results.push(rig.cpu().xsave.xmm(1));
        }
        assert_eq!(results[0], results[1], "{marked:02x?}");
    }
}

/// 16-bit addressing and code, and an environment's address.
#[test]
fn in_16_bit_code_operands_are_found() {
    for mode in [Mode::Real, Mode::Protected16] {
        let mut rig = Rig::new(mode);
        let base = rig.cpu().segment(x86_arch::Seg::Ds).base;
        rig.set(Gpr::Rbx, 0xdead_0000_ffff_fff0);
        rig.set(Gpr::Rsi, 0x40);
        rig.write_u64(base + 0x30, 0x4008_0000_0000_0000);
        // movq xmm0, [bx+si]; fld qword [bx+si]; fstp qword [bx+si+8]
        rig.step(&[0xf3, 0x0f, 0x7e, 0x00]).unwrap();
        assert_eq!(rig.cpu().xsave.xmm(0), 0x4008_0000_0000_0000, "{mode:?}");
        rig.step(&[0xdd, 0x00]).unwrap();
        rig.step(&[0xdd, 0x58, 0x08]).unwrap();
        assert_eq!(rig.read_u64(base + 0x38), 0x4008_0000_0000_0000, "{mode:?}");
        // movd ecx, xmm0 leaves the upper half of the register that 64-bit mode would see.
        rig.step(&[0x66, 0x0f, 0x7e, 0xc1]).unwrap();
        assert_eq!(rig.get(Gpr::Rcx) as u32, 0, "{mode:?}");
    }
}

/// Instructions that may give another result each time, or that the random operands make invalid.
fn approximate(_: Code) -> bool {
    false
}

#[test]
fn legacy_sse_is_the_hosts() {
    assert!(sweep(|u| u == Unit::Sse, 12, 1) > 2000);
}

#[test]
fn avx_is_the_hosts() {
    if !xstate::host_has_avx() {
        println!("skipped: no AVX here");
        return;
    }
    assert!(sweep(|u| u == Unit::Vex, 8, 2) > 2000);
}

#[test]
fn avx512_is_the_hosts() {
    if !xstate::host_has_avx512() {
        println!("skipped: no AVX-512 here");
        return;
    }
    assert!(sweep(|u| u == Unit::Evex, 6, 3) > 2000);
}

#[test]
fn mmx_is_the_hosts() {
    assert!(sweep(|u| u == Unit::Mmx, 12, 4) > 500);
}

#[test]
fn x87_is_the_hosts() {
    assert!(sweep(|u| u == Unit::X87, 40, 5) > 2000);
}

const UD: Stop = Stop::Exception(Exception::UD);
const GP: Stop = Stop::Exception(Exception::GP0);
const NM: Stop = Stop::Exception(Exception::new(Vector::Nm));

#[test]
fn an_unmasked_exception_is_xm_and_sets_its_flag() {
    let mut rig = Rig::new(Mode::Long);
    // divps xmm0, xmm1
    rig.cpu().xsave.set_xmm(0, 0x3f80_0000_3f80_0000_3f80_0000_3f80_0000);
    rig.cpu().xsave.set_mxcsr(0x1f80 & !0x200);
    let before = rig.cpu().xsave.xmm(0);
    assert_eq!(rig.step(&[0x0f, 0x5e, 0xc1]), Err(Stop::Exception(Exception::new(Vector::Xm))));
    assert_eq!(rig.cpu().xsave.xmm(0), before);
    assert_eq!(rig.cpu().xsave.mxcsr() & 0x3f, 4, "ZE");
    rig.cpu().cr4.remove(x86_arch::control::Cr4::OSXMMEXCPT);
    assert_eq!(rig.step(&[0x0f, 0x5e, 0xc1]), Err(UD));
    // And again masked, on the same stub.
    rig.cpu().xsave.set_mxcsr(0x1f80);
    rig.step(&[0x0f, 0x5e, 0xc1]).unwrap();
    assert_eq!(rig.cpu().xsave.xmm(0) as u32, f32::INFINITY.to_bits());
}

#[test]
fn gates() {
    use x86_arch::control::{Cr0, Cr4, Xcr0};
    let addps: &[u8] = &[0x0f, 0x58, 0xc1];
    let vaddps: &[u8] = &[0xc5, 0xf8, 0x58, 0xc1];
    let paddb: &[u8] = &[0x0f, 0xfc, 0xc1];
    let fld1: &[u8] = &[0xd9, 0xe8];
    type Change = fn(&mut crate::Vcpu);
    let rows: &[(&[u8], Change, Stop)] = &[
        (addps, |v| v.cr0.insert(Cr0::EM), UD),
        (addps, |v| v.cr0.insert(Cr0::TS), NM),
        (addps, |v| v.cr4.remove(Cr4::OSFXSR), UD),
        (
            addps,
            |v| {
                v.cr4.remove(Cr4::OSFXSR);
                v.cr0.insert(Cr0::TS)
            },
            UD,
        ),
        (vaddps, |v| v.cr4.remove(Cr4::OSXSAVE), UD),
        (vaddps, |v| v.xcr0 = Xcr0::X87 | Xcr0::SSE, UD),
        (vaddps, |v| v.cr0.insert(Cr0::TS), NM),
        (paddb, |v| v.cr0.insert(Cr0::EM), UD),
        (paddb, |v| v.cr0.insert(Cr0::TS), NM),
        (fld1, |v| v.cr0.insert(Cr0::EM), NM),
        (fld1, |v| v.cr0.insert(Cr0::TS), NM),
    ];
    for (bytes, change, want) in rows {
        if bytes[0] == 0xc5 && !xstate::host_has_avx() {
            continue;
        }
        let mut rig = Rig::new(Mode::Long);
        rig.step(bytes).unwrap();
        change(rig.cpu());
        assert_eq!(rig.step(bytes), Err(*want), "{bytes:02x?}");
    }
}

#[test]
fn faults_leave_no_trace() {
    let mut rig = Rig::new(Mode::Long);
    let page = DATA + 0x1000;
    rig.unmap(page);
    rig.set(Gpr::Rax, page - 8);
    for n in 0..16 {
        rig.cpu().xsave.set_xmm(n, 0x1111 * n as u128);
    }
    let before = rig.cpu().xsave.clone();
    let old = rig.read_u64(page - 8);
    // movups xmm1,[rax]; movups [rax],xmm1; addps is misaligned first.
    for bytes in [&[0x0f, 0x10, 0x08][..], &[0x0f, 0x11, 0x08]] {
        let e = rig.step(bytes);
        assert!(matches!(e, Err(Stop::Exception(e)) if e.vector == Vector::Pf), "{e:?}");
        assert_eq!(rig.cpu().fault_gva.0, page);
        assert_eq!(rig.cpu().xsave.bytes, before.bytes);
        assert_eq!(rig.read_u64(page - 8), old);
    }
    assert_eq!(rig.step(&[0x0f, 0x58, 0x08]), Err(GP), "addps [rax], misaligned");
    assert_eq!(rig.step(&[0x0f, 0x28, 0x08]), Err(GP), "movaps");
    rig.set(Gpr::Rax, DATA + 8);
    rig.step(&[0x0f, 0x10, 0x08]).unwrap();
    if xstate::host_has_avx() {
        rig.step(&[0xc5, 0xf0, 0x58, 0x08]).unwrap();
        assert_eq!(rig.step(&[0xc5, 0xf8, 0x28, 0x08]), Err(GP), "vmovaps");
    }
}

/// Each vector, MMX, opmask and x87 instruction that the host has is on the list, or is one that software does.
#[test]
fn nothing_of_the_hosts_is_forgotten() {
    use decoder::{Attr, CpuidSet, Vendor};
    let host = CpuidSet::new(Vendor::Amd, crate::host_cpu::has);
    let units = Attr::SSE | Attr::VEX | Attr::EVEX | Attr::MMX | Attr::X87;
    let missing: Vec<_> = Code::values()
        .filter(|c| host.has(*c) && c.op_code().is_instruction() && c.op_code().mode64())
        .filter(|c| decoder::attrs(*c).attr.intersects(units) && allow::get(*c).is_none())
        .filter(|c| !decoder::attrs(*c).attr.contains(Attr::VSIB) && !allow::in_software(*c))
        // VEX-encoded, on general registers: BMI.
        .filter(|c| {
            use OpCodeOperandKind as K;
            let general = |k: &K| {
                matches!(
                    k,
                    K::r32_reg
                        | K::r64_reg
                        | K::r32_vvvv
                        | K::r64_vvvv
                        | K::r32_or_mem
                        | K::r64_or_mem
                        | K::imm8
                )
            };
            !c.op_code().op_kinds().iter().all(general)
        })
        .collect();
    assert!(missing.is_empty(), "{missing:?}");
}

/// Whatever this host has: an instruction of a feature that is offered to guests of a host that has it can be a stub there.
#[test]
fn younger_vector_instructions_are_on_the_list() {
    if !xstate::host_has_avx() {
        println!("skipped: no AVX here");
        return;
    }
    use iced_x86::CpuidFeature as F;
    for f in [F::AVX_IFMA, F::AVX_VNNI_INT8, F::AVX_VNNI_INT16, F::AVX_NE_CONVERT, F::SHA512, F::SM3, F::SM4]
    {
        let mut of = Code::values().filter(|c| c.cpuid_features().contains(&f)).peekable();
        assert!(of.peek().is_some(), "{f:?}");
        for code in of {
            assert_eq!(allow::row_anywhere(code).map(|r| r.unit), Some(Unit::Vex), "{code:?}");
        }
    }
}
