//! KVM_GET_MSRS, KVM_SET_MSRS and the index lists of the software backend, from the processor's MSR table.
//!
//! What an MSR does is a row there. Here are the lists, and where each stored register is shown.

use emu_core::msr::{List, MsrState, index_list};
use emu_core::{Vcpu, Vm};
use std::sync::{Arc, OnceLock};
use x86_arch::msr;

/// KVM_GET_MSR_INDEX_LIST: what a VMM must save and restore. MCE banks are not in it (KVM api 4.3).
pub fn indices() -> Vec<u32> {
    [List::Save, List::Emulated, List::Feature].into_iter().flat_map(index_list).collect()
}

/// KVM_GET_MSR_FEATURE_INDEX_LIST: facts about the processor.
pub fn feature_indices() -> Vec<u32> {
    index_list(List::Feature)
}

/// Whether a register is listed for a whole snapshot's sake, and not in KVM's lists (docs/deviations.md).
fn ours_alone(index: u32) -> bool {
    use msr::{IA32_APIC_BASE, IA32_DEBUGCTL, IA32_EFER, IA32_FS_BASE, IA32_GS_BASE, IA32_PAT};
    matches!(index, IA32_APIC_BASE | IA32_DEBUGCTL | IA32_EFER | IA32_FS_BASE | IA32_GS_BASE)
        || (msr::IA32_MTRR_PHYSBASE0..=msr::IA32_MTRR_DEF_TYPE).contains(&index) && index != IA32_PAT
}

/// A feature MSR's value: what a fresh vCPU has. Another register that KVM_GET_MSR_INDEX_LIST names is 0, as in KVM.
pub fn feature(index: u32) -> Option<u64> {
    static VALUES: OnceLock<Vec<(u32, u64)>> = OnceLock::new();
    let values = VALUES.get_or_init(|| {
        let vm = Vm::new(Arc::new(crate::host::CountedHost::new(0)));
        let mut vcpu = Vcpu::new(&vm, 0, true);
        let all = feature_indices().into_iter().filter_map(|n| Some((n, vcpu.read_msr(n, true)?))).collect();
        vm.world().unregister(&vcpu.shared.gate);
        all
    });
    let value = values.iter().find(|v| v.0 == index).map(|v| v.1);
    value.or_else(|| (indices().contains(&index) && !ours_alone(index)).then_some(0))
}

/// Whether a vCPU that has run keeps the register as it is. The microcode's revision may change.
pub fn fixed_once_run(index: u32) -> bool {
    index != msr::IA32_BIOS_SIGN_ID && feature_indices().contains(&index)
}

/// One MSR for KVM_GET_MSRS; `None` ends the list.
pub fn get(v: &mut Vcpu, index: u32) -> Option<u64> {
    v.read_msr(index, true)
}

/// One MSR for KVM_SET_MSRS; false ends the list.
pub fn set(v: &mut Vcpu, index: u32, data: u64) -> bool {
    v.write_msr(index, data, true)
}

/// Each field of the MSR state, and an index that shows it.
pub fn home(state: &MsrState) -> Vec<(&'static str, u32)> {
    macro_rules! fields {
        ($($field:ident => $index:expr,)*) => {{
            // No `..`: a new field stops here.
            let MsrState { $($field: _),* } = state;
            vec![$((stringify!($field), $index)),*]
        }};
    }
    fields! {
        sysenter_cs => msr::IA32_SYSENTER_CS,
        sysenter_esp => msr::IA32_SYSENTER_ESP,
        sysenter_eip => msr::IA32_SYSENTER_EIP,
        star => msr::IA32_STAR,
        lstar => msr::IA32_LSTAR,
        cstar => msr::IA32_CSTAR,
        fmask => msr::IA32_FMASK,
        kernel_gs_base => msr::IA32_KERNEL_GS_BASE,
        tsc_aux => msr::IA32_TSC_AUX,
        pat => msr::IA32_PAT,
        misc_enable => msr::IA32_MISC_ENABLE,
        xss => msr::IA32_XSS,
        apic_base => msr::IA32_APIC_BASE,
        tsc_deadline => msr::IA32_TSC_DEADLINE,
        feature_control => msr::IA32_FEATURE_CONTROL,
        spec_ctrl => msr::IA32_SPEC_CTRL,
        bios_sign_id => msr::IA32_BIOS_SIGN_ID,
        platform_info => msr::MSR_PLATFORM_INFO,
        misc_features_enables => msr::MSR_MISC_FEATURES_ENABLES,
        arch_capabilities => msr::IA32_ARCH_CAPABILITIES,
        // KVM_X86_SETUP_MCE writes it; the register is read-only.
        mcg_cap => msr::IA32_MCG_CAP,
        mcg_status => msr::IA32_MCG_STATUS,
        mcg_ctl => msr::IA32_MCG_CTL,
        mcg_ext_ctl => msr::IA32_MCG_EXT_CTL,
        mce_banks => msr::IA32_MC0_CTL,
        mci_ctl2 => msr::IA32_MC0_CTL2,
        mtrr_variable => msr::IA32_MTRR_PHYSBASE0,
        mtrr_fixed => msr::IA32_MTRR_FIX64K_00000,
        mtrr_def_type => msr::IA32_MTRR_DEF_TYPE,
        debugctl => msr::IA32_DEBUGCTL,
        power_ctl => 0x1fc,
        smbase => msr::IA32_SMBASE,
        smi_count => 0x34,
        hwcr => msr::AMD_HWCR,
        de_cfg => msr::AMD_DE_CFG,
        osvw_length => msr::AMD_OSVW_ID_LENGTH,
        osvw_status => msr::AMD_OSVW_STATUS,
        async_pf_en => msr::KVM_ASYNC_PF_EN,
        async_pf_int => msr::KVM_ASYNC_PF_INT,
        steal_time => msr::KVM_STEAL_TIME,
        pv_eoi => msr::KVM_PV_EOI_EN,
        poll_control => msr::KVM_POLL_CONTROL,
    }
}
