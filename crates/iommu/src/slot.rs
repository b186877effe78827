//! A slot: state that one owner uses and others may only ask it to change.
//!
//! The owner's lock *is* the mark that an access is in flight. Whoever wants the state changed
//! [posts](Slot::post) the change and never waits; the owner applies what is posted when it
//! [enters](Slot::enter), before it does anything. A poll ([`Slot::settle`]) says whether all
//! that was posted is applied, and applies it itself while the owner is idle.
//!
//! Why "settled" means that nothing old is in use:
//!
//! * `applied` changes only under the state's lock, and only after the batch was applied.
//! * An owner applies before its access begins. So if `applied` covers a post, each access that
//!   could have used the old state was made by an earlier holder of the lock and has ended: its
//!   unlock happens before the lock that advanced `applied`, whose release store the poll reads
//!   with acquire (or which is the poll's own lock).
//! * Each later access takes the lock after that point and finds the new state.
//! * What the poster did before posting (a guest changed its tables) happens before every use of
//!   the new state: through `pending`'s lock to whoever applies the batch, and from there
//!   through the state's lock.
//!
//! An owner that loads `posted` an instant too early misses a post, but it holds the lock then:
//! the poll cannot get it, so the post stays unsettled until that access has ended.

use core::ops::{Deref, DerefMut};

use crate::sync::{AtomicU64, Mutex, MutexGuard, Ordering};

/// What a slot holds.
pub(crate) trait State {
    /// Changes that were posted and are not applied yet.
    type Batch: Default;
    /// What is left over when changes are applied, to be dropped when it suits the caller.
    type Leftover: Default;

    /// Applies `batch` and leaves it empty.
    fn apply(&mut self, batch: &mut Self::Batch) -> Self::Leftover;
}

/// State with one owner; see the module. On cache lines of its own (adjacent-line prefetch makes
/// that 128 bytes), so that neighbours do not slow each other down.
#[repr(align(128))]
pub(crate) struct Slot<S: State> {
    /// Sequence number of the latest post; changes under `pending`'s lock.
    posted: AtomicU64,
    /// Sequence number up to which posts are applied; changes under `state`'s lock.
    applied: AtomicU64,
    state: Mutex<Owned<S>>,
    pending: Mutex<S::Batch>,
}

struct Owned<S: State> {
    state: S,
    /// An empty batch to exchange for the pending one, so that its memory is used again.
    spare: S::Batch,
}

impl<S: State> Slot<S> {
    /// A slot for which everything up to `sequence` is history.
    pub(crate) fn new(state: S, sequence: u64) -> Self {
        Self {
            posted: AtomicU64::new(sequence),
            applied: AtomicU64::new(sequence),
            state: Mutex::new(Owned { state, spare: S::Batch::default() }),
            pending: Mutex::new(S::Batch::default()),
        }
    }

    /// Asks for a change. `sequence` is larger than that of every earlier post.
    pub(crate) fn post<R>(&self, sequence: u64, change: impl FnOnce(&mut S::Batch) -> R) -> R {
        let mut pending = self.pending.lock();
        let result = change(&mut pending);
        self.posted.store(sequence, Ordering::Release);
        result
    }

    /// Begins an access: waits for another one through this slot, then applies what is posted.
    pub(crate) fn enter(&self) -> Entered<'_, S> {
        let mut owned = self.state.lock();
        if self.posted.load(Ordering::Acquire) != self.applied.load(Ordering::Relaxed) {
            // Dropped here, on the owner's time: nobody else waits for this lock.
            drop(self.catch_up(&mut owned));
        }
        Entered(owned)
    }

    /// Whether everything posted up to `sequence` is applied and all earlier accesses are over;
    /// if so, what that left to be dropped. Never waits for an access.
    pub(crate) fn settle(&self, sequence: u64) -> Option<S::Leftover> {
        let applied = self.applied.load(Ordering::Acquire);
        if applied >= sequence || applied == self.posted.load(Ordering::Acquire) {
            return Some(S::Leftover::default());
        }
        let mut owned = self.state.try_lock()?;
        Some(self.catch_up(&mut owned))
    }

    /// Up to which sequence number everything that was posted is applied and all accesses from
    /// before it are over; `latest` is that of the latest post to any slot.
    pub(crate) fn settled(&self, latest: u64) -> u64 {
        let applied = self.applied.load(Ordering::Acquire);
        if applied == self.posted.load(Ordering::Acquire) {
            latest
        } else {
            applied
        }
    }

    /// Looks at the state if no access is in flight.
    pub(crate) fn peek<R>(&self, look: impl FnOnce(&S) -> R) -> Option<R> {
        Some(look(&self.state.try_lock()?.state))
    }

    fn catch_up(&self, owned: &mut Owned<S>) -> S::Leftover {
        let sequence = {
            let mut pending = self.pending.lock();
            core::mem::swap(&mut *pending, &mut owned.spare);
            self.posted.load(Ordering::Relaxed)
        };
        let leftover = owned.state.apply(&mut owned.spare);
        self.applied.store(sequence, Ordering::Release);
        leftover
    }
}

/// The right to use a slot's state. While it lives, an access is in flight.
pub(crate) struct Entered<'a, S: State>(MutexGuard<'a, Owned<S>>);

impl<S: State> Deref for Entered<'_, S> {
    type Target = S;

    fn deref(&self) -> &S {
        &self.0.state
    }
}

impl<S: State> DerefMut for Entered<'_, S> {
    fn deref_mut(&mut self) -> &mut S {
        &mut self.0.state
    }
}

#[cfg(all(test, loom))]
mod loom_tests;
#[cfg(all(test, not(loom)))]
mod tests;
