//! The XSAVE area's fixed part (SDM vol. 1, 13.4). Extended components' offsets come from CPUID 0DH.

/// x87 control word.
pub const FCW: usize = 0;
/// x87 status word.
pub const FSW: usize = 2;
/// Abridged tag word: one bit a register, 1 = not empty.
pub const FTW: usize = 4;
/// Last opcode.
pub const FOP: usize = 6;
/// Last instruction pointer.
pub const FIP: usize = 8;
/// Last data pointer.
pub const FDP: usize = 16;
/// MXCSR.
pub const MXCSR: usize = 24;
/// MXCSR_MASK.
pub const MXCSR_MASK: usize = 28;
/// ST0/MM0; 16 bytes each.
pub const ST0: usize = 32;
/// XMM0; 16 bytes each.
pub const XMM0: usize = 160;
/// Bytes of the legacy region.
pub const LEGACY_SIZE: usize = 512;
/// XSTATE_BV in the header.
pub const XSTATE_BV: usize = 512;
/// XCOMP_BV in the header.
pub const XCOMP_BV: usize = 520;
/// Where extended components may begin.
pub const HEADER_END: usize = 576;
/// FCW after FNINIT.
pub const FCW_INIT: u16 = 0x37f;
/// MXCSR after reset.
pub const MXCSR_INIT: u32 = 0x1f80;
