//! A guest behind an SMMUv3 whose tables are in order, and what can be broken in them.

use iommu::{
    AddressSpace, Channel, DefaultSubstream, DescriptorForm, DescriptorTable, Endpoint, Hardware,
    HwptFlags, HwptId, HwptParent, HwptRequest, Invalidation, ObjectError, SmmuInvalidation,
    StageOneTable, StreamTranslation, ViommuId, ViommuKind, Vm,
};
use mem::{Gpa, GuestMemory};

use super::oracle::{path, Path};
use super::{Case, Config, Damage, Entry, One, Owner, Page, Two, SUBSTREAM};
use crate::cell::{Patch, DATA, IOVA};
use crate::common::smmu::{
    asid, descriptor, stage_two, AF, BLOCK, EL0, PAGE, READ_ONLY, S2_PAGE, S2_READ, S2_WRITE, SMMU,
    TABLE,
};
use crate::common::{wait, Guest, DEVICE, MEMORY, NOWHERE, TABLES};
use crate::ground::Ground;

/// Where context descriptors are: two leaves of 64 KiB, or one array.
const DESCRIPTORS: u64 = 0x10_0000;
const LEAF: u64 = 0x1_0000;
const FRAME: u64 = 2 << 20;
/// Frames that stage 2 maps page by page: with descriptors, with the page, with tables.
const BY_PAGES: [u64; 3] = [0, DATA & !(FRAME - 1), TABLES];
/// APTable.
const NO_USER_BELOW: u64 = 1 << 61;
const READ_ONLY_BELOW: u64 = 1 << 62;

pub struct World {
    pub guest: Guest,
    pub channel: Channel,
    pub case: Case,
    pub ground: Ground,
    pub one: Gpa,
    two: Gpa,
    /// First level of the table of descriptors.
    pointers: Gpa,
    /// The guest's part of the host's unit, if its entries are attached, and what is attached.
    viommu: Option<ViommuId>,
    attached: Option<HwptId>,
    _endpoint: Endpoint,
}

impl World {
    pub fn new(case: Case, owner: Owner, ground: Ground) -> Self {
        let mut world = Self::unattached(case, ground);
        world.build();
        if owner == Owner::Host {
            world.viommu = Some(world.viommu());
        }
        world.install(world.table(), world.two).unwrap();
        world
    }

    fn unattached(case: Case, ground: Ground) -> Self {
        let mut guest = ground.guest(Hardware::Smmuv3(SMMU));
        let (endpoint, channel) = guest.attach();
        let (one, two, pointers) = (guest.table(), guest.table(), guest.table());
        Self {
            guest,
            channel,
            case,
            ground,
            one,
            two,
            pointers,
            viommu: None,
            attached: None,
            _endpoint: endpoint,
        }
    }

    /// Asserts that what the host cannot do is refused.
    pub fn is_refused(case: Case, ground: Ground) {
        let mut world = Self::unattached(case, ground);
        world.viommu = Some(world.viommu());
        assert_eq!(world.install(world.table(), world.two), Err(ObjectError::NotSupported));
    }

    /// The guest's part of the unit, by which it knows the device.
    fn viommu(&self) -> ViommuId {
        let vm = &self.guest.vm;
        let parent = HwptParent::Ioas(vm.ioas().unwrap());
        let flags = HwptFlags::NEST_PARENT;
        let request = HwptRequest { device: DEVICE, parent, flags, data: None, fault: None };
        let parent = vm.alloc_hwpt(&request).unwrap();
        let viommu = vm.alloc_viommu(DEVICE, parent, ViommuKind::Smmuv3).unwrap();
        vm.alloc_vdevice(viommu, DEVICE, 0x17).unwrap();
        viommu
    }

    fn build(&mut self) {
        self.guest.set_one(self.one, IOVA, 1, DATA | PAGE);
        for number in [0, SUBSTREAM] {
            let words = descriptor(self.one, asid(7 + (number & 1) as u16));
            self.guest.store(self.descriptor(number), &words);
            if self.case.has_pointers() {
                let leaf = self.leaf(number);
                self.guest.store(self.pointer(number), &[leaf | 1]);
            }
        }
        if self.case.config == Config::Two {
            self.guest.set_two(self.two, IOVA, 1, DATA | S2_PAGE);
        }
        if self.case.config != Config::Nested {
            return;
        }
        for frame in (0..MEMORY).step_by(FRAME as usize) {
            if !BY_PAGES.contains(&frame) {
                let block = frame | S2_READ | S2_WRITE | AF | BLOCK;
                self.guest.set_two(self.two, frame, 2, block);
                continue;
            }
            for page in (frame..frame + FRAME).step_by(0x1000) {
                self.guest.set_two(self.two, page, 1, page | S2_PAGE);
            }
        }
    }

    /// The root of the table of descriptors.
    fn table(&self) -> Gpa {
        if self.case.has_pointers() {
            self.pointers
        } else {
            Gpa(DESCRIPTORS)
        }
    }

    fn install(&mut self, table: Gpa, two: Gpa) -> Result<(), ObjectError> {
        if let Some(viommu) = self.viommu {
            return self.install_hosts(viommu, table);
        }
        let Case { form, bits, default, .. } = self.case;
        let table = DescriptorTable { root: table, bits, form, default };
        self.guest.set_stream(match self.case.config {
            Config::Abort => StreamTranslation::Abort,
            Config::Bypass => StreamTranslation::Bypass,
            Config::One => StreamTranslation::StageOne(table),
            Config::Two => StreamTranslation::StageTwo(stage_two(two)),
            Config::Nested => StreamTranslation::Nested(table, stage_two(two)),
        });
        Ok(())
    }

    /// Attaches the guest's stream-table entry over the host's stage 2.
    fn install_hosts(&mut self, viommu: ViommuId, table: Gpa) -> Result<(), ObjectError> {
        let words = self.words(table);
        let vm = &self.guest.vm;
        let hwpt = vm.alloc_hwpt(&HwptRequest {
            device: DEVICE,
            parent: HwptParent::Viommu(viommu),
            flags: HwptFlags::empty(),
            data: Some(StageOneTable::Smmuv3(words)),
            fault: None,
        })?;
        match self.attached.replace(hwpt) {
            None => vm.attach_hwpt(DEVICE, None, hwpt)?,
            Some(old) => {
                wait(vm, vm.replace_hwpt(DEVICE, None, hwpt)?);
                vm.destroy(old.into())?;
            }
        }
        Ok(())
    }

    /// The first words of the guest's stream-table entry: V, Config, S1Fmt, S1ContextPtr, S1CDMax;
    /// S1DSS.
    fn words(&self, table: Gpa) -> [u64; 2] {
        let Case { config, form, bits, default } = self.case;
        let config = match config {
            Config::Abort => return [1, 0],
            Config::Bypass => return [1 | 4 << 1, 0],
            Config::One => 5,
            Config::Two | Config::Nested => unreachable!("stage 2 is the host's"),
        };
        let form = match form {
            DescriptorForm::Linear => 0,
            DescriptorForm::Leaves4K => 1,
            DescriptorForm::Leaves64K => 2,
        };
        let default = match default {
            DefaultSubstream::Terminate => 0,
            DefaultSubstream::Bypass => 1,
            DefaultSubstream::Zero => 2,
        };
        [1 | config << 1 | form << 4 | table.0 | u64::from(bits) << 59, default]
    }

    /// The leaf with the descriptor of a substream.
    fn leaf(&self, number: u32) -> u64 {
        DESCRIPTORS + if number == 0 { 0 } else { LEAF }
    }

    /// The pointer to it, and which it is in its table.
    fn pointer(&self, number: u32) -> Gpa {
        Gpa(self.pointers.0 + self.pointer_offset(number))
    }

    pub fn pointer_offset(&self, number: u32) -> u64 {
        match self.case.form {
            DescriptorForm::Linear => 0,
            DescriptorForm::Leaves4K => 8 * u64::from(number / 64),
            DescriptorForm::Leaves64K => 8 * u64::from(number / 1024),
        }
    }

    /// Offset of a descriptor in its array or leaf.
    pub fn descriptor_offset(&self, number: u32) -> u64 {
        let index = match self.case.form {
            DescriptorForm::Linear => number,
            DescriptorForm::Leaves4K => number % 64,
            DescriptorForm::Leaves64K => number % 1024,
        };
        64 * u64::from(index)
    }

    fn descriptor(&self, number: u32) -> Gpa {
        let array = if self.case.has_pointers() { self.leaf(number) } else { DESCRIPTORS };
        Gpa(array + self.descriptor_offset(number))
    }

    /// What is read on the way to the descriptor of a substream: a pointer, if there are any, and
    /// the descriptor.
    pub fn fetches(&self, number: u32) -> (Option<u64>, u64) {
        let pointer = self.case.has_pointers().then(|| self.pointer(number).0);
        (pointer, self.descriptor(number).0)
    }

    /// Where a request finds the page.
    pub fn address(&self, damage: Damage, space: AddressSpace) -> u64 {
        let path = path(&self.case, space);
        let base = match (path, self.case.config) {
            (Ok(Path::Bypass), Config::Two) => IOVA,
            (Ok(Path::Bypass), _) => DATA,
            _ => IOVA,
        };
        match damage {
            Damage::Nowhere => NOWHERE,
            Damage::HighHalf => base | 0xffff << 48,
            Damage::FarAddress if path == Ok(Path::Bypass) && self.case.config.has_two() => {
                base | 1 << 39
            }
            Damage::FarAddress if path == Ok(Path::Bypass) => base | 1 << 44,
            Damage::FarAddress => base | 1 << 50,
            _ => base,
        }
    }

    /// What stage 2 is asked for last.
    fn two_input(&self) -> u64 {
        if self.case.config == Config::Nested {
            DATA
        } else {
            IOVA
        }
    }

    pub fn one_entry(&self, level: u32) -> Gpa {
        self.entry(self.one, 4, IOVA, level)
    }

    fn two_entry(&self, address: u64, level: u32) -> Gpa {
        self.entry(self.two, 3, address, level)
    }

    /// An entry of tables that are in order.
    fn entry(&self, root: Gpa, levels: u32, address: u64, level: u32) -> Gpa {
        let mut table = root;
        for above in (level + 1..=levels).rev() {
            let at = Gpa(table.0 + index(address, above) * 8);
            table = Gpa(self.guest.memory.load_u64(at).unwrap() & 0x0000_ffff_ffff_f000);
        }
        Gpa(table.0 + index(address, level) * 8)
    }

    pub fn forget(&self) {
        self.guest.settle(Invalidation::Smmuv3(SmmuInvalidation::ConfigAll));
        self.guest.settle(Invalidation::Smmuv3(SmmuInvalidation::TlbAll));
    }

    /// Breaks something.
    pub fn damage(&mut self, damage: Damage) -> Patch {
        let mut patch = Patch::default();
        match damage {
            Damage::None | Damage::FarAddress | Damage::HighHalf | Damage::Nowhere => {}
            Damage::One(damage) => self.damage_one(damage, &mut patch),
            Damage::Two(Two::BadRoot) => self.install(self.table(), Gpa(NOWHERE)).unwrap(),
            Damage::Two(damage) => self.damage_two(damage, &mut patch),
            Damage::Table(damage) => self.damage_page(self.one_entry(1).0, damage, &mut patch),
            Damage::Descriptor(damage) => {
                for number in [0, SUBSTREAM] {
                    self.damage_page(self.descriptor(number).0, damage, &mut patch);
                }
            }
            Damage::Pointer(damage) => self.damage_page(self.pointers.0, damage, &mut patch),
            Damage::Entry(Entry::BadTable) => self.install(Gpa(NOWHERE), self.two).unwrap(),
            Damage::Entry(damage) => self.damage_entry(damage, &mut patch),
        }
        patch
    }

    /// Mends it.
    pub fn undo(&mut self, patch: Patch) {
        patch.undo(&self.guest);
        self.install(self.table(), self.two).unwrap();
    }

    fn damage_one(&self, damage: One, patch: &mut Patch) {
        let held = |level| self.guest.memory.load_u64(self.one_entry(level)).unwrap();
        let (level, word) = match damage {
            One::Absent(level) => (level, 0),
            One::ReadOnly => (1, DATA | PAGE | READ_ONLY),
            One::ReadOnlyAbove => (2, held(2) | READ_ONLY_BELOW),
            One::Privileged => (1, DATA | PAGE & !EL0),
            One::PrivilegedAbove => (3, held(3) | NO_USER_BELOW),
            One::Untouched => (1, DATA | PAGE & !AF),
            One::Kind => (1, DATA | PAGE & !0b10),
            One::PageAtTop => (4, PAGE & !0b10),
            One::Wide => (1, DATA | 1 << 44 | PAGE),
            One::BadTable => (2, NOWHERE | TABLE),
            One::BadRoot => {
                for number in [0, SUBSTREAM] {
                    patch.set(&self.guest, Gpa(self.descriptor(number).0 + 8), NOWHERE);
                }
                return;
            }
        };
        patch.set(&self.guest, self.one_entry(level), word);
    }

    fn damage_two(&self, damage: Two, patch: &mut Patch) {
        let (level, word) = match damage {
            Two::Absent(level) => (level, 0),
            Two::ReadOnly => (1, DATA | S2_PAGE & !S2_WRITE),
            Two::WriteOnly => (1, DATA | S2_PAGE & !S2_READ),
            Two::Untouched => (1, DATA | S2_PAGE & !AF),
            Two::Kind => (1, DATA | S2_PAGE & !0b10),
            Two::Wide => (1, DATA | 1 << 44 | S2_PAGE),
            Two::BadTable => (2, NOWHERE | TABLE),
            Two::BadRoot => return,
        };
        patch.set(&self.guest, self.two_entry(self.two_input(), level), word);
    }

    /// In the entry of stage 2 for the page of `address`.
    fn damage_page(&self, address: u64, damage: Page, patch: &mut Patch) {
        let page = address & !0xfff | S2_PAGE;
        let word = match damage {
            Page::Absent => 0,
            Page::ReadOnly => page & !S2_WRITE,
            Page::WriteOnly => page & !S2_READ,
            Page::Untouched => page & !AF,
        };
        patch.set(&self.guest, self.two_entry(address, 1), word);
    }

    fn damage_entry(&self, damage: Entry, patch: &mut Patch) {
        for number in [0, SUBSTREAM] {
            let at = self.descriptor(number);
            let word = self.guest.memory.load_u64(at).unwrap();
            match damage {
                Entry::Invalid => patch.set(&self.guest, at, word & !(1 << 31)),
                Entry::Unusable => patch.set(&self.guest, at, word & !(1 << 41)),
                Entry::BadTable => {}
                Entry::PointerInvalid => {
                    patch.set(&self.guest, self.pointer(number), self.leaf(number));
                }
                Entry::BadLeaf => patch.set(&self.guest, self.pointer(number), NOWHERE | 1),
            }
        }
    }
}

/// Which entry of a table of `level` is for `address`.
pub fn index(address: u64, level: u32) -> u64 {
    address >> (12 + 9 * (level - 1)) & 0x1ff
}
