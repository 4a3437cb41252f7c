//! The virtual PC: built from KVM's objects, this program's devices and a kernel; run to its end.
//!
//! `layout` is its address map, `boot` its first step, `acpi` and `cpuid` what it says of itself, `ports` its
//! devices' addresses, `vcpu` the threads that run it. Not what the user typed (`cli`) or sees (the verbs).

pub mod acpi;
pub mod boot;
pub mod cpuid;
mod dump;
mod ending;
pub mod layout;
mod ports;
mod vcpu;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use kvm_bindings::{
    KVM_MAX_CPUID_ENTRIES, KVM_PIT_SPEAKER_DUMMY, Msrs, kvm_fpu, kvm_msr_entry, kvm_pit_config,
};
use vm_memory::{Bytes, GuestAddress};

pub use ending::Ending;
use ports::Ports;
use vcpu::{VcpuReport, VcpuThread};

use crate::cli::EngineClock;
use crate::devices::block::DiskImage;
use crate::devices::irq_line::IrqLine;
use crate::devices::serial::{SerialPort, Sink};
use crate::devices::virtio_mmio::VirtioMmio;
use crate::guest_ram::{self, GuestRam};
use crate::kvm::{self, Cap, VcpuFd, VmFd};
use crate::outcome::{Failure, Outcome};
use crate::run_page;

/// APIC ids are bytes, 255 is the broadcast, and one is left to the IOAPIC.
const MAX_CPUS: u32 = 254;
/// The least that the boot tables need.
const MIN_MEMORY: u64 = 4 << 20;

/// What the machine starts with.
pub enum Payload {
    /// A bzImage, an initrd, a command line.
    Linux {
        /// The kernel.
        kernel: boot::KernelImage,
        /// The initrd's bytes.
        initrd: Option<Vec<u8>>,
        /// The kernel's command line.
        cmdline: String,
    },
    /// A raw 64-bit program.
    Raw(Vec<u8>),
}

/// Everything that a machine is made from.
pub struct MachineConfig {
    /// Bytes of RAM.
    pub memory: u64,
    /// Number of vCPUs.
    pub cpus: u32,
    /// The clock that the engine runs on.
    pub clock: EngineClock,
    /// A raw disk image.
    pub disk: Option<PathBuf>,
    /// What to boot.
    pub payload: Payload,
    /// Where the serial lines' output goes; `None`: the line does not exist.
    pub serial: [Option<Sink>; 3],
}

/// A machine that is ready to run.
pub struct Machine {
    // Dropped in this order: vCPUs and VM before the RAM that they use.
    vcpus: Vec<VcpuFd>,
    vm: Arc<VmFd>,
    ports: Arc<Ports>,
    ram: Arc<GuestRam>,
    ending: Arc<Ending>,
}

/// What a run leaves behind.
#[derive(Debug)]
pub struct MachineReport {
    /// How it ended.
    pub outcome: Outcome,
    /// From the first KVM_RUN to the end.
    pub elapsed: Duration,
    /// KVM_RUN's exits by kind, all vCPUs together.
    pub exits: BTreeMap<&'static str, u64>,
    /// The engine's counters by name, all vCPUs together, and the disk's.
    pub counters: BTreeMap<String, u64>,
}

/// Hands input to a running machine and ends it from outside.
#[derive(Clone)]
pub struct MachineHandle {
    ports: Arc<Ports>,
    ending: Arc<Ending>,
}

impl MachineHandle {
    /// Types on the first serial line.
    pub fn console_input(&self, bytes: &[u8]) {
        self.ports.console_input(bytes);
    }

    /// Ends the guest.
    pub fn end(&self, outcome: Outcome) {
        self.ending.announce(outcome);
    }
}

impl Machine {
    /// Builds a machine: nothing of the guest has run when this returns.
    pub fn new(config: MachineConfig) -> Result<Machine, Failure> {
        let MachineConfig { memory, cpus, clock, disk, payload, serial } = config;
        if memory < MIN_MEMORY {
            return Err(Failure::BadInput(format!(
                "too little memory: --mem {memory} is below {} MiB",
                MIN_MEMORY >> 20
            )));
        }
        let disk = disk.map(|path| DiskImage::open(&path)).transpose()?;

        let host_kvm = kvm::open(clock)?;
        let version = host_kvm.get_api_version();
        if version != 12 {
            return Err(Failure::Host(format!("KVM_GET_API_VERSION is {version}, not 12")));
        }
        let most = MAX_CPUS.min(u32::try_from(host_kvm.get_max_vcpus()).unwrap_or(MAX_CPUS));
        if cpus == 0 || cpus > most {
            return Err(Failure::BadInput(format!("--cpus {cpus}: a machine has 1 to {most} vCPUs")));
        }
        let supported = host_kvm
            .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
            .map_err(|error| Failure::host("KVM_GET_SUPPORTED_CPUID", error))?;
        check_physical_bits(&supported, memory)?;

        let vm = Arc::new(host_kvm.create_vm().map_err(|error| Failure::host("KVM_CREATE_VM", error))?);
        vm.set_identity_map_address(layout::KVM_IDENTITY_MAP)
            .map_err(|error| Failure::host("KVM_SET_IDENTITY_MAP_ADDR", error))?;
        vm.set_tss_address(layout::KVM_TSS).map_err(|error| Failure::host("KVM_SET_TSS_ADDR", error))?;
        vm.create_irq_chip().map_err(|error| Failure::host("KVM_CREATE_IRQCHIP", error))?;
        // Port 0x61 goes to KVM's PIT too.
        vm.create_pit2(kvm_pit_config { flags: KVM_PIT_SPEAKER_DUMMY, ..Default::default() })
            .map_err(|error| Failure::host("KVM_CREATE_PIT2", error))?;

        let ram = guest_ram::reserve(memory)?;
        boot::write_tables(&ram)?;
        ram.write_slice(&acpi::tables(cpus, disk.is_some()), GuestAddress(layout::ACPI_TABLES))
            .map_err(|error| Failure::host("guest memory", error))?;
        let entry = match payload {
            Payload::Linux { kernel, initrd, cmdline } => {
                kernel.load(&ram, memory, initrd.as_deref(), &cmdline, layout::ACPI_TABLES)?
            }
            Payload::Raw(program) => boot::load_raw(&ram, memory, &program, layout::ACPI_TABLES)?,
        };
        guest_ram::register(&vm, &ram)?;

        let tsc_deadline = host_kvm.check_extension(Cap::TscDeadlineTimer);
        let mut vcpus = Vec::new();
        for id in 0..cpus {
            let cpuid = cpuid::for_vcpu(&supported, id, cpus, tsc_deadline).map_err(Failure::Host)?;
            let vcpu = vm.create_vcpu(id.into()).map_err(|error| Failure::host("KVM_CREATE_VCPU", error))?;
            vcpu.set_cpuid2(&cpuid).map_err(|error| Failure::host("KVM_SET_CPUID2", error))?;
            set_up_vcpu(&vcpu, (id == 0).then_some(entry))?;
            vcpus.push(vcpu);
        }

        let lines = [layout::IRQ_COM1_COM3, layout::IRQ_COM2, layout::IRQ_COM1_COM3];
        let mut serial = serial
            .into_iter()
            .zip(lines)
            .map(|(sink, irq)| sink.map(|sink| SerialPort::new(IrqLine::new(vm.clone(), irq), sink)));
        let serial = std::array::from_fn(|_| serial.next().flatten());
        let disk =
            disk.map(|disk| VirtioMmio::new(disk, ram.clone(), IrqLine::new(vm.clone(), layout::IRQ_DISK)));
        let ports = Arc::new(Ports::new(serial, disk));
        Ok(Machine { vcpus, vm, ports, ram, ending: Arc::new(Ending::default()) })
    }

    /// Input and the end from outside; stays valid while the machine runs.
    pub fn handle(&self) -> MachineHandle {
        MachineHandle { ports: self.ports.clone(), ending: self.ending.clone() }
    }

    /// Runs to the end, at most for `limit`.
    pub fn run(self, limit: Option<Duration>) -> Result<MachineReport, Failure> {
        let Machine { vcpus, vm, ports, ram, ending } = self;
        run_page::install().map_err(Failure::Host)?;
        let start = Instant::now();
        let mut threads = Vec::new();
        for (id, fd) in (0u32..).zip(vcpus) {
            let vcpu = VcpuThread { fd, id, ports: ports.clone(), ram: ram.clone(), ending: ending.clone() };
            let thread = thread::Builder::new().name(format!("vcpu{id}")).spawn(move || vcpu.run());
            match thread {
                Ok(thread) => threads.push(thread),
                Err(error) => {
                    ending.announce(Outcome::HostError(format!("cannot start a vCPU thread: {error}")))
                }
            }
        }
        let outcome = ending.wait(limit);
        let elapsed = start.elapsed();

        // A kick can fall between a thread's look at `ending` and its KVM_RUN before the handler's
        // `immediate_exit` is seen by a backend that has none; so it is repeated until the thread is out.
        while threads.iter().any(|thread| !thread.is_finished()) {
            threads.iter().filter(|thread| !thread.is_finished()).for_each(run_page::kick);
            thread::sleep(Duration::from_millis(1));
        }
        let mut report =
            MachineReport { outcome, elapsed, exits: BTreeMap::new(), counters: BTreeMap::new() };
        for thread in threads {
            match thread.join() {
                Ok(VcpuReport { exits, counters }) => {
                    exits
                        .into_iter()
                        .for_each(|(kind, count)| *report.exits.entry(kind).or_default() += count);
                    counters
                        .into_iter()
                        .for_each(|(name, count)| *report.counters.entry(name).or_default() += count);
                }
                Err(_) => report.outcome = Outcome::InternalError("a vCPU thread panicked".into()),
            }
        }
        for (name, count) in ports.disk_counters() {
            report.counters.insert(name.into(), count);
        }
        ports.flush();
        drop(vm);
        drop(ram);
        Ok(report)
    }
}

/// RAM must end below the guest's physical address width (CPUID 80000008H, EAX 7:0).
fn check_physical_bits(supported: &kvm_bindings::CpuId, memory: u64) -> Result<(), Failure> {
    let leaf = supported.as_slice().iter().find(|entry| entry.function == 0x8000_0008);
    let bits = leaf.map_or(36, |entry| entry.eax & 0xff).min(52);
    let top = guest_ram::ranges(memory).last().map_or(0, |(start, length)| start.saturating_add(*length));
    if top > 1 << bits {
        return Err(Failure::BadInput(format!(
            "--mem {} MiB: a guest here has {bits} bits of physical address, {} MiB at most",
            memory >> 20,
            (1u64 << bits) >> 20
        )));
    }
    Ok(())
}

/// Registers of a new vCPU. `entry`: the first instruction, for the boot processor; the others stay in reset
/// and wait for INIT and SIPI.
fn set_up_vcpu(vcpu: &VcpuFd, entry: Option<u64>) -> Result<(), Failure> {
    const IA32_MISC_ENABLE: u32 = 0x1a0;
    const MISC_ENABLE_FAST_STRING: u64 = 1;
    const IA32_MTRR_DEF_TYPE: u32 = 0x2ff;
    const MTRR_ENABLE_WRITE_BACK: u64 = (1 << 11) | 6;
    // AMD: the TSC counts at the P0 frequency; systems complain of firmware that leaves it clear.
    const HWCR: u32 = 0xc001_0015;
    const HWCR_TSC_FREQ_SEL: u64 = 1 << 24;
    let msr = |index, data| kvm_msr_entry { index, data, ..Default::default() };
    let wanted = [
        msr(IA32_MISC_ENABLE, MISC_ENABLE_FAST_STRING),
        msr(IA32_MTRR_DEF_TYPE, MTRR_ENABLE_WRITE_BACK),
        msr(HWCR, HWCR_TSC_FREQ_SEL),
    ];
    for entry in wanted {
        let msrs =
            Msrs::from_entries(&[entry]).map_err(|error| Failure::Host(format!("MSR list: {error:?}")))?;
        // Firmware's defaults, not conditions: KVM_SET_MSRS says 0 for one that this vCPU lacks.
        match vcpu.set_msrs(&msrs) {
            Ok(1) => {}
            Ok(_) => tracing::debug!("MSR {:#x} is not there", entry.index),
            Err(error) => return Err(Failure::host("KVM_SET_MSRS", error)),
        }
    }
    let mut lapic = vcpu.get_lapic().map_err(|error| Failure::host("KVM_GET_LAPIC", error))?;
    set_virtual_wire(&mut lapic);
    vcpu.set_lapic(&lapic).map_err(|error| Failure::host("KVM_SET_LAPIC", error))?;
    let Some(entry) = entry else { return Ok(()) };
    let mut sregs = vcpu.get_sregs().map_err(|error| Failure::host("KVM_GET_SREGS", error))?;
    boot::enter_long_mode(&mut sregs);
    vcpu.set_sregs(&sregs).map_err(|error| Failure::host("KVM_SET_SREGS", error))?;
    vcpu.set_regs(&boot::entry_regs(entry)).map_err(|error| Failure::host("KVM_SET_REGS", error))?;
    // The state after FNINIT and of a reset MXCSR.
    vcpu.set_fpu(&kvm_fpu { fcw: 0x37f, mxcsr: 0x1f80, ..Default::default() })
        .map_err(|error| Failure::host("KVM_SET_FPU", error))
}

/// LINT0 takes the 8259s' interrupts and LINT1 the NMI, as firmware leaves them (MP specification, 3.6.2.1).
fn set_virtual_wire(lapic: &mut kvm_bindings::kvm_lapic_state) {
    const LVT_LINT0: usize = 0x350;
    const LVT_LINT1: usize = 0x360;
    const DELIVERY_NMI: u32 = 4 << 8;
    const DELIVERY_EXTINT: u32 = 7 << 8;
    for (register, mode) in [(LVT_LINT0, DELIVERY_EXTINT), (LVT_LINT1, DELIVERY_NMI)] {
        for (byte, value) in lapic.regs[register..register + 4].iter_mut().zip(mode.to_le_bytes()) {
            *byte = value as std::os::raw::c_char;
        }
    }
}
