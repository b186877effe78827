use std::collections::BTreeMap;

use super::*;

#[test]
fn numbers_as_posted() {
    let own = Revision::Own;
    assert_eq!(Request::MapDma.number(own), Some(0x3b71));
    assert_eq!(Request::UnmapDma.number(own), Some(0x3b72));
    assert_eq!(Request::PasidRequest.number(Revision::PasidRequestV7), Some(0x3b76));
    assert_eq!(Request::CacheInvalidate.number(Revision::PasidTableV13), Some(0x3b77));
    assert_eq!(Request::CacheInvalidate.number(Revision::PasidRequestV7), None);
    assert_eq!(Request::PasidRequest.number(Revision::PasidTableV13), None);
}

#[test]
fn numbers_that_collide() {
    use Request as Q;
    use Revision as R;
    let rows = [
        // 18, 19 and 20 are four series' numbers.
        (0x3b76, R::PasidRequest53, Some(Q::PasidRequest)),
        (0x3b76, R::PasidRequestV7, Some(Q::PasidRequest)),
        (0x3b76, R::PasidRequestTree, Some(Q::PasidRequest)),
        (0x3b76, R::PasidTableV11, None),
        (0x3b76, R::PasidTableV13, Some(Q::SetPasidTable)),
        (0x3b76, R::PasidTableV15, Some(Q::SetPasidTable)),
        (0x3b76, R::Iommufd, None),
        (0x3b77, R::PasidRequestV7, Some(Q::NestingOp)),
        (0x3b77, R::PasidTableV13, Some(Q::CacheInvalidate)),
        (0x3b77, R::PasidTableV15, Some(Q::CacheInvalidate)),
        (0x3b77, R::Iommufd, Some(Q::AttachIommufdPt)),
        (0x3b78, R::PasidRequestV7, None),
        (0x3b78, R::PasidTableV13, Some(Q::SetMsiBinding)),
        (0x3b78, R::PasidTableV15, Some(Q::SetMsiBinding)),
        (0x3b78, R::Iommufd, Some(Q::DetachIommufdPt)),
        // Before version 12 these were elsewhere.
        (0x3b7a, R::PasidTableV11, Some(Q::SetPasidTable)),
        (0x3b7b, R::PasidTableV11, Some(Q::CacheInvalidate)),
        (0x3b7c, R::PasidTableV11, Some(Q::SetMsiBinding)),
        (0x3b7a, R::PasidTableV13, None),
    ];
    for (number, revision, request) in rows {
        assert_eq!(Request::of(number, revision), request, "{number:#x} {revision:?}");
    }
    for revision in Revision::ALL {
        assert_eq!(Request::of(0x3b64, revision), Some(Q::GetApiVersion));
        assert_eq!(Request::of(0x3b66, revision), Some(Q::SetIommu));
        assert_eq!(Request::of(0x3b68, revision), Some(Q::GroupSetContainer));
        assert_eq!(Request::of(0x3b6a, revision), Some(Q::GroupGetDeviceFd));
        assert_eq!(Request::of(0x3b6c, revision), Some(Q::DeviceGetRegionInfo));
        assert_eq!(Request::of(0x3b6e, revision), Some(Q::DeviceSetIrqs));
        assert_eq!(Request::of(0x3b70, revision), Some(Q::IommuGetInfo));
    }
}

#[test]
fn numbers_of_iommufd() {
    let numbers = [
        (Request::Destroy, 0x3b80),
        (Request::IoasAlloc, 0x3b81),
        (Request::HwptAlloc, 0x3b89),
        (Request::GetHwInfo, 0x3b8a),
        (Request::HwptInvalidate, 0x3b8d),
        (Request::FaultQueueAlloc, 0x3b8e),
        (Request::ViommuAlloc, 0x3b90),
        (Request::VdeviceAlloc, 0x3b91),
        (Request::VeventqAlloc, 0x3b93),
    ];
    for (request, number) in numbers {
        assert_eq!(request.number(Revision::Own), Some(number));
        assert_eq!(request.number(Revision::Iommufd), Some(number));
        assert_eq!(request.number(Revision::PasidTableV13), None);
    }
}

#[test]
fn our_own_are_nobody_elses() {
    for request in Request::all() {
        let number = request.number(Revision::Own).unwrap();
        // VFIO's, up to UNMAP_DMA, and iommufd's.
        let linux = (0x3b64..0x3b73).contains(&number) || (0x3b80..0x3b94).contains(&number);
        if linux {
            continue;
        }
        // VFIO has 0x64 and up, iommufd 0x80 and up; neither has come near this.
        assert!((0x3bd0..=0x3bff).contains(&number), "{request:?}");
    }
}

#[test]
fn a_number_means_one_thing_in_a_revision() {
    for revision in Revision::ALL {
        let mut known = BTreeMap::new();
        for request in Request::all() {
            let Some(number) = request.number(revision) else { continue };
            assert_eq!(known.insert(number, request), None, "{revision:?} {number:#x}");
        }
        for number in (0..0x1_0000).chain([0x3b71_0000, 0x8000_3b71, u32::MAX]) {
            assert_eq!(Request::of(number, revision), known.get(&number).copied(), "{number:#x}");
        }
    }
}

#[test]
fn our_own_revision_has_every_request() {
    assert!(Request::all().all(|request| request.number(Revision::Own).is_some()));
    assert_eq!(Request::all().count(), NUMBERS.len());
}
