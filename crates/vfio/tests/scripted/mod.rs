//! A host whose objects do as they are told, and note what they were asked.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use iommu::{
    AllocPasidError, AttachError, ContextSource, Counters, Endpoint, EventQueueId, Fault,
    FaultQueueId, FreePasidError, GuestPasid, Hardware, Host, HostError, HwptId, HwptRequest,
    InvalidField, Invalidation, IoasId, ObjectError, ObjectId, PageFault, PageRequest,
    PageResponse, PageResponseError, PasidRange, PasidUsage, ResponseCode, SmmuCaps, SoftwareHost,
    SoftwareVm, StageOneInvalidation, Ticket, Unanswered, VdeviceId, ViommuId, ViommuKind, Vm,
    VmConfig, VmEvent,
};
use mem::MemoryMap;
use pci::RequesterId;

/// What the objects of a VM answer, and what they were asked.
pub(crate) struct Script {
    /// With what every call fails.
    pub(crate) error: Option<ObjectError>,
    /// How many entries are carried out before that, at most.
    pub(crate) done: usize,
    /// At which entry of all a list stops, whatever the calls it comes in.
    pub(crate) stop_at: Option<usize>,
    /// Entries so far.
    pub(crate) total: usize,
    pub(crate) hardware: Hardware,
    pub(crate) event: Option<VmEvent>,
    /// What waits in every queue, before what waits always.
    pub(crate) page_faults: VecDeque<PageFault>,
    /// What waits always, for the model and in every queue.
    pub(crate) page_request: Option<PageRequest>,
    pub(crate) page_response: Result<(), PageResponseError>,
    pub(crate) unanswered: Option<Unanswered>,
    pub(crate) next: Option<Duration>,
    pub(crate) entries: Vec<StageOneInvalidation>,
    pub(crate) commands: Vec<[u64; 2]>,
    /// What is called, once, by the next call that is asked something.
    pub(crate) hook: Option<Box<dyn FnOnce() + Send>>,
    calls: Vec<String>,
}

impl Default for Script {
    fn default() -> Self {
        let caps = SmmuCaps {
            output_bits: 44,
            wide_addresses: false,
            hardware_updates: 1,
            ats: false,
            ..SmmuCaps::FULL
        };
        Self {
            error: None,
            done: 0,
            stop_at: None,
            total: 0,
            hardware: Hardware::Smmuv3(caps),
            event: None,
            page_faults: VecDeque::new(),
            page_request: None,
            page_response: Ok(()),
            unanswered: None,
            next: None,
            entries: Vec::new(),
            commands: Vec::new(),
            hook: None,
            calls: Vec::new(),
        }
    }
}

impl Script {
    /// Carries out a list; gives where it stops.
    fn list(&mut self, len: usize) -> Result<(), (usize, ObjectError)> {
        let so_far = self.total;
        self.total += len;
        match (self.stop_at, self.error) {
            (Some(stop), _) if stop < self.total => {
                Err((stop - so_far, ObjectError::Invalid(InvalidField::Range)))
            }
            (None, Some(error)) => Err((self.done.min(len), error)),
            _ => Ok(()),
        }
    }
}

#[derive(Default)]
pub(crate) struct Scripted(SoftwareHost);

#[derive(Clone)]
pub(crate) struct ScriptedVm {
    vm: SoftwareVm,
    script: Arc<Mutex<Script>>,
    ids: Arc<AtomicU32>,
}

impl ScriptedVm {
    pub(crate) fn script(&self) -> MutexGuard<'_, Script> {
        self.script.lock().unwrap()
    }

    pub(crate) fn take_calls(&self) -> Vec<String> {
        std::mem::take(&mut self.script().calls)
    }

    fn asked<T>(&self, call: String, answer: impl FnOnce(u32) -> T) -> Result<T, ObjectError> {
        let hook = self.script().hook.take();
        if let Some(hook) = hook {
            hook();
        }
        let mut script = self.script();
        script.calls.push(call);
        match script.error {
            Some(error) => Err(error),
            // Numbers of more than 16 bits, and never the same.
            None => Ok(answer(self.ids.fetch_add(0x1_0001, Ordering::Relaxed) + 1)),
        }
    }
}

impl Host for Scripted {
    type Vm = ScriptedVm;

    fn create_vm(&self, config: VmConfig) -> Result<ScriptedVm, HostError> {
        let vm = self.0.create_vm(config)?;
        Ok(ScriptedVm { vm, script: Arc::default(), ids: Arc::default() })
    }
}

/// What is not an object's is the software host's.
macro_rules! forward {
    () => {
        fn memory(&self) -> Arc<MemoryMap> {
            self.vm.memory()
        }
        fn set_memory(&self, map: MemoryMap) -> Ticket {
            self.vm.set_memory(map)
        }
        fn set_contexts(&self, source: Option<Arc<dyn ContextSource>>) {
            self.vm.set_contexts(source);
        }
        fn invalidate(&self, what: Invalidation) -> Ticket {
            self.vm.invalidate(what)
        }
        fn in_flight(&self) -> Ticket {
            self.vm.in_flight()
        }
        fn is_complete(&self, ticket: Ticket) -> bool {
            self.vm.is_complete(ticket)
        }
        fn take_fault(&self) -> Option<Fault> {
            self.vm.take_fault()
        }
        fn set_fault_waker(&self, waker: Option<Arc<dyn Fn() + Send + Sync>>) {
            self.vm.set_fault_waker(waker);
        }
        fn attach(&self, requester: RequesterId) -> Result<Endpoint, AttachError> {
            self.vm.attach(requester)
        }
        fn alloc_pasid(&self, range: PasidRange) -> Result<GuestPasid, AllocPasidError> {
            self.vm.alloc_pasid(range)
        }
        fn free_pasid(&self, pasid: GuestPasid) -> Result<(), FreePasidError> {
            self.vm.free_pasid(pasid)
        }
        fn release_pasids(&self) -> Ticket {
            self.vm.release_pasids()
        }
        fn pasid_usage(&self) -> PasidUsage {
            self.vm.pasid_usage()
        }
        fn counters(&self) -> Counters {
            self.vm.counters()
        }
        fn close(&self) -> Ticket {
            self.vm.close()
        }
    };
}

impl Vm for ScriptedVm {
    forward!();

    fn ioas(&self) -> Result<IoasId, ObjectError> {
        self.asked("ioas".into(), IoasId)
    }

    fn hardware(&self, device: RequesterId) -> Result<Hardware, ObjectError> {
        self.asked(format!("hardware {device:?}"), |_| ())?;
        Ok(self.script().hardware)
    }

    fn alloc_hwpt(&self, request: &HwptRequest) -> Result<HwptId, ObjectError> {
        self.asked(format!("{request:?}"), HwptId)
    }

    fn alloc_viommu(
        &self,
        device: RequesterId,
        parent: HwptId,
        kind: ViommuKind,
    ) -> Result<ViommuId, ObjectError> {
        self.asked(format!("viommu {device:?} {parent:?} {kind:?}"), ViommuId)
    }

    fn alloc_vdevice(
        &self,
        viommu: ViommuId,
        device: RequesterId,
        virtual_id: u64,
    ) -> Result<VdeviceId, ObjectError> {
        self.asked(format!("vdevice {viommu:?} {device:?} {virtual_id:#x}"), VdeviceId)
    }

    fn alloc_fault_queue(&self) -> Result<FaultQueueId, ObjectError> {
        self.asked("fault queue".into(), FaultQueueId)
    }

    fn alloc_event_queue(&self, viommu: ViommuId, depth: u32) -> Result<EventQueueId, ObjectError> {
        self.asked(format!("event queue {viommu:?} {depth}"), EventQueueId)
    }

    fn take_event(&self, queue: EventQueueId) -> Result<Option<VmEvent>, ObjectError> {
        self.asked(format!("take {queue:?}"), |_| ())?;
        Ok(self.script().event)
    }

    fn take_page_request(&self) -> Option<PageRequest> {
        let mut script = self.script();
        script.calls.push("take page request".into());
        script.page_request
    }

    fn respond_page_request(&self, response: PageResponse) -> Result<(), PageResponseError> {
        let mut script = self.script();
        script.calls.push(format!("{response:?}"));
        // Of the group that was answered: it is not said twice.
        let PageResponse { requester, group, .. } = response;
        script.page_response.map_err(|error| match error {
            PageResponseError::NotOutstanding { .. } => {
                PageResponseError::NotOutstanding { requester, group }
            }
            PageResponseError::WrongPasid { .. } => {
                PageResponseError::WrongPasid { requester, group }
            }
            other => other,
        })
    }

    fn take_page_fault(&self, queue: FaultQueueId) -> Result<Option<PageFault>, ObjectError> {
        let cookie = self.asked(format!("take {queue:?}"), |id| id)?;
        if let Some(fault) = self.script().page_faults.pop_front() {
            return Ok(Some(fault));
        }
        Ok(self.script().page_request.map(|request| PageFault { cookie, request }))
    }

    fn respond_page_fault(
        &self,
        queue: FaultQueueId,
        cookie: u32,
        code: ResponseCode,
    ) -> Result<(), ObjectError> {
        self.asked(format!("respond {queue:?} {cookie:#x} {code:?}"), |_| ())
    }

    fn unanswered(&self, ticket: Ticket) -> Option<Unanswered> {
        let mut script = self.script();
        script.calls.push(format!("unanswered {ticket:?}"));
        script.unanswered
    }

    fn give_up_answers(&self, up_to: Ticket) {
        self.script().calls.push(format!("give up {up_to:?}"));
    }

    fn tick(&self, now: Duration) -> Option<Duration> {
        let mut script = self.script();
        script.calls.push(format!("tick {now:?}"));
        script.next
    }

    fn destroy(&self, object: ObjectId) -> Result<(), ObjectError> {
        self.asked(format!("destroy {object:?}"), |_| ())
    }

    fn attach_hwpt(
        &self,
        device: RequesterId,
        pasid: Option<GuestPasid>,
        hwpt: HwptId,
    ) -> Result<(), ObjectError> {
        self.asked(format!("attach {device:?} {pasid:?} {hwpt:?}"), |_| ())
    }

    fn replace_hwpt(
        &self,
        device: RequesterId,
        pasid: Option<GuestPasid>,
        hwpt: HwptId,
    ) -> Result<Ticket, ObjectError> {
        let call = format!("replace {device:?} {pasid:?} {hwpt:?}");
        self.asked(call, |id| Ticket::new(u64::from(id) << 20))
    }

    fn detach_hwpt(
        &self,
        device: RequesterId,
        pasid: Option<GuestPasid>,
    ) -> Result<Ticket, ObjectError> {
        self.asked(format!("detach {device:?} {pasid:?}"), |id| Ticket::new(u64::from(id) << 20))
    }

    fn invalidate_hwpt(
        &self,
        hwpt: HwptId,
        what: &[StageOneInvalidation],
    ) -> Result<Ticket, (usize, ObjectError)> {
        let mut script = self.script();
        script.calls.push(format!("invalidate {hwpt:?} {what:?}"));
        script.entries.extend(what);
        script.list(what.len())?;
        Ok(Ticket::new(0))
    }

    fn invalidate_viommu(
        &self,
        viommu: ViommuId,
        commands: &[[u64; 2]],
    ) -> Result<Ticket, (usize, ObjectError)> {
        let mut script = self.script();
        script.calls.push(format!("commands {viommu:?} {commands:?}"));
        script.commands.extend(commands);
        script.list(commands.len())?;
        Ok(Ticket::new(0))
    }
}
