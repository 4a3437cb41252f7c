//! The guest's checks of paging: page sizes, permissions, error codes, accessed and dirty bits, invalidation.

use super::layout::*;
use super::program::{Assembled, Program};
use iced_x86::code_asm::*;

const P: u64 = 1;
const W: u64 = 2;
const U: u64 = 4;
const LARGE: u64 = 0x80;
const NX: u64 = 1 << 63;
const A: u64 = FRAMES;
const B: u64 = FRAMES + 0x1000;

/// Linear address of page `n` of the window.
pub fn page(n: u64) -> u64 {
    WINDOW + n * 0x1000
}

/// All of them.
pub fn checks(p: &mut Program) -> Assembled {
    sizes(p)?;
    permissions(p)?;
    user(p)?;
    accessed_and_dirty(p)?;
    crossing(p)?;
    p.fault(
        "non-canonical address",
        (13, 0),
        |p| p.a.mov(rsi, 0x8000_0000_0000u64),
        |a| a.mov(rax, qword_ptr(rsi)),
    )?;
    other_space(p)
}

fn sizes(p: &mut Program) -> Assembled {
    let value = 0x1122_3344_5566_7788u64;
    p.map(0, A | P | W)?;
    p.a.mov(rsi, page(0))?;
    p.a.mov(rax, value)?;
    p.a.mov(qword_ptr(rsi + 0x10), rax)?;
    p.check_at("4 KiB page: stored through it", A + 0x10, value)?;
    p.a.mov(rax, LARGE_FRAME | P | W | LARGE)?;
    p.a.mov(qword_ptr(WINDOW_PD + 8), rax)?;
    p.a.mov(rsi, WINDOW + 0x20_0000 + 0x12_3450)?;
    p.a.mov(rax, !value)?;
    p.a.mov(qword_ptr(rsi), rax)?;
    p.check_at("2 MiB page: stored through it", LARGE_FRAME + 0x12_3450, !value)?;
    p.when((0x8000_0001, 0, 3, 26), |p| {
        p.a.mov(rax, P | W | LARGE)?;
        p.a.mov(qword_ptr(WINDOW_PDPT + 8), rax)?;
        p.check_at("1 GiB page: loaded through it", WINDOW + (1 << 30) + A + 0x10, value)
    })?;
    // Bit 13 of a large page's entry is reserved.
    p.a.mov(rax, LARGE_FRAME | P | W | LARGE | 1 << 13)?;
    p.a.mov(qword_ptr(WINDOW_PD + 16), rax)?;
    p.fault(
        "reserved bit",
        (14, 9),
        |p| p.a.mov(rsi, WINDOW + 0x40_0000),
        |a| a.mov(rax, qword_ptr(rsi + 8)),
    )?;
    p.check_at("reserved bit: CR2", F_CR2, WINDOW + 0x40_0008)
}

fn permissions(p: &mut Program) -> Assembled {
    let faulting = |p: &mut Program, name: &str, error: u32, n: u64, write: bool| -> Assembled {
        p.fault(
            name,
            (14, error),
            |p| p.a.mov(rsi, page(n) + 0x123),
            |a| if write { a.mov(byte_ptr(rsi), 1) } else { a.mov(al, byte_ptr(rsi)) },
        )?;
        p.check_at(&format!("{name}: CR2"), F_CR2, page(n) + 0x123)
    };
    faulting(p, "read of an absent page", 0, 1, false)?;
    faulting(p, "write of an absent page", 2, 1, true)?;
    p.map(1, A | P)?;
    faulting(p, "write of a read-only page", 3, 1, true)?;
    p.a.mov(rax, cr0)?;
    p.a.btr(rax, 16)?;
    p.a.mov(cr0, rax)?;
    p.a.mov(rsi, page(1) + 0x20)?;
    p.a.mov(qword_ptr(rsi), 0x77)?;
    p.a.bts(rax, 16)?;
    p.a.mov(cr0, rax)?;
    p.check_at("CR0.WP clear: the supervisor writes a read-only page", A + 0x20, 0x77)?;
    faulting(p, "CR0.WP set again", 3, 1, true)?;
    // A read-modify-write of a read-only page is a write, and changes nothing.
    p.fault(
        "INC of a read-only page",
        (14, 3),
        |p| p.a.mov(rsi, page(1) + 0x20),
        |a| a.lock().inc(qword_ptr(rsi)),
    )?;
    p.check_at("INC of a read-only page: unchanged", A + 0x20, 0x77)?;
    // C3H at A + 800H: RET.
    p.a.mov(byte_ptr(A + 0x800), 0xc3)?;
    p.map(2, A | P | W | NX)?;
    p.a.mov(rax, page(2) + 0x800)?;
    p.a.mov(rbx, rsp)?;
    p.fetch_fault("fetch from a no-execute page", 0x11, page(2) + 0x800)?;
    p.map(2, A | P | W)?;
    p.a.mov(rsi, page(2) + 0x800)?;
    p.a.call(rsi)?;
    p.a.mov(eax, 1)?;
    p.check("fetch from an executable page", 1)?;
    p.fetch_fault("fetch from an absent page", 0x10, page(3))
}

impl Program {
    /// A call there must be #PF with this error code, at the target.
    fn fetch_fault(&mut self, name: &str, error: u32, target: u64) -> Assembled {
        let mut resume = self.a.create_label();
        self.arm(resume)?;
        self.a.mov(rsi, target)?;
        self.a.call(rsi)?;
        self.a.set_label(&mut resume)?;
        self.seen(name, 14, error)?;
        self.check_at(&format!("{name}: RIP"), F_RIP, target)?;
        self.check_at(&format!("{name}: CR2"), F_CR2, target)
    }
}

fn user(p: &mut Program) -> Assembled {
    p.map(4, A | P | W)?;
    p.map(5, A | P | U)?;
    let cases = [
        ("user read of a supervisor page", 5, 4, false),
        ("user write of a supervisor page", 7, 4, true),
        ("user write of a read-only page", 7, 5, true),
        ("user read of an absent page", 4, 6, false),
        ("user write of an absent page", 6, 6, true),
    ];
    for (name, error, n, write) in cases {
        let at = p.user_code(64, |a| {
            a.mov(rsi, page(n) + 0x40)?;
            if write { a.mov(dword_ptr(rsi), 1) } else { a.mov(eax, dword_ptr(rsi)) }
        })?;
        p.in_user_mode(at, USER_CS, false)?;
        p.seen(name, 14, error)?;
        p.check_at(&format!("{name}: CR2"), F_CR2, page(n) + 0x40)?;
        p.check_at(&format!("{name}: CS"), F_CS, u64::from(USER_CS))?;
        p.check_at(&format!("{name}: RIP"), F_RIP, at + 10)?;
    }
    p.a.mov(qword_ptr(A + 0x48), 0x4711)?;
    let at = p.user_code(64, |a| {
        a.mov(rsi, page(5) + 0x48)?;
        a.mov(rbx, qword_ptr(rsi))?;
        a.int(i32::from(VECTOR_USER))
    })?;
    p.a.xor(ebx, ebx)?;
    p.in_user_mode(at, USER_CS, false)?;
    p.seen("INT 80H from user mode", VECTOR_USER, 0)?;
    p.a.mov(rax, rbx)?;
    p.check("user read of a user page", 0x4711)?;
    // SMAP and SMEP: the supervisor at a user page.
    p.when((7, 0, 1, 20), |p| {
        p.a.mov(rax, cr4)?;
        p.a.bts(rax, 21)?;
        p.a.mov(cr4, rax)?;
        p.fault("SMAP", (14, 1), |p| p.a.mov(rsi, page(5)), |a| a.mov(rax, qword_ptr(rsi)))?;
        p.a.stac()?;
        p.a.mov(rsi, page(5) + 0x48)?;
        p.a.mov(rbx, qword_ptr(rsi))?;
        p.a.clac()?;
        p.a.mov(rax, cr4)?;
        p.a.btr(rax, 21)?;
        p.a.mov(cr4, rax)?;
        p.a.mov(rax, rbx)?;
        p.check("SMAP: STAC opens", 0x4711)
    })?;
    p.when((7, 0, 1, 7), |p| {
        p.a.mov(rax, cr4)?;
        p.a.bts(rax, 20)?;
        p.a.mov(cr4, rax)?;
        p.fetch_fault("SMEP", 0x11, page(5) + 0x800)?;
        p.a.mov(rax, cr4)?;
        p.a.btr(rax, 20)?;
        p.a.mov(cr4, rax)
    })
}

fn accessed_and_dirty(p: &mut Program) -> Assembled {
    let entry = WINDOW_PT + 8 * 7;
    p.map(7, B | P | W)?;
    p.check_at("before an access: neither bit", entry, B | P | W)?;
    p.a.mov(rsi, page(7))?;
    p.a.mov(rax, qword_ptr(rsi))?;
    p.check_at("a read sets A", entry, B | P | W | 0x20)?;
    p.a.mov(rsi, page(7))?;
    p.a.mov(qword_ptr(rsi), 5)?;
    p.check_at("a write sets D", entry, B | P | W | 0x60)?;
    // INVLPG: the new entry is used; the guest's own store to its page table needs nothing more.
    p.a.mov(qword_ptr(A), 0xaaaa)?;
    p.a.mov(qword_ptr(B), 0xbbbb)?;
    p.map(7, A | P | W)?;
    p.check_at("INVLPG: the new frame", page(7), 0xaaaa)?;
    p.map(7, 0)?;
    p.fault("INVLPG: absent", (14, 0), |p| p.a.mov(rsi, page(7)), |a| a.mov(rax, qword_ptr(rsi)))?;
    // From absent to present needs no invalidation.
    p.a.mov(rax, B | P | W)?;
    p.a.mov(qword_ptr(entry), rax)?;
    p.check_at("absent to present without INVLPG", page(7), 0xbbbb)?;
    // A page table that is itself reached through the window, changed there.
    p.map(8, WINDOW_PT | P | W)?;
    p.a.mov(rsi, page(8) + 8 * 9)?;
    p.a.mov(rax, A | P | W)?;
    p.a.mov(qword_ptr(rsi), rax)?;
    p.check_at("a page table changed through an alias", page(9), 0xaaaa)?;
    p.a.mov(rsi, page(8) + 8 * 9)?;
    p.a.mov(dword_ptr(rsi), (B | P | W) as u32)?;
    p.a.mov(rsi, page(9))?;
    p.a.invlpg(ptr(rsi))?;
    p.check_at("half of an entry changed", page(9), 0xbbbb)
}

fn crossing(p: &mut Program) -> Assembled {
    // Page 10 is frame B, page 11 frame A: linear neighbours, physical strangers the other way around.
    p.map(10, B | P | W)?;
    p.map(11, A | P | W)?;
    p.a.mov(rsi, page(11) - 3)?;
    p.a.mov(rax, 0x8877_6655_4433_2211u64)?;
    p.a.mov(qword_ptr(rsi), rax)?;
    p.a.mov(eax, dword_ptr(B + 0xffc))?;
    p.a.shr(eax, 8)?;
    p.check("a store across pages: first part", 0x33_2211)?;
    p.a.mov(rax, qword_ptr(A))?;
    p.a.shl(rax, 24)?;
    p.a.shr(rax, 24)?;
    p.check("a store across pages: second part", 0x88_7766_5544)?;
    p.a.mov(rsi, page(11) - 3)?;
    p.a.mov(rax, qword_ptr(rsi))?;
    p.check("a load across pages", 0x8877_6655_4433_2211)?;
    p.a.mov(rsi, page(11) - 3)?;
    p.a.lock().add(qword_ptr(rsi), 1)?;
    p.a.mov(rax, qword_ptr(rsi))?;
    p.check("LOCK ADD across pages", 0x8877_6655_4433_2212)?;
    p.map(11, 0)?;
    p.fault(
        "a store into an absent second page",
        (14, 2),
        |p| p.a.mov(rsi, page(11) - 3),
        |a| a.mov(qword_ptr(rsi), 0),
    )?;
    p.check_at("a store into an absent second page: CR2", F_CR2, page(11))?;
    p.a.mov(eax, dword_ptr(B + 0xffc))?;
    p.a.shr(eax, 8)?;
    p.check("a store into an absent second page: the first part is not written", 0x33_2212)?;
    // An instruction across pages whose second part is absent.
    p.a.mov(word_ptr(B + 0xffe), 0xb8b8u32)?;
    p.fetch_fault_across("an instruction into an absent page", page(11) - 2, page(11))?;
    p.map(11, A | P | W)?;
    p.a.mov(dword_ptr(A), 0xc3_00_00_12u32)?;
    p.a.mov(word_ptr(B + 0xffe), 0x34b8u32)?;
    p.a.mov(rsi, page(11) - 2)?;
    p.a.call(rsi)?;
    p.check("an instruction across pages", 0x1234)
}

impl Program {
    fn fetch_fault_across(&mut self, name: &str, target: u64, address: u64) -> Assembled {
        let mut resume = self.a.create_label();
        self.arm(resume)?;
        self.a.mov(rsi, target)?;
        self.a.call(rsi)?;
        self.a.set_label(&mut resume)?;
        self.seen(name, 14, 0x10)?;
        self.check_at(&format!("{name}: RIP"), F_RIP, target)?;
        self.check_at(&format!("{name}: CR2"), F_CR2, address)
    }
}

fn other_space(p: &mut Program) -> Assembled {
    // The other address space has no window.
    p.a.mov(rax, qword_ptr(PML4))?;
    p.a.mov(qword_ptr(PML4_B), rax)?;
    p.a.mov(rax, PML4_B)?;
    p.a.mov(cr3, rax)?;
    p.fault("another CR3: no window", (14, 0), |p| p.a.mov(rsi, page(10)), |a| a.mov(rax, qword_ptr(rsi)))?;
    p.a.mov(rax, PML4)?;
    p.a.mov(cr3, rax)?;
    p.check_at("the first CR3 again", page(7), 0xbbbb)
}
