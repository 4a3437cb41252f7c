//! A VM in counted time with the world outside it, run by one thread in slices: vCPU by vCPU, so many instructions each.
//!
//! It can stop at every boundary, be saved there, and be set down as another machine that goes on in the same slice.

use super::dirty::Pages;
use super::outside::{Action, Outside, Record};
use super::saved::{Id, Order, Saved, Shape};
use kvm_api::uapi::*;
use kvm_ioctl_layer::user_mem::from_bytes;
use kvm_ioctl_layer::{CountedTime, EngineClock, Kvm, Options, RunBound, SyncReg, VcpuFd, VmFd};
use memmap2::MmapMut;
use std::cell::RefCell;
use std::sync::Arc;

/// Which interrupt controllers are inside.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Controllers {
    /// None: KVM_INTERRUPT.
    None,
    /// The local APICs.
    Split,
    /// All, and the PIT.
    Full,
}

/// How a vCPU begins. Each part that is there is set.
#[derive(Clone, Default, Debug)]
pub struct Start {
    /// KVM_SET_REGS.
    pub regs: Option<kvm_regs>,
    /// KVM_SET_SREGS2.
    pub sregs: Option<kvm_sregs2>,
    /// KVM_SET_XCRS.
    pub xcr0: Option<u64>,
    /// KVM_SET_XSAVE.
    pub xsave: Option<Vec<u8>>,
    /// KVM_SET_DEBUGREGS.
    pub debugregs: Option<kvm_debugregs>,
    /// KVM_SET_MSRS.
    pub msrs: Vec<(u32, u64)>,
    /// KVM_SET_GUEST_DEBUG, by the VMM that restores too.
    pub debug: Option<kvm_guest_debug>,
    /// KVM_SET_MP_STATE: it runs from the beginning, though it is not the first.
    pub runs: bool,
    /// KVM_SET_TSC_KHZ, if not 0.
    pub tsc_khz: u32,
}

/// What a machine is made of, and what its VMM knows without asking.
#[derive(Clone, Debug)]
pub struct Plan {
    /// For messages.
    pub name: String,
    /// Bytes of memory from guest-physical zero.
    pub ram: u64,
    /// What lies in it.
    pub pieces: Vec<(u64, Vec<u8>)>,
    /// A read-only slot.
    pub rom: Option<(u64, Vec<u8>)>,
    /// Memory at [`SMRAM`] that only system-management mode sees; the rest of its address space is RAM.
    pub smram: Option<Vec<u8>>,
    /// Where the VMM has put an INT3 for KVM_GUESTDBG_USE_SW_BP, and the byte that was there. It takes one away when it is
    /// reached.
    pub breakpoints: Vec<(u64, u8)>,
    /// KVM_ENABLE_CAP of the VM: capability and first argument.
    pub caps: Vec<(u32, u64)>,
    /// KVM_SET_GSI_ROUTING with level-triggered messages for vector 60H and up, whose EOIs exit (split controllers).
    pub level_routes: u8,
    /// Interrupt controllers.
    pub controllers: Controllers,
    /// The vCPUs.
    pub vcpus: Vec<Start>,
    /// KVM_CAP_EXCEPTION_PAYLOAD.
    pub exception_payload: bool,
    /// KVM_CAP_X86_USER_SPACE_MSR: exits for MSRs that are unknown or invalid.
    pub user_msrs: bool,
    /// Banks for KVM_X86_SETUP_MCE.
    pub mce_banks: u32,
    /// KVM_SET_TSC_KHZ on the VM, if not 0.
    pub tsc_khz: u32,
    /// Who runs for how many instructions, one after the other.
    pub slices: Vec<(usize, u64)>,
    /// Slices are counted in steps ([`RunBound::Steps`]), for guests that may fault for ever.
    pub by_steps: bool,
    /// At each entry the registers are loaded from the run page (KVM_CAP_SYNC_REGS), as they are.
    pub sync_regs: bool,
    /// Ports and addresses that are nobody's read as FFH, and not by chance.
    pub quiet_ports: bool,
    /// It runs too long for steps from its beginning.
    pub long: bool,
    /// The memory slot has its dirty log from its creation. Otherwise it gets it afterwards, as for a migration.
    pub born_logged: bool,
}

impl Plan {
    /// One vCPU, which runs for `instructions`.
    pub fn one(name: &str, controllers: Controllers, start: Start, instructions: u64) -> Plan {
        Plan {
            name: name.into(),
            ram: 1 << 18,
            pieces: Vec::new(),
            rom: None,
            smram: None,
            breakpoints: Vec::new(),
            caps: Vec::new(),
            level_routes: 0,
            controllers,
            vcpus: vec![start],
            exception_payload: false,
            user_msrs: false,
            mce_banks: 0,
            tsc_khz: 0,
            slices: vec![(0, instructions)],
            by_steps: false,
            sync_regs: false,
            quiet_ports: false,
            long: false,
            born_logged: false,
        }
    }

    fn shape(&self) -> Shape {
        Shape {
            full_irqchip: self.controllers == Controllers::Full,
            lapic: self.controllers != Controllers::None,
            mce_banks: self.mce_banks,
        }
    }
}

/// Where the memory of system-management mode begins.
pub const SMRAM: u64 = 0xa_0000;
/// The slots of its address space (KVM_CAP_MULTI_ADDRESS_SPACE): RAM again, and SMRAM.
const SMM_SLOTS: [u32; 2] = [1 << 16, 1 << 16 | 1];

/// Where in its slices a machine is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Position {
    /// The slice.
    pub slice: usize,
    /// Instructions retired in it.
    pub used: u64,
    /// Instructions retired by each vCPU since the first machine was made.
    pub retired: Vec<u64>,
}

/// How far one call of [`Machine::go`] goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Pace {
    /// To the next exit.
    Fast,
    /// To the next boundary.
    Step,
}

/// Why it came back.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stop {
    /// A boundary.
    Boundary,
    /// An exit, answered and not completed: KVM_RUN has not been entered again. True: it was one that the instruction is
    /// made again for if the state is saved now.
    Exit(bool),
    /// A slice has ended.
    Slice,
    /// The last one has, or the guest is over.
    End,
}

/// A machine.
pub struct Machine {
    plan: Arc<Plan>,
    vm: VmFd,
    vcpus: Vec<VcpuFd>,
    ram: MmapMut,
    _rom: Option<MmapMut>,
    smram: Option<MmapMut>,
    /// What the VMM itself has written since it asked for the log: that is in nobody's log but its own.
    written: RefCell<Pages>,
    msr_list: Arc<Vec<u32>>,
    /// The world outside.
    pub outside: Outside,
    /// Where it is.
    pub position: Position,
    /// The world before the last exit was answered.
    before: Option<Outside>,
    /// The exits since this machine was made.
    pub log: Vec<Record>,
    over: bool,
}

fn slot(vm: &VmFd, slot: u32, gpa: u64, memory: &MmapMut, flags: u32) {
    let region = kvm_userspace_memory_region2 {
        slot,
        flags,
        guest_phys_addr: gpa,
        memory_size: memory.len() as u64,
        userspace_addr: memory.as_ptr() as u64,
        ..Default::default()
    };
    vm.backend().set_user_memory_region(&region).expect("KVM_SET_USER_MEMORY_REGION");
}

fn cap(cap: u32, arg: u64) -> kvm_enable_cap {
    let mut c = kvm_enable_cap { cap, ..Default::default() };
    c.args[0] = arg;
    c
}

impl Machine {
    /// A machine at the beginning of its plan.
    pub fn new(plan: &Arc<Plan>) -> Machine {
        let mut m = Machine::bare(plan, EngineClock::Counted { seed: 7 });
        for (at, bytes) in &plan.pieces {
            m.ram[*at as usize..][..bytes.len()].copy_from_slice(bytes);
        }
        for &(at, _) in &plan.breakpoints {
            m.ram[at as usize] = 0xcc;
        }
        if let (Some(memory), Some(bytes)) = (&mut m.smram, &plan.smram) {
            memory.copy_from_slice(bytes);
        }
        for (n, start) in plan.vcpus.iter().enumerate() {
            m.vcpus[n].with_backend(|v| {
                v.set_cpuid2(&cpuid(plan, n as u32)).expect("KVM_SET_CPUID2");
                if let Some(x) = start.xcr0 {
                    let mut k = kvm_xcrs { nr_xcrs: 1, ..Default::default() };
                    k.xcrs[0].value = x;
                    v.set_xcrs(&k).expect("KVM_SET_XCRS");
                }
                if let Some(s) = &start.sregs {
                    v.set_sregs2(s).expect("KVM_SET_SREGS2");
                }
                if let Some(r) = &start.regs {
                    v.set_regs(r).expect("KVM_SET_REGS");
                }
                if let Some(x) = &start.xsave {
                    v.set_xsave(x).expect("KVM_SET_XSAVE");
                }
                if let Some(d) = &start.debugregs {
                    v.set_debugregs(d).expect("KVM_SET_DEBUGREGS");
                }
                for &(index, data) in &start.msrs {
                    let mut e = kvm_msr_entry { index, ..Default::default() };
                    if v.get_msrs(std::slice::from_mut(&mut e)) == Ok(0) {
                        // Another vendor's.
                        continue;
                    }
                    e.data = data;
                    assert_eq!(v.set_msrs(&[e]), Ok(1), "MSR {index:#x} at the start");
                }
                if start.tsc_khz != 0 {
                    v.set_tsc_khz(start.tsc_khz).expect("KVM_SET_TSC_KHZ");
                }
                if start.runs {
                    let state = kvm_mp_state { mp_state: KVM_MP_STATE_RUNNABLE };
                    v.set_mp_state(&state).expect("KVM_SET_MP_STATE");
                }
            });
        }
        m
    }

    /// The VM and vCPUs, at reset, with empty memory.
    fn bare(plan: &Arc<Plan>, engine_clock: EngineClock) -> Machine {
        let kvm = Kvm::with_options(Options { engine_clock, ..Options::default() })
            .expect("the software processor");
        let vm = kvm.create_vm().expect("KVM_CREATE_VM");
        if plan.tsc_khz != 0 {
            vm.set_tsc_khz(plan.tsc_khz).expect("KVM_SET_TSC_KHZ");
        }
        match plan.controllers {
            Controllers::None => {}
            Controllers::Split => {
                vm.enable_cap(&cap(KVM_CAP_SPLIT_IRQCHIP, 24)).expect("KVM_CAP_SPLIT_IRQCHIP")
            }
            Controllers::Full => {
                vm.create_irq_chip().expect("KVM_CREATE_IRQCHIP");
                vm.create_pit2(kvm_pit_config::default()).expect("KVM_CREATE_PIT2");
            }
        }
        for &(number, argument) in &plan.caps {
            vm.enable_cap(&cap(number, argument)).expect("KVM_ENABLE_CAP");
        }
        if plan.exception_payload {
            vm.enable_cap(&cap(KVM_CAP_EXCEPTION_PAYLOAD, 1)).expect("KVM_CAP_EXCEPTION_PAYLOAD");
        }
        if plan.user_msrs {
            let reasons = KVM_MSR_EXIT_REASON_INVAL | KVM_MSR_EXIT_REASON_UNKNOWN;
            vm.enable_cap(&cap(KVM_CAP_X86_USER_SPACE_MSR, reasons.into()))
                .expect("KVM_CAP_X86_USER_SPACE_MSR");
        }
        let ram = MmapMut::map_anon(plan.ram as usize).expect("guest memory");
        if !plan.born_logged {
            slot(&vm, 0, 0, &ram, 0);
        }
        slot(&vm, 0, 0, &ram, KVM_MEM_LOG_DIRTY_PAGES);
        let smram = plan.smram.as_ref().map(|bytes| {
            let smram = MmapMut::map_anon(bytes.len()).expect("SMRAM");
            for (number, gpa, memory) in [(SMM_SLOTS[0], 0, &ram), (SMM_SLOTS[1], SMRAM, &smram)] {
                if !plan.born_logged {
                    slot(&vm, number, gpa, memory, 0);
                }
                slot(&vm, number, gpa, memory, KVM_MEM_LOG_DIRTY_PAGES);
            }
            smram
        });
        if plan.level_routes != 0 {
            let routes: Vec<_> = (0..plan.level_routes).map(level_route).collect();
            vm.set_gsi_routing(&KvmIrqRouting::from_entries(&routes).expect("a table"))
                .expect("KVM_SET_GSI_ROUTING");
        }
        let rom = plan.rom.as_ref().map(|(gpa, bytes)| {
            let mut rom = MmapMut::map_anon(bytes.len()).expect("a ROM");
            rom.copy_from_slice(bytes);
            slot(&vm, 1, *gpa, &rom, KVM_MEM_READONLY);
            rom
        });
        let vcpus: Vec<VcpuFd> = (0..plan.vcpus.len() as u64)
            .map(|id| {
                let v = vm.create_vcpu(id).expect("KVM_CREATE_VCPU");
                if plan.mce_banks != 0 {
                    // With IA32_MCG_CTL and CMCI.
                    let cap = 1 << 8 | 1 << 10 | u64::from(plan.mce_banks);
                    v.with_backend(|v| v.setup_mce(cap)).expect("KVM_X86_SETUP_MCE");
                }
                v
            })
            .collect();
        for (v, start) in vcpus.iter().zip(&plan.vcpus) {
            if let Some(d) = &start.debug {
                v.set_guest_debug(d).expect("KVM_SET_GUEST_DEBUG");
            }
        }
        let written = RefCell::default();
        let msr_list = kvm.get_msr_index_list().expect("KVM_GET_MSR_INDEX_LIST").as_slice().to_vec();
        let position = Position { retired: vec![0; vcpus.len()], ..Position::default() };
        Machine {
            plan: plan.clone(),
            vm,
            vcpus,
            ram,
            _rom: rom,
            smram,
            written,
            msr_list: Arc::new(msr_list),
            outside: Outside { quiet: plan.quiet_ports, ..Outside::default() },
            position,
            before: None,
            log: Vec::new(),
            over: false,
        }
    }

    /// A machine at reset, with nothing set.
    pub fn fresh(plan: &Arc<Plan>) -> Machine {
        Machine::bare(plan, EngineClock::Counted { seed: 7 })
    }

    /// A new machine that goes on from what was saved.
    pub fn restored(
        plan: &Arc<Plan>,
        saved: &Saved,
        order: Order,
        outside: &Outside,
        position: &Position,
    ) -> Machine {
        match Machine::try_restored(plan, saved, order, outside, position) {
            Ok(m) => m,
            Err(why) => panic!("{} at {position:?}, {order:?}'s order: {why}", plan.name),
        }
    }

    /// The same. `Err`: what was refused.
    pub fn try_restored(
        plan: &Arc<Plan>,
        saved: &Saved,
        order: Order,
        outside: &Outside,
        position: &Position,
    ) -> Result<Machine, String> {
        let mut m = Machine::bare(plan, EngineClock::CountedFrom(saved.time));
        let pages = m.ram.chunks_mut(4096).chain(m.smram.iter_mut().flat_map(|r| r.chunks_mut(4096)));
        for (to, from) in pages.zip(saved.ram.chunks(4096)) {
            // Untouched memory stays unmapped.
            if from.iter().any(|b| *b != 0) {
                to.copy_from_slice(from);
            }
        }
        let vm = m.vm.clone();
        saved.restore(&m.vm, &m.vcpus, order, || {
            // Devices outside hold their lines; a controller inside has no place to remember who does.
            for (&gsi, &level) in &outside.lines {
                if level && plan.controllers == Controllers::Full {
                    vm.set_irq_line(gsi, true).expect("KVM_IRQ_LINE");
                }
            }
        })?;
        if plan.vcpus.iter().any(|s| s.debug.is_some()) {
            for (v, start) in m.vcpus.iter().zip(&plan.vcpus) {
                if let Some(d) = &start.debug {
                    v.set_guest_debug(d).expect("KVM_SET_GUEST_DEBUG");
                }
            }
        }
        for (v, list) in m.vcpus.iter_mut().zip(&saved.vcpus) {
            // Where the local APIC is the VMM's, CR8 goes by the run page (KVM api, section 5).
            if let Some((_, b)) = list.iter().find(|e| e.0 == Id::Sregs) {
                v.get_kvm_run().cr8 = from_bytes::<kvm_sregs2>(b).cr8;
            }
        }
        m.outside = outside.clone();
        m.position = position.clone();
        Ok(m)
    }

    /// The state as KVM_GET shows it.
    pub fn save(&self) -> Saved {
        let memory = [&self.ram[..], self.smram.as_deref().unwrap_or_default()].concat();
        Saved::save(&self.vm, &self.vcpus, &self.plan.shape(), &self.msr_list, memory)
    }

    /// The world as it was before the last exit was answered.
    pub fn before_exit(&self) -> &Outside {
        self.before.as_ref().unwrap_or(&self.outside)
    }

    /// Pages written since the last call (KVM_GET_DIRTY_LOG).
    pub fn dirty(&self) -> Pages {
        let log = |slot, bytes: usize| Pages(self.vm.get_dirty_log(slot, bytes).expect("KVM_GET_DIRTY_LOG"));
        let mut pages = log(0, self.ram.len());
        if let Some(smram) = &self.smram {
            pages.add(&log(SMM_SLOTS[0], self.ram.len()));
            // As in the saved memory: SMRAM behind RAM.
            pages.add(&log(SMM_SLOTS[1], smram.len()).behind(self.ram.len() / 4096));
        }
        pages.add(&self.written.take());
        pages
    }

    /// The vCPU whose slice it is.
    fn turn(&self) -> Option<(usize, u64)> {
        self.plan.slices.get(self.position.slice).copied().filter(|_| !self.over)
    }

    /// Whether the current vCPU can take an interrupt now, from the state that every VMM can read.
    fn can_interrupt(&self, n: usize) -> bool {
        let v = &self.vcpus[n];
        let (regs, events) = (v.get_regs(), v.get_vcpu_events());
        let (Ok(regs), Ok(e)) = (regs, events) else { return false };
        regs.rflags & 0x200 != 0
            && e.interrupt.shadow == 0
            && e.interrupt.injected == 0
            && e.exception.injected == 0
            && e.exception.pending == 0
    }

    fn offer_vectors(&mut self, n: usize) {
        let mut window = 0;
        if !self.outside.vectors.is_empty() {
            if self.can_interrupt(n) {
                let vector = self.outside.vectors.remove(0);
                self.vcpus[n].interrupt(vector.into()).expect("KVM_INTERRUPT");
            } else {
                window = 1;
            }
        }
        self.vcpus[n].get_kvm_run().request_interrupt_window = window;
    }

    /// KVM_RUN once, to the bound; the exit is answered.
    fn enter(&mut self, n: usize, bound: RunBound) -> Option<Stop> {
        if self.plan.controllers == Controllers::None {
            self.offer_vectors(n);
        }
        if self.plan.sync_regs {
            self.sync_in(n);
        }
        let start = self.vcpus[n].instructions().unwrap_or(0);
        let steps = self.vcpus[n].steps().unwrap_or(0);
        let left = self.turn().map_or(0, |t| t.1 - self.position.used);
        let before = self.outside.clone();
        let v = &mut self.vcpus[n];
        let result = v.run_bounded(bound).map(|_| ()).map_err(|e| e.errno());
        let retired = v.instructions().unwrap_or(0) - start;
        self.position.retired[n] += retired;
        if self.plan.sync_regs {
            self.check_sync_out(n);
        }
        let v = &self.vcpus[n];
        let now = if self.plan.by_steps { v.steps().unwrap_or(0) - steps } else { retired };
        self.position.used += now;
        match result {
            Ok(()) => {}
            // INIT has come: the next KVM_RUN is the one that counts (KVM_MP_STATE_UNINITIALIZED).
            Err(libc::EAGAIN) => return None,
            Err(libc::EINTR) => {
                if now >= left {
                    return Some(Stop::Slice);
                }
                let stepped = self.vcpus[n].steps() != Some(steps);
                // Neither the bound nor a step: halted, and nobody inside will wake it.
                return Some(if stepped { Stop::Boundary } else { Stop::Slice });
            }
            Err(e) => panic!("{}: KVM_RUN: errno {e}", self.plan.name),
        }
        let at = self.position.retired[n];
        let exit = self.vcpus[n].last_exit().expect("an exit that is understood");
        use kvm_ioctl_layer::VcpuExit as E;
        if matches!(exit, E::IrqWindowOpen) {
            // The VMM's own wish: where it comes depends on where the VMM looked before.
            return None;
        }
        let again =
            matches!(exit, E::IoIn(..) | E::MmioRead(..) | E::X86Rdmsr(_) | E::X86Wrmsr(_) | E::Hypercall(_));
        let (what, action) = self.outside.answer(exit);
        self.log.push(Record { vcpu: n, retired: at, what });
        self.before = Some(before);
        match action {
            Action::Nothing => {}
            Action::Line(gsi, level) => self.line(gsi, level),
            Action::Pulse(gsi) => {
                self.line(gsi, true);
                self.line(gsi, false);
            }
            Action::Nmi(to) => {
                if let Some(v) = self.vcpus.get(to as usize) {
                    v.nmi().expect("KVM_NMI");
                }
            }
            Action::Smi(to) => {
                if let Some(v) = self.vcpus.get(to as usize) {
                    v.smi().expect("KVM_SMI");
                }
            }
            Action::Interrupt(vector) => {
                if self.can_interrupt(n) {
                    self.vcpus[n].interrupt(vector.into()).expect("KVM_INTERRUPT");
                }
            }
            Action::Debug(exception, pc) => self.debugger(n, exception, pc),
            Action::TripleFault => {
                let mut e = self.vcpus[n].get_vcpu_events().expect("KVM_GET_VCPU_EVENTS");
                e.flags |= KVM_VCPUEVENT_VALID_TRIPLE_FAULT;
                e.triple_fault.pending = 1;
                self.vcpus[n].set_vcpu_events(&e).expect("KVM_SET_VCPU_EVENTS");
            }
            Action::Msi(word) => {
                let msi = kvm_msi {
                    address_lo: 0xfee0_0000 | (word >> 8 & 0xff) << 12,
                    // Bit 16: level-triggered, asserted.
                    data: word & 0xff | if word >> 16 & 1 != 0 { 0xc000 } else { 0 },
                    ..Default::default()
                };
                if self.plan.controllers != Controllers::None {
                    self.vm.signal_msi(msi).expect("KVM_SIGNAL_MSI");
                }
            }
            Action::Vector(vector) => {
                if self.plan.controllers == Controllers::None {
                    self.outside.vectors.push(vector);
                }
            }
            Action::Over => {
                self.over = true;
                return Some(Stop::End);
            }
        }
        Some(Stop::Exit(again))
    }

    /// All three sets in the page, to be loaded.
    fn sync_in(&mut self, n: usize) {
        let v = &mut self.vcpus[n];
        let sets = (v.get_regs(), v.get_sregs(), v.get_vcpu_events());
        let (Ok(regs), Ok(sregs), Ok(events)) = sets else { return };
        *v.sync_regs_mut() = kvm_sync_regs { regs, sregs, events };
        for set in [SyncReg::Register, SyncReg::SystemRegister, SyncReg::VcpuEvents] {
            v.set_sync_valid_reg(set);
            v.set_sync_dirty_reg(set);
        }
    }

    /// The page shows what KVM_GET does.
    fn check_sync_out(&self, n: usize) {
        let v = &self.vcpus[n];
        let page = v.sync_regs();
        assert_eq!(Ok(page.regs), v.get_regs().map_err(|e| e.errno()), "{}: regs", self.plan.name);
        assert_eq!(Ok(page.sregs), v.get_sregs().map_err(|e| e.errno()), "{}: sregs", self.plan.name);
        let events = v.get_vcpu_events().map_err(|e| e.errno());
        assert_eq!(Ok(page.events), events, "{}: events", self.plan.name);
    }

    /// What the debugger does about an INT3: its own is taken away, another is the guest's (KVM api 4.87).
    fn debugger(&mut self, n: usize, exception: u32, pc: u64) {
        if exception != 3 || self.plan.vcpus[n].debug.is_none_or(|d| d.control & KVM_GUESTDBG_USE_SW_BP == 0)
        {
            return;
        }
        match self.plan.breakpoints.iter().find(|b| b.0 == pc) {
            Some(&(at, byte)) => {
                self.ram[at as usize] = byte;
                self.written.borrow_mut().set(at as usize / 4096);
            }
            None => {
                let mut e = self.vcpus[n].get_vcpu_events().expect("KVM_GET_VCPU_EVENTS");
                e.exception.injected = 1;
                e.exception.nr = 3;
                e.exception.has_error_code = 0;
                self.vcpus[n].set_vcpu_events(&e).expect("KVM_SET_VCPU_EVENTS");
            }
        }
    }

    fn line(&self, gsi: u32, level: bool) {
        if self.plan.controllers != Controllers::None {
            self.vm.set_irq_line(gsi, level).expect("KVM_IRQ_LINE");
        }
    }

    /// Goes on.
    pub fn go(&mut self, pace: Pace) -> Stop {
        loop {
            let Some((n, len)) = self.turn() else { return Stop::End };
            let left = len - self.position.used;
            let bound = match pace {
                Pace::Fast if self.plan.by_steps => RunBound::Steps(left),
                Pace::Fast => RunBound::Instructions(left),
                Pace::Step => RunBound::Steps(left.min(1)),
            };
            match self.enter(n, bound) {
                Some(Stop::Slice) => {
                    self.position.slice += 1;
                    self.position.used = 0;
                    return if self.turn().is_some() { Stop::Slice } else { Stop::End };
                }
                Some(stop) => return stop,
                None => {}
            }
        }
    }

    /// Completes the last exit by `immediate_exit` (KVM api, 5, NOTE). How many more exits came with it.
    pub fn complete(&mut self) -> u32 {
        let Some((n, _)) = self.turn() else { return 0 };
        let mut more = 0;
        loop {
            self.vcpus[n].set_kvm_immediate_exit(1);
            let stop = self.enter(n, RunBound::Steps(0));
            self.vcpus[n].set_kvm_immediate_exit(0);
            match stop {
                Some(Stop::Exit(_)) => more += 1,
                _ => return more,
            }
        }
    }

    /// For a report.
    pub fn registers(&self) -> String {
        let all = |v: &VcpuFd| {
            let state = v.get_mp_state().map(|s| s.mp_state);
            let exception = v.get_vcpu_events().map(|e| e.exception.nr);
            match v.get_regs() {
                Ok(r) => format!(
                    " rip {:#x} rsp {:#x} rflags {:#x} rax {:#x} rcx {:#x} {exception:?} {state:?}",
                    r.rip, r.rsp, r.rflags, r.rax, r.rcx
                ),
                Err(e) => e.to_string(),
            }
        };
        format!("{} ns{}", self.time().ns, self.vcpus.iter().map(all).collect::<String>())
    }

    /// To the end.
    pub fn finish(&mut self) {
        while self.go(Pace::Fast) != Stop::End {}
    }

    /// The moment.
    pub fn time(&self) -> CountedTime {
        self.vm.counted_time().expect("counted time")
    }
}

/// The message of interrupt line `gsi`: physical destination 0, level-triggered.
fn level_route(gsi: u8) -> kvm_irq_routing_entry {
    let mut e = kvm_irq_routing_entry { gsi: gsi.into(), type_: KVM_IRQ_ROUTING_MSI, ..Default::default() };
    e.u.msi.address_lo = 0xfee0_0000;
    e.u.msi.__bindgen_anon_1.devid = 0;
    e.u.msi.data = 0xc060 + u32::from(gsi);
    e
}

/// The processor's CPUID for vCPU `id`.
fn cpuid(plan: &Plan, id: u32) -> Vec<kvm_cpuid_entry2> {
    let kvm = Kvm::new().expect("the software processor");
    let table = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).expect("KVM_GET_SUPPORTED_CPUID");
    let mut rows = table.as_slice().to_vec();
    for row in &mut rows {
        match row.function {
            1 => {
                row.ebx = row.ebx & 0xffff | id << 24 | (plan.vcpus.len() as u32) << 16;
                row.ecx |= 1 << 31 | 1 << 24;
            }
            0xb | 0x1f => row.edx = id,
            _ => {}
        }
    }
    rows
}
