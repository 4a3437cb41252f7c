//! The kernel's signal frame as an x86-64 handler gets it: where a case's state is put before rt_sigreturn(2)
//! and where its outcome is read from. (Linux, arch/x86/include/uapi/asm/sigcontext.h: the layout is ABI.)

use super::mailbox::State;
use crate::case::XSAVE;
use libc::{REG_CR2, REG_CSGSFS, REG_EFL, REG_ERR, REG_RIP, REG_TRAPNO, ucontext_t};

/// The general registers' places in the frame, in the order of [`State::gpr`].
const GPR: [i32; 16] = [
    libc::REG_RAX,
    libc::REG_RCX,
    libc::REG_RDX,
    libc::REG_RBX,
    libc::REG_RSP,
    libc::REG_RBP,
    libc::REG_RSI,
    libc::REG_RDI,
    libc::REG_R8,
    libc::REG_R9,
    libc::REG_R10,
    libc::REG_R11,
    libc::REG_R12,
    libc::REG_R13,
    libc::REG_R14,
    libc::REG_R15,
];

/// uc_flags: UC_FP_XSTATE, UC_SIGCONTEXT_SS and UC_STRICT_RESTORE_SS, so that SS is loaded as it is given.
const FLAGS: u64 = 7;
/// Where the kernel's own words (`_fpx_sw_bytes`) stand in the legacy area, and where that ends.
const SOFTWARE: usize = 464;
const LEGACY: usize = 512;

/// What the kernel says of the XSAVE image in its frames.
pub struct Software {
    /// Bytes of the image.
    pub xstate_size: u32,
    /// Its components.
    pub xfeatures: u64,
    /// MXCSR_MASK of the legacy area.
    pub mxcsr_mask: u32,
}

/// The frame of a signal that has arrived: `context` is its ucontext.
#[derive(Clone, Copy)]
pub struct Frame {
    context: *mut ucontext_t,
}

impl Frame {
    /// # Safety
    /// `context` is the third argument of a running SA_SIGINFO handler, on a kernel that uses XSAVE.
    pub unsafe fn new(context: *mut ucontext_t) -> Frame {
        Frame { context }
    }

    /// Where RSP must point at rt_sigreturn.
    pub fn stack_pointer(self) -> u64 {
        self.context as u64
    }

    fn register(self, n: i32) -> *mut i64 {
        // SAFETY: `context` points to a whole ucontext (see `new`), `n` is one of libc's REG_ numbers.
        unsafe { (&raw mut (*self.context).uc_mcontext.gregs).cast::<i64>().add(n as usize) }
    }

    fn read(self, n: i32) -> u64 {
        // SAFETY: inside the frame, see `register`.
        unsafe { *self.register(n) as u64 }
    }

    fn write(self, n: i32, value: u64) {
        // SAFETY: inside the frame, see `register`; nobody else uses it while the handler runs.
        unsafe { *self.register(n) = value as i64 }
    }

    fn xstate(self) -> *mut u8 {
        // SAFETY: `context` points to a whole ucontext (see `new`).
        unsafe { (*self.context).uc_mcontext.fpregs.cast() }
    }

    /// Instruction pointer.
    pub fn rip(self) -> u64 {
        self.read(REG_RIP)
    }

    /// Vector of the exception behind the signal, if it is one.
    pub fn vector(self) -> u32 {
        self.read(REG_TRAPNO) as u32
    }

    /// Error code of the exception.
    pub fn error_code(self) -> u32 {
        self.read(REG_ERR) as u32
    }

    /// CR2 of the last page fault.
    pub fn cr2(self) -> u64 {
        self.read(REG_CR2)
    }

    /// The kernel's own words about its image.
    pub fn software(self) -> Software {
        let x = self.xstate();
        // SAFETY: the legacy area has 512 bytes: magic1, extended_size, xfeatures and xstate_size stand at
        // 464, MXCSR_MASK at 28.
        unsafe {
            Software {
                xfeatures: x.add(SOFTWARE + 8).cast::<u64>().read_unaligned(),
                xstate_size: x.add(SOFTWARE + 16).cast::<u32>().read_unaligned(),
                mxcsr_mask: x.add(28).cast::<u32>().read_unaligned(),
            }
        }
    }

    /// Puts a state into the frame; `xstate_size` is [`Software::xstate_size`]. DS, ES, FS, GS and the bases
    /// are not in a frame.
    pub fn give(self, state: &State, xstate_size: usize) {
        for (value, n) in state.gpr.iter().zip(GPR) {
            self.write(n, *value);
        }
        self.write(REG_RIP, state.rip);
        self.write(REG_EFL, state.rflags);
        self.write(REG_CSGSFS, state.selectors[1] as u64 | (state.selectors[2] as u64) << 48);
        let len = xstate_size.min(XSAVE);
        let (from, to) = (state.xsave.as_ptr(), self.xstate());
        // SAFETY: the frame's image has `xstate_size` bytes, the state's XSAVE; the kernel's own words stay
        // as they are, and its second magic stands behind the image. The two do not overlap: one is on the
        // signal stack, one in the mailbox.
        unsafe {
            (&raw mut (*self.context).uc_flags).write(FLAGS);
            std::ptr::copy_nonoverlapping(from, to, SOFTWARE);
            std::ptr::copy_nonoverlapping(from.add(LEGACY), to.add(LEGACY), len - LEGACY);
        }
    }

    /// Takes the state out of the frame: what [`Frame::give`] puts into it.
    pub fn take(self, state: &mut State, xstate_size: usize) {
        for (value, n) in state.gpr.iter_mut().zip(GPR) {
            *value = self.read(n);
        }
        state.rip = self.read(REG_RIP);
        state.rflags = self.read(REG_EFL);
        let selectors = self.read(REG_CSGSFS);
        state.selectors[1] = selectors as u16;
        state.selectors[2] = (selectors >> 48) as u16;
        let len = xstate_size.min(XSAVE);
        let (from, to) = (self.xstate(), state.xsave.as_mut_ptr());
        // SAFETY: as in `give`.
        unsafe {
            std::ptr::copy_nonoverlapping(from, to, SOFTWARE);
            std::ptr::copy_nonoverlapping(from.add(LEGACY), to.add(LEGACY), len - LEGACY);
        }
    }
}
