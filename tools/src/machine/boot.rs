//! From a bzImage file to a guest that can take its first step: image checks, placement, the zero page, boot
//! page tables and GDT, and the first vCPU's registers for the 64-bit entry.
//!
//! Not the ACPI tables (`acpi`) and not CPUID (`cpuid`). Reference: the kernel's Documentation/arch/x86/boot.rst.

use kvm_bindings::{kvm_dtable, kvm_regs, kvm_segment, kvm_sregs};
use linux_loader::loader::bootparam::{boot_e820_entry, boot_params, setup_header};
use linux_loader::loader::{BzImage, KernelLoader};
use vm_memory::{Bytes, GuestAddress};

use super::layout::*;
use crate::guest_ram::{self, GuestRam};
use crate::outcome::Failure;

/// Offset of the 64-bit entry in the loaded protected-mode code (boot.rst, "64-bit Boot Protocol").
const ENTRY_64: u64 = 0x200;
/// boot.rst: loadflags bit 0, the protected-mode code is loaded at 0x100000.
const LOADED_HIGH: u8 = 1;
/// boot.rst: xloadflags bit 0, the kernel has the 64-bit entry at 0x200.
const XLF_KERNEL_64: u16 = 1;
/// The boot sector's signature and where it is.
const BOOT_FLAG: (usize, u16) = (0x1fe, 0xaa55);
/// "HdrS" and where it is.
const HEADER_MAGIC: (usize, u32) = (0x202, 0x5372_6448);
/// First byte after the setup header of protocol 2.15.
const HEADER_END: usize = 0x268;
/// Protocol 2.12 brought xloadflags, 2.10 init_size and pref_address.
const OLDEST_PROTOCOL: u16 = 0x020c;
/// e820 types (ACPI specification, 15.3.1).
const E820_RAM: u32 = 1;
/// See [`E820_RAM`].
const E820_RESERVED: u32 = 2;

/// A kernel image that passed every check which needs no guest memory.
#[derive(Debug)]
pub struct KernelImage {
    bytes: Vec<u8>,
    init_size: u64,
    pref_address: u64,
    cmdline_size: u64,
    initrd_addr_max: u64,
}

impl KernelImage {
    /// Checks that `bytes`, read from the file `name`, is a whole bzImage with a 64-bit entry.
    pub fn parse(bytes: Vec<u8>, name: &str) -> Result<KernelImage, Failure> {
        let refuse = |why: &str| Failure::BadInput(format!("{name}: {why}"));
        let field_u8 = |at: usize| bytes.get(at).copied();
        let field_u16 = |at: usize| Some(u16::from_le_bytes(bytes.get(at..at + 2)?.try_into().ok()?));
        let field_u32 = |at: usize| Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
        let field_u64 = |at: usize| Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?));

        if bytes.is_empty() {
            return Err(refuse("the file is empty"));
        }
        if bytes.starts_with(b"\x7fELF") {
            return Err(refuse("this is an ELF file (a vmlinux?); a bzImage (vmlinuz) is wanted"));
        }
        if bytes.starts_with(&[0x1f, 0x8b]) {
            return Err(refuse("this is a gzip file; a bzImage (vmlinuz) is wanted"));
        }
        if field_u16(BOOT_FLAG.0) != Some(BOOT_FLAG.1) || field_u32(HEADER_MAGIC.0) != Some(HEADER_MAGIC.1) {
            return Err(refuse("not a Linux kernel image (no boot signature and \"HdrS\" header)"));
        }
        if bytes.len() < HEADER_END {
            return Err(refuse("the kernel image is truncated inside its header"));
        }
        let version = field_u16(0x206).unwrap_or(0);
        if version < OLDEST_PROTOCOL {
            return Err(refuse(&format!(
                "boot protocol {}.{:02} is too old; 2.12 (Linux 3.8) or later is needed",
                version >> 8,
                version & 0xff
            )));
        }
        if field_u8(0x211).unwrap_or(0) & LOADED_HIGH == 0 {
            return Err(refuse("a zImage that loads low; a bzImage is wanted"));
        }
        if field_u16(0x236).unwrap_or(0) & XLF_KERNEL_64 == 0 {
            return Err(refuse("the kernel has no 64-bit entry (is it a 32-bit kernel?)"));
        }
        // boot.rst: setup_sects 0 means 4; syssize counts 16-byte units.
        let setup_sectors = match field_u8(0x1f1) {
            Some(0) | None => 4,
            Some(count) => u64::from(count),
        };
        let whole = (setup_sectors + 1) * 512 + u64::from(field_u32(0x1f4).unwrap_or(0)) * 16;
        if (bytes.len() as u64) < whole {
            return Err(refuse(&format!(
                "the kernel image is truncated: its header promises {whole} bytes, the file has {}",
                bytes.len()
            )));
        }
        Ok(KernelImage {
            init_size: u64::from(field_u32(0x260).unwrap_or(0)),
            pref_address: field_u64(0x258).unwrap_or(0),
            cmdline_size: u64::from(field_u32(0x238).unwrap_or(255)),
            initrd_addr_max: u64::from(field_u32(0x22c).unwrap_or(0x37ff_ffff)),
            bytes,
        })
    }

    /// First address that the kernel does not need while it unpacks itself.
    fn room_end(&self) -> u64 {
        self.pref_address
            .max(HIGH_MEMORY)
            .saturating_add(self.init_size)
            .max(HIGH_MEMORY + self.bytes.len() as u64)
    }

    /// Puts the kernel, the initrd, the command line and the zero page into `ram` (of `memory` bytes). Returns
    /// the first instruction's address.
    pub fn load(
        &self,
        ram: &GuestRam,
        memory: u64,
        initrd: Option<&[u8]>,
        cmdline: &str,
        acpi_rsdp: u64,
    ) -> Result<u64, Failure> {
        let low_top = memory.min(MMIO_HOLE_START);
        let too_little = |needed: u64| {
            Failure::BadInput(format!(
                "too little memory: this kernel and its initrd need at least {} MiB, --mem gives {} MiB",
                needed.div_ceil(1 << 20),
                memory >> 20
            ))
        };
        let initrd_length = initrd.map_or(0, |bytes| bytes.len() as u64);
        let needed = self.room_end().saturating_add(initrd_length.next_multiple_of(4096));
        if needed > low_top {
            return Err(too_little(needed));
        }
        let cmdline_limit = self.cmdline_size.min(CMDLINE_ROOM - 1);
        if cmdline.len() as u64 > cmdline_limit || cmdline.contains('\0') {
            return Err(Failure::BadInput(format!(
                "the kernel's command line may have {cmdline_limit} bytes and no NUL; this one has {} bytes",
                cmdline.len()
            )));
        }

        let mut image = std::io::Cursor::new(&self.bytes);
        let loaded = BzImage::load(ram, Some(GuestAddress(HIGH_MEMORY)), &mut image, None)
            .map_err(|error| Failure::BadInput(format!("kernel image: {error}")))?;
        let header = loaded
            .setup_header
            .ok_or_else(|| Failure::BadInput("kernel image: the loader found no setup header".into()))?;

        // As high as the kernel allows, so that it is clear of what the kernel unpacks.
        let initrd_address = match initrd_length {
            0 => 0,
            length => (low_top.min(self.initrd_addr_max + 1).saturating_sub(length)) & !0xfff,
        };
        if initrd_length > 0 && initrd_address < self.room_end() {
            return Err(too_little(needed));
        }
        write(ram, initrd.unwrap_or(&[]), initrd_address)?;
        write(ram, cmdline.as_bytes(), CMDLINE)?;
        write(ram, &[0], CMDLINE + cmdline.len() as u64)?;

        let zero_page = zero_page(header, memory, initrd_address, initrd_length, acpi_rsdp);
        ram.write_obj(zero_page, GuestAddress(BOOT_PARAMS))
            .map_err(|error| Failure::host("guest memory", error))?;
        Ok(HIGH_MEMORY + ENTRY_64)
    }
}

/// The e820 map for `memory` bytes of RAM: start, length, type.
pub fn e820(memory: u64) -> Vec<(u64, u64, u32)> {
    let mut map = vec![
        (0, EBDA, E820_RAM),
        (EBDA, VIDEO - EBDA, E820_RESERVED),
        (ACPI_TABLES, HIGH_MEMORY - ACPI_TABLES, E820_RESERVED),
    ];
    for (start, length) in guest_ram::ranges(memory) {
        let first = start.max(HIGH_MEMORY);
        if start + length > first {
            map.push((first, start + length - first, E820_RAM));
        }
    }
    map
}

fn zero_page(
    header: setup_header,
    memory: u64,
    initrd: u64,
    initrd_length: u64,
    acpi_rsdp: u64,
) -> boot_params {
    let mut params = boot_params { hdr: header, acpi_rsdp_addr: acpi_rsdp, ..Default::default() };
    params.hdr.type_of_loader = 0xff; // undefined boot loader
    params.hdr.cmd_line_ptr = CMDLINE as u32;
    params.hdr.ramdisk_image = initrd as u32; // below MMIO_HOLE_START
    params.hdr.ramdisk_size = initrd_length as u32;
    for (entry, (addr, size, kind)) in params.e820_table.iter_mut().zip(e820(memory)) {
        *entry = boot_e820_entry { addr, size, r#type: kind };
        params.e820_entries += 1;
    }
    params
}

fn write(ram: &GuestRam, bytes: &[u8], address: u64) -> Result<(), Failure> {
    ram.write_slice(bytes, GuestAddress(address)).map_err(|error| Failure::host("guest memory", error))
}

/// Puts a raw 64-bit program (the built-in guest) at the start of high memory, with a zero page that carries
/// the memory map. Returns the first instruction's address.
pub fn load_raw(ram: &GuestRam, memory: u64, program: &[u8], acpi_rsdp: u64) -> Result<u64, Failure> {
    if HIGH_MEMORY + program.len() as u64 + (1 << 20) > memory {
        return Err(Failure::BadInput("too little memory for the built-in guest: it needs 4 MiB".into()));
    }
    write(ram, program, HIGH_MEMORY)?;
    let zero_page = zero_page(setup_header::default(), memory, 0, 0, acpi_rsdp);
    ram.write_obj(zero_page, GuestAddress(BOOT_PARAMS))
        .map_err(|error| Failure::host("guest memory", error))?;
    Ok(HIGH_MEMORY)
}

/// Boot descriptors: null, null, 64-bit code (0x10), flat data (0x18), 64-bit TSS (0x20). boot.rst asks for
/// __BOOT_CS 0x10 and __BOOT_DS 0x18. SDM vol. 3A, 3.4.5.
const BOOT_DESCRIPTORS: [u64; 6] =
    [0, 0, 0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff, 0x0000_8b00_0000_0067, 0];

/// Writes the boot page tables and the GDT.
pub fn write_tables(ram: &GuestRam) -> Result<(), Failure> {
    const PRESENT_WRITABLE: u64 = 0x3;
    const LARGE: u64 = 0x80;
    let table = |address: u64, entries: &mut dyn Iterator<Item = u64>| {
        let bytes: Vec<u8> = entries.flat_map(u64::to_le_bytes).collect();
        write(ram, &bytes, address)
    };
    let pdpt = PML4 + 0x1000;
    table(PML4, &mut std::iter::once(pdpt | PRESENT_WRITABLE))?;
    table(pdpt, &mut (1..=4).map(|directory| (pdpt + directory * 0x1000) | PRESENT_WRITABLE))?;
    table(pdpt + 0x1000, &mut (0..4 * 512).map(|page| (page << 21) | LARGE | PRESENT_WRITABLE))?;
    table(GDT, &mut BOOT_DESCRIPTORS.into_iter())
}

/// The first vCPU's general registers at `entry`.
pub fn entry_regs(entry: u64) -> kvm_regs {
    kvm_regs {
        rip: entry,
        rsi: BOOT_PARAMS,
        rsp: BOOT_STACK,
        rbp: BOOT_STACK,
        rflags: 2,
        ..Default::default()
    }
}

/// Turns the reset state `sregs` into long mode with paging on, as the 64-bit entry wants it.
pub fn enter_long_mode(sregs: &mut kvm_sregs) {
    let flat = kvm_segment {
        base: 0,
        limit: 0xffff_ffff,
        selector: 0x18,
        type_: 0x3,
        present: 1,
        dpl: 0,
        db: 1,
        s: 1,
        l: 0,
        g: 1,
        avl: 0,
        unusable: 0,
        padding: 0,
    };
    sregs.cs = kvm_segment { selector: 0x10, type_: 0xb, db: 0, l: 1, ..flat };
    (sregs.ds, sregs.es, sregs.ss, sregs.fs, sregs.gs) = (flat, flat, flat, flat, flat);
    sregs.tr = kvm_segment { selector: 0x20, type_: 0xb, limit: 0x67, db: 0, s: 0, g: 0, ..flat };
    sregs.gdt =
        kvm_dtable { base: GDT, limit: (BOOT_DESCRIPTORS.len() * 8 - 1) as u16, ..Default::default() };
    sregs.idt = kvm_dtable::default();
    const CR0_PE: u64 = 1 << 0;
    const CR0_ET: u64 = 1 << 4;
    const CR0_PG: u64 = 1 << 31;
    const CR4_PAE: u64 = 1 << 5;
    const EFER_LME: u64 = 1 << 8;
    const EFER_LMA: u64 = 1 << 10;
    sregs.cr0 = CR0_PE | CR0_ET | CR0_PG;
    sregs.cr3 = PML4;
    sregs.cr4 = CR4_PAE;
    sregs.efer = EFER_LME | EFER_LMA;
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The smallest image that passes all checks: header, and `payload` bytes of protected-mode code.
    fn image(payload: usize) -> Vec<u8> {
        let mut bytes = vec![0u8; 2 * 512 + payload];
        bytes[0x1f1] = 1; // setup_sects
        bytes[0x1f4..0x1f8].copy_from_slice(&((payload / 16) as u32).to_le_bytes());
        bytes[0x1fe..0x200].copy_from_slice(&0xaa55u16.to_le_bytes());
        bytes[0x202..0x206].copy_from_slice(b"HdrS");
        bytes[0x206..0x208].copy_from_slice(&0x020fu16.to_le_bytes());
        bytes[0x211] = LOADED_HIGH;
        bytes[0x22c..0x230].copy_from_slice(&0x7fff_ffffu32.to_le_bytes());
        bytes[0x236..0x238].copy_from_slice(&XLF_KERNEL_64.to_le_bytes());
        bytes[0x238..0x23c].copy_from_slice(&2047u32.to_le_bytes());
        bytes[0x258..0x260].copy_from_slice(&0x100_0000u64.to_le_bytes());
        bytes[0x260..0x264].copy_from_slice(&0x10_0000u32.to_le_bytes());
        bytes
    }

    fn refusal(bytes: Vec<u8>) -> String {
        match KernelImage::parse(bytes, "kernel") {
            Err(Failure::BadInput(text)) => text,
            other => panic!("wanted a refusal, got {other:?}"),
        }
    }

    #[test]
    fn what_is_not_a_kernel_is_refused_by_name() {
        type Spoil = fn(&mut Vec<u8>);
        let cases: &[(Spoil, &str)] = &[
            (|bytes| bytes.clear(), "empty"),
            (|bytes| bytes.truncate(1), "not a Linux kernel"),
            (|bytes| bytes.truncate(0x205), "not a Linux kernel"),
            (|bytes| bytes.truncate(0x210), "truncated"),
            (|bytes| bytes.truncate(HEADER_END - 1), "truncated"),
            (|bytes| bytes.truncate(2 * 512 + 15), "truncated"),
            (|bytes| bytes[..4].copy_from_slice(b"\x7fELF"), "ELF"),
            (|bytes| bytes[..2].copy_from_slice(&[0x1f, 0x8b]), "gzip"),
            (|bytes| bytes[0x1fe] = 0, "not a Linux kernel"),
            (|bytes| bytes[0x202] = b'x', "not a Linux kernel"),
            (|bytes| bytes[0x206..0x208].copy_from_slice(&[0x0b, 0x02]), "2.11 is too old"),
            (|bytes| bytes[0x211] = 0, "zImage"),
            (|bytes| bytes[0x236] = 0, "64-bit"),
            (|bytes| bytes[0x1f4..0x1f8].fill(0xff), "truncated"),
            (|bytes| bytes[0x1f1] = 0xff, "truncated"),
        ];
        for (spoil, wanted) in cases {
            let mut bytes = image(4096);
            spoil(&mut bytes);
            let text = refusal(bytes);
            assert!(text.contains(wanted), "wanted {wanted:?} in {text:?}");
        }
    }

    #[test]
    fn no_prefix_of_an_image_is_accepted() {
        let whole = image(64);
        for length in 0..whole.len() {
            assert!(
                KernelImage::parse(whole[..length].to_vec(), "kernel").is_err(),
                "{length} bytes accepted"
            );
        }
        assert!(KernelImage::parse(whole, "kernel").is_ok());
    }

    fn load(
        memory: u64,
        initrd: Option<&[u8]>,
        cmdline: &str,
    ) -> Result<(std::sync::Arc<GuestRam>, u64), Failure> {
        let kernel = KernelImage::parse(image(4096), "kernel")?;
        let ram = guest_ram::reserve(memory)?;
        let entry = kernel.load(&ram, memory, initrd, cmdline, ACPI_TABLES)?;
        Ok((ram, entry))
    }

    #[test]
    fn the_zero_page_says_where_everything_is() {
        let (ram, entry) = load(64 << 20, Some(b"initrd bytes"), "console=ttyS0").unwrap();
        assert_eq!(entry, 0x10_0200);
        let params: boot_params = ram.read_obj(GuestAddress(BOOT_PARAMS)).unwrap();
        let (initrd, length, cmdline) =
            (params.hdr.ramdisk_image, params.hdr.ramdisk_size, params.hdr.cmd_line_ptr);
        assert_eq!(length, 12);
        assert_eq!(initrd % 4096, 0);
        let mut read = [0u8; 12];
        ram.read_slice(&mut read, GuestAddress(u64::from(initrd))).unwrap();
        assert_eq!(&read, b"initrd bytes");
        let mut read = [0xffu8; 14];
        ram.read_slice(&mut read, GuestAddress(u64::from(cmdline))).unwrap();
        assert_eq!(&read, b"console=ttyS0\0");
        assert_eq!({ params.acpi_rsdp_addr }, ACPI_TABLES);
        assert_eq!(params.e820_entries, 4);
    }

    #[test]
    fn too_little_memory_and_long_command_lines_are_bad_input() {
        let text = load(16 << 20, None, "").unwrap_err().to_string();
        assert!(text.contains("too little memory"), "{text}");
        assert!(load(18 << 20, None, "").is_ok());
        let big = vec![0u8; 2 << 20];
        assert!(load(18 << 20, Some(&big), "").is_err());
        assert!(load(64 << 20, None, &"x".repeat(2048)).is_err());
        assert!(load(64 << 20, None, "a\0b").is_err());
    }

    #[test]
    fn the_memory_map_counts_all_ram_but_the_legacy_hole() {
        for memory in [64u64 << 20, 3 << 30, 6 << 30] {
            let map = e820(memory);
            let ram: u64 = map.iter().filter(|entry| entry.2 == E820_RAM).map(|entry| entry.1).sum();
            assert_eq!(ram, memory - (HIGH_MEMORY - EBDA), "{memory:#x}");
            for pair in map.windows(2) {
                assert!(pair[0].0 + pair[0].1 <= pair[1].0, "overlap in {map:x?}");
            }
        }
    }

    #[test]
    fn boot_page_tables_map_4_gib_one_to_one() {
        let ram = guest_ram::reserve(1 << 20).unwrap();
        write_tables(&ram).unwrap();
        let entry =
            |table: u64, index: u64| -> u64 { ram.read_obj(GuestAddress(table + index * 8)).unwrap() };
        for address in [0u64, 0x10_0200, 0x4000_0000, 0xfee0_0000] {
            let pdpt = entry(PML4, 0) & !0xfff;
            let directory = entry(pdpt, address >> 30) & !0xfff;
            let page = entry(directory, (address >> 21) & 511);
            assert_eq!(page & !0x1f_ffff, address & !0x1f_ffff);
            assert_eq!(page & 0x83, 0x83);
        }
    }
}
