//! Allocating: on the usual path a shard's own numbers and its own credit, under its own lock.
//! Only when a shard lacks either is there more to look at, and only after all of it was looked at
//! is there an error.

use alloc::sync::Arc;
use core::ops::RangeInclusive;

use crate::geometry::Shape;
use crate::lease::Lease;
use crate::record::PHASE;
use crate::shard::{Inside, Local};
use crate::space::{Handles, Shared};
use crate::sync::MutexGuard;
use crate::{Ioasid, Tag};

/// How often a look through all shards begins again because numbers moved meanwhile. Each time
/// somebody else has moved a batch, so others get on; past the limit the answer is "full".
const MAX_LOOKS: usize = 16;

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
    /// There was no memory for this part of the table, or for one more member of the set.
    #[error("no memory for this part of the ID table")]
    NoMemory,
}

/// What a shard lacks.
enum Lack {
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
        let (mut inside, number) = handles.claim(at, set, min, max)?;
        // SAFETY: claimed just now.
        let tag = unsafe { handles.enter(&mut inside, at, set, number, data) };
        Ok(Self::give_out(handles, inside, at, set, tag))
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
        if let Err(lack) = inside.sets[set as usize].make_room() {
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
        self.shards[at].narrow(&inside);
        // Each turn mends one lack; one of credit may be followed by one of numbers.
        for _ in 0..3 {
            let mended = match self.claim_cached(&mut inside, set, min, max) {
                Ok(number) => return Ok((inside, number)),
                Err(Lack::Memory) => return Err(AllocError::NoMemory),
                Err(Lack::Open) => false,
                Err(Lack::Credit) => inside.sets[set as usize].draw(at, G::BATCH as u32) > 0,
                Err(Lack::Number) => self.refill(at, &mut inside, min, max)? > 0,
            };
            if !mended {
                break;
            }
        }
        drop(inside);
        self.claim_anywhere(at, set, min, max)
    }

    /// Draws numbers of `min..=max` from the space: a batch into an empty cache, else one.
    fn refill(
        &self,
        at: usize,
        inside: &mut Inside,
        min: u32,
        max: u32,
    ) -> Result<usize, AllocError> {
        let limit = if inside.cache.is_empty() { G::BATCH } else { 1 };
        // Both before the move is over, so that no number is ever in neither place.
        let keep = |number| {
            self.shards[at].widen(number);
            inside.cache.push(number);
        };
        self.numbers.moving().take(min, max, limit, keep).map_err(|_| AllocError::NoMemory)
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
        let _slow = self.slow.lock();
        let number = self.take_number(min, max)?.ok_or(AllocError::RangeFull { min, max })?;
        self.claim_taken(at, set, number).inspect_err(|_| self.numbers.moving().put(number))
    }

    /// A number that was taken, if the set can pay for it. For the holder of `slow`.
    fn claim_taken(
        &self,
        at: usize,
        set: u32,
        number: u32,
    ) -> Result<(MutexGuard<'_, Inside>, u32), AllocError> {
        self.table.prepare(number).map_err(|_| AllocError::NoMemory)?;
        let core = self.take_credit(set)?;
        core.mark(at);
        let mut inside = self.shards[at].lock();
        if let Err(lack) = inside.sets[set as usize].make_room() {
            drop(inside);
            if core.give(1) {
                self.drained(set);
            }
            return Err(lack.into());
        }
        inside.sets[set as usize].live += 1;
        Ok((inside, number))
    }

    /// One of the set's quota, from wherever it is. For the holder of `slow`: credit goes from a
    /// shard back to the set under that lock alone, so having looked at the set first, none is
    /// missed.
    fn take_credit(&self, set: u32) -> Result<Arc<crate::set::SetCore>, AllocError> {
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

    /// A free number of `min..=max` from wherever it is.
    fn take_number(&self, min: u32, max: u32) -> Result<Option<u32>, AllocError> {
        for _ in 0..MAX_LOOKS {
            let mut moving = self.numbers.moving();
            let number = moving.take_one(min, max).map_err(|_| AllocError::NoMemory)?;
            if number.is_some() {
                return Ok(number);
            }
            let moves = moving.end();
            let cached = |shard: &crate::shard::Shard| {
                shard.may_have(min, max).then(|| shard.lock().take_cached(min, max)).flatten()
            };
            if let Some(number) = self.shards.iter().find_map(cached) {
                return Ok(Some(number));
            }
            if self.numbers.unmoved_since(moves) {
                break;
            }
        }
        Ok(None)
    }

    /// Whether there is certainly no free number in `min..=max`, nor one that may become free by
    /// a release, without taking a lock.
    #[inline]
    fn surely_full(&self, min: u32, max: u32) -> bool {
        let moves = self.numbers.moves();
        self.numbers.surely_none(min, max)
            && !self.shards.iter().any(|shard| shard.may_have(min, max))
            && self.numbers.unmoved_since(moves)
    }

    /// Makes a claimed number an ID of the set.
    ///
    /// # Safety
    ///
    /// The number is claimed, and the set has room for one more member.
    #[inline]
    unsafe fn enter(&self, inside: &mut Inside, at: usize, set: u32, number: u32, data: T) -> Tag {
        let local = &mut inside.sets[set as usize];
        self.table.record(number).begin(at, local.members.len());
        local.members.push(number);
        inside.out += 1;
        // SAFETY: the number is the caller's and has a slot, which is vacant: whoever made the
        // number free took the data out first.
        unsafe { self.table.publish(number, set, data) }
    }
}

impl Local {
    /// Makes sure that one more member fits, and that the set takes one.
    #[inline]
    fn make_room(&mut self) -> Result<(), Lack> {
        if !self.open {
            return Err(Lack::Open);
        }
        if self.members.len() == self.members.capacity() {
            self.members.try_reserve(1).map_err(|_| Lack::Memory)?;
        }
        Ok(())
    }

    /// Draws credit from the set; says how much.
    fn draw(&mut self, at: usize, most: u32) -> u32 {
        let Some(core) = &self.core else { return 0 };
        core.mark(at);
        let drawn = core.draw(most);
        self.credit += drawn;
        drawn
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
        inside.sets[*set as usize].live -= 1;
        shared.numbers.moving().put(*number);
        let drained = inside.sets[*set as usize].give_back();
        drop(inside);
        if drained {
            shared.drained(*set);
        }
    }
}
