//! The memory map: which guest physical addresses are memory, and where that memory is.

use alloc::sync::Arc;
use alloc::vec::Vec;

use crate::{Access, Backing, Gpa, GuestMemory, HeapMemory, MemError, Range, Window};

/// A range of guest physical addresses and the host memory behind it.
#[derive(Clone, Debug)]
pub struct Segment {
    /// Guest physical addresses.
    pub range: Range<Gpa>,
    /// The host memory.
    pub backing: Arc<dyn Backing>,
    /// Where in `backing` the range starts, in bytes.
    pub offset: usize,
    /// The most that an access may do here.
    pub access: Access,
}

/// Why a list of segments is no memory map. The caller's mistake, or that of whoever it repeats.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum LayoutError {
    /// The range from `gpa` has no byte, or passes the end of the address space.
    #[error("the range at {gpa} is empty or wraps around")]
    BadRange {
        /// Its first address.
        gpa: Gpa,
    },
    /// Two ranges share `gpa`.
    #[error("two ranges share guest address {gpa}")]
    Overlap {
        /// The first address they share.
        gpa: Gpa,
    },
    /// The range at `gpa` passes the end of its backing.
    #[error("the range at {gpa} passes the end of its backing of {backing} bytes")]
    PastBacking {
        /// First address of the range.
        gpa: Gpa,
        /// Length of the backing in bytes.
        backing: usize,
    },
    /// The range at `gpa` allows writes, its backing does not.
    #[error("the range at {gpa} allows writes over a read-only backing")]
    ReadOnlyBacking {
        /// First address of the range.
        gpa: Gpa,
    },
    /// The allocator has no room for the range at `gpa`.
    #[error("no memory for the range at {gpa}")]
    OutOfMemory {
        /// First address of the range.
        gpa: Gpa,
    },
}

/// An immutable snapshot of a virtual machine's memory: cheap to clone, and every clone keeps
/// the memory alive. A change of the guest's memory is a new map.
#[derive(Clone, Debug, Default)]
pub struct MemoryMap {
    /// By address, free of overlaps, and with neighbours merged where one window can cover both.
    segments: Arc<[Segment]>,
}

impl MemoryMap {
    /// The map of `segments`, in any order.
    ///
    /// # Errors
    ///
    /// See [`LayoutError`]; ranges may touch but not overlap.
    pub fn new(mut segments: Vec<Segment>) -> Result<Self, LayoutError> {
        segments.iter().try_for_each(check)?;
        segments.sort_unstable_by_key(|segment| segment.range.start);
        for pair in segments.windows(2) {
            if pair[0].range.overlaps(&pair[1].range) {
                return Err(LayoutError::Overlap { gpa: pair[1].range.start });
            }
        }
        Ok(Self::from_disjoint(segments))
    }

    /// The map of segments that are sorted, disjoint, and pass [`check`].
    pub(crate) fn from_disjoint(mut segments: Vec<Segment>) -> Self {
        segments.dedup_by(|next, kept| merge(kept, next));
        Self { segments: segments.into() }
    }

    /// A map of zeroed memory of its own: each range is its first address and its bytes.
    ///
    /// # Errors
    ///
    /// A range that is empty, wraps, overlaps another or cannot be allocated.
    ///
    /// ```
    /// use mem::{Gpa, GuestMemory, MemoryMap};
    ///
    /// let memory = MemoryMap::anonymous(&[(Gpa(0), 0x4000), (Gpa(1 << 32), 0x1000)]).unwrap();
    /// memory.store_u64(Gpa(1 << 32), 42).unwrap();
    /// assert_eq!(memory.load_u64(Gpa(1 << 32)), Ok(42));
    /// assert!(memory.load_u64(Gpa(0x4000)).is_err());
    /// ```
    pub fn anonymous(ranges: &[(Gpa, u64)]) -> Result<Self, LayoutError> {
        let segment = |&(gpa, len): &(Gpa, u64)| {
            let range = Range::<Gpa>::new(gpa, len).ok_or(LayoutError::BadRange { gpa })?;
            let memory = usize::try_from(len).ok().and_then(HeapMemory::new);
            let backing = Arc::new(memory.ok_or(LayoutError::OutOfMemory { gpa })?);
            Ok(Segment { range, backing, offset: 0, access: Access::Write })
        };
        Self::new(ranges.iter().map(segment).collect::<Result<_, _>>()?)
    }

    /// The segments by address; neighbours that one window covers appear as one.
    pub fn segments(&self) -> &[Segment] {
        &self.segments
    }

    /// The segment that holds `gpa`.
    pub fn find(&self, gpa: Gpa) -> Option<&Segment> {
        let after = self.segments.partition_point(|segment| segment.range.start <= gpa);
        let segment = self.segments.get(after.checked_sub(1)?)?;
        segment.range.contains(gpa).then_some(segment)
    }
}

impl GuestMemory for MemoryMap {
    fn window(&self, gpa: Gpa, len: usize, access: Access) -> Result<Window<'_>, MemError> {
        if len == 0 {
            // SAFETY: no byte is ever reached through a window of length zero.
            return Ok(unsafe { Window::new(core::ptr::NonNull::dangling(), 0, access) });
        }
        let segment = self.find(gpa).ok_or(MemError::Unmapped { gpa })?;
        if access == Access::Write && segment.access != Access::Write {
            return Err(MemError::ReadOnly { gpa });
        }
        // `check` made sure that the whole range lies inside the backing, so both fit a `usize`.
        let skip = (gpa.0 - segment.range.start.0) as usize;
        let left = (segment.range.last.0 - gpa.0) as usize;
        let len = (len - 1).min(left) + 1;
        // SAFETY: `offset + skip + len` is at most the backing's length, by `check`.
        let base = unsafe { segment.backing.base().add(segment.offset + skip) };
        // SAFETY: the bytes lie inside the backing, whose contract is this one's; the backing
        // allows writes if the segment does, by `check`; and the map, which the window borrows,
        // keeps it alive.
        Ok(unsafe { Window::new(base, len, access) })
    }
}

/// Whether the range lies inside its backing and allows no more than it.
pub(crate) fn check(segment: &Segment) -> Result<(), LayoutError> {
    let gpa = segment.range.start;
    let backing = segment.backing.len();
    // The fields of a range are public, so the order of its ends is checked here again.
    if segment.range.last < gpa {
        return Err(LayoutError::BadRange { gpa });
    }
    let last = usize::try_from(segment.range.len_minus_one())
        .ok()
        .and_then(|len_minus_one| segment.offset.checked_add(len_minus_one));
    if last.is_none_or(|last| last >= backing) {
        return Err(LayoutError::PastBacking { gpa, backing });
    }
    if segment.access == Access::Write && segment.backing.access() != Access::Write {
        return Err(LayoutError::ReadOnlyBacking { gpa });
    }
    Ok(())
}

/// Lets `kept` take in `next`, which follows it in the list, if the two are one piece of memory.
fn merge(kept: &mut Segment, next: &mut Segment) -> bool {
    let len_minus_one = kept.range.len_minus_one();
    let touching = kept.range.last.checked_add(1) == Some(next.range.start)
        && kept.offset as u64 + len_minus_one + 1 == next.offset as u64;
    let one = touching && kept.access == next.access && Arc::ptr_eq(&kept.backing, &next.backing);
    if one {
        kept.range.last = next.range.last;
    }
    one
}

#[cfg(test)]
mod tests;
