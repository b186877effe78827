//! The lab: scenarios in real guests on one server, and a report.
//!
//! ```text
//!  scenarios ──► runner ──► machine: QEMU + guest program ◄── control channel
//!                  │  │
//!                  │  └──► LabServer: IOMMU and accelerator, in this process
//!                  ▼
//!               report: lines as they happen, a table, JSON
//! ```

mod machine;
mod pasids;
mod report;
mod runner;
mod scenario;
mod server;

use std::io;
use std::path::PathBuf;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

pub use self::machine::{
    Guest, GuestError, Machine, Place, Wait, BOOT_LIMIT, CONSOLE_LINES, MAX_CONSOLE,
};
pub use self::report::{Record, Report};
use self::runner::{Runner, Starter};
pub use self::scenario::{
    select, Kind, Plan, Run, Scenario, SelectError, Tenants, Wishes, SCENARIOS,
};
pub use self::server::{
    Check, EncodedCalls, GuestDevices, GuestId, LabServer, PasidRecord, PasidSpace, ServerError,
    ServerOptions, StartServer, AFTER_KILL,
};
use crate::assets::{self, AssetError, Assets, Linux, Sources};
use crate::private::PrivateDir;
use crate::qemu::Devices;
use crate::server::{
    check_injections, HostCalls, Injection, InjectionsCollide, PasidTable, StageTwo,
};
use crate::stop::{Stop, Stopped};
use crate::term::Screen;

/// What the user wants of a run.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Where QEMU and the kernel come from.
    pub sources: Sources,
    /// The scenarios to run; all if empty.
    pub scenarios: Vec<String>,
    /// Where consoles and transcripts are kept; nowhere if `None`.
    pub keep_logs: Option<PathBuf>,
    /// The seed of the guest's random choices; a new one if `None`.
    pub seed: Option<u64>,
    /// The way in which the server is to be broken, for showing that a scenario notices.
    pub sabotage: Option<String>,
    /// How the server's host is called; as each scenario wants it if `None`.
    pub calls: Option<HostCalls>,
    /// Who owns the PASID tables; as each scenario wants it, once for each, if `None`.
    pub pasid_table: Option<PasidTable>,
    /// The host's second stage; as each scenario wants it if `None`.
    pub stage_two: Option<StageTwo>,
    /// What goes wrong for every guest.
    pub injections: Vec<Injection>,
}

/// Why the lab cannot run here. What goes wrong in a guest is no error but a failed check of the [`Report`].
#[derive(Debug, thiserror::Error)]
pub enum LabError {
    /// There is no such scenario, or not as it is wanted.
    #[error(transparent)]
    Scenario(#[from] SelectError),
    /// What is to go wrong does not go together.
    #[error(transparent)]
    Injections(#[from] InjectionsCollide),
    /// QEMU or the kernel cannot be had.
    #[error(transparent)]
    Asset(AssetError),
    /// The server does not start.
    #[error(transparent)]
    Server(#[from] ServerError),
    /// Signals cannot be waited for.
    #[error("signals cannot be handled: {0}")]
    Signals(#[source] io::Error),
    /// The user asked to stop.
    #[error(transparent)]
    Stopped(#[from] Stopped),
}

impl From<AssetError> for LabError {
    fn from(error: AssetError) -> Self {
        if error.cause.is_stop() {
            Self::Stopped(Stopped)
        } else {
            Self::Asset(error)
        }
    }
}

/// Runs the lab and shows it on `screen`. Spawns QEMU from the calling thread, which must live as long as the run.
///
/// # Errors
/// [`LabError`] when it cannot run here; nothing is then left behind.
pub fn run(
    options: &Options,
    start_server: StartServer<'_>,
    screen: &Screen,
    stop: &Stop,
) -> Result<Report, LabError> {
    let wishes = Wishes { table: options.pasid_table, stage_two: options.stage_two };
    let runs = select(&options.scenarios, wishes)?;
    check_injections(&options.injections)?;
    screen.line(&format!("vsva {} lab", env!("CARGO_PKG_VERSION")));
    let wanted = runs.iter().flat_map(|run| run.scenario.kernels()).collect();
    let assets = assets::find(&options.sources, &wanted, screen, stop)?;
    let mut report = Report { seed: options.seed.unwrap_or_else(new_seed), ..Report::default() };
    report.versions.insert("vsva", env!("CARGO_PKG_VERSION").to_owned());
    report.versions.insert("qemu", assets.qemu.description().to_owned());
    for (linux, kernel) in &assets.kernels {
        report.versions.insert(linux.key(), kernel.description.clone());
    }
    let mut starter = QemuStarter { assets: &assets, logs: options.keep_logs.as_deref(), stop };
    let begun = Instant::now();
    let mut guests = 0;
    let calls = |run: &Run| options.calls.unwrap_or(run.scenario.calls);
    // One server for all that call its host in the same way.
    for runs in runs.chunk_by(|one, next| calls(one) == calls(next)) {
        let Some(first) = runs.first() else { continue };
        let sabotage = options.sabotage.as_deref();
        let injections = options.injections.as_slice();
        let options =
            ServerOptions { sabotage, calls: calls(first), seed: report.seed, injections };
        let mut server = start_server(options)?;
        let mut runner = Runner {
            server: server.as_mut(),
            starter: &mut starter,
            screen,
            report: &mut report,
            guests,
        };
        runner.run(runs)?;
        guests = runner.guests;
    }
    report.took = begun.elapsed();
    Ok(report)
}

/// Starts real guests.
struct QemuStarter<'a> {
    assets: &'a Assets,
    logs: Option<&'a std::path::Path>,
    stop: &'a Stop,
}

impl Starter for QemuStarter<'_> {
    fn start(
        &mut self,
        number: u32,
        linux: Linux,
        devices: &Devices,
        dir: PrivateDir,
    ) -> Result<Box<dyn Guest>, GuestError> {
        let Assets { qemu, kernels } = self.assets;
        let kernel = kernels.get(&linux).ok_or(GuestError::NoKernel(linux))?;
        let logs = self.logs.map(|logs| (logs.to_owned(), format!("guest-{number}")));
        let place = Place { dir, logs };
        let init = crate::guest_program::IMAGE;
        Ok(Box::new(Machine::start(qemu, kernel, init, devices, place, self.stop)?))
    }
}

/// A seed that differs from run to run; the report says it, so that a run can be repeated.
fn new_seed() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |now| u64::from(now.subsec_nanos()))
}
