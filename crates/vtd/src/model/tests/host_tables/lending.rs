//! What happens to the unit while the part that reads the guest's tables is on loan.

use super::*;

/// Polls apart once, and lends what there is to read.
fn lend(unit: &mut Unit) -> (Turn, Option<Reading<TestVm>>) {
    let mut turn = Turn::new();
    let _ = unit.model.poll_apart(&mut turn);
    let reading = unit.model.lend();
    (turn, reading)
}

#[test]
fn a_unit_that_reads_nothing_lends_nothing() {
    let mut unit = translating();
    let (_, reading) = lend(&mut unit);
    assert!(reading.is_none());
    let mut unit = Unit::new();
    assert!(unit.model.lend_anyway().is_none(), "the guest's own tables");
}

#[test]
fn the_host_is_called_by_who_borrows() {
    let mut unit = translating();
    unit.set_entry(5, FIRST_STAGE, 0x9000);
    let _ = unit.submit(&[entry_changed(5), wait(3)]);
    let (mut turn, reading) = lend(&mut unit);
    let mut reading = reading.unwrap();
    assert_eq!(unit.bound().len(), 0);
    assert!(!reading.run(&mut turn));
    assert_eq!(unit.bound(), BTreeMap::from([(place(5), stage_one(0x9000))]));
    // Until it is back, the queue stands still, and faults wait.
    unit.inject(fault(3));
    assert_eq!(unit.poll().progress, Progress::More);
    assert_eq!(unit.vm.memory().load_u32(STATUS), Ok(0));
    assert_eq!(unit.model.counters().faults_recorded, 0);
    assert!(unit.model.lend().is_none());
    unit.model.take_back(reading);
    let _ = unit.model.poll_apart(&mut turn);
    assert_eq!(unit.vm.memory().load_u32(STATUS), Ok(3));
    unit.drain();
    assert_eq!(unit.model.counters().faults_recorded, 1);
    assert_eq!(unit.counts().bound, 1);
}

#[test]
fn commands_meanwhile_count_when_it_is_back() {
    let mut unit = translating();
    unit.set_entry(0, PASS_THROUGH, 0);
    let _ = unit.submit(&[ENTRIES_GLOBAL]);
    let (mut turn, reading) = lend(&mut unit);
    let mut reading = reading.unwrap();
    assert!(unit.write32(0x18, QIE).schedule);
    assert_eq!(unit.read32(0x1c) & TE, TE);
    let other = RequesterId::from_bits(0x81);
    assert!(unit.model.add_device(other).schedule);
    let _ = reading.run(&mut turn);
    unit.model.take_back(reading);
    unit.drain();
    assert_eq!(unit.read32(0x1c), SRTP | QIE);
    let all = [(WITHOUT_PASID, By::StageTwo), ((other, None), By::StageTwo)];
    assert_eq!(unit.bound(), BTreeMap::from(all));
}

#[test]
fn a_reset_meanwhile_is_one_when_it_is_back() {
    let mut unit = translating();
    unit.set_entry(5, FIRST_STAGE, 0x9000);
    let _ = unit.submit(&[entry_changed(5)]);
    let (mut turn, reading) = lend(&mut unit);
    let mut reading = reading.unwrap();
    let _ticket = unit.model.reset();
    let _ = reading.run(&mut turn);
    unit.model.take_back(reading);
    unit.drain();
    assert_eq!(unit.bound(), BTreeMap::from([(WITHOUT_PASID, By::StageTwo)]));
    assert_eq!((unit.read32(0x1c), unit.vm.state().pasids.len()), (0, 0));
}

#[test]
fn a_pasid_is_unbound_by_who_borrows_before_it_is_given_back() {
    let virtual_commands = Some(VcmdLayout::Revision33);
    let mut unit = unit_with(Options { virtual_commands, ..Options::host_owned() });
    unit.start();
    unit.vm.state().pasids.insert(Pasid::new(5).unwrap());
    unit.set_entry(5, FIRST_STAGE, 0x9000);
    unit.tell(&[entry_changed(5)]);
    let _ = unit.write64(0xe00, 2 | 5 << 16);
    let (mut turn, reading) = lend(&mut unit);
    let mut reading = reading.unwrap();
    assert_eq!(unit.read64(0xe10) & 1, 1, "IP");
    assert_eq!(unit.vm.state().pasids.len(), 1);
    let _ = reading.run(&mut turn);
    assert_eq!(unit.bound(), BTreeMap::new());
    unit.model.take_back(reading);
    let _ = unit.model.poll_apart(&mut turn);
    assert_eq!(unit.read64(0xe10), 0);
    assert_eq!(unit.vm.state().pasids.len(), 0);
}
