//! Encodings, typed from the specification's tables (VIRTIO 1.2: 2.1, 2.7, 5.13) and, for our
//! requests, from the table in `request.rs`.

use std::vec;
use std::vec::Vec;

use mem::Gpa;
use zerocopy::IntoBytes;

use super::*;

const EXPERIMENTAL: Numbers = Revision::Experimental.numbers();

fn encoded(request: Request, numbers: &Numbers) -> Vec<u8> {
    let mut buffer = [0xaa; MAX_REQUEST_SIZE];
    let len = request.encode(numbers, &mut buffer);
    assert!(buffer[len..].iter().all(|byte| *byte == 0xaa), "nothing past the end");
    buffer[..len].to_vec()
}

#[test]
fn features_are_where_the_specification_has_them() {
    let features = [
        (Features::new().with_input_range(true), 0),
        (Features::new().with_domain_range(true), 1),
        (Features::new().with_map_unmap(true), 2),
        (Features::new().with_bypass(true), 3),
        (Features::new().with_probe(true), 4),
        (Features::new().with_mmio(true), 5),
        (Features::new().with_bypass_config(true), 6),
        (Features::new().with_indirect_descriptors(true), 28),
        (Features::new().with_event_index(true), 29),
        (Features::new().with_version_1(true), 32),
        (Features::new().with_access_platform(true), 33),
    ];
    for (feature, bit) in features {
        assert_eq!(feature.into_bits(), 1 << bit, "{feature:?}");
    }
}

#[test]
fn status_bits_are_where_the_specification_has_them() {
    let bits = [
        (Status::new().with_acknowledge(true), 1),
        (Status::new().with_driver(true), 2),
        (Status::new().with_driver_ok(true), 4),
        (Status::new().with_features_ok(true), 8),
        (Status::new().with_needs_reset(true), 64),
        (Status::new().with_failed(true), 128),
    ];
    for (status, bits) in bits {
        assert_eq!(status.into_bits(), bits, "{status:?}");
    }
}

#[test]
fn the_configuration_has_its_forty_bytes() {
    let config = Config {
        page_size_mask: 0x1000.into(),
        input_first: 1.into(),
        input_last: 0x0102_0304_0506_0708.into(),
        domain_first: 2.into(),
        domain_last: 0xffff_fffe.into(),
        probe_size: 512.into(),
        bypass: 1,
        reserved: [0; 3],
    };
    let expected = [
        0x00, 0x10, 0, 0, 0, 0, 0, 0, // page_size_mask @0
        1, 0, 0, 0, 0, 0, 0, 0, // input_range.start @8
        8, 7, 6, 5, 4, 3, 2, 1, // input_range.end @16
        2, 0, 0, 0, // domain_range.start @24
        0xfe, 0xff, 0xff, 0xff, // domain_range.end @28
        0, 2, 0, 0, // probe_size @32
        1, 0, 0, 0, // bypass @36
    ];
    assert_eq!(config.as_bytes(), expected);
    assert_eq!(CONFIG_SIZE, 40);
}

#[test]
fn requests_are_encoded_as_the_tables_say() {
    let mut probe = vec![5, 0, 0, 0, 0x78, 0x56, 0x34, 0x12];
    probe.extend([0; 64]);
    let golden: [(Request, Vec<u8>); 3] = [
        (Request::Probe { endpoint: 0x1234_5678 }, probe),
        (
            Request::AllocPasid { first: 0x1_0203, last: 0xf_fffe },
            vec![0xe0, 0, 0, 0, 0x03, 0x02, 0x01, 0, 0xfe, 0xff, 0x0f, 0, 0, 0, 0, 0],
        ),
        (
            Request::FreePasid { pasid: 0xa_bcde },
            vec![0xe1, 0, 0, 0, 0xde, 0xbc, 0x0a, 0, 0, 0, 0, 0],
        ),
    ];
    for (request, bytes) in golden {
        assert_eq!(encoded(request, &EXPERIMENTAL), bytes);
        let room = request.body_size(512) + TAIL_SIZE;
        let decoded = Request::decode(&bytes, room, Some(512), Some(&EXPERIMENTAL));
        assert_eq!(decoded, Ok(request));
    }
}

#[test]
fn answers_are_encoded_as_the_tables_say() {
    let mut answer = [0; 8];
    Reply::Pasid(0xa_bcde).encode(&mut answer[..4]);
    answer[4] = RequestStatus::Ok as u8;
    assert_eq!(answer, [0xde, 0xbc, 0x0a, 0, 0, 0, 0, 0]);
    assert_eq!(Answer::decode(&answer), Some(Answer { status: 0, word: 0xa_bcde }));
    assert_eq!(Answer::decode(&[6, 1, 1, 1]), Some(Answer { status: 6, word: 0 }));
    assert_eq!(Answer::decode(&[0; 3]), None);
}

#[test]
fn statuses_have_the_specification_s_numbers() {
    use RequestStatus::*;
    let all = [Ok, IoError, Unsupported, DeviceError, Invalid, Range, NotFound, Fault, NoMemory];
    for (number, status) in (0..).zip(all) {
        assert_eq!(status as u8, number);
        assert_eq!(RequestStatus::from_number(number), Some(status));
    }
    assert!((9..=255).all(|number| RequestStatus::from_number(number).is_none()));
}

#[test]
fn what_is_no_request_is_told_why_not() {
    let decode = |bytes: &[u8], room| Request::decode(bytes, room, Some(64), Some(&EXPERIMENTAL));
    let alloc = encoded(Request::AllocPasid { first: 1, last: 2 }, &EXPERIMENTAL);
    let refused = |kind, read, written| Err(DecodeError::BadSize { kind, read, written });

    assert_eq!(decode(&[], 4), Err(DecodeError::NoHead(0)));
    assert_eq!(decode(&[0xe0, 0, 0], 4), Err(DecodeError::NoHead(3)));
    for kind in [0, 1, 2, 3, 4, 6, 9, 0xff] {
        assert_eq!(decode(&[kind, 0, 0, 0, 0], 4), Err(DecodeError::Unsupported(kind)));
    }
    assert_eq!(decode(&alloc[..15], 8), refused(0xe0, 15, 8));
    assert_eq!(decode(&[&alloc[..], &[0]].concat(), 8), refused(0xe0, 17, 8));
    assert_eq!(decode(&alloc, 4), refused(0xe0, 16, 4));
    assert_eq!(decode(&alloc, 9), refused(0xe0, 16, 9));
    let mut reserved = alloc.clone();
    reserved[13] = 1;
    assert_eq!(decode(&reserved, 8), Err(DecodeError::Reserved(0xe0)));
    // What was not negotiated does not exist.
    let without = Request::decode(&alloc, 8, Some(64), None);
    assert_eq!(without, Err(DecodeError::Unsupported(0xe0)));
    let probe = encoded(Request::Probe { endpoint: 1 }, &EXPERIMENTAL);
    let without = Request::decode(&probe, 68, None, Some(&EXPERIMENTAL));
    assert_eq!(without, Err(DecodeError::Unsupported(5)));
}

#[test]
fn no_two_revisions_share_a_number_nor_take_one_of_a_draft_or_of_the_specification() {
    let mut features: Vec<u8> = (0..=6).chain(DRAFT_FEATURES).collect();
    let mut requests: Vec<u8> = (0..=5).chain(DRAFT_REQUESTS).collect();
    for numbers in Revision::ALL.map(Revision::numbers) {
        // Bits 24 to 49 are the transport's and the queues' (2.2).
        assert!(numbers.feature < 24);
        assert!(!features.contains(&numbers.feature), "{numbers:?}");
        features.push(numbers.feature);
        for request in [numbers.alloc_pasid, numbers.free_pasid] {
            assert!(!requests.contains(&request), "{numbers:?}");
            requests.push(request);
        }
    }
}

#[test]
fn a_descriptor_has_its_sixteen_bytes() {
    let descriptor = Descriptor::new(Gpa(0x0102_0304_0506_0708), 0x1122_3344, true, Some(0x5566));
    let expected = [8, 7, 6, 5, 4, 3, 2, 1, 0x44, 0x33, 0x22, 0x11, 3, 0, 0x66, 0x55];
    assert_eq!(descriptor.as_bytes(), expected);
    let indirect = descriptor.with_flags(DescriptorFlags::new().with_indirect(true));
    assert_eq!(indirect.as_bytes()[12..14], [4, 0]);
    let element = UsedElement { id: 0x0102.into(), len: 0x0304.into() };
    assert_eq!(element.as_bytes(), [2, 1, 0, 0, 4, 3, 0, 0]);
}

#[test]
fn ring_entries_wrap_at_the_queue_s_size() {
    assert_eq!([available::entry(0, 16), available::entry(15, 16)], [4, 34]);
    assert_eq!(available::entry(16, 16), 4);
    assert_eq!([used::entry(0, 16), used::entry(15, 16)], [4, 124]);
    assert_eq!(used::entry(u16::MAX, 16), 124);
}

#[test]
fn a_queue_s_parts_follow_each_other() {
    let layout = QueueLayout::contiguous(Gpa(0x1000), 16).unwrap();
    let expected = QueueLayout {
        size: 16,
        descriptors: Gpa(0x1000),
        available: Gpa(0x1100),
        used: Gpa(0x1124),
    };
    assert_eq!(layout, expected);
    assert_eq!(layout.checked(), Ok(layout));
    assert_eq!(QueueLayout::contiguous_size(16), 0x124 + 4 + 16 * 8);
    assert_eq!(QueueLayout::contiguous(Gpa(u64::MAX - 0x100), 16), None);
}

#[test]
fn a_queue_that_cannot_be_is_refused() {
    let good = QueueLayout::contiguous(Gpa(0x1000), 16).unwrap();
    for size in [0, 3, 65, 128, 0x8001] {
        let layout = QueueLayout { size, ..good };
        assert_eq!(layout.checked(), Err(QueueLayoutError::BadSize(size)));
    }
    let misaligned = [
        QueueLayout { descriptors: Gpa(0x1008), ..good },
        QueueLayout { available: Gpa(0x1101), ..good },
        QueueLayout { used: Gpa(0x1126), ..good },
    ];
    for (layout, at) in misaligned.into_iter().zip([0x1008, 0x1101, 0x1126]) {
        assert_eq!(layout.checked(), Err(QueueLayoutError::Misaligned(Gpa(at))));
    }
    let wrapping = [
        QueueLayout { descriptors: Gpa(0xffff_ffff_ffff_fff0), ..good },
        QueueLayout { available: Gpa(0xffff_ffff_ffff_fff0), ..good },
        QueueLayout { used: Gpa(0xffff_ffff_ffff_fff0), ..good },
    ];
    for layout in wrapping {
        let at = Gpa(0xffff_ffff_ffff_fff0);
        assert_eq!(layout.checked(), Err(QueueLayoutError::Wraps(at)));
    }
}
