//! Interrupt controllers as part of the VM: who is told what, and under which lock.

use crate::exit::Result;
use crate::vcpu::Vcpu;
use crate::vm::Vm;
use x86_arch::Gpa;

/// Controllers that the VM has inside.
#[derive(Default)]
pub struct IrqState {}

/// What a vCPU has of them.
#[derive(Default)]
pub struct VcpuIrq {}

impl Vm {
    /// Whether the interrupt controllers (or at least the local APICs) are inside.
    pub fn has_irqchip(&self) -> bool {
        false
    }
}

impl Vcpu {
    /// Takes the interrupt of highest priority from the controllers inside.
    pub fn acknowledge_interrupt(&mut self) -> Option<u8> {
        None
    }

    /// Whether an event is there that ends HLT.
    pub fn wakes_from_halt(&mut self) -> bool {
        false
    }

    /// INIT and SIPI, as the activity allows.
    pub fn accept_init_and_sipi(&mut self) {}

    /// Lets timers fire whose time has come.
    pub fn poll_timers(&mut self) {}

    /// When the next timer fires, in nanoseconds of [`Vcpu::now_ns`].
    pub fn next_deadline(&self) -> Option<u64> {
        None
    }

    /// A read by a device inside.
    pub fn device_mmio_read(&mut self, _gpa: Gpa, _data: &mut [u8]) -> bool {
        false
    }

    /// A write that a device inside takes.
    pub fn device_mmio_write(&mut self, _gpa: Gpa, _data: &[u8]) -> bool {
        false
    }

    /// A port read that a device inside answers.
    pub fn device_pio_read(&mut self, _port: u16, _data: &mut [u8]) -> bool {
        false
    }

    /// A port write that a device inside takes.
    pub fn device_pio_write(&mut self, _port: u16, _data: &[u8]) -> bool {
        false
    }

    /// A write to CR8 (the APIC's TPR where it is inside).
    pub fn write_cr8(&mut self, v: u64) -> Result {
        self.cr8 = v & 15;
        Ok(())
    }

    /// CR8.
    pub fn read_cr8(&mut self) -> u64 {
        self.cr8
    }
}
