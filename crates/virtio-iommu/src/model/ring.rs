//! The device's end of a split virtqueue (2.7): a checked index, a total walk, nothing trusted
//! twice.

use alloc::vec::Vec;
use core::sync::atomic::{fence, Ordering};

use mem::{Access, Gpa, GuestMemory, MemError};
use zerocopy::IntoBytes;

use crate::spec::{
    available, used, Descriptor, QueueLayout, UsedElement, DESCRIPTOR_SIZE, USED_ELEMENT_SIZE,
};

/// A queue as its device sees it. The layout is checked, so sums of its addresses do not wrap.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Ring {
    layout: QueueLayout,
    /// Chains ever taken, modulo 2^16.
    taken: u16,
    /// Chains ever given back, modulo 2^16.
    given_back: u16,
}

/// Why a queue cannot be used any more: the device needs a reset. The driver's doing.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub(super) enum RingError {
    /// A part of the queue is not in memory.
    #[error(transparent)]
    Memory(#[from] MemError),
    /// More chains are said to be available than the queue has entries.
    #[error("{0} chains are available at once")]
    TooMany(u16),
    /// A chain is said to begin outside the table.
    #[error("a chain begins at descriptor {0}")]
    BadHead(u16),
}

/// Why a chain cannot be used; the queue can. The driver's doing.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub(super) enum ChainError {
    /// A descriptor, or what it points to, is not in memory.
    #[error(transparent)]
    Memory(#[from] MemError),
    /// A chain goes on outside the table.
    #[error("a chain goes on at descriptor {0}")]
    BadNext(u16),
    /// A chain has more descriptors than the table: it is a loop.
    #[error("a chain is a loop")]
    Loop,
    /// A buffer to read comes after one to write (2.7.4.2).
    #[error("a buffer to read comes after one to write")]
    ReadAfterWrite,
    /// A table outside the queue's own, which was not negotiated.
    #[error("an indirect descriptor")]
    Indirect,
}

impl Ring {
    pub(super) const fn new(layout: QueueLayout) -> Self {
        Self { layout, taken: 0, given_back: 0 }
    }

    /// The first descriptor of the next chain; `None` if there is none yet.
    pub(super) fn take(&mut self, memory: &dyn GuestMemory) -> Result<Option<u16>, RingError> {
        let QueueLayout { size, available: ring, .. } = self.layout;
        // Acquire: what the driver wrote before the index is seen after it.
        let index = memory.load_u16(Gpa(ring.0 + available::INDEX))?;
        let waiting = index.wrapping_sub(self.taken);
        if waiting == 0 {
            return Ok(None);
        }
        if waiting > size {
            return Err(RingError::TooMany(waiting));
        }
        let head = memory.load_u16(Gpa(ring.0 + available::entry(self.taken, size)))?;
        if head >= size {
            return Err(RingError::BadHead(head));
        }
        // Before anything is done for a request, it is known that it can be given back.
        memory.aligned(self.used_index(), 2, Access::Write)?;
        check_writable(memory, self.used_entry(), USED_ELEMENT_SIZE)?;
        self.taken = self.taken.wrapping_add(1);
        Ok(Some(head))
    }

    /// Walks the chain from `head`. Each descriptor is read once.
    pub(super) fn chain(&self, memory: &dyn GuestMemory, head: u16) -> Result<Chain, ChainError> {
        let QueueLayout { size, descriptors, .. } = self.layout;
        let mut chain = Chain::default();
        let mut index = head;
        for _ in 0..size {
            if index >= size {
                return Err(ChainError::BadNext(index));
            }
            let mut descriptor = Descriptor::new(Gpa(0), 0, false, None);
            let at = Gpa(descriptors.0 + DESCRIPTOR_SIZE * u64::from(index));
            memory.read(at, descriptor.as_mut_bytes())?;
            chain.push(&descriptor)?;
            if !descriptor.flags().next() {
                return Ok(chain);
            }
            index = descriptor.next.get();
        }
        Err(ChainError::Loop)
    }

    /// Gives back the chain from `head`, of which `written` bytes were written.
    pub(super) fn give_back(
        &mut self,
        memory: &dyn GuestMemory,
        head: u16,
        written: u32,
    ) -> Result<(), RingError> {
        let element = UsedElement { id: u32::from(head).into(), len: written.into() };
        memory.write(self.used_entry(), element.as_bytes())?;
        self.given_back = self.given_back.wrapping_add(1);
        // Release: whoever sees the index sees the entry and what the device wrote.
        Ok(memory.store_u16(self.used_index(), self.given_back)?)
    }

    /// Whether the driver wants an interrupt for what was given back.
    pub(super) fn wants_interrupt(&self, memory: &dyn GuestMemory) -> bool {
        // The index is written before the flag is read; the driver does it the other way round.
        // So a chain is never given back unnoticed.
        fence(Ordering::SeqCst);
        let flags = memory.load_u16(Gpa(self.layout.available.0 + available::FLAGS));
        flags.is_ok_and(|flags| flags & available::NO_INTERRUPT == 0)
    }

    fn used_index(&self) -> Gpa {
        Gpa(self.layout.used.0 + used::INDEX)
    }

    fn used_entry(&self) -> Gpa {
        Gpa(self.layout.used.0 + used::entry(self.given_back, self.layout.size))
    }
}

/// Whether all of `len` bytes can be written.
fn check_writable(memory: &dyn GuestMemory, at: Gpa, len: u64) -> Result<(), MemError> {
    let mut done = 0;
    while done < len {
        let past_everything = MemError::Unmapped { gpa: Gpa(u64::MAX) };
        let at = at.checked_add(done).ok_or(past_everything)?;
        let left = usize::try_from(len - done).unwrap_or(usize::MAX);
        let window = memory.window(at, left, Access::Write)?;
        // No window is empty, by contract; without it this would never end.
        done += window.len().max(1) as u64;
    }
    Ok(())
}

/// A buffer of a chain. Nothing says that it is in memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Buffer {
    at: Gpa,
    len: u32,
}

/// A chain of descriptors: what there is to read, and where there is room to write.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Chain {
    readable: Vec<Buffer>,
    writable: Vec<Buffer>,
}

impl Chain {
    fn push(&mut self, descriptor: &Descriptor) -> Result<(), ChainError> {
        let flags = descriptor.flags();
        if flags.indirect() {
            return Err(ChainError::Indirect);
        }
        let buffer = Buffer { at: Gpa(descriptor.address.get()), len: descriptor.len.get() };
        if flags.write() {
            self.writable.push(buffer);
        } else if self.writable.is_empty() {
            self.readable.push(buffer);
        } else {
            return Err(ChainError::ReadAfterWrite);
        }
        Ok(())
    }

    /// Reads from the front, as much as fits; how many bytes that were.
    pub(super) fn read(
        &self,
        memory: &dyn GuestMemory,
        bytes: &mut [u8],
    ) -> Result<usize, MemError> {
        let mut done = 0;
        for buffer in &self.readable {
            let rest = bytes.get_mut(done..).unwrap_or_default();
            let len = rest.len().min(usize::try_from(buffer.len).unwrap_or(usize::MAX));
            let part = rest.get_mut(..len).unwrap_or_default();
            memory.read(buffer.at, part)?;
            done += len;
        }
        Ok(done)
    }

    /// How many bytes there is room for.
    pub(super) fn room(&self) -> u64 {
        // At most as many as a queue has descriptors, of 32 bits each: the sum fits.
        self.writable.iter().map(|buffer| u64::from(buffer.len)).sum()
    }

    /// Whether all the room is memory that can be written.
    pub(super) fn check_writable(&self, memory: &dyn GuestMemory) -> Result<(), MemError> {
        self.writable
            .iter()
            .try_for_each(|buffer| check_writable(memory, buffer.at, buffer.len.into()))
    }

    /// Writes from the front, as much as there is room for.
    pub(super) fn write(&self, memory: &dyn GuestMemory, bytes: &[u8]) -> Result<(), MemError> {
        let mut rest = bytes;
        for buffer in &self.writable {
            let len = rest.len().min(usize::try_from(buffer.len).unwrap_or(usize::MAX));
            let (part, left) = rest.split_at(len);
            memory.write(buffer.at, part)?;
            rest = left;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
