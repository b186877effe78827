//! Address translation services, page requests and PASIDs (10.5 and 7.8.8).

use bitfield_struct::bitfield;

/// ATS capability (10.5.1.2).
#[bitfield(u16)]
#[derive(PartialEq, Eq)]
pub struct AtsCapabilities {
    /// Invalidations it can take before it pushes back; 0 stands for 32.
    #[bits(5)]
    pub queue_depth: u8,
    /// Untranslated addresses are always page aligned: what Linux asks for before it enables ATS.
    pub page_aligned: bool,
    /// Understands invalidations of all PASIDs at once.
    pub global_invalidate: bool,
    /// Honours the relaxed ordering attribute of invalidations.
    pub relaxed_ordering: bool,
    #[bits(8)]
    __: u8,
}

/// ATS control (10.5.1.3).
#[bitfield(u16)]
#[derive(PartialEq, Eq)]
pub struct AtsControl {
    /// Smallest translation unit, as a power of two of 4096-byte blocks.
    #[bits(5)]
    pub smallest_unit: u8,
    #[bits(10)]
    __: u16,
    /// May cache translations.
    pub enable: bool,
}

/// Page request control (10.5.2.2).
#[bitfield(u16)]
#[derive(PartialEq, Eq)]
pub struct PriControl {
    /// May send page requests. Turning it on clears the errors in the status.
    pub enable: bool,
    /// Forgets the credits and requests of a stopped interface; always reads as zero.
    pub reset: bool,
    #[bits(14)]
    __: u16,
}

/// Page request status (10.5.2.3).
#[bitfield(u16)]
#[derive(PartialEq, Eq)]
pub struct PriStatus {
    /// A page group response said failure.
    pub response_failure: bool,
    /// A response matched no request.
    pub unexpected_group: bool,
    #[bits(6)]
    __: u8,
    /// Every request that was sent is answered, and no more will be.
    pub stopped: bool,
    #[bits(6)]
    __: u8,
    /// Responses to requests with a PASID must carry it.
    pub response_pasid_required: bool,
}

/// PASID capability (7.8.8.2).
#[bitfield(u16)]
#[derive(PartialEq, Eq)]
pub struct PasidCapabilities {
    #[bits(1)]
    __: u8,
    /// Can ask for execute permission.
    pub execute: bool,
    /// Can issue requests as supervisor.
    pub privileged: bool,
    #[bits(5)]
    __: u8,
    /// Bits of a PASID, 1 to 20.
    #[bits(5)]
    pub width: u8,
    #[bits(3)]
    __: u8,
}

/// PASID control (7.8.8.3).
#[bitfield(u16)]
#[derive(PartialEq, Eq)]
pub struct PasidControl {
    /// May put a PASID on its requests.
    pub enable: bool,
    /// May ask for execute permission.
    pub execute: bool,
    /// May issue requests as supervisor.
    pub privileged: bool,
    #[bits(13)]
    __: u16,
}
