use alloc::vec::Vec;

use mem::Range;
use pci::RequesterId;

use super::*;
use crate::cache::{Caches, Tag};
use crate::{AddressSpace, DomainId, Invalidation, Pasid};

const DEVICE: RequesterId = RequesterId::from_bits(0x0123);
const OTHER: RequesterId = RequesterId::from_bits(0x0124);
const PAGE: u64 = 0x40_0000;
const ALL: Rights = Rights { read: true, write: true };

fn pasid(number: u32) -> Pasid {
    Pasid::new(number).unwrap()
}

fn space(number: Option<u32>, privileged: bool) -> AddressSpace {
    AddressSpace { pasid: number.map(pasid), privileged }
}

/// Of the mapping of `size_bits` that `address` is in.
fn completion(address: u64, size_bits: u8, scope_bits: u8) -> Completion {
    let output = (Output(address & mask(size_bits)), u64::MAX);
    Completion::new(Iova(address), output, (size_bits, scope_bits), ALL, false)
}

fn range(start: u64, len: u64) -> Range<Iova> {
    Range::<Iova>::new(Iova(start), len).unwrap()
}

/// Every kind of entry, by name: the PASID of the request, its privilege, the address, and the size
/// by which invalidations find it.
type Named = (&'static str, Option<u32>, bool, u64, u8);

const NAMES: [Named; 6] = [
    ("none", None, false, PAGE, 12),
    ("user-7", Some(7), false, PAGE, 12),
    ("kernel-7", Some(7), true, PAGE, 12),
    ("next-7", Some(7), false, PAGE + 0x1000, 12),
    ("large-8", Some(8), false, PAGE, 21),
    ("tagged-9", Some(9), false, 0x5a << 56 | PAGE, 12),
];

/// The names of entries that a scope forgets.
fn forgotten(scope: Invalidation) -> Vec<&'static str> {
    let mut caches = Caches::new(DEVICE);
    caches.device_tlb.open();
    let tag = |(_, number, privileged, ..): &Named| Tag::of_space(space(*number, *privileged));
    for name in &NAMES {
        let (.., address, scope_bits) = *name;
        caches.device_tlb.insert(tag(name), Iova(address), completion(address, 12, scope_bits));
    }
    assert_eq!(caches.device_tlb.len(), NAMES.len());
    caches.forget(&scope);
    let gone = |name: &&Named| caches.device_tlb.get(tag(name), Iova(name.3)).is_none();
    NAMES.iter().filter(gone).map(|name| name.0).collect()
}

#[test]
fn scopes() {
    let plain = |requester, range| Invalidation::DeviceTlb { requester, range };
    assert_eq!(forgotten(plain(DEVICE, range(PAGE, 4096))), ["none"]);
    assert!(forgotten(plain(OTHER, range(PAGE, 4096))).is_empty());
    assert!(forgotten(plain(DEVICE, range(PAGE + 0x1000, 4096))).is_empty());

    let with = |requester, number: Option<u32>, range| Invalidation::DeviceTlbPasid {
        requester,
        pasid: number.map(pasid),
        range,
    };
    assert_eq!(forgotten(with(DEVICE, Some(7), range(PAGE, 4096))), ["user-7", "kernel-7"]);
    assert_eq!(forgotten(with(DEVICE, Some(7), range(PAGE + 0x1fff, 1))), ["next-7"]);
    assert!(forgotten(with(DEVICE, Some(6), range(PAGE, 4096))).is_empty());
    assert!(forgotten(with(OTHER, None, range(PAGE, 4096))).is_empty());
    // Any page of the mapping that it was made of.
    assert_eq!(forgotten(with(DEVICE, Some(8), range(PAGE + 0x1f_f000, 4096))), ["large-8"]);
    // Whatever the top byte was.
    assert_eq!(forgotten(with(DEVICE, Some(9), range(PAGE, 4096))), ["tagged-9"]);
    assert_eq!(forgotten(with(DEVICE, Some(9), range(0x5a << 56 | PAGE, 4096))), ["tagged-9"]);
    assert!(forgotten(with(DEVICE, Some(9), range(PAGE + 0x1000, 4096))).is_empty());
    let every = ["user-7", "kernel-7", "next-7", "large-8", "tagged-9"];
    let everywhere = crate::invalidation::EVERYWHERE;
    assert_eq!(forgotten(with(DEVICE, None, everywhere)), every);
}

#[test]
fn what_is_not_for_devices_leaves_it_alone() {
    let domain = DomainId(0);
    let pages = crate::PageRange { range: range(PAGE, 4096), leaf_only: false };
    for scope in [
        Invalidation::ContextAll,
        Invalidation::PasidCacheAll,
        Invalidation::PasidCache { domain, pasid: pasid(7) },
        Invalidation::IotlbAll,
        Invalidation::IotlbDomain(domain),
        Invalidation::IotlbPasid { domain, pasid: pasid(7) },
        Invalidation::IotlbPasidPages { domain, pasid: pasid(7), pages },
        Invalidation::Smmuv3(crate::SmmuInvalidation::ConfigAll),
        Invalidation::Smmuv3(crate::SmmuInvalidation::TlbAll),
    ] {
        assert!(forgotten(scope).is_empty(), "{scope:?}");
    }
}

#[test]
fn the_host_takes_a_pasid_back_and_everything() {
    let mut caches = Caches::new(DEVICE);
    caches.device_tlb.open();
    for number in [None, Some(1), Some(2)] {
        let tag = Tag::of_space(space(number, false));
        caches.device_tlb.insert(tag, Iova(PAGE), completion(PAGE, 12, 12));
    }
    caches.forget_pasid(pasid(1));
    let left = [None, Some(1), Some(2)]
        .map(|number| caches.device_tlb.get(Tag::of_space(space(number, false)), Iova(PAGE)));
    assert_eq!(left.map(|found| found.is_some()), [true, false, true]);
    caches.forget_all();
    assert_eq!(caches.device_tlb.len(), 0);
}

/// Requests of different privilege have entries of their own; without PASID there is no privilege.
#[test]
fn names() {
    let tag = |number, privileged| Tag::of_space(space(number, privileged));
    assert_ne!(tag(Some(1), false), tag(Some(1), true));
    assert_ne!(tag(Some(0), false), tag(None, false));
    assert_eq!(tag(None, false), tag(None, true));
    assert_eq!(
        (tag(Some(5), true).requested(), tag(None, false).requested()),
        (Some(pasid(5)), None)
    );
}

/// A completion covers no more than the request may reach from its address on.
#[test]
fn sizes() {
    let address = 3 << 20 | 0x5678;
    let of = |size_bits, reach| {
        let base = if size_bits < 40 { 1 << 40 } else { 0 };
        let output = (Output(base | address & mask(size_bits)), reach);
        let completion = Completion::new(Iova(address), output, (size_bits, 30), ALL, false);
        let (output, left) = completion.translate(Iova(address & !0xfff | 0x123));
        assert_eq!(output, Output(base | address & mask(size_bits) & !0xfff | 0x123));
        (completion.size_bits, left)
    };
    assert_eq!(of(12, u64::MAX), (12, 0xfff - 0x123));
    assert_eq!(of(21, u64::MAX), (21, 0x1f_ffff - 0x10_5123));
    // Up to 64 KiB from the start of the MiB, then up to the end of the page.
    assert_eq!(of(21, 0xffff - 0x5678), (16, 0xffff - 0x5123));
    // The page before this one may belong to it: an entry is for the page that was asked for.
    assert_eq!(of(21, 0xfff - 0x678), (13, 0xfff - 0x123));
    assert_eq!(of(63, u64::MAX >> 1), (63, (1 << 63) - 1 - (address & !0xfff | 0x123)));
}

#[test]
fn rights() {
    let allowed =
        Allowed::default().with(Access::Read, false, true).with(Access::Write, true, true);
    assert_eq!(Rights::of(allowed, false), Rights { read: true, write: false });
    assert_eq!(Rights::of(allowed, true), Rights { read: false, write: true });
}

#[test]
fn an_entry_is_two_to_a_half_cache_line() {
    assert_eq!(size_of::<super::super::table::Entry<Completion>>(), 32);
    assert_eq!(DeviceTlb::CAPACITY, 512);
}
