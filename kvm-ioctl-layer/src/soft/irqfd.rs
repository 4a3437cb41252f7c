//! irqfds: eventfds of the caller that raise a GSI, and their resampling counterparts (KVM_IRQFD).
//!
//! One thread a VM, started by the first irqfd, waits for all of them. It blocks every signal, so that the program's
//! handlers never run on it, and ends with the VM.

use crate::user_mem::{eventfd, eventfd_id};
use emu_core::Vm;
use emu_core::irqchip::SourceId;
use kvm_api::errno::{Errno, Result};
use kvm_api::uapi::*;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::os::fd::AsRawFd;
use std::sync::{Arc, Barrier, Weak};
use std::thread::JoinHandle;
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::EventFd;

/// The epoll key of the eventfd that ends the thread.
const STOP: u64 = u64::MAX;

struct Irqfd {
    fd: EventFd,
    id: Option<u64>,
    gsi: u32,
    /// Signalled when the guest acknowledges; the line is then low again until `fd` is written anew.
    resample: Option<EventFd>,
}

#[derive(Default)]
struct Shared {
    by_key: Mutex<(u64, HashMap<u64, Irqfd>)>,
}

/// A VM's irqfds.
#[derive(Default)]
pub struct Irqfds {
    shared: Arc<Shared>,
    thread: Mutex<Option<Waiter>>,
}

struct Waiter {
    epoll: Arc<Epoll>,
    stop: EventFd,
    handle: Option<JoinHandle<()>>,
}

impl Drop for Waiter {
    fn drop(&mut self) {
        let _ = self.stop.write(1);
        if let Some(h) = self.handle.take()
            // The thread itself may hold the last reference for a moment.
            && h.thread().id() != std::thread::current().id()
        {
            let _ = h.join();
        }
    }
}

fn waiter(shared: Arc<Shared>, vm: Weak<Vm>) -> Result<Waiter> {
    let epoll = Arc::new(Epoll::new()?);
    let stop = EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?;
    epoll.ctl(ControlOperation::Add, stop.as_raw_fd(), EpollEvent::new(EventSet::IN, STOP))?;
    let inner = epoll.clone();
    // A thread's first system calls are others than its later ones: KVM_IRQFD returns when they are over, since the program may
    // put a filter of system calls on all its threads next.
    let started = Arc::new(Barrier::new(2));
    let begins = started.clone();
    let handle = std::thread::Builder::new().name("softkvm-irqfd".into()).spawn(move || {
        crate::signal::block_all();
        begins.wait();
        drop(begins);
        let mut events = [EpollEvent::default(); 32];
        loop {
            let n = match inner.wait(-1, &mut events) {
                Ok(n) => n,
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(_) => return,
            };
            for e in &events[..n] {
                if e.data() == STOP {
                    return;
                }
                let Some(vm) = vm.upgrade() else { return };
                shared.fire(e.data(), &vm);
            }
        }
    })?;
    started.wait();
    Ok(Waiter { epoll, stop, handle: Some(handle) })
}

impl Shared {
    fn fire(&self, key: u64, vm: &Vm) {
        let (gsi, resample) = {
            let list = self.by_key.lock();
            let Some(i) = list.1.get(&key) else { return };
            // The counter is taken, as KVM takes it. It is not empty: epoll said so, and we are its reader.
            if i.fd.read().is_err() {
                return;
            }
            (i.gsi, i.resample.is_some())
        };
        if resample {
            vm.set_irq_line(gsi, SourceId::RESAMPLE, true);
        } else {
            vm.set_irq_line(gsi, SourceId::USERSPACE, true);
            vm.set_irq_line(gsi, SourceId::USERSPACE, false);
        }
    }
}

impl Irqfds {
    /// KVM_IRQFD.
    pub fn irqfd(&self, vm: &Arc<Vm>, a: &kvm_irqfd) -> Result {
        if a.flags & !(KVM_IRQFD_FLAG_DEASSIGN | KVM_IRQFD_FLAG_RESAMPLE) != 0 {
            return Err(Errno::EINVAL);
        }
        let assign = a.flags & KVM_IRQFD_FLAG_DEASSIGN == 0;
        let resamples = a.flags & KVM_IRQFD_FLAG_RESAMPLE != 0;
        // Whose acknowledgements are seen is the whole irqchip's. A GSI without a route is no error.
        let split = vm.with_irqchip(|c| c.is_split());
        if assign && (split.is_none() || (resamples && split == Some(true))) {
            return Err(Errno::EINVAL);
        }
        let fd = eventfd(a.fd as i32)?;
        let id = eventfd_id(&fd);
        if !assign {
            self.deassign(vm, id, a.gsi);
            return Ok(());
        }
        let resample = match resamples {
            true => Some(eventfd(a.resamplefd as i32)?),
            false => None,
        };
        let mut thread = self.thread.lock();
        let mut list = self.shared.by_key.lock();
        if list.1.values().any(|i| i.id.is_some() && i.id == id) {
            return Err(Errno::EBUSY);
        }
        if thread.is_none() {
            *thread = Some(waiter(self.shared.clone(), Arc::downgrade(vm))?);
        }
        let Some(w) = thread.as_ref() else { return Err(Errno::ENOMEM) };
        if resample.is_some() {
            self.listen_to_acknowledgements(vm);
            vm.with_irqchip(|c| c.add_resampler(a.gsi));
        }
        list.0 += 1;
        let key = list.0;
        // Level-triggered: an eventfd that was signalled before is seen at once.
        w.epoll.ctl(ControlOperation::Add, fd.as_raw_fd(), EpollEvent::new(EventSet::IN, key))?;
        list.1.insert(key, Irqfd { fd, id, gsi: a.gsi, resample });
        Ok(())
    }

    fn deassign(&self, vm: &Arc<Vm>, id: Option<u64>, gsi: u32) {
        let thread = self.thread.lock();
        let mut list = self.shared.by_key.lock();
        let keys: Vec<u64> =
            list.1.iter().filter(|(_, i)| i.id == id && i.gsi == gsi).map(|(k, _)| *k).collect();
        let mut released = 0;
        for k in keys {
            if let Some(i) = list.1.remove(&k) {
                if let Some(w) = thread.as_ref() {
                    let _ = w.epoll.ctl(ControlOperation::Delete, i.fd.as_raw_fd(), EpollEvent::default());
                }
                released += i.resample.is_some() as usize;
            }
        }
        drop(list);
        for _ in 0..released {
            if let Some(outcome) = vm.with_irqchip(|c| c.remove_resampler(gsi)) {
                vm.carry_out(outcome, None);
            }
        }
    }

    /// The guest's EOI de-asserts a resampling line and tells the caller, who raises it again if it must.
    fn listen_to_acknowledgements(&self, vm: &Arc<Vm>) {
        let shared = Arc::downgrade(&self.shared);
        vm.set_ack_hook(Box::new(move |gsi| {
            if let Some(s) = shared.upgrade() {
                for i in s.by_key.lock().1.values().filter(|i| i.gsi == gsi) {
                    if let Some(r) = &i.resample {
                        let _ = r.write(1);
                    }
                }
            }
        }));
    }
}
