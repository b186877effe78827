//! The PASID space of a software host: a set in it for each VM.

use core::ops::RangeInclusive;
use core::time::Duration;

use ioasid::{AllocError, Config, ConfigError, Holder, HolderError, Lease, Set, SetError, SetType};
use ioasid::{Hooks, Space, Usage};

use crate::{AllocPasidError, HostError, PasidRange};

/// Tells the time since some moment: for the age of what a report lists.
pub(crate) type Clock = fn() -> Duration;

/// Under whose name a PASID is held until no DMA in flight and no cache can name it.
pub(crate) const IOTLB: &str = "iotlb";

/// How the space is cut: for the model checker, into pieces that it can look at.
#[cfg(not(loom))]
pub(crate) type Cut = ioasid::Geometry;
#[cfg(loom)]
pub(crate) type Cut = ioasid::Geometry<1, 1>;

/// The host's PASID space.
#[derive(Debug)]
pub(crate) struct HostPasids {
    space: Space<(), Cut>,
    iotlb: Holder,
    clock: Option<Clock>,
}

impl HostPasids {
    pub(crate) fn new(config: Config, clock: Option<Clock>) -> Result<Self, ConfigError> {
        let space = Space::with_geometry(config, Hooks::default())?;
        let iotlb = iotlb(&space)?;
        Ok(Self { space, iotlb, clock })
    }

    /// Sets `quota` PASIDs aside for a VM; `None` if it may have none.
    pub(crate) fn set(&self, name: &str, quota: u32) -> Result<Option<Set<(), Cut>>, HostError> {
        if quota == 0 {
            return Ok(None);
        }
        let set = self.space.create_set(name, SetType::Native, quota);
        set.map(Some).map_err(|error| match error {
            SetError::OutOfCapacity { unreserved: available, .. } => {
                HostError::QuotaUnavailable { quota, available }
            }
            _ => HostError::NoMemory,
        })
    }

    /// A PASID for the host's own use: of those that are not promised to anyone.
    pub(crate) fn alloc(&self, range: PasidRange) -> Result<Lease<(), Cut>, AllocPasidError> {
        self.space.alloc(numbers(range), ()).map_err(refusal)
    }

    pub(crate) fn usage(&self) -> Usage {
        self.space.usage()
    }

    pub(crate) fn iotlb(&self) -> &Holder {
        &self.iotlb
    }

    pub(crate) fn reader(&self) -> ioasid::Reader<(), Cut> {
        self.space.reader()
    }

    pub(crate) fn now(&self) -> Option<Duration> {
        self.clock.map(|clock| clock())
    }
}

/// The holder that stands for what may be cached, in a new space.
pub(crate) fn iotlb<G: ioasid::Shape>(space: &Space<(), G>) -> Result<Holder, ConfigError> {
    space.holder(IOTLB).map_err(|error| match error {
        HolderError::TooMany | HolderError::NoMemory => ConfigError::NoMemory,
    })
}

pub(crate) fn numbers(range: PasidRange) -> RangeInclusive<u32> {
    range.first.get()..=range.last.get()
}

pub(crate) fn refusal(error: AllocError) -> AllocPasidError {
    match error {
        AllocError::QuotaExceeded { quota } => AllocPasidError::QuotaExceeded { quota },
        AllocError::SetClosed => AllocPasidError::Closed,
        AllocError::NoMemory => AllocPasidError::NoMemory,
        _ => AllocPasidError::NoneAvailable,
    }
}
