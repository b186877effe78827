//! A host that owns the tables against a slow reference, over every ground.
#![cfg(not(loom))]

mod common;

use common::hosted_model::{grounds, run};

const SEEDS: u64 = 60;
const STEPS: u64 = 600;

#[test]
fn what_is_cached_never_shows() {
    for ground in grounds() {
        for seed in 0..SEEDS {
            assert_eq!(run(ground, seed, STEPS), Ok(()));
        }
    }
}
