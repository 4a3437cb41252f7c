//! The harness's own guest: no download, no kernel; assembled here, run on every backend that is present.
//!
//! It starts at the reset vector, goes from real mode over protected mode to long mode with page tables that
//! it builds itself, starts a second processor, and reports each check on a port ([`layout::PORT_REPORT`]).
//! What a check is, is in [`program`]; the checks are a subject to a file; [`vmm`](software::vmm) is the VMM, one
//! source compiled for each backend's API.

pub mod clock;
pub mod exceptions;
pub mod host;
pub mod interrupts;
pub mod io;
pub mod layout;
pub mod paging;
pub mod program;
pub mod smp;
pub mod software;
pub mod start;

use layout::*;
use program::{Assembled, Program};
use start::Piece;

/// The guest, ready to load.
pub struct Image {
    /// What goes into RAM.
    pub pieces: Vec<Piece>,
    /// What goes into the ROM at [`ROM`].
    pub rom: Vec<u8>,
    /// The checks' names, by the number that is reported.
    pub checks: Vec<String>,
}

/// Assembles the guest.
pub fn image() -> Assembled<Image> {
    let mut p = Program::new()?;
    start::enter(&mut p)?;
    let mut all = p.a.create_label();
    p.a.cmp(iced_x86::code_asm::qword_ptr(MODE), 1)?;
    p.a.jne(all)?;
    clock::marks_only(&mut p)?;
    p.a.set_label(&mut all)?;
    start::checks(&mut p)?;
    exceptions::checks(&mut p)?;
    paging::checks(&mut p)?;
    exceptions::user_mode(&mut p)?;
    exceptions::self_modifying(&mut p)?;
    interrupts::checks(&mut p)?;
    smp::checks(&mut p)?;
    io::checks(&mut p)?;
    clock::checks(&mut p)?;
    interrupts::x2apic(&mut p)?;
    p.out32(PORT_DONE, 0)?;
    p.a.hlt()?;
    start::routines(&mut p)?;
    smp::second(&mut p)?;
    let Program { mut a, names, user, .. } = p;
    let code = a.assemble(CODE64)?;
    assert!(CODE64 + (code.len() as u64) < RSP0 - 0x8000, "the code ends below the stacks");
    assert!(user.len() <= 0x1000, "the user's code fits its page");
    let rom = start::rom()?;
    let mut pieces = start::low()?;
    pieces.push((CODE64, code));
    pieces.push((USER_CODE_FRAME, user));
    pieces.push((0x10_0000 - ROM_SIZE, rom.clone()));
    Ok(Image { pieces, rom, checks: names })
}
