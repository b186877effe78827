//! What is attached to the devices of a VM, and what is left of that when it goes.
//!
//! ```text
//!            place                              entry, reference
//!   attach   Opening ──► Committing ──► Open
//!   detach                              Closing ──► cleared ──► returned with the ticket
//!   free     any ──────────────────────► condemned ─FREE told─► cleared ──► returned
//! ```
//!
//! Whoever takes a place out of the table counts its page table as no longer used there; whoever
//! finds his own gone when he comes back has nothing to do but to let go of what he holds.

use alloc::collections::BTreeMap;
use alloc::sync::Arc;
use alloc::vec::Vec;

use ioasid::Tag;
use pci::RequesterId;

use crate::software::attached::Attached;
use crate::software::bindings::Binding;
use crate::software::pasids::Ref;
use crate::software::platform::Domain;
use crate::{GuestPasid, HwptId, ObjectError, Pasid, Ticket};

/// The devices of a VM that something is, or was, attached to.
#[derive(Debug, Default)]
pub(in crate::software) struct Devices {
    all: BTreeMap<RequesterId, Device>,
    /// Tells the occupants of one place apart.
    occupants: u64,
    /// Attachments of PASIDs that were given back, until the FREE is told; by when no access can
    /// name the PASID any more, and the host's number.
    condemned: BTreeMap<(Ticket, u32), Condemned>,
    condemned_at: BTreeMap<u32, Ticket>,
    /// By when they go, and a number of their own.
    returning: BTreeMap<(Ticket, u64), Returning>,
    returns: u64,
    /// Tickets up to this one are not complete while something condemned of before them is left.
    strict: Option<Ticket>,
}

/// What is attached to one device.
#[derive(Debug)]
pub(super) struct Device {
    pub(super) attached: Arc<Attached>,
    /// Tags all that is cached of the device: entries of one PASID on two devices may differ.
    pub(super) domain: Arc<Domain>,
    /// Whether the device is translated by what is attached.
    pub(super) adopted: bool,
    places: BTreeMap<Option<GuestPasid>, Place>,
    /// Entries that were cleared and are to be wiped, and when. One that is programmed meanwhile
    /// and cleared again has a later time.
    cleared: BTreeMap<Pasid, Ticket>,
}

/// Where a page table is attached.
#[derive(Debug)]
pub(super) struct Place {
    pub(super) hwpt: HwptId,
    occupant: u64,
    /// Index of its entry in the host's table.
    pub(super) host: Pasid,
    /// Of a PASID: which life of it.
    tag: Option<Tag>,
    pub(super) state: State,
}

/// How far it is attached.
#[derive(Debug)]
pub(super) enum State {
    /// Others are being asked; nothing is programmed.
    Opening,
    /// The entry is programmed and others are being told. The reference is that of the caches.
    Committing(Ref),
    /// Done; with what holds the PASID, if it is one.
    Open(Option<(Binding, Ref)>),
    /// Others are being told that it ends; whoever tells them holds the PASID.
    Closing,
}

/// Which occupant of which place.
#[derive(Clone, Copy, Debug)]
pub(super) struct Key {
    pub(super) device: RequesterId,
    pub(super) pasid: Option<GuestPasid>,
    occupant: u64,
}

/// What is attached of a PASID that was given back.
#[derive(Debug)]
struct Condemned {
    tag: Tag,
    entries: Vec<Cleared>,
    held: Vec<Held>,
}

/// An entry of a host's table that is not present any more.
#[derive(Debug)]
pub(super) struct Cleared {
    pub(super) device: RequesterId,
    pub(super) attached: Arc<Attached>,
    pub(super) host: Pasid,
}

/// What holds a PASID. Dropping it may call subscribers.
#[derive(Debug)]
pub(super) struct Held {
    binding: Option<Binding>,
    reference: Option<Ref>,
}

/// What goes when a ticket is complete.
#[derive(Debug)]
pub(super) enum Returning {
    /// The rest of an entry.
    Entry(Cleared),
    /// The reference that stood for what was cached.
    Reference { _reference: Ref },
    /// The tag of what was cached.
    Domain { _domain: Arc<Domain> },
}

/// What is to be dropped with no lock held.
#[derive(Debug, Default)]
#[must_use = "to be dropped after the lock is released"]
pub(in crate::software) struct Outcome {
    held: Vec<Held>,
    returned: Vec<Returning>,
    attached: Vec<Arc<Attached>>,
    pruned: Option<Device>,
}

impl Outcome {
    pub(super) fn push(&mut self, held: Held) {
        self.held.push(held);
    }

    pub(super) fn prune(&mut self, device: Option<Device>) {
        self.pruned = device;
    }
}

impl Held {
    pub(super) fn new(binding: Option<Binding>, reference: Option<Ref>) -> Self {
        Self { binding, reference }
    }

    /// Ends the binding: others are told, unless it was not the last or the PASID is freed.
    pub(super) fn unbind(&mut self) {
        self.binding = None;
    }

    /// Takes the reference, to be given back.
    pub(super) fn returning(&mut self) -> Option<Returning> {
        self.reference.take().map(|reference| Returning::Reference { _reference: reference })
    }

    /// What an occupant in that state holds.
    pub(super) fn of(state: State) -> Self {
        match state {
            State::Opening | State::Closing => Self::new(None, None),
            State::Committing(reference) => Self::new(None, Some(reference)),
            State::Open(held) => {
                let (binding, reference) = held.unzip();
                Self::new(binding, reference)
            }
        }
    }
}

impl Device {
    pub(super) fn new(attached: Arc<Attached>, domain: Arc<Domain>) -> Self {
        Self { attached, domain, adopted: false, places: BTreeMap::new(), cleared: BTreeMap::new() }
    }

    /// Whether that is this device's, and not that of an earlier device with its number.
    fn is(&self, attached: &Arc<Attached>) -> bool {
        Arc::ptr_eq(&self.attached, attached)
    }

    /// The PASIDs that something is attached to.
    pub(super) fn pasids(&self) -> impl Iterator<Item = (GuestPasid, &Place)> {
        self.places.iter().filter_map(|(pasid, place)| Some(((*pasid)?, place)))
    }

    pub(super) fn place(&self, pasid: Option<GuestPasid>) -> Option<&Place> {
        self.places.get(&pasid)
    }

    pub(super) fn place_mut(&mut self, pasid: Option<GuestPasid>) -> Option<&mut Place> {
        self.places.get_mut(&pasid)
    }
}

impl Devices {
    pub(super) fn get(&self, device: RequesterId) -> Option<&Device> {
        self.all.get(&device)
    }

    pub(super) fn get_mut(&mut self, device: RequesterId) -> Option<&mut Device> {
        self.all.get_mut(&device)
    }

    pub(super) fn insert(&mut self, device: RequesterId, state: Device) {
        self.all.insert(device, state);
    }

    /// What a channel of the device is translated by, if by what is attached.
    pub(in crate::software) fn adopted(&self, device: RequesterId) -> Option<Arc<Attached>> {
        let device = self.all.get(&device).filter(|device| device.adopted)?;
        Some(device.attached.clone())
    }

    /// Every place where `hwpt` is attached and programmed.
    pub(super) fn places_of(
        &self,
        hwpt: HwptId,
    ) -> impl Iterator<Item = (RequesterId, &Device, Option<GuestPasid>)> {
        self.all.iter().flat_map(move |(&requester, device)| {
            let programmed =
                move |place: &Place| place.hwpt == hwpt && !matches!(place.state, State::Opening);
            let places = device.places.iter().filter(move |(_, place)| programmed(place));
            places.map(move |(&pasid, _)| (requester, device, pasid))
        })
    }

    /// Occupies a place that nobody has, of a device that is there.
    pub(super) fn occupy(
        &mut self,
        (device, pasid): (RequesterId, Option<GuestPasid>),
        hwpt: HwptId,
        (host, tag): (Pasid, Option<Tag>),
    ) -> Result<Key, ObjectError> {
        let places = match self.all.get_mut(&device) {
            Some(device) => &mut device.places,
            None => return Err(ObjectError::NoDevice(device)),
        };
        if places.contains_key(&pasid) {
            return Err(ObjectError::Busy);
        }
        self.occupants += 1;
        let occupant = self.occupants;
        places.insert(pasid, Place { hwpt, occupant, host, tag, state: State::Opening });
        Ok(Key { device, pasid, occupant })
    }

    /// The place that `key` was given for, if it still has that occupant.
    pub(super) fn occupied(&mut self, key: Key) -> Option<(&mut Place, &Arc<Attached>)> {
        let device = self.all.get_mut(&key.device)?;
        let place = device.places.get_mut(&key.pasid);
        let place = place.filter(|place| place.occupant == key.occupant)?;
        Some((place, &device.attached))
    }

    /// Which occupant a place has.
    pub(super) fn key(&self, device: RequesterId, pasid: Option<GuestPasid>) -> Option<Key> {
        let occupant = self.all.get(&device)?.places.get(&pasid)?.occupant;
        Some(Key { device, pasid, occupant })
    }

    /// Takes a place away from its occupant, if it still has it.
    pub(super) fn vacate(&mut self, key: Key) -> Option<Place> {
        self.occupied(key)?;
        let device = self.all.get_mut(&key.device)?;
        device.places.remove(&key.pasid)
    }

    /// Takes a device that has never had anything attached, and is not about to.
    pub(super) fn prune(&mut self, device: RequesterId) -> Option<Device> {
        let unused = |device: &Device| !device.adopted && device.places.is_empty();
        self.all.get(&device).filter(|device| unused(device))?;
        self.all.remove(&device)
    }

    /// Condemns what is attached of the PASIDs that `of` picks, which were given back; `drained`
    /// is when no access names them any more. Gives the page tables that are no longer used.
    pub(in crate::software) fn condemn(
        &mut self,
        of: impl Fn(GuestPasid) -> bool,
        drained: Ticket,
    ) -> Vec<HwptId> {
        let mut unused = Vec::new();
        for (&requester, device) in &mut self.all {
            let picked = |pasid: &Option<GuestPasid>| pasid.is_some_and(&of);
            let pasids: Vec<_> = device.places.keys().copied().filter(picked).collect();
            for pasid in pasids {
                let Some(place) = device.places.remove(&pasid) else { continue };
                unused.push(place.hwpt);
                let Some(tag) = place.tag else { continue };
                let number = tag.id().0;
                self.condemned_at.insert(number, drained);
                let none = || Condemned { tag, entries: Vec::new(), held: Vec::new() };
                let condemned = self.condemned.entry((drained, number)).or_insert_with(none);
                let (attached, host) = (device.attached.clone(), place.host);
                condemned.entries.push(Cleared { device: requester, attached, host });
                condemned.held.push(Held::of(place.state));
            }
        }
        unused
    }

    /// Has `ticket` be complete only when nothing condemned of before it is left.
    pub(in crate::software) fn insist(&mut self, ticket: Ticket) {
        self.strict = Some(ticket);
    }

    /// Whether what is condemned keeps `ticket` from being complete.
    pub(in crate::software) fn delays(&self, ticket: Ticket) -> bool {
        self.strict.is_some_and(|strict| ticket <= strict) && self.standing() <= ticket
    }

    /// Since when something condemned has been standing; the last of tickets if nothing is.
    pub(in crate::software) fn standing(&self) -> Ticket {
        self.condemned.keys().next().map_or(Ticket(u64::MAX), |&(drained, _)| drained)
    }

    /// Clears the entries of a PASID that was freed.
    pub(super) fn take_down(&mut self, tag: Tag) -> Outcome {
        let mut outcome = Outcome::default();
        let number = tag.id().0;
        let Some(&drained) = self.condemned_at.get(&number) else { return outcome };
        let key = (drained, number);
        if self.condemned.get(&key).is_none_or(|condemned| condemned.tag != tag) {
            return outcome;
        }
        self.condemned_at.remove(&number);
        let Some(condemned) = self.condemned.remove(&key) else { return outcome };
        for entry in condemned.entries {
            entry.attached.clear(entry.host);
            self.wipe_at(entry, drained);
        }
        for mut held in condemned.held {
            self.give_back(drained, held.returning());
            outcome.push(held);
        }
        outcome
    }

    /// Wipes an entry that is cleared once `at` is complete.
    pub(super) fn wipe_at(&mut self, entry: Cleared, at: Ticket) {
        let device = self.all.get_mut(&entry.device);
        let Some(device) = device.filter(|device| device.is(&entry.attached)) else { return };
        device.cleared.insert(entry.host, at);
        self.give_back(at, Some(Returning::Entry(entry)));
    }

    /// Lets something go once `at` is complete.
    pub(super) fn give_back(&mut self, at: Ticket, what: Option<Returning>) {
        let Some(what) = what else { return };
        self.returns += 1;
        self.returning.insert((at, self.returns), what);
    }

    /// Takes a device, with all that is attached to it; `gone` is when none of its accesses is in
    /// flight. Gives the page tables that are no longer used.
    pub(in crate::software) fn remove(
        &mut self,
        device: RequesterId,
        gone: Ticket,
    ) -> (Vec<HwptId>, Outcome) {
        let mut outcome = Outcome::default();
        let Some(Device { attached, domain, places, .. }) = self.all.remove(&device) else {
            return (Vec::new(), outcome);
        };
        let mut unused = Vec::new();
        for place in places.into_values() {
            unused.push(place.hwpt);
            let mut held = Held::of(place.state);
            self.give_back(gone, held.returning());
            outcome.push(held);
        }
        outcome.attached.push(attached);
        self.give_back(gone, Some(Returning::Domain { _domain: domain }));
        (unused, outcome)
    }

    /// What goes now that everything up to `complete` is over.
    pub(in crate::software) fn settle(&mut self, complete: Ticket) -> Outcome {
        let mut outcome = Outcome::default();
        while let Some(first) = self.returning.first_entry() {
            if first.key().0 > complete {
                break;
            }
            let ((at, _), returning) = first.remove_entry();
            if let Returning::Entry(Cleared { device, attached, host }) = &returning {
                self.wipe(*device, attached, *host, at);
            }
            outcome.returned.push(returning);
        }
        outcome
    }

    fn wipe(&mut self, device: RequesterId, attached: &Arc<Attached>, host: Pasid, at: Ticket) {
        let device = self.all.get_mut(&device).filter(|device| device.is(attached));
        let Some(device) = device else { return };
        if device.cleared.get(&host) == Some(&at) {
            device.cleared.remove(&host);
            attached.wipe(host);
        }
    }

    /// When all that is to be given back is over; `None` if there is nothing.
    pub(in crate::software) fn drained(&self) -> Option<Ticket> {
        self.returning.last_key_value().map(|((at, _), _)| *at)
    }
}
