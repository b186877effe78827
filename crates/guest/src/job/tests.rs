use dsa::spec::StatusByte;

use super::*;

/// A partial completion: `done` bytes, a write fault, and something in every other field.
fn partial(done: u32, result: u8) -> CompletionRecord {
    CompletionRecord {
        status: StatusByte::of(Status::PageFault, true),
        result,
        bytes_completed: done,
        fault_address: Iova(0x5000),
        tail: [0x11, 0x22, 0x33, 0x44, 0, 0, 9, 0, 0x55, 0x66, 0x77, 0x88, 0, 0, 8, 0],
    }
}

fn ended(status: Status, done: u32) -> CompletionRecord {
    CompletionRecord {
        status: StatusByte::of(status, false),
        bytes_completed: done,
        ..CompletionRecord::default()
    }
}

const A: Iova = Iova(0x10_0000);
const B: Iova = Iova(0x20_0000);
const C: Iova = Iova(0x30_0000);

fn plus(address: Iova, bytes: u64) -> Iova {
    Iova(address.0 + bytes)
}

fn tags(reference: u32, app: u16) -> DifTags {
    DifTags { reference, app_mask: 0, app }
}

#[test]
fn a_move_goes_on_from_where_it_stopped() {
    let operation = Operation::MemoryMove { source: A, destination: B, size: 100 };
    let rest = remainder(&operation, &partial(30, 0));
    let (source, destination) = (plus(A, 30), plus(B, 30));
    assert_eq!(rest, Ok(Operation::MemoryMove { source, destination, size: 70 }));
    let backwards = remainder(&operation, &partial(30, 1));
    assert_eq!(backwards, Ok(Operation::MemoryMove { source: A, destination: B, size: 70 }));
    assert_eq!(remainder(&operation, &partial(0, 0)), Ok(operation));
}

#[test]
fn a_fill_goes_on_at_a_whole_pattern() {
    let operation = Operation::Fill { pattern: 5, destination: A, size: 100 };
    let rest = Operation::Fill { pattern: 5, destination: plus(A, 96), size: 4 };
    assert_eq!(remainder(&operation, &partial(96, 0)), Ok(rest));
    let cut = Err(Unresumable::CutUnit { completed: 95 });
    assert_eq!(remainder(&operation, &partial(95, 0)), cut);
}

#[test]
fn a_compared_pattern_turns_with_the_bytes_done() {
    let pattern = 0x0807_0605_0403_0201;
    let operation = Operation::ComparePattern { source: A, pattern, size: 100, expected: 1 };
    let rest = Operation::ComparePattern {
        source: plus(A, 11),
        pattern: 0x0302_0108_0706_0504,
        size: 89,
        expected: 1,
    };
    assert_eq!(remainder(&operation, &partial(11, 0)), Ok(rest));
}

#[test]
fn every_pair_of_operands_moves_together() {
    let compare = Operation::Compare { source1: A, source2: B, size: 10, expected: 0 };
    let rest =
        Operation::Compare { source1: plus(A, 4), source2: plus(B, 4), size: 6, expected: 0 };
    assert_eq!(remainder(&compare, &partial(4, 0)), Ok(rest));
    let dualcast = Operation::Dualcast { source: A, destination1: B, destination2: C, size: 10 };
    let rest = Operation::Dualcast {
        source: plus(A, 4),
        destination1: plus(B, 4),
        destination2: plus(C, 4),
        size: 6,
    };
    assert_eq!(remainder(&dualcast, &partial(4, 0)), Ok(rest));
    let flush = Operation::CacheFlush { destination: A, size: 10 };
    let rest = Operation::CacheFlush { destination: plus(A, 4), size: 6 };
    assert_eq!(remainder(&flush, &partial(4, 0)), Ok(rest));
}

#[test]
fn a_crc_goes_on_with_the_crc_so_far() {
    let operation = Operation::Crc { source: A, size: 100, seed: 0, seed_address: C };
    let rest =
        Operation::Crc { source: plus(A, 64), size: 36, seed: 0x4433_2211, seed_address: Iova(0) };
    assert_eq!(remainder(&operation, &partial(64, 0)), Ok(rest));
    let copying =
        Operation::CopyCrc { source: A, destination: B, size: 100, seed: 1, seed_address: C };
    let rest = Operation::CopyCrc {
        source: plus(A, 64),
        destination: plus(B, 64),
        size: 36,
        seed: 0x4433_2211,
        seed_address: Iova(0),
    };
    assert_eq!(remainder(&copying, &partial(64, 0)), Ok(rest));
}

#[test]
fn delta_records_start_again_or_go_on_by_whole_entries() {
    let create = Operation::CreateDelta {
        source1: A,
        source2: B,
        size: 800,
        delta: C,
        max_delta_size: 80,
        expected_mask: 0,
    };
    assert_eq!(remainder(&create, &partial(400, 1)), Ok(create));
    let apply = Operation::ApplyDelta { delta: A, destination: B, size: 800, delta_size: 80 };
    let rest =
        Operation::ApplyDelta { delta: plus(A, 30), destination: B, size: 800, delta_size: 50 };
    assert_eq!(remainder(&apply, &partial(30, 0)), Ok(rest));
    assert!(remainder(&apply, &partial(31, 0)).is_err());
}

#[test]
fn blocks_go_on_with_the_next_tags() {
    let flags = DifFlags::new().with_block(BlockSize::B520);
    let (source_flags, destination_flags) = (SourceFlags::new(), DestinationFlags::new());
    let (source_next, destination_next) = (tags(0x4433_2211, 9), tags(0x8877_6655, 8));
    let check =
        Operation::DifCheck { source: A, size: 5280, source_flags, flags, source_tags: tags(1, 1) };
    let rest = Operation::DifCheck {
        source: plus(A, 1056),
        size: 4224,
        source_flags,
        flags,
        source_tags: source_next,
    };
    assert_eq!(remainder(&check, &partial(1056, 0)), Ok(rest));
    assert!(remainder(&check, &partial(1000, 0)).is_err());

    let insert = Operation::DifInsert {
        source: A,
        destination: B,
        size: 5200,
        destination_flags,
        flags,
        destination_tags: tags(1, 1),
    };
    let rest = Operation::DifInsert {
        source: plus(A, 1040),
        destination: plus(B, 1056),
        size: 4160,
        destination_flags,
        flags,
        destination_tags: destination_next,
    };
    assert_eq!(remainder(&insert, &partial(1040, 0)), Ok(rest));

    let strip = Operation::DifStrip {
        source: A,
        destination: B,
        size: 5280,
        source_flags,
        flags,
        source_tags: tags(1, 1),
    };
    let rest = Operation::DifStrip {
        source: plus(A, 1056),
        destination: plus(B, 1040),
        size: 4224,
        source_flags,
        flags,
        source_tags: source_next,
    };
    assert_eq!(remainder(&strip, &partial(1056, 0)), Ok(rest));

    let update = Operation::DifUpdate {
        source: A,
        destination: B,
        size: 5280,
        source_flags,
        destination_flags,
        flags,
        source_tags: tags(1, 1),
        destination_tags: tags(2, 2),
    };
    let rest = Operation::DifUpdate {
        source: plus(A, 1056),
        destination: plus(B, 1056),
        size: 4224,
        source_flags,
        destination_flags,
        flags,
        source_tags: source_next,
        destination_tags: destination_next,
    };
    assert_eq!(remainder(&update, &partial(1056, 0)), Ok(rest));
}

#[test]
fn a_device_that_breaks_the_rules_is_found_out() {
    let operation = Operation::MemoryMove { source: A, destination: B, size: 100 };
    for done in [100, 101, u32::MAX] {
        let left = Err(Unresumable::NothingLeft { completed: done, size: 100 });
        assert_eq!(remainder(&operation, &partial(done, 0)), left);
    }
    assert!(remainder(&Operation::Noop, &partial(0, 0)).is_err());
    assert!(remainder(&DRAIN, &partial(0, 0)).is_err());
    let high = Operation::Fill { pattern: 0, destination: Iova(u64::MAX - 4), size: 100 };
    assert!(remainder(&high, &partial(8, 0)).is_ok());
}

#[test]
fn bytes_are_counted_as_the_protocol_defines_them() {
    let copy = Operation::MemoryMove { source: A, destination: B, size: 100 };
    assert_eq!(bytes_done(&copy, &ended(Status::Success, 0)), 100);
    assert_eq!(bytes_done(&copy, &partial(30, 0)), 30);
    assert_eq!(bytes_done(&copy, &partial(0, 0)), 0);
    assert_eq!(bytes_done(&copy, &ended(Status::BadFlags, 0)), 0);
    let compare = Operation::Compare { source1: A, source2: B, size: 100, expected: 0 };
    assert_eq!(bytes_done(&compare, &ended(Status::FalsePredicate, 0)), 100);
    assert_eq!(bytes_done(&compare, &ended(Status::FalsePredicate, 7)), 7);
    let batch = Operation::Batch { list: A, count: 4 };
    assert_eq!(bytes_done(&batch, &ended(Status::BatchError, 4)), 0);
    assert_eq!(bytes_done(&Operation::Noop, &ended(Status::Success, 0)), 0);
}

#[test]
fn faults_belong_to_the_pages_of_operands() {
    let copy = Operation::MemoryMove { source: Iova(0x1ff0), destination: Iova(0x8000), size: 32 };
    assert!(owns_fault(&copy, Iova(0x1000), false));
    assert!(owns_fault(&copy, Iova(0x2008), false));
    assert!(!owns_fault(&copy, Iova(0x3000), false));
    assert!(!owns_fault(&copy, Iova(0x0fff), false));
    assert!(!owns_fault(&copy, Iova(0x1000), true), "the source is not written");
    assert!(owns_fault(&copy, Iova(0x8fff), true));
    assert!(!owns_fault(&copy, Iova(0x9000), true));
    assert!(!owns_fault(&Operation::Noop, Iova(0), false));
    let last = Operation::Fill { pattern: 0, destination: Iova(u64::MAX), size: u32::MAX };
    assert!(owns_fault(&last, Iova(u64::MAX), true));
    let insert = Operation::DifInsert {
        source: A,
        destination: B,
        size: 8 * 512,
        destination_flags: DestinationFlags::new(),
        flags: DifFlags::new(),
        destination_tags: DifTags::default(),
    };
    assert!(owns_fault(&insert, plus(B, 4096), true), "the fields take the destination further");
}
