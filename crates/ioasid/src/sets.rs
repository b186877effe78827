//! Sets as their owners see them.

use alloc::string::String;
use alloc::sync::Arc;
use core::fmt;
use core::ops::RangeInclusive;

use crate::alloc_path::AllocError;
use crate::geometry::{Geometry, Shape};
use crate::lease::Lease;
use crate::memory::{self, copied, NoMemory};
use crate::record::{KEPT, UNLEASED};
use crate::set::{Last, Owner, SetCore, SetType};
use crate::shard::{Few, Local};
use crate::space::{Handles, Shared, Space};
use crate::state::{Status, MAX_SETS};
use crate::{Ioasid, Tag};

/// A group of IDs with a quota of its own: the right to allocate from it, to see its members and
/// to close it. Clones are the same set; when the last goes the set is closed.
pub struct Set<T, G: Shape = Geometry> {
    pub(crate) shared: Arc<Handles<T, G>>,
    pub(crate) core: Arc<SetCore>,
}

/// Why a set was not made, or its quota not changed. Nothing has changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum SetError {
    /// A quota of zero: a set that may hold nothing is a mistake.
    #[error("a quota of zero")]
    ZeroQuota,
    /// More is asked for than no set has reserved and nobody has out.
    #[error("a quota of {asked} more; {unreserved} are unreserved")]
    OutOfCapacity {
        /// What was asked for beyond what the set has.
        asked: u32,
        /// What there is.
        unreserved: u32,
    },
    /// The owner has a set that is not closed.
    #[error("the owner has a set already")]
    HasSet,
    /// More IDs are out, live or parked, than the new quota.
    #[error("a quota of {asked}; {out} are out")]
    InUse {
        /// The new quota.
        asked: u32,
        /// IDs that are out.
        out: u32,
    },
    /// The set is closed.
    #[error("the set is closed")]
    Closed,
    /// As many sets exist as there can be.
    #[error("the space has its limit of {limit} sets")]
    TooMany {
        /// The limit.
        limit: u32,
    },
    /// There was no memory.
    #[error("no memory for the set")]
    NoMemory,
}

impl From<NoMemory> for SetError {
    fn from(NoMemory: NoMemory) -> Self {
        Self::NoMemory
    }
}

/// What a set has out, at one moment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SetUsage {
    /// Most IDs that may be out (live or parked) at one time.
    pub quota: u32,
    /// IDs with a lease, or being allocated.
    pub live: u32,
    /// IDs that are freed but which something may still name.
    pub parked: u32,
}

/// Why a set's lease was not given out. Nothing has changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum TakeError {
    /// The number is not out.
    #[error("{0} is not allocated")]
    NotFound(Ioasid),
    /// The ID is freed.
    #[error("{0} is freed already")]
    Parked(Ioasid),
    /// The ID is another set's.
    #[error("{0} belongs to another set")]
    ForeignSet(Ioasid),
    /// The set does not keep its lease: somebody has it.
    #[error("the lease of {0} is not with its set")]
    Leased(Ioasid),
}

impl<T, G: Shape> Space<T, G> {
    /// Makes a set called `name`, whose quota is reserved from now on until the set is closed and
    /// the last of its IDs is gone.
    ///
    /// # Errors
    /// [`SetError`].
    pub fn create_set(&self, name: &str, kind: SetType, quota: u32) -> Result<Set<T, G>, SetError> {
        if quota == 0 {
            return Err(SetError::ZeroQuota);
        }
        let owned = copied(name)?;
        self.shared.collect_all();
        let core = self.shared.create_set(owned, kind, quota)?;
        let set = Set { shared: self.shared.clone(), core };
        self.shared.tell_created(&set.core);
        set.core.announce();
        Ok(set)
    }

    /// The set of an owner, as another handle of it; `None` if there is none, or it is closed.
    pub fn set_of(&self, owner: &Owner) -> Option<Set<T, G>> {
        let core = self.shared.registry.lock().of(owner).cloned()?;
        // Not when its last handle is just closing it.
        core.acquire().then(|| Set { shared: self.shared.clone(), core })
    }
}

impl<T, G: Shape> Set<T, G> {
    /// Its name, for people.
    pub fn name(&self) -> &str {
        &self.core.name
    }

    /// What it is for.
    pub fn kind(&self) -> &SetType {
        &self.core.kind
    }

    /// Hands out a free number of `range` with its data, as an ID of this set. Like
    /// [`Space::alloc`] otherwise.
    pub fn alloc(&self, range: RangeInclusive<u32>, data: T) -> Result<Lease<T, G>, AllocError> {
        self.alloc_on(crate::local::shard(), range, data)
    }

    /// Like [`Set::alloc`], on the shard `shard` (modulo their number).
    #[inline]
    pub fn alloc_on(
        &self,
        shard: usize,
        range: RangeInclusive<u32>,
        data: T,
    ) -> Result<Lease<T, G>, AllocError> {
        Shared::alloc(&self.shared, shard, self.core.index, range, data)
    }

    /// Like [`Set::alloc`], for data that has to know its own number.
    pub fn alloc_with(
        &self,
        range: RangeInclusive<u32>,
        data: impl FnOnce(Ioasid) -> T,
    ) -> Result<Lease<T, G>, AllocError> {
        let shard = crate::local::shard();
        Shared::alloc_with(&self.shared, shard, self.core.index, range, data)
    }

    /// Its quota and what of it is out. What nothing can name any more is released first.
    pub fn usage(&self) -> SetUsage {
        self.shared.collect_all();
        self.shared.set_usage(&self.core)
    }

    /// Changes the quota. One below what is out is refused; while a smaller one is being agreed
    /// on, allocations may already be refused by it.
    ///
    /// # Errors
    /// [`SetError`].
    pub fn adjust(&self, quota: u32) -> Result<(), SetError> {
        if quota == 0 {
            return Err(SetError::ZeroQuota);
        }
        self.shared.collect_all();
        self.shared.adjust_set(&self.core, quota)
    }

    /// Closes the set: it takes no allocations, its owner finds it no more, and every ID of it is
    /// freed, whoever has the lease. Its quota returns to the space when the last of them is gone.
    /// Closing it again does nothing.
    pub fn close(&self) {
        self.shared.close_set(&self.core);
    }

    /// Whether it is closed, all its IDs are gone and its quota has returned.
    pub fn is_drained(&self) -> bool {
        self.shared.collect_all();
        self.core.is_drained()
    }

    /// Leaves a lease with its set, which frees the ID when it is closed. [`Set::take`] gives it
    /// out again.
    ///
    /// # Errors
    /// The lease, if it is of another set or space.
    pub fn keep(&self, lease: Lease<T, G>) -> Result<Tag, Lease<T, G>> {
        self.shared.keep(&self.core, lease)
    }

    /// The lease of a live ID that was left with the set.
    ///
    /// # Errors
    /// [`TakeError`].
    pub fn take(&self, id: Ioasid) -> Result<Lease<T, G>, TakeError> {
        self.shared.take_kept(&self.core, id)
    }

    /// Calls `f` with every ID that is live in this set, in no order, with no lock held.
    ///
    /// An ID that is live all the time is seen at least once, and just once if nothing of the set
    /// is released meanwhile.
    pub fn for_each(&self, mut f: impl FnMut(Tag)) {
        for at in self.core.shards() {
            let mut from = usize::MAX;
            while from > 0 {
                let mut tags = [Tag::NONE; ITERATE];
                from = self.shared.members(at, self.core.index, from, &mut tags);
                // The first life is 1: what has none was not live.
                tags.into_iter().filter(|tag| tag.generation > 0).for_each(&mut f);
            }
        }
    }
}

/// Members that iterating copies out at one time.
const ITERATE: usize = 16;

impl<T, G: Shape> Clone for Set<T, G> {
    fn clone(&self) -> Self {
        self.core.share();
        Self { shared: self.shared.clone(), core: self.core.clone() }
    }
}

impl<T, G: Shape> Drop for Set<T, G> {
    fn drop(&mut self) {
        if self.core.release() == Last::Close {
            // Still a handle while it is being closed, also if data panics in its drop: or the index
            // could be another set's before the last member is parked.
            let _handle = LastHandle(self);
            self.close();
        }
    }
}

/// The last handle of a set, once that is closed.
struct LastHandle<'s, T, G: Shape>(&'s Set<T, G>);

impl<T, G: Shape> Drop for LastHandle<'_, T, G> {
    fn drop(&mut self) {
        let Set { shared, core } = self.0;
        if core.release() == Last::FreeIndex {
            shared.registry.lock().release(core.index);
        }
    }
}

impl<T, G: Shape> fmt::Debug for Set<T, G> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Set").field("name", &self.name()).finish_non_exhaustive()
    }
}

impl<T, G: Shape> Shared<T, G> {
    fn create_set(
        &self,
        name: String,
        kind: SetType,
        quota: u32,
    ) -> Result<Arc<SetCore>, SetError> {
        let _slow = self.slow.lock();
        let index = {
            let mut registry = self.registry.lock();
            if matches!(&kind, SetType::Owned(owner) if registry.of(owner).is_some()) {
                return Err(SetError::HasSet);
            }
            registry.reserve()?
        };
        let made = self.make_set(index, name, kind, quota);
        let mut registry = self.registry.lock();
        match &made {
            Ok(core) => registry.insert(core.clone()),
            Err(_) => registry.cancel(index),
        }
        made
    }

    /// A set with the index `index`, which nobody else has. For the holder of `slow`.
    fn make_set(
        &self,
        index: u32,
        name: String,
        kind: SetType,
        quota: u32,
    ) -> Result<Arc<SetCore>, SetError> {
        if index >= MAX_SETS {
            return Err(SetError::TooMany { limit: MAX_SETS - 1 });
        }
        self.reserve_quota(quota)?;
        let core = memory::shared(SetCore::new(index, name, kind, quota, self.new_spids()));
        if let Err(error) = self.enlist(index, &core.kind).and_then(|()| self.enter_set(&core)) {
            self.dismiss(index);
            let _ = self.root.give(quota);
            return Err(error.into());
        }
        Ok(core)
    }

    /// Takes quota from the space's unreserved part. For the holder of `slow`.
    fn reserve_quota(&self, quota: u32) -> Result<(), SetError> {
        let mut drawn = self.root.draw(quota);
        for shard in self.shards.iter() {
            let local = &mut shard.lock().sets[0];
            let more = local.credit.min(quota - drawn);
            local.credit -= more;
            drawn += more;
        }
        if drawn < quota {
            let _ = self.root.give(drawn);
            return Err(SetError::OutOfCapacity { asked: quota, unreserved: drawn });
        }
        Ok(())
    }

    /// Makes every shard know the set.
    pub(crate) fn enter_set(&self, core: &Arc<SetCore>) -> Result<(), NoMemory> {
        let index = core.index as usize;
        // All room first, so that failing leaves nothing to undo.
        for shard in self.shards.iter() {
            let mut inside = shard.lock();
            let missing = (index + 1).saturating_sub(inside.sets.len());
            inside.sets.try_reserve(missing)?;
            let len = inside.sets.len() + missing;
            inside.sets.resize_with(len, Local::default);
        }
        let watched = self.is_watched(core.index);
        for shard in self.shards.iter() {
            let mut inside = shard.lock();
            let open = !inside.sourced;
            inside.sets[index] =
                Local { core: Some(core.clone()), open, watched, ..Local::default() };
        }
        Ok(())
    }

    fn set_usage(&self, core: &SetCore) -> SetUsage {
        let _slow = self.slow.lock();
        let index = core.index as usize;
        let mut usage = SetUsage { quota: core.quota().quota, live: 0, parked: 0 };
        for shard in self.shards.iter() {
            let local = &shard.lock().sets[index];
            usage.live += local.live;
            usage.parked += local.parked;
        }
        usage
    }

    fn adjust_set(&self, core: &SetCore, new: u32) -> Result<(), SetError> {
        let _slow = self.slow.lock();
        let old = core.quota();
        if !old.open {
            return Err(SetError::Closed);
        }
        if let Some(more) = new.checked_sub(old.quota) {
            self.reserve_quota(more)?;
            core.grow(more);
            return Ok(());
        }
        let less = old.quota - new;
        let mut got = core.shrink(less);
        for shard in self.shards.iter() {
            // What a shard has goes through the center, where it can be taken off the quota.
            let local = &mut shard.lock().sets[core.index as usize];
            let credit = core::mem::take(&mut local.credit);
            let _ = core.give(credit); // not drained: it is open
            got += core.shrink(less - got);
        }
        if got < less {
            core.grow(got);
            return Err(SetError::InUse { asked: new, out: new + (less - got) });
        }
        let _ = self.root.give(less);
        Ok(())
    }

    pub(crate) fn close_set(&self, core: &Arc<SetCore>) {
        let (credit, watched) = {
            let _slow = self.slow.lock();
            let watched = self.is_watched(core.index);
            let Some(mut credit) = core.close(watched) else { return };
            self.registry.lock().disown(core);
            for shard in self.shards.iter() {
                let local = &mut shard.lock().sets[core.index as usize];
                local.open = false;
                credit += core::mem::take(&mut local.credit);
            }
            if watched {
                self.queue_closed(core);
            }
            (credit, watched)
        };
        let mut told = watched;
        core.shards().for_each(|at| told |= self.park_all(core, at));
        if told {
            self.hooks.schedule();
        }
        if core.give(credit) {
            self.drained(core.index);
        }
        self.collect_all();
    }

    /// Parks every member of a closed set that lives in this shard. True if some are to be told of.
    fn park_all(&self, core: &SetCore, at: usize) -> bool {
        let now = self.hooks.now();
        let (mut from, mut told) = (usize::MAX, false);
        while from > 0 {
            let mut inside = self.shards[at].lock();
            let local = &inside.sets[core.index as usize];
            // Downwards: what is released meanwhile moves members that were parked before into
            // the places below, never the other way.
            from = from.min(local.members.len());
            let some = from.saturating_sub(ITERATE)..from;
            from = some.start;
            let mut few = Few::new();
            local.members[some].iter().for_each(|&number| few.push(number));
            for &number in few.iter() {
                let record = self.table.record(number);
                told |= self.park(&mut inside, at, number, now);
                if record.has(KEPT) {
                    record.remove(KEPT);
                    record.add(UNLEASED);
                    self.push_if_unheld(&mut inside, at, number);
                }
            }
        }
        told
    }

    /// A closed set has all its quota back.
    pub(crate) fn drained(&self, index: u32) {
        let Some(core) = self.registry.lock().remove(index) else { return };
        for shard in self.shards.iter() {
            let mut inside = shard.lock();
            // Released numbers that the cache still has.
            while let Some(&number) = inside.sets[index as usize].members.last() {
                self.remove_member(&mut inside, number);
            }
            inside.sets[index as usize] = Local::default();
        }
        let _ = self.root.give(core.quota().quota);
        let told = self.queue_drained(&core);
        if core.set_drained() {
            self.registry.lock().release(index);
        }
        if told {
            self.hooks.schedule();
        }
    }

    fn keep(&self, core: &SetCore, lease: Lease<T, G>) -> Result<Tag, Lease<T, G>> {
        let (id, mine) = (lease.id(), lease.is_of(core::ptr::NonNull::from(self)));
        if !mine || self.table.state(id.0).set() != core.index {
            return Err(lease);
        }
        let (tag, home) = lease.into_parts();
        let mut inside = self.shards[home].lock();
        let record = self.table.record(id.0);
        let state = self.table.state(id.0);
        inside.out -= 1;
        if state.status() == Status::Live {
            record.add(KEPT);
            self.table.set_state(id.0, state.busy());
            return Ok(tag);
        }
        // Its set was closed, and closes what is left with it.
        record.add(UNLEASED);
        let ripe = self.push_if_unheld(&mut inside, home, id.0);
        drop(inside);
        if ripe {
            self.collect(home);
        }
        Ok(tag)
    }

    fn take_kept(&self, core: &SetCore, id: Ioasid) -> Result<Lease<T, G>, TakeError> {
        let (mut inside, home, state) = self.lock_home(id).ok_or(TakeError::NotFound(id))?;
        if state.status() == Status::Vacant {
            return Err(TakeError::NotFound(id));
        }
        if state.set() != core.index {
            return Err(TakeError::ForeignSet(id));
        }
        if state.status() == Status::Parked {
            return Err(TakeError::Parked(id));
        }
        let record = self.table.record(id.0);
        if !record.has(KEPT) {
            return Err(TakeError::Leased(id));
        }
        record.remove(KEPT);
        self.join(&mut inside);
        let tag = Tag { id, generation: state.generation() };
        Ok(Lease::new(core::ptr::NonNull::from(self), tag, home))
    }

    /// Writes the tags of the live ones of some members below place `from`; says where they begin.
    #[inline]
    fn members(&self, at: usize, set: u32, from: usize, tags: &mut [Tag; ITERATE]) -> usize {
        let inside = self.shards[at].lock();
        let local = &inside.sets[set as usize];
        let from = from.min(local.members.len());
        let start = from.saturating_sub(ITERATE);
        for (tag, &number) in tags.iter_mut().zip(&local.members[start..from]) {
            let state = self.table.state(number);
            if state.status() == Status::Live {
                *tag = Tag { id: Ioasid(number), generation: state.generation() };
            }
        }
        start
    }
}
