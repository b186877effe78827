//! The host's stage 2 under a guest: what passes, what stops and how that is told.
#![cfg(not(loom))]

mod common;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::Arc;
use std::thread;

use common::*;
use iommu::{
    AddressSpace, ArmFlags, ArmStageTwo, Channel, ContextFault, ContextSource, DeviceContext,
    DmaError, Fault, FaultReason, Granule, Host, HostError, Invalidation, Layout, SoftwareHost,
    Stage, StageTwo, StageTwoConfig, StageTwoError, StageTwoFault, StageTwoFormat, StageTwoOwner,
    Vm, VmConfig, STAGE_TWO_LOG_LIMIT,
};
use mem::{Access, Gpa, GuestMemory, Iova, MemoryMap, Range, Segment};

const PAGE: u64 = 0x10_0000;
const VA: u64 = 0x7f00_1234_5000;
const LEAF: u64 = PAGE | PRESENT | WRITABLE | USER;

fn pages(at: u64) -> Range<Gpa> {
    Range::<Gpa>::new(Gpa(at & !0xfff), 0x1000).unwrap()
}

fn guest() -> Guest {
    shuffled(&SoftwareHost::new())
}

fn shuffled(host: &SoftwareHost) -> Guest {
    Guest::with(host, VmConfig { stage_two: Some(SHUFFLED), ..VmConfig::named("guest") })
}

/// A guest whose PASID 1 maps `VA` to `PAGE`, and its first-stage root.
fn bound() -> (Guest, Gpa) {
    let mut guest = guest();
    let root = guest.table();
    guest.set_first(root, VA, 1, LEAF);
    guest.set_pasid(1, first_stage(root, DOMAIN));
    (guest, root)
}

fn clear(guest: &Guest, at: u64) {
    let ticket = guest.vm.clear_stage_two(pages(at)).unwrap();
    assert!(guest.vm.is_complete(ticket));
}

fn restore(guest: &Guest, at: u64) {
    let ticket = guest.vm.restore_stage_two(pages(at)).unwrap();
    assert!(guest.vm.is_complete(ticket));
}

/// The host's stage 2 stopped at `gpa`, whose entry of 4 KiB is not there.
fn stop(gpa: u64, table: bool) -> Option<StageTwoFault> {
    Some(StageTwoFault { gpa: Gpa(gpa), table, level: 1, owner: StageTwoOwner::Host })
}

fn absent(stage: Stage) -> FaultReason {
    FaultReason::NotPresent { stage, level: 1 }
}

/// One read, and the fault that it causes.
fn fault(guest: &Guest, channel: &Channel, space: AddressSpace, at: u64) -> Fault {
    let result = dma(channel, space, at, Op::Read);
    assert_eq!(result, Err(DmaError::Refused { address: Iova(at), access: Access::Read }));
    let fault = guest.vm.take_fault().expect("a fault");
    assert_eq!((fault.address, fault.requester), (Iova(at), DEVICE));
    assert_eq!(guest.vm.take_fault(), None);
    fault
}

#[test]
fn a_leaf_is_cleared_and_comes_back() {
    let (guest, _) = bound();
    guest.memory.store_u64(Gpa(PAGE + 0x10), 0xfeed).unwrap();
    let (_endpoint, channel) = guest.attach();
    assert_eq!(dma(&channel, with(1), VA + 0x10, Op::Read), Ok(0xfeed));
    clear(&guest, PAGE);
    let told = fault(&guest, &channel, with(1), VA + 0x10);
    assert_eq!((told.reason, told.stage_two), (absent(Stage::Two), stop(PAGE + 0x10, false)));
    assert_eq!((told.pasid, told.is_hosts()), (Some(pasid(1)), true));
    assert_eq!(guest.vm.counters().stage_two_faults, 1);
    assert_eq!(guest.vm.stage_two_faults(), [told]);
    restore(&guest, PAGE);
    assert_eq!(dma(&channel, with(1), VA + 0x10, Op::Read), Ok(0xfeed));
}

#[test]
fn a_table_of_the_guests_is_cleared() {
    let (mut guest, root) = bound();
    let (_endpoint, channel) = guest.attach();
    for level in [4, 3, 2, 1] {
        let entry = guest.entry(root, 4, VA, level, 0).0;
        clear(&guest, entry);
        let told = fault(&guest, &channel, with(1), VA);
        assert_eq!(told.reason, absent(Stage::TwoForTable), "level {level}");
        assert_eq!(told.stage_two, stop(entry, true));
        restore(&guest, entry);
        assert_eq!(dma(&channel, with(1), VA, Op::Write), Ok(0));
    }
    let directory = guest.directory.0;
    let entry = guest.pasid_entry(1).0;
    for (at, reason) in
        [(directory, FaultReason::PasidDirectoryAccess), (entry, FaultReason::PasidEntryAccess)]
    {
        clear(&guest, at);
        let told = fault(&guest, &channel, with(1), VA);
        assert_eq!((told.reason, told.stage_two), (reason, stop(at, true)));
        restore(&guest, at);
        assert_eq!(dma(&channel, with(1), VA, Op::Write), Ok(0));
    }
}

/// A source that reads a word before it gives a context.
struct Reading(Gpa, DeviceContext);

impl ContextSource for Reading {
    fn lookup(
        &self,
        memory: &dyn GuestMemory,
        _: pci::RequesterId,
    ) -> Result<DeviceContext, ContextFault> {
        let fault = ContextFault { reason: FaultReason::ContextAccess, fault_disable: false };
        memory.load_u64(self.0).map(|_| self.1).map_err(|_| fault)
    }
}

#[test]
fn a_context_is_read_through_stage_two() {
    let (guest, _) = bound();
    let context = DeviceContext::PasidTable(guest.pasid_table());
    guest.vm.set_contexts(Some(Arc::new(Reading(Gpa(0x5008), context))));
    let (_endpoint, channel) = guest.attach();
    assert_eq!(dma(&channel, with(1), VA, Op::Write), Ok(0));
    clear(&guest, 0x5000);
    let told = fault(&guest, &channel, with(1), VA);
    assert_eq!((told.reason, told.stage_two), (FaultReason::ContextAccess, stop(0x5008, true)));
    // A hole in the memory itself is told the same way, at the entry for 1 GiB.
    let nowhere = Reading(Gpa(NOWHERE), context);
    guest.vm.set_contexts(Some(Arc::new(nowhere)));
    guest.settle_all();
    let told = fault(&guest, &channel, with(1), VA);
    let stop = StageTwoFault { level: 3, ..stop(NOWHERE, true).unwrap() };
    assert_eq!((told.reason, told.stage_two), (FaultReason::ContextAccess, Some(stop)));
}

#[test]
fn without_translation_everything_goes_through_stage_two() {
    let guest = guest();
    guest.memory.store_u64(Gpa(PAGE), 0xfeed).unwrap();
    let (_endpoint, channel) = guest.attach();
    let pass = |ats| DeviceContext::PassThrough { domain: DOMAIN, ats, fault_disable: false };
    guest.set_context(pass(true));
    assert_eq!(dma(&channel, without(), PAGE, Op::Read), Ok(0xfeed));
    assert_eq!(guest.vm.cached_domains(), [DOMAIN].into());
    clear(&guest, PAGE);
    let told = fault(&guest, &channel, without(), PAGE);
    assert_eq!((told.reason, told.stage_two), (absent(Stage::Two), stop(PAGE, false)));

    // Off: nothing is recorded for the guest, but the host knows.
    guest.vm.set_contexts(None);
    guest.settle_all();
    assert!(dma(&channel, without(), PAGE, Op::Read).is_err());
    assert_eq!(guest.vm.take_fault(), None);
    assert_eq!(guest.vm.counters().stage_two_faults, 2);
    assert_eq!(guest.vm.stage_two_faults().len(), 2);
    restore(&guest, PAGE);
    assert_eq!(dma(&channel, without(), PAGE, Op::Read), Ok(0xfeed));
    assert_eq!((guest.vm.counters().iotlb_entries, guest.vm.cached_domains()), (1, [].into()));
    guest.settle(Invalidation::IotlbAll);
    assert_eq!(guest.vm.counters().iotlb_entries, 0);
    // What is cached while translation is off is not used once it is on.
    assert_eq!(dma(&channel, without(), PAGE, Op::Read), Ok(0xfeed));
    let misses = guest.vm.counters().iotlb_misses;
    guest.set_context(pass(false));
    guest.vm.set_contexts(Some(guest.context.clone()));
    assert_eq!(dma(&channel, without(), PAGE, Op::Read), Ok(0xfeed));
    assert_eq!(guest.vm.counters().iotlb_misses, misses + 1);
}

#[test]
fn the_guests_own_second_stage_is_told_apart() {
    let (mut guest, root) = bound();
    let second = guest.identity_second(false);
    let own = |gpa, table, level| {
        Some(StageTwoFault { gpa: Gpa(gpa), table, level, owner: StageTwoOwner::Guest })
    };
    guest.set_pasid(1, nested(root, second, DOMAIN));
    guest.set_pasid(2, second_stage(second, DOMAIN));
    let (_endpoint, channel) = guest.attach();
    dma(&channel, with(1), VA, Op::Write).unwrap();
    dma(&channel, with(2), PAGE, Op::Write).unwrap();

    let page_entry = guest.set_second(second, PAGE, 1, 0);
    guest.settle_all();
    let recorded = |guest: &Guest, space, at| {
        let error = dma(&channel, space, at, Op::Read).unwrap_err();
        assert_eq!(error, DmaError::Page { address: Iova(at), access: Access::Read });
        guest.vm.take_fault().unwrap()
    };
    let told = recorded(&guest, with(1), VA + 8);
    assert_eq!((told.reason, told.stage_two), (absent(Stage::Two), own(PAGE + 8, false, 1)));
    assert!(!told.is_hosts());
    let told = recorded(&guest, with(2), PAGE + 8);
    assert_eq!((told.reason, told.stage_two), (absent(Stage::Two), own(PAGE + 8, false, 1)));

    // Its tables lie in memory that goes through the host's.
    clear(&guest, page_entry.0);
    for (space, at) in [(with(1), VA + 8), (with(2), PAGE + 8)] {
        let told = fault(&guest, &channel, space, at);
        assert_eq!(told.reason, absent(Stage::TwoForTable));
        assert_eq!(told.stage_two, stop(page_entry.0, true));
    }
    restore(&guest, page_entry.0);
    assert_eq!(guest.vm.counters().stage_two_faults, 2);

    // The address of a first-stage table in the guest's second stage.
    let entry = guest.entry(root, 4, VA, 3, 0).0;
    guest.set_second(second, entry, 1, 0);
    guest.settle_all();
    let told = recorded(&guest, with(1), VA + 8);
    assert_eq!((told.reason, told.stage_two), (absent(Stage::TwoForTable), own(entry, true, 1)));
}

#[test]
fn a_context_with_a_second_stage() {
    let mut guest = guest();
    let root = guest.identity_second(true);
    let table = StageTwo { root, levels: 4, accessed_dirty: true };
    guest.set_context(DeviceContext::StageTwo {
        domain: DOMAIN,
        table,
        ats: false,
        fault_disable: false,
    });
    guest.memory.store_u64(Gpa(PAGE), 0xfeed).unwrap();
    let (_endpoint, channel) = guest.attach();
    assert_eq!(dma(&channel, without(), PAGE, Op::Read), Ok(0xfeed));
    clear(&guest, PAGE + 0x2000);
    assert_eq!(dma(&channel, without(), PAGE, Op::Read), Ok(0xfeed));
    let told = fault(&guest, &channel, without(), PAGE + 0x2000);
    assert_eq!((told.reason, told.stage_two), (absent(Stage::Two), stop(PAGE + 0x2000, false)));
}

/// The guest's tables are in order, so a page request would help nobody.
#[test]
fn a_device_that_asks_for_translations_is_refused_too() {
    let (guest, _) = bound();
    let (endpoint, channel) = guest.attach();
    endpoint.set_ats(true);
    clear(&guest, PAGE);
    let told = fault(&guest, &channel, with(1), VA);
    assert!(told.translation_request && told.is_hosts());
}

#[test]
fn the_guest_can_keep_a_fault_from_itself_but_not_from_the_host() {
    let (mut guest, root) = bound();
    let [word0, rest @ ..] = first_stage(root, DOMAIN);
    let fault_disable = 2;
    guest.set_pasid(1, [word0 | fault_disable, rest[0], rest[1], 0, 0, 0, 0, 0]);
    let (_endpoint, channel) = guest.attach();
    clear(&guest, PAGE);
    for round in 1..=STAGE_TWO_LOG_LIMIT + 3 {
        assert!(dma(&channel, with(1), VA, Op::Read).is_err());
        assert_eq!(guest.vm.counters().stage_two_faults, round as u64);
    }
    assert_eq!(guest.vm.take_fault(), None);
    assert_eq!(guest.vm.stage_two_faults().len(), STAGE_TWO_LOG_LIMIT);
}

#[test]
fn what_is_read_only_in_the_map_is_so_in_stage_two() {
    let (mut guest, root) = bound();
    let segments = guest.memory.segments().iter().cloned().chain([Segment {
        range: Range::<Gpa>::new(Gpa(NOWHERE), 0x1000).unwrap(),
        backing: Arc::new(mem::HeapMemory::new(0x1000).unwrap()),
        offset: 0,
        access: Access::Read,
    }]);
    let ticket = guest.vm.set_memory(MemoryMap::new(segments.collect()).unwrap());
    assert!(guest.vm.is_complete(ticket));
    guest.set_first(root, VA, 1, NOWHERE | PRESENT | WRITABLE | USER);
    let (_endpoint, channel) = guest.attach();
    assert_eq!(dma(&channel, with(1), VA, Op::Read), Ok(0));
    let refused = DmaError::Refused { address: Iova(VA), access: Access::Write };
    assert_eq!(dma(&channel, with(1), VA, Op::Write), Err(refused));
    let told = guest.vm.take_fault().unwrap();
    let denied = FaultReason::Permission { stage: Stage::Two, user: false };
    assert_eq!((told.reason, told.stage_two), (denied, stop(NOWHERE, false)));
}

/// Every frame that a guest's large page covers is asked for by itself.
#[test]
fn a_large_page_is_as_many_frames_as_stage_two_has() {
    let mut guest = guest();
    let root = guest.table();
    let flags = PRESENT | WRITABLE | USER | LARGE;
    guest.set_first(root, 0, 3, flags);
    guest.set_pasid(1, first_stage(root, DOMAIN));
    let (_endpoint, channel) = guest.attach();
    let bytes: Vec<u8> = (0..MEMORY / 64).map(|at| (at ^ at >> 8) as u8).collect();
    for part in 0..64u8 {
        let at = u64::from(part) * MEMORY / 64;
        if at >= TABLES {
            break;
        }
        let expected: Vec<u8> = bytes.iter().map(|byte| byte ^ part).collect();
        guest.memory.write(Gpa(at), &expected).unwrap();
        let mut read = vec![0; expected.len()];
        channel.enter().read(with(1), Iova(at), &mut read).unwrap();
        assert!(read == expected, "at {at:#x}");
    }
    // A window ends with the frame, though the guest's page goes on.
    let access = channel.enter();
    let window = access.window(with(1), Iova(0x20_0000 - 0x800), 0x1000, Access::Read).unwrap();
    assert_eq!(window.len(), 0x800);
}

#[test]
fn every_format_carries_a_guest() {
    let arm = |granule, input, output| ArmStageTwo::new(granule, input, output).unwrap();
    let vtd = [
        iommu::SecondStageLevels::Three,
        iommu::SecondStageLevels::Four,
        iommu::SecondStageLevels::Five,
    ];
    let formats = vtd.map(|levels| StageTwoFormat::Vtd { levels }).into_iter().chain(
        [
            arm(Granule::Kib4, 40, 48),
            arm(Granule::Kib4, 48, 48).with_flags(ArmFlags::AccessDirty),
            arm(Granule::Kib16, 40, 48).with_flags(ArmFlags::Access),
            arm(Granule::Kib64, 48, 52),
        ]
        .map(StageTwoFormat::Arm),
    );
    for format in formats {
        for layout in [Layout::Identity, Layout::Shuffled { seed: 3 }] {
            let stage_two = Some(StageTwoConfig { format, layout });
            let host = SoftwareHost::new();
            let mut guest = Guest::with(&host, VmConfig { stage_two, ..VmConfig::named("any") });
            let root = guest.table();
            guest.set_first(root, VA, 1, LEAF);
            guest.set_pasid(1, first_stage(root, DOMAIN));
            let (_endpoint, channel) = guest.attach();
            guest.memory.store_u64(Gpa(PAGE), 6).unwrap();
            assert_eq!(dma(&channel, with(1), VA, Op::Read), Ok(6));
            assert_eq!(dma(&channel, with(1), VA, Op::Atomic), Ok(6));
            assert_eq!(guest.memory.load_u64(Gpa(PAGE)), Ok(7));
            clear(&guest, PAGE);
            let told = fault(&guest, &channel, with(1), VA);
            assert_eq!((told.reason, told.stage_two), (absent(Stage::Two), stop(PAGE, false)));
        }
    }
    let narrow = StageTwoFormat::Arm(arm(Granule::Kib4, 40, 40));
    let stage_two = Some(StageTwoConfig { format: narrow, layout: Layout::Identity });
    let refused = SoftwareHost::new().create_vm(VmConfig { stage_two, ..VmConfig::default() });
    assert_eq!(refused.unwrap_err(), HostError::UnsupportedStageTwo);
}

#[test]
fn only_a_vm_with_a_stage_two_can_clear_it() {
    let host = SoftwareHost::new();
    let without = host.create_vm(VmConfig::named("without")).unwrap();
    assert_eq!(without.clear_stage_two(pages(0)).unwrap_err(), StageTwoError::None);
    assert_eq!(without.restore_stage_two(pages(0)).unwrap_err(), StageTwoError::None);
    assert_eq!(host.table_bytes(), 0);
    let guest = shuffled(&host);
    let ticket = guest.vm.close();
    assert!(guest.vm.is_complete(ticket));
    assert_eq!(guest.vm.clear_stage_two(pages(0)).unwrap_err(), StageTwoError::Closed);
    assert_eq!(guest.vm.restore_stage_two(pages(0)).unwrap_err(), StageTwoError::Closed);
}

#[test]
fn tables_live_as_long_as_an_access_can_be_in_them() {
    let host = SoftwareHost::new();
    let guest = shuffled(&host);
    let (_endpoint, channel) = guest.attach();
    let before = host.table_bytes();
    let access = channel.enter();
    let all = Range { start: Gpa(0), last: Gpa(u64::MAX) };
    let ticket = guest.vm.clear_stage_two(all).unwrap();
    assert!(!guest.vm.is_complete(ticket));
    assert_eq!(host.table_bytes(), before);
    drop(access);
    assert!(guest.vm.is_complete(ticket));
    assert!(host.table_bytes() < before);

    let access = channel.enter();
    let ticket = guest.vm.close();
    assert!(host.table_bytes() > 0);
    drop(access);
    assert!(guest.vm.is_complete(ticket));
    assert_eq!(host.table_bytes(), 0);

    // One that nobody closes.
    drop(shuffled(&host));
    assert_eq!(host.table_bytes(), 0);
}

/// Once a clear is complete nothing goes there any more, while devices are never idle; and what
/// is not cleared never faults.
#[test]
fn a_page_is_cleared_again_and_again_under_load() {
    const ROUNDS: u64 = 40;
    let mut guest = guest();
    let root = guest.table();
    let other = PAGE + 0x1000;
    guest.set_first(root, VA, 1, LEAF);
    guest.set_first(root, VA + 0x1000, 1, other | PRESENT | WRITABLE | USER);
    guest.set_pasid(1, first_stage(root, DOMAIN));
    let (endpoint, _) = guest.attach();
    let stop = AtomicBool::new(false);
    let passed = AtomicU64::new(0);
    thread::scope(|scope| {
        for _ in 0..2 {
            let channel = endpoint.channel();
            scope.spawn(|| {
                let channel = channel;
                while !stop.load(Ordering::Relaxed) {
                    // Its page is in the frame of the one that comes and goes.
                    dma(&channel, with(1), VA + 0x1000, Op::Write).unwrap();
                    passed.fetch_add(
                        dma(&channel, with(1), VA, Op::Atomic).is_ok().into(),
                        Ordering::Relaxed,
                    );
                }
            });
        }
        for round in 0..ROUNDS {
            let ticket = guest.vm.clear_stage_two(pages(PAGE)).unwrap();
            wait(&guest.vm, ticket);
            guest.memory.store_u64(Gpa(PAGE), round).unwrap();
            for _ in 0..20 {
                thread::yield_now();
                assert_eq!(guest.memory.load_u64(Gpa(PAGE)), Ok(round), "written after a clear");
            }
            // In between the memory itself changes, elsewhere.
            if round % 3 == 0 {
                let more = MemoryMap::anonymous(&[(Gpa(NOWHERE), 0x1000)]).unwrap();
                let both = guest.memory.segments().iter().chain(more.segments()).cloned();
                let map =
                    if round % 2 == 0 { both.collect() } else { guest.memory.segments().to_vec() };
                let _ = guest.vm.set_memory(MemoryMap::new(map).unwrap());
            }
            let before = passed.load(Ordering::Relaxed);
            let _ = guest.vm.restore_stage_two(pages(PAGE)).unwrap();
            while passed.load(Ordering::Relaxed) == before {
                thread::yield_now();
            }
        }
        stop.store(true, Ordering::Relaxed);
    });
    assert!(guest.vm.counters().stage_two_faults > 0);
}

#[test]
fn new_memory_under_a_running_device() {
    let (mut guest, root) = bound();
    let (_endpoint, channel) = guest.attach();
    guest.set_first(root, VA + 0x1000, 1, NOWHERE | PRESENT | WRITABLE | USER);
    assert_eq!(dma(&channel, with(1), VA, Op::Write), Ok(0));
    assert!(dma(&channel, with(1), VA + 0x1000, Op::Write).is_err());
    // More memory is reachable without an invalidation by the guest; less is not any more.
    let more = MemoryMap::anonymous(&[(Gpa(NOWHERE), 0x1000)]).unwrap();
    let both = guest.memory.segments().iter().chain(more.segments()).cloned().collect();
    let ticket = guest.vm.set_memory(MemoryMap::new(both).unwrap());
    assert!(guest.vm.is_complete(ticket));
    assert_eq!(guest.vm.counters().iotlb_entries, 0);
    assert_eq!(dma(&channel, with(1), VA + 0x1000, Op::Write), Ok(0));
    assert_eq!(more.load_u64(Gpa(NOWHERE)), Ok(1));
    let ticket = guest.vm.set_memory(MemoryMap::clone(&guest.memory));
    assert!(guest.vm.is_complete(ticket));
    assert!(dma(&channel, with(1), VA + 0x1000, Op::Write).is_err());
    assert_eq!(dma(&channel, with(1), VA, Op::Write), Ok(0));
}
