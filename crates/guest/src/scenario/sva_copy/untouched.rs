//! Pages that are not there, or not for writing: partial completions.

use dsa::spec::{BlockSize, Flags, Operation, Status};
use rustix::mm::ProtFlags;

use super::Bench;
use crate::dma::{Mapping, Place, Span, PAGE};
use crate::failure::{ensure, same, Context, Outcome};
use crate::job::{self, Fields};
use crate::model::crc32c::{crc32c, Bypass};
use crate::model::delta;
use crate::model::dif::{self, Tags};
use crate::model::pattern;

/// Pages of an operand.
const PAGES: usize = 16;
const SIZE: usize = PAGES * PAGE;

/// Memory that nobody has touched yet.
fn fresh(size: usize) -> Outcome<Mapping> {
    Ok(Mapping::anonymous(Place::Anywhere, size)?)
}

/// Counts the operations that were resumed, which each should have been.
#[derive(Default)]
struct Resumed {
    operations: u32,
    times: u32,
}

impl Resumed {
    fn run(&mut self, bench: &mut Bench, what: &str, operation: Operation) -> Outcome<u32> {
        let finished = bench.queue.complete(operation, Flags::empty()).at(what)?;
        let times = finished.partial_completions;
        ensure!(times > 0, "{what}: no page was missing");
        self.operations += 1;
        self.times += times;
        Ok(finished.record.crc())
    }

    fn outcome(self) -> Outcome {
        Ok(format!("{} operations resumed, {} times in all", self.operations, self.times))
    }
}

const FIELDS: Fields = Fields {
    block: BlockSize::B512,
    tags: Tags {
        application: 1,
        application_grows: true,
        application_mask: 0,
        reference: 7,
        reference_grows: true,
        guard_seed: 0,
        guard_inverted: false,
    },
};

/// Every operation that writes, into pages that were never touched.
pub(super) fn written(bench: &mut Bench) -> Outcome {
    let source = fresh(SIZE)?;
    let source = source.span();
    let data = bench.randomize(source);
    let mut resumed = Resumed::default();

    let target = fresh(SIZE)?;
    resumed.run(bench, "memory move", job::copy(source, target.span()))?;
    same("memory move", &target.span().read(), &data)?;

    let target = fresh(SIZE)?;
    resumed.run(bench, "fill", job::fill(0x1122_3344_5566_7788, target.span()))?;
    let filled = pattern::repeated(0x1122_3344_5566_7788, SIZE);
    same("fill", &target.span().read(), &filled)?;

    let (one, other) = (fresh(SIZE)?, fresh(SIZE)?);
    resumed.run(bench, "dualcast", job::dualcast(source, one.span(), other.span()))?;
    same("dualcast, first", &one.span().read(), &data)?;
    same("dualcast, second", &other.span().read(), &data)?;

    let target = fresh(SIZE)?;
    let crc = resumed.run(bench, "copy with CRC", job::copy_crc(source, target.span(), 5))?;
    same("copy with CRC", &target.span().read(), &data)?;
    ensure!(crc == crc32c(5, &data, Bypass::default()), "copy with CRC: CRC {crc:#x}");

    deltas_written(bench, source, &data, &mut resumed)?;
    blocks_written(bench, source, &data, &mut resumed)?;
    resumed.outcome()
}

fn deltas_written(
    bench: &mut Bench,
    source: Span<'_>,
    data: &[u8],
    resumed: &mut Resumed,
) -> Outcome<()> {
    let changed = fresh(SIZE)?;
    let modified = bench.randomize(changed.span());
    let expected = delta::create(data, &modified);
    let room = fresh(2 * SIZE)?;
    let room = room.span().part(0, expected.len());
    resumed.run(bench, "create delta", job::create_delta(source, changed.span(), room, 0))?;
    same("create delta", &room.read(), &expected)?;

    // Memory that nobody touched reads as zero, so the words land between zeroes.
    let target = fresh(SIZE)?;
    let expected = {
        let mut zeroes = vec![0; SIZE];
        delta::apply(&expected, &mut zeroes);
        zeroes
    };
    resumed.run(bench, "apply delta", job::apply_delta(room, target.span()))?;
    same("apply delta", &target.span().read(), &expected)
}

fn blocks_written(
    bench: &mut Bench,
    source: Span<'_>,
    data: &[u8],
    resumed: &mut Resumed,
) -> Outcome<()> {
    let with_fields = dif::insert(data, FIELDS.block, FIELDS.tags);
    let target = fresh(2 * SIZE)?;
    let target = target.span().part(0, with_fields.len());
    resumed.run(bench, "DIF insert", job::dif_insert(source, target, FIELDS))?;
    same("DIF insert", &target.read(), &with_fields)?;

    let stripped = fresh(SIZE)?;
    resumed.run(bench, "DIF strip", job::dif_strip(target, stripped.span(), FIELDS))?;
    same("DIF strip", &stripped.span().read(), data)?;

    let updated = fresh(2 * SIZE)?;
    let updated = updated.span().part(0, with_fields.len());
    let mut new = FIELDS;
    new.tags.reference = 0xffff_fff0;
    resumed.run(bench, "DIF update", job::dif_update(target, updated, FIELDS, new))?;
    same("DIF update", &updated.read(), &dif::insert(data, new.block, new.tags))
}

/// Every operation that only reads, from pages that were never touched and read as zero.
pub(super) fn read(bench: &mut Bench) -> Outcome {
    let zeroes = vec![0; SIZE];
    let mut resumed = Resumed::default();

    let (one, other) = (fresh(SIZE)?, fresh(SIZE)?);
    resumed.run(bench, "compare", job::compare(one.span(), other.span(), 0))?;
    let one = fresh(SIZE)?;
    resumed.run(bench, "compare pattern", job::compare_pattern(one.span(), 0, 0))?;
    let one = fresh(SIZE)?;
    let crc = resumed.run(bench, "CRC", job::crc(one.span(), 1))?;
    ensure!(crc == crc32c(1, &zeroes, Bypass::default()), "CRC {crc:#x} of zeroes");

    let (source, target) = (fresh(SIZE)?, fresh(SIZE)?);
    target.span().fill(0xff);
    resumed.run(bench, "memory move", job::copy(source.span(), target.span()))?;
    same("zeroes moved", &target.span().read(), &zeroes)?;

    let flushed = fresh(SIZE)?;
    bench.queue.complete(job::cache_flush(flushed.span()), Flags::empty()).at("cache flush")?;
    resumed.outcome()
}

/// One page in the middle is missing: the record tells its address and how far the copy came.
pub(super) fn exact(bench: &mut Bench) -> Outcome {
    const MISSING: usize = 5;
    let (source, target) = (fresh(SIZE)?, fresh(SIZE)?);
    let (source, target) = (source.span(), target.span());
    let data = bench.randomize(source);
    for page in (0..PAGES).filter(|page| *page != MISSING) {
        target.part(page * PAGE, PAGE).fill(0x33);
    }
    let operation = job::copy(source, target);
    let record = bench.queue.once(operation, Flags::empty())?;
    ensure!(record.status.into_bits() == 0x83, "status {:#04x}", record.status.into_bits());
    let page = record.fault_address.0 & !(PAGE as u64 - 1);
    let missing = target.part(MISSING * PAGE, PAGE).address();
    ensure!(
        page == missing,
        "fault at {:#x}, not in the page at {missing:#x}",
        record.fault_address.0
    );
    let done = record.bytes_completed as usize;
    ensure!(done <= MISSING * PAGE, "{done} bytes completed, only {} can be", MISSING * PAGE);
    let expected = data.get(..done).unwrap_or_default();
    same("what is completed", &target.part(0, done).read(), expected)?;
    let rest = crate::queue::go_on(&operation, &record)?;
    bench.queue.complete(rest, Flags::empty())?;
    same("what was resumed", &target.read(), &data)?;
    Ok(format!("stopped after {done} of {SIZE} bytes at the missing page, then resumed"))
}

/// A page that may only be read is not written, and reading it is fine.
pub(super) fn read_only(bench: &mut Bench) -> Outcome {
    let file = rustix::fs::memfd_create("read-only", rustix::fs::MemfdFlags::CLOEXEC)?;
    rustix::fs::ftruncate(&file, PAGE as u64)?;
    let page = Mapping::shared(std::os::fd::AsFd::as_fd(&file), 0, PAGE, ProtFlags::READ)?;
    page.span().touch_for_reading();
    let other = fresh(PAGE)?;
    let data = bench.randomize(other.span());
    let record = bench.queue.once(job::copy(other.span(), page.span()), Flags::empty())?;
    let (status, done) = (record.status.into_bits(), record.bytes_completed);
    ensure!((status, done) == (0x83, 0), "status {status:#04x}, {done} bytes completed");
    same("the read-only page", &page.span().read(), &[0; PAGE])?;
    ensure!(data != [0; PAGE], "nothing to tell apart");
    bench.queue.complete(job::copy(page.span(), other.span()), Flags::empty())?;
    same("copied out of it", &other.span().read(), &[0; PAGE])?;
    Ok("a write stopped with status 0x83 and no byte, a read succeeded".to_owned())
}

/// Addresses where nothing is, and addresses that no process can have.
pub(super) fn unmapped(bench: &mut Bench) -> Outcome {
    let target = fresh(PAGE)?;
    let before = bench.randomize(target.span());
    let gone = fresh(PAGE)?.span().address();
    let kernel = 0xffff_8880_0000_0000;
    let noncanonical = 0x8000_0000_0000_0000;
    for (what, address) in
        [("unmapped", gone), ("null", 0), ("kernel half", kernel), ("not canonical", noncanonical)]
    {
        let operation = Operation::MemoryMove {
            source: dsa::spec::Iova(address),
            destination: dsa::spec::Iova(target.span().address()),
            size: PAGE as u32,
        };
        let record = bench.queue.once(operation, Flags::empty())?;
        let status = record.status.status();
        let refused =
            matches!(status, Ok(Status::PageFault | Status::TranslationError | Status::ReadError));
        ensure!(refused, "{what} address {address:#x}: {status:?}");
        ensure!(record.bytes_completed == 0, "{what}: {} bytes", record.bytes_completed);
        same(what, &target.span().read(), &before)?;
    }
    Ok("4 addresses refused, no byte moved".to_owned())
}
