//! Consumers of a guest against plain maps, with a host that answers whatever it likes.
#![cfg(not(loom))]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

use iommu::pasid::*;
use proptest::prelude::*;

const CONSUMERS: usize = 3;
/// The PASIDs that consumers may use, and one less and one more.
const RANGE: std::ops::RangeInclusive<u32> = 2..=6;
const NUMBERS: std::ops::RangeInclusive<u32> = 1..=7;

fn pasid(number: u32) -> Pasid {
    Pasid::new(number).unwrap()
}

/// What the host answers to the next commands.
#[derive(Clone, Copy, Debug)]
struct Answers {
    alloc: Result<u32, CommandError>,
    free: Result<(), CommandError>,
}

struct Host(Mutex<Answers>);

impl PasidCommands for Host {
    fn interface(&self) -> &'static str {
        "anything"
    }

    fn alloc(&self, _range: PasidRange) -> Result<Pasid, CommandError> {
        self.0.lock().unwrap().alloc.map(pasid)
    }

    fn free(&self, _pasid: Pasid) -> Result<(), CommandError> {
        self.0.lock().unwrap().free
    }
}

struct Narrow;

impl PasidOps for Narrow {
    fn bus_range(&self, _bus: u8) -> Option<PasidRange> {
        PasidRange::new(pasid(*RANGE.start()), pasid(*RANGE.end()))
    }
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Alloc { of: usize },
    Free { of: usize, number: u32 },
    Exit { of: usize },
}

fn error() -> impl Strategy<Value = CommandError> {
    prop_oneof![
        Just(CommandError::NoneAvailable),
        Just(CommandError::NotGranted),
        Just(CommandError::Deadline),
        Just(CommandError::Status { status: 9 }),
    ]
}

fn steps() -> impl Strategy<Value = Vec<(Step, Answers)>> {
    let of = 0..CONSUMERS;
    let step = prop_oneof![
        6 => of.clone().prop_map(|of| Step::Alloc { of }),
        5 => (of.clone(), NUMBERS).prop_map(|(of, number)| Step::Free { of, number }),
        1 => of.prop_map(|of| Step::Exit { of }),
    ];
    let alloc = prop_oneof![6 => NUMBERS.prop_map(Ok), 1 => error().prop_map(Err)];
    let free = prop_oneof![3 => Just(Ok(())), 1 => error().prop_map(Err)];
    let answers = (alloc, free).prop_map(|(alloc, free)| Answers { alloc, free });
    prop::collection::vec((step, answers), 1..80)
}

/// What ought to be.
#[derive(Default)]
struct Expected {
    of: [BTreeMap<u32, usize>; CONSUMERS],
    /// Numbers that nobody has and the host did not take back.
    lost: BTreeSet<u32>,
}

impl Expected {
    fn in_use(&self, number: u32) -> bool {
        self.lost.contains(&number) || self.of.iter().any(|of| of.contains_key(&number))
    }

    /// A number that its consumer does not keep was offered to the host.
    fn offered(&mut self, number: u32, answer: Result<(), CommandError>) {
        if !matches!(answer, Ok(()) | Err(CommandError::NotGranted)) {
            self.lost.insert(number);
        }
    }

    fn alloc(&mut self, of: usize, value: usize, answers: Answers) -> Result<Pasid, AllocError> {
        let number = answers.alloc?;
        if self.in_use(number) {
            return Err(AllocError::InUse { pasid: pasid(number) });
        }
        if RANGE.contains(&number) {
            self.of[of].insert(number, value);
            return Ok(pasid(number));
        }
        self.offered(number, answers.free);
        let range = PasidRange::new(pasid(*RANGE.start()), pasid(*RANGE.end())).unwrap();
        Err(AllocError::Unasked { pasid: pasid(number), range })
    }

    fn free(&mut self, of: usize, number: u32, answers: Answers) -> Result<usize, FreeError> {
        let had = self.of[of].remove(&number).ok_or(FreeError::NotFound(pasid(number)))?;
        match answers.free {
            Ok(()) => Ok(had),
            Err(error) => {
                if error != CommandError::NotGranted {
                    self.of[of].insert(number, had);
                }
                Err(error.into())
            }
        }
    }

    fn exit(&mut self, of: usize, answers: Answers) -> Exited {
        let mut exited = Exited::default();
        for number in std::mem::take(&mut self.of[of]).into_keys() {
            match answers.free {
                Ok(()) => exited.freed += 1,
                Err(error) => exited.lost.push((pasid(number), error)),
            }
            self.offered(number, answers.free);
        }
        exited
    }
}

fn run(steps: &[(Step, Answers)]) {
    let none = Answers { alloc: Err(CommandError::NoneAvailable), free: Ok(()) };
    let host = Arc::new(Host(Mutex::new(none)));
    let pasids = PasidAllocator::guest(host.clone()).with_ops(Arc::new(Narrow));
    let init = || Consumer::<usize>::init(&pasids, Scope::Bus(0)).unwrap();
    let mut consumers: Vec<_> = (0..CONSUMERS).map(|_| init()).collect();
    let mut expected = Expected::default();
    for (value, (step, answers)) in steps.iter().enumerate() {
        *host.0.lock().unwrap() = *answers;
        match *step {
            Step::Alloc { of } => {
                let got = consumers[of].alloc(PasidRange::ALL, value);
                assert_eq!(got, expected.alloc(of, value, *answers));
            }
            Step::Free { of, number } => {
                let got = consumers[of].free(pasid(number)).map(|value| *value);
                assert_eq!(got, expected.free(of, number, *answers));
            }
            Step::Exit { of } => {
                let ended = std::mem::replace(&mut consumers[of], init());
                assert_eq!(ended.exit(), expected.exit(of, *answers));
            }
        }
        for (consumer, expected) in consumers.iter().zip(&expected.of) {
            for number in NUMBERS {
                let found = consumer.find(pasid(number)).map(|value| *value);
                assert_eq!(found, expected.get(&number).copied());
            }
            let mut all = BTreeMap::new();
            let listed: Result<(), ()> = consumer.for_each(|pasid, value| {
                all.insert(pasid.get(), *value);
                Ok(())
            });
            assert_eq!((listed, &all, consumer.len()), (Ok(()), expected, expected.len()));
        }
    }
    // What is lost is at most what the host did not take back, and it stays lost.
    for number in NUMBERS {
        *host.0.lock().unwrap() = Answers { alloc: Ok(number), free: Ok(()) };
        let in_use = consumers[0].alloc(PasidRange::ALL, 0)
            == Err(AllocError::InUse { pasid: pasid(number) });
        assert_eq!(in_use, expected.in_use(number));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn consumers_keep_what_is_theirs(steps in steps()) {
        run(&steps);
    }
}
