//! Answers of the guest: to the device, or by the cookie of the host's fault queue.

use alloc::collections::BTreeMap;

use iommu::{PageRequest, PageResponse, Pasid, PrgIndex, ResponseCode, Vm};
use pci::RequesterId;

use super::super::Model;
use crate::spec::{PageGroupResponse, RESPONSE_INVALID, RESPONSE_SUCCESS};

/// The groups that the guest has to answer. At most one for each of a device's 512 groups: an index
/// that is given again replaces what was there, which the host has answered.
#[derive(Clone, Debug, Default)]
pub(super) struct Answers(BTreeMap<(RequesterId, PrgIndex), Expected>);

#[derive(Clone, Copy, Debug)]
struct Expected {
    pasid: Option<Pasid>,
    /// By which the host's fault queue knows the group, if it came from there.
    cookie: Option<u32>,
}

impl Answers {
    /// A request was taken: from the fault queue if it has a cookie.
    pub(super) fn expect(&mut self, request: &PageRequest, cookie: Option<u32>) {
        // A stop marker is not answered, and of no group.
        if !request.is_stop_marker() {
            let expected = Expected { pasid: request.pasid, cookie };
            self.0.insert((request.requester, request.group), expected);
        }
    }

    /// The group, which is not expected to be answered any more, if it was asked for with `pasid`;
    /// its cookie, if it has one.
    fn take(
        &mut self,
        requester: RequesterId,
        pasid: Option<Pasid>,
        group: PrgIndex,
    ) -> Option<u32> {
        let key = (requester, group);
        let expected = *self.0.get(&key).filter(|expected| expected.pasid == pasid)?;
        self.0.remove(&key);
        expected.cookie
    }
}

impl<V: Vm> Model<V> {
    /// A page group response descriptor. One that answers nothing is no error to software: the
    /// message goes to a device that does not wait for it.
    pub(in crate::model) fn page_response(&mut self, response: &PageGroupResponse) {
        let code = match response.code {
            RESPONSE_SUCCESS => ResponseCode::Success,
            RESPONSE_INVALID => ResponseCode::Invalid,
            _ => ResponseCode::Failure,
        };
        let group = PrgIndex::from_field(response.group.into());
        let PageGroupResponse { source: requester, pasid, .. } = *response;
        let answered = self.respond(PageResponse { requester, pasid, group, code });
        self.counters.page_responses += 1;
        self.counters.page_responses_unknown += u64::from(!answered);
    }

    /// Answers what the guest has not answered: it is gone.
    pub(super) fn answer_the_rest(&mut self) {
        let groups = core::mem::take(&mut self.page_requests.answers.0);
        for ((requester, group), Expected { pasid, cookie }) in groups {
            let response = PageResponse { requester, pasid, group, code: ResponseCode::Invalid };
            // The host may have answered it already.
            let was_unanswered = self.tell_host(response, cookie);
            self.counters.automatic_responses += u64::from(was_unanswered);
        }
    }

    /// Answers a group; whether it was unanswered.
    pub(super) fn respond(&mut self, response: PageResponse) -> bool {
        let PageResponse { requester, pasid, group, .. } = response;
        let cookie = self.page_requests.answers.take(requester, pasid, group);
        self.tell_host(response, cookie)
    }

    fn tell_host(&self, response: PageResponse, cookie: Option<u32>) -> bool {
        let Some((queue, cookie)) = self.page_requests.faults.zip(cookie) else {
            return self.vm.respond_page_request(response).is_ok();
        };
        let answer = |code| self.vm.respond_page_fault(queue, cookie, code).is_ok();
        // Not every host lets its users say that a device's interface is broken.
        let failure = response.code == ResponseCode::Failure;
        answer(response.code) || failure && answer(ResponseCode::Invalid)
    }
}
