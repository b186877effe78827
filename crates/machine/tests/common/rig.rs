//! The host's side: a machine with an accelerator, and somebody who drives them.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use dsa::model::{Config, Device};
use iommu::{Host, SoftwareHost, SoftwareVm, Vm, VmConfig};
use machine::{IommuFunction, Machine, MessageSink, CARRIER_BAR_ADDRESS};
use mem::{Gpa, ReporterId};
use pci::{Function, InterruptSink, RequesterId};
use vtd::model::{Caps, Options};

use super::drive::{Bells, Drive, Driver};
use super::memory::Ram;
use super::Verdict;

/// The accelerator, 00:10.0.
pub const DEVICE: RequesterId = RequesterId::from_bits(0x0080);
/// Bytes of a guest's memory.
pub const RAM: u64 = 32 << 20;

/// The IOMMU's messages as they were sent.
#[derive(Default)]
pub struct Messages(Mutex<Vec<(Gpa, u32)>>);

impl Messages {
    pub fn take(&self) -> Vec<(Gpa, u32)> {
        std::mem::take(&mut self.0.lock().unwrap())
    }
}

impl MessageSink for Messages {
    fn send(&self, address: Gpa, data: u32) {
        self.0.lock().unwrap().push((address, data));
    }
}

/// How often each vector of the accelerator was raised.
#[derive(Default)]
pub struct Vectors([AtomicU64; 32]);

impl Vectors {
    pub fn count(&self, vector: usize) -> u64 {
        self.0[vector].load(Ordering::SeqCst)
    }
}

impl InterruptSink for Vectors {
    fn raise(&self, vector: u16) {
        self.0[usize::from(vector)].fetch_add(1, Ordering::SeqCst);
    }
}

pub struct Rig {
    // Dropped first: threads end before what they work on goes.
    pub driver: Driver,
    pub host: SoftwareHost,
    pub machine: Arc<Machine<SoftwareVm>>,
    pub carrier: IommuFunction,
    pub device: Device,
    pub messages: Arc<Messages>,
    pub vectors: Arc<Vectors>,
    pub ram: Ram,
}

impl Rig {
    pub fn new(drive: Drive) -> Self {
        Self::on(&SoftwareHost::new(), drive)
    }

    /// A machine on `host`, whose two functions have reported the same memory.
    pub fn on(host: &SoftwareHost, drive: Drive) -> Self {
        let vm = host.create_vm(VmConfig { name: "guest".into() }).expect("room for a VM");
        let endpoint = vm.attach(DEVICE).expect("the first device");
        let device = Device::new(Config::default(), endpoint).expect("the default device");
        let engines = (0..device.engines()).map(|_| Arc::default()).collect();
        let bells = Bells { engines, ..Bells::default() };
        let (messages, vectors) = (Arc::<Messages>::default(), Arc::<Vectors>::default());
        device.set_interrupts(Some(vectors.clone()));
        let rung = bells.engines.clone();
        device.set_waker(Some(Arc::new(move |engine: usize| rung[engine].ring())));

        let bell = bells.unit.clone();
        let caps = Caps::new(Options::default()).expect("the default unit");
        let waker = Arc::new(move || bell.ring());
        let machine = Arc::new(Machine::new(vm, caps, messages.clone(), waker));
        let misplaced = Box::new(|misplaced| panic!("{misplaced}"));
        let carrier = IommuFunction::new(machine.clone(), CARRIER_BAR_ADDRESS, misplaced);
        let carrier = carrier.expect("the carrier's layout");
        let ram = Ram::new(RAM);
        for reporter in [0, 1] {
            machine.map(ReporterId(reporter), ram.claim()).expect("the same memory");
        }
        let driver = Driver::new(drive, &machine, &device, &bells);
        Self { driver, host: host.clone(), machine, carrier, device, messages, vectors, ram }
    }

    /// Waits until `done`; tells what it waited for if that does not come.
    pub fn wait(&self, what: &str, done: impl FnMut() -> bool) -> Verdict {
        self.driver.wait(&self.machine, what, done)
    }

    /// Works until nothing is left to do.
    pub fn settle(&self) {
        while self.driver.round(&self.machine) {}
    }

    /// What is cached of the guest's tables now, and how many devices are attached.
    pub fn footprint(&self) -> [u64; 3] {
        let counters = self.machine.vm().counters();
        [counters.iotlb_entries, counters.pasid_entries, counters.devices]
    }
}
