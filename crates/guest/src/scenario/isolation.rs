//! `isolation`: a process reaches its own memory through its queue, and nothing else.
//!
//! Two workers map the same virtual addresses with different contents and copy at the same time
//! through two queues. Then the lab makes a queue use a PASID that no process is bound to.

use std::time::{Duration, Instant};

use dsa::spec::{CompletionRecord, Flags, Operation, Status, Submitter};
use guest_protocol::{sync, FromGuest};

use crate::child::{Child, Event};
use crate::dma::{Mapping, Place, Span, PAGE};
use crate::failure::{same, Failure, Outcome};
use crate::job;
use crate::kmsg::{self, KernelLog};
use crate::model::pattern::Random;
use crate::queue::Queue;
use crate::report::{Counts, Report};
use crate::setup::{QUEUES, QUEUE_SIZE};

/// Name of the worker.
pub(super) const WORKER: &str = "isolation";

/// Where both workers map their memory. Nothing else is there in a process of this program.
const ADDRESS: usize = 0x1234_0000_0000;
/// Bytes of what is copied from, and of what is copied to.
const AREA: usize = 256 * PAGE;
/// Copies of each worker in each phase.
const COPIES: usize = 2000;
/// Largest copy.
const MAX_COPY: usize = 3 * PAGE;
/// PASIDs that a worker puts into its descriptors: Linux gives out the lowest free ones.
const LIKELY_PASIDS: u32 = 32;

/// A PASID that no process has.
const UNBOUND: u32 = 0xabcde;
/// How long a copy with it must have no effect.
const QUIET: Duration = Duration::from_millis(200);
/// How long the kernel may take to log the fault.
const LOGGED_WITHIN: Duration = Duration::from_secs(2);
/// How long a worker may take.
const WORKER_WITHIN: Duration = Duration::from_secs(120);

pub(super) fn run(report: &mut Report, seed: u64) -> Outcome<Counts> {
    let mut counts = Counts::default();
    let outcome = side_by_side(&mut counts, seed, "own");
    report.check("two processes, the same addresses, two queues at once", outcome);
    let outcome = side_by_side(&mut counts, seed ^ 1, "forged");
    report.check("a PASID forged in a descriptor is ignored", outcome);
    unbound(report, &mut counts)?;
    let reopened = Queue::open(0).map_err(Failure::from).and_then(|mut queue| {
        let outcome = plain_copy(&mut queue);
        counts.add(queue.counts());
        outcome
    });
    report.check("the queue works again afterwards", reopened);
    let shared = report.sync(sync::SHARED_PORTAL, &[]);
    let text = || "driven in process by the server: accepted, or told to retry".to_owned();
    report.check("a shared queue takes no plain stores", shared.map(|()| text()));
    Ok(counts)
}

/// Runs a worker on each queue, both at once.
fn side_by_side(counts: &mut Counts, seed: u64, pasid: &str) -> Outcome {
    let deadline = Instant::now() + WORKER_WITHIN;
    let mut workers = Vec::new();
    for queue in QUEUES {
        let arguments = [queue.to_string(), (seed + queue as u64).to_string(), pasid.to_owned()];
        let [queue, seed, pasid] = arguments.each_ref().map(String::as_str);
        let mut worker = Child::worker(&["worker", WORKER, queue, seed, pasid])?;
        match worker.event(deadline)? {
            Event::Message(FromGuest::Sync { .. }) => workers.push(worker),
            other => return Err(Failure::new(format!("queue {queue}: {other:?}"))),
        }
    }
    for worker in &mut workers {
        worker.go_on(true)?;
    }
    let mut found = Vec::new();
    for worker in workers {
        found.push(super::finish(worker, deadline, counts)?);
    }
    Ok(found.join("; "))
}

/// The worker: copies within its memory, and finds its own bytes only.
pub(super) fn work(report: &mut Report, arguments: &[String]) -> Outcome<Counts> {
    let [queue, seed, pasid] = arguments else {
        return Err(Failure::new(format!("arguments {arguments:?}")));
    };
    let mut random = Random::new(seed.parse()?);
    let mut queue = Queue::open(queue.parse()?)?;
    let memory = Mapping::anonymous(Place::At(ADDRESS), 2 * AREA)?;
    let (source, target) = (memory.span().part(0, AREA), memory.span().part(AREA, AREA));
    let data = random.bytes(AREA);
    source.write(&data);
    target.fill(0);
    report.sync("ready", &[])?;
    for round in 0..COPIES {
        if pasid == "forged" {
            queue.forge(forged(round));
        }
        one_copy(&mut queue, &mut random, source, target, &data)
            .map_err(|failure| failure.at(format_args!("copy {round}")))?;
    }
    report.check("copies", Ok(format!("{COPIES} copies at {ADDRESS:#x}")));
    Ok(queue.counts())
}

/// The PASIDs that processes are likely to have, and some that no-one has; with and without
/// privilege.
fn forged(round: usize) -> Submitter {
    let round = round as u32;
    let pasid = if round % 5 == 0 { UNBOUND ^ round } else { round % LIKELY_PASIDS };
    Submitter::new().with_pasid(pasid & 0xf_ffff).with_privileged(round % 3 == 0)
}

fn one_copy(
    queue: &mut Queue,
    random: &mut Random,
    source: Span<'_>,
    target: Span<'_>,
    data: &[u8],
) -> Outcome<()> {
    let size = 1 + random.below(MAX_COPY);
    let from = random.below(AREA - size);
    let to = random.below(AREA - size);
    let target = target.part(to, size);
    queue.complete(job::copy(source.part(from, size), target), Flags::empty())?;
    same("copied bytes", &target.read(), data.get(from..from + size).unwrap_or_default())
}

fn plain_copy(queue: &mut Queue) -> Outcome {
    let memory = Mapping::anonymous(Place::Anywhere, 2 * PAGE)?;
    let (source, target) = (memory.span().part(0, PAGE), memory.span().part(PAGE, PAGE));
    source.fill(0x5a);
    target.fill(0);
    queue.complete(job::copy(source, target), Flags::empty())?;
    same("copied bytes", &target.read(), &[0x5a; PAGE])?;
    Ok(format!("{PAGE} bytes copied"))
}

/// A queue whose PASID no process is bound to.
fn unbound(report: &mut Report, counts: &mut Counts) -> Outcome<()> {
    let mut queue = Queue::open(0)?;
    let memory = Mapping::anonymous(Place::Anywhere, 2 * PAGE)?;
    let (source, target) = (memory.span().part(0, PAGE), memory.span().part(PAGE, PAGE));
    source.fill(0x77);
    target.fill(0x11);
    let mut log = KernelLog::from_now()?;
    report.sync(sync::INJECT_UNBOUND_PASID, &[("wq", 0), ("pasid", UNBOUND.into())])?;
    let operation = job::copy(source, target);
    report.check("an unbound PASID moves no byte", no_effect(&mut queue, operation, target));
    report.check("an unbound PASID is the kernel's DMAR fault", dmar_fault(&mut log));
    report.check("an unbound PASID is the accelerator's error", device_error());
    counts.add(queue.counts());
    let restored = report.sync(sync::INJECT_RESTORE, &[("wq", 0)]);
    drop(queue);
    restored
}

fn no_effect(queue: &mut Queue, operation: Operation, target: Span<'_>) -> Outcome {
    let slot = QUEUE_SIZE - 1;
    queue.submit(slot, operation, Flags::REQUEST_RECORD);
    let until = Instant::now() + QUIET;
    while Instant::now() < until {
        std::thread::sleep(QUIET / 20);
    }
    same("completion record", &queue.record(slot).read(), &[0; CompletionRecord::SIZE])?;
    same("destination", &target.read(), &[0x11; PAGE])?;
    Ok(format!("destination and completion record unchanged for {QUIET:?}"))
}

fn dmar_fault(log: &mut KernelLog) -> Outcome {
    let number = format!("{UNBOUND:x}");
    let fault = log.find(LOGGED_WITHIN, |line| {
        line.contains("PASID") && line.to_lowercase().contains(&number)
    })?;
    fault.map_err(|seen| Failure::new(format!("the kernel logged no such fault, but {seen:?}")))
}

/// The record cannot be written, so the error is in the software error register. It keeps the
/// first error until the kernel clears it, so the line may be anywhere in the log.
fn device_error() -> Outcome {
    let mut log = KernelLog::from_start()?;
    let ours = |line: &str| kmsg::software_error(line).is_some_and(|head| head.pasid() == UNBOUND);
    let line = log
        .find(LOGGED_WITHIN, ours)?
        .map_err(|_| Failure::new("the kernel logged no software error with that PASID"))?;
    let code = kmsg::software_error(&line).map_or(0, |head| head.code());
    match Status::try_from(code) {
        Ok(
            status @ (Status::RecordFault
            | Status::TranslationError
            | Status::ReadError
            | Status::WriteError),
        ) => Ok(format!("{status:?}, logged as {line:?}")),
        _ => Err(Failure::new(format!("software error {code:#x}: {line:?}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forged_pasids_cover_the_likely_ones() {
        let all: std::collections::BTreeSet<_> =
            (0..COPIES).map(|round| forged(round).pasid()).collect();
        assert!((0..LIKELY_PASIDS).all(|pasid| all.contains(&pasid)));
        assert!(all.len() > LIKELY_PASIDS as usize * 4);
    }
}
