//! The walker.

use crate::format::{
    Access, Denied, Entry, Format, InvalidAddress, LeafEntry, Request, ReservedBits, Rights,
    TableEntry,
};

/// Most levels a format may have.
pub const MAX_LEVELS: usize = 5;

/// How often a walk starts over because an entry changed between its load and the update of its
/// flags. Agents that only set flags, as processors and other walkers do, need two per level; a
/// guest that keeps rewriting entries under the walk runs into the limit.
pub const MAX_ATTEMPTS: u32 = 16;

/// Where table entries are loaded from and updated. `entry` is the address of an 8-byte entry as
/// the tables themselves name it; where that is not the final address (a first stage nested in a
/// second) the implementation translates it, for writing if the entry is updated.
pub trait Tables {
    /// Why an entry could not be reached.
    type Error;

    /// Loads an entry, with acquire ordering.
    fn load(&self, entry: u64) -> Result<u64, Self::Error>;

    /// Replaces an entry by `new` if it holds `current`, else gives `Ok(Err(found))`; sequentially
    /// consistent.
    fn compare_exchange(
        &self,
        entry: u64,
        current: u64,
        new: u64,
    ) -> Result<Result<u64, u64>, Self::Error>;
}

/// What a walk found: a page that lets the request through, its flags up to date.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Leaf {
    /// Output address of the page's first byte.
    pub base: u64,
    /// log2 of the page's size.
    pub size_bits: u32,
    /// Level of the entry that maps it.
    pub level: u8,
    /// What all entries on the way let through. Whether a request of another kind may use the
    /// page is for [`Format::denied`] to say.
    pub rights: Rights,
    /// Whether a write needs no further update: the dirty flag is set, or the format keeps none. A
    /// cached leaf without this must be walked again before a write.
    pub dirty: bool,
    /// Whether the page is the same in every address space.
    pub global: bool,
}

impl Leaf {
    /// The output address for `address`, which lies in the page that was looked up.
    pub const fn translate(&self, address: u64) -> u64 {
        self.base | (address & ((1 << self.size_bits) - 1))
    }
}

/// Why a walk found no page for a request. The tables and the address are the guest's or a
/// device's, so all of these are ordinary outcomes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum WalkFault<E> {
    /// The address is not canonical for the format.
    #[error("the address is not canonical")]
    NonCanonical,
    /// The address has bits above the format's width.
    #[error("the address is beyond the width of the table")]
    BeyondWidth,
    /// An entry maps nothing.
    #[error("not present at level {level}")]
    NotPresent {
        /// Level of the entry.
        level: u8,
    },
    /// An entry is malformed.
    #[error("reserved bits ({which:?}) at level {level}")]
    Reserved {
        /// Level of the entry.
        level: u8,
        /// The bits in question.
        which: ReservedBits,
    },
    /// The page is there, but nobody has set its access flag, and walks do not.
    #[error("access flag clear at level {level}")]
    AccessFlag {
        /// Level of the entry.
        level: u8,
    },
    /// The page is there, but does not let the request through.
    #[error("{kind:?} denied at level {level}")]
    Permission {
        /// The highest level that denies it.
        level: u8,
        /// The right that is missing.
        kind: Denied,
    },
    /// An entry could not be reached.
    #[error("entry at level {level} unreachable: {error}")]
    Tables {
        /// Level of the entry.
        level: u8,
        /// Why, in the words of the [`Tables`] implementation.
        error: E,
    },
    /// Entries changed under the walk [`MAX_ATTEMPTS`] times in a row.
    #[error("the entries kept changing under the walk")]
    Contended,
}

/// Looks `address` up in the table whose root is at `root`, for `request`.
///
/// A walk that succeeds has set the accessed flag of every entry it used, and for a write the
/// dirty flag of the leaf, each by an atomic update of exactly the value that the result is made
/// from. A walk that fails has changed nothing, except that [`WalkFault::Contended`] and
/// [`WalkFault::Tables`] may come after some accessed flags were set.
///
/// # Errors
///
/// See [`WalkFault`]. An absent or malformed entry at any level is reported before a missing
/// right at a higher one, and so is an access flag that is clear.
pub fn walk<F: Format, T: Tables>(
    format: &F,
    root: u64,
    address: u64,
    request: &Request,
    tables: &T,
) -> Result<Leaf, WalkFault<T::Error>> {
    format.check_address(address).map_err(|invalid| match invalid {
        InvalidAddress::NonCanonical => WalkFault::NonCanonical,
        InvalidAddress::BeyondWidth => WalkFault::BeyondWidth,
    })?;
    for _ in 0..MAX_ATTEMPTS {
        let mut path = Path::new();
        let (level, leaf) = path.descend(format, root, address, tables)?;
        if !leaf.accessed && !format.sets_accessed() {
            return Err(WalkFault::AccessFlag { level });
        }
        let rights = path.rights();
        if let Some(kind) = format.denied(request, rights) {
            return Err(WalkFault::Permission { level: path.level_without(kind), kind });
        }
        let write = request.access == Access::Write;
        if path.mark(format, write && !leaf.dirty, tables)? {
            return Ok(Leaf {
                base: leaf.address,
                size_bits: format.size_bits(level),
                level,
                rights,
                dirty: leaf.dirty || write,
                global: leaf.global,
            });
        }
    }
    Err(WalkFault::Contended)
}

/// An entry that a walk used.
#[derive(Clone, Copy)]
struct Step {
    level: u8,
    /// Address of the entry.
    entry: u64,
    /// What it held.
    value: u64,
    rights: Rights,
    /// Whether its accessed flag needs no update.
    accessed: bool,
}

/// The entries that a walk used, from the root on.
struct Path {
    steps: [Step; MAX_LEVELS],
    len: usize,
}

impl Path {
    const fn new() -> Self {
        let unused = Step { level: 0, entry: 0, value: 0, rights: Rights::all(), accessed: true };
        Self { steps: [unused; MAX_LEVELS], len: 0 }
    }

    /// Follows the entries for `address` down to a leaf.
    fn descend<F: Format, T: Tables>(
        &mut self,
        format: &F,
        root: u64,
        address: u64,
        tables: &T,
    ) -> Result<(u8, LeafEntry), WalkFault<T::Error>> {
        let mut table = root;
        for (level, step) in (1..=format.levels()).rev().zip(&mut self.steps) {
            let entry = format.entry_address(table, level, address);
            let value = tables.load(entry).map_err(|error| WalkFault::Tables { level, error })?;
            self.len += 1;
            match format.decode(level, value) {
                Entry::NotPresent => return Err(WalkFault::NotPresent { level }),
                Entry::Reserved(which) => return Err(WalkFault::Reserved { level, which }),
                Entry::Leaf(leaf) => {
                    let LeafEntry { rights, accessed, .. } = leaf;
                    *step = Step { level, entry, value, rights, accessed };
                    return Ok((level, leaf));
                }
                Entry::Table(TableEntry { address, rights, accessed }) => {
                    *step = Step { level, entry, value, rights, accessed };
                    table = address;
                }
            }
        }
        // Formats decode no table at level 1, so nothing gets here; a page it is certainly not.
        Err(WalkFault::NotPresent { level: 1 })
    }

    fn steps(&self) -> &[Step] {
        &self.steps[..self.len]
    }

    /// What all entries let through.
    fn rights(&self) -> Rights {
        self.steps().iter().fold(Rights::all(), |rights, step| rights & step.rights)
    }

    /// The highest level whose entry lacks what `kind` names; the leaf's if all entries have it
    /// and that is the trouble.
    fn level_without(&self, kind: Denied) -> u8 {
        let mut steps = self.steps().iter();
        let lacking = steps.find(|step| !step.rights.contains(kind.right()));
        lacking.or(self.steps().last()).map_or(0, |step| step.level)
    }

    /// Sets the flags that are not set yet: accessed on every entry, and dirty on the leaf if
    /// asked. Gives `false` if an entry has changed since it was loaded.
    fn mark<F: Format, T: Tables>(
        &self,
        format: &F,
        dirty: bool,
        tables: &T,
    ) -> Result<bool, WalkFault<T::Error>> {
        for (index, step) in self.steps().iter().enumerate() {
            let dirty = dirty && index + 1 == self.len;
            if step.accessed && !dirty {
                continue;
            }
            let (level, new) = (step.level, format.mark(step.value, dirty));
            let outcome = tables.compare_exchange(step.entry, step.value, new);
            if outcome.map_err(|error| WalkFault::Tables { level, error })?.is_err() {
                return Ok(false);
            }
        }
        Ok(true)
    }
}
