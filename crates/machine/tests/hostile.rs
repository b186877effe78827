//! A guest that does everything that it should not, while the devices work: nobody panics, each
//! call is bounded, and nothing outside the guest's memory is touched.
//!
//! The runs are the same each time. `VSVA_HOSTILE_RUNS` makes them more, `VSVA_HOSTILE_SEED` says
//! with which to begin.

mod common;
mod stimulus;

use std::env;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use common::memory::PAGE;
use common::rig::REPORTERS;
use common::{equal, succeeded, Drive, Guest, Rig, Setup, Space, Verdict, DEDICATED};
use dsa::model::CHUNK;
use dsa::spec::{Descriptor, Flags, Iova, Operation, Status};
use iommu::{SoftwareHost, Vm};
use pci::Function;
use stimulus::{Action, Hostile, BASE, PAGES};
use vtd::model::{DESCRIPTORS_PER_POLL, FAULTS_PER_POLL};

/// Runs unless more are asked for.
const RUNS: u64 = 80;
/// Guests in a run, one after the other on the same devices.
const EPISODES: u64 = 8;
/// What each of them does.
const ACTIONS: u32 = 800;
/// How often everything has to come about for a test to be worth its name.
const ENOUGH: u64 = 20;
/// Bytes of memory of the hostile guest, and of its neighbour.
const RAM: u64 = 8 << 20;
/// How long any one call may take, on a machine that has other things to do.
const CALL_LIMIT: Duration = Duration::from_secs(5);
/// Translations that one step of an engine may ask for. Each of up to three operands of a chunk ends
/// where a page of another does, some are looked at twice, and there is the record; a delta record
/// is written and applied by entries, of eight bytes of an operand each.
const TRANSLATIONS_PER_STEP: u64 = CHUNK as u64 / 8 + PAGED_PER_STEP;
/// The same for operations that go through their operands by pages.
const PAGED_PER_STEP: u64 = 9 * (CHUNK as u64 / PAGE + 2) + 1;
/// Translations and PASID-table entries that the engines' channels may remember.
const CACHED: u64 = 4 * 2048;
/// Messages that the unit may send in one call: the fault event and the completion event.
const MESSAGES_PER_CALL: usize = 2;

/// The process whose memory the hostile guest's descriptors name.
const PROCESS: u32 = 0x10;

fn parameter(name: &str, default: u64) -> u64 {
    env::var(name).map_or(default, |text| text.parse().expect("a number"))
}

fn seeds() -> impl Iterator<Item = u64> {
    let first = parameter("VSVA_HOSTILE_SEED", 1);
    first..first + parameter("VSVA_HOSTILE_RUNS", RUNS)
}

/// A guest that does nothing wrong, on the same host: what it has must not change.
struct Neighbour {
    guest: Guest,
    space: Space,
    memory: Vec<u8>,
}

const COPY: [u64; 3] = [BASE, BASE + PAGE, BASE + 2 * PAGE];

impl Neighbour {
    fn new(host: &SoftwareHost, setup: Setup) -> Verdict<Self> {
        let setup = Setup { drive: Drive::Inline, ..setup };
        let mut guest = Guest::boot_on(Rig::on(host, setup, RAM))?;
        let space = process(&mut guest)?;
        space.write(&guest.rig.ram, COPY[0], b"neighbour");
        let mut neighbour = Self { guest, space, memory: Vec::new() };
        neighbour.copy()?;
        neighbour.memory = neighbour.snapshot();
        Ok(neighbour)
    }

    fn copy(&self) -> Verdict {
        succeeded(&self.guest.copy(DEDICATED, &self.space, COPY, 9)?)
    }

    fn snapshot(&self) -> Vec<u8> {
        let mut memory = vec![0; RAM as usize];
        self.guest.rig.ram.read(mem::Gpa(0), &mut memory);
        memory
    }

    fn is_untouched(&self) -> Verdict {
        assert!(self.snapshot() == self.memory, "the neighbour's memory changed");
        assert!(self.guest.rig.ram.guards_are_intact());
        self.copy()
    }
}

/// A process with memory where the hostile guest's descriptors point, and a queue.
fn process(guest: &mut Guest) -> Verdict<Space> {
    let mut space = guest.process(PROCESS)?;
    space.allocate(&mut guest.rig.ram, BASE, PAGES * PAGE);
    guest.accelerator.open(&guest.rig, DEDICATED, space.pasid)?;
    Ok(space)
}

/// What all runs came to. Runs in which nothing works, or nothing goes wrong, test nothing.
#[derive(Default, Debug)]
struct Seen {
    successes: u64,
    page_faults: u64,
    refused: u64,
    abandoned: u64,
    batches_failed: u64,
    iotlb_hits: u64,
    faults_recorded: u64,
    waits: u64,
    queue_errors: u64,
}

impl Seen {
    fn add(&mut self, rig: &Rig) {
        let (device, unit) = (rig.device.counters(), rig.machine.unit_counters());
        self.successes += device.ended(Status::Success);
        self.page_faults += device.ended(Status::PageFault);
        self.refused += device.ended(Status::TranslationError);
        self.abandoned += device.abandoned;
        self.batches_failed += device.ended(Status::BatchError);
        self.iotlb_hits += rig.machine.vm().counters().iotlb_hits;
        self.faults_recorded += unit.faults_recorded;
        self.waits += unit.waits;
        self.queue_errors += unit.queue_errors;
    }

    fn check(&self) {
        let Self { successes, page_faults, refused, abandoned, batches_failed, .. } = *self;
        let Self { iotlb_hits, faults_recorded, waits, queue_errors, .. } = *self;
        let all = [
            successes,
            page_faults,
            refused,
            abandoned,
            batches_failed,
            iotlb_hits,
            faults_recorded,
            waits,
            queue_errors,
        ];
        assert!(all.iter().all(|count| *count >= ENOUGH), "{self:?}");
    }
}

/// What the counters say before a call, to be compared with after it.
struct Before {
    start: Instant,
    translations: u64,
    descriptors: u64,
    faults: u64,
}

impl Before {
    fn new(rig: &Rig) -> Self {
        let (unit, vm) = (rig.machine.unit_counters(), rig.machine.vm().counters());
        Self {
            start: Instant::now(),
            translations: vm.translations,
            descriptors: unit.descriptors,
            faults: unit.faults_recorded + unit.faults_lost + unit.faults_not_recorded,
        }
    }

    fn check(&self, rig: &Rig, action: Action) {
        let took = self.start.elapsed();
        assert!(took < CALL_LIMIT, "{action:?} took {took:?}");
        let now = Self::new(rig);
        let translations = now.translations - self.translations;
        let descriptors = now.descriptors - self.descriptors;
        let faults = now.faults - self.faults;
        let (most_translations, most_descriptors, most_faults) = match action {
            Action::Step => (TRANSLATIONS_PER_STEP, 0, 0),
            Action::Poll => (0, DESCRIPTORS_PER_POLL.into(), FAULTS_PER_POLL.into()),
            // What a guest does is done at once and walks nothing.
            _ => (0, 0, 0),
        };
        assert!(translations <= most_translations, "{action:?}: {translations} translations");
        assert!(descriptors <= most_descriptors, "{action:?}: {descriptors} descriptors");
        assert!(faults <= most_faults, "{action:?}: {faults} faults");
        let vm = rig.machine.vm().counters();
        assert!(vm.iotlb_entries + vm.pasid_entries <= CACHED, "{vm:?}");
        let messages = rig.messages.take();
        assert!(messages.len() <= MESSAGES_PER_CALL, "{action:?}: {messages:?}");
        let outside = messages.iter().find(|(address, _)| address.0 >> 20 != 0xfee);
        assert_eq!(outside, None, "a message to memory");
    }
}

/// A guest boots on `rig`, whatever was done to that before: after a reset of both functions it
/// works as if nothing had been.
fn boot(mut rig: Rig) -> Verdict<(Guest, Space)> {
    rig.carrier.reset();
    rig.device.reset();
    rig.settle()?;
    rig.misplaced.store(0, Ordering::Relaxed);
    rig.ram.restart();
    let mut guest = Guest::boot_on(rig)?;
    let space = process(&mut guest)?;
    space.write(&guest.rig.ram, COPY[0], b"well again");
    succeeded(&guest.copy(DEDICATED, &space, COPY, 10)?)?;
    equal(space.read(&guest.rig.ram, COPY[1], 10), b"well again".to_vec(), "the copy")?;
    equal(guest.rig.machine.claims(), REPORTERS.len(), "reports of memory")?;
    guest.rig.messages.take();
    Ok((guest, space))
}

#[test]
fn each_call_is_bounded_and_nothing_else_is_touched() {
    step_by_step(Setup::guest_owned(Drive::Inline));
}

#[test]
fn each_call_is_bounded_and_nothing_else_is_touched_with_tables_of_the_host() {
    step_by_step(Setup::host_owned(Drive::Inline));
}

#[test]
fn threads_at_work_survive_a_hostile_guest() {
    with_threads(Setup::guest_owned(Drive::Threads));
}

#[test]
fn threads_at_work_survive_a_hostile_guest_with_tables_of_the_host() {
    with_threads(Setup::host_owned(Drive::Threads));
}

/// Every call is looked at.
fn step_by_step(setup: Setup) {
    survives(setup, |rig, whims, action| {
        let before = Before::new(rig);
        match action {
            Action::Poll => drop(rig.machine.poll()),
            Action::Step => rig.driver.step_engine(whims.random.below(4) as usize),
            _ => whims.act(rig, action),
        }
        before.check(rig, action);
    });
}

/// The same while threads run the unit and the engines.
fn with_threads(setup: Setup) {
    survives(setup, |rig, whims, action| {
        let start = Instant::now();
        whims.act(rig, action);
        let took = start.elapsed();
        assert!(took < CALL_LIMIT, "{action:?} took {took:?}");
    });
}

/// A guest boots over and over and does, by `act`, what comes into its head. Its neighbour notices nothing, and in the
/// end it boots once more.
fn survives(setup: Setup, mut act: impl FnMut(&Rig, &mut Hostile, Action)) {
    let host = SoftwareHost::new();
    let neighbour = Neighbour::new(&host, setup).unwrap();
    let mut seen = Seen::default();
    for seed in seeds() {
        let mut rig = Rig::on(&host, setup, RAM);
        for episode in 0..EPISODES {
            let context = |error| format!("seed {seed}, episode {episode}: {error}");
            let (guest, space) = boot(rig).map_err(context).unwrap();
            let mut whims = Hostile::new(seed << 8 | episode, &guest, space);
            rig = guest.rig;
            for _ in 0..ACTIONS {
                let action = whims.choose();
                act(&rig, &mut whims, action);
            }
        }
        seen.add(&rig);
        assert!(rig.ram.guards_are_intact(), "seed {seed}: a guard page changed");
        neighbour.is_untouched().unwrap();
        boot(rig).unwrap_or_else(|error| panic!("seed {seed}: {error}"));
    }
    seen.check();
}

/// Large operations are worked through a chunk at a time, also when nothing is aligned.
#[test]
fn a_step_of_an_engine_is_a_chunk() {
    const SIZE: u32 = 8 * CHUNK as u32;
    let mut guest =
        Guest::boot_on(Rig::on(&SoftwareHost::new(), Setup::guest_owned(Drive::Inline), RAM))
            .unwrap();
    let mut space = guest.process(PROCESS).unwrap();
    let place = |index: u64| BASE + index * 4 * u64::from(SIZE);
    (0..3).for_each(|i| space.allocate(&mut guest.rig.ram, place(i), u64::from(SIZE) + PAGE));
    let record = BASE - PAGE;
    space.allocate(&mut guest.rig.ram, record, 1);
    guest.accelerator.open(&guest.rig, DEDICATED, space.pasid).unwrap();

    let (source, destination) = (Iova(place(0) + 3), Iova(place(1) + 77));
    let other = Iova(place(2) + 77);
    let (size, expected, seed, seed_address) = (SIZE, 0, 0, Iova(0));
    let operations = [
        Operation::MemoryMove { source, destination, size },
        Operation::MemoryMove { source, destination: Iova(source.0 + 5), size },
        Operation::Fill { pattern: 0, destination, size },
        Operation::Fill { pattern: 0, destination: source, size },
        Operation::Compare { source1: source, source2: destination, size, expected },
        Operation::ComparePattern { source, pattern: 0, size, expected },
        Operation::Dualcast { source, destination1: destination, destination2: other, size },
        Operation::Crc { source, size, seed, seed_address },
        Operation::CopyCrc { source, destination, size, seed, seed_address },
        Operation::CacheFlush { destination, size },
    ];
    for operation in operations {
        let descriptor =
            Descriptor::new(operation).with_record(Iova(record)).with_flags(Flags::REQUEST_RECORD);
        space.write(&guest.rig.ram, record, &[0; 32]);
        guest.accelerator.store(&guest.rig, DEDICATED, &descriptor);
        let mut steps = 0;
        while space.read(&guest.rig.ram, record, 1) == [0] {
            let before = Before::new(&guest.rig);
            guest.rig.driver.step_engine(0);
            let translations = Before::new(&guest.rig).translations - before.translations;
            assert!(translations <= PAGED_PER_STEP, "{operation:x?}: {translations}");
            steps += 1;
            assert!(steps < 1000, "{operation:x?} does not end");
        }
        let at_least = u64::from(SIZE) / CHUNK as u64;
        assert!(steps >= at_least, "{operation:x?} took {steps} steps");
        succeeded(&guest.wait_record(&space, record).unwrap()).unwrap();
    }
}
