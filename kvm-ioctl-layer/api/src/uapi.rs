//! The kernel's KVM structures, from `kvm-bindings`, with the layout that this house relies on asserted.
//!
//! No structure is defined here that the bindings have; what they leave out or shape differently is
//! at the end.
#![allow(missing_docs)]

pub use kvm_bindings::*;

/// `struct kvm_dirty_gfn`'s flags: the entry holds a page.
pub const KVM_DIRTY_GFN_F_DIRTY: u32 = 1 << 0;
/// `struct kvm_dirty_gfn`'s flags: the caller has taken the page.
pub const KVM_DIRTY_GFN_F_RESET: u32 = 1 << 1;

/// The fixed part of `struct kvm_nested_state`: 128 bytes, which the ioctl's number counts.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct kvm_nested_state_header {
    pub flags: u16,
    pub format: u16,
    pub size: u32,
    pub hdr: [u8; 120],
}

macro_rules! layout {
    ($($t:ty = $size:literal;)*) => { $(const _: () = assert!(size_of::<$t>() == $size);)* };
    }

layout! {
    kvm_regs = 144;
    kvm_sregs = 312;
    kvm_sregs2 = 320;
    kvm_segment = 24;
    kvm_dirty_gfn = 16;
    kvm_fpu = 416;
    kvm_xsave = 4096;
    kvm_xcrs = 392;
    kvm_msr_entry = 16;
    kvm_msrs = 8;
    kvm_cpuid2 = 8;
    kvm_cpuid_entry2 = 40;
    kvm_lapic_state = 1024;
    kvm_vcpu_events = 64;
    kvm_debugregs = 128;
    kvm_guest_debug = 72;
    kvm_translation = 24;
    kvm_mp_state = 4;
    kvm_irqchip = 520;
    kvm_pit_state2 = 112;
    kvm_clock_data = 48;
    kvm_userspace_memory_region = 32;
    kvm_userspace_memory_region2 = 160;
    kvm_irq_routing_entry = 48;
    kvm_ioeventfd = 64;
    kvm_irqfd = 32;
    kvm_msi = 32;
    kvm_enable_cap = 104;
    kvm_nested_state_header = 128;
}

const _: () = {
    // KVM api, section 5; and what today's header added: immediate_exit, flags, the register block at 2048.
    assert!(core::mem::offset_of!(kvm_run, request_interrupt_window) == 0);
    assert!(core::mem::offset_of!(kvm_run, immediate_exit) == 1);
    assert!(core::mem::offset_of!(kvm_run, exit_reason) == 8);
    assert!(core::mem::offset_of!(kvm_run, ready_for_interrupt_injection) == 12);
    assert!(core::mem::offset_of!(kvm_run, if_flag) == 13);
    assert!(core::mem::offset_of!(kvm_run, flags) == 14);
    assert!(core::mem::offset_of!(kvm_run, cr8) == 16);
    assert!(core::mem::offset_of!(kvm_run, apic_base) == 24);
    assert!(core::mem::offset_of!(kvm_run, __bindgen_anon_1) == 32);
    assert!(core::mem::offset_of!(kvm_run, kvm_valid_regs) == 288);
    assert!(core::mem::offset_of!(kvm_run, kvm_dirty_regs) == 296);
    assert!(core::mem::offset_of!(kvm_run, s) == 304);
    assert!(size_of::<kvm_run>() == 2352);
};
