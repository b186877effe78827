//! Where the requests of a device go: to the model of the IOMMU whose tables translate it, or to
//! the fault queue of what is attached.

use alloc::sync::Arc;
use alloc::vec::Vec;

use crate::endpoint::Device;
use crate::software::control::Control;
use crate::software::vm::VmShared;
use crate::{
    FaultQueueId, FaultReader, OutstandingGroup, PageRequest, PageResponses, Pasid,
    ResponseInjection, SoftwareVm,
};

/// Where a request goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::software) enum Destination {
    /// To the IOMMU model.
    Model,
    /// To the queue of what is attached in a place of the device.
    Queue {
        /// The queue.
        queue: FaultQueueId,
        /// The place.
        place: Option<Pasid>,
    },
    /// Nothing with a queue is attached for the PASID.
    Nowhere,
}

/// Where a group went.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Route {
    Model,
    Queue {
        queue: FaultQueueId,
        place: Option<Pasid>,
        /// Since it was taken.
        cookie: Option<u32>,
    },
}

impl SoftwareVm {
    /// Reads what happens to the requests of its devices from now on; of each device up to
    /// `per_device` records wait to be read.
    pub fn fault_reader(&self, per_device: usize) -> FaultReader {
        let grants = self.0.control.lock().grants.check();
        self.0.fault_log.reader(per_device, grants)
    }

    /// The page request groups that nobody has answered, the oldest first.
    pub fn outstanding_page_requests(&self) -> Vec<OutstandingGroup> {
        self.0.page_requests.outstanding()
    }

    /// From now on, this goes wrong with the guest's answers to page requests; `None`: nothing.
    pub fn inject_responses(&self, what: Option<ResponseInjection>) {
        self.0.page_requests.inject(what);
    }
}

impl VmShared {
    /// Takes a page request of a device.
    pub(crate) fn send_page_request(&self, device: &Device, request: PageRequest) {
        let Device { requester, attachment, .. } = *device;
        let first = {
            let control = self.control.lock();
            let to = match control.devices.get(&requester) {
                Some(present) if *present == attachment => self.destination(&control, &request),
                // The device's end stays until the device goes: it is told that nobody is there.
                _ if control.closed => Destination::Nowhere,
                _ => return,
            };
            let held = match to {
                Destination::Nowhere => Ok(None),
                _ => control.grants.hold_for_answer(&request),
            };
            // Under the VM's lock: what is attached cannot go in between.
            self.page_requests.receive(attachment, request, to, held)
        };
        if first {
            self.faults.wake();
        }
        self.fault_log.notify();
        self.page_requests.deliver(requester);
    }

    fn destination(&self, control: &Control, request: &PageRequest) -> Destination {
        if control.attached.adopted(request.requester).is_none() {
            return Destination::Model;
        }
        match self.fault_queue(control, request.requester, request.pasid) {
            Some((queue, place)) => Destination::Queue { queue, place },
            None => Destination::Nowhere,
        }
    }

    /// Sets who hears the answers to a device.
    pub(crate) fn set_page_responses(
        &self,
        device: &Device,
        responses: Option<Arc<dyn PageResponses>>,
    ) {
        let Device { requester, attachment, .. } = *device;
        let _old = {
            let control = self.control.lock();
            match control.devices.get(&requester) == Some(&attachment) {
                true => self.page_requests.set_sink(requester, attachment, responses),
                false => responses,
            }
        };
    }

    /// Tells the devices whose groups were answered because something ended. To be called with no
    /// lock held.
    pub(in crate::software) fn tell_withdrawn(&self) {
        self.fault_log.notify();
        self.page_requests.deliver_all();
    }

    /// The guest has answered.
    pub(in crate::software) fn answered(&self) {
        self.fault_log.notify();
        if self.page_requests.holds_back() {
            // Whoever ticks has to know when.
            self.faults.wake();
        }
    }

    /// Gives up what a device has asked.
    pub(crate) fn forget_page_requests(&self, device: &Device) {
        self.page_requests.forget(device.requester, device.attachment);
    }
}
