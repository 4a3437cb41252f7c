//! Saving and restoring a local APIC: exactly, and in the register image of KVM_GET_LAPIC and KVM_SET_LAPIC.

use super::*;
use crate::clock::Now;

/// Everything a local APIC remembers.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LapicState {
    /// IA32_APIC_BASE.
    pub apic_base: u64,
    /// The register page: 64 registers at a stride of 16 bytes, in doublewords.
    pub page: [u32; PAGE_WORDS],
    /// The timer's target.
    pub timer: TimerState,
    /// Events that are not vectors.
    pub pending: PendingEvents,
}

/// Bytes of KVM_GET_LAPIC's image.
pub const PAGE_BYTES: usize = 1024;

/// How an APIC ID is stored in KVM_GET_LAPIC's image (KVM api 4.57; KVM_X2APIC_API_USE_32BIT_IDS).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum IdFormat {
    /// Bits 31:24 in both modes; an x2APIC ID is cut to 8 bits.
    Legacy,
    /// All 32 bits in x2APIC mode.
    X2Apic,
}

/// KVM_SET_LAPIC was given an APIC ID that is not the vCPU's, in x2APIC mode, where it is read-only (EINVAL).
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("the APIC ID of the image is not that of the vCPU")]
pub struct WrongApicId;

impl Lapic {
    /// Everything, as it is.
    pub fn state(&self) -> LapicState {
        LapicState { apic_base: self.apic_base, page: self.page, timer: self.timer, pending: self.pending }
    }

    /// The inverse of [`Lapic::state`]. Times in it must be on the same base as before.
    pub fn set_state(&mut self, state: &LapicState) {
        let LapicState { apic_base, page, timer, pending } = state;
        self.apic_base = *apic_base;
        self.page = *page;
        self.timer = *timer;
        self.pending = *pending;
    }

    /// The image of KVM_GET_LAPIC (KVM api 4.57): the register page with the timer's current count in it.
    pub fn register_page(&self, now: &Now, format: IdFormat) -> [u8; PAGE_BYTES] {
        let mut page = self.page;
        let (count, surplus) = self.saved_count(now);
        page[(APIC_TIMER_CURRENT >> 2) as usize] = count;
        page[(TIMER_SURPLUS >> 2) as usize] = surplus;
        if self.mode() == ApicMode::X2Apic && format == IdFormat::Legacy {
            page[(APIC_ID >> 2) as usize] <<= 24;
        }
        let mut image = [0; PAGE_BYTES];
        for (bytes, word) in image.as_chunks_mut::<4>().0.iter_mut().zip(page) {
            *bytes = word.to_le_bytes();
        }
        image
    }

    /// KVM_SET_LAPIC: takes the image over, and lets the timer run on from the current count in it. The TSC deadline
    /// is not part of the image; it stays unless the timer's mode changes. IA32_APIC_BASE comes first.
    pub fn set_register_page(
        &mut self,
        image: &[u8; PAGE_BYTES],
        now: &Now,
        format: IdFormat,
    ) -> Result<(), WrongApicId> {
        let mut page = [0; PAGE_WORDS];
        for (word, bytes) in page.iter_mut().zip(image.as_chunks::<4>().0) {
            *word = u32::from_le_bytes(*bytes);
        }
        if self.mode() == ApicMode::X2Apic {
            let id = &mut page[(APIC_ID >> 2) as usize];
            match format {
                IdFormat::X2Apic if *id != self.config.vcpu_id => return Err(WrongApicId),
                IdFormat::X2Apic => {}
                IdFormat::Legacy => *id = self.config.vcpu_id,
            }
            page[(APIC_LDR >> 2) as usize] = x2apic_ldr(self.config.vcpu_id);
        }
        let was_deadline = self.timer_is_tsc_deadline();
        self.page = page;
        self.set_version();
        self.update_ppr();
        self.restart_timer(now, was_deadline);
        Ok(())
    }
}
