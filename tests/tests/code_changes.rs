//! Code that changes under the processor: by the guest's own stores, by the VMM's writes that nobody is
//! told of, before a run, between two runs, and under a running vCPU before an interrupt.

use emu_core::Exit;
use iced_x86::code_asm::*;
use softkvm_tests::machine::Machine;
use std::os::unix::fs::FileExt;
use x86_arch::Gpr;

fn assemble(bits: u32, ip: u64, f: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>) -> Vec<u8> {
    let mut a = CodeAssembler::new(bits).expect("16, 32 or 64");
    f(&mut a).expect("the code is valid");
    a.assemble(ip).expect("the code can be encoded")
}

/// `mov ax, n`, then a jump to itself.
fn boot_sector(n: i32) -> Vec<u8> {
    assemble(16, 0x7c00, |a| {
        let mut end = a.create_label();
        a.mov(ax, n)?;
        a.set_label(&mut end)?;
        a.jmp(end)
    })
}

#[test]
fn a_boot_sector_written_twice_runs_both_times_as_written() {
    let mut m = Machine::new(1 << 20);
    for n in [0x1234, 0x4321, 0x7777] {
        m.poke(0x7c00, &boot_sector(n));
        m.real_mode(0x7c00);
        assert_eq!(m.processor.run(Some(10)), Exit::Bound);
        assert_eq!(m.processor.vcpu.hot.regs[Gpr::Rax as usize] as i32, n);
    }
}

#[test]
fn a_page_of_code_replaced_between_two_runs_is_seen() {
    let mut m = Machine::new(1 << 22);
    m.long_mode(0x8000);
    // The loop calls a function on another page.
    m.poke(
        0x8000,
        &assemble(64, 0x8000, |a| {
            let mut again = a.create_label();
            a.mov(rsp, 0x20000u64)?;
            a.set_label(&mut again)?;
            a.mov(rax, 0x9000u64)?;
            a.call(rax)?;
            a.jmp(again)
        }),
    );
    for n in 1..20 {
        m.poke(
            0x9000,
            &assemble(64, 0x9000, |a| {
                a.mov(ebx, n)?;
                a.ret()
            }),
        );
        assert_eq!(m.processor.run(Some(50)), Exit::Bound);
        assert_eq!(m.processor.vcpu.hot.regs[Gpr::Rbx as usize], n as u64, "as replaced the {n}th time");
    }
}

#[test]
fn the_guests_own_store_into_the_next_instruction_is_seen() {
    let mut m = Machine::new(1 << 22);
    m.long_mode(0x8000);
    // The immediate of the second MOV is overwritten by the instruction just before it.
    let code = assemble(64, 0x8000, |a| {
        let mut end = a.create_label();
        a.mov(byte_ptr(0x8000 + 8 + 1), 0x55)?;
        a.mov(ebx, 0x11)?;
        a.set_label(&mut end)?;
        a.jmp(end)
    });
    assert_eq!(code[8], 0xbb, "the MOV to EBX begins at offset 8");
    m.poke(0x8000, &code);
    assert_eq!(m.processor.run(Some(5)), Exit::Bound);
    assert_eq!(m.processor.vcpu.hot.regs[Gpr::Rbx as usize], 0x55);
}

#[test]
fn a_function_that_is_rewritten_before_each_call_is_seen_each_time() {
    let mut m = Machine::new(1 << 22);
    m.long_mode(0x8000);
    // The function at 0x9000 is `mov ebx, imm32; ret`; its immediate is counted up before each of 200 calls.
    m.poke(
        0x8000,
        &assemble(64, 0x8000, |a| {
            let (mut again, mut wrong, mut end) = (a.create_label(), a.create_label(), a.create_label());
            a.mov(rsp, 0x20000u64)?;
            a.xor(ecx, ecx)?;
            a.xor(edx, edx)?;
            a.set_label(&mut again)?;
            a.inc(ecx)?;
            a.mov(dword_ptr(0x9001), ecx)?;
            a.mov(rax, 0x9000u64)?;
            a.call(rax)?;
            a.cmp(ebx, ecx)?;
            a.jne(wrong)?;
            a.cmp(ecx, 200)?;
            a.jb(again)?;
            a.set_label(&mut end)?;
            a.jmp(end)?;
            a.set_label(&mut wrong)?;
            a.mov(edx, 1)?;
            a.jmp(wrong)
        }),
    );
    m.poke(
        0x9000,
        &assemble(64, 0x9000, |a| {
            a.mov(ebx, 0)?;
            a.ret()
        }),
    );
    assert_eq!(m.processor.run(Some(5000)), Exit::Bound);
    let regs = &m.processor.vcpu.hot.regs;
    assert_eq!((regs[Gpr::Rcx as usize], regs[Gpr::Rdx as usize]), (200, 0), "the old function ran");
    assert!(m.processor.vcpu.stats.blocks_invalidated >= 199);
}

#[test]
fn a_store_beside_code_in_its_page_drops_no_block() {
    let mut m = Machine::new(1 << 22);
    m.long_mode(0x8000);
    m.poke(
        0x8000,
        &assemble(64, 0x8000, |a| {
            let mut again = a.create_label();
            a.set_label(&mut again)?;
            a.inc(dword_ptr(0x8800))?;
            a.jmp(again)
        }),
    );
    assert_eq!(m.processor.run(Some(2000)), Exit::Bound);
    assert_eq!(m.peek(0x8800, 4), 1000u32.to_le_bytes());
    assert_eq!(m.processor.vcpu.stats.blocks_invalidated, 0);
    assert!(m.processor.vcpu.stats.blocks_decoded < 5);
}

#[test]
fn code_replaced_under_a_running_vcpu_is_seen_after_an_interrupt() {
    let mut m = Machine::new(1 << 22);
    m.long_mode(0x8000);
    // An endless loop over a function on another page, whose result goes to memory.
    m.poke(
        0x8000,
        &assemble(64, 0x8000, |a| {
            let mut again = a.create_label();
            a.mov(rsp, 0x20000u64)?;
            a.set_label(&mut again)?;
            a.mov(rax, 0x9000u64)?;
            a.call(rax)?;
            a.mov(dword_ptr(0xa000), ebx)?;
            a.jmp(again)
        }),
    );
    let function = |n: i32| {
        assemble(64, 0x9000, |a| {
            a.mov(ebx, n)?;
            a.ret()
        })
    };
    m.poke(0x9000, &function(1));
    let memory = m.memory();
    let gate = m.processor.vcpu.shared.gate.clone();
    let thread = std::thread::spawn(move || (m.processor.run(None), m));
    let wait_for = |n: i32| {
        let mut b = [0; 4];
        // Ten seconds at most: far more than a safe point is away.
        for _ in 0..10_000 {
            memory.read_exact_at(&mut b, 0xa000).expect("inside memory");
            if i32::from_le_bytes(b) == n {
                return true;
            }
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        false
    };
    for n in 1..6 {
        memory.write_all_at(&function(n), 0x9000).expect("inside memory");
        // What an interrupt line, an MSI or KVM_INTERRUPT from another thread does.
        gate.request(softmmu::Requests::EVENT);
        assert!(wait_for(n), "the new code runs: {n}");
    }
    gate.request(softmmu::Requests::EXIT);
    let (exit, _machine) = thread.join().expect("the vCPU thread");
    assert_eq!(exit, Exit::Interrupted);
}
