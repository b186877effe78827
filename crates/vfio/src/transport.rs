//! Between a client and a host end: bytes and handles there, bytes and handles back.

use alloc::sync::{Arc, Weak};
use core::any::Any;
use core::fmt;
use core::ops::Range;

use iommu::{Channel, ContextSource, Endpoint, Ticket};
use mem::Backing;

use crate::{Errno, RingCounts};

/// What goes along with the bytes of a call, as a file descriptor would: authority is a handle,
/// never a number in the bytes.
#[derive(Clone)]
pub enum Handle {
    /// Memory, for [`Request::MapDma`](crate::Request::MapDma).
    Memory(Arc<dyn Backing>),
    /// Where device contexts come from, for
    /// [`Request::SetContexts`](crate::Request::SetContexts).
    Contexts(Arc<dyn ContextSource>),
    /// What is rung when a fault arrives, for
    /// [`Request::SetFaultEvent`](crate::Request::SetFaultEvent).
    Event(Arc<dyn Fn() + Send + Sync>),
    /// An open container ([`Container::handle`](crate::Container::handle)), for
    /// [`Request::GroupSetContainer`](crate::Request::GroupSetContainer).
    Container(Arc<dyn Any + Send + Sync>),
}

impl fmt::Debug for Handle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Memory(_) => "Memory",
            Self::Contexts(_) => "Contexts",
            Self::Event(_) => "Event",
            Self::Container(_) => "Container",
        })
    }
}

/// What a call gives beside what it wrote to the bytes.
#[derive(Debug, Default)]
pub struct Reply {
    /// The return value: zero, but for requests that were posted with a result there.
    pub value: u32,
    /// A device, attached: dropping it detaches it. Its DMA passes no door.
    pub device: Option<Endpoint>,
    /// The call, as posted, returns when this is complete. A transport for clients that rely on
    /// that waits; our own structures carry a ticket instead and need no wait.
    pub pending: Option<Ticket>,
    /// A device's file, opened ([`Request::GroupGetDeviceFd`](crate::Request::GroupGetDeviceFd)).
    pub file: Option<Arc<dyn DeviceFile>>,
    /// A fault queue's file ([`Request::FaultQueueAlloc`](crate::Request::FaultQueueAlloc)).
    pub fault_file: Option<Arc<dyn FaultFile>>,
}

/// An open container, as a client has it. Dropping it closes it: its VM is over.
pub trait File: Send + Sync + 'static {
    /// Makes the call `number` with `argument`, which is read and written.
    ///
    /// # Errors
    ///
    /// What the host end says; the argument may have been written even so.
    fn ioctl(
        &self,
        number: u32,
        argument: &mut [u8],
        handle: Option<Handle>,
    ) -> Result<Reply, Errno>;
}

/// An open device, as a client has it: a file that is also read, written and mapped. Its regions
/// are where `VFIO_DEVICE_GET_REGION_INFO` says.
pub trait DeviceFile: File + fmt::Debug {
    /// Reads from a region.
    ///
    /// # Errors
    ///
    /// What the host end says.
    fn read(&self, offset: u64, bytes: &mut [u8]) -> Result<(), Errno>;

    /// Writes to a region.
    ///
    /// # Errors
    ///
    /// What the host end says.
    fn write(&self, offset: u64, bytes: &[u8]) -> Result<(), Errno>;

    /// Maps `len` bytes of a region: the memory that they are, and where in it.
    ///
    /// # Errors
    ///
    /// What the host end says.
    fn map(&self, offset: u64, len: usize) -> Result<(Arc<dyn Backing>, Range<usize>), Errno>;

    /// For the device's DMA, which passes no door. `None` if the device has left its container.
    fn channel(&self) -> Option<Channel>;

    /// For the device itself, whose page requests pass no door either. It is attached as long as
    /// it is in its container: take it for as long as a call on it lasts.
    fn endpoint(&self) -> Weak<Endpoint>;

    /// For whoever looks: what happened to entries that are in neither ring.
    fn ring_counts(&self) -> RingCounts;
}

/// The file of a fault queue, as a client has it: page requests are read from it and answers
/// written to it, in iommufd's structures ([`HwptPageFault`](crate::spec::HwptPageFault),
/// [`HwptPageResponse`](crate::spec::HwptPageResponse)). What is rung for a fault is rung for them,
/// too.
pub trait FaultFile: Send + Sync + fmt::Debug {
    /// Reads the requests of as many whole groups as there is room for; gives bytes, zero if
    /// nothing waits.
    ///
    /// # Errors
    ///
    /// [`Errno::ESPIPE`] if the position is not zero or the room is not a multiple of a request;
    /// [`Errno::EINVAL`] if the first group does not fit, which stays; what the host end says.
    fn read(&self, position: u64, bytes: &mut [u8]) -> Result<usize, Errno>;

    /// Answers groups; gives bytes, up to the first answer that reaches nobody.
    ///
    /// # Errors
    ///
    /// [`Errno::ESPIPE`] as for reading; [`Errno::EINVAL`] if the first one's cookie is none that
    /// waits, or its code neither 0 nor 1; what the host end says.
    fn write(&self, position: u64, bytes: &[u8]) -> Result<usize, Errno>;
}

/// A way to a host end.
pub trait Transport: Send + Sync + 'static {
    /// A container.
    type File: File;

    /// Opens a container, which has no VM yet.
    ///
    /// # Errors
    ///
    /// What the host end says.
    fn open(&self) -> Result<Self::File, Errno>;
}
