//! Where the harness's guest keeps things, and how it speaks to its VMM: addresses, ports, selectors, vectors.
//!
//! All below 2 GiB, so that an absolute address is a 32-bit displacement in 64-bit mode.

/// Bytes of RAM from guest-physical zero.
pub const RAM: u64 = 16 << 20;
/// A read-only slot that ends at 4 GiB: the reset vector is in it.
pub const ROM: u64 = 0xffff_0000;
/// Bytes of it.
pub const ROM_SIZE: u64 = 0x1_0000;
/// A page of registers in the VMM: what is written there is read back.
pub const MMIO: u64 = 0xd000_0000;
/// The local APIC's page.
pub const LAPIC: u64 = 0xfee0_0000;
/// The IOAPIC's page.
pub const IOAPIC: u64 = 0xfec0_0000;

/// How many processors have started.
pub const STARTED: u64 = 0x500;
/// Results of the real-mode part: INT, #DE, segment wrap.
pub const REAL_MODE: u64 = 0x510;
/// Result of the 32-bit protected-mode part.
pub const PROTECTED_MODE: u64 = 0x530;
/// Where INIT and SIPI start a processor, and the first far jump the boot processor: 16-bit code.
pub const TRAMPOLINE: u64 = 0x1000;
/// 32-bit code.
pub const CODE32: u64 = 0x2000;
/// The GDT.
pub const GDT: u64 = 0x3000;
/// Bytes of the GDT.
pub const GDT_SIZE: u64 = 0x80;
/// Pseudo-descriptors of GDT and IDT.
pub const GDTR: u64 = 0x3800;
/// Pseudo-descriptor of the IDT.
pub const IDTR: u64 = 0x3810;
/// The 64-bit IDT.
pub const IDT: u64 = 0x4000;
/// TSS of the first processor; the second's is 80H behind it.
pub const TSS: u64 = 0x5000;
/// Variables.
pub const VARS: u64 = 0x6000;
/// Interrupts taken, eight bytes for each vector.
pub const COUNTS: u64 = 0x7000;
/// kvmclock's structure.
pub const KVMCLOCK: u64 = 0x7800;
/// The wall clock's structure.
pub const WALL_CLOCK: u64 = 0x7840;
/// Samples of the clock, 32 bytes for each mark: kvmclock before, after, wall base, TSC.
pub const SAMPLES: u64 = 0x7900;
/// 64-bit code.
pub const CODE64: u64 = 0x1_0000;
/// Page tables: PML4, PDPT, four page directories.
pub const PML4: u64 = 0x10_0000;
/// The tables behind [`WINDOW`]: PDPT, page directory, page table.
pub const WINDOW_PDPT: u64 = 0x11_0000;
/// Page directory of the window.
pub const WINDOW_PD: u64 = 0x11_1000;
/// Page table of the window.
pub const WINDOW_PT: u64 = 0x11_2000;
/// Another PML4, the same but for the window's entry.
pub const PML4_B: u64 = 0x11_4000;
/// Linear address of what the guest maps for its experiments.
pub const WINDOW: u64 = 0x80_0000_0000;
/// Free page frames.
pub const FRAMES: u64 = 0x20_0000;
/// A 2 MiB frame.
pub const LARGE_FRAME: u64 = 0x40_0000;
/// Frame of the user-mode code; page 16 of the window.
pub const USER_CODE_FRAME: u64 = 0x20_8000;
/// Linear address of the user-mode code.
pub const USER_CODE: u64 = WINDOW + 0x1_0000;
/// Frame of the user-mode stack; page 17 of the window.
pub const USER_STACK_FRAME: u64 = 0x20_9000;
/// Linear address of the user-mode stack's top.
pub const USER_STACK: u64 = WINDOW + 0x1_2000;
/// Stack tops.
pub const STACK: u64 = 0x8_0000;
/// Stack of the second processor.
pub const STACK_2: u64 = 0x7_8000;
/// IST 1.
pub const IST1: u64 = 0x7_0000;
/// IST 2.
pub const IST2: u64 = 0x6_c000;
/// RSP0.
pub const RSP0: u64 = 0x6_8000;

/// Selectors. The order from 20H is what SYSRET wants.
pub const KERNEL_CS: u32 = 0x08;
/// Data, DPL 0.
pub const KERNEL_SS: u32 = 0x10;
/// 32-bit code, DPL 0.
pub const KERNEL_CS32: u32 = 0x18;
/// 32-bit code, DPL 3.
pub const USER_CS32: u32 = 0x23;
/// Data, DPL 3.
pub const USER_SS: u32 = 0x2b;
/// 64-bit code, DPL 3.
pub const USER_CS: u32 = 0x33;
/// TSS of the first processor.
pub const TSS_SELECTOR: u32 = 0x38;
/// TSS of the second.
pub const TSS_SELECTOR_2: u32 = 0x48;
/// A data segment that is not present.
pub const ABSENT_SEGMENT: u32 = 0x58;
/// 16-bit data for the way out of real mode.
pub const DATA16: u32 = 0x60;

/// A check's result: its number, and [`FAILED`] or [`ABSENT`]; the values are in [`ACTUAL`] and [`EXPECTED`].
pub const PORT_REPORT: u16 = 0x600;
/// The first processor is done (0), the second has left (1).
pub const PORT_DONE: u16 = 0x604;
/// An exception that nobody expected; the `F_*` variables have it.
pub const PORT_FATAL: u16 = 0x608;
/// Drive an interrupt line: GSI in bits 0 to 15, level in bit 16.
pub const PORT_IRQ: u16 = 0x60c;
/// A mark in time: the VMM notes its clocks.
pub const PORT_CLOCK: u16 = 0x610;
/// What is written is read back inverted.
pub const PORT_ECHO: u16 = 0x620;
/// Bytes in a row: out appends, in counts up.
pub const PORT_STREAM: u16 = 0x628;
/// Reads the checksum of the bytes that were appended, and forgets them.
pub const PORT_SUM: u16 = 0x62c;

/// Of a report: expected and actual value differ.
pub const FAILED: u32 = 1 << 31;
/// Of a report: the processor does not offer it.
pub const ABSENT: u32 = 1 << 30;

/// Variables: of the last report.
pub const ACTUAL: u64 = VARS;
/// What it should have been.
pub const EXPECTED: u64 = VARS + 8;
/// Where an expected fault's handler returns to; 0: none is expected.
pub const RESUME: u64 = VARS + 0x10;
/// With which RSP.
pub const RESUME_RSP: u64 = VARS + 0x18;
/// The last exception's vector (all ones: none since).
pub const F_VECTOR: u64 = VARS + 0x20;
/// Its error code, 0 if it has none.
pub const F_ERROR: u64 = VARS + 0x28;
/// Its RIP.
pub const F_RIP: u64 = VARS + 0x30;
/// Its CS.
pub const F_CS: u64 = VARS + 0x38;
/// Its RFLAGS.
pub const F_RFLAGS: u64 = VARS + 0x40;
/// Its RSP.
pub const F_RSP: u64 = VARS + 0x48;
/// CR2 then.
pub const F_CR2: u64 = VARS + 0x50;
/// RSP of the handler.
pub const F_HANDLER_RSP: u64 = VARS + 0x58;
/// What SYSCALL left in RCX, R11 and RSP.
pub const S_RCX: u64 = VARS + 0x60;
/// R11.
pub const S_R11: u64 = VARS + 0x68;
/// RSP.
pub const S_RSP: u64 = VARS + 0x70;
/// What the second processor is to do; 0 when it has done it.
pub const COMMAND: u64 = VARS + 0x80;
/// Its APIC ID, written by itself.
pub const ID_2: u64 = VARS + 0x88;
/// It is up.
pub const READY_2: u64 = VARS + 0x90;
/// What it read last.
pub const SAW_2: u64 = VARS + 0x98;
/// Shoot-downs that it has acknowledged.
pub const SHOT: u64 = VARS + 0xa0;
/// Counters that both change.
pub const SHARED: u64 = VARS + 0xc0;
/// A lock of theirs.
pub const LOCK: u64 = VARS + 0x100;
/// A counter across a cache line's end.
pub const SPLIT: u64 = VARS + 0x1fc;
/// 16 bytes for CMPXCHG16B.
pub const PAIR: u64 = VARS + 0x240;
/// 64 scratch bytes for vector state.
pub const VECTOR: u64 = VARS + 0x280;
/// An XSAVE area.
pub const XSAVE_AREA: u64 = 0x9000;
/// What the host asks of the guest: 0 all checks, 1 clock marks for as long as the VMM wants.
pub const MODE: u64 = VARS + 0x300;

/// Vectors.
pub const VECTOR_PIC: u8 = 0x20;
/// The local APIC's timer.
pub const VECTOR_TIMER: u8 = 0x40;
/// IOAPIC, edge.
pub const VECTOR_EDGE: u8 = 0x41;
/// IOAPIC, level.
pub const VECTOR_LEVEL: u8 = 0x42;
/// Interprocessor interrupt.
pub const VECTOR_IPI: u8 = 0x43;
/// TLB shoot-down.
pub const VECTOR_SHOOT: u8 = 0x44;
/// A second interprocessor interrupt, of higher class.
pub const VECTOR_HIGH: u8 = 0x51;
/// The gate for user mode.
pub const VECTOR_USER: u8 = 0x80;
