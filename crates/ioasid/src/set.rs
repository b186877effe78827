//! Sets: IDs that belong together, with an owner and a quota.

use alloc::string::String;
use alloc::sync::Arc;
use core::fmt;

use crate::shard::bits;
use crate::spid::Spids;
use crate::sync::{AtomicU64, Mutex, Ordering};

/// Who owns a set: a value that is compared by identity, so that it can neither be guessed nor
/// come back for a stranger. A VMM makes one for each guest.
#[derive(Clone)]
pub struct Owner(Arc<str>);

impl Owner {
    /// A new owner, unlike every other; `name` is for people.
    pub fn new(name: &str) -> Self {
        Self(Arc::from(name))
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.0
    }

    /// Where it is: cannot be another's while this very value keeps the place taken.
    pub(crate) fn id(&self) -> OwnerId {
        OwnerId(Arc::as_ptr(&self.0).cast::<u8>() as usize)
    }
}

/// Which owner, for as long as that owner is kept beside it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) struct OwnerId(usize);

impl PartialEq for Owner {
    fn eq(&self, other: &Self) -> bool {
        self.id() == other.id()
    }
}

impl Eq for Owner {}

impl fmt::Debug for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Owner").field(&self.name()).finish()
    }
}

/// What a set is for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum SetType {
    /// For the host's own use; found by its handle alone.
    Native,
    /// An owner's, who has at most one, and by whom it is found.
    Owned(Owner),
}

/// What a space keeps of a set; in it and in its shards until the set is drained.
#[derive(Debug)]
pub(crate) struct SetCore {
    pub(crate) index: u32,
    pub(crate) name: String,
    pub(crate) kind: SetType,
    /// The shards that it ever had something in, a bit each.
    used: AtomicU64,
    center: Mutex<Center>,
    pub(crate) spids: Spids,
}

/// What of a set's quota no shard has.
#[derive(Debug)]
struct Center {
    quota: u32,
    credit: u32,
    open: bool,
    /// Handles of it; the last one closes it, and counts until that is done.
    handles: usize,
    /// The last handle is going.
    ending: bool,
    /// Its users have been told that it was made; before, its owner does not find it.
    announced: bool,
    /// Closed, and its users are still to be told so: it is not drained before.
    telling: bool,
    /// Closed, and all credit was back.
    drained: bool,
}

/// What a set's quota comes to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Quota {
    pub(crate) quota: u32,
    pub(crate) credit: u32,
    pub(crate) open: bool,
}

impl SetCore {
    pub(crate) fn new(index: u32, name: String, kind: SetType, quota: u32, spids: Spids) -> Self {
        let center = Center {
            quota,
            credit: quota,
            open: true,
            handles: 1,
            ending: false,
            announced: false,
            telling: false,
            drained: false,
        };
        Self { index, name, kind, used: AtomicU64::new(0), center: Mutex::new(center), spids }
    }

    /// Of what belongs to no set.
    pub(crate) fn root(capacity: u32) -> Self {
        Self::new(0, String::new(), SetType::Native, capacity, Spids::new(0, 0))
    }

    /// Takes up to `most` of the credit; nothing of a closed set's.
    pub(crate) fn draw(&self, most: u32) -> u32 {
        let mut center = self.center.lock();
        let drawn = if center.open { most.min(center.credit) } else { 0 };
        center.credit -= drawn;
        drawn
    }

    /// Gives credit back. True if this was the last of a closed set: exactly one call says so.
    #[must_use]
    pub(crate) fn give(&self, credit: u32) -> bool {
        let mut center = self.center.lock();
        center.credit += credit;
        debug_assert!(self.index == 0 || center.credit <= center.quota, "more came back than went");
        !(center.open || center.telling) && credit > 0 && center.credit == center.quota
    }

    /// Its users know that it was made.
    pub(crate) fn announce(&self) {
        self.center.lock().announced = true;
    }

    /// Its users know that it was closed. True if with that it is drained.
    #[must_use]
    pub(crate) fn told(&self) -> bool {
        let mut center = self.center.lock();
        center.telling = false;
        center.credit == center.quota
    }

    /// Makes the quota larger; the caller has taken it from the space.
    pub(crate) fn grow(&self, by: u32) {
        let mut center = self.center.lock();
        center.quota += by;
        center.credit += by;
    }

    /// Makes the quota smaller by up to `most`, out of the credit that is here; says by how much.
    pub(crate) fn shrink(&self, most: u32) -> u32 {
        let mut center = self.center.lock();
        let by = most.min(center.credit);
        center.credit -= by;
        center.quota -= by;
        by
    }

    /// No more allocations. Gives the credit that was here, for the caller to give back with what
    /// the shards have; `None` if it was closed already. If its users are to be told, it is not
    /// drained before [`SetCore::told`].
    pub(crate) fn close(&self, telling: bool) -> Option<u32> {
        let mut center = self.center.lock();
        center.telling |= center.open && telling;
        let first = core::mem::replace(&mut center.open, false);
        first.then(|| core::mem::take(&mut center.credit))
    }

    /// Counts one more handle, unless it is closed, the last one is just going, or the first is
    /// not given out yet.
    pub(crate) fn acquire(&self) -> bool {
        let mut center = self.center.lock();
        let open = center.open && !center.ending && center.announced;
        center.handles += usize::from(open);
        open
    }

    /// Counts one more handle of a caller that has one.
    pub(crate) fn share(&self) {
        self.center.lock().handles += 1;
    }

    /// Counts one handle less. If it is the last, it is to close the set and then to release again.
    pub(crate) fn release(&self) -> Last {
        let mut center = self.center.lock();
        if center.handles == 1 && !center.ending {
            center.ending = true;
            return Last::Close;
        }
        center.handles -= 1;
        if center.handles == 0 && center.drained {
            return Last::FreeIndex;
        }
        Last::Nothing
    }

    /// It is closed and its quota has returned. True if there is no handle any more: then its
    /// index is free, and else when the last one goes. A handle never names another set's index.
    pub(crate) fn set_drained(&self) -> bool {
        let mut center = self.center.lock();
        center.drained = true;
        center.handles == 0
    }

    pub(crate) fn is_drained(&self) -> bool {
        self.center.lock().drained
    }

    /// Notes that the shard `at` has something of it.
    pub(crate) fn mark(&self, at: usize) {
        self.used.fetch_or(1 << at, Ordering::AcqRel);
    }

    /// The shards that may have something of it.
    pub(crate) fn shards(&self) -> impl Iterator<Item = usize> {
        bits(self.used.load(Ordering::Acquire))
    }

    pub(crate) fn quota(&self) -> Quota {
        let center = self.center.lock();
        Quota { quota: center.quota, credit: center.credit, open: center.open }
    }
}

/// What is left to do when a handle has gone.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Last {
    Nothing,
    Close,
    FreeIndex,
}
