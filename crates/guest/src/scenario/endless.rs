//! `endless`: copies on both queues for as long as the machine lives, and on queues that may block, writes to memory
//! that is never there. The lab kills it meanwhile.

use std::time::{Duration, Instant};

use dsa::spec::{Flags, Operation};
use guest_protocol::{sync, FromGuest};

use crate::child::{Child, Event};
use crate::dma::{Mapping, Place, HUGE_PAGE, PAGE};
use crate::failure::{ensure, same, Failure, Outcome};
use crate::job;
use crate::queue::{bad_status, go_on, is_partial, pause, Queue};
use crate::report::{Counts, Report};
use crate::setup::{BLOCKING, QUEUES, QUEUE_SIZE};

/// Name of the worker that copies.
pub(super) const COPYING: &str = "endless-copies";
/// Name of the worker whose memory is missing.
pub(super) const MISSING: &str = "endless-misses";

/// Queues whose descriptors wait for pages all the time: one in each group.
const WAITING: [usize; 2] = [BLOCKING[0], BLOCKING[1]];

/// Copies that a worker keeps outstanding.
const OUTSTANDING: usize = 4;
const _: () = assert!(OUTSTANDING <= QUEUE_SIZE);
/// Bytes that each descriptor writes whose memory is missing: so many pages are asked for, one after the other.
const FRESH: usize = 16 * PAGE;
/// How long a worker may take to say that it is busy.
const BUSY_WITHIN: Duration = Duration::from_secs(60);
/// How long a worker goes on if nobody kills the machine.
const STORM: Duration = Duration::from_secs(1800);

pub(super) fn run(report: &mut Report, _seed: u64) -> Outcome<Counts> {
    let mut workers = Vec::new();
    let copying = QUEUES.map(|queue| (COPYING, queue));
    let missing = WAITING.map(|queue| (MISSING, queue));
    for (worker, queue) in copying.into_iter().chain(missing) {
        let mut worker = Child::worker(&["worker", worker, &queue.to_string()])?;
        match worker.event(Instant::now() + BUSY_WITHIN)? {
            Event::Message(FromGuest::Sync { .. }) => worker.go_on(true)?,
            other => return Err(Failure::new(format!("queue {queue}: {other:?}"))),
        }
        workers.push(worker);
    }
    report.sync(sync::STORM, &[])?;
    report.note(&format!(
        "{OUTSTANDING} copies outstanding on each of {} queues, and on {} more {QUEUE_SIZE} descriptors without memory",
        QUEUES.len(),
        WAITING.len(),
    ));
    let mut counts = Counts::default();
    let deadline = Instant::now() + STORM + BUSY_WITHIN;
    for worker in workers {
        super::finish(worker, deadline, &mut counts)?;
    }
    report.check("the storm", Err(Failure::new("nobody killed the machine")));
    Ok(counts)
}

/// The queue that a worker was given.
fn open(arguments: &[String]) -> Outcome<Queue> {
    match arguments {
        [queue] => Ok(Queue::open(queue.parse()?)?),
        _ => Err(Failure::new(format!("arguments {arguments:?}"))),
    }
}

/// The worker that keeps its queue busy with large copies.
pub(super) fn copy(report: &mut Report, arguments: &[String]) -> Outcome<Counts> {
    let mut queue = open(arguments)?;
    let memory = Mapping::anonymous(Place::Anywhere, (OUTSTANDING + 1) * HUGE_PAGE)?;
    let part = |index: usize| memory.span().part(index * HUGE_PAGE, HUGE_PAGE);
    memory.span().fill(0);
    part(OUTSTANDING).fill(0x42);
    let source = part(OUTSTANDING);
    let mut copies: Vec<Operation> =
        (0..OUTSTANDING).map(|slot| job::copy(source, part(slot))).collect();
    for (slot, copy) in copies.iter().enumerate() {
        queue.submit(slot, *copy, Flags::REQUEST_RECORD);
    }
    let mut completed = 0;
    let mut told = false;
    let mut looks = 0;
    let until = Instant::now() + STORM;
    while Instant::now() < until {
        for (slot, copy) in copies.iter_mut().enumerate() {
            let Some(record) = queue.poll(slot) else { continue };
            looks = 0;
            queue.account(copy, &record);
            if is_partial(&record) {
                *copy = go_on(copy, &record)?;
            } else {
                ensure!(
                    record.result == 0 && is_success(&record),
                    "{}",
                    bad_status(*copy, &record)
                );
                *copy = job::copy(source, part(slot));
                completed += 1;
            }
            queue.submit(slot, *copy, Flags::REQUEST_RECORD);
        }
        if !told && completed >= OUTSTANDING {
            same("copied bytes", &part(0).read(), &source.read())?;
            report.sync("busy", &[])?;
            told = true;
        }
        pause(&mut looks);
    }
    Ok(queue.counts())
}

/// The worker that keeps its queue full of descriptors that wait for pages: each writes memory of its own, which
/// nobody has touched, and is followed by another one.
pub(super) fn miss(report: &mut Report, arguments: &[String]) -> Outcome<Counts> {
    let mut queue = open(arguments)?;
    let flags = Flags::REQUEST_RECORD | Flags::BLOCK_ON_FAULT;
    let mut told = false;
    let mut looks = 0;
    let mut memory = Vec::new();
    for slot in 0..QUEUE_SIZE {
        let fresh = untouched()?;
        queue.submit(slot, job::fill(!0, fresh.span()), flags);
        memory.push(fresh);
    }
    let until = Instant::now() + STORM;
    while Instant::now() < until {
        for (slot, memory) in memory.iter_mut().enumerate() {
            let Some(record) = queue.poll(slot) else { continue };
            looks = 0;
            let fill = job::fill(!0, memory.span());
            queue.account(&fill, &record);
            ensure!(is_success(&record), "{}", bad_status(fill, &record));
            if !told {
                same("filled bytes", &memory.span().read(), &[!0; FRESH])?;
                report.sync("busy", &[])?;
                told = true;
            }
            *memory = untouched()?;
            queue.submit(slot, job::fill(!0, memory.span()), flags);
        }
        pause(&mut looks);
    }
    Ok(queue.counts())
}

/// Memory without pages.
fn untouched() -> Outcome<Mapping> {
    let memory = Mapping::anonymous(Place::Anywhere, FRESH)?;
    memory.want_small_pages()?;
    Ok(memory)
}

fn is_success(record: &dsa::spec::CompletionRecord) -> bool {
    record.status.status() == Ok(dsa::spec::Status::Success)
}
