//! `storm`: many descriptors of several processes fault at once, and the device has few credits for
//! page requests. Meanwhile somebody else's queue, whose pages are all there, goes on; also while every
//! engine of its group has met a descriptor that waits for a page.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use dsa::spec::{Flags, Status};
use guest_protocol::{scenario, sync};

use crate::child::Child;
use crate::dma::{Mapping, Place, PAGE};
use crate::failure::{ensure, same, Failure, Outcome};
use crate::job;
use crate::model::pattern::Random;
use crate::pagemap::untouched;
use crate::queue::{bad_status, Queue};
use crate::report::{Counts, Report};
use crate::setup::{self, BLOCKING, QUEUES, QUEUE_SIZE};

/// Name of the worker.
pub(super) const WORKER: &str = "storm";

/// Page requests that the device may have outstanding.
const CREDITS: u32 = 4;
/// Bytes of each copy of a worker, all of them in pages that are not there.
const COPY: usize = 16 * PAGE;
/// Storms, one after the other.
const ROUNDS: u64 = 3;
/// After which the lab samples what the server holds.
const SAMPLED: [u64; 2] = [1, ROUNDS];
/// How long a storm may take.
const WITHIN: Duration = Duration::from_secs(60);
/// Copies of the bystander in a storm, at least.
const PROGRESS: u32 = 20;
/// The longest that one of them may take; alone it takes a millisecond.
const WORST: Duration = Duration::from_secs(2);

/// Milliseconds by which answers are late while others go on.
const LATE_MS: u64 = 600;
/// Descriptors that wait then, on each of two queues.
const WAITING: usize = 4;

/// The scenario.
pub(super) fn run(report: &mut Report, seed: u64) -> Outcome<Counts> {
    let mut counts = Counts::default();
    let few = setup::restart(Some(CREDITS));
    let configured = few.map(|_| format!("{CREDITS} page requests at a time"));
    report.check("the device gets few credits", configured.map_err(Failure::from));
    let stormed = storms(report, seed, &mut counts);
    let usual = setup::restart(None).map(|accelerator| accelerator.to_string());
    report.check("and as many as before", usual.map_err(Failure::from));
    stormed?;
    report.sync(sync::INJECT, &[(scenario::DELAY_RESPONSE, LATE_MS)])?;
    report.check("a queue goes on beside others that wait", beside(&mut counts));
    report.sync(sync::INJECT_NOTHING, &[])?;
    report.sync(sync::SETTLED, &[])?;
    Ok(counts)
}

fn storms(report: &mut Report, seed: u64, counts: &mut Counts) -> Outcome<()> {
    for round in 1..=ROUNDS {
        let over = AtomicBool::new(false);
        let (stormed, stood_by) = std::thread::scope(|scope| {
            let bystander = scope.spawn(|| stand_by(&over));
            let stormed = storm(seed ^ round << 8, counts);
            over.store(true, Ordering::SeqCst);
            let panicked = |_| Err(Failure::new("the bystander panicked"));
            (stormed, bystander.join().unwrap_or_else(panicked))
        });
        report.check(&format!("storm {round}"), stormed);
        let judged = stood_by.and_then(|(progress, done)| {
            counts.add(done);
            progress.judge()
        });
        report.check(&format!("storm {round}: another queue goes on"), judged);
        report.steady(round, SAMPLED)?;
    }
    Ok(())
}

/// Copies of pages that are there, while answers are late that descriptors of two other queues of the
/// same group wait for: more descriptors than the group has engines.
fn beside(counts: &mut Counts) -> Outcome {
    let mut waiting = [Queue::open(BLOCKING[0])?, Queue::open(BLOCKING[2])?];
    let mut queue = Queue::open(QUEUES[0])?;
    let memory = Mapping::anonymous(Place::Anywhere, 2 * WAITING * PAGE)?;
    memory.want_small_pages()?;
    let present = Mapping::anonymous(Place::Anywhere, 2 * PAGE)?;
    present.span().fill(7);
    let copy = job::copy(present.span().part(0, PAGE), present.span().part(PAGE, PAGE));
    let missing = |index: usize| job::fill(!0, memory.span().part(index * PAGE, PAGE));
    let flags = Flags::REQUEST_RECORD | Flags::BLOCK_ON_FAULT;
    for index in 0..2 * WAITING {
        waiting[index % 2].submit(index / 2, missing(index), flags);
    }
    let mut copies = 0;
    let until = Instant::now() + Duration::from_millis(LATE_MS / 2);
    while Instant::now() < until {
        queue.complete(copy, Flags::empty())?;
        copies += 1;
    }
    let early = (0..2 * WAITING).find(|index| waiting[index % 2].poll(index / 2).is_some());
    for index in 0..2 * WAITING {
        let record = waiting[index % 2].wait(index / 2, &missing(index))?;
        let ended = record.status.status();
        ensure!(ended == Ok(Status::Success), "{}", bad_status(missing(index), &record));
    }
    for queue in waiting.iter().chain([&queue]) {
        counts.add(queue.counts());
    }
    ensure!(early.is_none(), "descriptor {early:?} did not wait for its answer");
    ensure!(copies >= PROGRESS, "only {copies} copies while others waited");
    Ok(format!("{copies} copies while {} descriptors waited for {LATE_MS} ms", 2 * WAITING))
}

/// A worker on each queue that may block, all at once.
fn storm(seed: u64, counts: &mut Counts) -> Outcome {
    let begun = Instant::now();
    let mut workers = Vec::new();
    for queue in BLOCKING {
        let arguments = [queue.to_string(), (seed + queue as u64).to_string()];
        let [queue, seed] = arguments.each_ref().map(String::as_str);
        workers.push(Child::worker(&["worker", WORKER, queue, seed])?);
    }
    let deadline = begun + WITHIN;
    for worker in workers {
        super::finish(worker, deadline, counts)?;
    }
    let pages = BLOCKING.len() * QUEUE_SIZE * 2 * COPY / PAGE;
    Ok(format!(
        "{} processes, {pages} pages missing, all copied in {:.1} s",
        BLOCKING.len(),
        begun.elapsed().as_secs_f64()
    ))
}

/// The worker: fills its queue with copies between pages that are not there.
pub(super) fn work(report: &mut Report, arguments: &[String]) -> Outcome<Counts> {
    let [queue, seed] = arguments else {
        return Err(Failure::new(format!("arguments {arguments:?}")));
    };
    let mut random = Random::new(seed.parse()?);
    let mut queue = Queue::open(queue.parse()?)?;
    let sources = Mapping::anonymous(Place::Anywhere, QUEUE_SIZE * COPY)?;
    let targets = Mapping::anonymous(Place::Anywhere, QUEUE_SIZE * COPY)?;
    for mapping in [&sources, &targets] {
        mapping.want_small_pages()?;
        untouched(mapping.span())?;
    }
    let source = |slot: usize| sources.span().part(slot * COPY, COPY);
    let target = |slot: usize| targets.span().part(slot * COPY, COPY);
    // The device writes the source, too, so that each copy has something to copy.
    let words: Vec<u64> = (0..QUEUE_SIZE).map(|_| random.next() | 1).collect();
    let flags = Flags::REQUEST_RECORD | Flags::BLOCK_ON_FAULT;
    for fill_first in [true, false] {
        let operation = |slot: usize| match fill_first {
            true => job::fill(words[slot], source(slot)),
            false => job::copy(source(slot), target(slot)),
        };
        for slot in 0..QUEUE_SIZE {
            queue.submit(slot, operation(slot), flags);
        }
        for slot in 0..QUEUE_SIZE {
            let record = queue.wait_for(slot, &operation(slot), WITHIN)?;
            let ended = record.status.status();
            ensure!(ended == Ok(Status::Success), "{}", bad_status(operation(slot), &record));
        }
    }
    for (slot, word) in words.iter().enumerate() {
        let expected = crate::model::pattern::repeated(*word, COPY);
        same("a copy", &target(slot).read(), &expected)?;
    }
    report.check("copies", Ok(QUEUE_SIZE.to_string()));
    Ok(queue.counts())
}

/// How the bystander fared.
struct Progress {
    copies: u32,
    worst: Duration,
}

impl Progress {
    fn judge(&self) -> Outcome {
        let Self { copies, worst } = *self;
        ensure!(copies >= PROGRESS, "only {copies} copies beside the storm");
        ensure!(worst <= WORST, "a copy took {worst:?}");
        Ok(format!("{copies} copies of a page, the longest {} ms", worst.as_millis()))
    }
}

/// Copies on a queue of its own until the storm is over, and a little longer if it was short.
fn stand_by(over: &AtomicBool) -> Outcome<(Progress, Counts)> {
    let mut queue = Queue::open(QUEUES[0])?;
    let memory = Mapping::anonymous(Place::Anywhere, 2 * PAGE)?;
    memory.span().fill(7);
    let copy = job::copy(memory.span().part(0, PAGE), memory.span().part(PAGE, PAGE));
    let mut progress = Progress { copies: 0, worst: Duration::ZERO };
    while !over.load(Ordering::SeqCst) {
        let begun = Instant::now();
        queue.complete(copy, Flags::empty())?;
        progress.worst = progress.worst.max(begun.elapsed());
        progress.copies += 1;
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok((progress, queue.counts()))
}
