use mem::{Access, Gpa, Iova, Range};
use pci::RequesterId;

use super::*;
use crate::format::vtd::Translation;
use crate::stage_two::Output;
use crate::{PageRange, Pasid, StageTwo};

const DEVICE: RequesterId = RequesterId::from_bits(0x0123);

fn pasid(number: u32) -> Pasid {
    Pasid::new(number).unwrap()
}

fn cached(kind: Kind, scope_bits: u8) -> Cached {
    let allowed = Allowed::default().with(Access::Read, false, true);
    Cached { base: Output(0x5000), size_bits: 12, scope_bits, kind, allowed }
}

fn pages(start: u64, len: u64) -> PageRange {
    PageRange { range: Range::<Iova>::new(Iova(start), len).unwrap(), leaf_only: false }
}

const PAGE: u64 = 0x40_0000;

/// Every kind of entry, by name: domain, PASID, whether requested, stage, and its mapping's size.
type Named = (&'static str, u16, Option<(u32, bool)>, Kind, u8);

const NAMES: [Named; 8] = [
    ("device", 1, None, Kind::StageTwo, 12),
    ("device-other-domain", 2, None, Kind::StageTwo, 12),
    ("first-7", 1, Some((7, true)), Kind::StageOne, 12),
    ("first-8", 1, Some((8, true)), Kind::StageOne, 12),
    ("first-rid", 1, Some((0, false)), Kind::StageOne, 12),
    ("second-7", 3, Some((7, true)), Kind::StageTwo, 21),
    ("nested-7", 4, Some((7, true)), Kind::Nested, 12),
    ("nested-large-9", 4, Some((9, true)), Kind::Nested, 30),
];

fn tag(domain: u16, pasid: Option<(u32, bool)>) -> Tag {
    match pasid {
        None => Tag::of_device(DomainId(domain)),
        Some((number, requested)) => {
            Tag::of_pasid(DomainId(domain), Pasid::new(number).unwrap(), requested)
        }
    }
}

/// The names of entries that a scope forgets.
fn forgotten(scope: Invalidation) -> alloc::vec::Vec<&'static str> {
    let mut caches = Caches::new(DEVICE);
    for (_, domain, pasid, kind, size) in NAMES {
        caches.iotlb.insert(tag(domain, pasid), Iova(PAGE), cached(kind, size));
    }
    assert_eq!(caches.iotlb.len(), NAMES.len());
    caches.forget(&scope);
    let gone = |(_, domain, pasid, ..): &Named| {
        caches.iotlb.get(tag(*domain, *pasid), Iova(PAGE)).is_none()
    };
    let gone: alloc::vec::Vec<_> =
        NAMES.iter().filter(|entry| gone(entry)).map(|entry| entry.0).collect();
    assert_eq!(caches.iotlb.len(), NAMES.len() - gone.len());
    gone
}

#[test]
fn iotlb_scopes() {
    let all: alloc::vec::Vec<_> = NAMES.iter().map(|entry| entry.0).collect();
    assert_eq!(forgotten(Invalidation::IotlbAll), all);
    let domain = |domain| Invalidation::IotlbDomain(DomainId(domain));
    assert_eq!(forgotten(domain(1)), ["device", "first-7", "first-8", "first-rid"]);
    assert_eq!(forgotten(domain(4)), ["nested-7", "nested-large-9"]);
    assert!(forgotten(domain(5)).is_empty());
    let of = |domain, number| Invalidation::IotlbPasid {
        domain: DomainId(domain),
        pasid: pasid(number),
    };
    assert_eq!(forgotten(of(1, 7)), ["first-7"]);
    assert_eq!(forgotten(of(1, 0)), ["first-rid"], "requests without PASID have one here");
    assert_eq!(forgotten(of(3, 7)), ["second-7"]);
    assert!(forgotten(of(2, 7)).is_empty());
}

#[test]
fn page_scopes() {
    let in_domain = |domain, start| Invalidation::IotlbDomainPages {
        domain: DomainId(domain),
        pages: pages(start, 4096),
    };
    assert_eq!(forgotten(in_domain(2, PAGE)), ["device-other-domain"]);
    assert!(forgotten(in_domain(2, PAGE + 0x1000)).is_empty());
    assert!(forgotten(in_domain(2, PAGE - 0x1000)).is_empty());
    // First-stage results go, wherever the pages are.
    assert_eq!(forgotten(in_domain(1, 0)), ["first-7", "first-8", "first-rid"]);
    assert_eq!(forgotten(in_domain(4, 0)), ["nested-7", "nested-large-9"]);
    // Any page of the mapping, not only the one that was asked for.
    assert_eq!(forgotten(in_domain(3, PAGE + 0x1f_f000)), ["second-7"]);
    assert!(forgotten(in_domain(3, PAGE + 0x20_0000)).is_empty());

    let of = |domain, number, start| Invalidation::IotlbPasidPages {
        domain: DomainId(domain),
        pasid: pasid(number),
        pages: pages(start, 4096),
    };
    assert_eq!(forgotten(of(1, 7, PAGE)), ["first-7"]);
    assert!(forgotten(of(1, 7, PAGE + 0x1000)).is_empty());
    assert_eq!(forgotten(of(4, 9, 0x3fff_f000)), ["nested-large-9"]);
    assert!(forgotten(of(4, 9, 0x4000_0000)).is_empty());
    let top = PageRange {
        range: Range { start: Iova(u64::MAX - 0xfff), last: Iova(u64::MAX) },
        leaf_only: true,
    };
    let scope = Invalidation::IotlbPasidPages { domain: DomainId(1), pasid: pasid(7), pages: top };
    assert!(forgotten(scope).is_empty());
}

#[test]
fn scopes_of_the_devices_own_tlb_leave_the_iotlb_alone() {
    let range = pages(PAGE, 4096).range;
    let of = |pasid| Invalidation::DeviceTlbPasid { requester: DEVICE, pasid, range };
    for scope in [of(None), of(Some(pasid(8))), Invalidation::of_device_tlb(DEVICE, None, range)] {
        assert!(forgotten(scope).is_empty());
    }
}

#[test]
fn context_scopes() {
    let domain = DomainId(5);
    let pass = DeviceContext::PassThrough { domain, ats: false, fault_disable: false };
    let table = StageTwo { root: Gpa(0), levels: 4, accessed_dirty: false };
    let second = DeviceContext::StageTwo { domain, table, ats: false, fault_disable: false };
    let kept = |context, scope: Invalidation| {
        let mut caches = Caches::new(DEVICE);
        caches.context = Some(context);
        caches.forget(&scope);
        caches.context.is_some()
    };
    let device = |bits, ignore| Invalidation::ContextDevice {
        requester: RequesterId::from_bits(bits),
        ignore,
    };
    for context in [pass, second] {
        assert!(!kept(context, Invalidation::ContextAll));
        assert!(!kept(context, Invalidation::ContextDomain(domain)));
        assert!(kept(context, Invalidation::ContextDomain(DomainId(6))));
        assert!(!kept(context, device(0x0123, 0)));
        assert!(kept(context, device(0x0122, 0)));
        assert!(!kept(context, device(0x0120, 0b011)));
        assert!(kept(context, device(0x0127, 0b011)));
        assert!(kept(context, Invalidation::IotlbAll));
        assert!(kept(context, Invalidation::PasidCacheAll));
    }
}

#[test]
fn pasid_scopes() {
    let states = [(1, 5), (1, 6), (2, 7)];
    let left = |scope: Invalidation| {
        let mut caches = Caches::new(DEVICE);
        for (domain, number) in states {
            let state = PasidState {
                granted: true,
                domain: DomainId(domain),
                fault_disable: false,
                translation: Translation::PassThrough,
            };
            caches.pasids.insert(pasid(number), state);
        }
        caches.forget(&scope);
        let left: alloc::vec::Vec<_> =
            (5..8).filter(|&number| caches.pasids.get(pasid(number)).is_some()).collect();
        assert_eq!(left.len(), caches.pasids.len());
        left
    };
    let one = |domain, number| Invalidation::PasidCache {
        domain: DomainId(domain),
        pasid: pasid(number),
    };
    assert!(left(Invalidation::PasidCacheAll).is_empty());
    assert_eq!(left(Invalidation::PasidCacheDomain(DomainId(1))), [7]);
    assert_eq!(left(one(1, 5)), [6, 7]);
    assert_eq!(left(one(2, 5)), [5, 6, 7]);
    assert_eq!(left(Invalidation::IotlbAll), [5, 6, 7]);
}

#[test]
fn caches_are_bounded_and_count_what_they_hold() {
    let mut caches = Caches::new(DEVICE);
    for page in 0..3 * Iotlb::CAPACITY as u64 {
        let tag = Tag::of_device(DomainId(1));
        caches.iotlb.insert(tag, Iova(page << 12), cached(Kind::StageTwo, 12));
        assert!(caches.iotlb.get(tag, Iova(page << 12 | 0xfff)).is_some(), "the newest is there");
        assert!(caches.iotlb.len() <= Iotlb::CAPACITY);
    }
    assert_eq!(caches.iotlb.len(), Iotlb::CAPACITY);
    // Inserting the same page again replaces it.
    let tag = Tag::of_device(DomainId(1));
    caches.iotlb.clear();
    for base in [0x1000, 0x2000] {
        let entry = Cached { base: Output(base), ..cached(Kind::StageTwo, 12) };
        caches.iotlb.insert(tag, Iova(0), entry);
    }
    assert_eq!(caches.iotlb.len(), 1);
    assert_eq!(caches.iotlb.get(tag, Iova(0)).unwrap().base, Output(0x2000));

    let state = PasidState {
        granted: true,
        domain: DomainId(1),
        fault_disable: false,
        translation: Translation::PassThrough,
    };
    for number in 0..1000 {
        caches.pasids.insert(pasid(number), state);
        assert!(caches.pasids.get(pasid(number)).is_some());
    }
    assert_eq!(caches.pasids.len(), pasid::CAPACITY);
}

#[test]
fn closed_caches_hold_nothing() {
    let mut caches = Caches::closed(DEVICE);
    let tag = Tag::of_device(DomainId(1));
    caches.iotlb.insert(tag, Iova(0), cached(Kind::StageTwo, 12));
    assert!(caches.iotlb.get(tag, Iova(0)).is_none());
    assert_eq!(caches.iotlb.len(), 0);
    assert_eq!((caches.device_tlb.len(), caches.close_device_tlb().len()), (0, 0));
    caches.forget_all();
}

#[test]
fn an_entry_is_two_to_a_half_cache_line() {
    assert_eq!(size_of::<table::Entry<Cached>>(), 32);
}
