//! How a guest asks its host for PASIDs.

use super::{Pasid, PasidRange};

/// The guest's end of a paravirtual interface to the host's PASIDs, such as VT-d's virtual
/// commands or a request queue of virtio-iommu: what a guest's IOMMU driver implements.
///
/// A call may take as long as the driver's deadline for one command; none is made with a lock of
/// this crate held. A driver that can do one command at a time has a lock of its own.
pub trait PasidCommands: Send + Sync {
    /// Which interface it is, for people.
    fn interface(&self) -> &'static str;

    /// Asks the host for a PASID in `range`. Some interfaces cannot say the range: what the host
    /// gives is checked by whoever called.
    fn alloc(&self, range: PasidRange) -> Result<Pasid, CommandError>;

    /// Gives a PASID back to the host.
    fn free(&self, pasid: Pasid) -> Result<(), CommandError>;
}

/// Why a command to the host failed. All but the first two are the host's fault.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum CommandError {
    /// The host has no PASID for this guest: its quota is out, or the range.
    #[error("the host has no PASID for this guest")]
    NoneAvailable,
    /// The host says that this PASID is not this guest's.
    #[error("the host says that the PASID is not this guest's")]
    NotGranted,
    /// The host answered with a number that is no PASID.
    #[error("the host gave {number:#x}, which is no PASID")]
    NoPasid {
        /// What it gave.
        number: u64,
    },
    /// The host did not answer before the driver's deadline. Whether it did what was asked is
    /// not known.
    #[error("the host did not answer in time")]
    Deadline,
    /// The host answered with a status that means nothing for this command.
    #[error("the host answered with status {status:#x}")]
    Status {
        /// The status.
        status: u32,
    },
    /// The interface is gone or broken.
    #[error("the interface to the host does not work any more")]
    Broken,
}
