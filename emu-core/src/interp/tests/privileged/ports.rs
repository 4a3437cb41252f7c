//! IN, OUT, INS, OUTS under IOPL and the I/O permission bitmap.

use super::Set::*;
use super::Want::*;
use super::*;

/// The map behind the last byte of the TSS: no port is allowed.
const NO_MAP: Set = Tss(0x66, &[0xff, 0x0f]);
/// The map at 100H, and of its ports only 10H to 13H are refused.
const MAP: Set = Tss(0x66, &[0, 1]);
const MAP_BITS: Set = Tss(0x102, &[0x0f]);
/// The map at 7FFH: only one of the two bytes that are read lies within the limit.
const LAST_BYTE: Set = Tss(0x66, &[0xff, 7]);
/// The map at 7FEH: ports 0 to 7 are within the limit.
const LAST_WORD: Set = Tss(0x66, &[0xfe, 7]);
/// A 16-bit TSS has no map.
const TSS16: Set = Do(|r| r.cpu().seg[Seg::Tr as usize].typ = 3);
/// The TSS ends before the map's base address.
const SHORT: Set = Do(|r| r.cpu().seg[Seg::Tr as usize].limit = 0x66);
const DX: fn(u64) -> Set = |v| Reg(Gpr::Rdx, v);
const DX_11: Set = Reg(Gpr::Rdx, 0x11);
const DX_0F: Set = Reg(Gpr::Rdx, 0x0f);
const DX_14: Set = Reg(Gpr::Rdx, 0x14);
const DX_08: Set = Reg(Gpr::Rdx, 8);
const NO_COUNT: Set = Reg(Gpr::Rcx, 0);

#[rustfmt::skip]
pub(super) static ROWS: &[Row] = &[
    // ---- without a look at the map
    (REAL, CPL0, "E4 80", &[NO_MAP], Asks, "SDM vol. 2A, IN: CR0.PE=0"),
    (REAL, CPL0, "E6 80", &[NO_MAP], Done, "SDM vol. 2B, OUT: CR0.PE=0"),
    (REAL, CPL0, "EC", &[TSS16], Asks, "SDM vol. 2A, IN: CR0.PE=0"),
    (REAL, CPL0, "EE", &[SHORT], Done, "SDM vol. 2B, OUT: CR0.PE=0"),
    (PROTECTED, CPL0, "E4 80", &[NO_MAP, Iopl(0)], Asks, "SDM vol. 1, 19.5.1: CPL<=IOPL"),
    (PROTECTED, CPL0 | CPL1, "E5 80", &[NO_MAP, Iopl(1)], Asks, "SDM vol. 1, 19.5.1: CPL<=IOPL"),
    (PROTECTED, CPL0 | CPL1 | CPL2, "E6 80", &[NO_MAP, Iopl(2)], Done, "SDM vol. 1, 19.5.1: CPL<=IOPL"),
    (PROTECTED, ANY, "E7 80", &[NO_MAP, Iopl(3)], Done, "SDM vol. 1, 19.5.1: CPL<=IOPL"),
    (PROTECTED, ANY, "EC", &[TSS16, Iopl(3)], Asks, "SDM vol. 1, 19.5.1: CPL<=IOPL"),
    (PROTECTED, ANY, "ED", &[SHORT, Iopl(3)], Asks, "SDM vol. 1, 19.5.1: CPL<=IOPL"),
    (PROTECTED, ANY, "EE", &[NO_MAP, Iopl(3)], Done, "SDM vol. 1, 19.5.1: CPL<=IOPL"),
    (PROTECTED, ANY, "66 EF", &[NO_MAP, Iopl(3)], Done, "SDM vol. 1, 19.5.1: CPL<=IOPL"),
    (PROTECTED, ANY, "66 ED", &[NO_MAP, Iopl(3)], Asks, "SDM vol. 1, 19.5.1: CPL<=IOPL"),
    (PROTECTED, ANY, "66 E5 80", &[NO_MAP, Iopl(3)], Asks, "SDM vol. 1, 19.5.1: CPL<=IOPL"),
    (PROTECTED, ANY, "66 E7 80", &[NO_MAP, Iopl(3)], Done, "SDM vol. 1, 19.5.1: CPL<=IOPL"),
    (PROTECTED, ANY, "6C", &[NO_MAP, Iopl(3)], Asks, "SDM vol. 2A, INS"),
    (PROTECTED, ANY, "6D", &[NO_MAP, Iopl(3)], Asks, "SDM vol. 2A, INS"),
    (PROTECTED, ANY, "66 6D", &[NO_MAP, Iopl(3)], Asks, "SDM vol. 2A, INS"),
    (PROTECTED, ANY, "6E", &[NO_MAP, Iopl(3)], Done, "SDM vol. 2B, OUTS"),
    (PROTECTED, ANY, "6F", &[NO_MAP, Iopl(3)], Done, "SDM vol. 2B, OUTS"),
    (PROTECTED, ANY, "66 6F", &[NO_MAP, Iopl(3)], Done, "SDM vol. 2B, OUTS"),
    // ---- no map, CPL > IOPL or virtual-8086 mode at any IOPL
    (PROTECTED, OUTER, "E4 80", &[NO_MAP, Iopl(0)], GP0, "SDM vol. 1, 19.5.2"),
    (PROTECTED, CPL2 | CPL3, "E5 80", &[NO_MAP, Iopl(1)], GP0, "SDM vol. 1, 19.5.2"),
    (PROTECTED, CPL3, "E6 80", &[NO_MAP, Iopl(2)], GP0, "SDM vol. 1, 19.5.2"),
    (PROTECTED, OUTER, "E7 80", &[NO_MAP], GP0, "SDM vol. 1, 19.5.2"),
    (PROTECTED, OUTER, "EC", &[NO_MAP], GP0, "SDM vol. 1, 19.5.2"),
    (PROTECTED, OUTER, "ED", &[NO_MAP], GP0, "SDM vol. 1, 19.5.2"),
    (PROTECTED, OUTER, "EE", &[NO_MAP], GP0, "SDM vol. 1, 19.5.2"),
    (PROTECTED, OUTER, "EF", &[NO_MAP], GP0, "SDM vol. 1, 19.5.2"),
    (PROTECTED, OUTER, "6C", &[NO_MAP], GP0, "SDM vol. 2A, INS"),
    (PROTECTED, OUTER, "6D", &[NO_MAP], GP0, "SDM vol. 2A, INS"),
    (PROTECTED, OUTER, "6E", &[NO_MAP], GP0, "SDM vol. 2B, OUTS"),
    (PROTECTED, OUTER, "6F", &[NO_MAP], GP0, "SDM vol. 2B, OUTS"),
    (PROTECTED, OUTER, "F3 6C", &[NO_MAP, Reg(Gpr::Rcx, 4)], GP0, "SDM vol. 2A, INS"),
    (PROTECTED, OUTER, "F3 6F", &[NO_MAP, Reg(Gpr::Rcx, 4)], GP0, "SDM vol. 2B, OUTS"),
    (PROTECTED, OUTER, "F3 6C", &[NO_MAP, NO_COUNT], Done, "SDM vol. 2B, REP: rCX=0, no iteration"),
    (PROTECTED, OUTER, "F3 6E", &[NO_MAP, NO_COUNT], Done, "SDM vol. 2B, REP: rCX=0, no iteration"),
    (V86, CPL3, "E4 80", &[NO_MAP, Iopl(3)], GP0, "SDM vol. 3B, 20.2.8.1: the map decides, not IOPL"),
    (V86, CPL3, "E6 80", &[NO_MAP, Iopl(3)], GP0, "SDM vol. 3B, 20.2.8.1"),
    (V86, CPL3, "EC", &[NO_MAP, Iopl(3)], GP0, "SDM vol. 3B, 20.2.8.1"),
    (V86, CPL3, "EE", &[NO_MAP, Iopl(3)], GP0, "SDM vol. 3B, 20.2.8.1"),
    (V86, CPL3, "6C", &[NO_MAP, Iopl(3)], GP0, "SDM vol. 3B, 20.2.8.1"),
    (V86, CPL3, "6E", &[NO_MAP, Iopl(3)], GP0, "SDM vol. 3B, 20.2.8.1"),
    (PE, CPL3, "EC", &[TSS16], GP0, "SDM vol. 1, 19.5.2: no map in a 16-bit TSS"),
    (PE, CPL3, "EE", &[SHORT], GP0, "SDM vol. 1, 19.5.2: no map base within the limit"),
    (PE, CPL3, "EC", &[LAST_BYTE], GP0, "SDM vol. 1, 19.5.2: two bytes are read"),
    (PE, CPL3, "EC", &[LAST_WORD], Asks, "SDM vol. 1, 19.5.2: two bytes are read"),
    (PE, CPL3, "EC", &[LAST_WORD, DX_08], GP0, "SDM vol. 1, 19.5.2: beyond the limit"),
    // ---- a map that refuses 10H to 13H
    (PE, CPL3, "E4 0F", &[MAP, MAP_BITS], Asks, "SDM vol. 1, 19.5.2"),
    (PE, CPL3, "E4 10", &[MAP, MAP_BITS], GP0, "SDM vol. 1, 19.5.2"),
    (PE, CPL3, "E4 13", &[MAP, MAP_BITS], GP0, "SDM vol. 1, 19.5.2"),
    (PE, CPL3, "E4 14", &[MAP, MAP_BITS], Asks, "SDM vol. 1, 19.5.2"),
    (PE, CPL3, "E5 0F", &[MAP, MAP_BITS], GP0, "SDM vol. 1, 19.5.2: each byte of the access"),
    (PE, CPL3, "E5 14", &[MAP, MAP_BITS], Asks, "SDM vol. 1, 19.5.2: each byte of the access"),
    (CODE32.or(LONG), CPL3, "E5 0D", &[MAP, MAP_BITS], GP0, "SDM vol. 1, 19.5.2: four bytes"),
    (CODE32.or(LONG), CPL3, "66 E5 0D", &[MAP, MAP_BITS], Asks, "SDM vol. 1, 19.5.2: two bytes"),
    (P16.or(V86), CPL3, "66 E5 0D", &[MAP, MAP_BITS], GP0, "SDM vol. 1, 19.5.2: four bytes"),
    (P16.or(V86), CPL3, "E5 0D", &[MAP, MAP_BITS], Asks, "SDM vol. 1, 19.5.2: two bytes"),
    (LONG, CPL3, "48 E5 0D", &[MAP, MAP_BITS], GP0, "SDM vol. 2A, IN: REX.W is ignored, four bytes"),
    (PE, CPL3, "E6 12", &[MAP, MAP_BITS], GP0, "SDM vol. 2B, OUT"),
    (PE, CPL3, "E6 14", &[MAP, MAP_BITS], Done, "SDM vol. 2B, OUT"),
    (PE, CPL3, "EE", &[MAP, MAP_BITS, DX_11], GP0, "SDM vol. 2B, OUT"),
    (PE, CPL3, "EE", &[MAP, MAP_BITS, DX_0F], Done, "SDM vol. 2B, OUT"),
    (PE, CPL3, "EF", &[MAP, MAP_BITS, DX_0F], GP0, "SDM vol. 2B, OUT: each byte of the access"),
    (PE, CPL3, "6C", &[MAP, MAP_BITS, DX_11], GP0, "SDM vol. 2A, INS"),
    (PE, CPL3, "6C", &[MAP, MAP_BITS, DX_14], Asks, "SDM vol. 2A, INS"),
    (PE, CPL3, "6E", &[MAP, MAP_BITS, DX_11], GP0, "SDM vol. 2B, OUTS"),
    (PE, CPL3, "6E", &[MAP, MAP_BITS, DX_14], Done, "SDM vol. 2B, OUTS"),
    (ALL, ANY, "F0 EC", &[Iopl(3)], UD, "SDM vol. 2A, IN: LOCK"),
    (ALL, ANY, "F0 EE", &[Iopl(3)], UD, "SDM vol. 2B, OUT: LOCK"),
    (ALL, ANY, "F0 6C", &[Iopl(3)], UD, "SDM vol. 2A, INS: LOCK"),
    (ALL, ANY, "F0 6E", &[Iopl(3)], UD, "SDM vol. 2B, OUTS: LOCK"),
];

#[test]
fn table() {
    check(ROWS);
}

/// The whole map, a port at a time: exactly the ports whose bit is clear are allowed.
#[test]
fn each_port_of_the_map() {
    for port in 0..64u64 {
        for size in [1u64, 2, 4] {
            let code: &[u8] = match size {
                1 => &[0xec],
                2 => &[0x66, 0xed],
                _ => &[0xed],
            };
            let refused = port < 0x14 && port + size > 0x10;
            let want = if refused { GP0 } else { Asks };
            let sets = [MAP, MAP_BITS, DX(port)];
            assert_eq!(case(Mode::Long, 3, code, &sets, &want), None, "port {port:x}, {size} bytes");
        }
    }
}
