//! Where the host owns the PASID tables: requests come from its fault queue.

use super::*;

fn unit() -> Unit {
    let unit = unit_with(Options::host_owned());
    unit.vm.state().asked_for.no_failures = true;
    unit
}

impl Unit {
    fn ask_host(&self, cookie: u32, request: PageRequest) {
        self.vm.state().asked_for.ask_host(cookie, request);
    }

    fn fault_answers(&self) -> Vec<(u32, ResponseCode)> {
        core::mem::take(&mut self.vm.state().asked_for.fault_answers)
    }
}

/// A page group response to a request of group `group` with PASID `pasid`.
fn response(pasid: u64, group: u64, code: u64) -> [u64; 2] {
    [0x0080_0019 | pasid << 32 | code << 12, group << 3]
}

#[test]
fn the_guest_sees_its_own_numbers_and_the_host_its_cookies() {
    let mut unit = unit();
    unit.ask_host(0xdead, PageRequest { last: false, ..request(3) });
    unit.ask_host(0xdead, request(3));
    unit.ask_host(0xbeef, request(4));
    assert_eq!(unit.poll().effects.page_request, Some(EVENT));
    assert_eq!(unit.ring_entry(1), entry(3));
    assert_eq!(unit.ring_entry(2), entry(4));
    let _ = unit.submit(&[response(5, 4, 1), response(5, 3, 0)]);
    let _ = unit.poll();
    let answers = [(0xbeef, ResponseCode::Invalid), (0xdead, ResponseCode::Success)];
    assert_eq!(unit.fault_answers(), answers);
    assert_eq!(unit.answers(), [], "not by itself, too");
    assert_eq!(unit.model.counters().page_responses_unknown, 0);
}

#[test]
fn an_answer_with_another_pasid_or_twice_is_none() {
    let mut unit = unit();
    unit.ask_host(0xdead, request(3));
    let _ = unit.poll();
    let _ = unit.submit(&[response(6, 3, 0), response(5, 3, 0), response(5, 3, 0)]);
    let _ = unit.poll();
    assert_eq!(unit.fault_answers(), [(0xdead, ResponseCode::Success)]);
    assert_eq!(unit.model.counters().page_responses_unknown, 2);
}

#[test]
fn an_answer_that_the_host_gave_already_is_counted() {
    let mut unit = unit();
    unit.ask_host(0xdead, request(3));
    let _ = unit.poll();
    unit.vm.state().asked_for.cookies.clear();
    let _ = unit.submit(&[response(5, 3, 0)]);
    let _ = unit.poll();
    assert_eq!(unit.model.counters().page_responses_unknown, 1);
    // The index is free for another group.
    unit.ask_host(0xbeef, request(3));
    let _ = unit.poll();
    let _ = unit.submit(&[response(5, 3, 0)]);
    unit.fault_answers();
    let _ = unit.poll();
    assert_eq!(unit.fault_answers(), [(0xbeef, ResponseCode::Success)]);
}

#[test]
fn a_broken_interface_is_an_invalid_request_to_a_host_that_has_no_more() {
    let mut unit = unit();
    unit.ask_host(0xdead, request(3));
    let _ = unit.poll();
    let _ = unit.submit(&[response(5, 3, 15)]);
    let _ = unit.poll();
    let answers = [(0xdead, ResponseCode::Failure), (0xdead, ResponseCode::Invalid)];
    assert_eq!(unit.fault_answers(), answers);
    assert_eq!(unit.model.counters().page_responses_unknown, 0);
}

#[test]
fn overflow_and_refusal_are_answered_by_cookie() {
    let mut unit = unit();
    unit.model.inject_page_request_overflow(true);
    unit.ask_host(1, request(3));
    let _ = unit.poll();
    assert_eq!(unit.fault_answers(), [(1, ResponseCode::Success)]);
    unit.store(Gpa(CONTEXTS), &[CONTEXT & !(1 << 4), 0]);
    unit.ask_host(2, request(4));
    let _ = unit.poll();
    assert_eq!(unit.fault_answers(), [(2, ResponseCode::Invalid)]);
    assert_eq!(unit.read64(0x228) >> 32 & 0xff, 0x47);
}

#[test]
fn what_nothing_is_attached_to_is_refused() {
    let mut unit = unit();
    unit.ask(request(3));
    let _ = unit.poll();
    assert_eq!(unit.read64(0xc8), 0);
    assert_eq!(unit.answers(), [answer(3, ResponseCode::Invalid)]);
}

#[test]
fn a_reset_forgets_the_cookies() {
    let mut unit = unit();
    unit.ask_host(1, request(3));
    let _ = unit.poll();
    let _ = unit.model.reset();
    assert_eq!(unit.fault_answers(), [(1, ResponseCode::Invalid)]);
    let _ = unit.write64(0x20, ROOT | 0x400);
    let _ = unit.write32(0x18, SRTP);
    let _ = unit.write64(0x90, QUEUE | 0x800);
    let _ = unit.write32(0x18, QIE);
    let _ = unit.submit(&[response(5, 3, 0)]);
    for _ in 0..100 {
        let _ = unit.poll();
    }
    assert_eq!(unit.fault_answers(), []);
}
