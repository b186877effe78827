//! What VFIO has in a container: groups, and domains of their devices.

mod calls;

use alloc::collections::BTreeMap;
use alloc::sync::Arc;
use alloc::vec::Vec;

use iommu::nesting::{Domain, MsiBindings, NestingError};
use iommu::{FaultQueueId, Hardware, Vm};
use pci::RequesterId;
use spin::mutex::SpinMutex;

pub(super) use calls::split;

use super::calls::Machine;
use super::page_faults;
use super::roster::Roster;
use crate::spec::flags::*;
use crate::Refusal;

/// Page size of stage 2: the largest that a doorbell's page may have.
const STAGE_TWO_PAGE: u64 = 4096;

/// What `SET_IOMMU` chose.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Kind {
    /// Memory is mapped; how a device's requests are translated is not for these calls.
    Plain,
    /// Devices are in domains, which a guest's tables can be given to.
    Nesting,
}

impl Kind {
    pub(super) fn new(kind: u32) -> Result<Self, Refusal> {
        match kind {
            TYPE1 | TYPE1_V2 => Ok(Self::Plain),
            TYPE1_NESTING => Ok(Self::Nesting),
            kind => Err(Refusal::NoSuchIommu { kind }),
        }
    }
}

/// Groups and domains of a container: what a call has to itself. What is known of the devices
/// without it is in [`Roster`], which is locked for a few steps at a time.
#[derive(Debug)]
pub(super) struct Posted<V> {
    kind: Option<Kind>,
    groups: BTreeMap<u32, Vec<RequesterId>>,
    domains: Vec<Domain<V>>,
    /// Of each domain.
    doorbells: Vec<MsiBindings>,
}

impl<V> Default for Posted<V> {
    fn default() -> Self {
        let (kind, groups, domains, doorbells) = Default::default();
        Self { kind, groups, domains, doorbells }
    }
}

impl<V: Vm> Posted<V> {
    pub(super) fn kind(&self) -> Option<Kind> {
        self.kind
    }

    pub(super) fn has_groups(&self) -> bool {
        !self.groups.is_empty()
    }

    /// A group joins; at once if the container has its kind of IOMMU, or else with that.
    pub(super) fn join(
        &mut self,
        roster: &SpinMutex<Roster>,
        machine: Option<&Machine<V>>,
        number: u32,
        devices: Vec<RequesterId>,
    ) -> Result<(), Refusal> {
        roster.lock().add(number, &devices)?;
        self.groups.insert(number, devices);
        let (Some(kind), Some(machine)) = (self.kind, machine) else { return Ok(()) };
        let joined = self.attach(roster, machine, kind, number);
        self.publish(roster);
        joined.inspect_err(|_| self.leave(roster, Some(machine), number))
    }

    /// The container gets its kind of IOMMU, which has to be able to have all of its groups.
    pub(super) fn set_iommu(
        &mut self,
        roster: &SpinMutex<Roster>,
        machine: &Machine<V>,
        kind: Kind,
    ) -> Result<(), Refusal> {
        let numbers: Vec<_> = self.groups.keys().copied().collect();
        for number in numbers {
            if let Err(refusal) = self.attach(roster, machine, kind, number) {
                self.unset_iommu(roster);
                return Err(refusal);
            }
        }
        self.kind = Some(kind);
        self.publish(roster);
        Ok(())
    }

    /// The container has no kind of IOMMU any more: its devices are in no domain.
    pub(super) fn unset_iommu(&mut self, roster: &SpinMutex<Roster>) {
        let devices: Vec<_> = self.groups.values().flatten().copied().collect();
        for device in devices {
            self.detach(roster, device);
        }
        self.kind = None;
        self.publish(roster);
    }

    /// Attaches the devices of a group; if that fails, some of them may be.
    fn attach(
        &mut self,
        roster: &SpinMutex<Roster>,
        machine: &Machine<V>,
        kind: Kind,
        number: u32,
    ) -> Result<(), Refusal> {
        let Self { groups, domains, doorbells, .. } = self;
        for &device in groups.get(&number).into_iter().flatten() {
            let endpoint = Some(Arc::new(machine.vm.attach(device)?));
            let _none = roster.lock().set_endpoint(device, endpoint);
            if kind == Kind::Nesting {
                let queue = machine.page_faults.queue(&machine.vm);
                add_to_a_domain(domains, doorbells, &machine.vm, queue, device)?;
            }
        }
        Ok(())
    }

    /// A group leaves, with its devices' PASIDs unbound first, and their page requests answered.
    pub(super) fn leave(
        &mut self,
        roster: &SpinMutex<Roster>,
        machine: Option<&Machine<V>>,
        number: u32,
    ) {
        for device in self.groups.remove(&number).unwrap_or_default() {
            self.detach(roster, device);
            let _no_endpoint = roster.lock().remove(device);
            if let Some(machine) = machine {
                page_faults::give(&machine.vm, machine.page_faults.release(device));
            }
        }
        if self.groups.is_empty() {
            self.kind = None;
        }
        self.publish(roster);
    }

    fn detach(&mut self, roster: &SpinMutex<Roster>, device: RequesterId) {
        let Self { domains, doorbells, .. } = self;
        let in_it = |domain: &Domain<V>| domain.devices().any(|member| member == device);
        let index = domains.iter().position(in_it);
        let domain = index.and_then(|index| domains.get_mut(index));
        let removed = domain.map(|domain| domain.remove_device(device));
        // Whatever the host says: from here on the device has nothing there.
        let endpoint = roster.lock().set_endpoint(device, None);
        drop(endpoint);
        if let (Some(index), Some(removed)) = (index, removed) {
            if let (Err(_), Some(domain)) = (removed, domains.get_mut(index)) {
                let _ = domain.remove_device(device);
            }
            if domains.get(index).is_some_and(|domain| domain.devices().next().is_none()) {
                let mut domain = domains.remove(index);
                doorbells.remove(index);
                let _ = domain.close();
            }
        }
    }

    /// Tells what others may know.
    fn publish(&self, roster: &SpinMutex<Roster>) {
        let hardware: Option<Hardware> = self.domains.first().and_then(Domain::hardware).copied();
        let mut roster = roster.lock();
        (roster.kind, roster.hardware) = (self.kind, hardware);
    }
}

/// Adds a device to the first domain whose IOMMU it is behind, or else to a new one.
fn add_to_a_domain<V: Vm>(
    domains: &mut Vec<Domain<V>>,
    doorbells: &mut Vec<MsiBindings>,
    vm: &V,
    queue: Option<FaultQueueId>,
    device: RequesterId,
) -> Result<(), NestingError> {
    for domain in domains.iter_mut() {
        match domain.add_device(device) {
            Err(NestingError::OtherHardware(_)) => (),
            result => return result,
        }
    }
    let domain = Domain::new(vm.clone());
    let mut domain = match queue {
        Some(queue) => domain.with_fault_queue(queue),
        None => domain,
    };
    domain.add_device(device)?;
    domains.push(domain);
    doorbells.push(MsiBindings::new(STAGE_TWO_PAGE));
    Ok(())
}

#[cfg(test)]
impl<V: Vm> Posted<V> {
    /// What a refused call must not change.
    pub(super) fn snapshot(&self) -> alloc::string::String {
        let domain = |domain: &Domain<V>| {
            let devices: Vec<_> = domain.devices().collect();
            let bound: Vec<Vec<_>> =
                devices.iter().map(|device| domain.bound_gpasids(*device).collect()).collect();
            alloc::format!("{:?} {devices:?} {bound:?}", domain.configuration())
        };
        let domains: Vec<_> = self.domains.iter().map(domain).collect();
        let doorbells: Vec<Vec<_>> =
            self.doorbells.iter().map(|doorbells| doorbells.iter().collect()).collect();
        let groups: Vec<_> = self.groups.keys().collect();
        alloc::format!("{:?} {groups:?} {domains:?} {doorbells:?}", self.kind)
    }
}
