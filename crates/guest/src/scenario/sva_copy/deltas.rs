//! Delta records: made, refused for lack of room, and applied.

use dsa::spec::{Flags, Operation, Status};

use super::memory::Arena;
use super::{Bench, Shape};
use crate::failure::{ensure, same, Outcome};
use crate::job;
use crate::model::delta::{self, ENTRY, WORD};

/// Largest transfer size of the delta operations.
const MAX_SIZE: usize = 0x8_0000;
/// Smallest room for a record that the accelerator takes.
const MIN_RECORD: usize = 80;

/// Two buffers of the shape's size (as far as the operation takes it) and their differences.
struct Pair {
    original: Vec<u8>,
    modified: Vec<u8>,
    record: Vec<u8>,
}

impl Pair {
    /// Buffers that differ in one word of sixteen or so, and in nine at least if there are as many.
    fn new(bench: &mut Bench, shape: Shape) -> Self {
        let size = (shape.size & !(WORD - 1)).clamp(WORD, MAX_SIZE);
        let original = bench.random.bytes(size);
        let mut modified = original.clone();
        for _ in 0..(size / 128).max(12) {
            let at = bench.random.below(size);
            if let Some(byte) = modified.get_mut(at) {
                *byte = !*byte;
            }
        }
        let record = delta::create(&original, &modified);
        Self { original, modified, record }
    }

    /// Room for the record.
    fn room(&self) -> usize {
        self.record.len().max(MIN_RECORD)
    }
}

/// What a delta record should end with.
struct Expected<'a> {
    result: u8,
    record: &'a [u8],
    done: usize,
}

pub(super) fn create(bench: &mut Bench, arena: &Arena<'_>, shape: Shape) -> Outcome<()> {
    let pair = Pair::new(bench, shape);
    let size = pair.original.len();
    let (one, other) = (shape.aligned(arena, 0, size), shape.aligned(arena, 1, size));
    let room = shape.guarded_aligned(arena, 2, pair.room());
    one.write(&pair.original);
    other.write(&pair.original);
    let operation = job::create_delta(one, other, room.inner, 1 << 0);
    ends_with(bench, operation, &Expected { result: 0, record: &[], done: 0 })?;
    room.holds("record of equal buffers", &[])?;

    other.write(&pair.modified);
    let result = u8::from(!pair.record.is_empty());
    let operation = job::create_delta(one, other, room.inner, 1 << result);
    ends_with(bench, operation, &Expected { result, record: &pair.record, done: 0 })?;
    same("record", &room.inner.part(0, pair.record.len()).read(), &pair.record)?;

    let Some(done) = delta::covered(&pair.original, &pair.modified, MIN_RECORD) else {
        return Ok(());
    };
    let short = shape.guarded_aligned(arena, 2, MIN_RECORD);
    let record = pair.record.get(..MIN_RECORD / ENTRY * ENTRY).unwrap_or_default();
    let operation = job::create_delta(one, other, short.inner, 1 << 2);
    ends_with(bench, operation, &Expected { result: 2, record, done })?;
    short.holds("record without room for all", record)
}

fn ends_with(bench: &mut Bench, operation: Operation, expected: &Expected<'_>) -> Outcome<()> {
    let record = bench.queue.run(operation, Flags::CHECK_RESULT)?.record;
    let (status, result) = (record.status.status(), record.result);
    ensure!(status == Ok(Status::Success), "status {status:?}, result {result}");
    ensure!(result == expected.result, "result {result}, not {}", expected.result);
    let (length, wanted) = (record.delta_size() as usize, expected.record.len());
    ensure!(length == wanted, "a record of {length} bytes, not {wanted}");
    let done = record.bytes_completed as usize;
    ensure!(done == expected.done, "{done} bytes completed, not {}", expected.done);
    Ok(())
}

pub(super) fn apply(bench: &mut Bench, arena: &Arena<'_>, shape: Shape) -> Outcome<()> {
    let pair = Pair::new(bench, shape);
    if pair.record.is_empty() {
        return Ok(());
    }
    let record = shape.operand(arena, 0, pair.record.len());
    record.write(&pair.record);
    let destination = shape.guarded_aligned(arena, 1, pair.original.len());
    destination.inner.write(&pair.original);
    bench.queue.complete(job::apply_delta(record, destination.inner), Flags::empty())?;
    destination.holds("destination", &pair.modified)
}
