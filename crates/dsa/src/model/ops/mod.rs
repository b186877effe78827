//! The operations: each is a value that does one bounded piece of its work at a time.

mod compare;
mod copy;
mod crc;
mod delta;
mod dif;
mod fill;

use alloc::boxed::Box;

use mem::Iova;

use super::engine::{Dma, Short, Stop};
use crate::spec::{CompletionRecord, Flags, Operation, Status, StatusByte, WqLimits};

/// Bytes of an operand that one step works through: how long an invalidation, an abort or a reset
/// may have to wait for an engine.
pub const CHUNK: usize = 64 * 1024;
/// Bytes that an operation looks at at once, where it has to look at them: a page.
const PIECE: usize = 4096;
/// Room for a piece, or for the longest protected block with its DIF.
const SCRATCH: usize = 4104 + 8;

const _: () = assert!(CHUNK % PIECE == 0 && PIECE % 8 == 0 && SCRATCH >= PIECE);

/// Room for what an operation has to look at itself.
pub(super) struct Scratch {
    first: [u8; SCRATCH],
    second: [u8; SCRATCH],
}

impl Scratch {
    pub(super) fn new() -> Box<Self> {
        Box::new(Self { first: [0; SCRATCH], second: [0; SCRATCH] })
    }
}

/// How a descriptor ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Outcome {
    pub(super) record: CompletionRecord,
    /// Bytes moved or examined.
    pub(super) bytes: u64,
}

impl Outcome {
    /// All `size` bytes are done.
    pub(super) fn done(size: u32) -> Self {
        let mut outcome = Self::error(Status::Success);
        outcome.bytes = size.into();
        outcome
    }

    /// The answer was found after `done` of `size` bytes: that many count as examined, or all of
    /// them if a record with zero bytes completed makes it look so.
    fn found(size: u32, done: u32) -> Self {
        let mut outcome = Self::done(if done == 0 { size } else { done });
        outcome.record.bytes_completed = done;
        outcome
    }

    /// Nothing is done.
    pub(super) fn error(status: Status) -> Self {
        let status = StatusByte::of(status, false);
        Self { record: CompletionRecord { status, ..CompletionRecord::default() }, bytes: 0 }
    }

    /// Something is wrong after `done` bytes.
    pub(super) fn partial(status: Status, done: u32) -> Self {
        let mut outcome = Self::error(status);
        outcome.record.bytes_completed = done;
        outcome.bytes = done.into();
        outcome
    }

    /// The flags in `mask` are wrong.
    pub(super) fn bad_flags(mask: Flags) -> Self {
        let mut outcome = Self::error(Status::BadFlags);
        let [low, middle, high, _] = mask.bits().to_le_bytes();
        outcome.record.tail[..3].copy_from_slice(&[low, middle, high]);
        outcome
    }

    pub(super) fn with_result(mut self, result: u8) -> Self {
        self.record.result = result;
        self
    }

    fn with_status(mut self, status: Status) -> Self {
        self.record.status = StatusByte::of(status, self.record.status.write());
        self
    }

    /// Puts `bytes` at offset `at` of the part that is specific to the operation.
    fn with_tail<const N: usize>(mut self, at: usize, bytes: [u8; N]) -> Self {
        for (to, from) in self.record.tail.iter_mut().skip(at).zip(bytes) {
            *to = from;
        }
        self
    }

    pub(super) fn status(&self) -> Option<Status> {
        self.record.status.status().ok()
    }
}

/// What a step led to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Step {
    /// There is more to do.
    More,
    /// The operation is over.
    Done(Outcome),
    /// There is no memory any more.
    Detached,
}

impl Step {
    /// An access stopped the operation after `done` bytes.
    pub(super) fn stopped(stop: Stop, done: u32) -> Self {
        let Stop::Access { status, address, write } = stop else { return Self::Detached };
        let mut outcome = Outcome::partial(status, done);
        // The direction is reported for faults; other errors do not name it (status 0x20 and up).
        let write = write && matches!(status, Status::PageFault);
        outcome.record.status = StatusByte::of(status, write);
        outcome.record.fault_address = address;
        Self::Done(outcome)
    }

    /// The same with more in its outcome, if it has one.
    fn map(self, f: impl FnOnce(Outcome) -> Outcome) -> Self {
        match self {
            Self::Done(outcome) => Self::Done(f(outcome)),
            other => other,
        }
    }
}

/// An operation under way.
#[derive(Debug)]
pub(super) enum Task {
    Nothing,
    Copy(copy::Copy),
    Dualcast(copy::Dualcast),
    Flush(copy::Flush),
    Fill(fill::Fill),
    Compare(compare::Compare),
    CreateDelta(delta::Create),
    ApplyDelta(delta::Apply),
    Crc(crc::Crc),
    Dif(dif::Dif),
}

impl Task {
    /// Checks the operands of `operation`, which is not a batch, and gets it ready.
    ///
    /// # Errors
    ///
    /// The status that the descriptor ends with.
    pub(super) fn new(
        operation: &Operation,
        flags: Flags,
        limits: WqLimits,
    ) -> Result<Self, Status> {
        if let Some(size) = operation.size() {
            if size == 0 || u64::from(size) > 1 << limits.max_transfer_shift() {
                return Err(Status::BadTransferSize);
            }
        }
        match *operation {
            // A drain is dispatched only when what it waits for is over.
            Operation::Noop | Operation::Drain { .. } => Ok(Self::Nothing),
            Operation::Batch { .. } => Err(Status::BadOpcode),
            Operation::MemoryMove { source, destination, size } => {
                Ok(Self::Copy(copy::Copy::new(source, destination, size)))
            }
            Operation::Dualcast { source, destination1, destination2, size } => {
                copy::Dualcast::new(source, [destination1, destination2], size).map(Self::Dualcast)
            }
            Operation::CacheFlush { destination, size } => {
                Ok(Self::Flush(copy::Flush::new(destination, size)))
            }
            Operation::Fill { pattern, destination, size } => {
                Ok(Self::Fill(fill::Fill::new(pattern, destination, size)))
            }
            Operation::Compare { source1, source2, size, expected } => {
                let other = compare::Other::Memory(source2);
                Ok(Self::Compare(compare::Compare::new(source1, other, size, flags, expected)))
            }
            Operation::ComparePattern { source, pattern, size, expected } => {
                let other = compare::Other::Pattern(pattern);
                Ok(Self::Compare(compare::Compare::new(source, other, size, flags, expected)))
            }
            Operation::CreateDelta { .. } => {
                delta::Create::new(operation, flags, limits).map(Self::CreateDelta)
            }
            Operation::ApplyDelta { delta, destination, size, delta_size } => {
                delta::Apply::new(delta, destination, size, delta_size, limits)
                    .map(Self::ApplyDelta)
            }
            Operation::Crc { source, size, seed, seed_address } => {
                let seed = crc::Seed::new(flags, seed, seed_address)?;
                crc::Crc::new(source, None, size, seed, flags).map(Self::Crc)
            }
            Operation::CopyCrc { source, destination, size, seed, seed_address } => {
                let seed = crc::Seed::new(flags, seed, seed_address)?;
                crc::Crc::new(source, Some(destination), size, seed, flags).map(Self::Crc)
            }
            Operation::DifCheck { .. }
            | Operation::DifInsert { .. }
            | Operation::DifStrip { .. }
            | Operation::DifUpdate { .. } => dif::Dif::new(operation).map(Self::Dif),
        }
    }

    /// Does one bounded piece of the work: at most [`CHUNK`] bytes of each operand.
    pub(super) fn step(&mut self, dma: &Dma<'_>, scratch: &mut Scratch) -> Step {
        match self {
            Self::Nothing => Step::Done(Outcome::done(0)),
            Self::Copy(task) => task.step(dma),
            Self::Dualcast(task) => task.step(dma),
            Self::Flush(task) => task.step(dma),
            Self::Fill(task) => task.step(dma, scratch),
            Self::Compare(task) => task.step(dma, scratch),
            Self::CreateDelta(task) => task.step(dma, scratch),
            Self::ApplyDelta(task) => task.step(dma, scratch),
            Self::Crc(task) => task.step(dma, scratch),
            Self::Dif(task) => task.step(dma, scratch),
        }
    }
}

/// How far an operation has come through its transfer size.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Progress {
    size: u32,
    done: u32,
}

impl Progress {
    fn new(size: u32) -> Self {
        Self { size, done: 0 }
    }

    /// What is left, `limit` bytes at most.
    fn next(&self, limit: usize) -> usize {
        (self.size.saturating_sub(self.done) as usize).min(limit)
    }

    /// `bytes` more are done; `true` when all are.
    fn advance(&mut self, bytes: usize) -> bool {
        self.done = self.size.min(self.done.saturating_add(bytes as u32));
        self.done == self.size
    }

    /// Takes in how an access of `bytes` went.
    fn step(&mut self, bytes: usize, result: Result<(), Short>) -> Step {
        match result {
            Ok(()) if self.advance(bytes) => Step::Done(Outcome::done(self.size)),
            Ok(()) => Step::More,
            Err(Short { done, stop }) => {
                self.advance(done);
                Step::stopped(stop, self.done)
            }
        }
    }

    fn at(&self, base: Iova) -> Iova {
        plus(base, self.done)
    }
}

fn plus(base: Iova, offset: u32) -> Iova {
    Iova(base.0.wrapping_add(offset.into()))
}

/// Whether two operands share a byte; addresses wrap as the device's counters do.
fn overlap(a: Iova, a_len: u64, b: Iova, b_len: u64) -> bool {
    b.0.wrapping_sub(a.0) < a_len || a.0.wrapping_sub(b.0) < b_len
}
