//! Our extension: allocating and freeing PASIDs. All its numbers are here and nowhere else.
//!
//! No published draft has these requests, and the drafts of page-table sharing number theirs
//! differently each time. So the numbers are a table, and which row counts is what the two sides
//! negotiate: each revision has a feature bit of its own, and a driver takes one bit at most.

use super::Features;

/// A row of the table of numbers.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Revision {
    /// Far from every number that a draft has used: what this project's two ends speak.
    Experimental,
    /// The next free numbers behind those of the drafts: as a proposal would have them.
    Proposal,
}

/// The numbers of one revision.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Numbers {
    /// The feature bit.
    pub feature: u8,
    /// The request type that allocates a PASID.
    pub alloc_pasid: u8,
    /// The request type that frees one.
    pub free_pasid: u8,
}

/// Feature bits that published drafts of page-table sharing use, whatever for.
pub const DRAFT_FEATURES: [u8; 5] = [5, 6, 7, 8, 9];

/// Request types that those drafts use: ATTACH_TABLE, INVALIDATE, PAGE_RESP.
pub const DRAFT_REQUESTS: [u8; 3] = [0x06, 0x07, 0x08];

impl Revision {
    /// All of them, the preferred one first.
    pub const ALL: [Self; 2] = [Self::Experimental, Self::Proposal];

    /// Its numbers.
    pub const fn numbers(self) -> Numbers {
        match self {
            Self::Experimental => Numbers { feature: 23, alloc_pasid: 0xe0, free_pasid: 0xe1 },
            Self::Proposal => Numbers { feature: 10, alloc_pasid: 0x09, free_pasid: 0x0a },
        }
    }

    /// Its feature bit as features.
    pub const fn feature(self) -> Features {
        Features::from_bits(1 << self.numbers().feature)
    }

    /// The revisions among `features`, the preferred one first.
    pub fn among(features: Features) -> impl Iterator<Item = Self> {
        let has = move |revision: &Self| features.into_bits() & revision.feature().into_bits() != 0;
        Self::ALL.into_iter().filter(has)
    }
}
