//! The only thing a model calls: a host, and one VM handle from it for each VM.

use alloc::sync::Arc;

use mem::MemoryMap;
use pci::RequesterId;

use crate::{ContextSource, Fault, Invalidation, Ticket};

/// What a VM is created with.
#[derive(Clone, Debug)]
pub struct VmConfig {
    /// A name for people.
    pub name: alloc::string::String,
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

    /// Whether everything up to `ticket` is over, accesses in flight included. Never blocks; may
    /// do a bounded part of the work.
    fn is_complete(&self, ticket: Ticket) -> bool;

    /// Takes the oldest fault that is not taken yet.
    fn take_fault(&self) -> Option<Fault>;

    /// Sets what is called when a fault arrives while none waits: from a DMA path, so it must
    /// neither block nor call back. Not called for faults that wait already: take those once
    /// after setting it, and always until there is none.
    fn set_fault_waker(&self, waker: Option<Arc<dyn Fn() + Send + Sync>>);

    /// Attaches a device: from here on it may do DMA.
    fn attach(&self, requester: RequesterId) -> Result<crate::Endpoint, AttachError>;

    /// Counts since creation, and how much is cached now.
    fn counters(&self) -> Counters;

    /// Ends the VM: every device is detached, memory is dropped, accesses get
    /// [`crate::DmaError::Detached`]. Idempotent. Complete when the ticket is.
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
    /// Page-table walks.
    pub walks: u64,
    /// PASID-table entries read.
    pub pasid_entry_reads: u64,
    /// Device contexts looked up in the model's tables.
    pub context_lookups: u64,
    /// Invalidations asked for.
    pub invalidations: u64,
    /// Faults recorded.
    pub faults: u64,
    /// Faults lost because nobody took earlier ones.
    pub faults_lost: u64,
    /// Translations cached now.
    pub iotlb_entries: u64,
    /// PASID-table entries cached now.
    pub pasid_entries: u64,
    /// Devices attached now.
    pub devices: u64,
}
