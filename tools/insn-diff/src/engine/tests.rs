//! The engine on cases whose outcome is plain.

use super::*;
use crate::layout::{CODE, CODE16, DATA, DATA16, FLAT, HOLE, READ_ONLY, STACK, STACK16};

fn case(bits: Bits, bytes: &[u8]) -> Case {
    let data = if bits == Bits::Bits16 { DATA16 } else { FLAT };
    let stack = if bits == Bits::Bits16 { STACK16 } else { FLAT };
    let mut xsave = Box::new([0; XSAVE]);
    xsave[..2].copy_from_slice(&0x37f_u16.to_le_bytes());
    xsave[24..28].copy_from_slice(&0x1f80_u32.to_le_bytes());
    xsave[512] = 3;
    let mut gpr = [0; 16];
    gpr[4] = if bits == Bits::Bits16 { 0x1000 } else { STACK + PAGE };
    let null = bits == Bits::Bits64;
    Case {
        bits,
        end: End::SingleStep,
        bytes: bytes.to_vec(),
        code_offset: 0x800,
        gpr,
        rflags: 2,
        selectors: [
            if null { 0 } else { data },
            bits.code_selector(),
            stack,
            if null { 0 } else { data },
            0,
            0,
        ],
        fs_base: 0,
        gs_base: 0,
        xsave,
        memory: Vec::new(),
    }
}

fn run(case: &Case) -> Outcome {
    Engine::new().expect("an engine").execute(case).expect("no error").expect("an outcome")
}

#[test]
fn add_and_its_flags() {
    for bits in [Bits::Bits16, Bits::Bits32, Bits::Bits64] {
        for end in [End::SingleStep, End::Trap] {
            let mut c = case(bits, &[0x00, 0xc8]); // add al, cl
            c.end = end;
            c.gpr[0] = 0x1_7f;
            c.gpr[1] = 1;
            let o = run(&c);
            assert_eq!(o.vector, if end == End::Trap { 6 } else { 1 }, "{bits:?}");
            assert_eq!(o.gpr[0], 0x1_80);
            assert_eq!(o.rip, c.rip() + 2);
            let tf = if end == End::Trap { 0x1_0000 } else { TF };
            assert_eq!(o.rflags, 2 | IF | tf | 0x890, "{bits:?} {end:?}"); // OF, SF, AF
            assert_eq!(o.selectors[1], bits.code_selector());
            assert!(o.memory.is_empty());
        }
    }
}

#[test]
fn stores_are_reported_and_undone() {
    let mut engine = Engine::new().expect("an engine");
    let mut c = case(Bits::Bits64, &[0x88, 0x07]); // mov [rdi], al
    c.gpr[7] = DATA + 0x7f;
    c.gpr[0] = !u64::from(layout::template()[PAGE as usize + 0x7f]) & 0xff;
    for _ in 0..2 {
        let o = engine.execute(&c).expect("no error").expect("an outcome");
        assert_eq!(o.memory.len(), 1);
        assert_eq!(o.memory[0].0, (PAGE + 0x40) as u32);
        assert_eq!(u64::from(o.memory[0].1[0x3f]), c.gpr[0]);
    }
}

#[test]
fn page_faults() {
    for (address, bytes, error) in [
        (HOLE, [0x8a, 0x07], 4),
        (HOLE, [0x88, 0x07], 6),
        (READ_ONLY, [0x88, 0x07], 7),
        (CODE, [0x88, 0x07], 7),
        (DATA, [0xff, 0xe7], 0x15),
    ] {
        let mut c = case(Bits::Bits64, &bytes);
        c.gpr[7] = address;
        let o = run(&c);
        // A jump to what cannot be executed is done; the fetch behind it faults.
        if error == 0x15 {
            assert_eq!((o.vector, o.rip), (1, address));
            continue;
        }
        assert_eq!((o.vector, o.error_code, o.cr2), (14, error, address));
        assert_eq!(o.rip, c.rip());
    }
    let mut c = case(Bits::Bits32, &[0x90, 0x0f, 0xaf, 0xc0]);
    c.code_offset = 0xffe;
    c.bytes = vec![0x0f, 0xaf, 0xc0];
    let o = run(&c);
    assert_eq!((o.vector, o.error_code, o.cr2), (14, 0x14, CODE + PAGE));
}

#[test]
fn segments_and_bases() {
    let mut c = case(Bits::Bits64, &[0x64, 0x8a, 0x07]); // mov al, fs:[rdi]
    c.fs_base = DATA;
    c.gpr[7] = 8;
    let template = layout::template();
    assert_eq!(run(&c).gpr[0], u64::from(template[PAGE as usize + 8]));
    let mut c = case(Bits::Bits16, &[0x8a, 0x07]); // mov al, [bx]
    c.gpr[3] = 9;
    let o = run(&c);
    assert_eq!(o.gpr[0], u64::from(template[PAGE as usize + 9]));
    assert_eq!(o.selectors, [DATA16, CODE16, STACK16, DATA16, 0, 0]);
    let c = case(Bits::Bits32, &[0x64, 0x8a, 0x07]); // FS is null
    assert_eq!((run(&c).vector, run(&c).error_code), (13, 0));
}

#[test]
fn an_endless_case_ends_by_a_kick() {
    let mut engine = Engine::new().expect("an engine");
    let watch = engine.watch();
    let mut c = case(Bits::Bits64, &[0xeb, 0xfe]);
    c.end = End::Trap;
    let kicker = std::thread::spawn(move || {
        while watch.progress() & 1 == 0 {
            std::thread::yield_now();
        }
        // Too early: it is not believed.
        watch.kick();
        std::thread::sleep(2 * PATIENCE);
        watch.kick();
    });
    assert_eq!(engine.execute(&c).expect("no error"), Err(Ending::Hung));
    kicker.join().expect("the kicker ends");
    let o = engine.execute(&case(Bits::Bits64, &[0x90])).expect("no error").expect("an outcome");
    assert_eq!(o.vector, 1);
}

#[test]
fn vector_state_goes_through() {
    let mut c = case(Bits::Bits64, &[0x0f, 0x28, 0xc1]); // movaps xmm0, xmm1
    c.xsave[160 + 16..160 + 32].copy_from_slice(&[7; 16]);
    let o = run(&c);
    assert_eq!(o.xsave[160..176], [7; 16]);
    assert_eq!(o.xsave[512] & 2, 2);
}
