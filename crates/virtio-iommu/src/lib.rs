//! virtio-iommu: the layouts, a model of the device and a driver, with PASID allocation.
//!
//! ```text
//!   driver::Driver                                   model::Model ──► iommu::Vm
//!     │  Transport: features, status, queue, notify    ▲  ▲             alloc_pasid
//!     ├────────────────────────────────────────────────┘  │             free_pasid
//!     └── GuestMemory: descriptors, available, used ──────┘
//! ```
//!
//! [`spec`] holds what VIRTIO 1.2 lays down, and the numbers of our extension: requests that
//! allocate and free PASIDs, each revision behind a feature bit of its own. The features `model`
//! and `driver` add the two ends. Neither has threads, sockets or clocks.
//!
//! The device has no domains: it does not offer MAP_UNMAP, and answers ATTACH, DETACH, MAP and
//! UNMAP with UNSUPP. What else it refuses is in `docs/devices/virtio-iommu.md`.
#![no_std]

extern crate alloc;
#[cfg(test)]
extern crate std;

#[cfg(feature = "driver")]
pub mod driver;
#[cfg(feature = "model")]
pub mod model;
pub mod spec;
