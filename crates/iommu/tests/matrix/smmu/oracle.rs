//! What a request must come to behind an SMMUv3, by IHI 0070 (3.3, 3.4, 5.2 to 5.5, 7.3).

use iommu::{AddressSpace, DefaultSubstream, FaultReason as R, Stage};

use super::world::{index, World};
use super::{Case, Config, Damage, Entry, One, Page, Two};
use crate::cell::{denied, Op, Outcome, Request, Stop, IOVA, OFFSET};
use crate::common::NOWHERE;

const AT: u64 = IOVA + OFFSET;

/// What a request takes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Path {
    /// No stage 1.
    Bypass,
    /// The context descriptor of a substream.
    Descriptor(u32),
}

/// The path of a request, if it has one (3.3.2, 5.2: Config, S1CDMax, S1DSS).
pub fn path(case: &Case, space: AddressSpace) -> Result<Path, Stop> {
    let stop = |reason| Err(Stop::new(reason));
    let number = space.pasid.map(|pasid| pasid.get());
    match (case.config, number) {
        (Config::Abort, _) => Err(Stop::new(R::ContextNotPresent).silent()),
        (Config::Bypass | Config::Two, None) => Ok(Path::Bypass),
        (Config::Bypass | Config::Two, Some(_)) => stop(R::PasidDisabled),
        (_, None) if case.bits == 0 => Ok(Path::Descriptor(0)),
        (_, Some(_)) if case.bits == 0 => stop(R::PasidDisabled),
        (_, Some(number)) if number >> case.bits != 0 => stop(R::PasidRange),
        (_, Some(0)) if case.default == DefaultSubstream::Zero => stop(R::PasidRange),
        (_, Some(number)) => Ok(Path::Descriptor(number)),
        (_, None) => match case.default {
            DefaultSubstream::Terminate => stop(R::PasidRequired),
            DefaultSubstream::Bypass => Ok(Path::Bypass),
            DefaultSubstream::Zero => Ok(Path::Descriptor(0)),
        },
    }
}

pub fn expected(world: &World, damage: Damage, request: &Request) -> Outcome {
    let stop = match (path(&world.case, request.space)?, world.case.config) {
        (Path::Bypass, Config::Two | Config::Nested) => by_stage_two(world, damage, request),
        (Path::Bypass, _) => bypassed(world, damage),
        (Path::Descriptor(number), _) => by_descriptor(world, damage, number, request),
    };
    stop.map_or(Ok(()), Err)
}

/// No translation at all.
fn bypassed(world: &World, damage: Damage) -> Option<Stop> {
    match damage {
        Damage::FarAddress | Damage::HighHalf => {
            Some(Stop::new(R::AddressWidth { stage: Stage::One }))
        }
        Damage::Nowhere => {
            Some(world.ground.nowhere(Stop::new(R::NoMemory), NOWHERE + OFFSET, false))
        }
        _ => None,
    }
}

/// Stage 2 of the guest's alone.
fn by_stage_two(world: &World, damage: Damage, request: &Request) -> Option<Stop> {
    match damage {
        // To Arm, what is too wide is not mapped, at the level where the walk would have begun;
        // and there is no other 1 GiB mapped than that of the page.
        Damage::FarAddress | Damage::HighHalf | Damage::Nowhere => {
            let reason = R::NotPresent { stage: Stage::Two, level: 3 };
            Some(Stop::new(reason).at_guests(request.at, false, 3))
        }
        Damage::Two(damage) => two(world, damage, request.op, request.at),
        _ => None,
    }
}

/// Stage 2 of the guest's, where it stops the page.
fn two(world: &World, damage: Two, op: Op, input: u64) -> Option<Stop> {
    let stage = Stage::Two;
    let at = |reason, level: u8| Stop::new(reason).at_guests(input, false, level);
    let rights = |readable, writable| {
        denied(op, readable, writable, stage).map(|stop| stop.at_guests(input, false, 1))
    };
    Some(match damage {
        Two::Absent(level) => at(R::NotPresent { stage, level: level as u8 }, level as u8),
        Two::ReadOnly => return rights(true, false),
        Two::WriteOnly => return rights(false, true),
        Two::Untouched => at(R::AccessFlag { stage, level: 1 }, 1),
        Two::Kind => at(R::NotPresent { stage, level: 1 }, 1),
        Two::Wide => at(R::AddressWidth { stage }, 0),
        Two::BadTable | Two::BadRoot => {
            let level: u8 = if damage == Two::BadRoot { 3 } else { 1 };
            let direct = at(R::TableAccess { stage, level }, level);
            world.ground.nowhere(direct, NOWHERE + 8 * index(input, level.into()), true)
        }
    })
}

fn by_descriptor(world: &World, damage: Damage, number: u32, request: &Request) -> Option<Stop> {
    let nested = world.case.config == Config::Nested;
    let absent = |level| Some(Stop::new(R::NotPresent { stage: Stage::One, level }));
    match damage {
        Damage::None => None,
        // At the start level; with 48 bits that is Arm's level 0.
        Damage::FarAddress | Damage::HighHalf => absent(4),
        // The table of 1 GiB entries is that of the page.
        Damage::Nowhere => absent(3),
        Damage::Entry(damage) => Some(entry(world, damage, number)),
        Damage::One(damage) => one(world, damage, request),
        Damage::Two(damage) if nested => two_of_nested(world, damage, number, request.op),
        Damage::Two(_) => None,
        Damage::Table(damage) => page(damage, Stage::TwoForTable, world.one_entry(1).0),
        Damage::Descriptor(damage) => {
            page(damage, Stage::TwoForDescriptor, world.fetches(number).1)
        }
        Damage::Pointer(damage) => {
            page(damage, Stage::TwoForDescriptor, world.fetches(number).0.unwrap())
        }
    }
}

/// On the way to the descriptor, or in it.
fn entry(world: &World, damage: Entry, number: u32) -> Stop {
    let nested = world.case.config == Config::Nested;
    let nowhere = |reason, offset| {
        let gpa = NOWHERE + offset;
        if nested {
            return unmapped(Stage::TwoForDescriptor, gpa);
        }
        world.ground.nowhere_as(Stop::new(reason), reason, gpa, true)
    };
    match damage {
        Entry::Invalid => Stop::new(R::PasidEntryNotPresent),
        Entry::Unusable => Stop::new(R::PasidEntryInvalid),
        Entry::PointerInvalid => Stop::new(R::PasidDirectoryNotPresent),
        Entry::BadTable if world.case.has_pointers() => {
            nowhere(R::PasidDirectoryAccess, world.pointer_offset(number))
        }
        Entry::BadTable | Entry::BadLeaf => {
            nowhere(R::PasidEntryAccess, world.descriptor_offset(number))
        }
    }
}

/// Stage 2 of the guest's has one entry of 1 GiB, and not that of `gpa`.
fn unmapped(stage: Stage, gpa: u64) -> Stop {
    Stop::new(R::NotPresent { stage, level: 3 }).at_guests(gpa, true, 3)
}

fn one(world: &World, damage: One, request: &Request) -> Option<Stop> {
    let (stage, op) = (Stage::One, request.op);
    let user = Stop::new(R::Permission { stage, user: true });
    Some(match damage {
        One::Absent(level) => Stop::new(R::NotPresent { stage, level: level as u8 }),
        // Privilege does not help.
        One::ReadOnly | One::ReadOnlyAbove => return denied(op, true, false, stage),
        One::Privileged | One::PrivilegedAbove if request.space.privileged => return None,
        One::Privileged | One::PrivilegedAbove => user,
        One::Untouched => Stop::new(R::AccessFlag { stage, level: 1 }),
        One::Kind => Stop::new(R::NotPresent { stage, level: 1 }),
        One::PageAtTop => Stop::new(R::NotPresent { stage, level: 4 }),
        One::Wide => Stop::new(R::AddressWidth { stage }),
        One::BadTable => table_nowhere(world, 1),
        One::BadRoot => table_nowhere(world, 4),
    })
}

/// A table of stage 1 where there is no memory.
fn table_nowhere(world: &World, level: u8) -> Stop {
    let gpa = NOWHERE + 8 * index(AT, level.into());
    if world.case.config == Config::Nested {
        return unmapped(Stage::TwoForTable, gpa);
    }
    let direct = Stop::new(R::TableAccess { stage: Stage::One, level });
    world.ground.nowhere(direct, gpa, true)
}

/// Stage 2 of the guest's under stage 1.
fn two_of_nested(world: &World, damage: Two, number: u32, op: Op) -> Option<Stop> {
    let (pointer, descriptor) = world.fetches(number);
    // What is looked up first.
    let fetched = pointer.unwrap_or(descriptor);
    let stage = Stage::TwoForDescriptor;
    match damage {
        Two::Absent(3) => {
            Some(Stop::new(R::NotPresent { stage, level: 3 }).at_guests(fetched, true, 3))
        }
        Two::BadRoot => {
            let direct = Stop::new(R::TableAccess { stage, level: 3 }).at_guests(fetched, true, 3);
            Some(world.ground.nowhere(direct, NOWHERE + 8 * index(fetched, 3), true))
        }
        _ => two(world, damage, op, crate::cell::DATA + OFFSET),
    }
}

/// A page of stage 2's with what is read at `gpa` on the way.
fn page(damage: Page, stage: Stage, gpa: u64) -> Option<Stop> {
    let reason = match damage {
        Page::Absent => R::NotPresent { stage, level: 1 },
        // Stage 1 leaves its flags to software here.
        Page::ReadOnly => return None,
        Page::WriteOnly => R::Permission { stage, user: false },
        Page::Untouched => R::AccessFlag { stage, level: 1 },
    };
    Some(Stop::new(reason).at_guests(gpa, true, 1))
}
