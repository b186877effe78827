//! What is to be forgotten, and how one learns that it is.

use mem::{Iova, Range};
use pci::RequesterId;

use crate::{DomainId, Pasid};

/// Pages to forget.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PageRange {
    /// The addresses, whole pages.
    pub range: Range<Iova>,
    /// Whether only leaf entries changed (VT-d: IH). A hint: there are no caches of other entries
    /// that it could spare.
    pub leaf_only: bool,
}

/// A scope of cached state to forget.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Invalidation {
    /// Device contexts of all devices.
    ContextAll,
    /// Device contexts tagged with a domain.
    ContextDomain(DomainId),
    /// The context of the devices whose requester id equals `requester` in all bits but `ignore`.
    ContextDevice {
        /// The requester.
        requester: RequesterId,
        /// Bits of the requester id that do not count (VT-d: function mask).
        ignore: u16,
    },
    /// PASID-table entries of all devices and domains.
    PasidCacheAll,
    /// PASID-table entries of a domain.
    PasidCacheDomain(DomainId),
    /// The PASID-table entry of one PASID in a domain.
    PasidCache {
        /// The domain.
        domain: DomainId,
        /// The PASID.
        pasid: Pasid,
    },
    /// All translations.
    IotlbAll,
    /// All translations of a domain.
    IotlbDomain(DomainId),
    /// Translations of pages in a domain, with and without PASID, by stage 2 alone; and all that
    /// were made through a stage 1 in that domain, since the pages are inputs of stage 2 (VT-d
    /// 6.5.2.3).
    IotlbDomainPages {
        /// The domain.
        domain: DomainId,
        /// The pages.
        pages: PageRange,
    },
    /// All translations of a PASID in a domain.
    IotlbPasid {
        /// The domain.
        domain: DomainId,
        /// The PASID.
        pasid: Pasid,
    },
    /// Translations of pages of a PASID in a domain.
    IotlbPasidPages {
        /// The domain.
        domain: DomainId,
        /// The PASID.
        pasid: Pasid,
        /// The pages.
        pages: PageRange,
    },
    /// What a device's own TLB (ATC) holds for requests without PASID.
    DeviceTlb {
        /// The device.
        requester: RequesterId,
        /// The addresses.
        range: Range<Iova>,
    },
    /// What a device's own TLB (ATC) holds for a PASID, or (`None`) for all of its PASIDs.
    DeviceTlbPasid {
        /// The device.
        requester: RequesterId,
        /// The PASID; `None` for all (VT-d: global).
        pasid: Option<Pasid>,
        /// The addresses.
        range: Range<Iova>,
    },
}

impl Invalidation {
    /// Whether channels of `requester` may hold something that this covers.
    pub(crate) fn concerns(&self, requester: RequesterId) -> bool {
        match *self {
            Self::ContextDevice { requester: of, ignore } => {
                (of.bits() ^ requester.bits()) & !ignore == 0
            }
            Self::DeviceTlb { requester: of, .. } | Self::DeviceTlbPasid { requester: of, .. } => {
                of == requester
            }
            _ => true,
        }
    }
}

/// Names a point in a VM's sequence of invalidations: once [`crate::Vm::is_complete`] says so,
/// nothing that was cached before is in use, accesses in flight included.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
#[must_use = "an invalidation is over only when its ticket is complete"]
pub struct Ticket(pub(crate) u64);

impl Ticket {
    /// The point with this number in a VM's own sequence: for implementations of [`crate::Vm`].
    pub const fn new(sequence: u64) -> Self {
        Self(sequence)
    }

    /// The number of the point, for who passes it on: grants nothing, and means nothing to
    /// another VM.
    pub const fn sequence(self) -> u64 {
        self.0
    }
}
