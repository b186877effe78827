//! The table itself: read without a lock, written by one at a time.
//!
//! The pages of the two levels are what hardware would be given. Where the flat part reaches, both
//! are written and the flat part is read: one load.

use alloc::boxed::Box;
use alloc::vec::Vec;

use spin::Once;

use super::layout::{place, TranslationEntry, TABLES, TABLE_BITS};
use crate::sync::{AtomicU32, Ordering};
use crate::GuestPasid;

/// Entries of a table: for the model checker, as many as it can look at.
const ENTRIES: usize = if cfg!(loom) { 1 << 1 } else { 1 << TABLE_BITS };

type Page = Box<[AtomicU32; ENTRIES]>;

/// There was no memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct NoMemory;

/// From the VM's PASIDs to the host's.
#[derive(Debug)]
pub(super) struct Table {
    /// Of the PASIDs below its length.
    flat: Box<[AtomicU32]>,
    /// Each is made when the first of its PASIDs is got ready, and stays: hardware may have cached
    /// where it is.
    pages: Box<[Once<Page>]>,
}

impl Table {
    /// Without any entry; the flat part has 2^`flat_bits`.
    pub(super) fn new(flat_bits: u32) -> Result<Self, NoMemory> {
        let flat = filled(1 << flat_bits, AtomicU32::default)?;
        Ok(Self { flat, pages: filled(TABLES, Once::new)? })
    }

    /// Makes the page of a PASID, unless there are `limit` already. For one writer at a time.
    pub(super) fn reserve(&self, guest: GuestPasid, limit: usize) -> Result<(), NoMemory> {
        let page = self.pages.get(place(guest).0).ok_or(NoMemory)?;
        if page.get().is_some() {
            return Ok(());
        }
        if self.pages() >= limit {
            return Err(NoMemory);
        }
        let make = || {
            let page = filled(ENTRIES, AtomicU32::default)?;
            Page::try_from(page).map_err(|_| NoMemory)
        };
        page.try_call_once(make).map(|_| ())
    }

    /// Tables that there are.
    pub(super) fn pages(&self) -> usize {
        self.pages.iter().filter(|page| page.get().is_some()).count()
    }

    /// The entry of a PASID.
    #[inline]
    pub(super) fn load(&self, guest: GuestPasid) -> TranslationEntry {
        match self.flat.get(guest.0.get() as usize) {
            Some(entry) => TranslationEntry::from_bits(entry.load(Ordering::Acquire)),
            None => self.walk(guest),
        }
    }

    /// The same by the two levels.
    #[inline]
    pub(super) fn walk(&self, guest: GuestPasid) -> TranslationEntry {
        let entry = self.entry(guest).map_or(0, |entry| entry.load(Ordering::Acquire));
        TranslationEntry::from_bits(entry)
    }

    /// Writes the entry of a PASID whose page was made. For one writer at a time.
    pub(super) fn store(&self, guest: GuestPasid, entry: TranslationEntry) {
        if let Some(word) = self.entry(guest) {
            word.store(entry.into_bits(), Ordering::Release);
        }
        if let Some(word) = self.flat.get(guest.0.get() as usize) {
            word.store(entry.into_bits(), Ordering::Release);
        }
    }

    /// Calls `each` with the words of a table, if it is there.
    pub(super) fn words(&self, table: usize) -> Option<impl Iterator<Item = u32> + '_> {
        let page = self.pages.get(table)?.get()?;
        Some(page.iter().map(|word| word.load(Ordering::Acquire)))
    }

    #[inline]
    fn entry(&self, guest: GuestPasid) -> Option<&AtomicU32> {
        let (table, index) = place(guest);
        self.pages.get(table)?.get()?.get(index)
    }
}

/// `len` of what `make` makes.
pub(super) fn filled<T>(len: usize, make: impl FnMut() -> T) -> Result<Box<[T]>, NoMemory> {
    let mut all = Vec::new();
    all.try_reserve_exact(len).map_err(|_| NoMemory)?;
    all.resize_with(len, make);
    Ok(all.into_boxed_slice())
}
