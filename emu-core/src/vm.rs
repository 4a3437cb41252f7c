//! What the vCPUs of a VM share: memory, the outside world, interrupt controllers, clocks.

use crate::host::Host;
use crate::irq::IrqState;
use parking_lot::{Mutex, RwLock};
use softmmu::{Mmu, MmuConfig, VcpuGate, World};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64};
use std::sync::{Arc, OnceLock};

/// Devices that the layer above keeps inside the VM: ioeventfd, coalesced zones, user-space filters.
/// Asked after emu-core's own devices and before an exit.
pub trait Bus: Send + Sync {
    /// A port write: true if it was taken.
    fn pio_write(&self, port: u16, data: &[u8]) -> bool;
    /// A guest-physical write without a slot: true if it was taken.
    fn mmio_write(&self, gpa: u64, data: &[u8]) -> bool;
}

/// A bus without devices.
pub struct NoBus;

impl Bus for NoBus {
    fn pio_write(&self, _: u16, _: &[u8]) -> bool {
        false
    }
    fn mmio_write(&self, _: u64, _: &[u8]) -> bool {
        false
    }
}

/// The part of a vCPU that other threads reach.
pub struct VcpuShared {
    /// The vCPU's id, which is its initial APIC ID.
    pub id: u32,
    /// Its place among the VM's vCPUs: how message delivery names it.
    pub index: usize,
    /// It is the bootstrap processor (KVM_SET_BOOT_CPU_ID).
    pub bootstrap: bool,
    /// Requests and safe points.
    pub gate: Arc<VcpuGate>,
    /// Local APIC and messages to the processor.
    pub irq: crate::irq::VcpuIrq,
    /// Who wants to see the counters.
    pub stats_sink: OnceLock<crate::stats::StatsSink>,
    /// How long halts lasted; only the vCPU's thread writes it.
    pub halt_waits: Mutex<crate::stats::HaltWaits>,
}

/// One virtual machine of the software processor.
pub struct Vm {
    /// Memory slots and shadow pages.
    pub mmu: Arc<Mmu>,
    /// Time, chance.
    pub host: Arc<dyn Host>,
    /// Devices of the layer above.
    pub bus: RwLock<Arc<dyn Bus>>,
    /// The vCPUs, in order of creation.
    pub vcpus: RwLock<Vec<Arc<VcpuShared>>>,
    /// Interrupt controllers inside.
    pub irq: IrqState,
    /// TSC and kvmclock parameters of the VM.
    pub clock: crate::vm_clock::VmClock,
    /// Which refused MSR accesses user space decides (`msr::REASON_*`; KVM_CAP_X86_USER_SPACE_MSR).
    pub msr_exits: AtomicU32,
    /// The hypercalls that user space performs (KVM_CAP_EXIT_HYPERCALL), of [`crate::hypercall::EXITS`].
    pub hypercall_exits: AtomicU64,
    /// User space's MSR filter.
    pub msr_filter: RwLock<Option<Arc<dyn crate::msr::MsrFilter>>>,
    /// RDMSR of MSR_PLATFORM_INFO works in the guest (KVM_CAP_MSR_PLATFORM_INFO).
    pub platform_info_readable: AtomicBool,
    /// User space's wishes for a Xen guest.
    pub xen: RwLock<Option<Arc<crate::xen::XenHvm>>>,
    /// What user space has asked of this VM's processors ([`crate::quirks`]).
    pub choices: crate::quirks::Choices,
    /// A defect of ours was met: nothing runs any more.
    pub dead: AtomicBool,
}

impl Vm {
    /// A VM without memory, vCPUs and interrupt controllers.
    pub fn new(host: Arc<dyn Host>) -> Arc<Vm> {
        let world = World::new();
        let mmu = Mmu::new(world, MmuConfig { shadow_pages: 0 });
        let clock = crate::vm_clock::VmClock::new(&*host);
        Arc::new(Vm {
            mmu,
            host,
            bus: RwLock::new(Arc::new(NoBus)),
            vcpus: RwLock::new(Vec::new()),
            irq: IrqState::default(),
            clock,
            msr_exits: AtomicU32::new(0),
            hypercall_exits: AtomicU64::new(0),
            msr_filter: RwLock::new(None),
            platform_info_readable: AtomicBool::new(true),
            xen: RwLock::new(None),
            choices: crate::quirks::Choices::default(),
            dead: AtomicBool::new(false),
        })
    }

    /// The vCPUs' gates, and exclusive sections.
    pub fn world(&self) -> &Arc<World> {
        self.mmu.world()
    }
}
