//! Intel VT-d: the layouts of the specification, and a model of a remapping unit.
//!
//! ```text
//!   MMIO read, write ─► Model ─► Effects: messages to send, "poll me"
//!                         │ ▲
//!    contexts, scopes ▼   │ faults, tickets
//!                      iommu::Vm ── ContextSource ──► root and context tables in guest memory
//! ```
//!
//! [`spec`] holds what the specification lays down: the register table, bit fields, table entries,
//! descriptors and fault codes. The `model` feature (on by default) adds the device side. It has
//! no sockets, threads or clocks: it is driven by calls, and what it wants done leaves as values.
//!
//! Section numbers are those of revision 5.10 of the specification (D51397-018).
#![no_std]

extern crate alloc;
#[cfg(test)]
extern crate std;

#[cfg(feature = "model")]
pub mod model;
pub mod spec;
