//! The host's record of page requests: which groups are unanswered, where they went, and the one
//! answer that each gets.
//!
//! ```text
//!              ┌ a guest's own tables ─► the device's line ─► take ────► respond ──┐
//!   receive ───┼ a place with a queue ─► queue ─► take (cookie) ─► respond (cookie)┼─► answers ─► sink
//!    group     └ neither, or too many ─────────────────────────────────────────────┤   of the
//!                               tick (too late), teardown ─────────────────────────┘   device
//! ```
//!
//! A group is in the record from its first request on until it is answered or forgotten, and whoever
//! takes it out answers it: so there is one answer. Answers go through a line of their device,
//! which one thread at a time empties with no lock held: a device hears them in the order in which
//! they were given, and one that calls back from inside makes that line longer, not the stack.
//!
//! The lock is the last of all: under it, nothing is called but the log of faults.

mod device;
mod inject;
mod queue;
mod route;
mod time;

use alloc::collections::{BTreeMap, VecDeque};
use alloc::sync::Arc;
use alloc::vec::Vec;

use device::{Device, Group, Stage};
use inject::Injected;
use pci::RequesterId;
use queue::Queue;
pub(super) use route::Destination;
use route::Route;
use time::Ages;

use super::fault_log::FaultLog;
use crate::sabotage::{self, Sabotage};
use crate::sync::Mutex;
use crate::{
    Answerer, FaultEvent, FaultQueueId, OutstandingGroup, PageRequest, PageRequestCounters,
    PageRequestPolicy, PageResponse, PageResponseError, PageResponses, Pasid, PrgIndex,
    ResponseCode, PAGE_REQUEST_LIMIT,
};

/// The page requests of one VM.
pub(crate) struct PageRequests {
    policy: PageRequestPolicy,
    log: Arc<FaultLog>,
    inner: Mutex<Record>,
}

/// Which group.
type Key = (RequesterId, PrgIndex);

#[derive(Default)]
struct Record {
    devices: BTreeMap<RequesterId, Device>,
    /// Devices with requests for the model, each once: they take turns.
    turn: VecDeque<RequesterId>,
    queues: BTreeMap<FaultQueueId, Queue>,
    /// Whole groups, in the order in which they became so.
    whole: BTreeMap<u64, Key>,
    /// The order of the next.
    next: u64,
    ages: Ages,
    injected: Injected,
    counters: PageRequestCounters,
    closed: bool,
}

impl PageRequests {
    pub(crate) fn new(policy: PageRequestPolicy, log: Arc<FaultLog>) -> Self {
        let per_device = policy.per_device.min(PAGE_REQUEST_LIMIT);
        let policy = PageRequestPolicy { per_device, ..policy };
        Self { policy, log, inner: Mutex::new(Record::default()) }
    }

    /// Takes a request of a device; whether it waits for somebody for whom none waited. What is to
    /// be answered at once is in the device's line of answers then.
    pub(super) fn receive(&self, attachment: u64, request: PageRequest, to: Destination) -> bool {
        let record = &mut *self.inner.lock();
        if record.closed && to != Destination::Nowhere {
            return false;
        }
        record.counters.requests += 1;
        self.log.record(FaultEvent::PageRequest(request));
        let device = record.devices.entry(request.requester);
        let device = device.or_insert_with(|| Device::new(attachment));
        if device.attachment != attachment {
            return false;
        }
        if request.is_stop_marker() {
            return record.stop_marker(request, to, self.policy.per_device);
        }
        let group = device.group_for(&request);
        if group.is_some_and(|group| matches!(group.stage, Stage::Whole { .. })) {
            record.counters.malformed += 1;
            return false;
        }
        if record.device_holds(request.requester) >= self.policy.per_device {
            record.counters.dropped += 1;
            if request.last {
                record.answer_at_once(&self.log, &request, ResponseCode::Success, Answerer::Limit);
            }
            return false;
        }
        // A queue that is gone is none.
        let to = match to {
            Destination::Queue { queue, .. } if !record.queues.contains_key(&queue) => {
                Destination::Nowhere
            }
            to => to,
        };
        if request.last && sabotage::is(Sabotage::AnswerForGuest) {
            let by = Answerer::Guest;
            record.answer_at_once(&self.log, &request, ResponseCode::Success, by);
            return false;
        }
        match (request.last, to) {
            (false, to) => record.add_part(request, to),
            (true, Destination::Nowhere) => {
                let by = Answerer::NoQueue;
                record.answer_at_once(&self.log, &request, ResponseCode::Invalid, by);
                false
            }
            (true, Destination::Model) => record.complete(request, Route::Model),
            (true, Destination::Queue { queue, place }) => {
                record.complete(request, Route::Queue { queue, place, cookie: None })
            }
        }
    }

    /// The next request for the model.
    pub(crate) fn take(&self) -> Option<PageRequest> {
        let mut record = self.inner.lock();
        while let Some(requester) = record.turn.pop_front() {
            let Some(device) = record.devices.get_mut(&requester) else { continue };
            let request = device.take();
            device.in_turn = !device.for_model.is_empty();
            if device.in_turn {
                record.turn.push_back(requester);
            }
            if request.is_some() {
                return request;
            }
        }
        None
    }

    /// An answer to a group that went to the model.
    pub(crate) fn respond(&self, response: PageResponse) -> Result<(), PageResponseError> {
        let PageResponse { requester, group, pasid, code } = response;
        {
            let mut record = self.inner.lock();
            match record.asked(requester, group) {
                Some(asked) if asked == pasid => {}
                other => {
                    record.counters.late_answers += 1;
                    return Err(match other {
                        Some(_) => PageResponseError::WrongPasid { requester, group },
                        None => PageResponseError::NotOutstanding { requester, group },
                    });
                }
            }
            record.answered(&self.log, (requester, group), code);
        }
        self.deliver(requester);
        Ok(())
    }

    /// Sets who hears the answers to a device; gives who did, to be dropped with no lock held.
    pub(super) fn set_sink(
        &self,
        requester: RequesterId,
        attachment: u64,
        sink: Option<Arc<dyn PageResponses>>,
    ) -> Option<Arc<dyn PageResponses>> {
        let mut record = self.inner.lock();
        let device = record.devices.entry(requester);
        let device = device.or_insert_with(|| Device::new(attachment));
        core::mem::replace(&mut device.sink, sink)
    }

    /// Answers groups in the guest's name because what they came through ends: of one device, or
    /// of all. To be followed by [`deliver`](Self::deliver) or [`deliver_all`](Self::deliver_all)
    /// with no lock held.
    fn withdraw(
        &self,
        device: Option<RequesterId>,
        of: impl Fn(Option<Pasid>, Option<&Route>) -> bool,
    ) {
        let mut record = self.inner.lock();
        let devices: Vec<_> = match device {
            Some(device) => Vec::from([device]),
            None => record.devices.keys().copied().collect(),
        };
        for requester in devices {
            let Some(device) = record.devices.get(&requester) else { continue };
            let picked = |(_, group): &(&PrgIndex, &Group)| of(group.pasid, group.route());
            let groups = device.groups.iter().filter(picked);
            let groups: Vec<_> = groups.map(|(&group, _)| (requester, group)).collect();
            for key in groups {
                record.end(&self.log, key, ResponseCode::Invalid, Answerer::Teardown);
            }
        }
    }

    /// Answers the groups that came through what is attached in a place.
    pub(super) fn withdraw_place(&self, device: RequesterId, place: Option<Pasid>) {
        self.withdraw(
            Some(device),
            |_, route| matches!(route, Some(Route::Queue { place: of, .. }) if *of == place),
        );
    }

    /// Answers the groups of a PASID that is given back, or (`None`) of all PASIDs.
    pub(super) fn withdraw_pasid(&self, pasid: Option<Pasid>) {
        self.withdraw(None, |of, _| of.is_some() && (pasid.is_none() || of == pasid));
    }

    /// Answers everything; further requests are answered at once.
    pub(super) fn close(&self) {
        self.withdraw(None, |_, _| true);
        let _queues = {
            let mut record = self.inner.lock();
            record.closed = true;
            record.turn.clear();
            record.devices.values_mut().for_each(Device::hush);
            core::mem::take(&mut record.queues)
        };
    }

    /// Gives up what a device has asked: nobody waits for the answers.
    pub(super) fn forget(&self, requester: RequesterId, attachment: u64) {
        self.inner.lock().forget(requester, attachment);
    }

    /// The same of a device that is gone. To be called with no lock held.
    pub(super) fn remove(&self, requester: RequesterId, attachment: u64) {
        let _device = {
            let mut record = self.inner.lock();
            match record.forget(requester, attachment) {
                true => record.devices.remove(&requester),
                false => None,
            }
        };
    }

    /// Has a device hear its answers, if nobody else is at it. To be called with no lock held.
    pub(super) fn deliver(&self, requester: RequesterId) {
        loop {
            let next = self.inner.lock().devices.get_mut(&requester).and_then(Device::next_answer);
            let Some((attachment, sink, response)) = next else { return };
            let delivering = Delivering { of: self, requester, attachment };
            sink.respond(response);
            drop(delivering);
        }
    }

    /// The same for every device.
    pub(super) fn deliver_all(&self) {
        let due: Vec<_> = {
            let record = self.inner.lock();
            let due = record.devices.iter().filter(|(_, device)| !device.answers.is_empty());
            due.map(|(&requester, _)| requester).collect()
        };
        due.into_iter().for_each(|requester| self.deliver(requester));
    }

    pub(super) fn counters(&self) -> PageRequestCounters {
        let record = self.inner.lock();
        PageRequestCounters { outstanding: record.whole.len() as u64, ..record.counters }
    }

    /// The groups that are not answered, the oldest first.
    pub(super) fn outstanding(&self) -> Vec<OutstandingGroup> {
        let record = self.inner.lock();
        let now = record.ages.now;
        let group = |&(requester, index): &Key| {
            let group = record.devices.get(&requester)?.groups.get(&index)?;
            let Stage::Whole { since, route, .. } = &group.stage else { return None };
            let queue = match route {
                Route::Model => None,
                Route::Queue { queue, .. } => Some(*queue),
            };
            let age = since.map(|since| now.saturating_sub(since));
            Some(OutstandingGroup { requester, pasid: group.pasid, group: index, queue, age })
        };
        record.whole.values().filter_map(group).collect()
    }
}

/// Somebody is telling a device, as long as this lives: also if the device panics.
struct Delivering<'r> {
    of: &'r PageRequests,
    requester: RequesterId,
    attachment: u64,
}

impl Drop for Delivering<'_> {
    fn drop(&mut self) {
        let mut record = self.of.inner.lock();
        if let Some(device) = record.devices.get_mut(&self.requester) {
            device.delivering &= device.attachment != self.attachment;
        }
    }
}

impl Record {
    fn device_holds(&self, requester: RequesterId) -> u32 {
        self.devices.get(&requester).map_or(0, |device| device.held)
    }

    /// The PASID of a group that the model is to answer.
    fn asked(&self, requester: RequesterId, group: PrgIndex) -> Option<Option<Pasid>> {
        let group = self.devices.get(&requester)?.groups.get(&group)?;
        let answerable = matches!(group.route(), Some(Route::Model)) && !group.is_answered();
        answerable.then_some(group.pasid)
    }

    /// A stop marker goes to the model, where there is one, and is answered by nobody.
    fn stop_marker(&mut self, request: PageRequest, to: Destination, limit: u32) -> bool {
        let Some(device) = self.devices.get_mut(&request.requester) else { return false };
        if to != Destination::Model {
            return false;
        }
        if device.held >= limit {
            self.counters.dropped += 1;
            return false;
        }
        device.held += 1;
        self.line_up(request)
    }

    /// A request that is not the last of its group. What goes to the model goes there at once; a
    /// queue gets whole groups.
    fn add_part(&mut self, request: PageRequest, to: Destination) -> bool {
        let Some(device) = self.devices.get_mut(&request.requester) else { return false };
        let group = device.group_mut(&request);
        match (to, &mut group.stage) {
            (Destination::Model, _) => {
                group.untaken += 1;
                self.line_up(request)
            }
            (_, Stage::Partial) => {
                group.pages.push(request);
                false
            }
            (_, Stage::Whole { .. }) => false,
        }
    }

    /// The last request of a group.
    fn complete(&mut self, request: PageRequest, route: Route) -> bool {
        let order = self.next;
        let Some(device) = self.devices.get_mut(&request.requester) else { return false };
        let group = device.group_mut(&request);
        group.stage = Stage::Whole { order, since: None, route, answer: None };
        let first = match route {
            _ if sabotage::is(Sabotage::LoseGroup) => false,
            Route::Model => {
                group.untaken += 1;
                self.line_up(request)
            }
            Route::Queue { queue, .. } => {
                group.pages.push(request);
                let queue = self.queues.entry(queue).or_default();
                queue.add(order, (request.requester, request.group))
            }
        };
        self.next += 1;
        self.whole.insert(order, (request.requester, request.group));
        self.counters.groups += 1;
        first
    }

    /// Puts a request into the line for the model; whether that was empty.
    fn line_up(&mut self, request: PageRequest) -> bool {
        let first = self.turn.is_empty();
        let Some(device) = self.devices.get_mut(&request.requester) else { return false };
        device.for_model.push_back(request);
        if !core::mem::replace(&mut device.in_turn, true) {
            self.turn.push_back(request.requester);
        }
        first
    }

    /// Answers a group with its last request, instead of taking that.
    fn answer_at_once(
        &mut self,
        log: &FaultLog,
        request: &PageRequest,
        code: ResponseCode,
        by: Answerer,
    ) {
        self.counters.groups += 1;
        self.count(by);
        let PageRequest { requester, pasid, group, .. } = *request;
        let Some(device) = self.devices.get_mut(&requester) else { return };
        device.drop_group(group);
        let response = PageResponse { requester, pasid, group, code };
        log.record(FaultEvent::PageResponse { response, by });
        device.answer(response);
    }

    /// Answers a group, or drops one that is not whole: takes it out of the record, and out of
    /// where it waits. Whether it was there.
    fn end(&mut self, log: &FaultLog, key: Key, code: ResponseCode, by: Answerer) -> bool {
        let (requester, index) = key;
        let Some(device) = self.devices.get_mut(&requester) else { return false };
        let Some(group) = device.drop_group(index) else { return false };
        let Stage::Whole { order, route, .. } = group.stage else { return true };
        self.whole.remove(&order);
        if let Route::Queue { queue, cookie, .. } = route {
            if let Some(queue) = self.queues.get_mut(&queue) {
                queue.remove(order, cookie);
            }
        }
        self.count(by);
        let Some(device) = self.devices.get_mut(&requester) else { return true };
        let response = PageResponse { requester, pasid: group.pasid, group: index, code };
        log.record(FaultEvent::PageResponse { response, by });
        if by == Answerer::Teardown && sabotage::is(Sabotage::ForgetGroup) {
            return true;
        }
        device.answer(response);
        let twice = by == Answerer::Guest && self.injected.is_twice();
        if twice || sabotage::is(Sabotage::AnswerTwice) {
            device.answer(response);
        }
        true
    }

    fn count(&mut self, by: Answerer) {
        let counters = &mut self.counters;
        *match by {
            Answerer::Guest => &mut counters.answered,
            Answerer::Teardown => &mut counters.withdrawn,
            Answerer::Timeout => &mut counters.timed_out,
            Answerer::NoQueue => &mut counters.no_queue,
            Answerer::Limit => &mut counters.refused,
        } += 1;
    }

    /// Drops what a device asked, and its answers; whether it is that device.
    fn forget(&mut self, requester: RequesterId, attachment: u64) -> bool {
        let device = self.devices.get_mut(&requester);
        let Some(device) = device.filter(|device| device.attachment == attachment) else {
            return false;
        };
        let groups = core::mem::take(&mut device.groups);
        device.hush();
        device.answers.clear();
        self.turn.retain(|of| *of != requester);
        for group in groups.into_values() {
            let Stage::Whole { order, route, .. } = group.stage else { continue };
            self.whole.remove(&order);
            self.counters.forgotten += 1;
            if let Route::Queue { queue, cookie, .. } = route {
                if let Some(queue) = self.queues.get_mut(&queue) {
                    queue.remove(order, cookie);
                }
            }
        }
        true
    }
}

#[cfg(all(test, loom))]
mod loom_tests;
