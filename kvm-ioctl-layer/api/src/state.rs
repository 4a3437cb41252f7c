//! The list of portable state: what makes up a stopped VM, as KVM_GET returns it and KVM_SET takes it.
//!
//! One row an element. Snapshots, moves between backends, and every comparison of two processors use only this
//! list, so that "new state must include support for save/restore" cannot be forgotten: a test in the front end
//! holds it against the software processor's own fields. Guest memory travels apart.

use crate::backend::{Vcpu, Vm};
use crate::errno::{Errno, Result};
use crate::nr;
use crate::uapi::*;

/// Whose state it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Scope {
    /// Of the VM.
    Vm,
    /// Of one vCPU.
    Vcpu,
}

/// An element's identity.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash)]
#[allow(missing_docs)]
pub enum StateId {
    PicMaster,
    PicSlave,
    Ioapic,
    Pit,
    Clock,
    Cpuid,
    TscKhz,
    Sregs,
    Regs,
    Xcrs,
    Xsave,
    Debugregs,
    Msrs,
    Lapic,
    MpState,
    Events,
}

/// A row of the list.
#[derive(Debug)]
pub struct Element {
    /// Which.
    pub id: StateId,
    /// Whose.
    pub scope: Scope,
    /// The uapi structure.
    pub structure: &'static str,
    /// The ioctl that reads it.
    pub get: u32,
    /// The ioctl that writes it.
    pub set: u32,
    /// The capability that says it exists (0: basic).
    pub capability: u32,
    /// What two backends cannot be compared on, and why; empty when everything counts.
    pub incomparable: &'static str,
}

macro_rules! elements {
    ($($id:ident $scope:ident $structure:ident $get:ident $set:ident $cap:expr, $mask:literal;)*) => {
        /// The list, in the order of restoring: what an element needs stands before it.
        pub const ELEMENTS: &[Element] = &[$(Element {
            id: StateId::$id,
            scope: Scope::$scope,
            structure: stringify!($structure),
            get: nr::$get,
            set: nr::$set,
            capability: $cap,
            incomparable: $mask,
        }),*];
    };
}

elements! {
    PicMaster Vm kvm_irqchip KVM_GET_IRQCHIP KVM_SET_IRQCHIP KVM_CAP_IRQCHIP, "";
    PicSlave Vm kvm_irqchip KVM_GET_IRQCHIP KVM_SET_IRQCHIP KVM_CAP_IRQCHIP, "";
    Ioapic Vm kvm_irqchip KVM_GET_IRQCHIP KVM_SET_IRQCHIP KVM_CAP_IRQCHIP, "";
    Pit Vm kvm_pit_state2 KVM_GET_PIT2 KVM_SET_PIT2 KVM_CAP_PIT_STATE2, "count_load_time: host time";
    Clock Vm kvm_clock_data KVM_GET_CLOCK KVM_SET_CLOCK KVM_CAP_ADJUST_CLOCK, "host_tsc and realtime: host time";
    Cpuid Vcpu kvm_cpuid2 KVM_GET_CPUID2 KVM_SET_CPUID2 KVM_CAP_EXT_CPUID, "";
    TscKhz Vcpu u32 KVM_GET_TSC_KHZ KVM_SET_TSC_KHZ KVM_CAP_GET_TSC_KHZ, "";
    Sregs Vcpu kvm_sregs2 KVM_GET_SREGS2 KVM_SET_SREGS2 KVM_CAP_SREGS2, "accessed bits of hidden descriptor types";
    Regs Vcpu kvm_regs KVM_GET_REGS KVM_SET_REGS 0, "";
    Xcrs Vcpu kvm_xcrs KVM_GET_XCRS KVM_SET_XCRS KVM_CAP_XCRS, "";
    Xsave Vcpu kvm_xsave KVM_GET_XSAVE2 KVM_SET_XSAVE KVM_CAP_XSAVE2, "components in their initial state";
    Debugregs Vcpu kvm_debugregs KVM_GET_DEBUGREGS KVM_SET_DEBUGREGS KVM_CAP_DEBUGREGS, "";
    Msrs Vcpu kvm_msrs KVM_GET_MSRS KVM_SET_MSRS 0, "time-stamp counters";
    Lapic Vcpu kvm_lapic_state KVM_GET_LAPIC KVM_SET_LAPIC KVM_CAP_IRQCHIP, "current count: host time";
    MpState Vcpu kvm_mp_state KVM_GET_MP_STATE KVM_SET_MP_STATE KVM_CAP_MP_STATE, "";
    Events Vcpu kvm_vcpu_events KVM_GET_VCPU_EVENTS KVM_SET_VCPU_EVENTS KVM_CAP_VCPU_EVENTS, "";
}

/// The row of an element.
pub fn element(id: StateId) -> &'static Element {
    // Every id has a row: a test counts them.
    ELEMENTS.iter().find(|e| e.id == id).unwrap_or(&ELEMENTS[0])
}

/// An element's value.
#[derive(Clone, Debug)]
#[allow(missing_docs, clippy::large_enum_variant)]
pub enum Value {
    Irqchip(kvm_irqchip),
    Pit(kvm_pit_state2),
    Clock(kvm_clock_data),
    Cpuid(Vec<kvm_cpuid_entry2>),
    TscKhz(u32),
    Sregs(kvm_sregs2),
    Regs(kvm_regs),
    Xcrs(kvm_xcrs),
    Xsave(Vec<u8>),
    Debugregs(kvm_debugregs),
    Msrs(Vec<kvm_msr_entry>),
    Lapic(kvm_lapic_state),
    MpState(kvm_mp_state),
    Events(kvm_vcpu_events),
}

/// MSRs that count time, and so differ between any two reads.
const TIME_MSRS: &[u32] = &[0x10, 0x6e0];

impl Value {
    /// What of the value can be compared between two backends, as text: one line a field group.
    fn comparable(&self) -> Vec<String> {
        match self {
            Value::Irqchip(v) => vec![format!("{}", v.chip_id)],
            Value::Pit(v) => {
                let mut v = *v;
                v.channels.iter_mut().for_each(|c| c.count_load_time = 0);
                v.channels.iter().map(|c| format!("{c:?}")).collect()
            }
            Value::Clock(v) => {
                vec![format!("flags {:#x}", v.flags & !(KVM_CLOCK_REALTIME | KVM_CLOCK_HOST_TSC))]
            }
            Value::Cpuid(v) => v.iter().map(|e| format!("{e:x?}")).collect(),
            Value::TscKhz(v) => vec![format!("{v}")],
            Value::Sregs(v) => {
                let seg = |n: &str, s: &kvm_segment| format!("{n} {s:x?}");
                vec![
                    seg("cs", &v.cs),
                    seg("ds", &v.ds),
                    seg("es", &v.es),
                    seg("fs", &v.fs),
                    seg("gs", &v.gs),
                    seg("ss", &v.ss),
                    seg("tr", &v.tr),
                    seg("ldt", &v.ldt),
                    format!("gdt {:x} {:x}", v.gdt.base, v.gdt.limit),
                    format!("idt {:x} {:x}", v.idt.base, v.idt.limit),
                    format!(
                        "cr0 {:x} cr2 {:x} cr3 {:x} cr4 {:x} cr8 {:x}",
                        v.cr0, v.cr2, v.cr3, v.cr4, v.cr8
                    ),
                    format!("efer {:x} apic_base {:x}", v.efer, v.apic_base),
                    format!(
                        "pdptrs {:x?}",
                        (v.flags & KVM_SREGS2_FLAGS_PDPTRS_VALID as u64 != 0).then_some(v.pdptrs)
                    ),
                ]
            }
            Value::Regs(v) => format!("{v:x?}").split(", ").map(str::to_owned).collect(),
            Value::Xcrs(v) => {
                v.xcrs.iter().take(v.nr_xcrs as usize).map(|x| format!("{} {:x}", x.xcr, x.value)).collect()
            }
            Value::Xsave(v) => {
                v.chunks(64).enumerate().map(|(n, c)| format!("{:#x} {c:02x?}", n * 64)).collect()
            }
            Value::Debugregs(v) => vec![format!("{:x?} {:x} {:x}", v.db, v.dr6, v.dr7)],
            Value::Msrs(v) => v
                .iter()
                .filter(|m| !TIME_MSRS.contains(&m.index))
                .map(|m| format!("{:#x} {:#x}", m.index, m.data))
                .collect(),
            Value::Lapic(v) => v
                .regs
                .chunks(16)
                .enumerate()
                // 390H: the current count.
                .filter(|(n, _)| *n != 0x39)
                .map(|(n, c)| format!("{:#x} {:02x?}", n * 16, &c[..4]))
                .collect(),
            Value::MpState(v) => vec![format!("{}", v.mp_state)],
            Value::Events(v) => vec![
                format!("{:?}", v.exception),
                format!("{:?}", v.interrupt),
                format!("{:?}", v.nmi),
                format!("{:?}", v.smi),
                format!("{:?}", v.triple_fault),
                format!("payload {} {:x}", v.exception_has_payload, v.exception_payload),
                format!("sipi {:x}", v.sipi_vector),
            ],
        }
    }
}

/// A stopped VM without its memory.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// The VM's elements.
    pub vm: Vec<(StateId, Value)>,
    /// Each vCPU's elements.
    pub vcpus: Vec<Vec<(StateId, Value)>>,
}

/// One thing that two snapshots do not agree on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// The element.
    pub id: StateId,
    /// The vCPU, by position; `None` for the VM.
    pub vcpu: Option<usize>,
    /// The left side's line.
    pub left: String,
    /// The right side's line.
    pub right: String,
}

fn absent(e: Errno) -> bool {
    // No in-kernel irqchip or PIT: the element does not exist in this VM.
    e == Errno::ENXIO || e == Errno::EINVAL
}

impl Snapshot {
    /// Reads everything; elements that this VM does not have are left out. The vCPUs must be outside KVM_RUN.
    pub fn save(vm: &dyn Vm, vcpus: &mut [&mut dyn Vcpu], msrs: &[u32]) -> Result<Snapshot> {
        let mut s = Snapshot::default();
        for e in ELEMENTS.iter().filter(|e| e.scope == Scope::Vm) {
            match get_vm(vm, e.id) {
                Ok(v) => s.vm.push((e.id, v)),
                Err(n) if absent(n) => {}
                Err(n) => return Err(n),
            }
        }
        for vcpu in vcpus {
            let mut list = Vec::new();
            for e in ELEMENTS.iter().filter(|e| e.scope == Scope::Vcpu) {
                match get_vcpu(*vcpu, e.id, msrs) {
                    Ok(v) => list.push((e.id, v)),
                    Err(n) if absent(n) => {}
                    Err(n) => return Err(n),
                }
            }
            s.vcpus.push(list);
        }
        Ok(s)
    }

    /// Writes everything, in the list's order.
    pub fn restore(&self, vm: &dyn Vm, vcpus: &mut [&mut dyn Vcpu]) -> Result<()> {
        for (_, v) in &self.vm {
            set_vm(vm, v)?;
        }
        for (list, vcpu) in self.vcpus.iter().zip(vcpus) {
            for (_, v) in list {
                set_vcpu(*vcpu, v)?;
            }
        }
        Ok(())
    }

    /// Where two snapshots differ, line by line, leaving out what cannot be compared.
    pub fn diff(&self, other: &Snapshot) -> Vec<Difference> {
        let mut out = Vec::new();
        diff_lists(&self.vm, &other.vm, None, &mut out);
        for n in 0..self.vcpus.len().max(other.vcpus.len()) {
            let empty = Vec::new();
            let (a, b) = (self.vcpus.get(n).unwrap_or(&empty), other.vcpus.get(n).unwrap_or(&empty));
            diff_lists(a, b, Some(n), &mut out);
        }
        out
    }
}

fn diff_lists(
    a: &[(StateId, Value)],
    b: &[(StateId, Value)],
    vcpu: Option<usize>,
    out: &mut Vec<Difference>,
) {
    for e in ELEMENTS {
        let find = |l: &[(StateId, Value)]| l.iter().find(|(id, _)| *id == e.id).map(|(_, v)| v.comparable());
        let (left, right) = (find(a).unwrap_or_default(), find(b).unwrap_or_default());
        for n in 0..left.len().max(right.len()) {
            let line = |l: &[String]| l.get(n).cloned().unwrap_or_default();
            if left.get(n) != right.get(n) {
                out.push(Difference { id: e.id, vcpu, left: line(&left), right: line(&right) });
            }
        }
    }
}

fn get_vm(vm: &dyn Vm, id: StateId) -> Result<Value> {
    let chip = |chip_id| {
        let mut c = kvm_irqchip { chip_id, ..Default::default() };
        vm.get_irqchip(&mut c)?;
        Ok(Value::Irqchip(c))
    };
    match id {
        StateId::PicMaster => chip(KVM_IRQCHIP_PIC_MASTER),
        StateId::PicSlave => chip(KVM_IRQCHIP_PIC_SLAVE),
        StateId::Ioapic => chip(KVM_IRQCHIP_IOAPIC),
        StateId::Pit => vm.get_pit2().map(Value::Pit),
        StateId::Clock => vm.get_clock().map(Value::Clock),
        _ => Err(Errno::EINVAL),
    }
}

fn set_vm(vm: &dyn Vm, v: &Value) -> Result<()> {
    match v {
        Value::Irqchip(v) => vm.set_irqchip(v),
        Value::Pit(v) => vm.set_pit2(v),
        Value::Clock(v) => {
            let mut v = *v;
            v.flags = 0;
            vm.set_clock(&v)
        }
        _ => Err(Errno::EINVAL),
    }
}

fn get_vcpu(v: &mut dyn Vcpu, id: StateId, msrs: &[u32]) -> Result<Value> {
    Ok(match id {
        StateId::Cpuid => Value::Cpuid(v.get_cpuid2()?),
        StateId::TscKhz => Value::TscKhz(v.get_tsc_khz()?),
        StateId::Sregs => Value::Sregs(v.get_sregs2()?),
        StateId::Regs => Value::Regs(v.get_regs()?),
        StateId::Xcrs => Value::Xcrs(v.get_xcrs()?),
        StateId::Xsave => Value::Xsave(v.get_xsave()?),
        StateId::Debugregs => Value::Debugregs(v.get_debugregs()?),
        StateId::Msrs => {
            let mut list = Vec::new();
            for &index in msrs {
                // One at a time: an MSR that this CPUID does not have ends a longer list.
                let mut one = [kvm_msr_entry { index, ..Default::default() }];
                if v.get_msrs(&mut one)? == 1 {
                    list.extend(one);
                }
            }
            Value::Msrs(list)
        }
        StateId::Lapic => Value::Lapic(v.get_lapic()?),
        StateId::MpState => Value::MpState(v.get_mp_state()?),
        StateId::Events => Value::Events(v.get_vcpu_events()?),
        StateId::PicMaster | StateId::PicSlave | StateId::Ioapic | StateId::Pit | StateId::Clock => {
            return Err(Errno::EINVAL);
        }
    })
}

fn set_vcpu(vcpu: &mut dyn Vcpu, v: &Value) -> Result<()> {
    match v {
        Value::Cpuid(v) => vcpu.set_cpuid2(v),
        Value::TscKhz(v) => vcpu.set_tsc_khz(*v),
        Value::Sregs(v) => vcpu.set_sregs2(v),
        Value::Regs(v) => vcpu.set_regs(v),
        Value::Xcrs(v) => vcpu.set_xcrs(v),
        Value::Xsave(v) => vcpu.set_xsave(v),
        Value::Debugregs(v) => vcpu.set_debugregs(v),
        Value::Msrs(v) => {
            for m in v {
                // An MSR that reads but takes no writes (a platform fact) is not state.
                vcpu.set_msrs(core::slice::from_ref(m))?;
            }
            Ok(())
        }
        Value::Lapic(v) => vcpu.set_lapic(v),
        Value::MpState(v) => vcpu.set_mp_state(v),
        Value::Events(v) => vcpu.set_vcpu_events(v),
        Value::Irqchip(_) | Value::Pit(_) | Value::Clock(_) => Err(Errno::EINVAL),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_id_has_one_row() {
        for id in ELEMENTS.iter().map(|e| e.id) {
            assert_eq!(ELEMENTS.iter().filter(|e| e.id == id).count(), 1, "{id:?}");
            assert_eq!(element(id).id, id);
        }
        assert_eq!(ELEMENTS.len(), StateId::Events as usize + 1);
    }

    #[test]
    fn order_of_restore() {
        let at = |id| ELEMENTS.iter().position(|e| e.id == id);
        // CPUID decides which control bits and MSRs exist; the APIC base (SREGS) decides what LAPIC means;
        // KVM_SET_REGS drops pending exceptions, and a LAPIC write may set an activity: events come last.
        assert!(at(StateId::Cpuid) < at(StateId::Sregs));
        assert!(at(StateId::Sregs) < at(StateId::Lapic));
        assert!(at(StateId::Xcrs) < at(StateId::Xsave));
        assert!(at(StateId::Regs) < at(StateId::Events));
        assert!(at(StateId::Lapic) < at(StateId::MpState));
    }

    #[test]
    fn a_difference_is_found_and_masked() {
        let regs = |rax| (StateId::Regs, Value::Regs(kvm_regs { rax, ..Default::default() }));
        let msr = |index, data| {
            (StateId::Msrs, Value::Msrs(vec![kvm_msr_entry { index, data, ..Default::default() }]))
        };
        let a = Snapshot { vm: vec![], vcpus: vec![vec![regs(1), msr(0x10, 5)]] };
        let b = Snapshot { vm: vec![], vcpus: vec![vec![regs(2), msr(0x10, 6)]] };
        let d = a.diff(&b);
        assert_eq!(d.len(), 1);
        assert_eq!((d[0].id, d[0].vcpu), (StateId::Regs, Some(0)));
        assert!(d[0].left.contains("rax: 1") && d[0].right.contains("rax: 2"));
        assert!(a.diff(&a.clone()).is_empty());
        let c = Snapshot { vm: vec![], vcpus: vec![vec![regs(1), msr(0x277, 6)]] };
        assert!(!a.diff(&c).is_empty(), "an MSR that is missing on one side");
    }
}
