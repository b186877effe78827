//! VT-d: contexts without PASID table, the guest's PASID table, and a table of the host's.

mod oracle;
mod world;

use iommu::AddressSpace;

use super::cell::{check, Request, Tally, OFFSET, OPS};
use super::common::{pasid, with, without};
use super::ground::{Ground, GROUNDS};
use world::World;

pub const PASID: u32 = 3;

/// What translates; stages with their levels.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    First(u32),
    Second(u32),
    Nested(u32, u32),
    PassThrough,
    /// Without a PASID table.
    DeviceSecond(u32),
    DevicePassThrough,
    Off,
    /// Attached to the device and to a PASID: a first stage over the host's stage 2.
    HostNested(u32),
    /// … and that stage 2 alone.
    HostPaging,
    /// The device has something attached to another PASID.
    HostBlocked,
}

/// How the engine comes to the guest's PASID table.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Owner {
    /// By the model's context, or, with the host's own kinds, not at all.
    Source,
    /// The table is attached as a whole.
    Delegated,
}

/// What is wrong.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Damage {
    None,
    /// The request's address is too wide, or not canonical.
    FarAddress,
    /// The request's address is an interrupt's.
    Interrupt,
    /// The request's address is no memory, and nothing translates it.
    Nowhere,
    /// In the first stage.
    One(One),
    /// In the second stage, where it translates the page.
    Two(Two),
    /// In the second stage, where it translates the first stage's last table.
    Table(Table),
    /// On the way to the entry, or in it.
    Entry(Entry),
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum One {
    Absent(u32),
    ReadOnly,
    ReadOnlyAbove,
    Supervisor,
    SupervisorAbove,
    /// A page of 2 MiB that begins between two.
    Reserved,
    /// A page beyond the width of physical addresses.
    Wide,
    /// A page of interrupts.
    ToInterrupts,
    /// A table that is no memory.
    BadTable,
    BadRoot,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Two {
    Absent(u32),
    ReadOnly,
    ReadOnlyAbove,
    WriteOnly,
    Reserved,
    Wide,
    ToInterrupts,
    BadTable,
    BadRoot,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Table {
    Absent,
    /// The entry's accessed flag cannot be set …
    ReadOnly,
    /// … or is set.
    ReadOnlyMarked,
    WriteOnly,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Entry {
    Absent,
    /// Absent, and no fault is to be recorded.
    AbsentQuietly,
    Reserved,
    /// No type of translation.
    Type,
    DirectoryAbsent,
    DirectoryReserved,
    /// A PASID table that is no memory.
    BadTable,
    /// A directory that is no memory.
    BadDirectory,
    /// The context allows no PASIDs.
    Disabled,
    /// The directory has fewer.
    Beyond,
}

impl Kind {
    pub fn first(self) -> Option<u32> {
        match self {
            Self::First(levels) | Self::Nested(levels, _) | Self::HostNested(levels) => {
                Some(levels)
            }
            _ => None,
        }
    }

    pub fn second(self) -> Option<u32> {
        match self {
            Self::Second(levels) | Self::Nested(_, levels) | Self::DeviceSecond(levels) => {
                Some(levels)
            }
            _ => None,
        }
    }

    /// Whether the guest's PASID table has it.
    pub fn in_table(self) -> bool {
        matches!(self, Self::First(_) | Self::Second(_) | Self::Nested(..) | Self::PassThrough)
    }

    pub fn is_hosts(self) -> bool {
        matches!(self, Self::HostNested(_) | Self::HostPaging | Self::HostBlocked)
    }

    /// Whether addresses go through as they are.
    pub fn is_identity(self) -> bool {
        matches!(self, Self::PassThrough | Self::DevicePassThrough | Self::Off | Self::HostPaging)
    }
}

const CASES: [(Kind, Owner); 23] = {
    use Owner::{Delegated, Source};
    [
        (Kind::First(4), Source),
        (Kind::First(5), Source),
        (Kind::Second(3), Source),
        (Kind::Second(4), Source),
        (Kind::Second(5), Source),
        (Kind::Nested(4, 3), Source),
        (Kind::Nested(4, 4), Source),
        (Kind::Nested(4, 5), Source),
        (Kind::Nested(5, 3), Source),
        (Kind::Nested(5, 4), Source),
        (Kind::Nested(5, 5), Source),
        (Kind::PassThrough, Source),
        (Kind::First(4), Delegated),
        (Kind::Second(4), Delegated),
        (Kind::Nested(4, 4), Delegated),
        (Kind::PassThrough, Delegated),
        (Kind::DeviceSecond(4), Source),
        (Kind::DevicePassThrough, Source),
        (Kind::Off, Source),
        (Kind::HostNested(4), Source),
        (Kind::HostNested(5), Source),
        (Kind::HostPaging, Source),
        (Kind::HostBlocked, Source),
    ]
};

fn damages(kind: Kind, owner: Owner) -> Vec<Damage> {
    let mut all = vec![Damage::None];
    if kind != Kind::Off {
        all.push(Damage::Interrupt);
    }
    if kind.is_identity() {
        all.push(Damage::Nowhere);
    }
    if !matches!(kind, Kind::DevicePassThrough | Kind::Off | Kind::HostBlocked) {
        all.push(Damage::FarAddress);
    }
    if let Some(levels) = kind.first() {
        all.extend((1..=levels).map(|level| Damage::One(One::Absent(level))));
        let others = [
            One::ReadOnly,
            One::ReadOnlyAbove,
            One::Supervisor,
            One::SupervisorAbove,
            One::Reserved,
            One::ToInterrupts,
            One::BadTable,
            One::BadRoot,
        ];
        all.extend(others.map(Damage::One));
        if !matches!(kind, Kind::Nested(..)) {
            all.push(Damage::One(One::Wide));
        }
    }
    if let Some(levels) = kind.second() {
        all.extend((1..=levels).map(|level| Damage::Two(Two::Absent(level))));
        let others = [
            Two::ReadOnly,
            Two::ReadOnlyAbove,
            Two::WriteOnly,
            Two::Reserved,
            Two::ToInterrupts,
            Two::BadTable,
            Two::BadRoot,
        ];
        all.extend(others.map(Damage::Two));
        // A context without table does not say how wide the unit's addresses are.
        if kind.in_table() {
            all.push(Damage::Two(Two::Wide));
        }
    }
    if matches!(kind, Kind::Nested(..)) {
        let tables = [Table::Absent, Table::ReadOnly, Table::ReadOnlyMarked, Table::WriteOnly];
        all.extend(tables.map(Damage::Table));
    }
    if kind.in_table() {
        let entries = [
            Entry::Absent,
            Entry::AbsentQuietly,
            Entry::Reserved,
            Entry::Type,
            Entry::DirectoryAbsent,
            Entry::DirectoryReserved,
            Entry::BadTable,
            Entry::BadDirectory,
            Entry::Beyond,
        ];
        all.extend(entries.map(Damage::Entry));
        if owner == Owner::Source {
            all.push(Damage::Entry(Entry::Disabled));
        }
    }
    all
}

/// Requests without PASID, with one, and with one and privilege.
fn spaces() -> [AddressSpace; 3] {
    [without(), with(PASID), AddressSpace { pasid: Some(pasid(PASID)), privileged: true }]
}

/// Makes every cell of a case over `ground`.
fn case(kind: Kind, owner: Owner, ground: Ground, tally: &mut Tally) {
    let mut world = World::new(kind, owner, ground);
    for damage in damages(kind, owner) {
        let undo = world.damage(damage);
        let at = world.address(damage) + OFFSET;
        let requests = spaces().map(|space| OPS.map(|op| Request { space, at, op }));
        let requests = requests.as_flattened();
        tally.cells += requests.len();
        // First each with nothing cached, then with what all others left; and each again with what
        // itself left.
        for (cold, request) in [true, false]
            .into_iter()
            .flat_map(|cold| requests.iter().map(move |request| (cold, *request)))
        {
            let expected = oracle::expected(&world, damage, request.space, request.op);
            if cold {
                world.forget();
            }
            for _ in 0..2 {
                let outcome = check(&world.guest, &world.channel, request, expected);
                tally.note(outcome, || {
                    format!("{kind:?} ({owner:?}), {damage:?}, over {ground:?}, {request:x?}")
                });
            }
        }
        world.undo(damage, undo);
    }
}

#[test]
fn every_cell() {
    let mut tally = Tally::default();
    for (kind, owner) in CASES {
        for ground in GROUNDS {
            // A PASID-table entry cannot name a stage 2 in Arm's format.
            if kind.is_hosts() && ground.is_arm() {
                World::is_refused(kind, ground);
                continue;
            }
            case(kind, owner, ground, &mut tally);
        }
    }
    tally.end(CELLS);
}

const CELLS: usize = 32_124;
