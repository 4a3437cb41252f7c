//! What a case costs on the oracle: `cargo run --release -p insn-diff --example oracle_cost`. Not a test: it prints figures.

use insn_diff::case::XSAVE;
use insn_diff::layout::{DATA, FLAT, STACK};
use insn_diff::oracle::{Answer, Oracle, OracleError};
use insn_diff::{Bits, Case, End};
use std::time::Instant;

fn case(code: &[u8]) -> Case {
    let mut xsave = Box::new([0; XSAVE]);
    xsave[0..2].copy_from_slice(&0x37f_u16.to_le_bytes());
    xsave[24..28].copy_from_slice(&0x1f80_u32.to_le_bytes());
    xsave[512] = 7;
    let mut gpr = [1; 16];
    gpr[3] = DATA + 0x100;
    gpr[4] = STACK + 0x1000;
    Case {
        bits: Bits::Bits64,
        end: End::SingleStep,
        bytes: code.to_vec(),
        code_offset: 0x100,
        gpr,
        rflags: 0x202,
        selectors: [FLAT, Bits::Bits64.code_selector(), FLAT, FLAT, 0, 0],
        fs_base: 0,
        gs_base: 0,
        xsave,
        memory: vec![(DATA + 0x100, vec![0x55; 64])],
    }
}

fn main() -> Result<(), OracleError> {
    let mut oracle = Oracle::start()?;
    let kinds: [(&str, &[u8]); 3] = [
        ("add rax, rcx", &[0x48, 0x01, 0xc8]),
        ("add [rbx], rcx", &[0x48, 0x01, 0x0b]),
        ("ud2", &[0x0f, 0x0b]),
    ];
    for (name, code) in kinds {
        for batch in [1, 4, 16, Oracle::BATCH] {
            let cases = vec![case(code); batch];
            let rounds = 20_000 / batch;
            let (mut submitting, mut done) = (0, 0);
            let start = Instant::now();
            for _ in 0..rounds {
                let from = Instant::now();
                oracle.submit(&cases);
                submitting += from.elapsed().as_nanos();
                done += oracle.collect().iter().filter(|a| matches!(a, Answer::Done(_))).count();
            }
            let count = (rounds * batch) as f64;
            println!(
                "{name:15} batches of {batch:2}: {:6.2} us a case, {:5.2} of them in submit, {done} done",
                start.elapsed().as_nanos() as f64 / 1e3 / count,
                submitting as f64 / 1e3 / count,
            );
        }
    }
    Ok(())
}
