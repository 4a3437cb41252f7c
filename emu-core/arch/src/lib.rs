//! The x86-64 architecture's vocabulary, with the names of Intel's SDM.
//!
//! Types, bit positions and tables only: nothing here executes, allocates or
//! reads memory, and there is no unsafe code. Every other crate of softkvm
//! speaks in these terms; none defines a control bit or a vector of its own.
//!
//! | module | what it names | source |
//! |---|---|---|
//! | [`addr`] | gva, gpa, gfn, hva | KVM mmu.txt |
//! | [`regs`] | general registers, segment registers, RFLAGS | SDM vol. 1, 3.4 |
//! | [`control`] | CR0, CR3, CR4, EFER, XCR0, DR6, DR7 | SDM vol. 3A, 2.5, 17.2 |
//! | [`segment`] | descriptors, selectors, access rights | SDM vol. 3A, 3.4 to 3.5 |
//! | [`paging`] | paging-structure entries, paging modes, #PF error codes | SDM vol. 3A, 4 |
//! | [`exception`] | vectors, classes, the double-fault table | SDM vol. 3A, 6 |
//! | [`msr`] | model-specific register indices | SDM vol. 4; KVM msr.txt |
//! | [`cpuid`] | leaves and feature bits | SDM vol. 2A, CPUID; KVM cpuid.txt |
//! | [`apic`] | local APIC and IOAPIC register offsets | SDM vol. 3A, 10 |
//! | [`xsave`] | the XSAVE area's layout | SDM vol. 1, 13.4 |
#![forbid(unsafe_code)]

pub mod addr;
pub mod apic;
pub mod control;
pub mod cpuid;
pub mod exception;
pub mod msr;
pub mod paging;
pub mod regs;
pub mod segment;
pub mod xsave;

pub use addr::{Gfn, Gpa, Gva, Hva, PAGE_MASK, PAGE_SHIFT, PAGE_SIZE};
pub use control::{Cr0, Cr4, Efer, Xcr0};
pub use exception::{Exception, Vector};
pub use paging::{PageFaultErrorCode, PagingMode};
pub use regs::{Gpr, Rflags, Seg};
pub use segment::{DescriptorTable, Segment, Selector};
