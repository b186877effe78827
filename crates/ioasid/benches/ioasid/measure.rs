//! Timing: rounds of many operations, the subjects in turn, and the least of each.
//!
//! The machine is shared. What disturbs a round only ever makes it longer, so the least of several
//! rounds is what the code costs; and what is compared runs in turn, so that a slow minute is
//! slow for all.

use std::hint::black_box;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Barrier;
use std::time::{Duration, Instant};

/// How long to measure.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Effort {
    /// How long a round takes, about: less than what the operating system gives a thread at one
    /// time, so that on a busy machine too some rounds are undisturbed.
    pub(crate) round: Duration,
    /// Rounds of each subject.
    pub(crate) rounds: usize,
    /// Operations before each round that are not timed: what ran in between has the caches.
    pub(crate) warm: u64,
}

impl Effort {
    /// Operations that take about a round.
    fn operations(self, round: &mut Round<'_>) -> u64 {
        let time = |round: &mut Round<'_>| nanoseconds(SAMPLE, round);
        // The first ones meet cold caches.
        let least = time(round).min(time(round)).max(0.1);
        ((self.round.as_nanos() as f64 / least) as u64).max(SAMPLE)
    }
}

/// Operations by which their time is guessed; a multiple of every group that a row counts in.
const SAMPLE: u64 = 512;

/// Nanoseconds an operation of one round.
fn nanoseconds(ops: u64, round: &mut Round<'_>) -> f64 {
    let begin = Instant::now();
    black_box(round(ops));
    begin.elapsed().as_nanos() as f64 / ops as f64
}

/// Something that does a number of operations and gives a sum that depends on all of them.
pub(crate) type Round<'a> = Box<dyn FnMut(u64) -> u64 + 'a>;

/// Nanoseconds an operation of each subject.
pub(crate) fn in_turn(effort: Effort, subjects: &mut [Round<'_>]) -> Vec<f64> {
    let ops: Vec<u64> = subjects.iter_mut().map(|round| effort.operations(round)).collect();
    let mut least = vec![f64::INFINITY; subjects.len()];
    for _ in 0..effort.rounds {
        for ((least, round), &ops) in least.iter_mut().zip(subjects.iter_mut()).zip(&ops) {
            black_box(round(effort.warm));
            *least = least.min(nanoseconds(ops, round));
        }
    }
    least
}

/// Nanoseconds an operation of a thread, when `threads` of them run what `make` gives each. A
/// round counts with its slowest thread.
pub(crate) fn together<'a>(
    effort: Effort,
    threads: usize,
    make: impl Fn(usize) -> Round<'a> + Sync,
) -> f64 {
    let start = Barrier::new(threads);
    let times: Vec<Vec<f64>> = std::thread::scope(|scope| {
        let run = |index| {
            let (make, start) = (&make, &start);
            scope.spawn(move || {
                let mut round = make(index);
                let ops = effort.operations(&mut round);
                let mut one = || {
                    start.wait();
                    nanoseconds(ops, &mut round)
                };
                (0..effort.rounds * threads).map(|_| one()).collect()
            })
        };
        let handles: Vec<_> = (0..threads).map(run).collect();
        handles.into_iter().map(|handle| handle.join().expect("a round panicked")).collect()
    });
    let slowest = |round: usize| times.iter().map(|times| times[round]).fold(0.0, f64::max);
    (0..effort.rounds * threads).map(slowest).fold(f64::INFINITY, f64::min)
}

/// Runs `f` while another thread repeats `disturb`.
pub(crate) fn disturbed<R>(mut disturb: impl FnMut() + Send, f: impl FnOnce() -> R) -> R {
    let over = AtomicBool::new(false);
    let begun = Barrier::new(2);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            begun.wait();
            while !over.load(Ordering::Relaxed) {
                disturb();
            }
        });
        begun.wait();
        let result = f();
        over.store(true, Ordering::Relaxed);
        result
    })
}

/// Numbers that look random, the same ones each time.
#[derive(Clone, Debug)]
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed | 1)
    }

    /// Below `limit`.
    pub(crate) fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (((self.0 >> 32) * limit as u64) >> 32) as usize
    }
}

/// For each of `len` places the next one of a single cycle through all of them (Sattolo).
pub(crate) fn cycle(len: usize) -> Vec<u64> {
    let mut next: Vec<u64> = (0..len as u64).collect();
    let mut random = Random::new(0x5eed);
    for at in (1..len).rev() {
        next.swap(at, random.below(at));
    }
    next
}

/// Places to look at, independent of each other; a power of two of them.
pub(crate) fn places(len: usize) -> Vec<u32> {
    let mut random = Random::new(0xcafe);
    (0..PLACES).map(|_| random.below(len) as u32).collect()
}

/// Few enough to stay in the first-level cache, which the walk through them shares.
pub(crate) const PLACES: usize = 1 << 12;
