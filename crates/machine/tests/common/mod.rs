//! A whole machine in one process, and a small guest in software that drives it as Linux does:
//! its tables and queue entries are written bit by bit, not by the code under test.
//!
//! ```text
//!   Guest ── unit.rs (intel-iommu) ──► IommuFunction ─► Machine ─┐
//!     │ ──── accelerator.rs (idxd) ──► dsa Device ─► Engine ─────┴─► Vm ─► Ram
//!     └───── memory.rs (page tables, processes' memory) ─────────────────► Ram
//! ```
// Each test binary uses a part of it.
#![allow(dead_code, unused_imports, unused_macros, unreachable_pub, missing_docs)]

pub mod accelerator;
pub mod drive;
pub mod memory;
pub mod pages;
pub mod random;
pub mod rig;
pub mod scenarios;
pub mod setup;
pub mod unit;

use std::sync::atomic::Ordering;

use dsa::spec::{CompletionRecord, Status};
use vtd::model::PasidTableMode;

pub use accelerator::{Accelerator, Queue, DEDICATED, OTHER, SHARED};
pub use drive::Drive;
pub use memory::{pasid, Space, PAGE};
pub use pages::{Code, Pages, Request};
pub use rig::{Rig, DEVICE, PROBE, RAM};
pub(crate) use setup::in_every_setup;
pub use setup::{run, Setup};
pub use unit::Unit;

/// How a scenario ends: well, or with what went wrong, so that builds with a deliberate defect can
/// prove that it is noticed.
pub type Verdict<T = ()> = Result<T, String>;

/// `Ok` if `holds`, else the claim that does not.
pub fn check(holds: bool, claim: &str) -> Verdict {
    if holds {
        Ok(())
    } else {
        Err(claim.into())
    }
}

/// `Ok` if the two are equal, else both.
pub fn equal<T: PartialEq + std::fmt::Debug>(got: T, expected: T, what: &str) -> Verdict {
    check(got == expected, &format!("{what}: {got:x?}, not {expected:x?}"))
}

/// A booted guest: translation on, the accelerator probed, configured and enabled.
pub struct Guest {
    pub rig: Rig,
    pub unit: Unit,
    pub accelerator: Accelerator,
    /// If its devices may ask for pages.
    pub pages: Option<Pages>,
}

impl Guest {
    /// Boots on a host of its own.
    pub fn boot(setup: Setup) -> Verdict<Self> {
        Self::boot_on(Rig::new(setup))
    }

    /// Boots on `rig`.
    pub fn boot_on(mut rig: Rig) -> Verdict<Self> {
        let unit = Unit::boot(&mut rig)?;
        equal(rig.misplaced.load(Ordering::Relaxed), 0, "BARs in the wrong place")?;
        let accelerator = Accelerator::probe(&rig)?;
        let guest = Self { rig, unit, accelerator, pages: None };
        guest.accelerator.configure(&guest.rig)?;
        Ok(guest)
    }

    /// Boots on `rig` a guest whose memory comes when it is touched, by devices too.
    pub fn boot_paging(mut rig: Rig) -> Verdict<Self> {
        let pages = Pages::enable(&mut rig)?;
        let unit = Unit::boot_with(&mut rig, true)?;
        let accelerator = Accelerator::probe_with(&rig, true)?;
        let guest = Self { rig, unit, accelerator, pages: Some(pages) };
        guest.accelerator.configure(&guest.rig)?;
        Ok(guest)
    }

    /// A process: an empty address space, bound to `number`.
    pub fn process(&mut self, number: u32) -> Verdict<Space> {
        let space = Space::new(&mut self.rig.ram, pasid(number));
        self.unit.bind(&mut self.rig, &space)?;
        let bindings = self.rig.machine.unit_counters().bindings;
        let host_owned = self.rig.setup.tables == PasidTableMode::Host;
        equal(bindings.made + bindings.refused > 0, host_owned, "the host was asked to bind")?;
        Ok(space)
    }

    /// The end of a process whose queues are closed.
    pub fn exit(&mut self, space: Space) -> Verdict {
        self.unit.unbind(&self.rig, space.pasid)?;
        space.free(&mut self.rig.ram);
        Ok(())
    }

    /// Copies through `queue` and waits for the record, which goes to `record` in the same space.
    pub fn copy(
        &self,
        queue: Queue,
        space: &Space,
        [from, to, record]: [u64; 3],
        len: u32,
    ) -> Verdict<CompletionRecord> {
        let descriptor = accelerator::copy([from, to, record], len);
        space.write(&self.rig.ram, record, &[0; CompletionRecord::SIZE]);
        self.accelerator.store(&self.rig, queue, &descriptor);
        self.wait_record(space, record)
    }

    /// Waits until the record at `at` is written.
    pub fn wait_record(&self, space: &Space, at: u64) -> Verdict<CompletionRecord> {
        let written = || space.read(&self.rig.ram, at, 1) != [0];
        self.rig.wait("a completion record", written)?;
        let bytes = space.read(&self.rig.ram, at, CompletionRecord::SIZE);
        Ok(CompletionRecord::from_bytes(&bytes.try_into().expect("a record's length")))
    }
}

/// Whether a record says success.
pub fn succeeded(record: &CompletionRecord) -> Verdict {
    equal(record.status.status().ok(), Some(Status::Success), "completion status")
}
