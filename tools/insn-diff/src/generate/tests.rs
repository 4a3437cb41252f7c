//! Every cell has a case; a seed has its cases.

use super::*;
use crate::coverage::{Class, Denominator, Form};
use crate::layout::{self, DATA, ISLAND};

fn denominators() -> [Denominator; 2] {
    [Bits::Bits32, Bits::Bits64].map(Denominator::of_host)
}

#[test]
fn every_cell_has_a_case_that_decodes_to_it() {
    for denominator in denominators() {
        let mut generator = Generator::with_seed(denominator.bits, 1);
        let mut none = Vec::new();
        for cell in &denominator.cells {
            match generator.case(cell) {
                Some(case) => {
                    assert_eq!(classify(&case), Some(*cell), "{cell}: {:x?}", case.bytes);
                    assert!(memory_is_inside(&case), "{cell}");
                }
                None => none.push(cell.to_string()),
            }
        }
        assert!(none.is_empty(), "{:?}: {} without a case: {none:#?}", denominator.bits, none.len());
    }
}

#[test]
fn cases_are_what_the_contract_says() {
    for denominator in denominators() {
        let bits = denominator.bits;
        let mut generator = Generator::with_seed(bits, 2);
        for cell in denominator.cells.iter().step_by(3) {
            let Some(case) = generator.case(cell) else {
                continue;
            };
            let instruction = decode(&case);
            assert_eq!(case.bits, bits);
            assert_eq!(case.selectors[1], bits.code_selector());
            assert_eq!(case.rflags & !0x24_4cd5, 2, "{cell}");
            assert!(case.bytes.len() <= LONGEST && instruction.len() == case.bytes.len(), "{cell}");
            assert_eq!((case.code_offset as usize + case.bytes.len()) % 2, 0, "UD2 stands behind {cell}");
            if bits == Bits::Bits64 {
                assert_eq!(case.selectors[4..], [0, 0]);
                assert!(case.fs_base < 1 << 47 && case.gs_base < 1 << 47);
            } else {
                assert!(case.gpr[..8].iter().all(|r| r >> 32 == 0) && case.gpr[8..] == [0; 8], "{cell}");
            }
            if instruction.flow_control() != FlowControl::Next {
                assert_eq!(case.end, End::SingleStep, "{cell}");
            }
        }
    }
}

#[test]
fn a_seed_gives_the_same_cases() {
    let [_, denominator] = denominators();
    let run = |seed| {
        let mut generator = Generator::with_seed(Bits::Bits64, seed);
        let mut cases: Vec<_> = denominator.cells.iter().step_by(50).map(|c| generator.case(c)).collect();
        cases.extend((0..100).map(|_| Some(generator.wild())));
        cases
    };
    assert!(run(3) == run(3));
    assert!(run(3) != run(4));
}

#[test]
fn most_gathered_elements_are_in_data() {
    for denominator in denominators() {
        let mut generator = Generator::with_seed(denominator.bits, 8);
        let (mut inside, mut all) = (0, 0);
        for cell in &denominator.cells {
            let Some(case) = generator.case(cell) else {
                continue;
            };
            let instruction = decode(&case);
            let Some(n) = vsib_number(&instruction) else {
                continue;
            };
            let indices = generator.image.vector(&case.xsave, n);
            let wide = instruction.vsib() == Some(true);
            let operand = u32::from(instruction.op1_kind() == OpKind::Memory);
            let draft = Draft { case, cell: *cell, instruction, target: None, fixed: 0 };
            for element in 0..2 {
                let address = instruction.virtual_address(operand, element, |register, element, _| {
                    let part = |size: usize| &indices[element * size..element * size + size];
                    let value = |part: &[u8]| part.iter().rev().fold(0, |v, b| v << 8 | u64::from(*b));
                    Some(match register {
                        r if r.is_segment_register() => draft.base(r),
                        r if r.is_vector_register() && wide => value(part(8)),
                        r if r.is_vector_register() => value(part(4)) as i32 as u64,
                        r => draft.get(r),
                    })
                });
                all += 1;
                inside += u32::from(address.is_some_and(|a| (DATA..ISLAND).contains(&a)));
            }
        }
        assert!(all == 0 || inside * 100 > all * 70, "{:?}: {inside} of {all}", denominator.bits);
    }
}

#[test]
fn most_memory_operands_are_in_data() {
    for denominator in denominators() {
        let mut generator = Generator::with_seed(denominator.bits, 7);
        let cells = denominator.cells.iter().filter(|cell| {
            cell.form == Form::Memory
                && *denominator.class(cell) == Class::Offered
                && !cell.code.op_code().is_stack_instruction()
        });
        let (mut inside, mut all) = (0, 0);
        for cell in cells {
            let Some(case) = generator.case(cell) else {
                continue;
            };
            let instruction = decode(&case);
            let Some(operand) =
                (0..instruction.op_count()).find(|n| instruction.op_kind(*n) == OpKind::Memory)
            else {
                continue;
            };
            if vsib_number(&instruction).is_some() {
                continue;
            }
            let draft = Draft { case, cell: *cell, instruction, target: None, fixed: 0 };
            let address = instruction.virtual_address(operand, 0, |register, _, _| {
                Some(match register {
                    r if r.is_segment_register() => draft.base(r),
                    r => draft.get(r),
                })
            });
            all += 1;
            inside += u32::from(address.is_some_and(|a| (DATA..ISLAND).contains(&a)));
            assert!(address.is_some_and(|a| a >> 63 == 0), "{cell} {address:x?}");
        }
        assert!(inside * 100 > all * 70, "{:?}: {inside} of {all}", denominator.bits);
    }
}

/// Whether a case's memory lies where it may.
pub fn memory_is_inside(case: &Case) -> bool {
    case.memory.iter().all(|(address, bytes)| {
        layout::AREAS.iter().any(|area| {
            area.permission != layout::Permission::Execute
                && *address >= area.start
                && address + bytes.len() as u64 <= area.end()
        })
    })
}
