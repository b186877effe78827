//! A guest's memory as its kernel sees it, and the address space of a process in it.

use std::collections::BTreeMap;
use std::fs::File;

use mem::{Access, Gpa, GuestMemory as _, Mappings, MemoryMap, Policy, Range, SealedFile, Segment};

use super::RAM;

/// Size of a page in bytes.
pub(crate) const PAGE: u64 = 4096;

/// Where the pages end that a kernel gives out: above, nothing but stray accesses can have written.
pub(crate) const GIVEN_OUT: u64 = RAM / 2;

/// First-stage entry: present, writable, and for user mode.
const MAPPED: u64 = 0b111;
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
/// Levels of a first-stage table.
const LEVELS: u32 = 4;

/// All of a guest's RAM, mapped, with its pages.
pub(crate) struct Memory {
    map: MemoryMap,
    next: u64,
    free: Vec<Gpa>,
}

impl Memory {
    /// Maps `ram`, which holds nothing yet.
    pub(crate) fn new(ram: &File) -> Self {
        let file = SealedFile::new(ram.try_clone().unwrap().into(), Policy::SealedOnly).unwrap();
        let access = Access::Write;
        let backing = Mappings::default().map(&file, 0, RAM, access).unwrap();
        let range = Range::<Gpa>::new(Gpa(0), RAM).unwrap();
        let map = MemoryMap::new(vec![Segment { range, backing, offset: 0, access }]).unwrap();
        // Not the first page: a null pointer is none.
        Self { map, next: PAGE, free: Vec::new() }
    }

    /// The same memory for somebody else.
    pub(crate) fn map(&self) -> MemoryMap {
        self.map.clone()
    }

    /// A zeroed page.
    pub(crate) fn page(&mut self) -> Gpa {
        let page = self.free.pop().unwrap_or_else(|| {
            let page = Gpa(self.next);
            self.next += PAGE;
            assert!(self.next <= GIVEN_OUT, "the guest is out of memory");
            page
        });
        self.map.write(page, &[0; PAGE as usize]).unwrap();
        page
    }

    pub(crate) fn load(&self, at: Gpa) -> u64 {
        self.map.load_u64(at).unwrap()
    }

    pub(crate) fn store(&self, at: Gpa, word: u64) {
        self.map.store_u64(at, word).unwrap();
    }

    pub(crate) fn read<const N: usize>(&self, at: Gpa) -> [u8; N] {
        let mut bytes = [0; N];
        self.map.read(at, &mut bytes).unwrap();
        bytes
    }
}

/// The address space of a process: a table of four levels, and what it maps.
pub(crate) struct Space {
    pub(crate) root: Gpa,
    pages: BTreeMap<u64, Gpa>,
}

impl Space {
    /// One without any memory.
    pub(crate) fn new(memory: &mut Memory) -> Self {
        Self { root: memory.page(), pages: BTreeMap::new() }
    }

    /// What is behind `at`, if there is something.
    pub(crate) fn physical(&self, at: u64) -> Option<Gpa> {
        let page = self.pages.get(&(at & !(PAGE - 1)))?;
        Some(Gpa(page.0 + at % PAGE))
    }

    /// A zeroed page behind `at`, if there is none yet.
    pub(crate) fn populate(&mut self, memory: &mut Memory, at: u64) {
        let at = at & !(PAGE - 1);
        if !self.pages.contains_key(&at) {
            let (entry, page) = (self.entry(memory, at), memory.page());
            memory.store(entry, page.0 | MAPPED);
            self.pages.insert(at, page);
        }
    }

    /// Takes all pages out of the table. The caller invalidates, and [gives them back](give_back) then.
    pub(crate) fn unmap_all(&mut self, memory: &mut Memory) -> Vec<Gpa> {
        let pages = std::mem::take(&mut self.pages);
        for &at in pages.keys() {
            let entry = self.entry(memory, at);
            memory.store(entry, 0);
        }
        pages.into_values().collect()
    }

    /// Where the entry of `at` is; tables on the way are made.
    fn entry(&self, memory: &mut Memory, at: u64) -> Gpa {
        let in_table = |table: Gpa, level: u32| {
            let index = at >> (12 + 9 * (level - 1)) & 0x1ff;
            Gpa(table.0 + 8 * index)
        };
        let mut table = self.root;
        for level in (2..=LEVELS).rev() {
            let entry = in_table(table, level);
            if memory.load(entry) == 0 {
                let next = memory.page();
                memory.store(entry, next.0 | MAPPED);
            }
            table = Gpa(memory.load(entry) & ADDRESS);
        }
        in_table(table, 1)
    }
}

/// Pages that nothing uses any more.
pub(crate) fn give_back(memory: &mut Memory, pages: Vec<Gpa>) {
    memory.free.extend(pages);
}
