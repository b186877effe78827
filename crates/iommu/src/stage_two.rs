//! The host's stage 2 of a VM: from the guest's physical addresses to the host's.
//!
//! ```text
//!   contexts, PASID table, stage 1 ──► Gpa ──► HostStageTwo ──► HostAddr ──► memory
//!   (all of it at guest physical       tables in HostTables,     where the frames lie:
//!    addresses, so through here)       kept by the Editor        Frames (a permutation)
//! ```
//!
//! A VM without [`VmConfig::stage_two`](crate::VmConfig::stage_two) has none of this: its guest
//! physical addresses are looked up in its memory map directly. In a VM with it nothing is: the
//! tables are walked for every address of the guest's tables and data, and what is cached leads to
//! the host address.
//!
//! The host here is one in software, so where its frames lie is made up: guest physical memory is
//! dealt out over host addresses by a permutation that is computed, not stored. Whoever skips the
//! walk ends at another address than the memory's.

mod editor;
mod frames;
mod physical;
mod tables;
mod walk;

pub use pgtable::{ArmFlags, ArmStageTwo, Granule, SecondStageLevels, Vtcr};

pub(crate) use editor::{Editor, Retired};
pub(crate) use frames::Frames;
pub(crate) use physical::{GuestPhysical, Output};
pub(crate) use tables::{HostTables, NoTable};
pub(crate) use walk::{HostStageTwo, Untranslated};

/// The host's stage 2 of a VM.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct StageTwoConfig {
    /// Format of its tables.
    pub format: StageTwoFormat,
    /// Where the guest's memory lies in the host's.
    pub layout: Layout,
}

/// A format of stage-2 tables, with what is to be chosen of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum StageTwoFormat {
    /// VT-d second stage, with accessed and dirty flags kept.
    Vtd {
        /// Depth.
        levels: SecondStageLevels,
    },
    /// Arm stage 2, with any granule. Needs two levels or more, and an output size of 48 bits or
    /// more.
    Arm(ArmStageTwo),
}

/// Where a guest's memory lies in the host's.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Layout {
    /// At the addresses that the guest has for it.
    Identity,
    /// Shuffled: large frames (2 MiB, with pages of 4 KiB; what an entry of level 2 maps) change
    /// places, and in a quarter of them the pages do, too. Never in the interrupt range, and never where the guest believes.
    Shuffled {
        /// Which shuffle.
        seed: u64,
    },
}

/// Why stage 2 was not changed. The caller's mistake.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum StageTwoError {
    /// The VM has no stage 2.
    #[error("the VM has no stage 2")]
    None,
    /// As many ranges are cleared as a VM takes.
    #[error("the VM has its limit of {limit} cleared ranges")]
    TooManyHoles {
        /// The limit.
        limit: usize,
    },
    /// The VM is closed.
    #[error("the VM is closed")]
    Closed,
}

#[cfg(all(test, not(loom)))]
mod tests;
