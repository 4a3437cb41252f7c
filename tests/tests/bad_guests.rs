//! Test-only: guests that go wrong, through the public API: each ends in the exit that the API document names, and
//! none in a panic, a hang or a signal.
#![allow(unsafe_code)] // KVM_SET_USER_MEMORY_REGION takes a host address.

use iced_x86::IcedError;
use iced_x86::code_asm::*;
use kvm_bindings::{KVM_MEM_READONLY, kvm_userspace_memory_region};
use kvm_ioctl_layer::{Kvm, VcpuExit, VcpuFd, VmFd};
use memmap2::MmapMut;

const RAM: u64 = 1 << 20;
const CODE: u64 = 0x8000;

struct Guest {
    vcpu: VcpuFd,
    vm: VmFd,
    ram: MmapMut,
}

/// A vCPU in real mode at `0:8000H`, with no interrupt controller.
fn guest(f: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>) -> Guest {
    let mut a = CodeAssembler::new(16).expect("16 bits");
    f(&mut a).expect("the code is valid");
    guest_of(&a.assemble(CODE).expect("the code can be encoded"))
}

fn guest_of(code: &[u8]) -> Guest {
    let mut ram = MmapMut::map_anon(RAM as usize).expect("1 MiB");
    ram[CODE as usize..][..code.len()].copy_from_slice(code);
    let kvm = Kvm::new().expect("the software backend");
    let vm = kvm.create_vm().expect("KVM_CREATE_VM");
    slot(&vm, 0, 0, RAM, ram.as_ptr() as u64, 0);
    let vcpu = vm.create_vcpu(0).expect("KVM_CREATE_VCPU");
    let mut sregs = vcpu.get_sregs().expect("KVM_GET_SREGS");
    (sregs.cs.base, sregs.cs.selector) = (0, 0);
    vcpu.set_sregs(&sregs).expect("KVM_SET_SREGS");
    let mut regs = vcpu.get_regs().expect("KVM_GET_REGS");
    (regs.rip, regs.rsp) = (CODE, 0x7000);
    vcpu.set_regs(&regs).expect("KVM_SET_REGS");
    Guest { vcpu, vm, ram }
}

fn slot(vm: &VmFd, slot: u32, gpa: u64, size: u64, hva: u64, flags: u32) {
    let region = kvm_userspace_memory_region {
        slot,
        flags,
        guest_phys_addr: gpa,
        memory_size: size,
        userspace_addr: hva,
    };
    // SAFETY: the mapping outlives the VM in every test here, or the slot is deleted first; no Rust reference to it
    // is used while the guest runs.
    unsafe { vm.set_user_memory_region(region) }.expect("KVM_SET_USER_MEMORY_REGION");
}

/// Runs until the exit is no port or device access; those read as all ones. At most so many of them.
fn last_exit(g: &mut Guest) -> String {
    for _ in 0..100_000 {
        match g.vcpu.run() {
            Ok(VcpuExit::IoIn(_, data) | VcpuExit::MmioRead(_, data)) => data.fill(0xff),
            Ok(VcpuExit::IoOut(..) | VcpuExit::MmioWrite(..)) => {}
            Ok(exit) => return format!("{exit:?}"),
            Err(e) => return format!("errno {}", e.errno()),
        }
    }
    "no end".into()
}

#[test]
fn a_triple_fault_is_a_shutdown() {
    // An IDT of no entries: #UD, #GP, #DF, shutdown.
    let mut g = guest(|a| {
        a.mov(word_ptr(0x6000), 0)?;
        a.lidt(ptr(0x6000))?;
        a.ud2()
    });
    assert_eq!(last_exit(&mut g), "Shutdown");
    // A second KVM_RUN does not panic either.
    let _ = last_exit(&mut g);
}

#[test]
fn a_triple_fault_in_protected_mode_is_a_shutdown() {
    let mut g = guest(|a| {
        a.mov(word_ptr(0x6000), 0)?;
        a.lidt(ptr(0x6000))?;
        a.mov(eax, cr0)?;
        a.or(eax, 1)?;
        a.mov(cr0, eax)?;
        a.mov(ax, 0xfff8)?;
        a.mov(ds, ax)
    });
    assert_eq!(last_exit(&mut g), "Shutdown");
}

#[test]
fn a_jump_to_where_no_memory_is_is_an_internal_error() {
    // FFFF:FFF0 is 10FFE0H, past the megabyte: KVM cannot emulate an instruction that it cannot fetch.
    let mut g = guest(|a| {
        a.db(&[0xea, 0xf0, 0xff, 0xff, 0xff])?;
        a.nop()
    });
    assert_eq!(last_exit(&mut g), "InternalError");
}

#[test]
fn halt_without_an_interrupt_controller_comes_back_and_goes_on() {
    let mut g = guest(|a| {
        a.hlt()?;
        a.inc(bx)?;
        a.hlt()
    });
    assert_eq!(last_exit(&mut g), "Hlt");
    assert_eq!(last_exit(&mut g), "Hlt");
    assert_eq!(g.vcpu.get_regs().expect("KVM_GET_REGS").rbx, 1);
}

#[test]
fn garbage_ends_somehow() {
    // Every byte value over and over, in every distance; and all zeros, all ones.
    for step in [0u32, 1, 3, 7, 0x55, 0xff] {
        let code: Vec<u8> = (0..4096u32).map(|n| (n.wrapping_mul(step) ^ (n >> 8)) as u8).collect();
        let mut g = guest_of(&code);
        let kick = g.vcpu.kick_handle();
        let watchdog = std::thread::spawn(move || {
            std::thread::sleep(std::time::Duration::from_millis(500));
            kick.kick();
        });
        let exit = last_exit(&mut g);
        assert!(
            ["Shutdown", "Hlt", "InternalError", "errno 4", "no end"].contains(&exit.as_str()),
            "step {step}: {exit}"
        );
        watchdog.join().expect("the watchdog");
    }
}

#[test]
fn memory_that_goes_away_is_efault_and_not_a_signal() {
    let mut g = guest(|a| {
        let mut again = a.create_label();
        a.mov(ax, 0x2000)?;
        a.mov(ds, ax)?;
        a.set_label(&mut again)?;
        a.inc(word_ptr(bx))?;
        a.add(bx, 2)?;
        a.out(0x10, al)?;
        a.jmp(again)
    });
    assert!(matches!(g.vcpu.run(), Ok(VcpuExit::IoOut(0x10, _))));
    // SAFETY: no Rust reference to these pages is used any more; the guest's accesses are what is tested.
    let r = unsafe { libc::mprotect(g.ram.as_mut_ptr().add(0x2_0000).cast(), 0x1_0000, libc::PROT_NONE) };
    assert_eq!(r, 0);
    assert_eq!(last_exit(&mut g), format!("errno {}", libc::EFAULT));
}

#[test]
fn a_store_into_a_read_only_slot_is_the_callers() {
    let mut g = guest(|a| {
        a.mov(ax, 0xf000)?;
        a.mov(ds, ax)?;
        a.mov(word_ptr(0x10), 0x1234)?;
        a.mov(bx, word_ptr(0x10))?;
        a.hlt()
    });
    let mut rom = MmapMut::map_anon(0x1_0000).expect("64 KiB");
    rom[0x10] = 0x77;
    slot(&g.vm, 0, 0, 0, 0, 0);
    slot(&g.vm, 0, 0, 0xf_0000, g.ram.as_ptr() as u64, 0);
    slot(&g.vm, 1, 0xf_0000, 0x1_0000, rom.as_ptr() as u64, KVM_MEM_READONLY);
    match g.vcpu.run() {
        Ok(VcpuExit::MmioWrite(0xf_0010, data)) => assert_eq!(data, [0x34, 0x12]),
        other => panic!("{other:?}"),
    }
    assert_eq!(last_exit(&mut g), "Hlt");
    assert_eq!(g.vcpu.get_regs().expect("KVM_GET_REGS").rbx, 0x77);
}

#[test]
fn an_endless_loop_of_faults_can_be_interrupted() {
    // Vector 0's handler divides by zero at once; the stack wraps around below the code.
    let mut g = guest(|a| {
        let mut handler = a.create_label();
        a.mov(word_ptr(0), 0x9000u32)?;
        a.mov(word_ptr(2), 0)?;
        a.xor(dx, dx)?;
        a.xor(cx, cx)?;
        a.set_label(&mut handler)?;
        a.div(cx)
    });
    g.ram[0x9000..0x9002].copy_from_slice(&[0xf7, 0xf1]); // div cx
    let kick = g.vcpu.kick_handle();
    let kicker = std::thread::spawn(move || {
        std::thread::sleep(std::time::Duration::from_millis(100));
        kick.kick();
    });
    let exit = last_exit(&mut g);
    assert!(exit == "errno 4" || exit == "Shutdown", "{exit}");
    kicker.join().expect("the kicker");
}
