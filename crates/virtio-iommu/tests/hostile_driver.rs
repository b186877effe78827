//! The model under a driver that keeps to nothing.

mod common;

use common::*;
use iommu::{PasidRange, SoftwareHost, SoftwareVm, Vm, VmConfig};
use mem::{Gpa, GuestMemory};
use proptest::prelude::*;
use virtio_iommu::model::{
    Model, Options, Progress, QueueError, MAX_REPLY_SIZE, REQUESTS_PER_POLL,
};
use virtio_iommu::spec::{
    available, used, Descriptor, Features, QueueLayout, QueueLayoutError, Request, Revision,
    Status, DESCRIPTOR_SIZE, EVENT_QUEUE, MAX_QUEUE_SIZE, MAX_REQUEST_SIZE, REQUEST_QUEUE,
};
use zerocopy::IntoBytes;

const SIZE: u16 = 16;
const READ: Gpa = Gpa(0x8000);
const WRITTEN: Gpa = Gpa(0x9000);
const ACKNOWLEDGED: Status = Status::from_bits(3);
const AGREED: Status = Status::from_bits(11);
const RUNNING: Status = Status::from_bits(15);

/// A device whose driver is the test itself.
struct Rig {
    vm: SoftwareVm,
    model: Model<SoftwareVm>,
    layout: QueueLayout,
    offered: u16,
}

impl Rig {
    fn new(quota: u32) -> Self {
        let config = VmConfig { quota, ..VmConfig::named("hostile") };
        let vm = vm_of(&SoftwareHost::new(), config);
        let layout = QueueLayout::contiguous(REGION, SIZE).unwrap();
        let mut rig =
            Self { model: Model::new(Options::default(), vm.clone()), vm, layout, offered: 0 };
        rig.start();
        rig
    }

    fn start(&mut self) {
        self.model.set_driver_features(wanted(Revision::Experimental));
        assert_eq!(self.write_status(AGREED), AGREED);
        self.model.set_queue(REQUEST_QUEUE, self.layout).unwrap();
        assert_eq!(self.write_status(RUNNING), RUNNING);
    }

    fn write_status(&mut self, status: Status) -> Status {
        let _ = self.model.write_status(status);
        self.model.status()
    }

    fn put(&self, index: u16, descriptor: Descriptor) {
        let at = Gpa(self.layout.descriptors.0 + DESCRIPTOR_SIZE * u64::from(index));
        self.vm.memory().write(at, descriptor.as_bytes()).unwrap();
    }

    fn offer(&mut self, head: u16) {
        let ring = self.layout.available.0;
        let memory = self.vm.memory();
        memory.store_u16(Gpa(ring + available::entry(self.offered, SIZE)), head).unwrap();
        self.offered = self.offered.wrapping_add(1);
        memory.store_u16(Gpa(ring + available::INDEX), self.offered).unwrap();
    }

    /// How many chains came back, and how many bytes were written for the last one.
    fn used(&self) -> (u16, u32) {
        let (memory, ring) = (self.vm.memory(), self.layout.used.0);
        let index = memory.load_u16(Gpa(ring + used::INDEX)).unwrap();
        let last = used::entry(index.wrapping_sub(1), SIZE);
        (index, memory.load_u32(Gpa(ring + last + 4)).unwrap())
    }

    /// Makes a request of raw bytes with `room` bytes to answer in; gives the answer.
    fn request(&mut self, bytes: &[u8], room: u32) -> Option<Vec<u8>> {
        self.vm.memory().write(READ, bytes).unwrap();
        self.put(0, Descriptor::new(READ, bytes.len() as u32, false, Some(1)));
        self.put(1, Descriptor::new(WRITTEN, room, true, None));
        self.offer(0);
        let polled = self.model.poll(u32::MAX);
        assert_eq!(polled.progress, Progress::Idle);
        let (index, len) = self.used();
        assert_eq!(index, self.offered, "each chain comes back");
        let mut answer = vec![0; len as usize];
        self.vm.memory().read(WRITTEN, &mut answer).unwrap();
        (len > 0).then_some(answer)
    }
}

fn wanted(revision: Revision) -> Features {
    let base = Features::new().with_version_1(true).with_probe(true);
    Features::from_bits(base.into_bits() | revision.feature().into_bits())
}

fn alloc(first: u32, last: u32) -> Vec<u8> {
    encoded(Request::AllocPasid { first, last })
}

fn encoded(request: Request) -> Vec<u8> {
    let mut buffer = [0; MAX_REQUEST_SIZE];
    let len = request.encode(&Revision::Experimental.numbers(), &mut buffer);
    buffer[..len].to_vec()
}

#[test]
fn statuses_say_what_is_wrong() {
    let mut rig = Rig::new(1);
    let granted = rig.request(&alloc(5, 5), 8).unwrap();
    assert_eq!(granted, [5, 0, 0, 0, 0, 0, 0, 0]);
    let probe = encoded(Request::Probe { endpoint: 1 });
    let mut reserved = alloc(1, 2);
    reserved[12] = 1;
    let cases: [(&[u8], u32, u8); 16] = [
        (&alloc(5, 5), 8, 8),         // over quota: NOMEM
        (&alloc(2, 1), 8, 4),         // upside down: INVAL
        (&alloc(1, 0x10_0000), 8, 5), // 21 bits: RANGE
        (&alloc(u32::MAX, u32::MAX), 8, 5),
        (&alloc(1, 2), 4, 4), // no room for the number: INVAL
        (&alloc(1, 2), 12, 4),
        (&alloc(1, 2)[..12], 8, 4), // too short: INVAL
        (&[&alloc(1, 2)[..], &[0; 100]].concat(), 8, 4), // too long
        (&reserved, 8, 4),
        (&encoded(Request::FreePasid { pasid: 6 }), 4, 6), // not granted: NOENT
        (&encoded(Request::FreePasid { pasid: 0x10_0005 }), 4, 5), // not the same as 5: RANGE
        (&probe, 68, 6),                                   // no such endpoint: NOENT
        (&probe, 4, 4),
        (&[1; 20], 4, 2),                  // ATTACH: UNSUPP
        (&[9, 0, 0, 0, 1, 0, 0, 0], 4, 2), // of the other revision: UNSUPP
        (&[0], 4, 4),                      // no head: INVAL
    ];
    for (number, (bytes, room, status)) in cases.into_iter().enumerate() {
        let answer = rig.request(bytes, room).unwrap();
        assert_eq!(answer.len(), room as usize, "case {number}");
        let (tail, body) = (&answer[answer.len() - 4..], &answer[..answer.len() - 4]);
        assert_eq!(tail, [status, 0, 0, 0], "case {number}");
        assert!(body.iter().all(|byte| *byte == 0), "case {number}: nothing of ours leaks");
    }
    assert_eq!(rig.vm.pasid_usage().live, 1);
    let counters = rig.model.counters();
    assert_eq!((counters.requests, counters.requests_refused), (17, 16));
    assert_eq!(counters.requests_unsupported, 2);
}

#[test]
fn what_cannot_be_answered_is_not_done() {
    let mut rig = Rig::new(10);
    for room in [0, 3, MAX_REPLY_SIZE as u32 + 1, u32::MAX] {
        assert_eq!(rig.request(&alloc(1, 9), room), None, "{room}");
    }
    let chains = [
        // A loop; a way out of the table; reading after writing.
        [Descriptor::new(READ, 16, false, Some(0)), Descriptor::new(WRITTEN, 8, true, None)],
        [Descriptor::new(READ, 16, false, Some(SIZE)), Descriptor::new(WRITTEN, 8, true, None)],
        [Descriptor::new(WRITTEN, 8, true, Some(1)), Descriptor::new(READ, 16, false, None)],
        // Buffers that are not memory, or are only as far as their first half.
        [Descriptor::new(READ, 16, false, Some(1)), Descriptor::new(Gpa(0xfffc), 8, true, None)],
        [Descriptor::new(READ, 16, false, Some(1)), Descriptor::new(Gpa(!3), 8, true, None)],
        [Descriptor::new(Gpa(0xfff8), 16, false, Some(1)), Descriptor::new(WRITTEN, 8, true, None)],
        [Descriptor::new(Gpa(!7), 16, false, Some(1)), Descriptor::new(WRITTEN, 8, true, None)],
    ];
    rig.vm.memory().write(READ, &alloc(1, 9)).unwrap();
    for (number, [first, second]) in chains.into_iter().enumerate() {
        rig.put(0, first);
        rig.put(1, second);
        rig.offer(0);
        assert_eq!(rig.model.poll(1).progress, Progress::More);
        assert_eq!(rig.used(), (rig.offered, 0), "chain {number}");
    }
    assert_eq!(rig.vm.pasid_usage().live, 0, "nothing was granted that nobody is told of");
    assert_eq!(rig.model.counters().requests_unanswered, 11);
    // The queue is as good as ever.
    assert!(rig.request(&alloc(1, 9), 8).is_some());
}

#[test]
fn a_request_may_lie_in_pieces() {
    let mut rig = Rig::new(1);
    rig.vm.memory().write(READ, &alloc(0x1234, 0x1234)).unwrap();
    for byte in 0..12u16 {
        rig.put(byte, Descriptor::new(Gpa(READ.0 + u64::from(byte)), 1, false, Some(byte + 1)));
    }
    rig.put(12, Descriptor::new(Gpa(READ.0 + 12), 4, false, Some(13)));
    rig.put(13, Descriptor::new(WRITTEN, 3, true, Some(14)));
    rig.put(14, Descriptor::new(Gpa(WRITTEN.0 + 3), 0, true, Some(15)));
    rig.put(15, Descriptor::new(Gpa(WRITTEN.0 + 3), 5, true, None));
    rig.offer(0);
    let _ = rig.model.poll(1);
    assert_eq!(rig.used(), (1, 8));
    assert_eq!(rig.vm.memory().load_u64(WRITTEN), Ok(0x1234));
    assert_eq!(rig.vm.pasid_usage().live, 1);
}

#[test]
fn a_queue_that_makes_no_sense_needs_a_reset_and_gets_over_it() {
    let mut rig = Rig::new(10);
    assert!(rig.request(&alloc(5, 5), 8).is_some());
    assert_eq!(rig.write_status(Status::from_bits(0x4f)), RUNNING, "the bit is the device's");
    let index = Gpa(rig.layout.available.0 + available::INDEX);
    rig.vm.memory().store_u16(index, rig.offered.wrapping_add(SIZE + 1)).unwrap();
    let effects = rig.model.poll(1).effects;
    assert!(effects.configuration_changed);
    assert!(rig.model.status().needs_reset());
    // It is told once, and nothing more is done.
    rig.vm.memory().store_u16(index, rig.offered.wrapping_add(1)).unwrap();
    assert!(!rig.model.notify(REQUEST_QUEUE).schedule);
    assert_eq!(rig.model.poll(1).effects, Default::default());
    // The driver cannot talk it out of it.
    assert!(rig.write_status(RUNNING).needs_reset());

    assert_eq!(rig.write_status(Status::new()), Status::new());
    assert_eq!(rig.vm.pasid_usage().live, 0);
    rig.vm.memory().store_u16(index, 0).unwrap();
    rig.vm.memory().store_u16(Gpa(rig.layout.used.0 + used::INDEX), 0).unwrap();
    rig.offered = 0;
    rig.start();
    assert!(rig.request(&alloc(5, 5), 8).is_some());
    let counters = rig.model.counters();
    assert_eq!((counters.queue_errors, counters.resets), (1, 1));
}

#[test]
fn features_are_agreed_upon_or_not_at_all() {
    let plain = Features::new().with_version_1(true);
    let both = Revision::ALL.map(|revision| revision.feature().into_bits());
    let unacceptable = [
        Features::new().with_probe(true), // legacy
        plain.with_map_unmap(true),       // not offered
        plain.with_event_index(true),
        Features::from_bits(plain.into_bits() | 1 << 63),
        Features::from_bits(plain.into_bits() | both[0] | both[1]), // two languages
    ];
    let vm = vm_of(&SoftwareHost::new(), VmConfig::named("hostile"));
    let mut model = Model::new(Options::default(), vm);
    for features in unacceptable {
        model.set_driver_features(features);
        let _ = model.write_status(AGREED);
        assert_eq!(model.status(), ACKNOWLEDGED, "{features:?}");
        // Nor can the queues be used.
        let _ = model.write_status(RUNNING);
        assert_eq!(model.status(), ACKNOWLEDGED, "{features:?}");
    }
    model.set_driver_features(plain);
    let _ = model.write_status(AGREED);
    assert_eq!(model.status(), AGREED);
    model.set_driver_features(wanted(Revision::Experimental));
    assert_eq!(model.revision(), None, "too late");
    assert_eq!(model.counters().refused, 16);
}

#[test]
fn queues_are_set_up_where_and_when_they_can_be() {
    let vm = vm_of(&SoftwareHost::new(), VmConfig::named("hostile"));
    let mut model = Model::new(Options::default(), vm);
    let layout = QueueLayout::contiguous(REGION, SIZE).unwrap();
    assert_eq!(model.set_queue(REQUEST_QUEUE, layout), Err(QueueError::NotNow));
    model.set_driver_features(wanted(Revision::Experimental));
    let _ = model.write_status(AGREED);
    assert_eq!(model.set_queue(2, layout), Err(QueueError::NoSuchQueue(2)));
    let size = 2 * MAX_QUEUE_SIZE;
    let too_long = Err(QueueError::Layout(QueueLayoutError::BadSize(size)));
    assert_eq!(model.set_queue(REQUEST_QUEUE, QueueLayout { size, ..layout }), too_long);
    assert_eq!(model.set_queue(EVENT_QUEUE, layout), Ok(()));
    assert_eq!(model.set_queue(REQUEST_QUEUE, layout), Ok(()));
    let _ = model.write_status(RUNNING);
    assert_eq!(model.set_queue(REQUEST_QUEUE, layout), Err(QueueError::NotNow));
    assert!(model.notify(REQUEST_QUEUE).schedule);
    assert!(!model.notify(EVENT_QUEUE).schedule);
    assert!(!model.notify(u16::MAX).schedule);
    assert_eq!([0, 1, 2].map(|queue| model.max_queue_size(queue)), [64, 64, 0]);
}

#[test]
fn the_configuration_is_read_anywhere_and_written_nowhere() {
    let vm = vm_of(&SoftwareHost::new(), VmConfig::named("hostile"));
    let mut model = Model::new(Options::default(), vm);
    let mut config = [0xaa; 48];
    model.read_config(0, &mut config);
    assert_eq!(config[..8], 0x1000u64.to_le_bytes());
    assert_eq!(config[16..24], [0xff; 8]);
    assert_eq!(config[32..36], [64, 0, 0, 0]);
    assert_eq!(config[36..], [0; 12]);
    for offset in [38, 40, 41, usize::MAX] {
        let mut bytes = [0xaa; 4];
        model.read_config(offset, &mut bytes);
        assert_eq!(bytes, [0; 4]);
    }
    model.write_config(36, &[1]);
    model.read_config(36, &mut config[..1]);
    assert_eq!(config[0], 0);
    assert_eq!(model.counters().refused, 1);
}

#[test]
fn a_poll_takes_no_more_than_its_budget() {
    let mut rig = Rig::new(10);
    rig.put(0, Descriptor::new(READ, 16, false, Some(1)));
    rig.put(1, Descriptor::new(WRITTEN, 8, true, None));
    for _ in 0..SIZE {
        rig.offer(0);
    }
    for (budget, used) in [(0, 1), (1, 2), (5, 7), (u32::MAX, 16)] {
        let polled = rig.model.poll(budget);
        assert_eq!(rig.used().0, used);
        assert_eq!(polled.progress == Progress::Idle, used == SIZE);
        assert!(polled.effects.used_buffers, "this driver wants interrupts");
    }
    assert!(!rig.model.poll(1).effects.used_buffers, "there was nothing new");
    const { assert!(REQUESTS_PER_POLL <= MAX_QUEUE_SIZE as u32) };
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    /// Whatever is in the table, the ring and the buffers: no panic, every chain comes back or the
    /// device needs a reset, no more than the quota is out, and what is in use is the host's word.
    #[test]
    fn any_bytes_are_survived(
        table in prop::collection::vec(any::<(u8, u8, u8, u8)>(), SIZE as usize),
        heads in prop::collection::vec(0..SIZE + 2, 1..SIZE as usize),
        request in prop::collection::vec(any::<u8>(), 0..80),
        kind in prop::sample::select(vec![0u8, 1, 5, 9, 0xe0, 0xe1, 0xff]),
    ) {
        let mut rig = Rig::new(3);
        let mut bytes = request;
        bytes.resize(80, 0);
        bytes[0] = kind;
        rig.vm.memory().write(READ, &bytes).unwrap();
        for (index, (place, len, flags, next)) in (0..).zip(table) {
            let at = [READ.0, WRITTEN.0, 0xfff0, u64::MAX - 8][usize::from(place % 4)];
            let len = [0, 4, 8, 12, 16, 68, 72, u32::MAX][usize::from(len % 8)];
            let write = flags & 1 != 0;
            let next = (flags & 6 != 0).then_some(u16::from(next) % (SIZE + 2));
            rig.put(index, Descriptor::new(Gpa(at), len, write, next));
        }
        let count = heads.len() as u16;
        for head in heads {
            rig.offer(head);
        }
        let _ = rig.model.poll(u32::MAX);
        let (counters, usage) = (rig.model.counters(), rig.vm.pasid_usage());
        prop_assert!(rig.used().0 == count || rig.model.status().needs_reset());
        prop_assert!(usage.live <= 3);
        let out = counters.pasids_allocated - counters.pasids_freed;
        prop_assert_eq!(u64::from(usage.live), out);
    }
}

#[test]
fn random_requests_meet_the_host_s_own_books() {
    let mut rig = Rig::new(20);
    let mut held = Vec::new();
    for round in 0..200u32 {
        let bytes = alloc(1, 30 + round % 5);
        if let [number @ .., 0, _, _, _] = &rig.request(&bytes, 8).unwrap()[..] {
            held.push(u32::from_le_bytes(number.try_into().unwrap()));
        }
        if round % 3 == 0 && !held.is_empty() {
            let pasid = held.swap_remove(round as usize % held.len());
            let free = encoded(Request::FreePasid { pasid });
            assert_eq!(rig.request(&free, 4).unwrap()[0], 0);
            assert_eq!(rig.request(&free, 4).unwrap()[0], 6, "a second time");
        }
        assert_eq!(rig.vm.pasid_usage().live as usize, held.len());
    }
    assert_eq!(held.len(), 20, "the quota is reached");
    assert!(held.iter().all(|number| PasidRange::ALL.contains(pasid(*number))));
}
