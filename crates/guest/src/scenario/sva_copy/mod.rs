//! `sva-copy`: every operation of the accelerator over every kind of a process's memory.
//!
//! Each case writes its operands (which also makes their pages present), runs one operation by
//! plain virtual addresses, and compares all that the operation may and may not have changed with
//! an independent software account.

use std::fmt::Display;

use crate::dma::{Span, HUGE_PAGE};
use crate::failure::{ensure, same, Failure, Outcome};
use crate::model::pattern::Random;
use crate::queue::Queue;
use crate::report::{Counts, Report};

mod batches;
mod blocks;
mod comparing;
mod control;
mod copying;
mod deltas;
mod errors;
mod memory;
mod stream;
mod untouched;

use memory::{Arena, Kind};
pub(super) use stream::run as stream;

/// Descriptors that may get lost before the rest of the scenario is given up.
const MAX_LOST: u32 = 3;

/// The process's queue and its choices.
struct Bench {
    queue: Queue,
    random: Random,
    /// The account of queues that were given up.
    past: Counts,
    lost: u32,
}

/// An operation and its test over one shape of operands.
struct Subject {
    name: &'static str,
    case: fn(&mut Bench, &Arena<'_>, Shape) -> Outcome<()>,
}

const SUBJECTS: [Subject; 14] = [
    Subject { name: "memory move", case: copying::memory_move },
    Subject { name: "fill", case: copying::fill },
    Subject { name: "dualcast", case: copying::dualcast },
    Subject { name: "compare", case: comparing::compare },
    Subject { name: "compare pattern", case: comparing::compare_pattern },
    Subject { name: "CRC generation", case: comparing::crc },
    Subject { name: "copy with CRC", case: copying::copy_crc },
    Subject { name: "create delta record", case: deltas::create },
    Subject { name: "apply delta record", case: deltas::apply },
    Subject { name: "DIF check", case: blocks::check },
    Subject { name: "DIF insert", case: blocks::insert },
    Subject { name: "DIF strip", case: blocks::strip },
    Subject { name: "DIF update", case: blocks::update },
    Subject { name: "cache flush", case: control::cache_flush },
];

/// A test of something else than one operation over all shapes.
struct Special {
    name: &'static str,
    run: fn(&mut Bench) -> Outcome,
}

const SPECIALS: [Special; 19] = [
    Special { name: "no-op", run: control::noop },
    Special { name: "drain", run: control::drain },
    Special { name: "record only where asked for", run: control::unrequested_record },
    Special { name: "memory move onto itself", run: copying::overlapping_moves },
    Special { name: "batch of every kind of operation", run: batches::mixed },
    Special { name: "batch with a failing member", run: batches::failing_member },
    Special { name: "batch with a fence", run: batches::fence },
    Special { name: "batch: a fence after a failure", run: batches::fence_after_failure },
    Special { name: "batch over pages not touched", run: batches::untouched },
    Special { name: "errors: operation codes and flags", run: errors::codes_and_flags },
    Special { name: "errors: sizes", run: errors::sizes },
    Special { name: "errors: overlap and alignment", run: errors::overlap_and_alignment },
    Special { name: "errors: wrong data", run: errors::wrong_data },
    Special { name: "errors: misplaced completion record", run: errors::misplaced_record },
    Special { name: "untouched pages: what is written", run: untouched::written },
    Special { name: "untouched pages: what is read", run: untouched::read },
    Special { name: "untouched pages: partial completion is exact", run: untouched::exact },
    Special { name: "pages that are read-only", run: untouched::read_only },
    Special { name: "pages that are not there", run: untouched::unmapped },
];

/// Transfer sizes: the smallest, around cache lines, around pages, and the largest.
const SIZES: [usize; 15] =
    [1, 2, 7, 63, 64, 65, 511, 4095, 4096, 4097, 12_345, 65_536, 65_549, (1 << 20) - 3, HUGE_PAGE];

/// Offsets of operands in their areas: aligned, odd, before a page's end, before a huge page's.
const OFFSETS: [usize; 8] = [0, 1, 4093, 64, HUGE_PAGE - 37, 2053, HUGE_PAGE - 4096 + 9, 8];

/// Bytes around a destination that must not change.
const GUARD: usize = 32;
/// What they hold.
const CANARY: u8 = 0xc5;

/// A size and where the operands of it are.
#[derive(Debug, Clone, Copy)]
struct Shape {
    index: usize,
    size: usize,
}

impl Shape {
    fn all() -> impl Iterator<Item = Self> {
        SIZES.into_iter().enumerate().map(|(index, size)| Self { index, size })
    }

    /// Room for an operand, its guards, integrity fields and one block at least.
    fn room(self) -> usize {
        self.size + self.size / 32 + 8192
    }

    fn fits(self, arena: &Arena<'_>) -> bool {
        arena.areas.iter().all(|area| self.room() < area.len())
    }

    /// Where an operand of this shape starts in its area, a guard's width from its ends.
    fn offset(self, arena: &Arena<'_>, operand: usize) -> usize {
        let free = arena.areas.get(operand).map_or(1, |area| area.len() - self.room());
        let wanted = OFFSETS.get((self.index + 3 * operand) % OFFSETS.len()).copied();
        GUARD + wanted.unwrap_or_default() % free
    }

    /// An operand of `size` bytes at this shape's place.
    fn operand<'a>(self, arena: &Arena<'a>, operand: usize, size: usize) -> Span<'a> {
        arena.areas[operand].part(self.offset(arena, operand), size)
    }

    /// The same at a multiple of eight.
    fn aligned<'a>(self, arena: &Arena<'a>, operand: usize, size: usize) -> Span<'a> {
        let area = arena.areas[operand];
        let offset = self.offset(arena, operand);
        let past = (area.address() as usize + offset) % 8;
        area.part(offset - past, size)
    }
}

/// A destination between guards.
struct Guarded<'a> {
    inner: Span<'a>,
    outer: Span<'a>,
}

impl<'a> Guarded<'a> {
    /// The bytes `offset..offset + size` of an area, everything around and in it overwritten.
    fn new(area: Span<'a>, offset: usize, size: usize) -> Self {
        let inner = area.part(offset, size);
        let outer = area.part(offset - GUARD, size + 2 * GUARD);
        outer.fill(CANARY);
        Self { inner, outer }
    }

    /// Compares what is there with what should be, the guards included.
    fn holds(&self, what: &str, expected: &[u8]) -> Outcome<()> {
        let mut all = vec![CANARY; GUARD];
        all.extend_from_slice(expected);
        all.resize(self.outer.len(), CANARY);
        same(what, &self.outer.read(), &all)
    }
}

impl Shape {
    /// A destination of `size` bytes at this shape's place.
    fn guarded<'a>(self, arena: &Arena<'a>, operand: usize, size: usize) -> Guarded<'a> {
        Guarded::new(arena.areas[operand], self.offset(arena, operand), size)
    }

    /// The same at a multiple of eight.
    fn guarded_aligned<'a>(self, arena: &Arena<'a>, operand: usize, size: usize) -> Guarded<'a> {
        let offset = self.offset(arena, operand);
        let past = (arena.areas[operand].address() as usize + offset) % 8;
        Guarded::new(arena.areas[operand], offset + (8 - past) % 8, size)
    }
}

impl Bench {
    /// Everything that was done.
    fn counts(&self) -> Counts {
        let mut counts = self.past;
        counts.add(self.queue.counts());
        counts
    }

    /// Random bytes in a span.
    fn randomize(&mut self, span: Span<'_>) -> Vec<u8> {
        let bytes = self.random.bytes(span.len());
        span.write(&bytes);
        bytes
    }

    /// After a failure: a fresh queue, so that one lost descriptor fails one check only.
    fn recover(self) -> Outcome<Self> {
        let Self { queue, random, mut past, mut lost } = self;
        past.add(queue.counts());
        lost += queue.lost();
        drop(queue);
        ensure!(lost <= MAX_LOST, "{lost} descriptors never completed, the rest was not tried");
        Ok(Self { queue: Queue::open(0)?, random, past, lost })
    }
}

/// What became of the cases of one check.
#[derive(Default)]
struct Tally {
    cases: u64,
    done: Counts,
    failure: Option<Failure>,
}

impl Tally {
    fn outcome(self, what: impl Display) -> Outcome {
        let Self { cases, done, failure } = self;
        match failure {
            Some(failure) => Err(failure),
            None => Ok(format!(
                "{what}: {cases} cases, {} descriptors, {} bytes, {} partial completions",
                done.descriptors, done.bytes, done.partial_completions
            )),
        }
    }
}

/// Runs the scenario.
pub(super) fn run(report: &mut Report, seed: u64) -> Outcome<Counts> {
    let mut bench = Bench {
        queue: Queue::open(0)?,
        random: Random::new(seed),
        past: Counts::default(),
        lost: 0,
    };
    let mut by_subject = SUBJECTS.each_ref().map(|_| Tally::default());
    for kind in Kind::ALL {
        let over = over_kind(bench, kind, &mut by_subject);
        if over.is_err() {
            report_failed(report, &by_subject);
        }
        let (back, tally, backing) = over?;
        bench = back;
        let outcome =
            tally.outcome("all operations").and_then(|text| Ok(format!("{text}; {}", backing?)));
        report.check(&format!("memory: {}", kind.name()), outcome);
    }
    for (subject, tally) in SUBJECTS.iter().zip(by_subject) {
        report.check(subject.name, tally.outcome(format!("{} kinds of memory", Kind::ALL.len())));
    }
    for special in &SPECIALS {
        let outcome = (special.run)(&mut bench);
        let failed = outcome.is_err();
        report.check(special.name, outcome);
        if failed {
            bench = bench.recover()?;
        }
    }
    Ok(bench.counts())
}

/// Reports the operations that failed so far, when the scenario ends early.
fn report_failed(report: &mut Report, by_subject: &[Tally]) {
    for (subject, tally) in SUBJECTS.iter().zip(by_subject) {
        if let Some(failure) = &tally.failure {
            report.check(subject.name, Err(failure.clone()));
        }
    }
}

/// Runs every operation over one kind of memory.
fn over_kind(
    bench: Bench,
    kind: Kind,
    by_subject: &mut [Tally],
) -> Outcome<(Bench, Tally, Outcome)> {
    memory::with(kind, |arena| {
        let mut bench = bench;
        let mut all = Tally::default();
        for (subject, tally) in SUBJECTS.iter().zip(by_subject) {
            for shape in Shape::all().filter(|shape| shape.fits(arena)) {
                let before = bench.counts();
                let outcome = (subject.case)(&mut bench, arena, shape);
                let done = difference(bench.counts(), before);
                for tally in [&mut all, &mut *tally] {
                    tally.cases += 1;
                    tally.done.add(done);
                }
                if let Err(failure) = outcome {
                    let failure = failure.at(format_args!("{}, {} bytes", kind.name(), shape.size));
                    tally.failure.get_or_insert_with(|| failure.clone());
                    all.failure.get_or_insert_with(|| failure.at(subject.name));
                    bench = bench.recover()?;
                    break;
                }
            }
        }
        Ok((bench, all, memory::backing(arena)))
    })?
}

fn difference(after: Counts, before: Counts) -> Counts {
    Counts {
        descriptors: after.descriptors - before.descriptors,
        bytes: after.bytes - before.bytes,
        partial_completions: after.partial_completions - before.partial_completions,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_operand_of_every_shape_is_inside_its_area() {
        for kind in Kind::ALL {
            memory::with(kind, |arena| {
                let mut largest = 0;
                for shape in Shape::all().filter(|shape| shape.fits(arena)) {
                    for operand in 0..memory::AREAS {
                        let size = shape.room() - 2 * GUARD - 8;
                        shape.guarded(arena, operand, size);
                        shape.guarded_aligned(arena, operand, size);
                    }
                    largest = shape.size;
                }
                assert!(largest >= 65_549, "{kind:?} stops at {largest}");
                assert!(kind == Kind::Stack || largest == HUGE_PAGE);
            })
            .unwrap();
        }
    }

    #[test]
    fn a_changed_guard_is_noticed() {
        let mut area = [0; 256];
        let area = Span::lend(&mut area);
        let guarded = Guarded::new(area, 64, 8);
        guarded.inner.write(&[1; 8]);
        assert_eq!(guarded.holds("x", &[1; 8]), Ok(()));
        area.part(72, 1).fill(0);
        assert!(guarded.holds("x", &[1; 8]).is_err());
    }
}
