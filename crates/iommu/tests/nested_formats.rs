//! Every format of stage 1 over every format of stage 2, the host's or the guest's own: where an
//! access ends, how much one translation covers, and what a fault says when either stage stops.
//!
//! Tables are written by hand. Those of the host are its own, so what it maps as a whole is asked
//! for without stage 1 first.
#![cfg(not(loom))]

mod common;

use std::sync::Arc;

use common::smmu::{
    linear, stream, AF, BLOCK, DESCRIPTOR, EL0, NOT_GLOBAL, S2_READ, S2_WRITE, SMMU, TABLE,
};
use common::*;
use iommu::{
    Channel, DefaultSubstream, DeviceContext, FaultReason, Invalidation, Layout, SmmuCaps,
    SmmuInvalidation, SmmuStageTwo, SoftwareHost, Stage, StageTwoConfig, StageTwoFault,
    StageTwoFormat, StageTwoOwner, StreamContext, StreamTranslation, Vm, VmConfig, WINDOW_LIMIT,
};
use mem::{Access, Gpa, GuestMemory, Iova, MemoryMap, Range};
use pgtable::{ArmStageTwo, Granule};

const CAPS_52: SmmuCaps = SmmuCaps { output_bits: 52, wide_addresses: true, ..SMMU };
/// Where data is: aligned to the largest page of every format.
const DATA: u64 = 1 << 30;
/// Tables, each alone in what the largest granule maps.
const FIRST_TABLE: u64 = 0x10_0000;
const TABLE_STEP: u64 = 0x1_0000;
/// Where the context descriptor is.
const DESCRIPTORS: u64 = 0xf_0000;
/// What of the data is mapped by last-level entries.
const BY_PAGES: u64 = 0x4_0000;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Arch {
    Vtd,
    Arm,
}

/// A format, as numbers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Geometry {
    arch: Arch,
    page_bits: u32,
    input_bits: u32,
    levels: u32,
}

const fn vtd(levels: u32) -> Geometry {
    Geometry { arch: Arch::Vtd, page_bits: 12, input_bits: 12 + 9 * levels, levels }
}

const fn arm(page_bits: u32, input_bits: u32, levels: u32) -> Geometry {
    Geometry { arch: Arch::Arm, page_bits, input_bits, levels }
}

/// Of stage 1.
const ONES: [Geometry; 11] = [
    vtd(4),
    vtd(5),
    arm(12, 39, 3),
    arm(12, 42, 4),
    arm(12, 48, 4),
    arm(14, 36, 2),
    arm(14, 47, 3),
    arm(14, 48, 4),
    arm(16, 42, 2),
    arm(16, 48, 3),
    arm(16, 52, 3),
];

/// Of stage 2; some of Arm's have several tables in a row for a root.
const TWOS: [Geometry; 10] = [
    vtd(3),
    vtd(4),
    vtd(5),
    arm(12, 39, 3),
    arm(12, 43, 3),
    arm(12, 44, 4),
    arm(14, 40, 2),
    arm(14, 48, 3),
    arm(16, 42, 2),
    arm(16, 46, 2),
];

impl Geometry {
    fn size_bits(&self, level: u32) -> u32 {
        self.page_bits + (self.page_bits - 3) * (level - 1)
    }

    fn size(&self, level: u32) -> u64 {
        1 << self.size_bits(level)
    }

    fn index(&self, level: u32, address: u64) -> u64 {
        let bits = match level == self.levels {
            true => self.input_bits - self.size_bits(level),
            false => self.page_bits - 3,
        };
        address >> self.size_bits(level) & ((1 << bits) - 1)
    }

    /// The highest level with pages.
    fn highest(&self) -> u32 {
        if self.page_bits == 12 {
            3
        } else {
            2
        }
    }

    fn granule(&self) -> Granule {
        match self.page_bits {
            12 => Granule::Kib4,
            14 => Granule::Kib16,
            _ => Granule::Kib64,
        }
    }

    fn arm_stage_two(&self) -> ArmStageTwo {
        let format = ArmStageTwo::new(self.granule(), self.input_bits as u8, 48).unwrap();
        assert_eq!(u32::from(pgtable::Format::levels(&format)), self.levels, "{self:?}");
        format
    }

    fn host(&self) -> StageTwoFormat {
        match (self.arch, self.levels) {
            (Arch::Vtd, 3) => StageTwoFormat::Vtd { levels: iommu::SecondStageLevels::Three },
            (Arch::Vtd, 4) => StageTwoFormat::Vtd { levels: iommu::SecondStageLevels::Four },
            (Arch::Vtd, _) => StageTwoFormat::Vtd { levels: iommu::SecondStageLevels::Five },
            (Arch::Arm, _) => StageTwoFormat::Arm(self.arm_stage_two()),
        }
    }

    fn link(&self, one: bool) -> u64 {
        match (self.arch, one) {
            (Arch::Vtd, true) => PRESENT | WRITABLE | USER,
            (Arch::Vtd, false) => SS_READ | SS_WRITE,
            (Arch::Arm, _) => TABLE,
        }
    }

    fn leaf(&self, one: bool, level: u32) -> u64 {
        let large = level > 1;
        match self.arch {
            Arch::Vtd => self.link(one) | if large { LARGE } else { 0 },
            Arch::Arm => {
                let rights = if one { EL0 | NOT_GLOBAL } else { S2_READ | S2_WRITE };
                AF | rights | if large { BLOCK } else { TABLE }
            }
        }
    }
}

/// Whose stage 2 lies below.
#[derive(Clone, Copy, Debug)]
enum Below {
    Host(Layout),
    Guest,
}

/// A guest over a stage 2.
struct World {
    guest: Guest,
    channel: Channel,
    _endpoint: iommu::Endpoint,
    two: Geometry,
    below: Below,
    /// Of the guest's own.
    two_root: u64,
    next: u64,
}

impl World {
    fn new(two: Geometry, below: Below) -> Self {
        let stage_two = match below {
            Below::Host(layout) => Some(StageTwoConfig { format: two.host(), layout }),
            Below::Guest => None,
        };
        let config = VmConfig { stage_two, ..VmConfig::named("formats") };
        let mut guest = Guest::with(&SoftwareHost::new(), config);
        let memory = MemoryMap::anonymous(&[(Gpa(0), MEMORY), (Gpa(DATA), 2 * two.size(2))]);
        guest.memory = Arc::new(memory.unwrap());
        wait(&guest.vm, guest.vm.set_memory(MemoryMap::clone(&guest.memory)));
        let (endpoint, channel) = guest.attach();
        let mut world = Self {
            guest,
            channel,
            _endpoint: endpoint,
            two,
            below,
            two_root: 0,
            next: FIRST_TABLE,
        };
        if matches!(below, Below::Guest) {
            world.map_two();
        }
        world
    }

    /// Room for a table.
    fn table(&mut self) -> u64 {
        self.root(1)
    }

    /// Room for a root of several tables in a row.
    fn root(&mut self, tables: u64) -> u64 {
        let root = self.next.next_multiple_of(tables * TABLE_STEP);
        self.next = root + tables * TABLE_STEP;
        assert!(self.next <= TABLES, "out of tables");
        root
    }

    /// The guest's own stage 2: tables by the smallest pages, data by larger ones.
    fn map_two(&mut self) {
        let two = self.two;
        self.two_root = self.root(16);
        let page = two.size(1);
        for at in (0..MEMORY).step_by(page as usize) {
            self.set(two, false, (self.two_root, at, 1), at);
        }
        for at in (DATA..DATA + 2 * two.size(2)).step_by(two.size(2) as usize) {
            self.set(two, false, (self.two_root, at, 2), at);
        }
    }

    /// Maps `address` to `output` at a level; tables on the way are made.
    fn set(
        &mut self,
        of: Geometry,
        one: bool,
        (root, address, level): (u64, u64, u32),
        output: u64,
    ) {
        let mut table = root;
        for above in (level + 1..=of.levels).rev() {
            let at = Gpa(table + 8 * of.index(above, address));
            let held = self.guest.memory.load_u64(at).unwrap();
            table = held & 0x0000_ffff_ffff_f000;
            if held == 0 {
                table = self.table();
                self.guest.memory.store_u64(at, table | of.link(one)).unwrap();
            }
        }
        let at = Gpa(table + 8 * of.index(level, address));
        self.guest.memory.store_u64(at, output | of.leaf(one, level)).unwrap();
    }

    /// The entries that a walk for `address` uses, from the root on, down to `level`.
    fn path(&self, of: Geometry, root: u64, address: u64, level: u32) -> Vec<u64> {
        let mut table = root;
        let mut path = Vec::new();
        for at in (level..=of.levels).rev() {
            let entry = table + 8 * of.index(at, address);
            table = self.guest.memory.load_u64(Gpa(entry)).unwrap() & 0x0000_ffff_ffff_f000;
            path.push(entry);
        }
        path
    }

    fn forget(&self) {
        self.guest.settle_all();
        self.guest.settle(Invalidation::Smmuv3(SmmuInvalidation::ConfigAll));
        self.guest.settle(Invalidation::Smmuv3(SmmuInvalidation::TlbAll));
    }

    /// Has requests without PASID translated by the stage 1 at `root`.
    fn install(&mut self, one: Geometry, root: u64) {
        match one.arch {
            Arch::Vtd => {
                let domain = DOMAIN.0.into();
                let first = root | u64::from(one.levels == 5) << 2;
                let words = match self.below {
                    Below::Host(_) => [1 | 1 << 6, domain, first, 0, 0, 0, 0, 0],
                    Below::Guest => {
                        let width = u64::from(self.two.levels - 2) << 2;
                        [1 | 3 << 6 | width | self.two_root, domain, first, 0, 0, 0, 0, 0]
                    }
                };
                self.guest.set_pasid(0, words);
                self.guest.set_context(DeviceContext::PasidTable(self.guest.pasid_table()));
            }
            Arch::Arm => {
                // T0SZ, TG0; IPS 6 is 52 bits, or as many as the granule has room for.
                let size = u64::from(64 - one.input_bits);
                let granule = u64::from(one.granule().tg0()) << 6;
                let word0 = DESCRIPTOR & !(7 << 32 | 0x3f) | 6 << 32 | size | granule;
                let table = Gpa(DESCRIPTORS);
                self.guest.set_descriptor(table, 0, [word0, root, 0, 0, 0, 0, 0, 0]);
                let table = linear(table, 0, DefaultSubstream::Zero);
                let translation = match self.below {
                    Below::Host(_) => StreamTranslation::StageOne(table),
                    Below::Guest => {
                        let (root, format) = (Gpa(self.two_root), self.two.arm_stage_two());
                        let two = SmmuStageTwo { root, format, record: true };
                        StreamTranslation::Nested(table, two)
                    }
                };
                let DeviceContext::Smmuv3(context) = stream(translation) else { unreachable!() };
                let context = StreamContext { caps: CAPS_52, ..context };
                self.guest.set_context(DeviceContext::Smmuv3(context));
            }
        }
        self.forget();
    }

    fn window(&self, at: u64) -> usize {
        let access = self.channel.enter();
        access.window(without(), Iova(at), WINDOW_LIMIT, Access::Write).map_or(0, |one| one.len())
    }

    /// How much stage 2 maps as a whole at an offset in the data.
    fn covered(&mut self, offset: u64) -> u64 {
        let (page, large) = (self.two.size(1), self.two.size(2));
        if let Below::Guest | Below::Host(Layout::Identity) = self.below {
            return large;
        }
        let context =
            DeviceContext::PassThrough { domain: DOMAIN, ats: false, fault_disable: false };
        self.guest.set_context(context);
        self.forget();
        // Its pages are apart if the first ends with a window.
        let frame = DATA + offset / large * large;
        match self.window(frame + page - 0x100) {
            0x100 => page,
            _ => large,
        }
    }

    /// Takes the page at `gpa` out of stage 2; what puts it back.
    fn clear(&mut self, gpa: u64) -> Hole {
        let level = if gpa < DATA { 1 } else { 2 };
        match self.below {
            Below::Host(_) => {
                let range = Range::<Gpa>::new(Gpa(gpa & !0xfff), 0x1000).unwrap();
                wait(&self.guest.vm, self.guest.vm.clear_stage_two(range).unwrap());
                Hole { level: 1, undo: Undo::Range(range) }
            }
            Below::Guest => {
                let entry = *self.path(self.two, self.two_root, gpa, level).last().unwrap();
                let held = self.guest.memory.load_u64(Gpa(entry)).unwrap();
                self.guest.memory.store_u64(Gpa(entry), 0).unwrap();
                self.forget();
                Hole { level: level as u8, undo: Undo::Entry(Gpa(entry), held) }
            }
        }
    }

    fn restore(&self, undo: Undo) {
        match undo {
            Undo::Range(range) => {
                wait(&self.guest.vm, self.guest.vm.restore_stage_two(range).unwrap());
            }
            Undo::Entry(at, held) => {
                self.guest.memory.store_u64(at, held).unwrap();
                self.forget();
            }
        }
    }
}

/// What stage 2 does not have.
struct Hole {
    /// Where a walk finds that.
    level: u8,
    undo: Undo,
}

enum Undo {
    Range(Range<Gpa>),
    Entry(Gpa, u64),
}

/// One address space over a stage 2: a GiB for each level with pages, by pages of that level.
fn address_space(world: &mut World, one: Geometry) {
    let root = world.table();
    let large = world.two.size(2);
    let memory = 2 * large;
    let mut mapped = Vec::new();
    for level in 1..=one.highest() {
        let len = if level == 1 { BY_PAGES } else { memory.min(1 << 30).max(one.size(level)) };
        for offset in (0..len).step_by(one.size(level) as usize) {
            let address = (u64::from(level) << 30) + offset;
            world.set(one, true, (root, address, level), DATA + offset);
        }
        mapped.push((level, len.min(memory)));
    }
    for (level, len) in mapped {
        let base = u64::from(level) << 30;
        let size = one.size(level);
        let near = [0, 0x1000, 0x3f00, 0x4000, 0xff00, 0x1_0000, large, 2 * large, size];
        for end in near {
            for offset in [end.saturating_sub(0x100), end, end + 0xf00] {
                if offset >= len {
                    continue;
                }
                let composite = size.min(world.covered(offset));
                world.install(one, root);
                let left = composite - offset % composite;
                let what = format!("{one:?} at level {level}, offset {offset:#x}");
                let what = format!("{what}, over {:?} {:?}", world.below, world.two);
                let len = world.window(base + offset) as u64;
                assert_eq!(len, left.min(WINDOW_LIMIT as u64), "{what}");
                ends(world, base + offset, DATA + offset, &what);
            }
        }
        let what = format!("{one:?} at level {level}, over {:?} {:?}", world.below, world.two);
        stops(world, (one, root, level), (base + 0x128, DATA + 0x128), &what);
    }
}

/// An access to `at` ends at `gpa`.
fn ends(world: &World, at: u64, gpa: u64, what: &str) {
    world.guest.memory.store_u64(Gpa(gpa), 0xfeed ^ gpa).unwrap();
    assert_eq!(dma(&world.channel, without(), at, Op::Atomic), Ok(0xfeed ^ gpa), "{what}");
    assert_eq!(world.guest.memory.load_u64(Gpa(gpa)), Ok((0xfeed ^ gpa) + 1), "{what}");
}

/// Stage 2 stops an access where it ends, and at each table on the way.
fn stops(
    world: &mut World,
    (one, root, level): (Geometry, u64, u32),
    (at, gpa): (u64, u64),
    what: &str,
) {
    let owner = match world.below {
        Below::Host(_) => StageTwoOwner::Host,
        Below::Guest => StageTwoOwner::Guest,
    };
    let tables = world.path(one, root, at, level).into_iter().map(|entry| (entry, true));
    for (gpa, table) in tables.chain([(gpa, false)]) {
        let Hole { level, undo } = world.clear(gpa);
        assert!(dma(&world.channel, without(), at, Op::Read).is_err(), "{what}");
        let fault = world.guest.vm.take_fault().unwrap();
        let stage = if table { Stage::TwoForTable } else { Stage::Two };
        let stop = StageTwoFault { gpa: Gpa(gpa), table, level, owner };
        let expected = (FaultReason::NotPresent { stage, level }, Some(stop));
        assert_eq!((fault.reason, fault.stage_two), expected, "{what}");
        world.restore(undo);
        assert!(dma(&world.channel, without(), at, Op::Read).is_ok(), "{what}");
    }
    // Nothing is mapped in the next GiB after the last.
    let absent = u64::from(one.highest() + 1) << 30;
    assert!(dma(&world.channel, without(), absent, Op::Read).is_err(), "{what}");
    let fault = world.guest.vm.take_fault().unwrap();
    let level = if one.page_bits == 12 { 3 } else { 2 };
    let expected = (FaultReason::NotPresent { stage: Stage::One, level }, None);
    assert_eq!((fault.reason, fault.stage_two), expected, "{what}");
}

fn run(below: Below) -> usize {
    let mut combinations = 0;
    for two in TWOS {
        for one in ONES {
            // A unit has no tables of the other's.
            if matches!(below, Below::Guest) && one.arch != two.arch {
                continue;
            }
            address_space(&mut World::new(two, below), one);
            combinations += 1;
        }
    }
    combinations
}

#[test]
fn over_the_hosts_in_order() {
    assert_eq!(run(Below::Host(Layout::Identity)), 110);
}

#[test]
fn over_the_hosts_in_disorder() {
    assert_eq!(run(Below::Host(Layout::Shuffled { seed: 11 })), 110);
}

#[test]
fn over_the_guests_own() {
    assert_eq!(run(Below::Guest), 2 * 3 + 9 * 7);
}
