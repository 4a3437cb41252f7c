//! What a backend is: the traits that the front end speaks to, in uapi structures and errno.
//!
//! One method is one ioctl, with the same rules and the same errors. The traits are object-safe, so that a VM
//! can sit behind a switch point and change its backend. The page that the caller maps (`struct kvm_run`) is the
//! front end's; [`Vcpu::run`] fills it through [`RunPage`]. Not here: user pointers, file descriptors' lifetimes,
//! argument sizes. Those are the front end's.

use crate::errno::{Errno, Result};
use crate::stats::StatsBlock;
use crate::uapi::*;
use std::sync::Arc;

/// The page shared with the caller, addressed by byte offset from its start. Every access is volatile and
/// happens once: the caller may write at any time.
pub trait RunPage: Send + Sync {
    /// Copies bytes out of the page. Bytes beyond its end read as zero.
    fn load(&self, offset: usize, to: &mut [u8]);
    /// Copies bytes into the page. Bytes beyond its end are dropped.
    fn store(&self, offset: usize, from: &[u8]);
    /// Bytes of the whole mapping.
    fn size(&self) -> usize;
    /// Whether `immediate_exit` is looked at during KVM_RUN too, and not at its entry alone, as a kernel does.
    fn is_polled(&self) -> bool {
        true
    }
}

/// Where the data of a port access lies: the second page of the mapping.
pub const PIO_PAGE_OFFSET: usize = 4096;
/// The page of the coalesced-MMIO ring in the mapping (KVM_COALESCED_MMIO_PAGE_OFFSET).
pub const COALESCED_PAGE_OFFSET: usize = 2 * 4096;
/// KVM_GET_VCPU_MMAP_SIZE.
pub const RUN_MMAP_SIZE: usize = 3 * 4096;

/// Where a vCPU's dirty ring lies in the mapping (KVM_DIRTY_LOG_PAGE_OFFSET pages).
pub const DIRTY_RING_OFFSET: usize = KVM_DIRTY_LOG_PAGE_OFFSET as usize * 4096;
/// The largest dirty ring in bytes: what KVM_CHECK_EXTENSION(KVM_CAP_DIRTY_LOG_RING) answers, 65,536 entries.
pub const DIRTY_RING_MAX: usize = 65536 * size_of::<kvm_dirty_gfn>();

/// The entries of a vCPU's dirty ring (`struct kvm_dirty_gfn`), shared with the caller, who may write at any time. An
/// index wraps at the number of entries.
pub trait DirtyRing: Send + Sync {
    /// How many there are: a power of two.
    fn count(&self) -> u32;
    /// The flags of an entry (an acquire load).
    fn flags(&self, index: u32) -> u32;
    /// Stores slot and offset, and then KVM_DIRTY_GFN_F_DIRTY as the flags (a release store).
    fn publish(&self, index: u32, slot: u32, offset: u64);
    /// Flags 0 (a release store).
    fn clear(&self, index: u32);
}

macro_rules! run_fields {
    ($($get:ident $set:ident $t:ty, $field:ident, $doc:literal;)*) => {
        impl dyn RunPage + '_ {
            $(
                #[doc = $doc]
                pub fn $get(&self) -> $t {
                    let mut b = [0; size_of::<$t>()];
                    self.load(core::mem::offset_of!(kvm_run, $field), &mut b);
                    <$t>::from_le_bytes(b)
                }
                #[doc = concat!("Sets: ", $doc)]
                pub fn $set(&self, v: $t) {
                    self.store(core::mem::offset_of!(kvm_run, $field), &v.to_le_bytes());
                }
            )*
        }
    };
}

run_fields! {
    request_interrupt_window set_request_interrupt_window u8, request_interrupt_window, "`request_interrupt_window`: the caller wants KVM_EXIT_IRQ_WINDOW_OPEN.";
    immediate_exit set_immediate_exit u8, immediate_exit, "`immediate_exit`: KVM_RUN completes what is pending and returns EINTR.";
    exit_reason set_exit_reason u32, exit_reason, "`exit_reason`.";
    ready_for_interrupt_injection set_ready_for_interrupt_injection u8, ready_for_interrupt_injection, "`ready_for_interrupt_injection`.";
    if_flag set_if_flag u8, if_flag, "`if_flag`: RFLAGS.IF.";
    flags set_flags u16, flags, "`flags` (KVM_RUN_X86_*).";
    cr8 set_cr8 u64, cr8, "`cr8`, in and out where the local APIC is the caller's.";
    apic_base set_apic_base u64, apic_base, "`apic_base`.";
    valid_regs set_valid_regs u64, kvm_valid_regs, "`kvm_valid_regs`: register sets to store at each exit.";
    dirty_regs set_dirty_regs u64, kvm_dirty_regs, "`kvm_dirty_regs`: register sets to load at the next entry.";
}

/// Offset of the exit's union in `struct kvm_run`.
pub const EXIT_UNION: usize = core::mem::offset_of!(kvm_run, __bindgen_anon_1);
/// Offset of `struct kvm_sync_regs` in `struct kvm_run`.
pub const SYNC_REGS: usize = core::mem::offset_of!(kvm_run, s);

/// Wakes a vCPU from outside. Async-signal-safe.
pub trait Kick: Send + Sync {
    /// KVM_RUN, if one is on, or else the next one, returns EINTR.
    fn kick(&self);
    /// Takes back a kick that no KVM_RUN has acted on.
    fn withdraw(&self) {}
}

/// Where [`Vcpu::run_bounded`] stops at the latest.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RunBound {
    /// After so many retired instructions; a repeated string instruction is one.
    Instructions(u64),
    /// After so many steps: an instruction, an iteration of a repeated one, or an exception raised and not delivered yet.
    /// Every boundary at which an event could be delivered can be reached in this way.
    Steps(u64),
}

/// A moment of counted time: what a VM that goes on from here must start with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CountedTime {
    /// Nanoseconds since the VM was made.
    pub ns: u64,
    /// The state of the generator of random numbers (RDRAND, RDSEED).
    pub random: u64,
}

/// Looking inside, for statistics and debuggers; a backend shows what it has.
pub trait Inspect {
    /// Counters by name.
    fn counters(&self) -> Vec<(&'static str, u64)> {
        Vec::new()
    }

    /// Instructions retired, where the backend counts them.
    fn instructions(&self) -> Option<u64> {
        None
    }

    /// Steps made under bounds in steps ([`RunBound::Steps`]).
    fn steps(&self) -> Option<u64> {
        None
    }

    /// The moment, where the VM lives in counted time.
    fn counted_time(&self) -> Option<CountedTime> {
        None
    }

    /// A text for people: registers, page tables, whatever is asked by name and known.
    fn dump(&self, what: &str) -> Option<String> {
        let _ = what;
        None
    }
}

/// One range of KVM_X86_SET_MSR_FILTER.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MsrRange {
    /// KVM_MSR_FILTER_READ and KVM_MSR_FILTER_WRITE: the accesses that it decides.
    pub flags: u32,
    /// The first MSR.
    pub base: u32,
    /// How many.
    pub count: u32,
    /// A bit an MSR: 1 lets the access through.
    pub bitmap: Vec<u8>,
}

/// A source of VMs: what `/dev/kvm` is (system ioctls).
pub trait Hypervisor: Send + Sync {
    /// The backend's name, for messages.
    fn name(&self) -> &'static str;
    /// KVM_CHECK_EXTENSION (4.4).
    fn check_extension(&self, cap: u32) -> i32;
    /// KVM_GET_SUPPORTED_CPUID (4.45): all rows.
    fn supported_cpuid(&self) -> Result<Vec<kvm_cpuid_entry2>>;
    /// KVM_GET_EMULATED_CPUID: all rows.
    fn emulated_cpuid(&self) -> Result<Vec<kvm_cpuid_entry2>>;
    /// KVM_GET_MSR_INDEX_LIST (4.3).
    fn msr_index_list(&self) -> Result<Vec<u32>>;
    /// KVM_GET_MSR_FEATURE_INDEX_LIST.
    fn msr_feature_index_list(&self) -> Result<Vec<u32>>;
    /// KVM_GET_MSRS on the system fd: how many were read.
    fn feature_msrs(&self, entries: &mut [kvm_msr_entry]) -> Result<usize>;
    /// KVM_X86_XCOMP_GUEST_SUPP: the bits of XCR0 that guests may have.
    fn guest_xcr0(&self) -> u64;
    /// KVM_X86_GET_MCE_CAP_SUPPORTED.
    fn mce_cap_supported(&self) -> Result<u64>;
    /// KVM_CREATE_VM (4.2).
    fn create_vm(&self, vm_type: u64) -> Result<Arc<dyn Vm>>;
}

/// A virtual machine (VM ioctls).
pub trait Vm: Send + Sync + Inspect {
    /// KVM_CHECK_EXTENSION on the VM.
    fn check_extension(&self, cap: u32) -> i32;
    /// KVM_ENABLE_CAP on the VM.
    fn enable_cap(&self, cap: &kvm_enable_cap) -> Result;
    /// KVM_CREATE_VCPU (4.6).
    fn create_vcpu(&self, id: u64) -> Result<Box<dyn Vcpu>>;
    /// KVM_SET_USER_MEMORY_REGION(2) (4.34). The caller answers for what lies at `userspace_addr`: the guest will
    /// read and write it.
    fn set_user_memory_region(&self, region: &kvm_userspace_memory_region2) -> Result;
    /// KVM_GET_DIRTY_LOG (4.7): the bitmap of a slot (its address space in bits 16 to 31), which is cleared.
    fn get_dirty_log(&self, slot: u32) -> Result<Vec<u64>>;
    /// Whether a vCPU was ever made: some settings come too late then.
    fn has_vcpus(&self) -> bool {
        false
    }
    /// The errors of KVM_CLEAR_DIRTY_LOG that are known before the bitmap is read.
    fn check_clear_dirty_log(&self, slot: u32, first_page: u64, pages: u64) -> Result;
    /// KVM_CLEAR_DIRTY_LOG: clears the bits of a part of the log that begins at `first_page`, a multiple of 64.
    fn clear_dirty_log(&self, slot: u32, first_page: u64, bits: &[u64]) -> Result;
    /// KVM_GET_STATS_FD: where the VM's counters ([`VM_STATS`](crate::stats::VM_STATS)) shall be shown from now on. Once.
    fn show_stats(&self, _block: Arc<dyn StatsBlock>) -> Result {
        Err(Errno::ENOTTY)
    }
    /// Bytes of each vCPU's dirty ring (KVM_CAP_DIRTY_LOG_RING); 0: there is none.
    fn dirty_ring_bytes(&self) -> usize {
        0
    }
    /// KVM_RESET_DIRTY_RINGS: how many entries were reset.
    fn reset_dirty_rings(&self) -> Result<u32> {
        Err(Errno::EINVAL)
    }
    /// The caller's mappings in this range have changed (a process-local MMU notifier).
    fn invalidate_hva(&self, start: u64, len: u64);
    /// KVM_SET_NR_MMU_PAGES.
    fn set_nr_mmu_pages(&self, pages: u64) -> Result;
    /// KVM_GET_NR_MMU_PAGES.
    fn get_nr_mmu_pages(&self) -> Result<u64>;
    /// KVM_SET_TSS_ADDR (4.35).
    fn set_tss_addr(&self, address: u64) -> Result;
    /// KVM_SET_IDENTITY_MAP_ADDR (4.39).
    fn set_identity_map_addr(&self, address: u64) -> Result;
    /// KVM_SET_BOOT_CPU_ID (4.40).
    fn set_boot_cpu_id(&self, id: u64) -> Result;
    /// KVM_CREATE_IRQCHIP (4.23).
    fn create_irqchip(&self) -> Result;
    /// KVM_GET_IRQCHIP (4.25).
    fn get_irqchip(&self, chip: &mut kvm_irqchip) -> Result;
    /// KVM_SET_IRQCHIP (4.26).
    fn set_irqchip(&self, chip: &kvm_irqchip) -> Result;
    /// KVM_IRQ_LINE (4.24): the status that KVM_IRQ_LINE_STATUS reports.
    fn irq_line(&self, gsi: u32, level: bool) -> Result<i32>;
    /// KVM_CREATE_PIT2.
    fn create_pit2(&self, config: &kvm_pit_config) -> Result;
    /// KVM_GET_PIT2.
    fn get_pit2(&self) -> Result<kvm_pit_state2>;
    /// KVM_SET_PIT2.
    fn set_pit2(&self, state: &kvm_pit_state2) -> Result;
    /// KVM_REINJECT_CONTROL.
    fn reinject_control(&self, reinject: bool) -> Result;
    /// KVM_SET_GSI_ROUTING.
    fn set_gsi_routing(&self, entries: &[kvm_irq_routing_entry]) -> Result;
    /// KVM_SIGNAL_MSI: positive if delivered, 0 if blocked.
    fn signal_msi(&self, msi: &kvm_msi) -> Result<i32>;
    /// KVM_IRQFD.
    fn irqfd(&self, args: &kvm_irqfd) -> Result;
    /// KVM_IOEVENTFD.
    fn ioeventfd(&self, args: &kvm_ioeventfd) -> Result;
    /// Where coalesced writes go: the front end's page, a `struct kvm_coalesced_mmio_ring`. Given once, with the VM.
    fn set_coalesced_ring(&self, ring: Arc<dyn RunPage>);
    /// KVM_(UN)REGISTER_COALESCED_MMIO.
    fn coalesced_mmio(&self, zone: &kvm_coalesced_mmio_zone, register: bool) -> Result;
    /// KVM_X86_SET_MSR_FILTER: flags (KVM_MSR_FILTER_DEFAULT_DENY) and ranges; no ranges allow everything.
    fn set_msr_filter(&self, _flags: u32, _ranges: Vec<MsrRange>) -> Result {
        Err(Errno::ENOTTY)
    }
    /// KVM_XEN_HVM_CONFIG. The pages at the blobs' addresses are read whenever the guest asks for one.
    fn xen_hvm_config(&self, _config: &kvm_xen_hvm_config) -> Result {
        Err(Errno::ENOTTY)
    }
    /// KVM_GET_CLOCK (4.27).
    fn get_clock(&self) -> Result<kvm_clock_data>;
    /// KVM_SET_CLOCK (4.28).
    fn set_clock(&self, data: &kvm_clock_data) -> Result;
    /// KVM_GET_TSC_KHZ on the VM.
    fn get_tsc_khz(&self) -> Result<u32>;
    /// KVM_SET_TSC_KHZ on the VM: for vCPUs made later.
    fn set_tsc_khz(&self, khz: u32) -> Result;
}

/// A virtual processor (vCPU ioctls). Calls come one at a time: the front end holds the vCPU's lock, as the kernel
/// does, for the length of KVM_RUN too.
pub trait Vcpu: Send + Inspect {
    /// What wakes it from another thread or a signal handler.
    fn kicker(&self) -> Arc<dyn Kick>;
    /// KVM_GET_STATS_FD: where the vCPU's counters ([`VCPU_STATS`](crate::stats::VCPU_STATS)) shall be shown from now on. Once.
    fn show_stats(&mut self, _block: Arc<dyn StatsBlock>) -> Result {
        Err(Errno::ENOTTY)
    }
    /// KVM_PRE_FAULT_MEMORY: brings in pages of guest memory from `gpa` on; how many bytes were done.
    fn pre_fault_memory(&mut self, _gpa: u64, _size: u64) -> Result<u64> {
        Err(Errno::EOPNOTSUPP)
    }
    /// The front end's dirty ring for it, before it runs.
    fn set_dirty_ring(&mut self, _ring: Arc<dyn DirtyRing>) {}
    /// KVM_RUN (4.9). `Ok`: the page has the exit. EINTR and EFAULT leave state and page consistent.
    fn run(&mut self, page: &Arc<dyn RunPage>) -> Result;
    /// KVM_RUN that is left with EINTR, as by a kick, once the bound is reached; a halted vCPU that nothing inside the VM
    /// will wake is left so at once. ENOTTY: the backend does not count.
    fn run_bounded(&mut self, _page: &Arc<dyn RunPage>, _bound: RunBound) -> Result {
        Err(Errno::ENOTTY)
    }
    /// KVM_ENABLE_CAP (4.36).
    fn enable_cap(&mut self, cap: &kvm_enable_cap) -> Result;
    /// KVM_GET_REGS (4.10).
    fn get_regs(&mut self) -> Result<kvm_regs>;
    /// KVM_SET_REGS (4.11).
    fn set_regs(&mut self, regs: &kvm_regs) -> Result;
    /// KVM_GET_SREGS (4.12).
    fn get_sregs(&mut self) -> Result<kvm_sregs>;
    /// KVM_SET_SREGS (4.13).
    fn set_sregs(&mut self, sregs: &kvm_sregs) -> Result;
    /// KVM_GET_SREGS2.
    fn get_sregs2(&mut self) -> Result<kvm_sregs2>;
    /// KVM_SET_SREGS2.
    fn set_sregs2(&mut self, sregs: &kvm_sregs2) -> Result;
    /// KVM_TRANSLATE (4.14).
    fn translate(&mut self, gva: u64) -> Result<kvm_translation>;
    /// KVM_INTERRUPT (4.15).
    fn interrupt(&mut self, vector: u32) -> Result;
    /// KVM_NMI.
    fn nmi(&mut self) -> Result;
    /// KVM_SMI.
    fn smi(&mut self) -> Result;
    /// KVM_GET_MSRS (4.17): how many were read before the first that cannot be.
    fn get_msrs(&mut self, entries: &mut [kvm_msr_entry]) -> Result<usize>;
    /// KVM_SET_MSRS (4.18): how many were written before the first that cannot be.
    fn set_msrs(&mut self, entries: &[kvm_msr_entry]) -> Result<usize>;
    /// KVM_SET_CPUID2 (4.19).
    fn set_cpuid2(&mut self, entries: &[kvm_cpuid_entry2]) -> Result;
    /// KVM_GET_CPUID2: all rows.
    fn get_cpuid2(&mut self) -> Result<Vec<kvm_cpuid_entry2>>;
    /// KVM_GET_FPU (4.21).
    fn get_fpu(&mut self) -> Result<kvm_fpu>;
    /// KVM_SET_FPU (4.22).
    fn set_fpu(&mut self, fpu: &kvm_fpu) -> Result;
    /// Bytes that KVM_GET_XSAVE2 returns (KVM_CAP_XSAVE2 on the VM).
    fn xsave_size(&self) -> usize;
    /// KVM_GET_XSAVE2 (and 4.41): exactly `xsave_size` bytes in the standard format.
    fn get_xsave(&mut self) -> Result<Vec<u8>>;
    /// KVM_SET_XSAVE (4.42): 4096 bytes or more.
    fn set_xsave(&mut self, area: &[u8]) -> Result;
    /// KVM_GET_XCRS (4.43).
    fn get_xcrs(&mut self) -> Result<kvm_xcrs>;
    /// KVM_SET_XCRS (4.44).
    fn set_xcrs(&mut self, xcrs: &kvm_xcrs) -> Result;
    /// KVM_GET_LAPIC.
    fn get_lapic(&mut self) -> Result<kvm_lapic_state>;
    /// KVM_SET_LAPIC.
    fn set_lapic(&mut self, lapic: &kvm_lapic_state) -> Result;
    /// KVM_GET_MP_STATE (4.37).
    fn get_mp_state(&mut self) -> Result<kvm_mp_state>;
    /// KVM_SET_MP_STATE (4.38).
    fn set_mp_state(&mut self, state: &kvm_mp_state) -> Result;
    /// KVM_GET_VCPU_EVENTS (4.29).
    fn get_vcpu_events(&mut self) -> Result<kvm_vcpu_events>;
    /// KVM_SET_VCPU_EVENTS (4.30).
    fn set_vcpu_events(&mut self, events: &kvm_vcpu_events) -> Result;
    /// KVM_GET_DEBUGREGS (4.32).
    fn get_debugregs(&mut self) -> Result<kvm_debugregs>;
    /// KVM_SET_DEBUGREGS (4.33).
    fn set_debugregs(&mut self, regs: &kvm_debugregs) -> Result;
    /// KVM_SET_GUEST_DEBUG.
    fn set_guest_debug(&mut self, debug: &kvm_guest_debug) -> Result;
    /// KVM_GET_TSC_KHZ.
    fn get_tsc_khz(&mut self) -> Result<u32>;
    /// KVM_SET_TSC_KHZ.
    fn set_tsc_khz(&mut self, khz: u32) -> Result;
    /// KVM_VCPU_TSC_OFFSET: the guest's TSC less the host's (scaled to the guest's frequency).
    fn tsc_offset(&mut self) -> Result<u64>;
    /// KVM_VCPU_TSC_OFFSET: sets it.
    fn set_tsc_offset(&mut self, offset: u64) -> Result;
    /// KVM_KVMCLOCK_CTRL.
    fn kvmclock_ctrl(&mut self) -> Result;
    /// KVM_TPR_ACCESS_REPORTING.
    fn tpr_access_reporting(&mut self, _ctl: &mut kvm_tpr_access_ctl) -> Result {
        Err(Errno::EINVAL)
    }
    /// KVM_SET_VAPIC_ADDR.
    fn set_vapic_addr(&mut self, _address: u64) -> Result {
        Err(Errno::EINVAL)
    }
    /// KVM_GET_NESTED_STATE: the state without its data, of which there is none.
    fn get_nested_state(&mut self) -> Result<kvm_nested_state_header> {
        Err(Errno::EINVAL)
    }
    /// KVM_SET_NESTED_STATE.
    fn set_nested_state(&mut self, _state: &kvm_nested_state_header) -> Result {
        Err(Errno::EINVAL)
    }
    /// KVM_X86_SET_MCE.
    fn set_mce(&mut self, _mce: &kvm_x86_mce) -> Result {
        Err(Errno::EINVAL)
    }
    /// KVM_X86_SETUP_MCE.
    fn setup_mce(&mut self, _mcg_cap: u64) -> Result {
        Err(Errno::EINVAL)
    }
}
