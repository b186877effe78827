//! What subscribers are told, and how they answer.

use core::fmt;
use core::ops::Deref;

use crate::geometry::{Geometry, Shape};
use crate::holder::Holder;
use crate::lease::{Held, HoldError, Ref};
use crate::set::{Owner, SetCore, SetType};
use crate::spid::Spid;
use crate::{Ioasid, Tag};

/// Where a subscriber stands among all of the space and of its sets.
///
/// What opens (ALLOC, BIND, a set's creation) goes up this list, so that the IOMMU's entry is
/// there before a processor translates to it; what closes (UNBIND, FREE, a set's end) goes down.
/// Among equals the one that subscribed first is told first of openings and last of closings.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Priority {
    /// Whoever keeps accounts: the last to be told that something closes, so the first to be told
    /// that it opens.
    Last,
    /// What translates for devices.
    Iommu,
    /// A device, or the model of one, that is given the ID to use.
    Device,
    /// What translates a guest's numbers when a processor submits work.
    Cpu,
}

/// Somebody who is told what happens to IDs. Every method does nothing unless it is overridden.
///
/// A handler runs with no lock held: it may sleep, and may call the space for anything, including
/// what causes further events and ending its own subscription. It holds up the caller of what
/// causes the event (for FREE and sets: the caller of [`Space::work`](crate::Space::work)) and
/// nobody else. Events of different IDs may arrive at the same time, those of one ID do not.
///
/// A panic is contained with the feature `std`: it is counted, and everybody else is told. Without
/// it the panic goes on to the caller; what the event was about is put in order, but those who
/// come later are not told.
///
/// ```
/// use std::sync::Arc;
/// use ioasid::{Config, Event, Priority, Refusal, Space, Subscriber};
///
/// /// Translates a guest's PASIDs when a processor submits work, for numbers below 64.
/// struct CpuTable;
///
/// impl Subscriber<&'static str> for CpuTable {
///     fn prepare_bind(&self, event: &Event<'_, &'static str>) -> Result<(), Refusal> {
///         if event.id().0 < 64 { Ok(()) } else { Err(Refusal::NoSpace) }
///     }
///     fn commit_bind(&self, event: &Event<'_, &'static str>) {
///         println!("{:?} is {}, {}", event.spid(), event.id(), **event);
///     }
///     fn unbind(&self, event: &Event<'_, &'static str>) {
///         println!("{} is closed", event.id());
///     }
/// }
///
/// let space = Space::new(Config::default())?;
/// let cpu = space.holder("cpu")?;
/// let subscription = space.subscribe(&cpu, Priority::Cpu, Arc::new(CpuTable))?;
///
/// let iommu = space.holder("iommu")?;
/// let lease = space.alloc(1..=99, "page tables of a guest's process")?;
/// let prepared = lease.bind(&iommu)?;
/// // Everybody is ready. The IOMMU makes its table entry here; if it cannot, it drops `prepared`.
/// let binding = prepared.commit();
/// binding.unbind();
///
/// let far = space.alloc(64..=99, "another")?;
/// assert_eq!(far.bind(&iommu).unwrap_err().to_string(),
///     "cpu does not let the ID be bound: no place for it");
///
/// // A free is told by the executor's call, wherever that is.
/// drop(lease);
/// space.work(100);
/// # drop((far, subscription));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub trait Subscriber<T, G: Shape = Geometry>: Send + Sync {
    /// The ID was allocated; its lease is not given out yet.
    fn alloc(&self, event: &Event<'_, T, G>) {
        let _ = event;
    }

    /// The ID is about to be bound: get ready, without opening anything yet.
    ///
    /// # Errors
    /// A refusal: nothing gets bound, and those who got ready before hear
    /// [`Subscriber::abort_bind`]; who refuses does not.
    fn prepare_bind(&self, event: &Event<'_, T, G>) -> Result<(), Refusal> {
        let _ = event;
        Ok(())
    }

    /// The ID is bound: open.
    fn commit_bind(&self, event: &Event<'_, T, G>) {
        let _ = event;
    }

    /// The bind that was got ready for does not happen.
    fn abort_bind(&self, event: &Event<'_, T, G>) {
        let _ = event;
    }

    /// The last binding of the ID is going: close. Told only to those who were told of the bind.
    fn unbind(&self, event: &Event<'_, T, G>) {
        let _ = event;
    }

    /// The ID was freed: close, and give up what references to it there are, at once or later. Its
    /// number comes back when the last is gone. Told once; no UNBIND comes after it.
    fn free(&self, event: &Event<'_, T, G>) {
        let _ = event;
    }

    /// Something happened to a set.
    fn set_event(&self, event: &SetEvent<'_>) {
        let _ = event;
    }
}

/// Why a subscriber does not let an ID be bound.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Refusal {
    /// It has no memory for it.
    NoMemory,
    /// It has no place for it in its own tables.
    NoSpace,
    /// It may not be bound: its owner has no right to it.
    NotAllowed,
    /// It cannot be bound as it is.
    Unsupported,
    /// Anything else, by the subscriber's own code.
    Other(u32),
    /// Its handler panicked.
    Panicked,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoMemory => f.write_str("no memory"),
            Self::NoSpace => f.write_str("no place for it"),
            Self::NotAllowed => f.write_str("not allowed"),
            Self::Unsupported => f.write_str("not supported"),
            Self::Other(code) => write!(f, "reason {code:#x}"),
            Self::Panicked => f.write_str("its handler panicked"),
        }
    }
}

/// What an event is about, whoever it is told to. The ID is held for as long as this is used.
pub(super) struct About<'e, T, G: Shape> {
    pub(super) held: &'e Held<T, G>,
    /// `None` of an ID that belongs to no set.
    pub(super) set: Option<&'e SetCore>,
    pub(super) spid: Option<Spid>,
}

/// An event of an ID, as one subscriber is told it. It dereferences to the ID's data.
pub struct Event<'e, T, G: Shape = Geometry> {
    about: &'e About<'e, T, G>,
    to: &'e Holder,
}

impl<'e, T, G: Shape> Event<'e, T, G> {
    pub(super) fn new(about: &'e About<'e, T, G>, to: &'e Holder) -> Self {
        Self { about, to }
    }

    /// The number.
    pub fn id(&self) -> Ioasid {
        self.about.held.tag().id
    }

    /// The number and which of its lives this is.
    pub fn tag(&self) -> Tag {
        self.about.held.tag()
    }

    /// Its number in its set, if it has one; in UNBIND the one that BIND was told with.
    pub fn spid(&self) -> Option<Spid> {
        self.about.spid
    }

    /// The name of its set, if it is in one.
    pub fn set_name(&self) -> Option<&str> {
        self.about.set.map(|set| set.name.as_str())
    }

    /// The owner of its set, if there is one.
    pub fn owner(&self) -> Option<&Owner> {
        self.about.set.and_then(owner_of)
    }

    /// A reference to the ID in the subscriber's own name, to be kept for as long as it likes.
    ///
    /// # Errors
    /// [`HoldError::Parked`] if the ID is freed, so always in [`Subscriber::free`]: who needs time
    /// then holds a reference since the bind. [`HoldError::NoMemory`].
    pub fn hold(&self) -> Result<Ref<T, G>, HoldError> {
        self.about.held.share(self.to)
    }
}

impl<T, G: Shape> Deref for Event<'_, T, G> {
    type Target = T;

    fn deref(&self) -> &T {
        self.about.held.data()
    }
}

impl<T, G: Shape> fmt::Debug for Event<'_, T, G> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut out = f.debug_struct("Event");
        out.field("id", &self.id()).field("spid", &self.spid()).field("set", &self.set_name());
        out.finish_non_exhaustive()
    }
}

/// What may happen to a set.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum SetChange {
    /// It was made. Told before its handle is given out, and before it is found by its owner.
    Created,
    /// It takes no allocations any more, and its IDs are freed. Told by
    /// [`Space::work`](crate::Space::work).
    Closed,
    /// The last of its IDs is gone and its quota has returned. Told by
    /// [`Space::work`](crate::Space::work), after [`SetChange::Closed`] and every FREE.
    Drained,
}

/// An event of a set.
pub struct SetEvent<'e> {
    change: SetChange,
    set: &'e SetCore,
}

impl<'e> SetEvent<'e> {
    pub(super) fn new(change: SetChange, set: &'e SetCore) -> Self {
        Self { change, set }
    }

    /// What happened.
    pub fn change(&self) -> SetChange {
        self.change
    }

    /// The set's name.
    pub fn name(&self) -> &str {
        &self.set.name
    }

    /// The set's owner, if it has one.
    pub fn owner(&self) -> Option<&Owner> {
        owner_of(self.set)
    }
}

impl fmt::Debug for SetEvent<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SetEvent").field("change", &self.change).field("set", &self.name()).finish()
    }
}

fn owner_of(set: &SetCore) -> Option<&Owner> {
    match &set.kind {
        SetType::Owned(owner) => Some(owner),
        SetType::Native => None,
    }
}
