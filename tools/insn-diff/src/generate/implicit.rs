//! What instructions use without naming it, and operands that only some values make interesting: counts, stacks,
//! selectors, state images, operands that compare equal. Explicit operands are `operands`'s.

use super::draft::{Draft, RSP, selector};
use super::memory::Extent;
use super::values::{self, chance, choose};
use super::{Generator, image};
use crate::coverage::Form;
use crate::layout::{DATA, PAGE, STACK};
use crate::{Bits, layout};
use iced_x86::{Code, Mnemonic, OpCodeOperandKind, OpKind, Register};

impl Generator {
    /// Sets up what the instruction of a draft uses besides its operands.
    pub fn implicit(&mut self, draft: &mut Draft) {
        use Mnemonic as M;
        let code = draft.cell.code;
        let mnemonic = code.mnemonic();
        self.stack_pointer(draft);
        if draft.cell.form == Form::Memory {
            self.strings(draft);
        }
        match mnemonic {
            M::Shl | M::Shr | M::Sar | M::Sal | M::Rol | M::Ror | M::Rcl | M::Rcr | M::Shld | M::Shrd => {
                let count = self.rng.u64(..70);
                draft.set(Register::CL, count);
            }
            M::Loop | M::Loope | M::Loopne | M::Jcxz | M::Jecxz | M::Jrcxz => {
                let count = choose(&mut self.rng, &[0, 0, 1, 2, 0x1_0000, 0x1_0000_0000, 0x1_0000_0001]);
                draft.set(Register::RCX, count);
            }
            M::Div | M::Idiv => self.division(draft),
            M::Cmpxchg => self.compare_equal(draft),
            M::Cmpxchg8b | M::Cmpxchg16b => self.compare_pair(draft),
            M::Bt | M::Bts | M::Btr | M::Btc => self.bit_offset(draft),
            M::Enter | M::Leave => self.frame(draft),
            M::Push | M::Pop | M::Popf | M::Popfd | M::Popfq | M::Ret | M::Retf => self.popped(draft),
            M::Iret | M::Iretd | M::Iretq => self.interrupt_frame(draft),
            M::Jmp | M::Call => self.branch_pointer(draft),
            M::Mov if code.op_code().op_kinds().contains(&OpCodeOperandKind::seg_reg) => {
                self.selector_operand(draft)
            }
            M::Lar | M::Lsl | M::Verr | M::Verw | M::Lldt | M::Ltr => self.selector_operand(draft),
            M::Lds | M::Les | M::Lfs | M::Lgs | M::Lss => self.far_operand(draft),
            M::Xgetbv => {
                let n = choose(&mut self.rng, &[0, 0, 1, 1, 2, 0xffff_ffff]);
                draft.set(Register::RCX, n);
            }
            M::Cpuid => {
                let leaf =
                    choose(&mut self.rng, &[0, 1, 2, 4, 7, 0xd, 0x4000_0000, 0x8000_0000, 0x8000_0001]);
                draft.set(Register::RAX, leaf);
                draft.set(Register::RCX, self.rng.u64(..3));
            }
            M::Wrpkru | M::Rdpkru => self.protection_keys(draft),
            M::Pcmpestri | M::Pcmpestrm | M::Vpcmpestri | M::Vpcmpestrm => {
                self.text(draft);
                for register in [Register::RAX, Register::RDX] {
                    if chance(&mut self.rng, 80) {
                        draft.set(register, self.rng.i64(-20..20) as u64);
                    }
                }
            }
            M::Pcmpistri | M::Pcmpistrm | M::Vpcmpistri | M::Vpcmpistrm => self.text(draft),
            M::Bextr | M::Bzhi => self.bit_field(draft),
            M::Bound => self.bounds(draft),
            M::Fbld => {
                if let Some(target) = draft.target
                    && chance(&mut self.rng, 80)
                {
                    let mut digits = [0; 10];
                    digits[..9].fill_with(|| self.rng.u8(..10) << 4 | self.rng.u8(..10));
                    digits[9] = choose(&mut self.rng, &[0, 0x80]);
                    draft.poke(target, &digits);
                }
            }
            M::Clzero => {
                let address = 8 * match code {
                    Code::Clzerow => 2,
                    Code::Clzerod => 4,
                    _ => 8,
                };
                let register = match address {
                    16 => Register::AX,
                    32 => Register::EAX,
                    _ => Register::RAX,
                };
                let target = self.place(draft, Register::DS, address, Extent::of(64));
                draft.fix(register, target.wrapping_sub(draft.base(Register::DS)));
            }
            M::Movdir64b | M::Enqcmd | M::Enqcmds => {
                let register = draft.instruction.op0_register();
                let address = 8 * register.size() as u8;
                let target = self.place(draft, Register::ES, address, Extent::of(64));
                if draft.fixed >> Draft::number(register).unwrap_or(0) & 1 == 0 {
                    draft.fix(register, target.wrapping_sub(draft.base(Register::ES)));
                }
            }
            M::Wrfsbase | M::Wrgsbase => {
                let base = match self.rng.u32(..4) {
                    0 => self.rng.u64(..),
                    _ => self.rng.u64(..0x7fff_0000_0000),
                };
                // Not the upper half: what has its sign clear.
                draft.set(draft.instruction.op0_register().full_register(), base & !(1 << 63));
            }
            _ => self.state(draft, mnemonic),
        }
        self.memory_contents(draft, mnemonic);
    }

    /// RSP (or SP) in the stack: near its edges sometimes, if the instruction uses it.
    fn stack_pointer(&mut self, draft: &mut Draft) {
        if draft.fixed >> RSP & 1 != 0 {
            return;
        }
        let uses = draft.cell.code.op_code().is_stack_instruction();
        let rng = &mut self.rng;
        let offset = match rng.u32(..40) {
            0 if uses => 2 * PAGE - rng.u64(..16),
            1 if uses => rng.u64(..16),
            2 if uses => PAGE - 8 + rng.u64(..16),
            3 if uses => rng.u64(..2 * PAGE),
            _ => 0x100 + rng.u64(..0x3c0) * 8,
        };
        let target = match draft.base(Register::SS) {
            DATA => DATA + offset,
            _ => STACK + offset,
        };
        let pointer = target.wrapping_sub(draft.base(Register::SS));
        if draft.narrow_stack() {
            let above = self.rng.u64(..) & 0xffff_0000;
            draft.force(Register::ESP, above | pointer & 0xffff);
        } else {
            draft.force(Register::RSP, pointer);
        }
    }

    /// The linear address of the top of the stack, or of another stack register.
    fn stack_linear(&self, draft: &Draft, register: Register) -> u64 {
        let value = draft.get(register.full_register());
        let offset = if draft.narrow_stack() { value & 0xffff } else { value };
        draft.base(Register::SS).wrapping_add(offset)
    }

    /// RCX of repeated string instructions, and the second string.
    fn strings(&mut self, draft: &mut Draft) {
        let repeated = draft.instruction.has_rep_prefix() || draft.instruction.has_repne_prefix();
        if !repeated {
            return;
        }
        let rng = &mut self.rng;
        let count = match rng.u32(..20) {
            0 => 0,
            1..3 => 1,
            3..14 => rng.u64(..20),
            14..18 => rng.u64(..300),
            18 => rng.u64(..5000),
            _ => rng.u64(..0x8000_0000),
        };
        let garbage = rng.u64(..);
        let value = match draft.cell.address {
            16 => garbage & !0xffff | count & 0xffff,
            32 => garbage & !0xffff_ffff | count,
            _ => count,
        };
        draft.set(Register::RCX, value);
        // Strings that agree for a while.
        if matches!(
            draft.cell.code.mnemonic(),
            Mnemonic::Cmpsb | Mnemonic::Cmpsw | Mnemonic::Cmpsd | Mnemonic::Cmpsq
        ) && let Some(target) = draft.target
        {
            let byte = self.rng.u8(..);
            draft.poke(target & !63, &[byte; 256]);
            draft.poke((DATA + self.rng.u64(..0x1000)) & !63, &[byte; 512]);
        }
    }

    /// Dividends that mostly fit their quotients.
    fn division(&mut self, draft: &mut Draft) {
        let size = operand_size(draft);
        if chance(&mut self.rng, 35) {
            return;
        }
        let signed = draft.cell.code.mnemonic() == Mnemonic::Idiv;
        let low = values::integer(&mut self.rng, size as usize);
        let bits = 8 * size as u32;
        let negative = signed && low >> (bits - 1) & 1 != 0;
        let high = match negative {
            true => u64::MAX,
            false if signed => 0,
            false => self.rng.u64(..8),
        };
        match size {
            1 => draft.set(Register::AX, high << 8 | low),
            2 => {
                draft.set(Register::AX, low);
                draft.set(Register::DX, high);
            }
            4 => {
                draft.set(Register::EAX, low);
                draft.set(Register::EDX, high);
            }
            _ => {
                draft.set(Register::RAX, low);
                draft.set(Register::RDX, high);
            }
        }
    }

    /// CMPXCHG: equal half of the time.
    fn compare_equal(&mut self, draft: &mut Draft) {
        if chance(&mut self.rng, 50) {
            return;
        }
        let size = operand_size(draft);
        match draft.target {
            Some(target) => {
                let bytes = draft.case.gpr[0].to_le_bytes();
                draft.poke(target, &bytes[..size as usize]);
            }
            None => {
                let register = draft.instruction.op0_register();
                let value = draft.get(register);
                let accumulator = match size {
                    1 => Register::AL,
                    2 => Register::AX,
                    4 => Register::EAX,
                    _ => Register::RAX,
                };
                draft.set(accumulator, value);
            }
        }
    }

    /// CMPXCHG8B, CMPXCHG16B: equal half of the time, else in one half sometimes.
    fn compare_pair(&mut self, draft: &mut Draft) {
        let Some(target) = draft.target else {
            return;
        };
        let half = if draft.cell.code.mnemonic() == Mnemonic::Cmpxchg8b { 4 } else { 8 };
        let pair = self.rng.u32(..4);
        for (n, register) in [(0, 0), (1, 2)] {
            if pair >= 2 || pair == n {
                let bytes = draft.case.gpr[register].to_le_bytes();
                draft.poke(target + u64::from(n) * half, &bytes[..half as usize]);
            }
        }
    }

    /// A bit offset in a register reaches memory around the operand: mostly near it.
    fn bit_offset(&mut self, draft: &mut Draft) {
        if draft.instruction.op1_kind() == OpKind::Register && chance(&mut self.rng, 85) {
            let offset = self.rng.i64(-2048..2048) as u64;
            draft.set(draft.instruction.op1_register(), offset);
        }
    }

    /// RBP for ENTER and LEAVE.
    fn frame(&mut self, draft: &mut Draft) {
        if draft.cell.code.mnemonic() == Mnemonic::Enter {
            let size = match self.rng.u32(..4) {
                0 => self.rng.u16(..),
                _ => self.rng.u16(..64),
            };
            let levels = match self.rng.u32(..4) {
                0 => self.rng.u8(..),
                _ => self.rng.u8(..4),
            };
            draft.instruction.set_immediate16(size);
            draft.instruction.set_immediate8_2nd(levels);
        }
        let top = draft.get(Register::RSP);
        if chance(&mut self.rng, 95) {
            let above = self.rng.u64(..0x40) * 8;
            draft.set(Register::RBP, top.wrapping_add(above));
        }
    }

    /// What POP, POPF, RET and RETF find on the stack. (PUSH finds nothing, but a selector's place.)
    fn popped(&mut self, draft: &mut Draft) {
        let top = self.stack_linear(draft, Register::RSP);
        let bits = draft.case.bits;
        match draft.cell.code.mnemonic() {
            Mnemonic::Popf | Mnemonic::Popfd | Mnemonic::Popfq => {
                let flags = self.flags_image();
                draft.poke(top, &flags.to_le_bytes());
            }
            Mnemonic::Pop if draft.instruction.op0_register().is_segment_register() => {
                let value = u64::from(selector(&mut self.rng)) | (self.rng.u64(..) << 16);
                draft.poke(top, &value.to_le_bytes());
            }
            Mnemonic::Ret => {
                let target = self.code_target(bits);
                draft.poke(top, &target.to_le_bytes());
            }
            Mnemonic::Retf => {
                let (selector, target) = self.far_target(bits);
                let width = far_width(draft.cell.code);
                draft.poke(top, &target.to_le_bytes()[..width]);
                draft.poke(top + width as u64, &u64::from(selector).to_le_bytes()[..width]);
                // For a return to another privilege level, which an RPL of 3 never is.
                if matches!(draft.cell.code, Code::Retfw_imm16 | Code::Retfd_imm16 | Code::Retfq_imm16) {
                    draft.instruction.set_immediate16(self.rng.u16(..64));
                }
            }
            _ => {}
        }
        if matches!(draft.cell.code, Code::Retnw_imm16 | Code::Retnd_imm16 | Code::Retnq_imm16) {
            draft.instruction.set_immediate16(self.rng.u16(..64));
        }
    }

    /// Flags as POPF and IRET may find them.
    fn flags_image(&mut self) -> u64 {
        match self.rng.u32(..4) {
            // Everything; VM too.
            0 => self.rng.u64(..),
            _ => self.rng.u64(..) & 0x20_0ed7 | 2,
        }
    }

    /// The five words that IRET finds; outside 64-bit mode it takes three.
    fn interrupt_frame(&mut self, draft: &mut Draft) {
        let top = self.stack_linear(draft, Register::RSP);
        let (cs, target) = self.far_target(draft.case.bits);
        // VM stays clear: no processor in long mode has virtual-8086 mode.
        let flags = self.flags_image() & !(1 << 17);
        let ss = match self.rng.u32(..8) {
            0 => selector(&mut self.rng),
            1 => layout::STACK16,
            _ => layout::FLAT,
        };
        let stack = STACK + 0x800 + self.rng.u64(..0x100) * 8;
        let width = far_width(draft.cell.code);
        for (n, word) in [target, cs.into(), flags, stack, ss.into()].into_iter().enumerate() {
            draft.poke(top + (n * width) as u64, &word.to_le_bytes()[..width]);
        }
    }

    /// Where an indirect JMP or CALL goes to.
    fn branch_pointer(&mut self, draft: &mut Draft) {
        let bits = draft.case.bits;
        let far = matches!(
            draft.cell.code,
            Code::Jmp_m1616
                | Code::Jmp_m1632
                | Code::Jmp_m1664
                | Code::Call_m1616
                | Code::Call_m1632
                | Code::Call_m1664
        );
        if far {
            return self.far_operand(draft);
        }
        let place = match self.rng.u32(..30) {
            0 => self.rng.u64(..0x7fff_0000_0000),
            1 => self.rng.u64(0x8000_0000_0000..0x7fff_ffff_ffff_ffff),
            _ => self.code_target(bits),
        };
        match draft.target {
            Some(target) => {
                let width = (8 * u64::from(bits == Bits::Bits64)).max(operand_size(draft));
                draft.poke(target, &place.to_le_bytes()[..width.min(8) as usize]);
            }
            None if draft.instruction.op0_kind() == OpKind::Register => {
                draft.set(draft.instruction.op0_register(), place);
            }
            None => {}
        }
    }

    /// A far pointer in memory: for branches, or for a load of a segment register.
    fn far_operand(&mut self, draft: &mut Draft) {
        let Some(address) = draft.target else {
            return;
        };
        let branch = matches!(draft.cell.code.mnemonic(), Mnemonic::Jmp | Mnemonic::Call);
        let (mut selected, target) = self.far_target(draft.case.bits);
        let offset = if branch { target } else { self.rng.u64(..) };
        if !branch {
            selected = selector(&mut self.rng);
        }
        let width = far_width(draft.cell.code);
        draft.poke(address, &offset.to_le_bytes()[..width]);
        draft.poke(address + width as u64, &selected.to_le_bytes());
    }

    /// A selector as the source of an instruction: in a register or in memory.
    fn selector_operand(&mut self, draft: &mut Draft) {
        let value = selector(&mut self.rng);
        if let Some(target) = draft.target {
            return draft.poke(target, &value.to_le_bytes());
        }
        for n in 0..draft.instruction.op_count() {
            let register = draft.instruction.op_register(n);
            if let Some(number) = Draft::number(register)
                && draft.instruction.op_kind(n) == OpKind::Register
            {
                let word = Register::AX + number as u32;
                draft.set(word, value.into());
            }
        }
    }

    /// Strings of few letters, with zeros, for PCMPESTRI and its like.
    fn text(&mut self, draft: &mut Draft) {
        let mut string = || {
            let mut bytes = [0; 64];
            bytes.fill_with(|| choose(&mut self.rng, &[0, 1, 1, 2, 2, 3, 0x80, 0xff]));
            bytes
        };
        let (first, second) = (string(), string());
        for (operand, value) in [(0, &first), (1, &second)] {
            if draft.instruction.op_kind(operand) == OpKind::Register {
                let n = draft.instruction.op_register(operand).number();
                self.image.set_vector(&mut draft.case.xsave, n, value);
            } else if let Some(target) = draft.target {
                draft.poke(target, &value[..16]);
            }
        }
    }

    /// Start and length that lie in the operand.
    fn bit_field(&mut self, draft: &mut Draft) {
        let register = draft.instruction.op2_register();
        if draft.instruction.op2_kind() == OpKind::Register && chance(&mut self.rng, 70) {
            let field = self.rng.u64(..72) | self.rng.u64(..72) << 8;
            draft.set(register, field);
        }
    }

    /// BOUND: bounds around the index, mostly.
    fn bounds(&mut self, draft: &mut Draft) {
        let Some(target) = draft.target else {
            return;
        };
        let index = draft.get(draft.instruction.op0_register()) as i64;
        let (low, high) = (index - self.rng.i64(-4..40), index + self.rng.i64(-4..40));
        let width = draft.instruction.op0_register().size();
        draft.poke(target, &low.to_le_bytes()[..width]);
        draft.poke(target + width as u64, &high.to_le_bytes()[..width]);
    }

    /// WRPKRU: key 0 stays open.
    fn protection_keys(&mut self, draft: &mut Draft) {
        let keys = self.rng.u64(..) & 0xffff_fffc;
        draft.set(Register::RAX, keys);
        if chance(&mut self.rng, 90) {
            draft.set(Register::RCX, 0);
            draft.set(Register::RDX, 0);
        }
    }

    /// Instructions that load or store processor state.
    fn state(&mut self, draft: &mut Draft, mnemonic: Mnemonic) {
        use Mnemonic as M;
        let Some(target) = draft.target else {
            return;
        };
        match mnemonic {
            M::Ldmxcsr | M::Vldmxcsr => {
                let mut value = u32::from(image::mxcsr(&mut self.rng));
                if chance(&mut self.rng, 8) {
                    value |= 0x1_0000 << self.rng.u32(..16);
                }
                draft.poke(target, &value.to_le_bytes());
            }
            M::Fldcw => {
                let value =
                    if chance(&mut self.rng, 20) { self.rng.u16(..) } else { image::fcw(&mut self.rng) };
                draft.poke(target, &value.to_le_bytes());
            }
            M::Fldenv | M::Frstor => {
                let wide = matches!(draft.cell.code, Code::Fldenv_m28byte | Code::Frstor_m108byte);
                let environment = image::environment(&mut self.rng, wide);
                draft.poke(target, &environment);
                if mnemonic == M::Frstor {
                    for n in 0..8 {
                        let value = values::extended(&mut self.rng);
                        draft.poke(target + environment.len() as u64 + 10 * n, &value);
                    }
                }
            }
            M::Fxrstor | M::Fxrstor64 => {
                let image = image::legacy_region(&mut self.rng);
                draft.poke(target, &image);
            }
            M::Xsave
            | M::Xsave64
            | M::Xsavec
            | M::Xsavec64
            | M::Xsaveopt
            | M::Xsaveopt64
            | M::Xsaves
            | M::Xsaves64 => {
                self.components_mask(draft);
                if chance(&mut self.rng, 70) {
                    // A header that the processor may have written.
                    draft.poke(target + 512, &[0; 64]);
                }
            }
            M::Xrstor | M::Xrstor64 | M::Xrstors | M::Xrstors64 => {
                self.components_mask(draft);
                let image = image::legacy_region(&mut self.rng);
                draft.poke(target, &image);
                let mut header = [0; 64];
                let mut in_use = self.rng.u64(..) & self.image.components;
                if chance(&mut self.rng, 5) {
                    in_use |= 1 << self.rng.u32(..64);
                }
                header[..8].copy_from_slice(&in_use.to_le_bytes());
                if chance(&mut self.rng, 30) {
                    // The compacted format, where XCOMP_BV has at least what XSTATE_BV has.
                    let mut compacted = 1 << 63 | in_use;
                    if chance(&mut self.rng, 50) {
                        compacted |= self.image.components;
                    }
                    if chance(&mut self.rng, 10) {
                        compacted ^= 1 << self.rng.u32(..64);
                    }
                    header[8..16].copy_from_slice(&compacted.to_le_bytes());
                }
                if chance(&mut self.rng, 4) {
                    header[self.rng.usize(8..64)] |= 1 << self.rng.u32(..8);
                }
                draft.poke(target + 512, &header);
                // PKRU, wherever a format has it: key 0 stays open. (The end of what either format has.)
                if self.image.components >> 9 & 1 != 0 {
                    let zeros = [0; 2300];
                    draft.poke(target + 576, &zeros);
                }
            }
            _ => {}
        }
    }

    /// EDX:EAX of XSAVE and XRSTOR.
    fn components_mask(&mut self, draft: &mut Draft) {
        let components = self.image.components;
        let mask = match self.rng.u32(..8) {
            0 => self.rng.u64(..),
            1 => u64::MAX,
            2 => 1 << choose(&mut self.rng, &[0, 1, 2, 5, 6, 7, 9]),
            3 => 7,
            _ => self.rng.u64(..) & components,
        };
        draft.set(Register::EAX, mask & 0xffff_ffff);
        draft.set(Register::EDX, mask >> 32);
    }

    /// Contents of the memory operand that suit the instruction's elements, most of the time.
    fn memory_contents(&mut self, draft: &mut Draft, mnemonic: Mnemonic) {
        use Mnemonic as M;
        let Some(target) = draft.target else {
            return;
        };
        if !draft.case.memory.is_empty() || matches!(mnemonic, M::Jmp | M::Call) || !chance(&mut self.rng, 60)
        {
            return;
        }
        let info = draft.cell.code.op_code();
        let size = if draft.cell.broadcast { info.broadcast_memory_size() } else { info.memory_size() };
        let len = size.size().min(64);
        if len == 10 {
            let value = values::extended(&mut self.rng);
            return draft.poke(target, &value);
        }
        let mut bytes = [0; 64];
        let elements = self.elements(draft.cell.code);
        values::fill(&mut self.rng, elements, &mut bytes);
        draft.poke(target, &bytes[..len]);
    }
}

/// Bytes of the first operand.
fn operand_size(draft: &Draft) -> u64 {
    match draft.instruction.op0_kind() {
        OpKind::Register => draft.instruction.op0_register().size() as u64,
        _ => (draft.cell.code.op_code().memory_size().size() as u64).clamp(1, 8),
    }
}

/// Bytes of the offset of a far pointer, and of a word of a far frame.
fn far_width(code: Code) -> usize {
    match code {
        Code::Retfq | Code::Retfq_imm16 | Code::Iretq => return 8,
        Code::Retfw | Code::Retfw_imm16 | Code::Iretw => return 2,
        Code::Retfd | Code::Retfd_imm16 | Code::Iretd => return 4,
        _ => {}
    }
    match code.op_code().memory_size().size() {
        4 => 2,
        10 => 8,
        _ => 4,
    }
}
