//! Calls on the objects of a VM that is somewhere else.

use alloc::vec::Vec;

use iommu::{
    EventQueueId, FaultQueueId, GuestPasid, Hardware, HwptId, HwptParent, HwptRequest, IoasId,
    ObjectError, ObjectId, StageOneInvalidation, Ticket, VdeviceId, ViommuId, ViommuKind, VmEvent,
};
use pci::RequesterId;
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes};

use super::ClientVm;
use crate::objects::{encode_entry, encode_table, FailureCode, Info, INFO_BYTES, MAX_TABLE_BYTES};
use crate::spec::flags::*;
use crate::spec::{
    AttachPageTable, Destroy, DetachPageTable, FaultQueueAlloc, GetHwInfo, HwptAlloc,
    HwptInvalidate, IoasAlloc, ObjectFailure, ReadEvent, ReadPageFault, RespondPageFault,
    VdeviceAlloc, VeventqAlloc, ViommuAlloc, VtdInvalidateEntry,
};
use crate::{fault, Errno, File, Reply, Request, Revision};

/// Entries that go into one call; a longer list takes several.
const ENTRIES_PER_CALL: usize = 1024;

/// A structure that says why the call failed.
pub(super) trait Fallible {
    fn failure(&self) -> &ObjectFailure;
}

macro_rules! fallible {
    ($($name:ident)*) => {$(
        impl Fallible for $name {
            fn failure(&self) -> &ObjectFailure {
                &self.failure
            }
        }
    )*};
}

fallible!(AttachPageTable Destroy DetachPageTable FaultQueueAlloc GetHwInfo HwptAlloc
    HwptInvalidate IoasAlloc ReadEvent ReadPageFault RespondPageFault VdeviceAlloc VeventqAlloc
    ViommuAlloc);

/// What a failure is if the host end says no more than its number.
const fn nearest(errno: Errno) -> ObjectError {
    match errno {
        Errno::ENODEV => ObjectError::Closed,
        Errno::EBUSY => ObjectError::Busy,
        Errno::ENOMEM => ObjectError::NoMemory,
        Errno::EPERM => ObjectError::Refused,
        _ => ObjectError::NotSupported,
    }
}

pub(super) const fn size<A>() -> u32 {
    size_of::<A>() as u32
}

fn number(device: RequesterId) -> u32 {
    device.bits().into()
}

impl<F: File> ClientVm<F> {
    /// A call on an object.
    pub(super) fn object<A: Fallible + IntoBytes + FromBytes + Immutable>(
        &self,
        request: Request,
        argument: &mut A,
    ) -> Result<Reply, ObjectError> {
        self.call(request, argument, None).map_err(|errno| self.why(errno, argument))
    }

    /// A call on an object, with data after its structure. Gives the data as it is afterwards.
    fn object_with<A: Fallible + IntoBytes + FromBytes + Immutable>(
        &self,
        request: Request,
        argument: &mut A,
        data: &[u8],
    ) -> Result<Vec<u8>, ObjectError> {
        let mut bytes = Vec::with_capacity(size_of::<A>() + data.len());
        bytes.extend_from_slice(argument.as_bytes());
        bytes.extend_from_slice(data);
        let number = request.number(Revision::Own).ok_or(ObjectError::NotSupported)?;
        let result = self.file().ioctl(number, &mut bytes, None);
        let data = bytes.split_off(size_of::<A>());
        argument.as_mut_bytes().copy_from_slice(&bytes);
        match result {
            Ok(_) => Ok(data),
            Err(errno) => Err(self.why(errno, argument)),
        }
    }

    /// Why a call failed: exactly, if the host end says so.
    fn why(&self, errno: Errno, argument: &impl Fallible) -> ObjectError {
        ObjectError::from_wire(argument.failure()).unwrap_or_else(|| {
            self.count(errno);
            nearest(errno)
        })
    }

    pub(super) fn get_ioas(&self) -> Result<IoasId, ObjectError> {
        let mut request = IoasAlloc { size: size::<IoasAlloc>(), ..IoasAlloc::new_zeroed() };
        self.object(Request::IoasAlloc, &mut request)?;
        Ok(IoasId(request.out_ioas_id))
    }

    pub(super) fn get_hardware(&self, device: RequesterId) -> Result<Hardware, ObjectError> {
        let mut request = GetHwInfo {
            size: size::<GetHwInfo>(),
            dev_id: number(device),
            data_len: INFO_BYTES as u32,
            data_uptr: size_of::<GetHwInfo>() as u64,
            ..GetHwInfo::new_zeroed()
        };
        let data = self.object_with(Request::GetHwInfo, &mut request, &[0; INFO_BYTES])?;
        let info = Info::read(request.out_data_type, &data).and_then(Result::ok);
        Ok(info.ok_or(ObjectError::NotSupported)?.hardware())
    }

    pub(super) fn new_hwpt(&self, wanted: &HwptRequest) -> Result<HwptId, ObjectError> {
        let &HwptRequest { device, parent, flags, ref data, fault } = wanted;
        let (parent_kind, pt_id) = match parent {
            HwptParent::Ioas(IoasId(id)) => (PARENT_IOAS, id),
            HwptParent::Hwpt(HwptId(id)) => (PARENT_HWPT, id),
            HwptParent::Viommu(ViommuId(id)) => (PARENT_VIOMMU, id),
        };
        let mut buffer = [0; MAX_TABLE_BYTES];
        let table = data.as_ref().map(|table| encode_table(table, &mut buffer));
        let (data_type, data_len) = table.unwrap_or((HWPT_DATA_NONE, 0));
        let mut request = HwptAlloc {
            size: size::<HwptAlloc>(),
            flags: flags.bits(),
            dev_id: number(device),
            pt_id,
            data_type,
            data_len,
            data_uptr: if data_len == 0 { 0 } else { size_of::<HwptAlloc>() as u64 },
            fault_id: fault.map_or(0, |FaultQueueId(id)| id),
            parent_kind,
            fault_given: fault.is_some().into(),
            ..HwptAlloc::new_zeroed()
        };
        self.object_with(Request::HwptAlloc, &mut request, &buffer[..data_len as usize])?;
        Ok(HwptId(request.out_hwpt_id))
    }

    pub(super) fn new_viommu(
        &self,
        device: RequesterId,
        HwptId(hwpt_id): HwptId,
        kind: ViommuKind,
    ) -> Result<ViommuId, ObjectError> {
        let mut request = ViommuAlloc {
            size: size::<ViommuAlloc>(),
            kind: match kind {
                ViommuKind::Vtd => VIOMMU_VTD,
                ViommuKind::Smmuv3 => VIOMMU_ARM_SMMUV3,
            },
            dev_id: number(device),
            hwpt_id,
            ..ViommuAlloc::new_zeroed()
        };
        self.object(Request::ViommuAlloc, &mut request)?;
        Ok(ViommuId(request.out_viommu_id))
    }

    pub(super) fn new_vdevice(
        &self,
        ViommuId(viommu_id): ViommuId,
        device: RequesterId,
        virt_id: u64,
    ) -> Result<VdeviceId, ObjectError> {
        let mut request = VdeviceAlloc {
            size: size::<VdeviceAlloc>(),
            viommu_id,
            dev_id: number(device),
            virt_id,
            ..VdeviceAlloc::new_zeroed()
        };
        self.object(Request::VdeviceAlloc, &mut request)?;
        Ok(VdeviceId(request.out_vdevice_id))
    }

    pub(super) fn new_fault_queue(&self) -> Result<FaultQueueId, ObjectError> {
        let size = size::<FaultQueueAlloc>();
        let mut request = FaultQueueAlloc { size, ..FaultQueueAlloc::new_zeroed() };
        self.object(Request::FaultQueueAlloc, &mut request)?;
        Ok(FaultQueueId(request.out_fault_id))
    }

    pub(super) fn new_event_queue(
        &self,
        ViommuId(viommu_id): ViommuId,
        veventq_depth: u32,
    ) -> Result<EventQueueId, ObjectError> {
        let mut request = VeventqAlloc {
            size: size::<VeventqAlloc>(),
            viommu_id,
            kind: VEVENTQ_ANY,
            veventq_depth,
            ..VeventqAlloc::new_zeroed()
        };
        self.object(Request::VeventqAlloc, &mut request)?;
        Ok(EventQueueId(request.out_veventq_id))
    }

    pub(super) fn read_event(
        &self,
        EventQueueId(queue): EventQueueId,
    ) -> Result<Option<VmEvent>, ObjectError> {
        let argsz = size::<ReadEvent>();
        let mut request = ReadEvent { argsz, queue, ..ReadEvent::new_zeroed() };
        self.object(Request::ReadEvent, &mut request)?;
        if request.present == 0 {
            return Ok(None);
        }
        let ReadEvent { sequence, virtual_id, fault, .. } = request;
        match fault::decode(&fault) {
            Ok(Some(fault)) => Ok(Some(VmEvent { sequence, virtual_id, fault })),
            Ok(None) | Err(fault::UnknownFault) => {
                // The host end is not ours, or newer.
                self.count(Errno::EINVAL);
                Err(ObjectError::NotSupported)
            }
        }
    }

    pub(super) fn end_object(&self, ObjectId(id): ObjectId) -> Result<(), ObjectError> {
        let mut request = Destroy { size: size::<Destroy>(), id, ..Destroy::new_zeroed() };
        self.object(Request::Destroy, &mut request).map(drop)
    }

    /// Attaches with `flags`; gives the ticket, of which only a replacement has one.
    pub(super) fn attach_table(
        &self,
        device: RequesterId,
        pasid: Option<GuestPasid>,
        HwptId(pt_id): HwptId,
        flags: u32,
    ) -> Result<Ticket, ObjectError> {
        let mut request = AttachPageTable {
            argsz: size::<AttachPageTable>(),
            flags: flags | if pasid.is_some() { ATTACH_PASID } else { 0 },
            pt_id,
            pasid: pasid.map_or(0, |GuestPasid(pasid)| pasid.get()),
            dev_id: number(device),
            ..AttachPageTable::new_zeroed()
        };
        self.object(Request::AttachPageTable, &mut request)?;
        Ok(Ticket::new(request.ticket))
    }

    pub(super) fn detach_table(
        &self,
        device: RequesterId,
        pasid: Option<GuestPasid>,
    ) -> Result<Ticket, ObjectError> {
        let mut request = DetachPageTable {
            argsz: size::<DetachPageTable>(),
            flags: if pasid.is_some() { ATTACH_PASID } else { 0 },
            pasid: pasid.map_or(0, |GuestPasid(pasid)| pasid.get()),
            dev_id: number(device),
            ..DetachPageTable::new_zeroed()
        };
        self.object(Request::DetachPageTable, &mut request)?;
        Ok(Ticket::new(request.ticket))
    }

    pub(super) fn forget_of_table(
        &self,
        HwptId(id): HwptId,
        what: &[StageOneInvalidation],
    ) -> Result<Ticket, (usize, ObjectError)> {
        let entry_len = size_of::<VtdInvalidateEntry>();
        self.forget(id, INVALIDATE_VTD_S1, entry_len, what, |what, data| {
            data.extend_from_slice(encode_entry(what).as_bytes());
        })
    }

    pub(super) fn forget_by_commands(
        &self,
        ViommuId(id): ViommuId,
        commands: &[[u64; 2]],
    ) -> Result<Ticket, (usize, ObjectError)> {
        let entry_len = size_of::<[u64; 2]>();
        self.forget(id, INVALIDATE_VIOMMU_ARM_SMMUV3, entry_len, commands, |command, data| {
            data.extend_from_slice(command.map(u64::to_le).as_bytes());
        })
    }

    fn forget<T>(
        &self,
        hwpt_id: u32,
        data_type: u32,
        entry_len: usize,
        entries: &[T],
        encode: impl Fn(&T, &mut Vec<u8>),
    ) -> Result<Ticket, (usize, ObjectError)> {
        let (mut done, mut rest) = (0, entries);
        loop {
            let now;
            (now, rest) = rest.split_at(rest.len().min(ENTRIES_PER_CALL));
            let mut data = Vec::with_capacity(now.len() * entry_len);
            now.iter().for_each(|entry| encode(entry, &mut data));
            let mut request = HwptInvalidate {
                size: size::<HwptInvalidate>(),
                hwpt_id,
                data_uptr: size_of::<HwptInvalidate>() as u64,
                data_type,
                entry_len: entry_len as u32,
                entry_num: now.len() as u32,
                ..HwptInvalidate::new_zeroed()
            };
            if let Err(error) = self.object_with(Request::HwptInvalidate, &mut request, &data) {
                // A host end that was not reached has written nothing.
                let told = ObjectError::from_wire(&request.failure).is_some();
                let count = if told { request.entry_num as usize } else { 0 };
                return Err((done + count.min(now.len()), error));
            }
            if rest.is_empty() {
                return Ok(Ticket::new(request.ticket));
            }
            done += now.len();
        }
    }
}
