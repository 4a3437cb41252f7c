//! Read-modify-write instructions from two vCPUs at once.

use crate::exit::Exit;
use crate::rig::{CODE, DATA, Mode, Rig, assemble};
use iced_x86::IcedError;
use iced_x86::code_asm::*;
use x86_arch::Gpr;

/// Two vCPUs execute `body` `rounds` times each, RBX at `at`.
fn hammer(at: u64, rounds: u64, body: impl Fn(&mut CodeAssembler) -> Result<(), IcedError>) -> Rig {
    let mut first = Rig::new(Mode::Long);
    let code = assemble(64, |a| {
        let mut top = a.create_label();
        a.set_label(&mut top)?;
        body(a)?;
        a.dec(rcx)?;
        a.jnz(top)?;
        let mut end = a.create_label();
        a.set_label(&mut end)?;
        a.jmp(end)
    });
    first.write(CODE, &code);
    let mut second = first.sibling();
    let drive = |rig: &mut Rig, id: u64| {
        rig.set(Gpr::Rbx, at);
        rig.set(Gpr::Rcx, rounds);
        rig.set(Gpr::R8, id);
        // Every instruction retires in order, so that the loop is over when RCX is 0.
        while rig.get(Gpr::Rcx) != 0 {
            assert_eq!(rig.processor.run(Some(10_000)), Exit::Bound);
        }
    };
    std::thread::scope(|s| {
        s.spawn(|| drive(&mut second, 1));
        drive(&mut first, 0);
    });
    first
}

#[test]
fn locked_increments_are_not_lost() {
    let rig = hammer(DATA, 20_000, |a| a.lock().inc(qword_ptr(rbx)));
    assert_eq!(rig.read_u64(DATA), 40_000);
    let rig = hammer(DATA, 20_000, |a| a.lock().add(dword_ptr(rbx + 4), 1));
    assert_eq!(rig.read_u64(DATA), 40_000 << 32);
    let rig = hammer(DATA, 20_000, |a| {
        a.mov(eax, 1)?;
        a.lock().xadd(word_ptr(rbx), ax)
    });
    assert_eq!(rig.read_u64(DATA), 40_000);
}

#[test]
fn a_locked_operand_may_cross_a_cache_line_or_a_page() {
    for at in [DATA + 60, DATA + 0xffc] {
        let rig = hammer(at, 300, |a| a.lock().inc(qword_ptr(rbx)));
        assert_eq!(rig.read_u64(at), 600, "{at:x}");
    }
}

#[test]
fn compare_and_exchange_loops() {
    let rig = hammer(DATA, 5_000, |a| {
        let mut again = a.create_label();
        a.mov(rax, qword_ptr(rbx))?;
        a.set_label(&mut again)?;
        a.lea(rdx, rax + 1)?;
        a.lock().cmpxchg(qword_ptr(rbx), rdx)?;
        a.jnz(again)
    });
    assert_eq!(rig.read_u64(DATA), 10_000);
    // The upper half counts with the lower one.
    let rig = hammer(DATA, 5_000, |a| {
        let mut again = a.create_label();
        a.mov(r9, rcx)?;
        a.mov(r10, rbx)?;
        a.mov(rax, qword_ptr(r10))?;
        a.mov(rdx, qword_ptr(r10 + 8))?;
        a.set_label(&mut again)?;
        a.lea(rbx, rax + 1)?;
        a.lea(rcx, rdx + 2)?;
        a.lock().cmpxchg16b(xmmword_ptr(r10))?;
        a.jnz(again)?;
        a.mov(rcx, r9)?;
        a.mov(rbx, r10)
    });
    assert_eq!(rig.read_u64(DATA), 10_000);
    assert_eq!(rig.read_u64(DATA + 8), 20_000);
}

#[test]
fn unaligned_cmpxchg16b_is_gp() {
    use crate::exit::Stop;
    use x86_arch::Exception;
    let mut rig = Rig::new(Mode::Long);
    rig.set(Gpr::Rbx, DATA + 8);
    let code = assemble(64, |a| a.cmpxchg16b(xmmword_ptr(rbx)));
    assert_eq!(rig.step(&code), Err(Stop::Exception(Exception::GP0)));
}
