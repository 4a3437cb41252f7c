//! Accesses do what they say, and faults under them give `HostFault` and nothing worse.

use super::*;
use crate::test_ram::TestRam;

fn each_width<T: Word + core::fmt::Debug>(ram: &TestRam, a: T, b: T) {
    for offset in [0u64, 1, 3, 64, 4096 - T::SIZE] {
        let ptr = ram.ptr(offset);
        store(ptr, a).unwrap();
        assert_eq!(load::<T>(ptr), Ok(a));
        assert_eq!(exchange(ptr, b), if T::SIZE == 16 && offset % 16 != 0 { return } else { Ok(a) });
        assert_eq!(compare_exchange(ptr, a, a), Ok(Err(b)));
        assert_eq!(load::<T>(ptr), Ok(b));
        assert_eq!(compare_exchange(ptr, b, a), Ok(Ok(b)));
        assert_eq!(load::<T>(ptr), Ok(a));
        for (operation, update) in [
            (atomic::Operation::Add, fetch_add::<T> as fn(HostPtr, T) -> Result<T, HostFault>),
            (atomic::Operation::Or, fetch_or::<T>),
            (atomic::Operation::And, fetch_and::<T>),
            (atomic::Operation::Xor, fetch_xor::<T>),
        ] {
            store(ptr, a).unwrap();
            assert_eq!(update(ptr, b), Ok(a));
            assert_eq!(load::<T>(ptr), Ok(a.combine(b, operation)), "{operation:?}");
        }
    }
}

#[test]
fn scalars_and_atomics() {
    let ram = TestRam::new(8192);
    each_width::<u8>(&ram, 0x8f, 0x92);
    each_width::<u16>(&ram, 0x8f01, 0x92ab);
    each_width::<u32>(&ram, 0x8f01_2345, 0xffff_ffff);
    each_width::<u64>(&ram, 0x8f01_2345_6789_abcd, u64::MAX);
    each_width::<u128>(&ram, 0x8f01_2345_6789_abcd_0000_0000_0000_0001, u128::MAX);
}

#[test]
fn only_the_operand_is_written() {
    let ram = TestRam::new(4096);
    fill(ram.ptr(0), 0xee, 4096).unwrap();
    store(ram.ptr(8), 0u8).unwrap();
    store(ram.ptr(16), 0u16).unwrap();
    store(ram.ptr(24), 0u32).unwrap();
    for (at, width) in [(8, 1), (16, 2), (24, 4)] {
        for i in 0..8 {
            let expected = if i < width { 0 } else { 0xee };
            assert_eq!(load::<u8>(ram.ptr(at + i)), Ok(expected), "byte {i} of the {width}-byte store");
        }
    }
}

#[test]
fn wide_and_bulk() {
    let ram = TestRam::new(8192);
    let bytes: Vec<u8> = (0..4096u32).map(|i| (i * 7 + i / 256) as u8).collect();
    copy_to(ram.ptr(0), &bytes).unwrap();
    assert_eq!(compare(ram.ptr(0), &bytes), Ok(true));
    assert_eq!(compare(ram.ptr(1), &bytes[..4095]), Ok(false));
    assert_eq!(compare(ram.ptr(17), &bytes[17..1000]), Ok(true));
    let mut back = vec![0; 4000];
    copy_from(ram.ptr(96), &mut back).unwrap();
    assert_eq!(back, bytes[96..]);
    let wide: [u8; 64] = bytes[100..164].try_into().unwrap();
    store64(ram.ptr(5), &wide).unwrap();
    assert_eq!(load64(ram.ptr(5)), Ok(wide));
    let half: [u8; 32] = bytes[200..232].try_into().unwrap();
    store32(ram.ptr(1000), &half).unwrap();
    assert_eq!(load32(ram.ptr(1000)), Ok(half));
    fill(ram.ptr(10), 0x5a, 20).unwrap();
    assert_eq!(compare(ram.ptr(10), &[0x5a; 20]), Ok(true));
    // Overlapping, ascending: the pattern spreads.
    store(ram.ptr(4096), 0x1122u16).unwrap();
    bulk::copy_within(ram.ptr(4098), ram.ptr(4096), 10).unwrap();
    assert_eq!(load::<u64>(ram.ptr(4100)), Ok(0x1122_1122_1122_1122));
}

#[test]
fn bulk_stays_in_its_page() {
    let ram = TestRam::new(8192);
    assert!(copy_to(ram.ptr(4090), &[1; 7]).is_err());
    assert!(fill(ram.ptr(1), 1, 4096).is_err());
    assert!(copy_from(ram.ptr(4095), &mut [0; 2]).is_err());
    assert!(compare(ram.ptr(4095), &[0; 2]).is_err());
    assert_eq!(load::<u64>(ram.ptr(4088)), Ok(0));
}

/// Every primitive, on memory that is not there.
fn all_fail(ram: &TestRam, offset: u64) {
    let ptr = ram.ptr(offset);
    let fault = HostFault { hva: ptr.hva() };
    macro_rules! scalar_fails {
        ($($type:ty),*) => {$(
            assert_eq!(load::<$type>(ptr), Err(fault));
            assert_eq!(store::<$type>(ptr, 1), Err(fault));
            assert_eq!(compare_exchange::<$type>(ptr, 0, 1), Err(fault));
            assert_eq!(exchange::<$type>(ptr, 1), Err(fault));
            assert_eq!(fetch_add::<$type>(ptr, 1), Err(fault));
            assert_eq!(fetch_or::<$type>(ptr, 1), Err(fault));
        )*};
    }
    scalar_fails!(u8, u16, u32, u64, u128);
    assert_eq!(load32(ptr), Err(fault));
    assert_eq!(store64(ptr, &[0; 64]), Err(fault));
    assert_eq!(copy_from(ptr, &mut [0; 100]), Err(fault));
    assert_eq!(copy_to(ptr, &[0; 100]), Err(fault));
    assert_eq!(fill(ptr, 0, 100), Err(fault));
    assert_eq!(compare(ptr, &[0; 100]), Err(fault));
}

#[test]
fn missing_memory_is_a_host_fault() {
    install_fault_handler();
    install_fault_handler();
    let ram = TestRam::new(3 * 4096);
    ram.punch(4096, 4096);
    all_fail(&ram, 4096);
    // The neighbours are fine.
    store(ram.ptr(4088), 5u64).unwrap();
    store(ram.ptr(8192), 5u64).unwrap();
    // Beyond the end of a file: SIGBUS.
    let file = TestRam::of_file(2 * 4096, 4096);
    store(file.ptr(0), 1u8).unwrap();
    all_fail(&file, 4096);
}

#[test]
fn protected_memory_can_be_read_but_not_written() {
    install_fault_handler();
    let ram = TestRam::new(4096);
    store(ram.ptr(0), 77u32).unwrap();
    ram.protect(0, 4096, libc::PROT_READ);
    assert_eq!(load::<u32>(ram.ptr(0)), Ok(77));
    assert_eq!(store(ram.ptr(0), 1u32), Err(HostFault { hva: ram.ptr(0).hva() }));
    assert_eq!(compare_exchange(ram.ptr(0), 77u32, 1), Err(HostFault { hva: ram.ptr(0).hva() }));
    assert_eq!(load::<u32>(ram.ptr(0)), Ok(77));
    ram.protect(0, 4096, libc::PROT_READ | libc::PROT_WRITE);
    assert_eq!(store(ram.ptr(0), 1u32), Ok(()));
}

#[test]
fn memory_that_comes_and_goes_under_access() {
    install_fault_handler();
    let ram = TestRam::new(4096);
    let stop = std::sync::atomic::AtomicBool::new(false);
    let relaxed = std::sync::atomic::Ordering::Relaxed;
    std::thread::scope(|scope| {
        let readers: Vec<_> = (0..2)
            .map(|i| {
                let (ram, stop) = (&ram, &stop);
                scope.spawn(move || {
                    let mut faults = 0u64;
                    while !stop.load(relaxed) {
                        let failed = match i {
                            0 => load::<u64>(ram.ptr(8)).is_err(),
                            _ => fetch_add::<u64>(ram.ptr(16), 1).is_err(),
                        };
                        faults += u64::from(failed);
                    }
                    faults
                })
            })
            .collect();
        for _ in 0..200 {
            ram.protect(0, 4096, libc::PROT_NONE);
            std::thread::yield_now();
            ram.protect(0, 4096, libc::PROT_READ | libc::PROT_WRITE);
            std::thread::yield_now();
        }
        stop.store(true, relaxed);
        for reader in readers {
            reader.join().unwrap();
        }
    });
    assert!(load::<u64>(ram.ptr(16)).is_ok());
}
