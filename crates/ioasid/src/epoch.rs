//! Who is reading, and what was freed before they began.
//!
//! A clock counts frees. A reader that begins publishes the clock's value in a cache line of its
//! own; a number freed at time `t` may be released once every reader that is reading began after
//! `t`. Such a reader saw the number already unlinked.

use alloc::sync::{Arc, Weak};
use alloc::vec::Vec;
use core::cell::Cell;

use crate::memory;
use crate::sync::{fence, AtomicU64, Mutex, Ordering};

/// What a reader that is not reading publishes: later than every free.
const IDLE: u64 = u64::MAX;

/// The clock of a space and its readers.
#[derive(Debug)]
pub(crate) struct Epochs {
    now: AtomicU64,
    readers: Mutex<Vec<Arc<Published>>>,
}

/// When a reader began to read, alone on its cache lines (adjacent lines are fetched in pairs).
#[derive(Debug)]
#[repr(align(128))]
struct Published(AtomicU64);

impl Epochs {
    pub(crate) fn new() -> Self {
        Self { now: AtomicU64::new(0), readers: Mutex::new(Vec::new()) }
    }

    /// Ticks the clock; gives the time at which what is already unlinked counts as freed.
    pub(crate) fn retire(&self) -> u64 {
        self.now.fetch_add(1, Ordering::AcqRel)
    }

    /// How many readers are reading.
    pub(crate) fn reading(&self) -> usize {
        let reading = |reader: &&Arc<Published>| reader.0.load(Ordering::Relaxed) != IDLE;
        self.readers.lock().iter().filter(reading).count()
    }

    /// Whether no reader can still name what was unlinked before the caller and freed at `retired`.
    pub(crate) fn has_passed(&self, retired: u64) -> bool {
        if cfg!(sabotage = "ioasid-no-parking") {
            return true;
        }
        // Pairs with the fence of `enter`: either the reader sees the number unlinked, or we see
        // the reader.
        fence(Ordering::SeqCst);
        // Acquire: what a reader that has gone did with the data comes before its release.
        self.readers.lock().iter().all(|reader| reader.0.load(Ordering::Acquire) > retired)
    }
}

/// A reader's place in the [`Epochs`] it was made for; leaves it when dropped.
#[derive(Debug)]
pub(crate) struct Participant {
    epochs: Weak<Epochs>,
    published: Arc<Published>,
    depth: Cell<usize>,
}

impl Participant {
    /// Ends the program if there is no memory, as the making of an [`Arc`] does.
    #[inline(never)]
    pub(crate) fn new(epochs: &Arc<Epochs>) -> Self {
        let published = memory::shared(Published(AtomicU64::new(IDLE)));
        epochs.readers.lock().push(published.clone());
        Self { epochs: Arc::downgrade(epochs), published, depth: Cell::new(0) }
    }

    #[cfg(feature = "std")]
    pub(crate) fn belongs_to(&self, epochs: &Arc<Epochs>) -> bool {
        core::ptr::eq(self.epochs.as_ptr(), Arc::as_ptr(epochs))
    }

    #[cfg(feature = "std")]
    pub(crate) fn is_orphan(&self) -> bool {
        self.epochs.strong_count() == 0
    }

    /// Begins to read; what is found until the last [`Pin`] of this participant goes stays.
    ///
    /// `epochs` is the one this participant was made for (held by the caller, so not upgraded).
    pub(crate) fn enter<'p>(&'p self, epochs: &Epochs) -> Pin<'p> {
        debug_assert!(core::ptr::eq(self.epochs.as_ptr(), epochs));
        if self.depth.get() == 0 {
            // Acquire: a free that came before this time is seen as one.
            let now = epochs.now.load(Ordering::Acquire);
            // Release: who sees this instead of the end of what was read before may release that.
            self.published.0.store(now, Ordering::Release);
            if !cfg!(sabotage = "ioasid-no-fence") {
                fence(Ordering::SeqCst);
            }
        }
        self.depth.set(self.depth.get() + 1);
        Pin { participant: self }
    }
}

impl Drop for Participant {
    fn drop(&mut self) {
        if let Some(epochs) = self.epochs.upgrade() {
            epochs.readers.lock().retain(|reader| !Arc::ptr_eq(reader, &self.published));
        }
    }
}

/// Proof that its participant is reading.
#[derive(Debug)]
pub(crate) struct Pin<'p> {
    participant: &'p Participant,
}

impl Drop for Pin<'_> {
    fn drop(&mut self) {
        let depth = self.participant.depth.get() - 1;
        self.participant.depth.set(depth);
        if depth == 0 {
            self.participant.published.0.store(IDLE, Ordering::Release);
        }
    }
}
