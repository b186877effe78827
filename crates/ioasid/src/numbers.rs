//! Which numbers are free and with no shard: a bitmap under a lock, and above it levels of
//! summaries that anybody may read.
//!
//! ```text
//!   summary 1      bit i: summary word i is not empty    ─┐
//!   summary 0      bit i: word i has a free number        ├ atomic, read without the lock
//!   words          bit i: number i is free                ─ made in chunks when first needed
//! ```
//!
//! The next free number is found in a load or two a level, wherever it is, and that a whole range
//! has none is seen as fast.

use alloc::boxed::Box;
use alloc::vec::Vec;

use crate::geometry::Geometry;
use crate::leaves::Leaves;
use crate::memory::{filled, NoMemory};
use crate::sync::{fence, AtomicU64, Mutex, MutexGuard, Ordering};

const WORD: usize = u64::BITS as usize;
/// Words are made in chunks of those below one word of the first summary.
type Chunks = Geometry<6, 1>;

/// The free numbers of a space that no shard has.
#[derive(Debug)]
pub(crate) struct Numbers {
    last: u32,
    summaries: Box<[Box<[AtomicU64]>]>,
    /// Odd while numbers move between here and a shard.
    moves: AtomicU64,
    /// Changed by the holder of the lock alone.
    words: Leaves<AtomicU64, Chunks>,
    /// Sorted and disjoint.
    reserved: Box<[(u32, u32)]>,
    lock: Mutex<()>,
}

impl Numbers {
    /// All of `0..=last` but what is reserved (sorted, disjoint, inside).
    pub(crate) fn new(last: u32, reserved: Vec<(u32, u32)>) -> Result<Self, NoMemory> {
        let words = last as usize / WORD + 1;
        let mut lowest = filled(words.div_ceil(WORD), || u64::MAX)?;
        let initial = |word| initial_word(last, &reserved, word);
        let mut clear = |word: usize| lowest[word / WORD] &= !(1 << (word % WORD));
        (words..words.next_multiple_of(WORD)).for_each(&mut clear);
        for &(min, max) in &reserved {
            let (first, last) = (min as usize / WORD, max as usize / WORD);
            (first..=last).filter(|&word| initial(word) == 0).for_each(&mut clear);
        }
        let mut levels = Vec::new();
        levels.try_reserve_exact(MAX_LEVELS)?;
        levels.push(lowest);
        while let Some(below) = levels.last().filter(|level| level.len() > 1) {
            let mut level = filled(below.len().div_ceil(WORD), || 0)?;
            for (at, _) in below.iter().enumerate().filter(|(_, &word)| word != 0) {
                level[at / WORD] |= 1 << (at % WORD);
            }
            levels.push(level);
        }
        let mut summaries = Vec::new();
        summaries.try_reserve_exact(levels.len())?;
        for level in levels {
            let mut words = level.iter();
            summaries
                .push(filled(level.len(), || AtomicU64::new(words.next().copied().unwrap_or(0)))?);
        }
        Ok(Self {
            last,
            summaries: summaries.into_boxed_slice(),
            moves: AtomicU64::new(0),
            words: Leaves::new(last / WORD as u32)?,
            reserved: reserved.into_boxed_slice(),
            lock: Mutex::new(()),
        })
    }

    /// Begins to move numbers. Until it is dropped, [`Numbers::unmoved_since`] says no.
    pub(crate) fn moving(&self) -> Moving<'_> {
        let lock = self.lock.lock();
        self.moves.store(self.moves.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
        // Who sees what is changed from here on sees the odd count too.
        fence(Ordering::Release);
        Moving { numbers: self, _lock: lock }
    }

    /// A point in time for [`Numbers::unmoved_since`].
    #[inline]
    pub(crate) fn moves(&self) -> u64 {
        self.moves.load(Ordering::Acquire)
    }

    /// Whether no number moved between here and a shard while the caller looked, from `moves`
    /// until now.
    #[inline]
    pub(crate) fn unmoved_since(&self, moves: u64) -> bool {
        if cfg!(sabotage = "ioasid-no-recheck") {
            return true;
        }
        fence(Ordering::Acquire);
        moves % 2 == 0 && self.moves.load(Ordering::Relaxed) == moves
    }

    /// Whether there is certainly none free in `min..=max`. "No" may be wrong where no number was
    /// ever taken.
    #[inline]
    pub(crate) fn surely_none(&self, min: u32, max: u32) -> bool {
        let (first, last) = (min as usize / WORD, max as usize / WORD);
        // Only at the ends may a word have free numbers that are not in the range.
        let none_in = |word: usize| {
            let Some(bits) = self.words.get(word as u32) else { return false };
            bits.load(Ordering::Acquire) & mask(word, min, max) == 0
        };
        let mut next = self.next_word(first);
        if next == Some(first) && none_in(first) {
            next = self.next_word(first + 1);
        }
        next.is_none_or(|word| word > last || word == last && none_in(last))
    }

    /// Whether it is a number that is never handed out.
    pub(crate) fn is_reserved(&self, number: u32) -> bool {
        let from = self.reserved.partition_point(|&(_, max)| max < number);
        self.reserved.get(from).is_some_and(|&(min, _)| min <= number)
    }

    /// The word, made if need be. For the holder of the lock.
    fn word(&self, word: usize) -> Result<&AtomicU64, NoMemory> {
        let mut at = word / WORD * WORD;
        self.words.prepare(word as u32, || {
            at += 1;
            AtomicU64::new(initial_word(self.last, &self.reserved, at - 1))
        })?;
        self.words.get(word as u32).ok_or(NoMemory)
    }

    /// The first word at or after `word` that has a free number.
    #[inline]
    fn next_word(&self, word: usize) -> Option<usize> {
        let mut at = word;
        for (level, words) in self.summaries.iter().enumerate() {
            let bits = words.get(at / WORD)?.load(Ordering::Acquire) >> (at % WORD);
            if bits != 0 {
                at += bits.trailing_zeros() as usize;
                return self.descend(level, at);
            }
            at = at / WORD + 1;
        }
        None
    }

    /// The lowest word under bit `at` of a summary.
    fn descend(&self, level: usize, at: usize) -> Option<usize> {
        self.summaries[..level].iter().rev().try_fold(at, |at, words| {
            let bits = words.get(at)?.load(Ordering::Acquire);
            // Without the lock a summary may be ahead of the one below it; what it covers then is
            // in motion, which `unmoved_since` tells.
            (bits != 0).then(|| at * WORD + bits.trailing_zeros() as usize)
        })
    }

    /// Says in the summaries whether `word` has a free number. For the holder of the lock.
    fn summarise(&self, word: usize, free: bool) {
        let mut at = word;
        for words in &self.summaries {
            let cell = &words[at / WORD];
            let (old, bit) = (cell.load(Ordering::Relaxed), 1 << (at % WORD));
            let new = if free { old | bit } else { old & !bit };
            if new == old {
                return;
            }
            cell.store(new, Ordering::Release);
            // The level above changes only if this word became empty, or was.
            if (if free { old } else { new }) != 0 {
                return;
            }
            at /= WORD;
        }
    }
}

/// Levels that [`MAX_WIDTH`](crate::MAX_WIDTH) bits need at most, above the words.
const MAX_LEVELS: usize = 5;

/// Numbers on their way between the bitmap and a shard, or an allocation.
pub(crate) struct Moving<'n> {
    numbers: &'n Numbers,
    _lock: MutexGuard<'n, ()>,
}

impl Moving<'_> {
    /// Takes the lowest free numbers of `min..=max` that share a word, `limit` at most, and gives
    /// them to `to`, the lowest last. Says how many.
    pub(crate) fn take(
        &mut self,
        min: u32,
        max: u32,
        limit: usize,
        to: impl FnMut(u32),
    ) -> Result<usize, NoMemory> {
        let (numbers, last) = (self.numbers, max as usize / WORD);
        let mut from = min as usize / WORD;
        while let Some(word) = numbers.next_word(from).filter(|&word| word <= last) {
            let cell = numbers.word(word)?;
            let bits = cell.load(Ordering::Relaxed);
            let taken = lowest(bits & mask(word, min, max), limit);
            if taken != 0 {
                cell.store(bits & !taken, Ordering::Release);
                numbers.summarise(word, bits != taken);
                descending(taken).map(|bit| (word * WORD) as u32 + bit).for_each(to);
                return Ok(taken.count_ones() as usize);
            }
            from = word + 1;
        }
        Ok(0)
    }

    /// The lowest free number of `min..=max`.
    pub(crate) fn take_one(&mut self, min: u32, max: u32) -> Result<Option<u32>, NoMemory> {
        let mut one = None;
        self.take(min, max, 1, |number| one = Some(number))?;
        Ok(one)
    }

    /// Ends it; gives the point in time for [`Numbers::unmoved_since`].
    pub(crate) fn end(self) -> u64 {
        let after = self.numbers.moves.load(Ordering::Relaxed) + 1;
        drop(self);
        after
    }

    /// Gives back a number that was taken.
    pub(crate) fn put(&mut self, number: u32) {
        let (word, bit) = (number as usize / WORD, number as usize % WORD);
        // It was made when the number was taken.
        if let Some(cell) = self.numbers.words.get(word as u32) {
            let bits = cell.load(Ordering::Relaxed);
            debug_assert!(bits >> bit & 1 == 0, "number {number} came back that was not out");
            cell.store(bits | 1 << bit, Ordering::Release);
            self.numbers.summarise(word, true);
        }
    }
}

impl Drop for Moving<'_> {
    fn drop(&mut self) {
        let moves = &self.numbers.moves;
        moves.store(moves.load(Ordering::Relaxed) + 1, Ordering::Release);
    }
}

impl Drop for Numbers {
    fn drop(&mut self) {
        self.words.take_leaves().for_each(drop);
    }
}

/// The bits of `word` that are numbers of `min..=max`, which it has some of.
#[inline]
fn mask(word: usize, min: u32, max: u32) -> u64 {
    let low = if word == min as usize / WORD { min as usize % WORD } else { 0 };
    let high = if word == max as usize / WORD { max as usize % WORD } else { WORD - 1 };
    u64::MAX << low & u64::MAX >> (WORD - 1 - high)
}

/// The word as long as none of it was ever out.
fn initial_word(last: u32, reserved: &[(u32, u32)], word: usize) -> u64 {
    let base = (word * WORD) as u64;
    let within = |min: u64, max: u64| {
        let (low, high) = (min.max(base) - base, max.min(base + WORD as u64 - 1) - base);
        u64::MAX << low & u64::MAX >> (WORD as u64 - 1 - high)
    };
    if base > u64::from(last) {
        return 0;
    }
    let overlaps =
        |&&(min, max): &&(u32, u32)| u64::from(min) < base + WORD as u64 && base <= u64::from(max);
    // Sorted: what may overlap is a short run.
    let from = reserved.partition_point(|&(_, max)| u64::from(max) < base);
    let taken = reserved[from..].iter().take_while(overlaps);
    taken
        .fold(within(base, last.into()), |free, &(min, max)| free & !within(min.into(), max.into()))
}

/// The lowest `limit` bits that are set.
fn lowest(bits: u64, limit: usize) -> u64 {
    let mut rest = bits;
    for _ in 0..limit {
        rest &= rest.wrapping_sub(1);
    }
    bits & !rest
}

/// The places of the bits that are set, highest first.
fn descending(mut bits: u64) -> impl Iterator<Item = u32> {
    core::iter::from_fn(move || {
        let bit = bits.checked_ilog2()?;
        bits &= !(1 << bit);
        Some(bit)
    })
}

#[cfg(test)]
mod tests;
