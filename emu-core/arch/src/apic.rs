//! Register offsets of the local APIC and the IOAPIC (SDM vol. 3A, table 10-1; 82093AA data sheet).
#![allow(missing_docs)]

/// Where the local APIC's page lies at reset.
pub const APIC_DEFAULT_BASE: u64 = 0xfee0_0000;
/// Where the IOAPIC lies.
pub const IOAPIC_BASE: u64 = 0xfec0_0000;

/// IA32_APIC_BASE: this is the bootstrap processor.
pub const APIC_BASE_BSP: u64 = 1 << 8;
/// IA32_APIC_BASE: x2APIC mode.
pub const APIC_BASE_X2APIC: u64 = 1 << 10;
/// IA32_APIC_BASE: global enable.
pub const APIC_BASE_ENABLE: u64 = 1 << 11;

pub const APIC_ID: u32 = 0x20;
pub const APIC_VERSION: u32 = 0x30;
pub const APIC_TPR: u32 = 0x80;
pub const APIC_APR: u32 = 0x90;
pub const APIC_PPR: u32 = 0xa0;
pub const APIC_EOI: u32 = 0xb0;
pub const APIC_RRD: u32 = 0xc0;
pub const APIC_LDR: u32 = 0xd0;
pub const APIC_DFR: u32 = 0xe0;
pub const APIC_SVR: u32 = 0xf0;
pub const APIC_ISR: u32 = 0x100;
pub const APIC_TMR: u32 = 0x180;
pub const APIC_IRR: u32 = 0x200;
pub const APIC_ESR: u32 = 0x280;
pub const APIC_LVT_CMCI: u32 = 0x2f0;
pub const APIC_ICR_LOW: u32 = 0x300;
pub const APIC_ICR_HIGH: u32 = 0x310;
pub const APIC_LVT_TIMER: u32 = 0x320;
pub const APIC_LVT_THERMAL: u32 = 0x330;
pub const APIC_LVT_PERF: u32 = 0x340;
pub const APIC_LVT_LINT0: u32 = 0x350;
pub const APIC_LVT_LINT1: u32 = 0x360;
pub const APIC_LVT_ERROR: u32 = 0x370;
pub const APIC_TIMER_INITIAL: u32 = 0x380;
pub const APIC_TIMER_CURRENT: u32 = 0x390;
pub const APIC_TIMER_DIVIDE: u32 = 0x3e0;
pub const APIC_SELF_IPI: u32 = 0x3f0;

pub const LVT_MASKED: u32 = 1 << 16;
pub const LVT_TIMER_PERIODIC: u32 = 1 << 17;
pub const LVT_TIMER_TSC_DEADLINE: u32 = 2 << 17;

/// Delivery modes, as in the ICR, the LVT and redirection entries.
pub const DELIVERY_FIXED: u32 = 0;
pub const DELIVERY_LOWEST: u32 = 1;
pub const DELIVERY_SMI: u32 = 2;
pub const DELIVERY_NMI: u32 = 4;
pub const DELIVERY_INIT: u32 = 5;
pub const DELIVERY_STARTUP: u32 = 6;
pub const DELIVERY_EXTINT: u32 = 7;
