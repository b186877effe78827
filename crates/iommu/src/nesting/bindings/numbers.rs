//! Where the PASIDs of bindings come from.

use alloc::collections::{BTreeMap, VecDeque};

use super::IDLE_PASIDS;
use crate::{AllocPasidError, GuestPasid, ObjectError, PasidRange, Vm};

/// Who gets a PASID granted before it is bound.
#[derive(Debug)]
pub(super) enum Numbers {
    /// The guest, through the VMM: nothing to do.
    Granted,
    /// Nobody else: the guest takes any number, and it is granted when first bound.
    Guest(Held),
}

impl Numbers {
    /// Another binding of `pasid`; whether it was granted for that.
    pub(super) fn acquire<V: Vm>(
        &mut self,
        vm: &V,
        pasid: GuestPasid,
    ) -> Result<bool, ObjectError> {
        match self {
            Self::Granted => Ok(false),
            Self::Guest(held) => held.acquire(vm, pasid),
        }
    }

    /// One binding of `pasid` less.
    pub(super) fn release<V: Vm>(&mut self, vm: &V, pasid: GuestPasid) {
        if let Self::Guest(held) = self {
            held.release(vm, pasid);
        }
    }

    /// Takes back what was granted for a binding that came to nothing.
    pub(super) fn undo<V: Vm>(&mut self, vm: &V, pasid: GuestPasid) {
        if let Self::Guest(held) = self {
            held.free(vm, pasid);
        }
    }

    /// Gives back what nothing is bound to.
    pub(super) fn free_idle<V: Vm>(&mut self, vm: &V) {
        if let Self::Guest(held) = self {
            held.free_idle(vm, 0);
        }
    }
}

/// PASIDs granted on behalf of a guest that numbers its own.
///
/// The last few that it unbound are kept: it takes the same number again at once, and one that
/// was given back may be parked for as long as a DMA is in flight.
#[derive(Debug, Default)]
pub(super) struct Held {
    /// How many bindings each has.
    users: BTreeMap<GuestPasid, usize>,
    /// Those with none, the one that has been idle longest first.
    idle: VecDeque<GuestPasid>,
}

impl Held {
    fn acquire<V: Vm>(&mut self, vm: &V, pasid: GuestPasid) -> Result<bool, ObjectError> {
        if let Some(users) = self.users.get_mut(&pasid) {
            *users += 1;
            self.idle.retain(|idle| *idle != pasid);
            return Ok(false);
        }
        let mut granted = alloc_exactly(vm, pasid);
        if matches!(granted, Err(AllocPasidError::QuotaExceeded { .. })) && !self.idle.is_empty() {
            self.free_idle(vm, 0);
            granted = alloc_exactly(vm, pasid);
        }
        granted.map_err(|error| match error {
            AllocPasidError::QuotaExceeded { quota } => {
                ObjectError::TooMany { limit: usize::try_from(quota).unwrap_or(usize::MAX) }
            }
            AllocPasidError::NoneAvailable => ObjectError::NotGranted(pasid),
            AllocPasidError::Closed => ObjectError::Closed,
            AllocPasidError::NoMemory => ObjectError::NoMemory,
        })?;
        self.users.insert(pasid, 1);
        Ok(true)
    }

    fn release<V: Vm>(&mut self, vm: &V, pasid: GuestPasid) {
        let Some(users) = self.users.get_mut(&pasid) else { return };
        *users = users.saturating_sub(1);
        if *users == 0 {
            self.idle.push_back(pasid);
            self.free_idle(vm, IDLE_PASIDS);
        }
    }

    fn free_idle<V: Vm>(&mut self, vm: &V, keep: usize) {
        while self.idle.len() > keep {
            let Some(pasid) = self.idle.pop_front() else { return };
            self.free(vm, pasid);
        }
    }

    fn free<V: Vm>(&mut self, vm: &V, pasid: GuestPasid) {
        self.users.remove(&pasid);
        // An error says that it is not the VM's any more, which is what is wanted.
        let _ = vm.free_pasid(pasid);
    }
}

fn alloc_exactly<V: Vm>(vm: &V, pasid: GuestPasid) -> Result<GuestPasid, AllocPasidError> {
    vm.alloc_pasid(PasidRange { first: pasid.0, last: pasid.0 })
}
