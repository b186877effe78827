//! What a request must come to behind VT-d, by its specification (chapters 3, 7 and 9).

use iommu::{AddressSpace, FaultReason as R, Stage};

use super::world::{index, World};
use super::{Damage, Entry, Kind, One, Owner, Table, Two, PASID};
use crate::cell::{denied, Op, Outcome, Stop, IOVA, OFFSET};
use crate::common::NOWHERE;

const AT: u64 = IOVA + OFFSET;

pub fn expected(world: &World, damage: Damage, space: AddressSpace, op: Op) -> Outcome {
    if let Some(stop) = before_tables(world, damage, space) {
        return Err(stop);
    }
    if let Damage::Entry(damage) = damage {
        if let Some(stop) = entry(world, damage, space) {
            return Err(stop);
        }
    }
    let kind = world.kind;
    if kind == Kind::HostBlocked {
        return Err(Stop::new(R::PasidEntryNotPresent));
    }
    // SRE is clear.
    if space.privileged && kind.first().is_some() {
        return Err(Stop::new(R::SupervisorDisabled));
    }
    let stop = match damage {
        Damage::None | Damage::Entry(_) => None,
        Damage::FarAddress => Some(far(world)),
        Damage::Interrupt => Some(interrupt(world)),
        Damage::Nowhere => {
            let stop = world.ground.nowhere(Stop::new(R::NoMemory), NOWHERE + OFFSET, false);
            Some(if kind == Kind::Off { stop.silent() } else { stop })
        }
        Damage::One(damage) => one(world, damage, op),
        Damage::Two(damage) if kind.first().is_some() => two_of_nested(world, damage, op),
        Damage::Two(damage) => two_alone(world, damage, op),
        Damage::Table(damage) => table(world, damage),
    };
    stop.map_or(Ok(()), Err)
}

/// What does not depend on tables.
fn before_tables(world: &World, damage: Damage, space: AddressSpace) -> Option<Stop> {
    let kind = world.kind;
    let takes_pasids = kind.in_table() || kind.is_hosts();
    if space.pasid.is_some() && !takes_pasids {
        let stop = Stop::new(R::PasidDisabled);
        return Some(if kind == Kind::Off { stop.silent() } else { stop });
    }
    match (damage, space.pasid) {
        (Damage::Entry(Entry::Disabled), Some(_)) => Some(Stop::new(R::PasidDisabled)),
        (Damage::Entry(Entry::Beyond), Some(_)) if world.owner == Owner::Source => {
            Some(Stop::new(R::PasidRange))
        }
        // Without PASID, an interrupt's address is never translated.
        (Damage::Interrupt, None) => Some(Stop::new(R::InterruptAddress)),
        _ => None,
    }
}

fn entry(world: &World, damage: Entry, space: AddressSpace) -> Option<Stop> {
    // The entry of requests without PASID is the first.
    let number = if space.pasid.is_some() { u64::from(PASID) } else { 0 };
    let unreachable =
        |reason, at| world.ground.nowhere_as(Stop::new(reason), reason, NOWHERE + at, true);
    Some(match damage {
        Entry::Absent => Stop::new(R::PasidEntryNotPresent),
        Entry::AbsentQuietly => Stop::new(R::PasidEntryNotPresent).silent(),
        Entry::Reserved => Stop::new(R::PasidEntryReserved),
        Entry::Type => Stop::new(R::PasidEntryInvalid),
        Entry::DirectoryAbsent => Stop::new(R::PasidDirectoryNotPresent),
        Entry::DirectoryReserved => Stop::new(R::PasidDirectoryReserved),
        Entry::BadTable => unreachable(R::PasidEntryAccess, 64 * number),
        // Both PASIDs have the directory's first entry.
        Entry::BadDirectory => unreachable(R::PasidDirectoryAccess, 0),
        // Of a request without PASID, or there are enough.
        Entry::Disabled | Entry::Beyond => return None,
    })
}

fn far(world: &World) -> Stop {
    let at = world.address(Damage::FarAddress) + OFFSET;
    match world.kind {
        Kind::PassThrough | Kind::HostPaging => Stop::new(R::AddressWidth { stage: Stage::Two }),
        // 50 bits are within five levels' 57, so that one was given more.
        Kind::Second(_) | Kind::DeviceSecond(_) => {
            Stop::new(R::AddressWidth { stage: Stage::Two }).at_guests(at, false, 0)
        }
        _ => Stop::new(R::NonCanonical),
    }
}

/// An address that is an interrupt's without PASID, and one like any other with.
fn interrupt(world: &World) -> Stop {
    let at = world.address(Damage::Interrupt) + OFFSET;
    // In the table of 1 GiB entries that the page is in, too.
    let absent = |stage| Stop::new(R::NotPresent { stage, level: 3 });
    match world.kind {
        Kind::Second(_) | Kind::DeviceSecond(_) => absent(Stage::Two).at_guests(at, false, 3),
        _ if world.kind.first().is_some() => absent(Stage::One),
        // Not even then is it where an access may end.
        _ => Stop::new(R::InterruptAddress),
    }
}

/// The first stage.
fn one(world: &World, damage: One, op: Op) -> Option<Stop> {
    let levels = world.kind.first().unwrap();
    let stage = Stage::One;
    let user = Stop::new(R::Permission { stage, user: true });
    let nested = matches!(world.kind, Kind::Nested(..));
    Some(match damage {
        One::Absent(level) => Stop::new(R::NotPresent { stage, level: level as u8 }),
        One::ReadOnly | One::ReadOnlyAbove => return denied(op, true, false, stage),
        One::Supervisor | One::SupervisorAbove => user,
        One::Reserved => Stop::new(R::TableReserved { stage, level: 2 }),
        One::Wide => Stop::new(R::TableReserved { stage, level: 1 }),
        // The second stage has nothing there.
        One::ToInterrupts if nested => Stop::new(R::NotPresent { stage: Stage::Two, level: 3 })
            .at_guests(0xfee0_0000 + OFFSET, false, 3),
        One::ToInterrupts => Stop::new(R::InterruptAddress),
        One::BadTable => table_nowhere(world, 1),
        One::BadRoot => table_nowhere(world, levels),
    })
}

/// A first-stage table of `level` where there is no memory.
fn table_nowhere(world: &World, level: u32) -> Stop {
    let gpa = NOWHERE + 8 * index(AT, level);
    if let Kind::Nested(..) = world.kind {
        // That is beyond the entry of 1 GiB that the second stage has.
        let reason = R::NotPresent { stage: Stage::TwoForTable, level: 3 };
        return Stop::new(reason).at_guests(gpa, true, 3);
    }
    let direct = Stop::new(R::TableAccess { stage: Stage::One, level: level as u8 });
    world.ground.nowhere(direct, gpa, true)
}

/// The second stage of the guest's, alone.
fn two_alone(world: &World, damage: Two, op: Op) -> Option<Stop> {
    let levels = world.kind.second().unwrap();
    two(world, damage, op, (AT, levels))
}

/// A second stage of `levels`, stopping where it translates `input`, the request's own or what
/// the first stage made of it.
fn two(world: &World, damage: Two, op: Op, (input, levels): (u64, u32)) -> Option<Stop> {
    let stage = Stage::Two;
    let at = |reason, level: u32| Stop::new(reason).at_guests(input, false, level as u8);
    let rights = |readable, writable, level: u8| {
        denied(op, readable, writable, stage).map(|stop| stop.at_guests(input, false, level))
    };
    Some(match damage {
        Two::Absent(level) => at(R::NotPresent { stage, level: level as u8 }, level),
        Two::ReadOnly => return rights(true, false, 1),
        Two::ReadOnlyAbove => return rights(true, false, 2),
        Two::WriteOnly => return rights(false, true, 1),
        Two::Reserved => at(R::TableReserved { stage, level: 2 }, 2),
        Two::Wide => at(R::TableReserved { stage, level: 1 }, 1),
        Two::ToInterrupts => Stop::new(R::InterruptAddress),
        Two::BadTable | Two::BadRoot => {
            let level = if damage == Two::BadRoot { levels } else { 1 };
            let direct = at(R::TableAccess { stage, level: level as u8 }, level);
            world.ground.nowhere(direct, NOWHERE + 8 * index(input, level), true)
        }
    })
}

/// The second stage of the guest's under a first.
fn two_of_nested(world: &World, damage: Two, op: Op) -> Option<Stop> {
    let levels = world.kind.second().unwrap();
    // What stops the page stops the first stage's tables before, where they share its entries.
    let root = world.one_entry(world.kind.first().unwrap()).0;
    let stage = Stage::TwoForTable;
    match damage {
        Two::Absent(level @ 3..) => {
            let level = level as u8;
            Some(Stop::new(R::NotPresent { stage, level }).at_guests(root, true, level))
        }
        Two::BadRoot => {
            let level = levels as u8;
            let direct = Stop::new(R::TableAccess { stage, level }).at_guests(root, true, level);
            Some(world.ground.nowhere(direct, NOWHERE + 8 * index(root, levels), true))
        }
        _ => two(world, damage, op, (world.two_input() + OFFSET, levels)),
    }
}

/// The second stage of the guest's under the first stage's last table.
fn table(world: &World, damage: Table) -> Option<Stop> {
    let (stage, leaf) = (Stage::TwoForTable, world.one_entry(1).0);
    let reason = match damage {
        Table::Absent => R::NotPresent { stage, level: 1 },
        Table::ReadOnly | Table::WriteOnly => R::Permission { stage, user: false },
        Table::ReadOnlyMarked => return None,
    };
    Some(Stop::new(reason).at_guests(leaf, true, 1))
}
