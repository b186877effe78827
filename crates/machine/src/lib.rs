//! Puts a VM together: one [`iommu::Vm`], one VT-d unit, one memory map, and the messages between
//! them.
//!
//! ```text
//!   transport ── config, BAR 0 ──► IommuFunction ─┐
//!   transport ── DMA maps ───────► Member ──────┐ │          ┌─► MessageSink ─► guest's APIC
//!                                               ▼ ▼          │
//!   a thread of the shell ── poll, woken ──► Machine ────────┤
//!                                               │            └─► waker
//!                                               ▼
//!                                            iommu::Vm ◄── devices' DMA
//! ```
//!
//! There are no sockets and no threads here: a shell calls [`Machine::poll`] from a thread of its
//! own whenever its waker was called, and says over [`MessageSink`] how an interrupt reaches the
//! guest.

mod acpi;
mod function;
mod machine;
mod shared;

pub use acpi::{Dmar, DmarError};
pub use function::{BaseMismatch, IommuFunction, BAR_SIZE, CLASS, DEVICE_ID, VENDOR_ID};
pub use machine::{Machine, MachineConfig, MachineError, MapError, Member, Next};
pub use shared::{MessageSink, Waker};
