//! What the IOMMU drivers of the older generations did, as code over the objects of a
//! [`Vm`](crate::Vm): it runs on any host (ADR 0004).
//!
//! | posted | here |
//! |---|---|
//! | a guest's PASID table as the VMM shadows it: `bind_gpasid` for each entry that changes | [`Bindings`] |
mod bindings;

pub use bindings::{Bindings, Change, Entry, Scope, IDLE_PASIDS, MAX_BINDINGS};
