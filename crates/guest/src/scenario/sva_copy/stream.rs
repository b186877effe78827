//! `stream`: the operations of `sva-copy` over and over, each round through a queue that is opened anew (so that the
//! process is bound anew) and on memory that is mapped anew, for as long as the lab wants.

use super::memory::{self, Kind};
use super::{difference, Bench, Shape, Tally, MAX_LOST, SUBJECTS};
use crate::failure::{ensure, Outcome};
use crate::model::pattern::Random;
use crate::queue::Queue;
use crate::report::{Counts, Report};

/// The largest transfer of a round in bytes: a round is to be over soon, so that a pause is seen.
const LARGEST: usize = 65_549;

/// Runs the scenario.
pub(in crate::scenario) fn run(report: &mut Report, seed: u64) -> Outcome<Counts> {
    let mut all = Tally::default();
    let mut rounds = 0;
    for kind in Kind::ALL.into_iter().cycle() {
        round(kind, seed.wrapping_add(rounds), &mut all)?;
        rounds += 1;
        if !report.again()? {
            break;
        }
    }
    let done = all.done;
    report.check(
        "copies beside other guests, contents compared",
        all.outcome(format_args!("{rounds} rounds, bound anew for each")),
    );
    Ok(done)
}

/// Every operation over one kind of memory, through a queue of its own.
fn round(kind: Kind, seed: u64, all: &mut Tally) -> Outcome<()> {
    let queue = Queue::open(0)?;
    let past = Counts::default();
    let mut bench = Bench { queue, random: Random::new(seed), past, lost: 0 };
    memory::with(kind, |arena| {
        for subject in &SUBJECTS {
            let shapes = Shape::all().filter(|shape| shape.size <= LARGEST && shape.fits(arena));
            for shape in shapes {
                let before = bench.counts();
                let outcome = (subject.case)(&mut bench, arena, shape);
                all.cases += 1;
                all.done.add(difference(bench.counts(), before));
                if let Err(failure) = outcome {
                    let (subject, kind, size) = (subject.name, kind.name(), shape.size);
                    let failure = failure.at(format_args!("{subject}, {kind}, {size} bytes"));
                    all.failure.get_or_insert(failure);
                }
                let lost = bench.queue.lost();
                ensure!(lost <= MAX_LOST, "{lost} descriptors never completed");
            }
        }
        Ok(())
    })?
}
