//! A guest behind VT-d whose tables are in order, and what can be broken in them.

use iommu::{
    Channel, DeviceContext, Endpoint, GuestPasid, Hardware, HwptFlags, HwptId, HwptParent,
    HwptRequest, ObjectError, Pasid, PasidRange, PasidTable, StageOneTable, StageTwo, Vm,
    VtdPasidTable, VtdStageOne, VtdStageOneFlags,
};
use mem::{Gpa, GuestMemory};

use super::{Damage, Entry, Kind, One, Owner, Table, Two, PASID};
use crate::cell::{Patch, DATA, IOVA};
use crate::common::{
    pasid, wait, Guest, ACCESSED, CAPS, DEVICE, DIRTY, DOMAIN, LARGE, MEMORY, NOWHERE, PRESENT,
    SS_READ, SS_WRITE, TABLES, USER, WRITABLE,
};
use crate::ground::Ground;

const FIRST: u64 = PRESENT | WRITABLE | USER;
const SECOND: u64 = SS_READ | SS_WRITE;
/// Frames of 2 MiB that a second stage maps page by page: where the page is, and where tables are.
const BY_PAGES: [u64; 2] = [DATA & !0x1f_ffff, TABLES];
const FRAME: u64 = 2 << 20;
/// A PASID that is of no interest.
const OTHER: u32 = 9;

pub struct World {
    pub guest: Guest,
    pub channel: Channel,
    pub kind: Kind,
    pub owner: Owner,
    pub ground: Ground,
    /// Roots, if there are such stages.
    pub one: Gpa,
    pub two: Gpa,
    /// The host's stage 2, as an object.
    parent: Option<HwptId>,
    _endpoint: Endpoint,
}

impl World {
    pub fn new(kind: Kind, owner: Owner, ground: Ground) -> Self {
        let mut guest = ground.guest(Hardware::Vtd(CAPS));
        let (endpoint, channel) = guest.attach();
        let (one, two) = (guest.table(), guest.table());
        let parent = (kind.is_hosts() || owner == Owner::Delegated).then(|| parent(&guest));
        let mut world =
            Self { guest, channel, kind, owner, ground, one, two, parent, _endpoint: endpoint };
        world.build();
        world.install(one, two).unwrap();
        if owner == Owner::Delegated {
            world.delegate(world.guest.directory, 10);
        }
        if kind == Kind::Off {
            world.guest.vm.set_contexts(None);
        }
        world
    }

    /// Asserts that what the host cannot do is refused, and changes nothing.
    pub fn is_refused(kind: Kind, ground: Ground) {
        let mut guest = ground.guest(Hardware::Vtd(CAPS));
        let (endpoint, channel) = guest.attach();
        let (one, two) = (guest.table(), guest.table());
        let parent = Some(parent(&guest));
        let owner = Owner::Source;
        let mut world =
            Self { guest, channel, kind, owner, ground, one, two, parent, _endpoint: endpoint };
        assert_eq!(world.install(one, two), Err(ObjectError::NotSupported));
    }

    fn build(&mut self) {
        if let Some(levels) = self.kind.first() {
            let leaf = self.guest.entry(self.one, levels, IOVA, 1, FIRST);
            self.guest.memory.store_u64(leaf, DATA | FIRST).unwrap();
        }
        let Some(levels) = self.kind.second() else { return };
        let mut map = |address, page, level, flags| {
            let at = self.guest.entry(self.two, levels, address, level, SECOND);
            self.guest.memory.store_u64(at, page | SECOND | flags).unwrap();
        };
        if self.kind.first().is_none() {
            return map(IOVA, DATA, 1, 0);
        }
        for frame in (0..MEMORY).step_by(FRAME as usize) {
            if !BY_PAGES.contains(&frame) {
                map(frame, frame, 2, LARGE);
                continue;
            }
            for page in (frame..frame + FRAME).step_by(0x1000) {
                map(page, page, 1, 0);
            }
        }
    }

    /// Has the device's requests translated by tables with these roots.
    fn install(&mut self, one: Gpa, two: Gpa) -> Result<(), ObjectError> {
        let kind = self.kind;
        // AW, FSPM.
        let first = one.0 | u64::from(kind.first() == Some(5)) << 2;
        let second = kind.second().map_or(0, |levels| two.0 | u64::from(levels - 2) << 2);
        let domain = DOMAIN;
        let words = match kind {
            Kind::First(_) => [1 | 1 << 6, domain.0.into(), first, 0, 0, 0, 0, 0],
            Kind::Second(_) => [1 | 2 << 6 | second, domain.0.into(), 0, 0, 0, 0, 0, 0],
            Kind::Nested(..) => [1 | 3 << 6 | second, domain.0.into(), first, 0, 0, 0, 0, 0],
            Kind::PassThrough => [1 | 4 << 6, domain.0.into(), 0, 0, 0, 0, 0, 0],
            Kind::DeviceSecond(levels) => {
                let table = StageTwo { root: two, levels: levels as u8, accessed_dirty: false };
                self.guest.set_context(DeviceContext::StageTwo {
                    domain,
                    table,
                    ats: false,
                    fault_disable: false,
                });
                return Ok(());
            }
            Kind::DevicePassThrough => {
                self.guest.set_context(DeviceContext::PassThrough {
                    domain,
                    ats: false,
                    fault_disable: false,
                });
                return Ok(());
            }
            Kind::Off => return Ok(()),
            Kind::HostNested(_) | Kind::HostPaging | Kind::HostBlocked => {
                return self.install_hosts(one);
            }
        };
        self.guest.set_pasid(0, words);
        self.guest.set_pasid(PASID, words);
        Ok(())
    }

    fn install_hosts(&self, one: Gpa) -> Result<(), ObjectError> {
        let vm = &self.guest.vm;
        let parent = self.parent.unwrap();
        let hwpt = match self.kind {
            Kind::HostNested(levels) => {
                let address_width = 12 + 9 * levels as u8;
                let flags = VtdStageOneFlags::empty();
                let table = StageOneTable::Vtd(VtdStageOne { flags, root: one, address_width });
                nested(&self.guest, parent, table, HwptFlags::PASID)?
            }
            _ => parent,
        };
        if self.kind == Kind::HostBlocked {
            let other = grant(&self.guest, OTHER);
            return vm.attach_hwpt(DEVICE, Some(other), hwpt);
        }
        let granted = vm.pasid_usage().live != 0;
        let of = if granted { GuestPasid(pasid(PASID)) } else { grant(&self.guest, PASID) };
        for place in [None, Some(of)] {
            if granted {
                wait(vm, vm.replace_hwpt(DEVICE, place, hwpt)?);
            } else {
                vm.attach_hwpt(DEVICE, place, hwpt)?;
            }
        }
        Ok(())
    }

    /// Attaches the guest's PASID table as a whole.
    fn delegate(&self, directory: Gpa, pasid_bits: u8) {
        let vm = &self.guest.vm;
        let table = StageOneTable::VtdPasidTable(VtdPasidTable { directory, pasid_bits });
        let hwpt = nested(&self.guest, self.parent.unwrap(), table, HwptFlags::empty()).unwrap();
        match vm.replace_hwpt(DEVICE, None, hwpt) {
            Ok(ticket) => wait(vm, ticket),
            Err(_) => vm.attach_hwpt(DEVICE, None, hwpt).unwrap(),
        }
    }

    /// Where devices see the page.
    pub fn address(&self, damage: Damage) -> u64 {
        let identity = self.kind.is_identity();
        match damage {
            Damage::Interrupt => 0xfee0_0000,
            Damage::Nowhere => NOWHERE,
            Damage::FarAddress if identity => DATA | 1 << CAPS.address_bits,
            Damage::FarAddress if self.kind.first().or(self.kind.second()) == Some(5) => {
                IOVA | 1 << 60
            }
            Damage::FarAddress => IOVA | 1 << 50,
            _ if identity => DATA,
            _ => IOVA,
        }
    }

    /// The entry of the first stage for the page.
    pub fn one_entry(&self, level: u32) -> Gpa {
        self.entry(self.one, self.kind.first().unwrap(), IOVA, level)
    }

    /// The entry of the second stage for `address`.
    fn two_entry(&self, address: u64, level: u32) -> Gpa {
        self.entry(self.two, self.kind.second().unwrap(), address, level)
    }

    /// An entry of tables that are in order.
    fn entry(&self, root: Gpa, levels: u32, address: u64, level: u32) -> Gpa {
        let mut table = root;
        for above in (level + 1..=levels).rev() {
            let held =
                self.guest.memory.load_u64(Gpa(table.0 + index(address, above) * 8)).unwrap();
            table = Gpa(held & 0x000f_ffff_ffff_f000);
        }
        Gpa(table.0 + index(address, level) * 8)
    }

    /// What the second stage is asked for last.
    pub fn two_input(&self) -> u64 {
        if self.kind.first().is_some() {
            DATA
        } else {
            IOVA
        }
    }

    /// Forgets all that is cached.
    pub fn forget(&self) {
        self.guest.settle_all();
    }

    /// Breaks something.
    pub fn damage(&mut self, damage: Damage) -> Patch {
        let mut patch = Patch::default();
        match damage {
            Damage::None | Damage::FarAddress | Damage::Interrupt | Damage::Nowhere => {}
            Damage::One(One::BadRoot) => self.install(Gpa(NOWHERE), self.two).unwrap(),
            Damage::Two(Two::BadRoot) => self.install(self.one, Gpa(NOWHERE)).unwrap(),
            Damage::One(damage) => self.damage_one(damage, &mut patch),
            Damage::Two(damage) => self.damage_two(damage, &mut patch),
            Damage::Table(damage) => self.damage_table(damage, &mut patch),
            Damage::Entry(damage) => self.damage_entry(damage, &mut patch),
        }
        self.forget();
        patch
    }

    /// Mends it.
    pub fn undo(&mut self, damage: Damage, patch: Patch) {
        patch.undo(&self.guest);
        match damage {
            Damage::One(One::BadRoot) | Damage::Two(Two::BadRoot) => {
                self.install(self.one, self.two).unwrap();
            }
            Damage::Entry(Entry::BadDirectory | Entry::Beyond | Entry::Disabled) => {
                match self.owner {
                    Owner::Source => self.set_table(self.guest.pasid_table()),
                    Owner::Delegated => self.delegate(self.guest.directory, 10),
                }
            }
            _ => {}
        }
    }

    fn damage_one(&self, damage: One, patch: &mut Patch) {
        let keep = |level, bits: u64| {
            let held = self.guest.memory.load_u64(self.one_entry(level)).unwrap();
            (level, held & !bits)
        };
        let (level, word) = match damage {
            One::Absent(level) => (level, 0),
            One::ReadOnly => (1, DATA | PRESENT | USER),
            One::ReadOnlyAbove => keep(2, WRITABLE),
            One::Supervisor => (1, DATA | PRESENT | WRITABLE),
            One::SupervisorAbove => keep(3, USER),
            // Bit 12 would be a memory type.
            One::Reserved => (2, 0x2000 | LARGE | FIRST),
            One::Wide => (1, DATA | 1 << CAPS.address_bits | FIRST),
            One::ToInterrupts => (1, 0xfee0_0000 | FIRST),
            One::BadTable => (2, NOWHERE | FIRST),
            One::BadRoot => return,
        };
        patch.set(&self.guest, self.one_entry(level), word);
    }

    fn damage_two(&self, damage: Two, patch: &mut Patch) {
        let input = self.two_input();
        let (level, word) = match damage {
            Two::Absent(level) => (level, 0),
            Two::ReadOnly => (1, DATA | SS_READ),
            Two::ReadOnlyAbove => {
                (2, self.guest.memory.load_u64(self.two_entry(input, 2)).unwrap() & !SS_WRITE)
            }
            Two::WriteOnly => (1, DATA | SS_WRITE),
            Two::Reserved => (2, 0x1000 | LARGE | SECOND),
            Two::Wide => (1, DATA | 1 << CAPS.address_bits | SECOND),
            Two::ToInterrupts => (1, 0xfee0_0000 | SECOND),
            Two::BadTable => (2, NOWHERE | SECOND),
            Two::BadRoot => return,
        };
        patch.set(&self.guest, self.two_entry(input, level), word);
    }

    fn damage_table(&self, damage: Table, patch: &mut Patch) {
        let leaf = self.one_entry(1);
        let page = leaf.0 & !0xfff;
        let (marks, word) = match damage {
            Table::Absent => (0, 0),
            Table::ReadOnly => (0, page | SS_READ),
            Table::ReadOnlyMarked => (ACCESSED | DIRTY, page | SS_READ),
            Table::WriteOnly => (0, page | SS_WRITE),
        };
        patch.set(&self.guest, leaf, DATA | FIRST | marks);
        patch.set(&self.guest, self.two_entry(leaf.0, 1), word);
    }

    fn damage_entry(&mut self, damage: Entry, patch: &mut Patch) {
        let guest = &mut self.guest;
        let directory = guest.directory;
        let of_directory = guest.memory.load_u64(directory).unwrap();
        let mut entries = |guest: &mut Guest, word: u64, change: fn(u64) -> u64| {
            for number in [0, PASID] {
                let at = Gpa(guest.pasid_entry(number).0 + 8 * word);
                let held = guest.memory.load_u64(at).unwrap();
                patch.set(guest, at, change(held));
            }
        };
        match damage {
            Entry::Absent => entries(guest, 0, |word| word & !1),
            Entry::AbsentQuietly => entries(guest, 0, |word| word & !1 | 2),
            Entry::Reserved => entries(guest, 3, |_| 1),
            Entry::Type => entries(guest, 0, |word| word & !(7 << 6) | 5 << 6),
            Entry::DirectoryAbsent => patch.set(guest, directory, of_directory & !1),
            Entry::DirectoryReserved => patch.set(guest, directory, of_directory | 4),
            Entry::BadTable => patch.set(guest, directory, NOWHERE | 1),
            Entry::BadDirectory if self.owner == Owner::Delegated => {
                self.delegate(Gpa(NOWHERE), 10);
            }
            Entry::BadDirectory => {
                let table = guest.pasid_table();
                self.set_table(PasidTable { directory: Gpa(NOWHERE), ..table });
            }
            Entry::Disabled => {
                let table = guest.pasid_table();
                self.set_table(PasidTable { pasid_enable: false, ..table });
            }
            // A directory of less than its smallest size still has one entry; the PASID is larger
            // by the width alone.
            Entry::Beyond if self.owner == Owner::Delegated => self.delegate(directory, 7),
            Entry::Beyond => {
                let table = guest.pasid_table();
                self.set_table(PasidTable { pasid_bits: 1, ..table });
            }
        }
    }

    fn set_table(&self, table: PasidTable) {
        self.guest.set_context(DeviceContext::PasidTable(table));
    }
}

/// Which entry of a table of `level` is for `address`.
pub fn index(address: u64, level: u32) -> u64 {
    address >> (12 + 9 * (level - 1)) & 0x1ff
}

fn parent(guest: &Guest) -> HwptId {
    let parent = HwptParent::Ioas(guest.vm.ioas().unwrap());
    let flags = HwptFlags::NEST_PARENT | HwptFlags::PASID;
    let request = HwptRequest { device: DEVICE, parent, flags, data: None, fault: None };
    guest.vm.alloc_hwpt(&request).unwrap()
}

fn nested(
    guest: &Guest,
    parent: HwptId,
    table: StageOneTable,
    flags: HwptFlags,
) -> Result<HwptId, ObjectError> {
    let parent = HwptParent::Hwpt(parent);
    let request = HwptRequest { device: DEVICE, parent, flags, data: Some(table), fault: None };
    guest.vm.alloc_hwpt(&request)
}

fn grant(guest: &Guest, number: u32) -> GuestPasid {
    let number: Pasid = pasid(number);
    guest.vm.alloc_pasid(PasidRange::new(number, number).unwrap()).unwrap()
}
