//! `PASID_REQUEST`, as posted and as ours.

use alloc::collections::BTreeSet;
use alloc::vec::Vec;

use iommu::{AllocPasidError, GuestPasid, Pasid, PasidRange, PasidUsage, Vm};
use spin::mutex::SpinMutex;
use zerocopy::FromZeros;

use crate::argument::{copy_in, copy_out};
use crate::spec::flags::*;
use crate::spec::{OwnPasidRequest, PasidRequest};
use crate::{Refusal, Reply};

/// The PASIDs that were granted through one container: what a range of numbers can mean at most.
/// As many as the VM's quota.
#[derive(Debug, Default)]
pub(super) struct Granted(SpinMutex<BTreeSet<Pasid>>);

impl Granted {
    fn alloc<V: Vm>(&self, vm: &V, min: u32, max: u32) -> Result<GuestPasid, Refusal> {
        let range = range(min, max)?.ok_or(AllocPasidError::NoneAvailable)?;
        // Under the lock, so that a free of it on another thread finds it.
        let mut granted = self.0.lock();
        let pasid = vm.alloc_pasid(range)?;
        granted.insert(pasid.0);
        Ok(pasid)
    }

    /// Takes back what lies in the range and was granted here; gives how many that were. Work in
    /// proportion to that, whatever the range.
    fn free<V: Vm>(&self, vm: &V, min: u32, max: u32) -> Result<u32, Refusal> {
        let Some(PasidRange { first, last }) = range(min, max)? else { return Ok(0) };
        let freed: Vec<_> = {
            let mut granted = self.0.lock();
            let freed: Vec<_> = granted.range(first..=last).copied().collect();
            freed.iter().for_each(|pasid| _ = granted.remove(pasid));
            freed
        };
        // With no lock held: who uses one is asked to let go of it.
        let is_freed = |pasid: &Pasid| vm.free_pasid(GuestPasid(*pasid)).is_ok();
        Ok(freed.iter().filter(|pasid| is_freed(pasid)).count() as u32)
    }

    /// Forgets all: the VM has taken them back.
    pub(super) fn clear(&self) {
        self.0.lock().clear();
    }

    #[cfg(test)]
    pub(super) fn all(&self) -> BTreeSet<Pasid> {
        self.0.lock().clone()
    }

    /// The posted call: the PASID is the return value.
    pub(super) fn posted<V: Vm>(&self, vm: &V, argument: &mut [u8]) -> Result<Reply, Refusal> {
        let PasidRequest { flags, min, max, .. } = copy_in(argument)?;
        let value = match flags {
            PASID_ALLOC => self.alloc(vm, min, max).map_err(one_error)?.0.get(),
            PASID_FREE => {
                self.free(vm, min, max)?;
                0
            }
            _ => return Err(Refusal::Flags { flags }),
        };
        Ok(Reply { value, ..Reply::default() })
    }

    /// Our own call: every result is in the structure.
    pub(super) fn own<V: Vm>(&self, vm: &V, argument: &mut [u8]) -> Result<Reply, Refusal> {
        let mut request: OwnPasidRequest = copy_in(argument)?;
        let result = self.answer(vm, &mut request);
        copy_out(&request, argument);
        result.map(|()| Reply::default())
    }

    fn answer<V: Vm>(&self, vm: &V, request: &mut OwnPasidRequest) -> Result<(), Refusal> {
        let OwnPasidRequest { argsz, flags, min, max, .. } = *request;
        *request = OwnPasidRequest { argsz, flags, min, max, ..OwnPasidRequest::new_zeroed() };
        match flags {
            PASID_ALLOC => match self.alloc(vm, min, max) {
                Ok(pasid) => request.pasid = pasid.0.get(),
                Err(refusal) => {
                    if let Refusal::AllocPasid(AllocPasidError::QuotaExceeded { quota }) = refusal {
                        request.quota = quota;
                    }
                    return Err(refusal);
                }
            },
            PASID_FREE => {
                request.count = self.free(vm, min, max)?;
                if request.count == 0 {
                    return Err(nothing_freed(vm, min, max));
                }
            }
            PASID_QUERY => {
                let PasidUsage { quota, live, parked } = vm.pasid_usage();
                (request.quota, request.live, request.parked) = (quota, live, parked);
            }
            PASID_RELEASE => {
                self.clear();
                request.ticket = vm.release_pasids().sequence();
            }
            _ => return Err(Refusal::Flags { flags }),
        }
        Ok(())
    }
}

/// The posted call has no error of its own for a quota.
fn one_error(refusal: Refusal) -> Refusal {
    match refusal {
        Refusal::AllocPasid(AllocPasidError::QuotaExceeded { .. }) => {
            AllocPasidError::NoneAvailable.into()
        }
        other => other,
    }
}

/// Why nothing was freed. Of a single number the VM says it.
fn nothing_freed<V: Vm>(vm: &V, min: u32, max: u32) -> Refusal {
    let single = Pasid::new(min).filter(|_| min == max);
    let error = single.and_then(|pasid| vm.free_pasid(GuestPasid(pasid)).err());
    error.map_or(Refusal::NoPasidThere, Refusal::from)
}

/// The PASIDs from `min` to `max`; `None` if there are none, for numbers have 32 bits and PASIDs
/// 20.
fn range(min: u32, max: u32) -> Result<Option<PasidRange>, Refusal> {
    if min > max {
        return Err(Refusal::Value { offset: core::mem::offset_of!(PasidRequest, min) });
    }
    let last = Pasid::new(max).unwrap_or(Pasid::MAX);
    Ok(Pasid::new(min).and_then(|first| PasidRange::new(first, last)))
}
