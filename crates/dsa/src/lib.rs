//! Intel Data Streaming Accelerator (DSA) 1.0: its layouts ([`spec`]), usable from a driver or a
//! guest program, and with the feature `model` the device itself: a PCI function with work queues
//! and engines that reach memory by (PASID, address) through an IOMMU.
//!
//! Section names in this crate are those of the Intel DSA architecture specification (341204).
//! `docs/devices/dsa.md` says what the device advertises and what it refuses.
#![no_std]

#[cfg(feature = "model")]
extern crate alloc;

#[cfg(feature = "model")]
pub mod model;
pub mod spec;
