//! The PASID-entry cache of one channel.

use alloc::boxed::Box;
use alloc::vec;

use crate::format::smmuv3::Regime;
use crate::format::vtd::Translation;
use crate::{DomainId, Pasid, Vmid};

/// PASID-table entries that a channel caches at most; a power of two. Direct-mapped: a device
/// works for few PASIDs at a time, and those of one guest are close to each other.
pub(crate) const CAPACITY: usize = 128;

/// A PASID-table entry, checked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct PasidState {
    pub(crate) domain: DomainId,
    /// Whether faults are not recorded, by the entry or the directory.
    pub(crate) fault_disable: bool,
    /// Whether requests may name the PASID. If not, the entry is that of requests without PASID.
    pub(crate) granted: bool,
    pub(crate) translation: Translation,
}

/// An SMMUv3's context descriptor, checked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct DescriptorState {
    /// The guest whose it is.
    pub(crate) vmid: Vmid,
    /// As in [`PasidState`].
    pub(crate) granted: bool,
    pub(crate) regime: Regime,
}

/// What is cached for a PASID.
pub(crate) trait Tagged {
    fn domain(&self) -> DomainId;
}

impl Tagged for PasidState {
    fn domain(&self) -> DomainId {
        self.domain
    }
}

impl Tagged for DescriptorState {
    fn domain(&self) -> DomainId {
        DomainId(self.vmid.0)
    }
}

/// A direct-mapped table of PASID-table entries or context descriptors, of fixed size.
#[derive(Debug)]
pub(crate) struct PasidCache<S = PasidState> {
    /// Empty if closed.
    slots: Box<[Option<(Pasid, S)>]>,
    len: usize,
}

impl<S: Tagged + Clone> PasidCache<S> {
    pub(crate) fn new() -> Self {
        Self { slots: vec![None; CAPACITY].into_boxed_slice(), len: 0 }
    }

    /// A table that never holds anything.
    pub(crate) fn closed() -> Self {
        Self { slots: Box::default(), len: 0 }
    }

    /// Opens a table that was closed.
    pub(crate) fn open(&mut self) {
        if self.slots.is_empty() {
            *self = Self::new();
        }
    }

    /// Number of entries that it holds.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// The PASID and the domain of each entry.
    pub(crate) fn domains(&self) -> impl Iterator<Item = (Pasid, DomainId)> + '_ {
        self.slots.iter().flatten().map(|(pasid, state)| (*pasid, state.domain()))
    }

    pub(crate) fn get(&self, pasid: Pasid) -> Option<&S> {
        match self.slots.get(index(pasid))? {
            Some((of, state)) if *of == pasid => Some(state),
            _ => None,
        }
    }

    pub(crate) fn insert(&mut self, pasid: Pasid, state: S) {
        let Some(slot) = self.slots.get_mut(index(pasid)) else { return };
        if slot.replace((pasid, state)).is_none() {
            self.len += 1;
        }
    }

    /// Forgets every entry that `keep` does not want.
    pub(crate) fn retain(&mut self, mut keep: impl FnMut(Pasid, &S) -> bool) {
        if self.len == 0 {
            return;
        }
        for slot in &mut self.slots {
            if slot.as_ref().is_some_and(|(pasid, state)| !keep(*pasid, state)) {
                *slot = None;
                self.len -= 1;
            }
        }
    }
}

fn index(pasid: Pasid) -> usize {
    pasid.get() as usize % CAPACITY
}
