//! Devices that do not answer an invalidation of their device TLB (6.5.2.11).

use core::time::Duration;

use iommu::{Ticket, Vm};
use pci::RequesterId;

use super::effects::{Effects, Ticked};
use super::Model;

/// A wait at the head of the queue that a device's answer keeps from being complete.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Held {
    /// The device.
    pub(super) requester: RequesterId,
    /// What the wait waits for.
    pub(super) ticket: Ticket,
    /// When that was first said to take time; `None` before the first tick.
    since: Option<Duration>,
}

impl<V: Vm> Model<V> {
    /// Says what time it is, on a clock that only goes forward: a wait that is held up by a device
    /// for longer than [`Options::invalidation_timeout`](super::Options::invalidation_timeout),
    /// counted from the first tick that sees it, is given up. It is taken from the queue without
    /// its status write or interrupt, ITE is set with the device's source-id in IQERCD, the fault
    /// event is raised, and the queue stands still until software clears ITE. No later wait waits
    /// for what this one did: neither for that device nor for another that has not answered either.
    ///
    /// To be called after a poll that came to [`Progress::Waiting`](super::Progress::Waiting), and
    /// then at the deadline that it gives.
    pub fn tick(&mut self, now: Duration) -> Ticked {
        let mut effects = Effects::default();
        let timeout = self.caps.options().invalidation_timeout;
        let Some(mut held) = *self.queue.held() else { return Ticked { effects, deadline: None } };
        if self.vm.is_complete(held.ticket) || !self.is_owed_by(&held) {
            // Another device may be the next; the next look at the queue says so.
            *self.queue.held() = None;
            effects.schedule = true;
            return Ticked { effects, deadline: None };
        }
        let deadline = held.since.get_or_insert(now).saturating_add(timeout);
        *self.queue.held() = Some(held);
        if now < deadline {
            return Ticked { effects, deadline: Some(deadline) };
        }
        self.counters.invalidation_timeouts += 1;
        let quiet = !self.has_fault_status();
        self.vm.give_up_answers(held.ticket);
        self.queue.time_out(&held);
        if quiet {
            self.raise_fault_event(Some(held.requester), &mut effects);
        }
        Ticked { effects, deadline: None }
    }

    fn is_owed_by(&self, held: &Held) -> bool {
        let owes = |of: iommu::Unanswered| of.requester == held.requester;
        self.vm.unanswered(held.ticket).is_some_and(owes)
    }

    /// Remembers who keeps the wait at the head.
    pub(super) fn hold(&mut self, ticket: Ticket) {
        let requester = self.vm.unanswered(ticket).map(|of| of.requester);
        let before = *self.queue.held();
        let held = requester.map(|requester| {
            let same = before.filter(|held| (held.requester, held.ticket) == (requester, ticket));
            same.unwrap_or(Held { requester, ticket, since: None })
        });
        *self.queue.held() = held;
    }
}
