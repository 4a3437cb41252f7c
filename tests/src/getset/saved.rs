//! A stopped VM as its ioctls show it: each element the bytes of its structure, with the memory and the moment.
//!
//! Read in the order in which QEMU reads, written in the orders of two VMMs. Bytes, so that a test can send them to another
//! process, compare them, and lose a field of them on purpose ([`super::fields`]).

use kvm_api::backend::{Vcpu, Vm};
use kvm_api::errno::{Errno, Result};
use kvm_api::uapi::*;
use kvm_ioctl_layer::user_mem::{bytes_of, from_bytes};
use kvm_ioctl_layer::{CountedTime, VcpuFd, VmFd};
use x86_arch::msr;

/// An element of the state, by the ioctl that reads it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
#[allow(missing_docs)]
pub enum Id {
    PicMaster,
    PicSlave,
    Ioapic,
    Pit,
    Clock,
    Cpuid,
    TscKhz,
    TscOffset,
    Events,
    MpState,
    Regs,
    Xsave,
    Xcrs,
    Sregs,
    Msrs,
    Lapic,
    Debugregs,
}

impl Id {
    const ALL: [Id; 17] = [
        Id::PicMaster,
        Id::PicSlave,
        Id::Ioapic,
        Id::Pit,
        Id::Clock,
        Id::Cpuid,
        Id::TscKhz,
        Id::TscOffset,
        Id::Events,
        Id::MpState,
        Id::Regs,
        Id::Xsave,
        Id::Xcrs,
        Id::Sregs,
        Id::Msrs,
        Id::Lapic,
        Id::Debugregs,
    ];
}

/// An element's bytes.
pub type Element = (Id, Vec<u8>);

/// In which order the state is written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Order {
    /// QEMU's: devices as they are loaded, then `kvm_arch_put_registers` for each vCPU, then the clock.
    Qemu,
    /// Firecracker's: the vCPUs, with registers before special registers and events last; then PIT, clock, controllers.
    Firecracker,
}

/// A stopped VM.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Saved {
    /// The VM's elements.
    pub vm: Vec<Element>,
    /// Each vCPU's.
    pub vcpus: Vec<Vec<Element>>,
    /// Guest memory.
    pub ram: Vec<u8>,
    /// The moment.
    pub time: CountedTime,
}

/// What of the VM's configuration decides which elements there are.
#[derive(Clone, Copy, Debug, Default)]
pub struct Shape {
    /// PICs, IOAPIC and PIT are inside.
    pub full_irqchip: bool,
    /// Local APICs are inside.
    pub lapic: bool,
    /// Banks of machine-check registers.
    pub mce_banks: u32,
}

/// Registers that QEMU reads and writes one by one though they are in no list, or writes apart.
fn msr_indices(list: &[u32], shape: &Shape) -> Vec<u32> {
    let banks = (0..4 * shape.mce_banks).map(|n| msr::IA32_MC0_CTL + n);
    let cmci = (0..shape.mce_banks).map(|n| IA32_MC0_CTL2 + n);
    list.iter().copied().chain(banks).chain(cmci).collect()
}

/// SDM vol. 4: what a bank's corrected errors signal.
const IA32_MC0_CTL2: u32 = 0x280;

fn get_msrs(v: &mut dyn Vcpu, list: &[u32]) -> Result<Vec<u8>> {
    let mut out = Vec::new();
    for &index in list {
        let mut one = [kvm_msr_entry { index, ..Default::default() }];
        // A register that this processor does not have.
        if v.get_msrs(&mut one)? == 1 {
            out.extend_from_slice(bytes_of(&one[0]));
        }
    }
    Ok(out)
}

fn set_msrs(v: &mut dyn Vcpu, bytes: &[u8], wanted: impl Fn(u32) -> bool) -> Result {
    for e in bytes.chunks_exact(size_of::<kvm_msr_entry>()) {
        let e: kvm_msr_entry = from_bytes(e);
        if wanted(e.index) && v.set_msrs(&[e])? != 1 {
            eprintln!("MSR {:#x} does not take {:#x}", e.index, e.data);
            return Err(Errno::EINVAL);
        }
    }
    Ok(())
}

fn get_vcpu(v: &mut dyn Vcpu, id: Id, msrs: &[u32]) -> Result<Vec<u8>> {
    Ok(match id {
        Id::Cpuid => v.get_cpuid2()?.iter().flat_map(|e| bytes_of(e).to_vec()).collect(),
        Id::TscKhz => v.get_tsc_khz()?.to_le_bytes().to_vec(),
        Id::TscOffset => v.tsc_offset()?.to_le_bytes().to_vec(),
        Id::Events => bytes_of(&v.get_vcpu_events()?).to_vec(),
        Id::MpState => bytes_of(&v.get_mp_state()?).to_vec(),
        Id::Regs => bytes_of(&v.get_regs()?).to_vec(),
        Id::Xsave => v.get_xsave()?,
        Id::Xcrs => bytes_of(&v.get_xcrs()?).to_vec(),
        Id::Sregs => bytes_of(&v.get_sregs2()?).to_vec(),
        Id::Msrs => get_msrs(v, msrs)?,
        Id::Lapic => bytes_of(&v.get_lapic()?).to_vec(),
        Id::Debugregs => bytes_of(&v.get_debugregs()?).to_vec(),
        Id::PicMaster | Id::PicSlave | Id::Ioapic | Id::Pit | Id::Clock => Vec::new(),
    })
}

/// Writes one element of a vCPU. The TSC deadline is written apart: it needs the local APIC's registers.
fn set_vcpu(v: &mut dyn Vcpu, id: Id, b: &[u8]) -> Result {
    match id {
        Id::Cpuid => {
            let rows: Vec<kvm_cpuid_entry2> =
                b.chunks_exact(size_of::<kvm_cpuid_entry2>()).map(from_bytes).collect();
            v.set_cpuid2(&rows)
        }
        Id::TscKhz => v.set_tsc_khz(u32::from_le_bytes(b.try_into().unwrap_or_default())),
        Id::TscOffset => v.set_tsc_offset(u64::from_le_bytes(b.try_into().unwrap_or_default())),
        Id::Events => v.set_vcpu_events(&from_bytes(b)),
        Id::MpState => v.set_mp_state(&from_bytes(b)),
        Id::Regs => v.set_regs(&from_bytes(b)),
        Id::Xsave => v.set_xsave(b),
        Id::Xcrs => v.set_xcrs(&from_bytes(b)),
        Id::Sregs => v.set_sregs2(&from_bytes(b)),
        Id::Msrs => set_msrs(v, b, |index| index != msr::IA32_TSC_DEADLINE),
        Id::Lapic => v.set_lapic(&from_bytes(b)),
        Id::Debugregs => v.set_debugregs(&from_bytes(b)),
        Id::PicMaster | Id::PicSlave | Id::Ioapic | Id::Pit | Id::Clock => Ok(()),
    }
}

fn chip(id: Id) -> u32 {
    match id {
        Id::PicMaster => KVM_IRQCHIP_PIC_MASTER,
        Id::PicSlave => KVM_IRQCHIP_PIC_SLAVE,
        _ => KVM_IRQCHIP_IOAPIC,
    }
}

fn get_vm(vm: &dyn Vm, id: Id) -> Result<Vec<u8>> {
    Ok(match id {
        Id::Pit => bytes_of(&vm.get_pit2()?).to_vec(),
        Id::Clock => bytes_of(&vm.get_clock()?).to_vec(),
        _ => {
            let mut c = kvm_irqchip { chip_id: chip(id), ..Default::default() };
            vm.get_irqchip(&mut c)?;
            bytes_of(&c).to_vec()
        }
    })
}

fn set_vm(vm: &dyn Vm, id: Id, b: &[u8]) -> Result {
    match id {
        Id::Pit => vm.set_pit2(&from_bytes(b)),
        Id::Clock => {
            let c: kvm_clock_data = from_bytes(b);
            // As QEMU: the guest's clock stands while it is saved.
            vm.set_clock(&kvm_clock_data { clock: c.clock, ..Default::default() })
        }
        _ => vm.set_irqchip(&from_bytes(b)),
    }
}

impl Saved {
    /// Reads everything. No vCPU is inside KVM_RUN, and each has completed its last exit.
    pub fn save(vm: &VmFd, vcpus: &[VcpuFd], shape: &Shape, msr_list: &[u32], ram: Vec<u8>) -> Saved {
        let time = vm.counted_time().expect("counted time");
        let msrs = msr_indices(msr_list, shape);
        let mut devices = vec![Id::Clock];
        // An INIT or SIPI that has come is acted on by the first two, and what they show holds from then on.
        let mut wanted = vec![Id::Events, Id::MpState, Id::Cpuid, Id::TscKhz, Id::TscOffset];
        wanted.extend([Id::Regs, Id::Xsave, Id::Xcrs, Id::Sregs, Id::Msrs]);
        if shape.lapic {
            wanted.push(Id::Lapic);
        }
        wanted.push(Id::Debugregs);
        if shape.full_irqchip {
            devices.extend([Id::PicMaster, Id::PicSlave, Id::Ioapic, Id::Pit]);
        }
        let one = |v: &VcpuFd| -> Vec<Element> {
            v.with_backend(|v| {
                wanted.iter().map(|&id| (id, get_vcpu(v, id, &msrs).expect("KVM_GET"))).collect()
            })
        };
        let backend = &**vm.backend();
        let clock = get_vm(backend, Id::Clock).expect("KVM_GET_CLOCK");
        let vcpus = vcpus.iter().map(one).collect();
        let vm = devices
            .into_iter()
            .map(|id| {
                let bytes = if id == Id::Clock {
                    clock.clone()
                } else {
                    get_vm(backend, id).expect("KVM_GET of a device")
                };
                (id, bytes)
            })
            .collect();
        Saved { vm, vcpus, ram, time }
    }

    /// Writes everything but the memory. `lines` drives the interrupt lines that devices outside hold. `Err`: what was
    /// refused.
    pub fn restore(
        &self,
        vm: &VmFd,
        vcpus: &[VcpuFd],
        order: Order,
        lines: impl Fn(),
    ) -> core::result::Result<(), String> {
        let backend = &**vm.backend();
        let refused = std::cell::RefCell::new(None);
        let refuse = |id: Id, r: Result| {
            if let Err(e) = r {
                refused.borrow_mut().get_or_insert(format!("KVM_SET of {id:?}: {e:?}"));
            }
        };
        let device = |id: Id| {
            if let Some((_, b)) = self.vm.iter().find(|e| e.0 == id) {
                refuse(id, set_vm(backend, id, b));
            }
        };
        let put = |v: &mut dyn Vcpu, list: &[Element], ids: &[Id]| {
            for &id in ids {
                if let Some((_, b)) = list.iter().find(|e| e.0 == id) {
                    refuse(id, set_vcpu(v, id, b));
                }
            }
        };
        let deadline = |v: &mut dyn Vcpu, list: &[Element]| {
            if let Some((_, b)) = list.iter().find(|e| e.0 == Id::Msrs) {
                refuse(Id::Msrs, set_msrs(v, b, |index| index == msr::IA32_TSC_DEADLINE));
            }
        };
        match order {
            Order::Qemu => {
                for (v, list) in vcpus.iter().zip(&self.vcpus) {
                    v.with_backend(|v| {
                        put(v, list, &[Id::Cpuid]);
                        let base = list.iter().find(|e| e.0 == Id::Sregs);
                        if let Some((_, b)) = base {
                            let mut s = v.get_sregs2().expect("KVM_GET_SREGS2");
                            s.apic_base = from_bytes::<kvm_sregs2>(b).apic_base;
                            s.flags = 0;
                            refuse(Id::Sregs, v.set_sregs2(&s));
                        }
                        put(v, list, &[Id::Lapic]);
                    });
                }
                [Id::PicMaster, Id::PicSlave, Id::Ioapic, Id::Pit].into_iter().for_each(device);
                lines();
                for (v, list) in vcpus.iter().zip(&self.vcpus) {
                    v.with_backend(|v| {
                        put(v, list, &[Id::Sregs, Id::TscKhz, Id::Regs, Id::Xsave, Id::Xcrs, Id::Msrs]);
                        put(v, list, &[Id::Events, Id::MpState]);
                        deadline(v, list);
                        put(v, list, &[Id::Debugregs]);
                    });
                }
                device(Id::Clock);
            }
            Order::Firecracker => {
                for (v, list) in vcpus.iter().zip(&self.vcpus) {
                    v.with_backend(|v| {
                        put(v, list, &[Id::Cpuid, Id::TscKhz, Id::MpState, Id::Regs, Id::Sregs, Id::Xsave]);
                        put(v, list, &[Id::Xcrs, Id::Debugregs, Id::Lapic, Id::Msrs, Id::TscOffset]);
                        deadline(v, list);
                        put(v, list, &[Id::Events]);
                    });
                }
                [Id::Pit, Id::Clock, Id::PicMaster, Id::PicSlave, Id::Ioapic].into_iter().for_each(device);
                lines();
            }
        }
        refused.into_inner().map_or(Ok(()), Err)
    }

    /// Where two stopped VMs differ: the element and the first bytes, or the page of memory. Empty: nowhere.
    pub fn diff(&self, other: &Saved) -> Vec<String> {
        let mut out = Vec::new();
        let mut lists = |who: String, a: &[Element], b: &[Element]| {
            for (x, y) in a.iter().zip(b) {
                if x == y {
                    continue;
                }
                if x.0 == Id::Msrs {
                    msr_differences(&who, &x.1, &y.1, &mut out);
                    continue;
                }
                let at = x.1.iter().zip(&y.1).position(|(p, q)| p != q).unwrap_or(0);
                let part =
                    |v: &[u8]| v.iter().skip(at & !7).take(8).map(|b| format!("{b:02x}")).collect::<String>();
                out.push(format!("{who}{:?} at {:#x}: {} and {}", x.0, at & !7, part(&x.1), part(&y.1)));
            }
            if a.len() != b.len() {
                out.push(format!("{who}other elements"));
            }
        };
        lists(String::new(), &self.vm, &other.vm);
        for (n, (a, b)) in self.vcpus.iter().zip(&other.vcpus).enumerate() {
            lists(format!("vcpu{n} "), a, b);
        }
        for (n, (a, b)) in self.ram.chunks(4096).zip(other.ram.chunks(4096)).enumerate() {
            if let Some(at) = a.iter().zip(b).position(|(p, q)| p != q) {
                let part =
                    |v: &[u8]| v.iter().skip(at).take(8).map(|b| format!("{b:02x}")).collect::<String>();
                out.push(format!("memory at {:#x}: {} and {}", n * 4096 + at, part(a), part(b)));
            }
        }
        if self.time != other.time {
            out.push(format!("{:?} and {:?}", self.time, other.time));
        }
        out
    }

    /// As one row of bytes, for another process.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = Vec::new();
        let mut row = |b: &[u8]| {
            out.extend_from_slice(&(b.len() as u64).to_le_bytes());
            out.extend_from_slice(b);
        };
        row(&self.time.ns.to_le_bytes());
        row(&self.time.random.to_le_bytes());
        row(&self.ram);
        row(&[self.vcpus.len() as u8]);
        for list in core::iter::once(&self.vm).chain(&self.vcpus) {
            row(&[list.len() as u8]);
            for (id, b) in list {
                row(&[*id as u8]);
                row(b);
            }
        }
        out
    }

    /// The inverse of [`Saved::to_bytes`].
    pub fn from_bytes(mut from: &[u8]) -> Option<Saved> {
        fn row<'a>(from: &mut &'a [u8]) -> Option<&'a [u8]> {
            let (len, rest) = from.split_first_chunk::<8>()?;
            let (row, rest) = rest.split_at_checked(u64::from_le_bytes(*len) as usize)?;
            *from = rest;
            Some(row)
        }
        let word = |b: &[u8]| Some(u64::from_le_bytes(b.try_into().ok()?));
        let from = &mut from;
        let time = CountedTime { ns: word(row(from)?)?, random: word(row(from)?)? };
        let ram = row(from)?.to_vec();
        let vcpus = *row(from)?.first()?;
        let mut lists = Vec::new();
        for _ in 0..=vcpus {
            let len = *row(from)?.first()?;
            let mut list = Vec::new();
            for _ in 0..len {
                let id = *row(from)?.first()?;
                let id = *Id::ALL.iter().find(|i| **i as u8 == id)?;
                list.push((id, row(from)?.to_vec()));
            }
            lists.push(list);
        }
        Some(Saved { vm: lists.remove(0), vcpus: lists, ram, time })
    }
}

fn msr_differences(who: &str, a: &[u8], b: &[u8], out: &mut Vec<String>) {
    let entries = |b: &[u8]| -> Vec<kvm_msr_entry> {
        b.chunks_exact(size_of::<kvm_msr_entry>()).map(from_bytes).collect()
    };
    for (x, y) in entries(a).iter().zip(&entries(b)) {
        if x != y {
            out.push(format!("{who}MSR {:#x}: {:#x} and {:#x}", x.index, x.data, y.data));
        }
    }
}
