//! The devices' own TLBs, as those see them who have them emptied: which devices have one, and
//! which of them have not answered.
//!
//! Tickets are numbers in one order, and of two kinds. Even ones are of what a guest asks for, by
//! way of its model: such a ticket is complete only when the devices have answered all that they
//! were asked before, but for what was given up. Odd ones are of the host itself: its memory, a
//! device or the VM that goes. They wait for no answer, since the host relies on none: what a
//! device's TLB holds is gone whether the device says so or not.

use alloc::collections::{BTreeMap, BTreeSet};
use core::time::Duration;

use pci::RequesterId;

use crate::{Ticket, Unanswered};

/// Who asks for a change.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::software) enum Asker {
    Host,
    Guest,
}

impl Asker {
    /// The number of its next ticket, where `latest` is that of the latest one.
    pub(super) fn next(self, latest: u64) -> u64 {
        match self {
            Self::Host => (latest + 1) | 1,
            Self::Guest => (latest | 1) + 1,
        }
    }

    fn of(ticket: Ticket) -> Self {
        if ticket.0 % 2 == 0 {
            Self::Guest
        } else {
            Self::Host
        }
    }
}

/// The devices whose ATS is on, and what they owe.
#[derive(Debug, Default)]
pub(super) struct DeviceTlbs {
    on: BTreeSet<RequesterId>,
    /// Devices that do not answer, whatever their ATS.
    withheld: BTreeSet<RequesterId>,
    /// How long the others take.
    delay: Option<Duration>,
    owed: BTreeMap<RequesterId, Owed>,
}

/// What one device has not answered. Two numbers stand for all of it, since a guest may ask without
/// end: whatever was asked of the VM between them counts as asked of this device.
#[derive(Debug)]
struct Owed {
    /// The first invalidation that is waited for.
    since: Ticket,
    /// The latest one; before `since` if all were given up.
    last: Ticket,
    /// When it answers, what was given up included; `None` if it does not, or until the next tick.
    due: Option<Duration>,
}

impl Owed {
    fn ask(&mut self, ticket: Ticket) {
        if !self.is_awaited() {
            self.since = ticket;
        }
        self.last = ticket;
    }

    fn give_up(&mut self, up_to: Ticket) {
        self.since = self.since.max(Ticket(up_to.0.saturating_add(1)));
    }

    fn is_awaited(&self) -> bool {
        self.since <= self.last
    }
}

impl DeviceTlbs {
    /// Whether a device has a TLB of its own.
    pub(super) fn is_on(&self, device: RequesterId) -> bool {
        self.on.contains(&device)
    }

    /// The ATS of a device is switched on, or off; whether that is a change. One whose ATS is off has
    /// nothing to answer for.
    pub(super) fn switch(&mut self, device: RequesterId, on: bool) -> bool {
        if on {
            return self.on.insert(device);
        }
        self.owed.remove(&device);
        self.on.remove(&device)
    }

    /// Nor has one that is gone.
    pub(super) fn remove(&mut self, device: RequesterId) {
        self.switch(device, false);
        self.withheld.remove(&device);
    }

    /// Has a device keep its answers to itself, or give them, those that it owes included.
    pub(super) fn withhold(&mut self, device: RequesterId, withhold: bool) {
        if withhold {
            self.withheld.insert(device);
        } else {
            self.withheld.remove(&device);
            self.owed.remove(&device);
        }
    }

    /// Has the devices take their time.
    pub(super) fn set_delay(&mut self, delay: Option<Duration>) {
        self.delay = delay;
        let Self { withheld, owed, .. } = self;
        owed.retain(|device, _| withheld.contains(device));
    }

    /// A device is asked to forget something; `ticket` is that of the invalidation.
    pub(super) fn ask(&mut self, device: RequesterId, ticket: Ticket) {
        let answers = self.delay.is_none() && !self.withheld.contains(&device);
        if !answers && self.is_on(device) {
            let first = || Owed { since: ticket, last: ticket, due: None };
            self.owed.entry(device).or_insert_with(first).ask(ticket);
        }
    }

    /// Waits no longer for any answer to what was asked up to and with `up_to`.
    pub(super) fn give_up(&mut self, up_to: Ticket) {
        self.owed.values_mut().for_each(|owed| owed.give_up(up_to));
    }

    /// Whether an answer keeps `ticket` from being complete.
    pub(super) fn delays(&self, ticket: Ticket) -> bool {
        self.unanswered(ticket).is_some()
    }

    /// Whose answer keeps `ticket` from being complete: that which has been owed for longest.
    pub(super) fn unanswered(&self, ticket: Ticket) -> Option<Unanswered> {
        if Asker::of(ticket) == Asker::Host {
            return None;
        }
        let awaited = self.owed.iter().filter(|(_, owed)| owed.is_awaited());
        let (&requester, owed) = awaited.min_by_key(|(_, owed)| owed.since)?;
        let before = Ticket(owed.since.0.saturating_sub(1));
        (owed.since <= ticket).then_some(Unanswered { requester, ticket: before })
    }

    /// Gives the answers that are due; when the next one is.
    pub(super) fn tick(&mut self, now: Duration) -> Option<Duration> {
        let delay = self.delay?;
        let Self { withheld, owed, .. } = self;
        owed.retain(|device, owed| {
            let due = *owed.due.get_or_insert(now.saturating_add(delay));
            due > now || withheld.contains(device)
        });
        let timed = owed.iter().filter(|(device, _)| !withheld.contains(device));
        timed.filter_map(|(_, owed)| owed.due).min()
    }
}
