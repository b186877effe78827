//! What a device whose ATS is on keeps in its own TLB, and what empties that.
#![cfg(not(loom))]

mod common;

use std::sync::Arc;

use common::device_tlb_scenarios::{self, forget};
use common::hosted::{Hosted, VA as HOSTED};
use common::*;
use iommu::{
    AddressSpace, Channel, Counters, DeviceContext, DmaError, Endpoint, FaultReason, Invalidation,
    PageRange, PasidTable, StageOneInvalidation, Vm,
};
use mem::{Access, Gpa, GuestMemory, Iova, MemoryMap, Range};

const VA: u64 = 0x7f00_1234_5000;
const PAGES: [u64; 2] = [0x10_0000, 0x20_0000];
const WORDS: [u64; 2] = [11, 22];

/// A device with ATS, and PASID 1 whose only page is at [`VA`].
struct World {
    guest: Guest,
    root: Gpa,
    endpoint: Endpoint,
    channel: Channel,
}

impl World {
    fn new() -> Self {
        let mut guest = Guest::new();
        let root = guest.table();
        guest.set_first(root, VA, 1, leaf(PAGES[0]));
        guest.set_pasid(1, first_stage(root, DOMAIN));
        for (page, word) in PAGES.into_iter().zip(WORDS) {
            guest.memory.store_u64(Gpa(page), word).unwrap();
        }
        let (endpoint, channel) = guest.attach();
        endpoint.set_ats(true);
        Self { guest, root, endpoint, channel }
    }

    /// The device has read the page, which then goes elsewhere. Nothing is announced.
    fn remapped() -> Self {
        let mut world = Self::new();
        assert_eq!(world.read(), Ok(WORDS[0]));
        world.guest.set_first(world.root, VA, 1, leaf(PAGES[1]));
        world
    }

    fn read(&self) -> Result<u64, DmaError> {
        dma(&self.channel, with(1), VA, Op::Read)
    }

    /// Hits and misses of the device's own TLB, and what it holds.
    fn own(&self) -> (u64, u64, u64) {
        let Counters { device_tlb_hits, device_tlb_misses, device_tlb_entries, .. } =
            self.guest.vm.counters();
        (device_tlb_hits, device_tlb_misses, device_tlb_entries)
    }

    fn of_device(&self, range: Range<Iova>) -> Invalidation {
        Invalidation::DeviceTlbPasid { requester: DEVICE, pasid: Some(pasid(1)), range }
    }
}

fn leaf(page: u64) -> u64 {
    page | PRESENT | WRITABLE | USER
}

fn everywhere() -> Range<Iova> {
    Range { start: Iova(0), last: Iova(u64::MAX) }
}

#[test]
fn scenarios() {
    assert_eq!(device_tlb_scenarios::remap(), Ok(()));
    assert_eq!(device_tlb_scenarios::storm(), Ok(()));
}

#[test]
fn hits_ask_nobody() {
    let world = World::new();
    assert_eq!(world.read(), Ok(WORDS[0]));
    let before = world.guest.vm.counters();
    assert_eq!(world.own(), (0, 1, 1));
    assert_eq!(world.read(), Ok(WORDS[0]));
    assert_eq!(world.own(), (1, 1, 1));
    let after = world.guest.vm.counters();
    assert_eq!(after.translations, before.translations + 1);
    assert_eq!((after.iotlb_hits, after.iotlb_misses), (before.iotlb_hits, before.iotlb_misses));
    // Not even whether the PASID still has an entry.
    let mut world = world;
    world.guest.set_pasid(1, [0; 8]);
    world.guest.settle_all();
    assert_eq!(world.read(), Ok(WORDS[0]));
    world.guest.settle(world.of_device(everywhere()));
    assert!(world.read().is_err());
    assert_eq!(world.own().2, 0);
}

/// The test of the tests: a guest that leaves out the invalidation of the device's own TLB sees what
/// was there before.
#[test]
fn what_is_not_forgotten_is_stale() {
    let world = World::remapped();
    world.guest.settle_all();
    assert_eq!(world.read(), Ok(WORDS[0]), "stale");
    // Nor is the address next to it enough, or another PASID's, another device's, or none's.
    let next = Range::<Iova>::new(Iova(VA + 4096), 4096).unwrap();
    let other = pci::RequesterId::from_bits(0x0999);
    for scope in [
        world.of_device(next),
        Invalidation::DeviceTlbPasid { requester: DEVICE, pasid: Some(pasid(2)), range: next },
        Invalidation::DeviceTlbPasid { requester: other, pasid: None, range: everywhere() },
        Invalidation::DeviceTlb { requester: DEVICE, range: everywhere() },
    ] {
        world.guest.settle(scope);
        assert_eq!(world.read(), Ok(WORDS[0]), "{scope:?}");
    }
    world.guest.settle(world.of_device(everywhere()));
    assert_eq!(world.read(), Ok(WORDS[1]));
}

/// In the wrong order, what the device asks for again is what the IOTLB still has.
#[test]
fn the_devices_own_tlb_alone_is_not_enough() {
    let world = World::remapped();
    world.guest.settle(world.of_device(everywhere()));
    assert_eq!(world.read(), Ok(WORDS[0]));
    wait(&world.guest.vm, forget(&world.guest, VA));
    assert_eq!(world.read(), Ok(WORDS[1]));
}

#[test]
fn the_end_of_ats_empties_it() {
    let world = World::remapped();
    world.guest.settle_all();
    world.endpoint.set_ats(false);
    assert_eq!(world.read(), Ok(WORDS[1]));
    assert_eq!(world.own(), (0, 1, 0));
    world.endpoint.set_ats(true);
    assert_eq!(world.read(), Ok(WORDS[1]));
    assert_eq!(world.own(), (0, 2, 1));
    // An access that is in flight does not keep the device from switching it off.
    let access = world.channel.enter();
    world.endpoint.set_ats(false);
    let covered = world.guest.vm.invalidate(Invalidation::IotlbAll);
    assert!(!world.guest.vm.is_complete(covered), "that one may use it still");
    drop(access);
    assert!(world.guest.vm.is_complete(covered));
    assert_eq!(world.own().2, 0);
}

#[test]
fn what_the_host_changes_empties_it() {
    // The memory map.
    let world = World::remapped();
    world.guest.settle_all();
    let ticket = world.guest.vm.set_memory(MemoryMap::clone(&world.guest.memory));
    assert!(world.guest.vm.is_complete(ticket));
    assert_eq!(world.own().2, 0);
    assert_eq!(world.read(), Ok(WORDS[1]));
    // The end of the device, and that of the VM.
    let ticket = world.endpoint.detach();
    assert!(world.guest.vm.is_complete(ticket));
    assert_eq!(dma(&world.channel, with(1), VA, Op::Read), Err(DmaError::Detached));
    assert_eq!(world.guest.vm.counters().device_tlb_entries, 0);
    let world = World::remapped();
    let ticket = world.guest.vm.close();
    assert!(world.guest.vm.is_complete(ticket));
    assert_eq!(world.read(), Err(DmaError::Detached));
    assert_eq!(world.own().2, 0);
}

#[test]
fn a_pasid_that_is_taken_back_is_gone() {
    let range = iommu::PasidRange::new(pasid(1), pasid(1)).unwrap();
    for all in [false, true] {
        let world = World::new();
        let granted = world.guest.vm.alloc_pasid(range).unwrap();
        assert_eq!(world.read(), Ok(WORDS[0]));
        if all {
            let ticket = world.guest.vm.release_pasids();
            assert!(world.guest.vm.is_complete(ticket));
        } else {
            world.guest.vm.free_pasid(granted).unwrap();
            assert_eq!(world.guest.vm.pasid_usage().parked, 0);
        }
        let entries = world.own().2;
        assert_eq!(entries, 0, "{all}");
    }
}

#[test]
fn entries_are_for_what_was_asked() {
    let mut world = World::new();
    let kernel = AddressSpace { pasid: Some(pasid(1)), privileged: true };
    assert_eq!(world.read(), Ok(WORDS[0]));
    // The entry of the PASID allows no supervisor requests, whatever the page does.
    let refused = DmaError::Refused { address: Iova(VA), access: Access::Read };
    assert_eq!(dma(&world.channel, kernel, VA, Op::Read), Err(refused));
    assert_eq!(world.guest.vm.take_fault().unwrap().reason, FaultReason::SupervisorDisabled);
    let misses = world.own().1;
    // A right that the completion did not give is asked for again, and marks the page.
    assert_eq!(dma(&world.channel, with(1), VA, Op::Write), Ok(0));
    assert_eq!(world.own().1, misses + 1);
    let entry = world.guest.entry(world.root, 4, VA, 1, 0);
    assert_ne!(world.guest.memory.load_u64(entry).unwrap() & DIRTY, 0);
    assert_eq!(dma(&world.channel, with(1), VA, Op::Atomic), Ok(1));
    assert_eq!(world.read(), Ok(2));
    assert_eq!(world.own().1, misses + 1, "both rights came with it");
    // Another PASID with the same table has to ask.
    world.guest.set_pasid(2, first_stage(world.root, DOMAIN));
    assert_eq!(dma(&world.channel, with(2), VA, Op::Read), Ok(2));
    assert_eq!(world.own().1, misses + 2);
}

#[test]
fn absence_and_faults_are_not_kept() {
    let mut world = World::new();
    let at = VA + 4096;
    let absent = DmaError::Page { address: Iova(at), access: Access::Read };
    assert_eq!(dma(&world.channel, with(1), at, Op::Read), Err(absent));
    assert_eq!(world.own(), (0, 1, 0));
    world.guest.set_first(world.root, at, 1, leaf(PAGES[1]));
    assert_eq!(dma(&world.channel, with(1), at, Op::Read), Ok(WORDS[1]));
}

/// Nobody would have it forgotten.
#[test]
fn nothing_is_kept_while_translation_is_off() {
    let world = World::new();
    world.guest.vm.set_contexts(None);
    assert_eq!(dma(&world.channel, without(), PAGES[0], Op::Read), Ok(WORDS[0]));
    assert_eq!(world.own(), (0, 1, 0));
    world.guest.vm.set_contexts(Some(world.guest.context.clone()));
    assert!(dma(&world.channel, without(), PAGES[0], Op::Read).is_err());
}

#[test]
fn windows_are_the_same_from_it() {
    let mut world = World::new();
    let large = 0x40_0000;
    world.guest.set_first(world.root, large, 2, 0x20_0000 | leaf(0) | LARGE);
    let pass = PasidTable { rid_pasid: pasid(3), ..world.guest.pasid_table() };
    world.guest.set_pasid(3, pass_through(DOMAIN));
    world.guest.set_context(DeviceContext::PasidTable(pass));
    let dma = world.channel.enter();
    let small = of_no_memory(true, false);
    for round in 0..2 {
        let len = |space, at, len| dma.window(space, Iova(at), len, Access::Write).unwrap().len();
        assert_eq!(len(with(1), VA + 0xff0, 100), 16);
        assert_eq!(len(with(1), large + (2 << 20) - 24, 100), 24);
        assert_eq!(len(with(1), large + 0x3008, 1000), 1000);
        // Pass-through: as far as the memory goes.
        assert_eq!(len(without(), MEMORY - 0x3000, 0x8000), if small { 0x3000 } else { 0x1000 });
        let interrupts = dma.window(without(), Iova(0xfee0_0000), 4, Access::Write);
        assert!(interrupts.is_err(), "{round}");
    }
}

/// Up to the interrupt range, and not into it, from the device's own TLB as well.
#[test]
fn a_large_page_ends_at_the_interrupt_range() {
    let mut world = World::new();
    let below = 0xfede_0000;
    let memory = [(Gpa(0), MEMORY), (Gpa(below), 0x4_0000)];
    let map = MemoryMap::anonymous(&memory).unwrap();
    // The tables stay where they are.
    let segments = world.guest.memory.segments().iter().chain(&map.segments()[1..]).cloned();
    let map = MemoryMap::new(segments.collect()).unwrap();
    assert!(world.guest.vm.is_complete(world.guest.vm.set_memory(map)));
    world.guest.set_first(world.root, 0xc000_0000, 3, 0xc000_0000 | leaf(0) | LARGE);
    let dma = world.channel.enter();
    for _ in 0..2 {
        let window = dma.window(with(1), Iova(0xfedf_f000), 0x2000, Access::Read).unwrap();
        assert_eq!(window.len(), 0x1000);
        assert!(dma.window(with(1), Iova(0xfee0_0000), 4, Access::Read).is_err());
    }
}

/// What the host forgets of an attached table, it has the device forget, too.
#[test]
fn attached_tables() {
    let mut hosted = Hosted::new();
    let vm = hosted.guest.vm.clone();
    hosted.endpoint.set_ats(true);
    let root = hosted.root(PAGES[0], WORDS[0]);
    let (space, other) = (hosted.nested(root).unwrap(), hosted.space(PAGES[1], WORDS[1]));
    hosted.grant(5);
    hosted.attach(5, space);
    assert_eq!(hosted.read(5), Ok(WORDS[0]));
    let range = Range::<Iova>::new(Iova(HOSTED), 4096).unwrap();
    let pages = StageOneInvalidation::Pages { range, leaf_only: true };
    for what in [pages, StageOneInvalidation::All, StageOneInvalidation::Entry] {
        hosted.guest.set_first(root, HOSTED, 1, leaf(PAGES[1]));
        assert_eq!(hosted.read(5), Ok(WORDS[0]), "stale, before it");
        wait(&vm, vm.invalidate_hwpt(space, &[what]).unwrap());
        assert_eq!(hosted.read(5), Ok(WORDS[1]), "{what:?}");
        hosted.guest.set_first(root, HOSTED, 1, leaf(PAGES[0]));
        wait(&vm, vm.invalidate_hwpt(space, &[what]).unwrap());
        assert_eq!(hosted.read(5), Ok(WORDS[0]), "{what:?}");
    }
    let place = Some(common::hosted::guest(5));
    wait(&vm, vm.replace_hwpt(DEVICE, place, other).unwrap());
    assert_eq!(hosted.read(5), Ok(WORDS[1]));
    wait(&vm, vm.detach_hwpt(DEVICE, place).unwrap());
    assert!(hosted.read(5).is_err());
    hosted.end();
}

/// The scope of a page that was part of a large one reaches all that was made of that.
#[test]
fn any_page_of_a_large_one() {
    let mut world = World::new();
    let large = 0x40_0000;
    world.guest.set_first(world.root, large, 2, 0x20_0000 | leaf(0) | LARGE);
    let read = |world: &World| dma(&world.channel, with(1), large, Op::Read);
    assert_eq!(read(&world), Ok(WORDS[1]));
    world.guest.set_first(world.root, large, 2, 0);
    let range = Range::<Iova>::new(Iova(large + 0x1f_f000), 4096).unwrap();
    let pages = PageRange { range, leaf_only: true };
    world.guest.settle(Invalidation::IotlbPasidPages { domain: DOMAIN, pasid: pasid(1), pages });
    assert_eq!(read(&world), Ok(WORDS[1]));
    world.guest.settle(world.of_device(range));
    assert!(read(&world).is_err());
}

/// Channels have their own; what one forgets, all do.
#[test]
fn every_channel_forgets() {
    let world = World::remapped();
    let channels = [world.endpoint.channel(), world.endpoint.channel()];
    world.guest.settle_all();
    let read = |channel: &Channel| dma(channel, with(1), VA, Op::Read);
    assert_eq!(channels.each_ref().map(read), [Ok(WORDS[1]); 2]);
    assert_eq!((world.read(), world.own().2), (Ok(WORDS[0]), 3));
    let shared = Arc::new(world);
    std::thread::scope(|scope| {
        scope.spawn(|| wait(&shared.guest.vm, forget(&shared.guest, VA)));
    });
    assert_eq!(shared.own().2, 0);
    assert_eq!(shared.read(), Ok(WORDS[1]));
}
