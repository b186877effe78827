//! Arm's stage 1 with every granule and size, in both halves, over every stage 2: none, one of the
//! guest's own with every granule, and one of the host's in every format.
#![cfg(not(loom))]

mod common;

use std::sync::Arc;

use common::smmu::{asid, stream, DESCRIPTOR, SMMU};
use common::*;
use iommu::format::smmuv3::Descriptor;
use iommu::{
    DefaultSubstream, DescriptorForm, DescriptorTable, DeviceContext, FaultReason, Layout,
    SmmuCaps, SmmuStageTwo, SoftwareHost, Stage, StageTwoConfig, StageTwoFormat, StreamContext,
    StreamTranslation, Vm, VmConfig,
};
use mem::{Gpa, GuestMemory, MemError, MemoryMap};
use pgtable::{ArmStageTwo, ArmTable, Format, Granule, Map, PageTable, Pages, Rights, Tables};

const CAPS: SmmuCaps = SmmuCaps { output_bits: 52, wide_addresses: true, ..SMMU };
/// Where the page is memory: aligned to the largest granule.
const DATA: u64 = 0x30_0000;
/// Tables are made from here on; `Guest` makes its own below.
const FIRST_TABLE: u64 = 0xc0_0000;

/// Tables in a guest's memory.
struct InMemory {
    memory: Arc<MemoryMap>,
    next: u64,
}

impl Tables for InMemory {
    type Error = MemError;

    fn load(&self, entry: u64) -> Result<u64, MemError> {
        self.memory.load_u64(Gpa(entry))
    }

    fn compare_exchange(
        &self,
        entry: u64,
        current: u64,
        new: u64,
    ) -> Result<Result<u64, u64>, MemError> {
        self.memory.compare_exchange_u64(Gpa(entry), current, new)
    }
}

impl Pages for InMemory {
    fn allocate(&mut self, size_bits: u32) -> Option<u64> {
        let table = self.next.next_multiple_of(1 << size_bits);
        self.next = table + (1 << size_bits);
        assert!(self.next <= MEMORY, "out of memory for tables");
        self.memory.write(Gpa(table), &vec![0; 1 << size_bits]).unwrap();
        Some(table)
    }

    fn free(&mut self, _: u64, _: u32) {}
}

#[derive(Clone, Copy, Debug)]
enum Over {
    Nothing,
    Guests(Granule, u8),
    Hosts(StageTwoFormat),
}

fn all_overs() -> Vec<Over> {
    let arm = |granule, input| ArmStageTwo::new(granule, input, 48).unwrap();
    let vtd = [
        iommu::SecondStageLevels::Three,
        iommu::SecondStageLevels::Four,
        iommu::SecondStageLevels::Five,
    ];
    let guests = [(Granule::Kib4, 40), (Granule::Kib16, 40), (Granule::Kib64, 42)];
    let mut overs = vec![Over::Nothing];
    overs.extend(guests.map(|(granule, bits)| Over::Guests(granule, bits)));
    overs.extend(vtd.map(|levels| Over::Hosts(StageTwoFormat::Vtd { levels })));
    overs.extend(
        [arm(Granule::Kib4, 39), arm(Granule::Kib16, 48), arm(Granule::Kib64, 42)]
            .map(|format| Over::Hosts(StageTwoFormat::Arm(format))),
    );
    overs
}

/// The words of a descriptor for one half, and the table that it names.
fn half(is_high: bool, granule: Granule, bits: u8, root: u64) -> ([u64; 8], ArmTable) {
    let size = 64 - u64::from(bits);
    // IPS 6 is 52 bits, or as many as the granule has room for.
    let ips = 6 << 32;
    let common = (DESCRIPTOR & !(1 << 30 | 7 << 32 | 0x3f)) | ips | asid(3);
    let words = if is_high {
        let word0 = common | 1 << 14 | size << 16 | u64::from(granule.tg1()) << 22;
        [word0, 0, root, 0, 0, 0, 0, 0]
    } else {
        let word0 = common | 1 << 30 | size | u64::from(granule.tg0()) << 6;
        [word0, root, 0, 0, 0, 0, 0, 0]
    };
    let tables = Descriptor::from_words(words).decode(&CAPS).unwrap().tables;
    (words, if is_high { tables.high } else { tables.low }.unwrap())
}

fn map<F: Format>(table: &mut PageTable<F>, pages: &mut InMemory, map: (u64, u64, u64)) {
    let (address, output, len) = map;
    let rights = Rights::READ | Rights::WRITE | Rights::USER;
    let largest = 2;
    table.map(pages, &Map { address, output, len, rights, largest }).unwrap();
}

/// A guest whose device has one descriptor.
struct World {
    guest: Guest,
    pages: InMemory,
    two: Option<SmmuStageTwo>,
    descriptor: Gpa,
}

impl World {
    fn new(over: Over) -> Self {
        let layout = Layout::Shuffled { seed: 7 };
        let stage_two = match over {
            Over::Hosts(format) => Some(StageTwoConfig { format, layout }),
            _ => None,
        };
        let config = VmConfig { stage_two, ..VmConfig::named("formats") };
        let mut guest = Guest::with(&SoftwareHost::new(), config);
        let mut pages = InMemory { memory: guest.memory.clone(), next: FIRST_TABLE };
        let two = match over {
            Over::Guests(granule, bits) => {
                let format = ArmStageTwo::new(granule, bits, 48).unwrap();
                let mut table = PageTable::new(format, &mut pages).unwrap();
                map(&mut table, &mut pages, (0, 0, MEMORY));
                Some(SmmuStageTwo { root: Gpa(table.root()), format, record: true })
            }
            _ => None,
        };
        let descriptor = guest.table();
        Self { guest, pages, two, descriptor }
    }

    /// Has the device translated by a descriptor.
    fn set(&self, words: [u64; 8]) {
        self.guest.set_descriptor(self.descriptor, 0, words);
        let (form, default) = (DescriptorForm::Linear, DefaultSubstream::Zero);
        let table = DescriptorTable { root: self.descriptor, bits: 0, form, default };
        let translation = match self.two {
            None => StreamTranslation::StageOne(table),
            Some(two) => StreamTranslation::Nested(table, two),
        };
        let DeviceContext::Smmuv3(context) = stream(translation) else { unreachable!() };
        let context = DeviceContext::Smmuv3(StreamContext { caps: CAPS, ..context });
        self.guest.set_stream(translation);
        self.guest.set_context(context);
    }
}

#[test]
fn every_combination() {
    let sizes = [
        (Granule::Kib4, &[25, 39, 48][..]),
        (Granule::Kib16, &[36, 42, 47, 48]),
        (Granule::Kib64, &[39, 42, 48, 52]),
    ];
    for over in all_overs() {
        for (granule, widths) in sizes {
            for &bits in widths {
                let mut world = World::new(over);
                for is_high in [false, true] {
                    one(&mut world, over, granule, bits, is_high);
                }
            }
        }
    }
}

fn one(world: &mut World, over: Over, granule: Granule, bits: u8, is_high: bool) {
    let what = format!("{granule:?}, {bits} bits, high: {is_high}, {over:?}");
    let page = 1u64 << granule.bits();
    let (first, last) = if is_high { (!0 << bits, u64::MAX) } else { (0, (1u64 << bits) - 1) };

    let (_, ArmTable { format, .. }) = half(is_high, granule, bits, 0);
    let mut table = PageTable::new(format, &mut world.pages).unwrap();
    let inside = |address: u64| address & ((1u64 << bits) - 1);
    map(&mut table, &mut world.pages, (inside(first), DATA, page));
    map(&mut table, &mut world.pages, (inside(last - (page - 1)), DATA + page, page));
    // As its owner has it: marked by processors.
    world.set(half(is_high, granule, bits, table.root()).0);
    let (endpoint, channel) = world.guest.attach();

    let word = |gpa| world.guest.memory.load_u64(Gpa(gpa)).unwrap();
    for (address, gpa) in [(first, DATA), (last - 7, DATA + 2 * page - 8)] {
        world.guest.memory.store_u64(Gpa(gpa), 0xfeed).unwrap();
        for op in [Op::Read, Op::Atomic] {
            let read = dma(&channel, without(), address, op);
            assert_eq!(read, Ok(0xfeed), "{what}: {:?}", world.guest.vm.take_fault());
        }
        assert_eq!(word(gpa), 0xfeee, "{what}");
    }
    let level = format.levels();
    for (address, level) in [
        (first + page, 1),
        (last - 7 - page, 1),
        // Just outside.
        (if is_high { first - page } else { last + 1 }, level),
    ] {
        assert!(dma(&channel, without(), address, Op::Read).is_err(), "{what}");
        let fault = world.guest.vm.take_fault().unwrap();
        let expected = FaultReason::NotPresent { stage: Stage::One, level };
        assert_eq!((fault.reason, fault.stage_two), (expected, None), "{what}, {address:#x}");
    }
    drop((endpoint, channel));
}
