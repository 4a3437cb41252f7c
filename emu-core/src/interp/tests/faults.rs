//! A fault leaves no trace; an operand may cross a page. For every instruction with a memory operand.

use super::encodings::{DISPLACEMENT, Encoding, encodings};
use crate::exit::Stop;
use crate::rig::{CODE, DATA, Mode, Rig};
use decoder::attrs;
use iced_x86::{Mnemonic as M, OpKind};
use x86_arch::{Exception, Gpr, Rflags, Vector};

fn every_memory_form() -> Vec<Encoding> {
    let mnemonics = [
        M::Add,
        M::Or,
        M::Adc,
        M::Sbb,
        M::And,
        M::Sub,
        M::Xor,
        M::Cmp,
        M::Test,
        M::Inc,
        M::Dec,
        M::Neg,
        M::Not,
        M::Mov,
        M::Movzx,
        M::Movsx,
        M::Movsxd,
        M::Movbe,
        M::Xchg,
        M::Cmove,
        M::Cmovne,
        M::Sete,
        M::Setne,
        M::Shl,
        M::Shr,
        M::Sar,
        M::Rol,
        M::Ror,
        M::Rcl,
        M::Rcr,
        M::Shld,
        M::Shrd,
        M::Mul,
        M::Imul,
        M::Div,
        M::Idiv,
        M::Bt,
        M::Bts,
        M::Btr,
        M::Btc,
        M::Bsf,
        M::Bsr,
        M::Lzcnt,
        M::Tzcnt,
        M::Popcnt,
        M::Andn,
        M::Bextr,
        M::Blsi,
        M::Blsmsk,
        M::Blsr,
        M::Bzhi,
        M::Mulx,
        M::Pdep,
        M::Pext,
        M::Rorx,
        M::Sarx,
        M::Shlx,
        M::Shrx,
        M::Adcx,
        M::Adox,
        M::Crc32,
        M::Cmpxchg,
        M::Cmpxchg8b,
        M::Cmpxchg16b,
        M::Xadd,
        M::Push,
        M::Pop,
    ];
    let all: Vec<_> = encodings(&mnemonics, &[0, 5]).into_iter().filter(|e| e.memory).collect();
    assert!(all.len() > 500);
    all
}

/// Registers whose values suit every form: division has a quotient, bit offsets are small.
fn load(rig: &mut Rig, e: &Encoding, operand: u64, status: bool) {
    for r in 0..16u8 {
        rig.cpu().hot.regs[r as usize] = 1 + r as u64 % 7;
    }
    rig.cpu().set_rip(CODE);
    rig.set(Gpr::Rsp, crate::rig::STACK);
    rig.set(Gpr::Rbx, operand.wrapping_sub(DISPLACEMENT as u64));
    if matches!(e.code.mnemonic(), M::Div | M::Idiv) {
        rig.set(Gpr::Rdx, 0);
    }
    rig.set_flags(Rflags::STATUS, if status { Rflags::STATUS.bits() } else { 0 });
}

fn operand_size(e: &Encoding) -> u64 {
    e.instruction.memory_size().size() as u64
}

fn writes(e: &Encoding) -> bool {
    attrs(e.code).mem.writes() && e.instruction.op0_kind() == OpKind::Memory
        || matches!(e.code.mnemonic(), M::Xchg | M::Pop)
}

fn page_fault(rig: &mut Rig, r: Result<(), Stop>, text: &str) -> (u32, u64) {
    match r {
        Err(Stop::Exception(Exception { vector: Vector::Pf, error_code })) => {
            (error_code, rig.cpu().fault_gva.0)
        }
        other => panic!("{text}: {other:?}"),
    }
}

#[test]
fn an_absent_page_leaves_no_trace() {
    let mut rig = Rig::new(Mode::Long);
    let page = DATA + 0x4000;
    rig.unmap(page);
    for e in every_memory_form() {
        for status in [false, true] {
            load(&mut rig, &e, page + 0x100, status);
            let before = rig.registers();
            let r = rig.step(&e.bytes);
            let (code, address) = page_fault(&mut rig, r, &e.text);
            assert_eq!(address, page + 0x100, "{}", e.text);
            assert_eq!(code & 1, 0, "{}: not present", e.text);
            assert_eq!(code & 2 != 0, writes(&e), "{}: write", e.text);
            assert_eq!(rig.registers(), before, "{}", e.text);
        }
    }
}

#[test]
fn a_read_only_page_stops_writers_only() {
    let mut rig = Rig::new(Mode::Long);
    let page = DATA + 0x4000;
    let bytes = [0x11; 64];
    rig.write(page + 0x100, &bytes);
    rig.read_only(page);
    for e in every_memory_form() {
        load(&mut rig, &e, page + 0x100, true);
        let before = rig.registers();
        let r = rig.step(&e.bytes);
        if writes(&e) {
            let (code, _) = page_fault(&mut rig, r, &e.text);
            assert_eq!(code & 3, 3, "{}", e.text);
            assert_eq!(rig.registers(), before, "{}", e.text);
        } else {
            assert_eq!(r, Ok(()), "{}", e.text);
        }
        let mut now = [0; 64];
        rig.read(page + 0x100, &mut now);
        assert_eq!(now, bytes, "{}", e.text);
    }
}

#[test]
fn a_crossing_operand_is_all_or_nothing() {
    let mut rig = Rig::new(Mode::Long);
    let (first, second) = (DATA + 0x4000, DATA + 0x5000);
    for e in every_memory_form() {
        let size = operand_size(&e);
        if size < 2 || e.code.mnemonic() == M::Cmpxchg16b {
            continue;
        }
        let at = second - size / 2;
        let pattern = [0x23u8; 32];
        let run = |rig: &mut Rig, at: u64| {
            rig.write(at - 8, &pattern);
            load(rig, &e, at, true);
            let r = rig.step(&e.bytes);
            let mut after = [0; 32];
            rig.read(at - 8, &mut after);
            let mut registers = rig.registers();
            registers.gpr[Gpr::Rbx as usize] = 0;
            (r, after, registers)
        };
        // The same as within one page.
        let crossing = run(&mut rig, at);
        let inside = run(&mut rig, first + 0x100);
        assert_eq!(crossing, inside, "{}", e.text);
        // Nothing, if either page is missing.
        for absent in [first, second] {
            rig.write(at - 8, &pattern);
            rig.unmap(absent);
            load(&mut rig, &e, at, true);
            let before = rig.registers();
            let r = rig.step(&e.bytes);
            page_fault(&mut rig, r, &e.text);
            assert_eq!(rig.registers(), before, "{}", e.text);
            rig.map(absent);
            let mut now = [0; 32];
            rig.read(at - 8, &mut now);
            assert_eq!(now, pattern, "{}", e.text);
        }
    }
}
