//! The guest's tables as the host's have them: for a host that owns the PASID tables.
//!
//! ```text
//!  guest: context, PASID directory, PASID table ──read when it says that they changed──► Shadow
//!                                                                                          │
//!      (device, PASID) ─► nested on stage 2, or stage 2 alone, or blocked ◄── Bindings ◄───┘
//! ```
//!
//! Reading takes place in polls, a bounded number of entries at a time; meanwhile the queue's head
//! stands still. What is bound is what the tables said when they were read last, as with hardware
//! that caches them.

mod counters;
mod device;
mod faults;
mod read;
mod scan;
mod translations;
mod work;

use alloc::collections::BTreeMap;

use iommu::nesting::{Bindings, Change, Scope};
use iommu::{
    ContextFault, ContextSource, DeviceContext, FaultQueueId, FaultReason, GuestPasid, HwptFlags,
    HwptParent, HwptRequest, ObjectError, Ticket, Vm,
};
use mem::GuestMemory;
use pci::RequesterId;

pub use counters::BindingCounters;
use device::{Device, Slot, Tag};
use read::GuestEntry;
use work::Work;

use super::RootTable;

/// The most entries of the guest's tables that one [`Model::poll`](super::Model::poll) reads, but
/// for the rest of a PASID table that it has begun. A change of what is bound counts as
/// [`CHANGE_COST`] of them.
pub const ENTRIES_PER_POLL: u32 = 2048;

/// What a call of the host counts in entries read.
pub const CHANGE_COST: u32 = 32;

/// What is left of what one poll may do, in entries.
#[derive(Debug)]
pub(super) struct Budget(u32);

impl Budget {
    pub(super) fn of_a_poll() -> Self {
        Self(ENTRIES_PER_POLL)
    }

    fn take(&mut self, entries: u32) {
        self.0 = self.0.saturating_sub(entries);
    }

    fn is_spent(&self) -> bool {
        self.0 == 0
    }
}

/// Where the guest's tables are.
#[derive(Clone, Copy)]
pub(super) struct View<'a> {
    pub(super) memory: &'a dyn GuestMemory,
    /// `None` while translation is off.
    pub(super) root: Option<RootTable>,
}

/// What has no attachment while translation is on is blocked: a device that the unit was not told
/// of, too.
#[derive(Debug)]
pub(super) struct Blocked;

impl ContextSource for Blocked {
    fn lookup(
        &self,
        _memory: &dyn GuestMemory,
        _requester: RequesterId,
    ) -> Result<DeviceContext, ContextFault> {
        Err(ContextFault { reason: FaultReason::ContextNotPresent, fault_disable: false })
    }
}

/// What the host was told of the guest's tables.
#[derive(Debug)]
pub(super) struct Shadow<V> {
    vm: V,
    /// Whether the guest asks for its PASIDs; one that does not numbers them itself.
    asks_for_pasids: bool,
    /// Where the page requests of what is bound go.
    faults: Option<FaultQueueId>,
    /// Made with the first device.
    bindings: Option<Bindings<V>>,
    devices: BTreeMap<RequesterId, Device>,
    work: Option<Work>,
    /// When nothing that was replaced or invalidated up to now is in use any more.
    latest: Option<Ticket>,
    counters: BindingCounters,
}

impl<V: Vm> Shadow<V> {
    pub(super) fn new(vm: V, asks_for_pasids: bool, faults: Option<FaultQueueId>) -> Self {
        Self {
            vm,
            asks_for_pasids,
            faults,
            bindings: None,
            devices: BTreeMap::new(),
            work: None,
            latest: None,
            counters: BindingCounters::default(),
        }
    }

    pub(super) fn counters(&self) -> BindingCounters {
        let bound = self.bindings.as_ref().map_or(0, Bindings::len);
        BindingCounters { bound: bound as u64, ..self.counters }
    }

    /// When nothing that was replaced or invalidated up to now is in use any more.
    pub(super) fn latest(&self) -> Option<Ticket> {
        self.latest
    }

    /// A device of the VM; one with its requester id is gone.
    pub(super) fn add_device(&mut self, requester: RequesterId, translation: bool) {
        self.remove_device(requester);
        self.devices.insert(requester, Device::default());
        if translation {
            self.read_device(requester);
        } else {
            self.set(requester, None, Some(GuestEntry::PASS_THROUGH));
        }
    }

    fn remove_device(&mut self, requester: RequesterId) {
        if self.devices.remove(&requester).is_some() {
            self.clear(Scope::Device(requester));
        }
    }

    /// Nothing is bound, and requests without PASID pass through.
    pub(super) fn reset(&mut self) {
        self.work = None;
        for device in self.devices.values_mut() {
            *device = Device::default();
        }
        self.clear(Scope::All);
        let requesters: alloc::vec::Vec<_> = self.devices.keys().copied().collect();
        for requester in requesters {
            self.set(requester, None, Some(GuestEntry::PASS_THROUGH));
        }
    }

    /// Ends everything that is bound to a PASID.
    fn release_pasid(&mut self, pasid: GuestPasid) {
        for device in self.devices.values_mut() {
            device.bound.remove(&Some(pasid));
        }
        self.clear(Scope::Pasid(pasid));
    }

    fn clear(&mut self, scope: Scope) {
        let Some(bindings) = &mut self.bindings else { return };
        match bindings.clear(scope) {
            Ok(ticket) => self.latest = self.latest.max(ticket),
            Err(_) => self.give_up(),
        }
    }

    /// Has `slot` of a device translated as the guest's entry says, or blocked; what that counts.
    fn set(&mut self, requester: RequesterId, slot: Slot, want: Option<GuestEntry>) -> u32 {
        let bound = |device: &Device| device.bound.contains_key(&slot);
        let Some(had) = self.devices.get(&requester).map(bound) else { return 0 };
        if !had && want.is_none() {
            return 0;
        }
        let change = self.bindings(requester).and_then(|bindings| {
            bindings.set_entry(requester, slot, want.map(|entry| entry.translation))
        });
        match change {
            Ok(change) => {
                self.note(change);
                self.tag(requester, slot, want.map(|entry| entry.tag));
                u32::from(change != Change::Nothing) * CHANGE_COST
            }
            Err(error) => {
                self.refuse(requester, slot, error);
                CHANGE_COST
            }
        }
    }

    fn tag(&mut self, requester: RequesterId, slot: Slot, tag: Option<Tag>) {
        let Some(device) = self.devices.get_mut(&requester) else { return };
        match tag {
            Some(tag) => device.bound.insert(slot, tag),
            None => device.bound.remove(&slot),
        };
    }

    fn note(&mut self, change: Change) {
        let counters = &mut self.counters;
        match change {
            Change::Nothing => {}
            Change::Bound => counters.made += 1,
            Change::Replaced(_) => counters.replaced += 1,
            Change::Unbound(_) => counters.ended += 1,
        }
        self.latest = self.latest.max(change.ticket());
    }

    /// The host does not take an entry: its requests are blocked, whatever was bound before.
    fn refuse(&mut self, requester: RequesterId, slot: Slot, error: ObjectError) {
        self.counters.refused += 1;
        match error {
            ObjectError::NoDevice(_) | ObjectError::Closed => self.remove_device(requester),
            _ => {
                self.tag(requester, slot, None);
                self.clear(Scope::Entry(requester, slot));
            }
        }
    }

    /// A host that does not undo what it is told to undo is not left translating by it.
    fn give_up(&mut self) {
        self.latest = self.latest.max(Some(self.vm.close()));
    }

    /// The bindings, over a stage 2 that is made for the first device.
    fn bindings(&mut self, device: RequesterId) -> Result<&mut Bindings<V>, ObjectError> {
        let bindings = match self.bindings.take() {
            Some(bindings) => bindings,
            None => self.over_stage_two(device)?,
        };
        Ok(self.bindings.insert(bindings))
    }

    fn over_stage_two(&self, device: RequesterId) -> Result<Bindings<V>, ObjectError> {
        let request = HwptRequest {
            device,
            parent: HwptParent::Ioas(self.vm.ioas()?),
            flags: HwptFlags::NEST_PARENT | HwptFlags::PASID,
            data: None,
            fault: None,
        };
        let parent = self.vm.alloc_hwpt(&request)?;
        let vm = self.vm.clone();
        let bindings = match self.asks_for_pasids {
            true => Bindings::new(vm, parent),
            false => Bindings::numbered_by_guest(vm, parent),
        };
        Ok(bindings.with_fault_queue(self.faults))
    }
}
