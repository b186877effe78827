//! The specification: maps, no caches, no counters that could drift, no locks.
//!
//! The one thing that it leaves open is when a parked ID goes that nothing can name any more,
//! while somebody reads who began after it was freed: it may be held back with others.

use std::collections::{BTreeMap, BTreeSet};

use ioasid::{AllocError, HoldError, Ioasid, SetError, TakeError};

/// Where the lease of an ID is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Leased {
    Out,
    Kept,
    Gone,
}

/// What is known of a number that is out.
#[derive(Debug)]
pub(crate) struct Id {
    pub(crate) set: usize,
    pub(crate) which: usize,
    pub(crate) live: bool,
    pub(crate) leased: Leased,
    pub(crate) refs: u32,
    /// Those who were reading when it was parked, and still are.
    pub(crate) readers: BTreeSet<u64>,
}

impl Id {
    fn is_held(&self) -> bool {
        self.leased != Leased::Gone || self.refs > 0 || !self.readers.is_empty()
    }
}

#[derive(Debug)]
pub(crate) struct Set {
    pub(crate) quota: u32,
    pub(crate) open: bool,
    pub(crate) handles: usize,
    pub(crate) owner: Option<usize>,
}

pub(crate) struct Model {
    pub(crate) last: u32,
    pub(crate) reserved: BTreeSet<u32>,
    pub(crate) capacity: u32,
    /// By number.
    pub(crate) ids: BTreeMap<u32, Id>,
    /// The first is of what belongs to no set.
    pub(crate) sets: Vec<Set>,
    /// Sessions of readers that are open.
    pub(crate) reading: BTreeSet<u64>,
}

/// From the fewest to the most that it may be.
pub(crate) type Bounds = (u32, u32);

impl Model {
    pub(crate) fn new(last: u32, reserved: BTreeSet<u32>, capacity: u32) -> Self {
        let root = Set { quota: capacity, open: true, handles: 1, owner: None };
        let (ids, reading) = (BTreeMap::new(), BTreeSet::new());
        Self { last, reserved, capacity, ids, sets: vec![root], reading }
    }

    /// Whether the ID is certainly out, after everything was released that can be.
    fn surely_out(&self, id: &Id) -> bool {
        id.live || id.is_held()
    }

    /// Whether it may be.
    fn maybe_out(&self, id: &Id) -> bool {
        self.surely_out(id) || !self.reading.is_empty()
    }

    fn count(&self, set: usize, out: impl Fn(&Id) -> bool) -> u32 {
        self.ids.values().filter(|id| id.set == set && out(id)).count() as u32
    }

    pub(crate) fn out(&self, set: usize) -> Bounds {
        let least = self.count(set, |id| self.surely_out(id));
        (least, self.count(set, |id| self.maybe_out(id)))
    }

    pub(crate) fn live(&self, set: usize) -> u32 {
        self.count(set, |id| id.live)
    }

    pub(crate) fn parked(&self, set: usize) -> Bounds {
        let ((least, most), live) = (self.out(set), self.live(set));
        (least - live, most - live)
    }

    /// What all sets together have reserved that are not drained.
    fn reserved_quota(&self) -> Bounds {
        let sum = |gone: &dyn Fn(usize) -> bool| {
            let sets = self.sets.iter().enumerate().skip(1);
            sets.filter(|&(at, set)| set.open || !gone(at)).map(|(_, set)| set.quota).sum()
        };
        (sum(&|at| self.out(at).0 == 0), sum(&|at| self.out(at).1 == 0))
    }

    /// What no set has reserved and nobody has out.
    pub(crate) fn unreserved(&self) -> Bounds {
        let ((least, most), (few, many)) = (self.reserved_quota(), self.out(0));
        (self.capacity.saturating_sub(most + many), self.capacity - least - few)
    }

    /// What more a set may have out.
    fn credit(&self, set: usize) -> Bounds {
        let (least, most) = self.out(set);
        match set {
            0 => self.unreserved(),
            _ => (self.sets[set].quota.saturating_sub(most), self.sets[set].quota - least),
        }
    }

    /// Whether an allocation may have this outcome; takes it over if so.
    pub(crate) fn alloc(
        &mut self,
        set: usize,
        (min, max): (u32, u32),
        which: usize,
        got: Result<u32, AllocError>,
    ) -> bool {
        let cut = max.min(self.last);
        let free = |n: &u32, out: &dyn Fn(&Id) -> bool| {
            !self.reserved.contains(n) && !self.ids.get(n).is_some_and(out)
        };
        let surely = |n: &u32| free(n, &|id| self.maybe_out(id));
        let maybe = |n: &u32| free(n, &|id| self.surely_out(id));
        if min > max || min > self.last {
            return got == Err(AllocError::EmptyRange { min, max, last: self.last });
        }
        let ((least, most), open) = (self.credit(set), self.sets[set].open);
        // In the order in which they are told.
        let possible = (min..=cut).any(|n| maybe(&n));
        match got {
            Err(AllocError::RangeFull { min: low, max: high }) => {
                (low, high) == (min, cut) && !(min..=cut).any(|n| surely(&n))
            }
            Err(AllocError::SetClosed) => possible && !open,
            Err(AllocError::OutOfCapacity { capacity }) => {
                possible && set == 0 && capacity == self.capacity && least == 0
            }
            Err(AllocError::QuotaExceeded { quota }) => {
                possible && set != 0 && open && quota == self.sets[set].quota && least == 0
            }
            Ok(n) if (min..=cut).contains(&n) && maybe(&n) && open && most > 0 => {
                let id = Id {
                    set,
                    which,
                    live: true,
                    leased: Leased::Out,
                    refs: 0,
                    readers: BTreeSet::new(),
                };
                self.ids.insert(n, id);
                true
            }
            _ => false,
        }
    }

    fn park(&mut self, number: u32) {
        let id = self.ids.get_mut(&number).expect("parked when out");
        if std::mem::replace(&mut id.live, false) {
            id.readers = self.reading.clone();
        }
    }

    /// The lease goes. True if that is what ended the ID.
    pub(crate) fn free(&mut self, number: u32) -> bool {
        let was_live = self.ids[&number].live;
        self.park(number);
        self.ids.get_mut(&number).expect("out").leased = Leased::Gone;
        was_live
    }

    /// The lease is left with its set.
    pub(crate) fn keep(&mut self, number: u32) {
        let id = self.ids.get_mut(&number).expect("out");
        id.leased = if id.live { Leased::Kept } else { Leased::Gone };
    }

    /// Whether taking a kept lease may have this outcome.
    pub(crate) fn take(&mut self, set: usize, number: u32, got: Result<u32, TakeError>) -> bool {
        let n = Ioasid(number);
        let Some(id) = self.ids.get(&number) else { return got == Err(TakeError::NotFound(n)) };
        // It may still be parked when it need not be: nothing here releases.
        let surely = self.surely_out(id);
        match got {
            Err(TakeError::NotFound(of)) => of == n && !surely,
            Err(TakeError::ForeignSet(of)) => of == n && id.set != set,
            Err(TakeError::Parked(of)) => of == n && id.set == set && !id.live,
            Err(TakeError::Leased(of)) => {
                of == n && id.set == set && id.live && id.leased == Leased::Out
            }
            Ok(of) if of == number && id.set == set && id.live && id.leased == Leased::Kept => {
                self.ids.get_mut(&number).expect("out").leased = Leased::Out;
                true
            }
            Ok(_) => false,
        }
    }

    /// Whether getting a reference may have this outcome; of this set only, if given.
    pub(crate) fn hold(
        &mut self,
        set: Option<usize>,
        number: u32,
        got: Result<u32, HoldError>,
    ) -> bool {
        let n = Ioasid(number);
        let Some(id) = self.ids.get(&number) else { return got == Err(HoldError::NotFound(n)) };
        let foreign = set.is_some_and(|set| set != id.set);
        let surely = self.surely_out(id);
        match got {
            Err(HoldError::NotFound(of)) => of == n && !surely,
            Err(HoldError::ForeignSet(of)) => of == n && foreign,
            Err(HoldError::Parked(of)) => of == n && !foreign && !id.live,
            Ok(of) if of == number && !foreign && id.live => {
                self.ids.get_mut(&number).expect("out").refs += 1;
                true
            }
            _ => false,
        }
    }

    pub(crate) fn put(&mut self, number: u32) {
        self.ids.get_mut(&number).expect("held, so out").refs -= 1;
    }

    pub(crate) fn begin(&mut self, session: u64) {
        self.reading.insert(session);
    }

    pub(crate) fn end(&mut self, session: u64) {
        self.reading.remove(&session);
        self.ids.values_mut().for_each(|id| {
            id.readers.remove(&session);
        });
    }

    pub(crate) fn set_of(&self, owner: usize) -> Option<usize> {
        self.sets.iter().position(|set| set.open && set.owner == Some(owner))
    }

    /// Whether making a set may have this outcome. A set that is made comes last.
    pub(crate) fn create(
        &mut self,
        owner: Option<usize>,
        quota: u32,
        got: Result<(), SetError>,
    ) -> bool {
        let (least, most) = self.unreserved();
        if quota == 0 {
            return got == Err(SetError::ZeroQuota);
        }
        if owner.is_some_and(|owner| self.set_of(owner).is_some()) {
            return got == Err(SetError::HasSet);
        }
        match got {
            Err(SetError::OutOfCapacity { asked, unreserved }) => {
                asked == quota && unreserved < quota && (least..=most).contains(&unreserved)
            }
            Ok(()) if quota <= most => {
                self.sets.push(Set { quota, open: true, handles: 1, owner });
                true
            }
            _ => false,
        }
    }

    /// Whether changing a quota may have this outcome.
    pub(crate) fn adjust(&mut self, set: usize, new: u32, got: Result<(), SetError>) -> bool {
        let ((least, most), (few, many)) = (self.unreserved(), self.out(set));
        let Set { quota: old, open, .. } = self.sets[set];
        let fits = match got {
            Err(SetError::ZeroQuota) => return new == 0,
            Err(SetError::Closed) => return new != 0 && !open,
            Err(SetError::OutOfCapacity { asked, unreserved }) => {
                return open
                    && new > old
                    && asked == new - old
                    && unreserved < asked
                    && (least..=most).contains(&unreserved)
            }
            Err(SetError::InUse { asked, out }) => {
                return open && asked == new && out > new && (few..=many).contains(&out)
            }
            Err(_) => false,
            Ok(()) if new >= old => new - old <= most,
            Ok(()) => new >= few,
        };
        self.sets[set].quota = if fits { new } else { old };
        fits && new != 0 && open
    }

    pub(crate) fn close(&mut self, set: usize) {
        self.sets[set].open = false;
        let members: Vec<u32> =
            self.ids.iter().filter(|(_, id)| id.set == set).map(|(&n, _)| n).collect();
        for number in members {
            self.park(number);
            let id = self.ids.get_mut(&number).expect("a member");
            if id.leased == Leased::Kept {
                id.leased = Leased::Gone;
            }
        }
    }

    pub(crate) fn drop_handle(&mut self, set: usize) {
        self.sets[set].handles -= 1;
        if self.sets[set].handles == 0 && self.sets[set].open {
            self.close(set);
        }
    }

    /// Takes over which of the IDs are gone that may be; `gone` knows, or nobody does. False if one
    /// is gone that cannot be.
    pub(crate) fn settle(&mut self, gone: impl Fn(usize) -> Option<bool>) -> bool {
        let mut right = true;
        let ids = std::mem::take(&mut self.ids);
        let kept = ids.into_iter().filter(|(_, id)| {
            let must = self.surely_out(id);
            let is_gone = gone(id.which).unwrap_or(!self.maybe_out(id));
            right &= !(is_gone && must);
            !is_gone
        });
        let kept: BTreeMap<u32, Id> = kept.collect();
        self.ids = kept;
        right
    }
}
