//! Faults as semantic values. Each IOMMU model encodes one once, at its edge.

mod record;

use mem::{Access, Gpa, Iova};
use pci::RequesterId;

pub use record::{FaultEvent, FaultRecord};

use crate::Pasid;

/// The stage of a translation.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum Stage {
    /// Stage 1 (VT-d: first stage).
    One,
    /// Stage 2 (VT-d: second stage) of the request's own address.
    Two,
    /// Stage 2, of the address of a stage-1 table in a nested translation.
    TwoForTable,
    /// Stage 2, of the address of a context descriptor (SMMUv3), or of a table of them.
    TwoForDescriptor,
}

/// An unrecoverable fault of one request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Fault {
    /// Who asked.
    pub requester: RequesterId,
    /// With which PASID, if any.
    pub pasid: Option<Pasid>,
    /// For which address.
    pub address: Iova,
    /// To do what.
    pub access: Access,
    /// Whether the request was privileged.
    pub privileged: bool,
    /// Whether it was an address translation request (ATS) and not an access.
    pub translation_request: bool,
    /// What was wrong.
    pub reason: FaultReason,
    /// Where stage 2 stopped, if it was that which stopped the request.
    pub stage_two: Option<StageTwoFault>,
}

/// Where stage 2 stopped a request.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub struct StageTwoFault {
    /// The address that it was to translate: a guest physical one. For a second stage of the
    /// guest's own without a first, the address of the request.
    pub gpa: Gpa,
    /// Whether that is the address of an entry of a table, and not where the request itself goes.
    pub table: bool,
    /// Level of the entry at which it stopped, 1 for a leaf; zero if at none.
    pub level: u8,
    /// Whose stage 2 it is.
    pub owner: StageTwoOwner,
}

/// Whose a stage 2 is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum StageTwoOwner {
    /// The guest's: a VT-d second-stage table of its own.
    Guest,
    /// The host's ([`VmConfig::stage_two`](crate::VmConfig::stage_two)): nothing that the guest
    /// could mend.
    Host,
}

impl Fault {
    /// Whether the host's stage 2 stopped the request.
    pub fn is_hosts(&self) -> bool {
        self.stage_two.is_some_and(|stop| stop.owner == StageTwoOwner::Host)
    }
}

/// What was wrong with a request, by the structure at which translation stopped.
///
/// The names are VT-d's. For SMMUv3, the root is the stream table, the context its entry, the PASID
/// directory the first level of a table of context descriptors, a PASID entry a descriptor.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum FaultReason {
    /// The root table pointer cannot be used (reserved bits, unsupported mode).
    RootPointer,
    /// A root entry could not be read.
    RootAccess,
    /// The root entry is not present.
    RootNotPresent,
    /// The root entry has a reserved bit set.
    RootReserved,
    /// A context entry could not be read.
    ContextAccess,
    /// The context entry is not present.
    ContextNotPresent,
    /// The context entry has a reserved bit set.
    ContextReserved,
    /// The context entry asks for something that is not supported.
    ContextInvalid,
    /// A translation request, and the context does not allow ATS.
    AtsDisabled,
    /// A request with PASID, and the context does not allow PASIDs.
    PasidDisabled,
    /// A request without PASID, and the context takes none (SMMUv3: S1DSS).
    PasidRequired,
    /// The PASID is beyond what the directory covers; or it is 0, and the context has that stand
    /// for requests without any (SMMUv3: S1DSS).
    PasidRange,
    /// A PASID directory entry could not be read.
    PasidDirectoryAccess,
    /// The PASID directory entry is not present.
    PasidDirectoryNotPresent,
    /// The PASID directory entry has a reserved bit set.
    PasidDirectoryReserved,
    /// A PASID table entry could not be read.
    PasidEntryAccess,
    /// The PASID table entry is not present.
    PasidEntryNotPresent,
    /// The PASID table entry has a reserved bit set.
    PasidEntryReserved,
    /// The PASID table entry asks for something that is not supported.
    PasidEntryInvalid,
    /// A privileged request, and the entry does not allow supervisor requests.
    SupervisorDisabled,
    /// The address is not canonical.
    NonCanonical,
    /// The address is beyond the width of the table or of the hardware (SMMUv3: or what a table
    /// leads to is).
    AddressWidth {
        /// At which stage.
        stage: Stage,
    },
    /// The address lies in the interrupt range and the request may not go there.
    InterruptAddress,
    /// A table entry could not be read (no memory there).
    TableAccess {
        /// At which stage.
        stage: Stage,
        /// At which level; 1 is the leaf level.
        level: u8,
    },
    /// A table entry is not present.
    NotPresent {
        /// At which stage.
        stage: Stage,
        /// At which level; 1 is the leaf level.
        level: u8,
    },
    /// The access flag of a page is clear, and it is for software to set it (Arm).
    AccessFlag {
        /// At which stage.
        stage: Stage,
        /// At which level; 1 is the leaf level.
        level: u8,
    },
    /// A table entry has a reserved bit set.
    TableReserved {
        /// At which stage.
        stage: Stage,
        /// At which level; 1 is the leaf level.
        level: u8,
    },
    /// The access is not permitted.
    Permission {
        /// At which stage.
        stage: Stage,
        /// Whether the page belongs to the supervisor and the request is a user's.
        user: bool,
    },
    /// An accessed or dirty bit could not be set.
    AccessedDirty {
        /// At which stage.
        stage: Stage,
    },
    /// The translated address is no guest memory.
    NoMemory,
}

impl FaultReason {
    /// Whether a page request could resolve it (VT-d: recoverable fault; the tables are in order
    /// but do not map the address for this access).
    pub const fn is_recoverable(&self) -> bool {
        matches!(self, Self::NotPresent { .. } | Self::Permission { .. } | Self::AccessFlag { .. })
    }
}
