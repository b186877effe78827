//! A ring that is full, that is somewhere else, or that is made to look full.

use super::*;

/// Fills the ring up to its last entry.
fn full() -> Unit {
    let mut unit = unit();
    for group in 0..RING_ENTRIES - 1 {
        unit.ask(request(group as u16));
    }
    while unit.poll().progress == Progress::More {}
    assert_eq!(unit.read64(0xc8), 32 * (RING_ENTRIES - 1));
    assert_eq!(unit.read32(0xdc), PPR);
    unit
}

#[test]
fn a_full_ring_loses_requests_and_answers_groups() {
    let mut unit = full();
    let _ = unit.write32(0xdc, PPR);
    unit.ask(PageRequest { last: false, ..request(200) });
    unit.ask(request(200));
    unit.ask(PageRequest::stop_marker(device(), Pasid::new(5).unwrap()));
    let polled = unit.poll();
    assert_eq!(polled.effects.page_request, Some(EVENT), "an overflow is a condition of its own");
    assert_eq!(unit.read32(0xdc), PRO);
    assert_eq!(unit.read32(0x34), 1 << 7, "PRO of FSTS follows");
    assert_eq!(unit.answers(), [answer(200, ResponseCode::Success)]);
    assert_eq!(unit.model.counters().page_requests_lost, 3);
    assert_eq!(unit.ring_entry(RING_ENTRIES - 1), [0; 4]);

    // Room alone does not help: software has to say that it knows.
    let _ = unit.write64(0xc0, 32 * (RING_ENTRIES - 1));
    unit.ask(request(201));
    assert_eq!(unit.poll().effects, Effects::default());
    assert_eq!(unit.answers(), [answer(201, ResponseCode::Success)]);
    let _ = unit.write32(0xdc, PRO);
    assert_eq!((unit.read32(0xdc), unit.read32(0x34)), (0, 0));
    unit.ask(request(202));
    assert_eq!(unit.poll().effects.page_request, Some(EVENT));
    assert_eq!(unit.ring_entry(RING_ENTRIES - 1), entry(202));
    assert_eq!(unit.read64(0xc8), 0, "the ring goes round");
    assert_eq!(unit.answers(), []);
}

#[test]
fn a_ring_with_a_head_or_tail_outside_has_no_room() {
    for (head, tail) in [(4096, 0), (0, 4096), (0x7_ffe0, 0x7_ffe0)] {
        let mut unit = unit();
        let _ = unit.write64(0xc0, head);
        let _ = unit.write64(0xc8, tail);
        unit.ask(request(1));
        let _ = unit.poll();
        assert_eq!(unit.read32(0xdc), PRO, "{head:#x} {tail:#x}");
        assert_eq!((unit.read64(0xc0), unit.read64(0xc8)), (head, tail));
        assert_eq!(unit.answers(), [answer(1, ResponseCode::Success)]);
    }
}

#[test]
fn a_ring_without_memory_has_no_room() {
    for base in [0x10_0000, 0xf_f000 | 1 << 63, 0xffff_ffff_ffff_f007] {
        let mut unit = unit();
        let _ = unit.write64(0xd0, base);
        unit.ask(request(1));
        let _ = unit.poll();
        assert_eq!((unit.read32(0xdc), unit.read64(0xc8)), (PRO, 0), "{base:#x}");
        assert_eq!(unit.answers(), [answer(1, ResponseCode::Success)]);
    }
}

#[test]
fn the_size_of_the_ring_counts() {
    let mut unit = unit();
    let _ = unit.write64(0xd0, RING | 2);
    let _ = unit.write64(0xc8, 4 * 4096 - 32);
    let _ = unit.write64(0xc0, 4 * 4096 - 32);
    unit.ask(request(1));
    let _ = unit.poll();
    assert_eq!(unit.ring_entry(4 * RING_ENTRIES - 1), entry(1));
    assert_eq!(unit.read64(0xc8), 0);
}

#[test]
fn an_overflow_can_be_injected() {
    let mut unit = unit();
    unit.model.inject_page_request_overflow(true);
    unit.ask(request(1));
    let _ = unit.poll();
    assert_eq!((unit.read32(0xdc), unit.read64(0xc8)), (PRO, 0));
    assert_eq!(unit.answers(), [answer(1, ResponseCode::Success)]);
    let _ = unit.write32(0xdc, PRO);
    unit.ask(request(2));
    let _ = unit.poll();
    assert_eq!(unit.read32(0xdc), PRO, "as long as it is on");
    let _ = unit.write32(0xdc, PRO);
    unit.model.inject_page_request_overflow(false);
    unit.ask(request(3));
    let _ = unit.poll();
    assert_eq!((unit.read32(0xdc), unit.read64(0xc8)), (PPR, 32));
}
