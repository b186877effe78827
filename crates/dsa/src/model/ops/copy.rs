//! Memory move, dualcast and cache flush.

use mem::Iova;

use super::{overlap, Progress, Step, CHUNK};
use crate::model::engine::Dma;
use crate::model::sabotage::{self, Sabotage};
use crate::spec::Status;

/// Result of a memory move that was stopped: bytes completed count from the end.
const FROM_THE_END: u8 = 1;

/// Memory move: as if through a temporary, so it runs backwards when the destination begins inside
/// the source.
#[derive(Debug)]
pub(in crate::model) struct Copy {
    source: Iova,
    destination: Iova,
    progress: Progress,
    backward: bool,
}

impl Copy {
    pub(super) fn new(source: Iova, destination: Iova, size: u32) -> Self {
        let ahead = destination.0.wrapping_sub(source.0);
        let backward = ahead != 0 && ahead < u64::from(size);
        Self { source, destination, progress: Progress::new(size), backward }
    }

    pub(super) fn step(&mut self, dma: &Dma<'_>) -> Step {
        let len = self.progress.next(CHUNK);
        if self.backward {
            let left = self.progress.size - self.progress.done;
            let end = |base| super::plus(base, left);
            let result = dma.copy_back(end(self.source), end(self.destination), len);
            return match self.progress.step(len, result) {
                Step::Done(outcome) if outcome.status() != Some(Status::Success) => {
                    Step::Done(outcome.with_result(FROM_THE_END))
                }
                step => step,
            };
        }
        let (from, to) = (self.progress.at(self.source), self.progress.at(self.destination));
        let result = dma.copy(from, to, len);
        if sabotage::is(Sabotage::CorruptCopy) && result.is_ok() {
            dma.flip(to);
        }
        self.progress.step(len, result)
    }
}

/// Dualcast.
#[derive(Debug)]
pub(in crate::model) struct Dualcast {
    source: Iova,
    destinations: [Iova; 2],
    progress: Progress,
}

impl Dualcast {
    pub(super) fn new(source: Iova, to: [Iova; 2], size: u32) -> Result<Self, Status> {
        let len = u64::from(size);
        if to[0].0 % 4096 != to[1].0 % 4096 {
            return Err(Status::DualcastAlignment);
        }
        let pairs = [(source, to[0]), (source, to[1]), (to[0], to[1])];
        if pairs.iter().any(|&(a, b)| overlap(a, len, b, len)) {
            return Err(Status::Overlap);
        }
        Ok(Self { source, destinations: to, progress: Progress::new(size) })
    }

    pub(super) fn step(&mut self, dma: &Dma<'_>) -> Step {
        let len = self.progress.next(CHUNK);
        let to = self.destinations.map(|base| self.progress.at(base));
        let result = dma.copy_twice(self.progress.at(self.source), to, len);
        self.progress.step(len, result)
    }
}

/// Cache flush: memory is coherent here, so nothing is left to do but what can be seen of it, its
/// translations.
#[derive(Debug)]
pub(in crate::model) struct Flush {
    destination: Iova,
    progress: Progress,
}

impl Flush {
    pub(super) fn new(destination: Iova, size: u32) -> Self {
        Self { destination, progress: Progress::new(size) }
    }

    pub(super) fn step(&mut self, dma: &Dma<'_>) -> Step {
        let len = self.progress.next(CHUNK);
        let result = dma.touch(self.progress.at(self.destination), len);
        self.progress.step(len, result)
    }
}
