//! Segment descriptors, selectors and the hidden parts of segment registers (SDM vol. 3A, 3.4 and 3.5).

/// A segment selector.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Hash)]
#[repr(transparent)]
pub struct Selector(pub u16);

impl Selector {
    /// Requested privilege level.
    #[inline(always)]
    pub const fn rpl(self) -> u8 {
        (self.0 & 3) as u8
    }

    /// Whether the selector names the LDT.
    #[inline(always)]
    pub const fn is_ldt(self) -> bool {
        self.0 & 4 != 0
    }

    /// Byte offset of the descriptor in its table.
    #[inline(always)]
    pub const fn offset(self) -> u16 {
        self.0 & !7
    }

    /// Whether this is a null selector (GDT index 0, any RPL).
    #[inline(always)]
    pub const fn is_null(self) -> bool {
        self.0 & !3 == 0
    }

    /// The selector with another RPL.
    pub const fn with_rpl(self, rpl: u8) -> Selector {
        Selector(self.0 & !3 | (rpl & 3) as u16)
    }

    /// The error code that a fault about this selector pushes (RPL bits cleared, EXT and IDT clear).
    pub const fn error_code(self) -> u32 {
        (self.0 & !3) as u32
    }
}

/// The type field's values for system descriptors (SDM vol. 3A, table 3-2).
pub mod system_type {
    /// 16-bit TSS, available.
    pub const TSS16_AVAILABLE: u8 = 1;
    /// Local descriptor table.
    pub const LDT: u8 = 2;
    /// 16-bit TSS, busy.
    pub const TSS16_BUSY: u8 = 3;
    /// 16-bit call gate.
    pub const CALL_GATE16: u8 = 4;
    /// Task gate.
    pub const TASK_GATE: u8 = 5;
    /// 16-bit interrupt gate.
    pub const INTERRUPT_GATE16: u8 = 6;
    /// 16-bit trap gate.
    pub const TRAP_GATE16: u8 = 7;
    /// 32-bit TSS (64-bit in IA-32e mode), available.
    pub const TSS_AVAILABLE: u8 = 9;
    /// 32-bit TSS (64-bit in IA-32e mode), busy.
    pub const TSS_BUSY: u8 = 11;
    /// 32-bit call gate (64-bit in IA-32e mode).
    pub const CALL_GATE: u8 = 12;
    /// 32-bit interrupt gate (64-bit in IA-32e mode).
    pub const INTERRUPT_GATE: u8 = 14;
    /// 32-bit trap gate (64-bit in IA-32e mode).
    pub const TRAP_GATE: u8 = 15;
}

/// A segment register with its hidden part, unpacked.
///
/// `limit` is in bytes (granularity already applied); `typ` is the 4-bit type field.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Segment {
    /// The visible selector.
    pub selector: Selector,
    /// Linear base address.
    pub base: u64,
    /// Limit in bytes: the highest valid offset of an expand-up segment.
    pub limit: u32,
    /// The 4-bit type field.
    pub typ: u8,
    /// Code or data (true), or system (false).
    pub s: bool,
    /// Descriptor privilege level.
    pub dpl: u8,
    /// Present.
    pub present: bool,
    /// Available to software.
    pub avl: bool,
    /// 64-bit code segment.
    pub l: bool,
    /// Default operation size (D) or big stack (B).
    pub db: bool,
    /// Granularity, kept so that the descriptor reads back as it was.
    pub g: bool,
    /// No usable descriptor: a null selector was loaded.
    pub unusable: bool,
}

impl Segment {
    /// A code segment.
    #[inline(always)]
    pub const fn is_code(&self) -> bool {
        self.s && self.typ & 8 != 0
    }

    /// A data segment.
    #[inline(always)]
    pub const fn is_data(&self) -> bool {
        self.s && self.typ & 8 == 0
    }

    /// A conforming code segment.
    #[inline(always)]
    pub const fn is_conforming(&self) -> bool {
        self.is_code() && self.typ & 4 != 0
    }

    /// An expand-down data segment.
    #[inline(always)]
    pub const fn is_expand_down(&self) -> bool {
        self.is_data() && self.typ & 4 != 0
    }

    /// Readable: any data segment, or code with the R bit.
    #[inline(always)]
    pub const fn is_readable(&self) -> bool {
        self.s && (self.typ & 8 == 0 || self.typ & 2 != 0)
    }

    /// Writable data.
    #[inline(always)]
    pub const fn is_writable(&self) -> bool {
        self.is_data() && self.typ & 2 != 0
    }

    /// What a real-mode load of `selector` leaves, other fields as they were (SDM vol. 3A, 20.1.1).
    pub const fn real_mode(selector: u16, old: &Segment) -> Segment {
        let mut s = *old;
        s.selector = Selector(selector);
        s.base = (selector as u64) << 4;
        s
    }

    /// Unpacks an 8-byte descriptor as loaded through `selector`.
    pub const fn from_descriptor(selector: Selector, d: Descriptor) -> Segment {
        Segment {
            selector,
            base: d.base(),
            limit: d.limit(),
            typ: d.typ(),
            s: d.s(),
            dpl: d.dpl(),
            present: d.present(),
            avl: d.0 >> 52 & 1 != 0,
            l: d.l(),
            db: d.db(),
            g: d.g(),
            unusable: false,
        }
    }

    /// Bytes 5 and 6 of the descriptor as the access-rights word of the SDM's VMX chapter
    /// (type, S, DPL, P, AVL, L, D/B, G, unusable in bit 16).
    pub const fn access_rights(&self) -> u32 {
        (self.typ as u32 & 15)
            | (self.s as u32) << 4
            | (self.dpl as u32 & 3) << 5
            | (self.present as u32) << 7
            | (self.avl as u32) << 12
            | (self.l as u32) << 13
            | (self.db as u32) << 14
            | (self.g as u32) << 15
            | (self.unusable as u32) << 16
    }
}

/// An 8-byte descriptor as it lies in a descriptor table.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(transparent)]
pub struct Descriptor(pub u64);

impl Descriptor {
    /// Base address (32 bits; system descriptors in IA-32e mode have a second half).
    pub const fn base(self) -> u64 {
        (self.0 >> 16 & 0xff_ffff) | (self.0 >> 56 & 0xff) << 24
    }

    /// Limit in bytes, granularity applied.
    pub const fn limit(self) -> u32 {
        let raw = (self.0 & 0xffff | (self.0 >> 48 & 0xf) << 16) as u32;
        if self.g() { raw << 12 | 0xfff } else { raw }
    }

    /// The 4-bit type field.
    pub const fn typ(self) -> u8 {
        (self.0 >> 40 & 0xf) as u8
    }

    /// Code or data.
    pub const fn s(self) -> bool {
        self.0 >> 44 & 1 != 0
    }

    /// Descriptor privilege level.
    pub const fn dpl(self) -> u8 {
        (self.0 >> 45 & 3) as u8
    }

    /// Present.
    pub const fn present(self) -> bool {
        self.0 >> 47 & 1 != 0
    }

    /// 64-bit code.
    pub const fn l(self) -> bool {
        self.0 >> 53 & 1 != 0
    }

    /// Default size / big.
    pub const fn db(self) -> bool {
        self.0 >> 54 & 1 != 0
    }

    /// Granularity.
    pub const fn g(self) -> bool {
        self.0 >> 55 & 1 != 0
    }

    /// The selector field of a gate.
    pub const fn gate_selector(self) -> Selector {
        Selector((self.0 >> 16) as u16)
    }

    /// The 32-bit offset of a gate (a 16-bit gate uses the low half only).
    pub const fn gate_offset32(self) -> u32 {
        (self.0 & 0xffff) as u32 | ((self.0 >> 48) as u32) << 16
    }

    /// The IST field of a 64-bit interrupt gate; the parameter count of a call gate is in the same byte.
    pub const fn gate_byte4(self) -> u8 {
        (self.0 >> 32) as u8
    }
}

/// GDTR or IDTR.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct DescriptorTable {
    /// Linear base address.
    pub base: u64,
    /// Limit in bytes: the offset of the last valid byte.
    pub limit: u16,
}
