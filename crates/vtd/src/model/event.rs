//! The interrupt events of a unit: fault, invalidation completion and page request (7.3, 6.5.2.10,
//! 7.5).

use mem::Gpa;

use super::effects::Message;
use crate::spec::EventControl;

/// The registers of an event.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Event {
    control: EventControl,
    pub(super) data: u32,
    pub(super) address: u32,
}

/// What came of an interrupt condition.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Raised {
    /// This is to be sent.
    Send(Message),
    /// It is masked; the pending bit remembers it.
    Held,
    /// The address register names no interrupt address: sent, it would write to memory.
    Dropped,
}

/// Base of the interrupt address range (5.1.6): bits 31:20.
const INTERRUPT_RANGE: u32 = 0xfee;

impl Event {
    pub(super) fn new() -> Self {
        Self { control: EventControl::new().with_masked(true), data: 0, address: 0 }
    }

    pub(super) fn control(&self) -> EventControl {
        self.control
    }

    /// An interrupt condition that is not there already.
    pub(super) fn raise(&mut self) -> Raised {
        self.control.set_pending(true);
        self.send_pending()
    }

    /// Software wrote the mask bit.
    pub(super) fn set_masked(&mut self, masked: bool) -> Raised {
        self.control.set_masked(masked);
        self.send_pending()
    }

    /// Software serviced the condition: what is held back is not sent any more.
    pub(super) fn serviced(&mut self) {
        self.control.set_pending(false);
    }

    fn send_pending(&mut self) -> Raised {
        if self.control.masked() || !self.control.pending() {
            return Raised::Held;
        }
        self.control.set_pending(false);
        if self.address >> 20 != INTERRUPT_RANGE {
            return Raised::Dropped;
        }
        Raised::Send(Message {
            address: Gpa(self.address.into()),
            data: self.data,
            requester: None,
        })
    }
}
