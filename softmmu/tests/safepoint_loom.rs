//! The safe points under loom: every interleaving of a few threads (up to a number of preemptions) of the very source of
//! `softmmu/src/safepoint.rs`, on the model's atomics, locks and futex. A lost wake-up is a deadlock, which loom tells.
//!
//! Not here: the safe points with real threads (unit tests, and everything that runs a guest).

#[path = "../src/safepoint.rs"]
#[allow(dead_code)]
mod safepoint;

/// What `safepoint` is built on, in the model.
#[allow(dead_code)]
mod primitives {
    use loom::sync::atomic::{Ordering, Ordering::SeqCst, fence};

    /// The model takes sequentially consistent accesses for acquire and release; a fence on both sides makes up for it.
    macro_rules! atomic {
        ($name:ident $t:ty) => {
            pub struct $name(loom::sync::atomic::$name);

            #[allow(dead_code)] // One set for all widths; not every width needs all of it.
            impl $name {
                pub fn new(v: $t) -> Self {
                    Self(loom::sync::atomic::$name::new(v))
                }
                fn fenced<R>(&self, order: Ordering, f: impl FnOnce(&loom::sync::atomic::$name) -> R) -> R {
                    if order == SeqCst {
                        fence(SeqCst);
                    }
                    let r = f(&self.0);
                    if order == SeqCst {
                        fence(SeqCst);
                    }
                    r
                }
                pub fn load(&self, order: Ordering) -> $t {
                    self.fenced(order, |a| a.load(order))
                }
                pub fn store(&self, v: $t, order: Ordering) {
                    self.fenced(order, |a| a.store(v, order));
                }
                pub fn fetch_or(&self, v: $t, order: Ordering) -> $t {
                    self.fenced(order, |a| a.fetch_or(v, order))
                }
                pub fn fetch_and(&self, v: $t, order: Ordering) -> $t {
                    self.fenced(order, |a| a.fetch_and(v, order))
                }
                pub fn fetch_add(&self, v: $t, order: Ordering) -> $t {
                    self.fenced(order, |a| a.fetch_add(v, order))
                }
                /// For translated code, of which there is none here.
                pub fn as_ptr(&self) -> *mut $t {
                    core::ptr::null_mut()
                }
            }
        };
    }
    atomic!(AtomicU32 u32);
    atomic!(AtomicU64 u64);

    /// parking_lot's lock, on the model's.
    #[derive(Default)]
    pub struct Mutex<T>(loom::sync::Mutex<T>);
    pub struct Guard<'a, T>(Option<loom::sync::MutexGuard<'a, T>>);

    impl<T> Mutex<T> {
        pub fn new(t: T) -> Self {
            Self(loom::sync::Mutex::new(t))
        }
        pub fn lock(&self) -> Guard<'_, T> {
            Guard(Some(self.0.lock().expect("nobody panics")))
        }
    }

    impl<T> core::ops::Deref for Guard<'_, T> {
        type Target = T;
        fn deref(&self) -> &T {
            self.0.as_ref().expect("held")
        }
    }

    impl<T> core::ops::DerefMut for Guard<'_, T> {
        fn deref_mut(&mut self) -> &mut T {
            self.0.as_mut().expect("held")
        }
    }

    #[derive(Default)]
    pub struct Condvar(loom::sync::Condvar);

    impl Condvar {
        pub fn wait<T>(&self, guard: &mut Guard<'_, T>) {
            let held = guard.0.take().expect("held");
            guard.0 = Some(self.0.wait(held).expect("nobody panics"));
        }
        pub fn notify_all(&self) {
            self.0.notify_all();
        }
    }

    /// The kernel's: the word is looked at, and the sleep begun, under the lock that a waker takes.
    pub mod futex {
        use super::{AtomicU32, Condvar, Mutex};
        use std::sync::atomic::Ordering::SeqCst;

        loom::lazy_static! {
            static ref QUEUE: (Mutex<()>, Condvar) = (Mutex::new(()), Condvar::default());
        }

        pub fn wait(word: &AtomicU32, expected: u32, _: Option<std::time::Duration>) -> bool {
            let mut queue = QUEUE.0.lock();
            if word.load(SeqCst) == expected {
                QUEUE.1.wait(&mut queue);
            }
            true
        }

        pub fn wake(_: &AtomicU32) {
            let _queue = QUEUE.0.lock();
            QUEUE.1.notify_all();
        }
    }
}

use loom::sync::RwLock;
use loom::thread;
use primitives::AtomicU32;
use safepoint::{Requests, VcpuGate, World};
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;

/// Every interleaving with so many preemptions.
fn model(preemptions: usize, f: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(preemptions);
    builder.check(f);
}

/// HLT until an event comes.
fn halt(gate: &VcpuGate) {
    gate.enter();
    while !gate.take_requests().contains(Requests::EVENT) {
        gate.block(None);
    }
    gate.leave();
}

#[test]
fn a_request_is_not_slept_through() {
    model(3, || {
        let world = World::new();
        let gate = world.register();
        let vcpu = {
            let gate = Arc::clone(&gate);
            thread::spawn(move || halt(&gate))
        };
        gate.request(Requests::EVENT);
        vcpu.join().expect("it ends");
    });
}

#[test]
fn nor_one_among_others() {
    model(2, || {
        let world = World::new();
        let gate = world.register();
        let vcpu = {
            let gate = Arc::clone(&gate);
            thread::spawn(move || halt(&gate))
        };
        let other = {
            let gate = Arc::clone(&gate);
            thread::spawn(move || gate.request(Requests::TLB_FLUSH))
        };
        gate.request(Requests::EVENT);
        vcpu.join().expect("it ends");
        other.join().expect("it ends");
    });
}

/// What vCPUs read as they run and exclusive sections write. Nobody waits for this lock: whoever would have to has met
/// another where the safe points should have kept them apart.
type Tables = Arc<(RwLock<()>, AtomicU32)>;

fn tables() -> Tables {
    Arc::new((RwLock::new(()), AtomicU32::new(0)))
}

/// The accesses in the middle depend on each other: there the model lets another thread go on.
fn look(tables: &Tables) {
    let _reading = tables.0.try_read().expect("no section is on while a vCPU runs");
    tables.1.load(SeqCst);
}

fn change(tables: &Tables) {
    let _writing = tables.0.try_write().expect("a section is alone");
    tables.1.fetch_add(1, SeqCst);
}

#[test]
fn an_exclusive_section_is_alone() {
    model(3, || {
        let world = World::new();
        let tables = tables();
        let gate = world.register();
        let vcpu = {
            let (gate, tables) = (Arc::clone(&gate), Arc::clone(&tables));
            thread::spawn(move || {
                gate.enter();
                look(&tables);
                gate.park_if_stopped();
                look(&tables);
                gate.leave();
            })
        };
        world.exclusive(None, |_| change(&tables));
        vcpu.join().expect("it ends");
    });
}

#[test]
fn a_halted_vcpu_holds_up_no_section() {
    model(2, || {
        let world = World::new();
        let tables = tables();
        let gate = world.register();
        let vcpu = {
            let (gate, tables) = (Arc::clone(&gate), Arc::clone(&tables));
            thread::spawn(move || {
                gate.enter();
                while !gate.take_requests().contains(Requests::EVENT) {
                    gate.block(None);
                    look(&tables);
                }
                gate.leave();
            })
        };
        world.exclusive(None, |_| change(&tables));
        gate.request(Requests::EVENT);
        vcpu.join().expect("it ends");
    });
}

#[test]
fn two_vcpus_with_a_section_each() {
    model(2, || {
        let world = World::new();
        let tables = tables();
        let vcpus = [world.register(), world.register()].map(|gate| {
            let (world, tables) = (Arc::clone(&world), Arc::clone(&tables));
            thread::spawn(move || {
                gate.enter();
                look(&tables);
                world.exclusive(Some(&gate), |_| change(&tables));
                look(&tables);
                gate.leave();
            })
        });
        for vcpu in vcpus {
            vcpu.join().expect("it ends");
        }
    });
}
