//! A device's file: what it says of regions and interrupts, the rings of faults and responses.

use alloc::sync::{Arc, Weak};
use alloc::vec::Vec;
use core::fmt;
use core::ops::Range;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use iommu::nesting::NotHandled;
use iommu::{
    Channel, Endpoint, Fault, GuestPasid, Host, HwptId, ObjectError, PageRequest, Pasid, Vm,
};
use mem::Backing;
use pci::RequesterId;
use spin::mutex::SpinMutex;
use zerocopy::{FromZeros, IntoBytes};

use super::group::Members;
use super::ring::{Ring, RingFull, RING_OFFSET};
use super::{calls::no_handle, Inner};
use crate::argument::{copy_in, copy_question};
use crate::capability::{Chain, Chained};
use crate::nesting::decode_response;
use crate::spec::flags::*;
use crate::spec::{
    AttachIommufdPt, DetachIommufdPt, DeviceInfo, DmaFault, IrqInfo, IrqSet, PageResponse,
    ReadFault, RegionInfo, SparseMap, TypeOf,
};
use crate::{fault, page_request, DeviceFile, Errno, File, Handle, Refusal, Reply, Request};

/// The region with faults.
const FAULT_REGION: u32 = PCI_REGIONS;
/// The region with responses.
const RESPONSE_REGION: u32 = PCI_REGIONS + 1;
/// The interrupt of faults.
const FAULT_INTERRUPT: u32 = PCI_INTERRUPTS;
/// Bits of a position in a region; the region's index is above them, as VFIO's PCI driver has it.
const POSITION_BITS: u32 = 40;

/// What the files of one device have in common while any is open.
pub(super) struct Open {
    requester: RequesterId,
    faults: Ring,
    responses: Ring,
    event: SpinMutex<Option<Event>>,
    /// Whether something was added of which the client was not told.
    untold: AtomicBool,
    refused_responses: AtomicU64,
}

/// What is rung.
pub(super) type Event = Arc<dyn Fn() + Send + Sync>;

impl Open {
    pub(super) fn new(requester: RequesterId) -> Result<Self, Refusal> {
        Ok(Self {
            requester,
            faults: Ring::new(size_of::<DmaFault>())?,
            responses: Ring::new(size_of::<PageResponse>())?,
            event: SpinMutex::new(None),
            untold: AtomicBool::new(false),
            refused_responses: AtomicU64::new(0),
        })
    }

    pub(super) fn requester(&self) -> RequesterId {
        self.requester
    }

    /// Adds a fault to the ring, if there is room: it is counted if not.
    pub(super) fn report(&self, fault: Fault) {
        let mut record = ReadFault::new_zeroed();
        fault::encode(Some(fault), &mut record);
        let _counted = self.push(record.fault.as_bytes());
    }

    /// The same of a page request. One that is lost is answered by who reported it.
    pub(super) fn report_page_request(&self, request: &PageRequest) -> Result<(), NotHandled> {
        self.push(page_request::encode(request).as_bytes()).map_err(|RingFull| NotHandled)
    }

    fn push(&self, entry: &[u8]) -> Result<(), RingFull> {
        self.faults.push(entry)?;
        self.untold.store(true, Ordering::Relaxed);
        Ok(())
    }

    pub(super) fn event(&self) -> Option<Event> {
        self.event.lock().clone()
    }

    /// Sets what is rung; gives what was, which is the client's code and goes with no lock held.
    pub(super) fn set_event(&self, event: Option<Event>) -> Option<Event> {
        core::mem::replace(&mut *self.event.lock(), event)
    }

    /// Rings the event, if there is one, and something to tell of, or anyway.
    pub(super) fn ring(&self, anyway: bool) {
        let untold = self.untold.swap(false, Ordering::Relaxed);
        if let Some(event) = self.event().filter(|_| untold || anyway) {
            event();
        }
    }
}

impl fmt::Debug for Open {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Open").field("requester", &self.requester).finish_non_exhaustive()
    }
}

/// What happened to the entries of a device's rings.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct RingCounts {
    /// Faults and page requests that found the ring full, and are lost (`ENOSPC` to whoever
    /// reported them, who answers the requests).
    pub faults_dropped: u64,
    /// Responses that answer no page request.
    pub responses_refused: u64,
}

/// The file of a device.
pub(super) struct Device<H: Host> {
    members: Arc<Members<H>>,
    container: Arc<Inner<H>>,
    open: Arc<Open>,
}

impl<H: Host> Device<H> {
    pub(super) fn new(members: Arc<Members<H>>, container: Arc<Inner<H>>, open: Arc<Open>) -> Self {
        members.open.fetch_add(1, Ordering::AcqRel);
        Self { members, container, open }
    }
}

impl<H: Host> Drop for Device<H> {
    fn drop(&mut self) {
        self.container.closed(&self.open);
        self.members.open.fetch_sub(1, Ordering::AcqRel);
    }
}

impl<H: Host> fmt::Debug for Device<H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Device").field("requester", &self.open.requester).finish_non_exhaustive()
    }
}

impl Chained for RegionInfo {
    fn set(&mut self, argsz: u32, cap_offset: u32) {
        (self.argsz, self.cap_offset) = (argsz, cap_offset);
    }
}

impl Chained for IrqInfo {
    fn set(&mut self, argsz: u32, cap_offset: u32) {
        (self.argsz, self.cap_offset) = (argsz, cap_offset);
    }
}

impl Chained for DeviceInfo {
    fn set(&mut self, argsz: u32, cap_offset: u32) {
        // It has no capabilities.
        let _ = cap_offset;
        self.argsz = argsz;
    }
}

fn get_info(argument: &mut [u8]) -> Result<Reply, Refusal> {
    let mut info: DeviceInfo = copy_question(argument)?;
    info.flags = DEVICE_PCI;
    info.num_regions = PCI_REGIONS + 2;
    info.num_irqs = PCI_INTERRUPTS + 1;
    (info.cap_offset, info.pad) = (0, 0);
    crate::argument::copy_out(&info, argument);
    Ok(Reply::default())
}

fn get_irq_info(argument: &mut [u8]) -> Result<Reply, Refusal> {
    let mut info: IrqInfo = copy_question(argument)?;
    let mut chain = Chain::default();
    (info.flags, info.count) = match info.index {
        ..PCI_INTERRUPTS => (0, 0),
        FAULT_INTERRUPT => {
            let kind = TypeOf { kind: IRQ_TYPE_NESTED, subtype: IRQ_SUBTYPE_DMA_FAULT };
            chain.add(IRQ_CAP_TYPE, kind.as_bytes());
            (IRQ_EVENT | IRQ_CAPS, 1)
        }
        _ => return Err(Refusal::Value { offset: core::mem::offset_of!(IrqInfo, index) }),
    };
    chain.answer(info, argument)?;
    Ok(Reply::default())
}

impl<H: Host + 'static> Device<H> {
    fn call(
        &self,
        number: u32,
        argument: &mut [u8],
        handle: Option<Handle>,
    ) -> Result<Reply, Refusal> {
        let unknown = Refusal::UnknownRequest { number };
        let request = Request::of(number, self.members.shared().revision).ok_or(unknown)?;
        if request == Request::DeviceSetIrqs {
            return self.set_irqs(argument, handle);
        }
        no_handle(handle.as_ref())?;
        match request {
            Request::DeviceGetInfo => get_info(argument),
            Request::DeviceGetRegionInfo => self.get_region_info(argument),
            Request::DeviceGetIrqInfo => get_irq_info(argument),
            Request::AttachIommufdPt => self.attach(argument),
            Request::DetachIommufdPt => self.detach(argument),
            _ => Err(unknown),
        }
    }

    /// A ring, by the index of its region.
    fn region(&self, index: u64) -> Option<&Ring> {
        match u32::try_from(index) {
            Ok(FAULT_REGION) => Some(&self.open.faults),
            Ok(RESPONSE_REGION) => Some(&self.open.responses),
            _ => None,
        }
    }

    fn get_region_info(&self, argument: &mut [u8]) -> Result<Reply, Refusal> {
        let mut info: RegionInfo = copy_question(argument)?;
        let mut chain = Chain::default();
        (info.flags, info.size) = (0, 0);
        let (subtype, capability) = match info.index {
            // What a function has itself is not in this file.
            ..PCI_REGIONS => (None, 0),
            FAULT_REGION => (Some(REGION_SUBTYPE_DMA_FAULT), REGION_CAP_DMA_FAULT),
            RESPONSE_REGION => {
                (Some(REGION_SUBTYPE_DMA_FAULT_RESPONSE), REGION_CAP_DMA_FAULT_RESPONSE)
            }
            _ => return Err(Refusal::Value { offset: core::mem::offset_of!(RegionInfo, index) }),
        };
        info.offset = u64::from(info.index) << POSITION_BITS;
        if let (Some(subtype), Some(ring)) = (subtype, self.region(info.index.into())) {
            info.flags = REGION_READ | REGION_WRITE | REGION_MAP | REGION_CAPS;
            info.size = ring.size() as u64;
            chain.add(REGION_CAP_TYPE, TypeOf { kind: REGION_TYPE_NESTED, subtype }.as_bytes());
            let offset = RING_OFFSET as u64;
            let size = info.size - offset;
            let area = SparseMap { nr_areas: 1, reserved: 0, offset, size };
            chain.add(REGION_CAP_SPARSE, area.as_bytes());
            chain.add(capability, RING_VERSION.as_bytes());
        }
        chain.answer(info, argument)?;
        Ok(Reply::default())
    }

    fn set_irqs(&self, argument: &[u8], handle: Option<Handle>) -> Result<Reply, Refusal> {
        let IrqSet { argsz, flags, index, start, count, event } = copy_in(argument)?;
        let value = |offset| Refusal::Value { offset };
        if index != FAULT_INTERRUPT {
            return Err(value(core::mem::offset_of!(IrqSet, index)));
        }
        if start != 0 {
            return Err(value(core::mem::offset_of!(IrqSet, start)));
        }
        const DISABLE: u32 = IRQ_DATA_NONE | IRQ_ACTION_TRIGGER;
        const SET: u32 = IRQ_DATA_EVENT | IRQ_ACTION_TRIGGER;
        let event = match (flags, count) {
            (DISABLE, 0) => {
                no_handle(handle.as_ref())?;
                None
            }
            (SET, 1) => {
                let needed = size_of::<IrqSet>();
                if (argsz as usize) < needed {
                    return Err(crate::ArgumentError::TooShort { argsz, needed }.into());
                }
                match (event, handle) {
                    (-1, None) => None,
                    (-1, Some(_)) => return Err(Refusal::UnwantedHandle),
                    (_, Some(Handle::Event(event))) => Some(event),
                    (_, _) => return Err(Refusal::NoHandle),
                }
            }
            (DISABLE | SET, _) => return Err(value(core::mem::offset_of!(IrqSet, count))),
            (flags, _) => return Err(Refusal::Flags { flags }),
        };
        drop(self.open.set_event(event));
        self.container.watch_faults();
        Ok(Reply::default())
    }

    fn attach(&self, argument: &[u8]) -> Result<Reply, Refusal> {
        let AttachIommufdPt { flags, pt_id, pasid, .. } = copy_in(argument)?;
        let pasid = guest_pasid(flags, pasid, core::mem::offset_of!(AttachIommufdPt, pasid))?;
        let (vm, device, hwpt) = (self.container.vm()?, self.open.requester, HwptId(pt_id));
        let pending = match vm.attach_hwpt(device, pasid, hwpt) {
            // To attach twice is to replace.
            Err(ObjectError::Busy) => Some(vm.replace_hwpt(device, pasid, hwpt)?),
            attached => attached.map(|()| None)?,
        };
        Ok(Reply { pending, ..Reply::default() })
    }

    fn detach(&self, argument: &[u8]) -> Result<Reply, Refusal> {
        let DetachIommufdPt { flags, pasid, .. } = copy_in(argument)?;
        let pasid = guest_pasid(flags, pasid, core::mem::offset_of!(DetachIommufdPt, pasid))?;
        let ticket = self.container.vm()?.detach_hwpt(self.open.requester, pasid)?;
        Ok(Reply { pending: Some(ticket), ..Reply::default() })
    }

    fn ring_at(&self, offset: u64) -> Result<(&Ring, usize), Refusal> {
        let refused = Refusal::Value { offset: 0 };
        let ring = self.region(offset >> POSITION_BITS).ok_or(refused)?;
        let position = offset & ((1 << POSITION_BITS) - 1);
        Ok((ring, usize::try_from(position).map_err(|_| refused)?))
    }

    /// Gives the answers that came.
    fn respond(&self) {
        let mut responses = Vec::new();
        self.open.responses.drain(|entry| responses.push(decode_response(entry, false)));
        for response in responses {
            let answered = response
                .and_then(|response| self.container.respond(self.open.requester, &response));
            // As posted, nobody is told.
            if answered.is_err() {
                self.open.refused_responses.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
}

/// The PASID in a field, if the flags say that it counts.
fn guest_pasid(flags: u32, number: u32, offset: usize) -> Result<Option<GuestPasid>, Refusal> {
    if flags & ATTACH_PASID == 0 {
        return Ok(None);
    }
    Ok(Some(GuestPasid(Pasid::new(number).ok_or(Refusal::Value { offset })?)))
}

impl<H: Host + 'static> File for Device<H> {
    fn ioctl(
        &self,
        number: u32,
        argument: &mut [u8],
        handle: Option<Handle>,
    ) -> Result<Reply, Errno> {
        let counted = self.members.shared().counted(|| self.call(number, argument, handle));
        counted.map_err(|refusal| refusal.errno())
    }
}

impl<H: Host + 'static> DeviceFile for Device<H> {
    fn read(&self, offset: u64, bytes: &mut [u8]) -> Result<(), Errno> {
        // What came since is there when the numbers are read.
        self.container.deliver_faults();
        let ring = self.ring_at(offset);
        ring.and_then(|(ring, position)| ring.read(position, bytes)).map_err(|error| error.errno())
    }

    fn write(&self, offset: u64, bytes: &[u8]) -> Result<(), Errno> {
        let ring = self.ring_at(offset);
        ring.and_then(|(ring, position)| ring.write(position, bytes))
            .map_err(|error| error.errno())?;
        self.respond();
        Ok(())
    }

    fn map(&self, offset: u64, len: usize) -> Result<(Arc<dyn Backing>, Range<usize>), Errno> {
        let ring = self.ring_at(offset);
        ring.and_then(|(ring, position)| ring.map(position, len)).map_err(|error| error.errno())
    }

    fn channel(&self) -> Option<Channel> {
        self.container.channel(self.open.requester)
    }

    fn endpoint(&self) -> Weak<Endpoint> {
        self.container.endpoint(self.open.requester)
    }

    fn ring_counts(&self) -> RingCounts {
        RingCounts {
            faults_dropped: self.open.faults.dropped(),
            responses_refused: self.open.refused_responses.load(Ordering::Relaxed),
        }
    }
}
