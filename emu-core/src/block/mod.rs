//! The cache of decoded blocks, by host address and mode.
//!
//! Code is known by the *host* address of its bytes (two slots may share an hva, and the same gpa
//! may be another page in SMM's address space), so a block survives every change of page
//! tables. What may change the bytes is covered twice:
//!
//! - a vCPU's store is reported by the MMU's write tracking, at a granule of 64 bytes
//!   ([`BlockCache::invalidate`]);
//! - a write by the VMM is seen by nobody. So execute tags of the TLB are dropped wherever such a write can
//!   become visible, and the next execute fill of a page compares the bytes that its blocks were made
//!   from ([`BlockCache::lookup`]).
//!
//! One cache belongs to one vCPU, and is not shared: no lock, no reference counts.

use crate::exit::{InternalError, Stop};
use crate::interp::{Handler, select};
use crate::vcpu::{RIP, Vcpu};
use decoder::{Context, Insn, Protection, decode_block, decode_one};
use softmmu::{Access, CodeMark, Exclusive, HostPtr, Target, host_mem};
use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use x86_arch::{Gva, PAGE_MASK, PAGE_SIZE, Seg};

/// A decoded instruction with its handler.
#[derive(Clone, Debug)]
pub struct Op {
    /// Executes it.
    pub handler: Handler,
    /// What it is.
    pub insn: Insn,
}

const _: () = assert!(size_of::<Op>() == 64);

/// Names a block until the next call that can change the cache.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BlockId(u32);

/// Entries of the direct-mapped table before the hash map.
const FRONT: usize = 1 << 14;
/// The cache is emptied when it holds so many instructions (64 bytes each).
const MAX_OPS: usize = 400_000;
/// Most instructions in a block.
const MAX_BLOCK: usize = 48;
/// Bytes fetched at first: most blocks end sooner.
const FETCH: usize = 256;

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
struct Key {
    hva: u64,
    mode: u8,
}

const NO_KEY: Key = Key { hva: u64::MAX, mode: u8::MAX };

struct Entry {
    key: Key,
    /// Empty: the entry is free.
    ops: Box<[Op]>,
    /// Bytes of code.
    len: u16,
    /// Host frame of the second page of an instruction that crosses a page, or 0.
    second: u64,
}

#[derive(Clone, Copy)]
struct Front {
    key: Key,
    entry: u32,
}

/// Bytes that blocks were made from.
struct CodePage {
    bytes: Box<[u8; PAGE_SIZE as usize]>,
    granules: u64,
    entries: Vec<u32>,
}

/// A multiplicative hash: keys are addresses.
#[derive(Default, Clone, Copy)]
pub struct AddressHasher(u64);

impl Hasher for AddressHasher {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        for &b in bytes {
            self.write_u64(b as u64);
        }
    }
    fn write_u8(&mut self, n: u8) {
        self.write_u64(n as u64);
    }
    fn write_u64(&mut self, n: u64) {
        self.0 = (self.0 ^ n).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29);
    }
}

type Map<K, V> = HashMap<K, V, BuildHasherDefault<AddressHasher>>;

/// Decoded blocks of one vCPU.
pub struct BlockCache {
    entries: Vec<Entry>,
    free: Vec<u32>,
    front: Box<[Front]>,
    index: Map<Key, u32>,
    pages: Map<u64, CodePage>,
    ops: usize,
}

impl Default for BlockCache {
    fn default() -> Self {
        BlockCache::new()
    }
}

fn front_slot(hva: u64) -> usize {
    (hva ^ hva >> 12) as usize & (FRONT - 1)
}

/// The granules of 64 bytes that `[offset, offset + len)` of a page touches.
fn granules(offset: u64, len: u64) -> u64 {
    let first = offset >> 6;
    let last = (offset + len.max(1) - 1).min(PAGE_MASK) >> 6;
    (u64::MAX >> (63 - (last - first))) << first
}

impl BlockCache {
    /// An empty cache.
    pub fn new() -> BlockCache {
        BlockCache {
            entries: Vec::new(),
            free: Vec::new(),
            front: vec![Front { key: NO_KEY, entry: 0 }; FRONT].into_boxed_slice(),
            index: Map::default(),
            pages: Map::default(),
            ops: 0,
        }
    }

    /// Drops everything.
    pub fn clear(&mut self) {
        *self = BlockCache::new();
    }

    /// The instructions of a block.
    #[inline(always)]
    pub fn ops(&self, id: BlockId) -> &[Op] {
        match self.entries.get(id.0 as usize) {
            Some(e) => &e.ops,
            None => &[],
        }
    }

    /// The block at CS:RIP. Fails as the fetch of its first instruction does.
    #[inline]
    pub fn lookup(&mut self, v: &mut Vcpu, ex: Option<&Exclusive<'_>>) -> Result<BlockId, Stop> {
        let cs = &v.seg_path[Seg::Cs as usize];
        let gva = cs.base.wrapping_add(v.hot.regs[RIP]) & v.hot.linear_mask;
        if let Some(p) = v.mmu.tlb.lookup_exec(gva, 1) {
            let key = Key { hva: p.hva().0, mode: v.block_mode };
            let f = &self.front[front_slot(key.hva)];
            if f.key == key {
                return Ok(BlockId(f.entry));
            }
        }
        self.lookup_slow(v, gva, ex)
    }

    /// How many instructions of a block lie within CS's limit; in 64-bit mode all.
    /// 0: the fetch of the first is #GP(0).
    #[inline]
    pub fn within_limit(&self, v: &Vcpu, id: BlockId) -> usize {
        let ops = self.ops(id);
        if v.long64() {
            return ops.len();
        }
        let limit = v.seg[Seg::Cs as usize].limit as u64;
        let mut end = v.hot.regs[RIP];
        if limit == u32::MAX as u64 {
            return ops.len();
        }
        ops.iter()
            .take_while(|op| {
                end = end.wrapping_add(op.insn.len as u64);
                end.wrapping_sub(1) <= limit
            })
            .count()
    }

    #[inline(never)]
    fn lookup_slow(&mut self, v: &mut Vcpu, gva: u64, ex: Option<&Exclusive<'_>>) -> Result<BlockId, Stop> {
        if !v.long64() && v.hot.regs[RIP] > v.seg[Seg::Cs as usize].limit as u64 {
            return v.gp0();
        }
        let p = self.fetch(v, gva)?;
        let key = Key { hva: p.hva().0, mode: v.block_mode };
        if let Some(&n) = self.index.get(&key) {
            let (second, len) = self.entries.get(n as usize).map_or((0, 0), |e| (e.second, e.len));
            if second != 0 {
                // The second page of a crossing instruction may be another one now, or fault: never in the
                // front table, so that this is asked each time.
                let next = (gva | PAGE_MASK).wrapping_add(1) & v.hot.linear_mask;
                if self.fetch(v, next)?.frame() == second && self.index.contains_key(&key) {
                    return Ok(BlockId(n));
                }
                self.remove(n);
            } else if len > 0 {
                self.front[front_slot(key.hva)] = Front { key, entry: n };
                return Ok(BlockId(n));
            }
        }
        self.decode(v, gva, p, key, ex)
    }

    /// Translates a fetch, and compares the page's blocks with memory where the TLB did not know it.
    fn fetch(&mut self, v: &mut Vcpu, gva: u64) -> Result<HostPtr, Stop> {
        if let Some(p) = v.mmu.tlb.lookup_exec(gva, 1) {
            return Ok(p);
        }
        match v.mmu.translate(Gva(gva), Access::execute(v.cpl == 3), 1) {
            Ok(Target::Ram(p)) => {
                self.verify(v, p)?;
                Ok(p)
            }
            Ok(Target::Tracked(t)) => Ok(t.host_ptr()),
            // KVM does not execute from device memory: its emulator reports failure.
            Ok(Target::Mmio(_)) => Err(Stop::Internal(InternalError::Emulation)),
            Err(f) => Err(v.mmu_fault(Seg::Cs as u8, f)),
        }
    }

    /// Drops the blocks of `p`'s page whose bytes are not in memory any more.
    fn verify(&mut self, v: &mut Vcpu, p: HostPtr) -> Result<(), Stop> {
        let Some(page) = self.pages.get(&p.frame()) else { return Ok(()) };
        let base = p.within_page(p.page_remainder());
        let mut changed = 0u64;
        for g in 0..64u64 {
            if page.granules >> g & 1 != 0 {
                let at = (g * 64) as usize;
                let same = host_mem::compare(base.within_page(g * 64), &page.bytes[at..at + 64])
                    .map_err(|f| v.host_faulted(f))?;
                if !same {
                    changed |= 1 << g;
                }
            }
        }
        if changed != 0 {
            v.stats.blocks_invalidated += self.invalidate(p.frame(), changed);
            // What is decoded next in these granules is compared with what stands there now.
            self.refresh(v, p.frame(), base, changed)?;
        }
        Ok(())
    }

    /// Copies granules of a page into its snapshot.
    fn refresh(&mut self, v: &mut Vcpu, frame: u64, base: HostPtr, which: u64) -> Result<(), Stop> {
        let Some(page) = self.pages.get_mut(&frame) else { return Ok(()) };
        for g in 0..64u64 {
            if which >> g & 1 != 0 {
                let at = (g * 64) as usize;
                host_mem::copy_from(base.within_page(g * 64), &mut page.bytes[at..at + 64])
                    .map_err(|f| v.host_faulted(f))?;
            }
        }
        Ok(())
    }

    /// Decodes the block at `p` and enters it.
    fn decode(
        &mut self,
        v: &mut Vcpu,
        gva: u64,
        p: HostPtr,
        key: Key,
        ex: Option<&Exclusive<'_>>,
    ) -> Result<BlockId, Stop> {
        if self.ops > MAX_OPS {
            self.clear();
        }
        let protection = if v.real_mode() {
            Protection::Real
        } else if v.v86() {
            Protection::Virtual8086
        } else {
            Protection::Protected
        };
        let remainder = p.page_remainder() as usize;
        let mut bytes = [0u8; PAGE_SIZE as usize];
        let mut fetched = remainder.min(FETCH);
        loop {
            host_mem::copy_from(p, &mut bytes[..fetched]).map_err(|f| v.host_faulted(f))?;
            let context = Context { mode: v.mode, protection, cpuid: v.cpuid.instructions() };
            let block = decode_block(&bytes[..fetched], &context, MAX_BLOCK);
            if block.insns.is_empty() {
                if fetched < remainder {
                    fetched = remainder;
                    continue;
                }
                return self.decode_crossing(v, gva, p, key, ex, &bytes[..remainder]);
            }
            // A fault entry that kept no bytes (nothing could be fetched) still stands on one.
            let len = (block.len as usize).clamp(1, fetched);
            self.mark(v, ex, p, len)?;
            // Marked, and still what was decoded? Then every later store is reported.
            if !host_mem::compare(p, &bytes[..len]).map_err(|f| v.host_faulted(f))? {
                continue;
            }
            self.snapshot(v, p, len)?;
            let id = self.insert(v, key, block.insns, len as u16, 0);
            self.attach(p.frame(), id);
            self.front[front_slot(key.hva)] = Front { key, entry: id.0 };
            return Ok(id);
        }
    }

    /// One instruction whose bytes continue on the next page.
    fn decode_crossing(
        &mut self,
        v: &mut Vcpu,
        gva: u64,
        p: HostPtr,
        key: Key,
        ex: Option<&Exclusive<'_>>,
        head: &[u8],
    ) -> Result<BlockId, Stop> {
        let next = (gva | PAGE_MASK).wrapping_add(1) & v.hot.linear_mask;
        let q = self.fetch(v, next)?;
        let mut bytes = [0u8; 30];
        let n = head.len().min(15);
        let protection = if v.real_mode() {
            Protection::Real
        } else if v.v86() {
            Protection::Virtual8086
        } else {
            Protection::Protected
        };
        loop {
            host_mem::copy_from(p, &mut bytes[..n]).map_err(|f| v.host_faulted(f))?;
            host_mem::copy_from(q, &mut bytes[n..n + 15]).map_err(|f| v.host_faulted(f))?;
            let context = Context { mode: v.mode, protection, cpuid: v.cpuid.instructions() };
            let Ok(insn) = decode_one(&bytes[..n + 15], &context) else { return v.ud() };
            let tail = (insn.len as usize).saturating_sub(n).max(1);
            self.mark(v, ex, p, n)?;
            self.mark(v, ex, q, tail)?;
            let same = host_mem::compare(p, &bytes[..n]).map_err(|f| v.host_faulted(f))?
                && host_mem::compare(q, &bytes[n..n + tail]).map_err(|f| v.host_faulted(f))?;
            if !same {
                continue;
            }
            self.snapshot(v, p, n)?;
            self.snapshot(v, q, tail)?;
            let len = insn.len as u16;
            let id = self.insert(v, key, vec![insn], len, q.frame());
            self.attach(p.frame(), id);
            self.attach(q.frame(), id);
            return Ok(id);
        }
    }

    fn mark(&mut self, v: &mut Vcpu, ex: Option<&Exclusive<'_>>, p: HostPtr, len: usize) -> Result<(), Stop> {
        match v.mmu.mark_code(ex, p, len as u64) {
            CodeMark::Ready => Ok(()),
            CodeMark::NeedsExclusive => Err(Stop::Exclusive),
        }
    }

    /// Remembers the granules that `[p, p + len)` touches, whole, as they are in memory.
    fn snapshot(&mut self, v: &mut Vcpu, p: HostPtr, len: usize) -> Result<(), Stop> {
        let page = self.pages.entry(p.frame()).or_insert_with(|| CodePage {
            bytes: Box::new([0; PAGE_SIZE as usize]),
            granules: 0,
            entries: Vec::new(),
        });
        let wanted = granules(p.hva().0 & PAGE_MASK, len as u64);
        let new = wanted & !page.granules;
        page.granules |= wanted;
        self.refresh(v, p.frame(), p.within_page(p.page_remainder()), new)
    }

    fn insert(&mut self, v: &mut Vcpu, key: Key, insns: Vec<Insn>, len: u16, second: u64) -> BlockId {
        v.stats.blocks_decoded += 1;
        v.stats.insns_decoded += insns.len() as u64;
        self.ops += insns.len();
        let ops = insns.into_iter().map(|insn| Op { handler: select(&insn), insn }).collect();
        let entry = Entry { key, ops, len, second };
        let n = match self.free.pop() {
            Some(n) => {
                self.entries[n as usize] = entry;
                n
            }
            None => {
                self.entries.push(entry);
                (self.entries.len() - 1) as u32
            }
        };
        self.index.insert(key, n);
        BlockId(n)
    }

    fn attach(&mut self, frame: u64, id: BlockId) {
        if let Some(page) = self.pages.get_mut(&frame) {
            page.entries.push(id.0);
        }
    }

    fn remove(&mut self, n: u32) {
        let Some(e) = self.entries.get_mut(n as usize) else { return };
        if e.ops.is_empty() {
            return;
        }
        self.ops -= e.ops.len();
        let (key, second) = (e.key, e.second);
        *e = Entry { key: NO_KEY, ops: Box::new([]), len: 0, second: 0 };
        self.index.remove(&key);
        let f = &mut self.front[front_slot(key.hva)];
        if f.key == key {
            *f = Front { key: NO_KEY, entry: 0 };
        }
        for frame in [key.hva >> 12, second] {
            if let Some(page) = self.pages.get_mut(&frame) {
                page.entries.retain(|&x| x != n);
            }
        }
        self.free.push(n);
    }

    /// Drops the blocks made from these granules of a host frame (hva >> 12). Returns how many.
    pub fn invalidate(&mut self, frame: u64, which: u64) -> u64 {
        let Some(page) = self.pages.get(&frame) else { return 0 };
        if page.granules & which == 0 {
            return 0;
        }
        let hit: Vec<u32> = page
            .entries
            .iter()
            .copied()
            .filter(|&n| {
                let Some(e) = self.entries.get(n as usize) else { return false };
                let offset = e.key.hva & PAGE_MASK;
                let covered = if e.key.hva >> 12 == frame {
                    granules(offset, e.len as u64)
                } else {
                    granules(0, e.len as u64)
                };
                covered & which != 0
            })
            .collect();
        for &n in &hit {
            self.remove(n);
        }
        let rest: u64 = match self.pages.get(&frame) {
            None => 0,
            Some(page) => page
                .entries
                .iter()
                .filter_map(|&n| self.entries.get(n as usize))
                .map(|e| {
                    let own = e.key.hva >> 12 == frame;
                    granules(if own { e.key.hva & PAGE_MASK } else { 0 }, e.len as u64)
                })
                .fold(0, |a, b| a | b),
        };
        if rest == 0 {
            self.pages.remove(&frame);
        } else if let Some(page) = self.pages.get_mut(&frame) {
            page.granules = rest;
        }
        hit.len() as u64
    }
}

#[cfg(test)]
mod tests {
    use super::granules;

    #[test]
    fn granules_cover_what_they_should() {
        assert_eq!(granules(0, 1), 1);
        assert_eq!(granules(63, 1), 1);
        assert_eq!(granules(63, 2), 3);
        assert_eq!(granules(0, 4096), u64::MAX);
        assert_eq!(granules(4095, 15), 1 << 63);
        assert_eq!(granules(64, 64), 2);
    }
}
