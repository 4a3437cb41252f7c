//! Model-specific registers: their storage, and one table of who reads and writes them how.

/// Registers that live nowhere else. Values at reset are [`Default`]'s.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MsrState {
    /// IA32_SYSENTER_CS.
    pub sysenter_cs: u64,
    /// IA32_SYSENTER_ESP.
    pub sysenter_esp: u64,
    /// IA32_SYSENTER_EIP.
    pub sysenter_eip: u64,
    /// IA32_STAR.
    pub star: u64,
    /// IA32_LSTAR.
    pub lstar: u64,
    /// IA32_CSTAR.
    pub cstar: u64,
    /// IA32_FMASK.
    pub fmask: u64,
    /// IA32_KERNEL_GS_BASE.
    pub kernel_gs_base: u64,
    /// IA32_TSC_AUX.
    pub tsc_aux: u64,
    /// IA32_PAT.
    pub pat: u64,
    /// IA32_MISC_ENABLE.
    pub misc_enable: u64,
    /// IA32_XSS.
    pub xss: u64,
}

impl Default for MsrState {
    fn default() -> Self {
        MsrState {
            sysenter_cs: 0,
            sysenter_esp: 0,
            sysenter_eip: 0,
            star: 0,
            lstar: 0,
            cstar: 0,
            fmask: 0,
            kernel_gs_base: 0,
            tsc_aux: 0,
            // SDM vol. 3A, 11.12.4.
            pat: 0x0007_0406_0007_0406,
            misc_enable: 1,
            xss: 0,
        }
    }
}
