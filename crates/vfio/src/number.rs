//! The numbers of the requests, in one table, for there are several.
//!
//! Series that were posted at the same time gave the same number to different requests, so what a
//! number means depends on which of them the two ends have agreed on. Our own requests have numbers
//! that no posted series, VFIO or iommufd (which shares the type) uses.

/// Whose numbers and layouts are spoken where the posted series differ.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum Revision {
    /// Our own: results in the structure and never in the return value, errors with what was
    /// allowed, tickets for what takes time. What [`Client`](crate::Client) speaks.
    #[default]
    Own,
    /// `PASID_REQUEST` as posted (version 7 of that series, 2020).
    PasidRequestV7,
    /// `CACHE_INVALIDATE` as posted (version 13 of the series of `SET_PASID_TABLE`, 2021).
    PasidTableV13,
}

/// A request, whatever its number.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[non_exhaustive]
pub enum Request {
    /// `VFIO_IOMMU_MAP_DMA`.
    MapDma,
    /// `VFIO_IOMMU_UNMAP_DMA`.
    UnmapDma,
    /// `VFIO_IOMMU_CACHE_INVALIDATE`.
    CacheInvalidate,
    /// `VFIO_IOMMU_PASID_REQUEST`.
    PasidRequest,
    /// Creates the container's VM.
    CreateVm,
    /// Ends the VM.
    CloseVm,
    /// Begins, commits or abandons a change of the memory map that takes effect as one.
    UpdateMemory,
    /// Sets where device contexts come from.
    SetContexts,
    /// Asks whether what a ticket stands for is over.
    Completion,
    /// Takes a fault.
    ReadFault,
    /// Sets what is rung when a fault arrives.
    SetFaultEvent,
    /// Attaches a device.
    AttachDevice,
    /// Reads the VM's counters.
    GetCounters,
}

/// VFIO's (and iommufd's) ioctl type, `';'`, where the kernel's `_IO` has it.
const TYPE: u32 = (b';' as u32) << 8;
/// VFIO's first request.
const BASE: u8 = 100;
/// Our first request.
const OWN_BASE: u8 = 0xd0;

/// A row: a request, and its number in each revision that has it, in the order of [`column`].
type Row = (Request, [Option<u8>; 3]);

const fn same(number: u8) -> [Option<u8>; 3] {
    [Some(number); 3]
}

/// The table.
const NUMBERS: [Row; 13] = [
    (Request::MapDma, same(BASE + 13)),
    (Request::UnmapDma, same(BASE + 14)),
    (Request::CacheInvalidate, [Some(OWN_BASE), None, Some(BASE + 19)]),
    (Request::PasidRequest, [Some(OWN_BASE + 1), Some(BASE + 18), None]),
    (Request::CreateVm, same(OWN_BASE + 2)),
    (Request::CloseVm, same(OWN_BASE + 3)),
    (Request::UpdateMemory, same(OWN_BASE + 4)),
    (Request::SetContexts, same(OWN_BASE + 5)),
    (Request::Completion, same(OWN_BASE + 6)),
    (Request::ReadFault, same(OWN_BASE + 7)),
    (Request::SetFaultEvent, same(OWN_BASE + 8)),
    (Request::AttachDevice, same(OWN_BASE + 9)),
    (Request::GetCounters, same(OWN_BASE + 10)),
];

const fn column(revision: Revision) -> usize {
    match revision {
        Revision::Own => 0,
        Revision::PasidRequestV7 => 1,
        Revision::PasidTableV13 => 2,
    }
}

impl Request {
    /// Every request.
    pub fn all() -> impl Iterator<Item = Self> {
        NUMBERS.iter().map(|&(request, _)| request)
    }

    /// Its number in `revision`, as `ioctl` takes it, if that has the request.
    pub fn number(self, revision: Revision) -> Option<u32> {
        let row = NUMBERS.iter().find(|(request, _)| *request == self)?;
        row.1[column(revision)].map(|number| TYPE | u32::from(number))
    }

    /// The request that `number` stands for in `revision`.
    pub fn of(number: u32, revision: Revision) -> Option<Self> {
        let number = u8::try_from(number ^ TYPE).ok();
        let means = |row: &&Row| number.is_some() && row.1[column(revision)] == number;
        NUMBERS.iter().find(means).map(|&(request, _)| request)
    }
}

#[cfg(test)]
mod tests;
