//! Portals, dedicated and shared queues, batches, drains, and who is served when.

mod rig;

use dsa::model::{Ran, Submission};
use dsa::spec::*;
use pci::Function;
use rig::*;

use CommandCode as Code;

/// Queue 0 dedicated with 4 entries, queue 1 shared with 8 and a threshold of 3, one engine.
fn both() -> Rig {
    let mut rig = Rig::new();
    rig.enable_function();
    rig.configure(0, 0, 4, user_mode(true).with_pasid(PASID));
    rig.configure(1, 0, 8, user_mode(false));
    rig.write32(WQCFG + 32 + 4, 3);
    rig.set_engines(0, 1);
    rig.enable(&[0, 1]);
    rig.engines.truncate(1);
    rig
}

/// A no-op with a record of its own.
fn noop(record: u64) -> Descriptor {
    Descriptor::new(Operation::Noop)
        .with_record(Rig::record_at(record))
        .with_flags(Flags::REQUEST_RECORD)
}

fn as_user(descriptor: Descriptor, pasid: u32) -> Descriptor {
    descriptor.with_submitter(Submitter::new().with_pasid(pasid))
}

#[test]
fn a_descriptor_in_pieces_through_any_slot_of_either_portal() {
    let mut rig = both();
    for (index, slot) in [0u64, 0x40, 0xfc0, 0x1000, 0x1040, 0x1fc0].into_iter().enumerate() {
        for size in [8, 16, 32, 64] {
            rig.clear_records();
            let bytes = noop(index as u64).to_bytes();
            for (piece, data) in bytes.chunks(size).enumerate() {
                assert_eq!(rig.wq(0).occupancy.occupancy(), 0);
                rig.device.bar_write(2, slot + (piece * size) as u64, data);
            }
            assert_eq!(rig.wq(0).occupancy.occupancy(), 1, "{size} at {slot:#x}");
            rig.settle();
            assert!(!rig.record(index as u64).status.is_pending());
        }
    }
    assert_eq!(rig.device.counters().portal_misordered, 0);
}

#[test]
fn stores_that_submit_nothing() {
    let rig = both();
    let bytes = noop(0).to_bytes();
    // Interrupt message storage portals, a shared queue, a disabled queue, one that is not there.
    for offset in [0x2000, 0x3000, 0x5000, 0x8000, 0x2_0000, !63] {
        rig.device.bar_write(2, offset, &bytes);
    }
    assert_eq!(rig.device.counters().portal_ignored, 6);
    for (offset, len) in [(0x1000, 4), (0x1008, 64), (0x1000, 63), (0x1000, 128), (0x1000, 0)] {
        rig.device.bar_write(2, offset, &[0; 128][..len]);
    }
    assert_eq!(rig.device.counters().portal_misordered, 5);
    assert_eq!(rig.wq(0).occupancy.occupancy(), 0);
    assert_eq!(rig.swerror(), SwError::default(), "none of it is reported");
}

#[test]
fn a_full_dedicated_queue_drops_and_says_so() {
    let mut rig = both();
    rig.write32(0x88, 1);
    for index in 0..5 {
        rig.post(0, &noop(index));
    }
    assert_eq!(rig.wq(0).occupancy.occupancy(), 4);
    let error = rig.swerror();
    assert_eq!((error.head.code(), error.head.wq()), (SwError::WQ_FULL, 0));
    assert!(error.head.wq_valid() && !error.head.descriptor_valid());
    assert_eq!(rig.interrupts.take(), [0]);
    assert_eq!(rig.device.counters().queue_full, 1);
    rig.settle();
    let done = [0, 1, 2, 3, 4].map(|index| !rig.record(index).status.is_pending());
    assert_eq!(done, [true, true, true, true, false]);
}

#[test]
fn shared_submissions_are_accepted_or_told_to_retry() {
    let mut rig = both();
    let descriptor = as_user(noop(0), 5);
    for _ in 0..3 {
        assert_eq!(rig.submit(1, Portal::LIMITED, &descriptor), Submission::Accepted);
    }
    assert_eq!(rig.submit(1, Portal::LIMITED, &descriptor), Submission::Retry, "the threshold");
    for _ in 3..8 {
        assert_eq!(rig.submit(1, Portal::UNLIMITED, &descriptor), Submission::Accepted);
    }
    assert_eq!(rig.submit(1, Portal::UNLIMITED, &descriptor), Submission::Retry, "the size");
    assert_eq!(rig.wq(1).occupancy.occupancy(), 8);
    // An entry is free again when its descriptor goes to an engine, not when that is done.
    let _ = rig.step(1);
    assert_eq!(rig.submit(1, Portal::UNLIMITED, &descriptor), Submission::Accepted);
    rig.settle();
    assert_eq!(rig.submit(1, Portal::LIMITED, &descriptor), Submission::Accepted);

    let refused = [
        (0, Portal::LIMITED, "dedicated"),
        (2, Portal::LIMITED, "disabled"),
        (8, Portal::LIMITED, "not there"),
        (usize::MAX, Portal::LIMITED, "not there at all"),
        (1, Portal { limited: false, ims: true }, "interrupt message storage"),
    ];
    for (wq, portal, what) in refused {
        assert_eq!(rig.submit(wq, portal, &descriptor), Submission::Retry, "{what}");
    }
    let counters = rig.device.counters();
    assert_eq!((counters.accepted, counters.retries), (10, 7));
    rig.start(Code::DisableDevice, 0);
    assert_eq!(rig.submit(1, Portal::UNLIMITED, &descriptor), Submission::Retry);
}

#[test]
fn a_threshold_above_the_size_acts_as_the_size() {
    let rig = both();
    rig.write32(WQCFG + 32 + 4, 0xffff);
    for _ in 0..8 {
        assert_eq!(rig.submit(1, Portal::LIMITED, &noop(0)), Submission::Accepted);
    }
    assert_eq!(rig.submit(1, Portal::LIMITED, &noop(0)), Submission::Retry);
    let rig = both();
    rig.write32(WQCFG + 32 + 4, 0);
    assert_eq!(rig.submit(1, Portal::LIMITED, &noop(0)), Submission::Retry);
}

#[test]
fn the_submitters_field_of_a_shared_queue_counts() {
    let mut rig = both();
    let lost = |submitter| {
        let descriptor = Descriptor::new(Operation::Noop).with_record(Iova(HOLE));
        descriptor.with_flags(Flags::REQUEST_RECORD).with_submitter(submitter)
    };
    let submitter = Submitter::new().with_pasid(0x12345);
    assert_eq!(rig.submit(1, Portal::LIMITED, &lost(submitter)), Submission::Accepted);
    rig.settle();
    assert_eq!(rig.swerror().head.pasid(), 0x12345);
    assert_eq!(rig.swerror().head.code(), Status::RecordFault as u8);
    rig.write64(0xc0, 3);
    // Privileged, while privileged mode is off: never to memory.
    let privileged = noop(0).with_submitter(submitter.with_privileged(true));
    assert_eq!(rig.submit(1, Portal::LIMITED, &privileged), Submission::Accepted);
    rig.settle();
    assert_eq!(rig.swerror().head.code(), Status::PrivilegeDisabled as u8);
    assert!(rig.swerror().head.privileged() && rig.record(0).status.is_pending());
    let reserved = noop(0).with_submitter(submitter.with_reserved(1));
    assert_eq!(rig.submit(1, Portal::LIMITED, &reserved), Submission::Accepted);
    rig.settle();
    assert_eq!(rig.record(0).status.status(), Ok(Status::ReservedField));
}

#[test]
fn pasid_commands_pick_out_their_pasid() {
    let mut rig = both();
    for (record, pasid) in [(0, 5), (1, 6), (2, 5)] {
        let submission = rig.submit(1, Portal::LIMITED, &as_user(noop(record), pasid));
        assert_eq!(submission, Submission::Accepted);
    }
    assert_eq!(rig.command(Code::AbortPasid, 5), 0);
    rig.start(Code::DrainPasid, 6);
    assert!(rig.command_status().active());
    rig.settle();
    assert!(!rig.command_status().active());
    let done = [0, 1, 2].map(|index| !rig.record(index).status.is_pending());
    assert_eq!(done, [false, true, false]);
}

/// Writes `members` as a list, each with a record from number 1 on; gives the batch.
fn batch(rig: &Rig, members: &[Descriptor]) -> Operation {
    let list = FLAT + 0x70_0000;
    rig.clear_records();
    for (index, member) in members.iter().enumerate() {
        let member = member.with_record(Rig::record_at(index as u64 + 1));
        let bytes = member.with_flags(Flags::REQUEST_RECORD).to_bytes();
        rig.fill(list + 64 * index as u64, &bytes);
    }
    Operation::Batch { list: Iova(list), count: members.len() as u32 }
}

fn statuses(rig: &Rig, count: u64) -> Vec<u8> {
    (0..count).map(|index| rig.record(index).status.into_bits()).collect()
}

/// Like `Rig::execute`, without clearing what `batch` wrote.
fn run(rig: &mut Rig, operation: Operation) -> (u8, u32) {
    let descriptor = Descriptor::new(operation).with_record(Rig::record_at(0));
    rig.post(0, &descriptor.with_flags(Flags::REQUEST_RECORD));
    rig.settle();
    let record = rig.record(0);
    (record.status.into_bits(), record.bytes_completed)
}

#[test]
fn batches() {
    let mut rig = Rig::dedicated();
    let copy = |n: u64| Descriptor::new(memory_move(FLAT + n * 64, FLAT + 0x1000 + n * 64, 64));
    let noop = Descriptor::new(Operation::Noop);
    let bad = Descriptor::new(memory_move(FLAT, FLAT, 0));
    let fence = |descriptor: Descriptor| descriptor.with_flags(Flags::FENCE);
    rig.fill(FLAT, &noise(1, 0x1000));

    let all: Vec<Descriptor> = (0..32).map(copy).collect();
    let operation = batch(&rig, &all);
    assert_eq!(run(&mut rig, operation), (0x01, 32));
    assert_eq!(statuses(&rig, 33), [1; 33]);
    assert_eq!(rig.bytes(FLAT + 0x1000, 32 * 64), rig.bytes(FLAT, 32 * 64));

    // An error does not keep the others from running.
    let operation = batch(&rig, &[noop, bad, copy(0), noop]);
    assert_eq!(run(&mut rig, operation), (0x05, 4));
    assert_eq!(statuses(&rig, 5), [5, 1, 0x13, 1, 1]);

    // Unless there is a fence.
    let operation = batch(&rig, &[noop, bad, copy(0), fence(noop), noop]);
    assert_eq!(run(&mut rig, operation), (0x05, 3));
    assert_eq!(statuses(&rig, 6), [5, 1, 0x13, 1, 0, 0]);
    let operation = batch(&rig, &[noop, fence(noop), bad]);
    assert_eq!(run(&mut rig, operation), (0x05, 3));
    assert_eq!(statuses(&rig, 4), [5, 1, 1, 0x13]);

    // A false predicate counts as a failure, no batch goes into a batch, and no drain.
    let unequal =
        Operation::ComparePattern { source: Iova(FLAT), pattern: 0, size: 8, expected: 0 };
    let check = Descriptor::new(unequal).with_flags(Flags::CHECK_RESULT);
    let drain = Operation::Drain { readback1: Iova(0), readback2: Iova(0) };
    let inner = Operation::Batch { list: Iova(FLAT), count: 2 };
    for (member, status) in
        [(check, 2), (Descriptor::new(drain), 0x10), (Descriptor::new(inner), 0x10)]
    {
        let operation = batch(&rig, &[member, fence(noop)]);
        assert_eq!(run(&mut rig, operation), (0x05, 1));
        assert_eq!(statuses(&rig, 3), [5, status, 0]);
    }
}

#[test]
fn members_take_after_their_batch() {
    let mut rig = Rig::dedicated();
    // A member's own PASID and privilege mean nothing.
    let forged = Descriptor::new(Operation::Noop).with_submitter(Submitter::from_bits(u32::MAX));
    let operation = batch(&rig, &[forged, forged]);
    assert_eq!(run(&mut rig, operation), (0x01, 2));
    // A member without a record of its own: SWERROR names batch and index.
    let list = FLAT + 0x70_0000;
    rig.fill(list, &Descriptor::new(Operation::Noop).to_bytes());
    rig.fill(list + 64, &Descriptor::new(memory_move(FLAT, FLAT, 0)).to_bytes());
    rig.fill(list + 128, &Descriptor::new(Operation::Noop).with_record(Iova(HOLE)).to_bytes());
    assert_eq!(run(&mut rig, Operation::Batch { list: Iova(list), count: 3 }), (0x05, 3));
    let error = rig.swerror();
    assert!(error.head.batch() && error.head.descriptor_valid());
    assert_eq!((error.head.code(), error.batch_index), (Status::BadTransferSize as u8, 1));
    assert_eq!(error.head.pasid(), PASID);
    assert!(!error.head.overflow(), "a no-op without a record to write lost nothing");
}

#[test]
fn a_member_whose_record_is_lost_has_failed() {
    let mut rig = Rig::dedicated();
    let list = FLAT + 0x70_0000;
    let lost = Descriptor::new(Operation::Noop).with_record(Iova(HOLE));
    rig.fill(list, &lost.with_flags(Flags::REQUEST_RECORD).to_bytes());
    rig.fill(list + 64, &Descriptor::new(Operation::Noop).with_flags(Flags::FENCE).to_bytes());
    assert_eq!(run(&mut rig, Operation::Batch { list: Iova(list), count: 2 }), (0x05, 1));
    assert_eq!(rig.swerror().head.code(), Status::RecordFault as u8);
    assert_eq!(rig.swerror().batch_index, 0);
}

#[test]
fn a_fault_on_the_list() {
    let mut rig = Rig::dedicated();
    let end = FLAT + FLAT_LEN;
    rig.fill(end - 128, &[0; 128]);
    let record =
        rig.expect(Operation::Batch { list: Iova(end - 128), count: 5 }, Status::BatchListFault);
    assert_eq!((record.bytes_completed, record.fault_address), (2, Iova(end)));
    assert!(!record.status.write());
    rig.expect(Operation::Batch { list: Iova(HOLE), count: 2 }, Status::BatchListFault);
    assert_eq!(rig.device.counters().bytes, 0);
    assert_eq!(rig.device.counters().descriptors, 4);
}

/// A drain waits for what other engines still do for its queue; others go on.
#[test]
fn drains_complete_after_everything_before_them() {
    let mut rig = Rig::new();
    rig.enable_function();
    rig.configure(0, 0, 16, user_mode(true).with_pasid(PASID));
    rig.configure(1, 0, 16, user_mode(true).with_pasid(PASID));
    rig.set_engines(0, 3);
    rig.enable(&[0, 1]);
    let copy = Descriptor::new(memory_move(FLAT, FLAT + 0x40_0000, 0x20_0000));
    let drain = Operation::Drain { readback1: Iova(0), readback2: Iova(0) };
    let asked =
        |d: Descriptor, n| d.with_record(Rig::record_at(n)).with_flags(Flags::REQUEST_RECORD);
    rig.post(0, &asked(copy, 0));
    rig.post(0, &asked(Descriptor::new(drain), 1));
    rig.post(0, &asked(Descriptor::new(Operation::Noop), 2));
    rig.post(1, &asked(Descriptor::new(drain), 3));
    assert_eq!(rig.engines[0].run(1), Ran::More);
    assert_eq!(rig.engines[1].run(100), Ran::Idle, "the drain is not for it yet");
    assert_eq!(statuses(&rig, 4), [0, 0, 0, 1], "the other queue's drain does not wait");
    assert_eq!(rig.engines[0].run(100), Ran::Idle);
    assert_eq!(statuses(&rig, 4), [1, 1, 1, 1]);
}

#[test]
fn a_drain_in_a_shared_queue_waits_for_its_pasid_only() {
    let mut rig = both();
    rig.reset_to_two_engines();
    let copy = as_user(Descriptor::new(memory_move(FLAT, FLAT + 0x40_0000, 0x20_0000)), 5);
    let drain = Descriptor::new(Operation::Drain { readback1: Iova(0), readback2: Iova(0) });
    let asked =
        |d: Descriptor, n| d.with_record(Rig::record_at(n)).with_flags(Flags::REQUEST_RECORD);
    let accepted = |submission| assert_eq!(submission, Submission::Accepted);
    accepted(rig.submit(1, Portal::LIMITED, &asked(copy, 0)));
    accepted(rig.submit(1, Portal::LIMITED, &as_user(asked(drain, 1), 6)));
    accepted(rig.submit(1, Portal::LIMITED, &as_user(asked(drain, 2), 5)));
    let _ = rig.engines[0].run(1);
    assert_eq!(rig.engines[1].run(100), Ran::Idle);
    assert_eq!(statuses(&rig, 3), [0, 1, 0]);
    rig.settle();
    assert_eq!(statuses(&rig, 3), [1, 1, 1]);
}

/// Priorities share an engine out, and nobody starves.
#[test]
fn queues_are_served_by_priority() {
    let mut rig = Rig::new();
    rig.enable_function();
    for (wq, priority) in [(0, 1), (1, 3), (2, 15)] {
        let mode = user_mode(true).with_pasid(PASID).with_priority(priority);
        rig.configure(wq, 0, 40, mode);
    }
    rig.set_engines(0, 1);
    rig.enable(&[0, 1, 2]);
    for wq in 0..3 {
        for _ in 0..40 {
            rig.post(wq, &Descriptor::new(Operation::Noop));
        }
    }
    // Two steps each: 38 descriptors are two rounds of 1 + 3 + 15.
    let _ = rig.step(2 * 38);
    let left = [0, 1, 2].map(|wq| rig.wq(wq).occupancy.occupancy());
    assert_eq!(left, [38, 34, 10]);
    rig.settle();
    assert_eq!([0, 1, 2].map(|wq| rig.wq(wq).occupancy.occupancy()), [0, 0, 0]);
}

#[test]
fn engines_work_for_their_group_only() {
    let mut rig = Rig::new();
    rig.enable_function();
    for group in 0..2 {
        rig.configure(group, group, 8, user_mode(true).with_pasid(PASID));
        rig.set_engines(group, 1 << group);
    }
    rig.enable(&[0, 1]);
    let woken = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
    let log = woken.clone();
    rig.device.set_waker(Some(std::sync::Arc::new(move |engine| log.lock().unwrap().push(engine))));
    rig.post(1, &noop(0));
    assert_eq!(*woken.lock().unwrap(), [1]);
    for engine in [0, 2, 3] {
        assert_eq!(rig.engines[engine].run(10), Ran::Idle);
    }
    assert!(rig.record(0).status.is_pending());
    assert_eq!(rig.engines[1].run(10), Ran::Idle);
    assert!(!rig.record(0).status.is_pending());
}

impl Rig {
    /// The queues of `both`, with two engines.
    fn reset_to_two_engines(&mut self) {
        assert_eq!(self.command(Code::DisableDevice, 0), 0);
        self.set_engines(0, 3);
        self.enable(&[0, 1]);
        self.engines.push(self.device.engine(1).unwrap());
    }
}
