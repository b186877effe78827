//! The device's state behind its lock, and the changes that everything else is made of.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::Ordering;

use iommu::AddressSpace;
use pci::{ConfigSpace, MsiX, RequesterId};

use super::caps::{pasid_field, Caps};
use super::commands::Pending;
use super::counters::Tally;
use super::effects::Effects;
use super::paging::Paging;
use super::queue::{Entry, Scope, Sequence, Submission, WorkQueue};
use super::sabotage::{self, Sabotage};
use super::schedule::{EngineSlot, Running};
use crate::spec::{
    CmdStatus, Descriptor, DeviceState, GenCfg, GenCtrl, GroupFlags, IntCause, MsixPerm, Portal,
    ResetType, SwError, SwErrorHead, WqState,
};

/// A group's configuration (GRPCFG), as written.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Group {
    pub(super) wqs: [u64; 4],
    pub(super) engines: u64,
    pub(super) flags: GroupFlags,
    /// The queue that was served last.
    pub(super) last: usize,
}

impl Group {
    /// Indices of the queues in it, of those that a device can have.
    pub(super) fn has_wq(&self, wq: usize) -> bool {
        self.wqs.get(wq / 64).is_some_and(|word| word >> (wq % 64) & 1 != 0)
    }

    pub(super) fn has_engine(&self, engine: usize) -> bool {
        engine < 64 && self.engines >> engine & 1 != 0
    }
}

/// Everything that registers and commands change.
#[derive(Debug)]
pub(super) struct State {
    pub(super) caps: Caps,
    pub(super) tally: Arc<Tally>,
    pub(super) function: ConfigSpace,
    pub(super) msix: MsiX,
    pub(super) device: DeviceState,
    pub(super) reset_needed: ResetType,
    pub(super) gencfg: GenCfg,
    pub(super) genctrl: GenCtrl,
    pub(super) intcause: IntCause,
    pub(super) cmdstatus: CmdStatus,
    pub(super) swerror: SwError,
    pub(super) groups: Vec<Group>,
    pub(super) wqs: Vec<WorkQueue>,
    pub(super) permissions: Vec<MsixPerm>,
    pub(super) pending: Option<Pending>,
    pub(super) engines: Vec<EngineSlot>,
    pub(super) sequence: Sequence,
    pub(super) paging: Paging,
}

impl State {
    pub(super) fn new(
        caps: Caps,
        tally: Arc<Tally>,
        function: ConfigSpace,
        msix: MsiX,
        requester: RequesterId,
    ) -> Self {
        let mut state = Self {
            caps,
            tally,
            function,
            msix,
            device: DeviceState::Disabled,
            reset_needed: ResetType::Software,
            gencfg: GenCfg::new(),
            genctrl: GenCtrl::new(),
            intcause: IntCause::new(),
            cmdstatus: CmdStatus::new(),
            swerror: SwError::default(),
            groups: alloc::vec![Group::default(); caps.groups()],
            wqs: alloc::vec![WorkQueue::default(); caps.queues()],
            permissions: alloc::vec![MsixPerm::new(); caps.vectors().into()],
            pending: None,
            engines: (0..caps.engines()).map(|_| EngineSlot::default()).collect(),
            sequence: 0,
            paging: Paging::new(requester),
        };
        state.clear_configuration();
        state
    }

    /// All state as after power-on (function-level reset). Work in flight is told to stop; what an
    /// engine still runs stays on its slot until the engine notices, so that later commands wait
    /// for it.
    pub(super) fn power_on_reset(&mut self, fx: &mut Effects) {
        self.cancel(Scope::All, fx);
        self.clear_configuration();
        let Self {
            caps: _,
            tally: _,
            function,
            msix,
            device,
            reset_needed,
            // Cleared by `clear_configuration`.
            gencfg: _,
            genctrl: _,
            intcause: _,
            cmdstatus,
            swerror,
            groups: _,
            wqs: _,
            permissions: _,
            pending,
            engines: _,
            sequence: _,
            paging,
        } = self;
        function.reset();
        msix.reset();
        *device = DeviceState::Disabled;
        *reset_needed = ResetType::Software;
        *cmdstatus = CmdStatus::new();
        *swerror = SwError::default();
        *pending = None;
        paging.power_on_reset();
        fx.ats = Some(false);
    }

    /// What Reset Device clears: everything but CMD, CMDSTATUS, SWERROR and the MSI-X table.
    /// Queues must be empty.
    pub(super) fn clear_configuration(&mut self) {
        let buffers = self.caps.config().read_buffers;
        self.gencfg = GenCfg::new().with_read_buffer_limit(buffers);
        self.genctrl = GenCtrl::new();
        self.intcause = IntCause::new();
        let flags = GroupFlags::new().with_buffers_allowed(buffers);
        self.groups.fill(Group { flags, ..Group::default() });
        self.wqs.fill(WorkQueue::default());
        self.permissions.fill(MsixPerm::new());
    }

    /// Records an event of the device and raises its interrupt.
    pub(super) fn cause(&mut self, cause: IntCause, fx: &mut Effects) {
        self.intcause = IntCause::from_bits(self.intcause.into_bits() | cause.into_bits());
        fx.raise(0);
    }

    /// Records a software error; the first one is kept until it is cleared.
    pub(super) fn software_error(&mut self, error: SwError, fx: &mut Effects) {
        self.tally.software_errors.add(1);
        if self.swerror.head.valid() {
            self.swerror.head.set_overflow(true);
            return;
        }
        self.swerror = error;
        self.swerror.head.set_valid(true);
        if self.genctrl.software_error_interrupt() {
            self.cause(IntCause::new().with_software_error(true), fx);
        }
    }

    /// Stops the device until it is reset: everything is abandoned, nothing is taken any more.
    pub(super) fn halt(&mut self, needed: ResetType, fx: &mut Effects) {
        self.device = DeviceState::Halted;
        self.reset_needed = needed;
        self.cancel(Scope::All, fx);
        for wq in &mut self.wqs {
            wq.set_state(WqState::Disabled);
        }
        self.fail_pending(fx);
        if self.genctrl.halt_interrupt() {
            self.cause(IntCause::new().with_halt(true), fx);
        }
    }

    /// Abandons everything submitted so far: what is queued or set aside goes at once, what runs is
    /// told to stop.
    pub(super) fn cancel(&mut self, scope: Scope, fx: &mut Effects) {
        for (index, wq) in self.wqs.iter_mut().enumerate() {
            let gone = wq.retain(|entry| !scope.covers(index, entry.space));
            self.tally.abandoned.add(gone as u64);
        }
        for engine in &self.engines {
            let covered = |running: &Running| scope.covers(running.wq, running.space);
            if engine.running.as_ref().is_some_and(covered) {
                engine.cancel.store(true, Ordering::Release);
            }
        }
        self.abandon_blocked(|_, r| scope.covers(r.wq, r.space), fx);
        self.use_credits(fx);
        self.wake_for_what_is_left(fx);
    }

    /// Whether something that was submitted up to `barrier` is queued or runs.
    pub(super) fn is_outstanding(&self, scope: Scope, barrier: Sequence) -> bool {
        let queued = self.wqs.iter().enumerate().any(|(index, wq)| {
            wq.entries().any(|entry| scope.covers(index, entry.space) && entry.sequence <= barrier)
        });
        let covered = |r: &Running| scope.covers(r.wq, r.space) && r.sequence <= barrier;
        queued || self.taken_up().any(covered)
    }

    /// Takes a descriptor that was stored to a portal of queue `wq` (a posted write: nobody hears
    /// what became of it).
    pub(super) fn post(&mut self, wq: usize, portal: Portal, bytes: &[u8; 64], fx: &mut Effects) {
        let enabled = self.device == DeviceState::Enabled && !portal.ims;
        let queue = self.wqs.get(wq).filter(|_| enabled);
        let Some(queue) = queue.filter(|q| q.state() == WqState::Enabled) else {
            return self.tally.portal_ignored.add(1);
        };
        let mode = queue.config.mode;
        if !mode.dedicated() {
            return self.tally.portal_ignored.add(1);
        }
        if !queue.has_room(portal) {
            self.tally.queue_full.add(1);
            let head = SwErrorHead::new()
                .with_wq_valid(true)
                .with_wq(wq as u8)
                .with_code(SwError::WQ_FULL);
            return self.software_error(SwError { head, ..SwError::default() }, fx);
        }
        let descriptor = Descriptor::from_bytes(bytes);
        let pasid = if sabotage::is(Sabotage::ForgeablePasid) {
            pasid_field(mode.pasid_enable(), descriptor.submitter.pasid())
        } else {
            pasid_field(mode.pasid_enable(), mode.pasid())
        };
        let privileged = pasid.is_some() && mode.privileged();
        self.enqueue(wq, descriptor, AddressSpace { pasid, privileged }, fx);
    }

    /// Takes a descriptor that came as a deferrable memory write (ENQCMD), or refuses it.
    pub(super) fn submit(
        &mut self,
        wq: usize,
        portal: Portal,
        bytes: &[u8; 64],
        fx: &mut Effects,
    ) -> Submission {
        let enabled = self.device == DeviceState::Enabled && !portal.ims;
        let ready = |q: &&WorkQueue| {
            q.state() == WqState::Enabled && !q.config.mode.dedicated() && q.has_room(portal)
        };
        if self.wqs.get(wq).filter(|_| enabled).filter(ready).is_none() {
            self.tally.retries.add(1);
            return Submission::Retry;
        }
        self.tally.accepted.add(1);
        let descriptor = Descriptor::from_bytes(bytes);
        let pasid = pasid_field(true, descriptor.submitter.pasid());
        let privileged = descriptor.submitter.privileged();
        self.enqueue(wq, descriptor, AddressSpace { pasid, privileged }, fx);
        Submission::Accepted
    }

    fn enqueue(
        &mut self,
        wq: usize,
        descriptor: Descriptor,
        space: AddressSpace,
        fx: &mut Effects,
    ) {
        self.sequence += 1;
        let sequence = self.sequence;
        if let Some(queue) = self.wqs.get_mut(wq) {
            queue.push(Entry { descriptor, sequence, space });
        }
        self.wake_engines_of(wq, fx);
    }

    /// Whether a descriptor with accesses in `space` may use `handle`, and whether its interrupts
    /// are delivered then.
    pub(super) fn interrupt_permission(&self, handle: u16, space: AddressSpace) -> Option<bool> {
        let permission = self.permissions.get(usize::from(handle))?;
        let pasid = pasid_field(permission.pasid_enable(), permission.pasid());
        (pasid == space.pasid).then(|| !permission.ignore())
    }
}
