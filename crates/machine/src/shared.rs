//! What the parts of a machine share.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use iommu::{Ticket, Vm};
use mem::Gpa;
use pci::RequesterId;
use vtd::model::{Counters, Effects, Model, Polled};

/// How an interrupt message reaches the guest.
pub trait MessageSink: Send + Sync {
    /// Stores `data` to `address`, which is in the interrupt range, in the name of a device that
    /// may master the bus: of `requester` where one is given, else of any. It must not wait for
    /// an answer: it is called from register accesses too.
    fn send(&self, requester: Option<RequesterId>, address: Gpa, data: u32);
}

/// Called when [`Machine::poll`](crate::Machine::poll) has something to do: from a register
/// access, or from a device's DMA. It must neither block nor call back.
pub type Waker = Arc<dyn Fn() + Send + Sync>;

/// The unit, its lock, and where its effects go. No effect is performed under the lock.
pub(crate) struct Unit<V> {
    model: Mutex<Model<V>>,
    sink: Arc<dyn MessageSink>,
    waker: Waker,
}

impl<V: Vm> Unit<V> {
    pub(crate) fn new(model: Model<V>, sink: Arc<dyn MessageSink>, waker: Waker) -> Self {
        Self { model: Mutex::new(model), sink, waker }
    }

    pub(crate) fn read(&self, offset: u64, data: &mut [u8]) {
        lock(&self.model).read(offset, data);
    }

    pub(crate) fn write(&self, offset: u64, data: &[u8]) {
        let effects = lock(&self.model).write(offset, data);
        self.perform(effects);
    }

    pub(crate) fn poll(&self, budget: u32) -> Polled {
        let polled = lock(&self.model).poll(budget);
        self.perform(polled.effects);
        polled
    }

    pub(crate) fn reset(&self) -> Ticket {
        lock(&self.model).reset()
    }

    pub(crate) fn counters(&self) -> Counters {
        lock(&self.model).counters()
    }

    fn perform(&self, effects: Effects) {
        for message in effects.messages() {
            self.sink.send(message.requester, message.address, message.data);
        }
        if effects.schedule {
            (self.waker)();
        }
    }
}

/// Locks; a thread that panicked with the lock held left nothing half-done that matters more
/// than the other devices of the VM.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
