//! What a VM's host translates by when it owns the tables: objects, named as Linux's iommufd names
//! them (ADR 0004).
//!
//! ```text
//!   Ioas: the VM's memory map (guest physical ─► host)
//!    └─ paging Hwpt: stage 2 over it, may be a nesting parent
//!        ├─ Viommu: this VM's part of one physical IOMMU
//!        │    ├─ Vdevice: a device of the VM, by the number that the guest has for it
//!        │    └─ EventQueue: unrecoverable faults of its devices
//!        └─ nested Hwpt: a guest's stage 1 over that stage 2
//!             └─ FaultQueue: page requests of what is attached to it
//!
//!   device, or (device, PASID) ──attach, replace, detach──► Hwpt
//! ```
//!
//! An id is good in the VM that gave it and names nothing anywhere else; the VM's handle is what
//! gives the right to use it. Ids are not given twice. An object that something stands on or is
//! attached by is [`ObjectError::Busy`] and stays; a device that goes takes its attachments and its
//! [`VdeviceId`] along, and the VM's end takes everything.

use mem::{Gpa, Iova, Range};
use pci::RequesterId;

use crate::{GuestPasid, TableCaps};

macro_rules! ids {
    ($($(#[$doc:meta])* $name:ident)*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
        pub struct $name(pub u32);

        impl From<$name> for ObjectId {
            fn from(id: $name) -> Self {
                Self(id.0)
            }
        }
    )*};
}

/// Any object of a VM.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ObjectId(pub u32);

ids! {
    /// An I/O address space: what a paging [`HwptId`] maps.
    IoasId
    /// A hardware page table, paging or nested.
    HwptId
    /// A VM's part of a physical IOMMU.
    ViommuId
    /// A device as the guest knows it.
    VdeviceId
    /// A queue of page requests.
    FaultQueueId
    /// A queue of unrecoverable faults.
    EventQueueId
}

/// The IOMMU that a device is behind, and what it can do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Hardware {
    /// VT-d in scalable mode.
    Vtd(TableCaps),
    /// Arm SMMUv3.
    Smmuv3(SmmuCaps),
}

/// What an SMMUv3 can do, from its ID registers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SmmuCaps {
    /// IDR0.S1P: stage 1.
    pub stage_one: bool,
    /// IDR0.S2P: stage 2; nested translation with both.
    pub stage_two: bool,
    /// IDR1.SSIDSIZE: bits of a substream id (PASID), 0 to 20.
    pub substream_bits: u8,
    /// IDR0.CD2L: two-level tables of context descriptors.
    pub two_level_descriptors: bool,
    /// IDR5.GRAN4K.
    pub granule_4k: bool,
    /// IDR5.GRAN16K.
    pub granule_16k: bool,
    /// IDR5.GRAN64K.
    pub granule_64k: bool,
    /// IDR5.OAS: bits of an output address, 32 to 52.
    pub output_bits: u8,
    /// IDR5.VAX: 52-bit virtual addresses (with 64 KiB granules; with `DS` also the others).
    pub wide_addresses: bool,
    /// IDR0.HTTU: 0 none, 1 the access flag, 2 dirty state too.
    pub hardware_updates: u8,
    /// IDR0.ASID16: 16-bit ASIDs; 8 bits otherwise.
    pub asid_16: bool,
    /// IDR0.ATS.
    pub ats: bool,
}

impl SmmuCaps {
    /// All that this crate can do. A unit that has less says only what: `SmmuCaps { output_bits: 48, ..SmmuCaps::FULL }`.
    pub const FULL: Self = Self {
        stage_one: true,
        stage_two: true,
        substream_bits: 20,
        two_level_descriptors: true,
        granule_4k: true,
        granule_16k: true,
        granule_64k: true,
        output_bits: 52,
        wide_addresses: true,
        hardware_updates: 2,
        asid_16: true,
        ats: true,
    };
}

bitflags::bitflags! {
    /// `IOMMU_HWPT_ALLOC_*`.
    #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
    pub struct HwptFlags: u32 {
        /// Nested tables may stand on it.
        const NEST_PARENT = 1;
        /// Writes can be followed by their dirty bits. Not supported yet: nothing reads them.
        const DIRTY_TRACKING = 2;
        /// `fault` names a queue.
        const FAULT_ID_VALID = 4;
        /// It may be attached to a PASID (and then every table of the device must say so).
        const PASID = 8;
    }

    /// `IOMMU_VTD_S1_*`: flags of a VT-d first-stage table.
    #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
    pub struct VtdStageOneFlags: u64 {
        /// Supervisor requests are allowed.
        const SRE = 1;
        /// Extended accessed flag. No hardware here has it.
        const EAFE = 2;
        /// Read-only pages stop supervisor writes, too. Has no effect without `SRE`.
        const WPE = 4;
    }
}

impl HwptFlags {
    /// What a table needs to have for `queue`, if there is one.
    pub(crate) fn for_fault_queue(queue: Option<FaultQueueId>) -> Self {
        match queue {
            Some(_) => Self::FAULT_ID_VALID,
            None => Self::empty(),
        }
    }
}

/// On what a page table is allocated (`pt_id`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum HwptParent {
    /// An address space: the table is a paging one, stage 2.
    Ioas(IoasId),
    /// A paging table with [`HwptFlags::NEST_PARENT`]: the new one is nested on it.
    Hwpt(HwptId),
    /// A vIOMMU: the new one is nested on the vIOMMU's parent.
    Viommu(ViommuId),
}

/// A guest's stage 1.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum StageOneTable {
    /// A VT-d first-stage table (`iommu_hwpt_vtd_s1`).
    Vtd(VtdStageOne),
    /// The first two words of a guest's SMMUv3 stream-table entry (`iommu_hwpt_arm_smmuv3`): with a
    /// table of context descriptors, so for all PASIDs of the device. For a device, not a PASID, and
    /// on a vIOMMU: unless it aborts or bypasses, the device needs a number there before it is
    /// attached ([`InvalidField::VirtualId`]), by which the guest's commands and its events name it.
    Smmuv3([u64; 2]),
    /// A guest's whole VT-d PASID table: `bind_pasid_table` of 2017. Scalable mode in hardware
    /// wants the table in host memory, so today's kernel has no name for it.
    VtdPasidTable(VtdPasidTable),
}

/// A VT-d first-stage table.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct VtdStageOne {
    /// What it may be used for.
    pub flags: VtdStageOneFlags,
    /// Its root.
    pub root: Gpa,
    /// Bits of the addresses it translates: 48 or 57.
    pub address_width: u8,
}

/// A guest's VT-d PASID directory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct VtdPasidTable {
    /// Its address.
    pub directory: Gpa,
    /// Bits of PASID it covers.
    pub pasid_bits: u8,
}

/// A request for a page table (`IOMMU_HWPT_ALLOC`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct HwptRequest {
    /// A device that it is to be attached to: says which IOMMU it is for.
    pub device: RequesterId,
    /// On what it stands.
    pub parent: HwptParent,
    /// Flags.
    pub flags: HwptFlags,
    /// The guest's part: for a nested table, and only for that.
    pub data: Option<StageOneTable>,
    /// Where page requests go, with [`HwptFlags::FAULT_ID_VALID`] and only with that.
    pub fault: Option<FaultQueueId>,
}

/// Kind of a vIOMMU (`IOMMU_VIOMMU_TYPE_*`).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum ViommuKind {
    /// VT-d. Today's kernel has none yet; this one tells devices apart and has an event queue.
    Vtd,
    /// Arm SMMUv3.
    Smmuv3,
}

/// What a guest wants forgotten of one nested table.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum StageOneInvalidation {
    /// Everything.
    All,
    /// Translations of a range of guest virtual addresses (`iommu_hwpt_vtd_s1_invalidate`).
    Pages {
        /// The addresses.
        range: Range<Iova>,
        /// Only last-level entries changed.
        leaf_only: bool,
    },
    /// What was made of the table's entry in the PASID table: the entry changed, too.
    Entry,
}

/// An unrecoverable fault as an event queue has it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct VmEvent {
    /// Number of the event, modulo 2^31; events before it are lost if it does not follow.
    pub sequence: u32,
    /// The device, as the guest numbers it.
    pub virtual_id: u64,
    /// The fault; its PASID is the guest's number.
    pub fault: crate::Fault,
}

/// Why a call on an object failed; nothing has changed then.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ObjectError {
    /// The host cannot do that at all, or not with this hardware.
    #[error("the host cannot do that")]
    NotSupported,
    /// No device with this requester id is attached to the VM.
    #[error("the VM has no device {0}")]
    NoDevice(RequesterId),
    /// No object of that kind has the id.
    #[error("the VM has no such object ({0:?})")]
    NoObject(ObjectId),
    /// Something uses the object; or the place, or the number of a device, is taken; or what is
    /// attached there is just being attached or detached.
    #[error("in use")]
    Busy,
    /// Nothing is attached there.
    #[error("nothing is attached there")]
    NotAttached,
    /// The PASID was not granted to the VM, or is parked.
    #[error("PASID {0:?} is not the VM's")]
    NotGranted(GuestPasid),
    /// The table is of another architecture than the device's IOMMU.
    #[error("the table is not of the model of the device's IOMMU")]
    WrongModel,
    /// A field has a value that it cannot have, or that the hardware cannot do.
    #[error("field {0:?} is invalid")]
    Invalid(InvalidField),
    /// The host has as many as it takes.
    #[error("there are {limit} already")]
    TooMany {
        /// How many it takes.
        limit: usize,
    },
    /// A subscriber of the PASID refused the binding.
    #[error("a subscriber of the PASID refused")]
    Refused,
    /// No memory.
    #[error("no memory")]
    NoMemory,
    /// The VM is closed.
    #[error("the VM is closed")]
    Closed,
}

/// The field that [`ObjectError::Invalid`] is about.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum InvalidField {
    /// Flags, or a combination of them.
    Flags,
    /// The parent: not a nesting parent, or of another kind.
    Parent,
    /// The guest's part is missing, or is there where it must not be.
    Data,
    /// Width of virtual addresses.
    AddressWidth,
    /// Address of a table: beyond what stage 2 translates, or misaligned.
    Address,
    /// PASID bits, or a PASID where there may be none.
    Pasid,
    /// A stream-table entry.
    StreamTableEntry,
    /// The fault queue.
    FaultQueue,
    /// A virtual device number: too wide, or one that the guest has no device by, or missing.
    VirtualId,
    /// A range, a granule or a depth.
    Range,
    /// The cookie of a page request group.
    Cookie,
}
