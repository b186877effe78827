//! The invalidation queue (6.5.2): a checked index, a total decode, a plain apply, a bounded drain.

use iommu::{Invalidation, PageRange, Ticket, Vm};
use mem::{Gpa, GuestMemory};
use pci::RequesterId;

use super::commands::function_bits;
use super::shadow::Shadow;
use super::timeout::Held;
use super::{Effects, Model, Progress, Turn};
use crate::spec::{
    ContextScope, Descriptor, DescriptorRules, DescriptorWidth, IotlbScope, Pages, PasidCacheScope,
    PasidIotlbScope, QueueAddress, QueueErrorInfo, QueueErrorRecord, TableMode, Wait,
};

/// The registers of the queue, and what was issued since the last wait.
#[derive(Clone, Debug)]
pub(super) struct Queue {
    address: QueueAddress,
    /// Offset in bytes; always inside the queue and a multiple of the descriptor width.
    head: u64,
    /// Offset in bytes, as software wrote it.
    tail: u64,
    /// IQE, with the reason.
    error: Option<QueueErrorInfo>,
    /// The latest invalidation that no wait has waited for.
    issued: Option<Ticket>,
    /// What keeps the wait at the head from being complete, if a device's answer is all.
    held: Option<Held>,
    /// ITE, with the device that did not answer.
    timed_out: Option<RequesterId>,
}

impl Queue {
    pub(super) fn new() -> Self {
        Self {
            address: QueueAddress::new(),
            head: 0,
            tail: 0,
            error: None,
            issued: None,
            held: None,
            timed_out: None,
        }
    }

    pub(super) fn address(&self) -> QueueAddress {
        self.address
    }

    pub(super) fn set_address(&mut self, address: QueueAddress) {
        self.address = address;
    }

    pub(super) fn head(&self) -> u64 {
        self.head
    }

    pub(super) fn tail(&self) -> u64 {
        self.tail
    }

    pub(super) fn set_tail(&mut self, tail: u64) {
        self.tail = tail;
    }

    pub(super) fn error(&self) -> Option<QueueErrorInfo> {
        self.error
    }

    pub(super) fn error_record(&self) -> QueueErrorRecord {
        QueueErrorRecord::new()
            .with_info(self.error.map_or(0, |info| info as u8))
            .with_timeout_source(self.timed_out.map_or(0, RequesterId::bits))
    }

    /// Whether descriptors are not fetched, for an error that software has not cleared.
    fn is_stopped(&self) -> bool {
        self.error.is_some() || self.timed_out.is_some()
    }

    /// ITE, with the device.
    pub(super) fn timed_out(&self) -> Option<RequesterId> {
        self.timed_out
    }

    /// Software wrote a one to ITE; whether it was set.
    pub(super) fn clear_timeout(&mut self) -> bool {
        self.timed_out.take().is_some()
    }

    /// What keeps the wait at the head.
    pub(super) fn held(&mut self) -> &mut Option<Held> {
        &mut self.held
    }

    /// The device did not answer: the wait at the head has been taken.
    pub(super) fn time_out(&mut self, held: &Held) {
        self.advance();
        self.timed_out = Some(held.requester);
    }

    /// Software wrote a one to IQE; whether it was set.
    pub(super) fn clear_error(&mut self) -> bool {
        self.error.take().is_some()
    }

    /// QIE changed: the head is reset, and what the queue still held is not waited for.
    pub(super) fn restart(&mut self) {
        self.head = 0;
        self.issued = None;
        self.held = None;
    }

    fn width(&self) -> DescriptorWidth {
        if self.address.wide() {
            DescriptorWidth::Bits256
        } else {
            DescriptorWidth::Bits128
        }
    }

    /// Size in bytes.
    fn size(&self) -> u64 {
        4096 << self.address.size()
    }

    /// Whether the tail is one; `None` if the queue is empty.
    fn check_tail(&self) -> Result<Option<()>, QueueErrorInfo> {
        if self.tail % self.width().bytes() != 0 {
            return Err(QueueErrorInfo::TailAlignment);
        }
        if self.tail >= self.size() {
            return Err(QueueErrorInfo::TailPointer);
        }
        Ok((self.head != self.tail).then_some(()))
    }

    /// The words of the descriptor at the head.
    fn fetch(&self, memory: &dyn GuestMemory) -> Result<[u64; 4], QueueErrorInfo> {
        let base = Gpa(self.address.page() << 12);
        let at = base.checked_add(self.head).ok_or(QueueErrorInfo::Fetch)?;
        let mut words = [0; 4];
        let mut bytes = [0; 8];
        for (word, offset) in words.iter_mut().zip((0..self.width().bytes()).step_by(8)) {
            let at = at.checked_add(offset).ok_or(QueueErrorInfo::Fetch)?;
            memory.read(at, &mut bytes).map_err(|_| QueueErrorInfo::Fetch)?;
            *word = u64::from_le_bytes(bytes);
        }
        Ok(words)
    }

    fn advance(&mut self) {
        self.head = (self.head + self.width().bytes()) % self.size();
        self.held = None;
    }
}

/// What one look at the head came to.
enum Step {
    /// A descriptor was taken.
    Taken,
    /// What was taken needs more tables read than this poll may, or the wait at the head more page
    /// requests taken.
    More,
    /// The wait at the head cannot complete yet.
    Waiting(Ticket),
    /// The queue is empty, disabled or in error.
    Stopped,
}

impl<V: Vm> Model<V> {
    /// Takes descriptors, as many as the turn allows. If `apart`, the guest's tables are not read.
    pub(super) fn drain_queue(
        &mut self,
        turn: &mut Turn,
        apart: bool,
        effects: &mut Effects,
    ) -> Progress {
        if self.is_reading() {
            return Progress::More;
        }
        if !self.status.queued_invalidation() {
            return Progress::Idle;
        }
        let memory = self.vm.memory();
        while let Some(left) = turn.descriptors.checked_sub(1) {
            turn.descriptors = left;
            match self.step(&*memory, turn, apart, effects) {
                Ok(Step::Taken) => {}
                Ok(Step::More) => return Progress::More,
                Ok(Step::Waiting(ticket)) => {
                    self.counters.waits_held += 1;
                    return Progress::Waiting(ticket);
                }
                Ok(Step::Stopped) => return Progress::Idle,
                Err(info) => {
                    self.stop_queue(info, effects);
                    return Progress::Idle;
                }
            }
        }
        Progress::More
    }

    fn step(
        &mut self,
        memory: &dyn GuestMemory,
        turn: &mut Turn,
        apart: bool,
        effects: &mut Effects,
    ) -> Result<Step, QueueErrorInfo> {
        if self.queue.is_stopped() || self.queue.check_tail()?.is_none() {
            return Ok(Step::Stopped);
        }
        let rules = DescriptorRules {
            width: self.queue.width(),
            mode: self.root.mode(),
            capability: self.caps.capability(),
            extended: self.caps.extended(),
            private_data: self.caps.options().private_data,
        };
        rules.check_width().map_err(|error| error.info())?;
        let words = self.queue.fetch(memory)?;
        let descriptor = Descriptor::decode(words, &rules).map_err(|error| error.info())?;
        if let Descriptor::Wait(wait) = descriptor {
            if let Some(ticket) = self.issued().filter(|ticket| !self.vm.is_complete(*ticket)) {
                self.hold(ticket);
                return Ok(Step::Waiting(ticket));
            }
            if wait.page_request_drain && self.take_page_requests(turn, effects) {
                return Ok(Step::More);
            }
            self.complete_wait(wait, memory, effects);
        } else {
            self.issue(descriptor);
        }
        self.queue.advance();
        self.counters.descriptors += 1;
        if !apart {
            self.read_tables(&mut turn.entries);
        }
        Ok(if self.is_reading() { Step::More } else { Step::Taken })
    }

    /// The latest invalidation that a wait has to wait for.
    fn issued(&self) -> Option<Ticket> {
        self.shadow.as_ref().map_or(self.queue.issued, Shadow::latest)
    }

    /// Every invalidation before this wait is over. A fence needs nothing more: what follows a
    /// wait is never started before it.
    fn complete_wait(&mut self, wait: Wait, memory: &dyn GuestMemory, effects: &mut Effects) {
        self.queue.issued = None;
        self.counters.waits += 1;
        if let Some((address, data)) = wait.status {
            let limit = (1u64 << self.caps.options().address_bits) - 1;
            if memory.store_u32(Gpa(address.0 & limit), data).is_err() {
                self.counters.status_writes_failed += 1;
            }
        }
        if wait.interrupt && !self.wait_complete {
            self.wait_complete = true;
            self.raise_completion_event(effects);
        }
    }

    fn issue(&mut self, descriptor: Descriptor) {
        let counters = &mut self.counters;
        let counter = match descriptor {
            Descriptor::ContextCache(_) => &mut counters.context_invalidations,
            Descriptor::Iotlb { .. } | Descriptor::PasidIotlb { .. } => {
                &mut counters.iotlb_invalidations
            }
            Descriptor::PasidCache(_) => &mut counters.pasid_cache_invalidations,
            Descriptor::DeviceTlb { .. } | Descriptor::PasidDeviceTlb { .. } => {
                &mut counters.device_tlb_invalidations
            }
            Descriptor::PageGroupResponse(response) => return self.page_response(&response),
            // Not decoded without the capability, or handled before.
            Descriptor::InterruptEntryCache(_) | Descriptor::Wait(_) => return,
        };
        *counter += 1;
        if let Some(scope) = scope_of(descriptor, self.root.mode()) {
            match &mut self.shadow {
                None => {
                    self.queue.issued = self.queue.issued.max(Some(self.vm.invalidate(scope)));
                }
                Some(shadow) => shadow.forget(scope),
            }
        }
    }

    fn stop_queue(&mut self, info: QueueErrorInfo, effects: &mut Effects) {
        self.counters.queue_errors += 1;
        let quiet = !self.has_fault_status();
        self.queue.error = Some(info);
        if quiet {
            self.raise_fault_event(None, effects);
        }
    }
}

/// What a descriptor asks to forget; `None` if it asks for nothing of the kind.
fn scope_of(descriptor: Descriptor, mode: TableMode) -> Option<Invalidation> {
    Some(match descriptor {
        Descriptor::ContextCache(scope) => context_scope(scope, mode),
        Descriptor::Iotlb { scope, .. } => match scope {
            IotlbScope::Global => Invalidation::IotlbAll,
            IotlbScope::Domain(domain) => Invalidation::IotlbDomain(domain),
            IotlbScope::Pages(domain, pages) => {
                Invalidation::IotlbDomainPages { domain, pages: page_scope(pages) }
            }
        },
        Descriptor::PasidIotlb { domain, pasid, scope } => match scope {
            PasidIotlbScope::All => Invalidation::IotlbPasid { domain, pasid },
            PasidIotlbScope::Pages(pages) => {
                Invalidation::IotlbPasidPages { domain, pasid, pages: page_scope(pages) }
            }
        },
        Descriptor::PasidCache(scope) => match scope {
            PasidCacheScope::Global => Invalidation::PasidCacheAll,
            PasidCacheScope::Domain(domain) => Invalidation::PasidCacheDomain(domain),
            PasidCacheScope::Pasid(domain, pasid) => Invalidation::PasidCache { domain, pasid },
        },
        Descriptor::DeviceTlb { source, scope } => {
            Invalidation::DeviceTlb { requester: source, range: scope.range() }
        }
        Descriptor::PasidDeviceTlb { source, pasid, scope } => {
            Invalidation::DeviceTlbPasid { requester: source, pasid, range: scope.range() }
        }
        Descriptor::InterruptEntryCache(_)
        | Descriptor::PageGroupResponse(_)
        | Descriptor::Wait(_) => return None,
    })
}

/// Contexts of scalable mode are not tagged by a domain (6.2.1): a domain means all of them.
fn context_scope(scope: ContextScope, mode: TableMode) -> Invalidation {
    match scope {
        ContextScope::Domain(domain) if mode == TableMode::Legacy => {
            Invalidation::ContextDomain(domain)
        }
        ContextScope::Global | ContextScope::Domain(_) => Invalidation::ContextAll,
        ContextScope::Device { source, function_mask, .. } => {
            Invalidation::ContextDevice { requester: source, ignore: function_bits(function_mask) }
        }
    }
}

fn page_scope(pages: Pages) -> PageRange {
    PageRange { range: pages.range(), leaf_only: pages.leaf_only }
}
