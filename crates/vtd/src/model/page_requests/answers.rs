//! Answers of the guest: to the device, or by the cookie of the host's fault queue.

use alloc::collections::BTreeMap;

use iommu::{PageRequest, PageResponse, Pasid, PrgIndex, ResponseCode, Vm};
use pci::RequesterId;

use super::super::Model;
use crate::spec::{PageGroupResponse, RESPONSE_INVALID, RESPONSE_SUCCESS};

/// By which cookies the groups of the host's fault queue are answered. At most one for each of a
/// device's 512 groups: an index that is given again replaces what was there.
#[derive(Clone, Debug, Default)]
pub(super) struct Answers(BTreeMap<(RequesterId, PrgIndex), Expected>);

#[derive(Clone, Copy, Debug)]
struct Expected {
    cookie: u32,
    pasid: Option<Pasid>,
}

impl Answers {
    /// A request was taken: from the fault queue if it has a cookie.
    pub(super) fn expect(&mut self, request: &PageRequest, cookie: Option<u32>) {
        let key = (request.requester, request.group);
        match cookie {
            // Not answered, and of no group.
            _ if request.is_stop_marker() => {}
            Some(cookie) => {
                self.0.insert(key, Expected { cookie, pasid: request.pasid });
            }
            None => {
                self.0.remove(&key);
            }
        }
    }

    /// The cookie of a group that was asked for with `pasid`.
    fn take(
        &mut self,
        requester: RequesterId,
        pasid: Option<Pasid>,
        group: PrgIndex,
    ) -> Option<u32> {
        let key = (requester, group);
        let expected = self.0.get(&key).filter(|expected| expected.pasid == pasid)?.cookie;
        self.0.remove(&key);
        Some(expected)
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
        let answered = self.respond(response.source, response.pasid, group, code);
        self.counters.page_responses += 1;
        self.counters.page_responses_unknown += u64::from(!answered);
    }

    /// Answers a group; whether it was unanswered.
    pub(super) fn respond(
        &mut self,
        requester: RequesterId,
        pasid: Option<Pasid>,
        group: PrgIndex,
        code: ResponseCode,
    ) -> bool {
        let cookie = self.page_requests.answers.take(requester, pasid, group);
        let Some((queue, cookie)) = self.page_requests.faults.zip(cookie) else {
            let response = PageResponse { requester, pasid, group, code };
            return self.vm.respond_page_request(response).is_ok();
        };
        let answered = self.vm.respond_page_fault(queue, cookie, code).is_ok();
        // Not every host lets its users say that a device's interface is broken.
        answered
            || code == ResponseCode::Failure
                && self.vm.respond_page_fault(queue, cookie, ResponseCode::Invalid).is_ok()
    }
}
