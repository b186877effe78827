//! Telling: with no lock held, one after the other, whatever handlers do.

use alloc::sync::Arc;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};

use super::event::{About, Event, SetChange, SetEvent, Subscriber};
use super::lists::{Audience, Entry, Order, Place};
use super::News;
use crate::geometry::Shape;
use crate::lease::{Held, Lease};
use crate::record::{Record, DEFERRED, PHASE};
use crate::set::SetCore;
use crate::shard::Inside;
use crate::space::{Handles, Shared};
use crate::{Ioasid, Tag};

/// What came of calling a handler.
pub(super) enum Told<R> {
    Answer(R),
    #[cfg_attr(not(feature = "std"), allow(dead_code))] // nobody contains it
    Panicked,
    /// It is not subscribed any more.
    Gone,
}

impl<T, G: Shape> Entry<T, G> {
    /// Calls the subscriber, if it still is one.
    pub(super) fn tell<R>(
        &self,
        panics: &AtomicU64,
        call: impl FnOnce(&dyn Subscriber<T, G>) -> R,
    ) -> Told<R> {
        let Some(subscriber) = self.subscriber() else { return Told::Gone };
        let _running = Running::new(&self.running);
        // It may be dropped in there, too: its subscription may have ended meanwhile.
        let answer = contained(move || call(&*subscriber));
        if matches!(answer, Told::Panicked) {
            self.panics.fetch_add(1, Relaxed);
            panics.fetch_add(1, Relaxed);
        }
        answer
    }
}

/// Counts a handler for as long as it runs.
struct Running<'e>(&'e AtomicU32);

impl<'e> Running<'e> {
    fn new(count: &'e AtomicU32) -> Self {
        count.fetch_add(1, Relaxed);
        Self(count)
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

#[cfg(feature = "std")]
fn contained<R>(call: impl FnOnce() -> R) -> Told<R> {
    use std::panic::{catch_unwind, AssertUnwindSafe};
    #[cfg(all(test, not(loom)))]
    if super::tests::is_uncontained() {
        return Told::Answer(call());
    }
    // What the handler left of its own is its own affair; ours it cannot reach.
    match catch_unwind(AssertUnwindSafe(call)) {
        Ok(answer) => Told::Answer(answer),
        Err(payload) => {
            // Dropping what it was panicked with may panic again; once is enough.
            let again = catch_unwind(AssertUnwindSafe(|| drop(payload)));
            again.unwrap_or_else(core::mem::forget);
            Told::Panicked
        }
    }
}

#[cfg(not(feature = "std"))]
fn contained<R>(call: impl FnOnce() -> R) -> Told<R> {
    Told::Answer(call())
}

/// A phase of an ID; what was put off until its end is done when it is dropped.
pub(super) struct Phase<'s, T, G: Shape> {
    pub(super) shared: &'s Shared<T, G>,
    pub(super) tag: Tag,
    pub(super) home: usize,
}

impl<T, G: Shape> Drop for Phase<'_, T, G> {
    fn drop(&mut self) {
        let number = self.tag.id.0;
        let inside = self.shared.shards[self.home].lock();
        let record = self.shared.table.record(number);
        record.remove(PHASE);
        let freed = record.has(DEFERRED);
        if freed {
            record.remove(DEFERRED);
            self.shared.work.lock().push(number, self.shared.records());
        }
        drop(inside);
        if freed {
            self.shared.hooks.schedule();
        }
    }
}

impl<T, G: Shape> Shared<T, G> {
    /// Who is to be told of what happens in the set.
    pub(super) fn audience(&self, set: u32) -> Audience<T, G> {
        self.notify.lists.lock().audience(set)
    }

    /// A set that something of is out of, so that it stays.
    pub(super) fn core_of(&self, inside: &Inside, set: u32) -> Option<Arc<SetCore>> {
        // The first is not a set anybody made.
        (set != 0).then(|| inside.sets[set as usize].core.clone()).flatten()
    }

    /// Tells everybody.
    pub(super) fn tell(
        &self,
        audience: &Audience<T, G>,
        order: Order,
        mut call: impl FnMut(&dyn Subscriber<T, G>, &Entry<T, G>),
    ) {
        let mut place = if order == Order::Opening { Place::START } else { audience.end() };
        loop {
            let entry = match order {
                Order::Opening => audience.next(&mut place),
                Order::Closing => audience.previous(&mut place),
            };
            let Some(entry) = entry else { break };
            if entry.rank.serial < audience.until {
                entry.tell(&self.notify.panics, |subscriber| call(subscriber, entry));
            }
        }
    }

    /// Tells of a new ID, whose phase began when it was published.
    #[cold]
    pub(crate) fn tell_alloc(&self, lease: &Lease<T, G>) {
        let held = lease.held();
        let (tag, home) = (held.tag(), held.home());
        let _phase = Phase { shared: self, tag, home };
        let (set, index) = {
            let inside = self.shards[home].lock();
            let index = self.table.state(tag.id.0).set();
            (self.core_of(&inside, index), index)
        };
        let about = About { held, set: set.as_deref(), spid: None };
        let audience = self.audience(index);
        self.tell(&audience, Order::Opening, |subscriber, entry| {
            subscriber.alloc(&Event::new(&about, &entry.holder));
        });
    }

    /// Queues a parked ID for its users to be told. For the holder of its shard's lock. What tells
    /// them holds a reference until it has. True if it can be done now; in a phase of the ID it is
    /// put off, and the phase's end says so.
    pub(crate) fn queue_telling(&self, watched: bool, record: &Record, number: u32) -> bool {
        if !watched {
            return false;
        }
        record.refs.set(record.refs.get() + 1);
        if record.has(PHASE) && !cfg!(sabotage = "ioasid-no-phase") {
            record.add(DEFERRED);
            return false;
        }
        self.work.lock().push(number, self.records());
        true
    }

    /// Tells of one ID that was freed, if there is one.
    pub(crate) fn tell_free(handles: &Handles<T, G>) -> bool {
        let Some(number) = handles.work.lock().pop(handles.records()) else { return false };
        // The work list's reference keeps the ID where it is.
        let home = handles.table.record(number).home.get() as usize;
        let telling = Telling { shared: handles, number, home };
        let (tag, index, set, spid) = {
            let inside = handles.shards[home].lock();
            let state = handles.table.state(number);
            let tag = Tag { id: Ioasid(number), generation: state.generation() };
            let spid = handles.table.record(number).spid();
            (tag, state.set(), handles.core_of(&inside, state.set()), spid)
        };
        let held = Held::new(handles.pointer(), tag, home);
        let about = About { held: &held, set: set.as_deref(), spid };
        let audience = handles.audience(index);
        handles.tell(&audience, Order::Closing, |subscriber, entry| {
            subscriber.free(&Event::new(&about, &entry.holder));
        });
        drop(telling);
        true
    }

    /// Tells of a set that was made; its maker has the handle still to himself.
    pub(crate) fn tell_created(&self, set: &SetCore) {
        let audience = self.audience(set.index);
        self.tell_set(SetChange::Created, set, &audience);
    }

    fn tell_set(&self, change: SetChange, set: &SetCore, audience: &Audience<T, G>) {
        let order = match change {
            SetChange::Created => Order::Opening,
            SetChange::Closed | SetChange::Drained => Order::Closing,
        };
        self.tell(audience, order, |subscriber, _| {
            subscriber.set_event(&SetEvent::new(change, set));
        });
    }

    /// Queues that a watched set was closed. The set is not drained before it was told.
    pub(crate) fn queue_closed(&self, set: &Arc<SetCore>) {
        let audience = self.audience(set.index);
        self.queue_news(SetChange::Closed, set, audience);
    }

    /// Queues that a set is drained, and forgets who listened to it. True if there is somebody to
    /// tell.
    pub(crate) fn queue_drained(&self, set: &Arc<SetCore>) -> bool {
        let audience = self.audience(set.index);
        self.dismiss(set.index);
        let heard = !audience.is_empty();
        if heard {
            self.queue_news(SetChange::Drained, set, audience);
        }
        heard
    }

    fn queue_news(&self, change: SetChange, set: &Arc<SetCore>, audience: Audience<T, G>) {
        let news = News { change, set: set.clone(), audience };
        // Room was made with the set.
        self.notify.news.lock().push_back(news);
    }

    /// Tells of one change of a set, if there is one.
    pub(crate) fn tell_news(&self) -> bool {
        let Some(news) = self.notify.news.lock().pop_front() else { return false };
        let _closing =
            (news.change == SetChange::Closed).then(|| Closing { shared: self, set: &news.set });
        self.tell_set(news.change, &news.set, &news.audience);
        true
    }
}

/// The reference by which a freed ID's users are told.
struct Telling<'s, T, G: Shape> {
    shared: &'s Shared<T, G>,
    number: u32,
    home: usize,
}

impl<T, G: Shape> Drop for Telling<'_, T, G> {
    fn drop(&mut self) {
        self.shared.unhold(self.number, self.home, None);
    }
}

/// What keeps a closed set until that was told.
struct Closing<'s, T, G: Shape> {
    shared: &'s Shared<T, G>,
    set: &'s SetCore,
}

impl<T, G: Shape> Drop for Closing<'_, T, G> {
    fn drop(&mut self) {
        if self.set.told() {
            self.shared.drained(self.set.index);
        }
    }
}
