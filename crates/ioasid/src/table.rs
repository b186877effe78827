//! The lock-free table: two directories of leaves that never move and never go.
//!
//! ```text
//!   slots (what a find reads)            records (what only the ID's shard reads)
//!   ┌───────┐    ┌───────┬──────┬──      ┌───────┐    ┌──────┬──────┬──────┬──
//!   │ *leaf ├───►│ state │ data │ …      │ *leaf ├───►│ home │ refs │ spid │ …
//!   ├───────┤    └───────┴──────┴──      ├───────┤    └──────┴──────┴──────┴──
//!   │ null  │                            │ null  │
//!   └───────┘                            └───────┘
//! ```
//!
//! A slot is type-stable: once made it stays a slot until the table goes, so a reader may look at
//! its state at any time. The data may be looked at only by a pinned reader that found the state
//! live, or by who holds the ID.

use core::mem::MaybeUninit;

use crate::epoch::Pin;
use crate::geometry::Shape;
use crate::leaves::Leaves;
use crate::memory::NoMemory;
use crate::record::Record;
use crate::state::{State, Status};
use crate::sync::{AtomicU64, Mutex, Ordering, UnsafeCell};
use crate::{Ioasid, Tag};

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

/// The slots and records of a space.
///
/// Each number has an *owner* from the moment it is taken out of the free ones to the moment it
/// goes back: first the allocating call, then who frees it, then who releases it. Owners change
/// under the lock of the number's shard, and only the owner moves a slot from one state to the
/// next.
#[derive(Debug)]
pub(crate) struct Table<T, G: Shape> {
    slots: Leaves<Slot<T>, G>,
    records: Leaves<Record, G>,
    growing: Mutex<()>,
}

impl<T, G: Shape> Table<T, G> {
    pub(crate) fn new(last: u32) -> Result<Self, NoMemory> {
        let (slots, records) = (Leaves::new(last)?, Leaves::new(last)?);
        Ok(Self { slots, records, growing: Mutex::new(()) })
    }

    /// Makes sure that `number` has a slot and a record.
    #[inline]
    pub(crate) fn prepare(&self, number: u32) -> Result<(), NoMemory> {
        // Records come second, so where there is a record there is a slot.
        if self.records.has(number) {
            return Ok(());
        }
        self.grow(number)
    }

    #[cold]
    fn grow(&self, number: u32) -> Result<(), NoMemory> {
        let _growing = self.growing.lock();
        self.slots.prepare(number, Slot::vacant)?;
        self.records.prepare(number, Record::new)
    }

    /// The record of a number that is out.
    #[inline]
    pub(crate) fn record(&self, number: u32) -> &Record {
        self.records.get(number).expect("a number that is out has a record")
    }

    /// The record of any number; `None` if it was never out.
    pub(crate) fn find_record(&self, number: u32) -> Option<&Record> {
        self.records.get(number)
    }

    #[inline]
    fn slot(&self, number: u32) -> &Slot<T> {
        self.slots.get(number).expect("a number that is out has a slot")
    }

    /// The state of `number` as it is now; vacant if it was never out.
    #[inline]
    pub(crate) fn state(&self, number: u32) -> State {
        self.slots
            .get(number)
            .map_or(State::VACANT, |slot| State::from(slot.state.load(Ordering::Acquire)))
    }

    /// Changes the state of a number; for its owner, who holds the lock of the number's shard.
    #[inline]
    pub(crate) fn set_state(&self, number: u32, state: State) {
        self.slot(number).state.store(state.into(), Ordering::Release);
    }

    /// Parks a number that is live and not busy, if `agree` says so to its set; else nothing
    /// changes. For its owner, like [`Table::set_state`].
    #[inline]
    pub(crate) fn park_idle(&self, number: u32, agree: impl FnOnce(u32) -> bool) -> bool {
        let slot = self.slot(number);
        let state = State::from(slot.state.load(Ordering::Relaxed));
        let agreed = state.is_idle() && agree(state.set());
        if agreed {
            slot.state.store(state.parked().into(), Ordering::Release);
        }
        agreed
    }

    /// Makes `number` findable with `data`, as a new life of the number in the set `set`.
    ///
    /// # Safety
    ///
    /// The caller owns the number, has called [`Table::prepare`] for it, and its slot is vacant.
    #[inline]
    pub(crate) unsafe fn publish(&self, number: u32, set: u32, data: T) -> Tag {
        // SAFETY: by the contract.
        unsafe { Self::publish_in(self.slot(number), number, set, data) }
    }

    /// Like [`Table::publish`] without [`Table::prepare`], when the number is a member of that set
    /// and needs nothing else; else gives the data back.
    ///
    /// # Safety
    ///
    /// The caller owns the number, and its slot is vacant if it has one.
    #[inline]
    pub(crate) unsafe fn publish_ready(&self, number: u32, set: u32, data: T) -> Result<Tag, T> {
        match self.slots.get(number) {
            Some(slot) if State::from(slot.state.load(Ordering::Relaxed)).is_ready_for(set) => {
                // SAFETY: by the contract.
                Ok(unsafe { Self::publish_in(slot, number, set, data) })
            }
            _ => Err(data),
        }
    }

    /// # Safety
    ///
    /// The caller owns the number, and its slot is vacant.
    #[inline]
    unsafe fn publish_in(slot: &Slot<T>, number: u32, set: u32, data: T) -> Tag {
        let old = State::from(slot.state.load(Ordering::Relaxed));
        debug_assert_eq!(old.status(), Status::Vacant);
        let state = State::born(set, old.generation());
        slot.data.with_mut(|cell| {
            // SAFETY: the slot is vacant, so no reader looks at the data, and the number is the
            // caller's, so nobody else writes it.
            unsafe { cell.cast::<T>().write(data) };
        });
        slot.state.store(state.into(), Ordering::Release);
        Tag { id: Ioasid(number), generation: state.generation() }
    }

    /// Takes the data of a parked number out; its slot has to be vacated next.
    ///
    /// # Safety
    ///
    /// The caller owns the number, its slot is parked, no reader that was pinned before it was
    /// parked is still pinned, and nobody has taken the data.
    #[inline]
    pub(crate) unsafe fn take(&self, number: u32) -> T {
        // SAFETY: a parked slot is initialised; no reader holds a reference to the data (those
        // that might have are gone) and none can find it again; by the contract it is read once.
        self.slot(number).data.with_mut(|cell| unsafe { cell.cast::<T>().read() })
    }

    /// Leaves the slot of a parked number vacant, whose data was taken or needs no drop. Gives the
    /// state before.
    #[inline]
    pub(crate) fn vacate(&self, number: u32) -> State {
        let slot = self.slot(number);
        let state = State::from(slot.state.load(Ordering::Relaxed));
        debug_assert_eq!(state.status(), Status::Parked);
        slot.state.store(state.vacated().into(), Ordering::Release);
        state
    }

    /// The data of the live ID `id`, and its state.
    ///
    /// # Safety
    ///
    /// The pin is of a participant of this table's space.
    #[inline]
    pub(crate) unsafe fn find<'p>(
        &'p self,
        id: Ioasid,
        _pin: &'p Pin<'_>,
    ) -> Option<(&'p T, State)> {
        let slot = self.slots.get(id.0)?;
        let state = State::from(slot.state.load(Ordering::Acquire));
        if state.status() != Status::Live {
            return None;
        }
        // SAFETY: live means initialised, and the acquiring load saw the store that published the
        // data. The data is taken out only after every reader that was pinned when the number was
        // parked has gone, so it stays for as long as the pin.
        Some((unsafe { self.data(slot) }, state))
    }

    /// The data of an ID that the caller holds.
    ///
    /// # Safety
    ///
    /// `number` is live or parked and stays so for as long as the reference is used, and the
    /// caller came by it after it was published.
    #[inline]
    pub(crate) unsafe fn held(&self, number: u32) -> &T {
        let slot = self.slot(number);
        // SAFETY: by the contract the slot is initialised, and stays so.
        unsafe { self.data(slot) }
    }

    /// # Safety
    ///
    /// The slot is initialised, this thread has seen the store that made it so, and it stays
    /// initialised while the reference is used.
    #[inline]
    unsafe fn data<'s>(&'s self, slot: &'s Slot<T>) -> &'s T {
        // SAFETY: by the contract.
        slot.data.with(|cell| unsafe { &*cell.cast::<T>() })
    }
}

impl<T, G: Shape> Drop for Table<T, G> {
    fn drop(&mut self) {
        for slots in self.slots.take_leaves() {
            let status = |s: &Slot<T>| State::from(s.state.load(Ordering::Relaxed)).status();
            for slot in slots.iter().filter(|slot| status(slot) != Status::Vacant) {
                // SAFETY: a slot that is not vacant is initialised, and dropped only here.
                slot.data.with_mut(|cell| unsafe { cell.cast::<T>().drop_in_place() });
            }
        }
        self.records.take_leaves().for_each(drop);
    }
}
