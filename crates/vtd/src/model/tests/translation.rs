//! Global commands, and the status that follows them.

use super::*;

const EVERYTHING: [Invalidation; 3] =
    [Invalidation::ContextAll, Invalidation::PasidCacheAll, Invalidation::IotlbAll];

#[test]
fn the_root_pointer_is_latched_by_its_command() {
    let mut unit = Unit::new();
    let _ = unit.write64(0x20, 0x4400);
    let _ = unit.write32(0x18, SRTP);
    assert_eq!(unit.read32(0x1c), SRTP);
    assert_eq!(unit.vm.forgotten(), EVERYTHING);
    assert!(unit.vm.state().contexts.is_none());

    let _ = unit.write32(0x18, TE);
    assert_eq!(unit.read32(0x1c), TE | SRTP);
    assert_eq!(unit.vm.forgotten(), EVERYTHING);
    let mode = |unit: &Unit| {
        let source = unit.vm.state().contexts.clone().unwrap();
        // No memory at all: an error in the root entry of the mode, or of the pointer itself.
        source.lookup(&MemoryMap::default(), device()).unwrap_err().reason
    };
    assert_eq!(mode(&unit), FaultReason::RootAccess);
    // The register alone changes nothing …
    let _ = unit.write64(0x20, 0x5c00);
    assert_eq!(mode(&unit), FaultReason::RootAccess);
    // … the command does, while translation is on too.
    let _ = unit.write32(0x18, TE | SRTP);
    assert_eq!(mode(&unit), FaultReason::RootPointer);
    assert_eq!(unit.vm.forgotten(), EVERYTHING);
    assert_eq!(unit.read32(0x1c), TE | SRTP);
}

#[test]
fn translation_is_off_when_it_was_switched_off() {
    let mut unit = Unit::new();
    let _ = unit.write32(0x18, TE);
    assert!(unit.vm.state().contexts.is_some());
    unit.vm.forgotten();
    let _ = unit.write32(0x18, 0);
    assert!(unit.vm.state().contexts.is_none());
    assert_eq!(unit.vm.forgotten(), EVERYTHING);
    assert_eq!(unit.read32(0x1c), 0);
    // Switching it off again is nothing.
    let _ = unit.write32(0x18, 0);
    assert_eq!(unit.vm.forgotten(), []);
}

#[test]
fn status_follows_when_accesses_in_flight_are_over() {
    let mut unit = Unit::new();
    unit.vm.complete_late();
    assert!(unit.write32(0x18, SRTP).schedule);
    assert_eq!(unit.read32(0x1c), 0);
    assert!(matches!(unit.poll().progress, Progress::Waiting(_)));
    unit.vm.complete();
    assert_eq!(unit.poll().progress, Progress::Idle);
    assert_eq!(unit.read32(0x1c), SRTP);

    assert!(unit.write32(0x18, TE).schedule);
    assert_eq!(unit.read32(0x1c), SRTP);
    unit.vm.complete();
    let _ = unit.poll();
    assert_eq!(unit.read32(0x1c), TE | SRTP);

    assert!(unit.write32(0x18, 0).schedule);
    assert_eq!(unit.read32(0x1c), TE | SRTP);
    // Changed its mind: the last write counts.
    assert!(unit.write32(0x18, TE).schedule);
    unit.vm.complete();
    let _ = unit.poll();
    assert_eq!(unit.read32(0x1c), TE | SRTP);
    assert!(unit.vm.state().contexts.is_some());
}

#[test]
fn a_byte_write_gives_only_the_commands_of_its_byte() {
    let mut unit = Unit::new();
    let _ = unit.write32(0x18, QIE);
    // Bits 31:24 with TE set and QIE clear; then bits 23:16, which leave both alone.
    let _ = unit.model.write(0x1b, &[0x84]);
    assert_eq!(unit.read32(0x1c), TE | QIE);
    let _ = unit.model.write(0x1a, &[0xff]);
    assert_eq!(unit.read32(0x1c), TE | QIE);
}

#[test]
fn interrupt_remapping_and_write_buffers_are_refused() {
    let mut unit = Unit::new();
    for bit in [23, 24, 25, 27] {
        let before = unit.model.counters().refused;
        let _ = unit.write32(0x18, 1 << bit);
        assert_eq!(unit.read32(0x1c), 0);
        assert_eq!(unit.model.counters().refused, before + 1);
    }
}

#[test]
fn registers_invalidate_contexts_in_legacy_mode() {
    let mut unit = Unit::new();
    let ticket = |granularity: u64| 1 << 63 | granularity << 61 | 0x3_0080_1234;
    for (granularity, scope) in [
        (1, Invalidation::ContextAll),
        (2, Invalidation::ContextDomain(iommu::DomainId(0x1234))),
        (3, Invalidation::ContextDevice { requester: device(), ignore: 7 }),
    ] {
        let _ = unit.write64(0x28, ticket(granularity));
        assert_eq!(unit.vm.forgotten(), [scope]);
        let done = granularity << 61 | granularity << 59 | 0x3_0080_1234;
        assert_eq!(unit.read64(0x28), done);
    }
    let _ = unit.write64(0x28, ticket(0));
    assert_eq!(unit.vm.forgotten(), []);
    assert_eq!(unit.read64(0x28), 0x3_0080_1234);
    assert_eq!(unit.model.counters().register_invalidations, 3);
}

#[test]
fn a_command_is_given_by_the_top_byte() {
    let mut unit = Unit::new();
    let _ = unit.write32(0x28, 0x0080_1234);
    let _ = unit.model.write(0x2c, &[3, 0, 0]);
    assert_eq!(unit.vm.forgotten(), []);
    let _ = unit.write32(0x2c, 0xc000_0000);
    let domain = iommu::DomainId(0x1234);
    assert_eq!(unit.vm.forgotten(), [Invalidation::ContextDomain(domain)]);
}

#[test]
fn registers_invalidate_translations_in_legacy_mode() {
    let mut unit = Unit::new();
    let domain = iommu::DomainId(0x1234);
    let range = mem::Range { start: Iova(0x20_0000), last: Iova(0x3f_ffff) };
    let pages = iommu::PageRange { range, leaf_only: true };
    let _ = unit.write64(0xf0, 0x2b_c049);
    for (granularity, scope) in [
        (1, Invalidation::IotlbAll),
        (2, Invalidation::IotlbDomain(domain)),
        (3, Invalidation::IotlbDomainPages { domain, pages }),
    ] {
        let _ = unit.write64(0xf8, 1 << 63 | granularity << 60 | 0x3_1234 << 32);
        assert_eq!(unit.vm.forgotten(), [scope]);
        let done = granularity << 60 | granularity << 57 | 0x3_1234 << 32;
        assert_eq!(unit.read64(0xf8), done);
    }
    // An address mask beyond CAP.MAMV.
    let _ = unit.write64(0xf0, 19);
    let _ = unit.write64(0xf8, 1 << 63 | 3 << 60);
    assert_eq!(unit.read64(0xf8), 3 << 60);
    assert_eq!(unit.vm.forgotten(), []);
}

#[test]
fn registers_do_not_invalidate_beside_the_queue_or_in_scalable_mode() {
    let mut scalable = Unit::new();
    let _ = scalable.write64(0x20, 0x4400);
    let _ = scalable.write32(0x18, SRTP);
    let mut queued = Unit::new();
    let _ = queued.write32(0x18, QIE);
    for mut unit in [scalable, queued] {
        unit.vm.forgotten();
        let _ = unit.write64(0x28, 1 << 63 | 1 << 61);
        let _ = unit.write64(0xf8, 1 << 63 | 1 << 60);
        assert_eq!(unit.read64(0x28), 1 << 61, "CAIG 0: refused");
        assert_eq!(unit.read64(0xf8), 1 << 60, "IAIG 0: refused");
        assert_eq!(unit.vm.forgotten(), []);
        assert_eq!(unit.model.counters().refused, 2);
    }
}

#[test]
fn a_register_invalidation_shows_when_it_is_over() {
    let mut unit = Unit::new();
    unit.vm.complete_late();
    assert!(unit.write64(0x28, 1 << 63 | 1 << 61).schedule);
    assert!(unit.write64(0xf8, 1 << 63 | 1 << 60).schedule);
    assert_eq!(unit.read64(0x28) >> 63, 1);
    assert_eq!(unit.read64(0xf8) >> 63, 1);
    // Not to be written while it is under way.
    let _ = unit.write64(0x28, 0);
    let _ = unit.write64(0xf8, 0);
    assert_eq!(unit.read64(0x28) >> 63, 1);
    assert_eq!(unit.model.counters().refused, 2);
    unit.vm.complete();
    let _ = unit.poll();
    assert_eq!(unit.read64(0x28), 1 << 61 | 1 << 59);
    assert_eq!(unit.read64(0xf8), 1 << 60 | 1 << 57);
}

#[test]
fn reset_forgets_what_was_under_way() {
    let mut unit = Unit::scalable();
    unit.vm.complete_late();
    let _ = unit.write32(0x18, TE | QIE);
    let _ = unit.submit(&[IOTLB_ALL, wait(1)]);
    assert!(matches!(unit.poll().progress, Progress::Waiting(_)));
    let ticket = unit.model.reset();
    assert!(!unit.vm.is_complete(ticket));
    unit.vm.complete();
    assert_eq!(unit.poll().progress, Progress::Idle);
    assert_eq!(unit.read32(0x1c), 0);
    assert_eq!(unit.vm.memory().load_u32(STATUS), Ok(0));
}
