//! The hardware task switch (SDM vol. 3A, chapter 7).

use crate::exit::Result;
use crate::vcpu::Vcpu;
use x86_arch::Selector;

/// What asked for the switch.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum TaskCause {
    /// Far JMP: the old task is left idle.
    Jump,
    /// Far CALL: the old task stays busy and is linked to.
    Call,
    /// IRET with NT set.
    Iret,
    /// A task gate of the IDT.
    Gate {
        /// The EXT bit of error codes.
        ext: u32,
        /// Pushed on the new stack.
        error_code: Option<u32>,
    },
}

impl TaskCause {
    /// Far CALL or JMP.
    pub fn transfer(call: bool) -> TaskCause {
        if call { TaskCause::Call } else { TaskCause::Jump }
    }
}

impl Vcpu {
    /// Switches to the task whose TSS `selector` names.
    pub(crate) fn task_switch(&mut self, _selector: Selector, _cause: TaskCause) -> Result {
        self.ud()
    }
}
