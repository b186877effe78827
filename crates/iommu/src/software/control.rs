//! What a VM's control path works on, under the VM's lock.

use alloc::collections::{BTreeMap, VecDeque};
use alloc::sync::Arc;
use alloc::vec::Vec;

use mem::MemoryMap;
use pci::RequesterId;

use super::bindings::Watch;
use super::grants::{Grants, Released, Taken};
use super::objects::{Devices, Objects, Outcome};
use super::platform::Domain;
use super::Place;
use crate::channel::{Batch, ChannelShared, Leftover};
use crate::stage_two::Retired;
use crate::{AllocPasidError, ContextSource, Counters, GuestPasid, Ticket};

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
    /// The tag of what an SMMUv3 caches of the VM.
    pub(super) vmid: Option<Arc<Domain>>,
    /// Hears of PASIDs that are given back, once any has been attached.
    pub(super) watch: Option<Watch>,
    /// Tables out of use, in the order of the tickets after which nothing can be in them.
    pub(super) retired: VecDeque<(Ticket, Retired)>,
    pub(super) closed: bool,
}

impl Control {
    /// Posts a change to the channels that `concerns` picks; gives what that leaves to be
    /// dropped after the lock is released.
    pub(super) fn post<R>(
        &mut self,
        concerns: impl Fn(&ChannelShared) -> bool,
        change: impl Fn(&mut Batch) -> R,
    ) -> (Ticket, Vec<R>) {
        self.sequence += 1;
        let channels = self.channels.iter().filter(|channel| concerns(channel));
        let left = channels.map(|channel| channel.slot.post(self.sequence, &change)).collect();
        (Ticket(self.sequence), left)
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
        (ticket.0 <= self.complete && !self.attached.delays(ticket), settled)
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
