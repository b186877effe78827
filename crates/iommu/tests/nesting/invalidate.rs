//! Invalidation in the generic form: the table of valid combinations (§8.2), what becomes of each
//! on VT-d, and the rows for SMMUv3 (§6.6).

use iommu::nesting::{
    CacheInvalidate, Caches, Domain, GpasidBind, Granularity, InvalidateError, PasidTableInfo,
    TableMode, TableModel, MAX_ADDRESS_COMMANDS,
};
use iommu::{Hardware, SmmuCaps, StageOneInvalidation, Vm, VtdStageOneFlags};
use mem::{Gpa, Iova, Range};

use super::mock::{Call, Mock, FAILED, SMMU};
use super::{domain, grant, guest, host, smmu_config, BASE, ONE, SMMUV3, TWO, VTD};

use Granularity::{Address, Domain as Whole, Pasid};

const IOTLB: Caches = Caches::IOTLB;
const DEVICE: Caches = Caches::DEV_IOTLB;
const ENTRIES: Caches = Caches::PASID;

fn of(caches: Caches, granularity: Granularity) -> CacheInvalidate {
    CacheInvalidate { caches, granularity }
}

fn pages(address: u64, granule: u64, count: u64) -> Granularity {
    let (pasid, archid, address) = (Some(guest(5)), None, Iova(address));
    Address { pasid, archid, leaf: false, address, granule, count }
}

/// With PASIDs 5 and 6 of the first device bound, and 5 of the second.
fn vtd() -> (Mock, Domain<Mock>) {
    let mock = host(VTD);
    let mut domain = domain(&mock, &[ONE, TWO]);
    grant(&mock);
    for (device, number) in [(ONE, 5), (ONE, 6), (TWO, 5)] {
        let bind = GpasidBind {
            root: Gpa(BASE * u64::from(number) * u64::from(device.bits())),
            address_width: 48,
            flags: VtdStageOneFlags::empty(),
            guest: guest(number),
        };
        domain.bind_gpasid(device, &bind).unwrap();
    }
    mock.calls();
    (mock, domain)
}

/// What the host was asked for, by the number of tables.
fn asked(mock: &Mock) -> Vec<Vec<StageOneInvalidation>> {
    let calls = mock.calls().into_iter();
    calls
        .map(|call| match call {
            Call::InvalidateHwpt(_, what) => what,
            other => panic!("{other:?}"),
        })
        .collect()
}

#[test]
fn the_table_of_combinations() {
    use StageOneInvalidation::{All, Entry, Pages};
    let pasid = Pasid { pasid: Some(guest(5)), archid: None };
    let address = pages(0x4000, 0x1000, 2);
    let two = Pages { range: Range::<Iova>::new(Iova(0x4000), 0x2000).unwrap(), leaf_only: false };
    let (mock, domain) = vtd();
    let rows: [(Granularity, [Option<Vec<_>>; 3], usize); 3] = [
        // Device TLB, IOTLB, PASID cache; tables of the first device concerned.
        (Whole, [None, Some(vec![All]), Some(vec![Entry])], 2),
        (pasid, [Some(vec![All]), Some(vec![All]), Some(vec![Entry])], 1),
        (address, [Some(vec![two]), Some(vec![two]), None], 1),
    ];
    for (granularity, columns, tables) in rows {
        for (cache, expected) in [DEVICE, IOTLB, ENTRIES].into_iter().zip(columns.clone()) {
            let result = domain.cache_invalidate(ONE, &of(cache, granularity));
            match expected {
                Some(expected) => {
                    assert!(mock.is_complete(result.unwrap()));
                    assert_eq!(asked(&mock), vec![expected; tables]);
                }
                None => {
                    assert_eq!(result, Err(InvalidateError::Combination(cache)));
                    assert_eq!(mock.calls(), []);
                }
            }
        }
        // Several: all of them must allow it.
        let refused = domain.cache_invalidate(ONE, &of(Caches::all(), granularity));
        let all = columns.iter().all(Option::is_some);
        assert_eq!(refused.is_ok(), all, "{granularity:?}");
        if all {
            assert_eq!(asked(&mock), [[Entry, All]]);
        }
    }
}

#[test]
fn what_is_malformed_or_unknown_is_an_error() {
    let (mock, domain) = vtd();
    let fails = |device, caches, granularity| {
        let error = domain.cache_invalidate(device, &of(caches, granularity)).unwrap_err();
        assert_eq!(mock.calls(), []);
        error
    };
    let stranger = super::STRANGER;
    assert_eq!(fails(stranger, IOTLB, Whole), InvalidateError::NoDevice(stranger));
    assert_eq!(fails(ONE, Caches::empty(), Whole), InvalidateError::NoCache);
    let none = Pasid { pasid: None, archid: None };
    assert_eq!(fails(ONE, IOTLB, none), InvalidateError::NoAddressSpace);
    for pasid in [None, Some(guest(5))] {
        let tagged = Pasid { pasid, archid: Some(1) };
        assert_eq!(fails(ONE, IOTLB, tagged), InvalidateError::NotForHardware);
    }
    for number in [0, 7, 77] {
        let pasid = Pasid { pasid: Some(guest(number)), archid: None };
        let not_bound = InvalidateError::NotBound(ONE, guest(number));
        for caches in [IOTLB, DEVICE, ENTRIES] {
            assert_eq!(fails(ONE, caches, pasid), not_bound);
        }
    }
    let second = Pasid { pasid: Some(guest(6)), archid: None };
    assert_eq!(fails(TWO, IOTLB, second), InvalidateError::NotBound(TWO, guest(6)));

    for granule in [0, 1, 0x800, 0x1800, u64::MAX] {
        let error = InvalidateError::Granule(granule);
        assert_eq!(fails(ONE, IOTLB, pages(0, granule, 1)), error);
    }
    for (address, granule, count) in [
        (0x1000, 0x1000, 0),
        (0x1000, 0x2000, 1),
        (0x1001, 0x1000, 1),
        (0x1000, 0x1000, u64::MAX),
        (u64::MAX - 0xfff, 0x1000, 2),
        (0, 1 << 63, 3),
    ] {
        assert_eq!(fails(ONE, IOTLB, pages(address, granule, count)), InvalidateError::Range);
    }
    mock.fail([0]);
    let failed = domain.cache_invalidate(ONE, &of(IOTLB, Whole));
    assert_eq!(failed, Err(InvalidateError::Object(FAILED)));
}

#[test]
fn a_range_may_end_with_the_last_address_and_be_of_large_pages() {
    let (mock, domain) = vtd();
    for (granularity, start, last) in [
        (pages(u64::MAX - 0xfff, 0x1000, 1), u64::MAX - 0xfff, u64::MAX),
        (pages(0x4000_0000, 0x20_0000, 3), 0x4000_0000, 0x405f_ffff),
        (pages(0, 1 << 63, 2), 0, u64::MAX),
    ] {
        let _ = domain.cache_invalidate(ONE, &of(IOTLB, granularity)).unwrap();
        let range = Range { start: Iova(start), last: Iova(last) };
        assert_eq!(asked(&mock), [[StageOneInvalidation::Pages { range, leaf_only: false }]]);
    }
}

#[test]
fn addresses_without_pasid_are_of_all_address_spaces() {
    let (mock, domain) = vtd();
    let (pasid, archid, address) = (None, None, Iova(0x1000));
    let any = Address { pasid, archid, leaf: true, address, granule: 0x1000, count: 1 };
    let _ = domain.cache_invalidate(ONE, &of(IOTLB, any)).unwrap();
    let range = Range::<Iova>::new(address, 0x1000).unwrap();
    assert_eq!(asked(&mock), [[StageOneInvalidation::Pages { range, leaf_only: true }]; 2]);
}

#[test]
fn everything_of_a_device_with_nothing_bound_is_nothing_but_a_ticket() {
    let mock = host(VTD);
    let domain = domain(&mock, &[ONE]);
    let ticket = domain.cache_invalidate(ONE, &of(IOTLB, Whole)).unwrap();
    assert!(mock.is_complete(ticket));
}

#[test]
fn a_table_for_all_pasids_is_invalidated_as_a_whole() {
    let mock = host(VTD);
    let mut domain = domain(&mock, &[ONE, TWO]);
    let info = PasidTableInfo { model: TableModel::Vtd, ptr: Gpa(BASE), size: 0x2_0000 };
    let _ = domain.bind_pasid_table(ONE, &info).unwrap();
    mock.calls();
    let pasid = Pasid { pasid: Some(guest(77)), archid: None };
    let _ = domain.cache_invalidate(ONE, &of(IOTLB | ENTRIES, pasid)).unwrap();
    let (entry, all) = (StageOneInvalidation::Entry, StageOneInvalidation::All);
    assert_eq!(asked(&mock), [[entry, all]]);
    let other = domain.cache_invalidate(TWO, &of(IOTLB, pasid));
    assert_eq!(other, Err(InvalidateError::NotBound(TWO, guest(77))));
}

fn smmu(caps: SmmuCaps) -> (Mock, Domain<Mock>) {
    let mock = host(Hardware::Smmuv3(caps));
    let mut domain = domain(&mock, &[ONE]);
    let _ = domain.attach_pasid_table(&smmu_config(TableMode::Translate)).unwrap();
    mock.calls();
    (mock, domain)
}

fn commands(caps: SmmuCaps, granularity: Granularity) -> Vec<[u64; 2]> {
    let (mock, domain) = smmu(caps);
    let ticket = domain.cache_invalidate(ONE, &of(IOTLB, granularity)).unwrap();
    assert!(mock.is_complete(ticket));
    match &mock.calls()[..] {
        [Call::InvalidateViommu(commands)] => commands.clone(),
        other => panic!("{other:?}"),
    }
}

fn range(archid: Option<u32>, leaf: bool, address: u64, granule: u64, count: u64) -> Granularity {
    Address { pasid: None, archid, leaf, address: Iova(address), granule, count }
}

/// §6.6 and §11.4; the commands typed from their layout.
#[test]
fn an_smmu_is_told_in_its_commands() {
    assert_eq!(commands(SMMU, Whole), [[0x10, 0]]);
    let asid = Pasid { pasid: None, archid: Some(0xabcd) };
    assert_eq!(commands(SMMU, asid), [[0xabcd_0000_0000_0011, 0]]);
    let one = range(Some(0xabcd), false, 0xffff_8000_1234_5000, 0x1000, 1);
    assert_eq!(commands(SMMU, one), [[0xabcd_0000_0000_0012, 0xffff_8000_1234_5000]]);
    let leaf = range(Some(1), true, 0x7000, 0x1000, 2);
    assert_eq!(commands(SMMU, leaf), [[1 << 48 | 0x12, 0x7001], [1 << 48 | 0x12, 0x8001]]);
    let any = range(None, false, 0x7000, 0x1000, 1);
    assert_eq!(commands(SMMU, any), [[0x13, 0x7000]]);
}

#[test]
fn a_granule_is_split_into_the_smallest_page() {
    let block = commands(SMMU, range(Some(1), false, 0x20_0000, 0x20_0000, 1));
    let expected: Vec<_> =
        (0..512).map(|page| [1 << 48 | 0x12, 0x20_0000 + page * 0x1000]).collect();
    assert_eq!(block, expected);
    let pages_64k = SmmuCaps { granule_4k: false, ..SMMU };
    let two = commands(pages_64k, range(None, false, 0x2_0000, 0x1_0000, 2));
    assert_eq!(two, [[0x13, 0x2_0000], [0x13, 0x3_0000]]);
    // More than it is worth: the address space, or all of them.
    assert_eq!(MAX_ADDRESS_COMMANDS, 512);
    let many = range(Some(1), false, 0, 0x1000, 513);
    assert_eq!(commands(SMMU, many), [[1 << 48 | 0x11, 0]]);
    let all = range(None, true, 0, 1 << 63, 2);
    assert_eq!(commands(SMMU, all), [[0x10, 0]]);
    let last = range(None, false, u64::MAX - 0xfff, 0x1000, 1);
    assert_eq!(commands(SMMU, last), [[0x13, u64::MAX - 0xfff]]);
}

#[test]
fn what_an_smmu_cannot_be_told_is_an_error() {
    let fails = |caps, what: CacheInvalidate| {
        let (mock, domain) = smmu(caps);
        let error = domain.cache_invalidate(ONE, &what).unwrap_err();
        assert_eq!(mock.calls(), []);
        error
    };
    let unsupported = InvalidateError::NotForHardware;
    let tagged = |pasid, archid| Pasid { pasid, archid };
    let (five, one) = (Some(guest(5)), Some(1));
    // PASID or DEV_IOTLB in the caches.
    assert_eq!(fails(SMMU, of(ENTRIES, Whole)), unsupported);
    assert_eq!(fails(SMMU, of(IOTLB | ENTRIES, Whole)), unsupported);
    assert_eq!(fails(SMMU, of(IOTLB | DEVICE, tagged(None, one))), unsupported);
    // No IOTLB.
    assert_eq!(fails(SMMU, of(Caches::empty(), Whole)), InvalidateError::NoCache);
    // A PASID, with or without an ASID.
    assert_eq!(fails(SMMU, of(IOTLB, tagged(five, None))), unsupported);
    assert_eq!(fails(SMMU, of(IOTLB, tagged(five, one))), unsupported);
    assert_eq!(fails(SMMU, of(IOTLB, pages(0, 0x1000, 1))), unsupported);
    // Neither.
    assert_eq!(fails(SMMU, of(IOTLB, tagged(None, None))), InvalidateError::NoAddressSpace);
    // ASIDs that it does not have.
    let narrow = SmmuCaps { asid_16: false, ..SMMU };
    assert_eq!(
        fails(SMMU, of(IOTLB, tagged(None, Some(1 << 16)))),
        InvalidateError::ArchId(1 << 16)
    );
    assert_eq!(fails(narrow, of(IOTLB, tagged(None, Some(256)))), InvalidateError::ArchId(256));
    // Granules below its pages, and ranges that are none.
    let large = SmmuCaps { granule_4k: false, ..SMMU };
    let small = range(None, false, 0, 0x1000, 1);
    assert_eq!(fails(large, of(IOTLB, small)), InvalidateError::Granule(0x1000));
    let odd = range(None, false, 0x1000, 0x1800, 1);
    assert_eq!(fails(SMMU, of(IOTLB, odd)), InvalidateError::Granule(0x1800));
    let none = range(None, false, 0x1000, 0x1000, 0);
    assert_eq!(fails(SMMU, of(IOTLB, none)), InvalidateError::Range);

    let (mock, domain) = smmu(SMMU);
    mock.fail([0]);
    let failed = domain.cache_invalidate(ONE, &of(IOTLB, Whole));
    assert_eq!(failed, Err(InvalidateError::Object(FAILED)));
    let empty = Domain::new(host(SMMUV3));
    let none = empty.cache_invalidate(ONE, &of(IOTLB, Whole));
    assert_eq!(none, Err(InvalidateError::NoDevice(ONE)));
}
