//! Shadow roots: the shadow pages that a vCPU's CR3 or PDPTEs stand for.
//!
//! A vCPU keeps the roots of the last few address spaces that it ran, pinned, so that MOV to CR3 costs a short search and no
//! lock. A root that must go is marked invalid, and each vCPU lets go of it at its next miss.
//!
//! Not here: how roots are made (`fault`, which makes them when they are first missed).

use crate::role::Role;
use crate::shadow_page::{Shadow, SptArena};
use crate::walk::PagingContext;
use x86_arch::paging::PTE_P;
use x86_arch::{Gfn, Gva, PagingMode};

/// How many address spaces a vCPU remembers.
const REMEMBERED: usize = 8;

/// Which tables the roots shadow.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct RootKey {
    /// The role of the roots (the quadrant apart).
    pub role: Role,
    /// Their gfns; nothing for an absent PDPTE.
    pub gfns: [Option<Gfn>; 4],
}

impl RootKey {
    /// The roots of a context.
    ///
    /// 4- and 5-level paging have one. The others have four of level 2, each for 1 GiB, as PAE's PDPTEs would give them.
    pub fn of(context: &PagingContext, as_id: u16) -> RootKey {
        let base = Role::base(context, as_id);
        let (level, gfns) = match context.mode {
            PagingMode::None => (2, [0, 1, 2, 3].map(|i| Some(Gfn(i << 18)))),
            PagingMode::Bits32 => (2, [Some(context.root.gfn()); 4]),
            PagingMode::Pae => {
                (2, context.pdptrs.map(|e| (e & PTE_P != 0).then(|| context.table_base(e).gfn())))
            }
            PagingMode::Level4 => (4, [Some(context.root.gfn()), None, None, None]),
            PagingMode::Level5 => (5, [Some(context.root.gfn()), None, None, None]),
        };
        RootKey { role: base.with_level(level), gfns }
    }

    /// Which of the roots translates an address.
    pub fn index(&self, gva: Gva) -> usize {
        if self.role.level() == 2 { (gva.0 >> 30) as usize & 3 } else { 0 }
    }

    /// The role of one root.
    pub fn role_of(&self, index: usize) -> Role {
        let legacy = !self.role.cr4_pae() && !self.role.direct();
        if legacy { self.role.with_quadrant(index as u8) } else { self.role }
    }
}

/// The roots of one address space: arena frames, 0 where not made yet.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Roots {
    pub key: RootKey,
    pub frames: [u32; 4],
}

/// A vCPU's current roots and the remembered ones.
pub(crate) struct RootCache {
    pub current: Roots,
    remembered: Vec<Roots>,
    /// Roots forgotten, still to be unpinned under `mmu_lock`.
    dropped: Vec<u32>,
    generation: u64,
}

impl RootCache {
    pub fn new(key: RootKey, arena: &SptArena) -> RootCache {
        RootCache {
            current: Roots { key, frames: [0; 4] },
            remembered: Vec::new(),
            dropped: Vec::new(),
            generation: arena.root_generation(),
        }
    }

    /// Other registers: takes up the roots that they had before, if remembered.
    pub fn select(&mut self, key: RootKey) {
        if key == self.current.key {
            return;
        }
        let next = match self.remembered.iter().position(|roots| roots.key == key) {
            Some(at) => self.remembered.remove(at),
            None => Roots { key, frames: [0; 4] },
        };
        let old = core::mem::replace(&mut self.current, next);
        if old.frames != [0; 4] {
            self.remembered.push(old);
        }
        if self.remembered.len() >= REMEMBERED {
            let oldest = self.remembered.remove(0);
            self.dropped.extend(oldest.frames.iter().filter(|&&frame| frame != 0));
        }
    }

    /// Under `mmu_lock`: lets go of what was forgotten, and of everything if a root has become invalid.
    pub fn settle(&mut self, shadow: &mut Shadow, arena: &SptArena) {
        let generation = arena.root_generation();
        if generation != self.generation {
            self.generation = generation;
            self.forget_all();
        }
        for frame in self.dropped.drain(..) {
            shadow.unpin(arena, frame);
        }
    }

    /// Forgets all roots; [`settle`](Self::settle) unpins them.
    pub fn forget_all(&mut self) {
        let all = self.remembered.drain(..).chain([self.current]);
        self.dropped.extend(all.flat_map(|roots| roots.frames).filter(|&frame| frame != 0));
        self.current.frames = [0; 4];
    }
}
