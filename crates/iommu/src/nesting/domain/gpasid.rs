//! Guest PASIDs bound one by one (`iommu_sva_bind_gpasid`).

use alloc::vec::Vec;

use mem::Gpa;
use pci::RequesterId;

use super::super::table::{check_address, second_stage_reach};
use super::super::Entry;
use super::super::NestingError;
use super::{Current, Domain};
use crate::{
    GuestPasid, Hardware, ObjectError, TableCaps, Ticket, Vm, VtdStageOne, VtdStageOneFlags,
};

/// Alignment and least size of a page table.
const TABLE_SIZE: u64 = 0x1000;

/// `iommu_gpasid_bind_data`, decoded: a guest's first stage for one of its PASIDs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct GpasidBind {
    /// Root of the first stage.
    pub root: Gpa,
    /// Bits of its virtual addresses: 48 or 57.
    pub address_width: u8,
    /// What it may be used for.
    pub flags: VtdStageOneFlags,
    /// The PASID, as the guest numbers it. It must be granted to the VM.
    pub guest: GuestPasid,
}

impl GpasidBind {
    /// The first stage alone.
    pub const fn stage_one(&self) -> VtdStageOne {
        VtdStageOne { flags: self.flags, root: self.root, address_width: self.address_width }
    }

    fn check(&self, caps: &TableCaps) -> Result<(), NestingError> {
        if self.guest.0.get() == 0 {
            return Err(NestingError::ReservedPasid(self.guest));
        }
        if !(caps.nested && caps.first_stage) {
            return Err(ObjectError::NotSupported.into());
        }
        match self.address_width {
            48 => {}
            57 if caps.first_stage_5_level => {}
            other => return Err(NestingError::AddressWidth(other)),
        }
        let supervisor = self.flags.contains(VtdStageOneFlags::SRE);
        let protect = self.flags.contains(VtdStageOneFlags::WPE);
        if (supervisor && !caps.supervisor) || (protect && !supervisor) {
            return Err(NestingError::Flags(self.flags.bits()));
        }
        check_address(self.root, TABLE_SIZE, TABLE_SIZE, second_stage_reach(caps))
    }
}

impl<V: Vm> Domain<V> {
    /// Has a device's requests with a guest PASID translated by the guest's first stage and then
    /// by stage 2.
    ///
    /// # Errors
    ///
    /// [`NestingError::NoDevice`]; [`NestingError::WrongModel`] unless the IOMMU is a VT-d;
    /// [`NestingError::ReservedPasid`], [`NestingError::AddressWidth`], [`NestingError::Flags`],
    /// [`NestingError::Misaligned`], [`NestingError::BeyondStageTwo`];
    /// [`NestingError::NoPasids`] if a table translates for all PASIDs, or the domain aborts;
    /// [`NestingError::PasidBound`] if it is bound already (but see
    /// [`with_auxiliary_domains`](Self::with_auxiliary_domains): a user more, of the same first
    /// stage); what the host says. Nothing has changed then.
    pub fn bind_gpasid(
        &mut self,
        device: RequesterId,
        bind: &GpasidBind,
    ) -> Result<(), NestingError> {
        self.check_bind(device, bind)?;
        let (guest, table) = (bind.guest, bind.stage_one());
        let base = self.base.as_mut().ok_or(NestingError::NoDevices)?;
        if base.pasids.bound(device, Some(guest)).is_some() {
            let users = self.more_users.entry((device, guest)).or_default();
            *users = users.checked_add(1).ok_or(ObjectError::Busy)?;
            return Ok(());
        }
        // Nothing was bound there, so there is nothing to wait for.
        let _ = base.pasids.set(device, Some(guest), Some(table))?;
        Ok(())
    }

    /// Whether it may be bound, or counted, as far as is known without asking the host.
    fn check_bind(&self, device: RequesterId, bind: &GpasidBind) -> Result<(), NestingError> {
        let member = self.member(device)?;
        let base = self.base()?;
        let Hardware::Vtd(caps) = &base.hardware else { return Err(NestingError::WrongModel) };
        bind.check(caps)?;
        let leaves_pasids = matches!(self.current, Current::Default | Current::Bypass);
        if member.own.is_some() || !leaves_pasids {
            return Err(NestingError::NoPasids);
        }
        match base.pasids.bound(device, Some(bind.guest)) {
            Some(bound) if !self.auxiliary || bound != bind.stage_one() => {
                Err(NestingError::PasidBound(device, bind.guest))
            }
            _ => Ok(()),
        }
    }

    /// Takes back a binding; the last one blocks the requests, and they are over when the ticket
    /// is complete. The PASID stays the VM's.
    ///
    /// # Errors
    ///
    /// [`NestingError::NoDevice`]; [`NestingError::PasidNotBound`]; what the host says.
    pub fn unbind_gpasid(
        &mut self,
        device: RequesterId,
        guest: GuestPasid,
    ) -> Result<Option<Ticket>, NestingError> {
        self.member(device)?;
        let base = self.base.as_mut().ok_or(NestingError::NoDevices)?;
        if base.pasids.bound(device, Some(guest)).is_none() {
            return Err(NestingError::PasidNotBound(device, guest));
        }
        if let Some(users) = self.more_users.get_mut(&(device, guest)) {
            *users = users.saturating_sub(1);
            if *users == 0 {
                self.more_users.remove(&(device, guest));
            }
            return Ok(None);
        }
        Ok(base.pasids.set(device, Some(guest), None)?.ticket())
    }

    /// Binds for every device of the domain (`VFIO_NESTING_OP_BIND_PGTBL`). If the host refuses at
    /// one, those before it are unbound again, and no others.
    ///
    /// # Errors
    ///
    /// [`NestingError::NoDevices`]; the first device's that fails. [`NestingError::Stuck`] if the
    /// host then refuses to unbind another.
    pub fn bind_gpasid_for_all(&mut self, bind: &GpasidBind) -> Result<(), NestingError> {
        let devices: Vec<_> = self.devices().collect();
        if devices.is_empty() {
            return Err(NestingError::NoDevices);
        }
        devices.iter().try_for_each(|device| self.check_bind(*device, bind))?;
        for (done, device) in devices.iter().enumerate() {
            let Err(error) = self.bind_gpasid(*device, bind) else { continue };
            let mut result = Err(error);
            for &device in devices.iter().take(done).rev() {
                if let Err(NestingError::Object(cause)) = self.unbind_gpasid(device, bind.guest) {
                    result = Err(NestingError::Stuck { device, cause });
                }
            }
            return result;
        }
        Ok(())
    }

    /// Unbinds for every device of the domain that has it bound.
    ///
    /// # Errors
    ///
    /// [`NestingError::NoDevices`]; the first of [`unbind_gpasid`](Self::unbind_gpasid)'s if it was
    /// bound nowhere, or if the host refused; the other devices are unbound all the same.
    pub fn unbind_gpasid_for_all(
        &mut self,
        guest: GuestPasid,
    ) -> Result<Option<Ticket>, NestingError> {
        let devices: Vec<_> = self.devices().collect();
        let mut result: Result<Option<Ticket>, _> = Err(NestingError::NoDevices);
        for device in devices {
            result = match (result, self.unbind_gpasid(device, guest)) {
                (Ok(latest), Ok(ticket)) => Ok(latest.max(ticket)),
                (Err(NestingError::NoDevices | NestingError::PasidNotBound(..)), new) => new,
                (Ok(latest), Err(NestingError::PasidNotBound(..))) => Ok(latest),
                (Ok(_), Err(error)) | (Err(error), _) => Err(error),
            };
        }
        result
    }

    /// What of a device's PASIDs is bound one by one.
    pub fn bound_gpasids(
        &self,
        device: RequesterId,
    ) -> impl Iterator<Item = (GuestPasid, VtdStageOne)> + '_ {
        let places = self.base.as_ref().map(|base| base.pasids.iter()).into_iter().flatten();
        places.filter_map(move |(of, pasid, entry)| match entry {
            Entry::StageOne(table) if of == device => Some((pasid?, table)),
            _ => None,
        })
    }
}
