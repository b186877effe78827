//! What the lab and the program inside its guest say to each other.
//!
//! ```text
//!  lab ── ToGuest ──► one JSON object a line, over a serial port in raw mode ──► guest-init
//!  lab ◄─ FromGuest ─                                                         ── guest-init
//! ```
//!
//! The guest says [`FromGuest::Hello`] once. For each [`ToGuest::Run`] it answers with any number
//! of [`FromGuest::Check`], [`FromGuest::Note`] and [`FromGuest::Sync`], at most one
//! [`FromGuest::Counts`], and exactly one [`FromGuest::Done`], whatever became of the scenario's
//! process. After a `Sync` or a [`FromGuest::Holds`] the guest waits for [`ToGuest::Continue`] (at
//! [`sync::STRANGERS`], for [`ToGuest::Pasids`]). Both sides treat the other's bytes as hostile: [`Lines`] bounds a line, [`decode`] refuses what is not
//! a message.
//!
//! # What is counted
//!
//! [`FromGuest::Counts`] carries what *this scenario* did (not totals since boot), by the names in
//! [`counts`]. The accelerator keeps the same account, so that the two can be compared:
//!
//! * **`descriptors`**: descriptors that the accelerator executed, from a queue or out of a batch,
//!   whatever they ended with. A batch counts one for itself and one for every member that was
//!   executed; members that a fence abandoned do not count. Each resubmission counts again.
//! * **`bytes`**: the sum over those descriptors of the bytes that the operation moved or examined:
//!   the descriptor's *transfer size* when it ended with success and reports zero bytes completed
//!   (a full completion), otherwise the record's *bytes completed*: partial completions, a
//!   comparison that found a difference, a delta record that ran out, a block with a wrong
//!   checksum, and zero for whatever was refused before it began. No-op, drain and batch count
//!   zero themselves (a batch's number of descriptors completed is no number of bytes).
//!
//! ```
//! use guest_protocol::{decode, encode, Lines, ToGuest};
//!
//! let mut lines = Lines::new();
//! lines.feed(encode(&ToGuest::Continue { ok: true })?.as_bytes());
//! let line = lines.next().expect("a whole line was fed")?;
//! assert_eq!(decode::<ToGuest>(&line)?, ToGuest::Continue { ok: true });
//! # Ok::<(), guest_protocol::LineError>(())
//! ```

use std::collections::BTreeMap;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

mod lines;

pub use lines::Lines;

/// Longest line either side sends or accepts, in bytes, its newline included.
pub const MAX_LINE: usize = 64 * 1024;

/// Most PASIDs that one [`FromGuest::Holds`] names; they fit into a line of [`MAX_LINE`] bytes with
/// room to spare.
pub const MAX_HELD: usize = 4096;

/// What the lab tells the guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type")]
pub enum ToGuest {
    /// Run a scenario; the seed makes its random choices repeatable.
    Run {
        /// A name of [`scenario`]; an unknown one is a failed check, then `Done`.
        scenario: String,
        /// Seed of every random choice in the scenario.
        seed: u64,
    },
    /// The answer to a [`FromGuest::Sync`] or a [`FromGuest::Holds`].
    Continue {
        /// Whether the lab did what the point asks for, or found what the guest holds.
        ok: bool,
    },
    /// The answer to [`sync::STRANGERS`].
    Pasids {
        /// PASIDs that were granted to another guest and not to this one, by its numbers and by the host's; at most
        /// [`MAX_HELD`]. There may be none if guests have private numbers.
        pasids: Vec<u32>,
    },
    /// Write back and switch the machine off.
    PowerOff,
}

/// What the guest tells the lab.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type")]
pub enum FromGuest {
    /// The guest is up and waits for commands.
    Hello {
        /// The kernel's release, as `uname -r` prints it.
        kernel: String,
        /// Processors that the guest sees.
        cpus: u32,
    },
    /// One assertion of the scenario that runs.
    Check {
        /// What is asserted, in a few words.
        check: String,
        /// Whether it holds.
        ok: bool,
        /// What was measured, or what is wrong.
        detail: String,
    },
    /// Something a reader of the log may want to know.
    Note {
        /// One line of text.
        text: String,
    },
    /// The guest waits here for [`ToGuest::Continue`].
    Sync {
        /// A name of [`sync`].
        point: String,
        /// The point's arguments.
        values: BTreeMap<String, u64>,
    },
    /// Every PASID that the guest's kernel was granted and has not given back, for the lab to
    /// compare with the host's record. The guest waits here for [`ToGuest::Continue`].
    Holds {
        /// Whether the guest was refused one more, so that these must be its whole quota.
        refused: bool,
        /// The numbers, ascending; at most [`MAX_HELD`].
        pasids: Vec<u32>,
    },
    /// The scenario's own account; see the crate page for what is counted.
    Counts {
        /// Amounts by the names in [`counts`].
        values: BTreeMap<String, u64>,
    },
    /// The scenario is over.
    Done {
        /// The name that `Run` gave.
        scenario: String,
    },
    /// The guest cannot go on.
    Fatal {
        /// Why.
        text: String,
    },
}

/// Names of the scenarios that the guest knows.
pub mod scenario {
    /// Every operation over every kind of memory, by plain virtual addresses.
    pub const SVA_COPY: &str = "sva-copy";
    /// Two processes with the same addresses and different contents; PASIDs that are not theirs.
    pub const ISOLATION: &str = "isolation";
    /// Open, work and exit, two hundred times.
    pub const REBIND: &str = "rebind";
    /// The device's accesses show in the guest kernel's own account of its pages.
    pub const ACCESSED_DIRTY: &str = "accessed-dirty";
    /// Memory is remapped while the device works on it.
    pub const IN_FLIGHT: &str = "in-flight";
    /// Pages are taken out of the host's second stage under the running device, and put back.
    pub const STAGE_TWO: &str = "stage-two";
    /// The kernel takes its PASIDs from the host, by virtual commands (Linux up to 6.3).
    pub const VCMD: &str = "vcmd";
    /// Copies without end, and descriptors that wait for pages, for a guest that is about to be killed.
    pub const ENDLESS: &str = "endless";
    /// Plain virtual addresses in many operations, over and over, until the lab has enough.
    pub const STREAM: &str = "stream";
    /// The kernel takes its PASIDs from a host that other guests use at the same time (as [`VCMD`]).
    pub const TENANT: &str = "tenant";

    /// Memory that no processor has touched: source, destination, completion record, descriptor list.
    pub const LAZY_ANON: &str = "lazy-anon";
    /// A file's pages that are on the disk only, read by the device; others written by it through a shared mapping.
    pub const LAZY_FILE: &str = "lazy-file";
    /// Parent and child of a fork write the pages that they shared, each through the device.
    pub const COW_FORK: &str = "cow-fork";
    /// Permission is taken away and memory unmapped while the device works on it.
    pub const MPROTECT_MUNMAP: &str = "mprotect-munmap";
    /// Pages that the kernel has swapped out.
    pub const SWAP: &str = "swap";
    /// Processes are killed while their page requests are in flight, one of them for lack of memory.
    pub const OOM_KILL: &str = "oom-kill";
    /// Many processes fault at once, on few credits.
    pub const STORM: &str = "storm";
    /// Of the server's faults on purpose: page responses are lost.
    pub const DROP_RESPONSE: &str = "drop-response";
    /// Page responses come late.
    pub const DELAY_RESPONSE: &str = "delay-response";
    /// The page request queue overflows.
    pub const OVERFLOW_QUEUE: &str = "overflow-queue";
    /// The device is slow to answer the invalidation of its translations.
    pub const DELAY_INVALIDATION: &str = "delay-invalidation";
    /// A word that a walk fetches cannot be had.
    pub const FAIL_WALK: &str = "fail-walk";
    /// Page responses reach the device twice.
    pub const ANSWER_TWICE: &str = "answer-twice";

    /// All of them, in the order in which a lab runs them.
    pub const ALL: [&str; 23] = [
        SVA_COPY,
        ISOLATION,
        REBIND,
        ACCESSED_DIRTY,
        IN_FLIGHT,
        STAGE_TWO,
        LAZY_ANON,
        LAZY_FILE,
        COW_FORK,
        MPROTECT_MUNMAP,
        SWAP,
        OOM_KILL,
        STORM,
        DROP_RESPONSE,
        DELAY_RESPONSE,
        OVERFLOW_QUEUE,
        DELAY_INVALIDATION,
        FAIL_WALK,
        ANSWER_TWICE,
        VCMD,
        ENDLESS,
        STREAM,
        TENANT,
    ];
}

/// Names of the points at which the guest waits for the lab, with their arguments.
pub mod sync {
    /// Overwrite the PASID of queue `wq` with `pasid`, which no process is bound to.
    pub const INJECT_UNBOUND_PASID: &str = "inject-unbound-pasid";
    /// Undo [`INJECT_UNBOUND_PASID`]. The argument is `wq`.
    pub const INJECT_RESTORE: &str = "inject-restore";
    /// Drive a shared queue's portal on the server's side; the answer says whether it held.
    pub const SHARED_PORTAL: &str = "shared-portal";
    /// Nothing is open and nothing in flight: sample resources, to compare them later. The argument is `iteration`.
    pub const SAMPLE: &str = "sample";
    /// The same again: the resources must not have grown since [`SAMPLE`]. The argument is `iteration`.
    pub const STEADY: &str = "steady";
    /// Queues are busy with copies, and others with descriptors that wait for pages.
    pub const STORM: &str = "storm";
    /// A part that is repeated is over: answered with "not ok" when it has been repeated enough.
    pub const AGAIN: &str = "again";
    /// A device was just made to use a PASID. The arguments are `pasid`, and `granted`: 1 if the guest was granted it.
    pub const PASID_USED: &str = "pasid-used";
    /// Copies were just made: the host must have walked its second stage for them, and found all in order.
    pub const STAGE_TWO_WALKED: &str = "stage-two-walked";
    /// Take the page of guest physical address `gpa` out of the host's second stage.
    pub const STAGE_TWO_CLEAR: &str = "stage-two-clear";
    /// Accesses to the process's page at `address` were just stopped, writes if `write` is 1: the host must have met its
    /// second stage's faults for them, at the page of guest physical address `gpa`, and no others.
    pub const STAGE_TWO_FAULT: &str = "stage-two-fault";
    /// Undo [`STAGE_TWO_CLEAR`] for the page at `gpa`.
    pub const STAGE_TWO_RESTORE: &str = "stage-two-restore";
    /// PASIDs of another guest are wanted, to try what must not be possible with them.
    pub const STRANGERS: &str = "strangers";
    /// Do something wrong on purpose from now on, and nothing else: the one argument's name says what (a name of the
    /// server's `--inject`), its value how much.
    pub const INJECT: &str = "inject";
    /// Undo every [`INJECT`].
    pub const INJECT_NOTHING: &str = "inject-nothing";
    /// Everything that was submitted is over: no page request may be unanswered, and no PASID parked.
    pub const SETTLED: &str = "settled";
}

/// Names of the amounts in [`FromGuest::Counts`].
pub mod counts {
    /// Descriptors executed; see the crate page.
    pub const DESCRIPTORS: &str = "descriptors";
    /// Bytes moved or examined; see the crate page.
    pub const BYTES: &str = "bytes";
    /// Descriptors that ended early at a page that was not there. Part of `descriptors`.
    pub const PARTIAL_COMPLETIONS: &str = "partial_completions";
    /// Answers to page requests that nobody waited for.
    pub const PAGE_ANSWERS_UNKNOWN: &str = "page_answers_unknown";
    /// Virtual commands that the unit carried out, whatever they ended with.
    pub const VIRTUAL_COMMANDS: &str = "virtual_commands";
    /// Of those, allocations that gave a PASID.
    pub const PASIDS_ALLOCATED: &str = "pasids_allocated";
    /// Of those, allocations that ended with "no PASID available".
    pub const PASIDS_UNAVAILABLE: &str = "pasids_unavailable";
    /// Of those, frees of a PASID that the guest had.
    pub const PASIDS_FREED: &str = "pasids_freed";
    /// Of those, frees of a PASID that the guest did not have.
    pub const PASID_FREES_REFUSED: &str = "pasid_frees_refused";
}

/// Why a line is not a message. The peer's bytes are to blame, except for [`LineError::Encode`].
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LineError {
    /// Longer than [`MAX_LINE`], with its length as far as it was counted.
    #[error("a line of {got} bytes, more than the {MAX_LINE} allowed")]
    TooLong {
        /// Bytes of the line, its newline included.
        got: usize,
    },
    /// Not a JSON object of the expected kind.
    #[error("not a message: {0}")]
    Decode(#[source] serde_json::Error),
    /// The caller's message has no JSON form.
    #[error("message cannot be written: {0}")]
    Encode(#[source] serde_json::Error),
}

/// One message as a line, its newline included.
///
/// # Errors
/// [`LineError::TooLong`] when the line would exceed [`MAX_LINE`].
pub fn encode<T: Serialize>(message: &T) -> Result<String, LineError> {
    let mut line = serde_json::to_string(message).map_err(LineError::Encode)?;
    line.push('\n');
    if line.len() > MAX_LINE {
        return Err(LineError::TooLong { got: line.len() });
    }
    Ok(line)
}

/// The message in one line, with or without its newline.
///
/// # Errors
/// [`LineError::TooLong`] or [`LineError::Decode`].
pub fn decode<T: DeserializeOwned>(line: &[u8]) -> Result<T, LineError> {
    if line.len() > MAX_LINE {
        return Err(LineError::TooLong { got: line.len() });
    }
    serde_json::from_slice(line).map_err(LineError::Decode)
}

#[cfg(test)]
mod tests;
