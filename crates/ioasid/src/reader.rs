//! Finding by number.

use alloc::sync::Arc;
use core::fmt;

use crate::epoch::{Participant, Pin};
use crate::geometry::{Geometry, Shape};
use crate::holder::Holder;
use crate::lease::{HoldError, Ref};
use crate::sets::Set;
use crate::space::Handles;
use crate::state::State;
use crate::{Ioasid, Tag};

/// A reader's place in a space: one for each thread or processor that finds, kept for as long as
/// it does. Making and dropping one takes a lock; pinning and finding do not.
pub struct Reader<T, G: Shape = Geometry> {
    /// Goes first: should this be the last handle of the space, nobody is reading any more.
    participant: Participant,
    shared: Arc<Handles<T, G>>,
}

impl<T, G: Shape> Reader<T, G> {
    pub(crate) fn new(shared: Arc<Handles<T, G>>) -> Self {
        let participant = Participant::new(&shared.epochs);
        Self { shared, participant }
    }

    /// Begins to read. Costs a store and a fence; finds under one guard cost neither, so a batch
    /// of them is best done under one. A guard that is kept long keeps freed numbers parked.
    pub fn pin(&self) -> Guard<'_, T, G> {
        Guard { shared: &self.shared, pin: self.participant.enter(&self.shared.epochs) }
    }
}

impl<T, G: Shape> fmt::Debug for Reader<T, G> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reader").finish_non_exhaustive()
    }
}

/// While it lives, what it finds stays: the data is not dropped and the number not reused.
pub struct Guard<'r, T, G: Shape = Geometry> {
    shared: &'r Arc<Handles<T, G>>,
    pin: Pin<'r>,
}

impl<'r, T, G: Shape> Guard<'r, T, G> {
    #[cfg(feature = "std")]
    pub(crate) fn new(shared: &'r Arc<Handles<T, G>>, participant: &'r Participant) -> Self {
        Self { shared, pin: participant.enter(&shared.epochs) }
    }

    /// The data of a live ID; `None` for a number that was never given out, is parked, or lies
    /// outside the space.
    #[inline]
    pub fn find(&self, id: Ioasid) -> Option<&T> {
        self.lookup(id).map(|(data, _)| data)
    }

    /// Like [`Guard::find`], for an ID that has to be of this set.
    ///
    /// # Errors
    /// [`FindError`].
    #[inline]
    pub fn find_in(&self, set: &Set<T, G>, id: Ioasid) -> Result<&T, FindError> {
        let (data, state) = self.lookup(id).ok_or(FindError::NotFound(id))?;
        if !self.is_of(set) || state.set() != set.core.index {
            return Err(FindError::ForeignSet(id));
        }
        Ok(data)
    }

    /// Like [`Guard::find`], and says which life of the number was found.
    pub fn find_tagged(&self, id: Ioasid) -> Option<(&T, Tag)> {
        let (data, state) = self.lookup(id)?;
        Some((data, Tag { id, generation: state.generation() }))
    }

    /// The data of exactly the ID that `tag` was made for: `None` if its number is not live, or
    /// lives again.
    pub fn find_exact(&self, tag: Tag) -> Option<&T> {
        self.find_tagged(tag.id).filter(|&(_, found)| found == tag).map(|(data, _)| data)
    }

    /// A reference to a live ID in the name of `holder`, which outlives the guard.
    ///
    /// # Errors
    /// [`HoldError`].
    pub fn hold(&self, id: Ioasid, holder: &Holder) -> Result<Ref<T, G>, HoldError> {
        self.shared.hold(self.shared.pointer(), id, None, None, holder)
    }

    /// Like [`Guard::hold`], for an ID that has to be of this set.
    ///
    /// # Errors
    /// [`HoldError`].
    pub fn hold_in(
        &self,
        set: &Set<T, G>,
        id: Ioasid,
        holder: &Holder,
    ) -> Result<Ref<T, G>, HoldError> {
        if !self.is_of(set) {
            return Err(HoldError::ForeignSet(id));
        }
        self.shared.hold(self.shared.pointer(), id, None, Some(set.core.index), holder)
    }

    #[inline]
    pub(crate) fn is_of(&self, set: &Set<T, G>) -> bool {
        Arc::ptr_eq(self.shared, &set.shared)
    }

    #[inline]
    pub(crate) fn lookup(&self, id: Ioasid) -> Option<(&T, State)> {
        // SAFETY: the pin is of a participant of this very space; both constructors see to it.
        unsafe { self.shared.table.find(id, &self.pin) }
    }
}

/// Why an ID was not found.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum FindError {
    /// The number is not out, or it is freed and parked.
    #[error("{0} is not allocated")]
    NotFound(Ioasid),
    /// The ID is another set's.
    #[error("{0} belongs to another set")]
    ForeignSet(Ioasid),
}

impl<T, G: Shape> fmt::Debug for Guard<'_, T, G> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Guard").finish_non_exhaustive()
    }
}
