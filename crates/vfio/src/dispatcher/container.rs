//! An open container: the calls that come to it, and whose they are.

use alloc::sync::{Arc, Weak};
use alloc::vec::Vec;
use core::fmt;
use core::sync::atomic::Ordering;

use iommu::nesting::GroupResponse;
use iommu::{Channel, Endpoint, Hardware, Host, PageRequestPolicy, TakenGroups, Vm, VmConfig};
use pci::RequesterId;
use spin::mutex::SpinMutex;
use zerocopy::{FromBytes, IntoBytes};

use super::calls::{self, Machine};
use super::device::{Event, Open};
use super::page_faults;
use super::posted::{split, Kind, Posted};
use super::roster::Roster;
use super::turn::Turn;
use super::{Shared, MAX_MAPPINGS};
use crate::argument::copy_question;
use crate::capability::{Chain, Chained};
use crate::nesting::{decode_response, nesting_info};
use crate::spec::flags::*;
use crate::spec::{DmaAvailable, Header, IommuInfo, IovaRanges, Number};
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
/// The posted calls come one after the other: each has the posted state to itself, with no lock
/// held. Of the locks, the roster' is taken before the page requests'.
pub(super) struct Inner<H: Host> {
    pub(super) shared: Arc<Shared<H>>,
    pub(super) machine: SpinMutex<Option<Arc<Machine<H::Vm>>>>,
    pub(super) posted: Turn<Posted<H::Vm>, Leaving>,
    roster: SpinMutex<Roster>,
}

/// The number of a group that leaves.
#[derive(Clone, Copy, Debug)]
pub(super) struct Leaving(u32);

impl<H: Host> Inner<H> {
    pub(super) fn new(shared: Arc<Shared<H>>) -> Self {
        let (machine, posted, roster) = Default::default();
        Self { shared, machine, posted, roster }
    }

    fn machine(&self) -> Result<Arc<Machine<H::Vm>>, Refusal> {
        self.machine.lock().clone().ok_or(Refusal::NoVm)
    }

    pub(super) fn vm(&self) -> Result<H::Vm, Refusal> {
        Ok(self.machine()?.vm.clone())
    }

    /// Carries out a posted call, and what was left to be done.
    fn turn<T>(
        &self,
        call: impl FnOnce(&mut Posted<H::Vm>) -> Result<T, Refusal>,
    ) -> Result<T, Refusal> {
        let leave = |posted: &mut _, leaving| self.carry_out_leaving(posted, leaving);
        self.posted.with(leave, call).ok_or(Refusal::InUse)?
    }

    /// A group joins.
    pub(super) fn join(&self, number: u32, devices: Vec<RequesterId>) -> Result<(), Refusal> {
        self.turn(|posted| {
            let machine = self.machine().ok();
            posted.join(&self.roster, machine.as_deref(), number, devices)
        })
    }

    /// A group leaves. With the last one goes the VM, if it came with the first. If another call
    /// is under way it does so when that is over.
    pub(super) fn leave(&self, number: u32) {
        self.posted.note(Leaving(number));
        // Noted first, so that it is done whoever has the turn.
        let _busy = self.turn(|_| Ok(()));
    }

    fn carry_out_leaving(&self, posted: &mut Posted<H::Vm>, Leaving(number): Leaving) {
        posted.leave(&self.roster, self.machine().ok().as_deref(), number);
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
        let machine = self.machine();
        let mut roster = self.roster.lock();
        let (open, is_new) = roster.open(requester)?;
        if let (Ok(machine), true) = (machine, is_new) {
            machine.page_faults.register(&open);
        }
        Ok(open)
    }

    /// A file of a device is closed. With the last one, what its client has not answered is.
    pub(super) fn closed(&self, open: &Open) {
        let machine = self.machine();
        let (is_last, answers) = {
            let mut roster = self.roster.lock();
            let is_last = roster.close(open.requester());
            let release = |machine: &Arc<Machine<_>>| machine.page_faults.release(open.requester());
            (is_last, machine.as_ref().ok().filter(|_| is_last).map(release))
        };
        if is_last {
            drop(open.set_event(None));
        }
        if let (Ok(machine), Some(answers)) = (machine, answers) {
            page_faults::give(&machine.vm, answers);
        }
        self.watch_faults();
    }

    pub(super) fn channel(&self, requester: RequesterId) -> Option<Channel> {
        self.roster.lock().channel(requester)
    }

    pub(super) fn endpoint(&self, requester: RequesterId) -> Weak<Endpoint> {
        self.roster.lock().endpoint(requester)
    }

    /// Has the open devices rung when a fault arrives, and looks for those that wait.
    pub(super) fn watch_faults(&self) {
        let Ok(vm) = self.vm() else { return };
        let open: Vec<_> = self.roster.lock().all_open().collect();
        let events: Vec<Event> = open.iter().filter_map(|open| open.event()).collect();
        let waker = move || events.iter().for_each(|event| event());
        vm.set_fault_waker(Some(Arc::new(waker)));
        self.deliver_faults();
    }

    /// Puts what waits into the rings of its devices.
    pub(super) fn deliver_faults(&self) {
        let Ok(machine) = self.machine() else { return };
        let more_faults = {
            let mut roster = self.roster.lock();
            let faults = core::iter::from_fn(|| machine.vm.take_fault()).take(FAULTS_AT_A_TIME);
            faults.map(|fault| roster.deliver(fault)).count() == FAULTS_AT_A_TIME
        };
        let more_requests = machine.page_faults.deliver(&machine.vm);
        let open: Vec<_> = self.roster.lock().all_open().collect();
        // With no lock held. Once is enough for each.
        for open in open {
            open.ring(more_faults || more_requests);
        }
    }

    /// Answers a page request group of a device.
    pub(super) fn respond(
        &self,
        device: RequesterId,
        response: &GroupResponse,
    ) -> Result<(), Refusal> {
        let machine = self.machine()?;
        machine.page_faults.respond(&machine.vm, device, response)
    }

    /// `NESTING_OP`: an answer, of which the structure does not say the device. It takes no turn:
    /// the device hears it from inside the call.
    fn page_response(&self, data: &[u8]) -> Result<Reply, Refusal> {
        let response = decode_response(data, true)?;
        let machine = self.machine()?;
        let (kind, groups) = {
            let roster = self.roster.lock();
            (roster.kind, roster.groups())
        };
        match (kind, groups) {
            (Some(Kind::Nesting), 1) => {
                machine.page_faults.respond_for(&machine.vm, &response)?;
                Ok(Reply::default())
            }
            (Some(Kind::Nesting), groups) => Err(Refusal::NotSingle { groups }),
            (_, _) => Err(Refusal::NotNesting),
        }
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
                self.turn(|posted| posted.set_pasid_table(argument, revision))
            }
            Request::SetMsiBinding => {
                let _vm = self.machine()?;
                self.turn(|posted| posted.set_msi_binding(argument))
            }
            Request::NestingOp => {
                let _vm = self.machine()?;
                match split(argument, revision)? {
                    (Header { flags: NESTING_PAGE_RESPONSE, .. }, data)
                        if revision == Revision::Own =>
                    {
                        self.page_response(data)
                    }
                    _ => self.turn(|posted| posted.nesting_op(argument, revision)),
                }
            }
            Request::CacheInvalidate if revision != Revision::Own => {
                let machine = self.machine()?;
                match self.kind() {
                    Some(_) => self.turn(|posted| posted.cache_invalidate(argument, revision)),
                    // The VM's own tables, of which no group knows.
                    None => machine.dispatch(request, revision, argument, handle),
                }
            }
            Request::PasidRequest if self.kind() == Some(Kind::Plain) => {
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

    fn kind(&self) -> Option<Kind> {
        self.roster.lock().kind
    }

    /// The container gets its kind of IOMMU, and its VM if it has none.
    fn set_iommu(&self, argument: &[u8]) -> Result<Reply, Refusal> {
        let kind = Kind::new(number(argument)?)?;
        self.turn(|posted| {
            if !posted.has_groups() {
                return Err(Refusal::NoGroup);
            }
            if posted.kind().is_some() {
                return Err(Refusal::IommuSet);
            }
            if let Ok(machine) = self.machine() {
                posted.set_iommu(&self.roster, &machine, kind)?;
                return Ok(Reply::default());
            }
            let vm = self.shared.host.create_vm(of_groups())?;
            let machine = Arc::new(Machine::with_groups(vm));
            let set = posted.set_iommu(&self.roster, &machine, kind);
            let set = set.and_then(|()| {
                self.install(&machine).inspect_err(|_| posted.unset_iommu(&self.roster))
            });
            if set.is_err() {
                let _ticket = machine.vm.close();
            }
            set.map(|()| Reply::default())
        })
    }

    /// Makes a VM the container's, unless it was given one meanwhile.
    fn install(&self, new: &Arc<Machine<H::Vm>>) -> Result<(), Refusal> {
        let mut machine = self.machine.lock();
        if machine.is_some() {
            return Err(Refusal::VmExists);
        }
        *machine = Some(new.clone());
        Ok(())
    }

    fn get_info(&self, argument: &mut [u8]) -> Result<Reply, Refusal> {
        let mut info: IommuInfo = copy_question(argument)?;
        let machine = self.machine()?;
        let hardware = self.roster.lock().hardware;
        let revision = self.shared.revision;
        let mut chain = Chain::default();
        let range = IovaRanges { nr_iovas: 1, reserved: 0, start: 0, last: u64::MAX };
        chain.add(IOMMU_CAP_IOVA_RANGES, range.as_bytes());
        let nesting = |hardware: &Hardware| nesting_info(hardware, machine.system_wide, revision);
        let nesting = hardware.as_ref().and_then(nesting);
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
        self.0.roster.lock().undeliverable()
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

/// The VM that comes with the first group of a container. Its callers know Linux, which answers what
/// is out when something is detached.
fn of_groups() -> VmConfig {
    let taken = TakenGroups::Withdrawn;
    let page_requests = PageRequestPolicy { taken, ..PageRequestPolicy::default() };
    VmConfig { page_requests, ..VmConfig::named("vfio") }
}
