//! Model-specific registers: their storage, and who may read and write them.
//!
//! The rows are in `table`: one for each register or range, from which RDMSR, WRMSR, KVM_GET_MSRS,
//! KVM_SET_MSRS and KVM's index lists are derived. A register without a row is #GP.

mod table;
#[cfg(test)]
mod tests;

pub use table::{List, ROWS, Row};

use crate::exit::{Result, Stop};
use crate::io::Request;
use crate::vcpu::Vcpu;
use std::sync::atomic::Ordering;
use x86_arch::Exception;

/// Banks of machine-check registers that can exist.
pub const MCE_BANKS: usize = 32;
/// Pairs of variable-range MTRRs.
pub const MTRR_PAIRS: usize = 8;
/// Fixed-range MTRRs.
pub const MTRR_FIXED: usize = 11;

/// Why a register access goes to user space (KVM_MSR_EXIT_REASON_*): no such register.
pub const REASON_UNKNOWN: u32 = 1 << 1;
/// The register exists and refused the access.
pub const REASON_INVALID: u32 = 1 << 0;
/// User space's filter wants it.
pub const REASON_FILTER: u32 = 1 << 2;

/// What user space wants to decide about MSRs (KVM_X86_SET_MSR_FILTER).
pub trait MsrFilter: Send + Sync {
    /// Whether the guest's access is left to the processor.
    fn allows(&self, index: u32, write: bool) -> bool;
}

macro_rules! state {
    ($($(#[$doc:meta])* $name:ident: $t:ty = $reset:expr),* $(,)?) => {
        /// Registers that live nowhere else. Values at reset are [`Default`]'s.
        #[derive(Clone, Debug, PartialEq, Eq)]
        pub struct MsrState { $($(#[$doc])* pub $name: $t,)* }

        impl Default for MsrState {
            fn default() -> Self {
                MsrState { $($name: $reset,)* }
            }
        }
    };
}

state! {
    /// IA32_SYSENTER_CS.
    sysenter_cs: u64 = 0,
    /// IA32_SYSENTER_ESP.
    sysenter_esp: u64 = 0,
    /// IA32_SYSENTER_EIP.
    sysenter_eip: u64 = 0,
    /// IA32_STAR.
    star: u64 = 0,
    /// IA32_LSTAR.
    lstar: u64 = 0,
    /// IA32_CSTAR.
    cstar: u64 = 0,
    /// IA32_FMASK.
    fmask: u64 = 0,
    /// IA32_KERNEL_GS_BASE.
    kernel_gs_base: u64 = 0,
    /// IA32_TSC_AUX.
    tsc_aux: u64 = 0,
    /// IA32_PAT: SDM vol. 3A, 11.12.4.
    pat: u64 = 0x0007_0406_0007_0406,
    /// IA32_MISC_ENABLE: fast strings; no branch trace store, no PEBS.
    misc_enable: u64 = 0x1801,
    /// IA32_XSS.
    xss: u64 = 0,
    /// IA32_APIC_BASE where the local APIC is user space's.
    apic_base: u64 = 0xfee0_0800,
    /// IA32_TSC_DEADLINE where the local APIC is user space's.
    tsc_deadline: u64 = 0,
    /// IA32_FEATURE_CONTROL.
    feature_control: u64 = 0,
    /// IA32_SPEC_CTRL.
    spec_ctrl: u64 = 0,
    /// IA32_BIOS_SIGN_ID, the microcode revision; zero means the vendor's default of KVM.
    bios_sign_id: u64 = 0,
    /// MSR_PLATFORM_INFO: CPUID faulting exists.
    platform_info: u64 = 1 << 31,
    /// MSR_MISC_FEATURES_ENABLES: bit 0, CPUID faults outside CPL 0.
    misc_features_enables: u64 = 0,
    /// IA32_ARCH_CAPABILITIES. See `ARCH_CAPABILITIES` in the table.
    arch_capabilities: u64 = table::ARCH_CAPABILITIES,
    /// IA32_MCG_CAP (KVM_X86_SETUP_MCE).
    mcg_cap: u64 = MCE_BANKS as u64,
    /// IA32_MCG_STATUS.
    mcg_status: u64 = 0,
    /// IA32_MCG_CTL.
    mcg_ctl: u64 = 0,
    /// IA32_MCG_EXT_CTL: bit 0, an error may be this processor's alone.
    mcg_ext_ctl: u64 = 0,
    /// IA32_MCi_CTL, STATUS, ADDR, MISC for each bank. KVM_X86_SETUP_MCE enables all errors.
    mce_banks: [[u64; 4]; MCE_BANKS] = [[0; 4]; MCE_BANKS],
    /// IA32_MCi_CTL2.
    mci_ctl2: [u64; MCE_BANKS] = [0; MCE_BANKS],
    /// IA32_MTRR_PHYSBASEn and PHYSMASKn.
    mtrr_variable: [u64; 2 * MTRR_PAIRS] = [0; 2 * MTRR_PAIRS],
    /// The fixed-range MTRRs, in order of address.
    mtrr_fixed: [u64; MTRR_FIXED] = [0; MTRR_FIXED],
    /// IA32_MTRR_DEF_TYPE.
    mtrr_def_type: u64 = 0,
    /// IA32_DEBUGCTL.
    debugctl: u64 = 0,
    /// MSR_POWER_CTL.
    power_ctl: u64 = 0,
    /// IA32_SMBASE, which only the host reaches.
    smbase: u64 = 0x3_0000,
    /// MSR_SMI_COUNT.
    smi_count: u64 = 0,
    /// AMD's HWCR.
    hwcr: u64 = 0,
    /// AMD's DE_CFG: LFENCE serializes.
    de_cfg: u64 = 2,
    /// AMD's OSVW_ID_LENGTH.
    osvw_length: u64 = 0,
    /// AMD's OSVW_STATUS.
    osvw_status: u64 = 0,
    /// MSR_KVM_ASYNC_PF_EN.
    async_pf_en: u64 = 0,
    /// MSR_KVM_ASYNC_PF_INT.
    async_pf_int: u64 = 0,
    /// MSR_KVM_STEAL_TIME.
    steal_time: u64 = 0,
    /// MSR_KVM_PV_EOI_EN.
    pv_eoi: u64 = 0,
    /// MSR_KVM_POLL_CONTROL: host-side polling is allowed.
    poll_control: u64 = 1,
}

/// The row of a register.
pub fn find(index: u32) -> Option<&'static Row> {
    // The table is in order of index.
    let n = ROWS.partition_point(|r| r.last < index);
    ROWS.get(n).filter(|r| r.first <= index)
}

/// The indices of a KVM list, in the table's order.
pub fn index_list(wanted: List) -> Vec<u32> {
    ROWS.iter().filter(|r| r.list == wanted).flat_map(|r| r.first..=r.last).collect()
}

impl MsrState {
    /// What a reset leaves: IA32_APIC_BASE tells the bootstrap processor (SDM vol. 3A, 10.4.4).
    pub fn at_reset(bootstrap: bool) -> MsrState {
        let state = MsrState::default();
        MsrState { apic_base: state.apic_base | u64::from(bootstrap) << 8, ..state }
    }
}

impl Vcpu {
    /// Reads a register. `host`: KVM_GET_MSRS, which sees what the guest's CPUID hides. `None`: refused.
    pub fn read_msr(&mut self, index: u32, host: bool) -> Option<u64> {
        if self.pv_hides(index) {
            return host.then_some(0);
        }
        let row = find(index)?;
        if !host && !(row.exists)(self) {
            return None;
        }
        (row.read)(self, index, host)
    }

    /// Writes a register. `host`: KVM_SET_MSRS. False: refused.
    pub fn write_msr(&mut self, index: u32, value: u64, host: bool) -> bool {
        if let Some(done) = self.write_xen_msr(index, value) {
            return done;
        }
        if self.pv_hides(index) {
            return host && value == 0;
        }
        match find(index) {
            Some(row) if host || (row.exists)(self) => (row.write)(self, index, value, host),
            _ => false,
        }
    }

    /// RDMSR, after the privilege check: what the register says, user space's answer, or #GP(0).
    pub fn guest_rdmsr(&mut self, index: u32) -> Result<u64> {
        let reason = if self.msr_filtered(index, false) {
            REASON_FILTER
        } else {
            match self.read_msr(index, false) {
                Some(v) => return Ok(v),
                None => self.refusal(index),
            }
        };
        if self.vm.msr_exits.load(Ordering::Relaxed) & reason == 0 {
            return self.gp0();
        }
        let request = Request::Msr { index, reason };
        self.ask_about_msr(request)
    }

    /// WRMSR, after the privilege check.
    pub fn guest_wrmsr(&mut self, index: u32, value: u64) -> Result {
        let reason = if self.msr_filtered(index, true) {
            REASON_FILTER
        } else if self.write_msr(index, value, false) {
            return Ok(());
        } else {
            self.refusal(index)
        };
        if self.vm.msr_exits.load(Ordering::Relaxed) & reason == 0 {
            return self.gp0();
        }
        let request = Request::MsrWrite { index, data: value, reason };
        self.ask_about_msr(request).map(|_| ())
    }

    fn refusal(&self, index: u32) -> u32 {
        if find(index).is_some() && !self.pv_hides(index) { REASON_INVALID } else { REASON_UNKNOWN }
    }

    fn msr_filtered(&self, index: u32, write: bool) -> bool {
        // KVM: accesses to the x2APIC are never filtered.
        let x2apic = (x86_arch::msr::X2APIC_FIRST..=x86_arch::msr::X2APIC_LAST).contains(&index);
        !x2apic && self.vm.msr_filter.read().as_ref().is_some_and(|f| !f.allows(index, write))
    }

    /// KVM_CAP_X86_USER_SPACE_MSR: the answer, or the request for it.
    fn ask_about_msr(&mut self, request: Request) -> Result<u64> {
        let answer = self.io.replay(&request).and_then(|a| a.try_into().ok()).map(u64::from_le_bytes);
        match answer {
            Some(_) if core::mem::take(&mut self.io.msr_error) => Err(Exception::GP0.into()),
            Some(v) => Ok(v),
            None => {
                self.io.request = Some(request);
                Err(Stop::Need)
            }
        }
    }
}
