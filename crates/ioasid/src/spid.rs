//! SPIDs: numbers that IDs have inside their set, such as the PASIDs that a guest sees.
//!
//! ```text
//!   set ──► directory ──► leaf ──► number ──► slot (as a find does)
//!           *leaf or null          or NONE
//! ```
//!
//! A set's directory and its leaves are made when a SPID first needs them and go with the set. An
//! entry is claimed under no lock but the one of the ID's shard, by an exchange that only one
//! attach can win; it is cleared when the SPID is detached, or when the ID is released, before its
//! number is free. That order is what lets a find tell a stale entry: whoever sees the number's
//! next life sees the entry cleared.

use alloc::boxed::Box;
use core::fmt;
use core::ptr;

use crate::geometry::Shape;
use crate::lease::{Held, Keeper, Lease, Ref};
use crate::memory::{filled, NoMemory};
use crate::reader::Guard;
use crate::record::{Record, NONE};
use crate::set::SetCore;
use crate::sets::Set;
use crate::space::Shared;
use crate::state::Status;
use crate::sync::{AtomicPtr, AtomicU32, Ordering};
use crate::{Ioasid, Tag};

/// Widest SPID, in bits: that of a PASID on PCI Express.
pub const MAX_SPID_WIDTH: u32 = 20;

/// A number that an ID has inside its set. Never to be mistaken for an [`Ioasid`]: what it means
/// depends on the set, and the same SPID is another ID's in another set.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(transparent)]
pub struct Spid(pub u32);

impl fmt::Display for Spid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SPID {:#x}", self.0)
    }
}

/// Why a SPID was not attached or detached. Nothing has changed.
///
/// When several are true, the first of these is told, but for [`SpidError::NoMemory`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum SpidError {
    /// The SPID is wider than the space's SPIDs are.
    #[error("{spid} is over {last:#x}")]
    Invalid {
        /// What was asked for.
        spid: Spid,
        /// Largest SPID.
        last: u32,
    },
    /// The ID is of another set, of none, or of another space.
    #[error("{0} does not belong to the set")]
    ForeignSet(Ioasid),
    /// The ID is freed: nothing new begins with it.
    #[error("{0} is freed, and waits for those who hold it")]
    Parked(Ioasid),
    /// The ID has a SPID, be it this one.
    #[error("{id} has {spid} already")]
    HasSpid {
        /// The ID.
        id: Ioasid,
        /// What it has.
        spid: Spid,
    },
    /// Another ID of the set has the SPID, and has it until it is released or detached.
    #[error("{spid} is that of {id}")]
    InUse {
        /// What was asked for.
        spid: Spid,
        /// Whose it is.
        id: Ioasid,
    },
    /// The ID has no SPID that could be detached.
    #[error("{0} has no SPID")]
    NoSpid(Ioasid),
    /// There was no memory for this part of the set's SPIDs.
    #[error("no memory for this part of the set's SPIDs")]
    NoMemory,
}

impl<T, G: Shape> Set<T, G> {
    /// Makes `spid` the number of a live ID inside this set, so that [`Guard::find_by_spid`] finds
    /// it. The ID keeps it until it is released (freed, and named by nobody any more) or
    /// [`Set::detach_spid`]; until then no other ID of the set can have it.
    ///
    /// The first SPID of a set costs the set a table of 8 KiB, and the first one of each 1024 in a
    /// row another 4 KiB (for a space with the usual geometry and width), until the set is gone:
    /// 4 MiB and 8 KiB at most, whatever its owner attaches and detaches.
    ///
    /// ```
    /// use ioasid::{Config, Owner, SetType, Space, Spid};
    ///
    /// let space = Space::new(Config::default())?;
    /// let guest = space.create_set("guest 3", SetType::Owned(Owner::new("guest 3")), 64)?;
    /// let lease = guest.alloc(1..=0xfffff, "its page tables")?;
    /// guest.attach_spid(&lease, Spid(5))?;
    ///
    /// let reader = space.reader();
    /// let guard = reader.pin();
    /// assert_eq!(guard.find_by_spid(&guest, Spid(5)), Some((&"its page tables", lease.tag())));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// [`SpidError`].
    pub fn attach_spid<'k>(
        &self,
        keeper: impl Into<Keeper<'k, T, G>>,
        spid: Spid,
    ) -> Result<(), SpidError>
    where
        T: 'k,
    {
        let last = self.core.spids.last;
        if spid.0 > last {
            return Err(SpidError::Invalid { spid, last });
        }
        let held = self.own(keeper.into())?;
        // With no lock held; what is made for nothing is there for the next.
        let room = self.core.spids.prepare(spid.0).map_err(|NoMemory| SpidError::NoMemory);
        let (id, home) = (held.tag().id, held.home());
        let _inside = self.shared.shards[home].lock();
        let state = self.shared.table.state(id.0);
        if state.status() != Status::Live {
            return Err(SpidError::Parked(id));
        }
        let record = self.shared.table.record(id.0);
        if let Some(spid) = record.spid() {
            return Err(SpidError::HasSpid { id, spid });
        }
        let entry = room?;
        entry
            .compare_exchange(NONE, id.0, Ordering::AcqRel, Ordering::Acquire)
            .map_err(|other| SpidError::InUse { spid, id: Ioasid(other) })?;
        record.spid.set(spid.0);
        // So that its release looks at the record.
        self.shared.table.set_state(id.0, state.busy());
        Ok(())
    }

    /// Takes an ID's SPID away, also when the ID is freed already; gives the SPID, which is free
    /// for another ID from now on.
    ///
    /// # Errors
    /// [`SpidError::ForeignSet`], [`SpidError::NoSpid`].
    pub fn detach_spid<'k>(&self, keeper: impl Into<Keeper<'k, T, G>>) -> Result<Spid, SpidError>
    where
        T: 'k,
    {
        let held = self.own(keeper.into())?;
        let id = held.tag().id;
        let _inside = self.shared.shards[held.home()].lock();
        let record = self.shared.table.record(id.0);
        self.core.forget_spid(record).ok_or(SpidError::NoSpid(id))
    }

    /// The hold, if what it holds is an ID of this set. That stays so while it is held.
    fn own<'k>(&self, keeper: Keeper<'k, T, G>) -> Result<&'k Held<T, G>, SpidError> {
        let held = keeper.0;
        let id = held.tag().id;
        let mine = held.is_of(self.shared.pointer())
            && self.shared.table.state(id.0).set() == self.core.index;
        mine.then_some(held).ok_or(SpidError::ForeignSet(id))
    }
}

impl<T, G: Shape> Lease<T, G> {
    /// The ID's number inside its set, if one is attached.
    pub fn spid(&self) -> Option<Spid> {
        Keeper::from(self).0.spid()
    }
}

impl<T, G: Shape> Ref<T, G> {
    /// The ID's number inside its set, if one is attached.
    pub fn spid(&self) -> Option<Spid> {
        Keeper::from(self).0.spid()
    }
}

impl<T, G: Shape> Held<T, G> {
    fn spid(&self) -> Option<Spid> {
        let shared = self.shared();
        let _inside = shared.shards[self.home()].lock();
        shared.table.record(self.tag().id.0).spid()
    }
}

impl<T, G: Shape> Guard<'_, T, G> {
    /// The live ID that has this SPID in the set; `None` if none has, it is freed, or the set is
    /// another space's. Takes no lock and writes nothing, as [`Guard::find`].
    ///
    /// What is found stays while the guard lives, so [`Guard::hold`] with the number of the tag
    /// holds this very ID.
    #[inline]
    pub fn find_by_spid(&self, set: &Set<T, G>, spid: Spid) -> Option<(&T, Tag)> {
        if !self.is_of(set) {
            return None;
        }
        // SAFETY: a set's SPIDs are made by a space of its geometry.
        let entry = unsafe { set.core.spids.get_in(spid.0, G::LEAF_BITS) }?;
        let number = entry.load(Ordering::Acquire);
        // `NONE` is no number of any space.
        let (data, state) = self.lookup(Ioasid(number))?;
        // If what was found is the number's next life, the entry was cleared before that began. It
        // cannot have come back since for a life after that: what is found here is not released
        // under this guard. And if the entry changed, there was a moment without one.
        if !cfg!(sabotage = "ioasid-no-spid-recheck") && entry.load(Ordering::Relaxed) != number {
            return None;
        }
        debug_assert_eq!(state.set(), set.core.index);
        Some((data, Tag { id: Ioasid(number), generation: state.generation() }))
    }
}

impl<T, G: Shape> Shared<T, G> {
    /// The SPIDs of a new set.
    pub(crate) fn new_spids(&self) -> Spids {
        Spids::new(self.last_spid, G::LEAF_BITS)
    }
}

impl Record {
    pub(crate) fn spid(&self) -> Option<Spid> {
        Some(Spid(self.spid.get())).filter(|spid| spid.0 != NONE)
    }
}

impl SetCore {
    /// Clears what the record says its SPID is; for the holder of the lock of the ID's shard.
    /// Allocates nothing.
    #[inline]
    pub(crate) fn forget_spid(&self, record: &Record) -> Option<Spid> {
        let spid = record.spid()?;
        record.spid.set(NONE);
        if let Some(entry) = self.spids.get(spid.0) {
            entry.store(NONE, Ordering::Release);
        }
        Some(spid)
    }
}

/// The SPIDs of a set: for each the number of the ID that has it, or [`NONE`].
pub(crate) struct Spids {
    last: u32,
    leaf_bits: u32,
    /// The first of `last >> leaf_bits` and one entries, or null before the first SPID.
    directory: AtomicPtr<AtomicPtr<AtomicU32>>,
}

impl Spids {
    /// None yet, of `0..=last`, in leaves of `1 << leaf_bits`.
    pub(crate) fn new(last: u32, leaf_bits: u32) -> Self {
        Self { last, leaf_bits, directory: AtomicPtr::new(ptr::null_mut()) }
    }

    const fn leaves(&self) -> usize {
        (self.last >> self.leaf_bits) as usize + 1
    }

    const fn leaf_len(&self) -> usize {
        1 << self.leaf_bits
    }

    /// The place of `spid`; `None` if it is too large, or nothing near it was ever attached.
    fn get(&self, spid: u32) -> Option<&AtomicU32> {
        // SAFETY: those are the bits.
        unsafe { self.get_in(spid, self.leaf_bits) }
    }

    /// [`Spids::get`] where the compiler knows the bits of a leaf: a sixth less for a find that
    /// misses no cache.
    ///
    /// # Safety
    ///
    /// `leaf_bits` is what [`Spids::new`] was given.
    #[inline]
    unsafe fn get_in(&self, spid: u32, leaf_bits: u32) -> Option<&AtomicU32> {
        debug_assert_eq!(leaf_bits, self.leaf_bits);
        if spid > self.last {
            return None;
        }
        let directory = self.directory.load(Ordering::Acquire);
        if directory.is_null() {
            return None;
        }
        // SAFETY: `spid` is at most `last`, so this is one of the directory's entries.
        let leaf = unsafe { directory.add((spid >> leaf_bits) as usize) };
        // SAFETY: the directory stays, whole, until `self` is dropped.
        let leaf = unsafe { &*leaf }.load(Ordering::Acquire);
        if leaf.is_null() {
            return None;
        }
        // SAFETY: the index is below the length of a leaf.
        let entry = unsafe { leaf.add(spid as usize & ((1 << leaf_bits) - 1)) };
        // SAFETY: leaves stay until `self` is dropped.
        Some(unsafe { &*entry })
    }

    /// The place of `spid`, which is at most `last`; made if it is not there.
    fn prepare(&self, spid: u32) -> Result<&AtomicU32, NoMemory> {
        if let Some(entry) = self.get(spid) {
            return Ok(entry);
        }
        let directory = make(&self.directory, self.leaves(), || AtomicPtr::new(ptr::null_mut()))?;
        // SAFETY: as in `get`.
        let leaf = unsafe { directory.add((spid >> self.leaf_bits) as usize) };
        // SAFETY: as in `get`.
        make(unsafe { &*leaf }, self.leaf_len(), || AtomicU32::new(NONE))?;
        self.get(spid).ok_or(NoMemory)
    }
}

/// What `place` points to; if to nothing, to `len` new entries from now on. Several may try at the
/// same time: one has its way.
fn make<E>(place: &AtomicPtr<E>, len: usize, entry: impl FnMut() -> E) -> Result<*mut E, NoMemory> {
    let old = place.load(Ordering::Acquire);
    if !old.is_null() {
        return Ok(old);
    }
    let new = Box::into_raw(filled(len, entry)?);
    match place.compare_exchange(old, new.cast(), Ordering::AcqRel, Ordering::Acquire) {
        Ok(_) => Ok(new.cast()),
        Err(theirs) => {
            // SAFETY: it came from a box just now, and nobody saw it.
            drop(unsafe { Box::from_raw(new) });
            Ok(theirs)
        }
    }
}

impl Drop for Spids {
    fn drop(&mut self) {
        let directory = self.directory.load(Ordering::Acquire);
        if directory.is_null() {
            return;
        }
        let directory = ptr::slice_from_raw_parts_mut(directory, self.leaves());
        // SAFETY: it came from a box of that many entries, and `&mut self` says that nothing
        // borrows one.
        let directory = unsafe { Box::from_raw(directory) };
        for leaf in &directory {
            let leaf = leaf.load(Ordering::Acquire);
            if !leaf.is_null() {
                let leaf = ptr::slice_from_raw_parts_mut(leaf, self.leaf_len());
                // SAFETY: as above.
                drop(unsafe { Box::from_raw(leaf) });
            }
        }
    }
}

impl fmt::Debug for Spids {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Spids").field("last", &self.last).finish_non_exhaustive()
    }
}
