//! The virtual processor: its registers as handlers see them, and the derived
//! state that makes the common access cheap.
//!
//! This file holds the layout and the small accessors. Memory access is in
//! [`crate::mem`], event delivery in [`crate::inject`], the loop in
//! [`crate::run`], reset values in [`crate::state`].

use crate::cpuid::CpuidTable;
use crate::event::Events;
use crate::exit::Stop;
use crate::io::Io;
use crate::msr::MsrState;
use crate::stats::Stats;
use crate::vm::{VcpuShared, Vm};
use crate::xstate::XsaveImage;
use decoder::CpuMode;
use softmmu::{VcpuMmu, View};
use std::sync::Arc;
use x86_arch::control::{Cr0, Cr4, Dr6, Dr7, Efer, Xcr0};
use x86_arch::{DescriptorTable, Exception, Gva, PagingMode, Rflags, Seg, Segment};

/// Index of RIP in [`Hot::regs`]. While a handler runs it is the next instruction's.
pub const RIP: usize = 16;
/// Index of the entry of [`Hot::regs`] that is always zero: an absent base or index register.
pub const ZERO: usize = 17;

/// `Hot::attention`: an event may be deliverable now; look before the next instruction.
pub const ATTENTION_EVENT: u32 = 1 << 0;
/// `Hot::attention`: writes to the outside are queued and must be drained.
pub const ATTENTION_IO: u32 = 1 << 1;
/// `Hot::attention`: a store hit bytes that decoded blocks were made from.
pub const ATTENTION_CODE: u32 = 1 << 2;
/// `Hot::attention`: instructions must be executed one at a time (TF, interrupt shadow, debug).
pub const ATTENTION_STEP: u32 = 1 << 3;
/// `Hot::attention`: the vCPU is not in the state "runnable" any more (HLT, INIT).
pub const ATTENTION_ACTIVITY: u32 = 1 << 4;

/// `Hot::watch`: data accesses are checked for alignment (CPL 3, CR0.AM, EFLAGS.AC).
pub const WATCH_ALIGN: u32 = 1 << 0;
/// `Hot::watch`: data breakpoints are armed.
pub const WATCH_BREAKPOINT: u32 = 1 << 1;

/// What every instruction touches. Translated code will address it with
/// one-byte displacements from a base in its middle, so it is `repr(C)`,
/// at most 256 bytes long, and its offsets are asserted.
#[repr(C, align(64))]
#[derive(Clone, Debug)]
pub struct Hot {
    /// RAX to R15 in ModRM order, then RIP, then a constant zero.
    pub regs: [u64; 18],
    /// RFLAGS, fully materialised.
    pub rflags: u64,
    /// Instructions retired since creation; an iteration of REP counts as none until the last.
    pub retired: u64,
    /// Iterations of REP string instructions completed.
    pub rep_iterations: u64,
    /// Local reasons to leave the fast loop (`ATTENTION_*`). Ends the block after the current instruction.
    pub attention: u32,
    /// Reasons why data accesses take the slow path (`WATCH_*`).
    pub watch: u32,
    /// Mask of linear addresses: all ones in 64-bit mode, else 32 bits.
    pub linear_mask: u64,
    /// Mask of RIP: 64 bits in 64-bit mode, else 32.
    pub rip_mask: u64,
}

const _: () = assert!(core::mem::size_of::<Hot>() <= 256);
const _: () = assert!(core::mem::offset_of!(Hot, regs) == 0);
const _: () = assert!(core::mem::offset_of!(Hot, rflags) == 144);
const _: () = assert!(core::mem::offset_of!(Hot, retired) == 152);
const _: () = assert!(core::mem::offset_of!(Hot, attention) == 168);

/// The part of a segment register that the access path needs.
#[derive(Clone, Copy, Debug, Default)]
pub struct SegPath {
    /// Base to add (zero for ES, CS, SS, DS in 64-bit mode).
    pub base: u64,
    /// Bit 0: any read within reach is allowed; bit 1: any write. No limit or type check is needed then.
    pub open: u8,
    /// The last offset within reach.
    pub last: u64,
}

/// One virtual processor.
pub struct Vcpu {
    /// Registers and the loop's control words.
    pub hot: Hot,
    /// Segment access path, by `Seg` index; derived from `seg`.
    pub seg_path: [SegPath; 8],
    /// The MMU as this vCPU sees it: paging registers, TLB, shadow root.
    pub mmu: VcpuMmu,
    /// Current privilege level.
    pub cpl: u8,
    /// Code size in force: 16, 32 or 64 bits.
    pub mode: CpuMode,
    /// What a decoded block depends on besides its bytes: code size, and real, virtual-8086 or protected mode.
    pub block_mode: u8,
    /// Segment registers with their hidden parts, by `Seg` index.
    pub seg: [Segment; 8],
    /// GDTR.
    pub gdtr: DescriptorTable,
    /// IDTR.
    pub idtr: DescriptorTable,
    /// CR0.
    pub cr0: Cr0,
    /// CR2.
    pub cr2: u64,
    /// CR3.
    pub cr3: u64,
    /// CR4.
    pub cr4: Cr4,
    /// CR8 where there is no local APIC inside (else TPR is the APIC's).
    pub cr8: u64,
    /// IA32_EFER.
    pub efer: Efer,
    /// XCR0.
    pub xcr0: Xcr0,
    /// DR0 to DR3.
    pub dr: [u64; 4],
    /// DR6.
    pub dr6: Dr6,
    /// DR7.
    pub dr7: Dr7,
    /// Model-specific registers that are not kept elsewhere.
    pub msr: MsrState,
    /// x87, SSE, AVX … in the standard XSAVE format.
    pub xsave: XsaveImage,
    /// PKRU (also a component of XSAVE).
    pub pkru: u32,
    /// Machine code for the instructions that run on the host processor.
    pub native: crate::native::Native,
    /// Exceptions, interrupts, NMI, shadow, activity.
    pub events: Events,
    /// Requests to the outside and answers from there.
    pub io: Io,
    /// The CPUID table that the guest sees.
    pub cpuid: CpuidTable,
    /// The linear address of the last #PF raised, until delivery moves it to CR2.
    pub fault_gva: Gva,
    /// The host address of the last host fault.
    pub host_fault: u64,
    /// An exclusive section is held: LOCKed accesses may be done in parts.
    pub exclusive: bool,
    /// A LOCKed access has crossed a cache line, and user space wants to know: whoever tells it takes this back.
    pub bus_locked: bool,
    /// Length of the instruction being executed (for its start address: RIP minus this).
    pub insn_len: u8,
    /// What user space's debugger wants (KVM_SET_GUEST_DEBUG).
    pub debug: crate::debug::GuestDebug,
    /// Counters.
    pub stats: Stats,
    /// Added to the instructions retired where the time is told from a count ([`Vcpu::count`]).
    pub count_base: u64,
    /// How user space follows the task priority.
    pub vapic: crate::vapic::Vapic,
    /// TSC and kvmclock.
    pub clock: crate::vm_clock::VcpuClock,
    /// Paravirtual features.
    pub pv: crate::pv::Pv,
    /// What other threads may reach of this vCPU: gate, local APIC.
    pub shared: Arc<VcpuShared>,
    /// The VM.
    pub vm: Arc<Vm>,
}

impl Vcpu {
    /// RIP: of the next instruction while a handler runs.
    #[inline(always)]
    pub fn rip(&self) -> u64 {
        self.hot.regs[RIP]
    }

    /// Sets RIP, unmasked.
    #[inline(always)]
    pub fn set_rip(&mut self, v: u64) {
        self.hot.regs[RIP] = v;
    }

    /// RFLAGS as its type.
    #[inline(always)]
    pub fn rflags(&self) -> Rflags {
        Rflags::from_bits_retain(self.hot.rflags)
    }

    /// Whether these RFLAGS bits are all set.
    #[inline(always)]
    pub fn flag(&self, f: Rflags) -> bool {
        self.hot.rflags & f.bits() == f.bits()
    }

    /// Replaces the six status flags.
    #[inline(always)]
    pub fn set_status(&mut self, status: u64) {
        self.hot.rflags = self.hot.rflags & !Rflags::STATUS.bits() | status;
    }

    /// Writes RFLAGS whole, and notices what depends on it (IF, TF, AC, VM).
    pub fn set_rflags(&mut self, v: u64) {
        let old = self.hot.rflags;
        self.hot.rflags = v & Rflags::WRITABLE.bits() | Rflags::FIXED.bits();
        let changed = old ^ self.hot.rflags;
        if changed & (Rflags::IF | Rflags::TF | Rflags::RF).bits() != 0 {
            self.attend(ATTENTION_EVENT);
        }
        if changed & (Rflags::AC | Rflags::VM).bits() != 0 {
            self.update_mode();
        }
    }

    /// Asks the loop to stop after this instruction and look.
    #[inline(always)]
    pub fn attend(&mut self, why: u32) {
        self.hot.attention |= why;
    }

    /// CR0.PE is set and EFLAGS.VM is not.
    #[inline(always)]
    pub fn protected(&self) -> bool {
        self.cr0.contains(Cr0::PE) && !self.flag(Rflags::VM)
    }

    /// Real-address mode.
    #[inline(always)]
    pub fn real_mode(&self) -> bool {
        !self.cr0.contains(Cr0::PE)
    }

    /// Virtual-8086 mode.
    #[inline(always)]
    pub fn v86(&self) -> bool {
        self.flag(Rflags::VM)
    }

    /// IA-32e mode (64-bit or compatibility).
    #[inline(always)]
    pub fn long_mode(&self) -> bool {
        self.efer.contains(Efer::LMA)
    }

    /// 64-bit mode.
    #[inline(always)]
    pub fn long64(&self) -> bool {
        self.mode == CpuMode::Bits64
    }

    /// Implemented bits of a linear address: 48, or 57 with CR4.LA57.
    #[inline(always)]
    pub fn linear_bits(&self) -> u32 {
        if self.cr4.contains(Cr4::LA57) && self.long_mode() { 57 } else { 48 }
    }

    /// Whether `gva` is canonical in IA-32e mode.
    #[inline(always)]
    pub fn canonical(&self, gva: u64) -> bool {
        x86_arch::addr::is_canonical(gva, self.linear_bits())
    }

    /// The paging mode in force.
    pub fn paging_mode(&self) -> PagingMode {
        PagingMode::of(self.cr0, self.cr4, self.efer)
    }

    /// A segment register.
    #[inline(always)]
    pub fn segment(&self, s: Seg) -> &Segment {
        &self.seg[s as usize]
    }

    /// Replaces a segment register with its hidden part, and what is derived from it.
    /// No checks: those are the loader's. CPL is not touched (see [`Vcpu::set_cpl`]).
    pub fn set_segment(&mut self, s: Seg, v: Segment) {
        self.seg[s as usize] = v;
        if s == Seg::Cs {
            self.update_mode();
        } else {
            self.update_seg_path(s as usize);
        }
    }

    /// Sets the privilege level, and the TLB view that goes with it.
    pub fn set_cpl(&mut self, cpl: u8) {
        if self.cpl != cpl {
            self.cpl = cpl;
            self.update_view();
        }
    }

    /// Recomputes everything derived from CS, CR0, CR4, EFER and RFLAGS.VM/AC:
    /// code size, masks, segment paths, TLB view, watches.
    pub fn update_mode(&mut self) {
        let cs = &self.seg[Seg::Cs as usize];
        self.mode = if self.efer.contains(Efer::LMA) && cs.l {
            CpuMode::Bits64
        } else if cs.db && self.protected() {
            CpuMode::Bits32
        } else {
            // A real-mode CS may keep D=1 from protected mode: the processor honours it ("unreal" code).
            if cs.db && self.real_mode() { CpuMode::Bits32 } else { CpuMode::Bits16 }
        };
        self.block_mode = self.mode as u8 | (self.real_mode() as u8) << 2 | (self.v86() as u8) << 3;
        self.hot.linear_mask = if self.mode == CpuMode::Bits64 { u64::MAX } else { 0xffff_ffff };
        // EIP has 32 bits in 16-bit code too: what keeps it below 64 KiB are branches with 16-bit operands, and CS's
        // limit, which system-management mode and others leave at 4 GiB.
        self.hot.rip_mask = self.hot.linear_mask;
        for s in 0..8 {
            self.update_seg_path(s);
        }
        self.update_view();
        // The caller's block was made for another mode.
        self.attend(ATTENTION_EVENT);
    }

    fn update_seg_path(&mut self, s: usize) {
        let seg = &self.seg[s];
        self.seg_path[s] = if self.mode == CpuMode::Bits64 {
            // SDM vol. 3A, 3.4.4: in 64-bit mode only FS and GS have a base, and no limit is checked.
            let base = if s >= Seg::Fs as usize { seg.base } else { 0 };
            SegPath { base, open: 3, last: u64::MAX }
        } else {
            let flat = seg.present && !seg.unusable && seg.limit == u32::MAX && !seg.is_expand_down();
            let real = !self.cr0.contains(Cr0::PE) || self.flag(Rflags::VM);
            let open = if !flat {
                0
            } else if real {
                3
            } else {
                seg.is_readable() as u8 | (seg.is_writable() as u8) << 1
            };
            SegPath { base: seg.base, open, last: u32::MAX as u64 }
        };
    }

    /// Chooses the TLB view for data accesses and the watches for CPL, AC and DR7.
    pub fn update_view(&mut self) {
        let ac = self.flag(Rflags::AC);
        self.mmu.set_view(match (self.cpl == 3, ac) {
            (true, _) => View::User,
            (false, false) => View::Supervisor,
            (false, true) => View::SupervisorAc,
        });
        let mut watch = 0;
        if self.cpl == 3 && ac && self.cr0.contains(Cr0::AM) {
            watch |= WATCH_ALIGN;
        }
        if self.effective_dr7().intersects(Dr7::ENABLES) {
            watch |= WATCH_BREAKPOINT;
        }
        self.hot.watch = watch;
    }

    /// The linear address of the instruction being executed.
    pub fn insn_start(&self) -> u64 {
        let rip = self.rip().wrapping_sub(self.insn_len as u64) & self.hot.rip_mask;
        self.seg_path[Seg::Cs as usize].base.wrapping_add(rip) & self.hot.linear_mask
    }

    /// `Err(#UD)`.
    #[inline(always)]
    pub fn ud<T>(&self) -> Result<T, Stop> {
        Err(Stop::Exception(Exception::UD))
    }

    /// `Err(#GP(0))`.
    #[inline(always)]
    pub fn gp0<T>(&self) -> Result<T, Stop> {
        Err(Stop::Exception(Exception::GP0))
    }

    /// `Err(#GP(code))`.
    #[inline(always)]
    pub fn gp<T>(&self, code: u32) -> Result<T, Stop> {
        Err(Stop::Exception(Exception::with_code(x86_arch::Vector::Gp, code)))
    }

    /// Requires CPL 0, else #GP(0).
    #[inline(always)]
    pub fn require_cpl0(&self) -> Result<(), Stop> {
        if self.cpl == 0 { Ok(()) } else { self.gp0() }
    }
}
