//! Virtual commands for several callers, and as the way to the host of a guest's PASID allocator.

use iommu::pasid::{self, PasidCommands};
use iommu::{Pasid, PasidRange};
use spin::mutex::SpinMutex;

use super::{AllocError, Clock, CommandError, FreeError, Registers, VirtualCommands};

/// [`VirtualCommands`] behind a lock.
///
/// Callers spin while another's command is under way, as they would for a command of their own:
/// each command ahead of theirs has its deadline.
#[derive(Debug)]
pub struct SharedVirtualCommands<R, C>(SpinMutex<VirtualCommands<R, C>>);

impl<R, C> SharedVirtualCommands<R, C> {
    /// Shares the commands of a unit.
    pub const fn new(commands: VirtualCommands<R, C>) -> Self {
        Self(SpinMutex::new(commands))
    }
}

impl<R: Registers + Send, C: Clock + Send> PasidCommands for SharedVirtualCommands<R, C> {
    fn interface(&self) -> &'static str {
        "VT-d virtual commands"
    }

    /// The range is the caller's to check, who knows which numbers are in use: one that is in use
    /// and not in the range must not be given back.
    fn alloc(&self, _range: PasidRange) -> Result<Pasid, pasid::CommandError> {
        Ok(self.0.lock().alloc(PasidRange::ALL)?)
    }

    fn free(&self, pasid: Pasid) -> Result<(), pasid::CommandError> {
        Ok(self.0.lock().free(pasid)?)
    }
}

impl From<AllocError> for pasid::CommandError {
    fn from(error: AllocError) -> Self {
        match error {
            AllocError::NoneAvailable => Self::NoneAvailable,
            AllocError::TooWide(number) => Self::NoPasid { number },
            AllocError::OutOfRange { got, .. } => Self::NoPasid { number: got.get().into() },
            AllocError::Command(error) => error.into(),
        }
    }
}

impl From<FreeError> for pasid::CommandError {
    fn from(error: FreeError) -> Self {
        match error {
            FreeError::InvalidPasid(_) => Self::NotGranted,
            FreeError::Command(error) => error.into(),
        }
    }
}

impl From<CommandError> for pasid::CommandError {
    fn from(error: CommandError) -> Self {
        match error {
            CommandError::Busy { .. } | CommandError::Timeout { .. } => Self::Deadline,
            CommandError::UnknownStatus { code, .. } => Self::Status { status: code.into() },
            CommandError::Absent | CommandError::Undefined(_) => Self::Broken,
        }
    }
}
