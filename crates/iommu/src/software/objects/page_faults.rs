//! The fault queues of what is attached.

use pci::RequesterId;

use super::devices::{Place, State};
use super::Hwpt;
use crate::software::control::Control;
use crate::software::vm::VmShared;
use crate::{FaultQueueId, GuestPasid, ObjectError, PageFault, Pasid, ResponseCode};

impl VmShared {
    /// The queue of what translates a device's requests with `pasid`, and in which place that is
    /// attached.
    pub(in crate::software) fn fault_queue(
        &self,
        control: &Control,
        device: RequesterId,
        pasid: Option<Pasid>,
    ) -> Option<(FaultQueueId, Option<Pasid>)> {
        let device = control.attached.get(device)?;
        let table = |place: &Place| {
            let programmed = matches!(place.state, State::Committing(_) | State::Open(_));
            control.objects.hwpt(place.hwpt).ok().filter(|_| programmed)
        };
        if let Some(place) = device.place(pasid.map(GuestPasid)) {
            return Some((table(place)?.fault?, pasid));
        }
        // A guest's table for all PASIDs of the device.
        let whole = device.place(None).and_then(table).filter(|table| Hwpt::is_whole(table));
        Some((whole?.fault?, None))
    }

    pub(in crate::software) fn take_page_fault(
        &self,
        queue: FaultQueueId,
    ) -> Result<Option<PageFault>, ObjectError> {
        self.control.lock().check_open()?;
        self.page_requests.take_fault(queue)
    }

    pub(in crate::software) fn respond_page_fault(
        &self,
        queue: FaultQueueId,
        cookie: u32,
        code: ResponseCode,
    ) -> Result<(), ObjectError> {
        self.control.lock().check_open()?;
        self.page_requests.respond_fault(queue, cookie, code)?;
        self.answered();
        Ok(())
    }
}
