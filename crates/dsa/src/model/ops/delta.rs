//! Create delta record and apply delta record.
//!
//! A record is a list of ten-byte entries: the offset of a word in units of eight bytes (16 bits),
//! and the eight bytes of the changed word. Offsets increase.

use mem::Iova;

use super::{overlap, plus, Outcome, Progress, Scratch, Step, CHUNK, PIECE};
use crate::model::engine::{Dma, Short};
use crate::spec::{Flags, Operation, Status, WqLimits};

/// Length of a word that is compared, in bytes.
const WORD: usize = 8;
/// Length of an entry in bytes.
const ENTRY: usize = 2 + WORD;
/// Largest transfer size: an offset has 16 bits.
const MAX_SIZE: u32 = 0x1_0000 * WORD as u32;
/// Smallest room for a record that may be offered.
const MIN_ROOM: u32 = 80;

/// Result: equal, and the record is empty.
const EQUAL: u8 = 0;
/// Result: different, and the record says how.
const DIFFERENT: u8 = 1;
/// Result: different, and the record is too small to say how.
const RAN_OUT: u8 = 2;

fn entry(index: u32, word: [u8; WORD]) -> [u8; ENTRY] {
    let [low, high] = (index as u16).to_le_bytes();
    let [a, b, c, d, e, f, g, h] = word;
    [low, high, a, b, c, d, e, f, g, h]
}

/// Create delta record.
#[derive(Debug)]
pub(in crate::model) struct Create {
    sources: [Iova; 2],
    delta: Iova,
    /// Bytes of the record that may be written.
    room: u32,
    /// Bytes of the record that are.
    written: u32,
    progress: Progress,
    /// The results that are a success, if that matters.
    expected: Option<u8>,
}

impl Create {
    pub(super) fn new(
        operation: &Operation,
        flags: Flags,
        limits: WqLimits,
    ) -> Result<Self, Status> {
        let Operation::CreateDelta { source1, source2, size, delta, max_delta_size, expected_mask } =
            *operation
        else {
            return Err(Status::BadOpcode);
        };
        if size > MAX_SIZE {
            return Err(Status::BadTransferSize);
        }
        if max_delta_size < MIN_ROOM || u64::from(max_delta_size) > 1 << limits.max_transfer_shift()
        {
            return Err(Status::BadDeltaSize);
        }
        let aligned = |value: u64| value % WORD as u64 == 0;
        if ![source1.0, source2.0, delta.0, size.into()].into_iter().all(aligned) {
            return Err(Status::Misaligned);
        }
        let hit = |source| overlap(source, size.into(), delta, max_delta_size.into());
        if hit(source1) || hit(source2) {
            return Err(Status::Overlap);
        }
        Ok(Self {
            sources: [source1, source2],
            delta,
            room: max_delta_size / ENTRY as u32 * ENTRY as u32,
            written: 0,
            progress: Progress::new(size),
            expected: flags.contains(Flags::CHECK_RESULT).then_some(expected_mask),
        })
    }

    pub(super) fn step(&mut self, dma: &Dma<'_>, scratch: &mut Scratch) -> Step {
        let mut step = Step::More;
        for _ in 0..CHUNK / PIECE {
            step = self.piece(dma, scratch);
            if step != Step::More {
                break;
            }
        }
        let written = self.written;
        step.map(|outcome| outcome.with_tail(0, written.to_le_bytes()))
    }

    fn piece(&mut self, dma: &Dma<'_>, scratch: &mut Scratch) -> Step {
        let len = self.progress.next(PIECE);
        let (before, after) = (&mut scratch.first[..len], &mut scratch.second[..len]);
        let read = dma.read(self.progress.at(self.sources[0]), before);
        let other = dma.read(self.progress.at(self.sources[1]), after);
        let read = match (read, other) {
            (Err(a), Err(b)) if b.done < a.done => Err(b),
            (Ok(()), other) => other,
            (mine, _) => mine,
        };
        // Only whole words count.
        let words = read.map_or_else(|short: Short| short.done, |()| len) / WORD;
        let pairs = before.chunks_exact(WORD).zip(after.chunks_exact(WORD)).take(words);
        for (index, (_, word)) in pairs.enumerate().filter(|(_, (a, b))| a != b) {
            let at = self.progress.done / WORD as u32 + index as u32;
            let Ok(word) = <[u8; WORD]>::try_from(word) else { continue };
            if self.room - self.written < ENTRY as u32 {
                self.progress.advance(index * WORD);
                return Step::Done(self.ran_out());
            }
            if let Err(short) = dma.write(plus(self.delta, self.written), &entry(at, word)) {
                self.progress.advance(index * WORD);
                let step = Step::stopped(short.stop, self.progress.done);
                return step.map(|outcome| self.with_result(outcome));
            }
            self.written += ENTRY as u32;
        }
        let read = read.map_err(|short| Short { done: words * WORD, ..short });
        self.progress.step(len, read).map(|outcome| self.with_result(outcome))
    }

    /// What the record so far says of the sources.
    fn with_result(&self, outcome: Outcome) -> Outcome {
        let result = if self.written == 0 { EQUAL } else { DIFFERENT };
        match outcome.status() {
            Some(Status::Success) => self.checked(outcome, result),
            _ => outcome.with_result(result),
        }
    }

    fn ran_out(&self) -> Outcome {
        self.checked(Outcome::found(self.progress.size, self.progress.done), RAN_OUT)
    }

    fn checked(&self, outcome: Outcome, result: u8) -> Outcome {
        let status = match self.expected {
            Some(mask) if mask >> result & 1 == 0 => Status::FalsePredicate,
            _ => Status::Success,
        };
        outcome.with_result(result).with_status(status)
    }
}

/// Apply delta record.
#[derive(Debug)]
pub(in crate::model) struct Apply {
    delta: Iova,
    destination: Iova,
    /// Words of the destination.
    words: u32,
    /// Through the record.
    progress: Progress,
    transfer_size: u32,
    /// Offset of the entry before.
    last: Option<u16>,
}

impl Apply {
    pub(super) fn new(
        delta: Iova,
        destination: Iova,
        size: u32,
        delta_size: u32,
        limits: WqLimits,
    ) -> Result<Self, Status> {
        if size > MAX_SIZE {
            return Err(Status::BadTransferSize);
        }
        let whole = delta_size != 0 && delta_size % ENTRY as u32 == 0;
        if !whole || u64::from(delta_size) > 1 << limits.max_transfer_shift() {
            return Err(Status::BadDeltaSize);
        }
        if destination.0 % WORD as u64 != 0 || size % WORD as u32 != 0 {
            return Err(Status::Misaligned);
        }
        if overlap(delta, delta_size.into(), destination, size.into()) {
            return Err(Status::Overlap);
        }
        Ok(Self {
            delta,
            destination,
            words: size / WORD as u32,
            progress: Progress::new(delta_size),
            transfer_size: size,
            last: None,
        })
    }

    pub(super) fn step(&mut self, dma: &Dma<'_>, scratch: &mut Scratch) -> Step {
        // As many whole entries as fit a piece, each step a chunk's worth of words.
        let len = self.progress.next(PIECE / ENTRY * ENTRY);
        let entries = &mut scratch.first[..len];
        let read = dma.read(self.progress.at(self.delta), entries);
        let whole = read.map_or_else(|short: Short| short.done, |()| len) / ENTRY;
        for entry in entries.chunks_exact(ENTRY).take(whole) {
            if let Err(end) = self.apply(entry, dma) {
                return end;
            }
        }
        match read {
            Err(short) => Step::stopped(short.stop, self.progress.done),
            Ok(()) if self.progress.next(1) == 0 => Step::Done(Outcome::done(self.transfer_size)),
            Ok(()) => Step::More,
        }
    }

    fn apply(&mut self, entry: &[u8], dma: &Dma<'_>) -> Result<(), Step> {
        let (offset, word) = entry.split_at(2);
        let offset = offset.iter().rev().fold(0, |value, &byte| value << 8 | u16::from(byte));
        if self.last.is_some_and(|last| offset <= last) {
            return Err(Step::Done(Outcome::partial(Status::DeltaOffsetOrder, self.progress.done)));
        }
        if u32::from(offset) >= self.words {
            return Err(Step::Done(Outcome::partial(Status::DeltaOffsetRange, self.progress.done)));
        }
        let at = plus(self.destination, u32::from(offset) * WORD as u32);
        dma.write(at, word).map_err(|short| Step::stopped(short.stop, self.progress.done))?;
        self.last = Some(offset);
        self.progress.advance(ENTRY);
        Ok(())
    }
}
