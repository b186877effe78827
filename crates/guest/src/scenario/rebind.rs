//! `rebind`: two hundred processes, one after the other, open the queue, work and exit. The lab
//! compares what the server holds after the fiftieth and after the last.

use std::time::{Duration, Instant};

use dsa::spec::Flags;

use crate::child::Child;
use crate::dma::{Mapping, Place, PAGE};
use crate::failure::{ensure, same, Context, Failure, Outcome};
use crate::job;
use crate::model::pattern::Random;
use crate::queue::Queue;
use crate::report::{Counts, Report};
use crate::scenario::misplaced::misplaced_record;

/// Name of the worker.
pub(super) const WORKER: &str = "rebind";

/// How often a process binds, works and exits.
const ITERATIONS: u64 = 200;
/// After which the lab samples what the server holds.
const SAMPLED: [u64; 2] = [50, ITERATIONS];
/// Bytes of each process's copy.
const SIZE: usize = 16 * PAGE;
/// PASIDs that processes may still hold that are about to be gone.
const PASIDS_IN_PASSING: u32 = 4;
/// Argument of the worker that shows its PASID.
const SHOW_PASID: &str = "show-pasid";
/// How long one process may take.
const WORKER_WITHIN: Duration = Duration::from_secs(30);

pub(super) fn run(report: &mut Report, seed: u64) -> Outcome<Counts> {
    let mut counts = Counts::default();
    let first = pasid_of_a_process(&mut counts);
    let start = Instant::now();
    let mut failure = None;
    for iteration in 1..=ITERATIONS {
        let done = iterate(seed.wrapping_add(iteration), &mut counts)
            .and_then(|()| report.steady(iteration, SAMPLED));
        if let Err(error) = done.at(format_args!("iteration {iteration}")) {
            failure = Some(error);
            break;
        }
    }
    let text = format!("{ITERATIONS} processes in {:.1} s", start.elapsed().as_secs_f64());
    report.check("open, copy, exit", failure.map_or(Ok(text), Err));
    let last = pasid_of_a_process(&mut counts);
    report.check("PASIDs are given back", given_back(first, last));
    Ok(counts)
}

fn iterate(seed: u64, counts: &mut Counts) -> Outcome<()> {
    let worker = Child::worker(&["worker", WORKER, &seed.to_string()])?;
    super::finish(worker, Instant::now() + WORKER_WITHIN, counts)?;
    Ok(())
}

/// The kernel gives out the lowest free number, so the last process has about the first one's.
fn given_back(first: Outcome<u32>, last: Outcome<u32>) -> Outcome {
    let (first, last) = (first?, last?);
    let bound = first + PASIDS_IN_PASSING;
    ensure!(last <= bound, "PASID {first} at first, {last} after {ITERATIONS} processes");
    Ok(format!("PASID {first} at first, {last} after {ITERATIONS} processes"))
}

/// The PASID that a new process gets, as the accelerator names it in an error.
fn pasid_of_a_process(counts: &mut Counts) -> Outcome<u32> {
    let worker = Child::worker(&["worker", WORKER, SHOW_PASID])?;
    let said = super::finish(worker, Instant::now() + WORKER_WITHIN, counts)?;
    Ok(said.parse()?)
}

/// The worker that shows its PASID.
fn show_pasid(report: &mut Report) -> Outcome<Counts> {
    let mut queue = Queue::open(0)?;
    let (head, _) = misplaced_record(&mut queue)?;
    report.check("PASID", Ok(head.pasid().to_string()));
    Ok(queue.counts())
}

/// The worker: one copy through a queue of its own.
pub(super) fn work(report: &mut Report, arguments: &[String]) -> Outcome<Counts> {
    let [seed] = arguments else {
        return Err(Failure::new(format!("arguments {arguments:?}")));
    };
    if seed == SHOW_PASID {
        return show_pasid(report);
    }
    let mut random = Random::new(seed.parse()?);
    let mut queue = Queue::open(0)?;
    let memory = Mapping::anonymous(Place::Anywhere, 2 * SIZE)?;
    let (source, target) = (memory.span().part(0, SIZE), memory.span().part(SIZE, SIZE));
    let data = random.bytes(SIZE);
    source.write(&data);
    target.fill(0);
    queue.complete(job::copy(source, target), Flags::empty())?;
    same("copied bytes", &target.read(), &data)?;
    Ok(queue.counts())
}
