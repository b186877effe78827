//! Queued-invalidation descriptors (6.5.2): open at the wire, closed after decode.

mod layout;

use iommu::{DomainId, Pasid};
use mem::{Gpa, Iova, Range};
use pci::RequesterId;

use super::{Capability, ExtendedCapability, TableMode};

/// Number of address bits below a page.
const PAGE_BITS: u32 = 12;

/// Width of the descriptors in a queue (IQA_REG.DW).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DescriptorWidth {
    /// 128 bits.
    Bits128,
    /// 256 bits.
    Bits256,
}

impl DescriptorWidth {
    /// Width in bytes.
    pub const fn bytes(self) -> u64 {
        match self {
            Self::Bits128 => 16,
            Self::Bits256 => 32,
        }
    }
}

/// What decides whether a descriptor is valid (table 26, and the capability registers).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DescriptorRules {
    /// Width of the queue's descriptors.
    pub width: DescriptorWidth,
    /// Translation table mode in force.
    pub mode: TableMode,
    /// Capability register.
    pub capability: Capability,
    /// Extended capability register.
    pub extended: ExtendedCapability,
    /// Whether answers may carry private data, as revisions 3.0 to 3.x have it.
    pub private_data: bool,
}

/// IQEI (11.4.9.9): what an invalidation queue error was about.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
#[repr(u8)]
pub enum QueueErrorInfo {
    /// The tail is beyond the queue.
    TailPointer = 1,
    /// A descriptor could not be read.
    Fetch = 2,
    /// No descriptor of this type is valid here.
    Type = 3,
    /// A reserved bit or value in a descriptor.
    Reserved = 4,
    /// The queue's descriptor width does not go with the table mode.
    Width = 5,
    /// The tail is not a multiple of the descriptor width.
    TailAlignment = 6,
    /// The table mode is invalid.
    TableMode = 7,
}

/// Why a descriptor is refused. The guest's mistake.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum DescriptorError {
    /// No descriptor of this type is valid in this mode, width and with these capabilities.
    #[error("descriptor type {0} is not valid here")]
    Type(u8),
    /// A reserved bit is set.
    #[error("a reserved bit is set in a descriptor of type {0}")]
    Reserved(u8),
    /// The granularity is a reserved value, or needs a capability that is off.
    #[error("granularity {granularity} is not valid in a descriptor of type {kind}")]
    Granularity {
        /// Descriptor type.
        kind: u8,
        /// Granularity.
        granularity: u8,
    },
    /// The address mask is larger than CAP.MAMV.
    #[error("address mask {mask} exceeds {limit}")]
    AddressMask {
        /// The mask.
        mask: u8,
        /// CAP.MAMV.
        limit: u8,
    },
    /// The table mode does not allow this descriptor width.
    #[error("the table mode needs 256-bit descriptors")]
    Width,
    /// The table mode is reserved or not supported.
    #[error("the table mode is not supported")]
    TableMode,
}

impl DescriptorError {
    /// What the queue error record says of it.
    pub const fn info(&self) -> QueueErrorInfo {
        match self {
            Self::Type(_) => QueueErrorInfo::Type,
            Self::Reserved(_) | Self::Granularity { .. } | Self::AddressMask { .. } => {
                QueueErrorInfo::Reserved
            }
            Self::Width => QueueErrorInfo::Width,
            Self::TableMode => QueueErrorInfo::TableMode,
        }
    }
}

/// A size-aligned run of pages, as address and mask name it (table 22).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Pages {
    /// An address in the run.
    pub address: Iova,
    /// Number of low page-number bits that do not count, 0 to 63.
    pub mask: u8,
    /// Only leaf entries changed (IH).
    pub leaf_only: bool,
}

impl Pages {
    /// The addresses.
    pub fn range(&self) -> Range<Iova> {
        page_range(self.address, self.mask)
    }
}

/// Scope of a context-cache invalidation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ContextScope {
    /// All contexts.
    Global,
    /// Contexts of a domain. In scalable mode contexts have none, and this means all of them.
    Domain(DomainId),
    /// Contexts of devices.
    Device {
        /// Their domain; does not count in scalable mode.
        domain: DomainId,
        /// The device.
        source: RequesterId,
        /// FM: number of function-number bits that do not count, from bit 2 downwards, 0 to 3.
        function_mask: u8,
    },
}

/// Scope of an IOTLB invalidation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum IotlbScope {
    /// All translations.
    Global,
    /// Translations of a domain.
    Domain(DomainId),
    /// Translations of pages of a domain.
    Pages(DomainId, Pages),
}

/// Scope of a PASID-based IOTLB invalidation, within a domain and PASID.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PasidIotlbScope {
    /// All translations.
    All,
    /// Translations of pages.
    Pages(Pages),
}

/// Scope of a PASID-cache invalidation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PasidCacheScope {
    /// All PASID-table entries.
    Global,
    /// Those of a domain.
    Domain(DomainId),
    /// That of a PASID in a domain.
    Pasid(DomainId, Pasid),
}

/// Scope of a device TLB invalidation, within a device.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DeviceTlbScope {
    /// ADDR: page-aligned address, whose low bits say the size if `large`.
    pub address: Iova,
    /// S: more than a page.
    pub large: bool,
}

impl DeviceTlbScope {
    /// The addresses.
    pub fn range(&self) -> Range<Iova> {
        device_tlb_range(self.address, self.large)
    }
}

/// Scope of an interrupt entry cache invalidation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum InterruptEntryScope {
    /// All entries.
    Global,
    /// Entries from an index on.
    Index {
        /// The index.
        index: u16,
        /// Number of low index bits that do not count.
        mask: u8,
    },
}

/// An invalidation wait.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Wait {
    /// SW: the word to store, and where.
    pub status: Option<(Gpa, u32)>,
    /// IF: raise the completion event.
    pub interrupt: bool,
    /// FN: what follows starts only when this is complete.
    pub fence: bool,
    /// PD: page requests received before are visible first.
    pub page_request_drain: bool,
}

/// An answer to a page request group.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PageGroupResponse {
    /// Who asked.
    pub source: RequesterId,
    /// With which PASID.
    pub pasid: Option<Pasid>,
    /// Page request group index, 9 bits.
    pub group: u16,
    /// 0 success, 1 invalid request, 15 failure; see
    /// [`RESPONSE_SUCCESS`](super::RESPONSE_SUCCESS) and its kin.
    pub code: u8,
    /// What the request carried (PDP), where the rules allow it.
    pub private_data: Option<[u64; 2]>,
}

/// A decoded descriptor.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Descriptor {
    /// Type 1.
    ContextCache(ContextScope),
    /// Type 2.
    Iotlb {
        /// What to forget.
        scope: IotlbScope,
        /// DR.
        drain_reads: bool,
        /// DW.
        drain_writes: bool,
    },
    /// Type 3.
    DeviceTlb {
        /// The device.
        source: RequesterId,
        /// What to forget.
        scope: DeviceTlbScope,
    },
    /// Type 4.
    InterruptEntryCache(InterruptEntryScope),
    /// Type 5.
    Wait(Wait),
    /// Type 6.
    PasidIotlb {
        /// The domain.
        domain: DomainId,
        /// The PASID.
        pasid: Pasid,
        /// What to forget.
        scope: PasidIotlbScope,
    },
    /// Type 7.
    PasidCache(PasidCacheScope),
    /// Type 8.
    PasidDeviceTlb {
        /// The device.
        source: RequesterId,
        /// The PASID; `None` for all of them (GI).
        pasid: Option<Pasid>,
        /// What to forget.
        scope: DeviceTlbScope,
    },
    /// Type 9.
    PageGroupResponse(PageGroupResponse),
}

mod decode;
mod encode;

/// The run of 2 to the power of `mask` pages that holds `address`.
pub fn page_range(address: Iova, mask: u8) -> Range<Iova> {
    aligned_range(address, PAGE_BITS + u32::from(mask))
}

/// The addresses of a device TLB invalidation (ATS): a page, or if `large` twice the size that
/// the lowest clear bit from bit 12 on stands for.
pub fn device_tlb_range(address: Iova, large: bool) -> Range<Iova> {
    let ones = (address.0 >> PAGE_BITS).trailing_ones();
    aligned_range(address, if large { PAGE_BITS + ones + 1 } else { PAGE_BITS })
}

fn aligned_range(address: Iova, bits: u32) -> Range<Iova> {
    let low = 1u64.checked_shl(bits).map_or(u64::MAX, |size| size - 1);
    Range { start: Iova(address.0 & !low), last: Iova(address.0 | low) }
}
