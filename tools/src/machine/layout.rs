//! The machine's address map: where RAM, tables, ports and interrupt lines are. Numbers only.
//!
//! One page, so that two things that must not overlap stand next to each other. Who uses them: `boot`, `acpi`,
//! `ports`.

/// The boot GDT.
pub const GDT: u64 = 0x500;
/// Linux's boot_params ("zero page").
pub const BOOT_PARAMS: u64 = 0x7000;
/// Top of the stack that the first instruction finds.
pub const BOOT_STACK: u64 = 0x8ff0;
/// The boot page tables: PML4, PDPT and four page directories that map the first 4 GiB one to one.
pub const PML4: u64 = 0x9000;
/// The kernel's command line.
pub const CMDLINE: u64 = 0x2_0000;
/// Room for the command line, its final 0 included.
pub const CMDLINE_ROOM: u64 = 0x1_0000;
/// End of conventional memory; the 1 KiB above it is the (empty) extended BIOS data area.
pub const EBDA: u64 = 0x9_fc00;
/// Start of the legacy video area.
pub const VIDEO: u64 = 0xa_0000;
/// The ACPI tables. The RSDP is the first of them, where firmware puts it and where systems look for it.
pub const ACPI_TABLES: u64 = 0xe_0000;
/// Start of extended memory, where kernels are loaded.
pub const HIGH_MEMORY: u64 = 0x10_0000;

/// RAM below 4 GiB ends here at the latest; devices and KVM's own pages are in the hole.
pub const MMIO_HOLE_START: u64 = 0xc000_0000;
/// The virtio-mmio disk.
pub const VIRTIO_DISK: u64 = 0xd000_0000;
/// Size of the disk's register window.
pub const VIRTIO_DISK_SIZE: u64 = 0x1000;
/// IOAPIC (in KVM).
pub const IOAPIC: u32 = 0xfec0_0000;
/// Local APICs (in KVM).
pub const LAPIC: u32 = 0xfee0_0000;
/// KVM's identity-map page for VMX real mode (KVM api 4.33), then its three pages for the TSS (4.32).
pub const KVM_IDENTITY_MAP: u64 = 0xfffb_c000;
/// See [`KVM_IDENTITY_MAP`].
pub const KVM_TSS: usize = 0xfffb_d000;
/// RAM continues here.
pub const MMIO_HOLE_END: u64 = 0x1_0000_0000;

/// Interrupt lines.
pub const IRQ_COM1_COM3: u32 = 4;
/// COM2's and COM4's line.
pub const IRQ_COM2: u32 = 3;
/// The disk's line.
pub const IRQ_DISK: u32 = 5;
/// ACPI's system control interrupt; never raised, because the machine has no ACPI events.
pub const IRQ_SCI: u8 = 9;

/// First port of each serial line: COM1 to COM3.
pub const COM_PORTS: [u16; 3] = [0x3f8, 0x2f8, 0x3e8];
/// ACPI PM1a event block (status and enable, two bytes each).
pub const PM1A_EVENT: u16 = 0x600;
/// ACPI PM1a control register.
pub const PM1A_CONTROL: u16 = 0x604;
/// ACPI power management timer.
pub const PM_TIMER: u16 = 0x608;
/// Reset control register.
pub const RESET_CONTROL: u16 = 0xcf9;
/// The value of `RESET_CONTROL` that resets the machine.
pub const RESET_VALUE: u8 = 0x06;
