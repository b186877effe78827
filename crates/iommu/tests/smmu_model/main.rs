//! The engine behind an SMMUv3 against a slow reference: random tables, descriptors, streams,
//! commands and accesses.
//!
//! The reference keeps nothing. For each access it walks the guest's memory from the context
//! descriptor on, with masks written out by hand, so what the engine caches must never show. Over a
//! stage 2 of the host's it also keeps which pages that does not have.
#![cfg(not(loom))]

#[path = "../common/mod.rs"]
mod common;
mod reference;

use std::collections::BTreeSet;

use common::smmu::*;
use common::smmu_hosted::HostedStream;
use common::*;
use iommu::{
    ArmStageTwo, Asid, Channel, DefaultSubstream, DescriptorForm, DescriptorTable, FaultReason,
    Granule, Hardware, Invalidation, Layout, PageRange, SmmuInvalidation, SoftwareHost,
    StageTwoConfig, StageTwoFormat, StageTwoOwner, StreamTranslation, Vm, VmConfig,
};
use mem::{Gpa, GuestMemory, Iova, Range};
use proptest::prelude::*;

/// First address of the pages that the tables under test map.
const BASE: u64 = 0x40_0000;
/// Pages of one address space, by table.
const PAGES: u64 = 3;
/// First address of the pages that are the same in every address space.
const GLOBAL: u64 = 0xc0_0000;
/// A page of 2 MiB, or a table of small ones.
const LARGE: u64 = BASE + (2 << 20);
/// Pages of memory that tables may point at.
const DATA_PAGES: u64 = 6;
/// Where the descriptors are: at a multiple of the largest leaf.
const DESCRIPTORS: Gpa = Gpa(0x10_0000);
/// Substreams of the table; requests may name more.
const SUBSTREAM_BITS: u8 = 2;
const ASIDS: std::ops::Range<u16> = 1..4;

const F_PRESENT: u64 = 1;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Abort,
    Bypass,
    One,
    Two,
    Nested,
}

/// What a page is.
#[derive(Clone, Copy, Debug)]
struct Page {
    to: u64,
    present: bool,
    writable: bool,
    user: bool,
    accessed: bool,
}

#[derive(Clone, Copy, Debug)]
enum Region {
    Own,
    Global,
    Large,
}

/// A page of the guest's.
#[derive(Clone, Copy, Debug)]
enum Place {
    Data(u64),
    /// The tables of this level by which stage 1 translates the pages under test: of both address
    /// spaces, since a page that is global may have been found by either.
    One(u32),
    /// The same of stage 2.
    Two(u32),
    Descriptors,
    FirstLevel,
}

#[derive(Clone, Copy, Debug)]
enum Step {
    /// Has the device translated in another way.
    Stream { kind: Kind, default: DefaultSubstream, form: DescriptorForm },
    /// Points a substream at one of the two tables, or at none.
    Descriptor { of: u64, table: usize, valid: bool, asid: u16, record: bool },
    /// Changes a page of a stage-1 table.
    Own { table: usize, at: u64, page: Page },
    /// Changes a page of both.
    Global { at: u64, page: Page },
    /// Changes the large page of a stage-1 table: mapped, or a table of small ones.
    Large { table: usize, mapped: bool },
    /// Changes a page of the stage-2 table.
    Two { at: u64, page: Page },
    /// Takes a page out of the host's stage 2, if there is one, or puts it back.
    Hole { place: Place, clear: bool },
    /// An access.
    Access { of: Option<u32>, region: Region, at: u64, write: bool, privileged: bool },
}

fn page() -> impl Strategy<Value = Page> {
    let mostly = || prop::bool::weighted(0.85);
    (0..DATA_PAGES, mostly(), any::<bool>(), mostly(), mostly()).prop_map(
        |(to, present, writable, user, accessed)| Page { to, present, writable, user, accessed },
    )
}

fn steps() -> impl Strategy<Value = Vec<(Step, u8)>> {
    let kind = prop_oneof![
        1 => Just(Kind::Abort),
        1 => Just(Kind::Bypass),
        4 => Just(Kind::One),
        2 => Just(Kind::Two),
        4 => Just(Kind::Nested),
    ];
    let default = prop_oneof![
        Just(DefaultSubstream::Terminate),
        Just(DefaultSubstream::Bypass),
        Just(DefaultSubstream::Zero),
    ];
    let form = prop_oneof![
        Just(DescriptorForm::Linear),
        Just(DescriptorForm::Leaves4K),
        Just(DescriptorForm::Leaves64K),
    ];
    let region =
        prop_oneof![3 => Just(Region::Own), 2 => Just(Region::Global), 1 => Just(Region::Large)];
    let substream = prop::option::weighted(0.8, 0..6u32);
    let place = prop_oneof![
        4 => (0..DATA_PAGES).prop_map(Place::Data),
        2 => (1..=4u32).prop_map(Place::One),
        1 => (1..=3u32).prop_map(Place::Two),
        1 => prop_oneof![Just(Place::Descriptors), Just(Place::FirstLevel)],
    ];
    let step = prop_oneof![
        2 => (kind, default, form).prop_map(|(kind, default, form)| Step::Stream { kind, default, form }),
        2 => (0..4u64, 0..2usize, prop::bool::weighted(0.85), ASIDS, any::<bool>()).prop_map(
            |(of, table, valid, asid, record)| Step::Descriptor { of, table, valid, asid, record }
        ),
        2 => (0..2usize, 0..PAGES, page()).prop_map(|(table, at, page)| Step::Own { table, at, page }),
        1 => (0..PAGES, page()).prop_map(|(at, page)| Step::Global { at, page }),
        1 => (0..2usize, any::<bool>()).prop_map(|(table, mapped)| Step::Large { table, mapped }),
        2 => (0..DATA_PAGES, page()).prop_map(|(at, page)| Step::Two { at, page }),
        2 => (place, any::<bool>()).prop_map(|(place, clear)| Step::Hole { place, clear }),
        16 => (substream, region, 0..PAGES, any::<(bool, bool)>()).prop_map(
            |(of, region, at, (write, privileged))| Step::Access { of, region, at, write, privileged }
        ),
    ];
    prop::collection::vec((step, any::<u8>()), 1..200)
}

/// Address of a data page.
fn data(page: u64) -> u64 {
    BASE + page * 4096
}

/// A guest and its tables.
struct World {
    guest: Guest,
    one: [Gpa; 2],
    two: Gpa,
    /// What leads to the descriptors if they are behind a first level.
    first_level: Gpa,
    kind: Kind,
    default: DefaultSubstream,
    form: DescriptorForm,
    asids: [u16; 4],
    has_stage_two: bool,
    /// Pages that the host's stage 2 does not have.
    holes: BTreeSet<u64>,
    /// If the stream-table entry is the host's.
    host: Option<HostedStream>,
    /// Whether the device has a TLB of its own, which has to be told as well.
    ats: bool,
}

/// Why an access goes nowhere; the address at which the host's stage 2 stopped, if it did.
type Stopped = (FaultReason, Option<Gpa>);

impl World {
    fn new(ats: bool) -> Self {
        Self::on(Guest::new(), STAGE_TWO.is_some(), ats)
    }

    /// Has the host put the guest's stream-table entries over its stage 2 from here on.
    fn attach(self) -> Self {
        let world = Self { host: Some(HostedStream::new(&self.guest, self.ats)), ..self };
        world.set_stream();
        world
    }

    fn on(mut guest: Guest, has_stage_two: bool, ats: bool) -> Self {
        let one = [guest.table(), guest.table()];
        let two = guest.identity_two(false);
        let first_level = guest.table();
        guest.store(first_level, &[DESCRIPTORS.0 | 1]);
        let all = Page { to: 0, present: true, writable: true, user: true, accessed: true };
        for (table, root) in one.into_iter().enumerate() {
            for at in 0..PAGES {
                let to = (at + table as u64) % DATA_PAGES;
                guest.set_one(
                    root,
                    BASE + at * 4096,
                    1,
                    stage_one_entry(&Page { to, ..all }, NOT_GLOBAL),
                );
                guest.set_one(
                    root,
                    GLOBAL + at * 4096,
                    1,
                    stage_one_entry(&Page { to: at, ..all }, 0),
                );
            }
        }
        for of in 0..4 {
            guest.set_descriptor(DESCRIPTORS, of, descriptor(one[of as usize % 2], asid(1)));
        }
        let (kind, default, form) = (Kind::One, DefaultSubstream::Zero, DescriptorForm::Linear);
        let world = Self {
            guest,
            one,
            two,
            first_level,
            kind,
            default,
            form,
            asids: [1; 4],
            has_stage_two,
            holes: BTreeSet::new(),
            host: None,
            ats,
        };
        world.set_stream();
        world
    }

    fn set_stream(&self) {
        let root = match self.form {
            DescriptorForm::Linear => DESCRIPTORS,
            _ => self.first_level,
        };
        let (form, default) = (self.form, self.default);
        let table = DescriptorTable { root, bits: SUBSTREAM_BITS, form, default };
        let translation = match self.kind {
            Kind::Abort => StreamTranslation::Abort,
            Kind::Bypass => StreamTranslation::Bypass,
            Kind::One => StreamTranslation::StageOne(table),
            Kind::Two => StreamTranslation::StageTwo(stage_two(self.two)),
            Kind::Nested => StreamTranslation::Nested(table, stage_two(self.two)),
        };
        match &self.host {
            Some(host) => host.attach(&self.guest, &translation),
            None => self.guest.set_context(stream_with(translation, self.ats)),
        }
    }

    fn forget(&self, what: SmmuInvalidation) {
        match &self.host {
            Some(host) => host.forget(&self.guest, what),
            None => self.guest.settle(Invalidation::Smmuv3(what)),
        }
    }

    /// Carries out a change and gives the commands for it, one of several sufficient sets.
    fn change(&mut self, step: Step, choice: u8) {
        match step {
            Step::Stream { kind, default, form } => {
                let kind = match kind {
                    Kind::Two | Kind::Nested if self.host.is_some() => Kind::One,
                    kind => kind,
                };
                (self.kind, self.default, self.form) = (kind, default, form);
                self.set_stream();
                let entry =
                    SmmuInvalidation::StreamEntry { requester: DEVICE, ignore: choice.into() };
                self.forget(if choice & 1 == 0 { entry } else { SmmuInvalidation::ConfigAll });
                self.forget(if choice & 2 == 0 {
                    SmmuInvalidation::Guest(VMID)
                } else {
                    SmmuInvalidation::TlbAll
                });
            }
            Step::Descriptor { of, table, valid, asid: number, record } => {
                let mut words = descriptor(self.one[table], asid(number));
                words[0] &= if record { !0 } else { !RECORD };
                words[0] &= if valid { !0 } else { !(1 << 31) };
                self.guest.set_descriptor(DESCRIPTORS, of, words);
                let old = core::mem::replace(&mut self.asids[of as usize], number);
                self.forget_descriptor(of, old, choice);
            }
            Step::Own { table, at, page } => {
                let address = BASE + at * 4096;
                let entry = stage_one_entry(&page, NOT_GLOBAL);
                self.guest.set_one(self.one[table], address, 1, entry);
                self.forget_own(address, choice);
            }
            Step::Global { at, page } => {
                let address = GLOBAL + at * 4096;
                for root in self.one {
                    self.guest.set_one(root, address, 1, stage_one_entry(&page, 0));
                }
                self.forget_global(address, choice);
            }
            Step::Large { table, mapped } => {
                let root = self.one[table];
                if mapped {
                    let entry = BASE & !0x1f_ffff | PAGE & !0b10;
                    self.guest.set_one(root, LARGE, 2, entry);
                } else {
                    self.guest.set_one(root, LARGE, 2, 0);
                    for at in 0..PAGES {
                        let entry = data(at) | PAGE | READ_ONLY;
                        self.guest.set_one(root, LARGE + at * 4096, 1, entry);
                    }
                }
                // Any page of it will do.
                self.forget_own(LARGE + u64::from(choice) * 4096, choice);
            }
            Step::Two { at, page } => {
                self.guest.set_two(self.two, data(at), 1, stage_two_entry(&page));
                let range = Range::<Gpa>::new(Gpa(data(at)), 4096).unwrap();
                self.forget(match choice % 3 {
                    0 => SmmuInvalidation::Guest(VMID),
                    _ => SmmuInvalidation::StageTwoPages { vmid: VMID, range },
                });
            }
            Step::Hole { place, clear } => return self.edit(place, clear),
            Step::Access { .. } => return,
        }
        self.forget_device(step, choice);
    }

    /// Has the device's own TLB forget what a change was about, or everything.
    fn forget_device(&self, step: Step, choice: u8) {
        let everything = Range { start: Iova(0), last: Iova(u64::MAX) };
        let page = |address| Range::<Iova>::new(Iova(address), 4096).unwrap();
        let range = match step {
            Step::Own { at, .. } if choice & 1 == 0 => page(BASE + at * 4096),
            Step::Global { at, .. } => page(GLOBAL + at * 4096),
            _ => everything,
        };
        match &self.host {
            _ if !self.ats => {}
            Some(host) => host.forget_device(&self.guest),
            None => {
                let (requester, pasid) = (DEVICE, None);
                self.guest.settle(Invalidation::DeviceTlb { requester, range });
                self.guest.settle(Invalidation::DeviceTlbPasid { requester, pasid, range });
            }
        }
    }

    /// Changes the host's stage 2, which needs no command of the guest's.
    fn edit(&mut self, place: Place, clear: bool) {
        if !self.has_stage_two {
            return;
        }
        let table = |guest: &mut Guest, root, levels, level| {
            guest.entry(root, levels, BASE, level, TABLE).0 & !0xfff
        };
        let (one, two) = (self.one, self.two);
        let pages = match place {
            Place::Data(page) => vec![data(page)],
            Place::One(level) => one.map(|root| table(&mut self.guest, root, 4, level)).into(),
            Place::Two(level) => vec![table(&mut self.guest, two, 3, level)],
            Place::Descriptors => vec![DESCRIPTORS.0],
            Place::FirstLevel => vec![self.first_level.0],
        };
        for page in pages {
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
    }

    fn forget_descriptor(&self, of: u64, old: u16, choice: u8) {
        let substream = pasid(of as u32);
        self.forget(match choice % 4 {
            0 => SmmuInvalidation::DescriptorAll { requester: DEVICE },
            1 => SmmuInvalidation::ConfigAll,
            _ => SmmuInvalidation::Descriptor { requester: DEVICE, substream },
        });
        self.forget(match choice >> 2 & 1 {
            0 => SmmuInvalidation::StageOneAsid { vmid: VMID, asid: Asid(old) },
            _ => SmmuInvalidation::StageOneAll(VMID),
        });
    }

    fn forget_own(&self, address: u64, choice: u8) {
        let range = Range::<Iova>::new(Iova(address), 4096).unwrap();
        let pages = PageRange { range, leaf_only: choice & 1 != 0 };
        let of = |asid| SmmuInvalidation::StageOnePages { vmid: VMID, asid, pages };
        match choice % 4 {
            0 => self.forget(SmmuInvalidation::StageOneAll(VMID)),
            1 => self.forget(of(None)),
            2 => ASIDS.for_each(|asid| self.forget(of(Some(Asid(asid))))),
            _ => ASIDS.for_each(|asid| {
                self.forget(SmmuInvalidation::StageOneAsid { vmid: VMID, asid: Asid(asid) });
            }),
        }
    }

    fn forget_global(&self, address: u64, choice: u8) {
        let range = Range::<Iova>::new(Iova(address), 4096).unwrap();
        let pages = PageRange { range, leaf_only: true };
        let of = |asid| SmmuInvalidation::StageOnePages { vmid: VMID, asid, pages };
        self.forget(match choice % 3 {
            0 => SmmuInvalidation::StageOneAll(VMID),
            1 => of(None),
            _ => of(Some(Asid(ASIDS.start + u16::from(choice) % 3))),
        });
    }

    fn load(&self, at: u64) -> u64 {
        self.guest.memory.load_u64(Gpa(at)).unwrap()
    }
}

fn stage_one_entry(page: &Page, global: u64) -> u64 {
    let flag = |on, bit| if on { bit } else { 0 };
    data(page.to)
        | flag(page.present, TABLE)
        | flag(page.user, EL0)
        | flag(!page.writable, READ_ONLY)
        | flag(page.accessed, AF)
        | global
}

/// `user` is whether it can be read.
fn stage_two_entry(page: &Page) -> u64 {
    let flag = |on, bit| if on { bit } else { 0 };
    data(page.to)
        | flag(page.present, TABLE)
        | flag(page.user, S2_READ)
        | flag(page.writable, S2_WRITE)
        | flag(page.accessed, AF)
}

/// Makes the access and compares its fault, or the word that it reached, with the reference.
fn access(world: &World, channel: &Channel, step: Step, stamp: u64) -> Result<(), TestCaseError> {
    let Step::Access { of, region, at, write, privileged } = step else { return Ok(()) };
    let base = match region {
        Region::Own => BASE,
        Region::Global => GLOBAL,
        Region::Large => LARGE,
    };
    let iova = base + at * 4096 + 0x40;
    let space = iommu::AddressSpace { pasid: of.map(pasid), privileged };
    let expected = world.reference(of, iova, write, privileged);
    if let Ok(gpa) = expected {
        world.guest.memory.store_u64(Gpa(gpa), stamp).unwrap();
    }
    let result = dma(channel, space, iova, if write { Op::Write } else { Op::Read });
    let fault = world.guest.vm.take_fault().map(|fault| {
        let hosts = fault.stage_two.filter(|stop| stop.owner == StageTwoOwner::Host);
        (fault.reason, hosts.map(|stop| stop.gpa))
    });
    match expected {
        Ok(gpa) => {
            prop_assert_eq!(fault, None, "{:?}", step);
            let (read, held) = if write { (0, 1) } else { (stamp, stamp) };
            prop_assert_eq!(result, Ok(read), "{:?}", step);
            prop_assert_eq!(world.load(gpa), held, "{:?}", step);
        }
        Err((stopped, recorded)) => {
            // A page fault of a device that asks for translations is its own business.
            let (reason, hosts) = stopped;
            let silent = world.ats && reason.is_recoverable() && hosts.is_none();
            prop_assert_eq!(fault, Some(stopped).filter(|_| recorded && !silent), "{:?}", step);
            prop_assert!(result.is_err(), "{:?}", step);
        }
    }
    Ok(())
}

/// Makes every step and compares what comes of each access.
fn run(mut world: World, channel: &Channel, steps: Vec<(Step, u8)>) -> Result<(), TestCaseError> {
    for (number, (step, choice)) in (2..).zip(steps) {
        world.change(step, choice);
        access(&world, channel, step, number << 8)?;
    }
    let counters = world.guest.vm.counters();
    prop_assert_eq!(counters.iotlb_misses, counters.walks);
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_is_cached_never_shows(ats: bool, steps in steps()) {
        let world = World::new(ats);
        let (endpoint, channel) = world.guest.attach();
        endpoint.set_ats(ats);
        run(world, &channel, steps)?;
    }

    #[test]
    fn nor_where_the_host_has_the_entry(ats: bool, steps in steps()) {
        let format = ArmStageTwo::new(Granule::Kib4, 44, 48).unwrap();
        let (format, layout) = (StageTwoFormat::Arm(format), Layout::Shuffled { seed: 13 });
        let stage_two = Some(StageTwoConfig { format, layout });
        let config = VmConfig { stage_two, ..VmConfig::named("hosted") };
        let host = SoftwareHost::with_hardware(Hardware::Smmuv3(SMMU));
        let world = World::on(Guest::with(&host, config), true, ats);
        let (endpoint, channel) = world.guest.attach();
        endpoint.set_ats(ats);
        run(world.attach(), &channel, steps)?;
    }
}
