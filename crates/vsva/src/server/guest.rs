//! One guest's place on the server: its VM, its IOMMU, its accelerator, their sockets and threads.

use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
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
use super::way::make_way;
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
        let workers = Workers::default();
        let shared = Arc::new(Shared::new(host, name, policy, lines, &workers.unit_bell)?);
        // From here on, dropping it takes down what was made so far.
        let mut place = Self { shared, devices: Devices::default(), sockets: Vec::new(), workers };
        place.workers.start(&place.shared).map_err(|source| ServeError::Thread { source })?;

        let notices = place.shared.notices.clone();
        let carrier = IommuFunction::new(
            place.shared.machine.clone(),
            CARRIER_BAR_ADDRESS,
            Box::new(move |misplaced| notices.say(misplaced)),
        )?;
        let (accelerator, vm) = (&place.shared.accelerator, place.shared.machine.vm());
        let accelerator = Arc::new(Settled::new(accelerator.clone(), vm.clone()));
        place.serve(ACCELERATOR_DEVICE, &dir.join(format!("{name}-dsa.sock")), accelerator)?;
        place.serve(CARRIER_DEVICE, &dir.join(format!("{name}-iommu.sock")), Arc::new(carrier))?;
        // Last: the sockets show that the names in `dir` are no other server's.
        place.write_dmar(dir.join(format!("{name}-dmar.aml")))?;
        Ok(place)
    }

    /// Serves a function of the guest at `path`.
    fn serve(
        &mut self,
        device: u8,
        path: &Path,
        function: Arc<dyn Function>,
    ) -> Result<(), ServeError> {
        make_way(path)?;
        let platform = FunctionPlatform {
            shared: self.shared.clone(),
            function: function.clone(),
            reporter: ReporterId(device.into()),
            private_ram: AtomicBool::new(false),
        };
        let socket = Socket::start(path, function, Arc::new(platform))
            .map_err(|source| ServeError::File { path: path.to_owned(), source })?;
        self.sockets.push(socket);
        let addr = format!("{device:x}.0");
        self.devices.functions.push(PciSocket { path: path.to_owned(), addr });
        Ok(())
    }

    /// Writes the table that tells the guest of its IOMMU.
    fn write_dmar(&mut self, path: PathBuf) -> Result<(), ServeError> {
        let table = Dmar {
            register_base: CARRIER_BAR_ADDRESS,
            host_address_width: HOST_ADDRESS_WIDTH,
            endpoints: vec![accelerator_id()],
        };
        let written = fs::write(&path, table.to_bytes());
        // Known before it is whole, so that no half of it stays.
        self.devices.acpi_tables.push(path.clone());
        written.map_err(|source| ServeError::File { path, source })
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

    /// Clients that were turned away so far because one was connected.
    pub fn refused(&self) -> u64 {
        self.sockets.iter().map(|socket| socket.counters().refused).sum()
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

    /// Number of domains under which the IOMMU has something cached.
    pub fn cached_domains(&self) -> usize {
        self.shared.machine.vm().cached_domains().len()
    }

    /// The VM's counters.
    pub fn vm_counters(&self) -> iommu::Counters {
        self.shared.machine.vm().counters()
    }

    /// Says something about this guest, within its share of lines.
    pub fn say(&self, what: impl fmt::Display) {
        self.shared.notices.say(what);
    }

    /// Says how many lines were left out, if some were and there is room for one.
    pub fn say_suppressed(&self) {
        self.shared.notices.say_suppressed();
    }

    /// Ends the place: sockets, threads and VM are gone when this returns.
    pub fn close(self) {
        drop(self);
    }
}

impl Drop for GuestPlace {
    fn drop(&mut self) {
        // Sockets first, so that nobody comes while the rest goes.
        for socket in &self.sockets {
            socket.stop();
        }
        self.workers.stop();
        let _ticket = self.shared.machine.close();
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
        let vm = host.create_vm(VmConfig::named(name))?;
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

    /// Ends the threads and waits for their end.
    fn stop(&mut self) {
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
