use std::vec::Vec;

use proptest::prelude::*;

use super::*;

const DEVICE: RequesterId = RequesterId::from_bits(0x80);
const WHOLE: Range<Iova> = Range { start: Iova(0), last: Iova(u64::MAX) };

fn only(scopes: Scopes) -> Invalidation {
    let all: Vec<_> = scopes.into_iter().flatten().collect();
    assert_eq!(all.len(), 1, "{all:?}");
    all[0]
}

pub(crate) fn any_range() -> impl Strategy<Value = Range<Iova>> {
    let ends = (any::<u64>(), any::<u64>(), 0..4u32).prop_map(|(a, b, rounding)| {
        let (start, last) = (a.min(b), a.max(b));
        match rounding {
            0 => (start, last),
            1 => (start & !0xfff, last | 0xfff),
            2 => (start & !0xfff, start | 0xfff),
            _ => (0, u64::MAX),
        }
    });
    ends.prop_map(|(start, last)| Range { start: Iova(start), last: Iova(last) })
}

/// Every kind of invalidation, of anything.
pub(crate) fn any_invalidation() -> impl Strategy<Value = Invalidation> {
    let numbers = (any::<u16>(), any::<u32>(), any::<u16>(), any::<u16>());
    (0..13u32, numbers, any_range(), any::<bool>()).prop_map(
        |(kind, (domain, pasid, requester, ignore), range, flag)| {
            use Invalidation as I;
            let (domain, pasid) = (DomainId(domain), Pasid::from_field(pasid));
            let requester = RequesterId::from_bits(requester);
            let pages = PageRange { range, leaf_only: flag };
            match kind {
                0 => I::ContextAll,
                1 => I::ContextDomain(domain),
                2 => I::ContextDevice { requester, ignore },
                3 => I::PasidCacheAll,
                4 => I::PasidCacheDomain(domain),
                5 => I::PasidCache { domain, pasid },
                6 => I::IotlbAll,
                7 => I::IotlbDomain(domain),
                8 => I::IotlbDomainPages { domain, pages },
                9 => I::IotlbPasid { domain, pasid },
                10 => I::IotlbPasidPages { domain, pasid, pages },
                11 => I::DeviceTlb { requester, range },
                _ => I::DeviceTlbPasid { requester, pasid: flag.then_some(pasid), range },
            }
        },
    )
}

proptest! {
    #[test]
    fn every_invalidation_survives(what in any_invalidation()) {
        prop_assert_eq!(only(decode_own(&encode(what)).unwrap()), what);
    }
}

#[test]
fn the_whole_space_is_a_range() {
    let what = Invalidation::DeviceTlbPasid { requester: DEVICE, pasid: None, range: WHOLE };
    let argument = encode(what);
    let scope = AddressScope::read_from_bytes(&argument.info.scope).unwrap();
    assert_eq!((scope.granule_size, scope.granules), (0x1000, 1 << 52));
    assert_eq!(only(decode_own(&argument).unwrap()), what);
}

/// A posted request of `cache` with the granularity's own structure.
fn posted(cache: u8, granularity: u8, scope: &[u8]) -> CacheInvalidate {
    let mut info = CacheInvalidateInfo {
        argsz: 16 + scope.len() as u32,
        version: 1,
        cache,
        granularity,
        ..CacheInvalidateInfo::new_zeroed()
    };
    info.scope[..scope.len()].copy_from_slice(scope);
    CacheInvalidate { argsz: 24 + scope.len() as u32, flags: 0, info }
}

fn pasid_scope(flags: u32) -> PasidScope {
    PasidScope { flags, archid: 5, pasid: 6 }
}

fn pages(flags: u32) -> AddressScope {
    AddressScope { flags, archid: 5, pasid: 6, address: 0x1000, granule_size: 0x1000, granules: 2 }
}

#[test]
fn posted_requests() {
    use Invalidation as I;
    let (domain, pasid) = (DomainId(5), Pasid::from_field(6));
    let range = Range { start: Iova(0x1000), last: Iova(0x2fff) };
    let one = |cache, granularity, scope: &[u8]| {
        only(decode_posted(&posted(cache, granularity, scope)).unwrap())
    };
    assert_eq!(one(1, 0, &[]), I::IotlbAll);
    assert_eq!(one(4, 0, &[]), I::PasidCacheAll);
    assert_eq!(one(1, 1, pasid_scope(2).as_bytes()), I::IotlbDomain(domain));
    assert_eq!(one(1, 1, pasid_scope(3).as_bytes()), I::IotlbPasid { domain, pasid });
    assert_eq!(one(4, 1, pasid_scope(3).as_bytes()), I::PasidCache { domain, pasid });
    let leaves = PageRange { range, leaf_only: true };
    let expected = I::IotlbPasidPages { domain, pasid, pages: leaves };
    assert_eq!(one(1, 2, pages(7).as_bytes()), expected);
    let all = PageRange { range, leaf_only: false };
    assert_eq!(one(1, 2, pages(2).as_bytes()), I::IotlbDomainPages { domain, pages: all });
    // Without a domain: of every domain.
    assert_eq!(one(1, 1, pasid_scope(1).as_bytes()), I::IotlbAll);
    assert_eq!(one(4, 1, pasid_scope(1).as_bytes()), I::PasidCacheAll);
    assert_eq!(one(1, 2, pages(0).as_bytes()), I::IotlbAll);
    // Two caches at a time.
    let both = decode_posted(&posted(5, 1, pasid_scope(3).as_bytes())).unwrap();
    let both: Vec<_> = both.into_iter().flatten().collect();
    assert_eq!(both, [I::PasidCache { domain, pasid }, I::IotlbPasid { domain, pasid }]);
}

#[test]
fn posted_requests_that_are_refused() {
    let value = |offset| Err(Refusal::Value { offset });
    let short = |argsz, needed| Err(Refusal::Argument(ArgumentError::TooShort { argsz, needed }));
    let decode = |argument: CacheInvalidate| decode_posted(&argument);
    // Offsets in the whole structure: version 12, cache 16, granularity 17, scope 24.
    let mut version = posted(1, 0, &[]);
    version.info.version = 2;
    assert_eq!(decode(version), value(12));
    for cache in [0, 8, 9, 0x80] {
        assert_eq!(decode(posted(cache, 0, &[])), value(16));
    }
    assert_eq!(decode(posted(1, 3, &[])), value(17));
    assert_eq!(decode(posted(4, 2, pages(3).as_bytes())), value(17));
    assert_eq!(decode(posted(5, 2, pages(3).as_bytes())), value(17));
    assert_eq!(decode(posted(2, 0, &[])), value(17));
    // No device is named.
    let unsupported = Err(Refusal::Unsupported { offset: 16 });
    assert_eq!(decode(posted(2, 2, pages(3).as_bytes())), unsupported);
    assert_eq!(decode(posted(3, 1, pasid_scope(3).as_bytes())), unsupported);
    // Scopes that are not there.
    assert_eq!(decode(posted(1, 1, &[0; 15])), short(31, 32));
    assert_eq!(decode(posted(1, 2, &[0; 39])), short(55, 56));
    let mut longer = posted(1, 0, &[]);
    longer.info.argsz = 17;
    let truncated = ArgumentError::Truncated { given: 16, claimed: 17 };
    assert_eq!(decode(longer), Err(truncated.into()));
    // Scopes that make no sense.
    assert_eq!(decode(posted(1, 1, pasid_scope(0).as_bytes())), Err(Refusal::Flags { flags: 0 }));
    let unknown = |flags| Err(Refusal::Argument(ArgumentError::UnknownFlags { flags }));
    assert_eq!(decode(posted(1, 1, pasid_scope(7).as_bytes())), unknown(4));
    assert_eq!(decode(posted(1, 2, pages(15).as_bytes())), unknown(8));
    let archid = PasidScope { archid: 0x1_0000, ..pasid_scope(3) };
    assert_eq!(decode(posted(1, 1, archid.as_bytes())), value(28));
    for pasid in [1 << 20, 1 << 32, u64::MAX] {
        let pasid = PasidScope { pasid, ..pasid_scope(3) };
        assert_eq!(decode(posted(1, 1, pasid.as_bytes())), value(32));
    }
    let of = |scope: AddressScope| decode(posted(1, 2, scope.as_bytes()));
    assert_eq!(of(AddressScope { granule_size: 0, ..pages(3) }), value(48));
    assert_eq!(of(AddressScope { granule_size: 0x3000, ..pages(3) }), value(48));
    assert_eq!(of(AddressScope { address: 0x1800, ..pages(3) }), value(40));
    assert_eq!(of(AddressScope { granules: 0, ..pages(3) }), value(56));
    assert_eq!(of(AddressScope { granules: u64::MAX, ..pages(3) }), value(56));
    assert_eq!(of(AddressScope { granules: 1 << 52, ..pages(3) }), value(56));
    assert!(of(AddressScope { granules: (1 << 52) - 1, ..pages(3) }).is_ok());
}

#[test]
fn our_own_requests_that_are_refused() {
    let device = Invalidation::DeviceTlb { requester: DEVICE, range: WHOLE };
    let unnamed = OwnCacheInvalidate { flags: INVALIDATE_NO_PASID, ..encode(device) };
    assert_eq!(decode_own(&unnamed), Err(Refusal::Unsupported { offset: 16 }));
    let several = OwnCacheInvalidate { ignore: 7, ..encode(device) };
    assert_eq!(decode_own(&several), Err(Refusal::Value { offset: 74 }));
    let pasid = Some(Pasid::from_field(6));
    let with = Invalidation::DeviceTlbPasid { requester: DEVICE, pasid, range: WHOLE };
    let neither = OwnCacheInvalidate { flags: 3, ..encode(with) };
    assert_eq!(decode_own(&neither), Err(Refusal::Flags { flags: INVALIDATE_NO_PASID }));
    // A domain's contexts are not a device's, and no context is a page's.
    let domain = encode(Invalidation::ContextDomain(DomainId(5)));
    let of_device = OwnCacheInvalidate { flags: INVALIDATE_REQUESTER, ..domain };
    assert_eq!(decode_own(&of_device), Err(Refusal::Value { offset: 17 }));
    let mut pages = encode(device);
    pages.info.cache = CACHE_CONTEXT;
    assert_eq!(decode_own(&pages), Err(Refusal::Value { offset: 17 }));
}
