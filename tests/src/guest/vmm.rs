//! Test-only: the VMM of the harness's guest. One source, compiled for each backend's API.
//!
//! Devices: an echo port, a port of bytes in a row, a page of registers, interrupt lines on request, and marks in
//! time. It judges nothing but what only it can see; the guest's reports are handed on.
#![allow(unsafe_code)] // KVM_SET_USER_MEMORY_REGION takes a host address; the guest's memory is read while it runs.

use super::super::io::checksum;
use super::super::layout::*;
use super::super::{Image, clock};
use super::{Kvm, NAME, VcpuExit, VcpuFd, VmFd};
use kvm_bindings::{
    CpuId, KVM_MAX_CPUID_ENTRIES, KVM_MEM_READONLY, kvm_pit_config, kvm_userspace_memory_region,
};
use memmap2::{MmapMut, MmapRaw};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant, SystemTime};

pub use super::MAY_GIVE_UP;

/// The result of one check.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Report {
    /// Passed; `None`: the processor does not offer it.
    pub passed: Option<bool>,
    /// What the guest found.
    pub actual: u64,
    /// What it expected.
    pub expected: u64,
}

/// The host's clocks at a mark, and the guest's around it.
#[derive(Clone, Copy, Debug)]
pub struct Mark {
    /// CLOCK_MONOTONIC.
    pub host: Instant,
    /// Nanoseconds since the epoch.
    pub realtime: u64,
    /// KVM_GET_CLOCK.
    pub kvmclock: u64,
    /// kvmclock in the guest before the mark.
    pub before: u64,
    /// kvmclock in the guest behind it.
    pub after: u64,
    /// The wall clock at kvmclock's zero.
    pub wall_base: u64,
    /// The guest's TSC.
    pub tsc: u64,
}

/// How a run ended.
#[derive(Debug, Default)]
pub struct Outcome {
    /// The reports by the check's number.
    pub reports: BTreeMap<u32, Report>,
    /// The marks in time.
    pub marks: Vec<Mark>,
    /// Why it did not end well.
    pub failure: Option<String>,
    /// KVM_GET_TSC_KHZ.
    pub tsc_khz: u32,
}

struct Devices {
    memory: Arc<MmapRaw>,
    vm: Arc<VmFd>,
    state: Mutex<State>,
    /// How long the guest stands still at a mark, by the mark's number.
    pause: Box<dyn Fn(usize) -> Duration + Send + Sync>,
}

#[derive(Default)]
struct State {
    reports: BTreeMap<u32, Report>,
    marks: Vec<(Instant, u64, u64)>,
    echo: Vec<u8>,
    stream: Vec<u8>,
    next_in: u8,
    registers: BTreeMap<u64, u8>,
    rom_store: u16,
}

enum Event {
    Left(u32),
    Failed(String),
}

/// Whether this backend can be used here.
pub fn present() -> Result<(), String> {
    Kvm::new().map(|_| ()).map_err(|e| format!("{NAME}: {e}"))
}

fn anonymous(size: u64) -> Arc<MmapRaw> {
    Arc::new(MmapRaw::from(MmapMut::map_anon(size as usize).expect("guest memory")))
}

fn poke(memory: &MmapRaw, at: u64, bytes: &[u8]) {
    assert!(at as usize + bytes.len() <= memory.len());
    // SAFETY: inside the mapping, by the line above; no reference to it exists.
    unsafe {
        std::ptr::copy_nonoverlapping(bytes.as_ptr(), memory.as_mut_ptr().add(at as usize), bytes.len())
    };
}

fn peek(memory: &MmapRaw, at: u64) -> u64 {
    assert!(at as usize + 8 <= memory.len() && at.is_multiple_of(8));
    // SAFETY: inside the mapping and aligned, by the line above; the guest may write it at any time: volatile.
    unsafe { memory.as_ptr().add(at as usize).cast::<u64>().read_volatile() }
}

/// The processor's CPUID for vCPU `id`.
fn cpuid(kvm: &Kvm, id: u32) -> CpuId {
    let mut table = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).expect("KVM_GET_SUPPORTED_CPUID");
    for row in table.as_mut_slice() {
        match row.function {
            1 => {
                row.ebx = row.ebx & 0xffff | id << 24 | 2 << 16;
                // The hypervisor bit, and the TSC deadline timer, which is the local APIC's.
                row.ecx |= 1 << 31 | 1 << 24;
            }
            0xb | 0x1f => row.edx = id,
            _ => {}
        }
    }
    table
}

/// Runs the guest. `mode` is written to [`MODE`]; the guest stands still for `pause(n)` at mark `n`.
pub fn run(
    image: &Image,
    mode: u64,
    watchdog: Duration,
    pause: impl Fn(usize) -> Duration + Send + Sync + 'static,
) -> Outcome {
    let kvm = Kvm::new().expect("the backend is present");
    let vm = Arc::new(kvm.create_vm().expect("KVM_CREATE_VM"));
    vm.set_tss_address(0xfffb_d000).expect("KVM_SET_TSS_ADDR");
    vm.create_irq_chip().expect("KVM_CREATE_IRQCHIP");
    vm.create_pit2(kvm_pit_config::default()).expect("KVM_CREATE_PIT2");
    let (ram, rom) = (anonymous(RAM), anonymous(ROM_SIZE));
    for (at, bytes) in &image.pieces {
        poke(&ram, *at, bytes);
    }
    poke(&rom, 0, &image.rom);
    poke(&ram, MODE, &mode.to_le_bytes());
    for (slot, gpa, memory, flags) in [(0, 0, &ram, 0), (1, ROM, &rom, KVM_MEM_READONLY)] {
        let region = kvm_userspace_memory_region {
            slot,
            flags,
            guest_phys_addr: gpa,
            memory_size: memory.len() as u64,
            userspace_addr: memory.as_ptr() as u64,
        };
        // SAFETY: the mapping lives as long as the devices, which the vCPU threads hold; no reference to it exists.
        unsafe { vm.set_user_memory_region(region) }.expect("KVM_SET_USER_MEMORY_REGION");
    }
    let vcpus: Vec<VcpuFd> = (0..2)
        .map(|id| {
            let vcpu = vm.create_vcpu(id).expect("KVM_CREATE_VCPU");
            vcpu.set_cpuid2(&cpuid(&kvm, id as u32)).expect("KVM_SET_CPUID2");
            vcpu
        })
        .collect();
    let tsc_khz = vcpus.first().and_then(|v| v.get_tsc_khz().ok()).unwrap_or(0);
    let devices =
        Arc::new(Devices { memory: ram.clone(), vm, state: Mutex::default(), pause: Box::new(pause) });
    let (sender, receiver) = channel();
    let both = mode == 0;
    for (id, vcpu) in vcpus.into_iter().enumerate() {
        let (devices, sender, rom) = (devices.clone(), sender.clone(), rom.clone());
        std::thread::Builder::new()
            .name(format!("vcpu{id}"))
            .spawn(move || {
                let _memory = (devices.memory.clone(), rom);
                let mut vcpu = vcpu;
                let event = devices.serve(&mut vcpu);
                let _ = sender.send(event);
            })
            .expect("a thread");
    }
    drop(sender);
    let failure = wait(&receiver, both, watchdog);
    let state = devices.state.lock();
    let marks = state.marks.iter().enumerate().take(clock::MARKS).map(|(n, &(host, realtime, kvmclock))| {
        let sample = |k: u64| peek(&ram, SAMPLES + 32 * n as u64 + 8 * k);
        Mark {
            host,
            realtime,
            kvmclock,
            before: sample(0),
            after: sample(1),
            wall_base: sample(2),
            tsc: sample(3),
        }
    });
    Outcome { reports: state.reports.clone(), marks: marks.collect(), failure, tsc_khz }
}

/// Waits until the first processor (and the second, where it was started) has left.
fn wait(receiver: &Receiver<Event>, both: bool, watchdog: Duration) -> Option<String> {
    let end = Instant::now() + watchdog;
    let mut left = [false, !both];
    while left.contains(&false) {
        match receiver.recv_timeout(end.saturating_duration_since(Instant::now())) {
            Ok(Event::Left(n)) => left[n as usize & 1] = true,
            Ok(Event::Failed(why)) => return Some(why),
            Err(RecvTimeoutError::Timeout) => {
                return Some(format!("the watchdog ended it after {watchdog:?}; left: {left:?}"));
            }
            Err(RecvTimeoutError::Disconnected) => return Some("a vCPU thread is gone".into()),
        }
    }
    None
}

impl Devices {
    fn serve(&self, vcpu: &mut VcpuFd) -> Event {
        loop {
            let event = match vcpu.run() {
                Ok(VcpuExit::IoOut(port, data)) => self.port_write(port, data),
                Ok(VcpuExit::IoIn(port, data)) => {
                    self.port_read(port, data);
                    None
                }
                Ok(VcpuExit::MmioWrite(gpa, data)) => {
                    self.mmio_write(gpa, data);
                    None
                }
                Ok(VcpuExit::MmioRead(gpa, data)) => {
                    self.mmio_read(gpa, data);
                    None
                }
                Ok(VcpuExit::Intr | VcpuExit::IrqWindowOpen) => None,
                Ok(other) => Some(Event::Failed(format!("unexpected exit: {other:?}"))),
                Err(e) if e.errno() == libc::EINTR || e.errno() == libc::EAGAIN => None,
                Err(e) => Some(Event::Failed(format!("KVM_RUN: {e}"))),
            };
            match event {
                Some(Event::Failed(why)) => return Event::Failed(format!("{why}\n{}", registers(vcpu))),
                Some(left) => return left,
                None => {}
            }
        }
    }

    fn variable(&self, at: u64) -> u64 {
        peek(&self.memory, at)
    }

    fn port_write(&self, port: u16, data: &[u8]) -> Option<Event> {
        let mut state = self.state.lock();
        let mut word = [0; 4];
        let n = data.len().min(4);
        word[..n].copy_from_slice(&data[..n]);
        let value = u32::from_le_bytes(word);
        match port {
            PORT_REPORT => {
                let passed = (value & ABSENT == 0).then_some(value & FAILED == 0);
                let (actual, expected) = (self.variable(ACTUAL), self.variable(EXPECTED));
                state.reports.insert(value & !(FAILED | ABSENT), Report { passed, actual, expected });
            }
            PORT_DONE => return Some(Event::Left(value)),
            PORT_FATAL => {
                let v = |at| self.variable(at);
                return Some(Event::Failed(format!(
                    "an exception that nobody expected: vector {} error {:#x} at {:#x}:{:#x}, RSP {:#x}, CR2 {:#x}",
                    v(F_VECTOR),
                    v(F_ERROR),
                    v(F_CS),
                    v(F_RIP),
                    v(F_RSP),
                    v(F_CR2)
                )));
            }
            PORT_IRQ => {
                drop(state);
                self.vm.set_irq_line(value & 0xffff, value >> 16 & 1 != 0).expect("KVM_IRQ_LINE");
            }
            PORT_CLOCK => {
                let kvmclock = self.vm.get_clock().map_or(0, |c| c.clock);
                let realtime = SystemTime::now()
                    .duration_since(SystemTime::UNIX_EPOCH)
                    .map_or(0, |d| d.as_nanos() as u64);
                let n = state.marks.len();
                state.marks.push((Instant::now(), realtime, kvmclock));
                drop(state);
                std::thread::sleep((self.pause)(n));
            }
            PORT_ECHO => state.echo = data.to_vec(),
            PORT_STREAM => state.stream.extend_from_slice(data),
            _ => return Some(Event::Failed(format!("OUT to port {port:#x}"))),
        }
        None
    }

    fn port_read(&self, port: u16, data: &mut [u8]) {
        let mut state = self.state.lock();
        match port {
            PORT_ECHO => data.iter_mut().zip(&state.echo).for_each(|(to, from)| *to = !from),
            PORT_STREAM => {
                for to in data {
                    *to = state.next_in;
                    state.next_in = state.next_in.wrapping_add(1);
                }
            }
            PORT_SUM if data.len() == 4 => {
                data.copy_from_slice(&checksum(&std::mem::take(&mut state.stream)).to_le_bytes());
            }
            PORT_SUM if data.len() == 2 => data.copy_from_slice(&state.rom_store.to_le_bytes()),
            _ => data.fill(0xff),
        }
    }

    fn mmio_write(&self, gpa: u64, data: &[u8]) {
        let mut state = self.state.lock();
        if gpa >= ROM {
            state.rom_store = u16::from(data.first().copied().unwrap_or(0));
        }
        for (at, byte) in (gpa..).zip(data) {
            state.registers.insert(at, *byte);
        }
    }

    fn mmio_read(&self, gpa: u64, data: &mut [u8]) {
        let state = self.state.lock();
        for (at, byte) in (gpa..).zip(data) {
            *byte = state.registers.get(&at).copied().unwrap_or(0xff);
        }
    }
}

fn registers(vcpu: &VcpuFd) -> String {
    match (vcpu.get_regs(), vcpu.get_sregs()) {
        (Ok(r), Ok(s)) => format!(
            "rip {:#x} rsp {:#x} rflags {:#x} rax {:#x} rbx {:#x} rcx {:#x} rdx {:#x} rsi {:#x} rdi {:#x} \
             cs {:#x} ss {:#x} cr0 {:#x} cr2 {:#x} cr3 {:#x} cr4 {:#x} efer {:#x}",
            r.rip,
            r.rsp,
            r.rflags,
            r.rax,
            r.rbx,
            r.rcx,
            r.rdx,
            r.rsi,
            r.rdi,
            s.cs.selector,
            s.ss.selector,
            s.cr0,
            s.cr2,
            s.cr3,
            s.cr4,
            s.efer
        ),
        _ => "no registers".into(),
    }
}
