//! The space itself: who owns which number, and when it comes back.

use alloc::collections::VecDeque;
use alloc::sync::Arc;
use core::fmt;
use core::ops::{Deref, RangeInclusive};

use crate::config::{Config, ConfigError};
use crate::epoch::Epochs;
use crate::numbers::Numbers;
use crate::reader::Reader;
use crate::sync::Mutex;
use crate::table::{Table, Tag};
use crate::Ioasid;

/// Most parked numbers that one free releases. More than one, so that a backlog shrinks; bounded,
/// so that no caller pays for all of it.
const RELEASES_PER_FREE: usize = 2;

/// Why no number was handed out. Nothing has changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum AllocError {
    /// The range holds no number of the space.
    #[error("no number of the space (0 to {last:#x}) is in {min:#x}..={max:#x}")]
    EmptyRange {
        /// First number asked for.
        min: u32,
        /// Last number asked for.
        max: u32,
        /// Largest number of the space.
        last: u32,
    },
    /// Every number of the range is live, parked or reserved.
    #[error("every number in {min:#x}..={max:#x} is taken")]
    RangeFull {
        /// First number asked for.
        min: u32,
        /// Last number asked for.
        max: u32,
    },
    /// As many numbers are out as the space may give, wherever they lie.
    #[error("all {capacity} numbers of the space are out")]
    OutOfCapacity {
        /// Most numbers that may be out at one time.
        capacity: u32,
    },
    /// There was no memory for this part of the table.
    #[error("no memory for this part of the ID table")]
    NoMemory,
}

/// What is out, at one moment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Usage {
    /// Numbers with a lease, or being allocated.
    pub live: u32,
    /// Numbers whose lease is gone but which something may still name.
    pub parked: u32,
    /// Most numbers that may be out (live or parked) at one time.
    pub capacity: u32,
}

/// An ID space with data of type `T` for each ID. Clones are the same space.
pub struct Space<T> {
    pub(crate) shared: Arc<Shared<T>>,
}

#[derive(Debug)]
pub(crate) struct Shared<T> {
    pub(crate) table: Table<T>,
    pub(crate) epochs: Arc<Epochs>,
    last: u32,
    capacity: u32,
    writer: Mutex<Writer>,
}

/// What allocating and freeing calls share.
#[derive(Debug)]
struct Writer {
    numbers: Numbers,
    live: u32,
    /// Numbers that have left `live` and are not back in `numbers`.
    parked: u32,
    /// Parked numbers in the order of their frees. Never longer than `live + parked`, for which
    /// room is made when a number is allocated: a free allocates nothing.
    queue: VecDeque<Parked>,
}

#[derive(Debug)]
struct Parked {
    id: Ioasid,
    retired: u64,
}

impl<T> Space<T> {
    /// An empty space.
    pub fn new(config: Config) -> Result<Self, ConfigError> {
        let checked = config.check()?;
        let last = checked.geometry.last();
        let capacity = checked.capacity;
        let table = Table::new(checked.geometry).map_err(|_| ConfigError::NoMemory)?;
        let numbers =
            Numbers::new(checked.geometry, checked.reserved).map_err(|_| ConfigError::NoMemory)?;
        let writer = Mutex::new(Writer { numbers, live: 0, parked: 0, queue: VecDeque::new() });
        let epochs = Arc::new(Epochs::new());
        Ok(Self { shared: Arc::new(Shared { table, epochs, last, capacity, writer }) })
    }

    /// Hands out the lowest free number of `range` (cut at the end of the space) with its data.
    ///
    /// Lowest first is exact among calls that do not overlap in time.
    pub fn alloc(&self, range: RangeInclusive<u32>, data: T) -> Result<Lease<T>, AllocError> {
        self.alloc_with(range, |_| data)
    }

    /// Like [`Space::alloc`], for data that has to know its own number.
    ///
    /// `data` runs with no lock held, before anyone can find the ID. If it panics, the number
    /// goes back.
    pub fn alloc_with(
        &self,
        range: RangeInclusive<u32>,
        data: impl FnOnce(Ioasid) -> T,
    ) -> Result<Lease<T>, AllocError> {
        let claim = self.shared.claim(*range.start(), *range.end())?;
        let id = claim.id;
        let data = data(id);
        // SAFETY: the claim owns the number and prepared its slot. The slot is vacant: it was
        // never used, or whoever gave the number back took the data out first.
        let tag = unsafe { self.shared.table.publish(id, data) };
        claim.keep();
        Ok(Lease { shared: self.shared.clone(), tag })
    }

    /// A reader of this space, for one thread or processor at a time.
    pub fn reader(&self) -> Reader<T> {
        Reader::new(self.shared.clone())
    }

    /// What is out now.
    pub fn usage(&self) -> Usage {
        let writer = self.shared.writer.lock();
        Usage { live: writer.live, parked: writer.parked, capacity: self.shared.capacity }
    }

    /// Releases every parked number that nothing can name any more. Allocating and freeing do so
    /// by themselves, a few at a time; call this to have the data dropped on an idle space.
    pub fn release_parked(&self) {
        // No more than were parked when the call began, so that other threads' frees cannot keep
        // this one here.
        for _ in 0..self.usage().parked {
            if !self.shared.release_one() {
                break;
            }
        }
    }
}

impl<T> Clone for Space<T> {
    fn clone(&self) -> Self {
        Self { shared: self.shared.clone() }
    }
}

impl<T> fmt::Debug for Space<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Space")
            .field("last", &self.shared.last)
            .field("usage", &self.usage())
            .finish_non_exhaustive()
    }
}

impl<T> Shared<T> {
    /// Takes a free number of `min..=max` out of the bitmap, releasing parked ones if need be.
    fn claim(&self, min: u32, max: u32) -> Result<Claim<'_, T>, AllocError> {
        if min > max || min > self.last {
            return Err(AllocError::EmptyRange { min, max, last: self.last });
        }
        loop {
            let refusal = match self.try_claim(min, max.min(self.last)) {
                Ok(id) => return Ok(Claim { shared: self, id }),
                Err(refusal) => refusal,
            };
            // Ends: each turn releases a number, and one that others take meanwhile is out again.
            if !self.release_one() {
                return Err(refusal);
            }
        }
    }

    fn try_claim(&self, min: u32, max: u32) -> Result<Ioasid, AllocError> {
        let mut writer = self.writer.lock();
        let out = writer.live + writer.parked;
        if out >= self.capacity {
            return Err(AllocError::OutOfCapacity { capacity: self.capacity });
        }
        let room = out as usize + 1 - writer.queue.len();
        writer.queue.try_reserve(room).map_err(|_| AllocError::NoMemory)?;
        let number = writer.numbers.take(min, max).map_err(|_| AllocError::NoMemory)?;
        let id = Ioasid(number.ok_or(AllocError::RangeFull { min, max })?);
        if self.table.prepare(id).is_err() {
            writer.numbers.put(id.0);
            return Err(AllocError::NoMemory);
        }
        writer.live += 1;
        Ok(id)
    }

    /// Parks the number of a lease that is going.
    fn park(&self, tag: Tag) {
        self.table.unlink(tag);
        let mut writer = self.writer.lock();
        writer.live -= 1;
        writer.parked += 1;
        let retired = self.epochs.retire();
        writer.queue.push_back(Parked { id: tag.id, retired });
        drop(writer);
        for _ in 0..RELEASES_PER_FREE {
            if !self.release_one() {
                break;
            }
        }
    }

    /// Releases the number that was parked first, if nothing can name it any more. Its data is
    /// dropped with no lock held, and before the number is free: data may well be what stands for
    /// the number elsewhere.
    fn release_one(&self) -> bool {
        let mut writer = self.writer.lock();
        // Asked under the lock, so that the number was unlinked before.
        let Some(&Parked { id, retired }) = writer.queue.front() else { return false };
        if !self.epochs.has_passed(retired) {
            return false;
        }
        writer.queue.pop_front();
        drop(writer);
        let _back = Release { shared: self, id };
        // SAFETY: whoever takes a number off the queue owns it; its slot was parked by `unlink`;
        // and `has_passed` says that every reader from before that has gone.
        drop(unsafe { self.table.take(id) });
        true
    }
}

/// A number that is out of the bitmap and not yet published; goes back if dropped.
struct Claim<'s, T> {
    shared: &'s Shared<T>,
    id: Ioasid,
}

impl<T> Claim<'_, T> {
    /// The number now belongs to a lease.
    fn keep(self) {
        core::mem::forget(self);
    }
}

impl<T> Drop for Claim<'_, T> {
    fn drop(&mut self) {
        let mut writer = self.shared.writer.lock();
        writer.live -= 1;
        writer.numbers.put(self.id.0);
    }
}

/// A parked number whose data is being dropped; goes back when that is over, by return or panic.
struct Release<'s, T> {
    shared: &'s Shared<T>,
    id: Ioasid,
}

impl<T> Drop for Release<'_, T> {
    fn drop(&mut self) {
        let mut writer = self.shared.writer.lock();
        writer.parked -= 1;
        writer.numbers.put(self.id.0);
    }
}

/// The right to a number. Dropping it, or [`Lease::free`], gives the number back; nothing else
/// does. It dereferences to the ID's data.
#[must_use = "dropping a lease frees its number at once"]
pub struct Lease<T> {
    shared: Arc<Shared<T>>,
    tag: Tag,
}

impl<T> Lease<T> {
    /// The number.
    pub fn id(&self) -> Ioasid {
        self.tag.id
    }

    /// The number and which of its lives this lease is.
    pub fn tag(&self) -> Tag {
        self.tag
    }

    /// Gives the number back. No find that begins after this returns it; it is handed out again
    /// once every guard from before has gone and its data has been dropped.
    pub fn free(self) {
        drop(self);
    }
}

impl<T> Deref for Lease<T> {
    type Target = T;

    fn deref(&self) -> &T {
        // SAFETY: the ID is live until this lease is dropped, and the reference borrows the lease.
        unsafe { self.shared.table.leased(self.tag) }
    }
}

impl<T> Drop for Lease<T> {
    fn drop(&mut self) {
        self.shared.park(self.tag);
    }
}

impl<T: fmt::Debug> fmt::Debug for Lease<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lease").field("id", &self.tag.id).field("data", &**self).finish()
    }
}
