//! Each deliberate defect is noticed by the check that is there for it.
mod rig;

use dsa::model::sabotage::{set, Sabotage};
use dsa::spec::*;
use rig::*;

/// The defects are there for the whole process, so one test has them in turn.
#[test]
fn every_defect_is_noticed() {
    assert!(copies_are_exact() && records_come() && pasids_hold() && aborts_wait());
    set(Some(Sabotage::CorruptCopy));
    assert!(!copies_are_exact());
    set(Some(Sabotage::ForgetCompletion));
    assert!(!records_come());
    set(Some(Sabotage::ForgeablePasid));
    assert!(!pasids_hold());
    set(Some(Sabotage::HastyAbort));
    assert!(!aborts_wait());
    set(None);
    assert!(copies_are_exact() && records_come() && pasids_hold() && aborts_wait());
}

fn copies_are_exact() -> bool {
    let mut rig = Rig::dedicated();
    let data = noise(1, 5000);
    rig.fill(FLAT, &data);
    rig.expect(memory_move(FLAT, FLAT + 0x1_0000, 5000), Status::Success);
    rig.bytes(FLAT + 0x1_0000, 5000) == data
}

fn records_come() -> bool {
    Rig::dedicated().run_operation(Operation::Noop).status.into_bits() == 1
}

fn pasids_hold() -> bool {
    let mut rig = Rig::dedicated();
    let forged = Submitter::new().with_pasid(PASID + 1);
    let lost = Descriptor::new(Operation::Noop).with_record(Iova(HOLE)).with_submitter(forged);
    rig.post(0, &lost.with_flags(Flags::REQUEST_RECORD));
    rig.settle();
    rig.swerror().head.pasid() == PASID
}

fn aborts_wait() -> bool {
    let mut rig = Rig::dedicated();
    rig.post(0, &Descriptor::new(memory_move(FLAT, FLAT + 0x20_0000, 0x20_0000)));
    let _ = rig.step(3);
    rig.start(CommandCode::AbortAll, 0);
    rig.command_status().active()
}
