//! Configuration space: built from typed parts, driven by one register table.

mod builder;
mod capability;
mod effects;
mod register;
mod space;
#[cfg(test)]
mod tests;

pub use builder::{Builder, LayoutError};
pub use capability::{
    AtsCapability, BarOffset, CapabilityId, ExpressCapability, Header, MsiXCapability,
    PasidCapability, PriCapability, SerialNumber,
};
pub use effects::{Change, ConfigEffects};
pub use register::Register;
pub use space::ConfigSpace;
