//! Software interrupts: INT n, INT3, INTO, INT1, BOUND (SDM vol. 2A).

#[cfg(test)]
mod tests;

use super::operand::Int;
use super::{Handler, by_size};
use crate::event::{Event, EventKind};
use crate::exit::Result;
use crate::vcpu::Vcpu;
use decoder::Insn;
use iced_x86::Mnemonic;
use x86_arch::{Exception, Rflags, Vector};

/// RIP is behind the instruction already, which is what is pushed.
fn deliver(c: &mut Vcpu, vector: u8, kind: EventKind) -> Result {
    c.inject(Event { vector, kind, error_code: None })?;
    // TF was cleared on the way in: the instruction itself is not stepped (SDM vol. 3A, 17.3.1.4).
    c.events.entered_handler = true;
    Ok(())
}

fn int_n(c: &mut Vcpu, i: &Insn) -> Result {
    deliver(c, i.imm as u8, EventKind::SoftwareInterrupt)
}

/// INT3 is raised, not delivered here, so that a debugger outside can claim it; RIP is advanced
/// by the delivery.
fn int3(_: &mut Vcpu, _: &Insn) -> Result {
    Err(Exception::new(Vector::Bp).into())
}

fn into(c: &mut Vcpu, _: &Insn) -> Result {
    if c.flag(Rflags::OF) { deliver(c, Vector::Of as u8, EventKind::SoftwareException) } else { Ok(()) }
}

fn int1(c: &mut Vcpu, _: &Insn) -> Result {
    deliver(c, Vector::Db as u8, EventKind::PrivilegedSoftwareException)
}

fn bound<T: Int>(c: &mut Vcpu, i: &Insn) -> Result {
    let index = c.reg::<T>(i.r[0]).to_i64();
    let ea = c.ea(i);
    let low = c.load::<T>(i.mem.seg, ea)?.to_i64();
    let high = c.load::<T>(i.mem.seg, ea.wrapping_add(T::BYTES) & i.mem.mask())?.to_i64();
    if index < low || index > high { Err(Exception::new(Vector::Br).into()) } else { Ok(()) }
}

/// The handler, if the instruction is of this family.
pub fn select(i: &Insn) -> Option<Handler> {
    Some(match i.code.mnemonic() {
        Mnemonic::Int => int_n,
        Mnemonic::Int3 => int3,
        Mnemonic::Into => into,
        Mnemonic::Int1 => int1,
        Mnemonic::Bound => by_size!(i.op_size, bound),
        _ => return None,
    })
}
