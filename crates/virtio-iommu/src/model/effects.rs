//! What a model wants done, as values: the caller does it after its lock is released.

/// What a call asks its caller to do.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[must_use = "effects are to be performed by the caller"]
pub struct Effects {
    /// Send the request queue's interrupt: requests are done, and the driver wants to hear of it.
    pub used_buffers: bool,
    /// Send the configuration change interrupt: the device needs a reset.
    pub configuration_changed: bool,
    /// There is work: call [`Model::poll`](super::Model::poll) soon.
    pub schedule: bool,
}

/// How far a poll came.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Progress {
    /// The budget is used up and there may be more: poll again.
    More,
    /// There is nothing to do until the next notification.
    Idle,
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
