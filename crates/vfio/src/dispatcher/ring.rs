//! A ring that a device's client maps: a page of numbers, then entries.
//!
//! ```text
//!   0     client's index, entry size, entries, offset, host's index
//!   4096  entry 0, entry 1, …                       ◄── what can be mapped
//! ```
//!
//! Of the numbers a client writes one: its own index. The host reads nothing else that a client
//! could have written, but for the entries of responses, which are copied before they are looked
//! at.

use alloc::sync::Arc;
use alloc::vec;
use core::ops::Range;
use core::sync::atomic::{AtomicU64, Ordering};

use mem::{Access, Backing, Gpa, GuestMemory, HeapMemory, MemoryMap, Segment};
use spin::mutex::SpinMutex;
use zerocopy::IntoBytes;

use crate::spec::RingHeader;
use crate::Refusal;

/// Entries of a ring.
pub const RING_ENTRIES: u32 = 512;
/// Where the entries begin.
pub(super) const RING_OFFSET: usize = 4096;

/// The two indices: of a fault ring, tail and head; of a response ring, head and tail.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
struct Indices {
    client: u32,
    host: u32,
}

/// A ring of entries of one size.
#[derive(Debug)]
pub(super) struct Ring {
    entries: Arc<dyn Backing>,
    memory: MemoryMap,
    entry_size: usize,
    indices: SpinMutex<Indices>,
    dropped: AtomicU64,
}

/// There is no room for another entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct RingFull;

const fn next(index: u32) -> u32 {
    (index + 1) % RING_ENTRIES
}

impl Ring {
    pub(super) fn new(entry_size: usize) -> Result<Self, Refusal> {
        let len = entry_size * RING_ENTRIES as usize;
        let entries: Arc<dyn Backing> = Arc::new(HeapMemory::new(len).ok_or(Refusal::NoMemory)?);
        let range = mem::Range::<Gpa>::new(Gpa(0), len as u64).ok_or(Refusal::NoMemory)?;
        let segment = Segment { range, backing: entries.clone(), offset: 0, access: Access::Write };
        let memory = MemoryMap::new(vec![segment])?;
        let (indices, dropped) = Default::default();
        Ok(Self { entries, memory, entry_size, indices, dropped })
    }

    /// Bytes of the region.
    pub(super) fn size(&self) -> usize {
        RING_OFFSET + self.entry_size * RING_ENTRIES as usize
    }

    fn place(&self, index: u32) -> Gpa {
        Gpa(u64::from(index) * self.entry_size as u64)
    }

    /// Adds an entry for the client.
    pub(super) fn push(&self, entry: &[u8]) -> Result<(), RingFull> {
        let mut indices = self.indices.lock();
        let full = next(indices.host) == indices.client;
        // The ring is as large as its indices go.
        if full || self.memory.write(self.place(indices.host), entry).is_err() {
            self.dropped.fetch_add(1, Ordering::Relaxed);
            return Err(RingFull);
        }
        indices.host = next(indices.host);
        Ok(())
    }

    /// Takes the entries that the client has added, each of them at most once.
    pub(super) fn drain(&self, mut take: impl FnMut(&[u8])) {
        let mut indices = self.indices.lock();
        let mut entry = vec![0; self.entry_size];
        while indices.host != indices.client {
            if self.memory.read(self.place(indices.host), &mut entry).is_ok() {
                take(&entry);
            }
            indices.host = next(indices.host);
        }
    }

    /// Entries that found no room.
    pub(super) fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    fn header(&self) -> RingHeader {
        let Indices { client, host } = *self.indices.lock();
        RingHeader {
            client,
            entry_size: self.entry_size as u32,
            nb_entries: RING_ENTRIES,
            offset: RING_OFFSET as u32,
            host,
        }
    }

    /// Reads from the region.
    pub(super) fn read(&self, position: usize, bytes: &mut [u8]) -> Result<(), Refusal> {
        let end = position.checked_add(bytes.len()).filter(|&end| end <= self.size());
        let refused = Refusal::Value { offset: position };
        end.ok_or(refused)?;
        let header = self.header();
        let numbers = RING_OFFSET.saturating_sub(position).min(bytes.len());
        let (numbers, entries) = bytes.split_at_mut(numbers);
        let from = header.as_bytes().iter().copied().chain(core::iter::repeat(0));
        numbers.iter_mut().zip(from.skip(position)).for_each(|(to, from)| *to = from);
        if entries.is_empty() {
            return Ok(());
        }
        let at = (position + numbers.len()).saturating_sub(RING_OFFSET);
        self.memory.read(Gpa(at as u64), entries).map_err(|_| refused)
    }

    /// Writes to the region: the client's index, and nothing else.
    pub(super) fn write(&self, position: usize, bytes: &[u8]) -> Result<(), Refusal> {
        let refused = Refusal::Value { offset: position };
        let index = <[u8; 4]>::try_from(bytes).map(u32::from_ne_bytes).map_err(|_| refused)?;
        if position != 0 || index >= RING_ENTRIES {
            return Err(refused);
        }
        self.indices.lock().client = index;
        Ok(())
    }

    /// What of the region can be mapped: the memory, and where in it.
    pub(super) fn map(
        &self,
        position: usize,
        len: usize,
    ) -> Result<(Arc<dyn Backing>, Range<usize>), Refusal> {
        let refused = Refusal::Value { offset: position };
        let end = position.checked_add(len).filter(|&end| end <= self.size()).ok_or(refused)?;
        if position < RING_OFFSET || position % RING_OFFSET != 0 || len == 0 {
            return Err(refused);
        }
        Ok((self.entries.clone(), position - RING_OFFSET..end - RING_OFFSET))
    }
}
