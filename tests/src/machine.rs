//! A small machine for tests below the ioctl layer: file-backed memory that "the VMM" can change behind
//! the processor's back, and one vCPU in real or flat 64-bit mode.

use emu_core::{Host, Processor, Vcpu, Vm};
use memmap2::{MmapOptions, MmapRaw};
use softmmu::{MemRegion, MemRegionFlags};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use x86_arch::control::{Cr0, Cr4, Efer};
use x86_arch::{Gpa, Hva, Seg, Segment, Selector};

/// Time that advances by one nanosecond a look: enough for guests that do not measure it.
#[derive(Default)]
pub struct StepHost(AtomicU64);

impl Host for StepHost {
    fn tsc(&self, _: u64) -> u64 {
        self.0.fetch_add(1, Ordering::Relaxed)
    }
    fn tsc_khz(&self) -> u32 {
        1_000_000
    }
    fn monotonic_ns(&self, retired: u64) -> u64 {
        self.tsc(retired)
    }
    fn realtime_ns(&self, retired: u64) -> u64 {
        self.tsc(retired)
    }
    fn random(&self) -> u64 {
        4
    }
}

/// A VM with one slot at guest-physical zero.
pub struct Machine {
    /// The processor.
    pub processor: Processor,
    /// The VM.
    pub vm: Arc<Vm>,
    file: File,
    _ram: MmapRaw,
}

impl Machine {
    /// A machine with `size` bytes of memory, its vCPU at reset.
    pub fn new(size: u64) -> Machine {
        let file = tempfile::tempfile().expect("a temporary file");
        file.set_len(size).expect("space for guest memory");
        let ram = MmapOptions::new().map_raw(&file).expect("a shared mapping");
        let vm = Vm::new(Arc::new(StepHost::default()));
        let region = MemRegion {
            slot: 0,
            as_id: 0,
            gpa: Gpa(0),
            size,
            hva: Hva(ram.as_ptr() as u64),
            flags: MemRegionFlags::empty(),
        };
        vm.world().exclusive(None, |ex| vm.mmu.set_memory_region(ex, region)).expect("the first slot");
        let processor = Processor::new(Vcpu::new(&vm, 0, true));
        Machine { processor, vm, file, _ram: ram }
    }

    /// Another handle on the memory.
    pub fn memory(&self) -> File {
        self.file.try_clone().expect("a file handle")
    }

    /// Where guest-physical zero lies in this process.
    pub fn hva(&self) -> u64 {
        self._ram.as_ptr() as u64
    }

    /// Writes memory through another mapping: the processor is not told.
    pub fn poke(&self, gpa: u64, bytes: &[u8]) {
        self.file.write_all_at(bytes, gpa).expect("inside memory");
    }

    /// Reads memory.
    pub fn peek(&self, gpa: u64, len: usize) -> Vec<u8> {
        let mut b = vec![0; len];
        self.file.read_exact_at(&mut b, gpa).expect("inside memory");
        b
    }

    /// Real mode at `0:ip`.
    pub fn real_mode(&mut self, ip: u16) {
        let v = &mut self.processor.vcpu;
        for s in Seg::PROGRAM {
            let seg = Segment::real_mode(0, v.segment(s));
            v.set_segment(s, seg);
        }
        v.set_rip(ip as u64);
    }

    /// 64-bit mode at `rip`, CPL 0, identity-mapped by 2 MiB pages; uses memory from 0x1000 to 0x4000 for tables.
    pub fn long_mode(&mut self, rip: u64) {
        self.poke(0x1000, &(0x2000u64 | 7).to_le_bytes());
        self.poke(0x2000, &(0x3000u64 | 7).to_le_bytes());
        for n in 0..512u64 {
            self.poke(0x3000 + 8 * n, &(n << 21 | 0x87).to_le_bytes());
        }
        let v = &mut self.processor.vcpu;
        v.cr0 = Cr0::PE | Cr0::PG | Cr0::ET | Cr0::NE | Cr0::WP;
        v.cr3 = 0x1000;
        v.cr4 = Cr4::PAE | Cr4::PGE | Cr4::OSFXSR | Cr4::OSXMMEXCPT;
        v.efer = Efer::LME | Efer::LMA | Efer::SCE;
        let data = Segment {
            selector: Selector(16),
            limit: u32::MAX,
            typ: 3,
            s: true,
            present: true,
            db: true,
            g: true,
            ..Segment::default()
        };
        for s in Seg::PROGRAM {
            v.set_segment(s, data);
        }
        v.paging_changed();
        v.set_segment(Seg::Cs, Segment { selector: Selector(8), typ: 11, db: false, l: true, ..data });
        v.set_rip(rip);
    }
}
