//! What goes wrong on purpose for one guest, over time.
//!
//! ```text
//!   Injection ──► Injector ── step(now), by the unit's thread ──► Levers: host, unit, device
//! ```

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::injection::Injection;

/// What there is to be broken, and to be looked at.
pub(super) trait Levers {
    /// Has answers to page requests go wrong in this way, or (`None`) in none.
    fn break_responses(&self, injection: Option<Injection>);

    /// Has the page request queue behave as if it were full, or not.
    fn fill_queue(&self, full: bool);

    /// How often the queue met a request while it was full.
    fn overflows(&self) -> u64;

    /// Has devices take so long to answer invalidations of their TLBs, or no time.
    fn delay_answers(&self, late: Option<Duration>);

    /// Has this word of those that walks fetch from now on be missing, or none.
    fn fail_walk(&self, word: Option<u64>);
}

/// The injections of one guest.
#[derive(Debug, Default)]
pub(super) struct Injector {
    /// The queue, while it is full.
    queue: Mutex<Option<FullQueue>>,
}

/// A queue that is full.
#[derive(Clone, Copy, Debug)]
struct FullQueue {
    /// For how long from the first request that meets it, if not for ever.
    lasting: Option<Duration>,
    /// How often a queue was met while full before.
    before: u64,
    /// When it has room again, once a request has met it.
    until: Option<Duration>,
}

impl Injector {
    /// Lets `injection` go wrong from now on, instead of another of its kind.
    pub(super) fn inject(&self, injection: Injection, levers: &impl Levers) {
        match injection {
            Injection::DropResponse { .. }
            | Injection::DelayResponse(_)
            | Injection::AnswerTwice => levers.break_responses(Some(injection)),
            Injection::OverflowQueue { lasting } => {
                let before = levers.overflows();
                *self.queue() = Some(FullQueue { lasting, before, until: None });
                levers.fill_queue(true);
            }
            Injection::DelayInvalidation(late) => levers.delay_answers(Some(late)),
            Injection::FailWalk { word } => levers.fail_walk(Some(word.get())),
        }
    }

    /// Puts all right.
    pub(super) fn clear(&self, levers: &impl Levers) {
        *self.queue() = None;
        levers.break_responses(None);
        levers.fill_queue(false);
        levers.delay_answers(None);
        levers.fail_walk(None);
    }

    /// Does what is due at `now`, a time that only goes forward; gives when to call again at the latest.
    pub(super) fn step(&self, now: Duration, levers: &impl Levers) -> Option<Duration> {
        let mut queue = self.queue();
        if queue.as_mut().is_some_and(|full| full.is_over(now, levers)) {
            levers.fill_queue(false);
            *queue = None;
        }
        queue.and_then(|full| full.until)
    }

    fn queue(&self) -> MutexGuard<'_, Option<FullQueue>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl FullQueue {
    /// Whether the queue has room again.
    fn is_over(&mut self, now: Duration, levers: &impl Levers) -> bool {
        if let (None, Some(lasting)) = (self.until, self.lasting) {
            let met = levers.overflows() > self.before;
            self.until = met.then(|| now.saturating_add(lasting));
        }
        self.until.is_some_and(|until| now >= until)
    }
}

#[cfg(test)]
mod tests;
