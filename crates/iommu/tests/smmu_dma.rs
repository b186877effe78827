//! One DMA through an SMMUv3: every configuration, substream and state of the page, and the event
//! that tells of its fault.
#![cfg(not(loom))]

mod common;

use common::smmu::*;
use common::*;
use iommu::format::smmuv3::event;
use iommu::{
    AddressSpace, Channel, DefaultSubstream, DescriptorForm, DescriptorTable, DeviceContext,
    DmaError, FaultReason, Invalidation, SmmuInvalidation, Stage, StreamContext,
    StreamTranslation as Stream, Vm,
};
use mem::{Gpa, GuestMemory, Iova};

/// Where the page in question is memory.
const DATA: u64 = 0x0030_0000;
/// Where devices see it, if it is translated.
const IOVA: u64 = 0x12_3456_7000;
const OFFSET: u64 = 0x128;
const SUBSTREAM: u32 = 3;

/// Makes one access; its result, and the reason and the event's number of its fault.
fn one(
    guest: &Guest,
    channel: &Channel,
    space: AddressSpace,
    at: u64,
    op: Op,
) -> (Result<u64, DmaError>, Option<(FaultReason, u8)>) {
    let result = dma(channel, space, at, op);
    let fault = guest.vm.take_fault().map(|fault| {
        assert_eq!((fault.requester, fault.pasid), (DEVICE, space.pasid));
        (fault.reason, event(&fault).map_or(0, |event| event.word0.id()))
    });
    assert_eq!(guest.vm.take_fault(), None);
    (result, fault)
}

fn reason_of(
    guest: &Guest,
    channel: &Channel,
    space: AddressSpace,
    at: u64,
) -> Option<FaultReason> {
    one(guest, channel, space, at, Op::Read).1.map(|(reason, _)| reason)
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Config {
    Abort,
    Bypass,
    StageOne,
    StageTwo,
    Nested,
}

/// What answers a request: what its data tells.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Answer {
    /// The page of a descriptor.
    Descriptor(u64),
    /// The page at the address itself.
    Bypass,
    /// A fault, by its event.
    Event(u8),
    /// Refused, and nobody is told.
    Silent,
}

/// What IHI 0070 says (3.3.2, 5.2).
fn expected(config: Config, bits: u8, default: DefaultSubstream, substream: Option<u32>) -> Answer {
    const F_STREAM_DISABLED: u8 = 0x06;
    const C_BAD_SUBSTREAMID: u8 = 0x08;
    match (config, substream) {
        (Config::Abort, _) => Answer::Silent,
        (Config::Bypass | Config::StageTwo, None) => Answer::Bypass,
        (Config::Bypass | Config::StageTwo, Some(_)) => Answer::Event(C_BAD_SUBSTREAMID),
        (_, None) if bits == 0 => Answer::Descriptor(0),
        (_, Some(_)) if bits == 0 => Answer::Event(C_BAD_SUBSTREAMID),
        (_, Some(number)) if number >> bits != 0 => Answer::Event(C_BAD_SUBSTREAMID),
        (_, Some(0)) if default == DefaultSubstream::Zero => Answer::Event(C_BAD_SUBSTREAMID),
        (_, Some(number)) => Answer::Descriptor(number.into()),
        (_, None) => match default {
            DefaultSubstream::Terminate => Answer::Event(F_STREAM_DISABLED),
            DefaultSubstream::Bypass => Answer::Bypass,
            DefaultSubstream::Zero => Answer::Descriptor(0),
        },
    }
}

#[test]
fn substreams() {
    let mut guest = Guest::new();
    let (_endpoint, channel) = guest.attach();
    let table = guest.table();
    let two = stage_two(guest.identity_two(true));
    // What a request finds at 0x20_0000 says by which descriptor.
    const AT: u64 = 0x20_0000;
    for substream in 0..16 {
        let root = guest.table();
        let data = DATA + substream * 4096;
        guest.set_one(root, AT, 1, data | PAGE);
        guest.set_descriptor(table, substream, descriptor(root, asid(substream as u16)));
        guest.memory.store_u64(Gpa(data), substream).unwrap();
    }
    guest.memory.store_u64(Gpa(AT), 0xb9).unwrap();
    for config in
        [Config::Abort, Config::Bypass, Config::StageOne, Config::StageTwo, Config::Nested]
    {
        for default in
            [DefaultSubstream::Terminate, DefaultSubstream::Bypass, DefaultSubstream::Zero]
        {
            for bits in [0, 4] {
                let table = linear(table, bits, default);
                guest.set_stream(match config {
                    Config::Abort => Stream::Abort,
                    Config::Bypass => Stream::Bypass,
                    Config::StageOne => Stream::StageOne(table),
                    Config::StageTwo => Stream::StageTwo(two),
                    Config::Nested => Stream::Nested(table, two),
                });
                for substream in [None, Some(0), Some(1), Some(15), Some(16), Some(0xf_ffff)] {
                    let space = substream.map_or(without(), with);
                    let (result, fault) = one(&guest, &channel, space, AT, Op::Read);
                    let answer = match (result, fault) {
                        (Ok(0xb9), None) => Answer::Bypass,
                        (Ok(number), None) => Answer::Descriptor(number),
                        (Err(_), Some((_, event))) => Answer::Event(event),
                        (Err(_), None) => Answer::Silent,
                        other => panic!("{other:?}"),
                    };
                    let expected = expected(config, bits, default, substream);
                    assert_eq!(answer, expected, "{config:?} {bits} {default:?} {substream:?}");
                }
            }
        }
    }
}

/// What the tables say of the page.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    Mapped,
    NotMapped,
    ReadOnly,
    AccessFlag,
    /// A descriptor of a reserved kind.
    Reserved,
    /// An output address that is too wide.
    TooWide,
    BadTable,
}

const STATES: [State; 7] = [
    State::Mapped,
    State::NotMapped,
    State::ReadOnly,
    State::AccessFlag,
    State::Reserved,
    State::TooWide,
    State::BadTable,
];

/// Beyond 44 bits.
const TOO_WIDE: u64 = 1 << 44;

fn prepare(guest: &mut Guest, config: Config, state: State) {
    let (one, two, table) = (guest.table(), guest.table(), guest.table());
    let (at, page, read_only) = match config {
        Config::StageTwo => (two, S2_PAGE, S2_PAGE & !S2_WRITE),
        _ => (one, PAGE, PAGE | READ_ONLY),
    };
    let (level, entry) = match state {
        State::Mapped => (1, DATA | page),
        State::NotMapped => (1, 0),
        State::ReadOnly => (1, DATA | read_only),
        State::AccessFlag => (1, DATA | page & !AF),
        State::Reserved => (1, DATA | page & !0b10),
        State::TooWide => (1, TOO_WIDE | page),
        State::BadTable => (2, NOWHERE | TABLE),
    };
    match config {
        Config::StageTwo => guest.set_two(at, IOVA, level, entry),
        _ => guest.set_one(at, IOVA, level, entry),
    };
    guest.set_descriptor(table, SUBSTREAM.into(), descriptor(one, asid(9)));
    guest.set_descriptor(table, 0, descriptor(one, asid(8)));
    let table = linear(table, 4, DefaultSubstream::Zero);
    let translation = match config {
        Config::StageOne => Stream::StageOne(table),
        Config::StageTwo => Stream::StageTwo(stage_two(two)),
        _ => Stream::Nested(table, stage_two(guest.identity_two(true))),
    };
    guest.set_stream(translation);
}

/// The fault, and the number of its event; `None` if the access passes.
fn fault_of(config: Config, state: State, op: Op) -> Option<(FaultReason, u8)> {
    use FaultReason as R;
    let stage = if config == Config::StageTwo { Stage::Two } else { Stage::One };
    Some(match state {
        State::Mapped => return None,
        State::NotMapped => (R::NotPresent { stage, level: 1 }, 0x10),
        State::ReadOnly if op == Op::Read => return None,
        State::ReadOnly => (R::Permission { stage, user: false }, 0x13),
        State::AccessFlag => (R::AccessFlag { stage, level: 1 }, 0x12),
        State::Reserved => (R::NotPresent { stage, level: 1 }, 0x10),
        State::TooWide => (R::AddressWidth { stage }, 0x11),
        // Where there is no memory, stage 2 maps nothing.
        State::BadTable if config == Config::Nested => {
            (R::NotPresent { stage: Stage::TwoForTable, level: 3 }, 0x10)
        }
        State::BadTable => of_no_memory(
            (R::TableAccess { stage, level: 1 }, 0x0b),
            (R::NotPresent { stage: Stage::TwoForTable, level: 3 }, 0x10),
        ),
    })
}

#[test]
fn every_combination() {
    for config in [Config::StageOne, Config::StageTwo, Config::Nested] {
        for state in STATES {
            let mut guest = Guest::new();
            prepare(&mut guest, config, state);
            let (_endpoint, channel) = guest.attach();
            for space in [without(), with(SUBSTREAM)] {
                if config == Config::StageTwo && space.pasid.is_some() {
                    continue;
                }
                for op in Op::ALL {
                    check(&guest, &channel, config, state, space, op);
                }
            }
        }
    }
}

fn check(
    guest: &Guest,
    channel: &Channel,
    config: Config,
    state: State,
    space: AddressSpace,
    op: Op,
) {
    let what = format!("{config:?}, {state:?}, {space:?}, {op:?}");
    let word = Gpa(DATA + OFFSET);
    guest.memory.store_u64(word, 0xfeed).unwrap();
    // Twice: the second time through whatever the first one left in the caches.
    for round in 0..2 {
        let (result, fault) = one(guest, channel, space, IOVA + OFFSET, op);
        assert_eq!(fault, fault_of(config, state, op), "{what}");
        let held = guest.memory.load_u64(word).unwrap();
        let Some((reason, _)) = fault else {
            let (read, written) = match op {
                Op::Read => (0xfeed, 0xfeed),
                Op::Write => (0, 1),
                Op::Atomic => (0xfeed + round, 0xfeed + round + 1),
            };
            assert_eq!((result, held), (Ok(read), written), "{what}");
            continue;
        };
        let (address, access) = (Iova(IOVA + OFFSET), op.access());
        // No page request mends the host's stage 2.
        let hosts = state == State::BadTable && config != Config::Nested;
        let error = if reason.is_recoverable() && !hosts {
            DmaError::Page { address, access }
        } else {
            DmaError::Refused { address, access }
        };
        assert_eq!((result, held), (Err(error), 0xfeed), "{what}");
    }
}

/// In a nested translation, stage 2 can stop it at the descriptor, at the table and at the page.
#[test]
fn stage_two_stops_nested_translations() {
    for (stop, stage, class) in [
        ("descriptor", Stage::TwoForDescriptor, 0u64),
        ("table", Stage::TwoForTable, 1),
        ("page", Stage::Two, 2),
    ] {
        let mut guest = Guest::new();
        let (_endpoint, channel) = guest.attach();
        let (root, table) = (guest.table(), guest.table());
        let two = guest.identity_two(false);
        guest.set_one(root, IOVA, 1, DATA | PAGE);
        guest.set_descriptor(table, SUBSTREAM.into(), descriptor(root, asid(9)));
        let gpa = match stop {
            "descriptor" => Gpa(table.0 + 64 * u64::from(SUBSTREAM)),
            "table" => Gpa(root.0 + 8 * (IOVA >> 39 & 0x1ff)),
            _ => Gpa(DATA + OFFSET),
        };
        let entry = guest.set_two(two, gpa.0, 1, 0);
        guest.set_stream(Stream::Nested(
            linear(table, 4, DefaultSubstream::Terminate),
            stage_two(two),
        ));
        let result = dma(&channel, with(SUBSTREAM), IOVA + OFFSET, Op::Read);
        assert!(result.is_err(), "{stop}");
        let fault = guest.vm.take_fault().unwrap();
        assert_eq!(fault.reason, FaultReason::NotPresent { stage, level: 1 }, "{stop}");
        let told = fault.stage_two.unwrap();
        assert_eq!((told.gpa, told.table, told.level), (gpa, class != 2, 1), "{stop}");
        let words = event(&fault).unwrap().words();
        assert_eq!((words[0] & 0xff, words[1] >> 39 & 1, words[1] >> 40 & 3), (0x10, 1, class));
        assert_eq!((words[2], words[3]), (IOVA + OFFSET, gpa.0 & !0xfff));
        // The same tables with the page mapped work, so it was that.
        guest.memory.store_u64(entry, gpa.0 & !0xfff | S2_PAGE).unwrap();
        assert!(dma(&channel, with(SUBSTREAM), IOVA + OFFSET, Op::Read).is_ok(), "{stop}");
    }
}

/// CD.R and S2R: faults of translation are told or not, faults of configuration always are.
#[test]
fn faults_that_are_not_recorded() {
    let mut guest = Guest::new();
    let (_endpoint, channel) = guest.attach();
    let (root, table, two) = (guest.table(), guest.table(), guest.identity_two(false));
    let nested = |record| {
        let two = iommu::SmmuStageTwo { record, ..stage_two(two) };
        Stream::Nested(linear(table, 4, DefaultSubstream::Terminate), two)
    };
    let mut quiet = descriptor(root, 0);
    quiet[0] &= !RECORD;
    guest.set_descriptor(table, 1, quiet);
    guest.set_descriptor(table, 2, descriptor(root, 0));
    // Stage 1 maps this one to where stage 2 maps nothing.
    guest.set_one(root, IOVA, 1, NOWHERE | PAGE);
    const UNMAPPED: u64 = 0x7000;
    for (record, substream, at, told) in [
        (true, 1, UNMAPPED, false),
        (true, 2, UNMAPPED, true),
        (false, 2, UNMAPPED, true),
        (true, 1, IOVA, true),
        (true, 2, IOVA, true),
        (false, 2, IOVA, false),
        // No descriptor.
        (false, 3, IOVA, true),
    ] {
        guest.set_stream(nested(record));
        let (result, fault) = one(&guest, &channel, with(substream), at, Op::Read);
        assert!(result.is_err());
        assert_eq!(fault.is_some(), told, "{record} {substream} {at:#x}");
    }
    guest.set_stream(Stream::StageTwo(iommu::SmmuStageTwo { record: false, ..stage_two(two) }));
    assert_eq!(one(&guest, &channel, without(), NOWHERE, Op::Read).1, None);
    assert!(one(&guest, &channel, with(1), NOWHERE, Op::Read).1.is_some());
}

#[test]
fn tables_of_descriptors() {
    let mut guest = Guest::new();
    let (_endpoint, channel) = guest.attach();
    let (root, first) = (guest.table(), guest.table());
    guest.set_one(root, IOVA, 1, DATA | PAGE);
    // Room for a leaf of 64 KiB, which is where no bit below 16 is set.
    const LEAF: u64 = 0x10_0000;
    let set_leaf = |guest: &Guest, form, number: u64, substream: u64| {
        let (index, inside) = match form {
            DescriptorForm::Leaves4K => (number / 64, number % 64),
            _ => (number / 1024, number % 1024),
        };
        guest.store(Gpa(first.0 + 8 * index), &[LEAF | 1]);
        guest.set_descriptor(Gpa(LEAF), inside, descriptor(root, asid(substream as u16)));
    };
    for (form, number) in
        [(DescriptorForm::Leaves4K, 3 * 64 + 63), (DescriptorForm::Leaves64K, 2 * 1024 + 1023)]
    {
        guest.memory.write(first, &[0; 4096]).unwrap();
        guest.memory.write(Gpa(LEAF), &[0; 0x1_0000]).unwrap();
        set_leaf(&guest, form, number, 1);
        let table =
            DescriptorTable { root: first, bits: 12, form, default: DefaultSubstream::Terminate };
        guest.set_stream(Stream::StageOne(table));
        let reason = |number: u64| reason_of(&guest, &channel, with(number as u32), IOVA);
        assert_eq!(reason(number), None);
        // The neighbour in the leaf is not valid, and the next leaf is not there.
        assert_eq!(reason(number - 1), Some(FaultReason::PasidEntryNotPresent));
        assert_eq!(reason(number + 1), Some(FaultReason::PasidDirectoryNotPresent));
        assert_eq!(reason(1 << 12), Some(FaultReason::PasidRange));
        // Where there is no memory.
        guest.store(first, &[NOWHERE | 1]);
        assert_eq!(reason(0), Some(FaultReason::PasidEntryAccess));
        let bad = DescriptorTable { root: Gpa(NOWHERE), ..table };
        guest.set_stream(Stream::StageOne(bad));
        assert_eq!(reason(number), Some(FaultReason::PasidDirectoryAccess));
        let linear = DescriptorTable { form: DescriptorForm::Linear, ..bad };
        guest.set_stream(Stream::StageOne(linear));
        assert_eq!(reason(number), Some(FaultReason::PasidEntryAccess));
        let top = DescriptorTable { root: Gpa(u64::MAX - 0x3f), ..linear };
        guest.set_stream(Stream::StageOne(top));
        assert_eq!(reason(number), Some(FaultReason::PasidEntryAccess));
    }
}

/// A descriptor that cannot be used is a fault of its own.
#[test]
fn bad_descriptors() {
    let mut guest = Guest::new();
    let (_endpoint, channel) = guest.attach();
    let (root, table) = (guest.table(), guest.table());
    guest.set_one(root, IOVA, 1, DATA | PAGE);
    guest.set_stream(Stream::StageOne(linear(table, 4, DefaultSubstream::Terminate)));
    let good = descriptor(root, 0);
    // V, AA64; ENDI, S, T0SZ 48, TTB0 beyond IPS.
    for (word, bits) in
        [(0, 1 << 31), (0, 1 << 41), (0, 1 << 15), (0, 1 << 44), (0, 32), (1, 1 << 44)]
    {
        let mut words = good;
        words[word] ^= bits;
        guest.set_descriptor(table, 5, words);
        let (_, fault) = one(&guest, &channel, with(5), IOVA, Op::Read);
        assert_eq!(fault.map(|(_, event)| event), Some(0x0a), "{word} {bits:#x}");
    }
    // Nothing of that was cached.
    guest.set_descriptor(table, 5, good);
    assert_eq!(reason_of(&guest, &channel, with(5), IOVA), None);
}

#[test]
fn stream_table_faults() {
    let guest = Guest::new();
    let (endpoint, channel) = guest.attach();
    for (reason, id) in [
        (FaultReason::RootNotPresent, 0x02),
        (FaultReason::ContextAccess, 0x03),
        (FaultReason::ContextInvalid, 0x04),
    ] {
        guest.refuse_stream(reason);
        assert_eq!(one(&guest, &channel, without(), 0, Op::Read).1, Some((reason, id)));
    }
    // Bypass is limited by the width of the unit's outputs, and knows no interrupt range.
    guest.set_stream(Stream::Bypass);
    let (_, fault) = one(&guest, &channel, without(), 1 << 44, Op::Read);
    assert_eq!(fault, Some((FaultReason::AddressWidth { stage: Stage::One }, 0x11)));
    let absent = FaultReason::NotPresent { stage: Stage::Two, level: 3 };
    let (_, fault) = one(&guest, &channel, without(), 0xfee0_0000, Op::Write);
    assert_eq!(fault, Some(of_no_memory((FaultReason::NoMemory, 0), (absent, 0x10))));
    // ATS is off.
    endpoint.set_ats(true);
    let (_, fault) = one(&guest, &channel, without(), 0, Op::Read);
    assert_eq!(fault, Some((FaultReason::AtsDisabled, 0x05)));
}

#[test]
fn both_halves_and_top_bytes() {
    let mut guest = Guest::new();
    let (_endpoint, channel) = guest.attach();
    let (low, high, table) = (guest.table(), guest.table(), guest.table());
    const LOW: u64 = 0x1234_5000;
    const HIGH: u64 = 0xffff_8000_1234_5000;
    guest.set_one(low, LOW, 1, DATA | PAGE);
    guest.set_one(high, HIGH & ((1 << 48) - 1), 1, (DATA + 0x1000) | PAGE);
    guest.memory.store_u64(Gpa(DATA), 1).unwrap();
    guest.memory.store_u64(Gpa(DATA + 0x1000), 2).unwrap();
    // T1SZ 16, TG1 2 (4 KiB), EPD1 off.
    let both = (DESCRIPTOR & !(1 << 30)) | 16 << 16 | 2 << 22;
    let (tbi0, tbi1, epd0) = (1 << 38, 1 << 39, 1 << 14);
    guest.set_stream(Stream::StageOne(linear(table, 4, DefaultSubstream::Terminate)));
    let at = |flags: u64, address: u64| {
        guest.set_descriptor(table, 1, [both | flags, low.0, high.0, 0, 0, 0, 0, 0]);
        let what = SmmuInvalidation::Descriptor { requester: DEVICE, substream: pasid(1) };
        guest.settle(Invalidation::Smmuv3(what));
        let (result, fault) = one(&guest, &channel, with(1), address, Op::Read);
        assert_eq!(result.is_err(), fault.is_some());
        result.map_err(|_| fault.unwrap())
    };
    // A translation fault at the start level.
    let nowhere = Err((FaultReason::NotPresent { stage: Stage::One, level: 4 }, 0x10));
    assert_eq!((at(0, LOW), at(0, HIGH)), (Ok(1), Ok(2)));
    assert_eq!(at(0, LOW | 1 << 48), nowhere);
    assert_eq!(at(0, LOW | 0x5a << 56), nowhere);
    assert_eq!(at(0, HIGH & !(1 << 60)), nowhere);
    assert_eq!(at(tbi0, LOW | 0x5a << 56), Ok(1));
    assert_eq!(at(tbi1, LOW | 0x5a << 56), nowhere);
    assert_eq!(at(tbi1, HIGH & !(1 << 60)), Ok(2));
    assert_eq!(at(tbi0, LOW | 1 << 48), nowhere);
    let off = Err((FaultReason::NotPresent { stage: Stage::One, level: 4 }, 0x10));
    assert_eq!((at(epd0, LOW), at(epd0, HIGH)), (off, Ok(2)));
}

/// HA and HD: flags are set where they are asked for, and only by what happens.
#[test]
fn access_flags_and_dirty_state() {
    let (ha, hd, affd) = (1 << 43, 1 << 42, 1 << 35);
    let clean = DATA | PAGE & !AF | READ_ONLY | DBM;
    for (flags, op, passes, left) in [
        (0, Op::Read, false, clean),
        (affd, Op::Read, true, clean),
        (affd, Op::Write, false, clean),
        (ha, Op::Read, true, clean | AF),
        (ha, Op::Write, false, clean),
        (ha | hd, Op::Read, true, clean | AF),
        (ha | hd, Op::Write, true, (clean | AF) & !READ_ONLY),
    ] {
        let mut guest = Guest::new();
        let (_endpoint, channel) = guest.attach();
        let (root, table) = (guest.table(), guest.table());
        let entry = guest.set_one(root, IOVA, 1, clean);
        guest.set_descriptor(table, 0, descriptor(root, flags));
        guest.set_stream(Stream::StageOne(linear(table, 0, DefaultSubstream::Zero)));
        let result = dma(&channel, without(), IOVA, op);
        assert_eq!(result.is_ok(), passes, "{flags:#x} {op:?}");
        assert_eq!(guest.memory.load_u64(entry).unwrap(), left, "{flags:#x} {op:?}");
    }
    // A read that is cached does not save the first write its mark.
    let mut guest = Guest::new();
    let (_endpoint, channel) = guest.attach();
    let (root, table) = (guest.table(), guest.table());
    let entry = guest.set_one(root, IOVA, 1, clean);
    guest.set_descriptor(table, 0, descriptor(root, ha | hd));
    guest.set_stream(Stream::StageOne(linear(table, 0, DefaultSubstream::Zero)));
    for op in [Op::Read, Op::Write] {
        dma(&channel, without(), IOVA, op).unwrap();
    }
    assert_eq!(guest.memory.load_u64(entry).unwrap(), (clean | AF) & !READ_ONLY);
}

/// Pages that are not open to requests without privilege, and who has it.
#[test]
fn privilege() {
    let mut guest = Guest::new();
    let (_endpoint, channel) = guest.attach();
    let (root, table) = (guest.table(), guest.table());
    guest.set_one(root, IOVA, 1, DATA | PAGE & !EL0);
    guest.set_descriptor(table, 0, descriptor(root, 0));
    guest.set_descriptor(table, 1, descriptor(root, 0));
    let translation = Stream::StageOne(linear(table, 4, DefaultSubstream::Zero));
    let privileged = AddressSpace { privileged: true, ..with(1) };
    // Without a substream, a request cannot say so.
    let unheard = AddressSpace { privileged: true, ..without() };
    for (privilege, passes) in
        [(None, [false, false, true, false]), (Some(true), [true; 4]), (Some(false), [false; 4])]
    {
        let DeviceContext::Smmuv3(stream) = stream(translation) else { unreachable!() };
        guest.set_context(DeviceContext::Smmuv3(StreamContext { privilege, ..stream }));
        for (space, passes) in [without(), with(1), privileged, unheard].into_iter().zip(passes) {
            let (_, fault) = one(&guest, &channel, space, IOVA, Op::Read);
            let denied = FaultReason::Permission { stage: Stage::One, user: true };
            assert_eq!(fault.map(|(reason, _)| reason), (!passes).then_some(denied));
        }
    }
}

/// A global page serves every address space of the guest, until it is invalidated for any.
#[test]
fn global_pages() {
    let mut guest = Guest::new();
    let (_endpoint, channel) = guest.attach();
    let (root, empty, table) = (guest.table(), guest.table(), guest.table());
    guest.set_one(root, IOVA, 1, DATA | PAGE & !NOT_GLOBAL);
    guest.set_descriptor(table, 1, descriptor(root, asid(1)));
    guest.set_descriptor(table, 2, descriptor(empty, asid(2)));
    guest.set_stream(Stream::StageOne(linear(table, 4, DefaultSubstream::Terminate)));
    let passes = |number| dma(&channel, with(number), IOVA, Op::Read).is_ok();
    assert!(!passes(2), "not cached yet");
    assert!(passes(1) && passes(2));
    let asid = |number| SmmuInvalidation::StageOneAsid { vmid: VMID, asid: iommu::Asid(number) };
    guest.settle(Invalidation::Smmuv3(asid(1)));
    assert!(passes(2), "an address space is not what it belongs to");
    let pages = iommu::PageRange {
        range: mem::Range::<Iova>::new(Iova(IOVA), 4096).unwrap(),
        leaf_only: true,
    };
    let page = SmmuInvalidation::StageOnePages { vmid: VMID, asid: Some(iommu::Asid(2)), pages };
    guest.settle(Invalidation::Smmuv3(page));
    assert!(!passes(2));
}
