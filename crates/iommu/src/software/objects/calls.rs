//! The calls that make and end objects.

use pci::RequesterId;

use super::{check, Kind};
use crate::software::control::Control;
use crate::software::vm::VmShared;
use crate::{
    EventQueueId, FaultQueueId, Hardware, HwptId, HwptRequest, InvalidField, IoasId, ObjectError,
    ObjectId, StageOneTable, StageTwoFormat, VdeviceId, ViommuId, ViommuKind, VmEvent,
};

impl VmShared {
    pub(in crate::software) fn ioas(&self) -> Result<IoasId, ObjectError> {
        let control = self.control.lock();
        control.check_open()?;
        Ok(control.objects.ioas())
    }

    pub(in crate::software) fn hardware(
        &self,
        device: RequesterId,
    ) -> Result<Hardware, ObjectError> {
        self.control.lock().check_device(device)?;
        Ok(self.platform.hardware)
    }

    pub(in crate::software) fn alloc_hwpt(
        &self,
        request: &HwptRequest,
    ) -> Result<HwptId, ObjectError> {
        let mut control = self.control.lock();
        control.check_device(request.device)?;
        let hardware = &self.platform.hardware;
        check::request(request, hardware, self.stage_two_input_bits())?;
        let HwptRequest { flags, parent, data, fault, .. } = *request;
        if let (Some(StageOneTable::Smmuv3(words)), Hardware::Smmuv3(caps)) = (data, hardware) {
            self.check_stream(words, caps)?;
        }
        control.objects.alloc_hwpt(flags, (parent, hardware.viommu_kind()), data, fault)
    }

    pub(in crate::software) fn alloc_viommu(
        &self,
        device: RequesterId,
        parent: HwptId,
        kind: ViommuKind,
    ) -> Result<ViommuId, ObjectError> {
        let mut control = self.control.lock();
        control.check_device(device)?;
        if kind != self.platform.hardware.viommu_kind() {
            return Err(ObjectError::WrongModel);
        }
        control.objects.alloc_viommu(parent, kind)
    }

    pub(in crate::software) fn alloc_vdevice(
        &self,
        viommu: ViommuId,
        device: RequesterId,
        virtual_id: u64,
    ) -> Result<VdeviceId, ObjectError> {
        let mut control = self.control.lock();
        control.check_device(device)?;
        let made = control.objects.alloc_vdevice(viommu, device, virtual_id)?;
        self.events.set_routes(control.objects.routes());
        Ok(made)
    }

    pub(in crate::software) fn alloc_fault_queue(&self) -> Result<FaultQueueId, ObjectError> {
        let mut control = self.control.lock();
        control.check_open()?;
        let queue = control.objects.alloc_fault_queue()?;
        self.page_requests.add_queue(queue);
        Ok(queue)
    }

    pub(in crate::software) fn alloc_event_queue(
        &self,
        viommu: ViommuId,
        depth: u32,
    ) -> Result<EventQueueId, ObjectError> {
        let mut control = self.control.lock();
        control.check_open()?;
        if depth == 0 {
            return Err(ObjectError::Invalid(InvalidField::Range));
        }
        let queue = control.objects.alloc_event_queue(viommu)?;
        self.events.add(queue, depth);
        self.events.set_routes(control.objects.routes());
        Ok(queue)
    }

    pub(in crate::software) fn take_event(
        &self,
        queue: EventQueueId,
    ) -> Result<Option<VmEvent>, ObjectError> {
        self.control.lock().check_open()?;
        self.events.take(queue)
    }

    pub(in crate::software) fn destroy(&self, object: ObjectId) -> Result<(), ObjectError> {
        let mut control = self.control.lock();
        control.check_open()?;
        match control.objects.destroy(object)? {
            Kind::EventQueue(_) => {
                self.events.set_routes(control.objects.routes());
                self.events.remove(EventQueueId(object.0));
            }
            Kind::Vdevice(_) => self.events.set_routes(control.objects.routes()),
            Kind::FaultQueue => self.page_requests.remove_queue(FaultQueueId(object.0)),
            Kind::Hwpt(_) | Kind::Viommu(_) => {}
        }
        drop(control);
        self.tell_withdrawn();
        Ok(())
    }

    /// A device is gone: the guest has no number for it any more.
    pub(in crate::software) fn forget_vdevice(&self, control: &mut Control, device: RequesterId) {
        if control.objects.forget_device(device) {
            self.events.set_routes(control.objects.routes());
        }
    }

    /// How wide the addresses are that stage 2 translates.
    fn stage_two_input_bits(&self) -> u8 {
        match self.config.stage_two.map(|two| two.format) {
            Some(StageTwoFormat::Vtd { levels }) => return 12 + 9 * levels as u8,
            Some(StageTwoFormat::Arm(format)) => return format.sizes().input_bits,
            None => {}
        }
        match self.platform.hardware {
            Hardware::Vtd(caps) => caps.address_bits,
            Hardware::Smmuv3(caps) => caps.output_bits,
        }
    }
}

impl Control {
    /// Checks that the VM is not closed.
    pub(super) fn check_open(&self) -> Result<(), ObjectError> {
        match self.closed {
            true => Err(ObjectError::Closed),
            false => Ok(()),
        }
    }

    /// Checks that the VM has the device.
    pub(super) fn check_device(&self, device: RequesterId) -> Result<(), ObjectError> {
        self.check_open()?;
        match self.devices.contains_key(&device) {
            true => Ok(()),
            false => Err(ObjectError::NoDevice(device)),
        }
    }
}
