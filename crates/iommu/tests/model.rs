//! The engine against a slow reference: random tables, entries, invalidations and accesses.
//!
//! The reference keeps nothing. For each access it walks the guest's memory from the PASID
//! directory on, with masks written out by hand, so what the engine caches must never show. Over a
//! stage 2 of the host's it also keeps which pages that does not have.
#![cfg(not(loom))]

mod common;

use std::collections::BTreeSet;

use common::*;
use iommu::{Channel, DomainId, FaultReason, Invalidation, PageRange, Stage, StageTwoOwner, Vm};
use mem::{Gpa, GuestMemory, Iova, Range};
use proptest::prelude::*;

/// Address of the first page that the tables under test map.
const BASE: u64 = 0x40_0000;
/// 4 KiB pages under test; the last 512 of them can be one page of 2 MiB.
const SMALL_PAGES: u64 = 4;
/// The page of 2 MiB.
const LARGE_PAGE: u64 = BASE + (2 << 20);
/// Pages of memory that tables may point at.
const DATA_PAGES: u64 = 6;
const PASIDS: u32 = 2;

/// How a PASID is translated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    First,
    Second,
    Nested,
    PassThrough,
    Absent,
}

/// A page of the guest's.
#[derive(Clone, Copy, Debug)]
enum Place {
    Data(u64),
    /// The table of this level by which the first stage translates the pages under test.
    First(u32),
    /// The same of the second stage.
    Second(u32),
    Directory,
    Entries,
}

#[derive(Clone, Copy, Debug)]
enum Step {
    /// Points a PASID at a translation of some kind, in some domain.
    Entry { of: u32, kind: Kind, domain: u16 },
    /// Changes a page of the first-stage table.
    First { page: u64, to: u64, present: bool, writable: bool, user: bool },
    /// Changes the large page of the first-stage table: mapped, or a table of small ones.
    FirstLarge { mapped: bool },
    /// Changes a page of the second-stage table.
    Second { page: u64, to: u64, read: bool, write: bool },
    /// Takes a page out of the host's stage 2, if there is one, or puts it back.
    Hole { place: Place, clear: bool },
    /// An access; `large` is in the region of the large page.
    Access { of: u32, page: u64, large: bool, write: bool, privileged: bool },
}

fn steps() -> impl Strategy<Value = Vec<(Step, u8)>> {
    let kind = prop_oneof![
        3 => Just(Kind::First),
        2 => Just(Kind::Second),
        3 => Just(Kind::Nested),
        1 => Just(Kind::PassThrough),
        1 => Just(Kind::Absent),
    ];
    let flags = (any::<bool>(), any::<bool>(), prop::bool::weighted(0.8));
    let place = prop_oneof![
        4 => (0..DATA_PAGES).prop_map(Place::Data),
        2 => (1..=4u32).prop_map(Place::First),
        1 => (1..=4u32).prop_map(Place::Second),
        1 => prop_oneof![Just(Place::Directory), Just(Place::Entries)],
    ];
    let step = prop_oneof![
        2 => (0..PASIDS, kind, 1..3u16).prop_map(|(of, kind, domain)| Step::Entry { of, kind, domain }),
        2 => (0..SMALL_PAGES, 0..DATA_PAGES, flags).prop_map(|(page, to, (present, writable, user))| {
            Step::First { page, to, present, writable, user }
        }),
        1 => any::<bool>().prop_map(|mapped| Step::FirstLarge { mapped }),
        2 => (0..DATA_PAGES, 0..DATA_PAGES, prop::bool::weighted(0.8), any::<bool>())
            .prop_map(|(page, to, read, write)| Step::Second { page, to, read, write }),
        2 => (place, any::<bool>()).prop_map(|(place, clear)| Step::Hole { place, clear }),
        12 => (0..PASIDS, 0..SMALL_PAGES, any::<(bool, bool, bool)>()).prop_map(
            |(of, page, (large, write, privileged))| Step::Access { of, page, large, write, privileged }
        ),
    ];
    prop::collection::vec((step, any::<u8>()), 1..200)
}

/// A guest, its tables, and what a PASID is at present.
struct World {
    guest: Guest,
    first: Gpa,
    second: Gpa,
    domains: [u16; PASIDS as usize],
    /// Pages that the host's stage 2 does not have.
    holes: BTreeSet<u64>,
    /// Whether the device has a TLB of its own, which has to be told as well.
    ats: bool,
}

/// Why an access goes nowhere; the address at which the host's stage 2 stopped, if it did.
type Stopped = (FaultReason, Option<Gpa>);

/// Address of a data page.
fn data(page: u64) -> u64 {
    BASE + page * 4096
}

impl World {
    fn new(ats: bool) -> Self {
        let mut guest = Guest::new();
        let first = guest.table();
        let second = guest.identity_second(false);
        for page in 0..SMALL_PAGES {
            guest.set_first(first, BASE + page * 4096, 1, data(page) | PRESENT | WRITABLE | USER);
        }
        let holes = BTreeSet::new();
        Self { guest, first, second, domains: [1; PASIDS as usize], holes, ats }
    }

    fn words(&self, kind: Kind, domain: u16) -> [u64; 8] {
        let domain = DomainId(domain);
        // Supervisor requests are allowed in all of them.
        let mut words = match kind {
            Kind::First => first_stage(self.first, domain),
            Kind::Second => second_stage(self.second, domain),
            Kind::Nested => nested(self.first, self.second, domain),
            Kind::PassThrough => pass_through(domain),
            Kind::Absent => return [0; 8],
        };
        words[2] |= 1;
        words
    }

    /// Carries out a change of tables and tells the caches, with one of several sufficient scopes.
    fn change(&mut self, step: Step, choice: u8) {
        match step {
            Step::Entry { of, kind, domain } => {
                let old = DomainId(self.domains[of as usize]);
                let words = self.words(kind, domain);
                self.guest.set_pasid(of, words);
                self.domains[of as usize] = domain;
                self.forget_entry(pasid(of), old, choice);
            }
            Step::First { page, to, present, writable, user } => {
                let flag = |on, bit| if on { bit } else { 0 };
                let flags = flag(present, PRESENT) | flag(writable, WRITABLE) | flag(user, USER);
                let entry = data(to) | flags;
                self.guest.set_first(self.first, BASE + page * 4096, 1, entry);
                self.forget_pages(BASE + page * 4096, choice);
            }
            Step::FirstLarge { mapped } => {
                let at = self.guest.entry(self.first, 4, LARGE_PAGE, 2, PRESENT | WRITABLE | USER);
                // Onto the data pages, which are aligned to 2 MiB.
                let large = BASE | PRESENT | WRITABLE | USER | LARGE;
                let entry = if mapped { large } else { 0 };
                self.guest.memory.store_u64(at, entry).unwrap();
                // Any page of it stands for all of it.
                self.forget_pages(LARGE_PAGE + u64::from(choice) * 4096, choice);
            }
            Step::Second { page, to, read, write } => {
                let flags = if read { SS_READ } else { 0 } | if write { SS_WRITE } else { 0 };
                self.guest.set_second(self.second, data(page), 1, data(to) | flags);
                self.forget_second(data(page), choice);
            }
            Step::Hole { place, clear } => self.edit(place, clear),
            Step::Access { .. } => {}
        }
    }

    /// Changes the host's stage 2, which needs no word from the guest.
    fn edit(&mut self, place: Place, clear: bool) {
        if STAGE_TWO.is_none() {
            return;
        }
        let link = PRESENT | WRITABLE | USER;
        let page = match place {
            Place::Data(page) => data(page),
            Place::First(level) => self.guest.entry(self.first, 4, BASE, level, link).0 & !0xfff,
            Place::Second(level) => self.guest.entry(self.second, 4, BASE, level, 3).0 & !0xfff,
            Place::Directory => self.guest.directory.0,
            Place::Entries => self.guest.pasid_entry(0).0 & !0xfff,
        };
        let range = Range::<Gpa>::new(Gpa(page), 4096).unwrap();
        let ticket = if clear {
            self.holes.insert(page);
            self.guest.vm.clear_stage_two(range)
        } else {
            self.holes.remove(&page);
            self.guest.vm.restore_stage_two(range)
        };
        assert!(self.guest.vm.is_complete(ticket.unwrap()));
    }

    fn forget_entry(&self, of: iommu::Pasid, domain: DomainId, choice: u8) {
        self.guest.settle(match choice % 3 {
            0 => Invalidation::PasidCacheAll,
            1 => Invalidation::PasidCacheDomain(domain),
            _ => Invalidation::PasidCache { domain, pasid: of },
        });
        self.guest.settle(match choice / 3 % 3 {
            0 => Invalidation::IotlbAll,
            1 => Invalidation::IotlbDomain(domain),
            _ => Invalidation::IotlbPasid { domain, pasid: of },
        });
        self.forget_device((choice & 1 == 0).then_some(of), whole());
    }

    /// Has the device's own TLB forget a range, of one PASID or of all.
    fn forget_device(&self, pasid: Option<iommu::Pasid>, range: Range<Iova>) {
        if self.ats {
            self.guest.settle(Invalidation::DeviceTlbPasid { requester: DEVICE, pasid, range });
        }
    }

    fn forget_pages(&self, address: u64, choice: u8) {
        let range = Range::<Iova>::new(Iova(address & !0xfff), 4096).unwrap();
        let pages = PageRange { range, leaf_only: choice & 1 != 0 };
        for number in 0..PASIDS {
            let domain = DomainId(self.domains[number as usize]);
            let of = pasid(number);
            self.guest.settle(match choice % 5 {
                0 => Invalidation::IotlbPasid { domain, pasid: of },
                1 => Invalidation::IotlbDomain(domain),
                _ => Invalidation::IotlbPasidPages { domain, pasid: of, pages },
            });
            self.forget_device(Some(of), range);
        }
    }

    fn forget_second(&self, address: u64, choice: u8) {
        let range = Range::<Iova>::new(Iova(address), 4096).unwrap();
        let pages = PageRange { range, leaf_only: choice & 1 != 0 };
        for domain in self.domains.map(DomainId) {
            self.guest.settle(match choice % 3 {
                0 => Invalidation::IotlbDomain(domain),
                _ => Invalidation::IotlbDomainPages { domain, pages },
            });
        }
        // The pages are not those that the device asked for.
        self.forget_device(None, whole());
    }

    /// What the guest has there, whether the host's stage 2 has the page or not.
    fn load(&self, at: u64) -> u64 {
        self.guest.memory.load_u64(Gpa(at)).unwrap()
    }

    /// Asks the host's stage 2 for what a request reaches.
    fn below(&self, gpa: u64) -> Result<u64, Stopped> {
        self.page(gpa, FaultReason::NotPresent { stage: Stage::Two, level: 1 })?;
        Ok(gpa)
    }

    /// Loads an entry, by way of the host's stage 2.
    fn entry(&self, at: u64) -> Result<u64, Stopped> {
        self.page(at, FaultReason::NotPresent { stage: Stage::TwoForTable, level: 1 })?;
        Ok(self.load(at))
    }

    fn page(&self, gpa: u64, reason: FaultReason) -> Result<(), Stopped> {
        match self.holes.contains(&(gpa & !0xfff)) {
            true => Err((reason, Some(Gpa(gpa)))),
            false => Ok(()),
        }
    }

    /// Where an access goes, by the tables alone.
    fn reference(&self, of: u32, iova: u64, write: bool, privileged: bool) -> Result<u64, Stopped> {
        self.page(self.guest.directory.0, FaultReason::PasidDirectoryAccess)?;
        let directory = self.load(self.guest.directory.0);
        if directory & 1 == 0 {
            return Err((FaultReason::PasidDirectoryNotPresent, None));
        }
        let entry = (directory & !0xfff) + u64::from(of) * 64;
        self.page(entry, FaultReason::PasidEntryAccess)?;
        let word0 = self.load(entry);
        if word0 & 1 == 0 {
            return Err((FaultReason::PasidEntryNotPresent, None));
        }
        let second = word0 & !0xfff;
        let first = self.load(entry + 16) & !0xfff;
        let gpa = match word0 >> 6 & 7 {
            1 => self.first(first, None, iova, write, privileged),
            2 => self.second(second, iova, write, Stage::Two),
            3 => self.first(first, Some(second), iova, write, privileged),
            _ => Ok(iova),
        };
        self.below(gpa?)
    }

    fn first(
        &self,
        root: u64,
        second: Option<u64>,
        iova: u64,
        write: bool,
        privileged: bool,
    ) -> Result<u64, Stopped> {
        let (mut table, mut all) = (root, WRITABLE | USER);
        for level in (1..=4u8).rev() {
            let shift = 12 + 9 * (u64::from(level) - 1);
            let mut at = table + (iova >> shift & 0x1ff) * 8;
            if let Some(second) = second {
                at = self.second(second, at, false, Stage::TwoForTable)?;
            }
            let entry = self.entry(at)?;
            if entry & PRESENT == 0 {
                return Err((FaultReason::NotPresent { stage: Stage::One, level }, None));
            }
            all &= entry;
            table = entry & 0x000f_ffff_ffff_f000;
            if level == 1 || entry & LARGE != 0 {
                if !privileged && all & USER == 0 {
                    return Err((FaultReason::Permission { stage: Stage::One, user: true }, None));
                }
                // Without WPE, privileged writes ignore read-only.
                if write && all & WRITABLE == 0 && !privileged {
                    return Err((FaultReason::Permission { stage: Stage::One, user: false }, None));
                }
                let output = table | iova & ((1 << shift) - 1);
                return match second {
                    Some(second) => self.second(second, output, write, Stage::Two),
                    None => Ok(output),
                };
            }
        }
        unreachable!()
    }

    fn second(&self, root: u64, address: u64, write: bool, stage: Stage) -> Result<u64, Stopped> {
        let (mut table, mut all) = (root, 3);
        for level in (1..=4u8).rev() {
            let shift = 12 + 9 * (u64::from(level) - 1);
            let entry = self.entry(table + (address >> shift & 0x1ff) * 8)?;
            if entry & 3 == 0 {
                return Err((FaultReason::NotPresent { stage, level }, None));
            }
            all &= entry;
            table = entry & 0x000f_ffff_ffff_f000;
        }
        let needed = if write { SS_WRITE } else { SS_READ };
        if all & needed == 0 {
            return Err((FaultReason::Permission { stage, user: false }, None));
        }
        Ok(table | address & 0xfff)
    }
}

fn whole() -> Range<Iova> {
    Range { start: Iova(0), last: Iova(u64::MAX) }
}

/// Makes the access and compares its fault, or the word that it reached, with the reference.
fn access(world: &World, channel: &Channel, step: Step, stamp: u64) -> Result<(), TestCaseError> {
    let Step::Access { of, page, large, write, privileged } = step else { return Ok(()) };
    let iova = if large { LARGE_PAGE } else { BASE } + page * 4096 + 0x40;
    let space = iommu::AddressSpace { pasid: Some(pasid(of)), privileged };
    // Writes are atomics: they have to be allowed to read, too, which is looked at afterwards.
    let expected = world
        .reference(of, iova, write, privileged)
        .and_then(|_| world.reference(of, iova, false, privileged));
    if let Ok(gpa) = expected {
        world.guest.memory.store_u64(Gpa(gpa), stamp).unwrap();
    }
    let op = if write { Op::Atomic } else { Op::Read };
    let result = dma(channel, space, iova, op);
    let fault = world.guest.vm.take_fault().map(|fault| {
        let hosts = fault.stage_two.filter(|stop| stop.owner == StageTwoOwner::Host);
        (fault.reason, hosts.map(|stop| stop.gpa))
    });
    // A page fault of a device that asks for translations is its own business.
    let silent =
        |(reason, hosts): &Stopped| world.ats && reason.is_recoverable() && hosts.is_none();
    prop_assert_eq!(fault, expected.err().filter(|stop| !silent(stop)), "{:?}", step);
    prop_assert_eq!(result.is_err(), expected.is_err(), "{:?}", step);
    if let Ok(gpa) = expected {
        prop_assert_eq!(result, Ok(stamp), "{:?}", step);
        let held = world.guest.memory.load_u64(Gpa(gpa)).unwrap();
        prop_assert_eq!(held, stamp + u64::from(write), "{:?}", step);
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_is_cached_never_shows(ats: bool, steps in steps()) {
        let mut world = World::new(ats);
        let (endpoint, channel) = world.guest.attach();
        endpoint.set_ats(ats);
        for (number, (step, choice)) in (1..).zip(steps) {
            world.change(step, choice);
            access(&world, &channel, step, number << 8)?;
        }
        let counters = world.guest.vm.counters();
        prop_assert_eq!(counters.iotlb_misses, counters.walks);
        prop_assert!(counters.iotlb_hits + counters.walks <= counters.translations);
        let own = counters.device_tlb_hits + counters.device_tlb_misses;
        prop_assert_eq!(own, if ats { counters.translations } else { 0 });
    }
}
