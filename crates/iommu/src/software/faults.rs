//! The faults of a VM that its IOMMU model has not taken yet.

use alloc::collections::VecDeque;
use alloc::sync::Arc;
use alloc::vec::Vec;

use spin::mutex::SpinMutex;

use crate::{Counters, Fault};

/// Faults that wait at most. Further ones are counted and lost, as with a unit whose recording
/// registers are full.
pub const FAULT_QUEUE_LIMIT: usize = 64;

/// Faults of the host's own stage 2 that are kept for the host.
pub const STAGE_TWO_LOG_LIMIT: usize = 64;

pub(crate) type Waker = Arc<dyn Fn() + Send + Sync>;

/// A bounded queue. Its lock is taken by an access only if that faults, for a few instructions.
#[derive(Default)]
pub(crate) struct FaultQueue(SpinMutex<Queue>);

#[derive(Default)]
struct Queue {
    waiting: VecDeque<Fault>,
    waker: Option<Waker>,
    /// The latest faults of the host's stage 2.
    of_host: VecDeque<Fault>,
    recorded: u64,
    lost: u64,
}

impl FaultQueue {
    /// Adds a fault, and wakes who takes them if the queue was empty.
    pub(crate) fn record(&self, fault: Fault) {
        let waker = {
            let mut queue = self.0.lock();
            if queue.waiting.len() >= FAULT_QUEUE_LIMIT {
                queue.lost += 1;
                return;
            }
            queue.recorded += 1;
            let first = queue.waiting.is_empty();
            queue.waiting.push_back(fault);
            queue.waker.clone().filter(|_| first)
        };
        if let Some(wake) = waker {
            wake();
        }
    }

    /// Calls the waker: something else arrived that who takes the faults takes, too.
    pub(crate) fn wake(&self) {
        let waker = self.0.lock().waker.clone();
        if let Some(wake) = waker {
            wake();
        }
    }

    /// Keeps a fault of the host's stage 2 for the host, whether or not its guest hears of it.
    pub(crate) fn note(&self, fault: Fault) {
        let mut queue = self.0.lock();
        if queue.of_host.len() >= STAGE_TWO_LOG_LIMIT {
            queue.of_host.pop_front();
        }
        queue.of_host.push_back(fault);
    }

    /// The latest faults of the host's stage 2, the oldest first.
    pub(crate) fn of_host(&self) -> Vec<Fault> {
        self.0.lock().of_host.iter().copied().collect()
    }

    pub(crate) fn take(&self) -> Option<Fault> {
        self.0.lock().waiting.pop_front()
    }

    pub(crate) fn set_waker(&self, waker: Option<Waker>) {
        let old = core::mem::replace(&mut self.0.lock().waker, waker);
        // After the lock: it may own anything.
        drop(old);
    }

    /// Drops what waits, and the waker.
    pub(crate) fn close(&self) {
        let old = {
            let mut queue = self.0.lock();
            (core::mem::take(&mut queue.waiting), queue.waker.take())
        };
        drop(old);
    }

    pub(crate) fn add_counts(&self, sum: &mut Counters) {
        let queue = self.0.lock();
        sum.faults = queue.recorded;
        sum.faults_lost = queue.lost;
    }
}
