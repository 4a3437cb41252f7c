//! A vCPU's thread: KVM_RUN in a loop, each exit answered by the machine's ports and windows, until somebody
//! ends the guest.
//!
//! Not how the thread is called out of KVM_RUN (`run_page`), nor what the devices do (`ports`).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::dump;
use super::ending::Ending;
use super::ports::Ports;
use crate::guest_ram::GuestRam;
use crate::kvm::{self, VcpuExit, VcpuFd};
use crate::outcome::Outcome;
use crate::run_page::{self, OnVcpuThread};

/// What a vCPU's thread leaves behind.
#[derive(Debug, Default)]
pub struct VcpuReport {
    /// How often KVM_RUN returned, by exit.
    pub exits: BTreeMap<&'static str, u64>,
    /// The engine's own counters, by name.
    pub counters: Vec<(String, u64)>,
}

/// A vCPU and what its thread needs.
pub struct VcpuThread {
    /// The vCPU.
    pub fd: VcpuFd,
    /// Its id, which is its APIC id.
    pub id: u32,
    /// The machine's devices.
    pub ports: Arc<Ports>,
    /// Guest RAM, for the dump.
    pub ram: Arc<GuestRam>,
    /// Where the end is announced and awaited.
    pub ending: Arc<Ending>,
}

/// What one return of KVM_RUN asks for.
enum Next {
    Continue,
    End(Outcome),
    TripleFault,
    Internal(String),
    InternalWithDetail,
}

impl VcpuThread {
    /// Runs until the machine ends.
    pub fn run(mut self) -> VcpuReport {
        let mut report = VcpuReport::default();
        let _guard = EndOnPanic(self.ending.clone());
        let on_thread = OnVcpuThread::enter(&mut self.fd);
        while !self.ending.reached() {
            let (kind, next) = step(&mut self.fd, &self.ports);
            *report.exits.entry(kind).or_default() += 1;
            let outcome = match next {
                Next::Continue => continue,
                Next::End(outcome) => outcome,
                Next::TripleFault => Outcome::TripleFault(self.dump()),
                Next::Internal(what) => Outcome::InternalError(format!("{what}\n{}", self.dump())),
                Next::InternalWithDetail => {
                    let (suberror, data) = run_page::internal_error(&mut self.fd);
                    let what = format!("KVM_EXIT_INTERNAL_ERROR suberror {suberror} data {data:x?}");
                    Outcome::InternalError(format!("{what}\n{}", self.dump()))
                }
            };
            self.ending.announce(outcome);
        }
        if matches!(self.ending.outcome(), Some(Outcome::Timeout)) {
            tracing::info!("at the time limit:\n{}", self.dump());
        }
        drop(on_thread);
        report.counters = kvm::engine_counters(&self.fd);
        report
    }

    fn dump(&self) -> String {
        dump::registers_and_code(&self.fd, self.id, &self.ram)
    }
}

/// A thread that panics must not leave the others, and whoever waits for the end, behind.
struct EndOnPanic(Arc<Ending>);

impl Drop for EndOnPanic {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.announce(Outcome::InternalError("a vCPU thread panicked".into()));
        }
    }
}

/// One KVM_RUN. Returns the exit's name for the statistics, and what follows from it.
fn step(vcpu: &mut VcpuFd, ports: &Ports) -> (&'static str, Next) {
    let exit = match vcpu.run() {
        Ok(exit) => exit,
        Err(error) => {
            return match error.errno() {
                libc::EINTR => {
                    // The kick's handler has set it; the loop looks at `ending` before the next KVM_RUN.
                    vcpu.set_kvm_immediate_exit(0);
                    ("signal", Next::Continue)
                }
                // A vCPU that waits for INIT or SIPI may be woken with nothing to do.
                libc::EAGAIN => ("again", Next::Continue),
                _ => ("error", Next::End(Outcome::HostError(format!("KVM_RUN: {error}")))),
            };
        }
    };
    let end = |outcome: Option<Outcome>| outcome.map_or(Next::Continue, Next::End);
    match exit {
        VcpuExit::IoIn(port, data) => {
            ports.port_read(port, data);
            ("io in", Next::Continue)
        }
        VcpuExit::IoOut(port, data) => ("io out", end(ports.port_write(port, data))),
        VcpuExit::MmioRead(address, data) => {
            ports.mmio_read(address, data);
            ("mmio read", Next::Continue)
        }
        VcpuExit::MmioWrite(address, data) => {
            ports.mmio_write(address, data);
            ("mmio write", Next::Continue)
        }
        VcpuExit::Intr => ("signal", Next::Continue),
        VcpuExit::IrqWindowOpen => ("irq window", Next::Continue),
        VcpuExit::Hlt => {
            // With the local APICs in KVM a halted vCPU stays inside KVM_RUN; a backend that returns all the
            // same gets a short sleep in place of a busy loop.
            std::thread::sleep(Duration::from_millis(1));
            ("hlt", Next::Continue)
        }
        VcpuExit::Shutdown => ("shutdown", Next::TripleFault),
        VcpuExit::SystemEvent(kind, _) => ("system event", Next::End(system_event(kind))),
        VcpuExit::InternalError => ("internal error", Next::InternalWithDetail),
        VcpuExit::FailEntry(reason, cpu) => (
            "fail entry",
            Next::Internal(format!(
                "KVM_EXIT_FAIL_ENTRY: hardware entry failure reason {reason:#x} on CPU {cpu}"
            )),
        ),
        other => ("unexpected", Next::Internal(format!("unexpected exit from KVM_RUN: {other:?}"))),
    }
}

/// KVM api 5, KVM_EXIT_SYSTEM_EVENT.
fn system_event(kind: u32) -> Outcome {
    match kind {
        kvm_bindings::KVM_SYSTEM_EVENT_SHUTDOWN => Outcome::PowerOff,
        kvm_bindings::KVM_SYSTEM_EVENT_RESET => Outcome::Reset,
        _ => Outcome::InternalError(format!("KVM_EXIT_SYSTEM_EVENT {kind}: the guest crashed")),
    }
}
