//! What a device counts.

/// Counts of one device since its creation.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Counters {
    /// Requests taken from the queue, answered or not.
    pub requests: u64,
    /// PASIDs granted.
    pub pasids_allocated: u64,
    /// PASIDs taken back.
    pub pasids_freed: u64,
    /// Requests answered with a status other than OK.
    pub requests_refused: u64,
    /// … of which the type is not one of this device's.
    pub requests_unsupported: u64,
    /// Requests given back unanswered: their chain is broken, or has no place for a status.
    pub requests_unanswered: u64,
    /// Times that the request queue itself made no sense, so that the device needs a reset.
    pub queue_errors: u64,
    /// Writes through the transport that are ignored: not supported, or not now.
    pub refused: u64,
    /// Resets.
    pub resets: u64,
}
