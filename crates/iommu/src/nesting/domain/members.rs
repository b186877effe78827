//! Devices come and go.

use pci::RequesterId;

use super::super::{Bindings, NestingError};
use super::{Base, Current, Domain, Member, Move};
use crate::{Hardware, HwptFlags, HwptParent, HwptRequest, ObjectId, Ticket, ViommuKind, Vm};

impl<V: Vm> Domain<V> {
    /// Adds a device of the VM: from here on it has the domain's stage 2, and whatever the domain's
    /// configuration is.
    ///
    /// # Errors
    ///
    /// [`NestingError::Duplicate`]; [`NestingError::OtherHardware`] if it is behind an IOMMU that
    /// can do something else than the first device's; what the host says. With
    /// [`NestingError::Stuck`] the device is in the domain, but has stage 2 where it should be
    /// blocked: remove it.
    pub fn add_device(&mut self, device: RequesterId) -> Result<(), NestingError> {
        if self.members.contains_key(&device) {
            return Err(NestingError::Duplicate(device));
        }
        self.reap();
        let hardware = self.vm.hardware(device)?;
        let is_first = self.base.is_none();
        if is_first {
            self.base = Some(self.make_base(device, hardware)?);
        }
        let added = self.join(device, hardware);
        // One that is stuck still stands on it.
        if is_first && added.is_err() && self.members.is_empty() {
            self.drop_base();
        }
        added
    }

    fn make_base(
        &mut self,
        device: RequesterId,
        hardware: Hardware,
    ) -> Result<Base<V>, NestingError> {
        let flags = match hardware {
            // Its table may go where PASIDs are bound one by one.
            Hardware::Vtd(_) => HwptFlags::NEST_PARENT | HwptFlags::PASID,
            Hardware::Smmuv3(_) => HwptFlags::NEST_PARENT,
        };
        let ioas = HwptParent::Ioas(self.vm.ioas()?);
        let request = HwptRequest { device, parent: ioas, flags, data: None, fault: None };
        let parent = self.vm.alloc_hwpt(&request)?;
        let viommu = match hardware {
            Hardware::Vtd(_) => None,
            Hardware::Smmuv3(_) => {
                let viommu = self.vm.alloc_viommu(device, parent, ViommuKind::Smmuv3);
                Some(viommu.inspect_err(|_| self.abandon_object(parent.into()))?)
            }
        };
        let pasids = Bindings::new(self.vm.clone(), parent).with_fault_queue(self.fault);
        Ok(Base { hardware, parent, viommu, pasids })
    }

    fn abandon_object(&mut self, object: ObjectId) {
        self.retire(Some(object));
        self.reap();
    }

    fn drop_base(&mut self) {
        if let Some(base) = self.base.take() {
            self.retired.extend(base.pasids.into_retired());
            self.retire(base.viommu);
            self.retire(Some(base.parent));
        }
        self.reap();
    }

    fn join(&mut self, device: RequesterId, hardware: Hardware) -> Result<(), NestingError> {
        let Some(base) = &self.base else { return Err(NestingError::NoDevices) };
        if base.hardware != hardware {
            return Err(NestingError::OtherHardware(device));
        }
        let parent = base.parent;
        let vdevice = match base.viommu {
            Some(viommu) => {
                let virtual_id = device.bits().into();
                Some(self.vm.alloc_vdevice(viommu, device, virtual_id)?.into())
            }
            None => None,
        };
        let to = self.attachment(&self.current);
        // A device that never had anything attached is not blocked: it gets something first.
        let first = to.unwrap_or(parent);
        self.members.insert(device, Member { attached: None, own: None, vdevice });
        let joined = self
            .go(Move { device, from: None, to: Some(first) })
            .and_then(|_| self.go(Move { device, from: Some(first), to }));
        let Err(cause) = joined else { return Ok(()) };
        match self.remove_device(device) {
            Ok(_) => Err(cause.into()),
            Err(_) => Err(NestingError::Stuck { device, cause }),
        }
    }

    /// Takes a device out, unbinding its PASIDs first: nothing of it is translated any more.
    ///
    /// # Errors
    ///
    /// [`NestingError::NoDevice`]; what the host says, and then what was undone stays undone, and
    /// the device is still in the domain.
    pub fn remove_device(&mut self, device: RequesterId) -> Result<Option<Ticket>, NestingError> {
        let Member { attached, own, vdevice } = *self.member(device)?;
        let mut ticket = None;
        if let Some(base) = &mut self.base {
            ticket = base.pasids.clear_device(device)?;
        }
        self.more_users.retain(|(of, _), _| *of != device);
        ticket = ticket.max(self.go(Move { device, from: attached, to: None })?);
        self.members.remove(&device);
        self.retire(own);
        self.retire(vdevice);
        self.reap();
        Ok(ticket)
    }

    /// Takes all devices out and ends the domain's objects, those that the host still uses at a
    /// later [`reap`](Self::reap). The domain is as new.
    ///
    /// # Errors
    ///
    /// What the host says; it may be called again.
    pub fn close(&mut self) -> Result<Option<Ticket>, NestingError> {
        let mut latest = None;
        while let Some((&device, _)) = self.members.first_key_value() {
            latest = latest.max(self.remove_device(device)?);
        }
        self.retire(self.current.owned());
        self.current = Current::Default;
        self.drop_base();
        Ok(latest)
    }
}
