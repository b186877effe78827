//! The lock-free table: a directory of leaves of slots that never move and never go.
//!
//! ```text
//!   directory            leaf
//!   ┌───────────┐      ┌─────────────────────┬───
//!   │ *Slot     ├─────►│ state │ data        │ ...
//!   ├───────────┤      └─────────────────────┴───
//!   │ null      │        state = generation << 2 | Vacant / Live / Parked
//!   └───────────┘
//! ```
//!
//! A slot is type-stable: once made it stays a slot until the table goes, so a reader may look at
//! its state at any time. The data may be looked at only by a pinned reader that found the state
//! live, or by the number's owner.

use alloc::boxed::Box;
use alloc::collections::TryReserveError;
use core::marker::PhantomData;
use core::mem::MaybeUninit;
use core::ptr;

use crate::config::Geometry;
use crate::epoch::Pin;
use crate::numbers::filled;
use crate::sync::{AtomicPtr, AtomicU64, Ordering, UnsafeCell};
use crate::Ioasid;

/// A number together with which of its lives is meant: tells the ID that was seen from a later
/// one of the same number. A name like the number itself; it grants nothing.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Tag {
    pub(crate) id: Ioasid,
    pub(crate) generation: u64,
}

impl Tag {
    /// The number.
    pub const fn id(self) -> Ioasid {
        self.id
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Status {
    Vacant = 0,
    Live = 1,
    Parked = 2,
}

const STATUS_BITS: u32 = 2;
const STATUS_MASK: u64 = (1 << STATUS_BITS) - 1;

const fn pack(generation: u64, status: Status) -> u64 {
    generation << STATUS_BITS | status as u64
}

const fn is(state: u64, status: Status) -> bool {
    state & STATUS_MASK == status as u64
}

#[derive(Debug)]
struct Slot<T> {
    state: AtomicU64,
    /// Initialised while the state is live or parked.
    data: UnsafeCell<MaybeUninit<T>>,
}

// SAFETY: a shared slot gives out `&T` to any thread and lets another thread take the value out;
// that is what `Sync` and `Send` of `T` allow. The state is atomic, and the data is written only
// while no reader can see it (see `Table`).
unsafe impl<T: Send + Sync> Sync for Slot<T> {}

impl<T> Slot<T> {
    fn vacant() -> Self {
        Self { state: AtomicU64::new(0), data: UnsafeCell::new(MaybeUninit::uninit()) }
    }
}

/// The slots of a space.
///
/// Each number has an *owner* from the moment the space's bitmap gives it out to the moment it
/// goes back: first the allocating call, then the lease, then whoever releases it. Owners change
/// under the space's lock, and only the owner moves a slot from one state to the next.
#[derive(Debug)]
pub(crate) struct Table<T> {
    geometry: Geometry,
    directory: Box<[AtomicPtr<Slot<T>>]>,
    /// The pointers own slots, and the table is `Send` and `Sync` when they are.
    slots: PhantomData<Box<[Slot<T>]>>,
}

impl<T> Table<T> {
    pub(crate) fn new(geometry: Geometry) -> Result<Self, TryReserveError> {
        let directory = filled(geometry.leaf_count(), || AtomicPtr::new(ptr::null_mut()))?;
        Ok(Self { geometry, directory, slots: PhantomData })
    }

    /// Makes sure that `id` has a slot. The caller holds the space's lock, so only one thread is
    /// ever in here; readers may be.
    pub(crate) fn prepare(&self, id: Ioasid) -> Result<(), TryReserveError> {
        let entry = &self.directory[self.geometry.leaf_of(id.0)];
        if entry.load(Ordering::Relaxed).is_null() {
            let leaf: Box<[Slot<T>]> = filled(self.geometry.leaf_len(), Slot::vacant)?;
            entry.store(Box::into_raw(leaf).cast(), Ordering::Release);
        }
        Ok(())
    }

    fn slot(&self, id: Ioasid) -> Option<&Slot<T>> {
        let leaf = self.directory.get(self.geometry.leaf_of(id.0))?.load(Ordering::Acquire);
        if leaf.is_null() {
            return None;
        }
        // SAFETY: a leaf that is not null came from a box of `leaf_len` slots, and `index_of` is
        // below that.
        let slot = unsafe { leaf.add(self.geometry.index_of(id.0)) };
        // SAFETY: leaves are freed only with the table, and slots are never moved or replaced.
        Some(unsafe { &*slot })
    }

    /// Makes `id` findable with `data`, as a new life of the number.
    ///
    /// # Safety
    ///
    /// The caller owns the number, has called [`Table::prepare`] for it, and its slot is vacant.
    pub(crate) unsafe fn publish(&self, id: Ioasid, data: T) -> Tag {
        let slot = self.slot(id).expect("the slot was prepared");
        let state = slot.state.load(Ordering::Relaxed);
        debug_assert!(is(state, Status::Vacant));
        let generation = (state >> STATUS_BITS) + 1;
        slot.data.with_mut(|cell| {
            // SAFETY: the slot is vacant, so no reader looks at the data, and the number is the
            // caller's, so nobody else writes it.
            unsafe { cell.cast::<T>().write(data) };
        });
        slot.state.store(pack(generation, Status::Live), Ordering::Release);
        Tag { id, generation }
    }

    /// Ends the life `tag` of its number: no find that begins now returns it. The data stays.
    pub(crate) fn unlink(&self, tag: Tag) {
        let Some(slot) = self.slot(tag.id) else { return };
        let live = pack(tag.generation, Status::Live);
        debug_assert_eq!(slot.state.load(Ordering::Relaxed), live);
        slot.state.store(pack(tag.generation, Status::Parked), Ordering::Release);
    }

    /// Takes the data of a parked number out and leaves its slot vacant.
    ///
    /// # Safety
    ///
    /// The caller owns the number, its slot is parked, and no reader that was pinned before it
    /// was unlinked is still pinned.
    pub(crate) unsafe fn take(&self, id: Ioasid) -> T {
        let slot = self.slot(id).expect("a parked number has a slot");
        let state = slot.state.load(Ordering::Relaxed);
        debug_assert!(is(state, Status::Parked));
        // SAFETY: a parked slot is initialised; no reader holds a reference to the data (those
        // that might have are gone) and none can find it again; once the state is vacant nobody
        // reads it a second time.
        let data = slot.data.with_mut(|cell| unsafe { cell.cast::<T>().read() });
        slot.state.store(pack(state >> STATUS_BITS, Status::Vacant), Ordering::Release);
        data
    }

    /// The data of the live ID `id` and which life of the number it is.
    ///
    /// # Safety
    ///
    /// The pin is of a participant of this table's space.
    pub(crate) unsafe fn find<'p>(&'p self, id: Ioasid, _pin: &'p Pin<'_>) -> Option<(&'p T, Tag)> {
        let slot = self.slot(id)?;
        let state = slot.state.load(Ordering::Acquire);
        if !is(state, Status::Live) {
            return None;
        }
        let tag = Tag { id, generation: state >> STATUS_BITS };
        // SAFETY: live means initialised, and the acquiring load saw the store that published the
        // data. The data is taken out only after every reader that was pinned when the number was
        // unlinked has gone, so it stays for as long as the pin.
        Some((unsafe { self.data(slot) }, tag))
    }

    /// The data of an ID whose lease the caller borrows.
    ///
    /// # Safety
    ///
    /// `tag` is live, and is not unlinked for as long as the reference is used.
    pub(crate) unsafe fn leased(&self, tag: Tag) -> &T {
        let slot = self.slot(tag.id).expect("a live number has a slot");
        debug_assert_eq!(slot.state.load(Ordering::Relaxed), pack(tag.generation, Status::Live));
        // SAFETY: by the contract the slot is live, and stays so.
        unsafe { self.data(slot) }
    }

    /// # Safety
    ///
    /// The slot is initialised, this thread has seen the store that made it so, and it stays
    /// initialised while the reference is used.
    unsafe fn data<'s>(&'s self, slot: &'s Slot<T>) -> &'s T {
        // SAFETY: by the contract.
        slot.data.with(|cell| unsafe { &*cell.cast::<T>() })
    }
}

impl<T> Drop for Table<T> {
    fn drop(&mut self) {
        for entry in self.directory.iter() {
            let leaf = entry.load(Ordering::Acquire);
            if leaf.is_null() {
                continue;
            }
            let slots = ptr::slice_from_raw_parts_mut(leaf, self.geometry.leaf_len());
            // SAFETY: the pointer came from a box of that many slots, and nothing borrows the
            // table any more.
            let slots = unsafe { Box::from_raw(slots) };
            for slot in
                slots.iter().filter(|s| !is(s.state.load(Ordering::Relaxed), Status::Vacant))
            {
                // SAFETY: a slot that is not vacant is initialised, and dropped only here.
                slot.data.with_mut(|cell| unsafe { cell.cast::<T>().drop_in_place() });
            }
        }
    }
}
