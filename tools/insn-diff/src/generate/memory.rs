//! Where memory operands lie, and the addressing forms and register values that lead there.

use super::Generator;
use super::draft::Draft;
use super::values::{chance, choose};
use crate::{Bits, layout};
use iced_x86::{Code, EncodingKind, OpCodeOperandKind, OpKind, Register};
use layout::{CODE, DATA, HOLE, ISLAND, PAGE, READ_ONLY, STACK};

/// An extent of memory that an instruction accesses.
#[derive(Clone, Copy, Debug)]
pub struct Extent {
    /// Bytes.
    pub size: u64,
    /// What its address is mostly a multiple of.
    pub align: u64,
}

impl Extent {
    /// Of a size, naturally aligned.
    pub fn of(size: u64) -> Extent {
        let size = size.clamp(1, 2 * PAGE);
        Extent { size, align: size.next_power_of_two().min(64) }
    }
}

/// 16-bit addressing (SDM vol. 2A, table 2-1).
const FORMS16: [(Register, Register); 8] = [
    (Register::BX, Register::SI),
    (Register::BX, Register::DI),
    (Register::BP, Register::SI),
    (Register::BP, Register::DI),
    (Register::SI, Register::None),
    (Register::DI, Register::None),
    (Register::BP, Register::None),
    (Register::BX, Register::None),
];

/// Vectors of indices.
#[derive(Clone, Copy)]
struct Vsib {
    first: Register,
    /// Bytes of an index.
    index: usize,
}

fn vsib(kind: OpCodeOperandKind) -> Option<Vsib> {
    use OpCodeOperandKind as K;
    let (first, index) = match kind {
        K::mem_vsib32x => (Register::XMM0, 4),
        K::mem_vsib64x => (Register::XMM0, 8),
        K::mem_vsib32y => (Register::YMM0, 4),
        K::mem_vsib64y => (Register::YMM0, 8),
        K::mem_vsib32z => (Register::ZMM0, 4),
        K::mem_vsib64z => (Register::ZMM0, 8),
        _ => return None,
    };
    Some(Vsib { first, index })
}

/// The bits of an address of a size.
pub fn address_mask(address: u8) -> u64 {
    match address {
        16 => 0xffff,
        32 => 0xffff_ffff,
        _ => u64::MAX,
    }
}

impl Generator {
    /// A linear address for an extent in a segment: mostly well inside data, aligned; sometimes at every kind of edge.
    pub fn place(&mut self, draft: &Draft, segment: Register, address: u8, extent: Extent) -> u64 {
        let base = draft.base(segment);
        let based = draft.case.bits != Bits::Bits64 && base != 0;
        let rng = &mut self.rng;
        let Extent { size, align } = extent;
        let inside = |rng: &mut fastrand::Rng, start: u64, len: u64, align: u64| {
            let room = len.saturating_sub(size) / align;
            start + rng.u64(..=room) * align
        };
        // Accesses that begin before an address and end behind it.
        let across = |rng: &mut fastrand::Rng, at: u64| {
            at - match size {
                1 => 1,
                n => rng.u64(1..n),
            }
        };
        if based && base == STACK {
            return match rng.u32(..20) {
                0 => across(rng, STACK + 2 * PAGE),
                1 => across(rng, STACK + PAGE),
                2 => inside(rng, STACK, 2 * PAGE, 1),
                _ => inside(rng, STACK, 2 * PAGE, align),
            };
        }
        if based && base == CODE {
            return inside(rng, CODE, PAGE, align);
        }
        match rng.u32(..200) {
            0..140 => inside(rng, DATA, 2 * PAGE, align),
            140..160 => inside(rng, DATA, 2 * PAGE, 1),
            160..168 => across(rng, DATA + PAGE),
            168..172 => across(rng, READ_ONLY),
            172..175 => inside(rng, READ_ONLY, PAGE, align),
            175..178 => across(rng, HOLE),
            178..180 => inside(rng, HOLE, PAGE, align),
            180..182 => across(rng, ISLAND),
            182..185 => inside(rng, ISLAND, PAGE, align),
            185 => across(rng, ISLAND + PAGE),
            186..188 => across(rng, DATA),
            _ if based => base + rng.u64(..0x1_0000),
            188..194 => inside(rng, STACK, 2 * PAGE, align),
            194 => across(rng, STACK),
            195 => inside(rng, CODE, PAGE, align),
            196 => across(rng, CODE + PAGE),
            // Neither half: bit 47 is not repeated above, and bit 63 is clear.
            197..199 if draft.case.bits == Bits::Bits64 && address == 64 => {
                rng.u64(0x8000_0000_0000..0x7fff_ffff_ffff_0000)
            }
            _ if draft.case.bits == Bits::Bits64 && address == 64 => rng.u64(..0x7fff_0000_0000),
            _ => rng.u64(..0xffff_0000),
        }
    }

    /// The segment of a memory operand, with its prefix, sometimes another than the default one.
    fn override_segment(&mut self, draft: &mut Draft, default: Register) -> Register {
        let percent = if draft.case.bits == Bits::Bits64 { 12 } else { 25 };
        if !chance(&mut self.rng, percent) {
            return default;
        }
        let choice = match draft.case.bits {
            Bits::Bits64 => choose(&mut self.rng, &[Register::FS, Register::GS]),
            _ => choose(
                &mut self.rng,
                &[Register::ES, Register::SS, Register::DS, Register::FS, Register::GS, Register::CS],
            ),
        };
        draft.instruction.set_segment_prefix(choice);
        choice
    }

    /// The bytes that the explicit memory operand has.
    fn extent(&self, draft: &Draft) -> Extent {
        let code = draft.cell.code;
        let info = code.op_code();
        let size = if draft.cell.broadcast { info.broadcast_memory_size() } else { info.memory_size() };
        match size.size() as u64 {
            0 if info.is_save_restore() => Extent { size: 2816, align: 64 },
            0 => Extent::of(8),
            n if matches!(code, Code::Bound_r16_m1616 | Code::Bound_r32_m3232) => Extent::of(n.max(4)),
            n => Extent::of(n),
        }
    }

    /// Makes operand `n` of the instruction a memory operand. None: no such form.
    pub fn memory_operand(&mut self, draft: &mut Draft, n: u32, kind: OpCodeOperandKind) -> Option<()> {
        use OpCodeOperandKind as K;
        let address = draft.cell.address;
        let which = match address {
            16 => 0,
            32 => 1,
            _ => 2,
        };
        let by_size = |all: [Register; 3]| all[which];
        match kind {
            K::seg_rSI => {
                let kinds = [OpKind::MemorySegSI, OpKind::MemorySegESI, OpKind::MemorySegRSI];
                draft.instruction.set_op_kind(n, kinds[which]);
                let segment = self.override_segment(draft, Register::DS);
                let register = by_size([Register::SI, Register::ESI, Register::RSI]);
                self.pointer(draft, segment, register);
            }
            K::es_rDI => {
                let kinds = [OpKind::MemoryESDI, OpKind::MemoryESEDI, OpKind::MemoryESRDI];
                draft.instruction.set_op_kind(n, kinds[which]);
                let register = by_size([Register::DI, Register::EDI, Register::RDI]);
                self.pointer(draft, Register::ES, register);
            }
            K::seg_rDI => {
                let kinds = [OpKind::MemorySegDI, OpKind::MemorySegEDI, OpKind::MemorySegRDI];
                draft.instruction.set_op_kind(n, kinds[which]);
                let segment = self.override_segment(draft, Register::DS);
                let register = by_size([Register::DI, Register::EDI, Register::RDI]);
                self.pointer(draft, segment, register);
            }
            K::seg_rBX_al => {
                draft.instruction.set_op_kind(n, OpKind::Memory);
                let segment = self.override_segment(draft, Register::DS);
                let base = by_size([Register::BX, Register::EBX, Register::RBX]);
                draft.instruction.set_memory_base(base);
                draft.instruction.set_memory_index(Register::AL);
                let target = self.place(draft, segment, address, Extent::of(1));
                let offset = target.wrapping_sub(draft.base(segment)).wrapping_sub(draft.get(Register::AL));
                draft.fix(base, offset);
                draft.target = Some(target);
            }
            K::mem_offs => {
                draft.instruction.set_op_kind(n, OpKind::Memory);
                let segment = self.override_segment(draft, Register::DS);
                let extent = self.extent(draft);
                let target = self.place(draft, segment, address, extent);
                self.absolute(draft, target.wrapping_sub(draft.base(segment)));
                draft.target = Some(target);
            }
            _ => {
                draft.instruction.set_op_kind(n, OpKind::Memory);
                match address {
                    16 => self.form16(draft),
                    _ => self.modrm(draft, vsib(kind), kind)?,
                }
            }
        }
        Some(())
    }

    /// Points a register at an extent in a segment, and remembers where.
    pub fn pointer(&mut self, draft: &mut Draft, segment: Register, register: Register) {
        let extent = self.extent(draft);
        let address = 8 * register.size() as u8;
        let target = self.place(draft, segment, address, extent);
        draft.fix(register, target.wrapping_sub(draft.base(segment)));
        draft.target = Some(target);
    }

    fn absolute(&mut self, draft: &mut Draft, offset: u64) {
        let address = draft.cell.address;
        draft.instruction.set_memory_displ_size(u32::from(address / 8));
        draft.instruction.set_memory_displacement64(offset & address_mask(address));
    }

    fn form16(&mut self, draft: &mut Draft) {
        let extent = self.extent(draft);
        let forms = FORMS16.len();
        let form = self.rng.usize(..=forms);
        let (base, index) = FORMS16.get(form).copied().unwrap_or((Register::None, Register::None));
        let default = if base == Register::BP { Register::SS } else { Register::DS };
        let segment = self.override_segment(draft, default);
        let target = self.place(draft, segment, 16, extent);
        draft.target = Some(target);
        let offset = target.wrapping_sub(draft.base(segment));
        if base == Register::None {
            return self.absolute(draft, offset);
        }
        draft.instruction.set_memory_base(base);
        draft.instruction.set_memory_index(index);
        let (size, displacement) = match self.rng.u32(..3) {
            0 if base != Register::BP || index != Register::None => (0, 0),
            1 => (2, u64::from(self.rng.u16(..))),
            _ => (1, self.rng.i8(..) as u64 & 0xffff),
        };
        draft.instruction.set_memory_displ_size(size);
        draft.instruction.set_memory_displacement64(displacement);
        let mut rest = offset.wrapping_sub(displacement);
        if index != Register::None {
            let value = u64::from(self.rng.u16(..));
            draft.fix(index, value);
            rest = rest.wrapping_sub(value);
        }
        draft.fix(base, rest & 0xffff);
    }

    /// A general register for an address.
    fn address_register(&mut self, draft: &Draft) -> Register {
        let n = if draft.case.bits == Bits::Bits64 { self.rng.u32(..16) } else { self.rng.u32(..8) };
        if draft.cell.address == 64 { Register::RAX + n } else { Register::EAX + n }
    }

    /// A displacement: its size as iced has it, and its value.
    fn displacement(&mut self, draft: &Draft, extent: Extent) -> (u32, u64) {
        let full = if draft.cell.address == 64 { 8 } else { 4 };
        let evex = draft.cell.code.op_code().encoding() == EncodingKind::EVEX;
        let value = match self.rng.u32(..8) {
            0..3 => return (0, 0),
            // SDM vol. 2A, 2.7.5: EVEX counts in operands.
            3..6 if evex => i64::from(self.rng.i8(..)) * extent.size as i64,
            3..6 => i64::from(self.rng.i8(..)),
            6 => {
                return (full, self.rng.i32(..) as i64 as u64 & address_mask(draft.cell.address));
            }
            _ => return (full, self.rng.i32(-1000..1000) as i64 as u64 & address_mask(draft.cell.address)),
        };
        (1, value as u64 & address_mask(draft.cell.address))
    }

    fn modrm(&mut self, draft: &mut Draft, vsib: Option<Vsib>, kind: OpCodeOperandKind) -> Option<()> {
        use OpCodeOperandKind as K;
        let address = draft.cell.address;
        let mask = address_mask(address);
        let extent = self.extent(draft);
        let scale = 1u32 << self.rng.u32(..4);
        let sib = vsib.is_some() || kind == K::sibmem;
        let no_rip = sib || matches!(kind, K::mem_mpx | K::mem_mib | K::bnd_or_mem_mpx);
        // 0: base; 1: base and index; 2: index alone; 3: absolute; 4: RIP-relative.
        let form = match self.rng.u32(..20) {
            0..8 if !sib => 0,
            0..15 => 1,
            15..17 => 2,
            17 if !sib => 3,
            18.. if !no_rip && draft.case.bits == Bits::Bits64 => 4,
            _ => 1,
        };
        let base = match form {
            0 | 1 => self.address_register(draft),
            4 if address == 64 => Register::RIP,
            4 => Register::EIP,
            _ => Register::None,
        };
        let default = match Draft::number(base) {
            Some(4 | 5) => Register::SS,
            _ => Register::DS,
        };
        let segment = self.override_segment(draft, default);
        let target = self.place(draft, segment, address, extent);
        draft.target = Some(target);
        let offset = target.wrapping_sub(draft.base(segment)) & mask;
        draft.instruction.set_memory_base(base);
        let (mut displ_size, mut displacement) = self.displacement(draft, extent);
        let full = u32::from(address / 8);
        match form {
            3 => {
                // The displacement is sign-extended.
                if address == 64 && offset as i64 != i64::from(offset as i32) {
                    return None;
                }
                self.absolute(draft, offset);
                return Some(());
            }
            4 => {
                let distance = offset.wrapping_sub(draft.case.rip()) as i64;
                if address == 64 && distance.unsigned_abs() > 0x7fff_0000 {
                    return None;
                }
                draft.instruction.set_memory_displ_size(full);
                draft.instruction.set_memory_displacement64(offset);
                return Some(());
            }
            _ => {}
        }
        if displ_size == 0 && matches!(Draft::number(base), Some(5 | 13)) {
            displ_size = 1;
        }
        let index = match (vsib, form) {
            (None, 0) => Register::None,
            (None, _) => loop {
                let index = self.address_register(draft);
                if Draft::number(index) != Some(super::draft::RSP) {
                    break index;
                }
            },
            (Some(v), _) => v.first + self.vector_number(draft),
        };
        draft.instruction.set_memory_index(index);
        draft.instruction.set_memory_index_scale(scale);
        let scale = u64::from(scale);
        if let Some(v) = vsib {
            if base == Register::None {
                // The displacement is the base.
                displ_size = full;
                displacement = offset.wrapping_add(self.rng.u64(..64)).wrapping_sub(32) & mask;
                if address == 64 && displacement as i64 != i64::from(displacement as i32) {
                    return None;
                }
            }
            draft.instruction.set_memory_displ_size(displ_size);
            draft.instruction.set_memory_displacement64(displacement);
            draft.fix(base, offset.wrapping_sub(displacement));
            self.indices(draft, v, index, scale, target);
            return Some(());
        }
        if base == Register::None {
            // index*scale + disp32.
            displ_size = full;
            let rest = offset.wrapping_sub(displacement) % scale;
            displacement = displacement.wrapping_add(rest) & mask;
            if address == 64 && displacement as i64 != i64::from(displacement as i32) {
                displacement = offset % scale;
            }
            draft.fix(index, (offset.wrapping_sub(displacement) & mask) / scale);
        } else if Draft::number(base) == Draft::number(index) && index != Register::None {
            let factor = 1 + scale;
            let rest = offset % factor;
            displ_size = displ_size.max(1);
            displacement = rest;
            draft.fix(base, offset / factor);
        } else {
            let mut rest = offset.wrapping_sub(displacement);
            if index != Register::None {
                let value =
                    if chance(&mut self.rng, 70) { self.rng.i64(-256..256) as u64 } else { self.rng.u64(..) };
                draft.fix(index, value & mask);
                rest = rest.wrapping_sub(draft.get(index).wrapping_mul(scale));
            }
            draft.fix(base, rest & mask);
        }
        // The upper half of a register is not looked at with 32-bit addresses.
        if address == 32 && draft.case.bits == Bits::Bits64 && chance(&mut self.rng, 50) {
            for register in [base, index] {
                if let Some(n) = Draft::number(register) {
                    draft.case.gpr[n] |= self.rng.u64(..) << 32;
                }
            }
        }
        draft.instruction.set_memory_displ_size(displ_size);
        draft.instruction.set_memory_displacement64(displacement);
        Some(())
    }

    /// Indices that lead to places near a target, most of them in data.
    fn indices(&mut self, draft: &mut Draft, vsib: Vsib, index: Register, scale: u64, target: u64) {
        let mut value = [0; 64];
        let wild = chance(&mut self.rng, 6);
        let same = chance(&mut self.rng, 10);
        let lowest = DATA.wrapping_sub(target) as i64;
        let mut last = 0;
        for chunk in value.chunks_exact_mut(vsib.index) {
            let to = if (DATA..READ_ONLY).contains(&target) {
                lowest + self.rng.i64(0..2 * PAGE as i64 - 8)
            } else {
                self.rng.i64(-512..512)
            };
            let mut number = to / scale as i64;
            if same && chance(&mut self.rng, 60) {
                number = last;
            }
            if wild && chance(&mut self.rng, 25) {
                number = self.rng.i64(-0x4000..0x4000);
            }
            last = number;
            chunk.copy_from_slice(&number.to_le_bytes()[..vsib.index]);
        }
        let n = index.number();
        self.image.set_vector(&mut draft.case.xsave, n, &value);
        self.image.set_in_use(&mut draft.case.xsave, u64::MAX);
    }
}
