//! Guests: a driver, the model that it drives, and the VM behind that, all in this process.

use std::error::Error;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use iommu::pasid::PasidCommands;
use iommu::{PasidRange, Vm};
use mem::{Gpa, MemoryMap};
use virtio_iommu::driver::{Driver, SharedDriver, Transport, DEFAULT_PATIENCE_NS};
use virtio_iommu::spec::{Features, QueueLayout, Status};
use vtd::driver::{LayoutChoice, Registers, SharedVirtualCommands, VirtualCommands};
use vtd::spec::VcmdLayout;

pub(crate) type Failure = Box<dyn Error>;

/// Allocates a PASID and frees it.
pub(crate) type Pair = Box<dyn Fn() -> Result<(), Failure>>;

/// How a request leaves the guest.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Interface {
    /// Not at all: the VMM itself asks.
    None,
    VirtualCommands(VcmdLayout),
    Requests,
}

impl Interface {
    pub(crate) const ALL: [Self; 4] = [
        Self::None,
        Self::VirtualCommands(VcmdLayout::Revision30),
        Self::VirtualCommands(VcmdLayout::Revision33),
        Self::Requests,
    ];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::None => "VMM alone",
            Self::VirtualCommands(VcmdLayout::Revision30) => "VT-d 3.0 commands",
            Self::VirtualCommands(VcmdLayout::Revision33) => "VT-d 3.3 commands",
            Self::Requests => "virtio-iommu",
        }
    }

    /// What the guest of `vm` does over and over.
    pub(crate) fn pair<V: Vm>(self, vm: V) -> Result<Pair, Failure> {
        match self {
            Self::None => Ok(Box::new(move || {
                let pasid = vm.alloc_pasid(PasidRange::ALL)?;
                Ok(vm.free_pasid(pasid)?)
            })),
            Self::VirtualCommands(layout) => {
                let unit = Arc::new(Unit::new(vm, layout)?);
                let choice = LayoutChoice::Known(layout);
                let commands = VirtualCommands::probe(unit.clone(), unit, choice)?;
                let commands = commands.ok_or("the unit has no virtual commands")?;
                Ok(over(SharedVirtualCommands::new(commands)))
            }
            Self::Requests => {
                let _ = vm.set_memory(MemoryMap::anonymous(&[(Gpa(0), MEMORY)])?);
                let memory = vm.memory();
                let model = virtio_iommu::model::Model::new(Default::default(), vm);
                let watch = Watch(Instant::now());
                let driver = Driver::new(Queue(model), memory, QUEUE, watch, DEFAULT_PATIENCE_NS)?;
                Ok(over(SharedDriver::new(driver)))
            }
        }
    }
}

fn over(commands: impl PasidCommands + 'static) -> Pair {
    Box::new(move || {
        let pasid = commands.alloc(PasidRange::ALL)?;
        Ok(commands.free(pasid)?)
    })
}

/// Bytes of a guest's memory.
const MEMORY: u64 = 1 << 16;
/// Where a guest keeps its queue.
const QUEUE: Gpa = Gpa(0x4000);

struct Watch(Instant);

impl Watch {
    fn now_ns(&self) -> u64 {
        u64::try_from(self.0.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }
}

impl virtio_iommu::driver::Clock for Watch {
    fn now_ns(&self) -> u64 {
        self.now_ns()
    }
}

/// A remapping unit whose registers are calls.
struct Unit<V: Vm> {
    model: Mutex<vtd::model::Model<V>>,
    watch: Watch,
}

impl<V: Vm> Unit<V> {
    fn new(vm: V, layout: VcmdLayout) -> Result<Self, Failure> {
        let options = vtd::model::Options { virtual_commands: Some(layout), ..Default::default() };
        let model = Mutex::new(vtd::model::Model::new(vtd::model::Caps::new(options)?, vm));
        Ok(Self { model, watch: Watch(Instant::now()) })
    }

    fn model(&self) -> MutexGuard<'_, vtd::model::Model<V>> {
        self.model.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<V: Vm> Registers for Unit<V> {
    fn read32(&self, offset: u16) -> u32 {
        let mut data = [0; 4];
        self.model().read(offset.into(), &mut data);
        u32::from_le_bytes(data)
    }

    fn write32(&self, offset: u16, value: u32) {
        let _ = self.model().write(offset.into(), &value.to_le_bytes());
    }

    fn read64(&self, offset: u16) -> u64 {
        let mut data = [0; 8];
        self.model().read(offset.into(), &mut data);
        u64::from_le_bytes(data)
    }

    fn write64(&self, offset: u16, value: u64) {
        let _ = self.model().write(offset.into(), &value.to_le_bytes());
    }
}

impl<V: Vm> vtd::driver::Clock for Unit<V> {
    fn now_ns(&self) -> u64 {
        self.watch.now_ns()
    }

    /// While the guest looks again, its VMM works.
    fn pause(&self) {
        let _ = self.model().poll(1);
    }
}

/// A virtio-iommu device whose notifications are calls.
struct Queue<V: Vm>(virtio_iommu::model::Model<V>);

impl<V: Vm> Transport for Queue<V> {
    fn features(&mut self) -> Features {
        self.0.features()
    }

    fn set_driver_features(&mut self, features: Features) {
        self.0.set_driver_features(features);
    }

    fn status(&mut self) -> Status {
        self.0.status()
    }

    fn write_status(&mut self, status: Status) {
        let _ = self.0.write_status(status);
    }

    fn read_config(&mut self, offset: usize, data: &mut [u8]) {
        self.0.read_config(offset, data);
    }

    fn max_queue_size(&mut self, queue: u16) -> u16 {
        self.0.max_queue_size(queue)
    }

    fn set_queue(&mut self, queue: u16, layout: QueueLayout) {
        // A refusal shows when the queue is used.
        let _ = self.0.set_queue(queue, layout);
    }

    fn notify(&mut self, queue: u16) {
        if self.0.notify(queue).schedule {
            let _ = self.0.poll(1);
        }
    }
}
