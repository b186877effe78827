//! What the test programs share: table memory that counts and fails on demand, and a slow walker
//! written from the specification alone.
#![allow(dead_code)] // each test program uses its own part

pub(crate) mod twin;

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;

use pgtable::{FirstStage, Pages, SecondStage, SecondStageLevels, Tables};

/// Why the arena refused an access.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum ArenaError {
    /// No page is at this address.
    Nowhere(u64),
    /// The test asked for a failure here.
    Told,
}

/// What else happens to the arena around an access.
pub(crate) type Hook = Box<dyn Fn(&Arena, u64)>;

/// Pages of tables.
#[derive(Default)]
pub(crate) struct Arena {
    pub(crate) pages: RefCell<BTreeMap<u64, [u64; 512]>>,
    next: u64,
    freed: Vec<u64>,
    /// Accesses so far.
    pub(crate) loads: Cell<u64>,
    pub(crate) exchanges: Cell<u64>,
    /// Fails the access with this number.
    pub(crate) fail_access: Cell<Option<u64>>,
    /// Pages left to allocate.
    pub(crate) limit: Option<usize>,
    /// Called before each compare-exchange with the entry's address.
    pub(crate) before_exchange: Option<Hook>,
}

impl Arena {
    /// Number of pages in use.
    pub(crate) fn live(&self) -> usize {
        self.pages.borrow().len()
    }

    pub(crate) fn get(&self, entry: u64) -> Option<u64> {
        let pages = self.pages.borrow();
        Some(pages.get(&(entry & !0xfff))?[(entry & 0xfff) as usize / 8])
    }

    pub(crate) fn set(&self, entry: u64, value: u64) {
        let mut pages = self.pages.borrow_mut();
        pages.entry(entry & !0xfff).or_insert([0; 512])[(entry & 0xfff) as usize / 8] = value;
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
    fn allocate(&mut self, _size_bits: u32) -> Option<u64> {
        if self.limit.is_some_and(|limit| self.live() >= limit) {
            return None;
        }
        let page = self.freed.pop().unwrap_or_else(|| {
            self.next += 0x1000;
            self.next
        });
        assert!(self.pages.borrow_mut().insert(page, [0; 512]).is_none());
        Some(page)
    }

    fn free(&mut self, page: u64, _size_bits: u32) {
        assert!(self.pages.borrow_mut().remove(&page).is_some(), "{page:#x} freed twice");
        self.freed.push(page);
    }
}

pub(crate) const FIRST_4: FirstStage = FirstStage::FOUR_LEVEL;
pub(crate) const FIRST_5: FirstStage = FirstStage::FIVE_LEVEL;
pub(crate) const SECOND_3: SecondStage = SecondStage::new(SecondStageLevels::Three);
pub(crate) const SECOND_4: SecondStage = SecondStage::new(SecondStageLevels::Four);
pub(crate) const SECOND_5: SecondStage = SecondStage::new(SecondStageLevels::Five);
/// A second stage that keeps no accessed and dirty flags.
pub(crate) const SECOND_4_NO_FLAGS: SecondStage = SecondStage { accessed_dirty: false, ..SECOND_4 };

/// Makes one test per format out of each function `fn name(format, twin)`.
#[macro_export]
macro_rules! for_every_format {
    ($($test:ident),* $(,)?) => {
        $crate::for_every_format!(@ first_4, FIRST_4, $($test)*);
        $crate::for_every_format!(@ first_5, FIRST_5, $($test)*);
        $crate::for_every_format!(@ second_3, SECOND_3, $($test)*);
        $crate::for_every_format!(@ second_4, SECOND_4, $($test)*);
        $crate::for_every_format!(@ second_5, SECOND_5, $($test)*);
        $crate::for_every_format!(@ second_4_no_flags, SECOND_4_NO_FLAGS, $($test)*);
    };
    (@ $name:ident, $format:ident, $($test:ident)*) => {
        mod $name {
            $(#[test]
            fn $test() {
                let format = $crate::common::$format;
                super::$test(format, $crate::common::twin::Twin::from(format));
            })*
        }
    };
}
