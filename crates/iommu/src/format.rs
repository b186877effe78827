//! Structures in guest memory that the engine walks itself, one module for each architecture.

pub mod smmuv3;
pub mod vtd;
