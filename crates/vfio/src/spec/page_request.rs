//! Page requests and their answers: as posted for Linux 5.x (`struct iommu_fault`), as iommufd has
//! them, and what neither says.

use core::ops::Range;

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::{ObjectFailure, PageResponse};
use crate::argument::Argument;
use crate::counters;

/// Values of these structures' fields.
pub(super) mod flags {
    /// [`PageRequestFault::kind`](super::PageRequestFault): a page request. Zero: none.
    pub const FAULT_PAGE_REQUEST: u32 = 2;
    /// [`PageRequestFault::flags`](super::PageRequestFault), [`HwptPageFault::flags`](super::HwptPageFault):
    /// `pasid` counts.
    pub const PAGE_REQUEST_PASID_VALID: u32 = 1;
    /// The same: the last of its group, which is answered.
    pub const PAGE_REQUEST_LAST: u32 = 2;
    /// [`PageRequestFault::flags`](super::PageRequestFault): `private_data` counts.
    pub const PAGE_REQUEST_PRIVATE_DATA: u32 = 4;
    /// [`PageRequestFault::flags`](super::PageRequestFault): the answer has to name the PASID.
    pub const PAGE_REQUEST_RESPONSE_NEEDS_PASID: u32 = 8;
    /// `permission`: execute permission is wanted.
    pub const PERMISSION_EXECUTE: u32 = 4;

    /// [`ReadPageFault::present`](super::ReadPageFault): there was one.
    pub const PAGE_FAULT_PRESENT: u32 = 1;
    /// [`ReadPageFault::present`](super::ReadPageFault): `private_data` counts.
    pub const PAGE_FAULT_PRIVATE_DATA: u32 = 2;

    /// [`RespondPageRequest::failure`](super::RespondPageRequest): no such group is unanswered.
    pub const RESPONSE_NOT_OUTSTANDING: u32 = 1;
    /// [`RespondPageRequest::failure`](super::RespondPageRequest): it is of another PASID.
    pub const RESPONSE_WRONG_PASID: u32 = 2;
    /// [`RespondPageRequest::failure`](super::RespondPageRequest): the host has no page requests.
    pub const RESPONSE_NOT_SUPPORTED: u32 = 3;
}

/// `struct iommu_fault` of a page request, and its 16 bytes of padding.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct PageRequestFault {
    /// [`FAULT_PAGE_REQUEST`](flags::FAULT_PAGE_REQUEST).
    pub kind: u32,
    /// Zero.
    pub padding: u32,
    /// `PAGE_REQUEST_` bits.
    pub flags: u32,
    /// The PASID.
    pub pasid: u32,
    /// The group.
    pub grpid: u32,
    /// `PERMISSION_` bits: what is wanted.
    pub permission: u32,
    /// The page.
    pub address: u64,
    /// What the device wants back.
    pub private_data: [u64; 2],
    /// Zero.
    pub padding_to_64: [u8; 16],
}

/// `struct iommu_hwpt_pgfault`.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct HwptPageFault {
    /// [`PAGE_REQUEST_PASID_VALID`](flags::PAGE_REQUEST_PASID_VALID) and
    /// [`PAGE_REQUEST_LAST`](flags::PAGE_REQUEST_LAST).
    pub flags: u32,
    /// The device: its requester id.
    pub dev_id: u32,
    /// The PASID.
    pub pasid: u32,
    /// The group.
    pub grpid: u32,
    /// `PERMISSION_` bits: what is wanted.
    pub permission: u32,
    /// Zero.
    pub reserved: u32,
    /// The page.
    pub address: u64,
    /// A hint of how many bytes; zero, none.
    pub length: u32,
    /// Names the group in the answer.
    pub cookie: u32,
}

/// `struct iommu_hwpt_page_response`.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct HwptPageResponse {
    /// The group's, from [`HwptPageFault`].
    pub cookie: u32,
    /// 0 or 1 in iommufd: success, invalid. 2 is failure, and only in [`RespondPageFault`].
    pub code: u32,
}

/// Takes the oldest page request of devices that the guest's own tables translate. All of it is
/// *out*, but for the first two words.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct ReadPageRequest {
    /// Bytes of the structure.
    pub argsz: u32,
    /// None is known.
    pub flags: u32,
    /// The request; all zero if there is none.
    pub request: PageRequestFault,
    /// Who asked.
    pub requester: u16,
    /// Zero.
    pub reserved: [u8; 6],
}

impl Argument for ReadPageRequest {}

/// Answers a page request group of a device that the guest's own tables translate.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct RespondPageRequest {
    /// Bytes of the structure.
    pub argsz: u32,
    /// None is known.
    pub flags: u32,
    /// The answer.
    pub response: PageResponse,
    /// Who asked.
    pub requester: u16,
    /// Zero.
    pub reserved: u16,
    /// *out*: why it reached nobody, a `RESPONSE_` value; zero if it did.
    pub failure: u32,
}

impl Argument for RespondPageRequest {
    const RESERVED: [Range<usize>; 2] = [34..36, 0..0];
}

/// Takes the oldest page request of a fault queue: ours, beside the queue's own file.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct ReadPageFault {
    /// Bytes of the structure.
    pub argsz: u32,
    /// None is known.
    pub flags: u32,
    /// The queue.
    pub queue: u32,
    /// *out*: `PAGE_FAULT_` bits.
    pub present: u32,
    /// *out*: the request, as iommufd has it.
    pub fault: HwptPageFault,
    /// *out*: what the device wants back, which iommufd does not say.
    pub private_data: [u64; 2],
    /// *out*.
    pub failure: ObjectFailure,
}

impl Argument for ReadPageFault {
    const NEEDED: usize = 12;
}

/// Answers a page request group of a fault queue: ours, beside the queue's own file, and with all
/// of the answers that there are.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct RespondPageFault {
    /// Bytes of the structure.
    pub argsz: u32,
    /// None is known.
    pub flags: u32,
    /// The queue.
    pub queue: u32,
    /// Zero.
    pub reserved: u32,
    /// The answer.
    pub response: HwptPageResponse,
    /// *out*.
    pub failure: ObjectFailure,
}

impl Argument for RespondPageFault {
    const NEEDED: usize = 24;
    const RESERVED: [Range<usize>; 2] = [12..16, 0..0];
}

/// Asks which device keeps a ticket from being complete.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct UnansweredArgument {
    /// Bytes of the structure.
    pub argsz: u32,
    /// None is known.
    pub flags: u32,
    /// The ticket.
    pub ticket: u64,
    /// *out*: up to which ticket that device owes nothing.
    pub up_to: u64,
    /// *out*: the device.
    pub requester: u16,
    /// Zero.
    pub reserved: u16,
    /// *out*: 1 if there is one.
    pub present: u32,
}

impl Argument for UnansweredArgument {
    const RESERVED: [Range<usize>; 2] = [26..28, 0..0];
}

/// Gives up what devices have not answered; see [`iommu::Vm::give_up_answers`].
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct GiveUpAnswersArgument {
    /// Bytes of the structure.
    pub argsz: u32,
    /// None is known.
    pub flags: u32,
    /// The last ticket of what is given up.
    pub up_to: u64,
}

impl Argument for GiveUpAnswersArgument {}

/// Says what time it is; see [`iommu::Vm::tick`].
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct TickArgument {
    /// Bytes of the structure.
    pub argsz: u32,
    /// None is known.
    pub flags: u32,
    /// Seconds on the caller's clock.
    pub seconds: u64,
    /// *out*: seconds of when to call again.
    pub next_seconds: u64,
    /// And nanoseconds, less than a second's.
    pub nanoseconds: u32,
    /// *out*: and nanoseconds of when to call again.
    pub next_nanoseconds: u32,
    /// *out*: 1 if there is such a time.
    pub present: u32,
    /// Zero.
    pub reserved: u32,
}

impl Argument for TickArgument {
    const RESERVED: [Range<usize>; 2] = [36..40, 0..0];
}

/// Reads the counters of [`iommu::PageRequestCounters`]. All of it is *out*, but for the first two
/// words; a caller that knows fewer counters gives a smaller `argsz`.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct PageRequestCountersArgument {
    /// Bytes of the structure.
    pub argsz: u32,
    /// None is known.
    pub flags: u32,
    /// Requests received; groups received, answered for the guest, answered at once for want of a
    /// queue, answered at once because of the limit, withdrawn, answered too late, given up by
    /// their device; requests that were malformed, requests dropped; answers that reached nobody;
    /// groups unanswered now.
    pub counts: [u64; counters::page_requests::COUNTS],
}

impl Argument for PageRequestCountersArgument {
    const NEEDED: usize = 8;
}
