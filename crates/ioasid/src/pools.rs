//! A pool of numbers for each requester, and one for all of them beside it.
//!
//! ```text
//!   number:   0 ............ split - 1   split ............ last
//!   means:    this requester's own       the same for every requester that opted in
//! ```
//!
//! A device knows an address space by the pair of its requester ID and a PASID, so two devices may
//! use the same PASID for different things, and a tenant who uses up the numbers of his device
//! harms nobody else. But a queue that several processes and devices share takes the PASID from the
//! processor, where a process has one: those numbers have to mean the same everywhere. The split
//! keeps the two apart.

use alloc::sync::Arc;
use core::fmt;
use core::marker::PhantomData;
use core::ops::RangeInclusive;
use core::sync::atomic::{AtomicBool, Ordering};

use hashbrown::HashMap;

use crate::alloc_path::AllocError;
use crate::config::{Config, ConfigError};
use crate::geometry::{Geometry, Shape};
use crate::hooks::Hooks;
use crate::lease::Lease;
use crate::memory::{self, NoMemory};
use crate::reader::{Guard, Reader};
use crate::set::SetType;
use crate::sets::{Set, SetError};
use crate::space::Space;
use crate::sync::Mutex;
use crate::{Ioasid, Tag};

/// What tells requesters from each other.
pub trait Requester: Copy {
    /// A number for it, the same each time and no other's: on PCI Express segment, bus, device and
    /// function.
    fn requester(&self) -> u64;
}

impl Requester for u16 {
    fn requester(&self) -> u64 {
        (*self).into()
    }
}

impl Requester for u32 {
    fn requester(&self) -> u64 {
        (*self).into()
    }
}

impl Requester for u64 {
    fn requester(&self) -> u64 {
        *self
    }
}

/// Whether a requester takes part in the numbers that are the same for all.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Scope {
    /// Its own numbers alone.
    Local,
    /// Also those from the split up.
    Shared,
}

/// Why there is no pool. Nothing has changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum PoolError {
    /// The requester has one that is not closed.
    #[error("the requester has a pool already")]
    HasPool,
    /// There are no numbers that are the same for all: the pools were made without a split.
    #[error("the pools share no numbers")]
    NothingShared,
    /// The split leaves one side without numbers, or the [`Config`] is wrong.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// There was no memory.
    #[error("no memory for the pool")]
    NoMemory,
}

impl From<NoMemory> for PoolError {
    fn from(NoMemory: NoMemory) -> Self {
        Self::NoMemory
    }
}

/// Pools of numbers, one for each requester. Clones are the same pools.
///
/// ```
/// use ioasid::{Config, Ioasid, Pools, Scope};
///
/// let pools = Pools::<u16, &str>::new(Config::default(), Some(0x8000))?;
/// let (a, b) = (pools.add(0x100, Scope::Shared)?, pools.add(0x200, Scope::Local)?);
/// let (of_a, of_b) = (a.alloc(1..=1, "a's")?, b.alloc(1..=1, "b's")?);
/// let process = pools.shared().unwrap().alloc(0..=0xfffff, "a process, on every device")?;
/// assert_eq!(process.id(), Ioasid(0x8000));
///
/// let find = |requester, id| pools.find(requester, id, |data, _| *data);
/// assert_eq!(find(0x100, Ioasid(1)), Some("a's"));
/// assert_eq!(find(0x200, Ioasid(1)), Some("b's"));
/// assert_eq!(find(0x100, process.id()), Some("a process, on every device"));
/// assert_eq!(find(0x200, process.id()), None, "it did not opt in");
/// drop(a);
/// assert_eq!(find(0x100, Ioasid(1)), None, "the requester is gone");
/// assert!(!of_a.is_live());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Pools<K, T, G: Shape = Geometry> {
    inner: Arc<Inner<T, G>>,
    requesters: PhantomData<fn(K)>,
}

struct Inner<T, G: Shape> {
    local: Config,
    hooks: Hooks,
    shared: Option<Upper<T, G>>,
    /// Those that are not closed.
    pools: Mutex<HashMap<u64, Arc<Core<T, G>>>>,
}

/// The numbers that are the same for all.
struct Upper<T, G: Shape> {
    /// The first of them.
    split: u32,
    space: Space<T, G>,
}

struct Core<T, G: Shape> {
    own: Space<T, G>,
    /// All of `own`: closing it frees all of them, whoever has the leases.
    set: Set<T, G>,
    shared: Option<Upper<T, G>>,
    closed: AtomicBool,
}

/// A requester's own numbers. Dropping it, when the requester is gone, frees all of them, whoever
/// has the leases, and finds by the requester find nothing any more.
#[must_use = "dropping a pool frees all its numbers"]
pub struct Pool<T, G: Shape = Geometry> {
    pools: Arc<Inner<T, G>>,
    requester: u64,
    core: Arc<Core<T, G>>,
}

/// A place from which a requester's numbers are found without a lock: one for each thread or
/// processor, as a [`Reader`].
pub struct PoolReader<T, G: Shape = Geometry> {
    own: Reader<T, G>,
    shared: Option<(u32, Reader<T, G>)>,
    core: Arc<Core<T, G>>,
}

/// While it lives, what it finds stays. See [`Guard`].
pub struct PoolGuard<'r, T, G: Shape = Geometry> {
    own: Guard<'r, T, G>,
    shared: Option<(u32, Guard<'r, T, G>)>,
}

impl<K: Requester, T, G: Shape> Pools<K, T, G> {
    /// Pools of spaces of this configuration, in which numbers from `split` up, if it is given,
    /// are the same for all requesters that opt in. See [`Config`] for what a pool costs; pools
    /// that few threads allocate from do well with one shard.
    ///
    /// # Errors
    /// [`PoolError::Config`] now rather than at the first pool, [`PoolError::NoMemory`].
    pub fn new(config: Config, split: Option<u32>) -> Result<Self, PoolError> {
        Self::with_hooks(config, split, Hooks::default())
    }

    /// Like [`Pools::new`], with what the caller lends each of the spaces. A [`Pool`]'s work is
    /// done by [`Pool::space`].
    ///
    /// # Errors
    /// As [`Pools::new`].
    pub fn with_hooks(config: Config, split: Option<u32>, hooks: Hooks) -> Result<Self, PoolError> {
        let mut local = config.clone();
        let mut shared = None;
        if let Some(split) = split {
            let mut upper = config;
            if let Some(below) = split.checked_sub(1) {
                upper.reserved.push(0..=below);
            }
            local.reserved.push(split..=u32::MAX);
            // A capacity is for one pool; what is shared has as many as there are.
            upper.capacity = None;
            some(&upper)?;
            shared = Some(Upper { split, space: Space::with_geometry(upper, hooks.clone())? });
        }
        some(&local)?;
        let pools = Mutex::new(HashMap::new());
        let inner = memory::shared(Inner { local, hooks, shared, pools });
        Ok(Self { inner, requesters: PhantomData })
    }

    /// The numbers that are the same for all requesters that opt in.
    pub fn shared(&self) -> Option<&Space<T, G>> {
        self.inner.shared.as_ref().map(|upper| &upper.space)
    }

    /// A pool for a requester that has come.
    ///
    /// # Errors
    /// [`PoolError`].
    pub fn add(&self, requester: K, scope: Scope) -> Result<Pool<T, G>, PoolError> {
        let key = requester.requester();
        if self.inner.pools.lock().contains_key(&key) {
            return Err(PoolError::HasPool);
        }
        let shared = match scope {
            Scope::Local => None,
            Scope::Shared => Some(self.inner.shared.clone().ok_or(PoolError::NothingShared)?),
        };
        let own = Space::with_geometry(self.inner.local.clone(), self.inner.hooks.clone())?;
        let capacity = own.usage().capacity;
        let set = own.create_set("pool", SetType::Native, capacity).map_err(|error| {
            debug_assert_eq!(error, SetError::NoMemory, "an empty space has all its capacity");
            PoolError::NoMemory
        })?;
        let core = memory::shared(Core { own, set, shared, closed: AtomicBool::new(false) });
        // Of two who add the same requester at the same time, one was quicker.
        let quicker = {
            let mut pools = self.inner.pools.lock();
            pools.try_reserve(1).map_err(NoMemory::from)?;
            let quicker = pools.contains_key(&key);
            if !quicker {
                pools.insert(key, core.clone());
            }
            quicker
        };
        if quicker {
            return Err(PoolError::HasPool);
        }
        Ok(Pool { pools: self.inner.clone(), requester: key, core })
    }

    /// Calls `f` with what a number of a requester means, if it means anything, and gives what `f`
    /// gives. Makes a reader for this once; who finds often keeps a [`PoolReader`].
    pub fn find<R>(&self, requester: K, id: Ioasid, f: impl FnOnce(&T, Tag) -> R) -> Option<R> {
        let reader = self.reader(requester)?;
        let guard = reader.pin();
        guard.find_tagged(id).map(|(data, tag)| f(data, tag))
    }

    /// A place from which a requester's numbers are found; `None` if it has no pool. It finds
    /// nothing once the pool is closed, also when the requester has another pool then.
    pub fn reader(&self, requester: K) -> Option<PoolReader<T, G>> {
        let key = requester.requester();
        let core = self.inner.pools.lock().get(&key).cloned()?;
        Some(core.reader())
    }

    /// How many requesters have a pool.
    pub fn len(&self) -> usize {
        self.inner.pools.lock().len()
    }

    /// Whether no requester has one.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Says no to a space without numbers.
fn some(config: &Config) -> Result<(), ConfigError> {
    match config.clone().check()?.capacity {
        0 => Err(ConfigError::Capacity { capacity: 1, available: 0 }),
        _ => Ok(()),
    }
}

impl<T, G: Shape> Core<T, G> {
    fn reader(self: Arc<Self>) -> PoolReader<T, G> {
        let shared = self.shared.as_ref().map(|upper| (upper.split, upper.space.reader()));
        PoolReader { own: self.own.reader(), shared, core: self }
    }
}

impl<T, G: Shape> Pool<T, G> {
    /// Hands out a number of `range` below the split. Like [`Set::alloc`].
    ///
    /// # Errors
    /// [`AllocError`].
    pub fn alloc(&self, range: RangeInclusive<u32>, data: T) -> Result<Lease<T, G>, AllocError> {
        self.core.set.alloc(range, data)
    }

    /// Its numbers as a set, for whatever else can be done with one; of a quota that is all of the
    /// pool's capacity.
    pub fn set(&self) -> &Set<T, G> {
        &self.core.set
    }

    /// Its numbers as a space: for holders, reports and [`Space::work`].
    pub fn space(&self) -> &Space<T, G> {
        &self.core.own
    }

    /// A place from which the requester's numbers are found.
    pub fn reader(&self) -> PoolReader<T, G> {
        self.core.clone().reader()
    }
}

impl<T, G: Shape> Drop for Pool<T, G> {
    fn drop(&mut self) {
        self.core.closed.store(true, Ordering::Release);
        // With the lock gone before what was removed is.
        let _removed = self.pools.pools.lock().remove(&self.requester);
        self.core.set.close();
    }
}

impl<T, G: Shape> PoolReader<T, G> {
    /// Begins to read.
    pub fn pin(&self) -> PoolGuard<'_, T, G> {
        let shared = self.shared.as_ref().filter(|_| !self.core.closed.load(Ordering::Acquire));
        PoolGuard {
            own: self.own.pin(),
            shared: shared.map(|(split, reader)| (*split, reader.pin())),
        }
    }
}

impl<T, G: Shape> PoolGuard<'_, T, G> {
    /// What a number means for the requester: one of its own below the split, one of all above.
    #[inline]
    pub fn find(&self, id: Ioasid) -> Option<&T> {
        self.side(id).find(id)
    }

    /// Like [`PoolGuard::find`], and says which life of the number was found.
    #[inline]
    pub fn find_tagged(&self, id: Ioasid) -> Option<(&T, Tag)> {
        self.side(id).find_tagged(id)
    }

    #[inline]
    fn side(&self, id: Ioasid) -> &Guard<'_, T, G> {
        match &self.shared {
            Some((split, shared)) if id.0 >= *split => shared,
            // Which has nothing from the split up.
            _ => &self.own,
        }
    }
}

impl<K, T, G: Shape> Clone for Pools<K, T, G> {
    fn clone(&self) -> Self {
        Self { inner: self.inner.clone(), requesters: PhantomData }
    }
}

impl<T, G: Shape> Clone for Upper<T, G> {
    fn clone(&self) -> Self {
        Self { split: self.split, space: self.space.clone() }
    }
}

impl<K, T, G: Shape> fmt::Debug for Pools<K, T, G> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let split = self.inner.shared.as_ref().map(|upper| upper.split);
        f.debug_struct("Pools").field("split", &split).finish_non_exhaustive()
    }
}

impl<T, G: Shape> fmt::Debug for Pool<T, G> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool").field("requester", &self.requester).finish_non_exhaustive()
    }
}

impl<T, G: Shape> fmt::Debug for PoolReader<T, G> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PoolReader").finish_non_exhaustive()
    }
}

impl<T, G: Shape> fmt::Debug for PoolGuard<'_, T, G> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PoolGuard").finish_non_exhaustive()
    }
}
