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
        ("far", far::ROWS),
        ("far", far::OTHERS),
        ("fast_calls", fast_calls::ROWS),
        ("flags", flags::ROWS),
        ("modes", modes::ROWS),
        ("ports", ports::ROWS),
        ("segments", segments::ROWS),
        ("segments", segments::OTHERS),
        ("software_int", software_int::ROWS),
        ("table_registers", table_registers::ROWS),
        ("time", time::ROWS),
    ]
}

/// Privileged instructions without a row, and why.
const WITHOUT: &[(Mnemonic, &str)] = &[];

/// Legacy encodings of extinct or foreign processors: known with a decoder option only, or VIA's.
fn foreign(code: Code) -> bool {
    let padlock = code.cpuid_features().iter().any(|f| format!("{f:?}").contains("PADLOCK"));
    padlock || !code.op_code().is_instruction() || code.op_code().decoder_option() != DecoderOptions::NONE
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

/// Opcodes that 64-bit mode lacks, and real mode's, but for those that are a size of an instruction that it has.
fn of_some_modes(code: Code) -> bool {
    let i = code.op_code();
    let elsewhere = i.mode16() || i.mode32();
    elsewhere && (!i.mode64() || !i.real_mode())
}

#[test]
fn every_instruction_of_some_modes_has_a_row() {
    let covered: BTreeSet<Mnemonic> =
        tables().iter().flat_map(|(_, rows)| codes(rows)).map(Code::mnemonic).collect();
    let missing: BTreeSet<Mnemonic> = Code::values()
        .filter(|c| c.encoding() == EncodingKind::Legacy && of_some_modes(*c) && !foreign(*c))
        .map(Code::mnemonic)
        .filter(|m| !covered.contains(m))
        .collect();
    assert!(missing.is_empty(), "{} without a row: {missing:?}", missing.len());
}

#[test]
fn how_many() {
    let rows: usize = tables().iter().map(|(_, rows)| rows.len()).sum();
    let cases: usize = tables().iter().flat_map(|(_, rows)| rows.iter().map(|r| cases(r).len())).sum();
    println!("{rows} rows, {cases} cases");
}
