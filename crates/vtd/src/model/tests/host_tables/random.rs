//! Any sequence of changes and announcements.

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
                    let _ = unit.write64(0x20, ROOT | 0x400);
                    let _ = unit.write64(0x90, QUEUE | 0x800);
                    let _ = unit.write64(0x88, 0);
                    let _ = unit.write32(0x18, SRTP | QIE);
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
            let at = if pasid == rid_pasid { WITHOUT_PASID } else { place(pasid as u32) };
            expected.extend(by(entry).map(|by| (at, by)));
        }
        prop_assert_eq!(unit.bound(), expected.clone());
        prop_assert_eq!(unit.counts().bound, expected.len() as u64);
        let numbers = expected.keys().filter_map(|(_, pasid)| *pasid).map(|pasid| pasid.0);
        let granted = unit.vm.state().pasids.clone();
        prop_assert!(numbers.clone().all(|pasid| granted.contains(&pasid)));
        prop_assert_eq!(unit.counts().refused, 0);
    }
}
