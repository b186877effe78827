//! The model over a VM that records what it is told and completes when it is told to.

mod caps;
mod contexts;
mod events;
mod faults;
mod host_tables;
mod hostile;
mod objects;
mod page_requests;
mod queue;
mod registers;
mod timeout;
mod translation;
mod virtual_commands;

use iommu::{
    AllocPasidError, AttachError, ContextSource, Counters, Endpoint, Fault, FaultQueueId,
    FaultReason, FreePasidError, GuestPasid, HwptId, HwptRequest, Invalidation, IoasId,
    ObjectError, ObjectId, PageFault, PageRequest, PageResponse, PageResponseError, Pasid,
    PasidRange, PasidUsage, ResponseCode, StageOneInvalidation, Ticket, Unanswered, Vm,
};
use mem::{Access, Gpa, GuestMemory, Iova, MemoryMap};
use pci::RequesterId;
use std::collections::{BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};
use std::vec::Vec;

use super::*;
use crate::spec::{RegisterId, REGISTERS};

/// A VM without devices. Invalidations complete when [`TestVm::complete`] is called, or at once.
#[derive(Clone)]
pub(super) struct TestVm(Arc<Mutex<State>>);

pub(super) struct State {
    memory: Arc<MemoryMap>,
    pub(super) contexts: Option<Arc<dyn ContextSource>>,
    pub(super) invalidations: Vec<Invalidation>,
    pub(super) faults: VecDeque<Fault>,
    issued: u64,
    completed: u64,
    late: bool,
    /// PASIDs that the VM may have.
    pub(super) quota: u32,
    /// PASIDs that it has.
    pub(super) pasids: BTreeSet<Pasid>,
    /// The range of the last allocation.
    pub(super) asked: Option<PasidRange>,
    /// Allocations, frees and releases that the VM was asked for.
    pub(super) pasid_calls: u64,
    pub(super) objects: objects::Objects,
    pub(super) asked_for: page_requests::AskedFor,
    /// Whose answer keeps what is incomplete from being complete.
    pub(super) owing: Option<RequesterId>,
    /// Up to where answers were given up, each time.
    pub(super) given_up: Vec<Ticket>,
    /// Whether the VM was closed.
    pub(super) closed: bool,
}

impl State {
    fn issue(&mut self) -> Ticket {
        self.issued += 1;
        if !self.late {
            self.completed = self.issued;
        }
        Ticket::new(self.issued)
    }
}

impl TestVm {
    /// A VM with memory at 0 to 1 MiB.
    fn new() -> Self {
        let memory = MemoryMap::anonymous(&[(Gpa(0), 1 << 20)]).unwrap();
        Self(Arc::new(Mutex::new(State {
            memory: Arc::new(memory),
            contexts: None,
            invalidations: Vec::new(),
            faults: VecDeque::new(),
            issued: 0,
            completed: 0,
            late: false,
            quota: 0,
            pasids: BTreeSet::new(),
            asked: None,
            pasid_calls: 0,
            objects: objects::Objects::default(),
            asked_for: page_requests::AskedFor::default(),
            owing: None,
            given_up: Vec::new(),
            closed: false,
        })))
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }

    /// From now on, nothing completes by itself.
    fn complete_late(&self) {
        self.state().late = true;
    }

    /// Completes everything issued up to now.
    fn complete(&self) {
        let mut state = self.state();
        state.completed = state.issued;
    }

    fn forgotten(&self) -> Vec<Invalidation> {
        core::mem::take(&mut self.state().invalidations)
    }
}

impl Vm for TestVm {
    fn memory(&self) -> Arc<MemoryMap> {
        self.state().memory.clone()
    }

    fn set_memory(&self, map: MemoryMap) -> Ticket {
        self.state().memory = Arc::new(map);
        Ticket::new(0)
    }

    fn set_contexts(&self, source: Option<Arc<dyn ContextSource>>) {
        self.state().contexts = source;
    }

    fn invalidate(&self, what: Invalidation) -> Ticket {
        let mut state = self.state();
        state.invalidations.push(what);
        state.issue()
    }

    fn in_flight(&self) -> Ticket {
        self.state().issue()
    }

    fn is_complete(&self, ticket: Ticket) -> bool {
        ticket <= Ticket::new(self.state().completed)
    }

    fn take_fault(&self) -> Option<Fault> {
        self.state().faults.pop_front()
    }

    fn set_fault_waker(&self, _waker: Option<Arc<dyn Fn() + Send + Sync>>) {}

    fn attach(&self, _requester: RequesterId) -> Result<Endpoint, AttachError> {
        Err(AttachError::Closed)
    }

    /// The lowest that the VM does not have.
    fn alloc_pasid(&self, range: PasidRange) -> Result<GuestPasid, AllocPasidError> {
        let mut state = self.state();
        state.pasid_calls += 1;
        state.asked = Some(range);
        if state.pasids.len() as u32 >= state.quota {
            return Err(AllocPasidError::QuotaExceeded { quota: state.quota });
        }
        let numbers = range.first.get()..=range.last.get();
        let free = numbers.filter_map(Pasid::new).find(|pasid| !state.pasids.contains(pasid));
        let pasid = free.ok_or(AllocPasidError::NoneAvailable)?;
        state.pasids.insert(pasid);
        Ok(GuestPasid(pasid))
    }

    fn free_pasid(&self, pasid: GuestPasid) -> Result<(), FreePasidError> {
        let mut state = self.state();
        state.pasid_calls += 1;
        let had = state.pasids.remove(&pasid.0);
        had.then_some(()).ok_or(FreePasidError::NotGranted(pasid))
    }

    fn release_pasids(&self) -> Ticket {
        let mut state = self.state();
        state.pasid_calls += 1;
        state.pasids.clear();
        state.issue()
    }

    fn pasid_usage(&self) -> PasidUsage {
        let state = self.state();
        PasidUsage { quota: state.quota, live: state.pasids.len() as u32, parked: 0 }
    }

    fn counters(&self) -> Counters {
        Counters::default()
    }

    fn take_page_request(&self) -> Option<PageRequest> {
        self.state().asked_for.take_request()
    }

    fn respond_page_request(&self, response: PageResponse) -> Result<(), PageResponseError> {
        self.state().asked_for.respond(response)
    }

    fn alloc_fault_queue(&self) -> Result<FaultQueueId, ObjectError> {
        Ok(objects::FAULTS)
    }

    fn take_page_fault(&self, queue: FaultQueueId) -> Result<Option<PageFault>, ObjectError> {
        assert_eq!(queue, objects::FAULTS);
        Ok(self.state().asked_for.take_fault())
    }

    fn respond_page_fault(
        &self,
        queue: FaultQueueId,
        cookie: u32,
        code: ResponseCode,
    ) -> Result<(), ObjectError> {
        assert_eq!(queue, objects::FAULTS);
        self.state().asked_for.respond_fault(cookie, code)
    }

    fn unanswered(&self, ticket: Ticket) -> Option<Unanswered> {
        let state = self.state();
        let completed = Ticket::new(state.completed);
        let owing = state.owing.filter(|_| ticket > completed);
        owing.map(|requester| Unanswered { requester, ticket: completed })
    }

    /// If a device owes the answer, nothing else is missing.
    fn give_up_answers(&self, up_to: Ticket) {
        let mut state = self.state();
        state.given_up.push(up_to);
        if state.owing.is_some() {
            state.completed = state.completed.max(up_to.sequence().min(state.issued));
        }
    }

    fn ioas(&self) -> Result<IoasId, ObjectError> {
        Ok(IoasId(7))
    }

    fn alloc_hwpt(&self, request: &HwptRequest) -> Result<HwptId, ObjectError> {
        self.state().objects.alloc(request)
    }

    fn destroy(&self, object: ObjectId) -> Result<(), ObjectError> {
        self.state().objects.destroy(object)
    }

    fn attach_hwpt(
        &self,
        device: RequesterId,
        pasid: Option<GuestPasid>,
        hwpt: HwptId,
    ) -> Result<(), ObjectError> {
        let mut state = self.state();
        let granted = pasid.is_none_or(|pasid| state.pasids.contains(&pasid.0));
        state.objects.attach((device, pasid), hwpt, granted)
    }

    fn replace_hwpt(
        &self,
        device: RequesterId,
        pasid: Option<GuestPasid>,
        hwpt: HwptId,
    ) -> Result<Ticket, ObjectError> {
        let mut state = self.state();
        state.objects.replace((device, pasid), hwpt)?;
        Ok(state.issue())
    }

    fn detach_hwpt(
        &self,
        device: RequesterId,
        pasid: Option<GuestPasid>,
    ) -> Result<Ticket, ObjectError> {
        let mut state = self.state();
        state.objects.detach((device, pasid))?;
        Ok(state.issue())
    }

    fn invalidate_hwpt(
        &self,
        hwpt: HwptId,
        what: &[StageOneInvalidation],
    ) -> Result<Ticket, (usize, ObjectError)> {
        let mut state = self.state();
        state.objects.invalidate(hwpt, what).map_err(|error| (0, error))?;
        Ok(state.issue())
    }

    fn close(&self) -> Ticket {
        let mut state = self.state();
        state.closed = true;
        state.issue()
    }
}

/// A unit and its VM.
pub(super) struct Unit {
    pub(super) model: Model<TestVm>,
    pub(super) vm: TestVm,
}

pub(super) const QUEUE: u64 = 0x10000;
pub(super) const STATUS: Gpa = Gpa(0x2000);
pub(super) const TE: u32 = 1 << 31;
pub(super) const SRTP: u32 = 1 << 30;
pub(super) const QIE: u32 = 1 << 26;
pub(super) const IQE: u32 = 1 << 4;

impl Unit {
    pub(super) fn new() -> Self {
        Self::with(Options::default())
    }

    pub(super) fn with(options: Options) -> Self {
        let vm = TestVm::new();
        Self { model: Model::new(Caps::new(options).unwrap(), vm.clone()), vm }
    }

    /// In scalable mode, with an empty queue of 256-bit descriptors at [`QUEUE`].
    pub(super) fn scalable() -> Self {
        let mut unit = Self::new();
        let _ = unit.write64(0x20, 0x4400);
        let _ = unit.write32(0x18, SRTP);
        let _ = unit.write64(0x90, QUEUE | 0x800);
        let _ = unit.write32(0x18, QIE);
        assert_eq!(unit.read32(0x1c), SRTP | QIE);
        unit.vm.forgotten();
        unit
    }

    pub(super) fn read32(&mut self, offset: u64) -> u32 {
        let mut data = [0xaa; 4];
        self.model.read(offset, &mut data);
        u32::from_le_bytes(data)
    }

    pub(super) fn read64(&mut self, offset: u64) -> u64 {
        let mut data = [0xaa; 8];
        self.model.read(offset, &mut data);
        u64::from_le_bytes(data)
    }

    pub(super) fn write32(&mut self, offset: u64, value: u32) -> Effects {
        self.model.write(offset, &value.to_le_bytes())
    }

    pub(super) fn write64(&mut self, offset: u64, value: u64) -> Effects {
        self.model.write(offset, &value.to_le_bytes())
    }

    pub(super) fn store(&self, at: Gpa, words: &[u64]) {
        for (at, word) in (at.0..).step_by(8).zip(words) {
            self.vm.memory().store_u64(Gpa(at), *word).unwrap();
        }
    }

    /// Puts descriptors into the queue, from entry `first` on.
    pub(super) fn fill(&self, first: u64, descriptors: &[[u64; 2]]) {
        for (entry, [low, high]) in (first..).zip(descriptors) {
            self.store(Gpa(QUEUE + 32 * entry), &[*low, *high, 0, 0]);
        }
    }

    /// Puts descriptors into the empty queue of 256-bit descriptors, from its head on.
    pub(super) fn submit(&mut self, descriptors: &[[u64; 2]]) -> Effects {
        let first = self.read64(0x88) / 32;
        self.fill(first, descriptors);
        self.write64(0x88, (first + descriptors.len() as u64) * 32)
    }

    pub(super) fn poll(&mut self) -> Polled {
        self.model.poll(DESCRIPTORS_PER_POLL)
    }

    /// Unmasks the events, with messages at 0xfee01000, 0xfee02000 and 0xfee03000.
    pub(super) fn unmask_events(&mut self) {
        for (control, data, address) in
            [(0x38, 0x41, 0xfee0_1000), (0xa0, 0x42, 0xfee0_2000), (0xe0, 0x43, 0xfee0_3000)]
        {
            let _ = self.write32(control + 4, data);
            let _ = self.write32(control + 8, address);
            assert_eq!(self.write32(control, 0), Effects::default());
        }
    }

    pub(super) fn inject(&self, fault: Fault) {
        self.vm.state().faults.push_back(fault);
    }
}

pub(super) const ERROR_MESSAGE: Message =
    Message { address: Gpa(0xfee0_1000), data: 0x41, requester: None };
/// About a fault of [`device`].
pub(super) const FAULT_MESSAGE: Message =
    Message { requester: Some(RequesterId::from_bits(0x80)), ..ERROR_MESSAGE };
pub(super) const COMPLETION_MESSAGE: Message =
    Message { address: Gpa(0xfee0_2000), data: 0x42, requester: None };

pub(super) fn device() -> RequesterId {
    RequesterId::new(0, 0x10, 0).unwrap()
}

/// A read with PASID 5 at an address that says which fault it is.
pub(super) fn fault(page: u64) -> Fault {
    Fault {
        requester: device(),
        pasid: Pasid::new(5),
        address: Iova(page << 12 | 0x123),
        access: Access::Read,
        privileged: false,
        translation_request: false,
        reason: FaultReason::PasidEntryNotPresent,
        stage_two: None,
    }
}

/// A wait that stores `data` to [`STATUS`].
pub(super) fn wait(data: u32) -> [u64; 2] {
    [0x25 | u64::from(data) << 32, STATUS.0]
}

/// A global IOTLB invalidation.
pub(super) const IOTLB_ALL: [u64; 2] = [0x12, 0];
