//! The other process: what it is told on its standard input, and what it answers on its standard output.
//!
//! It knows the plan (by the guest's name), and nothing else of the first VM but these bytes.

use super::dirty::Pages;
use super::machine::{Machine, Plan, Position};
use super::outside::{Outside, Record};
use super::saved::{Order, Saved};
use std::io::{Read, Write};
use std::process::{Command, Stdio};
use std::sync::Arc;

fn row(out: &mut Vec<u8>, b: &[u8]) {
    out.extend_from_slice(&(b.len() as u64).to_le_bytes());
    out.extend_from_slice(b);
}

fn take<'a>(from: &mut &'a [u8]) -> Option<&'a [u8]> {
    let (len, rest) = from.split_first_chunk::<8>()?;
    let (row, rest) = rest.split_at_checked(u64::from_le_bytes(*len) as usize)?;
    *from = rest;
    Some(row)
}

fn words(w: &[u64]) -> Vec<u8> {
    w.iter().flat_map(|v| v.to_le_bytes()).collect()
}

fn to_words(b: &[u8]) -> Vec<u64> {
    b.as_chunks::<8>().0.iter().map(|c| u64::from_le_bytes(*c)).collect()
}

fn position_words(p: &Position) -> Vec<u8> {
    let mut w = vec![p.slice as u64, p.used];
    w.extend(&p.retired);
    words(&w)
}

fn position(b: &[u8]) -> Option<Position> {
    let w = to_words(b);
    Some(Position { slice: *w.first()? as usize, used: *w.get(1)?, retired: w.get(2..)?.to_vec() })
}

/// What came of a run in the other process.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Answer {
    /// The state at the end.
    pub saved: Saved,
    /// The exits since it was restored.
    pub log: Vec<Record>,
    /// Where the run ended.
    pub position: Position,
    /// The pages that it wrote.
    pub dirty: Pages,
}

/// Lets `program --resume GUEST` run a saved VM to its end.
pub fn ask(
    program: &str,
    guest: &str,
    saved: &Saved,
    order: Order,
    outside: &Outside,
    at: &Position,
) -> Option<Answer> {
    let mut child = Command::new(program)
        .args(["--resume", guest])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .ok()?;
    let mut told = Vec::new();
    row(&mut told, &[u8::from(order == Order::Firecracker)]);
    row(&mut told, &outside.to_bytes());
    row(&mut told, &position_words(at));
    row(&mut told, &saved.to_bytes());
    child.stdin.take()?.write_all(&told).ok()?;
    let out = child.wait_with_output().ok()?;
    let from = &mut out.stdout.as_slice();
    let saved = Saved::from_bytes(take(from)?)?;
    let position = position(take(from)?)?;
    let dirty = Pages(to_words(take(from)?));
    let mut log = Vec::new();
    while !from.is_empty() {
        let n = to_words(take(from)?);
        let what = String::from_utf8(take(from)?.to_vec()).ok()?;
        log.push(Record { vcpu: *n.first()? as usize, retired: *n.get(1)?, what });
    }
    Some(Answer { saved, log, position, dirty })
}

/// The other side of [`ask`].
pub fn serve(plan: &Plan, from: &mut dyn Read, to: &mut dyn Write) -> Option<()> {
    let mut told = Vec::new();
    from.read_to_end(&mut told).ok()?;
    let told = &mut told.as_slice();
    let order = if take(told)?.first()? == &1 { Order::Firecracker } else { Order::Qemu };
    let outside = Outside::from_bytes(take(told)?)?;
    let at = position(take(told)?)?;
    let saved = Saved::from_bytes(take(told)?)?;
    let mut m = Machine::restored(&Arc::new(plan.clone()), &saved, order, &outside, &at);
    m.finish();
    let mut out = Vec::new();
    row(&mut out, &m.save().to_bytes());
    row(&mut out, &position_words(&m.position));
    row(&mut out, &words(&m.dirty().0));
    for r in &m.log {
        row(&mut out, &words(&[r.vcpu as u64, r.retired]));
        row(&mut out, r.what.as_bytes());
    }
    to.write_all(&out).ok()
}

impl Outside {
    /// As bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        let Outside {
            asked,
            echo,
            stream,
            next_in,
            registers,
            rom_store,
            nmis_to_smi,
            quiet,
            lines,
            vectors,
        } = self;
        let mut out = Vec::new();
        row(
            &mut out,
            &words(&[
                *asked,
                u64::from(*next_in),
                u64::from(*rom_store),
                u64::from(*nmis_to_smi),
                u64::from(*quiet),
            ]),
        );
        row(&mut out, echo);
        row(&mut out, stream);
        row(&mut out, vectors);
        let pairs: Vec<u64> = registers.iter().flat_map(|(a, b)| [*a, u64::from(*b)]).collect();
        row(&mut out, &words(&pairs));
        let pairs: Vec<u64> = lines.iter().flat_map(|(a, b)| [u64::from(*a), u64::from(*b)]).collect();
        row(&mut out, &words(&pairs));
        out
    }

    /// The inverse.
    pub fn from_bytes(from: &[u8]) -> Option<Outside> {
        let from = &mut &*from;
        let head = to_words(take(from)?);
        let mut o = Outside {
            asked: *head.first()?,
            next_in: *head.get(1)? as u8,
            rom_store: *head.get(2)? as u16,
            nmis_to_smi: *head.get(3)? as u8,
            quiet: *head.get(4)? != 0,
            echo: take(from)?.to_vec(),
            stream: take(from)?.to_vec(),
            vectors: take(from)?.to_vec(),
            ..Outside::default()
        };
        let pairs = to_words(take(from)?);
        o.registers = pairs.as_chunks::<2>().0.iter().map(|[a, b]| (*a, *b as u8)).collect();
        let pairs = to_words(take(from)?);
        o.lines = pairs.as_chunks::<2>().0.iter().map(|[a, b]| (*a as u32, *b != 0)).collect();
        Some(o)
    }
}
