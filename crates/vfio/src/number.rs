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
    /// What Linux has today: iommufd's objects, and nothing that was only posted.
    Iommufd,
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
    /// Attaches a page table to a device of the container, or replaces the one that is attached.
    AttachPageTable,
    /// Detaches a page table from a device of the container.
    DetachPageTable,
    /// Takes an event of an event queue.
    ReadEvent,
    /// `IOMMU_DESTROY`.
    Destroy,
    /// `IOMMU_IOAS_ALLOC`.
    IoasAlloc,
    /// `IOMMU_HWPT_ALLOC`.
    HwptAlloc,
    /// `IOMMU_GET_HW_INFO`.
    GetHwInfo,
    /// `IOMMU_HWPT_INVALIDATE`.
    HwptInvalidate,
    /// `IOMMU_FAULT_QUEUE_ALLOC`.
    FaultQueueAlloc,
    /// `IOMMU_VIOMMU_ALLOC`.
    ViommuAlloc,
    /// `IOMMU_VDEVICE_ALLOC`.
    VdeviceAlloc,
    /// `IOMMU_VEVENTQ_ALLOC`.
    VeventqAlloc,
}

/// VFIO's (and iommufd's) ioctl type, `';'`, where the kernel's `_IO` has it.
const TYPE: u32 = (b';' as u32) << 8;
/// VFIO's first request.
const BASE: u8 = 100;
/// iommufd's first request.
const IOMMUFD_BASE: u8 = 0x80;
/// Our first request.
const OWN_BASE: u8 = 0xd0;

/// How many revisions there are.
const REVISIONS: usize = 4;

/// A row: a request, and its number in each revision that has it, in the order of [`column`].
type Row = (Request, [Option<u8>; REVISIONS]);

/// A number that every revision has.
const fn every(number: u8) -> [Option<u8>; REVISIONS] {
    [Some(number); REVISIONS]
}

/// A number of ours, and other numbers in the revisions that have the request.
const fn own_and<const N: usize>(
    number: u8,
    others: [(Revision, u8); N],
) -> [Option<u8>; REVISIONS] {
    let mut numbers = [None; REVISIONS];
    numbers[column(Revision::Own)] = Some(number);
    let mut at = 0;
    while at < N {
        numbers[column(others[at].0)] = Some(others[at].1);
        at += 1;
    }
    numbers
}

/// iommufd's number, which our own revision has, too.
const fn iommufd(number: u8) -> [Option<u8>; REVISIONS] {
    own_and(IOMMUFD_BASE + number, [(Revision::Iommufd, IOMMUFD_BASE + number)])
}

/// The table.
const NUMBERS: [Row; 25] = [
    (Request::MapDma, every(BASE + 13)),
    (Request::UnmapDma, every(BASE + 14)),
    (Request::CacheInvalidate, own_and(OWN_BASE, [(Revision::PasidTableV13, BASE + 19)])),
    (Request::PasidRequest, own_and(OWN_BASE + 1, [(Revision::PasidRequestV7, BASE + 18)])),
    (Request::CreateVm, every(OWN_BASE + 2)),
    (Request::CloseVm, every(OWN_BASE + 3)),
    (Request::UpdateMemory, every(OWN_BASE + 4)),
    (Request::SetContexts, every(OWN_BASE + 5)),
    (Request::Completion, every(OWN_BASE + 6)),
    (Request::ReadFault, every(OWN_BASE + 7)),
    (Request::SetFaultEvent, every(OWN_BASE + 8)),
    (Request::AttachDevice, every(OWN_BASE + 9)),
    (Request::GetCounters, every(OWN_BASE + 10)),
    (Request::AttachPageTable, own_and(OWN_BASE + 11, [])),
    (Request::DetachPageTable, own_and(OWN_BASE + 12, [])),
    (Request::ReadEvent, own_and(OWN_BASE + 13, [])),
    (Request::Destroy, iommufd(0)),
    (Request::IoasAlloc, iommufd(1)),
    (Request::HwptAlloc, iommufd(9)),
    (Request::GetHwInfo, iommufd(10)),
    (Request::HwptInvalidate, iommufd(13)),
    (Request::FaultQueueAlloc, iommufd(14)),
    (Request::ViommuAlloc, iommufd(16)),
    (Request::VdeviceAlloc, iommufd(17)),
    (Request::VeventqAlloc, iommufd(19)),
];

const fn column(revision: Revision) -> usize {
    match revision {
        Revision::Own => 0,
        Revision::PasidRequestV7 => 1,
        Revision::PasidTableV13 => 2,
        Revision::Iommufd => 3,
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
