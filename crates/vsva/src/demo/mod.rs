//! The demo: PASIDs for a kernel on bare metal, for guests that number their own, and for guests
//! that ask their host, all on one host in one process.
//!
//! ```text
//!  Consumer ─► route ─┬─ bare metal ─────────────────────────────────────────────► ID space
//!                     ├─ VCMD, VCRSP registers ─► vtd::model ──────────┐               ▲
//!                     └─ virtqueue ─────────────► virtio_iommu::model ─┴─► Vm ─► set of the VM
//! ```
//!
//! Both ends are the real ones, guests' drivers and devices' models; only the wires between them are
//! calls. Nothing is fetched, and no guest is booted: that is the lab's.

mod environments;
mod guest;
mod report;
mod tenants;
mod trace;
mod vm;
mod wires;

use std::time::Instant;

use iommu::{SoftwareHost, SoftwareVm, VmConfig};

use self::guest::{Failure, Guest, Interface};
pub use self::report::{Environment, Report, Request};
pub use self::trace::Hop;
use self::trace::Trace;
use crate::lab::Record;
use crate::term::{Mark, Screen};

/// Columns that a check's name has.
const CHECK_COLUMN: usize = 64;

/// What is played, in this order: a name, what it shows, and how.
const SCENES: [(&str, &str, Scene); 7] = [
    ("environments", "one API, whatever is below it", environments::side_by_side),
    ("quota", "a guest has its quota and not one more", tenants::quota),
    ("private", "three guests use the same number and never meet", tenants::private),
    ("forged", "a number is no permission", tenants::forged),
    ("ungranted", "a number that was never granted reaches nothing", tenants::ungranted),
    ("death", "a dead guest's numbers are nobody's until nothing uses them", tenants::death),
    ("books", "at the end the host's books balance to the ID", tenants::books),
];

type Scene = fn(&mut Stage<'_>) -> Result<(), Failure>;

/// Plays the demo and shows it on `screen`.
pub fn run(screen: &Screen) -> Report {
    let begun = Instant::now();
    screen.line(&format!("vsva {} demo", env!("CARGO_PKG_VERSION")));
    let mut stage = Stage::new(screen);
    for (name, shows, scene) in SCENES {
        screen.line(&format!("{name}: {shows}"));
        stage.scene = name;
        if let Err(failure) = scene(&mut stage) {
            stage.check("the scene comes to its end", false, failure.to_string());
        }
    }
    let mut report = stage.report;
    report.took = begun.elapsed();
    report
}

/// What the scenes have in common.
struct Stage<'a> {
    screen: &'a Screen,
    report: Report,
    scene: &'static str,
    /// The one host of everything.
    host: SoftwareHost,
    trace: Trace,
    /// Every guest that was started, dead or alive.
    vms: Vec<SoftwareVm>,
}

impl<'a> Stage<'a> {
    fn new(screen: &'a Screen) -> Self {
        Self {
            screen,
            report: Report::default(),
            scene: "",
            host: SoftwareHost::new(),
            trace: Trace::default(),
            vms: Vec::new(),
        }
    }

    fn guest(&mut self, interface: Interface, config: VmConfig) -> Result<Guest, Failure> {
        let guest = Guest::start(&self.host, &self.trace, interface, config)?;
        self.vms.push(guest.vm.clone());
        Ok(guest)
    }

    /// Records a check and shows it.
    fn check(&mut self, check: &str, ok: bool, detail: impl Into<String>) {
        let (mark, detail) = (if ok { Mark::Ok } else { Mark::Fail }, detail.into());
        self.screen.mark(mark, &format!("{check:<CHECK_COLUMN$}  {detail}"));
        let (scenario, check) = (self.scene.to_owned(), check.to_owned());
        self.report.records.push(Record { scenario, check, ok, detail });
    }

    /// Follows one request on its way and shows it; gives its result and the number of its hops.
    fn follow<R>(
        &mut self,
        who: &'static str,
        by: &str,
        asks: String,
        route: Option<String>,
        request: impl FnOnce() -> R,
        gets: impl FnOnce(&R) -> String,
    ) -> (R, usize) {
        let trace = self.trace.clone();
        trace.start();
        trace.hop(who, || asks);
        if let Some(route) = route {
            trace.hop("route", || route);
        }
        let result = request();
        trace.hop(who, || gets(&result));
        let hops = trace.finish();
        self.screen.mark(Mark::Note, by);
        for Hop { place, what } in &hops {
            self.screen.line(&format!("         {place:<9}  {what}"));
        }
        let count = hops.len();
        self.report.requests.push(Request { by: by.to_owned(), hops });
        (result, count)
    }
}
