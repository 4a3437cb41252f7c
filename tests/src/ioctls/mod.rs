//! Raw ioctls with good and bad arguments, and what they return: the same list of questions to a kernel's `/dev/kvm`, to the
//! layer's dispatch, and to the library of `softkvm exec`.
//!
//! A section is a function that asks on descriptors of its own; every answer is a line: the question's name, the
//! result, and the bytes that the call has stored where they are the same on every machine. `tests/tests/ioctl_results.rs`
//! compares the lines.

pub mod deviations;
pub mod front;
pub mod kernel;
mod numbers;
mod pointers;
mod system;
mod vcpu;
mod vcpu_order;
mod vm;
mod vm_irq;

use front::{Fd, Front};
use kernel::Pages;
use kvm_api::nr;
use kvm_ioctl_layer::user_mem::{OwnMemory, Plain, UserMemory, bytes_of, from_bytes};

/// One question's answer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Line {
    /// Section and question.
    pub name: String,
    /// What ioctl returned: `-errno`, or a number ("a descriptor" is 0).
    pub result: i64,
    /// What the call has stored, if that can be compared.
    pub bytes: Vec<u8>,
}

impl Line {
    /// As text, for a pipe: name, result, bytes.
    pub fn text(&self) -> String {
        let bytes: String = self.bytes.iter().map(|b| format!("{b:02x}")).collect();
        format!("{}\t{}\t{bytes}", self.name, self.result)
    }

    /// Back from text.
    pub fn parse(text: &str) -> Option<Line> {
        let mut fields = text.split('\t');
        let (name, result, bytes) = (fields.next()?, fields.next()?, fields.next()?);
        let bytes = (0..bytes.len() / 2).map(|n| u8::from_str_radix(&bytes[2 * n..2 * n + 2], 16));
        Some(Line {
            name: name.into(),
            result: result.parse().ok()?,
            bytes: bytes.collect::<Result<_, _>>().ok()?,
        })
    }
}

/// A section's questions on their way.
pub struct Session<'a> {
    front: &'a dyn Front,
    section: &'static str,
    /// Room for arguments.
    pub pages: Pages,
    lines: Vec<Line>,
    open: Vec<Fd>,
}

impl<'a> Session<'a> {
    /// A new `/dev/kvm`, and nothing else.
    fn new(front: &'a dyn Front, section: &'static str) -> Session<'a> {
        Session { front, section, pages: Pages::new(16), lines: Vec::new(), open: Vec::new() }
    }

    /// Opens the system.
    pub fn system(&mut self) -> Fd {
        let fd = self.front.open();
        self.open.push(fd);
        fd
    }

    /// A new VM.
    pub fn vm(&mut self) -> Fd {
        let system = self.system();
        self.descriptor(system, nr::KVM_CREATE_VM, 0)
    }

    /// A new vCPU.
    pub fn vcpu(&mut self, vm: Fd, id: u64) -> Fd {
        self.descriptor(vm, nr::KVM_CREATE_VCPU, id)
    }

    fn descriptor(&mut self, fd: Fd, nr: u32, arg: u64) -> Fd {
        let new = self.front.ioctl(fd, nr, arg) as Fd;
        self.open.push(new);
        new
    }

    /// Closes before the section's end.
    pub fn close(&mut self, fd: Fd) {
        self.open.retain(|o| *o != fd);
        self.front.close(fd);
    }

    /// The shared pages of a vCPU.
    pub fn run_page(&self, vcpu: Fd) -> u64 {
        self.front.run_page(vcpu)
    }

    /// Asks without writing it down.
    pub fn quietly(&self, fd: Fd, nr: u32, arg: u64) -> i64 {
        self.front.ioctl(fd, nr, arg)
    }

    fn note(&mut self, name: &str, result: i64, bytes: Vec<u8>) {
        self.lines.push(Line { name: format!("{}: {name}", self.section), result, bytes });
    }

    /// Notes something that is not an ioctl's answer.
    pub fn observe(&mut self, name: &str, value: i64) {
        self.note(name, value, Vec::new());
    }

    /// Notes bytes that are not an ioctl's own.
    pub fn observe_bytes(&mut self, name: &str, bytes: &[u8]) {
        self.note(name, 0, bytes.to_vec());
    }

    /// An argument by value.
    pub fn number(&mut self, name: &str, fd: Fd, nr: u32, arg: u64) -> i64 {
        let mut r = self.front.ioctl(fd, nr, arg);
        if r > 0 && MAKES_DESCRIPTORS.contains(&nr) {
            self.front.close(r as Fd);
            r = 0;
        }
        self.note(name, r, Vec::new());
        r
    }

    /// Writes into the pages.
    pub fn put(&self, offset: u64, bytes: &[u8]) -> u64 {
        let at = self.pages.start() + offset;
        OwnMemory.write(at, bytes).expect("the pages are ours");
        at
    }

    /// Reads from the pages.
    pub fn take(&self, offset: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        OwnMemory.read(self.pages.start() + offset, &mut bytes).expect("the pages are ours");
        bytes
    }

    /// A structure as argument; only the result is compared.
    pub fn pass<T: Plain>(&mut self, name: &str, fd: Fd, nr: u32, t: &T) -> i64 {
        let at = self.put(0, bytes_of(t));
        self.number(name, fd, nr, at)
    }

    /// Bytes as argument; only the result is compared.
    pub fn pass_bytes(&mut self, name: &str, fd: Fd, nr: u32, bytes: &[u8]) -> i64 {
        let at = self.put(0, bytes);
        self.number(name, fd, nr, at)
    }

    /// A structure that comes back, and is compared.
    pub fn fill<T: Plain>(&mut self, name: &str, fd: Fd, nr: u32, t: &mut T) -> i64 {
        let at = self.put(0, bytes_of(t));
        let r = self.front.ioctl(fd, nr, at);
        *t = from_bytes(&self.take(0, size_of::<T>()));
        self.note(name, r, bytes_of(t).to_vec());
        r
    }

    /// A structure that comes back, and is not compared.
    pub fn get<T: Plain + Default>(&self, fd: Fd, nr: u32) -> T {
        let at = self.put(0, bytes_of(&T::default()));
        self.front.ioctl(fd, nr, at);
        from_bytes(&self.take(0, size_of::<T>()))
    }

    /// Memory of the pages as a slot at guest address 0: `pages` of them from the last on backwards.
    pub fn memory(&mut self, vm: Fd, flags: u32, pages: u64) -> i64 {
        let region = kvm_api::uapi::kvm_userspace_memory_region {
            slot: 0,
            flags,
            guest_phys_addr: 0,
            memory_size: pages * 4096,
            userspace_addr: self.pages.start() + self.pages.len() - pages * 4096,
        };
        let at = self.put(0, bytes_of(&region));
        self.quietly(vm, nr::KVM_SET_USER_MEMORY_REGION, at)
    }

    /// KVM_RUN that returns at once.
    pub fn run_at_once(&mut self, name: &str, vcpu: Fd) -> i64 {
        let at = self.run_page(vcpu) + core::mem::offset_of!(kvm_api::uapi::kvm_run, immediate_exit) as u64;
        OwnMemory.write(at, &[1]).expect("the run page is mapped");
        let r = self.number(name, vcpu, nr::KVM_RUN, 0);
        OwnMemory.write(at, &[0]).expect("the run page is mapped");
        r
    }
}

impl Drop for Session<'_> {
    fn drop(&mut self) {
        for fd in self.open.drain(..).rev() {
            self.front.close(fd);
        }
    }
}

/// Ioctls that answer with a descriptor.
const MAKES_DESCRIPTORS: &[u32] =
    &[nr::KVM_CREATE_VM, nr::KVM_CREATE_VCPU, nr::KVM_GET_STATS_FD, nr::KVM_CREATE_GUEST_MEMFD];

type Section = (&'static str, fn(&mut Session<'_>));

/// The sections.
pub const SECTIONS: &[Section] = &[
    ("numbers", numbers::numbers),
    ("number variants", numbers::variants),
    ("pointers", pointers::pointers),
    ("system", system::system),
    ("capabilities", system::capabilities),
    ("cpuid lists", system::cpuid_lists),
    ("create", vm::create),
    ("memory", vm::memory),
    ("dirty log", vm::dirty_log),
    ("enable_cap", vm::enable_cap),
    ("vm values", vm::values),
    ("msr filter", vm::msr_filter),
    ("coalesced", vm::coalesced),
    ("irqchip", vm_irq::irqchip),
    ("split irqchip", vm_irq::split),
    ("no irqchip", vm_irq::none),
    ("pit", vm_irq::pit),
    ("gsi routing", vm_irq::routing),
    ("irqfd", vm_irq::irqfd),
    ("ioeventfd", vm_irq::ioeventfd),
    ("sregs", vcpu::sregs),
    ("events", vcpu::events),
    ("registers", vcpu::registers),
    ("xsave", vcpu::xsave),
    ("lapic", vcpu::lapic),
    ("msrs", vcpu::msrs),
    ("vcpu values", vcpu::values),
    ("cpuid", vcpu_order::cpuid),
    ("order", vcpu_order::order),
    ("run", vcpu_order::run),
];

/// Every section's answers by `front`.
pub fn ask(front: &dyn Front) -> Vec<Line> {
    let mut lines = Vec::new();
    for (name, questions) in SECTIONS {
        let mut session = Session::new(front, name);
        questions(&mut session);
        lines.append(&mut session.lines);
    }
    lines
}
