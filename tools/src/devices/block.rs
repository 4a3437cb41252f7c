//! A virtio block device's request processing over a raw disk image.
//!
//! Not the transport (`virtio_mmio`). Virtio 1.2, section 5.2.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, FileTypeExt};
use std::path::Path;

use virtio_queue::DescriptorChain;
use vm_memory::bitmap::BitmapSlice;

use crate::guest_ram::GuestRam;
use crate::outcome::Failure;

/// The unit of requests and of the capacity, whatever the image's own block size.
pub const SECTOR: u64 = 512;
const CHUNK: usize = 64 * 1024;

/// Feature bits (5.2.3).
const VIRTIO_BLK_F_RO: u64 = 1 << 5;
const VIRTIO_BLK_F_BLK_SIZE: u64 = 1 << 6;
const VIRTIO_BLK_F_FLUSH: u64 = 1 << 9;

/// Request types and status values (5.2.6).
const VIRTIO_BLK_T_IN: u32 = 0;
const VIRTIO_BLK_T_OUT: u32 = 1;
const VIRTIO_BLK_T_FLUSH: u32 = 4;
const VIRTIO_BLK_T_GET_ID: u32 = 8;
const VIRTIO_BLK_S_OK: u8 = 0;
const VIRTIO_BLK_S_IOERR: u8 = 1;
const VIRTIO_BLK_S_UNSUPP: u8 = 2;
const ID_BYTES: usize = 20;

/// struct virtio_blk_req without its data.
#[derive(Debug, Clone, Copy)]
struct Request {
    kind: u32,
    sector: u64,
}

impl Request {
    fn read(reader: &mut impl Read) -> std::io::Result<Request> {
        let mut bytes = [0; 16];
        reader.read_exact(&mut bytes)?;
        let [k0, k1, k2, k3, _, _, _, _, sector @ ..] = bytes;
        Ok(Request { kind: u32::from_le_bytes([k0, k1, k2, k3]), sector: u64::from_le_bytes(sector) })
    }
}

/// Requests by kind, for `--stats`.
#[derive(Debug, Default, Clone, Copy)]
pub struct DiskCounters {
    /// Reads that succeeded.
    pub reads: u64,
    /// Writes that succeeded.
    pub writes: u64,
    /// Flushes that succeeded.
    pub flushes: u64,
    /// Requests that failed.
    pub errors: u64,
}

/// A raw image, locked for as long as it is open.
#[derive(Debug)]
pub struct DiskImage {
    file: File,
    bytes: u64,
    read_only: bool,
    /// What happened so far.
    pub counters: DiskCounters,
}

impl DiskImage {
    /// Opens and locks an image; without write permission it becomes a read-only disk.
    pub fn open(path: &Path) -> Result<DiskImage, Failure> {
        let refuse = |why: String| Failure::BadInput(format!("--disk {}: {why}", path.display()));
        let (mut file, read_only) = match OpenOptions::new().read(true).write(true).open(path) {
            Ok(file) => (file, false),
            Err(error)
                if matches!(error.kind(), ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem) =>
            {
                (File::open(path).map_err(|error| refuse(error.to_string()))?, true)
            }
            Err(error) => return Err(refuse(error.to_string())),
        };
        let kind = file.metadata().map_err(|error| refuse(error.to_string()))?.file_type();
        if !kind.is_file() && !kind.is_block_device() {
            return Err(refuse("neither a file nor a block device".into()));
        }
        file.try_lock().map_err(|_| refuse("another program has it locked".into()))?;
        let bytes = file.seek(SeekFrom::End(0)).map_err(|error| refuse(error.to_string()))?;
        if bytes == 0 || !bytes.is_multiple_of(SECTOR) {
            return Err(refuse(format!(
                "{bytes} bytes is not a positive multiple of {SECTOR}: not a raw disk image"
            )));
        }
        if read_only {
            tracing::warn!("--disk {}: no write permission; the disk is read-only", path.display());
        }
        Ok(DiskImage { file, bytes, read_only, counters: DiskCounters::default() })
    }

    /// The device's feature bits.
    pub fn features(&self) -> u64 {
        VIRTIO_BLK_F_BLK_SIZE | VIRTIO_BLK_F_FLUSH | if self.read_only { VIRTIO_BLK_F_RO } else { 0 }
    }

    /// The device's configuration space (5.2.4): capacity, then block size at offset 20.
    pub fn config(&self) -> [u8; 24] {
        let mut config = [0; 24];
        config[..8].copy_from_slice(&(self.bytes / SECTOR).to_le_bytes());
        config[20..].copy_from_slice(&(SECTOR as u32).to_le_bytes());
        config
    }

    /// Serves one request. Returns how many bytes were written to guest memory; a chain that has no place for
    /// a status gets none.
    pub fn serve(&mut self, chain: DescriptorChain<&GuestRam>, ram: &GuestRam) -> u32 {
        let (Ok(mut reader), Ok(mut writer)) = (chain.clone().reader(ram), chain.writer(ram)) else {
            return 0;
        };
        let Some(data_length) = writer.available_bytes().checked_sub(1) else { return 0 };
        let Ok(mut status) = writer.split_at(data_length) else { return 0 };
        let outcome = match Request::read(&mut reader) {
            Ok(request) => self.transfer(request, &mut reader, &mut writer),
            Err(error) => Err(Refusal::Io(error)),
        };
        let code = match outcome {
            Ok(()) => VIRTIO_BLK_S_OK,
            Err(Refusal::Unsupported) => VIRTIO_BLK_S_UNSUPP,
            Err(Refusal::Io(error)) => {
                self.counters.errors += 1;
                tracing::warn!("disk: {error}");
                VIRTIO_BLK_S_IOERR
            }
        };
        if status.write_obj(code).is_err() {
            return 0;
        }
        u32::try_from(writer.bytes_written() + 1).unwrap_or(u32::MAX)
    }

    fn transfer(
        &mut self,
        request: Request,
        reader: &mut impl Read,
        writer: &mut impl WriteSpace,
    ) -> Result<(), Refusal> {
        match request.kind {
            VIRTIO_BLK_T_IN => {
                let mut at = self.range(request.sector, writer.space() as u64)?;
                let mut chunk = vec![0u8; CHUNK.min(writer.space())];
                while writer.space() > 0 {
                    let piece = chunk.len().min(writer.space());
                    self.file.read_exact_at(&mut chunk[..piece], at)?;
                    writer.write_all(&chunk[..piece])?;
                    at += piece as u64;
                }
                self.counters.reads += 1;
            }
            VIRTIO_BLK_T_OUT if self.read_only => {
                return Err(Refusal::Io(std::io::Error::new(
                    ErrorKind::PermissionDenied,
                    "write to a read-only disk",
                )));
            }
            VIRTIO_BLK_T_OUT => {
                let mut data = Vec::new();
                // The range is known to be good before anything is written.
                reader.take(self.bytes + 1).read_to_end(&mut data)?;
                let at = self.range(request.sector, data.len() as u64)?;
                self.file.write_all_at(&data, at)?;
                self.counters.writes += 1;
            }
            VIRTIO_BLK_T_FLUSH => {
                self.file.sync_data()?;
                self.counters.flushes += 1;
            }
            VIRTIO_BLK_T_GET_ID => {
                let mut id = [0u8; ID_BYTES];
                id[..7].copy_from_slice(b"softkvm");
                let length = ID_BYTES.min(writer.space());
                writer.write_all(&id[..length])?;
            }
            _ => return Err(Refusal::Unsupported),
        }
        Ok(())
    }

    /// The byte offset of `sector`, if `length` bytes from there are whole sectors inside the disk.
    fn range(&self, sector: u64, length: u64) -> Result<u64, Refusal> {
        let start = sector.checked_mul(SECTOR);
        let end = start.and_then(|start| start.checked_add(length));
        match (start, end) {
            (Some(start), Some(end)) if end <= self.bytes && length.is_multiple_of(SECTOR) => Ok(start),
            _ => Err(Refusal::Io(std::io::Error::new(
                ErrorKind::InvalidInput,
                format!(
                    "request for {length} bytes at sector {sector} of a disk of {} sectors",
                    self.bytes / SECTOR
                ),
            ))),
        }
    }
}

enum Refusal {
    Unsupported,
    Io(std::io::Error),
}

impl From<std::io::Error> for Refusal {
    fn from(error: std::io::Error) -> Refusal {
        Refusal::Io(error)
    }
}

/// A writer that knows how much still fits.
trait WriteSpace: Write {
    fn space(&self) -> usize;
}

impl<B: BitmapSlice> WriteSpace for virtio_queue::Writer<'_, B> {
    fn space(&self) -> usize {
        self.available_bytes()
    }
}
