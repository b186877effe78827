//! What a guest kernel does with memory: pages, first-stage page tables, processes' memory.

use std::collections::BTreeMap;
use std::sync::Arc;

use iommu::Pasid;
use mem::{Access, BackingId, Claim, Gpa, GuestMemory, HeapMemory, MemoryMap, Range, Segment};

pub const PAGE: u64 = 4096;
pub const LARGE_PAGE: u64 = 2 << 20;

pub const PRESENT: u64 = 1;
pub const WRITABLE: u64 = 1 << 1;
pub const USER: u64 = 1 << 2;
pub const ACCESSED: u64 = 1 << 5;
pub const DIRTY: u64 = 1 << 6;
const LARGE: u64 = 1 << 7;
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// Levels of a first-stage table.
const LEVELS: u32 = 4;

pub fn pasid(number: u32) -> Pasid {
    Pasid::new(number).expect("20 bits")
}

/// A guest's memory, from address zero, between two guard pages that are no memory of the guest's.
pub struct Ram {
    /// What the guest's processors see.
    map: MemoryMap,
    backing: Arc<HeapMemory>,
    len: u64,
    /// Pages that were never given out start here.
    next: u64,
    free: Vec<Gpa>,
    /// Pages in use.
    pub used: u64,
}

/// What the guard pages hold.
const GUARD: u8 = 0xa5;

impl Ram {
    pub fn new(len: u64) -> Self {
        let backing = Arc::new(HeapMemory::new((len + 2 * PAGE) as usize).expect("memory"));
        let map = MemoryMap::new(vec![segment(&backing, PAGE as usize, len)]).expect("one range");
        let ram = Self { map, backing, len, next: PAGE, free: Vec::new(), used: 0 };
        let guards = ram.guards();
        for at in [0, PAGE + len] {
            guards.write(Gpa(at), &[GUARD; PAGE as usize]).expect("a guard page");
        }
        ram
    }

    /// What a function of the guest reports of it.
    pub fn claim(&self) -> Claim {
        let Segment { range, backing, offset, access } =
            segment(&self.backing, PAGE as usize, self.len);
        let id = BackingId { dev: 1, ino: 1, offset: PAGE };
        Claim { range, id, backing, offset, access }
    }

    /// Bytes of it.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether somebody else than this still holds the memory.
    pub fn is_held(&self) -> bool {
        // The map's one segment, and this.
        Arc::strong_count(&self.backing) > 2
    }

    /// Whether the pages around it are as they were.
    pub fn guards_are_intact(&self) -> bool {
        let guards = self.guards();
        [0, PAGE + self.len].into_iter().all(|at| {
            let mut page = [0; PAGE as usize];
            guards.read(Gpa(at), &mut page).is_ok() && page == [GUARD; PAGE as usize]
        })
    }

    fn guards(&self) -> MemoryMap {
        MemoryMap::new(vec![segment(&self.backing, 0, self.len + 2 * PAGE)]).expect("one range")
    }

    /// A zeroed page.
    pub fn page(&mut self) -> Gpa {
        match self.free.pop() {
            Some(page) => {
                self.used += 1;
                self.write(page, &[0; PAGE as usize]);
                page
            }
            None => self.pages(1, PAGE),
        }
    }

    /// Zeroed pages in a row, aligned to `align` bytes.
    pub fn pages(&mut self, count: u64, align: u64) -> Gpa {
        let first = self.next.next_multiple_of(align);
        self.next = first + count * PAGE;
        assert!(self.next <= self.len, "the guest is out of memory");
        self.used += count;
        (0..count).for_each(|page| self.write(Gpa(first + page * PAGE), &[0; PAGE as usize]));
        Gpa(first)
    }

    /// Forgets what was given out: a guest starts anew.
    pub fn restart(&mut self) {
        (self.next, self.used) = (PAGE, 0);
        self.free.clear();
    }

    pub fn give_back(&mut self, page: Gpa) {
        self.used -= 1;
        self.free.push(page);
    }

    pub fn write(&self, at: Gpa, bytes: &[u8]) {
        self.map.write(at, bytes).expect("memory of the guest");
    }

    pub fn read(&self, at: Gpa, bytes: &mut [u8]) {
        self.map.read(at, bytes).expect("memory of the guest");
    }

    pub fn load(&self, at: Gpa) -> u64 {
        self.map.load_u64(at).expect("memory of the guest")
    }

    pub fn store(&self, at: Gpa, word: u64) {
        self.map.store_u64(at, word).expect("memory of the guest");
    }

    pub fn load_u32(&self, at: Gpa) -> u32 {
        self.map.load_u32(at).expect("memory of the guest")
    }

    /// Fills a page with one word.
    pub fn stamp(&self, page: Gpa, word: u64) {
        self.write(page, &stamped(word));
    }

    /// Whether a page holds nothing but `word`.
    pub fn is_stamped(&self, page: Gpa, word: u64) -> bool {
        let mut bytes = [0; PAGE as usize];
        self.read(page, &mut bytes);
        bytes == stamped(word)
    }

    /// Whether a page holds `word` anywhere.
    pub fn has(&self, page: Gpa, word: u64) -> bool {
        (0..PAGE).step_by(8).any(|at| self.load(Gpa(page.0 + at)) == word)
    }
}

fn stamped(word: u64) -> [u8; PAGE as usize] {
    let mut bytes = [0; PAGE as usize];
    bytes.chunks_exact_mut(8).for_each(|chunk| chunk.copy_from_slice(&word.to_le_bytes()));
    bytes
}

fn segment(backing: &Arc<HeapMemory>, offset: usize, len: u64) -> Segment {
    let range = Range::<Gpa>::new(Gpa(0), len).expect("not empty");
    Segment { range, backing: backing.clone(), offset, access: Access::Write }
}

/// An address space: a first-stage table of four levels, and what it maps.
pub struct Space {
    pub pasid: Pasid,
    pub root: Gpa,
    /// Small pages by virtual address.
    pages: BTreeMap<u64, Gpa>,
    /// Large pages by virtual address; they are never given back.
    large: BTreeMap<u64, Gpa>,
    tables: Vec<Gpa>,
}

impl Space {
    pub fn new(ram: &mut Ram, pasid: Pasid) -> Self {
        let root = ram.page();
        Self { pasid, root, pages: BTreeMap::new(), large: BTreeMap::new(), tables: vec![root] }
    }

    /// Gives all of it back, except large pages.
    pub fn free(self, ram: &mut Ram) {
        for page in self.pages.into_values().chain(self.tables) {
            ram.give_back(page);
        }
    }

    /// Fresh zeroed pages for the `len` bytes from `at`.
    pub fn allocate(&mut self, ram: &mut Ram, at: u64, len: u64) {
        for at in (at & !(PAGE - 1)..at + len).step_by(PAGE as usize) {
            if !self.pages.contains_key(&at) {
                let page = ram.page();
                self.map(ram, at, page);
            }
        }
    }

    /// Maps a fresh large page at `at`.
    pub fn allocate_large(&mut self, ram: &mut Ram, at: u64) {
        let page = ram.pages(LARGE_PAGE / PAGE, LARGE_PAGE);
        let entry = self.entry(ram, at, 2);
        ram.store(entry, page.0 | LARGE | PRESENT | WRITABLE | USER);
        self.large.insert(at, page);
    }

    /// Maps `page` at `at`, writable.
    pub fn map(&mut self, ram: &mut Ram, at: u64, page: Gpa) {
        let entry = self.entry(ram, at, 1);
        ram.store(entry, page.0 | PRESENT | WRITABLE | USER);
        self.pages.insert(at, page);
    }

    /// Takes the page at `at` out of the table. The caller invalidates, and owns the page then.
    pub fn unmap(&mut self, ram: &mut Ram, at: u64) -> Gpa {
        let entry = self.entry(ram, at, 1);
        ram.store(entry, 0);
        self.pages.remove(&at).expect("a mapped page")
    }

    /// Where the entry of `at` is at `level`; tables on the way are made.
    pub fn entry(&mut self, ram: &mut Ram, at: u64, level: u32) -> Gpa {
        let mut table = self.root;
        for depth in (level..=LEVELS).rev() {
            let index = at >> (12 + 9 * (depth - 1)) & 0x1ff;
            let entry = Gpa(table.0 + 8 * index);
            if depth == level {
                return entry;
            }
            if ram.load(entry) & PRESENT == 0 {
                let next = ram.page();
                self.tables.push(next);
                ram.store(entry, next.0 | PRESENT | WRITABLE | USER);
            }
            table = Gpa(ram.load(entry) & ADDRESS);
        }
        unreachable!("a level from 1 to 4")
    }

    /// Whether a page is behind `at`.
    pub fn has(&self, at: u64) -> bool {
        self.pages.contains_key(&(at & !(PAGE - 1)))
    }

    /// The page behind `at`.
    pub fn page(&self, at: u64) -> Gpa {
        self.physical(at & !(PAGE - 1))
    }

    fn physical(&self, at: u64) -> Gpa {
        let large = self.large.get(&(at & !(LARGE_PAGE - 1)));
        let large = large.map(|page| Gpa(page.0 + at % LARGE_PAGE));
        let small = || self.pages.get(&(at & !(PAGE - 1))).map(|page| Gpa(page.0 + at % PAGE));
        large.or_else(small).expect("a mapped page")
    }

    /// What the process itself stores.
    pub fn write(&self, ram: &Ram, at: u64, bytes: &[u8]) {
        self.pieces(at, bytes.len(), |page, piece| ram.write(page, &bytes[piece]));
    }

    /// What the process itself loads.
    pub fn read(&self, ram: &Ram, at: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.pieces(at, len, |page, piece| ram.read(page, &mut bytes[piece]));
        bytes
    }

    fn pieces(&self, at: u64, len: usize, mut f: impl FnMut(Gpa, std::ops::Range<usize>)) {
        let mut done = 0;
        while done < len {
            let here = at + done as u64;
            let piece = ((PAGE - here % PAGE) as usize).min(len - done);
            f(self.physical(here), done..done + piece);
            done += piece;
        }
    }

    /// The pages of its tables.
    pub fn tables(&self) -> impl Iterator<Item = Gpa> + '_ {
        self.tables.iter().copied()
    }

    /// Every word of its tables, by address.
    pub fn table_words(&self, ram: &Ram) -> BTreeMap<u64, u64> {
        let words = |table: &Gpa| (table.0..table.0 + PAGE).step_by(8);
        self.tables.iter().flat_map(words).map(|at| (at, ram.load(Gpa(at)))).collect()
    }
}
