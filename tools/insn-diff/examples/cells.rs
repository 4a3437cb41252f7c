//! What the denominator holds on this host, and how well the generator serves it: `cells [64|32|16]`.

use insn_diff::Bits;
use insn_diff::coverage::{Class, Coverage, Denominator, classify};
use insn_diff::generate::Generator;
use std::time::Instant;

fn main() {
    let bits = match std::env::args().nth(1).as_deref() {
        Some("16") => Bits::Bits16,
        Some("32") => Bits::Bits32,
        _ => Bits::Bits64,
    };
    let denominator = Denominator::of_host(bits);
    println!("{}", Coverage::new().report(&denominator));
    for (why, codes) in &denominator.excluded {
        println!("  {codes:>5} codes are no part of it: {why}");
    }
    let mut generator = Generator::with_seed(bits, 1);
    let (mut none, mut other, mut offered) = (0, 0, 0);
    for cell in &denominator.cells {
        offered += usize::from(*denominator.class(cell) == Class::Offered);
        match generator.case(cell) {
            None => {
                println!("no case: {cell}");
                none += 1;
            }
            Some(case) if classify(&case) != Some(*cell) => other += 1,
            Some(_) => {}
        }
    }
    let all = denominator.cells.len();
    println!("{all} cells, {offered} offered; {none} without a case, {other} that decode to another cell");
    for (name, wild) in [("directed", false), ("wild", true)] {
        let start = Instant::now();
        let mut bytes = 0;
        let many = 200_000;
        for n in 0..many {
            let cell = &denominator.cells[n * 7919 % all];
            let case = if wild { Some(generator.wild()) } else { generator.case(cell) };
            bytes += case.map_or(0, |case| case.bytes.len());
        }
        let each = start.elapsed().as_nanos() as f64 / many as f64;
        println!("{name}: {each:.0} ns for a case of {:.1} bytes", bytes as f64 / many as f64);
    }
}
