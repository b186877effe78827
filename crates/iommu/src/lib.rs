//! The IOMMU core: hosts, VMs, device contexts, PASID tables, the translation engine,
//! invalidation and faults.
//!
//! ```text
//!   IOMMU model (vtd, …)                         endpoint (dsa, …)
//!        │ contexts, invalidations, faults            │ DMA (PASID, address, access)
//!        ▼                                            ▼
//!   trait Vm ◄──────── SoftwareVm ────────► Endpoint ─► Channel ─► InFlight ─► Window
//!        ▲                  │                             │
//!   trait Host         memory map               device TLB ─► context, PASID entries, IOTLB
//! ```
//!
//! A model posts invalidations and polls their tickets; a device's accesses never wait for it, nor
//! for another device. How a ticket comes to say that nothing old is in use any more is argued in
//! `docs/adr/0002-in-flight.md`. A device whose ATS is on looks into its own TLB first; only what names
//! the device empties that ([`Endpoint::set_ats`]).
//!
//! A device that misses a page may ask for it ([`Endpoint::send_page_request`]). What is not answered is
//! in a record of the host's, and each group gets one answer: from the guest through its IOMMU model
//! ([`Vm::take_page_request`]) or through the fault queue of what is attached
//! ([`Vm::take_page_fault`]), from the time-out ([`Vm::tick`]), or from the end of what it came
//! through. [`FaultReader`] shows all of that to whoever runs the VM.
//!
//! PASIDs come from one space for each host: [`pasid`] has who asks for them and how; a VM is granted
//! them by [`Vm::alloc_pasid`] within the quota of its [`VmConfig`].
//!
//! ```
//! use iommu::{AddressSpace, DmaError, Host, Invalidation, SoftwareHost, Vm, VmConfig};
//! use mem::{Gpa, Iova, MemoryMap};
//! use pci::RequesterId;
//!
//! let vm = SoftwareHost::new().create_vm(VmConfig::named("guest")).unwrap();
//! let ticket = vm.set_memory(MemoryMap::anonymous(&[(Gpa(0), 0x10000)]).unwrap());
//! assert!(vm.is_complete(ticket));
//!
//! // The device: no IOMMU model has set a context source, so nothing is translated.
//! let device = vm.attach(RequesterId::new(0, 16, 0).unwrap()).unwrap();
//! let channel = device.channel();
//! let no_pasid = AddressSpace { pasid: None, privileged: false };
//! channel.enter().write(no_pasid, Iova(0x2000), b"hello").unwrap();
//!
//! // An access in flight keeps an invalidation from completing.
//! let access = channel.enter();
//! let ticket = vm.invalidate(Invalidation::IotlbAll);
//! assert!(!vm.is_complete(ticket));
//! drop(access);
//! assert!(vm.is_complete(ticket));
//!
//! let ticket = vm.close();
//! assert!(vm.is_complete(ticket));
//! let mut bytes = [0; 5];
//! let result = channel.enter().read(no_pasid, Iova(0x2000), &mut bytes);
//! assert_eq!(result, Err(DmaError::Detached));
//! ```
#![no_std]

extern crate alloc;
#[cfg(feature = "std")]
extern crate std;

mod cache;
mod channel;
mod context;
mod counters;
mod dma;
mod endpoint;
mod engine;
mod fault;
pub mod format;
mod host;
mod in_flight;
mod injection;
mod invalidation;
pub mod nesting;
mod objects;
mod page_request;
pub mod pasid;
#[cfg(feature = "sabotage")]
pub mod sabotage;
#[cfg(not(feature = "sabotage"))]
mod sabotage;
mod slot;
mod software;
mod stage_two;
mod sync;

pub use context::{
    Asid, ContextFault, ContextSource, DefaultSubstream, DescriptorForm, DescriptorTable,
    DeviceContext, PasidTable, SmmuStageTwo, StageTwo, StreamContext, StreamTranslation, TableCaps,
    Vmid,
};
pub use dma::{AddressSpace, DmaError};
pub use endpoint::{Channel, Endpoint, ShareError, SHARED_VMS};
pub use engine::MAX_TABLE_ACCESSES;
pub use fault::{Fault, FaultEvent, FaultReason, FaultRecord, Stage, StageTwoFault, StageTwoOwner};
pub use host::{AttachError, Counters, Host, HostError, Vm, VmConfig};
pub use in_flight::{InFlight, IoSlice, UPDATE_ATTEMPTS, WINDOW_LIMIT};
pub use invalidation::{Invalidation, PageRange, SmmuInvalidation, Ticket};
pub use objects::{
    EventQueueId, FaultQueueId, Hardware, HwptFlags, HwptId, HwptParent, HwptRequest, InvalidField,
    IoasId, ObjectError, ObjectId, SmmuCaps, StageOneInvalidation, StageOneTable, VdeviceId,
    ViommuId, ViommuKind, VmEvent, VtdPasidTable, VtdStageOne, VtdStageOneFlags,
};
pub use page_request::{
    Answered, Answerer, OutstandingGroup, PageFault, PageRequest, PageRequestCounters,
    PageRequestInterface, PageRequestPolicy, PageRequestRefused, PageResponse, PageResponseError,
    PageResponses, PrgIndex, ResponseCode, ResponseInjection, TakenGroups, Unanswered, WantedPage,
    PAGE_REQUEST_LIMIT, PAGE_REQUEST_TIMEOUT,
};
pub use pasid::{
    AllocPasidError, DomainId, FreePasidError, GuestPasid, HostPasid, Numbering, Pasid, PasidRange,
    PasidUsage, DEFAULT_QUOTA,
};
pub use software::{
    FaultReader, HostConfig, PasidEvent, PasidHold, PasidSubscriber, PasidSubscription,
    SoftwareHost, SoftwareVm, EVENT_QUEUE_LIMIT, FAULT_QUEUE_LIMIT, MAX_DEVICES, MAX_DOMAINS,
    MAX_OBJECTS, MAX_VMS, STAGE_TWO_LOG_LIMIT,
};
pub use stage_two::{
    ArmFlags, ArmStageTwo, Granule, Layout, SecondStageLevels, StageTwoConfig, StageTwoError,
    StageTwoFormat, Vtcr,
};
