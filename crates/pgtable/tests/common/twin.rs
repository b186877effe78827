//! A second opinion: the formats as the specifications' tables have them, bit by bit, without the
//! crate's own types. Slow and naive on purpose.

pub(crate) mod arm;
pub(crate) mod vtd;

use std::fmt::Debug;

use pgtable::{Access, Denied, Request, WalkFault};

use super::{Arena, ArenaError};

/// What an entry is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Class {
    Absent,
    Reserved,
    Table,
    Leaf,
}

/// Which flags a walk sets.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Updates {
    /// The accessed flag, of the leaf.
    pub(crate) accessed: bool,
    /// The accessed flag of table entries, too.
    pub(crate) tables: bool,
    /// The dirty flag.
    pub(crate) dirty: bool,
}

/// What a format's specification says, as plain numbers.
pub(crate) trait Twin: Copy + Debug {
    fn page_bits(&self) -> u32;
    fn levels(&self) -> u8;
    fn input_bits(&self) -> u32;
    fn output_bits(&self) -> u32;

    /// Whether the input is split in two halves around a hole.
    fn is_canonical(&self) -> bool {
        false
    }

    /// The highest level with pages.
    fn highest_page(&self) -> u8;

    fn class(&self, level: u8, entry: u64) -> Class;

    /// Where an entry leads, if it is a table or a leaf.
    fn target(&self, level: u8, entry: u64) -> u64;

    fn updates(&self) -> Updates;

    /// Whether a leaf's access flag is clear, and that is a fault.
    fn is_untouched(&self, _entry: u64) -> bool {
        false
    }

    /// The entry after a walk used it.
    fn used(&self, entry: u64, leaf: bool, written: bool) -> u64;

    /// The rights that a request needs, the weightiest first.
    fn needs(&self, request: &Request) -> Vec<Denied>;

    /// Whether the entry takes a right.
    fn takes(&self, right: Denied, entry: u64, leaf: bool) -> bool;

    /// What else stops a request at a page, given whether each right is there.
    fn stops(&self, request: &Request, has: impl Fn(Denied) -> bool) -> Option<Denied>;

    /// The bits of a leaf or a table entry that a request's fate depends on.
    fn fateful_bits(&self, leaf: bool) -> Vec<u32>;

    /// Whether any entry has a reserved bit that is not simply ignored.
    fn has_reserved_bits(&self) -> bool;

    /// Whether a page can be without the right to read it.
    fn has_unreadable_pages(&self) -> bool;

    /// Bits that make most entries mean something, and bits that an entry may have besides.
    fn plausible(&self) -> (u64, u64);

    /// log2 of the size of a page of `level`.
    fn size_bits(&self, level: u8) -> u32 {
        self.page_bits() + (self.page_bits() - 3) * (u32::from(level) - 1)
    }

    fn size(&self, level: u8) -> u64 {
        1 << self.size_bits(level)
    }

    /// log2 of the entries of a table.
    fn index_bits(&self, level: u8) -> u32 {
        if level < self.levels() {
            self.page_bits() - 3
        } else {
            self.input_bits() - self.size_bits(level)
        }
    }

    /// First address past the lower half, or past everything.
    fn end(&self) -> u64 {
        1 << (self.input_bits() - u32::from(self.is_canonical()))
    }

    fn is_valid_address(&self, address: u64) -> bool {
        address < self.end() || (self.is_canonical() && address >= self.end().wrapping_neg())
    }

    /// Looks `address` up.
    fn walk(
        &self,
        arena: &Arena,
        root: u64,
        address: u64,
        request: &Request,
    ) -> Result<Found, Fault> {
        if !self.is_valid_address(address) {
            return Err(Fault::Address);
        }
        let mut seen = Vec::new();
        let (level, leaf) = self.lookup(arena, root, self.levels(), address, &mut seen)?;
        if self.is_untouched(leaf) {
            return Err(Fault::AccessFlag(level));
        }
        self.permit(&seen, level, request)?;
        let written = request.access == Access::Write;
        let entries = seen.iter().map(|&(at, entry_level, entry)| {
            (at, self.used(entry, entry_level == level, written && entry_level == level))
        });
        let size_bits = self.size_bits(level);
        let output = self.target(level, leaf) + address % (1 << size_bits);
        Ok(Found { output, size_bits, entries: entries.collect() })
    }

    fn lookup(
        &self,
        arena: &Arena,
        table: u64,
        level: u8,
        address: u64,
        seen: &mut Vec<(u64, u8, u64)>,
    ) -> Result<(u8, u64), Fault> {
        let index = address / self.size(level) % (1 << self.index_bits(level));
        let at = table + 8 * index;
        let entry = arena.get(at).ok_or(Fault::Tables(level))?;
        seen.push((at, level, entry));
        match self.class(level, entry) {
            Class::Absent => Err(Fault::NotPresent(level)),
            Class::Reserved => Err(Fault::Reserved(level)),
            Class::Leaf => Ok((level, entry)),
            Class::Table => self.lookup(arena, self.target(level, entry), level - 1, address, seen),
        }
    }

    /// A right that the request lacks, and the highest level that takes it.
    fn permit(&self, seen: &[(u64, u8, u64)], leaf: u8, request: &Request) -> Result<(), Fault> {
        let taken_at = |right| {
            let mut takers =
                seen.iter().filter(|&&(_, at, entry)| self.takes(right, entry, at == leaf));
            takers.next().map(|&(_, level, _)| level)
        };
        for right in self.needs(request) {
            if let Some(level) = taken_at(right) {
                return Err(Fault::Permission(level, right));
            }
        }
        match self.stops(request, |right| taken_at(right).is_none()) {
            Some(right) => Err(Fault::Permission(leaf, right)),
            None => Ok(()),
        }
    }
}

/// What the twin found: the output address of the byte, the page's log2 size, and the entries on
/// the way with their new values.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) output: u64,
    pub(crate) size_bits: u32,
    pub(crate) entries: Vec<(u64, u64)>,
}

/// A fault without the reasons that only the crate has names for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Fault {
    Address,
    NotPresent(u8),
    Reserved(u8),
    AccessFlag(u8),
    Permission(u8, Denied),
    Tables(u8),
    Contended,
}

impl From<WalkFault<ArenaError>> for Fault {
    fn from(fault: WalkFault<ArenaError>) -> Self {
        match fault {
            WalkFault::NonCanonical | WalkFault::BeyondWidth => Self::Address,
            WalkFault::NotPresent { level } => Self::NotPresent(level),
            WalkFault::Reserved { level, .. } => Self::Reserved(level),
            WalkFault::AccessFlag { level } => Self::AccessFlag(level),
            WalkFault::Permission { level, kind } => Self::Permission(level, kind),
            WalkFault::Tables { level, .. } => Self::Tables(level),
            WalkFault::Contended => Self::Contended,
        }
    }
}

pub(crate) fn bit(value: u64, bit: u32) -> bool {
    value >> bit & 1 == 1
}
