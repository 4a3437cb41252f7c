//! Guest memory that the VMM takes away under a running vCPU ends the run with the host's fault (KVM_RUN: EFAULT),
//! never the process. The memory is a file here, so truncation does it: the next access is a SIGBUS.

use emu_core::Exit;
use iced_x86::code_asm::*;
use softkvm_tests::machine::Machine;

const SIZE: u64 = 8 << 20;
const DATA: u64 = 6 << 20;

/// A guest in an endless loop over `body`, started, then cut to `left` bytes of memory.
fn cut(left: u64, body: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>) -> (Exit, u64) {
    let mut m = Machine::new(SIZE);
    m.long_mode(0x8000);
    let mut a = CodeAssembler::new(64).expect("64 bits");
    let mut again = a.create_label();
    a.set_label(&mut again).expect("once");
    body(&mut a).expect("valid code");
    a.jmp(again).expect("a label");
    m.poke(0x8000, &a.assemble(0x8000).expect("it can be encoded"));
    m.processor.vcpu.hot.regs[4] = DATA;
    // It runs for a while with all its memory: the TLB knows the pages.
    assert_eq!(m.processor.run(Some(10_000)), Exit::Bound);
    let memory = m.memory();
    let hva = m.hva();
    let thread = std::thread::spawn(move || {
        let exit = m.processor.run(None);
        // The processor lives: its state can be read.
        assert!(m.processor.vcpu.hot.retired >= 10_000);
        exit
    });
    std::thread::sleep(std::time::Duration::from_millis(20));
    memory.set_len(left).expect("a file can be cut");
    (thread.join().expect("the thread was not killed"), hva)
}

fn expect_fault(exit: (Exit, u64), gpa: core::ops::Range<u64>) {
    match exit {
        (Exit::HostFault { hva }, base) => {
            assert!(gpa.contains(&(hva - base)), "the fault is at gpa {:#x}", hva - base);
        }
        (other, _) => panic!("{other:?}"),
    }
}

#[test]
fn a_load() {
    expect_fault(cut(1 << 20, |a| a.mov(eax, dword_ptr(DATA))), DATA..DATA + 4);
}

#[test]
fn a_store() {
    expect_fault(cut(1 << 20, |a| a.mov(dword_ptr(DATA), eax)), DATA..DATA + 4);
}

#[test]
fn a_locked_read_modify_write() {
    expect_fault(cut(1 << 20, |a| a.lock().inc(dword_ptr(DATA))), DATA..DATA + 4);
}

#[test]
fn a_push() {
    expect_fault(
        cut(1 << 20, |a| {
            a.push(rax)?;
            a.pop(rbx)
        }),
        DATA - 8..DATA,
    );
}

#[test]
fn a_string_store() {
    expect_fault(
        cut(1 << 20, |a| {
            a.mov(edi, DATA as i32)?;
            a.mov(ecx, 0x1000)?;
            a.rep().stosq()
        }),
        DATA..DATA + 0x8000,
    );
}

#[test]
fn a_vector_store() {
    expect_fault(cut(1 << 20, |a| a.movups(xmmword_ptr(DATA), xmm0)), DATA..DATA + 16);
}

#[test]
fn page_tables_and_code() {
    let exit = cut(0, |a| {
        // A TLB flush makes the processor walk tables that are not there any more.
        a.mov(rax, cr3)?;
        a.mov(cr3, rax)
    });
    assert!(matches!(exit.0, Exit::HostFault { .. }), "{:?}", exit.0);
}
