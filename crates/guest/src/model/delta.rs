//! Delta records: the eight-byte words in which two buffers differ.
//!
//! An entry is ten bytes: a little-endian `u16` word index, then the word of the second buffer.

/// Bytes of one entry.
pub(crate) const ENTRY: usize = 10;
/// Bytes of the word that an entry replaces.
pub(crate) const WORD: usize = 8;

/// The record that turns `original` into `modified`, without a bound on its size.
///
/// Both have the same length, a multiple of [`WORD`] and at most 2^16 words.
pub(crate) fn create(original: &[u8], modified: &[u8]) -> Vec<u8> {
    let mut record = Vec::new();
    for (index, (old, new)) in original.chunks(WORD).zip(modified.chunks(WORD)).enumerate() {
        if old != new {
            let index = u16::try_from(index).unwrap_or(u16::MAX);
            record.extend_from_slice(&index.to_le_bytes());
            record.extend_from_slice(new);
        }
    }
    record
}

/// Bytes of `original` that a record of at most `limit` bytes can cover: up to the first
/// difference that no longer fits. `None` when all differences fit.
pub(crate) fn covered(original: &[u8], modified: &[u8], limit: usize) -> Option<usize> {
    let mut differing = original
        .chunks(WORD)
        .zip(modified.chunks(WORD))
        .enumerate()
        .filter(|(_, (old, new))| old != new)
        .map(|(index, _)| index * WORD);
    differing.nth(limit / ENTRY)
}

/// Applies a record. False when an entry lies outside `target` or is cut short.
pub(crate) fn apply(record: &[u8], target: &mut [u8]) -> bool {
    record.chunks(ENTRY).all(|entry| apply_entry(entry, target).is_some())
}

fn apply_entry(entry: &[u8], target: &mut [u8]) -> Option<()> {
    let (index, word) = entry.split_first_chunk::<2>()?;
    let word: &[u8; WORD] = word.try_into().ok()?;
    let start = usize::from(u16::from_le_bytes(*index)) * WORD;
    target.get_mut(start..start + WORD)?.copy_from_slice(word);
    Some(())
}
