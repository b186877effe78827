//! A VM of the software host.

mod shared;

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::sync::{Arc, Weak};
use alloc::vec::Vec;
use core::fmt;
use core::time::Duration;

use ioasid::Priority;
use mem::MemoryMap;
use pci::RequesterId;

use super::bindings::{subscription, Adapter};
use super::control::Control;
use super::device_tlbs::DeviceTlbs;
use super::fault_log::FaultLog;
use super::faults::FaultQueue;
use super::grants::Grants;
use super::objects::{Events, Objects};
use super::page_requests::PageRequests;
use super::pasids::HostPasids;
use super::platform::Platform;
use super::stage_two::VmStageTwo;
use super::{Place, MAX_DEVICES};
use crate::channel::{Batch, ChannelState};
use crate::injection::WalkFailure;
use crate::pasid::translation::{PasidTranslation, TranslationConfig, TranslationError};
use crate::sabotage::{self, Sabotage};
use crate::sync::Mutex;
use crate::{
    AllocPasidError, AttachError, ContextSource, Counters, DomainId, Endpoint, EventQueueId, Fault,
    FaultQueueId, FreePasidError, GuestPasid, Hardware, HostError, HwptId, HwptRequest,
    Invalidation, IoasId, ObjectError, ObjectId, PageFault, PageRequest, PageRequestCounters,
    PageResponse, PageResponseError, Pasid, PasidRange, PasidUsage, ResponseCode,
    StageOneInvalidation, Ticket, Unanswered, VdeviceId, ViommuId, ViommuKind, Vm, VmConfig,
    VmEvent,
};

/// A VM of a [`SoftwareHost`](crate::SoftwareHost). Clones are the same VM.
///
/// It ends with [`close`](Vm::close). One that is not closed lives on while a clone of this, an
/// endpoint or a channel of it does.
#[derive(Clone)]
pub struct SoftwareVm(pub(super) Arc<VmShared>);

/// What the handles, endpoints and channels of a VM share.
pub(crate) struct VmShared {
    pub(super) config: VmConfig,
    pub(super) platform: Arc<Platform>,
    /// The host's PASIDs; `None` of a VM that no host knows.
    pub(super) pasids: Option<Arc<HostPasids>>,
    pub(crate) faults: FaultQueue,
    pub(super) events: Events,
    pub(crate) page_requests: PageRequests,
    pub(crate) fault_log: Arc<FaultLog>,
    /// The host's stage 2 for it. Changes are made under its lock, which is taken before `control`.
    pub(super) stage_two: Option<VmStageTwo>,
    pub(super) walk_failure: Arc<WalkFailure>,
    /// Taken by the model and the machine, never by an access. Under it a slot's lock is only
    /// tried, and its list of pending changes locked for a few instructions.
    pub(super) control: Mutex<Control>,
}

impl SoftwareVm {
    pub(super) fn new(
        config: VmConfig,
        place: Place,
        host: &Arc<HostPasids>,
        platform: &Arc<Platform>,
    ) -> Result<Self, HostError> {
        let tables = &platform.tables;
        let stage_two = config.stage_two.as_ref();
        let stage_two = stage_two.map(|config| VmStageTwo::new(config, tables)).transpose()?;
        let grants = Grants::new(host, &config.name, config.quota, config.numbering)?;
        let control = Control { place: Some(place), grants, ..Control::default() };
        let fault_log = Arc::<FaultLog>::default();
        let page_requests = PageRequests::new(config.page_requests, fault_log.clone());
        Ok(Self(Arc::new(VmShared {
            config,
            platform: platform.clone(),
            pasids: Some(host.clone()),
            faults: FaultQueue::default(),
            events: Events::default(),
            page_requests,
            fault_log,
            stage_two,
            walk_failure: Arc::default(),
            control: Mutex::new(control),
        })))
    }

    pub(super) fn downgrade(&self) -> Weak<VmShared> {
        Arc::downgrade(&self.0)
    }

    /// Its name, for people.
    pub fn name(&self) -> &str {
        &self.0.config.name
    }

    /// Makes the table by which this VM's processors translate PASIDs when they submit to shared
    /// queues. What is bound from now on is in it.
    ///
    /// # Errors
    ///
    /// [`TranslationError`]. Nothing has changed.
    pub fn translate_pasids(
        &self,
        config: TranslationConfig,
    ) -> Result<PasidTranslation, TranslationError> {
        let set = {
            let control = self.0.control.lock();
            if control.closed {
                return Err(TranslationError::Closed);
            }
            control.grants.set().map(|(host, set)| (host.clone(), set.clone()))
        };
        PasidTranslation::new(config, |table| {
            // Without a quota there are no PASIDs, so nothing to be told.
            let Some((host, set)) = set else { return Ok(None) };
            let adapter = Arc::new(Adapter(table));
            subscription(set.subscribe(host.cpu(), Priority::Cpu, adapter)).map(Some)
        })
    }

    /// The domains under which something is cached now, in channels that no access is using.
    pub fn cached_domains(&self) -> BTreeSet<DomainId> {
        let mut domains = BTreeSet::new();
        self.peek(|state| state.add_domains(&mut domains));
        domains
    }

    /// The PASIDs whose table entry is cached now, and their domains, in channels that no access
    /// is using. Granted or not: a guest may number its address spaces itself.
    pub fn cached_pasids(&self) -> BTreeMap<Pasid, DomainId> {
        let mut pasids = BTreeMap::new();
        self.peek(|state| state.add_pasids(&mut pasids));
        pasids
    }

    /// For tests of what is above: has the `n`-th word of the guest's tables that a translation
    /// loads from now on (the next one is the first) not be found, once, as if no memory were there.
    /// `None` ends that.
    pub fn inject_walk_failure(&self, n: Option<u64>) {
        self.0.walk_failure.set(n);
    }

    /// For tests of what is above: has every device be busy for at least `delay` when it is asked to
    /// forget something of its own TLB, by the time that [`tick`](Vm::tick) is told; then it answers
    /// all that it was asked meanwhile, waited for or given up. `None` ends that.
    pub fn delay_invalidation_answers(&self, delay: Option<Duration>) {
        self.0.control.lock().device_tlbs.set_delay(delay);
    }

    /// Looks at every channel that no access is using.
    fn peek(&self, mut look: impl FnMut(&ChannelState)) {
        let (latest, channels) = {
            let control = self.0.control.lock();
            (Ticket(control.sequence), control.channels.clone())
        };
        // What was invalidated is not to be seen, though an idle channel may not know yet.
        self.is_complete(latest);
        for channel in &channels {
            channel.slot.peek(&mut look);
        }
    }
}

impl Vm for SoftwareVm {
    fn memory(&self) -> Arc<MemoryMap> {
        self.0.control.lock().memory.clone()
    }

    fn set_memory(&self, map: MemoryMap) -> Ticket {
        let new = Arc::new(map.clone());
        if let Some(stage_two) = &self.0.stage_two {
            return stage_two.set_memory(&self.0.control, new);
        }
        let (ticket, _old) = {
            let mut control = self.0.control.lock();
            if control.closed {
                return Ticket(control.sequence);
            }
            let old = core::mem::replace(&mut control.memory, new);
            let (ticket, left) = control.post(|_| true, |batch| batch.adopt_memory(map.clone()));
            (ticket, (old, left))
        };
        ticket
    }

    fn set_contexts(&self, source: Option<Arc<dyn ContextSource>>) {
        let _old = {
            let mut control = self.0.control.lock();
            if control.closed {
                return;
            }
            let old = core::mem::replace(&mut control.contexts, source.clone());
            (old, control.post(|_| true, |batch| batch.adopt_contexts(source.clone())))
        };
    }

    fn invalidate(&self, what: Invalidation) -> Ticket {
        self.0.control.lock().invalidate(what)
    }

    fn in_flight(&self) -> Ticket {
        // Nothing is changed; but a channel that is in use has not heard of it until that is over.
        let (ticket, _) = self.0.control.lock().post(|_| true, |_| ());
        ticket
    }

    fn is_complete(&self, ticket: Ticket) -> bool {
        if sabotage::is(Sabotage::DropInFlight) {
            return true;
        }
        self.0.poll();
        let (complete, _left) = self.0.control.lock().settle(ticket);
        complete
    }

    fn take_fault(&self) -> Option<Fault> {
        self.0.faults.take()
    }

    fn set_fault_waker(&self, waker: Option<Arc<dyn Fn() + Send + Sync>>) {
        self.0.faults.set_waker(waker);
    }

    fn attach(&self, requester: RequesterId) -> Result<Endpoint, AttachError> {
        let attachment = {
            let mut control = self.0.control.lock();
            if control.closed {
                return Err(AttachError::Closed);
            }
            if control.devices.contains_key(&requester) {
                return Err(AttachError::Duplicate(requester));
            }
            if control.devices.len() >= MAX_DEVICES {
                return Err(AttachError::TooManyDevices { limit: MAX_DEVICES });
            }
            control.attachments += 1;
            let attachment = control.attachments;
            control.devices.insert(requester, attachment);
            attachment
        };
        Ok(Endpoint::new(self.0.clone(), requester, attachment))
    }

    fn alloc_pasid(&self, range: PasidRange) -> Result<GuestPasid, AllocPasidError> {
        self.0.release_parked();
        let claim = self.0.control.lock().grants.claim()?;
        let taken = claim.take(range);
        let (granted, _left) = self.0.control.lock().grant(taken);
        granted
    }

    fn free_pasid(&self, pasid: GuestPasid) -> Result<(), FreePasidError> {
        let mut control = self.0.control.lock();
        let revoked = control.grants.revoke(pasid)?;
        let (drained, _) = control.post(|_| true, |batch| batch.forget_pasid(pasid.0));
        control.grants.park(revoked, drained);
        control.condemn(|of| of == pasid, drained);
        self.0.page_requests.withdraw_pasid(pasid.0);
        drop(control);
        self.0.tell_withdrawn();
        Ok(())
    }

    fn release_pasids(&self) -> Ticket {
        let mut control = self.0.control.lock();
        let revoked = control.grants.revoke_all();
        let (drained, _) = control.post(|_| true, Batch::forget_everything);
        control.grants.park(revoked, drained);
        control.condemn(|_| true, drained);
        control.attached.insist(drained);
        self.0.page_requests.withdraw_pasids();
        drop(control);
        self.0.tell_withdrawn();
        drained
    }

    fn pasid_usage(&self) -> PasidUsage {
        self.0.release_parked();
        self.0.control.lock().grants.usage()
    }

    fn counters(&self) -> Counters {
        let control = self.0.control.lock();
        let mut sum = control.history;
        for channel in &control.channels {
            channel.counters.add_history(&mut sum);
            channel.counters.add_present(&mut sum);
        }
        sum.devices = control.devices.len() as u64;
        sum.injected_walk_failures = self.0.walk_failure.count();
        self.0.faults.add_counts(&mut sum);
        sum
    }

    fn ioas(&self) -> Result<IoasId, ObjectError> {
        self.0.ioas()
    }

    fn hardware(&self, device: RequesterId) -> Result<Hardware, ObjectError> {
        self.0.hardware(device)
    }

    fn alloc_hwpt(&self, request: &HwptRequest) -> Result<HwptId, ObjectError> {
        self.0.alloc_hwpt(request)
    }

    fn alloc_viommu(
        &self,
        device: RequesterId,
        parent: HwptId,
        kind: ViommuKind,
    ) -> Result<ViommuId, ObjectError> {
        self.0.alloc_viommu(device, parent, kind)
    }

    fn alloc_vdevice(
        &self,
        viommu: ViommuId,
        device: RequesterId,
        virtual_id: u64,
    ) -> Result<VdeviceId, ObjectError> {
        self.0.alloc_vdevice(viommu, device, virtual_id)
    }

    fn alloc_fault_queue(&self) -> Result<FaultQueueId, ObjectError> {
        self.0.alloc_fault_queue()
    }

    fn alloc_event_queue(&self, viommu: ViommuId, depth: u32) -> Result<EventQueueId, ObjectError> {
        self.0.alloc_event_queue(viommu, depth)
    }

    fn take_event(&self, queue: EventQueueId) -> Result<Option<VmEvent>, ObjectError> {
        self.0.take_event(queue)
    }

    fn take_page_request(&self) -> Option<PageRequest> {
        self.0.page_requests.take()
    }

    fn respond_page_request(&self, response: PageResponse) -> Result<(), PageResponseError> {
        self.0.page_requests.respond(response)?;
        self.0.answered();
        Ok(())
    }

    fn page_request_counters(&self) -> PageRequestCounters {
        self.0.page_requests.counters()
    }

    fn take_page_fault(&self, queue: FaultQueueId) -> Result<Option<PageFault>, ObjectError> {
        self.0.take_page_fault(queue)
    }

    fn respond_page_fault(
        &self,
        queue: FaultQueueId,
        cookie: u32,
        code: ResponseCode,
    ) -> Result<(), ObjectError> {
        self.0.respond_page_fault(queue, cookie, code)
    }

    fn unanswered(&self, ticket: Ticket) -> Option<Unanswered> {
        self.0.control.lock().device_tlbs.unanswered(ticket)
    }

    fn give_up_answers(&self, up_to: Ticket) {
        self.0.control.lock().device_tlbs.give_up(up_to);
    }

    fn tick(&self, now: Duration) -> Option<Duration> {
        let answers = self.0.control.lock().device_tlbs.tick(now);
        let requests = self.0.page_requests.tick(now);
        [answers, requests].into_iter().flatten().min()
    }

    fn destroy(&self, object: ObjectId) -> Result<(), ObjectError> {
        self.0.destroy(object)
    }

    fn attach_hwpt(
        &self,
        device: RequesterId,
        pasid: Option<GuestPasid>,
        hwpt: HwptId,
    ) -> Result<(), ObjectError> {
        self.0.attach_hwpt(device, pasid, hwpt)
    }

    fn replace_hwpt(
        &self,
        device: RequesterId,
        pasid: Option<GuestPasid>,
        hwpt: HwptId,
    ) -> Result<Ticket, ObjectError> {
        self.0.replace_hwpt(device, pasid, hwpt)
    }

    fn detach_hwpt(
        &self,
        device: RequesterId,
        pasid: Option<GuestPasid>,
    ) -> Result<Ticket, ObjectError> {
        self.0.detach_hwpt(device, pasid)
    }

    fn invalidate_hwpt(
        &self,
        hwpt: HwptId,
        what: &[StageOneInvalidation],
    ) -> Result<Ticket, (usize, ObjectError)> {
        self.0.invalidate_hwpt(hwpt, what)
    }

    fn invalidate_viommu(
        &self,
        viommu: ViommuId,
        commands: &[[u64; 2]],
    ) -> Result<Ticket, (usize, ObjectError)> {
        self.0.invalidate_viommu(viommu, commands)
    }

    fn close(&self) -> Ticket {
        let (ticket, (_old, _attached, set)) = {
            let mut editor = self.0.stage_two.as_ref().map(VmStageTwo::edit);
            let mut control = self.0.control.lock();
            if control.closed || sabotage::is(Sabotage::KeepOnClose) {
                return Ticket(control.sequence);
            }
            control.closed = true;
            let devices = core::mem::take(&mut control.devices);
            control.device_tlbs = DeviceTlbs::default();
            let old = (
                core::mem::take(&mut control.memory),
                control.contexts.take(),
                control.place.take(),
            );
            let revoked = control.grants.revoke_all();
            let (ticket, _) = control.post(|_| true, Batch::detach);
            control.grants.park(revoked, ticket);
            control.condemn(|_| true, ticket);
            control.attached.insist(ticket);
            let attached: Vec<_> = devices
                .into_keys()
                .map(|device| control.attached.remove(device, ticket).1)
                .collect();
            control.objects = Objects::default();
            let tables = editor.as_mut().map(|editor| (ticket, editor.close()));
            control.retired.extend(tables);
            self.0.page_requests.close();
            (ticket, (old, attached, control.grants.close()))
        };
        if let Some(set) = set {
            set.close();
        }
        self.0.tell_withdrawn();
        self.0.faults.close();
        self.0.events.close();
        ticket
    }
}

impl fmt::Debug for SoftwareVm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SoftwareVm").field("name", &self.name()).finish_non_exhaustive()
    }
}
