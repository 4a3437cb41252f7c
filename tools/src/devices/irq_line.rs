//! An interrupt line of the machine, raised by KVM_IRQ_LINE (KVM api 4.25).

use std::sync::Arc;

use vm_superio::Trigger;

use crate::kvm::{Error, VmFd};

/// One edge-triggered line.
pub struct IrqLine {
    vm: Arc<VmFd>,
    irq: u32,
}

impl IrqLine {
    /// The line `irq` of `vm`.
    pub fn new(vm: Arc<VmFd>, irq: u32) -> IrqLine {
        IrqLine { vm, irq }
    }
}

impl Trigger for IrqLine {
    type E = Error;

    /// A pulse: all lines of this machine that a device here drives are edge triggered.
    fn trigger(&self) -> Result<(), Error> {
        self.vm.set_irq_line(self.irq, true)?;
        self.vm.set_irq_line(self.irq, false)
    }
}
