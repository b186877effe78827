//! A guest's life, as its connections show it.

use std::sync::{Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::reclaim::Reclaimed;

/// How a guest ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct End {
    /// From its first lost connection until everything of it was freed.
    pub took: Duration,
    /// The PASIDs that were taken back from it.
    pub reclaimed: Reclaimed,
}

/// Counts a guest's connections and tells when the last has ended and all is cleaned up.
#[derive(Default)]
pub(super) struct Life {
    state: Mutex<State>,
    ended: Condvar,
}

#[derive(Clone, Copy, Default)]
struct State {
    connections: u32,
    /// Lives that began.
    begun: u64,
    /// When the first connection of this life ended.
    ending: Option<Instant>,
    /// Lives that ended.
    ended: u64,
    last_end: Option<End>,
}

impl Life {
    /// One of the guest's functions was connected.
    pub(super) fn begin(&self) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.connections == 0 {
            state.begun += 1;
        }
        state.connections += 1;
        state.ending = None;
    }

    /// One of them was disconnected and what it held is given up; `clean_up` is called if it was
    /// the last, and says what it took back.
    pub(super) fn end(&self, clean_up: impl FnOnce() -> Reclaimed) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let since = *state.ending.get_or_insert_with(Instant::now);
        state.connections = state.connections.saturating_sub(1);
        if state.connections == 0 {
            // Under the lock: a guest that comes back waits until nothing of the last is left.
            let reclaimed = clean_up();
            state.last_end = Some(End { took: since.elapsed(), reclaimed });
            state.ended += 1;
            self.ended.notify_all();
        }
    }

    /// Lives that began so far.
    pub(super) fn begun(&self) -> u64 {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).begun
    }

    /// Lives that ended, and how the last of them did.
    pub(super) fn ended(&self) -> (u64, Option<End>) {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        (state.ended, state.last_end)
    }

    /// Whether a connection stands.
    pub(super) fn is_connected(&self) -> bool {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).connections > 0
    }

    /// Waits until no connection is left; gives how long the end took, or the number of
    /// connections at `limit`.
    pub(super) fn wait_ended(&self, limit: Duration) -> Result<Duration, u32> {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let (state, _) = self
            .ended
            .wait_timeout_while(state, limit, |state| state.connections > 0)
            .unwrap_or_else(PoisonError::into_inner);
        match state.connections {
            0 => Ok(state.last_end.map_or(Duration::ZERO, |end| end.took)),
            left => Err(left),
        }
    }
}
