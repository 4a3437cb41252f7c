//! The MMU of a VM and of a vCPU: the entry points.

use crate::access::{Access, MmuFault, Target, Tracked};
use crate::guest_memory::GuestMemory;
use crate::host_mem::HostPtr;
use crate::memslot::{MemRegion, MemslotError};
use crate::safepoint::{Exclusive, Requests, VcpuGate, World};
use crate::tlb::{Tlb, View};
use core::ops::Range;
use std::sync::Arc;
use x86_arch::{Cr0, Cr4, Efer, Gpa, Gva, Hva};

/// What a VM's MMU is made with.
#[derive(Clone, Copy, Debug)]
pub struct MmuConfig {
    /// Shadow pages at most; 0 chooses by the size of memory, as KVM does (KVM api, KVM_SET_NR_MMU_PAGES).
    pub shadow_pages: usize,
}

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
    /// Physical-address width (CPUID 80000008H).
    pub maxphyaddr: u8,
}

/// What [`VcpuMmu::peek`] finds (KVM api, KVM_TRANSLATE).
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

/// A store hit decoded code: `granules` of the host frame (hva >> 12), 64 bytes each, have changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CodeWrite {
    /// hva >> 12.
    pub frame: u64,
    /// Bit n: bytes `[64 * n, 64 * n + 64)` of the frame. All ones: take the whole frame as changed.
    pub granules: u64,
}

/// Whether decoded code is protected now.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use]
pub enum CodeMark {
    /// Stores to it will be reported.
    Ready,
    /// Other vCPUs may still store to it unseen: call `mark_code` again under `World::exclusive` with the token.
    NeedsExclusive,
}

/// One VM's MMU: memory slots, shadow pages, trackers.
pub struct Mmu {
    world: Arc<World>,
}

impl Mmu {
    /// A VM's MMU, without memory.
    pub fn new(world: Arc<World>, _config: MmuConfig) -> Arc<Mmu> {
        crate::host_mem::install_fault_handler();
        Arc::new(Mmu { world })
    }

    /// The VM's vCPU gates.
    pub fn world(&self) -> &Arc<World> {
        &self.world
    }

    /// Creates, deletes, moves or re-flags a slot (KVM api 4.35).
    pub fn set_memory_region(&self, _ex: &Exclusive<'_>, _region: MemRegion) -> Result<(), MemslotError> {
        Ok(())
    }

    /// The slot's dirty bitmap, one bit a page, which is cleared (KVM api 4.8).
    pub fn get_dirty_log(
        &self,
        _ex: &Exclusive<'_>,
        _as_id: u16,
        _slot: u32,
    ) -> Result<Vec<u64>, MemslotError> {
        Err(MemslotError::NoEntry)
    }

    /// The caller's mappings in `range` have changed.
    pub fn invalidate_hva(&self, _ex: &Exclusive<'_>, _range: Range<Hva>) {}

    /// Access by gpa to an address space.
    pub fn guest_memory(self: &Arc<Self>, _as_id: u16) -> GuestMemory {
        unimplemented!("skeleton")
    }
}

/// One vCPU's MMU, owned by its thread.
pub struct VcpuMmu {
    /// The software TLB: look here first, then call [`VcpuMmu::translate`].
    pub tlb: Box<Tlb>,
    mmu: Arc<Mmu>,
    registers: PagingRegisters,
}

impl VcpuMmu {
    /// A vCPU's MMU; `gate` is the vCPU's own.
    pub fn new(mmu: Arc<Mmu>, _gate: Arc<VcpuGate>) -> VcpuMmu {
        VcpuMmu { tlb: Tlb::new(), mmu, registers: PagingRegisters::default() }
    }

    /// The VM's MMU.
    pub fn mmu(&self) -> &Arc<Mmu> {
        &self.mmu
    }

    /// Access by gpa to the current address space.
    pub fn guest_memory(&self) -> &GuestMemory {
        unimplemented!("skeleton")
    }

    /// The registers in force.
    pub fn registers(&self) -> &PagingRegisters {
        &self.registers
    }

    /// A change of mode (MOV to CR0 or CR4, WRMSR EFER, SMM, KVM_SET_SREGS): flushes what the SDM says it flushes.
    /// With PAE paging newly on, call [`load_pdptrs`](Self::load_pdptrs) too.
    pub fn set_registers(&mut self, registers: PagingRegisters) {
        self.registers = registers;
    }

    /// MOV to CR3 after its checks. Bit 63 (with CR4.PCIDE) keeps the PCID's translations. With PAE paging, call
    /// [`load_pdptrs`](Self::load_pdptrs) first and only commit if that succeeds.
    pub fn mov_cr3(&mut self, value: u64) {
        self.registers.cr3 = value & !x86_arch::control::CR3_NO_FLUSH;
    }

    /// Loads the four PDPTE registers from memory at `cr3` (SDM vol. 3A, 4.4.1). `false`: a reserved bit is set in
    /// a present one, or the table cannot be read, so the instruction takes #GP(0) and nothing has changed.
    pub fn load_pdptrs(&mut self, _cr3: u64) -> bool {
        true
    }

    /// The PDPTE registers (for KVM_GET_SREGS2).
    pub fn pdptrs(&self) -> [u64; 4] {
        [0; 4]
    }

    /// Sets the PDPTE registers (KVM_SET_SREGS2).
    pub fn set_pdptrs(&mut self, _pdptrs: [u64; 4]) {}

    /// WRPKRU, XRSTOR: a new PKRU.
    pub fn set_pkru(&mut self, pkru: u32) {
        self.registers.pkru = pkru;
    }

    /// INVLPG.
    pub fn invlpg(&mut self, gva: Gva) {
        self.tlb.flush_page(gva);
    }

    /// INVPCID type 0: one address of one PCID.
    pub fn invpcid_address(&mut self, _pcid: u16, gva: Gva) {
        self.tlb.flush_page(gva);
    }

    /// INVPCID type 1: one PCID.
    pub fn invpcid_context(&mut self, pcid: u16) {
        self.tlb.flush_pcid(pcid);
    }

    /// INVPCID type 2 (and 3, which may keep globals but need not): everything.
    pub fn invpcid_all(&mut self) {
        self.tlb.flush_all();
    }

    /// CPL or EFLAGS.AC has changed.
    #[inline(always)]
    pub fn set_view(&mut self, view: View) {
        self.tlb.set_view(view);
    }

    /// Translates an access that the TLB did not know, and fills the TLB. The access must not cross a 4 KiB page.
    /// `size` is its length in bytes. EFLAGS.AC is that of the current view.
    pub fn translate(&mut self, gva: Gva, _access: Access, _size: u64) -> Result<Target, MmuFault> {
        Ok(Target::Mmio(Gpa(gva.0)))
    }

    /// Must follow each store through a [`Target::Tracked`]: updates what was derived from the memory. True: decoded
    /// code has changed (perhaps this very block's), see [`take_code_writes`](Self::take_code_writes).
    pub fn after_write(&mut self, _tracked: Tracked, _size: u64) -> bool {
        false
    }

    /// Translates for a debugger: supervisor rights, no A/D bits, no faults.
    pub fn peek(&mut self, _gva: Gva) -> Option<Peek> {
        None
    }

    /// Acts on the requests that concern the MMU. Call at each safe point with what `VcpuGate::take_requests` returned,
    /// and always between `VcpuGate::enter` and the first guest access.
    pub fn apply_requests(&mut self, _requests: Requests) {}

    /// Does what [`MmuFault::Exclusive`] asked for.
    pub fn resolve_exclusive(&mut self, _ex: &Exclusive<'_>) {}

    /// Registers decoded code of `len` bytes at `ptr` (within its page), so that stores to it are reported. Call it
    /// BEFORE reading the bytes to decode.
    pub fn mark_code(&mut self, _ex: Option<&Exclusive<'_>>, _ptr: HostPtr, _len: u64) -> CodeMark {
        CodeMark::Ready
    }

    /// Code that was overwritten since the last call, by any vCPU.
    pub fn take_code_writes(&mut self) -> Vec<CodeWrite> {
        Vec::new()
    }

    /// Drops the execute tags: the next fetch from each page goes through [`translate`](Self::translate).
    pub fn drop_exec_tags(&mut self) {
        self.tlb.drop_exec_tags();
    }
}
