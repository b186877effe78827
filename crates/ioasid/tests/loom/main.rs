//! Every interleaving of what is claimed to be lock-free or to need one lock only, on spaces of two
//! or four numbers in leaves of two, with shards that draw one number at a time.
//!
//! `RUSTFLAGS="--cfg loom" cargo test -p ioasid --release --test loom --target-dir target/loom`
//!
//! With `--cfg sabotage="…"` as well, the named test must fail:
//!
//! | sabotage | red |
//! |---|---|
//! | `ioasid-no-parking` | `find::against_free_and_reuse` |
//! | `ioasid-no-fence` | `find::against_free_and_reuse` |
//! | `ioasid-early-put` | `references::last_put_against_get` |
//! | `ioasid-stale-home` | `references::get_against_reuse_in_another_shard` |
//! | `ioasid-no-orphan-count` | `orphans::last_lease_against_last_handle` |
//! | `ioasid-no-recheck` | `numbers::a_free_number_is_never_missed` |
//!
//! Where the number of interleavings is too large, at most [`SWITCHES`] times a thread is
//! interrupted that could have gone on; which tests those are is said by their calls.
#![cfg(loom)]

mod find;
mod numbers;
mod orphans;
mod references;
mod sets;

use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::sync::Arc;

use ioasid::{Config, Geometry, Hooks, Space};
use loom::cell::UnsafeCell;

/// The smallest there is.
type Tiny = Geometry<1, 1>;

/// Involuntary switches of a bounded exploration.
const SWITCHES: usize = 4;

/// Explores every interleaving.
fn all(f: impl Fn() + Sync + Send + 'static) {
    explore(None, f);
}

/// Explores every interleaving with up to [`SWITCHES`] involuntary switches.
fn bounded(f: impl Fn() + Sync + Send + 'static) {
    explore(Some(SWITCHES), f);
}

fn explore(preemption_bound: Option<usize>, f: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = builder.preemption_bound.or(preemption_bound);
    builder.max_branches = 20_000;
    builder.check(f);
}

/// A space of all numbers of `width` bits but zero.
fn space<T>(width: u32, shards: usize) -> Space<T, Tiny> {
    lent(width, shards, Hooks::default())
}

fn lent<T>(width: u32, shards: usize, hooks: Hooks) -> Space<T, Tiny> {
    Space::with_geometry(Config { width, shards, ..Config::default() }, hooks).unwrap()
}

/// Which life of the number it is, and whether its drop has begun. Loom reports a read that is
/// not ordered before the write of the drop.
struct Life {
    which: u32,
    dropped: UnsafeCell<bool>,
    drops: Arc<AtomicU32>,
}

// SAFETY: that the accesses are ordered is what the tests below show.
unsafe impl Sync for Life {}

impl Life {
    fn new(which: u32) -> Self {
        Self::counted(which, &Arc::default())
    }

    /// One that counts its drop.
    fn counted(which: u32, drops: &Arc<AtomicU32>) -> Self {
        Self { which, dropped: UnsafeCell::new(false), drops: drops.clone() }
    }

    fn check(&self) -> u32 {
        // SAFETY: as for `Sync`.
        assert!(!self.dropped.with(|dropped| unsafe { *dropped }), "read after its drop");
        self.which
    }
}

impl Drop for Life {
    fn drop(&mut self) {
        // SAFETY: as for `Sync`.
        self.dropped.with_mut(|dropped| unsafe {
            assert!(!*dropped, "dropped twice");
            *dropped = true;
        });
        self.drops.fetch_add(1, Relaxed);
    }
}

/// Asserts that nothing is out, and that everything can be had again.
fn assert_idle<T>(space: &Space<T, Tiny>) {
    let usage = space.usage();
    assert_eq!((usage.live, usage.parked), (0, 0));
    assert_eq!(usage.unreserved, usage.capacity, "quota was lost");
}
