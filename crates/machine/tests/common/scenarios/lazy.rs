//! Memory that is not there until it is touched, by whom ever.

use dsa::spec::{CompletionRecord, Status};
use iommu::{PageResponse, PrgIndex, ResponseCode, Vm};

use super::super::accelerator::patient_copy;
use super::super::memory::Ram;
use super::super::pages::{anonymous, refuse, Handler, PAGE_MESSAGE};
use super::super::{
    check, equal, succeeded, Code, Guest, Queue, Request, Rig, Setup, Space, Verdict, DEDICATED,
    DEVICE, OTHER, PAGE, RAM,
};
use super::{DESTINATION, RECORD, SOURCE};

/// Pages that a copy covers.
pub const PAGES: u64 = 4;
/// Bytes of a copy: it begins and ends within a page.
pub const LEN: u32 = (PAGES * PAGE) as u32 - 200;
/// From one copy's memory to the next's.
const APART: u64 = 16 * PAGE;
/// Where in its first page a copy begins.
const SKEW: u64 = 72;

/// What a page of the source holds once it is there.
fn content(page: u64) -> u64 {
    page ^ 0x0123_4567_89ab_0000
}

/// A guest whose memory comes when it is touched.
pub fn boot(setup: Setup) -> Verdict<Guest> {
    Guest::boot_paging(Rig::new(setup))
}

/// A process without any memory yet, and its queue.
pub fn process(guest: &mut Guest, queue: Queue, number: u32) -> Verdict<Space> {
    let space = guest.process(number)?;
    guest.accelerator.open(&guest.rig, queue, space.pasid)?;
    Ok(space)
}

/// Submits copy number `index` of memory that nobody has touched.
pub fn submit(guest: &Guest, queue: Queue, index: u64) {
    guest.accelerator.store(&guest.rig, queue, &patient_copy(addresses(index), LEN));
}

/// From where to where copy number `index` goes, and where its record is: no two share a page.
fn addresses(index: u64) -> [u64; 3] {
    let apart = index * APART;
    [SOURCE + apart + SKEW, DESTINATION + apart + SKEW, RECORD + apart]
}

/// Makes the pages of `copies` copies as they are wanted, with what the source is to hold.
pub fn pager(copies: u64) -> impl Handler {
    let len = copies * APART;
    let areas = [SOURCE, DESTINATION, RECORD & !(PAGE - 1)].map(|at| at..at + len);
    let source = areas[0].clone();
    let mut give = anonymous(areas.into());
    move |ram: &mut Ram, space: &mut Space, request: &Request| {
        let there = space.has(request.page);
        let code = give(ram, space, request);
        if code == Code::Success && !there && source.contains(&request.page) {
            ram.stamp(space.page(request.page), content(request.page));
        }
        code
    }
}

/// The record of copy number `index`, if its page is there and it is written.
pub fn record(guest: &Guest, space: &Space, index: u64) -> Option<CompletionRecord> {
    let at = addresses(index)[2];
    if !space.has(at) {
        return None;
    }
    let bytes = space.read(&guest.rig.ram, at, CompletionRecord::SIZE);
    let record = CompletionRecord::from_bytes(&bytes.try_into().expect("a record's length"));
    (record.status.into_bits() != 0).then_some(record)
}

/// Serves the guest's page faults until `copies` copies are complete, and checks what they moved.
pub fn complete(guest: &mut Guest, space: &mut Space, copies: u64) -> Verdict {
    let done = |guest: &Guest, space: &Space| {
        (0..copies).all(|index| record(guest, space, index).is_some())
    };
    guest.serve_until("the copies", space, pager(copies), done)?;
    (0..copies).try_for_each(|index| {
        succeeded(&record(guest, space, index).ok_or("no record")?)?;
        is_copied(guest, space, index)
    })
}

fn is_copied(guest: &Guest, space: &Space, index: u64) -> Verdict {
    let [from, to, _] = addresses(index);
    let read = |at| space.read(&guest.rig.ram, at, LEN as usize);
    let source = read(from);
    check(read(to) == source, &format!("copy {index} has the source's content"))?;
    let word = u64::from_le_bytes(source[..8].try_into().expect("eight bytes"));
    equal(word, content(from & !(PAGE - 1)), "the source's first word")
}

/// Nobody owes anybody an answer, and the engines take up those that were given.
pub fn nothing_is_left(guest: &Guest) -> Verdict {
    let counters = guest.rig.machine.vm().page_request_counters();
    equal(counters.outstanding, 0, "groups outstanding")?;
    let unexpected = guest.rig.device.counters().page_responses_unexpected;
    equal(unexpected, 0, "answers to what was not asked")?;
    guest.rig.wait("the end of waiting", || guest.rig.device.counters().blocked == 0)
}

/// A process that has touched nothing has its memory copied: each page is asked for, for what it is wanted, and the
/// copy completes as if all had been there.
pub fn first_touch(setup: Setup) -> Verdict {
    let mut guest = boot(setup)?;
    let mut space = process(&mut guest, DEDICATED, 0x10)?;
    submit(&guest, DEDICATED, 0);
    complete(&mut guest, &mut space, 1)?;
    let seen = guest.pages.as_ref().ok_or("no queue")?.seen.borrow().clone();
    let asked = |at: u64, write: bool| {
        seen.iter().any(|request| request.page == at && request.write == write && request.last)
    };
    let [from, to, last] = addresses(0).map(|at| at & !(PAGE - 1));
    for page in 0..PAGES {
        check(asked(from + page * PAGE, false), "a page of the source was asked for, to read")?;
        check(asked(to + page * PAGE, true), "a page of the destination, to write")?;
    }
    check(asked(last, true), "the page of the record, to write")?;
    check(guest.rig.messages.take().contains(&PAGE_MESSAGE), "the event")?;
    let faults = guest.unit.take_faults(&guest.rig);
    check(faults.is_empty(), &format!("no fault was recorded: {faults:x?}"))?;
    nothing_is_left(&guest)?;
    // What is there needs no request.
    let before = seen.len();
    space.write(&guest.rig.ram, addresses(0)[2], &[0; CompletionRecord::SIZE]);
    submit(&guest, DEDICATED, 0);
    let done = |guest: &Guest, space: &Space| record(guest, space, 0).is_some();
    guest.serve_until("the second copy", &mut space, refuse, done)?;
    let after = guest.pages.as_ref().map_or(0, |pages| pages.seen.borrow().len());
    equal(after, before, "requests")
}

/// A page that the process has no right to: the copy ends with its address, and nothing else is disturbed.
pub fn refused_page(setup: Setup) -> Verdict {
    let mut guest = boot(setup)?;
    let mut space = process(&mut guest, DEDICATED, 0x10)?;
    submit(&guest, DEDICATED, 0);
    let missing = (addresses(0)[1] & !(PAGE - 1)) + PAGE;
    let ended = |guest: &Guest, space: &Space| record(guest, space, 0).is_some();
    let mut give = pager(1);
    let handler = |ram: &mut Ram, space: &mut Space, request: &Request| match request.page {
        page if page == missing => Code::Invalid,
        _ => give(ram, space, request),
    };
    guest.serve_until("the copy's end", &mut space, handler, ended)?;
    let record = record(&guest, &space, 0).ok_or("no record")?;
    equal(record.status.status().ok(), Some(Status::PageRequestInvalid), "status")?;
    equal(record.fault_address.0 & !(PAGE - 1), missing, "fault address")?;
    let pages = guest.pages.as_ref().ok_or("no queue")?;
    let asked = pages.seen.borrow().iter().filter(|request| request.page == missing).count();
    equal(asked, 1, "requests for the page that was refused")?;
    nothing_is_left(&guest)
}

/// While one queue waits for a page that its guest does not give, the other queue of the device and another guest on
/// the same host go on.
pub fn the_others_go_on(setup: Setup) -> Verdict {
    let mut guest = boot(setup)?;
    let mut slow = process(&mut guest, DEDICATED, 0x10)?;
    for index in 0..8 {
        submit(&guest, DEDICATED, index);
    }
    let pages = guest.pages.as_ref().ok_or("no queue")?;
    guest.rig.wait("the first page requests", || pages.has_some(&guest.rig))?;

    let mut other = process(&mut guest, OTHER, 0x11)?;
    for at in super::COPY {
        other.allocate(&mut guest.rig.ram, at, PAGE);
    }
    other.write(&guest.rig.ram, SOURCE, b"goes on");
    for _ in 0..20 {
        succeeded(&guest.copy(OTHER, &other, super::COPY, 7)?)?;
    }
    equal(other.read(&guest.rig.ram, DESTINATION, 7), b"goes on".to_vec(), "the other queue")?;

    let mut neighbour = Guest::boot_paging(Rig::on(&guest.rig.host, setup, RAM))?;
    let mut its = process(&mut neighbour, DEDICATED, 0x10)?;
    submit(&neighbour, DEDICATED, 0);
    complete(&mut neighbour, &mut its, 1)?;

    let waiting = guest.rig.machine.vm().page_request_counters().outstanding;
    check(waiting > 0, "the first queue waits still")?;
    complete(&mut guest, &mut slow, 8)?;
    nothing_is_left(&guest)
}

/// More requests at once than the queue has room for: none is lost for good, and all copies complete.
pub fn overflow_storm(setup: Setup) -> Verdict {
    const COPIES: u64 = 12;
    let mut guest = boot(setup)?;
    let mut space = process(&mut guest, DEDICATED, 0x10)?;
    guest.pages.as_ref().ok_or("no queue")?.squeeze(&guest.rig, 1);
    for index in 0..COPIES {
        submit(&guest, DEDICATED, index);
    }
    let overflown = || guest.pages.as_ref().is_some_and(|pages| pages.is_overflown(&guest.rig));
    guest.rig.wait("an overflow", overflown)?;
    complete(&mut guest, &mut space, COPIES)?;
    nothing_is_left(&guest)?;
    // An answer to nothing is refused.
    let stray = PageResponse {
        requester: DEVICE,
        pasid: Some(space.pasid),
        group: PrgIndex::from_field(0),
        code: ResponseCode::Success,
    };
    let refused = guest.rig.machine.vm().respond_page_request(stray);
    check(refused.is_err(), "an answer to nothing is refused")
}
