//! Compare and compare pattern.

use mem::Iova;

use super::{Outcome, Progress, Scratch, Step, CHUNK, PIECE};
use crate::model::engine::{Dma, Short};
use crate::spec::{Flags, Status};

/// What the source is compared with.
#[derive(Clone, Copy, Debug)]
pub(super) enum Other {
    Memory(Iova),
    Pattern(u64),
}

/// Result: equal.
const EQUAL: u8 = 0;
/// Result: not equal, and the bytes completed are those before the first difference.
const DIFFERENT: u8 = 1;

/// Compare, with memory or with a pattern.
#[derive(Debug)]
pub(in crate::model) struct Compare {
    source: Iova,
    other: Other,
    progress: Progress,
    /// The result that is a success, if that matters.
    expected: Option<u8>,
}

impl Compare {
    pub(super) fn new(source: Iova, other: Other, size: u32, flags: Flags, expected: u8) -> Self {
        let expected = flags.contains(Flags::CHECK_RESULT).then_some(expected & 1);
        Self { source, other, progress: Progress::new(size), expected }
    }

    pub(super) fn step(&mut self, dma: &Dma<'_>, scratch: &mut Scratch) -> Step {
        if let Other::Pattern(pattern) = self.other {
            // A fault may have stopped it inside of a pattern.
            let pattern = pattern.rotate_right(self.progress.done % 8 * 8);
            for word in scratch.second[..PIECE].chunks_exact_mut(8) {
                word.copy_from_slice(&pattern.to_le_bytes());
            }
        }
        for _ in 0..CHUNK / PIECE {
            match self.piece(dma, scratch) {
                Step::More => {}
                end => return end,
            }
        }
        Step::More
    }

    fn piece(&mut self, dma: &Dma<'_>, scratch: &mut Scratch) -> Step {
        let len = self.progress.next(PIECE);
        let mine = &mut scratch.first[..len];
        let theirs = &mut scratch.second[..len];
        let mut result = dma.read(self.progress.at(self.source), mine);
        if let Other::Memory(base) = self.other {
            // Whichever operand ends first stops the comparison.
            let other = dma.read(self.progress.at(base), theirs);
            result = match (result, other) {
                (Err(a), Err(b)) if b.done < a.done => Err(b),
                (Ok(()), other) => other,
                (mine, _) => mine,
            };
        }
        let compared = result.map_or_else(|short: Short| short.done, |()| len);
        let both = mine.iter().zip(theirs.iter()).take(compared);
        if mine[..compared] != theirs[..compared] {
            let equal = both.take_while(|(a, b)| a == b).count();
            self.progress.advance(equal);
            let outcome = Outcome::found(self.progress.size, self.progress.done);
            return Step::Done(self.checked(outcome, DIFFERENT));
        }
        self.progress.step(len, result).map(|outcome| match outcome.status() {
            Some(Status::Success) => self.checked(outcome, EQUAL),
            _ => outcome,
        })
    }

    fn checked(&self, outcome: Outcome, result: u8) -> Outcome {
        let status = match self.expected {
            Some(expected) if expected != result => Status::FalsePredicate,
            _ => Status::Success,
        };
        outcome.with_result(result).with_status(status)
    }
}
