//! How a guest that runs commands tells their status: after their output it prints a marker that nobody can
//! guess, then the status. The filter passes on everything before the marker, to the byte.

use std::fs::File;
use std::io::{self, Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};

/// A new marker: fixed letters and 128 random bits, printable and safe within the shell's single quotes.
pub fn fresh() -> io::Result<String> {
    let mut bytes = [0u8; 16];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    Ok(format!("softkvm-status-{hex}"))
}

/// The status, once it is known.
#[derive(Clone)]
pub struct Status(Arc<AtomicI32>);

impl Status {
    const UNKNOWN: i32 = -1;

    /// The commands' exit status, if they have ended.
    pub fn get(&self) -> Option<u8> {
        u8::try_from(self.0.load(Ordering::Acquire)).ok()
    }
}

/// See the module.
pub struct MarkerFilter<W: Write> {
    sink: W,
    /// The marker and a blank.
    marker: Vec<u8>,
    /// Bytes that may be the marker's beginning; after the marker: the status' digits.
    held: Vec<u8>,
    found: bool,
    /// The sink takes nothing any more.
    unheard: bool,
    status: Status,
}

impl<W: Write> MarkerFilter<W> {
    /// Passes on to `sink` what comes before `marker`.
    pub fn new(sink: W, marker: &str) -> MarkerFilter<W> {
        MarkerFilter {
            sink,
            marker: format!("{marker} ").into_bytes(),
            held: Vec::new(),
            found: false,
            unheard: false,
            status: Status(Arc::new(AtomicI32::new(Status::UNKNOWN))),
        }
    }

    /// Where the status will be.
    pub fn status(&self) -> Status {
        self.status.clone()
    }

    fn pass(&mut self, byte: u8) -> io::Result<()> {
        if self.found {
            // Digits up to the end of the line; anything later is a background process' and too late.
            if byte == b'\n' && self.status.get().is_none() {
                let text = String::from_utf8_lossy(&self.held);
                if let Ok(value) = text.trim().parse::<u8>() {
                    self.status.0.store(value.into(), Ordering::Release);
                }
            } else if self.held.len() < 8 {
                self.held.push(byte);
            }
            return Ok(());
        }
        self.held.push(byte);
        if self.held == self.marker {
            self.found = true;
            self.held.clear();
            return Ok(());
        }
        // Keep the longest end of what is held that may begin a marker.
        let keep = (0..=self.held.len())
            .map(|start| &self.held[start..])
            .find(|end| self.marker.starts_with(end))
            .map_or(0, <[u8]>::len);
        let sure = self.held.len() - keep;
        // A reader that went away (`| head`) must not stop the guest: its commands go on, unheard, to their status.
        if !self.unheard && self.sink.write_all(&self.held[..sure]).is_err() {
            self.unheard = true;
        }
        self.held.drain(..sure);
        Ok(())
    }
}

impl<W: Write> Write for MarkerFilter<W> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        for byte in buffer {
            self.pass(*byte)?;
        }
        Ok(buffer.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        if !self.unheard && self.sink.flush().is_err() {
            self.unheard = true;
        }
        Ok(())
    }
}

impl<W: Write> Drop for MarkerFilter<W> {
    /// A guest that ended without the marker: what was held back was output after all.
    fn drop(&mut self) {
        if !self.found && !self.unheard {
            let _ = self.sink.write_all(&self.held);
        }
        let _ = self.sink.flush();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filter(input: &[u8], step: usize) -> (Vec<u8>, Option<u8>) {
        let mut output = Vec::new();
        let mut filter = MarkerFilter::new(&mut output, "mamark");
        let status = filter.status();
        for piece in input.chunks(step) {
            filter.write_all(piece).unwrap();
        }
        drop(filter);
        (output, status.get())
    }

    /// A sink whose reader has gone away.
    struct Gone;

    impl Write for Gone {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(io::ErrorKind::BrokenPipe.into())
        }
        fn flush(&mut self) -> io::Result<()> {
            Err(io::ErrorKind::BrokenPipe.into())
        }
    }

    #[test]
    fn a_reader_that_went_away_does_not_hide_the_status() {
        let mut filter = MarkerFilter::new(Gone, "end");
        filter.write_all(b"much output\nend 7\n").unwrap();
        filter.flush().unwrap();
        assert_eq!(filter.status().get(), Some(7));
    }

    #[test]
    fn output_passes_to_the_byte() {
        let cases: &[(&[u8], &[u8], Option<u8>)] = &[
            (b"hello\nmamark 0\n", b"hello\n", Some(0)),
            (b"no newlinemamark 7\n", b"no newline", Some(7)),
            (b"mamark 255\n", b"", Some(255)),
            (b"mammamark 3\nlate", b"mam", Some(3)),
            (b"mamamark 3\n", b"ma", Some(3)),
            (b"mamark\nmamark 1\n", b"mamark\n", Some(1)),
            (b"never ends mama", b"never ends mama", None),
            (b"cut off mamark 1", b"cut off ", None),
            (b"\x00\xff\r\n\x01mamark 0\r\n", b"\x00\xff\r\n\x01", Some(0)),
            (b"mamark 256\n", b"", None),
        ];
        for (input, output, status) in cases {
            for step in [1, 2, 3, 100] {
                let text = String::from_utf8_lossy(input);
                assert_eq!(filter(input, step), (output.to_vec(), *status), "{text:?} by {step}");
            }
        }
    }

    #[test]
    fn markers_differ() {
        let (one, other) = (fresh().unwrap(), fresh().unwrap());
        assert_ne!(one, other);
        assert!(one.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-'));
    }
}
