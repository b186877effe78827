//! One real thing of each crate; `None` if it went wrong.

use iommu::{AddressSpace, Host, PasidRange, SoftwareHost, SoftwareVm, Vm, VmConfig};
use mem::{Gpa, GuestMemory, Iova, MemoryMap};
use pci::RequesterId;

/// `Some` if `condition` holds.
fn ensure(condition: bool) -> Option<()> {
    condition.then_some(())
}

/// Writes across a page boundary of anonymous memory and reads it back.
pub(crate) fn mem() -> Option<()> {
    let memory = MemoryMap::anonymous(&[(Gpa(0x1000), 0x2000)]).ok()?;
    memory.write(Gpa(0x1ffe), &[1, 2, 3, 4]).ok()?;
    let mut read = [0; 4];
    memory.read(Gpa(0x1ffe), &mut read).ok()?;
    ensure(read == [1, 2, 3, 4])?;
    ensure(memory.read(Gpa(0x2ffe), &mut read).is_err())
}

/// Allocates, finds under a guard, frees, and sees the number parked and then reused.
pub(crate) fn ioasid() -> Option<()> {
    let space = ioasid::Space::new(ioasid::Config::default()).ok()?;
    let lease = space.alloc(7..=7, "seven").ok()?;
    let reader = space.reader();
    let guard = reader.pin();
    ensure(guard.find(lease.id()) == Some(&"seven"))?;
    ensure(lease.free().is_ok())?;
    ensure(guard.find(ioasid::Ioasid(7)).is_none())?;
    ensure(space.alloc(7..=7, "eight").is_err())?;
    drop(guard);
    ensure(*space.alloc(7..=7, "eight").ok()? == "eight")
}

/// The tables of a guest whose memory this is.
struct GuestTables(MemoryMap);

impl pgtable::Tables for GuestTables {
    type Error = mem::MemError;

    fn load(&self, entry: u64) -> Result<u64, Self::Error> {
        self.0.load_u64(Gpa(entry))
    }

    fn compare_exchange(
        &self,
        entry: u64,
        current: u64,
        new: u64,
    ) -> Result<Result<u64, u64>, Self::Error> {
        self.0.compare_exchange_u64(Gpa(entry), current, new)
    }
}

/// Walks a four-level first-stage table down to a 2 MiB page for a write.
pub(crate) fn pgtable() -> Option<()> {
    const PRESENT_WRITABLE_USER: u64 = 7;
    const PAGE: u64 = 1 << 7;
    const ACCESSED_DIRTY: u64 = 3 << 5;
    let memory = MemoryMap::anonymous(&[(Gpa(0x1000), 0x3000)]).ok()?;
    let leaf = 0x4000_0000 | PAGE | PRESENT_WRITABLE_USER;
    memory.store_u64(Gpa(0x1000), 0x2000 | PRESENT_WRITABLE_USER).ok()?;
    memory.store_u64(Gpa(0x2000), 0x3000 | PRESENT_WRITABLE_USER).ok()?;
    memory.store_u64(Gpa(0x3008), leaf).ok()?;

    let tables = GuestTables(memory);
    let request = pgtable::Request::user(pgtable::Access::Write);
    let found =
        pgtable::walk(&pgtable::FirstStage::FOUR_LEVEL, 0x1000, 0x20_1234, &request, &tables);
    ensure(found.ok()?.translate(0x20_1234) == 0x4000_1234)?;
    ensure(tables.0.load_u64(Gpa(0x3008)) == Ok(leaf | ACCESSED_DIRTY))
}

/// Turns PASIDs on in a function's configuration space.
pub(crate) fn pci() -> Option<()> {
    use pci::spec::{ClassCode, PasidCapabilities};
    let header = pci::Header {
        vendor: 0x8086,
        device: 0x0b25,
        class: ClassCode::SYSTEM_PERIPHERAL,
        revision: 0,
        subsystem_vendor: 0x8086,
        subsystem: 0,
    };
    let pasid = pci::PasidCapability(PasidCapabilities::new().with_width(20));
    let builder = pci::ConfigSpace::builder(header).express(0x40, pci::ExpressCapability::new());
    let mut config = builder.pasid(0x100, pasid).build().ok()?;
    let effects = config.write(0x106, &1u16.to_le_bytes());
    ensure(effects.pasid.is_some_and(|change| change.to.enable()))
}

/// A VM is granted PASIDs up to its quota; a device's DMA reaches its memory, and stops when it is
/// closed.
pub(crate) fn iommu() -> Option<()> {
    let host = SoftwareHost::new();
    let vm = host.create_vm(VmConfig { quota: 1, ..VmConfig::named("canary") }).ok()?;
    let granted = vm.alloc_pasid(PasidRange::ALL).ok()?;
    ensure(vm.alloc_pasid(PasidRange::ALL).is_err())?;
    ensure(vm.free_pasid(granted).is_ok() && vm.free_pasid(granted).is_err())?;
    let mapped = vm.set_memory(MemoryMap::anonymous(&[(Gpa(0x1000), 0x1000)]).ok()?);
    ensure(vm.is_complete(mapped))?;
    let endpoint = vm.attach(RequesterId::new(0, 16, 0)?).ok()?;
    let channel = endpoint.channel();
    let space = AddressSpace { pasid: None, privileged: false };
    channel.enter().write(space, Iova(0x1ff8), &[7; 8]).ok()?;
    ensure(vm.memory().load_u64(Gpa(0x1ff8)) == Ok(0x0707_0707_0707_0707))?;
    ensure(channel.enter().write(space, Iova(0x1ffc), &[7; 8]).is_err())?;
    let stopped = vm.close();
    ensure(vm.is_complete(stopped))?;
    ensure(host.pasid_report().promised == 0)?;
    let refused = channel.enter().write(space, Iova(0x1ff8), &[7; 8]).is_err();
    ensure(refused)
}

/// A unit shows its capabilities, takes a root table pointer and turns translation on, after which
/// a device without a context reaches nothing.
pub(crate) fn vtd() -> Option<()> {
    use vtd::model::{Caps, Model, Options, Progress};
    const CAP: u64 = 0x08;
    const GLOBAL_COMMAND: u64 = 0x18;
    const GLOBAL_STATUS: u64 = 0x1c;
    const ROOT_TABLE_ADDRESS: u64 = 0x20;
    const SET_ROOT_TABLE_POINTER: u32 = 1 << 30;
    const TRANSLATION_ENABLE: u32 = 1 << 31;

    let caps = Caps::new(Options::default()).ok()?;
    let vm = SoftwareHost::new().create_vm(VmConfig::named("canary")).ok()?;
    let mapped = vm.set_memory(MemoryMap::anonymous(&[(Gpa(0x1000), 0x2000)]).ok()?);
    ensure(vm.is_complete(mapped))?;
    let endpoint = vm.attach(RequesterId::new(0, 16, 0)?).ok()?;
    let channel = endpoint.channel();
    let space = AddressSpace { pasid: None, privileged: false };
    channel.enter().write(space, Iova(0x2000), &[1]).ok()?;

    let mut unit = Model::new(caps, vm);
    let mut capability = [0; 8];
    unit.read(CAP, &mut capability);
    ensure(u64::from_le_bytes(capability) == caps.capability().into_bits())?;
    let effects = unit.write(ROOT_TABLE_ADDRESS, &0x1000u64.to_le_bytes());
    ensure(effects.messages().count() == 0)?;
    for command in [SET_ROOT_TABLE_POINTER, TRANSLATION_ENABLE] {
        let effects = unit.write(GLOBAL_COMMAND, &command.to_le_bytes());
        ensure(effects.messages().count() == 0)?;
        while unit.poll(16).progress == Progress::More {}
        let mut status = [0; 4];
        unit.read(GLOBAL_STATUS, &mut status);
        ensure(u32::from_le_bytes(status) & command == command)?;
    }
    let refused = channel.enter().write(space, Iova(0x2000), &[1]).is_err();
    ensure(refused)
}

/// The two ends of a virtio-iommu device, one calling the other.
struct Wire(virtio_iommu::model::Model<SoftwareVm>);

impl virtio_iommu::driver::Transport for Wire {
    fn features(&mut self) -> virtio_iommu::spec::Features {
        self.0.features()
    }

    fn set_driver_features(&mut self, features: virtio_iommu::spec::Features) {
        self.0.set_driver_features(features);
    }

    fn status(&mut self) -> virtio_iommu::spec::Status {
        self.0.status()
    }

    fn write_status(&mut self, status: virtio_iommu::spec::Status) {
        let _ = self.0.write_status(status);
    }

    fn read_config(&mut self, offset: usize, data: &mut [u8]) {
        self.0.read_config(offset, data);
    }

    fn max_queue_size(&mut self, queue: u16) -> u16 {
        self.0.max_queue_size(queue)
    }

    fn set_queue(&mut self, queue: u16, layout: virtio_iommu::spec::QueueLayout) {
        let _ = self.0.set_queue(queue, layout);
    }

    fn notify(&mut self, queue: u16) {
        if self.0.notify(queue).schedule {
            let _ = self.0.poll(1);
        }
    }
}

/// A clock that stands still: nothing has to be waited for.
struct NoTime;

impl virtio_iommu::driver::Clock for NoTime {
    fn now_ns(&self) -> u64 {
        0
    }
}

/// A guest gets a PASID through a virtqueue, and gives it back once.
pub(crate) fn virtio_iommu() -> Option<()> {
    use virtio_iommu::driver::{Driver, DEFAULT_PATIENCE_NS};
    use virtio_iommu::model::{Model, Options};

    let vm = SoftwareHost::new().create_vm(VmConfig::named("canary")).ok()?;
    let mapped = vm.set_memory(MemoryMap::anonymous(&[(Gpa(0x1000), 0x2000)]).ok()?);
    ensure(vm.is_complete(mapped))?;
    let wire = Wire(Model::new(Options::default(), vm.clone()));
    let driver = Driver::new(wire, vm.memory(), Gpa(0x1000), NoTime, DEFAULT_PATIENCE_NS);
    let mut driver = driver.ok()?;
    let pasid = driver.alloc(PasidRange::ALL).ok()?;
    ensure(vm.pasid_usage().live == 1)?;
    driver.free(pasid).ok()?;
    ensure(driver.free(pasid).is_err())
}

/// A guest takes a PASID from its host and gives it back, by the registers of its unit.
pub(crate) fn vtd_driver() -> Option<()> {
    use core::cell::{Cell, RefCell};
    use vtd::driver::{Clock, LayoutChoice, Registers, VirtualCommands};
    use vtd::model::{Caps, Model, Options};
    use vtd::spec::VcmdLayout;

    struct Unit(RefCell<Model<SoftwareVm>>, Cell<u64>);

    impl Registers for Unit {
        fn read32(&self, offset: u16) -> u32 {
            let mut data = [0; 4];
            self.0.borrow_mut().read(offset.into(), &mut data);
            u32::from_le_bytes(data)
        }

        fn write32(&self, offset: u16, value: u32) {
            let _ = self.0.borrow_mut().write(offset.into(), &value.to_le_bytes());
        }
    }

    impl Clock for Unit {
        fn now_ns(&self) -> u64 {
            self.1.replace(self.1.get() + 1)
        }

        fn pause(&self) {
            let _ = self.0.borrow_mut().poll(1);
        }
    }

    let virtual_commands = Some(VcmdLayout::Revision33);
    let caps = Caps::new(Options { virtual_commands, ..Options::default() }).ok()?;
    let vm = SoftwareHost::new().create_vm(VmConfig::named("canary")).ok()?;
    let unit = Unit(RefCell::new(Model::new(caps, vm.clone())), Cell::new(0));
    let mut commands = VirtualCommands::probe(&unit, &unit, LayoutChoice::Detect).ok()??;
    let pasid = commands.alloc(PasidRange::ALL).ok()?;
    ensure(vm.pasid_usage().live == 1)?;
    commands.free(pasid).ok()?;
    ensure(vm.pasid_usage().live == 0)
}

/// A descriptor means the same after a trip through its bytes.
pub(crate) fn dsa() -> Option<()> {
    use dsa::spec::{Descriptor, Operation};
    let descriptor = Descriptor::new(Operation::Noop).with_record(Iova(0x1000));
    let read = Descriptor::from_bytes(&descriptor.to_bytes());
    ensure(read.record == Iova(0x1000))?;
    ensure(read.operation() == Ok(Operation::Noop))
}

/// Creates a VM through encoded bytes, gives it memory, and lets a PASID come and go.
pub(crate) fn vfio() -> Option<()> {
    let dispatcher = vfio::Dispatcher::new(SoftwareHost::new(), vfio::Revision::Own);
    let vm = vfio::Client::new(dispatcher.clone()).create_vm(VmConfig::named("canary")).ok()?;
    let ticket = vm.set_memory(MemoryMap::anonymous(&[(Gpa(0), 0x1000)]).ok()?);
    ensure(vm.is_complete(ticket))?;
    let pasid = vm.alloc_pasid(iommu::PasidRange::ALL).ok()?;
    vm.free_pasid(pasid).ok()?;
    ensure(vm.free_pasid(pasid).is_err())?;
    drop(vm);
    ensure(dispatcher.host().vms() == 0)
}
