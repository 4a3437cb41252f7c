//! The world outside the VM: devices whose answers are a function of what they were asked, in which order.
//!
//! A copy of it goes along with a saved VM, and answers the restored one as the first would have been answered.

use super::super::guest::io::checksum;
use super::super::guest::layout::*;
use kvm_ioctl_layer::VcpuExit;
use std::collections::BTreeMap;

/// OUT: an NMI for the vCPU whose number is written.
pub const PORT_NMI: u16 = 0x710;
/// OUT: a message-signalled interrupt: the vector in bits 0 to 7, the destination in bits 8 to 15.
pub const PORT_MSI: u16 = 0x714;
/// OUT: KVM_INTERRUPT with the vector that is written, once the guest can take one.
pub const PORT_VECTOR: u16 = 0x718;
/// OUT: an interrupt line of edges: it goes up and down.
pub const PORT_PULSE: u16 = 0x71c;

/// OUT: an SMI for the vCPU whose number is written. With bit 8: in the place of the second NMI that is asked for from now on.
pub const PORT_SMI: u16 = 0x720;
/// OUT: KVM_INTERRUPT with the vector that is written, now, if the guest can take one.
pub const PORT_VECTOR_NOW: u16 = 0x724;
/// OUT: a triple fault, by KVM_SET_VCPU_EVENTS.
pub const PORT_TRIPLE_FAULT: u16 = 0x728;

/// What the VMM has to do after an exit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Action {
    /// Nothing.
    Nothing,
    /// KVM_IRQ_LINE.
    Line(u32, bool),
    /// KVM_IRQ_LINE, up and down.
    Pulse(u32),
    /// KVM_NMI.
    Nmi(u32),
    /// KVM_SMI.
    Smi(u32),
    /// KVM_INTERRUPT, now.
    Interrupt(u8),
    /// KVM_EXIT_DEBUG with this exception, there.
    Debug(u32, u64),
    /// A triple fault.
    TripleFault,
    /// KVM_SIGNAL_MSI.
    Msi(u32),
    /// KVM_INTERRUPT is due.
    Vector(u8),
    /// The guest has shut down.
    Over,
}

/// One exit as it was seen.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Record {
    /// Whose.
    pub vcpu: usize,
    /// Instructions that it had retired.
    pub retired: u64,
    /// What.
    pub what: String,
}

/// The devices.
#[derive(Clone, Default, Debug)]
pub struct Outside {
    pub(super) asked: u64,
    pub(super) echo: Vec<u8>,
    pub(super) stream: Vec<u8>,
    pub(super) next_in: u8,
    pub(super) registers: BTreeMap<u64, u8>,
    pub(super) rom_store: u16,
    pub(super) nmis_to_smi: u8,
    pub(super) quiet: bool,
    /// Interrupt lines that are held up.
    pub lines: BTreeMap<u32, bool>,
    /// Vectors that wait for KVM_INTERRUPT.
    pub vectors: Vec<u8>,
}

fn mix(a: u64) -> u64 {
    let x = (a ^ 0x9e37_79b9_7f4a_7c15).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x ^ x >> 29
}

impl Outside {
    fn chance(&mut self) -> u64 {
        self.asked += 1;
        mix(self.asked)
    }

    /// Answers an exit; what it was, in words.
    pub fn answer(&mut self, exit: VcpuExit<'_>) -> (String, Action) {
        match exit {
            VcpuExit::IoOut(port, data) => (format!("out {port:#x} {data:x?}"), self.port_write(port, data)),
            VcpuExit::IoIn(port, data) => {
                self.port_read(port, data);
                (format!("in {port:#x} {data:x?}"), Action::Nothing)
            }
            VcpuExit::MmioWrite(gpa, data) => {
                if gpa >= ROM {
                    self.rom_store = u16::from(data.first().copied().unwrap_or(0));
                }
                self.registers.extend((gpa..).zip(data.iter().copied()));
                (format!("write {gpa:#x} {data:x?}"), Action::Nothing)
            }
            VcpuExit::MmioRead(gpa, data) => {
                for (at, byte) in (gpa..).zip(data.iter_mut()) {
                    *byte = self.registers.get(&at).copied().unwrap_or(0xff);
                }
                (format!("read {gpa:#x} {data:x?}"), Action::Nothing)
            }
            VcpuExit::X86Rdmsr(m) => {
                let value = self.chance();
                *m.data = value;
                *m.error = u8::from(value.is_multiple_of(4));
                (format!("rdmsr {:#x} {:?} {value:x}", m.index, m.reason), Action::Nothing)
            }
            VcpuExit::X86Wrmsr(m) => {
                *m.error = u8::from(self.chance().is_multiple_of(4));
                (format!("wrmsr {:#x} {:?} {:x}", m.index, m.reason, m.data), Action::Nothing)
            }
            VcpuExit::Hypercall(h) => {
                *h.ret = self.chance();
                (format!("hypercall {} {:x?}", h.nr, h.args), Action::Nothing)
            }
            VcpuExit::Debug(d) => {
                let action = Action::Debug(d.exception, d.pc);
                (format!("debug {} {:#x} {:#x} {:#x}", d.exception, d.pc, d.dr6, d.dr7), action)
            }
            VcpuExit::Hlt => ("hlt".into(), Action::Vector(0x40 + (self.chance() & 7) as u8)),
            VcpuExit::SetTpr => ("tpr".into(), Action::Nothing),
            VcpuExit::IoapicEoi(vector) => {
                // What the vector belongs to lowers its line.
                (format!("eoi {vector:#x}"), Action::Nothing)
            }
            VcpuExit::Shutdown => ("shutdown".into(), Action::Over),
            other => (format!("{other:?}"), Action::Over),
        }
    }

    fn port_write(&mut self, port: u16, data: &[u8]) -> Action {
        let mut word = [0; 4];
        let n = data.len().min(4);
        word[..n].copy_from_slice(&data[..n]);
        let value = u32::from_le_bytes(word);
        match port {
            PORT_IRQ => {
                let (gsi, level) = (value & 0xff, value >> 16 & 1 != 0);
                self.lines.insert(gsi, level);
                return Action::Line(gsi, level);
            }
            PORT_PULSE => return Action::Pulse(value & 0xff),
            PORT_NMI => {
                self.nmis_to_smi = self.nmis_to_smi.wrapping_sub(1);
                return if self.nmis_to_smi == 0 { Action::Smi(value) } else { Action::Nmi(value) };
            }
            PORT_SMI if value & 0x100 != 0 => self.nmis_to_smi = 2,
            PORT_SMI => return Action::Smi(value),
            PORT_VECTOR_NOW => return Action::Interrupt(value as u8),
            PORT_TRIPLE_FAULT => return Action::TripleFault,
            PORT_MSI => return Action::Msi(value),
            PORT_VECTOR => return Action::Vector(value as u8),
            PORT_DONE | PORT_FATAL => return Action::Over,
            PORT_ECHO => self.echo = data.to_vec(),
            PORT_STREAM => self.stream.extend_from_slice(data),
            _ => {}
        }
        Action::Nothing
    }

    fn port_read(&mut self, port: u16, data: &mut [u8]) {
        match port {
            PORT_ECHO => {
                data.fill(0xff);
                data.iter_mut().zip(&self.echo).for_each(|(to, from)| *to = !from);
            }
            PORT_STREAM => {
                for to in data {
                    *to = self.next_in;
                    self.next_in = self.next_in.wrapping_add(1);
                }
            }
            PORT_SUM if data.len() == 4 => {
                data.copy_from_slice(&checksum(&std::mem::take(&mut self.stream)).to_le_bytes());
            }
            PORT_SUM if data.len() == 2 => data.copy_from_slice(&self.rom_store.to_le_bytes()),
            _ if self.quiet => data.fill(0xff),
            _ => {
                for to in data {
                    *to = self.chance() as u8;
                }
            }
        }
    }
}
