//! The IOMMU core: hosts, VMs, device contexts, PASID tables, the translation engine,
//! invalidation and faults.
//!
//! ```text
//!   IOMMU model (vtd, …)                         endpoint (dsa, …)
//!        │ contexts, invalidations, faults            │ DMA (PASID, address, access)
//!        ▼                                            ▼
//!   trait Vm ◄──────── SoftwareVm ────────► Endpoint ─► Channel ─► InFlight ─► Window
//!        ▲                  │                             │
//!   trait Host         memory map               context, PASID entries, IOTLB
//! ```
#![no_std]

extern crate alloc;
#[cfg(feature = "std")]
extern crate std;

mod context;
mod dma;
mod endpoint;
mod fault;
mod host;
mod invalidation;
mod pasid;

pub use context::{ContextFault, ContextSource, DeviceContext, PasidTable, StageTwo, TableCaps};
pub use dma::{AddressSpace, DmaError};
pub use endpoint::{Channel, Endpoint, InFlight};
pub use fault::{Fault, FaultReason, Stage};
pub use host::{AttachError, Counters, Host, HostError, Vm, VmConfig};
pub use invalidation::{Invalidation, PageRange, Ticket};
pub use pasid::{DomainId, Pasid};
