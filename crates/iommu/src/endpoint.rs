//! The device side: endpoints, their channels, and accesses in flight.

use alloc::sync::Arc;

use mem::{Access, GuestMemory, Iova, MemoryMap, Window};
use pci::RequesterId;

use crate::{AddressSpace, DmaError};

/// A device attached to a VM. Dropping it detaches the device: no access through its channels
/// passes any more.
#[derive(Debug)]
pub struct Endpoint {
    requester: RequesterId,
    map: Arc<MemoryMap>,
}

impl Endpoint {
    /// An endpoint whose accesses are not translated, whatever their PASID.
    pub fn identity(requester: RequesterId, map: Arc<MemoryMap>) -> Self {
        Self { requester, map }
    }

    /// Who this device is on the bus.
    pub fn requester(&self) -> RequesterId {
        self.requester
    }

    /// A channel for DMA: one for each of the device's engines that work at the same time. Each
    /// has its own cache of translations, so channels never wait for each other.
    pub fn channel(&self) -> Channel {
        Channel { map: self.map.clone() }
    }

    /// Whether accesses are made with translation requests (the device's ATS is enabled): page
    /// faults are then the device's business and are not recorded.
    pub fn set_ats(&self, _enabled: bool) {}
}

/// A path for a device's DMA. Usable through `&self`; a second user of the same channel waits.
#[derive(Debug)]
pub struct Channel {
    map: Arc<MemoryMap>,
}

impl Channel {
    /// Marks an access as in flight, until the value is dropped. Hold it for one bounded piece of
    /// work (at most some tens of KiB): an invalidation is not complete before it is dropped.
    pub fn enter(&self) -> InFlight<'_> {
        InFlight { map: &self.map }
    }
}

/// An access in flight. Windows obtained from it cannot outlive it.
#[derive(Debug)]
pub struct InFlight<'c> {
    map: &'c MemoryMap,
}

impl InFlight<'_> {
    /// Translates `iova` for `access` and gives the memory there: as much of `len` bytes as one
    /// translation covers (at least one byte, unless `len` is zero).
    pub fn window(
        &self,
        _space: AddressSpace,
        iova: Iova,
        len: usize,
        access: Access,
    ) -> Result<Window<'_>, DmaError> {
        self.map
            .window(mem::Gpa(iova.0), len, access)
            .map_err(|_| DmaError::Page { address: iova, access })
    }

    /// Reads `buf.len()` bytes from `iova`. On an error nothing past the failing address was read.
    pub fn read(&self, space: AddressSpace, iova: Iova, buf: &mut [u8]) -> Result<(), DmaError> {
        let mut done = 0;
        while done < buf.len() {
            let at = Iova(iova.0.wrapping_add(done as u64));
            done +=
                self.window(space, at, buf.len() - done, Access::Read)?.read(0, &mut buf[done..]);
        }
        Ok(())
    }

    /// Writes `buf` to `iova`. On an error nothing past the failing address was written.
    pub fn write(&self, space: AddressSpace, iova: Iova, buf: &[u8]) -> Result<(), DmaError> {
        let mut done = 0;
        while done < buf.len() {
            let at = Iova(iova.0.wrapping_add(done as u64));
            done += self.window(space, at, buf.len() - done, Access::Write)?.write(0, &buf[done..]);
        }
        Ok(())
    }
}
