//! Control registers, EFER, XCR0 and the debug control bits (SDM vol. 3A, 2.5 and 17.2).

use bitflags::bitflags;

bitflags! {
    /// CR0 (SDM vol. 3A, 2.5).
    #[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
    #[repr(transparent)]
    pub struct Cr0: u64 {
        /// Protection enable.
        const PE = 1 << 0;
        /// Monitor coprocessor.
        const MP = 1 << 1;
        /// Emulation: no x87.
        const EM = 1 << 2;
        /// Task switched.
        const TS = 1 << 3;
        /// Extension type: always one.
        const ET = 1 << 4;
        /// Numeric error: x87 errors are #MF, not FERR#.
        const NE = 1 << 5;
        /// Write protect: supervisor writes honour read-only pages.
        const WP = 1 << 16;
        /// Alignment mask.
        const AM = 1 << 18;
        /// Not write-through.
        const NW = 1 << 29;
        /// Cache disable.
        const CD = 1 << 30;
        /// Paging.
        const PG = 1 << 31;
    }
}

bitflags! {
    /// CR4 (SDM vol. 3A, 2.5).
    #[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
    #[repr(transparent)]
    pub struct Cr4: u64 {
        /// Virtual-8086 mode extensions.
        const VME = 1 << 0;
        /// Protected-mode virtual interrupts.
        const PVI = 1 << 1;
        /// RDTSC only at CPL 0.
        const TSD = 1 << 2;
        /// Debugging extensions: DR4 and DR5 are #UD.
        const DE = 1 << 3;
        /// Page size extensions: 4 MiB pages.
        const PSE = 1 << 4;
        /// Physical address extension.
        const PAE = 1 << 5;
        /// Machine check.
        const MCE = 1 << 6;
        /// Global pages.
        const PGE = 1 << 7;
        /// RDPMC at any CPL.
        const PCE = 1 << 8;
        /// The OS uses FXSAVE and FXRSTOR.
        const OSFXSR = 1 << 9;
        /// The OS handles #XM.
        const OSXMMEXCPT = 1 << 10;
        /// SGDT, SIDT, SLDT, SMSW and STR only at CPL 0.
        const UMIP = 1 << 11;
        /// 57-bit linear addresses.
        const LA57 = 1 << 12;
        /// VMX.
        const VMXE = 1 << 13;
        /// SMX.
        const SMXE = 1 << 14;
        /// RDFSBASE and its kin.
        const FSGSBASE = 1 << 16;
        /// Process-context identifiers.
        const PCIDE = 1 << 17;
        /// XSAVE and XCR0.
        const OSXSAVE = 1 << 18;
        /// Supervisor-mode execution prevention.
        const SMEP = 1 << 20;
        /// Supervisor-mode access prevention.
        const SMAP = 1 << 21;
        /// Protection keys for user pages.
        const PKE = 1 << 22;
        /// Control-flow enforcement.
        const CET = 1 << 23;
        /// Protection keys for supervisor pages.
        const PKS = 1 << 24;
    }
}

bitflags! {
    /// IA32_EFER (SDM vol. 3A, 2.2.1).
    #[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
    #[repr(transparent)]
    pub struct Efer: u64 {
        /// SYSCALL enable.
        const SCE = 1 << 0;
        /// Long mode enable.
        const LME = 1 << 8;
        /// Long mode active.
        const LMA = 1 << 10;
        /// No-execute enable.
        const NXE = 1 << 11;
        /// SVM enable (AMD).
        const SVME = 1 << 12;
        /// Long-mode segment limit enable (AMD).
        const LMSLE = 1 << 13;
        /// Fast FXSAVE/FXRSTOR (AMD).
        const FFXSR = 1 << 14;
    }
}

bitflags! {
    /// XCR0: the state components that XSAVE manages (SDM vol. 1, 13.3).
    #[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
    #[repr(transparent)]
    pub struct Xcr0: u64 {
        /// x87: always one.
        const X87 = 1 << 0;
        /// XMM registers and MXCSR.
        const SSE = 1 << 1;
        /// The upper halves of the YMM registers.
        const AVX = 1 << 2;
        /// MPX bound registers.
        const BNDREGS = 1 << 3;
        /// MPX bound configuration.
        const BNDCSR = 1 << 4;
        /// AVX-512 mask registers.
        const OPMASK = 1 << 5;
        /// The upper halves of ZMM0 to ZMM15.
        const ZMM_HI256 = 1 << 6;
        /// ZMM16 to ZMM31.
        const HI16_ZMM = 1 << 7;
        /// PKRU.
        const PKRU = 1 << 9;
        /// All three AVX-512 components.
        const AVX512 = 7 << 5;
    }
}

bitflags! {
    /// DR6 (SDM vol. 3A, 17.2.3).
    #[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
    #[repr(transparent)]
    pub struct Dr6: u64 {
        /// Breakpoint 0 was met.
        const B0 = 1 << 0;
        /// Breakpoint 1 was met.
        const B1 = 1 << 1;
        /// Breakpoint 2 was met.
        const B2 = 1 << 2;
        /// Breakpoint 3 was met.
        const B3 = 1 << 3;
        /// A debug register was accessed with DR7.GD set.
        const BD = 1 << 13;
        /// Single step.
        const BS = 1 << 14;
        /// Task switch with the T bit set.
        const BT = 1 << 15;
        /// Bits that read as one (RTM included: it is active low).
        const FIXED = 0xffff_0ff0;
    }
}

bitflags! {
    /// DR7 (SDM vol. 3A, 17.2.4).
    #[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
    #[repr(transparent)]
    pub struct Dr7: u64 {
        /// Bit 10 reads as one.
        const FIXED = 1 << 10;
        /// General detect: accesses to debug registers are #DB.
        const GD = 1 << 13;
        /// Any local or global enable bit.
        const ENABLES = 0xff;
    }
}

/// What a breakpoint in DR7 waits for (SDM vol. 3A, 17.2.4, R/W fields).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BreakpointKind {
    /// Instruction execution.
    Execute,
    /// Data writes.
    Write,
    /// I/O reads or writes (CR4.DE).
    Io,
    /// Data reads or writes.
    ReadWrite,
}

impl Dr7 {
    /// Whether breakpoint `n` (0 to 3) is enabled, locally or globally.
    pub const fn enabled(self, n: usize) -> bool {
        self.bits() >> (2 * n) & 3 != 0
    }

    /// The condition of breakpoint `n` (0 to 3).
    pub const fn kind(self, n: usize) -> BreakpointKind {
        match self.bits() >> (16 + 4 * n) & 3 {
            0 => BreakpointKind::Execute,
            1 => BreakpointKind::Write,
            2 => BreakpointKind::Io,
            _ => BreakpointKind::ReadWrite,
        }
    }

    /// The length in bytes of breakpoint `n` (0 to 3).
    pub const fn len(self, n: usize) -> u64 {
        match self.bits() >> (18 + 4 * n) & 3 {
            0 => 1,
            1 => 2,
            2 => 8,
            _ => 4,
        }
    }
}

/// The bits of CR3 that hold a PCID when CR4.PCIDE is set.
pub const CR3_PCID_MASK: u64 = 0xfff;
/// With CR4.PCIDE, bit 63 of the source of MOV to CR3 asks that nothing be flushed.
pub const CR3_NO_FLUSH: u64 = 1 << 63;
