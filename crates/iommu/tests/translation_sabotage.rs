//! Each deliberate defect turns the verdict of the scenario that is there to notice it.
#![cfg(not(loom))]
#![allow(unreachable_pub, dead_code)]

mod common;
#[path = "translation/scenarios.rs"]
mod scenarios;
#[path = "translation/sharing.rs"]
mod sharing;

use iommu::sabotage::{set, Sabotage};

type Scenario = fn() -> common::scenarios::Verdict;

const CASES: [(Sabotage, &str, Scenario); 7] = [
    (Sabotage::OpenEarly, "order", scenarios::order),
    (Sabotage::CloseLate, "order", scenarios::order),
    (Sabotage::CloseLate, "closed", scenarios::closed),
    (Sabotage::IgnoreRefusal, "refusal", scenarios::refusal),
    (Sabotage::SkipSubmissions, "in_flight", scenarios::in_flight),
    (Sabotage::SubmitGuestPasid, "numbers", scenarios::numbers),
    (Sabotage::RouteEarly, "reused", sharing::reused),
];

/// One test, since a defect is on for the whole process.
#[test]
fn each_defect_is_noticed() {
    for (defect, name, scenario) in CASES {
        set(None);
        assert_eq!(scenario(), Ok(()), "{name} without a defect");
        set(Some(defect));
        // A race takes its time to go wrong.
        let noticed = (0..20).any(|_| scenario().is_err());
        assert!(noticed, "{name} does not notice {defect:?}");
    }
    set(None);
}
