//! A host in software: it walks the guests' tables itself.

mod attached;
mod bindings;
mod control;
mod device_tlbs;
mod fault_log;
mod faults;
mod grants;
mod host_table;
mod objects;
mod page_requests;
mod pasids;
mod platform;
mod stage_two;
mod vm;

use alloc::sync::{Arc, Weak};
use alloc::vec::Vec;
use core::sync::atomic::{AtomicUsize, Ordering};

pub(crate) use attached::{Attachments, RID_PASID};
pub use bindings::{PasidEvent, PasidHold, PasidSubscriber, PasidSubscription};
pub use fault_log::FaultReader;
pub use faults::{FAULT_QUEUE_LIMIT, STAGE_TWO_LOG_LIMIT};
pub(crate) use grants::GrantCheck;
use ioasid::{Config, ConfigError, Executor, Priority, SubscribeError, Work};
pub use objects::{EVENT_QUEUE_LIMIT, MAX_OBJECTS};
use pasids::Clock;
pub(crate) use pasids::{HostPasids, Lease};
use platform::Platform;
pub use platform::MAX_DOMAINS;
use spin::mutex::SpinMutex;
pub use vm::SoftwareVm;
pub(crate) use vm::VmShared;

use crate::pasid::{BooksError, PasidAllocator, PasidReport};
use crate::{Hardware, Host, HostError, VmConfig};

/// VMs that one host takes at most.
pub const MAX_VMS: usize = 1024;
/// Devices that one VM takes at most.
pub const MAX_DEVICES: usize = 256;

/// A host that translates in software. Clones are the same host.
#[derive(Clone, Debug)]
pub struct SoftwareHost {
    /// Number of VMs that are not closed.
    vms: Arc<AtomicUsize>,
    /// VMs that are not gone, closed ones included.
    all: Arc<SpinMutex<Vec<Weak<VmShared>>>>,
    pasids: Arc<HostPasids>,
    platform: Arc<Platform>,
}

/// What a host is made with.
#[derive(Clone, Default)]
pub struct HostConfig {
    /// The PASID space: by default all PASIDs of the bus but zero.
    pub pasids: Config,
    /// Tells the time since any fixed moment, for ages in [`SoftwareHost::pasid_report`].
    pub clock: Option<Clock>,
    /// Where the work is run that PASIDs cause when they are given back: telling subscribers, and
    /// taking down what is attached of them. Without one, whoever polls a VM
    /// ([`Vm::is_complete`](crate::Vm::is_complete), for example) does it.
    pub executor: Option<Arc<dyn Executor>>,
    /// The IOMMU that the devices are behind.
    pub hardware: Hardware,
}

impl SoftwareHost {
    /// A host without VMs, with all the PASIDs of the bus but zero.
    ///
    /// # Panics
    ///
    /// If there is no memory for it.
    pub fn new() -> Self {
        Self::with_pasids(Config::default(), None).expect("memory for an empty ID space")
    }

    /// A host without VMs, with the PASID space that `config` describes: for hardware with fewer
    /// PASIDs than the bus. `clock` tells the time since any fixed moment, for the ages in
    /// [`pasid_report`](Self::pasid_report).
    ///
    /// # Errors
    ///
    /// If the space cannot be as `config` wants it.
    pub fn with_pasids(config: Config, clock: Option<Clock>) -> Result<Self, ConfigError> {
        Self::with_config(HostConfig { pasids: config, clock, ..HostConfig::default() })
    }

    /// A host without VMs.
    ///
    /// # Errors
    ///
    /// If the PASID space cannot be as `config` wants it.
    pub fn with_config(config: HostConfig) -> Result<Self, ConfigError> {
        let HostConfig { pasids, clock, executor, hardware } = config;
        let pasids = Arc::new(HostPasids::new(pasids, clock, executor)?);
        let platform = Arc::new(Platform::new(hardware));
        Ok(Self { vms: Arc::default(), all: Arc::default(), pasids, platform })
    }

    /// A host without VMs, with that IOMMU and all the PASIDs of the bus but zero.
    ///
    /// # Panics
    ///
    /// If there is no memory for it.
    pub fn with_hardware(hardware: Hardware) -> Self {
        let config = HostConfig { hardware, ..HostConfig::default() };
        Self::with_config(config).expect("memory for an empty ID space")
    }

    /// Tells `subscriber`, known as `name`, what happens from now on to the PASIDs of every VM.
    ///
    /// # Errors
    ///
    /// [`SubscribeError::NoMemory`], also if there are [`ioasid::MAX_HOLDERS`] names already.
    pub fn subscribe(
        &self,
        name: &str,
        priority: Priority,
        subscriber: Arc<dyn PasidSubscriber>,
    ) -> Result<PasidSubscription, SubscribeError> {
        let adapter = Arc::new(bindings::Adapter(subscriber));
        bindings::subscription(self.pasids.subscribe(name, priority, adapter))
    }

    /// Does up to `budget` pieces of the work that PASIDs cause when they are given back: for the
    /// executor of [`HostConfig::executor`]. Calls subscribers.
    pub fn work(&self, budget: usize) -> Work {
        self.pasids.work(budget)
    }

    /// Number of VMs that are not closed.
    pub fn vms(&self) -> usize {
        self.vms.load(Ordering::Acquire)
    }

    /// Bytes of the host's memory that are tables now: those of stage 2 and
    /// of PASIDs, of all VMs.
    pub fn table_bytes(&self) -> u64 {
        self.platform.tables.used()
    }

    /// The PASIDs of this host for its own kernel: those that are not promised to VMs.
    pub fn pasid_allocator(&self) -> PasidAllocator {
        PasidAllocator::bare_metal(self.pasids.clone())
    }

    /// Who has which PASIDs. Looks once more whether parked ones can be released.
    pub fn pasid_report(&self) -> PasidReport {
        self.pasids.poll();
        let all: Vec<_> = self.all.lock().iter().filter_map(Weak::upgrade).collect();
        all.iter().for_each(|vm| vm.release_parked());
        let parked = self.pasids.parked_ages();
        let vms = all.iter().filter_map(|vm| vm.pasid_report(&parked)).collect();
        // After the VMs: each may have released some.
        let ioasid::Usage { live, parked, capacity, unreserved } = self.pasids.usage();
        PasidReport { capacity, promised: capacity - unreserved, live, parked, vms }
    }

    /// Checks the books of the PASID space: every PASID is out, promised or free, and just one of
    /// these. To be asked while nobody allocates or frees.
    ///
    /// # Errors
    ///
    /// What does not add up.
    pub fn check_books(&self) -> Result<(), BooksError> {
        self.pasids.check()
    }
}

impl Default for SoftwareHost {
    fn default() -> Self {
        Self::new()
    }
}

impl Host for SoftwareHost {
    type Vm = SoftwareVm;

    fn create_vm(&self, config: VmConfig) -> Result<SoftwareVm, HostError> {
        self.pasids.poll();
        let one_more = |vms| (vms < MAX_VMS).then_some(vms + 1);
        self.vms
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, one_more)
            .map_err(|_| HostError::TooManyVms { limit: MAX_VMS })?;
        let place = Place(self.vms.clone());
        let vm = SoftwareVm::new(config, place, &self.pasids, &self.platform)?;
        let mut all = self.all.lock();
        all.retain(|vm| vm.strong_count() > 0);
        all.push(vm.downgrade());
        Ok(vm)
    }
}

impl core::fmt::Debug for HostConfig {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("HostConfig")
            .field("pasids", &self.pasids)
            .field("hardware", &self.hardware)
            .finish_non_exhaustive()
    }
}

/// A VM's place among those of its host; given back when dropped.
#[derive(Debug)]
struct Place(Arc<AtomicUsize>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

#[cfg(all(test, loom))]
mod loom_tests;
