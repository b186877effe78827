//! Commands bit by bit, as the specification has them.

use mem::{Iova, Range};
use pci::RequesterId;

use super::*;
use crate::{Asid, HwptFlags, HwptParent, PageRange, Pasid, SmmuInvalidation};

const VMID: Vmid = Vmid(0x77);
/// The guest's number of the device, and the host's.
const SID: u64 = 0x1_0005;
const DEVICE: RequesterId = RequesterId::from_bits(0x90);

fn objects() -> (Objects, ViommuId) {
    let mut objects = Objects::default();
    let ioas = HwptParent::Ioas(objects.ioas());
    let parent = (ioas, ViommuKind::Smmuv3);
    let parent = objects.alloc_hwpt(HwptFlags::NEST_PARENT, parent, None, None).unwrap();
    let viommu = objects.alloc_viommu(parent, ViommuKind::Smmuv3).unwrap();
    objects.alloc_vdevice(viommu, DEVICE, SID).unwrap();
    (objects, viommu)
}

fn decoded(word0: u64, word1: u64) -> Result<Option<Invalidation>, ObjectError> {
    let (objects, viommu) = objects();
    decode([word0, word1], &objects, viommu, Some(VMID))
}

fn smmu(word0: u64, word1: u64) -> SmmuInvalidation {
    match decoded(word0, word1) {
        Ok(Some(Invalidation::Smmuv3(what))) => what,
        other => panic!("{other:?}"),
    }
}

fn iova(start: u64, last: u64) -> Range<Iova> {
    Range { start: Iova(start), last: Iova(last) }
}

#[test]
fn the_guests_tag_is_replaced() {
    // VMID 0x1234, ASID 0x42.
    let tags = 0x1234 << 32 | 0x42 << 48;
    assert_eq!(smmu(0x10 | tags, 0), SmmuInvalidation::StageOneAll(VMID));
    assert_eq!(smmu(0x30 | tags, 0), SmmuInvalidation::StageOneAll(VMID));
    let asid = Asid(0x42);
    assert_eq!(smmu(0x11 | tags, 0), SmmuInvalidation::StageOneAsid { vmid: VMID, asid });
    let pages = PageRange { range: iova(0x7000, 0x7fff), leaf_only: true };
    let of = |asid| SmmuInvalidation::StageOnePages { vmid: VMID, asid, pages };
    assert_eq!(smmu(0x12 | tags, 0x7001), of(Some(asid)));
    assert_eq!(smmu(0x13 | tags, 0x7001), of(None));
    // Nothing was ever attached: there is nothing to forget.
    let (objects, viommu) = objects();
    for opcode in [0x10, 0x11, 0x12, 0x13, 0x30] {
        assert_eq!(decode([opcode, 0], &objects, viommu, None), Ok(None));
    }
}

#[test]
fn ranges_are_in_granules() {
    let range = |word0: u64, word1| match smmu(0x12 | word0, word1) {
        SmmuInvalidation::StageOnePages { pages, .. } => pages.range,
        other => panic!("{other:?}"),
    };
    // NUM 2, SCALE 3, TG 1: 3 * 2^3 granules of 4 KiB.
    assert_eq!(range(2 << 12 | 3 << 20, 1 << 10 | 0x10_0000), iova(0x10_0000, 0x11_7fff));
    // TG 2 and 3: 16 and 64 KiB.
    assert_eq!(range(0, 2 << 10 | 0x10_0000), iova(0x10_0000, 0x10_3fff));
    assert_eq!(range(0, 3 << 10 | 0x10_0000), iova(0x10_0000, 0x10_ffff));
    // The largest that can be said, at the highest address.
    let top = !0xfff | 3 << 10;
    assert_eq!(range(31 << 12 | 31 << 20, top), iova(!0xffff, u64::MAX));
}

#[test]
fn the_guests_device_is_replaced() {
    let stream = SID << 32;
    let substream = Pasid::from_field(0x9abcd);
    let expected = SmmuInvalidation::Descriptor { requester: DEVICE, substream };
    assert_eq!(smmu(0x05 | 0x9abcd << 12 | stream, 1), expected);
    assert_eq!(smmu(0x06 | stream, 0), SmmuInvalidation::DescriptorAll { requester: DEVICE });
    let tlb = |word0: u64, word1| decoded(0x40 | word0 | stream, word1).unwrap().unwrap();
    let (requester, pasid) = (DEVICE, Some(Pasid::from_field(5)));
    let range = iova(0x8000, 0xffff);
    // Size 3 at an address inside.
    assert_eq!(tlb(0, 0x9003), Invalidation::DeviceTlb { requester, range });
    let of = |pasid| Invalidation::DeviceTlbPasid { requester, pasid, range };
    assert_eq!(tlb(1 << 11 | 5 << 12, 0x9003), of(pasid));
    assert_eq!(tlb(1 << 11 | 1 << 9 | 5 << 12, 0x9003), of(None));
    let all = iova(0, u64::MAX);
    assert_eq!(tlb(0, 52), Invalidation::DeviceTlb { requester, range: all });
    for size in [53, 63] {
        let refused = Err(ObjectError::Invalid(InvalidField::Range));
        assert_eq!(decoded(0x40 | stream, size), refused);
    }
}

#[test]
fn other_devices_and_other_commands_are_errors() {
    for opcode in [0x05, 0x06, 0x40] {
        for stream in [0, SID - 1, SID + 1, u64::from(DEVICE.bits()), u64::from(u32::MAX)] {
            let refused = Err(ObjectError::Invalid(InvalidField::VirtualId));
            assert_eq!(decoded(opcode | stream << 32, 0), refused);
        }
    }
    let allowed = [0x05, 0x06, 0x10, 0x11, 0x12, 0x13, 0x30, 0x40];
    for opcode in (0..=0xff).filter(|opcode| !allowed.contains(opcode)) {
        assert_eq!(decoded(opcode | SID << 32, 0), Err(ObjectError::NotSupported));
    }
}
