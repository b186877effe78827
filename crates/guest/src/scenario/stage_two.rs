//! `stage-two`: the host's second stage, below what this guest takes for physical memory.
//!
//! The lab takes single pages of it out of the host's table while the process that has them goes
//! on: the accelerator then stops at them, whatever the guest's own tables say, and at no others.
//!
//! ```text
//!   source       | 0 | 1 | 2 | ...           taken out for the second part: one of these
//!   destination  | 0 | 1 | 2 | ...           taken out for the first part: one of these
//! ```

use std::time::Duration;

use dsa::spec::{Flags, Status};
use guest_protocol::sync;

use crate::dma::{fault_in, Mapping, Place, Span, PAGE};
use crate::failure::{ensure, same, Context, Failure, Outcome};
use crate::job;
use crate::kmsg::{self, KernelLog};
use crate::model::pattern::Random;
use crate::pagemap::physical;
use crate::queue::Queue;
use crate::report::{Counts, Report};

/// Pages of what is copied, and of where it goes.
const PAGES: usize = 24;
const SIZE: usize = PAGES * PAGE;
/// Copies of random parts while all is in place.
const COPIES: usize = 200;
/// How long the kernel may take to log a fault.
const LOGGED_WITHIN: Duration = Duration::from_secs(2);

/// The scenario.
pub(super) fn run(report: &mut Report, seed: u64) -> Outcome<Counts> {
    let mut ground = Ground::new(seed)?;
    report.check("copies over frames in the host's order", ground.copies());
    if ground.queue.lost() > 0 {
        return Err(Failure::new("the rest is not tried: a descriptor never completed"));
    }
    report.sync(sync::STAGE_TWO_WALKED, &[])?;
    ground.without_a_page(report, End::Destination)?;
    ground.without_a_page(report, End::Source)?;
    report.check("all is as before", ground.copies());
    Ok(ground.queue.counts())
}

/// Which side of a copy.
#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    Source,
    Destination,
}

struct Ground {
    queue: Queue,
    random: Random,
    memory: Mapping,
    data: Vec<u8>,
}

impl Ground {
    fn new(seed: u64) -> Outcome<Self> {
        let mut random = Random::new(seed);
        let memory = Mapping::anonymous(Place::Anywhere, 2 * SIZE)?;
        let data = random.bytes(SIZE);
        memory.span().part(0, SIZE).write(&data);
        memory.span().part(SIZE, SIZE).fill(0);
        Ok(Self { queue: Queue::open(0)?, random, memory, data })
    }

    fn source(&self) -> Span<'_> {
        self.memory.span().part(0, SIZE)
    }

    fn destination(&self) -> Span<'_> {
        self.memory.span().part(SIZE, SIZE)
    }

    /// Copies random parts, and looks at what arrived.
    fn copies(&mut self) -> Outcome {
        let Self { queue, random, memory, data } = self;
        let (source, target) = (memory.span().part(0, SIZE), memory.span().part(SIZE, SIZE));
        for _ in 0..COPIES {
            let size = 1 + random.below(SIZE - 1);
            let (from, to) = (random.below(SIZE - size), random.below(SIZE - size));
            let target = target.part(to, size);
            let finished =
                queue.complete(job::copy(source.part(from, size), target), Flags::empty())?;
            let stopped = finished.partial_completions;
            ensure!(stopped == 0, "a copy stopped {stopped} times, with all pages in place");
            same("copied bytes", &target.read(), data.get(from..from + size).unwrap_or_default())?;
        }
        Ok(format!("{COPIES} copies of up to {SIZE} bytes"))
    }

    /// One page of an end is taken out, missed, and put back.
    fn without_a_page(&mut self, report: &mut Report, end: End) -> Outcome<()> {
        let page = 1 + self.random.below(PAGES - 2);
        let gpa = physical(self.page(end, page))?;
        let write = u64::from(end == End::Destination);
        report.sync(sync::STAGE_TWO_CLEAR, &[("gpa", gpa)])?;
        let what = match end {
            End::Destination => "a page taken out of the second stage is not written",
            End::Source => "a page taken out of the second stage is not read",
        };
        let mut log = KernelLog::from_now()?;
        let stopped = self.stops(end, page).and_then(|found| {
            let now = physical(self.page(end, page))?;
            ensure!(now == gpa, "the kernel has moved the page from {gpa:#x} to {now:#x}");
            Ok(format!("{found}, guest physical {gpa:#x}"))
        });
        report.check(what, stopped);
        let address = self.page(end, page).address();
        let heard = self.heard(&mut log, end, address);
        report.check("the guest's kernel hears of it as of a fault", heard);
        let access = [("gpa", gpa), ("address", address), ("write", write)];
        report.sync(sync::STAGE_TWO_FAULT, &access)?;
        report.check("its neighbours are in reach as before", self.neighbours(end, page));
        report.sync(sync::STAGE_TWO_RESTORE, &[("gpa", gpa)])?;
        report.check("once it is back the same copy works", self.whole());
        Ok(())
    }

    fn page(&self, end: End, page: usize) -> Span<'_> {
        let span = match end {
            End::Source => self.source(),
            End::Destination => self.destination(),
        };
        span.part(page * PAGE, PAGE)
    }

    /// A copy of all stops exactly at the page, also after the process has touched it.
    fn stops(&mut self, end: End, page: usize) -> Outcome {
        const EMPTY: u8 = 0x5c;
        self.destination().fill(EMPTY);
        let missing = self.page(end, page).address();
        for attempt in ["at first", "after touching the page"] {
            let operation = job::copy(self.source(), self.destination());
            let record = self.queue.once(operation, Flags::empty())?;
            // No page fault: there is nothing that the guest could mend.
            let status = record.status.status();
            ensure!(status == Ok(Status::TranslationError), "{attempt}: status {status:?}");
            let at = record.fault_address.0;
            ensure!(
                at & !(PAGE as u64 - 1) == missing,
                "{attempt}: fault at {at:#x}, not in the page at {missing:#x}"
            );
            let done = record.bytes_completed as usize;
            ensure!(done <= page * PAGE, "{attempt}: {done} bytes done, beyond page {page}");
            let written = self.destination().read();
            same("what was done", written.get(..done).unwrap_or_default(), &self.data[..done])?;
            let rest = self.destination().part(page * PAGE, SIZE - page * PAGE);
            same("the page and what is after it", &rest.read(), &vec![EMPTY; rest.len()])?;
            fault_in(missing, end == End::Destination).at("touching the page")?;
        }
        Ok(format!("twice stopped at page {page} of {PAGES}, nothing written from there on"))
    }

    /// The line that the kernel logged of an access to the page at `address`.
    ///
    /// If it logged nothing, earlier faults may have used up its limit. Then, and only if it says so
    /// itself, a fault after the window is as good.
    fn heard(&mut self, log: &mut KernelLog, end: End, address: u64) -> Outcome {
        let seen = match dmar_fault(log, end, address)? {
            Ok(line) => return Ok(line),
            Err(seen) => seen,
        };
        std::thread::sleep(kmsg::RATE_LIMIT_WINDOW);
        let (mut log, mut limits) = (KernelLog::from_now()?, KernelLog::from_now()?);
        self.queue.once(job::copy(self.source(), self.destination()), Flags::empty())?;
        let limited = limits.find(LOGGED_WITHIN, |line| kmsg::suppressed(line, "dmar_fault"))?;
        let line = dmar_fault(&mut log, end, address)?;
        let nothing = || Failure::new(format!("the kernel logged no such fault, but {seen:?}"));
        limited.and(line).map_err(|_| nothing())
    }

    /// All other pages are copied one by one.
    fn neighbours(&mut self, end: End, page: usize) -> Outcome {
        self.destination().fill(0);
        for other in (0..PAGES).filter(|other| *other != page) {
            let (from, to) = (self.page(End::Source, other), self.page(End::Destination, other));
            let operation = job::copy(from, to);
            let record = self.queue.once(operation, Flags::empty())?;
            let status = record.status.status();
            ensure!(status == Ok(Status::Success), "page {other}: status {status:?}");
        }
        for other in (0..PAGES).filter(|other| *other != page) {
            let expected = &self.data[other * PAGE..(other + 1) * PAGE];
            same("a neighbour", &self.page(End::Destination, other).read(), expected)?;
        }
        let left = self.page(End::Destination, page).read();
        same("the destination's page beside them", &left, &[0; PAGE])?;
        let which = if end == End::Source { "source" } else { "destination" };
        Ok(format!("{} pages copied, all but page {page} of the {which}", PAGES - 1))
    }

    /// A copy of all, without a stop.
    fn whole(&mut self) -> Outcome {
        self.destination().fill(0);
        let operation = job::copy(self.source(), self.destination());
        let finished = self.queue.complete(operation, Flags::empty())?;
        let stopped = finished.partial_completions;
        ensure!(stopped == 0, "it stopped {stopped} times");
        same("copied bytes", &self.destination().read(), &self.data)?;
        Ok(format!("{SIZE} bytes copied"))
    }
}

/// The line of the kernel's IOMMU driver about an access to the page at `address`; else the lines that
/// it logged instead.
fn dmar_fault(
    log: &mut KernelLog,
    end: End,
    address: u64,
) -> std::io::Result<Result<String, Vec<String>>> {
    let access = if end == End::Source { "DMA Read PASID" } else { "DMA Write PASID" };
    let address = format!("fault addr {address:#x} ");
    log.find(LOGGED_WITHIN, |line| line.contains(access) && line.contains(&address))
}
