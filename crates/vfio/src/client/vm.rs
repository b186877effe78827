//! A VM that is somewhere else.

use alloc::sync::Arc;
use core::fmt;
use core::time::Duration;

use iommu::{
    AllocPasidError, AttachError, ContextSource, Counters, Endpoint, EventQueueId, Fault,
    FaultQueueId, FreePasidError, GuestPasid, Hardware, HwptId, HwptRequest, Invalidation, IoasId,
    ObjectError, ObjectId, PageFault, PageRequest, PageRequestCounters, PageResponse,
    PageResponseError, Pasid, PasidRange, PasidUsage, ResponseCode, StageOneInvalidation, Ticket,
    Unanswered, VdeviceId, ViommuId, ViommuKind, Vm, VmEvent,
};
use mem::MemoryMap;
use pci::RequesterId;
use spin::mutex::SpinMutex;
use zerocopy::{FromBytes, FromZeros, IntoBytes};

use super::{call, memory};
use crate::spec::flags::*;
use crate::spec::{
    AttachDevice, Completion, CountersArgument, OwnPasidRequest, ReadFault, SetHandle, Ticketed,
};
use crate::{counters, fault, invalidation, Errno, File, Handle, Reply, Request};

/// A VM of a [`Client`](crate::Client). Clones are the same VM; when the last is dropped its
/// container is closed, and the VM with it, whatever endpoints there still are.
///
/// A call that fails where [`Vm`] has no error for it is counted ([`failures`](Self::failures)).
/// If something would stay reachable or cached that must not, the VM is closed: no DMA is better
/// than one that goes where it may not.
pub struct ClientVm<F: File>(Arc<Shared<F>>);

struct Shared<F> {
    file: F,
    /// Held while the map changes, so that changes come one after the other.
    changing: SpinMutex<()>,
    state: SpinMutex<State>,
}

#[derive(Default)]
struct State {
    /// The map that the host end has.
    memory: Arc<MemoryMap>,
    closed: bool,
    failures: Failures,
}

/// Calls that failed where nobody could be told.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Failures {
    /// How many.
    pub count: u64,
    /// Why the last one did.
    pub last: Option<Errno>,
}

/// Says of a ticket that it never completes: there is no host end to say that it did.
const NEVER: Ticket = Ticket::new(u64::MAX);

/// A range in which no PASID is ever available.
const NOTHING: PasidRange = PasidRange { first: Pasid::from_field(0), last: Pasid::from_field(0) };

impl<F: File> ClientVm<F> {
    pub(super) fn new(file: F) -> Self {
        Self(Arc::new(Shared { file, changing: SpinMutex::default(), state: SpinMutex::default() }))
    }

    /// The container behind it.
    pub fn file(&self) -> &F {
        &self.0.file
    }

    /// Calls that failed without an error of their own.
    pub fn failures(&self) -> Failures {
        self.0.state.lock().failures
    }

    pub(super) fn call<A: IntoBytes + FromBytes>(
        &self,
        request: Request,
        argument: &mut A,
        handle: Option<Handle>,
    ) -> Result<Reply, Errno> {
        call(&self.0.file, request, argument, handle)
    }

    pub(super) fn count(&self, errno: Errno) {
        let failures = &mut self.0.state.lock().failures;
        failures.count = failures.count.saturating_add(1);
        failures.last = Some(errno);
    }

    /// Closes the VM, since a call failed after which it cannot go on.
    fn fail(&self, errno: Errno) -> Ticket {
        self.count(errno);
        self.close()
    }

    /// The ticket that a request without flags gives.
    fn ticket_of(&self, request: Request) -> Ticket {
        let argsz = size_of::<Ticketed>() as u32;
        let mut argument = Ticketed { argsz, ..Ticketed::new_zeroed() };
        match self.call(request, &mut argument, None) {
            Ok(_) => Ticket::new(argument.ticket),
            Err(errno) => {
                self.count(errno);
                NEVER
            }
        }
    }

    fn set_handle(&self, request: Request, handle: Option<Handle>) -> Result<(), Errno> {
        let flags = if handle.is_some() { HANDLE_SET } else { HANDLE_UNSET };
        let mut argument = SetHandle { argsz: size_of::<SetHandle>() as u32, flags };
        self.call(request, &mut argument, handle).map(drop)
    }

    /// A `PASID_REQUEST`, of which the result is valid in either case.
    fn pasid_request(&self, flags: u32, range: PasidRange) -> (OwnPasidRequest, Result<(), Errno>) {
        let mut request = OwnPasidRequest {
            argsz: size_of::<OwnPasidRequest>() as u32,
            flags,
            min: range.first.get(),
            max: range.last.get(),
            ..OwnPasidRequest::new_zeroed()
        };
        let result = self.call(Request::PasidRequest, &mut request, None);
        (request, result.map(drop))
    }
}

impl<F: File> Vm for ClientVm<F> {
    fn memory(&self) -> Arc<MemoryMap> {
        self.0.state.lock().memory.clone()
    }

    fn set_memory(&self, map: MemoryMap) -> Ticket {
        let changing = self.0.changing.lock();
        let ticket = match memory::replace(&self.0.file, &self.memory(), &map) {
            Ok(ticket) => ticket,
            Err(errno) => {
                drop(changing);
                return self.fail(errno);
            }
        };
        let _old = {
            let mut state = self.0.state.lock();
            if state.closed {
                return ticket;
            }
            core::mem::replace(&mut state.memory, Arc::new(map))
        };
        ticket
    }

    fn set_contexts(&self, source: Option<Arc<dyn ContextSource>>) {
        if let Err(errno) = self.set_handle(Request::SetContexts, source.map(Handle::Contexts)) {
            // What the old tables allow must not stay allowed.
            let _ticket = self.fail(errno);
        }
    }

    fn invalidate(&self, what: Invalidation) -> Ticket {
        let mut request = invalidation::encode(what);
        match self.call(Request::CacheInvalidate, &mut request, None) {
            Ok(_) => Ticket::new(request.ticket),
            // Closing forgets everything.
            Err(errno) => self.fail(errno),
        }
    }

    fn in_flight(&self) -> Ticket {
        self.ticket_of(Request::InFlight)
    }

    fn is_complete(&self, ticket: Ticket) -> bool {
        let mut request = Completion {
            argsz: size_of::<Completion>() as u32,
            ticket: ticket.sequence(),
            ..Completion::new_zeroed()
        };
        match self.call(Request::Completion, &mut request, None) {
            Ok(_) => request.complete != 0,
            Err(errno) => {
                self.count(errno);
                false
            }
        }
    }

    fn take_fault(&self) -> Option<Fault> {
        let mut request =
            ReadFault { argsz: size_of::<ReadFault>() as u32, ..ReadFault::new_zeroed() };
        let read = self.call(Request::ReadFault, &mut request, None);
        match read.and_then(|_| fault::decode(&request).map_err(|_| Errno::EINVAL)) {
            Ok(fault) => fault,
            Err(errno) => {
                self.count(errno);
                None
            }
        }
    }

    fn set_fault_waker(&self, waker: Option<Arc<dyn Fn() + Send + Sync>>) {
        if let Err(errno) = self.set_handle(Request::SetFaultEvent, waker.map(Handle::Event)) {
            self.count(errno);
        }
    }

    fn attach(&self, requester: RequesterId) -> Result<Endpoint, AttachError> {
        let mut request = AttachDevice {
            argsz: size_of::<AttachDevice>() as u32,
            requester: requester.bits(),
            ..AttachDevice::new_zeroed()
        };
        match self.call(Request::AttachDevice, &mut request, None) {
            Ok(Reply { device: Some(device), .. }) => Ok(device),
            Err(Errno::EEXIST) => Err(AttachError::Duplicate(requester)),
            Err(Errno::ENOSPC) => {
                Err(AttachError::TooManyDevices { limit: request.limit as usize })
            }
            Ok(_) | Err(_) => Err(AttachError::Closed),
        }
    }

    fn alloc_pasid(&self, range: PasidRange) -> Result<GuestPasid, AllocPasidError> {
        // A range that holds nothing is not allowed there; zero is, and never handed out.
        let range = PasidRange::new(range.first, range.last).unwrap_or(NOTHING);
        match self.pasid_request(PASID_ALLOC, range) {
            (request, Ok(())) => match Pasid::new(request.pasid) {
                Some(pasid) => Ok(GuestPasid(pasid)),
                None => {
                    self.count(Errno::EINVAL);
                    Err(AllocPasidError::NoneAvailable)
                }
            },
            (request, Err(Errno::EDQUOT)) => {
                Err(AllocPasidError::QuotaExceeded { quota: request.quota })
            }
            (_, Err(Errno::ENOMEM)) => Err(AllocPasidError::NoMemory),
            (_, Err(Errno::ENOSPC)) => Err(AllocPasidError::NoneAvailable),
            (_, Err(_)) => Err(AllocPasidError::Closed),
        }
    }

    fn free_pasid(&self, pasid: GuestPasid) -> Result<(), FreePasidError> {
        let range = PasidRange { first: pasid.0, last: pasid.0 };
        match self.pasid_request(PASID_FREE, range).1 {
            Ok(()) => Ok(()),
            Err(Errno::ENOENT) => Err(FreePasidError::NotGranted(pasid)),
            Err(_) => Err(FreePasidError::Closed),
        }
    }

    fn release_pasids(&self) -> Ticket {
        match self.pasid_request(PASID_RELEASE, PasidRange::ALL) {
            (request, Ok(())) => Ticket::new(request.ticket),
            // Closing takes all of them back.
            (_, Err(errno)) => self.fail(errno),
        }
    }

    fn pasid_usage(&self) -> PasidUsage {
        let (OwnPasidRequest { quota, live, parked, .. }, result) =
            self.pasid_request(PASID_QUERY, PasidRange::ALL);
        if let Err(errno) = result {
            self.count(errno);
        }
        PasidUsage { quota, live, parked }
    }

    fn counters(&self) -> Counters {
        let argsz = size_of::<CountersArgument>() as u32;
        let mut request = CountersArgument { argsz, ..CountersArgument::new_zeroed() };
        if let Err(errno) = self.call(Request::GetCounters, &mut request, None) {
            self.count(errno);
        }
        counters::vm::from_wire(request.counts)
    }

    fn ioas(&self) -> Result<IoasId, ObjectError> {
        self.get_ioas()
    }

    fn hardware(&self, device: RequesterId) -> Result<Hardware, ObjectError> {
        self.get_hardware(device)
    }

    fn alloc_hwpt(&self, request: &HwptRequest) -> Result<HwptId, ObjectError> {
        self.new_hwpt(request)
    }

    fn alloc_viommu(
        &self,
        device: RequesterId,
        parent: HwptId,
        kind: ViommuKind,
    ) -> Result<ViommuId, ObjectError> {
        self.new_viommu(device, parent, kind)
    }

    fn alloc_vdevice(
        &self,
        viommu: ViommuId,
        device: RequesterId,
        virtual_id: u64,
    ) -> Result<VdeviceId, ObjectError> {
        self.new_vdevice(viommu, device, virtual_id)
    }

    fn alloc_fault_queue(&self) -> Result<FaultQueueId, ObjectError> {
        self.new_fault_queue()
    }

    fn alloc_event_queue(&self, viommu: ViommuId, depth: u32) -> Result<EventQueueId, ObjectError> {
        self.new_event_queue(viommu, depth)
    }

    fn take_event(&self, queue: EventQueueId) -> Result<Option<VmEvent>, ObjectError> {
        self.read_event(queue)
    }

    fn take_page_request(&self) -> Option<PageRequest> {
        self.read_page_request()
    }

    fn respond_page_request(&self, response: PageResponse) -> Result<(), PageResponseError> {
        self.answer_page_request(&response)
    }

    fn page_request_counters(&self) -> PageRequestCounters {
        self.read_page_request_counters()
    }

    fn take_page_fault(&self, queue: FaultQueueId) -> Result<Option<PageFault>, ObjectError> {
        self.read_page_fault(queue)
    }

    fn respond_page_fault(
        &self,
        queue: FaultQueueId,
        cookie: u32,
        code: ResponseCode,
    ) -> Result<(), ObjectError> {
        self.answer_page_fault(queue, cookie, code)
    }

    fn unanswered(&self, ticket: Ticket) -> Option<Unanswered> {
        self.who_is_unanswered(ticket)
    }

    fn give_up_answers(&self, up_to: Ticket) {
        self.wait_no_longer(up_to);
    }

    fn tick(&self, now: Duration) -> Option<Duration> {
        self.say_time(now)
    }

    fn destroy(&self, object: ObjectId) -> Result<(), ObjectError> {
        self.end_object(object)
    }

    fn attach_hwpt(
        &self,
        device: RequesterId,
        pasid: Option<GuestPasid>,
        hwpt: HwptId,
    ) -> Result<(), ObjectError> {
        self.attach_table(device, pasid, hwpt, 0).map(drop)
    }

    fn replace_hwpt(
        &self,
        device: RequesterId,
        pasid: Option<GuestPasid>,
        hwpt: HwptId,
    ) -> Result<Ticket, ObjectError> {
        self.attach_table(device, pasid, hwpt, ATTACH_REPLACE)
    }

    fn detach_hwpt(
        &self,
        device: RequesterId,
        pasid: Option<GuestPasid>,
    ) -> Result<Ticket, ObjectError> {
        self.detach_table(device, pasid)
    }

    fn invalidate_hwpt(
        &self,
        hwpt: HwptId,
        what: &[StageOneInvalidation],
    ) -> Result<Ticket, (usize, ObjectError)> {
        self.forget_of_table(hwpt, what)
    }

    fn invalidate_viommu(
        &self,
        viommu: ViommuId,
        commands: &[[u64; 2]],
    ) -> Result<Ticket, (usize, ObjectError)> {
        self.forget_by_commands(viommu, commands)
    }

    fn close(&self) -> Ticket {
        let ticket = self.ticket_of(Request::CloseVm);
        let _memory = {
            let mut state = self.0.state.lock();
            state.closed = true;
            core::mem::take(&mut state.memory)
        };
        ticket
    }
}

impl<F: File> Clone for ClientVm<F> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<F: File> fmt::Debug for ClientVm<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientVm").field("failures", &self.failures()).finish_non_exhaustive()
    }
}
