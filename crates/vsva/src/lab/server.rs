//! What the lab asks of the server whose devices its guests use.

use std::collections::BTreeMap;
use std::error::Error;
use std::path::Path;
use std::time::Duration;

use crate::qemu::Devices;
use crate::server::{GuestConfig, HostCalls, Injection};

/// A guest's number on one server. It names the guest in calls and is never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct GuestId(pub u32);

/// What a guest gets, and its number.
#[derive(Clone, Debug)]
pub struct GuestDevices {
    /// The guest's number in later calls.
    pub guest: GuestId,
    /// What to put on QEMU's command line.
    pub devices: Devices,
}

/// What the host has on record of one guest's PASIDs, in the guest's numbers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PasidRecord {
    /// Granted, ascending.
    pub live: Vec<u32>,
    /// Given back, but something may still name them.
    pub parked: Vec<u32>,
    /// What the host calls those that are granted, ascending.
    pub hosts: Vec<u32>,
    /// Those of the granted that are bound in a table of the host's, ascending.
    pub bound: Vec<u32>,
}

/// The host's PASID space.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PasidSpace {
    /// PASIDs that may be out at a time.
    pub capacity: u32,
    /// Of those, set aside for guests.
    pub reserved: u32,
    /// Granted, whoever has them.
    pub live: u32,
    /// Given back, but something may still name them.
    pub parked: u32,
    /// Guests that have a quota, or still something that drains.
    pub guests: usize,
}

/// What the guests' devices asked of the host by encoded bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EncodedCalls {
    /// Calls so far.
    pub calls: u64,
    /// Containers that are open.
    pub open: usize,
}

/// One assertion made outside the guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    /// What is asserted, in a few words.
    pub check: String,
    /// Whether it holds.
    pub ok: bool,
    /// What was measured, or what is wrong.
    pub detail: String,
}

/// Why the server cannot do what it is asked for.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// It cannot run here at all.
    #[error("the server cannot run: {0}")]
    Unavailable(String),
    /// It has no such sabotage.
    #[error("there is no sabotage {given:?}; there are: {}", known.join(", "))]
    UnknownSabotage {
        /// What was asked for.
        given: String,
        /// What there is.
        known: Vec<&'static str>,
    },
    /// It has no way to let this go wrong.
    #[error("the server cannot inject {0}")]
    CannotInject(Injection),
    /// No guest of that number is known.
    #[error("the server knows no guest {}", .0 .0)]
    UnknownGuest(GuestId),
    /// Something of a dead guest was still held at the deadline.
    #[error("after {after:?} the server still held {what}")]
    StillHeld {
        /// What was still held.
        what: String,
        /// How long after the guest's end.
        after: Duration,
    },
    /// Its own failure.
    #[error(transparent)]
    Other(#[from] Box<dyn Error + Send + Sync>),
}

/// One running server, in this process.
pub trait LabServer {
    /// Makes devices for one more guest as `config` wants it, with their sockets in `dir` (private, and short enough for
    /// a socket's name).
    ///
    /// # Errors
    /// The server's own.
    fn add_guest(&mut self, dir: &Path, config: GuestConfig) -> Result<GuestDevices, ServerError>;

    /// Waits until everything of a guest that has ended is freed, and says how long that took.
    ///
    /// # Errors
    /// [`ServerError::StillHeld`] at `limit`, or the server's own.
    fn wait_gone(&mut self, guest: GuestId, limit: Duration) -> Result<Duration, ServerError>;

    /// What the guest has caused so far, by name: `translations`, `iotlb_hits`, `descriptors`, `bytes` and so on. Stays
    /// readable after the guest's end.
    fn counters(&self, guest: GuestId) -> Vec<(&'static str, u64)>;

    /// The PASIDs that the guest was granted, now.
    ///
    /// # Errors
    /// [`ServerError::UnknownGuest`], also for one of which nothing is left.
    fn pasids(&self, guest: GuestId) -> Result<PasidRecord, ServerError>;

    /// The PASID space of the host, now.
    fn space(&self) -> PasidSpace;

    /// What was asked of the host by encoded bytes; `None` if it is called directly.
    fn encoded_calls(&self) -> Option<EncodedCalls>;

    /// Lets something go wrong for a guest, from now on; what went wrong of the same kind
    /// ([`Injection::kind`]) is put right.
    ///
    /// # Errors
    /// [`ServerError::UnknownGuest`], also for one that has ended; [`ServerError::CannotInject`].
    fn inject(&mut self, guest: GuestId, injection: Injection) -> Result<(), ServerError>;

    /// Puts right all that goes wrong for a guest by [`inject`](Self::inject) or by
    /// [`ServerOptions::injections`].
    ///
    /// # Errors
    /// [`ServerError::UnknownGuest`], also for one that has ended.
    fn clear_injections(&mut self, guest: GuestId) -> Result<(), ServerError>;

    /// Does what a scenario asks for at a named point, and says what it found. The names are those of
    /// [`guest_protocol::sync`] and [`AFTER_KILL`]. A point that the server does not know is a failed check.
    fn sync(&mut self, guest: GuestId, point: &str, values: &BTreeMap<String, u64>) -> Vec<Check>;
}

/// The point at which a guest has just been killed and waited for: nothing of it may be left.
pub const AFTER_KILL: &str = "after-kill";

/// What a server is started with.
#[derive(Clone, Copy, Debug, Default)]
pub struct ServerOptions<'a> {
    /// The name of the way in which it is to be broken, if it is.
    pub sabotage: Option<&'a str>,
    /// How its guests' devices call its host.
    pub calls: HostCalls,
    /// The seed of the order of frames below shuffled second stages.
    pub seed: u64,
    /// What goes wrong for every guest from its beginning.
    pub injections: &'a [Injection],
}

/// Starts a server.
pub type StartServer<'a> = &'a dyn Fn(ServerOptions<'_>) -> Result<Box<dyn LabServer>, ServerError>;
