//! The space itself: its handle, and what all parts of it share.

use alloc::boxed::Box;
use alloc::sync::Arc;
use core::fmt;
use core::ops::RangeInclusive;
use core::ptr::NonNull;

use crate::alloc_path::AllocError;
use crate::config::{Config, ConfigError};
use crate::custom::Sources;
use crate::epoch::Epochs;
use crate::geometry::{Geometry, Shape};
use crate::holder::{Holder, HolderError, Names};
use crate::hooks::Hooks;
use crate::lease::Lease;
use crate::memory;
use crate::notify::Notify;
use crate::numbers::Numbers;
use crate::reader::Reader;
use crate::record::{List, Record};
use crate::registry::Registry;
use crate::set::SetCore;
use crate::shard::{Inside, Shards};
use crate::sync::{AtomicU64, Mutex, Ordering};
use crate::table::Table;
use crate::Ioasid;

/// An ID space with data of type `T` for each ID. Clones are the same space.
///
/// `G` says how it is cut; [`Space::new`] takes what suits most, [`Space::with_geometry`] any.
pub struct Space<T, G: Shape = Geometry> {
    pub(crate) shared: Arc<Handles<T, G>>,
}

/// What all handles of a space (spaces, sets, readers) hold together. When the last of them goes
/// while leases or references are out, those keep the space.
pub(crate) struct Handles<T, G: Shape>(NonNull<Shared<T, G>>);

// SAFETY: it is an owner of a `Shared` like a box of it, and gives out `&Shared`.
unsafe impl<T: Send + Sync, G: Shape> Send for Handles<T, G> {}
// SAFETY: as above.
unsafe impl<T: Send + Sync, G: Shape> Sync for Handles<T, G> {}

impl<T, G: Shape> core::ops::Deref for Handles<T, G> {
    type Target = Shared<T, G>;

    #[inline]
    fn deref(&self) -> &Shared<T, G> {
        // SAFETY: it is freed by the last of the handles and of what is out, and this is a handle.
        unsafe { self.0.as_ref() }
    }
}

impl<T, G: Shape> Handles<T, G> {
    /// The pointer for a lease or a reference; those are counted in their shards.
    pub(crate) fn pointer(&self) -> NonNull<Shared<T, G>> {
        self.0
    }
}

impl<T, G: Shape> Drop for Handles<T, G> {
    fn drop(&mut self) {
        let _orphan = Orphan(self.0);
        // Nobody can read any more. Data that is parked may itself keep a lease of this space.
        self.collect_dear();
    }
}

/// Orphans the space when dropped, also when data panics in its own drop.
struct Orphan<T, G: Shape>(NonNull<Shared<T, G>>);

impl<T, G: Shape> Drop for Orphan<T, G> {
    fn drop(&mut self) {
        // SAFETY: the handles' part is given up below.
        let shared = unsafe { self.0.as_ref() };
        for shard in shared.shards.iter() {
            let mut inside = shard.lock();
            inside.orphaned = true;
            if cfg!(sabotage = "ioasid-no-orphan-count") {
                continue;
            }
            // Added under the lock: who gives one back later subtracts it.
            shared.remaining.fetch_add(inside.out as u64, Ordering::AcqRel);
        }
        // SAFETY: the one that was there from the start stands for the handles.
        unsafe { forsake(self.0) };
    }
}

/// Gives up one of what keeps an orphaned space; the last frees it.
///
/// # Safety
///
/// The caller's part is counted in `remaining`, and it touches the space no more.
pub(crate) unsafe fn forsake<T, G: Shape>(shared: NonNull<Shared<T, G>>) {
    // SAFETY: it is there until `remaining` is zero, and the caller's part is in it.
    let remaining = unsafe { &shared.as_ref().remaining };
    if remaining.fetch_sub(1, Ordering::AcqRel) == 1 {
        // SAFETY: it came from a box; nobody else has a part in it any more.
        drop(unsafe { Box::from_raw(shared.as_ptr()) });
    }
}

impl<T, G: Shape> Shared<T, G> {
    /// Counts one more lease or reference, for a caller that has a part in the space.
    #[inline]
    pub(crate) fn join(&self, inside: &mut Inside) {
        inside.out += 1;
        if inside.orphaned {
            // A lease shared when all handles were gone. What was out then has been added up.
            self.remaining.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// What all parts of a space share.
///
/// Locks, in the order in which they may be taken: `slow`, a shard, then any one of the rest
/// (a set's center, the numbers, the registry, the work list, the subscribers, the names). A single
/// subscription's lock comes last, also after that of the subscribers.
pub(crate) struct Shared<T, G: Shape> {
    pub(crate) table: Table<T, G>,
    pub(crate) epochs: Arc<Epochs>,
    pub(crate) numbers: Numbers,
    pub(crate) shards: Shards,
    /// Of what belongs to no set: the space's unreserved part is its credit.
    pub(crate) root: Arc<SetCore>,
    pub(crate) registry: Mutex<Registry>,
    /// Held by whoever looks through all shards before saying that there is none.
    pub(crate) slow: Mutex<()>,
    /// Parked IDs whose users are to be told.
    pub(crate) work: Mutex<List>,
    pub(crate) notify: Notify<T, G>,
    pub(crate) sources: Sources,
    pub(crate) names: Arc<Names>,
    pub(crate) hooks: Hooks,
    pub(crate) last: u32,
    pub(crate) last_spid: u32,
    pub(crate) capacity: u32,
    /// What keeps the space: one for all handles together; and, once those are gone, one for each
    /// lease and reference.
    remaining: AtomicU64,
}

impl<T, G: Shape> Drop for Shared<T, G> {
    fn drop(&mut self) {
        self.end_sourced();
    }
}

impl<T> Space<T> {
    /// An empty space.
    pub fn new(config: Config) -> Result<Self, ConfigError> {
        Self::with_geometry(config, Hooks::default())
    }
}

impl<T, G: Shape> Space<T, G> {
    /// An empty space of any geometry, with what the caller lends it.
    ///
    /// ```
    /// use ioasid::{Config, Geometry, Hooks, Space};
    ///
    /// let tiny = Space::<&str, Geometry<1, 1>>::with_geometry(
    ///     Config { width: 2, ..Config::default() },
    ///     Hooks::default(),
    /// )?;
    /// assert_eq!(tiny.usage().unreserved, 3);
    /// # Ok::<(), ioasid::ConfigError>(())
    /// ```
    pub fn with_geometry(config: Config, hooks: Hooks) -> Result<Self, ConfigError> {
        let checked = config.check()?;
        let (last, capacity) = (checked.last, checked.capacity);
        let no_memory = |_| ConfigError::NoMemory;
        let shared = Shared {
            table: Table::new(last).map_err(no_memory)?,
            epochs: memory::shared(Epochs::new()),
            numbers: Numbers::new(last, checked.reserved).map_err(no_memory)?,
            shards: Shards::new::<G>(checked.shards).map_err(no_memory)?,
            root: memory::shared(SetCore::root(capacity)),
            registry: Mutex::new(Registry::new()),
            slow: Mutex::new(()),
            work: Mutex::new(List::EMPTY),
            notify: Notify::new(),
            sources: Sources::new(),
            names: Names::new(),
            hooks,
            last,
            last_spid: checked.last_spid,
            capacity,
            remaining: AtomicU64::new(1),
        };
        shared.enter_set(&shared.root).map_err(no_memory)?;
        let shared = NonNull::from(Box::leak(memory::boxed(shared).map_err(no_memory)?));
        Ok(Self { shared: memory::shared(Handles(shared)) })
    }

    /// Hands out a free number of `range` (cut at the end of the space) with its data, to no set.
    ///
    /// With the standard library on this thread's shard, else on the first. Which number it is:
    /// see the crate's page.
    pub fn alloc(&self, range: RangeInclusive<u32>, data: T) -> Result<Lease<T, G>, AllocError> {
        self.alloc_on(crate::local::shard(), range, data)
    }

    /// Like [`Space::alloc`], on the shard `shard` (modulo their number).
    #[inline]
    pub fn alloc_on(
        &self,
        shard: usize,
        range: RangeInclusive<u32>,
        data: T,
    ) -> Result<Lease<T, G>, AllocError> {
        Shared::alloc(&self.shared, shard, 0, range, data)
    }

    /// Like [`Space::alloc`], for data that has to know its own number.
    ///
    /// `data` runs with no lock held, before anyone can find the ID. If it panics, the number
    /// goes back.
    pub fn alloc_with(
        &self,
        range: RangeInclusive<u32>,
        data: impl FnOnce(Ioasid) -> T,
    ) -> Result<Lease<T, G>, AllocError> {
        Shared::alloc_with(&self.shared, crate::local::shard(), 0, range, data)
    }

    /// A reader of this space, for one thread or processor at a time. To be made while there is
    /// memory: its place is shared as an [`Arc`] is, whose making cannot fail.
    pub fn reader(&self) -> Reader<T, G> {
        Reader::new(self.shared.clone())
    }

    /// A name under which references are counted.
    ///
    /// # Errors
    /// [`HolderError`]: there is a limit, and a name is never given back.
    pub fn holder(&self, name: &str) -> Result<Holder, HolderError> {
        self.shared.names.add(name)
    }

    /// What is out now. What nothing can name any more is released first, so that what it calls
    /// parked is held by someone.
    pub fn usage(&self) -> Usage {
        self.release_parked();
        self.shared.usage()
    }

    /// Releases every parked number that nothing can name any more. Allocating and freeing do so
    /// by themselves, a batch at a time; call this to have the data dropped on an idle space.
    pub fn release_parked(&self) {
        self.shared.collect_all();
    }
}

/// What is out of a space, at one moment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Usage {
    /// Numbers with a lease, or being allocated.
    pub live: u32,
    /// Numbers that are freed but which something may still name.
    pub parked: u32,
    /// Most numbers that may be out (live or parked) at one time.
    pub capacity: u32,
    /// What no set has reserved and nobody has out.
    pub unreserved: u32,
}

impl<T, G: Shape> Shared<T, G> {
    /// How to come by records, for lists.
    #[inline]
    pub(crate) fn records<'s>(&'s self) -> impl Fn(u32) -> &'s Record + Copy {
        |number| self.table.record(number)
    }

    #[inline]
    pub(crate) fn shard_index(&self, shard: usize) -> usize {
        if shard < self.shards.len() {
            shard
        } else {
            shard % self.shards.len()
        }
    }

    fn usage(&self) -> Usage {
        let _slow = self.slow.lock();
        let mut usage = Usage { live: 0, parked: 0, capacity: self.capacity, unreserved: 0 };
        for shard in self.shards.iter() {
            let inside = shard.lock();
            for local in &inside.sets {
                usage.live += local.live;
                usage.parked += local.parked;
            }
            usage.unreserved += inside.sets[0].credit;
        }
        usage.unreserved += self.root.quota().credit;
        usage
    }
}

impl<T, G: Shape> Clone for Space<T, G> {
    fn clone(&self) -> Self {
        Self { shared: self.shared.clone() }
    }
}

impl<T, G: Shape> fmt::Debug for Space<T, G> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Space")
            .field("last", &self.shared.last)
            .field("capacity", &self.shared.capacity)
            .finish_non_exhaustive()
    }
}
