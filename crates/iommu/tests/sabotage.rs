//! Each deliberate defect turns the verdict of the scenario that is there to notice it.
#![cfg(not(loom))]

mod common;
mod defects;

use common::scenarios;
use common::{device_tlb_scenarios, request_model, smmu_scenarios};
use defects::{each_is_noticed, Case};
use iommu::sabotage::Sabotage;

const CASES: [Case; 36] = [
    (Sabotage::SkipIotlbInvalidation, "remap", scenarios::remap),
    (Sabotage::SkipIotlbInvalidation, "storm", scenarios::storm),
    (Sabotage::NoAccessedDirty, "accessed_dirty", scenarios::accessed_dirty),
    (Sabotage::WrongPasid, "isolation", scenarios::isolation),
    (Sabotage::DropInFlight, "in_flight", scenarios::in_flight),
    (Sabotage::DropInFlight, "storm", scenarios::storm),
    (Sabotage::KeepOnClose, "close", scenarios::close),
    (Sabotage::LeakCache, "rebind", scenarios::rebind),
    (Sabotage::ReusePasid, "parking", scenarios::parking),
    (Sabotage::IgnoreGrants, "grants", scenarios::grants),
    (Sabotage::WrongPasid, "grants", scenarios::grants),
    (Sabotage::ForgetOwner, "owners", scenarios::owners),
    (Sabotage::KeepEntry, "attached", scenarios::attached),
    (Sabotage::WrongPasid, "attached", scenarios::attached),
    (Sabotage::SkipIotlbInvalidation, "attached", scenarios::attached),
    (Sabotage::SkipStageTwo, "stage_two", scenarios::stage_two),
    (Sabotage::SkipIotlbInvalidation, "smmu", smmu_scenarios::smmu),
    (Sabotage::NoAccessedDirty, "smmu", smmu_scenarios::smmu),
    (Sabotage::WrongPasid, "smmu", smmu_scenarios::smmu),
    (Sabotage::SkipIotlbInvalidation, "hosted_model", scenarios::hosted_model),
    (Sabotage::NoAccessedDirty, "hosted_model", scenarios::hosted_model),
    (Sabotage::LeakCache, "hosted_model", scenarios::hosted_model),
    (Sabotage::SkipStageTwo, "hosted_model", scenarios::hosted_model),
    (Sabotage::SkipIotlbInvalidation, "holes", scenarios::holes),
    (Sabotage::SkipIotlbInvalidation, "smmu_remap", scenarios::smmu_remap),
    (Sabotage::NoAccessedDirty, "smmu_flags", scenarios::smmu_flags),
    (Sabotage::SkipStageTwo, "smmu_stage_two", scenarios::smmu_stage_two),
    (Sabotage::SkipDeviceTlbInvalidation, "device TLB: remap", device_tlb_scenarios::remap),
    (Sabotage::SkipDeviceTlbInvalidation, "device TLB: storm", device_tlb_scenarios::storm),
    (Sabotage::SkipDeviceTlbInvalidation, "hosted_model", scenarios::hosted_model),
    (Sabotage::AnswerTwice, "page_requests", request_model::page_requests),
    (Sabotage::ForgetGroup, "page_requests", request_model::page_requests),
    (Sabotage::AnswerForGuest, "page_requests", request_model::page_requests),
    (Sabotage::LoseGroup, "page_requests", request_model::page_requests),
    (Sabotage::AnswerTaken, "page_requests", request_model::page_requests),
    (Sabotage::ForgetAsker, "page_requests", request_model::page_requests),
];

#[test]
fn each_defect_is_noticed() {
    each_is_noticed(&CASES, 200);
}
