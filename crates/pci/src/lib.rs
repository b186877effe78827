//! PCI functions without sockets: requester ids, configuration space, capabilities, BARs, MSI-X.
//!
//! ```text
//!   transport (vfio-user, a VMM's bus)                    device (dsa, …)
//!        │ config and BAR accesses, reset                      │
//!        ▼                                                     │ vectors
//!   trait Function ──► ConfigSpace ──► ConfigEffects ──►  acts │
//!                      MsiX ──► Message (in process)           ▼
//!                                                        InterruptSink
//! ```
//!
//! A function is described by typed parts, and whatever a guest writes comes out as values:
//!
//! ```
//! use pci::spec::{ClassCode, PasidCapabilities};
//! use pci::{Bar, BarKind, ConfigSpace, ExpressCapability, Header, PasidCapability, SerialNumber};
//!
//! let header = Header {
//!     vendor: 0x8086,
//!     device: 0x0b25,
//!     class: ClassCode::SYSTEM_PERIPHERAL,
//!     revision: 0,
//!     subsystem_vendor: 0x8086,
//!     subsystem: 0,
//! };
//! let registers = Bar { index: 0, kind: BarKind::Memory64, prefetchable: true, size: 0x1_0000 };
//! let mut config = ConfigSpace::builder(header)
//!     .bars(&[registers])
//!     .express(0x40, ExpressCapability::new())
//!     .serial_number(0x100, SerialNumber(1))
//!     .pasid(0x230, PasidCapability(PasidCapabilities::new().with_width(20)))
//!     .build()?;
//!
//! let effects = config.write(0x236, &1u16.to_le_bytes());
//! assert!(effects.pasid.is_some_and(|change| change.to.enable()));
//! # Ok::<(), pci::LayoutError>(())
//! ```
#![no_std]

extern crate alloc;

mod config;
mod function;
mod msix;
mod requester;
pub mod spec;

pub use config::{
    AtsCapability, BarOffset, Builder, CapabilityId, Change, ConfigEffects, ConfigSpace,
    ExpressCapability, Header, LayoutError, MsiXCapability, PasidCapability, PriCapability,
    Register, SerialNumber,
};
pub use function::{Bar, BarKind, Function, InterruptSink};
pub use msix::{Message, MsiX};
pub use requester::RequesterId;
