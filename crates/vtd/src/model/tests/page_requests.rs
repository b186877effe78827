//! The page request queue: what gets into it, what does not, and the answers.

mod answers;
mod host;
mod overflow;

use iommu::{InvalidField, PrgIndex};

use super::*;

/// What devices asked for, and what they were told.
#[derive(Default)]
pub(in super::super) struct AskedFor {
    requests: VecDeque<PageRequest>,
    faults: VecDeque<PageFault>,
    /// Groups that are unanswered.
    outstanding: BTreeSet<(RequesterId, u16)>,
    /// Cookies that are.
    cookies: BTreeSet<u32>,
    pub(in super::super) answers: Vec<PageResponse>,
    fault_answers: Vec<(u32, ResponseCode)>,
    /// Whether nobody may say that a device's interface is broken.
    no_failures: bool,
}

impl AskedFor {
    pub(super) fn take_request(&mut self) -> Option<PageRequest> {
        self.requests.pop_front()
    }

    pub(super) fn take_fault(&mut self) -> Option<PageFault> {
        self.faults.pop_front()
    }

    pub(super) fn respond(&mut self, response: PageResponse) -> Result<(), PageResponseError> {
        let PageResponse { requester, group, .. } = response;
        self.answers.push(response);
        let known = self.outstanding.remove(&(requester, group.get()));
        known.then_some(()).ok_or(PageResponseError::NotOutstanding { requester, group })
    }

    pub(super) fn respond_fault(
        &mut self,
        cookie: u32,
        code: ResponseCode,
    ) -> Result<(), ObjectError> {
        self.fault_answers.push((cookie, code));
        if self.no_failures && code == ResponseCode::Failure {
            return Err(ObjectError::NotSupported);
        }
        let known = self.cookies.remove(&cookie);
        known.then_some(()).ok_or(ObjectError::Invalid(InvalidField::Cookie))
    }

    /// A device asks.
    pub(in super::super) fn ask(&mut self, request: PageRequest) {
        if request.wants_response() {
            self.outstanding.insert((request.requester, request.group.get()));
        }
        self.requests.push_back(request);
    }

    pub(super) fn ask_host(&mut self, cookie: u32, request: PageRequest) {
        self.cookies.insert(cookie);
        self.faults.push_back(PageFault { cookie, request });
    }
}

/// Where the ring of a page is.
const RING: u64 = 0x2_0000;
const RING_ENTRIES: u64 = 128;
const ROOT: u64 = 0x4000;
const CONTEXTS: u64 = 0x5000;
/// P, DTE, PASIDE, PRE; a directory of the smallest size.
const CONTEXT: u64 = 0x6000 | 0b1_1101;
const PPR: u32 = 1;
const PRO: u32 = 2;
const EVENT: Message = Message {
    address: Gpa(0xfee0_3000),
    data: 0x43,
    requester: Some(RequesterId::from_bits(0x80)),
};

/// A write of a page with PASID 5, the only one of its group.
pub(in super::super) fn request(group: u16) -> PageRequest {
    PageRequest {
        requester: device(),
        pasid: Pasid::new(5),
        privileged: false,
        execute: false,
        read: false,
        write: true,
        address: Iova(0x7fff_1234_5000),
        group: PrgIndex::new(group).unwrap(),
        last: true,
        private_data: None,
    }
}

/// As the ring has that.
fn entry(group: u64) -> [u64; 4] {
    [0x0000_0005_0080_0101, 0x7fff_1234_5006 | group << 3, 0, 0]
}

fn unit() -> Unit {
    unit_with(Options::default())
}

/// Translating, with an empty ring of a page, and all events unmasked.
fn unit_with(options: Options) -> Unit {
    let mut unit = Unit::with(options);
    unit.unmask_events();
    unit.store(Gpa(ROOT + 8), &[CONTEXTS | 1]);
    unit.store(Gpa(CONTEXTS), &[CONTEXT, 0]);
    let _ = unit.write64(0x20, ROOT | 0x400);
    let _ = unit.write64(0x90, QUEUE | 0x800);
    let _ = unit.write32(0x18, SRTP);
    let _ = unit.write32(0x18, TE | QIE);
    for _ in 0..100 {
        let _ = unit.poll();
    }
    assert_eq!(unit.read32(0x1c), TE | SRTP | QIE);
    let _ = unit.write64(0xc0, 0);
    let _ = unit.write64(0xc8, 0);
    let _ = unit.write64(0xd0, RING);
    unit.vm.forgotten();
    unit
}

impl Unit {
    fn ask(&self, request: PageRequest) {
        self.vm.state().asked_for.ask(request);
    }

    fn ring_entry(&self, index: u64) -> [u64; 4] {
        core::array::from_fn(|word| {
            let at = RING + 32 * index + 8 * word as u64;
            self.vm.memory().load_u64(Gpa(at)).unwrap()
        })
    }

    fn answers(&self) -> Vec<PageResponse> {
        core::mem::take(&mut self.vm.state().asked_for.answers)
    }
}

fn answer(group: u16, code: ResponseCode) -> PageResponse {
    let PageRequest { requester, pasid, group, .. } = request(group);
    PageResponse { requester, pasid, group, code }
}

#[test]
fn a_request_goes_into_the_ring() {
    let mut unit = unit();
    unit.ask(request(3));
    let polled = unit.poll();
    assert_eq!(polled.effects, Effects { page_request: Some(EVENT), ..Effects::default() });
    assert_eq!(unit.read32(0xdc), PPR);
    assert_eq!((unit.read64(0xc0), unit.read64(0xc8)), (0, 32));
    assert_eq!(unit.ring_entry(0), entry(3));
    assert_eq!(unit.ring_entry(1), [0; 4]);
    assert_eq!(unit.answers(), [], "the guest answers");
    assert_eq!(unit.model.counters().page_requests, 1);
}

#[test]
fn every_field_has_its_place() {
    let mut unit = unit();
    let privileged = PageRequest {
        privileged: true,
        execute: true,
        read: true,
        write: false,
        last: false,
        group: PrgIndex::new(0x1ff).unwrap(),
        ..request(0)
    };
    let plain = PageRequest { pasid: None, read: true, ..request(1) };
    let stop = PageRequest::stop_marker(device(), Pasid::new(5).unwrap());
    for request in [privileged, plain, stop] {
        unit.ask(request);
    }
    let _ = unit.poll();
    assert_eq!(unit.ring_entry(0), [0x0030_0005_0080_0101, 0x7fff_1234_5ff9, 0, 0]);
    assert_eq!(unit.ring_entry(1), [0x0080_0001, 0x7fff_1234_500f, 0, 0]);
    assert_eq!(unit.ring_entry(2), [0x0000_0005_0080_0101, 0x4, 0, 0]);
    assert_eq!(unit.answers(), []);
}

#[test]
fn one_event_until_it_is_serviced() {
    let mut unit = unit();
    unit.ask(request(0));
    unit.ask(request(1));
    assert_eq!(unit.poll().effects.page_request, Some(EVENT));
    unit.ask(request(2));
    assert_eq!(unit.poll().effects.page_request, None, "PPR is set still");
    let _ = unit.write32(0xdc, PPR);
    assert_eq!(unit.read32(0xdc), 0);
    unit.ask(request(3));
    assert_eq!(unit.poll().effects.page_request, Some(EVENT));
    // Masked, it is remembered, until it is serviced.
    let _ = unit.write32(0xdc, PPR);
    let _ = unit.write32(0xe0, 1 << 31);
    unit.ask(request(4));
    assert_eq!(unit.poll().effects.page_request, None);
    assert_eq!(unit.read32(0xe0), 0b11 << 30);
    let held = Message { requester: None, ..EVENT };
    assert_eq!(unit.write32(0xe0, 0).page_request, Some(held));
    let _ = unit.write32(0xe0, 1 << 31);
    let _ = unit.write32(0xdc, PPR);
    unit.ask(request(5));
    let _ = unit.poll();
    let _ = unit.write32(0xdc, PPR);
    assert_eq!(unit.read32(0xe0), 1 << 31);
    assert_eq!(unit.write32(0xe0, 0), Effects::default());
}

#[test]
fn what_the_tables_do_not_allow_is_answered_and_recorded() {
    let without = |bit: u64| [CONTEXT & !(1 << bit), 0];
    let other = PageRequest { pasid: Pasid::new(1 << 13), ..request(0) };
    let cases = [
        (without(4), request(0), Some(0x47)),
        (without(2), request(0), Some(0x47)),
        (without(3), request(0), Some(0x45)),
        (without(0), request(0), Some(0x41)),
        ([CONTEXT | 1 << 5, 0], request(0), Some(0x42)),
        ([CONTEXT, 0], other, Some(0x46)),
        // FPD.
        ([CONTEXT & !(1 << 4) | 2, 0], request(0), None),
        ([2, 0], request(0), None),
    ];
    for (context, request, code) in cases {
        let mut unit = unit();
        unit.store(Gpa(CONTEXTS), &context);
        unit.ask(request);
        let polled = unit.poll();
        assert_eq!(polled.effects.page_request, None);
        assert_eq!(polled.effects.fault, code.map(|_| FAULT_MESSAGE), "{context:x?}");
        assert_eq!((unit.read32(0xdc), unit.read64(0xc8)), (0, 0));
        let PageRequest { requester, pasid, group, .. } = request;
        let refused = PageResponse { requester, pasid, group, code: ResponseCode::Invalid };
        assert_eq!(unit.answers(), [refused], "{context:x?}");
        let pasid = u64::from(pasid.unwrap().get());
        // F, T2 and not T1: a page request.
        let high = code.map(|code: u64| 1 << 63 | pasid << 40 | code << 32 | 0x9000_0080);
        assert_eq!(unit.read64(0x228), high.unwrap_or(0), "{context:x?}");
        assert_eq!(unit.read64(0x220), high.map_or(0, |_| 0x7fff_1234_5000));
        assert_eq!(unit.model.counters().page_requests_refused, 1);
        assert_eq!(unit.model.counters().automatic_responses, 1);
    }
}

#[test]
fn only_the_last_of_a_refused_group_is_answered() {
    let mut unit = unit();
    unit.store(Gpa(CONTEXTS), &[CONTEXT & !(1 << 4), 0]);
    unit.ask(PageRequest { last: false, ..request(7) });
    unit.ask(PageRequest::stop_marker(device(), Pasid::new(5).unwrap()));
    unit.ask(request(7));
    let _ = unit.poll();
    assert_eq!(unit.answers(), [answer(7, ResponseCode::Invalid)]);
    assert_eq!(unit.model.counters().page_requests_refused, 3);
}

#[test]
fn no_translation_no_page_requests() {
    let mut unit = unit();
    let _ = unit.write32(0x18, QIE);
    unit.ask(request(1));
    let _ = unit.poll();
    assert_eq!(unit.answers(), [answer(1, ResponseCode::Invalid)]);
    assert_eq!(unit.read32(0x34), 0);
    // In legacy mode.
    let _ = unit.write64(0x20, ROOT);
    let _ = unit.write32(0x18, SRTP | QIE);
    let _ = unit.write32(0x18, TE | QIE);
    unit.ask(request(1));
    let _ = unit.poll();
    assert_eq!(unit.answers(), [answer(1, ResponseCode::Invalid)]);
    assert_eq!(unit.read64(0x228) >> 32 & 0xff, 0x32);
}

#[test]
fn a_unit_without_page_requests_has_none_of_it() {
    let mut unit = Unit::with(Options { page_requests: false, ..Options::default() });
    for offset in (0xc0..0xf0).step_by(4) {
        let effects = unit.write32(offset, u32::MAX);
        assert_eq!(effects, Effects::default());
        assert_eq!(unit.read32(offset), 0, "{offset:#x}");
    }
    unit.ask(request(1));
    let _ = unit.poll();
    assert_eq!(unit.answers(), [answer(1, ResponseCode::Invalid)]);
    assert_eq!(unit.read64(0xc8), 0);
}

#[test]
fn a_poll_takes_its_share() {
    let mut unit = unit();
    for group in 0..100 {
        unit.ask(request(group));
    }
    assert_eq!(unit.poll().progress, Progress::More);
    assert_eq!(unit.model.counters().page_requests, u64::from(PAGE_REQUESTS_PER_POLL));
    assert_eq!(unit.poll().progress, Progress::Idle);
    assert_eq!(unit.model.counters().page_requests, 100);
}

#[test]
fn a_reset_empties_the_registers() {
    let mut unit = unit();
    unit.ask(request(1));
    let _ = unit.poll();
    unit.ask(request(2));
    let _ = unit.model.reset();
    for offset in [0xc0, 0xc8, 0xd0] {
        assert_eq!(unit.read64(offset), 0);
    }
    assert_eq!((unit.read32(0xdc), unit.read32(0xe0), unit.read32(0xe4)), (0, 1 << 31, 0));
    // What was not taken yet is nobody's any more.
    let _ = unit.poll();
    assert_eq!(unit.read64(0xc8), 0);
    let answered = [2, 1].map(|group| answer(group, ResponseCode::Invalid));
    assert_eq!(unit.answers(), answered, "nor is what the guest has not answered");
    let _ = unit.model.reset();
    assert_eq!(unit.answers(), [], "once");
}

#[test]
fn private_data_goes_along_where_it_is_defined() {
    let private = PageRequest { private_data: Some([0x1111, 0x2222]), ..request(3) };
    let response = [0x0000_0005_0080_0039, 3 << 3, 0x1111, 0x2222];
    let mut unit = unit_with(Options { private_data: true, ..Options::default() });
    unit.ask(private);
    let _ = unit.poll();
    assert_eq!(unit.ring_entry(0), [0x0000_0005_0080_0301, 0x7fff_1234_501e, 0x1111, 0x2222]);
    unit.store(Gpa(QUEUE), &response);
    let _ = unit.write64(0x88, 32);
    let _ = unit.poll();
    assert_eq!(unit.answers(), [answer(3, ResponseCode::Success)]);

    let mut unit = self::unit();
    unit.ask(private);
    let _ = unit.poll();
    assert_eq!(unit.ring_entry(0), entry(3));
    unit.store(Gpa(QUEUE), &response);
    let _ = unit.write64(0x88, 32);
    let _ = unit.poll();
    assert_eq!((unit.read32(0x34), unit.read64(0xb0)), (IQE, 4));
}
