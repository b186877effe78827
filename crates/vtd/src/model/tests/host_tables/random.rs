//! Any sequence of changes and announcements, and any tables.

use proptest::prelude::*;

use super::*;

/// What the guest does to its tables and says of them.
#[derive(Clone, Copy, Debug)]
enum Step {
    Entry(u64, Option<(u64, u64)>),
    Context(bool, u64),
    Announce(u64),
    AnnounceAll,
    AnnounceContexts,
    Translation(bool),
    Reset,
}

fn step() -> impl Strategy<Value = Step> {
    let kind = prop_oneof![Just(FIRST_STAGE), Just(PASS_THROUGH), Just(2 << 6)];
    let entry = proptest::option::of((kind, (1u64..4).prop_map(|root| root << 12)));
    prop_oneof![
        4 => (0u64..4, entry).prop_map(|(pasid, entry)| Step::Entry(pasid, entry)),
        1 => (any::<bool>(), 0u64..4).prop_map(|(on, rid_pasid)| Step::Context(on, rid_pasid)),
        3 => (0u64..4).prop_map(Step::Announce),
        1 => Just(Step::AnnounceAll),
        1 => Just(Step::AnnounceContexts),
        1 => any::<bool>().prop_map(Step::Translation),
        1 => Just(Step::Reset),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Once everything is announced, what is bound is what the tables say, whatever came before.
    #[test]
    fn what_is_bound_is_what_the_tables_say(steps in proptest::collection::vec(step(), 0..24)) {
        let mut unit = translating();
        let mut entries: BTreeMap<u64, (u64, u64)> = BTreeMap::new();
        let (mut context, mut rid_pasid) = (true, 0);
        for step in steps {
            match step {
                Step::Entry(pasid, Some((kind, root))) => {
                    unit.set_entry(pasid, kind, root);
                    entries.insert(pasid, (kind, root));
                }
                Step::Entry(pasid, None) => {
                    unit.clear_entry(pasid);
                    entries.remove(&pasid);
                }
                Step::Context(present, rid) => {
                    unit.set_context([if present { CONTEXT } else { 0 }, rid]);
                    (context, rid_pasid) = (present, rid);
                }
                Step::Announce(pasid) => drop(unit.tell(&[entry_changed(pasid)])),
                Step::AnnounceAll => drop(unit.tell(&[ENTRIES_GLOBAL])),
                Step::AnnounceContexts => drop(unit.tell(&[CONTEXT_GLOBAL])),
                Step::Translation(on) => {
                    let _ = unit.write32(0x18, if on { TE | QIE } else { QIE });
                    unit.drain();
                }
                Step::Reset => {
                    let _ = unit.model.reset();
                    unit.restart();
                    unit.drain();
                }
            }
        }
        let _ = unit.write32(0x18, TE | QIE);
        unit.tell(&[CONTEXT_GLOBAL, ENTRIES_GLOBAL]);
        let by = |(kind, root)| match kind {
            FIRST_STAGE => Some(stage_one(root)),
            PASS_THROUGH => Some(By::StageTwo),
            _ => None,
        };
        let mut expected = BTreeMap::new();
        for (pasid, entry) in entries.into_iter().filter(|_| context) {
            let Some(by) = by(entry) else { continue };
            if pasid == rid_pasid {
                expected.insert(WITHOUT_PASID, by);
            }
            if pasid != rid_pasid || pasid != 0 {
                expected.insert(place(pasid as u32), by);
            }
        }
        prop_assert_eq!(unit.bound(), expected.clone());
        prop_assert_eq!(unit.counts().bound, expected.len() as u64);
        let numbers = expected.keys().filter_map(|(_, pasid)| *pasid).map(|pasid| pasid.0);
        let granted = unit.vm.state().pasids.clone();
        prop_assert!(numbers.clone().all(|pasid| granted.contains(&pasid)));
        prop_assert_eq!(unit.counts().refused, 0);
    }
}

/// What a guest does that has gone mad, or worse.
#[derive(Clone, Copy, Debug)]
enum Whim {
    /// A word of one of the table pages.
    Word(u64, u64),
    /// A descriptor of a type and granularity that are likely to mean something.
    Descriptor([u64; 2]),
    Poll,
    Command(u32),
    Fault(u32, u64),
    /// The host fails from here on, or does not.
    Failing(bool),
    Complete,
    Reset,
}

const PAGES: [u64; 5] = [ROOT, CONTEXTS, DIRECTORY, TABLE, OTHER_DIRECTORY];

fn whim() -> impl Strategy<Value = Whim> {
    let at = (prop::sample::select(&PAGES[..]), 0u64..32).prop_map(|(page, word)| page + 8 * word);
    let word = prop_oneof![
        4 => (prop::sample::select(&PAGES[..]), 0u64..0x80).prop_map(|(page, low)| page | low | 1),
        2 => Just(CONTEXT),
        2 => Just(FIRST_STAGE | 1),
        1 => Just(PASS_THROUGH | 1),
        1 => 0u64..0x200,
        1 => any::<u64>(),
    ];
    let kind = prop::sample::select(&[1u64, 2, 3, 6, 7, 8][..]);
    let descriptor = (kind, 0u64..4, 0u64..8, any::<u64>());
    prop_oneof![
        8 => (at, word).prop_map(|(at, word)| Whim::Word(at, word)),
        6 => descriptor.prop_map(|(kind, granularity, pasid, address)| Whim::Descriptor([
            kind | granularity << 4 | DOMAIN << 16 | pasid << 32,
            address,
        ])),
        4 => Just(Whim::Poll),
        1 => prop::sample::select(&[QIE, TE | QIE, TE | QIE | SRTP][..]).prop_map(Whim::Command),
        1 => (0u32..8, any::<u64>()).prop_map(|(pasid, page)| Whim::Fault(pasid, page >> 12)),
        1 => any::<bool>().prop_map(Whim::Failing),
        1 => Just(Whim::Complete),
        1 => Just(Whim::Reset),
    ]
}

impl Unit {
    fn indulge(&mut self, whim: Whim) {
        match whim {
            Whim::Word(at, word) => self.store(Gpa(at), &[word]),
            Whim::Descriptor(words) => {
                let _ = self.write32(0x34, IQE);
                let _ = self.submit(&[words]);
            }
            Whim::Poll => {
                let _ = self.poll();
            }
            Whim::Command(bits) => {
                let _ = self.write32(0x18, bits);
            }
            Whim::Fault(pasid, page) => {
                let pasid = Pasid::new(pasid);
                self.inject(Fault { pasid, ..fault(page) });
            }
            Whim::Failing(fails) => {
                self.vm.state().objects.fail = fails.then_some(ObjectError::NoMemory);
            }
            Whim::Complete => self.vm.complete(),
            Whim::Reset => {
                let _ = self.model.reset();
                self.restart();
            }
        }
    }

    fn restart(&mut self) {
        let _ = self.write64(0x20, ROOT | 0x400);
        let _ = self.write64(0x90, QUEUE | 0x800);
        let _ = self.write64(0x88, 0);
        let _ = self.write32(0x18, SRTP | QIE);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Nothing panics, each call is bounded, and in the end nothing is left behind.
    #[test]
    fn nothing_is_left_of_a_hostile_guest(
        late: bool,
        quota in 0u32..4,
        whims in proptest::collection::vec(whim(), 0..64),
    ) {
        let mut unit = translating();
        unit.vm.state().quota = quota;
        if late {
            unit.vm.complete_late();
        }
        for whim in whims {
            unit.vm.state().objects.calls.clear();
            unit.indulge(whim);
            let calls = unit.vm.state().objects.calls.len() as u64;
            match whim {
                Whim::Poll => prop_assert!(calls <= MAX_CHANGES),
                Whim::Reset => {}
                _ => prop_assert_eq!(calls, 0),
            }
            let bound = unit.bound();
            prop_assert_eq!(unit.counts().bound, bound.len() as u64);
            prop_assert!(bound.keys().filter(|(_, pasid)| pasid.is_some()).count() <= quota as usize);
        }
        unit.vm.state().objects.fail = None;
        let ticket = unit.model.reset();
        unit.vm.complete();
        prop_assert!(unit.vm.is_complete(ticket));
        prop_assert_eq!(unit.bound(), BTreeMap::from([(WITHOUT_PASID, By::StageTwo)]));
        prop_assert_eq!(unit.vm.state().pasids.len(), 0);
        prop_assert_eq!(unit.vm.state().objects.tables(), 0);
        prop_assert!(!unit.vm.state().closed);
    }
}
