//! A host that owns the tables against a slow reference: random objects, attachments, tables, edits
//! of the host's stage 2 and accesses.
//!
//! The reference keeps what was granted, attached and cleared in ordered maps, and nothing of what
//! an access found: for each it walks the guest's memory from the attached root on, with masks
//! written out by hand. What the engine caches must never show.

use std::collections::{BTreeMap, BTreeSet};

use iommu::{
    AddressSpace, Channel, FaultReason, GuestPasid, HwptId, Layout, Numbering, PasidRange,
    SecondStageLevels, SoftwareHost, Stage, StageOneInvalidation, StageTwoConfig, StageTwoFault,
    StageTwoFormat, StageTwoOwner, Ticket, Vm, VmConfig,
};
use mem::{Gpa, GuestMemory, Iova, Range};

use super::hosted::{guest, Hosted, VA};
use super::scenarios::Verdict;
use super::{dma, pasid, Op, ACCESSED, CAPS, DEVICE, DIRTY, MEMORY, PRESENT, USER, WRITABLE};

/// Pages of an address space, from [`VA`] on.
const PAGES: u64 = 3;
/// Pages of memory that address spaces may have, and the first of them.
const DATA_PAGES: u64 = 5;
const DATA: u64 = 0x20_0000;
const SPACES: usize = 3;
/// PASIDs that are granted, attached and used, from 1 on; requests without any are 0.
const PASIDS: u32 = 3;
/// Polls until what was given back is there again.
const POLLS: usize = 16;

/// What stands below guests in a run.
pub fn grounds() -> Vec<Option<StageTwoConfig>> {
    let over =
        |levels, layout| Some(StageTwoConfig { format: StageTwoFormat::Vtd { levels }, layout });
    vec![
        None,
        over(SecondStageLevels::Four, Layout::Identity),
        over(SecondStageLevels::Three, Layout::Shuffled { seed: 3 }),
        over(SecondStageLevels::Five, Layout::Shuffled { seed: 5 }),
    ]
}

/// Runs `steps` random steps over `ground`, the same for the same seed.
///
/// Every other seed gives the device a TLB of its own.
pub fn run(ground: Option<StageTwoConfig>, seed: u64, steps: u64) -> Verdict {
    let mut world = World::new(ground, seed);
    for number in 1..=steps {
        let step = world.step(number << 8);
        step.map_err(|wrong| format!("seed {seed:#x}, step {number}, over {ground:?}: {wrong}"))?;
    }
    world.end().map_err(|wrong| format!("seed {seed:#x}, over {ground:?}: {wrong}"))
}

/// SplitMix64.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ mixed >> 31) % limit
    }

    /// Mostly.
    fn often(&mut self) -> bool {
        self.below(5) != 0
    }
}

/// What can be attached.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Table {
    /// Stage 2 alone.
    Paging,
    /// A guest's address space on it.
    Space(usize),
}

struct World {
    random: Random,
    hosted: Hosted,
    /// Of the same device.
    second: Channel,
    /// Kept, since it has PASIDs that the guest would else have the same numbers for.
    other: iommu::SoftwareVm,
    roots: [Gpa; SPACES],
    hwpts: [HwptId; SPACES],
    has_stage_two: bool,
    ats: bool,
    granted: BTreeSet<u32>,
    attached: BTreeMap<u32, Table>,
    /// Pages that stage 2 does not have.
    holes: BTreeSet<u64>,
}

impl World {
    fn new(ground: Option<StageTwoConfig>, seed: u64) -> Self {
        let host = SoftwareHost::with_hardware(iommu::Hardware::Vtd(CAPS));
        let private = |name| VmConfig { numbering: Numbering::Private, ..VmConfig::named(name) };
        let other = iommu::Host::create_vm(&host, private("other")).unwrap();
        other.alloc_pasid(PasidRange::ALL).unwrap();
        let config = VmConfig { stage_two: ground, ..private("hosted") };
        let mut hosted = Hosted::with(&host, config);
        let second = hosted.endpoint.channel();
        let ats = seed % 2 == 1;
        hosted.endpoint.set_ats(ats);
        let roots = [0; SPACES].map(|_| {
            let root = hosted.guest.table();
            for page in 0..PAGES {
                hosted.guest.set_first(root, VA + page * 4096, 1, 0);
            }
            root
        });
        let hwpts = roots.map(|root| hosted.nested(root).unwrap());
        // From the first attachment on, the host's table counts.
        hosted.guest.vm.attach_hwpt(DEVICE, None, hosted.parent).unwrap();
        Self {
            random: Random(seed),
            hosted,
            second,
            other,
            roots,
            hwpts,
            has_stage_two: ground.or(super::STAGE_TWO).is_some(),
            ats,
            granted: BTreeSet::new(),
            attached: [(0, Table::Paging)].into(),
            holes: BTreeSet::new(),
        }
    }

    fn step(&mut self, stamp: u64) -> Verdict {
        let place = self.random.below(u64::from(PASIDS) + 1) as u32;
        match self.random.below(32) {
            0..=2 if place != 0 => self.grant(place),
            3 if place != 0 => self.free(place),
            4 if self.random.below(4) == 0 => self.reset(),
            5..=6 => self.attach(place),
            7..=8 => self.replace(place),
            9 => self.detach(place),
            10..=13 => self.page(),
            14..=16 => self.hole(),
            17 => self.destroy(),
            _ => self.access(place, stamp),
        }
    }

    fn vm(&self) -> &iommu::SoftwareVm {
        &self.hosted.guest.vm
    }

    fn place(&self, place: u32) -> Option<GuestPasid> {
        (place != 0).then(|| guest(place))
    }

    fn table(&mut self) -> (Table, HwptId) {
        match self.random.below(SPACES as u64 + 1) as usize {
            SPACES => (Table::Paging, self.hosted.parent),
            space => (Table::Space(space), self.hwpts[space]),
        }
    }

    /// Nothing is in flight, so nothing has to be waited for.
    fn complete(&self, ticket: Ticket) -> Verdict {
        let complete = (0..POLLS).any(|_| self.vm().is_complete(ticket));
        same("complete", &complete, &true)
    }

    fn grant(&mut self, place: u32) -> Verdict {
        let range = PasidRange::new(pasid(place), pasid(place)).unwrap();
        let polls = if self.granted.contains(&place) { 1 } else { POLLS };
        let done = (0..polls).any(|_| {
            let _ = self.vm().pasid_usage();
            self.vm().alloc_pasid(range).is_ok()
        });
        same("granted", &done, &self.granted.insert(place))
    }

    fn free(&mut self, place: u32) -> Verdict {
        let done = self.vm().free_pasid(guest(place)).is_ok();
        self.attached.remove(&place);
        same("freed", &done, &self.granted.remove(&place))
    }

    fn reset(&mut self) -> Verdict {
        let ticket = self.vm().release_pasids();
        self.granted.clear();
        self.attached.retain(|place, _| *place == 0);
        self.complete(ticket)
    }

    fn attach(&mut self, place: u32) -> Verdict {
        let (table, hwpt) = self.table();
        let done = self.vm().attach_hwpt(DEVICE, self.place(place), hwpt).is_ok();
        let known = place == 0 || self.granted.contains(&place);
        let can = known && !self.attached.contains_key(&place);
        if can {
            self.attached.insert(place, table);
        }
        same("attached", &done, &can)
    }

    fn replace(&mut self, place: u32) -> Verdict {
        let (table, hwpt) = self.table();
        let ticket = self.vm().replace_hwpt(DEVICE, self.place(place), hwpt);
        let can = self.attached.contains_key(&place);
        same("replaced", &ticket.is_ok(), &can)?;
        let Ok(ticket) = ticket else { return Ok(()) };
        self.attached.insert(place, table);
        self.complete(ticket)
    }

    fn detach(&mut self, place: u32) -> Verdict {
        let ticket = self.vm().detach_hwpt(DEVICE, self.place(place));
        same("detached", &ticket.is_ok(), &self.attached.remove(&place).is_some())?;
        ticket.map_or(Ok(()), |ticket| self.complete(ticket))
    }

    /// Ends an address space, if nothing has it attached, and makes another of the same table.
    fn destroy(&mut self) -> Verdict {
        let space = self.random.below(SPACES as u64) as usize;
        let done = self.vm().destroy(self.hwpts[space].into()).is_ok();
        let used = self.attached.values().any(|table| *table == Table::Space(space));
        same("destroyed", &done, &!used)?;
        if done {
            self.hwpts[space] = self.hosted.nested(self.roots[space]).unwrap();
        }
        Ok(())
    }

    /// Changes a page of an address space, and has it forgotten, in one of several ways.
    fn page(&mut self) -> Verdict {
        let space = self.random.below(SPACES as u64) as usize;
        let address = VA + self.random.below(PAGES) * 4096;
        let mut entry = DATA + self.random.below(DATA_PAGES) * 4096;
        for flag in [PRESENT, WRITABLE, USER] {
            entry |= if self.random.often() { flag } else { 0 };
        }
        self.hosted.guest.set_first(self.roots[space], address, 1, entry);
        let range = Range::<Iova>::new(Iova(address), 4096).unwrap();
        let what = match self.random.below(4) {
            0 => StageOneInvalidation::All,
            1 => StageOneInvalidation::Entry,
            _ => StageOneInvalidation::Pages { range, leaf_only: true },
        };
        let ticket = self.vm().invalidate_hwpt(self.hwpts[space], &[what]);
        self.complete(ticket.map_err(|error| format!("{error:?}"))?)
    }

    /// Takes a page out of stage 2 or puts it back: of data, or of an address space's tables.
    fn hole(&mut self) -> Verdict {
        let page = match self.random.below(4) {
            0 => {
                let root = self.roots[self.random.below(SPACES as u64) as usize];
                let level = 1 + self.random.below(4) as u8;
                self.entry(root, VA, level).0 & !0xfff
            }
            _ => DATA + self.random.below(DATA_PAGES) * 4096,
        };
        let range = Range::<Gpa>::new(Gpa(page), 4096).unwrap();
        let clear = self.random.below(2) == 0;
        let done = match clear {
            true => self.vm().clear_stage_two(range),
            false => self.vm().restore_stage_two(range),
        };
        same("edited", &done.is_ok(), &self.has_stage_two)?;
        let Ok(ticket) = done else { return Ok(()) };
        if clear {
            self.holes.insert(page);
        } else {
            self.holes.remove(&page);
        }
        self.complete(ticket)
    }

    /// The entry of a level for an address, in tables of the guest's that are there.
    fn entry(&self, root: Gpa, address: u64, level: u8) -> Gpa {
        let index = |level: u8| address >> (12 + 9 * (level - 1)) & 0x1ff;
        let mut table = root.0;
        for above in (level + 1..=4).rev() {
            table = self.load(table + 8 * index(above)) & 0x000f_ffff_ffff_f000;
        }
        Gpa(table + 8 * index(level))
    }

    fn load(&self, at: u64) -> u64 {
        self.hosted.guest.memory.load_u64(Gpa(at)).unwrap()
    }

    /// Makes an access and compares what comes of it with the reference.
    fn access(&mut self, place: u32, stamp: u64) -> Verdict {
        let address = 0x40
            + match self.random.below(8) {
                0 => DATA + self.random.below(DATA_PAGES) * 4096,
                1 if place != 0 => MEMORY,
                _ if self.attached.get(&place) == Some(&Table::Paging) => {
                    DATA + self.random.below(DATA_PAGES) * 4096
                }
                _ => VA + self.random.below(PAGES) * 4096,
            };
        let (write, privileged) =
            (self.random.below(2) == 0, place != 0 && self.random.below(8) == 0);
        let (expected, marks) = match self.reference(place, address, write, privileged) {
            Ok((gpa, entry)) => (Ok(gpa), entry),
            Err(stop) => (Err(stop), None),
        };
        if let Ok(gpa) = expected {
            self.hosted.guest.memory.store_u64(Gpa(gpa), stamp).unwrap();
        }
        let channel = match self.random.below(2) {
            0 => &self.hosted.channel,
            _ => &self.second,
        };
        let space = AddressSpace { pasid: (place != 0).then(|| pasid(place)), privileged };
        let op = if write { Op::Atomic } else { Op::Read };
        let result = dma(channel, space, address, op);
        let fault = self.vm().take_fault().map(|fault| (fault.reason, fault.stage_two));
        let what = format!("access of {place} to {address:#x}, {op:?}, privileged: {privileged}");
        // A page fault of a device that asks for translations is its own business.
        let silent = |reason: &FaultReason| self.ats && reason.is_recoverable();
        let told = expected.err().filter(|(reason, hosts)| hosts.is_some() || !silent(reason));
        same(&what, &fault, &told)?;
        same(&what, &result.is_err(), &expected.is_err())?;
        let Ok(gpa) = expected else { return Ok(()) };
        same(&what, &result, &Ok(stamp))?;
        same(&what, &self.load(gpa), &(stamp + u64::from(write)))?;
        let Some(entry) = marks else { return Ok(()) };
        let marks = ACCESSED | if write { DIRTY } else { 0 };
        same("marks", &(self.load(entry) & marks), &marks)
    }

    /// Where an access goes, and the entry that it marks; or why it goes nowhere.
    fn reference(
        &self,
        place: u32,
        address: u64,
        write: bool,
        privileged: bool,
    ) -> Result<(u64, Option<u64>), (FaultReason, Option<StageTwoFault>)> {
        let Some(table) = self.attached.get(&place) else {
            return Err((FaultReason::PasidEntryNotPresent, None));
        };
        let root = match table {
            Table::Paging => return self.below(address, false).map(|()| (address, None)),
            Table::Space(_) if privileged => return Err((FaultReason::SupervisorDisabled, None)),
            Table::Space(space) => self.roots[*space].0,
        };
        let stage = Stage::One;
        let (mut table, mut all) = (root, WRITABLE | USER);
        for level in (1..=4u8).rev() {
            let at = table + (address >> (12 + 9 * (level - 1)) & 0x1ff) * 8;
            self.below(at, true)?;
            let entry = self.load(at);
            if entry & PRESENT == 0 {
                return Err((FaultReason::NotPresent { stage, level }, None));
            }
            all &= entry;
            table = entry & 0x000f_ffff_ffff_f000;
            if level > 1 {
                continue;
            }
            if all & USER == 0 {
                return Err((FaultReason::Permission { stage, user: true }, None));
            }
            if write && all & WRITABLE == 0 {
                return Err((FaultReason::Permission { stage, user: false }, None));
            }
            let output = table | address & 0xfff;
            self.below(output, false)?;
            return Ok((output, Some(at)));
        }
        unreachable!()
    }

    /// Whether what is below has `gpa`.
    fn below(&self, gpa: u64, table: bool) -> Result<(), (FaultReason, Option<StageTwoFault>)> {
        // Past the memory there is no entry of 2 MiB, or in the next GiB none of 1 GiB.
        let level = match gpa {
            _ if self.holes.contains(&(gpa & !0xfff)) => 1,
            0..MEMORY => return Ok(()),
            _ if !self.has_stage_two => return Err((FaultReason::NoMemory, None)),
            MEMORY..0x4000_0000 => 2,
            _ => 3,
        };
        let stage = if table { Stage::TwoForTable } else { Stage::Two };
        let (gpa, owner) = (Gpa(gpa), StageTwoOwner::Host);
        let stop = StageTwoFault { gpa, table, level, owner };
        Err((FaultReason::NotPresent { stage, level }, Some(stop)))
    }

    /// Everything is given back: what was cached, too.
    fn end(self) -> Verdict {
        let vm = self.vm().clone();
        self.complete(vm.release_pasids())?;
        if self.attached.contains_key(&0) {
            let ticket = vm.detach_hwpt(DEVICE, None).map_err(|error| format!("{error:?}"))?;
            self.complete(ticket)?;
        }
        let counters = vm.counters();
        same("translations", &counters.iotlb_entries, &0)?;
        same("entries", &counters.pasid_entries, &0)?;
        same("device's own", &counters.device_tlb_entries, &0)?;
        same("device's own hits", &(counters.device_tlb_hits > 0), &self.ats)?;
        same("walks", &counters.iotlb_misses, &counters.walks)?;
        same("used stage 2", &(counters.stage_two_walks > 0), &self.has_stage_two)?;
        super::wait(&self.other, self.other.close());
        drop(self.second);
        self.hosted.end();
        Ok(())
    }
}

fn same<T: PartialEq + std::fmt::Debug>(what: &str, got: &T, expected: &T) -> Verdict {
    match got == expected {
        true => Ok(()),
        false => Err(format!("{what}: {got:x?} instead of {expected:x?}")),
    }
}
