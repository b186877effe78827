//! Each deliberate defect is noticed by the check that is there for it.
mod rig;

use dsa::model::sabotage::{set, Sabotage};
use dsa::spec::*;
use iommu::ResponseCode;
use rig::paged::*;
use rig::*;

const CHECKS: [(Sabotage, fn() -> bool); 7] = [
    (Sabotage::CorruptCopy, copies_are_exact),
    (Sabotage::ForgetCompletion, records_come),
    (Sabotage::ForgeablePasid, pasids_hold),
    (Sabotage::HastyAbort, aborts_wait),
    (Sabotage::IgnoreInvalidAnswer, refusals_count),
    (Sabotage::LoseBlocked, pages_that_come_are_used),
    (Sabotage::BlockTheQueue, others_go_on),
];

/// The defects are there for the whole process, so one test has them in turn.
#[test]
fn every_defect_is_noticed() {
    assert!(CHECKS.iter().all(|(_, check)| check()));
    for (defect, check) in CHECKS {
        set(Some(defect));
        assert!(!check(), "{defect:?}");
    }
    set(None);
    assert!(CHECKS.iter().all(|(_, check)| check()));
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

/// A device whose engine has set a copy aside, which waits for its first page.
fn waiting() -> Paged {
    let mut paged = Paged::dedicated(32);
    paged.rig.post(0, &recorded(memory_move(FLAT, FLAT + 0x1000, 64), 0));
    paged.rig.settle();
    paged
}

fn refusals_count() -> bool {
    let mut paged = waiting();
    paged.answer(&paged.request(), ResponseCode::Invalid);
    paged.rig.settle();
    paged.rig.record(0).status == StatusByte::of(Status::PageRequestInvalid, false)
}

fn pages_that_come_are_used() -> bool {
    let mut paged = waiting();
    paged.settle();
    paged.rig.record(0).status == StatusByte::of(Status::Success, false)
}

fn others_go_on() -> bool {
    let mut paged = waiting();
    paged.rig.post(
        0,
        &Descriptor::new(Operation::Noop)
            .with_record(Rig::record_at(1))
            .with_flags(Flags::REQUEST_RECORD),
    );
    paged.rig.settle();
    paged.rig.record(1).status == StatusByte::of(Status::Success, false)
}
