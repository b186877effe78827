//! What a hostile guest does: everything that it can reach, with random widths and values.
#![allow(unreachable_pub)]

mod descriptors;

use dsa::spec::Portal;
use mem::{Gpa, Range};
use pci::Function;

use crate::common::memory::{PAGE, PRESENT, USER, WRITABLE};
use crate::common::random::Random;
use crate::common::rig::{Rig, DEVICE, REPORTERS};
use crate::common::unit::{self, Unit, IQA, IQH, IQT, RTADDR};
use crate::common::{Guest, Space};

/// Widths of accesses; not all of them exist.
const WIDTHS: [usize; 12] = [1, 2, 4, 4, 4, 8, 8, 8, 0, 3, 16, 64];
/// Bytes of the accelerator's portals.
const PORTALS: u64 = 0x2_0000;
/// Where the process has its memory.
pub const BASE: u64 = 0x7f00_0000_0000;
/// Pages of it.
pub const PAGES: u64 = 64;

/// What the guest is about to do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Action {
    UnitRegister,
    Configuration,
    DeviceRegister,
    Portal,
    Submit,
    Memory,
    Queue,
    Command,
    Reset,
    MemoryReport,
    /// Host: one poll of the unit.
    Poll,
    /// Host: one step of an engine.
    Step,
}

use Action as A;

/// What a guest sets its mind on: the actions and how often each comes.
type Profile = &'static [(Action, u64)];

/// Tables and queue entries that point everywhere, under a working accelerator.
const TABLES: Profile =
    &[(A::Portal, 15), (A::Submit, 8), (A::Memory, 8), (A::Queue, 8), (A::Poll, 15), (A::Step, 80)];
/// The unit's registers and queue.
const UNIT: Profile = &[
    (A::UnitRegister, 12),
    (A::Portal, 12),
    (A::Memory, 3),
    (A::Queue, 15),
    (A::Poll, 25),
    (A::Step, 60),
];
/// The accelerator's registers, commands and portals.
const DEVICE_ONLY: Profile = &[
    (A::DeviceRegister, 20),
    (A::Portal, 25),
    (A::Submit, 10),
    (A::Command, 3),
    (A::MemoryReport, 1),
    (A::Poll, 5),
    (A::Step, 100),
];
/// All at once.
const EVERYTHING: Profile = &[
    (A::UnitRegister, 20),
    (A::Configuration, 5),
    (A::DeviceRegister, 15),
    (A::Portal, 15),
    (A::Submit, 8),
    (A::Memory, 15),
    (A::Queue, 12),
    (A::Command, 4),
    (A::Reset, 1),
    (A::MemoryReport, 1),
    (A::Poll, 25),
    (A::Step, 80),
];
const PROFILES: [Profile; 4] = [TABLES, UNIT, DEVICE_ONLY, EVERYTHING];

/// A hostile guest: its whims, what it has, and the pages that it likes to point at.
pub struct Hostile {
    pub random: Random,
    profile: Profile,
    process: Space,
    favourites: Vec<u64>,
}

impl Hostile {
    /// Takes over `guest`, and the memory of its `process`.
    pub fn new(seed: u64, guest: &Guest, process: Space) -> Self {
        let mut random = Random::new(seed);
        let Unit { root, context, directory, queue, .. } = guest.unit;
        let mut favourites = vec![0, root.0, context.0, directory.0, queue.0];
        favourites.extend(process.tables().map(|table| table.0));
        favourites.push(guest.unit.present_entry(&guest.rig.ram, process.pasid).unwrap().0);
        let profile = random.pick(&PROFILES);
        Self { random, profile, process, favourites }
    }

    pub fn choose(&mut self) -> Action {
        let total = self.profile.iter().map(|(_, weight)| weight).sum();
        let mut at = self.random.below(total);
        for (action, weight) in self.profile {
            if at < *weight {
                return *action;
            }
            at -= weight;
        }
        unreachable!("weights add up")
    }

    /// Does what a guest can do; polls and steps are the host's.
    pub fn act(&mut self, rig: &Rig, action: Action) {
        match action {
            A::UnitRegister => self.unit_register(rig),
            A::Configuration => self.configuration(rig),
            A::DeviceRegister => self.device_register(rig),
            A::Portal => self.portal(rig),
            A::Submit => self.submit(rig),
            A::Memory => self.memory(rig),
            A::Queue => self.queue(rig),
            A::Command => self.command(rig),
            A::Reset => self.reset(rig),
            A::MemoryReport => self.memory_report(rig),
            A::Poll | A::Step => {}
        }
    }

    /// A value of the kind that finds holes.
    fn value(&mut self, rig: &Rig) -> u64 {
        let r = &mut self.random;
        match r.below(9) {
            0 => 0,
            1 => u64::MAX,
            2 => r.next(),
            3 => r.below(256),
            4 => 1 << r.below(64),
            5 => r.next() & 0xffff_ffff,
            6 => 0xfee0_0000 + r.below(0x2000),
            _ => self.page(rig) | flags(&mut self.random),
        }
    }

    /// Address of a page: of a table, of any memory, or of none.
    fn page(&mut self, rig: &Rig) -> u64 {
        let r = &mut self.random;
        match r.below(8) {
            0 => r.below(rig.ram.len() / PAGE) * PAGE,
            1 => rig.ram.len() + r.below(4) * PAGE,
            2 => r.next() & !(PAGE - 1),
            _ => r.pick(&self.favourites),
        }
    }

    fn access(
        &mut self,
        rig: &Rig,
        read: impl FnOnce(&mut [u8]),
        write: impl FnOnce(&[u8]),
        width: usize,
    ) {
        if self.random.once_in(4) {
            read(&mut vec![0; width]);
        } else {
            let mut data = self.value(rig).to_le_bytes().to_vec();
            data.resize(width, self.random.next() as u8);
            write(&data);
        }
    }

    fn unit_register(&mut self, rig: &Rig) {
        let offset = if self.random.once_in(8) {
            let limit = self.random.pick(&[0x1000, 0x1008, u64::MAX]);
            self.random.below(limit)
        } else {
            let register = self.random.pick(&vtd::spec::REGISTERS);
            u64::from(register.offset) + self.random.pick(&[0, 0, 0, 0, 1, 3, 4])
        };
        let width = self.random.pick(&WIDTHS);
        let carrier = &rig.carrier;
        let read = |data: &mut [u8]| carrier.bar_read(0, offset, data);
        self.access(rig, read, |data| carrier.bar_write(0, offset, data), width);
    }

    fn configuration(&mut self, rig: &Rig) {
        let function: &dyn Function =
            if self.random.once_in(3) { &rig.carrier } else { &rig.device };
        let limit = self.random.pick(&[0x40, 0x100, 0x260, 0x1004, 0x1_0000]);
        let offset = self.random.below(limit) as u16;
        let width = self.random.pick(&WIDTHS);
        let read = |data: &mut [u8]| function.config_read(offset, data);
        self.access(rig, read, |data| function.config_write(offset, data), width);
    }

    fn device_register(&mut self, rig: &Rig) {
        let r = &mut self.random;
        let offset = match r.below(8) {
            0 => r.next(),
            1 => r.below(0x1_0010),
            // MSI-X table and pending bits; MSIXPERM, GRPCFG and WQCFG.
            2 => 0x2000 + r.below(0x1100),
            3..=5 => 0x200 + r.below(0x320),
            _ => u64::from(r.pick(dsa::spec::REGISTERS).offset) + r.pick(&[0, 0, 0, 1, 4]),
        };
        let width = self.random.pick(&WIDTHS);
        let aligned = if self.random.once_in(8) { offset } else { offset & !7 };
        let bar = if self.random.once_in(30) { self.random.next() as u8 } else { 0 };
        let device = &rig.device;
        let read = |data: &mut [u8]| device.bar_read(bar, aligned, data);
        self.access(rig, read, |data| device.bar_write(bar, aligned, data), width);
    }

    fn portal(&mut self, rig: &Rig) {
        if self.random.once_in(4) {
            let limit = self.random.pick(&[PORTALS, PORTALS + 64, u64::MAX]);
            let (offset, width) = (self.random.below(limit), self.random.pick(&WIDTHS));
            let device = &rig.device;
            let read = |data: &mut [u8]| device.bar_read(2, offset, data);
            return self.access(rig, read, |data| device.bar_write(2, offset, data), width);
        }
        let descriptor = self.descriptor(rig);
        let base = self.random.below(3) * 0x4000 + 0x1000 + 64 * self.random.below(4);
        for (at, piece) in (base..).step_by(8).zip(descriptor.chunks(8)) {
            rig.device.bar_write(2, at, piece);
        }
    }

    fn submit(&mut self, rig: &Rig) {
        let wq = self.random.pick(&[2, 2, 2, 0, 7, 8, usize::MAX]);
        let portal = Portal { limited: self.random.once_in(2), ims: self.random.once_in(8) };
        let descriptor = self.descriptor(rig);
        let _ = rig.device.submit(wq, portal, &descriptor);
    }

    /// Scribbles over a word, or points it at something.
    fn memory(&mut self, rig: &Rig) {
        let words = PAGE / 8;
        let page = self.page(rig).min(rig.ram.len() - PAGE);
        // The entries that are in use come first in most tables.
        let limit = self.random.pick(&[8, 64, words]);
        let index = self.random.below(limit);
        let word = if self.random.once_in(3) {
            self.page(rig) | PRESENT | WRITABLE | USER
        } else {
            self.value(rig)
        };
        rig.ram.store(Gpa((page & !(PAGE - 1)) + 8 * index), word);
    }

    /// Descriptors at the tail of the queue, wherever that is, and a new tail; or, after an error,
    /// others in place of those that were wrong.
    fn queue(&mut self, rig: &Rig) {
        let base = unit::read64(rig, IQA) & !(PAGE - 1);
        let (head, tail) = (unit::read64(rig, IQH), unit::read64(rig, IQT));
        let stuck = unit::read32(rig, unit::FSTS) & unit::QUEUE_ERROR != 0;
        let first = if stuck { head } else { tail };
        let count = 1 + self.random.below(4);
        for index in 0..count {
            let at = base.wrapping_add((first + 32 * index) % PAGE);
            for (offset, word) in [0, 8, 16, 24].into_iter().zip(self.queue_descriptor(rig)) {
                let at = at.wrapping_add(offset);
                if at < rig.ram.len() {
                    rig.ram.store(Gpa(at), word);
                }
            }
        }
        let next = match self.random.below(12) {
            0 => self.random.next(),
            1 => self.random.below(0x80_0000),
            _ => (first + 32 * count) % PAGE,
        };
        unit::write64(rig, IQT, next);
        if stuck {
            unit::write32(rig, unit::FSTS, unit::QUEUE_ERROR);
        }
    }

    fn queue_descriptor(&mut self, rig: &Rig) -> [u64; 4] {
        let ids = 1 << 16 | self.random.pick(&[0x10, 0x10, 0x11, 0]) << 32;
        let device = u64::from(DEVICE.bits());
        let order = self.random.below(19);
        let pages = self.page(rig) | order;
        let status = self.page(rig) | self.random.below(PAGE / 4) << 2;
        let mut words = match self.random.below(9) {
            0 => [1 | self.random.pick(&[1, 2, 3]) << 4 | device << 32, 0, 0, 0],
            1 => [2 | self.random.pick(&[1, 2]) << 4 | 1 << 16, 0, 0, 0],
            2 => [2 | 3 << 4 | 1 << 16, pages, 0, 0],
            3 => [6 | 2 << 4 | ids, 0, 0, 0],
            4 => [6 | 3 << 4 | ids, pages, 0, 0],
            5 => [7 | self.random.pick(&[0, 1, 3]) << 4 | ids, 0, 0, 0],
            6 => [8 | device << 16 | 0x10 << 32, self.page(rig) | 1 << 11, 0, 0],
            // SW, IF and FN.
            _ => [5 | self.random.below(8) << 4 | 7 << 32, status, 0, 0],
        };
        if self.random.once_in(16) {
            let at = self.random.below(4) as usize;
            words[at] ^= self.value(rig);
        }
        words
    }

    /// A device command that means something.
    fn command(&mut self, rig: &Rig) {
        let code = self.random.below(16) as u32;
        let operand = self.random.pick(&[0, 1, 2, 4, 7, 0xf_ffff]);
        let interrupt = u32::from(self.random.once_in(2)) << 31;
        rig.device.bar_write(0, 0xa0, &(operand | code << 20 | interrupt).to_le_bytes());
        // And of the unit: translation stays on most of the time.
        if self.random.once_in(8) {
            let bits = self.random.pick(&[0xc400_0000u32, 0x8400_0000, 0x4400_0000, 0]);
            unit::write32(rig, unit::GCMD, bits);
        }
        if self.random.once_in(8) {
            let root = self.page(rig) | self.random.below(4) << 10;
            unit::write64(rig, RTADDR, root);
        }
    }

    fn reset(&mut self, rig: &Rig) {
        match self.random.below(6) {
            0 => rig.device.reset(),
            1 => rig.carrier.reset(),
            // Function-level reset, by configuration space.
            2 => rig.device.config_write(0x48, &0x8000u16.to_le_bytes()),
            _ => {}
        }
    }

    /// The transport of a function goes and comes back, or says something else.
    fn memory_report(&mut self, rig: &Rig) {
        let reporter = self.random.pick(&REPORTERS);
        match self.random.below(3) {
            0 => {
                let _ticket = rig.machine.forget(reporter);
                rig.report(reporter);
            }
            1 => {
                let range = Range::<Gpa>::new(Gpa(self.page(rig)), PAGE);
                // It would cut a report, or there is none.
                if let Some(range) = range {
                    assert!(rig.machine.unmap(reporter, range).is_err());
                }
            }
            _ => assert!(rig.machine.map(reporter, rig.ram.claim()).is_err()),
        }
    }
}

/// Low bits of a table entry.
fn flags(random: &mut Random) -> u64 {
    random.pick(&[0, 1, 3, 7, 0x83, 0x87, 0x41, 0xe0f, 0xfff]) | random.pick(&[0, 0, 0, 1 << 63])
}
