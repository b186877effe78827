use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;

use proptest::prelude::*;

use super::*;

const DEVICE: RequesterId = RequesterId::from_bits(0x0080);

fn space(number: u32) -> AddressSpace {
    AddressSpace { pasid: Pasid::new(number), privileged: false }
}

fn page(address: u64) -> WantedPage {
    WantedPage { address: Iova(address), read: true, write: false, execute: false }
}

fn enabled(allocation: u32) -> PageRequestInterface {
    let mut interface = PageRequestInterface::new(DEVICE, 0x200);
    interface.set_allocation(allocation);
    interface.enable();
    interface
}

/// The answer to `request`.
fn answer(request: &PageRequest, code: ResponseCode) -> PageResponse {
    PageResponse { requester: DEVICE, pasid: request.pasid, group: request.group, code }
}

#[test]
fn a_request_and_its_answer() {
    let mut interface = enabled(4);
    let wanted = WantedPage { write: true, ..page(0x1234) };
    let privileged = AddressSpace { pasid: Pasid::new(5), privileged: true };
    let request = interface.request(privileged, wanted, 77).unwrap();
    assert_eq!(
        request,
        PageRequest {
            requester: DEVICE,
            pasid: Pasid::new(5),
            privileged: true,
            execute: false,
            read: true,
            write: true,
            address: Iova(0x1000),
            group: PrgIndex(0),
            last: true,
            private_data: None,
        }
    );
    assert!(request.wants_response());
    assert_eq!((interface.credits(), interface.outstanding()), (3, 1));
    assert_eq!(interface.waiting().collect::<Vec<_>>(), [77]);
    let success = answer(&request, ResponseCode::Success);
    assert_eq!(interface.respond(&success), Answered::Token(77, ResponseCode::Success));
    assert_eq!((interface.credits(), interface.outstanding()), (4, 0));
    assert_eq!(interface.respond(&success), Answered::Unexpected, "one group, one answer");
}

#[test]
fn an_answer_with_another_pasid_is_unexpected() {
    let mut interface = enabled(1);
    let request = interface.request(space(5), page(0), 1).unwrap();
    for pasid in [None, Pasid::new(6)] {
        let wrong = PageResponse { pasid, ..answer(&request, ResponseCode::Success) };
        assert_eq!(interface.respond(&wrong), Answered::Unexpected);
    }
    let right = answer(&request, ResponseCode::Invalid);
    assert_eq!(interface.respond(&right), Answered::Token(1, ResponseCode::Invalid));
}

#[test]
fn credits_are_the_guests_to_give() {
    let mut interface = PageRequestInterface::new(DEVICE, 8);
    assert_eq!(interface.request(space(1), page(0), 0), Err(PageRequestRefused::Disabled));
    interface.set_allocation(u32::MAX);
    interface.enable();
    assert_eq!((interface.credits(), interface.allocation()), (8, 8), "no more than the capacity");
    interface.set_allocation(2);
    let first = interface.request(space(1), page(0), 0).unwrap();
    let _ = interface.request(space(1), page(0), 1).unwrap();
    let none = Err(PageRequestRefused::NoCredit { wanted: 1 });
    assert_eq!(interface.request(space(1), page(0), 2), none);
    let _ = interface.respond(&answer(&first, ResponseCode::Success));
    assert_eq!(interface.request(space(1), page(0), 2).unwrap().group, PrgIndex(2));
}

/// More credits than there are indices: the indices are the limit.
#[test]
fn no_index_is_out_twice() {
    let mut interface = PageRequestInterface::new(DEVICE, 1000);
    interface.set_allocation(1000);
    interface.enable();
    let count = u64::from(PrgIndex::COUNT);
    let out: Vec<_> =
        (0..count).map(|token| interface.request(space(1), page(0), token).unwrap()).collect();
    let groups: BTreeSet<_> = out.iter().map(|request| request.group).collect();
    assert_eq!(groups.len() as u64, count);
    let none = Err(PageRequestRefused::NoCredit { wanted: 1 });
    assert_eq!(interface.request(space(1), page(0), 0), none);
    let _ = interface.respond(&answer(&out[300], ResponseCode::Success));
    assert_eq!(interface.request(space(1), page(0), 0).unwrap().group, out[300].group);
}

#[test]
fn a_group_of_several_pages() {
    let mut interface = enabled(4);
    let pages = [page(0x1000), page(0x2000), WantedPage { write: true, ..page(0x9000) }];
    let messages = interface.request_group(space(1), &pages, 9).unwrap();
    assert_eq!(messages.iter().map(|m| m.last).collect::<Vec<_>>(), [false, false, true]);
    assert!(messages.iter().all(|message| message.group == messages[0].group));
    assert_eq!(messages[2].address, Iova(0x9000));
    assert_eq!(interface.credits(), 1, "each message takes one");
    let none = Err(PageRequestRefused::NoCredit { wanted: 2 });
    assert_eq!(interface.request_group(space(1), &pages[..2], 9), none);
    let success = answer(&messages[2], ResponseCode::Success);
    assert_eq!(interface.respond(&success), Answered::Token(9, ResponseCode::Success));
    assert_eq!(interface.credits(), 4);
}

#[test]
fn groups_that_cannot_be() {
    let mut interface = PageRequestInterface::new(DEVICE, 2);
    interface.set_allocation(2);
    interface.enable();
    let bad = |pages| Err(PageRequestRefused::BadGroup { pages, capacity: 2 });
    assert_eq!(interface.request_group(space(1), &[], 0), bad(0));
    assert_eq!(interface.request_group(space(1), &[page(0); 3], 0), bad(3));
    let for_nothing = WantedPage { read: false, ..page(0) };
    let request = interface.request(space(1), for_nothing, 0);
    assert_eq!(request.map(|_| ()), bad(1).map(|_: Vec<PageRequest>| ()), "a stop marker is none");
    assert_eq!(interface.outstanding(), 0);
}

#[test]
fn what_is_abandoned_keeps_its_index_until_it_is_answered() {
    let mut interface = enabled(1);
    let request = interface.request(space(1), page(0), 7).unwrap();
    assert!(interface.abandon(7));
    assert!(!interface.abandon(7));
    assert_eq!((interface.waiting().count(), interface.credits()), (0, 0));
    let success = answer(&request, ResponseCode::Success);
    assert_eq!(interface.respond(&success), Answered::Stale);
    assert_eq!(interface.credits(), 1);
}

#[test]
fn stopping() {
    let mut interface = enabled(2);
    assert!(!interface.is_stopped());
    let request = interface.request(space(1), page(0), 7).unwrap();
    interface.disable();
    assert!(!interface.is_stopped(), "one is out");
    assert_eq!(interface.request(space(1), page(0), 8), Err(PageRequestRefused::Disabled));
    let success = answer(&request, ResponseCode::Success);
    assert_eq!(interface.respond(&success), Answered::Token(7, ResponseCode::Success));
    assert!(interface.is_stopped());
}

#[test]
fn a_failure_ends_it_until_it_is_enabled_again() {
    let mut interface = enabled(4);
    let requests: Vec<_> =
        (0..3).map(|token| interface.request(space(1), page(0), token).unwrap()).collect();
    let failure = answer(&requests[1], ResponseCode::Failure);
    assert_eq!(interface.respond(&failure), Answered::Token(1, ResponseCode::Failure));
    assert!(!interface.may_ask() && interface.credits() == 0);
    assert_eq!(interface.waiting().collect::<Vec<_>>(), [0, 2]);
    assert_eq!(interface.request(space(1), page(0), 3), Err(PageRequestRefused::Failed));
    let late = answer(&requests[0], ResponseCode::Success);
    assert_eq!(interface.respond(&late), Answered::Ignored);
    assert_eq!(interface.respond(&late), Answered::Ignored, "not even as unexpected");
    interface.enable();
    assert_eq!(interface.credits(), 3, "what is out is out");
}

#[test]
fn a_reset_forgets_what_is_out() {
    let mut interface = enabled(2);
    let request = interface.request(space(1), page(0), 7).unwrap();
    interface.disable();
    interface.reset();
    assert!(interface.is_stopped());
    let success = answer(&request, ResponseCode::Success);
    assert_eq!(interface.respond(&success), Answered::Unexpected);
    interface.enable();
    let next = interface.request(space(1), page(0), 8).unwrap();
    assert_ne!(next.group, request.group, "the index rests");
}

#[test]
fn a_stop_marker_is_for_what_is_out() {
    let mut interface = enabled(2);
    let five = Pasid::new(5).unwrap();
    assert_eq!(interface.stop_marker(five), None);
    let request = interface.request(space(5), page(0), 7).unwrap();
    assert!(interface.abandon(7));
    let marker = interface.stop_marker(five).unwrap();
    assert!(marker.is_stop_marker() && !marker.wants_response());
    assert_eq!((marker.requester, marker.pasid), (DEVICE, Some(five)));
    assert_eq!(interface.stop_marker(Pasid::new(6).unwrap()), None);
    assert_eq!(interface.credits(), 1, "a marker takes none");
    let _ = interface.respond(&answer(&request, ResponseCode::Success));
    assert_eq!(interface.stop_marker(five), None);
}

/// What a device or its host may do.
#[derive(Clone, Debug)]
enum Op {
    Request {
        pasid: u32,
        pages: usize,
    },
    /// The group at this place among those that are out, in the order of their indices.
    Answer {
        at: usize,
        code: ResponseCode,
    },
    /// Whatever is out.
    Forge {
        group: u16,
        pasid: u32,
    },
    Abandon {
        at: usize,
    },
    Allocate {
        pages: u32,
    },
    Enable,
    Disable,
    Reset,
}

fn op() -> impl Strategy<Value = Op> {
    let code = prop_oneof![
        8 => Just(ResponseCode::Success),
        4 => Just(ResponseCode::Invalid),
        1 => Just(ResponseCode::Failure),
    ];
    prop_oneof![
        12 => (0..3u32, 1..4usize).prop_map(|(pasid, pages)| Op::Request { pasid, pages }),
        8 => (0..16usize, code).prop_map(|(at, code)| Op::Answer { at, code }),
        2 => (0..PrgIndex::COUNT, 0..3u32).prop_map(|(group, pasid)| Op::Forge { group, pasid }),
        3 => (0..16usize).prop_map(|at| Op::Abandon { at }),
        2 => (0..12u32).prop_map(|pages| Op::Allocate { pages }),
        2 => Just(Op::Enable),
        1 => Just(Op::Disable),
        1 => Just(Op::Reset),
    ]
}

/// The groups that are out by index: PASID, messages, and what waits.
type Out = BTreeMap<u16, (u32, u32, Option<u64>)>;

proptest! {
    /// Against an account in a map: indices, credits, answers.
    #[test]
    fn books_balance(ops in prop::collection::vec(op(), 1..200)) {
        const CAPACITY: u32 = 8;
        let mut interface = PageRequestInterface::new(DEVICE, CAPACITY);
        let (mut out, mut on, mut failed, mut limit) = (Out::new(), false, false, 0);
        for (token, op) in (0u64..).zip(ops) {
            let messages: u32 = out.values().map(|(_, messages, _)| messages).sum();
            let nth = |at: usize| out.iter().nth(at % out.len().max(1)).map(|(g, w)| (*g, *w));
            match op {
                Op::Request { pasid, pages } => {
                    let wanted: Vec<_> = (0..pages as u64).map(|at| page(at << 12)).collect();
                    let got = interface.request_group(space(pasid), &wanted, token);
                    let may = on && !failed && messages + pages as u32 <= limit;
                    prop_assert_eq!(got.is_ok(), may);
                    for message in got.iter().flatten().take(1) {
                        let entry = (pasid, pages as u32, Some(token));
                        prop_assert!(out.insert(message.group.get(), entry).is_none());
                    }
                }
                Op::Answer { at, code } => {
                    let Some((group, (pasid, _, waits))) = nth(at) else { continue };
                    let group_index = PrgIndex::new(group).unwrap();
                    let pasid = Pasid::new(pasid);
                    let response =
                        PageResponse { requester: DEVICE, pasid, group: group_index, code };
                    let expected = match waits {
                        _ if failed => Answered::Ignored,
                        Some(token) => Answered::Token(token, code),
                        None => Answered::Stale,
                    };
                    prop_assert_eq!(interface.respond(&response), expected);
                    failed |= code == ResponseCode::Failure;
                    out.remove(&group);
                }
                Op::Forge { group, pasid } => {
                    if out.get(&group).is_some_and(|(of, _, _)| *of == pasid) {
                        continue;
                    }
                    let response = PageResponse {
                        requester: DEVICE,
                        pasid: Pasid::new(pasid),
                        group: PrgIndex::new(group).unwrap(),
                        code: ResponseCode::Failure,
                    };
                    let expected = if failed { Answered::Ignored } else { Answered::Unexpected };
                    prop_assert_eq!(interface.respond(&response), expected);
                }
                Op::Abandon { at } => {
                    let Some((group, (_, _, waits))) = nth(at) else { continue };
                    prop_assert_eq!(waits.is_some_and(|token| interface.abandon(token)), waits.is_some());
                    out.entry(group).and_modify(|entry| entry.2 = None);
                }
                Op::Allocate { pages } => {
                    interface.set_allocation(pages);
                    limit = pages.min(CAPACITY);
                }
                Op::Enable => {
                    interface.enable();
                    (on, failed) = (true, false);
                }
                Op::Disable => {
                    interface.disable();
                    on = false;
                }
                Op::Reset => {
                    interface.reset();
                    out.clear();
                    failed = false;
                }
            }
            let messages: u32 = out.values().map(|(_, messages, _)| messages).sum();
            let credits = if on && !failed { limit.saturating_sub(messages) } else { 0 };
            prop_assert_eq!(interface.outstanding(), messages);
            prop_assert_eq!(interface.credits(), credits);
            prop_assert_eq!(interface.is_stopped(), !on && out.is_empty());
            let waits: Vec<_> = out.values().filter_map(|(_, _, token)| *token).collect();
            prop_assert_eq!(interface.waiting().collect::<Vec<_>>(), waits);
        }
    }
}
