//! Walks of page tables in guest memory, and what may be cached of them.

use mem::{Access, Gpa, GuestMemory, Iova, MemError};
use pgtable::{
    ArmStageOne, ArmStageTwo, Denied, FirstStage, Format, Leaf, ReservedBits, SecondStage, Tables,
    WalkFault,
};

use super::Stop;
use crate::cache::{Allowed, Cached, Kind};
use crate::format::vtd::StageOne;
use crate::sabotage::{self, Sabotage};
use crate::stage_two::{GuestPhysical, Untranslated};
use crate::{FaultReason, Stage, StageTwoFault, StageTwoOwner};

/// Tables at guest physical addresses.
struct Physical<'a, M>(&'a GuestPhysical<'a, M>);

/// An entry lies where there is no memory, or, for an update, none that can be written.
#[derive(Clone, Copy)]
struct Unreachable {
    update: bool,
    /// The host's stage 2 says so.
    stop: Option<Untranslated>,
}

impl<M: GuestMemory> Physical<'_, M> {
    fn unreachable(&self, update: bool) -> impl FnOnce(MemError) -> Unreachable + use<'_, M> {
        move |_| Unreachable { update, stop: self.0.take_stop() }
    }
}

impl<M: GuestMemory> Tables for Physical<'_, M> {
    type Error = Unreachable;

    fn load(&self, entry: u64) -> Result<u64, Unreachable> {
        self.0.load_u64(Gpa(entry)).map_err(self.unreachable(false))
    }

    fn compare_exchange(
        &self,
        entry: u64,
        current: u64,
        new: u64,
    ) -> Result<Result<u64, u64>, Unreachable> {
        if sabotage::is(Sabotage::NoAccessedDirty) {
            return Ok(Ok(current));
        }
        self.0.compare_exchange_u64(Gpa(entry), current, new).map_err(self.unreachable(true))
    }
}

/// First-stage tables at addresses that a second stage translates.
struct Nested<'a, M, F> {
    tables: Physical<'a, M>,
    root: Gpa,
    format: &'a F,
}

/// A first-stage table.
pub(super) struct Table<'a, F> {
    root: Gpa,
    format: &'a F,
    write_protect: bool,
}

impl<'a, F> Table<'a, F> {
    /// The table of `format` whose root is at `root`.
    pub(super) fn new(root: Gpa, format: &'a F) -> Self {
        Self { root, format, write_protect: false }
    }
}

impl<'a> From<&'a StageOne> for Table<'a, FirstStage> {
    fn from(one: &'a StageOne) -> Self {
        let StageOne { root, format, supervisor: _, write_protect } = one;
        Self { root: *root, format, write_protect: *write_protect }
    }
}

/// What a walk that begins with a first stage found.
pub(super) struct Found {
    pub(super) cached: Cached<Gpa>,
    /// Whether the first stage has it in every address space.
    pub(super) global: bool,
}

/// A format, and how its architecture speaks of faults.
pub(crate) trait Walked: Format {
    /// The fault as the architecture has it.
    fn adapt<E>(&self, fault: WalkFault<E>) -> WalkFault<E> {
        fault
    }
}

impl Walked for FirstStage {}
impl Walked for SecondStage {}

impl Walked for ArmStageOne {
    fn adapt<E>(&self, fault: WalkFault<E>) -> WalkFault<E> {
        adapt_arm(self, fault)
    }
}

impl Walked for ArmStageTwo {
    fn adapt<E>(&self, fault: WalkFault<E>) -> WalkFault<E> {
        adapt_arm(self, fault)
    }
}

/// To Arm, an address that is too wide for a table is one that the table does not map, at its start
/// level; and one that is too wide for what comes out is too wide.
fn adapt_arm<F: Format, E>(format: &F, fault: WalkFault<E>) -> WalkFault<E> {
    match fault {
        WalkFault::NonCanonical | WalkFault::BeyondWidth => {
            WalkFault::NotPresent { level: format.levels() }
        }
        WalkFault::Reserved { which: ReservedBits::Address, .. } => WalkFault::BeyondWidth,
        other => other,
    }
}

/// Why an entry of a nested first-stage table could not be reached.
enum NestedError {
    /// The second stage does not translate its address.
    SecondStage(Gpa, WalkFault<Unreachable>),
    /// The second stage does, but to no memory.
    Unreachable(Unreachable),
}

impl<M: GuestMemory, F: Walked> Nested<'_, M, F> {
    fn walk(&self, address: u64, access: Access) -> Result<Leaf, WalkFault<Unreachable>> {
        let request = request(access, false, false);
        pgtable::walk(self.format, self.root.0, address, &request, &self.tables)
            .map_err(|fault| self.format.adapt(fault))
    }

    fn entry(&self, entry: u64, access: Access) -> Result<u64, NestedError> {
        let page = self
            .walk(entry, access)
            .map_err(|fault| NestedError::SecondStage(Gpa(entry), fault))?;
        Ok(page.translate(entry))
    }
}

impl<M: GuestMemory, F: Walked> Tables for Nested<'_, M, F> {
    type Error = NestedError;

    fn load(&self, entry: u64) -> Result<u64, NestedError> {
        let entry = self.entry(entry, Access::Read)?;
        self.tables.load(entry).map_err(NestedError::Unreachable)
    }

    fn compare_exchange(
        &self,
        entry: u64,
        current: u64,
        new: u64,
    ) -> Result<Result<u64, u64>, NestedError> {
        let entry = self.entry(entry, Access::Write)?;
        self.tables.compare_exchange(entry, current, new).map_err(NestedError::Unreachable)
    }
}

/// Walks a first-stage table.
pub(super) fn stage_one<M: GuestMemory, F: Walked>(
    memory: &GuestPhysical<'_, M>,
    one: &Table<'_, F>,
    address: Iova,
    access: Access,
    privileged: bool,
) -> Result<Found, Stop> {
    let request = request(access, privileged, one.write_protect);
    let leaf = pgtable::walk(one.format, one.root.0, address.0, &request, &Physical(memory))
        .map_err(|fault| stop(one.format.adapt(fault), Stage::One, unreachable(Stage::One)))?;
    let allowed = allowed(one.format, &leaf, one.write_protect);
    Ok(Found { cached: cached(&leaf, allowed, Kind::StageOne), global: leaf.global })
}

/// Walks a second-stage table of the guest's.
pub(super) fn stage_two<M: GuestMemory, F: Walked>(
    memory: &GuestPhysical<'_, M>,
    (root, format): (Gpa, &F),
    address: Iova,
    access: Access,
) -> Result<Cached<Gpa>, Stop> {
    let leaf = Nested { tables: Physical(memory), root, format }
        .walk(address.0, access)
        .map_err(|fault| guests_stage_two(fault, Gpa(address.0), Stage::Two))?;
    Ok(cached(&leaf, allowed(format, &leaf, false), Kind::StageTwo))
}

/// Translates the address of a context descriptor, or of a table of them, by a second-stage table
/// of the guest's.
pub(super) fn for_descriptor<M: GuestMemory, F: Walked>(
    memory: &GuestPhysical<'_, M>,
    (root, format): (Gpa, &F),
    address: Gpa,
) -> Result<Gpa, Stop> {
    let leaf = Nested { tables: Physical(memory), root, format }
        .walk(address.0, Access::Read)
        .map_err(|fault| guests_stage_two(fault, address, Stage::TwoForDescriptor))?;
    Ok(Gpa(leaf.translate(address.0)))
}

/// Walks a first-stage table whose every address goes through a second-stage table of the guest's.
///
/// The first stage is marked accessed and dirty before the second is asked for the page itself,
/// so a fault there leaves marks of an access that did not happen, as processors do.
pub(super) fn nested<M: GuestMemory, F: Walked, G: Walked>(
    memory: &GuestPhysical<'_, M>,
    one: &Table<'_, F>,
    (root, format): (Gpa, &G),
    address: Iova,
    access: Access,
    privileged: bool,
) -> Result<Found, Stop> {
    let tables = Nested { tables: Physical(memory), root, format };
    let request = request(access, privileged, one.write_protect);
    let outer = pgtable::walk(one.format, one.root.0, address.0, &request, &tables)
        .map_err(|fault| stop(one.format.adapt(fault), Stage::One, nested_stop))?;
    let middle = outer.translate(address.0);
    let inner = tables
        .walk(middle, access)
        .map_err(|fault| guests_stage_two(fault, Gpa(middle), Stage::Two))?;

    let size_bits = outer.size_bits.min(inner.size_bits);
    let base = inner.translate(middle) & !((1u64 << size_bits) - 1);
    let allowed =
        allowed(one.format, &outer, one.write_protect).and(allowed(format, &inner, false));
    let cached = Cached {
        base: Gpa(base),
        size_bits: size_bits as u8,
        scope_bits: outer.size_bits as u8,
        kind: Kind::Nested,
        allowed,
    };
    Ok(Found { cached, global: outer.global })
}

pub(crate) fn request(access: Access, privileged: bool, write_protect: bool) -> pgtable::Request {
    let access = match access {
        Access::Read => pgtable::Access::Read,
        Access::Write => pgtable::Access::Write,
    };
    pgtable::Request { access, privileged, write_protect, smep: false }
}

fn cached(leaf: &Leaf, allowed: Allowed, kind: Kind) -> Cached<Gpa> {
    let size_bits = leaf.size_bits as u8;
    Cached { base: Gpa(leaf.base), size_bits, scope_bits: size_bits, kind, allowed }
}

/// Which accesses a cached leaf allows without another walk.
pub(crate) fn allowed<F: Format>(format: &F, leaf: &Leaf, write_protect: bool) -> Allowed {
    let mut allowed = Allowed::default();
    for access in [Access::Read, Access::Write] {
        for privileged in [false, true] {
            let request = request(access, privileged, write_protect);
            let marked = access == Access::Read || leaf.dirty;
            let permitted = marked && format.denied(&request, leaf.rights).is_none();
            allowed = allowed.with(access, privileged, permitted);
        }
    }
    allowed
}

/// What a fault of a walk of `stage` means; `tables` says what an unreachable entry does.
pub(crate) fn reason<E>(
    fault: WalkFault<E>,
    stage: Stage,
    tables: impl FnOnce(u8, E) -> FaultReason,
) -> FaultReason {
    match fault {
        WalkFault::NonCanonical => FaultReason::NonCanonical,
        WalkFault::BeyondWidth => FaultReason::AddressWidth { stage },
        WalkFault::NotPresent { level } => FaultReason::NotPresent { stage, level },
        WalkFault::AccessFlag { level } => FaultReason::AccessFlag { stage, level },
        WalkFault::Reserved { level, .. } => FaultReason::TableReserved { stage, level },
        WalkFault::Permission { kind, .. } => {
            FaultReason::Permission { stage, user: kind == Denied::User }
        }
        WalkFault::Tables { level, error } => tables(level, error),
        WalkFault::Contended => FaultReason::AccessedDirty { stage },
    }
}

/// Level of the entry at which a walk stopped; zero if at none.
pub(crate) fn level<E>(fault: &WalkFault<E>) -> u8 {
    match *fault {
        WalkFault::NotPresent { level }
        | WalkFault::AccessFlag { level }
        | WalkFault::Reserved { level, .. }
        | WalkFault::Permission { level, .. }
        | WalkFault::Tables { level, .. } => level,
        WalkFault::NonCanonical | WalkFault::BeyondWidth | WalkFault::Contended => 0,
    }
}

/// Where a walk of `stage` stopped; `tables` says what an unreachable entry means.
fn stop<E>(fault: WalkFault<E>, stage: Stage, tables: impl FnOnce(u8, E) -> Stop) -> Stop {
    match fault {
        WalkFault::Tables { level, error } => tables(level, error),
        other => reason(other, stage, |level, _| FaultReason::TableAccess { stage, level }).into(),
    }
}

fn unreachable(stage: Stage) -> impl FnOnce(u8, Unreachable) -> Stop {
    move |level, error| match error {
        Unreachable { stop: Some(stop), .. } => Stop::of_host(&stop, true),
        Unreachable { update: true, .. } => FaultReason::AccessedDirty { stage }.into(),
        Unreachable { update: false, .. } => FaultReason::TableAccess { stage, level }.into(),
    }
}

/// Where the guest's second stage stopped when it was to translate `gpa`, for a table's entry or
/// for the request itself as `stage` says.
fn guests_stage_two(fault: WalkFault<Unreachable>, gpa: Gpa, stage: Stage) -> Stop {
    let (table, level) = (stage != Stage::Two, level(&fault));
    let found = stop(fault, stage, unreachable(stage));
    let own = StageTwoFault { gpa, table, level, owner: StageTwoOwner::Guest };
    Stop { stage_two: found.stage_two.or(Some(own)), ..found }
}

fn nested_stop(level: u8, error: NestedError) -> Stop {
    match error {
        NestedError::Unreachable(error) => unreachable(Stage::One)(level, error),
        NestedError::SecondStage(gpa, fault) => guests_stage_two(fault, gpa, Stage::TwoForTable),
    }
}
