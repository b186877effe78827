//! The host's side: a machine with an accelerator, and somebody who drives them.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use dsa::model::{Config, Device};
use iommu::{Host, SoftwareHost, SoftwareVm, Vm, VmConfig};
use machine::{IommuFunction, Machine, MessageSink, CARRIER_BAR_ADDRESS};
use mem::{Gpa, ReporterId};
use pci::{Function, InterruptSink, RequesterId};
use vtd::model::{Caps, Options};

use super::drive::{Bells, Driver};
use super::memory::Ram;
use super::{Setup, Verdict};

/// The accelerator, 00:10.0.
pub const DEVICE: RequesterId = RequesterId::from_bits(0x0080);
/// A device that does one access at a time, beside the accelerator, if a test attaches it.
pub const PROBE: RequesterId = RequesterId::from_bits(0x0081);
/// The accelerator and the carrier, as they report memory.
pub const REPORTERS: [ReporterId; 2] = [ReporterId(0), ReporterId(1)];
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
    pub setup: Setup,
    pub host: SoftwareHost,
    pub machine: Arc<Machine<SoftwareVm>>,
    pub carrier: IommuFunction,
    /// How often the carrier's BAR was decoded in the wrong place.
    pub misplaced: Arc<AtomicU64>,
    pub device: Device,
    pub messages: Arc<Messages>,
    pub vectors: Arc<Vectors>,
    pub ram: Ram,
}

impl Rig {
    pub fn new(setup: Setup) -> Self {
        Self::on(&SoftwareHost::new(), setup, RAM)
    }

    /// A machine on `host` with `ram` bytes of memory, which its two functions have reported.
    pub fn on(host: &SoftwareHost, setup: Setup, ram: u64) -> Self {
        Self::with(host, setup, ram, setup.config("guest"), setup.unit())
    }

    /// The same, with a VM and a unit as wanted.
    pub fn with(
        host: &SoftwareHost,
        setup: Setup,
        ram: u64,
        config: VmConfig,
        unit: Options,
    ) -> Self {
        let vm = host.create_vm(config).expect("room for a VM");
        let (messages, vectors) = (Arc::<Messages>::default(), Arc::<Vectors>::default());
        let mut bells = Bells::default();
        let bell = bells.unit.clone();
        let caps = Caps::new(unit).expect("a possible unit");
        let waker = Arc::new(move || bell.ring());
        let machine = Arc::new(Machine::new(vm, caps, messages.clone(), waker));

        let endpoint = machine.attach(DEVICE).expect("the first device");
        let device = Device::new(Config::default(), endpoint).expect("the default device");
        bells.engines = (0..device.engines()).map(|_| Arc::default()).collect();
        device.set_interrupts(Some(vectors.clone()));
        let rung = bells.engines.clone();
        device.set_waker(Some(Arc::new(move |engine: usize| rung[engine].ring())));
        let misplaced = Arc::<AtomicU64>::default();
        let count = misplaced.clone();
        let tell = Box::new(move |_| {
            count.fetch_add(1, Ordering::Relaxed);
        });
        let carrier = IommuFunction::new(machine.clone(), CARRIER_BAR_ADDRESS, tell);
        let carrier = carrier.expect("the carrier's layout");
        let driver = Driver::new(setup.drive, &machine, &device, &bells);
        let (host, ram) = (host.clone(), Ram::new(ram));
        let rig = Self {
            driver,
            setup,
            host,
            machine,
            carrier,
            misplaced,
            device,
            messages,
            vectors,
            ram,
        };
        REPORTERS.into_iter().for_each(|reporter| rig.report(reporter));
        rig
    }

    /// A function reports the memory, which it has not yet.
    pub fn report(&self, reporter: ReporterId) {
        self.machine.map(reporter, self.ram.claim()).expect("the same memory");
    }

    /// Waits until `done`; tells what it waited for if that does not come.
    pub fn wait(&self, what: &str, done: impl FnMut() -> bool) -> Verdict {
        self.driver.wait(&self.machine, what, done)
    }

    /// Works until nothing is left to do; nothing is to do here if threads do it.
    pub fn settle(&self) -> Verdict {
        self.wait("the end of all work", || !self.driver.round(&self.machine))
    }

    /// What is cached of the guest's tables now, and how many devices are attached.
    pub fn footprint(&self) -> [u64; 3] {
        let counters = self.machine.vm().counters();
        [counters.iotlb_entries, counters.pasid_entries, counters.devices]
    }
}
