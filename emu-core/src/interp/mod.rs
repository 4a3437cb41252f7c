//! The interpreter: a handler for each instruction and operand form. The reference for all engines.
//!
//! A file per instruction family. Each exports `select`, which gives the handler for an [`Insn`],
//! or `None` if the instruction is not of its family. [`select`] asks them in turn, once per decoded
//! instruction; what nobody claims runs [`undefined`].
//!
//! # The protocol of a handler
//!
//! - RIP already points to the next instruction. On `Err` the loop puts it back.
//! - An instruction commits at its end: read, compute, check; then the one store that can fail; then
//!   registers and flags, which cannot. Several stores: `probe_write` all ranges first.
//! - A read that needs the outside returns `Err(Stop::Need)` and is replayed on restart, so a handler must
//!   make the same reads in the same order when it runs again.
//! - What changes interruptibility, mode or decoding calls `Vcpu::attend`; the block then ends after it.

pub mod alu;
pub mod atomic;
pub mod bcd;
pub mod bit;
pub mod bmi;
pub mod branch;
pub mod far;
pub mod fence;
pub mod flags;
pub mod int;
pub mod iret;
pub mod mov;
pub mod muldiv;
pub mod operand;
pub mod port_io;
pub mod segment;
pub mod shift;
pub mod simd;
pub mod stack;
pub mod string;
pub mod syscall;
pub mod system;
pub mod x87;
pub mod xsave;

use crate::exit::{Result, Stop};
use crate::vcpu::Vcpu;
use decoder::Insn;
use x86_arch::Exception;

/// Executes one decoded instruction.
pub type Handler = fn(&mut Vcpu, &Insn) -> Result;

type Select = fn(&Insn) -> Option<Handler>;

/// The families, most frequent first.
const FAMILIES: &[Select] = &[
    mov::select,
    segment::select,
    alu::select,
    branch::select,
    stack::select,
    string::select,
    shift::select,
    muldiv::select,
    bit::select,
    atomic::select,
    bmi::select,
    port_io::select,
    fence::select,
    bcd::select,
    system::select,
    syscall::select,
    iret::select,
    far::select,
    int::select,
    simd::select,
    x87::select,
    xsave::select,
    crate::native::select,
];

/// The handler of a decoded instruction.
pub fn select(i: &Insn) -> Handler {
    #[cfg(feature = "fault-injection")]
    if i.fault().is_none()
        && let Some(wrong) = crate::faults::handler(i)
    {
        return wrong;
    }
    select_right(i)
}

/// [`select`] without faults on purpose.
pub(crate) fn select_right(i: &Insn) -> Handler {
    if i.fault().is_some() {
        return fault;
    }
    FAMILIES.iter().find_map(|f| f(i)).unwrap_or(undefined)
}

/// Whether the interpreter has a handler for this instruction.
pub fn implements(i: &Insn) -> bool {
    i.fault().is_none() && FAMILIES.iter().any(|f| f(i).is_some())
}

/// An instruction that no family claims: #UD, as for any opcode that the processor does not have.
pub fn undefined(c: &mut Vcpu, _: &Insn) -> Result {
    c.ud()
}

/// An entry that stands for a decoding fault.
fn fault(_: &mut Vcpu, i: &Insn) -> Result {
    Err(Stop::Exception(Exception::new(i.fault().unwrap_or(x86_arch::Vector::Ud))))
}

/// Picks the instance of a generic handler for an operand size of 1, 2, 4 or 8 bytes.
macro_rules! by_size {
    ($size:expr, $f:ident $(, $p:ty)*) => {
        match $size {
            1 => $f::<$($p,)* u8> as $crate::interp::Handler,
            2 => $f::<$($p,)* u16>,
            4 => $f::<$($p,)* u32>,
            _ => $f::<$($p,)* u64>,
        }
    };
}
pub(crate) use by_size;

#[cfg(test)]
mod tests;
