//! The queues on units that are slow, wrong or hostile.

use std::boxed::Box;
use std::collections::BTreeMap;

use iommu::{DomainId, PageRequest, ResponseCode};
use mem::{Gpa, GuestMemory, MemoryMap};
use pci::RequesterId;

use super::*;
use crate::spec::{Descriptor, PasidCacheScope};

const QUEUE: Gpa = Gpa(0x1000);
const STATUS: Gpa = Gpa(0x2000);
const RING: Gpa = Gpa(0x3000);
const PQH: u16 = 0xc0;
const PQT: u16 = 0xc8;
const PRS: u16 = 0xdc;
const FSTS: u16 = 0x34;
const ALL: Descriptor = Descriptor::PasidCache(PasidCacheScope::Global);

type Turn = Box<dyn Fn(&Hostile)>;

/// Registers that keep what is written, and what a test does to them at each pause.
struct Hostile {
    values: RefCell<BTreeMap<u16, u64>>,
    memory: MemoryMap,
    now: Cell<u64>,
    turn: Turn,
}

impl Hostile {
    fn new(turn: impl Fn(&Self) + 'static) -> Self {
        let memory = MemoryMap::anonymous(&[(Gpa(0), 0x8000)]).unwrap();
        // PRS is bit 29; the queue is on.
        let values = BTreeMap::from([(0x10, 1 << 29), (0x1c, 1 << 26)]);
        let values = RefCell::new(values);
        Self { values, memory, now: Cell::new(0), turn: Box::new(turn) }
    }

    /// One that completes every wait at once.
    fn willing() -> Self {
        Self::new(Self::complete)
    }

    /// Stores what the last wait in the queue wants stored.
    fn complete(&self) {
        let tail = self.get(0x88);
        let entry = Gpa(QUEUE.0 + (tail + 4096 - 32) % 4096);
        let data = self.memory.load_u64(entry).unwrap() >> 32;
        self.memory.store_u32(STATUS, data as u32).unwrap();
    }

    fn get(&self, offset: u16) -> u64 {
        self.values.borrow().get(&offset).copied().unwrap_or(0)
    }

    fn set(&self, offset: u16, value: u64) {
        self.values.borrow_mut().insert(offset, value);
    }

    fn queue(&self) -> InvalidationQueue<&Self, &Self, &MemoryMap> {
        let queue = InvalidationQueue::enable(self, self, &self.memory, QUEUE, STATUS);
        queue.ok().unwrap().with_timeout(TIMEOUT_NS)
    }

    fn requests(&self) -> PageRequestQueue<&Self, &MemoryMap> {
        PageRequestQueue::enable(self, &self.memory, RING, 0).ok().unwrap()
    }
}

impl Registers for Hostile {
    fn read32(&self, offset: u16) -> u32 {
        self.get(offset) as u32
    }

    fn write32(&self, offset: u16, value: u32) {
        match offset {
            FSTS | PRS => self.set(offset, self.get(offset) & !u64::from(value)),
            _ => self.set(offset, value.into()),
        }
    }

    fn read64(&self, offset: u16) -> u64 {
        self.get(offset)
    }

    fn write64(&self, offset: u16, value: u64) {
        self.set(offset, value);
    }
}

impl Clock for Hostile {
    fn now_ns(&self) -> u64 {
        self.now.get()
    }

    fn pause(&self) {
        self.now.set(self.now.get() + PAUSE_NS);
        (self.turn)(self);
    }
}

fn nobody(_: &[PageRequest]) -> Option<ResponseCode> {
    panic!("there is nothing to decide")
}

#[test]
fn a_unit_that_does_nothing_is_given_up() {
    let unit = Hostile::new(|_| {});
    let mut queue = unit.queue();
    let deadline = SubmitError::Deadline { timeout_ns: TIMEOUT_NS };
    assert_eq!(queue.submit(&[ALL], false), Err(deadline));
    assert_eq!(queue.submit(&[ALL], false), Err(SubmitError::GivenUp));
    unit.set(0x1c, 0);
    let refused = InvalidationQueue::enable(&unit, &unit, &unit.memory, QUEUE, STATUS);
    assert_eq!(refused.err(), Some(SubmitError::NotEnabled));
}

#[test]
fn a_device_that_does_not_answer_is_named() {
    let unit = Hostile::new(|unit| {
        unit.set(0xb0, 0x0080_0000_0003);
        unit.set(FSTS, 1 << 6);
    });
    let mut queue = unit.queue();
    let source_id = RequesterId::from_bits(0x80);
    assert_eq!(queue.submit(&[ALL], false), Err(SubmitError::DeviceTimeout { source_id }));
    assert_eq!(unit.get(FSTS), 0, "cleared, so that the queue goes on");
}

#[test]
fn errors_that_never_end_end() {
    let unit = Hostile::new(|unit| {
        unit.set(0x80, u64::MAX);
        unit.set(FSTS, 1 << 4);
    });
    let deadline = SubmitError::Deadline { timeout_ns: TIMEOUT_NS };
    assert_eq!(unit.queue().submit(&[ALL], false), Err(deadline));
}

#[test]
fn a_submission_fits_the_queue() {
    let unit = Hostile::willing();
    let mut queue = unit.queue();
    let many = [ALL; MAX_DESCRIPTORS + 1];
    let too_many = SubmitError::TooMany { count: many.len(), limit: MAX_DESCRIPTORS };
    assert_eq!(queue.submit(&many, false), Err(too_many));
    // Round and round.
    for _ in 0..3 {
        assert_eq!(queue.submit(&many[1..], false), Ok(()));
    }
}

#[test]
fn a_tail_that_is_no_entry_is_an_error() {
    let unit = Hostile::willing();
    let (mut queue, mut requests) = (unit.queue(), unit.requests());
    for tail in [4096, 16, u64::MAX, 1 << 63] {
        unit.set(PQT, tail);
        unit.set(PQH, 32);
        let error = requests.handle(&mut queue, &mut nobody);
        assert_eq!(error, Err(PageQueueError::Tail { tail }));
        assert_eq!((unit.get(PQH), unit.get(PQT)), (0, 0));
        assert_eq!(requests.handle(&mut queue, &mut nobody), Ok(Handled::default()));
    }
}

#[test]
fn entries_of_any_bits_are_counted_and_bounded() {
    let unit = Hostile::willing();
    let (mut queue, mut requests) = (unit.queue(), unit.requests());
    for at in (0..4096).step_by(8) {
        unit.memory.store_u64(Gpa(RING.0 + at), u64::MAX).unwrap();
    }
    unit.set(PQT, 4096 - 32);
    let handled = requests.handle(&mut queue, &mut nobody).unwrap();
    assert_eq!((handled.entries, handled.unknown), (127, 127));
    // Each the first of another group: they are kept, to a bound.
    for round in 0..40u64 {
        for (index, at) in (0..4096).step_by(32).enumerate() {
            let group = (round * 128 + index as u64) % 512;
            let pasid = round << 32;
            unit.memory.store_u64(Gpa(RING.0 + at), 0x0080_0101 | pasid).unwrap();
            unit.memory.store_u64(Gpa(RING.0 + at + 8), group << 3 | 1).unwrap();
            unit.memory.store_u64(Gpa(RING.0 + at + 16), 0).unwrap();
            unit.memory.store_u64(Gpa(RING.0 + at + 24), 0).unwrap();
        }
        unit.set(PQH, 0);
        unit.set(PQT, 4096 - 32);
        let handled = requests.handle(&mut queue, &mut nobody).unwrap();
        assert_eq!(handled.entries, 127);
    }
}

#[test]
fn what_is_left_open_is_bounded() {
    let unit = Hostile::willing();
    let (mut queue, mut requests) = (unit.queue(), unit.requests());
    for pasid in 0..(MAX_DEFERRED as u64 + 1) {
        unit.memory.store_u64(RING, 0x0080_0101 | pasid << 32).unwrap();
        unit.memory.store_u64(Gpa(RING.0 + 8), 0b101).unwrap();
        unit.set(PQH, 0);
        unit.set(PQT, 32);
        let before = queue_position(&unit);
        requests.handle(&mut queue, &mut |_| None).unwrap();
        let answered = queue_position(&unit) != before;
        assert_eq!(answered, pasid == MAX_DEFERRED as u64, "only what is beyond is answered");
    }
    assert_eq!(requests.open_groups(), MAX_DEFERRED);
}

fn queue_position(unit: &Hostile) -> u64 {
    unit.get(0x88)
}

#[test]
fn a_drain_of_a_ring_that_fills_itself_ends() {
    let space = (RequesterId::from_bits(0x80), Pasid::new(5));
    let unit = Hostile::new(|unit| {
        unit.complete();
        let tail = unit.get(PQT);
        unit.memory.store_u64(Gpa(RING.0 + tail), 0x0000_0005_0080_0101).unwrap();
        unit.memory.store_u64(Gpa(RING.0 + tail + 8), 0b101).unwrap();
        unit.set(PQT, (tail + 32) % 4096);
    });
    let (mut queue, mut requests) = (unit.queue().with_timeout(u64::MAX), unit.requests());
    let drained = requests.drain(&mut queue, space, DomainId(1), &mut nobody);
    let rounds = DRAIN_ROUNDS;
    assert_eq!(drained, Err(DrainError::Requests { source_id: space.0, rounds }));
    let mut queue = queue.with_timeout(TIMEOUT_NS);
    let drained = requests.drain(&mut queue, space, DomainId(1), &mut nobody);
    assert_eq!(drained, Err(DrainError::Deadline { timeout_ns: TIMEOUT_NS }));
}

#[test]
fn a_unit_that_is_gone_offers_nothing() {
    let unit = Hostile::willing();
    for extended in [0, u64::MAX] {
        unit.set(0x10, extended);
        let refused = PageRequestQueue::enable(&unit, &unit.memory, RING, 0).err();
        assert_eq!(refused, Some(PageQueueError::NotOffered));
    }
}
