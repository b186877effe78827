//! Puts descriptors together that arrive at a portal in pieces.
//!
//! A posted write of 64 bytes is one store. Where processors have no such store (MOVDIR64B), as
//! under software emulation, software writes the pieces of a descriptor in ascending order, and
//! they are put together here.

use crate::spec::Descriptor;

/// Descriptors of one work queue that may be incomplete at the same time, each at its own 64-byte
/// slot of its portals: as many submitters as can share a queue without a lock of their own.
pub const ASSEMBLIES: usize = 8;
/// Sizes of pieces in bytes; each lies at a multiple of its size.
const PIECES: [usize; 3] = [8, 16, 32];

/// What a store to a portal led to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Fed {
    /// More pieces are to come.
    Incomplete,
    /// The last piece came.
    Complete([u8; Descriptor::SIZE]),
    /// Not a piece, or not the next one: it is dropped, and what came before it too.
    Misordered,
}

#[derive(Clone, Copy, Debug)]
struct Slot {
    /// Offset of the slot in the queue's portals.
    at: u64,
    /// Bytes that came; 0 if the slot is free.
    filled: usize,
    bytes: [u8; Descriptor::SIZE],
}

/// The incomplete descriptors of one work queue.
#[derive(Clone, Debug)]
pub(super) struct Assembler {
    /// The least recently started first.
    slots: [Slot; ASSEMBLIES],
}

impl Default for Assembler {
    fn default() -> Self {
        Self { slots: [Slot { at: 0, filled: 0, bytes: [0; Descriptor::SIZE] }; ASSEMBLIES] }
    }
}

impl Assembler {
    /// Takes a store of `data` at `offset` of the queue's portals. A piece for the start of a slot
    /// starts it anew; with all slots in use the one that was started first is given up.
    pub(super) fn store(&mut self, offset: u64, data: &[u8]) -> Fed {
        if let Ok(whole) = <[u8; Descriptor::SIZE]>::try_from(data) {
            let aligned = offset % Descriptor::SIZE as u64 == 0;
            return if aligned { Fed::Complete(whole) } else { Fed::Misordered };
        }
        if !PIECES.contains(&data.len()) || offset % data.len() as u64 != 0 {
            return Fed::Misordered;
        }
        let start = (offset % Descriptor::SIZE as u64) as usize;
        let at = offset - start as u64;
        let found = self.slots.iter().position(|slot| slot.filled != 0 && slot.at == at);
        match (start, found) {
            (0, _) => self.begin(found, at, data),
            (_, None) => Fed::Misordered,
            (_, Some(index)) => self.extend(index, start, data),
        }
    }

    /// Starts `at` in the slot that it has, in a free one, or in place of the oldest; what is given
    /// up for it was misordered.
    fn begin(&mut self, found: Option<usize>, at: u64, data: &[u8]) -> Fed {
        let free = || self.slots.iter().position(|slot| slot.filled == 0);
        let index = found.or_else(free).unwrap_or(0);
        let given_up = self.slots[index].filled != 0;
        self.slots[index..].rotate_left(1);
        let slot = &mut self.slots[ASSEMBLIES - 1];
        slot.at = at;
        slot.filled = data.len();
        slot.bytes[..data.len()].copy_from_slice(data);
        if given_up {
            Fed::Misordered
        } else {
            Fed::Incomplete
        }
    }

    fn extend(&mut self, index: usize, start: usize, data: &[u8]) -> Fed {
        let slot = &mut self.slots[index];
        let end = start + data.len();
        if slot.filled != start || end > Descriptor::SIZE {
            slot.filled = 0;
            return Fed::Misordered;
        }
        slot.bytes[start..end].copy_from_slice(data);
        slot.filled = end % Descriptor::SIZE;
        if slot.filled != 0 {
            return Fed::Incomplete;
        }
        Fed::Complete(slot.bytes)
    }
}

#[cfg(test)]
mod tests;
