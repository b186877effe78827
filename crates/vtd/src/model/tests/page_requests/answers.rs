//! Page group responses, and the drain.

use super::*;

/// A page group response to a request of group `group` with PASID 5.
fn response(group: u64, code: u64) -> [u64; 2] {
    [0x0000_0005_0080_0019 | code << 12, group << 3]
}

#[test]
fn the_guests_answer_reaches_the_device() {
    let mut unit = unit();
    for (group, code, expected) in [
        (0, 0, ResponseCode::Success),
        (0x1ff, 1, ResponseCode::Invalid),
        (3, 15, ResponseCode::Failure),
        // Every other code means the same to a device.
        (4, 2, ResponseCode::Failure),
    ] {
        unit.ask(request(group));
        let _ = unit.poll();
        let _ = unit.submit(&[response(group.into(), code)]);
        assert_eq!(unit.poll().progress, Progress::Idle);
        assert_eq!(unit.answers(), [answer(group, expected)]);
    }
    let counters = unit.model.counters();
    assert_eq!((counters.page_responses, counters.page_responses_unknown), (4, 0));
    assert_eq!(counters.automatic_responses, 0);
}

#[test]
fn the_last_bit_of_older_revisions_is_let_through() {
    let mut unit = unit();
    unit.ask(request(3));
    let _ = unit.poll();
    let _ = unit.submit(&[[0x0000_0005_0080_0019, 3 << 3 | 1 << 2]]);
    let _ = unit.poll();
    assert_eq!(unit.answers(), [answer(3, ResponseCode::Success)]);
}

#[test]
fn an_answer_to_nobody_is_counted_and_no_error() {
    let mut unit = unit();
    unit.ask(request(3));
    let _ = unit.poll();
    let _ = unit.submit(&[response(3, 0), response(3, 0), response(4, 0), wait(1)]);
    assert_eq!(unit.poll().progress, Progress::Idle);
    assert_eq!(unit.read32(0x34), 0);
    assert_eq!(unit.vm.memory().load_u32(STATUS), Ok(1));
    let counters = unit.model.counters();
    assert_eq!((counters.page_responses, counters.page_responses_unknown), (3, 2));
}

#[test]
fn there_are_no_stream_responses() {
    let mut unit = unit();
    let _ = unit.submit(&[[0xa, 0]]);
    let _ = unit.poll();
    assert_eq!((unit.read32(0x34) & IQE, unit.read64(0xb0)), (IQE, 3));
}

#[test]
fn a_draining_wait_comes_after_the_requests_before_it() {
    let mut unit = unit();
    let asked = 3 * u64::from(PAGE_REQUESTS_PER_POLL) / 2;
    for group in 0..asked {
        unit.ask(request(group as u16));
    }
    let drain = [0xa5 | 7 << 32, STATUS.0];
    let _ = unit.submit(&[drain]);
    assert_eq!(unit.poll().progress, Progress::More);
    assert_eq!(unit.vm.memory().load_u32(STATUS), Ok(0), "there may be more");
    assert_eq!(unit.poll().progress, Progress::Idle);
    assert_eq!(unit.vm.memory().load_u32(STATUS), Ok(7));
    assert_eq!((unit.read32(0xdc), unit.read64(0xc8)), (PPR, 32 * asked));
}

#[test]
fn a_draining_wait_takes_what_came_while_it_was_held() {
    let mut unit = unit();
    unit.vm.complete_late();
    let _ = unit.submit(&[IOTLB_ALL, [0xa5 | 7 << 32, STATUS.0]]);
    assert!(matches!(unit.poll().progress, Progress::Waiting(_)));
    // Between the poll's look at the devices and the end of what the wait waits for.
    unit.vm.complete();
    unit.ask(request(1));
    let mut turn = Turn { page_requests: 0, ..Turn::new() };
    let _ = unit.model.poll_apart(&mut turn);
    assert_eq!(unit.vm.memory().load_u32(STATUS), Ok(0));
    let _ = unit.model.poll_apart(&mut Turn::new());
    assert_eq!(unit.vm.memory().load_u32(STATUS), Ok(7));
    assert_eq!(unit.ring_entry(0), entry(1));
}

#[test]
fn responses_need_page_requests() {
    let mut unit = Unit::with(Options { page_requests: false, ..Options::default() });
    let _ = unit.write64(0x20, 0x4400);
    let _ = unit.write32(0x18, SRTP);
    let _ = unit.write64(0x90, QUEUE | 0x800);
    let _ = unit.write32(0x18, QIE);
    let _ = unit.submit(&[response(0, 0)]);
    let _ = unit.poll();
    assert_eq!(unit.read64(0xb0), 3);
    let _ = unit.submit(&[[0xa5, 0]]);
    let _ = unit.write32(0x34, IQE);
    let _ = unit.poll();
    assert_eq!(unit.read64(0xb0), 3, "the bad one is still at the head");
}
