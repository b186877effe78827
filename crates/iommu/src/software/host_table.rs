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

use alloc::sync::Arc;

use mem::{Gpa, HostAddr};
use pgtable::Tables;

use crate::format::vtd::{DirectoryEntry, PasidEntry, PasidWord0};
use crate::format::vtd::{DIRECTORY_ENTRY_SIZE, TABLE_INDEX_BITS};
use crate::stage_two::{HostTables, NoTable};
use crate::{FaultReason, Pasid};

/// log2 of the bytes of a PASID table, and of the smallest directory.
const PAGE_BITS: u32 = 12;

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

impl From<NoTable> for ProgramError {
    fn from(NoTable: NoTable) -> Self {
        Self::NoMemory
    }
}

/// A PASID directory and its tables. Tables stay until the device goes, as in hardware, where one
/// would have to wait for its caches.
#[derive(Debug)]
pub(crate) struct HostTable {
    tables: Arc<HostTables>,
    directory: HostAddr,
    pasid_bits: u32,
}

/// The words of an entry that are not always zero, by their addresses.
struct Words<'t> {
    tables: &'t HostTables,
    at: [HostAddr; 3],
}

impl HostTable {
    /// An empty table for PASIDs of `pasid_bits` bits; `None` if there is no memory.
    pub(crate) fn new(pasid_bits: u32, tables: &Arc<HostTables>) -> Option<Self> {
        let pasid_bits = pasid_bits.clamp(TABLE_INDEX_BITS, Pasid::BITS);
        let directory = tables.allocate(Self::directory_bits(pasid_bits))?;
        Some(Self { tables: tables.clone(), directory, pasid_bits })
    }

    /// log2 of the bytes of a directory.
    fn directory_bits(pasid_bits: u32) -> u32 {
        let entry_bits = DIRECTORY_ENTRY_SIZE.ilog2();
        (pasid_bits - TABLE_INDEX_BITS + entry_bits).max(PAGE_BITS)
    }

    /// Makes a present entry of one that is not.
    pub(crate) fn program(&self, host: Pasid, entry: &PasidEntry) -> Result<(), ProgramError> {
        let words = self.make(host)?;
        if PasidWord0::from_bits(words.load(0)?).present() {
            return Err(ProgramError::Present);
        }
        words.store(1, entry.word1.into_bits())?;
        words.store(2, entry.word2.into_bits())?;
        // Releases the other words to whoever sees P.
        words.store(0, entry.word0.into_bits())?;
        Ok(())
    }

    /// Makes another entry of a present one; `None` if there is none.
    ///
    /// Words that the old kind of entry ignores are written first, and those that the new kind
    /// ignores not at all. If what is left is one word, the change is that store.
    pub(crate) fn replace(&self, host: Pasid, entry: &PasidEntry) -> Option<Change> {
        let words = self.present(host)?;
        let old = PasidWord0::from_bits(words.load(0).ok()?);
        let new = [entry.word0.into_bits(), entry.word1.into_bits(), entry.word2.into_bits()];
        let (was_first, is_first) = (uses_first_stage(old), uses_first_stage(entry.word0));
        let changes = [
            old.into_bits() != new[0],
            words.load(1).ok()? != new[1],
            was_first && is_first && words.load(2).ok()? != new[2],
        ];
        let hitless = changes.iter().filter(|&&changes| changes).count() <= 1;
        if !hitless {
            words.store(0, old.with_present(false).into_bits()).ok()?;
        }
        words.store(1, new[1]).ok()?;
        if is_first {
            words.store(2, new[2]).ok()?;
        }
        words.store(0, new[0]).ok()?;
        Some(if hitless { Change::Hitless } else { Change::Blocked })
    }

    /// Clears P. What else is in the entry stays until it is [wiped](Self::wipe).
    pub(crate) fn clear(&self, host: Pasid) {
        if let Some(words) = self.present(host) {
            let _ = words.store(0, 0);
        }
    }

    /// Zeroes an entry that was cleared, once no request of before that is in flight.
    pub(crate) fn wipe(&self, host: Pasid) {
        let Ok(words) = self.find(host) else { return };
        let absent = words.load(0).is_ok_and(|word| !PasidWord0::from_bits(word).present());
        if absent {
            let _ = words.store(1, 0).and_then(|()| words.store(2, 0));
        }
    }

    /// The present entry of a PASID, found by way of the directory.
    pub(crate) fn read(&self, host: Pasid) -> Result<PasidEntry, FaultReason> {
        let table = self.table(host)?;
        let none = FaultReason::PasidEntryNotPresent;
        let at = PasidEntry::address(table, host).ok_or(none)?;
        let mut words = [0; 8];
        // The word with P first: that acquires the others.
        for (index, word) in (0..).zip(&mut words) {
            let at = at.checked_add(8 * index).ok_or(none)?;
            *word = self.tables.load(at.0).map_err(|NoTable| FaultReason::PasidEntryAccess)?;
        }
        let entry = PasidEntry::from_words(words);
        entry.word0.present().then_some(entry).ok_or(none)
    }

    /// Where the directory's entry for a PASID lies.
    fn directory_entry(&self, host: Pasid) -> Result<HostAddr, FaultReason> {
        let within = host.get() >> self.pasid_bits == 0;
        let at = DirectoryEntry::address(Gpa(self.directory.0), host).filter(|_| within);
        at.map(|at| HostAddr(at.0)).ok_or(FaultReason::PasidRange)
    }

    /// The table that the entry of a PASID lies in. (Addresses in these tables are the host's; the
    /// layout's types are shared with tables at guest physical ones.)
    fn table(&self, host: Pasid) -> Result<Gpa, FaultReason> {
        let at = self.directory_entry(host)?;
        let entry = self.tables.load(at.0).map_err(|NoTable| FaultReason::PasidDirectoryAccess)?;
        let entry = DirectoryEntry::from_bits(entry);
        match entry.present() {
            true => Ok(entry.table()),
            false => Err(FaultReason::PasidDirectoryNotPresent),
        }
    }

    /// The words of an entry whose table is there.
    fn find(&self, host: Pasid) -> Result<Words<'_>, FaultReason> {
        let none = FaultReason::PasidEntryAccess;
        let at = PasidEntry::address(self.table(host)?, host).ok_or(none)?;
        let word = |index: u64| at.checked_add(8 * index).map(|at| HostAddr(at.0)).ok_or(none);
        Ok(Words { tables: &self.tables, at: [word(0)?, word(1)?, word(2)?] })
    }

    /// The words of a present entry.
    fn present(&self, host: Pasid) -> Option<Words<'_>> {
        let words = self.find(host).ok()?;
        PasidWord0::from_bits(words.load(0).ok()?).present().then_some(words)
    }

    /// The words of an entry; its table is made.
    fn make(&self, host: Pasid) -> Result<Words<'_>, ProgramError> {
        let at = self.directory_entry(host).map_err(|_| ProgramError::Range)?;
        if !DirectoryEntry::from_bits(self.tables.load(at.0)?).present() {
            let table = self.tables.allocate(PAGE_BITS).ok_or(ProgramError::NoMemory)?;
            self.tables.store(at, DirectoryEntry::to_table(Gpa(table.0)).into_bits())?;
        }
        self.find(host).map_err(|_| ProgramError::Range)
    }
}

impl Words<'_> {
    fn load(&self, index: usize) -> Result<u64, NoTable> {
        self.tables.load(self.at.get(index).ok_or(NoTable)?.0)
    }

    /// With release ordering.
    fn store(&self, index: usize, value: u64) -> Result<(), NoTable> {
        self.tables.store(*self.at.get(index).ok_or(NoTable)?, value)
    }
}

impl Drop for HostTable {
    fn drop(&mut self) {
        let tables = (0..1u32 << (self.pasid_bits - TABLE_INDEX_BITS))
            .filter_map(|index| self.table(Pasid::from_field(index << TABLE_INDEX_BITS)).ok());
        tables.for_each(|table| self.tables.free(HostAddr(table.0), PAGE_BITS));
        self.tables.free(self.directory, Self::directory_bits(self.pasid_bits));
    }
}

/// Whether entries of that kind have a first stage: the others ignore word 2.
fn uses_first_stage(word0: PasidWord0) -> bool {
    matches!(word0.translation_type(), 1 | 3)
}

#[cfg(all(test, not(loom)))]
mod tests;
