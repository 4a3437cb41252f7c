//! What both machines are given, and what both give back. The text form of a case is `text`'s.

/// Bytes of an XSAVE image in the standard format, enough for x87 to AVX-512 and PKRU.
pub const XSAVE: usize = 4096;

/// The code segment that a case runs in.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Bits {
    /// 16-bit code in compatibility mode: [`crate::layout::CODE16`].
    Bits16,
    /// 32-bit code in compatibility mode: [`crate::layout::CODE32`].
    Bits32,
    /// 64-bit mode: [`crate::layout::CODE64`].
    Bits64,
}

impl Bits {
    /// 16, 32 or 64.
    pub const fn number(self) -> u32 {
        match self {
            Bits::Bits16 => 16,
            Bits::Bits32 => 32,
            Bits::Bits64 => 64,
        }
    }

    /// The code segment's selector.
    pub const fn code_selector(self) -> u16 {
        match self {
            Bits::Bits16 => crate::layout::CODE16,
            Bits::Bits32 => crate::layout::CODE32,
            Bits::Bits64 => crate::layout::CODE64,
        }
    }
}

/// How a case comes to its end, if the instruction does not fault.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum End {
    /// RFLAGS.TF is set: #DB after one instruction, or after one iteration of a repeated string instruction.
    SingleStep,
    /// TF is clear: the instruction runs to its end and meets the UD2 behind it. Not for branches.
    Trap,
}

/// One instruction and everything that it may look at.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Case {
    /// Code size.
    pub bits: Bits,
    /// How it ends.
    pub end: End,
    /// The instruction's bytes, 1 to 15 and maybe more: they stand at [`Case::rip`] as far as there is code memory.
    pub bytes: Vec<u8>,
    /// Offset of the first byte in the page at [`crate::layout::CODE`].
    pub code_offset: u16,
    /// RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8 to R15. Outside 64-bit mode the upper halves and R8 to R15 are zero.
    pub gpr: [u64; 16],
    /// RFLAGS: status flags, DF, AC, ID and NT as wanted; bit 1 is set, TF follows from `end`, IF is set by both machines.
    pub rflags: u64,
    /// Selectors of ES, CS, SS, DS, FS, GS. CS is [`Bits::code_selector`]; the others [`crate::layout::DESCRIPTORS`] or null.
    pub selectors: [u16; 6],
    /// FS base in 64-bit mode (FS is null there).
    pub fs_base: u64,
    /// GS base in 64-bit mode (GS is null there).
    pub gs_base: u64,
    /// XSAVE image, standard format at the host's offsets, header included. PKRU leaves key 0 accessible.
    pub xsave: Box<[u8; XSAVE]>,
    /// Bytes that differ from [`crate::layout::template`]: linear address and contents, inside the areas, not in the code page.
    pub memory: Vec<(u64, Vec<u8>)>,
}

impl Case {
    /// The machine that the text form takes for granted: nothing in its bytes, registers 0 but RSP in the middle of
    /// [`crate::layout::STACK`], RFLAGS 2, vector and x87 state initial and not in use, an instruction in the middle of the
    /// page of code, flat segments (16-bit ones for 16-bit code) and null in FS and GS, and in DS and ES of 64-bit code.
    pub fn new(bits: Bits) -> Case {
        use crate::layout::{DATA16, FLAT, PAGE, STACK, STACK16};
        let cs = bits.code_selector();
        let (rsp, selectors) = match bits {
            Bits::Bits16 => (PAGE, [DATA16, cs, STACK16, DATA16, 0, 0]),
            Bits::Bits32 => (STACK + PAGE, [FLAT, cs, FLAT, FLAT, 0, 0]),
            Bits::Bits64 => (STACK + PAGE, [0, cs, FLAT, 0, 0, 0]),
        };
        let mut gpr = [0; 16];
        gpr[4] = rsp;
        Case {
            bits,
            end: End::SingleStep,
            bytes: Vec::new(),
            code_offset: 0x800,
            gpr,
            rflags: 2,
            selectors,
            fs_base: 0,
            gs_base: 0,
            xsave: crate::image::initial(),
            memory: Vec::new(),
        }
    }

    /// The linear address of the first byte.
    pub fn linear_rip(&self) -> u64 {
        crate::layout::CODE + self.code_offset as u64
    }

    /// The instruction pointer at the first byte: [`Case::linear_rip`] less the code segment's base.
    pub fn rip(&self) -> u64 {
        match self.bits {
            Bits::Bits16 => self.code_offset as u64,
            _ => self.linear_rip(),
        }
    }

    /// The backing (see [`crate::layout`]) as it is before the case runs.
    pub fn backing(&self, template: &[u8]) -> Vec<u8> {
        let mut bytes = template.to_vec();
        let code = crate::layout::PAGE as usize;
        let at = (self.code_offset as usize).min(code);
        let len = self.bytes.len().min(code - at);
        bytes[at..at + len].copy_from_slice(&self.bytes[..len]);
        // The template's UD2s stand at even offsets; an instruction's end may be odd.
        let rest = &mut bytes[at + len..code];
        for (to, byte) in rest.iter_mut().zip([0x0f, 0x0b]) {
            *to = byte;
        }
        for (address, contents) in &self.memory {
            if let Some(at) = crate::layout::backing_offset(*address) {
                let len = contents.len().min(bytes.len() - at);
                bytes[at..at + len].copy_from_slice(&contents[..len]);
            }
        }
        bytes
    }
}

/// Bytes of a line of changed memory.
pub const LINE: usize = 64;

/// What a machine made of a case: the state at the exception that ended it, before any handler changed something.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Outcome {
    /// The exception's vector: 1 (#DB) after [`End::SingleStep`], 6 (#UD) at the trap behind the instruction, or its fault.
    pub vector: u8,
    /// The error code; 0 for an exception without one.
    pub error_code: u32,
    /// CR2 for #PF, else 0.
    pub cr2: u64,
    /// General registers, RSP included, as the exception saw them.
    pub gpr: [u64; 16],
    /// RIP as the exception frame has it.
    pub rip: u64,
    /// RFLAGS as the exception frame has it.
    pub rflags: u64,
    /// Selectors of ES, CS, SS, DS, FS, GS.
    pub selectors: [u16; 6],
    /// FS base.
    pub fs_base: u64,
    /// GS base.
    pub gs_base: u64,
    /// XSAVE image, standard format. A component whose bit in XSTATE_BV is clear is in its initial state, whatever its bytes.
    pub xsave: Box<[u8; XSAVE]>,
    /// Lines of the backing that differ from what they were before: offset (a multiple of [`LINE`]) and new contents.
    pub memory: Vec<(u32, [u8; LINE])>,
}

impl Outcome {
    /// The outcome of an instruction that does nothing at all but end: what a case has, its RIP behind the instruction's bytes.
    pub fn unchanged(case: &Case) -> Outcome {
        Outcome {
            vector: if case.end == End::SingleStep { 1 } else { 6 },
            error_code: 0,
            cr2: 0,
            gpr: case.gpr,
            rip: case.rip().wrapping_add(case.bytes.len() as u64),
            rflags: case.rflags | 1 << 9 | u64::from(case.end == End::SingleStep) << 8,
            selectors: case.selectors,
            fs_base: case.fs_base,
            gs_base: case.gs_base,
            xsave: case.xsave.clone(),
            memory: Vec::new(),
        }
    }
}
