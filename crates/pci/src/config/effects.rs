//! What a write to configuration space meant.

use crate::spec::{AtsControl, Command, DeviceControl, MsiXControl, PasidControl, PriControl};

/// A register whose value a write changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Change<T> {
    /// What it was.
    pub from: T,
    /// What it is.
    pub to: T,
}

/// What a write changed, for the function to act on once its lock is released. Writing the value
/// that a register already holds is no change.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[must_use]
pub struct ConfigEffects {
    /// Memory decoding or bus mastering, among others.
    pub command: Option<Change<Command>>,
    /// Some BAR's address; ask for it with [`bar_address`](super::ConfigSpace::bar_address).
    pub bars: bool,
    /// MSI-X was enabled, disabled, masked or unmasked; tell the [`MsiX`](crate::MsiX).
    pub msix: Option<Change<MsiXControl>>,
    /// The power state, 0 (D0) or 3 (D3hot).
    pub power: Option<Change<u8>>,
    /// Device control.
    pub device_control: Option<Change<DeviceControl>>,
    /// ATS was enabled or disabled, or its smallest unit set.
    pub ats: Option<Change<AtsControl>>,
    /// Page requests were enabled or disabled.
    pub pri: Option<Change<PriControl>>,
    /// Page request credits.
    pub pri_allocation: Option<Change<u32>>,
    /// The page request interface is to forget its state: 1 was written to its reset bit while it
    /// was, or became, disabled.
    pub pri_reset: bool,
    /// PASIDs were enabled or disabled.
    pub pasid: Option<Change<PasidControl>>,
    /// The guest asks for a function-level reset: the function resets itself, and with it its
    /// configuration space by [`reset`](super::ConfigSpace::reset).
    pub function_reset: bool,
}

impl ConfigEffects {
    /// Bus mastering, if it was turned on or off.
    pub fn bus_master(&self) -> Option<bool> {
        let Change { from, to } = self.command?;
        (from.bus_master() != to.bus_master()).then(|| to.bus_master())
    }

    /// Memory decoding, if it was turned on or off.
    pub fn memory_space(&self) -> Option<bool> {
        let Change { from, to } = self.command?;
        (from.memory_space() != to.memory_space()).then(|| to.memory_space())
    }
}
