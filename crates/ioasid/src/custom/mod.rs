//! Numbers that come from elsewhere: a virtual command register, a request over virtio, another
//! process.
//!
//! ```text
//!   alloc ──► quota ──► source.alloc ──► is it free here, in the range? ──► ID
//!   free  ──► parked ──► data dropped ──► Space::work: source.free ──► quota, number
//! ```
//!
//! Sources with the same [`Operations`] hand out numbers of one namespace, as the registers of
//! several IOMMUs of a host do: a number from one may be given back to another. They form a group.
//! One group is active, the one that came first; the others wait in the order in which they came.
//! Another group, or the space itself, takes over only while nothing is out, so every number goes
//! back to the group that it is from.

mod path;

pub(crate) use path::Giver;

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::geometry::{Geometry, Shape};
use crate::memory::NoMemory;
use crate::record::List;
use crate::space::{Handles, Shared, Space};
use crate::sync::Mutex;

/// Where numbers come from, if not from the space itself. Called with no lock held: it may sleep,
/// and it may use the space, but not wait for an allocation or for [`Space::work`].
///
/// When the last handle of a space goes while leases are out, whoever drops the last of those gives
/// back what is left. A [`Registration`] is such a handle.
///
/// It is not trusted: a number that is out of range, reserved or in use makes the allocation fail.
pub trait NumberSource: Send + Sync {
    /// A number of `min..=max` that is not out.
    ///
    /// # Errors
    /// What the allocation fails with.
    fn alloc(&self, min: u32, max: u32) -> Result<u32, SourceError>;

    /// Takes back a number that [`NumberSource::alloc`] gave, here or at another source with the
    /// same [`Operations`].
    ///
    /// # Errors
    /// Counted. The number counts as given back all the same.
    fn free(&self, number: u32) -> Result<(), SourceError>;
}

/// Why a source did not do what it was asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum SourceError {
    /// It has no number of the range.
    #[error("the source has no number of the range")]
    Exhausted,
    /// It refuses, or is out of reach; the code is its own.
    #[error("the source failed with code {0:#x}")]
    Failed(u32),
}

/// What is wrong with a number that a source gave.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum SourceFault {
    /// It is outside of what was asked for.
    #[error("it is outside of what was asked for")]
    OutOfRange,
    /// It is one that the space never hands out.
    #[error("it is reserved")]
    Reserved,
    /// It is out, live or parked.
    #[error("it is in use")]
    InUse,
}

/// What a source does, by identity: sources with equal ones share a registration. Clones are equal,
/// and nothing else is.
#[derive(Clone)]
pub struct Operations(Arc<str>);

impl Operations {
    /// New ones, unlike all others; `name` is for people.
    pub fn new(name: &str) -> Self {
        Self(Arc::from(name))
    }

    /// Their name.
    pub fn name(&self) -> &str {
        &self.0
    }
}

impl PartialEq for Operations {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for Operations {}

impl fmt::Debug for Operations {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Operations").field(&self.name()).finish()
    }
}

/// Why a source was not registered. Nothing has changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum RegisterError {
    /// This very source is registered.
    #[error("the source is registered already")]
    Registered,
    /// It would take over from the space itself, which has numbers out.
    #[error("{out} numbers of the space itself are out")]
    InUse {
        /// Numbers that are out, live or parked.
        out: u32,
    },
    /// There was no memory.
    #[error("no memory for the registration")]
    NoMemory,
}

impl From<NoMemory> for RegisterError {
    fn from(NoMemory: NoMemory) -> Self {
        Self::NoMemory
    }
}

/// A source's place in a space. Dropping it takes the source away at once if it can be, and else as
/// soon as all its numbers are back: until then nothing is allocated.
#[must_use = "dropping a registration takes the source away"]
pub struct Registration<T, G: Shape = Geometry> {
    shared: Arc<Handles<T, G>>,
    key: u64,
}

/// The source is the last of the active group, whose numbers are not all back.
#[derive(Debug, thiserror::Error)]
#[error("{out} numbers of the source are out")]
pub struct StillInUse<T, G: Shape = Geometry> {
    /// The registration, which holds on.
    pub registration: Registration<T, G>,
    /// Numbers that are out, live or parked.
    pub out: u32,
}

/// What is known of the sources of a space.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct SourceCounts {
    /// Numbers that were given back and which the source did not take.
    pub failed_frees: u64,
    /// Numbers that it gave and which were refused.
    pub refused: u64,
    /// Freed numbers that wait for [`Space::work`] to give them back.
    pub waiting: u32,
}

impl<T, G: Shape> Space<T, G> {
    /// Has numbers come from `source`, or, if the space has a source with other operations, has it
    /// wait for its turn.
    ///
    /// While a source is active, an allocation is as slow as the source and may sleep, a number is
    /// given back by [`Space::work`], and until then counts as parked.
    ///
    /// ```
    /// use std::sync::Arc;
    /// use ioasid::{Config, NumberSource, Operations, SourceError, Space};
    ///
    /// struct Fixed;
    /// impl NumberSource for Fixed {
    ///     fn alloc(&self, _: u32, _: u32) -> Result<u32, SourceError> {
    ///         Ok(42)
    ///     }
    ///     fn free(&self, _: u32) -> Result<(), SourceError> {
    ///         Ok(())
    ///     }
    /// }
    ///
    /// let space = Space::new(Config::default())?;
    /// let registration = space.register_source(&Operations::new("fixed"), Arc::new(Fixed))?;
    /// let lease = space.alloc(1..=99, "queue 7")?;
    /// assert_eq!(lease.id().0, 42);
    /// drop(lease);
    /// space.work(usize::MAX);
    /// registration.unregister()?;
    /// assert_eq!(space.alloc(1..=99, "queue 8")?.id().0, 1);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// [`RegisterError`].
    pub fn register_source(
        &self,
        operations: &Operations,
        source: Arc<dyn NumberSource>,
    ) -> Result<Registration<T, G>, RegisterError> {
        self.shared.collect_all();
        let key = self.shared.register(operations, source)?;
        Ok(Registration { shared: self.shared.clone(), key })
    }

    /// What became of numbers that sources gave.
    pub fn source_counts(&self) -> SourceCounts {
        let sources = &self.shared.sources;
        SourceCounts {
            failed_frees: sources.failed_frees.load(Ordering::Relaxed),
            refused: sources.refused.load(Ordering::Relaxed),
            waiting: sources.returns.lock().len(),
        }
    }
}

impl<T, G: Shape> Registration<T, G> {
    /// Whether the space asks this source now.
    pub fn is_active(&self) -> bool {
        let groups = self.shared.sources.groups.lock();
        let first = groups.first().and_then(|group| group.sharers.first());
        first.is_some_and(|sharer| sharer.key == self.key)
    }

    /// Takes the source away, and if it was the last of the active group has the next one take
    /// over. Gives back first what can be given back.
    ///
    /// # Errors
    /// [`StillInUse`].
    pub fn unregister(self) -> Result<(), StillInUse<T, G>> {
        self.shared.collect_all();
        self.shared.return_numbers();
        match self.shared.unregister(self.key, false) {
            Ok(()) => Ok(()), // its drop will not find it
            Err(out) => Err(StillInUse { registration: self, out }),
        }
    }
}

impl<T, G: Shape> Drop for Registration<T, G> {
    fn drop(&mut self) {
        self.shared.collect_all();
        // Forced: there is no error.
        let _ = self.shared.unregister(self.key, true);
    }
}

impl<T, G: Shape> fmt::Debug for Registration<T, G> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registration").field("active", &self.is_active()).finish_non_exhaustive()
    }
}

/// The sources of a space.
pub(crate) struct Sources {
    /// The active one first. Changed by the holder of `slow`.
    groups: Mutex<Vec<Group>>,
    /// There is a group. A hint without `slow`.
    any: AtomicBool,
    /// The active group has lost its last source, and numbers are out.
    retiring: AtomicBool,
    /// Numbers whose data is gone, to be given back.
    returns: Mutex<List>,
    next_key: AtomicU64,
    failed_frees: AtomicU64,
    refused: AtomicU64,
}

/// Sources with the same operations.
struct Group {
    operations: Operations,
    /// In the order of registration; the first is asked.
    sharers: Vec<Sharer>,
    /// When there are none left: the one that numbers go back to.
    last: Option<Arc<dyn NumberSource>>,
}

struct Sharer {
    key: u64,
    source: Arc<dyn NumberSource>,
}

impl Group {
    /// Whom to give numbers back to.
    fn taker(&self) -> Option<&Arc<dyn NumberSource>> {
        self.sharers.first().map(|sharer| &sharer.source).or(self.last.as_ref())
    }
}

impl Sources {
    pub(crate) fn new() -> Self {
        Self {
            groups: Mutex::new(Vec::new()),
            any: AtomicBool::new(false),
            retiring: AtomicBool::new(false),
            returns: Mutex::new(List::EMPTY),
            next_key: AtomicU64::new(0),
            failed_frees: AtomicU64::new(0),
            refused: AtomicU64::new(0),
        }
    }

    fn taker(&self) -> Option<Arc<dyn NumberSource>> {
        self.groups.lock().first().and_then(Group::taker).cloned()
    }

    /// Gives a number back. With no lock held.
    fn free(&self, number: u32) {
        if let Some(Err(_)) = self.taker().map(|source| source.free(number)) {
            self.failed_frees.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn is_registered(&self, source: &Arc<dyn NumberSource>) -> bool {
        let same = |sharer: &Sharer| {
            Arc::as_ptr(&sharer.source).cast::<()>() == Arc::as_ptr(source).cast()
        };
        self.groups.lock().iter().flat_map(|group| &group.sharers).any(same)
    }

    /// Makes room for one more source with these operations; says whether they have a group.
    fn reserve(&self, operations: &Operations) -> Result<bool, NoMemory> {
        let mut groups = self.groups.lock();
        let Some(group) = groups.iter_mut().find(|group| group.operations == *operations) else {
            groups.try_reserve(1)?;
            return Ok(false);
        };
        group.sharers.try_reserve(1)?;
        Ok(true)
    }

    /// Adds a source to its group, for which there is room. What the group no longer needs is for
    /// the caller to drop without locks.
    fn join(&self, operations: &Operations, sharer: Sharer) -> Option<Arc<dyn NumberSource>> {
        let mut groups = self.groups.lock();
        let group = groups.iter_mut().find(|group| group.operations == *operations)?;
        group.sharers.push(sharer);
        self.retiring.store(false, Ordering::Relaxed);
        group.last.take()
    }
}

impl<T, G: Shape> Shared<T, G> {
    fn register(
        &self,
        operations: &Operations,
        source: Arc<dyn NumberSource>,
    ) -> Result<u64, RegisterError> {
        let mut sharers = Vec::new();
        sharers.try_reserve_exact(1).map_err(NoMemory::from)?;
        let sources = &self.sources;
        // Before the lock, so that it is dropped after it.
        let _unneeded;
        let _slow = self.slow.lock();
        if sources.is_registered(&source) {
            return Err(RegisterError::Registered);
        }
        let joins = sources.reserve(operations)?;
        if !sources.any.load(Ordering::Relaxed) {
            self.close_gates().map_err(|out| RegisterError::InUse { out })?;
            sources.any.store(true, Ordering::Release);
        }
        let key = sources.next_key.fetch_add(1, Ordering::Relaxed);
        let sharer = Sharer { key, source };
        if joins {
            _unneeded = sources.join(operations, sharer);
        } else {
            sharers.push(sharer);
            let group = Group { operations: operations.clone(), sharers, last: None };
            sources.groups.lock().push(group);
        }
        Ok(key)
    }

    /// Takes a source away. The last one of an active group that has numbers out stays, which is
    /// an error with their number, or, with `force`, is asked for no more.
    fn unregister(&self, key: u64, force: bool) -> Result<(), u32> {
        // Before the lock, so that it is dropped after it.
        let _gone;
        let _slow = self.slow.lock();
        let out = self.numbers_out();
        let mut groups = self.sources.groups.lock();
        let place = groups.iter().enumerate().find_map(|(at, group)| {
            Some((at, group.sharers.iter().position(|sharer| sharer.key == key)?))
        });
        let Some((at, place)) = place else { return Ok(()) };
        let needed = at == 0 && groups[at].sharers.len() == 1 && out > 0;
        if needed && !force {
            return Err(out);
        }
        let sharer = groups[at].sharers.remove(place);
        if needed {
            groups[at].last = Some(sharer.source);
            self.sources.retiring.store(true, Ordering::Release);
            return Ok(());
        }
        let group = groups[at].sharers.is_empty().then(|| groups.remove(at));
        let none = groups.is_empty();
        drop(groups);
        _gone = (sharer, group);
        if none {
            self.end_sources();
        }
        Ok(())
    }

    /// Lets the next group take over from one that has no source left, if all its numbers are back.
    fn retire(&self) {
        if !self.sources.retiring.load(Ordering::Acquire) {
            return;
        }
        // Before the lock, so that it is dropped after it.
        let _gone;
        let _slow = self.slow.lock();
        if self.numbers_out() > 0 || !self.sources.retiring.load(Ordering::Relaxed) {
            return;
        }
        self.sources.retiring.store(false, Ordering::Relaxed);
        let mut groups = self.sources.groups.lock();
        _gone = groups.remove(0);
        let none = groups.is_empty();
        drop(groups);
        if none {
            self.end_sources();
        }
    }

    /// The space itself takes over. For the holder of `slow`.
    fn end_sources(&self) {
        self.sources.any.store(false, Ordering::Release);
        self.open_gates();
    }
}
