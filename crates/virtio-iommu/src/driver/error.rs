//! What can go wrong, and whose doing it is.

use iommu::Pasid;
use mem::{Gpa, MemError};

use crate::spec::{QueueLayoutError, RequestStatus};

/// Why a device cannot be set up.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum SetupError {
    /// The device does not say that its reset is over.
    #[error("the device does not reset within {patience_ns} ns")]
    ResetTimedOut {
        /// How long it was waited for.
        patience_ns: u64,
    },
    /// The device does not offer VERSION_1.
    #[error("a legacy device")]
    Legacy,
    /// The device offers no revision of the PASID requests that is known here.
    #[error("the device offers no PASID requests that this driver knows")]
    NoPasidRequests,
    /// The device does not accept a choice from among the features that it offers.
    #[error("the device refuses features that it offers")]
    FeaturesRefused,
    /// The device's queue is too short for a request.
    #[error("the device's queue has {0} entries")]
    QueueTooShort(u16),
    /// The device does not start, or needs a reset at once.
    #[error("the device does not start")]
    NotStarted,
    /// The region is not where a queue can be. The caller's mistake.
    #[error("no queue fits at {region}: {error}")]
    BadRegion {
        /// The region's first address.
        region: Gpa,
        /// Why.
        error: QueueLayoutError,
    },
    /// The region is not memory. The caller's mistake.
    #[error(transparent)]
    Memory(#[from] MemError),
}

/// Why a request brought nothing.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Error {
    /// The device does not do it, and says so.
    #[error("the device refuses: {0}")]
    Refused(RequestStatus),
    /// The device did not answer in time. The request stays with it.
    #[error("no answer within {patience_ns} ns")]
    TimedOut {
        /// How long it was waited for.
        patience_ns: u64,
    },
    /// Every request that can be under way is, and none is answered.
    #[error("the device answers nothing any more")]
    Stuck,
    /// The device says that it needs a reset.
    #[error("the device needs a reset")]
    NeedsReset,
    /// The device gave the request back without a status.
    #[error("the device gave no status")]
    Unanswered,
    /// The device gave a status that does not exist.
    #[error("the device gave status {0}, which does not exist")]
    UnknownStatus(u8),
    /// The device granted a PASID that was not asked for. It was not given back: the caller may
    /// have it already.
    #[error("the device granted {0}, which was not asked for")]
    OutOfRange(Pasid),
    /// The device granted a number that is zero or no PASID. It was given back.
    #[error("the device granted {0:#x}, which is no PASID")]
    BadNumber(u32),
    /// The device broke the queue's rules, now or before: nothing from it is believed any more.
    #[error("the device broke the rules: {0}")]
    Broken(#[from] ProtocolError),
    /// The queue's region is not memory any more. The caller's mistake.
    #[error(transparent)]
    Memory(#[from] MemError),
}

/// What a device does not do with a virtqueue.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ProtocolError {
    /// It gave more chains back than it has.
    #[error("{got} chains were given back; {outstanding} are out")]
    TooMany {
        /// How many it says it gave back.
        got: u16,
        /// How many it had.
        outstanding: u16,
    },
    /// It gave back a chain that it does not have.
    #[error("chain {0} was given back, which is not out")]
    NotOut(u32),
    /// It says that it wrote more than there is room for.
    #[error("{got} bytes were written; there is room for {room}")]
    TooLong {
        /// How many it says it wrote.
        got: u32,
        /// How many it can have.
        room: usize,
    },
}
