//! The guests whose exits are counted, and the loop that counts them: one source for two crates of the same shape, ours
//! in process and `kvm-ioctls` on whatever `/dev/kvm` the process finds.
//!
//! Not here: how often, beside what, and how it is shown (`mod`).
#![allow(unsafe_code)] // A memory slot takes a raw host address; see `guest_ram`.

use super::Kind;

/// Where the code is, in real mode.
const CODE: u64 = 0x1000;
/// The interrupt's handler.
const HANDLER: u64 = 0x1100;
/// RAM; beyond it is nobody's, which makes an access an MMIO exit.
const RAM: u64 = 0x10000;
/// CPUIDs between two exits to user space.
pub const CPUIDS: u32 = 1000;
/// The interrupt line of the wake-up.
const LINE: u32 = 5;

/// What the guest of a kind executes.
fn code(kind: Kind) -> Vec<u8> {
    match kind {
        // L: out 0x10, al; jmp L
        Kind::Pio => vec![0xe6, 0x10, 0xeb, 0xfc],
        // L: mov [0], al; jmp L
        Kind::Mmio => vec![0xa2, 0x00, 0x00, 0xeb, 0xfb],
        // L: hlt; jmp L
        Kind::Hlt => vec![0xf4, 0xeb, 0xfd],
        // L: mov esi, CPUIDS; M: xor eax, eax; cpuid; dec esi; jnz M; out 0x10, al; jmp L
        Kind::Cpuid => {
            let mut code = vec![0x66, 0xbe];
            code.extend(CPUIDS.to_le_bytes());
            code.extend([0x66, 0x31, 0xc0, 0x0f, 0xa2, 0x66, 0x4e, 0x75, 0xf7, 0xe6, 0x10, 0xeb, 0xed]);
            code
        }
        // The first PIC: vectors from 0x20, automatic EOI, all lines open; sti; L: hlt; jmp L
        Kind::Wake => {
            let mut code = Vec::new();
            for (port, value) in [(0x20, 0x11), (0x21, 0x20), (0x21, 0x04), (0x21, 0x03), (0x21, 0x00)] {
                code.extend([0xb0, value, 0xe6, port]);
            }
            code.extend([0xfb, 0xf4, 0xeb, 0xfd]);
            code
        }
    }
}

/// RAM with the guest in it.
fn ram(kind: Kind) -> Result<std::sync::Arc<crate::guest_ram::GuestRam>, String> {
    use vm_memory::{Bytes, GuestAddress};
    let ram = crate::guest_ram::reserve(RAM).map_err(|error| error.to_string())?;
    let write =
        |at: u64, bytes: &[u8]| ram.write_slice(bytes, GuestAddress(at)).map_err(|error| error.to_string());
    write(CODE, &code(kind))?;
    // out 0x10, al; iret; and its entry in the table of vectors.
    write(HANDLER, &[0xe6, 0x10, 0xcf])?;
    write((0x20 + u64::from(LINE)) * 4, &[HANDLER as u8, (HANDLER >> 8) as u8, 0, 0])?;
    Ok(ram)
}

/// The same source for each crate.
macro_rules! client {
    ($(#[$doc:meta])* $name:ident $krate:ident) => {
        $(#[$doc])*
        pub mod $name {
            use super::*;
            use $krate::{Kvm, VcpuExit, VcpuFd, VmFd};
            use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::SeqCst};
            use std::time::{Duration, Instant};
            use vm_memory::GuestMemoryBackend;

            /// Dropped in this order: the memory last.
            struct Machine {
                vcpu: VcpuFd,
                vm: VmFd,
                _ram: std::sync::Arc<crate::guest_ram::GuestRam>,
            }

            fn machine(kind: Kind) -> Result<Machine, String> {
                let why = |what: &'static str| move |error: $krate::Error| format!("{what}: {error}");
                let ram = ram(kind)?;
                let kvm = Kvm::new().map_err(why("/dev/kvm"))?;
                let vm = kvm.create_vm().map_err(why("KVM_CREATE_VM"))?;
                let address = ram.get_host_address(vm_memory::GuestAddress(0)).map_err(|error| error.to_string())?;
                let slot = kvm_bindings::kvm_userspace_memory_region {
                    slot: 0,
                    flags: 0,
                    guest_phys_addr: 0,
                    memory_size: RAM,
                    userspace_addr: address as u64,
                };
                // SAFETY: the mapping has RAM bytes from `address`, is not touched while the guest runs, and outlives
                // the VM, which is dropped before it.
                unsafe { vm.set_user_memory_region(slot) }.map_err(why("KVM_SET_USER_MEMORY_REGION"))?;
                if kind == Kind::Wake {
                    vm.create_irq_chip().map_err(why("KVM_CREATE_IRQCHIP"))?;
                }
                let vcpu = vm.create_vcpu(0).map_err(why("KVM_CREATE_VCPU"))?;
                let mut sregs = vcpu.get_sregs().map_err(why("KVM_GET_SREGS"))?;
                (sregs.cs.base, sregs.cs.selector) = (0, 0);
                sregs.ds.base = if kind == Kind::Mmio { 2 * RAM } else { 0 };
                vcpu.set_sregs(&sregs).map_err(why("KVM_SET_SREGS"))?;
                let regs = kvm_bindings::kvm_regs { rip: CODE, rsp: 0x8000, rflags: 2, ..Default::default() };
                vcpu.set_regs(&regs).map_err(why("KVM_SET_REGS"))?;
                Ok(Machine { vcpu, vm, _ram: ram })
            }

            /// One exit, which must be of its kind.
            fn once(vcpu: &mut VcpuFd, kind: Kind) -> Result<(), String> {
                match (vcpu.run().map_err(|error| format!("KVM_RUN: {error}"))?, kind) {
                    (VcpuExit::IoOut(0x10, _), Kind::Pio | Kind::Cpuid | Kind::Wake) => Ok(()),
                    (VcpuExit::MmioWrite(..), Kind::Mmio) | (VcpuExit::Hlt, Kind::Hlt) => Ok(()),
                    (exit, kind) => Err(format!("{kind:?}: {exit:?}")),
                }
            }

            /// Round trips in a second, measured for about so long.
            pub fn measure(kind: Kind, long: Duration) -> Result<f64, String> {
                let machine = machine(kind)?;
                if kind == Kind::Wake {
                    return wake(machine, long);
                }
                let mut vcpu = machine.vcpu;
                let per_exit = if kind == Kind::Cpuid { CPUIDS } else { 1 };
                for _ in 0..100 {
                    once(&mut vcpu, kind)?;
                }
                let (start, mut count) = (Instant::now(), 0u64);
                while start.elapsed() < long {
                    for _ in 0..64 {
                        once(&mut vcpu, kind)?;
                    }
                    count += 64 * u64::from(per_exit);
                }
                Ok(count as f64 / start.elapsed().as_secs_f64())
            }

            /// From an interrupt's line to the return of the KVM_RUN that was asleep, in another thread: the median.
            fn wake(machine: Machine, long: Duration) -> Result<f64, String> {
                let Machine { mut vcpu, vm, _ram } = machine;
                let (seen, stop) = (AtomicU32::new(0), AtomicBool::new(false));
                let mut times = Vec::new();
                std::thread::scope(|scope| {
                    let thread = scope.spawn(|| {
                        while !stop.load(SeqCst) {
                            let r = once(&mut vcpu, Kind::Wake);
                            seen.fetch_add(1, SeqCst);
                            r?;
                        }
                        Ok::<(), String>(())
                    });
                    let pulse = || {
                        vm.set_irq_line(LINE, true).and_then(|()| vm.set_irq_line(LINE, false))
                            .map_err(|error| format!("KVM_IRQ_LINE: {error}"))
                    };
                    let begin = Instant::now();
                    let mut last = Ok(());
                    while (begin.elapsed() < long || times.is_empty()) && last.is_ok() && begin.elapsed() < 100 * long {
                        // Time to fall asleep.
                        std::thread::sleep(Duration::from_micros(200));
                        let (before, start) = (seen.load(SeqCst), Instant::now());
                        last = pulse();
                        // The first may come before the guest has programmed its PIC, and be lost.
                        while seen.load(SeqCst) == before && start.elapsed() < Duration::from_millis(100) {
                            std::hint::spin_loop();
                        }
                        if seen.load(SeqCst) != before {
                            times.push(start.elapsed().as_secs_f64());
                        }
                    }
                    stop.store(true, SeqCst);
                    last.and_then(|()| pulse())?;
                    thread.join().unwrap_or_else(|_| Err("the vCPU's thread has panicked".into()))
                })?;
                match times.is_empty() {
                    true => Err("no interrupt woke the guest".into()),
                    false => Ok(1.0 / crate::bench::median(&times)),
                }
            }
        }
    };
}

client! {
    /// The software processor in this process.
    in_process kvm_ioctl_layer
}
client! {
    /// What `/dev/kvm` is to this process.
    dev_kvm kvm_ioctls
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn each_guest_makes_its_exits() {
        for kind in Kind::ALL {
            let rate = in_process::measure(kind, Duration::from_millis(5));
            assert!(rate.as_ref().is_ok_and(|r| *r > 0.0), "{kind:?}: {rate:?}");
        }
    }
}
