//! Fill.

use mem::Iova;

use super::{Progress, Scratch, Step, CHUNK, PIECE};
use crate::model::engine::{Dma, Short};

/// Length of a pattern in bytes.
const PATTERN: usize = 8;

/// Fill: the pattern starts at the destination's first byte.
#[derive(Debug)]
pub(in crate::model) struct Fill {
    pattern: u64,
    destination: Iova,
    progress: Progress,
}

impl Fill {
    pub(super) fn new(pattern: u64, destination: Iova, size: u32) -> Self {
        Self { pattern, destination, progress: Progress::new(size) }
    }

    pub(super) fn step(&mut self, dma: &Dma<'_>, scratch: &mut Scratch) -> Step {
        for pattern in scratch.first[..PIECE].chunks_exact_mut(PATTERN) {
            pattern.copy_from_slice(&self.pattern.to_le_bytes());
        }
        for _ in 0..CHUNK / PIECE {
            let len = self.progress.next(PIECE);
            let result = dma.write(self.progress.at(self.destination), &scratch.first[..len]);
            // The rest is submitted with the same pattern, so only whole patterns count.
            let whole = |short: Short| Short { done: short.done / PATTERN * PATTERN, ..short };
            match self.progress.step(len, result.map_err(whole)) {
                Step::More => {}
                end => return end,
            }
        }
        Step::More
    }
}
