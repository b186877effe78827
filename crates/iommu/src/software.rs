//! A host in software: it walks the guests' tables itself.

mod faults;
mod grants;
mod pasids;
mod stage_two;
mod vm;

use alloc::sync::{Arc, Weak};
use alloc::vec::Vec;
use core::sync::atomic::{AtomicUsize, Ordering};

pub use faults::{FAULT_QUEUE_LIMIT, STAGE_TWO_LOG_LIMIT};
pub(crate) use grants::GrantCheck;
use ioasid::{Config, ConfigError};
use pasids::Clock;
pub(crate) use pasids::{HostPasids, Lease};
use spin::mutex::SpinMutex;
pub use vm::SoftwareVm;
pub(crate) use vm::VmShared;

use crate::pasid::{BooksError, PasidAllocator, PasidReport};
use crate::stage_two::HostTables;
use crate::{Host, HostError, VmConfig};

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
    /// Tables in the host's memory, of all its VMs.
    tables: Arc<HostTables>,
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
        let pasids = Arc::new(HostPasids::new(config, clock)?);
        let tables = Arc::new(HostTables::new());
        Ok(Self { vms: Arc::default(), all: Arc::default(), pasids, tables })
    }

    /// Number of VMs that are not closed.
    pub fn vms(&self) -> usize {
        self.vms.load(Ordering::Acquire)
    }

    /// Bytes of the host's memory that are tables now: those of stage 2, of all VMs.
    pub fn table_bytes(&self) -> u64 {
        self.tables.used()
    }

    /// The PASIDs of this host for its own kernel: those that are not promised to VMs.
    pub fn pasid_allocator(&self) -> PasidAllocator {
        PasidAllocator::bare_metal(self.pasids.clone())
    }

    /// Who has which PASIDs. Looks once more whether parked ones can be released.
    pub fn pasid_report(&self) -> PasidReport {
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
        let one_more = |vms| (vms < MAX_VMS).then_some(vms + 1);
        self.vms
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, one_more)
            .map_err(|_| HostError::TooManyVms { limit: MAX_VMS })?;
        let place = Place(self.vms.clone());
        let vm = SoftwareVm::new(config, place, &self.pasids, &self.tables)?;
        let mut all = self.all.lock();
        all.retain(|vm| vm.strong_count() > 0);
        all.push(vm.downgrade());
        Ok(vm)
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
