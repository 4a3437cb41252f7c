//! Between the software processor's own state and KVM's structures: free functions, both ways.
//!
//! Structures of emu-core are taken apart without `..`, so that a field which is added there does not compile here
//! until somebody has said where KVM_GET shows it. [`home`] does the same for the vCPU as a whole.
//! Not here: checks of what a caller hands in (`soft::vcpu`), the interrupt controllers and the PIT ([`irqchip`]).

pub mod irqchip;

use crate::user_mem::from_bytes;
use emu_core::event::{Activity, Events, PendingException, Shadow};
use emu_core::mce::MachineCheck;
use emu_core::vcpu::{Hot, RIP, Vcpu};
use emu_core::vm_clock::VcpuClock;
use emu_core::xstate::XsaveImage;
use kvm_api::errno::{Errno, Result};
use kvm_api::state::StateId;
use kvm_api::uapi::*;
use x86_arch::cpuid::{CpuidEntry, CpuidResult};
use x86_arch::{DescriptorTable, Gpr, Seg, Segment, Selector, xsave};

/// Where a field of the vCPU is in the portable state.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Home {
    /// In this element.
    In(StateId),
    /// Made from other state whenever that is written.
    Derived,
    /// Between KVM_RUNs only, as the KVM API itself has it: the unfinished exit.
    Unfinished,
    /// Not state of the guest: counters, handles.
    Engine,
}

/// Each field of the vCPU and where KVM_GET shows it.
pub fn home(vcpu: &Vcpu) -> Vec<(&'static str, Home)> {
    use Home::*;
    macro_rules! fields {
        ($($field:ident => $home:expr,)*) => {{
            // No `..`: a new field stops here.
            let Vcpu { $($field: _),* } = vcpu;
            vec![$((stringify!($field), $home)),*]
        }};
    }
    fields! {
        hot => In(StateId::Regs),
        seg_path => Derived,
        mmu => Derived,
        cpl => Derived,
        mode => Derived,
        block_mode => Derived,
        seg => In(StateId::Sregs),
        gdtr => In(StateId::Sregs),
        idtr => In(StateId::Sregs),
        cr0 => In(StateId::Sregs),
        cr2 => In(StateId::Sregs),
        cr3 => In(StateId::Sregs),
        cr4 => In(StateId::Sregs),
        cr8 => In(StateId::Sregs),
        efer => In(StateId::Sregs),
        xcr0 => In(StateId::Xcrs),
        dr => In(StateId::Debugregs),
        dr6 => In(StateId::Debugregs),
        dr7 => In(StateId::Debugregs),
        msr => In(StateId::Msrs),
        clock => In(StateId::Msrs),
        // Set by ENABLE_CAP, which has no counterpart; a kick that no HLT has used up is lost, as in KVM.
        pv => Engine,
        xsave => In(StateId::Xsave),
        pkru => In(StateId::Xsave),
        native => Engine,
        events => In(StateId::Events),
        io => Unfinished,
        cpuid => In(StateId::Cpuid),
        fault_gva => Derived,
        host_fault => Engine,
        exclusive => Engine,
        bus_locked => Engine,
        insn_len => Engine,
        debug => Engine,
        stats => Engine,
        // User space's wish, not the guest's state: KVM has no ioctl that reads it.
        vapic => Engine,
        count_base => Engine,
        shared => In(StateId::Lapic),
        vm => Engine,
    }
}

/// KVM_GET_REGS.
pub fn regs(v: &Vcpu) -> kvm_regs {
    // The other fields are counters and words derived from control state.
    let Hot {
        regs: r,
        rflags,
        retired: _,
        rep_iterations: _,
        attention: _,
        watch: _,
        linear_mask: _,
        rip_mask: _,
    } = &v.hot;
    let g = |n: Gpr| r[n as usize];
    kvm_regs {
        rax: g(Gpr::Rax),
        rbx: g(Gpr::Rbx),
        rcx: g(Gpr::Rcx),
        rdx: g(Gpr::Rdx),
        rsi: g(Gpr::Rsi),
        rdi: g(Gpr::Rdi),
        rsp: g(Gpr::Rsp),
        rbp: g(Gpr::Rbp),
        r8: g(Gpr::R8),
        r9: g(Gpr::R9),
        r10: g(Gpr::R10),
        r11: g(Gpr::R11),
        r12: g(Gpr::R12),
        r13: g(Gpr::R13),
        r14: g(Gpr::R14),
        r15: g(Gpr::R15),
        rip: r[RIP],
        rflags: *rflags,
    }
}

/// KVM_SET_REGS.
pub fn set_regs(v: &mut Vcpu, k: &kvm_regs) {
    let kvm_regs {
        rax,
        rbx,
        rcx,
        rdx,
        rsi,
        rdi,
        rsp,
        rbp,
        r8,
        r9,
        r10,
        r11,
        r12,
        r13,
        r14,
        r15,
        rip,
        rflags,
    } = *k;
    v.hot.regs[..16]
        .copy_from_slice(&[rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi, r8, r9, r10, r11, r12, r13, r14, r15]);
    v.hot.regs[RIP] = rip;
    v.set_rflags(rflags);
}

/// A segment register as KVM shows it.
pub fn segment(s: &Segment) -> kvm_segment {
    let Segment { selector, base, limit, typ, s, dpl, present, avl, l, db, g, unusable } = *s;
    kvm_segment {
        base,
        limit,
        selector: selector.0,
        type_: typ,
        present: (present && !unusable) as u8,
        dpl,
        db: db as u8,
        s: s as u8,
        l: l as u8,
        g: g as u8,
        avl: avl as u8,
        unusable: unusable as u8,
        padding: 0,
    }
}

/// A segment register from KVM's form. What is not present is unusable, as VMX has it.
pub fn set_segment(k: &kvm_segment) -> Segment {
    let kvm_segment { base, limit, selector, type_, present, dpl, db, s, l, g, avl, unusable, padding: _ } =
        *k;
    Segment {
        selector: Selector(selector),
        base,
        limit,
        typ: type_ & 15,
        s: s != 0,
        dpl: dpl & 3,
        present: present != 0,
        avl: avl != 0,
        l: l != 0,
        db: db != 0,
        g: g != 0,
        unusable: unusable != 0 || present == 0,
    }
}

/// GDTR or IDTR as KVM shows it.
pub fn dtable(d: &DescriptorTable) -> kvm_dtable {
    let DescriptorTable { base, limit } = *d;
    kvm_dtable { base, limit, padding: [0; 3] }
}

/// GDTR or IDTR from KVM's form.
pub fn set_dtable(k: &kvm_dtable) -> DescriptorTable {
    DescriptorTable { base: k.base, limit: k.limit }
}

/// KVM_GET_SREGS2; PDPTRs are the caller's to add.
pub fn sregs2(v: &Vcpu, apic_base: u64) -> kvm_sregs2 {
    let s = |n: Seg| segment(v.segment(n));
    kvm_sregs2 {
        cs: s(Seg::Cs),
        ds: s(Seg::Ds),
        es: s(Seg::Es),
        fs: s(Seg::Fs),
        gs: s(Seg::Gs),
        ss: s(Seg::Ss),
        tr: s(Seg::Tr),
        ldt: s(Seg::Ldtr),
        gdt: dtable(&v.gdtr),
        idt: dtable(&v.idtr),
        cr0: v.cr0.bits(),
        cr2: v.cr2,
        cr3: v.cr3,
        cr4: v.cr4.bits(),
        cr8: v.read_cr8(),
        efer: v.efer.bits(),
        apic_base,
        flags: 0,
        pdptrs: [0; 4],
    }
}

/// One form of the special registers from the other: what both have, and `own`, the rest of it.
macro_rules! special_registers {
    ($form:ident from $other:expr; $($own:ident: $value:expr),+) => {{
        let s = $other;
        $form {
            cs: s.cs,
            ds: s.ds,
            es: s.es,
            fs: s.fs,
            gs: s.gs,
            ss: s.ss,
            tr: s.tr,
            ldt: s.ldt,
            gdt: s.gdt,
            idt: s.idt,
            cr0: s.cr0,
            cr2: s.cr2,
            cr3: s.cr3,
            cr4: s.cr4,
            cr8: s.cr8,
            efer: s.efer,
            apic_base: s.apic_base,
            $($own: $value,)+
        }
    }};
}

/// KVM_GET_SREGS from KVM_GET_SREGS2, with the interrupt that is acknowledged and not delivered.
pub fn sregs(s: &kvm_sregs2, interrupt: Option<u8>) -> kvm_sregs {
    let mut interrupt_bitmap = [0; 4];
    if let Some(vector) = interrupt {
        interrupt_bitmap[vector as usize / 64] |= 1 << (vector % 64);
    }
    special_registers!(kvm_sregs from s; interrupt_bitmap: interrupt_bitmap)
}

/// The common part of both forms of special registers.
pub fn sregs2_of(s: &kvm_sregs) -> kvm_sregs2 {
    special_registers!(kvm_sregs2 from s; flags: 0, pdptrs: [0; 4])
}

/// KVM_GET_FPU.
pub fn fpu(x: &XsaveImage) -> kvm_fpu {
    // The selectors have no place here: their pointers are 64 bits wide.
    let XsaveImage { bytes, fcs: _, fds: _ } = x;
    let mut fpr = [[0; 16]; 8];
    for (n, r) in fpr.iter_mut().enumerate() {
        r.copy_from_slice(&bytes[xsave::ST0 + 16 * n..][..16]);
    }
    let mut xmm = [[0; 16]; 16];
    for (n, r) in xmm.iter_mut().enumerate() {
        r.copy_from_slice(&bytes[xsave::XMM0 + 16 * n..][..16]);
    }
    kvm_fpu {
        fpr,
        fcw: x.fcw(),
        fsw: x.fsw(),
        ftwx: x.ftw(),
        pad1: 0,
        last_opcode: x.fop(),
        last_ip: x.fip(),
        last_dp: x.fdp(),
        xmm,
        mxcsr: x.mxcsr(),
        pad2: 0,
    }
}

/// KVM_SET_FPU. x87 and SSE are in use then, whatever their values.
pub fn set_fpu(x: &mut XsaveImage, k: &kvm_fpu) {
    let kvm_fpu { fpr, fcw, fsw, ftwx, pad1: _, last_opcode, last_ip, last_dp, xmm, mxcsr, pad2: _ } = k;
    for (n, r) in fpr.iter().enumerate() {
        x.bytes[xsave::ST0 + 16 * n..][..16].copy_from_slice(r);
    }
    for (n, r) in xmm.iter().enumerate() {
        x.bytes[xsave::XMM0 + 16 * n..][..16].copy_from_slice(r);
    }
    x.set_fcw(*fcw);
    x.set_fsw(*fsw);
    x.set_ftw(*ftwx);
    x.set_fop(*last_opcode);
    x.set_fip(*last_ip);
    x.set_fdp(*last_dp);
    (x.fcs, x.fds) = (0, 0);
    x.update_summary();
    x.set_mxcsr(*mxcsr & emu_core::host_cpu::mxcsr_mask());
    x.set_xstate_bv(x.xstate_bv() | 3);
}

/// What of the events depends on capabilities that the VMM has enabled.
#[derive(Clone, Copy, Debug, Default)]
pub struct EventCaps {
    /// KVM_CAP_EXCEPTION_PAYLOAD.
    pub exception_payload: bool,
    /// KVM_CAP_X86_TRIPLE_FAULT_EVENT.
    pub triple_fault: bool,
}

/// KVM_GET_VCPU_EVENTS.
pub fn events(e: &Events, caps: EventCaps) -> kvm_vcpu_events {
    let Events {
        exception,
        interrupt,
        interrupt_soft,
        nmi_pending,
        nmi_injected,
        nmi_masked,
        shadow,
        debug_trap,
        debug_fault: _,     // These two live
        entered_handler: _, // within one instruction.
        activity,
        init_pending,
        sipi_vector: _, // KVM_GET_MP_STATE says SIPI_RECEIVED; KVM reports no vector any more.
        smi_pending,
        smm,
        smm_inside_nmi,
        triple_fault,
    } = e;
    let mut k = kvm_vcpu_events::default();
    // A trap that the last instruction left is the #DB that comes next. Without the payload's capability it was made one
    // before, unless the shadow of MOV SS holds it: that cannot be told.
    let trap = (*debug_trap != 0 && caps.exception_payload).then_some(PendingException {
        vector: 1,
        error_code: None,
        payload: Some(*debug_trap),
    });
    if let Some(PendingException { vector, error_code, payload }) = exception.or(trap) {
        if caps.exception_payload {
            // One without a payload has nothing left to do but to be delivered.
            k.exception.pending = payload.is_some() as u8;
            k.exception.injected = payload.is_none() as u8;
            k.flags |= KVM_VCPUEVENT_VALID_PAYLOAD;
            k.exception_has_payload = payload.is_some() as u8;
            k.exception_payload = payload.unwrap_or(0);
        } else {
            // Without the capability a pending exception is shown as injected, its payload already delivered.
            k.exception.injected = 1;
        }
        k.exception.nr = vector;
        k.exception.has_error_code = error_code.is_some() as u8;
        k.exception.error_code = error_code.unwrap_or(0);
    } else if caps.exception_payload {
        k.flags |= KVM_VCPUEVENT_VALID_PAYLOAD;
    }
    k.interrupt.injected = (interrupt.is_some() && !interrupt_soft) as u8;
    k.interrupt.nr = interrupt.unwrap_or(0);
    k.interrupt.soft = 0;
    k.interrupt.shadow = match shadow {
        Shadow::None => 0,
        Shadow::Sti => KVM_X86_SHADOW_INT_STI as u8,
        Shadow::MovSs => KVM_X86_SHADOW_INT_MOV_SS as u8,
    };
    k.nmi.injected = *nmi_injected as u8;
    k.nmi.pending = *nmi_pending;
    k.nmi.masked = *nmi_masked as u8;
    k.smi.smm = *smm as u8;
    k.smi.pending = *smi_pending as u8;
    k.smi.smm_inside_nmi = *smm_inside_nmi as u8;
    // INIT that waits behind SMM; outside SMM it shows as the MP state.
    k.smi.latched_init = (*init_pending && (*smm || *activity == Activity::Uninitialized)) as u8;
    k.flags |= KVM_VCPUEVENT_VALID_NMI_PENDING | KVM_VCPUEVENT_VALID_SHADOW | KVM_VCPUEVENT_VALID_SMM;
    if caps.triple_fault {
        k.triple_fault.pending = *triple_fault as u8;
        k.flags |= KVM_VCPUEVENT_VALID_TRIPLE_FAULT;
    }
    k
}

/// KVM_SET_VCPU_EVENTS, after the checks.
pub fn set_events(e: &mut Events, k: &kvm_vcpu_events) {
    let has = |flag| k.flags & flag != 0;
    e.exception = (k.exception.injected != 0 || k.exception.pending != 0).then_some(PendingException {
        vector: k.exception.nr,
        error_code: (k.exception.has_error_code != 0).then_some(k.exception.error_code),
        payload: (has(KVM_VCPUEVENT_VALID_PAYLOAD) && k.exception_has_payload != 0)
            .then_some(k.exception_payload),
    });
    e.debug_trap = 0;
    e.interrupt = (k.interrupt.injected != 0).then_some(k.interrupt.nr);
    e.interrupt_soft = k.interrupt.soft != 0;
    if has(KVM_VCPUEVENT_VALID_SHADOW) {
        let bits = u32::from(k.interrupt.shadow);
        e.shadow = if bits & KVM_X86_SHADOW_INT_MOV_SS != 0 {
            Shadow::MovSs
        } else if bits & KVM_X86_SHADOW_INT_STI != 0 {
            Shadow::Sti
        } else {
            Shadow::None
        };
    }
    if e.shadow == Shadow::MovSs
        && k.exception.injected == 0
        && let Some(PendingException { vector: 1, payload: Some(bits), .. }) = e.exception
    {
        // The shadow holds the trap back until the next instruction is done.
        e.exception = None;
        e.debug_trap = bits;
    }
    e.nmi_injected = k.nmi.injected != 0;
    if has(KVM_VCPUEVENT_VALID_NMI_PENDING) {
        // Behind one that is masked or on its way there is room for one.
        let limit = if k.nmi.masked != 0 || k.nmi.injected != 0 { 1 } else { 2 };
        e.nmi_pending = k.nmi.pending.min(limit);
    }
    e.nmi_masked = k.nmi.masked != 0;
    if has(KVM_VCPUEVENT_VALID_SIPI_VECTOR) && k.sipi_vector != 0 {
        e.sipi_vector = Some(k.sipi_vector as u8);
    }
    if has(KVM_VCPUEVENT_VALID_SMM) {
        e.smm = k.smi.smm != 0;
        e.smi_pending = k.smi.pending != 0;
        e.smm_inside_nmi = e.smm && k.smi.smm_inside_nmi != 0;
        e.init_pending = k.smi.latched_init != 0;
    }
    if has(KVM_VCPUEVENT_VALID_TRIPLE_FAULT) {
        e.triple_fault = k.triple_fault.pending != 0;
    }
}

/// KVM_GET_MP_STATE.
pub fn mp_state(e: &Events) -> u32 {
    match e.activity {
        Activity::Runnable => KVM_MP_STATE_RUNNABLE,
        Activity::Uninitialized => KVM_MP_STATE_UNINITIALIZED,
        Activity::InitReceived if e.sipi_vector.is_some() => KVM_MP_STATE_SIPI_RECEIVED,
        Activity::InitReceived => KVM_MP_STATE_INIT_RECEIVED,
        Activity::Halted => KVM_MP_STATE_HALTED,
        Activity::ResetHold => KVM_MP_STATE_AP_RESET_HOLD,
    }
}

/// KVM_SET_MP_STATE, after the checks.
pub fn set_mp_state(e: &mut Events, state: u32) -> Result {
    // INIT waits while the vCPU is in SMM: KVM_SET_VCPU_EVENTS says so (latched_init).
    if e.smm && matches!(state, KVM_MP_STATE_INIT_RECEIVED | KVM_MP_STATE_SIPI_RECEIVED) {
        return Err(Errno::EINVAL);
    }
    e.activity = match state {
        KVM_MP_STATE_RUNNABLE => Activity::Runnable,
        KVM_MP_STATE_UNINITIALIZED => Activity::Uninitialized,
        KVM_MP_STATE_INIT_RECEIVED => Activity::InitReceived,
        KVM_MP_STATE_SIPI_RECEIVED => {
            e.sipi_vector.get_or_insert(0);
            Activity::InitReceived
        }
        KVM_MP_STATE_HALTED => Activity::Halted,
        KVM_MP_STATE_AP_RESET_HOLD => Activity::ResetHold,
        _ => return Err(Errno::EINVAL),
    };
    Ok(())
}

/// A CPUID row in KVM's form.
pub fn cpuid_entry(e: &CpuidEntry) -> kvm_cpuid_entry2 {
    let CpuidEntry { leaf, subleaf, indexed, result: CpuidResult { eax, ebx, ecx, edx } } = *e;
    kvm_cpuid_entry2 {
        function: leaf,
        index: subleaf,
        flags: if indexed { KVM_CPUID_FLAG_SIGNIFCANT_INDEX } else { 0 },
        eax,
        ebx,
        ecx,
        edx,
        padding: [0; 3],
    }
}

/// A CPUID row from KVM's form.
pub fn set_cpuid_entry(k: &kvm_cpuid_entry2) -> CpuidEntry {
    let kvm_cpuid_entry2 { function, index, flags, eax, ebx, ecx, edx, padding: _ } = *k;
    CpuidEntry {
        leaf: function,
        subleaf: index,
        indexed: flags & KVM_CPUID_FLAG_SIGNIFCANT_INDEX != 0,
        result: CpuidResult { eax, ebx, ecx, edx },
    }
}

/// What of a vCPU's clock KVM_GET_MSRS and KVM_GET_TSC_KHZ show.
pub fn clock(c: &VcpuClock) -> [(StateId, &'static str); 3] {
    // A stop that the guest was not told of (KVM_KVMCLOCK_CTRL) is not saved, as in KVM.
    let VcpuClock { tsc: _, system_time: _, guest_stopped: _ } = c;
    [
        (StateId::Msrs, "IA32_TSC, IA32_TSC_ADJUST"),
        (StateId::TscKhz, "the TSC's frequency"),
        (StateId::Msrs, "MSR_KVM_SYSTEM_TIME"),
    ]
}

/// KVM_X86_SET_MCE's error.
pub fn machine_check(k: &kvm_x86_mce) -> MachineCheck {
    let kvm_x86_mce { status, addr, misc, mcg_status, bank, pad1: _, pad2: _ } = *k;
    MachineCheck { bank, status, addr, misc, mcg_status }
}

/// The register page of KVM_GET_LAPIC.
pub fn lapic(page: &[u8]) -> kvm_lapic_state {
    from_bytes(page)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_there_and_back() {
        let caps = EventCaps { exception_payload: true, triple_fault: true };
        let e = Events {
            exception: Some(PendingException { vector: 14, error_code: Some(5), payload: Some(0x1234) }),
            interrupt: Some(0x31),
            nmi_pending: 1,
            nmi_masked: true,
            shadow: Shadow::MovSs,
            smi_pending: true,
            triple_fault: true,
            ..Events::default()
        };
        let k = events(&e, caps);
        assert_eq!((k.exception.pending, k.exception.injected, k.exception.nr), (1, 0, 14));
        let mut back = Events::default();
        set_events(&mut back, &k);
        assert_eq!(format!("{e:?}"), format!("{back:?}"));
        // Without the capability, injected.
        let k = events(&e, EventCaps::default());
        assert_eq!(
            (k.exception.pending, k.exception.injected, k.flags & KVM_VCPUEVENT_VALID_PAYLOAD),
            (0, 1, 0)
        );
    }

    #[test]
    fn a_single_step_trap_is_a_pending_debug_exception() {
        let e = Events { debug_trap: 1 << 14, ..Events::default() };
        let k = events(&e, EventCaps { exception_payload: true, triple_fault: false });
        assert_eq!((k.exception.pending, k.exception.nr, k.exception_payload), (1, 1, 1 << 14));
    }

    #[test]
    fn segments_there_and_back() {
        let k = kvm_segment {
            base: 0x1234_5678_9abc,
            limit: 0xfffff,
            selector: 0x33,
            type_: 11,
            present: 1,
            dpl: 3,
            db: 0,
            s: 1,
            l: 1,
            g: 1,
            avl: 1,
            unusable: 0,
            padding: 0,
        };
        assert_eq!(segment(&set_segment(&k)), k);
        let k = kvm_segment { present: 0, ..k };
        assert!(set_segment(&k).unusable);
    }

    #[test]
    fn mp_states() {
        for s in [
            KVM_MP_STATE_RUNNABLE,
            KVM_MP_STATE_UNINITIALIZED,
            KVM_MP_STATE_INIT_RECEIVED,
            KVM_MP_STATE_SIPI_RECEIVED,
            KVM_MP_STATE_HALTED,
        ] {
            let mut e = Events::default();
            set_mp_state(&mut e, s).unwrap();
            assert_eq!(mp_state(&e), s);
        }
        assert_eq!(set_mp_state(&mut Events::default(), 77), Err(Errno::EINVAL));
    }
}
