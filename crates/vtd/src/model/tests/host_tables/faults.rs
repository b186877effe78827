//! Faults of the host, as the guest sees them.

use super::*;

#[test]
fn faults_are_those_that_the_guests_tables_deserve() {
    let mut unit = translating();
    let not_present = FaultReason::PasidEntryNotPresent;
    // directory entry, PASID entry and the reason that is recorded for PASID 5.
    for (directory, entry, reason) in [
        (0, [0, 0], 0x51),
        (TABLE | 1 | 4, [0, 0], 0x52),
        (0xffff_f000 | 1, [0, 0], 0x58),
        (TABLE | 1, [0, 0], 0x59),
        (TABLE | 1, [FIRST_STAGE | 1 << 5 | 1, DOMAIN], 0x5a),
        (TABLE | 1, [2 << 6 | 2 << 2 | 1, DOMAIN], 0x5b),
        // In order, and not announced, or refused by the host.
        (TABLE | 1, [FIRST_STAGE | 1, DOMAIN], 0x59),
    ] {
        unit.store(Gpa(DIRECTORY), &[directory]);
        unit.store(Gpa(TABLE + 64 * 5), &entry);
        assert_eq!(unit.recorded(Fault { reason: not_present, ..fault(3) }), Some(reason));
    }
    let fault = Fault { reason: not_present, ..fault(3) };
    let without = Fault { pasid: None, ..fault };
    let wide = Fault { pasid: Pasid::new(SMALLEST), ..fault };
    assert_eq!(unit.recorded(wide), Some(0x46));
    let stranger = Fault { requester: RequesterId::from_bits(0x81), ..fault };
    assert_eq!(unit.recorded(stranger), Some(0x41));
    assert_eq!(unit.recorded(without), Some(0x59));
    let interrupt = Fault { address: Iova(0xfee0_0000), ..without };
    assert_eq!(unit.recorded(interrupt), Some(0x87));
    unit.set_context([CONTEXT & !0b1100, 0]);
    assert_eq!(unit.recorded(fault), Some(0x45));
    assert_eq!(unit.recorded(Fault { translation_request: true, ..fault }), Some(0x44));
    unit.set_context([CONTEXT | 1 << 5, 0]);
    assert_eq!(unit.recorded(fault), Some(0x42));
    unit.set_context([0, 0]);
    assert_eq!(unit.recorded(fault), Some(0x41));
    // A fault of a page table says itself what it is.
    let reason = FaultReason::NotPresent { stage: iommu::Stage::One, level: 1 };
    assert_eq!(unit.recorded(Fault { reason, ..fault }), Some(0x71));
    let _ = unit.write64(0x20, ROOT);
    let _ = unit.write32(0x18, TE | QIE | SRTP);
    unit.drain();
    assert_eq!(unit.recorded(fault), Some(0x30), "legacy mode is not there");
}

#[test]
fn faults_that_the_guest_does_not_want_are_not_recorded() {
    let mut unit = translating();
    let fault = fault(3);
    unit.store(Gpa(DIRECTORY), &[TABLE | 1]);
    unit.store(Gpa(TABLE + 64 * 5), &[2]); // FPD, not present
    assert_eq!(unit.recorded(fault), None);
    unit.store(Gpa(DIRECTORY), &[2]);
    assert_eq!(unit.recorded(fault), None);
    unit.set_context([2, 0]);
    assert_eq!(unit.recorded(fault), None);
    // Bound, with FPD.
    unit.set_context([CONTEXT, 0]);
    unit.set_entry(5, FIRST_STAGE | 2, 0x9000);
    unit.tell(&[ENTRIES_GLOBAL]);
    let reason = FaultReason::NotPresent { stage: iommu::Stage::One, level: 1 };
    let of_the_table = Fault { reason, ..fault };
    assert_eq!(unit.recorded(of_the_table), None);
    unit.set_entry(5, FIRST_STAGE, 0x9000);
    unit.tell(&[entry_changed(5)]);
    assert_eq!(unit.recorded(of_the_table), Some(0x71));
    // No unit is at work.
    let _ = unit.write32(0x18, QIE);
    unit.drain();
    assert_eq!(unit.recorded(fault), None);
    assert_eq!(unit.model.counters().faults_not_recorded, 5);
}

impl Unit {
    /// The reason that a fault of the host is recorded with.
    fn recorded(&mut self, fault: Fault) -> Option<u8> {
        let next = self.model.counters().faults_recorded;
        self.inject(fault);
        self.drain();
        let (at, recorded) = (0x228 + 16 * (next % 8), self.model.counters().faults_recorded);
        let reason = (recorded > next).then(|| (self.read64(at) >> 32) as u8);
        // Translation off takes the index back; it is the last thing that a test does.
        let _ = self.write32(at + 4, 1 << 31);
        reason
    }
}
