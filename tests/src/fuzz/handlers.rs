//! Every handler that the interpreter gives for an instruction that can be encoded, and which of them were reached.

use super::random::Random;
use super::stream;
use decoder::{Context, CpuMode, Insn, Protection, decode_one};
use emu_core::cpuid::CpuidTable;
use emu_core::cpuid::policy::{HostProcessor, supported};
use emu_core::interp;
use iced_x86::Code;
use std::collections::HashMap;

/// Variants of each code and mode that are looked at: operand forms, sizes, prefixes.
const VARIANTS: usize = 48;

/// One handler.
pub struct Handler {
    /// Codes that lead to it, with their mode.
    pub codes: Vec<(Code, CpuMode)>,
    /// It was reached.
    pub reached: bool,
}

/// All of them.
pub struct Handlers {
    /// In an order that does not depend on addresses.
    pub all: Vec<Handler>,
    by_address: HashMap<usize, usize>,
    /// Every code of the modes.
    pub codes: Vec<(Code, CpuMode)>,
}

/// The CPUID table of the fuzzed processor: all that this host can offer.
pub fn cpuid() -> CpuidTable {
    CpuidTable::new(supported(&HostProcessor::this()))
}

impl Handlers {
    /// Finds them: the same list in each process of one build.
    pub fn find() -> Handlers {
        let mut random = Random::new(1);
        let table = cpuid();
        let mut handlers = Handlers { all: Vec::new(), by_address: HashMap::new(), codes: Vec::new() };
        for code in Code::values() {
            for mode in [CpuMode::Bits64, CpuMode::Bits32, CpuMode::Bits16] {
                let context =
                    Context { mode, protection: Protection::Protected, cpuid: table.instructions() };
                let mut offered = false;
                for _ in 0..VARIANTS {
                    let Some(mut bytes) = stream::encode(code, mode, &mut random, 0x1000) else { continue };
                    bytes.resize(15, 0x90);
                    let Ok(insn) = decode_one(&bytes, &context) else { continue };
                    offered |= insn.code == code && insn.fault().is_none();
                    if let Some(n) = handlers.number(&insn, true)
                        && insn.code == code
                        && handlers.all[n].codes.last() != Some(&(code, mode))
                    {
                        handlers.all[n].codes.push((code, mode));
                    }
                }
                if offered {
                    handlers.codes.push((code, mode));
                }
            }
        }
        handlers
    }

    fn number(&mut self, insn: &Insn, add: bool) -> Option<usize> {
        if insn.fault().is_some() {
            return None;
        }
        let handler = interp::select(insn);
        let address = handler as *const () as usize;
        if address == interp::undefined as *const () as usize {
            return None;
        }
        if let Some(&n) = self.by_address.get(&address) {
            return Some(n);
        }
        if !add {
            return None;
        }
        self.all.push(Handler { codes: Vec::new(), reached: false });
        self.by_address.insert(address, self.all.len() - 1);
        Some(self.all.len() - 1)
    }

    /// The instruction is about to be executed.
    pub fn reached(&mut self, insn: &Insn) {
        if let Some(n) = self.number(insn, false) {
            self.all[n].reached = true;
        }
    }

    /// How many were reached.
    pub fn count(&self) -> usize {
        self.all.iter().filter(|h| h.reached).count()
    }

    /// A code of this mode: half of them by handler, so that rare families are not lost among thousands of
    /// vector instructions.
    pub fn pick(&self, random: &mut Random, mode: CpuMode) -> Option<Code> {
        for _ in 0..16 {
            let from = if random.one_in(3) {
                &self.codes
            } else {
                &self.all[random.below(self.all.len().max(1))].codes
            };
            if from.is_empty() {
                continue;
            }
            let (code, of) = from[random.below(from.len())];
            if of == mode {
                return Some(code);
            }
        }
        None
    }
}
