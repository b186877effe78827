//! The structures of the user API, byte for byte. Numbers have the machine's own byte order: the
//! two ends share a machine.
//!
//! `posted` is what Linux has or what a series for it proposed; `own` is what the posted
//! structures cannot say. Fields that a host end fills in are marked *out*; what a caller puts
//! there does not matter.

mod own;
mod posted;

pub use own::{
    AttachDevice, Completion, CountersArgument, CreateVm, OwnCacheInvalidate, OwnPasidRequest,
    ReadFault, SetHandle, StageTwoArgument, Ticketed, NAME_BYTES,
};
pub use posted::{
    AddressScope, CacheInvalidate, CacheInvalidateInfo, DmaFault, MapDma, PasidRequest, PasidScope,
    UnmapDma,
};

/// Values of fields.
pub mod flags {
    pub use super::own::flags::*;
    pub use super::posted::flags::*;
}

#[cfg(test)]
mod tests;
