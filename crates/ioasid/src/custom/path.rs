//! How an ID comes to its number and the number goes back, when a source has it.
//!
//! A shard whose numbers come from a source lets no set allocate from its cache, so the usual path
//! finds nothing there and goes the slow way, where the source is asked. That costs the usual path
//! nothing when there is no source.

use alloc::sync::Arc;

use super::{NumberSource, SourceError, SourceFault};
use crate::alloc_path::AllocError;
use crate::geometry::Shape;
use crate::record::RETURNING;
use crate::shard::Inside;
use crate::space::Shared;
use crate::state::Status;
use crate::sync::MutexGuard;
use crate::Ioasid;

use core::sync::atomic::Ordering;

/// Who gives numbers out. As long as `slow` is held, and then until what is being allocated is out
/// or given up: nothing takes over while anything is out.
pub(crate) enum Giver {
    Space,
    Source(Arc<dyn NumberSource>),
    /// A source that was taken away and whose numbers are not all back.
    Nobody,
}

impl<T, G: Shape> Shared<T, G> {
    /// For the holder of `slow`.
    pub(crate) fn giver(&self) -> Giver {
        match self.sources.groups.lock().first() {
            None => Giver::Space,
            Some(group) => match group.sharers.first() {
                Some(sharer) => Giver::Source(sharer.source.clone()),
                None => Giver::Nobody,
            },
        }
    }

    /// Numbers that are out, live or parked: as long as `slow` is held, and nobody can allocate
    /// otherwise, at most so many.
    pub(super) fn numbers_out(&self) -> u32 {
        let out = |inside: &Inside| inside.sets.iter().map(|local| local.live + local.parked).sum();
        self.shards.iter().map(|shard| -> u32 { out(&shard.lock()) }).sum()
    }

    /// Has no set allocate from a shard's numbers any more, so that a source can take over. An
    /// error, with their number, if numbers are out: then nothing has changed. For the holder of
    /// `slow`.
    pub(super) fn close_gates(&self) -> Result<(), u32> {
        for shard in self.shards.iter() {
            for local in &mut shard.lock().sets {
                let open = core::mem::replace(&mut local.open, false);
                if let Some(core) = local.core.as_ref().filter(|_| open) {
                    let _ = core.give(core::mem::take(&mut local.credit)); // not drained: open
                }
            }
        }
        let out = self.numbers_out();
        if out > 0 {
            self.open_gates();
            return Err(out);
        }
        for (at, shard) in self.shards.iter().enumerate() {
            let mut inside = shard.lock();
            inside.sourced = true;
            while let Some(number) = inside.cache.pop() {
                self.remove_member(&mut inside, number);
                self.numbers.moving().put(number);
            }
            self.shards.unstock(at, &inside);
        }
        Ok(())
    }

    /// For the holder of `slow`; nothing is out that a source gave.
    pub(super) fn open_gates(&self) {
        for shard in self.shards.iter() {
            let mut inside = shard.lock();
            inside.sourced = false;
            for local in &mut inside.sets {
                local.open = local.core.as_ref().is_some_and(|core| core.quota().open);
            }
        }
    }

    /// A number from `source` as an allocation needs it, like the ones from the cache: see `claim`.
    /// `slow` is the caller's hold on that lock.
    pub(crate) fn claim_sourced(
        &self,
        slow: MutexGuard<'_, ()>,
        source: Arc<dyn NumberSource>,
        (at, set): (usize, u32),
        (min, max): (u32, u32),
    ) -> Result<(MutexGuard<'_, Inside>, u32), AllocError> {
        let core = self.take_credit(set)?;
        core.mark(at);
        drop(core);
        self.shards[at].lock().sets[set as usize].live += 1;
        // From here on something is out, so the source stays.
        let mut asked = Asked { shared: self, at, set, number: None, kept: false };
        drop(slow);
        let number = self.ask(&*source, min, max)?;
        asked.number = Some(number);
        // Its drop is the caller's code.
        drop(source);
        self.table.prepare(number).map_err(|_| AllocError::NoMemory)?;
        let mut inside = self.shards[at].lock();
        if let Err(lack) = inside.make_room(set) {
            drop(inside);
            return Err(lack.into());
        }
        asked.kept = true;
        Ok((inside, number))
    }

    /// A number of `min..=max` that is taken off the free ones here.
    fn ask(&self, source: &dyn NumberSource, min: u32, max: u32) -> Result<u32, AllocError> {
        let number = source.alloc(min, max).map_err(AllocError::Source)?;
        let (error, ours) = match self.check(number, min, max) {
            Ok(()) => return Ok(number),
            Err(refused) => refused,
        };
        if matches!(error, AllocError::SourceFault { .. }) {
            self.sources.refused.fetch_add(1, Ordering::Relaxed);
        }
        if ours && source.free(number).is_err() {
            self.sources.failed_frees.fetch_add(1, Ordering::Relaxed);
        }
        Err(error)
    }

    /// Takes `number`, if it is what was asked for. Else why it is not, and whether it is ours to
    /// give back: if it is in use it is somebody else's.
    fn check(&self, number: u32, min: u32, max: u32) -> Result<(), (AllocError, bool)> {
        let fault = |fault, ours| Err((AllocError::SourceFault { number, fault }, ours));
        if number > self.last {
            return fault(SourceFault::OutOfRange, true);
        }
        if self.numbers.is_reserved(number) {
            return fault(SourceFault::Reserved, true);
        }
        let take = || self.numbers.moving().take_one(number, number);
        let mut taken = take().map_err(|_| (AllocError::NoMemory, true))?.is_some();
        if !taken {
            // It may be on its way back, or have arrived since.
            self.overtake(number);
            taken = take().map_err(|_| (AllocError::NoMemory, true))?.is_some();
        }
        if !taken {
            return fault(SourceFault::InUse, false);
        }
        if !(min..=max).contains(&number) {
            self.numbers.moving().put(number);
            return fault(SourceFault::OutOfRange, true);
        }
        Ok(())
    }

    /// Gives up a claim on what a source gives: the number, if it gave one, and what was paid.
    pub(crate) fn unclaim_sourced(&self, at: usize, set: u32, number: Option<u32>) {
        let _paid = Paid { shared: self, at, set };
        if let Some(number) = number {
            self.numbers.moving().put(number);
            self.sources.free(number);
        }
    }

    /// Queues numbers whose data is gone for the source. Allocates nothing.
    pub(crate) fn send_back(&self, mut inside: MutexGuard<'_, Inside>, few: &[u32]) {
        for &number in few {
            self.table.vacate(number);
            self.sources.returns.lock().push(number, self.records());
        }
        inside.returning += few.len();
        drop(inside);
        self.hooks.schedule();
    }

    /// Gives back all that waits for it; whether there was any. With no lock held.
    pub(crate) fn return_numbers(&self) -> bool {
        let any = self.return_one();
        while any && self.return_one() {}
        any
    }

    /// Gives one number back to the source. With no lock held.
    pub(crate) fn return_one(&self) -> bool {
        let Some(number) = self.sources.returns.lock().pop(self.records()) else { return false };
        if let Some((inside, _, state)) = self.lock_home(Ioasid(number)) {
            self.table.record(number).add(RETURNING);
            let generation = state.generation();
            drop(inside);
            let returning = Returning { shared: self, number, generation };
            self.sources.free(number);
            drop(returning);
        }
        true
    }

    /// Frees a number that is just being given back, because the source, which may well have it
    /// already, has handed it out again. Whoever gives it back finds that this is done.
    fn overtake(&self, number: u32) {
        let Some((inside, home, state)) = self.lock_home(Ioasid(number)) else { return };
        let vacant = state.status() == Status::Vacant;
        if vacant && self.table.record(number).has(RETURNING) {
            self.returned(inside, home, number);
        }
    }

    /// The last step of a release: the source has the number.
    fn returned(&self, mut inside: MutexGuard<'_, Inside>, home: usize, number: u32) {
        let set = self.table.state(number).set();
        inside.returning -= 1;
        let local = &mut inside.sets[set as usize];
        local.forget(self.table.record(number));
        local.parked -= 1;
        let drained = local.give_back();
        self.remove_member(&mut inside, number);
        self.numbers.moving().put(number);
        self.shards.unstock(home, &inside);
        drop(inside);
        if drained {
            self.drained(set);
        }
    }

    /// Gives back what the source has when the space ends.
    pub(crate) fn end_sourced(&mut self) {
        if !self.sources.any.load(Ordering::Acquire) {
            return;
        }
        self.collect_all();
        self.return_numbers();
        // What somebody was yet to be told of.
        for shard in self.shards.iter() {
            let mut inside = shard.lock();
            while let Some(number) = inside.sets.iter_mut().find_map(|local| local.members.pop()) {
                drop(inside);
                self.sources.free(number);
                inside = shard.lock();
            }
        }
    }

    /// Whether a failure is worth another try after giving numbers back.
    pub(crate) fn may_be_mended(&self, error: AllocError) -> bool {
        let lacks = matches!(
            error,
            AllocError::QuotaExceeded { .. }
                | AllocError::OutOfCapacity { .. }
                | AllocError::Source(SourceError::Exhausted)
        );
        lacks && self.sources.any.load(Ordering::Acquire)
    }
}

/// What an allocation has paid for, while the source is asked, which is the caller's code.
struct Asked<'s, T, G: Shape> {
    shared: &'s Shared<T, G>,
    at: usize,
    set: u32,
    number: Option<u32>,
    kept: bool,
}

impl<T, G: Shape> Drop for Asked<'_, T, G> {
    fn drop(&mut self) {
        if !self.kept {
            self.shared.unclaim_sourced(self.at, self.set, self.number);
        }
    }
}

/// What a claim has paid, while the source takes its number back, which is the caller's code.
struct Paid<'s, T, G: Shape> {
    shared: &'s Shared<T, G>,
    at: usize,
    set: u32,
}

impl<T, G: Shape> Drop for Paid<'_, T, G> {
    fn drop(&mut self) {
        let Self { shared, at, set } = *self;
        let mut inside = shared.shards[at].lock();
        let local = &mut inside.sets[set as usize];
        local.live -= 1;
        let drained = local.give_back();
        drop(inside);
        if drained {
            shared.drained(set);
        }
        shared.retire();
    }
}

/// A number that is just being given back, which is the caller's code. Then it is free, whatever
/// came of it.
struct Returning<'s, T, G: Shape> {
    shared: &'s Shared<T, G>,
    number: u32,
    generation: u64,
}

impl<T, G: Shape> Drop for Returning<'_, T, G> {
    fn drop(&mut self) {
        let Self { shared, number, generation } = *self;
        let Some((inside, home, state)) = shared.lock_home(Ioasid(number)) else { return };
        // Else the source has handed it out again, and it was freed for that.
        if state.generation() == generation && shared.table.record(number).has(RETURNING) {
            shared.returned(inside, home, number);
        } else {
            drop(inside);
        }
        shared.retire();
    }
}
