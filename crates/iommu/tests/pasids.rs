//! The PASIDs that a host grants its VMs: quotas, numberings, parking, a VM's end, enforcement.
#![cfg(not(loom))]

mod common;

use std::cell::Cell;
use std::time::Duration;

use common::*;
use iommu::pasid::{GrantState, PasidReport};
use iommu::{
    AllocPasidError, DmaError, DomainId, FaultReason, FreePasidError, GuestPasid, Host, HostError,
    Numbering, PasidRange, PasidUsage, SoftwareHost, SoftwareVm, Vm, VmConfig, DEFAULT_QUOTA,
    MAX_VMS,
};
use mem::Access;

const PAGE: u64 = 0x10_0000;
const VA: u64 = 0x1_2345_6000;

fn range(first: u32, last: u32) -> PasidRange {
    PasidRange::new(pasid(first), pasid(last)).unwrap()
}

fn guest(number: u32) -> GuestPasid {
    GuestPasid(pasid(number))
}

fn vm(host: &SoftwareHost, quota: u32, numbering: Numbering) -> SoftwareVm {
    host.create_vm(VmConfig { quota, numbering, ..VmConfig::named("one") }).unwrap()
}

fn small(numbers: u32) -> SoftwareHost {
    let config = ioasid::Config { capacity: Some(numbers), ..ioasid::Config::default() };
    SoftwareHost::with_pasids(config, None).unwrap()
}

fn usage(quota: u32, live: u32, parked: u32) -> PasidUsage {
    PasidUsage { quota, live, parked }
}

/// A VM whose grants are enforced, with PASIDs 1 to 9 mapped in its tables.
fn enforced(host: &SoftwareHost, numbering: Numbering) -> Guest {
    enforced_with(host, DEFAULT_QUOTA, numbering)
}

fn enforced_with(host: &SoftwareHost, quota: u32, numbering: Numbering) -> Guest {
    let config = VmConfig { quota, numbering, enforce_grants: true, ..VmConfig::named("enforced") };
    let mut guest = Guest::with(host, config);
    let root = guest.table();
    guest.set_first(root, VA, 1, PAGE | PRESENT | WRITABLE | USER);
    for number in 0..10 {
        guest.set_pasid(number, first_stage(root, DomainId(number as u16)));
    }
    guest
}

#[test]
fn a_free_number_of_the_range_is_granted() {
    let vm = vm(&SoftwareHost::new(), 10, Numbering::Identity);
    assert_eq!(vm.alloc_pasid(PasidRange::ALL), Ok(guest(1)), "zero is never granted");
    assert_eq!(vm.alloc_pasid(range(0, 5)), Ok(guest(2)));
    assert_eq!(vm.alloc_pasid(range(0xf_fffe, 0xf_ffff)), Ok(guest(0xf_fffe)));
    assert_eq!(vm.alloc_pasid(range(0xf_fffe, 0xf_ffff)), Ok(guest(0xf_ffff)));
    assert_eq!(vm.alloc_pasid(range(0xf_fffe, 0xf_ffff)), Err(AllocPasidError::NoneAvailable));
    assert_eq!(vm.alloc_pasid(range(0, 0)), Err(AllocPasidError::NoneAvailable));
    let inverted = PasidRange { first: pasid(9), last: pasid(3) };
    assert_eq!(vm.alloc_pasid(inverted), Err(AllocPasidError::NoneAvailable));
    assert_eq!(vm.pasid_usage(), usage(10, 4, 0));
}

#[test]
fn a_quota_is_set_aside_and_comes_back() {
    let host = small(100);
    let (a, b) = (vm(&host, 60, Numbering::Identity), vm(&host, 40, Numbering::Private));
    let more = VmConfig { quota: 1, ..VmConfig::default() };
    let refused = HostError::QuotaUnavailable { quota: 1, available: 0 };
    assert_eq!(host.create_vm(more.clone()).unwrap_err(), refused);
    assert_eq!(host.vms(), 2, "a refused VM takes no place");
    for vm in [&a, &b] {
        let quota = vm.pasid_usage().quota;
        for _ in 0..quota {
            vm.alloc_pasid(PasidRange::ALL).unwrap();
        }
        let refused = AllocPasidError::QuotaExceeded { quota };
        assert_eq!(vm.alloc_pasid(PasidRange::ALL), Err(refused));
    }
    let ticket = a.close();
    assert!(a.is_complete(ticket));
    assert_eq!(host.pasid_report().promised, 40);
    drop(b);
    let report = PasidReport { capacity: 100, ..PasidReport::default() };
    assert_eq!(host.pasid_report(), report, "dropping a VM's last handle ends it too");
    assert!(host.create_vm(VmConfig { quota: 100, ..more }).is_ok());
}

#[test]
fn the_default_quotas_of_all_vms_fit() {
    assert!(MAX_VMS as u32 * DEFAULT_QUOTA < 1 << 20);
    let vm = SoftwareHost::new().create_vm(VmConfig::default()).unwrap();
    assert_eq!(vm.pasid_usage(), usage(DEFAULT_QUOTA, 0, 0));
    let none = SoftwareHost::new().create_vm(VmConfig { quota: 0, ..VmConfig::default() }).unwrap();
    let refused = AllocPasidError::QuotaExceeded { quota: 0 };
    assert_eq!(none.alloc_pasid(PasidRange::ALL), Err(refused));
}

#[test]
fn only_what_was_granted_can_be_freed_and_only_once() {
    let host = SoftwareHost::new();
    for numbering in [Numbering::Identity, Numbering::Private] {
        let (a, b) = (vm(&host, 5, numbering), vm(&host, 5, numbering));
        let of_a = a.alloc_pasid(range(100, 200)).unwrap();
        for number in [0, 99, 100, 0xf_ffff] {
            let forged = guest(number);
            assert_eq!(b.free_pasid(forged), Err(FreePasidError::NotGranted(forged)));
        }
        assert_eq!(a.pasid_usage(), usage(5, 1, 0));
        assert_eq!(a.free_pasid(of_a), Ok(()));
        assert_eq!(a.free_pasid(of_a), Err(FreePasidError::NotGranted(of_a)));
        assert_eq!(a.pasid_usage(), usage(5, 0, 0));
        assert_eq!(a.alloc_pasid(range(100, 200)), Ok(of_a));
        let _ = a.close();
        assert_eq!(a.free_pasid(of_a), Err(FreePasidError::Closed));
        assert_eq!(a.alloc_pasid(PasidRange::ALL), Err(AllocPasidError::Closed));
    }
}

#[test]
fn two_vms_use_the_same_private_number_and_never_the_same_host_number() {
    let host = SoftwareHost::new();
    let (a, b) = (vm(&host, 9, Numbering::Private), vm(&host, 9, Numbering::Private));
    for number in 1..=9 {
        for vm in [&a, &b] {
            assert_eq!(vm.alloc_pasid(PasidRange::ALL), Ok(guest(number)));
        }
    }
    let report = host.pasid_report();
    let mut numbers: Vec<_> =
        report.vms.iter().flat_map(|vm| &vm.entries).map(|entry| entry.host).collect();
    numbers.sort_unstable();
    numbers.dedup();
    assert_eq!(numbers.len(), 18);
    // One's end leaves the other's alone.
    let ticket = a.close();
    assert!(a.is_complete(ticket));
    assert_eq!(b.pasid_usage(), usage(9, 9, 0));
    assert_eq!(b.free_pasid(guest(9)), Ok(()));
}

#[test]
fn a_number_stays_parked_while_an_access_may_name_it() {
    for numbering in [Numbering::Identity, Numbering::Private] {
        let host = small(2);
        let config = VmConfig { quota: 2, numbering, ..VmConfig::named("parking") };
        let guest_of = Guest::with(&host, config);
        let (_endpoint, channel) = guest_of.attach();
        let vm = &guest_of.vm;
        let granted = vm.alloc_pasid(range(5, 5)).unwrap();
        let access = channel.enter();
        vm.free_pasid(granted).unwrap();
        assert_eq!(vm.pasid_usage(), usage(2, 0, 1));
        assert_eq!(vm.alloc_pasid(range(5, 5)), Err(AllocPasidError::NoneAvailable));
        assert!(vm.alloc_pasid(range(6, 6)).is_ok());
        let refused = AllocPasidError::QuotaExceeded { quota: 2 };
        assert_eq!(vm.alloc_pasid(PasidRange::ALL), Err(refused), "parked ones count");
        let report = &host.pasid_report().vms[0];
        let parked = &report.entries[1];
        assert_eq!((parked.guest, parked.state), (granted, GrantState::Parked));
        assert_eq!(parked.holders, ["iotlb"]);
        drop(access);
        assert_eq!(vm.alloc_pasid(range(5, 5)), Ok(granted));
    }
}

#[test]
fn a_parked_number_waits_for_accesses_of_its_own_time_only() {
    let host = SoftwareHost::new();
    let guest_of = Guest::on(&host);
    let (_endpoint, channel) = guest_of.attach();
    let vm = &guest_of.vm;
    let [first, second] = [1, 2].map(|number| vm.alloc_pasid(range(number, number)).unwrap());
    let access = channel.enter();
    vm.free_pasid(first).unwrap();
    drop(access);
    let access = channel.enter();
    vm.free_pasid(second).unwrap();
    assert_eq!(vm.pasid_usage(), usage(DEFAULT_QUOTA, 0, 1));
    assert_eq!(vm.alloc_pasid(range(1, 1)), Ok(first));
    drop(access);
    assert_eq!(vm.pasid_usage(), usage(DEFAULT_QUOTA, 1, 0));
}

#[test]
fn freeing_forgets_what_is_cached_for_that_pasid_alone() {
    let guest_of = enforced(&SoftwareHost::new(), Numbering::Identity);
    let (_endpoint, channel) = guest_of.attach();
    for number in 1..=3 {
        guest_of.vm.alloc_pasid(range(number, number)).unwrap();
        dma(&channel, with(number), VA, Op::Write).unwrap();
    }
    guest_of.vm.free_pasid(guest(2)).unwrap();
    assert_eq!(guest_of.vm.pasid_usage().parked, 0);
    let counters = guest_of.vm.counters();
    assert_eq!((counters.pasid_entries, counters.iotlb_entries), (2, 2));
    let domains = [1, 3].map(DomainId);
    assert!(guest_of.vm.cached_domains().into_iter().eq(domains));
}

#[test]
fn where_grants_are_enforced_others_are_refused_and_counted() {
    for numbering in [Numbering::Identity, Numbering::Private] {
        let guest_of = enforced(&SoftwareHost::new(), numbering);
        let (vm, refused) =
            (&guest_of.vm, DmaError::Refused { address: mem::Iova(VA), access: Access::Write });
        let (_endpoint, channel) = guest_of.attach();
        // Requests without PASID are none of this, and do not open PASID 0.
        dma(&channel, without(), VA, Op::Write).unwrap();
        assert_eq!(dma(&channel, with(0), VA, Op::Write), Err(refused));
        assert_eq!(dma(&channel, with(3), VA, Op::Write), Err(refused));
        for _ in 0..2 {
            assert_eq!(vm.take_fault().unwrap().reason, FaultReason::PasidEntryNotPresent);
        }
        assert_eq!(vm.counters().ungranted, 2);

        vm.alloc_pasid(range(3, 3)).unwrap();
        dma(&channel, with(3), VA, Op::Write).unwrap();
        dma(&channel, without(), VA, Op::Write).unwrap();
        vm.free_pasid(guest(3)).unwrap();
        assert_eq!(dma(&channel, with(3), VA, Op::Write), Err(refused));
        assert_eq!(vm.counters().ungranted, 3);
    }
}

#[test]
fn a_vm_s_own_numbers_are_the_lowest_that_are_free() {
    let config = ioasid::Config { width: 3, ..ioasid::Config::default() };
    let host = SoftwareHost::with_pasids(config, None).unwrap();
    let guest_of = enforced_with(&host, 7, Numbering::Private);
    let (_endpoint, channel) = guest_of.attach();
    let vm = &guest_of.vm;
    let alloc = |range| vm.alloc_pasid(range);
    for number in 1..=3 {
        assert_eq!(alloc(PasidRange::ALL), Ok(guest(number)));
    }
    assert_eq!(alloc(range(2, 0xf_ffff)), Ok(guest(4)));
    assert_eq!(alloc(range(0xf_ffff, 0xf_ffff)), Ok(guest(0xf_ffff)), "wider than the host's");
    assert_eq!(alloc(range(0xf_ffff, 0xf_ffff)), Err(AllocPasidError::NoneAvailable));
    let access = channel.enter();
    vm.free_pasid(guest(2)).unwrap();
    assert_eq!(alloc(PasidRange::ALL), Ok(guest(5)), "2 is parked, and not named anew");
    assert_eq!(alloc(range(2, 2)), Err(AllocPasidError::NoneAvailable));
    drop(access);
    assert_eq!(alloc(PasidRange::ALL), Ok(guest(2)));
    assert_eq!(vm.pasid_usage(), usage(7, 6, 0), "what was refused is given back");
    host.check_books().unwrap();
}

#[test]
fn another_vm_s_pasid_is_not_granted() {
    let host = SoftwareHost::new();
    let (mine, other) =
        (enforced(&host, Numbering::Identity), enforced(&host, Numbering::Identity));
    let (_endpoint, channel) = mine.attach();
    other.vm.alloc_pasid(range(4, 4)).unwrap();
    assert!(dma(&channel, with(4), VA, Op::Read).is_err());
    assert_eq!((mine.vm.counters().ungranted, other.vm.counters().ungranted), (1, 0));
    // Given back by the other and granted to this one.
    other.vm.free_pasid(guest(4)).unwrap();
    assert_eq!(other.vm.pasid_usage().parked, 0);
    mine.vm.alloc_pasid(range(4, 4)).unwrap();
    dma(&channel, with(4), VA, Op::Read).unwrap();
}

#[test]
fn without_enforcement_a_guest_numbers_its_pasids_itself() {
    let mut guest_of = Guest::on(&SoftwareHost::new());
    let root = guest_of.table();
    guest_of.set_first(root, VA, 1, PAGE | PRESENT | WRITABLE | USER);
    guest_of.set_pasid(7, first_stage(root, DOMAIN));
    let (_endpoint, channel) = guest_of.attach();
    dma(&channel, with(7), VA, Op::Write).unwrap();
    assert_eq!(guest_of.vm.counters().ungranted, 0);
}

#[test]
fn a_closed_vm_owes_its_quota_until_the_last_access_is_over() {
    let host = small(8);
    let guest_of = Guest::with(&host, VmConfig { quota: 8, ..VmConfig::named("dying") });
    let (_endpoint, channel) = guest_of.attach();
    for _ in 0..5 {
        guest_of.vm.alloc_pasid(PasidRange::ALL).unwrap();
    }
    let access = channel.enter();
    let ticket = guest_of.vm.close();
    assert!(!guest_of.vm.is_complete(ticket));
    let report = host.pasid_report();
    assert_eq!((report.promised, report.live, report.parked), (8, 0, 5));
    assert!(report.vms[0].closed);
    assert_eq!(report.vms[0].usage, usage(8, 0, 5));
    assert!(host.create_vm(VmConfig { quota: 1, ..VmConfig::default() }).is_err());
    drop(access);
    assert!(guest_of.vm.is_complete(ticket));
    let report = PasidReport { capacity: 8, ..PasidReport::default() };
    assert_eq!(host.pasid_report(), report);
}

#[test]
fn a_reset_takes_every_pasid_and_leaves_the_vm() {
    let host = SoftwareHost::new();
    let guest_of = enforced(&host, Numbering::Identity);
    let (_endpoint, channel) = guest_of.attach();
    for number in 1..=5 {
        guest_of.vm.alloc_pasid(range(number, number)).unwrap();
        dma(&channel, with(number), VA, Op::Read).unwrap();
    }
    let access = channel.enter();
    let ticket = guest_of.vm.release_pasids();
    assert!(!guest_of.vm.is_complete(ticket));
    assert_eq!(guest_of.vm.pasid_usage(), usage(DEFAULT_QUOTA, 0, 5));
    drop(access);
    assert!(guest_of.vm.is_complete(ticket));
    assert_eq!(guest_of.vm.pasid_usage(), usage(DEFAULT_QUOTA, 0, 0));
    assert!(dma(&channel, with(1), VA, Op::Read).is_err());
    assert_eq!(guest_of.vm.alloc_pasid(range(1, 1)), Ok(guest(1)));
    dma(&channel, with(1), VA, Op::Read).unwrap();
}

#[test]
fn a_report_says_who_has_what_and_since_when() {
    thread_local!(static NOW: Cell<u64> = const { Cell::new(0) });
    let clock = || Duration::from_secs(NOW.get());
    let host = SoftwareHost::with_pasids(ioasid::Config::default(), Some(clock)).unwrap();
    let guest_of = enforced(&host, Numbering::Private);
    let (_endpoint, channel) = guest_of.attach();
    guest_of.vm.alloc_pasid(range(4, 9)).unwrap();
    dma(&channel, with(4), VA, Op::Read).unwrap();
    NOW.set(5);
    let report = host.pasid_report();
    let vm = &report.vms[0];
    assert_eq!((vm.name.as_str(), vm.numbering), ("enforced", Numbering::Private));
    assert_eq!((vm.enforced, vm.closed), (true, false));
    let entry = &vm.entries[0];
    assert_eq!((entry.guest, entry.host.0), (guest(4), pasid(1)));
    assert_eq!(entry.state, GrantState::Live);
    assert_eq!(entry.holders, ["guest", "iotlb"], "a cache may have it already");
    assert_eq!((entry.domain, entry.age), (Some(DomainId(4)), Some(Duration::from_secs(5))));
    let access = channel.enter();
    guest_of.vm.free_pasid(guest(4)).unwrap();
    NOW.set(7);
    assert_eq!(host.pasid_report().vms[0].entries[0].age, Some(Duration::from_secs(2)));
    drop(access);
}
