//! `swap`: pages that the kernel has written to a disk and taken away.

use std::time::{Duration, Instant};

use dsa::spec::Flags;
use rustix::io::Errno;
use rustix::thread::{sched_getaffinity, sched_setaffinity, CpuSet};

use crate::disk::SwapSpace;
use crate::dma::{Mapping, Place, PAGE};
use crate::failure::{ensure, same, Context, Failure, Outcome};
use crate::job;
use crate::model::pattern::Random;
use crate::pagemap::census;
use crate::queue::Queue;
use crate::report::{Counts, Report};
use crate::setup::BLOCKING;

/// Bytes that are swapped out at once.
const PAGES: usize = 128;
const SIZE: usize = PAGES * PAGE;
/// Pages of them that are written in the middle.
const WRITTEN: usize = 32;
/// Bytes that are written in each.
const PATCH: usize = 64;
/// How long the kernel may take to swap pages out that it is told to, and how often it is told.
const SWAPPED_WITHIN: Duration = Duration::from_secs(5);
const AGAIN: Duration = Duration::from_millis(20);

/// The scenario.
pub(super) fn run(report: &mut Report, seed: u64) -> Outcome<Counts> {
    let mut random = Random::new(seed);
    let space = SwapSpace::new()?;
    let mut queue = Queue::open(BLOCKING[0])?;
    report.check("a source in swap", read(&mut queue, &mut random));
    report.check("a destination in swap keeps what is not written", write(&mut queue, &mut random));
    report.check("swapped out while the device works on it", churn(&mut queue, &mut random));
    let counts = queue.counts();
    drop(queue);
    drop(space);
    Ok(counts)
}

/// Small pages with these bytes, all of them in swap.
fn swapped(bytes: &[u8]) -> Outcome<Mapping> {
    let mapping = Mapping::anonymous(Place::Anywhere, bytes.len())?;
    mapping.want_small_pages()?;
    mapping.span().write(bytes);
    let deadline = Instant::now() + SWAPPED_WITHIN;
    loop {
        // Each processor keeps new pages to itself for a while, and the kernel passes over those that
        // another has than the one that it is told on.
        on_every_processor(|| mapping.page_out()).at("MADV_PAGEOUT")?;
        let census = census(mapping.span())?;
        if census.swapped == census.pages && census.present == 0 {
            return Ok(mapping);
        }
        ensure!(Instant::now() < deadline, "not in swap: {census:?}");
        std::thread::sleep(AGAIN);
    }
}

/// Does something on each processor that this thread may run on.
fn on_every_processor(mut act: impl FnMut() -> Result<(), Errno>) -> Result<(), Errno> {
    let all = sched_getaffinity(None)?;
    let processors = (0..CpuSet::MAX_CPU).filter(|&processor| all.is_set(processor));
    let done = processors.map(|processor| {
        let mut one = CpuSet::new();
        one.set(processor);
        sched_setaffinity(None, &one)?;
        act()
    });
    let done = done.collect();
    sched_setaffinity(None, &all)?;
    done
}

/// Pages that the kernel has read from swap since boot.
fn swapped_in() -> Outcome<u64> {
    let text = std::fs::read_to_string("/proc/vmstat").at("/proc/vmstat")?;
    let line = text.lines().find_map(|line| line.strip_prefix("pswpin "));
    Ok(line.ok_or_else(|| Failure::new("no pswpin in /proc/vmstat"))?.parse()?)
}

fn read(queue: &mut Queue, random: &mut Random) -> Outcome {
    let data = random.bytes(SIZE);
    let source = swapped(&data)?;
    let target = Mapping::anonymous(Place::Anywhere, SIZE)?;
    let before = swapped_in()?;
    queue.block(job::copy(source.span(), target.span()))?;
    let fetched = swapped_in()? - before;
    ensure!(fetched >= PAGES as u64, "only {fetched} of {PAGES} pages came from swap");
    same("copied bytes", &target.span().read(), &data)?;
    Ok(format!("{PAGES} pages, {fetched} read from swap"))
}

fn write(queue: &mut Queue, random: &mut Random) -> Outcome {
    let mut expected = random.bytes(SIZE);
    let target = swapped(&expected)?;
    let source = Mapping::anonymous(Place::Anywhere, PATCH)?;
    let patch = random.bytes(PATCH);
    source.span().write(&patch);
    for turn in 0..WRITTEN {
        // Every other page, so that neighbours stay where they are unless the kernel reads ahead.
        let at = 2 * turn * PAGE + random.below(PAGE - PATCH);
        expected[at..at + PATCH].copy_from_slice(&patch);
        queue.block(job::copy(source.span(), target.span().part(at, PATCH)))?;
    }
    let left = census(target.span())?;
    same("the pages", &target.span().read(), &expected)?;
    Ok(format!(
        "{PATCH} bytes into each of {WRITTEN} pages; {} of {PAGES} left in swap",
        left.swapped
    ))
}

/// The kernel takes the pages away again and again while the device copies them to and fro.
fn churn(queue: &mut Queue, random: &mut Random) -> Outcome {
    const TURNS: usize = 12;
    let data = random.bytes(SIZE);
    let (one, other) = (swapped(&data)?, Mapping::anonymous(Place::Anywhere, SIZE)?);
    other.want_small_pages()?;
    let copies = [job::copy(one.span(), other.span()), job::copy(other.span(), one.span())];
    let before = swapped_in()?;
    for turn in 0..TURNS {
        let copy = copies[turn % 2];
        queue.submit(0, copy, Flags::REQUEST_RECORD | Flags::BLOCK_ON_FAULT);
        one.page_out().at("MADV_PAGEOUT")?;
        other.page_out().at("MADV_PAGEOUT")?;
        let record = queue.wait(0, &copy)?;
        let ended = record.status.status();
        ensure!(ended == Ok(dsa::spec::Status::Success), "turn {turn}: {record:?}");
    }
    let fetched = swapped_in()? - before;
    ensure!(fetched > 0, "no page came from swap");
    same("one", &one.span().read(), &data)?;
    same("other", &other.span().read(), &data)?;
    Ok(format!("{TURNS} copies of {SIZE} bytes, {fetched} pages read from swap"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_processor_has_its_turn_and_the_thread_is_as_free_as_before() {
        let all = sched_getaffinity(None).unwrap();
        let mut seen = CpuSet::new();
        let did = on_every_processor(|| {
            let now = sched_getaffinity(None)?;
            assert_eq!(now.count(), 1);
            (0..CpuSet::MAX_CPU)
                .filter(|&processor| now.is_set(processor))
                .for_each(|processor| seen.set(processor));
            Ok(())
        });
        assert_eq!((did, seen), (Ok(()), all));
        assert_eq!(on_every_processor(|| Err(Errno::NOMEM)), Err(Errno::NOMEM));
        assert_eq!(sched_getaffinity(None).unwrap(), all);
    }
}
