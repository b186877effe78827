//! One DMA over every kind of translation and every state of the page that it touches.
#![cfg(not(loom))]

mod common;

use common::*;
use iommu::{DeviceContext, DmaError, FaultReason, Stage, StageTwo, Vm};
use mem::{Gpa, GuestMemory, Iova};

/// How requests are translated.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    First,
    Second,
    Nested,
    PassThrough,
    DeviceSecond,
    DevicePassThrough,
    Off,
}

const KINDS: [Kind; 7] = [
    Kind::First,
    Kind::Second,
    Kind::Nested,
    Kind::PassThrough,
    Kind::DeviceSecond,
    Kind::DevicePassThrough,
    Kind::Off,
];

/// What the tables say of the page.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    Mapped,
    NotMapped,
    ReadOnly,
    Reserved,
    BadTable,
}

const STATES: [State; 5] =
    [State::Mapped, State::NotMapped, State::ReadOnly, State::Reserved, State::BadTable];

/// Where the page in question is memory.
const DATA: u64 = 0x0030_0000;
/// Where devices see it, if it is translated.
const IOVA: u64 = 0x12_3456_7000;
const OFFSET: u64 = 0x128;
const PASID: u32 = 3;

/// Writes first-stage tables that leave the page in `state`.
fn first(guest: &mut Guest, state: State) -> Gpa {
    let root = guest.table();
    let flags = PRESENT | WRITABLE | USER;
    match state {
        // As Linux maps data; with NXE clear the bit means nothing.
        State::Mapped => guest.set_first(root, IOVA, 1, DATA | flags | NO_EXECUTE),
        State::NotMapped => guest.set_first(root, IOVA, 1, 0),
        State::ReadOnly => guest.set_first(root, IOVA, 1, DATA | PRESENT | USER),
        // A page of 2 MiB cannot begin here (bit 12 would be a memory type).
        State::Reserved => guest.set_first(root, IOVA, 2, 0x2000 | LARGE | flags),
        State::BadTable => guest.set_first(root, IOVA, 2, NOWHERE | flags),
    };
    root
}

/// Writes second-stage tables that leave the page in `state`.
fn second(guest: &mut Guest, state: State) -> Gpa {
    let root = guest.table();
    let flags = SS_READ | SS_WRITE;
    match state {
        State::Mapped => guest.set_second(root, IOVA, 1, DATA | flags),
        State::NotMapped => guest.set_second(root, IOVA, 1, 0),
        State::ReadOnly => guest.set_second(root, IOVA, 1, DATA | SS_READ),
        // A page of 2 MiB cannot begin here.
        State::Reserved => guest.set_second(root, IOVA, 2, 0x1000 | LARGE | flags),
        State::BadTable => guest.set_second(root, IOVA, 2, NOWHERE | flags),
    };
    root
}

/// Prepares a guest; gives the address at which the device finds the page.
fn prepare(guest: &mut Guest, kind: Kind, state: State) -> u64 {
    let untranslated = if state == State::Mapped { DATA } else { NOWHERE };
    let set = |guest: &mut Guest, words| {
        guest.set_pasid(0, words);
        guest.set_pasid(PASID, words);
    };
    match kind {
        Kind::First => {
            let root = first(guest, state);
            set(guest, first_stage(root, DOMAIN));
            IOVA
        }
        Kind::Second => {
            let root = second(guest, state);
            set(guest, second_stage(root, DOMAIN));
            IOVA
        }
        Kind::Nested => {
            let (one, two) = (first(guest, state), guest.identity_second(true));
            set(guest, nested(one, two, DOMAIN));
            IOVA
        }
        Kind::PassThrough => {
            set(guest, pass_through(DOMAIN));
            untranslated
        }
        Kind::DeviceSecond => {
            let root = second(guest, state);
            let table = StageTwo { root, levels: 4, accessed_dirty: false };
            let context =
                DeviceContext::StageTwo { domain: DOMAIN, table, ats: false, fault_disable: false };
            guest.set_context(context);
            IOVA
        }
        Kind::DevicePassThrough => {
            let context =
                DeviceContext::PassThrough { domain: DOMAIN, ats: false, fault_disable: false };
            guest.set_context(context);
            untranslated
        }
        Kind::Off => {
            guest.vm.set_contexts(None);
            guest.settle_all();
            untranslated
        }
    }
}

/// The fault that the specification asks for; `None` if the access passes.
fn expected(kind: Kind, with_pasid: bool, state: State, op: Op) -> Option<FaultReason> {
    let of_device = matches!(kind, Kind::DeviceSecond | Kind::DevicePassThrough | Kind::Off);
    if with_pasid && of_device {
        return Some(FaultReason::PasidDisabled);
    }
    let stage = match kind {
        Kind::First | Kind::Nested => Stage::One,
        Kind::Second | Kind::DeviceSecond => Stage::Two,
        Kind::PassThrough | Kind::DevicePassThrough | Kind::Off => {
            return (state != State::Mapped).then_some(FaultReason::NoMemory);
        }
    };
    match state {
        State::Mapped => None,
        State::NotMapped => Some(FaultReason::NotPresent { stage, level: 1 }),
        State::ReadOnly if op == Op::Read => None,
        State::ReadOnly => Some(FaultReason::Permission { stage, user: false }),
        State::Reserved => Some(FaultReason::TableReserved { stage, level: 2 }),
        // Where there is no memory, the second stage maps nothing, in an entry for 1 GiB.
        State::BadTable if kind == Kind::Nested => {
            Some(FaultReason::NotPresent { stage: Stage::TwoForTable, level: 3 })
        }
        State::BadTable => Some(FaultReason::TableAccess { stage, level: 1 }),
    }
}

/// What becomes of that over the host's stage 2, and whether it is what stops the access: where
/// there is no memory it maps nothing, in an entry for 1 GiB.
fn over_stage_two(reason: FaultReason) -> (FaultReason, bool) {
    let absent = |stage| (FaultReason::NotPresent { stage, level: 3 }, true);
    match reason {
        FaultReason::NoMemory => of_no_memory((reason, false), absent(Stage::Two)),
        FaultReason::TableAccess { .. } => {
            of_no_memory((reason, false), absent(Stage::TwoForTable))
        }
        _ => (reason, false),
    }
}

#[test]
fn every_combination() {
    for kind in KINDS {
        for state in STATES {
            let mut guest = Guest::new();
            let page = prepare(&mut guest, kind, state);
            let (_endpoint, channel) = guest.attach();
            for with_pasid in [false, true] {
                for op in Op::ALL {
                    one_dma(&guest, &channel, kind, with_pasid, state, op, page + OFFSET);
                }
            }
        }
    }
}

fn one_dma(
    guest: &Guest,
    channel: &iommu::Channel,
    kind: Kind,
    with_pasid: bool,
    state: State,
    op: Op,
    at: u64,
) {
    let what = format!("{kind:?}, PASID: {with_pasid}, {state:?}, {op:?}");
    let word = Gpa(DATA + OFFSET);
    guest.memory.store_u64(word, 0xfeed).unwrap();
    let space = if with_pasid { with(PASID) } else { without() };
    // Twice: the second time through whatever the first one left in the caches.
    for round in 0..2 {
        let result = dma(channel, space, at, op);
        let fault = guest.vm.take_fault();
        let access = op.access();
        match expected(kind, with_pasid, state, op) {
            None => {
                assert_eq!(fault, None, "{what}");
                let held = guest.memory.load_u64(word).unwrap();
                let (read, written) = match op {
                    Op::Read => (0xfeed, 0xfeed),
                    Op::Write => (0, 1),
                    Op::Atomic => (0xfeed + round, 0xfeed + round + 1),
                };
                assert_eq!((result, held), (Ok(read), written), "{what}");
            }
            Some(reason) => {
                let (reason, hosts) = over_stage_two(reason);
                let address = Iova(at);
                let error = if reason.is_recoverable() && !hosts {
                    DmaError::Page { address, access }
                } else {
                    DmaError::Refused { address, access }
                };
                assert_eq!(result, Err(error), "{what}");
                assert_eq!(guest.memory.load_u64(word), Ok(0xfeed), "{what}");
                if kind == Kind::Off {
                    assert_eq!(fault, None, "{what}");
                    continue;
                }
                let fault = fault.unwrap_or_else(|| panic!("no fault: {what}"));
                assert_eq!((fault.reason, fault.is_hosts()), (reason, hosts), "{what}");
                assert_eq!(fault.requester, DEVICE, "{what}");
                assert_eq!(fault.pasid, space.pasid, "{what}");
                assert_eq!((fault.address, fault.access), (address, access), "{what}");
                assert!(!fault.privileged && !fault.translation_request, "{what}");
            }
        }
        assert_eq!(guest.vm.take_fault(), None, "{what}");
    }
}
