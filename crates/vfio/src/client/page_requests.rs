//! Page requests of a VM that is somewhere else, and the time.

use core::time::Duration;

use iommu::{
    FaultQueueId, ObjectError, PageFault, PageRequest, PageRequestCounters, PageResponse,
    PageResponseError, ResponseCode, Ticket, Unanswered,
};
use pci::RequesterId;
use zerocopy::FromZeros;

use super::objects::size;
use super::ClientVm;
use crate::spec::flags::*;
use crate::spec::{
    GiveUpAnswersArgument, HwptPageResponse, PageRequestCountersArgument, ReadPageFault,
    ReadPageRequest, RespondPageFault, RespondPageRequest, TickArgument, UnansweredArgument,
};
use crate::{counters, page_request, Errno, File, Request};

impl<F: File> ClientVm<F> {
    pub(super) fn read_page_request(&self) -> Option<PageRequest> {
        let argsz = size::<ReadPageRequest>();
        let mut argument = ReadPageRequest { argsz, ..ReadPageRequest::new_zeroed() };
        let read = self.call(Request::ReadPageRequest, &mut argument, None).and_then(|_| {
            let decoded = page_request::decode(&argument.request, argument.requester);
            decoded.map_err(|page_request::UnknownRequest| Errno::EINVAL)
        });
        read.unwrap_or_else(|errno| {
            self.count(errno);
            None
        })
    }

    pub(super) fn answer_page_request(
        &self,
        response: &PageResponse,
    ) -> Result<(), PageResponseError> {
        let mut argument = RespondPageRequest {
            argsz: size::<RespondPageRequest>(),
            response: page_request::encode_response(response),
            requester: response.requester.bits(),
            ..RespondPageRequest::new_zeroed()
        };
        let answered = self.call(Request::RespondPageRequest, &mut argument, None);
        answered.map(drop).map_err(|errno| {
            page_request::failure_of(argument.failure, response).unwrap_or_else(|| {
                self.count(errno);
                PageResponseError::NotSupported
            })
        })
    }

    pub(super) fn read_page_request_counters(&self) -> PageRequestCounters {
        let argsz = size::<PageRequestCountersArgument>();
        let mut argument =
            PageRequestCountersArgument { argsz, ..PageRequestCountersArgument::new_zeroed() };
        if let Err(errno) = self.call(Request::GetPageRequestCounters, &mut argument, None) {
            self.count(errno);
        }
        counters::page_requests::from_wire(argument.counts)
    }

    pub(super) fn read_page_fault(
        &self,
        FaultQueueId(queue): FaultQueueId,
    ) -> Result<Option<PageFault>, ObjectError> {
        let argsz = size::<ReadPageFault>();
        let mut argument = ReadPageFault { argsz, queue, ..ReadPageFault::new_zeroed() };
        self.object(Request::ReadPageFault, &mut argument)?;
        if argument.present & PAGE_FAULT_PRESENT == 0 {
            return Ok(None);
        }
        let has_data = argument.present & PAGE_FAULT_PRIVATE_DATA != 0;
        let data = has_data.then_some(argument.private_data);
        match page_request::decode_fault(&argument.fault, data) {
            Ok(fault) => Ok(Some(fault)),
            Err(page_request::UnknownRequest) => {
                // The host end is not ours, or newer.
                self.count(Errno::EINVAL);
                Err(ObjectError::NotSupported)
            }
        }
    }

    pub(super) fn answer_page_fault(
        &self,
        FaultQueueId(queue): FaultQueueId,
        cookie: u32,
        code: ResponseCode,
    ) -> Result<(), ObjectError> {
        let mut argument = RespondPageFault {
            argsz: size::<RespondPageFault>(),
            queue,
            response: HwptPageResponse { cookie, code: page_request::code(code) },
            ..RespondPageFault::new_zeroed()
        };
        self.object(Request::RespondPageFault, &mut argument).map(drop)
    }

    pub(super) fn who_is_unanswered(&self, ticket: Ticket) -> Option<Unanswered> {
        let mut argument = UnansweredArgument {
            argsz: size::<UnansweredArgument>(),
            ticket: ticket.sequence(),
            ..UnansweredArgument::new_zeroed()
        };
        if let Err(errno) = self.call(Request::Unanswered, &mut argument, None) {
            self.count(errno);
            return None;
        }
        let UnansweredArgument { requester, up_to, present, .. } = argument;
        let requester = RequesterId::from_bits(requester);
        (present != 0).then(|| Unanswered { requester, ticket: Ticket::new(up_to) })
    }

    pub(super) fn wait_no_longer(&self, up_to: Ticket) {
        let argsz = size::<GiveUpAnswersArgument>();
        let up_to = up_to.sequence();
        let mut argument = GiveUpAnswersArgument { argsz, up_to, flags: 0 };
        if let Err(errno) = self.call(Request::GiveUpAnswers, &mut argument, None) {
            self.count(errno);
        }
    }

    pub(super) fn say_time(&self, now: Duration) -> Option<Duration> {
        let mut argument = TickArgument {
            argsz: size::<TickArgument>(),
            seconds: now.as_secs(),
            nanoseconds: now.subsec_nanos(),
            ..TickArgument::new_zeroed()
        };
        if let Err(errno) = self.call(Request::Tick, &mut argument, None) {
            self.count(errno);
            return None;
        }
        let TickArgument { next_seconds, next_nanoseconds, present, .. } = argument;
        page_request::time(next_seconds, next_nanoseconds).filter(|_| present != 0)
    }
}
