//! A guest whose host owns the tables.

use iommu::{
    Channel, DmaError, Endpoint, FaultReason, GuestPasid, HwptFlags, HwptId, HwptParent,
    HwptRequest, Layout, Numbering, ObjectError, PasidRange, SecondStageLevels, SoftwareHost,
    StageOneTable, StageTwoConfig, StageTwoFormat, Vm, VmConfig, VtdStageOne, VtdStageOneFlags,
};
use mem::{Gpa, GuestMemory};

use super::{dma, pasid, wait, with, Guest, Op, DEVICE, PRESENT, USER, WRITABLE};

/// Where the address spaces map something.
pub const VA: u64 = 0x1_2345_6000;

pub fn guest(number: u32) -> GuestPasid {
    GuestPasid(pasid(number))
}

/// An address that is memory of the guest's as well.
pub const LOW: u64 = 0x20_0000;

/// A guest whose host owns the tables: a device, and address spaces that map [`VA`] to a page each.
pub struct Hosted {
    pub guest: Guest,
    pub parent: HwptId,
    pub endpoint: Endpoint,
    pub channel: Channel,
}

impl Hosted {
    pub fn new() -> Self {
        Self::on(&SoftwareHost::new(), Numbering::Identity)
    }

    pub fn on(host: &SoftwareHost, numbering: Numbering) -> Self {
        Self::with(host, VmConfig { numbering, ..VmConfig::named("hosted") })
    }

    /// With guest physical memory all over the host's.
    pub fn shuffled(levels: SecondStageLevels) -> Self {
        let format = StageTwoFormat::Vtd { levels };
        let stage_two = Some(StageTwoConfig { format, layout: Layout::Shuffled { seed: 7 } });
        let config = VmConfig { stage_two, ..VmConfig::named("shuffled") };
        Self::with(&SoftwareHost::new(), config)
    }

    pub fn with(host: &SoftwareHost, config: VmConfig) -> Self {
        let guest = Guest::with(host, config);
        let (endpoint, channel) = guest.attach();
        let parent = HwptParent::Ioas(guest.vm.ioas().unwrap());
        let flags = HwptFlags::NEST_PARENT | HwptFlags::PASID;
        let request = HwptRequest { device: DEVICE, parent, flags, data: None, fault: None };
        let parent = guest.vm.alloc_hwpt(&request).unwrap();
        Self { guest, parent, endpoint, channel }
    }

    /// A stage 1 that maps [`VA`] to `page`, which holds `word`.
    pub fn space(&mut self, page: u64, word: u64) -> HwptId {
        let root = self.root(page, word);
        self.nested(root).unwrap()
    }

    /// A stage 1 that maps [`LOW`] to `page`, which holds `word`.
    pub fn low_space(&mut self, page: u64, word: u64) -> HwptId {
        self.guest.memory.store_u64(Gpa(page), word).unwrap();
        let root = self.guest.table();
        self.guest.set_first(root, LOW, 1, page | PRESENT | WRITABLE | USER);
        self.nested(root).unwrap()
    }

    pub fn root(&mut self, page: u64, word: u64) -> Gpa {
        self.guest.memory.store_u64(Gpa(page), word).unwrap();
        let root = self.guest.table();
        self.guest.set_first(root, VA, 1, page | PRESENT | WRITABLE | USER);
        root
    }

    pub fn nested(&self, root: Gpa) -> Result<HwptId, ObjectError> {
        let table = VtdStageOne { flags: VtdStageOneFlags::empty(), root, address_width: 48 };
        self.guest.vm.alloc_hwpt(&self.request(table))
    }

    pub fn request(&self, table: VtdStageOne) -> HwptRequest {
        HwptRequest {
            device: DEVICE,
            parent: HwptParent::Hwpt(self.parent),
            flags: HwptFlags::PASID,
            data: Some(StageOneTable::Vtd(table)),
            fault: None,
        }
    }

    /// Has the VM granted a PASID of that number.
    pub fn grant(&self, number: u32) -> GuestPasid {
        let range = PasidRange::new(pasid(number), pasid(number)).unwrap();
        assert_eq!(self.guest.vm.alloc_pasid(range), Ok(guest(number)));
        guest(number)
    }

    pub fn read(&self, number: u32) -> Result<u64, DmaError> {
        dma(&self.channel, with(number), VA, Op::Read)
    }

    /// Why the latest request was refused.
    pub fn reason(&self) -> Option<FaultReason> {
        let fault = core::iter::from_fn(|| self.guest.vm.take_fault()).last();
        fault.map(|fault| fault.reason)
    }

    pub fn attach(&self, number: u32, hwpt: HwptId) {
        self.guest.vm.attach_hwpt(DEVICE, Some(guest(number)), hwpt).unwrap();
    }

    /// Everything is given back, and the books balance.
    pub fn end(self) {
        let Self { guest, endpoint, channel, .. } = self;
        drop((channel, endpoint));
        wait(&guest.vm, guest.vm.close());
        let host = guest.host.clone();
        drop(guest);
        host.check_books().unwrap();
        assert_eq!(host.pasid_report().live, 0);
        assert_eq!(host.pasid_report().parked, 0);
    }
}

impl Hosted {
    /// Everything of this VM is given back.
    pub fn end_one(self) {
        wait(&self.guest.vm, self.guest.vm.close());
        assert_eq!(self.guest.vm.pasid_usage().live, 0);
        assert_eq!(self.guest.vm.pasid_usage().parked, 0);
    }
}
