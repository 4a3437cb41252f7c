//! An ioctl on a descriptor of ours.

use crate::inside::{self, Inside};
use crate::registry::{self, Held};
use crate::{raw, trace};
use kvm_api::errno::{Errno, Result};
use kvm_api::nr;
use kvm_api::uapi::{kvm_userspace_memory_region, kvm_userspace_memory_region2};
use kvm_ioctl_layer::dispatch::{Answer, Call, Object, dispatch};
use kvm_ioctl_layer::user_mem::OwnMemory;
use kvm_ioctl_layer::{Kvm, Options, VcpuFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

/// The type byte of KVM's ioctls.
const KVMIO: u32 = 0xae;

/// Whether a number is one of KVM's: no other goes further than this.
#[inline]
pub fn is_kvm(request: u32) -> bool {
    request >> 8 & 0xff == KVMIO
}

/// Performs an ioctl with a number of KVM's. `None`: the descriptor is not ours.
pub fn ioctl(fd: i32, request: u32, arg: u64) -> Option<i64> {
    let mut inside = inside::enter();
    let answer = answer(fd, request, arg, &mut inside);
    inside::leave(inside);
    answer
}

/// Apart from [`ioctl`], whose frame owns nothing: a handler may leave it for good, or cancel the thread.
#[inline(never)]
fn answer(fd: i32, request: u32, arg: u64, inside: &mut Inside) -> Option<i64> {
    catch_unwind(AssertUnwindSafe(|| {
        let Some((_, held)) = registry::find_fd(fd) else {
            return registry::is_foreign(fd).then_some(Err(Errno::EIO));
        };
        let before = trace::before(&held, request, arg);
        let result = perform(&held, request, arg, inside);
        trace::after(before, fd, &held, request, arg, &result);
        Some(result)
    }))
    // A panic is a defect of ours; the VM that it hit is marked dead further down.
    .unwrap_or(Some(Err(Errno::EIO)))
    .map(number)
}

/// As the kernel returns it.
fn number(r: Result<i32>) -> i64 {
    match r {
        Ok(v) => i64::from(v),
        Err(e) => -i64::from(e.0),
    }
}

fn perform(held: &Held, request: u32, arg: u64, inside: &mut Inside) -> Result<i32> {
    let object = held.object();
    if let (Object::Vcpu(vcpu), nr::KVM_RUN) = (object, request) {
        return run(vcpu, arg, inside);
    }
    if matches!(request, nr::KVM_CREATE_VM | nr::KVM_CREATE_VCPU) {
        room_for_a_descriptor()?;
    }
    match dispatch(object, request, arg, &OwnMemory)? {
        Answer::Value(v) => {
            if object.kind() == kvm_ioctl_layer::table::FdKind::Vm {
                remember_memory(request, arg);
            }
            Ok(v)
        }
        Answer::Vm(vm) => {
            // As the kernel: close-on-exec, readable and writable.
            registry::add(Held::Vm(Arc::new(vm)), libc::O_RDWR | libc::O_CLOEXEC)
        }
        // A file that needs nothing of us any more.
        Answer::File(file) => {
            let fd = std::os::fd::IntoRawFd::into_raw_fd(file);
            crate::descriptors::note(fd);
            Ok(fd)
        }
        Answer::Vcpu(vcpu) => {
            // A signal ends KVM_RUN here.
            vcpu.run_mapping().stop_polling();
            let Held::Vm(vm) = held else { return Err(Errno::EINVAL) };
            registry::add(Held::Vcpu(Arc::new(vcpu), arg, vm.clone()), libc::O_RDWR | libc::O_CLOEXEC)
        }
    }
}

fn run(vcpu: &VcpuFd, arg: u64, inside: &mut Inside) -> Result<i32> {
    if arg != 0 {
        return Err(Errno::EINVAL);
    }
    let kick = vcpu.kick_handle();
    inside::running(inside, vcpu.signal_mask(), &kick, || vcpu.run_raw())
        .map(|()| 0)
        .map_err(|e| Errno(e.errno()))
}

/// A VM or vCPU that cannot have a descriptor is not made: its number would be taken for good.
fn room_for_a_descriptor() -> Result {
    // SAFETY: numbers only.
    unsafe {
        match raw::sys!(SYS_eventfd2, 0, libc::EFD_CLOEXEC) {
            fd if fd >= 0 => {
                raw::sys!(SYS_close, fd);
                Ok(())
            }
            e => Err(Errno(-e as i32)),
        }
    }
}

/// Where a guest's memory lies, for those who unmap it.
fn remember_memory(request: u32, arg: u64) {
    let call = Call { arg, memory: &OwnMemory };
    let range = match request {
        nr::KVM_SET_USER_MEMORY_REGION => {
            call.input::<kvm_userspace_memory_region>().map(|r| (r.userspace_addr, r.memory_size))
        }
        nr::KVM_SET_USER_MEMORY_REGION2 => {
            call.input::<kvm_userspace_memory_region2>().map(|r| (r.userspace_addr, r.memory_size))
        }
        _ => return,
    };
    if let Ok((start, len)) = range {
        registry::add_guest_memory(start, len);
    }
}

/// `open("/dev/kvm")`: from here on the process is ours.
pub fn open_system(flags: i32) -> i64 {
    if flags & libc::O_DIRECTORY != 0 {
        return -i64::from(libc::ENOTDIR);
    }
    if flags & libc::O_CREAT != 0 && flags & libc::O_EXCL != 0 {
        return -i64::from(libc::EEXIST);
    }
    crate::owner::claim();
    crate::signals::activate();
    let fd = inside::within(|| {
        catch_unwind(|| {
            let kvm = Kvm::with_options(Options { ask_host_kvm: false, ..Options::default() })
                .map_err(|e| Errno(e.errno()))?;
            registry::add(Held::System(Arc::new(kvm)), flags)
        })
        .unwrap_or(Err(Errno::EIO))
    });
    trace::opened(&fd);
    number(fd)
}

/// close: ours are asked afterwards whether somebody still refers to them.
pub fn close(fd: i32) -> i64 {
    let ours = raw::identity(fd).is_some_and(registry::may_be);
    if !ours {
        // SAFETY: a number only.
        return unsafe { raw::sys!(SYS_close, fd) };
    }
    inside::within(|| {
        let ours = registry::find_fd(fd).is_some();
        // SAFETY: a number only.
        let r = unsafe { raw::sys!(SYS_close, fd) };
        if ours {
            registry::closed();
        }
        r
    })
}
