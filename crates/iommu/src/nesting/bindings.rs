//! What a VMM keeps that shadows a guest's VT-d PASID tables in the host's.

mod numbers;
mod tables;

use alloc::collections::BTreeMap;
use alloc::vec::Vec;

use mem::{Iova, Range};
use numbers::{Held, Numbers};
use pci::RequesterId;
use tables::Tables;

use crate::{
    FaultQueueId, GuestPasid, HwptId, Invalidation, ObjectError, ObjectId, Pasid,
    StageOneInvalidation, Ticket, Vm, VtdStageOne,
};

/// Entries that one [`Bindings`] holds at most, over all devices, and nested tables.
pub const MAX_BINDINGS: usize = 1 << 14;

/// PASIDs with nothing bound that are kept for a guest that numbers its own.
pub const IDLE_PASIDS: usize = 16;

/// What is bound in one place: for a device's requests with one PASID, or without any.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Entry {
    /// Stage 2 alone (VT-d: pass-through).
    PassThrough,
    /// A guest's first stage over stage 2.
    StageOne(VtdStageOne),
}

/// What [`Bindings::set`] did.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use = "the old translation is in use until the ticket is complete"]
pub enum Change {
    /// Nothing: it was so already.
    Nothing,
    /// Bound where nothing was.
    Bound,
    /// Another table in the place of one, which is not in use any more once the ticket is complete.
    Replaced(Ticket),
    /// Unbound; what was bound is not in use any more once the ticket is complete.
    Unbound(Ticket),
}

impl Change {
    /// What to wait for.
    pub const fn ticket(self) -> Option<Ticket> {
        match self {
            Self::Nothing | Self::Bound => None,
            Self::Replaced(ticket) | Self::Unbound(ticket) => Some(ticket),
        }
    }
}

/// The bindings that an invalidation is about.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Scope {
    /// All of them.
    All,
    /// Those of a device.
    Device(RequesterId),
    /// Those of a PASID, whichever the device.
    Pasid(GuestPasid),
    /// One: of a device's requests with a PASID, or without.
    Entry(RequesterId, Option<GuestPasid>),
}

impl Scope {
    /// The first and the last place that may belong to it, in the order of places.
    fn bounds(&self) -> (Place, Place) {
        let (first, last) = (None, Some(GuestPasid(Pasid::MAX)));
        match *self {
            Self::All | Self::Pasid(_) => {
                ((RequesterId::from_bits(0), first), (RequesterId::from_bits(u16::MAX), last))
            }
            Self::Device(device) => ((device, first), (device, last)),
            Self::Entry(device, pasid) => ((device, pasid), (device, pasid)),
        }
    }
}

type Place = (RequesterId, Option<GuestPasid>);

/// What is bound for the devices of one VM, by device and guest PASID, over one nesting parent.
///
/// It compares what a guest wants with what is bound, and makes the least calls that lead there.
/// Nested tables are its own: one for each (root, width, flags), shared by all entries that name
/// it, ended with the last. A call that fails has changed nothing, here or in the host.
///
/// A VT-d device whose places are bound here should have nothing attached by anybody else. What
/// the host itself undoes (a PASID that was freed while bound) is noticed when the place is set
/// the next time to something else; [`clear`](Self::clear) the PASID before it is freed.
///
/// Dropped, it leaves what it bound as it is: the end of the VM ends that too.
#[derive(Debug)]
pub struct Bindings<V> {
    vm: V,
    numbers: Numbers,
    tables: Tables,
    entries: BTreeMap<Place, Entry>,
}

impl<V: Vm> Bindings<V> {
    /// None yet, over the nesting parent `parent`; PASIDs are bound that the VM was granted.
    pub fn new(vm: V, parent: HwptId) -> Self {
        let tables = Tables::new(parent);
        Self { vm, numbers: Numbers::Granted, tables, entries: BTreeMap::new() }
    }

    /// None yet, for a guest that numbers its PASIDs itself: each is granted, by exactly its
    /// number, when it is first bound, and given back some time after it is last unbound
    /// ([`IDLE_PASIDS`]).
    pub fn numbered_by_guest(vm: V, parent: HwptId) -> Self {
        Self { numbers: Numbers::Guest(Held::default()), ..Self::new(vm, parent) }
    }

    /// The same, with `queue` for the page requests of what is bound: nothing is bound yet.
    #[must_use]
    pub fn with_fault_queue(self, queue: Option<FaultQueueId>) -> Self {
        Self { tables: self.tables.with_fault_queue(queue), ..self }
    }

    /// Has a device's requests with `pasid` (`None`: those without one) translated by the guest's
    /// first stage `want`, or blocked.
    ///
    /// # Errors
    ///
    /// What the host says; [`ObjectError::TooMany`] at [`MAX_BINDINGS`] or, for a guest that numbers
    /// its PASIDs, when its quota is out; [`ObjectError::NotGranted`] if the number is not to be
    /// had. What was bound stays.
    pub fn set(
        &mut self,
        device: RequesterId,
        pasid: Option<GuestPasid>,
        want: Option<VtdStageOne>,
    ) -> Result<Change, ObjectError> {
        self.set_entry(device, pasid, want.map(Entry::StageOne))
    }

    /// The same for any kind of entry.
    ///
    /// # Errors
    ///
    /// As [`set`](Self::set).
    pub fn set_entry(
        &mut self,
        device: RequesterId,
        pasid: Option<GuestPasid>,
        want: Option<Entry>,
    ) -> Result<Change, ObjectError> {
        let place = (device, pasid);
        match (self.entries.get(&place).copied(), want) {
            (have, want) if have == want => Ok(Change::Nothing),
            (None, Some(want)) => self.bind(place, want),
            (Some(have), Some(want)) => self.replace(place, have, want),
            (Some(have), None) => self.unbind(place, have).map(Change::Unbound),
            (None, None) => Ok(Change::Nothing),
        }
    }

    /// The first stage that is bound there.
    pub fn bound(&self, device: RequesterId, pasid: Option<GuestPasid>) -> Option<VtdStageOne> {
        match self.entry(device, pasid)? {
            Entry::StageOne(table) => Some(table),
            Entry::PassThrough => None,
        }
    }

    /// What is bound there.
    pub fn entry(&self, device: RequesterId, pasid: Option<GuestPasid>) -> Option<Entry> {
        self.entries.get(&(device, pasid)).copied()
    }

    /// Everything that is bound, by device and PASID.
    pub fn iter(&self) -> impl Iterator<Item = (RequesterId, Option<GuestPasid>, Entry)> + '_ {
        self.entries.iter().map(|(&(device, pasid), &entry)| (device, pasid, entry))
    }

    /// Number of places with something bound.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether nothing is bound.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Unbinds everything of a device; see [`clear`](Self::clear).
    ///
    /// # Errors
    ///
    /// As `clear`.
    pub fn clear_device(&mut self, device: RequesterId) -> Result<Option<Ticket>, ObjectError> {
        self.clear(Scope::Device(device))
    }

    /// Unbinds what `scope` says, those with PASID before those without; `None` if there was
    /// nothing. PASIDs that it leaves idle are given back at once.
    ///
    /// # Errors
    ///
    /// The first of the host's; the others of the scope are unbound all the same.
    pub fn clear(&mut self, scope: Scope) -> Result<Option<Ticket>, ObjectError> {
        let places: Vec<_> = self.places(scope).rev().collect();
        let mut result = Ok(None);
        for place in places {
            let Some(&have) = self.entries.get(&place) else { continue };
            match (self.unbind(place, have), &mut result) {
                (Ok(ticket), Ok(latest)) => *latest = (*latest).max(Some(ticket)),
                (Err(error), Ok(_)) => result = Err(error),
                (_, Err(_)) => {}
            }
        }
        self.numbers.free_idle(&self.vm);
        result
    }

    /// Forgets what the host, and the devices, made of the bound tables that `scope` says: the
    /// guest changed them. A table that serves several places is invalidated once, for all.
    ///
    /// # Errors
    ///
    /// [`ObjectError::NotAttached`] if nothing is bound there; the first of the host's otherwise,
    /// and then part of it may have been done.
    pub fn invalidate(
        &self,
        scope: Scope,
        what: &[StageOneInvalidation],
    ) -> Result<Ticket, ObjectError> {
        let mut tables = Vec::new();
        let mut pass_through = None;
        for place in self.places(scope) {
            match self.entries.get(&place) {
                Some(Entry::StageOne(table)) => tables.extend(self.tables.get(table)),
                Some(Entry::PassThrough) => pass_through = Some(place),
                None => {}
            }
        }
        tables.sort_unstable();
        tables.dedup();
        let mut latest = None;
        for hwpt in tables {
            let ticket = self.vm.invalidate_hwpt(hwpt, what).map_err(|(_, error)| error)?;
            latest = latest.max(Some(ticket));
        }
        match (latest, pass_through) {
            (Some(ticket), _) => Ok(ticket),
            // There is no first stage to forget, only a place in the order of tickets.
            (None, Some(place)) => Ok(self.now(place)),
            (None, None) => Err(ObjectError::NotAttached),
        }
    }

    /// Ends nested tables that the host still used when they were unbound. Every change does so,
    /// too.
    pub fn reap(&mut self) {
        self.tables.reap(&self.vm);
    }

    /// Nested tables that are left over, for who ends them later. There must be nothing bound.
    pub(super) fn into_retired(self) -> impl Iterator<Item = ObjectId> {
        self.tables.into_retired()
    }

    fn places(&self, scope: Scope) -> impl DoubleEndedIterator<Item = Place> + '_ {
        let (first, last) = scope.bounds();
        let places = self.entries.range(first..=last).map(|(place, _)| *place);
        places.filter(move |(_, pasid)| !matches!(scope, Scope::Pasid(of) if *pasid != Some(of)))
    }

    fn bind(&mut self, place: Place, want: Entry) -> Result<Change, ObjectError> {
        if self.entries.len() >= MAX_BINDINGS {
            return Err(ObjectError::TooMany { limit: MAX_BINDINGS });
        }
        let (device, pasid) = place;
        let fresh = match pasid {
            Some(pasid) => self.numbers.acquire(&self.vm, pasid)?,
            None => false,
        };
        let attached = self.acquire(device, want).and_then(|hwpt| {
            let attached = self.vm.attach_hwpt(device, pasid, hwpt);
            attached.inspect_err(|_| self.release(want))
        });
        if let Err(error) = attached {
            match pasid {
                Some(pasid) if fresh => self.numbers.undo(&self.vm, pasid),
                _ => self.release_number(pasid),
            }
            return Err(error);
        }
        self.entries.insert(place, want);
        Ok(Change::Bound)
    }

    fn replace(&mut self, place: Place, have: Entry, want: Entry) -> Result<Change, ObjectError> {
        let (device, pasid) = place;
        let hwpt = self.acquire(device, want)?;
        let replaced = match self.vm.replace_hwpt(device, pasid, hwpt) {
            Ok(ticket) => Ok(Change::Replaced(ticket)),
            // The host has undone it.
            Err(ObjectError::NotAttached) => {
                self.vm.attach_hwpt(device, pasid, hwpt).map(|()| Change::Bound)
            }
            Err(error) => Err(error),
        };
        match replaced {
            Ok(change) => {
                self.entries.insert(place, want);
                self.release(have);
                Ok(change)
            }
            Err(error) => {
                self.release(want);
                Err(error)
            }
        }
    }

    fn unbind(&mut self, place: Place, have: Entry) -> Result<Ticket, ObjectError> {
        let (device, pasid) = place;
        let ticket = match self.vm.detach_hwpt(device, pasid) {
            Ok(ticket) => ticket,
            // The host has undone it: the PASID was freed, the device left, the VM was closed.
            Err(ObjectError::NotAttached | ObjectError::NoDevice(_) | ObjectError::Closed) => {
                self.now(place)
            }
            Err(error) => return Err(error),
        };
        self.entries.remove(&place);
        self.release(have);
        self.release_number(pasid);
        Ok(ticket)
    }

    fn acquire(&mut self, device: RequesterId, want: Entry) -> Result<HwptId, ObjectError> {
        let Entry::StageOne(table) = want else { return Ok(self.tables.parent()) };
        if self.tables.get(&table).is_none() {
            self.tables.reap(&self.vm);
            if self.tables.len() >= MAX_BINDINGS {
                return Err(ObjectError::TooMany { limit: MAX_BINDINGS });
            }
        }
        self.tables.acquire(&self.vm, device, &table)
    }

    fn release(&mut self, entry: Entry) {
        if let Entry::StageOne(table) = entry {
            self.tables.release(&self.vm, &table);
        }
    }

    fn release_number(&mut self, pasid: Option<GuestPasid>) {
        if let Some(pasid) = pasid {
            self.numbers.release(&self.vm, pasid);
        }
    }

    /// A ticket of this moment, where the host had nothing to undo: by forgetting what the
    /// device's own TLB holds for a place that has nothing.
    fn now(&self, (requester, pasid): Place) -> Ticket {
        let range = Range { start: Iova(0), last: Iova(u64::MAX) };
        self.vm.invalidate(match pasid {
            Some(GuestPasid(pasid)) => {
                Invalidation::DeviceTlbPasid { requester, pasid: Some(pasid), range }
            }
            None => Invalidation::DeviceTlb { requester, range },
        })
    }
}
