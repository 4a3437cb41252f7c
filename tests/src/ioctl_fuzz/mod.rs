//! Random sequences of raw ioctls against the layer in this process: whatever a caller does, nothing panics, hangs or leaks.
//!
//! A case is a number. From it come a few threads, each with steps of its own on the objects of all: ioctls with numbers,
//! pointers and structures that are right, nearly right or wrong ([`arguments`]), descriptors closed and opened, memory
//! taken away, guests that run and are kicked. What a case leaves behind is counted ([`accounting`]).
//!
//! Not here: the program that repeats cases (`tests/src/bin/fuzz_ioctls.rs`).

pub mod accounting;
pub mod arguments;
mod steps;

use crate::fuzz::random::Random;
use crate::ioctls::front::{Dispatch, Fd, Front};
use crate::ioctls::kernel::Pages;
use parking_lot::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use vmm_sys_util::eventfd::EventFd;

/// How often running vCPUs are kicked.
const KICK: Duration = Duration::from_micros(300);
/// Pages that guests and arguments share.
const PAGES: u64 = 64;

/// What the threads of a case share.
pub struct World {
    /// Who answers.
    pub front: Dispatch,
    /// Descriptors in use: with a kind to begin with, but nobody keeps to it.
    pub fds: Mutex<Vec<(Kind, Fd)>>,
    /// Arguments, guests' memory and guests' code, all in the same pages.
    pub pages: Pages,
    /// Eventfds for irqfds and ioeventfds.
    pub eventfds: Vec<EventFd>,
    /// A descriptor that is no eventfd.
    pub file: std::fs::File,
    defect: Mutex<Option<String>>,
}

/// What a descriptor was made as.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// `/dev/kvm`.
    System,
    /// A VM.
    Vm,
    /// A vCPU.
    Vcpu,
}

impl World {
    fn new() -> World {
        World {
            front: Dispatch::default(),
            fds: Mutex::default(),
            pages: Pages::new(PAGES),
            eventfds: (0..4)
                .map(|_| EventFd::new(libc::EFD_NONBLOCK).expect("eventfds can be made"))
                .collect(),
            file: std::fs::File::open("/dev/null").expect("it is everywhere"),
            defect: Mutex::default(),
        }
    }

    /// Adds a descriptor, unless it is an error.
    pub fn add(&self, kind: Kind, fd: i64) {
        if let Ok(fd) = Fd::try_from(fd)
            && fd > 0
        {
            self.fds.lock().push((kind, fd));
        }
    }

    /// A descriptor, mostly of the kind that is asked for.
    pub fn pick(&self, random: &mut Random, kind: Kind) -> Fd {
        let fds = self.fds.lock();
        if fds.is_empty() || random.one_in(200) {
            return random.pick(&[-1, 0, Fd::MAX]);
        }
        let fitting: Vec<Fd> = fds.iter().filter(|f| f.0 == kind).map(|f| f.1).collect();
        if fitting.is_empty() || random.one_in(10) {
            fds[random.below(fds.len())].1
        } else {
            random.pick(&fitting)
        }
    }

    /// Says that something went wrong.
    pub fn complain(&self, what: String) {
        self.defect.lock().get_or_insert(what);
    }
}

/// What of a case is run.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Steps of each thread.
    pub steps: usize,
    /// No more threads than this.
    pub threads: usize,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits { steps: usize::MAX, threads: usize::MAX }
    }
}

/// Runs a case. `Err`: what went wrong.
pub fn run(case: u64, limits: Limits) -> Result<u64, String> {
    let mut random = Random::new(case);
    let threads = random.pick(&[1, 1, 1, 2, 3]).min(limits.threads);
    let count = (20 + random.below(180)).min(limits.steps);
    let world = World::new();
    steps::prepare(&world, &mut random);
    let over = AtomicBool::new(false);
    let mut panics = Vec::new();
    std::thread::scope(|scope| {
        let kicker = scope.spawn(|| {
            while !over.load(Ordering::Acquire) {
                std::thread::sleep(KICK);
                world.front.kick_all();
            }
        });
        let workers: Vec<_> = (0..threads)
            .map(|n| {
                let world = &world;
                let mut random = Random::new(case ^ (n as u64 + 1) << 48);
                scope.spawn(move || {
                    for _ in 0..count {
                        steps::step(world, &mut random);
                    }
                })
            })
            .collect();
        for worker in workers {
            if let Err(panic) = worker.join() {
                let said = panic.downcast_ref::<String>().cloned();
                let said = said.or_else(|| panic.downcast_ref::<&str>().map(|s| (*s).into()));
                panics.push(said.unwrap_or_else(|| "a panic".into()));
            }
        }
        over.store(true, Ordering::Release);
        if kicker.join().is_err() {
            panics.push("the kicker panicked".into());
        }
    });
    for (_, fd) in world.fds.lock().drain(..) {
        world.front.close(fd);
    }
    if let Some(panic) = panics.pop() {
        return Err(format!("a panic: {panic}"));
    }
    match world.defect.lock().take() {
        Some(defect) => Err(defect),
        None => Ok((threads * count) as u64),
    }
}
