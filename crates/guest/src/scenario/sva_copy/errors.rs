//! Descriptors that must be refused, and with what.

use dsa::spec::{CompletionRecord, Descriptor, Flags, Iova, Opcode, Operation, Status};

use super::Bench;
use crate::dma::{Mapping, Place, Span, PAGE};
use crate::failure::{ensure, same, Outcome};
use crate::job::{self, Fields};
use crate::model::dif::{self, Tags};
use crate::scenario::misplaced;
use crate::setup::MAX_TRANSFER;

/// Two sources and two destinations of four pages each, which a refused descriptor leaves alone.
struct Ground {
    memory: Mapping,
    before: Vec<u8>,
}

impl Ground {
    fn new(bench: &mut Bench) -> Outcome<Self> {
        let memory = Mapping::anonymous(Place::Anywhere, 16 * PAGE)?;
        let before = bench.randomize(memory.span());
        Ok(Self { memory, before })
    }

    fn part(&self, index: usize) -> Span<'_> {
        self.memory.span().part(index * 4 * PAGE, 4 * PAGE)
    }

    /// Submits a descriptor that must end with `status`, nothing done.
    fn refused(
        &self,
        bench: &mut Bench,
        what: &str,
        descriptor: Descriptor,
        status: Status,
    ) -> Outcome<CompletionRecord> {
        let record = raw(bench, descriptor)?;
        let got = record.status.status();
        ensure!(got == Ok(status), "{what}: {got:?}, not {status:?}");
        let done = record.bytes_completed;
        ensure!(done == 0, "{what}: {done} bytes completed");
        same(what, &self.memory.span().read(), &self.before)?;
        Ok(record)
    }

    /// The same for several descriptors.
    fn all_refused(&self, bench: &mut Bench, cases: Vec<(&str, Descriptor, Status)>) -> Outcome {
        let count = cases.len();
        for (what, descriptor, status) in cases {
            self.refused(bench, what, descriptor, status)?;
        }
        Ok(format!("{count} descriptors refused, each with its own status, no byte moved"))
    }
}

/// Submits a descriptor as it is, its record in slot 0.
fn raw(bench: &mut Bench, descriptor: Descriptor) -> Outcome<CompletionRecord> {
    let record = bench.queue.record(0);
    record.fill(0);
    let address = Iova(record.address());
    let asked = descriptor.with_record(address).with_flags(Flags::REQUEST_RECORD);
    bench.queue.submit_raw(&asked);
    // Refused descriptors have done nothing, so any operation accounts for them alike.
    Ok(bench.queue.wait(0, &Operation::Noop)?)
}

pub(super) fn codes_and_flags(bench: &mut Bench) -> Outcome {
    let ground = Ground::new(bench)?;
    let copy = Descriptor::new(job::copy(ground.part(0), ground.part(2)));
    let mut cases = 0;
    for code in [0x0au8, 0x0f, 0x17, 0x1f, 0x21, 0x7f, 0xff] {
        ensure!(Opcode::try_from(code).is_err(), "{code:#x} is an operation");
        let mut descriptor = copy;
        descriptor.control.set_opcode(code);
        ground.refused(bench, &format!("operation {code:#x}"), descriptor, Status::BadOpcode)?;
        cases += 1;
    }
    // Bit 6 is always reserved; a fence belongs in a batch; blocking on a fault is off here.
    for flag in [1u32 << 6, 1 << 0, 1 << 1, 1 << 7, 1 << 23] {
        let descriptor = copy.with_flags(Flags::from_bits_retain(flag));
        let what = format!("flag {flag:#x}");
        let record = ground.refused(bench, &what, descriptor, Status::BadFlags)?;
        let named = record.invalid_flags();
        ensure!(named == flag, "{what}: the record names {named:#x}");
        cases += 1;
    }
    let mut descriptor = copy;
    if let Some(byte) = descriptor.operands.last_mut() {
        *byte = 1;
    }
    ground.refused(bench, "reserved field", descriptor, Status::ReservedField)?;
    Ok(format!("{} descriptors refused, wrong flags named in the record", cases + 1))
}

pub(super) fn sizes(bench: &mut Bench) -> Outcome {
    let ground = Ground::new(bench)?;
    let [one, two, three, _] = [0, 1, 2, 3].map(|index| ground.part(index));
    let empty = |span: Span<'_>| Iova(span.address());
    let too_large = u32::try_from(MAX_TRANSFER + 1)?;
    let (source, destination) = (empty(one), empty(three));
    let moved = |size| Descriptor::new(Operation::MemoryMove { source, destination, size });
    let list = empty(two);
    let batch = |count| Descriptor::new(Operation::Batch { list, count });
    let delta = |room: usize| Descriptor::new(job::create_delta(one, two, three.part(0, room), 0));
    ground.all_refused(
        bench,
        vec![
            ("move of 0 bytes", moved(0), Status::BadTransferSize),
            ("move beyond the limit", moved(too_large), Status::BadTransferSize),
            (
                "fill of 0 bytes",
                Descriptor::new(Operation::Fill { pattern: 1, destination, size: 0 }),
                Status::BadTransferSize,
            ),
            ("batch of 0", batch(0), Status::BadBatchCount),
            ("batch of 1", batch(1), Status::BadBatchCount),
            ("batch beyond the limit", batch(4096), Status::BadBatchCount),
            ("delta record below 80 bytes", delta(72), Status::BadDeltaSize),
        ],
    )
}

pub(super) fn overlap_and_alignment(bench: &mut Bench) -> Outcome {
    let ground = Ground::new(bench)?;
    let [one, two, three, four] = [0, 1, 2, 3].map(|index| ground.part(index));
    let shifted = |span: Span<'_>, by: usize| -> u64 { span.address() + by as u64 };
    let inside = ground.memory.span().part(8, 4 * PAGE);
    let list = Iova(shifted(two, 32));
    let dualcast = |other: Iova| {
        Descriptor::new(Operation::Dualcast {
            source: Iova(one.address()),
            destination1: Iova(three.address()),
            destination2: other,
            size: PAGE as u32,
        })
    };
    ground.all_refused(
        bench,
        vec![
            (
                "copy with CRC onto itself",
                Descriptor::new(job::copy_crc(one, inside, 0)),
                Status::Overlap,
            ),
            ("dualcast onto its source", dualcast(Iova(one.address())), Status::Overlap),
            ("dualcast twice to one place", dualcast(Iova(three.address())), Status::Overlap),
            (
                "dualcast to different places in pages",
                dualcast(Iova(shifted(four, 64))),
                Status::DualcastAlignment,
            ),
            (
                "delta record over its source",
                Descriptor::new(job::create_delta(one, two, inside.part(0, 80), 0)),
                Status::Overlap,
            ),
            (
                "delta of an odd size",
                Descriptor::new(job::create_delta(one.part(0, 100), two.part(0, 100), three, 0)),
                Status::Misaligned,
            ),
            (
                "descriptor list at 32 bytes",
                Descriptor::new(Operation::Batch { list, count: 2 }),
                Status::ListAlignment,
            ),
            (
                "CRC seed at an odd address",
                Descriptor::new(job::crc_seeded(one, two.part(1, 4)))
                    .with_flags(Flags::CRC_READ_SEED),
                Status::Misaligned,
            ),
        ],
    )
}

/// Errors in what operands hold: integrity fields and delta records.
pub(super) fn wrong_data(bench: &mut Bench) -> Outcome {
    let memory = Mapping::anonymous(Place::Anywhere, 8 * PAGE)?;
    let (source, target) = (memory.span().part(0, 4 * PAGE), memory.span().part(4 * PAGE, PAGE));
    let fields = Fields { block: dsa::spec::BlockSize::B512, tags: TAGS };
    let blocks = dif::insert(&bench.random.bytes(8 * 512), fields.block, TAGS);
    for (byte, bit) in [(512, 0b001), (514, 0b010), (516, 0b100)] {
        let mut damaged = blocks.clone();
        if let Some(byte) = damaged.get_mut(5 * 520 + byte) {
            *byte ^= 0x40;
        }
        let source = source.part(0, damaged.len());
        source.write(&damaged);
        let record = bench.queue.run(job::dif_check(source, fields), Flags::empty())?.record;
        let ended = (record.status.status(), record.result, record.bytes_completed);
        let expected = (Ok(Status::DifError), bit, 5 * 520);
        ensure!(ended == expected, "damaged field: {ended:?}, not {expected:?}");
    }
    let entry = |word: u16| [&word.to_le_bytes()[..], &[0xee; 8]].concat();
    for (words, status) in
        [([3, 2], Status::DeltaOffsetOrder), ([3, 600], Status::DeltaOffsetRange)]
    {
        target.fill(0);
        let delta = source.part(0, 20);
        delta.write(&words.map(entry).concat());
        let record = bench.queue.run(job::apply_delta(delta, target), Flags::empty())?.record;
        let ended = (record.status.status(), record.bytes_completed);
        ensure!(ended == (Ok(status), 10), "delta of words {words:?}: {ended:?}, not {status:?}");
        same("applied word", &target.part(24, 8).read(), &[0xee; 8])?;
        same("behind it", &target.part(32, PAGE - 32).read(), &[0; PAGE - 32])?;
    }
    Ok("3 damaged fields and 2 bad delta records found where they were".to_owned())
}

const TAGS: Tags = Tags {
    application: 0xface,
    application_grows: false,
    application_mask: 0,
    reference: 0xabba,
    reference_grows: true,
    guard_seed: 0,
    guard_inverted: false,
};

/// A record address that is not a multiple of 32 is an error that the submitter's memory never
/// sees; the queue goes on.
pub(super) fn misplaced_record(bench: &mut Bench) -> Outcome {
    let (_, line) = misplaced::misplaced_record(&mut bench.queue)?;
    bench.queue.complete(Operation::Noop, Flags::empty())?;
    Ok(format!("no byte written; the kernel logged {line:?}"))
}
