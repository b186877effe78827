//! What a guest kernel does about page requests: the queue, its handler, the answers, the drain.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::ops::Range;

use mem::Gpa;

use super::memory::{Ram, Space, PAGE};
use super::rig::{Rig, DEVICE};
use super::unit::{self, Unit};
use super::{check, equal, Guest, Verdict};

const PQH: u64 = 0xc0;
const PQT: u64 = 0xc8;
const PQA: u64 = 0xd0;
const PRS: u64 = 0xdc;
const PECTL: u64 = 0xe0;
const PEDATA: u64 = 0xe4;
const PEADDR: u64 = 0xe8;

/// PRS: a request is pending.
const PENDING: u32 = 1 << 0;
/// PRS: the queue overflowed.
pub const OVERFLOW: u32 = 1 << 1;

/// Where the page request event goes, and with what.
pub const PAGE_MESSAGE: (Gpa, u32) = (Gpa(0xfee0_2004), 0x4031);

/// Bytes of an entry.
const ENTRY: u64 = 32;
/// Bytes of the queue: one page.
const QUEUE: u64 = PAGE;

/// Response codes of VT-d 7.6.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u64)]
pub enum Code {
    Success = 0,
    Invalid = 1,
}

/// An entry of the queue.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Request {
    pub pasid: u32,
    pub page: u64,
    pub read: bool,
    pub write: bool,
    pub last: bool,
    pub group: u64,
}

impl Request {
    fn from_words([first, second]: [u64; 2]) -> Verdict<Self> {
        equal(first & 0xff, 1, "type of a page request")?;
        check(first >> 8 & 1 == 1, "a request with PASID")?;
        equal(first >> 16 & 0xffff, DEVICE.bits().into(), "source of a page request")?;
        Ok(Self {
            pasid: (first >> 32) as u32 & 0xf_ffff,
            read: second & 1 == 1,
            write: second >> 1 & 1 == 1,
            last: second >> 2 & 1 == 1,
            group: second >> 3 & 0x1ff,
            page: second & !0xfff,
        })
    }

    /// Says that the device asks nothing more; nobody answers it.
    pub fn is_stop_marker(&self) -> bool {
        self.last && !self.read && !self.write
    }
}

/// The guest's page request queue.
pub struct Pages {
    queue: Gpa,
    /// Where the next entry is read; PQH says the same unless the queue is squeezed.
    head: Cell<u64>,
    /// Requests seen, in order.
    pub seen: RefCell<Vec<Request>>,
}

impl Pages {
    /// Turns the queue on, as Linux does before translation.
    pub fn enable(rig: &mut Rig) -> Verdict<Self> {
        let queue = rig.ram.page();
        check(unit::read64(rig, unit::ECAP) >> 29 & 1 == 1, "ECAP.PRS")?;
        unit::write64(rig, PQH, 0);
        unit::write64(rig, PQT, 0);
        unit::write64(rig, PQA, queue.0);
        unit::write32(rig, PRS, OVERFLOW | PENDING);
        unit::write32(rig, PEDATA, PAGE_MESSAGE.1);
        unit::write32(rig, PEADDR, PAGE_MESSAGE.0 .0 as u32);
        unit::write32(rig, PECTL, 0);
        Ok(Self { queue, head: Cell::new(0), seen: RefCell::default() })
    }

    /// Takes all entries: the handler's part that the queue sees. Overflow is cleared when the queue is empty.
    pub fn take(&self, rig: &Rig) -> Verdict<Vec<Request>> {
        unit::write32(rig, PRS, PENDING);
        let (mut head, tail) = (self.head.get(), unit::read64(rig, PQT));
        let mut taken = Vec::new();
        while head != tail {
            let at = self.queue.0 + head;
            taken.push(Request::from_words([rig.ram.load(Gpa(at)), rig.ram.load(Gpa(at + 8))])?);
            head = (head + ENTRY) % QUEUE;
        }
        self.head.set(tail);
        unit::write64(rig, PQH, tail);
        if unit::read32(rig, PRS) & OVERFLOW != 0 && unit::read64(rig, PQT) == tail {
            unit::write32(rig, PRS, OVERFLOW);
        }
        self.seen.borrow_mut().extend(&taken);
        Ok(taken)
    }

    /// Whether requests wait in the queue.
    pub fn has_some(&self, rig: &Rig) -> bool {
        self.head.get() != unit::read64(rig, PQT)
    }

    /// How many wait.
    pub fn waiting(&self, rig: &Rig) -> u64 {
        (QUEUE + unit::read64(rig, PQT) - self.head.get()) % QUEUE / ENTRY
    }

    /// Leaves room for so many entries only, until the next are taken.
    pub fn squeeze(&self, rig: &Rig, room: u64) {
        unit::write64(rig, PQH, (unit::read64(rig, PQT) + (room + 1) * ENTRY) % QUEUE);
    }

    /// Whether the queue overflowed and that was not cleared.
    pub fn is_overflown(&self, rig: &Rig) -> bool {
        unit::read32(rig, PRS) & OVERFLOW != 0
    }
}

/// A page group response descriptor.
pub fn response(request: &Request, code: Code) -> [u64; 4] {
    let pasid = u64::from(request.pasid) << 32;
    let first = 9 | 1 << 4 | (code as u64) << 12 | u64::from(DEVICE.bits()) << 16 | pasid;
    [first, request.group << 3, 0, 0]
}

/// What becomes of a page that a device wants: a guest's handler of page faults.
pub trait Handler: FnMut(&mut Ram, &mut Space, &Request) -> Code {}

impl<F: FnMut(&mut Ram, &mut Space, &Request) -> Code> Handler for F {}

/// Every page is refused: the process is gone.
pub fn refuse(_: &mut Ram, _: &mut Space, _: &Request) -> Code {
    Code::Invalid
}

/// Pages of the space in `bounds` are made as they are wanted, others are refused.
pub fn anonymous(bounds: Vec<Range<u64>>) -> impl Handler {
    move |ram: &mut Ram, space: &mut Space, request: &Request| {
        let mine = request.pasid == space.pasid.get();
        if !mine || !bounds.iter().any(|range| range.contains(&request.page)) {
            return Code::Invalid;
        }
        space.allocate(ram, request.page, PAGE);
        Code::Success
    }
}

impl Guest {
    /// Takes what waits in the queue, has `handler` look after each page of `space`, and answers what is to be
    /// answered. How many requests there were.
    pub fn serve_pages(&mut self, space: &mut Space, handler: &mut impl Handler) -> Verdict<usize> {
        let pages = self.pages.as_ref().ok_or("no page request queue")?;
        let taken = pages.take(&self.rig)?;
        // The worst of a group is its answer.
        let mut worst = BTreeMap::new();
        for request in taken.iter().filter(|request| !request.is_stop_marker()) {
            let code = handler(&mut self.rig.ram, space, request);
            let group = worst.entry((request.pasid, request.group)).or_insert(Code::Success);
            if code == Code::Invalid {
                *group = code;
            }
        }
        let to_answer = taken.iter().filter(|request| request.last && !request.is_stop_marker());
        let answers = to_answer.filter_map(|request| {
            let code = worst.remove(&(request.pasid, request.group))?;
            Some(response(request, code))
        });
        let answers: Vec<_> = answers.collect();
        // No more than there is room for in the queue, with the wait descriptor.
        for some in answers.chunks(MAX_ANSWERS) {
            self.unit.invalidate(&self.rig, some)?;
        }
        Ok(taken.len())
    }

    /// Serves page requests for `space` until `done`.
    pub fn serve_until(
        &mut self,
        what: &str,
        space: &mut Space,
        mut handler: impl Handler,
        done: impl Fn(&Self, &Space) -> bool,
    ) -> Verdict {
        loop {
            let something = |guest: &Self| {
                let pages = guest.pages.as_ref().expect("a page request queue");
                done(guest, space) || pages.has_some(&guest.rig) || pages.is_overflown(&guest.rig)
            };
            self.rig.wait(what, || something(self))?;
            if done(self, space) {
                return Ok(());
            }
            self.serve_pages(space, &mut handler)?;
        }
    }

    /// What Linux does when a PASID's entry is gone: everything that was asked before is handled, in the queue and on
    /// its way there.
    pub fn drain(&mut self, space: &mut Space, mut handler: impl Handler) -> Verdict {
        self.serve_pages(space, &mut handler)?;
        for _ in 0..MAX_DRAINS {
            self.unit.drain(&self.rig, space.pasid)?;
            let pages = self.pages.as_ref().ok_or("no page request queue")?;
            let overflown = pages.is_overflown(&self.rig);
            if self.serve_pages(space, &mut handler)? == 0 && !overflown {
                return Ok(());
            }
        }
        Err("the drain comes to no end".to_owned())
    }
}

/// Answers that are queued at a time.
const MAX_ANSWERS: usize = unit::QUEUE_ENTRIES as usize - 2;
/// Rounds of a drain: a device whose PASID is gone asks for nothing new.
const MAX_DRAINS: u32 = 100;
