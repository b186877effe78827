//! What the test programs share: the formats under test, table memory that counts and fails on
//! demand, and a slow walker written from the specifications alone.
#![allow(dead_code)] // each test program uses its own part

pub(crate) mod arena;
pub(crate) mod formats;
pub(crate) mod twin;

pub(crate) use arena::{Arena, ArenaError};

use pgtable::{Access, Format, Map, PageTable, Request, Rights};

pub(crate) const RIGHTS: Rights = Rights::all();
pub(crate) const READ: Request = Request::user(Access::Read);
pub(crate) const WRITE: Request = Request::user(Access::Write);

/// A table with one page of level `level` at `address`.
pub(crate) fn one_page<F: Format>(
    format: F,
    level: u8,
    address: u64,
    output: u64,
) -> (Arena, PageTable<F>) {
    let mut arena = Arena::default();
    let len = 1 << format.size_bits(level);
    let mut table = PageTable::new(format, &mut arena).unwrap();
    let map = Map { address, output, len, rights: RIGHTS, largest: level };
    table.map(&mut arena, &map).unwrap();
    (arena, table)
}
