//! Table memory.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;

use pgtable::{Pages, Tables};

/// Why the arena refused an access.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum ArenaError {
    /// No table is at this address.
    Nowhere(u64),
    /// The test asked for a failure here.
    Told,
}

/// What else happens to the arena around an access.
pub(crate) type Hook = Box<dyn Fn(&Arena, u64)>;

/// Tables, aligned as their formats want them.
#[derive(Default)]
pub(crate) struct Arena {
    /// The tables' addresses and log2 sizes.
    tables: BTreeMap<u64, u32>,
    /// The entries that are not zero.
    entries: RefCell<BTreeMap<u64, u64>>,
    next: u64,
    /// By log2 size.
    freed: BTreeMap<u32, Vec<u64>>,
    /// Accesses so far.
    pub(crate) loads: Cell<u64>,
    pub(crate) exchanges: Cell<u64>,
    /// Fails the access with this number.
    pub(crate) fail_access: Cell<Option<u64>>,
    /// Tables that may be in use at once.
    pub(crate) limit: Option<usize>,
    /// Called before each compare-exchange with the entry's address.
    pub(crate) before_exchange: Option<Hook>,
}

impl Arena {
    /// Number of tables in use.
    pub(crate) fn live(&self) -> usize {
        self.tables.len()
    }

    /// Puts a table of 2^`size_bits` zero bytes at `address`.
    pub(crate) fn add(&mut self, address: u64, size_bits: u32) {
        assert_eq!(address % (1 << size_bits), 0);
        assert!(self.tables.insert(address, size_bits).is_none());
    }

    pub(crate) fn get(&self, entry: u64) -> Option<u64> {
        let (&table, &size_bits) = self.tables.range(..=entry).next_back()?;
        if entry - table >= 1 << size_bits {
            return None;
        }
        Some(self.entries.borrow().get(&entry).copied().unwrap_or(0))
    }

    pub(crate) fn set(&self, entry: u64, value: u64) {
        assert!(self.get(entry).is_some(), "no table at {entry:#x}");
        let mut entries = self.entries.borrow_mut();
        if value == 0 {
            entries.remove(&entry);
        } else {
            entries.insert(entry, value);
        }
    }

    /// All entries that are not zero.
    pub(crate) fn contents(&self) -> BTreeMap<u64, u64> {
        self.entries.borrow().clone()
    }

    /// Puts back what [`contents`](Self::contents) gave.
    pub(crate) fn restore(&self, contents: BTreeMap<u64, u64>) {
        *self.entries.borrow_mut() = contents;
    }

    pub(crate) fn reset_counters(&self) {
        self.loads.set(0);
        self.exchanges.set(0);
    }

    fn count(&self, counter: &Cell<u64>) -> Result<(), ArenaError> {
        counter.set(counter.get() + 1);
        if self.fail_access.get() == Some(self.loads.get() + self.exchanges.get()) {
            return Err(ArenaError::Told);
        }
        Ok(())
    }
}

impl Tables for Arena {
    type Error = ArenaError;

    fn load(&self, entry: u64) -> Result<u64, ArenaError> {
        assert_eq!(entry % 8, 0);
        self.count(&self.loads)?;
        self.get(entry).ok_or(ArenaError::Nowhere(entry))
    }

    fn compare_exchange(
        &self,
        entry: u64,
        current: u64,
        new: u64,
    ) -> Result<Result<u64, u64>, ArenaError> {
        assert_eq!(entry % 8, 0);
        self.count(&self.exchanges)?;
        if let Some(hook) = &self.before_exchange {
            hook(self, entry);
        }
        let found = self.get(entry).ok_or(ArenaError::Nowhere(entry))?;
        if found != current {
            return Ok(Err(found));
        }
        self.set(entry, new);
        Ok(Ok(found))
    }
}

impl Pages for Arena {
    fn allocate(&mut self, size_bits: u32) -> Option<u64> {
        if self.limit.is_some_and(|limit| self.live() >= limit) {
            return None;
        }
        let freed = self.freed.entry(size_bits).or_default().pop();
        let table = freed.unwrap_or_else(|| {
            let size = 1 << size_bits;
            let table = (self.next + 1).next_multiple_of(size);
            self.next = table + size - 1;
            table
        });
        self.add(table, size_bits);
        Some(table)
    }

    fn free(&mut self, table: u64, size_bits: u32) {
        let given = self.tables.remove(&table);
        assert_eq!(given, Some(size_bits), "{table:#x} freed twice, or in another size");
        self.entries.borrow_mut().retain(|entry, _| entry.wrapping_sub(table) >= 1 << size_bits);
        self.freed.entry(size_bits).or_default().push(table);
    }
}
