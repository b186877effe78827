//! The state of a channel: what its slot holds, and the changes that can be posted to it.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::cell::RefCell;

use mem::{Access, MemError, MemoryMap, Window};
use pci::RequesterId;

use crate::cache::{Caches, DeviceTlb};
use crate::counters::ChannelCounters;
use crate::engine::{device_tlb_hit, Engine, Refusal, Request, Target};
use crate::slot::{Slot, State};
use crate::software::{Attachments, GrantCheck};
use crate::stage_two::{GuestPhysical, HostStageTwo};
use crate::{ContextSource, DomainId, Invalidation, Pasid};

/// Invalidations of a kind that wait for one channel at most. A channel that is idle, or inside a long
/// access, collects them; past this many, everything is forgotten instead.
pub(crate) const PENDING_LIMIT: usize = 32;

/// A channel as its VM sees it.
pub(crate) struct ChannelShared {
    pub(crate) requester: RequesterId,
    /// Of the device, see `Device`.
    pub(crate) attachment: u64,
    pub(crate) slot: Slot<ChannelState>,
    pub(crate) counters: Arc<ChannelCounters>,
}

/// What only the holder of the slot's lock touches.
pub(crate) struct ChannelState {
    requester: RequesterId,
    /// The VM's memory; `None` once detached.
    memory: Option<MemoryMap>,
    /// What guest physical addresses go through.
    stage_two: Option<Arc<HostStageTwo>>,
    contexts: Option<Arc<dyn ContextSource>>,
    /// What is attached to the device; `None` as long as nothing has been.
    attached: Option<Attachments>,
    /// In a cell because windows borrow the memory while further translations are made. It is
    /// only borrowed inside `translate`, so never twice.
    caches: RefCell<Caches>,
    /// Which PASIDs may be used; `None` for any.
    grants: Option<GrantCheck>,
    counters: Arc<ChannelCounters>,
}

impl ChannelState {
    /// A channel of `requester` over `memory`; detached from the start without.
    pub(crate) fn new(
        requester: RequesterId,
        memory: Option<MemoryMap>,
        stage_two: Option<Arc<HostStageTwo>>,
        contexts: Option<Arc<dyn ContextSource>>,
        grants: Option<GrantCheck>,
        counters: Arc<ChannelCounters>,
    ) -> Self {
        let caches =
            if memory.is_some() { Caches::new(requester) } else { Caches::closed(requester) };
        let caches = RefCell::new(caches);
        Self { requester, memory, stage_two, contexts, attached: None, caches, grants, counters }
    }

    /// The channel of a device that something has been attached to.
    pub(crate) fn attached(self, attached: Option<Attachments>) -> Self {
        Self { attached, ..self }
    }

    /// The VM's memory; `None` once detached.
    pub(crate) fn memory(&self) -> Option<&MemoryMap> {
        self.memory.as_ref()
    }

    /// Adds the domains under which something is cached.
    pub(crate) fn add_domains(&self, domains: &mut BTreeSet<DomainId>) {
        domains.extend(self.caches.borrow().domains());
    }

    /// Adds the PASIDs whose table entry is cached, and their domains.
    pub(crate) fn add_pasids(&self, pasids: &mut BTreeMap<Pasid, DomainId>) {
        pasids.extend(self.caches.borrow().pasid_domains());
    }

    /// The domain of the PASID-table entry that is cached for `pasid`.
    pub(crate) fn domain_of(&self, pasid: Pasid) -> Option<DomainId> {
        self.caches.borrow().domain_of(pasid)
    }

    /// Counts a request whose PASID is granted to nobody.
    pub(crate) fn count_ungranted(&self) {
        self.counters.ungranted.add(1);
    }

    /// Translates `request` over `memory`, which is this channel's.
    pub(crate) fn translate(
        &self,
        memory: &MemoryMap,
        request: &Request,
    ) -> Result<Target, Refusal> {
        let outcome = if request.translation_request {
            self.translate_for_device(memory, request)
        } else {
            self.with_engine(memory, |mut engine| engine.translate(request))
        };
        if outcome.as_ref().is_err_and(Refusal::is_hosts) {
            self.counters.stage_two_faults.add(1);
        }
        outcome
    }

    /// The same for a device that looks into its own TLB first. Kept out of the way of the others.
    #[inline(never)]
    fn translate_for_device(
        &self,
        memory: &MemoryMap,
        request: &Request,
    ) -> Result<Target, Refusal> {
        if let Some(target) = device_tlb_hit(&self.caches.borrow(), request) {
            self.counters.translations.add(1);
            self.counters.device_tlb_hits.add(1);
            return Ok(target);
        }
        self.with_engine(memory, |engine| engine.translate_for_device(request))
    }

    fn with_engine<R>(
        &self,
        memory: &MemoryMap,
        work: impl FnOnce(Engine<'_, MemoryMap>) -> R,
    ) -> R {
        let counters = &*self.counters;
        let memory = &GuestPhysical::new(memory, self.stage_two.as_deref(), &counters.tables);
        work(Engine {
            memory,
            contexts: self.contexts.as_deref(),
            attached: self.attached.as_ref(),
            grants: self.grants.as_ref(),
            caches: &mut self.caches.borrow_mut(),
            counters,
            origin: None,
        })
    }

    /// The memory that a translation over `memory`, which is this channel's, leads to.
    pub(crate) fn window<'m>(
        &self,
        memory: &'m MemoryMap,
        target: &Target,
        len: usize,
        access: Access,
    ) -> Result<Window<'m>, MemError> {
        target.output.window(memory, self.stage_two.as_deref(), len, access)
    }
}

/// Changes that wait for a channel.
#[derive(Default)]
pub(crate) struct Batch {
    /// The map to adopt.
    memory: Option<MemoryMap>,
    /// The source of contexts to adopt.
    contexts: Option<Option<Arc<dyn ContextSource>>>,
    /// What is attached from now on; it comes once in the life of a channel.
    attached: Option<Attachments>,
    scopes: Vec<Invalidation>,
    /// PASIDs of which everything is to be forgotten, in every domain.
    pasids: Vec<Pasid>,
    /// More scopes than `PENDING_LIMIT` were posted.
    everything: bool,
    /// The device's own TLB ends, until its ATS is on again.
    end_device_tlb: bool,
    detach: bool,
}

impl Batch {
    pub(crate) fn forget(&mut self, scope: Invalidation) {
        if self.everything || self.scopes.last() == Some(&scope) {
            return;
        }
        if self.scopes.len() == PENDING_LIMIT {
            self.forget_everything();
        } else {
            self.scopes.push(scope);
        }
    }

    /// Forgets all that was cached by the entry of `pasid`, in every domain.
    pub(crate) fn forget_pasid(&mut self, pasid: Pasid) {
        if self.everything {
            return;
        }
        if self.pasids.len() == PENDING_LIMIT {
            self.forget_everything();
        } else {
            self.pasids.push(pasid);
        }
    }

    /// Forgets all that is cached.
    pub(crate) fn forget_everything(&mut self) {
        self.scopes.clear();
        self.pasids.clear();
        self.everything = true;
    }

    /// Forgets what is in the device's own TLB, whose memory goes: its ATS is off.
    pub(crate) fn end_device_tlb(&mut self) {
        self.end_device_tlb = true;
    }

    /// Gives back a map that nobody will adopt any more.
    pub(crate) fn adopt_memory(&mut self, map: MemoryMap) -> Option<MemoryMap> {
        self.memory.replace(map)
    }

    /// Gives back a source that nobody will adopt any more.
    pub(crate) fn adopt_contexts(
        &mut self,
        source: Option<Arc<dyn ContextSource>>,
    ) -> Option<Arc<dyn ContextSource>> {
        self.contexts.replace(source).flatten()
    }

    /// Has the device translated by what is attached to it, and by nothing of before.
    pub(crate) fn adopt_attached(&mut self, attached: Attachments) -> Option<Attachments> {
        self.forget_everything();
        self.attached.replace(attached)
    }

    pub(crate) fn detach(&mut self) {
        self.detach = true;
    }
}

/// What is dropped once changes are applied; freeing memory may take long.
#[derive(Default)]
pub(crate) struct Leftover {
    _memory: [Option<MemoryMap>; 2],
    _contexts: [Option<Arc<dyn ContextSource>>; 2],
    _attached: [Option<Attachments>; 2],
    _caches: Option<Caches>,
    _device_tlb: Option<DeviceTlb>,
}

impl State for ChannelState {
    type Batch = Batch;
    type Leftover = Leftover;

    fn apply(&mut self, batch: &mut Batch) -> Leftover {
        let mut leftover = Leftover::default();
        if let Some(map) = batch.memory.take() {
            // What a device has cached of its memory is not for the guest to forget then.
            self.caches.get_mut().device_tlb.clear();
            // A detached channel stays so.
            leftover._memory[0] = match &mut self.memory {
                Some(memory) => Some(core::mem::replace(memory, map)),
                None => Some(map),
            };
        }
        if let Some(source) = batch.contexts.take() {
            leftover._contexts[0] = core::mem::replace(&mut self.contexts, source);
        }
        if let Some(attached) = batch.attached.take() {
            leftover._attached[0] = self.attached.replace(attached);
        }
        let caches = self.caches.get_mut();
        if core::mem::take(&mut batch.everything) {
            caches.forget_all();
        }
        if core::mem::take(&mut batch.end_device_tlb) {
            leftover._device_tlb = Some(caches.close_device_tlb());
        }
        for scope in batch.scopes.drain(..) {
            caches.forget(&scope);
        }
        for pasid in batch.pasids.drain(..) {
            caches.forget_pasid(pasid);
        }
        if core::mem::take(&mut batch.detach) {
            let closed = Caches::closed(self.requester);
            leftover._caches = Some(core::mem::replace(caches, closed));
            leftover._memory[1] = self.memory.take();
            leftover._contexts[1] = self.contexts.take();
            leftover._attached[1] = self.attached.take();
        }
        caches.publish(&self.counters);
        leftover
    }
}

#[cfg(all(test, not(loom)))]
mod tests;
