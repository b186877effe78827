//! Hosts, VMs, devices and channels: limits, faults, counters, and what is left at the end.
#![cfg(not(loom))]

mod common;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::Arc;

use common::*;
use iommu::{
    AttachError, Counters, DmaError, Endpoint, Host, HostError, Invalidation, Pasid, SoftwareHost,
    Ticket, Vm, VmConfig, FAULT_QUEUE_LIMIT, MAX_DEVICES, MAX_VMS,
};
use mem::{Gpa, GuestMemory, MemoryMap};
use pci::RequesterId;

const PAGE: u64 = 0x10_0000;
const VA: u64 = 0x1_2345_6000;

fn bound(host: &SoftwareHost) -> Guest {
    let mut guest = Guest::on(host);
    let root = guest.table();
    guest.set_first(root, VA, 1, PAGE | PRESENT | WRITABLE | USER);
    guest.set_pasid(1, first_stage(root, DOMAIN));
    guest
}

fn config() -> VmConfig {
    VmConfig::named("one")
}

#[test]
fn a_new_vm_has_nothing() {
    let vm = SoftwareHost::new().create_vm(config()).unwrap();
    assert_eq!(vm.name(), "one");
    assert_eq!(vm.counters(), Counters::default());
    assert!(vm.memory().segments().is_empty());
    assert_eq!(vm.take_fault(), None);
    let channel = vm.attach(DEVICE).unwrap().channel();
    assert_eq!(dma(&channel, without(), 0, Op::Read), Err(DmaError::Detached), "not kept");
}

#[test]
fn a_host_has_its_limit_of_vms() {
    let host = SoftwareHost::new();
    let mut vms: Vec<_> = (0..MAX_VMS).map(|_| host.create_vm(config()).unwrap()).collect();
    let refused = host.create_vm(config()).unwrap_err();
    assert_eq!(refused, HostError::TooManyVms { limit: MAX_VMS });
    // Closed or dropped, a VM leaves its place to the next.
    let _ = vms[0].close();
    let _ = vms[0].close();
    assert_eq!(host.vms(), MAX_VMS - 1);
    drop(vms.pop());
    assert_eq!(host.vms(), MAX_VMS - 2);
    assert!(host.create_vm(config()).is_ok());
}

#[test]
fn a_vm_has_its_limit_of_devices() {
    let vm = SoftwareHost::new().create_vm(config()).unwrap();
    let attach = |bits: usize| vm.attach(RequesterId::from_bits(bits as u16));
    let mut devices: Vec<Endpoint> = (0..MAX_DEVICES).map(|bits| attach(bits).unwrap()).collect();
    let limit = AttachError::TooManyDevices { limit: MAX_DEVICES };
    assert_eq!(attach(MAX_DEVICES).unwrap_err(), limit);
    devices.pop();
    assert_eq!(attach(0).unwrap_err(), AttachError::Duplicate(RequesterId::from_bits(0)));
    assert!(attach(MAX_DEVICES).is_ok());
    let _ = vm.close();
    assert_eq!(attach(300).unwrap_err(), AttachError::Closed);
    assert_eq!(vm.counters().devices, 0);
}

#[test]
fn detaching_waits_for_what_is_in_flight_and_leaves_nothing() {
    let guest = bound(&SoftwareHost::new());
    let before = guest.vm.counters();
    let (endpoint, channel) = guest.attach();
    let other = endpoint.channel();
    dma(&other, with(1), VA, Op::Write).unwrap();
    let access = channel.enter();
    let window = access.window(with(1), mem::Iova(VA), 8, mem::Access::Write).unwrap();
    let ticket = endpoint.detach();
    assert_eq!(guest.vm.counters().devices, 0);
    assert!(!guest.vm.is_complete(ticket));
    // The access may end what it began; new ones do not begin.
    window.store_u64(0, 77).unwrap();
    assert_eq!(dma(&other, with(1), VA, Op::Read), Err(DmaError::Detached));
    drop(access);
    assert!(guest.vm.is_complete(ticket));
    assert_eq!(dma(&channel, with(1), VA, Op::Read), Err(DmaError::Detached));
    // The same requester again, while old channels exist.
    let (_endpoint, new) = guest.attach();
    assert_eq!(dma(&new, with(1), VA, Op::Read), Ok(77));
    assert_eq!(dma(&channel, with(1), VA, Op::Read), Err(DmaError::Detached));
    drop((new, _endpoint, channel, other));
    let after = guest.vm.counters();
    let (cached, devices) = ((after.iotlb_entries, after.pasid_entries), after.devices);
    assert_eq!((cached, devices), ((0, 0), 0));
    assert!(after.translations > before.translations, "history outlives the channels");
}

#[test]
fn a_ticket_that_was_never_given_is_never_complete() {
    let vm = SoftwareHost::new().create_vm(config()).unwrap();
    let channel = vm.attach(DEVICE).unwrap().channel();
    let access = channel.enter();
    let real = vm.invalidate(Invalidation::IotlbAll);
    for forged in [real.sequence() + 1, u64::MAX] {
        assert!(!vm.is_complete(Ticket::new(forged)));
    }
    // Nor does it make another complete.
    assert!(!vm.is_complete(real));
    drop(access);
    assert!(vm.is_complete(Ticket::new(real.sequence())));
    assert!(!vm.is_complete(Ticket::new(u64::MAX)));
    let access = channel.enter();
    assert!(!vm.is_complete(vm.invalidate(Invalidation::IotlbAll)), "not over because of it");
    drop(access);
}

#[test]
fn memory_is_freed_when_the_ticket_is_complete() {
    let mut guest = bound(&SoftwareHost::new());
    let (_endpoint, channel) = guest.attach();
    dma(&channel, with(1), VA, Op::Read).unwrap();
    let backing = Arc::downgrade(&guest.memory.segments()[0].backing);
    guest.memory = Arc::default();
    let access = channel.enter();
    let ticket = guest.vm.set_memory(MemoryMap::default());
    assert!(!guest.vm.is_complete(ticket));
    assert!(backing.upgrade().is_some(), "in use");
    drop(access);
    assert!(guest.vm.is_complete(ticket));
    assert!(backing.upgrade().is_none());
    assert!(dma(&channel, with(1), VA, Op::Read).is_err());
}

#[test]
fn a_closed_vm_is_inert() {
    let host = SoftwareHost::new();
    let guest = bound(&host);
    let (endpoint, channel) = guest.attach();
    assert!(dma(&channel, with(2), VA, Op::Read).is_err());
    let ticket = guest.vm.close();
    assert!(guest.vm.is_complete(ticket));
    assert_eq!(guest.vm.take_fault(), None);
    let again = guest.vm.close();
    assert!(guest.vm.is_complete(again));
    let adopted = guest.vm.set_memory(MemoryMap::clone(&guest.memory));
    assert!(guest.vm.is_complete(adopted));
    guest.vm.set_contexts(Some(guest.context.clone()));
    assert!(guest.vm.memory().segments().is_empty());
    assert_eq!(Arc::strong_count(&guest.context), 1, "nobody asks for contexts any more");
    for channel in [&channel, &endpoint.channel()] {
        assert_eq!(dma(channel, without(), PAGE, Op::Read), Err(DmaError::Detached));
        assert_eq!(dma(channel, with(1), VA, Op::Read), Err(DmaError::Detached));
    }
    let counters = guest.vm.counters();
    assert_eq!((counters.iotlb_entries, counters.pasid_entries, counters.devices), (0, 0, 0));
}

#[test]
fn faults_are_bounded_and_counted_and_wake_once() {
    let guest = bound(&SoftwareHost::new());
    let (_endpoint, channel) = guest.attach();
    let woken = Arc::new(AtomicUsize::new(0));
    let count = woken.clone();
    guest.vm.set_fault_waker(Some(Arc::new(move || {
        count.fetch_add(1, Ordering::Relaxed);
    })));
    for page in 0..FAULT_QUEUE_LIMIT as u64 + 5 {
        assert!(dma(&channel, with(1), VA + 0x1000 * (page + 1), Op::Read).is_err());
    }
    let counters = guest.vm.counters();
    assert_eq!((counters.faults, counters.faults_lost), (FAULT_QUEUE_LIMIT as u64, 5));
    assert_eq!(woken.load(Ordering::Relaxed), 1);
    for page in 0..FAULT_QUEUE_LIMIT as u64 {
        let fault = guest.vm.take_fault().unwrap();
        assert_eq!(fault.address.0, VA + 0x1000 * (page + 1), "the oldest first");
    }
    assert_eq!(guest.vm.take_fault(), None);
    assert!(dma(&channel, with(2), VA, Op::Read).is_err());
    assert_eq!(woken.load(Ordering::Relaxed), 2);
    guest.vm.set_fault_waker(None);
    assert_eq!(Arc::strong_count(&woken), 1);
}

#[test]
fn counters_count() {
    let guest = bound(&SoftwareHost::new());
    let (_endpoint, channel) = guest.attach();
    for op in [Op::Read, Op::Read, Op::Write, Op::Write, Op::Read] {
        dma(&channel, with(1), VA, op).unwrap();
    }
    let invalidations = guest.vm.counters().invalidations;
    let counters = guest.vm.counters();
    let expected = Counters {
        translations: 5,
        // The first read, and the first write to a page that is clean.
        iotlb_misses: 2,
        walks: 2,
        iotlb_hits: 3,
        pasid_entry_reads: 1,
        context_lookups: 1,
        iotlb_entries: 1,
        pasid_entries: 1,
        devices: 1,
        invalidations,
        faults: 0,
        faults_lost: 0,
        ungranted: 0,
        // The directory's word, the entry's eight, four of the table's which the first read marks,
        // and the page; for the write the four again, one mark, and the page.
        stage_two_walks: of_no_memory(0, 1 + 8 + 8 + 1 + 4 + 1 + 1),
        stage_two_faults: 0,
        // Its ATS is off.
        device_tlb_hits: 0,
        device_tlb_misses: 0,
        device_tlb_entries: 0,
        device_tlb_invalidations: 0,
        injected_walk_failures: 0,
    };
    assert_eq!(counters, expected);
    guest.settle_all();
    assert_eq!(guest.vm.counters().invalidations, invalidations + 3);
    dma(&channel, with(1), VA, Op::Read).unwrap();
    let counters = guest.vm.counters();
    assert_eq!((counters.context_lookups, counters.pasid_entry_reads, counters.walks), (2, 2, 3));
}

#[test]
fn guests_do_not_see_each_other() {
    let host = SoftwareHost::new();
    let guests = [bound(&host), bound(&host)];
    let channels: Vec<_> = guests.iter().map(Guest::attach).collect();
    for (guest, word) in guests.iter().zip([111, 222]) {
        guest.memory.store_u64(Gpa(PAGE), word).unwrap();
    }
    assert_eq!(dma(&channels[0].1, with(1), VA, Op::Read), Ok(111));
    assert_eq!(dma(&channels[1].1, with(1), VA, Op::Read), Ok(222));
    // An access in flight in one does not hold up the other; the end of one is not the other's.
    let access = channels[0].1.enter();
    guests[1].settle(Invalidation::IotlbAll);
    drop(access);
    let ticket = guests[0].vm.close();
    wait(&guests[0].vm, ticket);
    assert_eq!(dma(&channels[0].1, with(1), VA, Op::Read), Err(DmaError::Detached));
    assert_eq!(dma(&channels[1].1, with(1), VA, Op::Read), Ok(222));
    assert_eq!(host.vms(), 1);
}

#[test]
fn scopes_of_other_devices_do_not_wait_for_this_one() {
    let guest = bound(&SoftwareHost::new());
    let (_endpoint, channel) = guest.attach();
    let _access = channel.enter();
    let range = mem::Range { start: mem::Iova(0), last: mem::Iova(u64::MAX) };
    let other = RequesterId::from_bits(0x0999);
    guest.settle(Invalidation::DeviceTlb { requester: other, range });
    guest.settle(Invalidation::ContextDevice { requester: other, ignore: 0 });
    let own = guest.vm.invalidate(Invalidation::DeviceTlb { requester: DEVICE, range });
    assert!(!guest.vm.is_complete(own));
}

#[test]
fn turning_translation_off_and_on() {
    let guest = bound(&SoftwareHost::new());
    let (_endpoint, channel) = guest.attach();
    assert!(dma(&channel, with(1), VA, Op::Write).is_ok());
    guest.vm.set_contexts(None);
    assert!(dma(&channel, with(1), VA, Op::Read).is_ok(), "the cached context still counts");
    guest.settle(Invalidation::ContextAll);
    assert!(dma(&channel, with(1), VA, Op::Read).is_err());
    assert_eq!(dma(&channel, without(), PAGE, Op::Read), Ok(1));
    assert_eq!(guest.vm.take_fault(), None);
    guest.vm.set_contexts(Some(guest.context.clone()));
    guest.settle(Invalidation::ContextAll);
    assert_eq!(dma(&channel, with(1), VA, Op::Read), Ok(1));
}

#[test]
fn an_untranslated_endpoint() {
    let map = Arc::new(MemoryMap::anonymous(&[(Gpa(0x1000), 0x2000)]).unwrap());
    let endpoint = Endpoint::identity(DEVICE, map.clone());
    let channel = endpoint.channel();
    assert!(dma(&channel, with(9), 0x1000, Op::Write).is_ok());
    assert_eq!(map.load_u64(Gpa(0x1000)), Ok(1));
    let hole = dma(&channel, without(), 0x3000, Op::Read);
    assert!(matches!(hole, Err(DmaError::Page { .. })), "{hole:?}");
    let _ = endpoint.detach();
    assert_eq!(dma(&channel, with(9), 0x1000, Op::Read), Err(DmaError::Detached));
}

#[test]
fn domains_are_seen_while_something_of_them_is_cached() {
    let guest = bound(&SoftwareHost::new());
    let (_endpoint, channel) = guest.attach();
    assert!(guest.vm.cached_domains().is_empty());
    dma(&channel, with(1), VA, Op::Read).unwrap();
    assert_eq!(guest.vm.cached_domains().into_iter().collect::<Vec<_>>(), [DOMAIN]);
    let pasids: Vec<_> = guest.vm.cached_pasids().into_iter().collect();
    assert_eq!(pasids, [(Pasid::new(1).unwrap(), DOMAIN)]);
    // The PASID-table entry is of the domain too.
    let _ = guest.vm.invalidate(Invalidation::IotlbAll);
    assert_eq!(guest.vm.cached_domains().len(), 1);
    let _ = guest.vm.invalidate(Invalidation::PasidCacheDomain(DOMAIN));
    assert!(guest.vm.cached_domains().is_empty());
    assert!(guest.vm.cached_pasids().is_empty());
    // A channel that is in use is left alone.
    dma(&channel, with(1), VA, Op::Read).unwrap();
    let in_flight = channel.enter();
    assert!(guest.vm.cached_domains().is_empty());
    drop(in_flight);
    assert_eq!(guest.vm.cached_domains().len(), 1);
}
