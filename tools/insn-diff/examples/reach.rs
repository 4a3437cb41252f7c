//! Which offered cells the host itself answers with #UD: `reach [64|32]`.

use insn_diff::Bits;
use insn_diff::coverage::{Class, Denominator};
use insn_diff::generate::Generator;
use insn_diff::oracle::{Answer, Oracle};
use std::collections::BTreeMap;

fn main() {
    let bits = match std::env::args().nth(1).as_deref() {
        Some("16") => Bits::Bits16,
        Some("32") => Bits::Bits32,
        _ => Bits::Bits64,
    };
    let denominator = Denominator::of_host(bits);
    let mut generator = Generator::with_seed(bits, 1);
    let mut oracle = match Oracle::start() {
        Ok(oracle) => oracle,
        Err(error) => return eprintln!("{error}"),
    };
    let mut vectors: BTreeMap<u8, usize> = BTreeMap::new();
    let mut by_mnemonic: BTreeMap<String, [usize; 33]> = BTreeMap::new();
    for cell in denominator.cells.iter().filter(|c| *denominator.class(c) == Class::Offered) {
        let cases: Vec<_> = (0..8).filter_map(|_| generator.case(cell)).collect();
        oracle.submit(&cases);
        let answers = oracle.collect();
        let (mut ud, mut lost) = (0, Vec::new());
        let e = by_mnemonic.entry(format!("{:?}", cell.code.mnemonic())).or_insert([0; 33]);
        for (case, answer) in cases.iter().zip(&answers) {
            match answer {
                Answer::Done(o) => {
                    let own = o.vector == 6 && o.rip == case.rip();
                    ud += usize::from(own);
                    *vectors.entry(if own { 255 } else { o.vector }).or_default() += 1;
                    let v = if o.vector == 6 && !own { 1 } else { o.vector };
                    e[v.min(32) as usize] += 1;
                }
                Answer::Lost(why) => lost.push((why.clone(), case.bytes.clone())),
            }
        }
        if ud == answers.len() {
            println!("#UD always: {cell} {:x?}", cases[0].bytes);
        } else if ud > 0 {
            println!("#UD {ud} of {}: {cell}", answers.len());
        }
        if !lost.is_empty() {
            println!("lost: {cell} {:x?}", lost);
        }
    }
    println!("{vectors:?}");
    for (m, v) in by_mnemonic {
        let all: usize = v.iter().sum();
        if v[1] * 100 < all * 55 {
            println!(
                "{m}: {} of {all} completed; {:?}",
                v[1],
                v.iter().enumerate().filter(|x| *x.1 > 0 && x.0 != 1).collect::<Vec<_>>()
            );
        }
    }
}
