//! How descriptors end: checks, records, SWERROR, interrupts, partial completions, refusals.

mod rig;

use dsa::spec::*;
use pci::Function;
use rig::*;

use CommandCode as Code;

/// An operation that does nothing wrong, of each kind, on disjoint pieces of flat memory.
fn good(opcode: Opcode) -> Operation {
    let [a, b, c] = [FLAT, FLAT + 0x4000, FLAT + 0x8000].map(Iova);
    let flags = DifFlags::new();
    match opcode {
        Opcode::Noop => Operation::Noop,
        Opcode::Batch => Operation::Batch { list: Iova(FLAT + 0xc000), count: 2 },
        Opcode::Drain => Operation::Drain { readback1: Iova(0), readback2: Iova(0) },
        Opcode::MemoryMove => Operation::MemoryMove { source: a, destination: b, size: 64 },
        Opcode::Fill => Operation::Fill { pattern: 1, destination: b, size: 64 },
        Opcode::Compare => Operation::Compare { source1: a, source2: b, size: 64, expected: 0 },
        Opcode::ComparePattern => {
            Operation::ComparePattern { source: a, pattern: 0, size: 64, expected: 0 }
        }
        Opcode::CreateDelta => Operation::CreateDelta {
            source1: a,
            source2: b,
            size: 64,
            delta: c,
            max_delta_size: 80,
            expected_mask: 1,
        },
        Opcode::ApplyDelta => {
            Operation::ApplyDelta { delta: c, destination: a, size: 64, delta_size: 10 }
        }
        Opcode::Dualcast => {
            Operation::Dualcast { source: a, destination1: b, destination2: c, size: 64 }
        }
        Opcode::Crc => Operation::Crc { source: a, size: 64, seed: 0, seed_address: Iova(0) },
        Opcode::CopyCrc => Operation::CopyCrc {
            source: a,
            destination: b,
            size: 64,
            seed: 0,
            seed_address: Iova(0),
        },
        Opcode::DifCheck => Operation::DifCheck {
            source: a,
            size: 520,
            source_flags: SourceFlags::new(),
            flags,
            source_tags: DifTags::default(),
        },
        Opcode::DifInsert => Operation::DifInsert {
            source: a,
            destination: b,
            size: 512,
            destination_flags: DestinationFlags::new(),
            flags,
            destination_tags: DifTags::default(),
        },
        Opcode::DifStrip => Operation::DifStrip {
            source: a,
            destination: b,
            size: 520,
            source_flags: SourceFlags::new(),
            flags,
            source_tags: DifTags::default(),
        },
        Opcode::DifUpdate => Operation::DifUpdate {
            source: a,
            destination: b,
            size: 520,
            source_flags: SourceFlags::new(),
            destination_flags: DestinationFlags::new(),
            flags,
            source_tags: DifTags::default(),
            destination_tags: DifTags::default(),
        },
        Opcode::CacheFlush => Operation::CacheFlush { destination: a, size: 64 },
    }
}

fn two_noops(rig: &Rig) {
    rig.fill(FLAT + 0xc000, &[0; 128]);
}

/// Every flag of every operation: exactly the allowed ones pass.
#[test]
fn flags_are_checked_bit_by_bit() {
    let mut rig = Rig::dedicated();
    two_noops(&rig);
    // Not here: fence is for batches, block on fault is off, interrupts are for the privileged,
    // there are no readback addresses, and no third address without a seed in memory.
    let never = Flags::FENCE | Flags::BLOCK_ON_FAULT | Flags::REQUEST_INTERRUPT;
    for &opcode in Opcode::ALL {
        let mut allowed = Flags::allowed(opcode).difference(never);
        match opcode {
            Opcode::Drain => allowed &= Flags::from_bits_retain(0x100c),
            Opcode::Crc | Opcode::CopyCrc => allowed.remove(Flags::ADDRESS3_TC),
            _ => {}
        }
        for bit in 0..24 {
            let flag = Flags::from_bits_retain(1 << bit);
            let record = rig.execute(Descriptor::new(good(opcode)).with_flags(flag));
            let status = record.status.status().unwrap();
            if allowed.contains(flag) {
                assert_ne!(status, Status::BadFlags, "{opcode:?} {flag:?}");
            } else {
                assert_eq!(status, Status::BadFlags, "{opcode:?} {flag:?}");
                assert_eq!(record.invalid_flags(), flag.bits(), "{opcode:?}");
                assert_eq!(record.bytes_completed, 0);
            }
        }
    }
}

/// Operations whose result is in the record cannot do without one.
#[test]
fn missing_flags() {
    for &opcode in Opcode::ALL {
        let mut rig = Rig::dedicated();
        two_noops(&rig);
        rig.post(0, &Descriptor::new(good(opcode)));
        rig.settle();
        let needs = opcode == Opcode::Drain || !Flags::required(opcode).is_empty();
        let error = rig.swerror();
        assert_eq!(error.head.valid(), needs, "{opcode:?}");
        if needs {
            assert_eq!(error.head.code(), Status::BadFlags as u8);
            assert_eq!(error.head.opcode(), opcode as u8);
            assert_eq!((error.head.wq(), error.head.pasid()), (0, PASID));
            assert!(error.head.wq_valid() && error.head.descriptor_valid() && !error.head.batch());
        }
    }
}

#[test]
fn operation_codes_that_are_none() {
    let mut rig = Rig::dedicated();
    for code in 0..=255u8 {
        let mut descriptor = Descriptor::new(Operation::Noop);
        descriptor.control.set_opcode(code);
        let record = rig.execute(descriptor);
        let known = Opcode::try_from(code).is_ok();
        assert_eq!(record.status.status() == Ok(Status::BadOpcode), !known, "{code:#x}");
    }
}

#[test]
fn reserved_fields() {
    let mut rig = Rig::dedicated();
    two_noops(&rig);
    for &opcode in Opcode::ALL {
        let mut descriptor = Descriptor::new(good(opcode));
        descriptor.operands[38 - 16] = 1;
        let status = rig.execute(descriptor).status.status();
        assert_eq!(status, Ok(Status::ReservedField), "{opcode:?}");
        // The handle is reserved while no interrupt is asked for.
        let mut descriptor = Descriptor::new(good(opcode));
        descriptor.operands[20] = 1;
        let status = rig.execute(descriptor).status.status();
        assert_eq!(status, Ok(Status::ReservedField), "{opcode:?}");
    }
}

#[test]
fn operands_that_cannot_be() {
    let mut rig = Rig::dedicated();
    let [a, b] = [Iova(FLAT), Iova(FLAT + 0x4000)];
    let over = (1 << 21) + 1;
    for &opcode in Opcode::ALL {
        let operation = good(opcode);
        if operation.size().is_none() {
            continue;
        }
        for size in [0u32, over, u32::MAX] {
            let mut descriptor = Descriptor::new(operation);
            descriptor.operands[16..20].copy_from_slice(&size.to_le_bytes());
            let status = rig.execute(descriptor).status.status();
            assert_eq!(status, Ok(Status::BadTransferSize), "{opcode:?} of {size}");
        }
    }
    let create = |size, delta, max_delta_size| Operation::CreateDelta {
        source1: a,
        source2: b,
        size,
        delta: Iova(delta),
        max_delta_size,
        expected_mask: 0,
    };
    let delta = FLAT + 0x10_0000;
    rig.expect(create(0x8_0000 + 8, delta, 80), Status::BadTransferSize);
    rig.expect(create(64, delta, 79), Status::BadDeltaSize);
    rig.expect(create(64, delta, over), Status::BadDeltaSize);
    rig.expect(create(64, delta + 4, 80), Status::Misaligned);
    rig.expect(create(60, delta, 80), Status::Misaligned);
    rig.expect(create(64, FLAT + 56, 80), Status::Overlap);
    rig.expect(create(64, FLAT + 0x4000 - 72, 80), Status::Overlap);
    // "Should" be a multiple of ten, and need not.
    rig.expect(create(64, delta, 8192), Status::Success);
    let apply = |destination, size, delta_size| Operation::ApplyDelta {
        delta: Iova(delta),
        destination: Iova(destination),
        size,
        delta_size,
    };
    rig.expect(apply(FLAT, 64, 0), Status::BadDeltaSize);
    rig.expect(apply(FLAT, 64, 15), Status::BadDeltaSize);
    rig.expect(apply(FLAT, 64, 2_097_160), Status::BadDeltaSize);
    rig.expect(apply(FLAT + 4, 64, 10), Status::Misaligned);
    rig.expect(apply(delta - 56, 64, 10), Status::Overlap);
    let dualcast = |first, second| Operation::Dualcast {
        source: a,
        destination1: Iova(first),
        destination2: Iova(second),
        size: 0x1001,
    };
    rig.expect(dualcast(FLAT + 0x4000, FLAT + 0x8001), Status::DualcastAlignment);
    rig.expect(dualcast(FLAT + 0x4000, FLAT + 0x5000), Status::Overlap);
    rig.expect(dualcast(FLAT + 0x1000, FLAT + 0x8000), Status::Overlap);
    rig.expect(dualcast(FLAT + 0x8000, FLAT - 0x1000), Status::Overlap);
    let seeded = Operation::Crc { source: a, size: 1, seed: 0, seed_address: Iova(FLAT + 2) };
    let record = rig.execute(Descriptor::new(seeded).with_flags(Flags::CRC_READ_SEED));
    assert_eq!(record.status.status(), Ok(Status::Misaligned));
    let onto = |size| Operation::CopyCrc {
        source: a,
        destination: Iova(FLAT + 99),
        size,
        seed: 0,
        seed_address: Iova(0),
    };
    rig.expect(onto(100), Status::Overlap);
    rig.expect(onto(99), Status::Success);
    rig.expect(Operation::Batch { list: Iova(FLAT + 32), count: 2 }, Status::ListAlignment);
    for count in [0, 1, 33, u32::MAX] {
        rig.expect(Operation::Batch { list: a, count }, Status::BadBatchCount);
    }
}

#[test]
fn dif_operands_that_cannot_be() {
    let mut rig = Rig::dedicated();
    let check = |size, flags| Operation::DifCheck {
        source: Iova(FLAT),
        size,
        source_flags: SourceFlags::new(),
        flags,
        source_tags: DifTags::default(),
    };
    rig.expect(check(512, DifFlags::new()), Status::BadTransferSize);
    rig.expect(check(519, DifFlags::new()), Status::BadTransferSize);
    rig.expect(check(520, DifFlags::from_bits(0x10)), Status::ReservedField);
    let insert = |destination, size, flags| Operation::DifInsert {
        source: Iova(FLAT),
        destination: Iova(destination),
        size,
        destination_flags: DestinationFlags::from_bits(flags),
        flags: DifFlags::new(),
        destination_tags: DifTags::default(),
    };
    rig.expect(insert(FLAT + 0x4000, 520, 0), Status::BadTransferSize);
    rig.expect(insert(FLAT + 0x1ff, 512, 0), Status::Overlap);
    rig.expect(insert(FLAT - 519, 512, 0), Status::Overlap);
    rig.expect(insert(FLAT + 0x4000, 512, 1), Status::ReservedField);
    for pass_through in [0x08, 0x20, 0x40] {
        rig.expect(insert(FLAT + 0x4000, 512, pass_through), Status::ReservedField);
    }
}

#[test]
fn success_needs_no_record_and_errors_write_one() {
    let mut rig = Rig::dedicated();
    let record = Rig::record_at(0);
    rig.post(0, &Descriptor::new(memory_move(FLAT, FLAT + 64, 8)).with_record(record));
    rig.settle();
    assert!(rig.record(0).status.is_pending());
    rig.post(0, &Descriptor::new(memory_move(FLAT, FLAT + 64, 0)).with_record(record));
    rig.settle();
    assert_eq!(rig.record(0).status.status(), Ok(Status::BadTransferSize));
    rig.clear_records();
    rig.post(0, &Descriptor::new(memory_move(FLAT, HOLE, 8)).with_record(record));
    rig.settle();
    assert_eq!(rig.record(0).status.into_bits(), 0x83);
    assert_eq!(rig.swerror(), SwError::default());
}

#[test]
fn records_that_cannot_be_written_go_to_swerror() {
    let mut rig = Rig::dedicated();
    rig.write32(0x88, 1);
    let descriptor = |record| {
        Descriptor::new(memory_move(FLAT, FLAT + 64, 8))
            .with_record(Iova(record))
            .with_flags(Flags::REQUEST_RECORD)
    };
    rig.fill(FLAT, b"moved it");
    rig.post(0, &descriptor(HOLE + 32));
    rig.settle();
    let error = rig.swerror();
    assert_eq!(error.head.code(), Status::RecordFault as u8);
    assert!(error.head.valid() && error.head.write() && !error.head.overflow());
    assert_eq!((error.head.opcode(), error.head.pasid()), (3, PASID));
    assert_eq!(error.address, Iova(HOLE + 32));
    assert_eq!(rig.bytes(FLAT + 64, 8), b"moved it");
    assert_eq!((rig.read32(0x98), rig.interrupts.take()), (1, vec![0]));

    // The first one is kept, the next sets overflow, and raises nothing.
    rig.post(0, &descriptor(RECORDS + 16));
    rig.settle();
    let second = rig.swerror();
    assert!(second.head.overflow());
    assert_eq!(second.head.code(), Status::RecordFault as u8);
    assert_eq!(rig.interrupts.take(), []);
    assert_eq!(rig.device.counters().software_errors, 2);

    // As the driver does: write the low bits back.
    rig.write64(0xc0, 3);
    assert!(!rig.swerror().head.valid() && !rig.swerror().head.overflow());
    rig.post(0, &descriptor(RECORDS + 16));
    rig.settle();
    let error = rig.swerror();
    assert_eq!(error.head.code(), Status::RecordAlignment as u8);
    assert!(!error.head.overflow());
    assert!(rig.record(0).status.is_pending());
    assert_eq!(rig.device.counters().records_lost, 1);
}

#[test]
fn the_record_is_at_the_very_top_of_the_address_space() {
    let mut rig = Rig::dedicated();
    let top = Descriptor::new(memory_move(u64::MAX - 3, FLAT, 8)).with_record(Iova(!31));
    rig.post(0, &top);
    rig.settle();
    assert_eq!(rig.swerror().address, Iova(!31));
    let record = rig.run_operation(memory_move(FLAT, u64::MAX - 3, 8));
    assert_eq!(record.status.into_bits(), 0x83);
    assert_eq!(record.fault_address, Iova(u64::MAX - 3));
}

/// Without translation requests the device does not learn of faults before it accesses: reads
/// come back as errors, writes are lost.
#[test]
fn faults_without_ats() {
    let mut rig = Rig::new();
    rig.device.config_write(0x04, &6u16.to_le_bytes());
    rig.device.config_write(0x236, &1u16.to_le_bytes());
    rig.configure(0, 0, 16, user_mode(true).with_pasid(PASID));
    rig.set_engines(0, 1);
    rig.enable(&[0]);
    let end = FLAT + FLAT_LEN;
    let record = rig.expect(memory_move(HOLE, FLAT, 64), Status::ReadError);
    assert_eq!(record.fault_address, Iova(HOLE));
    let record = rig.expect(memory_move(end - 0x800, FLAT, 0x1000), Status::ReadError);
    assert_eq!(record.bytes_completed, 0x800);
    rig.fill(FLAT, &[7; 0x1000]);
    rig.expect(memory_move(FLAT, end - 0x800, 0x1000), Status::Success);
    assert_eq!(rig.bytes(end - 0x800, 0x800), [7; 0x800]);
    let lost = Descriptor::new(Operation::Noop).with_record(Iova(HOLE));
    rig.post(0, &lost.with_flags(Flags::REQUEST_RECORD));
    rig.settle();
    assert_eq!(rig.swerror(), SwError::default(), "a lost write is not noticed");
}

/// MSI-X permissions, as the kernel sets them up for its own queues.
#[test]
fn completion_interrupts() {
    let mut rig = Rig::new();
    rig.enable_function();
    rig.device.config_write(0x236, &5u16.to_le_bytes());
    rig.configure(0, 0, 8, user_mode(true).with_pasid(PASID));
    rig.configure(1, 0, 8, user_mode(true).with_pasid(PASID).with_privileged(true));
    rig.configure(2, 0, 8, user_mode(true).with_pasid_enable(false));
    rig.set_engines(0, 1);
    rig.write32(0x80, 0x1060);
    rig.enable(&[0, 1, 2]);
    let run = |rig: &mut Rig, wq, handle| {
        rig.clear_records();
        let noop = Descriptor::new(Operation::Noop).with_record(Rig::record_at(0));
        rig.post(wq, &noop.with_flags(Flags::REQUEST_RECORD).with_interrupt(handle));
        rig.settle();
        (rig.record(0).status.status().unwrap(), rig.interrupts.take())
    };
    // No PASID in the permission: only the queue without one may use it.
    let bad = (Status::BadInterruptHandle, vec![]);
    assert_eq!(run(&mut rig, 0, 1), bad);
    assert_eq!(run(&mut rig, 1, 1), bad);
    assert_eq!(run(&mut rig, 2, 1), (Status::Success, vec![1]));
    assert_eq!(run(&mut rig, 2, 9), bad, "beyond the table");
    assert_eq!(run(&mut rig, 2, 0xffff), bad);
    let permission = MsixPerm::new().with_pasid_enable(true).with_pasid(PASID);
    rig.write32(MSIXPERM + 3 * 8, permission.into_bits());
    assert_eq!(run(&mut rig, 0, 3), (Status::Success, vec![3]));
    assert_eq!(run(&mut rig, 1, 3), (Status::Success, vec![3]));
    assert_eq!(run(&mut rig, 2, 3), bad);
    rig.write32(MSIXPERM + 3 * 8, permission.with_pasid(PASID + 1).into_bits());
    assert_eq!(run(&mut rig, 0, 3), bad);
    rig.write32(MSIXPERM + 3 * 8, permission.with_ignore(true).into_bits());
    assert_eq!(run(&mut rig, 0, 3), (Status::Success, vec![]), "ignored");
    // An error still interrupts, once the record is written.
    rig.write32(MSIXPERM + 3 * 8, permission.into_bits());
    let bad_size = Descriptor::new(memory_move(FLAT, FLAT, 0)).with_record(Rig::record_at(0));
    rig.post(0, &bad_size.with_interrupt(3));
    rig.settle();
    assert_eq!(rig.interrupts.take(), [3]);
    assert_eq!(rig.record(0).status.status(), Ok(Status::BadTransferSize));
}

#[test]
fn user_interrupts_are_off_at_first() {
    let mut rig = Rig::dedicated();
    let permission = MsixPerm::new().with_pasid_enable(true).with_pasid(PASID);
    rig.write32(MSIXPERM + 8, permission.into_bits());
    let record = rig.execute(Descriptor::new(Operation::Noop).with_interrupt(1));
    assert_eq!(record.status.status(), Ok(Status::BadFlags));
    assert_eq!(record.invalid_flags(), Flags::REQUEST_INTERRUPT.bits());
    assert_eq!(rig.interrupts.take(), []);
}

#[test]
fn the_submitters_field_of_a_dedicated_queue_is_ignored() {
    let mut rig = Rig::dedicated();
    let anyone = Submitter::from_bits(u32::MAX);
    let record = rig.execute(Descriptor::new(Operation::Noop).with_submitter(anyone));
    assert_eq!(record.status.status(), Ok(Status::Success));
    // The PASID is the queue's, as an error shows.
    let lost = Descriptor::new(Operation::Noop).with_submitter(anyone).with_record(Iova(HOLE));
    rig.post(0, &lost.with_flags(Flags::REQUEST_RECORD));
    rig.settle();
    assert_eq!(rig.swerror().head.pasid(), PASID);
    assert!(!rig.swerror().head.privileged());
}

#[test]
fn an_injected_pasid_is_used_until_the_queue_is_configured_again() {
    let mut rig = Rig::dedicated();
    let forged = iommu::Pasid::new(0xabcde).unwrap();
    let before = rig.device.inject_wq_pasid(0, forged);
    assert_eq!(before.map(|pasid| pasid.get()), Some(PASID));
    assert_eq!(rig.device.inject_wq_pasid(8, forged), None);
    let lost = Descriptor::new(Operation::Noop).with_record(Iova(HOLE));
    rig.post(0, &lost.with_flags(Flags::REQUEST_RECORD));
    rig.settle();
    assert_eq!(rig.swerror().head.pasid(), 0xabcde);
    assert_eq!(rig.command(Code::ResetWq, 1), 0);
    rig.configure(0, 0, 16, user_mode(true).with_pasid(PASID));
    assert_eq!(rig.wq(0).mode.pasid(), PASID);
}

#[test]
fn counters_tell_what_was_done() {
    let mut rig = Rig::dedicated();
    rig.expect(memory_move(FLAT, FLAT + 0x1000, 100), Status::Success);
    let end = FLAT + FLAT_LEN;
    rig.expect(memory_move(FLAT, end - 40, 100), Status::PageFault);
    rig.expect(Operation::Noop, Status::Success);
    rig.fill(FLAT, &[1; 16]);
    rig.fill(FLAT + 0x1000, &[1, 1, 1, 1, 1, 2, 1, 1]);
    let compare = |size| Operation::Compare {
        source1: Iova(FLAT),
        source2: Iova(FLAT + 0x1000),
        size,
        expected: 0,
    };
    rig.expect(compare(5), Status::Success);
    rig.expect(compare(8), Status::Success);
    rig.expect(memory_move(FLAT, FLAT, 0), Status::BadTransferSize);
    let counters = rig.device.counters();
    assert_eq!(counters.descriptors, 6);
    assert_eq!(counters.bytes, 100 + 40 + 5 + 5);
    assert_eq!(counters.partial_completions, 1);
    assert_eq!(counters.ended(Status::Success), 4);
    assert_eq!(counters.ended(Status::BadTransferSize), 1);
    assert_eq!(counters.errors(), 2);
}

/// Across many chunks, forward and backward, to the byte.
#[test]
fn long_operations() {
    let mut rig = Rig::dedicated();
    let len = 0x1f_fff7;
    let data = noise(3, len);
    let [from, to] = [FLAT + 13, FLAT + 0x30_0001];
    rig.fill(from, &data);
    rig.expect(memory_move(from, to, len as u32), Status::Success);
    assert!(rig.bytes(to, len) == data);
    // The last one overlaps in a single byte.
    for shift in [1u64, 4095, 0x1_0000, 0x12_3457, len as u64 - 1] {
        rig.fill(from, &data);
        rig.expect(memory_move(from, from + shift, len as u32), Status::Success);
        assert!(rig.bytes(from + shift, len) == data, "up by {shift}");
        rig.fill(from + shift, &data);
        rig.expect(memory_move(from + shift, from, len as u32), Status::Success);
        assert!(rig.bytes(from, len) == data, "down by {shift}");
    }
    // Stopped near the end, backwards: bytes completed count from the end.
    let end = FLAT + FLAT_LEN;
    rig.fill(end - 0x3_0000, &data[..0x3_0000]);
    let record = rig.run_operation(memory_move(end - 0x3_0000, end - 0x2_0000, 0x3_0000));
    assert_eq!((record.status.into_bits(), record.result), (0x83, 1));
    assert_eq!(record.bytes_completed, 0);
}

/// With faults on both sides, whichever comes first stops a comparison.
#[test]
fn the_first_of_two_faults() {
    let mut rig = Rig::dedicated();
    let end = FLAT + FLAT_LEN;
    for (first, second, done) in [(64, 40, 40), (40, 64, 40), (40, 40, 40), (0, 8, 0)] {
        let [source1, source2] = [first, second].map(|left| Iova(end - left));
        let compare = Operation::Compare { source1, source2, size: 80, expected: 0 };
        let record = rig.expect(compare, Status::PageFault);
        assert_eq!((record.bytes_completed, record.fault_address), (done, Iova(end)));
        let create = Operation::CreateDelta {
            source1,
            source2,
            size: 80,
            delta: Iova(FLAT),
            max_delta_size: 80,
            expected_mask: 0,
        };
        let record = rig.expect(create, Status::PageFault);
        assert_eq!((record.bytes_completed, record.fault_address), (done, Iova(end)));
    }
}

#[test]
fn delta_records_that_contradict_themselves() {
    let mut rig = Rig::dedicated();
    let cases = [
        ([3u16, 4, 5], Status::Success, 0),
        ([3, 3, 5], Status::DeltaOffsetOrder, 10),
        ([3, 2, 5], Status::DeltaOffsetOrder, 10),
        ([3, 7, 8], Status::DeltaOffsetRange, 20),
        ([8, 9, 10], Status::DeltaOffsetRange, 0),
    ];
    for (offsets, status, done) in cases {
        for (index, offset) in offsets.into_iter().enumerate() {
            let at = FLAT + index as u64 * 10;
            rig.fill(at, &offset.to_le_bytes());
        }
        let (delta, destination) = (Iova(FLAT), Iova(FLAT + 0x1000));
        let apply = Operation::ApplyDelta { delta, destination, size: 64, delta_size: 30 };
        let record = rig.expect(apply, status);
        assert_eq!(record.bytes_completed, done, "{offsets:?}");
    }
}

/// The accelerator's own test suite: a delta of everything, applied.
#[test]
fn delta_of_every_word() {
    let mut rig = Rig::dedicated();
    let (size, delta) = (0x8_0000u32, FLAT + 0x20_0000);
    rig.fill(FLAT, &0x0123_4567_89ab_cdef_u64.to_le_bytes().repeat(size as usize / 8));
    rig.fill(FLAT + 0x10_0000, &0x1233_4567_89ab_cdef_u64.to_le_bytes().repeat(size as usize / 8));
    let create = Operation::CreateDelta {
        source1: Iova(FLAT),
        source2: Iova(FLAT + 0x10_0000),
        size,
        delta: Iova(delta),
        max_delta_size: 2 * size,
        expected_mask: 2,
    };
    let record = rig.execute(Descriptor::new(create).with_flags(Flags::CHECK_RESULT));
    assert_eq!((record.status.status(), record.result), (Ok(Status::Success), 1));
    assert_eq!((record.delta_size(), record.bytes_completed), (size / 8 * 10, 0));
    let apply = Operation::ApplyDelta {
        delta: Iova(delta),
        destination: Iova(FLAT),
        size,
        delta_size: record.delta_size(),
    };
    rig.expect(apply, Status::Success);
    assert!(rig.bytes(FLAT, size as usize) == rig.bytes(FLAT + 0x10_0000, size as usize));
}
