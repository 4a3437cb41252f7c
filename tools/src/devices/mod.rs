//! The devices of the virtual PC that KVM does not keep in the kernel, each alone in its file. What address a
//! device answers at is `machine::ports`' business.

pub mod acpi_pm;
pub mod block;
pub mod irq_line;
pub mod pci_host;
pub mod rtc;
pub mod serial;
pub mod virtio_mmio;
