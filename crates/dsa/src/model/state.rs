//! The device's state behind its lock, and the changes that everything else is made of.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, Ordering};

use iommu::{AddressSpace, ResponseCode};
use pci::{ConfigSpace, MsiX, RequesterId};

use super::caps::{pasid_field, Caps};
use super::commands::Pending;
use super::counters::Tally;
use super::effects::Effects;
use super::paging::{Blocked, Paging, SET_ASIDE};
use super::queue::{Entry, Scope, Sequence, Submission, WorkQueue};
use super::sabotage::{self, Sabotage};
use crate::spec::{
    CmdStatus, Descriptor, DeviceState, GenCfg, GenCtrl, GroupFlags, IntCause, MsixPerm, Opcode,
    Portal, ResetType, SwError, SwErrorHead, WqLimits, WqMode, WqState,
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

/// A descriptor that an engine has taken and not finished.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Running {
    pub(super) wq: usize,
    pub(super) sequence: Sequence,
    pub(super) space: AddressSpace,
}

/// An engine as the registers' side sees it.
#[derive(Debug, Default)]
pub(super) struct EngineSlot {
    /// Whether the engine was handed out to somebody who runs it.
    pub(super) taken: bool,
    pub(super) running: Option<Running>,
    /// What it has set aside, in the order in which it did.
    pub(super) blocked: Vec<Blocked>,
    /// Something of that was abandoned: the engine is to drop what is no longer in `blocked`.
    pub(super) purge: bool,
    /// Whether it went on with something that it had set aside when it last looked for work: new work
    /// comes first then, so that neither starves the other.
    went_on: bool,
    /// Set to make the engine abandon what it runs.
    pub(super) cancel: Arc<AtomicBool>,
}

impl EngineSlot {
    /// Whether what it runs is to be abandoned.
    pub(super) fn is_cancelled(&self) -> bool {
        self.cancel.load(Ordering::Acquire)
    }

    /// Whether the descriptor at `sequence` is set aside.
    pub(super) fn has_blocked(&self, sequence: Sequence) -> bool {
        self.blocked.iter().any(|blocked| blocked.running.sequence == sequence)
    }

    /// Whether it has set aside as much of queue `wq` as it may.
    fn is_full(&self, wq: usize) -> bool {
        self.blocked.iter().filter(|blocked| blocked.running.wq == wq).count() >= SET_ASIDE
    }
}

/// What an engine is to do.
#[derive(Clone, Copy, Debug)]
pub(super) enum Next {
    /// Nothing.
    Nothing,
    /// This descriptor.
    New(Dispatch),
    /// Go on with what it set aside: the page that it waited for has this answer.
    GoOn(Sequence, ResponseCode),
}

/// A descriptor on its way to an engine, with what it may do.
#[derive(Clone, Copy, Debug)]
pub(super) struct Dispatch {
    pub(super) descriptor: Descriptor,
    pub(super) running: Running,
    pub(super) rules: Rules,
}

/// What the configuration lets descriptors of a queue do. Nothing of it can change while they run.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Rules {
    pub(super) wq: u8,
    pub(super) mode: WqMode,
    pub(super) limits: WqLimits,
    /// Unprivileged descriptors with a PASID may ask for interrupts.
    pub(super) user_interrupts: bool,
    /// The function may issue privileged requests.
    pub(super) privileged_enable: bool,
    /// Accesses are made with translation requests.
    pub(super) ats: bool,
    /// Pages that are not there can be asked for.
    pub(super) page_requests: bool,
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
        // What is left may have waited behind what is gone.
        for wq in 0..self.wqs.len() {
            if self.wqs[wq].head().is_some() {
                self.wake_engines_of(wq, fx);
            }
        }
    }

    /// Whether something that was submitted up to `barrier` is queued or runs.
    pub(super) fn is_outstanding(&self, scope: Scope, barrier: Sequence) -> bool {
        let queued = self.wqs.iter().enumerate().any(|(index, wq)| {
            wq.entries().any(|entry| scope.covers(index, entry.space) && entry.sequence <= barrier)
        });
        let covered = |r: &Running| scope.covers(r.wq, r.space) && r.sequence <= barrier;
        queued || self.taken_up().any(covered)
    }

    /// What engines run and what they have set aside.
    fn taken_up(&self) -> impl Iterator<Item = &Running> {
        self.engines.iter().flat_map(|engine| {
            engine.running.iter().chain(engine.blocked.iter().map(|blocked| &blocked.running))
        })
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

    /// Wakes the idle engines of the group of `wq`.
    fn wake_engines_of(&self, wq: usize, fx: &mut Effects) {
        let groups = || self.groups.iter().filter(|group| group.has_wq(wq));
        for (index, engine) in self.engines.iter().enumerate() {
            if engine.running.is_none() && groups().any(|group| group.has_engine(index)) {
                fx.wake(index);
            }
        }
    }

    /// What `engine` does next: it goes on with what it had set aside, or takes up something new, the
    /// two in turn if there is both.
    pub(super) fn next(&mut self, engine: usize, fx: &mut Effects) -> Next {
        let Some(slot) = self.engines.get(engine).filter(|slot| slot.running.is_none()) else {
            return Next::Nothing;
        };
        if slot.went_on {
            let new = self.dispatch(engine, fx).map(Next::New);
            new.or_else(|| self.go_on(engine)).unwrap_or(Next::Nothing)
        } else {
            let old = self.go_on(engine);
            old.or_else(|| self.dispatch(engine, fx).map(Next::New)).unwrap_or(Next::Nothing)
        }
    }

    /// What `engine` set aside first of what has an answer.
    fn go_on(&mut self, engine: usize) -> Option<Next> {
        let slot = self.engines.get_mut(engine)?;
        let at = slot.blocked.iter().position(|blocked| blocked.answer().is_some())?;
        let blocked = slot.blocked.remove(at);
        slot.went_on = true;
        slot.running = Some(blocked.running);
        slot.cancel.store(false, Ordering::Release);
        self.tally.blocked.subtract(1);
        Some(Next::GoOn(blocked.running.sequence, blocked.answer()?))
    }

    /// The next descriptor for `engine`: from the queues of its group in turn, each as often as
    /// its priority says.
    fn dispatch(&mut self, engine: usize, fx: &mut Effects) -> Option<Dispatch> {
        let stuck = sabotage::is(Sabotage::BlockTheQueue);
        if stuck && self.engines.get(engine).is_some_and(|slot| !slot.blocked.is_empty()) {
            return None;
        }
        let group = self.groups.iter().position(|group| group.has_engine(engine))?;
        let wq = self.next_queue(group, engine)?;
        let queue = self.wqs.get_mut(wq)?;
        let entry = queue.pop()?;
        let (mode, limits) = (queue.config.mode, queue.config.limits);
        // A drain kept what is behind it from everyone; now there may be work for others.
        if entry.descriptor.opcode() == Ok(Opcode::Drain) && queue.head().is_some() {
            self.wake_engines_of(wq, fx);
        }
        let running = Running { wq, sequence: entry.sequence, space: entry.space };
        let slot = self.engines.get_mut(engine)?;
        slot.went_on = false;
        slot.running = Some(running);
        slot.cancel.store(false, Ordering::Release);
        let ats = self.function.ats().is_some_and(|ats| ats.enable());
        let rules = Rules {
            wq: wq as u8,
            mode,
            limits,
            user_interrupts: self.gencfg.user_interrupts(),
            privileged_enable: self.function.pasid().is_some_and(|pasid| pasid.privileged()),
            ats,
            page_requests: ats && self.function.pri().is_some_and(|pri| pri.enable()),
        };
        Some(Dispatch { descriptor: entry.descriptor, running, rules })
    }

    /// The queue of `group` whose turn it is, of those that have something for `engine`.
    fn next_queue(&mut self, group: usize, engine: usize) -> Option<usize> {
        let (last, members) = {
            let group = self.groups.get(group)?;
            let slot = self.engines.get(engine)?;
            let members = (0..self.wqs.len()).fold(0u32, |bits, wq| {
                let ready = group.has_wq(wq) && self.is_ready(wq) && !slot.is_full(wq);
                bits | u32::from(ready) << wq
            });
            (group.last, members)
        };
        let count = self.wqs.len();
        let in_turn = || (0..count).map(|i| (last + i) % count).filter(|wq| members >> wq & 1 != 0);
        let mut found = in_turn().find(|&wq| self.wqs[wq].spend());
        if found.is_none() {
            in_turn().for_each(|wq| self.wqs[wq].refill());
            found = in_turn().find(|&wq| self.wqs[wq].spend());
        }
        // The queue keeps its turn while it has credit.
        self.groups.get_mut(group)?.last = found?;
        found
    }

    /// Whether the oldest entry of `wq` may be dispatched: a drain only once everything before it
    /// in its queue (shared: with its PASID) is over.
    fn is_ready(&self, wq: usize) -> bool {
        let Some(queue) = self.wqs.get(wq) else { return false };
        let Some(drain) = queue.drain_at_head() else { return queue.head().is_some() };
        // In a dedicated queue everything has one PASID.
        !self.taken_up().any(|running| running.wq == wq && running.space.pasid == drain.space.pasid)
    }

    /// `engine` has finished what it ran, all of its writes and interrupts included.
    pub(super) fn finished(&mut self, engine: usize, fx: &mut Effects) {
        let Some(slot) = self.engines.get_mut(engine) else { return };
        slot.running = None;
        slot.cancel.store(false, Ordering::Release);
        self.progress(fx);
    }

    /// Nobody runs `engine` any more: what it has set aside is abandoned.
    pub(super) fn engine_gone(&mut self, engine: usize, fx: &mut Effects) {
        self.abandon_blocked(|at, _| at == engine, fx);
        if let Some(slot) = self.engines.get_mut(engine) {
            slot.taken = false;
            slot.purge = false;
        }
        self.progress(fx);
    }

    /// Whether a descriptor with accesses in `space` may use `handle`, and whether its interrupts
    /// are delivered then.
    pub(super) fn interrupt_permission(&self, handle: u16, space: AddressSpace) -> Option<bool> {
        let permission = self.permissions.get(usize::from(handle))?;
        let pasid = pasid_field(permission.pasid_enable(), permission.pasid());
        (pasid == space.pasid).then(|| !permission.ignore())
    }
}
