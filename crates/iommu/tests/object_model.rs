//! The objects of a VM against plain maps, under random calls: every answer is the one predicted, and
//! after every step each request of each device reaches what it should, or nothing.
#![cfg(not(loom))]

mod common;

use std::collections::{BTreeMap, BTreeSet};

use common::*;
use iommu::{
    Channel, Endpoint, FreePasidError, GuestPasid, Host, HwptFlags, HwptId, HwptParent,
    HwptRequest, InvalidField, Layout, Numbering, ObjectError, PasidRange, SecondStageLevels,
    SoftwareHost, SoftwareVm, StageOneTable, StageTwoConfig, StageTwoFormat, Vm, VmConfig,
    VtdStageOne, VtdStageOneFlags,
};
use mem::{Gpa, GuestMemory};
use pci::RequesterId;
use proptest::prelude::*;

/// An address that all address spaces map, and that is memory.
const AT: u64 = 0x20_0000;
/// What is there.
const FLAT: u64 = 1000;
const SPACES: usize = 4;
const DEVICES: usize = 2;
/// The VM's PASIDs are 1 to this.
const PASIDS: u32 = 3;

/// A device, and a PASID of it or none.
type Place = (usize, Option<u32>);

#[derive(Clone, Copy, Debug)]
enum Step {
    /// Makes a table: for the n-th address space, or (past the last) a paging one.
    Table {
        space: usize,
        for_pasids: bool,
    },
    Attach {
        place: Place,
        table: usize,
    },
    Replace {
        place: Place,
        table: usize,
    },
    Detach {
        place: Place,
    },
    Destroy {
        table: usize,
    },
    Grant {
        pasid: u32,
    },
    Free {
        pasid: u32,
    },
    Release,
    /// A device comes, or goes.
    Plug {
        device: usize,
    },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let table = 0..6usize;
    let pasid = 1..=PASIDS;
    let place = (0..DEVICES, prop::option::weighted(0.7, 1..=PASIDS));
    let step = prop_oneof![
        3 => (0..=SPACES, prop::bool::weighted(0.8))
            .prop_map(|(space, for_pasids)| Step::Table { space, for_pasids }),
        8 => (place.clone(), table.clone()).prop_map(|(place, table)| Step::Attach { place, table }),
        5 => (place.clone(), table.clone()).prop_map(|(place, table)| Step::Replace { place, table }),
        4 => place.prop_map(|place| Step::Detach { place }),
        2 => table.prop_map(|table| Step::Destroy { table }),
        5 => pasid.clone().prop_map(|pasid| Step::Grant { pasid }),
        2 => pasid.prop_map(|pasid| Step::Free { pasid }),
        1 => Just(Step::Release),
        1 => (0..DEVICES).prop_map(|device| Step::Plug { device }),
    ];
    prop::collection::vec(step, 1..80)
}

#[derive(Clone, Copy)]
struct Table {
    /// What a read of [`AT`] through it gives.
    word: u64,
    for_pasids: bool,
}

/// What the VM ought to be like.
#[derive(Default)]
struct Expected {
    tables: BTreeMap<HwptId, Table>,
    granted: BTreeSet<u32>,
    /// Devices that are there, and whether anything has been attached to them.
    devices: BTreeMap<usize, bool>,
    attached: BTreeMap<Place, HwptId>,
}

impl Expected {
    /// Whether a table may be attached there, other things aside.
    fn check(&self, (device, pasid): Place, table: HwptId) -> Result<(), ObjectError> {
        if !self.devices.contains_key(&device) {
            return Err(ObjectError::NoDevice(requester(device)));
        }
        let Some(new) = self.tables.get(&table) else {
            return Err(ObjectError::NoObject(table.into()));
        };
        let rid = self.attached.get(&(device, None)).map(|table| self.tables[table]);
        let of_pasids = self.attached.keys().any(|&(of, pasid)| of == device && pasid.is_some());
        let clash = match pasid {
            Some(_) => !new.for_pasids || rid.is_some_and(|rid| !rid.for_pasids),
            None => !new.for_pasids && of_pasids,
        };
        match clash {
            true => Err(ObjectError::Invalid(InvalidField::Flags)),
            false => Ok(()),
        }
    }

    fn attach(&mut self, place: Place, table: HwptId) -> Result<(), ObjectError> {
        self.check(place, table)?;
        if self.attached.contains_key(&place) {
            return Err(ObjectError::Busy);
        }
        if let Some(number) = place.1.filter(|number| !self.granted.contains(number)) {
            return Err(ObjectError::NotGranted(guest(number)));
        }
        self.attached.insert(place, table);
        self.devices.insert(place.0, true);
        Ok(())
    }

    fn replace(&mut self, place: Place, table: HwptId) -> Result<(), ObjectError> {
        let known = self.check(place, table);
        if let Err(ObjectError::NoDevice(_) | ObjectError::NoObject(_)) = known {
            return known;
        }
        if !self.attached.contains_key(&place) {
            return Err(ObjectError::NotAttached);
        }
        known?;
        self.attached.insert(place, table);
        Ok(())
    }

    fn detach(&mut self, place: Place) -> Result<(), ObjectError> {
        if !self.devices.contains_key(&place.0) {
            return Err(ObjectError::NoDevice(requester(place.0)));
        }
        self.attached.remove(&place).map(drop).ok_or(ObjectError::NotAttached)
    }

    fn destroy(&mut self, table: HwptId) -> Result<(), ObjectError> {
        if self.attached.values().any(|&of| of == table) {
            return Err(ObjectError::Busy);
        }
        self.tables.remove(&table).map(drop).ok_or(ObjectError::NoObject(table.into()))
    }

    /// What a read of [`AT`] gives.
    fn read(&self, place: Place) -> Option<u64> {
        self.attached.get(&place).map(|table| self.tables[table].word)
    }
}

fn requester(device: usize) -> RequesterId {
    RequesterId::from_bits(0x80 + 8 * device as u16)
}

fn guest(number: u32) -> GuestPasid {
    GuestPasid(pasid(number))
}

struct Run {
    vm: SoftwareVm,
    expected: Expected,
    /// Every table there ever was.
    tables: Vec<HwptId>,
    parent: HwptId,
    roots: Vec<Gpa>,
    plugged: BTreeMap<usize, (Endpoint, Channel)>,
}

impl Run {
    fn new(guest: &mut Guest) -> Self {
        let word = |guest: &Guest, page, word| guest.memory.store_u64(Gpa(page), word).unwrap();
        word(guest, AT, FLAT);
        let mut roots = Vec::new();
        for space in 0..SPACES as u64 {
            let page = 0x10_0000 + space * 0x1000;
            word(guest, page, space);
            let root = guest.table();
            guest.set_first(root, AT, 1, page | PRESENT | WRITABLE | USER);
            roots.push(root);
        }
        let vm = guest.vm.clone();
        let (expected, tables) = (Expected::default(), Vec::new());
        let (parent, plugged) = (HwptId(0), BTreeMap::new());
        let mut run = Self { vm, expected, tables, parent, roots, plugged };
        (0..DEVICES).for_each(|device| run.plug(device));
        let request = run.request(HwptFlags::NEST_PARENT | HwptFlags::PASID, None);
        run.parent = run.vm.alloc_hwpt(&request).unwrap();
        run
    }

    fn request(&self, flags: HwptFlags, space: Option<usize>) -> HwptRequest {
        let ioas = HwptParent::Ioas(self.vm.ioas().unwrap());
        let parent = space.map_or(ioas, |_| HwptParent::Hwpt(self.parent));
        let flags_of = VtdStageOneFlags::empty();
        let data = space.map(|space| {
            let root = self.roots[space];
            StageOneTable::Vtd(VtdStageOne { flags: flags_of, root, address_width: 48 })
        });
        let device = self.plugged.keys().next().copied().unwrap_or(0);
        HwptRequest { device: requester(device), parent, flags, data, fault: None }
    }

    fn plug(&mut self, device: usize) {
        match self.plugged.remove(&device) {
            Some((endpoint, channel)) => {
                wait(&self.vm, endpoint.detach());
                drop(channel);
                self.expected.devices.remove(&device);
                self.expected.attached.retain(|&(of, _), _| of != device);
            }
            None => {
                let endpoint = self.vm.attach(requester(device)).unwrap();
                let channel = endpoint.channel();
                self.plugged.insert(device, (endpoint, channel));
                self.expected.devices.insert(device, false);
            }
        }
    }

    fn step(&mut self, step: Step) {
        let table = |run: &Self, table: usize| run.tables.get(table).copied();
        match step {
            Step::Table { .. } if self.tables.len() >= 6 || self.plugged.is_empty() => {}
            Step::Table { space, for_pasids } => {
                let flags = if for_pasids { HwptFlags::PASID } else { HwptFlags::empty() };
                let nested = (space < SPACES).then_some(space);
                let id = self.vm.alloc_hwpt(&self.request(flags, nested)).unwrap();
                let word = nested.map_or(FLAT, |space| space as u64);
                self.expected.tables.insert(id, Table { word, for_pasids });
                self.tables.push(id);
            }
            Step::Attach { place, table: at } => {
                let Some(hwpt) = table(self, at) else { return };
                let got = self.vm.attach_hwpt(requester(place.0), place.1.map(guest), hwpt);
                assert_eq!(got, self.expected.attach(place, hwpt));
            }
            Step::Replace { place, table: at } => {
                let Some(hwpt) = table(self, at) else { return };
                let got = self.vm.replace_hwpt(requester(place.0), place.1.map(guest), hwpt);
                let got = got.map(|ticket| wait(&self.vm, ticket));
                assert_eq!(got, self.expected.replace(place, hwpt));
            }
            Step::Detach { place } => {
                let got = self.vm.detach_hwpt(requester(place.0), place.1.map(guest));
                let got = got.map(|ticket| wait(&self.vm, ticket));
                assert_eq!(got, self.expected.detach(place));
            }
            Step::Destroy { table: at } => {
                let Some(hwpt) = table(self, at) else { return };
                assert_eq!(self.vm.destroy(hwpt.into()), self.expected.destroy(hwpt));
            }
            _ => self.pasids(step),
        }
    }

    fn pasids(&mut self, step: Step) {
        match step {
            Step::Grant { pasid: number } => {
                let one = PasidRange::new(pasid(number), pasid(number)).unwrap();
                let granted = self.vm.alloc_pasid(one).is_ok();
                assert_eq!(granted, self.expected.granted.insert(number));
            }
            Step::Free { pasid: number } => {
                let freed = self.vm.free_pasid(guest(number));
                match self.expected.granted.remove(&number) {
                    true => assert_eq!(freed, Ok(())),
                    false => assert_eq!(freed, Err(FreePasidError::NotGranted(guest(number)))),
                }
                self.expected.attached.retain(|&(_, pasid), _| pasid != Some(number));
            }
            Step::Release => {
                wait(&self.vm, self.vm.release_pasids());
                assert_eq!(self.vm.pasid_usage().parked, 0);
                self.expected.granted.clear();
                self.expected.attached.retain(|&(_, pasid), _| pasid.is_none());
            }
            Step::Plug { device } => self.plug(device),
            _ => unreachable!("{step:?}"),
        }
    }

    /// Every request of every device that is translated by what is attached.
    fn check(&self) {
        for (&device, (_, channel)) in &self.plugged {
            if !self.expected.devices[&device] {
                continue;
            }
            for number in core::iter::once(None).chain((1..=PASIDS).map(Some)) {
                let space = number.map_or(without(), with);
                let got = dma(channel, space, AT, Op::Read).ok();
                assert_eq!(got, self.expected.read((device, number)), "{device} {number:?}");
            }
        }
        assert_eq!(self.vm.pasid_usage().live as usize, self.expected.granted.len());
    }
}

fn config(shuffled: bool, numbering: Numbering) -> VmConfig {
    let format = StageTwoFormat::Vtd { levels: SecondStageLevels::Four };
    let layout = Layout::Shuffled { seed: 5 };
    let stage_two = shuffled.then_some(StageTwoConfig { format, layout });
    VmConfig { numbering, stage_two, ..VmConfig::named("modelled") }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    #[test]
    fn a_vm_is_what_plain_maps_say(steps in steps(), shuffled: bool, private: bool) {
        let numbering = if private { Numbering::Private } else { Numbering::Identity };
        let host = SoftwareHost::new();
        // Another VM, so that private numbers are not the host's.
        let other = host.create_vm(VmConfig::named("other")).unwrap();
        if private {
            other.alloc_pasid(PasidRange::ALL).unwrap();
        }
        let mut of = Guest::with(&host, config(shuffled, numbering));
        let mut run = Run::new(&mut of);
        for step in steps {
            run.step(step);
            run.check();
        }
        let Run { vm, plugged, .. } = run;
        drop(plugged);
        wait(&vm, vm.close());
        wait(&other, other.close());
        drop((vm, of, other));
        prop_assert_eq!(host.pasid_report().live, 0);
        prop_assert_eq!(host.pasid_report().parked, 0);
        prop_assert_eq!(host.table_bytes(), 0);
        host.check_books().unwrap();
    }
}
