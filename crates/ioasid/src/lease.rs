//! What keeps an ID: its lease, and references beside it.

use core::fmt;
use core::ops::Deref;
use core::ptr::NonNull;

use crate::geometry::{Geometry, Shape};
use crate::holder::Holder;
use crate::release::Part;
use crate::shard::Inside;
use crate::space::Shared;
use crate::state::{State, Status};
use crate::sync::MutexGuard;
use crate::{Ioasid, Tag};

/// The right to an ID. Dropping it, or [`Lease::free`], ends the ID's life; its number comes back
/// when nothing holds it any more. It dereferences to the ID's data, which it keeps.
#[must_use = "dropping a lease frees its ID at once"]
pub struct Lease<T, G: Shape = Geometry> {
    held: Held<T, G>,
}

/// A hold on an ID, counted under its [`Holder`]'s name. While it lives the ID's number is not
/// reused and its data stays, also after the ID was freed.
#[must_use = "dropping a reference gives it up at once"]
pub struct Ref<T, G: Shape = Geometry> {
    held: Held<T, G>,
    holder: u16,
}

/// A counted part in a space and in one of its IDs.
pub(crate) struct Held<T, G: Shape> {
    shared: NonNull<Shared<T, G>>,
    tag: Tag,
    home: u32,
}

/// A lease or a reference, lent. Either will do to say which ID is meant, because either keeps it:
/// `&Lease` and `&Ref` become one by themselves.
pub struct Keeper<'k, T, G: Shape = Geometry>(pub(crate) &'k Held<T, G>);

impl<'k, T, G: Shape> From<&'k Lease<T, G>> for Keeper<'k, T, G> {
    fn from(lease: &'k Lease<T, G>) -> Self {
        Self(&lease.held)
    }
}

impl<'k, T, G: Shape> From<&'k Ref<T, G>> for Keeper<'k, T, G> {
    fn from(reference: &'k Ref<T, G>) -> Self {
        Self(&reference.held)
    }
}

// SAFETY: it is a counted pointer to a `Shared`, like an `Arc`; and it gives out `&T`.
unsafe impl<T: Send + Sync, G: Shape> Send for Held<T, G> {}
// SAFETY: as above.
unsafe impl<T: Send + Sync, G: Shape> Sync for Held<T, G> {}

impl<T, G: Shape> Held<T, G> {
    /// Of an ID that was counted for it, or that is held for as long as this is used.
    #[inline]
    pub(crate) fn new(shared: NonNull<Shared<T, G>>, tag: Tag, home: usize) -> Self {
        Self { shared, tag, home: home as u32 }
    }

    #[inline]
    pub(crate) fn shared(&self) -> &Shared<T, G> {
        // SAFETY: it is counted in its shard, and what is counted keeps the space.
        unsafe { self.shared.as_ref() }
    }

    pub(crate) fn tag(&self) -> Tag {
        self.tag
    }

    /// The shard that the ID lives in.
    pub(crate) fn home(&self) -> usize {
        self.home as usize
    }

    pub(crate) fn is_of(&self, shared: NonNull<Shared<T, G>>) -> bool {
        self.shared == shared
    }

    #[inline]
    pub(crate) fn data(&self) -> &T {
        // SAFETY: the ID is not released while a lease or a reference of it lives, and this was
        // made after the ID was published.
        unsafe { self.shared().table.held(self.tag.id.0) }
    }

    pub(crate) fn share(&self, holder: &Holder) -> Result<Ref<T, G>, HoldError> {
        self.shared().hold(self.shared, self.tag.id, Some(self.tag.generation), None, holder)
    }

    fn is_live(&self) -> bool {
        // It cannot be another life's: this one is held.
        self.shared().table.state(self.tag.id.0).status() == Status::Live
    }
}

impl<T, G: Shape> Lease<T, G> {
    /// The lease of an ID that was counted for it.
    #[inline]
    pub(crate) fn new(shared: NonNull<Shared<T, G>>, tag: Tag, home: usize) -> Self {
        Self { held: Held::new(shared, tag, home) }
    }

    pub(crate) fn held(&self) -> &Held<T, G> {
        &self.held
    }

    /// Takes it apart without freeing; the count stays.
    pub(crate) fn into_parts(self) -> (Tag, usize) {
        let parts = (self.held.tag, self.held.home as usize);
        core::mem::forget(self);
        parts
    }

    pub(crate) fn is_of(&self, shared: NonNull<Shared<T, G>>) -> bool {
        self.held.is_of(shared)
    }

    /// The number.
    #[inline]
    pub fn id(&self) -> Ioasid {
        self.held.tag.id
    }

    /// The number and which of its lives this is.
    pub fn tag(&self) -> Tag {
        self.held.tag
    }

    /// Whether the ID is live: its set may have been closed, which parks what belongs to it.
    pub fn is_live(&self) -> bool {
        self.held.is_live()
    }

    /// A reference in the name of `holder`.
    ///
    /// # Errors
    /// [`HoldError`]: the ID is parked (its set was closed), or the holder is another space's.
    pub fn share(&self, holder: &Holder) -> Result<Ref<T, G>, HoldError> {
        self.held.share(holder)
    }

    /// Ends the ID's life. No find that begins after this returns it; it is handed out again once
    /// every reference and every guard from before has gone and its data has been dropped.
    ///
    /// May be called where nothing may block: it allocates nothing, and who is to be told is told
    /// by [`Space::work`](crate::Space::work).
    ///
    /// # Errors
    /// [`AlreadyFreed`] if that has happened: its set was closed. The lease is given up all the
    /// same.
    pub fn free(self) -> Result<(), AlreadyFreed> {
        let live = self.is_live();
        drop(self);
        live.then_some(()).ok_or(AlreadyFreed)
    }
}

/// The ID had been freed before: its set was closed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("the ID was freed already, when its set was closed")]
pub struct AlreadyFreed;

impl<T, G: Shape> Drop for Lease<T, G> {
    #[inline]
    fn drop(&mut self) {
        let Held { shared, tag, home } = self.held;
        // SAFETY: this lease's part, which goes with it.
        unsafe { Shared::unlease(shared, tag, home as usize) };
    }
}

impl<T, G: Shape> Ref<T, G> {
    pub(crate) fn held(&self) -> &Held<T, G> {
        &self.held
    }

    /// The number.
    pub fn id(&self) -> Ioasid {
        self.held.tag.id
    }

    /// The number and which of its lives is held.
    pub fn tag(&self) -> Tag {
        self.held.tag
    }

    /// Whether the ID is live, and not parked.
    pub fn is_live(&self) -> bool {
        self.held.is_live()
    }

    /// One more, in the name of `holder`.
    ///
    /// # Errors
    /// [`HoldError`]: the ID is parked, or the holder is another space's.
    pub fn share(&self, holder: &Holder) -> Result<Ref<T, G>, HoldError> {
        self.held.share(holder)
    }
}

impl<T, G: Shape> Drop for Ref<T, G> {
    fn drop(&mut self) {
        let Held { shared, tag, home } = self.held;
        // SAFETY: this reference's part, which goes with it.
        let _part = unsafe { Part::new(shared, home as usize) };
        self.held.shared().unhold(tag.id.0, home as usize, Some(self.holder));
    }
}

/// Why there is no reference. Nothing has changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum HoldError {
    /// The number is not out, or it lives another life than the one meant.
    #[error("{0} is not allocated")]
    NotFound(Ioasid),
    /// The ID is freed and parked: nobody new may hold it.
    #[error("{0} is freed, and waits for those who hold it")]
    Parked(Ioasid),
    /// The ID is another set's.
    #[error("{0} belongs to another set")]
    ForeignSet(Ioasid),
    /// The holder was made by another space.
    #[error("the holder belongs to another space")]
    ForeignHolder,
    /// There was no memory to count it, or the ID has as many references as can be counted.
    #[error("no memory to count the reference")]
    NoMemory,
}

impl<T, G: Shape> Shared<T, G> {
    /// A reference to a live ID: of one generation only, and of one set only, if given.
    pub(crate) fn hold(
        &self,
        shared: NonNull<Self>,
        id: Ioasid,
        generation: Option<u64>,
        set: Option<u32>,
        holder: &Holder,
    ) -> Result<Ref<T, G>, HoldError> {
        if !holder.belongs_to(&self.names) {
            return Err(HoldError::ForeignHolder);
        }
        let (mut inside, home, state) = self.lock_home(id).ok_or(HoldError::NotFound(id))?;
        if state.status() == Status::Vacant || generation.is_some_and(|g| g != state.generation()) {
            return Err(HoldError::NotFound(id));
        }
        if set.is_some_and(|set| set != state.set()) {
            return Err(HoldError::ForeignSet(id));
        }
        if state.status() == Status::Parked {
            return Err(HoldError::Parked(id));
        }
        let record = self.table.record(id.0);
        let refs = record.refs.get().checked_add(1).ok_or(HoldError::NoMemory)?;
        inside.holders.add(id.0, holder.index).map_err(|_| HoldError::NoMemory)?;
        record.refs.set(refs);
        self.join(&mut inside);
        self.table.set_state(id.0, state.busy());
        let tag = Tag { id, generation: state.generation() };
        Ok(Ref { held: Held::new(shared, tag, home), holder: holder.index })
    }

    /// Locks the shard that the ID lives in, if it was ever out; gives its state there.
    pub(crate) fn lock_home(&self, id: Ioasid) -> Option<(MutexGuard<'_, Inside>, usize, State)> {
        let record = self.table.find_record(id.0)?;
        loop {
            let home = record.home.get() as usize;
            let inside = self.shards[home].lock();
            if cfg!(sabotage = "ioasid-stale-home") && record.home.get() as usize == home {
                return Some((inside, home, self.table.state(id.0)));
            }
            // The state first: a life that began in another shard meanwhile, under that one's lock,
            // is published after its home is set. So a life that is seen and has its home here
            // stays as long as this lock.
            let state = self.table.state(id.0);
            if record.home.get() as usize == home {
                return Some((inside, home, state));
            }
            // Each turn means that a life began.
        }
    }

    /// Gives up a reference: a holder's, or the one that telling an ID's users holds.
    pub(crate) fn unhold(&self, number: u32, home: usize, holder: Option<u16>) {
        let mut inside = self.shards[home].lock();
        if let Some(holder) = holder {
            inside.holders.remove(number, holder);
        }
        let refs = &self.table.record(number).refs;
        refs.set(refs.get() - 1);
        let ripe = refs.get() == 0 && self.push_if_unheld(&mut inside, home, number);
        drop(inside);
        if ripe {
            self.collect(home);
        }
    }
}

impl<T, G: Shape> Deref for Lease<T, G> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        self.held.data()
    }
}

impl<T, G: Shape> Deref for Ref<T, G> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        self.held.data()
    }
}

impl<T: fmt::Debug, G: Shape> fmt::Debug for Lease<T, G> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lease").field("id", &self.id()).field("data", &**self).finish()
    }
}

impl<T: fmt::Debug, G: Shape> fmt::Debug for Ref<T, G> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ref").field("id", &self.id()).field("data", &**self).finish()
    }
}
