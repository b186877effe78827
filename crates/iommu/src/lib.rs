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

mod cache;
mod channel;
mod context;
mod counters;
mod dma;
mod endpoint;
mod engine;
mod fault;
pub mod format;
mod host;
mod in_flight;
mod invalidation;
mod pasid;
#[cfg(feature = "sabotage")]
pub mod sabotage;
#[cfg(not(feature = "sabotage"))]
mod sabotage;
mod slot;
mod software;
mod sync;

pub use context::{ContextFault, ContextSource, DeviceContext, PasidTable, StageTwo, TableCaps};
pub use dma::{AddressSpace, DmaError};
pub use endpoint::{Channel, Endpoint};
pub use engine::MAX_TABLE_ACCESSES;
pub use fault::{Fault, FaultReason, Stage};
pub use host::{AttachError, Counters, Host, HostError, Vm, VmConfig};
pub use in_flight::{InFlight, IoSlice, UPDATE_ATTEMPTS, WINDOW_LIMIT};
pub use invalidation::{Invalidation, PageRange, Ticket};
pub use pasid::{DomainId, Pasid};
pub use software::{SoftwareHost, SoftwareVm, FAULT_QUEUE_LIMIT, MAX_DEVICES, MAX_VMS};
