//! Arguments of ioctls: structures that are right, nearly right or random, at addresses that are good, bad or in the guest.
//!
//! Addresses that an ioctl writes to, and memory that a guest gets, are always of the case's own pages or nobody's: a
//! caller that hands over its own heap is its own enemy, and no test of ours.

use super::World;
use crate::fuzz::random::Random;
use kvm_api::nr::*;
use kvm_api::uapi::*;
use kvm_ioctl_layer::user_mem::{OwnMemory, UserMemory, bytes_of};
use std::os::fd::AsRawFd;

/// Addresses that are nobody's.
pub const NOWHERE: &[u64] =
    &[0, 8, 0xfff, 0x8000_0000_0000_0000, 0xffff_8880_0000_0000, u64::MAX, u64::MAX - 4095];

/// Where an argument may lie.
pub fn address(world: &World, random: &mut Random) -> u64 {
    let pages = &world.pages;
    match random.below(20) {
        0 => random.pick(NOWHERE),
        1 => pages.forbidden() + random.below(4096) as u64,
        2 => pages.forbidden() - random.below(64) as u64,
        3 => pages.read_only() + random.below(4096) as u64,
        4 => pages.read_only() - random.below(600) as u64,
        5 => pages.start() + random.below(pages.len() as usize) as u64,
        _ => pages.start() + random.below(pages.len() as usize / 64) as u64 * 64,
    }
}

/// A number that is often a border of something.
pub fn number(random: &mut Random) -> u64 {
    match random.below(8) {
        0 => random.next(),
        1 => 1 << random.below(64),
        2 => u64::MAX >> random.below(64),
        3 => (random.below(64) as u64) << 12,
        4 => 0,
        _ => random.below(300) as u64,
    }
}

fn descriptor(world: &World, random: &mut Random) -> i32 {
    match random.below(10) {
        0 => -1,
        1 => world.file.as_raw_fd(),
        2 => 1_000_000,
        _ => world.eventfds[random.below(world.eventfds.len())].as_raw_fd(),
    }
}

/// An hva for a slot: a page of ours, or one of nobody's.
fn hva(world: &World, random: &mut Random) -> u64 {
    match random.below(12) {
        0 => world.pages.forbidden(),
        1 => world.pages.read_only(),
        2 => random.pick(&[0, 0x1000, 0x7fff_ffff_d000, 0xffff_8880_0000_0000]),
        _ => world.pages.start() + random.below(48) as u64 * 4096,
    }
}

fn region(world: &World, random: &mut Random) -> Vec<u8> {
    let hva = hva(world, random);
    // As far as the pages go: what lies behind them is not ours.
    let room = world.pages.start() + world.pages.len() + 8192;
    let most = if (world.pages.start()..room).contains(&hva) { (room - hva) / 4096 } else { 1 << 20 };
    let pages = match random.below(6) {
        0 => 0,
        1 => most,
        _ => random.below(most.min(64) as usize + 1) as u64,
    };
    let gpa = match random.below(8) {
        0 => number(random) & !0xfff,
        1 => 0xffff_0000,
        _ => random.below(64) as u64 * 4096,
    };
    let odd = if random.one_in(30) { 0x10 } else { 0 };
    let r = kvm_userspace_memory_region {
        slot: random.pick(&[0, 0, 1, 1, 2, 3, 32763, 1 << 16, 2 << 16, 32764]),
        flags: random.pick(&[0, 0, 0, KVM_MEM_LOG_DIRTY_PAGES, KVM_MEM_READONLY, 3, 4, 1 << 31]),
        guest_phys_addr: gpa + odd,
        memory_size: pages * 4096,
        userspace_addr: hva,
    };
    bytes_of(&r).to_vec()
}

fn msrs(random: &mut Random) -> Vec<u8> {
    let count = random.pick(&[0u32, 1, 1, 2, 5, 20, 255, 256, u32::MAX]);
    let mut b = count.to_le_bytes().to_vec();
    b.extend([0; 4]);
    for _ in 0..count.min(20) {
        let index = match random.below(6) {
            0 => random.next() as u32,
            1 => 0x800 + random.below(256) as u32,
            2 => 0x4b56_4d00 + random.below(10) as u32,
            3 => 0xc000_0080 + random.below(0x90) as u32,
            _ => random.below(0x700) as u32,
        };
        b.extend(index.to_le_bytes());
        b.extend([0; 4]);
        // kvmclock and its kin point into the guest.
        let data = if random.one_in(2) { (random.below(64 * 4096) as u64) | 1 } else { number(random) };
        b.extend(data.to_le_bytes());
    }
    b
}

fn cpuid(random: &mut Random) -> Vec<u8> {
    let count = random.pick(&[0u32, 1, 2, 10, 80, 256, 257, u32::MAX]);
    let mut b = count.to_le_bytes().to_vec();
    b.extend([0; 4]);
    for _ in 0..count.min(80) {
        let function =
            random.pick(&[0u32, 1, 7, 0xd, 0x4000_0000, 0x4000_0001, 0x8000_0001, 0x8000_0008, 0x15]);
        for word in [function, random.below(4) as u32, random.below(2) as u32] {
            b.extend(word.to_le_bytes());
        }
        b.extend(random.bytes(28));
    }
    b
}

fn routes(random: &mut Random) -> Vec<u8> {
    let count = random.pick(&[0u32, 1, 3, 24, 100, 4096, 4097, u32::MAX]);
    let mut b = count.to_le_bytes().to_vec();
    b.extend(u32::from(random.one_in(20)).to_le_bytes());
    for _ in 0..count.min(100) {
        let words: [u32; 12] = [
            random.below(30) as u32,
            random.pick(&[1, 1, 2, 2, 0, 4, 99]),
            0,
            0,
            random.pick(&[0, 1, 2, 2, 0xfee0_0000]),
            random.below(26) as u32,
            random.below(256) as u32,
            0,
            0,
            0,
            0,
            0,
        ];
        b.extend(words.iter().flat_map(|w| w.to_le_bytes()));
    }
    b
}

/// A structure that holds addresses: each is the case's own or nobody's.
fn with_address(world: &World, random: &mut Random, size: usize, at: usize) -> Vec<u8> {
    let mut b = random.bytes(size);
    if random.one_in(2) {
        b.fill(0);
    }
    b[at..at + 8].copy_from_slice(&address(world, random).to_le_bytes());
    b
}

/// Bytes for the argument of an ioctl.
pub fn structure(world: &World, random: &mut Random, nr: u32) -> Vec<u8> {
    let size = size_of_argument(nr);
    match nr {
        KVM_SET_USER_MEMORY_REGION | KVM_SET_USER_MEMORY_REGION2 => {
            let mut b = region(world, random);
            b.resize(size, 0);
            return b;
        }
        KVM_GET_DIRTY_LOG => {
            let mut b = with_address(world, random, size, 8);
            b[..4].copy_from_slice(&(random.below(4) as u32).to_le_bytes());
            return b;
        }
        KVM_CLEAR_DIRTY_LOG => {
            let mut b = with_address(world, random, size, 16);
            b[..4].copy_from_slice(&(random.below(4) as u32).to_le_bytes());
            b[4..8].copy_from_slice(&(number(random) as u32).to_le_bytes());
            b[8..16].copy_from_slice(&random.pick(&[0u64, 0, 64, 1, u64::MAX]).to_le_bytes());
            return b;
        }
        KVM_HAS_DEVICE_ATTR | KVM_GET_DEVICE_ATTR | KVM_SET_DEVICE_ATTR => {
            let mut b = with_address(world, random, size, 16);
            b[..16].fill(0);
            b[4] = random.below(3) as u8;
            return b;
        }
        KVM_GET_ONE_REG | KVM_SET_ONE_REG => return with_address(world, random, size, 8),
        KVM_X86_SET_MSR_FILTER => {
            let mut b = vec![0; size];
            b[0] = random.below(3) as u8;
            for range in b[8..].chunks_exact_mut(24).take(random.below(5)) {
                range[0] = random.below(4) as u8;
                range[4..8].copy_from_slice(&random.pick(&[0u32, 8, 64, 0x3000, u32::MAX]).to_le_bytes());
                range[8..12].copy_from_slice(&(random.next() as u32 & 0xc000_01ff).to_le_bytes());
                range[16..24].copy_from_slice(&address(world, random).to_le_bytes());
            }
            return b;
        }
        KVM_IRQFD => {
            let a = kvm_irqfd {
                fd: descriptor(world, random) as u32,
                gsi: random.pick(&[0, 4, 9, 23, 24, 4096, u32::MAX]),
                flags: random.pick(&[0, 0, 1, 2, 3, 4]),
                resamplefd: descriptor(world, random) as u32,
                ..Default::default()
            };
            return bytes_of(&a).to_vec();
        }
        KVM_IOEVENTFD => {
            let a = kvm_ioeventfd {
                datamatch: random.below(2) as u64,
                addr: random.pick(&[0, 0x60, 0x1_0000, 0x3_f000, u64::MAX]),
                len: random.pick(&[0, 1, 2, 4, 8, 3]),
                fd: descriptor(world, random),
                flags: random.below(16) as u32,
                ..Default::default()
            };
            return bytes_of(&a).to_vec();
        }
        KVM_GET_MSRS | KVM_SET_MSRS => return msrs(random),
        KVM_SET_CPUID
        | KVM_SET_CPUID2
        | KVM_GET_CPUID2
        | KVM_GET_SUPPORTED_CPUID
        | KVM_GET_EMULATED_CPUID => {
            return cpuid(random);
        }
        KVM_GET_MSR_INDEX_LIST | KVM_GET_MSR_FEATURE_INDEX_LIST => {
            return (random.below(300) as u32).to_le_bytes().to_vec();
        }
        KVM_SET_GSI_ROUTING => return routes(random),
        KVM_ENABLE_CAP => {
            let a = kvm_enable_cap {
                cap: random.below(250) as u32,
                flags: u32::from(random.one_in(20)),
                args: [number(random), number(random), 0, 0],
                ..Default::default()
            };
            return bytes_of(&a).to_vec();
        }
        KVM_IRQ_LINE | KVM_IRQ_LINE_STATUS => {
            let words = [random.pick(&[0u32, 1, 4, 8, 23, 24, 5000, u32::MAX]), random.below(2) as u32];
            return words.iter().flat_map(|w| w.to_le_bytes()).collect();
        }
        KVM_SET_MP_STATE => return (random.below(11) as u32).to_le_bytes().to_vec(),
        _ => {}
    }
    match random.below(3) {
        0 => vec![0; size],
        1 => random.bytes(size),
        _ => {
            let mut b = vec![0; size];
            for _ in 0..1 + random.below(8) {
                if size > 0 {
                    b[random.below(size)] = random.next() as u8;
                }
            }
            b
        }
    }
}

/// The ioctl whose answer is an argument of this one.
fn counterpart(nr: u32) -> Option<u32> {
    Some(match nr {
        KVM_SET_REGS => KVM_GET_REGS,
        KVM_SET_SREGS => KVM_GET_SREGS,
        KVM_SET_SREGS2 => KVM_GET_SREGS2,
        KVM_SET_FPU => KVM_GET_FPU,
        KVM_SET_LAPIC => KVM_GET_LAPIC,
        KVM_SET_VCPU_EVENTS => KVM_GET_VCPU_EVENTS,
        KVM_SET_DEBUGREGS => KVM_GET_DEBUGREGS,
        KVM_SET_XSAVE => KVM_GET_XSAVE2,
        KVM_SET_XCRS => KVM_GET_XCRS,
        KVM_SET_IRQCHIP => KVM_GET_IRQCHIP,
        KVM_SET_PIT => KVM_GET_PIT,
        KVM_SET_PIT2 => KVM_GET_PIT2,
        KVM_SET_CLOCK => KVM_GET_CLOCK,
        KVM_SET_NESTED_STATE => KVM_GET_NESTED_STATE,
        _ => return None,
    })
}

/// Puts an argument somewhere, and says where: what was read a moment ago with a few bits changed, or made up.
pub fn place(world: &World, random: &mut Random, fd: i32, nr: u32) -> u64 {
    use crate::ioctls::front::Front;
    let at = address(world, random);
    match counterpart(nr) {
        Some(get) if random.below(4) != 0 => {
            world.front.ioctl(fd, get, at);
            let size = size_of_argument(nr).min(4096);
            for _ in 0..random.below(6) {
                let bit = random.below(size.max(1) * 8);
                let mut byte = [0];
                if OwnMemory.read(at.wrapping_add(bit as u64 / 8), &mut byte).is_ok() {
                    byte[0] ^= 1 << (bit % 8);
                    let _ = OwnMemory.write(at.wrapping_add(bit as u64 / 8), &byte);
                }
            }
        }
        _ => {
            let _ = OwnMemory.write(at, &structure(world, random, nr));
        }
    }
    at
}
