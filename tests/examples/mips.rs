//! How fast the interpreter executes a small loop: `cargo run --release -p softkvm-tests --example mips`.

use iced_x86::code_asm::*;
use softkvm_tests::machine::Machine;

fn main() {
    let mut m = Machine::new(1 << 22);
    m.long_mode(0x8000);
    let mut a = CodeAssembler::new(64).expect("64");
    let mut again = a.create_label();
    let mut skip = a.create_label();
    a.set_label(&mut again).unwrap();
    a.mov(eax, dword_ptr(rbx + rcx * 4 + 0x10000)).unwrap();
    a.add(edx, eax).unwrap();
    a.xor(eax, 0x1234).unwrap();
    a.mov(dword_ptr(rbx + rcx * 4 + 0x10000), eax).unwrap();
    a.inc(ecx).unwrap();
    a.and(ecx, 0x3ff).unwrap();
    a.test(eax, 1).unwrap();
    a.je(skip).unwrap();
    a.lea(rsi, qword_ptr(rsi + 8)).unwrap();
    a.set_label(&mut skip).unwrap();
    a.cmp(ecx, 100).unwrap();
    a.jmp(again).unwrap();
    m.poke(0x8000, &a.assemble(0x8000).expect("encodes"));
    for _ in 0..3 {
        let start = std::time::Instant::now();
        let n = 100_000_000;
        m.processor.run(Some(n));
        println!("{:.1} MIPS", n as f64 / start.elapsed().as_secs_f64() / 1e6);
    }
    println!("{:?}", m.processor.vcpu.stats);
}
