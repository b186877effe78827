//! Page requests and their answers (PCI Express, page request interface; VT-d 7.4 to 7.6): what a
//! device says when a translation is not there yet, and what it hears.
//!
//! ```text
//!   device ── PageRequest ──► host: one record per group ──► IOMMU model ──► guest's queue
//!   device ◄─ PageResponse ── host: at most one per group ◄─ IOMMU model ◄── guest's answer
//! ```
//!
//! A device that was told Success asks for the translation again.

mod host;

pub use host::{
    Answerer, OutstandingGroup, PageRequestCounters, PageRequestPolicy, ResponseInjection,
    TakenGroups, PAGE_REQUEST_LIMIT, PAGE_REQUEST_TIMEOUT,
};
use mem::Iova;
use pci::RequesterId;

use crate::{Pasid, Ticket};

mod interface;

pub use interface::{Answered, PageRequestInterface, PageRequestRefused, WantedPage};

/// Index of a page request group of a device: nine bits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct PrgIndex(u16);

impl PrgIndex {
    /// How many there are.
    pub const COUNT: u16 = 1 << 9;

    /// The index with this number; `None` if it has more than nine bits.
    pub const fn new(number: u16) -> Option<Self> {
        if number < Self::COUNT {
            Some(Self(number))
        } else {
            None
        }
    }

    /// The index in the low nine bits of a field.
    pub const fn from_field(bits: u64) -> Self {
        Self((bits & (Self::COUNT as u64 - 1)) as u16)
    }

    /// Its number.
    pub const fn get(self) -> u16 {
        self.0
    }
}

/// A page request message of a device.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PageRequest {
    /// Who asks.
    pub requester: RequesterId,
    /// In which address space, as the guest numbers it.
    pub pasid: Option<Pasid>,
    /// Whether privileged mode is requested.
    pub privileged: bool,
    /// Whether execute permission is wanted.
    pub execute: bool,
    /// Whether read permission is wanted.
    pub read: bool,
    /// Whether write permission is wanted.
    pub write: bool,
    /// The page: the low 12 bits are zero.
    pub address: Iova,
    /// The group it belongs to.
    pub group: PrgIndex,
    /// Whether it is the last of its group: the one that is answered.
    pub last: bool,
    /// What the device wants back with the answer, if its interface has such a thing (VT-d: private
    /// data).
    pub private_data: Option<[u64; 2]>,
}

impl PageRequest {
    /// A stop marker: the device will ask nothing more for `pasid` that it has not asked already.
    /// Not answered.
    pub const fn stop_marker(requester: RequesterId, pasid: Pasid) -> Self {
        Self {
            requester,
            pasid: Some(pasid),
            privileged: false,
            execute: false,
            read: false,
            write: false,
            address: Iova(0),
            group: PrgIndex(0),
            last: true,
            private_data: None,
        }
    }

    /// Whether it is a stop marker: last of its group, and asks for nothing.
    pub const fn is_stop_marker(&self) -> bool {
        self.last && !self.read && !self.write && !self.execute && self.pasid.is_some()
    }

    /// Whether somebody has to answer it.
    pub const fn wants_response(&self) -> bool {
        self.last && !self.is_stop_marker()
    }
}

/// What became of the pages of a group.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum ResponseCode {
    /// Try again.
    Success,
    /// A page cannot be had: one does not exist, or not for this access.
    Invalid,
    /// The interface is broken: the device's status says so and it asks nothing more until it is
    /// enabled again.
    Failure,
}

/// The answer to a page request group.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PageResponse {
    /// Who asked.
    pub requester: RequesterId,
    /// In which address space, as the guest numbers it.
    pub pasid: Option<Pasid>,
    /// Which group.
    pub group: PrgIndex,
    /// The answer.
    pub code: ResponseCode,
}

/// Why an answer reached nobody; nothing has changed then.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum PageResponseError {
    /// No group with this index is unanswered: there never was one, it is answered already, or its
    /// device was reset, detached or answered in the guest's place.
    #[error("device {requester} has no unanswered group {}", group.get())]
    NotOutstanding {
        /// The device.
        requester: RequesterId,
        /// The group.
        group: PrgIndex,
    },
    /// The group was asked for with another PASID.
    #[error("group {} of device {requester} is of another PASID", group.get())]
    WrongPasid {
        /// The device.
        requester: RequesterId,
        /// The group.
        group: PrgIndex,
    },
    /// The host has no page requests.
    #[error("the host has no page requests")]
    NotSupported,
}

/// A page request of something that is attached through a table with a fault queue
/// (`iommu_hwpt_pgfault`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PageFault {
    /// Names the group in the answer; the same for all of its requests.
    pub cookie: u32,
    /// The request.
    pub request: PageRequest,
}

/// The device's end: hears the answers to its groups.
///
/// Called from whoever answers, with no lock of the host held. It must not block.
pub trait PageResponses: Send + Sync {
    /// An answer, or an unexpected one: the device knows which groups it waits for.
    fn respond(&self, response: PageResponse);
}

/// A device that has not answered an invalidation of its device TLB.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Unanswered {
    /// The device.
    pub requester: RequesterId,
    /// Up to which point of the VM's sequence nothing is owed.
    pub ticket: Ticket,
}
