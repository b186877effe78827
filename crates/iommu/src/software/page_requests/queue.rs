//! Fault queues: whole groups, each under a cookie from when it is taken until it is answered.

use alloc::collections::{BTreeMap, VecDeque};

use super::device::Stage;
use super::route::Route;
use super::{Key, PageRequests, Record};
use crate::{FaultQueueId, InvalidField, ObjectError, PageFault, ResponseCode};

#[derive(Default)]
pub(super) struct Queue {
    /// Groups that nobody has taken, by their order.
    waiting: BTreeMap<u64, Key>,
    /// Groups that were taken.
    cookies: BTreeMap<u32, Key>,
    last_cookie: u32,
    /// What is left of the group that is being taken. It is given whole, whatever becomes of it
    /// meanwhile.
    taking: VecDeque<PageFault>,
}

impl Queue {
    /// Adds a group; whether none was waiting.
    pub(super) fn add(&mut self, order: u64, key: Key) -> bool {
        let first = self.waiting.is_empty() && self.taking.is_empty();
        self.waiting.insert(order, key);
        first
    }

    /// Takes a group out that is answered.
    pub(super) fn remove(&mut self, order: u64, cookie: Option<u32>) {
        self.waiting.remove(&order);
        if let Some(cookie) = cookie {
            self.cookies.remove(&cookie);
        }
    }

    /// A cookie that no group has.
    fn cookie(&mut self, key: Key) -> u32 {
        // Groups are far fewer than cookies, so this ends.
        loop {
            self.last_cookie = self.last_cookie.wrapping_add(1);
            if !self.cookies.contains_key(&self.last_cookie) {
                self.cookies.insert(self.last_cookie, key);
                return self.last_cookie;
            }
        }
    }
}

impl PageRequests {
    /// Makes a queue.
    pub(in crate::software) fn add_queue(&self, id: FaultQueueId) {
        self.inner.lock().queues.insert(id, Queue::default());
    }

    /// Ends a queue. What it still had is answered with Invalid: to be followed by
    /// [`deliver_all`](Self::deliver_all).
    pub(in crate::software) fn remove_queue(&self, id: FaultQueueId) {
        self.withdraw(
            None,
            |group| matches!(group.route(), Some(Route::Queue { queue, .. }) if *queue == id),
        );
        let _queue = self.inner.lock().queues.remove(&id);
    }

    /// The next request of a queue.
    pub(in crate::software) fn take_fault(
        &self,
        id: FaultQueueId,
    ) -> Result<Option<PageFault>, ObjectError> {
        let record = &mut *self.inner.lock();
        let queue = record.queues.get_mut(&id).ok_or(ObjectError::NoObject(id.into()))?;
        if let Some(fault) = queue.taking.pop_front() {
            return Ok(Some(fault));
        }
        let Some((_, key)) = queue.waiting.pop_first() else { return Ok(None) };
        let device = record.devices.get_mut(&key.0);
        let Some(group) = device.and_then(|device| device.groups.get_mut(&key.1)) else {
            return Ok(None);
        };
        let Stage::Whole { route: Route::Queue { cookie, .. }, .. } = &mut group.stage else {
            return Ok(None);
        };
        let number = queue.cookie(key);
        *cookie = Some(number);
        let pages = core::mem::take(&mut group.pages).into_iter();
        queue.taking.extend(pages.map(|request| PageFault { cookie: number, request }));
        Ok(queue.taking.pop_front())
    }

    /// An answer to a group that was taken from a queue.
    pub(in crate::software) fn respond_fault(
        &self,
        id: FaultQueueId,
        cookie: u32,
        code: ResponseCode,
    ) -> Result<(), ObjectError> {
        let key = {
            let record = &mut *self.inner.lock();
            let queue = record.queues.get(&id).ok_or(ObjectError::NoObject(id.into()))?;
            let key = queue.cookies.get(&cookie).copied();
            let Some(key) = key.filter(|key| !record.is_answered(*key)) else {
                record.counters.late_answers += 1;
                return Err(ObjectError::Invalid(InvalidField::Cookie));
            };
            record.answered(&self.log, key, code);
            key
        };
        self.deliver(key.0);
        Ok(())
    }
}

impl Record {
    /// Whether a group has an answer that is held back.
    fn is_answered(&self, (requester, index): Key) -> bool {
        let group = self.devices.get(&requester).and_then(|device| device.groups.get(&index));
        group.is_none_or(|group| group.is_answered())
    }
}
