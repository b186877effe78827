//! The engine behind an SMMUv3 against a slow reference: random tables, descriptors, streams,
//! commands and accesses.
//!
//! The reference keeps nothing. For each access it walks the guest's memory from the context
//! descriptor on, with masks written out by hand, so what the engine caches must never show.
#![cfg(not(loom))]

mod common;

use common::smmu::*;
use common::*;
use iommu::{
    Asid, Channel, DefaultSubstream, DescriptorForm, DescriptorTable, FaultReason, Invalidation,
    PageRange, SmmuInvalidation, Stage, StreamTranslation, Vm,
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
    let step = prop_oneof![
        2 => (kind, default, form).prop_map(|(kind, default, form)| Step::Stream { kind, default, form }),
        2 => (0..4u64, 0..2usize, prop::bool::weighted(0.85), ASIDS, any::<bool>()).prop_map(
            |(of, table, valid, asid, record)| Step::Descriptor { of, table, valid, asid, record }
        ),
        2 => (0..2usize, 0..PAGES, page()).prop_map(|(table, at, page)| Step::Own { table, at, page }),
        1 => (0..PAGES, page()).prop_map(|(at, page)| Step::Global { at, page }),
        1 => (0..2usize, any::<bool>()).prop_map(|(table, mapped)| Step::Large { table, mapped }),
        2 => (0..DATA_PAGES, page()).prop_map(|(at, page)| Step::Two { at, page }),
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
}

impl World {
    fn new() -> Self {
        let mut guest = Guest::new();
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
        let world = Self { guest, one, two, first_level, kind, default, form, asids: [1; 4] };
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
        self.guest.set_context(stream(match self.kind {
            Kind::Abort => StreamTranslation::Abort,
            Kind::Bypass => StreamTranslation::Bypass,
            Kind::One => StreamTranslation::StageOne(table),
            Kind::Two => StreamTranslation::StageTwo(stage_two(self.two)),
            Kind::Nested => StreamTranslation::Nested(table, stage_two(self.two)),
        }));
    }

    fn forget(&self, what: SmmuInvalidation) {
        self.guest.settle(Invalidation::Smmuv3(what));
    }

    /// Carries out a change and gives the commands for it, one of several sufficient sets.
    fn change(&mut self, step: Step, choice: u8) {
        match step {
            Step::Stream { kind, default, form } => {
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
            Step::Access { .. } => {}
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
        match choice % 5 {
            0 => self.forget(SmmuInvalidation::StageOneAll(VMID)),
            1 => self.forget(of(None)),
            2 => ASIDS.for_each(|asid| self.forget(of(Some(Asid(asid))))),
            3 => ASIDS.for_each(|asid| {
                self.forget(SmmuInvalidation::StageOneAsid { vmid: VMID, asid: Asid(asid) });
            }),
            _ => {
                // The device's TLB is the only one there is.
                let range = Range { start: Iova(0), last: Iova(u64::MAX) };
                self.guest.settle(Invalidation::DeviceTlb { requester: DEVICE, range });
                let pasid = None;
                self.guest.settle(Invalidation::DeviceTlbPasid { requester: DEVICE, pasid, range });
            }
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

/// Where an access goes, by the tables alone; with the fault comes whether it is recorded.
impl World {
    fn reference(
        &self,
        of: Option<u32>,
        iova: u64,
        write: bool,
        privileged: bool,
    ) -> Result<u64, (FaultReason, bool)> {
        let bypass = || match self.kind {
            Kind::Two | Kind::Nested => {
                self.second(iova, write, Stage::Two).map_err(|reason| (reason, true))
            }
            _ => Ok(iova),
        };
        let refused = |reason| Err((reason, true));
        match self.kind {
            Kind::Abort => return Err((FaultReason::ContextNotPresent, false)),
            Kind::Bypass | Kind::Two if of.is_some() => return refused(FaultReason::PasidDisabled),
            Kind::Bypass | Kind::Two => return bypass(),
            Kind::One | Kind::Nested => {}
        }
        let (number, privileged) = match (of, self.default) {
            (None, DefaultSubstream::Terminate) => return refused(FaultReason::PasidRequired),
            (None, DefaultSubstream::Bypass) => return bypass(),
            (None, DefaultSubstream::Zero) => (0, false),
            (Some(0), DefaultSubstream::Zero) => return refused(FaultReason::PasidRange),
            (Some(number), _) if number > 3 => return refused(FaultReason::PasidRange),
            (Some(number), _) => (number, privileged),
        };
        // The pages of stage 2 that can change are not those of descriptors.
        let word0 = self.load(DESCRIPTORS.0 + 64 * u64::from(number));
        let root = self.load(DESCRIPTORS.0 + 64 * u64::from(number) + 8);
        if word0 >> 31 & 1 == 0 {
            return refused(FaultReason::PasidEntryNotPresent);
        }
        self.first(root, iova, write, privileged)
            .map_err(|(stage, reason)| (reason, stage != Stage::One || word0 & RECORD != 0))
    }

    fn first(
        &self,
        root: u64,
        iova: u64,
        write: bool,
        privileged: bool,
    ) -> Result<u64, (Stage, FaultReason)> {
        let mut table = root;
        let stage = Stage::One;
        let second = |address, write, stage| match self.kind {
            Kind::Nested => self.second(address, write, stage).map_err(|reason| (stage, reason)),
            _ => Ok(address),
        };
        for level in (1..=4u8).rev() {
            let shift = 12 + 9 * (u64::from(level) - 1);
            let at = second(table + (iova >> shift & 0x1ff) * 8, false, Stage::TwoForTable)?;
            let entry = self.load(at);
            if entry & F_PRESENT == 0 {
                return Err((stage, FaultReason::NotPresent { stage, level }));
            }
            table = entry & 0x0000_ffff_ffff_f000;
            if level > 1 && entry & 0b10 != 0 {
                continue;
            }
            if entry & AF == 0 {
                return Err((stage, FaultReason::AccessFlag { stage, level }));
            }
            if !privileged && entry & EL0 == 0 {
                return Err((stage, FaultReason::Permission { stage, user: true }));
            }
            if write && entry & READ_ONLY != 0 {
                return Err((stage, FaultReason::Permission { stage, user: false }));
            }
            return second(table | iova & ((1 << shift) - 1), write, Stage::Two);
        }
        unreachable!()
    }

    fn second(&self, address: u64, write: bool, stage: Stage) -> Result<u64, FaultReason> {
        let mut table = self.two.0;
        for level in (1..=3u8).rev() {
            let shift = 12 + 9 * (u64::from(level) - 1);
            let entry = self.load(table + (address >> shift & 0x1ff) * 8);
            if entry & F_PRESENT == 0 {
                return Err(FaultReason::NotPresent { stage, level });
            }
            table = entry & 0x0000_ffff_ffff_f000;
            if level > 1 {
                continue;
            }
            if entry & AF == 0 {
                return Err(FaultReason::AccessFlag { stage, level });
            }
            let needed = if write { S2_WRITE } else { S2_READ };
            if entry & needed == 0 {
                return Err(FaultReason::Permission { stage, user: false });
            }
        }
        Ok(table | address & 0xfff)
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
    let fault = world.guest.vm.take_fault().map(|fault| fault.reason);
    match expected {
        Ok(gpa) => {
            prop_assert_eq!(fault, None, "{:?}", step);
            let (read, held) = if write { (0, 1) } else { (stamp, stamp) };
            prop_assert_eq!(result, Ok(read), "{:?}", step);
            prop_assert_eq!(world.load(gpa), held, "{:?}", step);
        }
        Err((reason, recorded)) => {
            prop_assert_eq!(fault, recorded.then_some(reason), "{:?}", step);
            prop_assert!(result.is_err(), "{:?}", step);
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_is_cached_never_shows(steps in steps()) {
        let mut world = World::new();
        let (_endpoint, channel) = world.guest.attach();
        for (number, (step, choice)) in (2..).zip(steps) {
            world.change(step, choice);
            access(&world, &channel, step, number << 8)?;
        }
        let counters = world.guest.vm.counters();
        prop_assert_eq!(counters.iotlb_misses, counters.walks);
    }
}
