//! What an instruction costs that runs on the host processor (`native`), by class: nanoseconds per instruction in a loop of 64.
//!
//! `cargo run --release -p emu-core --example native_cost`
#![allow(missing_docs)]

use emu_core::{Host, Processor, Vcpu, Vm, host_cpu};
use memmap2::{MmapMut, MmapRaw};
use softmmu::{MemRegion, MemRegionFlags};
use std::sync::Arc;
use std::time::Instant;
use x86_arch::control::{Cr0, Cr4, Xcr0};
use x86_arch::cpuid::{CpuidEntry, CpuidResult};
use x86_arch::{Gpa, Hva, Seg, Segment, Selector};

struct Still;

impl Host for Still {
    fn tsc(&self, retired: u64) -> u64 {
        retired
    }
    fn tsc_khz(&self) -> u32 {
        1_000_000
    }
    fn monotonic_ns(&self, retired: u64) -> u64 {
        retired
    }
    fn realtime_ns(&self, retired: u64) -> u64 {
        retired
    }
    fn random(&self) -> u64 {
        4
    }
    fn skip_to(&self, _: u64) -> bool {
        false
    }
}

const RAM: usize = 1 << 20;
const CODE: u64 = 0x1_0000;
const DATA: u32 = 0x2_0000;

fn processor(ram: &MmapRaw) -> Processor {
    let vm = Vm::new(Arc::new(Still));
    let region = MemRegion {
        slot: 0,
        as_id: 0,
        gpa: Gpa(0),
        size: RAM as u64,
        hva: Hva(ram.as_ptr() as u64),
        flags: MemRegionFlags::empty(),
    };
    vm.world().exclusive(None, |ex| vm.mmu.set_memory_region(ex, region)).expect("the first slot");
    let mut v = Vcpu::new(&vm, 0, true);
    let all = CpuidResult { eax: !0, ebx: !0, ecx: !0, edx: !0 };
    let row = |leaf, subleaf, indexed, result| CpuidEntry { leaf, subleaf, indexed, result };
    let seven = CpuidResult { eax: 1, ..all };
    v.cpuid = emu_core::cpuid::CpuidTable::new(vec![
        row(1, 0, false, all),
        row(7, 0, true, seven),
        row(7, 1, true, all),
        row(0x8000_0001, 0, false, CpuidResult { eax: 0, ebx: 0, ..all }),
    ]);
    v.xcr0 = Xcr0::from_bits_retain(host_cpu::xcr0() & 0xe7);
    v.cr0 = Cr0::PE | Cr0::ET | Cr0::NE;
    v.cr4 = Cr4::OSFXSR | Cr4::OSXMMEXCPT | Cr4::OSXSAVE;
    let flat = Segment {
        selector: Selector(0x10),
        base: 0,
        limit: u32::MAX,
        typ: 3,
        s: true,
        present: true,
        db: true,
        g: true,
        ..Segment::default()
    };
    for s in Seg::PROGRAM {
        v.seg[s as usize] = Segment { typ: if s == Seg::Cs { 0xb } else { 3 }, ..flat };
    }
    v.paging_changed();
    v.update_mode();
    Processor::new(v)
}

fn main() {
    let rows: &[(&str, &[u8])] = &[
        ("add eax, ecx (for comparison)", &[0x01, 0xc8]),
        ("mov eax, [ebx] (for comparison)", &[0x8b, 0x03]),
        ("movaps xmm0, xmm1", &[0x0f, 0x28, 0xc1]),
        ("movups xmm0, [ebx]", &[0x0f, 0x10, 0x03]),
        ("movups [ebx], xmm0", &[0x0f, 0x11, 0x03]),
        ("movdqa xmm0, [ebx]", &[0x66, 0x0f, 0x6f, 0x03]),
        ("movd eax, xmm0", &[0x66, 0x0f, 0x7e, 0xc0]),
        ("pcmpeqb xmm0, xmm1", &[0x66, 0x0f, 0x74, 0xc1]),
        ("pmovmskb eax, xmm0", &[0x66, 0x0f, 0xd7, 0xc0]),
        ("addps xmm0, xmm1", &[0x0f, 0x58, 0xc1]),
        ("addsd xmm0, [ebx]", &[0xf2, 0x0f, 0x58, 0x03]),
        ("comisd xmm0, xmm1", &[0x66, 0x0f, 0x2f, 0xc1]),
        ("vpaddb ymm0, ymm1, ymm2", &[0xc5, 0xf5, 0xfc, 0xc2]),
        ("vmovdqu ymm0, [ebx]", &[0xc5, 0xfe, 0x6f, 0x03]),
        ("vmovdqu [ebx], ymm0", &[0xc5, 0xfe, 0x7f, 0x03]),
        ("vaddps ymm0, ymm1, ymm2", &[0xc5, 0xf4, 0x58, 0xc2]),
        ("vzeroupper", &[0xc5, 0xf8, 0x77]),
        ("vpaddd zmm0, zmm1, zmm2", &[0x62, 0xf1, 0x75, 0x48, 0xfe, 0xc2]),
        ("paddb mm0, mm1", &[0x0f, 0xfc, 0xc1]),
        ("fadd st0, st1", &[0xd8, 0xc1]),
        ("fld qword [ebx]; fstp qword [ebx] (two)", &[0xdd, 0x03, 0xdd, 0x1b]),
        ("fxsave [ebx]", &[0x0f, 0xae, 0x03]),
        ("fxrstor [ebx]", &[0x0f, 0xae, 0x0b]),
    ];
    let mut ram = MmapMut::map_anon(RAM).expect("1 MiB");
    ram[DATA as usize + 24..DATA as usize + 28].copy_from_slice(&0x1f80u32.to_le_bytes());
    let ram = MmapRaw::from(ram);
    for (name, bytes) in rows {
        let mut p = processor(&ram);
        let mut code = Vec::new();
        while code.len() + bytes.len() <= 64 * bytes.len() {
            code.extend_from_slice(bytes);
        }
        let back = -(code.len() as i32 + 5);
        code.push(0xe9);
        code.extend_from_slice(&back.to_le_bytes());
        p.vcpu.mmu.guest_memory().write(Gpa(CODE), &code).expect("inside RAM");
        p.vcpu.set_rip(CODE);
        p.vcpu.hot.regs[3] = DATA as u64;
        p.run(Some(10_000));
        let n = 2_000_000u64;
        let from = Instant::now();
        let exit = p.run(Some(n));
        let ns = from.elapsed().as_nanos() as f64 / n as f64;
        println!("{ns:7.1} ns  {name}   {exit:?}");
    }
}
