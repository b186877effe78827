//! Invalidations of translations, and waits.

use iommu::StageOneInvalidation;
use mem::Range;

use super::*;

#[test]
fn translations_are_forgotten_of_what_is_bound() {
    let mut unit = translating();
    unit.set_entry(0, FIRST_STAGE, 0x9000);
    unit.set_entry(5, FIRST_STAGE, 0xa000);
    unit.set_entry(6, PASS_THROUGH, 0);
    unit.tell(&[ENTRIES_GLOBAL]);
    let all = |root| Call::Invalidate(stage_one(root), [StageOneInvalidation::All].into());
    let range = Range { start: Iova(0x7000), last: Iova(0x7fff) };
    let pages = |root, leaf_only| {
        Call::Invalidate(stage_one(root), [StageOneInvalidation::Pages { range, leaf_only }].into())
    };
    let source = u64::from(device().bits());
    let by_descriptor: [([u64; 2], &[Call]); 10] = [
        (IOTLB_ALL, &[all(0x9000), all(0xa000)]),
        ([2 | 2 << 4 | DOMAIN << 16, 0], &[all(0x9000), all(0xa000)]),
        ([2 | 3 << 4 | DOMAIN << 16, 0x7000], &[all(0x9000), all(0xa000)]),
        (pasid_iotlb(DOMAIN, 5), &[all(0xa000)]),
        (pasid_iotlb(DOMAIN, 0), &[all(0x9000)]),
        (pasid_iotlb(DOMAIN, 6), &[]),
        ([6 | 3 << 4 | DOMAIN << 16 | 5 << 32, 0x7000 | 1 << 6], &[pages(0xa000, true)]),
        ([3 | source << 32, 0x7000], &[pages(0x9000, false)]),
        ([8 | source << 16 | 5 << 32, 0x7000], &[pages(0xa000, false)]),
        ([8 | source << 16 | 5 << 32, 0x7fff_ffff_ffff_f000 | 1 << 11], &[all(0xa000)]),
    ];
    for (descriptor, calls) in by_descriptor {
        assert_eq!(unit.tell(&[descriptor]), calls, "{descriptor:x?}");
    }
    assert_eq!(unit.counts().unknown_invalidations, 0);
}

#[test]
fn invalidations_of_what_is_not_bound_complete_and_are_counted() {
    let mut unit = translating();
    unit.set_entry(5, FIRST_STAGE, 0x9000);
    unit.tell(&[entry_changed(5)]);
    let other = u64::from(device().bits()) + 1;
    let unknown = [
        entry_changed(6),
        entry_changed(0xf_ffff),
        pasid_iotlb(DOMAIN, 6),
        pasid_iotlb(DOMAIN + 1, 5),
        [2 | 2 << 4 | (DOMAIN + 1) << 16, 0],
        [8 | other << 16 | 5 << 32, 0x7000],
        [3 | u64::from(device().bits()) << 32, 0x7000],
        [1 | 3 << 4 | other << 32, 0],
    ];
    for (number, descriptor) in (1..).zip(unknown) {
        assert_eq!(unit.tell(&[descriptor]), [], "{descriptor:x?}");
        assert_eq!(unit.counts().unknown_invalidations, number, "{descriptor:x?}");
    }
    assert_eq!(unit.bound().len(), 1);
}

#[test]
fn what_cannot_be_forgotten_is_unbound() {
    let mut unit = translating();
    unit.set_entry(5, FIRST_STAGE, 0x9000);
    unit.tell(&[entry_changed(5)]);
    unit.vm.state().objects.fail_invalidations = Some(ObjectError::NoMemory);
    unit.tell(&[pasid_iotlb(DOMAIN, 5)]);
    assert_eq!((unit.bound().len(), unit.counts().refused), (0, 1));
}

#[test]
fn a_wait_is_complete_when_what_was_unbound_is_not_in_use() {
    let mut unit = translating();
    unit.set_entry(5, FIRST_STAGE, 0x9000);
    unit.tell(&[entry_changed(5)]);
    unit.vm.complete_late();
    unit.clear_entry(5);
    let _ = unit.submit(&[entry_changed(5), pasid_iotlb(DOMAIN, 5), wait(3)]);
    assert!(matches!(unit.poll().progress, Progress::Waiting(_)));
    assert_eq!(unit.bound(), BTreeMap::new());
    assert_eq!(unit.vm.memory().load_u32(STATUS), Ok(0));
    unit.vm.complete();
    assert_eq!(unit.poll().progress, Progress::Idle);
    assert_eq!(unit.vm.memory().load_u32(STATUS), Ok(3));
}

#[test]
fn translation_is_on_when_nothing_passes_through_any_more() {
    let mut unit = unit();
    unit.vm.complete_late();
    assert!(unit.write32(0x18, TE | QIE).schedule);
    assert_eq!(unit.bound().len(), 1, "a register access changes nothing");
    assert!(matches!(unit.poll().progress, Progress::Waiting(_)));
    assert_eq!((unit.bound().len(), unit.read32(0x1c)), (0, SRTP | QIE));
    unit.vm.complete();
    let _ = unit.poll();
    assert_eq!(unit.read32(0x1c), TE | SRTP | QIE);
}
