//! The guest sees no difference between PASID tables of its own and those of the host: the same
//! tables give the same accesses, the same fault records and the same memory.

mod common;

use common::memory::{PAGE, PRESENT, USER, WRITABLE};
use common::random::Random;
use common::unit::{FaultRecord, QUEUED_INVALIDATION, ROOT_POINTER, TRANSLATION};
use common::{pasid, Drive, Guest, Setup, Space, Verdict, PROBE};
use iommu::{AddressSpace, Channel, DmaError, Endpoint};
use mem::{Gpa, Iova};

/// A PASID that is bound, and one that is not.
const BOUND: u32 = 0x10;
const UNBOUND: u32 = 0x11;
/// Pages of the bound process: mapped, read-only, not mapped.
const MAPPED: u64 = 0x7f00_0000_0000;
const READ_ONLY: u64 = MAPPED + PAGE;
const UNMAPPED: u64 = MAPPED + 2 * PAGE;
const NOT_CANONICAL: u64 = 1 << 63;

/// What came of one access, as device and guest see it.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Outcome {
    what: (Option<u32>, u64, bool),
    result: Result<Vec<u8>, DmaError>,
    records: Vec<FaultRecord>,
}

/// A guest with a process and a probe.
struct Bench {
    guest: Guest,
    space: Space,
    endpoint: Endpoint,
    channel: Channel,
    /// Words of all tables while they are in order, and where they are.
    in_order: Vec<(Gpa, u64)>,
}

/// What a case changes of the tables.
type Change = fn(&mut Bench);

impl Bench {
    fn new(setup: Setup) -> Verdict<Self> {
        let mut guest = Guest::boot(setup)?;
        let mut space = guest.process(BOUND)?;
        for at in [MAPPED, READ_ONLY] {
            space.allocate(&mut guest.rig.ram, at, PAGE);
            space.write(&guest.rig.ram, at, b"data");
        }
        let entry = space.entry(&mut guest.rig.ram, READ_ONLY, 1);
        guest.rig.ram.store(entry, guest.rig.ram.load(entry) & !WRITABLE);
        let endpoint = guest.rig.machine.attach(PROBE).map_err(|error| error.to_string())?;
        let channel = endpoint.channel();
        let mut bench = Self { guest, space, endpoint, channel, in_order: Vec::new() };
        // The same directory as the accelerator's.
        bench.set_context(bench.guest.unit.directory.0 | 7 << 9 | 1 << 3 | 1 << 2 | 1, 0);
        let context = Self::context_entry(&bench.guest);
        let words = (0..8).map(|word| bench.entry(word)).collect::<Vec<_>>();
        let places = words.into_iter().chain([context, Gpa(context.0 + 8)]);
        let places = places.chain([bench.guest.unit.directory]);
        bench.in_order = places.map(|at| (at, bench.guest.rig.ram.load(at))).collect();
        let words = bench.space.table_words(&bench.guest.rig.ram);
        bench.in_order.extend(words.into_iter().map(|(at, word)| (Gpa(at), word)));
        Ok(bench)
    }

    /// Makes all tables as they were; nothing is announced.
    fn restore(&mut self) {
        self.in_order.iter().for_each(|(at, word)| self.guest.rig.ram.store(*at, *word));
    }

    fn context_entry(guest: &Guest) -> Gpa {
        Gpa(guest.unit.context.0 + 32 * u64::from(PROBE.devfn() & 0x7f))
    }

    fn set_context(&self, low: u64, high: u64) {
        let entry = Self::context_entry(&self.guest);
        self.guest.rig.ram.store(Gpa(entry.0 + 8), high);
        self.guest.rig.ram.store(entry, low);
    }

    fn context(&self) -> u64 {
        self.guest.rig.ram.load(Self::context_entry(&self.guest))
    }

    /// Word of the PASID-table entry of the bound process.
    fn entry(&mut self, word: u64) -> Gpa {
        Gpa(self.guest.unit.entry(&mut self.guest.rig.ram, pasid(BOUND)).0 + 8 * word)
    }

    fn set(&mut self, at: Gpa, bits: u64) {
        let ram = &self.guest.rig.ram;
        ram.store(at, ram.load(at) | bits);
    }

    fn clear(&mut self, at: Gpa, bits: u64) {
        let ram = &self.guest.rig.ram;
        ram.store(at, ram.load(at) & !bits);
    }

    fn access(&mut self, number: Option<u32>, at: u64, write: bool) -> Outcome {
        let space = AddressSpace { pasid: number.map(pasid), privileged: false };
        let mut bytes = vec![0; 4];
        let access = self.channel.enter();
        let done = match write {
            true => access.write(space, Iova(at), b"over"),
            false => access.read(space, Iova(at), &mut bytes),
        };
        drop(access);
        let result = done.map(|()| bytes);
        self.guest.rig.settle().expect("an end");
        let records = self.guest.unit.take_faults(&self.guest.rig);
        Outcome { what: (number, at, write), result, records }
    }

    /// Every kind of access under the tables that `change` leaves, once it is announced, by a
    /// device that asks for translations itself, or not.
    fn outcomes(&mut self, change: Change, ats: bool) -> Vec<Outcome> {
        self.endpoint.set_ats(ats);
        change(self);
        self.guest.unit.invalidate_all(&self.guest.rig).expect("an announcement");
        self.accesses()
    }

    fn accesses(&mut self) -> Vec<Outcome> {
        let mut outcomes = Vec::new();
        for number in [None, Some(BOUND), Some(UNBOUND), Some(0xf_ffff)] {
            for at in [MAPPED, READ_ONLY, UNMAPPED, NOT_CANONICAL, 0x1000, 0xfee0_0000] {
                for write in [false, true] {
                    outcomes.push(self.access(number, at, write));
                }
            }
        }
        outcomes
    }
}

/// The kind of translation in word 0 of an entry.
const KIND: u64 = 7 << 6;

const NO_DEVICE_TLB: &str = "device TLB off";

const CASES: &[(&str, Change)] = &[
    ("in order", |_| ()),
    ("no context", |b| b.set_context(0, 0)),
    ("no context, faults not recorded", |b| b.set_context(2, 0)),
    ("reserved bit in the context", |b| b.set_context(b.context() | 1 << 5, 0)),
    ("page requests in the context", |b| b.set_context(b.context() | 1 << 4, 0)),
    ("PASIDs off", |b| b.set_context(b.context() & !(1 << 3), 0)),
    (NO_DEVICE_TLB, |b| b.set_context(b.context() & !(1 << 2), 0)),
    ("a small directory", |b| b.set_context(b.context() & !(7 << 9), 0)),
    ("faults not recorded", |b| b.set_context(b.context() | 2, 0)),
    ("RID_PASID of the process", |b| b.set_context(b.context(), BOUND.into())),
    ("RID_PASID of nobody", |b| b.set_context(b.context(), UNBOUND.into())),
    ("RID_PASID beyond the directory", |b| b.set_context(b.context() & !(7 << 9), 1 << 14)),
    ("a directory where no memory is", |b| b.set_context(1 << 40 | 0xe0d, 0)),
    ("no PASID table", |b| b.clear(b.guest.unit.directory, 1)),
    ("no PASID table, faults not recorded", |b| {
        b.clear(b.guest.unit.directory, 1);
        b.set(b.guest.unit.directory, 2);
    }),
    ("reserved bit in the directory", |b| b.set(b.guest.unit.directory, 1 << 2)),
    ("a PASID table beyond the address width", |b| b.set(b.guest.unit.directory, 1 << 50)),
    ("a PASID table where no memory is", |b| b.set(b.guest.unit.directory, 1 << 40)),
    ("no entry", |b| {
        let entry = b.entry(0);
        b.clear(entry, 1);
    }),
    ("no entry, faults not recorded", |b| {
        let entry = b.entry(0);
        b.clear(entry, 1);
        b.set(entry, 2);
    }),
    ("an entry whose faults are not recorded", |b| {
        let entry = b.entry(0);
        b.set(entry, 2);
    }),
    ("reserved bit in an entry", |b| {
        let entry = b.entry(0);
        b.set(entry, 1 << 10);
    }),
    ("reserved word in an entry", |b| {
        let entry = b.entry(7);
        b.set(entry, 1);
    }),
    ("supervisor requests in an entry", |b| {
        let entry = b.entry(2);
        b.set(entry, 1);
    }),
    ("five levels", |b| {
        let entry = b.entry(2);
        b.set(entry, 1 << 2);
    }),
    ("no kind", |b| {
        let entry = b.entry(0);
        b.clear(entry, KIND);
    }),
    ("no such kind", |b| {
        let entry = b.entry(0);
        b.set(entry, KIND);
    }),
    ("pass-through", |b| {
        let entry = b.entry(0);
        b.clear(entry, KIND);
        b.set(entry, 4 << 6);
    }),
    ("pass-through for all", |b| {
        let entry = b.entry(0);
        b.clear(entry, KIND);
        b.set(entry, 4 << 6);
        b.set_context(b.context(), BOUND.into());
    }),
    ("another domain", |b| {
        let entry = b.entry(1);
        b.set(entry, 1 << 5);
    }),
    ("reserved bit in a page table", |b| {
        let entry = b.space.entry(&mut b.guest.rig.ram, MAPPED, 2);
        b.set(entry, 1 << 7 | 1 << 13); // a large page that is not aligned
    }),
    ("a supervisor's page", |b| {
        let entry = b.space.entry(&mut b.guest.rig.ram, MAPPED, 1);
        b.clear(entry, USER);
    }),
    ("no table", |b| {
        let entry = b.space.entry(&mut b.guest.rig.ram, MAPPED, 3);
        b.clear(entry, PRESENT);
    }),
];

/// What the guest's own tables give, and what the host's do.
fn compare(over: impl Fn(Setup) -> Setup) {
    let mut refused = 0;
    let twice = CASES.iter().flat_map(|case| [(case, false), (case, true)]);
    // The host's tables do not say that a device may not ask.
    for ((name, change), ats) in twice.filter(|(case, ats)| !ats || case.0 != NO_DEVICE_TLB) {
        let outcomes = [Setup::guest_owned, Setup::host_owned].map(|owned| {
            let mut bench = Bench::new(over(owned(Drive::Inline))).expect(name);
            let outcomes = bench.outcomes(*change, ats);
            (outcomes, bench.space.read(&bench.guest.rig.ram, MAPPED, 4))
        });
        let [(guest, memory), (host, same)] = outcomes;
        for (guest, host) in guest.iter().zip(&host) {
            assert_eq!(guest, host, "{name}, {ats}");
        }
        assert_eq!(memory, same, "{name}");
        refused += guest.iter().filter(|outcome| !outcome.records.is_empty()).count();
    }
    assert!(refused > 10 * CASES.len(), "{refused} accesses were recorded as refused");
}

/// One step of a guest that goes on.
#[derive(Clone, Copy)]
enum Step {
    /// From tables in order to those of a case.
    Case(usize),
    /// Translation is switched off, used, and switched on again.
    OffAndOn,
    /// The root table pointer is set again, which announces everything.
    RootPointer,
}

impl Bench {
    fn step(&mut self, step: Step) -> Vec<Outcome> {
        const ON: u32 = TRANSLATION | QUEUED_INVALIDATION;
        let Self { guest, .. } = self;
        match step {
            Step::Case(case) => {
                self.restore();
                self.outcomes(CASES[case].1, false)
            }
            Step::OffAndOn => {
                guest.unit.command(&guest.rig, QUEUED_INVALIDATION).expect("off");
                let mut outcomes = self.accesses();
                self.guest.unit.command(&self.guest.rig, ON).expect("on");
                outcomes.extend(self.accesses());
                outcomes
            }
            Step::RootPointer => {
                self.restore();
                let Self { guest, .. } = self;
                guest.unit.command(&guest.rig, ROOT_POINTER | ON).expect("a root pointer");
                self.accesses()
            }
        }
    }
}

/// From any tables to any others, without those in order in between.
fn compare_changes(over: impl Fn(Setup) -> Setup) {
    const STEPS: usize = 200;
    let mut random = Random::new(11);
    let mut benches = [Setup::guest_owned, Setup::host_owned]
        .map(|owned| Bench::new(over(owned(Drive::Inline))).expect("a bench"));
    for number in 0..STEPS {
        let (step, name) = match random.below(12) {
            0 => (Step::OffAndOn, "translation off and on"),
            1 => (Step::RootPointer, "the root pointer"),
            _ => {
                let case = random.below(CASES.len() as u64) as usize;
                (Step::Case(case), CASES[case].0)
            }
        };
        let [guest, host] = benches.each_mut().map(|bench| bench.step(step));
        for (guest, host) in guest.iter().zip(&host) {
            assert_eq!(guest, host, "step {number}: {name}");
        }
        assert_eq!(guest.len(), host.len());
    }
    let bindings = benches[1].guest.rig.machine.unit_counters().bindings;
    let changes = [bindings.made, bindings.replaced, bindings.ended];
    assert!(changes.iter().all(|count| *count >= 5), "{bindings:?}");
}

#[test]
fn whatever_changes_to_what_is_the_same() {
    compare_changes(|setup| setup);
}

#[test]
fn whatever_changes_to_what_is_the_same_over_stage_two() {
    compare_changes(Setup::over_stage_two);
}

#[test]
fn accesses_and_faults_are_the_same() {
    compare(|setup| setup);
}

#[test]
fn accesses_and_faults_are_the_same_over_stage_two() {
    compare(Setup::over_stage_two);
}
