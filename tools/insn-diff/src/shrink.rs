//! The smallest case that still fails: greedy, one thing after the other back to its default, the large things first.
//! What failing means is the caller's: a predicate that runs both machines. Deterministic, and bounded in trials.

use crate::case::{Case, End, XSAVE};
use crate::image;
use crate::operand;

/// Trials that [`shrink`] takes at most.
pub const TRIALS: usize = 3000;

/// Shrinks a failing case in at most [`TRIALS`] trials. The result fails, if `case` does.
pub fn shrink(case: &Case, fails: &mut dyn FnMut(&Case) -> bool) -> Case {
    shrink_within(case, TRIALS, fails)
}

/// Shrinks a failing case in at most `trials` trials.
pub fn shrink_within(case: &Case, trials: usize, fails: &mut dyn FnMut(&Case) -> bool) -> Case {
    let mut shrinker = Shrinker { best: case.clone(), left: trials, fails };
    loop {
        let before = shrinker.best.clone();
        shrinker.instruction();
        shrinker.memory();
        shrinker.image();
        shrinker.registers();
        shrinker.values();
        if shrinker.left == 0 || shrinker.best == before {
            return shrinker.best;
        }
    }
}

struct Shrinker<'a> {
    best: Case,
    left: usize,
    fails: &'a mut dyn FnMut(&Case) -> bool,
}

impl Shrinker<'_> {
    /// Keeps a change if the case still fails. A change that changes nothing is no trial.
    fn attempt(&mut self, change: impl FnOnce(&mut Case)) -> bool {
        let mut next = self.best.clone();
        change(&mut next);
        if self.left == 0 || next == self.best {
            return false;
        }
        self.left -= 1;
        let fails = (self.fails)(&next);
        if fails {
            self.best = next;
        }
        fails
    }

    /// Bytes behind the instruction, prefixes without effect on which instruction it is, the place, the end.
    fn instruction(&mut self) {
        let insn = operand::decode(&self.best);
        if !insn.is_invalid() {
            self.attempt(|case| case.bytes.truncate(insn.len()));
        }
        let mut at = 0;
        while at < self.best.bytes.len().saturating_sub(1) && is_prefix(&self.best, at) {
            let mut shorter = self.best.clone();
            shorter.bytes.remove(at);
            let same = operand::decode(&shorter).code() == operand::decode(&self.best).code();
            if !(same && self.attempt(|case| case.bytes = shorter.bytes.clone())) {
                at += 1;
            }
        }
        let normal = Case::new(self.best.bits);
        self.attempt(|case| case.code_offset = normal.code_offset);
        self.attempt(|case| case.end = End::SingleStep);
    }

    /// Overlays as a whole, one by one, and from both ends.
    fn memory(&mut self) {
        if self.attempt(|case| case.memory.clear()) {
            return;
        }
        for n in (0..self.best.memory.len()).rev() {
            if self.attempt(|case| drop(case.memory.remove(n))) {
                continue;
            }
            let mut chunk = self.best.memory[n].1.len() / 2;
            while chunk > 0 {
                let fits = |case: &Case| case.memory[n].1.len() > chunk;
                while fits(&self.best)
                    && self.attempt(|case| {
                        let bytes = &mut case.memory[n].1;
                        bytes.truncate(bytes.len() - chunk);
                    })
                {}
                while fits(&self.best)
                    && self.attempt(|case| {
                        let (at, bytes) = &mut case.memory[n];
                        *at = at.wrapping_add(chunk as u64);
                        bytes.drain(..chunk);
                    })
                {}
                chunk /= 2;
            }
        }
    }

    /// The XSAVE image as a whole, by component, by register.
    fn image(&mut self) {
        let initial = image::initial();
        if self.attempt(|case| case.xsave = initial.clone()) {
            return;
        }
        // Contents that do not count, and bytes that are nobody's.
        self.attempt(|case| {
            case.xsave = image::normalised(&case.xsave);
            for (at, byte) in case.xsave.iter_mut().enumerate() {
                if !is_register(at) {
                    *byte = 0;
                }
            }
        });
        for number in (0..64).rev() {
            let Some((at, len)) = image::component(number) else { continue };
            self.attempt(|case| {
                let bits = image::xstate_bv(&case.xsave) & !(1 << number);
                image::set_xstate_bv(&mut case.xsave, bits);
                case.xsave = image::normalised(&case.xsave);
            });
            self.attempt(|case| image::put(&mut case.xsave, at, &initial[at..at + len]));
        }
        for n in (0..32).rev() {
            self.attempt(|case| {
                for (_, at, len) in image::zmm_parts(n) {
                    case.xsave[at..at + len].fill(0);
                }
            });
        }
        for n in 0..8 {
            self.attempt(|case| case.xsave[image::ST + n * 16..][..16].fill(0));
            if let Some(at) = image::k_offset(n) {
                self.attempt(|case| case.xsave[at..at + 8].fill(0));
            }
        }
        for (at, len) in CONTROL {
            self.attempt(|case| image::put(&mut case.xsave, at, &initial[at..at + len]));
        }
    }

    /// General registers, flags, selectors and bases: all, then each.
    fn registers(&mut self) {
        let normal = Case::new(self.best.bits);
        self.attempt(|case| case.gpr = normal.gpr);
        self.attempt(|case| {
            case.rflags = normal.rflags;
            (case.selectors, case.fs_base, case.gs_base) = (normal.selectors, 0, 0);
        });
        for n in 0..16 {
            self.attempt(|case| case.gpr[n] = normal.gpr[n]);
        }
        for n in 0..6 {
            self.attempt(|case| case.selectors[n] = normal.selectors[n]);
        }
        self.attempt(|case| case.rflags = normal.rflags);
        self.attempt(|case| case.fs_base = 0);
        self.attempt(|case| case.gs_base = 0);
    }

    /// What must stay, with fewer bits set: halves of it first, then single bits.
    fn values(&mut self) {
        let normal = Case::new(self.best.bits);
        for n in 0..16 {
            if self.best.gpr[n] != normal.gpr[n] {
                self.word(move |case| &mut case.gpr[n], 0);
            }
        }
        self.word(|case| &mut case.rflags, normal.rflags);
        self.word(|case| &mut case.fs_base, 0);
        self.word(|case| &mut case.gs_base, 0);
        let initial = image::initial();
        let mut chunk = 64;
        while chunk > 0 {
            for at in (0..XSAVE).step_by(chunk) {
                // XSTATE_BV is done by component.
                let header = at < image::XSTATE_BV + 8 && at + chunk > image::XSTATE_BV;
                if !header && self.best.xsave[at..at + chunk] != initial[at..at + chunk] {
                    self.attempt(|case| image::put(&mut case.xsave, at, &initial[at..at + chunk]));
                }
            }
            chunk /= 2;
        }
        for at in (0..XSAVE).filter(|at| !(512..520).contains(at)) {
            for bit in 0..8 {
                if self.best.xsave[at] & !initial[at] & 1 << bit != 0 {
                    self.attempt(|case| case.xsave[at] &= !(1 << bit));
                }
            }
        }
        for n in 0..self.best.memory.len() {
            for at in 0..self.best.memory[n].1.len() {
                if !self.attempt(|case| case.memory[n].1[at] = 0) {
                    for bit in (0..8).rev() {
                        self.attempt(|case| case.memory[n].1[at] &= !(1 << bit));
                    }
                }
            }
        }
    }

    /// Clears bits of a word that are not in `keep`.
    fn word(&mut self, of: impl Fn(&mut Case) -> &mut u64, keep: u64) {
        for width in [32, 16, 8, 4, 2, 1] {
            for at in (0..64).step_by(width).rev() {
                let mask = (u64::MAX >> (64 - width)) << at & !keep;
                self.attempt(|case| *of(case) &= !mask);
            }
        }
    }
}

/// The control registers in the image: offset and length.
const CONTROL: [(usize, usize); 7] = [
    (image::FCW, 2),
    (image::FSW, 2),
    (image::FTW, 1),
    (image::FOP, 2),
    (image::FIP, 8),
    (image::FDP, 8),
    (image::MXCSR, 4),
];

/// Whether a byte of the image belongs to a register or to XSTATE_BV.
fn is_register(at: usize) -> bool {
    match at {
        0..160 => {
            CONTROL.iter().any(|&(start, len)| (start..start + len).contains(&at))
                || (at >= 32 && at % 16 < 10)
        }
        160..416 | 512..520 => true,
        _ => (2..64).filter_map(image::component).any(|(start, len)| (start..start + len).contains(&at)),
    }
}

/// Whether the byte is a legacy prefix, or REX in 64-bit mode (SDM vol. 2A, 2.1.1 and 2.2.1).
fn is_prefix(case: &Case, at: usize) -> bool {
    match case.bytes[at] {
        0x26 | 0x2e | 0x36 | 0x3e | 0x64 | 0x65 | 0x66 | 0x67 | 0xf0 | 0xf2 | 0xf3 => true,
        0x40..=0x4f => case.bits == crate::case::Bits::Bits64,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::case::Bits;
    use crate::layout::DATA;
    use crate::text;

    /// ADD RAX,RCX behind prefixes, with something everywhere.
    fn noisy() -> Case {
        let mut case = Case::new(Bits::Bits64);
        case.bytes = vec![0x3e, 0x66, 0x26, 0x48, 0x01, 0xc8, 0x90, 0x90];
        case.code_offset = 0xff0;
        case.end = End::Trap;
        case.gpr = std::array::from_fn(|n| 0x0123_4567_89ab_cdef_u64.rotate_left(n as u32 * 3));
        case.rflags = 0x8d7;
        case.selectors[4] = 0xf;
        (case.fs_base, case.gs_base) = (DATA, DATA + 8);
        for (n, byte) in case.xsave.iter_mut().enumerate() {
            *byte = (n * 31) as u8 | 1;
        }
        image::set_xstate_bv(&mut case.xsave, image::components());
        case.memory = (0..5).map(|n| (DATA + 64 * n, vec![0xee; 32])).collect();
        case
    }

    /// Shrinks, and checks that the result fails; its text.
    fn smallest(mut fails: impl FnMut(&Case) -> bool) -> String {
        let case = noisy();
        assert!(fails(&case));
        let small = shrink_within(&case, 20_000, &mut fails);
        assert!(fails(&small));
        text::to_text(&small)
    }

    #[test]
    fn what_does_not_matter_goes() {
        assert_eq!(smallest(|_| true), "bits=64 end=step code=4801c8");
    }

    #[test]
    fn what_matters_stays() {
        assert_eq!(smallest(|c| c.gpr[1] >> 3 & 1 != 0), "bits=64 end=step code=4801c8 rcx=8");
        assert_eq!(smallest(|c| c.gpr[4] > 0x4000_0000), "bits=64 end=step code=4801c8 rsp=80000000");
        assert_eq!(smallest(|c| c.rflags & 0x80 != 0), "bits=64 end=step code=4801c8 flags=82");
        assert_eq!(smallest(|c| c.end == End::Trap), "bits=64 end=trap code=4801c8");
        assert_eq!(smallest(|c| c.code_offset > 0x900), "bits=64 end=step code=4801c8 at=ff0");
        assert_eq!(smallest(|c| c.selectors[4] == 0xf), "bits=64 end=step code=4801c8 fs=f");
        assert_eq!(smallest(|c| c.bytes.contains(&0x66)), "bits=64 end=step code=664801c8");
        assert_eq!(
            smallest(|c| image::xstate_bv(&c.xsave) & 2 != 0 && image::zmm(&c.xsave, 3)[5] & 8 != 0),
            "bits=64 end=step code=4801c8 xmm3=80000000000"
        );
        assert_eq!(
            smallest(|c| c.memory.iter().any(|(at, bytes)| {
                let n = (DATA + 128 + 7).wrapping_sub(*at) as usize;
                bytes.get(n).is_some_and(|b| b & 2 != 0)
            })),
            "bits=64 end=step code=4801c8 mem:20000087=02"
        );
    }

    #[test]
    fn trials_are_bounded_and_the_order_is_fixed() {
        for trials in [0, 1, 10, 100] {
            let mut taken = 0;
            let mut run = || {
                shrink_within(&noisy(), trials, &mut |c| {
                    taken += 1;
                    c.gpr[2].count_ones() > 5
                })
            };
            let (first, second) = (run(), run());
            assert_eq!(first, second);
            assert!(taken <= 2 * trials);
        }
    }
}
