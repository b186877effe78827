//! The PASID table of one device that the host owns: a directory and tables of 64-byte entries in
//! pages of the host (VT-d 3.4.3, 9.5, 9.6), indexed by the host's PASIDs.
//!
//! One writer at a time, under the VM's lock; the engine reads without any. What it reads is the
//! entry of before a change or that of after, never a mixture, because
//!
//! * an entry is written with P last, and cleared by P alone; the rest of it is
//!   [wiped](HostTable::wipe) only once nobody can be reading it;
//! * word 1, the domain, is the same in all entries of a device as long as that is attached;
//! * a change of a present entry is one store of one word, of which all others are either the same
//!   before and after or ignored before ([`HostTable::replace`]).

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU64, Ordering};

use mem::Gpa;
use spin::once::Once;

use crate::format::vtd::{DirectoryEntry, PasidEntry, PasidWord0, PASID_ENTRY_SIZE};
use crate::format::vtd::{DIRECTORY_ENTRY_SIZE, TABLE_INDEX_BITS};
use crate::{FaultReason, Pasid};

const PAGE_BITS: u32 = 12;
/// 64-bit words of a page.
const PAGE_WORDS: usize = 1 << (PAGE_BITS - 3);
/// Pages whose places are made together.
const CHUNK: usize = 512;

/// There was no memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct NoMemory;

/// Why an entry was not programmed. Nothing has changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum ProgramError {
    /// It is present: it has to be cleared first, or replaced.
    Present,
    /// The PASID is wider than the directory.
    Range,
    /// No memory for the page that it lies in.
    NoMemory,
}

/// How a present entry became another.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Change {
    /// In one store: each request found the old one or the new one.
    Hitless,
    /// By way of an entry that is not present, which requests in between have found.
    Blocked,
}

type Page = Box<[AtomicU64]>;
type Chunk = Box<[Once<Page>]>;

/// Pages of 4 KiB at consecutive addresses, each there once somebody has written to it.
#[derive(Debug)]
struct Pages(Box<[Once<Chunk>]>);

impl Pages {
    fn new(count: usize) -> Result<Self, NoMemory> {
        Ok(Self(filled(count.div_ceil(CHUNK), Once::new)?))
    }

    fn get(&self, page: usize) -> Option<&Page> {
        self.0.get(page / CHUNK)?.get()?.get(page % CHUNK)?.get()
    }

    fn make(&self, page: usize) -> Result<&Page, ProgramError> {
        let chunk = self.0.get(page / CHUNK).ok_or(ProgramError::Range)?;
        let chunk = chunk.try_call_once(|| filled(CHUNK, Once::new))?;
        let page = chunk.get(page % CHUNK).ok_or(ProgramError::Range)?;
        Ok(page.try_call_once(|| filled(PAGE_WORDS, AtomicU64::default))?)
    }

    /// The word at an address; a page that nobody has written to reads as zero.
    fn load(&self, at: Gpa) -> u64 {
        let page = usize::try_from(at.0 >> PAGE_BITS).ok().and_then(|page| self.get(page));
        page.and_then(|page| page.get(word_of(at))).map_or(0, |word| word.load(Ordering::Acquire))
    }
}

impl From<NoMemory> for ProgramError {
    fn from(NoMemory: NoMemory) -> Self {
        Self::NoMemory
    }
}

/// Which word of its page an address is.
fn word_of(at: Gpa) -> usize {
    (at.0 >> 3) as usize % PAGE_WORDS
}

fn filled<V>(len: usize, value: impl FnMut() -> V) -> Result<Box<[V]>, NoMemory> {
    let mut values = Vec::new();
    values.try_reserve_exact(len).map_err(|_| NoMemory)?;
    values.extend(core::iter::repeat_with(value).take(len));
    Ok(values.into_boxed_slice())
}

/// A PASID directory and its tables. Tables stay until the device goes, as in hardware, where one
/// would have to wait for its caches.
#[derive(Debug)]
pub(crate) struct HostTable {
    pages: Pages,
    /// Pages of the directory, which begins at address zero.
    directory_pages: usize,
    pasid_bits: u32,
}

impl HostTable {
    /// An empty table for PASIDs of `pasid_bits` bits.
    pub(crate) fn new(pasid_bits: u32) -> Result<Self, NoMemory> {
        let pasid_bits = pasid_bits.clamp(TABLE_INDEX_BITS, Pasid::BITS);
        let tables = 1usize << (pasid_bits - TABLE_INDEX_BITS);
        let directory_pages = (tables * DIRECTORY_ENTRY_SIZE as usize).div_ceil(1 << PAGE_BITS);
        Ok(Self { pages: Pages::new(directory_pages + tables)?, directory_pages, pasid_bits })
    }

    /// Makes a present entry of one that is not.
    pub(crate) fn program(&self, host: Pasid, entry: &PasidEntry) -> Result<(), ProgramError> {
        let words = self.words(host)?;
        let [word0, word1, word2, ..] = words else { return Err(ProgramError::Range) };
        if present(word0) {
            return Err(ProgramError::Present);
        }
        word1.store(entry.word1.into_bits(), Ordering::Relaxed);
        word2.store(entry.word2.into_bits(), Ordering::Relaxed);
        // Releases the other words to whoever sees P.
        word0.store(entry.word0.into_bits(), Ordering::Release);
        Ok(())
    }

    /// Makes another entry of a present one; `None` if there is none.
    ///
    /// Words that the old kind of entry ignores are written first, and those that the new kind
    /// ignores not at all. If what is left is one word, the change is that store.
    pub(crate) fn replace(&self, host: Pasid, entry: &PasidEntry) -> Option<Change> {
        let [word0, word1, word2, ..] = self.words(host).ok()? else { return None };
        if !present(word0) {
            return None;
        }
        let old = PasidWord0::from_bits(word0.load(Ordering::Relaxed));
        let new = [entry.word0.into_bits(), entry.word1.into_bits(), entry.word2.into_bits()];
        let first_stage = (uses_first_stage(old), uses_first_stage(entry.word0));
        let changes = [
            old.into_bits() != new[0],
            word1.load(Ordering::Relaxed) != new[1],
            first_stage == (true, true) && word2.load(Ordering::Relaxed) != new[2],
        ];
        let hitless = changes.iter().filter(|&&changes| changes).count() <= 1;
        if !hitless {
            word0.store(old.with_present(false).into_bits(), Ordering::Release);
        }
        word1.store(new[1], Ordering::Release);
        if first_stage.1 {
            word2.store(new[2], Ordering::Release);
        }
        word0.store(new[0], Ordering::Release);
        Some(if hitless { Change::Hitless } else { Change::Blocked })
    }

    /// Clears P. What else is in the entry stays until it is [wiped](Self::wipe).
    pub(crate) fn clear(&self, host: Pasid) {
        if let Ok([word0, ..]) = self.words(host) {
            word0.store(0, Ordering::Release);
        }
    }

    /// Zeroes an entry that was cleared, once no request of before that is in flight.
    pub(crate) fn wipe(&self, host: Pasid) {
        if let Ok([word0, rest @ ..]) = self.words(host) {
            if !present(word0) {
                rest.iter().for_each(|word| word.store(0, Ordering::Relaxed));
            }
        }
    }

    /// The present entry of a PASID, found by way of the directory.
    pub(crate) fn read(&self, host: Pasid) -> Result<PasidEntry, FaultReason> {
        if host.get() >> self.pasid_bits != 0 {
            return Err(FaultReason::PasidRange);
        }
        let none = FaultReason::PasidDirectoryNotPresent;
        let directory = DirectoryEntry::address(Gpa(0), host).ok_or(none)?;
        let directory = DirectoryEntry::from_bits(self.pages.load(directory));
        if !directory.present() {
            return Err(none);
        }
        let none = FaultReason::PasidEntryNotPresent;
        let at = PasidEntry::address(directory.table(), host).ok_or(none)?;
        // The word with P first: that acquires the others.
        let words = core::array::from_fn(|word| self.pages.load(Gpa(at.0 + 8 * word as u64)));
        let entry = PasidEntry::from_words(words);
        entry.word0.present().then_some(entry).ok_or(none)
    }

    /// The words of an entry. Its table, and the directory's entry for that, are made.
    fn words(&self, host: Pasid) -> Result<&[AtomicU64], ProgramError> {
        if host.get() >> self.pasid_bits != 0 {
            return Err(ProgramError::Range);
        }
        let index = (host.get() >> TABLE_INDEX_BITS) as usize;
        let number = self.directory_pages + index;
        let table = Gpa((number as u64) << PAGE_BITS);
        let page = self.pages.make(number)?;
        let at = DirectoryEntry::address(Gpa(0), host).ok_or(ProgramError::Range)?;
        let directory = self.pages.make((at.0 >> PAGE_BITS) as usize)?;
        let entry = directory.get(word_of(at)).ok_or(ProgramError::Range)?;
        entry.store(DirectoryEntry::to_table(table).into_bits(), Ordering::Release);
        let at = PasidEntry::address(table, host).ok_or(ProgramError::Range)?;
        let start = word_of(at);
        page.get(start..start + PASID_ENTRY_SIZE as usize / 8).ok_or(ProgramError::Range)
    }
}

fn present(word0: &AtomicU64) -> bool {
    PasidWord0::from_bits(word0.load(Ordering::Relaxed)).present()
}

/// Whether entries of that kind have a first stage: the others ignore word 2.
fn uses_first_stage(word0: PasidWord0) -> bool {
    matches!(word0.translation_type(), 1 | 3)
}

#[cfg(all(test, not(loom)))]
mod tests;
