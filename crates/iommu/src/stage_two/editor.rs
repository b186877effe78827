//! Keeping the host's stage 2 of a VM in step with its memory map.
//!
//! ```text
//!   memory map, less what is cleared ──► what each large frame is covered by ──► its entry
//! ```
//!
//! What is under one large frame (a page, or a table of pages) is put in place by one store, so a
//! walk finds it as it was or as it is to be; memory that a change does not concern never faults.
//! What a change took out of use is [`Retired`], and free once no walk can be in it.

use alloc::collections::BTreeMap;
use alloc::sync::Arc;
use alloc::vec;
use alloc::vec::Vec;

use mem::{Access, Gpa, HostAddr, MemoryMap, Range, Segment};
use pgtable::{Entry, Rights, Tables};

use super::frames::GUEST_BITS;
use super::{Frames, HostStageTwo, HostTables, StageTwoError};

/// Ranges of guest physical addresses that may be cleared at a time.
pub(crate) const MAX_HOLES: usize = 1024;
/// Memory that the tables of one VM take at most, in bytes.
const MAX_TABLES: u64 = 256 << 20;

/// Tables that a change took out of use. Dropping it frees them: to be done when no walk can be in
/// them any more.
#[derive(Debug)]
pub(crate) struct Retired {
    tables: Arc<HostTables>,
    list: Vec<Table>,
}

#[derive(Clone, Copy, Debug)]
struct Table {
    at: HostAddr,
    size_bits: u32,
}

impl Retired {
    fn none(tables: &Arc<HostTables>) -> Self {
        Self { tables: tables.clone(), list: Vec::new() }
    }
}

impl Drop for Retired {
    fn drop(&mut self) {
        for table in &self.list {
            self.tables.free(table.at, table.size_bits);
        }
    }
}

/// Writes the stage 2 of one VM. One at a time.
#[derive(Debug)]
pub(crate) struct Editor {
    stage_two: Arc<HostStageTwo>,
    map: MemoryMap,
    /// What is not mapped though it is memory: sorted, neither overlapping nor touching.
    holes: Vec<Range<Gpa>>,
    /// The tables of large frames, by what they cover.
    regions: BTreeMap<u64, Region>,
    /// Bytes of tables.
    used: u64,
    /// A frame is missing because there was no memory for its table.
    incomplete: bool,
    closed: bool,
}

/// A table of large frames, or what is to become of one.
#[derive(Clone, Copy, Debug)]
struct Region {
    table: HostAddr,
    /// How many of its entries are present.
    present: u32,
}

/// What a large frame is covered by.
#[derive(PartialEq, Eq)]
enum Coverage {
    /// The same everywhere.
    Even(Rights),
    /// Page by page.
    Pages(Vec<Rights>),
}

impl Editor {
    /// For an empty stage 2.
    pub(crate) fn new(stage_two: HostStageTwo) -> Self {
        let used = 1 << stage_two.format.table_bits(stage_two.format.levels());
        Self {
            stage_two: Arc::new(stage_two),
            map: MemoryMap::default(),
            holes: Vec::new(),
            regions: BTreeMap::new(),
            used,
            incomplete: false,
            closed: false,
        }
    }

    /// The stage 2, for who walks it.
    pub(crate) fn stage_two(&self) -> &Arc<HostStageTwo> {
        &self.stage_two
    }

    /// Maps what is memory in `map`, and nothing else. What there is no memory for tables for, and
    /// what lies beyond the format's addresses, stays unmapped.
    pub(crate) fn set_memory(&mut self, map: MemoryMap) -> Retired {
        let old = core::mem::take(&mut self.map);
        let holes = core::mem::take(&mut self.holes);
        let was = View { map: &old, holes: &holes };
        let new = View { map: &map, holes: &holes };
        // What is memory in both, and in the same way, need not be looked at.
        let gone = old.segments().iter().filter(|one| self.incomplete || !new.has(one));
        let come = map.segments().iter().filter(|one| self.incomplete || !was.has(one));
        let frames = self.frames(gone.chain(come).map(|one| one.range));
        let (retired, missing) = self.update(&frames, &was, &new);
        (self.map, self.holes, self.incomplete) = (map, holes, missing);
        retired
    }

    /// Unmaps every page with an address in `range`, until [`restore`](Self::restore).
    ///
    /// # Errors
    ///
    /// If there are too many such ranges.
    pub(crate) fn clear(&mut self, range: Range<Gpa>) -> Result<Retired, StageTwoError> {
        let mut holes = self.holes.clone();
        insert(&mut holes, range);
        self.set_holes(holes, range)
    }

    /// Maps what is memory in `range` again.
    ///
    /// # Errors
    ///
    /// If that leaves too many ranges cleared.
    pub(crate) fn restore(&mut self, range: Range<Gpa>) -> Result<Retired, StageTwoError> {
        let mut holes = Vec::with_capacity(self.holes.len() + 1);
        for hole in &self.holes {
            if !hole.overlaps(&range) {
                holes.push(*hole);
                continue;
            }
            if hole.start < range.start {
                holes.push(Range { start: hole.start, last: Gpa(range.start.0 - 1) });
            }
            if hole.last > range.last {
                holes.push(Range { start: Gpa(range.last.0 + 1), last: hole.last });
            }
        }
        self.set_holes(holes, range)
    }

    /// Takes all tables out of use. Nothing is mapped from here on.
    pub(crate) fn close(&mut self) -> Retired {
        let mut retired = Retired::none(&self.stage_two.tables);
        if core::mem::replace(&mut self.closed, true) {
            return retired;
        }
        self.map = MemoryMap::default();
        self.regions.clear();
        let levels = self.stage_two.format.levels();
        let mut open = vec![(self.stage_two.root, levels)];
        while let Some((table, level)) = open.pop() {
            let size_bits = self.stage_two.format.table_bits(level);
            retired.list.push(Table { at: table, size_bits });
            for at in (table.0..table.0 + (1 << size_bits)).step_by(8) {
                let entry = self.stage_two.tables.load(at).unwrap_or(0);
                if let Entry::Table(next) = self.stage_two.format.decode(level, entry) {
                    open.push((HostAddr(next.address), level - 1));
                }
            }
        }
        retired
    }

    fn set_holes(
        &mut self,
        holes: Vec<Range<Gpa>>,
        range: Range<Gpa>,
    ) -> Result<Retired, StageTwoError> {
        if self.closed {
            return Err(StageTwoError::Closed);
        }
        if holes.len() > MAX_HOLES {
            return Err(StageTwoError::TooManyHoles { limit: MAX_HOLES });
        }
        let map = core::mem::take(&mut self.map);
        let old = core::mem::take(&mut self.holes);
        let was = View { map: &map, holes: &old };
        let new = View { map: &map, holes: &holes };
        let memory = overlapping(map.segments(), &range, |segment| segment.range);
        let frames = self.frames(memory.iter().map(|one| Range {
            start: one.range.start.max(range.start),
            last: one.range.last.min(range.last),
        }));
        let (retired, missing) = self.update(&frames, &was, &new);
        (self.map, self.holes) = (map, holes);
        self.incomplete |= missing;
        Ok(retired)
    }

    /// The numbers of the large frames of these ranges, as far as they can be mapped: sorted,
    /// neither overlapping nor touching.
    fn frames(&self, ranges: impl Iterator<Item = Range<Gpa>>) -> Vec<Range<Gpa>> {
        let bits = self.stage_two.frames.large_bits();
        let mut frames = Vec::new();
        for range in ranges {
            let last = range.last.0.min((1 << GUEST_BITS) - 1);
            if range.start.0 <= last {
                insert(
                    &mut frames,
                    Range { start: Gpa(range.start.0 >> bits), last: Gpa(last >> bits) },
                );
            }
        }
        frames
    }

    /// Enters what changes in these frames. Also gives whether one is unmapped now because there was
    /// no memory for tables.
    fn update(&mut self, frames: &[Range<Gpa>], was: &View<'_>, new: &View<'_>) -> (Retired, bool) {
        let mut retired = Retired::none(&self.stage_two.tables);
        let bits = self.stage_two.frames.large_bits();
        let mut missing = false;
        for number in frames.iter().flat_map(|range| range.start.0..=range.last.0) {
            let first = Gpa(number << bits);
            if self.closed || !self.stage_two.format.translates(first) {
                continue;
            }
            let coverage = new.coverage(first, &self.stage_two.frames);
            if !self.incomplete && coverage == was.coverage(first, &self.stage_two.frames) {
                continue;
            }
            let entry = self.entry(first, &coverage);
            // What was there must not stay in any case.
            let put = self.put(first, entry.unwrap_or(0), &mut retired);
            missing |= entry.is_none() || put.is_none();
        }
        (retired, missing)
    }

    /// The entry for a large frame; `None` if there is no memory for its table.
    fn entry(&mut self, first: Gpa, coverage: &Coverage) -> Option<u64> {
        let HostStageTwo { frames, format, .. } = &*self.stage_two.clone();
        let (page, size) = (1 << frames.page_bits(), 1 << frames.large_bits());
        let rights = match coverage {
            Coverage::Even(rights) if rights.is_empty() => return Some(0),
            Coverage::Even(rights) if !frames.splits(first) => {
                return Some(format.leaf_entry(2, frames.host(first)?, *rights));
            }
            Coverage::Even(rights) => &vec![*rights; (size / page) as usize],
            Coverage::Pages(rights) => rights,
        };
        let table = self.allocate(1)?;
        for (at, rights) in (first.0..).step_by(page as usize).map(Gpa).zip(rights) {
            if rights.is_empty() {
                continue;
            }
            let leaf = format.leaf_entry(1, frames.host(at)?, *rights);
            self.stage_two.tables.store(format.entry_address(table, 1, at), leaf).ok()?;
        }
        Some(format.table_entry(table))
    }

    /// Puts an entry for a large frame in place of the one that is there.
    fn put(&mut self, first: Gpa, entry: u64, retired: &mut Retired) -> Option<()> {
        let stage_two = self.stage_two.clone();
        let HostStageTwo { format, tables, .. } = &*stage_two;
        let number = first.0 >> format.size_bits(3);
        let mut region = match self.regions.get(&number) {
            Some(region) => *region,
            None if entry == 0 => return Some(()),
            None => match self.link(first) {
                Some(table) => Region { table, present: 0 },
                None => {
                    retired.push_table(self, entry);
                    return None;
                }
            },
        };
        let old = tables.swap(format.entry_address(region.table, 2, first), entry).ok()?;
        region.present += u32::from(entry != 0);
        region.present -= u32::from(format.decode(2, old) != Entry::NotPresent);
        retired.push_table(self, old);
        if region.present == 0 {
            self.regions.remove(&number);
            self.unlink(first, region.table, retired);
        } else {
            self.regions.insert(number, region);
        }
        Some(())
    }

    /// The table of large frames for `first`; tables on the way there are made.
    fn link(&mut self, first: Gpa) -> Option<HostAddr> {
        let stage_two = self.stage_two.clone();
        let HostStageTwo { format, tables, root, .. } = &*stage_two;
        let mut table = *root;
        for level in (3..=format.levels()).rev() {
            let at = format.entry_address(table, level, first);
            table = match format.decode(level, tables.load(at.0).ok()?) {
                Entry::Table(next) => HostAddr(next.address),
                _ => {
                    let next = self.allocate(level - 1)?;
                    tables.store(at, format.table_entry(next)).ok()?;
                    next
                }
            };
        }
        Some(table)
    }

    /// Takes an empty table of large frames out. The few above it stay.
    fn unlink(&mut self, first: Gpa, table: HostAddr, retired: &mut Retired) {
        let stage_two = self.stage_two.clone();
        let HostStageTwo { format, tables, root, .. } = &*stage_two;
        let mut above = *root;
        for level in (3..=format.levels()).rev() {
            let at = format.entry_address(above, level, first);
            match format.decode(level, tables.load(at.0).unwrap_or(0)) {
                Entry::Table(next) if next.address == table.0 => {
                    let old = tables.swap(at, 0).unwrap_or(0);
                    retired.push(self, level, old);
                    return;
                }
                Entry::Table(next) => above = HostAddr(next.address),
                _ => return,
            }
        }
    }

    /// A table of level `level`; `None` if there is no memory, or the VM has its share.
    fn allocate(&mut self, level: u8) -> Option<HostAddr> {
        let size_bits = self.stage_two.format.table_bits(level);
        let used = self.used + (1 << size_bits);
        if used > MAX_TABLES {
            return None;
        }
        let table = self.stage_two.tables.allocate(size_bits)?;
        self.used = used;
        Some(table)
    }
}

impl Retired {
    /// Takes the table in that `entry` of a table of large frames leads to, if it leads to one.
    fn push_table(&mut self, editor: &mut Editor, entry: u64) {
        self.push(editor, 2, entry);
    }

    /// Takes the table in that `entry` of a table of level `level` leads to, if it leads to one.
    fn push(&mut self, editor: &mut Editor, level: u8, entry: u64) {
        let format = &editor.stage_two.format;
        if let Entry::Table(table) = format.decode(level, entry) {
            let size_bits = format.table_bits(level - 1);
            editor.used -= 1 << size_bits;
            self.list.push(Table { at: HostAddr(table.address), size_bits });
        }
    }
}

impl Drop for Editor {
    fn drop(&mut self) {
        // Nobody walks any more: walkers belong to channels, and those hold the VM.
        drop(self.close());
    }
}

/// A memory map and what is cleared of it.
struct View<'a> {
    map: &'a MemoryMap,
    holes: &'a [Range<Gpa>],
}

impl View<'_> {
    /// Whether `segment`'s addresses are memory with the same access, and no neighbour is.
    fn has(&self, segment: &Segment) -> bool {
        let found = self.map.find(segment.range.start);
        found.is_some_and(|one| one.range == segment.range && one.access == segment.access)
    }

    /// What covers the large frame from `first`.
    fn coverage(&self, first: Gpa, frames: &Frames) -> Coverage {
        let (page_bits, large_bits) = (frames.page_bits(), frames.large_bits());
        let frame = Range { start: first, last: Gpa(first.0 | ((1 << large_bits) - 1)) };
        let segments = overlapping(self.map.segments(), &frame, |segment| segment.range);
        let holes = overlapping(self.holes, &frame, |hole| *hole);
        match segments {
            [] => return Coverage::Even(Rights::empty()),
            [one] if holes.is_empty() && covers(&one.range, &frame) => {
                return Coverage::Even(rights(one));
            }
            _ => {}
        }
        let page =
            |gpa: Gpa| ((gpa.0.clamp(frame.start.0, frame.last.0) - first.0) >> page_bits) as usize;
        let mut pages = vec![Rights::empty(); 1 << (large_bits - page_bits)];
        for segment in segments {
            // A page that is memory in part is mapped as a whole: what is no memory has no bytes.
            let part = page(segment.range.start)..=page(segment.range.last);
            pages[part].iter_mut().for_each(|page| *page |= rights(segment));
        }
        for hole in holes {
            pages[page(hole.start)..=page(hole.last)].fill(Rights::empty());
        }
        match pages.first() {
            Some(&even) if pages.iter().all(|page| *page == even) => Coverage::Even(even),
            _ => Coverage::Pages(pages),
        }
    }
}

fn rights(segment: &Segment) -> Rights {
    match segment.access {
        Access::Read => Rights::READ | Rights::USER,
        Access::Write => Rights::READ | Rights::WRITE | Rights::USER,
    }
}

fn covers(range: &Range<Gpa>, inner: &Range<Gpa>) -> bool {
    range.contains(inner.start) && range.contains(inner.last)
}

/// Those of a sorted list that share an address with `range`.
fn overlapping<'a, T>(list: &'a [T], range: &Range<Gpa>, of: impl Fn(&T) -> Range<Gpa>) -> &'a [T] {
    let from = list.partition_point(|one| of(one).last < range.start);
    let to = list.partition_point(|one| of(one).start <= range.last);
    list.get(from..to).unwrap_or_default()
}

/// Adds `range` to a list that is sorted and free of overlaps and neighbours, and stays so.
fn insert(list: &mut Vec<Range<Gpa>>, range: Range<Gpa>) {
    let from = list.partition_point(|one| one.last.0.saturating_add(1) < range.start.0);
    let to = list.partition_point(|one| one.start.0 <= range.last.0.saturating_add(1));
    let joined = list.get(from..to).unwrap_or_default();
    let start = joined.first().map_or(range.start, |one| one.start.min(range.start));
    let last = joined.last().map_or(range.last, |one| one.last.max(range.last));
    list.splice(from..to, [Range { start, last }]);
}
