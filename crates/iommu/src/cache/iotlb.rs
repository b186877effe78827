//! The IOTLB of one channel: a set-associative table of translations.
//!
//! An entry is keyed by the 4 KiB page that was asked for, whatever the size of the mapping, so
//! a lookup is one probe of one set. It remembers how large the mapping really is: for the length
//! of a window, and so that the invalidation of any page of a large mapping forgets all that was
//! derived from it.

use alloc::boxed::Box;
use alloc::vec;

use mem::{Access, Gpa, Iova, Range};

use crate::stage_two::Output;
use crate::{Asid, DomainId, Pasid, Vmid};

/// Sets of an IOTLB; a power of two.
const SETS: usize = 256;
/// Entries of a set.
const WAYS: usize = 4;
/// Translations that a channel caches at most.
#[cfg(all(test, not(loom)))]
pub(crate) const CAPACITY: usize = SETS * WAYS;

const PAGE_BITS: u32 = 12;

/// Under which name a translation is cached: the domain (SMMUv3: VMID), the PASID that was used for
/// it, whether the request carried that PASID or had none, and the ASID where there is one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Tag(u64);

impl Tag {
    const VALID: u64 = 1 << 63;
    const HAS_PASID: u64 = 1 << 62;
    const REQUESTED: u64 = 1 << 61;
    const PHYSICAL: u64 = 1 << 60;
    const HAS_ASID: u64 = 1 << 59;
    const GLOBAL: u64 = 1 << 58;
    const NONE: Self = Self(0);

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
    fn has_domain(self) -> bool {
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

#[derive(Clone, Copy, Debug)]
pub(crate) struct Entry {
    tag: Tag,
    /// Number of the 4 KiB page that was asked for.
    page: u64,
    cached: Cached,
}

impl Entry {
    const EMPTY: Self = Self {
        tag: Tag::NONE,
        page: 0,
        cached: Cached {
            base: Output(0),
            size_bits: PAGE_BITS as u8,
            scope_bits: PAGE_BITS as u8,
            kind: Kind::StageOne,
            allowed: Allowed(0),
        },
    };

    pub(crate) fn tag(&self) -> Tag {
        self.tag
    }

    pub(crate) fn kind(&self) -> Kind {
        self.cached.kind
    }

    /// Whether the mapping that this was derived from has an address in `range`.
    pub(crate) fn overlaps(&self, range: &Range<Iova>) -> bool {
        let mask = (1u64 << self.cached.scope_bits) - 1;
        let start = (self.page << PAGE_BITS) & !mask;
        Range { start: Iova(start), last: Iova(start | mask) }.overlaps(range)
    }
}

/// A set-associative table of translations, of fixed size.
#[derive(Debug)]
pub(crate) struct Iotlb {
    /// Empty if closed.
    sets: Box<[[Entry; WAYS]]>,
    len: usize,
    /// Way that is replaced next in a full set.
    victim: u8,
    #[cfg(feature = "sabotage")]
    leaked: alloc::vec::Vec<Entry>,
}

impl Iotlb {
    pub(crate) fn new() -> Self {
        Self { sets: vec![[Entry::EMPTY; WAYS]; SETS].into_boxed_slice(), ..Self::closed() }
    }

    /// A table that never holds anything.
    pub(crate) fn closed() -> Self {
        Self {
            sets: Box::default(),
            len: 0,
            victim: 0,
            #[cfg(feature = "sabotage")]
            leaked: alloc::vec::Vec::new(),
        }
    }

    /// Number of translations that it holds.
    pub(crate) fn len(&self) -> usize {
        #[cfg(feature = "sabotage")]
        return self.len + self.leaked.len();
        #[cfg(not(feature = "sabotage"))]
        self.len
    }

    /// The domain of each translation.
    pub(crate) fn domains(&self) -> impl Iterator<Item = DomainId> + '_ {
        let entries = self.sets.as_flattened().iter();
        entries.filter(|entry| entry.tag.has_domain()).map(|entry| entry.tag.domain())
    }

    /// The translation of the page of `iova` under `tag`.
    pub(crate) fn get(&self, tag: Tag, iova: Iova) -> Option<&Cached> {
        let page = iova.0 >> PAGE_BITS;
        let set = self.sets.get(index(tag, page))?;
        set.iter().find(|entry| entry.tag == tag && entry.page == page).map(|entry| &entry.cached)
    }

    /// Remembers a translation of the page of `iova`, in place of an older one.
    pub(crate) fn insert(&mut self, tag: Tag, iova: Iova, cached: Cached) {
        let page = iova.0 >> PAGE_BITS;
        let Some(set) = self.sets.get_mut(index(tag, page)) else { return };
        let same = set.iter().position(|entry| entry.tag == tag && entry.page == page);
        let free = || set.iter().position(|entry| entry.tag == Tag::NONE);
        let way = same.or_else(free).unwrap_or_else(|| {
            self.victim = (self.victim + 1) % WAYS as u8;
            usize::from(self.victim)
        });
        if set[way].tag == Tag::NONE {
            self.len += 1;
        }
        set[way] = Entry { tag, page, cached };
    }

    /// Forgets every translation that `keep` does not want.
    pub(crate) fn retain(&mut self, mut keep: impl FnMut(&Entry) -> bool) {
        if self.len == 0 {
            return;
        }
        for entry in self.sets.as_flattened_mut() {
            if entry.tag != Tag::NONE && !keep(entry) {
                #[cfg(feature = "sabotage")]
                if crate::sabotage::is(crate::sabotage::Sabotage::LeakCache) {
                    self.leaked.push(*entry);
                }
                *entry = Entry::EMPTY;
                self.len -= 1;
            }
        }
    }

    pub(crate) fn clear(&mut self) {
        self.retain(|_| false);
    }
}

/// Neighbouring pages go to neighbouring sets; address spaces start at different ones.
fn index(tag: Tag, page: u64) -> usize {
    // Fibonacci hashing: the golden ratio spreads close domains and PASIDs over all sets.
    let start = tag.0.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 48;
    (page.wrapping_add(start) as usize) % SETS
}
