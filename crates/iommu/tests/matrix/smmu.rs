//! SMMUv3: every configuration of a stream, every form of table of context descriptors, and every
//! meaning of a request without substream.

mod oracle;
mod world;

use iommu::{AddressSpace, DefaultSubstream, DescriptorForm};

use super::cell::{check, Request, Tally, OFFSET, OPS};
use super::common::{pasid, with, without};
use super::ground::{Ground, GROUNDS};
use world::World;

/// Bits of a substream, where there are any.
pub const BITS: u8 = 12;
/// In another leaf than substream 0, whatever the size of leaves.
pub const SUBSTREAM: u32 = 0x8c5;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Config {
    Abort,
    Bypass,
    One,
    Two,
    Nested,
}

/// A stream; what its table of context descriptors is like does not count without stage 1.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Case {
    pub config: Config,
    pub form: DescriptorForm,
    pub bits: u8,
    pub default: DefaultSubstream,
}

/// Whose the stream-table entry is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Owner {
    /// The guest's, which the engine has from the model.
    Source,
    /// The host's, made of the guest's, which is attached.
    Host,
}

/// What is wrong.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Damage {
    None,
    /// The request's address is too wide.
    FarAddress,
    /// The request's address is in the half that is turned off.
    HighHalf,
    /// The request's address is that of no memory.
    Nowhere,
    /// In stage 1.
    One(One),
    /// In stage 2, where it translates the page.
    Two(Two),
    /// In stage 2, where it translates the last table of stage 1.
    Table(Page),
    /// In stage 2, where it translates the context descriptor.
    Descriptor(Page),
    /// In stage 2, where it translates the pointer to the leaf of descriptors.
    Pointer(Page),
    /// On the way to the descriptor, or in it.
    Entry(Entry),
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum One {
    Absent(u32),
    ReadOnly,
    /// By the descriptor of a table (APTable).
    ReadOnlyAbove,
    Privileged,
    PrivilegedAbove,
    /// The access flag is clear.
    Untouched,
    /// A reserved kind of descriptor at the last level, and a page where there are none.
    Kind,
    PageAtTop,
    Wide,
    BadTable,
    BadRoot,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Two {
    Absent(u32),
    ReadOnly,
    WriteOnly,
    Untouched,
    Kind,
    Wide,
    BadTable,
    BadRoot,
}

/// Of a page of stage 2 that is to be read on the way.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Page {
    Absent,
    /// That will do.
    ReadOnly,
    WriteOnly,
    Untouched,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Entry {
    Invalid,
    /// For the tables of AArch32.
    Unusable,
    /// The table is no memory.
    BadTable,
    PointerInvalid,
    /// The leaf is no memory.
    BadLeaf,
}

const FORMS: [DescriptorForm; 3] =
    [DescriptorForm::Linear, DescriptorForm::Leaves4K, DescriptorForm::Leaves64K];
const DEFAULTS: [DefaultSubstream; 3] =
    [DefaultSubstream::Terminate, DefaultSubstream::Bypass, DefaultSubstream::Zero];
const PAGES: [Page; 4] = [Page::Absent, Page::ReadOnly, Page::WriteOnly, Page::Untouched];

impl Config {
    pub fn has_one(self) -> bool {
        matches!(self, Self::One | Self::Nested)
    }

    pub fn has_two(self) -> bool {
        matches!(self, Self::Two | Self::Nested)
    }
}

impl Case {
    pub fn has_pointers(&self) -> bool {
        self.config.has_one() && self.form != DescriptorForm::Linear
    }
}

fn cases() -> Vec<Case> {
    let single = |config| Case {
        config,
        form: DescriptorForm::Linear,
        bits: 0,
        default: DefaultSubstream::Zero,
    };
    let mut all: Vec<_> = [Config::Abort, Config::Bypass, Config::One, Config::Two, Config::Nested]
        .map(single)
        .into();
    for config in [Config::One, Config::Nested] {
        for form in FORMS {
            all.extend(DEFAULTS.map(|default| Case { config, form, bits: BITS, default }));
        }
    }
    all
}

fn damages(case: &Case) -> Vec<Damage> {
    let mut all = vec![Damage::None, Damage::FarAddress, Damage::HighHalf, Damage::Nowhere];
    if case.config.has_one() {
        all.extend((1..=4).map(|level| Damage::One(One::Absent(level))));
        let others = [
            One::ReadOnly,
            One::ReadOnlyAbove,
            One::Privileged,
            One::PrivilegedAbove,
            One::Untouched,
            One::Kind,
            One::PageAtTop,
            One::Wide,
            One::BadTable,
            One::BadRoot,
        ];
        all.extend(others.map(Damage::One));
        all.extend([Entry::Invalid, Entry::Unusable, Entry::BadTable].map(Damage::Entry));
    }
    if case.has_pointers() {
        all.extend([Entry::PointerInvalid, Entry::BadLeaf].map(Damage::Entry));
    }
    if case.config.has_two() {
        all.extend((1..=3).map(|level| Damage::Two(Two::Absent(level))));
        let others = [
            Two::ReadOnly,
            Two::WriteOnly,
            Two::Untouched,
            Two::Kind,
            Two::Wide,
            Two::BadTable,
            Two::BadRoot,
        ];
        all.extend(others.map(Damage::Two));
    }
    if case.config == Config::Nested {
        all.extend(PAGES.map(Damage::Table));
        all.extend(PAGES.map(Damage::Descriptor));
        if case.has_pointers() {
            all.extend(PAGES.map(Damage::Pointer));
        }
    }
    all
}

/// Requests without substream, and with one: the first, another, that with privilege, and one
/// that the table has not.
fn spaces() -> [AddressSpace; 5] {
    let privileged = AddressSpace { pasid: Some(pasid(SUBSTREAM)), privileged: true };
    [without(), with(0), with(SUBSTREAM), privileged, with(1 << BITS)]
}

fn cells_of(case: Case, owner: Owner, ground: Ground, tally: &mut Tally) {
    let mut world = World::new(case, owner, ground);
    for damage in damages(&case) {
        let patch = world.damage(damage);
        let requests = spaces().map(|space| {
            let at = world.address(damage, space) + OFFSET;
            OPS.map(|op| Request { space, at, op })
        });
        let requests = requests.as_flattened();
        tally.cells += requests.len();
        // As behind VT-d.
        for cold in [true, false] {
            for &request in requests {
                let expected = oracle::expected(&world, damage, &request);
                if cold {
                    world.forget();
                }
                for _ in 0..2 {
                    let outcome = check(&world.guest, &world.channel, request, expected);
                    tally.note(outcome, || {
                        format!("{case:?} ({owner:?}), {damage:?}, over {ground:?}, {request:x?}")
                    });
                }
            }
        }
        world.undo(patch);
    }
}

#[test]
fn every_cell() {
    let mut tally = Tally::default();
    for case in cases() {
        for ground in GROUNDS {
            cells_of(case, Owner::Source, ground, &mut tally);
            if case.config.has_two() {
                continue;
            }
            // A stream-table entry cannot name a stage 2 in VT-d's format.
            if matches!(ground, Ground::VtdIdentity | Ground::VtdShuffled) {
                World::is_refused(case, ground);
            } else {
                cells_of(case, Owner::Host, ground, &mut tally);
            }
        }
    }
    tally.end(CELLS);
}

const CELLS: usize = 80_800;
