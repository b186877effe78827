//! The calls on a container that has a VM.

use core::mem::offset_of;

use alloc::string::String;
use iommu::{AttachError, Counters, Host, HostError, Numbering, Ticket, Vm, VmConfig};
use mem::{Access, Gpa, Range, Segment};
use pci::RequesterId;
use spin::mutex::SpinMutex;

use super::memory::Memory;
use super::objects::{Objects, Parents};
use super::page_faults::PageFaults;
use super::page_requests;
use super::pasids::Granted;
use crate::argument::{copy_in, copy_out};
use crate::spec::flags::*;
use crate::spec::{
    AttachDevice, CacheInvalidate, Completion, CountersArgument, CreateVm, MapDma,
    OwnCacheInvalidate, ReadFault, SetHandle, Ticketed, UnmapDma,
};
use crate::{
    counters, fault, invalidation, page_request, stage_two, Handle, Refusal, Reply, Request,
    Revision,
};

/// A VM, and what its client may name of it.
pub(super) struct Machine<V> {
    pub(super) vm: V,
    pub(super) memory: SpinMutex<Memory>,
    granted: Granted,
    parents: Parents,
    /// Of its domains.
    pub(super) page_faults: PageFaults<V>,
    /// Whether its PASIDs are the host's own numbers.
    pub(super) system_wide: bool,
    /// Whether it came with the container's first group, and goes with the last.
    pub(super) with_groups: bool,
}

/// Refuses a handle.
pub(super) fn no_handle(handle: Option<&Handle>) -> Result<(), Refusal> {
    handle.map_or(Ok(()), |_| Err(Refusal::UnwantedHandle))
}

/// Creates the VM that `argument` describes.
pub(super) fn create_vm<H: Host>(host: &H, argument: &mut [u8]) -> Result<Machine<H::Vm>, Refusal> {
    let mut request: CreateVm = copy_in(argument)?;
    let set = |flag| request.flags & flag != 0;
    let config = VmConfig {
        name: name(&request.name)?,
        quota: request.quota,
        numbering: if set(VM_PRIVATE_PASIDS) { Numbering::Private } else { Numbering::Identity },
        enforce_grants: set(VM_ENFORCE_GRANTS),
        stage_two: stage_two::decode(&request.stage_two)?,
        page_requests: page_request::policy(&request.page_requests)?,
    };
    let system_wide = config.numbering == Numbering::Identity;
    match host.create_vm(config) {
        Ok(vm) => Ok(Machine::new(vm, system_wide)),
        Err(error) => {
            match error {
                HostError::TooManyVms { limit } => request.limit = saturate(limit),
                HostError::QuotaUnavailable { available, .. } => request.available = available,
                HostError::UnsupportedStageTwo | HostError::NoMemory => {}
            }
            copy_out(&request, argument);
            Err(error.into())
        }
    }
}

/// The name in a field: UTF-8, and zeroes after it.
fn name(field: &[u8]) -> Result<String, Refusal> {
    let refused = Refusal::Value { offset: offset_of!(CreateVm, name) };
    let end = field.iter().rposition(|&byte| byte != 0).map_or(0, |last| last + 1);
    let name = core::str::from_utf8(&field[..end]).map_err(|_| refused)?;
    if name.contains('\0') {
        return Err(refused);
    }
    Ok(name.into())
}

fn saturate(limit: usize) -> u32 {
    u32::try_from(limit).unwrap_or(u32::MAX)
}

impl<V: Vm> Machine<V> {
    pub(super) fn new(vm: V, system_wide: bool) -> Self {
        let (memory, granted, parents, page_faults) = Default::default();
        Self { vm, memory, granted, parents, page_faults, system_wide, with_groups: false }
    }

    /// A VM that came with the first group of a container.
    pub(super) fn with_groups(vm: V) -> Self {
        Self { with_groups: true, ..Self::new(vm, true) }
    }

    pub(super) fn dispatch(
        &self,
        request: Request,
        revision: Revision,
        argument: &mut [u8],
        handle: Option<Handle>,
    ) -> Result<Reply, Refusal> {
        match request {
            Request::MapDma => return self.map_dma(argument, handle),
            Request::SetContexts => return self.set_contexts(argument, handle),
            Request::SetFaultEvent => return self.set_fault_event(argument, handle),
            _ => no_handle(handle.as_ref())?,
        }
        let own = revision == Revision::Own;
        let objects = Objects { vm: &self.vm, parents: &self.parents, own };
        if let Some(result) = objects.dispatch(request, argument) {
            return result;
        }
        match (request, revision) {
            (Request::UnmapDma, _) => self.unmap_dma(argument),
            (Request::UpdateMemory, _) => self.update_memory(argument),
            (Request::CacheInvalidate, Revision::Own) => self.invalidate_own(argument),
            (Request::CacheInvalidate, _) => self.invalidate_posted(argument),
            (Request::InFlight, _) => self.in_flight(argument),
            (Request::Completion, _) => self.completion(argument),
            (Request::ReadFault, _) => self.read_fault(argument),
            (Request::ReadPageRequest, _) => page_requests::read(&self.vm, argument),
            (Request::RespondPageRequest, _) => page_requests::respond(&self.vm, argument),
            (Request::Unanswered, _) => page_requests::unanswered(&self.vm, argument),
            (Request::GiveUpAnswers, _) => page_requests::give_up_answers(&self.vm, argument),
            (Request::GetPageRequestCounters, _) => page_requests::counters(&self.vm, argument),
            (Request::Tick, _) => page_requests::tick(&self.vm, argument),
            (Request::AttachDevice, _) => self.attach_device(argument),
            (Request::PasidRequest, Revision::Own) => self.granted.own(&self.vm, argument),
            (Request::PasidRequest, _) => self.granted.posted(&self.vm, argument),
            (Request::GetCounters, _) => self.get_counters(argument),
            (Request::CloseVm, _) => self.close(argument),
            // Not a request for a VM; those with a handle and those for objects are carried out.
            (_, _) => Err(Refusal::VmExists),
        }
    }

    fn map_dma(&self, argument: &mut [u8], handle: Option<Handle>) -> Result<Reply, Refusal> {
        let MapDma { flags, vaddr, iova, size, .. } = copy_in(argument)?;
        let Some(Handle::Memory(backing)) = handle else { return Err(Refusal::NoHandle) };
        let access = match flags {
            MAP_READ => Access::Read,
            0 => return Err(Refusal::Flags { flags }),
            MAP_WRITE => return Err(Refusal::Unsupported { offset: offset_of!(MapDma, flags) }),
            _ => Access::Write,
        };
        let value = |offset| Refusal::Value { offset };
        let range = Range::<Gpa>::new(Gpa(iova), size).ok_or(value(offset_of!(MapDma, size)))?;
        let offset = usize::try_from(vaddr).map_err(|_| value(offset_of!(MapDma, vaddr)))?;
        let mut memory = self.memory.lock();
        if let Some(map) = memory.map(Segment { range, backing, offset, access })? {
            // Under the lock, so that maps are published in the order of the calls. Nobody waits:
            // nothing was withdrawn.
            let _ticket = self.vm.set_memory(map);
        }
        Ok(Reply::default())
    }

    fn unmap_dma(&self, argument: &mut [u8]) -> Result<Reply, Refusal> {
        let mut request: UnmapDma = copy_in(argument)?;
        let range = if request.flags & UNMAP_ALL != 0 {
            let empty = request.iova == 0 && request.size == 0;
            empty.then_some(Range { start: Gpa(0), last: Gpa(u64::MAX) })
        } else {
            Range::<Gpa>::new(Gpa(request.iova), request.size)
        };
        let range = range.ok_or(Refusal::Value { offset: offset_of!(UnmapDma, size) })?;
        let mut memory = self.memory.lock();
        let (size, publish) = memory.unmap(range)?;
        let pending = publish.map(|map| self.vm.set_memory(map));
        drop(memory);
        request.size = size;
        copy_out(&request, argument);
        Ok(Reply { pending, ..Reply::default() })
    }

    fn update_memory(&self, argument: &mut [u8]) -> Result<Reply, Refusal> {
        let request: Ticketed = copy_in(argument)?;
        let mut memory = self.memory.lock();
        match request.flags {
            UPDATE_BEGIN => memory.begin()?,
            UPDATE_ABANDON => memory.abandon()?,
            UPDATE_COMMIT => {
                let ticket = self.vm.set_memory(memory.commit()?);
                write_ticket(request, ticket, argument);
            }
            flags => return Err(Refusal::Flags { flags }),
        }
        Ok(Reply::default())
    }

    fn set_contexts(&self, argument: &mut [u8], handle: Option<Handle>) -> Result<Reply, Refusal> {
        let SetHandle { flags, .. } = copy_in(argument)?;
        let source = match (flags, handle) {
            (HANDLE_SET, Some(Handle::Contexts(source))) => Some(source),
            (HANDLE_UNSET, None) => None,
            (flags, handle) => return Err(mismatch(flags, handle)),
        };
        self.vm.set_contexts(source);
        Ok(Reply::default())
    }

    fn set_fault_event(
        &self,
        argument: &mut [u8],
        handle: Option<Handle>,
    ) -> Result<Reply, Refusal> {
        let SetHandle { flags, .. } = copy_in(argument)?;
        let event = match (flags, handle) {
            (HANDLE_SET, Some(Handle::Event(event))) => Some(event),
            (HANDLE_UNSET, None) => None,
            (flags, handle) => return Err(mismatch(flags, handle)),
        };
        self.vm.set_fault_waker(event);
        Ok(Reply::default())
    }

    fn invalidate_own(&self, argument: &mut [u8]) -> Result<Reply, Refusal> {
        let mut request: OwnCacheInvalidate = copy_in(argument)?;
        let scopes = invalidation::decode_own(&request)?;
        request.ticket = self.invalidate(scopes).map_or(0, Ticket::sequence);
        copy_out(&request, argument);
        Ok(Reply::default())
    }

    fn invalidate_posted(&self, argument: &mut [u8]) -> Result<Reply, Refusal> {
        let request: CacheInvalidate = copy_in(argument)?;
        let scopes = invalidation::decode_posted(&request)?;
        Ok(Reply { pending: self.invalidate(scopes), ..Reply::default() })
    }

    /// Gives the last ticket, which covers those before it.
    fn invalidate(&self, scopes: invalidation::Scopes) -> Option<Ticket> {
        scopes.into_iter().flatten().map(|what| self.vm.invalidate(what)).last()
    }

    fn completion(&self, argument: &mut [u8]) -> Result<Reply, Refusal> {
        let mut request: Completion = copy_in(argument)?;
        request.complete = self.vm.is_complete(Ticket::new(request.ticket)).into();
        copy_out(&request, argument);
        Ok(Reply::default())
    }

    fn read_fault(&self, argument: &mut [u8]) -> Result<Reply, Refusal> {
        let mut request: ReadFault = copy_in(argument)?;
        fault::encode(self.vm.take_fault(), &mut request);
        copy_out(&request, argument);
        Ok(Reply::default())
    }

    fn attach_device(&self, argument: &mut [u8]) -> Result<Reply, Refusal> {
        let mut request: AttachDevice = copy_in(argument)?;
        match self.vm.attach(RequesterId::from_bits(request.requester)) {
            Ok(device) => Ok(Reply { device: Some(device), ..Reply::default() }),
            Err(error) => {
                if let AttachError::TooManyDevices { limit } = error {
                    request.limit = saturate(limit);
                    copy_out(&request, argument);
                }
                Err(error.into())
            }
        }
    }

    fn get_counters(&self, argument: &mut [u8]) -> Result<Reply, Refusal> {
        let mut request: CountersArgument = copy_in(argument)?;
        let now: Counters = self.vm.counters();
        request.counts = counters::vm::to_wire(&now);
        copy_out(&request, argument);
        Ok(Reply::default())
    }

    fn in_flight(&self, argument: &mut [u8]) -> Result<Reply, Refusal> {
        let request = without_flags(argument)?;
        write_ticket(request, self.vm.in_flight(), argument);
        Ok(Reply::default())
    }

    fn close(&self, argument: &mut [u8]) -> Result<Reply, Refusal> {
        let request = without_flags(argument)?;
        self.memory.lock().close();
        let ticket = self.vm.close();
        self.granted.clear();
        self.parents.clear();
        write_ticket(request, ticket, argument);
        Ok(Reply::default())
    }
}

#[cfg(test)]
impl<V> Machine<V> {
    pub(super) fn granted_pasids(&self) -> alloc::collections::BTreeSet<iommu::Pasid> {
        self.granted.all()
    }
}

/// Why flags and handle do not make a setting.
fn mismatch(flags: u32, handle: Option<Handle>) -> Refusal {
    match (flags, handle) {
        (HANDLE_SET, _) => Refusal::NoHandle,
        (HANDLE_UNSET, Some(_)) => Refusal::UnwantedHandle,
        _ => Refusal::Flags { flags },
    }
}

/// A request for a ticket that knows no flags.
fn without_flags(argument: &[u8]) -> Result<Ticketed, Refusal> {
    let request: Ticketed = copy_in(argument)?;
    match request.flags {
        0 => Ok(request),
        flags => Err(Refusal::Flags { flags }),
    }
}

fn write_ticket(mut request: Ticketed, ticket: Ticket, argument: &mut [u8]) {
    request.ticket = ticket.sequence();
    copy_out(&request, argument);
}
