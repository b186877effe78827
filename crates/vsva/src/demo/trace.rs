//! The way of a request, as those who pass it on tell it.

use std::mem::take;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::Serialize;

/// One stop on a request's way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Hop {
    /// Who has the request: `consumer` (or `guest`, past its kernel's books), `route`, `register`,
    /// `virtqueue`, `Vm` or `ID space`.
    pub place: &'static str,
    /// What is asked or answered there.
    pub what: String,
}

/// Collects hops while it is told to. Clones collect into the same list.
#[derive(Clone, Debug, Default)]
pub(super) struct Trace(Arc<Mutex<Option<Vec<Hop>>>>);

impl Trace {
    /// From here on hops are collected.
    pub(super) fn start(&self) {
        *self.hops() = Some(Vec::new());
    }

    /// Ends that, and gives them.
    pub(super) fn finish(&self) -> Vec<Hop> {
        take(&mut *self.hops()).unwrap_or_default()
    }

    /// Adds a hop, if they are collected.
    pub(super) fn hop(&self, place: &'static str, what: impl FnOnce() -> String) {
        let collecting = self.hops().is_some();
        if !collecting {
            return;
        }
        // Not under the lock: whoever says what it is may have to ask others.
        let hop = Hop { place, what: what() };
        if let Some(hops) = &mut *self.hops() {
            hops.push(hop);
        }
    }

    fn hops(&self) -> MutexGuard<'_, Option<Vec<Hop>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
