//! Beginning and ending to be told.

use alloc::sync::{Arc, Weak};
use alloc::vec::Vec;
use core::fmt;
use core::sync::atomic::Ordering::Relaxed;

use super::event::{Priority, Subscriber};
use super::lists::{list, Entry};
use crate::geometry::{Geometry, Shape};
use crate::holder::Holder;
use crate::memory::{self, NoMemory};
use crate::report::ReportError;
use crate::set::{Owner, SetCore, SetType};
use crate::sets::Set;
use crate::space::{Handles, Shared, Space};

/// Being told. Dropping it ends that, and waits for nothing: what is being told to the subscriber
/// just then, or about to be in another thread, goes on to its end. Handlers may drop it.
///
/// It does not keep the space. The space keeps the subscriber until this is dropped, so one that
/// has a handle of the space keeps the space as well.
#[must_use = "dropping a subscription ends it"]
pub struct Subscription<T, G: Shape = Geometry> {
    space: Weak<Handles<T, G>>,
    entry: Arc<Entry<T, G>>,
    scope: Scope,
}

/// Whose events a subscription is about.
#[derive(Clone)]
enum Scope {
    Space,
    Set(Arc<SetCore>),
    Owner(Owner),
}

/// Why there is no subscription. Nothing has changed, and the subscriber was told nothing.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum SubscribeError {
    /// The holder was made by another space.
    #[error("the holder belongs to another space")]
    ForeignHolder,
    /// The set is closed.
    #[error("the set is closed")]
    Closed,
    /// The owner's set has IDs, live or parked, of which the subscriber would never hear.
    #[error("the owner's set has {out} IDs already")]
    HasIds {
        /// How many.
        out: u32,
    },
    /// There was no memory for it: for what grows with the number of subscriptions. The few bytes
    /// of a counted pointer cannot be asked for without aborting when there are none.
    #[error("no memory for the subscription")]
    NoMemory,
}

impl From<NoMemory> for SubscribeError {
    fn from(NoMemory: NoMemory) -> Self {
        Self::NoMemory
    }
}

impl<T, G: Shape> Space<T, G> {
    /// Tells `subscriber`, known as `holder`, what happens from now on to the IDs of every set and
    /// of none, and to the sets.
    ///
    /// While a set (or the space) has a subscriber, freed IDs of it wait for [`Space::work`].
    ///
    /// # Errors
    /// [`SubscribeError`].
    pub fn subscribe(
        &self,
        holder: &Holder,
        priority: Priority,
        subscriber: Arc<dyn Subscriber<T, G>>,
    ) -> Result<Subscription<T, G>, SubscribeError> {
        Shared::subscribe(&self.shared, Scope::Space, holder, priority, subscriber)
    }

    /// Like [`Space::subscribe`], for the sets of `owner`: the one he has, if it has no IDs yet,
    /// and every one that is made for him later. No event of these is missed.
    ///
    /// # Errors
    /// [`SubscribeError`].
    pub fn subscribe_owner(
        &self,
        owner: &Owner,
        holder: &Holder,
        priority: Priority,
        subscriber: Arc<dyn Subscriber<T, G>>,
    ) -> Result<Subscription<T, G>, SubscribeError> {
        let scope = Scope::Owner(owner.clone());
        // What is freed and named by nothing is no ID any more.
        self.shared.collect_all();
        Shared::subscribe(&self.shared, scope, holder, priority, subscriber)
    }

    /// Whose handlers run now, and how many of each: who is to be asked when IDs stay parked
    /// because their users are still being told. A subscription that has ended is not there any
    /// more, even if a last handler of it is.
    ///
    /// # Errors
    /// [`ReportError`].
    pub fn running_handlers(&self) -> Result<Vec<(Holder, u32)>, ReportError> {
        let mut running: Vec<(&Arc<Entry<T, G>>, u32)> = Vec::new();
        let lists = self.shared.notify.lists.lock();
        for entry in lists.all() {
            let count = entry.running.load(Relaxed);
            // The entry of an owner is in the list of each of his sets.
            if count > 0 && !running.iter().any(|(known, _)| Arc::ptr_eq(known, entry)) {
                running.try_reserve(1).map_err(NoMemory::from)?;
                running.push((entry, count));
            }
        }
        let mut named = Vec::new();
        named.try_reserve_exact(running.len()).map_err(NoMemory::from)?;
        named.extend(running.iter().map(|(entry, count)| (entry.holder.clone(), *count)));
        Ok(named)
    }

    /// Panics of subscribers that were contained.
    pub fn handler_panics(&self) -> u64 {
        self.shared.notify.panics.load(Relaxed)
    }
}

impl<T, G: Shape> Set<T, G> {
    /// Like [`Space::subscribe`], for this set: what happens to it and its IDs from now on.
    ///
    /// # Errors
    /// [`SubscribeError`].
    pub fn subscribe(
        &self,
        holder: &Holder,
        priority: Priority,
        subscriber: Arc<dyn Subscriber<T, G>>,
    ) -> Result<Subscription<T, G>, SubscribeError> {
        let scope = Scope::Set(self.core.clone());
        Shared::subscribe(&self.shared, scope, holder, priority, subscriber)
    }
}

impl<T, G: Shape> Subscription<T, G> {
    /// The name under which it is told and holds IDs.
    pub fn holder(&self) -> &Holder {
        &self.entry.holder
    }

    /// Panics of this subscriber that were contained.
    pub fn panics(&self) -> u64 {
        self.entry.panics.load(Relaxed)
    }
}

impl<T, G: Shape> Drop for Subscription<T, G> {
    fn drop(&mut self) {
        let subscriber = self.entry.end();
        if let Some(shared) = self.space.upgrade() {
            shared.unsubscribe(&self.scope, &self.entry);
        }
        // With no lock held: it is the caller's.
        drop(subscriber);
    }
}

impl<T, G: Shape> fmt::Debug for Subscription<T, G> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Subscription")
            .field("holder", self.holder())
            .field("priority", &self.entry.rank.priority)
            .finish_non_exhaustive()
    }
}

impl<T, G: Shape> Shared<T, G> {
    fn subscribe(
        handles: &Arc<Handles<T, G>>,
        scope: Scope,
        holder: &Holder,
        priority: Priority,
        subscriber: Arc<dyn Subscriber<T, G>>,
    ) -> Result<Subscription<T, G>, SubscribeError> {
        if !holder.belongs_to(&handles.names) {
            return Err(SubscribeError::ForeignHolder);
        }
        let entry;
        {
            let _slow = handles.slow.lock();
            let rank = handles.notify.lists.lock().next_rank(priority);
            entry = memory::shared(Entry::new(rank, holder, subscriber.clone()));
            match &scope {
                Scope::Space => handles.admit_to_space(&entry)?,
                Scope::Set(core) if core.quota().open => handles.admit_to_set(core, &entry)?,
                Scope::Set(_) => return Err(SubscribeError::Closed),
                Scope::Owner(owner) => handles.admit_to_owner(owner, &entry)?,
            }
        }
        Ok(Subscription { space: Arc::downgrade(handles), entry, scope })
    }

    /// For the holder of `slow`, like all that follows.
    fn admit_to_space(&self, entry: &Arc<Entry<T, G>>) -> Result<(), NoMemory> {
        let old = self.notify.lists.lock().space();
        let new = list(&old, core::slice::from_ref(entry))?;
        let mut lists = self.notify.lists.lock();
        lists.put_space(new);
        lists.admitted();
        drop(lists);
        self.watch_all();
        Ok(())
    }

    fn admit_to_set(&self, core: &SetCore, entry: &Arc<Entry<T, G>>) -> Result<(), NoMemory> {
        let old = self.notify.lists.lock().set(core.index);
        let new = list(&old, core::slice::from_ref(entry))?;
        let mut lists = self.notify.lists.lock();
        lists.put_set(core.index, new)?;
        lists.admitted();
        drop(lists);
        self.watch(core.index);
        Ok(())
    }

    fn admit_to_owner(
        &self,
        owner: &Owner,
        entry: &Arc<Entry<T, G>>,
    ) -> Result<(), SubscribeError> {
        self.notify.lists.lock().put_owner(owner, entry)?;
        let set = self.registry.lock().of(owner).cloned();
        let admitted = match &set {
            Some(core) => self.admit_to_empty(core, entry),
            None => {
                self.notify.lists.lock().admitted();
                Ok(())
            }
        };
        if admitted.is_err() {
            self.notify.lists.lock().remove_owner(owner, entry.rank);
        }
        admitted
    }

    fn admit_to_empty(
        &self,
        core: &SetCore,
        entry: &Arc<Entry<T, G>>,
    ) -> Result<(), SubscribeError> {
        // Whoever has no credit can only wait for `slow` to look for some. So while all of it is
        // here the set is empty and stays so.
        let mut credit = core.draw(u32::MAX);
        for shard in self.shards.iter() {
            let local = &mut shard.lock().sets[core.index as usize];
            credit += core::mem::take(&mut local.credit);
        }
        let out = core.quota().quota - credit;
        let admitted = match out {
            0 => self.admit_to_set(core, entry).map_err(SubscribeError::from),
            _ => Err(SubscribeError::HasIds { out }),
        };
        let _ = core.give(credit); // not drained: it is open, for closing takes `slow`
        admitted
    }

    fn unsubscribe(&self, scope: &Scope, entry: &Arc<Entry<T, G>>) {
        let _slow = self.slow.lock();
        match scope {
            Scope::Space => self.trim_space(),
            Scope::Set(core) => self.trim_set(core),
            Scope::Owner(owner) => {
                self.notify.lists.lock().remove_owner(owner, entry.rank);
                // Of a set that is closed the list goes with it.
                let set = self.registry.lock().of(owner).cloned();
                set.iter().for_each(|core| self.trim_set(core));
            }
        }
    }

    /// Leaves the ended entries out. Without memory for that they stay, to no effect.
    fn trim_space(&self) {
        let old = self.notify.lists.lock().space();
        if let Ok(new) = list(&old, &[]) {
            self.notify.lists.lock().put_space(new);
            self.watch_all();
        }
    }

    fn trim_set(&self, core: &SetCore) {
        if !core.quota().open {
            return;
        }
        let old = self.notify.lists.lock().set(core.index);
        if let Ok(new) = list(&old, &[]) {
            // Room for it is there: it is in the place of another, or none.
            let _ = self.notify.lists.lock().put_set(core.index, new);
            self.watch(core.index);
        }
    }

    /// The lists for a set that is being made. What it was called for may still fail: then
    /// [`Shared::dismiss`] undoes it.
    pub(crate) fn enlist(&self, index: u32, kind: &SetType) -> Result<(), NoMemory> {
        // Two for each set there can be by then: closed and drained.
        let news = 2 * (self.registry.lock().len() + 1);
        self.notify.news.lock().try_reserve(news)?;
        if let SetType::Owned(owner) = kind {
            let mut lists = self.notify.lists.lock();
            let new = list(&None, lists.of_owner(owner))?;
            lists.put_set(index, new)?;
        }
        Ok(())
    }

    /// Forgets the list of a set.
    pub(crate) fn dismiss(&self, index: u32) {
        let gone = self.notify.lists.lock().remove_set(index);
        drop(gone);
    }

    /// Whether anybody is to be told of what happens in the set.
    pub(crate) fn is_watched(&self, set: u32) -> bool {
        self.notify.lists.lock().is_watched(set)
    }

    /// Makes every shard know whether the set is watched.
    fn watch(&self, set: u32) {
        let watched = self.is_watched(set);
        for shard in self.shards.iter() {
            shard.lock().sets[set as usize].watched = watched;
        }
    }

    fn watch_all(&self) {
        for shard in self.shards.iter() {
            let mut inside = shard.lock();
            let lists = self.notify.lists.lock();
            for (set, local) in inside.sets.iter_mut().enumerate() {
                local.watched = lists.is_watched(set as u32);
            }
        }
    }
}
