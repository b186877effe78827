//! The objects of a VM (see `crate::objects`): which there are, what uses what, and what is attached
//! where.
//!
//! All of it is under the VM's lock; what calls anybody else is in `attach`, with no lock held.

mod attach;
mod calls;
mod check;
mod commands;
mod compose;
mod devices;
mod events;
mod invalidate;
mod page_faults;

use alloc::collections::BTreeMap;

pub(super) use devices::{Devices, Outcome};
pub(super) use events::Events;
pub use events::EVENT_QUEUE_LIMIT;

use crate::{
    EventQueueId, FaultQueueId, HwptFlags, HwptId, HwptParent, InvalidField, IoasId, ObjectError,
    ObjectId, StageOneTable, VdeviceId, ViommuId, ViommuKind,
};
use pci::RequesterId;

/// Objects that one VM has at most: as many PASIDs as a VM usually has, several times over.
pub const MAX_OBJECTS: usize = 1 << 16;

/// The one I/O address space of a VM.
const IOAS: ObjectId = ObjectId(1);

/// The objects of a VM.
#[derive(Debug)]
pub(super) struct Objects {
    /// The id that was given last.
    last: u32,
    all: BTreeMap<ObjectId, Object>,
}

#[derive(Debug)]
struct Object {
    /// Objects that stand on it, and places where it is attached.
    uses: u32,
    kind: Kind,
}

/// What an object is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Kind {
    Hwpt(Hwpt),
    Viommu(Viommu),
    Vdevice(Vdevice),
    FaultQueue,
    EventQueue(ViommuId),
}

/// A page table.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Hwpt {
    pub(super) flags: HwptFlags,
    pub(super) table: Table,
    fault: Option<FaultQueueId>,
}

/// What a page table translates by.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Table {
    /// By stage 2 alone.
    Paging,
    /// By a guest's stage 1 over that.
    Nested { stage_one: StageOneTable, on: ObjectId },
}

/// A VM's part of an IOMMU.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Viommu {
    kind: ViommuKind,
    parent: HwptId,
    /// Its queue, if it has one.
    events: Option<EventQueueId>,
}

/// A device as the guest knows it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Vdevice {
    viommu: ViommuId,
    pub(super) device: RequesterId,
    pub(super) virtual_id: u64,
}

impl Hwpt {
    /// Whether a guest's stage 1 in it is for all requests of a device, whatever their PASID.
    fn is_whole(&self) -> bool {
        match self.table {
            Table::Paging | Table::Nested { stage_one: StageOneTable::Vtd(_), .. } => false,
            Table::Nested { .. } => true,
        }
    }
}

impl Default for Objects {
    fn default() -> Self {
        Self { last: IOAS.0, all: BTreeMap::new() }
    }
}

impl Objects {
    /// The I/O address space. It is there as long as the VM is.
    pub(super) fn ioas(&self) -> IoasId {
        IoasId(IOAS.0)
    }

    /// Makes an object; what it stands on is there.
    fn add(&mut self, kind: Kind) -> Result<ObjectId, ObjectError> {
        let too_many = ObjectError::TooMany { limit: MAX_OBJECTS };
        if self.all.len() >= MAX_OBJECTS {
            return Err(too_many);
        }
        // An id is not given twice, so at some time there are none left.
        let id = ObjectId(self.last.checked_add(1).ok_or(too_many)?);
        self.last = id.0;
        Self::stands_on(&kind).into_iter().flatten().for_each(|on| self.add_use(on));
        self.all.insert(id, Object { uses: 0, kind });
        Ok(id)
    }

    /// Ends an object.
    ///
    /// # Errors
    ///
    /// [`ObjectError::NoObject`], or [`ObjectError::Busy`] if something uses it.
    pub(super) fn destroy(&mut self, id: ObjectId) -> Result<Kind, ObjectError> {
        if id == IOAS {
            return Err(ObjectError::Busy);
        }
        let object = self.all.get(&id).ok_or(ObjectError::NoObject(id))?;
        if object.uses > 0 {
            return Err(ObjectError::Busy);
        }
        let kind = object.kind;
        self.all.remove(&id);
        Self::stands_on(&kind).into_iter().flatten().for_each(|on| self.drop_use(on));
        if let Kind::EventQueue(viommu) = kind {
            self.set_event_queue(viommu, None);
        }
        Ok(kind)
    }

    /// What an object of that kind stands on.
    fn stands_on(kind: &Kind) -> [Option<ObjectId>; 2] {
        match *kind {
            Kind::Hwpt(Hwpt { table, fault, .. }) => {
                let on = match table {
                    Table::Paging => None,
                    Table::Nested { on, .. } => Some(on),
                };
                [on, fault.map(ObjectId::from)]
            }
            Kind::Viommu(Viommu { parent, .. }) => [Some(parent.into()), None],
            Kind::Vdevice(Vdevice { viommu, .. }) | Kind::EventQueue(viommu) => {
                [Some(viommu.into()), None]
            }
            Kind::FaultQueue => [None, None],
        }
    }

    /// Counts one more user of an object.
    pub(super) fn add_use(&mut self, id: ObjectId) {
        if let Some(object) = self.all.get_mut(&id) {
            // Users are objects and places, of which there are fewer than 2^32.
            object.uses = object.uses.saturating_add(1);
        }
    }

    /// Counts one less.
    pub(super) fn drop_use(&mut self, id: ObjectId) {
        if let Some(object) = self.all.get_mut(&id) {
            debug_assert!(object.uses > 0, "{id:?} is used");
            object.uses = object.uses.saturating_sub(1);
        }
    }

    fn kind(&self, id: ObjectId) -> Option<&Kind> {
        self.all.get(&id).map(|object| &object.kind)
    }

    pub(super) fn hwpt(&self, id: HwptId) -> Result<&Hwpt, ObjectError> {
        match self.kind(id.into()) {
            Some(Kind::Hwpt(hwpt)) => Ok(hwpt),
            _ => Err(ObjectError::NoObject(id.into())),
        }
    }

    pub(super) fn viommu(&self, id: ViommuId) -> Result<&Viommu, ObjectError> {
        match self.kind(id.into()) {
            Some(Kind::Viommu(viommu)) => Ok(viommu),
            _ => Err(ObjectError::NoObject(id.into())),
        }
    }

    /// A paging table that others may stand on.
    fn nesting_parent(&self, id: HwptId) -> Result<(), ObjectError> {
        let hwpt = self.hwpt(id)?;
        let fits = hwpt.table == Table::Paging && hwpt.flags.contains(HwptFlags::NEST_PARENT);
        fits.then_some(()).ok_or(ObjectError::Invalid(InvalidField::Parent))
    }

    /// Makes a page table of what was checked already, but for what it stands on.
    pub(super) fn alloc_hwpt(
        &mut self,
        flags: HwptFlags,
        (parent, kind): (HwptParent, ViommuKind),
        data: Option<StageOneTable>,
        fault: Option<FaultQueueId>,
    ) -> Result<HwptId, ObjectError> {
        if let Some(queue) = fault {
            match self.kind(queue.into()) {
                Some(Kind::FaultQueue) => {}
                _ => return Err(ObjectError::NoObject(queue.into())),
            }
        }
        let on = match parent {
            HwptParent::Ioas(ioas) if ioas == self.ioas() => None,
            HwptParent::Ioas(ioas) => return Err(ObjectError::NoObject(ioas.into())),
            HwptParent::Hwpt(parent) => {
                self.nesting_parent(parent)?;
                Some(parent.into())
            }
            HwptParent::Viommu(viommu) if self.viommu(viommu)?.kind == kind => Some(viommu.into()),
            HwptParent::Viommu(_) => return Err(ObjectError::WrongModel),
        };
        let table = match (on, data) {
            (None, None) => Table::Paging,
            (Some(on), Some(stage_one)) => Table::Nested { stage_one, on },
            _ => return Err(ObjectError::Invalid(InvalidField::Data)),
        };
        self.add(Kind::Hwpt(Hwpt { flags, table, fault })).map(|id| HwptId(id.0))
    }

    pub(super) fn alloc_viommu(
        &mut self,
        parent: HwptId,
        kind: ViommuKind,
    ) -> Result<ViommuId, ObjectError> {
        self.nesting_parent(parent)?;
        let viommu = Viommu { kind, parent, events: None };
        self.add(Kind::Viommu(viommu)).map(|id| ViommuId(id.0))
    }

    pub(super) fn alloc_vdevice(
        &mut self,
        viommu: ViommuId,
        device: RequesterId,
        virtual_id: u64,
    ) -> Result<VdeviceId, ObjectError> {
        let bits = match self.viommu(viommu)?.kind {
            ViommuKind::Vtd => 16,
            ViommuKind::Smmuv3 => 32,
        };
        if virtual_id >> bits != 0 {
            return Err(ObjectError::Invalid(InvalidField::VirtualId));
        }
        let taken = |other: &Vdevice| {
            other.device == device || (other.viommu == viommu && other.virtual_id == virtual_id)
        };
        if self.vdevices().any(|(_, other)| taken(other)) {
            return Err(ObjectError::Busy);
        }
        let vdevice = Vdevice { viommu, device, virtual_id };
        self.add(Kind::Vdevice(vdevice)).map(|id| VdeviceId(id.0))
    }

    pub(super) fn alloc_fault_queue(&mut self) -> Result<FaultQueueId, ObjectError> {
        self.add(Kind::FaultQueue).map(|id| FaultQueueId(id.0))
    }

    pub(super) fn alloc_event_queue(
        &mut self,
        viommu: ViommuId,
    ) -> Result<EventQueueId, ObjectError> {
        if self.viommu(viommu)?.events.is_some() {
            return Err(ObjectError::Busy);
        }
        let queue = self.add(Kind::EventQueue(viommu))?;
        let queue = EventQueueId(queue.0);
        self.set_event_queue(viommu, Some(queue));
        Ok(queue)
    }

    fn set_event_queue(&mut self, viommu: ViommuId, queue: Option<EventQueueId>) {
        if let Some(Object { kind: Kind::Viommu(viommu), .. }) = self.all.get_mut(&viommu.into()) {
            viommu.events = queue;
        }
    }

    /// The devices that the guest has numbers for.
    fn vdevices(&self) -> impl Iterator<Item = (ObjectId, &Vdevice)> {
        self.all.iter().filter_map(|(&id, object)| match &object.kind {
            Kind::Vdevice(vdevice) => Some((id, vdevice)),
            _ => None,
        })
    }

    /// What the guest knows a device as.
    fn vdevice_of(&self, device: RequesterId) -> Option<&Vdevice> {
        self.vdevices().find(|(_, vdevice)| vdevice.device == device).map(|(_, vdevice)| vdevice)
    }

    /// The device that the guest has that number for in the vIOMMU.
    fn device_by(&self, viommu: ViommuId, virtual_id: u64) -> Option<RequesterId> {
        let known =
            |vdevice: &&Vdevice| vdevice.viommu == viommu && vdevice.virtual_id == virtual_id;
        self.vdevices().map(|(_, vdevice)| vdevice).find(known).map(|vdevice| vdevice.device)
    }

    /// Where faults of the devices that the guest has numbers for go.
    fn routes(&self) -> BTreeMap<RequesterId, (EventQueueId, u64)> {
        let route = |vdevice: &Vdevice| {
            let queue = self.viommu(vdevice.viommu).ok()?.events?;
            Some((vdevice.device, (queue, vdevice.virtual_id)))
        };
        self.vdevices().filter_map(|(_, vdevice)| route(vdevice)).collect()
    }

    /// A device is gone: so is the number that the guest has for it. Whether it had one.
    fn forget_device(&mut self, device: RequesterId) -> bool {
        let gone = self.vdevices().find(|(_, vdevice)| vdevice.device == device);
        // Nothing stands on it, so it can go.
        gone.map(|(id, _)| id).is_some_and(|id| self.destroy(id).is_ok())
    }
}

#[cfg(all(test, not(loom)))]
mod tests;
