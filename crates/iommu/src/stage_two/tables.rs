//! Memory of the host for tables that hardware walks: stage 2, and PASID tables that the host owns.

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::fmt;
use core::sync::atomic::{AtomicU64, Ordering};

use mem::HostAddr;
use pgtable::Tables;
use spin::mutex::SpinMutex;
use spin::Once;

/// First host address of tables: beyond every guest's memory.
const BASE: u64 = 1 << 45;
/// log2 of the bytes that memory for tables grows by.
const CHUNK_BITS: u32 = 18;
/// How often it can grow: 512 MiB, which is tables for a quarter of 1 TiB of guests' memory in
/// pages of 4 KiB.
const CHUNKS: usize = 2048;
/// log2 of the bytes of the smallest table.
const MIN_BITS: u32 = 12;
/// log2 of the bytes of the largest: 16 pages of 64 KiB.
const MAX_BITS: u32 = 20;
const SIZES: usize = (MAX_BITS - MIN_BITS + 1) as usize;

/// Tables of one host, for all its VMs. A word is loaded and changed without a lock.
pub(crate) struct HostTables {
    /// Each is made when the first of its words is given out, and stays.
    chunks: Box<[Once<Box<[AtomicU64]>>]>,
    free: SpinMutex<Free>,
    /// How many more there may be, in tests of running out.
    #[cfg(test)]
    pub(crate) left: AtomicU64,
}

/// What is not in use.
struct Free {
    /// From here on nothing was ever in use.
    fresh: u64,
    /// First address past what there is.
    end: u64,
    /// By size, from the smallest.
    lists: [Vec<HostAddr>; SIZES],
    /// Bytes in use.
    used: u64,
}

/// No table is there.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct NoTable;

impl HostTables {
    /// No tables.
    pub(crate) fn new() -> Self {
        Self::with_chunks(CHUNKS)
    }

    /// No tables, and fewer than usual to come.
    pub(super) fn with_chunks(chunks: usize) -> Self {
        let end = BASE + ((chunks as u64) << CHUNK_BITS);
        let free = Free { fresh: BASE, end, lists: Default::default(), used: 0 };
        Self {
            chunks: (0..chunks).map(|_| Once::new()).collect(),
            free: SpinMutex::new(free),
            #[cfg(test)]
            left: AtomicU64::new(u64::MAX),
        }
    }

    /// 2^`size_bits` bytes at a multiple of that, all zero; `None` if there are none, or the size
    /// is none of a table.
    pub(crate) fn allocate(&self, size_bits: u32) -> Option<HostAddr> {
        #[cfg(test)]
        self.left
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1))
            .ok()?;
        let table = self.free.lock().take(size_bits)?;
        let offset = table.0 - BASE;
        for chunk in offset >> CHUNK_BITS..=(offset + (1 << size_bits) - 1) >> CHUNK_BITS {
            if !self.provide(chunk as usize) {
                self.free(table, size_bits);
                return None;
            }
        }
        for at in (table.0..table.0 + (1 << size_bits)).step_by(8) {
            // Whoever links it does so with a release store.
            self.word(at)?.store(0, Ordering::Relaxed);
        }
        Some(table)
    }

    /// Takes back what [`allocate`](Self::allocate) gave for the same size, and what nothing can
    /// reach any more.
    pub(crate) fn free(&self, table: HostAddr, size_bits: u32) {
        self.free.lock().put(table, size_bits);
    }

    /// Bytes in use.
    pub(crate) fn used(&self) -> u64 {
        self.free.lock().used
    }

    /// Stores a word, with release ordering.
    pub(crate) fn store(&self, entry: HostAddr, value: u64) -> Result<(), NoTable> {
        self.word(entry.0).ok_or(NoTable)?.store(value, Ordering::Release);
        Ok(())
    }

    /// Replaces a word; gives what it held. Sequentially consistent.
    pub(crate) fn swap(&self, entry: HostAddr, value: u64) -> Result<u64, NoTable> {
        Ok(self.word(entry.0).ok_or(NoTable)?.swap(value, Ordering::SeqCst))
    }

    fn provide(&self, chunk: usize) -> bool {
        let Some(chunk) = self.chunks.get(chunk) else { return false };
        let fill = || {
            let words = 1usize << (CHUNK_BITS - 3);
            let mut chunk = Vec::new();
            chunk.try_reserve_exact(words).map_err(|_| NoTable)?;
            chunk.resize_with(words, AtomicU64::default);
            Ok::<_, NoTable>(chunk.into_boxed_slice())
        };
        chunk.try_call_once(fill).is_ok()
    }

    fn word(&self, entry: u64) -> Option<&AtomicU64> {
        let offset = entry.checked_sub(BASE).filter(|offset| offset % 8 == 0)?;
        let chunk = self.chunks.get(usize::try_from(offset >> CHUNK_BITS).ok()?)?.get()?;
        chunk.get((offset as usize & ((1 << CHUNK_BITS) - 1)) / 8)
    }
}

impl Free {
    fn take(&mut self, size_bits: u32) -> Option<HostAddr> {
        let list = self.lists.get_mut(size_bits.checked_sub(MIN_BITS)? as usize)?;
        let size = 1 << size_bits;
        let table = list.pop().or_else(|| {
            let table = self.fresh.next_multiple_of(size);
            if table > self.end.checked_sub(size)? {
                return None;
            }
            // What is passed over for the alignment serves as small tables.
            for small in (self.fresh..table).step_by(1 << MIN_BITS) {
                self.lists[0].push(HostAddr(small));
            }
            self.fresh = table + size;
            Some(HostAddr(table))
        })?;
        self.used += size;
        Some(table)
    }

    fn put(&mut self, table: HostAddr, size_bits: u32) {
        if let Some(list) = self.lists.get_mut((size_bits - MIN_BITS) as usize) {
            list.push(table);
            self.used -= 1 << size_bits;
        }
    }
}

impl Tables for HostTables {
    type Error = NoTable;

    fn load(&self, entry: u64) -> Result<u64, NoTable> {
        Ok(self.word(entry).ok_or(NoTable)?.load(Ordering::Acquire))
    }

    fn compare_exchange(
        &self,
        entry: u64,
        current: u64,
        new: u64,
    ) -> Result<Result<u64, u64>, NoTable> {
        let word = self.word(entry).ok_or(NoTable)?;
        Ok(word.compare_exchange(current, new, Ordering::SeqCst, Ordering::SeqCst))
    }
}

impl fmt::Debug for HostTables {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HostTables").field("used", &self.used()).finish_non_exhaustive()
    }
}
