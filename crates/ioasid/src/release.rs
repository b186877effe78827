//! Freeing, and what comes of it: parked until nothing can name the number, then free again.

use core::ptr::NonNull;

use crate::geometry::Shape;
use crate::record::{Record, KEPT, UNLEASED};
use crate::shard::{Few, Inside, Local};
use crate::space::{forsake, Shared};
use crate::state::Status;
use crate::sync::MutexGuard;
use crate::Tag;

impl<T, G: Shape> Shared<T, G> {
    /// Gives up a lease: the ID is parked unless it is already.
    ///
    /// # Safety
    ///
    /// The lease is one of this space's, with this tag and home, and is gone after this.
    #[inline]
    pub(crate) unsafe fn unlease(shared: NonNull<Self>, tag: Tag, home: usize) {
        // SAFETY: the lease keeps the space until its part goes.
        let this = unsafe { shared.as_ref() };
        let number = tag.id.0;
        // SAFETY: the lease is gone after this.
        let part = unsafe { Part::new(shared, home) };
        let mut inside = this.shards[home].lock();
        let idle = this.table.park_idle(number, |set| {
            let local = &mut inside.sets[set as usize];
            let told = local.watched;
            local.live -= u32::from(!told);
            local.parked += u32::from(!told);
            !told
        });
        if !idle {
            drop(inside);
            this.unlease_busy(tag, home);
            return;
        }
        this.shards.stock(home, number);
        let full = inside.push_parked(number, this.records());
        if !full && !Self::EAGER {
            return part.leave_locked(inside);
        }
        drop(inside);
        this.collect(home);
    }

    /// Whether data is released as soon as may be: it may be what stands for the number elsewhere,
    /// and nobody likes to find it on an idle space. Data without a destructor waits for a batch.
    const EAGER: bool = core::mem::needs_drop::<T>();

    /// A free that concerns others besides the lease.
    #[cold]
    fn unlease_busy(&self, tag: Tag, home: usize) {
        let number = tag.id.0;
        let now = self.hooks.now();
        let mut inside = self.shards[home].lock();
        let record = self.table.record(number);
        debug_assert_eq!(self.table.state(number).generation(), tag.generation);
        record.add(UNLEASED);
        let told = self.park(&mut inside, home, number, now);
        let ripe = self.push_if_unheld(&mut inside, home, number);
        drop(inside);
        if told {
            self.hooks.schedule();
        }
        if ripe {
            self.collect(home);
        }
    }

    /// Ends the life of an ID if it is live: no find that begins now returns it. True if its users
    /// are to be told, for which the caller calls [`Hooks::schedule`](crate::Hooks) without locks.
    pub(crate) fn park(&self, inside: &mut Inside, home: usize, number: u32, now: u64) -> bool {
        let state = self.table.state(number);
        if state.status() != Status::Live {
            return false;
        }
        let local = &mut inside.sets[state.set() as usize];
        local.live -= 1;
        local.parked += 1;
        // Busy, so that its release looks at the record.
        self.table.set_state(number, state.parked().busy());
        self.shards.stock(home, number);
        let record = self.table.record(number);
        record.set_parked_at(now);
        self.queue_telling(local.watched, record, number)
    }

    /// Puts a parked ID among those that only readers can name, if nothing holds it. True if what
    /// is parked is to be released if it can be.
    pub(crate) fn push_if_unheld(&self, inside: &mut Inside, home: usize, number: u32) -> bool {
        let record = self.table.record(number);
        let referenced = record.refs.get() != 0 && !cfg!(sabotage = "ioasid-early-put");
        let held = referenced || !record.has(UNLEASED | KEPT);
        let state = self.table.state(number);
        if held || state.status() != Status::Parked {
            return false;
        }
        self.shards.stock(home, number);
        let full = inside.push_parked(number, self.records());
        // The last of a closed set is waited for: its quota is to return.
        full || Self::EAGER || !inside.sets[state.set() as usize].open
    }

    /// Releases what can be in every shard.
    pub(crate) fn collect_all(&self) {
        (0..self.shards.len()).for_each(|at| self.collect(at));
    }

    /// Releases what can be in every shard, if that does anything besides making numbers free.
    pub(crate) fn collect_dear(&self) {
        if Self::EAGER {
            self.collect_all();
        }
    }

    /// Releases parked numbers of a shard that nothing can name any more.
    pub(crate) fn collect(&self, at: usize) {
        let now = self.hooks.now();
        let mut more = true;
        while more {
            let mut few = Few::new();
            let mut inside = self.shards[at].lock();
            inside.ripen(&self.epochs, now, self.records(), &mut few);
            more = !few.has_room();
            if few.is_empty() {
                self.shards.unstock(at, &inside);
            } else if Self::EAGER {
                drop(inside);
                // Its drop gives the numbers back.
                Going { shared: self, at, few: &few, gone: 0 }.drop_data();
            } else {
                self.give_back(inside, at, &few);
            }
        }
    }

    /// Makes numbers free whose data is gone.
    fn give_back(&self, mut inside: MutexGuard<'_, Inside>, at: usize, few: &[u32]) {
        if inside.sourced {
            return self.send_back(inside, few);
        }
        let mut drained = Few::new();
        for &number in few {
            let state = self.table.vacate(number);
            let local = &mut inside.sets[state.set() as usize];
            if state.is_busy() {
                local.forget(self.table.record(number));
            }
            local.parked -= 1;
            if local.give_back() {
                drained.push(state.set());
            }
        }
        inside.cache.extend_from_slice(few);
        self.spill(&mut inside, 2 * G::BATCH);
        self.shards.unstock(at, &inside);
        drop(inside);
        drained.iter().for_each(|&set| self.drained(set));
    }

    /// Gives the space all but a batch of the shard's free numbers when they are more than `limit`.
    pub(crate) fn spill(&self, inside: &mut Inside, limit: usize) {
        if inside.cache.len() > limit {
            let mut moving = self.numbers.moving();
            let most = inside.cache.len() - G::BATCH;
            for place in 0..most {
                self.remove_member(inside, inside.cache[place]);
                moving.put(inside.cache[place]);
            }
            inside.cache.drain(..most);
        }
    }

    /// Takes a free number that leaves the shard off the members of the set that it was of.
    pub(crate) fn remove_member(&self, inside: &mut Inside, number: u32) {
        let state = self.table.state(number);
        if state.is_member() {
            let place = self.table.record(number).place.get() as usize;
            let members = &mut inside.sets[state.set() as usize].members;
            members.swap_remove(place);
            if let Some(&moved) = members.get(place) {
                self.table.record(moved).place.set(place as u32);
            }
            self.table.set_state(number, state.no_member());
        }
    }
}

impl Local {
    /// Forgets a life in which the record was written to; its SPID is free.
    #[inline]
    pub(crate) fn forget(&self, record: &Record) {
        if let Some(core) = &self.core {
            core.forget_spid(record);
        }
        record.clear();
    }

    /// Gives back what one number cost of the quota. True if that drains a closed set.
    #[must_use]
    #[inline]
    pub(crate) fn give_back(&mut self) -> bool {
        match &self.core {
            Some(core) if !self.open => core.give(1),
            _ => {
                self.credit += 1;
                false
            }
        }
    }
}

impl Inside {
    /// Counts one lease or reference less. True if the space is orphaned.
    #[inline]
    fn leave(&mut self) -> bool {
        self.out -= 1;
        self.orphaned
    }
}

/// The part in its space of a lease or reference that is being dropped. It goes last, because
/// then the space may go, and also when data panics in its own drop.
pub(crate) struct Part<T, G: Shape> {
    shared: NonNull<Shared<T, G>>,
    home: usize,
}

impl<T, G: Shape> Part<T, G> {
    /// # Safety
    ///
    /// A lease or reference was counted for the caller in the shard `home`. The caller touches the
    /// space no more after this was dropped.
    #[inline]
    pub(crate) unsafe fn new(shared: NonNull<Shared<T, G>>, home: usize) -> Self {
        Self { shared, home }
    }

    /// Gives it up with the shard's lock at hand.
    #[inline]
    fn leave_locked(self, mut inside: MutexGuard<'_, Inside>) {
        let shared = self.shared;
        core::mem::forget(self);
        let orphaned = inside.leave();
        drop(inside);
        if orphaned {
            // SAFETY: the part is counted, and with it gone the caller touches nothing.
            unsafe { forsake(shared) };
        }
    }
}

impl<T, G: Shape> Drop for Part<T, G> {
    fn drop(&mut self) {
        // SAFETY: what is counted keeps the space.
        let orphaned = unsafe { self.shared.as_ref() }.shards[self.home].lock().leave();
        if orphaned {
            // SAFETY: as above, and nothing is touched after it.
            unsafe { forsake(self.shared) };
        }
    }
}

/// Numbers whose data is being dropped, which is the caller's code: with no lock held, and it may
/// panic. Then the rest stays parked, for the next release.
struct Going<'s, T, G: Shape> {
    shared: &'s Shared<T, G>,
    at: usize,
    few: &'s [u32],
    gone: usize,
}

impl<T, G: Shape> Going<'_, T, G> {
    fn drop_data(&mut self) {
        for &number in self.few {
            // SAFETY: `ripen` made the number ours: nobody can name it any more.
            let data = unsafe { self.shared.table.take(number) };
            self.gone += 1;
            drop(data);
        }
    }
}

impl<T, G: Shape> Drop for Going<'_, T, G> {
    fn drop(&mut self) {
        let (gone, rest) = self.few.split_at(self.gone);
        let mut inside = self.shared.shards[self.at].lock();
        rest.iter().for_each(|&number| inside.push_passed(number, self.shared.records()));
        // While the lock was not held somebody may have found nothing here and said so.
        self.few.iter().for_each(|&number| self.shared.shards.stock(self.at, number));
        self.shared.give_back(inside, self.at, gone);
    }
}
