//! The calls for page requests, and the time.

use core::mem::offset_of;
use core::time::Duration;

use iommu::nesting::GroupResponse;
use iommu::{FaultQueueId, PageResponse, PageResponseError, Ticket, Vm};
use pci::RequesterId;
use zerocopy::{FromZeros, IntoBytes};

use super::objects::{copy, finish, Objects};
use crate::argument::{copy_in, copy_out};
use crate::counters::page_requests::to_wire;
use crate::nesting::decode_response;
use crate::spec::flags::*;
use crate::spec::{
    GiveUpAnswersArgument, HwptPageFault, PageRequestCountersArgument, ReadPageFault,
    ReadPageRequest, RespondPageFault, RespondPageRequest, TickArgument, UnansweredArgument,
};
use crate::{page_request, Refusal, Reply};

/// Takes a page request of devices that the guest's own tables translate.
pub(super) fn read<V: Vm>(vm: &V, argument: &mut [u8]) -> Result<Reply, Refusal> {
    let ReadPageRequest { argsz, flags, .. } = copy_in(argument)?;
    let mut answer = ReadPageRequest { argsz, flags, ..ReadPageRequest::new_zeroed() };
    if let Some(request) = vm.take_page_request() {
        answer.request = page_request::encode(&request);
        answer.requester = request.requester.bits();
    }
    copy_out(&answer, argument);
    Ok(Reply::default())
}

/// Answers one.
pub(super) fn respond<V: Vm>(vm: &V, argument: &mut [u8]) -> Result<Reply, Refusal> {
    let mut request: RespondPageRequest = copy_in(argument)?;
    let requester = RequesterId::from_bits(request.requester);
    let GroupResponse { pasid, group, code } = decode_response(request.response.as_bytes(), true)?;
    let answered = vm.respond_page_request(PageResponse { requester, pasid, group, code });
    request.failure = answered.as_ref().err().map_or(0, page_request::failure);
    copy_out(&request, argument);
    answered.map(|()| Reply::default()).map_err(PageResponseError::into)
}

/// Says who keeps a ticket from being complete.
pub(super) fn unanswered<V: Vm>(vm: &V, argument: &mut [u8]) -> Result<Reply, Refusal> {
    let mut request: UnansweredArgument = copy_in(argument)?;
    let unanswered = vm.unanswered(Ticket::new(request.ticket));
    request.present = unanswered.is_some().into();
    request.requester = unanswered.map_or(0, |who| who.requester.bits());
    request.up_to = unanswered.map_or(0, |who| who.ticket.sequence());
    copy_out(&request, argument);
    Ok(Reply::default())
}

/// Waits no longer for devices' answers.
pub(super) fn give_up_answers<V: Vm>(vm: &V, argument: &mut [u8]) -> Result<Reply, Refusal> {
    let request: GiveUpAnswersArgument = copy_in(argument)?;
    vm.give_up_answers(Ticket::new(request.up_to));
    Ok(Reply::default())
}

/// Reads the counters.
pub(super) fn counters<V: Vm>(vm: &V, argument: &mut [u8]) -> Result<Reply, Refusal> {
    let mut request: PageRequestCountersArgument = copy_in(argument)?;
    request.counts = to_wire(&vm.page_request_counters());
    copy_out(&request, argument);
    Ok(Reply::default())
}

/// Hears what time it is.
pub(super) fn tick<V: Vm>(vm: &V, argument: &mut [u8]) -> Result<Reply, Refusal> {
    let mut request: TickArgument = copy_in(argument)?;
    let refused = Refusal::Value { offset: offset_of!(TickArgument, nanoseconds) };
    let now = page_request::time(request.seconds, request.nanoseconds).ok_or(refused)?;
    let next = vm.tick(now);
    request.present = next.is_some().into();
    request.next_seconds = next.map_or(0, |next| next.as_secs());
    request.next_nanoseconds = next.map_or(0, |next: Duration| next.subsec_nanos());
    copy_out(&request, argument);
    Ok(Reply::default())
}

impl<V: Vm> Objects<'_, V> {
    /// Takes a page request of a fault queue.
    pub(super) fn read_page_fault(&self, argument: &mut [u8]) -> Result<Reply, Refusal> {
        let request: ReadPageFault = copy(argument)?;
        let result = self.vm.take_page_fault(FaultQueueId(request.queue)).map(|fault| {
            move |request: &mut ReadPageFault| {
                let data = fault.and_then(|fault| fault.request.private_data);
                let bits = [
                    (fault.is_some(), PAGE_FAULT_PRESENT),
                    (data.is_some(), PAGE_FAULT_PRIVATE_DATA),
                ];
                let set = bits.iter().filter(|(is_set, _)| *is_set);
                request.present = set.map(|(_, bit)| bit).sum();
                request.private_data = data.unwrap_or_default();
                let none = HwptPageFault::new_zeroed();
                request.fault = fault.as_ref().map_or(none, page_request::encode_fault);
            }
        });
        finish(request, result, argument)
    }

    /// Answers one.
    pub(super) fn respond_page_fault(&self, argument: &mut [u8]) -> Result<Reply, Refusal> {
        let request: RespondPageFault = copy(argument)?;
        let offset = offset_of!(RespondPageFault, response);
        let (cookie, code) = page_request::decode_answer(&request.response, self.own, offset)?;
        let queue = FaultQueueId(request.queue);
        let result = self.vm.respond_page_fault(queue, cookie, code);
        finish(request, result.map(|()| |_: &mut RespondPageFault| ()), argument)
    }
}
