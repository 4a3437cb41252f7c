//! Messages between the vCPUs' MMUs: write tags to drop, code that was overwritten.
//!
//! A vCPU's TLB belongs to its thread. Whoever needs its tags gone leaves a message and a request; the vCPU
//! acts on it at its next safe point, and always before it runs guest code. An *epoch* numbers the messages: once each vCPU has
//! reached an epoch, or is at a safe point where it must take its messages before going on, no tag of before that epoch is in use.
//!
//! Not here: what makes tags bad (`mmu`, `fault`, `page_track`).

use crate::dirty_ring::DirtyRing;
use crate::safepoint::{Mode, Requests, VcpuGate};
use parking_lot::{Mutex, RwLock};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed, Ordering::SeqCst};
use std::sync::{Arc, OnceLock};

/// A store hit decoded code: `granules` of the host frame (hva >> 12), 64 bytes each, have changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CodeWrite {
    /// hva >> 12.
    pub frame: u64,
    /// Bit n: bytes `[64 * n, 64 * n + 64)` of the frame.
    pub granules: u64,
}

/// More frames than this in one message: a flush is cheaper than looking for each.
const MAX_FRAMES: usize = 16;

#[derive(Default)]
pub(crate) struct Mailbox {
    /// Host frames whose write tags must go.
    pub frames: Vec<u64>,
    /// Too many of them: flush.
    pub flush: bool,
    /// Overwritten code.
    pub code: Vec<CodeWrite>,
    /// The last epoch that is in here.
    epoch: u64,
}

/// A vCPU as the others see it.
pub(crate) struct Peer {
    pub gate: Arc<VcpuGate>,
    mailbox: Mutex<Mailbox>,
    /// The last epoch whose messages this vCPU has acted on.
    seen: AtomicU64,
    /// Where the pages that it dirties are told.
    pub ring: OnceLock<DirtyRing>,
}

impl Peer {
    pub fn new(gate: Arc<VcpuGate>) -> Arc<Peer> {
        Arc::new(Peer { gate, mailbox: Mutex::default(), seen: AtomicU64::new(0), ring: OnceLock::new() })
    }

    /// The tags to drop: frames, and whether to flush all. Call [`acknowledge`](Self::acknowledge) once they are gone.
    pub fn take_frames(&self) -> (Vec<u64>, bool, u64) {
        let mut mailbox = self.mailbox.lock();
        (core::mem::take(&mut mailbox.frames), core::mem::take(&mut mailbox.flush), mailbox.epoch)
    }

    /// The messages up to this epoch have been acted on.
    pub fn acknowledge(&self, epoch: u64) {
        self.seen.fetch_max(epoch, SeqCst);
    }

    /// The code that was overwritten since the last call.
    pub fn take_code(&self) -> Vec<CodeWrite> {
        core::mem::take(&mut self.mailbox.lock().code)
    }
}

/// All vCPUs' mailboxes.
#[derive(Default)]
pub(crate) struct Peers {
    list: RwLock<Vec<Arc<Peer>>>,
    /// The last epoch given out. Held while its messages are delivered, so that epochs arrive in order.
    epoch: Mutex<u64>,
    /// Requests to flush that went to all.
    flushes: AtomicU64,
}

impl Peers {
    pub fn add(&self, peer: Arc<Peer>) {
        self.list.write().push(peer);
    }

    /// Those that are here now.
    pub fn all(&self) -> Vec<Arc<Peer>> {
        self.list.read().clone()
    }

    /// Tells a written page in the ring of the vCPU that wrote it; a write by no vCPU goes to the first one's.
    pub fn dirtied(&self, page: crate::dirty_ring::DirtyPage, me: Option<&Peer>) {
        let push = |peer: &Peer| {
            if let Some(ring) = peer.ring.get()
                && ring.push(page)
            {
                peer.gate.request(Requests::DIRTY_RING);
            }
        };
        match me {
            Some(me) => push(me),
            None => {
                if let Some(first) = self.list.read().iter().find(|p| p.ring.get().is_some()) {
                    push(first);
                }
            }
        }
    }

    pub fn remove(&self, peer: &Arc<Peer>) {
        self.list.write().retain(|p| !Arc::ptr_eq(p, peer));
    }

    /// How often all vCPUs were asked to flush, and to drop anything from their TLBs.
    pub fn counts(&self) -> (u64, u64) {
        let flushes = self.flushes.load(Relaxed);
        (flushes, flushes + *self.epoch.lock())
    }

    /// Asks every vCPU but `me` to drop its write tags of a host frame.
    pub fn drop_write_tags(&self, frame: u64, me: Option<&Peer>) -> u64 {
        let mut epoch = self.epoch.lock();
        *epoch += 1;
        for peer in
            self.list.read().iter().filter(|p| !me.is_some_and(|me| core::ptr::eq(me, &raw const ***p)))
        {
            {
                let mut mailbox = peer.mailbox.lock();
                mailbox.epoch = *epoch;
                if mailbox.frames.len() < MAX_FRAMES {
                    mailbox.frames.push(frame);
                } else {
                    mailbox.frames.clear();
                    mailbox.flush = true;
                }
            }
            peer.gate.request(Requests::MMU);
        }
        *epoch
    }

    /// Whether no vCPU can use a tag of before `epoch` any more. `me`, who asks and may be in the middle of an
    /// instruction, must have acted on its own messages; the others may also be where they act on them before they go on.
    pub fn quiesced(&self, epoch: u64, me: Option<&Peer>) -> bool {
        // A vCPU publishes Running and then takes its requests; here the request was published, and now the mode is read.
        self.list.read().iter().all(|peer| {
            let is_me = me.is_some_and(|me| core::ptr::eq(me, &raw const **peer));
            peer.seen.load(SeqCst) >= epoch || (!is_me && peer.gate.mode() != Mode::Running)
        })
    }

    /// Tells every vCPU of overwritten code; `me` gets the message without a request.
    pub fn code_written(&self, write: CodeWrite, me: Option<&Peer>) {
        for peer in self.list.read().iter() {
            peer.mailbox.lock().code.push(write);
            if !me.is_some_and(|me| core::ptr::eq(me, &raw const **peer)) {
                peer.gate.request(Requests::CODE);
            }
        }
    }

    /// Sends requests to every vCPU.
    pub fn request_all(&self, requests: Requests) {
        if requests.contains(Requests::TLB_FLUSH) {
            self.flushes.fetch_add(1, Relaxed);
        }
        for peer in self.list.read().iter() {
            peer.gate.request(requests);
        }
    }
}
