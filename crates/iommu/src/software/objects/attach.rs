//! Attaching, replacing and detaching page tables.
//!
//! What calls others is done with no lock held; the place that it is about is occupied meanwhile,
//! so nobody else changes it, but its device, its PASID or the VM may go.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::cell::RefCell;

use ioasid::{BindError, HoldError, SubscribeError, Tag};
use pci::RequesterId;

use super::compose::Program;
use super::devices::{Cleared, Device, Held, Key, State};
use super::{Hwpt, Outcome};
use crate::channel::{Batch, ChannelShared};
use crate::invalidation::EVERYWHERE;
use crate::sabotage::{self, Sabotage};
use crate::software::attached::{Attached, Attachments, RID_PASID};
use crate::software::bindings::{Driver, DRIVER};
use crate::software::control::Control;
use crate::software::device_tlbs::Asker;
use crate::software::host_table::ProgramError;
use crate::software::pasids::Ref;
use crate::software::platform::MAX_DOMAINS;
use crate::software::vm::VmShared;
use crate::{
    DomainId, GuestPasid, Hardware, HwptFlags, HwptId, InvalidField, Invalidation, ObjectError,
    Pasid, Ticket,
};

impl VmShared {
    /// Attaches `hwpt` where nothing is attached.
    pub(in crate::software) fn attach_hwpt(
        self: &Arc<Self>,
        device: RequesterId,
        pasid: Option<GuestPasid>,
        hwpt: HwptId,
    ) -> Result<(), ObjectError> {
        // What was given up before may go now: it must not pile up if nobody polls.
        self.release_parked();
        if pasid.is_some() {
            self.watch()?;
        }
        let claimed = {
            let mut control = self.control.lock();
            let claimed = self.claim(&mut control, (device, pasid), hwpt);
            claimed.map_err(|error| (error, control.attached.prune(device)))
        };
        // What is pruned is dropped with no lock held.
        let (key, reference) = claimed.map_err(|(error, _pruned)| error)?;
        let Some(reference) = reference else {
            let (programmed, _left) = self.program(key, State::Open(None));
            return programmed;
        };
        self.attach_pasid(key, &reference)
    }

    /// Goes on for a PASID: asks the others, programs the entry, tells the others.
    fn attach_pasid(&self, key: Key, reference: &Ref) -> Result<(), ObjectError> {
        let give_up = |error| {
            let (_, _left) = self.vacate(key, None);
            Err(error)
        };
        let prepared = match reference.bind(self.iommu()?) {
            Ok(prepared) => prepared,
            Err(error) => return give_up(refusal(&error, key)),
        };
        let cached = match reference.share(self.iommu()?) {
            Ok(cached) => cached,
            Err(HoldError::NoMemory) => return give_up(ObjectError::NoMemory),
            Err(_) => return give_up(not_granted(key)),
        };
        // If it fails, dropping `prepared` undoes it, with no lock held.
        let (programmed, _left) = self.program(key, State::Committing(cached));
        programmed?;
        let binding = prepared.commit();
        let mut rest = Some(binding);
        {
            let mut control = self.control.lock();
            if let Some((place, _)) = control.attached.occupied(key) {
                place.state = match core::mem::replace(&mut place.state, State::Closing) {
                    State::Committing(cached) => State::Open(rest.take().zip(Some(cached))),
                    other => other,
                };
            }
        }
        // If the place is gone meanwhile, so is the binding.
        drop(rest);
        Ok(())
    }

    /// Programs what `key` occupies; if that cannot be, vacates it. What is left then is to
    /// be dropped with no lock held.
    fn program(&self, key: Key, state: State) -> (Result<(), ObjectError>, Outcome) {
        let mut control = self.control.lock();
        if let Err(error) = self.program_locked(&mut control, key) {
            if let Some(place) = control.attached.vacate(key) {
                control.objects.drop_use(place.hwpt.into());
            }
            let mut outcome = Outcome::default();
            outcome.push(Held::of(state));
            outcome.prune(control.attached.prune(key.device));
            return (Err(error), outcome);
        }
        if let Some((place, _)) = control.attached.occupied(key) {
            place.state = state;
        }
        (Ok(()), Outcome::default())
    }

    fn program_locked(&self, control: &mut Control, key: Key) -> Result<(), ObjectError> {
        if control.closed {
            return Err(ObjectError::Closed);
        }
        let Some((place, attached)) = control.attached.occupied(key) else {
            let there = control.devices.contains_key(&key.device);
            return Err(if there { not_granted(key) } else { ObjectError::NoDevice(key.device) });
        };
        let (hwpt, host, attached) = (place.hwpt, place.host, attached.clone());
        let hwpt = *control.objects.hwpt(hwpt)?;
        let device = control.attached.get(key.device);
        let domain = device.ok_or(ObjectError::NoDevice(key.device))?.domain.id();
        match self.compose(control, key.device, &hwpt, domain)? {
            Program::Entry(entry) => attached.program(host, &entry).map_err(explain)?,
            Program::Whole(context) => attached.set_whole(Some(context)),
        }
        self.adopt(control, key.device);
        Ok(())
    }

    /// Has the device translated by what is attached to it from now on.
    fn adopt(&self, control: &mut Control, requester: RequesterId) {
        let Some(device) = control.attached.get_mut(requester) else { return };
        if core::mem::replace(&mut device.adopted, true) {
            return;
        }
        let device = device.attached.clone();
        let checks = |control: &Control| Attachments {
            device: device.clone(),
            grants: control.grants.check(),
        };
        control.post_each(requester, checks);
    }

    /// Attaches `hwpt` where another one is.
    pub(in crate::software) fn replace_hwpt(
        &self,
        device: RequesterId,
        pasid: Option<GuestPasid>,
        hwpt: HwptId,
    ) -> Result<Ticket, ObjectError> {
        let ticket = self.replace_locked(&mut self.control.lock(), device, pasid, hwpt)?;
        self.tell_withdrawn();
        Ok(ticket)
    }

    fn replace_locked(
        &self,
        control: &mut Control,
        device: RequesterId,
        pasid: Option<GuestPasid>,
        hwpt: HwptId,
    ) -> Result<Ticket, ObjectError> {
        control.check_device(device)?;
        let new = *control.objects.hwpt(hwpt)?;
        let state = control.attached.get(device).ok_or(ObjectError::NotAttached)?;
        let place = state.place(pasid).ok_or(ObjectError::NotAttached)?;
        if !matches!(place.state, State::Open(_)) {
            return Err(ObjectError::Busy);
        }
        compatible(control, state, pasid, &new)?;
        let (old, host, attached) = (place.hwpt, place.host, state.attached.clone());
        let domain = state.domain.id();
        match self.compose(control, device, &new, domain)? {
            Program::Entry(entry) => {
                // There may be none if the device was translated by one context from the start.
                if attached.replace(host, &entry).is_none() {
                    attached.program(host, &entry).map_err(explain)?;
                }
                if pasid.is_none() {
                    attached.set_whole(None);
                }
            }
            // An entry stays: an access that has just found no context still looks for it.
            Program::Whole(context) => attached.set_whole(Some(context)),
        }
        let whole = self.is_whole(control, old) || self.is_whole(control, hwpt);
        control.objects.add_use(hwpt.into());
        control.objects.drop_use(old.into());
        if let Some(device) = control.attached.get_mut(device) {
            if let Some(place) = device.place_mut(pasid) {
                place.hwpt = hwpt;
            }
        }
        // What was asked through the old one is for whoever asks again.
        self.page_requests.withdraw_place(device, pasid.map(|pasid| pasid.0));
        Ok(control.forget_place(device, pasid, (domain, whole)))
    }

    /// Detaches what is attached.
    pub(in crate::software) fn detach_hwpt(
        &self,
        device: RequesterId,
        pasid: Option<GuestPasid>,
    ) -> Result<Ticket, ObjectError> {
        let (key, held) = {
            let mut control = self.control.lock();
            control.check_device(device)?;
            let devices = &mut control.attached;
            let key = devices.key(device, pasid).ok_or(ObjectError::NotAttached)?;
            let (place, _) = devices.occupied(key).ok_or(ObjectError::NotAttached)?;
            match core::mem::replace(&mut place.state, State::Closing) {
                State::Open(held) => (key, held),
                other => {
                    place.state = other;
                    return Err(ObjectError::Busy);
                }
            }
        };
        let (binding, reference) = held.unzip();
        let mut held = Held::new(binding, reference);
        // The processors' tables close before the entry goes.
        held.unbind();
        let (ticket, _left) = self.vacate(key, Some(held));
        self.tell_withdrawn();
        Ok(ticket)
    }

    /// Clears what `key` occupies, if it still does, and vacates it; what is held goes when the
    /// ticket is complete.
    fn vacate(&self, key: Key, held: Option<Held>) -> (Ticket, Outcome) {
        let mut outcome = Outcome::default();
        let mut control = self.control.lock();
        let mut ticket = control.ticket(Asker::Guest);
        let state = control.attached.get(key.device);
        let state = state.map(|device| (device.attached.clone(), device.domain.id()));
        let place = control.attached.vacate(key);
        if let Some((place, (attached, domain))) = place.zip(state) {
            let whole = self.is_whole(&control, place.hwpt);
            control.objects.drop_use(place.hwpt.into());
            if !matches!(place.state, State::Opening) {
                // The entry first: it must not be found when the context is gone.
                if !sabotage::is(Sabotage::KeepEntry) {
                    attached.clear(place.host);
                }
                if key.pasid.is_none() {
                    attached.set_whole(None);
                }
                ticket = control.forget_place(key.device, key.pasid, (domain, whole));
                let place_of = key.pasid.map(|pasid| pasid.0);
                self.page_requests.withdraw_place(key.device, place_of);
                let entry = Cleared { device: key.device, attached, host: place.host };
                control.attached.wipe_at(entry, ticket);
            }
        }
        outcome.prune(control.attached.prune(key.device));
        if let Some(mut held) = held {
            control.attached.give_back(ticket, held.returning());
            outcome.push(held);
        }
        (ticket, outcome)
    }

    /// A PASID was freed and everybody who is to close before the IOMMU's driver has been told:
    /// takes down what is attached of it.
    pub(in crate::software) fn take_down(&self, tag: Tag) {
        let outcome = self.control.lock().attached.take_down(tag);
        drop(outcome);
    }

    /// Checks that `hwpt` may be attached there, makes the device's table if it has none, and
    /// occupies the place; gives a reference to the PASID, if it is one.
    fn claim(
        &self,
        control: &mut Control,
        (requester, pasid): (RequesterId, Option<GuestPasid>),
        id: HwptId,
    ) -> Result<(Key, Option<Ref>), ObjectError> {
        control.check_device(requester)?;
        let hwpt = *control.objects.hwpt(id)?;
        if pasid.is_some() && matches!(self.platform.hardware, Hardware::Smmuv3(_)) {
            return Err(ObjectError::NotSupported);
        }
        if control.attached.get(requester).is_none() {
            let device = self.new_device(control)?;
            control.attached.insert(requester, device);
        }
        let Some(device) = control.attached.get(requester) else {
            return Err(ObjectError::NoMemory);
        };
        compatible(control, device, pasid, &hwpt)?;
        if device.place(pasid).is_some() {
            return Err(ObjectError::Busy);
        }
        let reference = match pasid {
            Some(pasid) => Some(self.reference(control, pasid)?),
            None => None,
        };
        let tag = reference.as_ref().map(Ref::tag);
        let host = tag.map_or(RID_PASID, |tag| Pasid::from_field(tag.id().0));
        let key = control.attached.occupy((requester, pasid), id, (host, tag))?;
        control.objects.add_use(id.into());
        Ok((key, reference))
    }

    /// A reference to a PASID of the VM, in the driver's name.
    fn reference(&self, control: &Control, pasid: GuestPasid) -> Result<Ref, ObjectError> {
        let granted = control.grants.granted(pasid).ok_or(ObjectError::NotGranted(pasid))?;
        granted.share(self.iommu()?).map_err(|error| match error {
            HoldError::NoMemory => ObjectError::NoMemory,
            _ => ObjectError::NotGranted(pasid),
        })
    }

    fn new_device(&self, control: &mut Control) -> Result<Device, ObjectError> {
        let limit = ObjectError::TooMany { limit: MAX_DOMAINS };
        let domain = || self.platform.domain().map(Arc::new).ok_or(limit);
        match self.platform.hardware {
            Hardware::Vtd(caps) => {
                let table = self.platform.pasid_table(Pasid::BITS).ok_or(ObjectError::NoMemory)?;
                Ok(Device::new(Arc::new(Attached::new(Some((table, caps)))), domain()?))
            }
            // One tag for the VM: its own address space numbers tell the rest apart.
            Hardware::Smmuv3(_) => {
                let domain = match &control.vmid {
                    Some(vmid) => vmid.clone(),
                    None => control.vmid.insert(domain()?).clone(),
                };
                Ok(Device::new(Arc::new(Attached::new(None)), domain))
            }
        }
    }

    /// Whether a table translates all requests of a device.
    fn is_whole(&self, control: &Control, hwpt: HwptId) -> bool {
        let smmu = matches!(self.platform.hardware, Hardware::Smmuv3(_));
        smmu || control.objects.hwpt(hwpt).is_ok_and(Hwpt::is_whole)
    }

    /// Subscribes the driver to the VM's PASIDs, once.
    fn watch(self: &Arc<Self>) -> Result<(), ObjectError> {
        let set = {
            let control = self.control.lock();
            if control.closed {
                return Err(ObjectError::Closed);
            }
            if control.watch.is_some() {
                return Ok(());
            }
            control.grants.set().map(|(host, set)| (host.clone(), set.clone()))
        };
        // Without a quota there are no PASIDs, so nothing to watch.
        let Some((host, set)) = set else { return Ok(()) };
        let driver = Arc::new(Driver { vm: Arc::downgrade(self) });
        let watch = set.subscribe(host.iommu(), DRIVER, driver).map_err(|error| match error {
            SubscribeError::Closed => ObjectError::Closed,
            _ => ObjectError::NoMemory,
        })?;
        let mut control = self.control.lock();
        let _second = match &mut control.watch {
            Some(_) => Some(watch),
            none => none.replace(watch),
        };
        drop(control);
        Ok(())
    }
}

impl Control {
    /// Forgets what is cached of a place: if a table for the `whole` device was there, or is now,
    /// everything of the device.
    fn forget_place(
        &mut self,
        device: RequesterId,
        pasid: Option<GuestPasid>,
        (domain, whole): (DomainId, bool),
    ) -> Ticket {
        if whole {
            let of_device = |channel: &ChannelShared| channel.requester == device;
            let (ticket, _) = self.post_as(Asker::Guest, of_device, Batch::forget_everything);
            self.device_tlbs.ask(device, ticket);
            return ticket;
        }
        let (guest, host) = (pasid.map(|pasid| pasid.0), pasid.map_or(RID_PASID, |pasid| pasid.0));
        let scopes = [
            Invalidation::PasidCache { domain, pasid: host },
            Invalidation::IotlbPasid { domain, pasid: host },
            Invalidation::of_device_tlb(device, guest, EVERYWHERE),
        ];
        self.forget_of_device(device, &scopes.map(Some))
    }

    /// Posts to each channel of a device what `make` makes for it.
    fn post_each(&mut self, device: RequesterId, make: impl Fn(&Self) -> Attachments) {
        let Some(&attachment) = self.devices.get(&device) else { return };
        let concerns = |channel: &ChannelShared| channel.attachment == attachment;
        let channels = self.channels.iter().filter(|channel| concerns(channel));
        let made: Vec<_> = channels.map(|_| make(self)).collect();
        let made = RefCell::new(made);
        let adopt = |batch: &mut Batch| {
            made.borrow_mut().pop().and_then(|attached| batch.adopt_attached(attached))
        };
        let _old = self.post(concerns, adopt);
    }
}

/// Whether `hwpt` fits what else is attached to the device.
fn compatible(
    control: &Control,
    device: &Device,
    pasid: Option<GuestPasid>,
    hwpt: &Hwpt,
) -> Result<(), ObjectError> {
    let for_pasids = hwpt.flags.contains(HwptFlags::PASID);
    if pasid.is_some() && hwpt.is_whole() {
        return Err(ObjectError::Invalid(InvalidField::Pasid));
    }
    let rid = device.place(None).and_then(|place| control.objects.hwpt(place.hwpt).ok());
    let clash = match pasid {
        Some(_) => !for_pasids || rid.is_some_and(|rid| !rid.flags.contains(HwptFlags::PASID)),
        None => !for_pasids && device.pasids().next().is_some(),
    };
    match clash {
        true => Err(ObjectError::Invalid(InvalidField::Flags)),
        false => Ok(()),
    }
}

fn explain(error: ProgramError) -> ObjectError {
    match error {
        ProgramError::NoMemory => ObjectError::NoMemory,
        ProgramError::Range => ObjectError::Invalid(InvalidField::Pasid),
        ProgramError::Present => ObjectError::Busy,
    }
}

fn not_granted(key: Key) -> ObjectError {
    match key.pasid {
        Some(pasid) => ObjectError::NotGranted(pasid),
        None => ObjectError::NotAttached,
    }
}

fn refusal(error: &BindError, key: Key) -> ObjectError {
    match error {
        BindError::Parked(_) | BindError::ForeignHolder => not_granted(key),
        BindError::Busy(_) => ObjectError::Busy,
        BindError::Refused { .. } => ObjectError::Refused,
        BindError::NoMemory => ObjectError::NoMemory,
    }
}
