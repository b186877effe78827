//! Page requests of a device that a guest's own tables translate: each group is answered once, by
//! whoever is first.
#![cfg(not(loom))]

mod common;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, Weak};
use std::time::Duration;

use common::requests::*;
use common::*;
use iommu::ResponseCode::{Failure, Invalid, Success};
use iommu::{
    Endpoint, Host, OutstandingGroup, PageRequest, PageRequestCounters, PageRequestPolicy,
    PageResponse, PageResponseError, PageResponses, PasidRange, ResponseInjection, SoftwareHost,
    SoftwareVm, TakenGroups, Vm, VmConfig, PAGE_REQUEST_LIMIT,
};
use pci::RequesterId;

struct Asking {
    vm: SoftwareVm,
    endpoint: Endpoint,
    ear: Arc<Ear>,
}

impl Asking {
    fn new() -> Self {
        Self::with(PageRequestPolicy::default())
    }

    fn with(page_requests: PageRequestPolicy) -> Self {
        let config = VmConfig { page_requests, ..VmConfig::named("asking") };
        let vm = SoftwareHost::new().create_vm(config).unwrap();
        let endpoint = vm.attach(DEVICE).unwrap();
        let ear = Ear::of(&endpoint);
        Self { vm, endpoint, ear }
    }

    /// Sends a group of one request, and takes it.
    fn ask(&self, of: u32, index: u16) -> PageRequest {
        self.endpoint.send_page_request(request(Some(of), index));
        self.vm.take_page_request().unwrap()
    }

    fn respond(
        &self,
        to: &PageRequest,
        code: iommu::ResponseCode,
    ) -> Result<(), PageResponseError> {
        self.vm.respond_page_request(answer(to, code))
    }
}

/// No group is lost, and none answered twice.
fn check(counters: PageRequestCounters) {
    let PageRequestCounters { groups, answered, no_queue, refused, withdrawn, .. } = counters;
    let PageRequestCounters { timed_out, forgotten, outstanding, .. } = counters;
    let ended = answered + no_queue + refused + withdrawn + timed_out + forgotten;
    assert_eq!(groups, ended + outstanding, "{counters:?}");
}

#[test]
fn a_group_is_answered_once() {
    let asking = Asking::new();
    let sent = PageRequest { private_data: Some([1, 2]), ..request(Some(5), 9) };
    asking.endpoint.send_page_request(sent);
    let asked = asking.vm.take_page_request().unwrap();
    assert_eq!(asked, PageRequest { requester: DEVICE, ..sent }, "as it was sent");
    assert_eq!(asking.vm.take_page_request(), None);

    let group = asked.group;
    let wrong = PageResponseError::WrongPasid { requester: DEVICE, group };
    for other in [None, Some(pasid(6))] {
        let response = PageResponse { pasid: other, ..answer(&asked, Success) };
        assert_eq!(asking.vm.respond_page_request(response), Err(wrong));
    }
    assert_eq!(asking.ear.heard(), [], "nothing has changed");
    asking.respond(&asked, Failure).unwrap();
    assert_eq!(asking.ear.heard(), [answer(&asked, Failure)]);

    let unknown = PageResponseError::NotOutstanding { requester: DEVICE, group };
    assert_eq!(asking.respond(&asked, Success), Err(unknown));
    let requester = RequesterId::from_bits(0x99);
    let stranger = PageRequest { requester, ..asked };
    let unknown = PageResponseError::NotOutstanding { requester, group };
    assert_eq!(asking.respond(&stranger, Success), Err(unknown));
    assert_eq!(asking.ear.heard(), []);
    let counters = asking.vm.page_request_counters();
    assert_eq!((counters.answered, counters.late_answers), (1, 4));
    check(counters);
}

#[test]
fn requests_of_a_group_come_as_they_are_sent_and_have_one_answer() {
    let asking = Asking::new();
    let sent = [part(Some(5), 1), part(Some(5), 1), request(Some(7), 2), request(Some(5), 1)];
    for request in &sent[..2] {
        asking.endpoint.send_page_request(*request);
    }
    let first = asking.vm.take_page_request().unwrap();
    let early = asking.respond(&first, Success);
    assert!(matches!(early, Err(PageResponseError::NotOutstanding { .. })), "it is not whole");
    for request in &sent[2..] {
        asking.endpoint.send_page_request(*request);
    }
    let rest = taken(&asking.vm);
    assert_eq!(rest.iter().map(|request| request.group.get()).collect::<Vec<_>>(), [1, 2, 1]);
    asking.respond(&first, Success).unwrap();
    assert_eq!(asking.ear.codes(), [(1, Success)]);
    assert_eq!(asking.vm.page_request_counters().outstanding, 1);
}

#[test]
fn a_stop_marker_is_passed_on_and_answered_by_nobody() {
    let asking = Asking::new();
    let marker = PageRequest::stop_marker(DEVICE, pasid(5));
    asking.ask(5, 0);
    asking.endpoint.send_page_request(marker);
    assert_eq!(taken(&asking.vm), [marker]);
    // Its index is not that of a group.
    let zero = asking.vm.outstanding_page_requests();
    assert_eq!(zero.len(), 1);
    asking.respond(&request(None, 0), Success).unwrap_err();
    assert_eq!(asking.vm.page_request_counters().outstanding, 1);
}

#[test]
fn devices_take_turns() {
    let asking = Asking::new();
    let other = RequesterId::from_bits(0x90);
    let second = asking.vm.attach(other).unwrap();
    for index in 0..3 {
        asking.endpoint.send_page_request(request(Some(5), index));
    }
    second.send_page_request(request(Some(5), 0));
    let order: Vec<_> = taken(&asking.vm).iter().map(|of| (of.requester, of.group.get())).collect();
    assert_eq!(order, [(DEVICE, 0), (other, 0), (DEVICE, 1), (DEVICE, 2)]);
}

#[test]
fn what_is_beyond_the_limit_is_told_to_try_again() {
    let asking = Asking::with(PageRequestPolicy {
        per_device: 3,
        timeout: None,
        ..PageRequestPolicy::default()
    });
    asking.endpoint.send_page_request(part(Some(5), 1));
    let one = asking.ask_last(5, 2);
    asking.endpoint.send_page_request(part(Some(5), 3));
    // Of a group of which a part is there, the part goes.
    asking.endpoint.send_page_request(request(Some(5), 1));
    assert_eq!(asking.ear.codes(), [(1, Success)]);
    // Now there is room for one.
    asking.endpoint.send_page_request(request(Some(5), 4));
    // Not the last: dropped, and there is nothing to answer.
    asking.endpoint.send_page_request(part(Some(5), 5));
    assert_eq!(asking.ear.codes(), []);
    let order: Vec<_> = taken(&asking.vm).iter().map(|of| of.group.get()).collect();
    assert_eq!(order, [2, 3, 4], "what was refused is not handed out");
    // What was taken counts until it is answered.
    asking.endpoint.send_page_request(request(Some(5), 6));
    assert_eq!(asking.ear.codes(), [(6, Success)]);
    asking.respond(&one, Invalid).unwrap();
    asking.ask(5, 6);
    assert_eq!(asking.ear.codes(), [(2, Invalid)]);
    let counters = asking.vm.page_request_counters();
    assert_eq!((counters.refused, counters.dropped), (2, 3));
    check(counters);
    // Another device has a limit of its own.
    let second = asking.vm.attach(RequesterId::from_bits(0x90)).unwrap();
    second.send_page_request(request(Some(5), 0));
    assert_eq!(taken(&asking.vm).len(), 1);
}

impl Asking {
    /// Sends a group of one request, which nobody takes.
    fn ask_last(&self, of: u32, index: u16) -> PageRequest {
        let request = request(Some(of), index);
        self.endpoint.send_page_request(request);
        PageRequest { requester: DEVICE, ..request }
    }
}

#[test]
fn no_policy_lets_a_device_fill_the_memory() {
    let asking = Asking::with(PageRequestPolicy {
        per_device: u32::MAX,
        timeout: None,
        ..PageRequestPolicy::default()
    });
    for _ in 0..PAGE_REQUEST_LIMIT + 10 {
        asking.endpoint.send_page_request(part(Some(5), 1));
    }
    assert_eq!(asking.vm.page_request_counters().dropped, 10);
    for _ in 0..PAGE_REQUEST_LIMIT + 10 {
        asking.endpoint.send_page_request(PageRequest::stop_marker(DEVICE, pasid(5)));
    }
    assert_eq!(taken(&asking.vm).len(), PAGE_REQUEST_LIMIT as usize);
}

#[test]
fn a_device_that_breaks_the_rules_hears_one_answer() {
    let asking = Asking::new();
    let first = asking.ask(5, 1);
    asking.endpoint.send_page_request(request(Some(5), 1));
    asking.endpoint.send_page_request(part(Some(6), 1));
    assert_eq!(asking.vm.take_page_request(), None);
    asking.respond(&first, Success).unwrap();
    asking.respond(&first, Success).unwrap_err();
    assert_eq!(asking.ear.codes(), [(1, Success)]);
    // A part of another address space is of a group that was given up.
    asking.endpoint.send_page_request(part(Some(5), 2));
    let whole = asking.ask_last(6, 2);
    assert_eq!(taken(&asking.vm), [whole]);
    asking.respond(&whole, Success).unwrap();
    assert_eq!(asking.ear.heard(), [answer(&whole, Success)]);
    assert_eq!(asking.vm.page_request_counters().malformed, 2);
    check(asking.vm.page_request_counters());
}

#[test]
fn nobody_answers_what_a_device_has_given_up() {
    let asking = Asking::new();
    let (one, _) = (asking.ask(5, 1), asking.ask_last(5, 2));
    asking.endpoint.forget_page_requests();
    assert_eq!(asking.vm.take_page_request(), None);
    asking.respond(&one, Success).unwrap_err();
    // It may use its indices again.
    let again = asking.ask(6, 1);
    asking.respond(&again, Success).unwrap();
    assert_eq!(asking.ear.heard(), [answer(&again, Success)]);
    let three = asking.ask(5, 3);
    let Asking { vm, endpoint, ear } = asking;
    let _ = endpoint.detach();
    vm.respond_page_request(answer(&three, Success)).unwrap_err();
    assert_eq!(ear.heard(), []);
    // The next with the number has nothing to do with it.
    let next = vm.attach(DEVICE).unwrap();
    let ear = Ear::of(&next);
    vm.respond_page_request(answer(&three, Success)).unwrap_err();
    assert_eq!(ear.heard(), []);
    assert_eq!(vm.page_request_counters().forgotten, 3);
    check(vm.page_request_counters());
}

#[test]
fn a_pasid_that_is_given_back_leaves_what_was_taken_to_its_taker() {
    let asking = Asking::new();
    let granted = asking.vm.alloc_pasid(PasidRange::ALL).unwrap();
    let number = granted.0.get();
    let (one, _two) = (asking.ask(number, 1), asking.ask_last(number, 2));
    asking.vm.free_pasid(granted).unwrap();
    assert_eq!(asking.ear.codes(), [(2, Invalid)]);
    let only = PasidRange::new(granted.0, granted.0).unwrap();
    asking.vm.alloc_pasid(only).unwrap_err();
    asking.respond(&one, Success).unwrap();
    assert_eq!(asking.ear.codes(), [(1, Success)]);
    assert_eq!(asking.vm.alloc_pasid(only), Ok(granted));
    check(asking.vm.page_request_counters());
}

#[test]
fn a_pasid_that_is_given_back_as_to_iommufd_leaves_no_request_unanswered() {
    let policy =
        PageRequestPolicy { taken: TakenGroups::Withdrawn, ..PageRequestPolicy::default() };
    let asking = Asking::with(policy);
    let granted = asking.vm.alloc_pasid(PasidRange::ALL).unwrap();
    let number = granted.0.get();
    let (one, _two) = (asking.ask(number, 1), asking.ask_last(number, 2));
    asking.endpoint.send_page_request(part(Some(number), 3));
    let other = asking.ask_last(number + 1, 4);
    asking.vm.free_pasid(granted).unwrap();
    assert_eq!(asking.ear.codes(), [(1, Invalid), (2, Invalid)]);
    asking.respond(&one, Success).unwrap_err();
    assert_eq!(taken(&asking.vm), [other], "what was withdrawn is not handed out");
    // One that is not the VM's changes nothing.
    let foreign = iommu::GuestPasid(pasid(number + 1));
    asking.vm.free_pasid(foreign).unwrap_err();
    assert_eq!(asking.ear.codes(), []);
    let none = PageRequest { requester: DEVICE, ..request(None, 5) };
    asking.endpoint.send_page_request(none);
    let _ = asking.vm.release_pasids();
    assert_eq!(asking.ear.codes(), [(4, Invalid)]);
    asking.respond(&none, Success).unwrap();
    check(asking.vm.page_request_counters());
}

#[test]
fn the_end_of_a_vm_answers_everything() {
    let asking = Asking::new();
    asking.ask(5, 1);
    asking.ask_last(6, 2);
    asking.endpoint.send_page_request(part(Some(6), 3));
    let ticket = asking.vm.close();
    wait(&asking.vm, ticket);
    assert_eq!(asking.ear.codes(), [(1, Invalid), (2, Invalid)]);
    assert_eq!(asking.vm.take_page_request(), None);
    let _ = asking.vm.close();
    assert_eq!(asking.ear.codes(), []);
    // A device that has not noticed yet is not left waiting.
    asking.endpoint.send_page_request(request(Some(5), 7));
    assert_eq!(asking.ear.codes(), [(7, Invalid)]);
    assert_eq!(asking.vm.take_page_request(), None);
    assert_eq!(asking.vm.tick(Duration::from_secs(1)), None);
    check(asking.vm.page_request_counters());
    assert_eq!(asking.vm.page_request_counters().outstanding, 0);
}

/// A device that asks again from inside of each answer, as often as it was told to.
struct Stubborn {
    endpoint: OnceLock<Weak<Endpoint>>,
    left: AtomicUsize,
    heard: Mutex<Vec<u16>>,
    depth: AtomicUsize,
}

impl PageResponses for Stubborn {
    fn respond(&self, response: PageResponse) {
        assert_eq!(self.depth.fetch_add(1, Ordering::Relaxed), 0, "one at a time");
        self.heard.lock().unwrap().push(response.group.get());
        let endpoint = self.endpoint.get().and_then(Weak::upgrade);
        let more = self
            .left
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1));
        if let (Some(endpoint), Ok(left)) = (endpoint, more) {
            endpoint.send_page_request(request(Some(1), (left % 512) as u16));
        }
        self.depth.fetch_sub(1, Ordering::Relaxed);
    }
}

#[test]
fn a_device_that_asks_from_inside_of_an_answer_does_not_grow_the_stack() {
    const TIMES: usize = 100_000;
    let policy = PageRequestPolicy { per_device: 0, timeout: None, ..PageRequestPolicy::default() };
    let config = VmConfig { page_requests: policy, ..VmConfig::named("stubborn") };
    let vm = SoftwareHost::new().create_vm(config).unwrap();
    let endpoint = Arc::new(vm.attach(DEVICE).unwrap());
    let stubborn = Arc::new(Stubborn {
        endpoint: OnceLock::from(Arc::downgrade(&endpoint)),
        left: AtomicUsize::new(TIMES),
        heard: Mutex::default(),
        depth: AtomicUsize::new(0),
    });
    endpoint.set_page_responses(Some(stubborn.clone()));
    endpoint.send_page_request(request(Some(1), 511));
    assert_eq!(stubborn.heard.lock().unwrap().len(), TIMES + 1);
    check(vm.page_request_counters());
}

#[test]
fn the_waker_rings_when_a_request_comes_while_none_waits() {
    let asking = Asking::new();
    let rung = Arc::new(AtomicUsize::new(0));
    let bell = rung.clone();
    asking.vm.set_fault_waker(Some(Arc::new(move || {
        bell.fetch_add(1, Ordering::Relaxed);
    })));
    for index in 0..3 {
        asking.endpoint.send_page_request(request(Some(5), index));
    }
    assert_eq!(rung.load(Ordering::Relaxed), 1);
    assert_eq!(taken(&asking.vm).len(), 3);
    asking.endpoint.send_page_request(request(Some(5), 3));
    assert_eq!(rung.load(Ordering::Relaxed), 2);
}

const SECOND: Duration = Duration::from_secs(1);

#[test]
fn what_nobody_answers_is_answered_in_time() {
    let timeout = Some(10 * SECOND);
    let asking = Asking::with(PageRequestPolicy { timeout, ..PageRequestPolicy::default() });
    assert_eq!(asking.vm.tick(100 * SECOND), Some(110 * SECOND));
    let one = asking.ask(5, 1);
    // It counts from the first tick after.
    assert_eq!(asking.vm.tick(105 * SECOND), Some(115 * SECOND));
    let two = asking.ask_last(5, 2);
    asking.endpoint.send_page_request(part(Some(5), 3));
    assert_eq!(asking.vm.tick(106 * SECOND), Some(115 * SECOND));
    let of = |asked: &PageRequest, age| OutstandingGroup {
        requester: DEVICE,
        pasid: asked.pasid,
        group: asked.group,
        queue: None,
        age: Some(age),
    };
    let outstanding = asking.vm.outstanding_page_requests();
    assert_eq!(outstanding, [of(&one, SECOND), of(&two, Duration::ZERO)]);
    assert_eq!(asking.vm.tick(115 * SECOND - Duration::from_nanos(1)), Some(115 * SECOND));
    assert_eq!(asking.ear.codes(), []);
    assert_eq!(asking.vm.tick(115 * SECOND), Some(116 * SECOND));
    assert_eq!(asking.ear.codes(), [(1, Invalid)]);
    let late = PageResponseError::NotOutstanding { requester: DEVICE, group: one.group };
    assert_eq!(asking.respond(&one, Success), Err(late));
    // A clock that goes back goes nowhere.
    assert_eq!(asking.vm.tick(SECOND), Some(116 * SECOND));
    // A part has nothing to be answered.
    assert_eq!(asking.vm.tick(1000 * SECOND), Some(1010 * SECOND));
    assert_eq!(asking.ear.codes(), [(2, Invalid)]);
    assert_eq!(taken(&asking.vm), [PageRequest { requester: DEVICE, ..part(Some(5), 3) }]);
    let counters = asking.vm.page_request_counters();
    assert_eq!((counters.timed_out, counters.late_answers), (2, 1));
    check(counters);
}

#[test]
fn a_tick_does_a_bounded_part_of_the_work() {
    let asking =
        Asking::with(PageRequestPolicy { timeout: Some(SECOND), ..PageRequestPolicy::default() });
    for index in 0..512 {
        asking.endpoint.send_page_request(request(Some(5), index));
    }
    let mut now = SECOND;
    let mut heard = 0;
    let mut ticks = 0;
    while heard < 512 {
        let next = asking.vm.tick(now).unwrap();
        assert!(next >= now);
        now = next;
        let codes = asking.ear.codes();
        assert!(codes.len() <= 256);
        heard += codes.len();
        ticks += 1;
        assert!(ticks < 10);
    }
    assert_eq!(asking.vm.tick(now), Some(now + SECOND));
    let never = Asking::with(PageRequestPolicy {
        timeout: None,
        per_device: 8,
        ..PageRequestPolicy::default()
    });
    never.ask(5, 1);
    assert_eq!(never.vm.tick(Duration::MAX), None);
}

#[test]
fn answers_go_wrong_on_purpose() {
    let asking = Asking::with(PageRequestPolicy {
        timeout: Some(100 * SECOND),
        per_device: 8,
        ..PageRequestPolicy::default()
    });
    asking.vm.inject_responses(Some(ResponseInjection::Twice));
    let one = asking.ask(5, 1);
    asking.respond(&one, Success).unwrap();
    assert_eq!(asking.ear.codes(), [(1, Success), (1, Success)]);

    asking.vm.inject_responses(Some(ResponseInjection::Drop { one_in: 2 }));
    let (two, three) = (asking.ask(5, 2), asking.ask(5, 3));
    asking.respond(&two, Success).unwrap();
    asking.respond(&three, Success).unwrap();
    assert_eq!(asking.ear.codes(), [(2, Success)]);
    // The guest does not know; the time-out does.
    asking.vm.tick(Duration::ZERO);
    assert_eq!(asking.vm.tick(100 * SECOND), Some(200 * SECOND));
    assert_eq!(asking.ear.codes(), [(3, Invalid)]);

    asking.vm.inject_responses(Some(ResponseInjection::Delay(5 * SECOND)));
    let (four, five) = (asking.ask(5, 4), asking.ask(6, 5));
    asking.respond(&four, Success).unwrap();
    asking.respond(&four, Invalid).unwrap_err();
    asking.respond(&five, Failure).unwrap();
    assert_eq!(asking.vm.tick(101 * SECOND), Some(106 * SECOND));
    assert_eq!(asking.ear.codes(), []);
    // Teardown does not wait for what is held back.
    asking.endpoint.forget_page_requests();
    let six = asking.ask(5, 6);
    asking.vm.tick(102 * SECOND);
    asking.respond(&six, Success).unwrap();
    asking.vm.inject_responses(None);
    assert_eq!(asking.vm.tick(103 * SECOND), Some(106 * SECOND));
    assert_eq!(asking.vm.tick(106 * SECOND), Some(108 * SECOND));
    assert_eq!(asking.ear.codes(), []);
    assert_eq!(asking.vm.tick(108 * SECOND), Some(208 * SECOND));
    assert_eq!(asking.ear.codes(), [(6, Success)]);
    check(asking.vm.page_request_counters());
}
