//! A thread that does a space's work, for who has threads.

use alloc::sync::Arc;
use core::fmt;
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
    rung: Mutex<bool>,
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

/// Whether the worker is to end; under the bell's lock.
#[derive(Debug, Default)]
struct Stop(core::sync::atomic::AtomicBool);

impl Stop {
    fn is_set(&self) -> bool {
        self.0.load(core::sync::atomic::Ordering::Acquire)
    }
}

impl Bell {
    fn lock(&self) -> MutexGuard<'_, bool> {
        self.rung.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until it is rung; false if the worker is to stop.
    fn wait(&self, stop: &Stop) -> bool {
        let mut rung = self.lock();
        while !stop.is_set() {
            if core::mem::take(&mut *rung) {
                return true;
            }
            rung = self.changed.wait(rung).unwrap_or_else(PoisonError::into_inner);
        }
        false
    }
}

impl Executor for Bell {
    fn schedule(&self) {
        *self.lock() = true;
        self.changed.notify_one();
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
        let stop = Arc::new(Stop::default());
        let (space, theirs, heard) = (space.clone(), stop.clone(), bell.clone());
        let run = move || {
            // What was queued before it began.
            let mut rung = true;
            while rung {
                while !theirs.is_set() && work(&space) == Work::More {}
                rung = heard.wait(&theirs);
            }
        };
        let thread = thread::Builder::new().name("ioasid".into()).spawn(run)?;
        Ok(Self { bell: bell.clone(), stop, thread: Some(thread) })
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
        self.stop.0.store(true, core::sync::atomic::Ordering::Release);
        drop(lock);
        self.bell.changed.notify_all();
        if let Some(thread) =
            self.thread.take().filter(|t| t.thread().id() != thread::current().id())
        {
            // It contains panics.
            let _ = thread.join();
        }
        // A ring that it has taken, and left the work of, is for another.
        self.bell.schedule();
    }
}

impl fmt::Debug for Worker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Worker").finish_non_exhaustive()
    }
}
