//! A host of objects in plain maps: it checks what iommufd would check, records the calls, and
//! fails those that a test wants to fail.
#![allow(dead_code, unreachable_pub, missing_docs)]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard};

use iommu::{
    AllocPasidError, AttachError, ContextSource, Counters, Endpoint, EventQueueId, Fault,
    FaultQueueId, FreePasidError, GuestPasid, Hardware, Host, HwptFlags, HwptId, HwptParent,
    HwptRequest, InvalidField, Invalidation, IoasId, Numbering, ObjectError, ObjectId, PasidRange,
    PasidUsage, SmmuCaps, SoftwareHost, SoftwareVm, StageOneInvalidation, StageOneTable, Ticket,
    VdeviceId, ViommuId, ViommuKind, Vm, VmConfig, VmEvent,
};
use mem::MemoryMap;
use pci::RequesterId;

/// The error of a call that a test lets fail: one that no check of the mock gives.
pub const FAILED: ObjectError = ObjectError::Refused;

pub const SMMU: SmmuCaps = SmmuCaps {
    substream_bits: 16,
    granule_16k: false,
    output_bits: 44,
    wide_addresses: false,
    ..SmmuCaps::FULL
};

/// A call that changes something, in the order they came.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Call {
    AllocHwpt(HwptRequest),
    AllocViommu(ViommuKind),
    AllocVdevice(RequesterId, u64),
    AllocPasid(PasidRange),
    FreePasid(GuestPasid),
    Destroy(ObjectId),
    Attach(RequesterId, Option<GuestPasid>, HwptId),
    Replace(RequesterId, Option<GuestPasid>, HwptId),
    Detach(RequesterId, Option<GuestPasid>),
    InvalidateHwpt(HwptId, Vec<StageOneInvalidation>),
    InvalidateViommu(Vec<[u64; 2]>),
    Invalidate(Invalidation),
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Object {
    Ioas,
    Hwpt { parent: u32, flags: HwptFlags, data: Option<StageOneTable> },
    Viommu { parent: u32 },
    Vdevice { viommu: u32, device: RequesterId, virtual_id: u64 },
}

impl Object {
    fn stands_on(&self) -> Option<u32> {
        match *self {
            Self::Ioas => None,
            Self::Hwpt { parent, .. } | Self::Viommu { parent } => Some(parent),
            Self::Vdevice { viommu, .. } => Some(viommu),
        }
    }
}

pub type Place = (RequesterId, Option<GuestPasid>);

/// What requests are translated by.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum By {
    StageTwo,
    Nested(StageOneTable),
}

#[derive(Default)]
struct State {
    last_id: u32,
    hardware: BTreeMap<RequesterId, Hardware>,
    objects: BTreeMap<u32, Object>,
    attached: BTreeMap<Place, HwptId>,
    granted: BTreeSet<GuestPasid>,
    calls: Vec<Call>,
    /// Calls that may fail so far, and which of them do.
    steps: usize,
    fail: BTreeSet<usize>,
    /// Tables that were in use, and count as used until the test says otherwise.
    lingering: Option<BTreeSet<u32>>,
}

/// The mock; clones are the same.
#[derive(Clone)]
pub struct Mock {
    inner: SoftwareVm,
    state: Arc<Mutex<State>>,
}

impl Mock {
    pub fn new(devices: &[(RequesterId, Hardware)]) -> Self {
        let config = VmConfig { numbering: Numbering::Private, ..VmConfig::named("mock") };
        Self::with(config, devices)
    }

    pub fn with(config: VmConfig, devices: &[(RequesterId, Hardware)]) -> Self {
        let inner = SoftwareHost::new().create_vm(config).unwrap();
        let hardware = devices.iter().copied().collect();
        Self { inner, state: Arc::new(Mutex::new(State { hardware, ..State::default() })) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// Lets the k-th calls from here on fail, for each k in `steps`; the first is 0.
    pub fn fail(&self, steps: impl IntoIterator<Item = usize>) {
        let mut state = self.state();
        state.steps = 0;
        state.fail = steps.into_iter().collect();
    }

    /// Calls that could have failed since [`fail`](Self::fail) was last called.
    pub fn steps(&self) -> usize {
        self.state().steps
    }

    /// Takes what was called.
    pub fn calls(&self) -> Vec<Call> {
        std::mem::take(&mut self.state().calls)
    }

    /// What every place with something attached is translated by.
    pub fn attached(&self) -> BTreeMap<Place, By> {
        let state = self.state();
        let by = |hwpt: &HwptId| match state.objects.get(&hwpt.0) {
            Some(Object::Hwpt { data: Some(data), .. }) => By::Nested(*data),
            Some(Object::Hwpt { data: None, .. }) => By::StageTwo,
            other => panic!("attached to {other:?}"),
        };
        state.attached.iter().map(|(place, hwpt)| (*place, by(hwpt))).collect()
    }

    /// Objects that there are, the address space not counted.
    pub fn objects(&self) -> usize {
        self.state().objects.values().filter(|object| **object != Object::Ioas).count()
    }

    /// PASIDs that are granted.
    pub fn granted(&self) -> BTreeSet<GuestPasid> {
        self.state().granted.clone()
    }

    /// The whole state: what is attached, how many objects there are, what is granted.
    pub fn snapshot(&self) -> (BTreeMap<Place, By>, usize, BTreeSet<GuestPasid>) {
        (self.attached(), self.objects(), self.granted())
    }

    /// From here on, a table that was detached counts as used.
    pub fn linger(&self) {
        self.state().lingering = Some(BTreeSet::new());
    }

    /// Nothing that was detached is used any more.
    pub fn settle(&self) {
        self.state().lingering = None;
    }

    /// Takes a device away, and what was attached for it.
    pub fn unplug(&self, device: RequesterId) {
        let mut state = self.state();
        state.hardware.remove(&device);
        state.attached.retain(|place, _| place.0 != device);
        state.objects.retain(
            |_, object| !matches!(object, Object::Vdevice { device: of, .. } if *of == device),
        );
    }

    /// A nesting parent, for tests without a domain.
    pub fn parent(&self, device: RequesterId) -> HwptId {
        let parent = HwptParent::Ioas(self.ioas().unwrap());
        let flags = HwptFlags::NEST_PARENT | HwptFlags::PASID;
        self.alloc_hwpt(&HwptRequest { device, parent, flags, data: None, fault: None }).unwrap()
    }

    fn ticket(&self) -> Ticket {
        self.inner.invalidate(Invalidation::PasidCacheAll)
    }

    fn step(&self, call: Call) -> Result<MutexGuard<'_, State>, ObjectError> {
        let mut state = self.state();
        state.calls.push(call);
        let step = state.steps;
        state.steps += 1;
        if state.fail.contains(&step) {
            return Err(FAILED);
        }
        Ok(state)
    }
}

impl State {
    fn insert(&mut self, object: Object) -> u32 {
        self.last_id += 1;
        self.objects.insert(self.last_id, object);
        self.last_id
    }

    fn device(&self, device: RequesterId) -> Result<Hardware, ObjectError> {
        self.hardware.get(&device).copied().ok_or(ObjectError::NoDevice(device))
    }

    fn hwpt(&self, id: u32) -> Result<(HwptFlags, Option<StageOneTable>), ObjectError> {
        match self.objects.get(&id) {
            Some(Object::Hwpt { flags, data, .. }) => Ok((*flags, *data)),
            _ => Err(ObjectError::NoObject(ObjectId(id))),
        }
    }

    fn may_attach(&self, place: Place, hwpt: HwptId) -> Result<(), ObjectError> {
        let (device, pasid) = place;
        let (flags, data) = self.hwpt(hwpt.0)?;
        check_model(self.device(device)?, data)?;
        let for_pasids = flags.contains(HwptFlags::PASID);
        if let Some(pasid) = pasid {
            if !self.granted.contains(&pasid) {
                return Err(ObjectError::NotGranted(pasid));
            }
            let rid = self.attached.get(&(device, None)).map(|rid| self.hwpt(rid.0));
            let rid_for_pasids =
                rid.transpose()?.is_none_or(|(flags, _)| flags.contains(HwptFlags::PASID));
            if !for_pasids || !rid_for_pasids {
                return Err(ObjectError::Invalid(InvalidField::Pasid));
            }
        } else {
            let mut places = self.attached.keys();
            if !for_pasids && places.any(|(of, pasid)| *of == device && pasid.is_some()) {
                return Err(ObjectError::Invalid(InvalidField::Pasid));
            }
            let needs_vdevice = matches!(data, Some(StageOneTable::Smmuv3(_)));
            let is_it = |object: &Object| matches!(object, Object::Vdevice { device: of, .. } if *of == device);
            if needs_vdevice && !self.objects.values().any(is_it) {
                return Err(ObjectError::Invalid(InvalidField::VirtualId));
            }
        }
        Ok(())
    }

    fn left(&mut self, hwpt: HwptId) {
        if let Some(lingering) = &mut self.lingering {
            lingering.insert(hwpt.0);
        }
    }
}

fn check_model(hardware: Hardware, data: Option<StageOneTable>) -> Result<(), ObjectError> {
    use StageOneTable::{Smmuv3, Vtd, VtdPasidTable};
    match (hardware, data) {
        (Hardware::Vtd(_), Some(Smmuv3(_))) => Err(ObjectError::WrongModel),
        (Hardware::Smmuv3(_), Some(Vtd(_) | VtdPasidTable(_))) => Err(ObjectError::WrongModel),
        _ => Ok(()),
    }
}

impl Vm for Mock {
    fn memory(&self) -> Arc<MemoryMap> {
        self.inner.memory()
    }

    fn set_memory(&self, map: MemoryMap) -> Ticket {
        self.inner.set_memory(map)
    }

    fn set_contexts(&self, source: Option<Arc<dyn ContextSource>>) {
        self.inner.set_contexts(source);
    }

    fn invalidate(&self, what: Invalidation) -> Ticket {
        self.state().calls.push(Call::Invalidate(what));
        self.inner.invalidate(what)
    }

    fn in_flight(&self) -> Ticket {
        self.inner.in_flight()
    }

    fn is_complete(&self, ticket: Ticket) -> bool {
        self.inner.is_complete(ticket)
    }

    fn take_fault(&self) -> Option<Fault> {
        self.inner.take_fault()
    }

    fn set_fault_waker(&self, waker: Option<Arc<dyn Fn() + Send + Sync>>) {
        self.inner.set_fault_waker(waker);
    }

    fn attach(&self, requester: RequesterId) -> Result<Endpoint, AttachError> {
        self.inner.attach(requester)
    }

    fn alloc_pasid(&self, range: PasidRange) -> Result<GuestPasid, AllocPasidError> {
        let step = self.step(Call::AllocPasid(range)).map_err(|_| AllocPasidError::NoMemory);
        let mut state = step?;
        let pasid = self.inner.alloc_pasid(range)?;
        state.granted.insert(pasid);
        Ok(pasid)
    }

    fn free_pasid(&self, pasid: GuestPasid) -> Result<(), FreePasidError> {
        let mut state = self.state();
        state.calls.push(Call::FreePasid(pasid));
        self.inner.free_pasid(pasid)?;
        state.granted.remove(&pasid);
        state.attached.retain(|place, _| place.1 != Some(pasid));
        Ok(())
    }

    fn release_pasids(&self) -> Ticket {
        let mut state = self.state();
        state.granted.clear();
        state.attached.retain(|place, _| place.1.is_none());
        self.inner.release_pasids()
    }

    fn pasid_usage(&self) -> PasidUsage {
        self.inner.pasid_usage()
    }

    fn counters(&self) -> Counters {
        self.inner.counters()
    }

    fn ioas(&self) -> Result<IoasId, ObjectError> {
        let mut state = self.state();
        let existing = state.objects.iter().find(|(_, object)| **object == Object::Ioas);
        let existing = existing.map(|(id, _)| *id);
        Ok(IoasId(existing.unwrap_or_else(|| state.insert(Object::Ioas))))
    }

    fn hardware(&self, device: RequesterId) -> Result<Hardware, ObjectError> {
        self.state().device(device)
    }

    fn alloc_hwpt(&self, request: &HwptRequest) -> Result<HwptId, ObjectError> {
        let mut state = self.step(Call::AllocHwpt(*request))?;
        check_model(state.device(request.device)?, request.data)?;
        let HwptRequest { parent, flags, data, .. } = *request;
        let parent = match (parent, data) {
            (HwptParent::Ioas(ioas), None) => ioas.0,
            (HwptParent::Hwpt(hwpt), Some(_)) => {
                if !state.hwpt(hwpt.0)?.0.contains(HwptFlags::NEST_PARENT) {
                    return Err(ObjectError::Invalid(InvalidField::Parent));
                }
                hwpt.0
            }
            (HwptParent::Viommu(viommu), Some(_)) => viommu.0,
            _ => return Err(ObjectError::Invalid(InvalidField::Data)),
        };
        if !state.objects.contains_key(&parent) {
            return Err(ObjectError::NoObject(ObjectId(parent)));
        }
        Ok(HwptId(state.insert(Object::Hwpt { parent, flags, data })))
    }

    fn alloc_viommu(
        &self,
        device: RequesterId,
        parent: HwptId,
        kind: ViommuKind,
    ) -> Result<ViommuId, ObjectError> {
        let mut state = self.step(Call::AllocViommu(kind))?;
        state.device(device)?;
        state.hwpt(parent.0)?;
        Ok(ViommuId(state.insert(Object::Viommu { parent: parent.0 })))
    }

    fn alloc_vdevice(
        &self,
        viommu: ViommuId,
        device: RequesterId,
        virtual_id: u64,
    ) -> Result<VdeviceId, ObjectError> {
        let mut state = self.step(Call::AllocVdevice(device, virtual_id))?;
        state.device(device)?;
        let viommu = viommu.0;
        if !matches!(state.objects.get(&viommu), Some(Object::Viommu { .. })) {
            return Err(ObjectError::NoObject(ObjectId(viommu)));
        }
        Ok(VdeviceId(state.insert(Object::Vdevice { viommu, device, virtual_id })))
    }

    fn alloc_fault_queue(&self) -> Result<FaultQueueId, ObjectError> {
        Err(ObjectError::NotSupported)
    }

    fn alloc_event_queue(&self, _: ViommuId, _: u32) -> Result<EventQueueId, ObjectError> {
        Err(ObjectError::NotSupported)
    }

    fn take_event(&self, _: EventQueueId) -> Result<Option<VmEvent>, ObjectError> {
        Err(ObjectError::NotSupported)
    }

    fn destroy(&self, object: ObjectId) -> Result<(), ObjectError> {
        let mut state = self.state();
        state.calls.push(Call::Destroy(object));
        let ObjectId(id) = object;
        let attached = state.attached.values().any(|hwpt| hwpt.0 == id);
        let stood_on = state.objects.values().any(|object| object.stands_on() == Some(id));
        let lingers = state.lingering.as_ref().is_some_and(|lingering| lingering.contains(&id));
        if attached || stood_on || lingers {
            return Err(ObjectError::Busy);
        }
        state.objects.remove(&id).map(drop).ok_or(ObjectError::NoObject(object))
    }

    fn attach_hwpt(
        &self,
        device: RequesterId,
        pasid: Option<GuestPasid>,
        hwpt: HwptId,
    ) -> Result<(), ObjectError> {
        let mut state = self.step(Call::Attach(device, pasid, hwpt))?;
        state.may_attach((device, pasid), hwpt)?;
        if state.attached.contains_key(&(device, pasid)) {
            return Err(ObjectError::Busy);
        }
        state.attached.insert((device, pasid), hwpt);
        Ok(())
    }

    fn replace_hwpt(
        &self,
        device: RequesterId,
        pasid: Option<GuestPasid>,
        hwpt: HwptId,
    ) -> Result<Ticket, ObjectError> {
        let mut state = self.step(Call::Replace(device, pasid, hwpt))?;
        state.device(device)?;
        let old = *state.attached.get(&(device, pasid)).ok_or(ObjectError::NotAttached)?;
        state.may_attach((device, pasid), hwpt)?;
        state.attached.insert((device, pasid), hwpt);
        state.left(old);
        Ok(self.ticket())
    }

    fn detach_hwpt(
        &self,
        device: RequesterId,
        pasid: Option<GuestPasid>,
    ) -> Result<Ticket, ObjectError> {
        let mut state = self.step(Call::Detach(device, pasid))?;
        state.device(device)?;
        let old = state.attached.remove(&(device, pasid)).ok_or(ObjectError::NotAttached)?;
        state.left(old);
        Ok(self.ticket())
    }

    fn invalidate_hwpt(
        &self,
        hwpt: HwptId,
        what: &[StageOneInvalidation],
    ) -> Result<Ticket, (usize, ObjectError)> {
        let call = Call::InvalidateHwpt(hwpt, what.to_vec());
        let state = self.step(call).map_err(|error| (0, error))?;
        match state.hwpt(hwpt.0).map_err(|error| (0, error))? {
            (_, Some(_)) => Ok(self.ticket()),
            (_, None) => Err((0, ObjectError::NotSupported)),
        }
    }

    fn invalidate_viommu(
        &self,
        viommu: ViommuId,
        commands: &[[u64; 2]],
    ) -> Result<Ticket, (usize, ObjectError)> {
        let call = Call::InvalidateViommu(commands.to_vec());
        let state = self.step(call).map_err(|error| (0, error))?;
        if !matches!(state.objects.get(&viommu.0), Some(Object::Viommu { .. })) {
            return Err((0, ObjectError::NoObject(viommu.into())));
        }
        Ok(self.ticket())
    }

    fn close(&self) -> Ticket {
        let mut state = self.state();
        state.attached.clear();
        state.granted.clear();
        self.inner.close()
    }
}
