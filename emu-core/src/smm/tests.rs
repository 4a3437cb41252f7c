//! SMI and RSM: the save area byte by byte, the handler's first state, what is restored and what is refused, and what
//! waits meanwhile.

use super::save_area;
use crate::event::{Activity, Events, Shadow};
use crate::exit::Exit;
use crate::rig::{CODE, Mode, RAM, Rig, every_feature};
use crate::vcpu::RIP;
use memmap2::MmapMut;
use std::sync::atomic::Ordering;
use x86_arch::control::{Cr0, Cr4, Dr6, Dr7, Efer};
use x86_arch::{DescriptorTable, Gpa, Gpr, Rflags, Seg, Segment};

const SMBASE: u64 = 0xa_0000;
const HANDLER: u64 = SMBASE + 0x8000;
const AREA: u64 = SMBASE + save_area::BEGIN;
const RSM: [u8; 2] = [0x0f, 0xaa];
const HLT: u8 = 0xf4;
const NOP: u8 = 0x90;

const MODES: [Mode; 6] =
    [Mode::Long, Mode::Compat, Mode::Protected, Mode::Protected16, Mode::Real, Mode::Virtual8086];

struct Machine {
    rig: Rig,
    _smram: MmapMut,
}

impl Machine {
    fn new(mode: Mode) -> Machine {
        let mut rig = Rig::new(mode);
        let smram = rig.system_management_memory(SMBASE);
        rig.cpu().msr.smbase = SMBASE;
        // Where no test puts code there are NOPs.
        rig.write(CODE, &[NOP; 256]);
        let mut machine = Machine { rig, _smram: smram };
        machine.handler(&RSM);
        machine
    }

    /// A processor without 64-bit mode.
    fn narrow(mode: Mode) -> Machine {
        let mut machine = Machine::new(mode);
        let mut rows = every_feature().entries().to_vec();
        for r in rows.iter_mut().filter(|r| r.leaf == 0x8000_0001) {
            r.result.edx &= !(1 << 29);
        }
        machine.rig.cpu().cpuid = crate::cpuid::CpuidTable::new(rows);
        machine
    }

    fn memory(&self) -> softmmu::GuestMemory {
        self.rig.vm.mmu.guest_memory(1)
    }

    fn handler(&mut self, code: &[u8]) {
        self.memory().write(Gpa(HANDLER), code).unwrap();
    }

    /// A field of the save area, by the manuals' offset.
    fn field(&self, at: u64, bytes: usize) -> u64 {
        let mut b = [0; 8];
        self.memory().read(Gpa(SMBASE + 0x8000 + at), &mut b[..bytes]).unwrap();
        u64::from_le_bytes(b)
    }

    fn set_field(&self, at: u64, bytes: usize, v: u64) {
        self.memory().write(Gpa(SMBASE + 0x8000 + at), &v.to_le_bytes()[..bytes]).unwrap();
    }

    fn smi(&mut self) {
        self.rig.cpu().events.smi_pending = true;
    }

    fn run(&mut self, bound: u64) -> Exit {
        self.rig.processor.run(Some(bound))
    }

    fn events(&mut self) -> &mut Events {
        &mut self.rig.cpu().events
    }
}

/// All that an SMI and RSM must bring back.
#[derive(PartialEq, Debug)]
struct State {
    regs: [u64; 18],
    rflags: u64,
    seg: [Segment; 8],
    tables: [DescriptorTable; 2],
    control: (Cr0, u64, Cr4, Efer),
    debug: (Dr6, Dr7),
    cpl: u8,
    masks: (u64, u64),
    shadow: Shadow,
    smm: bool,
}

fn state(m: &mut Machine) -> State {
    let v = m.rig.cpu();
    State {
        regs: v.hot.regs,
        rflags: v.hot.rflags,
        seg: v.seg,
        tables: [v.gdtr, v.idtr],
        control: (v.cr0, v.cr3, v.cr4, v.efer),
        debug: (v.dr6, v.dr7),
        cpl: v.cpl,
        masks: (v.hot.linear_mask, v.hot.rip_mask),
        shadow: v.events.shadow,
        smm: v.events.smm,
    }
}

#[test]
fn round_trips() {
    for mode in MODES {
        for user in [false, true] {
            for shadow in [Shadow::None, Shadow::Sti, Shadow::MovSs] {
                let mut m = Machine::new(mode);
                if user && !matches!(mode, Mode::Real | Mode::Virtual8086) {
                    m.rig.user();
                }
                m.rig.set_flags(Rflags::all(), m.rig.flags() | 0xad5);
                for n in (0..16).filter(|n| *n != Gpr::Rsp as usize) {
                    m.rig.cpu().hot.regs[n] = 0x0123_4567_89ab_cdef_u64.rotate_left(n as u32);
                }
                m.rig.cpu().dr6 = Dr6::from_bits_retain(0xffff_4ff1);
                m.rig.cpu().dr7 = Dr7::from_bits_retain(0x700);
                m.events().shadow = shadow;
                let before = state(&mut m);
                m.smi();
                // RSM alone, then a look between.
                assert_eq!(m.run(1), Exit::Bound, "{mode:?}");
                assert_eq!(state(&mut m), before, "{mode:?} {user} {shadow:?}");
                assert_eq!(m.rig.cpu().msr.smi_count, 1);
                assert!(!m.events().smi_pending && !m.events().nmi_masked);
                // And the guest goes on in its own memory.
                assert_eq!(m.run(1), Exit::Bound);
                assert_eq!(m.rig.cpu().rip(), before.regs[RIP] + 1, "{mode:?}");
            }
        }
    }
}

/// AMD APM vol. 2, table 10-1.
#[test]
fn the_save_area_of_64_bit_processors() {
    let mut m = Machine::new(Mode::Long);
    m.memory().fill(Gpa(AREA), 0x5a, 512).unwrap();
    for n in 0..16 {
        m.rig.cpu().hot.regs[n] = 0xabcd_0000_0000_0000 + n as u64;
    }
    m.rig.set_flags(Rflags::all(), 0x247);
    m.rig.cpu().dr6 = Dr6::from_bits_retain(0xffff_0ff1);
    m.rig.cpu().dr7 = Dr7::from_bits_retain(0x702);
    let v = m.rig.cpu();
    v.seg[Seg::Fs as usize].base = 0x1122_3344_5566;
    v.seg[Seg::Fs as usize].unusable = true;
    v.seg[Seg::Ldtr as usize] =
        Segment { base: 0x9_8765, limit: 0x17, typ: 2, present: true, ..Segment::default() };
    v.events.shadow = Shadow::Sti;
    let (cr0, cr3, cr4, efer) = (v.cr0.bits(), v.cr3, v.cr4.bits(), v.efer.bits());
    m.smi();
    assert_eq!(m.run(0), Exit::Bound);
    assert!(!m.events().smm, "the bound comes first");
    m.handler(&[NOP, NOP]);
    assert_eq!(m.run(1), Exit::Bound);
    assert!(m.events().smm);
    let rows: &[(u64, usize, u64)] = &[
        // ES: selector, attributes, limit, base.
        (0x7e00, 2, 0x10),
        (0x7e02, 2, 0xc093),
        (0x7e04, 4, 0xffff_ffff),
        (0x7e08, 8, 0),
        (0x7e10, 2, 8),
        (0x7e12, 2, 0xa09b),
        (0x7e20, 2, 0x10),
        (0x7e30, 2, 0x10),
        // FS, which is unusable.
        (0x7e42, 2, 0xc013),
        (0x7e48, 8, 0x1122_3344_5566),
        (0x7e50, 2, 0x10),
        (0x7e64, 4, 0x47),
        (0x7e68, 8, crate::rig::GDT),
        (0x7e72, 2, 0x82),
        (0x7e74, 4, 0x17),
        (0x7e78, 8, 0x9_8765),
        (0x7e84, 4, 0xfff),
        (0x7e88, 8, crate::rig::IDT),
        (0x7e90, 2, 0x48),
        (0x7e92, 2, 0x8b),
        (0x7e94, 4, 0x7ff),
        (0x7e98, 8, crate::rig::TSS),
        (0x7ec8, 1, 0),
        (0x7ec9, 1, 0),
        (0x7ecb, 1, 2),
        (0x7ed0, 8, efer),
        (0x7efc, 4, 0x2_0064),
        (0x7f00, 4, SMBASE),
        (0x7f48, 8, cr4),
        (0x7f50, 8, cr3),
        (0x7f58, 8, cr0),
        (0x7f60, 8, 0x702),
        (0x7f68, 8, 0xffff_0ff1),
        (0x7f70, 8, 0x247),
        (0x7f78, 8, CODE),
        (0x7f80, 8, 0xabcd_0000_0000_000f),
        (0x7fb8, 8, 0xabcd_0000_0000_0008),
        (0x7fd8, 8, 0xabcd_0000_0000_0004),
        (0x7ff8, 8, 0xabcd_0000_0000_0000),
        // Reserved fields are zero.
        (0x7ea0, 8, 0),
        (0x7f08, 8, 0),
    ];
    for &(at, bytes, want) in rows {
        assert_eq!(m.field(at, bytes), want, "{at:x}");
    }
}

/// SDM vol. 3C, table 34-1, and KVM's places for what it leaves out.
#[test]
fn the_save_area_of_32_bit_processors() {
    let mut m = Machine::narrow(Mode::Protected);
    for n in 0..8 {
        m.rig.cpu().hot.regs[n] = 0xabcd_0000 + n as u64;
    }
    let v = m.rig.cpu();
    v.seg[Seg::Gs as usize].base = 0x1122_3344;
    let (cr0, cr3, cr4) = (v.cr0.bits(), v.cr3, v.cr4.bits());
    m.handler(&[NOP, NOP]);
    m.smi();
    assert_eq!(m.run(1), Exit::Bound);
    let rows: &[(u64, usize, u64)] = &[
        (0x7ef8, 4, SMBASE),
        (0x7efc, 4, 0x2_0000),
        (0x7f00, 4, 0),
        (0x7f14, 4, cr4),
        // DS, GS, IDTR, TR, GDTR, ES, CS, SS: attributes, limit, base.
        (0x7f2c, 4, 0x00c0_9300),
        (0x7f30, 4, 0xffff_ffff),
        (0x7f34, 4, 0),
        (0x7f44, 4, 0x00c0_9300),
        (0x7f4c, 4, 0x1122_3344),
        (0x7f54, 4, 0xfff),
        (0x7f58, 4, crate::rig::IDT),
        (0x7f5c, 4, 0x8b00),
        (0x7f60, 4, 0x7ff),
        (0x7f64, 4, crate::rig::TSS),
        (0x7f70, 4, 0x47),
        (0x7f74, 4, crate::rig::GDT),
        (0x7f78, 4, 0),
        (0x7f84, 4, 0x00c0_9300),
        (0x7f90, 4, 0x00c0_9b00),
        (0x7f9c, 4, 0x00c0_9300),
        (0x7fa8, 4, 0x10),
        (0x7fac, 4, 0x18),
        (0x7fb0, 4, 0x10),
        (0x7fc4, 4, 0x48),
        (0x7fc8, 4, 0x400),
        (0x7fcc, 4, 0xffff_0ff0),
        (0x7fd0, 4, 0xabcd_0000),
        (0x7fe0, 4, 0xabcd_0004),
        (0x7fec, 4, 0xabcd_0007),
        (0x7ff0, 4, CODE),
        (0x7ff4, 4, 2),
        (0x7ff8, 4, cr3),
        (0x7ffc, 4, cr0),
    ];
    for &(at, bytes, want) in rows {
        assert_eq!(m.field(at, bytes), want, "{at:x}");
    }
    // And back.
    m.handler(&RSM);
    m.rig.cpu().set_rip(0x8000);
    m.rig.processor.forget_blocks();
    assert_eq!(m.run(1), Exit::Bound);
    let v = m.rig.cpu();
    assert_eq!((v.cr0.bits(), v.cr4.bits(), v.rip(), v.events.smm), (cr0, cr4, CODE, false));
    assert_eq!(m.rig.get(Gpr::Rdi), 0xabcd_0007);
}

/// SDM vol. 3C, table 34-4.
#[test]
fn the_handlers_first_state() {
    for mode in MODES {
        let mut m = Machine::new(mode);
        m.handler(&[NOP, NOP]);
        m.rig.set_flags(Rflags::all(), m.rig.flags() | 0xad5);
        m.rig.cpu().cr0 |= Cr0::TS | Cr0::EM;
        m.rig.cpu().dr7 = Dr7::from_bits_retain(0x702);
        m.events().shadow = Shadow::MovSs;
        let cr3 = m.rig.cpu().cr3;
        m.smi();
        assert_eq!(m.run(1), Exit::Bound, "{mode:?}");
        let v = m.rig.cpu();
        assert_eq!((v.rip(), v.hot.rflags, v.cpl), (0x8001, 2, 0));
        assert!(!v.cr0.intersects(Cr0::PE | Cr0::EM | Cr0::TS | Cr0::PG));
        assert!(v.cr0.contains(Cr0::MP | Cr0::NE));
        assert_eq!((v.cr3, v.cr4, v.efer, v.dr7), (cr3, Cr4::empty(), Efer::empty(), Dr7::FIXED));
        assert_eq!((v.idtr.base, v.idtr.limit, v.gdtr.limit), (0, 0, 0x47));
        assert_eq!(v.events.shadow, Shadow::None);
        let cs = v.segment(Seg::Cs);
        assert_eq!((cs.selector.0, cs.base, cs.limit), (0xa000, SMBASE, u32::MAX));
        for s in [Seg::Es, Seg::Ss, Seg::Ds, Seg::Fs, Seg::Gs] {
            let s = v.segment(s);
            assert_eq!((s.selector.0, s.base, s.limit, s.typ, s.db), (0, 0, u32::MAX, 3, false));
        }
    }
}

/// The handler is real mode with segments of 4 GiB, in memory that the guest does not see.
#[test]
fn another_address_space() {
    let mut m = Machine::new(Mode::Long);
    m.rig.write(HANDLER, &[HLT]);
    m.rig.write(HANDLER + 0x100, &[0x11; 4]);
    m.handler(&[
        // mov eax, cs:[8100h]; mov ds:[180000h], eax; rsm
        0x66, 0x2e, 0xa1, 0x00, 0x81, // mov eax, cs:[8100h]
        0x67, 0x66, 0xa3, 0x00, 0x00, 0x18, 0x00, // mov [180000h], eax
        0x0f, 0xaa,
    ]);
    m.memory().write(Gpa(HANDLER + 0x100), &[0x22; 4]).unwrap();
    m.smi();
    assert_eq!(m.run(3), Exit::Bound);
    assert_eq!(m.rig.read_u64(0x18_0000), 0x2222_2222, "memory outside is shared");
    assert!(!m.events().smm);
    // The same address afterwards is the guest's own again: a HLT.
    m.rig.cpu().set_rip(HANDLER);
    assert_eq!(m.run(5), Exit::Hlt);
}

/// Firmware leaves the handler's first 64 KiB by a near jump with a 32-bit operand, at once.
#[test]
fn the_handler_jumps_far_away_in_its_segment() {
    let mut m = Machine::new(Mode::Long);
    // mov ebp, 11234h; jmp ebp
    m.handler(&[0x66, 0xbd, 0x34, 0x12, 0x01, 0x00, 0x66, 0xff, 0xe5]);
    // mov ax, 7777h; jmp $+10h
    m.memory().write(Gpa(SMBASE + 0x1_1234), &[0xb8, 0x77, 0x77, 0xeb, 0x0e]).unwrap();
    m.smi();
    assert_eq!(m.run(3), Exit::Bound);
    assert_eq!((m.rig.cpu().rip(), m.rig.get(Gpr::Rax) & 0xffff), (0x1_1237, 0x7777));
    // A branch with a 16-bit operand truncates.
    assert_eq!(m.run(1), Exit::Bound);
    assert_eq!(m.rig.cpu().rip(), 0x1247);
}

#[test]
fn rsm_refuses() {
    type Spoil = (&'static str, Mode, u64, usize, u64);
    let rows: &[Spoil] = &[
        ("PG without PE", Mode::Long, 0x7f58, 4, 0x8000_0010),
        ("NW without CD", Mode::Long, 0x7f58, 4, 0xa000_0011),
        ("CR0, upper half", Mode::Long, 0x7f5c, 4, 1),
        ("a reserved bit of CR4", Mode::Long, 0x7f48, 4, 0x8000_0020),
        ("long mode without PAE", Mode::Long, 0x7f48, 4, 0),
        ("PCIDE outside long mode", Mode::Protected, 0x7f48, 4, 1 << 17),
        ("a reserved bit of EFER", Mode::Long, 0x7ed0, 8, 0x501 | 1 << 20),
        ("CR3 too wide", Mode::Long, 0x7f50, 8, 1 << 52 | 0x1000),
        ("DR7, upper half", Mode::Long, 0x7f64, 4, 1),
        ("DR6, upper half", Mode::Long, 0x7f6c, 4, 1),
        ("VM in long mode", Mode::Long, 0x7f70, 4, 0x2_0002),
        ("VM in real mode", Mode::Real, 0x7f70, 4, 0x2_0002),
    ];
    for &(what, mode, at, bytes, value) in rows {
        let mut m = Machine::new(mode);
        m.handler(&[NOP, 0x0f, 0xaa]);
        m.smi();
        assert_eq!(m.run(1), Exit::Bound);
        m.set_field(at, bytes, value);
        let before = state(&mut m);
        assert_eq!(m.run(1), Exit::Shutdown, "{what}");
        assert_eq!(state(&mut m), before, "{what}");
    }
    // PAE paging whose page-directory pointers have reserved bits set.
    let mut m = Machine::new(Mode::Protected);
    m.handler(&[NOP, 0x0f, 0xaa]);
    m.smi();
    assert_eq!(m.run(1), Exit::Bound);
    m.rig.write(0x8000, &[0xff; 32]);
    m.set_field(0x7f48, 4, Cr4::PAE.bits());
    m.set_field(0x7f50, 8, 0x8000);
    assert_eq!(m.run(1), Exit::Shutdown);
}

/// EFER.LMA follows from LME and PG, whatever the area says.
#[test]
fn the_mode_follows_from_the_registers() {
    let mut m = Machine::new(Mode::Long);
    m.handler(&[NOP, 0x0f, 0xaa]);
    m.smi();
    assert_eq!(m.run(1), Exit::Bound);
    m.set_field(0x7ed0, 8, (Efer::LME | Efer::NXE).bits());
    assert_eq!(m.run(1), Exit::Bound);
    assert!(m.rig.cpu().long64());
    m.smi();
    m.rig.cpu().set_rip(CODE);
    assert_eq!(m.run(1), Exit::Bound);
    m.set_field(0x7ed0, 8, Efer::LMA.bits());
    m.set_field(0x7f58, 8, Cr0::ET.bits());
    assert_eq!(m.run(1), Exit::Bound);
    assert!(m.rig.cpu().real_mode() && !m.rig.cpu().long_mode());
}

#[test]
fn the_handler_moves_smbase() {
    let mut m = Machine::new(Mode::Long);
    m.handler(&[NOP, 0x0f, 0xaa]);
    m.smi();
    assert_eq!(m.run(1), Exit::Bound);
    m.set_field(0x7f00, 4, SMBASE + 0x1_0000 - 0x400);
    assert_eq!(m.run(1), Exit::Bound);
    assert_eq!(m.rig.cpu().msr.smbase, SMBASE + 0xfc00);
    m.memory().write(Gpa(SMBASE + 0x1_7c00), &[NOP]).unwrap();
    m.smi();
    assert_eq!(m.run(1), Exit::Bound);
    let v = m.rig.cpu();
    assert_eq!((v.rip(), v.segment(Seg::Cs).base), (0x8001, SMBASE + 0xfc00));
}

#[test]
fn what_waits_in_smm() {
    // Another SMI: taken after RSM, before the guest's next instruction.
    let mut m = Machine::new(Mode::Long);
    m.smi();
    m.handler(&[NOP, 0x0f, 0xaa]);
    assert_eq!(m.run(1), Exit::Bound);
    m.smi();
    assert_eq!(m.run(2), Exit::Bound);
    assert!(m.events().smm && !m.events().smi_pending);
    assert_eq!((m.rig.cpu().msr.smi_count, m.rig.cpu().rip()), (2, 0x8001));
    assert_eq!(m.field(0x7f78, 8), CODE);

    // INIT.
    let mut m = Machine::new(Mode::Long);
    m.smi();
    m.handler(&[NOP, NOP, 0x0f, 0xaa]);
    assert_eq!(m.run(1), Exit::Bound);
    m.events().init_pending = true;
    assert_eq!(m.run(1), Exit::Bound);
    assert!(m.events().smm && m.events().init_pending);
    assert_eq!(m.rig.cpu().rip(), 0x8002);
    assert_eq!(m.run(1), Exit::Bound);
    // RSM; then INIT, behind which there is no memory here.
    m.run(1);
    assert!(!m.events().init_pending);
    assert_eq!(m.rig.cpu().segment(Seg::Cs).selector.0, 0xf000);
    assert_eq!(m.rig.cpu().msr.smbase, SMBASE, "INIT leaves it");
}

/// SDM vol. 3C, 34.8.
#[test]
fn nmi_in_smm() {
    // Blocked; IRET opens it there; RSM brings back what was outside.
    for (masked_outside, iret) in [(false, false), (true, false), (false, true), (true, true)] {
        let mut m = Machine::new(Mode::Real);
        m.rig.write(0x5000, &[0; 6]);
        // iret pops IP, CS, FLAGS at SS:SP, which lies in memory outside.
        m.rig.write(0x5000, &[0x01, 0x80, 0x00, 0xa0, 0x02, 0x00]);
        m.rig.set(Gpr::Rsp, 0x5000);
        m.handler(if iret { &[0xcf, NOP, 0x0f, 0xaa] } else { &[NOP, NOP, 0x0f, 0xaa] });
        m.events().nmi_masked = masked_outside;
        m.smi();
        assert_eq!(m.run(1), Exit::Bound);
        assert_eq!(m.rig.cpu().rip(), 0x8001);
        assert_eq!((m.events().smm_inside_nmi, m.events().nmi_masked), (masked_outside, !iret));
        assert_eq!(m.run(2), Exit::Bound);
        let masked = masked_outside && !iret;
        assert_eq!((m.events().smm_inside_nmi, m.events().nmi_masked), (false, masked));
    }
    // One that came meanwhile is delivered after RSM.
    let mut m = Machine::new(Mode::Real);
    m.rig.cpu().idtr = DescriptorTable { base: 0, limit: 0x3ff };
    m.rig.write(8, &[0x34, 0x12, 0x00, 0x10]);
    m.rig.write(0x1_1234, &[NOP; 4]);
    m.handler(&[NOP, 0x0f, 0xaa]);
    m.smi();
    m.events().nmi_pending = 1;
    assert_eq!(m.run(1), Exit::Bound);
    assert!(m.events().smm, "SMI comes before NMI");
    assert_eq!(m.run(2), Exit::Bound);
    assert_eq!((m.rig.cpu().rip(), m.events().nmi_pending), (0x1235, 0));
}

/// SDM vol. 3C, 34.10.
#[test]
fn halt() {
    for cleared in [false, true] {
        let mut m = Machine::new(Mode::Long);
        // Without controllers inside, a HLT that exits leaves nobody halted.
        m.rig.vm.choices.hlt_in_guest.store(true, Ordering::Relaxed);
        m.rig.write(CODE, &[HLT, NOP, NOP]);
        m.handler(&[NOP, 0x0f, 0xaa]);
        assert_eq!(m.run(1), Exit::Bound);
        assert_eq!(m.events().activity, Activity::Halted);
        m.smi();
        assert_eq!(m.run(1), Exit::Bound);
        assert_eq!(m.events().activity, Activity::Runnable);
        assert_eq!((m.field(0x7ec9, 1), m.field(0x7f78, 8)), (1, CODE + 1));
        if cleared {
            m.set_field(0x7ec9, 1, 0);
            assert_eq!(m.run(2), Exit::Bound);
            assert_eq!((m.rig.cpu().rip(), m.events().activity), (CODE + 2, Activity::Runnable));
        } else {
            assert_eq!(m.run(2), Exit::Bound);
            assert_eq!((m.rig.cpu().rip(), m.events().activity), (CODE + 1, Activity::Halted));
        }
    }
}

/// An SMI waits for who waits for SIPI, and for an exception whose delivery was begun.
#[test]
fn what_an_smi_waits_for() {
    let mut m = Machine::new(Mode::Long);
    m.handler(&[NOP, NOP]);
    m.events().activity = Activity::InitReceived;
    m.rig.cpu().shared.gate.request(softmmu::Requests::EXIT);
    m.smi();
    assert_eq!(m.run(1), Exit::Interrupted);
    assert!(!m.events().smm && m.events().smi_pending);
    m.events().sipi_vector = Some(0x10);
    assert_eq!(m.run(1), Exit::Bound);
    assert!(m.events().smm);
    assert_eq!(m.field(0x7e10, 2), 0x1000);

    // The single-step trap of the instruction before: its frame is pushed, then comes the SMI.
    let mut m = Machine::new(Mode::Real);
    m.handler(&[NOP, NOP]);
    m.rig.cpu().idtr = DescriptorTable { base: 0, limit: 0x3ff };
    m.rig.write(4, &[0x34, 0x12, 0x00, 0x10]);
    m.rig.set_flags(Rflags::TF, Rflags::TF.bits());
    assert_eq!(m.run(1), Exit::Bound);
    m.smi();
    assert_eq!(m.run(1), Exit::Bound);
    assert!(m.events().smm);
    assert_eq!(m.field(0x7f78, 8), 0x1234);
    assert_eq!(m.rig.cpu().rip(), 0x8001, "and the handler is not stepped");
}

#[test]
fn a_step_at_a_time() {
    let mut m = Machine::new(Mode::Long);
    m.rig.processor.vcpu.debug.single_step = true;
    m.handler(&[NOP, 0x0f, 0xaa]);
    m.smi();
    for (pc, smm) in [(HANDLER + 1, true), (CODE, false), (CODE + 1, false)] {
        match m.run(100) {
            Exit::Debug { exception: 1, pc: at, dr6, .. } => {
                assert_eq!((at, dr6 & 0x4000, m.events().smm), (pc, 0x4000, smm))
            }
            e => panic!("{e:?}"),
        }
    }
}

#[test]
fn no_memory_for_it() {
    let mut rig = Rig::new(Mode::Long);
    rig.cpu().events.smi_pending = true;
    assert_eq!(rig.processor.run(Some(1)), Exit::Shutdown);
    assert!(!rig.cpu().events.smm);
    let mut m = Machine::new(Mode::Long);
    m.rig.cpu().msr.smbase = RAM - save_area::BEGIN - 256;
    m.smi();
    assert_eq!(m.run(1), Exit::Shutdown);
    assert!(!m.events().smm);
}
