#![doc = include_str!("../README.md")]
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
