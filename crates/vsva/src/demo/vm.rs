//! A VM that tells what its model asks of it.

use std::sync::Arc;

use iommu::{
    AllocPasidError, AttachError, ContextSource, Counters, Endpoint, Fault, FreePasidError,
    GuestPasid, Invalidation, PasidRange, PasidUsage, SoftwareHost, SoftwareVm, Ticket, Vm,
};
use mem::MemoryMap;
use pci::RequesterId;

use super::trace::Trace;

/// A [`SoftwareVm`] between a model and the host.
#[derive(Clone)]
pub(super) struct TracedVm {
    pub(super) vm: SoftwareVm,
    pub(super) host: SoftwareHost,
    pub(super) trace: Trace,
}

impl TracedVm {
    /// What the host's books say about a PASID of this VM.
    fn in_the_books(&self, pasid: GuestPasid) -> String {
        let (name, report) = (self.vm.name(), self.host.pasid_report());
        let vm = report.vms.iter().find(|vm| vm.name == name);
        let entry = vm.and_then(|vm| vm.entries.iter().find(|entry| entry.guest == pasid));
        match (vm, entry) {
            (Some(vm), Some(entry)) => {
                let (live, quota) = (vm.usage.live, vm.usage.quota);
                format!("the set of {name}: host PASID {}, {live} of {quota} out", entry.host)
            }
            _ => format!("the set of {name} has no {pasid}"),
        }
    }
}

impl Vm for TracedVm {
    fn memory(&self) -> Arc<MemoryMap> {
        self.vm.memory()
    }

    fn set_memory(&self, map: MemoryMap) -> Ticket {
        self.vm.set_memory(map)
    }

    fn set_contexts(&self, source: Option<Arc<dyn ContextSource>>) {
        self.vm.set_contexts(source);
    }

    fn invalidate(&self, what: Invalidation) -> Ticket {
        self.vm.invalidate(what)
    }

    fn in_flight(&self) -> Ticket {
        self.vm.in_flight()
    }

    fn is_complete(&self, ticket: Ticket) -> bool {
        self.vm.is_complete(ticket)
    }

    fn take_fault(&self) -> Option<Fault> {
        self.vm.take_fault()
    }

    fn set_fault_waker(&self, waker: Option<Arc<dyn Fn() + Send + Sync>>) {
        self.vm.set_fault_waker(waker);
    }

    fn attach(&self, requester: RequesterId) -> Result<Endpoint, AttachError> {
        self.vm.attach(requester)
    }

    fn alloc_pasid(&self, range: PasidRange) -> Result<GuestPasid, AllocPasidError> {
        self.trace.hop("Vm", || format!("the model asks: alloc_pasid({range})"));
        let result = self.vm.alloc_pasid(range);
        self.trace.hop("ID space", || match result {
            Ok(pasid) => format!("granted: {}", self.in_the_books(pasid)),
            Err(error) => format!("no: {error}"),
        });
        result
    }

    fn free_pasid(&self, pasid: GuestPasid) -> Result<(), FreePasidError> {
        self.trace.hop("Vm", || format!("the model asks: free_pasid({pasid})"));
        self.trace.hop("ID space", || format!("before: {}", self.in_the_books(pasid)));
        let result = self.vm.free_pasid(pasid);
        self.trace.hop("ID space", || match result {
            Ok(()) => "taken back".to_owned(),
            Err(error) => format!("no: {error}"),
        });
        result
    }

    fn release_pasids(&self) -> Ticket {
        self.vm.release_pasids()
    }

    fn pasid_usage(&self) -> PasidUsage {
        self.vm.pasid_usage()
    }

    fn counters(&self) -> Counters {
        self.vm.counters()
    }

    fn close(&self) -> Ticket {
        self.vm.close()
    }
}
