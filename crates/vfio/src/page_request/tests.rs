use iommu::PrgIndex;
use proptest::prelude::*;
use zerocopy::{FromBytes, IntoBytes};

use super::*;

fn requests() -> impl Strategy<Value = PageRequest> {
    let pasid = prop::option::of((0..1u32 << 20).prop_map(Pasid::from_field));
    let private_data = prop::option::of(any::<[u64; 2]>());
    (any::<u16>(), pasid, any::<[bool; 5]>(), any::<u64>(), 0..512u64, private_data).prop_map(
        |(requester, pasid, bits, address, group, private_data)| {
            let [privileged, execute, read, write, last] = bits;
            PageRequest {
                requester: RequesterId::from_bits(requester),
                pasid,
                privileged,
                execute,
                read,
                write,
                address: Iova(address),
                group: PrgIndex::from_field(group),
                last,
                private_data,
            }
        },
    )
}

proptest! {
    #[test]
    fn every_request_survives(request in requests(), cookie: u32) {
        let fault = encode(&request);
        prop_assert_eq!(fault.padding_to_64, [0; 16]);
        let through = decode(&fault, request.requester.bits());
        prop_assert_eq!(through, Ok(Some(request)));
        let fault = PageFault { cookie, request };
        let through = decode_fault(&encode_fault(&fault), request.private_data);
        prop_assert_eq!(through, Ok(fault));
    }

    /// Whatever a host end says, it is a request or an error.
    #[test]
    fn hostile_host_ends(words: [u32; 16], requester: u16, data: [u64; 2]) {
        let fault = PageRequestFault::read_from_bytes(words.as_bytes()).unwrap();
        if let Ok(Some(request)) = decode(&fault, requester) {
            prop_assert!(request.group.get() < PrgIndex::COUNT);
        }
        let fault = HwptPageFault::read_from_bytes(&words.as_bytes()[..40]).unwrap();
        if let Ok(fault) = decode_fault(&fault, Some(data)) {
            prop_assert!(fault.request.group.get() < PrgIndex::COUNT);
        }
    }
}

#[test]
fn what_is_no_request_is_none() {
    let none = PageRequestFault::new_zeroed();
    assert_eq!(decode(&none, 0x80), Ok(None));
    let good = PageRequestFault { kind: 2, ..none };
    assert!(matches!(decode(&good, 0x80), Ok(Some(_))));
    for bad in [
        PageRequestFault { kind: 1, ..good },
        PageRequestFault { kind: 3, ..good },
        PageRequestFault { grpid: 512, ..good },
        PageRequestFault { flags: 1, pasid: 1 << 20, ..good },
    ] {
        assert_eq!(decode(&bad, 0x80), Err(UnknownRequest), "{bad:?}");
    }
    // A PASID that does not count may be anything.
    assert!(decode(&PageRequestFault { pasid: u32::MAX, ..good }, 0).is_ok());
    let fault = HwptPageFault::new_zeroed();
    assert!(decode_fault(&fault, None).is_ok());
    for bad in [
        HwptPageFault { dev_id: 0x1_0000, ..fault },
        HwptPageFault { grpid: 512, ..fault },
        HwptPageFault { flags: 1, pasid: u32::MAX, ..fault },
    ] {
        assert_eq!(decode_fault(&bad, None), Err(UnknownRequest), "{bad:?}");
    }
}

#[test]
fn answers_have_their_codes_and_come_back() {
    let codes = [ResponseCode::Success, ResponseCode::Invalid, ResponseCode::Failure];
    for (number, answer) in (0..).zip(codes) {
        assert_eq!(code(answer), number);
        assert_eq!(code_of(number), Some(answer));
        let response = HwptPageResponse { cookie: 7, code: number };
        assert_eq!(decode_answer(&response, true, 0), Ok((7, answer)));
        // Who speaks iommufd's language may not say that the interface is broken.
        let plain = decode_answer(&response, false, 16);
        match answer {
            ResponseCode::Failure => assert_eq!(plain, Err(Refusal::Value { offset: 20 })),
            answer => assert_eq!(plain, Ok((7, answer))),
        }
    }
    assert_eq!([code_of(3), code_of(15), code_of(u32::MAX)], [None; 3]);
}

#[test]
fn why_an_answer_reached_nobody() {
    let response = PageResponse {
        requester: RequesterId::from_bits(0x1234),
        pasid: None,
        group: PrgIndex::from_field(511),
        code: ResponseCode::Success,
    };
    let PageResponse { requester, group, .. } = response;
    let errors = [
        PageResponseError::NotOutstanding { requester, group },
        PageResponseError::WrongPasid { requester, group },
        PageResponseError::NotSupported,
    ];
    for (number, error) in (1..).zip(errors) {
        assert_eq!(failure(&error), number);
        assert_eq!(failure_of(number, &response), Some(error));
    }
    assert_eq!([failure_of(0, &response), failure_of(4, &response)], [None; 2]);
}

#[test]
fn times() {
    for now in [Duration::ZERO, Duration::new(1, 999_999_999), Duration::MAX] {
        assert_eq!(time(now.as_secs(), now.subsec_nanos()), Some(now));
    }
    assert_eq!(time(0, 1_000_000_000), None);
    assert_eq!(time(u64::MAX, u32::MAX), None);
}

#[test]
fn policies() {
    let policies = [
        PageRequestPolicy::default(),
        PageRequestPolicy { per_device: 0, timeout: None, taken: TakenGroups::Withdrawn },
        PageRequestPolicy {
            per_device: u32::MAX,
            timeout: Some(Duration::MAX),
            taken: TakenGroups::Stay,
        },
        PageRequestPolicy {
            per_device: 1,
            timeout: Some(Duration::ZERO),
            taken: TakenGroups::Withdrawn,
        },
    ];
    for given in policies {
        assert_eq!(policy(&encode_policy(&given)), Ok(given));
    }
    // Who says nothing gets the host's.
    let none = PageRequestPolicyArgument::new_zeroed();
    assert_eq!(policy(&none), Ok(PageRequestPolicy::default()));
    for bad in [
        PageRequestPolicyArgument { flags: 2, ..none },
        PageRequestPolicyArgument { flags: 4, ..none },
        PageRequestPolicyArgument { flags: 6, ..none },
        PageRequestPolicyArgument { flags: 9, ..none },
        PageRequestPolicyArgument { per_device: 1, ..none },
        PageRequestPolicyArgument { flags: 1, seconds: 1, ..none },
        PageRequestPolicyArgument { flags: 3, nanoseconds: 1_000_000_000, ..none },
    ] {
        assert!(matches!(policy(&bad), Err(Refusal::Value { .. })), "{bad:?}");
    }
}
