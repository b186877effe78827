//! The calls of 2017: a PASID table for one device.

use pci::RequesterId;

use super::super::{NestingError, PasidTableInfo};
use super::{Domain, Move};
use crate::{HwptId, Ticket, Vm};

impl<V: Vm> Domain<V> {
    /// Gives one device a guest's PASID table (`bind_pasid_table`): requests with PASID are
    /// translated by it and then by stage 2, requests without by stage 2 alone where the format
    /// can say so (SMMUv3), by the table's own entry for them otherwise.
    ///
    /// # Errors
    ///
    /// [`NestingError::NoDevice`]; [`NestingError::WrongModel`]; [`NestingError::Size`];
    /// [`NestingError::PasidBits`] if the table is larger than the hardware can take;
    /// [`NestingError::Misaligned`], [`NestingError::BeyondStageTwo`];
    /// [`NestingError::DeviceBound`] if it has one already; [`NestingError::Translating`] if the
    /// domain has one; [`NestingError::PasidsBound`]; what the host says. Nothing has changed then.
    pub fn bind_pasid_table(
        &mut self,
        device: RequesterId,
        info: &PasidTableInfo,
    ) -> Result<Option<Ticket>, NestingError> {
        let member = *self.member(device)?;
        let base = self.base.as_ref().ok_or(NestingError::NoDevices)?;
        let config = info.config()?;
        config.check(&base.hardware)?;
        if member.own.is_some() {
            return Err(NestingError::DeviceBound(device));
        }
        if self.current.table().is_some() {
            return Err(NestingError::Translating);
        }
        if base.pasids.iter().any(|(of, ..)| of == device) {
            return Err(NestingError::PasidsBound(device));
        }
        let hwpt = self.nested_table(device, config.stage_one())?;
        match self.go(Move { device, from: member.attached, to: Some(hwpt) }) {
            Ok(ticket) => {
                self.set_own(device, Some(hwpt));
                Ok(ticket)
            }
            Err(error) => {
                self.retire(Some(hwpt));
                self.reap();
                Err(error.into())
            }
        }
    }

    /// Gives the device back what the domain has (`unbind_pasid_table`).
    ///
    /// # Errors
    ///
    /// [`NestingError::NoDevice`]; [`NestingError::DeviceNotBound`]; what the host says.
    pub fn unbind_pasid_table(
        &mut self,
        device: RequesterId,
    ) -> Result<Option<Ticket>, NestingError> {
        let member = *self.member(device)?;
        let own = member.own.ok_or(NestingError::DeviceNotBound(device))?;
        let to = self.attachment(&self.current);
        let ticket = self.go(Move { device, from: member.attached, to })?;
        self.set_own(device, None);
        self.retire(Some(own));
        self.reap();
        Ok(ticket)
    }

    fn set_own(&mut self, device: RequesterId, table: Option<HwptId>) {
        if let Some(member) = self.member_mut(device) {
            member.own = table;
        }
    }
}
