//! The review checklist of KVM's documentation (review-checklist.txt), as far as a program can check it. By its numbers:
//! Test-only: `unsafe` gives memory to guests.
//!
//! - 3, a new API is documented and discoverable: [`rows_are_documented`], [`rows_are_discoverable`];
//! - 4, new state is saved and restored: `state_tests`, and [`pv_state_is_saved`];
//! - 5, new features are off until user space asks: [`features_are_off_by_default`];
//! - 6, CPU features are in KVM_GET_SUPPORTED_CPUID: `emu-core`'s `cpuid::two_way`, and [`pv_features_are_in_cpuid`];
//! - 8, 9, vendors: the MSR and CPUID tables are tested for both in `emu-core`;
//! - 10, interfaces are 64-bit clean: [`structures_are_64_bit_clean`];
//! - 11, what guests see is documented: docs/cpuid.md is tested against the table;
//! - 12, robust against reset and kexec: `emu-core`'s `pv::tests::nothing_is_written_after_a_reset`, and
//!   [`a_reset_by_ioctls_unshares_memory`].
//!
//! 1, 2 and 7 are about patches.

use crate::table::{FdKind, Status, TABLE};
use crate::{Kvm, VcpuFd, VmFd, caps};
use kvm_api::nr;
use kvm_api::uapi::*;
use memmap2::MmapRaw;

/// KVM_EXIT_HYPERCALL's bit of KVM_HC_MAP_GPA_RANGE.
const MAP_GPA: u64 = 1 << 12;

#[test]
fn rows_are_documented() {
    for row in TABLE {
        let number = row.section.strip_prefix("4.").is_some_and(|n| n.parse::<u8>().is_ok());
        assert!(number || row.section == "api.rst", "{}: {}", row.name, row.section);
    }
}

/// What has no capability of its own is the API's first version, which every kernel has (KVM_GET_API_VERSION is 12),
/// or is answered by an errno that says that it is absent.
#[test]
fn rows_are_discoverable() {
    const BASIC: [&str; 17] = [
        "KVM_GET_API_VERSION",
        "KVM_CREATE_VM",
        "KVM_GET_MSR_INDEX_LIST",
        "KVM_CHECK_EXTENSION",
        "KVM_GET_VCPU_MMAP_SIZE",
        "KVM_CREATE_VCPU",
        "KVM_GET_DIRTY_LOG",
        "KVM_RUN",
        "KVM_GET_REGS",
        "KVM_SET_REGS",
        "KVM_GET_SREGS",
        "KVM_SET_SREGS",
        "KVM_TRANSLATE",
        "KVM_INTERRUPT",
        "KVM_GET_MSRS",
        "KVM_SET_MSRS",
        "KVM_SET_CPUID",
    ];
    const BASIC_TOO: [&str; 3] = ["KVM_SET_SIGNAL_MASK", "KVM_GET_FPU", "KVM_SET_FPU"];
    // KVM_CAP_IRQCHIP is number 0.
    assert_eq!(KVM_CAP_IRQCHIP, 0);
    const IRQCHIP: [&str; 6] = [
        "KVM_CREATE_IRQCHIP",
        "KVM_IRQ_LINE",
        "KVM_GET_IRQCHIP",
        "KVM_SET_IRQCHIP",
        "KVM_GET_LAPIC",
        "KVM_SET_LAPIC",
    ];
    // KVM_CAP_NESTED_STATE is 0: there are no nested guests, and the state says so.
    // Nor are there device types to be made, KVM_CAP_DEVICE_CTRL is 0 too.
    const NOTHING: [&str; 3] = ["KVM_GET_NESTED_STATE", "KVM_SET_NESTED_STATE", "KVM_CREATE_DEVICE"];
    for row in TABLE.iter().filter(|r| r.status() == Status::Implemented) {
        let basic = [&BASIC[..], &BASIC_TOO, &IRQCHIP, &NOTHING].iter().any(|l| l.contains(&row.name));
        assert!(row.capability != 0 || basic, "{} has no capability", row.name);
        assert!(row.capability == 0 || caps::answer(row.capability) > 0, "{}", row.name);
    }
}

/// Sizes are multiples of 4, and of 8 where a structure has a 64-bit member; the exceptions are older than the rule.
#[test]
fn structures_are_64_bit_clean() {
    let exceptions = ["KVM_REINJECT_CONTROL"];
    for row in TABLE {
        let size = nr::size_of_argument(row.nr);
        assert!(size.is_multiple_of(4) || exceptions.contains(&row.name), "{}: {size} bytes", row.name);
    }
}

struct Machine {
    vm: VmFd,
    vcpu: VcpuFd,
    ram: MmapRaw,
}

const RAM: usize = 0x10000;
const CODE: usize = 0x1000;

/// A VM with a local APIC and 64 KiB, whose vCPU runs `code` in real mode.
fn machine(code: &[u8]) -> Machine {
    let vm = Kvm::new().unwrap().create_vm().unwrap();
    vm.create_irq_chip().unwrap();
    machine_in(vm, code)
}

#[allow(unsafe_code)]
fn machine_in(vm: VmFd, code: &[u8]) -> Machine {
    let ram = MmapRaw::from(memmap2::MmapMut::map_anon(RAM).unwrap());
    let region = kvm_userspace_memory_region {
        slot: 0,
        flags: 0,
        guest_phys_addr: 0,
        memory_size: RAM as u64,
        userspace_addr: ram.as_mut_ptr() as u64,
    };
    // SAFETY: the mapping is the guest's and lives as long as it; nothing else uses it while a vCPU runs.
    unsafe {
        vm.set_user_memory_region(region).unwrap();
        core::ptr::copy_nonoverlapping(code.as_ptr(), ram.as_mut_ptr().add(CODE), code.len());
    }
    let vcpu = vm.create_vcpu(0).unwrap();
    let mut s = vcpu.get_sregs().unwrap();
    s.cs.base = 0;
    s.cs.selector = 0;
    vcpu.set_sregs(&s).unwrap();
    vcpu.set_regs(&kvm_regs { rip: CODE as u64, rsp: 0x8000, rflags: 2, ..Default::default() }).unwrap();
    Machine { vm, vcpu, ram }
}

impl Machine {
    fn set_msr(&self, index: u32, data: u64) -> bool {
        let entry = kvm_msr_entry { index, data, ..Default::default() };
        self.vcpu.set_msrs(&Msrs::from_entries(&[entry]).unwrap()).unwrap() == 1
    }

    fn msr(&self, index: u32) -> Option<u64> {
        let mut list = Msrs::from_entries(&[kvm_msr_entry { index, ..Default::default() }]).unwrap();
        (self.vcpu.get_msrs(&mut list).unwrap() == 1).then(|| list.as_slice()[0].data)
    }

    /// Runs to the next exit; its reason.
    fn run(&mut self) -> u32 {
        let _ = self.vcpu.run();
        self.vcpu.get_kvm_run().exit_reason
    }

    #[allow(unsafe_code)]
    fn bytes(&self) -> Vec<u8> {
        // SAFETY: inside the mapping, and no vCPU runs.
        unsafe { core::slice::from_raw_parts(self.ram.as_ptr(), RAM).to_vec() }
    }
}

fn enable(cap: u32, args: [u64; 4]) -> kvm_enable_cap {
    kvm_enable_cap { cap, args, ..Default::default() }
}

/// Whether a guest's `RDMSR; HLT`-like access ends as #GP in real mode: without an IDT entry, a jump to 0:0. The handler at
/// 0 is OUT 0, so the exit tells.
const OUT: u8 = 0xe6;

/// Guest code: MOV ECX, index; RDMSR; HLT.
fn rdmsr(index: u32) -> Vec<u8> {
    let i = index.to_le_bytes();
    vec![0x66, 0xb9, i[0], i[1], i[2], i[3], 0x0f, 0x32, OUT, 1]
}

/// A feature that KVM_ENABLE_CAP switches on, and how a VM shows that nobody has.
struct Feature {
    cap: u32,
    off: fn() -> bool,
}

/// MSR accesses that no register takes are the guest's #GP.
fn refused_msr_is_the_guests() -> bool {
    machine(&rdmsr(0x1234_5678)).run() != KVM_EXIT_X86_RDMSR
}

fn pv_msr_is_there() -> bool {
    let m = machine(&[0xf4]);
    m.set_msr(0x4b56_4d03, 0x2001) && m.msr(0x4b56_4d03) == Some(0x2001)
}

fn hypercall_is_not_user_spaces() -> bool {
    // MOV EAX,12; MOV EBX,1000h; MOV ECX,1; VMCALL or VMMCALL; OUT.
    let mut code = vec![0x66, 0xb8, 12, 0, 0, 0, 0x66, 0xbb, 0, 0x10, 0, 0, 0x66, 0xb9, 1, 0, 0, 0];
    code.extend([0x0f, 0x01, 0xc1, OUT, 1]);
    let mut m = machine(&code);
    m.run() == KVM_EXIT_IO && m.vcpu.get_regs().unwrap().rax as u32 == -1000i32 as u32
}

fn plain_events() -> bool {
    let events = machine(&[0xf4]).vcpu.get_vcpu_events().unwrap();
    events.flags & (KVM_VCPUEVENT_VALID_PAYLOAD | KVM_VCPUEVENT_VALID_TRIPLE_FAULT) == 0
}

fn platform_info_is_shown() -> bool {
    machine(&rdmsr(0xce)).run() == KVM_EXIT_IO
}

fn no_irqchip() -> bool {
    let vm = Kvm::new().unwrap().create_vm().unwrap();
    vm.create_vcpu(0).unwrap().get_lapic().is_err()
}

fn apic_ids_have_eight_bits() -> bool {
    let vm = Kvm::new().unwrap().create_vm().unwrap();
    vm.create_irq_chip().unwrap();
    let _ = vm.create_vcpu(0).unwrap();
    let vcpu = vm.create_vcpu(5).unwrap();
    let mut s = vcpu.get_sregs().unwrap();
    // x2APIC mode needs CPUID, which a vCPU without a table lacks: the legacy format is what is seen.
    s.apic_base |= 1 << 11;
    vcpu.set_sregs(&s).unwrap();
    vcpu.get_lapic().unwrap().regs[0x23] == 5
}

fn vcpu_ids_go_to_the_maximum() -> bool {
    Kvm::new().unwrap().create_vm().unwrap().create_vcpu(caps::MAX_VCPU_ID - 1).is_ok()
}

fn dirty_log_is_cleared_by_reading() -> bool {
    // MOV [5000h],AL; OUT.
    let mut m = machine(&[0xa2, 0, 0x50, OUT, 1]);
    log(&m);
    m.run();
    let page = |m: &Machine| m.vm.get_dirty_log(0, RAM).unwrap()[0] >> 5 & 1;
    (page(&m), page(&m)) == (1, 0)
}

#[allow(unsafe_code)]
fn log(m: &Machine) {
    let region = kvm_userspace_memory_region {
        slot: 0,
        flags: KVM_MEM_LOG_DIRTY_PAGES,
        guest_phys_addr: 0,
        memory_size: RAM as u64,
        userspace_addr: m.ram.as_mut_ptr() as u64,
    };
    // SAFETY: as in `machine_in`.
    unsafe { m.vm.set_user_memory_region(region).unwrap() }
}

/// The APIC timer counts nanoseconds: 1,000,000 cycles divided by 128 take 128 ms, so that the count is not far from its
/// start right after it was set.
fn apic_bus_is_fast() -> bool {
    let m = machine(&[0xf4]);
    let mut l = m.vcpu.get_lapic().unwrap();
    // Initial and current count.
    for at in [0x380, 0x390] {
        l.regs[at..at + 4].copy_from_slice(&1_000_000u32.to_le_bytes().map(|b| b as _));
    }
    l.regs[0x3e0] = 0xa;
    m.vcpu.set_lapic(&l).is_ok()
}

/// VMMCALL, which is not an Intel's: the quirk is on.
fn hypercalls_are_mended() -> bool {
    let mut m = machine(&[0x66, 0xb8, 12, 0, 0, 0, 0x0f, 0x01, 0xd9, OUT, 1]);
    m.run() == KVM_EXIT_IO && m.vcpu.get_regs().unwrap().rax as u32 == -1000i32 as u32
}

fn hlt_exits() -> bool {
    machine_in(Kvm::new().unwrap().create_vm().unwrap(), &[0xf4]).run() == KVM_EXIT_HLT
}

/// LOCK INC word [503fh]; OUT.
fn bus_locks_are_silent() -> bool {
    machine(&[0xf0, 0xff, 0x06, 0x3f, 0x50, OUT, 1]).run() == KVM_EXIT_IO
}

/// An x87 load from where no memory is: MMIO, as any other load.
fn x87_reaches_mmio() -> bool {
    // MOV AX,F000H; MOV ES,AX; FLD dword [ES:0].
    let code = [0xb8, 0x00, 0xf0, 0x8e, 0xc0, 0x26, 0xd9, 0x06, 0x00, 0x00];
    machine(&code).run() == KVM_EXIT_MMIO
}

const FEATURES: &[Feature] = &[
    Feature { cap: KVM_CAP_SPLIT_IRQCHIP, off: no_irqchip },
    Feature { cap: KVM_CAP_X2APIC_API, off: apic_ids_have_eight_bits },
    Feature { cap: KVM_CAP_EXCEPTION_PAYLOAD, off: plain_events },
    Feature { cap: KVM_CAP_X86_TRIPLE_FAULT_EVENT, off: plain_events },
    Feature { cap: KVM_CAP_X86_USER_SPACE_MSR, off: refused_msr_is_the_guests },
    Feature { cap: KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, off: dirty_log_is_cleared_by_reading },
    Feature { cap: KVM_CAP_DIRTY_LOG_RING, off: dirty_log_is_cleared_by_reading },
    Feature { cap: KVM_CAP_DIRTY_LOG_RING_ACQ_REL, off: dirty_log_is_cleared_by_reading },
    Feature { cap: KVM_CAP_MAX_VCPU_ID, off: vcpu_ids_go_to_the_maximum },
    Feature { cap: KVM_CAP_EXIT_HYPERCALL, off: hypercall_is_not_user_spaces },
    Feature { cap: KVM_CAP_X86_APIC_BUS_CYCLES_NS, off: apic_bus_is_fast },
    Feature { cap: KVM_CAP_MSR_PLATFORM_INFO, off: platform_info_is_shown },
    Feature { cap: KVM_CAP_ENFORCE_PV_FEATURE_CPUID, off: pv_msr_is_there },
    Feature { cap: KVM_CAP_DISABLE_QUIRKS, off: hypercalls_are_mended },
    Feature { cap: KVM_CAP_DISABLE_QUIRKS2, off: hypercalls_are_mended },
    Feature { cap: KVM_CAP_X86_DISABLE_EXITS, off: hlt_exits },
    Feature { cap: KVM_CAP_EXIT_ON_EMULATION_FAILURE, off: x87_reaches_mmio },
    Feature { cap: KVM_CAP_X86_BUS_LOCK_EXIT, off: bus_locks_are_silent },
    // A matter of speed, which the list lets be on.
    Feature { cap: KVM_CAP_HALT_POLL, off: hlt_exits },
];

/// Every capability that KVM_ENABLE_CAP takes on a VM or a vCPU, found by trying all.
fn takes(cap: u32) -> bool {
    let vm = || Kvm::new().unwrap().create_vm().unwrap();
    let with_irqchip = || {
        let vm = vm();
        vm.create_irq_chip().unwrap();
        vm
    };
    let mut arguments: Vec<u64> = (0..32).map(|n| 1 << n).collect();
    arguments.extend([0, MAP_GPA, 4096 * 16]);
    arguments.into_iter().any(|a| {
        let e = enable(cap, [a, 0, 0, 0]);
        vm().enable_cap(&e).is_ok()
            || with_irqchip().enable_cap(&e).is_ok()
            || vm().create_vcpu(0).unwrap().enable_cap(&e).is_ok()
    })
}

#[test]
fn features_are_off_by_default() {
    for cap in 0..=256 {
        if takes(cap) {
            let name = caps::OFFERED.iter().find(|o| o.1 == cap).map_or("", |o| o.0);
            assert!(caps::answer(cap) > 0, "{cap} {name} can be enabled and is not offered");
            let row = FEATURES.iter().find(|f| f.cap == cap);
            let row =
                row.unwrap_or_else(|| panic!("{cap} {name} can be enabled: show that it is off by default"));
            assert!((row.off)(), "{name} is on by default");
        }
    }
    for f in FEATURES {
        assert!(takes(f.cap), "{} is not taken any more", f.cap);
    }
}

/// The features that can be seen from here do come on.
#[test]
fn features_come_on_when_asked_for() {
    let mut m = machine(&rdmsr(0xce));
    m.vm.enable_cap(&enable(KVM_CAP_MSR_PLATFORM_INFO, [0; 4])).unwrap();
    assert_ne!(m.run(), KVM_EXIT_IO, "#GP");
    assert!(m.msr(0xce).is_some(), "user space reads it all the same");

    let m = machine(&[0xf4]);
    m.vcpu.enable_cap(&enable(KVM_CAP_ENFORCE_PV_FEATURE_CPUID, [1, 0, 0, 0])).unwrap();
    assert!(!m.set_msr(0x4b56_4d03, 0x2001) && m.set_msr(0x4b56_4d03, 0));

    let vm = Kvm::new().unwrap().create_vm().unwrap();
    let ns = |n| enable(KVM_CAP_X86_APIC_BUS_CYCLES_NS, [n, 0, 0, 0]);
    let errno = |r: crate::Result| r.unwrap_err().errno();
    assert_eq!(errno(vm.enable_cap(&ns(40))), libc::ENXIO);
    vm.create_irq_chip().unwrap();
    for bad in [0, (1 << 25) + 1, u64::MAX] {
        assert_eq!(errno(vm.enable_cap(&ns(bad))), libc::EINVAL, "{bad}");
    }
    vm.enable_cap(&ns(40)).unwrap();
    let m = machine_in(vm, &[0xf4]);
    assert_eq!(errno(m.vm.enable_cap(&ns(40))), libc::EINVAL, "there is a vCPU");

    let mask = |n| enable(KVM_CAP_EXIT_HYPERCALL, [n, 0, 0, 0]);
    assert_eq!(errno(m.vm.enable_cap(&mask(MAP_GPA | 1))), libc::EINVAL);
    m.vm.enable_cap(&mask(MAP_GPA)).unwrap();
    for (fd, cap) in [(FdKind::Vm, KVM_CAP_EXIT_HYPERCALL), (FdKind::Vcpu, KVM_CAP_ENFORCE_PV_FEATURE_CPUID)]
    {
        let e = kvm_enable_cap { flags: 1, ..enable(cap, [0; 4]) };
        let r = if fd == FdKind::Vm { m.vm.enable_cap(&e) } else { m.vcpu.enable_cap(&e) };
        assert_eq!(errno(r), libc::EINVAL, "flags");
    }
}

/// KVM_EXIT_HYPERCALL, from real mode: the arguments, the long-mode flag, the answer.
#[test]
fn map_gpa_range_is_told() {
    let mut code = vec![0x66, 0xb8, 12, 0, 0, 0, 0x66, 0xbb, 0, 0x10, 0, 0, 0x66, 0xb9, 1, 0, 0, 0];
    code.extend([0x66, 0xba, 0x11, 0, 0, 0, 0x0f, 0x01, 0xc1, OUT, 1]);
    let mut m = machine(&code);
    m.vm.enable_cap(&enable(KVM_CAP_EXIT_HYPERCALL, [MAP_GPA, 0, 0, 0])).unwrap();
    assert_eq!(m.run(), KVM_EXIT_HYPERCALL);
    // SAFETY: plain integers of the exit that was just told.
    #[allow(unsafe_code)]
    let told = unsafe {
        let h = &m.vcpu.get_kvm_run().__bindgen_anon_1.hypercall;
        [h.nr, h.args[0], h.args[1], h.args[2], h.__bindgen_anon_1.flags]
    };
    assert_eq!(told, [12, 0x1000, 1, 0x11, 0]);
    m.vcpu.get_kvm_run().__bindgen_anon_1.hypercall.ret = 0xffff_ffff_0000_0005;
    assert_eq!(m.run(), KVM_EXIT_IO);
    assert_eq!(m.vcpu.get_regs().unwrap().rax, 5);
}

/// Each bit of CPUID 40000001H names something that is there, and the signature says where the leaf is.
#[test]
fn pv_features_are_in_cpuid() {
    let kvm = Kvm::new().unwrap();
    let cpuid = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).unwrap();
    let leaf = |n| *cpuid.as_slice().iter().find(|e| e.function == n).unwrap();
    let (signature, features) = (leaf(0x4000_0000), leaf(0x4000_0001));
    assert_eq!(signature.eax, 0x4000_0001);
    let name: Vec<u8> =
        [signature.ebx, signature.ecx, signature.edx].iter().flat_map(|r| r.to_le_bytes()).collect();
    assert_eq!(name, b"KVMKVMKVM\0\0\0");
    let bits: Vec<u32> = (0..32).filter(|n| features.eax >> n & 1 != 0).collect();
    assert_eq!(bits, [0, 1, 3, 5, 6, 7, 9, 11, 12, 13, 24]);
    assert_eq!((features.ebx, features.ecx, features.edx), (0, 0, 0), "the hints are user space's to give");
    // The MSR of each: reads and takes a value.
    let m = machine(&[0xf4]);
    let rows = [
        (0, 0x12, 0x2001),
        (0, 0x11, 0x2000),
        (3, 0x4b56_4d01, 0x2001),
        (3, 0x4b56_4d00, 0x2000),
        (5, 0x4b56_4d03, 0x2001),
        (6, 0x4b56_4d04, 0x2001),
        (12, 0x4b56_4d05, 0),
    ];
    for (bit, index, value) in rows {
        assert!(bits.contains(&bit));
        assert!(m.set_msr(index, value), "{index:#x}");
        assert_eq!(m.msr(index), Some(value), "{index:#x}");
    }
}

/// KVM_GET_MSR_INDEX_LIST has all MSRs of msr.txt, and no bank of machine-check registers whatever KVM_X86_SETUP_MCE says
/// (KVM api 4.3); KVM_GET_MSR_FEATURE_INDEX_LIST has facts only.
#[test]
fn msr_lists() {
    let kvm = Kvm::new().unwrap();
    let list = kvm.get_msr_index_list().unwrap();
    let list = list.as_slice();
    for index in [0x11, 0x12].into_iter().chain(0x4b56_4d00..=0x4b56_4d07) {
        assert!(list.contains(&index), "{index:#x}");
    }
    let banks = |list: &[u32]| list.iter().any(|i| (0x400..0x480).contains(i) || (0x280..0x2a0).contains(i));
    assert!(!banks(list));
    let m = machine(&[0xf4]);
    let mut supported = 0u64;
    let address = (&raw mut supported) as u64;
    let system = crate::dispatch::Object::System(&kvm);
    let memory = crate::user_mem::OwnMemory;
    crate::dispatch::dispatch(system, nr::KVM_X86_GET_MCE_CAP_SUPPORTED, address, &memory).unwrap();
    assert_eq!(supported & 0xff, 0, "the number of banks is KVM_CAP_MCE's");
    m.vcpu.with_backend(|v| v.setup_mce(supported | 32)).unwrap();
    assert!(!banks(kvm.get_msr_index_list().unwrap().as_slice()));
    assert!(m.msr(0x47c).is_some() && m.msr(0x280).is_some(), "they exist");
    // Every listed MSR can be read (KVM_GET_MSRS stops at one that cannot).
    for &index in list {
        assert!(m.msr(index).is_some(), "{index:#x}");
    }
    let features = kvm.get_msr_feature_index_list().unwrap();
    let mut facts: Vec<_> =
        features.as_slice().iter().map(|&index| kvm_msr_entry { index, ..Default::default() }).collect();
    let mut all = Msrs::from_entries(&facts).unwrap();
    assert_eq!(kvm.get_msrs(&mut all).unwrap(), facts.len());
    facts.retain(|f| f.index == 0x174);
    assert!(facts.is_empty(), "SYSENTER is state");
}

/// KVM_X86_SETUP_MCE and KVM_X86_SET_MCE by their ioctls.
#[test]
fn machine_checks_by_ioctl() {
    let mut m = machine(&[0xf4]);
    let call = |m: &Machine, number, address| {
        let v = crate::dispatch::Object::Vcpu(&m.vcpu);
        crate::dispatch::dispatch(v, number, address, &crate::user_mem::OwnMemory).map(|_| ())
    };
    let set = |m: &Machine, mut mce: kvm_x86_mce| call(m, nr::KVM_X86_SET_MCE, (&raw mut mce) as u64);
    let error = kvm_x86_mce { status: 1 << 63, addr: 0x77, misc: 3, bank: 2, ..Default::default() };
    assert_eq!(set(&m, error), Ok(()));
    assert_eq!((m.msr(0x409), m.msr(0x40a), m.msr(0x40b)), (Some(1 << 63), Some(0x77), Some(3)));
    let invalid = kvm_api::errno::Errno::EINVAL;
    assert_eq!(set(&m, kvm_x86_mce { bank: 32, ..error }), Err(invalid));
    assert_eq!(set(&m, kvm_x86_mce { status: 0, ..error }), Err(invalid));
    // Uncorrected errors are nothing to a bank that is not enabled.
    let uncorrected = kvm_x86_mce { status: 7 << 61, mcg_status: 4, ..error };
    assert_eq!(set(&m, uncorrected), Ok(()));
    assert_eq!((m.msr(0x408), m.msr(0x409)), (Some(0), Some(1 << 63)));
    // Once it is: CR4.MCE is clear, and the guest is shut down.
    let mut banks = 32u64;
    assert_eq!(call(&m, nr::KVM_X86_SETUP_MCE, (&raw mut banks) as u64), Ok(()));
    assert_eq!(m.msr(0x408), Some(u64::MAX));
    assert_eq!(set(&m, uncorrected), Ok(()));
    assert_eq!(m.run(), KVM_EXIT_SHUTDOWN);
}

/// KVM_KVMCLOCK_CTRL: an error only where no kvmclock is on.
#[test]
fn the_guest_is_told_that_it_was_stopped() {
    let mut m = machine(&[OUT, 1, OUT, 1, OUT, 1]);
    assert_eq!(m.vcpu.kvmclock_ctrl().unwrap_err().errno(), libc::EINVAL);
    assert!(m.set_msr(0x4b56_4d01, 0x2001));
    m.run();
    let flags = |m: &Machine| m.bytes()[0x2000 + 29];
    assert_eq!(flags(&m), 1, "stable");
    m.vcpu.kvmclock_ctrl().unwrap();
    assert_eq!(flags(&m), 1, "by the next KVM_RUN");
    m.run();
    assert_eq!(flags(&m), 3);
    // It stays until the guest clears it.
    m.vm.set_clock(&kvm_clock_data { clock: 5_000_000_000, ..Default::default() }).unwrap();
    m.run();
    assert_eq!(flags(&m), 3);
    assert!(m.set_msr(0x4b56_4d01, 0x2000));
    assert!(m.vcpu.kvmclock_ctrl().is_err());
    assert!(m.set_msr(0x4b56_4d01, RAM as u64 | 1));
    assert!(m.vcpu.kvmclock_ctrl().is_err(), "there is no memory to be told in");
}

/// A VMM resets the MSRs, and the old areas are the guest's own memory again.
#[test]
fn a_reset_by_ioctls_unshares_memory() {
    let mut m = machine(&[OUT, 1, OUT, 1, OUT, 1, OUT, 1]);
    let msrs = [(0x4b56_4d00, 0x2000), (0x4b56_4d01, 0x2101), (0x4b56_4d03, 0x2201), (0x4b56_4d04, 0x2301)];
    for (index, value) in msrs {
        assert!(m.set_msr(index, value));
    }
    let fresh = m.bytes();
    m.run();
    assert_ne!(m.bytes(), fresh, "the records are written");
    log(&m);
    for (index, _) in msrs {
        assert!(m.set_msr(index, 0));
    }
    let before = m.bytes();
    m.vm.set_clock(&kvm_clock_data { clock: 5_000_000_000, ..Default::default() }).unwrap();
    m.vcpu.set_tsc_khz(1_000_000).unwrap();
    for _ in 0..2 {
        m.run();
    }
    assert_eq!(m.bytes(), before);
    assert!(m.vm.get_dirty_log(0, RAM).unwrap().iter().all(|w| *w == 0));
}

/// What the records hold is in guest memory and in MSRs that are listed; a VM that is restored writes what the first one
/// would have written.
#[test]
fn pv_state_is_saved() {
    let mut m = machine(&[OUT, 1, OUT, 1]);
    for (index, value) in
        [(0x4b56_4d01, 0x2101), (0x4b56_4d03, 0x2201), (0x4b56_4d04, 0x2301), (0x4b56_4d05, 0)]
    {
        assert!(m.set_msr(index, value));
    }
    m.run();
    let list = Kvm::new().unwrap().get_msr_index_list().unwrap();
    let copy = machine(&[OUT, 1, OUT, 1]);
    for &index in list.as_slice() {
        let value = m.msr(index).unwrap();
        if (0x4b56_4d00..0x4b56_4e00).contains(&index) {
            assert!(copy.set_msr(index, value), "{index:#x}");
            assert_eq!(copy.msr(index), Some(value), "{index:#x}");
        }
    }
    // No ioctl wrote guest memory.
    assert!(copy.bytes()[0x2000..0x3000].iter().all(|b| *b == 0));
}
