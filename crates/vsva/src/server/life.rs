//! A guest's life, as its connections show it.

use std::sync::{Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

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
    /// How long the last life's end took, from its first lost connection.
    took: Option<Duration>,
}

impl Life {
    /// One of the guest's functions was connected.
    pub(super) fn begin(&self) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.connections == 0 {
            state.begun += 1;
        }
        state.connections += 1;
        (state.ending, state.took) = (None, None);
    }

    /// One of them was disconnected and what it held is given up; `clean_up` is called if it was
    /// the last.
    pub(super) fn end(&self, clean_up: impl FnOnce()) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let since = *state.ending.get_or_insert_with(Instant::now);
        state.connections = state.connections.saturating_sub(1);
        if state.connections == 0 {
            // Under the lock: a guest that comes back waits until nothing of the last is left.
            clean_up();
            state.took = Some(since.elapsed());
            self.ended.notify_all();
        }
    }

    /// Lives that began so far.
    pub(super) fn begun(&self) -> u64 {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).begun
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
            0 => Ok(state.took.unwrap_or_default()),
            left => Err(left),
        }
    }
}
