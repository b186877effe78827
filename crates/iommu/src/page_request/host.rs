//! The host's end of page requests: what it allows, who answered, what it counts.

use core::time::Duration;

use pci::RequesterId;

use crate::{FaultQueueId, Pasid, PrgIndex};

/// Requests of one device that a host keeps at most, whatever its policy: twice as many as a device
/// has group indices.
pub const PAGE_REQUEST_LIMIT: u32 = 1024;

/// How long a group may go unanswered, by default. Longer than a guest takes that reads a page back
/// from a slow disk; far less than an operator waits before he gives a device up.
pub const PAGE_REQUEST_TIMEOUT: Duration = Duration::from_secs(30);

/// What a VM's devices may ask for, and how long its guest may take to answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PageRequestPolicy {
    /// Requests of groups that are not answered, of one device, at most; no more than
    /// [`PAGE_REQUEST_LIMIT`] in any case.
    ///
    /// A request beyond it is dropped; if it is the last of its group, the device is answered
    /// Success at once, so that it tries again, as IOMMUs do whose page request queue is full
    /// (Linux, which answers Failure when it is out of memory, has the device ask nothing any
    /// more).
    pub per_device: u32,
    /// After this time a group is answered in the guest's place, with Invalid: the page cannot be
    /// had, and whoever asked fails; the device may ask for others. `None`: never.
    ///
    /// Nothing is answered before it has passed; how soon after is a matter of when
    /// [`Vm::tick`](crate::Vm::tick) is called.
    pub timeout: Option<Duration>,
    /// What becomes of groups that were taken when what they came through goes.
    pub taken: TakenGroups,
}

impl Default for PageRequestPolicy {
    fn default() -> Self {
        Self {
            per_device: PAGE_REQUEST_LIMIT,
            timeout: Some(PAGE_REQUEST_TIMEOUT),
            taken: TakenGroups::default(),
        }
    }
}

/// What becomes of a group that was taken ([`Vm::take_page_fault`](crate::Vm::take_page_fault),
/// [`Vm::take_page_request`](crate::Vm::take_page_request)) and is not answered, when what it came
/// through is detached or replaced, or its PASID given back.
///
/// One that was not taken is answered Invalid then, and never handed out. The end of the fault
/// queue, of all PASIDs of the VM and of the VM itself answers everything with Invalid.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum TakenGroups {
    /// It stays its taker's to answer, until the time-out. What hardware does: the device goes on
    /// only when the guest, which has seen the request, has answered it. The host's PASID is held until then
    /// (invariant 1).
    ///
    /// Linux depends on it: 7.3 counts its page faults wrong when a device is done with a process
    /// before Linux has answered for it (`docs/adr/0007-taken-groups.md`).
    #[default]
    Stay,
    /// The host answers it with Invalid at once, as Linux's iommufd does; an answer that comes later
    /// is refused.
    Withdrawn,
}

/// Who answered a group.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Answerer {
    /// The guest, or the VMM for it.
    Guest,
    /// The host at once: nothing with a fault queue is attached for the PASID.
    NoQueue,
    /// The host at once: the device had as many out as the policy allows.
    Limit,
    /// The host: what the request came through was detached or replaced, the PASID given back
    /// ([`TakenGroups`] says which groups that concerns), or the VM closed.
    Teardown,
    /// The host: nobody else did in time.
    Timeout,
}

/// Counts of the page requests of one VM.
///
/// Of the groups, each is answered by one of those here, forgotten, or outstanding.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct PageRequestCounters {
    /// Requests received, stop markers included.
    pub requests: u64,
    /// Groups of which the last request was received.
    pub groups: u64,
    /// Groups that the guest, or the VMM for it, answered.
    pub answered: u64,
    /// Groups answered Invalid at once: nothing with a fault queue is attached for the PASID.
    pub no_queue: u64,
    /// Groups answered Success at once, because of the limit.
    pub refused: u64,
    /// Groups answered Invalid because what they came through ended.
    pub withdrawn: u64,
    /// Groups answered Invalid because nobody did in time.
    pub timed_out: u64,
    /// Groups whose device gave them up (it was reset, or detached).
    pub forgotten: u64,
    /// Requests of a group that was whole already, which no device may send: dropped. The answer to
    /// the group is theirs, too.
    pub malformed: u64,
    /// Requests dropped because of the limit, the last ones of groups included.
    pub dropped: u64,
    /// Answers that reached nobody: late, twice, of an unknown group, with the wrong PASID.
    pub late_answers: u64,
    /// Groups that are not answered now.
    pub outstanding: u64,
}

/// A group that is not answered.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct OutstandingGroup {
    /// Who asked.
    pub requester: RequesterId,
    /// In which address space, as the guest numbers it.
    pub pasid: Option<Pasid>,
    /// Which group.
    pub group: PrgIndex,
    /// The fault queue that it went to; `None` for the IOMMU model.
    pub queue: Option<FaultQueueId>,
    /// For how long it had been known at the last [`Vm::tick`](crate::Vm::tick); `None` if it came
    /// later.
    pub age: Option<Duration>,
}

/// What goes wrong on purpose with answers of the guest; for tests of guests and devices
/// ([`SoftwareVm::inject_responses`](crate::SoftwareVm::inject_responses)).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ResponseInjection {
    /// Every so many-th answer is lost: who gave it is told that it arrived, the group stays
    /// unanswered. Zero is as one: all of them.
    Drop {
        /// One in how many.
        one_in: u32,
    },
    /// Each answer reaches its device that much later, at the [`Vm::tick`](crate::Vm::tick) after.
    Delay(Duration),
    /// Each answer reaches its device twice: the second one is unexpected.
    Twice,
}
