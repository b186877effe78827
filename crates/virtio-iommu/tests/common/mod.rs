//! Both ends in one process: the model as the driver's transport.
#![allow(dead_code)] // each test file uses its part

use std::sync::{Arc, Mutex, MutexGuard};

use iommu::{Host, Pasid, PasidRange, SoftwareHost, SoftwareVm, Vm, VmConfig};
use mem::{Gpa, MemoryMap};
use virtio_iommu::driver::{Clock, Driver, SetupError, Transport};
use virtio_iommu::model::{Effects, Model, Options, Progress};
use virtio_iommu::spec::{Features, QueueLayout, Status};

/// Where the driver's queue is.
pub(crate) const REGION: Gpa = Gpa(0x4000);

/// How long tests' drivers wait, in ticks of [`Ticks`].
pub(crate) const PATIENCE: u64 = 1000;

/// A clock that ticks whenever it is looked at, so that a deadline passes without waiting.
#[derive(Clone, Default)]
pub(crate) struct Ticks(Arc<Mutex<u64>>);

impl Clock for Ticks {
    fn now_ns(&self) -> u64 {
        let mut now = self.0.lock().unwrap();
        *now += 1;
        *now
    }
}

/// A device that can be reached from both sides.
#[derive(Clone, Debug)]
pub(crate) struct Device {
    model: Arc<Mutex<Model<SoftwareVm>>>,
    /// Requests that a poll may take; zero: the device sleeps.
    pub(crate) budget: Arc<Mutex<u32>>,
}

impl Device {
    pub(crate) fn new(options: Options, vm: SoftwareVm) -> Self {
        let model = Arc::new(Mutex::new(Model::new(options, vm)));
        Self { model, budget: Arc::new(Mutex::new(1)) }
    }

    pub(crate) fn model(&self) -> MutexGuard<'_, Model<SoftwareVm>> {
        self.model.lock().unwrap()
    }

    pub(crate) fn sleep(&self) {
        *self.budget.lock().unwrap() = 0;
    }

    /// Works on whatever there is.
    pub(crate) fn wake(&self) {
        *self.budget.lock().unwrap() = 1;
        self.work(Effects { schedule: true, ..Effects::default() });
    }

    fn work(&self, effects: Effects) {
        let budget = *self.budget.lock().unwrap();
        if !effects.schedule || budget == 0 {
            return;
        }
        let mut model = self.model();
        loop {
            let polled = model.poll(budget);
            assert!(!polled.effects.used_buffers, "the driver wants no interrupt");
            if polled.progress == Progress::Idle {
                return;
            }
        }
    }
}

impl Transport for Device {
    fn features(&mut self) -> Features {
        self.model().features()
    }

    fn set_driver_features(&mut self, features: Features) {
        self.model().set_driver_features(features);
    }

    fn status(&mut self) -> Status {
        self.model().status()
    }

    fn write_status(&mut self, status: Status) {
        let effects = self.model().write_status(status);
        self.work(effects);
    }

    fn read_config(&mut self, offset: usize, data: &mut [u8]) {
        self.model().read_config(offset, data);
    }

    fn max_queue_size(&mut self, queue: u16) -> u16 {
        self.model().max_queue_size(queue)
    }

    fn set_queue(&mut self, queue: u16, layout: QueueLayout) {
        let _ = self.model().set_queue(queue, layout);
    }

    fn notify(&mut self, queue: u16) {
        let effects = self.model().notify(queue);
        self.work(effects);
    }
}

pub(crate) type TestDriver<T> = Driver<T, Arc<MemoryMap>, Ticks>;

/// A VM with 64 KiB of memory at zero.
pub(crate) fn vm_of(host: &SoftwareHost, config: VmConfig) -> SoftwareVm {
    let vm = host.create_vm(config).unwrap();
    let ticket = vm.set_memory(MemoryMap::anonymous(&[(Gpa(0), 0x1_0000)]).unwrap());
    assert!(vm.is_complete(ticket));
    vm
}

pub(crate) fn driver_of<T: Transport>(
    transport: T,
    memory: Arc<MemoryMap>,
) -> Result<TestDriver<T>, SetupError> {
    Driver::new(transport, memory, REGION, Ticks::default(), PATIENCE)
}

pub(crate) fn range(first: u32, last: u32) -> PasidRange {
    PasidRange::new(Pasid::new(first).unwrap(), Pasid::new(last).unwrap()).unwrap()
}

pub(crate) fn pasid(number: u32) -> Pasid {
    Pasid::new(number).unwrap()
}
