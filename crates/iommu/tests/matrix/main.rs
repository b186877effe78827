//! One DMA at a time, over everything that can translate it and everything that can be wrong with
//! that.
//!
//! ```text
//!  {no PASID, PASID} x {kind of translation} x {what is broken, and where}
//!                    x {read, write, two atomics} x {what lies below: ground}
//! ```
//!
//! The tables are written bit by bit. What a cell must come to is said by an oracle of its own,
//! which knows the architectures and not the engine. Each cell is counted, so none gets lost.
#![cfg(not(loom))]
#![allow(unreachable_pub)]

#[path = "../common/mod.rs"]
mod common;

mod cell;
mod ground;
mod smmu;
mod vtd;
