//! Which engine does what next: from its queues in turn, or something that it had set aside.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, Ordering};

use iommu::{AddressSpace, ResponseCode};

use super::effects::Effects;
use super::paging::{Blocked, SET_ASIDE};
use super::queue::Sequence;
use super::sabotage::{self, Sabotage};
use super::state::State;
use crate::spec::{Descriptor, Opcode, WqLimits, WqMode};

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

impl State {
    /// What engines run and what they have set aside.
    pub(super) fn taken_up(&self) -> impl Iterator<Item = &Running> {
        self.engines.iter().flat_map(|engine| {
            engine.running.iter().chain(engine.blocked.iter().map(|blocked| &blocked.running))
        })
    }

    /// Wakes the idle engines of the group of `wq`.
    pub(super) fn wake_engines_of(&self, wq: usize, fx: &mut Effects) {
        let groups = || self.groups.iter().filter(|group| group.has_wq(wq));
        for (index, engine) in self.engines.iter().enumerate() {
            if engine.running.is_none() && groups().any(|group| group.has_engine(index)) {
                fx.wake(index);
            }
        }
    }

    /// Wakes idle engines for what is queued: it may have waited behind what is gone.
    pub(super) fn wake_for_what_is_left(&self, fx: &mut Effects) {
        for (index, wq) in self.wqs.iter().enumerate() {
            if wq.head().is_some() {
                self.wake_engines_of(index, fx);
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
        self.use_credits(fx);
        self.wake_for_what_is_left(fx);
        self.progress(fx);
    }
}
