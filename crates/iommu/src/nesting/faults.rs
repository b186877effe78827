//! The fault reports of the older generation (`iommu_register_device_fault_handler`,
//! `iommu_report_device_fault`, `iommu_page_response`), over a fault queue of a VM.
//!
//! ```text
//!   device ─► host ─► fault queue ──poll──► report ──► handler of the device ─► VMM
//!   device ◄─ host ◄── cookie ◄────────── page_response ◄───────────────────── VMM
//! ```
//!
//! A group is answered once: by [`DeviceFaults::page_response`]; in its place by
//! [`DeviceFaults::poll`] if nobody handles it; or by the host, which is what `NotPending` says then.

use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::vec::Vec;

use pci::RequesterId;

use crate::{
    Fault, FaultQueueId, InvalidField, ObjectError, PageFault, PageRequest, Pasid, PrgIndex,
    ResponseCode, Vm,
};

/// What a device's handler is told (`struct iommu_fault`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DeviceFault {
    /// `IOMMU_FAULT_DMA_UNRECOV`.
    Unrecoverable(Fault),
    /// `IOMMU_FAULT_PAGE_REQ`. The last of a group is pending from before its handler is called
    /// until it is answered.
    PageRequest(PageRequest),
}

impl DeviceFault {
    /// The device.
    pub const fn device(&self) -> RequesterId {
        match self {
            Self::Unrecoverable(fault) => fault.requester,
            Self::PageRequest(request) => request.requester,
        }
    }
}

/// An answer to a group (`struct iommu_page_response`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct GroupResponse {
    /// `pasid`, if the flags say that it is valid. One that the request did not have is ignored.
    pub pasid: Option<Pasid>,
    /// `grpid`.
    pub group: PrgIndex,
    /// `code`.
    pub code: ResponseCode,
}

/// A handler did not take a fault.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("the handler did not take the fault")]
pub struct NotHandled;

/// Takes the faults of one device. Called by whoever calls [`DeviceFaults`].
pub type FaultHandler = Box<dyn FnMut(&DeviceFault) -> Result<(), NotHandled> + Send>;

/// Why a call on [`DeviceFaults`] failed; nothing has changed then, but for an answer that the
/// host did not take.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum DeviceFaultError {
    /// The VM has no such device (`-EINVAL`).
    #[error("the VM has no device {0}")]
    NoDevice(RequesterId),
    /// The device has a handler (`-EBUSY`).
    #[error("device {0} has a fault handler")]
    Registered(RequesterId),
    /// The device has none (`-EINVAL`).
    #[error("device {0} has no fault handler")]
    NoHandler(RequesterId),
    /// Groups of the device are not answered (`-EBUSY`).
    #[error("device {device} has {groups} unanswered page request groups")]
    Pending {
        /// The device.
        device: RequesterId,
        /// How many.
        groups: usize,
    },
    /// The device has no such group to be answered, or with another PASID, or the host has
    /// answered it in the meantime (`-EINVAL`).
    #[error("device {device} has no group {} to be answered", group.get())]
    NotPending {
        /// The device.
        device: RequesterId,
        /// The group.
        group: PrgIndex,
    },
    /// The handler did not take it (the handler's error).
    #[error(transparent)]
    NotHandled(#[from] NotHandled),
    /// The host refused (`-ENODEV` if it has no page requests).
    #[error(transparent)]
    Object(ObjectError),
}

/// An answer that the host is still to be given. Who keeps [`DeviceFaults`] behind a lock gives it
/// when that is released: the device hears it at once.
#[derive(PartialEq, Eq, Debug)]
#[must_use = "the device waits for it"]
pub struct GroupAnswer {
    queue: FaultQueueId,
    cookie: u32,
    code: ResponseCode,
    device: RequesterId,
    group: PrgIndex,
}

impl GroupAnswer {
    /// Gives it to the host.
    ///
    /// # Errors
    ///
    /// [`NotPending`](DeviceFaultError::NotPending) if the host has answered in the meantime;
    /// [`Object`](DeviceFaultError::Object).
    pub fn give<V: Vm>(self, vm: &V) -> Result<(), DeviceFaultError> {
        let Self { queue, cookie, code, device, group } = self;
        vm.respond_page_fault(queue, cookie, code).map_err(|error| match error {
            ObjectError::Invalid(InvalidField::Cookie) => {
                DeviceFaultError::NotPending { device, group }
            }
            error => DeviceFaultError::Object(error),
        })
    }
}

/// A group that a handler was told of.
#[derive(Clone, Copy, Debug)]
struct Pending {
    cookie: u32,
    /// The answer has to name it (`RESPONSE_NEEDS_PASID`).
    pasid: Option<Pasid>,
}

struct Handled {
    handler: FaultHandler,
    /// At most as many as a device has indices.
    pending: BTreeMap<PrgIndex, Pending>,
}

/// The fault handlers of the devices of one VM, and the queue that the page requests come from.
///
/// The page tables that name [`queue`](Self::queue) are those whose page requests it gets:
/// [`Domain::with_fault_queue`](super::Domain::with_fault_queue),
/// [`Bindings::with_fault_queue`](super::Bindings::with_fault_queue). Dropped, it leaves the queue
/// as it is: nobody answers then but the host, when what is attached goes.
pub struct DeviceFaults<V> {
    vm: V,
    queue: FaultQueueId,
    devices: BTreeMap<RequesterId, Handled>,
}

impl<V: Vm> DeviceFaults<V> {
    /// No handlers yet, and a queue of the VM's.
    ///
    /// # Errors
    ///
    /// What the host says.
    pub fn new(vm: V) -> Result<Self, ObjectError> {
        let queue = vm.alloc_fault_queue()?;
        Ok(Self { vm, queue, devices: BTreeMap::new() })
    }

    /// The queue that page requests come from.
    pub fn queue(&self) -> FaultQueueId {
        self.queue
    }

    /// Has `handler` take the faults of a device (`iommu_register_device_fault_handler`).
    ///
    /// # Errors
    ///
    /// [`NoDevice`](DeviceFaultError::NoDevice), [`Registered`](DeviceFaultError::Registered),
    /// [`Object`](DeviceFaultError::Object).
    pub fn register_device_fault_handler(
        &mut self,
        device: RequesterId,
        handler: FaultHandler,
    ) -> Result<(), DeviceFaultError> {
        self.vm.hardware(device).map_err(|error| match error {
            ObjectError::NoDevice(device) => DeviceFaultError::NoDevice(device),
            error => DeviceFaultError::Object(error),
        })?;
        if self.devices.contains_key(&device) {
            return Err(DeviceFaultError::Registered(device));
        }
        self.devices.insert(device, Handled { handler, pending: BTreeMap::new() });
        Ok(())
    }

    /// Ends that (`iommu_unregister_device_fault_handler`). A device without one is no error.
    ///
    /// # Errors
    ///
    /// [`Pending`](DeviceFaultError::Pending).
    pub fn unregister_device_fault_handler(
        &mut self,
        device: RequesterId,
    ) -> Result<(), DeviceFaultError> {
        let groups = self.pending(device);
        if groups > 0 {
            return Err(DeviceFaultError::Pending { device, groups });
        }
        self.devices.remove(&device);
        Ok(())
    }

    /// Groups of a device that its handler was told of and that are not answered.
    pub fn pending(&self, device: RequesterId) -> usize {
        self.devices.get(&device).map_or(0, |handled| handled.pending.len())
    }

    /// Tells a device's handler of an unrecoverable fault (`iommu_report_device_fault`).
    ///
    /// # Errors
    ///
    /// [`NoHandler`](DeviceFaultError::NoHandler), [`NotHandled`](DeviceFaultError::NotHandled).
    pub fn report_device_fault(&mut self, fault: &Fault) -> Result<(), DeviceFaultError> {
        let handled = self.devices.get_mut(&fault.requester);
        let handled = handled.ok_or(DeviceFaultError::NoHandler(fault.requester))?;
        Ok((handled.handler)(&DeviceFault::Unrecoverable(*fault))?)
    }

    /// Takes up to `budget` page requests from the queue and tells the handlers of them; gives how
    /// many there were. What nobody handles is answered with Invalid.
    ///
    /// # Errors
    ///
    /// [`Object`](DeviceFaultError::Object): the queue could not be read.
    pub fn poll(&mut self, budget: usize) -> Result<usize, DeviceFaultError> {
        let mut answers = Vec::new();
        let polled = self.poll_for_answers(budget, &mut answers);
        self.give_all(answers);
        polled
    }

    /// The same, with the answers for the caller to give.
    ///
    /// # Errors
    ///
    /// As [`poll`](Self::poll); there may be answers even so.
    pub fn poll_for_answers(
        &mut self,
        budget: usize,
        answers: &mut Vec<GroupAnswer>,
    ) -> Result<usize, DeviceFaultError> {
        for taken in 0..budget {
            let fault = self.vm.take_page_fault(self.queue).map_err(DeviceFaultError::Object)?;
            let Some(fault) = fault else { return Ok(taken) };
            let PageFault { cookie, request } = fault;
            if self.report(&fault).is_err() && request.wants_response() {
                let (device, group) = (request.requester, request.group);
                answers.push(self.answer(device, group, cookie, ResponseCode::Invalid));
            }
        }
        Ok(budget)
    }

    fn report(&mut self, fault: &PageFault) -> Result<(), DeviceFaultError> {
        let PageFault { cookie, request } = *fault;
        let device = request.requester;
        let handled = self.devices.get_mut(&device).ok_or(DeviceFaultError::NoHandler(device))?;
        if request.wants_response() {
            // A device asks again with an index that it has an answer to: if the index is pending
            // still, the host has answered for who should have.
            handled.pending.insert(request.group, Pending { cookie, pasid: request.pasid });
        }
        (handled.handler)(&DeviceFault::PageRequest(request)).inspect_err(|_| {
            if request.wants_response() {
                handled.pending.remove(&request.group);
            }
        })?;
        Ok(())
    }

    /// Answers a group (`iommu_page_response`). It is not pending any more, also if the host
    /// refuses.
    ///
    /// # Errors
    ///
    /// [`NoHandler`](DeviceFaultError::NoHandler), [`NotPending`](DeviceFaultError::NotPending),
    /// [`Object`](DeviceFaultError::Object).
    pub fn page_response(
        &mut self,
        device: RequesterId,
        response: &GroupResponse,
    ) -> Result<(), DeviceFaultError> {
        self.take_pending(device, response)?.give(&self.vm)
    }

    /// The same, with the answer for the caller to give: the group is not pending any more.
    ///
    /// # Errors
    ///
    /// [`NoHandler`](DeviceFaultError::NoHandler), [`NotPending`](DeviceFaultError::NotPending).
    pub fn take_pending(
        &mut self,
        device: RequesterId,
        response: &GroupResponse,
    ) -> Result<GroupAnswer, DeviceFaultError> {
        let &GroupResponse { pasid, group, code } = response;
        let handled = self.devices.get_mut(&device).ok_or(DeviceFaultError::NoHandler(device))?;
        let not_pending = DeviceFaultError::NotPending { device, group };
        let pending = *handled.pending.get(&group).ok_or(not_pending)?;
        if pending.pasid.is_some() && pending.pasid != pasid {
            return Err(not_pending);
        }
        handled.pending.remove(&group);
        Ok(self.answer(device, group, pending.cookie, code))
    }

    /// Devices that have such a group pending, of which an answer does not say the device.
    pub fn pending_at<'a>(
        &'a self,
        response: &'a GroupResponse,
    ) -> impl Iterator<Item = RequesterId> + 'a {
        self.devices.iter().filter_map(|(device, handled)| {
            let pending = handled.pending.get(&response.group)?;
            let is_it = pending.pasid.is_none() || pending.pasid == response.pasid;
            is_it.then_some(*device)
        })
    }

    fn answer(
        &self,
        device: RequesterId,
        group: PrgIndex,
        cookie: u32,
        code: ResponseCode,
    ) -> GroupAnswer {
        GroupAnswer { queue: self.queue, cookie, code, device, group }
    }

    fn give_all(&self, answers: Vec<GroupAnswer>) {
        for answer in answers {
            // The host may have answered it already.
            let _ = answer.give(&self.vm);
        }
    }

    /// Answers what is pending of a device with Invalid and ends its handler, as when it is taken
    /// from its user.
    pub fn release_device(&mut self, device: RequesterId) {
        let answers = self.release_for_answers(device);
        self.give_all(answers);
    }

    /// The same, with the answers for the caller to give.
    #[must_use = "the device waits for them"]
    pub fn release_for_answers(&mut self, device: RequesterId) -> Vec<GroupAnswer> {
        let Some(handled) = self.devices.remove(&device) else { return Vec::new() };
        let invalid = |(group, pending): (PrgIndex, Pending)| {
            self.answer(device, group, pending.cookie, ResponseCode::Invalid)
        };
        handled.pending.into_iter().map(invalid).collect()
    }

    /// Ends the handlers and the queue: what is pending is answered with Invalid. The page tables
    /// that name the queue must be gone.
    ///
    /// # Errors
    ///
    /// [`Object`](DeviceFaultError::Object) with [`ObjectError::Busy`] if one is not; the handlers
    /// are ended all the same.
    pub fn close(&mut self) -> Result<(), DeviceFaultError> {
        while let Some((&device, _)) = self.devices.first_key_value() {
            self.release_device(device);
        }
        self.vm.destroy(self.queue.into()).map_err(DeviceFaultError::Object)
    }
}

impl<V> core::fmt::Debug for DeviceFaults<V> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("DeviceFaults")
            .field("queue", &self.queue)
            .field("devices", &self.devices.keys())
            .finish_non_exhaustive()
    }
}
