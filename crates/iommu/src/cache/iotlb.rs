//! The IOTLB of one channel: what its translations are called there, and what they say.

use mem::{Access, Gpa, Iova};

use super::table::{Entry, Mapping, Table, PAGE_BITS};
use crate::stage_two::Output;
use crate::{AddressSpace, Asid, DomainId, Pasid, Vmid};

/// Sets of an IOTLB.
const SETS: usize = 256;

/// The IOTLB of one channel.
pub(crate) type Iotlb = Table<Cached, SETS>;

/// Under which name a translation is cached. In the IOTLB: the domain (SMMUv3: VMID), the PASID that
/// was used for it, whether the request carried that PASID or had none, and the ASID where there is
/// one. In a device's TLB: what the device knows, so the PASID it asked with and its privilege.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Tag(u64);

impl Tag {
    const VALID: u64 = 1 << 63;
    const HAS_PASID: u64 = 1 << 62;
    const REQUESTED: u64 = 1 << 61;
    const PHYSICAL: u64 = 1 << 60;
    const HAS_ASID: u64 = 1 << 59;
    const GLOBAL: u64 = 1 << 58;
    const PRIVILEGED: u64 = 1 << 57;
    /// No translation's.
    pub(super) const NONE: Self = Self(0);

    /// A translation of a guest physical address, for a request while translation is off. Of no
    /// domain: only the host's stage 2 makes such.
    pub(crate) const fn physical() -> Self {
        Self(Self::VALID | Self::PHYSICAL)
    }

    /// A translation by a table of the device itself, for a request without PASID.
    pub(crate) fn of_device(domain: DomainId) -> Self {
        Self(Self::VALID | u64::from(domain.0))
    }

    /// A translation by the entry of `pasid`; `requested` if the request named it.
    pub(crate) fn of_pasid(domain: DomainId, pasid: Pasid, requested: bool) -> Self {
        let flags = Self::VALID | Self::HAS_PASID | if requested { Self::REQUESTED } else { 0 };
        Self(flags | u64::from(pasid.get()) << 16 | u64::from(domain.0))
    }

    /// A translation of `vmid`'s by the context descriptor of `substream`, which has `asid`;
    /// `requested` if the request named it.
    pub(crate) fn of_substream(vmid: Vmid, asid: Asid, substream: Pasid, requested: bool) -> Self {
        let tag = Self::of_pasid(DomainId(vmid.0), substream, requested);
        Self(tag.0 | Self::HAS_ASID | u64::from(asid.0) << 36)
    }

    /// A translation that is the same in every address space of `vmid`.
    pub(crate) fn of_global(vmid: Vmid) -> Self {
        Self(Self::VALID | Self::GLOBAL | u64::from(vmid.0))
    }

    /// What a device asked for in `space`. Without PASID there are no privileges.
    pub(crate) fn of_space(space: AddressSpace) -> Self {
        let Some(pasid) = space.pasid else { return Self(Self::VALID) };
        let privileged = if space.privileged { Self::PRIVILEGED } else { 0 };
        Self(Self::of_pasid(DomainId(0), pasid, true).0 | privileged)
    }

    pub(crate) fn asid(self) -> Option<Asid> {
        (self.0 & Self::HAS_ASID != 0).then_some(Asid((self.0 >> 36) as u16))
    }

    pub(crate) fn is_global(self) -> bool {
        self.0 & Self::GLOBAL != 0
    }

    /// The domain; zero, which is no guest's, for a translation of none.
    pub(crate) fn domain(self) -> DomainId {
        DomainId(self.0 as u16)
    }

    /// Whether it names a domain.
    pub(super) fn has_domain(self) -> bool {
        self != Self::NONE && self.0 & Self::PHYSICAL == 0
    }

    /// The PASID whose entry was used.
    pub(crate) fn pasid(self) -> Option<Pasid> {
        (self.0 & Self::HAS_PASID != 0).then(|| Pasid::from_field((self.0 >> 16) as u32))
    }

    /// The PASID in the request.
    pub(crate) fn requested(self) -> Option<Pasid> {
        self.pasid().filter(|_| self.0 & Self::REQUESTED != 0)
    }

    /// Where the sets of its address space begin: close domains and PASIDs are spread over all sets.
    pub(super) fn start(self) -> u64 {
        // Fibonacci hashing, by the golden ratio.
        self.0.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 48
    }
}

/// By which stages a translation was made.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    StageOne,
    StageTwo,
    Nested,
}

/// What a cached translation may be used for without another walk: the tables permit it, and
/// the accessed and dirty bits that it needs are set.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Allowed(u8);

impl Allowed {
    /// Everything.
    pub(crate) const ALL: Self = Self(0b1111);

    const fn bit(access: Access, privileged: bool) -> u8 {
        let write = matches!(access, Access::Write);
        1 << ((privileged as u8) << 1 | write as u8)
    }

    pub(crate) fn with(self, access: Access, privileged: bool, allowed: bool) -> Self {
        let bit = Self::bit(access, privileged);
        Self(if allowed { self.0 | bit } else { self.0 & !bit })
    }

    pub(crate) fn contains(self, access: Access, privileged: bool) -> bool {
        self.0 & Self::bit(access, privileged) != 0
    }

    pub(crate) fn and(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }
}

/// A translation of the page at one address, to an `A`: to a [`Gpa`] as the guest's tables have it,
/// to a [`Output`] once it may be cached.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Cached<A = Output> {
    /// Address of the mapping's first byte.
    pub(crate) base: A,
    /// log2 of the mapping's size: of the smallest one of those that it is made of.
    pub(crate) size_bits: u8,
    /// log2 of the size of the mapping by which invalidations find this: the first stage's in a
    /// nested translation.
    pub(crate) scope_bits: u8,
    pub(crate) kind: Kind,
    pub(crate) allowed: Allowed,
}

/// What a translation leads to.
pub(crate) trait Base: Copy {
    /// The address `offset` bytes into the mapping that this is the first byte of.
    fn inside(self, offset: u64) -> Self;
}

impl Base for Gpa {
    fn inside(self, offset: u64) -> Self {
        Self(self.0 | offset)
    }
}

impl Base for Output {
    fn inside(self, offset: u64) -> Self {
        Self(self.0 | offset)
    }
}

impl<A: Base> Cached<A> {
    /// The address for `iova`, which lies in the mapping, and the number of bytes from there to
    /// the mapping's end, less one.
    pub(crate) fn translate(&self, iova: Iova) -> (A, u64) {
        let mask = (1u64 << self.size_bits) - 1;
        (self.base.inside(iova.0 & mask), mask - (iova.0 & mask))
    }

    /// The same with another base.
    pub(crate) fn at<B>(self, base: B) -> Cached<B> {
        let Self { base: _, size_bits, scope_bits, kind, allowed } = self;
        Cached { base, size_bits, scope_bits, kind, allowed }
    }
}

impl Mapping for Cached {
    const NONE: Self = Self {
        base: Output(0),
        size_bits: PAGE_BITS as u8,
        scope_bits: PAGE_BITS as u8,
        kind: Kind::StageOne,
        allowed: Allowed(0),
    };

    fn scope_bits(&self) -> u8 {
        self.scope_bits
    }
}

impl Entry<Cached> {
    pub(crate) fn kind(&self) -> Kind {
        self.mapping().kind
    }
}

impl Iotlb {
    /// The domain of each translation.
    pub(crate) fn domains(&self) -> impl Iterator<Item = DomainId> + '_ {
        self.tags().filter(|tag| tag.has_domain()).map(Tag::domain)
    }
}
