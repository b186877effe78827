//! The PASIDs of one VM: a set of the host's space, and who of its members goes by which number.
//!
//! ```text
//!   claim ──► take (no lock held) ──► grant ──► park ──► release
//!             host number; in         live      freed:   its ticket is complete: no DMA in
//!             private numbering its             nobody   flight, PASID cache or IOTLB can
//!             SPID in the set                   finds it name it; the last reference goes
//! ```
//!
//! Quotas, states, references and SPIDs are the space's business. What is here is which SPID a VM
//! gets, and when the reference that stands for what may be cached goes.

use alloc::collections::{BTreeMap, VecDeque};
use alloc::sync::Arc;
use alloc::vec::Vec;

use ioasid::{HoldError, Ioasid, SetUsage, Spid, SpidError, Tag};

use super::pasids::{HostPasids, Lease, Member, ParkedAges, Reader, Ref, Set, Since};
use crate::pasid::{GrantState, PasidEntry};
use crate::sabotage::{self, Sabotage};
use crate::{
    AllocPasidError, FreePasidError, GuestPasid, HostError, HostPasid, Numbering, PageRequest,
    Pasid, PasidRange, PasidUsage, Ticket,
};

/// The PASIDs of one VM; under its lock. The default has none and grants none.
#[derive(Debug, Default)]
pub(crate) struct Grants {
    host: Option<Arc<HostPasids>>,
    /// `None` if its quota is zero.
    set: Option<Set>,
    numbering: Numbering,
    live: BTreeMap<Pasid, Grant>,
    /// In the order of their tickets.
    parked: VecDeque<Parked>,
    closed: bool,
}

/// The right to a PASID of the host, and the number that the VM has for it.
#[derive(Debug)]
struct Grant {
    guest: Pasid,
    member: Member,
}

/// A PASID that was given back.
#[derive(Debug)]
struct Parked {
    guest: Pasid,
    cached: Ref,
    /// When this is complete, nothing can name it any more.
    drained: Ticket,
}

/// What it takes to allocate.
#[derive(Debug)]
pub(crate) struct Claim {
    host: Arc<HostPasids>,
    set: Set,
    numbering: Numbering,
}

/// What came of a claim.
#[derive(Debug)]
pub(crate) struct Taken(Result<Grant, AllocPasidError>);

impl Claim {
    /// Allocates. To be called with no lock held, and the result handed to [`Grants::grant`].
    pub(crate) fn take(&self, range: PasidRange) -> Taken {
        Taken(self.try_take(range).map_err(|error| self.explain(error)))
    }

    /// Of two reasons, the one that no other range would have helped against.
    fn explain(&self, error: AllocPasidError) -> AllocPasidError {
        if error != AllocPasidError::NoneAvailable {
            return error;
        }
        let SetUsage { quota, live, parked } = self.set.usage();
        if live + parked < quota {
            return error;
        }
        AllocPasidError::QuotaExceeded { quota }
    }

    fn try_take(&self, range: PasidRange) -> Result<Grant, AllocPasidError> {
        let of_host = match self.numbering {
            Numbering::Identity => range,
            Numbering::Private => PasidRange::ALL,
        };
        let member = self.host.alloc_in(&self.set, of_host)?;
        let guest = match self.numbering {
            Numbering::Identity => Pasid::from_field(member.lease.id().0),
            Numbering::Private => self.number(&member.lease, range)?,
        };
        Ok(Grant { guest, member })
    }

    /// Gives a member the lowest number of the VM's that is free in `range`. Passes over those
    /// below that are taken: as many as the VM's quota at most.
    fn number(&self, lease: &Lease, range: PasidRange) -> Result<Pasid, AllocPasidError> {
        let none = AllocPasidError::NoneAvailable;
        let range = range.intersection(&PasidRange::ALL).ok_or(none)?;
        let reader = self.host.reader();
        let mut rest = range.first.get()..=range.last.get();
        loop {
            let guard = reader.pin();
            let is_free = |number: &u32| guard.find_by_spid(&self.set, Spid(*number)).is_none();
            let number = rest.find(is_free).ok_or(none)?;
            drop(guard);
            return match self.set.attach_spid(lease, Spid(number)) {
                Ok(()) => {
                    let number = Pasid::from_field(number);
                    lease.set_guest(number);
                    Ok(number)
                }
                // Parked, or somebody was faster.
                Err(SpidError::InUse { .. }) => continue,
                Err(SpidError::NoMemory) => Err(AllocPasidError::NoMemory),
                Err(SpidError::Invalid { .. }) => Err(none),
                // The set was closed meanwhile.
                Err(_) => Err(AllocPasidError::Closed),
            };
        }
    }
}

impl Grants {
    pub(crate) fn new(
        host: &Arc<HostPasids>,
        name: &str,
        quota: u32,
        numbering: Numbering,
    ) -> Result<Self, HostError> {
        let set = host.set(name, quota)?;
        Ok(Self { host: Some(host.clone()), set, numbering, ..Self::default() })
    }

    /// What is out, and what may be.
    pub(crate) fn usage(&self) -> PasidUsage {
        let Some(set) = self.set.as_ref().filter(|set| !set.is_drained()) else {
            return PasidUsage::default();
        };
        let usage = set.usage();
        PasidUsage { quota: usage.quota, live: usage.live, parked: usage.parked }
    }

    /// What it takes to allocate.
    pub(crate) fn claim(&self) -> Result<Claim, AllocPasidError> {
        if self.closed {
            return Err(AllocPasidError::Closed);
        }
        let (Some(host), Some(set)) = (&self.host, &self.set) else {
            return Err(AllocPasidError::QuotaExceeded { quota: 0 });
        };
        Ok(Claim { host: host.clone(), set: set.clone(), numbering: self.numbering })
    }

    /// Ends a claim: what was taken is the VM's. If the VM was closed meanwhile it is parked
    /// instead, until `closing` is complete: a device may have used the number unasked.
    pub(crate) fn grant(
        &mut self,
        taken: Taken,
        closing: Ticket,
    ) -> Result<GuestPasid, AllocPasidError> {
        let grant = taken.0?;
        if self.closed {
            self.parked.push_back(Parked { drained: closing, ..grant.revoked() });
            return Err(AllocPasidError::Closed);
        }
        let guest = grant.guest;
        self.live.insert(guest, grant);
        Ok(GuestPasid(guest))
    }

    /// The VM's reference of a PASID that is granted to it.
    pub(crate) fn granted(&self, pasid: GuestPasid) -> Option<&Ref> {
        self.live.get(&pasid.0).map(|grant| &grant.member.granted)
    }

    /// A reference to the PASID of a request, if that is granted to the VM and the request is one
    /// that is answered: until it has been, the number is no other PASID's.
    pub(crate) fn hold_for_answer(&self, request: &PageRequest) -> Result<Option<Ref>, HoldError> {
        let asks = request.wants_response() && !sabotage::is(Sabotage::ForgetAsker);
        let pasid = request.pasid.filter(|_| asks);
        let granted = pasid.and_then(|pasid| self.granted(GuestPasid(pasid)));
        let Some((granted, host)) = granted.zip(self.host.as_ref()) else { return Ok(None) };
        granted.share(host.page_requests()).map(Some)
    }

    /// The set of its PASIDs, and the space that they are of; `None` if its quota is zero.
    pub(crate) fn set(&self) -> Option<(&Arc<HostPasids>, &Set)> {
        self.host.as_ref().zip(self.set.as_ref())
    }

    /// Takes a PASID from the VM: no look-up that begins after this finds it. It has to be parked
    /// next.
    pub(crate) fn revoke(&mut self, pasid: GuestPasid) -> Result<Revoked, FreePasidError> {
        if self.closed {
            return Err(FreePasidError::Closed);
        }
        match self.live.remove(&pasid.0) {
            Some(grant) => Ok(Revoked(Vec::from([grant.revoked()]))),
            None if sabotage::is(Sabotage::ForgetOwner) => Ok(Revoked(Vec::new())),
            None => Err(FreePasidError::NotGranted(pasid)),
        }
    }

    /// Takes all PASIDs from the VM.
    pub(crate) fn revoke_all(&mut self) -> Revoked {
        let all = core::mem::take(&mut self.live).into_values();
        Revoked(all.map(Grant::revoked).collect())
    }

    /// Parks what was revoked before `drained` was asked for.
    pub(crate) fn park(&mut self, revoked: Revoked, drained: Ticket) {
        self.parked.extend(revoked.0.into_iter().map(|parked| Parked { drained, ..parked }));
    }

    /// Grants nothing any more. Gives the set, to be closed after the lock is released.
    pub(crate) fn close(&mut self) -> Option<Set> {
        self.closed = true;
        self.set.clone()
    }

    /// When this is complete, nothing is parked any more; `None` if nothing is.
    pub(crate) fn drained(&self) -> Option<Ticket> {
        self.parked.back().map(|parked| parked.drained)
    }

    /// What is to be dropped now that everything up to `complete` is over.
    pub(crate) fn release(&mut self, complete: Ticket) -> Released {
        let over =
            |parked: &Parked| parked.drained <= complete || sabotage::is(Sabotage::ReusePasid);
        let mut released = Vec::new();
        while self.parked.front().is_some_and(over) {
            released.extend(self.parked.pop_front());
        }
        let private = self.numbering == Numbering::Private && !released.is_empty();
        Released { parked: released, set: self.set.clone().filter(|_| private) }
    }

    /// Whether the VM is closed, what is out, and each of that; `None` if nothing ever will be.
    pub(crate) fn report(&self) -> Option<GrantsReport> {
        let gone = self.set.as_ref().is_none_or(Set::is_drained);
        if self.closed && gone {
            return None;
        }
        let out = |guest, reference: &Ref, state| {
            let (guest, since) = (GuestPasid(guest), reference.since);
            Out { guest, tag: reference.tag(), state, since }
        };
        let granted = self
            .live
            .values()
            .map(|grant| out(grant.guest, &grant.member.cached, GrantState::Live));
        let given = self.parked.iter().map(|one| out(one.guest, &one.cached, GrantState::Parked));
        let host = self.host.clone()?;
        let out = granted.chain(given).collect();
        // As listed: the space counts one on its way to the VM, or from it, a moment longer.
        let (live, parked) = (self.live.len() as u32, self.parked.len() as u32);
        let usage = PasidUsage { live, parked, ..self.usage() };
        Some(GrantsReport { host, closed: self.closed, usage, out })
    }

    /// What tells a device's accesses which PASIDs are granted.
    pub(crate) fn check(&self) -> GrantCheck {
        let (Some(host), Some(set)) = (&self.host, &self.set) else { return GrantCheck::Nothing };
        GrantCheck::Members { reader: host.reader(), set: set.clone(), numbering: self.numbering }
    }
}

impl Grant {
    /// Takes it back: no find that begins later returns it.
    fn revoked(self) -> Parked {
        let Self { guest, member: Member { lease, granted, cached } } = self;
        // If it is freed already, its set was closed: the very same.
        let _ = lease.free();
        drop(granted);
        Parked { guest, cached, drained: Ticket(u64::MAX) }
    }
}

/// What is out, noted under the VM's lock.
#[derive(Debug)]
pub(crate) struct GrantsReport {
    host: Arc<HostPasids>,
    pub(crate) closed: bool,
    pub(crate) usage: PasidUsage,
    out: Vec<Out>,
}

/// A PASID of the VM.
#[derive(Debug)]
struct Out {
    guest: GuestPasid,
    tag: Tag,
    state: GrantState,
    since: Since,
}

impl GrantsReport {
    /// What the space says of each; to be called with no lock held.
    pub(crate) fn entries(&self, parked: &ParkedAges) -> Vec<PasidEntry> {
        let entry = |out: &Out| PasidEntry {
            guest: out.guest,
            host: HostPasid(Pasid::from_field(out.tag.id().0)),
            state: out.state,
            holders: self.host.holders(out.tag.id()),
            domain: None,
            age: match out.state {
                GrantState::Live => self.host.age(out.since),
                GrantState::Parked => parked.of(out.tag),
            },
        };
        self.out.iter().map(entry).collect()
    }
}

/// Which PASIDs are granted, for the accesses of one channel: without a lock.
#[derive(Debug)]
pub(crate) enum GrantCheck {
    /// None.
    Nothing,
    /// The members of the VM's set, by the VM's numbers.
    Members { reader: Reader, set: Set, numbering: Numbering },
}

impl GrantCheck {
    /// Whether `pasid` is granted now.
    pub(crate) fn is_granted(&self, pasid: Pasid) -> bool {
        sabotage::is(Sabotage::IgnoreGrants) || self.host_of(pasid).is_some()
    }

    /// The host's PASID behind the VM's `pasid`, if that is granted now.
    pub(crate) fn host_of(&self, pasid: Pasid) -> Option<Pasid> {
        let Self::Members { reader, set, numbering } = self else { return None };
        let (guard, number) = (reader.pin(), pasid.get());
        match numbering {
            Numbering::Identity => guard.find_in(set, Ioasid(number)).ok().map(|_| pasid),
            Numbering::Private => {
                guard.find_by_spid(set, Spid(number)).map(|(_, tag)| Pasid::from_field(tag.id().0))
            }
        }
    }
}

impl GrantCheck {
    /// The VM's number for the host's PASID `host`, if that is granted to it now.
    pub(crate) fn guest_of(&self, host: Pasid) -> Option<Pasid> {
        let Self::Members { reader, set, numbering } = self else { return None };
        let guard = reader.pin();
        let kept = guard.find_in(set, Ioasid(host.get())).ok()?;
        match numbering {
            Numbering::Identity => Some(host),
            Numbering::Private => kept.guest(),
        }
    }
}

/// PASIDs that were taken from their VM and are not parked yet.
#[derive(Debug)]
#[must_use = "a PASID that is not parked is free at once"]
pub(crate) struct Revoked(Vec<Parked>);

/// References that are over; to be dropped after the lock is released.
#[derive(Debug, Default)]
pub(crate) struct Released {
    parked: Vec<Parked>,
    /// If they have SPIDs.
    set: Option<Set>,
}

impl Drop for Released {
    fn drop(&mut self) {
        let Some(set) = &self.set else { return };
        for parked in &self.parked {
            // So that the number is free at once, not when the space next looks.
            let _ = set.detach_spid(&parked.cached);
        }
    }
}
