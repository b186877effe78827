//! What VFIO has in a container: groups, domains of their devices, and the calls on those.

use alloc::collections::BTreeMap;
use alloc::sync::{Arc, Weak};
use alloc::vec::Vec;

use iommu::nesting::{self, CacheInvalidate, Domain, InvalidateError, MsiBindings, NestingError};
use iommu::{Endpoint, Fault, Hardware, Ticket, Vm};
use mem::{Gpa, Iova};
use pci::RequesterId;

use super::device::Open;
use crate::argument::{claimed_bytes, copy_in};
use crate::nesting::{decode_cache, decode_config, decode_gpasid, decode_response};
use crate::spec::flags::*;
use crate::spec::{Header, SetMsiBinding};
use crate::{ArgumentError, Refusal, Reply, Revision};

/// Page size of stage 2: the largest that a doorbell's page may have.
const STAGE_TWO_PAGE: u64 = 4096;
/// Low bits of `NESTING_OP`'s flags: the operation.
const OPERATION: u32 = 0xffff;

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

/// A device of a group in the container.
#[derive(Debug)]
struct Member {
    requester: RequesterId,
    /// Since the container has its kind of IOMMU.
    endpoint: Option<Endpoint>,
    /// Its file, if that is open.
    open: Weak<Open>,
}

/// Groups and domains of a container.
#[derive(Debug)]
pub(super) struct Posted<V> {
    kind: Option<Kind>,
    groups: BTreeMap<u32, Vec<Member>>,
    domains: Vec<Domain<V>>,
    /// Of each domain.
    doorbells: Vec<MsiBindings>,
    undeliverable: u64,
}

impl<V> Default for Posted<V> {
    fn default() -> Self {
        let (kind, groups, domains, doorbells, undeliverable) = Default::default();
        Self { kind, groups, domains, doorbells, undeliverable }
    }
}

/// The size and flags of a structure whose rest has a size of its own, and that rest. Posted calls
/// look no further than the rest's own size; ours, no further than the size of the whole.
fn split(argument: &[u8], revision: Revision) -> Result<(Header, &[u8]), ArgumentError> {
    let head = size_of::<Header>();
    let claimed = ArgumentError::Truncated { given: argument.len(), claimed: head };
    let (first, mut rest) = argument.split_at_checked(head).ok_or(claimed)?;
    let [argsz, flags] =
        [&first[..4], &first[4..]].map(|bytes| bytes.try_into().map_or(0, u32::from_ne_bytes));
    if (argsz as usize) < head {
        return Err(ArgumentError::TooShort { argsz, needed: head });
    }
    if revision == Revision::Own {
        rest = &claimed_bytes(argument, head)?[head..];
    }
    Ok((Header { argsz, flags }, rest))
}

/// A reply to a call that, as posted, returns when `pending` is over.
fn until(pending: Option<Ticket>) -> Reply {
    Reply { pending, ..Reply::default() }
}

impl<V: Vm> Posted<V> {
    pub(super) fn kind(&self) -> Option<Kind> {
        self.kind
    }

    /// How many faults came for a device that nobody has open.
    pub(super) fn undeliverable(&self) -> u64 {
        self.undeliverable
    }

    /// The IOMMU of the first domain.
    pub(super) fn hardware(&self) -> Option<&Hardware> {
        self.domains.first()?.hardware()
    }

    pub(super) fn has_groups(&self) -> bool {
        !self.groups.is_empty()
    }

    /// A group joins; at once if the container has its kind of IOMMU, or else with that.
    pub(super) fn join(
        &mut self,
        vm: Option<&V>,
        number: u32,
        devices: impl Iterator<Item = RequesterId>,
    ) -> Result<(), Refusal> {
        let member = |requester| Member { requester, endpoint: None, open: Weak::new() };
        self.groups.insert(number, devices.map(member).collect());
        let (Some(kind), Some(vm)) = (self.kind, vm) else { return Ok(()) };
        self.attach(vm, kind, number).inspect_err(|_| self.leave(number))
    }

    /// The container gets its kind of IOMMU, which has to be able to have all of its groups.
    pub(super) fn set_iommu(&mut self, vm: &V, kind: Kind) -> Result<(), Refusal> {
        let numbers: Vec<_> = self.groups.keys().copied().collect();
        for number in numbers {
            if let Err(refusal) = self.attach(vm, kind, number) {
                let mut groups = core::mem::take(&mut self.groups);
                groups.values_mut().flatten().for_each(|member| self.detach(member));
                self.groups = groups;
                return Err(refusal);
            }
        }
        self.kind = Some(kind);
        Ok(())
    }

    /// Attaches the devices of a group; if that fails, some of them may be.
    fn attach(&mut self, vm: &V, kind: Kind, number: u32) -> Result<(), Refusal> {
        let Self { groups, domains, doorbells, .. } = self;
        for member in groups.get_mut(&number).into_iter().flatten() {
            member.endpoint = Some(vm.attach(member.requester)?);
            if kind == Kind::Nesting {
                add_to_a_domain(domains, doorbells, vm, member.requester)?;
            }
        }
        Ok(())
    }

    /// A group leaves, with its devices' PASIDs unbound first.
    pub(super) fn leave(&mut self, number: u32) {
        let mut members = self.groups.remove(&number).unwrap_or_default();
        members.iter_mut().for_each(|member| self.detach(member));
        if self.groups.is_empty() {
            self.kind = None;
        }
    }

    fn detach(&mut self, member: &mut Member) {
        let Self { domains, doorbells, .. } = self;
        let in_it = |domain: &Domain<V>| domain.devices().any(|device| device == member.requester);
        let index = domains.iter().position(in_it);
        let domain = index.and_then(|index| domains.get_mut(index));
        let removed = domain.map(|domain| domain.remove_device(member.requester));
        // Whatever the host says: from here on the device has nothing there.
        drop(member.endpoint.take());
        if let (Some(index), Some(removed)) = (index, removed) {
            if let (Err(_), Some(domain)) = (removed, domains.get_mut(index)) {
                let _ = domain.remove_device(member.requester);
            }
            if domains.get(index).is_some_and(|domain| domain.devices().next().is_none()) {
                let mut domain = domains.remove(index);
                doorbells.remove(index);
                let _ = domain.close();
            }
        }
    }

    /// Notes that a device's file is open; gives the one that is open already.
    pub(super) fn open(
        &mut self,
        requester: RequesterId,
        new: impl FnOnce() -> Result<Open, Refusal>,
    ) -> Result<Arc<Open>, Refusal> {
        self.kind.ok_or(Refusal::NoContainer)?;
        let mut members = self.groups.values_mut().flatten();
        let member = members.find(|member| member.requester == requester);
        let member = member.ok_or(Refusal::NoSuchName)?;
        if let Some(open) = member.open.upgrade() {
            return Ok(open);
        }
        let open = Arc::new(new()?);
        member.open = Arc::downgrade(&open);
        Ok(open)
    }

    /// A channel of a device, for its DMA.
    pub(super) fn channel(&self, requester: RequesterId) -> Option<iommu::Channel> {
        let mut members = self.groups.values().flatten();
        let member = members.find(|member| member.requester == requester)?;
        member.endpoint.as_ref().map(Endpoint::channel)
    }

    /// The files that are open.
    pub(super) fn all_open(&self) -> impl Iterator<Item = Arc<Open>> + '_ {
        self.groups.values().flatten().filter_map(|member| member.open.upgrade())
    }

    /// Puts a fault into its device's ring; gives who is to be rung.
    pub(super) fn deliver(&mut self, fault: Fault) -> Option<Arc<Open>> {
        let mut members = self.groups.values().flatten();
        let member = members.find(|member| member.requester == fault.requester);
        let Some(open) = member.and_then(|member| member.open.upgrade()) else {
            self.undeliverable = self.undeliverable.saturating_add(1);
            return None;
        };
        open.report(fault).then_some(open)
    }

    /// `SET_PASID_TABLE`.
    pub(super) fn set_pasid_table(
        &mut self,
        argument: &[u8],
        revision: Revision,
    ) -> Result<Reply, Refusal> {
        let (Header { flags, .. }, config) = split(argument, revision)?;
        let unknown = flags & !(PASID_TABLE_SET | PASID_TABLE_UNSET);
        if unknown != 0 {
            return Err(ArgumentError::UnknownFlags { flags: unknown }.into());
        }
        let set = match flags {
            PASID_TABLE_SET => true,
            PASID_TABLE_UNSET => false,
            flags => return Err(Refusal::Flags { flags }),
        };
        let strict = revision == Revision::Own;
        match self.kind {
            Some(Kind::Nesting) => (),
            // As posted: what is done for each of no domains is done.
            None if !strict => return Ok(Reply::default()),
            _ => return Err(Refusal::NotNesting),
        }
        if set {
            let config = decode_config(config, revision)?;
            return Ok(until(nesting::set_pasid_table(&mut self.domains, &config)?));
        }
        match nesting::unset_pasid_table(&mut self.domains) {
            Ok(ticket) => Ok(until(ticket)),
            // As posted it cannot fail.
            Err(_) if !strict => Ok(Reply::default()),
            Err(error) => Err(error.into()),
        }
    }

    /// `CACHE_INVALIDATE`, as posted.
    pub(super) fn cache_invalidate(
        &mut self,
        argument: &[u8],
        revision: Revision,
    ) -> Result<Reply, Refusal> {
        let (Header { flags, .. }, info) = split(argument, revision)?;
        if flags != 0 {
            return Err(ArgumentError::UnknownFlags { flags }.into());
        }
        if self.kind != Some(Kind::Nesting) {
            return Err(Refusal::NotNesting);
        }
        let what = decode_cache(info, revision)?;
        self.invalidate(&what).map(until).map_err(Refusal::from)
    }

    /// Forgets something for each device; stops at the first error.
    fn invalidate(&self, what: &CacheInvalidate) -> Result<Option<Ticket>, InvalidateError> {
        let mut latest = None;
        for domain in &self.domains {
            for device in domain.devices() {
                latest = latest.max(Some(domain.cache_invalidate(device, what)?));
            }
        }
        Ok(latest)
    }

    /// `SET_MSI_BINDING`.
    pub(super) fn set_msi_binding(&mut self, argument: &[u8]) -> Result<Reply, Refusal> {
        let SetMsiBinding { flags, iova, gpa, size, .. } = copy_in(argument)?;
        let is_smmu = |domain: &Domain<V>| matches!(domain.hardware(), Some(Hardware::Smmuv3(_)));
        let bind = match flags {
            MSI_BIND => true,
            MSI_UNBIND => false,
            flags => return Err(Refusal::Flags { flags }),
        };
        // Elsewhere messages are not translated.
        if self.kind != Some(Kind::Nesting) || !self.domains.iter().all(is_smmu) {
            return Err(Refusal::NotNesting);
        }
        if bind {
            MsiBindings::bind_in_all(&mut self.doorbells, Iova(iova), Gpa(gpa), size)?;
        } else {
            for doorbells in &mut self.doorbells {
                let _ = doorbells.unbind(Iova(iova));
            }
        }
        Ok(Reply::default())
    }

    /// `NESTING_OP`.
    pub(super) fn nesting_op(
        &mut self,
        argument: &[u8],
        revision: Revision,
    ) -> Result<Reply, Refusal> {
        let (Header { flags, .. }, data) = split(argument, revision)?;
        let strict = revision == Revision::Own;
        if flags & !OPERATION != 0 {
            return Err(ArgumentError::UnknownFlags { flags: flags & !OPERATION }.into());
        }
        match flags {
            NESTING_BIND | NESTING_UNBIND | NESTING_INVALIDATE => (),
            NESTING_PAGE_RESPONSE if strict => {
                return decode_response(data, strict).and(Err(Refusal::NoPageRequest))
            }
            flags => return Err(Refusal::Flags { flags }),
        }
        if self.kind != Some(Kind::Nesting) {
            return Err(Refusal::NotNesting);
        }
        let is_vtd = |domain: &Domain<V>| matches!(domain.hardware(), Some(Hardware::Vtd(_)));
        if !self.domains.iter().all(is_vtd) {
            return Err(Refusal::Unsupported { offset: core::mem::offset_of!(Header, flags) });
        }
        let groups = self.groups.len();
        // One group is in one domain, if its devices are behind one IOMMU.
        let [domain] = self.domains.as_mut_slice() else {
            return Err(Refusal::NotSingle { groups });
        };
        if groups != 1 {
            return Err(Refusal::NotSingle { groups });
        }
        let done: Result<_, Refusal> = match flags {
            NESTING_BIND => {
                let bind = decode_gpasid(data, revision)?.bind()?;
                domain.bind_gpasid_for_all(&bind)?;
                return Ok(Reply::default());
            }
            NESTING_UNBIND => {
                let guest = decode_gpasid(data, revision)?.guest;
                domain.unbind_gpasid_for_all(guest).map_err(Refusal::from)
            }
            _ => {
                let what = decode_cache(data, revision)?;
                self.invalidate(&what).map_err(Refusal::from)
            }
        };
        match done {
            Ok(ticket) => Ok(until(ticket)),
            // As posted they cannot fail.
            Err(_) if !strict => Ok(Reply::default()),
            Err(refusal) => Err(refusal),
        }
    }
}

/// Adds a device to the first domain whose IOMMU it is behind, or else to a new one.
fn add_to_a_domain<V: Vm>(
    domains: &mut Vec<Domain<V>>,
    doorbells: &mut Vec<MsiBindings>,
    vm: &V,
    device: RequesterId,
) -> Result<(), NestingError> {
    for domain in domains.iter_mut() {
        match domain.add_device(device) {
            Err(NestingError::OtherHardware(_)) => (),
            result => return result,
        }
    }
    let mut domain = Domain::new(vm.clone());
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
