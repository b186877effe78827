//! Who has which PASIDs: a view for people and programs that watch a host.

use alloc::string::String;
use alloc::vec::Vec;
use core::time::Duration;

use super::{DomainId, GuestPasid, HostPasid, Numbering, PasidUsage};

/// A host's PASID space at one moment.
///
/// Each VM is looked at on its own, so numbers of different VMs may be of slightly different
/// moments; those of one VM fit together.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct PasidReport {
    /// PASIDs that may be out at a time.
    pub capacity: u32,
    /// Of those, set aside: the sum of the VMs' quotas, and what the host itself has out.
    pub promised: u32,
    /// PASIDs of the space that are out and live, whoever has them.
    pub live: u32,
    /// PASIDs of the space that were given back and that something may still name.
    pub parked: u32,
    /// The VMs that have a quota: those that are closed stay until their last PASID is released.
    pub vms: Vec<VmPasids>,
}

/// The PASIDs of one VM.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct VmPasids {
    /// The VM's name.
    pub name: String,
    /// How its numbers relate to the host's.
    pub numbering: Numbering,
    /// Whether requests with a PASID that was not granted are refused.
    pub enforced: bool,
    /// Whether the VM is closed, and only waits for its PASIDs to drain.
    pub closed: bool,
    /// Its quota, and how much of it is out.
    pub usage: PasidUsage,
    /// The PASIDs: live ones by guest number, then parked ones, the oldest first.
    pub entries: Vec<PasidEntry>,
}

/// One PASID of a VM.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PasidEntry {
    /// As the VM numbers it.
    pub guest: GuestPasid,
    /// As the host numbers it.
    pub host: HostPasid,
    /// What it may be used for.
    pub state: GrantState,
    /// What keeps its number from being granted again, by name, as the space counts it.
    pub holders: Vec<String>,
    /// The domain in which a device uses it, if one has its table entry cached and is not in the
    /// middle of an access.
    pub domain: Option<DomainId>,
    /// How long it has been in this state; `None` if the host has no clock.
    pub age: Option<Duration>,
}

/// What a PASID of a VM may be used for.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum GrantState {
    /// Granted.
    Live,
    /// Given back, but something may still name it.
    Parked,
}

/// What is wrong with a host's books.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum BooksError {
    /// They could not be read.
    #[error(transparent)]
    Unreadable(#[from] ioasid::ReportError),
    /// They do not add up.
    #[error(transparent)]
    Imbalance(#[from] ioasid::Imbalance),
}
