//! One guest's place on the server: its VM, its IOMMU, its accelerator, their sockets and threads.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use dsa::model::{Device, Engine, Ran};
use iommu::{
    DomainId, Host as _, Layout, OutstandingGroup, Pasid, SecondStageLevels, SoftwareHost,
    StageTwoConfig, StageTwoFormat, Vm as _, VmConfig,
};
use machine::{Dmar, IommuFunction, Machine, CARRIER_BAR_ADDRESS};
use mem::{Mappings, Policy, ReporterId};
use pci::{Function, RequesterId};
use vfio::Door;
use vfio_user::Server as Socket;
use vtd::model::{Caps, Progress};

use super::bell::Bell;
use super::config::{Commands, GuestConfig, PasidTable, StageTwo};
use super::injection::{CannotInject, Injection};
use super::injector::Injector;
use super::life::{End, Life};
use super::notices::{Lines, Notices};
use super::platform::FunctionPlatform;
use super::reclaim::{Reclaimed, Reclaims};
use super::router::Router;
use super::settled::{settle_reset, wait_until, Overdue, Settled, Wait};
use super::way::make_way;
use super::{clock, sabotage, GuestVm, ServeError};
use crate::qemu::{Devices, PciSocket};

/// Device number of the accelerator on the guest's root bus.
const ACCELERATOR_DEVICE: u8 = 0x10;
/// Device number of the function that carries the IOMMU.
const CARRIER_DEVICE: u8 = 0x11;
/// Width in bits of the guest physical addresses that the IOMMU translates to.
const HOST_ADDRESS_WIDTH: u8 = 48;
/// Descriptors' worth of work between two looks at whether the thread is to stop.
const ENGINE_BUDGET: usize = 16;
/// Longest wait for the end of a place's threads, each of which does bounded pieces of work.
const STOP_LIMIT: Duration = Duration::from_secs(10);
/// How long a worker sleeps at most; it is woken when there is work.
const NAP: Duration = Duration::from_secs(1);
/// How long it sleeps while a device owes the answer to an invalidation.
const OWED: Duration = Duration::from_millis(1);
/// How long the unit's thread sleeps while accesses of before an invalidation are in flight.
const SETTLING: Duration = Duration::from_micros(20);

/// What the transport's threads and the workers share.
pub(super) struct Shared {
    pub(super) machine: Arc<Machine<GuestVm>>,
    pub(super) accelerator: Device,
    pub(super) router: Arc<Router>,
    pub(super) mappings: Mutex<Mappings>,
    pub(super) policy: Policy,
    pub(super) life: Life,
    pub(super) reclaims: Reclaims,
    pub(super) injector: Injector,
    pub(super) notices: Arc<Notices>,
}

/// What a place is made with.
#[derive(Clone, Copy)]
pub(super) struct Settings {
    pub(super) config: GuestConfig,
    pub(super) policy: Policy,
    /// Of the order of frames below a shuffled second stage.
    pub(super) seed: u64,
}

/// One guest's place: made before the guest, and good for one guest after another.
pub struct GuestPlace {
    name: String,
    config: GuestConfig,
    shared: Arc<Shared>,
    devices: Devices,
    sockets: Vec<Socket>,
    workers: Workers,
}

impl GuestPlace {
    /// Makes the devices of a guest called `name`, with their sockets and the DMAR table in `dir`.
    pub(super) fn new(
        host: &Door<SoftwareHost>,
        dir: &Path,
        name: &str,
        settings: Settings,
        lines: Lines,
    ) -> Result<Self, ServeError> {
        let workers = Workers::default();
        let shared = Shared::new(host, name, settings, lines, &workers.unit_bell)?;
        // From here on, dropping it takes down what was made so far.
        let mut place = Self {
            name: name.to_owned(),
            config: settings.config,
            shared: Arc::new(shared),
            devices: Devices::default(),
            sockets: Vec::new(),
            workers,
        };
        place.workers.start(&place.shared).map_err(|source| ServeError::Thread { source })?;

        let notices = place.shared.notices.clone();
        let carrier = IommuFunction::new(
            place.shared.machine.clone(),
            CARRIER_BAR_ADDRESS,
            Box::new(move |misplaced| notices.say(misplaced)),
        )?;
        let shared = place.shared.clone();
        let carrier = Settled::new(carrier, move |carrier| {
            let reclaimed = shared.reclaims.reset(shared.machine.vm(), || carrier.reset());
            shared.say_reclaimed(reclaimed);
        });
        let shared = place.shared.clone();
        let accelerator = Settled::new(place.shared.accelerator.clone(), move |accelerator| {
            accelerator.reset();
            if let Err(overdue) = settle_reset(shared.machine.vm()) {
                shared.notices.say(overdue);
            }
        });
        let socket = |function: &str| dir.join(format!("{name}-{function}.sock"));
        place.serve(ACCELERATOR_DEVICE, &socket("dsa"), Arc::new(accelerator))?;
        place.serve(CARRIER_DEVICE, &socket("iommu"), Arc::new(carrier))?;
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

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What it was made with.
    pub fn config(&self) -> GuestConfig {
        self.config
    }

    /// The VM, for a VMM's own part in what its guest has.
    pub fn vm(&self) -> &GuestVm {
        self.shared.machine.vm()
    }

    /// Whether a guest is connected.
    pub fn is_connected(&self) -> bool {
        self.shared.life.is_connected()
    }

    /// How the last guest that has ended here did.
    pub fn last_end(&self) -> Option<End> {
        self.shared.life.ended().1
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
        self.vm().host_vm().map_or(0, |vm| vm.cached_domains().len())
    }

    /// Entries that are bound in tables of the host's now: of PASIDs, and of requests without one.
    pub fn bound(&self) -> u64 {
        self.shared.machine.unit_counters().bindings.bound
    }

    /// The PASIDs whose table entry the IOMMU has cached, granted or not, and their domains.
    pub fn cached_pasids(&self) -> BTreeMap<Pasid, DomainId> {
        self.vm().host_vm().map(|vm| vm.cached_pasids()).unwrap_or_default()
    }

    /// The VM's counters.
    pub fn vm_counters(&self) -> iommu::Counters {
        self.shared.machine.vm().counters()
    }

    /// Lets something go wrong for the guest from now on; what went wrong of the same kind is put right.
    ///
    /// # Errors
    /// [`CannotInject`].
    pub fn inject(&self, injection: Injection) -> Result<(), CannotInject> {
        if self.vm().host_vm().is_none() {
            return Err(CannotInject(injection));
        }
        if !sabotage::ignores_injections() {
            self.shared.injector.inject(injection, &*self.shared.machine);
        }
        // Something may be due now.
        self.workers.unit_bell.ring();
        Ok(())
    }

    /// Puts right what [`inject`](Self::inject) let go wrong.
    pub fn clear_injections(&self) {
        self.shared.injector.clear(&*self.shared.machine);
        self.workers.unit_bell.ring();
    }

    /// Groups of page requests that were answered in the guest's place, since it did not in time.
    pub fn page_requests_timed_out(&self) -> u64 {
        self.vm().page_request_counters().timed_out
    }

    /// The page request groups that nobody has answered, the oldest first.
    pub fn outstanding_page_requests(&self) -> Vec<OutstandingGroup> {
        self.vm().host_vm().map(|vm| vm.outstanding_page_requests()).unwrap_or_default()
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
        if let Err(overdue) = self.workers.stop() {
            self.shared.notices.say(overdue);
        }
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

/// What the guest's IOMMU offers.
fn unit_options(config: GuestConfig) -> vtd::model::Options {
    let unit = match config.pasid_table {
        PasidTable::Guest => vtd::model::Options::default(),
        PasidTable::Host => vtd::model::Options::host_owned(),
    };
    vtd::model::Options {
        virtual_commands: config.commands.layout(),
        invalidation_timeout: config.invalidation_timeout,
        ..unit
    }
}

/// The host's second stage: deep enough for all that the guest's IOMMU translates to.
fn below(stage_two: StageTwo, seed: u64) -> Option<StageTwoConfig> {
    let layout = match stage_two {
        StageTwo::None => return None,
        StageTwo::Identity => Layout::Identity,
        StageTwo::Shuffled => Layout::Shuffled { seed },
    };
    let format = StageTwoFormat::Vtd { levels: SecondStageLevels::Four };
    Some(StageTwoConfig { format, layout })
}

impl Shared {
    fn new(
        host: &Door<SoftwareHost>,
        name: &str,
        settings: Settings,
        lines: Lines,
        unit_bell: &Arc<Bell>,
    ) -> Result<Self, ServeError> {
        let Settings { config, policy, seed } = settings;
        let GuestConfig { quota, numbering, commands, stage_two, .. } = config;
        let vm = host.create_vm(VmConfig {
            name: name.to_owned(),
            quota,
            numbering,
            // A guest that is told to ask for its PASIDs has no business with others.
            enforce_grants: commands != Commands::Off,
            stage_two: below(stage_two, seed),
            page_requests: config.page_request_timeout.policy(),
        })?;
        let caps = Caps::new(unit_options(config))?;
        let (router, bell) = (Arc::new(Router::default()), unit_bell.clone());
        let machine = Machine::new(vm, caps, router.clone(), Arc::new(move || bell.ring()));
        let endpoint = machine.attach(accelerator_id())?;
        let accelerator = Device::new(dsa::model::Config::default(), endpoint)?;
        Ok(Self {
            machine: Arc::new(machine),
            accelerator,
            router,
            mappings: Mutex::default(),
            policy,
            life: Life::default(),
            reclaims: Reclaims::default(),
            injector: Injector::default(),
            notices: Arc::new(Notices::new(name, lines)),
        })
    }

    /// All is as before the guest: its last connection is gone.
    pub(super) fn clean_up(&self) -> Reclaimed {
        let reset = || {
            let _waited_for_by_the_caller = self.machine.reset();
        };
        let rest = self.reclaims.end(self.machine.vm(), reset);
        self.say_reclaimed(rest.now);
        rest.since_reset
    }

    fn say_reclaimed(&self, reclaimed: Reclaimed) {
        let Reclaimed { pasids, stuck, took } = reclaimed;
        let millis = took.as_secs_f64() * 1e3;
        if stuck > 0 {
            self.notices.say(format_args!(
                "{stuck} PASIDs are in use still after {millis:.0} ms; they stay parked"
            ));
        } else if pasids > 0 {
            self.notices
                .say(format_args!("{pasids} PASIDs taken back, out of all use in {millis:.1} ms"));
        }
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
        self.spawn("iommu".to_owned(), move |stopping| drive(&shared, &bell, stopping))
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

    /// Ends the threads and waits for their end; one that does not come to it is left behind.
    ///
    /// # Errors
    /// [`Overdue`].
    fn stop(&mut self) -> Result<(), Overdue> {
        self.stopping.store(true, Ordering::SeqCst);
        self.unit_bell.ring();
        self.engine_bells.iter().for_each(|bell| bell.ring());
        let ended = || self.threads.iter().all(JoinHandle::is_finished);
        let pause = || thread::sleep(SETTLING);
        let outcome = wait_until(ended, Wait::Threads, STOP_LIMIT, pause);
        for thread in self.threads.drain(..).filter(JoinHandle::is_finished) {
            // A panic there has been shown already.
            let _ = thread.join();
        }
        outcome
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

/// Drives the IOMMU: faults, page requests, the invalidation queue, and what is due.
fn drive(shared: &Shared, bell: &Bell, stopping: &AtomicBool) {
    let machine = &*shared.machine;
    while !stopping.load(Ordering::SeqCst) {
        let progress = machine.poll();
        let now = clock();
        let deadlines = [machine.tick(now), shared.injector.step(now, machine)];
        let deadline = deadlines.into_iter().flatten().min();
        let longest = match progress {
            Progress::More => continue,
            Progress::Waiting(ticket) if machine.vm().is_complete(ticket) => continue,
            Progress::Waiting(ticket) if machine.vm().unanswered(ticket).is_some() => OWED,
            Progress::Waiting(_) => SETTLING,
            Progress::Idle => NAP,
        };
        let due = deadline.map_or(longest, |deadline| deadline.saturating_sub(clock()));
        bell.wait(longest.min(due));
    }
}
