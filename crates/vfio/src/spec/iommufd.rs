//! iommufd's structures, for the objects of a VM.
//!
//! Each begins with iommufd's own structure byte for byte, which is all that a caller has to give.
//! What follows it is ours: iommufd's callers may know longer structures than the host end as long
//! as what it does not know is zero, and all of ours is *out* or zero in a plain call.
//!
//! | iommufd | here |
//! |---|---|
//! | `dev_id` | the requester id: what a VM has of devices are the numbers on its own bus |
//! | `data_uptr` | offset in the argument, past the structure: the argument is all of the caller's memory that there is |
//! | a descriptor that a call gives | none; the object's records are asked for by its id |

use core::ops::Range;

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::ReadFault;
use crate::argument::Argument;

/// Values of iommufd's structures' fields.
pub(super) mod flags {
    /// [`HwptAlloc::data_type`](super::HwptAlloc): a paging table.
    pub const HWPT_DATA_NONE: u32 = 0;
    /// [`HwptAlloc::data_type`](super::HwptAlloc): a [`VtdStageOneData`](super::VtdStageOneData).
    pub const HWPT_DATA_VTD_S1: u32 = 1;
    /// [`HwptAlloc::data_type`](super::HwptAlloc): a [`SmmuStageOneData`](super::SmmuStageOneData).
    pub const HWPT_DATA_ARM_SMMUV3: u32 = 2;
    /// [`HwptAlloc::data_type`](super::HwptAlloc), ours: a
    /// [`VtdPasidTableData`](super::VtdPasidTableData).
    pub const HWPT_DATA_VTD_PASID_TABLE: u32 = 0x8000_0001;

    /// [`HwptAlloc::parent_kind`](super::HwptAlloc): whatever `pt_id` names; all that iommufd's own
    /// structure can say.
    pub const PARENT_ANY: u32 = 0;
    /// [`HwptAlloc::parent_kind`](super::HwptAlloc): an address space.
    pub const PARENT_IOAS: u32 = 1;
    /// [`HwptAlloc::parent_kind`](super::HwptAlloc): a page table.
    pub const PARENT_HWPT: u32 = 2;
    /// [`HwptAlloc::parent_kind`](super::HwptAlloc): a vIOMMU.
    pub const PARENT_VIOMMU: u32 = 3;

    /// [`GetHwInfo::out_data_type`](super::GetHwInfo): a [`VtdInfo`](super::VtdInfo).
    pub const HW_INFO_INTEL_VTD: u32 = 1;
    /// [`GetHwInfo::out_data_type`](super::GetHwInfo): a [`SmmuInfo`](super::SmmuInfo).
    pub const HW_INFO_ARM_SMMUV3: u32 = 2;
    /// [`GetHwInfo::out_capabilities`](super::GetHwInfo): privileged requests with a PASID.
    pub const HW_CAP_PASID_PRIVILEGED: u64 = 4;
    /// [`GetHwInfo::out_capabilities`](super::GetHwInfo): no address translation requests.
    pub const HW_CAP_NO_ATS: u64 = 8;

    /// [`HwptInvalidate::data_type`](super::HwptInvalidate): of a VT-d stage 1,
    /// [`VtdInvalidateEntry`](super::VtdInvalidateEntry).
    pub const INVALIDATE_VTD_S1: u32 = 0;
    /// [`HwptInvalidate::data_type`](super::HwptInvalidate): of a vIOMMU, SMMUv3 commands of two
    /// little-endian words.
    pub const INVALIDATE_VIOMMU_ARM_SMMUV3: u32 = 1;
    /// [`VtdInvalidateEntry::flags`](super::VtdInvalidateEntry): only last-level entries changed.
    pub const VTD_INVALIDATE_LEAF: u32 = 1;
    /// [`VtdInvalidateEntry::flags`](super::VtdInvalidateEntry), ours: the address is any, and
    /// `npages` bytes follow the first one.
    pub const VTD_INVALIDATE_BYTES: u32 = 0x4000_0000;
    /// [`VtdInvalidateEntry::flags`](super::VtdInvalidateEntry), ours: the entry in the PASID table;
    /// the address and `npages` are zero.
    pub const VTD_INVALIDATE_ENTRY: u32 = 0x8000_0000;

    /// [`ViommuAlloc::kind`](super::ViommuAlloc): SMMUv3.
    pub const VIOMMU_ARM_SMMUV3: u32 = 1;
    /// [`ViommuAlloc::kind`](super::ViommuAlloc), ours: VT-d.
    pub const VIOMMU_VTD: u32 = 0x8000_0001;
    /// [`VeventqAlloc::kind`](super::VeventqAlloc): of an SMMUv3's vIOMMU.
    pub const VEVENTQ_ARM_SMMUV3: u32 = 1;
    /// [`VeventqAlloc::kind`](super::VeventqAlloc), ours: the records of [`ReadEvent`](super::ReadEvent),
    /// whatever the vIOMMU.
    pub const VEVENTQ_ANY: u32 = 0x8000_0001;

    /// [`AttachPageTable`](super::AttachPageTable), [`DetachPageTable`](super::DetachPageTable):
    /// `pasid` counts.
    pub const ATTACH_PASID: u32 = 1;
    /// [`AttachPageTable`](super::AttachPageTable), ours: where something is attached, and only
    /// there.
    pub const ATTACH_REPLACE: u32 = 0x8000_0000;

    /// [`ReadEvent::present`](super::ReadEvent): there was one.
    pub const EVENT_PRESENT: u32 = 1;
}

/// Why a call on an object failed, exactly. All of it is *out*, zero if it did not.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct ObjectFailure {
    /// Which [`iommu::ObjectError`], by this crate's numbering, from 1.
    pub code: u32,
    /// Which [`iommu::InvalidField`], by this crate's numbering, from 1.
    pub field: u32,
    /// The requester id, the object, the PASID or the limit that it is about.
    pub value: u64,
}

/// `struct iommu_destroy`.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct Destroy {
    /// Bytes of the structure.
    pub size: u32,
    /// The object.
    pub id: u32,
    /// *out*, ours.
    pub failure: ObjectFailure,
}

impl Argument for Destroy {
    const NEEDED: usize = 8;
    const FLAGS: Option<u32> = None;
}

/// `struct iommu_ioas_alloc`: asks for the container's address space, of which there is one.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct IoasAlloc {
    /// Bytes of the structure.
    pub size: u32,
    /// None is known.
    pub flags: u32,
    /// *out*: the address space.
    pub out_ioas_id: u32,
    /// Zero, ours.
    pub reserved: u32,
    /// *out*, ours.
    pub failure: ObjectFailure,
}

impl Argument for IoasAlloc {
    const NEEDED: usize = 12;
    const RESERVED: [Range<usize>; 2] = [12..16, 0..0];
}

/// `struct iommu_hwpt_alloc`.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct HwptAlloc {
    /// Bytes of the structure.
    pub size: u32,
    /// [`iommu::HwptFlags`].
    pub flags: u32,
    /// The device.
    pub dev_id: u32,
    /// The address space, page table or vIOMMU that it stands on.
    pub pt_id: u32,
    /// *out*: the new page table.
    pub out_hwpt_id: u32,
    /// Zero.
    pub reserved: u32,
    /// An `HWPT_DATA_` value.
    pub data_type: u32,
    /// Bytes of the guest's part.
    pub data_len: u32,
    /// Where the guest's part is.
    pub data_uptr: u64,
    /// The fault queue.
    pub fault_id: u32,
    /// Zero.
    pub reserved2: u32,
    /// A `PARENT_` value, ours. If it is none of zero, `fault_given` counts.
    pub parent_kind: u32,
    /// 1 if `fault_id` counts whatever the flags say, ours.
    pub fault_given: u32,
    /// *out*, ours.
    pub failure: ObjectFailure,
}

impl Argument for HwptAlloc {
    const NEEDED: usize = 48;
    const FLAGS: Option<u32> = Some(iommu::HwptFlags::all().bits());
    const RESERVED: [Range<usize>; 2] = [20..24, 44..48];
}

/// `struct iommu_hwpt_vtd_s1`.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct VtdStageOneData {
    /// [`iommu::VtdStageOneFlags`].
    pub flags: u64,
    /// The root of the table, a guest physical address.
    pub pgtbl_addr: u64,
    /// Bits of the addresses that it translates.
    pub addr_width: u32,
    /// Zero.
    pub reserved: u32,
}

/// `struct iommu_hwpt_arm_smmuv3`.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct SmmuStageOneData {
    /// The first two words of the guest's stream-table entry, little-endian.
    pub ste: [u64; 2],
}

/// A guest's whole VT-d PASID table: ours, for iommufd has no name for it.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct VtdPasidTableData {
    /// Its directory, a guest physical address.
    pub directory: u64,
    /// Bits of PASID that it covers.
    pub pasid_bits: u32,
    /// Zero.
    pub reserved: u32,
}

/// `struct iommu_hw_info`.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct GetHwInfo {
    /// Bytes of the structure.
    pub size: u32,
    /// None is known.
    pub flags: u32,
    /// The device.
    pub dev_id: u32,
    /// Bytes there are for the IOMMU's registers; *out*: how many it has.
    pub data_len: u32,
    /// Where they are to go.
    pub data_uptr: u64,
    /// *out*: an `HW_INFO_` value.
    pub out_data_type: u32,
    /// *out*: bits of PASID.
    pub out_max_pasid_log2: u8,
    /// Zero.
    pub reserved: [u8; 3],
    /// *out*: `HW_CAP_` bits.
    pub out_capabilities: u64,
    /// *out*, ours.
    pub failure: ObjectFailure,
}

impl Argument for GetHwInfo {
    const NEEDED: usize = 40;
    const RESERVED: [Range<usize>; 2] = [29..32, 0..0];
}

/// `struct iommu_hw_info_vtd`.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct VtdInfo {
    /// Errata; none here.
    pub flags: u32,
    /// Zero.
    pub reserved: u32,
    /// The capability register.
    pub cap_reg: u64,
    /// The extended capability register.
    pub ecap_reg: u64,
}

/// `struct iommu_hw_info_arm_smmuv3`.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct SmmuInfo {
    /// None.
    pub flags: u32,
    /// Zero.
    pub reserved: u32,
    /// IDR0 to IDR5.
    pub idr: [u32; 6],
    /// IIDR.
    pub iidr: u32,
    /// AIDR.
    pub aidr: u32,
}

/// `struct iommu_hwpt_invalidate`.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct HwptInvalidate {
    /// Bytes of the structure.
    pub size: u32,
    /// The nested page table, or the vIOMMU.
    pub hwpt_id: u32,
    /// Where the entries are.
    pub data_uptr: u64,
    /// An `INVALIDATE_` value.
    pub data_type: u32,
    /// Bytes of an entry.
    pub entry_len: u32,
    /// Entries; *out*: how many were carried out.
    pub entry_num: u32,
    /// Zero.
    pub reserved: u32,
    /// *out*, ours: what to ask [`Completion`](super::Completion) for.
    pub ticket: u64,
    /// *out*, ours.
    pub failure: ObjectFailure,
}

impl Argument for HwptInvalidate {
    const NEEDED: usize = 32;
    const FLAGS: Option<u32> = None;
    const RESERVED: [Range<usize>; 2] = [28..32, 0..0];
}

/// `struct iommu_hwpt_vtd_s1_invalidate`.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct VtdInvalidateEntry {
    /// First address, a multiple of 4 KiB.
    pub addr: u64,
    /// Pages of 4 KiB; all ones, at address zero: everything.
    pub npages: u64,
    /// `VTD_INVALIDATE_` bits.
    pub flags: u32,
    /// Zero.
    pub reserved: u32,
}

/// `struct iommu_fault_alloc`.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct FaultQueueAlloc {
    /// Bytes of the structure.
    pub size: u32,
    /// None is known.
    pub flags: u32,
    /// *out*: the queue.
    pub out_fault_id: u32,
    /// *out*: no descriptor, all ones.
    pub out_fault_fd: u32,
    /// *out*, ours.
    pub failure: ObjectFailure,
}

impl Argument for FaultQueueAlloc {
    const NEEDED: usize = 16;
}

/// `struct iommu_viommu_alloc`.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct ViommuAlloc {
    /// Bytes of the structure.
    pub size: u32,
    /// None is known.
    pub flags: u32,
    /// A `VIOMMU_` value.
    pub kind: u32,
    /// A device behind the IOMMU.
    pub dev_id: u32,
    /// The nesting parent.
    pub hwpt_id: u32,
    /// *out*: the vIOMMU.
    pub out_viommu_id: u32,
    /// Zero: no kind that is known here takes data.
    pub data_len: u32,
    /// Zero.
    pub reserved: u32,
    /// Not looked at.
    pub data_uptr: u64,
    /// *out*, ours.
    pub failure: ObjectFailure,
}

impl Argument for ViommuAlloc {
    const NEEDED: usize = 40;
    const RESERVED: [Range<usize>; 2] = [24..32, 0..0];
}

/// `struct iommu_vdevice_alloc`.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct VdeviceAlloc {
    /// Bytes of the structure.
    pub size: u32,
    /// The vIOMMU.
    pub viommu_id: u32,
    /// The device.
    pub dev_id: u32,
    /// *out*: the vDEVICE.
    pub out_vdevice_id: u32,
    /// The guest's number for the device.
    pub virt_id: u64,
    /// *out*, ours.
    pub failure: ObjectFailure,
}

impl Argument for VdeviceAlloc {
    const NEEDED: usize = 24;
    const FLAGS: Option<u32> = None;
}

/// `struct iommu_veventq_alloc`.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct VeventqAlloc {
    /// Bytes of the structure.
    pub size: u32,
    /// None is known.
    pub flags: u32,
    /// The vIOMMU.
    pub viommu_id: u32,
    /// A `VEVENTQ_` value.
    pub kind: u32,
    /// Events that it holds.
    pub veventq_depth: u32,
    /// *out*: the queue.
    pub out_veventq_id: u32,
    /// *out*: no descriptor, all ones.
    pub out_veventq_fd: u32,
    /// Zero.
    pub reserved: u32,
    /// *out*, ours.
    pub failure: ObjectFailure,
}

impl Argument for VeventqAlloc {
    const NEEDED: usize = 32;
    const RESERVED: [Range<usize>; 2] = [28..32, 0..0];
}

/// `struct vfio_device_attach_iommufd_pt`, and which device, for this goes to a container.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct AttachPageTable {
    /// Bytes of the structure.
    pub argsz: u32,
    /// `ATTACH_` bits.
    pub flags: u32,
    /// The page table.
    pub pt_id: u32,
    /// The PASID.
    pub pasid: u32,
    /// The device, ours.
    pub dev_id: u32,
    /// Zero, ours.
    pub reserved: u32,
    /// *out* with [`ATTACH_REPLACE`](flags::ATTACH_REPLACE), ours: what to ask
    /// [`Completion`](super::Completion) for.
    pub ticket: u64,
    /// *out*, ours.
    pub failure: ObjectFailure,
}

impl Argument for AttachPageTable {
    const NEEDED: usize = 24;
    const FLAGS: Option<u32> = Some(flags::ATTACH_PASID | flags::ATTACH_REPLACE);
    const RESERVED: [Range<usize>; 2] = [20..24, 0..0];
}

/// `struct vfio_device_detach_iommufd_pt`, and which device, for this goes to a container.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct DetachPageTable {
    /// Bytes of the structure.
    pub argsz: u32,
    /// [`ATTACH_PASID`](flags::ATTACH_PASID) or nothing.
    pub flags: u32,
    /// The PASID.
    pub pasid: u32,
    /// The device, ours.
    pub dev_id: u32,
    /// *out*, ours: what to ask [`Completion`](super::Completion) for.
    pub ticket: u64,
    /// *out*, ours.
    pub failure: ObjectFailure,
}

impl Argument for DetachPageTable {
    const NEEDED: usize = 16;
    const FLAGS: Option<u32> = Some(flags::ATTACH_PASID);
}

/// Takes the oldest event of a queue: ours, for iommufd has a descriptor to read from.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct ReadEvent {
    /// Bytes of the structure.
    pub argsz: u32,
    /// The queue.
    pub queue: u32,
    /// *out*: [`EVENT_PRESENT`](flags::EVENT_PRESENT) or zero.
    pub present: u32,
    /// *out*: the event's number, modulo 2^31.
    pub sequence: u32,
    /// *out*: the guest's number for the device.
    pub virtual_id: u64,
    /// *out*: the fault, its first two words zero.
    pub fault: ReadFault,
    /// *out*.
    pub failure: ObjectFailure,
}

impl Argument for ReadEvent {
    const NEEDED: usize = 8;
    const FLAGS: Option<u32> = None;
}
