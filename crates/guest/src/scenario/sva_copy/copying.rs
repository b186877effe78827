//! Operations that write a destination: move, fill, dualcast, copy with CRC.

use dsa::spec::Flags;

use super::memory::Arena;
use super::{Bench, Guarded, Shape, GUARD};
use crate::dma::{Mapping, Place, PAGE};
use crate::failure::{ensure, Outcome};
use crate::job;
use crate::model::crc32c::{crc32c, Bypass};
use crate::model::pattern;

pub(super) fn memory_move(bench: &mut Bench, arena: &Arena<'_>, shape: Shape) -> Outcome<()> {
    let source = shape.operand(arena, 0, shape.size);
    let data = bench.randomize(source);
    let destination = shape.guarded(arena, 1, shape.size);
    bench.queue.complete(job::copy(source, destination.inner), Flags::empty())?;
    destination.holds("destination", &data)
}

pub(super) fn fill(bench: &mut Bench, arena: &Arena<'_>, shape: Shape) -> Outcome<()> {
    let word = bench.random.next();
    let destination = shape.guarded(arena, 1, shape.size);
    bench.queue.complete(job::fill(word, destination.inner), Flags::empty())?;
    destination.holds("destination", &pattern::repeated(word, shape.size))
}

pub(super) fn dualcast(bench: &mut Bench, arena: &Arena<'_>, shape: Shape) -> Outcome<()> {
    let source = shape.operand(arena, 0, shape.size);
    let data = bench.randomize(source);
    let one = shape.guarded(arena, 1, shape.size);
    // The destinations must have the same place in their pages.
    let [_, _, area, _] = arena.areas;
    let shift = (one.inner.address().wrapping_sub(area.address()) as usize) % PAGE;
    let other = Guarded::new(area, PAGE + shift, shape.size);
    bench.queue.complete(job::dualcast(source, one.inner, other.inner), Flags::empty())?;
    one.holds("first destination", &data)?;
    other.holds("second destination", &data)
}

pub(super) fn copy_crc(bench: &mut Bench, arena: &Arena<'_>, shape: Shape) -> Outcome<()> {
    let source = shape.operand(arena, 0, shape.size);
    let data = bench.randomize(source);
    let destination = shape.guarded(arena, 1, shape.size);
    let seed = bench.random.next() as u32;
    let operation = job::copy_crc(source, destination.inner, seed);
    let finished = bench.queue.complete(operation, Flags::empty())?;
    let (got, expected) = (finished.record.crc(), crc32c(seed, &data, Bypass::default()));
    ensure!(got == expected, "CRC {got:#010x}, not {expected:#010x}");
    destination.holds("destination", &data)
}

/// Moves within one buffer, forwards and backwards by one byte, a page and more.
pub(super) fn overlapping_moves(bench: &mut Bench) -> Outcome {
    const LEN: usize = 64 * 1024;
    let mapping = Mapping::anonymous(Place::Anywhere, 2 * LEN + PAGE)?;
    let area = mapping.span();
    let mut cases = 0;
    for distance in [1, 63, PAGE - 1, PAGE, PAGE + 5, LEN - 1] {
        for (from, to) in [(GUARD, GUARD + distance), (GUARD + distance, GUARD)] {
            let before = bench.randomize(area);
            let (source, destination) = (area.part(from, LEN), area.part(to, LEN));
            bench.queue.complete(job::copy(source, destination), Flags::empty())?;
            let mut expected = before;
            expected.copy_within(from..from + LEN, to);
            crate::failure::same(&format!("move by {distance}"), &area.read(), &expected)?;
            cases += 1;
        }
    }
    Ok(format!("{cases} moves of {LEN} bytes, forwards and backwards"))
}
