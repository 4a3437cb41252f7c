//! The host processor as an oracle: executes the original bytes of an instruction on a whole state.
//!
//! Only for tests, and on purpose without a line of `native`: its own memory, its own entry code, the whole
//! register file and the whole XSAVE area each time.

use iced_x86::code_asm::*;
use parking_lot::Mutex;

/// The registers before and after.
#[repr(C, align(64))]
#[derive(Clone)]
pub struct State {
    /// XSAVE area, standard format.
    pub xsave: [u8; 4096],
    /// RAX to R15; RSP is ignored.
    pub gpr: [u64; 16],
    /// RFLAGS.
    pub rflags: u64,
    mxcsr: u32,
}

impl State {
    /// All zero.
    pub fn new() -> Box<State> {
        Box::new(State { xsave: [0; 4096], gpr: [0; 16], rflags: 2, mxcsr: 0x1f80 })
    }
}

const GPR: i32 = 4096;
const FLAGS: i32 = GPR + 128;
const MXCSR: i32 = FLAGS + 8;
const PAGE: usize = 4096;

struct Page(usize);

static CODE: Mutex<Option<Page>> = Mutex::new(None);

const ORDER: [AsmRegister64; 16] =
    [rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi, r8, r9, r10, r11, r12, r13, r14, r15];

fn around(insn: &[u8]) -> Vec<u8> {
    let build = |a: &mut CodeAssembler| -> Result<(), iced_x86::IcedError> {
        for r in [rbx, rbp, r12, r13, r14, r15, rdi] {
            a.push(r)?;
        }
        a.mov(eax, -1)?;
        a.mov(edx, -1)?;
        a.xrstor64(ptr(rdi))?;
        a.push(qword_ptr(rdi + FLAGS))?;
        a.popfq()?;
        for (n, r) in ORDER.iter().enumerate() {
            if n != 4 && n != 7 {
                a.mov(*r, qword_ptr(rdi + (GPR + 8 * n as i32)))?;
            }
        }
        a.mov(rdi, qword_ptr(rdi + (GPR + 56)))?;
        a.db(insn)?;
        a.push(rdi)?;
        a.pushfq()?;
        a.mov(rdi, qword_ptr(rsp + 16))?;
        for (n, r) in ORDER.iter().enumerate() {
            if n != 4 && n != 7 {
                a.mov(qword_ptr(rdi + (GPR + 8 * n as i32)), *r)?;
            }
        }
        a.pop(qword_ptr(rdi + FLAGS))?;
        a.pop(qword_ptr(rdi + (GPR + 56)))?;
        a.mov(eax, -1)?;
        a.mov(edx, -1)?;
        a.xsave64(ptr(rdi))?;
        a.fninit()?;
        a.ldmxcsr(dword_ptr(rdi + MXCSR))?;
        a.pop(rdi)?;
        a.cld()?;
        for r in [r15, r14, r13, r12, rbp, rbx] {
            a.pop(r)?;
        }
        a.ret()
    };
    let mut a = CodeAssembler::new(64).expect("64 bits");
    build(&mut a).expect("the frame can be assembled");
    a.assemble(0).expect("the frame can be encoded")
}

/// Executes one instruction, which must not fault, on `s`.
pub fn execute(insn: &[u8], s: &mut State) {
    let code = around(insn);
    assert!(code.len() <= PAGE);
    let mut page = CODE.lock();
    // SAFETY: an anonymous page of our own, locked by the mutex while it is written and executed. The frame
    // preserves what the ABI asks for; the test promises that its instruction touches only memory of the test.
    unsafe {
        let at = page
            .get_or_insert_with(|| {
                let all = libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC;
                let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
                Page(libc::mmap(core::ptr::null_mut(), PAGE, all, flags, -1, 0) as usize)
            })
            .0;
        core::ptr::copy_nonoverlapping(code.as_ptr(), at as *mut u8, code.len());
        let f = core::mem::transmute::<usize, extern "sysv64" fn(*mut State)>(at);
        f(s);
    }
}
