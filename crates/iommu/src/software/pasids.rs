//! The PASIDs of a software host, and of each of its VMs.

use alloc::collections::BTreeMap;
use alloc::sync::Arc;
use alloc::vec::Vec;

use ioasid::{AllocError, Lease, Space};
use spin::mutex::SpinMutex;

use crate::{
    AllocPasidError, FreePasidError, GuestPasid, HostError, Numbering, Pasid, PasidRange,
    PasidUsage, Ticket,
};

/// The host's PASID space, and how much of it is promised to VMs.
#[derive(Debug)]
pub(crate) struct HostPasids {
    space: Space<()>,
    /// Sum of the quotas of all VMs that are not wholly gone; never above the space's capacity.
    promised: SpinMutex<u32>,
}

impl HostPasids {
    pub(crate) fn new(space: Space<()>) -> Self {
        Self { space, promised: SpinMutex::new(0) }
    }

    /// Sets `quota` PASIDs aside.
    pub(crate) fn promise(self: &Arc<Self>, quota: u32) -> Result<Promise, HostError> {
        let capacity = self.space.usage().capacity;
        let mut promised = self.promised.lock();
        let available = capacity - *promised;
        if quota > available {
            return Err(HostError::QuotaUnavailable { quota, available });
        }
        *promised += quota;
        Ok(Promise { host: self.clone(), quota })
    }
}

/// PASIDs of a host's space set aside for one VM; given back when dropped.
#[derive(Debug)]
pub(crate) struct Promise {
    host: Arc<HostPasids>,
    quota: u32,
}

impl Drop for Promise {
    fn drop(&mut self) {
        *self.host.promised.lock() -= self.quota;
    }
}

/// The PASIDs of one VM. Under the VM's lock.
#[derive(Debug, Default)]
pub(crate) struct VmPasids {
    numbering: Numbering,
    /// Given back once the VM is closed and nothing is parked any more.
    promise: Option<Promise>,
    live: BTreeMap<Pasid, Lease<()>>,
    parked: BTreeMap<Pasid, Parked>,
    closed: bool,
}

/// A PASID that was given back.
#[derive(Debug)]
struct Parked {
    lease: Lease<()>,
    /// When this is complete, no DMA in flight and no cache can name it.
    drained: Ticket,
}

impl VmPasids {
    pub(crate) fn new(numbering: Numbering, promise: Promise) -> Self {
        Self { numbering, promise: Some(promise), ..Self::default() }
    }

    pub(crate) fn usage(&self) -> PasidUsage {
        PasidUsage {
            quota: self.promise.as_ref().map_or(0, |promise| promise.quota),
            live: self.live.len() as u32,
            parked: self.parked.len() as u32,
        }
    }

    pub(crate) fn alloc(&mut self, range: PasidRange) -> Result<GuestPasid, AllocPasidError> {
        let Some(promise) = self.promise.as_ref().filter(|_| !self.closed) else {
            return Err(AllocPasidError::Closed);
        };
        let usage = self.usage();
        if usage.live + usage.parked >= usage.quota {
            return Err(AllocPasidError::QuotaExceeded { quota: usage.quota });
        }
        let (guest, wanted) = match self.numbering {
            Numbering::Identity => (None, range),
            Numbering::Private => (
                Some(self.lowest_free(range).ok_or(AllocPasidError::NoneAvailable)?),
                PasidRange::ALL,
            ),
        };
        let lease = promise.host.space.alloc(wanted.first.get()..=wanted.last.get(), ()).map_err(
            |error| match error {
                AllocError::NoMemory => AllocPasidError::NoMemory,
                _ => AllocPasidError::NoneAvailable,
            },
        )?;
        let guest = guest.unwrap_or(Pasid::from_field(lease.id().0));
        self.live.insert(guest, lease);
        Ok(GuestPasid(guest))
    }

    /// The lowest number of `range` that this VM neither has nor has parked.
    fn lowest_free(&self, range: PasidRange) -> Option<Pasid> {
        let range = range.intersection(&PasidRange::ALL)?;
        (range.first.get()..=range.last.get())
            .filter_map(Pasid::new)
            .find(|at| !self.live.contains_key(at) && !self.parked.contains_key(at))
    }

    /// Whether `pasid` is granted.
    pub(crate) fn check_granted(&self, pasid: GuestPasid) -> Result<(), FreePasidError> {
        if self.closed {
            return Err(FreePasidError::Closed);
        }
        if !self.live.contains_key(&pasid.0) {
            return Err(FreePasidError::NotGranted(pasid));
        }
        Ok(())
    }

    /// Takes `pasid` from the VM; its number is free again once `drained` is complete.
    pub(crate) fn park(&mut self, pasid: GuestPasid, drained: Ticket) {
        if let Some(lease) = self.live.remove(&pasid.0) {
            self.parked.insert(pasid.0, Parked { lease, drained });
        }
    }

    /// Takes all PASIDs from the VM.
    pub(crate) fn park_all(&mut self, drained: Ticket) {
        let all = core::mem::take(&mut self.live).into_iter();
        self.parked.extend(all.map(|(pasid, lease)| (pasid, Parked { lease, drained })));
    }

    /// Takes all PASIDs from the VM, for good.
    pub(crate) fn close(&mut self, drained: Ticket) {
        self.closed = true;
        self.park_all(drained);
    }

    /// When this is complete, nothing is parked any more; `None` if nothing is.
    pub(crate) fn drained(&self) -> Option<Ticket> {
        self.parked.values().map(|parked| parked.drained).max()
    }

    /// What is to be dropped now that everything up to `complete` is over.
    pub(crate) fn release(&mut self, complete: Ticket) -> Released {
        let over = |parked: &Parked| parked.drained <= complete;
        let mut leases = Vec::new();
        if self.parked.values().any(over) {
            let parked = core::mem::take(&mut self.parked);
            for (pasid, parked) in parked {
                if over(&parked) {
                    leases.push(parked.lease);
                } else {
                    self.parked.insert(pasid, parked);
                }
            }
        }
        let gone = self.closed && self.parked.is_empty();
        Released { _leases: leases, _promise: self.promise.take_if(|_| gone) }
    }
}

/// Leases and quota on their way back to the host: in this order, so that the space never owes
/// more than it has.
#[derive(Debug, Default)]
pub(crate) struct Released {
    _leases: Vec<Lease<()>>,
    _promise: Option<Promise>,
}
