//! Random binds, unbinds, frees and submissions against a plain map.

use std::collections::BTreeMap;

use iommu::pasid::translation::TranslationConfig;
use iommu::{PasidRange, Vm};
use proptest::prelude::*;

use super::scenarios::{submitted, Submitter, CONFIG};
use crate::common::hosted::guest;
use crate::common::{pasid, wait};

/// Numbers in the flat part and beyond, of one table and of several.
const NUMBERS: [u32; 5] = [3, 15, 16, 0x401, 0xf_fffe];
/// Tables there may be: one less than the numbers need.
const TABLES: usize = 2;

#[derive(Clone, Copy, Debug)]
enum Step {
    Grant(usize),
    Bind(usize),
    Unbind(usize),
    Free(usize),
    Release,
    Submit(usize),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let number = 0..NUMBERS.len();
    let step = prop_oneof![
        3 => number.clone().prop_map(Step::Grant),
        4 => number.clone().prop_map(Step::Bind),
        3 => number.clone().prop_map(Step::Unbind),
        2 => number.clone().prop_map(Step::Free),
        1 => Just(Step::Release),
        6 => number.prop_map(Step::Submit),
    ];
    prop::collection::vec(step, 1..60)
}

/// What is granted, and whether it is bound.
#[derive(Default)]
struct Reference {
    granted: BTreeMap<u32, bool>,
    tables: std::collections::BTreeSet<u32>,
}

impl Reference {
    fn binds(&mut self, number: u32) -> bool {
        let table = number >> 10;
        let place = self.tables.contains(&table) || self.tables.len() < TABLES;
        let Some(bound) = self.granted.get_mut(&number).filter(|bound| !**bound) else {
            return false;
        };
        if place {
            self.tables.insert(table);
            *bound = true;
        }
        place
    }
}

fn run(steps: &[Step]) -> Result<(), TestCaseError> {
    let submitter = Submitter::new(TranslationConfig { tables: TABLES, ..CONFIG });
    let vm = submitter.vm().clone();
    let mut vcpu = submitter.table().vcpu().unwrap();
    let mut reference = Reference::default();
    for step in steps {
        match *step {
            Step::Grant(at) => {
                let number = NUMBERS[at];
                let range = PasidRange::new(pasid(number), pasid(number)).unwrap();
                let polls = if reference.granted.contains_key(&number) { 1 } else { 16 };
                let done = (0..polls).any(|_| vm.alloc_pasid(range).is_ok());
                prop_assert_eq!(done, !reference.granted.contains_key(&number));
                reference.granted.entry(number).or_default();
            }
            Step::Bind(at) => {
                let done = submitter.attach(NUMBERS[at]).is_ok();
                prop_assert_eq!(done, reference.binds(NUMBERS[at]));
            }
            Step::Unbind(at) => {
                let done = submitter.detach(NUMBERS[at]).is_ok();
                let bound = reference.granted.get_mut(&NUMBERS[at]);
                prop_assert_eq!(done, bound.is_some_and(std::mem::take));
            }
            Step::Free(at) => {
                let done = vm.free_pasid(guest(NUMBERS[at])).is_ok();
                let _ = vm.pasid_usage();
                prop_assert_eq!(done, reference.granted.remove(&NUMBERS[at]).is_some());
            }
            Step::Release => {
                wait(&vm, vm.release_pasids());
                reference.granted.clear();
            }
            Step::Submit(at) => {
                let host = submitted(&mut vcpu, NUMBERS[at]);
                let report = submitter.hosted.guest.host.pasid_report();
                let entry =
                    report.vms[0].entries.iter().find(|entry| entry.guest == guest(NUMBERS[at]));
                let bound = reference.granted.get(&NUMBERS[at]) == Some(&true);
                prop_assert_eq!(host, entry.map(|entry| entry.host.0.get()).filter(|_| bound));
            }
        }
        for number in NUMBERS {
            let bound = reference.granted.get(&number) == Some(&true);
            prop_assert_eq!(submitter.table().peek(guest(number)).is_some(), bound);
            prop_assert_eq!(submitter.table().walk(guest(number)).is_some(), bound);
        }
    }
    let bound = reference.granted.values().filter(|bound| **bound).count() as u64;
    let counters = submitter.table().counters();
    prop_assert_eq!((counters.open, counters.closing, counters.unmatched), (bound, 0, 0));
    drop(vcpu);
    submitter.end();
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn it_translates_what_is_bound_and_nothing_else(steps in steps()) {
        run(&steps)?;
    }
}
