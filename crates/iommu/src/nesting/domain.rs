//! Devices that share a stage 2 and one configuration.

mod device_table;
mod gpasid;
mod members;
mod set;

use alloc::collections::BTreeMap;
use alloc::vec::Vec;

pub use gpasid::GpasidBind;
use pci::RequesterId;
pub use set::{replace_pasid_table, set_pasid_table, unset_pasid_table};

use super::{Bindings, NestingError, PasidTableConfig};
use crate::{
    FaultQueueId, GuestPasid, Hardware, HwptId, HwptParent, ObjectError, ObjectId, Ticket,
    ViommuId, Vm,
};

/// Objects that a domain is rid of, but the host still uses, before it takes no more changes.
pub const MAX_RETIRED: usize = 64;

/// What a domain does with the requests of its devices.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Configuration {
    /// Stage 2 alone, as nothing else was ever asked for.
    Default,
    /// Stage 2 alone, as asked for.
    Bypass,
    /// A guest's table for all PASIDs, then stage 2.
    Translate(PasidTableConfig),
    /// Every request is blocked.
    Abort,
}

/// A configuration with what carries it out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Current {
    Default,
    Bypass,
    Translate {
        config: PasidTableConfig,
        hwpt: HwptId,
    },
    /// By a table that refuses everything, where the architecture has one; by no table otherwise.
    Abort(Option<HwptId>),
}

impl Current {
    fn configuration(&self) -> Configuration {
        match *self {
            Self::Default => Configuration::Default,
            Self::Bypass => Configuration::Bypass,
            Self::Translate { config, .. } => Configuration::Translate(config),
            Self::Abort(_) => Configuration::Abort,
        }
    }

    /// The guest's table.
    pub(super) fn table(&self) -> Option<HwptId> {
        match *self {
            Self::Translate { hwpt, .. } => Some(hwpt),
            Self::Default | Self::Bypass | Self::Abort(_) => None,
        }
    }

    /// The page table that is the configuration's own.
    fn owned(&self) -> Option<HwptId> {
        match *self {
            Self::Translate { hwpt, .. } => Some(hwpt),
            Self::Abort(hwpt) => hwpt,
            Self::Default | Self::Bypass => None,
        }
    }
}

/// Devices of one VM that share a stage 2 and one configuration, as an IOMMU domain of the posted
/// series, over the objects of the VM.
///
/// The nesting parent, and on SMMUv3 a vIOMMU with a vDEVICE for each device (numbered by its
/// requester id), are the domain's own; [`close`](Self::close) ends them. Dropped, the domain
/// leaves everything as it is: the end of the VM ends that too.
///
/// A call that returns a ticket has taken effect; what it replaced is in use until the ticket is
/// complete.
#[derive(Debug)]
pub struct Domain<V> {
    pub(super) vm: V,
    /// What everything stands on, since the first device.
    base: Option<Base<V>>,
    pub(super) current: Current,
    members: BTreeMap<RequesterId, Member>,
    /// Whether one more binding of a bound PASID is counted, or an error.
    auxiliary: bool,
    /// Bindings of a PASID of a device beyond its first.
    more_users: BTreeMap<(RequesterId, GuestPasid), usize>,
    retired: Vec<ObjectId>,
    /// Where page requests go of what a guest's tables translate.
    fault: Option<FaultQueueId>,
}

/// The objects under a domain.
#[derive(Debug)]
pub(super) struct Base<V> {
    pub(super) hardware: Hardware,
    parent: HwptId,
    pub(super) viommu: Option<ViommuId>,
    pub(super) pasids: Bindings<V>,
}

impl<V> Base<V> {
    /// On what a nested table stands.
    fn nest_on(&self) -> HwptParent {
        match self.viommu {
            Some(viommu) => HwptParent::Viommu(viommu),
            None => HwptParent::Hwpt(self.parent),
        }
    }
}

/// A device of a domain.
#[derive(Clone, Copy, Debug)]
pub(super) struct Member {
    /// What requests without PASID, or all, are translated by; `None` is blocked.
    attached: Option<HwptId>,
    /// Its own table (`bind_pasid_table`).
    pub(super) own: Option<HwptId>,
    vdevice: Option<ObjectId>,
}

/// One step of a change, from one attachment (or none) of a device to another.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Move {
    device: RequesterId,
    from: Option<HwptId>,
    to: Option<HwptId>,
}

impl<V: Vm> Domain<V> {
    /// A domain without devices.
    pub fn new(vm: V) -> Self {
        Self {
            vm,
            base: None,
            current: Current::Default,
            members: BTreeMap::new(),
            auxiliary: false,
            more_users: BTreeMap::new(),
            retired: Vec::new(),
            fault: None,
        }
    }

    /// The same for devices that were split into auxiliary domains: there, and only there, one more
    /// `bind_gpasid` of what is bound counts a user, and is not an error.
    pub fn with_auxiliary_domains(self) -> Self {
        Self { auxiliary: true, ..self }
    }

    /// The same, with `queue` for the page requests that a guest's tables cause, of whole devices
    /// and of PASIDs: without one, the host answers those with Invalid.
    pub fn with_fault_queue(self, queue: FaultQueueId) -> Self {
        Self { fault: Some(queue), ..self }
    }

    /// What is configured.
    pub fn configuration(&self) -> Configuration {
        self.current.configuration()
    }

    /// The IOMMU that the devices are behind, since the first one.
    pub fn hardware(&self) -> Option<&Hardware> {
        self.base.as_ref().map(|base| &base.hardware)
    }

    /// The devices.
    pub fn devices(&self) -> impl Iterator<Item = RequesterId> + '_ {
        self.members.keys().copied()
    }

    /// Whether every request of a device is refused, those of its PASIDs that are bound one by one excepted.
    ///
    /// # Errors
    ///
    /// [`NestingError::NoDevice`].
    pub fn is_blocked(&self, device: RequesterId) -> Result<bool, NestingError> {
        let attached = self.member(device)?.attached;
        let refuses = matches!(self.current, Current::Abort(hwpt) if hwpt == attached);
        Ok(attached.is_none() || refuses)
    }

    /// Ends what the host still used when it was replaced; whether nothing is left. Every change
    /// does so too.
    pub fn reap(&mut self) -> bool {
        let vm = &self.vm;
        // In the order of retirement, so what stood on something goes before that.
        self.retired.retain(|object| vm.destroy(*object) == Err(ObjectError::Busy));
        if let Some(base) = &mut self.base {
            base.pasids.reap();
        }
        self.retired.is_empty()
    }

    pub(super) fn member(&self, device: RequesterId) -> Result<&Member, NestingError> {
        self.members.get(&device).ok_or(NestingError::NoDevice(device))
    }

    fn member_mut(&mut self, device: RequesterId) -> Option<&mut Member> {
        self.members.get_mut(&device)
    }

    pub(super) fn base(&self) -> Result<&Base<V>, NestingError> {
        self.base.as_ref().ok_or(NestingError::NoDevices)
    }

    /// What the domain's configuration attaches to a device without a table of its own.
    fn attachment(&self, to: &Current) -> Option<HwptId> {
        match to {
            Current::Default | Current::Bypass => self.base.as_ref().map(|base| base.parent),
            Current::Translate { hwpt, .. } => Some(*hwpt),
            Current::Abort(hwpt) => *hwpt,
        }
    }

    /// Makes one step, and keeps account of it.
    fn go(&mut self, step: Move) -> Result<Option<Ticket>, ObjectError> {
        let Move { device, from, to } = step;
        if from == to {
            return Ok(None);
        }
        let ticket = match to {
            Some(to) if from.is_none() => self.vm.attach_hwpt(device, None, to).map(|()| None)?,
            Some(to) => match self.vm.replace_hwpt(device, None, to) {
                // The host has undone what was there.
                Err(ObjectError::NotAttached) => {
                    self.vm.attach_hwpt(device, None, to).map(|()| None)?
                }
                replaced => replaced.map(Some)?,
            },
            None => match self.vm.detach_hwpt(device, None) {
                Err(ObjectError::NotAttached | ObjectError::NoDevice(_) | ObjectError::Closed) => {
                    None
                }
                detached => detached.map(Some)?,
            },
        };
        if let Some(member) = self.member_mut(device) {
            member.attached = to;
        }
        Ok(ticket)
    }

    fn retire(&mut self, object: Option<impl Into<ObjectId>>) {
        self.retired.extend(object.map(Into::into));
    }
}
