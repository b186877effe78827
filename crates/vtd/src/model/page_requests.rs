//! The page request queue (7.4, 7.5): what devices ask for goes into a ring of the guest's, and
//! the guest's answers go back.
//!
//! ```text
//!   Vm::take_page_request, Vm::take_page_fault ──► allowed? ──► room? ──► ring, PPR, event
//!                                                     │ no        │ no
//!                                                     ▼           ▼
//!   Vm::respond_page_request, by cookie ◄──── Invalid + fault   Success (PRO)
//!                                       ◄──────────────────────────── guest's type 9 descriptor
//! ```

mod answers;
mod check;

use iommu::{FaultQueueId, PageRequest, PageResponse, ResponseCode, Vm};
use mem::{Gpa, GuestMemory};

use super::event::Event;
use super::{Effects, Message, Model, Turn};
use crate::spec::{PageRequestDescriptor, PageRequestQueueAddress, PageRequestStatus};
use answers::Answers;

/// The most page requests that one [`Model::poll`] takes from the VM.
pub const PAGE_REQUESTS_PER_POLL: u32 = 64;

/// The most page requests that [`Model::reset`] answers; later ones come after the reset.
pub const PAGE_REQUESTS_PER_RESET: u32 = 4096;

/// The registers of the queue, and how those who asked are answered.
#[derive(Clone, Debug)]
pub(super) struct PageRequests {
    /// Offset in bytes, as software wrote it: anything of its bits.
    pub(super) head: u64,
    /// The same, moved on by each request that is written.
    pub(super) tail: u64,
    pub(super) address: PageRequestQueueAddress,
    pub(super) status: PageRequestStatus,
    pub(super) event: Event,
    answers: Answers,
    /// Where the requests come from that the host's tables made.
    faults: Option<FaultQueueId>,
    /// Whether the queue is to look full, for those who test guests.
    overflow: bool,
}

/// A request as it was taken from the VM.
struct Asked {
    request: PageRequest,
    /// Whether from the host's fault queue.
    of_host: bool,
}

/// There is no room for a request.
struct Lost;

impl PageRequests {
    /// The queue after power-on; requests of what is attached come from `faults`.
    pub(super) fn new(faults: Option<FaultQueueId>) -> Self {
        Self {
            head: 0,
            tail: 0,
            address: PageRequestQueueAddress::new(),
            status: PageRequestStatus::new(),
            event: Event::new(),
            answers: Answers::default(),
            faults,
            overflow: false,
        }
    }

    /// Everything as after power-on. Where requests come from, and what a test asks for, stays.
    pub(super) fn reset(&mut self) {
        let Self { head, tail, address, status, event, answers, faults, overflow } = self;
        let fresh = Self::new(*faults);
        (*head, *tail) = (fresh.head, fresh.tail);
        (*address, *status, *event) = (fresh.address, fresh.status, fresh.event);
        *answers = fresh.answers;
        let _stays = (faults, overflow);
    }

    /// Software wrote ones to these bits.
    pub(super) fn clear(&mut self, ones: PageRequestStatus) {
        self.status = PageRequestStatus::from_bits(self.status.into_bits() & !ones.into_bits());
        if !self.has_status() {
            self.event.serviced();
        }
    }

    /// Whether a condition of the page request event is unserviced.
    fn has_status(&self) -> bool {
        self.status.pending() || self.status.overflow()
    }

    /// Size in bytes.
    fn size(&self) -> u64 {
        4096 << self.address.size()
    }

    /// Writes a request and moves the tail on. A head or tail that is outside the ring leaves no
    /// room, and so does a ring without memory.
    fn write(&mut self, memory: &dyn GuestMemory, request: &PageRequest) -> Result<(), Lost> {
        let next = (self.tail + PageRequestDescriptor::BYTES) % self.size();
        let inside = self.head < self.size() && self.tail < self.size();
        if self.status.overflow() || self.overflow || !inside || next == self.head {
            return Err(Lost);
        }
        let PageRequestDescriptor(words) = PageRequestDescriptor::encode(request);
        let base = Gpa(self.address.page() << 12);
        for (word, offset) in words.into_iter().zip((0..).step_by(8)) {
            let at = base.checked_add(self.tail + offset).ok_or(Lost)?;
            memory.store_u64(at, word).map_err(|_| Lost)?;
        }
        self.tail = next;
        Ok(())
    }
}

impl<V: Vm> Model<V> {
    /// Has the page request queue look full, or no longer, whatever is in it: for those who test
    /// what a guest makes of an overflow. A reset does not change it.
    pub fn inject_page_request_overflow(&mut self, full: bool) {
        self.page_requests.overflow = full;
    }

    /// Takes page requests of the VM's devices into the queue; whether there may be more.
    pub(super) fn take_page_requests(&mut self, turn: &mut Turn, effects: &mut Effects) -> bool {
        let memory = self.vm.memory();
        while let Some(left) = turn.page_requests.checked_sub(1) {
            let Some(asked) = self.next_page_request() else { return false };
            turn.page_requests = left;
            self.page_request(&asked, &*memory, effects);
        }
        true
    }

    /// Answers everything that is unanswered, looked at or not: the guest that could is gone.
    pub(super) fn discard_page_requests(&mut self) {
        for _ in 0..PAGE_REQUESTS_PER_RESET {
            let Some(asked) = self.next_page_request() else { break };
            self.respond_automatically(&asked.request, ResponseCode::Invalid);
        }
        self.answer_the_rest();
    }

    /// The oldest request: of what the host's tables translate, then of the others.
    fn next_page_request(&mut self) -> Option<Asked> {
        let queue = self.page_requests.faults;
        let fault = queue.and_then(|queue| self.vm.take_page_fault(queue).ok().flatten());
        let (request, cookie) = match fault {
            Some(fault) => (fault.request, Some(fault.cookie)),
            None => (self.vm.take_page_request()?, None),
        };
        self.page_requests.answers.expect(&request, cookie);
        let private_data = self.caps.options().private_data;
        let private_data = request.private_data.filter(|_| private_data);
        Some(Asked { request: PageRequest { private_data, ..request }, of_host: cookie.is_some() })
    }

    fn page_request(&mut self, asked: &Asked, memory: &dyn GuestMemory, effects: &mut Effects) {
        let request = &asked.request;
        if let Err(refusal) = self.check_page_request(asked, memory) {
            self.counters.page_requests_refused += 1;
            self.record_refusal(request, refusal, effects);
            return self.respond_automatically(request, ResponseCode::Invalid);
        }
        let quiet = !self.page_requests.has_status();
        match self.page_requests.write(memory, request) {
            Ok(()) => {
                self.counters.page_requests += 1;
                self.page_requests.status.set_pending(true);
            }
            Err(Lost) => {
                self.counters.page_requests_lost += 1;
                self.page_requests.status.set_overflow(true);
                // The device asks for the translation again, and then for the page.
                self.respond_automatically(request, ResponseCode::Success);
            }
        }
        if quiet {
            let raised = self.page_requests.event.raise();
            let requester = Some(request.requester);
            let message = self.sent(raised).map(|message| Message { requester, ..message });
            effects.page_request = message.or(effects.page_request);
        }
    }

    /// Answers in the guest's place, if the request is one that is answered.
    fn respond_automatically(&mut self, request: &PageRequest, code: ResponseCode) {
        if request.wants_response() {
            self.counters.automatic_responses += 1;
            let PageRequest { requester, pasid, group, .. } = *request;
            // Nobody is left to hear it otherwise.
            let _answered = self.respond(PageResponse { requester, pasid, group, code });
        }
    }
}
