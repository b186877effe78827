//! Each deliberate defect turns the verdict of the scenario that is there to notice it.
#![cfg(not(loom))]
#![allow(unreachable_pub, dead_code)]

mod common;
mod defects;
#[path = "translation/scenarios.rs"]
mod scenarios;
#[path = "translation/sharing.rs"]
mod sharing;

use defects::{each_is_noticed, Case};
use iommu::sabotage::Sabotage;

const CASES: [Case; 7] = [
    (Sabotage::OpenEarly, "order", scenarios::order),
    (Sabotage::CloseLate, "order", scenarios::order),
    (Sabotage::CloseLate, "closed", scenarios::closed),
    (Sabotage::IgnoreRefusal, "refusal", scenarios::refusal),
    (Sabotage::SkipSubmissions, "in_flight", scenarios::in_flight),
    (Sabotage::SubmitGuestPasid, "numbers", scenarios::numbers),
    (Sabotage::RouteEarly, "reused", sharing::reused),
];

#[test]
fn each_defect_is_noticed() {
    each_is_noticed(&CASES, 20);
}
