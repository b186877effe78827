//! What an endpoint says with each access, and what it gets when the access is refused.

use mem::{Access, Iova};

use crate::Pasid;

/// In whose name an access is made.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct AddressSpace {
    /// The PASID of the request; `None` for a request without PASID.
    pub pasid: Option<Pasid>,
    /// Whether privileged mode is requested. Only meaningful with a PASID.
    pub privileged: bool,
}

/// Why an access was refused. The requester's IOMMU has recorded a fault where its rules say so.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum DmaError {
    /// The address is not mapped for this access: a page request could resolve it.
    #[error("page fault at {address}")]
    Page {
        /// First address that is not reachable.
        address: Iova,
        /// The access that was tried.
        access: Access,
    },
    /// The request was refused as a whole (bus: Unsupported Request or Completer Abort).
    #[error("request refused at {address}")]
    Refused {
        /// First address that is not reachable.
        address: Iova,
        /// The access that was tried.
        access: Access,
    },
    /// The device is no longer attached to a VM, or its VM is gone.
    #[error("device is detached")]
    Detached,
}
