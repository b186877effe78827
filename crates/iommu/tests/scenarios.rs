//! The scenarios, each with the verdict that it must have.
#![cfg(not(loom))]

mod common;

use common::{scenarios, smmu_scenarios};

#[test]
fn storm() {
    assert_eq!(scenarios::storm(), Ok(()));
}

#[test]
fn in_flight() {
    assert_eq!(scenarios::in_flight(), Ok(()));
}

#[test]
fn remap() {
    assert_eq!(scenarios::remap(), Ok(()));
}

#[test]
fn accessed_dirty() {
    assert_eq!(scenarios::accessed_dirty(), Ok(()));
}

#[test]
fn isolation() {
    assert_eq!(scenarios::isolation(), Ok(()));
}

#[test]
fn close() {
    assert_eq!(scenarios::close(), Ok(()));
}

#[test]
fn rebind() {
    assert_eq!(scenarios::rebind(), Ok(()));
}

#[test]
fn no_starvation() {
    assert_eq!(scenarios::no_starvation(), Ok(()));
}

#[test]
fn attached() {
    assert_eq!(scenarios::attached(), Ok(()));
}

#[test]
fn parking() {
    assert_eq!(scenarios::parking(), Ok(()));
}

#[test]
fn grants() {
    assert_eq!(scenarios::grants(), Ok(()));
}

#[test]
fn owners() {
    assert_eq!(scenarios::owners(), Ok(()));
}

#[test]
fn stage_two() {
    assert_eq!(scenarios::stage_two(), Ok(()));
}

#[test]
fn smmu() {
    assert_eq!(smmu_scenarios::smmu(), Ok(()));
}

#[test]
fn hosted_model() {
    assert_eq!(scenarios::hosted_model(), Ok(()));
}

#[test]
fn holes() {
    assert_eq!(scenarios::holes(), Ok(()));
}

#[test]
fn smmu_remap() {
    assert_eq!(scenarios::smmu_remap(), Ok(()));
}

#[test]
fn smmu_flags() {
    assert_eq!(scenarios::smmu_flags(), Ok(()));
}

#[test]
fn smmu_stage_two() {
    assert_eq!(scenarios::smmu_stage_two(), Ok(()));
}
