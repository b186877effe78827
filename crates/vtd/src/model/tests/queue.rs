//! The invalidation queue: order, waits, errors, budget.

use iommu::{DomainId, PageRange};
use mem::Range;

use super::*;

fn pages(start: u64, last: u64, leaf_only: bool) -> PageRange {
    PageRange { range: Range { start: Iova(start), last: Iova(last) }, leaf_only }
}

#[test]
fn a_tail_write_only_schedules() {
    let mut unit = Unit::scalable();
    let effects = unit.submit(&[IOTLB_ALL, wait(0xcafe)]);
    assert_eq!(effects, Effects { schedule: true, ..Effects::default() });
    assert_eq!(unit.vm.forgotten(), []);
    assert_eq!(unit.read64(0x80), 0);

    assert_eq!(unit.poll().progress, Progress::Idle);
    assert_eq!(unit.vm.forgotten(), [Invalidation::IotlbAll]);
    assert_eq!(unit.read64(0x80), 64);
    assert_eq!(unit.vm.memory().load_u32(STATUS), Ok(0xcafe));
}

#[test]
fn descriptors_become_the_scopes_they_name() {
    let (domain, pasid) = (DomainId(0x1234), Pasid::new(0xabcde).unwrap());
    let all = Range { start: Iova(0), last: Iova(u64::MAX) };
    let cases = [
        ([0x11, 0], Invalidation::ContextAll),
        // Contexts of scalable mode have no domain.
        ([0x1234_0021, 0], Invalidation::ContextAll),
        (
            [0x0001_0080_0000_0031, 0],
            Invalidation::ContextDevice { requester: device(), ignore: 4 },
        ),
        ([0x12, 0], Invalidation::IotlbAll),
        ([0x1234_0022, 0], Invalidation::IotlbDomain(domain)),
        (
            [0x1234_0032, 0x5041],
            Invalidation::IotlbDomainPages { domain, pages: pages(0x4000, 0x5fff, true) },
        ),
        // Bits beyond the guest address width are ignored.
        (
            [0x1234_0032, 0xffff_0000_0000_5000],
            Invalidation::IotlbDomainPages { domain, pages: pages(0x5000, 0x5fff, false) },
        ),
        ([0x000a_bcde_1234_0026, 0], Invalidation::IotlbPasid { domain, pasid }),
        (
            [0x000a_bcde_1234_0036, 0x7fff_ffff_f000],
            Invalidation::IotlbPasidPages {
                domain,
                pasid,
                pages: pages(0x7fff_ffff_f000, 0x7fff_ffff_ffff, false),
            },
        ),
        ([0x1234_0007, 0], Invalidation::PasidCacheDomain(domain)),
        ([0x000a_bcde_1234_0017, 0], Invalidation::PasidCache { domain, pasid }),
        ([0x37, 0], Invalidation::PasidCacheAll),
        (
            [0x0000_0080_0000_0003, 0x7fff_ffff_ffff_f001],
            Invalidation::DeviceTlb { requester: device(), range: all },
        ),
        (
            [0x000a_bcde_0080_0008, 0x4800],
            Invalidation::DeviceTlbPasid {
                requester: device(),
                pasid: Some(pasid),
                range: Range { start: Iova(0x4000), last: Iova(0x5fff) },
            },
        ),
        (
            [0x0080_0008, 1],
            Invalidation::DeviceTlbPasid {
                requester: device(),
                pasid: None,
                range: Range { start: Iova(0), last: Iova(0xfff) },
            },
        ),
    ];
    let mut unit = Unit::scalable();
    let _ = unit.submit(&cases.map(|(words, _)| words));
    assert_eq!(unit.poll().progress, Progress::Idle);
    assert_eq!(unit.vm.forgotten(), cases.map(|(_, scope)| scope));
    let counters = unit.model.counters();
    assert_eq!(counters.descriptors, cases.len() as u64);
    assert_eq!(counters.context_invalidations, 3);
    assert_eq!(counters.iotlb_invalidations, 6);
    assert_eq!(counters.pasid_cache_invalidations, 3);
    assert_eq!(counters.device_tlb_invalidations, 3);
}

#[test]
fn a_wait_stops_the_head_until_what_is_before_it_is_over() {
    let mut unit = Unit::scalable();
    unit.vm.complete_late();
    let _ = unit.submit(&[IOTLB_ALL, wait(1), [0x11, 0], wait(2)]);
    for _ in 0..3 {
        assert!(matches!(unit.poll().progress, Progress::Waiting(_)));
        assert_eq!(unit.read64(0x80), 32, "the head is at the wait");
        assert_eq!(unit.vm.memory().load_u32(STATUS), Ok(0));
        assert!(!unit.vm.state().invalidations.contains(&Invalidation::ContextAll));
    }
    unit.vm.complete();
    assert!(matches!(unit.poll().progress, Progress::Waiting(_)));
    assert_eq!(unit.vm.memory().load_u32(STATUS), Ok(1));
    assert_eq!(unit.read64(0x80), 96);
    unit.vm.complete();
    assert_eq!(unit.poll().progress, Progress::Idle);
    assert_eq!(unit.vm.memory().load_u32(STATUS), Ok(2));
    assert_eq!(unit.model.counters().waits_held, 4);
}

#[test]
fn a_wait_with_nothing_before_it_is_complete_at_once() {
    let mut unit = Unit::scalable();
    unit.vm.complete_late();
    let _ = unit.submit(&[wait(7)]);
    assert_eq!(unit.poll().progress, Progress::Idle);
    assert_eq!(unit.vm.memory().load_u32(STATUS), Ok(7));
}

#[test]
fn the_queue_wraps() {
    let mut unit = Unit::scalable();
    // 128 entries of 32 bytes: fill 127, take them, then go round the end.
    let burst: Vec<[u64; 2]> = std::vec![IOTLB_ALL; 127];
    let _ = unit.submit(&burst);
    while unit.poll().progress == Progress::More {}
    assert_eq!(unit.read64(0x80), 127 * 32);
    unit.fill(127, &[wait(1)]);
    unit.fill(0, &[IOTLB_ALL, wait(2)]);
    let _ = unit.write64(0x88, 64);
    assert_eq!(unit.poll().progress, Progress::Idle);
    assert_eq!(unit.read64(0x80), 64);
    assert_eq!(unit.vm.memory().load_u32(STATUS), Ok(2));
    assert_eq!(unit.model.counters().descriptors, 130);
}

#[test]
fn a_narrow_queue_takes_legacy_descriptors() {
    let mut unit = Unit::new();
    let _ = unit.write64(0x90, QUEUE | 1);
    let _ = unit.write32(0x18, QIE);
    unit.store(Gpa(QUEUE), &[0x1234_0021, 0, 0x25 | 9 << 32, STATUS.0, 0x0a06, 0]);
    let _ = unit.write64(0x88, 32);
    assert_eq!(unit.poll().progress, Progress::Idle);
    assert_eq!(unit.vm.forgotten(), [Invalidation::ContextDomain(DomainId(0x1234))]);
    assert_eq!(unit.vm.memory().load_u32(STATUS), Ok(9));
    // A PASID-based one is not for legacy mode.
    let _ = unit.write64(0x88, 48);
    assert_eq!(unit.poll().progress, Progress::Idle);
    assert_eq!((unit.read32(0x34), unit.read64(0xb0)), (IQE, 3));
    assert_eq!(unit.read64(0x80), 32);
}

#[test]
fn a_poll_takes_its_budget_and_no_more() {
    let mut unit = Unit::scalable();
    let burst: Vec<[u64; 2]> = std::vec![IOTLB_ALL; 100];
    let _ = unit.submit(&burst);
    assert_eq!(unit.model.poll(3).progress, Progress::More);
    assert_eq!(unit.model.counters().descriptors, 3);
    assert_eq!(unit.model.poll(0).progress, Progress::More);
    assert_eq!(unit.model.counters().descriptors, 4);
    assert_eq!(unit.model.poll(u32::MAX).progress, Progress::More);
    assert_eq!(unit.model.counters().descriptors, 4 + u64::from(DESCRIPTORS_PER_POLL));
    assert_eq!(unit.model.poll(u32::MAX).progress, Progress::Idle);
    assert_eq!(unit.model.counters().descriptors, 100);
}

/// Checks that the queue is in error for `info` with its head at `head`, that it stays so, and
/// that the fault event was raised once.
fn assert_error(unit: &mut Unit, info: u64, head: u64) {
    let polled = unit.poll();
    assert_eq!(polled.progress, Progress::Idle);
    assert_eq!(polled.effects.fault, Some(ERROR_MESSAGE));
    assert_eq!(unit.read32(0x34), IQE);
    assert_eq!(unit.read64(0xb0), info);
    assert_eq!(unit.read64(0x80), head);
    let polled = unit.poll();
    assert_eq!(polled.effects, Effects::default());
    assert_eq!(unit.read64(0x80), head);
}

#[test]
fn a_bad_descriptor_stops_the_queue_at_it() {
    let mut unit = Unit::scalable();
    unit.unmask_events();
    let _ = unit.submit(&[IOTLB_ALL, [0xf, 0], wait(1)]);
    assert_error(&mut unit, 3, 32);
    // As Linux does: the bad descriptor is replaced, then the error is cleared.
    unit.fill(1, &[[0x11, 0]]);
    let effects = unit.write32(0x34, IQE);
    assert!(effects.schedule);
    assert_eq!((unit.read32(0x34), unit.read64(0xb0)), (0, 0));
    assert_eq!(unit.poll().progress, Progress::Idle);
    assert_eq!(unit.vm.forgotten(), [Invalidation::IotlbAll, Invalidation::ContextAll]);
    assert_eq!(unit.vm.memory().load_u32(STATUS), Ok(1));
}

#[test]
fn an_error_that_is_cleared_but_not_mended_comes_back() {
    let mut unit = Unit::scalable();
    unit.unmask_events();
    let _ = unit.submit(&[[0x1000_0000_0000_0012, 0]]);
    assert_error(&mut unit, 4, 0);
    assert!(unit.write32(0x34, IQE).schedule);
    assert_error(&mut unit, 4, 0);
    assert_eq!(unit.model.counters().queue_errors, 2);
}

#[test]
fn a_tail_outside_the_queue_is_an_error() {
    let mut unit = Unit::scalable();
    unit.unmask_events();
    unit.fill(0, &[IOTLB_ALL]);
    let _ = unit.write64(0x88, 4096);
    assert_error(&mut unit, 1, 0);
    let _ = unit.write64(0x88, 32);
    let _ = unit.write32(0x34, IQE);
    assert_eq!(unit.poll().progress, Progress::Idle);
    assert_eq!(unit.vm.forgotten(), [Invalidation::IotlbAll]);
}

#[test]
fn a_tail_inside_a_descriptor_is_an_error() {
    let mut unit = Unit::scalable();
    unit.unmask_events();
    let _ = unit.write64(0x88, 16);
    assert_error(&mut unit, 6, 0);
}

#[test]
fn a_queue_without_memory_is_an_error() {
    let mut unit = Unit::new();
    unit.unmask_events();
    let _ = unit.write64(0x90, (0xffff_ffff_ffff_f000) | 7);
    let _ = unit.write32(0x18, QIE);
    let _ = unit.write64(0x88, 16);
    assert_error(&mut unit, 2, 0);
}

#[test]
fn scalable_mode_needs_wide_descriptors() {
    let mut unit = Unit::new();
    unit.unmask_events();
    let _ = unit.write64(0x20, 0x4400);
    let _ = unit.write32(0x18, SRTP);
    let _ = unit.write64(0x90, QUEUE);
    let _ = unit.write32(0x18, QIE);
    let _ = unit.write64(0x88, 16);
    assert_error(&mut unit, 5, 0);
}

#[test]
fn a_reserved_table_mode_takes_no_descriptor() {
    for mode in [0x800, 0xc00] {
        let mut unit = Unit::new();
        unit.unmask_events();
        let _ = unit.write64(0x20, 0x4000 | mode);
        let _ = unit.write32(0x18, SRTP);
        let _ = unit.write64(0x90, QUEUE | 0x800);
        let _ = unit.write32(0x18, QIE);
        let _ = unit.write64(0x88, 32);
        assert_error(&mut unit, 7, 0);
    }
}

#[test]
fn wide_descriptors_need_scalable_mode() {
    let mut unit = Unit::with(Options {
        scalable_mode: false,
        pasid_bits: None,
        first_stage: false,
        first_stage_1g: false,
        second_stage: false,
        nested: false,
        rid_pasid: false,
        page_requests: false,
        ..Options::default()
    });
    unit.unmask_events();
    let _ = unit.write64(0x90, QUEUE | 0x800);
    let _ = unit.write32(0x18, QIE);
    let _ = unit.write64(0x88, 32);
    assert_error(&mut unit, 5, 0);
}

#[test]
fn a_status_write_without_memory_is_counted() {
    let mut unit = Unit::scalable();
    let _ = unit.submit(&[[0x25 | 1 << 32, 0xfee0_0000], wait(2)]);
    assert_eq!(unit.poll().progress, Progress::Idle);
    assert_eq!(unit.model.counters().status_writes_failed, 1);
    assert_eq!(unit.vm.memory().load_u32(STATUS), Ok(2));
    // Address bits beyond the width do not count.
    let _ = unit.submit(&[[0x25 | 3 << 32, 0xffff_0000_0000_0000 | STATUS.0]]);
    let _ = unit.poll();
    assert_eq!(unit.vm.memory().load_u32(STATUS), Ok(3));
}

#[test]
fn switching_the_queue_off_rewinds_it() {
    let mut unit = Unit::scalable();
    let _ = unit.submit(&[IOTLB_ALL, IOTLB_ALL]);
    let _ = unit.poll();
    assert_eq!(unit.read64(0x80), 64);
    // The address is held while the queue is on.
    let _ = unit.write64(0x90, QUEUE + 0x1000);
    assert_eq!(unit.read64(0x90), QUEUE | 0x800);
    assert_eq!(unit.model.counters().refused, 1);

    let _ = unit.write32(0x18, 0);
    assert_eq!((unit.read32(0x1c), unit.read64(0x80)), (SRTP, 0));
    assert!(!unit.write64(0x88, 0).schedule);
    assert_eq!(unit.poll().progress, Progress::Idle);
    let _ = unit.write64(0x90, (QUEUE + 0x1000) | 0x800);
    assert!(unit.write32(0x18, QIE).schedule);
    unit.store(Gpa(QUEUE + 0x1000), &[0x11, 0, 0, 0]);
    let _ = unit.write64(0x88, 32);
    unit.vm.forgotten();
    let _ = unit.poll();
    assert_eq!(unit.vm.forgotten(), [Invalidation::ContextAll]);
}

#[test]
fn what_a_queue_held_when_it_was_switched_off_is_gone() {
    let mut unit = Unit::scalable();
    unit.vm.complete_late();
    let _ = unit.submit(&[IOTLB_ALL, wait(1)]);
    assert!(matches!(unit.poll().progress, Progress::Waiting(_)));
    let _ = unit.write32(0x18, 0);
    unit.vm.complete();
    assert_eq!(unit.poll().progress, Progress::Idle);
    assert_eq!(unit.vm.memory().load_u32(STATUS), Ok(0));
}
