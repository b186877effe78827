//! Why a call on an object failed.

use iommu::{GuestPasid, InvalidField, ObjectError, ObjectId, Pasid};
use pci::RequesterId;

use crate::spec::ObjectFailure;

/// An error as the structure has it, and back.
pub(crate) trait FailureCode: Sized {
    /// The structure for it.
    fn to_wire(self) -> ObjectFailure;
    /// What the structure says, if this crate knows it.
    fn from_wire(failure: &ObjectFailure) -> Option<Self>;
}

impl FailureCode for ObjectError {
    fn to_wire(self) -> ObjectFailure {
        let (code, field, value) = match self {
            Self::NotSupported => (1, 0, 0),
            Self::NoDevice(requester) => (2, 0, requester.bits().into()),
            Self::NoObject(ObjectId(id)) => (3, 0, id.into()),
            Self::Busy => (4, 0, 0),
            Self::NotAttached => (5, 0, 0),
            Self::NotGranted(GuestPasid(pasid)) => (6, 0, pasid.get().into()),
            Self::WrongModel => (7, 0, 0),
            Self::Invalid(field) => (8, field_code(field), 0),
            Self::TooMany { limit } => (9, 0, limit as u64),
            Self::Refused => (10, 0, 0),
            Self::NoMemory => (11, 0, 0),
            Self::Closed => (12, 0, 0),
        };
        ObjectFailure { code, field, value }
    }

    fn from_wire(&ObjectFailure { code, field, value }: &ObjectFailure) -> Option<Self> {
        let number = u32::try_from(value).ok();
        Some(match code {
            1 => Self::NotSupported,
            2 => Self::NoDevice(RequesterId::from_bits(u16::try_from(value).ok()?)),
            3 => Self::NoObject(ObjectId(number?)),
            4 => Self::Busy,
            5 => Self::NotAttached,
            6 => Self::NotGranted(GuestPasid(Pasid::new(number?)?)),
            7 => Self::WrongModel,
            8 => Self::Invalid(field_of(field)?),
            9 => Self::TooMany { limit: usize::try_from(value).unwrap_or(usize::MAX) },
            10 => Self::Refused,
            11 => Self::NoMemory,
            12 => Self::Closed,
            _ => return None,
        })
    }
}

const fn field_code(field: InvalidField) -> u32 {
    match field {
        InvalidField::Flags => 1,
        InvalidField::Parent => 2,
        InvalidField::Data => 3,
        InvalidField::AddressWidth => 4,
        InvalidField::Address => 5,
        InvalidField::Pasid => 6,
        InvalidField::StreamTableEntry => 7,
        InvalidField::FaultQueue => 8,
        InvalidField::VirtualId => 9,
        InvalidField::Range => 10,
        InvalidField::Cookie => 11,
    }
}

const fn field_of(code: u32) -> Option<InvalidField> {
    Some(match code {
        1 => InvalidField::Flags,
        2 => InvalidField::Parent,
        3 => InvalidField::Data,
        4 => InvalidField::AddressWidth,
        5 => InvalidField::Address,
        6 => InvalidField::Pasid,
        7 => InvalidField::StreamTableEntry,
        8 => InvalidField::FaultQueue,
        9 => InvalidField::VirtualId,
        10 => InvalidField::Range,
        11 => InvalidField::Cookie,
        _ => return None,
    })
}
