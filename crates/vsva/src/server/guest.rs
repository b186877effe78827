//! One guest's place on the server: its VM, its IOMMU, its accelerator, their sockets and threads.

use std::fs;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use dsa::model::{Device, Engine, Ran};
use iommu::{Host as _, SoftwareHost, SoftwareVm, Vm as _, VmConfig};
use machine::{Dmar, IommuFunction, Machine, CARRIER_BAR_ADDRESS};
use mem::{Mappings, Policy, ReporterId};
use pci::{Function, RequesterId};
use vfio_user::Server as Socket;
use vtd::model::{Caps, Progress};

use super::bell::Bell;
use super::life::Life;
use super::notices::{Lines, Notices};
use super::platform::FunctionPlatform;
use super::router::Router;
use super::settled::Settled;
use super::ServeError;
use crate::qemu::{Devices, PciSocket};

/// Device number of the accelerator on the guest's root bus.
const ACCELERATOR_DEVICE: u8 = 0x10;
/// Device number of the function that carries the IOMMU.
const CARRIER_DEVICE: u8 = 0x11;
/// Width in bits of the guest physical addresses that the IOMMU translates to.
const HOST_ADDRESS_WIDTH: u8 = 48;
/// Descriptors' worth of work between two looks at whether the thread is to stop.
const ENGINE_BUDGET: usize = 16;
/// How long a worker sleeps at most; it is woken when there is work.
const NAP: Duration = Duration::from_secs(1);
/// How long the unit's thread sleeps while accesses of before an invalidation are in flight.
const SETTLING: Duration = Duration::from_micros(20);

/// What the transport's threads and the workers share.
pub(super) struct Shared {
    pub(super) machine: Arc<Machine<SoftwareVm>>,
    pub(super) accelerator: Device,
    pub(super) router: Arc<Router>,
    pub(super) mappings: Mutex<Mappings>,
    pub(super) policy: Policy,
    pub(super) life: Life,
    pub(super) notices: Arc<Notices>,
}

/// One guest's place: made before the guest, and good for one guest after another.
pub struct GuestPlace {
    shared: Arc<Shared>,
    devices: Devices,
    // Dropped in this order: sockets first, so that nobody comes while the rest goes.
    sockets: Vec<Socket>,
    workers: Workers,
}

impl GuestPlace {
    /// Makes the devices of a guest called `name`, with their sockets and the DMAR table in `dir`.
    pub(super) fn new(
        host: &SoftwareHost,
        dir: &Path,
        name: &str,
        policy: Policy,
        lines: Lines,
    ) -> Result<Self, ServeError> {
        let mut workers = Workers::default();
        let shared = Arc::new(Shared::new(host, name, policy, lines, &workers.unit_bell)?);
        workers.start(&shared).map_err(|source| ServeError::Thread { source })?;

        let notices = shared.notices.clone();
        let carrier = IommuFunction::new(
            shared.machine.clone(),
            CARRIER_BAR_ADDRESS,
            Box::new(move |misplaced| notices.say(misplaced)),
        )?;
        let functions: [(u8, &str, Arc<dyn Function>); 2] = [
            (
                ACCELERATOR_DEVICE,
                "dsa",
                Arc::new(Settled::new(shared.accelerator.clone(), shared.machine.vm().clone())),
            ),
            (CARRIER_DEVICE, "iommu", Arc::new(carrier)),
        ];
        let dmar = dir.join(format!("{name}-dmar.aml"));
        let table = Dmar {
            register_base: CARRIER_BAR_ADDRESS,
            host_address_width: HOST_ADDRESS_WIDTH,
            endpoints: vec![accelerator_id()],
        };
        fs::write(&dmar, table.to_bytes())
            .map_err(|source| ServeError::File { path: dmar.clone(), source })?;
        let mut devices = Devices { acpi_tables: vec![dmar], functions: Vec::new() };
        let mut sockets = Vec::new();
        for (index, (device, kind, function)) in functions.into_iter().enumerate() {
            let path = dir.join(format!("{name}-{kind}.sock"));
            let platform = FunctionPlatform {
                shared: shared.clone(),
                function: function.clone(),
                reporter: ReporterId(index as u32),
            };
            let socket = Socket::start(&path, function, Arc::new(platform))
                .map_err(|source| ServeError::File { path: path.clone(), source })?;
            sockets.push(socket);
            devices.functions.push(PciSocket { path, addr: format!("{device:x}.0") });
        }
        Ok(Self { shared, devices, sockets, workers })
    }

    /// What to put on QEMU's command line.
    pub fn devices(&self) -> &Devices {
        &self.devices
    }

    /// Waits until no client is connected and everything of the last is freed; gives how long that
    /// took, or the number of connections left at `limit`.
    pub fn wait_ended(&self, limit: Duration) -> Result<Duration, u32> {
        self.shared.life.wait_ended(limit)
    }

    /// Guests that were connected here so far.
    pub fn lives(&self) -> u64 {
        self.shared.life.begun()
    }

    /// The accelerator.
    pub fn accelerator(&self) -> &Device {
        &self.shared.accelerator
    }

    /// Memory reports that stand, and the pieces of memory that are mapped for them.
    pub fn memory(&self) -> (usize, usize) {
        (self.shared.machine.claims(), self.shared.machine.vm().memory().segments().len())
    }

    /// What was counted for this place, by name.
    pub fn counters(&self) -> Vec<(&'static str, u64)> {
        super::counters::collect(&self.shared, &self.sockets)
    }

    /// The VM's counters.
    pub fn vm_counters(&self) -> iommu::Counters {
        self.shared.machine.vm().counters()
    }

    /// Ends the place: sockets, threads and VM are gone when this returns.
    pub fn close(self) {
        for socket in &self.sockets {
            socket.stop();
        }
        drop(self.workers);
        let _ticket = self.shared.machine.vm().close();
        for table in &self.devices.acpi_tables {
            // It may be gone with its directory.
            let _ = fs::remove_file(table);
        }
    }
}

/// Where the accelerator sits.
fn accelerator_id() -> RequesterId {
    const ID: RequesterId = match RequesterId::new(0, ACCELERATOR_DEVICE, 0) {
        Some(id) => id,
        None => panic!("a device number has five bits"),
    };
    ID
}

impl Shared {
    fn new(
        host: &SoftwareHost,
        name: &str,
        policy: Policy,
        lines: Lines,
        unit_bell: &Arc<Bell>,
    ) -> Result<Self, ServeError> {
        let vm = host.create_vm(VmConfig { name: name.to_owned() })?;
        let endpoint = vm.attach(accelerator_id())?;
        let accelerator = Device::new(dsa::model::Config::default(), endpoint)?;
        let router = Arc::new(Router::default());
        let bell = unit_bell.clone();
        let caps = Caps::new(vtd::model::Options::default())?;
        let machine = Machine::new(vm, caps, router.clone(), Arc::new(move || bell.ring()));
        Ok(Self {
            machine: Arc::new(machine),
            accelerator,
            router,
            mappings: Mutex::default(),
            policy,
            life: Life::default(),
            notices: Arc::new(Notices::new(name, lines)),
        })
    }
}

/// The threads that do what register accesses only ask for.
#[derive(Default)]
struct Workers {
    unit_bell: Arc<Bell>,
    engine_bells: Arc<[Arc<Bell>]>,
    stopping: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Workers {
    fn start(&mut self, shared: &Arc<Shared>) -> io::Result<()> {
        let engines = shared.accelerator.engines();
        self.engine_bells = (0..engines).map(|_| Arc::default()).collect();
        let bells = self.engine_bells.clone();
        shared.accelerator.set_waker(Some(Arc::new(move |engine: usize| {
            if let Some(bell) = bells.get(engine) {
                bell.ring();
            }
        })));
        for (index, bell) in self.engine_bells.clone().iter().cloned().enumerate() {
            let Some(engine) = shared.accelerator.engine(index) else { continue };
            self.spawn(format!("engine {index}"), move |stopping| work(engine, &bell, stopping))?;
        }
        let (shared, bell) = (shared.clone(), self.unit_bell.clone());
        self.spawn("iommu".to_owned(), move |stopping| drive(&shared.machine, &bell, stopping))
    }

    fn spawn(
        &mut self,
        name: String,
        body: impl FnOnce(&AtomicBool) + Send + 'static,
    ) -> io::Result<()> {
        let stopping = self.stopping.clone();
        self.threads.push(thread::Builder::new().name(name).spawn(move || body(&stopping))?);
        Ok(())
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        self.stopping.store(true, Ordering::SeqCst);
        self.unit_bell.ring();
        self.engine_bells.iter().for_each(|bell| bell.ring());
        for thread in self.threads.drain(..) {
            // A panic there has been shown already.
            let _ = thread.join();
        }
    }
}

/// Runs an engine of the accelerator.
fn work(mut engine: Engine, bell: &Bell, stopping: &AtomicBool) {
    while !stopping.load(Ordering::SeqCst) {
        match engine.run(ENGINE_BUDGET) {
            Ran::More => {}
            Ran::Idle => bell.wait(NAP),
        }
    }
}

/// Drives the IOMMU: faults, and the invalidation queue.
fn drive(machine: &Machine<SoftwareVm>, bell: &Bell, stopping: &AtomicBool) {
    while !stopping.load(Ordering::SeqCst) {
        match machine.poll() {
            Progress::More => {}
            Progress::Waiting(ticket) => {
                if !machine.vm().is_complete(ticket) {
                    bell.wait(SETTLING);
                }
            }
            Progress::Idle => bell.wait(NAP),
        }
    }
}
