//! A host in software: it walks the guests' tables itself.

mod faults;
mod vm;

use alloc::sync::Arc;
use core::sync::atomic::{AtomicUsize, Ordering};

pub use faults::FAULT_QUEUE_LIMIT;
pub use vm::SoftwareVm;
pub(crate) use vm::VmShared;

use crate::{Host, HostError, VmConfig};

/// VMs that one host takes at most.
pub const MAX_VMS: usize = 1024;
/// Devices that one VM takes at most.
pub const MAX_DEVICES: usize = 256;

/// A host that translates in software. Clones are the same host.
#[derive(Clone, Debug, Default)]
pub struct SoftwareHost {
    vms: Arc<AtomicUsize>,
}

impl SoftwareHost {
    /// A host without VMs.
    pub fn new() -> Self {
        Self::default()
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
        Ok(SoftwareVm::new(config, Place(self.vms.clone())))
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
