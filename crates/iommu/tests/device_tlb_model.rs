//! A device's own TLB against a slow twin: random tables, invalidations that are given or left out,
//! and accesses.
//!
//! The twin is a map of what the device was told, and exact: an access goes where the map says, stale or
//! not, and only if that has nothing for it where the guest's tables say. Everything but the device's
//! TLB is invalidated after each change, so nothing else can be stale.
//!
//! At times the device keeps its answers to itself, and at times they are given up. Neither changes what
//! it holds; the twin of that is the set of tickets that it owes.
#![cfg(not(loom))]

mod common;

use std::collections::{BTreeMap, BTreeSet};

use common::*;
use iommu::{Channel, DmaError, Endpoint, Invalidation, Ticket, Vm};
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
    /// Whether it keeps its answers to itself.
    silent: bool,
    /// Tickets of what it was told, and of other things, in order.
    tickets: Vec<Ticket>,
    /// Those of them that it owes an answer to.
    owed: BTreeSet<Ticket>,
    /// If some was given up while a later one was owed: up to where. From there on it may owe more
    /// than it does.
    in_part: Option<Ticket>,
    /// How often a ticket waited for the device.
    waited: u64,
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
            silent: false,
            tickets: Vec::new(),
            owed: BTreeSet::new(),
            in_part: None,
            waited: 0,
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
            11 if self.random.below(4) == 0 => self.fall_silent(),
            12 => self.give_up(),
            _ => self.access(of, page, stamp),
        }
        let entries = self.guest.vm.counters().device_tlb_entries;
        assert_eq!(entries, self.twin.len() as u64);
        self.check_answers();
    }

    /// Invalidates, and asserts that only an answer can be missing.
    fn tell(&mut self, what: Invalidation, asks: bool) {
        let ticket = self.guest.vm.invalidate(what);
        self.tickets.push(ticket);
        if asks && self.silent && self.ats {
            self.owed.insert(ticket);
        }
        let in_flight = self.guest.vm.in_flight();
        assert!(self.guest.vm.is_complete(in_flight));
    }

    fn tell_all_but_the_device(&mut self) {
        for what in [Invalidation::ContextAll, Invalidation::PasidCacheAll, Invalidation::IotlbAll]
        {
            self.tell(what, false);
        }
    }

    /// The device stops answering, or answers all that it was asked.
    fn fall_silent(&mut self) {
        self.silent = !self.silent;
        self.endpoint.withhold_invalidation_answers(self.silent);
        if !self.silent {
            self.is_answered();
        }
    }

    fn is_answered(&mut self) {
        self.owed.clear();
        self.in_part = None;
    }

    /// Up to one of the last tickets, or to one that nobody has.
    fn give_up(&mut self) {
        let back = self.random.below(8) as usize;
        let up_to = match self.tickets.iter().nth_back(back) {
            Some(ticket) if back > 0 => *ticket,
            _ => Ticket::new(u64::MAX),
        };
        self.guest.vm.give_up_answers(up_to);
        let later: BTreeSet<_> =
            self.owed.iter().copied().filter(|ticket| *ticket > up_to).collect();
        match later.is_empty() {
            true => self.is_answered(),
            false if later.len() < self.owed.len() => {
                self.in_part = self.in_part.max(Some(up_to));
            }
            false => {}
        }
        self.owed = later;
    }

    /// Whether what is complete is what the device owes nothing of.
    fn check_answers(&mut self) {
        let first = self.owed.first().copied();
        let at = self.random.below(self.tickets.len().max(1) as u64) as usize;
        let last = self.tickets.len().saturating_sub(1);
        for &ticket in [at, last].iter().filter_map(|&at| self.tickets.get(at)) {
            let complete = self.guest.vm.is_complete(ticket);
            let named = self.guest.vm.unanswered(ticket);
            assert_eq!(named.map(|who| who.requester), (!complete).then_some(DEVICE));
            assert!(named.is_none_or(|who| who.ticket < ticket));
            let owes = first.is_some_and(|first| first <= ticket);
            let may_owe = first.is_some() && self.in_part.is_some_and(|given_up| given_up < ticket);
            assert!(!(owes && complete), "{ticket:?} is complete, {:?} are owed", self.owed);
            assert!(complete || owes || may_owe, "{ticket:?} is not, {:?} are owed", self.owed);
            self.waited += u64::from(!complete);
        }
    }

    /// Changes a page, and tells everybody but the device.
    fn remap(&mut self, of: u32, page: u64) {
        let mut entry = DATA + self.random.below(DATA_PAGES) * 4096;
        for flag in [PRESENT, WRITABLE, USER] {
            entry |= if self.random.below(6) != 0 { flag } else { 0 };
        }
        self.guest.set_first(self.roots[of as usize], VA + page * 4096, 1, entry);
        self.tell_all_but_the_device();
    }

    fn toggle_entry(&mut self, of: u32) {
        let present = &mut self.present[of as usize];
        *present = !*present;
        let words = if *present { first_stage(self.roots[of as usize], DOMAIN) } else { [0; 8] };
        self.guest.set_pasid(of, words);
        self.tell_all_but_the_device();
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
        let what = match self.random.below(5) {
            // What is held for requests without PASID is something else.
            0 => Invalidation::DeviceTlb { requester, range },
            _ => {
                let gone = |by: u32, at: u64| {
                    (pasid.is_none() || by == of) && (range == all || at == page)
                };
                self.twin.retain(|(by, at), _| !gone(*by, *at));
                Invalidation::DeviceTlbPasid { requester, pasid, range }
            }
        };
        self.tell(what, true);
    }

    fn switch(&mut self) {
        self.ats = !self.ats;
        self.endpoint.set_ats(self.ats);
        self.twin.clear();
        if !self.ats {
            self.is_answered();
        }
        // Whoever asks for what it holds has it settled.
        self.tell_all_but_the_device();
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
    let (mut hits, mut stale, mut waited) = (0, 0, 0);
    for seed in 0..SEEDS {
        let mut world = World::new(seed);
        (1..=STEPS).for_each(|number| world.step(number << 8));
        assert_eq!(world.guest.vm.counters().device_tlb_hits, world.hits);
        (hits, stale) = (hits + world.hits, stale + world.stale);
        waited += world.waited;
    }
    assert!(waited > 0, "the device answered whatever it was asked");
    assert!(
        stale > 0 && hits > 2 * stale,
        "a guest that leaves out an invalidation sees what was there before"
    );
}
