//! The numbers of the requests, in one table, for there are several.
//!
//! Series that were posted at the same time gave the same number to different requests, so what a
//! number means depends on which of them the two ends have agreed on. Our own requests have numbers
//! that no posted series, VFIO or iommufd (which shares the type) uses.

/// Whose numbers and layouts are spoken where the posted series differ.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum Revision {
    /// Our own: results in the structure and never in the return value, errors with what was
    /// allowed, tickets for what takes time, nothing unknown passed over. What
    /// [`Client`](crate::Client) speaks.
    #[default]
    Own,
    /// `PASID_REQUEST` and `NESTING_OP` with the structures that Linux 5.3 to 5.9 has for them,
    /// which have no size of their own.
    PasidRequest53,
    /// `PASID_REQUEST` and `NESTING_OP` as posted (version 7 of that series, 2020).
    PasidRequestV7,
    /// The same as the series' developers' tree has it last, in 2021: other nesting information.
    PasidRequestTree,
    /// `SET_PASID_TABLE`, `CACHE_INVALIDATE` and `SET_MSI_BINDING` as posted (version 11 of that
    /// series, 2020), with the structures of Linux 5.3 to 5.9.
    PasidTableV11,
    /// The same in versions 12 and 13 (2021).
    PasidTableV13,
    /// The same in versions 14 and 15 (2021), where the configuration has no hole any more.
    PasidTableV15,
    /// What Linux has today: iommufd's objects, and nothing that was only posted.
    Iommufd,
}

/// A request, whatever its number.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[non_exhaustive]
pub enum Request {
    /// `VFIO_GET_API_VERSION`.
    GetApiVersion,
    /// `VFIO_CHECK_EXTENSION`.
    CheckExtension,
    /// `VFIO_SET_IOMMU`.
    SetIommu,
    /// `VFIO_GROUP_GET_STATUS`, to a group.
    GroupGetStatus,
    /// `VFIO_GROUP_SET_CONTAINER`, to a group.
    GroupSetContainer,
    /// `VFIO_GROUP_UNSET_CONTAINER`, to a group.
    GroupUnsetContainer,
    /// `VFIO_GROUP_GET_DEVICE_FD`, to a group.
    GroupGetDeviceFd,
    /// `VFIO_DEVICE_GET_INFO`, to a device.
    DeviceGetInfo,
    /// `VFIO_DEVICE_GET_REGION_INFO`, to a device.
    DeviceGetRegionInfo,
    /// `VFIO_DEVICE_GET_IRQ_INFO`, to a device.
    DeviceGetIrqInfo,
    /// `VFIO_DEVICE_SET_IRQS`, to a device.
    DeviceSetIrqs,
    /// `VFIO_IOMMU_GET_INFO`.
    IommuGetInfo,
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
    /// Takes a page request of devices that the guest's own tables translate.
    ReadPageRequest,
    /// Answers one.
    RespondPageRequest,
    /// Takes a page request of a fault queue.
    ReadPageFault,
    /// Answers one.
    RespondPageFault,
    /// Asks which device keeps a ticket from being complete.
    Unanswered,
    /// Waits no longer for devices' answers up to a ticket.
    GiveUpAnswers,
    /// Gives a ticket of the accesses in flight.
    InFlight,
    /// Says what time it is.
    Tick,
    /// Reads the counters of the VM's page requests.
    GetPageRequestCounters,
    /// `VFIO_IOMMU_SET_PASID_TABLE`.
    SetPasidTable,
    /// `VFIO_IOMMU_SET_MSI_BINDING`.
    SetMsiBinding,
    /// `VFIO_IOMMU_NESTING_OP`.
    NestingOp,
    /// `VFIO_DEVICE_ATTACH_IOMMUFD_PT`, to a device.
    AttachIommufdPt,
    /// `VFIO_DEVICE_DETACH_IOMMUFD_PT`, to a device.
    DetachIommufdPt,
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
const REVISIONS: usize = 8;

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

/// The numbers of the series of `SET_PASID_TABLE`: in version 11, and since.
const fn pasid_table(old: u8, new: u8) -> [(Revision, u8); 3] {
    [
        (Revision::PasidTableV11, BASE + old),
        (Revision::PasidTableV13, BASE + new),
        (Revision::PasidTableV15, BASE + new),
    ]
}

/// The number of the series of `PASID_REQUEST`.
const fn pasid_request(number: u8) -> [(Revision, u8); 3] {
    [
        (Revision::PasidRequest53, BASE + number),
        (Revision::PasidRequestV7, BASE + number),
        (Revision::PasidRequestTree, BASE + number),
    ]
}

/// The table.
const NUMBERS: [Row; 51] = [
    (Request::GetApiVersion, every(BASE)),
    (Request::CheckExtension, every(BASE + 1)),
    (Request::SetIommu, every(BASE + 2)),
    (Request::GroupGetStatus, every(BASE + 3)),
    (Request::GroupSetContainer, every(BASE + 4)),
    (Request::GroupUnsetContainer, every(BASE + 5)),
    (Request::GroupGetDeviceFd, every(BASE + 6)),
    (Request::DeviceGetInfo, every(BASE + 7)),
    (Request::DeviceGetRegionInfo, every(BASE + 8)),
    (Request::DeviceGetIrqInfo, every(BASE + 9)),
    (Request::DeviceSetIrqs, every(BASE + 10)),
    (Request::IommuGetInfo, every(BASE + 12)),
    (Request::MapDma, every(BASE + 13)),
    (Request::UnmapDma, every(BASE + 14)),
    (Request::CacheInvalidate, own_and(OWN_BASE, pasid_table(23, 19))),
    (Request::PasidRequest, own_and(OWN_BASE + 1, pasid_request(18))),
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
    (Request::SetPasidTable, own_and(OWN_BASE + 14, pasid_table(22, 18))),
    (Request::SetMsiBinding, own_and(OWN_BASE + 15, pasid_table(24, 20))),
    (Request::NestingOp, own_and(OWN_BASE + 16, pasid_request(19))),
    (Request::AttachIommufdPt, own_and(OWN_BASE + 17, [(Revision::Iommufd, BASE + 19)])),
    (Request::DetachIommufdPt, own_and(OWN_BASE + 18, [(Revision::Iommufd, BASE + 20)])),
    (Request::ReadPageRequest, every(OWN_BASE + 19)),
    (Request::RespondPageRequest, every(OWN_BASE + 20)),
    (Request::ReadPageFault, own_and(OWN_BASE + 21, [])),
    (Request::RespondPageFault, own_and(OWN_BASE + 22, [])),
    (Request::Unanswered, every(OWN_BASE + 23)),
    (Request::Tick, every(OWN_BASE + 24)),
    (Request::GetPageRequestCounters, every(OWN_BASE + 25)),
    (Request::GiveUpAnswers, every(OWN_BASE + 26)),
    (Request::InFlight, every(OWN_BASE + 27)),
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
        Revision::PasidRequest53 => 1,
        Revision::PasidRequestV7 => 2,
        Revision::PasidRequestTree => 3,
        Revision::PasidTableV11 => 4,
        Revision::PasidTableV13 => 5,
        Revision::PasidTableV15 => 6,
        Revision::Iommufd => 7,
    }
}

impl Revision {
    /// Every revision.
    pub const ALL: [Self; REVISIONS] = [
        Self::Own,
        Self::PasidRequest53,
        Self::PasidRequestV7,
        Self::PasidRequestTree,
        Self::PasidTableV11,
        Self::PasidTableV13,
        Self::PasidTableV15,
        Self::Iommufd,
    ];

    /// Whether the structures in others are those of Linux 5.3 to 5.9, without a size of their own.
    pub(crate) const fn is_unsized(self) -> bool {
        matches!(self, Self::PasidRequest53 | Self::PasidTableV11)
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
