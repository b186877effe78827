//! What this kernel makes of a host, a link or a device that does something wrong: the server does it
//! on purpose, while one descriptor after the other is submitted.

use std::time::{Duration, Instant};

use dsa::spec::{CompletionRecord, Flags, Status};
use guest_protocol::{scenario, sync};

use crate::dma::{Mapping, Place, PAGE};
use crate::failure::{ensure, same, Failure, Outcome};
use crate::job;
use crate::kmsg::KernelLog;
use crate::pri;
use crate::queue::Queue;
use crate::report::{Counts, Report};
use crate::setup::{BLOCKING, QUEUES};

/// Pages of most operations.
const PAGES: usize = 8;
const SIZE: usize = PAGES * PAGE;
/// How long a descriptor may take that the host answers in the guest's place.
const HOST_WITHIN: Duration = Duration::from_secs(40);
/// How long the kernel may take to log something.
const LOGGED_WITHIN: Duration = Duration::from_secs(5);
/// Milliseconds by which a response is late.
const LATE_MS: u64 = 40;
/// Milliseconds for which the queue is full.
const FULL_MS: u64 = 150;
/// Milliseconds after which the device answers an invalidation: longer than the unit waits.
const SLOW_MS: u64 = 1200;
/// The word of a walk that cannot be had: in the middle of one.
const MISSING_WORD: u64 = 4;

/// A queue, and what is done on it.
struct Scene {
    queue: Queue,
    log: KernelLog,
}

impl Scene {
    /// Opens a queue, sees that it works, and has the server do `what` from then on.
    fn begin(report: &mut Report, queue: usize, what: &str, how_much: u64) -> Outcome<Self> {
        let mut scene = Self { queue: Queue::open(queue)?, log: KernelLog::from_now()? };
        report.check("it works at first", scene.works());
        report.sync(sync::INJECT, &[(what, how_much)])?;
        Ok(scene)
    }

    /// Has the server do nothing wrong any more, and sees that it works again.
    fn end(mut self, report: &mut Report) -> Outcome<Counts> {
        report.sync(sync::INJECT_NOTHING, &[])?;
        report.check("it works afterwards", self.works());
        let counts = self.queue.counts();
        drop(self);
        report.sync(sync::SETTLED, &[])?;
        Ok(counts)
    }

    /// Fills memory that is not there.
    fn works(&mut self) -> Outcome {
        let memory = fresh()?;
        self.queue.complete(job::fill(0x7777_7777_7777_7777, memory.span()), self.flags())?;
        same("filled pages", &memory.span().read(), &[0x77; SIZE])?;
        Ok(format!("{PAGES} pages filled"))
    }

    fn flags(&self) -> Flags {
        Flags::BLOCK_ON_FAULT
    }

    /// Fills memory once, whatever comes of it; says how long that took.
    fn fill(&mut self, memory: &Mapping) -> Outcome<(CompletionRecord, Duration)> {
        let operation = job::fill(0x3333_3333_3333_3333, memory.span());
        let begun = Instant::now();
        self.queue.submit(0, operation, self.flags() | Flags::REQUEST_RECORD);
        let record = self.queue.wait_for(0, &operation, HOST_WITHIN)?;
        Ok((record, begun.elapsed()))
    }

    /// The line that the kernel logged.
    fn logged(&mut self, words: &[&str]) -> Outcome {
        let line =
            self.log.find(LOGGED_WITHIN, |line| words.iter().all(|word| line.contains(word)))?;
        line.map_err(|seen| Failure::new(format!("the kernel logged no {words:?}, but {seen:?}")))
    }

    /// The lines of the kernel's IOMMU and accelerator drivers since the last look.
    fn said(&mut self) -> Outcome<Vec<String>> {
        let ours = |line: &String| line.contains("DMAR") || line.contains("idxd");
        Ok(self.log.lines()?.into_iter().filter(ours).collect())
    }
}

fn fresh() -> Outcome<Mapping> {
    let memory = Mapping::anonymous(Place::Anywhere, SIZE)?;
    memory.want_small_pages()?;
    Ok(memory)
}

fn succeeded(record: &CompletionRecord) -> Outcome<()> {
    ensure!(record.status.status() == Ok(Status::Success), "{record:?}");
    Ok(())
}

fn filled(memory: &Mapping) -> Outcome<()> {
    same("filled pages", &memory.span().read(), &[0x33; SIZE])
}

/// Every response is lost. The kernel has done its part; the host answers in its place when it has
/// waited for long enough, and the descriptor ends with the fault.
pub(super) fn drop_response(report: &mut Report, _seed: u64) -> Outcome<Counts> {
    let mut scene = Scene::begin(report, BLOCKING[0], scenario::DROP_RESPONSE, 1)?;
    let memory = fresh()?;
    let outcome = scene.fill(&memory).and_then(|(record, took)| {
        let status = record.status.status();
        ensure!(status == Ok(Status::PageRequestInvalid) && record.status.write(), "{record:?}");
        let at = memory.span().address();
        ensure!(
            record.fault_address.0 == at,
            "fault at {:#x}, not {at:#x}",
            record.fault_address.0
        );
        same("its first page", &memory.span().part(0, PAGE).read(), &[0; PAGE])?;
        Ok(format!("status 0x84 after {:.1} s, nothing written", took.as_secs_f64()))
    });
    report.check("a descriptor whose answer is lost ends with the fault", outcome);
    let outcome = scene.said().and_then(|lines| match lines.as_slice() {
        [] => Ok("not a line of its drivers: it has answered, and knows nothing of it".to_owned()),
        lines => Err(Failure::new(format!("{lines:?}"))),
    });
    report.check("the kernel has nothing to say", outcome);
    scene.end(report)
}

/// Every response is late.
pub(super) fn delay_response(report: &mut Report, _seed: u64) -> Outcome<Counts> {
    let mut scene = Scene::begin(report, BLOCKING[0], scenario::DELAY_RESPONSE, LATE_MS)?;
    let memory = fresh()?;
    let outcome = scene.fill(&memory).and_then(|(record, took)| {
        succeeded(&record)?;
        filled(&memory)?;
        let least = Duration::from_millis(LATE_MS);
        ensure!(took >= least, "in {took:?}, with each answer {least:?} late");
        Ok(format!("{PAGES} pages in {} ms, each answer {LATE_MS} ms late", took.as_millis()))
    });
    report.check("a descriptor waits for its answers", outcome);
    scene.end(report)
}

/// The queue is full for a while. What cannot be queued is answered by the unit; the device asks again.
pub(super) fn overflow_queue(report: &mut Report, _seed: u64) -> Outcome<Counts> {
    let mut scene = Scene::begin(report, BLOCKING[0], scenario::OVERFLOW_QUEUE, FULL_MS)?;
    let memory = fresh()?;
    let outcome = scene.fill(&memory).and_then(|(record, took)| {
        succeeded(&record)?;
        filled(&memory)?;
        Ok(format!("{PAGES} pages in {} ms, the queue full for {FULL_MS} ms", took.as_millis()))
    });
    report.check("a descriptor asks until there is room", outcome);
    report.check("the kernel says that its queue overflowed", scene.logged(&["PRQ overflow"]));
    scene.end(report)
}

/// The device is slow to answer an invalidation: the unit gives up, the kernel tries again.
pub(super) fn delay_invalidation(report: &mut Report, _seed: u64) -> Outcome<Counts> {
    let mut scene = Scene::begin(report, BLOCKING[0], scenario::DELAY_INVALIDATION, SLOW_MS)?;
    let memory = fresh()?;
    let outcome = scene.fill(&memory).and_then(|(record, _)| {
        succeeded(&record)?;
        filled(&memory)?;
        let begun = Instant::now();
        memory.flush_translations()?;
        let took = begun.elapsed();
        let least = Duration::from_millis(SLOW_MS / 2);
        ensure!(took >= least, "mprotect returned after {took:?}, the device had not answered");
        Ok(format!("mprotect took {} ms", took.as_millis()))
    });
    report.check("an unmapping waits until the device has answered", outcome);
    let outcome = scene.logged(&["Invalidation Time-out Error"]);
    report.check("the kernel says that the device is late", outcome);
    scene.end(report)
}

/// A word of a table is not to be had, once.
pub(super) fn fail_walk(report: &mut Report, _seed: u64) -> Outcome<Counts> {
    let mut queue = Queue::open(QUEUES[0])?;
    let mut log = KernelLog::from_now()?;
    let (source, target) = (fresh()?, fresh()?);
    source.span().fill(0x55);
    target.span().fill(0);
    let copy = job::copy(source.span(), target.span());
    queue.complete(copy, Flags::empty())?;
    // What the device and the unit know is forgotten, so that they walk.
    source.flush_translations()?;
    target.flush_translations()?;
    target.span().fill(0);
    report.sync(sync::INJECT, &[(scenario::FAIL_WALK, MISSING_WORD)])?;
    let outcome = queue.once(copy, Flags::empty()).map_err(Failure::from).and_then(|record| {
        let status = record.status.status();
        ensure!(status != Ok(Status::Success), "the copy succeeded without the word");
        let done = record.bytes_completed as usize;
        let written = target.span().read();
        same("what was done", &written[..done.min(SIZE)], &vec![0x55; done.min(SIZE)])?;
        same("what was not", &written[done.min(SIZE)..], &vec![0; SIZE - done.min(SIZE)])?;
        Ok(format!("{status:?} after {done} bytes, nothing written beyond"))
    });
    report.check("a copy stops where the walk failed", outcome);
    let line =
        log.find(LOGGED_WITHIN, |line| line.contains("DMAR") && line.contains("fault addr"))?;
    let line = line.map_err(|seen| Failure::new(format!("no fault was logged, but {seen:?}")));
    report.check("the kernel says so", line);
    report.sync(sync::INJECT_NOTHING, &[])?;
    let outcome = queue.complete(copy, Flags::empty()).map_err(Failure::from).and_then(|_| {
        same("copied bytes", &target.span().read(), &[0x55; SIZE])?;
        Ok(format!("{SIZE} bytes copied"))
    });
    report.check("it works afterwards", outcome);
    let counts = queue.counts();
    drop(queue);
    report.sync(sync::SETTLED, &[])?;
    Ok(counts)
}

/// Each response reaches the device twice: it notices, and goes by the first.
pub(super) fn answer_twice(report: &mut Report, _seed: u64) -> Outcome<Counts> {
    let _cleared = pri::take_status()?;
    let mut scene = Scene::begin(report, BLOCKING[0], scenario::ANSWER_TWICE, 0)?;
    let memory = fresh()?;
    let outcome = scene.fill(&memory).and_then(|(record, _)| {
        succeeded(&record)?;
        filled(&memory)?;
        Ok(format!("{PAGES} pages filled, each answered twice"))
    });
    report.check("a descriptor goes by the first answer", outcome);
    let outcome = pri::take_status().map_err(Failure::from).and_then(|status| {
        ensure!(status.unexpected, "{status:?}");
        ensure!(!status.response_failure, "{status:?}");
        Ok("unexpected page request group index, in its status register".to_owned())
    });
    report.check("the device says that it got an answer too many", outcome);
    scene.end(report)
}
