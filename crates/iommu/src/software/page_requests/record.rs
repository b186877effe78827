//! The record itself, under its lock: nothing here calls anybody but the log of faults.

use alloc::collections::{BTreeMap, VecDeque};

use ioasid::HoldError;
use pci::RequesterId;

use super::device::{Device, Forgotten, Group, Stage};
use super::inject::Injected;
use super::queue::Queue;
use super::route::{Destination, Route};
use super::time::Ages;
use crate::sabotage::{self, Sabotage};
use crate::software::fault_log::FaultLog;
use crate::software::pasids::Ref;
use crate::{
    Answerer, FaultEvent, FaultQueueId, PageRequest, PageRequestCounters, PageResponse, Pasid,
    PrgIndex, ResponseCode,
};

/// Which group.
pub(super) type Key = (RequesterId, PrgIndex);

#[derive(Default)]
pub(super) struct Record {
    pub(super) devices: BTreeMap<RequesterId, Device>,
    /// Devices with requests for the model, each once: they take turns.
    pub(super) turn: VecDeque<RequesterId>,
    pub(super) queues: BTreeMap<FaultQueueId, Queue>,
    /// Whole groups, in the order in which they became so.
    pub(super) whole: BTreeMap<u64, Key>,
    /// The order of the next.
    pub(super) next: u64,
    pub(super) ages: Ages,
    pub(super) injected: Injected,
    pub(super) counters: PageRequestCounters,
    pub(super) closed: bool,
}

impl Record {
    /// The PASID of a group that the model is to answer.
    pub(super) fn asked(&self, requester: RequesterId, group: PrgIndex) -> Option<Option<Pasid>> {
        let group = self.devices.get(&requester)?.groups.get(&group)?;
        let answerable = matches!(group.route(), Some(Route::Model)) && !group.is_answered();
        answerable.then_some(group.pasid)
    }

    /// A request that is no stop marker; see [`PageRequests::receive`](super::PageRequests::receive).
    pub(super) fn receive(
        &mut self,
        log: &FaultLog,
        request: PageRequest,
        to: Destination,
        (held, limit): (Result<Option<Ref>, HoldError>, u32),
    ) -> bool {
        let Some(device) = self.devices.get_mut(&request.requester) else { return false };
        if device.group_for(&request).is_some_and(Group::is_whole) {
            self.counters.malformed += 1;
            return false;
        }
        let full = device.held >= limit || held.is_err();
        let answer = |record: &mut Self, code, by| {
            if request.last {
                record.answer_at_once(log, &request, code, by);
            }
            false
        };
        if full {
            self.counters.dropped += 1;
            return answer(self, ResponseCode::Success, Answerer::Limit);
        }
        if request.last && sabotage::is(Sabotage::AnswerForGuest) {
            return answer(self, ResponseCode::Success, Answerer::Guest);
        }
        let route = match to {
            Destination::Model => Route::Model,
            // A queue that is gone is none.
            Destination::Queue { queue, place } if self.queues.contains_key(&queue) => {
                Route::Queue { queue, place, cookie: None }
            }
            _ if request.last => return answer(self, ResponseCode::Invalid, Answerer::NoQueue),
            _ => return self.add_part(request, to),
        };
        match request.last {
            true => self.complete(request, route, held.ok().flatten()),
            false => self.add_part(request, to),
        }
    }

    /// A stop marker goes to the model, where there is one, and is answered by nobody.
    pub(super) fn stop_marker(
        &mut self,
        request: PageRequest,
        to: Destination,
        limit: u32,
    ) -> bool {
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
    pub(super) fn add_part(&mut self, request: PageRequest, to: Destination) -> bool {
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
    pub(super) fn complete(
        &mut self,
        request: PageRequest,
        route: Route,
        held: Option<Ref>,
    ) -> bool {
        let order = self.next;
        let Some(device) = self.devices.get_mut(&request.requester) else { return false };
        let group = device.group_mut(&request);
        group.stage = Stage::Whole { order, since: None, route, answer: None, held };
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
    pub(super) fn line_up(&mut self, request: PageRequest) -> bool {
        let first = self.turn.is_empty();
        let Some(device) = self.devices.get_mut(&request.requester) else { return false };
        device.for_model.push_back(request);
        if !core::mem::replace(&mut device.in_turn, true) {
            self.turn.push_back(request.requester);
        }
        first
    }

    /// Answers a group with its last request, instead of taking that.
    pub(super) fn answer_at_once(
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
        device.answer(response, None);
    }

    /// Answers a group, or drops one that is not whole: takes it out of the record, and out of
    /// where it waits. Whether it was there.
    pub(super) fn end(
        &mut self,
        log: &FaultLog,
        key: Key,
        code: ResponseCode,
        by: Answerer,
    ) -> bool {
        let (requester, index) = key;
        let Some(device) = self.devices.get_mut(&requester) else { return false };
        let Some(group) = device.drop_group(index) else { return false };
        let Stage::Whole { order, route, held, .. } = group.stage else { return true };
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
        device.answer(response, held);
        let twice = by == Answerer::Guest && self.injected.is_twice();
        if twice || sabotage::is(Sabotage::AnswerTwice) {
            device.answer(response, None);
        }
        true
    }

    pub(super) fn count(&mut self, by: Answerer) {
        let counters = &mut self.counters;
        *match by {
            Answerer::Guest => &mut counters.answered,
            Answerer::Teardown => &mut counters.withdrawn,
            Answerer::Timeout => &mut counters.timed_out,
            Answerer::NoQueue => &mut counters.no_queue,
            Answerer::Limit => &mut counters.refused,
        } += 1;
    }

    /// Takes out what a device asked, and its answers, if it is that device.
    pub(super) fn forget(&mut self, requester: RequesterId, attachment: u64) -> Option<Forgotten> {
        let device = self.devices.get_mut(&requester);
        let device = device.filter(|device| device.attachment == attachment)?;
        for group in device.groups.values() {
            let Stage::Whole { order, route, .. } = &group.stage else { continue };
            self.whole.remove(order);
            self.counters.forgotten += 1;
            if let Route::Queue { queue, cookie, .. } = route {
                if let Some(queue) = self.queues.get_mut(queue) {
                    queue.remove(*order, *cookie);
                }
            }
        }
        self.turn.retain(|of| *of != requester);
        Some(device.forget())
    }
}
