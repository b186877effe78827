//! The driver on a device that keeps to nothing.

mod common;

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use common::*;
use iommu::pasid::{AllocError, CommandError, Consumer, PasidAllocator, Scope};
use iommu::PasidRange;
use mem::{Gpa, GuestMemory, MemoryMap};
use virtio_iommu::driver::{
    Driver, Error, ProtocolError, SetupError, SharedDriver, Transport, REGION_SIZE,
};
use virtio_iommu::spec::{
    available, used, Features, QueueLayout, QueueLayoutError, RequestStatus, Revision, Status,
    UsedElement,
};
use zerocopy::IntoBytes;

/// What the device does with the next request.
#[derive(Clone, Debug)]
enum Act {
    /// Gives the chain back with these bytes, and says that it wrote so many.
    Answer(Vec<u8>, u32),
    /// Gives a chain of this number back.
    GiveBack(u32),
    /// Says that it gave so many chains back.
    Index(u16),
    /// Nothing.
    Silence,
    /// Asks for a reset.
    NeedsReset,
}

#[derive(Debug)]
struct State {
    memory: Arc<MemoryMap>,
    features: Features,
    status: Status,
    /// Bits of the status that stay as they are.
    stuck: Status,
    /// Bits of the status that stay clear.
    clear: Status,
    probe_size: u32,
    max_queue_size: u16,
    layout: Option<QueueLayout>,
    taken: u16,
    used: u16,
    acts: VecDeque<Act>,
    /// The requests that it saw.
    requests: Vec<Vec<u8>>,
}

#[derive(Clone, Debug)]
struct Liar(Arc<Mutex<State>>);

impl Liar {
    fn new() -> Self {
        let features = Features::new().with_version_1(true).with_probe(true);
        let revision = Revision::Experimental.feature();
        let memory = MemoryMap::anonymous(&[(Gpa(0), 0x1_0000)]).unwrap();
        Self(Arc::new(Mutex::new(State {
            memory: Arc::new(memory),
            features: Features::from_bits(features.into_bits() | revision.into_bits()),
            status: Status::new(),
            stuck: Status::new(),
            clear: Status::new(),
            probe_size: 64,
            max_queue_size: 64,
            layout: None,
            taken: 0,
            used: 0,
            acts: VecDeque::new(),
            requests: Vec::new(),
        })))
    }

    fn change(self, change: impl FnOnce(&mut State)) -> Self {
        change(&mut self.0.lock().unwrap());
        self
    }

    fn will(&self, acts: impl IntoIterator<Item = Act>) {
        self.0.lock().unwrap().acts.extend(acts);
    }

    fn driver(&self) -> Result<TestDriver<Self>, SetupError> {
        let memory = self.0.lock().unwrap().memory.clone();
        driver_of(self.clone(), memory)
    }

    fn requests(&self) -> Vec<Vec<u8>> {
        self.0.lock().unwrap().requests.clone()
    }
}

impl State {
    /// The request that the driver offered, by the two descriptors that it always uses.
    fn take(&mut self) -> Option<(u16, Gpa)> {
        let layout = self.layout?;
        let entry = available::entry(self.taken, layout.size);
        let head = self.memory.load_u16(Gpa(layout.available.0 + entry)).unwrap();
        self.taken = self.taken.wrapping_add(1);
        let at = layout.descriptors.0 + 16 * u64::from(head);
        let read = Gpa(self.memory.load_u64(Gpa(at)).unwrap());
        let mut bytes = vec![0; self.memory.load_u32(Gpa(at + 8)).unwrap() as usize];
        self.memory.read(read, &mut bytes).unwrap();
        self.requests.push(bytes);
        Some((head, Gpa(self.memory.load_u64(Gpa(at + 16)).unwrap())))
    }

    fn give_back(&mut self, id: u32, len: u32) {
        let layout = self.layout.unwrap();
        let element = UsedElement { id: id.into(), len: len.into() };
        let entry = used::entry(self.used, layout.size);
        self.memory.write(Gpa(layout.used.0 + entry), element.as_bytes()).unwrap();
        self.used = self.used.wrapping_add(1);
        self.memory.store_u16(Gpa(layout.used.0 + used::INDEX), self.used).unwrap();
    }
}

impl Transport for Liar {
    fn features(&mut self) -> Features {
        self.0.lock().unwrap().features
    }

    fn set_driver_features(&mut self, _: Features) {}

    fn status(&mut self) -> Status {
        let state = self.0.lock().unwrap();
        let kept = state.status.into_bits() & !state.clear.into_bits();
        Status::from_bits(kept | state.stuck.into_bits())
    }

    fn write_status(&mut self, status: Status) {
        self.0.lock().unwrap().status = status;
    }

    fn read_config(&mut self, offset: usize, data: &mut [u8]) {
        let mut config = [0; 64];
        config[32..36].copy_from_slice(&self.0.lock().unwrap().probe_size.to_le_bytes());
        data.copy_from_slice(&config[offset..offset + data.len()]);
    }

    fn max_queue_size(&mut self, _: u16) -> u16 {
        self.0.lock().unwrap().max_queue_size
    }

    fn set_queue(&mut self, _: u16, layout: QueueLayout) {
        self.0.lock().unwrap().layout = Some(layout);
    }

    fn notify(&mut self, _: u16) {
        let mut state = self.0.lock().unwrap();
        let (head, written) = state.take().unwrap();
        match state.acts.pop_front().unwrap() {
            Act::Answer(bytes, len) => {
                state.memory.write(written, &bytes).unwrap();
                state.give_back(head.into(), len);
            }
            Act::GiveBack(id) => state.give_back(id, 8),
            Act::Index(index) => {
                let used = state.layout.unwrap().used;
                state.memory.store_u16(Gpa(used.0 + used::INDEX), index).unwrap();
            }
            Act::Silence => {}
            Act::NeedsReset => state.stuck.set_needs_reset(true),
        }
    }
}

/// An answer that grants `number`.
fn grant(number: u32) -> Act {
    let [a, b, c, d] = number.to_le_bytes();
    Act::Answer(vec![a, b, c, d, 0, 0, 0, 0], 8)
}

fn status(number: u8) -> Act {
    Act::Answer(vec![0, 0, 0, 0, number, 0, 0, 0], 8)
}

const OK: Act = Act::Answer(Vec::new(), 4);

#[test]
fn a_device_that_cannot_be_set_up_is_named() {
    let no_reset = |state: &mut State| state.stuck = Status::new().with_acknowledge(true);
    let all_ones = |state: &mut State| state.stuck = Status::from_bits(0xff);
    let legacy = |state: &mut State| state.features.set_version_1(false);
    let plain = |state: &mut State| state.features = Features::new().with_version_1(true);
    let refuses = |state: &mut State| state.clear.set_features_ok(true);
    let no_start = |state: &mut State| state.clear.set_driver_ok(true);
    let no_queue = |state: &mut State| state.max_queue_size = 0;
    let short_queue = |state: &mut State| state.max_queue_size = 1;
    let patience_ns = PATIENCE;
    type Change = fn(&mut State);
    let cases: [(Change, SetupError); 8] = [
        (no_reset, SetupError::ResetTimedOut { patience_ns }),
        (all_ones, SetupError::ResetTimedOut { patience_ns }),
        (legacy, SetupError::Legacy),
        (plain, SetupError::NoPasidRequests),
        (refuses, SetupError::FeaturesRefused),
        (no_start, SetupError::NotStarted),
        (no_queue, SetupError::QueueTooShort(0)),
        (short_queue, SetupError::QueueTooShort(1)),
    ];
    for (change, error) in cases {
        let liar = Liar::new().change(change);
        assert_eq!(liar.driver().unwrap_err(), error);
        let told = liar.0.lock().unwrap().status.failed();
        assert_eq!(told, !matches!(error, SetupError::ResetTimedOut { .. }), "{error:?}");
    }
}

#[test]
fn an_odd_queue_size_and_a_huge_probe_size_are_no_reason_to_fail() {
    let liar = Liar::new().change(|state| {
        state.max_queue_size = 7;
        state.probe_size = u32::MAX;
    });
    let mut driver = liar.driver().unwrap();
    assert_eq!(liar.0.lock().unwrap().layout.unwrap().size, 4);
    assert_eq!(driver.probe(1), Err(Error::Refused(RequestStatus::Unsupported)));
    liar.will([grant(7)]);
    assert_eq!(driver.alloc(range(7, 7)), Ok(pasid(7)));
}

#[test]
fn a_region_that_is_no_place_for_a_queue_is_the_caller_s_mistake() {
    let at = |region: u64| {
        let liar = Liar::new();
        let memory = liar.0.lock().unwrap().memory.clone();
        Driver::new(liar, memory, Gpa(region), Ticks::default(), PATIENCE).unwrap_err()
    };
    let error = QueueLayoutError::Misaligned(Gpa(0x4008));
    assert_eq!(at(0x4008), SetupError::BadRegion { region: Gpa(0x4008), error });
    let region = Gpa(u64::MAX - 0xff);
    let error = QueueLayoutError::Wraps(region);
    assert_eq!(at(region.0), SetupError::BadRegion { region, error });
    assert!(matches!(at(0x1_0000 - REGION_SIZE + 16), SetupError::Memory(_)));
}

#[test]
fn numbers_that_are_no_pasid_are_given_back() {
    let liar = Liar::new();
    let mut driver = liar.driver().unwrap();
    for (number, round) in [0, 0x10_0000, u32::MAX].into_iter().zip(1..) {
        liar.will([grant(number), OK]);
        assert_eq!(driver.alloc(range(10, 20)), Err(Error::BadNumber(number)));
        let [a, b, c, d] = number.to_le_bytes();
        let free = vec![0xe1, 0, 0, 0, a, b, c, d, 0, 0, 0, 0];
        assert_eq!(liar.requests().last(), Some(&free));
        assert_eq!(driver.counters().given_back, round);
    }
    // Zero is refused even where the range has it.
    liar.will([grant(0), OK]);
    assert_eq!(driver.alloc(range(0, 20)), Err(Error::BadNumber(0)));
    // One that somebody may have is not given back.
    for number in [9, 21, 0xf_ffff] {
        liar.will([grant(number)]);
        assert_eq!(driver.alloc(range(10, 20)), Err(Error::OutOfRange(pasid(number))));
    }
    assert_eq!(driver.counters().given_back, 4);
    // That a number is in use already is for the caller's books to find out.
    liar.will([grant(10), grant(10)]);
    assert_eq!(driver.alloc(range(10, 20)), driver.alloc(range(10, 20)));
}

#[test]
fn an_answer_without_a_status_is_no_answer() {
    let liar = Liar::new();
    let mut driver = liar.driver().unwrap();
    for len in [0, 4, 7] {
        liar.will([Act::Answer(vec![7, 0, 0, 0, 0, 0, 0, 0], len)]);
        assert_eq!(driver.alloc(PasidRange::ALL), Err(Error::Unanswered));
    }
    // It says that it wrote, and did not: what stood there before says nothing.
    liar.will([Act::Answer(Vec::new(), 8)]);
    assert_eq!(driver.alloc(PasidRange::ALL), Err(Error::UnknownStatus(0xff)));
    liar.will([status(9), status(200), status(3)]);
    assert_eq!(driver.alloc(PasidRange::ALL), Err(Error::UnknownStatus(9)));
    assert_eq!(driver.alloc(PasidRange::ALL), Err(Error::UnknownStatus(200)));
    let refused = Err(Error::Refused(RequestStatus::DeviceError));
    assert_eq!(driver.alloc(PasidRange::ALL), refused);
    liar.will([grant(7)]);
    assert_eq!(driver.alloc(PasidRange::ALL), Ok(pasid(7)));
}

#[test]
fn a_device_that_breaks_the_queue_s_rules_is_not_believed_any_more() {
    let too_many = |got| ProtocolError::TooMany { got, outstanding: 1 };
    let cases = [
        (Act::Index(2), too_many(2)),
        (Act::Index(u16::MAX), too_many(u16::MAX)),
        (Act::GiveBack(1), ProtocolError::NotOut(1)),
        (Act::GiveBack(2), ProtocolError::NotOut(2)),
        (Act::GiveBack(16), ProtocolError::NotOut(16)),
        (Act::GiveBack(0x1_0000), ProtocolError::NotOut(0x1_0000)),
        (Act::GiveBack(u32::MAX), ProtocolError::NotOut(u32::MAX)),
        (Act::Answer(Vec::new(), 9), ProtocolError::TooLong { got: 9, room: 8 }),
        (Act::Answer(Vec::new(), u32::MAX), ProtocolError::TooLong { got: u32::MAX, room: 8 }),
    ];
    for (act, error) in cases {
        let liar = Liar::new();
        let mut driver = liar.driver().unwrap();
        liar.will([act]);
        assert_eq!(driver.alloc(PasidRange::ALL), Err(Error::Broken(error)));
        // Not another request.
        assert_eq!(driver.free(pasid(1)), Err(Error::Broken(error)));
        assert_eq!(liar.requests().len(), 1);
    }
}

#[test]
fn a_chain_that_comes_back_twice_breaks_the_rules() {
    let liar = Liar::new();
    let mut driver = liar.driver().unwrap();
    liar.will([grant(7), Act::Silence]);
    driver.alloc(PasidRange::ALL).unwrap();
    let late = Error::TimedOut { patience_ns: PATIENCE };
    assert_eq!(driver.alloc(PasidRange::ALL), Err(late));
    let mut state = liar.0.lock().unwrap();
    state.give_back(0, 8);
    state.give_back(0, 8);
    drop(state);
    let error = ProtocolError::TooMany { got: 2, outstanding: 1 };
    assert_eq!(driver.alloc(PasidRange::ALL), Err(Error::Broken(error)));
}

#[test]
fn a_device_in_need_of_a_reset_is_not_waited_for() {
    let liar = Liar::new();
    let mut driver = liar.driver().unwrap();
    liar.will([Act::NeedsReset]);
    assert_eq!(driver.alloc(PasidRange::ALL), Err(Error::NeedsReset));
    assert_eq!(driver.alloc(PasidRange::ALL), Err(Error::NeedsReset));
    assert_eq!(liar.requests().len(), 1);
    assert!(matches!(driver.close(), Err(SetupError::ResetTimedOut { .. })));
}

#[test]
fn a_late_answer_is_taken_for_what_it_is() {
    let late = |liar: &Liar, bytes: &[u8]| {
        let mut driver = liar.driver().unwrap();
        liar.will([Act::Silence]);
        assert!(matches!(driver.alloc(PasidRange::ALL), Err(Error::TimedOut { .. })));
        let mut state = liar.0.lock().unwrap();
        let read = state.memory.load_u64(Gpa(state.layout.unwrap().descriptors.0 + 16)).unwrap();
        state.memory.write(Gpa(read), bytes).unwrap();
        state.give_back(0, 8);
        drop(state);
        driver
    };
    // A refusal is nothing to give back.
    let liar = Liar::new();
    let mut driver = late(&liar, &[7, 0, 0, 0, 8, 0, 0, 0]);
    liar.will([grant(8)]);
    assert_eq!(driver.alloc(PasidRange::ALL), Ok(pasid(8)));
    assert_eq!(liar.requests().len(), 2);
    // A grant goes back first; that the device is silent about it costs one slot, not the driver.
    let liar = Liar::new();
    let mut driver = late(&liar, &[7, 0, 0, 0, 0, 0, 0, 0]);
    liar.will([Act::Silence, grant(8)]);
    assert_eq!(driver.alloc(PasidRange::ALL), Ok(pasid(8)));
    assert_eq!(liar.requests()[1], [0xe1, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!((driver.counters().given_back, driver.counters().timed_out), (1, 2));
}

#[test]
fn a_device_that_wants_no_notification_and_sleeps_misses_the_deadline() {
    let liar = Liar::new();
    let mut driver = liar.driver().unwrap();
    let state = liar.0.lock().unwrap();
    state.memory.store_u16(state.layout.unwrap().used, used::NO_NOTIFY).unwrap();
    drop(state);
    assert!(matches!(driver.alloc(PasidRange::ALL), Err(Error::TimedOut { .. })));
    assert!(liar.requests().is_empty());
}

#[test]
fn a_guest_s_allocator_finds_out_what_the_driver_cannot_know() {
    let liar = Liar::new();
    let driver = SharedDriver::new(liar.driver().unwrap());
    let allocator = PasidAllocator::guest(Arc::new(driver));
    let consumer = Consumer::init(&allocator, Scope::Bus(0)).unwrap();
    liar.will([grant(10)]);
    assert_eq!(consumer.alloc(range(10, 20), ()), Ok(pasid(10)));
    // In use, and in the range or not: never given back.
    liar.will([grant(10), grant(10)]);
    let in_use = Err(AllocError::InUse { pasid: pasid(10) });
    assert_eq!(consumer.alloc(range(10, 20), ()), in_use);
    assert_eq!(consumer.alloc(range(11, 20), ()), in_use);
    assert_eq!(liar.requests().len(), 3);
    // Not asked for, and nobody's: given back.
    liar.will([grant(9), OK]);
    let (got, wanted) = (pasid(9), range(11, 20));
    let unasked = AllocError::Unasked { pasid: got, range: wanted };
    assert_eq!(consumer.alloc(wanted, ()), Err(unasked));
    assert_eq!(liar.requests()[4][..8], [0xe1, 0, 0, 0, 9, 0, 0, 0]);
    let failures = [
        (grant(0x10_0000), CommandError::NoPasid { number: 0x10_0000 }),
        (status(8), CommandError::NoneAvailable),
        (status(6), CommandError::NoneAvailable),
        (status(3), CommandError::Status { status: 3 }),
        (status(77), CommandError::Status { status: 77 }),
        (Act::Silence, CommandError::Deadline),
        (Act::Answer(Vec::new(), 0), CommandError::Broken),
        (Act::NeedsReset, CommandError::Broken),
    ];
    for (act, error) in failures {
        // Numbers that are no PASID are given back, which needs an answer.
        let gives_back = matches!(error, CommandError::NoPasid { .. });
        liar.will([act]);
        liar.will(gives_back.then_some(OK));
        assert_eq!(consumer.alloc(PasidRange::ALL, ()), Err(AllocError::Command(error)));
    }
}
