//! Building tables that the host owns.

use alloc::vec::Vec;

use crate::format::{Entry, Format, Rights};
use crate::walk::{Tables, MAX_LEVELS};

mod unmap;

pub use unmap::{Flush, UnmapError};

/// Tables, and the pages they are made of.
pub trait Pages: Tables {
    /// Memory for a table, all zero: 2^`size_bits` bytes at a multiple of that. `None` if there is
    /// none left, or never so much in a row.
    ///
    /// `size_bits` is at least [`MIN_TABLE_BITS`]; only Arm's formats ask for more.
    fn allocate(&mut self, size_bits: u32) -> Option<u64>;

    /// Takes back what [`allocate`](Self::allocate) gave for the same `size_bits`.
    fn free(&mut self, table: u64, size_bits: u32);
}

/// log2 of the least memory that a table is given, also where a root needs less.
pub const MIN_TABLE_BITS: u32 = 12;

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
    /// Highest level to place pages at: 1 for the smallest only; with pages of 4 KiB, 3 for pages
    /// of up to 1 GiB.
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

/// A page table that the host owns.
#[derive(Debug)]
pub struct PageTable<F> {
    format: F,
    root: u64,
}

impl<F: Format> PageTable<F> {
    /// An empty table; `None` if there is no page for its root.
    pub fn new<P: Pages>(format: F, pages: &mut P) -> Option<Self> {
        let root = pages.allocate(size_of_table(&format, format.levels()))?;
        Some(Self { format, root })
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
        let page = (1 << self.format.page_bits()) - 1;
        if (map.address | map.output | map.len) & page != 0
            || last_of(map.address, map.len).is_none()
            || last_of(map.output, map.len).is_none()
        {
            return Err(MapError::Misaligned { address: map.address });
        }
        let missing = self.check_free(pages, map)?;
        // Every table below the root has this size.
        let size_bits = size_of_table(&self.format, 1);
        let mut spare = Vec::new();
        while spare.len() < missing {
            let Some(table) = pages.allocate(size_bits) else {
                spare.into_iter().for_each(|table| pages.free(table, size_bits));
                return Err(MapError::OutOfPages);
            };
            spare.push(table);
        }
        let outcome = Pieces::new(&self.format, map)
            .try_for_each(|piece| self.place(pages, &piece?, map.rights, &mut spare));
        spare.into_iter().for_each(|table| pages.free(table, size_bits));
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
}

/// log2 of the memory that a table of level `level` is given.
fn size_of_table<F: Format>(format: &F, level: u8) -> u32 {
    format.table_bits(level).max(MIN_TABLE_BITS)
}

/// The last address of `len` bytes from `first`, if there is one.
fn last_of(first: u64, len: u64) -> Option<u64> {
    first.checked_add(len.checked_sub(1)?)
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
