//! Finding by number.

use alloc::sync::Arc;
use core::fmt;

use crate::epoch::{Participant, Pin};
use crate::space::Shared;
use crate::table::Tag;
use crate::Ioasid;

/// A reader's place in a space: one for each thread or processor that finds, kept for as long as
/// it does. Making and dropping one takes a lock; pinning and finding do not.
pub struct Reader<T> {
    shared: Arc<Shared<T>>,
    participant: Participant,
}

impl<T> Reader<T> {
    pub(crate) fn new(shared: Arc<Shared<T>>) -> Self {
        let participant = Participant::new(&shared.epochs);
        Self { shared, participant }
    }

    /// Begins to read. Costs a store and a fence; finds under one guard cost neither, so a batch
    /// of them is best done under one. A guard that is kept long keeps freed numbers parked.
    pub fn pin(&self) -> Guard<'_, T> {
        Guard { shared: &self.shared, pin: self.participant.enter(&self.shared.epochs) }
    }
}

impl<T> fmt::Debug for Reader<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reader").finish_non_exhaustive()
    }
}

/// While it lives, what it finds stays: the data is not dropped and the number not reused.
pub struct Guard<'r, T> {
    shared: &'r Shared<T>,
    pin: Pin<'r>,
}

impl<'r, T> Guard<'r, T> {
    #[cfg(feature = "std")]
    pub(crate) fn new(shared: &'r Shared<T>, participant: &'r Participant) -> Self {
        Self { shared, pin: participant.enter(&shared.epochs) }
    }

    /// The data of a live ID; `None` for a number that was never given out, is parked, or lies
    /// outside the space.
    pub fn find(&self, id: Ioasid) -> Option<&T> {
        self.lookup(id).map(|(data, _)| data)
    }

    /// Like [`Guard::find`], and says which life of the number was found.
    pub fn find_tagged(&self, id: Ioasid) -> Option<(&T, Tag)> {
        self.lookup(id)
    }

    /// The data of exactly the ID that `tag` was made for: `None` if its number is not live, or
    /// lives again.
    pub fn find_exact(&self, tag: Tag) -> Option<&T> {
        self.lookup(tag.id).filter(|&(_, found)| found == tag).map(|(data, _)| data)
    }

    fn lookup(&self, id: Ioasid) -> Option<(&T, Tag)> {
        // SAFETY: the pin is of a participant of this very space; both constructors see to it.
        unsafe { self.shared.table.find(id, &self.pin) }
    }
}

impl<T> fmt::Debug for Guard<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Guard").finish_non_exhaustive()
    }
}
