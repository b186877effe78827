//! Seeing what a space has, and why something stays.

use alloc::collections::BinaryHeap;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;

use crate::custom::SourceCounts;
use crate::geometry::Shape;
use crate::holder::MAX_HOLDERS;
use crate::memory::{copied, NoMemory};
use crate::record::{KEPT, UNLEASED};
use crate::set::{SetCore, SetType};
use crate::shard::Inside;
use crate::space::{Shared, Space};
use crate::spid::Spid;
use crate::state::{State, Status};
use crate::{Ioasid, Tag};

/// What a space has. Each figure was right at some moment of the call; all of them together at the
/// same one if nothing changed meanwhile.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Report {
    /// Most numbers that may be out (live or parked) at one time.
    pub capacity: u32,
    /// What no set has reserved and nobody has out.
    pub unreserved: u32,
    /// What belongs to no set.
    pub no_set: Counts,
    /// The sets whose quota is reserved, closed ones included.
    pub sets: Vec<SetReport>,
    /// Parked IDs, the oldest first, as many as were asked for.
    pub parked: Vec<ParkedReport>,
    /// Guards that live now, counted once for each reader.
    pub readers: usize,
    /// What became of numbers that sources gave.
    pub sources: SourceCounts,
}

/// IDs that are out.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Counts {
    /// With a lease, or being allocated.
    pub live: u32,
    /// Freed, and not released yet.
    pub parked: u32,
}

/// What a set has.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SetReport {
    /// Its name.
    pub name: String,
    /// The name of its owner; `None` if it is of type [`SetType::Native`]. Not the owner itself,
    /// which would be good for more than a look.
    pub owner: Option<String>,
    /// Most IDs that it may have out at one time, which the space has reserved for it.
    pub quota: u32,
    /// What of the quota is not out.
    pub unused: u32,
    /// What is out.
    pub out: Counts,
    /// Whether it takes allocations. If not, it waits for its last ID to go.
    pub open: bool,
}

/// An ID that is freed and whose number is not free.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ParkedReport {
    /// The number, and which of its lives it is.
    pub tag: Tag,
    /// Its number in its set.
    pub spid: Option<Spid>,
    /// The name of its set; `None` if it belongs to none.
    pub set: Option<String>,
    /// For how long, in nanoseconds of the space's [`Clock`](crate::Clock): since it was freed if
    /// it was held or shared then, else since it was first seen to stay. Zero without a clock.
    pub age_ns: u64,
    /// Who has references.
    pub holders: Vec<HeldBy>,
    /// Whether its lease is still out: its set was closed.
    pub leased: bool,
    /// What has to happen next.
    pub awaiting: Awaiting,
}

/// References of one holder to one ID.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct HeldBy {
    /// The holder's name.
    pub holder: String,
    /// How many.
    pub references: u32,
}

/// What has to happen before a parked ID goes on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Awaiting {
    /// Its users have to be told, which [`Space::work`] does.
    Teardown,
    /// Its lease or references have to be dropped.
    Holders,
    /// Guards from before it was freed have to go, or the space has to be used again
    /// ([`Space::release_parked`]), or its data is being dropped.
    Readers,
    /// Its number has to be given back to its source, which [`Space::work`] does.
    Source,
}

/// Why there is no report.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ReportError {
    /// There was no memory for it.
    #[error("no memory for the report")]
    NoMemory,
}

impl From<NoMemory> for ReportError {
    fn from(NoMemory: NoMemory) -> Self {
        Self::NoMemory
    }
}

/// What does not add up in a [`Report`].
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Imbalance {
    /// Quotas, what is unreserved and what is out of no set are not the capacity.
    #[error("{total} numbers are accounted for; the capacity is {capacity}")]
    Space {
        /// What they come to.
        total: u64,
        /// What they should come to.
        capacity: u32,
    },
    /// What a set has out and what it has not are not its quota.
    #[error("set {name} accounts for {total}; its quota is {quota}")]
    Set {
        /// The set.
        name: String,
        /// What they come to.
        total: u64,
        /// What they should come to.
        quota: u32,
    },
}

impl Report {
    /// Checks that every number is accounted for just once. Holds at every moment at which nobody
    /// is changing the space.
    ///
    /// # Errors
    /// [`Imbalance`]: somebody was, or the space is wrong.
    pub fn balance(&self) -> Result<(), Imbalance> {
        for set in &self.sets {
            let total = set.out.total() + u64::from(set.unused);
            if total != u64::from(set.quota) {
                return Err(Imbalance::Set { name: set.name.clone(), total, quota: set.quota });
            }
        }
        let quotas: u64 = self.sets.iter().map(|set| u64::from(set.quota)).sum();
        let total = quotas + u64::from(self.unreserved) + self.no_set.total();
        if total != u64::from(self.capacity) {
            return Err(Imbalance::Space { total, capacity: self.capacity });
        }
        Ok(())
    }
}

impl Counts {
    fn total(self) -> u64 {
        u64::from(self.live) + u64::from(self.parked)
    }
}

impl<T, G: Shape> Space<T, G> {
    /// What is out, of which set, and up to `limit` of the parked IDs that are longest so, with
    /// what each waits for. What nothing can name any more is released first.
    ///
    /// ```
    /// use ioasid::{Awaiting, Config, SetType, Space};
    ///
    /// let space = Space::new(Config::default())?;
    /// let guest = space.create_set("guest 3", SetType::Native, 8)?;
    /// let lease = guest.alloc(1..=99, ())?;
    /// let held = lease.share(&space.holder("iommu")?)?;
    /// drop(lease);
    /// let report = space.report(10)?;
    /// report.balance()?;
    /// let parked = &report.parked[0];
    /// assert_eq!((parked.tag, parked.awaiting), (held.tag(), Awaiting::Holders));
    /// assert_eq!(parked.holders[0].holder, "iommu");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// [`ReportError`].
    pub fn report(&self, limit: usize) -> Result<Report, ReportError> {
        let shared = &*self.shared;
        shared.collect_all();
        let books = shared.books()?;
        let mut sets = Vec::new();
        sets.try_reserve_exact(books.len()).map_err(NoMemory::from)?;
        for (core, tally) in books.iter().skip(1) {
            sets.push(SetReport {
                name: copied(&core.name)?,
                owner: match &core.kind {
                    SetType::Native => None,
                    SetType::Owned(owner) => Some(copied(owner.name())?),
                },
                quota: tally.quota,
                unused: tally.credit,
                out: tally.out,
                open: tally.open,
            });
        }
        let root = books.first().map(|(_, root)| *root).unwrap_or_default();
        Ok(Report {
            capacity: shared.capacity,
            unreserved: root.credit,
            no_set: root.out,
            sets,
            parked: shared.parked(&books, limit)?,
            readers: shared.epochs.reading(),
            sources: self.source_counts(),
        })
    }

    /// Who has references to an ID that is live or parked, and how many; nobody if it is not out.
    ///
    /// # Errors
    /// [`ReportError`].
    pub fn holders_of(&self, id: Ioasid) -> Result<Vec<HeldBy>, ReportError> {
        let some = match self.shared.lock_home(id) {
            Some((inside, _, _)) => HolderCounts::of(&inside, id),
            None => HolderCounts::NONE,
        };
        Ok(self.shared.named(&some)?)
    }
}

/// What a set comes to.
#[derive(Clone, Copy, Default)]
struct Tally {
    quota: u32,
    credit: u32,
    open: bool,
    out: Counts,
}

/// The sets, that of what belongs to none first.
type Books = Vec<(Arc<SetCore>, Tally)>;

/// A parked ID by age: the greatest is the youngest.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Aged {
    parked_at: u64,
    number: u32,
    generation: u64,
    /// In the books.
    set: usize,
}

/// How many members are looked at under one hold on a shard's lock.
const LOOK: usize = 64;

/// Counts of references by holder, copied under a lock, where nothing is allocated.
struct HolderCounts {
    counts: [(u16, u32); MAX_HOLDERS],
    len: usize,
}

impl HolderCounts {
    const NONE: Self = Self { counts: [(0, 0); MAX_HOLDERS], len: 0 };

    /// Those of an ID that lives in this shard.
    fn of(inside: &Inside, id: Ioasid) -> Self {
        let mut some = Self::NONE;
        for (place, count) in some.counts.iter_mut().zip(inside.holders.of(id.0)) {
            *place = count;
            some.len += 1;
        }
        some
    }

    fn iter(&self) -> impl Iterator<Item = (u16, u32)> + '_ {
        self.counts[..self.len].iter().copied()
    }
}

impl<T, G: Shape> Shared<T, G> {
    /// All sets with what they come to.
    fn books(&self) -> Result<Books, NoMemory> {
        let mut books = Vec::new();
        let slow = loop {
            let sets = self.registry.lock().iter().count();
            books.try_reserve_exact(1 + sets)?;
            let slow = self.slow.lock();
            // Under that lock there come no more, so one that came before is seen now.
            if self.registry.lock().iter().count() < books.capacity() {
                break slow;
            }
        };
        books.push((self.root.clone(), Tally::default()));
        books.extend(self.registry.lock().iter().map(|core| (core.clone(), Tally::default())));
        for (core, tally) in &mut books {
            let quota = core.quota();
            *tally = Tally { quota: quota.quota, credit: quota.credit, open: quota.open, ..*tally };
        }
        for shard in self.shards.iter() {
            let inside = shard.lock();
            for (core, tally) in &mut books {
                let local = &inside.sets[core.index as usize];
                tally.credit += local.credit;
                tally.out.live += local.live;
                tally.out.parked += local.parked;
            }
        }
        drop(slow);
        Ok(books)
    }

    /// The oldest parked IDs.
    fn parked(&self, books: &Books, limit: usize) -> Result<Vec<ParkedReport>, NoMemory> {
        let most: u64 = books.iter().map(|(_, tally)| u64::from(tally.out.parked)).sum();
        let limit = limit.min(usize::try_from(most).unwrap_or(usize::MAX));
        let mut oldest = BinaryHeap::new();
        oldest.try_reserve(limit + 1)?;
        for (set, (core, _)) in books.iter().enumerate().filter(|(_, (_, t))| t.out.parked > 0) {
            for at in core.shards() {
                self.look_through(core, at, |number, state| {
                    // Not stamped yet: it is new.
                    let parked_at = match self.table.record(number).parked_at() {
                        0 => u64::MAX,
                        at => at,
                    };
                    oldest.push(Aged { parked_at, number, generation: state.generation(), set });
                    if oldest.len() > limit {
                        oldest.pop();
                    }
                });
            }
        }
        let now = self.hooks.now();
        let mut reports = Vec::new();
        reports.try_reserve_exact(oldest.len())?;
        let mut oldest = oldest.into_sorted_vec();
        // A member that moved meanwhile was seen twice.
        oldest.dedup();
        for aged in oldest {
            let set = &books[aged.set].0;
            reports.extend(self.parked_report(&aged, set, now)?);
        }
        Ok(reports)
    }

    /// Shows `f` the parked members that a shard has of a set, under the shard's lock; `f`
    /// allocates nothing.
    fn look_through(&self, core: &SetCore, at: usize, mut f: impl FnMut(u32, State)) {
        let mut from = usize::MAX;
        while from > 0 {
            let inside = self.shards[at].lock();
            let local = &inside.sets[core.index as usize];
            // Downwards, as members only move down.
            from = from.min(local.members.len());
            let some = from.saturating_sub(LOOK)..from;
            from = some.start;
            for &number in &local.members[some] {
                let state = self.table.state(number);
                // Without a cache, what is vacant waits for its source.
                let returning = inside.sourced && state.status() == Status::Vacant;
                if state.status() == Status::Parked || returning {
                    f(number, state);
                }
            }
        }
    }

    /// What is to be said of a parked ID; nothing if it is gone.
    fn parked_report(
        &self,
        aged: &Aged,
        set: &SetCore,
        now: u64,
    ) -> Result<Option<ParkedReport>, NoMemory> {
        let id = Ioasid(aged.number);
        let Some((inside, _, state)) = self.lock_home(id) else { return Ok(None) };
        let record = self.table.record(id.0);
        let returning = inside.sourced && state.status() == Status::Vacant && state.is_member();
        let parked = state.status() == Status::Parked || returning;
        if !parked || state.generation() != aged.generation {
            return Ok(None);
        }
        let some = HolderCounts::of(&inside, id);
        let (spid, parked_at) = (record.spid(), record.parked_at());
        // What was not busy had nothing but its lease, which is gone.
        let leased = state.is_busy() && !record.has(UNLEASED | KEPT);
        let named: u32 = some.iter().map(|(_, count)| count).sum();
        let awaiting = match record.refs.get() {
            _ if returning => Awaiting::Source,
            refs if refs > named => Awaiting::Teardown,
            refs if refs > 0 || leased => Awaiting::Holders,
            _ => Awaiting::Readers,
        };
        drop(inside);
        Ok(Some(ParkedReport {
            tag: Tag { id, generation: aged.generation },
            spid,
            set: if set.index == 0 { None } else { Some(copied(&set.name)?) },
            age_ns: if parked_at == 0 { 0 } else { now.saturating_sub(parked_at) },
            holders: self.named(&some)?,
            leased,
            awaiting,
        }))
    }

    /// Holders by name.
    fn named(&self, some: &HolderCounts) -> Result<Vec<HeldBy>, NoMemory> {
        let mut named = Vec::new();
        named.try_reserve_exact(some.len)?;
        for (holder, references) in some.iter() {
            named.push(HeldBy { holder: self.names.copy(holder)?, references });
        }
        Ok(named)
    }
}
