//! The second walker: the test oracle. Written from the SDM's prose without a look at `walk`, plain and slow.
//!
//! It reads tables from a closure, computes the outcome of one access, and lists the entries whose A and D bits the access sets.

use crate::access::{Access, AccessKind};
use crate::vcpu::PagingRegisters;
use x86_arch::{Cr0, Cr4, Efer, PageFaultErrorCode as Code};

/// What a correct processor does.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Outcome {
    /// The access is allowed; these entries now hold these values.
    Ok { gpa: u64, updates: Vec<(u64, u64)> },
    /// #PF with this error code.
    Fault(Code),
}

fn bit(value: u64, n: u32) -> bool {
    value >> n & 1 == 1
}

/// SDM vol. 3A, chapter 4, for one access to a canonical address. `read(address, bytes)` is nothing where no memory is.
pub(crate) fn access(
    regs: &PagingRegisters,
    pdptrs: [u64; 4],
    gva: u64,
    access: Access,
    ac: bool,
    read: &dyn Fn(u64, u64) -> Option<u64>,
) -> Outcome {
    let write = access.kind == AccessKind::Write;
    let fetch = access.kind == AccessKind::Execute;
    if !regs.cr0.contains(Cr0::PG) {
        return Outcome::Ok { gpa: gva, updates: Vec::new() };
    }
    let pae = regs.cr4.contains(Cr4::PAE);
    let long = regs.efer.contains(Efer::LMA);
    let nxe = regs.efer.contains(Efer::NXE);
    let m = u32::from(regs.maxphyaddr);

    let mut code = Code::empty();
    if write {
        code |= Code::W;
    }
    if access.user {
        code |= Code::U;
    }
    if fetch && (regs.cr4.contains(Cr4::SMEP) || (pae && nxe)) {
        code |= Code::I;
    }

    // 4.2: the first structure.
    let (levels, size, mut table) = if !pae {
        (2, 4, regs.cr3 & 0xffff_f000)
    } else if !long {
        let pdpte = pdptrs[(gva >> 30 & 3) as usize];
        if !bit(pdpte, 0) {
            return Outcome::Fault(code);
        }
        (2, 8, pdpte & 0x000f_ffff_ffff_f000)
    } else if regs.cr4.contains(Cr4::LA57) {
        (5, 8, regs.cr3 & 0x000f_ffff_ffff_f000)
    } else {
        (4, 8, regs.cr3 & 0x000f_ffff_ffff_f000)
    };

    let mut path = Vec::new();
    let (mut all_user, mut all_write, mut any_xd) = (true, true, false);
    let mut level = levels;
    let (gpa, leaf) = loop {
        let (shift, bits) = if size == 4 { (12 + 10 * (level - 1), 10) } else { (12 + 9 * (level - 1), 9) };
        let address = table + ((gva >> shift) & ((1 << bits) - 1)) * size;
        let Some(e) = read(address, size) else { return Outcome::Fault(code) };
        if !bit(e, 0) {
            return Outcome::Fault(code);
        }
        let page = level == 1
            || (bit(e, 7)
                && ((size == 4 && regs.cr4.contains(Cr4::PSE))
                    || (size == 8 && (level == 2 || (level == 3 && long)))));
        if reserved(e, level, page, size, long, nxe, m) {
            return Outcome::Fault(code | Code::P | Code::RSVD);
        }
        path.push((address, e));
        all_user &= bit(e, 2);
        all_write &= bit(e, 1);
        any_xd |= size == 8 && nxe && bit(e, 63);
        if page {
            let low = gva & ((1u64 << shift) - 1);
            let high = if size == 4 && level == 2 {
                // Table 4-4: bits 31:22 and 39:32 from 20:13.
                (e & 0xffc0_0000) + ((e >> 13 & 0xff) << 32)
            } else {
                (e & 0x000f_ffff_ffff_ffff) >> shift << shift
            };
            break (high | low, e);
        }
        table = if size == 4 { e & 0xffff_f000 } else { e & 0x000f_ffff_ffff_f000 };
        level -= 1;
    };

    // 4.6: access rights.
    let wp = regs.cr0.contains(Cr0::WP);
    let smap = regs.cr4.contains(Cr4::SMAP) && all_user && !access.user;
    let mut refused = false;
    if access.user {
        refused |= !all_user || (write && !all_write) || (fetch && any_xd);
    } else {
        if fetch {
            refused |= any_xd || (regs.cr4.contains(Cr4::SMEP) && all_user);
        } else {
            refused |= smap && (access.implicit || !ac);
        }
        refused |= write && wp && !all_write;
    }
    if long && regs.cr4.contains(Cr4::PKE) && all_user && !fetch {
        let key = 2 * (leaf >> 59 & 15) as u32;
        let ad = regs.pkru >> key & 1 == 1;
        let wd = regs.pkru >> (key + 1) & 1 == 1;
        if ad || (write && wd && (wp || access.user)) {
            refused = true;
            code |= Code::PK;
        }
    }
    if refused {
        return Outcome::Fault(code | Code::P);
    }

    // 4.8: accessed and dirty.
    let last = path.len() - 1;
    let mut updates = Vec::new();
    for (i, (address, e)) in path.into_iter().enumerate() {
        let mut new = e | 0x20;
        if i == last && write {
            new |= 0x40;
        }
        if new != e {
            updates.push((address, new));
        }
    }
    Outcome::Ok { gpa, updates }
}

fn reserved(e: u64, level: u32, page: bool, size: u64, long: bool, nxe: bool, m: u32) -> bool {
    let any = |from: u32, to: u32| (from..=to).any(|n| bit(e, n));
    if size == 4 {
        // Table 4-4.
        return level == 2 && page && any(m.min(40) - 19, 21);
    }
    (m < 52 && any(m, 51))
        || (!nxe && bit(e, 63))
        || (!long && any(52, 62))
        || (page && level == 2 && any(13, 20))
        || (page && level == 3 && any(13, 29))
        || (level >= 4 && bit(e, 7))
}
