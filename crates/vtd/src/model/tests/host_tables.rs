//! The host owns the PASID tables: what the guest's tables say is bound when it says so.

mod faults;
mod invalidations;
mod lending;
mod random;

use iommu::{GuestPasid, VtdStageOne, VtdStageOneFlags};
use std::collections::BTreeMap;

use super::objects::{By, Call, Place};
use super::*;
use crate::spec::VcmdLayout;

/// Most calls for changes in one poll: those of its budget, and of the table that it has begun.
/// Each place that is refused is also cleared.
pub(super) const MAX_CHANGES: u64 = 2 * (ENTRIES_PER_POLL / CHANGE_COST + 64) as u64;

const ROOT: u64 = 0x4000;
const CONTEXTS: u64 = 0x5000;
const DIRECTORY: u64 = 0x6000;
const OTHER_DIRECTORY: u64 = 0x7000;
const TABLE: u64 = 0x8000;
const FIRST_STAGE: u64 = 1 << 6;
const PASS_THROUGH: u64 = 4 << 6;
const DOMAIN: u64 = 9;

/// P, DTE, PASIDE, and a directory of the smallest size: 2 to the power of 13 PASIDs.
const CONTEXT: u64 = DIRECTORY | 0b1101;
const SMALLEST: u32 = 1 << 13;

fn unit() -> Unit {
    unit_with(Options::host_owned())
}

/// With one device, scalable mode and the queue on, translation off, tables that are empty.
fn unit_with(options: Options) -> Unit {
    let mut unit = Unit::with(options);
    unit.vm.state().quota = 100;
    let _ = unit.model.add_device(device());
    let _ = unit.write64(0x20, ROOT | 0x400);
    let _ = unit.write32(0x18, SRTP);
    let _ = unit.write64(0x90, QUEUE | 0x800);
    let _ = unit.write32(0x18, QIE);
    unit.drain();
    unit.store(Gpa(ROOT + 8), &[CONTEXTS | 1]); // devices from 0x80 on
    unit
}

/// The same, with a present context entry, and translation on.
fn translating() -> Unit {
    let mut unit = unit();
    unit.start();
    unit
}

fn place(pasid: u32) -> Place {
    (device(), Some(GuestPasid(Pasid::new(pasid).unwrap())))
}

const WITHOUT_PASID: Place = (RequesterId::from_bits(0x80), None);

fn table(root: u64) -> VtdStageOne {
    VtdStageOne { flags: VtdStageOneFlags::empty(), root: Gpa(root), address_width: 48 }
}

fn stage_one(root: u64) -> By {
    By::StageOne(table(root))
}

fn context_device() -> [u64; 2] {
    [1 | 3 << 4 | u64::from(device().bits()) << 32, 0]
}

const CONTEXT_GLOBAL: [u64; 2] = [1 | 1 << 4, 0];
const ENTRIES_GLOBAL: [u64; 2] = [7 | 3 << 4, 0];

fn entry_changed(pasid: u64) -> [u64; 2] {
    [7 | 1 << 4 | DOMAIN << 16 | pasid << 32, 0]
}

fn pasid_iotlb(domain: u64, pasid: u64) -> [u64; 2] {
    [6 | 2 << 4 | domain << 16 | pasid << 32, 0]
}

impl Unit {
    fn set_context(&self, words: [u64; 2]) {
        self.store(Gpa(CONTEXTS), &words);
    }

    /// An entry of the first PASID table, which is made.
    fn set_entry(&self, pasid: u64, kind: u64, root: u64) {
        self.store(Gpa(DIRECTORY), &[TABLE | 1]);
        self.store(Gpa(TABLE + 64 * pasid), &[kind | 1, DOMAIN, root]);
    }

    fn clear_entry(&self, pasid: u64) {
        self.store(Gpa(TABLE + 64 * pasid), &[0; 8]);
    }

    /// Polls until there is nothing more to do.
    fn drain(&mut self) {
        for _ in 0..100_000 {
            if self.poll().progress == Progress::Idle {
                return;
            }
        }
        panic!("there is always more to do");
    }

    fn start(&mut self) {
        self.set_context([CONTEXT, 0]);
        let _ = self.write32(0x18, TE | QIE);
        self.drain();
        assert_eq!(self.read32(0x1c), TE | SRTP | QIE);
        self.vm.state().objects.calls.clear();
    }

    /// Queues descriptors, has them worked off, and gives the calls that were made.
    fn tell(&mut self, descriptors: &[[u64; 2]]) -> Vec<Call> {
        let _ = self.submit(descriptors);
        self.drain();
        assert_eq!(self.read32(0x34) & IQE, 0);
        assert_eq!(self.read64(0x80), self.read64(0x88), "the queue is empty");
        core::mem::take(&mut self.vm.state().objects.calls)
    }

    fn bound(&self) -> BTreeMap<Place, By> {
        self.vm.state().objects.bound()
    }

    fn counts(&self) -> BindingCounters {
        self.model.counters().bindings
    }
}

#[test]
fn requests_pass_through_until_translation_is_on_and_are_blocked_then() {
    let mut unit = unit();
    assert_eq!(unit.bound(), BTreeMap::from([(WITHOUT_PASID, By::StageTwo)]));
    let _ = unit.write32(0x18, TE | QIE);
    unit.drain();
    assert_eq!(unit.read32(0x1c), TE | SRTP | QIE);
    assert_eq!(unit.bound(), BTreeMap::new());
    // A device that nobody told the unit of is not let through either.
    let source = unit.vm.state().contexts.clone().unwrap();
    let reason = source.lookup(&MemoryMap::default(), device()).unwrap_err().reason;
    assert_eq!(reason, FaultReason::ContextNotPresent);
    let _ = unit.write32(0x18, QIE);
    unit.drain();
    assert_eq!(unit.read32(0x1c), SRTP | QIE);
    assert_eq!(unit.bound(), BTreeMap::from([(WITHOUT_PASID, By::StageTwo)]));
    assert!(unit.vm.state().contexts.is_none());
    assert_eq!(unit.vm.forgotten(), [], "the host's tables have no guest's numbers in them");
}

#[test]
fn a_guests_entries_are_bound_with_translation() {
    let mut unit = unit();
    unit.set_entry(0, PASS_THROUGH, 0);
    unit.set_entry(5, FIRST_STAGE, 0x9000);
    unit.start();
    let all = BTreeMap::from([(WITHOUT_PASID, By::StageTwo), (place(5), stage_one(0x9000))]);
    assert_eq!(unit.bound(), all);
    // Again from the root pointer on.
    unit.set_entry(6, FIRST_STAGE, 0xa000);
    let _ = unit.write32(0x18, TE | QIE | SRTP);
    unit.drain();
    assert_eq!(unit.bound().len(), 3);
    let _ = unit.write32(0x18, QIE);
    unit.drain();
    assert_eq!(unit.bound(), BTreeMap::from([(WITHOUT_PASID, By::StageTwo)]));
    assert_eq!(unit.vm.state().objects.tables(), 0);
}

#[test]
fn a_context_entry_counts_when_it_is_announced() {
    let mut unit = unit();
    let _ = unit.write32(0x18, TE | QIE);
    unit.drain();
    unit.set_entry(0, FIRST_STAGE, 0x9000);
    unit.set_entry(5, FIRST_STAGE, 0x9000);
    unit.set_context([CONTEXT, 0]);
    assert_eq!(unit.bound(), BTreeMap::new());
    unit.tell(&[context_device()]);
    let both = [(WITHOUT_PASID, stage_one(0x9000)), (place(5), stage_one(0x9000))];
    assert_eq!(unit.bound(), BTreeMap::from(both));
    assert_eq!(unit.vm.state().objects.tables(), 1, "one table serves both");
    // Unchanged: nothing is read again.
    let read = unit.counts().entries_read;
    assert_eq!(unit.tell(&[context_device(), CONTEXT_GLOBAL]), []);
    assert_eq!(unit.counts().entries_read, read);
    // Another RID_PASID, and another directory.
    unit.set_context([CONTEXT, 5]);
    unit.tell(&[CONTEXT_GLOBAL]);
    let all = [WITHOUT_PASID, place(0), place(5)].map(|place| (place, stage_one(0x9000)));
    assert_eq!(unit.bound(), BTreeMap::from(all));
    unit.set_context([OTHER_DIRECTORY | 0b1101, 0]);
    unit.tell(&[context_device()]);
    assert_eq!(unit.bound(), BTreeMap::new());
    // And none.
    unit.set_context([CONTEXT, 0]);
    unit.tell(&[context_device()]);
    assert_eq!(unit.bound().len(), 2);
    unit.set_context([0, 0]);
    unit.tell(&[context_device()]);
    assert_eq!(unit.bound(), BTreeMap::new());
}

#[test]
fn an_entry_is_bound_replaced_and_unbound_when_it_is_announced() {
    let mut unit = translating();
    unit.set_entry(5, FIRST_STAGE, 0x9000);
    assert_eq!(unit.bound(), BTreeMap::new());
    assert_eq!(unit.tell(&[entry_changed(5)]), [Call::Attach(place(5), stage_one(0x9000))]);
    assert_eq!(unit.tell(&[entry_changed(5), ENTRIES_GLOBAL]), [], "the same");
    unit.set_entry(5, FIRST_STAGE, 0xa000);
    assert_eq!(unit.tell(&[entry_changed(5)]), [Call::Replace(place(5), stage_one(0xa000))]);
    unit.set_entry(5, PASS_THROUGH, 0xa000);
    assert_eq!(unit.tell(&[entry_changed(5)]), [Call::Replace(place(5), By::StageTwo)]);
    unit.clear_entry(5);
    assert_eq!(unit.tell(&[entry_changed(5)]), [Call::Detach(place(5))]);
    assert_eq!(unit.vm.state().objects.tables(), 0);
    let BindingCounters { bound, made, replaced, ended, refused, .. } = unit.counts();
    assert_eq!((bound, made, replaced, ended, refused), (0, 2, 2, 2, 0));
}

#[test]
fn flags_and_width_of_an_entry_are_bound_too() {
    let mut options = Options::host_owned();
    options.first_stage_5_level = true;
    let mut unit = unit_with(options);
    unit.start();
    unit.set_entry(5, FIRST_STAGE, 0x9000 | 1 << 2); // FSPM 1
    unit.tell(&[entry_changed(5)]);
    let five_level = VtdStageOne { address_width: 57, ..table(0x9000) };
    assert_eq!(unit.bound()[&place(5)], By::StageOne(five_level));
    // WPE alone stops nothing.
    unit.set_entry(5, FIRST_STAGE, 0x9000 | 1 << 4);
    unit.tell(&[entry_changed(5)]);
    assert_eq!(unit.bound()[&place(5)], stage_one(0x9000));
}

#[test]
fn the_guest_gives_its_own_numbers_or_uses_those_that_it_was_granted() {
    let mut unit = translating();
    unit.set_entry(5, FIRST_STAGE, 0x9000);
    unit.tell(&[entry_changed(5)]);
    assert_eq!(unit.vm.state().pasids, BTreeSet::from([Pasid::new(5).unwrap()]));

    let options =
        Options { virtual_commands: Some(VcmdLayout::Revision33), ..Options::host_owned() };
    let mut unit = unit_with(options);
    unit.start();
    unit.set_entry(5, FIRST_STAGE, 0x9000);
    unit.tell(&[entry_changed(5)]);
    assert_eq!((unit.bound().len(), unit.counts().refused), (0, 1), "it was not granted");
    unit.vm.state().pasids.insert(Pasid::new(5).unwrap());
    unit.tell(&[entry_changed(5)]);
    assert_eq!(unit.bound().len(), 1);
    // What is given back is not bound any more, though the guest's entry is there.
    let _ = unit.write64(0xe00, 2 | 5 << 16);
    unit.drain();
    assert_eq!(unit.bound(), BTreeMap::new());
    assert_eq!(unit.read64(0xe10), 0);
    assert_eq!(unit.vm.state().pasids, BTreeSet::new());
}

#[test]
fn what_the_host_refuses_is_blocked_and_counted() {
    let mut unit = translating();
    unit.vm.state().objects.refused.insert(GuestPasid(Pasid::new(5).unwrap()));
    unit.set_entry(5, FIRST_STAGE, 0x9000);
    unit.set_entry(6, FIRST_STAGE, 0x9000);
    unit.tell(&[entry_changed(5), entry_changed(6)]);
    assert_eq!(unit.bound(), BTreeMap::from([(place(6), stage_one(0x9000))]));
    assert_eq!(unit.counts().refused, 1);
    // In the place of something: that is not left.
    unit.set_entry(6, FIRST_STAGE, 0xa000);
    unit.vm.state().objects.fail = Some(ObjectError::NoMemory);
    assert_eq!(unit.tell(&[entry_changed(6)]), [Call::Detach(place(6))]);
    assert_eq!((unit.bound().len(), unit.counts().refused), (0, 2));
    assert_eq!(unit.counts().bound, 0);
    // It is tried again when the guest says that the entry changed.
    unit.vm.state().objects.fail = None;
    unit.tell(&[entry_changed(6)]);
    assert_eq!(unit.bound(), BTreeMap::from([(place(6), stage_one(0xa000))]));
    // The quota is the host's say, too.
    unit.vm.state().quota = 0;
    unit.set_entry(7, FIRST_STAGE, 0xb000);
    unit.tell(&[entry_changed(7)]);
    assert_eq!((unit.bound().len(), unit.counts().refused), (1, 3));
}

#[test]
fn a_host_that_does_not_undo_is_left() {
    let mut unit = translating();
    unit.set_entry(5, FIRST_STAGE, 0x9000);
    unit.tell(&[entry_changed(5)]);
    unit.vm.state().objects.fail_detach = Some(ObjectError::NoMemory);
    unit.clear_entry(5);
    unit.tell(&[entry_changed(5)]);
    assert!(unit.vm.state().closed);
}

#[test]
fn a_device_that_is_gone_is_forgotten() {
    let mut unit = translating();
    unit.set_entry(5, FIRST_STAGE, 0x9000);
    unit.vm.state().objects.fail = Some(ObjectError::NoDevice(device()));
    unit.tell(&[entry_changed(5), entry_changed(5)]);
    assert_eq!(unit.counts().refused, 1, "it was asked for once");
    unit.vm.state().objects.fail = None;
    // Attached again, it is read again.
    let effects = unit.model.add_device(device());
    assert!(effects.schedule);
    unit.drain();
    assert_eq!(unit.bound(), BTreeMap::from([(place(5), stage_one(0x9000))]));
}

/// A directory of the largest size whose every entry names the same table, which is full.
#[test]
fn tables_are_read_a_bounded_part_at_a_time() {
    let mut unit = unit();
    unit.vm.state().quota = 0;
    const LARGE: u64 = 0x2_0000;
    for at in (LARGE..LARGE + 0x2_0000).step_by(8) {
        unit.store(Gpa(at), &[TABLE | 1]);
    }
    for pasid in 0..64 {
        unit.store(Gpa(TABLE + 64 * pasid), &[FIRST_STAGE | 1, DOMAIN, 0x9000]);
    }
    unit.set_context([LARGE | 7 << 9 | 0b1001, 0]);
    let _ = unit.write32(0x18, TE | QIE);
    let _ = unit.submit(&[wait(7)]);
    let most = ENTRIES_PER_POLL + 65 + 64 * CHANGE_COST;
    let mut polls = 0;
    loop {
        let before = unit.counts();
        let progress = unit.poll().progress;
        let after = unit.counts();
        assert!(after.entries_read - before.entries_read <= u64::from(most));
        assert!(2 * (after.refused - before.refused) <= MAX_CHANGES);
        if progress == Progress::Idle {
            break;
        }
        assert_eq!(unit.vm.memory().load_u32(STATUS), Ok(0), "the queue waits");
        polls += 1;
    }
    assert!(polls > (1 << 20) / ENTRIES_PER_POLL, "{polls} polls");
    assert_eq!(unit.vm.memory().load_u32(STATUS), Ok(7));
    assert_eq!(unit.read32(0x1c), TE | SRTP | QIE);
    assert_eq!(unit.bound(), BTreeMap::from([(WITHOUT_PASID, stage_one(0x9000))]));
}

#[test]
fn tables_that_lead_nowhere_bind_nothing() {
    let mut unit = translating();
    let beyond = 1 << 48;
    for (directory, entry) in [
        (0, FIRST_STAGE | 1),                  // no table
        (0xffff_f000 | 1, FIRST_STAGE | 1),    // no memory there
        (TABLE | 1 | 4, FIRST_STAGE | 1),      // reserved bits
        (TABLE | 1 | beyond, FIRST_STAGE | 1), // too wide
        (TABLE | 1, FIRST_STAGE),              // not present
        (TABLE | 1, 2 << 6 | 2 << 2 | 1),      // second stage
        (TABLE | 1, 3 << 6 | 2 << 2 | 1),      // nested
        (TABLE | 1, 7 << 6 | 1),               // no type
        (TABLE | 1, FIRST_STAGE | 1 << 5 | 1), // reserved bit
    ] {
        unit.store(Gpa(DIRECTORY), &[directory]);
        unit.store(Gpa(TABLE + 64 * 5), &[entry, DOMAIN, 0x9000]);
        assert_eq!(unit.tell(&[ENTRIES_GLOBAL]), [], "{directory:x} {entry:x}");
        assert_eq!(unit.tell(&[entry_changed(5)]), [], "{directory:x} {entry:x}");
    }
    for context in [0xffff_f000 | 0b1101, u64::MAX, beyond | 0b1101] {
        unit.set_context([context, 0]);
        assert_eq!(unit.tell(&[CONTEXT_GLOBAL]), [], "{context:x}");
    }
    unit.store(Gpa(ROOT + 8), &[u64::MAX]);
    assert_eq!(unit.tell(&[CONTEXT_GLOBAL]), []);
}

#[test]
fn pasids_beyond_the_directory_or_without_permission_are_unbound() {
    let mut unit = translating();
    unit.set_context([CONTEXT | 1 << 9, 0]);
    let last = SMALLEST + 1;
    unit.store(Gpa(DIRECTORY + 8 * u64::from(last / 64)), &[TABLE | 1]);
    unit.set_entry(1, FIRST_STAGE, 0x9000);
    unit.tell(&[CONTEXT_GLOBAL]);
    assert_eq!(unit.bound().keys().copied().collect::<Vec<_>>(), [place(1), place(last)]);
    unit.set_context([CONTEXT, 0]);
    unit.tell(&[CONTEXT_GLOBAL]);
    assert_eq!(unit.bound().keys().copied().collect::<Vec<_>>(), [place(1)]);
    assert_eq!(unit.tell(&[entry_changed(last.into())]), []);
    unit.set_entry(0, FIRST_STAGE, 0x9000);
    unit.set_context([CONTEXT & !0b1000, 0]);
    unit.tell(&[CONTEXT_GLOBAL]);
    assert_eq!(unit.bound().keys().copied().collect::<Vec<_>>(), [WITHOUT_PASID]);
}

#[test]
fn a_reset_unbinds_everything_and_can_be_repeated() {
    let mut unit = translating();
    unit.set_entry(0, FIRST_STAGE, 0x9000);
    unit.set_entry(5, FIRST_STAGE, 0xa000);
    unit.tell(&[ENTRIES_GLOBAL]);
    unit.set_context([CONTEXT, 1]);
    let _ = unit.submit(&[CONTEXT_GLOBAL]);
    let _ = unit.write32(0x18, TE | QIE | SRTP); // and something under way
    for _ in 0..2 {
        let ticket = unit.model.reset();
        assert!(unit.vm.is_complete(ticket));
        assert_eq!(unit.bound(), BTreeMap::from([(WITHOUT_PASID, By::StageTwo)]));
        assert_eq!(unit.vm.state().pasids, BTreeSet::new());
        assert_eq!(unit.vm.state().objects.tables(), 0);
        assert_eq!(unit.poll().progress, Progress::Idle);
    }
}

#[test]
fn pasids_beyond_the_units_are_not_bound() {
    let mut unit = unit_with(Options { pasid_bits: Some(2), ..Options::host_owned() });
    unit.start();
    unit.set_entry(3, FIRST_STAGE, 0x9000);
    unit.set_entry(4, FIRST_STAGE, 0x9000);
    unit.tell(&[ENTRIES_GLOBAL]);
    assert_eq!(unit.bound().keys().copied().collect::<Vec<_>>(), [place(3)]);
    assert_eq!(unit.tell(&[entry_changed(4)]), []);
}
