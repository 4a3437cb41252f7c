//! What there is to cover, and how much of it has been: iced's instruction table times the forms that an encoding has.
//! The denominator is `denominator`'s, the counting and the report `counts`', the features' CPUID bits `features`'.
//!
//! Operand size and vector length are no fields of a [`Cell`]: iced's `Code` has them.

mod counts;
mod denominator;
pub mod features;

pub use counts::{Coverage, Reached};
pub use denominator::{Class, Denominator, avoided};
pub(crate) use denominator::{memory_only, register_or_memory};
pub use features::{Bit, FEATURES, Output, Shown, has, host_cpuid, host_is_amd};

use crate::{Bits, Case};
use iced_x86::{Code, CpuidFeature, Decoder, DecoderOptions, Instruction, OpKind, Register, RoundingControl};
use std::fmt;
use std::sync::OnceLock;

/// Whether an instruction's operand is in memory.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Form {
    /// No explicit memory operand.
    Register,
    /// A memory operand: ModRM, a string's, an absolute offset.
    Memory,
}

/// What an opmask does.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Mask {
    /// No opmask (k0).
    None,
    /// Elements that are masked off keep their value.
    Merge,
    /// Elements that are masked off become zero.
    Zero,
}

/// Embedded rounding, or suppression of exceptions.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Rounding {
    /// MXCSR decides.
    None,
    /// {sae}.
    Sae,
    /// {rn-sae}.
    Nearest,
    /// {rd-sae}.
    Down,
    /// {ru-sae}.
    Up,
    /// {rz-sae}.
    Zero,
}

/// One thing to cover.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Cell {
    /// The instruction, with operand size and vector length.
    pub code: Code,
    /// Code size.
    pub bits: Bits,
    /// Register or memory form.
    pub form: Form,
    /// Address size, 16, 32 or 64; 0 without memory.
    pub address: u8,
    /// Opmask.
    pub mask: Mask,
    /// Embedded broadcast.
    pub broadcast: bool,
    /// Embedded rounding.
    pub rounding: Rounding,
}

impl Cell {
    /// The extension that it belongs to: iced's names, "AVX512VL+AVX512F".
    pub fn extension(&self) -> String {
        extension(self.code)
    }
}

/// The extension of an instruction: iced's CPUID features.
pub fn extension(code: Code) -> String {
    let features: &[CpuidFeature] = code.cpuid_features();
    features.iter().map(|f| format!("{f:?}")).collect::<Vec<_>>().join("+")
}

impl fmt::Display for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}/{}", self.code, self.bits.number())?;
        match self.form {
            Form::Register => write!(f, " reg")?,
            Form::Memory => write!(f, " mem{}", self.address)?,
        }
        match self.mask {
            Mask::None => {}
            Mask::Merge => write!(f, " {{k}}")?,
            Mask::Zero => write!(f, " {{k}}{{z}}")?,
        }
        if self.broadcast {
            write!(f, " broadcast")?;
        }
        f.write_str(match self.rounding {
            Rounding::None => "",
            Rounding::Sae => " {sae}",
            Rounding::Nearest => " {rn-sae}",
            Rounding::Down => " {rd-sae}",
            Rounding::Up => " {ru-sae}",
            Rounding::Zero => " {rz-sae}",
        })
    }
}

/// How this host decodes what the vendors, or processors with and without a feature, decode differently.
pub fn decoder_options() -> u32 {
    static OPTIONS: OnceLock<u32> = OnceLock::new();
    *OPTIONS.get_or_init(|| {
        let mut options = DecoderOptions::NONE;
        if host_is_amd() {
            options |= DecoderOptions::AMD;
        }
        for (feature, option) in [
            (CpuidFeature::BMI1, DecoderOptions::NO_MPFX_0FBC),
            (CpuidFeature::LZCNT, DecoderOptions::NO_MPFX_0FBD),
            (CpuidFeature::WBNOINVD, DecoderOptions::NO_WBNOINVD),
        ] {
            if !has(&host_cpuid, feature) {
                options |= option;
            }
        }
        options
    })
}

/// A case's instruction, as this host decodes it; an invalid one if it is #UD.
pub fn decode(case: &Case) -> Instruction {
    Decoder::with_ip(case.bits.number(), &case.bytes, case.rip(), decoder_options()).decode()
}

/// The cell of a case: None if its bytes are no instruction.
pub fn classify(case: &Case) -> Option<Cell> {
    let instruction = decode(case);
    cell_of(case.bits, &instruction)
}

/// The cell of a decoded instruction: None if it is invalid.
pub fn cell_of(bits: Bits, instruction: &Instruction) -> Option<Cell> {
    if instruction.is_invalid() {
        return None;
    }
    let address = address_size(bits, instruction);
    let mask = match (instruction.op_mask(), instruction.zeroing_masking()) {
        (Register::None, _) => Mask::None,
        (_, false) => Mask::Merge,
        (_, true) => Mask::Zero,
    };
    let rounding = match instruction.rounding_control() {
        RoundingControl::None if instruction.suppress_all_exceptions() => Rounding::Sae,
        RoundingControl::None => Rounding::None,
        RoundingControl::RoundToNearest => Rounding::Nearest,
        RoundingControl::RoundDown => Rounding::Down,
        RoundingControl::RoundUp => Rounding::Up,
        RoundingControl::RoundTowardZero => Rounding::Zero,
    };
    Some(Cell {
        code: instruction.code(),
        bits,
        form: if address == 0 { Form::Register } else { Form::Memory },
        address,
        mask,
        broadcast: instruction.is_broadcast(),
        rounding,
    })
}

/// The size of the address of the memory operand; 0 without one.
fn address_size(bits: Bits, instruction: &Instruction) -> u8 {
    for kind in instruction.op_kinds() {
        let size = match kind {
            OpKind::MemorySegSI | OpKind::MemorySegDI | OpKind::MemoryESDI => 16,
            OpKind::MemorySegESI | OpKind::MemorySegEDI | OpKind::MemoryESEDI => 32,
            OpKind::MemorySegRSI | OpKind::MemorySegRDI | OpKind::MemoryESRDI => 64,
            OpKind::Memory => modrm_address_size(bits, instruction),
            _ => continue,
        };
        return size;
    }
    0
}

fn modrm_address_size(bits: Bits, instruction: &Instruction) -> u8 {
    let of = |register: Register| match register {
        Register::None => None,
        Register::EIP => Some(32),
        Register::RIP => Some(64),
        r if r.is_gpr() && r.size() > 1 => Some(8 * r.size() as u8),
        _ => None,
    };
    of(instruction.memory_base()).or_else(|| of(instruction.memory_index())).unwrap_or(
        match instruction.memory_displ_size() {
            2 => 16,
            4 => 32,
            8 => 64,
            // A vector of indices alone has a displacement; nothing else comes here.
            _ => bits.number() as u8,
        },
    )
}
