//! Between a client and a host end: bytes and handles there, bytes and handles back.

use alloc::sync::Arc;
use core::fmt;

use iommu::{ContextSource, Endpoint, Ticket};
use mem::Backing;

use crate::Errno;

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
}

impl fmt::Debug for Handle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Memory(_) => "Memory",
            Self::Contexts(_) => "Contexts",
            Self::Event(_) => "Event",
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
