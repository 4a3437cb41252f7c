//! A 16550 serial line: `vm-superio`'s UART with an input queue before its small FIFO.
//!
//! Not the terminal (`terminal`): a line knows a sink for its output and bytes that were typed.

use std::collections::VecDeque;
use std::io::Write;

use vm_superio::Serial;
use vm_superio::serial::NoEvents;

use super::irq_line::IrqLine;

/// Where a line's output goes.
pub type Sink = Box<dyn Write + Send>;

const DATA_REGISTER: u8 = 0;
/// What is typed faster than the guest reads waits here; beyond this it is lost, as on a real line.
const INPUT_LIMIT: usize = 1 << 20;

/// A serial line.
pub struct SerialPort {
    uart: Serial<IrqLine, NoEvents, Sink>,
    waiting: VecDeque<u8>,
}

impl SerialPort {
    /// A line that interrupts through `irq` and writes to `sink`.
    pub fn new(irq: IrqLine, sink: Sink) -> SerialPort {
        SerialPort { uart: Serial::new(irq, sink), waiting: VecDeque::new() }
    }

    /// The guest reads a register (0 to 7).
    pub fn read(&mut self, register: u8) -> u8 {
        let value = self.uart.read(register);
        if register == DATA_REGISTER {
            self.feed();
        }
        value
    }

    /// The guest writes a register (0 to 7).
    pub fn write(&mut self, register: u8, value: u8) {
        if let Err(error) = self.uart.write(register, value) {
            // A closed pipe on the other side must not stop the guest.
            tracing::debug!("serial output: {error:?}");
        }
    }

    /// Bytes arrive on the line.
    pub fn input(&mut self, bytes: &[u8]) {
        let room = INPUT_LIMIT - self.waiting.len().min(INPUT_LIMIT);
        if room < bytes.len() {
            tracing::warn!("serial input overrun: {} bytes lost", bytes.len() - room);
        }
        self.waiting.extend(bytes.iter().take(room));
        self.feed();
    }

    /// Moves what fits from the queue to the UART, which interrupts the guest.
    fn feed(&mut self) {
        let fits = self.uart.fifo_capacity().min(self.waiting.len());
        if fits == 0 {
            return;
        }
        let bytes: Vec<u8> = self.waiting.iter().take(fits).copied().collect();
        match self.uart.enqueue_raw_bytes(&bytes) {
            Ok(taken) => drop(self.waiting.drain(..taken.min(fits))),
            Err(error) => tracing::debug!("serial input: {error:?}"),
        }
    }

    /// Flushes the sink.
    pub fn flush(&mut self) {
        if let Err(error) = self.uart.writer_mut().flush() {
            tracing::debug!("serial output: {error}");
        }
    }
}
