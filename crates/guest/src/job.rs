//! Operations over spans: how they are built, what of them is done, and how they go on after a
//! partial completion.

use std::ops::Range;

use dsa::spec::{
    BlockSize, CompletionRecord, DestinationFlags, DifFlags, DifTags, Iova, Operation, SourceFlags,
    Status,
};

use crate::dma::{Span, PAGE};
use crate::model::dif::Tags;

/// A span's length as a descriptor carries it. No test uses four gigabytes.
fn size(span: Span<'_>) -> u32 {
    u32::try_from(span.len()).unwrap_or(u32::MAX)
}

fn at(span: Span<'_>) -> Iova {
    Iova(span.address())
}

/// Waits for everything before it.
pub(crate) const DRAIN: Operation = Operation::Drain { readback1: Iova(0), readback2: Iova(0) };

/// Copies a span to the start of another.
pub(crate) fn copy(source: Span<'_>, destination: Span<'_>) -> Operation {
    Operation::MemoryMove { source: at(source), destination: at(destination), size: size(source) }
}

/// Repeats a pattern all over a span.
pub(crate) fn fill(pattern: u64, destination: Span<'_>) -> Operation {
    Operation::Fill { pattern, destination: at(destination), size: size(destination) }
}

/// Compares two spans of the same length.
pub(crate) fn compare(source1: Span<'_>, source2: Span<'_>, expected: u8) -> Operation {
    Operation::Compare { source1: at(source1), source2: at(source2), size: size(source1), expected }
}

/// Compares a span with a repeated pattern.
pub(crate) fn compare_pattern(source: Span<'_>, pattern: u64, expected: u8) -> Operation {
    Operation::ComparePattern { source: at(source), pattern, size: size(source), expected }
}

/// Records in `delta`, as far as there is room, how the second span differs from the first.
pub(crate) fn create_delta(
    source1: Span<'_>,
    source2: Span<'_>,
    delta: Span<'_>,
    expected_mask: u8,
) -> Operation {
    Operation::CreateDelta {
        source1: at(source1),
        source2: at(source2),
        size: size(source1),
        delta: at(delta),
        max_delta_size: size(delta),
        expected_mask,
    }
}

/// Applies a delta record.
pub(crate) fn apply_delta(delta: Span<'_>, destination: Span<'_>) -> Operation {
    Operation::ApplyDelta {
        delta: at(delta),
        destination: at(destination),
        size: size(destination),
        delta_size: size(delta),
    }
}

/// Copies a span to two places.
pub(crate) fn dualcast(source: Span<'_>, one: Span<'_>, other: Span<'_>) -> Operation {
    Operation::Dualcast {
        source: at(source),
        destination1: at(one),
        destination2: at(other),
        size: size(source),
    }
}

/// Computes a CRC; the seed is in the descriptor.
pub(crate) fn crc(source: Span<'_>, seed: u32) -> Operation {
    Operation::Crc { source: at(source), size: size(source), seed, seed_address: Iova(0) }
}

/// Computes a CRC; the seed is in memory. To be submitted with `CRC_READ_SEED`.
pub(crate) fn crc_seeded(source: Span<'_>, seed: Span<'_>) -> Operation {
    Operation::Crc { source: at(source), size: size(source), seed: 0, seed_address: at(seed) }
}

/// Copies and computes a CRC.
pub(crate) fn copy_crc(source: Span<'_>, destination: Span<'_>, seed: u32) -> Operation {
    Operation::CopyCrc {
        source: at(source),
        destination: at(destination),
        size: size(source),
        seed,
        seed_address: Iova(0),
    }
}

/// Flushes a span from caches.
pub(crate) fn cache_flush(destination: Span<'_>) -> Operation {
    Operation::CacheFlush { destination: at(destination), size: size(destination) }
}

/// The data integrity fields of one side of a DIF operation.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Fields {
    pub(crate) block: BlockSize,
    pub(crate) tags: Tags,
}

impl Fields {
    fn flags(self) -> DifFlags {
        DifFlags::new()
            .with_block(self.block)
            .with_seed_ones(self.tags.guard_seed != 0)
            .with_invert(self.tags.guard_inverted)
    }

    fn first(self) -> DifTags {
        DifTags {
            reference: self.tags.reference,
            app_mask: self.tags.application_mask,
            app: self.tags.application,
        }
    }

    fn source(self) -> SourceFlags {
        SourceFlags::new()
            .with_app_incrementing(self.tags.application_grows)
            .with_ref_fixed(!self.tags.reference_grows)
    }

    fn destination(self) -> DestinationFlags {
        DestinationFlags::new()
            .with_app_incrementing(self.tags.application_grows)
            .with_ref_fixed(!self.tags.reference_grows)
    }
}

/// Checks the fields of a span.
pub(crate) fn dif_check(source: Span<'_>, fields: Fields) -> Operation {
    Operation::DifCheck {
        source: at(source),
        size: size(source),
        source_flags: fields.source(),
        flags: fields.flags(),
        source_tags: fields.first(),
    }
}

/// Copies blocks and adds fields.
pub(crate) fn dif_insert(source: Span<'_>, destination: Span<'_>, fields: Fields) -> Operation {
    Operation::DifInsert {
        source: at(source),
        destination: at(destination),
        size: size(source),
        destination_flags: fields.destination(),
        flags: fields.flags(),
        destination_tags: fields.first(),
    }
}

/// Copies blocks, checks their fields and leaves them out.
pub(crate) fn dif_strip(source: Span<'_>, destination: Span<'_>, fields: Fields) -> Operation {
    Operation::DifStrip {
        source: at(source),
        destination: at(destination),
        size: size(source),
        source_flags: fields.source(),
        flags: fields.flags(),
        source_tags: fields.first(),
    }
}

/// Copies blocks, checks their fields against `old` and writes those of `new`. The guard is made
/// the same way on both sides.
pub(crate) fn dif_update(
    source: Span<'_>,
    destination: Span<'_>,
    old: Fields,
    new: Fields,
) -> Operation {
    Operation::DifUpdate {
        source: at(source),
        destination: at(destination),
        size: size(source),
        source_flags: old.source(),
        destination_flags: new.destination(),
        flags: old.flags(),
        source_tags: old.first(),
        destination_tags: new.first(),
    }
}

/// The transfer size; zero for what moves nothing itself.
pub(crate) fn transfer_size(operation: &Operation) -> u32 {
    use Operation as O;
    match *operation {
        O::Noop | O::Batch { .. } | O::Drain { .. } => 0,
        O::MemoryMove { size, .. }
        | O::Fill { size, .. }
        | O::Compare { size, .. }
        | O::ComparePattern { size, .. }
        | O::CreateDelta { size, .. }
        | O::ApplyDelta { size, .. }
        | O::Dualcast { size, .. }
        | O::Crc { size, .. }
        | O::CopyCrc { size, .. }
        | O::DifCheck { size, .. }
        | O::DifInsert { size, .. }
        | O::DifStrip { size, .. }
        | O::DifUpdate { size, .. }
        | O::CacheFlush { size, .. } => size,
    }
}

/// Bytes that a completed operation moved or examined, as `guest_protocol` counts them.
pub(crate) fn bytes_done(operation: &Operation, record: &CompletionRecord) -> u64 {
    use Operation as O;
    if matches!(operation, O::Noop | O::Batch { .. } | O::Drain { .. }) {
        return 0;
    }
    let succeeded = matches!(record.status.status(), Ok(Status::Success | Status::FalsePredicate));
    match record.bytes_completed {
        0 if succeeded => transfer_size(operation).into(),
        completed => completed.into(),
    }
}

/// Why an operation cannot go on from its partial completion: the device broke a rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Unresumable {
    #[error("partial completion reports {completed} of {size} bytes")]
    NothingLeft { completed: u32, size: u32 },
    #[error("partial completion cuts a pattern, a delta entry or a block: {completed} bytes")]
    CutUnit { completed: u32 },
    #[error("{0:?} does not end with a partial completion")]
    NotPartial(dsa::spec::Opcode),
}

/// The operation for what a partial completion left over.
pub(crate) fn remainder(
    operation: &Operation,
    record: &CompletionRecord,
) -> Result<Operation, Unresumable> {
    use Operation as O;
    let done = record.bytes_completed;
    let mut rest = *operation;
    match &mut rest {
        O::Noop | O::Batch { .. } | O::Drain { .. } => {
            return Err(Unresumable::NotPartial(operation.opcode()));
        }
        // An overlapping move may run from the end: then the start is what is left.
        O::MemoryMove { size, .. } if record.result == 1 => take(&mut [], size, done)?,
        O::MemoryMove { source, destination, size } => {
            take(&mut [source, destination], size, done)?;
        }
        O::Fill { destination, size, .. } => {
            whole(done, 8)?;
            take(&mut [destination], size, done)?;
        }
        O::Compare { source1, source2, size, .. } => take(&mut [source1, source2], size, done)?,
        O::ComparePattern { source, pattern, size, .. } => {
            *pattern = pattern.rotate_right(8 * (done % 8));
            take(&mut [source], size, done)?;
        }
        // Offsets in a delta record count from its start, so a second record could not simply
        // follow the first: start again.
        O::CreateDelta { .. } => {}
        O::ApplyDelta { delta, delta_size, .. } => {
            whole(done, 10)?;
            take(&mut [delta], delta_size, done)?;
        }
        O::Dualcast { source, destination1, destination2, size } => {
            take(&mut [source, destination1, destination2], size, done)?;
        }
        O::Crc { source, size, seed, seed_address } => {
            (*seed, *seed_address) = (record.crc(), Iova(0));
            take(&mut [source], size, done)?;
        }
        O::CopyCrc { source, destination, size, seed, seed_address } => {
            (*seed, *seed_address) = (record.crc(), Iova(0));
            take(&mut [source, destination], size, done)?;
        }
        O::DifCheck { source, size, flags, source_tags, .. } => {
            whole(done, field_stride(*flags))?;
            *source_tags = record.source_tags();
            take(&mut [source], size, done)?;
        }
        O::DifInsert { source, destination, size, flags, destination_tags, .. } => {
            let blocks = whole(done, flags.block().data())?;
            *destination_tags = record.destination_tags();
            take(&mut [source], size, done)?;
            advance(destination, blocks * field_stride(*flags));
        }
        O::DifStrip { source, destination, size, flags, source_tags, .. } => {
            let blocks = whole(done, field_stride(*flags))?;
            *source_tags = record.source_tags();
            take(&mut [source], size, done)?;
            advance(destination, blocks * flags.block().data());
        }
        O::DifUpdate {
            source, destination, size, flags, source_tags, destination_tags, ..
        } => {
            whole(done, field_stride(*flags))?;
            *source_tags = record.source_tags();
            *destination_tags = record.destination_tags();
            take(&mut [source, destination], size, done)?;
        }
        O::CacheFlush { destination, size } => take(&mut [destination], size, done)?,
    }
    Ok(rest)
}

fn take(addresses: &mut [&mut Iova], size: &mut u32, done: u32) -> Result<(), Unresumable> {
    let left = size.checked_sub(done).filter(|left| *left > 0);
    *size = left.ok_or(Unresumable::NothingLeft { completed: done, size: *size })?;
    addresses.iter_mut().for_each(|address| advance(address, done as usize));
    Ok(())
}

fn advance(address: &mut Iova, bytes: usize) {
    address.0 = address.0.wrapping_add(bytes as u64);
}

fn whole(done: u32, unit: usize) -> Result<usize, Unresumable> {
    match done as usize {
        completed if completed % unit == 0 => Ok(completed / unit),
        _ => Err(Unresumable::CutUnit { completed: done }),
    }
}

fn field_stride(flags: DifFlags) -> usize {
    flags.block().data() + BlockSize::DIF
}

/// Whether a fault at `address` can be this operation's own: in the page of an operand that it
/// reads or, for a write, writes.
pub(crate) fn owns_fault(operation: &Operation, address: Iova, write: bool) -> bool {
    let page = |address: u64| address / PAGE as u64;
    operands(operation).iter().any(|(range, writes)| {
        let pages = page(range.start)..=page(range.end.saturating_sub(1).max(range.start));
        *writes == write && pages.contains(&page(address.0))
    })
}

/// Addresses that an operation uses, and whether it writes there.
fn operands(operation: &Operation) -> Vec<(Range<u64>, bool)> {
    use Operation as O;
    let read = |at: Iova, len: usize| (at.0..at.0.saturating_add(len as u64), false);
    let write = |at: Iova, len: usize| (at.0..at.0.saturating_add(len as u64), true);
    let size = transfer_size(operation) as usize;
    match *operation {
        O::Noop => vec![],
        O::Drain { readback1, readback2 } => vec![read(readback1, 1), read(readback2, 1)],
        O::Batch { list, count } => vec![read(list, 64 * count as usize)],
        O::MemoryMove { source, destination, .. } => {
            vec![read(source, size), write(destination, size)]
        }
        O::Fill { destination, .. } => vec![write(destination, size)],
        // It changes nothing, so it needs no more than a translation for reading.
        O::CacheFlush { destination, .. } => vec![read(destination, size)],
        O::Compare { source1, source2, .. } => vec![read(source1, size), read(source2, size)],
        O::ComparePattern { source, .. } | O::DifCheck { source, .. } => vec![read(source, size)],
        O::CreateDelta { source1, source2, delta, max_delta_size, .. } => {
            vec![read(source1, size), read(source2, size), write(delta, max_delta_size as usize)]
        }
        O::ApplyDelta { delta, destination, delta_size, .. } => {
            vec![read(delta, delta_size as usize), write(destination, size)]
        }
        O::Dualcast { source, destination1, destination2, .. } => {
            vec![read(source, size), write(destination1, size), write(destination2, size)]
        }
        O::Crc { source, seed_address, .. } => vec![read(source, size), read(seed_address, 4)],
        O::CopyCrc { source, destination, seed_address, .. } => {
            vec![read(source, size), write(destination, size), read(seed_address, 4)]
        }
        O::DifInsert { source, destination, flags, .. } => {
            let written = size / flags.block().data() * field_stride(flags);
            vec![read(source, size), write(destination, written)]
        }
        O::DifStrip { source, destination, flags, .. } => {
            let written = size / field_stride(flags) * flags.block().data();
            vec![read(source, size), write(destination, written)]
        }
        O::DifUpdate { source, destination, .. } => {
            vec![read(source, size), write(destination, size)]
        }
    }
}

#[cfg(test)]
mod tests;
