//! The sets that a space has.

use alloc::sync::Arc;
use alloc::vec::Vec;

use hashbrown::HashMap;

use crate::memory::NoMemory;
use crate::set::{Owner, OwnerId, SetCore, SetType};

/// Sets by index; the first is the root and not in here.
#[derive(Debug)]
pub(crate) struct Registry {
    sets: Vec<Option<Arc<SetCore>>>,
    /// Indices that were used and are free. Room for all, so that freeing one allocates nothing.
    free: Vec<u32>,
    /// The open sets that have an owner.
    owners: HashMap<OwnerId, u32>,
}

impl Registry {
    pub(crate) fn new() -> Self {
        Self { sets: Vec::new(), free: Vec::new(), owners: HashMap::new() }
    }

    /// At least as many as there are sets.
    pub(crate) fn len(&self) -> usize {
        self.sets.len()
    }

    /// A free index, and room for [`Registry::insert`]. What is not inserted has to be given back
    /// with [`Registry::cancel`]. One caller at a time; others may release indices meanwhile.
    pub(crate) fn reserve(&mut self) -> Result<u32, NoMemory> {
        self.owners.try_reserve(1)?;
        if let Some(index) = self.free.pop() {
            return Ok(index);
        }
        self.sets.try_reserve(1)?;
        self.free.try_reserve(self.sets.len() + 1)?;
        Ok(self.sets.len() as u32 + 1)
    }

    /// Undoes [`Registry::reserve`].
    pub(crate) fn cancel(&mut self, index: u32) {
        // A new one is not there before it is inserted.
        if index as usize <= self.sets.len() {
            self.release(index);
        }
    }

    /// Enters a set at the index that was reserved just before.
    pub(crate) fn insert(&mut self, core: Arc<SetCore>) {
        if let SetType::Owned(owner) = &core.kind {
            self.owners.insert(owner.id(), core.index);
        }
        let place = core.index as usize - 1;
        if place == self.sets.len() {
            self.sets.push(Some(core));
        } else {
            self.sets[place] = Some(core);
        }
    }

    /// The set's owner finds it no more.
    pub(crate) fn disown(&mut self, core: &SetCore) {
        if let SetType::Owned(owner) = &core.kind {
            self.owners.remove(&owner.id());
        }
    }

    /// Takes a set out. Its index is not free before [`Registry::release`].
    pub(crate) fn remove(&mut self, index: u32) -> Option<Arc<SetCore>> {
        self.sets.get_mut(index as usize - 1)?.take()
    }

    pub(crate) fn release(&mut self, index: u32) {
        self.free.push(index);
    }

    /// The open set of an owner.
    pub(crate) fn of(&self, owner: &Owner) -> Option<&Arc<SetCore>> {
        self.sets.get(*self.owners.get(&owner.id())? as usize - 1)?.as_ref()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Arc<SetCore>> {
        self.sets.iter().flatten()
    }
}
