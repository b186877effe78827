//! How a space is cut: at compile time, so that shifts are immediates, and so that loom explores
//! the very same code on a space of four numbers.

use core::fmt::Debug;

mod sealed {
    pub trait Sealed {}
}

/// What [`Geometry`] says; implemented by nothing else.
pub trait Shape: sealed::Sealed + Copy + Debug + Send + Sync + 'static {
    /// Numbers of one leaf of the table, as a power of two.
    const LEAF_BITS: u32;
    /// Numbers that a shard draws from the space at one time, and frees that it gathers before it
    /// asks whether readers have gone.
    const BATCH: usize;
}

/// Leaves of `1 << LEAF_BITS` numbers, and shards that draw `BATCH` numbers at a time.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Geometry<const LEAF_BITS: u32 = 10, const BATCH: usize = 64>;

impl<const LEAF_BITS: u32, const BATCH: usize> sealed::Sealed for Geometry<LEAF_BITS, BATCH> {}

impl<const LEAF_BITS: u32, const BATCH: usize> Shape for Geometry<LEAF_BITS, BATCH> {
    const LEAF_BITS: u32 = {
        assert!(LEAF_BITS <= 16, "a leaf of more than 65536 numbers");
        LEAF_BITS
    };
    const BATCH: usize = {
        assert!(BATCH >= 1 && BATCH <= 64, "a batch is 1 to 64 numbers: a word of the bitmap");
        BATCH
    };
}

/// The leaf that holds `number`.
#[inline]
pub(crate) const fn leaf_of<G: Shape>(number: u32) -> usize {
    (number >> G::LEAF_BITS) as usize
}

/// Where in its leaf `number` is; always inside the leaf.
#[inline]
pub(crate) const fn index_of<G: Shape>(number: u32) -> usize {
    number as usize & (leaf_len::<G>() - 1)
}

pub(crate) const fn leaf_len<G: Shape>() -> usize {
    1 << G::LEAF_BITS
}
