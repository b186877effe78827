//! VFIO's structures of containers, groups and devices, with the regions and interrupts that the
//! series of `SET_PASID_TABLE` adds to a device.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::flags as all;
use crate::argument::Argument;

/// Values of these structures' fields.
pub(super) mod flags {
    /// `GET_API_VERSION`'s answer.
    pub const API_VERSION: u32 = 0;
    /// `SET_IOMMU`, `CHECK_EXTENSION`: type 1.
    pub const TYPE1: u32 = 1;
    /// `SET_IOMMU`, `CHECK_EXTENSION`: type 1, second version.
    pub const TYPE1_V2: u32 = 3;
    /// `SET_IOMMU`, `CHECK_EXTENSION`: type 1 with nested translation.
    pub const TYPE1_NESTING: u32 = 6;
    /// `CHECK_EXTENSION`: [`UNMAP_ALL`](super::all::UNMAP_ALL).
    pub const EXTENSION_UNMAP_ALL: u32 = 9;

    /// [`GroupStatus::flags`](super::GroupStatus): all devices of the group are here.
    pub const GROUP_VIABLE: u32 = 1;
    /// [`GroupStatus::flags`](super::GroupStatus): it is in a container.
    pub const GROUP_CONTAINER_SET: u32 = 2;

    /// [`IommuInfo::flags`](super::IommuInfo): `iova_pgsizes` counts.
    pub const IOMMU_INFO_PAGE_SIZES: u32 = 1;
    /// [`IommuInfo::flags`](super::IommuInfo): there are capabilities.
    pub const IOMMU_INFO_CAPS: u32 = 2;
    /// A capability of [`IommuInfo`](super::IommuInfo): [`IovaRanges`](super::IovaRanges).
    pub const IOMMU_CAP_IOVA_RANGES: u16 = 1;
    /// A capability of [`IommuInfo`](super::IommuInfo): [`DmaAvailable`](super::DmaAvailable).
    pub const IOMMU_CAP_DMA_AVAILABLE: u16 = 3;
    /// A capability of [`IommuInfo`](super::IommuInfo): nesting information, as posted before Linux
    /// had [`IOMMU_CAP_DMA_AVAILABLE`].
    pub const IOMMU_CAP_NESTING_V7: u16 = 3;
    /// A capability of [`IommuInfo`](super::IommuInfo): nesting information, since.
    pub const IOMMU_CAP_NESTING: u16 = 4;

    /// [`DeviceInfo::flags`](super::DeviceInfo): a PCI function.
    pub const DEVICE_PCI: u32 = 2;
    /// Regions of a PCI function; those of the series follow.
    pub const PCI_REGIONS: u32 = 9;
    /// Interrupts of a PCI function; those of the series follow.
    pub const PCI_INTERRUPTS: u32 = 5;

    /// [`RegionInfo::flags`](super::RegionInfo): it can be read.
    pub const REGION_READ: u32 = 1;
    /// [`RegionInfo::flags`](super::RegionInfo): it can be written.
    pub const REGION_WRITE: u32 = 2;
    /// [`RegionInfo::flags`](super::RegionInfo): part of it can be mapped.
    pub const REGION_MAP: u32 = 4;
    /// [`RegionInfo::flags`](super::RegionInfo): there are capabilities.
    pub const REGION_CAPS: u32 = 8;
    /// A capability of [`RegionInfo`](super::RegionInfo): [`SparseMap`](super::SparseMap).
    pub const REGION_CAP_SPARSE: u16 = 1;
    /// A capability of [`RegionInfo`](super::RegionInfo): [`TypeOf`](super::TypeOf).
    pub const REGION_CAP_TYPE: u16 = 2;
    /// A capability of [`RegionInfo`](super::RegionInfo): the version of a ring of faults.
    pub const REGION_CAP_DMA_FAULT: u16 = 6;
    /// A capability of [`RegionInfo`](super::RegionInfo): the version of a ring of responses.
    pub const REGION_CAP_DMA_FAULT_RESPONSE: u16 = 7;
    /// [`TypeOf::kind`](super::TypeOf) of a region: nested translation.
    pub const REGION_TYPE_NESTED: u32 = 2;
    /// [`TypeOf::subtype`](super::TypeOf) of a region: faults.
    pub const REGION_SUBTYPE_DMA_FAULT: u32 = 1;
    /// [`TypeOf::subtype`](super::TypeOf) of a region: responses.
    pub const REGION_SUBTYPE_DMA_FAULT_RESPONSE: u32 = 2;
    /// The version of both rings.
    pub const RING_VERSION: u32 = 1;

    /// [`IrqInfo::flags`](super::IrqInfo): it rings an event.
    pub const IRQ_EVENT: u32 = 1;
    /// [`IrqInfo::flags`](super::IrqInfo): there are capabilities.
    pub const IRQ_CAPS: u32 = 16;
    /// A capability of [`IrqInfo`](super::IrqInfo): [`TypeOf`](super::TypeOf).
    pub const IRQ_CAP_TYPE: u16 = 3;
    /// [`TypeOf::kind`](super::TypeOf) of an interrupt: nested translation.
    pub const IRQ_TYPE_NESTED: u32 = 1;
    /// [`TypeOf::subtype`](super::TypeOf) of an interrupt: faults.
    pub const IRQ_SUBTYPE_DMA_FAULT: u32 = 1;
    /// [`IrqSet::flags`](super::IrqSet): no data.
    pub const IRQ_DATA_NONE: u32 = 1;
    /// [`IrqSet::flags`](super::IrqSet): a word for each event: -1 for none, any other for the one
    /// whose handle is beside.
    pub const IRQ_DATA_EVENT: u32 = 4;
    /// [`IrqSet::flags`](super::IrqSet): what it triggers.
    pub const IRQ_ACTION_TRIGGER: u32 = 32;
}

/// `struct vfio_info_cap_header`: how a capability begins.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct CapabilityHeader {
    /// Which one.
    pub id: u16,
    /// Its version.
    pub version: u16,
    /// Where the next one is, from the beginning of the argument; zero after the last.
    pub next: u32,
}

/// A number as the whole of an argument: those of `CHECK_EXTENSION` and `SET_IOMMU`, which Linux
/// takes in place of an address.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct Number {
    /// The number.
    pub value: u32,
}

/// `struct vfio_group_status`.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct GroupStatus {
    /// Bytes of the structure.
    pub argsz: u32,
    /// *out*: `GROUP_` bits.
    pub flags: u32,
}

impl Argument for GroupStatus {
    const FLAGS: Option<u32> = None;
}

/// `struct vfio_iommu_type1_info`.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct IommuInfo {
    /// Bytes of the structure; *out*: with all capabilities.
    pub argsz: u32,
    /// *out*: `IOMMU_INFO_` bits.
    pub flags: u32,
    /// *out*: sizes of pages that can be mapped, a bit for each.
    pub iova_pgsizes: u64,
    /// *out*: where the capabilities are, or zero if there is no room.
    pub cap_offset: u32,
    /// Zero.
    pub pad: u32,
}

impl Argument for IommuInfo {
    const NEEDED: usize = 16;
    const FLAGS: Option<u32> = None;
}

/// `struct vfio_iommu_type1_info_cap_iova_range`, with one range, after its header.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct IovaRanges {
    /// How many there are: one.
    pub nr_iovas: u32,
    /// Zero.
    pub reserved: u32,
    /// First address.
    pub start: u64,
    /// Last address.
    pub last: u64,
}

/// `struct vfio_iommu_type1_info_dma_avail`, after its header.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct DmaAvailable {
    /// Mappings that can still be made.
    pub avail: u32,
}

/// `struct vfio_device_info`.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct DeviceInfo {
    /// Bytes of the structure.
    pub argsz: u32,
    /// *out*: [`DEVICE_PCI`](all::DEVICE_PCI).
    pub flags: u32,
    /// *out*: how many regions there are.
    pub num_regions: u32,
    /// *out*: how many interrupts there are.
    pub num_irqs: u32,
    /// *out*: zero, there are no capabilities.
    pub cap_offset: u32,
    /// Zero.
    pub pad: u32,
}

impl Argument for DeviceInfo {
    const NEEDED: usize = 16;
    const FLAGS: Option<u32> = None;
}

/// `struct vfio_region_info`.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct RegionInfo {
    /// Bytes of the structure; *out*: with all capabilities.
    pub argsz: u32,
    /// *out*: `REGION_` bits.
    pub flags: u32,
    /// Which one.
    pub index: u32,
    /// *out*: where the capabilities are, or zero if there is no room.
    pub cap_offset: u32,
    /// *out*: bytes.
    pub size: u64,
    /// *out*: where it is in the device's file.
    pub offset: u64,
}

impl Argument for RegionInfo {
    const FLAGS: Option<u32> = None;
}

/// `struct vfio_region_info_cap_sparse_mmap`, with one area, after its header.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct SparseMap {
    /// How many areas there are: one.
    pub nr_areas: u32,
    /// Zero.
    pub reserved: u32,
    /// Where in the region the area begins.
    pub offset: u64,
    /// Its bytes.
    pub size: u64,
}

/// `struct vfio_region_info_cap_type`, and that of an interrupt, after their headers.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct TypeOf {
    /// `REGION_TYPE_` or `IRQ_TYPE_`.
    pub kind: u32,
    /// `REGION_SUBTYPE_` or `IRQ_SUBTYPE_`.
    pub subtype: u32,
}

/// How a ring's page of numbers begins.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct RingHeader {
    /// The index that the client moves: of faults the tail, of responses the head.
    pub client: u32,
    /// Bytes of an entry.
    pub entry_size: u32,
    /// Entries.
    pub nb_entries: u32,
    /// Where in the region the first one is.
    pub offset: u32,
    /// The index that the host moves: of faults the head, of responses the tail.
    pub host: u32,
}

/// `struct vfio_irq_info`, and where its capabilities are.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct IrqInfo {
    /// Bytes of the structure; *out*: with all capabilities.
    pub argsz: u32,
    /// *out*: `IRQ_` bits.
    pub flags: u32,
    /// Which one.
    pub index: u32,
    /// *out*: how many of it.
    pub count: u32,
    /// *out*: where the capabilities are, or zero if there is no room.
    pub cap_offset: u32,
}

impl Argument for IrqInfo {
    const NEEDED: usize = 16;
    const FLAGS: Option<u32> = None;
}

/// `struct vfio_irq_set` with one word of data.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct IrqSet {
    /// Bytes of the structure.
    pub argsz: u32,
    /// One `IRQ_DATA_` and one `IRQ_ACTION_` bit.
    pub flags: u32,
    /// Which one.
    pub index: u32,
    /// The first of it.
    pub start: u32,
    /// How many.
    pub count: u32,
    /// Which event: -1 is none.
    pub event: i32,
}

impl Argument for IrqSet {
    const NEEDED: usize = 20;
    // All that VFIO has, so that what is not for this interrupt has an error of its own.
    const FLAGS: Option<u32> = Some(0x3f);
}

/// `struct vfio_device_attach_iommufd_pt`, to a device's own file.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct AttachIommufdPt {
    /// Bytes of the structure.
    pub argsz: u32,
    /// [`ATTACH_PASID`](all::ATTACH_PASID) or nothing.
    pub flags: u32,
    /// The page table.
    pub pt_id: u32,
    /// The PASID.
    pub pasid: u32,
}

impl Argument for AttachIommufdPt {
    const NEEDED: usize = 12;
    const FLAGS: Option<u32> = Some(all::ATTACH_PASID);
}

/// `struct vfio_device_detach_iommufd_pt`, to a device's own file.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct DetachIommufdPt {
    /// Bytes of the structure.
    pub argsz: u32,
    /// [`ATTACH_PASID`](all::ATTACH_PASID) or nothing.
    pub flags: u32,
    /// The PASID.
    pub pasid: u32,
}

impl Argument for DetachIommufdPt {
    const NEEDED: usize = 8;
    const FLAGS: Option<u32> = Some(all::ATTACH_PASID);
}
