//! Who is subscribed to what, in the order in which they are told.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU32, AtomicU64};

use hashbrown::HashMap;

use super::event::{Priority, Subscriber};
use crate::geometry::Shape;
use crate::holder::Holder;
use crate::memory::{self, NoMemory};
use crate::set::{Owner, OwnerId};
use crate::sync::Mutex;

/// Where an entry stands: entries are told of openings in this order.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct Rank {
    pub(super) priority: Priority,
    /// Counts subscriptions of the space.
    pub(super) serial: u64,
}

/// One subscription.
pub(super) struct Entry<T, G: Shape> {
    pub(super) rank: Rank,
    pub(super) holder: Holder,
    /// Handlers that run now.
    pub(super) running: AtomicU32,
    pub(super) panics: AtomicU64,
    /// `None` once it is ended. It may still be in lists then.
    subscriber: Mutex<Option<Arc<dyn Subscriber<T, G>>>>,
}

impl<T, G: Shape> Entry<T, G> {
    pub(super) fn new(rank: Rank, holder: &Holder, subscriber: Arc<dyn Subscriber<T, G>>) -> Self {
        Self {
            rank,
            holder: holder.clone(),
            running: AtomicU32::new(0),
            panics: AtomicU64::new(0),
            subscriber: Mutex::new(Some(subscriber)),
        }
    }

    pub(super) fn subscriber(&self) -> Option<Arc<dyn Subscriber<T, G>>> {
        self.subscriber.lock().clone()
    }

    /// Ends it. The subscriber is to be dropped with no lock held.
    pub(super) fn end(&self) -> Option<Arc<dyn Subscriber<T, G>>> {
        self.subscriber.lock().take()
    }

    fn is_on(&self) -> bool {
        self.subscriber.lock().is_some()
    }
}

type Entries<T, G> = Vec<Arc<Entry<T, G>>>;

/// Entries by rank, never changed: another list takes its place. `None` is the empty one.
pub(super) type List<T, G> = Option<Arc<Entries<T, G>>>;

fn entries<T, G: Shape>(list: &List<T, G>) -> &[Arc<Entry<T, G>>] {
    list.as_ref().map_or(&[], |list| list)
}

/// A list of what of `old` is not ended, and `more`.
pub(super) fn list<T, G: Shape>(
    old: &List<T, G>,
    more: &[Arc<Entry<T, G>>],
) -> Result<List<T, G>, NoMemory> {
    let old = entries(old);
    let mut new = Vec::new();
    new.try_reserve_exact(old.len() + more.len())?;
    new.extend(old.iter().chain(more).filter(|entry| entry.is_on()).cloned());
    new.sort_unstable_by_key(|entry| entry.rank);
    Ok(if new.is_empty() { None } else { Some(memory::shared(new)) })
}

/// The subscriptions of an owner.
struct Owned<T, G: Shape> {
    /// Keeps the key from becoming another owner's.
    _owner: Owner,
    entries: Entries<T, G>,
}

/// All subscriptions of a space. Changed by the holder of the space's `slow` alone.
pub(super) struct Lists<T, G: Shape> {
    space: List<T, G>,
    /// By the set's index; only sets with a subscriber are there.
    sets: HashMap<u32, Arc<Entries<T, G>>>,
    owners: HashMap<OwnerId, Owned<T, G>>,
    serial: u64,
}

impl<T, G: Shape> Lists<T, G> {
    pub(super) fn new() -> Self {
        Self { space: None, sets: HashMap::new(), owners: HashMap::new(), serial: 0 }
    }

    /// The rank of the next entry to be put in.
    pub(super) fn next_rank(&self, priority: Priority) -> Rank {
        Rank { priority, serial: self.serial }
    }

    /// An entry was put in, since the lock was taken: whoever asks for an audience from now on
    /// gets it.
    pub(super) fn admitted(&mut self) {
        self.serial += 1;
    }

    /// Whether anybody is to be told of what happens in the set.
    pub(super) fn is_watched(&self, set: u32) -> bool {
        self.space.is_some() || self.sets.contains_key(&set)
    }

    pub(super) fn space(&self) -> List<T, G> {
        self.space.clone()
    }

    pub(super) fn set(&self, set: u32) -> List<T, G> {
        self.sets.get(&set).cloned()
    }

    /// Gives the list that was there.
    pub(super) fn put_space(&mut self, list: List<T, G>) -> List<T, G> {
        core::mem::replace(&mut self.space, list)
    }

    /// Gives the list that was there.
    pub(super) fn put_set(&mut self, set: u32, list: List<T, G>) -> Result<List<T, G>, NoMemory> {
        match list {
            None => Ok(self.remove_set(set)),
            Some(list) => {
                self.sets.try_reserve(1)?;
                Ok(self.sets.insert(set, list))
            }
        }
    }

    pub(super) fn remove_set(&mut self, set: u32) -> List<T, G> {
        self.sets.remove(&set)
    }

    /// The entries of an owner, for a set of his.
    pub(super) fn of_owner(&self, owner: &Owner) -> &[Arc<Entry<T, G>>] {
        self.owners.get(&owner.id()).map_or(&[], |owned| &owned.entries)
    }

    /// Remembers an entry for the owner's sets to come.
    pub(super) fn put_owner(
        &mut self,
        owner: &Owner,
        entry: &Arc<Entry<T, G>>,
    ) -> Result<(), NoMemory> {
        self.owners.try_reserve(1)?;
        let new = || Owned { _owner: owner.clone(), entries: Vec::new() };
        let entries = &mut self.owners.entry(owner.id()).or_insert_with(new).entries;
        let room = entries.try_reserve(1);
        if room.is_ok() {
            entries.push(entry.clone());
        }
        self.tidy_owner(owner);
        room?;
        Ok(())
    }

    pub(super) fn remove_owner(&mut self, owner: &Owner, rank: Rank) {
        if let Some(owned) = self.owners.get_mut(&owner.id()) {
            owned.entries.retain(|entry| entry.rank != rank);
        }
        self.tidy_owner(owner);
    }

    fn tidy_owner(&mut self, owner: &Owner) {
        if self.of_owner(owner).is_empty() {
            self.owners.remove(&owner.id());
        }
    }

    /// Every entry, those that are in several lists as often.
    pub(super) fn all(&self) -> impl Iterator<Item = &Arc<Entry<T, G>>> {
        let sets = self.sets.values().flat_map(|list| list.iter());
        entries(&self.space).iter().chain(sets)
    }

    /// Who is to be told of what happens in the set now. Allocates nothing.
    pub(super) fn audience(&self, set: u32) -> Audience<T, G> {
        Audience { space: self.space(), set: self.set(set), until: self.serial }
    }
}

/// Those who are told: of the space and of a set, in one order. Those who have unsubscribed since
/// are in it and not told.
pub(super) struct Audience<T, G: Shape> {
    pub(super) space: List<T, G>,
    pub(super) set: List<T, G>,
    /// Who has this serial or a later one is not told either.
    pub(super) until: u64,
}

/// Which way through an audience.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Order {
    Opening,
    Closing,
}

/// A place between two of an audience.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Place {
    space: usize,
    set: usize,
}

impl Place {
    pub(super) const START: Self = Self { space: 0, set: 0 };
}

impl<T, G: Shape> Audience<T, G> {
    pub(super) fn is_empty(&self) -> bool {
        self.space.is_none() && self.set.is_none()
    }

    pub(super) fn end(&self) -> Place {
        let (space, set) = (entries(&self.space), entries(&self.set));
        Place { space: space.len(), set: set.len() }
    }

    /// The entry after `place`, which moves behind it.
    pub(super) fn next(&self, place: &mut Place) -> Option<&Arc<Entry<T, G>>> {
        let (space, set) = (entries(&self.space), entries(&self.set));
        let (one, two) = (space.get(place.space), set.get(place.set));
        let in_space = match (one, two) {
            (Some(one), Some(two)) => one.rank < two.rank,
            (one, _) => one.is_some(),
        };
        if in_space {
            place.space += 1;
            one
        } else {
            place.set += usize::from(two.is_some());
            two
        }
    }

    /// The entry before `place`, which moves before it.
    pub(super) fn previous(&self, place: &mut Place) -> Option<&Arc<Entry<T, G>>> {
        let (space, set) = (entries(&self.space), entries(&self.set));
        let one = place.space.checked_sub(1).and_then(|at| space.get(at));
        let two = place.set.checked_sub(1).and_then(|at| set.get(at));
        let in_space = match (one, two) {
            (Some(one), Some(two)) => one.rank > two.rank,
            (one, _) => one.is_some(),
        };
        if in_space {
            place.space -= 1;
            one
        } else {
            place.set -= usize::from(two.is_some());
            two
        }
    }
}
