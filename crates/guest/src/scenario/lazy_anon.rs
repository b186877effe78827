//! `lazy-anon`: memory that no processor has touched.
//!
//! ```text
//!   mmap ──► no page behind it ──► the device's access faults ──► page request ──► the kernel makes
//!   the page, as for the process itself ──► page response ──► the descriptor goes on
//! ```
//!
//! The kernel's page map says before each part that nothing is there, and afterwards that the pages
//! are: nobody but the device touches them in between.

use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;

use dsa::spec::{CompletionRecord, Descriptor, Flags, Iova, Operation, Status};
use rustix::fs::{memfd_create, MemfdFlags};
use rustix::mm::ProtFlags;

use crate::dma::{Mapping, Place, Span, HUGE_PAGE, PAGE};
use crate::failure::{ensure, same, Context, Failure, Outcome};
use crate::job;
use crate::model::pattern::{repeated, Random};
use crate::pagemap::{census, untouched};
use crate::portal::DESCRIPTOR;
use crate::queue::{read_record, success, Queue};
use crate::report::{Counts, Report};
use crate::setup::{BLOCKING, QUEUES};

/// Pages of most operands.
const PAGES: usize = 64;
const SIZE: usize = PAGES * PAGE;
/// Members of the batch.
const MEMBERS: usize = 8;
/// What destinations are filled with beforehand if they are touched.
const STALE: u8 = 0xa5;

/// What is tried on a queue, with the seed's choices.
type Part = fn(&mut Queue, &mut Random) -> Outcome;

const PARTS: [(&str, Part); 8] = [
    ("a destination never touched", destination),
    ("a source never touched", source),
    ("both, with pages here and there", patchwork),
    ("two destinations at once", dualcast),
    ("a huge page", huge),
    ("a completion record", record),
    ("a descriptor list, its members' records and operands", list),
    ("without the flag it stops at the page as before", stops),
];

/// The scenario.
pub(super) fn run(report: &mut Report, seed: u64) -> Outcome<Counts> {
    let mut random = Random::new(seed);
    let mut queue = Queue::open(BLOCKING[0])?;
    for (what, part) in PARTS {
        report.check(what, part(&mut queue, &mut random));
        if queue.lost() > 0 {
            // Whoever closes the queue waits for it, too.
            report.note("the rest is not tried: a descriptor never completed");
            return Ok(queue.counts());
        }
    }
    let mut counts = queue.counts();
    drop(queue);
    let mut plain = Queue::open(QUEUES[0])?;
    report.check("a queue that may not block refuses the flag", refused(&mut plain));
    counts.add(plain.counts());
    drop(plain);
    Ok(counts)
}

/// Memory that nothing has touched.
fn fresh(len: usize) -> Outcome<Mapping> {
    let mapping = Mapping::anonymous(Place::Anywhere, len)?;
    untouched(mapping.span())?;
    Ok(mapping)
}

/// Memory with these bytes.
fn filled(bytes: &[u8]) -> Outcome<Mapping> {
    let mapping = Mapping::anonymous(Place::Anywhere, bytes.len())?;
    mapping.span().write(bytes);
    Ok(mapping)
}

/// The device had every page of a span made.
fn all_present(what: &str, span: Span<'_>) -> Outcome<()> {
    let census = census(span)?;
    ensure!(census.present == census.pages, "{what}: {census:?}");
    Ok(())
}

fn destination(queue: &mut Queue, random: &mut Random) -> Outcome {
    let data = random.bytes(SIZE);
    let (source, target) = (filled(&data)?, fresh(SIZE)?);
    queue.block(job::copy(source.span(), target.span()))?;
    all_present("destination", target.span())?;
    same("copied bytes", &target.span().read(), &data)?;
    Ok(format!("{SIZE} bytes copied, {PAGES} pages made on the way"))
}

fn source(queue: &mut Queue, _: &mut Random) -> Outcome {
    let (source, target) = (fresh(SIZE)?, filled(&[STALE; SIZE])?);
    queue.block(job::copy(source.span(), target.span()))?;
    all_present("source", source.span())?;
    same("copied zeros", &target.span().read(), &[0; SIZE])?;
    Ok(format!("{SIZE} zeros copied out of {PAGES} pages that were not there"))
}

fn patchwork(queue: &mut Queue, random: &mut Random) -> Outcome {
    let (source, target) = (fresh(SIZE)?, fresh(SIZE)?);
    let mut expected = vec![0; SIZE];
    let mut touched = 0;
    for page in 0..PAGES {
        let choice = random.below(4);
        if choice & 1 != 0 {
            let bytes = random.bytes(PAGE);
            source.span().part(page * PAGE, PAGE).write(&bytes);
            expected[page * PAGE..(page + 1) * PAGE].copy_from_slice(&bytes);
            touched += 1;
        }
        if choice & 2 != 0 {
            target.span().part(page * PAGE, PAGE).fill(STALE);
            touched += 1;
        }
    }
    // Neither end of the operands is at a page's.
    let (from, len) = (1 + random.below(PAGE - 1), SIZE - PAGE);
    let to = target.span().part(PAGE - from, len);
    queue.block(job::copy(source.span().part(from, len), to))?;
    same("copied bytes", &to.read(), &expected[from..from + len])?;
    Ok(format!("{len} bytes, {touched} of {} pages were there", 2 * PAGES))
}

fn dualcast(queue: &mut Queue, random: &mut Random) -> Outcome {
    let data = random.bytes(SIZE);
    let (source, one, other) = (filled(&data)?, fresh(SIZE)?, fresh(SIZE)?);
    queue.block(job::dualcast(source.span(), one.span(), other.span()))?;
    for (name, target) in [("first", &one), ("second", &other)] {
        all_present(name, target.span())?;
        same(name, &target.span().read(), &data)?;
    }
    Ok(format!("twice {SIZE} bytes, {} pages made on the way", 2 * PAGES))
}

fn huge(queue: &mut Queue, random: &mut Random) -> Outcome {
    let mapping = Mapping::anonymous(Place::Anywhere, 2 * HUGE_PAGE)?;
    mapping.want_huge_pages()?;
    let target = mapping.aligned(HUGE_PAGE).part(0, HUGE_PAGE);
    untouched(target)?;
    let data = random.bytes(PAGE);
    let source = filled(&data)?;
    let middle = target.part(HUGE_PAGE / 2 + 123, PAGE);
    queue.block(job::copy(source.span(), middle))?;
    let census = census(target)?;
    let mut expected = vec![0; HUGE_PAGE];
    expected[HUGE_PAGE / 2 + 123..][..PAGE].copy_from_slice(&data);
    same("huge page", &target.read(), &expected)?;
    // The kernel may have had no huge page to give.
    let made = if census.present == census.pages { "one huge page" } else { "small pages" };
    Ok(format!("{PAGE} bytes into the middle of one: the kernel made {made}"))
}

/// The record's page is left alone until a drain has completed after it.
fn record(queue: &mut Queue, _: &mut Random) -> Outcome {
    let (target, memory) = (fresh(PAGE)?, fresh(PAGE)?);
    let record = memory.span().part(5 * CompletionRecord::SIZE, CompletionRecord::SIZE);
    let operation = job::fill(0x1122_3344_5566_7788, target.span());
    let descriptor = Descriptor::new(operation)
        .with_record(Iova(record.address()))
        .with_flags(Flags::REQUEST_RECORD | Flags::BLOCK_ON_FAULT);
    queue.submit_raw(&descriptor);
    queue.once(job::DRAIN, Flags::empty())?;
    all_present("record", memory.span())?;
    let written = read_record(record).ok_or_else(|| Failure::new("no record was written"))?;
    queue.account(&operation, &written);
    ensure!(written.status.status() == Ok(Status::Success), "{written:?}");
    same("filled page", &target.span().read(), &repeated(0x1122_3344_5566_7788, PAGE))?;
    Ok("its page was made when it was written".to_owned())
}

/// The list lies in a file that is written, not mapped; what the members use was never touched.
fn list(queue: &mut Queue, _: &mut Random) -> Outcome {
    let (targets, records) = (fresh(MEMBERS * PAGE)?, fresh(PAGE)?);
    let target = |member: usize| targets.span().part(member * PAGE, PAGE);
    let fill =
        |member: usize| job::fill(0x0101_0101_0101_0101 * (1 + member as u64), target(member));
    let record = |member: usize| {
        records.span().part(member * CompletionRecord::SIZE, CompletionRecord::SIZE)
    };
    let file = std::fs::File::from(memfd_create("list", MemfdFlags::CLOEXEC).at("memfd")?);
    for member in 0..MEMBERS {
        let descriptor = Descriptor::new(fill(member))
            .with_record(Iova(record(member).address()))
            .with_flags(Flags::REQUEST_RECORD | Flags::BLOCK_ON_FAULT);
        file.write_all_at(&descriptor.to_bytes(), (member * DESCRIPTOR) as u64).at("list")?;
    }
    file.set_len(PAGE as u64).at("list")?;
    let list = Mapping::shared(file.as_fd(), 0, PAGE, ProtFlags::READ).at("list")?;
    untouched(list.span())?;
    let batch = Operation::Batch { list: Iova(list.span().address()), count: MEMBERS as u32 };
    let end = queue.once(batch, Flags::empty())?;
    ensure!(end.status.status() == Ok(Status::Success), "the batch: {end:?}");
    for (what, span) in
        [("list", list.span()), ("records", records.span()), ("operands", targets.span())]
    {
        all_present(what, span)?;
    }
    for member in 0..MEMBERS {
        let ended = read_record(record(member));
        queue.account_member(&fill(member), &ended.unwrap_or_else(success));
        let status = ended.map(|record| record.status.status());
        ensure!(status == Some(Ok(Status::Success)), "member {member}: {ended:?}");
        same("a member's page", &target(member).read(), &[1 + member as u8; PAGE])?;
    }
    Ok(format!("{MEMBERS} members, {} pages made", MEMBERS + 2))
}

fn stops(queue: &mut Queue, random: &mut Random) -> Outcome {
    let data = random.bytes(4 * PAGE);
    let (source, target) = (filled(&data)?, fresh(4 * PAGE)?);
    target.span().part(0, PAGE).fill(STALE);
    let copy = job::copy(source.span(), target.span());
    let first = queue.once(copy, Flags::empty())?;
    let at = target.span().address() + PAGE as u64;
    ensure!(
        first.status.status() == Ok(Status::PageFault)
            && first.status.write()
            && first.fault_address.0 & !(PAGE as u64 - 1) == at
            && first.bytes_completed as usize == PAGE,
        "not stopped at {at:#x} with a page done: {first:?}"
    );
    let rest = queue.complete(copy, Flags::empty())?;
    ensure!(rest.partial_completions == 3, "{} stops, not 3", rest.partial_completions);
    same("copied bytes", &target.span().read(), &data)?;
    Ok("a partial completion at each of 3 pages, resumed to the end".to_owned())
}

fn refused(queue: &mut Queue) -> Outcome {
    let (source, target) = (filled(&[1; PAGE])?, filled(&[STALE; PAGE])?);
    let copy = job::copy(source.span(), target.span());
    let record = queue.once(copy, Flags::BLOCK_ON_FAULT)?;
    ensure!(record.status.status() == Ok(Status::BadFlags), "{record:?}");
    same("destination", &target.span().read(), &[STALE; PAGE])?;
    Ok("status 0x11, nothing done".to_owned())
}
