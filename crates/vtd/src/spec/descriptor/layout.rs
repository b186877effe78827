//! The wire layouts: the first 128 bits of each descriptor. Any bits decode; what they mean is
//! decided in the parent module.
//!
//! The type of a descriptor is split: bits 3:0 and 11:9 (6.5.2).

use bitfield_struct::bitfield;

/// What all descriptors share.
#[bitfield(u128)]
pub(super) struct Header {
    #[bits(4)]
    pub type_low: u8,
    #[bits(5)]
    __: u8,
    #[bits(3)]
    pub type_high: u8,
    #[bits(116)]
    __: u128,
}

/// Context-cache invalidation (6.5.2.1).
#[bitfield(u128)]
pub(super) struct ContextCache {
    #[bits(4)]
    pub type_low: u8,
    #[bits(2)]
    pub granularity: u8,
    #[bits(3)]
    pub r0: u8,
    #[bits(3)]
    pub type_high: u8,
    #[bits(4)]
    pub r1: u8,
    pub domain: u16,
    pub source: u16,
    #[bits(2)]
    pub function_mask: u8,
    #[bits(14)]
    pub r2: u16,
    pub r3: u64,
}

impl ContextCache {
    pub(super) fn is_clean(self) -> bool {
        self.r0() == 0 && self.r1() == 0 && self.r2() == 0 && self.r3() == 0
    }
}

/// IOTLB invalidation (6.5.2.3).
#[bitfield(u128)]
pub(super) struct Iotlb {
    #[bits(4)]
    pub type_low: u8,
    #[bits(2)]
    pub granularity: u8,
    pub drain_writes: bool,
    pub drain_reads: bool,
    #[bits(1)]
    pub r0: u8,
    #[bits(3)]
    pub type_high: u8,
    #[bits(4)]
    pub r1: u8,
    pub domain: u16,
    pub r2: u32,
    #[bits(6)]
    pub mask: u8,
    pub leaf_only: bool,
    #[bits(5)]
    pub r3: u8,
    #[bits(52)]
    pub page: u64,
}

impl Iotlb {
    pub(super) fn is_clean(self) -> bool {
        self.r0() == 0 && self.r1() == 0 && self.r2() == 0 && self.r3() == 0
    }
}

/// Device TLB invalidation (6.5.2.5).
#[bitfield(u128)]
pub(super) struct DeviceTlb {
    #[bits(4)]
    pub type_low: u8,
    #[bits(5)]
    pub r0: u8,
    #[bits(3)]
    pub type_high: u8,
    #[bits(4)]
    pub physical_function_low: u8,
    #[bits(5)]
    pub max_pending: u8,
    #[bits(11)]
    pub r1: u16,
    pub source: u16,
    #[bits(4)]
    pub r2: u8,
    #[bits(12)]
    pub physical_function_high: u16,
    pub size: bool,
    #[bits(11)]
    pub r3: u16,
    #[bits(52)]
    pub page: u64,
}

impl DeviceTlb {
    /// Without throttling (ECAP.DIT) the physical function's fields are reserved.
    pub(super) fn is_clean(self, throttle: bool) -> bool {
        let function = self.physical_function_low() != 0 || self.physical_function_high() != 0;
        self.r0() == 0
            && self.r1() == 0
            && self.r2() == 0
            && self.r3() == 0
            && (throttle || !function)
    }
}

/// Interrupt entry cache invalidation (6.5.2.8).
#[bitfield(u128)]
pub(super) struct InterruptEntryCache {
    #[bits(4)]
    pub type_low: u8,
    pub selective: bool,
    #[bits(4)]
    pub r0: u8,
    #[bits(3)]
    pub type_high: u8,
    #[bits(15)]
    pub r1: u16,
    #[bits(5)]
    pub mask: u8,
    pub index: u16,
    pub r2: u16,
    pub r3: u64,
}

impl InterruptEntryCache {
    pub(super) fn is_clean(self) -> bool {
        self.r0() == 0 && self.r1() == 0 && self.r2() == 0 && self.r3() == 0
    }
}

/// Invalidation wait (6.5.2.9).
#[bitfield(u128)]
pub(super) struct Wait {
    #[bits(4)]
    pub type_low: u8,
    pub interrupt: bool,
    pub status_write: bool,
    pub fence: bool,
    pub page_request_drain: bool,
    #[bits(1)]
    pub r0: u8,
    #[bits(3)]
    pub type_high: u8,
    #[bits(20)]
    pub r1: u32,
    pub status_data: u32,
    #[bits(2)]
    pub r2: u8,
    #[bits(62)]
    pub status_word: u64,
}

impl Wait {
    /// Without page-request draining (ECAP.PDS) its flag is reserved.
    pub(super) fn is_clean(self, drain: bool) -> bool {
        self.r0() == 0 && self.r1() == 0 && self.r2() == 0 && (drain || !self.page_request_drain())
    }
}

/// PASID-based IOTLB (6.5.2.4) and PASID-cache (6.5.2.2) invalidation.
#[bitfield(u128)]
pub(super) struct Pasid {
    #[bits(4)]
    pub type_low: u8,
    #[bits(2)]
    pub granularity: u8,
    #[bits(3)]
    pub r0: u8,
    #[bits(3)]
    pub type_high: u8,
    #[bits(4)]
    pub r1: u8,
    pub domain: u16,
    #[bits(20)]
    pub pasid: u32,
    #[bits(12)]
    pub r2: u16,
    #[bits(6)]
    pub mask: u8,
    pub leaf_only: bool,
    #[bits(5)]
    pub r3: u8,
    #[bits(52)]
    pub page: u64,
}

impl Pasid {
    pub(super) fn is_clean(self) -> bool {
        self.r0() == 0 && self.r1() == 0 && self.r2() == 0 && self.r3() == 0
    }

    /// Whether the address fields are clear: a PASID-cache invalidation has none.
    pub(super) fn is_without_address(self) -> bool {
        self.mask() == 0 && !self.leaf_only() && self.page() == 0
    }
}

/// PASID-based device TLB invalidation (6.5.2.6).
#[bitfield(u128)]
pub(super) struct PasidDeviceTlb {
    #[bits(4)]
    pub type_low: u8,
    #[bits(5)]
    pub max_pending: u8,
    #[bits(3)]
    pub type_high: u8,
    #[bits(4)]
    pub physical_function_low: u8,
    pub source: u16,
    #[bits(20)]
    pub pasid: u32,
    #[bits(12)]
    pub physical_function_high: u16,
    pub global: bool,
    #[bits(10)]
    pub r0: u16,
    pub size: bool,
    #[bits(52)]
    pub page: u64,
}

impl PasidDeviceTlb {
    /// Without throttling (ECAP.DIT) the physical function's fields are reserved.
    pub(super) fn is_clean(self, throttle: bool) -> bool {
        let function = self.physical_function_low() != 0 || self.physical_function_high() != 0;
        self.r0() == 0 && (throttle || !function)
    }
}

/// Page group response (7.6.1).
#[bitfield(u128)]
pub(super) struct PageGroupResponse {
    #[bits(4)]
    pub type_low: u8,
    pub pasid_present: bool,
    /// Revisions 3.x; reserved since.
    pub private_data: bool,
    #[bits(3)]
    pub r0: u8,
    #[bits(3)]
    pub type_high: u8,
    #[bits(4)]
    pub code: u8,
    pub source: u16,
    #[bits(20)]
    pub pasid: u32,
    #[bits(12)]
    pub r1: u16,
    #[bits(2)]
    pub r2: u8,
    /// LPIG of revisions 3.x: says nothing, since only groups are answered.
    pub last: bool,
    #[bits(9)]
    pub group: u16,
    #[bits(52)]
    pub r3: u64,
}

impl PageGroupResponse {
    pub(super) fn is_clean(self, private_data: bool) -> bool {
        self.r0() == 0
            && self.r1() == 0
            && self.r2() == 0
            && self.r3() == 0
            && (private_data || !self.private_data())
    }
}
