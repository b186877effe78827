//! Why the calls of this module fail.

use mem::Gpa;
use pci::RequesterId;

use crate::{GuestPasid, ObjectError};

/// Why a call on a [`Domain`](super::Domain) failed. What was there is there again, except with
/// [`Blocked`](Self::Blocked) and [`Stuck`](Self::Stuck).
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum NestingError {
    /// The domain has no device yet, so it is not known for which IOMMU the call is.
    #[error("the domain has no device")]
    NoDevices,
    /// The device is not in the domain.
    #[error("device {0} is not in the domain")]
    NoDevice(RequesterId),
    /// The device is in the domain already.
    #[error("device {0} is in the domain already")]
    Duplicate(RequesterId),
    /// The device is behind an IOMMU that differs from that of the domain's other devices.
    #[error("device {0} is behind another IOMMU than the domain's devices")]
    OtherHardware(RequesterId),
    /// The table is of another architecture than the IOMMU.
    #[error("the table is not of the model of the IOMMU")]
    WrongModel,
    /// The table has more PASIDs than the hardware can take.
    #[error("a table of {got} PASID bits; the hardware takes {limit}")]
    PasidBits {
        /// What was asked for.
        got: u8,
        /// What the hardware can take.
        limit: u8,
    },
    /// The size of a table is not that of a table of 2^n PASIDs.
    #[error("no table of a power of two of PASIDs has {0} bytes")]
    Size(u64),
    /// A two-level table, and the hardware has only linear ones.
    #[error("the hardware has no two-level tables of context descriptors")]
    NoTwoLevelTables,
    /// The address of a table is not a multiple of what it must be one of.
    #[error("the table's address {address} is not a multiple of {alignment}")]
    Misaligned {
        /// The address.
        address: Gpa,
        /// Of what it must be a multiple, in bytes.
        alignment: u64,
    },
    /// Part of a table lies beyond what stage 2 can translate.
    #[error("the table at {address} is not within {bits} bits of address")]
    BeyondStageTwo {
        /// The table's address.
        address: Gpa,
        /// Bits of the addresses that stage 2 can translate.
        bits: u8,
    },
    /// The width of virtual addresses is none that the hardware can do.
    #[error("no {0}-bit virtual addresses")]
    AddressWidth(u8),
    /// Flags of a first stage that the hardware cannot do, or that exclude each other.
    #[error("flags {0:#x} cannot be")]
    Flags(u64),
    /// A table translates already: go through bypass, abort or detach, or replace it.
    #[error("a table translates already")]
    Translating,
    /// This device has a table of its own, by `bind_pasid_table`.
    #[error("device {0} has a table of its own")]
    DeviceBound(RequesterId),
    /// The device has no table of its own.
    #[error("device {0} has no table of its own")]
    DeviceNotBound(RequesterId),
    /// PASIDs are bound one by one: they exclude a table for all of them, and a blocked domain.
    #[error("device {0} has PASIDs bound one by one")]
    PasidsBound(RequesterId),
    /// The domain blocks everything, or a table translates for all PASIDs.
    #[error("the domain's configuration leaves no PASIDs to bind")]
    NoPasids,
    /// The PASID that stands for requests without one.
    #[error("PASID {0} is reserved")]
    ReservedPasid(GuestPasid),
    /// That PASID of the device is bound already.
    #[error("PASID {1} of device {0} is bound already")]
    PasidBound(RequesterId, GuestPasid),
    /// That PASID of the device is not bound.
    #[error("PASID {1} of device {0} is not bound")]
    PasidNotBound(RequesterId, GuestPasid),
    /// The host refused.
    #[error(transparent)]
    Object(#[from] ObjectError),
    /// The host refused, and also to restore what had been: every device of every domain of the
    /// call is blocked now, and the domains' configuration is abort.
    #[error("blocked, since what was there could not be restored: {0}")]
    Blocked(ObjectError),
    /// The host refused, also to restore, and even to block this device, which is translated by
    /// one of the tables between which the call was to change. All other devices are blocked; or
    /// restored, if the call was to bind a PASID.
    #[error("device {device} could be neither restored nor blocked: {cause}")]
    Stuck {
        /// The (first) device.
        device: RequesterId,
        /// Why the call failed in the first place.
        cause: ObjectError,
    },
}
