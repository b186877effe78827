//! Page requests of the devices of a container's groups, and their answers: what the older
//! generation did with them ([`DeviceFaults`]), with every answer given when no lock is held.

use alloc::boxed::Box;
use alloc::sync::{Arc, Weak};
use alloc::vec::Vec;

use iommu::nesting::{DeviceFault, DeviceFaults, GroupAnswer, GroupResponse, NotHandled};
use iommu::{FaultQueueId, Vm};
use pci::RequesterId;
use spin::mutex::SpinMutex;

use super::device::Open;
use crate::Refusal;

/// Page requests that are put into rings at a time; if more wait, the clients are rung once more.
pub(super) const REQUESTS_AT_A_TIME: usize = 4096;

/// The page requests of one VM's domains; nothing while it has had none, or on a host without.
#[derive(Debug)]
pub(super) struct PageFaults<V>(SpinMutex<Option<DeviceFaults<V>>>);

impl<V> Default for PageFaults<V> {
    fn default() -> Self {
        Self(SpinMutex::new(None))
    }
}

impl<V: Vm> PageFaults<V> {
    /// The queue for a domain's page requests, if the host has such a thing.
    pub(super) fn queue(&self, vm: &V) -> Option<FaultQueueId> {
        let mut faults = self.0.lock();
        if faults.is_none() {
            *faults = DeviceFaults::new(vm.clone()).ok();
        }
        faults.as_ref().map(DeviceFaults::queue)
    }

    /// Has the page requests of a device go into the ring of its files.
    pub(super) fn register(&self, open: &Arc<Open>) {
        let device = open.requester();
        let open = Arc::downgrade(open);
        let handler = move |fault: &DeviceFault| report(&open, fault);
        if let Some(faults) = &mut *self.0.lock() {
            // One without files was released. The VM has the device, since that is attached.
            let _ = faults.register_device_fault_handler(device, Box::new(handler));
        }
    }

    /// Ends that; gives the answers to what nobody answered.
    #[must_use = "the device waits for them"]
    pub(super) fn release(&self, device: RequesterId) -> Vec<GroupAnswer> {
        let mut faults = self.0.lock();
        let release = |faults: &mut DeviceFaults<V>| faults.release_for_answers(device);
        faults.as_mut().map(release).unwrap_or_default()
    }

    /// Puts what waits into the rings of its devices, and answers what is in none. Whether there
    /// may be more.
    pub(super) fn deliver(&self, vm: &V) -> bool {
        let mut answers = Vec::new();
        let polled = match &mut *self.0.lock() {
            Some(faults) => faults.poll_for_answers(REQUESTS_AT_A_TIME, &mut answers),
            None => return false,
        };
        give(vm, answers);
        polled == Ok(REQUESTS_AT_A_TIME)
    }

    /// Answers a group of a device.
    pub(super) fn respond(
        &self,
        vm: &V,
        device: RequesterId,
        response: &GroupResponse,
    ) -> Result<(), Refusal> {
        let answer = match &mut *self.0.lock() {
            Some(faults) => faults.take_pending(device, response)?,
            None => return Err(Refusal::NoPageRequest),
        };
        Ok(answer.give(vm)?)
    }

    /// Answers a group of whichever device has it, which the answer does not say.
    pub(super) fn respond_for(&self, vm: &V, response: &GroupResponse) -> Result<(), Refusal> {
        let answer = match &mut *self.0.lock() {
            Some(faults) => {
                let devices: Vec<_> = faults.pending_at(response).collect();
                match *devices {
                    [] => return Err(Refusal::NoPageRequest),
                    [device] => faults.take_pending(device, response)?,
                    // Maybe the wrong one would go on, or fail.
                    _ => return Err(Refusal::SeveralDevices { devices: devices.len() }),
                }
            }
            None => return Err(Refusal::NoPageRequest),
        };
        Ok(answer.give(vm)?)
    }
}

/// Gives answers; with no lock held, for devices hear them.
pub(super) fn give<V: Vm>(vm: &V, answers: Vec<GroupAnswer>) {
    for answer in answers {
        // The host may have answered it already.
        let _ = answer.give(vm);
    }
}

/// Puts a page request into the ring of its device's files.
fn report(open: &Weak<Open>, fault: &DeviceFault) -> Result<(), NotHandled> {
    match (open.upgrade(), fault) {
        // Nobody answers it: drivers keep it to themselves.
        (_, DeviceFault::PageRequest(request)) if request.is_stop_marker() => Ok(()),
        (Some(open), DeviceFault::PageRequest(request)) => open.report_page_request(request),
        (_, _) => Err(NotHandled),
    }
}
