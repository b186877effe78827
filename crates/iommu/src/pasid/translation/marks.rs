//! Which processors are in the middle of a submission.
//!
//! A processor marks that it begins before it looks at the table, and that it is done after the
//! device has answered. Whoever closes an entry clears it first and then waits for each mark that
//! he finds set to change. Between the two steps each of them has a fence, so either the
//! processor finds the entry cleared, or whoever cleared it finds the mark: a submission with the
//! old translation is never overlooked. (The mark's release makes what the device did with it
//! happen before the end of the wait.)

use alloc::boxed::Box;

use super::table::{filled, NoMemory};
use crate::counters::Counter;
use crate::sync::{fence, AtomicU32, AtomicU64, Ordering};

/// The mark of a processor; on cache lines of its own, as others' are written all the time.
#[derive(Debug, Default)]
#[repr(align(128))]
pub(super) struct Mark {
    /// Odd while a submission is under way.
    sequence: AtomicU64,
    /// Somebody has it.
    taken: AtomicU32,
    pub(super) counts: Counts,
}

/// What a processor counts.
#[derive(Debug, Default)]
pub(super) struct Counts {
    pub(super) accepted: Counter,
    pub(super) retried: Counter,
    pub(super) untranslatable: Counter,
    pub(super) protection: Counter,
}

/// The marks of a VM's processors.
#[derive(Debug)]
pub(super) struct Marks(Box<[Mark]>);

/// How far somebody has come who waits for all marks.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Cursor {
    slot: usize,
    /// What the mark was when it was found set.
    seen: Option<u64>,
}

/// A submission under way.
pub(super) struct Marked<'m>(&'m AtomicU64);

impl Marks {
    pub(super) fn new(slots: usize) -> Result<Self, NoMemory> {
        Ok(Self(filled(slots, Mark::default)?))
    }

    pub(super) fn slots(&self) -> usize {
        self.0.len()
    }

    /// Takes a mark that nobody has.
    pub(super) fn take(&self) -> Option<usize> {
        let free = |mark: &Mark| {
            mark.taken.compare_exchange(0, 1, Ordering::Acquire, Ordering::Relaxed).is_ok()
        };
        self.0.iter().position(free)
    }

    /// Gives it back.
    pub(super) fn give(&self, slot: usize) {
        if let Some(mark) = self.0.get(slot) {
            mark.taken.store(0, Ordering::Release);
        }
    }

    pub(super) fn get(&self, slot: usize) -> Option<&Mark> {
        self.0.get(slot)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Mark> {
        self.0.iter()
    }

    /// Makes what was cleared before visible to every submission that begins now, or its mark to
    /// those who wait from now on.
    pub(super) fn begin_wait() -> Cursor {
        fence(Ordering::SeqCst);
        Cursor::default()
    }

    /// Whether all submissions of before [`begin_wait`](Self::begin_wait) are over. Never waits:
    /// `cursor` says how far it came.
    pub(super) fn are_over(&self, cursor: &mut Cursor) -> bool {
        while let Some(mark) = self.0.get(cursor.slot) {
            let now = mark.sequence.load(Ordering::Acquire);
            let over = now % 2 == 0 || cursor.seen.is_some_and(|seen| seen != now);
            if !over {
                cursor.seen = Some(now);
                return false;
            }
            *cursor = Cursor { slot: cursor.slot + 1, seen: None };
        }
        true
    }
}

impl Cursor {
    /// The processor that is waited for.
    pub(super) fn slot(&self) -> usize {
        self.slot
    }
}

impl Mark {
    /// Begins a submission. The one user of this mark is the caller.
    #[inline]
    pub(super) fn begin(&self) -> Marked<'_> {
        let sequence = self.sequence.load(Ordering::Relaxed);
        // Released too: whoever sees this one knows that the one before is over.
        self.sequence.store(sequence.wrapping_add(1), Ordering::Release);
        fence(Ordering::SeqCst);
        Marked(&self.sequence)
    }
}

impl Drop for Marked<'_> {
    #[inline]
    fn drop(&mut self) {
        let sequence = self.0.load(Ordering::Relaxed);
        self.0.store(sequence.wrapping_add(1), Ordering::Release);
    }
}
