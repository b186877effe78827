//! What is to be forgotten, and how one learns that it is.

use mem::{Gpa, Iova, Range};
use pci::RequesterId;

use crate::{Asid, DomainId, Pasid, Vmid};

/// Pages to forget.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PageRange {
    /// The addresses, whole pages.
    pub range: Range<Iova>,
    /// Whether only leaf entries changed (VT-d: IH). A hint: there are no caches of other entries
    /// that it could spare.
    pub leaf_only: bool,
}

/// All addresses.
pub(crate) const EVERYWHERE: Range<Iova> = Range { start: Iova(0), last: Iova(u64::MAX) };

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
    /// All translations in IOTLBs. What devices have in their own TLBs is not touched by this, nor by
    /// any of the scopes above and of IOTLBs.
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
    /// What an SMMUv3's command covers.
    Smmuv3(SmmuInvalidation),
}

/// A scope of what an SMMUv3 caches, by the command that forgets it (IHI 0070, chapter 4).
///
/// `CMD_ATC_INV` is [`Invalidation::DeviceTlb`] without substream and
/// [`Invalidation::DeviceTlbPasid`] with one, or for all (its G).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SmmuInvalidation {
    /// `CMD_CFGI_ALL`: every stream-table entry and context descriptor.
    ConfigAll,
    /// `CMD_CFGI_STE`, `CMD_CFGI_STE_RANGE`: the stream-table entry, and the context descriptors
    /// that were found by it, of the devices whose requester id equals `requester` in all bits
    /// but `ignore`.
    StreamEntry {
        /// The device.
        requester: RequesterId,
        /// Bits of the requester id that do not count.
        ignore: u16,
    },
    /// `CMD_CFGI_CD`: the context descriptor of a substream.
    Descriptor {
        /// The device.
        requester: RequesterId,
        /// The substream; 0 is also what translates requests without one.
        substream: Pasid,
    },
    /// `CMD_CFGI_CD_ALL`: every context descriptor of a device.
    DescriptorAll {
        /// The device.
        requester: RequesterId,
    },
    /// `CMD_TLBI_NH_ALL`: all that was made through a stage 1 of a guest.
    StageOneAll(Vmid),
    /// `CMD_TLBI_NH_ASID`: what is not global of one address space.
    StageOneAsid {
        /// The guest.
        vmid: Vmid,
        /// Its address space.
        asid: Asid,
    },
    /// `CMD_TLBI_NH_VA`, and without `asid` `CMD_TLBI_NH_VAA`: pages of one address space, global
    /// ones included, or of all.
    StageOnePages {
        /// The guest.
        vmid: Vmid,
        /// Its address space.
        asid: Option<Asid>,
        /// The pages.
        pages: PageRange,
    },
    /// `CMD_TLBI_S12_VMALL`: all translations of a guest.
    Guest(Vmid),
    /// `CMD_TLBI_S2_IPA`: what stage 2 makes of these addresses. What was made through a stage 1,
    /// too, is not told by them, so all of it goes.
    StageTwoPages {
        /// The guest.
        vmid: Vmid,
        /// The intermediate physical addresses.
        range: Range<Gpa>,
    },
    /// `CMD_TLBI_NSNH_ALL`: all translations.
    TlbAll,
}

impl Invalidation {
    /// What a device's own TLB holds of `range` for requests with `pasid`, or for those without any.
    pub(crate) fn of_device_tlb(
        requester: RequesterId,
        pasid: Option<Pasid>,
        range: Range<Iova>,
    ) -> Self {
        match pasid {
            Some(_) => Self::DeviceTlbPasid { requester, pasid, range },
            None => Self::DeviceTlb { requester, range },
        }
    }

    /// The device whose own TLB this is about.
    pub(crate) fn device_tlb(&self) -> Option<RequesterId> {
        match *self {
            Self::DeviceTlb { requester, .. } | Self::DeviceTlbPasid { requester, .. } => {
                Some(requester)
            }
            _ => None,
        }
    }

    /// Whether channels of `requester` may hold something that this covers.
    pub(crate) fn concerns(&self, requester: RequesterId) -> bool {
        match *self {
            Self::ContextDevice { requester: of, ignore } => {
                (of.bits() ^ requester.bits()) & !ignore == 0
            }
            Self::Smmuv3(what) => what.concerns(requester),
            _ => self.device_tlb().is_none_or(|of| of == requester),
        }
    }
}

impl SmmuInvalidation {
    fn concerns(&self, requester: RequesterId) -> bool {
        match *self {
            Self::StreamEntry { requester: of, ignore } => {
                (of.bits() ^ requester.bits()) & !ignore == 0
            }
            Self::Descriptor { requester: of, .. } | Self::DescriptorAll { requester: of } => {
                of == requester
            }
            _ => true,
        }
    }
}

/// Names a point in a VM's sequence of invalidations: once [`crate::Vm::is_complete`] says so,
/// nothing that was cached before is in use, accesses in flight included; and if it is that of
/// an invalidation, or of what a device no longer has attached, every device has answered what it
/// was told to forget of its own TLB, unless that was given up
/// ([`crate::Vm::give_up_answers`]).
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
