//! The PASID space of a software host, and how much of it is promised to whom.

use alloc::sync::Arc;
use core::ops::RangeInclusive;
use core::time::Duration;

use ioasid::{AllocError, Config, ConfigError, Lease, Space};

use crate::sync::{AtomicBool, AtomicU64, Mutex, Ordering};
use crate::{AllocPasidError, HostError, PasidRange};

/// Tells the time since some moment: for the age of what a report lists.
pub(crate) type Clock = fn() -> Duration;

/// The host's PASID space.
#[derive(Debug)]
pub(crate) struct HostPasids {
    space: Space<HostNumber>,
    capacity: u32,
    /// Sum of all promises; never above `capacity`.
    promised: Mutex<u32>,
    owners: AtomicU64,
    clock: Option<Clock>,
}

/// What the host's space knows of a number.
#[derive(Debug)]
pub(crate) struct HostNumber {
    owner: Owner,
    /// Set when the number was taken from its owner, which is before it comes back to the space.
    revoked: AtomicBool,
}

impl HostNumber {
    /// Takes the number from its owner.
    pub(crate) fn revoke(&self) {
        self.revoked.store(true, Ordering::Release);
    }

    /// Whether `owner` may use the number.
    pub(crate) fn is_granted_to(&self, owner: Owner) -> bool {
        self.owner == owner && !self.revoked.load(Ordering::Acquire)
    }
}

/// Tells those apart that have PASIDs of one host. Not a permission: that is the [`Promise`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Owner(u64);

impl HostPasids {
    pub(crate) fn new(config: Config, clock: Option<Clock>) -> Result<Self, ConfigError> {
        let space = Space::new(config)?;
        let capacity = space.usage().capacity;
        Ok(Self { space, capacity, promised: Mutex::new(0), owners: AtomicU64::new(0), clock })
    }

    /// Sets `quota` PASIDs aside for a new owner.
    pub(crate) fn promise(self: &Arc<Self>, quota: u32) -> Result<Promise, HostError> {
        let mut promised = self.promised.lock();
        let available = self.capacity - *promised;
        if quota > available {
            return Err(HostError::QuotaUnavailable { quota, available });
        }
        *promised += quota;
        let owner = Owner(self.owners.fetch_add(1, Ordering::Relaxed));
        Ok(Promise { host: self.clone(), owner, quota })
    }

    /// Capacity, and how much of it is promised.
    pub(crate) fn promised(&self) -> (u32, u32) {
        (self.capacity, *self.promised.lock())
    }

    /// PASIDs that have a lease, and those that wait for a look-up that may have found them.
    pub(crate) fn out(&self) -> (u32, u32) {
        let usage = self.space.usage();
        (usage.live, usage.parked)
    }

    pub(crate) fn now(&self) -> Option<Duration> {
        self.clock.map(|clock| clock())
    }
}

/// PASIDs of a host's space set aside for one owner; given back when dropped.
#[derive(Debug)]
pub(crate) struct Promise {
    host: Arc<HostPasids>,
    owner: Owner,
    quota: u32,
}

impl Promise {
    pub(crate) fn quota(&self) -> u32 {
        self.quota
    }

    pub(crate) fn now(&self) -> Option<Duration> {
        self.host.now()
    }

    /// What it takes to allocate.
    pub(crate) fn source(&self) -> Source {
        Source { host: self.host.clone(), owner: self.owner }
    }
}

impl Drop for Promise {
    fn drop(&mut self) {
        *self.host.promised.lock() -= self.quota;
    }
}

/// Takes numbers from the host's space for one owner, who counts them.
#[derive(Debug)]
pub(crate) struct Source {
    host: Arc<HostPasids>,
    owner: Owner,
}

impl Source {
    pub(crate) fn owner(&self) -> Owner {
        self.owner
    }

    pub(crate) fn alloc(&self, range: PasidRange) -> Result<Lease<HostNumber>, AllocPasidError> {
        let number = HostNumber { owner: self.owner, revoked: AtomicBool::new(false) };
        self.host.space.alloc(numbers(range), number).map_err(refusal)
    }

    /// A reader of the host's numbers.
    pub(crate) fn reader(&self) -> ioasid::Reader<HostNumber> {
        self.host.space.reader()
    }
}

pub(crate) fn numbers(range: PasidRange) -> RangeInclusive<u32> {
    range.first.get()..=range.last.get()
}

pub(crate) fn refusal(error: AllocError) -> AllocPasidError {
    match error {
        AllocError::NoMemory => AllocPasidError::NoMemory,
        _ => AllocPasidError::NoneAvailable,
    }
}
