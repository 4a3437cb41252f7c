//! Where raw ioctls go: a kernel's file descriptors, or the layer's dispatch without any.
//!
//! Both take numbers and addresses as a program passes them, and answer as the system call does: `-errno` for an error. What
//! is asked of them is in the sections of [`super`].

use kvm_api::errno::Errno;
use kvm_api::nr;
use kvm_ioctl_layer::dispatch::{Answer, Object, dispatch};
use kvm_ioctl_layer::user_mem::OwnMemory;
use kvm_ioctl_layer::{Kvm, VcpuFd, VmFd};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::{Arc, Weak};

/// A descriptor, as a front numbers them.
pub type Fd = i32;

/// Who answers ioctls.
pub trait Front: Sync {
    /// Opens `/dev/kvm`.
    fn open(&self) -> Fd;
    /// ioctl(2): `-errno` for an error.
    fn ioctl(&self, fd: Fd, nr: u32, arg: u64) -> i64;
    /// The address of a vCPU's shared pages, mapped on the first request.
    fn run_page(&self, vcpu: Fd) -> u64;
    /// close(2), and no mapping is left.
    fn close(&self, fd: Fd);
}

enum Held {
    System(Kvm),
    Vm(VmFd),
    Vcpu(VcpuFd),
}

impl Held {
    fn object(&self) -> Object<'_> {
        match self {
            Held::System(o) => Object::System(o),
            Held::Vm(o) => Object::Vm(o),
            Held::Vcpu(o) => Object::Vcpu(o),
        }
    }
}

/// The layer's dispatch, with descriptors that are only numbers.
#[derive(Default)]
pub struct Dispatch {
    held: Mutex<(Fd, HashMap<Fd, Arc<Held>>)>,
    /// Every vCPU that is alive, with a descriptor or without.
    vcpus: Mutex<Vec<Weak<Held>>>,
}

impl Dispatch {
    fn add(&self, object: Held) -> Fd {
        let mut held = self.held.lock();
        held.0 += 1;
        let fd = held.0 + 1000;
        let object = Arc::new(object);
        if matches!(*object, Held::Vcpu(_)) {
            let mut vcpus = self.vcpus.lock();
            vcpus.retain(|v| v.strong_count() > 0);
            vcpus.push(Arc::downgrade(&object));
        }
        held.1.insert(fd, object);
        fd
    }

    fn find(&self, fd: Fd) -> Option<Arc<Held>> {
        self.held.lock().1.get(&fd).cloned()
    }

    /// Every vCPU kicked out of KVM_RUN, as a signal would do it, those too whose descriptors are closed.
    pub fn kick_all(&self) {
        let vcpus: Vec<_> = self.vcpus.lock().iter().filter_map(Weak::upgrade).collect();
        for held in vcpus {
            if let Held::Vcpu(vcpu) = &*held {
                vcpu.kick_handle().kick();
            }
        }
    }

    /// Looks at a vCPU's shared pages, which stay for as long.
    pub fn with_run_page<R>(&self, vcpu: Fd, f: impl FnOnce(u64) -> R) -> Option<R> {
        match self.find(vcpu).as_deref() {
            Some(Held::Vcpu(v)) => Some(f(v.run_mapping().address() as u64)),
            _ => None,
        }
    }
}

impl Front for Dispatch {
    fn open(&self) -> Fd {
        let kvm = Kvm::new().expect("the software backend needs nothing");
        self.add(Held::System(kvm))
    }

    fn ioctl(&self, fd: Fd, number: u32, arg: u64) -> i64 {
        let Some(held) = self.find(fd) else { return -i64::from(Errno::EBADF.0) };
        if let (Held::Vcpu(vcpu), nr::KVM_RUN) = (&*held, number) {
            let r = if arg != 0 { Err(Errno::EINVAL.0) } else { vcpu.run_raw().map_err(|e| e.errno()) };
            return r.map_or_else(|e| -i64::from(e), |()| 0);
        }
        match dispatch(held.object(), number, arg, &OwnMemory) {
            Err(e) => -i64::from(e.0),
            Ok(Answer::Value(v)) => i64::from(v),
            Ok(Answer::Vm(vm)) => i64::from(self.add(Held::Vm(vm))),
            // A descriptor of another kind (statistics, a device) is only counted here.
            Ok(other) => match other {
                Answer::Vcpu(vcpu) => {
                    vcpu.run_mapping().stop_polling();
                    i64::from(self.add(Held::Vcpu(vcpu)))
                }
                _ => i64::from(Fd::MAX),
            },
        }
    }

    fn run_page(&self, vcpu: Fd) -> u64 {
        match self.find(vcpu).as_deref() {
            Some(Held::Vcpu(v)) => v.run_mapping().address() as u64,
            _ => 0,
        }
    }

    fn close(&self, fd: Fd) {
        let gone = self.held.lock().1.remove(&fd);
        drop(gone);
    }
}
