//! How a device's requests are to be translated: what a model tells the engine.

mod smmuv3;

use mem::{Gpa, GuestMemory};
use pci::RequesterId;

use crate::{DomainId, FaultReason, Pasid};

pub use smmuv3::{
    Asid, DefaultSubstream, DescriptorForm, DescriptorTable, SmmuStageTwo, StreamContext,
    StreamTranslation, Vmid,
};

/// The translation of all requests of one device, as its IOMMU's tables have it (VT-d: the
/// context entry; SMMUv3: the stream-table entry).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DeviceContext {
    /// Requests without PASID go to guest physical addresses unchanged; requests with PASID fault.
    PassThrough {
        /// Tag of what is cached.
        domain: DomainId,
        /// Whether address translation requests (ATS) are allowed.
        ats: bool,
        /// Whether faults of this device are not recorded.
        fault_disable: bool,
    },
    /// Requests without PASID are translated by one second-stage table; with PASID they fault.
    StageTwo {
        /// Tag of what is cached.
        domain: DomainId,
        /// The table.
        table: StageTwo,
        /// Whether address translation requests (ATS) are allowed.
        ats: bool,
        /// Whether faults of this device are not recorded.
        fault_disable: bool,
    },
    /// Each request is translated by the entry of its PASID in a table in guest memory (table
    /// delegation: the host walks the guest's own table).
    PasidTable(PasidTable),
    /// As an SMMUv3's stream-table entry says.
    Smmuv3(StreamContext),
}

/// A VT-d second-stage table in guest memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct StageTwo {
    /// Address of its root.
    pub root: Gpa,
    /// Number of levels, 3 to 5.
    pub levels: u8,
    /// Whether the walker sets accessed and dirty bits.
    pub accessed_dirty: bool,
}

/// A delegated VT-d scalable-mode PASID table (directory and leaf tables, VT-d 3.4.3, 9.5).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PasidTable {
    /// Address of the PASID directory.
    pub directory: Gpa,
    /// Number of PASID bits the directory covers (7 to 20): a larger PASID faults.
    pub pasid_bits: u8,
    /// The PASID that stands for requests without one.
    pub rid_pasid: Pasid,
    /// Whether requests without PASID are privileged.
    pub rid_privileged: bool,
    /// Whether requests with PASID are allowed.
    pub pasid_enable: bool,
    /// Whether address translation requests (ATS) are allowed.
    pub ats: bool,
    /// Whether page requests are allowed.
    pub page_requests: bool,
    /// Whether faults of this device are not recorded.
    pub fault_disable: bool,
    /// What entries of this table may use.
    pub caps: TableCaps,
}

/// What table entries may use; the rest is a reserved bit or an invalid entry. Comes from the
/// model's own capability registers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TableCaps {
    /// Width of a host (here: guest physical) address in bits; higher address bits are reserved.
    pub address_bits: u8,
    /// First-stage translation, and so nested translation when `second_stage` is set too.
    pub first_stage: bool,
    /// Second-stage translation.
    pub second_stage: bool,
    /// Nested translation.
    pub nested: bool,
    /// Pass-through.
    pub pass_through: bool,
    /// 5-level first-stage tables.
    pub first_stage_5_level: bool,
    /// 1 GiB pages in first-stage tables.
    pub first_stage_1g: bool,
    /// Second-stage table levels supported: bit n for n + 2 levels (bit 1: 3, bit 2: 4, bit 3: 5),
    /// as CAP.SAGAW has it.
    pub second_stage_levels: u8,
    /// 2 MiB (bit 0) and 1 GiB (bit 1) pages in second-stage tables, as CAP.SLLPS has it.
    pub second_stage_large: u8,
    /// Accessed and dirty bits in second-stage tables (ECAP.SLADS).
    pub second_stage_accessed_dirty: bool,
    /// Supervisor requests (ECAP.SRS).
    pub supervisor: bool,
    /// Page-walk snoop may be set in an entry (ECAP.SMPWC).
    pub page_walk_snoop: bool,
}

impl TableCaps {
    /// All that this crate can do. A unit that has less says only what: `TableCaps { address_bits: 46, ..TableCaps::FULL }`.
    pub const FULL: Self = Self {
        address_bits: 52,
        first_stage: true,
        second_stage: true,
        nested: true,
        pass_through: true,
        first_stage_5_level: true,
        first_stage_1g: true,
        second_stage_levels: 0b1110,
        second_stage_large: 0b11,
        second_stage_accessed_dirty: true,
        supervisor: true,
        page_walk_snoop: true,
    };
}

/// Where the engine finds a device's context on a miss: the model's own root tables.
///
/// Called on the path of a DMA, so it must not block, nor use the device's channels; it may be
/// called from several threads.
pub trait ContextSource: Send + Sync {
    /// The context of `requester`, read from `memory`; a fault reason if the tables do not give one.
    ///
    /// A fault carries whether its recording is disabled (VT-d: FPD in the entry that was read).
    fn lookup(
        &self,
        memory: &dyn GuestMemory,
        requester: RequesterId,
    ) -> Result<DeviceContext, ContextFault>;
}

/// Why a device has no context.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ContextFault {
    /// What is wrong.
    pub reason: FaultReason,
    /// Whether it is not to be recorded.
    pub fault_disable: bool,
}
