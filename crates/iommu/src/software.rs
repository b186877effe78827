//! A host in software: it walks the guests' tables itself.

mod faults;
mod pasids;
mod vm;

use alloc::sync::Arc;
use core::sync::atomic::{AtomicUsize, Ordering};

pub use faults::FAULT_QUEUE_LIMIT;
use ioasid::Space;
use pasids::HostPasids;
pub use vm::SoftwareVm;
pub(crate) use vm::VmShared;

use crate::{Host, HostError, VmConfig};

/// VMs that one host takes at most.
pub const MAX_VMS: usize = 1024;
/// Devices that one VM takes at most.
pub const MAX_DEVICES: usize = 256;

/// A host that translates in software. Clones are the same host.
#[derive(Clone, Debug)]
pub struct SoftwareHost {
    vms: Arc<AtomicUsize>,
    pasids: Arc<HostPasids>,
}

impl SoftwareHost {
    /// A host without VMs, with all PASIDs that the bus has but zero.
    ///
    /// # Panics
    ///
    /// If there is no memory for it.
    pub fn new() -> Self {
        Self::with_pasids(ioasid::Config::default()).expect("memory for an empty ID space")
    }

    /// A host without VMs, with the PASID space that `config` describes: for hardware with fewer
    /// PASIDs than the bus.
    pub fn with_pasids(config: ioasid::Config) -> Result<Self, ioasid::ConfigError> {
        let pasids = Arc::new(HostPasids::new(Space::new(config)?));
        Ok(Self { vms: Arc::default(), pasids })
    }

    /// Number of VMs that are not closed.
    pub fn vms(&self) -> usize {
        self.vms.load(Ordering::Acquire)
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
        let promise = self.pasids.promise(config.quota)?;
        Ok(SoftwareVm::new(config, place, promise))
    }
}

impl Default for SoftwareHost {
    fn default() -> Self {
        Self::new()
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

#[cfg(all(test, not(loom)))]
mod tests;
