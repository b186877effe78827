//! Tables of Arm's VMSAv8-64, for the granules of 4, 16 and 64 KiB, as a processor or an SMMUv3
//! walks them.
//!
//! This crate counts levels from the leaves, Arm from the root of the deepest table: level 1 here
//! is Arm's level 3, level 4 is Arm's 0 and level 5 its -1.
//!
//! What no walk here decides upon is left out: memory types, shareability, the contiguous hint,
//! security states, access flags in table entries (FEAT_HAFT), permission indirection, and regimes
//! with one privilege level only.

mod geometry;
mod regime;
mod stage_one;
mod stage_two;

pub use geometry::{
    arm_output_bits, arm_output_field, ArmFormatError, ArmSizes, Granule, MAX_CONCATENATED,
};
pub use regime::{ArmRegime, ArmTable, SelectError};
pub use stage_one::{ArmStageOne, ArmStageOneEntry};
pub use stage_two::{ArmStageTwo, ArmStageTwoEntry, Vtcr};

/// What becomes of the access flag and of the dirty state of leaves.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Hash)]
pub enum ArmFlags {
    /// A leaf whose access flag is clear faults, and software sets the flag.
    #[default]
    Fault,
    /// The access flag means nothing (AFFD of a context descriptor, S2AFFD of a stream table entry).
    Ignore,
    /// Walks set the access flag (HA).
    Access,
    /// Walks set the access flag, and they make a leaf with DBM writable that is written (HA and
    /// HD).
    AccessDirty,
}

impl ArmFlags {
    /// The meaning of the fields HA, HD and AFFD. HD is nothing without HA, and AFFD nothing with
    /// it.
    pub const fn from_fields(ha: bool, hd: bool, affd: bool) -> Self {
        match (ha, hd, affd) {
            (true, true, _) => Self::AccessDirty,
            (true, false, _) => Self::Access,
            (false, _, true) => Self::Ignore,
            (false, _, false) => Self::Fault,
        }
    }

    /// Whether a leaf with this access flag needs no update.
    const fn is_accessed(self, flag: bool) -> bool {
        flag || matches!(self, Self::Ignore)
    }

    /// The access flag of a leaf that is entered.
    const fn of_new_leaf(self) -> bool {
        !self.sets_accessed()
    }

    const fn sets_accessed(self) -> bool {
        matches!(self, Self::Access | Self::AccessDirty)
    }

    const fn sets_dirty(self) -> bool {
        matches!(self, Self::AccessDirty)
    }
}
