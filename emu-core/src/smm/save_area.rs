//! The state save area of system-management mode: which register lies where.
//!
//! Two layouts, one row a field: AMD's for processors with 64-bit mode (AMD APM vol. 2, table 10-1), and that of the
//! P6 family (SDM vol. 3C, 34.4.1) for those without, with the hidden parts of the segment registers and CR4 where KVM
//! has them. Both hold the interrupt shadow in a byte that the manuals reserve, as KVM does.
//! Not here: when the area is written and what is checked when it is read (the parent module).

use crate::event::Shadow;
use x86_arch::{Segment, Selector};

/// Where the area begins, from SMBASE.
pub const BEGIN: u64 = 0xfe00;
/// Its bytes.
pub const SIZE: usize = 512;

/// Offsets in the manuals count from SMBASE + 8000H.
const ORIGIN: usize = 0x7e00;
/// SMM revision identifiers: bit 17, SMBASE relocation; no I/O instruction restart (bit 16). The low half is the layout.
const REVISION: u32 = 0x0002_0000;
const REVISION_64: u32 = REVISION | 0x64;

/// A segment register or descriptor-table register as the area holds it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct SavedSegment {
    pub selector: u16,
    /// Bits 8 to 23 of the descriptor's upper half, without those of the limit.
    pub attributes: u16,
    pub limit: u32,
    pub base: u64,
}

impl SavedSegment {
    pub fn of(s: &Segment) -> SavedSegment {
        let present = s.present && !s.unusable;
        SavedSegment {
            selector: s.selector.0,
            attributes: s.access_rights() as u16 & !(1 << 7) | (present as u16) << 7,
            limit: s.limit,
            base: s.base,
        }
    }

    pub fn segment(&self) -> Segment {
        let bit = |n: u32| self.attributes >> n & 1 != 0;
        Segment {
            selector: Selector(self.selector),
            base: self.base,
            limit: self.limit,
            typ: self.attributes as u8 & 15,
            s: bit(4),
            dpl: (self.attributes >> 5) as u8 & 3,
            present: bit(7),
            avl: bit(12),
            l: bit(13),
            db: bit(14),
            g: bit(15),
            unusable: !bit(7),
        }
    }
}

/// What an SMI saves and RSM restores.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Saved {
    /// RAX to R15 in ModRM order.
    pub gpr: [u64; 16],
    pub rip: u64,
    pub rflags: u64,
    pub cr0: u64,
    pub cr3: u64,
    pub cr4: u64,
    pub efer: u64,
    pub dr6: u64,
    pub dr7: u64,
    /// By `Seg` index: the six of programs, LDTR, TR.
    pub seg: [SavedSegment; 8],
    pub gdtr: SavedSegment,
    pub idtr: SavedSegment,
    pub smbase: u32,
    /// The SMI was taken in HLT; RSM goes back there if the handler leaves it set.
    pub halted: bool,
    pub shadow: Shadow,
    pub revision: u32,
}

/// KVM's numbers of the shadows (KVM_X86_SHADOW_INT_*).
fn shadow_code(s: Shadow) -> u64 {
    match s {
        Shadow::None => 0,
        Shadow::MovSs => 1,
        Shadow::Sti => 2,
    }
}

fn shadow_of(code: u64) -> Shadow {
    match code & 3 {
        0 => Shadow::None,
        2 => Shadow::Sti,
        _ => Shadow::MovSs,
    }
}

/// One field: its offset, its width, and how it reaches [`Saved`].
struct Field {
    at: usize,
    bytes: usize,
    get: fn(&Saved) -> u64,
    set: fn(&mut Saved, u64),
}

macro_rules! layout {
    ($name:ident: $($at:literal $t:ident $($place:ident)? $([$n:literal])? $(. $part:ident)?;)*) => {
        const $name: &[Field] = &[$(layout!(@row $at $t [$($place)? $([$n])? $(. $part)?])),*];
    };
    (@row $at:literal $t:ident [halted]) => {
        Field { at: $at, bytes: size_of::<$t>(), get: |s| s.halted as u64, set: |s, v| s.halted = v & 1 != 0 }
    };
    (@row $at:literal $t:ident [shadow]) => {
        Field { at: $at, bytes: size_of::<$t>(), get: |s| shadow_code(s.shadow), set: |s, v| s.shadow = shadow_of(v) }
    };
    (@row $at:literal $t:ident [$($place:tt)*]) => {
        Field { at: $at, bytes: size_of::<$t>(), get: |s| s.$($place)* as u64, set: |s, v| s.$($place)* = v as $t as _ }
    };
}

layout! { LAYOUT_64:
    0x7e00 u16 seg[0].selector;
    0x7e02 u16 seg[0].attributes;
    0x7e04 u32 seg[0].limit;
    0x7e08 u64 seg[0].base;
    0x7e10 u16 seg[1].selector;
    0x7e12 u16 seg[1].attributes;
    0x7e14 u32 seg[1].limit;
    0x7e18 u64 seg[1].base;
    0x7e20 u16 seg[2].selector;
    0x7e22 u16 seg[2].attributes;
    0x7e24 u32 seg[2].limit;
    0x7e28 u64 seg[2].base;
    0x7e30 u16 seg[3].selector;
    0x7e32 u16 seg[3].attributes;
    0x7e34 u32 seg[3].limit;
    0x7e38 u64 seg[3].base;
    0x7e40 u16 seg[4].selector;
    0x7e42 u16 seg[4].attributes;
    0x7e44 u32 seg[4].limit;
    0x7e48 u64 seg[4].base;
    0x7e50 u16 seg[5].selector;
    0x7e52 u16 seg[5].attributes;
    0x7e54 u32 seg[5].limit;
    0x7e58 u64 seg[5].base;
    0x7e64 u16 gdtr.limit;
    0x7e68 u64 gdtr.base;
    0x7e70 u16 seg[6].selector;
    0x7e72 u16 seg[6].attributes;
    0x7e74 u32 seg[6].limit;
    0x7e78 u64 seg[6].base;
    0x7e84 u16 idtr.limit;
    0x7e88 u64 idtr.base;
    0x7e90 u16 seg[7].selector;
    0x7e92 u16 seg[7].attributes;
    0x7e94 u32 seg[7].limit;
    0x7e98 u64 seg[7].base;
    0x7ec9 u8 halted;
    0x7ecb u8 shadow;
    0x7ed0 u64 efer;
    0x7efc u32 revision;
    0x7f00 u32 smbase;
    0x7f48 u64 cr4;
    0x7f50 u64 cr3;
    0x7f58 u64 cr0;
    0x7f60 u64 dr7;
    0x7f68 u64 dr6;
    0x7f70 u64 rflags;
    0x7f78 u64 rip;
    0x7f80 u64 gpr[15];
    0x7f88 u64 gpr[14];
    0x7f90 u64 gpr[13];
    0x7f98 u64 gpr[12];
    0x7fa0 u64 gpr[11];
    0x7fa8 u64 gpr[10];
    0x7fb0 u64 gpr[9];
    0x7fb8 u64 gpr[8];
    0x7fc0 u64 gpr[7];
    0x7fc8 u64 gpr[6];
    0x7fd0 u64 gpr[5];
    0x7fd8 u64 gpr[4];
    0x7fe0 u64 gpr[3];
    0x7fe8 u64 gpr[2];
    0x7ff0 u64 gpr[1];
    0x7ff8 u64 gpr[0];
}

// A segment's attributes are a doubleword in their place in the descriptor: the two bytes from its second on.
layout! { LAYOUT_32:
    0x7ef8 u32 smbase;
    0x7efc u32 revision;
    0x7f02 u16 halted;
    0x7f14 u32 cr4;
    0x7f1a u8 shadow;
    0x7f2d u16 seg[3].attributes;
    0x7f30 u32 seg[3].limit;
    0x7f34 u32 seg[3].base;
    0x7f39 u16 seg[4].attributes;
    0x7f3c u32 seg[4].limit;
    0x7f40 u32 seg[4].base;
    0x7f45 u16 seg[5].attributes;
    0x7f48 u32 seg[5].limit;
    0x7f4c u32 seg[5].base;
    0x7f54 u16 idtr.limit;
    0x7f58 u32 idtr.base;
    0x7f5d u16 seg[7].attributes;
    0x7f60 u32 seg[7].limit;
    0x7f64 u32 seg[7].base;
    0x7f70 u16 gdtr.limit;
    0x7f74 u32 gdtr.base;
    0x7f79 u16 seg[6].attributes;
    0x7f7c u32 seg[6].limit;
    0x7f80 u32 seg[6].base;
    0x7f85 u16 seg[0].attributes;
    0x7f88 u32 seg[0].limit;
    0x7f8c u32 seg[0].base;
    0x7f91 u16 seg[1].attributes;
    0x7f94 u32 seg[1].limit;
    0x7f98 u32 seg[1].base;
    0x7f9d u16 seg[2].attributes;
    0x7fa0 u32 seg[2].limit;
    0x7fa4 u32 seg[2].base;
    0x7fa8 u16 seg[0].selector;
    0x7fac u16 seg[1].selector;
    0x7fb0 u16 seg[2].selector;
    0x7fb4 u16 seg[3].selector;
    0x7fb8 u16 seg[4].selector;
    0x7fbc u16 seg[5].selector;
    0x7fc0 u16 seg[6].selector;
    0x7fc4 u16 seg[7].selector;
    0x7fc8 u32 dr7;
    0x7fcc u32 dr6;
    0x7fd0 u32 gpr[0];
    0x7fd4 u32 gpr[1];
    0x7fd8 u32 gpr[2];
    0x7fdc u32 gpr[3];
    0x7fe0 u32 gpr[4];
    0x7fe4 u32 gpr[5];
    0x7fe8 u32 gpr[6];
    0x7fec u32 gpr[7];
    0x7ff0 u32 rip;
    0x7ff4 u32 rflags;
    0x7ff8 u32 cr3;
    0x7ffc u32 cr0;
}

fn layout(wide: bool) -> &'static [Field] {
    if wide { LAYOUT_64 } else { LAYOUT_32 }
}

/// The area's bytes. `wide`: the processor has 64-bit mode.
pub fn write(saved: &Saved, wide: bool) -> [u8; SIZE] {
    let saved = Saved { revision: if wide { REVISION_64 } else { REVISION }, ..saved.clone() };
    let mut area = [0; SIZE];
    for f in layout(wide) {
        area[f.at - ORIGIN..][..f.bytes].copy_from_slice(&(f.get)(&saved).to_le_bytes()[..f.bytes]);
    }
    area
}

/// What the area's bytes say.
pub fn read(area: &[u8; SIZE], wide: bool) -> Saved {
    let mut saved = Saved::default();
    for f in layout(wide) {
        let mut b = [0; 8];
        b[..f.bytes].copy_from_slice(&area[f.at - ORIGIN..][..f.bytes]);
        (f.set)(&mut saved, u64::from_le_bytes(b));
    }
    saved
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_lie_in_the_area_and_apart() {
        for wide in [false, true] {
            let mut taken = [false; SIZE];
            for f in layout(wide) {
                for byte in &mut taken[f.at - ORIGIN..][..f.bytes] {
                    assert!(!core::mem::replace(byte, true), "{:x}", f.at);
                }
            }
        }
    }

    #[test]
    fn what_is_written_is_read() {
        let mut saved = Saved { smbase: 0x7ff0_0000, halted: true, shadow: Shadow::Sti, ..Saved::default() };
        saved.gpr = core::array::from_fn(|n| 0x1111_1111 * n as u64);
        (saved.rip, saved.rflags, saved.cr0, saved.cr3) = (0x1234_5678, 0x202, 0x8000_0011, 0x7654_3000);
        (saved.cr4, saved.efer, saved.dr6, saved.dr7) = (0x668, 0xd01, 0xffff_0ff1, 0x402);
        saved.seg = core::array::from_fn(|n| SavedSegment {
            selector: 8 * n as u16,
            attributes: 0xc09b + n as u16,
            limit: 0xffff_0000 + n as u32,
            base: 0x1000_0000 * n as u64,
        });
        saved.gdtr = SavedSegment { limit: 0x7f, base: 0xfee0_0000, ..SavedSegment::default() };
        saved.idtr = SavedSegment { limit: 0xfff, base: 0xfed0_0000, ..SavedSegment::default() };
        let wide = Saved { revision: REVISION_64, ..saved.clone() };
        assert_eq!(read(&write(&saved, true), true), wide);
        // R8 to R15 and EFER have no place there.
        let mut narrow = Saved { revision: REVISION, efer: 0, ..saved.clone() };
        narrow.gpr[8..].fill(0);
        assert_eq!(read(&write(&saved, false), false), narrow);
    }
}
