//! Interrupts of one kind: which eventfd stands for which vector.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use pci::InterruptSink;
use rustix::fs::{fcntl_getfl, fcntl_setfl, OFlags};
use rustix::io::{write, Errno};

use crate::error::ProtocolError;
use crate::stats::Stats;

/// What the kernel calls an eventfd where it lists a process's descriptors.
const EVENTFD_NAME: &str = "anon_inode:[eventfd]";

/// The interrupts of one kind and one connection.
pub(crate) struct Interrupts {
    vectors: RwLock<Vec<Vector>>,
    count: u16,
    stats: Arc<Stats>,
}

#[derive(Default)]
struct Vector {
    eventfd: Option<OwnedFd>,
    masked: bool,
    /// Raised while masked.
    pending: AtomicBool,
}

impl Interrupts {
    pub(crate) fn new(count: u16, stats: Arc<Stats>) -> Self {
        let vectors = std::iter::repeat_with(Vector::default).take(count.into()).collect();
        Self { vectors: RwLock::new(vectors), count, stats }
    }

    /// How many there are.
    pub(crate) fn count(&self) -> u32 {
        self.count.into()
    }

    /// Binds vectors from `start` to these eventfds. Nothing is bound if one of them is none.
    pub(crate) fn bind(&self, start: u32, fds: Vec<OwnedFd>) -> Result<(), ProtocolError> {
        for fd in &fds {
            check_eventfd(fd)?;
        }
        let count = fds.len() as u32;
        let mut fds = fds.into_iter();
        self.update(start, count, |vector| vector.eventfd = fds.next());
        Ok(())
    }

    /// Unbinds these vectors.
    pub(crate) fn unbind(&self, start: u32, count: u32) {
        self.update(start, count, |vector| vector.eventfd = None);
    }

    /// Unbinds and unmasks all vectors.
    pub(crate) fn disable(&self) {
        self.update(0, u32::MAX, |vector| *vector = Vector::default());
    }

    /// Holds these vectors back.
    pub(crate) fn mask(&self, start: u32, count: u32) {
        self.update(start, count, |vector| vector.masked = true);
    }

    /// Lets these vectors through again, and those that were raised meanwhile at once.
    pub(crate) fn unmask(&self, start: u32, count: u32) {
        self.update(start, count, |vector| {
            vector.masked = false;
            if vector.pending.swap(false, Ordering::Relaxed) {
                vector.signal(&self.stats);
            }
        });
    }

    fn update(&self, start: u32, count: u32, change: impl FnMut(&mut Vector)) {
        let mut vectors = self.vectors.write().unwrap_or_else(PoisonError::into_inner);
        vectors.iter_mut().skip(start as usize).take(count as usize).for_each(change);
    }
}

impl InterruptSink for Interrupts {
    fn raise(&self, vector: u16) {
        let vectors = self.vectors.read().unwrap_or_else(PoisonError::into_inner);
        match vectors.get(usize::from(vector)) {
            // Unmasking takes the lock for writing, so it comes before or after this as a whole.
            Some(vector) if vector.masked => vector.pending.store(true, Ordering::Relaxed),
            Some(vector) => vector.signal(&self.stats),
            None => self.stats.interrupts_dropped.add(),
        }
    }
}

impl Vector {
    fn signal(&self, stats: &Stats) {
        let Some(eventfd) = &self.eventfd else { return stats.interrupts_dropped.add() };
        match write(eventfd, &1u64.to_ne_bytes()) {
            // A full counter is an interrupt that the client has not seen yet.
            Ok(_) | Err(Errno::AGAIN) => stats.interrupts.add(),
            Err(_) => stats.interrupts_dropped.add(),
        }
    }
}

/// A client could pass anything, a pipe that is full for instance, and block whoever raises an
/// interrupt. An eventfd that does not block is as good as a promise.
fn check_eventfd(fd: &OwnedFd) -> Result<(), ProtocolError> {
    let name = std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd()));
    // Without /proc the kind cannot be told; that it does not block can be arranged all the same.
    if name.is_ok_and(|name| name.as_os_str() != EVENTFD_NAME) {
        return Err(ProtocolError::NotAnEventfd);
    }
    let flags = fcntl_getfl(fd.as_fd()).map_err(|_| ProtocolError::NotAnEventfd)?;
    fcntl_setfl(fd.as_fd(), flags | OFlags::NONBLOCK).map_err(|_| ProtocolError::NotAnEventfd)
}
