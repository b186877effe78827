//! Unmapping, and giving the tables' pages back only after the caches that may still name them are
//! clean.

use alloc::vec::Vec;

use super::{last_of, size_of_table, PageTable, Pages};
use crate::format::{Entry, Format, ENTRY_BITS};
use crate::walk::{Tables, MAX_LEVELS};

/// Why a range was not unmapped. Except for [`Tables`](Self::Tables), nothing has changed.
#[derive(PartialEq, Eq, Debug, thiserror::Error)]
pub enum UnmapError<E> {
    /// The range is empty, or its ends are no page borders.
    #[error("range at {address:#x} is empty or misaligned")]
    Misaligned {
        /// First address of the range.
        address: u64,
    },
    /// The range reaches beyond what the format can translate.
    #[error("the range at {address:#x} is beyond the table")]
    Unsupported {
        /// First address of the range.
        address: u64,
    },
    /// The range covers a part of the page at `address`.
    #[error("the range splits the page at {address:#x}")]
    Splits {
        /// First address of the page.
        address: u64,
    },
    /// Nothing is mapped in the range.
    #[error("nothing is mapped at {address:#x}")]
    NotMapped {
        /// First address of the range.
        address: u64,
    },
    /// A table could not be reached. What `flush` covers is unmapped.
    #[error("table for {address:#x} unreachable")]
    Tables {
        /// Address being unmapped.
        address: u64,
        /// Why, in the words of the [`Tables`] implementation.
        error: E,
        /// What is to be flushed all the same.
        flush: Flush,
    },
}

/// A table that is out of use.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Table {
    address: u64,
    size_bits: u32,
}

/// What has to be flushed from translation caches after a table was changed, together with the
/// pages of tables that are out of use once it is.
///
/// Where the architecture wants a break before a make (Arm), nothing may be mapped in the range
/// until the caches are clean: [`PageTable`] itself never replaces an entry that maps something, it
/// only enters and clears, so this wait is all there is to it.
#[derive(PartialEq, Eq, Debug, Default)]
#[must_use = "caches may still hold what was unmapped, and its tables' pages are not free yet"]
pub struct Flush {
    tables: Vec<Table>,
    unmapped: u64,
}

impl Flush {
    /// Bytes that were unmapped.
    pub fn unmapped(&self) -> u64 {
        self.unmapped
    }

    /// Whether tables went out of use: then flushing the pages alone does not do, entries above
    /// them may be cached too.
    pub fn has_tables(&self) -> bool {
        !self.tables.is_empty()
    }

    /// Gives the pages of the tables back. Call this after the caches are clean.
    pub fn complete<P: Pages>(self, pages: &mut P) {
        self.tables.into_iter().for_each(|table| pages.free(table.address, table.size_bits));
    }
}

impl<F: Format> PageTable<F> {
    /// Unmaps every page in the `len` bytes from `address`. Parts of the range may be unmapped
    /// already, but not all of it.
    ///
    /// # Errors
    ///
    /// See [`UnmapError`].
    pub fn unmap<P: Pages>(
        &mut self,
        pages: &mut P,
        address: u64,
        len: u64,
    ) -> Result<Flush, UnmapError<P::Error>> {
        let page = (1 << self.format.page_bits()) - 1;
        let last = last_of(address, len).filter(|_| (address | len) & page == 0);
        let last = last.ok_or(UnmapError::Misaligned { address })?;
        self.check_range(address, last).ok_or(UnmapError::Unsupported { address })?;
        let mut flush = Flush::default();
        let mut mapped = false;
        self.for_each_place(pages, address, last, |place| {
            let splits = place.first < address || place.last > last;
            mapped |= place.leaf;
            if place.leaf && splits {
                return Err(UnmapError::Splits { address: place.first });
            }
            Ok(())
        })?;
        if !mapped {
            return Err(UnmapError::NotMapped { address });
        }
        let cleared = self.for_each_place(pages, address, last, |place| {
            let failed =
                |error| UnmapError::Tables { address: place.first, error, flush: Flush::default() };
            if place.leaf {
                clear(pages, place.entry).map_err(failed)?;
                flush.unmapped += place.last - place.first + 1;
            }
            self.unlink_empty(pages, place, last, &mut flush.tables).map_err(failed)
        });
        match cleared {
            Err(UnmapError::Tables { address, error, .. }) => {
                Err(UnmapError::Tables { address, error, flush })
            }
            Err(other) => Err(other),
            Ok(()) => Ok(flush),
        }
    }

    /// Takes the whole table down, the root too.
    ///
    /// # Errors
    ///
    /// The error of the table that could not be reached; pages of tables are lost then.
    pub fn destroy<P: Pages>(self, pages: &mut P) -> Result<Flush, P::Error> {
        let mut flush = Flush::default();
        // Tables whose entries are still to be looked at: fewer than one table's entries a level.
        let mut open = Vec::from([(self.root, self.format.levels())]);
        while let Some((table, level)) = open.pop() {
            flush.tables.push(self.table(table, level));
            for entry in self.entries(table, level) {
                match self.format.decode(level, pages.load(entry)?) {
                    Entry::Table(next) => open.push((next.address, level - 1)),
                    Entry::Leaf(_) => flush.unmapped += 1 << self.format.size_bits(level),
                    Entry::NotPresent | Entry::Reserved(_) => {}
                }
            }
        }
        Ok(flush)
    }

    /// Whether everything from `address` to `last` is in reach, and on one side of the hole that
    /// a format with canonical addresses has in the middle.
    fn check_range(&self, address: u64, last: u64) -> Option<()> {
        self.format.check_address(address).ok()?;
        self.format.check_address(last).ok()?;
        ((address ^ last) >> self.format.input_bits() == 0).then_some(())
    }

    /// Calls `f` with each page and each hole between `address` and `last`, in order.
    fn for_each_place<P: Pages>(
        &self,
        pages: &P,
        mut address: u64,
        last: u64,
        mut f: impl FnMut(&Place) -> Result<(), UnmapError<P::Error>>,
    ) -> Result<(), UnmapError<P::Error>> {
        loop {
            let place = self.find(pages, address).map_err(|error| {
                let flush = Flush::default();
                UnmapError::Tables { address, error, flush }
            })?;
            f(&place)?;
            if place.last >= last {
                return Ok(());
            }
            address = place.last + 1;
        }
    }

    /// The page or the hole at `address`.
    fn find<P: Pages>(&self, pages: &P, address: u64) -> Result<Place, P::Error> {
        let mut tables = [0; MAX_LEVELS + 1];
        let mut table = self.root;
        let mut level = self.format.levels();
        loop {
            if let Some(slot) = tables.get_mut(usize::from(level)) {
                *slot = table;
            }
            let entry = self.format.entry_address(table, level, address);
            let found = self.format.decode(level, pages.load(entry)?);
            match found {
                Entry::Table(next) if level > 1 => table = next.address,
                _ => {
                    let below = (1 << self.format.size_bits(level)) - 1;
                    let (first, last) = (address & !below, address | below);
                    let leaf = matches!(found, Entry::Leaf(_));
                    return Ok(Place { first, last, level, entry, leaf, tables });
                }
            }
            level -= 1;
        }
    }

    /// Unlinks the tables that lead to `place`, as far as they are empty and the unmapping of
    /// everything up to `last` has nothing more to do in them.
    fn unlink_empty<P: Pages>(
        &self,
        pages: &P,
        place: &Place,
        last: u64,
        freed: &mut Vec<Table>,
    ) -> Result<(), P::Error> {
        for level in place.level..self.format.levels() {
            let (Some(&table), Some(&parent)) =
                (place.tables.get(usize::from(level)), place.tables.get(usize::from(level) + 1))
            else {
                break;
            };
            let covered = place.last | ((1 << self.format.size_bits(level + 1)) - 1);
            let leaves = place.last == covered || place.last >= last;
            if !leaves || !self.is_empty(pages, level, table)? {
                break;
            }
            clear(pages, self.format.entry_address(parent, level + 1, place.first))?;
            freed.push(self.table(table, level));
        }
        Ok(())
    }

    fn table(&self, address: u64, level: u8) -> Table {
        Table { address, size_bits: size_of_table(&self.format, level) }
    }

    /// The addresses of the entries of a table.
    fn entries(&self, table: u64, level: u8) -> impl Iterator<Item = u64> {
        (0..1u64 << self.format.index_bits(level)).map(move |index| table + (index << ENTRY_BITS))
    }

    fn is_empty<P: Pages>(&self, pages: &P, level: u8, table: u64) -> Result<bool, P::Error> {
        for entry in self.entries(table, level) {
            if self.format.decode(level, pages.load(entry)?) != Entry::NotPresent {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

/// Zeroes an entry, whatever flags are being set in it meanwhile. The table is the host's and there
/// are two flags, so this goes round three times at most.
fn clear<T: Tables>(tables: &T, entry: u64) -> Result<(), T::Error> {
    let mut value = tables.load(entry)?;
    while let Err(found) = tables.compare_exchange(entry, value, 0)? {
        value = found;
    }
    Ok(())
}

/// A page, or a hole as large as one entry leaves.
struct Place {
    first: u64,
    last: u64,
    /// Level of the entry that maps the page or leaves the hole.
    level: u8,
    /// Address of that entry.
    entry: u64,
    leaf: bool,
    /// By level, the tables that lead there.
    tables: [u64; MAX_LEVELS + 1],
}
