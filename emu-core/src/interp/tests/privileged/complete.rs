//! Whether every privileged or mode-dependent instruction has a row.

use super::*;
use iced_x86::{EncodingKind, Mnemonic};

/// Every table.
fn tables() -> Vec<(&'static str, &'static [Row])> {
    vec![
        ("bases", bases::ROWS),
        ("caches", caches::ROWS),
        ("control", control::ROWS),
        ("debug", debug::ROWS),
        ("extended_state", extended_state::ROWS),
        ("fast_calls", fast_calls::ROWS),
        ("flags", flags::ROWS),
        ("ports", ports::ROWS),
        ("table_registers", table_registers::ROWS),
        ("time", time::ROWS),
    ]
}

/// Privileged instructions without a row, and why.
const WITHOUT: &[(Mnemonic, &str)] = &[];

/// Legacy encodings that the decoder knows only with an option for an extinct or foreign processor.
fn foreign(code: Code) -> bool {
    !code.op_code().is_instruction() || {
        let o = code.op_code().decoder_option();
        o != DecoderOptions::NONE
    }
}

fn privileged(code: Code) -> bool {
    let i = code.op_code();
    i.is_privileged() || i.must_be_cpl0() || i.is_input_output() || i.cpl0() && !i.cpl3()
}

#[test]
fn every_privileged_instruction_has_a_row() {
    let covered: BTreeSet<Code> = tables().iter().flat_map(|(_, rows)| codes(rows)).collect();
    let missing: Vec<Code> = Code::values()
        .filter(|c| c.encoding() == EncodingKind::Legacy && privileged(*c) && !foreign(*c))
        .filter(|c| !covered.contains(c) && !WITHOUT.iter().any(|(m, _)| *m == c.mnemonic()))
        .collect();
    assert!(missing.is_empty(), "{} without a row: {missing:?}", missing.len());
}

#[test]
fn how_many() {
    let rows: usize = tables().iter().map(|(_, rows)| rows.len()).sum();
    let cases: usize = tables().iter().flat_map(|(_, rows)| rows.iter().map(|r| cases(r).len())).sum();
    println!("{rows} rows, {cases} cases");
}
