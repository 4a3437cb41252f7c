//! KVM_GET_NESTED_STATE and KVM_SET_NESTED_STATE where no guest has guests of its own: the state is empty, and only an
//! empty one can be restored. That is what a kernel answers whose module has nesting switched off.
//!
//! KVM_CAP_NESTED_STATE is 0: nothing more can be here until VMX or SVM is offered to guests.

use emu_core::cpuid::policy::HostProcessor;
use kvm_api::errno::{Errno, Result};
use kvm_api::uapi::*;

/// The physical address that stands for "none".
const NO_ADDRESS: u64 = u64::MAX;
const SIZE: u32 = size_of::<kvm_nested_state_header>() as u32;
/// Flags that some processor's KVM knows.
const KNOWN: u32 = KVM_STATE_NESTED_GUEST_MODE
    | KVM_STATE_NESTED_RUN_PENDING
    | KVM_STATE_NESTED_EVMCS
    | KVM_STATE_NESTED_MTF_PENDING
    | KVM_STATE_NESTED_GIF_SET;

fn word(hdr: &[u8; 120], at: usize) -> u64 {
    crate::user_mem::from_bytes(&hdr[at..at + 8])
}

/// The empty state in the host vendor's format.
pub fn empty() -> kvm_nested_state_header {
    let mut hdr = [0; 120];
    if HostProcessor::this().is_amd() {
        let flags = KVM_STATE_NESTED_GIF_SET as u16;
        return kvm_nested_state_header {
            flags,
            format: KVM_STATE_NESTED_FORMAT_SVM as u16,
            size: SIZE,
            hdr,
        };
    }
    // vmxon_pa and vmcs12_pa.
    hdr[..8].copy_from_slice(&NO_ADDRESS.to_le_bytes());
    hdr[8..16].copy_from_slice(&NO_ADDRESS.to_le_bytes());
    kvm_nested_state_header { flags: 0, format: KVM_STATE_NESTED_FORMAT_VMX as u16, size: SIZE, hdr }
}

/// Whether a state can be restored (EINVAL): an empty one.
pub fn check(state: &kvm_nested_state_header) -> Result {
    let flags = u32::from(state.flags);
    let pending_alone = flags & KVM_STATE_NESTED_RUN_PENDING != 0 && flags & KVM_STATE_NESTED_GUEST_MODE == 0;
    let own = empty();
    if state.size < SIZE || flags & !KNOWN != 0 || pending_alone || state.format != own.format {
        return Err(Errno::EINVAL);
    }
    let fits = if u32::from(own.format) == KVM_STATE_NESTED_FORMAT_SVM {
        // Without EFER.SVME the global interrupt flag is set, and nothing else is.
        state.flags == own.flags
    } else {
        word(&state.hdr, 0) == NO_ADDRESS
            && word(&state.hdr, 8) == NO_ADDRESS
            && flags & !KVM_STATE_NESTED_EVMCS == 0
    };
    if fits { Ok(()) } else { Err(Errno::EINVAL) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_empty_state_comes_back() {
        let good = empty();
        assert_eq!(check(&good), Ok(()));
        for bad in [
            kvm_nested_state_header { size: 127, ..good },
            kvm_nested_state_header { flags: good.flags | 1, ..good },
            kvm_nested_state_header { flags: good.flags | 2, ..good },
            kvm_nested_state_header { flags: good.flags | 1 << 12, ..good },
            kvm_nested_state_header { format: good.format ^ 1, ..good },
            kvm_nested_state_header { format: 7, ..good },
        ] {
            assert_eq!(check(&bad), Err(Errno::EINVAL), "{bad:?}");
        }
    }
}
