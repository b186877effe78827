//! The word that a find reads: everything about an ID that decides whether it is found.
//!
//! ```text
//!   63                  24 23          4    3       2     1    0
//!  ┌──────────────────────┬─────────────┬────────┬──────┬────────┐
//!  │ generation           │ set         │ member │ busy │ status │
//!  └──────────────────────┴─────────────┴────────┴──────┴────────┘
//! ```
//!
//! A generation counts the lives of a number. It has 40 bits: at a hundred million lives of the
//! same number a second it comes round after three hours, and a [`Tag`](crate::Tag) of then would
//! be taken for one of now. A tag is a name that grants nothing.

/// Most sets of a space, the one of what belongs to no set included.
pub(crate) const MAX_SETS: u32 = 1 << SET_BITS;

const STATUS_BITS: u32 = 2;
const BUSY: u64 = 1 << STATUS_BITS;
const MEMBER: u64 = 1 << (STATUS_BITS + 1);
const SET_SHIFT: u32 = STATUS_BITS + 2;
const SET_BITS: u32 = 20;
const GENERATION_SHIFT: u32 = SET_SHIFT + SET_BITS;

/// Where in its life a number is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(crate) enum Status {
    /// Out of the free ones at most; nothing is known of it.
    Vacant = 0,
    /// Found.
    Live = 1,
    /// Freed, and something may still name it.
    Parked = 2,
}

/// A state word.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct State(u64);

impl State {
    pub(crate) const VACANT: Self = Self(0);

    /// The first state of the life after `generation`.
    #[inline]
    pub(crate) const fn born(set: u32, generation: u64) -> Self {
        let next = generation.wrapping_add(1) << GENERATION_SHIFT;
        Self(next | (set as u64) << SET_SHIFT | MEMBER | Status::Live as u64)
    }

    /// Whether its shard lists the number among the members of its set. That stays so after its
    /// release as long as the number stays in the shard, so that allocating it again for the same
    /// set need not enter it: what iterates looks at the status.
    #[inline]
    pub(crate) const fn is_member(self) -> bool {
        self.0 & MEMBER != 0
    }

    /// Whether the number is listed among the members of the set, with a record as at a life's
    /// beginning.
    #[inline]
    pub(crate) const fn is_ready_for(self, set: u32) -> bool {
        self.0 & ((1u64 << GENERATION_SHIFT) - 1) == (set as u64) << SET_SHIFT | MEMBER
    }

    pub(crate) const fn no_member(self) -> Self {
        Self(self.0 & !MEMBER)
    }

    #[inline]
    pub(crate) const fn status(self) -> Status {
        match self.0 & ((1 << STATUS_BITS) - 1) {
            1 => Status::Live,
            2 => Status::Parked,
            _ => Status::Vacant,
        }
    }

    #[inline]
    pub(crate) const fn generation(self) -> u64 {
        self.0 >> GENERATION_SHIFT
    }

    /// The set's index.
    #[inline]
    pub(crate) const fn set(self) -> u32 {
        (self.0 >> SET_SHIFT) as u32 & (MAX_SETS - 1)
    }

    /// Whether something besides its lease matters to a free: references, subscribers, a number
    /// from elsewhere, or that its set keeps the lease. Then the record has to be looked at.
    #[inline]
    pub(crate) const fn is_busy(self) -> bool {
        self.0 & BUSY != 0
    }

    /// Live, and not busy.
    #[inline]
    pub(crate) const fn is_idle(self) -> bool {
        self.0 & (BUSY | ((1 << STATUS_BITS) - 1)) == Status::Live as u64
    }

    #[inline]
    pub(crate) const fn busy(self) -> Self {
        Self(self.0 | BUSY)
    }

    #[inline]
    pub(crate) const fn parked(self) -> Self {
        Self(self.0 & !((1 << STATUS_BITS) - 1) | Status::Parked as u64)
    }

    /// Vacant, and as after a birth otherwise: the set is still the one of the life that is over,
    /// and the generation the one that the next life counts from.
    #[inline]
    pub(crate) const fn vacated(self) -> Self {
        Self(self.0 & !(BUSY | ((1 << STATUS_BITS) - 1)))
    }
}

impl From<u64> for State {
    #[inline]
    fn from(word: u64) -> Self {
        Self(word)
    }
}

impl From<State> for u64 {
    #[inline]
    fn from(state: State) -> Self {
        state.0
    }
}

impl core::fmt::Debug for State {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "{:?}", self.status())?;
        write!(f, "{{set {}, life {}", self.set(), self.generation())?;
        f.write_str(if self.is_busy() { ", busy}" } else { "}" })
    }
}
