//! Code in blocks, for every mode: a fault in a block goes on with the next.

use crate::guest::layout::PORT_DONE;
use crate::guest::program::Assembled;
use iced_x86::BlockEncoderOptions;
use iced_x86::code_asm::*;

/// A program while it is assembled. Twice: the first time finds where each block ends, the second time knows it.
pub struct Blocks {
    /// The assembler.
    pub a: CodeAssembler,
    resume: u32,
    known: Vec<u64>,
    ends: Vec<CodeLabel>,
}

impl Blocks {
    /// One block. Where it ends is stored for the handlers first.
    pub fn block(&mut self, f: impl FnOnce(&mut CodeAssembler) -> Assembled) -> Assembled {
        let end = self.known.get(self.ends.len()).copied().unwrap_or(0x7fff);
        match self.a.bitness() {
            16 => self.a.mov(word_ptr(self.resume).ss(), end as u32)?,
            32 => self.a.mov(dword_ptr(self.resume).ss(), end as u32)?,
            _ => self.a.mov(r15d, 0x4000_0000u32 | end as u32)?,
        }
        if self.a.bitness() == 64 {
            self.a.btr(r15d, 30)?;
        }
        f(&mut self.a)?;
        let mut label = self.a.create_label();
        self.a.set_label(&mut label)?;
        self.ends.push(label);
        // A label needs an instruction behind it.
        self.a.nop()
    }
}

/// Assembles at `ip`. `resume` is where handlers of 16- and 32-bit code find the end of the block.
pub fn assemble(bits: u32, ip: u64, resume: u64, f: impl Fn(&mut Blocks) -> Assembled) -> Vec<u8> {
    let once = |known: Vec<u64>| -> Assembled<(Vec<u8>, Vec<u64>)> {
        let a = CodeAssembler::new(bits)?;
        let mut b = Blocks { a, resume: resume as u32, known, ends: Vec::new() };
        f(&mut b)?;
        let mut over = b.a.create_label();
        b.a.set_label(&mut over)?;
        b.a.mov(edx, u32::from(PORT_DONE))?;
        b.a.out(dx, al)?;
        b.a.jmp(over)?;
        let done = b.a.assemble_options(ip, BlockEncoderOptions::RETURN_NEW_INSTRUCTION_OFFSETS)?;
        let ends = b.ends.iter().map(|l| done.label_ip(l)).collect::<Assembled<Vec<u64>>>()?;
        Ok((done.inner.code_buffer, ends))
    };
    let (_, ends) = once(Vec::new()).expect("the guest assembles");
    let (code, again) = once(ends.clone()).expect("the guest assembles");
    assert_eq!(ends, again, "the second pass is as long as the first");
    code
}

/// Assembles handlers one behind the other; where each begins.
pub fn stubs(
    bits: u32,
    ip: u64,
    count: u64,
    f: impl Fn(&mut CodeAssembler, u64) -> Assembled,
) -> (Vec<u8>, Vec<u64>) {
    let make = || -> Assembled<(Vec<u8>, Vec<u64>)> {
        let mut a = CodeAssembler::new(bits)?;
        let mut starts = Vec::new();
        for vector in 0..count {
            let mut l = a.create_label();
            a.set_label(&mut l)?;
            starts.push(l);
            f(&mut a, vector)?;
        }
        let done = a.assemble_options(ip, BlockEncoderOptions::RETURN_NEW_INSTRUCTION_OFFSETS)?;
        let starts = starts.iter().map(|l| done.label_ip(l)).collect::<Assembled<Vec<u64>>>()?;
        Ok((done.inner.code_buffer, starts))
    };
    make().expect("the handlers assemble")
}
