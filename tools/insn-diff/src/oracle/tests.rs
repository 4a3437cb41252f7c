//! Cases whose outcome the manuals say, on the processor that runs the tests. Test-only.

use super::*;
use crate::layout::{CODE, DATA, DATA_SHORT, DATA16, FLAT, HOLE, READ_ONLY, STACK, STACK16};

const ZF: u64 = 1 << 6;
const CF: u64 = 1;
const AC: u64 = 1 << 18;
const RF: u64 = 1 << 16;
const MXCSR: usize = 24;
const XSTATE_BV: usize = 512;

fn oracle() -> Oracle {
    Oracle::start().unwrap_or_else(|e| panic!("{e}"))
}

/// A case with everything plain: the stack in the middle of its pages, data registers pointing at data.
fn case(bits: Bits, code: &[u8]) -> Case {
    let mut xsave = Box::new([0; XSAVE]);
    xsave[0..2].copy_from_slice(&0x37f_u16.to_le_bytes());
    xsave[MXCSR..MXCSR + 4].copy_from_slice(&0x1f80_u32.to_le_bytes());
    xsave[XSTATE_BV] = 3;
    let mut gpr = [0; 16];
    gpr[3] = DATA + 0x100;
    gpr[4] = STACK + 0x1000;
    gpr[6] = DATA + 0x200;
    gpr[7] = DATA + 0x1200;
    let (ds, ss) = match bits {
        Bits::Bits16 => (DATA16, STACK16),
        _ => (FLAT, FLAT),
    };
    if bits == Bits::Bits16 {
        gpr.iter_mut().for_each(|r| *r &= 0xffff);
    }
    let selectors = match bits {
        Bits::Bits64 => [FLAT, bits.code_selector(), FLAT, FLAT, 0, 0],
        _ => [ds, bits.code_selector(), ss, ds, ds, ds],
    };
    Case {
        bits,
        end: End::SingleStep,
        bytes: code.to_vec(),
        code_offset: 0x100,
        gpr,
        rflags: 0x202,
        selectors,
        fs_base: 0,
        gs_base: 0,
        xsave,
        memory: Vec::new(),
    }
}

fn case64(code: &[u8]) -> Case {
    case(Bits::Bits64, code)
}

fn trap(mut case: Case) -> Case {
    case.end = End::Trap;
    case
}

fn done(answer: Answer) -> Outcome {
    match answer {
        Answer::Done(outcome) => outcome,
        Answer::Lost(lost) => panic!("lost: {lost:?}"),
    }
}

fn run(oracle: &mut Oracle, case: &Case) -> Outcome {
    done(oracle.execute(std::slice::from_ref(case)).remove(0))
}

fn once(case: &Case) -> Outcome {
    run(&mut oracle(), case)
}

/// Vector, error code, CR2, and RIP relative to the instruction.
fn fault(case: &Case) -> (u8, u32, u64, i64) {
    let o = once(case);
    assert!(o.memory.is_empty(), "{o:x?}");
    (o.vector, o.error_code, o.cr2, o.rip.wrapping_sub(case.rip()) as i64)
}

#[test]
fn an_addition_and_its_flags() {
    let mut add = case64(&[0x48, 0x01, 0xc8]); // add rax, rcx
    add.gpr[0] = u64::MAX;
    add.gpr[1] = 1;
    add.gpr[15] = 0x1234_5678_9abc_def0;
    let o = once(&add);
    assert_eq!((o.vector, o.error_code, o.cr2, o.rip), (1, 0, 0, add.rip() + 3));
    let mut gpr = add.gpr;
    gpr[0] = 0;
    assert_eq!(o.gpr, gpr);
    assert_eq!(o.rflags & 0x8d5, CF | ZF | 0x10 | 4);
    assert_ne!(o.rflags & 0x100, 0, "TF is in the frame of a single step");
    assert_eq!(o.selectors, add.selectors);
    assert!(o.memory.is_empty());
    let o = once(&trap(add.clone()));
    assert_eq!((o.vector, o.rip, o.gpr), (6, add.rip() + 3, gpr));
    assert_eq!(o.rflags & 0x100, 0);
}

#[test]
fn flags_go_in_and_out() {
    let mut oracle = oracle();
    for flags in [0, 0x8d5, 0x400, 1 << 14, AC, 1 << 21, FLAGS] {
        let mut nop = case64(&[0x90]);
        nop.rflags = 0x202 | flags;
        let o = run(&mut oracle, &nop);
        assert_eq!((o.vector, o.rflags & !RF), (1, 0x302 | flags), "{flags:#x}");
    }
}

#[test]
fn faults_without_memory() {
    assert_eq!(fault(&case64(&[0x0f, 0x0b])), (6, 0, 0, 0));
    assert_eq!(fault(&case64(&[0xf4])), (13, 0, 0, 0)); // hlt
    assert_eq!(fault(&case64(&[0xcd, 0x20])), (13, 0x20 << 3 | 2, 0, 0)); // int 20h
    let mut div = case64(&[0xf7, 0xf1]); // div ecx
    div.gpr[0] = 1;
    assert_eq!(fault(&div), (0, 0, 0, 0));
    assert_eq!(fault(&trap(case64(&[0xcc]))), (3, 0, 0, 1)); // int3
    let mut into = trap(case(Bits::Bits32, &[0xce]));
    assert_eq!(fault(&into), (6, 0, 0, 1));
    into.rflags |= 1 << 11;
    assert_eq!(fault(&into), (4, 0, 0, 1));
}

#[test]
fn page_faults() {
    let read = [0x48, 0x8b, 0x03]; // mov rax, [rbx]
    let write = [0x48, 0x89, 0x03];
    let at = |code: &[u8], address| {
        let mut c = case64(code);
        c.gpr[3] = address;
        c
    };
    assert_eq!(fault(&at(&read, HOLE)), (14, 4, HOLE, 0));
    assert_eq!(fault(&at(&read, HOLE - 4)), (14, 4, HOLE, 0));
    assert_eq!(fault(&at(&write, HOLE)), (14, 6, HOLE, 0));
    assert_eq!(fault(&at(&write, READ_ONLY)), (14, 7, READ_ONLY, 0));
    assert_eq!(fault(&at(&write, CODE + 0x800)), (14, 7, CODE + 0x800, 0));
    assert_eq!(once(&at(&read, CODE + 0x800)).gpr[0], 0x0b0f_0b0f_0b0f_0b0f);
    let mut call = trap(case64(&[0xff, 0xe3])); // jmp rbx
    call.gpr[3] = DATA;
    let o = once(&call);
    assert_eq!((o.vector, o.error_code, o.cr2, o.rip), (14, 0x15, DATA, DATA));
    // An instruction whose second half has no page.
    let mut straddling = case64(&read);
    straddling.code_offset = 0xffe;
    assert_eq!(fault(&straddling), (14, 0x14, CODE + PAGE, 0));
}

#[test]
fn general_protection_and_stack_faults() {
    let mut read = case64(&[0x48, 0x8b, 0x03]);
    read.gpr[3] = 0x8000_0000_0000_0000;
    assert_eq!(fault(&read), (13, 0, 0, 0));
    let mut pop = case64(&[0x58]);
    pop.gpr[4] = 0x8000_0000_0000_0000;
    assert_eq!(fault(&pop), (12, 0, 0, 0));
    // Beyond a segment's limit.
    let mut beyond = case(Bits::Bits32, &[0x8b, 0x03]); // mov eax, [ebx]
    beyond.selectors[3] = DATA_SHORT;
    beyond.gpr[3] = 0x17fd;
    assert_eq!(fault(&beyond), (13, 0, 0, 0));
    beyond.gpr[3] = 0x17fc;
    assert_eq!(once(&beyond).vector, 1);
}

#[test]
fn alignment_check() {
    let mut read = case64(&[0x48, 0x8b, 0x03]);
    read.gpr[3] = DATA + 1;
    assert_eq!(once(&read).vector, 1);
    read.rflags |= AC;
    assert_eq!(fault(&read), (17, 0, 0, 0));
    read.gpr[3] = DATA;
    let o = once(&read);
    assert_eq!((o.vector, o.rflags & AC), (1, AC));
}

#[test]
fn floating_point_exceptions() {
    let mut div = case64(&[0x0f, 0x5e, 0xc1]); // divps xmm0, xmm1: 0/0
    div.xsave[MXCSR..MXCSR + 4].copy_from_slice(&0x1f00_u32.to_le_bytes());
    let o = once(&div);
    assert_eq!((o.vector, o.error_code, o.rip), (19, 0, div.rip()));
    assert_eq!(o.xsave[MXCSR] & 0x3f, 1);
    // A pending invalid operation, unmasked: FWAIT meets it.
    let mut wait = case64(&[0x9b]);
    wait.xsave[0] = 0x7e;
    wait.xsave[2..4].copy_from_slice(&0x8081_u16.to_le_bytes());
    assert_eq!(fault(&wait), (16, 0, 0, 0));
    assert_eq!(once(&wait).xsave[2..4], 0x8081_u16.to_le_bytes());
}

#[test]
fn x87_pointers() {
    // fld dword [rbx]; fnstenv [rsi]. AMD's XSAVE gives the pointers only if an exception is pending, FNSTENV
    // always. A preemption between the two loses them, so a few attempts are allowed.
    let fld = trap(case64(&[0xd9, 0x03, 0xd9, 0x36]));
    let lost = |o: &Outcome| o.memory[0].1[12..16] == [0; 4];
    let attempts = |c: &Case| (0..9).map(|_| once(c)).find(|o| !lost(o)).expect("pointers");
    let o = attempts(&fld);
    assert_eq!(o.vector, 6);
    let (offset, line) = o.memory[0];
    let dword = |at: usize| u32::from_le_bytes(line[at..at + 4].try_into().expect("four"));
    assert_eq!(offset as usize, layout::backing_offset(fld.gpr[6]).expect("inside"));
    assert_eq!((dword(12), dword(20)), (fld.rip() as u32, DATA as u32 + 0x100));
    assert_eq!(dword(4) & 0xffff, 0x3800);
    assert_eq!(o.xsave[464..512], [0; 48]);
    // An exception that stays pending: 0/0 with #IA unmasked; the pointers are in the image.
    let mut div = case64(&[0xd8, 0xf0]); // fdiv st0, st0
    div.xsave[0] = 0x7e;
    div.xsave[4] = 0x80; // R0 is in use, and zero
    div.xsave[2..4].copy_from_slice(&0_u16.to_le_bytes());
    let o = once(&div);
    let fip = u64::from_le_bytes(o.xsave[8..16].try_into().expect("eight"));
    assert_eq!((o.vector, fip, o.xsave[2] & 0x81), (1, div.rip(), 0x81));
    // And they go in: FNSTENV stores what the image says.
    let mut store = case64(&[0xd9, 0x36]);
    store.xsave[8..12].copy_from_slice(&0x1234_5678_u32.to_le_bytes());
    store.xsave[2..4].copy_from_slice(&0_u16.to_le_bytes());
    let o = attempts(&store);
    assert_eq!(o.memory[0].1[12..16], 0x1234_5678_u32.to_le_bytes());
}

#[test]
fn code_of_32_bits() {
    let mut add = case(Bits::Bits32, &[0x01, 0x03]); // add [ebx], eax
    add.gpr[0] = 1;
    add.memory = vec![(DATA + 0x100, vec![0xff, 0xff, 0xff, 0xff, 0x55])];
    let o = once(&add);
    assert_eq!((o.vector, o.rip, o.rflags & (ZF | CF)), (1, add.rip() + 2, ZF | CF));
    let (offset, line) = o.memory[0];
    assert_eq!((o.memory.len(), offset), (1, 0x1100));
    assert_eq!(line[..5], [0, 0, 0, 0, 0x55]);
    assert_eq!(once(&case(Bits::Bits32, &[0x40])).gpr[0], 1); // inc eax: not a REX prefix
}

#[test]
fn code_of_16_bits() {
    let mut store = case(Bits::Bits16, &[0x89, 0x07]); // mov [bx], ax
    store.gpr[0] = 0xbeef;
    let o = once(&store);
    assert_eq!((o.vector, o.rip), (1, 0x102));
    assert_eq!(o.selectors, store.selectors);
    assert_eq!((o.memory[0].0, o.memory[0].1[..2].to_vec()), (0x1100, vec![0xef, 0xbe]));
    let o = once(&case(Bits::Bits16, &[0x50])); // push ax
    assert_eq!((o.vector, o.gpr[4]), (1, 0x0ffe));
    assert_eq!(o.memory.len(), 1);
}

#[test]
fn bases_of_fs_and_gs() {
    for (prefix, gs) in [(0x64, false), (0x65, true)] {
        let mut read = case64(&[prefix, 0x48, 0x8b, 0x03]);
        read.gpr[3] = 0x10;
        (read.fs_base, read.gs_base) = if gs { (0x1111, DATA) } else { (DATA, 0x7fff_0000_0000) };
        read.memory = vec![(DATA + 0x10, 0x1122_3344_5566_7788_u64.to_le_bytes().to_vec())];
        let o = once(&read);
        assert_eq!((o.vector, o.gpr[0]), (1, 0x1122_3344_5566_7788));
        assert_eq!((o.fs_base, o.gs_base), (read.fs_base, read.gs_base));
    }
    let mut write = case64(&[0xf3, 0x48, 0x0f, 0xae, 0xd0]); // wrfsbase rax
    write.gpr[0] = 0x7654_3210;
    assert_eq!(once(&write).fs_base, 0x7654_3210);
    write.fs_base = 1 << 63;
    assert!(matches!(oracle().execute(&[write])[0], Answer::Lost(Lost::Refused(_))));
}

#[test]
fn vector_registers_in_and_out() {
    let mut oracle = oracle();
    let offset = |component| __cpuid_count(0xd, component).ebx as usize;
    let noise = |n: usize| (n.wrapping_mul(0x9e37_79b9) >> 7) as u8;
    // SSE, AVX, opmask, ZMM_Hi256, Hi16_ZMM.
    let sizes = [(1, 256), (2, 256), (5, 64), (6, 512), (7, 1024)];
    for (component, len) in sizes {
        if oracle.xsave_components() & 1 << component == 0 {
            eprintln!("skipped: the host has no XSAVE component {component}");
            continue;
        }
        let at = if component == 1 { 160 } else { offset(component) };
        let mut nop = case64(&[0x90]);
        nop.xsave[XSTATE_BV] |= 1 << component;
        (at..at + len).for_each(|n| nop.xsave[n] = noise(n));
        let o = run(&mut oracle, &nop);
        assert_eq!(o.xsave[at..at + len], nop.xsave[at..at + len], "component {component}");
        assert_ne!(o.xsave[XSTATE_BV] & 1 << component, 0);
        // And nothing of it in the next case.
        let o = run(&mut oracle, &case64(&[0x90]));
        assert!(component == 1 || o.xsave[XSTATE_BV] & 1 << component == 0, "component {component}");
        // A component that is there and zero is the same as one that is not.
        (at..at + len).for_each(|n| nop.xsave[n] = 0);
        let zero = run(&mut oracle, &nop);
        assert!(component == 1 || zero.xsave[XSTATE_BV] & 1 << component == 0, "component {component}");
    }
    if oracle.xsave_components() & 0xe6 == 0xe6 {
        // vpaddd zmm31, zmm31, zmm31 {k7}: K7 says which.
        let mut add = case64(&[0x62, 0x01, 0x05, 0x47, 0xfe, 0xff]);
        add.xsave[XSTATE_BV] |= 0xe4;
        add.xsave[offset(5) + 56] = 2;
        (0..8).for_each(|n| add.xsave[offset(7) + 15 * 64 + n] = 1);
        let o = run(&mut oracle, &add);
        assert_eq!(o.vector, 1);
        let zmm31 = &o.xsave[offset(7) + 15 * 64..][..8];
        assert_eq!(zmm31, [1, 1, 1, 1, 2, 2, 2, 2]);
    }
}

#[test]
fn a_repeated_move_stops_in_its_middle() {
    let mut movs = trap(case64(&[0xf3, 0xa4]));
    movs.gpr[1] = 100;
    movs.gpr[6] = DATA;
    movs.gpr[7] = READ_ONLY - 10;
    let o = once(&movs);
    assert_eq!((o.vector, o.error_code, o.cr2, o.rip), (14, 7, READ_ONLY, movs.rip()));
    assert_eq!((o.gpr[1], o.gpr[6], o.gpr[7]), (90, DATA + 10, READ_ONLY));
    assert_eq!((o.memory.len(), o.memory[0].0), (1, 0x3000 - 64));
    assert_eq!(o.memory[0].1[54..], layout::template()[0x1000..0x100a]);
}

#[test]
fn changes_are_undone_for_the_next_case() {
    let mut store = case64(&[0x48, 0x89, 0x03]);
    store.gpr[0] = 0x5555_5555_5555_5555;
    store.gpr[3] = DATA + 0x13c;
    store.memory = vec![(DATA + 0x400, vec![9; 100]), (READ_ONLY, vec![7])];
    let load = |address| {
        let mut c = case64(&[0x48, 0x8b, 0x03]);
        c.gpr[3] = address;
        c
    };
    let addresses = [DATA + 0x13c, DATA + 0x440, READ_ONLY, CODE + 0x100];
    let cases: Vec<_> = std::iter::once(store.clone()).chain(addresses.map(load)).collect();
    let answers = oracle().execute(&cases);
    let first = done(answers[0].clone());
    assert_eq!(first.memory.iter().map(|(at, _)| *at).collect::<Vec<_>>(), [0x1100, 0x1140]);
    let template = layout::template();
    for ((case, address), answer) in cases[1..].iter().zip(addresses).zip(&answers[1..]) {
        let at = layout::backing_offset(address).expect("inside");
        let o = done(answer.clone());
        let bytes = case.backing(&template)[at..at + 8].to_vec();
        assert_eq!(o.gpr[0].to_le_bytes().to_vec(), bytes, "{address:#x}");
        assert!(o.memory.is_empty());
    }
}

#[test]
fn a_stack_of_16_bits_keeps_its_pointer() {
    for bits in [Bits::Bits16, Bits::Bits32, Bits::Bits64] {
        let mut nop = case(bits, &[0x90]);
        nop.selectors[2] = STACK16;
        nop.gpr[4] = 0x1234_1000 | if bits == Bits::Bits64 { 0x5678 << 32 } else { 0 };
        let o = once(&nop);
        assert_eq!((o.vector, o.gpr, o.selectors[2]), (1, nop.gpr, STACK16), "{bits:?}");
    }
}

#[test]
fn system_calls_are_lost_and_not_made() {
    let mut kill = case64(&[0x0f, 0x05]);
    kill.gpr[0] = libc::SYS_exit_group as u64;
    let mut int80 = case(Bits::Bits32, &[0xcd, 0x80]);
    int80.gpr[0] = 1; // exit(2)
    let nop = case64(&[0x90]);
    let answers = oracle().execute(&[kill, nop.clone(), int80, nop]);
    assert_eq!(answers[0], Answer::Lost(Lost::SystemCall(libc::SYS_exit_group as u32)));
    assert_eq!(answers[2], Answer::Lost(Lost::SystemCall(1)));
    assert_eq!(done(answers[1].clone()), done(answers[3].clone()));
}

#[test]
fn a_case_that_hangs_does_not_take_others_along() {
    let hang = trap(case64(&[0xeb, 0xfe])); // jmp $
    let nop = case64(&[0x90]);
    let mut oracle = oracle();
    for _ in 0..2 {
        let answers = oracle.execute(&[nop.clone(), hang.clone(), nop.clone(), nop.clone()]);
        assert_eq!(answers[1], Answer::Lost(Lost::Hung));
        assert_eq!(answers[0], answers[2]);
        assert_eq!(answers[0], answers[3]);
        assert_eq!(done(answers[0].clone()).vector, 1);
    }
}

#[test]
fn a_killed_child_is_replaced() {
    let mut oracle = oracle();
    let nop = case64(&[0x90]);
    let good = run(&mut oracle, &nop);
    let pid = oracle.process.as_ref().expect("alive").pid();
    // SAFETY: our own child.
    unsafe { libc::kill(pid, libc::SIGKILL) };
    // It may die before or behind the first case of the next batch, or before both.
    let answers = oracle.execute(&[nop.clone(), nop.clone()]);
    assert!(answers.iter().filter(|a| **a == Answer::Lost(Lost::Died(libc::SIGKILL))).count() <= 1);
    assert!(answers.contains(&Answer::Done(good.clone())));
    // The thread that started the child ends, and the child with it.
    let mut oracle = std::thread::spawn(|| Oracle::start().expect("again")).join().expect("no panic");
    assert_eq!(run(&mut oracle, &nop), good);
}

#[test]
fn impossible_states_are_refused() {
    let mut cases = vec![case64(&[0x90]); 5];
    cases[0].selectors[2] = 0;
    cases[1].selectors[3] = layout::ABSENT;
    cases[2].xsave[MXCSR + 3] = 0x80;
    cases[3].xsave[XSTATE_BV + 7] = 0x40;
    let answers = oracle().execute(&cases);
    for answer in &answers[..4] {
        assert!(matches!(answer, Answer::Lost(Lost::Refused(_))), "{answer:x?}");
    }
    assert_eq!(done(answers[4].clone()).vector, 1);
}

/// A small mixture, deterministic.
fn mixture(count: usize) -> Vec<Case> {
    let codes: [&[u8]; 10] = [
        &[0x48, 0x01, 0x03],
        &[0x48, 0x8b, 0x04, 0x4b],
        &[0x0f, 0x58, 0x03],
        &[0xd8, 0x03],
        &[0x50],
        &[0xc2, 8, 0],
        &[0xf3, 0x48, 0xab],
        &[0x0f, 0x0b],
        &[0x48, 0xf7, 0xf3],
        &[0xf0, 0x48, 0x0f, 0xb1, 0x0e],
    ];
    let mut state = 1_u64;
    let mut random = || {
        state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
        (state ^ state >> 29) >> 5
    };
    (0..count)
        .map(|_| {
            let mut c = case64(codes[random() as usize % codes.len()]);
            c.code_offset = (random() % 4096) as u16;
            for r in [0, 1, 2, 5, 8, 9] {
                c.gpr[r] = random();
            }
            c.gpr[1] %= 200;
            for r in [3, 6, 7] {
                c.gpr[r] = DATA + random() % 0x6000;
            }
            c.gpr[4] = STACK + random() % 0x2000;
            c.rflags |= random() & 0x8d5;
            c.end = if random() % 2 == 0 { End::Trap } else { End::SingleStep };
            (160..416).for_each(|n| c.xsave[n] = random() as u8);
            c.memory = vec![(DATA + random() % 0x2f00, (0..random() % 200).map(|n| n as u8).collect())];
            c
        })
        .collect()
}

#[test]
fn a_thousand_cases_twice_in_another_order() {
    let cases = mixture(1000);
    let mut oracle = oracle();
    let first = oracle.execute(&cases);
    let order: Vec<_> = (0..cases.len()).map(|n| n * 617 % cases.len()).collect();
    let shuffled: Vec<_> = order.iter().map(|n| cases[*n].clone()).collect();
    let second = oracle.execute(&shuffled);
    for (n, answer) in order.iter().zip(&second) {
        assert!(&first[*n] == answer, "{:x?} {:x?}", cases[*n].bytes, cases[*n].gpr);
    }
    let vectors: std::collections::BTreeSet<_> = first.into_iter().map(|a| done(a).vector).collect();
    assert!([0, 1, 6, 14].iter().all(|v| vectors.contains(v)), "{vectors:?}");
}

#[test]
fn nothing_is_left_behind() {
    use std::os::unix::fs::MetadataExt;
    let oracle = oracle();
    let pid = oracle.process.as_ref().expect("alive").pid();
    let memfd = std::fs::metadata(format!("/proc/self/fd/{}", oracle.shared.fd())).expect("open").ino();
    let mapped = || {
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap_or_default();
        maps.lines().any(|l| l.contains("softkvm-oracle") && l.contains(&format!(" {memfd} ")))
    };
    let open = || {
        let mut fds = std::fs::read_dir("/proc/self/fd").expect("proc").flatten();
        fds.any(|f| {
            std::fs::metadata(f.path()).is_ok_and(|m| m.ino() == memfd && m.dev() != 0 && m.is_file())
        })
    };
    assert!(mapped() && open());
    drop(oracle);
    assert!(!mapped(), "the mapping");
    assert!(!std::path::Path::new(&format!("/proc/{pid}")).exists(), "the child");
}
