//! Intel VT-d: the layouts of the specification, a model of a remapping unit, and the guest's end.
//!
//! ```text
//!   driver ─► trait Registers ─┐
//!                              ▼
//!   MMIO read, write ──────► Model ─► Effects: messages to send, "poll me"
//!                            │ ▲
//!  contexts, scopes, PASIDs, │ │ faults, page requests,
//!             page responses ▼ │ tickets
//!                       iommu::Vm ── ContextSource ──► root and context tables in guest memory
//! ```
//!
//! [`spec`] holds what the specification lays down: the register table, bit fields, table entries,
//! descriptors and fault codes. The `model` feature adds the device side. It has no sockets,
//! threads or clocks: it is driven by calls, and what it wants done leaves as values. The `driver`
//! feature adds what a guest's operating system needs to take its PASIDs from its host, and to
//! answer what devices ask for. Each compiles without the other; both are on by default.
//!
//! Section numbers are those of revision 5.10 of the specification (D51397-018) where no other is
//! named.
#![no_std]

extern crate alloc;
#[cfg(test)]
extern crate std;

#[cfg(feature = "driver")]
pub mod driver;
#[cfg(feature = "model")]
pub mod model;
pub mod spec;
