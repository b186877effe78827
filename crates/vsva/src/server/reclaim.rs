//! PASIDs taken back from a guest that was reset or is gone, and how long that takes.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use iommu::Vm;

use super::settled::{settle, wait_until, Wait};

/// Longest wait for devices that were about to ask for a page, or to hear an answer, with a PASID that was taken back:
/// no access of theirs is in flight, but they hold the number that long.
const UNHELD_LIMIT: Duration = Duration::from_secs(5);

/// PASIDs taken back from a guest.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Reclaimed {
    /// How many it had.
    pub pasids: u32,
    /// How many something could still name at the limit of the wait: they stay parked.
    pub stuck: u32,
    /// From asking for them until nothing could name them any more.
    pub took: Duration,
}

impl Reclaimed {
    /// Both; the time of one that found nothing does not count.
    fn and(self, other: Self) -> Self {
        if other.pasids == 0 && other.stuck == 0 {
            return self;
        }
        Self {
            pasids: self.pasids.saturating_add(other.pasids),
            stuck: self.stuck.saturating_add(other.stuck),
            took: self.took.saturating_add(other.took),
        }
    }
}

/// What a guest's end took back.
pub(super) struct AtEnd {
    /// When its last connection was gone.
    pub(super) now: Reclaimed,
    /// That, and what the unit's last reset took back, which the loss of the unit's connection was.
    pub(super) since_reset: Reclaimed,
}

/// What was taken back from the guests of one place.
#[derive(Debug, Default)]
pub(super) struct Reclaims(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// By the unit's last reset. A guest's end is one, too.
    by_last_reset: Reclaimed,
    total: Reclaimed,
}

impl Reclaims {
    /// The unit is reset by `reset`: takes the guest's PASIDs back and waits until nothing can name them.
    pub(super) fn reset(&self, vm: &impl Vm, reset: impl FnOnce()) -> Reclaimed {
        let reclaimed = take_back(vm, reset);
        let mut state = self.state();
        state.by_last_reset = reclaimed;
        state.total = state.total.and(reclaimed);
        reclaimed
    }

    /// The same at a guest's end, when its connections are gone.
    pub(super) fn end(&self, vm: &impl Vm, reset: impl FnOnce()) -> AtEnd {
        let now = take_back(vm, reset);
        let mut state = self.state();
        state.total = state.total.and(now);
        let since_reset = std::mem::take(&mut state.by_last_reset).and(now);
        AtEnd { now, since_reset }
    }

    /// All of it.
    pub(super) fn total(&self) -> Reclaimed {
        self.state().total
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn take_back(vm: &impl Vm, reset: impl FnOnce()) -> Reclaimed {
    let begun = Instant::now();
    let pasids = vm.pasid_usage().live;
    reset();
    let unheld = || vm.pasid_usage().parked == 0;
    let drained = settle(vm, vm.release_pasids(), Wait::Pasids)
        .and_then(|()| wait_until(unheld, Wait::Pasids, UNHELD_LIMIT, thread::yield_now));
    let stuck = if drained.is_ok() { 0 } else { vm.pasid_usage().parked };
    Reclaimed { pasids, stuck, took: begun.elapsed() }
}
