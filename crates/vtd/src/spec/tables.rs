//! Root and context entries, legacy and scalable (9.1 to 9.4). Words are little-endian in memory.

use bitfield_struct::bitfield;

/// Translation table mode (RTADDR_REG.TTM, 11.4.5).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TableMode {
    /// 00: root and context tables.
    Legacy,
    /// 01: scalable-mode root and context tables.
    Scalable,
    /// 10: reserved.
    Reserved,
    /// 11: abort-DMA mode.
    AbortDma,
}

impl TableMode {
    /// The mode of the field's two bits.
    pub const fn from_field(field: u8) -> Self {
        match field & 3 {
            0 => Self::Legacy,
            1 => Self::Scalable,
            2 => Self::Reserved,
            _ => Self::AbortDma,
        }
    }
}

/// Low word of a legacy root entry (9.1); the high word is reserved.
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct RootEntry {
    /// P.
    pub present: bool,
    #[bits(11)]
    pub(crate) reserved: u16,
    /// CTP: page number of the context table.
    #[bits(52)]
    pub table: u64,
}

/// Half of a scalable-mode root entry (9.2): the low word for device/function 0 to 127, the
/// high word for 128 to 255.
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct ScalableRootHalf {
    /// LP or UP.
    pub present: bool,
    #[bits(11)]
    pub(crate) reserved: u16,
    /// LCTP or UCTP: page number of the context table.
    #[bits(52)]
    pub table: u64,
}

/// Translation type of a legacy context entry (9.3, TT).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TranslationType {
    /// 00: second stage; translation requests are blocked.
    Untranslated,
    /// 01: second stage; translation requests are allowed.
    All,
    /// 10: pass-through; translation requests are blocked.
    PassThrough,
    /// 11: reserved.
    Reserved,
}

impl TranslationType {
    const fn from_bits(field: u8) -> Self {
        match field {
            0 => Self::Untranslated,
            1 => Self::All,
            2 => Self::PassThrough,
            _ => Self::Reserved,
        }
    }

    const fn into_bits(self) -> u8 {
        self as u8
    }
}

/// Legacy context entry (9.3): 128 bits.
#[bitfield(u128)]
#[derive(PartialEq, Eq)]
pub struct ContextEntry {
    /// P.
    pub present: bool,
    /// FPD: faults are not recorded; counts even if the entry is not present.
    pub fault_disable: bool,
    /// TT.
    #[bits(2)]
    pub translation: TranslationType,
    #[bits(8)]
    pub(crate) reserved_low: u8,
    /// SSPTPTR: page number of the second-stage table.
    #[bits(52)]
    pub table: u64,
    /// AW: 1 for 39 bits and 3 levels, 2 for 48 and 4, 3 for 57 and 5.
    #[bits(3)]
    pub width: u8,
    /// Ignored by hardware.
    #[bits(4)]
    pub ignored: u8,
    #[bits(1)]
    pub(crate) reserved_middle: u8,
    /// DID.
    pub domain: u16,
    #[bits(40)]
    pub(crate) reserved_high: u64,
}

/// Scalable-mode context entry (9.4): the first 128 of its 256 bits; the others are reserved.
#[bitfield(u128)]
#[derive(PartialEq, Eq)]
pub struct ScalableContextEntry {
    /// P.
    pub present: bool,
    /// FPD: faults are not recorded; counts even if the entry is not present.
    pub fault_disable: bool,
    /// DTE: translation requests are allowed.
    pub device_tlb: bool,
    /// PASIDE: requests with PASID are allowed.
    pub pasid: bool,
    /// PRE: page requests are allowed.
    pub page_requests: bool,
    #[bits(4)]
    pub(crate) reserved_low: u8,
    /// PDTS: the PASID directory has 2 to the power of this + 7 entries.
    #[bits(3)]
    pub directory_size: u8,
    /// PASIDDIRPTR: page number of the PASID directory.
    #[bits(52)]
    pub directory: u64,
    /// RID_PASID: the PASID of requests without one.
    #[bits(20)]
    pub rid_pasid: u32,
    /// RID_PRIV: requests without PASID are privileged.
    pub rid_privileged: bool,
    #[bits(43)]
    pub(crate) reserved_high: u64,
}
