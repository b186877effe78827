//! What several tests begin with.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::Arc;

use ioasid::{Config, Space};

/// Counts its drops.
#[derive(Debug)]
pub(crate) struct Counted(pub(crate) Arc<AtomicU32>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

/// A space of the default kind.
pub(crate) fn space<T>() -> Space<T> {
    Space::new(Config::default()).unwrap()
}
