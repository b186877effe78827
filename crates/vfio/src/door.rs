//! One type for both ways to a host, so that which one it is can be chosen when a program runs.

use alloc::sync::Arc;
use core::fmt;
use core::time::Duration;

use iommu::{
    AllocPasidError, AttachError, ContextSource, Counters, Endpoint, EventQueueId, Fault,
    FaultQueueId, FreePasidError, GuestPasid, Hardware, Host, HostError, HwptId, HwptRequest,
    Invalidation, IoasId, ObjectError, ObjectId, PageFault, PageRequest, PageRequestCounters,
    PageResponse, PageResponseError, PasidRange, PasidUsage, ResponseCode, StageOneInvalidation,
    Ticket, Unanswered, VdeviceId, ViommuId, ViommuKind, Vm, VmConfig, VmEvent,
};
use mem::MemoryMap;
use pci::RequesterId;

use crate::{Client, ClientVm, Container, Dispatcher, DispatcherCounts, Revision};

/// A host in this process, called directly or through encoded bytes.
pub enum Door<H: Host + 'static> {
    /// Every call is one of the host's.
    Direct(H),
    /// Every call is encoded, and carried out on the host by a [`Dispatcher`].
    Encoded(Client<Dispatcher<H>>),
}

/// A VM of a [`Door`].
pub enum DoorVm<H: Host + 'static> {
    /// Called directly.
    Direct(H::Vm),
    /// Called through encoded bytes.
    Encoded(ClientVm<Container<H>>),
}

impl<H: Host + 'static> Door<H> {
    /// `host`, called directly.
    pub fn direct(host: H) -> Self {
        Self::Direct(host)
    }

    /// `host`, called through encoded bytes.
    pub fn encoded(host: H) -> Self {
        Self::Encoded(Client::new(Dispatcher::new(host, Revision::Own)))
    }

    /// The host itself: for whoever runs it, to look at.
    pub fn host(&self) -> &H {
        match self {
            Self::Direct(host) => host,
            Self::Encoded(client) => client.transport().host(),
        }
    }

    /// What went through the bytes; `None` if nothing does.
    pub fn counts(&self) -> Option<DispatcherCounts> {
        match self {
            Self::Direct(_) => None,
            Self::Encoded(client) => Some(client.transport().counts()),
        }
    }
}

impl<H: Host + 'static> DoorVm<H> {
    /// The host's own handle of the VM, which no client has: for whoever runs the host, to look
    /// at. `None` only for a client of some other container.
    pub fn host_vm(&self) -> Option<H::Vm> {
        match self {
            Self::Direct(vm) => Some(vm.clone()),
            Self::Encoded(vm) => vm.file().host_vm(),
        }
    }
}

impl<H: Host + 'static> Host for Door<H> {
    type Vm = DoorVm<H>;

    fn create_vm(&self, config: VmConfig) -> Result<DoorVm<H>, HostError> {
        match self {
            Self::Direct(host) => host.create_vm(config).map(DoorVm::Direct),
            Self::Encoded(client) => client.create_vm(config).map(DoorVm::Encoded),
        }
    }
}

/// `$call` on whichever VM it is.
macro_rules! either {
    ($door:expr, $vm:ident => $call:expr) => {
        match $door {
            DoorVm::Direct($vm) => $call,
            DoorVm::Encoded($vm) => $call,
        }
    };
}

impl<H: Host + 'static> Vm for DoorVm<H> {
    fn memory(&self) -> Arc<MemoryMap> {
        either!(self, vm => vm.memory())
    }

    fn set_memory(&self, map: MemoryMap) -> Ticket {
        either!(self, vm => vm.set_memory(map))
    }

    fn set_contexts(&self, source: Option<Arc<dyn ContextSource>>) {
        either!(self, vm => vm.set_contexts(source));
    }

    fn invalidate(&self, what: Invalidation) -> Ticket {
        either!(self, vm => vm.invalidate(what))
    }

    fn in_flight(&self) -> Ticket {
        either!(self, vm => vm.in_flight())
    }

    fn is_complete(&self, ticket: Ticket) -> bool {
        either!(self, vm => vm.is_complete(ticket))
    }

    fn take_fault(&self) -> Option<Fault> {
        either!(self, vm => vm.take_fault())
    }

    fn set_fault_waker(&self, waker: Option<Arc<dyn Fn() + Send + Sync>>) {
        either!(self, vm => vm.set_fault_waker(waker));
    }

    fn attach(&self, requester: RequesterId) -> Result<Endpoint, AttachError> {
        either!(self, vm => vm.attach(requester))
    }

    fn alloc_pasid(&self, range: PasidRange) -> Result<GuestPasid, AllocPasidError> {
        either!(self, vm => vm.alloc_pasid(range))
    }

    fn free_pasid(&self, pasid: GuestPasid) -> Result<(), FreePasidError> {
        either!(self, vm => vm.free_pasid(pasid))
    }

    fn release_pasids(&self) -> Ticket {
        either!(self, vm => vm.release_pasids())
    }

    fn pasid_usage(&self) -> PasidUsage {
        either!(self, vm => vm.pasid_usage())
    }

    fn counters(&self) -> Counters {
        either!(self, vm => vm.counters())
    }

    fn ioas(&self) -> Result<IoasId, ObjectError> {
        either!(self, vm => vm.ioas())
    }

    fn hardware(&self, device: RequesterId) -> Result<Hardware, ObjectError> {
        either!(self, vm => vm.hardware(device))
    }

    fn alloc_hwpt(&self, request: &HwptRequest) -> Result<HwptId, ObjectError> {
        either!(self, vm => vm.alloc_hwpt(request))
    }

    fn alloc_viommu(
        &self,
        device: RequesterId,
        parent: HwptId,
        kind: ViommuKind,
    ) -> Result<ViommuId, ObjectError> {
        either!(self, vm => vm.alloc_viommu(device, parent, kind))
    }

    fn alloc_vdevice(
        &self,
        viommu: ViommuId,
        device: RequesterId,
        virtual_id: u64,
    ) -> Result<VdeviceId, ObjectError> {
        either!(self, vm => vm.alloc_vdevice(viommu, device, virtual_id))
    }

    fn alloc_fault_queue(&self) -> Result<FaultQueueId, ObjectError> {
        either!(self, vm => vm.alloc_fault_queue())
    }

    fn alloc_event_queue(&self, viommu: ViommuId, depth: u32) -> Result<EventQueueId, ObjectError> {
        either!(self, vm => vm.alloc_event_queue(viommu, depth))
    }

    fn take_event(&self, queue: EventQueueId) -> Result<Option<VmEvent>, ObjectError> {
        either!(self, vm => vm.take_event(queue))
    }

    fn take_page_request(&self) -> Option<PageRequest> {
        either!(self, vm => vm.take_page_request())
    }

    fn respond_page_request(&self, response: PageResponse) -> Result<(), PageResponseError> {
        either!(self, vm => vm.respond_page_request(response))
    }

    fn page_request_counters(&self) -> PageRequestCounters {
        either!(self, vm => vm.page_request_counters())
    }

    fn take_page_fault(&self, queue: FaultQueueId) -> Result<Option<PageFault>, ObjectError> {
        either!(self, vm => vm.take_page_fault(queue))
    }

    fn respond_page_fault(
        &self,
        queue: FaultQueueId,
        cookie: u32,
        code: ResponseCode,
    ) -> Result<(), ObjectError> {
        either!(self, vm => vm.respond_page_fault(queue, cookie, code))
    }

    fn unanswered(&self, ticket: Ticket) -> Option<Unanswered> {
        either!(self, vm => vm.unanswered(ticket))
    }

    fn give_up_answers(&self, up_to: Ticket) {
        either!(self, vm => vm.give_up_answers(up_to));
    }

    fn tick(&self, now: Duration) -> Option<Duration> {
        either!(self, vm => vm.tick(now))
    }

    fn destroy(&self, object: ObjectId) -> Result<(), ObjectError> {
        either!(self, vm => vm.destroy(object))
    }

    fn attach_hwpt(
        &self,
        device: RequesterId,
        pasid: Option<GuestPasid>,
        hwpt: HwptId,
    ) -> Result<(), ObjectError> {
        either!(self, vm => vm.attach_hwpt(device, pasid, hwpt))
    }

    fn replace_hwpt(
        &self,
        device: RequesterId,
        pasid: Option<GuestPasid>,
        hwpt: HwptId,
    ) -> Result<Ticket, ObjectError> {
        either!(self, vm => vm.replace_hwpt(device, pasid, hwpt))
    }

    fn detach_hwpt(
        &self,
        device: RequesterId,
        pasid: Option<GuestPasid>,
    ) -> Result<Ticket, ObjectError> {
        either!(self, vm => vm.detach_hwpt(device, pasid))
    }

    fn invalidate_hwpt(
        &self,
        hwpt: HwptId,
        what: &[StageOneInvalidation],
    ) -> Result<Ticket, (usize, ObjectError)> {
        either!(self, vm => vm.invalidate_hwpt(hwpt, what))
    }

    fn invalidate_viommu(
        &self,
        viommu: ViommuId,
        commands: &[[u64; 2]],
    ) -> Result<Ticket, (usize, ObjectError)> {
        either!(self, vm => vm.invalidate_viommu(viommu, commands))
    }

    fn close(&self) -> Ticket {
        either!(self, vm => vm.close())
    }
}

impl<H: Host + 'static> Clone for DoorVm<H> {
    fn clone(&self) -> Self {
        match self {
            Self::Direct(vm) => Self::Direct(vm.clone()),
            Self::Encoded(vm) => Self::Encoded(vm.clone()),
        }
    }
}

impl<H: Host + 'static> fmt::Debug for Door<H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Direct(_) => "Direct",
            Self::Encoded(_) => "Encoded",
        })
    }
}

impl<H: Host + 'static> fmt::Debug for DoorVm<H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Direct(_) => "Direct",
            Self::Encoded(_) => "Encoded",
        })
    }
}
