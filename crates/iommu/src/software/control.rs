//! What a VM's control path works on, under the VM's lock.

use alloc::collections::{BTreeMap, VecDeque};
use alloc::sync::Arc;
use alloc::vec::Vec;

use mem::MemoryMap;
use pci::RequesterId;

use super::bindings::Watch;
use super::device_tlbs::{Asker, DeviceTlbs};
use super::grants::{Grants, Released, Taken};
use super::objects::{Devices, Objects, Outcome};
use super::platform::Domain;
use super::Place;
use crate::channel::{Batch, ChannelShared, Leftover};
use crate::stage_two::Retired;
use crate::{AllocPasidError, ContextSource, Counters, GuestPasid, Invalidation, Ticket};

/// Everything of a VM that its model and its machine change.
#[derive(Default)]
pub(super) struct Control {
    /// Number of the latest change.
    pub(super) sequence: u64,
    /// Changes up to this one are known to be complete.
    pub(super) complete: u64,
    pub(super) memory: Arc<MemoryMap>,
    pub(super) contexts: Option<Arc<dyn ContextSource>>,
    /// Attached devices, and which attachment of the requester it is.
    pub(super) devices: BTreeMap<RequesterId, u64>,
    pub(super) attachments: u64,
    pub(super) channels: Vec<Arc<ChannelShared>>,
    /// Counts of channels that are gone, and of the VM itself.
    pub(super) history: Counters,
    /// Given back when the VM is closed.
    pub(super) place: Option<Place>,
    pub(super) grants: Grants,
    pub(super) objects: Objects,
    /// What is attached to the devices.
    pub(super) attached: Devices,
    /// The devices' own TLBs.
    pub(super) device_tlbs: DeviceTlbs,
    /// The tag of what an SMMUv3 caches of the VM.
    pub(super) vmid: Option<Arc<Domain>>,
    /// Hears of PASIDs that are given back, once any has been attached.
    pub(super) watch: Option<Watch>,
    /// Tables out of use, in the order of the tickets after which nothing can be in them.
    pub(super) retired: VecDeque<(Ticket, Retired)>,
    pub(super) closed: bool,
}

impl Control {
    /// The next ticket, of a change that concerns no channel.
    pub(super) fn ticket(&mut self, asker: Asker) -> Ticket {
        self.sequence = asker.next(self.sequence);
        Ticket(self.sequence)
    }

    /// Posts a change of the host's to the channels that `concerns` picks; gives what that leaves
    /// to be dropped after the lock is released.
    pub(super) fn post<R>(
        &mut self,
        concerns: impl Fn(&ChannelShared) -> bool,
        change: impl Fn(&mut Batch) -> R,
    ) -> (Ticket, Vec<R>) {
        self.post_as(Asker::Host, concerns, change)
    }

    /// The same of whoever asks for it.
    pub(super) fn post_as<R>(
        &mut self,
        asker: Asker,
        concerns: impl Fn(&ChannelShared) -> bool,
        change: impl Fn(&mut Batch) -> R,
    ) -> (Ticket, Vec<R>) {
        let ticket = self.ticket(asker);
        let channels = self.channels.iter().filter(|channel| concerns(channel));
        let left = channels.map(|channel| channel.slot.post(ticket.0, &change)).collect();
        (ticket, left)
    }

    /// Forgets what a guest asks to have forgotten.
    pub(super) fn invalidate(&mut self, what: Invalidation) -> Ticket {
        self.history.invalidations += 1;
        let concerns = |channel: &ChannelShared| what.concerns(channel.requester);
        let (ticket, _) = self.post_as(Asker::Guest, concerns, |batch| batch.forget(what));
        self.ask_device_tlb(&what, ticket);
        ticket
    }

    /// Forgets several scopes of one device's, in the name of its guest.
    pub(super) fn forget_of_device(
        &mut self,
        device: RequesterId,
        scopes: &[Option<Invalidation>],
    ) -> Ticket {
        let has_tlb = self.device_tlbs.is_on(device);
        let scopes = scopes.iter().flatten();
        let scopes = scopes.filter(|scope| has_tlb || scope.device_tlb().is_none());
        let forget = |batch: &mut Batch| scopes.clone().for_each(|scope| batch.forget(*scope));
        let of_device = |channel: &ChannelShared| channel.requester == device;
        let (ticket, _) = self.post_as(Asker::Guest, of_device, forget);
        scopes.for_each(|scope| self.ask_device_tlb(scope, ticket));
        ticket
    }

    /// If an invalidation is one of a device's own TLB, that device has to answer it.
    fn ask_device_tlb(&mut self, what: &Invalidation, ticket: Ticket) {
        let Some(device) = what.device_tlb() else { return };
        self.history.device_tlb_invalidations += 1;
        self.device_tlbs.ask(device, ticket);
    }

    /// Whether everything up to `ticket` is over; and what that leaves to be dropped after the
    /// lock is released.
    pub(super) fn settle(&mut self, ticket: Ticket) -> (bool, Settled) {
        let mut settled = Settled::default();
        // Nothing has this number yet: saying that it is over would be said of what comes, too.
        if ticket.0 > self.sequence {
            return (false, settled);
        }
        if ticket.0 > self.complete {
            // Each channel is tried, also after one that is busy: that shortens the next poll.
            let mut complete = self.sequence;
            for channel in &self.channels {
                settled.channels.extend(channel.slot.settle(ticket.0));
                complete = complete.min(channel.slot.settled(self.sequence));
            }
            self.complete = self.complete.max(complete);
        }
        settled.attached = self.attached.settle(Ticket(self.complete));
        settled.pasids = self.grants.release(self.released());
        while self.retired.front().is_some_and(|(ticket, _)| ticket.0 <= self.complete) {
            settled.tables.extend(self.retired.pop_front().map(|(_, tables)| tables));
        }
        let delayed = self.attached.delays(ticket) || self.device_tlbs.delays(ticket);
        (ticket.0 <= self.complete && !delayed, settled)
    }

    /// Up to which ticket PASIDs that were given back are released: of one that is attached still,
    /// those who use it have yet to be told.
    fn released(&self) -> Ticket {
        let standing = self.attached.standing();
        Ticket(self.complete.min(standing.0.saturating_sub(1)))
    }

    /// Condemns what is attached of the PASIDs that `of` picks, which are parked until `drained`.
    pub(super) fn condemn(&mut self, of: impl Fn(GuestPasid) -> bool, drained: Ticket) {
        let unused = self.attached.condemn(of, drained);
        unused.into_iter().for_each(|hwpt| self.objects.drop_use(hwpt.into()));
    }

    /// Ends an allocation; also gives what that leaves to be dropped after the lock is released.
    pub(super) fn grant(
        &mut self,
        taken: Taken,
    ) -> (Result<GuestPasid, AllocPasidError>, Released) {
        let granted = self.grants.grant(taken, Ticket(self.sequence));
        (granted, self.grants.release(self.released()))
    }

    /// Looks once more whether parked PASIDs can be released.
    pub(super) fn release_parked(&mut self) -> Settled {
        match self.grants.drained().max(self.attached.drained()) {
            Some(ticket) => self.settle(ticket).1,
            None => Settled::default(),
        }
    }
}

/// What is left when changes are complete.
#[derive(Default)]
pub(super) struct Settled {
    channels: Vec<Leftover>,
    pasids: Released,
    attached: Outcome,
    tables: Vec<Retired>,
}
