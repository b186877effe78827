//! Structures of the posted series for a guest's PASID tables: `SET_PASID_TABLE` and its sisters,
//! `NESTING_OP`, nesting information, page responses.
//!
//! What begins with a size of its own inside of another structure is decoded by the rules of that
//! size (`crate::nesting`), so none of these is an `Argument` but the outermost.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::flags as all;
use crate::argument::Argument;

/// Values of these structures' fields.
pub(super) mod flags {
    /// `SET_PASID_TABLE`: configure.
    pub const PASID_TABLE_SET: u32 = 1;
    /// `SET_PASID_TABLE`: back to stage 2 alone.
    pub const PASID_TABLE_UNSET: u32 = 2;
    /// The version of [`PasidTableConfig`](super::PasidTableConfig), and of its SMMUv3 part.
    pub const PASID_TABLE_VERSION: u32 = 1;
    /// [`PasidTableConfig::format`](super::PasidTableConfig): SMMUv3.
    pub const PASID_TABLE_SMMUV3: u32 = 1;
    /// [`PasidTableConfig::config`](super::PasidTableConfig): the guest's table, then stage 2.
    pub const CONFIG_TRANSLATE: u8 = 1;
    /// [`PasidTableConfig::config`](super::PasidTableConfig): stage 2 alone.
    pub const CONFIG_BYPASS: u8 = 2;
    /// [`PasidTableConfig::config`](super::PasidTableConfig): nothing passes.
    pub const CONFIG_ABORT: u8 = 3;

    /// [`SetMsiBinding`](super::SetMsiBinding): record a doorbell.
    pub const MSI_BIND: u32 = 1;
    /// [`SetMsiBinding`](super::SetMsiBinding): forget it.
    pub const MSI_UNBIND: u32 = 2;

    /// `NESTING_OP`, low 16 bits: bind a first stage.
    pub const NESTING_BIND: u32 = 0;
    /// `NESTING_OP`: unbind it.
    pub const NESTING_UNBIND: u32 = 1;
    /// `NESTING_OP`: forget what is cached.
    pub const NESTING_INVALIDATE: u32 = 2;
    /// `NESTING_OP`, ours: answer a page request.
    pub const NESTING_PAGE_RESPONSE: u32 = 3;

    /// The version of [`GpasidBindData`](super::GpasidBindData).
    pub const GPASID_VERSION: u32 = 1;
    /// [`GpasidBindData::format`](super::GpasidBindData): VT-d.
    pub const GPASID_INTEL_VTD: u32 = 1;
    /// [`GpasidBindData::flags`](super::GpasidBindData): `gpasid` counts.
    pub const GPASID_VALID: u64 = 1;
    /// [`GpasidVtd::flags`](super::GpasidVtd): supervisor requests.
    pub const GPASID_VTD_SRE: u64 = 1;
    /// [`GpasidVtd::flags`](super::GpasidVtd): extended accessed flag.
    pub const GPASID_VTD_EAFE: u64 = 2;
    /// [`GpasidVtd::flags`](super::GpasidVtd): memory types, of which no hardware had any.
    pub const GPASID_VTD_MEMORY_TYPES: u64 = 4 | 8 | 16 | 32;
    /// [`GpasidVtd::flags`](super::GpasidVtd): write protection for supervisors.
    pub const GPASID_VTD_WPE: u64 = 64;

    /// The version of [`PageResponse`](super::PageResponse).
    pub const PAGE_RESPONSE_VERSION: u32 = 1;
    /// [`PageResponse::flags`](super::PageResponse): `pasid` counts.
    pub const PAGE_RESPONSE_PASID_VALID: u32 = 1;
    /// [`PageResponse::code`](super::PageResponse): the largest.
    pub const PAGE_RESPONSE_FAILURE: u32 = 2;

    /// [`NestingInfoV7::format`](super::NestingInfoV7), [`NestingInfo::format`](super::NestingInfo):
    /// VT-d.
    pub const NESTING_INTEL_VTD: u32 = 1;
    /// [`NestingInfoV7::features`](super::NestingInfoV7): PASIDs come from one space.
    pub const NESTING_V7_SYSTEM_WIDE_PASID: u32 = 1;
    /// [`NestingInfoV7::features`](super::NestingInfoV7): first stages can be bound.
    pub const NESTING_V7_BIND: u32 = 2;
    /// [`NestingInfoV7::features`](super::NestingInfoV7): caches can be invalidated.
    pub const NESTING_V7_INVALIDATE: u32 = 4;
    /// [`NestingInfo::features`](super::NestingInfo): first stages can be bound.
    pub const NESTING_FEATURE_BIND: u32 = 1;
    /// [`NestingInfo::features`](super::NestingInfo): caches can be invalidated.
    pub const NESTING_FEATURE_INVALIDATE: u32 = 2;
}

/// A size and flags: how `SET_PASID_TABLE`, `CACHE_INVALIDATE` of Linux 5.3 to 5.9, and
/// `NESTING_OP` begin.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct Header {
    /// Bytes of the structure.
    pub argsz: u32,
    /// What the request knows.
    pub flags: u32,
}

/// The part of [`PasidTableConfig`] for an SMMUv3 (`struct iommu_pasid_smmuv3`).
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct PasidSmmuv3 {
    /// [`PASID_TABLE_VERSION`](all::PASID_TABLE_VERSION).
    pub version: u32,
    /// S1Fmt.
    pub s1fmt: u8,
    /// S1DSS.
    pub s1dss: u8,
    /// Zero.
    pub padding: [u8; 2],
}

/// `struct iommu_pasid_table_config`, as versions 14 and 15 of the series have it.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct PasidTableConfig {
    /// Bytes of the structure.
    pub argsz: u32,
    /// [`PASID_TABLE_VERSION`](all::PASID_TABLE_VERSION).
    pub version: u32,
    /// The table, a guest physical address.
    pub base_ptr: u64,
    /// [`PASID_TABLE_SMMUV3`](all::PASID_TABLE_SMMUV3).
    pub format: u32,
    /// Bits of PASID.
    pub pasid_bits: u8,
    /// A `CONFIG_` value.
    pub config: u8,
    /// Zero.
    pub padding: [u8; 2],
    /// What is the SMMUv3's alone.
    pub smmuv3: PasidSmmuv3,
}

/// The same as versions 12 and 13 have it.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct PasidTableConfigV13 {
    /// Bytes of the structure.
    pub argsz: u32,
    /// [`PASID_TABLE_VERSION`](all::PASID_TABLE_VERSION).
    pub version: u32,
    /// [`PASID_TABLE_SMMUV3`](all::PASID_TABLE_SMMUV3).
    pub format: u32,
    /// A hole.
    pub hole: u32,
    /// The table, a guest physical address.
    pub base_ptr: u64,
    /// Bits of PASID.
    pub pasid_bits: u8,
    /// A `CONFIG_` value.
    pub config: u8,
    /// Zero.
    pub padding: [u8; 2],
    /// What is the SMMUv3's alone.
    pub smmuv3: PasidSmmuv3,
    /// The end of a structure aligned to eight bytes.
    pub tail: u32,
}

/// The same as versions 7 to 11 have it, without a size of its own.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct PasidTableConfigV7 {
    /// [`PASID_TABLE_VERSION`](all::PASID_TABLE_VERSION).
    pub version: u32,
    /// [`PASID_TABLE_SMMUV3`](all::PASID_TABLE_SMMUV3).
    pub format: u32,
    /// The table, a guest physical address.
    pub base_ptr: u64,
    /// Bits of PASID.
    pub pasid_bits: u8,
    /// A `CONFIG_` value.
    pub config: u8,
    /// Zero.
    pub padding: [u8; 6],
    /// What is the SMMUv3's alone.
    pub smmuv3: PasidSmmuv3,
}

/// `struct iommu_cache_invalidate_info` of Linux 5.3 to 5.9, without a size of its own.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct CacheInvalidateInfo53 {
    /// [`CACHE_VERSION`](all::CACHE_VERSION).
    pub version: u32,
    /// `CACHE_` bits.
    pub cache: u8,
    /// A `GRANULARITY_` value.
    pub granularity: u8,
    /// Zero.
    pub padding: [u8; 2],
    /// An [`AddressScope`](super::AddressScope), a [`PasidScope`](super::PasidScope), or nothing.
    pub scope: [u8; 40],
}

/// `struct vfio_iommu_type1_set_msi_binding`.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct SetMsiBinding {
    /// Bytes of the structure.
    pub argsz: u32,
    /// [`MSI_BIND`](all::MSI_BIND) or [`MSI_UNBIND`](all::MSI_UNBIND).
    pub flags: u32,
    /// Where the guest's stage 1 has its doorbell.
    pub iova: u64,
    /// What stage 1 maps that to.
    pub gpa: u64,
    /// Bytes of the stage-1 page.
    pub size: u64,
}

impl Argument for SetMsiBinding {
    const NEEDED: usize = 8;
    const FLAGS: Option<u32> = Some(all::MSI_BIND | all::MSI_UNBIND);
}

/// The part of [`GpasidBindData`] for a VT-d (`struct iommu_gpasid_bind_data_vtd`).
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct GpasidVtd {
    /// `GPASID_VTD_` bits.
    pub flags: u64,
    /// Page attribute table; no hardware takes it.
    pub pat: u32,
    /// Extended memory type; no hardware takes it.
    pub emt: u32,
}

/// `struct iommu_gpasid_bind_data` of Linux 5.10.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct GpasidBindData {
    /// Bytes of the structure.
    pub argsz: u32,
    /// [`GPASID_VERSION`](all::GPASID_VERSION).
    pub version: u32,
    /// [`GPASID_INTEL_VTD`](all::GPASID_INTEL_VTD).
    pub format: u32,
    /// Bits of virtual addresses.
    pub addr_width: u32,
    /// [`GPASID_VALID`](all::GPASID_VALID) or nothing.
    pub flags: u64,
    /// Root of the first stage, a guest physical address.
    pub gpgd: u64,
    /// The PASID, as `PASID_REQUEST` gave it.
    pub hpasid: u64,
    /// The guest's number for it.
    pub gpasid: u64,
    /// Zero.
    pub padding: [u8; 8],
    /// What is VT-d's alone.
    pub vtd: GpasidVtd,
}

/// The same in Linux 5.3 to 5.9, without a size of its own.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct GpasidBindData53 {
    /// [`GPASID_VERSION`](all::GPASID_VERSION).
    pub version: u32,
    /// [`GPASID_INTEL_VTD`](all::GPASID_INTEL_VTD).
    pub format: u32,
    /// [`GPASID_VALID`](all::GPASID_VALID) or nothing.
    pub flags: u64,
    /// Root of the first stage, a guest physical address.
    pub gpgd: u64,
    /// The PASID, as `PASID_REQUEST` gave it.
    pub hpasid: u64,
    /// The guest's number for it.
    pub gpasid: u64,
    /// Bits of virtual addresses.
    pub addr_width: u32,
    /// Zero.
    pub padding: [u8; 12],
    /// What is VT-d's alone.
    pub vtd: GpasidVtd,
}

/// `struct iommu_page_response`.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct PageResponse {
    /// Bytes of the structure.
    pub argsz: u32,
    /// [`PAGE_RESPONSE_VERSION`](all::PAGE_RESPONSE_VERSION).
    pub version: u32,
    /// [`PAGE_RESPONSE_PASID_VALID`](all::PAGE_RESPONSE_PASID_VALID) or nothing.
    pub flags: u32,
    /// The PASID of the request.
    pub pasid: u32,
    /// The group of the request.
    pub grpid: u32,
    /// Success, invalid, failure: 0 to [`PAGE_RESPONSE_FAILURE`](all::PAGE_RESPONSE_FAILURE).
    pub code: u32,
}

/// The part of nesting information for a VT-d, as version 7 of the series has it.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct NestingVtdV7 {
    /// None.
    pub flags: u32,
    /// Zero.
    pub padding: u32,
    /// The capability register.
    pub cap_reg: u64,
    /// The extended capability register.
    pub ecap_reg: u64,
}

/// `struct iommu_nesting_info`, as version 7 of the series has it, before its vendor's part.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct NestingInfoV7 {
    /// Bytes, with the vendor's part.
    pub size: u32,
    /// [`NESTING_INTEL_VTD`](all::NESTING_INTEL_VTD), or zero.
    pub format: u32,
    /// `NESTING_V7_` bits.
    pub features: u32,
    /// None.
    pub flags: u32,
    /// Bits of the addresses that stage 2 translates.
    pub addr_width: u16,
    /// Bits of PASID.
    pub pasid_bits: u16,
    /// Zero.
    pub padding: u32,
}

/// `struct iommu_nesting_info` as its developers' tree has it last.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct NestingInfo {
    /// Bytes of the structure.
    pub argsz: u32,
    /// None.
    pub flags: u32,
    /// [`NESTING_INTEL_VTD`](all::NESTING_INTEL_VTD), or zero.
    pub format: u32,
    /// `NESTING_FEATURE_` bits.
    pub features: u32,
    /// Bits of the addresses that stage 2 translates.
    pub addr_width: u16,
    /// Bits of PASID.
    pub pasid_bits: u16,
    /// Zero.
    pub padding: [u8; 12],
    /// None.
    pub vendor_flags: u32,
    /// Zero.
    pub vendor_padding: [u8; 12],
    /// VT-d's capability register.
    pub cap_reg: u64,
    /// VT-d's extended capability register.
    pub ecap_reg: u64,
}
