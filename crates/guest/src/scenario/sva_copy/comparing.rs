//! Operations that only read: compare, compare pattern, CRC.

use dsa::spec::{Flags, Operation, Status};

use super::memory::Arena;
use super::{Bench, Shape};
use crate::failure::{ensure, Outcome};
use crate::job;
use crate::model::crc32c::{crc32c, Bypass};
use crate::model::pattern;

pub(super) fn compare(bench: &mut Bench, arena: &Arena<'_>, shape: Shape) -> Outcome<()> {
    let (one, other) = (shape.operand(arena, 0, shape.size), shape.operand(arena, 1, shape.size));
    other.write(&bench.randomize(one));
    equal(bench, |expected| job::compare(one, other, expected))?;
    let at = bench.random.below(shape.size);
    let byte = other.part(at, 1);
    byte.fill(!byte.load(0));
    different(bench, at, |expected| job::compare(one, other, expected))
}

pub(super) fn compare_pattern(bench: &mut Bench, arena: &Arena<'_>, shape: Shape) -> Outcome<()> {
    let word = bench.random.next();
    let source = shape.operand(arena, 0, shape.size);
    source.write(&pattern::repeated(word, shape.size));
    equal(bench, |expected| job::compare_pattern(source, word, expected))?;
    let at = bench.random.below(shape.size);
    let byte = source.part(at, 1);
    byte.fill(!byte.load(0));
    different(bench, at, |expected| job::compare_pattern(source, word, expected))
}

/// Operands are equal: the result says so, and the predicate "different" is false.
fn equal(bench: &mut Bench, operation: impl Fn(u8) -> Operation) -> Outcome<()> {
    let record = bench.queue.complete(operation(0), Flags::CHECK_RESULT)?.record;
    ensure!(record.result == 0, "equal operands, result {}", record.result);
    let record = bench.queue.run(operation(1), Flags::CHECK_RESULT)?.record;
    let status = record.status.status();
    ensure!(status == Ok(Status::FalsePredicate), "false predicate, status {status:?}");
    Ok(())
}

/// The first difference is at `at`.
fn different(bench: &mut Bench, at: usize, operation: impl Fn(u8) -> Operation) -> Outcome<()> {
    let finished = bench.queue.complete(operation(1), Flags::CHECK_RESULT)?;
    let place = finished.before + u64::from(finished.record.bytes_completed);
    let result = finished.record.result;
    ensure!(result == 1, "a difference at {at}, result {result}");
    ensure!(place == at as u64, "a difference at {at}, found at {place}");
    Ok(())
}

pub(super) fn crc(bench: &mut Bench, arena: &Arena<'_>, shape: Shape) -> Outcome<()> {
    let source = shape.operand(arena, 0, shape.size);
    let data = bench.randomize(source);
    let seed = bench.random.next() as u32;
    let in_memory = shape.aligned(arena, 1, 8).part(0, 4);
    in_memory.write(&seed.to_le_bytes());
    for inversion in [false, true] {
        for data_reflection in [false, true] {
            let bypass = Bypass { inversion, data_reflection };
            let mut flags = Flags::empty();
            flags.set(Flags::CRC_BYPASS_INVERSION, inversion);
            flags.set(Flags::CRC_BYPASS_REFLECTION, data_reflection);
            let expected = crc32c(seed, &data, bypass);
            let given = bench.queue.complete(job::crc(source, seed), flags)?.record.crc();
            ensure!(given == expected, "{bypass:?}: CRC {given:#010x}, not {expected:#010x}");
            let operation = job::crc_seeded(source, in_memory);
            let read = bench.queue.complete(operation, flags | Flags::CRC_READ_SEED)?.record.crc();
            ensure!(read == expected, "seed in memory: CRC {read:#010x}, not {expected:#010x}");
        }
    }
    Ok(())
}
