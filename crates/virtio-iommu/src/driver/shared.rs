//! A driver for several callers, and as the way to the host of a guest's PASID allocator.

use iommu::pasid::{CommandError, PasidCommands};
use iommu::{Pasid, PasidRange};
use mem::GuestMemory;
use spin::mutex::SpinMutex;

use super::{Clock, Driver, Error, Transport};
use crate::spec::RequestStatus;

/// A [`Driver`] behind a lock.
///
/// Callers spin while another's request is under way, as they would for a request of their own:
/// each request ahead of theirs has its deadline.
#[derive(Debug)]
pub struct SharedDriver<T, M, C>(SpinMutex<Driver<T, M, C>>);

impl<T, M, C> SharedDriver<T, M, C> {
    /// Shares a driver.
    pub const fn new(driver: Driver<T, M, C>) -> Self {
        Self(SpinMutex::new(driver))
    }

    /// The driver, when nobody shares it any more.
    pub fn into_inner(self) -> Driver<T, M, C> {
        self.0.into_inner()
    }
}

impl<T, M, C> PasidCommands for SharedDriver<T, M, C>
where
    T: Transport + Send,
    M: GuestMemory + Send,
    C: Clock + Send,
{
    fn interface(&self) -> &'static str {
        "virtio-iommu requests"
    }

    fn alloc(&self, range: PasidRange) -> Result<Pasid, CommandError> {
        match self.0.lock().alloc(range) {
            // The caller knows which numbers are in use, and judges.
            Err(Error::OutOfRange(pasid)) => Ok(pasid),
            Err(Error::Refused(RequestStatus::NoMemory | RequestStatus::NotFound)) => {
                Err(CommandError::NoneAvailable)
            }
            other => Ok(other?),
        }
    }

    fn free(&self, pasid: Pasid) -> Result<(), CommandError> {
        match self.0.lock().free(pasid) {
            Err(Error::Refused(RequestStatus::NotFound)) => Err(CommandError::NotGranted),
            other => Ok(other?),
        }
    }
}

/// What a failure means whichever the request was.
impl From<Error> for CommandError {
    fn from(error: Error) -> Self {
        match error {
            Error::Refused(status) => Self::Status { status: status as u32 },
            Error::UnknownStatus(status) => Self::Status { status: status.into() },
            Error::OutOfRange(pasid) => Self::NoPasid { number: pasid.get().into() },
            Error::BadNumber(number) => Self::NoPasid { number: number.into() },
            Error::TimedOut { .. } | Error::Stuck => Self::Deadline,
            Error::NeedsReset | Error::Unanswered | Error::Broken(_) | Error::Memory(_) => {
                Self::Broken
            }
        }
    }
}
