//! An open container: the calls that come to it, and whose they are.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;
use core::sync::atomic::Ordering;

use iommu::{Channel, Hardware, Host, Vm, VmConfig};
use pci::RequesterId;
use spin::mutex::SpinMutex;
use zerocopy::{FromBytes, IntoBytes};

use super::calls::{self, Machine};
use super::device::{Event, Open};
use super::posted::{Kind, Posted};
use super::{Shared, MAX_MAPPINGS};
use crate::argument::copy_question;
use crate::capability::{Chain, Chained};
use crate::nesting::nesting_info;
use crate::spec::flags::*;
use crate::spec::{DmaAvailable, IommuInfo, IovaRanges, Number};
use crate::{ArgumentError, Errno, File, Handle, Refusal, Reply, Request, Revision};

/// Faults that are put into rings at a time; if more wait, the clients are rung once more.
const FAULTS_AT_A_TIME: usize = 4096;
/// Sizes of pages that can be mapped: from 4 KiB.
const PAGE_SIZES: u64 = !0xfff;

/// An open container: the handle that stands for one VM, and for nothing else. When it is dropped,
/// and the groups that are in it are closed, the VM is over, so that what held it can die at any
/// time.
pub struct Container<H: Host>(pub(super) Arc<Inner<H>>);

/// What a container's file has in common with those of its groups and devices.
///
/// The posted state is locked before the VM's; both are locked for as long as a call takes, so the
/// calls on one container come one after the other.
pub(super) struct Inner<H: Host> {
    pub(super) shared: Arc<Shared<H>>,
    pub(super) machine: SpinMutex<Option<Arc<Machine<H::Vm>>>>,
    pub(super) posted: SpinMutex<Posted<H::Vm>>,
}

impl<H: Host> Inner<H> {
    pub(super) fn new(shared: Arc<Shared<H>>) -> Self {
        Self { shared, machine: SpinMutex::new(None), posted: SpinMutex::default() }
    }

    fn machine(&self) -> Result<Arc<Machine<H::Vm>>, Refusal> {
        self.machine.lock().clone().ok_or(Refusal::NoVm)
    }

    pub(super) fn vm(&self) -> Result<H::Vm, Refusal> {
        Ok(self.machine()?.vm.clone())
    }

    /// A group joins.
    pub(super) fn join(
        &self,
        number: u32,
        devices: impl Iterator<Item = RequesterId>,
    ) -> Result<(), Refusal> {
        let mut posted = self.posted.lock();
        posted.join(self.vm().ok().as_ref(), number, devices)
    }

    /// A group leaves. With the last one goes the VM, if it came with the first.
    pub(super) fn leave(&self, number: u32) {
        let mut posted = self.posted.lock();
        posted.leave(number);
        if posted.has_groups() {
            return;
        }
        let machine = self.machine.lock().take_if(|machine| machine.with_groups);
        if let Some(machine) = machine {
            let _ticket = machine.vm.close();
        }
    }

    /// The file of a device.
    pub(super) fn open(&self, requester: RequesterId) -> Result<Arc<Open>, Refusal> {
        self.posted.lock().open(requester, || Open::new(requester))
    }

    pub(super) fn channel(&self, requester: RequesterId) -> Option<Channel> {
        self.posted.lock().channel(requester)
    }

    /// Has the open devices rung when a fault arrives, and looks for those that wait.
    pub(super) fn watch_faults(&self) {
        let Ok(vm) = self.vm() else { return };
        let open: Vec<_> = self.posted.lock().all_open().collect();
        let events: Vec<Event> = open.iter().filter_map(|open| open.event()).collect();
        let waker = move || events.iter().for_each(|event| event());
        vm.set_fault_waker(Some(Arc::new(waker)));
        self.deliver_faults();
    }

    /// Puts what waits into the rings of its devices.
    pub(super) fn deliver_faults(&self) {
        let Ok(vm) = self.vm() else { return };
        let mut rung = Vec::new();
        {
            let mut posted = self.posted.lock();
            let faults = core::iter::from_fn(|| vm.take_fault()).take(FAULTS_AT_A_TIME);
            let mut count = 0;
            for fault in faults {
                rung.extend(posted.deliver(fault));
                count += 1;
            }
            if count == FAULTS_AT_A_TIME {
                rung.extend(posted.all_open());
            }
        }
        // With no lock held. Once is enough for each.
        rung.dedup_by(|a, b| Arc::ptr_eq(a, b));
        rung.iter().for_each(|open| open.ring());
    }

    fn dispatch(
        &self,
        number: u32,
        argument: &mut [u8],
        handle: Option<Handle>,
    ) -> Result<Reply, Refusal> {
        let revision = self.shared.revision;
        let request = Request::of(number, revision).ok_or(Refusal::UnknownRequest { number })?;
        match request {
            Request::MapDma | Request::SetContexts | Request::SetFaultEvent => (),
            _ => calls::no_handle(handle.as_ref())?,
        }
        match request {
            Request::GetApiVersion => Ok(value(API_VERSION)),
            Request::CheckExtension => check_extension(argument),
            Request::SetIommu => self.set_iommu(argument),
            Request::CreateVm => self.create_vm(argument),
            Request::IommuGetInfo => self.get_info(argument),
            Request::SetPasidTable => {
                let _vm = self.machine()?;
                self.posted.lock().set_pasid_table(argument, revision)
            }
            Request::SetMsiBinding => {
                let _vm = self.machine()?;
                self.posted.lock().set_msi_binding(argument)
            }
            Request::NestingOp => {
                let _vm = self.machine()?;
                self.posted.lock().nesting_op(argument, revision)
            }
            Request::CacheInvalidate if revision != Revision::Own => {
                let machine = self.machine()?;
                let mut posted = self.posted.lock();
                match posted.kind() {
                    Some(_) => posted.cache_invalidate(argument, revision),
                    // The VM's own tables, of which no group knows.
                    None => machine.dispatch(request, revision, argument, handle),
                }
            }
            Request::PasidRequest if self.posted.lock().kind() == Some(Kind::Plain) => {
                Err(Refusal::Unsupported { offset: 0 })
            }
            Request::GroupGetStatus
            | Request::GroupSetContainer
            | Request::GroupUnsetContainer
            | Request::GroupGetDeviceFd
            | Request::DeviceGetInfo
            | Request::DeviceGetRegionInfo
            | Request::DeviceGetIrqInfo
            | Request::DeviceSetIrqs
            | Request::AttachIommufdPt
            | Request::DetachIommufdPt => Err(Refusal::UnknownRequest { number }),
            request => self.machine()?.dispatch(request, revision, argument, handle),
        }
    }

    fn create_vm(&self, argument: &mut [u8]) -> Result<Reply, Refusal> {
        let mut machine = self.machine.lock();
        if machine.is_some() {
            return Err(Refusal::VmExists);
        }
        *machine = Some(Arc::new(calls::create_vm(&self.shared.host, argument)?));
        Ok(Reply::default())
    }

    /// The container gets its kind of IOMMU, and its VM if it has none.
    fn set_iommu(&self, argument: &[u8]) -> Result<Reply, Refusal> {
        let kind = Kind::new(number(argument)?)?;
        let mut posted = self.posted.lock();
        if !posted.has_groups() {
            return Err(Refusal::NoGroup);
        }
        if posted.kind().is_some() {
            return Err(Refusal::IommuSet);
        }
        let mut machine = self.machine.lock();
        if let Some(machine) = &*machine {
            posted.set_iommu(&machine.vm, kind)?;
        } else {
            let vm = self.shared.host.create_vm(VmConfig::named("vfio"))?;
            if let Err(refusal) = posted.set_iommu(&vm, kind) {
                let _ticket = vm.close();
                return Err(refusal);
            }
            *machine = Some(Arc::new(Machine::with_groups(vm)));
        }
        Ok(Reply::default())
    }

    fn get_info(&self, argument: &mut [u8]) -> Result<Reply, Refusal> {
        let mut info: IommuInfo = copy_question(argument)?;
        let machine = self.machine()?;
        let posted = self.posted.lock();
        let revision = self.shared.revision;
        let mut chain = Chain::default();
        let range = IovaRanges { nr_iovas: 1, reserved: 0, start: 0, last: u64::MAX };
        chain.add(IOMMU_CAP_IOVA_RANGES, range.as_bytes());
        let nesting = |hardware: &Hardware| nesting_info(hardware, machine.system_wide, revision);
        let nesting = posted.hardware().and_then(nesting);
        // The number of one was the other's.
        if nesting.as_ref().is_none_or(|nesting| nesting.id != IOMMU_CAP_DMA_AVAILABLE) {
            let mapped = machine.memory.lock().mappings();
            let avail = MAX_MAPPINGS.saturating_sub(mapped) as u32;
            chain.add(IOMMU_CAP_DMA_AVAILABLE, DmaAvailable { avail }.as_bytes());
        }
        if let Some(nesting) = nesting {
            chain.add(nesting.id, &nesting.body);
        }
        info.flags = IOMMU_INFO_PAGE_SIZES | IOMMU_INFO_CAPS;
        info.iova_pgsizes = PAGE_SIZES;
        info.pad = 0;
        chain.answer(info, argument)?;
        Ok(Reply::default())
    }
}

impl Chained for IommuInfo {
    fn set(&mut self, argsz: u32, cap_offset: u32) {
        (self.argsz, self.cap_offset) = (argsz, cap_offset);
    }
}

/// A reply that is its value.
fn value(value: u32) -> Reply {
    Reply { value, ..Reply::default() }
}

/// An argument that is a number.
fn number(argument: &[u8]) -> Result<u32, Refusal> {
    let truncated =
        ArgumentError::Truncated { given: argument.len(), claimed: size_of::<Number>() };
    let (Number { value }, _) = Number::read_from_prefix(argument).map_err(|_| truncated)?;
    Ok(value)
}

fn check_extension(argument: &[u8]) -> Result<Reply, Refusal> {
    let extensions = [TYPE1, TYPE1_V2, TYPE1_NESTING, EXTENSION_UNMAP_ALL];
    Ok(value(extensions.contains(&number(argument)?).into()))
}

impl<H: Host> Drop for Inner<H> {
    fn drop(&mut self) {
        if let Some(machine) = self.machine.get_mut().take() {
            let _ticket = machine.vm.close();
        }
        self.shared.containers.fetch_sub(1, Ordering::AcqRel);
    }
}

impl<H: Host> Container<H> {
    /// The host's own handle of the container's VM, if it has one: for whoever runs the host end
    /// in this process. No call gives it.
    pub fn host_vm(&self) -> Option<H::Vm> {
        self.0.vm().ok()
    }

    /// How many faults came for devices of groups while nobody had them open.
    pub fn undeliverable_faults(&self) -> u64 {
        self.0.posted.lock().undeliverable()
    }

    /// Carries out one call. Reads and writes no byte outside of `argument`, and takes a bounded
    /// number of steps, whatever that holds.
    ///
    /// # Errors
    ///
    /// See [`Refusal`]. Nothing has changed then; where the structure has a place for what was
    /// allowed, that is written.
    pub fn call(
        &self,
        number: u32,
        argument: &mut [u8],
        handle: Option<Handle>,
    ) -> Result<Reply, Refusal> {
        self.0.shared.counted(|| self.0.dispatch(number, argument, handle))
    }
}

impl<H: Host + 'static> Container<H> {
    /// The handle for a group that is to join ([`Request::GroupSetContainer`]).
    pub fn handle(&self) -> Handle {
        Handle::Container(self.0.clone())
    }
}

impl<H: Host> fmt::Debug for Container<H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let has_vm = self.0.machine.lock().is_some();
        f.debug_struct("Container").field("has_vm", &has_vm).finish_non_exhaustive()
    }
}

impl<H: Host + 'static> File for Container<H> {
    fn ioctl(
        &self,
        number: u32,
        argument: &mut [u8],
        handle: Option<Handle>,
    ) -> Result<Reply, Errno> {
        self.call(number, argument, handle).map_err(|refusal| refusal.errno())
    }
}
