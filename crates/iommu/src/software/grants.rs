//! The PASIDs of one VM.
//!
//! ```text
//!   claim ──► take (no lock held) ──► grant ──► park ──► release
//!   counted   host number, and in     live      nobody   its ticket is complete: no DMA in
//!             private numbering one             finds    flight, PASID cache or IOTLB can
//!             of the VM's own                   it       name it; the numbers go back
//! ```

use alloc::collections::{BTreeMap, VecDeque};
use alloc::vec::Vec;

use core::time::Duration;

use ioasid::{Ioasid, Lease, Space};

use super::pasids::{numbers, refusal, HostNumber, Owner, Promise, Source};
use crate::pasid::{GrantState, PasidEntry};
use crate::sabotage::{self, Sabotage};
use crate::sync::{AtomicBool, Ordering};
use crate::{
    AllocPasidError, FreePasidError, GuestPasid, HostError, HostPasid, Numbering, Pasid,
    PasidRange, PasidUsage, Ticket,
};

/// What keeps a live PASID's number from being granted again.
const HELD_BY_GUEST: &str = "guest";
/// … and a parked one's: what may be cached for it, and the accesses in flight that use that.
const HELD_BY_IOTLB: &str = "iotlb";

/// The PASIDs of one VM; under its lock. The default has none and grants none.
#[derive(Debug, Default)]
pub(crate) struct Grants {
    numbers: Numbers,
    /// Given back once the VM is closed and nothing is out any more.
    promise: Option<Promise>,
    /// Being allocated.
    claimed: u32,
    live: BTreeMap<Pasid, Grant>,
    /// In the order of their tickets.
    parked: VecDeque<Parked>,
    closed: bool,
}

/// Where a VM's own numbers come from.
#[derive(Clone, Debug, Default)]
enum Numbers {
    /// From the host.
    #[default]
    Identity,
    /// From a space that the VM has for itself.
    Private(Space<Revoked>),
}

/// Whether a number of a VM's own was taken from it.
type Revoked = AtomicBool;

/// The right to a PASID of the host, and to the number that the VM has for it. As long as it
/// lives, nobody else gets either.
#[derive(Debug)]
struct Grant {
    host: Lease<HostNumber>,
    private: Option<Lease<Revoked>>,
    since: Option<Duration>,
}

impl Grant {
    fn guest(&self) -> Pasid {
        Pasid::from_field(self.private.as_ref().map_or(self.host.id(), Lease::id).0)
    }

    /// From here on, no look-up finds it.
    fn revoke(&self) {
        self.host.revoke();
        if let Some(private) = &self.private {
            private.store(true, Ordering::Release);
        }
    }

    fn entry(&self, state: GrantState, now: Option<Duration>) -> PasidEntry {
        let holder = match state {
            GrantState::Live => HELD_BY_GUEST,
            GrantState::Parked => HELD_BY_IOTLB,
        };
        PasidEntry {
            guest: GuestPasid(self.guest()),
            host: HostPasid(Pasid::from_field(self.host.id().0)),
            state,
            holders: Vec::from([holder]),
            domain: None,
            age: now.zip(self.since).map(|(now, since)| now.saturating_sub(since)),
        }
    }
}

/// A PASID that was given back.
#[derive(Debug)]
struct Parked {
    grant: Grant,
    /// When this is complete, nothing can name it any more.
    drained: Ticket,
}

/// What it takes to allocate a PASID that is counted already.
#[derive(Debug)]
pub(crate) struct Claim {
    source: Source,
    numbers: Numbers,
    now: Option<Duration>,
}

/// What came of a claim.
#[derive(Debug)]
pub(crate) struct Taken(Result<Grant, AllocPasidError>);

impl Claim {
    /// Allocates. To be called with no lock held, and the result handed to [`Grants::grant`].
    pub(crate) fn take(self, range: PasidRange) -> Taken {
        Taken(self.try_take(range))
    }

    fn try_take(self, range: PasidRange) -> Result<Grant, AllocPasidError> {
        let Self { source, numbers: own, now: since } = self;
        match own {
            Numbers::Identity => Ok(Grant { host: source.alloc(range)?, private: None, since }),
            Numbers::Private(own) => {
                let number = own.alloc(numbers(range), Revoked::new(false)).map_err(refusal)?;
                let host = source.alloc(PasidRange::ALL)?;
                Ok(Grant { host, private: Some(number), since })
            }
        }
    }
}

impl Grants {
    pub(crate) fn new(numbering: Numbering, promise: Promise) -> Result<Self, HostError> {
        let numbers = match numbering {
            Numbering::Identity => Numbers::Identity,
            Numbering::Private => {
                // Its only other error is one of the configuration.
                let space = Space::new(ioasid::Config::default());
                Numbers::Private(space.map_err(|_| HostError::NoMemory)?)
            }
        };
        Ok(Self { numbers, promise: Some(promise), ..Self::default() })
    }

    pub(crate) fn usage(&self) -> PasidUsage {
        PasidUsage {
            quota: self.promise.as_ref().map_or(0, Promise::quota),
            live: self.claimed + self.live.len() as u32,
            parked: self.parked.len() as u32,
        }
    }

    /// Counts one PASID more.
    pub(crate) fn claim(&mut self) -> Result<Claim, AllocPasidError> {
        let Some(promise) = self.promise.as_ref().filter(|_| !self.closed) else {
            return Err(AllocPasidError::Closed);
        };
        let PasidUsage { quota, live, parked } = self.usage();
        if live + parked >= quota {
            return Err(AllocPasidError::QuotaExceeded { quota });
        }
        self.claimed += 1;
        let numbers = self.numbers.clone();
        Ok(Claim { source: promise.source(), numbers, now: promise.now() })
    }

    /// Ends a claim: what was taken is the VM's. If the VM was closed meanwhile it is parked
    /// instead, until `closing` is complete: a device may have used the number unasked.
    pub(crate) fn grant(
        &mut self,
        taken: Taken,
        closing: Ticket,
    ) -> Result<GuestPasid, AllocPasidError> {
        self.claimed -= 1;
        let grant = taken.0?;
        if self.closed {
            grant.revoke();
            self.parked.push_back(Parked { grant, drained: closing });
            return Err(AllocPasidError::Closed);
        }
        let guest = grant.guest();
        self.live.insert(guest, grant);
        Ok(GuestPasid(guest))
    }

    /// Whether `pasid` may be taken back.
    pub(crate) fn check_granted(&self, pasid: GuestPasid) -> Result<(), FreePasidError> {
        if self.closed {
            return Err(FreePasidError::Closed);
        }
        if !self.live.contains_key(&pasid.0) && !sabotage::is(Sabotage::ForgetOwner) {
            return Err(FreePasidError::NotGranted(pasid));
        }
        Ok(())
    }

    /// Takes a PASID from the VM: no look-up that begins after this finds it. It still counts.
    pub(crate) fn revoke(&self, pasid: GuestPasid) {
        if let Some(grant) = self.live.get(&pasid.0) {
            grant.revoke();
        } else if sabotage::is(Sabotage::ForgetOwner) {
            self.revoke_anybodys(pasid);
        }
    }

    /// The defect itself: takes a PASID of the host from whoever has it.
    fn revoke_anybodys(&self, pasid: GuestPasid) {
        let Some(promise) = &self.promise else { return };
        let host = promise.source().reader();
        let numbers = host.pin();
        if let Some(number) = numbers.find(Ioasid(pasid.0.get())) {
            number.revoke();
        }
    }

    pub(crate) fn revoke_all(&self) {
        self.live.values().for_each(Grant::revoke);
    }

    /// Parks a PASID that was revoked before `drained` was asked for.
    pub(crate) fn park(&mut self, pasid: GuestPasid, drained: Ticket) {
        let since = self.now();
        if let Some(grant) = self.live.remove(&pasid.0) {
            self.parked.push_back(Parked { grant: Grant { since, ..grant }, drained });
        }
    }

    /// Parks all PASIDs; they were revoked before `drained` was asked for.
    pub(crate) fn park_all(&mut self, drained: Ticket) {
        let since = self.now();
        let all = core::mem::take(&mut self.live).into_values();
        self.parked.extend(all.map(|grant| Parked { grant: Grant { since, ..grant }, drained }));
    }

    /// Grants nothing any more.
    pub(crate) fn close(&mut self, drained: Ticket) {
        self.closed = true;
        self.park_all(drained);
    }

    /// When this is complete, nothing is parked any more; `None` if nothing is.
    pub(crate) fn drained(&self) -> Option<Ticket> {
        self.parked.back().map(|parked| parked.drained)
    }

    /// What is to be dropped now that everything up to `complete` is over.
    pub(crate) fn release(&mut self, complete: Ticket) -> Released {
        let mut grants = Vec::new();
        let over =
            |parked: &Parked| parked.drained <= complete || sabotage::is(Sabotage::ReusePasid);
        while self.parked.front().is_some_and(over) {
            grants.extend(self.parked.pop_front().map(|parked| parked.grant));
        }
        let gone = self.closed && self.claimed == 0 && self.parked.is_empty();
        Released { _grants: grants, _promise: self.promise.take_if(|_| gone) }
    }

    /// Whether the VM is closed, what is out, and each of that; `None` if nothing ever will be.
    pub(crate) fn report(&self) -> Option<(bool, PasidUsage, Vec<PasidEntry>)> {
        let now = self.promise.as_ref()?.now();
        let live = self.live.values().map(|grant| grant.entry(GrantState::Live, now));
        let parked = self.parked.iter().map(|it| it.grant.entry(GrantState::Parked, now));
        Some((self.closed, self.usage(), live.chain(parked).collect()))
    }

    /// What tells a device's accesses which PASIDs are granted.
    pub(crate) fn check(&self) -> GrantCheck {
        let Some(promise) = &self.promise else { return GrantCheck::Nothing };
        let source = promise.source();
        match &self.numbers {
            Numbers::Identity => GrantCheck::Identity(source.reader(), source.owner()),
            Numbers::Private(own) => GrantCheck::Private(own.reader()),
        }
    }

    fn now(&self) -> Option<Duration> {
        self.promise.as_ref().and_then(Promise::now)
    }
}

/// Which PASIDs are granted, for the accesses of one channel: without a lock.
#[derive(Debug)]
pub(crate) enum GrantCheck {
    /// None.
    Nothing,
    /// Those of the host that belong to this owner.
    Identity(ioasid::Reader<HostNumber>, Owner),
    /// Those in the VM's own space.
    Private(ioasid::Reader<Revoked>),
}

impl GrantCheck {
    /// Whether `pasid` is granted now.
    pub(crate) fn is_granted(&self, pasid: Pasid) -> bool {
        if sabotage::is(Sabotage::IgnoreGrants) {
            return true;
        }
        let id = Ioasid(pasid.get());
        match self {
            Self::Nothing => false,
            Self::Identity(host, owner) => {
                host.pin().find(id).is_some_and(|number| number.is_granted_to(*owner))
            }
            Self::Private(own) => {
                own.pin().find(id).is_some_and(|revoked| !revoked.load(Ordering::Acquire))
            }
        }
    }
}

/// Numbers and quota on their way back to the host; dropped in this order, so that never more is
/// out than was promised.
#[derive(Debug, Default)]
pub(crate) struct Released {
    _grants: Vec<Grant>,
    _promise: Option<Promise>,
}
