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
//! they were given, and one that calls back from inside makes that line longer, not the stack. Until it
//! has heard one, the group's PASID is held.
//!
//! The lock is the last of all: under it, nothing is called but the log of faults.

mod device;
mod inject;
mod queue;
mod record;
mod route;
mod time;

use alloc::sync::Arc;
use alloc::vec::Vec;

use device::{Answer, Device, Group, Stage};
use ioasid::HoldError;
use pci::RequesterId;
use record::{Key, Record};
pub(super) use route::Destination;
use route::Route;

use super::fault_log::FaultLog;
use super::pasids::Ref;
use crate::sabotage::{self, Sabotage};
use crate::sync::Mutex;
use crate::{
    Answerer, FaultEvent, OutstandingGroup, PageRequest, PageRequestCounters, PageRequestPolicy,
    PageResponse, PageResponseError, PageResponses, Pasid, ResponseCode, TakenGroups,
    PAGE_REQUEST_LIMIT,
};

/// The page requests of one VM.
pub(crate) struct PageRequests {
    policy: PageRequestPolicy,
    log: Arc<FaultLog>,
    inner: Mutex<Record>,
}

impl PageRequests {
    pub(crate) fn new(policy: PageRequestPolicy, log: Arc<FaultLog>) -> Self {
        let per_device = policy.per_device.min(PAGE_REQUEST_LIMIT);
        let policy = PageRequestPolicy { per_device, ..policy };
        Self { policy, log, inner: Mutex::new(Record::default()) }
    }

    /// Takes a request of a device; whether it waits for somebody for whom none waited. What is to
    /// be answered at once is in the device's line of answers then. Its PASID is `held`; if it could not
    /// be, the device is to try again.
    pub(super) fn receive(
        &self,
        attachment: u64,
        request: PageRequest,
        to: Destination,
        held: Result<Option<Ref>, HoldError>,
    ) -> bool {
        let record = &mut *self.inner.lock();
        if record.closed && to != Destination::Nowhere {
            return false;
        }
        let device = record.devices.entry(request.requester);
        if device.or_insert_with(|| Device::new(attachment)).attachment != attachment {
            return false;
        }
        record.counters.requests += 1;
        self.log.record(FaultEvent::PageRequest(request));
        match request.is_stop_marker() {
            true => record.stop_marker(request, to, self.policy.per_device),
            false => record.receive(&self.log, request, to, (held, self.policy.per_device)),
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
    fn withdraw(&self, device: Option<RequesterId>, of: impl Fn(&Group) -> bool) {
        let mut record = self.inner.lock();
        let devices: Vec<_> = match device {
            Some(device) => Vec::from([device]),
            None => record.devices.keys().copied().collect(),
        };
        for requester in devices {
            let Some(device) = record.devices.get(&requester) else { continue };
            let groups = device.groups.iter().filter(|(_, group)| of(group));
            let groups: Vec<_> = groups.map(|(&group, _)| (requester, group)).collect();
            for key in groups {
                record.end(&self.log, key, ResponseCode::Invalid, Answerer::Teardown);
            }
        }
    }

    /// Whether a group ends with what it came through.
    fn ends_early(&self, group: &Group) -> bool {
        let withdrawn = self.policy.taken == TakenGroups::Withdrawn;
        withdrawn || !group.is_taken() || sabotage::is(Sabotage::AnswerTaken)
    }

    /// Answers the groups that came through what is attached in a place, but for those that stay.
    pub(super) fn withdraw_place(&self, device: RequesterId, place: Option<Pasid>) {
        let through = |group: &Group| matches!(group.route(), Some(Route::Queue { place: of, .. }) if *of == place);
        self.withdraw(Some(device), |group| through(group) && self.ends_early(group));
    }

    /// Answers the groups of a PASID that is given back, but for those that stay.
    pub(super) fn withdraw_pasid(&self, pasid: Pasid) {
        self.withdraw(None, |group| group.pasid == Some(pasid) && self.ends_early(group));
    }

    /// Answers the groups of all PASIDs: the guest whose they were is gone.
    pub(super) fn withdraw_pasids(&self) {
        self.withdraw(None, |group| group.pasid.is_some());
    }

    /// Answers everything; further requests are answered at once.
    pub(super) fn close(&self) {
        self.withdraw(None, |_| true);
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
        let _forgotten = self.inner.lock().forget(requester, attachment);
    }

    /// The same of a device that is gone. To be called with no lock held.
    pub(super) fn remove(&self, requester: RequesterId, attachment: u64) {
        let _gone = {
            let mut record = self.inner.lock();
            let forgotten = record.forget(requester, attachment);
            forgotten.map(|forgotten| (forgotten, record.devices.remove(&requester)))
        };
    }

    /// Has a device hear its answers, if nobody else is at it. To be called with no lock held.
    pub(super) fn deliver(&self, requester: RequesterId) {
        loop {
            let next = {
                let mut record = self.inner.lock();
                let device = record.devices.get_mut(&requester);
                device.and_then(|device| Some((device.attachment, device.next_answer()?)))
            };
            let Some((attachment, (Answer { response, held }, sink))) = next else { return };
            let delivering = Delivering { of: self, requester, attachment };
            if let Some(sink) = sink {
                sink.respond(response);
            }
            drop(held);
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

#[cfg(all(test, loom))]
mod loom_tests;
