//! Commands that take until the VM has followed: translation, root pointer, and the register-based
//! invalidations. Their status shows it; nothing waits. None has a part in what devices answer: they
//! are over when the accesses that were in flight are.

use alloc::sync::Arc;

use iommu::{ContextSource, DomainId, Invalidation, PageRange, Ticket, Vm};
use pci::RequesterId;

use super::registers::Write;
use super::shadow::Blocked;
use super::{Effects, Model, RootTable};
use crate::spec::{page_range, ContextCommand, IotlbInvalidate, TableMode};
use mem::Iova;

/// When a command is over.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Until {
    /// When the guest's tables are read, and then nothing that was bound before is in use.
    Read,
    /// When this is complete.
    Complete(Ticket),
}

/// What is under way, and when it is over.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Pending {
    translation: Option<Until>,
    root: Option<Until>,
    context: Option<Until>,
    iotlb: Option<Until>,
}

impl Pending {
    fn all(&self) -> impl Iterator<Item = Until> {
        let Self { translation, root, context, iotlb } = *self;
        [translation, root, context, iotlb].into_iter().flatten()
    }

    /// Whether anything is under way.
    pub(super) fn is_any(&self) -> bool {
        self.all().next().is_some()
    }

    /// Whether anything waits for the guest's tables to be read.
    pub(super) fn is_reading(&self) -> bool {
        self.all().any(|until| until == Until::Read)
    }

    /// The ticket after whose completion nothing is under way, but for what is to be read.
    pub(super) fn awaited(&self) -> Option<Ticket> {
        let ticket = |until| match until {
            Until::Complete(ticket) => Some(ticket),
            Until::Read => None,
        };
        self.all().filter_map(ticket).max()
    }
}

impl<V: Vm> Model<V> {
    /// Shows the completion of what is complete.
    pub(super) fn settle(&mut self) {
        let (vm, is_read) = (&self.vm, !self.is_reading());
        let done = |slot: &mut Option<Until>| {
            if *slot == Some(Until::Read) && is_read {
                *slot = Some(Until::Complete(vm.in_flight()));
            }
            let complete = match *slot {
                Some(Until::Complete(ticket)) => vm.is_complete(ticket),
                Some(Until::Read) | None => false,
            };
            if complete {
                *slot = None;
            }
            complete
        };
        if done(&mut self.pending.translation) {
            self.status.set_translation(self.translation);
            if !self.translation {
                self.faults.rewind();
            }
        }
        if done(&mut self.pending.root) {
            self.status.set_root_pointer(true);
        }
        if done(&mut self.pending.context) {
            self.context_command.set_invalidate(false);
        }
        if done(&mut self.pending.iotlb) {
            self.iotlb_invalidate.set_invalidate(false);
        }
    }

    /// SRTP: latches the register. CAP.ESRTPS: everything that is cached is forgotten.
    pub(super) fn set_root_pointer(&mut self) {
        self.root = RootTable::new(self.root_address, self.caps);
        self.status.set_root_pointer(false);
        if self.translation {
            self.publish();
        }
        self.pending.root = Some(self.start_afresh());
    }

    /// TE.
    pub(super) fn enable_translation(&mut self, enable: bool) {
        if enable == self.translation {
            return;
        }
        self.translation = enable;
        self.publish();
        self.pending.translation = Some(self.start_afresh());
    }

    /// QIE.
    pub(super) fn enable_queue(&mut self, enable: bool, effects: &mut Effects) {
        if enable == self.status.queued_invalidation() {
            return;
        }
        self.status.set_queued_invalidation(enable);
        self.queue.restart();
        effects.schedule |= enable;
    }

    fn publish(&self) {
        let source = self.translation.then(|| -> Arc<dyn ContextSource> {
            match self.caps.host_owned() {
                false => Arc::new(self.root),
                true => Arc::new(Blocked),
            }
        });
        self.vm.set_contexts(source);
    }

    /// Nothing that is cached, or bound, counts any more.
    fn start_afresh(&mut self) -> Until {
        match (&mut self.shadow, &mut self.lent) {
            (Some(shadow), _) => shadow.read_all(),
            (None, Some(lent)) => lent.read_all = true,
            (None, None) => return Until::Complete(self.forget_everything()),
        }
        Until::Read
    }

    /// Forgets contexts, PASID-table entries and translations, in this order; when none is in use.
    pub(super) fn forget_everything(&self) -> Ticket {
        use Invalidation::{ContextAll, IotlbAll, PasidCacheAll};
        for what in [ContextAll, PasidCacheAll, IotlbAll] {
            let _with_answers = self.vm.invalidate(what);
        }
        self.vm.in_flight()
    }

    /// Whether invalidations may be given through registers: not beside the queue, and in legacy
    /// mode only (6.5.1), which a host with PASID tables of its own does not have.
    fn takes_register_invalidations(&self) -> bool {
        let legacy = self.root.mode() == TableMode::Legacy && !self.caps.host_owned();
        legacy && !self.status.queued_invalidation()
    }

    /// A write of CCMD.
    pub(super) fn context_command(&mut self, mut command: ContextCommand, write: Write) {
        if self.context_command.invalidate() {
            self.counters.refused += 1;
            return;
        }
        if !write.has_top_byte() || !command.invalidate() {
            self.context_command = command.with_invalidate(false);
            return;
        }
        let scope = match command.granularity() {
            _ if !self.takes_register_invalidations() => None,
            1 => Some(Invalidation::ContextAll),
            2 => Some(Invalidation::ContextDomain(DomainId(command.domain()))),
            3 => Some(Invalidation::ContextDevice {
                requester: RequesterId::from_bits(command.source()),
                ignore: function_bits(command.function_mask()),
            }),
            _ => None,
        };
        command.set_actual(if scope.is_some() { command.granularity() } else { 0 });
        command.set_invalidate(scope.is_some());
        self.context_command = command;
        self.pending.context = self.register_invalidation(scope);
    }

    /// A write of IOTLB.
    pub(super) fn iotlb_command(&mut self, mut command: IotlbInvalidate, write: Write) {
        if self.iotlb_invalidate.invalidate() {
            self.counters.refused += 1;
            return;
        }
        if !write.has_top_byte() || !command.invalidate() {
            self.iotlb_invalidate = command.with_invalidate(false);
            return;
        }
        let domain = DomainId(command.domain());
        let operand = self.invalidate_address;
        let in_range = operand.mask() <= self.caps.capability().max_address_mask();
        let scope = match command.granularity() {
            _ if !self.takes_register_invalidations() => None,
            1 => Some(Invalidation::IotlbAll),
            2 => Some(Invalidation::IotlbDomain(domain)),
            3 if in_range => {
                let range = page_range(Iova(operand.page() << 12), operand.mask());
                let pages = PageRange { range, leaf_only: operand.leaf_only() };
                Some(Invalidation::IotlbDomainPages { domain, pages })
            }
            _ => None,
        };
        command.set_actual(if scope.is_some() { command.granularity() } else { 0 });
        command.set_invalidate(scope.is_some());
        self.iotlb_invalidate = command;
        self.pending.iotlb = self.register_invalidation(scope);
    }

    fn register_invalidation(&mut self, scope: Option<Invalidation>) -> Option<Until> {
        match scope {
            Some(_) => self.counters.register_invalidations += 1,
            None => self.counters.refused += 1,
        }
        scope.map(|scope| {
            let _with_answers = self.vm.invalidate(scope);
            Until::Complete(self.vm.in_flight())
        })
    }
}

/// The requester-id bits that a function mask leaves out (table 21).
pub(super) fn function_bits(mask: u8) -> u16 {
    match mask {
        0 => 0b000,
        1 => 0b100,
        2 => 0b110,
        _ => 0b111,
    }
}
