//! Which numbers are out: a bitmap cut into leaves, made when first needed.

use alloc::boxed::Box;
use alloc::collections::TryReserveError;
use alloc::vec::Vec;

use crate::config::Geometry;

const WORD_BITS: usize = u64::BITS as usize;

/// The numbers of a space; single-owner, so it lives under the space's lock.
#[derive(Debug)]
pub(crate) struct Numbers {
    geometry: Geometry,
    /// Sorted and disjoint.
    reserved: Vec<(u32, u32)>,
    /// One bit a leaf: set when the leaf has nothing to give.
    full: Box<[u64]>,
    /// One bit a number, set when it is out or reserved. No leaf: none of it was ever out.
    leaves: Box<[Option<Box<[u64]>>]>,
}

impl Numbers {
    pub(crate) fn new(
        geometry: Geometry,
        reserved: Vec<(u32, u32)>,
    ) -> Result<Self, TryReserveError> {
        let leaves = filled(geometry.leaf_count(), || None)?;
        let mut full = filled(geometry.leaf_count().div_ceil(WORD_BITS), || 0)?;
        // Leaves that are reserved whole are never made.
        for &(min, max) in &reserved {
            let first = geometry.leaf_of(min + (geometry.leaf_len() as u32 - 1));
            for leaf in first..geometry.leaf_of(max + 1) {
                full[leaf / WORD_BITS] |= 1 << (leaf % WORD_BITS);
            }
        }
        Ok(Self { geometry, reserved, full, leaves })
    }

    /// Takes the lowest free number of `min..=max`; `None` if there is none.
    pub(crate) fn take(&mut self, min: u32, max: u32) -> Result<Option<u32>, TryReserveError> {
        let (first, last) = (self.geometry.leaf_of(min), self.geometry.leaf_of(max));
        let mut from = first;
        while let Some(leaf) = first_clear(&self.full, from, last) {
            let low = if leaf == first { self.geometry.index_of(min) } else { 0 };
            let high = if leaf == last {
                self.geometry.index_of(max)
            } else {
                self.geometry.leaf_len() - 1
            };
            if let Some(index) = self.take_in(leaf, low, high)? {
                return Ok(Some((leaf * self.geometry.leaf_len() + index) as u32));
            }
            from = leaf + 1;
        }
        Ok(None)
    }

    /// Gives back a number that [`Numbers::take`] gave out.
    pub(crate) fn put(&mut self, number: u32) {
        let (leaf, index) = (self.geometry.leaf_of(number), self.geometry.index_of(number));
        if let Some(words) = self.leaves.get_mut(leaf).and_then(Option::as_mut) {
            debug_assert!(is_set(words, index), "a number came back that was not out");
            words[index / WORD_BITS] &= !(1 << (index % WORD_BITS));
            self.full[leaf / WORD_BITS] &= !(1 << (leaf % WORD_BITS));
        }
    }

    fn take_in(
        &mut self,
        leaf: usize,
        low: usize,
        high: usize,
    ) -> Result<Option<usize>, TryReserveError> {
        let words = match &mut self.leaves[leaf] {
            Some(words) => words,
            empty => empty.insert(new_leaf(self.geometry, &self.reserved, leaf)?),
        };
        let taken = first_clear(words, low, high);
        if let Some(index) = taken {
            words[index / WORD_BITS] |= 1 << (index % WORD_BITS);
        }
        if words.iter().all(|&word| word == u64::MAX) {
            self.full[leaf / WORD_BITS] |= 1 << (leaf % WORD_BITS);
        }
        Ok(taken)
    }
}

/// The bits of a leaf of which only reserved numbers (and what pads its last word) are out.
fn new_leaf(
    geometry: Geometry,
    reserved: &[(u32, u32)],
    leaf: usize,
) -> Result<Box<[u64]>, TryReserveError> {
    let len = geometry.leaf_len();
    let mut words = filled(len.div_ceil(WORD_BITS), || 0)?;
    let base = (leaf * len) as u32;
    let last = base + (len as u32 - 1);
    for &(min, max) in reserved.iter().filter(|&&(min, max)| min <= last && base <= max) {
        for number in min.max(base)..=max.min(last) {
            let index = geometry.index_of(number);
            words[index / WORD_BITS] |= 1 << (index % WORD_BITS);
        }
    }
    if len < WORD_BITS {
        words[0] |= u64::MAX << len;
    }
    Ok(words)
}

fn is_set(words: &[u64], index: usize) -> bool {
    words[index / WORD_BITS] >> (index % WORD_BITS) & 1 == 1
}

/// The first bit from `low` to `high`, both included, that is clear.
fn first_clear(words: &[u64], low: usize, high: usize) -> Option<usize> {
    if low > high {
        return None;
    }
    let mut mask = u64::MAX << (low % WORD_BITS);
    for (at, word) in words.iter().enumerate().take(high / WORD_BITS + 1).skip(low / WORD_BITS) {
        let clear = !word & mask;
        if clear != 0 {
            let bit = at * WORD_BITS + clear.trailing_zeros() as usize;
            return (bit <= high).then_some(bit);
        }
        mask = u64::MAX;
    }
    None
}

/// `len` values, or an error where a plain `collect` would abort.
pub(crate) fn filled<V>(len: usize, value: impl FnMut() -> V) -> Result<Box<[V]>, TryReserveError> {
    let mut values = Vec::new();
    values.try_reserve_exact(len)?;
    values.extend(core::iter::repeat_with(value).take(len));
    Ok(values.into_boxed_slice())
}

#[cfg(test)]
mod tests;
