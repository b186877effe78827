//! Counts, kept without the device's lock.

use core::sync::atomic::{AtomicU64, Ordering};

use crate::spec::Status;

/// One more than the largest status code: the status field of a record has six bits.
const STATUS_CODES: usize = 64;

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// What a device has done since it was made; resets do not clear it.
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        #[non_exhaustive]
        pub struct Counters {
            $($(#[$doc])* pub $name: u64,)*
            by_status: [u64; STATUS_CODES],
        }

        /// The counts while they are counted.
        #[derive(Debug)]
        pub(super) struct Tally {
            $(pub(super) $name: Count,)*
            by_status: [Count; STATUS_CODES],
        }

        impl Default for Tally {
            fn default() -> Self {
                Self {
                    $($name: Count::default(),)*
                    by_status: [const { Count(AtomicU64::new(0)) }; STATUS_CODES],
                }
            }
        }

        impl Tally {
            pub(super) fn read(&self) -> Counters {
                Counters {
                    $($name: self.$name.get(),)*
                    by_status: core::array::from_fn(|code| self.by_status[code].get()),
                }
            }
        }
    };
}

counters! {
    /// Descriptors taken up for execution: from a queue, or from a batch. A batch counts as one
    /// besides its members; members that a fence kept from running do not count.
    descriptors,
    /// Bytes that descriptors moved or examined: the transfer size of each that ended with success
    /// (whatever its predicate) and zero bytes completed, else the bytes completed of its record.
    /// No-ops, batches and drains count none themselves.
    bytes,
    /// Descriptors that a page fault stopped part way (status 0x03), whatever was done by then.
    partial_completions,
    /// Descriptors that were abandoned by a command, a reset or a halt, queued or running.
    abandoned,
    /// Completion records that could not be written.
    records_lost,
    /// Submissions to shared queues that were accepted.
    accepted,
    /// Deferrable writes that were answered with "retry".
    retries,
    /// Descriptors dropped because a dedicated queue was full.
    queue_full,
    /// Stores to portals that were ignored: to a shared, disabled or absent queue, or to a portal
    /// with interrupt message storage.
    portal_ignored,
    /// Stores to portals that are no piece of a descriptor: wrong length, place or order.
    portal_misordered,
    /// Register accesses that are none: wrong length or alignment.
    bad_accesses,
    /// Software errors, those included that found an earlier one in SWERROR.
    software_errors,
    /// Commands that were carried out.
    commands,
    /// Commands that ended with an error.
    command_errors,
    /// Interrupts raised.
    interrupts,
    /// Page requests sent.
    page_requests,
    /// Stop markers sent: PASIDs aborted while requests for them were out.
    stop_markers,
    /// Page requests answered "success", whether something still waited for it or not.
    page_responses_success,
    /// … answered "invalid".
    page_responses_invalid,
    /// … answered "failure".
    page_responses_failure,
    /// Answers to what was not asked.
    page_responses_unexpected,
    /// Descriptors that had to wait for others' answers before they could ask for a page.
    credits_exhausted,
    /// Descriptors that wait for a page now, or have an answer that their engine has not taken up.
    blocked,
}

impl Counters {
    /// Descriptors that ended with `status`.
    pub fn ended(&self, status: Status) -> u64 {
        self.by_status[usize::from(status as u8) % STATUS_CODES]
    }

    /// Descriptors that ended with anything but success (true or false predicate).
    pub fn errors(&self) -> u64 {
        let success =
            |status: &&Status| !matches!(status, Status::Success | Status::FalsePredicate);
        Status::ALL.iter().filter(success).map(|&status| self.ended(status)).sum()
    }
}

impl Tally {
    pub(super) fn ended(&self, status: Status) {
        self.by_status[usize::from(status as u8) % STATUS_CODES].add(1);
    }
}

/// One count. Nothing is ordered by it.
#[derive(Debug, Default)]
pub(super) struct Count(AtomicU64);

impl Count {
    pub(super) fn add(&self, count: u64) {
        self.0.fetch_add(count, Ordering::Relaxed);
    }

    /// For what is counted as it is now.
    pub(super) fn subtract(&self, count: u64) {
        self.0.fetch_sub(count, Ordering::Relaxed);
    }

    fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}
