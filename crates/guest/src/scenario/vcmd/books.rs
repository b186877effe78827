//! What the guest knows of the numbers that its kernel was given: who holds which, and how many commands that took.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};

use guest_protocol::counts;
use iommu::Pasid;

use super::{FindError, Holder, CALLER_HOLDS, CALLS};
use crate::failure::{ensure, Context, Failure, Outcome};
use crate::model::pattern::Random;
use crate::report::Account;

/// The range that is asked for: all PASIDs but zero.
const FIRST: u32 = 1;
const LAST: u32 = Pasid::MAX.get();

/// The account of one guest.
#[derive(Debug)]
pub(super) struct Books {
    holders: Vec<Arc<Holder>>,
    /// Every number out, with the index of its holder and the value behind its pointer.
    held: BTreeMap<u32, (usize, u64)>,
    account: Account,
    next_value: u64,
}

/// Places of the account.
const ALL: [&str; 5] = [
    counts::VIRTUAL_COMMANDS,
    counts::PASIDS_ALLOCATED,
    counts::PASIDS_UNAVAILABLE,
    counts::PASIDS_FREED,
    counts::PASID_FREES_REFUSED,
];

impl Books {
    /// With one holder, and nothing held.
    pub(super) fn open() -> Outcome<Self> {
        let account = ALL.map(|name| (name.to_owned(), 0)).into();
        let mut books = Self { holders: Vec::new(), held: BTreeMap::new(), account, next_value: 1 };
        books.add_holder()?;
        Ok(books)
    }

    /// One more set of numbers; its index.
    pub(super) fn add_holder(&mut self) -> Outcome<usize> {
        self.holders.push(Arc::new(Holder::open().at("the module's device")?));
        Ok(self.holders.len() - 1)
    }

    /// The set of this index, which [`add_holder`](Self::add_holder) gave.
    pub(super) fn holder(&self, index: usize) -> Arc<Holder> {
        self.holders[index].clone()
    }

    /// How many numbers are out.
    pub(super) fn len(&self) -> usize {
        self.held.len()
    }

    /// The numbers that are out, ascending.
    pub(super) fn numbers(&self) -> Vec<u32> {
        self.held.keys().copied().collect()
    }

    /// The lowest and the highest number out.
    pub(super) fn span(&self) -> String {
        let end = |id: Option<&u32>| id.copied().unwrap_or_default();
        format!("{} to {}", end(self.held.keys().next()), end(self.held.keys().next_back()))
    }

    /// Counts one virtual command that ended as `outcome` names it; an end that has no name of its own is `None`.
    pub(super) fn count(&mut self, outcome: Option<&str>) {
        for name in [Some(counts::VIRTUAL_COMMANDS), outcome].into_iter().flatten() {
            if let Some(count) = self.account.get_mut(name) {
                *count += 1;
            }
        }
    }

    pub(super) fn account(&self) -> Account {
        self.account.clone()
    }

    /// Numbers granted so far.
    pub(super) fn allocated(&self) -> u64 {
        self.account.get(counts::PASIDS_ALLOCATED).copied().unwrap_or_default()
    }

    /// Numbers given back so far.
    pub(super) fn freed(&self) -> u64 {
        self.account.get(counts::PASIDS_FREED).copied().unwrap_or_default()
    }

    /// Allocates in the first set; `None` if the kernel was refused.
    pub(super) fn alloc(&mut self) -> Outcome<Option<u32>> {
        self.alloc_in(0)
    }

    /// Allocates in the set of this index.
    pub(super) fn alloc_in(&mut self, index: usize) -> Outcome<Option<u32>> {
        let value = self.next_value;
        self.next_value += 1;
        let granted = self.holder(index).alloc(FIRST, LAST, value).at("ioasid_alloc")?;
        self.enter(index, granted, value)?;
        Ok(granted)
    }

    /// Enters what an allocation gave.
    fn enter(&mut self, index: usize, granted: Option<u32>, value: u64) -> Outcome<()> {
        let Some(id) = granted else {
            self.count(Some(counts::PASIDS_UNAVAILABLE));
            return Ok(());
        };
        self.count(Some(counts::PASIDS_ALLOCATED));
        ensure!((FIRST..=LAST).contains(&id), "number {id} is no PASID");
        let before = self.held.insert(id, (index, value));
        ensure!(before.is_none(), "number {id} was given out twice");
        Ok(())
    }

    /// Strikes out a number that is about to be freed, and says whose it is.
    fn strike(&mut self, id: u32) -> Outcome<Arc<Holder>> {
        let Some((index, _)) = self.held.remove(&id) else {
            return Err(Failure::new(format!("number {id} is not out")));
        };
        self.count(Some(counts::PASIDS_FREED));
        Ok(self.holder(index))
    }

    /// Frees `count` numbers (or all, if there are fewer) chosen at random, in random order.
    pub(super) fn free_some(&mut self, count: usize, random: &mut Random) -> Outcome<Vec<u32>> {
        let mut numbers = self.numbers();
        shuffle(&mut numbers, random);
        numbers.truncate(count);
        for &id in &numbers {
            self.strike(id)?.free(id).at(format_args!("ioasid_free({id})"))?;
        }
        Ok(numbers)
    }

    /// Drops every set but the first, with what it holds; how many numbers that were.
    pub(super) fn drop_all_but_first(&mut self) -> usize {
        self.holders.truncate(1);
        let before = self.held.len();
        self.held.retain(|_, (index, _)| *index == 0);
        let gone = before - self.held.len();
        (0..gone).for_each(|_| self.count(Some(counts::PASIDS_FREED)));
        gone
    }

    /// Every number out is found, with its own pointer.
    pub(super) fn find_all(&self) -> Outcome {
        for (&id, &(index, value)) in &self.held {
            let found = self.holder(index).find(id).at(format_args!("ioasid_find({id})"))?;
            ensure!(found == value, "number {id}: value {found}, not {value}");
        }
        Ok(format!("{} numbers", self.held.len()))
    }

    /// A number that was freed is found by nobody.
    pub(super) fn expect_unknown(&self, id: u32) -> Outcome<()> {
        match self.holder(0).find(id) {
            Err(FindError::Unknown) => Ok(()),
            found => Err(Failure::new(format!("freed number {id}: {found:?}, not ENOENT"))),
        }
    }
}

fn shuffle(numbers: &mut [u32], random: &mut Random) {
    for last in (1..numbers.len()).rev() {
        numbers.swap(last, random.below(last + 1));
    }
}

/// A caller with a set of its own: calls the kernel without the lock, and enters what it got under it.
pub(super) fn call(books: &Mutex<&mut Books>, seed: u64) -> Outcome<()> {
    let lock = || -> Outcome<MutexGuard<'_, &mut Books>> {
        books.lock().map_err(|_| Failure::new("another caller panicked"))
    };
    let mut random = Random::new(seed);
    let index = lock()?.add_holder()?;
    let holder = lock()?.holder(index);
    let mut own = Vec::new();
    for call in 0..CALLS {
        if own.len() == CALLER_HOLDS || (!own.is_empty() && random.below(2) == 0) {
            let id = own.swap_remove(random.below(own.len()));
            // Before the kernel can give it to another caller.
            lock()?.strike(id)?;
            holder.free(id).at(format_args!("ioasid_free({id})"))?;
        } else {
            let value = seed.wrapping_add(call as u64);
            let granted = holder.alloc(FIRST, LAST, value).at("ioasid_alloc")?;
            let id = granted.ok_or_else(|| Failure::new("refused below the quota"))?;
            lock()?.enter(index, granted, value)?;
            own.push(id);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Books that no device is behind.
    fn books() -> Books {
        Books {
            holders: Vec::new(),
            held: BTreeMap::new(),
            account: ALL.map(|name| (name.to_owned(), 0)).into(),
            next_value: 1,
        }
    }

    #[test]
    fn a_number_given_out_twice_or_out_of_range_is_a_failure() {
        let mut books = books();
        books.enter(0, Some(7), 1).unwrap();
        let twice = books.enter(1, Some(7), 2).unwrap_err().to_string();
        assert_eq!(twice, "number 7 was given out twice");
        for wrong in [0, LAST + 1] {
            assert!(books.enter(0, Some(wrong), 3).is_err(), "{wrong}");
        }
    }

    #[test]
    fn every_call_is_a_virtual_command_of_some_end() {
        let mut books = books();
        books.enter(0, Some(1), 1).unwrap();
        books.enter(1, Some(9), 2).unwrap();
        books.enter(0, None, 3).unwrap();
        books.count(None);
        assert_eq!((books.numbers(), books.span()), (vec![1, 9], "1 to 9".to_owned()));
        assert_eq!(books.drop_all_but_first(), 1);
        assert_eq!((books.allocated(), books.freed(), books.len()), (2, 1, 1));
        let account = books.account();
        assert_eq!(account[counts::PASIDS_UNAVAILABLE], 1);
        assert_eq!(account[counts::VIRTUAL_COMMANDS], 5);
    }

    #[test]
    fn shuffling_loses_nothing() {
        let mut numbers: Vec<u32> = (0..100).collect();
        shuffle(&mut numbers, &mut Random::new(1));
        assert_ne!(numbers, (0..100).collect::<Vec<u32>>());
        numbers.sort_unstable();
        assert_eq!(numbers, (0..100).collect::<Vec<u32>>());
    }
}
