//! Devices that do not answer the invalidations of their own TLBs, and walks that fail on request.
#![cfg(not(loom))]

mod common;

use std::time::Duration;

use common::hosted::Hosted;
use common::*;
use iommu::{
    Endpoint, FaultReason, Invalidation, PasidRange, Stage, StageOneInvalidation, Ticket,
    Unanswered, Vm,
};
use mem::{Gpa, GuestMemory, Iova, MemoryMap, Range};
use pci::RequesterId;

const VA: u64 = 0x7f00_1234_5000;
const PAGE: u64 = 0x10_0000;
const OTHER: RequesterId = RequesterId::from_bits(0x0090);
const EVERYWHERE: Range<Iova> = Range { start: Iova(0), last: Iova(u64::MAX) };

fn of_device(requester: RequesterId) -> Invalidation {
    Invalidation::DeviceTlbPasid { requester, pasid: None, range: EVERYWHERE }
}

fn bound() -> Guest {
    let mut guest = Guest::new();
    let root = guest.table();
    guest.set_first(root, VA, 1, PAGE | PRESENT | WRITABLE | USER);
    guest.set_pasid(1, first_stage(root, DOMAIN));
    guest.memory.store_u64(Gpa(PAGE), 5).unwrap();
    guest
}

fn before(ticket: Ticket) -> Ticket {
    Ticket::new(ticket.sequence() - 1)
}

/// Has a device cache translations and never answer an invalidation.
fn silence(endpoint: &Endpoint) {
    endpoint.set_ats(true);
    endpoint.withhold_invalidation_answers(true);
}

#[test]
fn an_answer_that_is_withheld_keeps_the_guest_waiting() {
    let guest = bound();
    let (endpoint, channel) = guest.attach();
    let other = guest.vm.attach(OTHER).unwrap();
    endpoint.set_ats(true);
    other.set_ats(true);
    dma(&channel, with(1), VA, Op::Read).unwrap();
    let earlier = guest.vm.invalidate(of_device(DEVICE));
    endpoint.withhold_invalidation_answers(true);
    assert!(guest.vm.is_complete(earlier), "answered before");
    let owed = guest.vm.invalidate(of_device(DEVICE));
    assert!(!guest.vm.is_complete(owed));
    let unanswered = Unanswered { requester: DEVICE, ticket: before(owed) };
    assert_eq!(guest.vm.unanswered(owed), Some(unanswered));
    assert!(guest.vm.is_complete(earlier), "still");
    assert_eq!(guest.vm.unanswered(earlier), None);
    // What is asked later, of whomever, is later.
    let after = guest.vm.invalidate(of_device(OTHER));
    assert!(!guest.vm.is_complete(after));
    assert_eq!(guest.vm.unanswered(after), Some(unanswered));
    // The device forgets all the same.
    assert_eq!(guest.vm.counters().device_tlb_entries, 0);
    assert_eq!(guest.vm.counters().device_tlb_invalidations, 3);

    endpoint.withhold_invalidation_answers(false);
    assert_eq!(guest.vm.unanswered(after), None);
    assert!(guest.vm.is_complete(owed) && guest.vm.is_complete(after));
}

/// The device that has owed for longest is named first.
#[test]
fn two_that_owe() {
    let guest = bound();
    let (endpoint, _channel) = guest.attach();
    let other = guest.vm.attach(OTHER).unwrap();
    for endpoint in [&endpoint, &other] {
        silence(endpoint);
    }
    let first = guest.vm.invalidate(of_device(OTHER));
    let second = guest.vm.invalidate(of_device(DEVICE));
    let named = |ticket| guest.vm.unanswered(ticket).map(|unanswered| unanswered.requester);
    assert_eq!((named(first), named(second)), (Some(OTHER), Some(OTHER)));
    other.withhold_invalidation_answers(false);
    assert_eq!((named(first), named(second)), (None, Some(DEVICE)));
    assert!(guest.vm.is_complete(first) && !guest.vm.is_complete(second));
}

/// A device that never answers, once that is given up, holds up nobody: neither another device nor
/// what is asked of it later, which it owes afresh.
#[test]
fn what_is_given_up_is_waited_for_no_more() {
    let guest = bound();
    let (endpoint, _channel) = guest.attach();
    let other = guest.vm.attach(OTHER).unwrap();
    endpoint.set_ats(true);
    other.set_ats(true);
    endpoint.withhold_invalidation_answers(true);
    let (vm, complete) = (&guest.vm, |ticket| guest.vm.is_complete(ticket));
    let owed = vm.invalidate(of_device(DEVICE));
    // An earlier one is nothing that it owes.
    vm.give_up_answers(before(owed));
    assert!(!complete(owed));
    vm.give_up_answers(owed);
    assert!(complete(owed));
    assert_eq!(vm.unanswered(owed), None);
    let of_other = vm.invalidate(of_device(OTHER));
    assert!(complete(of_other));

    let again = vm.invalidate(of_device(DEVICE));
    assert!(complete(of_other) && !complete(again));
    let unanswered = Unanswered { requester: DEVICE, ticket: before(again) };
    assert_eq!(vm.unanswered(again), Some(unanswered));
    // Twice is once, and is about what was asked before.
    vm.give_up_answers(owed);
    vm.give_up_answers(of_other);
    assert_eq!(vm.unanswered(again), Some(unanswered));
    // Nor is one beyond the latest about what is to come.
    vm.give_up_answers(Ticket::new(u64::MAX));
    assert!(complete(again));
    let later = vm.invalidate(of_device(DEVICE));
    assert!(complete(again) && !complete(later));
    endpoint.withhold_invalidation_answers(false);
    assert!(complete(later));
}

#[test]
fn what_was_asked_after_the_one_given_up_is_owed() {
    let guest = bound();
    let (endpoint, _channel) = guest.attach();
    silence(&endpoint);
    let owed: Vec<_> = (0..3).map(|_| guest.vm.invalidate(of_device(DEVICE))).collect();
    for (given_up, ticket) in owed.iter().enumerate() {
        assert!(!guest.vm.is_complete(*ticket));
        guest.vm.give_up_answers(*ticket);
        let complete = owed.iter().take_while(|ticket| guest.vm.is_complete(**ticket)).count();
        assert_eq!(complete, given_up + 1);
    }
}

/// All of them have had their time, whichever is named.
#[test]
fn every_devices_answer_is_given_up() {
    let guest = bound();
    let (endpoint, _channel) = guest.attach();
    let other = guest.vm.attach(OTHER).unwrap();
    for endpoint in [&endpoint, &other] {
        silence(endpoint);
    }
    let _first = guest.vm.invalidate(of_device(DEVICE));
    let second = guest.vm.invalidate(of_device(OTHER));
    guest.vm.give_up_answers(second);
    assert_eq!(guest.vm.unanswered(second), None);
    assert!(guest.vm.is_complete(second));
}

/// A point after the accesses in flight, and after nothing else.
#[test]
fn accesses_in_flight_have_a_ticket_of_their_own() {
    let guest = bound();
    let (endpoint, channel) = guest.attach();
    silence(&endpoint);
    dma(&channel, with(1), VA, Op::Read).unwrap();
    let owed = guest.vm.invalidate(of_device(DEVICE));
    let idle = guest.vm.in_flight();
    assert!(guest.vm.is_complete(idle), "neither an access nor an answer is waited for");
    assert_eq!(guest.vm.unanswered(idle), None);

    let before = guest.vm.counters();
    let access = channel.enter();
    let busy = guest.vm.in_flight();
    assert!(guest.vm.is_complete(idle) && !guest.vm.is_complete(busy));
    drop(access);
    assert!(guest.vm.is_complete(busy) && !guest.vm.is_complete(owed));
    let after = guest.vm.counters();
    assert_eq!(after, before, "nothing was forgotten");
    let closed = guest.vm.close();
    let after_all = guest.vm.in_flight();
    assert!(guest.vm.is_complete(closed) && guest.vm.is_complete(after_all));
}

/// The host waits for no device: memory and PASIDs are its own.
#[test]
fn the_host_does_not_wait() {
    let guest = bound();
    let (endpoint, channel) = guest.attach();
    let other = guest.vm.attach(OTHER).unwrap();
    silence(&endpoint);
    let range = PasidRange::new(pasid(1), pasid(1)).unwrap();
    let granted = guest.vm.alloc_pasid(range).unwrap();
    dma(&channel, with(1), VA, Op::Read).unwrap();
    let owed = guest.vm.invalidate(of_device(DEVICE));

    guest.vm.free_pasid(granted).unwrap();
    assert_eq!(guest.vm.pasid_usage().parked, 0);
    assert!(guest.vm.alloc_pasid(range).is_ok(), "nobody can name it any more");
    for ticket in [
        guest.vm.set_memory(MemoryMap::clone(&guest.memory)),
        guest.vm.release_pasids(),
        other.detach(),
    ] {
        assert!(guest.vm.is_complete(ticket));
        assert_eq!(guest.vm.unanswered(ticket), None);
    }
    assert!(!guest.vm.is_complete(owed));
    let closed = guest.vm.close();
    assert!(guest.vm.is_complete(closed) && guest.vm.is_complete(owed));
}

#[test]
fn a_device_that_is_reset_or_gone_owes_nothing() {
    let guest = bound();
    let (endpoint, _channel) = guest.attach();
    endpoint.withhold_invalidation_answers(true);
    let off = guest.vm.invalidate(of_device(DEVICE));
    assert!(guest.vm.is_complete(off), "it has no TLB while its ATS is off");
    endpoint.set_ats(true);
    let owed = guest.vm.invalidate(of_device(DEVICE));
    assert!(!guest.vm.is_complete(owed));
    endpoint.set_ats(false);
    assert!(guest.vm.is_complete(owed));
    // It has not changed its habits.
    endpoint.set_ats(true);
    let owed = guest.vm.invalidate(of_device(DEVICE));
    assert!(!guest.vm.is_complete(owed));
    let gone = endpoint.detach();
    assert!(guest.vm.is_complete(owed) && guest.vm.is_complete(gone));
    // Nor does the next device by this number have them.
    let (endpoint, _channel) = guest.attach();
    endpoint.set_ats(true);
    let ticket = guest.vm.invalidate(of_device(DEVICE));
    assert!(guest.vm.is_complete(ticket));
}

/// An access in flight and an answer that is owed are two things to wait for.
#[test]
fn an_answer_does_not_stand_for_an_access() {
    let guest = bound();
    let (endpoint, channel) = guest.attach();
    silence(&endpoint);
    let access = channel.enter();
    let owed = guest.vm.invalidate(of_device(DEVICE));
    endpoint.withhold_invalidation_answers(false);
    assert_eq!(guest.vm.unanswered(owed), None);
    assert!(!guest.vm.is_complete(owed), "in flight");
    drop(access);
    assert!(guest.vm.is_complete(owed));
}

#[test]
fn answers_of_attached_devices_are_owed_too() {
    let mut hosted = Hosted::new();
    let vm = hosted.guest.vm.clone();
    let space = hosted.space(PAGE, 5);
    hosted.grant(5);
    hosted.attach(5, space);
    hosted.endpoint.withhold_invalidation_answers(true);
    let all = [StageOneInvalidation::All];
    let off = vm.invalidate_hwpt(space, &all).unwrap();
    assert!(vm.is_complete(off));
    hosted.endpoint.set_ats(true);
    let owed = vm.invalidate_hwpt(space, &all).unwrap();
    let detached = vm.detach_hwpt(DEVICE, Some(common::hosted::guest(5))).unwrap();
    for ticket in [owed, detached] {
        assert!(!vm.is_complete(ticket));
        let named = vm.unanswered(ticket).map(|unanswered| unanswered.requester);
        assert_eq!(named, Some(DEVICE));
    }
    // Nothing is asked of anybody, but it comes after what was.
    let nothing = vm.invalidate_hwpt(space, &[]).unwrap();
    assert!(!vm.is_complete(nothing));
    hosted.endpoint.withhold_invalidation_answers(false);
    assert!(vm.is_complete(nothing));
    hosted.end();
}

#[test]
fn answers_that_take_their_time() {
    let guest = bound();
    let (endpoint, _channel) = guest.attach();
    endpoint.set_ats(true);
    let at = Duration::from_millis;
    // Whatever else may want to be called has longer.
    let tick = |now| guest.vm.tick(at(now)).filter(|next| *next < at(now + 1000));
    assert_eq!(tick(1000), None);
    guest.vm.delay_invalidation_answers(Some(at(50)));
    let owed = guest.vm.invalidate(of_device(DEVICE));
    assert_eq!(tick(1010), Some(at(1060)));
    assert_eq!(tick(1059), Some(at(1060)));
    assert!(!guest.vm.is_complete(owed));
    assert_eq!(tick(1060), None);
    assert!(guest.vm.is_complete(owed));
    // One that does not answer at all is not moved by time.
    endpoint.withhold_invalidation_answers(true);
    let owed = guest.vm.invalidate(of_device(DEVICE));
    assert_eq!(tick(2000), None);
    guest.vm.delay_invalidation_answers(None);
    assert!(!guest.vm.is_complete(owed));
    endpoint.withhold_invalidation_answers(false);
    assert!(guest.vm.is_complete(owed));
    // The end of the delay is the answer.
    guest.vm.delay_invalidation_answers(Some(Duration::MAX));
    let owed = guest.vm.invalidate(of_device(DEVICE));
    assert_eq!(tick(3000), None);
    assert!(!guest.vm.is_complete(owed));
    guest.vm.delay_invalidation_answers(None);
    assert!(guest.vm.is_complete(owed));
}

/// Giving up is the host's affair: the device answers when it does, and then all that it was asked.
#[test]
fn a_slow_device_answers_what_is_asked_again_with_what_was_given_up() {
    let guest = bound();
    let (endpoint, _channel) = guest.attach();
    endpoint.set_ats(true);
    let at = Duration::from_millis;
    guest.vm.delay_invalidation_answers(Some(at(50)));
    let first = guest.vm.invalidate(of_device(DEVICE));
    assert_eq!(guest.vm.tick(at(100)), Some(at(150)));
    guest.vm.give_up_answers(first);
    assert!(guest.vm.is_complete(first));
    let again = guest.vm.invalidate(of_device(DEVICE));
    assert_eq!(guest.vm.tick(at(149)), Some(at(150)));
    assert!(!guest.vm.is_complete(again));
    let _ = guest.vm.tick(at(150));
    assert!(guest.vm.is_complete(again));
    // What it is asked after its answer takes its own time.
    let later = guest.vm.invalidate(of_device(DEVICE));
    assert_eq!(guest.vm.tick(at(160)), Some(at(210)));
    assert!(!guest.vm.is_complete(later));
}

/// Every word that a first access loads, failed once: the directory's, the eight of the entry, and
/// one of each level.
#[test]
fn every_word_of_a_walk_can_fail() {
    let table = |level| FaultReason::TableAccess { stage: Stage::One, level };
    let reasons = [FaultReason::PasidDirectoryAccess]
        .into_iter()
        .chain([FaultReason::PasidEntryAccess; 8])
        .chain([4, 3, 2, 1].map(table));
    for (n, expected) in (1..).zip(reasons) {
        let guest = bound();
        let (_endpoint, channel) = guest.attach();
        guest.vm.inject_walk_failure(Some(n));
        assert!(dma(&channel, with(1), VA, Op::Read).is_err(), "{n}");
        let fault = guest.vm.take_fault().unwrap();
        assert_eq!((fault.reason, fault.stage_two), (expected, None), "{n}");
        assert_eq!(guest.vm.counters().injected_walk_failures, 1);
        // Once.
        assert_eq!(dma(&channel, with(1), VA, Op::Read), Ok(5), "{n}");
        assert_eq!(guest.vm.take_fault(), None);
    }
}

#[test]
fn no_more_words_are_loaded_and_it_can_be_taken_back() {
    let guest = bound();
    let (_endpoint, channel) = guest.attach();
    guest.vm.inject_walk_failure(Some(14));
    assert_eq!(dma(&channel, with(1), VA, Op::Read), Ok(5));
    // A hit loads none.
    assert_eq!(dma(&channel, with(1), VA, Op::Read), Ok(5));
    assert_eq!(guest.vm.counters().injected_walk_failures, 0);
    guest.vm.inject_walk_failure(None);
    guest.settle_all();
    assert_eq!(dma(&channel, with(1), VA, Op::Read), Ok(5));
    guest.vm.inject_walk_failure(Some(0));
    guest.settle_all();
    assert_eq!(dma(&channel, with(1), VA, Op::Read), Ok(5));
    assert_eq!(guest.vm.counters().injected_walk_failures, 0);
}
