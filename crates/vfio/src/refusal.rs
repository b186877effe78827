//! Why a call is refused. It has changed nothing then.

use iommu::nesting::{DeviceFaultError, InvalidateError, MsiError, NestingError};
use iommu::{
    AllocPasidError, AttachError, FreePasidError, HostError, ObjectError, PageResponseError,
};
use mem::{Gpa, LayoutError};

use crate::{ArgumentError, Errno};

/// Why a call is refused; nothing has changed. The caller's mistake or the host's limits.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Refusal {
    /// The number stands for no request in this revision.
    #[error("no request has the number {number:#x}")]
    UnknownRequest {
        /// The number.
        number: u32,
    },
    /// The structure cannot be read.
    #[error(transparent)]
    Argument(#[from] ArgumentError),
    /// Flags that exclude each other, or too few.
    #[error("flags {flags:#x} do not go together")]
    Flags {
        /// The flags.
        flags: u32,
    },
    /// The field at `offset` has a value that is not allowed.
    #[error("the field at byte {offset} has a value that is not allowed")]
    Value {
        /// Its offset in the structure.
        offset: usize,
    },
    /// A request that has a meaning, but not on this host.
    #[error("the field at byte {offset} asks for what this host does not do")]
    Unsupported {
        /// Offset of the field in the structure.
        offset: usize,
    },
    /// The request needs a handle of another kind beside its bytes, or one at all.
    #[error("the handle that belongs to the request is missing")]
    NoHandle,
    /// The request takes no handle.
    #[error("a handle that the request does not take")]
    UnwantedHandle,
    /// The container has no VM yet.
    #[error("the container has no VM")]
    NoVm,
    /// The container has its VM.
    #[error("the container has a VM already")]
    VmExists,
    /// The VM is closed.
    #[error("the VM is closed")]
    Closed,
    /// As many containers are open as the dispatcher takes.
    #[error("{limit} containers are open already")]
    TooManyContainers {
        /// The limit.
        limit: usize,
    },
    /// The host creates no such VM.
    #[error(transparent)]
    Host(#[from] HostError),
    /// The host attaches no such device.
    #[error(transparent)]
    Attach(#[from] AttachError),
    /// The host grants no PASID.
    #[error(transparent)]
    AllocPasid(#[from] AllocPasidError),
    /// The host takes no such PASID back.
    #[error(transparent)]
    FreePasid(#[from] FreePasidError),
    /// The VM does not do that with its objects.
    #[error(transparent)]
    Object(#[from] ObjectError),
    /// No device of a VM has such a number.
    #[error("no device has the number {number:#x}")]
    NoSuchDevice {
        /// The number.
        number: u32,
    },
    /// The VM does not do that with a guest's tables.
    #[error(transparent)]
    Nesting(#[from] NestingError),
    /// The VM cannot forget that.
    #[error(transparent)]
    Invalidate(#[from] InvalidateError),
    /// No such doorbell can be.
    #[error(transparent)]
    Msi(#[from] MsiError),
    /// The container is not one for nested translation.
    #[error("the container is not for nested translation")]
    NotNesting,
    /// The call is for a container with one group.
    #[error("the container has {groups} groups; the call is for one")]
    NotSingle {
        /// How many it has.
        groups: usize,
    },
    /// No page request waits for this response.
    #[error("no page request waits for this response")]
    NoPageRequest,
    /// The response is to a group that several devices have unanswered, and does not say of which.
    #[error("{devices} devices have that group unanswered")]
    SeveralDevices {
        /// How many.
        devices: usize,
    },
    /// The response is to no group of the device.
    #[error(transparent)]
    DeviceFault(#[from] DeviceFaultError),
    /// The response reached nobody.
    #[error(transparent)]
    PageResponse(#[from] PageResponseError),
    /// The container has no group yet.
    #[error("the container has no group")]
    NoGroup,
    /// The container has its kind of IOMMU.
    #[error("the container has its IOMMU already")]
    IommuSet,
    /// No such kind of IOMMU.
    #[error("there is no IOMMU of type {kind}")]
    NoSuchIommu {
        /// The type.
        kind: u32,
    },
    /// The group is in no container, or in one without its kind of IOMMU.
    #[error("the group is in no container that has its IOMMU")]
    NoContainer,
    /// The group is in a container.
    #[error("the group is in a container already")]
    ContainerSet,
    /// There is no such group, or one of that number exists already.
    #[error("group {number}")]
    Group {
        /// Its number.
        number: u32,
    },
    /// It is open, or devices of it are.
    #[error("in use")]
    InUse,
    /// As many groups or devices exist as there may be.
    #[error("there are {limit} already")]
    TooMany {
        /// The limit.
        limit: usize,
    },
    /// The group has no device of that name.
    #[error("the group has no such device")]
    NoSuchName,
    /// No memory.
    #[error("no memory")]
    NoMemory,
    /// None of the caller's PASIDs lies in the range.
    #[error("none of the VM's PASIDs lies in the range")]
    NoPasidThere,
    /// Something is mapped at `gpa`.
    #[error("{gpa} is mapped already")]
    Mapped {
        /// First address of the mapping in the way.
        gpa: Gpa,
    },
    /// The range would cut the mapping at `gpa`.
    #[error("the range cuts the mapping at {gpa}")]
    Cuts {
        /// First address of the mapping.
        gpa: Gpa,
    },
    /// The mapping does not fit its memory.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// As many mappings exist as a VM takes.
    #[error("the VM has its limit of {limit} mappings")]
    TooManyMappings {
        /// The limit.
        limit: usize,
    },
    /// A change of the memory map is open.
    #[error("a change of the memory map is open already")]
    UpdateOpen,
    /// No change of the memory map is open.
    #[error("no change of the memory map is open")]
    NoUpdate,
}

impl Refusal {
    /// The number that a client gets for it.
    pub const fn errno(&self) -> Errno {
        match self {
            Self::UnknownRequest { .. } => Errno::ENOTTY,
            Self::Argument(error) => error.errno(),
            Self::Object(error) => object_errno(error),
            Self::Nesting(error) => nesting_errno(error),
            Self::Invalidate(error) => invalidate_errno(error),
            Self::DeviceFault(error) => device_fault_errno(error),
            Self::Msi(MsiError::TooMany { .. }) | Self::NoMemory => Errno::ENOMEM,
            Self::PageResponse(PageResponseError::NotSupported) => Errno::EOPNOTSUPP,
            Self::Msi(_)
            | Self::PageResponse(_)
            | Self::NotNesting
            | Self::NotSingle { .. }
            | Self::NoPageRequest
            | Self::SeveralDevices { .. }
            | Self::NoGroup
            | Self::IommuSet
            | Self::NoContainer
            | Self::ContainerSet => Errno::EINVAL,
            Self::NoSuchIommu { .. } | Self::NoSuchName | Self::Group { .. } => Errno::ENODEV,
            Self::InUse => Errno::EBUSY,
            Self::TooMany { .. } => Errno::ENOSPC,
            Self::Flags { .. }
            | Self::Value { .. }
            | Self::UnwantedHandle
            | Self::Cuts { .. }
            | Self::Layout(_)
            | Self::NoUpdate => Errno::EINVAL,
            Self::Unsupported { .. } | Self::Host(HostError::UnsupportedStageTwo) => {
                Errno::EOPNOTSUPP
            }
            Self::NoHandle => Errno::EBADF,
            Self::NoVm
            | Self::Closed
            | Self::Attach(AttachError::Closed)
            | Self::AllocPasid(AllocPasidError::Closed)
            | Self::FreePasid(FreePasidError::Closed) => Errno::ENODEV,
            Self::VmExists | Self::UpdateOpen => Errno::EBUSY,
            Self::Mapped { .. } | Self::Attach(AttachError::Duplicate(_)) => Errno::EEXIST,
            Self::TooManyContainers { .. }
            | Self::TooManyMappings { .. }
            | Self::Host(HostError::TooManyVms { .. })
            | Self::Attach(AttachError::TooManyDevices { .. })
            | Self::AllocPasid(AllocPasidError::NoneAvailable) => Errno::ENOSPC,
            Self::Host(HostError::QuotaUnavailable { .. })
            | Self::AllocPasid(AllocPasidError::QuotaExceeded { .. }) => Errno::EDQUOT,
            Self::Host(HostError::NoMemory) | Self::AllocPasid(AllocPasidError::NoMemory) => {
                Errno::ENOMEM
            }
            Self::FreePasid(FreePasidError::NotGranted(_))
            | Self::NoPasidThere
            | Self::NoSuchDevice { .. } => Errno::ENOENT,
        }
    }
}

/// iommufd's number for what happened to an object, where it has one.
const fn object_errno(error: &ObjectError) -> Errno {
    match error {
        ObjectError::NotSupported => Errno::EOPNOTSUPP,
        ObjectError::NoDevice(_) | ObjectError::NoObject(_) => Errno::ENOENT,
        ObjectError::Busy => Errno::EBUSY,
        ObjectError::NotAttached | ObjectError::WrongModel | ObjectError::Invalid(_) => {
            Errno::EINVAL
        }
        ObjectError::NotGranted(_) => Errno::EACCES,
        ObjectError::TooMany { .. } => Errno::ENOSPC,
        ObjectError::Refused => Errno::EPERM,
        ObjectError::NoMemory => Errno::ENOMEM,
        ObjectError::Closed => Errno::ENODEV,
    }
}

/// The number of the posted drivers for why an object did not do it.
const fn posted_errno(error: &ObjectError) -> Errno {
    match error {
        // A driver without the call.
        ObjectError::NotSupported => Errno::ENODEV,
        other => object_errno(other),
    }
}

const fn nesting_errno(error: &NestingError) -> Errno {
    match error {
        NestingError::NoDevices | NestingError::NoDevice(_) => Errno::ENODEV,
        NestingError::Duplicate(_) => Errno::EEXIST,
        NestingError::PasidBound(..)
        | NestingError::DeviceBound(_)
        | NestingError::PasidsBound(_)
        | NestingError::NoPasids => Errno::EBUSY,
        NestingError::OtherHardware(_)
        | NestingError::WrongModel
        | NestingError::PasidBits { .. }
        | NestingError::Size(_)
        | NestingError::NoTwoLevelTables
        | NestingError::Misaligned { .. }
        | NestingError::BeyondStageTwo { .. }
        | NestingError::AddressWidth(_)
        | NestingError::Flags(_)
        | NestingError::Translating
        | NestingError::DeviceNotBound(_)
        | NestingError::ReservedPasid(_)
        | NestingError::PasidNotBound(..) => Errno::EINVAL,
        NestingError::Object(cause)
        | NestingError::Blocked(cause)
        | NestingError::Stuck { cause, .. } => posted_errno(cause),
    }
}

const fn invalidate_errno(error: &InvalidateError) -> Errno {
    match error {
        InvalidateError::NoDevice(_) => Errno::ENODEV,
        InvalidateError::NotForHardware | InvalidateError::NotBound(..) => Errno::ENOENT,
        InvalidateError::NoCache
        | InvalidateError::Combination(_)
        | InvalidateError::NoAddressSpace
        | InvalidateError::ArchId(_)
        | InvalidateError::Granule(_)
        | InvalidateError::Range => Errno::EINVAL,
        InvalidateError::Object(cause) => posted_errno(cause),
    }
}

const fn device_fault_errno(error: &DeviceFaultError) -> Errno {
    match error {
        DeviceFaultError::NoDevice(_)
        | DeviceFaultError::NoHandler(_)
        | DeviceFaultError::NotPending { .. } => Errno::EINVAL,
        DeviceFaultError::Registered(_) | DeviceFaultError::Pending { .. } => Errno::EBUSY,
        DeviceFaultError::NotHandled(_) => Errno::ENOSPC,
        DeviceFaultError::Object(cause) => posted_errno(cause),
    }
}
