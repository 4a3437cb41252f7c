//! One step of a thread.

use super::arguments::{self, NOWHERE};
use super::{Kind, World};
use crate::fuzz::random::Random;
use crate::ioctls::front::Front;
use kvm_api::backend::RUN_MMAP_SIZE;
use kvm_api::nr::{self, *};
use kvm_api::uapi::*;
use kvm_ioctl_layer::table::{FdKind, TABLE};
use kvm_ioctl_layer::user_mem::{OwnMemory, UserMemory, bytes_of};

/// Small guests: each goes on for ever, or nearly.
const PROGRAMS: &[&[u8]] = &[
    // jmp $
    &[0xeb, 0xfe],
    // hlt; jmp back
    &[0xf4, 0xeb, 0xfd],
    // out 0x60, al; in al, 0x61; jmp back
    &[0xe6, 0x60, 0xe4, 0x61, 0xeb, 0xfa],
    // inc ax; mov [bx], ax; add bx, 0x101; jmp back
    &[0x40, 0x89, 0x07, 0x81, 0xc3, 0x01, 0x01, 0xeb, 0xf7],
    // rep stosb; jmp back
    &[0xb9, 0xff, 0xff, 0xf3, 0xaa, 0xeb, 0xf9],
    // cli; hlt
    &[0xfa, 0xf4],
    // int 3
    &[0xcc],
    // sti; hlt; jmp back
    &[0xfb, 0xf4, 0xeb, 0xfc],
];

/// A VM or two that may run, so that not every step meets an empty world.
pub fn prepare(world: &World, random: &mut Random) {
    let f = &world.front;
    let system = f.open();
    world.add(Kind::System, i64::from(system));
    for _ in 0..1 + random.below(2) {
        let vm = f.ioctl(system, KVM_CREATE_VM, 0);
        world.add(Kind::Vm, vm);
        let vm = vm as i32;
        if random.one_in(2) {
            f.ioctl(vm, KVM_CREATE_IRQCHIP, 0);
        }
        let code = world.pages.start() + 32 * 4096;
        let r = kvm_userspace_memory_region {
            slot: 0,
            flags: u32::from(random.one_in(2)),
            guest_phys_addr: 0,
            memory_size: 32 * 4096,
            userspace_addr: code,
        };
        let at = world.pages.start();
        let _ = OwnMemory.write(at, bytes_of(&r));
        f.ioctl(vm, KVM_SET_USER_MEMORY_REGION, at);
        let _ = OwnMemory.write(code + 0x1000, random.pick(PROGRAMS));
        for id in 0..1 + random.below(2) {
            let vcpu = f.ioctl(vm, KVM_CREATE_VCPU, id as u64);
            world.add(Kind::Vcpu, vcpu);
            let vcpu = vcpu as i32;
            f.ioctl(vcpu, KVM_GET_SREGS, at);
            let mut cs = [0; 8];
            let _ = OwnMemory.read(at, &mut cs);
            let _ = OwnMemory.write(at, &[0; 8]);
            let _ = OwnMemory.write(at + 12, &[0; 2]);
            f.ioctl(vcpu, KVM_SET_SREGS, at);
            let regs = kvm_regs { rip: 0x1000, rflags: 2, rsp: 0x8000, rdi: 0x3000, ..Default::default() };
            let _ = OwnMemory.write(at, bytes_of(&regs));
            f.ioctl(vcpu, KVM_SET_REGS, at);
        }
    }
}

fn kind_of(fd: FdKind) -> Kind {
    match fd {
        FdKind::System => Kind::System,
        FdKind::Vm => Kind::Vm,
        _ => Kind::Vcpu,
    }
}

/// KVM_RUN; a kick ends it. A defect of the engine shows itself in the exit.
fn run(world: &World, random: &mut Random) {
    let vcpu = world.pick(random, Kind::Vcpu);
    let r = world.front.ioctl(vcpu, KVM_RUN, u64::from(random.one_in(50)));
    if r != 0 {
        return;
    }
    let unexpected = world.front.with_run_page(vcpu, |page| {
        let word = |offset: usize| {
            let mut word = [0; 4];
            let _ = OwnMemory.read(page + offset as u64, &mut word);
            u32::from_le_bytes(word)
        };
        word(core::mem::offset_of!(kvm_run, exit_reason)) == KVM_EXIT_INTERNAL_ERROR
            && word(kvm_api::backend::EXIT_UNION) == KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON
    });
    if unexpected == Some(true) {
        world.complain("KVM_EXIT_INTERNAL_ERROR: a defect of the engine".into());
    }
}

/// An ioctl of the table, on a descriptor that mostly fits.
fn ask(world: &World, random: &mut Random) {
    let row = &TABLE[random.below(TABLE.len())];
    let fd = world.pick(random, kind_of(row.fd));
    if row.nr == KVM_RUN {
        return run(world, random);
    }
    let takes_pointer = nr::size_of_argument(row.nr) > 0;
    let arg =
        if takes_pointer { arguments::place(world, random, fd, row.nr) } else { arguments::number(random) };
    let r = world.front.ioctl(fd, row.nr, arg);
    match row.nr {
        KVM_CREATE_VM => world.add(Kind::Vm, r),
        KVM_CREATE_VCPU => world.add(Kind::Vcpu, r),
        _ => {}
    }
}

/// One step.
pub fn step(world: &World, random: &mut Random) {
    let f = &world.front;
    match random.below(40) {
        0 => {
            let system = f.open();
            world.add(Kind::System, i64::from(system));
        }
        1 | 2 => {
            let vm = f.ioctl(world.pick(random, Kind::System), KVM_CREATE_VM, 0);
            world.add(Kind::Vm, vm);
        }
        3 | 4 => {
            let vm = world.pick(random, Kind::Vm);
            let vcpu = f.ioctl(vm, KVM_CREATE_VCPU, random.below(4) as u64);
            world.add(Kind::Vcpu, vcpu);
        }
        5..=7 => {
            // Close, perhaps under a KVM_RUN of another thread; not until nothing is left.
            let gone = {
                let mut fds = world.fds.lock();
                (fds.len() > 3).then(|| {
                    let n = random.below(fds.len());
                    fds.swap_remove(n).1
                })
            };
            gone.into_iter().for_each(|fd| f.close(fd));
        }
        8..=15 => run(world, random),
        16 | 17 => {
            let vm = world.pick(random, Kind::Vm);
            let at = arguments::place(world, random, vm, KVM_SET_USER_MEMORY_REGION);
            f.ioctl(vm, KVM_SET_USER_MEMORY_REGION, at);
        }
        18 => {
            // The guest's memory is gone for a moment.
            world.pages.allow(false);
            run(world, random);
            world.pages.allow(true);
        }
        19 => {
            // New code under the guest, perhaps while it runs.
            let code = random.pick(PROGRAMS);
            let bytes = if random.one_in(3) { random.bytes(64) } else { code.to_vec() };
            let at = world.pages.start() + 32 * 4096 + random.pick(&[0x1000, 0x1040, 0x2000]);
            let _ = OwnMemory.write(at, &bytes);
        }
        20 => {
            // The caller scribbles over what it shares with a vCPU.
            let vcpu = world.pick(random, Kind::Vcpu);
            let offset = random.below(RUN_MMAP_SIZE - 64) as u64;
            let len = 1 + random.below(16);
            let bytes = random.bytes(len);
            f.with_run_page(vcpu, |page| OwnMemory.write(page + offset, &bytes));
        }
        21 => {
            let e = &world.eventfds[random.below(world.eventfds.len())];
            let _ = if random.one_in(2) { e.write(1).map(|()| 0) } else { e.read() };
        }
        22 => {
            // Numbers that nobody knows.
            let fd = world.pick(random, random_kind(random.clone().below(3)));
            let known = TABLE[random.below(TABLE.len())].nr;
            let number = match random.below(3) {
                0 => random.next() as u32,
                1 => known ^ 1 << random.below(32),
                _ => nr::KVMIO << 8 | random.below(256) as u32,
            };
            let known = TABLE.iter().any(|r| r.nr == number);
            if !known {
                f.ioctl(fd, number, random.pick(NOWHERE));
            }
        }
        _ => ask(world, random),
    }
}

fn random_kind(n: usize) -> Kind {
    [Kind::System, Kind::Vm, Kind::Vcpu][n % 3]
}
