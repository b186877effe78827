//! The I/O address-space ID space: numbers (PASIDs) handed out as leases and found without a lock.
//!
//! ```text
//!   alloc(min..=max, data) ──► Lease ──drop──► parked ──last guard gone──► free again
//!                               │ owns the number   │ no find returns it      │ data dropped first
//!                               ▼                   ▼                         ▼
//!   Reader::pin() ──► Guard ──find(number)──► &data, valid while the guard lives
//! ```
//!
//! * A number grants nothing: only the [`Lease`] can give it back, and dropping the lease does.
//! * A number is not handed out again, and its data not dropped, while a [`Guard`] that may still
//!   name it lives. Until then it is *parked*: it counts against the capacity and is found by
//!   nobody.
//! * A find is two dependent loads. It takes no lock, counts no reference and writes nothing;
//!   what it costs to be safe is paid once per [`Guard`], by one store to the reader's own cache
//!   line.
//!
//! Nothing here is thread-local: a caller without the standard library keeps one [`Reader`] per
//! processor or thread. With the feature `std`, `Space::with` keeps them in thread-locals.
//!
//! ```
//! use ioasid::{Config, Ioasid, Space};
//!
//! let space = Space::new(Config::default())?;
//! let lease = space.alloc(1..=99, "queue 7")?;
//! assert_eq!(lease.id(), Ioasid(1));
//!
//! let reader = space.reader();
//! let guard = reader.pin();
//! assert_eq!(guard.find(Ioasid(1)), Some(&"queue 7"));
//!
//! lease.free().unwrap();
//! assert_eq!(guard.find(Ioasid(1)), None);
//! assert_eq!(space.usage().parked, 1, "the guard might still name it");
//! drop(guard);
//! assert_eq!(space.alloc(1..=1, "queue 8")?.id(), Ioasid(1));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! Which number of the range comes: of those that the shard has, the one that was freed last; else
//! the lowest that no shard has, of which the shard takes a batch at a time. So a fresh space gives
//! its numbers lowest first to one shard. The data of an ID is shared with readers from the moment
//! it is published, so to change it in place give it interior mutability.
#![no_std]

extern crate alloc;
#[cfg(any(loom, feature = "std"))]
extern crate std;

mod alloc_path;
mod config;
mod custom;
mod epoch;
mod geometry;
mod holder;
mod hooks;
mod lease;
mod leaves;
mod local;
mod memory;
mod notify;
mod numbers;
mod pools;
mod reader;
mod record;
mod registry;
mod release;
mod report;
mod set;
mod sets;
mod shard;
mod space;
mod spid;
mod state;
mod sync;
mod table;
mod work;
#[cfg(feature = "std")]
mod worker;

pub use alloc_path::AllocError;
pub use config::{Config, ConfigError, DEFAULT_SHARDS, DEFAULT_WIDTH, MAX_WIDTH};
pub use custom::{
    NumberSource, Operations, RegisterError, Registration, SourceCounts, SourceError, SourceFault,
    StillInUse,
};
pub use geometry::{Geometry, Shape};
pub use holder::{Holder, HolderError, MAX_HOLDERS};
pub use hooks::{Clock, Executor, Hooks};
pub use lease::{AlreadyFreed, HoldError, Keeper, Lease, Ref};
pub use notify::{
    BindError, Binding, Event, Prepared, Priority, Refusal, SetChange, SetEvent, SubscribeError,
    Subscriber, Subscription,
};
pub use pools::{Pool, PoolError, PoolGuard, PoolReader, Pools, Requester, Scope};
pub use reader::{FindError, Guard, Reader};
pub use report::{
    Awaiting, Counts, HeldBy, Imbalance, ParkedReport, Report, ReportError, SetReport,
};
pub use set::{Owner, SetType};
pub use sets::{Set, SetError, SetUsage, TakeError};
pub use shard::MAX_SHARDS;
pub use space::{Space, Usage};
pub use spid::{Spid, SpidError, MAX_SPID_WIDTH};
pub use work::Work;
#[cfg(feature = "std")]
pub use worker::{Bell, Worker};

/// A number of the space: a name, never a permission.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(transparent)]
pub struct Ioasid(pub u32);

impl core::fmt::Display for Ioasid {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

/// A number together with which of its lives is meant: tells the ID that was seen from a later
/// one of the same number. A name like the number itself; it grants nothing.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Tag {
    pub(crate) id: Ioasid,
    pub(crate) generation: u64,
}

impl Tag {
    /// Of no ID: the first life of a number is 1.
    pub(crate) const NONE: Self = Self { id: Ioasid(0), generation: 0 };

    /// The number.
    pub const fn id(self) -> Ioasid {
        self.id
    }
}
