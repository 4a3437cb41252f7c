//! A program on the crate `kvm-ioctls`, unchanged: a guest that says hello by a port. For `softkvm exec`.
//!
//! Test-only: `unsafe` is the crate's memory slot.
#![allow(unsafe_code)]

use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::{Kvm, VcpuExit};

/// mov al, \[bx\]; test al, al; jz; out 0x10, al; inc bx; jmp; hlt
const CODE: &[u8] = &[0x8a, 0x07, 0x84, 0xc0, 0x74, 0x05, 0xe6, 0x10, 0x43, 0xeb, 0xf5, 0xf4];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut memory = memmap2::MmapMut::map_anon(0x10000)?;
    memory[0x1000..0x1000 + CODE.len()].copy_from_slice(CODE);
    memory[0x2000..0x2006].copy_from_slice(b"hello\0");
    let kvm = Kvm::new()?;
    let vm = kvm.create_vm()?;
    let region = kvm_userspace_memory_region {
        memory_size: memory.len() as u64,
        userspace_addr: memory.as_mut_ptr() as u64,
        ..Default::default()
    };
    // SAFETY: the memory outlives the VM, and nothing else looks at it while the guest runs.
    unsafe { vm.set_user_memory_region(region)? };
    let mut vcpu = vm.create_vcpu(0)?;
    let mut sregs = vcpu.get_sregs()?;
    (sregs.cs.base, sregs.cs.selector) = (0, 0);
    vcpu.set_sregs(&sregs)?;
    let mut regs = vcpu.get_regs()?;
    (regs.rip, regs.rbx, regs.rflags) = (0x1000, 0x2000, 2);
    vcpu.set_regs(&regs)?;
    let mut said = String::new();
    loop {
        match vcpu.run()? {
            VcpuExit::IoOut(0x10, data) => said.extend(data.iter().map(|&b| b as char)),
            VcpuExit::Hlt => break,
            other => return Err(format!("{other:?}").into()),
        }
    }
    println!("{said}");
    drop((vcpu, vm));
    Ok(())
}
