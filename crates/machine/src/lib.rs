//! Puts a VM together: the PCI function that carries an IOMMU's register page, the ACPI table
//! that names it, the routing of the IOMMU's own interrupts, and the one memory map merged from
//! what the VM's functions report.
//!
//! ```text
//!   functions' DMA maps ─► Machine ─► Vm (one memory map)
//!   IommuFunction ──────► RegisterPage (vtd::model) ─► MessageSink ─► somebody's DMA write
//! ```
//!
//! No sockets and no threads: those are the shell's.

mod assembly;
mod carrier;
mod dmar;
mod router;

pub use assembly::{Machine, Waker};
pub use carrier::{IommuFunction, Misplaced, RegisterPage, CARRIER_BAR_ADDRESS, CARRIER_BAR_SIZE};
pub use dmar::Dmar;
pub use router::MessageSink;
