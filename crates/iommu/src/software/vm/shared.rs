//! What the endpoints and channels of a VM, and the rest of the host, ask of it.

use alloc::collections::BTreeMap;
use alloc::sync::Arc;

use ioasid::Holder;
use mem::MemoryMap;
use pci::RequesterId;

use super::VmShared;
use crate::channel::{Batch, ChannelShared, ChannelState};
use crate::counters::ChannelCounters;
use crate::endpoint::Device;
use crate::pasid::VmPasids;
use crate::slot::Slot;
use crate::software::attached::Attachments;
use crate::software::control::Control;
use crate::software::fault_log::FaultLog;
use crate::software::faults::FaultQueue;
use crate::software::grants::{GrantCheck, GrantsReport};
use crate::software::objects::Events;
use crate::software::page_requests::PageRequests;
use crate::software::pasids::ParkedAges;
use crate::sync::Mutex;
use crate::{Fault, FaultEvent, ObjectError, Ticket, VmConfig};

impl VmShared {
    /// Records a fault of one of its devices.
    pub(crate) fn record(&self, fault: Fault) {
        // What the host's stage 2 stops is not the guest's affair.
        if !fault.is_hosts() {
            self.events.record(&fault);
        }
        self.faults.record(fault);
        self.fault_log.record(FaultEvent::Unrecoverable(fault));
        self.fault_log.notify();
    }

    /// Does some of the work that PASIDs cause when they are given back, if there is any. To be
    /// called with no lock held.
    pub(super) fn poll(&self) {
        if let Some(pasids) = &self.pasids {
            pasids.poll();
        }
    }

    /// Under whose name what is attached holds PASIDs.
    pub(in crate::software) fn iommu(&self) -> Result<&Holder, ObjectError> {
        self.pasids.as_ref().map(|pasids| pasids.iommu()).ok_or(ObjectError::NotSupported)
    }

    /// A VM that no host knows, with one device; and which attachment that is.
    pub(crate) fn with_one_device(
        requester: RequesterId,
        memory: Arc<MemoryMap>,
    ) -> (Arc<Self>, u64) {
        let devices = BTreeMap::from([(requester, 1)]);
        let control = Control { memory, devices, attachments: 1, ..Control::default() };
        let fault_log = Arc::<FaultLog>::default();
        let config = VmConfig::named("identity");
        let page_requests = PageRequests::new(config.page_requests, fault_log.clone());
        let shared = Self {
            config,
            platform: Arc::default(),
            pasids: None,
            faults: FaultQueue::default(),
            events: Events::default(),
            page_requests,
            fault_log,
            stage_two: None,
            walk_failure: Arc::default(),
            control: Mutex::new(control),
        };
        (Arc::new(shared), 1)
    }

    /// Releases the parked PASIDs that nothing can name any more.
    pub(in crate::software) fn release_parked(&self) {
        self.poll();
        let settled = self.control.lock().release_parked();
        drop(settled);
    }

    /// Who has which PASIDs of this VM; `None` if it never can have any again.
    pub(crate) fn pasid_report(&self, parked: &ParkedAges) -> Option<VmPasids> {
        let (grants, channels) = {
            let control = self.control.lock();
            (control.grants.report(), control.channels.clone())
        };
        let grants = grants?;
        let mut entries = grants.entries(parked);
        for entry in &mut entries {
            let of = |channel: &Arc<ChannelShared>| {
                channel.slot.peek(|state| state.domain_of(entry.guest.0)).flatten()
            };
            entry.domain = channels.iter().find_map(of);
        }
        let VmConfig { name, numbering, enforce_grants: enforced, .. } = self.config.clone();
        let GrantsReport { closed, usage, .. } = grants;
        Some(VmPasids { name, numbering, enforced, closed, usage, entries })
    }

    /// What tells which of the host's PASIDs are this VM's.
    pub(crate) fn grant_check(&self) -> GrantCheck {
        self.control.lock().grants.check()
    }

    pub(crate) fn add_channel(&self, device: &Device) -> Arc<ChannelShared> {
        let mut control = self.control.lock();
        let attached = control.devices.get(&device.requester) == Some(&device.attachment);
        let memory = attached.then(|| MemoryMap::clone(&control.memory));
        let contexts = control.contexts.clone().filter(|_| attached);
        let counters = Arc::new(ChannelCounters::new(self.walk_failure.clone()));
        let grants = self.config.enforce_grants.then(|| control.grants.check());
        let adopted = control.attached.adopted(device.requester).filter(|_| attached);
        let adopted = adopted.map(|device| Attachments { device, grants: control.grants.check() });
        let stage_two = self.stage_two.as_ref().map(|stage_two| stage_two.walker().clone());
        let requester = device.requester;
        let state =
            ChannelState::new(requester, memory, stage_two, contexts, grants, counters.clone())
                .attached(adopted);
        let slot = Slot::new(state, control.sequence);
        let shared =
            Arc::new(ChannelShared { requester, attachment: device.attachment, slot, counters });
        control.channels.push(shared.clone());
        shared
    }

    /// Switches the ATS of `device`. What is in its own TLB when that is switched off, each access
    /// that begins later finds gone.
    pub(crate) fn set_ats(&self, device: &Device, on: bool) {
        let mut control = self.control.lock();
        device.switch_ats(on);
        if control.devices.get(&device.requester) != Some(&device.attachment) {
            return;
        }
        if control.device_tlbs.switch(device.requester, on) && !on {
            let of = |channel: &ChannelShared| channel.attachment == device.attachment;
            let (_ticket, _) = control.post(of, Batch::end_device_tlb);
        }
    }

    /// Has `device` keep its answers to invalidations of its own TLB to itself, or give them.
    pub(crate) fn withhold_invalidation_answers(&self, device: &Device, withhold: bool) {
        let mut control = self.control.lock();
        if control.devices.get(&device.requester) == Some(&device.attachment) {
            control.device_tlbs.withhold(device.requester, withhold);
        }
    }

    pub(crate) fn remove_channel(&self, channel: &Arc<ChannelShared>) {
        let _removed = {
            let mut control = self.control.lock();
            let at = control.channels.iter().position(|other| Arc::ptr_eq(other, channel));
            channel.counters.add_history(&mut control.history);
            at.map(|at| control.channels.swap_remove(at))
        };
    }

    /// Detaches `device`, if it is attached still.
    pub(crate) fn detach(&self, device: &Device) -> Ticket {
        // Also of a VM that is closed. Nobody is left to be told, and nobody to ask more.
        self.page_requests.remove(device.requester, device.attachment);
        let (ticket, _attached) = {
            let mut control = self.control.lock();
            if control.devices.get(&device.requester) != Some(&device.attachment) {
                return Ticket(control.sequence);
            }
            control.devices.remove(&device.requester);
            control.device_tlbs.remove(device.requester);
            let of = |channel: &ChannelShared| channel.attachment == device.attachment;
            let (ticket, _) = control.post(of, Batch::detach);
            let (unused, attached) = control.attached.remove(device.requester, ticket);
            unused.into_iter().for_each(|hwpt| control.objects.drop_use(hwpt.into()));
            self.forget_vdevice(&mut control, device.requester);
            (ticket, attached)
        };
        ticket
    }
}
