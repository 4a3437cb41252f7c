//! Random guests below the ioctl layer: what no guest may do is make the processor panic, hang or die.
//!
//! A case is made from a number: mode and privilege level, registers, a stream of instructions in slots of 16
//! bytes, four fifths from the encoder and one fifth raw bytes. It starts with valid paging, a stack, and handlers that
//! skip to the next slot; [`setting`] adds interrupt controllers, numbers that trap, and control bits. [`handlers`] knows what can be reached at all; `softkvm-fuzz` (`src/bin/fuzz.rs`) runs cases and
//! says which.

pub mod environment;
pub mod handlers;
pub mod random;
pub mod setting;
pub mod stream;

use decoder::{Context, CpuMode, Protection, decode_one};
use emu_core::{Exit, InternalError, Processor};
use environment::{Environment, Mode};
use handlers::Handlers;
use parking_lot::Mutex;
use random::Random;
use setting::Setting;
use softmmu::VcpuGate;
use std::sync::Arc;

/// Instructions after which a case ends by itself.
pub const BOUND: u64 = 400;
/// Exits after which it does.
const EXITS: u32 = 200;

/// What a case was.
#[derive(Debug, Clone)]
pub struct Ran {
    /// Instructions retired.
    pub retired: u64,
    /// A defect, in words.
    pub defect: Option<String>,
}

/// Whose vCPU runs.
pub type Running = Arc<Mutex<Option<Arc<VcpuGate>>>>;

/// The memory and tables that cases are run in, one after the other.
pub struct Fuzzer {
    environment: Environment,
    /// The gate of the vCPU that runs now: how a watchdog ends a case.
    pub running: Running,
    /// What can be reached, and what was.
    pub handlers: Handlers,
}

impl Fuzzer {
    /// A fuzzer with nothing reached yet.
    #[allow(clippy::new_without_default, reason = "it maps memory and takes a second")]
    pub fn new() -> Fuzzer {
        Fuzzer { environment: Environment::new(), running: Running::default(), handlers: Handlers::find() }
    }

    /// The bytes of a case's code, for a report.
    pub fn code(&self, case: u64) -> (Mode, bool, Vec<u8>) {
        let mut random = Random::new(case);
        let mode = Mode::ALL[random.below(Mode::ALL.len())];
        let user = mode.has_privilege() && random.one_in(2);
        let code = stream::code(&mut random, mode, &self.handlers);
        (mode, user, code)
    }

    /// What a case has besides its code.
    pub fn setting(&self, case: u64) -> Setting {
        Setting::choose(&mut Random::new(case ^ 0x2545_f491))
    }

    /// A processor at the start of a guest like those of the cases.
    pub fn start(
        &mut self,
        mode: Mode,
        user: bool,
        code: &[u8],
        setting: Setting,
        random: &mut Random,
    ) -> Processor {
        self.environment.start(mode, user, code, setting, random)
    }

    /// The memory that [`Fuzzer::start`] has filled.
    pub fn memory(&self) -> &[u8] {
        self.environment.memory()
    }

    /// Runs one case.
    pub fn run(&mut self, case: u64) -> Ran {
        let (mode, user, code) = self.code(case);
        let mut random = Random::new(case ^ 0x5bd1_e995);
        // Each instruction alone, to see which handlers are reached; or as fast as the engine goes.
        let stepping = !random.one_in(4);
        let setting = self.setting(case);
        let mut processor = self.environment.start(mode, user, &code, setting, &mut random);
        *self.running.lock() = Some(processor.vcpu.shared.gate.clone());
        let mut exits = 0;
        let mut defect = None;
        loop {
            let left = BOUND.saturating_sub(processor.vcpu.hot.retired);
            if left == 0 || exits > EXITS {
                break;
            }
            if stepping {
                self.look(&mut processor);
                setting.disturb(&mut processor, &mut random);
            }
            match processor.run(Some(if stepping { 1 } else { left })) {
                Exit::Bound => continue,
                Exit::Shutdown => break,
                Exit::InternalError { kind: InternalError::Defect, .. } => {
                    defect = Some("a handler panicked".into());
                    break;
                }
                // Execution from device memory is the one thing that the engine may give up on, as KVM does.
                Exit::InternalError { kind: InternalError::Emulation, detail } => {
                    if detail.get(1).is_none_or(|readable| *readable >= 15) {
                        defect = Some(format!("an instruction that was not executed: {detail:x?}"));
                    }
                    break;
                }
                Exit::InternalError { .. } => break,
                Exit::HostFault { hva } => {
                    defect = Some(format!("a host fault at {hva:#x}, where all memory is mapped"));
                    break;
                }
                // The watchdog: a handler of the guest's that faults at once retires nothing, for ever.
                Exit::Interrupted => break,
                Exit::Io { data, size, count, .. } if data.is_empty() => {
                    processor.complete_io(&random.bytes(size as usize * count as usize));
                }
                Exit::MmioRead { len, .. } => processor.complete_io(&random.bytes(len as usize)),
                Exit::MsrRead { .. } | Exit::MsrWrite { .. } | Exit::Hypercall { .. } => {
                    processor.complete_value(random.next(), random.one_in(4));
                }
                _ => {}
            }
            exits += 1;
        }
        Ran { retired: processor.vcpu.hot.retired, defect }
    }

    /// Notes the handler of the instruction that comes next.
    fn look(&mut self, processor: &mut Processor) {
        let v = &mut processor.vcpu;
        let mut bytes = [0; 15];
        let n = v.peek_code(&mut bytes);
        let protection = if v.real_mode() {
            Protection::Real
        } else if v.v86() {
            Protection::Virtual8086
        } else {
            Protection::Protected
        };
        let mode: CpuMode = v.mode;
        let context = Context { mode, protection, cpuid: v.cpuid.instructions() };
        if let Ok(insn) = decode_one(&bytes[..n], &context) {
            self.handlers.reached(&insn);
        }
    }
}
