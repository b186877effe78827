//! The tests of everything else once more, over a shuffled stage 2 of the host's.
#![cfg(not(loom))]
// Each of them brings its own.
#![allow(clippy::duplicate_mod)]

#[path = "answers.rs"]
mod answers;
#[path = "bindings.rs"]
mod bindings;
#[path = "device_tlb.rs"]
mod device_tlb;
#[path = "lifecycle.rs"]
mod lifecycle;
#[path = "model.rs"]
mod model;
#[path = "objects.rs"]
mod objects;
#[path = "requests.rs"]
mod requests;
#[path = "scenarios.rs"]
mod scenarios;
#[path = "smmu_descriptors.rs"]
mod smmu_descriptors;
#[path = "smmu_dma.rs"]
mod smmu_dma;
#[path = "smmu_model/main.rs"]
mod smmu_model;
