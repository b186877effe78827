//! What a VM asks of its host about PASIDs, and what it may be told.

use super::GuestPasid;

/// PASIDs that a VM may have out at a time unless its configuration says otherwise. As many VMs as
/// a host takes, with this each, fit into the PASID space.
pub const DEFAULT_QUOTA: u32 = 1000;

/// How a VM's numbers relate to the host's.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum Numbering {
    /// A guest PASID is a host PASID of the same number: no two VMs have the same one.
    #[default]
    Identity,
    /// A guest PASID is a number of the VM's own (in the words of the kernel's ID allocator: the
    /// SPID of a host PASID). Two VMs may use the same one at the same time.
    Private,
}

/// A VM's PASIDs at one moment. `live + parked` never exceeds `quota`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct PasidUsage {
    /// How many may be out at a time.
    pub quota: u32,
    /// Granted.
    pub live: u32,
    /// Given back, but something may still name them: a DMA in flight, or a cache.
    pub parked: u32,
}

/// Why a VM is not granted a PASID. Nothing has changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum AllocPasidError {
    /// As many of the VM's PASIDs are out (live or parked) as its quota allows.
    #[error("all {quota} PASIDs of the VM's quota are out")]
    QuotaExceeded {
        /// The quota.
        quota: u32,
    },
    /// Every PASID in the range is taken, by whomever, or never handed out.
    #[error("no PASID is available in that range")]
    NoneAvailable,
    /// The VM is closed.
    #[error("the VM is closed")]
    Closed,
    /// The host has no memory for it.
    #[error("the host has no memory for another PASID")]
    NoMemory,
}

/// Why a PASID is not taken back. Nothing has changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum FreePasidError {
    /// This VM has no such PASID: nobody has, another VM has, or it was given back already.
    #[error("PASID {0} is not granted to this VM")]
    NotGranted(GuestPasid),
    /// The VM is closed, which gave back all that it had.
    #[error("the VM is closed")]
    Closed,
}
