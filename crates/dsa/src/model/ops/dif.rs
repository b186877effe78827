//! DIF check, insert, strip and update.
//!
//! A DIF is eight big-endian bytes after each block: guard (CRC-16 of the block), application tag,
//! reference tag.

use crc::{Algorithm, Table};
use mem::Iova;

use super::{overlap, plus, Outcome, Progress, Scratch, Step, CHUNK};
use crate::model::engine::{Dma, Stop};
use crate::spec::{
    BlockSize, DestinationFlags, DifFlags, DifStatus, DifTags, Operation, SourceFlags, Status,
};

const T10: Algorithm<u16> = Algorithm {
    width: 16,
    poly: 0x8bb7,
    init: 0,
    refin: false,
    refout: false,
    xorout: 0,
    check: 0xd0db,
    residue: 0,
};
static GUARD: crc::Crc<u16, Table<16>> = crc::Crc::<u16, Table<16>>::new(&T10);

/// Length of a DIF in bytes.
const DIF: usize = BlockSize::DIF;

/// The fields of a DIF.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Field {
    guard: u16,
    app: u16,
    reference: u32,
}

impl Field {
    const ALL_ONES: Self = Self { guard: u16::MAX, app: u16::MAX, reference: u32::MAX };

    fn from_bytes(bytes: [u8; DIF]) -> Self {
        let [g0, g1, a0, a1, r0, r1, r2, r3] = bytes;
        Self {
            guard: u16::from_be_bytes([g0, g1]),
            app: u16::from_be_bytes([a0, a1]),
            reference: u32::from_be_bytes([r0, r1, r2, r3]),
        }
    }

    fn to_bytes(self) -> [u8; DIF] {
        let ([g0, g1], [a0, a1]) = (self.guard.to_be_bytes(), self.app.to_be_bytes());
        let [r0, r1, r2, r3] = self.reference.to_be_bytes();
        [g0, g1, a0, a1, r0, r1, r2, r3]
    }
}

/// The guard of a block.
fn guard(flags: DifFlags, block: &[u8]) -> u16 {
    let seed = if flags.seed_ones() { u16::MAX } else { 0 };
    let mut digest = GUARD.digest_with_initial(seed);
    digest.update(block);
    let crc = digest.finalize();
    if flags.invert() {
        !crc
    } else {
        crc
    }
}

/// Checks the DIF of a source, block by block.
#[derive(Clone, Copy, Debug)]
struct Checker {
    flags: SourceFlags,
    /// Expected in the next block.
    tags: DifTags,
}

impl Checker {
    /// What is wrong with `field`, for a block whose guard should be `guard`; 0 if nothing is.
    fn check(&self, field: Field, guard: impl FnOnce() -> u16) -> DifStatus {
        let Self { flags, tags } = *self;
        let good = DifStatus::new();
        let all_ones = field == Field::ALL_ONES;
        if all_ones && flags.all_ones_error() {
            return good.with_all_ones(true);
        }
        let app_ones = field.app == u16::MAX;
        if flags.detect_all() && all_ones
            || flags.detect_app() && app_ones
            || flags.detect_app_ref() && app_ones && field.reference == u32::MAX
        {
            return good;
        }
        let counted = !tags.app_mask;
        good.with_guard(!flags.guard_disable() && field.guard != guard())
            .with_app(field.app & counted != tags.app & counted)
            .with_reference(!flags.ref_disable() && field.reference != tags.reference)
    }

    fn next(&mut self) {
        self.tags = following(self.tags, self.flags.app_incrementing(), self.flags.ref_fixed());
    }
}

/// Makes the DIF of a destination, block by block.
#[derive(Clone, Copy, Debug)]
struct Maker {
    flags: DestinationFlags,
    /// For the next block.
    tags: DifTags,
}

impl Maker {
    /// The DIF of a block whose guard is `guard`, and whose source had `source`.
    fn make(&self, source: Option<Field>, guard: impl FnOnce() -> u16) -> Field {
        let pass = |flag: bool| source.filter(|_| flag);
        Field {
            guard: pass(self.flags.guard_pass()).map_or_else(guard, |field| field.guard),
            app: pass(self.flags.app_pass())
                .map_or(self.tags.app & !self.tags.app_mask, |field| field.app),
            reference: pass(self.flags.ref_pass())
                .map_or(self.tags.reference, |field| field.reference),
        }
    }

    fn next(&mut self) {
        self.tags = following(self.tags, self.flags.app_incrementing(), self.flags.ref_fixed());
    }
}

/// The tags of the block after one with `tags`.
fn following(tags: DifTags, app_incrementing: bool, ref_fixed: bool) -> DifTags {
    DifTags {
        reference: tags.reference.wrapping_add(u32::from(!ref_fixed)),
        app: tags.app.wrapping_add(u16::from(app_incrementing)),
        ..tags
    }
}

/// Where the tags of the source's next block are in the record's last 16 bytes.
const SOURCE_TAGS: usize = 0;
/// Where the tags of the destination's next block are.
const DESTINATION_TAGS: usize = 8;

/// A DIF operation: check has a checker, insert a maker, strip a checker and a destination, update
/// all three.
#[derive(Debug)]
pub(in crate::model) struct Dif {
    source: Iova,
    destination: Option<Iova>,
    flags: DifFlags,
    checker: Option<Checker>,
    maker: Option<Maker>,
    /// Through the source.
    progress: Progress,
    /// Bytes of the destination that are written.
    written: u32,
}

impl Dif {
    pub(super) fn new(operation: &Operation) -> Result<Self, Status> {
        let (source, destination, size, flags) = match *operation {
            Operation::DifCheck { source, size, flags, .. } => (source, None, size, flags),
            Operation::DifInsert { source, destination, size, flags, .. }
            | Operation::DifStrip { source, destination, size, flags, .. }
            | Operation::DifUpdate { source, destination, size, flags, .. } => {
                (source, Some(destination), size, flags)
            }
            _ => return Err(Status::BadOpcode),
        };
        let checker = match *operation {
            Operation::DifCheck { source_flags, source_tags, .. }
            | Operation::DifStrip { source_flags, source_tags, .. }
            | Operation::DifUpdate { source_flags, source_tags, .. } => {
                Some(Checker { flags: source_flags, tags: source_tags })
            }
            _ => None,
        };
        let maker = match *operation {
            Operation::DifInsert { destination_flags, destination_tags, .. }
            | Operation::DifUpdate { destination_flags, destination_tags, .. } => {
                Some(Maker { flags: destination_flags, tags: destination_tags })
            }
            _ => None,
        };
        let progress = Progress::new(size);
        let task = Self { source, destination, flags, checker, maker, progress, written: 0 };
        task.check_operands(size)?;
        Ok(task)
    }

    fn check_operands(&self, size: u32) -> Result<(), Status> {
        let reserved = |maker: &Maker| {
            let passes =
                maker.flags.app_pass() || maker.flags.guard_pass() || maker.flags.ref_pass();
            // There is nothing to pass through when a DIF is inserted.
            maker.flags.reserved() != 0 || self.checker.is_none() && passes
        };
        if self.flags.reserved() != 0 || self.maker.as_ref().is_some_and(reserved) {
            return Err(Status::ReservedField);
        }
        let unit = self.source_unit() as u32;
        if size % unit != 0 {
            return Err(Status::BadTransferSize);
        }
        let written = u64::from(size / unit) * self.destination_unit() as u64;
        if self.destination.is_some_and(|to| overlap(self.source, size.into(), to, written)) {
            return Err(Status::Overlap);
        }
        Ok(())
    }

    /// Bytes of the source for each block.
    fn source_unit(&self) -> usize {
        self.flags.block().data() + if self.checker.is_some() { DIF } else { 0 }
    }

    /// Bytes of the destination for each block.
    fn destination_unit(&self) -> usize {
        self.flags.block().data() + if self.maker.is_some() { DIF } else { 0 }
    }

    pub(super) fn step(&mut self, dma: &Dma<'_>, scratch: &mut Scratch) -> Step {
        let unit = self.source_unit();
        let mut step = Step::More;
        for _ in 0..CHUNK / unit {
            step = match self.block(dma, scratch) {
                Ok(()) if self.progress.advance(unit) => {
                    Step::Done(Outcome::done(self.progress.size))
                }
                Ok(()) => Step::More,
                Err(end) => end,
            };
            if step != Step::More {
                break;
            }
        }
        let tags = |outcome: Outcome, at, tags: Option<DifTags>| match tags {
            Some(tags) => outcome.with_tail(at, tags.to_bytes()),
            None => outcome,
        };
        let (source, made) = (self.checker.map(|c| c.tags), self.maker.map(|m| m.tags));
        step.map(|outcome| tags(tags(outcome, SOURCE_TAGS, source), DESTINATION_TAGS, made))
    }

    /// Works through one block; bytes completed only ever count whole good blocks.
    fn block(&mut self, dma: &Dma<'_>, scratch: &mut Scratch) -> Result<(), Step> {
        let done = self.progress.done;
        let stopped = |stop: Stop| Step::stopped(stop, done);
        let data = self.flags.block().data();
        let input = &mut scratch.first[..self.source_unit()];
        dma.read(self.progress.at(self.source), input).map_err(|short| stopped(short.stop))?;
        let (block, field) = input.split_at(data);
        let block_guard = || guard(self.flags, block);
        let field = <[u8; DIF]>::try_from(field).ok().map(Field::from_bytes);
        if let (Some(checker), Some(field)) = (&mut self.checker, field) {
            let wrong = checker.check(field, block_guard);
            if wrong.into_bits() != 0 {
                let outcome = Outcome::partial(Status::DifError, done);
                return Err(Step::Done(outcome.with_result(wrong.into_bits())));
            }
        }
        if let Some(destination) = self.destination {
            let made = self.maker.as_ref().map(|maker| maker.make(field, block_guard).to_bytes());
            let output = &mut scratch.second[..data + made.map_or(0, |made| made.len())];
            output[..data].copy_from_slice(block);
            output[data..].copy_from_slice(made.as_ref().map_or(&[], |made| made));
            let at = plus(destination, self.written);
            dma.write(at, output).map_err(|short| stopped(short.stop))?;
            self.written = self.written.saturating_add(output.len() as u32);
        }
        self.checker.iter_mut().for_each(Checker::next);
        self.maker.iter_mut().for_each(Maker::next);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Known answers: the data of the accelerator's own test suite.
    #[test]
    fn guards() {
        let pattern = 0x0123_4567_89ab_cdef_u64.to_le_bytes().repeat(4104 / 8);
        let plain = DifFlags::new();
        assert_eq!(guard(plain, b"123456789"), 0xd0db);
        assert_eq!(guard(plain, &pattern[..512]), 0x03c7);
        assert_eq!(guard(plain, &pattern[..520]), 0xccb3);
        assert_eq!(guard(plain, &pattern[..4096]), 0xa083);
        assert_eq!(guard(plain, &pattern[..4104]), 0x85c9);
        assert_eq!(guard(plain.with_invert(true), &pattern[..512]), !0x03c7);
        assert_ne!(guard(plain.with_seed_ones(true), &pattern[..512]), 0x03c7);
    }

    #[test]
    fn a_field_is_big_endian() {
        let bytes = [0x12, 0x34, 0xfa, 0xce, 0, 0, 0xab, 0xba];
        let field = Field { guard: 0x1234, app: 0xface, reference: 0xabba };
        assert_eq!(Field::from_bytes(bytes), field);
        assert_eq!(field.to_bytes(), bytes);
    }
}
