//! What a space looks like, checked once.

use alloc::vec;
use alloc::vec::Vec;
use core::ops::RangeInclusive;

use crate::shard::MAX_SHARDS;
use crate::spid::MAX_SPID_WIDTH;

/// Width of a PASID on PCI Express, and of a space unless told otherwise, in bits.
pub const DEFAULT_WIDTH: u32 = 20;

/// Widest space, in bits.
pub const MAX_WIDTH: u32 = 31;

/// Shards of a space unless told otherwise.
pub const DEFAULT_SHARDS: usize = 16;

/// The shape of a [`Space`](crate::Space).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Config {
    /// Numbers are below `1 << width`; 1 to [`MAX_WIDTH`].
    pub width: u32,
    /// Most numbers out (live or parked) at one time; `None` for as many as are not reserved.
    pub capacity: Option<u32>,
    /// Numbers that are never handed out. They may overlap and reach past the space's end. Zero,
    /// which means "no PASID" to much hardware, is reserved unless this list is replaced by one
    /// without it.
    pub reserved: Vec<RangeInclusive<u32>>,
    /// Parts that allocate and free without sharing a cache line: about one for each processor
    /// that does both at the same time; 1 to [`MAX_SHARDS`].
    pub shards: usize,
    /// SPIDs are below `1 << spid_width`; 1 to [`MAX_SPID_WIDTH`], or `None` for as wide as the
    /// numbers are, up to that.
    pub spid_width: Option<u32>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            width: DEFAULT_WIDTH,
            capacity: None,
            reserved: vec![0..=0],
            shards: DEFAULT_SHARDS,
            spid_width: None,
        }
    }
}

/// Why a [`Config`] is refused. Always the caller's mistake, but for [`ConfigError::NoMemory`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ConfigError {
    /// The width is not between 1 and [`MAX_WIDTH`].
    #[error("a width of {width} bits; 1 to {MAX_WIDTH} are possible")]
    Width {
        /// What was asked for.
        width: u32,
    },
    /// The SPIDs' width is not between 1 and [`MAX_SPID_WIDTH`].
    #[error("SPIDs of {width} bits; 1 to {MAX_SPID_WIDTH} are possible")]
    SpidWidth {
        /// What was asked for.
        width: u32,
    },
    /// A reserved range holds no number.
    #[error("the reserved range {min:#x}..={max:#x} is empty")]
    EmptyReservation {
        /// Its first number.
        min: u32,
        /// Its last number, below the first.
        max: u32,
    },
    /// More is asked for than the space has numbers that are not reserved.
    #[error("a capacity of {capacity}; {available} numbers are not reserved")]
    Capacity {
        /// What was asked for.
        capacity: u32,
        /// What the space can give.
        available: u32,
    },
    /// The number of shards is not between 1 and [`MAX_SHARDS`].
    #[error("{shards} shards; 1 to {MAX_SHARDS} are possible")]
    Shards {
        /// What was asked for.
        shards: usize,
    },
    /// There was no memory for the first level of the table.
    #[error("no memory for the first level of the table")]
    NoMemory,
}

/// A [`Config`] that holds together.
#[derive(Debug)]
pub(crate) struct Checked {
    /// The largest number.
    pub(crate) last: u32,
    /// The largest SPID.
    pub(crate) last_spid: u32,
    pub(crate) capacity: u32,
    /// Sorted, disjoint, inside the space.
    pub(crate) reserved: Vec<(u32, u32)>,
    pub(crate) shards: usize,
}

impl Config {
    pub(crate) fn check(self) -> Result<Checked, ConfigError> {
        if !(1..=MAX_WIDTH).contains(&self.width) {
            return Err(ConfigError::Width { width: self.width });
        }
        if !(1..=MAX_SHARDS).contains(&self.shards) {
            return Err(ConfigError::Shards { shards: self.shards });
        }
        let spid_width = self.spid_width.unwrap_or(self.width.min(MAX_SPID_WIDTH));
        if !(1..=MAX_SPID_WIDTH).contains(&spid_width) {
            return Err(ConfigError::SpidWidth { width: spid_width });
        }
        let (last, last_spid) = ((1 << self.width) - 1, (1 << spid_width) - 1);
        let reserved = merge(self.reserved, last)?;
        let taken: u32 = reserved.iter().map(|&(min, max)| max - min + 1).sum();
        let available = last + 1 - taken; // 1 << 31 at most
        let capacity = self.capacity.unwrap_or(available);
        if capacity > available {
            return Err(ConfigError::Capacity { capacity, available });
        }
        Ok(Checked { last, last_spid, capacity, reserved, shards: self.shards })
    }
}

/// The ranges cut at `last`, sorted, with overlapping and touching ones made one.
fn merge(ranges: Vec<RangeInclusive<u32>>, last: u32) -> Result<Vec<(u32, u32)>, ConfigError> {
    let mut merged: Vec<(u32, u32)> = Vec::new();
    merged.try_reserve_exact(ranges.len()).map_err(|_| ConfigError::NoMemory)?;
    let mut sorted = ranges;
    sorted.sort_unstable_by_key(|range| *range.start());
    for (min, max) in sorted.into_iter().map(RangeInclusive::into_inner) {
        if min > max {
            return Err(ConfigError::EmptyReservation { min, max });
        }
        if min > last {
            continue;
        }
        let max = max.min(last);
        match merged.last_mut() {
            Some(previous) if min <= previous.1.saturating_add(1) => {
                previous.1 = previous.1.max(max);
            }
            _ => merged.push((min, max)),
        }
    }
    Ok(merged)
}
