//! The only thing a model calls: a host, and one VM handle from it for each VM.

use alloc::string::String;
use alloc::sync::Arc;
use core::time::Duration;

use mem::MemoryMap;
use pci::RequesterId;

use crate::{
    AllocPasidError, ContextSource, EventQueueId, Fault, FaultQueueId, FreePasidError, GuestPasid,
    Hardware, HwptId, HwptRequest, Invalidation, IoasId, Numbering, ObjectError, ObjectId,
    PageFault, PageRequest, PageRequestCounters, PageRequestPolicy, PageResponse,
    PageResponseError, PasidRange, PasidUsage, ResponseCode, StageOneInvalidation, StageTwoConfig,
    Ticket, Unanswered, VdeviceId, ViommuId, ViommuKind, VmEvent, DEFAULT_QUOTA,
};

/// What a VM is created with.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct VmConfig {
    /// A name for people.
    pub name: String,
    /// PASIDs that it may have out at a time. They are set aside when the VM is created and come
    /// back when it is closed and its last PASID is released. Zero: it is granted none.
    pub quota: u32,
    /// How its PASID numbers relate to the host's.
    pub numbering: Numbering,
    /// Whether requests with a PASID that was never granted to this VM are refused. For a guest
    /// that is told to ask for its PASIDs; one that numbers them itself has no grants.
    pub enforce_grants: bool,
    /// The host's stage 2 for it. Without, its guest physical addresses are not translated.
    pub stage_two: Option<StageTwoConfig>,
    /// What its devices may ask for, and how long its guest may take to answer.
    pub page_requests: PageRequestPolicy,
}

impl Default for VmConfig {
    fn default() -> Self {
        Self {
            name: String::new(),
            quota: DEFAULT_QUOTA,
            numbering: Numbering::default(),
            enforce_grants: false,
            stage_two: None,
            page_requests: PageRequestPolicy::default(),
        }
    }
}

impl VmConfig {
    /// The default configuration, with a name.
    pub fn named(name: impl Into<String>) -> Self {
        Self { name: name.into(), ..Self::default() }
    }
}

/// Why a host refuses.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum HostError {
    /// As many VMs exist as this host takes.
    #[error("the host has its limit of {limit} VMs")]
    TooManyVms {
        /// The limit.
        limit: usize,
    },
    /// The PASIDs that are not promised to other VMs are too few for the quota.
    #[error("a quota of {quota} PASIDs; {available} are not promised to other VMs")]
    QuotaUnavailable {
        /// What was asked for.
        quota: u32,
        /// What could be had.
        available: u32,
    },
    /// Memory cannot be mapped with that stage 2.
    #[error("the host cannot map memory with such a stage 2")]
    UnsupportedStageTwo,
    /// The host has no memory for another VM.
    #[error("the host has no memory for another VM")]
    NoMemory,
}

/// Why a device cannot be attached.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum AttachError {
    /// A device with this requester id is attached already.
    #[error("requester {0} is attached already")]
    Duplicate(RequesterId),
    /// As many devices are attached as a VM takes.
    #[error("the VM has its limit of {limit} devices")]
    TooManyDevices {
        /// The limit.
        limit: usize,
    },
    /// The VM is closed.
    #[error("the VM is closed")]
    Closed,
}

/// One host serves many VMs; the PASID space is host-wide.
pub trait Host: Send + Sync {
    /// Its handle of one VM.
    type Vm: Vm;

    /// Creates a VM: no memory, no devices, DMA passing through untranslated until a
    /// [`ContextSource`] is set.
    fn create_vm(&self, config: VmConfig) -> Result<Self::Vm, HostError>;
}

/// A VM as an IOMMU model and a machine see it: its memory, its devices, its faults.
///
/// A cheap handle: clones name the same VM.
///
/// A host without the objects of nested translation ([`alloc_hwpt`](Self::alloc_hwpt) and what goes
/// with it) leaves those methods as they are: each answers [`ObjectError::NotSupported`].
pub trait Vm: Clone + Send + Sync + 'static {
    /// The present memory map.
    fn memory(&self) -> Arc<MemoryMap>;

    /// Replaces the memory map; what was reachable only through the old one is unreachable for
    /// every access that begins after the ticket is complete.
    fn set_memory(&self, map: MemoryMap) -> Ticket;

    /// Sets where device contexts come from; `None` is translation off (requests without PASID
    /// pass through, requests with PASID are refused). The caller invalidates what it must: this
    /// alone does not touch cached contexts.
    fn set_contexts(&self, source: Option<Arc<dyn ContextSource>>);

    /// Forgets cached state; returns at once.
    fn invalidate(&self, what: Invalidation) -> Ticket;

    /// A point after all accesses that are in flight now, and after nothing else: it forgets nothing
    /// and waits for no device's answer to an invalidation. For whoever has stopped a device and
    /// wants to know when what it had begun is over.
    fn in_flight(&self) -> Ticket;

    /// Whether everything up to `ticket` is over, accesses in flight included. Never blocks; may
    /// do a bounded part of the work. A ticket that this VM has not given is not complete.
    fn is_complete(&self, ticket: Ticket) -> bool;

    /// Takes the oldest fault that is not taken yet.
    fn take_fault(&self) -> Option<Fault>;

    /// Sets what is called when a fault arrives while none waits: from a DMA path, so it must
    /// neither block nor call back. Not called for faults that wait already: take those once
    /// after setting it, and always until there is none.
    fn set_fault_waker(&self, waker: Option<Arc<dyn Fn() + Send + Sync>>);

    /// Attaches a device: from here on it may do DMA.
    fn attach(&self, requester: RequesterId) -> Result<crate::Endpoint, AttachError>;

    /// Grants this VM a PASID in `range`, which is in guest numbers, whichever the numbering.
    fn alloc_pasid(&self, range: PasidRange) -> Result<GuestPasid, AllocPasidError>;

    /// Takes back one that was granted to this VM; anything else is an error and changes nothing.
    /// Returns at once: what is cached for it is forgotten and its DMA in flight waited for
    /// before the number is granted again. Until then it is parked and counts against the quota. So it
    /// is until devices have heard the answers to their page requests
    /// ([`TakenGroups`](crate::TakenGroups)).
    fn free_pasid(&self, pasid: GuestPasid) -> Result<(), FreePasidError>;

    /// Takes back every PASID that this VM was granted, as its reset does. Once the ticket is
    /// complete none of them is parked any more.
    fn release_pasids(&self) -> Ticket;

    /// Quota, live and parked PASIDs, now.
    fn pasid_usage(&self) -> PasidUsage;

    /// Counts since creation, and how much is cached now.
    fn counters(&self) -> Counters;

    /// The VM's one I/O address space: its memory map.
    fn ioas(&self) -> Result<IoasId, ObjectError> {
        Err(ObjectError::NotSupported)
    }

    /// The IOMMU that a device is behind.
    fn hardware(&self, device: RequesterId) -> Result<Hardware, ObjectError> {
        let _ = device;
        Err(ObjectError::NotSupported)
    }

    /// Makes a page table, paging or nested.
    fn alloc_hwpt(&self, request: &HwptRequest) -> Result<HwptId, ObjectError> {
        let _ = request;
        Err(ObjectError::NotSupported)
    }

    /// Makes a vIOMMU of the IOMMU that `device` is behind, over the nesting parent `parent`.
    fn alloc_viommu(
        &self,
        device: RequesterId,
        parent: HwptId,
        kind: ViommuKind,
    ) -> Result<ViommuId, ObjectError> {
        let _ = (device, parent, kind);
        Err(ObjectError::NotSupported)
    }

    /// Tells by which number the guest knows a device.
    fn alloc_vdevice(
        &self,
        viommu: ViommuId,
        device: RequesterId,
        virtual_id: u64,
    ) -> Result<VdeviceId, ObjectError> {
        let _ = (viommu, device, virtual_id);
        Err(ObjectError::NotSupported)
    }

    /// Makes a queue for page requests.
    fn alloc_fault_queue(&self) -> Result<FaultQueueId, ObjectError> {
        Err(ObjectError::NotSupported)
    }

    /// Makes a queue for the unrecoverable faults of a vIOMMU's devices, of `depth` events.
    fn alloc_event_queue(&self, viommu: ViommuId, depth: u32) -> Result<EventQueueId, ObjectError> {
        let _ = (viommu, depth);
        Err(ObjectError::NotSupported)
    }

    /// Takes the oldest event.
    fn take_event(&self, queue: EventQueueId) -> Result<Option<VmEvent>, ObjectError> {
        let _ = queue;
        Err(ObjectError::NotSupported)
    }

    /// Takes the oldest page request of a device that is translated by the guest's own tables. The
    /// fault waker is called when one arrives while none waits.
    fn take_page_request(&self) -> Option<PageRequest> {
        None
    }

    /// Answers a page request group, once: in the guest's name, so with its PASID.
    fn respond_page_request(&self, response: PageResponse) -> Result<(), PageResponseError> {
        let _ = response;
        Err(PageResponseError::NotSupported)
    }

    /// Counts of page requests since creation.
    fn page_request_counters(&self) -> PageRequestCounters {
        PageRequestCounters::default()
    }

    /// Takes the oldest request of a queue: of what is attached by the tables that name it.
    fn take_page_fault(&self, queue: FaultQueueId) -> Result<Option<PageFault>, ObjectError> {
        let _ = queue;
        Err(ObjectError::NotSupported)
    }

    /// Answers the group that `cookie` names, once.
    ///
    /// # Errors
    ///
    /// [`ObjectError::Invalid`] with [`InvalidField::Cookie`](crate::InvalidField::Cookie) if no
    /// unanswered group of the queue has it.
    fn respond_page_fault(
        &self,
        queue: FaultQueueId,
        cookie: u32,
        code: ResponseCode,
    ) -> Result<(), ObjectError> {
        let _ = (queue, cookie, code);
        Err(ObjectError::NotSupported)
    }

    /// The device whose answer to an invalidation of its device TLB keeps `ticket` from being
    /// complete, if one does.
    fn unanswered(&self, ticket: Ticket) -> Option<Unanswered> {
        let _ = ticket;
        None
    }

    /// Waits no longer for devices' answers to what they were told to forget up to and with
    /// `up_to`: such an answer keeps no ticket from being complete any more. What devices are told
    /// after that is owed as ever. A number beyond the latest ticket means all up to now.
    ///
    /// For the model that reports an invalidation time-out (VT-d 6.5.2.11; SMMUv3: a sync that fails
    /// because of the ATC). It concerns all devices and not only the one that the report names:
    /// each was told before the wait began, so each has run out of time, and the guest has been told
    /// to count on nothing of before. A host need not tell apart what one device was told after
    /// `up_to`: it may owe from the next ticket on.
    ///
    /// A host that has [`unanswered`](Self::unanswered) has this, too.
    fn give_up_answers(&self, up_to: Ticket) {
        let _ = up_to;
    }

    /// Says what time it is, on a clock that only goes forward: what waits for something longer than
    /// it may is ended. Gives when to call again at the latest.
    fn tick(&self, now: Duration) -> Option<Duration> {
        let _ = now;
        None
    }

    /// Ends an object that nothing uses any more.
    fn destroy(&self, object: ObjectId) -> Result<(), ObjectError> {
        let _ = object;
        Err(ObjectError::NotSupported)
    }

    /// Has the requests of a device translated by `hwpt`: those with `pasid`, or those without
    /// any. From the first attachment on, the device is translated by what is attached and by
    /// nothing else; what has nothing attached is blocked.
    fn attach_hwpt(
        &self,
        device: RequesterId,
        pasid: Option<GuestPasid>,
        hwpt: HwptId,
    ) -> Result<(), ObjectError> {
        let _ = (device, pasid, hwpt);
        Err(ObjectError::NotSupported)
    }

    /// The same where something is attached; if it fails, that stays. Nothing of the old is in use
    /// once the ticket is complete.
    ///
    /// Whether requests are refused in between is the host's matter. The software host refuses
    /// none: each finds the old table or the new one.
    fn replace_hwpt(
        &self,
        device: RequesterId,
        pasid: Option<GuestPasid>,
        hwpt: HwptId,
    ) -> Result<Ticket, ObjectError> {
        let _ = (device, pasid, hwpt);
        Err(ObjectError::NotSupported)
    }

    /// Blocks those requests. Nothing of what was attached is in use once the ticket is complete.
    ///
    /// Page requests that came through it and that nobody has taken are answered with Invalid; those that
    /// were taken are as [`TakenGroups`](crate::TakenGroups) says. So it is when it is replaced, too.
    fn detach_hwpt(
        &self,
        device: RequesterId,
        pasid: Option<GuestPasid>,
    ) -> Result<Ticket, ObjectError> {
        let _ = (device, pasid);
        Err(ObjectError::NotSupported)
    }

    /// Forgets what was made of a nested table (`IOMMU_HWPT_INVALIDATE`), device TLBs included.
    /// With the error comes how many of the entries were carried out.
    fn invalidate_hwpt(
        &self,
        hwpt: HwptId,
        what: &[StageOneInvalidation],
    ) -> Result<Ticket, (usize, ObjectError)> {
        let _ = (hwpt, what);
        Err((0, ObjectError::NotSupported))
    }

    /// Carries out a guest's SMMUv3 commands with its identifiers rewritten to the host's. With the
    /// error comes how many were carried out.
    fn invalidate_viommu(
        &self,
        viommu: ViommuId,
        commands: &[[u64; 2]],
    ) -> Result<Ticket, (usize, ObjectError)> {
        let _ = (viommu, commands);
        Err((0, ObjectError::NotSupported))
    }

    /// Ends the VM: every device is detached, memory is dropped, accesses get
    /// [`crate::DmaError::Detached`], every PASID is taken back. Idempotent. Complete when the
    /// ticket is: no PASID is parked any more then, and the quota is the host's again.
    fn close(&self) -> Ticket;
}

/// Counts of one VM.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Counters {
    /// Windows asked for.
    pub translations: u64,
    /// … answered from an IOTLB.
    pub iotlb_hits: u64,
    /// … not in an IOTLB.
    pub iotlb_misses: u64,
    /// … answered from a device's own TLB.
    pub device_tlb_hits: u64,
    /// … of devices with a TLB, not there.
    pub device_tlb_misses: u64,
    /// Page-table walks.
    pub walks: u64,
    /// PASID-table entries read.
    pub pasid_entry_reads: u64,
    /// Device contexts looked up in the model's tables.
    pub context_lookups: u64,
    /// Requests refused because their PASID was not granted (see [`VmConfig::enforce_grants`]).
    pub ungranted: u64,
    /// Walks of the host's stage 2, for tables and for data.
    pub stage_two_walks: u64,
    /// Requests refused because the host's stage 2 did not let them through, recorded or not.
    pub stage_two_faults: u64,
    /// Invalidations asked for.
    pub invalidations: u64,
    /// … of a device's own TLB.
    pub device_tlb_invalidations: u64,
    /// Words that a walk did not find because that was asked for
    /// ([`SoftwareVm::inject_walk_failure`](crate::SoftwareVm::inject_walk_failure)).
    pub injected_walk_failures: u64,
    /// Faults recorded.
    pub faults: u64,
    /// Faults lost because nobody took earlier ones.
    pub faults_lost: u64,
    /// Translations cached now.
    pub iotlb_entries: u64,
    /// PASID-table entries cached now.
    pub pasid_entries: u64,
    /// Translations in devices' own TLBs now.
    pub device_tlb_entries: u64,
    /// Devices attached now.
    pub devices: u64,
}
