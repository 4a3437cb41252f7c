//! A vCPU's MMU: its paging registers, its TLB, and its share of the VM's structures.
//!
//! Not here: how a miss is handled (`fault`), what a change of registers does (`invalidate`).

use crate::access::Tracked;
use crate::dirty_ring::DirtyRing;
use crate::guest_memory::{GuestMemory, SlotTables};
use crate::host_mem::HostPtr;
use crate::memslot::Memslots;
use crate::mmu::Mmu;
use crate::page_track::granules;
use crate::root::{RootCache, RootKey};
use crate::safepoint::{Exclusive, Requests, VcpuGate};
use crate::shootdown::{CodeWrite, Peer};
use crate::stats::VcpuStats;
use crate::tlb::{Tlb, View};
use crate::walk::{PagingContext, Purpose, walk};
use std::sync::Arc;
use x86_arch::{Cr0, Cr4, Efer, Gpa, Gva, PagingMode};

/// The registers that say how linear addresses are translated.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct PagingRegisters {
    /// CR0.
    pub cr0: Cr0,
    /// CR3, without the no-flush bit.
    pub cr3: u64,
    /// CR4.
    pub cr4: Cr4,
    /// IA32_EFER.
    pub efer: Efer,
    /// PKRU.
    pub pkru: u32,
    /// The address space: 0, or 1 in system-management mode.
    pub as_id: u16,
    /// Physical-address width (CPUID 80000008H), 32 to 52.
    pub maxphyaddr: u8,
}

/// What [`VcpuMmu::peek`] finds (KVM api 4.6, KVM_TRANSLATE).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Peek {
    /// The guest physical address.
    pub gpa: Gpa,
    /// Writable.
    pub writable: bool,
    /// User-accessible.
    pub user: bool,
    /// Executable.
    pub executable: bool,
}

/// Whether decoded code is protected now.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use]
pub enum CodeMark {
    /// Stores to it will be reported.
    Ready,
    /// Another vCPU may still store to it unseen: call `mark_code` again, under `World::exclusive` with the token or after a safe point.
    NeedsExclusive,
}

/// One vCPU's MMU, owned by its thread.
pub struct VcpuMmu {
    /// The software TLB: look here first, then call [`VcpuMmu::translate`].
    pub tlb: Box<Tlb>,
    pub(crate) mmu: Arc<Mmu>,
    pub(crate) registers: PagingRegisters,
    pub(crate) context: PagingContext,
    pub(crate) slots: Arc<Memslots>,
    pub(crate) peer: Arc<Peer>,
    pub(crate) roots: RootCache,
    pub(crate) stats: VcpuStats,
    memory: GuestMemory,
}

impl VcpuMmu {
    /// A vCPU's MMU; `gate` is the vCPU's own. Paging is off until the registers are set.
    pub fn new(mmu: Arc<Mmu>, gate: Arc<VcpuGate>) -> VcpuMmu {
        let peer = Peer::new(gate);
        mmu.peers.add(Arc::clone(&peer));
        VcpuMmu {
            tlb: Tlb::new(),
            registers: PagingRegisters { maxphyaddr: 36, ..PagingRegisters::default() },
            context: PagingContext::default(),
            slots: mmu.slots(0),
            memory: GuestMemory::of_vcpu(Arc::clone(&mmu), 0, Arc::clone(&peer)),
            roots: RootCache::new(RootKey::of(&PagingContext::default(), 0), &mmu.arena),
            stats: VcpuStats::default(),
            peer,
            mmu,
        }
    }

    /// The VM's MMU.
    pub fn mmu(&self) -> &Arc<Mmu> {
        &self.mmu
    }

    /// Access by gpa to the current address space.
    pub fn guest_memory(&self) -> &GuestMemory {
        &self.memory
    }

    /// The registers in force.
    pub fn registers(&self) -> &PagingRegisters {
        &self.registers
    }

    /// What happened so far.
    pub fn stats(&self) -> VcpuStats {
        self.stats
    }

    /// The paging mode in force.
    pub fn paging_mode(&self) -> PagingMode {
        self.context.mode
    }

    /// Takes the slots of the address space that the registers name.
    pub(crate) fn reload_slots(&mut self) {
        self.slots = self.mmu.slots(self.registers.as_id);
        if self.memory.as_id() != self.registers.as_id {
            self.memory =
                GuestMemory::of_vcpu(Arc::clone(&self.mmu), self.registers.as_id, Arc::clone(&self.peer));
        }
    }

    /// CPL or EFLAGS.AC has changed.
    #[inline(always)]
    pub fn set_view(&mut self, view: View) {
        self.tlb.set_view(view);
    }

    pub(crate) fn tables(&self) -> SlotTables<'_> {
        SlotTables { mmu: &self.mmu, as_id: self.registers.as_id, slots: &self.slots, peer: &self.peer }
    }

    /// Gives the vCPU a dirty ring, before it runs (KVM_CAP_DIRTY_LOG_RING). A second one is dropped.
    pub fn set_dirty_ring(&self, ring: DirtyRing) {
        if self.peer.ring.set(ring).is_ok() {
            self.mmu.use_dirty_rings();
        }
    }

    /// Whether the vCPU may not run until the caller has reset entries of its dirty ring.
    pub fn dirty_ring_is_full(&self) -> bool {
        self.peer.ring.get().is_some_and(DirtyRing::is_full)
    }

    /// Must follow each store through a `Target::Tracked`: updates what was derived from the memory. True: decoded
    /// code has changed (perhaps this very block's), see [`take_code_writes`](Self::take_code_writes).
    pub fn after_write(&mut self, tracked: Tracked, size: u64) -> bool {
        let Some(slot) = self.slots.find(tracked.gpa.gfn()) else { return false };
        self.mmu.written(self.registers.as_id, slot, tracked.gpa, tracked.ptr, size, Some(&self.peer))
    }

    /// Translates for a debugger: supervisor rights, no A/D bits set, nothing filled.
    pub fn peek(&self, gva: Gva) -> Option<Peek> {
        let gva = self.linear(gva);
        if !self.context.is_canonical(gva) {
            return None;
        }
        let found = walk(&self.tables(), &self.context, gva, Purpose::Peek).ok()?;
        Some(Peek {
            gpa: found.gpa,
            writable: found.rights.write,
            user: found.rights.user,
            executable: found.rights.execute,
        })
    }

    /// Linear addresses have 32 bits outside long mode.
    pub(crate) fn linear(&self, gva: Gva) -> Gva {
        match self.context.mode {
            PagingMode::Level4 | PagingMode::Level5 => gva,
            _ => Gva(gva.0 & 0xffff_ffff),
        }
    }

    /// Acts on the requests that concern the MMU. Call at each safe point with what `VcpuGate::take_requests` returned,
    /// and always between `VcpuGate::enter` and the first guest access.
    pub fn apply_requests(&mut self, requests: Requests) {
        if requests.contains(Requests::MEMSLOTS) {
            self.reload_slots();
        }
        if requests.contains(Requests::TLB_FLUSH) {
            self.stats.flushes += 1;
            self.tlb.flush_all();
        }
        if requests.contains(Requests::MMU) {
            let (frames, flush, epoch) = self.peer.take_frames();
            if flush {
                self.stats.flushes += 1;
                self.tlb.flush_all();
            }
            for frame in frames {
                self.tlb.drop_write_tags_of_frame(frame);
            }
            self.peer.acknowledge(epoch);
        }
    }

    /// The vCPU's own part of an exclusive section: acts on this vCPU's messages, as every other vCPU will.
    pub fn resolve_exclusive(&mut self, _ex: &Exclusive<'_>) {
        self.apply_requests(Requests::MMU);
    }

    /// Registers decoded code of `len` bytes at `ptr` (within its page), so that stores to it are reported. Call it
    /// BEFORE reading the bytes to decode, and at a safe point.
    pub fn mark_code(&mut self, ex: Option<&Exclusive<'_>>, ptr: HostPtr, len: u64) -> CodeMark {
        let frame = ptr.frame();
        let mut first = false;
        let page = self.mmu.code.mark(frame, granules(ptr.hva().page_offset(), len), || {
            first = true;
            self.mmu.peers.drop_write_tags(frame, None)
        });
        if first {
            // Decoding happens at a safe point: this vCPU can act on the message at once.
            self.apply_requests(Requests::MMU);
        }
        if ex.is_some() || self.mmu.peers.quiesced(page.epoch, Some(&self.peer)) {
            CodeMark::Ready
        } else {
            CodeMark::NeedsExclusive
        }
    }

    /// Code that was overwritten since the last call, by any vCPU.
    pub fn take_code_writes(&mut self) -> Vec<CodeWrite> {
        self.peer.take_code()
    }

    /// Drops the execute tags: the next fetch from each page goes through `translate`.
    pub fn drop_exec_tags(&mut self) {
        self.tlb.drop_exec_tags();
    }
}

impl Drop for VcpuMmu {
    fn drop(&mut self) {
        self.roots.forget_all();
        self.roots.settle(&mut self.mmu.shadow.lock(), &self.mmu.arena);
        self.mmu.peers.remove(&self.peer);
    }
}
