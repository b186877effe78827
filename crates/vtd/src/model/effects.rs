//! What a model wants done, as values: the caller does it after its lock is released.

use core::time::Duration;

use iommu::Ticket;
use mem::Gpa;
use pci::RequesterId;

/// A message-signalled interrupt: `data` stored to `address`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Message {
    /// Where to, within 0xfee0_0000 to 0xfeef_ffff.
    pub address: Gpa,
    /// What.
    pub data: u32,
    /// Whose fault or page request it is about, if it is about one just now: a shell that has to
    /// send it in the name of a device takes this one.
    pub requester: Option<RequesterId>,
}

/// What a call asks its caller to do.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[must_use = "effects are to be performed by the caller"]
pub struct Effects {
    /// The invalidation completion event, to be sent.
    pub completion: Option<Message>,
    /// The page request event, to be sent.
    pub page_request: Option<Message>,
    /// The fault event, to be sent.
    pub fault: Option<Message>,
    /// There is work: call [`Model::poll`](super::Model::poll) soon.
    pub schedule: bool,
}

impl Effects {
    /// The messages to send, in this order.
    pub fn messages(&self) -> impl Iterator<Item = Message> {
        [self.completion, self.page_request, self.fault].into_iter().flatten()
    }

    /// Both: what `self` asks for and what `later` does. A message that both have is sent once:
    /// it says that there is something to look at.
    pub fn merge(&mut self, later: Self) {
        self.completion = later.completion.or(self.completion);
        self.page_request = later.page_request.or(self.page_request);
        self.fault = later.fault.or(self.fault);
        self.schedule |= later.schedule;
    }
}

/// How far a poll came.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Progress {
    /// The budget is used up and there is more: poll again.
    More,
    /// Nothing more can be done before this ticket is complete: poll again soon.
    Waiting(Ticket),
    /// There is nothing to do until the next register access or fault.
    Idle,
}

/// The result of a [`Model::tick`](super::Model::tick).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use = "effects are to be performed by the caller"]
pub struct Ticked {
    /// What the caller is to do.
    pub effects: Effects,
    /// When to call again at the latest, on the clock of the call; `None`: nothing is waited for
    /// now, which a poll may change.
    pub deadline: Option<Duration>,
}

/// The result of a poll.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use = "effects are to be performed by the caller"]
pub struct Polled {
    /// How far it came.
    pub progress: Progress,
    /// What the caller is to do.
    pub effects: Effects,
}
