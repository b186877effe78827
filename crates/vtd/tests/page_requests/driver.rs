//! The guest's driver on the model.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use iommu::{
    DomainId, Endpoint, PageRequest, PageResponse, PageResponses, Pasid, PrgIndex, ResponseCode,
    SoftwareVm, Vm,
};
use mem::{Gpa, GuestMemory, Iova, MemoryMap};
use vtd::driver::{
    Clock, DrainError, Handled, InvalidationQueue, PageQueueError, PageRequestQueue, Registers,
    SubmitError, MAX_DESCRIPTORS,
};
use vtd::model::{Caps, Model, Options};
use vtd::spec::{Descriptor, DeviceTlbScope, PasidCacheScope, Wait};

use crate::guest::{Guest, DEVICE, PAGE_A, PAGE_TABLE, PASID, SRTP, TE, VIRTUAL};

const RING: Gpa = Gpa(0x4_0000);
const QUEUE: Gpa = Gpa(0x5_0000);
const STATUS: Gpa = Gpa(0x5_1000);
const DOMAIN: DomainId = DomainId(1);

/// The unit, and time.
pub(super) struct Unit {
    pub(super) model: RefCell<Model<SoftwareVm>>,
    pub(super) now: Cell<u64>,
    /// What devices ask for, one at each pause.
    late: RefCell<VecDeque<PageRequest>>,
    pub(super) endpoint: Endpoint,
}

impl Registers for Unit {
    fn read32(&self, offset: u16) -> u32 {
        let mut data = [0; 4];
        self.model.borrow_mut().read(offset.into(), &mut data);
        u32::from_le_bytes(data)
    }

    fn write32(&self, offset: u16, value: u32) {
        let _ = self.model.borrow_mut().write(offset.into(), &value.to_le_bytes());
    }
}

impl Clock for Unit {
    fn now_ns(&self) -> u64 {
        self.now.get()
    }

    fn pause(&self) {
        self.now.set(self.now.get() + 1_000_000);
        if let Some(request) = self.late.borrow_mut().pop_front() {
            self.endpoint.send_page_request(request);
        }
        let mut model = self.model.borrow_mut();
        let _ = model.poll(64);
        let _ = model.tick(Duration::from_nanos(self.now.get()));
    }
}

#[derive(Default)]
struct Heard(Mutex<Vec<(u16, ResponseCode)>>);

impl PageResponses for Heard {
    fn respond(&self, response: PageResponse) {
        self.0.lock().unwrap().push((response.group.get(), response.code));
    }
}

impl Heard {
    fn take(&self) -> Vec<(u16, ResponseCode)> {
        std::mem::take(&mut *self.0.lock().unwrap())
    }
}

pub(super) type Queue<'a> = InvalidationQueue<&'a Unit, &'a Unit, Arc<MemoryMap>>;

/// A booted guest with a device, and what the device hears.
pub(super) struct Rig {
    pub(super) unit: Unit,
    heard: Arc<Heard>,
    pub(super) vm: SoftwareVm,
}

impl Rig {
    pub(super) fn new(options: Options) -> Self {
        let guest = Guest::new();
        let endpoint = guest.attach();
        let heard = Arc::new(Heard::default());
        endpoint.set_page_responses(Some(heard.clone()));
        endpoint.set_ats(true);
        guest.store_scalable_tables();
        guest.store(Gpa(0x2000), &[0x3000 | 7 << 9 | 0b1_1101]);
        let vm = guest.vm.clone();
        let mut model = Model::new(Caps::new(options).unwrap(), vm.clone());
        let _ = model.add_device(DEVICE);
        let unit = Unit {
            model: RefCell::new(model),
            now: Cell::new(0),
            late: RefCell::default(),
            endpoint,
        };
        Self { unit, heard, vm }
    }

    pub(super) fn start(&self) -> (Queue<'_>, PageRequestQueue<&Unit, Arc<MemoryMap>>) {
        let (unit, memory) = (&self.unit, self.vm.memory());
        let mut queue = Queue::enable(unit, unit, memory.clone(), QUEUE, STATUS).unwrap();
        Registers::write64(unit, 0x20, 0x1400);
        Registers::write32(unit, 0x18, SRTP | 1 << 26);
        Registers::write32(unit, 0x18, TE | 1 << 26);
        queue.submit(&[Descriptor::PasidCache(PasidCacheScope::Global)], false).unwrap();
        let requests = PageRequestQueue::enable(unit, memory, RING, 0).unwrap();
        requests.unmask_event(0xfee0_3000, 0x43);
        (queue, requests)
    }

    fn ask(&self, request: PageRequest) {
        self.unit.endpoint.send_page_request(request);
        self.unit.pause();
    }
}

fn request(group: u16) -> PageRequest {
    PageRequest {
        requester: DEVICE,
        pasid: PASID.pasid,
        privileged: false,
        execute: false,
        read: true,
        write: true,
        address: VIRTUAL,
        group: PrgIndex::new(group).unwrap(),
        last: true,
        private_data: None,
    }
}

/// Nothing is to be decided.
fn nobody(_: &[PageRequest]) -> Option<ResponseCode> {
    panic!("there is nothing to decide")
}

fn in_both_modes(test: impl Fn(Rig)) {
    for options in [Options::default(), Options::host_owned()] {
        test(Rig::new(options));
    }
}

#[test]
fn a_guest_fills_in_what_is_asked_for() {
    in_both_modes(|rig| {
        let (mut queue, mut requests) = rig.start();
        let memory = rig.vm.memory();
        memory.store_u64(PAGE_TABLE, 0).unwrap();
        let channel = rig.unit.endpoint.channel();
        assert!(channel.enter().write(PASID, VIRTUAL, b"lazy").is_err());
        rig.ask(PageRequest { last: false, ..request(3) });
        rig.ask(request(3));
        let mut seen = Vec::new();
        let handled = requests
            .handle(&mut queue, &mut |group| {
                seen.extend_from_slice(group);
                memory.store_u64(PAGE_TABLE, PAGE_A.0 | 7).unwrap();
                Some(ResponseCode::Success)
            })
            .unwrap();
        assert_eq!(handled, Handled { entries: 2, groups: 1, ..Handled::default() });
        assert_eq!(seen, [PageRequest { last: false, ..request(3) }, request(3)]);
        assert_eq!(rig.heard.take(), [(3, ResponseCode::Success)]);
        channel.enter().write(PASID, VIRTUAL, b"lazy").unwrap();
        assert_eq!(requests.handle(&mut queue, &mut nobody), Ok(Handled::default()));
    });
}

#[test]
fn what_makes_no_sense_is_refused_without_asking() {
    in_both_modes(|rig| {
        let (mut queue, mut requests) = rig.start();
        rig.ask(PageRequest { address: Iova(1 << 60), ..request(1) });
        rig.ask(PageRequest { privileged: true, ..request(2) });
        rig.ask(PageRequest { execute: true, ..request(3) });
        rig.ask(PageRequest { last: false, execute: true, ..request(4) });
        rig.ask(request(4));
        rig.ask(PageRequest::stop_marker(DEVICE, Pasid::new(1).unwrap()));
        let handled = requests.handle(&mut queue, &mut nobody).unwrap();
        // A host's fault queue has no stop markers.
        let host_owned = *rig.unit.model.borrow().caps().options() == Options::host_owned();
        assert_eq!((handled.refused, handled.stop_markers), (4, u64::from(!host_owned)));
        let refused = [1, 2, 3, 4].map(|group| (group, ResponseCode::Invalid));
        assert_eq!(rig.heard.take(), refused);
    });
}

#[test]
fn an_answer_may_come_later_and_comes_once() {
    in_both_modes(|rig| {
        let (mut queue, mut requests) = rig.start();
        rig.ask(request(1));
        requests.handle(&mut queue, &mut |_| None).unwrap();
        assert_eq!((requests.open_groups(), rig.heard.take()), (1, vec![]));
        let respond = |requests: &mut PageRequestQueue<_, _>, queue: &mut _| {
            requests.respond(queue, &request(1), ResponseCode::Failure)
        };
        assert_eq!(respond(&mut requests, &mut queue), Ok(true));
        assert_eq!(respond(&mut requests, &mut queue), Ok(false));
        assert_eq!(rig.heard.take().len(), 1);
    });
}

#[test]
fn an_overflow_is_cleared_when_the_ring_is_empty() {
    let rig = Rig::new(Options::default());
    let (mut queue, mut requests) = rig.start();
    for group in 0..200 {
        rig.ask(request(group));
    }
    assert_eq!(rig.heard.take().len(), 200 - 127, "what did not fit was answered");
    let mut asked = 0;
    let mut decide = |_: &[PageRequest]| {
        asked += 1;
        Some(ResponseCode::Success)
    };
    let handled = requests.handle(&mut queue, &mut decide).unwrap();
    assert!(handled.overflow);
    assert_eq!(asked, 127);
    assert_eq!(rig.heard.take().len(), 127);
    assert_eq!(rig.unit.model.borrow().counters().page_responses_unknown, 0);
}

#[test]
fn a_drain_leaves_nothing_unanswered() {
    in_both_modes(|rig| {
        let (mut queue, mut requests) = rig.start();
        rig.ask(request(1));
        requests.handle(&mut queue, &mut |_| None).unwrap();
        rig.ask(request(2));
        rig.ask(PageRequest { last: false, ..request(3) });
        rig.unit.late.borrow_mut().extend((4..20).map(request));
        // As an unbind has it: the entry goes first.
        let pasid = PASID.pasid.unwrap();
        rig.vm.memory().store_u64(Gpa(0x4040), 0).unwrap();
        let gone = Descriptor::PasidCache(PasidCacheScope::Pasid(DOMAIN, pasid));
        queue.submit(&[gone], false).unwrap();
        let space = (DEVICE, PASID.pasid);
        requests.drain(&mut queue, space, DOMAIN, &mut nobody).unwrap();
        assert_eq!(requests.open_groups(), 0);
        while !rig.unit.late.borrow().is_empty() {
            rig.unit.pause();
        }
        requests.drain(&mut queue, space, DOMAIN, &mut nobody).unwrap();
        let mut heard = rig.heard.take();
        heard.sort_by_key(|(group, _)| *group);
        let whole = [1, 2].into_iter().chain(4..20);
        let expected: Vec<_> = whole.map(|group| (group, ResponseCode::Invalid)).collect();
        assert_eq!(heard, expected);
        // Again: there is nothing to do.
        requests.drain(&mut queue, space, DOMAIN, &mut nobody).unwrap();
        assert_eq!(rig.heard.take(), []);
    });
}

#[test]
fn a_drain_has_an_end_whatever_the_unit_does() {
    let rig = Rig::new(Options::default());
    let (mut queue, mut requests) = rig.start();
    rig.unit.model.borrow_mut().inject_page_request_overflow(true);
    rig.unit.late.borrow_mut().extend((0..512).map(request));
    let space = (DEVICE, PASID.pasid);
    let drained = requests.drain(&mut queue, space, DOMAIN, &mut nobody);
    assert!(matches!(drained, Err(DrainError::Overflow { .. })), "{drained:?}");
    rig.unit.model.borrow_mut().inject_page_request_overflow(false);
    rig.unit.late.borrow_mut().clear();
    requests.drain(&mut queue, space, DOMAIN, &mut nobody).unwrap();
}

#[test]
fn a_drain_decides_about_others_as_ever() {
    let rig = Rig::new(Options::default());
    let (mut queue, mut requests) = rig.start();
    rig.ask(request(1));
    rig.ask(PageRequest { pasid: Pasid::new(2), ..request(2) });
    let mut decide = |group: &[PageRequest]| {
        assert_eq!(group[0].pasid, Pasid::new(2));
        Some(ResponseCode::Success)
    };
    requests.drain(&mut queue, (DEVICE, PASID.pasid), DOMAIN, &mut decide).unwrap();
    let expected = [(1, ResponseCode::Invalid), (2, ResponseCode::Success)];
    assert_eq!(rig.heard.take(), expected);
}

#[test]
fn a_device_that_does_not_answer_is_named_and_the_queue_goes_on() {
    let invalidation_timeout = Duration::from_millis(20);
    for options in [Options::default(), Options::host_owned()] {
        let rig = Rig::new(Options { invalidation_timeout, ..options });
        let (mut queue, _requests) = rig.start();
        let channel = rig.unit.endpoint.channel();
        channel.enter().write(PASID, VIRTUAL, b"cached").unwrap();
        rig.unit.endpoint.withhold_invalidation_answers(true);
        let scope = DeviceTlbScope { address: Iova(0x7fff_ffff_ffff_f000), large: true };
        let forget = Descriptor::PasidDeviceTlb { source: DEVICE, pasid: PASID.pasid, scope };
        let before = rig.unit.now.get();
        let timeout = SubmitError::DeviceTimeout { source_id: DEVICE };
        assert_eq!(queue.submit(&[forget], false), Err(timeout));
        assert!(rig.unit.now.get() - before >= 20_000_000);
        assert_eq!(rig.unit.model.borrow().counters().invalidation_timeouts, 1);
        // What it was asked is asked again, as Linux does.
        assert_eq!(queue.submit(&[forget], false), Err(timeout));
        // What is behind a fence is not carried out, then or later.
        let fence = Descriptor::Wait(Wait { fence: true, ..Wait::default() });
        let mut long = vec![Descriptor::PasidCache(PasidCacheScope::Global); 100];
        (long[0], long[1]) = (forget, fence);
        let before = rig.unit.model.borrow().counters();
        assert_eq!(queue.submit(&long, false), Err(timeout));
        rig.unit.endpoint.withhold_invalidation_answers(false);
        queue.submit(&[forget], false).unwrap();
        let after = rig.unit.model.borrow().counters();
        assert_eq!(after.pasid_cache_invalidations, before.pasid_cache_invalidations);
        assert_eq!(after.invalidation_timeouts, 3);
        for _ in 0..3 {
            queue.submit(&long, false).unwrap();
        }
    }
}

#[test]
fn a_bad_descriptor_is_named_and_the_queue_goes_on() {
    let rig = Rig::new(Options::default());
    let (mut queue, _requests) = rig.start();
    let interrupts = vtd::spec::InterruptEntryScope::Global;
    let bad = Descriptor::InterruptEntryCache(interrupts);
    let mut long = [Descriptor::PasidCache(PasidCacheScope::Global); MAX_DESCRIPTORS];
    for at in [0, 1, MAX_DESCRIPTORS - 1] {
        let before = rig.unit.model.borrow().counters().pasid_cache_invalidations;
        let good = std::mem::replace(&mut long[at], bad);
        assert_eq!(queue.submit(&long, false), Err(SubmitError::Refused { info: 3 }));
        let after = rig.unit.model.borrow().counters().pasid_cache_invalidations;
        assert_eq!(after - before, at as u64, "those before it");
        long[at] = good;
        queue.submit(&long, false).unwrap();
    }
}

#[test]
fn what_is_not_offered_or_not_there_is_an_error() {
    let rig = Rig::new(Options { page_requests: false, ..Options::default() });
    let (unit, memory) = (&rig.unit, rig.vm.memory());
    let refused = PageRequestQueue::enable(unit, memory.clone(), RING, 0).map(drop).unwrap_err();
    assert_eq!(refused, PageQueueError::NotOffered);
    let rig = Rig::new(Options::default());
    let unit = &rig.unit;
    let refused = |ring, order| {
        PageRequestQueue::enable(unit, rig.vm.memory(), ring, order).map(drop).unwrap_err()
    };
    assert_eq!(refused(RING, 8), PageQueueError::Order(8));
    let hole = Gpa(0x10_0000 - 0x1000);
    assert!(matches!(refused(hole, 1), PageQueueError::NoMemory { .. }));
    let hole = Gpa(0x20_0000);
    let refused = Queue::enable(unit, unit, memory, hole, hole).map(drop).unwrap_err();
    assert_eq!(refused, SubmitError::NoMemory { address: hole });
}
