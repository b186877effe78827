//! Structures that Linux has, or that were posted for it.

use core::ops::Range;

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::argument::Argument;

/// Values of the posted structures' fields.
pub(super) mod flags {
    /// [`MapDma`](super::MapDma): devices may read.
    pub const MAP_READ: u32 = 1;
    /// [`MapDma`](super::MapDma): devices may write.
    pub const MAP_WRITE: u32 = 2;
    /// [`UnmapDma`](super::UnmapDma): everything; address and size are zero.
    pub const UNMAP_ALL: u32 = 2;

    /// [`PasidRequest`](super::PasidRequest): grant a PASID in the range.
    pub const PASID_ALLOC: u32 = 1;
    /// [`PasidRequest`](super::PasidRequest): take back the caller's own PASIDs in the range.
    pub const PASID_FREE: u32 = 2;

    /// The version of [`CacheInvalidateInfo`](super::CacheInvalidateInfo).
    pub const CACHE_VERSION: u32 = 1;
    /// [`CacheInvalidateInfo::cache`](super::CacheInvalidateInfo): translations.
    pub const CACHE_IOTLB: u8 = 1;
    /// [`CacheInvalidateInfo::cache`](super::CacheInvalidateInfo): what devices hold themselves.
    pub const CACHE_DEVICE_IOTLB: u8 = 2;
    /// [`CacheInvalidateInfo::cache`](super::CacheInvalidateInfo): PASID-table entries.
    pub const CACHE_PASID: u8 = 4;
    /// [`CacheInvalidateInfo::granularity`](super::CacheInvalidateInfo): everything of the VM.
    pub const GRANULARITY_DOMAIN: u8 = 0;
    /// [`CacheInvalidateInfo::granularity`](super::CacheInvalidateInfo): a
    /// [`PasidScope`](super::PasidScope).
    pub const GRANULARITY_PASID: u8 = 1;
    /// [`CacheInvalidateInfo::granularity`](super::CacheInvalidateInfo): an
    /// [`AddressScope`](super::AddressScope).
    pub const GRANULARITY_ADDRESS: u8 = 2;
    /// A scope's `pasid` counts.
    pub const SCOPE_PASID: u32 = 1;
    /// A scope's `archid` counts.
    pub const SCOPE_ARCHID: u32 = 2;
    /// [`AddressScope`](super::AddressScope): only leaf entries changed.
    pub const SCOPE_LEAF: u32 = 4;

    /// [`DmaFault::kind`](super::DmaFault): an unrecoverable fault. Zero: none.
    pub const FAULT_UNRECOVERABLE: u32 = 1;
    /// [`DmaFault::flags`](super::DmaFault): `pasid` counts.
    pub const FAULT_PASID_VALID: u32 = 1;
    /// [`DmaFault::flags`](super::DmaFault): `address` counts.
    pub const FAULT_ADDRESS_VALID: u32 = 2;
    /// `IOMMU_FAULT_UNRECOV_FETCH_ADDR_VALID`
    pub const FAULT_FETCH_ADDRESS_VALID: u32 = 4;
    /// [`DmaFault::permission`](super::DmaFault): the request reads.
    pub const PERMISSION_READ: u32 = 1;
    /// [`DmaFault::permission`](super::DmaFault): the request writes.
    pub const PERMISSION_WRITE: u32 = 2;
    /// [`DmaFault::permission`](super::DmaFault): the request is privileged.
    pub const PERMISSION_PRIVILEGED: u32 = 8;
    /// [`DmaFault::reason`](super::DmaFault): none of the others.
    pub const REASON_UNKNOWN: u32 = 0;
    /// [`DmaFault::reason`](super::DmaFault): a PASID table could not be read.
    pub const REASON_PASID_FETCH: u32 = 1;
    /// [`DmaFault::reason`](super::DmaFault): an entry of a PASID table is wrong.
    pub const REASON_BAD_PASID_ENTRY: u32 = 2;
    /// [`DmaFault::reason`](super::DmaFault): the PASID is beyond the table, or off.
    pub const REASON_PASID_INVALID: u32 = 3;
    /// [`DmaFault::reason`](super::DmaFault): a translation table could not be read.
    pub const REASON_WALK_ABORT: u32 = 4;
    /// [`DmaFault::reason`](super::DmaFault): a translation-table entry is absent or wrong.
    pub const REASON_PTE_FETCH: u32 = 5;
    /// [`DmaFault::reason`](super::DmaFault): the access is not permitted.
    pub const REASON_PERMISSION: u32 = 6;
    /// [`DmaFault::reason`](super::DmaFault): the accessed bit could not be had.
    pub const REASON_ACCESS: u32 = 7;
    /// [`DmaFault::reason`](super::DmaFault): an address is too wide.
    pub const REASON_OUT_OF_RANGE: u32 = 8;
}

/// `struct vfio_iommu_type1_dma_map`: makes memory reachable, at once or, while a change of the
/// memory map is open, when that is committed.
///
/// The memory's handle comes beside it: there is no address space of the caller's to point into.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct MapDma {
    /// Bytes of the structure.
    pub argsz: u32,
    /// [`MAP_READ`](flags::MAP_READ), and perhaps [`MAP_WRITE`](flags::MAP_WRITE).
    pub flags: u32,
    /// Where in the memory of the handle it starts, in bytes.
    pub vaddr: u64,
    /// First guest physical address.
    pub iova: u64,
    /// Bytes.
    pub size: u64,
}

impl Argument for MapDma {
    const FLAGS: Option<u32> = Some(flags::MAP_READ | flags::MAP_WRITE);
}

/// `struct vfio_iommu_type1_dma_unmap`: withdraws whole mappings, when [`MapDma`] would make them.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct UnmapDma {
    /// Bytes of the structure.
    pub argsz: u32,
    /// [`UNMAP_ALL`](flags::UNMAP_ALL) or nothing.
    pub flags: u32,
    /// First address.
    pub iova: u64,
    /// Bytes; *out*: how many were mapped there.
    pub size: u64,
}

impl Argument for UnmapDma {
    const FLAGS: Option<u32> = Some(flags::UNMAP_ALL);
}

/// `struct vfio_iommu_type1_pasid_request`, with its range unfolded. The granted PASID is the
/// call's return value.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct PasidRequest {
    /// Bytes of the structure.
    pub argsz: u32,
    /// One of [`PASID_ALLOC`](flags::PASID_ALLOC) and [`PASID_FREE`](flags::PASID_FREE).
    pub flags: u32,
    /// Lowest PASID.
    pub min: u32,
    /// Highest PASID.
    pub max: u32,
}

impl Argument for PasidRequest {
    const FLAGS: Option<u32> = Some(flags::PASID_ALLOC | flags::PASID_FREE);
}

/// `struct vfio_iommu_type1_cache_invalidate`.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct CacheInvalidate {
    /// Bytes of the structure.
    pub argsz: u32,
    /// None is known.
    pub flags: u32,
    /// What to forget.
    pub info: CacheInvalidateInfo,
}

impl Argument for CacheInvalidate {
    const NEEDED: usize = CacheInvalidateInfo::NEEDED + 8;
}

/// `struct iommu_cache_invalidate_info`.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct CacheInvalidateInfo {
    /// Bytes of this structure: through `padding`, [`PasidScope`] or [`AddressScope`].
    pub argsz: u32,
    /// [`CACHE_VERSION`](flags::CACHE_VERSION).
    pub version: u32,
    /// `CACHE_` bits.
    pub cache: u8,
    /// A `GRANULARITY_` value.
    pub granularity: u8,
    /// Zero.
    pub padding: [u8; 6],
    /// An [`AddressScope`], a [`PasidScope`], or nothing.
    pub scope: [u8; 40],
}

impl Argument for CacheInvalidateInfo {
    const NEEDED: usize = 16;
    const FLAGS: Option<u32> = None;
    const RESERVED: [Range<usize>; 2] = [10..16, 0..0];
}

/// `struct iommu_inv_pasid_info`.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct PasidScope {
    /// `SCOPE_PASID`, `SCOPE_ARCHID`, or both.
    pub flags: u32,
    /// The domain that caches are tagged with.
    pub archid: u32,
    /// The PASID.
    pub pasid: u64,
}

/// `struct iommu_inv_addr_info`.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct AddressScope {
    /// `SCOPE_` bits.
    pub flags: u32,
    /// The domain that caches are tagged with.
    pub archid: u32,
    /// The PASID.
    pub pasid: u64,
    /// First address, a multiple of the granule.
    pub address: u64,
    /// Bytes of a granule, a power of two.
    pub granule_size: u64,
    /// How many granules.
    pub granules: u64,
}

/// `struct iommu_fault` of an unrecoverable fault, and its 24 bytes of padding.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct DmaFault {
    /// [`FAULT_UNRECOVERABLE`](flags::FAULT_UNRECOVERABLE).
    pub kind: u32,
    /// Zero.
    pub padding: u32,
    /// A `REASON_` value.
    pub reason: u32,
    /// `FAULT_` bits.
    pub flags: u32,
    /// The PASID.
    pub pasid: u32,
    /// `PERMISSION_` bits: what the request wanted.
    pub permission: u32,
    /// The address of the request.
    pub address: u64,
    /// The address of the table entry, where stage 2 did not translate that.
    pub fetch_address: u64,
    /// Zero.
    pub padding_to_64: [u8; 24],
}
