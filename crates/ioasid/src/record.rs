//! What a space knows of an ID besides what a find reads.

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};

/// "No SPID", and the end of a [`List`].
pub(crate) const NONE: u32 = u32::MAX;

/// A field of a record. Atomic so that it needs no `unsafe`; what orders accesses is the lock of
/// the shard that the ID lives in.
#[derive(Debug)]
pub(crate) struct Field(AtomicU32);

impl Field {
    const fn new(value: u32) -> Self {
        Self(AtomicU32::new(value))
    }

    #[inline]
    pub(crate) fn get(&self) -> u32 {
        self.0.load(Relaxed)
    }

    #[inline]
    pub(crate) fn set(&self, value: u32) {
        self.0.store(value, Relaxed);
    }
}

/// The shard that a number lives in, or lived in last. The one field that is read without that
/// shard's lock, as a hint which lock to take; so loom has to know of it.
#[derive(Debug)]
pub(crate) struct Home(crate::sync::AtomicU32);

impl Home {
    #[inline]
    pub(crate) fn get(&self) -> u32 {
        self.0.load(Relaxed)
    }

    #[inline]
    pub(crate) fn set(&self, value: u32) {
        self.0.store(value, Relaxed);
    }
}

/// The lease is gone: what holds the ID now is references alone.
pub(crate) const UNLEASED: u32 = 1 << 0;
/// The lease is kept by the ID's set.
pub(crate) const KEPT: u32 = 1 << 1;
/// An event of the ID other than FREE is being told; there is one at a time.
pub(crate) const PHASE: u32 = 1 << 2;
/// Its FREE is put off to the end of that phase.
pub(crate) const DEFERRED: u32 = 1 << 3;
/// The source of the number is just being told that it is free.
pub(crate) const RETURNING: u32 = 1 << 4;

/// One number's record, valid while it is live or parked.
#[derive(Debug)]
pub(crate) struct Record {
    /// The shard that it lives in.
    pub(crate) home: Home,
    /// References besides the lease.
    pub(crate) refs: Field,
    /// Its number in its set, or [`NONE`].
    pub(crate) spid: Field,
    /// Where it is among the members that its shard has of its set.
    pub(crate) place: Field,
    /// The next of the list that it is in: of parked numbers, or of work to do.
    pub(crate) next: Field,
    /// [`UNLEASED`], [`KEPT`], [`PHASE`], [`DEFERRED`].
    pub(crate) flags: Field,
    /// When it was first seen to stay parked, by the space's clock; 0 before.
    parked_at: AtomicU64,
}

impl Record {
    pub(crate) fn new() -> Self {
        let none = || Field::new(NONE);
        Self {
            home: Home(crate::sync::AtomicU32::new(0)),
            refs: Field::new(0),
            spid: none(),
            place: none(),
            next: none(),
            flags: Field::new(0),
            parked_at: AtomicU64::new(0),
        }
    }

    /// Enters the number at `place` of the members that the shard `home` has of its set. What
    /// else there is, is as [`Record::clear`] left it.
    #[inline]
    pub(crate) fn enter(&self, home: usize, place: usize) {
        self.home.set(home as u32);
        self.place.set(place as u32);
    }

    /// Forgets a life in which it was written to, which the state tells: the number was busy.
    pub(crate) fn clear(&self) {
        self.refs.set(0);
        self.spid.set(NONE);
        self.flags.set(0);
        self.parked_at.store(0, Relaxed);
    }

    pub(crate) fn has(&self, flag: u32) -> bool {
        self.flags.get() & flag != 0
    }

    pub(crate) fn add(&self, flag: u32) {
        self.flags.set(self.flags.get() | flag);
    }

    pub(crate) fn remove(&self, flag: u32) {
        self.flags.set(self.flags.get() & !flag);
    }

    pub(crate) fn parked_at(&self) -> u64 {
        self.parked_at.load(Relaxed)
    }

    pub(crate) fn set_parked_at(&self, now: u64) {
        self.parked_at.store(now, Relaxed);
    }
}

/// Numbers in a list that runs through their records, so that putting one in allocates nothing.
#[derive(Debug)]
pub(crate) struct List {
    first: u32,
    last: u32,
    len: u32,
}

impl List {
    pub(crate) const EMPTY: Self = Self { first: NONE, last: NONE, len: 0 };

    /// How many there are.
    pub(crate) fn len(&self) -> u32 {
        self.len
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Appends a number that is in no list.
    pub(crate) fn push<'r>(&mut self, number: u32, record: impl Fn(u32) -> &'r Record) {
        record(number).next.set(NONE);
        if self.is_empty() {
            self.first = number;
        } else {
            record(self.last).next.set(number);
        }
        self.last = number;
        self.len += 1;
    }

    pub(crate) fn pop<'r>(&mut self, record: impl Fn(u32) -> &'r Record) -> Option<u32> {
        let number = self.first;
        if self.is_empty() {
            return None;
        }
        self.first = record(number).next.get();
        self.len -= 1;
        Some(number)
    }

    pub(crate) fn take(&mut self) -> Self {
        core::mem::replace(self, Self::EMPTY)
    }

    /// Moves all of `other` to the end of this one.
    pub(crate) fn append<'r>(&mut self, other: Self, record: impl Fn(u32) -> &'r Record) {
        if other.is_empty() {
            return;
        }
        if self.is_empty() {
            *self = other;
            return;
        }
        record(self.last).next.set(other.first);
        self.last = other.last;
        self.len += other.len;
    }
}
