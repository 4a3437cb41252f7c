//! The ACPI tables that a PC kernel needs to find its processors, its interrupt controllers, its power switch
//! and its disk: RSDP, XSDT, FADT, FACS, DSDT, MADT.
//!
//! Not an AML compiler: the DSDT is put together from the few opcodes that it needs. Reference: ACPI
//! specification 6.5 ("5.2" tables, "20.2" AML grammar).

use super::layout::*;

const OEM_ID: [u8; 6] = *b"SOFTKV";
const OEM_TABLE_ID: [u8; 8] = *b"SOFTKVM ";
const CREATOR_ID: [u8; 4] = *b"SKVM";
/// Length of the header that every table but RSDP and FACS starts with.
const HEADER: usize = 36;

/// SLP_TYP of the S5 state, in `\_S5` and in PM1a control.
pub const S5_SLEEP_TYPE: u8 = 5;

/// All tables, to be put at [`ACPI_TABLES`]; the RSDP is first.
pub fn tables(cpus: u32, disk: bool) -> Vec<u8> {
    let mut area = Area { bytes: vec![0; 64] }; // room for the RSDP, filled in last
    let facs = area.add(&facs());
    let dsdt = area.add(&table(*b"DSDT", 2, &dsdt(disk)));
    let fadt = area.add(&table(*b"FACP", 6, &fadt(facs, dsdt)));
    let madt = area.add(&table(*b"APIC", 5, &madt(cpus)));
    let xsdt: Vec<u8> = [fadt, madt].into_iter().flat_map(u64::to_le_bytes).collect();
    let xsdt = area.add(&table(*b"XSDT", 1, &xsdt));
    let rsdp = rsdp(xsdt);
    area.bytes[..rsdp.len()].copy_from_slice(&rsdp);
    area.bytes
}

struct Area {
    bytes: Vec<u8>,
}

impl Area {
    /// Appends a table at the next multiple of 64 (the FACS needs that), and returns its guest address.
    fn add(&mut self, table: &[u8]) -> u64 {
        self.bytes.resize(self.bytes.len().next_multiple_of(64), 0);
        let address = ACPI_TABLES + self.bytes.len() as u64;
        self.bytes.extend_from_slice(table);
        address
    }
}

/// The value that makes the bytes sum to 0.
fn checksum(bytes: &[u8]) -> u8 {
    0u8.wrapping_sub(bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte)))
}

/// A table of signature and revision around `body` (5.2.6).
fn table(signature: [u8; 4], revision: u8, body: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEADER + body.len());
    bytes.extend_from_slice(&signature);
    bytes.extend_from_slice(&((HEADER + body.len()) as u32).to_le_bytes());
    bytes.extend_from_slice(&[revision, 0]);
    bytes.extend_from_slice(&OEM_ID);
    bytes.extend_from_slice(&OEM_TABLE_ID);
    bytes.extend_from_slice(&1u32.to_le_bytes());
    bytes.extend_from_slice(&CREATOR_ID);
    bytes.extend_from_slice(&1u32.to_le_bytes());
    bytes.extend_from_slice(body);
    bytes[9] = checksum(&bytes);
    bytes
}

/// Root system description pointer, revision 2 (5.2.5.3).
fn rsdp(xsdt: u64) -> [u8; 36] {
    let mut bytes = [0u8; 36];
    bytes[..8].copy_from_slice(b"RSD PTR ");
    bytes[9..15].copy_from_slice(&OEM_ID);
    bytes[15] = 2;
    bytes[20..24].copy_from_slice(&36u32.to_le_bytes());
    bytes[24..32].copy_from_slice(&xsdt.to_le_bytes());
    bytes[8] = checksum(&bytes[..20]);
    bytes[32] = checksum(&bytes);
    bytes
}

/// Firmware ACPI control structure (5.2.10). Nothing uses it; ACPICA complains when it is absent.
fn facs() -> [u8; 64] {
    let mut bytes = [0u8; 64];
    bytes[..4].copy_from_slice(b"FACS");
    bytes[4..8].copy_from_slice(&64u32.to_le_bytes());
    bytes[32] = 2; // version
    bytes
}

/// Generic address of an I/O port register (5.2.3.2).
fn io_register(port: u16, bits: u8) -> [u8; 12] {
    let mut bytes = [0u8; 12];
    bytes[0] = 1; // system I/O space
    bytes[1] = bits;
    bytes[3] = match bits {
        8 => 1,
        16 => 2,
        _ => 3,
    };
    bytes[4..12].copy_from_slice(&u64::from(port).to_le_bytes());
    bytes
}

/// Fixed ACPI description table, revision 6.5 (5.2.9): the fixed hardware is a PM1a block and a timer; the
/// machine has no SMI, is always in ACPI mode, and has no fixed buttons.
fn fadt(facs: u64, dsdt: u64) -> Vec<u8> {
    const LENGTH: usize = 276;
    const FLAG_WBINVD: u32 = 1 << 0;
    const FLAG_PROC_C1: u32 = 1 << 2;
    const FLAG_PWR_BUTTON: u32 = 1 << 4;
    const FLAG_SLP_BUTTON: u32 = 1 << 5;
    const FLAG_FIX_RTC: u32 = 1 << 6;
    const FLAG_TMR_VAL_EXT: u32 = 1 << 8;
    const FLAG_RESET_REG_SUP: u32 = 1 << 10;
    const BOOT_LEGACY_DEVICES: u16 = 1 << 0;
    const BOOT_VGA_NOT_PRESENT: u16 = 1 << 2;
    let mut bytes = vec![0u8; LENGTH];
    let mut put = |at: usize, field: &[u8]| bytes[at..at + field.len()].copy_from_slice(field);
    put(36, &(facs as u32).to_le_bytes());
    put(40, &(dsdt as u32).to_le_bytes());
    put(46, &u16::from(IRQ_SCI).to_le_bytes());
    put(56, &u32::from(PM1A_EVENT).to_le_bytes());
    put(64, &u32::from(PM1A_CONTROL).to_le_bytes());
    put(76, &u32::from(PM_TIMER).to_le_bytes());
    put(88, &[4, 2]); // PM1_EVT_LEN, PM1_CNT_LEN
    put(91, &[4]); // PM_TMR_LEN
    put(96, &0xffffu16.to_le_bytes()); // P_LVL2_LAT: no C2
    put(98, &0xffffu16.to_le_bytes()); // P_LVL3_LAT: no C3
    put(108, &[0x32]); // the CMOS byte that holds the century
    put(109, &(BOOT_LEGACY_DEVICES | BOOT_VGA_NOT_PRESENT).to_le_bytes());
    let flags = FLAG_WBINVD
        | FLAG_PROC_C1
        | FLAG_PWR_BUTTON
        | FLAG_SLP_BUTTON
        | FLAG_FIX_RTC
        | FLAG_TMR_VAL_EXT
        | FLAG_RESET_REG_SUP;
    put(112, &flags.to_le_bytes());
    put(116, &io_register(RESET_CONTROL, 8));
    put(128, &[RESET_VALUE]);
    put(131, &[5]); // FADT minor version
    put(140, &dsdt.to_le_bytes());
    put(148, &io_register(PM1A_EVENT, 32));
    put(172, &io_register(PM1A_CONTROL, 16));
    put(208, &io_register(PM_TIMER, 32));
    put(268, b"SOFTKVM\0"); // hypervisor vendor identity
    bytes.split_off(HEADER)
}

/// Multiple APIC description table (5.2.12). APIC ids are the vCPU ids.
fn madt(cpus: u32) -> Vec<u8> {
    const PCAT_COMPAT: u32 = 1; // there are 8259s too
    let mut bytes = Vec::new();
    bytes.extend_from_slice(&LAPIC.to_le_bytes());
    bytes.extend_from_slice(&PCAT_COMPAT.to_le_bytes());
    for cpu in 0..cpus {
        let id = cpu as u8; // `machine` allows at most 254
        bytes.extend_from_slice(&[0, 8, id, id, 1, 0, 0, 0]); // local APIC, enabled
    }
    bytes.extend_from_slice(&[1, 12, 0, 0]); // IOAPIC, id 0
    bytes.extend_from_slice(&IOAPIC.to_le_bytes());
    bytes.extend_from_slice(&0u32.to_le_bytes());
    // Interrupt source override: the SCI is level triggered, active high (KVM's pins have no polarity).
    bytes.extend_from_slice(&[2, 10, 0, IRQ_SCI]);
    bytes.extend_from_slice(&u32::from(IRQ_SCI).to_le_bytes());
    bytes.extend_from_slice(&0x000du16.to_le_bytes());
    bytes.extend_from_slice(&[4, 6, 0xff, 0, 0, 1]); // NMI on LINT1 of every processor
    bytes
}

/// The DSDT's AML: `\_S5`, and the disk as a device on the system bus.
fn dsdt(disk: bool) -> Vec<u8> {
    let s5 = package(&[integer(S5_SLEEP_TYPE.into()), integer(S5_SLEEP_TYPE.into()), integer(0), integer(0)]);
    let mut aml = name(b"_S5_", &s5);
    if disk {
        let mut resources = Vec::new();
        // Memory32Fixed, writable (6.4.3.4).
        resources.extend_from_slice(&[0x86, 9, 0, 1]);
        resources.extend_from_slice(&(VIRTIO_DISK as u32).to_le_bytes());
        resources.extend_from_slice(&(VIRTIO_DISK_SIZE as u32).to_le_bytes());
        // Extended interrupt: consumer, edge, active high, exclusive (6.4.3.6).
        resources.extend_from_slice(&[0x89, 6, 0, 0x03, 1]);
        resources.extend_from_slice(&IRQ_DISK.to_le_bytes());
        resources.extend_from_slice(&[0x79, 0]); // end tag, checksum not used
        let mut device = b"VIO0".to_vec();
        device.extend(name(b"_HID", &string("LNRO0005"))); // what Linux' virtio_mmio driver looks for
        device.extend(name(b"_UID", &integer(0)));
        device.extend(name(b"_CCA", &integer(1)));
        device.extend(name(b"_CRS", &buffer(&resources)));
        let mut scope = b"\\_SB_".to_vec();
        scope.extend(with_length(&[0x5b, 0x82], &device)); // DeviceOp
        aml.extend(with_length(&[0x10], &scope)); // ScopeOp
    }
    aml
}

/// An opcode, PkgLength (20.2.4) and the body it covers.
fn with_length(opcode: &[u8], body: &[u8]) -> Vec<u8> {
    let mut bytes = opcode.to_vec();
    // The length counts its own bytes: one for up to 63, two for up to 4095.
    if body.len() < 63 {
        bytes.push((body.len() + 1) as u8);
    } else {
        let length = body.len() + 2;
        assert!(length < 1 << 12, "the DSDT's objects are small");
        bytes.extend_from_slice(&[0x40 | (length & 0xf) as u8, (length >> 4) as u8]);
    }
    bytes.extend_from_slice(body);
    bytes
}

fn name(name: &[u8; 4], value: &[u8]) -> Vec<u8> {
    [&[0x08], name.as_slice(), value].concat()
}

fn integer(value: u32) -> Vec<u8> {
    match value {
        0 | 1 => vec![value as u8],          // ZeroOp, OneOp
        2..=0xff => vec![0x0a, value as u8], // BytePrefix
        _ => [&[0x0c], value.to_le_bytes().as_slice()].concat(),
    }
}

fn string(text: &str) -> Vec<u8> {
    [&[0x0d], text.as_bytes(), &[0]].concat()
}

fn package(elements: &[Vec<u8>]) -> Vec<u8> {
    let body = [vec![elements.len() as u8], elements.concat()].concat();
    with_length(&[0x12], &body)
}

fn buffer(bytes: &[u8]) -> Vec<u8> {
    let body = [integer(bytes.len() as u32), bytes.to_vec()].concat();
    with_length(&[0x11], &body)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sum(bytes: &[u8]) -> u8 {
        bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
    }

    fn u32_at(bytes: &[u8], at: usize) -> usize {
        u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap()) as usize
    }

    fn u64_at(bytes: &[u8], at: usize) -> u64 {
        u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
    }

    /// The table at guest address `address`, after its checksum and length were checked.
    fn table_at(area: &[u8], address: u64) -> &[u8] {
        let start = (address - ACPI_TABLES) as usize;
        let length = u32_at(area, start + 4);
        let table = &area[start..start + length];
        assert_eq!(sum(table), 0, "checksum of {:?}", std::str::from_utf8(&table[..4]));
        table
    }

    #[test]
    fn every_table_is_reachable_from_the_rsdp_and_sums_to_zero() {
        for (cpus, disk) in [(1, false), (2, true), (254, true)] {
            let area = tables(cpus, disk);
            assert!(area.len() as u64 <= HIGH_MEMORY - ACPI_TABLES);
            assert_eq!(&area[..8], b"RSD PTR ");
            assert_eq!(sum(&area[..20]), 0);
            assert_eq!(sum(&area[..36]), 0);
            let xsdt = table_at(&area, u64_at(&area, 24));
            assert_eq!(&xsdt[..4], b"XSDT");
            let fadt = table_at(&area, u64_at(xsdt, HEADER));
            assert_eq!(&fadt[..4], b"FACP");
            assert_eq!(fadt.len(), 276);
            let dsdt = table_at(&area, u64_at(fadt, 140));
            assert_eq!(&dsdt[..4], b"DSDT");
            assert_eq!(u32_at(fadt, 40) as u64, u64_at(fadt, 140));
            let facs = u32_at(fadt, 36) as u64;
            assert_eq!(facs % 64, 0);
            assert_eq!(&area[(facs - ACPI_TABLES) as usize..][..4], b"FACS");
            let madt = table_at(&area, u64_at(xsdt, HEADER + 8));
            assert_eq!(&madt[..4], b"APIC");
        }
    }

    #[test]
    fn the_madt_lists_each_processor_once() {
        let body = madt(3);
        let mut ids = Vec::new();
        let mut at = 8;
        while at < body.len() {
            if body[at] == 0 {
                ids.push(body[at + 3]);
            }
            at += usize::from(body[at + 1]);
        }
        assert_eq!(at, body.len(), "entry lengths add up");
        assert_eq!(ids, [0, 1, 2]);
    }

    #[test]
    fn package_length_is_that_of_the_specification() {
        // 20.2.4: bits 7-6 of the lead byte count the bytes that follow it.
        assert_eq!(with_length(&[0x10], &[0; 62])[1], 63);
        let long = with_length(&[0x10], &[0; 63]);
        assert_eq!(&long[1..3], &[0x40 | (65 & 0xf), 65 >> 4]);
        assert_eq!(package(&[integer(5), integer(0)]), [0x12, 5, 2, 0x0a, 5, 0]);
    }

    /// iasl is the independent judge where it is installed.
    #[test]
    fn iasl_reads_the_dsdt() {
        let directory = vmm_sys_util::tempdir::TempDir::new().unwrap();
        let file = directory.as_path().join("dsdt.aml");
        std::fs::write(&file, table(*b"DSDT", 2, &dsdt(true))).unwrap();
        let Ok(output) = std::process::Command::new("iasl").arg("-d").arg(&file).output() else {
            eprintln!("SKIP iasl_reads_the_dsdt: iasl is not installed");
            return;
        };
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let source = std::fs::read_to_string(directory.as_path().join("dsdt.dsl")).unwrap();
        for wanted in
            ["Name (_S5", "Device (VIO0)", "\"LNRO0005\"", "Memory32Fixed", "0xD0000000", "Interrupt"]
        {
            assert!(source.contains(wanted), "{wanted} is missing in\n{source}");
        }
    }
}
