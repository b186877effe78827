//! One DMA through an SMMUv3: every configuration, substream and state of the page, and the event
//! that tells of its fault.
#![cfg(not(loom))]

mod common;

use common::smmu::*;
use common::*;
use iommu::format::smmuv3::event;
use iommu::{
    AddressSpace, Channel, DefaultSubstream, DmaError, FaultReason, Stage,
    StreamTranslation as Stream, Vm,
};
use mem::{Gpa, GuestMemory, Iova};

/// Where the page in question is memory.
const DATA: u64 = 0x0030_0000;
/// Where devices see it, if it is translated.
const IOVA: u64 = 0x12_3456_7000;
const OFFSET: u64 = 0x128;
const SUBSTREAM: u32 = 3;

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

/// Where requests go in `substreams`; what they find there says by which descriptor.
const AT: u64 = 0x20_0000;
/// What is at the address itself.
const UNTRANSLATED: u64 = 0x1b9;

/// The word that the descriptor of `substream` leads to, and what is in it.
fn marked(substream: u64) -> (Gpa, u64) {
    (Gpa(DATA + substream * 4096), 0x100 + substream)
}

/// Makes one access; which word it was, by what it read or, if it only wrote, by what it left.
fn answer(guest: &Guest, channel: &Channel, space: AddressSpace, op: Op) -> Answer {
    let words = (0..16).map(|substream| (Answer::Descriptor(substream), marked(substream)));
    let words: Vec<_> = words.chain([(Answer::Bypass, (Gpa(AT), UNTRANSLATED))]).collect();
    for (_, (gpa, word)) in &words {
        guest.memory.store_u64(*gpa, *word).unwrap();
    }
    let (result, fault) = one(guest, channel, space, AT, op);
    let held = |gpa: &Gpa| guest.memory.load_u64(*gpa).unwrap();
    let changed: Vec<_> = words.iter().filter(|(_, (gpa, word))| held(gpa) != *word).collect();
    let Ok(read) = result else {
        assert!(changed.is_empty());
        return fault.map_or(Answer::Silent, |(_, event)| Answer::Event(event));
    };
    assert_eq!((fault, changed.len()), (None, usize::from(op != Op::Read)));
    let found = match op {
        Op::Write => changed.first().copied(),
        _ => words.iter().find(|(_, (_, word))| *word == read),
    };
    found.unwrap().0
}

#[test]
fn substreams() {
    use DefaultSubstream::{Bypass, Terminate, Zero};
    let mut guest = Guest::new();
    let (_endpoint, channel) = guest.attach();
    let table = guest.table();
    let two = stage_two(guest.identity_two(true));
    for substream in 0..16 {
        let root = guest.table();
        guest.set_one(root, AT, 1, marked(substream).0 .0 | PAGE);
        guest.set_descriptor(table, substream, descriptor(root, asid(substream as u16)));
    }
    for config in
        [Config::Abort, Config::Bypass, Config::StageOne, Config::StageTwo, Config::Nested]
    {
        for (default, bits) in
            [Terminate, Bypass, Zero].into_iter().flat_map(|default| [(default, 0), (default, 4)])
        {
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
                let expected = expected(config, bits, default, substream);
                for op in Op::ALL {
                    let answer = answer(&guest, &channel, space, op);
                    let what = format!("{config:?} {bits} {default:?} {substream:?} {op:?}");
                    assert_eq!(answer, expected, "{what}");
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
