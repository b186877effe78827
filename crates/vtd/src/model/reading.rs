//! Reading the guest's tables apart from the unit: a change of what is bound calls the host, which
//! tells whoever else uses the PASID, and that may take its time. Who shares the unit behind a lock
//! does this part without it, so that no register access waits.

use alloc::sync::Arc;
use alloc::vec::Vec;

use iommu::Vm;
use mem::MemoryMap;
use pci::RequesterId;

use super::shadow::{BindingCounters, Budget, Shadow, View};
use super::{
    Effects, Model, Polled, Progress, RootTable, DESCRIPTORS_PER_POLL, FAULTS_PER_POLL,
    PAGE_REQUESTS_PER_POLL,
};

/// What is left of what one poll may do.
#[derive(Debug)]
pub struct Turn {
    pub(super) descriptors: u32,
    pub(super) faults: u32,
    pub(super) page_requests: u32,
    pub(super) entries: Budget,
}

impl Turn {
    /// All that one poll may do.
    pub fn new() -> Self {
        Self {
            descriptors: DESCRIPTORS_PER_POLL,
            faults: FAULTS_PER_POLL,
            page_requests: PAGE_REQUESTS_PER_POLL,
            entries: Budget::of_a_poll(),
        }
    }
}

impl Default for Turn {
    fn default() -> Self {
        Self::new()
    }
}

/// The part of a unit that reads the guest's tables and has bound what they say, on loan. It has
/// to come back ([`Model::take_back`]): the unit's queue stands still until then.
#[derive(Debug)]
#[must_use = "the unit's queue stands still until it is taken back"]
pub struct Reading<V> {
    shadow: Shadow<V>,
    memory: Arc<MemoryMap>,
    root: Option<RootTable>,
}

impl<V: Vm> Reading<V> {
    /// Reads, and calls the host, as far as the turn goes; whether there is more.
    pub fn run(&mut self, turn: &mut Turn) -> bool {
        self.shadow.run(View { memory: &*self.memory, root: self.root }, &mut turn.entries);
        self.shadow.is_busy()
    }

    /// Unbinds everything, for a unit that is to be reset.
    pub fn reset(&mut self) {
        self.shadow.reset();
    }
}

/// What the unit is told while its shadow is on loan.
#[derive(Clone, Debug, Default)]
pub(super) struct Lent {
    pub(super) read_all: bool,
    pub(super) reset: bool,
    pub(super) added: Vec<RequesterId>,
    pub(super) counters: BindingCounters,
}

impl<V: Vm> Model<V> {
    /// As [`poll`](Self::poll), but it does not read the guest's tables: the caller does, with what
    /// [`lend`](Self::lend) gives, and then goes on with the same turn.
    pub fn poll_apart(&mut self, turn: &mut Turn) -> Polled {
        let mut effects = Effects::default();
        let more_faults = self.take_faults(&mut turn.faults, &mut effects);
        let more_requests = self.take_page_requests(turn, &mut effects);
        self.settle();
        self.run_virtual_command();
        let queue = self.drain_queue(turn, true, &mut effects);
        Polled { progress: self.progress(queue, more_faults || more_requests), effects }
    }

    /// Lends what reads the guest's tables, if there is something to read.
    pub fn lend(&mut self) -> Option<Reading<V>> {
        if !self.is_reading() {
            return None;
        }
        self.lend_anyway()
    }

    /// Lends what reads the guest's tables, if it is there.
    pub fn lend_anyway(&mut self) -> Option<Reading<V>> {
        let shadow = self.shadow.take()?;
        self.lent = Some(Lent { counters: shadow.counters(), ..Lent::default() });
        let root = self.translation.then_some(self.root);
        Some(Reading { shadow, memory: self.vm.memory(), root })
    }

    /// Takes back what was lent, and tells it what came up meanwhile.
    pub fn take_back(&mut self, reading: Reading<V>) {
        let Reading { mut shadow, .. } = reading;
        let Lent { read_all, reset, added, counters: _ } = self.lent.take().unwrap_or_default();
        if reset {
            shadow.reset();
        }
        for requester in added {
            shadow.add_device(requester, self.translation);
        }
        if read_all {
            shadow.read_all();
        }
        self.shadow = Some(shadow);
    }

    /// What a poll came to.
    pub(super) fn progress(&self, queue: Progress, more_reports: bool) -> Progress {
        let read = self.pending.is_reading() && !self.is_reading();
        match (queue, self.pending.awaited()) {
            _ if read || more_reports || self.virtual_command_waits() => Progress::More,
            (Progress::Idle, Some(ticket)) => Progress::Waiting(ticket),
            _ => queue,
        }
    }
}
