//! Page requests: descriptors that wait for a page, and the messages that are under way.
//!
//! ```text
//!   engine: fault ──► block ── credit? ──► request ──► outbox ──► host
//!                       │ no                                        │
//!                       ▼                                           │
//!                  waits for one ◄── credit ──┐                     ▼
//!   engine: again ◄──────────────────── page_response ◄─────────── answer
//! ```

use alloc::collections::VecDeque;

use iommu::{
    Answered, PageRequest, PageRequestInterface, PageRequestRefused, PageResponse, Pasid,
    ResponseCode, WantedPage,
};
use pci::RequesterId;

use super::effects::Effects;
use super::function::PRI_CAPACITY;
use super::queue::Sequence;
use super::sabotage::{self, Sabotage};
use super::schedule::Running;
use super::state::State;
use crate::spec::WqState;

/// Descriptors of one queue that one engine sets aside at most while they wait for pages. At that
/// many it takes no more from this queue, and goes on with the others.
pub const SET_ASIDE: usize = 8;
/// How often a descriptor asks again, each time after it was told that the page is there, before it
/// counts as a page that cannot be had. It comes to that where the answers are the IOMMU's own
/// (its queue has overflowed) for longer than that many walks take; a guest that answers itself
/// does not lie that often.
pub const RETRY_LIMIT: u32 = 1 << 19;
/// Messages that wait to be sent at most: as many requests as can be out, and as many stop markers.
const OUTBOX_LIMIT: usize = 2 * PRI_CAPACITY as usize;

/// A descriptor that was set aside.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Blocked {
    pub(super) running: Running,
    page: WantedPage,
    wait: Wait,
}

/// What a descriptor that was set aside waits for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Wait {
    /// Too many requests are out; its own is still to be sent.
    Credit,
    /// The answer.
    Answer,
    /// Its engine, with this answer.
    Engine(ResponseCode),
}

impl Blocked {
    /// The answer, if it is there.
    pub(super) fn answer(&self) -> Option<ResponseCode> {
        match self.wait {
            Wait::Engine(code) => Some(code),
            Wait::Credit | Wait::Answer => None,
        }
    }
}

/// What becomes of a descriptor that needs a page.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use]
pub(super) enum Blocking {
    /// It is set aside.
    Aside,
    /// Nobody can be asked: as if this had been the answer.
    Refused(ResponseCode),
    /// It is abandoned meanwhile.
    Cancelled,
}

/// A message to the host.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Outgoing {
    Request(PageRequest),
    /// What was asked is forgotten.
    Forget,
}

/// The device's side of page requests.
#[derive(Debug)]
pub(super) struct Paging {
    interface: PageRequestInterface,
    /// Who waits for a credit, and of which queue; first come first.
    for_credit: VecDeque<(Sequence, usize)>,
    /// Sent in this order by whoever finds nobody else at it. The host may answer from inside the
    /// sending; what comes of that is sent next, by the one who is at it.
    outbox: VecDeque<Outgoing>,
    sending: bool,
}

impl Paging {
    pub(super) fn new(requester: RequesterId) -> Self {
        Self {
            interface: PageRequestInterface::new(requester, PRI_CAPACITY),
            for_credit: VecDeque::new(),
            outbox: VecDeque::new(),
            sending: false,
        }
    }

    /// Whether there is something to be sent and nobody at it; the caller is from here on.
    pub(super) fn must_send(&mut self) -> bool {
        let must = !self.sending && !self.outbox.is_empty();
        self.sending |= must;
        must
    }

    /// The next message to be sent; if there is none, the caller is no longer at it.
    pub(super) fn next_message(&mut self) -> Option<Outgoing> {
        let next = self.outbox.pop_front();
        self.sending = next.is_some();
        next
    }

    /// Forgets what is out, here and at the host.
    fn forget(&mut self) {
        self.interface.reset();
        self.outbox.clear();
        self.outbox.push_back(Outgoing::Forget);
    }

    /// As after power-on; the host is told.
    pub(super) fn power_on_reset(&mut self) {
        self.interface.disable();
        self.interface.set_allocation(0);
        self.for_credit.clear();
        self.forget();
    }

    /// Who waits for a credit next after `at`, of those of other queues than `wq`.
    fn next_of_another_queue(&self, at: usize, wq: usize) -> usize {
        let others = self.for_credit.iter().skip(at).take_while(|(_, of)| *of == wq);
        at + others.count()
    }

    /// Has `message` sent. What is out bounds the requests; markers beyond the limit are dropped,
    /// as they are only a courtesy to a guest that gets the answers in any case.
    fn post(&mut self, message: PageRequest) {
        if message.wants_response() || self.outbox.len() < OUTBOX_LIMIT {
            self.outbox.push_back(Outgoing::Request(message));
        }
    }
}

impl State {
    /// The control register of the page request interface was written.
    pub(super) fn set_page_requests(&mut self, enable: bool) {
        match enable {
            true => self.paging.interface.enable(),
            false => self.paging.interface.disable(),
        }
        self.note_stopped();
    }

    /// The reset bit of the page request interface was written.
    pub(super) fn reset_page_requests(&mut self) {
        self.paging.forget();
        self.note_stopped();
    }

    /// The guest gives another number of credits.
    pub(super) fn allocate_page_requests(&mut self, allocation: u32, fx: &mut Effects) {
        self.paging.interface.set_allocation(allocation);
        self.use_credits(fx);
    }

    /// "Stopped" as it is; while enabled it means nothing and reads as zero.
    fn note_stopped(&mut self) {
        self.function.set_page_requests_stopped(self.paging.interface.is_stopped());
    }

    /// Sets the descriptor that `engine` runs aside until `page` is there.
    pub(super) fn block(&mut self, engine: usize, page: WantedPage) -> Blocking {
        let running = self.engines.get(engine).filter(|slot| !slot.is_cancelled());
        let Some(running) = running.and_then(|slot| slot.running) else {
            return Blocking::Cancelled;
        };
        let wait = match self.send_request(&running, page) {
            Ok(()) => Wait::Answer,
            Err(PageRequestRefused::NoCredit { .. }) => {
                self.tally.credits_exhausted.add(1);
                self.paging.for_credit.push_back((running.sequence, running.wq));
                Wait::Credit
            }
            Err(_) => return Blocking::Refused(ResponseCode::Failure),
        };
        self.tally.blocked.add(1);
        if let Some(slot) = self.engines.get_mut(engine) {
            slot.running = None;
            slot.blocked.push(Blocked { running, page, wait });
        }
        Blocking::Aside
    }

    /// Asks for `page`. Nobody is overtaken by that: whoever waits while there is a credit waits for
    /// one of his queue's share.
    fn send_request(
        &mut self,
        running: &Running,
        page: WantedPage,
    ) -> Result<(), PageRequestRefused> {
        if self.paging.interface.may_ask() && !self.has_share(running.wq) {
            return Err(PageRequestRefused::NoCredit { wanted: 1 });
        }
        let request = self.paging.interface.request(running.space, page, running.sequence)?;
        self.tally.page_requests.add(1);
        self.paging.post(request);
        Ok(())
    }

    /// Whether descriptors of queue `wq` wait for fewer answers than they may: each queue that is
    /// enabled has an equal share of the credits, so that one whose pages never come leaves the
    /// others theirs.
    fn has_share(&self, wq: usize) -> bool {
        let enabled = self.wqs.iter().filter(|wq| wq.state() != WqState::Disabled).count();
        let share = self.paging.interface.allocation() as usize / enabled.max(1);
        let blocked = self.engines.iter().flat_map(|slot| &slot.blocked);
        let asked = |blocked: &&Blocked| blocked.running.wq == wq && blocked.wait == Wait::Answer;
        blocked.filter(asked).count() < share.max(1)
    }

    /// Takes an answer of the host.
    pub(super) fn page_response(&mut self, response: &PageResponse, fx: &mut Effects) {
        let answered = self.paging.interface.respond(response);
        match response.code {
            _ if answered == Answered::Unexpected => self.tally.page_responses_unexpected.add(1),
            ResponseCode::Success => self.tally.page_responses_success.add(1),
            ResponseCode::Invalid => self.tally.page_responses_invalid.add(1),
            ResponseCode::Failure => self.tally.page_responses_failure.add(1),
        }
        match answered {
            Answered::Token(sequence, code) => self.answer(sequence, code, fx),
            Answered::Stale | Answered::Ignored => {}
            Answered::Unexpected => self.function.unexpected_page_response(),
        }
        let heard = matches!(answered, Answered::Token(..) | Answered::Stale);
        if heard && response.code == ResponseCode::Failure {
            self.function.page_response_failed();
            self.fail_all(fx);
        }
        self.use_credits(fx);
        self.note_stopped();
    }

    /// The interface is broken: nobody will hear an answer any more.
    fn fail_all(&mut self, fx: &mut Effects) {
        self.paging.for_credit.clear();
        let waits = |blocked: &&Blocked| blocked.answer().is_none();
        let blocked = self.engines.iter().flat_map(|slot| &slot.blocked).filter(waits);
        let all: alloc::vec::Vec<Sequence> = blocked.map(|b| b.running.sequence).collect();
        for sequence in all {
            self.paging.interface.abandon(sequence);
            self.answer(sequence, ResponseCode::Failure, fx);
        }
    }

    /// Hands an answer to the engine that set the descriptor aside.
    fn answer(&mut self, sequence: Sequence, code: ResponseCode, fx: &mut Effects) {
        for (engine, slot) in self.engines.iter_mut().enumerate() {
            let is_it = |blocked: &Blocked| blocked.running.sequence == sequence;
            let Some(at) = slot.blocked.iter().position(is_it) else { continue };
            if sabotage::is(Sabotage::LoseBlocked) {
                slot.blocked.remove(at);
                slot.purge = true;
                return self.tally.blocked.subtract(1);
            }
            let ignored = sabotage::is(Sabotage::IgnoreInvalidAnswer);
            let code = match code {
                ResponseCode::Invalid if ignored => ResponseCode::Success,
                code => code,
            };
            if let Some(blocked) = slot.blocked.get_mut(at) {
                blocked.wait = Wait::Engine(code);
            }
            return fx.wake(engine);
        }
    }

    /// Sends the requests that waited for a credit, as far as there are credits now.
    pub(super) fn use_credits(&mut self, fx: &mut Effects) {
        let mut at = 0;
        while let Some(&(sequence, wq)) = self.paging.for_credit.get(at) {
            let interface = &self.paging.interface;
            if interface.may_ask() && interface.credits() == 0 {
                return;
            }
            let waits = self.engines.iter().flat_map(|slot| &slot.blocked);
            let found = waits.copied().find(|blocked| blocked.running.sequence == sequence);
            let sent = found.map(|blocked| self.send_request(&blocked.running, blocked.page));
            match sent {
                Some(Err(PageRequestRefused::NoCredit { .. })) => {
                    at = self.paging.next_of_another_queue(at, wq);
                    continue;
                }
                Some(Ok(())) => self.wait_for_answer(sequence),
                Some(Err(_)) => self.answer(sequence, ResponseCode::Failure, fx),
                None => {}
            }
            self.paging.for_credit.remove(at);
        }
    }

    fn wait_for_answer(&mut self, sequence: Sequence) {
        let blocked = self.engines.iter_mut().flat_map(|slot| &mut slot.blocked);
        let of = |blocked: &&mut Blocked| blocked.running.sequence == sequence;
        blocked.filter(of).for_each(|blocked| blocked.wait = Wait::Answer);
    }

    /// Abandons what was set aside, at once, of what `which` says by its engine: what it asked for is
    /// answered to nobody.
    pub(super) fn abandon_blocked(
        &mut self,
        which: impl Fn(usize, &Running) -> bool,
        fx: &mut Effects,
    ) {
        let Self { engines, paging, tally, .. } = self;
        for (engine, slot) in engines.iter_mut().enumerate() {
            let before = slot.blocked.len();
            slot.blocked.retain(|blocked| {
                let covered = which(engine, &blocked.running);
                if covered {
                    let sequence = blocked.running.sequence;
                    paging.interface.abandon(sequence);
                    paging.for_credit.retain(|&(waits, _)| waits != sequence);
                }
                !covered
            });
            let gone = before - slot.blocked.len();
            if gone != 0 {
                slot.purge = true;
                fx.wake(engine);
                tally.abandoned.add(gone as u64);
                tally.blocked.subtract(gone as u64);
            }
        }
    }

    /// Says that the device asks nothing more for `pasid` than what is out, which nobody waits for.
    pub(super) fn stop_pasid(&mut self, pasid: Pasid) {
        if let Some(marker) = self.paging.interface.stop_marker(pasid) {
            self.tally.stop_markers.add(1);
            self.paging.post(marker);
        }
    }
}
