//! Building the guest: its checks, expected faults, interrupt gates and user-mode snippets, as assembler text.
//!
//! Not what is checked: that is in the files beside this one, a subject each. A check compares RAX with the
//! expected value in RDX and reports through [`PORT_REPORT`]; it destroys RAX, RCX and RDX.

use super::layout::*;
use iced_x86::IcedError;
use iced_x86::code_asm::*;

/// What assembling returns.
pub type Assembled<T = ()> = Result<T, IcedError>;

/// Subroutines that every part may call.
#[derive(Clone, Copy)]
pub struct Routines {
    /// Compares RAX with RDX; ECX is the check's number.
    pub report: CodeLabel,
    /// Makes the gate of vector EDI: handler RAX, IST and type in ESI.
    pub set_gate: CodeLabel,
    /// RAX: kvmclock's nanoseconds, from the structure at RSI.
    pub kvmclock: CodeLabel,
    /// Exceptions and [`VECTOR_USER`]: behind the vector and the error code on the stack.
    pub fault: CodeLabel,
    /// Where SYSCALL arrives.
    pub syscall: CodeLabel,
    /// Where the second processor goes once it is in 64-bit mode.
    pub second: CodeLabel,
}

/// The guest's 64-bit part while it is assembled.
pub struct Program {
    /// The assembler.
    pub a: CodeAssembler,
    /// Subroutines.
    pub routines: Routines,
    /// Names of the checks, by number.
    pub names: Vec<String>,
    /// User-mode code, from [`USER_CODE`].
    pub user: Vec<u8>,
}

impl Program {
    /// An empty program.
    pub fn new() -> Assembled<Program> {
        let mut a = CodeAssembler::new(64)?;
        let mut label = || a.create_label();
        let routines = Routines {
            report: label(),
            set_gate: label(),
            kvmclock: label(),
            fault: label(),
            syscall: label(),
            second: label(),
        };
        Ok(Program { a, routines, names: Vec::new(), user: Vec::new() })
    }

    fn number(&mut self, name: &str) -> u32 {
        self.names.push(name.into());
        self.names.len() as u32 - 1
    }

    /// RAX must be `expected`.
    pub fn check(&mut self, name: &str, expected: u64) -> Assembled {
        self.a.mov(rdx, expected)?;
        self.check_rdx(name)
    }

    /// RAX must be RDX.
    pub fn check_rdx(&mut self, name: &str) -> Assembled {
        let n = self.number(name);
        self.a.mov(ecx, n)?;
        self.a.call(self.routines.report)
    }

    /// RAX must be `least` or more.
    pub fn check_least(&mut self, name: &str, least: u64) -> Assembled {
        self.a.mov(rdx, least)?;
        self.a.cmp(rax, rdx)?;
        self.a.cmovae(rax, rdx)?;
        self.check_rdx(name)
    }

    /// The eight bytes at `address` must be `expected`.
    pub fn check_at(&mut self, name: &str, address: u64, expected: u64) -> Assembled {
        self.a.mov(rax, address)?;
        self.a.mov(rax, qword_ptr(rax))?;
        self.check(name, expected)
    }

    /// Emits `body` to run only where CPUID has this bit (register 0 EAX to 3 EDX); its checks are reported as
    /// absent elsewhere.
    pub fn when(
        &mut self,
        (leaf, subleaf, register, bit): (u32, u32, usize, u32),
        body: impl FnOnce(&mut Program) -> Assembled,
    ) -> Assembled {
        let (mut absent, mut end) = (self.a.create_label(), self.a.create_label());
        self.a.mov(eax, leaf)?;
        self.a.mov(ecx, subleaf)?;
        self.a.cpuid()?;
        self.a.bt([eax, ebx, ecx, edx][register & 3], bit)?;
        self.a.jnc(absent)?;
        let first = self.names.len();
        body(self)?;
        self.a.jmp(end)?;
        self.a.set_label(&mut absent)?;
        for n in first..self.names.len() {
            self.a.mov(eax, n as u32 | ABSENT)?;
            self.a.mov(edx, u32::from(PORT_REPORT))?;
            self.a.out(dx, eax)?;
        }
        self.a.set_label(&mut end)?;
        self.a.nop()
    }

    /// `body` must raise this exception with this error code at its first instruction.
    pub fn fault(
        &mut self,
        name: &str,
        (vector, error): (u8, u32),
        prepare: impl FnOnce(&mut Program) -> Assembled,
        body: impl FnOnce(&mut CodeAssembler) -> Assembled,
    ) -> Assembled {
        self.expect(name, (vector, error), false, prepare, body)
    }

    /// `body` must raise this exception once it is done: a trap.
    pub fn trap(
        &mut self,
        name: &str,
        vector: u8,
        prepare: impl FnOnce(&mut Program) -> Assembled,
        body: impl FnOnce(&mut CodeAssembler) -> Assembled,
    ) -> Assembled {
        self.expect(name, (vector, 0), true, prepare, body)
    }

    fn expect(
        &mut self,
        name: &str,
        (vector, error): (u8, u32),
        behind: bool,
        prepare: impl FnOnce(&mut Program) -> Assembled,
        body: impl FnOnce(&mut CodeAssembler) -> Assembled,
    ) -> Assembled {
        let (mut here, mut resume) = (self.a.create_label(), self.a.create_label());
        prepare(self)?;
        self.arm(resume)?;
        self.a.set_label(&mut here)?;
        body(&mut self.a)?;
        self.a.set_label(&mut resume)?;
        self.seen(name, vector, error)?;
        self.a.mov(rax, qword_ptr(F_RIP))?;
        self.a.lea(rdx, ptr(if behind { resume } else { here }))?;
        self.check_rdx(&format!("{name}: RIP"))
    }

    /// The next exception goes to `resume`, with RSP as it is now. Destroys R11.
    pub fn arm(&mut self, resume: CodeLabel) -> Assembled {
        let a = &mut self.a;
        a.lea(r11, ptr(resume))?;
        a.mov(qword_ptr(RESUME), r11)?;
        a.mov(qword_ptr(RESUME_RSP), rsp)?;
        a.mov(qword_ptr(F_VECTOR), -1)?;
        a.mov(qword_ptr(F_ERROR), 0)
    }

    /// The last exception must have been this one. RBX, RSI, RDI and R8 to R15 are kept.
    pub fn seen(&mut self, name: &str, vector: u8, error: u32) -> Assembled {
        let a = &mut self.a;
        a.mov(qword_ptr(RESUME), 0)?;
        a.mov(rax, qword_ptr(F_VECTOR))?;
        a.shl(rax, 32)?;
        a.or(rax, qword_ptr(F_ERROR))?;
        self.check(name, u64::from(vector) << 32 | u64::from(error))
    }

    /// Adds user-mode code. Returns its linear address.
    pub fn user_code(
        &mut self,
        bits: u32,
        f: impl FnOnce(&mut CodeAssembler) -> Assembled,
    ) -> Assembled<u64> {
        let at = USER_CODE + self.user.len() as u64;
        let mut a = CodeAssembler::new(bits)?;
        f(&mut a)?;
        self.user.extend(a.assemble(at)?);
        self.user.resize(self.user.len().next_multiple_of(16), 0xcc);
        Ok(at)
    }

    /// To privilege level 3 by IRET, with the status flags clear and IF as given. What ends it is an exception
    /// or INT 80H: execution goes on behind this.
    pub fn in_user_mode(&mut self, at: u64, selector: u32, interrupts: bool) -> Assembled {
        let mut resume = self.a.create_label();
        self.arm(resume)?;
        let a = &mut self.a;
        a.push(USER_SS as i32)?;
        a.mov(rax, USER_STACK)?;
        a.push(rax)?;
        a.push(if interrupts { 0x202 } else { 2 })?;
        a.push(selector as i32)?;
        a.mov(rax, at)?;
        a.push(rax)?;
        a.iretq()?;
        a.set_label(&mut resume)?;
        a.nop()
    }

    /// Writes entry `n` of the window's page table, and drops the old translation.
    pub fn map(&mut self, n: u64, entry: u64) -> Assembled {
        let a = &mut self.a;
        a.mov(rax, entry)?;
        a.mov(qword_ptr(WINDOW_PT + 8 * n), rax)?;
        a.mov(rax, WINDOW + n * 0x1000)?;
        a.invlpg(ptr(rax))
    }

    /// Makes a gate. `kind`: IST in bits 0 to 7, type, DPL and P in bits 8 to 15.
    pub fn gate(&mut self, vector: u8, handler: CodeLabel, kind: u32) -> Assembled {
        self.a.lea(rax, ptr(handler))?;
        self.a.mov(edi, u32::from(vector))?;
        self.a.mov(esi, kind)?;
        self.a.call(self.routines.set_gate)
    }

    /// Sets the counter of a vector to zero.
    pub fn forget(&mut self, vector: u8) -> Assembled {
        self.a.mov(qword_ptr(COUNTS + 8 * u64::from(vector)), 0)
    }

    /// Halts until the vector was taken `n` times. Interrupts are off before and after.
    pub fn halt_until(&mut self, vector: u8, n: i32) -> Assembled {
        let (mut again, mut done) = (self.a.create_label(), self.a.create_label());
        let a = &mut self.a;
        a.set_label(&mut again)?;
        a.cli()?;
        a.cmp(qword_ptr(COUNTS + 8 * u64::from(vector)), n)?;
        a.jae(done)?;
        a.sti()?;
        a.hlt()?;
        a.jmp(again)?;
        a.set_label(&mut done)?;
        a.nop()
    }

    /// Lets in what is pending, for a few instructions.
    pub fn breathe(&mut self) -> Assembled {
        let a = &mut self.a;
        a.sti()?;
        for _ in 0..4 {
            a.nop()?;
        }
        a.cli()
    }

    /// RAX: how often the vector was taken.
    pub fn count(&mut self, vector: u8) -> Assembled {
        self.a.mov(rax, qword_ptr(COUNTS + 8 * u64::from(vector)))
    }

    /// Writes a local APIC register. Destroys RDI.
    pub fn lapic_write(&mut self, register: u64, value: u32) -> Assembled {
        self.a.mov(edi, (LAPIC + register) as u32)?;
        self.a.mov(dword_ptr(rdi), value)
    }

    /// Reads one to EAX. Destroys RDI.
    pub fn lapic_read(&mut self, register: u64) -> Assembled {
        self.a.mov(edi, (LAPIC + register) as u32)?;
        self.a.mov(eax, dword_ptr(rdi))
    }

    /// Writes an IOAPIC register. Destroys RDI.
    pub fn ioapic_write(&mut self, register: u32, value: u32) -> Assembled {
        self.a.mov(edi, IOAPIC as u32)?;
        self.a.mov(dword_ptr(rdi), register)?;
        self.a.mov(dword_ptr(rdi + 0x10), value)
    }

    /// Writes an MSR. Destroys RAX, RCX, RDX.
    pub fn wrmsr(&mut self, index: u32, value: u64) -> Assembled {
        let a = &mut self.a;
        a.mov(ecx, index)?;
        a.mov(eax, value as u32)?;
        a.mov(edx, (value >> 32) as u32)?;
        a.wrmsr()
    }

    /// Reads an MSR to RAX. Destroys RCX, RDX.
    pub fn rdmsr(&mut self, index: u32) -> Assembled {
        let a = &mut self.a;
        a.mov(ecx, index)?;
        a.rdmsr()?;
        a.shl(rdx, 32)?;
        a.or(rax, rdx)
    }

    /// A double word to a port. Destroys RAX, RDX.
    pub fn out32(&mut self, port: u16, value: u32) -> Assembled {
        let a = &mut self.a;
        a.mov(eax, value)?;
        a.mov(edx, u32::from(port))?;
        a.out(dx, eax)
    }
}
