//! x87 control instructions and the environment in memory: FNINIT, FNCLEX, FLDCW, FNSTCW, FNSTSW, FNSTENV,
//! FLDENV, FNSAVE, FRSTOR, WAIT. Arithmetic runs on the host: [`crate::native`]. FXSAVE is in [`super::xsave`].
//!
//! FCS and FDS are kept where the host keeps them ([`crate::host_rules`]).

use super::Handler;
use crate::exit::{Result, Stop};
use crate::host_rules::host_rules;
use crate::vcpu::Vcpu;
use crate::xstate::XsaveImage;
use decoder::Insn;
use iced_x86::Code;
use x86_arch::control::Cr0;
use x86_arch::{Exception, Gpr, Vector, xsave};

/// FSW: the exception flags.
const EXCEPTIONS: u16 = 0x3f;
/// FSW: error summary and busy.
const SUMMARY: u16 = 0x8080;

pub(crate) fn select(i: &Insn) -> Option<Handler> {
    use Code as C;
    Some(match i.code {
        C::Fninit => fninit,
        C::Fnclex => fnclex,
        C::Fldcw_m2byte => fldcw,
        C::Fnstcw_m2byte => fnstcw,
        C::Fnstsw_m2byte => fnstsw,
        C::Fnstsw_AX => fnstsw_ax,
        C::Fnstenv_m14byte => fnstenv::<14>,
        C::Fnstenv_m28byte => fnstenv::<28>,
        C::Fldenv_m14byte => fldenv::<14>,
        C::Fldenv_m28byte => fldenv::<28>,
        C::Fnsave_m94byte => fnsave::<14>,
        C::Fnsave_m108byte => fnsave::<28>,
        C::Frstor_m94byte => frstor::<14>,
        C::Frstor_m108byte => frstor::<28>,
        C::Wait => wait,
        // 8087 and 80287 instructions, no operations since (SDM vol. 1, 8.3.12 and 22.18).
        C::Fneni | C::Fndisi | C::Fnsetpm => ignored,
        _ => return None,
    })
}

impl XsaveImage {
    /// FSW's summary bits as its flags and FCW's masks have them.
    pub fn update_summary(&mut self) {
        let fsw = self.fsw();
        let pending = fsw & !self.fcw() & EXCEPTIONS != 0;
        self.set_fsw(if pending { fsw | SUMMARY } else { fsw & !SUMMARY });
    }

    /// Sets FSW whole. The image holds the registers in stack order, so a new TOP moves their contents.
    pub fn replace_fsw(&mut self, fsw: u16) {
        let old = self.top();
        self.set_fsw(fsw);
        let by = self.top().wrapping_sub(old) & 7;
        self.bytes[xsave::ST0..xsave::XMM0].rotate_left(16 * by as usize);
    }

    /// What FNINIT leaves. The registers' contents stay, all empty.
    pub fn fninit(&mut self) {
        self.set_fcw(xsave::FCW_INIT);
        self.replace_fsw(0);
        self.set_ftw(0);
        self.set_fop(0);
        self.set_fip(0);
        self.set_fdp(0);
        (self.fcs, self.fds) = (0, 0);
        self.set_xstate_bv(self.xstate_bv() | 1);
    }

    /// The tag word with two bits a register (SDM vol. 1, 8.1.7), from the abridged one and the contents.
    pub fn full_tags(&self) -> u16 {
        (0..8u8).fold(0, |tags, physical| {
            let tag = if self.ftw() >> physical & 1 == 0 {
                3
            } else {
                let st = physical.wrapping_sub(self.top()) & 7;
                let at = xsave::ST0 + 16 * st as usize;
                let (significand, exponent) = (self.get::<u64>(at), self.get::<u16>(at + 8) & 0x7fff);
                match (exponent, significand) {
                    (0, 0) => 1,
                    (0 | 0x7fff, _) => 2,
                    (_, s) if s >> 63 == 0 => 2,
                    _ => 0,
                }
            };
            tags | tag << (2 * physical)
        })
    }

    /// Sets the abridged tag word from a full one: only "empty" counts.
    pub fn set_full_tags(&mut self, tags: u16) {
        let ftw = (0..8).fold(0u8, |t, n| t | ((tags >> (2 * n) & 3 != 3) as u8) << n);
        self.set_ftw(ftw);
    }
}

fn wait(c: &mut Vcpu, _: &Insn) -> Result {
    if c.cr0.contains(Cr0::MP | Cr0::TS) {
        return Err(Stop::Exception(Exception::new(Vector::Nm)));
    }
    c.check_pending()
}

fn ignored(c: &mut Vcpu, _: &Insn) -> Result {
    c.check_x87()
}

fn fninit(c: &mut Vcpu, _: &Insn) -> Result {
    c.check_x87()?;
    c.xsave.fninit();
    Ok(())
}

fn fnclex(c: &mut Vcpu, _: &Insn) -> Result {
    c.check_x87()?;
    c.xsave.set_fsw(c.xsave.fsw() & 0x7f00);
    c.xsave.set_xstate_bv(c.xsave.xstate_bv() | 1);
    Ok(())
}

/// FCW as the processor keeps it: bit 6 reads as 1, bits 7 and 13 to 15 as 0.
fn control_word(v: u16) -> u16 {
    v & 0x1f3f | 0x40
}

fn fldcw(c: &mut Vcpu, i: &Insn) -> Result {
    c.check_x87()?;
    c.check_pending()?;
    let v = c.load_mem::<u16>(i)?;
    c.xsave.set_fcw(control_word(v));
    c.xsave.update_summary();
    c.xsave.set_xstate_bv(c.xsave.xstate_bv() | 1);
    Ok(())
}

fn fnstcw(c: &mut Vcpu, i: &Insn) -> Result {
    c.check_x87()?;
    let v = c.xsave.fcw();
    c.store_mem::<u16>(i, v)
}

fn fnstsw(c: &mut Vcpu, i: &Insn) -> Result {
    c.check_x87()?;
    let v = c.xsave.fsw();
    c.store_mem::<u16>(i, v)
}

fn fnstsw_ax(c: &mut Vcpu, _: &Insn) -> Result {
    c.check_x87()?;
    let v = c.xsave.fsw();
    c.set_reg::<u16>(Gpr::Rax as u8, v);
    Ok(())
}

/// The environment in the format of the operand size and mode (SDM vol. 1, figures 8-9 to 8-12). In the formats of
/// real and virtual-8086 mode the pointers are linear addresses.
fn environment(c: &Vcpu, size: usize) -> [u8; 28] {
    let x = &c.xsave;
    let (fip, fdp, fop) = (x.fip() as u32, x.fdp() as u32, x.fop() & 0x7ff);
    let real = (!c.protected()).then(|| {
        let linear = |selector: u16, offset: u32| ((selector as u32) << 4).wrapping_add(offset);
        (linear(x.fcs, fip), linear(x.fds, fdp))
    });
    let head = [x.fcw(), x.fsw(), x.full_tags()];
    let mut out = [0; 28];
    if size == 14 {
        let tail = match real {
            Some((ip, dp)) => {
                let high = |v: u32| (v >> 16 << 12) as u16;
                [ip as u16, high(ip) | fop, dp as u16, high(dp)]
            }
            None => [fip as u16, x.fcs, fdp as u16, x.fds],
        };
        for (n, w) in head.iter().chain(tail.iter()).enumerate() {
            out[2 * n..2 * n + 2].copy_from_slice(&w.to_le_bytes());
        }
    } else {
        let tail = match real {
            Some((ip, dp)) => [
                0xffff_0000 | ip & 0xffff,
                ip >> 16 << 12 | fop as u32,
                0xffff_0000 | dp & 0xffff,
                dp >> 16 << 12,
            ],
            None => [fip, (fop as u32) << 16 | x.fcs as u32, fdp, 0xffff_0000 | x.fds as u32],
        };
        let head = head.map(|w| 0xffff_0000 | w as u32);
        for (n, w) in head.iter().chain(tail.iter()).enumerate() {
            out[4 * n..4 * n + 4].copy_from_slice(&w.to_le_bytes());
        }
    }
    out
}

fn set_environment(c: &mut Vcpu, b: &[u8], size: usize) {
    let real = !c.protected();
    let word = |n: usize| -> u32 {
        if size == 14 {
            u16::from_le_bytes([b[2 * n], b[2 * n + 1]]) as u32
        } else {
            u32::from_le_bytes([b[4 * n], b[4 * n + 1], b[4 * n + 2], b[4 * n + 3]])
        }
    };
    // FIP, FOP, FDP, FCS, FDS. The 16-bit format of protected mode has no opcode.
    let linear = |low: usize| word(low) & 0xffff | word(low + 1) >> 12 << 16;
    let (fip, fop, fdp, fcs, fds) = match (size, real) {
        (_, true) => (linear(3), word(4) & 0x7ff, linear(5), 0, 0),
        (14, false) => (word(3), 0, word(5), word(4), word(6)),
        (_, false) => (word(3), word(4) >> 16 & 0x7ff, word(5), word(4), word(6)),
    };
    let x = &mut c.xsave;
    x.set_fcw(control_word(word(0) as u16));
    x.replace_fsw(word(1) as u16);
    x.set_full_tags(word(2) as u16);
    x.set_fip(fip as u64);
    x.set_fop(fop as u16);
    x.set_fdp(fdp as u64);
    (x.fcs, x.fds) = if host_rules().no_x87_selectors { (0, 0) } else { (fcs as u16, fds as u16) };
    x.update_summary();
    x.set_xstate_bv(x.xstate_bv() | 1);
}

/// Where #AC looks at an environment (SDM vol. 3A, table 6-7).
fn alignment(environment: usize) -> u64 {
    if environment == 14 { 2 } else { 4 }
}

fn fnstenv<const SIZE: usize>(c: &mut Vcpu, i: &Insn) -> Result {
    c.check_x87()?;
    let env = environment(c, SIZE);
    let ea = c.ea(i);
    c.write_aligned(i.mem.seg, ea, &env[..SIZE], alignment(SIZE))?;
    // All exceptions are masked afterwards (SDM vol. 2A, FSTENV).
    c.xsave.set_fcw(c.xsave.fcw() | EXCEPTIONS);
    c.xsave.update_summary();
    c.xsave.set_xstate_bv(c.xsave.xstate_bv() | 1);
    Ok(())
}

fn fldenv<const SIZE: usize>(c: &mut Vcpu, i: &Insn) -> Result {
    c.check_x87()?;
    c.check_pending()?;
    let mut env = [0; 28];
    let ea = c.ea(i);
    c.read_aligned(i.mem.seg, ea, &mut env[..SIZE], alignment(SIZE))?;
    set_environment(c, &env[..SIZE], SIZE);
    Ok(())
}

/// FNSAVE: environment and the eight registers in stack order, then FNINIT.
fn fnsave<const ENV: usize>(c: &mut Vcpu, i: &Insn) -> Result {
    c.check_x87()?;
    let mut area = [0; 108];
    area[..ENV].copy_from_slice(&environment(c, ENV)[..ENV]);
    for n in 0..8 {
        let from = xsave::ST0 + 16 * n;
        area[ENV + 10 * n..ENV + 10 * n + 10].copy_from_slice(&c.xsave.bytes[from..from + 10]);
    }
    let ea = c.ea(i);
    c.write_aligned(i.mem.seg, ea, &area[..ENV + 80], alignment(ENV))?;
    c.xsave.fninit();
    Ok(())
}

fn frstor<const ENV: usize>(c: &mut Vcpu, i: &Insn) -> Result {
    c.check_x87()?;
    c.check_pending()?;
    let mut area = [0; 108];
    let ea = c.ea(i);
    c.read_aligned(i.mem.seg, ea, &mut area[..ENV + 80], alignment(ENV))?;
    set_environment(c, &area[..ENV], ENV);
    for n in 0..8 {
        let to = xsave::ST0 + 16 * n;
        c.xsave.bytes[to..to + 10].copy_from_slice(&area[ENV + 10 * n..ENV + 10 * n + 10]);
        c.xsave.bytes[to + 10..to + 16].fill(0);
    }
    Ok(())
}
