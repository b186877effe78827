//! Building tables that the host owns: mapping, unmapping, and giving the tables' pages back only
//! after the caches that may still name them are clean.

use alloc::vec::Vec;

use crate::format::{Entry, Format, Rights};
use crate::walk::{Tables, MAX_LEVELS};

/// Tables, and the pages they are made of.
pub trait Pages: Tables {
    /// A page for a table, all zero; `None` if there is none left.
    fn allocate(&mut self) -> Option<u64>;

    /// Takes back a page that [`allocate`](Self::allocate) gave.
    fn free(&mut self, page: u64);
}

/// A range to map.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Map {
    /// First input address.
    pub address: u64,
    /// Output address of the first byte.
    pub output: u64,
    /// Length in bytes.
    pub len: u64,
    /// What the pages let through.
    pub rights: Rights,
    /// Highest level to place pages at: 1 for 4 KiB pages only, 3 for pages of up to 1 GiB.
    pub largest: u8,
}

/// Why a range was not mapped. The caller's mistake, except for [`OutOfPages`](Self::OutOfPages)
/// and [`Tables`](Self::Tables); except for the latter, nothing has changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum MapError<E> {
    /// The range is empty, or its ends or those of its output are no page borders.
    #[error("range at {address:#x} is empty or misaligned")]
    Misaligned {
        /// First input address of the range.
        address: u64,
    },
    /// The format cannot express a page at `address`: the input or the output address is out of
    /// its reach, or it knows no such rights.
    #[error("no page possible at {address:#x}")]
    Unsupported {
        /// Input address of the page.
        address: u64,
    },
    /// Something is mapped at `address` already.
    #[error("{address:#x} is mapped already")]
    Mapped {
        /// Input address of the first page in the way.
        address: u64,
    },
    /// No pages are left for tables.
    #[error("no pages left for tables")]
    OutOfPages,
    /// A table could not be reached, or changed under the call. Part of the range may be mapped;
    /// unmapping the range takes that back.
    #[error("table for {address:#x} unreachable: {error:?}")]
    Tables {
        /// Input address being mapped.
        address: u64,
        /// Why, or `None` if somebody else wrote to the table.
        error: Option<E>,
    },
}

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

/// What has to be flushed from translation caches after a table was changed, together with the
/// pages of tables that are out of use once it is.
#[derive(PartialEq, Eq, Debug, Default)]
#[must_use = "caches may still hold what was unmapped, and its tables' pages are not free yet"]
pub struct Flush {
    tables: Vec<u64>,
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
        self.tables.into_iter().for_each(|table| pages.free(table));
    }
}

/// A page table that the host owns.
#[derive(Debug)]
pub struct PageTable<F> {
    format: F,
    root: u64,
}

impl<F: Format> PageTable<F> {
    /// An empty table; `None` if there is no page for its root.
    pub fn new<P: Pages>(format: F, pages: &mut P) -> Option<Self> {
        Some(Self { format, root: pages.allocate()? })
    }

    /// Address of the root.
    pub fn root(&self) -> u64 {
        self.root
    }

    /// The format.
    pub fn format(&self) -> &F {
        &self.format
    }

    /// Maps a range, with the largest pages that its alignment and `map.largest` allow.
    ///
    /// # Errors
    ///
    /// See [`MapError`].
    pub fn map<P: Pages>(&mut self, pages: &mut P, map: &Map) -> Result<(), MapError<P::Error>> {
        let page = (1 << F::PAGE_BITS) - 1;
        if (map.address | map.output | map.len) & page != 0
            || last_of(map.address, map.len).is_none()
            || last_of(map.output, map.len).is_none()
        {
            return Err(MapError::Misaligned { address: map.address });
        }
        let missing = self.check_free(pages, map)?;
        let mut spare = Vec::new();
        while spare.len() < missing {
            let Some(table) = pages.allocate() else {
                spare.into_iter().for_each(|table| pages.free(table));
                return Err(MapError::OutOfPages);
            };
            spare.push(table);
        }
        let outcome = Pieces::new(&self.format, map)
            .try_for_each(|piece| self.place(pages, &piece?, map.rights, &mut spare));
        spare.into_iter().for_each(|table| pages.free(table));
        outcome
    }

    /// Checks that nothing is mapped where `map` goes; gives the number of tables it will need.
    fn check_free<P: Pages>(&self, pages: &P, map: &Map) -> Result<usize, MapError<P::Error>> {
        let mut missing = 0;
        // For each level the last entry found without a table: pages come in ascending order, so
        // the same entry comes up again only in a row.
        let mut last_missing = [None; MAX_LEVELS + 1];
        for piece in Pieces::new(&self.format, map) {
            let Piece { address, level: leaf, .. } = piece?;
            let unreachable = |error| MapError::Tables { address, error: Some(error) };
            let mut table = Some(self.root);
            for level in (leaf..=self.format.levels()).rev() {
                let found = match table {
                    Some(table) => {
                        let entry = self.format.entry_address(table, level, address);
                        self.format.decode(level, pages.load(entry).map_err(unreachable)?)
                    }
                    None => Entry::NotPresent,
                };
                table = match found {
                    Entry::NotPresent => None,
                    Entry::Table(next) if level > leaf => Some(next.address),
                    _ => return Err(MapError::Mapped { address }),
                };
                let place = Some(address >> self.format.size_bits(level));
                if let Some(last) = last_missing.get_mut(usize::from(level)) {
                    if table.is_none() && level > leaf && *last != place {
                        *last = place;
                        missing += 1;
                    }
                }
            }
        }
        Ok(missing)
    }

    /// Enters one page, linking tables from `spare` where there is none.
    fn place<P: Pages>(
        &self,
        pages: &P,
        piece: &Piece,
        rights: Rights,
        spare: &mut Vec<u64>,
    ) -> Result<(), MapError<P::Error>> {
        let address = piece.address;
        let failed = |error| MapError::Tables { address, error };
        let mut table = self.root;
        for level in (piece.level..=self.format.levels()).rev() {
            let entry = self.format.entry_address(table, level, address);
            let value = pages.load(entry).map_err(|error| failed(Some(error)))?;
            match self.format.decode(level, value) {
                Entry::Table(next) if level > piece.level => table = next.address,
                Entry::NotPresent if level > piece.level => {
                    // The table stays in `spare` until it is linked: it must not be lost.
                    let next = *spare.last().ok_or(failed(None))?;
                    self.enter(pages, entry, value, self.format.table_entry(next))
                        .map_err(failed)?;
                    spare.pop();
                    table = next;
                }
                Entry::NotPresent => {
                    let leaf = self.format.leaf_entry(level, piece.output, rights);
                    self.enter(pages, entry, value, leaf).map_err(failed)?;
                }
                _ => return Err(failed(None)),
            }
        }
        Ok(())
    }

    /// Writes `new` over `old`; `Err(None)` if somebody else was faster.
    fn enter<P: Pages>(
        &self,
        pages: &P,
        entry: u64,
        old: u64,
        new: u64,
    ) -> Result<(), Option<P::Error>> {
        pages.compare_exchange(entry, old, new).map_err(Some)?.map(|_| ()).map_err(|_| None)
    }

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
        let page = (1 << F::PAGE_BITS) - 1;
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
            flush.tables.push(table);
            for index in 0..1 << F::INDEX_BITS {
                match self.format.decode(level, pages.load(table + 8 * index)?) {
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
        let width = self.format.size_bits(self.format.levels() + 1);
        ((address ^ last) >> width == 0).then_some(())
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
        freed: &mut Vec<u64>,
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
            freed.push(table);
        }
        Ok(())
    }

    fn is_empty<P: Pages>(&self, pages: &P, level: u8, table: u64) -> Result<bool, P::Error> {
        for index in 0..1 << F::INDEX_BITS {
            let value = pages.load(table + 8 * index)?;
            if self.format.decode(level, value) != Entry::NotPresent {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

/// Zeroes an entry, whatever flags are being set in it meanwhile.
fn clear<T: Tables>(tables: &T, entry: u64) -> Result<(), T::Error> {
    let mut value = tables.load(entry)?;
    while let Err(found) = tables.compare_exchange(entry, value, 0)? {
        value = found;
    }
    Ok(())
}

/// The last address of `len` bytes from `first`, if there is one.
fn last_of(first: u64, len: u64) -> Option<u64> {
    first.checked_add(len.checked_sub(1)?)
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

/// A page of a range to map.
struct Piece {
    address: u64,
    output: u64,
    level: u8,
}

/// Cuts a range into the largest pages that fit.
struct Pieces<'a, F> {
    format: &'a F,
    /// What is left of the range.
    rest: Map,
}

impl<'a, F: Format> Pieces<'a, F> {
    fn new(format: &'a F, map: &Map) -> Self {
        Self { format, rest: *map }
    }

    fn fits(&self, level: u8) -> bool {
        let Map { address, output, len, rights, .. } = self.rest;
        let size = 1 << self.format.size_bits(level);
        let aligned = (address | output) & (size - 1) == 0;
        let entry = self.format.leaf_entry(level, output, rights);
        let decoded = self.format.decode(level, entry);
        aligned
            && size <= len
            && matches!(decoded, Entry::Leaf(leaf) if leaf.address == output && leaf.rights == rights)
    }
}

impl<F: Format> Iterator for Pieces<'_, F> {
    /// The next page, or the address where none is possible.
    type Item = Result<Piece, Unsupported>;

    fn next(&mut self) -> Option<Self::Item> {
        let Map { address, output, len, largest, .. } = self.rest;
        if len == 0 {
            return None;
        }
        let possible = self.format.check_address(address).is_ok();
        let mut levels = (1..=largest.min(self.format.levels())).rev();
        let Some(level) = levels.find(|&level| possible && self.fits(level)) else {
            self.rest.len = 0;
            return Some(Err(Unsupported(address)));
        };
        let size = 1 << self.format.size_bits(level);
        self.rest.len -= size;
        if self.rest.len > 0 {
            self.rest.address += size;
            self.rest.output += size;
        }
        Some(Ok(Piece { address, output, level }))
    }
}

/// The input address where the format cannot express a page.
struct Unsupported(u64);

impl<E> From<Unsupported> for MapError<E> {
    fn from(Unsupported(address): Unsupported) -> Self {
        Self::Unsupported { address }
    }
}
