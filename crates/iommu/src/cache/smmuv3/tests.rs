use alloc::vec::Vec;

use mem::{Access, Gpa, Iova, Range};
use pci::RequesterId;

use super::*;
use crate::cache::{Allowed, Cached, DescriptorState, Tag};
use crate::format::smmuv3::Regime;
use crate::stage_two::Output;
use crate::{
    Asid, DeviceContext, Invalidation, PageRange, Pasid, SmmuCaps, StreamContext,
    StreamTranslation, Vmid,
};

const DEVICE: RequesterId = RequesterId::from_bits(0x0123);
const OTHER: RequesterId = RequesterId::from_bits(0x0124);
const GUEST: Vmid = Vmid(1);
const PAGE: u64 = 0x40_0000;
/// A page of the high half, which is 1 GiB large.
const HIGH: u64 = 0xffff_8000_0000_0000;

fn pasid(number: u32) -> Pasid {
    Pasid::new(number).unwrap()
}

/// Every kind of entry, by name: its tag, its stages, its address and its mapping's size.
fn named() -> [(&'static str, Tag, Kind, u64, u8); 9] {
    let of = |vmid, asid, number, requested| {
        Tag::of_substream(Vmid(vmid), Asid(asid), pasid(number), requested)
    };
    let device = |vmid| Tag::of_device(DomainId(vmid));
    [
        ("one-5", of(1, 5, 7, true), Kind::StageOne, PAGE, 12),
        ("one-5-rid", of(1, 5, 0, false), Kind::StageOne, PAGE, 12),
        ("one-6", of(1, 6, 8, true), Kind::StageOne, PAGE, 21),
        ("nested-5", of(1, 5, 9, true), Kind::Nested, PAGE, 12),
        ("high-5", of(1, 5, 7, true), Kind::StageOne, HIGH, 30),
        ("global", Tag::of_global(GUEST), Kind::StageOne, PAGE, 12),
        ("two", device(1), Kind::StageTwo, PAGE, 12),
        ("other-one-5", of(2, 5, 7, true), Kind::StageOne, PAGE, 12),
        ("other-two", device(2), Kind::StageTwo, PAGE, 12),
    ]
}

/// The names of the translations that a scope forgets.
fn gone(scope: Invalidation) -> Vec<&'static str> {
    let mut caches = Caches::new(DEVICE);
    for (_, tag, kind, address, size_bits) in named() {
        let allowed = Allowed::default().with(Access::Read, false, true);
        let base = Output(0x5000);
        let cached = Cached { base, size_bits: 12, scope_bits: size_bits, kind, allowed };
        caches.iotlb.insert(tag, Iova(address), cached);
    }
    assert_eq!(caches.iotlb.len(), named().len());
    caches.forget(&scope);
    let is_gone = |tag, address| caches.iotlb.get(tag, Iova(address)).is_none();
    let gone: Vec<_> = named()
        .iter()
        .filter(|(_, tag, _, address, _)| is_gone(*tag, *address))
        .map(|entry| entry.0)
        .collect();
    assert_eq!(caches.iotlb.len(), named().len() - gone.len());
    gone
}

fn forgotten(scope: SmmuInvalidation) -> Vec<&'static str> {
    gone(Invalidation::Smmuv3(scope))
}

fn pages(start: u64, last: u64) -> PageRange {
    PageRange { range: Range { start: Iova(start), last: Iova(last) }, leaf_only: false }
}

#[test]
fn a_whole_guest_or_address_space() {
    let one = ["one-5", "one-5-rid", "one-6", "nested-5", "high-5", "global"];
    assert_eq!(forgotten(SmmuInvalidation::StageOneAll(GUEST)), one);
    assert_eq!(forgotten(SmmuInvalidation::StageOneAll(Vmid(2))), ["other-one-5"]);
    let asid = |vmid, asid| SmmuInvalidation::StageOneAsid { vmid: Vmid(vmid), asid: Asid(asid) };
    assert_eq!(forgotten(asid(1, 5)), ["one-5", "one-5-rid", "nested-5", "high-5"]);
    assert_eq!(forgotten(asid(1, 6)), ["one-6"]);
    assert!(forgotten(asid(1, 0)).is_empty(), "what has no ASID does not have 0");
    let guest = [&one[..], &["two"]].concat();
    assert_eq!(forgotten(SmmuInvalidation::Guest(GUEST)), guest);
    assert_eq!(forgotten(SmmuInvalidation::TlbAll).len(), named().len());
    assert!(forgotten(SmmuInvalidation::Guest(Vmid(3))).is_empty());
}

#[test]
fn pages_of_stage_one() {
    let of = |asid: Option<u16>, start, last| SmmuInvalidation::StageOnePages {
        vmid: GUEST,
        asid: asid.map(Asid),
        pages: pages(start, last),
    };
    let at = |asid, start| of(asid, start, start + 0xfff);
    // Global ones go with any address space.
    assert_eq!(forgotten(at(Some(5), PAGE)), ["one-5", "one-5-rid", "nested-5", "global"]);
    assert_eq!(forgotten(at(Some(9), PAGE)), ["global"]);
    let every = ["one-5", "one-5-rid", "one-6", "nested-5", "global"];
    assert_eq!(forgotten(at(None, PAGE)), every);
    // Any page of the mapping, not only the one that was asked for.
    assert_eq!(forgotten(at(Some(6), PAGE + 0x1f_f000)), ["one-6"]);
    assert_eq!(forgotten(at(None, HIGH + 0x3fff_f000)), ["high-5"]);
    assert!(forgotten(at(None, HIGH + 0x4000_0000)).is_empty());
    assert!(forgotten(at(None, PAGE - 0x1000)).is_empty());
    // Whatever is in the top byte, which may be no part of the address.
    assert_eq!(forgotten(at(Some(6), PAGE | 0x5a << 56)), ["one-6", "global"]);
    assert_eq!(forgotten(at(Some(5), HIGH & !(0xff << 56))), ["high-5"]);
    // Ranges that reach from one top byte into another.
    let all = [&every[..], &["high-5"]].concat();
    let sorted = |mut names: Vec<&'static str>| {
        names.sort_unstable();
        names
    };
    for (start, last) in [(0, u64::MAX), (0x0010 << 48, 0x0110 << 48), (HIGH, 0x0100 << 48 | 0xff)]
    {
        let (start, last) = (start.min(last), start.max(last));
        assert_eq!(sorted(forgotten(of(None, start, last))), sorted(all.clone()));
    }
}

#[test]
fn pages_of_stage_two() {
    let at = |vmid, start| {
        let range = Range { start: Gpa(start), last: Gpa(start + 0xfff) };
        SmmuInvalidation::StageTwoPages { vmid: Vmid(vmid), range }
    };
    assert_eq!(forgotten(at(1, PAGE)), ["nested-5", "two"]);
    // What went through a stage 1 goes, wherever the pages are.
    assert_eq!(forgotten(at(1, 0)), ["nested-5"]);
    assert_eq!(forgotten(at(2, PAGE)), ["other-two"]);
}

/// `CMD_ATC_INV` is about the device's own TLB.
#[test]
fn scopes_of_the_devices_own_tlb_leave_the_iotlb_alone() {
    let range = pages(PAGE, PAGE | 0xfff).range;
    let with = |pasid| Invalidation::DeviceTlbPasid { requester: DEVICE, pasid, range };
    for scope in
        [with(None), with(Some(pasid(8))), Invalidation::of_device_tlb(DEVICE, None, range)]
    {
        assert!(gone(scope).is_empty());
    }
}

#[test]
fn a_pasid_that_is_taken_back() {
    let mut caches = Caches::new(DEVICE);
    caches.descriptors.open();
    caches.descriptors.insert(pasid(7), descriptor());
    let allowed = Allowed::default();
    let cached =
        Cached { base: Output(0), size_bits: 12, scope_bits: 12, kind: Kind::StageOne, allowed };
    for (_, tag, ..) in named() {
        caches.iotlb.insert(tag, Iova(PAGE), cached);
    }
    caches.forget_pasid(pasid(7));
    assert_eq!(caches.descriptors.len(), 0);
    for (name, tag, ..) in named() {
        let kept = caches.iotlb.get(tag, Iova(PAGE)).is_some();
        assert_eq!(kept, tag.pasid() != Some(pasid(7)) && !tag.is_global(), "{name}");
    }
}

fn descriptor() -> DescriptorState {
    let regime = Regime { asid: Asid(5), tables: Default::default(), record: true };
    DescriptorState { vmid: GUEST, granted: true, regime }
}

/// Whether the stream-table entry is left, and which context descriptors.
fn left(scope: Invalidation) -> (bool, Vec<u32>) {
    let caps = SmmuCaps {
        substream_bits: 4,
        output_bits: 48,
        wide_addresses: false,
        hardware_updates: 0,
        ats: false,
        ..SmmuCaps::FULL
    };
    let translation = StreamTranslation::Bypass;
    let stream = StreamContext { vmid: GUEST, translation, privilege: None, ats: false, caps };
    let mut caches = Caches::new(DEVICE);
    caches.context = Some(DeviceContext::Smmuv3(stream));
    caches.descriptors.open();
    for number in 0..3 {
        caches.descriptors.insert(pasid(number), descriptor());
    }
    caches.forget(&scope);
    let left = (0..3).filter(|&number| caches.descriptors.get(pasid(number)).is_some()).collect();
    (caches.context.is_some(), left)
}

#[test]
fn configurations() {
    let all = Vec::from([0, 1, 2]);
    let smmu = |scope| left(Invalidation::Smmuv3(scope));
    assert_eq!(smmu(SmmuInvalidation::ConfigAll), (false, Vec::new()));
    let entry = |requester, ignore| SmmuInvalidation::StreamEntry { requester, ignore };
    assert_eq!(smmu(entry(DEVICE, 0)), (false, Vec::new()));
    assert_eq!(smmu(entry(OTHER, 0)), (true, all.clone()));
    assert_eq!(smmu(entry(OTHER, 7)), (false, Vec::new()));
    let one =
        |requester, number| SmmuInvalidation::Descriptor { requester, substream: pasid(number) };
    assert_eq!(smmu(one(DEVICE, 1)), (true, Vec::from([0, 2])));
    assert_eq!(smmu(one(OTHER, 1)), (true, all.clone()));
    let every = |requester| SmmuInvalidation::DescriptorAll { requester };
    assert_eq!(smmu(every(DEVICE)), (true, Vec::new()));
    assert_eq!(smmu(every(OTHER)), (true, all.clone()));
    // No command of the other kind forgets any of it, and the names that VT-d has for the same do.
    assert_eq!(smmu(SmmuInvalidation::TlbAll), (true, all.clone()));
    assert_eq!(left(Invalidation::ContextAll), (false, all.clone()));
    assert!(!left(Invalidation::ContextDomain(DomainId(1))).0);
    assert_eq!(left(Invalidation::PasidCacheAll), (true, Vec::new()));
    assert_eq!(left(Invalidation::PasidCacheDomain(DomainId(2))), (true, all));
}
