//! The server: one host, and a place on it for each guest.
//!
//! ```text
//!   QEMU ─ vfio-user ─► dsa function ──────► Device ─► engines (a thread each) ─► Channel ─┐
//!        └ vfio-user ─► IOMMU's carrier ──► Machine ─► vtd model (a thread) ──────► Vm ◄───┘
//!        ◄─ messages ── Router ◄──────────────┘             called directly, or by  │
//!                                                      bytes, as chosen: vfio::Door ◄┘
//!                                                                      │
//!                                                                      ▼
//!                                                                SoftwareHost
//! ```

mod bell;
mod config;
mod counters;
mod guest;
mod injection;
mod injector;
mod inspector;
mod lab;
mod levers;
mod life;
mod notices;
mod platform;
mod reclaim;
mod resources;
mod router;
mod sabotage;
mod settled;
mod shared_queue;
mod stage_two;
mod survey;
mod way;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use iommu::SoftwareHost;
use mem::Policy;
use vfio::{Door, DoorVm};

pub use config::{
    Commands, GuestConfig, HostCalls, NoSuchCommands, NoSuchHostCalls, NoSuchPageTimeout,
    NoSuchPasidTable, NoSuchStageTwo, PageTimeout, PasidTable, StageTwo, INVALIDATION_TIMEOUT,
};
pub use guest::GuestPlace;
use guest::Settings;
pub use injection::{
    check_injections, CannotInject, Injection, InjectionError, InjectionKind, InjectionsCollide,
};
pub use inspector::{Ask, Inspector, MAX_CLIENTS};
pub use lab::start;
pub use life::End;
pub use notices::{Lines, LINES_PER_PERIOD, PERIOD};
pub use reclaim::Reclaimed;
pub use way::MAX_SOCKET_PATH;

/// Why the server cannot do what it is asked for.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServeError {
    /// A socket or a table cannot be made.
    #[error("{}: {source}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// The socket's path does not fit into a socket address.
    #[error("{}: a socket's path has at most {MAX_SOCKET_PATH} bytes, this one has {len}; a shorter directory is needed", path.display())]
    PathTooLong {
        /// The path.
        path: PathBuf,
        /// Its length in bytes.
        len: usize,
    },
    /// Somebody listens there.
    #[error("{}: another server listens there already", path.display())]
    Taken {
        /// The socket.
        path: PathBuf,
    },
    /// What is there is not a socket, and is not replaced.
    #[error("{}: a file is in the way that is not a socket", path.display())]
    InTheWay {
        /// The file.
        path: PathBuf,
    },
    /// A thread cannot be started.
    #[error("a thread cannot be started: {source}")]
    Thread {
        /// What the operating system said.
        source: io::Error,
    },
    /// The host takes no more guests.
    #[error(transparent)]
    Host(#[from] iommu::HostError),
    /// The VM takes no such device.
    #[error(transparent)]
    Attach(#[from] iommu::AttachError),
    /// There is no such accelerator.
    #[error(transparent)]
    Accelerator(#[from] dsa::model::ConfigError),
    /// There is no such IOMMU.
    #[error(transparent)]
    Unit(#[from] vtd::model::CapsError),
    /// The carrier's configuration space cannot be laid out.
    #[error(transparent)]
    Carrier(#[from] pci::LayoutError),
}

/// A guest on the server's host, called as was chosen for all of them.
pub type GuestVm = DoorVm<SoftwareHost>;

/// One host and its guests' places.
pub struct Server {
    host: Door<SoftwareHost>,
    policy: Policy,
    lines: Lines,
    started: Instant,
    seed: u64,
}

impl Server {
    /// A server without guests, whose host has all the PASIDs of the bus and is called directly.
    /// What guests do that a person should know is said to `lines`.
    ///
    /// # Panics
    /// If there is no memory for an empty PASID space.
    pub fn new(policy: Policy, lines: Lines) -> Self {
        Self::calling(HostCalls::Direct, policy, lines)
    }

    /// The same, with the host called as `calls` says.
    ///
    /// # Panics
    /// If there is no memory for an empty PASID space.
    pub fn calling(calls: HostCalls, policy: Policy, lines: Lines) -> Self {
        let host = SoftwareHost::with_pasids(ioasid::Config::default(), Some(clock))
            .expect("memory for an empty PASID space");
        let host = match calls {
            HostCalls::Direct => Door::direct(host),
            HostCalls::Bytes => Door::encoded(host),
        };
        Self { host, policy, lines, started: Instant::now(), seed: 0 }
    }

    /// The same, with frames below shuffled second stages in another order.
    #[must_use]
    pub fn shuffled_by(self, seed: u64) -> Self {
        Self { seed, ..self }
    }

    /// Makes a place for a guest called `name`, its files in `dir`, which must be private to the
    /// user: whoever can connect to the sockets is the guest.
    ///
    /// # Errors
    /// [`ServeError`]; nothing is left behind then.
    pub fn add_guest(
        &self,
        dir: &Path,
        name: &str,
        config: GuestConfig,
    ) -> Result<GuestPlace, ServeError> {
        let settings = Settings { config, policy: self.policy, seed: own_seed(self.seed, name) };
        GuestPlace::new(&self.host, dir, name, settings, self.lines.clone())
    }

    /// Number of VMs on the host.
    pub fn vms(&self) -> usize {
        self.host.host().vms()
    }

    /// Who has which PASIDs.
    pub fn pasids(&self) -> iommu::pasid::PasidReport {
        self.host.host().pasid_report()
    }

    /// What the guests' devices asked of the host by bytes; `None` if they call it directly.
    pub fn encoded_calls(&self) -> Option<vfio::DispatcherCounts> {
        self.host.counts()
    }
}

/// A seed that differs from guest to guest, for frames in an order of each guest's own.
fn own_seed(seed: u64, name: &str) -> u64 {
    name.bytes().fold(seed, |seed, byte| seed.wrapping_mul(0x0100_0000_01b3) ^ u64::from(byte))
}

/// The time since this was first asked: for ages, and for what is due.
fn clock() -> Duration {
    static EPOCH: OnceLock<Instant> = OnceLock::new();
    EPOCH.get_or_init(Instant::now).elapsed()
}
