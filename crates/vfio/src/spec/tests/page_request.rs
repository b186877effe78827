//! Page requests and their answers.

use std::vec::Vec;

use super::*;

/// Words of four bytes, in a row.
fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

const FAULT: PageRequestFault = PageRequestFault {
    kind: 2,
    padding: 0,
    flags: 15,
    pasid: 0x12345,
    grpid: 0x1ff,
    permission: 15,
    address: 0x7f00_1234_5000,
    private_data: [0x0807_0605_0403_0201, 0x100f_0e0d_0c0b_0a09],
    padding_to_64: [0; 16],
};

#[rustfmt::skip]
const FAULT_WORDS: [u32; 16] = [
    2, 0,
    15, 0x12345, 0x1ff, 15, 0x1234_5000, 0x7f00,
    0x0403_0201, 0x0807_0605, 0x0c0b_0a09, 0x100f_0e0d,
    0, 0, 0, 0,
];

#[test]
fn a_page_request() {
    assert_eq!(FAULT.as_bytes(), words(&FAULT_WORDS));
    use flags::*;
    assert_eq!(FAULT_PAGE_REQUEST, 2);
    assert_eq!([PAGE_REQUEST_PASID_VALID, PAGE_REQUEST_LAST], [1, 2]);
    assert_eq!([PAGE_REQUEST_PRIVATE_DATA, PAGE_REQUEST_RESPONSE_NEEDS_PASID], [4, 8]);
    assert_eq!([PERMISSION_READ, PERMISSION_WRITE, PERMISSION_EXECUTE], [1, 2, 4]);
    assert_eq!(PERMISSION_PRIVILEGED, 8);
    let read = ReadPageRequest {
        argsz: 80,
        flags: 0,
        request: FAULT,
        requester: 0x1234,
        reserved: [0; 6],
    };
    let golden = [&[80, 0][..], &FAULT_WORDS, &[0x1234, 0]].concat();
    assert_eq!(read.as_bytes(), words(&golden));
}

#[test]
fn its_answer() {
    let response = PageResponse { argsz: 24, version: 1, flags: 1, pasid: 2, grpid: 3, code: 2 };
    let respond = RespondPageRequest {
        argsz: 40,
        flags: 0,
        response,
        requester: 0x1234,
        reserved: 0,
        failure: 2,
    };
    let golden = [40, 0, 24, 1, 1, 2, 3, 2, 0x1234, 2];
    assert_eq!(respond.as_bytes(), words(&golden));
}

#[test]
fn as_iommufd_has_them() {
    let fault = HwptPageFault {
        flags: 3,
        dev_id: 0x80,
        pasid: 5,
        grpid: 6,
        permission: 7,
        reserved: 0,
        address: 9 << 32 | 0x8000,
        length: 10,
        cookie: 11,
    };
    let golden = [3, 0x80, 5, 6, 7, 0, 0x8000, 9, 10, 11];
    assert_eq!(fault.as_bytes(), words(&golden));
    let response = HwptPageResponse { cookie: 11, code: 1 };
    assert_eq!(response.as_bytes(), words(&[11, 1]));
    let failure = ObjectFailure { code: 8, field: 11, value: 0 };
    let read = ReadPageFault {
        argsz: 88,
        flags: 0,
        queue: 2,
        present: 3,
        fault,
        private_data: [12, 13],
        failure,
    };
    let golden = [&[88, 0, 2, 3][..], &golden, &[12, 0, 13, 0, 8, 11, 0, 0]].concat();
    assert_eq!(read.as_bytes(), words(&golden));
    let respond =
        RespondPageFault { argsz: 40, flags: 0, queue: 2, reserved: 0, response, failure };
    assert_eq!(respond.as_bytes(), words(&[40, 0, 2, 0, 11, 1, 8, 11, 0, 0]));
}

#[test]
fn time_and_who_is_unanswered() {
    let who = UnansweredArgument {
        argsz: 32,
        flags: 0,
        ticket: 2 << 32 | 1,
        up_to: 4 << 32 | 3,
        requester: 0x80,
        reserved: 0,
        present: 1,
    };
    assert_eq!(who.as_bytes(), words(&[32, 0, 1, 2, 3, 4, 0x80, 1]));
    let given_up = GiveUpAnswersArgument { argsz: 16, flags: 0, up_to: 2 << 32 | 1 };
    assert_eq!(given_up.as_bytes(), words(&[16, 0, 1, 2]));
    let tick = TickArgument {
        argsz: 40,
        flags: 0,
        seconds: 2 << 32 | 1,
        next_seconds: 4 << 32 | 3,
        nanoseconds: 5,
        next_nanoseconds: 6,
        present: 1,
        reserved: 0,
    };
    assert_eq!(tick.as_bytes(), words(&[40, 0, 1, 2, 3, 4, 5, 6, 1, 0]));
}

#[test]
fn counters() {
    let mut argument = PageRequestCountersArgument { argsz: 104, flags: 0, counts: [0; 12] };
    argument.counts = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12];
    let counts = (1..13).flat_map(|count| [count, 0]);
    let golden: Vec<u32> = [104, 0].into_iter().chain(counts).collect();
    assert_eq!(argument.as_bytes(), words(&golden));
}
