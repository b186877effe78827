//! Interrupt messages: mask, pending, servicing.

use super::*;

const WAIT_WITH_INTERRUPT: [u64; 2] = [0x15, 0];
const IM: u32 = 1 << 31;
const IP: u32 = 1 << 30;

#[test]
fn a_wait_with_interrupt_sends_one_message_until_serviced() {
    let mut unit = Unit::scalable();
    unit.unmask_events();
    let _ = unit.submit(&[WAIT_WITH_INTERRUPT, WAIT_WITH_INTERRUPT]);
    let effects = unit.poll().effects;
    assert_eq!(effects.messages().collect::<Vec<_>>(), [COMPLETION_MESSAGE]);
    assert_eq!(unit.read32(0x9c), 1);
    let _ = unit.submit(&[WAIT_WITH_INTERRUPT]);
    assert_eq!(unit.poll().effects, Effects::default(), "IWC is set still");
    let _ = unit.write32(0x9c, 1);
    assert_eq!(unit.read32(0x9c), 0);
    let _ = unit.submit(&[WAIT_WITH_INTERRUPT]);
    assert_eq!(unit.poll().effects.completion, Some(COMPLETION_MESSAGE));
    assert_eq!(unit.model.counters().messages, 2);
}

#[test]
fn status_is_written_before_the_interrupt() {
    let mut unit = Unit::scalable();
    unit.unmask_events();
    unit.vm.complete_late();
    let _ = unit.submit(&[IOTLB_ALL, [0x35 | 5 << 32, STATUS.0]]);
    assert_eq!(unit.poll().effects, Effects::default());
    assert_eq!(unit.read32(0x9c), 0);
    unit.vm.complete();
    assert_eq!(unit.poll().effects.completion, Some(COMPLETION_MESSAGE));
    assert_eq!(unit.vm.memory().load_u32(STATUS), Ok(5));
}

#[test]
fn a_masked_event_is_pending_and_sent_when_unmasked() {
    let mut unit = Unit::scalable();
    unit.unmask_events();
    let _ = unit.write32(0xa0, IM);
    let _ = unit.submit(&[WAIT_WITH_INTERRUPT]);
    assert_eq!(unit.poll().effects, Effects::default());
    assert_eq!(unit.read32(0xa0), IM | IP);
    let effects = unit.write32(0xa0, 0);
    assert_eq!(effects.completion, Some(COMPLETION_MESSAGE));
    assert_eq!(unit.read32(0xa0), 0);
    assert_eq!(unit.write32(0xa0, 0), Effects::default(), "sent once");
}

#[test]
fn a_pending_event_that_is_serviced_is_not_sent() {
    let mut unit = Unit::scalable();
    unit.unmask_events();
    let _ = unit.write32(0xa0, IM);
    let _ = unit.submit(&[WAIT_WITH_INTERRUPT]);
    let _ = unit.poll();
    let _ = unit.write32(0x9c, 1);
    assert_eq!(unit.read32(0xa0), IM);
    assert_eq!(unit.write32(0xa0, 0), Effects::default());

    let _ = unit.write32(0x38, IM);
    unit.inject(fault(1));
    assert_eq!(unit.poll().effects, Effects::default());
    assert_eq!(unit.read32(0x38), IM | IP);
    let _ = unit.write32(0x22c, 1 << 31);
    assert_eq!(unit.read32(0x38), IM);
    assert_eq!(unit.write32(0x38, 0), Effects::default());
}

#[test]
fn a_fault_sends_one_message_until_all_are_serviced() {
    let mut unit = Unit::scalable();
    unit.unmask_events();
    unit.inject(fault(1));
    unit.inject(fault(2));
    assert_eq!(unit.poll().effects.fault, Some(FAULT_MESSAGE));
    unit.inject(fault(3));
    assert_eq!(unit.poll().effects, Effects::default());
    // A queue error beside them is no new condition.
    let _ = unit.submit(&[[0xf, 0]]);
    assert_eq!(unit.poll().effects, Effects::default());
    for record in 0..3 {
        let _ = unit.write32(0x22c + 16 * record, 1 << 31);
    }
    unit.inject(fault(4));
    assert_eq!(unit.poll().effects, Effects::default(), "IQE is set still");
    let _ = unit.write32(0x25c, 1 << 31);
    let _ = unit.write32(0x34, IQE);
    // The bad descriptor is there still: a new condition.
    assert_eq!(unit.poll().effects.fault, Some(ERROR_MESSAGE));
    let _ = unit.write32(0x34, IQE);
    unit.fill(0, &[IOTLB_ALL]);
    assert_eq!(unit.poll().effects, Effects::default());
    unit.inject(fault(5));
    assert_eq!(unit.poll().effects.fault, Some(FAULT_MESSAGE), "re-armed");
}

#[test]
fn a_message_to_memory_is_dropped() {
    let mut unit = Unit::scalable();
    unit.unmask_events();
    for address in [0, 0x1000, 0xfed0_0000, 0xfef0_0000] {
        let _ = unit.write32(0xa8, address);
        let _ = unit.submit(&[WAIT_WITH_INTERRUPT]);
        assert_eq!(unit.poll().effects, Effects::default());
        let _ = unit.write32(0x9c, 1);
    }
    assert_eq!(unit.model.counters().messages_dropped, 4);
}

#[test]
fn merged_effects_lose_nothing() {
    let completion = Effects { completion: Some(COMPLETION_MESSAGE), ..Effects::default() };
    let mut merged = Effects { fault: Some(FAULT_MESSAGE), schedule: true, ..Effects::default() };
    merged.merge(completion);
    let messages: Vec<_> = merged.messages().collect();
    assert_eq!(messages, [COMPLETION_MESSAGE, FAULT_MESSAGE]);
    assert!(merged.schedule);
}
