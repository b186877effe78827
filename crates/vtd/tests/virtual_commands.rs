//! The guest's end on the unit, in one process: the driver's registers are the model's, and each
//! pause of the driver is a poll of the model.
#![cfg(all(feature = "model", feature = "driver"))]

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use iommu::pasid::{self, Consumer, PasidAllocator, Route, Scope};
use iommu::{
    Host, Numbering, Pasid, PasidRange, PasidUsage, SoftwareHost, SoftwareVm, Vm, VmConfig,
};
use proptest::prelude::*;
use vtd::driver::{
    AllocError, Clock, CommandError, FreeError, LayoutChoice, Registers, SharedVirtualCommands,
    VirtualCommands,
};
use vtd::model::{Caps, Model, Options};
use vtd::spec::{VcmdLayout, VirtualOpcode};

/// A guest's unit.
struct Unit {
    model: Mutex<Model<SoftwareVm>>,
    vm: SoftwareVm,
    now: AtomicU64,
    /// Whether anybody polls the model.
    polled: AtomicBool,
}

impl Unit {
    fn new(host: &SoftwareHost, layout: VcmdLayout, config: VmConfig) -> Self {
        let vm = host.create_vm(config).unwrap();
        let options = Options { virtual_commands: Some(layout), ..Options::default() };
        let model = Mutex::new(Model::new(Caps::new(options).unwrap(), vm.clone()));
        Self { model, vm, now: AtomicU64::new(0), polled: AtomicBool::new(true) }
    }

    fn driver(&self) -> VirtualCommands<&Self, &Self> {
        VirtualCommands::probe(self, self, LayoutChoice::Detect).unwrap().unwrap()
    }

    fn model(&self) -> MutexGuard<'_, Model<SoftwareVm>> {
        self.model.lock().unwrap()
    }

    fn poll(&self, polled: bool) {
        self.polled.store(polled, Ordering::Relaxed);
    }

    fn usage(&self) -> (u32, u32) {
        let PasidUsage { live, parked, .. } = self.vm.pasid_usage();
        (live, parked)
    }
}

impl Registers for Unit {
    fn read32(&self, offset: u16) -> u32 {
        let mut data = [0; 4];
        self.model().read(offset.into(), &mut data);
        u32::from_le_bytes(data)
    }

    fn write32(&self, offset: u16, value: u32) {
        let _ = self.model().write(offset.into(), &value.to_le_bytes());
    }

    fn read64(&self, offset: u16) -> u64 {
        let mut data = [0; 8];
        self.model().read(offset.into(), &mut data);
        u64::from_le_bytes(data)
    }

    fn write64(&self, offset: u16, value: u64) {
        let effects = self.model().write(offset.into(), &value.to_le_bytes());
        assert!(effects.schedule, "a command asks for a poll");
    }
}

impl Clock for Unit {
    fn now_ns(&self) -> u64 {
        self.now.load(Ordering::Relaxed)
    }

    fn pause(&self) {
        self.now.fetch_add(1_000_000, Ordering::Relaxed);
        if self.polled.load(Ordering::Relaxed) {
            let _ = self.model().poll(1);
        }
    }
}

/// The same unit for a guest without 64-bit accesses.
struct Halves<'a>(&'a Unit);

impl Registers for Halves<'_> {
    fn read32(&self, offset: u16) -> u32 {
        self.0.read32(offset)
    }

    fn write32(&self, offset: u16, value: u32) {
        self.0.write32(offset, value);
    }
}

fn config(quota: u32) -> VmConfig {
    VmConfig { quota, ..VmConfig::named("guest") }
}

fn pasid(number: u32) -> Pasid {
    Pasid::new(number).unwrap()
}

fn range(first: u32, last: u32) -> PasidRange {
    PasidRange::new(pasid(first), pasid(last)).unwrap()
}

#[test]
fn a_guest_has_its_quota_and_no_more() {
    for layout in VcmdLayout::ALL {
        let host = SoftwareHost::new();
        let unit = Unit::new(&host, layout, config(100));
        let mut driver = unit.driver();
        assert_eq!(driver.layout(), layout);
        let all: BTreeSet<Pasid> =
            (0..100).map(|_| driver.alloc(PasidRange::ALL).unwrap()).collect();
        assert_eq!(all.len(), 100, "each another");
        assert!(!all.contains(&pasid(0)));
        assert_eq!(driver.alloc(PasidRange::ALL), Err(AllocError::NoneAvailable));
        assert_eq!(unit.usage(), (100, 0));
        for pasid in &all {
            assert_eq!(driver.free(*pasid), Ok(()));
            assert_eq!(driver.free(*pasid), Err(FreeError::InvalidPasid(*pasid)), "twice");
        }
        assert_eq!(unit.usage(), (0, 0));
        let counters = unit.model().counters();
        assert_eq!((counters.pasids_allocated, counters.pasids_unavailable), (100, 1));
        assert_eq!((counters.pasids_freed, counters.pasid_frees_refused), (100, 100));
        assert_eq!(counters.virtual_commands_refused, 0, "one command at a time");
    }
}

#[test]
fn a_guest_without_64_bit_accesses_does_as_well() {
    for layout in VcmdLayout::ALL {
        let host = SoftwareHost::new();
        let unit = Unit::new(&host, layout, config(2));
        let probed = VirtualCommands::probe(Halves(&unit), &unit, LayoutChoice::Known(layout));
        let mut driver = probed.unwrap().unwrap();
        let (one, two) = (driver.alloc(PasidRange::ALL), driver.alloc(PasidRange::ALL));
        assert_eq!(driver.alloc(PasidRange::ALL), Err(AllocError::NoneAvailable));
        assert_eq!((driver.free(two.unwrap()), driver.free(one.unwrap())), (Ok(()), Ok(())));
        assert_eq!(unit.usage(), (0, 0));
    }
}

#[test]
fn one_guest_cannot_free_what_another_has() {
    let host = SoftwareHost::new();
    let one = Unit::new(&host, VcmdLayout::Revision30, config(10));
    let two = Unit::new(&host, VcmdLayout::Revision33, config(10));
    let (mut first, mut second) = (one.driver(), two.driver());
    let mine: Vec<Pasid> = (0..10).map(|_| first.alloc(PasidRange::ALL).unwrap()).collect();
    let theirs: Vec<Pasid> = (0..10).map(|_| second.alloc(PasidRange::ALL).unwrap()).collect();
    assert!(mine.iter().all(|pasid| !theirs.contains(pasid)), "one space");
    for pasid in &mine {
        assert_eq!(second.free(*pasid), Err(FreeError::InvalidPasid(*pasid)));
    }
    assert_eq!((one.usage(), two.usage()), ((10, 0), (10, 0)));
    // The one dies; the other goes on.
    let ticket = one.vm.close();
    assert!(one.vm.is_complete(ticket));
    assert_eq!(first.alloc(PasidRange::ALL), Err(AllocError::NoneAvailable));
    assert_eq!(first.free(mine[0]), Err(FreeError::InvalidPasid(mine[0])));
    assert!(theirs.iter().all(|pasid| second.free(*pasid).is_ok()));
}

#[test]
fn private_numbers_may_be_the_same_in_two_guests() {
    let host = SoftwareHost::new();
    let private = VmConfig { numbering: Numbering::Private, ..config(10) };
    let one = Unit::new(&host, VcmdLayout::Revision33, private.clone());
    let two = Unit::new(&host, VcmdLayout::Revision33, private);
    let (mut first, mut second) = (one.driver(), two.driver());
    let number = first.alloc(PasidRange::ALL).unwrap();
    assert_eq!(second.alloc(PasidRange::ALL), Ok(number));
    assert_eq!(second.free(number), Ok(()));
    assert_eq!((one.usage(), two.usage()), ((1, 0), (0, 0)));
}

#[test]
fn a_number_outside_the_wanted_range_goes_back_to_the_host() {
    let host = SoftwareHost::new();
    let unit = Unit::new(&host, VcmdLayout::Revision33, config(10));
    let wanted = range(0xf_0000, 0xf_ffff);
    let error = unit.driver().alloc(wanted).unwrap_err();
    let AllocError::OutOfRange { got, given_back, .. } = error else { panic!("{error:?}") };
    assert!(!wanted.contains(got) && given_back);
    assert_eq!(unit.usage(), (0, 0));
}

#[test]
fn a_reset_takes_every_number_back() {
    for layout in VcmdLayout::ALL {
        let host = SoftwareHost::new();
        let unit = Unit::new(&host, layout, config(3));
        let mut driver = unit.driver();
        let had: Vec<Pasid> = (0..3).map(|_| driver.alloc(PasidRange::ALL).unwrap()).collect();
        let ticket = unit.model().reset();
        assert!(unit.vm.is_complete(ticket));
        assert_eq!(unit.usage(), (0, 0));
        // The guest boots again, and its predecessor's numbers are not its own.
        let mut driver = unit.driver();
        assert_eq!(driver.free(had[0]), Err(FreeError::InvalidPasid(had[0])));
        assert!((0..3).all(|_| driver.alloc(PasidRange::ALL).is_ok()), "its whole quota");
    }
}

#[test]
fn a_host_that_stalls_costs_a_timeout_and_no_pasid() {
    for layout in VcmdLayout::ALL {
        let host = SoftwareHost::new();
        let unit = Unit::new(&host, layout, config(1));
        let mut driver = unit.driver();
        unit.poll(false);
        let error = driver.alloc(PasidRange::ALL).unwrap_err();
        let AllocError::Command(CommandError::Timeout { command, .. }) = error else {
            panic!("{error:?}")
        };
        assert_eq!(command, VirtualOpcode::AllocatePasid);
        assert_eq!(unit.now_ns(), vtd::driver::COMMAND_TIMEOUT_NS);
        // It goes on, and carries the command out late: with a quota of one, the next allocation
        // succeeds only if that number went back.
        unit.poll(true);
        assert!(driver.alloc(PasidRange::ALL).is_ok());
        assert_eq!(unit.usage(), (1, 0));
        let counters = unit.model().counters();
        assert_eq!((counters.pasids_allocated, counters.pasids_freed), (2, 1));
    }
}

#[test]
fn a_reset_in_the_middle_of_an_allocation_leaves_nothing_behind() {
    for layout in VcmdLayout::ALL {
        let host = SoftwareHost::new();
        let unit = Unit::new(&host, layout, config(1));
        let mut driver = unit.driver();
        unit.poll(false);
        assert!(driver.alloc(PasidRange::ALL).is_err());
        let _ = unit.model().reset();
        unit.poll(true);
        let pasid = driver.alloc(PasidRange::ALL).unwrap();
        assert_eq!(unit.usage(), (1, 0));
        assert_eq!(driver.free(pasid), Ok(()));
        assert_eq!(unit.model().counters().pasid_frees_refused, 0);
    }
}

/// A guest's allocator over its unit, and the unit.
fn allocator(host: &SoftwareHost, layout: VcmdLayout, quota: u32) -> (PasidAllocator, Arc<Unit>) {
    let unit = Arc::new(Unit::new(host, layout, config(quota)));
    let probed = VirtualCommands::probe(unit.clone(), unit.clone(), LayoutChoice::Detect);
    let commands = SharedVirtualCommands::new(probed.unwrap().unwrap());
    (PasidAllocator::guest(Arc::new(commands)), unit)
}

#[test]
fn a_guests_consumers_take_their_numbers_from_the_host() {
    for layout in VcmdLayout::ALL {
        let host = SoftwareHost::new();
        let (allocator, unit) = allocator(&host, layout, 2);
        let route = Route::Guest { interface: "VT-d virtual commands" };
        assert_eq!(allocator.route(), route);
        let consumer = Consumer::init(&allocator, Scope::Bus(0)).unwrap();
        let range = PasidRange::ALL;
        let one = consumer.alloc(range, "one").unwrap();
        let two = consumer.alloc(range, "two").unwrap();
        assert_eq!(unit.usage(), (2, 0));
        let refused = pasid::CommandError::NoneAvailable.into();
        assert_eq!(consumer.alloc(range, "three"), Err(refused));
        assert!(consumer.free(one).is_ok());
        // A number that nobody wants goes back; the one that is in use stays.
        let high = PasidRange::new(pasid(0xf_0000), pasid(0xf_ffff)).unwrap();
        assert!(matches!(consumer.alloc(high, "high"), Err(pasid::AllocError::Unasked { .. })));
        assert_eq!(unit.usage(), (1, 0));
        assert!(consumer.free(two).is_ok());
        assert_eq!(unit.usage(), (0, 0));
    }
}

#[test]
fn consumers_are_told_what_became_of_their_command() {
    let host = SoftwareHost::new();
    let (allocator, unit) = allocator(&host, VcmdLayout::Revision33, 1);
    let consumer = Consumer::init(&allocator, Scope::Bus(0)).unwrap();
    unit.poll(false);
    let late = pasid::CommandError::Deadline;
    assert_eq!(consumer.alloc(PasidRange::ALL, ()), Err(late.into()));
    unit.poll(true);
    let number = consumer.alloc(PasidRange::ALL, ()).unwrap();
    let _ = unit.model().reset();
    let stranger = pasid::CommandError::NotGranted;
    assert_eq!(consumer.free(number), Err(stranger.into()));
    assert!(consumer.is_empty());
    assert_eq!(unit.usage(), (0, 0));
}

#[test]
fn commands_of_several_processors_are_given_one_at_a_time() {
    const PROCESSORS: u32 = 4;
    const ROUNDS: u32 = 200;
    let host = SoftwareHost::new();
    let (allocator, unit) = allocator(&host, VcmdLayout::Revision33, PROCESSORS);
    std::thread::scope(|scope| {
        for _ in 0..PROCESSORS {
            scope.spawn(|| {
                let consumer = Consumer::init(&allocator, Scope::Bus(0)).unwrap();
                for round in 0..ROUNDS {
                    let pasid = consumer.alloc(PasidRange::ALL, round).unwrap();
                    assert!(consumer.free(pasid).is_ok());
                }
            });
        }
    });
    let counters = unit.model().counters();
    assert_eq!(counters.pasids_allocated, u64::from(PROCESSORS * ROUNDS));
    assert_eq!(counters.pasids_freed, counters.pasids_allocated);
    assert_eq!(counters.virtual_commands_refused, 0);
    assert_eq!(unit.usage(), (0, 0));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Two guests of one host against two plain sets.
    #[test]
    fn what_guests_have_is_what_they_were_told(
        layouts in prop::array::uniform2(prop::sample::select(&VcmdLayout::ALL[..])),
        actions in prop::collection::vec((0usize..2, 0u32..3, 0u32..8), 1..80),
    ) {
        const QUOTA: usize = 6;
        let host = SoftwareHost::new();
        let units = layouts.map(|layout| Unit::new(&host, layout, config(QUOTA as u32)));
        let mut drivers = [units[0].driver(), units[1].driver()];
        let mut sets = [BTreeSet::new(), BTreeSet::new()];
        for (guest, action, number) in actions {
            if action == 0 {
                match drivers[guest].alloc(PasidRange::ALL) {
                    Ok(pasid) => {
                        prop_assert!(!sets[1 - guest].contains(&pasid));
                        prop_assert!(sets[guest].insert(pasid));
                    }
                    Err(error) => {
                        prop_assert_eq!(error, AllocError::NoneAvailable);
                        prop_assert_eq!(sets[guest].len(), QUOTA);
                    }
                }
            } else {
                // One's own, the other's, or whatever.
                let had = &sets[if action == 1 { guest } else { 1 - guest }];
                let nth = had.iter().copied().nth(number as usize);
                let pasid = nth.unwrap_or(pasid(number));
                let freed = drivers[guest].free(pasid).is_ok();
                prop_assert_eq!(freed, sets[guest].remove(&pasid));
            }
            for (unit, set) in units.iter().zip(&sets) {
                prop_assert_eq!(unit.usage(), (set.len() as u32, 0));
            }
        }
    }
}
