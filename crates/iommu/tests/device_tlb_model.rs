//! A device's own TLB against a slow twin: random tables, invalidations that are given or left out,
//! and accesses.
//!
//! The twin is a map of what the device was told, and exact: an access goes where the map says, stale or
//! not, and only if that has nothing for it where the guest's tables say. Everything but the device's
//! TLB is invalidated after each change, so nothing else can be stale.
#![cfg(not(loom))]

mod common;

use std::collections::BTreeMap;

use common::*;
use iommu::{Channel, DmaError, Endpoint, Invalidation, Vm};
use mem::{Gpa, GuestMemory, Iova, MemoryMap, Range};

const VA: u64 = 0x7f00_0000_0000;
const PAGES: u64 = 4;
const DATA: u64 = 0x20_0000;
const DATA_PAGES: u64 = 5;
const PASIDS: u32 = 2;
const SEEDS: u64 = 40;
const STEPS: u64 = 400;

/// What a device was told of a page.
#[derive(Clone, Copy)]
struct Told {
    page: u64,
    read: bool,
    write: bool,
}

struct World {
    random: Random,
    guest: Guest,
    endpoint: Endpoint,
    channel: Channel,
    roots: Vec<Gpa>,
    present: Vec<bool>,
    ats: bool,
    twin: BTreeMap<(u32, u64), Told>,
    hits: u64,
    /// Hits that the tables would not have given.
    stale: u64,
}

/// SplitMix64.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ mixed >> 31) % limit
    }
}

impl World {
    fn new(seed: u64) -> Self {
        let mut guest = Guest::new();
        let roots: Vec<_> = (0..PASIDS).map(|_| guest.table()).collect();
        for (number, root) in (0..).zip(&roots) {
            guest.set_pasid(number, first_stage(*root, DOMAIN));
            for page in 0..PAGES {
                let entry = (DATA + page * 4096) | PRESENT | WRITABLE | USER;
                guest.set_first(*root, VA + page * 4096, 1, entry);
            }
        }
        let (endpoint, channel) = guest.attach();
        endpoint.set_ats(true);
        Self {
            random: Random(seed),
            guest,
            endpoint,
            channel,
            roots,
            present: vec![true; PASIDS as usize],
            ats: true,
            twin: BTreeMap::new(),
            hits: 0,
            stale: 0,
        }
    }

    fn step(&mut self, stamp: u64) {
        let of = self.random.below(PASIDS.into()) as u32;
        let page = self.random.below(PAGES);
        match self.random.below(24) {
            0..=2 => self.remap(of, page),
            5 if !self.present[of as usize] || self.random.below(4) == 0 => self.toggle_entry(of),
            6..=7 => self.forget(of, page),
            9 if !self.ats || self.random.below(4) == 0 => self.switch(),
            10 if self.random.below(4) == 0 => self.renew_memory(),
            _ => self.access(of, page, stamp),
        }
        let entries = self.guest.vm.counters().device_tlb_entries;
        assert_eq!(entries, self.twin.len() as u64);
    }

    /// Changes a page, and tells everybody but the device.
    fn remap(&mut self, of: u32, page: u64) {
        let mut entry = DATA + self.random.below(DATA_PAGES) * 4096;
        for flag in [PRESENT, WRITABLE, USER] {
            entry |= if self.random.below(6) != 0 { flag } else { 0 };
        }
        self.guest.set_first(self.roots[of as usize], VA + page * 4096, 1, entry);
        self.guest.settle_all();
    }

    fn toggle_entry(&mut self, of: u32) {
        let present = &mut self.present[of as usize];
        *present = !*present;
        let words = if *present { first_stage(self.roots[of as usize], DOMAIN) } else { [0; 8] };
        self.guest.set_pasid(of, words);
        self.guest.settle_all();
    }

    /// Tells the device, by one of its scopes.
    fn forget(&mut self, of: u32, page: u64) {
        let requester = DEVICE;
        let one = Range::<Iova>::new(Iova(VA + page * 4096), 4096).unwrap();
        let all = Range { start: Iova(0), last: Iova(u64::MAX) };
        let (pasid, range) = match self.random.below(4) {
            0 => (None, one),
            1 => (Some(pasid(of)), all),
            _ => (Some(pasid(of)), one),
        };
        self.guest.settle(match self.random.below(5) {
            // What is held for requests without PASID is something else.
            0 => Invalidation::DeviceTlb { requester, range },
            _ => {
                let gone = |by: u32, at: u64| {
                    (pasid.is_none() || by == of) && (range == all || at == page)
                };
                self.twin.retain(|(by, at), _| !gone(*by, *at));
                Invalidation::DeviceTlbPasid { requester, pasid, range }
            }
        });
    }

    fn switch(&mut self) {
        self.ats = !self.ats;
        self.endpoint.set_ats(self.ats);
        self.twin.clear();
        // Whoever asks for what it holds has it settled.
        self.guest.settle_all();
    }

    fn renew_memory(&mut self) {
        let ticket = self.guest.vm.set_memory(MemoryMap::clone(&self.guest.memory));
        assert!(self.guest.vm.is_complete(ticket));
        self.twin.clear();
    }

    /// Makes an access, and looks where it went.
    fn access(&mut self, of: u32, page: u64, stamp: u64) {
        for index in 0..DATA_PAGES {
            self.guest.memory.store_u64(Gpa(DATA + index * 4096), stamp | index).unwrap();
        }
        let write = self.random.below(2) == 0;
        let op = if write { Op::Write } else { Op::Read };
        let fresh = self.by_tables(of, page, write);
        let told = self.twin.get(&(of, page)).copied();
        let told = told.filter(|told| if write { told.write } else { told.read });
        let expected = match told {
            Some(told) => {
                self.hits += 1;
                self.stale += u64::from(fresh.is_none_or(|fresh| fresh.page != told.page));
                Some(told)
            }
            None => fresh,
        };
        if let Some(told) = expected.filter(|_| self.ats) {
            self.twin.insert((of, page), told);
        }

        let result = dma(&self.channel, with(of), VA + page * 4096, op);
        let _ = self.guest.vm.take_fault();
        match (expected, write) {
            (Some(told), false) => assert_eq!(result, Ok(stamp | told.page), "{of}, {page}"),
            (Some(told), true) => {
                assert_eq!(result, Ok(0));
                let reached =
                    |index: &u64| self.guest.memory.load_u64(Gpa(DATA + index * 4096)) == Ok(1);
                assert_eq!((0..DATA_PAGES).filter(reached).collect::<Vec<_>>(), [told.page]);
            }
            (None, _) => assert!(
                matches!(result, Err(DmaError::Page { .. } | DmaError::Refused { .. })),
                "{result:?}"
            ),
        }
    }

    /// What the tables say, and what the device would be told.
    fn by_tables(&mut self, of: u32, page: u64, write: bool) -> Option<Told> {
        let flags = PRESENT | WRITABLE | USER;
        let at = self.guest.entry(self.roots[of as usize], 4, VA + page * 4096, 1, flags);
        let entry = self.guest.memory.load_u64(at).unwrap();
        let has = |flags| entry & flags == flags;
        if !self.present[of as usize] || !has(PRESENT | USER) || write && !has(WRITABLE) {
            return None;
        }
        let page = ((entry & 0x000f_ffff_ffff_f000) - DATA) / 4096;
        // Writes are allowed without another request once the page is marked.
        Some(Told { page, read: true, write: has(WRITABLE) && (write || has(DIRTY)) })
    }
}

#[test]
fn it_holds_what_the_device_was_told() {
    let (mut hits, mut stale) = (0, 0);
    for seed in 0..SEEDS {
        let mut world = World::new(seed);
        (1..=STEPS).for_each(|number| world.step(number << 8));
        assert_eq!(world.guest.vm.counters().device_tlb_hits, world.hits);
        (hits, stale) = (hits + world.hits, stale + world.stale);
    }
    assert!(
        stale > 0 && hits > 2 * stale,
        "a guest that leaves out an invalidation sees what was there before"
    );
}
