//! What the caller lends a space, which has neither threads nor a clock.

use alloc::sync::Arc;
use core::fmt;

/// Where the work is run that frees cause.
pub trait Executor: Send + Sync {
    /// There is work: somebody is to call [`Space::work`](crate::Space::work) soon, elsewhere.
    ///
    /// Called with no lock held, from wherever an ID was freed: it must not block. It may be
    /// called again before the work began.
    fn schedule(&self);
}

/// A clock, for the age of parked IDs.
pub trait Clock: Send + Sync {
    /// Time since any fixed moment, in nanoseconds. Called once for each batch of frees.
    fn now_ns(&self) -> u64;
}

/// What the caller lends a space. Nothing is needed: without an executor the work waits for
/// whoever calls [`Space::work`](crate::Space::work), and without a clock every age is zero.
#[derive(Clone, Default)]
pub struct Hooks {
    /// Runs the work that frees cause.
    pub executor: Option<Arc<dyn Executor>>,
    /// Tells the time.
    pub clock: Option<Arc<dyn Clock>>,
}

impl Hooks {
    pub(crate) fn now(&self) -> u64 {
        self.clock.as_ref().map_or(0, |clock| clock.now_ns())
    }

    pub(crate) fn schedule(&self) {
        if let Some(executor) = &self.executor {
            executor.schedule();
        }
    }
}

impl fmt::Debug for Hooks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hooks")
            .field("executor", &self.executor.is_some())
            .field("clock", &self.clock.is_some())
            .finish()
    }
}
