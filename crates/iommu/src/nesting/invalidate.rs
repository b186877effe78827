//! What a guest wants forgotten, in the generic form of the posted series.

mod smmu;

use alloc::vec::Vec;

use mem::{Iova, Range};
use pci::RequesterId;
pub use smmu::MAX_ADDRESS_COMMANDS;

use super::{Domain, Scope};
use crate::{
    GuestPasid, Hardware, HwptId, Invalidation, ObjectError, StageOneInvalidation, Ticket, Vm,
};

/// Least granule of an invalidation by address, and what a VT-d one is a multiple of.
const PAGE_SIZE: u64 = 0x1000;

bitflags::bitflags! {
    /// Caches (`IOMMU_CACHE_INV_TYPE_*`).
    #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
    pub struct Caches: u8 {
        /// The IOTLB.
        const IOTLB = 1;
        /// The device's own TLB.
        const DEV_IOTLB = 2;
        /// The cache of PASID-table entries.
        const PASID = 4;
    }
}

/// `iommu_cache_invalidate_info`, decoded.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CacheInvalidate {
    /// Which caches.
    pub caches: Caches,
    /// How much of them.
    pub granularity: Granularity,
}

/// How much of a cache.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Granularity {
    /// All that is the domain's.
    Domain,
    /// What is one address space's. At least one of the two must say which.
    Pasid {
        /// The PASID.
        pasid: Option<GuestPasid>,
        /// The architecture's tag (SMMUv3: ASID).
        archid: Option<u32>,
    },
    /// Translations of a range of addresses; with neither number, in all address spaces.
    Address {
        /// The PASID.
        pasid: Option<GuestPasid>,
        /// The architecture's tag (SMMUv3: ASID).
        archid: Option<u32>,
        /// Whether only last-level entries changed.
        leaf: bool,
        /// The first address, a multiple of the granule.
        address: Iova,
        /// Size of the pages in bytes, a power of two.
        granule: u64,
        /// Number of pages, from 1.
        count: u64,
    },
}

/// Why an invalidation is refused; nothing was forgotten, except with
/// [`Object`](Self::Object), where part of it may have been.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum InvalidateError {
    /// The device is not in the domain.
    #[error("device {0} is not in the domain")]
    NoDevice(RequesterId),
    /// No cache is named.
    #[error("no cache is named")]
    NoCache,
    /// One of the caches is not invalidated by that granularity.
    #[error("no such granularity for {0:?}")]
    Combination(Caches),
    /// An address space is to be named, and none is.
    #[error("neither a PASID nor an ID of the architecture")]
    NoAddressSpace,
    /// The IOMMU's commands cannot say that: PASIDs, the PASID cache and device TLBs to an SMMUv3,
    /// an ID of the architecture to a VT-d.
    #[error("the IOMMU has no such invalidation")]
    NotForHardware,
    /// No such ID of the architecture can be.
    #[error("ID {0} of the architecture is too large")]
    ArchId(u32),
    /// The granule is no page size of the IOMMU, nor one that can be split into such.
    #[error("a granule of {0} bytes")]
    Granule(u64),
    /// The address is no multiple of the granule, or the range is empty or passes the last address.
    #[error("no such range of addresses")]
    Range,
    /// That PASID of the device is not bound.
    #[error("PASID {1} of device {0} is not bound")]
    NotBound(RequesterId, GuestPasid),
    /// The host refused.
    #[error(transparent)]
    Object(#[from] ObjectError),
}

impl CacheInvalidate {
    /// Checks what can be checked without knowing the IOMMU: the caches and their granularity.
    fn check(&self) -> Result<(), InvalidateError> {
        let allowed = match self.granularity {
            Granularity::Domain => Caches::IOTLB | Caches::PASID,
            Granularity::Pasid { .. } => Caches::all(),
            Granularity::Address { .. } => Caches::IOTLB | Caches::DEV_IOTLB,
        };
        if self.caches.is_empty() {
            return Err(InvalidateError::NoCache);
        }
        if !allowed.contains(self.caches) {
            return Err(InvalidateError::Combination(self.caches.difference(allowed)));
        }
        match self.granularity {
            Granularity::Pasid { pasid: None, archid: None } => {
                Err(InvalidateError::NoAddressSpace)
            }
            _ => Ok(()),
        }
    }
}

impl<V: Vm> Domain<V> {
    /// Forgets what is cached of a guest's stage 1 for a device; nothing of it is in use any more
    /// once the ticket is complete. More may be forgotten than was asked for.
    ///
    /// # Errors
    ///
    /// See [`InvalidateError`]: whatever is unknown or cannot be carried out is an error.
    pub fn cache_invalidate(
        &self,
        device: RequesterId,
        what: &CacheInvalidate,
    ) -> Result<Ticket, InvalidateError> {
        let (Ok(base), Ok(member)) = (self.base(), self.member(device)) else {
            return Err(InvalidateError::NoDevice(device));
        };
        what.check()?;
        match (&base.hardware, base.viommu) {
            (Hardware::Smmuv3(caps), Some(viommu)) => {
                let commands = smmu::commands(what, caps)?;
                Ok(self.vm.invalidate_viommu(viommu, &commands).map_err(|(_, error)| error)?)
            }
            (Hardware::Smmuv3(_), None) => Err(ObjectError::NotSupported.into()),
            (Hardware::Vtd(_), _) => {
                let table = member.own.or(self.current.table());
                self.invalidate_vtd(device, table, what)
            }
        }
    }

    fn invalidate_vtd(
        &self,
        device: RequesterId,
        table: Option<HwptId>,
        what: &CacheInvalidate,
    ) -> Result<Ticket, InvalidateError> {
        let (pasid, archid, pages) = match what.granularity {
            Granularity::Domain => (None, None, StageOneInvalidation::All),
            Granularity::Pasid { pasid, archid } => (pasid, archid, StageOneInvalidation::All),
            Granularity::Address { pasid, archid, leaf, address, granule, count } => {
                let range = pages(address, granule, count)?;
                (pasid, archid, StageOneInvalidation::Pages { range, leaf_only: leaf })
            }
        };
        // A domain ID of the guest's means nothing to the host, which gives its own.
        if archid.is_some() {
            return Err(InvalidateError::NotForHardware);
        }
        let mut entries = Vec::with_capacity(2);
        if what.caches.contains(Caches::PASID) {
            entries.push(StageOneInvalidation::Entry);
        }
        // The host's invalidation of the IOTLB includes the device's.
        if what.caches.intersects(Caches::IOTLB | Caches::DEV_IOTLB) {
            entries.push(pages);
        }
        if let Some(table) = table {
            // All PASIDs of the table, whichever is meant: the host knows them by the table alone.
            return Ok(self.vm.invalidate_hwpt(table, &entries).map_err(|(_, error)| error)?);
        }
        let scope = match pasid {
            Some(_) => Scope::Entry(device, pasid),
            None => Scope::Device(device),
        };
        let pasids = &self.base().map_err(|_| InvalidateError::NoDevice(device))?.pasids;
        match (pasids.invalidate(scope, &entries), pasid) {
            (Err(ObjectError::NotAttached), Some(pasid)) => {
                Err(InvalidateError::NotBound(device, pasid))
            }
            // Everything of nothing: only a place in the order of tickets.
            (Err(ObjectError::NotAttached), None) => {
                let range = Range { start: Iova(0), last: Iova(u64::MAX) };
                Ok(self.vm.invalidate(Invalidation::DeviceTlb { requester: device, range }))
            }
            (result, _) => Ok(result?),
        }
    }
}

/// The range of `count` pages of `granule` bytes at `address`.
fn pages(address: Iova, granule: u64, count: u64) -> Result<Range<Iova>, InvalidateError> {
    if !granule.is_power_of_two() || granule < PAGE_SIZE {
        return Err(InvalidateError::Granule(granule));
    }
    let last = count.checked_sub(1).and_then(|pages| pages.checked_mul(granule));
    let last = last.and_then(|offset| address.0.checked_add(offset)?.checked_add(granule - 1));
    match last {
        Some(last) if address.is_aligned(granule.ilog2()) => {
            Ok(Range { start: address, last: Iova(last) })
        }
        _ => Err(InvalidateError::Range),
    }
}
