//! The event queues of a VM: unrecoverable faults of the devices that the guest has numbers for.

use alloc::collections::{BTreeMap, VecDeque};

use pci::RequesterId;
use spin::mutex::SpinMutex;

use crate::{EventQueueId, Fault, ObjectError, VmEvent};

/// Events that wait in one queue at most, whatever depth was asked for.
pub const EVENT_QUEUE_LIMIT: u32 = 4096;

/// Events are numbered modulo this.
const SEQUENCES: u32 = 1 << 31;

/// The event queues of a VM. Their lock is taken by an access only if that faults, for a few
/// instructions.
#[derive(Debug, Default)]
pub(in crate::software) struct Events(SpinMutex<Queues>);

#[derive(Debug, Default)]
struct Queues {
    all: BTreeMap<EventQueueId, Queue>,
    /// Where a device's events go, and the guest's number for it.
    routes: BTreeMap<RequesterId, (EventQueueId, u64)>,
}

#[derive(Debug)]
struct Queue {
    depth: usize,
    waiting: VecDeque<VmEvent>,
    /// The number of the next event.
    next: u32,
}

impl Events {
    /// Makes a queue of `depth` events, at most [`EVENT_QUEUE_LIMIT`].
    pub(super) fn add(&self, id: EventQueueId, depth: u32) {
        let depth = depth.min(EVENT_QUEUE_LIMIT) as usize;
        let queue = Queue { depth, waiting: VecDeque::new(), next: 0 };
        self.0.lock().all.insert(id, queue);
    }

    /// Ends a queue, with what waits in it.
    pub(super) fn remove(&self, id: EventQueueId) {
        let _queue = self.0.lock().all.remove(&id);
    }

    /// Says anew which events go where.
    pub(super) fn set_routes(&self, routes: BTreeMap<RequesterId, (EventQueueId, u64)>) {
        let _old = core::mem::replace(&mut self.0.lock().routes, routes);
    }

    /// Adds a fault, if it is of a device with a queue. One that is full takes no more; that some
    /// are lost shows by the number of the next that is there.
    pub(in crate::software) fn record(&self, fault: &Fault) {
        let queues = &mut *self.0.lock();
        let Some(&(queue, virtual_id)) = queues.routes.get(&fault.requester) else { return };
        let Some(queue) = queues.all.get_mut(&queue) else { return };
        let sequence = queue.next;
        queue.next = (sequence + 1) % SEQUENCES;
        if queue.waiting.len() < queue.depth {
            queue.waiting.push_back(VmEvent { sequence, virtual_id, fault: *fault });
        }
    }

    /// Takes the oldest event.
    pub(super) fn take(&self, id: EventQueueId) -> Result<Option<VmEvent>, ObjectError> {
        let queues = &mut *self.0.lock();
        let queue = queues.all.get_mut(&id).ok_or(ObjectError::NoObject(id.into()))?;
        Ok(queue.waiting.pop_front())
    }

    /// Ends all queues.
    pub(in crate::software) fn close(&self) {
        let _old = core::mem::take(&mut *self.0.lock());
    }
}
