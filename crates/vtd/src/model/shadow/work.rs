//! What the guest asked for, carried out a bounded part at a time.

use alloc::collections::VecDeque;

use iommu::{DomainId, GuestPasid, Invalidation, Pasid, StageOneInvalidation, Vm};
use mem::{Iova, Range};
use pci::RequesterId;

use super::device::Slot;
use super::{Budget, Shadow, View};

/// What is to be done for each of some devices.
#[derive(Clone, Copy, Debug)]
pub(super) enum Task {
    /// Read the context entry, and all PASID entries where that changed; or, if `all`, anyway.
    Contexts { all: bool },
    /// Read all PASID entries.
    Entries,
    /// Read the entry of one PASID.
    Entry(DomainId, Pasid),
    /// Unbind a PASID of the guest's, which gives it back.
    Release(GuestPasid),
    /// Forget translations of what is bound.
    Translations {
        /// Only what the guest tagged so.
        domain: Option<DomainId>,
        target: Target,
        what: StageOneInvalidation,
    },
}

/// Whose translations are to be forgotten.
#[derive(Clone, Copy, Debug)]
pub(super) enum Target {
    All,
    Pasid(Pasid),
    NoPasid,
}

/// A task, and how far it has come.
#[derive(Debug)]
pub(super) struct Work {
    pub(super) task: Task,
    /// The devices that it is not over for.
    pub(super) devices: VecDeque<RequesterId>,
    /// Of the first of them: the next PASID table; none before its context was looked at.
    pub(super) table: Option<u32>,
    /// Of the first of them: the slot that was looked at last.
    pub(super) slot: Option<Slot>,
    /// Whether it is about anything that is bound, or could be.
    pub(super) known: bool,
}

impl<V: Vm> Shadow<V> {
    /// Whether there is something left to be done before the queue may go on.
    pub(in crate::model) fn is_busy(&self) -> bool {
        self.work.is_some()
    }

    /// All tables are to be read: translation or the root pointer changed. What was begun before
    /// is part of that.
    pub(in crate::model) fn read_all(&mut self) {
        self.start(Task::Contexts { all: true }, |_| true, true);
    }

    /// The guest gives a PASID back, and nothing else is under way: nothing may be bound to it.
    pub(in crate::model) fn release(&mut self, pasid: GuestPasid) {
        self.start(Task::Release(pasid), |_| true, true);
    }

    /// The tables of one device are to be read, beside what is under way.
    pub(super) fn read_device(&mut self, requester: RequesterId) {
        if self.is_busy() {
            self.read_all();
        } else {
            self.start(Task::Contexts { all: true }, |of| of == requester, true);
        }
    }

    /// Begins to carry out what the guest asked for by a descriptor; nothing else is under way.
    pub(in crate::model) fn forget(&mut self, scope: Invalidation) {
        let translations = |domain, target, what| Task::Translations { domain, target, what };
        match scope {
            Invalidation::ContextAll | Invalidation::ContextDomain(_) => {
                self.start(Task::Contexts { all: false }, |_| true, true);
            }
            Invalidation::ContextDevice { requester, ignore } => {
                let concerned = |of: RequesterId| (of.bits() ^ requester.bits()) & !ignore == 0;
                let known = self.devices.keys().any(|of| concerned(*of));
                self.start(Task::Contexts { all: false }, concerned, known);
            }
            // A new entry may have any domain.
            Invalidation::PasidCacheAll | Invalidation::PasidCacheDomain(_) => {
                self.start(Task::Entries, |_| true, true);
            }
            Invalidation::PasidCache { domain, pasid } => {
                self.start(Task::Entry(domain, pasid), |_| true, false);
            }
            Invalidation::IotlbAll => {
                let task = translations(None, Target::All, StageOneInvalidation::All);
                self.start(task, |_| true, true);
            }
            // The pages are inputs of the second stage, which is not the guest's.
            Invalidation::IotlbDomain(domain) | Invalidation::IotlbDomainPages { domain, .. } => {
                let task = translations(Some(domain), Target::All, StageOneInvalidation::All);
                self.start(task, |_| true, false);
            }
            Invalidation::IotlbPasid { domain, pasid } => {
                let target = Target::Pasid(pasid);
                let task = translations(Some(domain), target, StageOneInvalidation::All);
                self.start(task, |_| true, false);
            }
            Invalidation::IotlbPasidPages { domain, pasid, pages } => {
                let what = in_range(pages.range, pages.leaf_only);
                let task = translations(Some(domain), Target::Pasid(pasid), what);
                self.start(task, |_| true, false);
            }
            Invalidation::DeviceTlb { requester, range } => {
                let task = translations(None, Target::NoPasid, in_range(range, false));
                self.start(task, |of| of == requester, false);
            }
            Invalidation::DeviceTlbPasid { requester, pasid, range } => {
                let target = pasid.map_or(Target::All, Target::Pasid);
                let task = translations(None, target, in_range(range, false));
                self.start(task, |of| of == requester, false);
            }
            // No descriptor of this unit's asks for it.
            Invalidation::Smmuv3(_) => {}
        }
    }

    fn start(&mut self, task: Task, concerned: impl Fn(RequesterId) -> bool, known: bool) {
        let devices = self.devices.keys().copied().filter(|of| concerned(*of)).collect();
        self.work = Some(Work { task, devices, table: None, slot: None, known });
    }

    /// Goes on with what is under way, as far as the budget goes.
    pub(in crate::model) fn run(&mut self, view: View<'_>, budget: &mut Budget) {
        let Some(mut work) = self.work.take() else { return };
        while let Some(&requester) = work.devices.front() {
            if budget.is_spent() {
                self.work = Some(work);
                return;
            }
            if self.step(requester, &mut work, view, budget) {
                work.devices.pop_front();
                (work.table, work.slot) = (None, None);
            }
        }
        self.counters.unknown_invalidations += u64::from(!work.known);
    }

    /// Goes on with one device; whether it is done.
    fn step(
        &mut self,
        requester: RequesterId,
        work: &mut Work,
        view: View<'_>,
        budget: &mut Budget,
    ) -> bool {
        match work.task {
            Task::Contexts { all } => self.read_context(requester, all, work, view, budget),
            Task::Entries => self.read_entries(requester, work, view, budget),
            Task::Entry(domain, pasid) => {
                work.known |= self.read_entry(requester, domain, pasid, view, budget);
                true
            }
            Task::Release(pasid) => {
                self.release_pasid(pasid);
                work.devices.clear();
                true
            }
            Task::Translations { domain, target, what } => {
                self.forget_translations(requester, work, (domain, target, what), budget)
            }
        }
    }
}

fn in_range(range: Range<Iova>, leaf_only: bool) -> StageOneInvalidation {
    if range.start == Iova(0) && range.last == Iova(u64::MAX) {
        return StageOneInvalidation::All;
    }
    StageOneInvalidation::Pages { range, leaf_only }
}
