//! `endless`: copies on both queues for as long as the machine lives. The lab kills it meanwhile.

use std::time::{Duration, Instant};

use dsa::spec::{Flags, Operation};
use guest_protocol::{sync, FromGuest};

use crate::child::{Child, Event};
use crate::dma::{Mapping, Place, HUGE_PAGE};
use crate::failure::{ensure, same, Failure, Outcome};
use crate::job;
use crate::queue::{bad_status, go_on, is_partial, pause, Queue};
use crate::report::{Counts, Report};
use crate::setup::{QUEUES, QUEUE_SIZE};

/// Name of the worker.
pub(super) const WORKER: &str = "endless";

/// Copies that a worker keeps outstanding.
const OUTSTANDING: usize = 4;
const _: () = assert!(OUTSTANDING <= QUEUE_SIZE);
/// How long a worker may take to say that it is busy.
const BUSY_WITHIN: Duration = Duration::from_secs(60);
/// How long a worker goes on if nobody kills the machine.
const STORM: Duration = Duration::from_secs(1800);

pub(super) fn run(report: &mut Report, _seed: u64) -> Outcome<Counts> {
    let mut workers = Vec::new();
    for queue in QUEUES {
        let mut worker = Child::worker(&["worker", WORKER, &queue.to_string()])?;
        match worker.event(Instant::now() + BUSY_WITHIN)? {
            Event::Message(FromGuest::Sync { .. }) => worker.go_on(true)?,
            other => return Err(Failure::new(format!("queue {queue}: {other:?}"))),
        }
        workers.push(worker);
    }
    report.sync(sync::STORM, &[])?;
    report.note(&format!("{OUTSTANDING} copies outstanding on each of {} queues", workers.len()));
    let mut counts = Counts::default();
    let deadline = Instant::now() + STORM + BUSY_WITHIN;
    for worker in workers {
        super::finish(worker, deadline, &mut counts)?;
    }
    report.check("the storm", Err(Failure::new("nobody killed the machine")));
    Ok(counts)
}

/// The worker: keeps its queue busy with large copies.
pub(super) fn work(report: &mut Report, arguments: &[String]) -> Outcome<Counts> {
    let [queue] = arguments else {
        return Err(Failure::new(format!("arguments {arguments:?}")));
    };
    let mut queue = Queue::open(queue.parse()?)?;
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

fn is_success(record: &dsa::spec::CompletionRecord) -> bool {
    record.status.status() == Ok(dsa::spec::Status::Success)
}
