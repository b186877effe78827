//! The table's part in binding, unbinding and freeing PASIDs.
//!
//! ```text
//!   prepare ─► Prepared ─ commit ─► Open ─ unbind, free ─► Closing ─ submissions over ─► gone
//!                  └───── abort ────────────────────────────────────────────────────────►
//! ```
//!
//! What may be refused is asked for in `prepare`: the page, the room in the books, the reference.
//! What comes later only writes words and drops.

use ioasid::{HoldError, Refusal, Tag};

use super::books::State;
use super::layout::TranslationEntry;
use super::marks::{Cursor, Marks};
use super::Shared;
use crate::sabotage::{self, Sabotage};
use crate::{GuestPasid, HostPasid, PasidEvent, PasidHold, PasidSubscriber};

impl PasidSubscriber for Shared {
    fn prepare(&self, event: &PasidEvent<'_>) -> Result<(), Refusal> {
        // Dropped with no lock held, if it is refused.
        let mut hold = Some(event.hold().map_err(|error| match error {
            HoldError::NoMemory => Refusal::NoMemory,
            _ => Refusal::NotAllowed,
        })?);
        self.settle();
        let prepared = self.try_prepare(event.guest, event.host, event.tag, &mut hold);
        if prepared.is_err() && sabotage::is(Sabotage::IgnoreRefusal) {
            return Ok(());
        }
        prepared
    }

    fn commit(&self, event: &PasidEvent<'_>) {
        self.open(event.guest, event.host, event.tag);
    }

    fn abort(&self, event: &PasidEvent<'_>) {
        self.give_up(event.guest, event.tag);
    }

    fn unbind(&self, event: &PasidEvent<'_>) {
        if !sabotage::is(Sabotage::CloseLate) {
            self.end_binding(event.guest, event.tag);
        }
        self.settle();
    }

    fn free(&self, event: &PasidEvent<'_>) {
        // Most that are freed were unbound before.
        self.close(event.guest, event.tag);
        self.settle();
    }
}

impl Shared {
    /// Gets everything ready that an entry needs.
    pub(super) fn try_prepare(
        &self,
        guest: GuestPasid,
        host: HostPasid,
        tag: Tag,
        hold: &mut Option<PasidHold>,
    ) -> Result<(), Refusal> {
        let mut books = self.books.lock();
        let refusal = if books.closed {
            Refusal::NotAllowed
        } else if books.has(guest) {
            books.counts.conflicts += 1;
            Refusal::NoSpace
        } else if self.table.reserve(guest, self.tables).and_then(|()| books.reserve()).is_err() {
            Refusal::NoMemory
        } else if let Some(hold) = hold.take() {
            books.prepare(guest, host, tag, hold);
            if sabotage::is(Sabotage::OpenEarly) {
                self.table.store(guest, TranslationEntry::to_host(host));
            }
            return Ok(());
        } else {
            Refusal::NotAllowed
        };
        books.counts.refused += 1;
        Err(refusal)
    }

    /// Opens what was prepared.
    pub(super) fn open(&self, guest: GuestPasid, host: HostPasid, tag: Tag) {
        let mut books = self.books.lock();
        let Some(bound) = books.find(guest, tag, State::Prepared) else { return };
        bound.state = State::Open;
        books.counts.opened += 1;
        self.table.store(guest, TranslationEntry::to_host(host));
    }

    /// Nothing comes of what was prepared.
    pub(super) fn give_up(&self, guest: GuestPasid, tag: Tag) {
        let _dropped = {
            let mut books = self.books.lock();
            let prepared = books.find(guest, tag, State::Prepared).is_some();
            prepared.then(|| books.remove(guest, tag))
        };
    }

    /// Closes what is open of just this PASID. There is something: it was told of the bind.
    pub(super) fn end_binding(&self, guest: GuestPasid, tag: Tag) {
        let open = self.books.lock().find(guest, tag, State::Open).is_some();
        if open {
            self.close(guest, tag);
        }
    }

    /// Closes the entry of just this PASID, if it is open, and waits until no submission that was
    /// translated by it is under way. If that takes longer than it may, the entry stays closed and
    /// keeps its reference until it is over.
    pub(super) fn close(&self, guest: GuestPasid, tag: Tag) {
        let cursor = {
            let mut books = self.books.lock();
            if !books.is(guest, tag, State::Open) {
                return;
            }
            self.table.store(guest, TranslationEntry::NONE);
            let cursor = Marks::begin_wait();
            books.note_closing(guest, tag, cursor);
            cursor
        };
        let (over, cursor) = self.wait(cursor);
        let _dropped = {
            let mut books = self.books.lock();
            if over {
                books.remove(guest, tag)
            } else {
                books.note_late(guest, tag, cursor);
                None
            }
        };
    }

    /// Waits for the submissions of before; whether they are over, and how far it came.
    fn wait(&self, mut cursor: Cursor) -> (bool, Cursor) {
        if sabotage::is(Sabotage::SkipSubmissions) {
            return (true, cursor);
        }
        let mut waiting = self.patience.begin();
        while !self.marks.are_over(&mut cursor) {
            if !waiting.again() {
                return (false, cursor);
            }
        }
        (true, cursor)
    }

    /// Ends what was late and is over now.
    pub(super) fn settle(&self) {
        loop {
            let over = self.books.lock().take_over(&self.marks);
            // With no lock held: that may be the last reference.
            if over.is_none() {
                return;
            }
        }
    }
}
