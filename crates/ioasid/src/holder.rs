//! Who holds an ID, by name.

use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;

use hashbrown::HashMap;

use crate::memory::{self, copied, NoMemory};
use crate::sync::Mutex;

/// Most holders of one space.
pub const MAX_HOLDERS: usize = 256;

/// A user of IDs, under whose name references are counted ("iommu", "cpu", "vdcm of guest 3").
///
/// It grants nothing: it names who is to be asked about an ID that stays parked. Made by
/// [`Space::holder`](crate::Space::holder); good for that space alone. Clones are the same holder.
#[derive(Clone)]
pub struct Holder {
    pub(crate) index: u16,
    /// Its space's names: whose holder it is shows by identity.
    names: Arc<Names>,
}

impl Holder {
    /// Its name.
    pub fn name(&self) -> String {
        self.names.name(self.index)
    }

    pub(crate) fn belongs_to(&self, names: &Arc<Names>) -> bool {
        Arc::ptr_eq(&self.names, names)
    }
}

impl PartialEq for Holder {
    fn eq(&self, other: &Self) -> bool {
        self.index == other.index && Arc::ptr_eq(&self.names, &other.names)
    }
}

impl Eq for Holder {}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name())
    }
}

impl fmt::Debug for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Holder").field(&self.name()).finish()
    }
}

/// Why a [`Holder`] was not made. Nothing has changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum HolderError {
    /// The space has as many as it takes.
    #[error("the space has its limit of {MAX_HOLDERS} holders")]
    TooMany,
    /// There was no memory for its name.
    #[error("no memory for the holder's name")]
    NoMemory,
}

/// The holders of a space; an index is never used again.
#[derive(Debug)]
pub(crate) struct Names(Mutex<Vec<String>>);

impl Names {
    pub(crate) fn new() -> Arc<Self> {
        memory::shared(Self(Mutex::new(Vec::new())))
    }

    pub(crate) fn add(self: &Arc<Self>, name: &str) -> Result<Holder, HolderError> {
        let owned = copied(name).map_err(|NoMemory| HolderError::NoMemory)?;
        let mut names = self.0.lock();
        if names.len() >= MAX_HOLDERS {
            return Err(HolderError::TooMany);
        }
        names.try_reserve(1).map_err(|_| HolderError::NoMemory)?;
        names.push(owned);
        Ok(Holder { index: (names.len() - 1) as u16, names: self.clone() })
    }

    /// A copy of a name, for which there is memory before the lock is taken: a name never changes.
    pub(crate) fn copy(&self, index: u16) -> Result<String, NoMemory> {
        let mut copy = String::new();
        let len = self.0.lock().get(usize::from(index)).map_or(0, String::len);
        copy.try_reserve_exact(len)?;
        if let Some(name) = self.0.lock().get(usize::from(index)) {
            copy.push_str(name);
        }
        Ok(copy)
    }

    pub(crate) fn name(&self, index: u16) -> String {
        self.0.lock().get(usize::from(index)).cloned().unwrap_or_default()
    }
}

/// Counts of references by ID and holder; only pairs with a reference are there.
#[derive(Debug, Default)]
pub(crate) struct Holders(HashMap<(u32, u16), u32>);

impl Holders {
    /// Counts one more; the caller has seen to it that not even all together are too many.
    pub(crate) fn add(&mut self, number: u32, holder: u16) -> Result<(), NoMemory> {
        if let Some(count) = self.0.get_mut(&(number, holder)) {
            *count += 1;
            return Ok(());
        }
        self.0.try_reserve(1)?;
        self.0.insert((number, holder), 1);
        Ok(())
    }

    /// Counts one less; allocates nothing.
    pub(crate) fn remove(&mut self, number: u32, holder: u16) {
        if let Some(count) = self.0.get_mut(&(number, holder)) {
            *count -= 1;
            if *count == 0 {
                self.0.remove(&(number, holder));
            }
        }
    }

    /// Who holds `number`, with how many references. Asks for each holder that there can be: there
    /// may be far more IDs.
    pub(crate) fn of(&self, number: u32) -> impl Iterator<Item = (u16, u32)> + '_ {
        let most = if self.0.is_empty() { 0 } else { MAX_HOLDERS as u16 };
        (0..most).filter_map(move |by| Some((by, *self.0.get(&(number, by))?)))
    }
}
