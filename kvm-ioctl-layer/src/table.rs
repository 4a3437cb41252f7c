//! THE ioctl table: one row an ioctl. Dispatch, size checks, the listing of `softkvm check` and the tracer's names come
//! from it.
//!
//! Sections are those of the API document of 2010 (`4.nn`), or "api.rst" where only today's has the ioctl. Where a row
//! and the document differ, `note` says what was chosen. The handlers are one line each: what an ioctl means is the
//! object's (`fd`), and behind it the backend's.

use crate::dispatch::{Answer, Call, cpuid_rows, errno, get_cpuid, get_msr_indices, get_msrs, ok, set_msrs};
use crate::{Kvm, VcpuFd, VmFd};
use kvm_api::errno::{Errno, Result};
use kvm_api::nr;
use kvm_api::uapi::*;

/// The kind of descriptor that takes an ioctl.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FdKind {
    /// `/dev/kvm`.
    System,
    /// A VM.
    Vm,
    /// A vCPU.
    Vcpu,
}

/// Who performs an ioctl.
#[derive(Clone, Copy)]
pub enum Handler {
    /// On the system object.
    System(fn(&Kvm, &Call<'_>) -> Result<Answer>),
    /// On a VM.
    Vm(fn(&VmFd, &Call<'_>) -> Result<Answer>),
    /// On a vCPU.
    Vcpu(fn(&VcpuFd, &Call<'_>) -> Result<Answer>),
    /// KVM_RUN: see [`VcpuFd::run`].
    Run,
    /// What an x86 kernel that lacks it answers.
    Errno(Errno),
    /// Not here yet; its capability is answered 0.
    Later,
}

/// How a row stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Status {
    /// Works.
    Implemented,
    /// Obsolete or another architecture's: answered as an x86 kernel does.
    Answered,
    /// Not here yet.
    Later,
}

/// A row.
pub struct Row {
    /// The ioctl's name.
    pub name: &'static str,
    /// Its number, which has the argument's size and direction.
    pub nr: u32,
    /// The descriptor that takes it.
    pub fd: FdKind,
    /// The capability that says it exists (0: basic).
    pub capability: u32,
    /// The section of the API document.
    pub section: &'static str,
    /// Who performs it.
    pub handler: Handler,
    /// What to know about it.
    pub note: &'static str,
}

impl Row {
    /// How the row stands: a row whose capability is answered 0 is not there, whatever handles it.
    pub fn status(&self) -> Status {
        let offered = self.capability == 0 || crate::caps::answer(self.capability) > 0;
        match self.handler {
            Handler::Later => Status::Later,
            _ if !offered => Status::Later,
            Handler::Errno(_) => Status::Answered,
            _ => Status::Implemented,
        }
    }
}

/// The row of a number on a kind of descriptor.
pub fn find(fd: FdKind, nr: u32) -> Option<&'static Row> {
    TABLE.iter().find(|r| r.fd == fd && r.nr == nr)
}

/// The name of a number, for traces.
pub fn name(nr: u32) -> Option<&'static str> {
    TABLE.iter().find(|r| r.nr == nr).map(|r| r.name)
}

/// `row!(NAME fd capability section handler note)`.
macro_rules! row {
    ($name:ident $fd:ident $cap:expr, $section:literal, $handler:expr, $note:literal) => {
        Row {
            name: stringify!($name),
            nr: nr::$name,
            fd: FdKind::$fd,
            capability: $cap,
            section: $section,
            handler: $handler,
            note: $note,
        }
    };
}

/// A handler that stores what a method of the object returns.
macro_rules! get {
    ($kind:ident $method:ident) => {
        Handler::$kind(|o, c| c.output(&o.$method().map_err(errno)?))
    };
}

/// A handler that passes the structure at the argument to a method.
macro_rules! set {
    ($kind:ident $method:ident $t:ty) => {
        Handler::$kind(|o, c| ok(o.$method(&c.input::<$t>()?)))
    };
}

fn dirty_log(vm: &VmFd, c: &Call<'_>) -> Result<Answer> {
    let args: kvm_dirty_log = c.input()?;
    let bits = vm.backend().get_dirty_log(args.slot)?;
    let bitmap: u64 = crate::user_mem::member(&args, 8);
    let bytes: Vec<u8> = bits.iter().flat_map(|w| w.to_le_bytes()).collect();
    c.memory.write(bitmap, &bytes)?;
    Ok(Answer::Value(0))
}

fn clear_dirty_log(vm: &VmFd, c: &Call<'_>) -> Result<Answer> {
    let args: kvm_clear_dirty_log = c.input()?;
    let bitmap: u64 = crate::user_mem::member(&args, 16);
    let (first, pages) = (args.first_page, u64::from(args.num_pages));
    vm.backend().check_clear_dirty_log(args.slot, first, pages)?;
    let mut bytes = vec![0; (pages as usize).div_ceil(8)];
    c.memory.read(bitmap, &mut bytes)?;
    bytes.resize(bytes.len().next_multiple_of(8), 0);
    let mut bits: Vec<u64> = bytes.as_chunks::<8>().0.iter().map(|b| u64::from_le_bytes(*b)).collect();
    if let Some(last) = bits.last_mut()
        && pages % 64 != 0
    {
        *last &= (1 << (pages % 64)) - 1;
    }
    vm.backend().clear_dirty_log(args.slot, first, &bits)?;
    Ok(Answer::Value(0))
}

fn irq_line(vm: &VmFd, c: &Call<'_>, status: bool) -> Result<Answer> {
    let args: kvm_irq_level = c.input()?;
    let gsi: u32 = crate::user_mem::member(&args, 0);
    let r = vm.backend().irq_line(gsi, args.level != 0)?;
    if status {
        c.memory.write(c.arg, &r.to_le_bytes())?;
    }
    Ok(Answer::Value(0))
}

fn gsi_routing(vm: &VmFd, c: &Call<'_>) -> Result<Answer> {
    let [count, flags]: [u32; 2] = [c.input()?, c.input_at(c.arg.wrapping_add(4))?];
    if flags != 0 || count as usize > emu_core::irqchip::routing::MAX_IRQ_ROUTES {
        return Err(Errno::EINVAL);
    }
    let entries = c.list::<kvm_irq_routing_entry>(8, count as usize)?;
    vm.backend().set_gsi_routing(&entries)?;
    Ok(Answer::Value(0))
}

/// KVM_DEV_TYPE_VFIO is the type that every x86 kernel has; there is nothing that could be told to it here.
fn create_device(_: &VmFd, c: &Call<'_>) -> Result<Answer> {
    let device: kvm_create_device = c.input()?;
    if device.type_ != kvm_device_type_KVM_DEV_TYPE_VFIO || device.flags & KVM_CREATE_DEVICE_TEST == 0 {
        return Err(Errno::ENODEV);
    }
    c.output(&device)
}

/// Too late comes before a bad pointer.
fn set_identity_map(vm: &VmFd, c: &Call<'_>) -> Result<Answer> {
    let address = c.input();
    if address.is_err() && vm.backend().has_vcpus() {
        return Err(Errno::EINVAL);
    }
    ok(vm.set_identity_map_address(address?))
}

fn get_irqchip(vm: &VmFd, c: &Call<'_>) -> Result<Answer> {
    let mut chip: kvm_irqchip = c.input()?;
    vm.get_irqchip(&mut chip).map_err(errno)?;
    c.output(&chip)
}

fn msr_filter(vm: &VmFd, c: &Call<'_>) -> Result<Answer> {
    let mut bytes = vec![0; nr::size_of_argument(nr::KVM_X86_SET_MSR_FILTER)];
    c.memory.read(c.arg, &mut bytes)?;
    let word = |at: usize| crate::user_mem::from_bytes::<u32>(&bytes[at..]);
    let mut ranges = Vec::new();
    // struct kvm_msr_filter: flags, padding, 16 ranges of { flags, nmsrs, base, padding, bitmap }.
    for range in bytes[8..].chunks_exact(24) {
        let field = |at: usize| crate::user_mem::from_bytes::<u32>(&range[at..]);
        let bitmap: u64 = crate::user_mem::from_bytes(&range[16..]);
        let msrs = field(4);
        if msrs == 0 {
            continue;
        }
        if msrs > KVM_MSR_FILTER_MAX_BITMAP_SIZE * 8 {
            return Err(Errno::EINVAL);
        }
        let mut bits = vec![0; (msrs as usize).div_ceil(8)];
        c.memory.read(bitmap, &mut bits)?;
        ranges.push(kvm_api::backend::MsrRange {
            flags: field(0),
            base: field(8),
            count: msrs,
            bitmap: bits,
        });
    }
    vm.backend().set_msr_filter(word(0), ranges)?;
    Ok(Answer::Value(0))
}

fn translate(vcpu: &VcpuFd, c: &Call<'_>) -> Result<Answer> {
    let t: kvm_translation = c.input()?;
    c.output(&vcpu.translate_gva(t.linear_address).map_err(errno)?)
}

fn set_cpuid(vcpu: &VcpuFd, c: &Call<'_>, old: bool) -> Result<Answer> {
    let rows = cpuid_rows(c, old)?;
    vcpu.with_backend(|v| v.set_cpuid2(&rows))?;
    Ok(Answer::Value(0))
}

fn get_xsave(vcpu: &VcpuFd, c: &Call<'_>, whole: bool) -> Result<Answer> {
    let area = vcpu.with_backend(|v| v.get_xsave())?;
    let len = if whole { area.len() } else { area.len().min(size_of::<kvm_xsave>()) };
    c.memory.write(c.arg, &area[..len])?;
    Ok(Answer::Value(0))
}

fn set_xsave(vcpu: &VcpuFd, c: &Call<'_>) -> Result<Answer> {
    let mut area = vec![0; vcpu.with_backend(|v| v.xsave_size())];
    c.memory.read(c.arg, &mut area)?;
    vcpu.with_backend(|v| v.set_xsave(&area))?;
    Ok(Answer::Value(0))
}

fn pre_fault(vcpu: &VcpuFd, c: &Call<'_>) -> Result<Answer> {
    // struct kvm_pre_fault_memory: gpa, size, flags, padding.
    let mut args = c.list::<u64>(0, 8)?;
    let done = match args[2] {
        0 => vcpu.pre_fault_memory(args[0], args[1]).map_err(errno),
        _ => Err(Errno::EINVAL),
    };
    args[0] = args[0].wrapping_add(*done.as_ref().unwrap_or(&0));
    args[1] = args[1].wrapping_sub(*done.as_ref().unwrap_or(&0));
    // What is left is told whatever the outcome.
    c.store_list(0, &args)?;
    done.map(|_| Answer::Value(0))
}

fn signal_mask(vcpu: &VcpuFd, c: &Call<'_>) -> Result<Answer> {
    if c.arg == 0 {
        vcpu.set_signal_mask(None);
        return Ok(Answer::Value(0));
    }
    // A kernel's sigset is 8 bytes.
    if c.input::<u32>()? != 8 {
        return Err(Errno::EINVAL);
    }
    vcpu.set_signal_mask(Some(c.input_at(c.arg.wrapping_add(4))?));
    Ok(Answer::Value(0))
}

fn tpr_reporting(vcpu: &VcpuFd, c: &Call<'_>) -> Result<Answer> {
    let mut ctl: kvm_tpr_access_ctl = c.input()?;
    vcpu.with_backend(|v| v.tpr_access_reporting(&mut ctl))?;
    c.output(&ctl)
}

/// The room that the caller has comes in the state's `size`, and the size goes out in it.
fn get_nested_state(vcpu: &VcpuFd, c: &Call<'_>) -> Result<Answer> {
    let size = c.arg.wrapping_add(core::mem::offset_of!(kvm_nested_state_header, size) as u64);
    let room: u32 = c.input_at(size)?;
    let state = vcpu.with_backend(|v| v.get_nested_state())?;
    if room < state.size {
        c.store(size, &state.size)?;
        return Err(Errno::E2BIG);
    }
    c.output(&state)
}

/// The attribute that `/dev/kvm` has.
fn system_attribute(a: &kvm_device_attr) -> Result {
    let known = (KVM_X86_GRP_SYSTEM, u64::from(KVM_X86_XCOMP_GUEST_SUPP));
    if (a.group, a.attr) == known { Ok(()) } else { Err(Errno::ENXIO) }
}

/// The attribute that a vCPU has.
fn vcpu_attribute(a: &kvm_device_attr) -> Result {
    let known = (KVM_VCPU_TSC_CTRL, u64::from(KVM_VCPU_TSC_OFFSET));
    if (a.group, a.attr) == known { Ok(()) } else { Err(Errno::ENXIO) }
}

const NO: Handler = Handler::Errno(Errno::ENOTTY);
const NO_VCPU: Handler = Handler::Errno(Errno::EINVAL);

/// The table.
pub static TABLE: &[Row] = &[
    row!(KVM_GET_API_VERSION System 0, "4.1", Handler::System(|_, c| match c.arg { 0 => Ok(Answer::Value(12)), _ => Err(Errno::EINVAL) }), ""),
    row!(KVM_CREATE_VM System 0, "4.2", Handler::System(|o, c| o.create_vm_with_type(c.arg).map(Answer::Vm).map_err(errno)), "mmap on the VM fd, which 2010's text describes, is ENODEV as in today's kernels"),
    row!(KVM_GET_MSR_INDEX_LIST System 0, "4.3", Handler::System(|o, c| get_msr_indices(c, &o.backend().msr_index_list()?)), "MCE banks are not listed"),
    row!(KVM_CHECK_EXTENSION System 0, "4.4", Handler::System(|o, c| Ok(Answer::Value(o.check_extension_raw(c.arg)))), ""),
    row!(KVM_GET_VCPU_MMAP_SIZE System 0, "4.5", Handler::System(|_, c| match c.arg { 0 => Ok(Answer::Value(kvm_api::backend::RUN_MMAP_SIZE as i32)), _ => Err(Errno::EINVAL) }), "kvm_run, PIO data, coalesced MMIO: 3 pages"),
    row!(KVM_GET_SUPPORTED_CPUID System KVM_CAP_EXT_CPUID, "4.45", Handler::System(|o, c| get_cpuid(c, o.backend().supported_cpuid()?)), "too much room is no error, as today; 2010's text says ENOMEM"),
    row!(KVM_GET_EMULATED_CPUID System KVM_CAP_EXT_EMUL_CPUID, "api.rst", Handler::System(|o, c| get_cpuid(c, o.backend().emulated_cpuid()?)), ""),
    row!(KVM_GET_MSR_FEATURE_INDEX_LIST System KVM_CAP_GET_MSR_FEATURES, "api.rst", Handler::System(|o, c| get_msr_indices(c, &o.backend().msr_feature_index_list()?)), ""),
    row!(KVM_GET_MSRS System KVM_CAP_GET_MSR_FEATURES, "4.17", Handler::System(|o, c| get_msrs(c, |e| o.backend().feature_msrs(e))), "feature MSRs"),
    row!(KVM_X86_GET_MCE_CAP_SUPPORTED System KVM_CAP_MCE, "api.rst", Handler::System(|o, c| c.output(&o.backend().mce_cap_supported()?)), ""),
    row!(KVM_HAS_DEVICE_ATTR System KVM_CAP_SYS_ATTRIBUTES, "api.rst", Handler::System(|_, c| system_attribute(&c.input()?).map(|()| Answer::Value(0))), ""),
    row!(KVM_GET_DEVICE_ATTR System KVM_CAP_SYS_ATTRIBUTES, "api.rst", Handler::System(|o, c| { let a: kvm_device_attr = c.input()?; system_attribute(&a)?; c.store(a.addr, &o.backend().guest_xcr0()) }), "KVM_X86_XCOMP_GUEST_SUPP"),
    row!(KVM_SET_MEMORY_REGION Vm 0, "4.6", NO, "removed"),
    row!(KVM_CREATE_VCPU Vm 0, "4.6", Handler::Vm(|o, c| o.create_vcpu(c.arg).map(Answer::Vcpu).map_err(errno)), ""),
    row!(KVM_GET_DIRTY_LOG Vm 0, "4.7", Handler::Vm(dirty_log), ""),
    row!(KVM_SET_MEMORY_ALIAS Vm 0, "4.8", NO, "removed"),
    row!(KVM_SET_NR_MMU_PAGES Vm KVM_CAP_MMU_SHADOW_CACHE_CONTROL, "api.rst", Handler::Vm(|o, c| ok(o.set_nr_mmu_pages(c.arg))), ""),
    row!(KVM_GET_NR_MMU_PAGES Vm KVM_CAP_MMU_SHADOW_CACHE_CONTROL, "api.rst", Handler::Vm(|o, _| o.get_nr_mmu_pages().map(|n| Answer::Value(n as i32)).map_err(errno)), ""),
    row!(KVM_SET_USER_MEMORY_REGION Vm KVM_CAP_USER_MEMORY, "4.34", Handler::Vm(|o, c| { let r: kvm_userspace_memory_region = c.input()?; o.backend().set_user_memory_region(&kvm_userspace_memory_region2 { slot: r.slot, flags: r.flags, guest_phys_addr: r.guest_phys_addr, memory_size: r.memory_size, userspace_addr: r.userspace_addr, ..Default::default() })?; Ok(Answer::Value(0)) }), "KVM_MEM_READONLY as today"),
    row!(KVM_SET_USER_MEMORY_REGION2 Vm KVM_CAP_USER_MEMORY2, "api.rst", Handler::Vm(|o, c| { o.backend().set_user_memory_region(&c.input()?)?; Ok(Answer::Value(0)) }), "guest_memfd is not offered"),
    row!(KVM_SET_TSS_ADDR Vm KVM_CAP_SET_TSS_ADDR, "4.35", Handler::Vm(|o, c| ok(o.set_tss_address(c.arg as usize))), "nothing is put there"),
    row!(KVM_SET_IDENTITY_MAP_ADDR Vm KVM_CAP_SET_IDENTITY_MAP_ADDR, "4.39", Handler::Vm(set_identity_map), "by pointer, as the number says; nothing is put there"),
    row!(KVM_SET_BOOT_CPU_ID Vm KVM_CAP_SET_BOOT_CPU_ID, "4.40", Handler::Vm(|o, c| ok(o.set_boot_cpu_id(c.arg))), ""),
    row!(KVM_CREATE_IRQCHIP Vm KVM_CAP_IRQCHIP, "4.23", Handler::Vm(|o, _| ok(o.create_irq_chip())), ""),
    row!(KVM_IRQ_LINE Vm KVM_CAP_IRQCHIP, "4.24", Handler::Vm(|o, c| irq_line(o, c, false)), ""),
    row!(KVM_IRQ_LINE_STATUS Vm KVM_CAP_IRQ_INJECT_STATUS, "4.24", Handler::Vm(|o, c| irq_line(o, c, true)), ""),
    row!(KVM_GET_IRQCHIP Vm KVM_CAP_IRQCHIP, "4.25", Handler::Vm(get_irqchip), ""),
    row!(KVM_SET_IRQCHIP Vm KVM_CAP_IRQCHIP, "4.26", set!(Vm set_irqchip kvm_irqchip), ""),
    row!(KVM_CREATE_PIT Vm KVM_CAP_PIT, "api.rst", Handler::Vm(|o, _| ok(o.create_pit2(kvm_pit_config { flags: KVM_PIT_SPEAKER_DUMMY, ..Default::default() }))), ""),
    row!(KVM_CREATE_PIT2 Vm KVM_CAP_PIT2, "api.rst", Handler::Vm(|o, c| ok(o.create_pit2(c.input()?))), ""),
    row!(KVM_GET_PIT Vm KVM_CAP_PIT, "api.rst", Handler::Vm(|o, c| { c.input::<kvm_pit_state>()?; let s = o.get_pit2().map_err(errno)?; c.output(&kvm_pit_state { channels: s.channels }) }), ""),
    row!(KVM_SET_PIT Vm KVM_CAP_PIT, "api.rst", Handler::Vm(|o, c| { let s: kvm_pit_state = c.input()?; ok(o.set_pit2(&kvm_pit_state2 { channels: s.channels, ..Default::default() })) }), ""),
    row!(KVM_GET_PIT2 Vm KVM_CAP_PIT_STATE2, "api.rst", get!(Vm get_pit2), ""),
    row!(KVM_SET_PIT2 Vm KVM_CAP_PIT_STATE2, "api.rst", set!(Vm set_pit2 kvm_pit_state2), ""),
    row!(KVM_REINJECT_CONTROL Vm KVM_CAP_REINJECT_CONTROL, "api.rst", Handler::Vm(|o, c| { let b: [u8; 1] = [c.input()?]; ok(o.reinject_control(b[0] != 0)) }), ""),
    row!(KVM_REGISTER_COALESCED_MMIO Vm KVM_CAP_COALESCED_MMIO, "api.rst", Handler::Vm(|o, c| { o.backend().coalesced_mmio(&c.input()?, true)?; Ok(Answer::Value(0)) }), "memory and ports"),
    row!(KVM_UNREGISTER_COALESCED_MMIO Vm KVM_CAP_COALESCED_MMIO, "api.rst", Handler::Vm(|o, c| { o.backend().coalesced_mmio(&c.input()?, false)?; Ok(Answer::Value(0)) }), "memory and ports"),
    row!(KVM_SET_GSI_ROUTING Vm KVM_CAP_IRQ_ROUTING, "api.rst", Handler::Vm(gsi_routing), "routes to pins and messages"),
    row!(KVM_IRQFD Vm KVM_CAP_IRQFD, "api.rst", Handler::Vm(|o, c| { o.backend().irqfd(&c.input()?)?; Ok(Answer::Value(0)) }), "with resampling"),
    row!(KVM_IOEVENTFD Vm KVM_CAP_IOEVENTFD, "api.rst", Handler::Vm(|o, c| { o.backend().ioeventfd(&c.input()?)?; Ok(Answer::Value(0)) }), ""),
    row!(KVM_SIGNAL_MSI Vm KVM_CAP_SIGNAL_MSI, "api.rst", Handler::Vm(|o, c| o.signal_msi(c.input()?).map(Answer::Value).map_err(errno)), ""),
    row!(KVM_XEN_HVM_CONFIG Vm KVM_CAP_XEN_HVM, "4.27", Handler::Vm(|o, c| { o.backend().xen_hvm_config(&c.input()?)?; Ok(Answer::Value(0)) }), "the MSR and intercepted hypercalls"),
    row!(KVM_GET_CLOCK Vm KVM_CAP_ADJUST_CLOCK, "4.27", get!(Vm get_clock), "with today's realtime and host_tsc"),
    row!(KVM_SET_CLOCK Vm KVM_CAP_ADJUST_CLOCK, "4.28", set!(Vm set_clock kvm_clock_data), ""),
    row!(KVM_GET_TSC_KHZ Vm KVM_CAP_VM_TSC_CONTROL, "api.rst", Handler::Vm(|o, _| o.get_tsc_khz().map(|k| Answer::Value(k as i32)).map_err(errno)), ""),
    row!(KVM_SET_TSC_KHZ Vm KVM_CAP_VM_TSC_CONTROL, "api.rst", Handler::Vm(|o, c| ok(o.set_tsc_khz(c.arg as u32))), ""),
    row!(KVM_ENABLE_CAP Vm KVM_CAP_ENABLE_CAP_VM, "4.36", set!(Vm enable_cap kvm_enable_cap), ""),
    row!(KVM_CHECK_EXTENSION Vm KVM_CAP_CHECK_EXTENSION_VM, "4.4", Handler::Vm(|o, c| Ok(Answer::Value(o.check_extension_raw(c.arg)))), ""),
    row!(KVM_X86_SET_MSR_FILTER Vm KVM_CAP_X86_MSR_FILTER, "api.rst", Handler::Vm(msr_filter), ""),
    row!(KVM_CLEAR_DIRTY_LOG Vm KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, "api.rst", Handler::Vm(clear_dirty_log), ""),
    row!(KVM_RESET_DIRTY_RINGS Vm KVM_CAP_DIRTY_LOG_RING, "api.rst", Handler::Vm(|o, _| o.reset_dirty_rings().map(|n| Answer::Value(n as i32)).map_err(errno)), "returns the count"),
    row!(KVM_SET_PMU_EVENT_FILTER Vm KVM_CAP_PMU_EVENT_FILTER, "api.rst", NO, "no PMU"),
    row!(KVM_MEMORY_ENCRYPT_OP Vm 0, "api.rst", NO, "no memory encryption"),
    row!(KVM_MEMORY_ENCRYPT_OP Vcpu 0, "api.rst", NO, "no memory encryption"),
    row!(KVM_SET_MEMORY_ATTRIBUTES Vm KVM_CAP_MEMORY_ATTRIBUTES, "api.rst", NO, "no private memory"),
    row!(KVM_CREATE_GUEST_MEMFD Vm KVM_CAP_GUEST_MEMFD, "api.rst", NO, "no private memory"),
    row!(KVM_CREATE_DEVICE Vm 0, "api.rst", Handler::Vm(create_device), "KVM_DEV_TYPE_VFIO is known to KVM_CREATE_DEVICE_TEST; KVM_CAP_DEVICE_CTRL is 0"),
    row!(KVM_GET_STATS_FD Vm KVM_CAP_BINARY_STATS_FD, "api.rst", Handler::Vm(|o, _| o.get_stats_fd().map(Answer::File).map_err(errno)), ""),
    row!(KVM_HAS_DEVICE_ATTR Vm KVM_CAP_VM_ATTRIBUTES, "api.rst", NO, "x86 has no attributes of a VM"),
    row!(KVM_SET_DEVICE_ATTR Vm KVM_CAP_VM_ATTRIBUTES, "api.rst", NO, "x86 has no attributes of a VM"),
    row!(KVM_RUN Vcpu 0, "4.9", Handler::Run, "any thread may call it, as today; 2010's text asks for the creator's"),
    row!(KVM_GET_REGS Vcpu 0, "4.10", get!(Vcpu get_regs), ""),
    row!(KVM_SET_REGS Vcpu 0, "4.11", set!(Vcpu set_regs kvm_regs), ""),
    row!(KVM_GET_SREGS Vcpu 0, "4.12", get!(Vcpu get_sregs), ""),
    row!(KVM_SET_SREGS Vcpu 0, "4.13", set!(Vcpu set_sregs kvm_sregs), ""),
    row!(KVM_GET_SREGS2 Vcpu KVM_CAP_SREGS2, "api.rst", get!(Vcpu get_sregs2), ""),
    row!(KVM_SET_SREGS2 Vcpu KVM_CAP_SREGS2, "api.rst", set!(Vcpu set_sregs2 kvm_sregs2), ""),
    row!(KVM_TRANSLATE Vcpu 0, "4.14", Handler::Vcpu(translate), ""),
    row!(KVM_INTERRUPT Vcpu 0, "4.15", Handler::Vcpu(|o, c| ok(o.interrupt(c.input::<kvm_interrupt>()?.irq))), ""),
    row!(KVM_DEBUG_GUEST Vcpu 0, "4.16", NO_VCPU, "removed"),
    row!(KVM_GET_MSRS Vcpu 0, "4.17", Handler::Vcpu(|o, c| get_msrs(c, |e| o.with_backend(|v| v.get_msrs(e)))), "returns the count"),
    row!(KVM_SET_MSRS Vcpu 0, "4.18", Handler::Vcpu(|o, c| set_msrs(c, |e| o.with_backend(|v| v.set_msrs(e)))), "returns the count"),
    row!(KVM_SET_CPUID Vcpu 0, "4.19", Handler::Vcpu(|o, c| set_cpuid(o, c, true)), ""),
    row!(KVM_SET_CPUID2 Vcpu KVM_CAP_EXT_CPUID, "4.19", Handler::Vcpu(|o, c| set_cpuid(o, c, false)), ""),
    row!(KVM_GET_CPUID2 Vcpu KVM_CAP_EXT_CPUID, "api.rst", Handler::Vcpu(|o, c| get_cpuid(c, o.with_backend(|v| v.get_cpuid2())?)), ""),
    row!(KVM_SET_SIGNAL_MASK Vcpu 0, "4.20", Handler::Vcpu(signal_mask), "kept for the library that interposes signals"),
    row!(KVM_GET_FPU Vcpu 0, "4.21", get!(Vcpu get_fpu), ""),
    row!(KVM_SET_FPU Vcpu 0, "4.22", set!(Vcpu set_fpu kvm_fpu), ""),
    row!(KVM_GET_LAPIC Vcpu KVM_CAP_IRQCHIP, "api.rst", get!(Vcpu get_lapic), ""),
    row!(KVM_SET_LAPIC Vcpu KVM_CAP_IRQCHIP, "api.rst", Handler::Vcpu(|o, c| { o.get_lapic().map_err(errno)?; ok(o.set_lapic(&c.input()?)) }), ""),
    row!(KVM_TPR_ACCESS_REPORTING Vcpu KVM_CAP_VAPIC, "api.rst", Handler::Vcpu(tpr_reporting), "of accesses through the APIC's page, not by MSR"),
    row!(KVM_SET_VAPIC_ADDR Vcpu KVM_CAP_VAPIC, "api.rst", Handler::Vcpu(|o, c| { o.get_lapic().map_err(errno)?; let a: kvm_vapic_addr = c.input()?; o.with_backend(|v| v.set_vapic_addr(a.vapic_addr))?; Ok(Answer::Value(0)) }), ""),
    row!(KVM_GET_VCPU_EVENTS Vcpu KVM_CAP_VCPU_EVENTS, "4.29", get!(Vcpu get_vcpu_events), "a vcpu ioctl; 2010's text says vm"),
    row!(KVM_SET_VCPU_EVENTS Vcpu KVM_CAP_VCPU_EVENTS, "4.30", set!(Vcpu set_vcpu_events kvm_vcpu_events), "a vcpu ioctl; 2010's text says vm"),
    row!(KVM_GET_DEBUGREGS Vcpu KVM_CAP_DEBUGREGS, "4.32", get!(Vcpu get_debug_regs), "a vcpu ioctl; 2010's text says vm"),
    row!(KVM_SET_DEBUGREGS Vcpu KVM_CAP_DEBUGREGS, "4.33", set!(Vcpu set_debug_regs kvm_debugregs), "a vcpu ioctl; 2010's text says vm"),
    row!(KVM_ENABLE_CAP Vcpu KVM_CAP_ENABLE_CAP, "4.36", set!(Vcpu enable_cap kvm_enable_cap), "x86 too, as today"),
    row!(KVM_GET_MP_STATE Vcpu KVM_CAP_MP_STATE, "4.37", get!(Vcpu get_mp_state), ""),
    row!(KVM_SET_MP_STATE Vcpu KVM_CAP_MP_STATE, "4.38", Handler::Vcpu(|o, c| ok(o.set_mp_state(c.input()?))), ""),
    row!(KVM_GET_XSAVE Vcpu KVM_CAP_XSAVE, "4.41", Handler::Vcpu(|o, c| get_xsave(o, c, false)), ""),
    row!(KVM_GET_XSAVE2 Vcpu KVM_CAP_XSAVE2, "api.rst", Handler::Vcpu(|o, c| get_xsave(o, c, true)), ""),
    row!(KVM_SET_XSAVE Vcpu KVM_CAP_XSAVE, "4.42", Handler::Vcpu(set_xsave), "reads as much as KVM_CAP_XSAVE2 says"),
    row!(KVM_GET_XCRS Vcpu KVM_CAP_XCRS, "4.43", get!(Vcpu get_xcrs), ""),
    row!(KVM_SET_XCRS Vcpu KVM_CAP_XCRS, "4.44", set!(Vcpu set_xcrs kvm_xcrs), ""),
    row!(KVM_NMI Vcpu KVM_CAP_USER_NMI, "api.rst", Handler::Vcpu(|o, _| ok(o.nmi())), ""),
    row!(KVM_SMI Vcpu KVM_CAP_X86_SMM, "api.rst", Handler::Vcpu(|o, _| ok(o.smi())), ""),
    row!(KVM_SET_GUEST_DEBUG Vcpu KVM_CAP_SET_GUEST_DEBUG, "api.rst", set!(Vcpu set_guest_debug kvm_guest_debug), ""),
    row!(KVM_SET_TSC_KHZ Vcpu KVM_CAP_TSC_CONTROL, "api.rst", Handler::Vcpu(|o, c| ok(o.set_tsc_khz(c.arg as u32))), ""),
    row!(KVM_GET_TSC_KHZ Vcpu KVM_CAP_GET_TSC_KHZ, "api.rst", Handler::Vcpu(|o, _| o.get_tsc_khz().map(|k| Answer::Value(k as i32)).map_err(errno)), ""),
    row!(KVM_KVMCLOCK_CTRL Vcpu KVM_CAP_KVMCLOCK_CTRL, "api.rst", Handler::Vcpu(|o, _| ok(o.kvmclock_ctrl())), ""),
    row!(KVM_X86_SETUP_MCE Vcpu KVM_CAP_MCE, "api.rst", Handler::Vcpu(|o, c| { let cap: u64 = c.input()?; o.with_backend(|v| v.setup_mce(cap))?; Ok(Answer::Value(0)) }), ""),
    row!(KVM_X86_SET_MCE Vcpu KVM_CAP_MCE, "api.rst", Handler::Vcpu(|o, c| { let mce: kvm_x86_mce = c.input()?; o.with_backend(|v| v.set_mce(&mce))?; Ok(Answer::Value(0)) }), ""),
    row!(KVM_GET_ONE_REG Vcpu KVM_CAP_ONE_REG, "api.rst", Handler::Later, ""),
    row!(KVM_SET_ONE_REG Vcpu KVM_CAP_ONE_REG, "api.rst", Handler::Later, ""),
    row!(KVM_HAS_DEVICE_ATTR Vcpu KVM_CAP_VCPU_ATTRIBUTES, "api.rst", Handler::Vcpu(|_, c| vcpu_attribute(&c.input()?).map(|()| Answer::Value(0))), ""),
    row!(KVM_GET_DEVICE_ATTR Vcpu KVM_CAP_VCPU_ATTRIBUTES, "api.rst", Handler::Vcpu(|o, c| { let a: kvm_device_attr = c.input()?; vcpu_attribute(&a)?; c.store(a.addr, &o.with_backend(|v| v.tsc_offset())?) }), "KVM_VCPU_TSC_OFFSET"),
    row!(KVM_SET_DEVICE_ATTR Vcpu KVM_CAP_VCPU_ATTRIBUTES, "api.rst", Handler::Vcpu(|o, c| { let a: kvm_device_attr = c.input()?; vcpu_attribute(&a)?; let offset = c.input_at(a.addr)?; o.with_backend(|v| v.set_tsc_offset(offset))?; Ok(Answer::Value(0)) }), "KVM_VCPU_TSC_OFFSET"),
    row!(KVM_GET_STATS_FD Vcpu KVM_CAP_BINARY_STATS_FD, "api.rst", Handler::Vcpu(|o, _| o.get_stats_fd().map(Answer::File).map_err(errno)), ""),
    row!(KVM_PRE_FAULT_MEMORY Vcpu KVM_CAP_PRE_FAULT_MEMORY, "api.rst", Handler::Vcpu(pre_fault), "brings the caller's memory in; nothing is entered into shadow tables"),
    row!(KVM_GET_NESTED_STATE Vcpu 0, "api.rst", Handler::Vcpu(get_nested_state), "always the empty state: KVM_CAP_NESTED_STATE is 0"),
    row!(KVM_SET_NESTED_STATE Vcpu 0, "api.rst", Handler::Vcpu(|o, c| { let s = c.input()?; o.with_backend(|v| v.set_nested_state(&s))?; Ok(Answer::Value(0)) }), "the empty state only"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_number_has_a_row_and_no_row_two() {
        for (name, number) in nr::ALL {
            let rows: Vec<_> = TABLE.iter().filter(|r| r.nr == *number).collect();
            assert!(!rows.is_empty(), "{name}");
            for (i, a) in rows.iter().enumerate() {
                assert!(rows[i + 1..].iter().all(|b| b.fd != a.fd), "{name} twice");
            }
        }
    }

    #[test]
    fn the_handler_fits_the_descriptor() {
        for r in TABLE {
            let fits = match r.handler {
                Handler::System(_) => r.fd == FdKind::System,
                Handler::Vm(_) => r.fd == FdKind::Vm,
                Handler::Vcpu(_) | Handler::Run => r.fd == FdKind::Vcpu,
                Handler::Errno(_) | Handler::Later => true,
            };
            assert!(fits, "{}", r.name);
        }
    }

    /// KVM_CHECK_EXTENSION tells the truth: what is missing is answered 0, and no row behind an answered capability
    /// is missing.
    #[test]
    fn capabilities_and_rows_agree() {
        for r in TABLE.iter().filter(|r| r.capability != 0) {
            let offered = crate::caps::answer(r.capability) > 0;
            if r.status() == Status::Later {
                assert!(!offered, "{} is missing and its capability is offered", r.name);
            }
        }
    }

    /// Sections 4.1 to 4.45 of the API document are all there.
    #[test]
    fn every_section_of_the_document_has_a_row() {
        for n in (1..=45).filter(|n| *n != 31) {
            let section = format!("4.{n}");
            assert!(TABLE.iter().any(|r| r.section == section), "{section}");
        }
    }
}
