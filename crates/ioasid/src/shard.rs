//! A shard: what threads that use it need not share with those that use another.
//!
//! ```text
//!             refill                    publish               free
//!   numbers ◄────────► cache (LIFO) ──────────────► live ──────────────► fresh ─┐
//!             spill      ▲                                     │ references     │ readers
//!                        └────────── released ◄── waiting ◄────┴── queued ◄─────┘ about
//! ```
//!
//! Everything here is under the shard's lock, which on the usual path is the only thing that an
//! allocation or a free writes besides the ID's own slot and record. An ID lives in the shard that
//! allocated it until it is released, whoever frees it.

use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;

use hashbrown::HashMap;

use crate::epoch::Epochs;
use crate::geometry::Shape;
use crate::holder::Holders;
use crate::memory::NoMemory;
use crate::notify::Bound;
use crate::record::{List, Record};
use crate::set::SetCore;
use crate::sync::{AtomicU64, Mutex, MutexGuard, Ordering};

/// Most shards of a space.
pub const MAX_SHARDS: usize = 64;

/// A shard, on cache lines of its own (adjacent lines are fetched in pairs).
#[derive(Debug)]
#[repr(align(128))]
pub(crate) struct Shard {
    inside: Mutex<Inside>,
    bounds: AtomicU64,
}

/// Bounds of no number at all.
const NOTHING: u64 = (u32::MAX as u64) << 32;

impl Shard {
    pub(crate) fn new<G: Shape>() -> Result<Self, NoMemory> {
        Ok(Self { inside: Mutex::new(Inside::new::<G>()?), bounds: AtomicU64::new(NOTHING) })
    }

    #[inline]
    pub(crate) fn lock(&self) -> MutexGuard<'_, Inside> {
        self.inside.lock()
    }

    /// Whether a number of `min..=max` may be here that is not live: cached or parked.
    #[inline]
    pub(crate) fn may_have(&self, min: u32, max: u32) -> bool {
        let bounds = self.bounds.load(Ordering::Acquire);
        let (low, high) = ((bounds >> 32) as u32, bounds as u32);
        low <= max && min <= high
    }

    /// Says that `number` is here and not live; for the holder of the lock. True if nothing was.
    #[inline]
    #[must_use]
    fn widen(&self, number: u32) -> bool {
        let bounds = self.bounds.load(Ordering::Relaxed);
        let (low, high) = ((bounds >> 32) as u32, bounds as u32);
        if number < low || number > high {
            let wider = u64::from(number.min(low)) << 32 | u64::from(number.max(high));
            self.bounds.store(wider, Ordering::Release);
        }
        bounds == NOTHING
    }
}

/// The shards of a space.
#[derive(Debug)]
pub(crate) struct Shards {
    shards: Box<[Shard]>,
    /// Those that may have a number that is not live, a bit each.
    stocked: AtomicU64,
}

impl Shards {
    pub(crate) fn new<G: Shape>(count: usize) -> Result<Self, NoMemory> {
        let mut shards = Vec::new();
        shards.try_reserve_exact(count)?;
        for _ in 0..count {
            shards.push(Shard::new::<G>()?);
        }
        Ok(Self { shards: shards.into_boxed_slice(), stocked: AtomicU64::new(0) })
    }

    /// Says that the shard `at`, whose lock the caller holds, has `number`, and that not live.
    #[inline]
    pub(crate) fn stock(&self, at: usize, number: u32) {
        if self.shards[at].widen(number) {
            self.stocked.fetch_or(1 << at, Ordering::AcqRel);
        }
    }

    /// Says so if the shard `at`, whose lock the caller holds, has nothing.
    pub(crate) fn unstock(&self, at: usize, inside: &Inside) {
        if inside.cache.is_empty() && !inside.has_parked() {
            self.stocked.fetch_and(!(1 << at), Ordering::AcqRel);
            self.shards[at].bounds.store(NOTHING, Ordering::Release);
        }
    }

    /// Whether any may have a number of `min..=max` that is not live.
    #[inline]
    pub(crate) fn may_have(&self, min: u32, max: u32) -> bool {
        bits(self.stocked.load(Ordering::Acquire)).any(|at| self.shards[at].may_have(min, max))
    }
}

impl core::ops::Deref for Shards {
    type Target = [Shard];

    #[inline]
    fn deref(&self) -> &[Shard] {
        &self.shards
    }
}

/// The places of the bits that are set, lowest first.
#[inline]
pub(crate) fn bits(mut bits: u64) -> impl Iterator<Item = usize> {
    core::iter::from_fn(move || {
        let at = (bits != 0).then(|| bits.trailing_zeros() as usize)?;
        bits &= bits - 1;
        Some(at)
    })
}

/// What a shard's lock protects.
#[derive(Debug)]
pub(crate) struct Inside {
    /// Free numbers that only this shard hands out, the next one last.
    pub(crate) cache: Vec<u32>,
    /// Parked numbers that readers may still name, not yet asked about. Room for a batch.
    fresh: Vec<u32>,
    /// Parked numbers whose readers had not gone when last asked, and which are not waited for.
    queued: List,
    /// Parked numbers that are released once readers from before `since` have gone.
    waiting: List,
    since: u64,
    /// Parked numbers that nothing can name.
    passed: List,
    /// By the sets' index.
    pub(crate) sets: Vec<Local>,
    /// Who holds which ID of this shard, beside the leases.
    pub(crate) holders: Holders,
    /// Which IDs of this shard are bound.
    pub(crate) bound: HashMap<u32, Bound>,
    /// Leases and references to IDs of this shard.
    pub(crate) out: usize,
    /// The numbers come from a source: none is cached, and no set is open here.
    pub(crate) sourced: bool,
    /// Parked numbers that wait for the source.
    pub(crate) returning: usize,
    /// All handles of the space are gone; the last lease or reference frees it.
    pub(crate) orphaned: bool,
}

/// What a shard has of one set.
#[derive(Debug, Default)]
pub(crate) struct Local {
    pub(crate) core: Option<Arc<SetCore>>,
    /// How many more may be allocated without asking the set.
    pub(crate) credit: u32,
    /// Whether the set takes allocations out of the shard's cache.
    pub(crate) open: bool,
    /// Whether somebody wants to be told of what happens to its IDs.
    pub(crate) watched: bool,
    /// With a lease, or being allocated.
    pub(crate) live: u32,
    pub(crate) parked: u32,
    /// Live and parked IDs, and released ones that the cache still has; in no order.
    pub(crate) members: Vec<u32>,
}

impl Inside {
    fn new<G: Shape>() -> Result<Self, NoMemory> {
        let (mut cache, mut fresh) = (Vec::new(), Vec::new());
        // A release adds a batch to what is there, and then spills what is over two.
        cache.try_reserve_exact(3 * MAX_FEW)?;
        fresh.try_reserve_exact(G::BATCH)?;
        Ok(Self {
            cache,
            fresh,
            queued: List::EMPTY,
            waiting: List::EMPTY,
            since: 0,
            passed: List::EMPTY,
            sets: Vec::new(),
            holders: Holders::default(),
            bound: HashMap::new(),
            out: 0,
            sourced: false,
            returning: 0,
            orphaned: false,
        })
    }

    /// Takes a number of `min..=max` out of the cache, the one that came last if that will do.
    #[inline]
    pub(crate) fn take_cached(&mut self, min: u32, max: u32) -> Option<u32> {
        let &top = self.cache.last()?;
        if (min..=max).contains(&top) {
            return self.cache.pop();
        }
        let at = self.cache.iter().rposition(|number| (min..=max).contains(number))?;
        Some(self.cache.remove(at))
    }

    /// Whether the cache has a number of `min..=max`.
    pub(crate) fn has_cached(&self, min: u32, max: u32) -> bool {
        self.cache.iter().any(|number| (min..=max).contains(number))
    }

    pub(crate) fn has_parked(&self) -> bool {
        !(self.fresh.is_empty()
            && self.queued.is_empty()
            && self.waiting.is_empty()
            && self.passed.is_empty()
            && self.returning == 0)
    }

    /// Takes a parked number in that only readers can still name. Allocates nothing. Says whether
    /// it is time to ask about readers.
    #[inline]
    pub(crate) fn push_parked<'r>(
        &mut self,
        number: u32,
        record: impl Fn(u32) -> &'r Record,
    ) -> bool {
        // Exactly what was reserved may be used: a push beyond it would allocate.
        if self.fresh.len() < self.fresh.capacity() {
            self.fresh.push(number);
        } else {
            self.queued.push(number, record);
        }
        self.fresh.len() >= self.fresh.capacity()
    }

    /// Moves parked numbers that nothing can name any more into `few`, until that is full or
    /// there are none. Those that stay are stamped with `now` when it is the first time.
    pub(crate) fn ripen<'r>(
        &mut self,
        epochs: &Epochs,
        now: u64,
        record: impl Fn(u32) -> &'r Record + Copy,
        few: &mut Few,
    ) {
        if !(self.fresh.is_empty() && self.queued.is_empty() && self.waiting.is_empty()) {
            self.ask(epochs, now, record, few);
        }
        while let Some(number) = few.has_room().then(|| self.passed.pop(record)).flatten() {
            record(number).set_parked_at(0);
            few.push(number);
        }
    }

    fn ask<'r>(
        &mut self,
        epochs: &Epochs,
        now: u64,
        record: impl Fn(u32) -> &'r Record + Copy,
        few: &mut Few,
    ) {
        let this_moment = epochs.retire();
        if epochs.has_passed(this_moment) {
            // Nobody reads who began before this moment: all that is here can go.
            few.fill(&self.fresh);
            self.fresh.clear();
            self.passed.append(self.waiting.take(), record);
            self.passed.append(self.queued.take(), record);
            return;
        }
        if !self.waiting.is_empty() && epochs.has_passed(self.since) {
            self.passed.append(self.waiting.take(), record);
        }
        for number in self.fresh.drain(..) {
            stamp(record(number), now);
            self.queued.push(number, record);
        }
        if self.waiting.is_empty() {
            self.waiting = self.queued.take();
            self.since = this_moment;
        }
    }

    /// Puts a number back that is parked and that nothing can name.
    pub(crate) fn push_passed<'r>(&mut self, number: u32, record: impl Fn(u32) -> &'r Record) {
        self.passed.push(number, record);
    }
}

/// Notes when a number was first seen to stay parked.
pub(crate) fn stamp(record: &Record, now: u64) {
    if record.parked_at() == 0 {
        record.set_parked_at(now);
    }
}

const MAX_FEW: usize = 64;

/// A batch of numbers, outside any lock.
pub(crate) struct Few {
    numbers: [u32; MAX_FEW],
    len: usize,
}

impl Few {
    pub(crate) const fn new() -> Self {
        Self { numbers: [0; MAX_FEW], len: 0 }
    }

    pub(crate) fn has_room(&self) -> bool {
        self.len < MAX_FEW
    }

    /// Fills an empty one.
    fn fill(&mut self, numbers: &[u32]) {
        self.len = numbers.len();
        self.numbers[..self.len].copy_from_slice(numbers);
    }

    /// Adds a number; the caller has asked for room.
    pub(crate) fn push(&mut self, number: u32) {
        self.numbers[self.len] = number;
        self.len += 1;
    }
}

impl core::ops::Deref for Few {
    type Target = [u32];

    fn deref(&self) -> &[u32] {
        &self.numbers[..self.len]
    }
}
