//! Faults and page requests as whoever runs a VM reads them, whatever its guest takes.

use pci::RequesterId;

use crate::{Answerer, Fault, HostPasid, PageRequest, PageResponse, Pasid};

/// Something that happened to the requests of a device.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FaultEvent {
    /// A fault that no page request resolves, also of the host's own stage 2.
    Unrecoverable(Fault),
    /// The device asked for a page.
    PageRequest(PageRequest),
    /// A group of the device was answered.
    PageResponse {
        /// The answer.
        response: PageResponse,
        /// Who gave it.
        by: Answerer,
    },
}

impl FaultEvent {
    /// The device.
    pub const fn requester(&self) -> RequesterId {
        match self {
            Self::Unrecoverable(fault) => fault.requester,
            Self::PageRequest(request) => request.requester,
            Self::PageResponse { response, .. } => response.requester,
        }
    }

    /// The PASID, as the guest numbers it.
    pub const fn pasid(&self) -> Option<Pasid> {
        match self {
            Self::Unrecoverable(fault) => fault.pasid,
            Self::PageRequest(request) => request.pasid,
            Self::PageResponse { response, .. } => response.pasid,
        }
    }
}

/// An event of one device.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FaultRecord {
    /// What happened.
    pub event: FaultEvent,
    /// The host's number of its PASID, if that was granted then.
    pub host_pasid: Option<HostPasid>,
    /// Events of this device that were lost between the one before and this.
    pub lost: u64,
}
