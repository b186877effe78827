//! What goes wrong on purpose for one guest, over time.
//!
//! ```text
//!   Injection ──► Injector ── step(now), by the unit's thread ──► Levers: host, unit, device
//! ```

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use iommu::Ticket;

use super::injection::Injection;

/// What there is to be broken, and to be looked at.
pub(super) trait Levers {
    /// Has answers to page requests go wrong in this way, or (`None`) in none.
    fn break_responses(&self, injection: Option<Injection>);

    /// Has the page request queue behave as if it were full, or not.
    fn fill_queue(&self, full: bool);

    /// How often the queue met a request while it was full.
    fn overflows(&self) -> u64;

    /// Has the device keep its answers to invalidations, or give them.
    fn keep_answers(&self, keep: bool);

    /// Whether the device owes an answer that `ticket` waits for.
    fn owes(&self, ticket: Ticket) -> bool;

    /// Has this word of those that walks fetch from now on be missing, or none.
    fn fail_walk(&self, word: Option<u64>);
}

/// The injections of one guest.
#[derive(Debug, Default)]
pub(super) struct Injector(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    queue: Option<FullQueue>,
    invalidations: Option<LateAnswers>,
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

/// A device that answers invalidations late.
#[derive(Clone, Copy, Debug)]
struct LateAnswers {
    late: Duration,
    /// What waits for an answer, and when it gets it.
    owed: Option<(Ticket, Duration)>,
}

impl Injector {
    /// Lets `injection` go wrong from now on, instead of another of its kind.
    pub(super) fn inject(&self, injection: Injection, levers: &impl Levers) {
        let mut state = self.state();
        match injection {
            Injection::DropResponse { .. }
            | Injection::DelayResponse(_)
            | Injection::AnswerTwice => levers.break_responses(Some(injection)),
            Injection::OverflowQueue { lasting } => {
                let before = levers.overflows();
                state.queue = Some(FullQueue { lasting, before, until: None });
                levers.fill_queue(true);
            }
            Injection::DelayInvalidation(late) => {
                state.invalidations = Some(LateAnswers { late, owed: None });
                levers.keep_answers(true);
            }
            Injection::FailWalk { word } => levers.fail_walk(Some(word.get())),
        }
    }

    /// Puts all right.
    pub(super) fn clear(&self, levers: &impl Levers) {
        *self.state() = State::default();
        levers.break_responses(None);
        levers.fill_queue(false);
        levers.keep_answers(false);
        levers.fail_walk(None);
    }

    /// Does what is due. `waiting` is what the unit waits for, `now` a time that only goes forward; gives when to call
    /// again at the latest.
    pub(super) fn step(
        &self,
        now: Duration,
        waiting: Option<Ticket>,
        levers: &impl Levers,
    ) -> Option<Duration> {
        let mut state = self.state();
        let State { queue, invalidations } = &mut *state;
        if queue.as_mut().is_some_and(|full| full.is_over(now, levers)) {
            levers.fill_queue(false);
            *queue = None;
        }
        let answers =
            invalidations.as_mut().and_then(|answers| answers.step(now, waiting, levers));
        let room = queue.and_then(|full| full.until);
        [answers, room].into_iter().flatten().min()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
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

impl LateAnswers {
    /// Gives the answer that is due; when to look again.
    fn step(
        &mut self,
        now: Duration,
        waiting: Option<Ticket>,
        levers: &impl Levers,
    ) -> Option<Duration> {
        // One whose device was reset is owed nothing any more. One that the unit has given up waiting for still is.
        self.owed = self.owed.filter(|(ticket, _)| levers.owes(*ticket));
        if self.owed.is_none() {
            let new = waiting.filter(|ticket| levers.owes(*ticket));
            self.owed = new.map(|ticket| (ticket, now.saturating_add(self.late)));
        }
        match self.owed {
            Some((_, due)) if now >= due => {
                // What is owed is given; what comes after this is late again.
                levers.keep_answers(false);
                levers.keep_answers(true);
                self.owed = None;
                None
            }
            owed => owed.map(|(_, due)| due),
        }
    }
}

#[cfg(test)]
mod tests;
