//! A thread that does a space's work, for who has threads.

use alloc::sync::Arc;
use core::fmt;
use core::sync::atomic::{AtomicBool, Ordering};
use std::io;
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};

use crate::geometry::Shape;
use crate::hooks::Executor;
use crate::space::Space;
use crate::work::Work;

/// Pieces of work between two looks at whether to stop.
const BUDGET: usize = 64;

/// The [`Executor`] that wakes the [`Worker`]s that listen to it: made before the space, and lent
/// to it.
#[derive(Debug, Default)]
pub struct Bell {
    /// How often it was rung. Every worker hears each: one that is held up by a handler must not
    /// be the only one that knows of what else there is.
    rings: Mutex<u64>,
    changed: Condvar,
}

/// A thread that calls [`Space::work`] whenever there is some; several may share the work of one
/// space. It keeps the space.
///
/// Dropping it ends the thread after what is just being told, and waits for that, unless it is
/// dropped by a handler that runs on this very thread. What is queued then is left for another.
///
/// ```
/// use std::sync::Arc;
/// use ioasid::{Bell, Config, Hooks, Space, Worker};
///
/// let bell = Arc::new(Bell::default());
/// let hooks = Hooks { executor: Some(bell.clone()), ..Hooks::default() };
/// let space: Space<&str> = Space::with_geometry(Config::default(), hooks)?;
/// let worker = Worker::spawn(&bell, &space)?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[must_use = "dropping a worker ends it"]
pub struct Worker {
    bell: Arc<Bell>,
    stop: Arc<Stop>,
    thread: Option<JoinHandle<()>>,
}

/// Whether the worker is to end. Set under the bell's lock, so that it cannot miss it and wait.
#[derive(Debug, Default)]
struct Stop(AtomicBool);

impl Stop {
    fn is_set(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

impl Bell {
    fn lock(&self) -> MutexGuard<'_, u64> {
        self.rings.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for a ring after the first `heard`; gives how many there are, or nothing if the
    /// worker is to stop.
    fn wait(&self, heard: u64, stop: &Stop) -> Option<u64> {
        let mut rings = self.lock();
        while !stop.is_set() {
            if *rings != heard {
                return Some(*rings);
            }
            rings = self.changed.wait(rings).unwrap_or_else(PoisonError::into_inner);
        }
        None
    }
}

impl Executor for Bell {
    fn schedule(&self) {
        let mut rings = self.lock();
        *rings = rings.wrapping_add(1);
        drop(rings);
        self.changed.notify_all();
    }
}

impl Worker {
    /// Starts a thread that does the work of `space`, which was lent `bell`.
    ///
    /// # Errors
    /// What the system says when it makes no thread.
    pub fn spawn<T, G>(bell: &Arc<Bell>, space: &Space<T, G>) -> io::Result<Self>
    where
        T: Send + Sync + 'static,
        G: Shape,
    {
        let (space, bell, stop) = (space.clone(), bell.clone(), Arc::new(Stop::default()));
        let (rung, stopped) = (bell.clone(), stop.clone());
        let run = move || {
            // First what was queued before it began.
            let mut heard = Some(*rung.lock());
            while let Some(rings) = heard {
                while !stopped.is_set() && work(&space) == Work::More {}
                heard = rung.wait(rings, &stopped);
            }
        };
        let thread = thread::Builder::new().name("ioasid".into()).spawn(run)?;
        Ok(Self { bell, stop, thread: Some(thread) })
    }
}

/// Handlers are contained by the space; what is left is data that panics when it is dropped. That
/// ends the piece of work, and not the thread.
fn work<T, G: Shape>(space: &Space<T, G>) -> Work {
    catch_unwind(AssertUnwindSafe(|| space.work(BUDGET))).unwrap_or(Work::More)
}

impl Drop for Worker {
    fn drop(&mut self) {
        let lock = self.bell.lock();
        self.stop.0.store(true, Ordering::Release);
        drop(lock);
        self.bell.changed.notify_all();
        if let Some(thread) =
            self.thread.take().filter(|t| t.thread().id() != thread::current().id())
        {
            // It contains panics.
            let _ = thread.join();
        }
    }
}

impl fmt::Debug for Worker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Worker").finish_non_exhaustive()
    }
}
