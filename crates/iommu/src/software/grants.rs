//! The PASIDs of one VM: a set of the host's space, and who of its members goes by which number.
//!
//! ```text
//!   claim ──► take (no lock held) ──► grant ──► park ──► release
//!             host number, and in     live      freed:   its ticket is complete: no DMA in
//!             private numbering one             nobody   flight, PASID cache or IOTLB can
//!             of the VM's own                   finds it name it; the last reference goes
//! ```
//!
//! Quotas, states and references are the space's business. What is here is the VM's numbering, and
//! when the reference that stands for what may be cached goes.

use alloc::collections::{BTreeMap, VecDeque};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::time::Duration;

use ioasid::{
    Config, Geometry, HoldError, Holder, Ioasid, Lease, Ref, Set, SetUsage, Shape, Space,
};

use super::pasids::{iotlb, numbers, refusal, Cut, HostPasids, IOTLB};
use crate::pasid::{GrantState, PasidEntry};
use crate::sabotage::{self, Sabotage};
use crate::{
    AllocPasidError, FreePasidError, GuestPasid, HostError, HostPasid, Numbering, Pasid,
    PasidRange, PasidUsage, Ticket,
};

/// What keeps a live PASID's number from being granted again.
const GUEST: &str = "guest";

/// The PASIDs of one VM; under its lock. The default has none and grants none.
#[derive(Debug, Default)]
pub(crate) struct Grants {
    host: Option<Arc<HostPasids>>,
    /// `None` if its quota is zero.
    set: Option<Set<(), Cut>>,
    numbers: Numbers,
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
    Private(Space<(), One>, Holder),
}

/// One number at a time: so the lowest that is free.
type One = Geometry<10, 1>;

/// A number that is out, and the reference that keeps it from being handed out anew.
#[derive(Debug)]
struct Number<G: Shape> {
    lease: Lease<(), G>,
    held: Ref<(), G>,
}

impl<G: Shape> Number<G> {
    fn new(lease: Lease<(), G>, holder: &Holder) -> Result<Self, AllocPasidError> {
        match lease.share(holder) {
            Ok(held) => Ok(Self { lease, held }),
            Err(HoldError::NoMemory) => Err(AllocPasidError::NoMemory),
            // Its set was closed meanwhile.
            Err(_) => Err(AllocPasidError::Closed),
        }
    }

    fn pasid(&self) -> Pasid {
        Pasid::from_field(self.lease.id().0)
    }

    /// Takes it back: no find that begins later returns it.
    fn free(self) -> Ref<(), G> {
        // If it is freed already, its set was closed: the very same.
        let _ = self.lease.free();
        self.held
    }
}

/// The right to a PASID of the host, and to the number that the VM has for it.
#[derive(Debug)]
struct Grant {
    host: Number<Cut>,
    private: Option<Number<One>>,
    since: Option<Duration>,
}

impl Grant {
    fn guest(&self) -> Pasid {
        self.private.as_ref().map_or_else(|| self.host.pasid(), Number::pasid)
    }
}

/// A PASID that was given back.
#[derive(Debug)]
struct Parked {
    guest: Pasid,
    host: Ref<(), Cut>,
    _private: Option<Ref<(), One>>,
    since: Option<Duration>,
    /// When this is complete, nothing can name it any more.
    drained: Ticket,
}

/// What it takes to allocate.
#[derive(Debug)]
pub(crate) struct Claim {
    host: Arc<HostPasids>,
    set: Set<(), Cut>,
    numbers: Numbers,
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
        let since = self.host.now();
        let (range, private) = match &self.numbers {
            Numbers::Identity => (range, None),
            Numbers::Private(own, holder) => {
                let lease = own.alloc(numbers(range), ()).map_err(refusal)?;
                (PasidRange::ALL, Some(Number::new(lease, holder)?))
            }
        };
        let lease = self.set.alloc(numbers(range), ()).map_err(refusal)?;
        let host = Number::new(lease, self.host.iotlb())?;
        Ok(Grant { host, private, since })
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
        let numbers = match numbering {
            Numbering::Identity => Numbers::Identity,
            Numbering::Private => own_numbers().map_err(|_| HostError::NoMemory)?,
        };
        Ok(Self { host: Some(host.clone()), set, numbers, ..Self::default() })
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
        Ok(Claim { host: host.clone(), set: set.clone(), numbers: self.numbers.clone() })
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
            self.park_grant(grant, closing);
            return Err(AllocPasidError::Closed);
        }
        let guest = grant.guest();
        self.live.insert(guest, grant);
        Ok(GuestPasid(guest))
    }

    /// Takes a PASID from the VM: no look-up that begins after this finds it. It has to be parked
    /// next.
    pub(crate) fn revoke(&mut self, pasid: GuestPasid) -> Result<Revoked, FreePasidError> {
        if self.closed {
            return Err(FreePasidError::Closed);
        }
        let grant = self.live.remove(&pasid.0).ok_or(FreePasidError::NotGranted(pasid))?;
        Ok(Revoked(Vec::from([self.revoked(grant)])))
    }

    /// Takes all PASIDs from the VM.
    pub(crate) fn revoke_all(&mut self) -> Revoked {
        let all = core::mem::take(&mut self.live).into_values();
        Revoked(all.map(|grant| self.revoked(grant)).collect())
    }

    /// Parks what was revoked before `drained` was asked for.
    pub(crate) fn park(&mut self, revoked: Revoked, drained: Ticket) {
        self.parked.extend(revoked.0.into_iter().map(|parked| Parked { drained, ..parked }));
    }

    fn park_grant(&mut self, grant: Grant, drained: Ticket) {
        let parked = self.revoked(grant);
        self.parked.push_back(Parked { drained, ..parked });
    }

    fn revoked(&self, grant: Grant) -> Parked {
        Parked {
            guest: grant.guest(),
            host: grant.host.free(),
            _private: grant.private.map(Number::free),
            since: self.now(),
            drained: Ticket(u64::MAX),
        }
    }

    /// Grants nothing any more. Gives the set, to be closed after the lock is released.
    pub(crate) fn close(&mut self) -> Option<Set<(), Cut>> {
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
        Released { _parked: released }
    }

    /// Whether the VM is closed, what is out, and each of that; `None` if nothing ever will be.
    pub(crate) fn report(&self) -> Option<(bool, PasidUsage, Vec<PasidEntry>)> {
        let gone = self.set.as_ref().is_none_or(Set::is_drained);
        if self.closed && gone {
            return None;
        }
        let live = self.live.values().map(|grant| PasidEntry {
            guest: GuestPasid(grant.guest()),
            host: HostPasid(grant.host.pasid()),
            state: GrantState::Live,
            holders: Vec::from([GUEST]),
            domain: None,
            age: self.age(grant.since),
        });
        let parked = self.parked.iter().map(|parked| PasidEntry {
            guest: GuestPasid(parked.guest),
            host: HostPasid(Pasid::from_field(parked.host.id().0)),
            state: GrantState::Parked,
            holders: Vec::from([IOTLB]),
            domain: None,
            age: self.age(parked.since),
        });
        Some((self.closed, self.usage(), live.chain(parked).collect()))
    }

    /// What tells a device's accesses which PASIDs are granted.
    pub(crate) fn check(&self) -> GrantCheck {
        match (&self.host, &self.set, &self.numbers) {
            (Some(host), Some(set), Numbers::Identity) => {
                GrantCheck::Identity(host.reader(), set.clone())
            }
            (Some(_), Some(_), Numbers::Private(own, _)) => GrantCheck::Private(own.reader()),
            _ => GrantCheck::Nothing,
        }
    }

    fn now(&self) -> Option<Duration> {
        self.host.as_ref().and_then(|host| host.now())
    }

    fn age(&self, since: Option<Duration>) -> Option<Duration> {
        self.now().zip(since).map(|(now, since)| now.saturating_sub(since))
    }
}

/// A space for one VM's numbers: of one shard, so that the lowest free number is found.
fn own_numbers() -> Result<Numbers, ioasid::ConfigError> {
    let config = Config { shards: 1, ..Config::default() };
    let space = Space::with_geometry(config, ioasid::Hooks::default())?;
    let holder = iotlb(&space)?;
    Ok(Numbers::Private(space, holder))
}

/// Which PASIDs are granted, for the accesses of one channel: without a lock.
#[derive(Debug)]
pub(crate) enum GrantCheck {
    /// None.
    Nothing,
    /// The members of the VM's set.
    Identity(ioasid::Reader<(), Cut>, Set<(), Cut>),
    /// Those in the VM's own space.
    Private(ioasid::Reader<(), One>),
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
            Self::Identity(host, set) => host.pin().find_in(set, id).is_ok(),
            Self::Private(own) => own.pin().find(id).is_some(),
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
    _parked: Vec<Parked>,
}
