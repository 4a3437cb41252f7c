//! LFENCE, SFENCE, MFENCE (SDM vol. 2; vol. 3A, 8.2.5).
//!
//! Guest loads and stores are the host's own, in program order. What x86 does not order by itself is a
//! store before a later load: that is what MFENCE adds, and so does the host's fence.

use super::Handler;
use crate::exit::Result;
use crate::vcpu::Vcpu;
use decoder::Insn;
use iced_x86::Mnemonic;
use std::sync::atomic::{Ordering, fence};

fn full(_: &mut Vcpu, _: &Insn) -> Result {
    fence(Ordering::SeqCst);
    Ok(())
}

fn ordered_already(_: &mut Vcpu, _: &Insn) -> Result {
    Ok(())
}

/// The handler, if the instruction is of this family.
pub fn select(i: &Insn) -> Option<Handler> {
    Some(match i.code.mnemonic() {
        Mnemonic::Mfence => full,
        Mnemonic::Lfence | Mnemonic::Sfence => ordered_already,
        _ => return None,
    })
}
