//! A word of a guest's tables that is not found, once, because a test wants that.

use core::sync::atomic::{AtomicU64, Ordering};

/// The failure of one VM's walks.
#[derive(Debug, Default)]
pub(crate) struct WalkFailure {
    /// Words until the one that fails, that one included; zero if none is to.
    left: AtomicU64,
    failed: AtomicU64,
}

impl WalkFailure {
    /// Has the `n`-th word from now on fail, the next one being the first; with none, or zero,
    /// no word.
    pub(crate) fn set(&self, n: Option<u64>) {
        self.left.store(n.unwrap_or(0), Ordering::Relaxed);
    }

    /// Whether the word that is about to be loaded is the one.
    pub(crate) fn strikes(&self) -> bool {
        if self.left.load(Ordering::Relaxed) == 0 {
            return false;
        }
        let one_less = |left: u64| left.checked_sub(1);
        let struck =
            self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_less) == Ok(1);
        self.failed.fetch_add(u64::from(struck), Ordering::Relaxed);
        struck
    }

    /// Words that failed so far.
    pub(crate) fn count(&self) -> u64 {
        self.failed.load(Ordering::Relaxed)
    }
}
