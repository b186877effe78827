//! Devices that do not answer an invalidation of their device TLB.

use core::time::Duration;

use super::*;

const ITE: u32 = 1 << 6;
const TIMEOUT: Duration = Duration::from_secs(60);
/// Of all of [`device`]'s device TLB.
const DEVICE_TLB_ALL: [u64; 2] = [0x0000_0080_0000_0003, 0x7fff_ffff_ffff_f001];

/// A unit whose queue waits for the device's answer.
fn waiting() -> Unit {
    let mut unit = Unit::scalable();
    unit.unmask_events();
    unit.vm.complete_late();
    unit.vm.state().owing = Some(device());
    let _ = unit.submit(&[DEVICE_TLB_ALL, wait(1), DEVICE_TLB_ALL, wait(2)]);
    assert!(matches!(unit.poll().progress, Progress::Waiting(_)));
    unit
}

/// What the wait at the head waits for.
fn waits_for(unit: &mut Unit) -> Ticket {
    match unit.poll().progress {
        Progress::Waiting(ticket) => ticket,
        progress => panic!("{progress:?}"),
    }
}

fn at(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// What a tick gives that has nothing to wait for.
const NOTHING: Ticked = Ticked {
    effects: Effects { completion: None, page_request: None, fault: None, schedule: false },
    deadline: None,
};

#[test]
fn a_wait_is_given_up_when_the_device_is_late() {
    let mut unit = waiting();
    let first = unit.model.tick(at(100));
    assert_eq!(first, Ticked { deadline: Some(at(160)), ..NOTHING });
    let ticket = waits_for(&mut unit);
    assert_eq!(unit.model.tick(at(159)).deadline, Some(at(160)));
    assert_eq!((unit.read32(0x34), unit.read64(0x80)), (0, 32));
    assert_eq!(unit.vm.state().given_up, []);

    let late = unit.model.tick(at(100) + TIMEOUT);
    assert_eq!(late.effects.fault, Some(FAULT_MESSAGE));
    assert_eq!(late.deadline, None);
    assert_eq!(unit.read32(0x34), ITE);
    assert_eq!(unit.read64(0xb0), 0x0080_0000_0000, "ITESID");
    assert_eq!(unit.read64(0x80), 64, "the wait is taken");
    assert_eq!(unit.model.counters().invalidation_timeouts, 1);
    assert_eq!(unit.vm.state().given_up, [ticket], "what the wait waited for");

    // Nothing is fetched, and nothing is written, however much completes.
    unit.vm.complete();
    assert_eq!(unit.poll().progress, Progress::Idle);
    assert_eq!(unit.model.tick(at(1000)), NOTHING);
    assert_eq!(unit.read64(0x80), 64);
    assert_eq!(unit.vm.memory().load_u32(STATUS), Ok(0));

    assert!(unit.write32(0x34, ITE).schedule);
    assert_eq!((unit.read32(0x34), unit.read64(0xb0)), (0, 0));
    assert!(matches!(unit.poll().progress, Progress::Waiting(_)));
    unit.vm.complete();
    assert_eq!(unit.poll().progress, Progress::Idle);
    assert_eq!(unit.vm.memory().load_u32(STATUS), Ok(2), "the first wait never comes back");
}

#[test]
fn what_was_given_up_holds_up_no_other_wait() {
    let mut unit = waiting();
    let _ = unit.model.tick(at(0));
    let _ = unit.model.tick(TIMEOUT);
    let _ = unit.write64(0x88, 64);
    let _ = unit.write32(0x34, ITE);
    assert_eq!(unit.poll().progress, Progress::Idle);
    let _ = unit.submit(&[wait(7)]);
    assert_eq!(unit.poll().progress, Progress::Idle);
    assert_eq!(unit.vm.memory().load_u32(STATUS), Ok(7));
}

/// What is not a device's to answer is waited for still.
#[test]
fn accesses_in_flight_are_not_given_up() {
    let mut unit = waiting();
    let ticket = waits_for(&mut unit);
    let _ = unit.model.tick(at(0));
    let _ = unit.model.tick(TIMEOUT);
    let _ = unit.write64(0x88, 64);
    // Of what the wait waited for, an access is in flight.
    unit.vm.state().completed = 0;
    let _ = unit.write32(0x34, ITE);
    let _ = unit.submit(&[wait(7)]);
    assert_eq!(waits_for(&mut unit), ticket);
    unit.vm.complete();
    assert_eq!(unit.poll().progress, Progress::Idle);
    assert_eq!(unit.vm.memory().load_u32(STATUS), Ok(7));
}

#[test]
fn a_late_answer_in_time_is_no_error() {
    let mut unit = waiting();
    assert!(unit.model.tick(at(0)).deadline.is_some());
    unit.vm.complete();
    // The clock may be looked at before the queue is.
    let ticked = unit.model.tick(TIMEOUT);
    assert!(ticked.effects.schedule);
    assert_eq!(ticked.deadline, None);
    let _ = unit.poll();
    assert_eq!(unit.vm.memory().load_u32(STATUS), Ok(1));
    // The next wait has its own time.
    assert_eq!(unit.model.tick(TIMEOUT).deadline, Some(TIMEOUT * 2));
    assert_eq!(unit.read32(0x34), 0);
}

#[test]
fn only_a_devices_answer_runs_out_of_time() {
    let mut unit = Unit::scalable();
    unit.vm.complete_late();
    let _ = unit.submit(&[IOTLB_ALL, wait(1)]);
    assert!(matches!(unit.poll().progress, Progress::Waiting(_)));
    assert_eq!(unit.model.tick(at(0)), NOTHING);
    assert_eq!(unit.model.tick(TIMEOUT * 10), NOTHING);
    // Another device's answer starts anew.
    unit.vm.state().owing = Some(device());
    let _ = unit.poll();
    assert_eq!(unit.model.tick(at(0)).deadline, Some(TIMEOUT));
    unit.vm.state().owing = Some(RequesterId::from_bits(0x88));
    assert!(unit.model.tick(TIMEOUT).effects.schedule);
    let _ = unit.poll();
    assert_eq!(unit.model.tick(TIMEOUT).deadline, Some(TIMEOUT * 2));
    assert_eq!(unit.model.counters().invalidation_timeouts, 0);
}

#[test]
fn the_end_of_time_is_no_overflow() {
    let mut unit = waiting();
    assert_eq!(unit.model.tick(Duration::MAX).deadline, None);
    assert_eq!(unit.read32(0x34), ITE, "the clock cannot go any further");
}

#[test]
fn a_reset_clears_the_error_and_what_was_held() {
    let mut unit = waiting();
    let _ = unit.model.tick(at(0));
    let _ = unit.model.reset();
    assert_eq!(unit.model.tick(TIMEOUT), NOTHING);
    let mut unit = waiting();
    let _ = unit.model.tick(at(0));
    let _ = unit.model.tick(TIMEOUT);
    let _ = unit.model.reset();
    assert_eq!((unit.read32(0x34), unit.read64(0xb0)), (0, 0));
}

#[test]
fn a_queue_that_is_switched_off_has_no_deadline() {
    let mut unit = waiting();
    let _ = unit.model.tick(at(0));
    let _ = unit.write32(0x18, 0);
    assert_eq!(unit.model.tick(TIMEOUT), NOTHING);
    assert_eq!(unit.read32(0x34), 0);
}
