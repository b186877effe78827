//! The calls on a VM's objects, by iommufd's structures and rules.

use alloc::collections::BTreeMap;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::mem::offset_of;

use iommu::{
    EventQueueId, FaultQueueId, GuestPasid, HwptFlags, HwptId, HwptParent, HwptRequest, IoasId,
    ObjectError, ObjectId, Pasid, StageOneTable, Ticket, ViommuId, ViommuKind, Vm,
};
use pci::RequesterId;
use spin::mutex::SpinMutex;

use super::fault_file::QueueFile;
use crate::argument::{copy_in, copy_out, pointed_at, Argument};
use crate::objects::{decode_table, Entry, FailureCode, Info};
use crate::spec::flags::*;
use crate::spec::{
    AttachPageTable, Destroy, DetachPageTable, FaultQueueAlloc, GetHwInfo, HwptAlloc,
    HwptInvalidate, IoasAlloc, ObjectFailure, ReadEvent, ReadPageFault, RespondPageFault,
    VdeviceAlloc, VeventqAlloc, ViommuAlloc,
};
use crate::{fault, ArgumentError, FaultFile, Refusal, Reply, Request};

/// Entries that one `IOMMU_HWPT_INVALIDATE` has at most, as iommufd allows.
pub const MAX_INVALIDATE_ENTRIES: u32 = 1 << 19;
/// Bytes of one entry at most: a page, as iommufd allows.
const MAX_ENTRY_BYTES: u32 = 4096;
/// Entries that are decoded at a time, so that a call holds no more.
const ENTRIES_AT_A_TIME: usize = 256;
/// There are no descriptors.
const NO_DESCRIPTOR: u32 = u32::MAX;

/// A structure that has a place for why the call failed.
pub(super) trait Fallible: Argument {
    fn set_failure(&mut self, failure: ObjectFailure);
}

macro_rules! fallible {
    ($($name:ident)*) => {$(
        impl Fallible for $name {
            fn set_failure(&mut self, failure: ObjectFailure) {
                self.failure = failure;
            }
        }
    )*};
}

fallible!(AttachPageTable Destroy DetachPageTable FaultQueueAlloc GetHwInfo HwptAlloc
    HwptInvalidate IoasAlloc ReadEvent ReadPageFault RespondPageFault VdeviceAlloc VeventqAlloc
    ViommuAlloc);

/// What an id is that something may stand on: iommufd's own `IOMMU_HWPT_ALLOC` has only its number.
#[derive(Debug, Default)]
pub(super) struct Parents(SpinMutex<BTreeMap<u32, HwptParent>>);

impl Parents {
    fn add(&self, id: u32, parent: HwptParent) {
        self.0.lock().insert(id, parent);
    }

    fn remove(&self, id: u32) {
        self.0.lock().remove(&id);
    }

    fn find(&self, id: u32) -> Result<HwptParent, ObjectError> {
        self.0.lock().get(&id).copied().ok_or(ObjectError::NoObject(ObjectId(id)))
    }

    /// Forgets all: the VM is closed.
    pub(super) fn clear(&self) {
        self.0.lock().clear();
    }
}

/// The calls on the objects of one VM.
pub(super) struct Objects<'a, V> {
    pub(super) vm: &'a V,
    pub(super) parents: &'a Parents,
    /// Whether values that are ours are known.
    pub(super) own: bool,
}

/// Copies a structure in. iommufd has one error for all that it knows but does not do: flags and
/// reserved fields as well.
pub(super) fn copy<T: Argument>(argument: &[u8]) -> Result<T, Refusal> {
    copy_in(argument).map_err(|error| match error {
        ArgumentError::UnknownFlags { .. } => Refusal::Unsupported { offset: 4 },
        ArgumentError::Reserved { offset } => Refusal::Unsupported { offset },
        error => error.into(),
    })
}

/// Ends a call: what it gave, or why it failed, is written.
pub(super) fn finish<A: Fallible>(
    mut request: A,
    result: Result<impl FnOnce(&mut A), ObjectError>,
    argument: &mut [u8],
) -> Result<Reply, Refusal> {
    let refused = match result {
        Ok(write) => {
            request.set_failure(ObjectFailure { code: 0, field: 0, value: 0 });
            write(&mut request);
            None
        }
        Err(error) => {
            request.set_failure(error.to_wire());
            Some(error)
        }
    };
    copy_out(&request, argument);
    refused.map_or(Ok(Reply::default()), |error| Err(error.into()))
}

/// The device with this number. No device of a VM has more than 16 bits.
fn device(number: u32) -> Result<RequesterId, Refusal> {
    let bits = u16::try_from(number).map_err(|_| Refusal::NoSuchDevice { number })?;
    Ok(RequesterId::from_bits(bits))
}

/// The PASID in a field, if the flags say that it counts.
fn pasid(flags: u32, number: u32, offset: usize) -> Result<Option<GuestPasid>, Refusal> {
    if flags & ATTACH_PASID == 0 {
        return Ok(None);
    }
    let pasid = Pasid::new(number).ok_or(Refusal::Value { offset })?;
    Ok(Some(GuestPasid(pasid)))
}

/// Whether a structure of `size` bytes has room for the ticket, which ends at `end`.
const fn has_room(size: u32, end: usize) -> bool {
    size as usize >= end
}

/// A call whose structure has no room for its ticket returns, as iommufd's does, when it is over.
fn until(reply: Reply, ticket: Option<Ticket>, room: bool) -> Reply {
    Reply { pending: ticket.filter(|_| !room), ..reply }
}

impl<V: Vm> Objects<'_, V> {
    /// Carries out `request`, which is one of these.
    pub(super) fn dispatch(
        &self,
        request: Request,
        argument: &mut [u8],
    ) -> Option<Result<Reply, Refusal>> {
        Some(match request {
            Request::Destroy => self.destroy(argument),
            Request::IoasAlloc => self.ioas(argument),
            Request::HwptAlloc => self.alloc_hwpt(argument),
            Request::GetHwInfo => self.hardware(argument),
            Request::HwptInvalidate => self.invalidate(argument),
            Request::FaultQueueAlloc => self.alloc_fault_queue(argument),
            Request::ViommuAlloc => self.alloc_viommu(argument),
            Request::VdeviceAlloc => self.alloc_vdevice(argument),
            Request::VeventqAlloc => self.alloc_event_queue(argument),
            Request::AttachPageTable => self.attach(argument),
            Request::DetachPageTable => self.detach(argument),
            Request::ReadEvent => self.read_event(argument),
            Request::ReadPageFault => self.read_page_fault(argument),
            Request::RespondPageFault => self.respond_page_fault(argument),
            _ => return None,
        })
    }

    fn destroy(&self, argument: &mut [u8]) -> Result<Reply, Refusal> {
        let request: Destroy = copy(argument)?;
        let result = self.vm.destroy(ObjectId(request.id));
        if result.is_ok() {
            self.parents.remove(request.id);
        }
        finish(request, result.map(|()| |_: &mut Destroy| ()), argument)
    }

    fn ioas(&self, argument: &mut [u8]) -> Result<Reply, Refusal> {
        let request: IoasAlloc = copy(argument)?;
        let result = self.vm.ioas().map(|IoasId(id)| {
            self.parents.add(id, HwptParent::Ioas(IoasId(id)));
            move |request: &mut IoasAlloc| request.out_ioas_id = id
        });
        finish(request, result, argument)
    }

    fn hardware(&self, argument: &mut [u8]) -> Result<Reply, Refusal> {
        let request: GetHwInfo = copy(argument)?;
        let device = device(request.dev_id)?;
        let data = pointed_at(argument, request.size, request.data_uptr, request.data_len.into());
        let data = match request.data_len {
            0 => 0..0,
            _ => data?,
        };
        let info = self.vm.hardware(device).map(Info::of);
        if let Ok(info) = &info {
            // As much as there is room for, and zeroes past the end.
            let bytes = info.bytes().iter().copied().chain(core::iter::repeat(0));
            argument[data].iter_mut().zip(bytes).for_each(|(to, from)| *to = from);
        }
        let result = info.map(|info| {
            move |request: &mut GetHwInfo| {
                request.data_len = info.bytes().len() as u32;
                request.out_data_type = info.data_type();
                request.out_max_pasid_log2 = info.pasid_bits();
                request.out_capabilities = info.capabilities();
            }
        });
        finish(request, result, argument)
    }

    fn alloc_hwpt(&self, argument: &mut [u8]) -> Result<Reply, Refusal> {
        let request: HwptAlloc = copy(argument)?;
        let device = device(request.dev_id)?;
        let flags = HwptFlags::from_bits_retain(request.flags);
        let data = self.table(&request, argument)?;
        let fault = match request.parent_kind {
            PARENT_ANY => flags.contains(HwptFlags::FAULT_ID_VALID),
            _ => request.fault_given != 0,
        };
        let fault = fault.then_some(FaultQueueId(request.fault_id));
        let result = self.parent(&request)?.and_then(|parent| {
            self.vm.alloc_hwpt(&HwptRequest { device, parent, flags, data, fault })
        });
        let result = result.map(|HwptId(id)| {
            self.parents.add(id, HwptParent::Hwpt(HwptId(id)));
            move |request: &mut HwptAlloc| request.out_hwpt_id = id
        });
        finish(request, result, argument)
    }

    /// The guest's part of a page table.
    fn table(
        &self,
        request: &HwptAlloc,
        argument: &[u8],
    ) -> Result<Option<StageOneTable>, Refusal> {
        let &HwptAlloc { size, data_type, data_len, data_uptr, .. } = request;
        let kind = offset_of!(HwptAlloc, data_type);
        // A type without data, and data without a type.
        if (data_type == HWPT_DATA_NONE) != (data_len == 0) {
            return Err(Refusal::Value { offset: offset_of!(HwptAlloc, data_len) });
        }
        if data_type == HWPT_DATA_NONE {
            return Ok(None);
        }
        let data = pointed_at(argument, size, data_uptr, data_len.into())?;
        let base = data.start;
        decode_table(data_type, &argument[data], self.own, kind, base).map(Some)
    }

    /// What a page table is to stand on.
    fn parent(&self, request: &HwptAlloc) -> Result<Result<HwptParent, ObjectError>, Refusal> {
        let id = request.pt_id;
        Ok(Ok(match request.parent_kind {
            PARENT_ANY => return Ok(self.parents.find(id)),
            PARENT_IOAS if self.own => HwptParent::Ioas(IoasId(id)),
            PARENT_HWPT if self.own => HwptParent::Hwpt(HwptId(id)),
            PARENT_VIOMMU if self.own => HwptParent::Viommu(ViommuId(id)),
            _ => return Err(Refusal::Unsupported { offset: offset_of!(HwptAlloc, parent_kind) }),
        }))
    }

    fn alloc_viommu(&self, argument: &mut [u8]) -> Result<Reply, Refusal> {
        let request: ViommuAlloc = copy(argument)?;
        let device = device(request.dev_id)?;
        let kind = match request.kind {
            VIOMMU_ARM_SMMUV3 => ViommuKind::Smmuv3,
            VIOMMU_VTD if self.own => ViommuKind::Vtd,
            _ => return Err(Refusal::Unsupported { offset: offset_of!(ViommuAlloc, kind) }),
        };
        let result = self.vm.alloc_viommu(device, HwptId(request.hwpt_id), kind);
        let result = result.map(|ViommuId(id)| {
            self.parents.add(id, HwptParent::Viommu(ViommuId(id)));
            move |request: &mut ViommuAlloc| request.out_viommu_id = id
        });
        finish(request, result, argument)
    }

    fn alloc_vdevice(&self, argument: &mut [u8]) -> Result<Reply, Refusal> {
        let request: VdeviceAlloc = copy(argument)?;
        let device = device(request.dev_id)?;
        let viommu = ViommuId(request.viommu_id);
        let result = self.vm.alloc_vdevice(viommu, device, request.virt_id);
        let result =
            result.map(|id| move |request: &mut VdeviceAlloc| request.out_vdevice_id = id.0);
        finish(request, result, argument)
    }

    fn alloc_fault_queue(&self, argument: &mut [u8]) -> Result<Reply, Refusal> {
        let request: FaultQueueAlloc = copy(argument)?;
        let queue = self.vm.alloc_fault_queue();
        let result = queue.map(|id| {
            move |request: &mut FaultQueueAlloc| {
                (request.out_fault_id, request.out_fault_fd) = (id.0, NO_DESCRIPTOR);
            }
        });
        let reply = finish(request, result, argument)?;
        let file = |queue| Arc::new(QueueFile::new(self.vm.clone(), queue)) as Arc<dyn FaultFile>;
        Ok(Reply { fault_file: queue.ok().map(file), ..reply })
    }

    fn alloc_event_queue(&self, argument: &mut [u8]) -> Result<Reply, Refusal> {
        let request: VeventqAlloc = copy(argument)?;
        // The records are the same in either case: there is no descriptor to read others from.
        match request.kind {
            VEVENTQ_ARM_SMMUV3 => (),
            VEVENTQ_ANY if self.own => (),
            _ => return Err(Refusal::Unsupported { offset: offset_of!(VeventqAlloc, kind) }),
        }
        let viommu = ViommuId(request.viommu_id);
        let result = self.vm.alloc_event_queue(viommu, request.veventq_depth).map(|id| {
            move |request: &mut VeventqAlloc| {
                (request.out_veventq_id, request.out_veventq_fd) = (id.0, NO_DESCRIPTOR);
            }
        });
        finish(request, result, argument)
    }

    fn read_event(&self, argument: &mut [u8]) -> Result<Reply, Refusal> {
        let request: ReadEvent = copy(argument)?;
        let result = self.vm.take_event(EventQueueId(request.queue)).map(|event| {
            move |request: &mut ReadEvent| {
                request.present = if event.is_some() { EVENT_PRESENT } else { 0 };
                request.sequence = event.map_or(0, |event| event.sequence);
                request.virtual_id = event.map_or(0, |event| event.virtual_id);
                (request.fault.argsz, request.fault.flags) = (0, 0);
                fault::encode(event.map(|event| event.fault), &mut request.fault);
            }
        });
        finish(request, result, argument)
    }

    fn attach(&self, argument: &mut [u8]) -> Result<Reply, Refusal> {
        let request: AttachPageTable = copy(argument)?;
        let device = device(request.dev_id)?;
        let pasid = pasid(request.flags, request.pasid, offset_of!(AttachPageTable, pasid))?;
        let hwpt = HwptId(request.pt_id);
        let result = match request.flags & ATTACH_REPLACE {
            0 => self.vm.attach_hwpt(device, pasid, hwpt).map(|()| None),
            _ => self.vm.replace_hwpt(device, pasid, hwpt).map(Some),
        };
        let ticket = result.ok().flatten();
        let result = result.map(|ticket| {
            move |request: &mut AttachPageTable| request.ticket = ticket.map_or(0, Ticket::sequence)
        });
        let room = has_room(request.argsz, offset_of!(AttachPageTable, failure));
        finish(request, result, argument).map(|reply| until(reply, ticket, room))
    }

    fn detach(&self, argument: &mut [u8]) -> Result<Reply, Refusal> {
        let request: DetachPageTable = copy(argument)?;
        let device = device(request.dev_id)?;
        let pasid = pasid(request.flags, request.pasid, offset_of!(DetachPageTable, pasid))?;
        let result = self.vm.detach_hwpt(device, pasid);
        let ticket = result.ok();
        let result = result
            .map(|ticket| move |request: &mut DetachPageTable| request.ticket = ticket.sequence());
        let room = has_room(request.argsz, offset_of!(DetachPageTable, failure));
        finish(request, result, argument).map(|reply| until(reply, ticket, room))
    }

    fn invalidate(&self, argument: &mut [u8]) -> Result<Reply, Refusal> {
        let mut request: HwptInvalidate = copy(argument)?;
        let id = request.hwpt_id;
        let (done, result) = match request.data_type {
            INVALIDATE_VTD_S1 => {
                self.forget(&request, argument, |what| self.vm.invalidate_hwpt(HwptId(id), what))?
            }
            INVALIDATE_VIOMMU_ARM_SMMUV3 => self.forget(&request, argument, |commands| {
                self.vm.invalidate_viommu(ViommuId(id), commands)
            })?,
            _ => {
                let offset = offset_of!(HwptInvalidate, data_type);
                return Err(Refusal::Unsupported { offset });
            }
        };
        request.entry_num = done;
        // The same is told of an entry that cannot be read, which no VM has seen.
        let pending = match result {
            Ok(ticket) => ticket,
            Err(Refusal::Object(error)) => {
                return finish(request, Err::<fn(&mut HwptInvalidate), _>(error), argument)
            }
            Err(refusal) => {
                copy_out(&request, argument);
                return Err(refusal);
            }
        };
        let room = has_room(request.size, offset_of!(HwptInvalidate, failure));
        let write = move |request: &mut HwptInvalidate| request.ticket = pending.sequence();
        finish(request, Ok(write), argument).map(|reply| until(reply, Some(pending), room))
    }

    /// Decodes entries and carries them out, some at a time, until one is bad; gives how many were
    /// carried out, and the last ticket, which covers those before it.
    fn forget<T: Entry>(
        &self,
        request: &HwptInvalidate,
        argument: &[u8],
        carry_out: impl Fn(&[T]) -> Result<Ticket, (usize, ObjectError)>,
    ) -> Result<(u32, Result<Ticket, Refusal>), Refusal> {
        let &HwptInvalidate { size, data_uptr, entry_len, entry_num, .. } = request;
        if entry_num > MAX_INVALIDATE_ENTRIES {
            return Err(Refusal::Value { offset: offset_of!(HwptInvalidate, entry_num) });
        }
        if entry_num == 0 {
            // Only asks whether it could.
            return Ok((0, carry_out(&[]).map_err(|(_, error)| error.into())));
        }
        if entry_len == 0 || entry_len > MAX_ENTRY_BYTES {
            return Err(Refusal::Value { offset: offset_of!(HwptInvalidate, entry_len) });
        }
        let len = u64::from(entry_len) * u64::from(entry_num);
        let entries = &argument[pointed_at(argument, size, data_uptr, len)?];
        let (mut done, mut last) = (0, Ok(Ticket::new(0)));
        for entries in entries.chunks(entry_len as usize * ENTRIES_AT_A_TIME) {
            let mut decoded = Vec::with_capacity(ENTRIES_AT_A_TIME);
            let mut bad = None;
            for entry in entries.chunks(entry_len as usize) {
                match T::read(entry, self.own) {
                    Ok(entry) => decoded.push(entry),
                    Err(refusal) => {
                        bad = Some(refusal);
                        break;
                    }
                }
            }
            if !decoded.is_empty() {
                match carry_out(&decoded) {
                    Ok(ticket) => last = Ok(ticket),
                    Err((count, error)) => return Ok((done + count as u32, Err(error.into()))),
                }
                done += decoded.len() as u32;
            }
            if let Some(refusal) = bad {
                return Ok((done, Err(refusal)));
            }
        }
        Ok((done, last))
    }
}
