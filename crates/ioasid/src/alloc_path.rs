//! Allocating: on the usual path a shard's own numbers and its own credit, under its own lock.
//! Only when a shard lacks either is there more to look at, and only after all of it was looked at
//! is there an error.

use alloc::sync::Arc;
use core::ops::RangeInclusive;

use crate::custom::{Giver, SourceError, SourceFault};
use crate::geometry::Shape;
use crate::lease::Lease;
use crate::numbers::Moving;
use crate::record::PHASE;
use crate::set::SetCore;
use crate::shard::{Inside, Local, Shard, MAX_SHARDS};
use crate::space::{Handles, Shared};
use crate::sync::MutexGuard;
use crate::{Ioasid, Tag};

/// How often a look through all shards, one lock at a time, begins again because numbers moved
/// meanwhile. Each time somebody else has moved a batch, so others get on; past the limit they
/// have to wait.
const MAX_LOOKS: usize = 4;

/// Why no number was handed out. Nothing has changed.
///
/// When several are true, the first of these is told, but for [`AllocError::NoMemory`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum AllocError {
    /// The range holds no number of the space.
    #[error("no number of the space (0 to {last:#x}) is in {min:#x}..={max:#x}")]
    EmptyRange {
        /// First number asked for.
        min: u32,
        /// Last number asked for.
        max: u32,
        /// Largest number of the space.
        last: u32,
    },
    /// Every number of the range was seen live, parked or reserved during the call.
    #[error("every number in {min:#x}..={max:#x} is taken")]
    RangeFull {
        /// First number asked for.
        min: u32,
        /// Last number asked for.
        max: u32,
    },
    /// The set is closed.
    #[error("the set is closed")]
    SetClosed,
    /// As many numbers are out or reserved for sets as the space has, wherever they lie.
    #[error("all {capacity} numbers of the space are out or reserved")]
    OutOfCapacity {
        /// Most numbers that may be out at one time.
        capacity: u32,
    },
    /// As many numbers of the set are out, live or parked, as it may have.
    #[error("all {quota} numbers of the set's quota are out")]
    QuotaExceeded {
        /// The set's quota.
        quota: u32,
    },
    /// The source that numbers come from gave none.
    #[error("no number from the source: {0}")]
    Source(#[source] SourceError),
    /// The source gave a number that it may not give now.
    #[error("the source gave {number:#x}: {fault}")]
    SourceFault {
        /// The number.
        number: u32,
        /// What is wrong with it.
        fault: SourceFault,
    },
    /// The source that numbers came from was taken away, and not all of them are back.
    #[error("the source was taken away, and not all its numbers are back")]
    SourceGone,
    /// There was no memory for this part of the table, or for one more member of the set.
    #[error("no memory for this part of the ID table")]
    NoMemory,
}

/// What a shard lacks.
pub(crate) enum Lack {
    Open,
    Credit,
    Number,
    Memory,
}

impl From<Lack> for AllocError {
    fn from(lack: Lack) -> Self {
        match lack {
            Lack::Open => Self::SetClosed,
            _ => Self::NoMemory,
        }
    }
}

/// What to do with a number that is found.
#[derive(Clone, Copy)]
enum Take {
    /// Take it out.
    Out,
    /// Leave it there.
    Look,
}

impl Take {
    fn uncached(
        self,
        moving: &mut Moving<'_>,
        min: u32,
        max: u32,
    ) -> Result<Option<u32>, AllocError> {
        let number = moving.take_one(min, max).map_err(|_| AllocError::NoMemory)?;
        if let (Self::Look, Some(number)) = (self, number) {
            moving.put(number);
        }
        Ok(number)
    }

    fn cached(self, inside: &mut Inside, min: u32, max: u32) -> Option<u32> {
        match self {
            Self::Out => inside.take_cached(min, max),
            Self::Look => inside.cache.iter().copied().find(|number| (min..=max).contains(number)),
        }
    }
}

impl<T, G: Shape> Shared<T, G> {
    #[inline]
    pub(crate) fn alloc(
        handles: &Arc<Handles<T, G>>,
        shard: usize,
        set: u32,
        range: RangeInclusive<u32>,
        data: T,
    ) -> Result<Lease<T, G>, AllocError> {
        let at = handles.shard_index(shard);
        let (min, max) = handles.check_range(range)?;
        let shard = &handles.shards[at];
        let data = if shard.may_have(min, max) {
            match handles.alloc_ready(&mut shard.lock(), set, min, max, data) {
                Ok(tag) => return Ok(Lease::new(handles.pointer(), tag, at)),
                Err(data) => data,
            }
        } else {
            data
        };
        let (mut inside, number) = handles.claim(at, set, min, max)?;
        // SAFETY: claimed just now.
        let tag = unsafe { handles.enter(&mut inside, at, set, number, data) };
        Ok(Self::give_out(handles, inside, at, set, tag))
    }

    /// The usual case: the number that the shard released last was of the same set, which has
    /// credit here and is watched by nobody. Then all that is written is the shard and the slot.
    #[inline]
    fn alloc_ready(
        &self,
        inside: &mut Inside,
        set: u32,
        min: u32,
        max: u32,
        data: T,
    ) -> Result<Tag, T> {
        let local = &mut inside.sets[set as usize];
        let usual = local.credit > 0 && local.open && !local.watched;
        let number = match inside.cache.last() {
            Some(&number) if (min..=max).contains(&number) && usual => number,
            _ => return Err(data),
        };
        // SAFETY: the number is in the cache, so it is ours as long as we have the lock; and its
        // slot is vacant, because whoever put it there vacated it.
        let tag = unsafe { self.table.publish_ready(number, set, data) }?;
        local.credit -= 1;
        local.live += 1;
        inside.cache.pop();
        inside.out += 1;
        Ok(tag)
    }

    pub(crate) fn alloc_with(
        handles: &Arc<Handles<T, G>>,
        shard: usize,
        set: u32,
        range: RangeInclusive<u32>,
        data: impl FnOnce(Ioasid) -> T,
    ) -> Result<Lease<T, G>, AllocError> {
        let at = handles.shard_index(shard);
        let (min, max) = handles.check_range(range)?;
        let (inside, number) = handles.claim(at, set, min, max)?;
        drop(inside);
        let claim = Claim { shared: handles, at, set, number };
        let data = data(Ioasid(number));
        let mut inside = handles.shards[at].lock();
        if let Err(lack) = inside.make_room(set) {
            drop(inside);
            return Err(lack.into());
        }
        core::mem::forget(claim);
        // SAFETY: claimed above, and not given back.
        let tag = unsafe { handles.enter(&mut inside, at, set, number, data) };
        Ok(Self::give_out(handles, inside, at, set, tag))
    }

    /// The lease of a number that was entered just now, after those who watch were told.
    #[inline]
    fn give_out(
        handles: &Arc<Handles<T, G>>,
        inside: MutexGuard<'_, Inside>,
        at: usize,
        set: u32,
        tag: Tag,
    ) -> Lease<T, G> {
        let watched = inside.sets[set as usize].watched;
        if watched {
            // Before anybody else may bind it or free it.
            handles.table.record(tag.id.0).add(PHASE);
        }
        drop(inside);
        let lease = Lease::new(handles.pointer(), tag, at);
        if watched {
            handles.tell_alloc(&lease);
        }
        lease
    }

    #[inline]
    fn check_range(&self, range: RangeInclusive<u32>) -> Result<(u32, u32), AllocError> {
        let (min, max) = range.into_inner();
        if min > max || min > self.last {
            return Err(AllocError::EmptyRange { min, max, last: self.last });
        }
        Ok((min, max.min(self.last)))
    }

    /// Takes a free number of `min..=max` and what it costs of the set's quota. The number then is
    /// the caller's, has a slot, and counts as live; its set has room for one more member as long
    /// as the lock is held.
    #[inline]
    fn claim(
        &self,
        at: usize,
        set: u32,
        min: u32,
        max: u32,
    ) -> Result<(MutexGuard<'_, Inside>, u32), AllocError> {
        let shard = &self.shards[at];
        if shard.may_have(min, max) {
            let mut inside = shard.lock();
            match self.claim_cached(&mut inside, set, min, max) {
                Ok(number) => return Ok((inside, number)),
                Err(Lack::Memory) => return Err(AllocError::NoMemory),
                Err(_) => {}
            }
        } else if self.surely_full(min, max) {
            return Err(AllocError::RangeFull { min, max });
        }
        self.claim_refilled(at, set, min, max)
    }

    /// Out of what the shard has.
    #[inline]
    fn claim_cached(&self, inside: &mut Inside, set: u32, min: u32, max: u32) -> Result<u32, Lack> {
        let local = &mut inside.sets[set as usize];
        local.make_room()?;
        if local.credit == 0 {
            return Err(Lack::Credit);
        }
        let number = inside.take_cached(min, max).ok_or(Lack::Number)?;
        if self.table.prepare(number).is_err() {
            inside.cache.push(number);
            return Err(Lack::Memory);
        }
        let local = &mut inside.sets[set as usize];
        local.credit -= 1;
        local.live += 1;
        Ok(number)
    }

    /// After releasing what is parked here, or else drawing on what the space and the set have.
    #[cold]
    fn claim_refilled(
        &self,
        at: usize,
        set: u32,
        min: u32,
        max: u32,
    ) -> Result<(MutexGuard<'_, Inside>, u32), AllocError> {
        self.collect(at);
        let mut inside = self.shards[at].lock();
        self.shards.unstock(at, &inside);
        if inside.sets[set as usize].open {
            // Enough of both for what follows to be usual again.
            inside.sets[set as usize].top_up(at, G::BATCH as u32);
            self.top_up(at, &mut inside, min, max)?;
        }
        match self.claim_cached(&mut inside, set, min, max) {
            Ok(number) => return Ok((inside, number)),
            Err(Lack::Memory) => return Err(AllocError::NoMemory),
            Err(_) => {}
        }
        drop(inside);
        match self.claim_anywhere(at, set, min, max) {
            Err(error) if self.may_be_mended(error) && self.return_numbers() => {
                self.claim_anywhere(at, set, min, max)
            }
            result => result,
        }
    }

    /// Draws numbers of `min..=max` from the space until the cache has a batch. At least one is
    /// asked for: what is cached may lie elsewhere.
    fn top_up(&self, at: usize, inside: &mut Inside, min: u32, max: u32) -> Result<(), AllocError> {
        let missing = G::BATCH.saturating_sub(inside.cache.len());
        if missing < G::BATCH / 2 && inside.has_cached(min, max) {
            return Ok(());
        }
        // Those that came for a range and could not be used for want of memory must not pile up:
        // the cache has room for two batches and what one release adds.
        self.spill(inside, 2 * G::BATCH - 1);
        // Both before the move is over, so that no number is ever in neither place.
        let keep = |number| {
            self.shards.stock(at, number);
            inside.cache.push(number);
        };
        let taken = self.numbers.moving().take(min, max, missing.max(1), keep);
        taken.map(|_| ()).map_err(|_| AllocError::NoMemory)
    }

    /// After looking everywhere: other shards may have numbers and credit that they do not need.
    #[cold]
    fn claim_anywhere(
        &self,
        at: usize,
        set: u32,
        min: u32,
        max: u32,
    ) -> Result<(MutexGuard<'_, Inside>, u32), AllocError> {
        // With no lock held: it drops data, which is the caller's code.
        self.collect_all();
        let slow = self.slow.lock();
        let _slow = match self.giver() {
            Giver::Space => slow,
            Giver::Source(source) => {
                return self.claim_sourced(slow, source, (at, set), (min, max));
            }
            Giver::Nobody => return Err(AllocError::SourceGone),
        };
        // The credit first: others who lack some wait for `slow`, and do not see that it is gone
        // for a moment. A number they would miss, so nobody takes one that he cannot pay for.
        let core = match self.take_credit(set) {
            Ok(core) => core,
            Err(_) if self.take_number(min, max, Take::Look)?.is_none() => {
                return Err(AllocError::RangeFull { min, max })
            }
            Err(error) => return Err(error),
        };
        self.claim_paid(at, set, min, max, &core).inspect_err(|_| {
            // Not drained: closing it takes `slow`, so it is open.
            let _ = core.give(1);
        })
    }

    /// A number that is paid for. For the holder of `slow`.
    fn claim_paid(
        &self,
        at: usize,
        set: u32,
        min: u32,
        max: u32,
        core: &SetCore,
    ) -> Result<(MutexGuard<'_, Inside>, u32), AllocError> {
        let full = AllocError::RangeFull { min, max };
        let number = self.take_number(min, max, Take::Out)?.ok_or(full)?;
        core.mark(at);
        let entered = self.table.prepare(number).map_err(|_| Lack::Memory).and_then(|()| {
            let mut inside = self.shards[at].lock();
            inside.sets[set as usize].make_room()?;
            Ok(inside)
        });
        match entered {
            Ok(mut inside) => {
                inside.sets[set as usize].live += 1;
                Ok((inside, number))
            }
            Err(lack) => {
                self.numbers.moving().put(number);
                Err(lack.into())
            }
        }
    }

    /// One of the set's quota, from wherever it is. For the holder of `slow`: credit goes from a
    /// shard back to the set under that lock alone, so having looked at the set first, none is
    /// missed.
    pub(crate) fn take_credit(&self, set: u32) -> Result<Arc<SetCore>, AllocError> {
        let core = self.shards[0].lock().sets[set as usize].core.clone();
        let core = core.ok_or(AllocError::SetClosed)?;
        if core.draw(1) == 1 {
            return Ok(core);
        }
        let spare = |local: &mut Local| {
            let had = local.credit;
            local.credit = had.saturating_sub(1);
            had > 0
        };
        if self.shards.iter().any(|shard| spare(&mut shard.lock().sets[set as usize])) {
            return Ok(core);
        }
        Err(match (set, core.quota()) {
            (0, _) => AllocError::OutOfCapacity { capacity: self.capacity },
            (_, quota) if !quota.open => AllocError::SetClosed,
            (_, quota) => AllocError::QuotaExceeded { quota: quota.quota },
        })
    }

    /// A free number of `min..=max` from wherever it is. For the holder of `slow`.
    fn take_number(&self, min: u32, max: u32, how: Take) -> Result<Option<u32>, AllocError> {
        for _ in 0..MAX_LOOKS {
            let mut moving = self.numbers.moving();
            let number = how.uncached(&mut moving, min, max)?;
            if number.is_some() {
                return Ok(number);
            }
            let moves = moving.end();
            let cached = |shard: &Shard| {
                if !shard.may_have(min, max) {
                    return None;
                }
                self.take_from(&mut shard.lock(), min, max, how)
            };
            if let Some(number) = self.shards.iter().find_map(cached) {
                return Ok(Some(number));
            }
            if self.numbers.unmoved_since(moves) {
                return Ok(None);
            }
        }
        // Nothing moves while all shards are locked. Only the holder of `slow` has more than one.
        let mut all = [const { None }; MAX_SHARDS];
        for (place, shard) in all.iter_mut().zip(self.shards.iter()) {
            *place = Some(shard.lock());
        }
        if let Some(number) = how.uncached(&mut self.numbers.moving(), min, max)? {
            return Ok(Some(number));
        }
        Ok(all.iter_mut().flatten().find_map(|inside| self.take_from(inside, min, max, how)))
    }

    /// A free number of `min..=max` out of a shard's cache.
    fn take_from(&self, inside: &mut Inside, min: u32, max: u32, how: Take) -> Option<u32> {
        let number = how.cached(inside, min, max)?;
        if matches!(how, Take::Out) {
            self.remove_member(inside, number);
        }
        Some(number)
    }

    /// Whether there is certainly no free number in `min..=max`, nor one that may become free by
    /// a release, without taking a lock.
    #[inline]
    fn surely_full(&self, min: u32, max: u32) -> bool {
        let moves = self.numbers.moves();
        self.numbers.surely_none(min, max)
            && !self.shards.may_have(min, max)
            && self.numbers.unmoved_since(moves)
    }

    /// Makes a claimed number an ID of the set.
    ///
    /// # Safety
    ///
    /// The number is claimed, and the set has room for one more member.
    #[inline]
    unsafe fn enter(&self, inside: &mut Inside, at: usize, set: u32, number: u32, data: T) -> Tag {
        self.remove_member(inside, number);
        let local = &mut inside.sets[set as usize];
        self.table.record(number).enter(at, local.members.len());
        local.members.push(number);
        inside.out += 1;
        // SAFETY: the number is the caller's and has a slot, which is vacant: whoever made the
        // number free took the data out first.
        unsafe { self.table.publish(number, set, data) }
    }
}

impl Inside {
    /// Like [`Local::make_room`], for a number that is not from the cache.
    pub(crate) fn make_room(&mut self, set: u32) -> Result<(), Lack> {
        let local = &mut self.sets[set as usize];
        // A set that is open is so here too, or numbers come from a source. One that is being
        // closed says so before its members are freed here.
        if !local.core.as_ref().is_some_and(|core| core.quota().open) {
            return Err(Lack::Open);
        }
        local.make_room_for_member()
    }
}

impl Local {
    /// Makes sure that one more member fits, and that the set takes one out of the cache.
    #[inline]
    fn make_room(&mut self) -> Result<(), Lack> {
        if !self.open {
            return Err(Lack::Open);
        }
        self.make_room_for_member()
    }

    #[inline]
    fn make_room_for_member(&mut self) -> Result<(), Lack> {
        if self.members.len() == self.members.capacity() {
            self.members.try_reserve(1).map_err(|_| Lack::Memory)?;
        }
        Ok(())
    }

    /// Draws credit from the set until there is a batch.
    fn top_up(&mut self, at: usize, batch: u32) {
        let Some(core) = &self.core else { return };
        core.mark(at);
        let missing = batch.saturating_sub(self.credit);
        if self.credit == 0 || missing > batch / 2 {
            self.credit += core.draw(missing);
        }
    }
}

/// A claimed number whose data is being made; goes back if dropped.
struct Claim<'s, T, G: Shape> {
    shared: &'s Shared<T, G>,
    at: usize,
    set: u32,
    number: u32,
}

impl<T, G: Shape> Drop for Claim<'_, T, G> {
    fn drop(&mut self) {
        let Self { shared, at, set, number } = self;
        let mut inside = shared.shards[*at].lock();
        if inside.sourced {
            drop(inside);
            return shared.unclaim_sourced(*at, *set, Some(*number));
        }
        inside.sets[*set as usize].live -= 1;
        shared.remove_member(&mut inside, *number);
        shared.numbers.moving().put(*number);
        let drained = inside.sets[*set as usize].give_back();
        drop(inside);
        if drained {
            shared.drained(*set);
        }
    }
}
