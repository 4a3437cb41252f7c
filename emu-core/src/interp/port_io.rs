//! IN, OUT, INS, OUTS (SDM vol. 2; vol. 1, 19.5: I/O permission).
//!
//! A port is asked of the devices inside first, then of the layer above (writes only), then it is an exit.
//! Repeated string I/O travels by up to a page an exit, as KVM's does; each batch commits by itself.

use super::Handler;
use super::operand::Int;
use crate::exit::{Result, Stop};
use crate::io::{PIO_PAGE, Request, Write};
use crate::quirks::Quirks;
use crate::vcpu::{ATTENTION_IO, Vcpu, WATCH_BREAKPOINT};
use decoder::{Insn, Vendor};
use iced_x86::Mnemonic;
use softmmu::{Access, Target};
use x86_arch::control::{BreakpointKind, Cr4};
use x86_arch::segment::system_type;
use x86_arch::{Gpr, Gva, PAGE_MASK, PAGE_SIZE, Rflags, Seg};

const RAX: u8 = Gpr::Rax as u8;
const RCX: u8 = Gpr::Rcx as u8;
const RDX: u8 = Gpr::Rdx as u8;
const RSI: u8 = Gpr::Rsi as u8;
const RDI: u8 = Gpr::Rdi as u8;
const ES: u8 = Seg::Es as u8;

/// Offset of the I/O map base address in a 32-bit or 64-bit TSS.
const IO_MAP_BASE: u64 = 102;
/// Items handled by a device inside between two looks at the outside.
const DEVICE_ITEMS: u32 = 256;

impl Vcpu {
    /// #GP(0) unless `size` bytes at `port` may be accessed (SDM vol. 1, 19.5.2).
    pub fn check_io_permission(&mut self, port: u16, size: u8) -> Result {
        if self.real_mode() || !self.v86() && self.cpl <= self.iopl() {
            return Ok(());
        }
        let tr = self.seg[Seg::Tr as usize];
        let has_map = matches!(tr.typ, system_type::TSS_AVAILABLE | system_type::TSS_BUSY);
        let limit = tr.limit as u64;
        if !has_map || tr.unusable || !tr.present || limit < IO_MAP_BASE + 1 {
            return self.gp0();
        }
        let map = self.load_sys::<u16>(tr.base.wrapping_add(IO_MAP_BASE))? as u64;
        // Two bytes are read always: the map must have one behind the last port's.
        let at = map + port as u64 / 8;
        if at + 1 > limit {
            return self.gp0();
        }
        let bits = self.load_sys::<u16>(tr.base.wrapping_add(at))? >> (port & 7);
        if bits & ((1 << size.min(8)) - 1) != 0 {
            return self.gp0();
        }
        Ok(())
    }

    /// Notes I/O breakpoints that this access met; they trap after the instruction (SDM vol. 3B, 17.2.4).
    fn watch_port(&mut self, port: u16, size: u8) {
        if self.hot.watch & WATCH_BREAKPOINT != 0 && self.cr4.contains(Cr4::DE) {
            self.match_breakpoints(port as u64, size as u64, |k| k == BreakpointKind::Io);
        }
    }

    /// Whether somebody this side of an exit takes the write.
    fn port_taken(&mut self, port: u16, data: &[u8]) -> bool {
        if self.device_pio_write(port, data) {
            self.stats.device_accesses += 1;
            return true;
        }
        let bus = self.vm.bus.read().clone();
        bus.pio_write(port, data)
    }
}

/// The port: DX, or the immediate byte, as operand `n`.
fn port(c: &Vcpu, i: &Insn, n: usize) -> u16 {
    if i.is_imm(n) { i.imm as u8 as u16 } else { c.reg::<u16>(RDX) }
}

fn input<T: Int>(c: &mut Vcpu, i: &Insn) -> Result {
    let port = port(c, i, 1);
    let size = T::BYTES as u8;
    c.check_io_permission(port, size)?;
    let request = Request::Pio { port, size, count: 1 };
    let mut data = [0; 8];
    let part = &mut data[..T::BYTES as usize];
    if let Some(answer) = c.io.replay(&request) {
        part.iter_mut().zip(answer).for_each(|(d, a)| *d = *a);
    } else if c.device_pio_read(port, part) {
        c.stats.device_accesses += 1;
    } else {
        c.io.request = Some(request);
        return Err(Stop::Need);
    }
    c.set_reg(RAX, T::from_u64(u64::from_le_bytes(data)));
    c.watch_port(port, size);
    Ok(())
}

/// The port of KVM_X86_QUIRK_OUT_7E_INC_RIP.
const QUIRKY_PORT: u16 = 0x7e;

fn output<T: Int>(c: &mut Vcpu, i: &Insn) -> Result {
    let port = port(c, i, 0);
    let size = T::BYTES as u8;
    c.check_io_permission(port, size)?;
    let data = c.reg::<T>(RAX).to_u64().to_le_bytes();
    let data = &data[..T::BYTES as usize];
    let early = port == QUIRKY_PORT && !c.vm.choices.has(Quirks::OUT_7E_INC_RIP);
    if early {
        let mut bytes = [0; 4];
        bytes[..data.len()].copy_from_slice(data);
        let request = Request::PioWrite { port, size, data: bytes };
        if c.io.replay(&request).is_none() && !c.port_taken(port, data) {
            // Told with RIP at the OUT.
            c.io.request = Some(request);
            return Err(Stop::Need);
        }
    } else if !c.port_taken(port, data) {
        c.io.writes.push_back(Write::Pio { port, size, count: 1, data: data.to_vec() });
        c.attend(ATTENTION_IO);
    }
    c.watch_port(port, size);
    Ok(())
}

/// How many items of `T` at `seg:ea` can travel together: ascending, in one page of memory. 1 at least.
fn batch<T: Int>(c: &mut Vcpu, i: &Insn, seg: u8, ea: u64, left: u64, write: bool) -> u64 {
    if c.flag(Rflags::DF) || c.hot.watch != 0 {
        return 1;
    }
    let Ok(gva) = c.linear(seg, ea, T::BYTES, write) else { return 1 };
    let n = left
        .min(PIO_PAGE as u64 / T::BYTES)
        .min((PAGE_SIZE - (gva & PAGE_MASK)) / T::BYTES)
        .min((i.mem.mask() - ea) / T::BYTES);
    if n < 2 || c.linear(seg, ea, n * T::BYTES, write) != Ok(gva) {
        return 1;
    }
    let user = c.cpl == 3;
    let access = if write { Access::write(user) } else { Access::read(user) };
    match c.mmu.translate(Gva(gva), access, n * T::BYTES) {
        Ok(Target::Ram(_) | Target::Tracked(_)) => n,
        _ => 1,
    }
}

/// The count of what is left: rCX with REP, else 1.
fn remaining(c: &Vcpu, i: &Insn) -> u64 {
    if i.rep() { c.string_reg(i, RCX) } else { 1 }
}

/// Commits `n` items. True if the instruction is done.
fn commit<T: Int>(c: &mut Vcpu, i: &Insn, r: u8, n: u64) -> bool {
    c.advance(i, r, n, T::BYTES);
    if !i.rep() {
        return true;
    }
    c.iterated(i, n);
    c.string_reg(i, RCX) == 0
}

fn ins<T: Int>(c: &mut Vcpu, i: &Insn) -> Result {
    let port = c.reg::<u16>(RDX);
    let size = T::BYTES as u8;
    let mut items = DEVICE_ITEMS;
    loop {
        let left = remaining(c, i);
        // Processors of AMD look at the permission even where nothing is to be done.
        if left != 0 || c.cpuid.vendor() == Vendor::Amd {
            c.check_io_permission(port, size)?;
        }
        if left == 0 {
            return Ok(());
        }
        let ea = c.string_reg(i, RDI);
        // Before the port is read: a device must not lose what memory cannot take.
        c.check_operand_alignment(ES, ea, T::BYTES, T::BYTES)?;
        c.probe_write(ES, ea, T::BYTES)?;
        let n = batch::<T>(c, i, ES, ea, left, true);
        let request = Request::Pio { port, size, count: n as u32 };
        let mut data = [0; 8];
        let one = &mut data[..T::BYTES as usize];
        let n = if let Some(answer) = c.io.replay(&request) {
            let answer = answer.to_vec();
            c.write_bytes(ES, ea, &answer)?;
            items = 0;
            n
        } else if c.device_pio_read(port, one) {
            c.stats.device_accesses += 1;
            let v = T::from_u64(u64::from_le_bytes(data));
            c.store(ES, ea, v)?;
            items -= 1;
            1
        } else {
            c.io.request = Some(request);
            return Err(Stop::Need);
        };
        c.watch_port(port, size);
        if commit::<T>(c, i, RDI, n) {
            return Ok(());
        }
        if items == 0 || c.hot.attention != 0 {
            c.again(i);
            return Ok(());
        }
    }
}

fn outs<T: Int>(c: &mut Vcpu, i: &Insn) -> Result {
    let port = c.reg::<u16>(RDX);
    let size = T::BYTES as u8;
    let mut items = DEVICE_ITEMS;
    loop {
        let left = remaining(c, i);
        // Processors of AMD look at the permission even where nothing is to be done.
        if left != 0 || c.cpuid.vendor() == Vendor::Amd {
            c.check_io_permission(port, size)?;
        }
        if left == 0 {
            return Ok(());
        }
        let ea = c.string_reg(i, RSI);
        let first = c.load::<T>(i.mem.seg, ea)?.to_u64().to_le_bytes();
        let n = if c.port_taken(port, &first[..T::BYTES as usize]) {
            items -= 1;
            1
        } else {
            let n = batch::<T>(c, i, i.mem.seg, ea, left, false);
            let mut data = first[..T::BYTES as usize].to_vec();
            if n > 1 {
                data.resize((n * T::BYTES) as usize, 0);
                c.read_bytes(i.mem.seg, ea, &mut data)?;
            }
            c.io.writes.push_back(Write::Pio { port, size, count: n as u32, data });
            c.attend(ATTENTION_IO);
            n
        };
        c.watch_port(port, size);
        if commit::<T>(c, i, RSI, n) {
            return Ok(());
        }
        if items == 0 || c.hot.attention != 0 {
            c.again(i);
            return Ok(());
        }
    }
}

/// Picks the width of a port access: 1, 2 or 4 bytes.
macro_rules! port_size {
    ($size:expr, $f:ident) => {
        match $size {
            1 => $f::<u8> as Handler,
            2 => $f::<u16>,
            _ => $f::<u32>,
        }
    };
}

/// The handler, if the instruction is of this family.
pub fn select(i: &Insn) -> Option<Handler> {
    use iced_x86::Code as C;
    let width = match i.code {
        C::In_AL_imm8 | C::In_AL_DX | C::Out_imm8_AL | C::Out_DX_AL => 1,
        C::In_AX_imm8 | C::In_AX_DX | C::Out_imm8_AX | C::Out_DX_AX => 2,
        C::In_EAX_imm8 | C::In_EAX_DX | C::Out_imm8_EAX | C::Out_DX_EAX => 4,
        C::Insb_m8_DX | C::Outsb_DX_m8 => 1,
        C::Insw_m16_DX | C::Outsw_DX_m16 => 2,
        C::Insd_m32_DX | C::Outsd_DX_m32 => 4,
        _ => return None,
    };
    Some(match i.code.mnemonic() {
        Mnemonic::In => port_size!(width, input),
        Mnemonic::Out => port_size!(width, output),
        Mnemonic::Insb | Mnemonic::Insw | Mnemonic::Insd => port_size!(width, ins),
        _ => port_size!(width, outs),
    })
}
