//! Numbers that tag requests and caches.

use core::fmt;

/// A process address space ID: 20 bits by construction. "No PASID" is `Option::None`, never zero.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Pasid(u32);

impl Pasid {
    /// Width of a PASID in bits (PCI Express TLP prefix).
    pub const BITS: u32 = 20;
    /// The largest PASID.
    pub const MAX: Self = Self((1 << Self::BITS) - 1);

    /// The PASID of this number, or `None` if it does not fit 20 bits.
    pub const fn new(number: u32) -> Option<Self> {
        if number <= Self::MAX.0 {
            Some(Self(number))
        } else {
            None
        }
    }

    /// The PASID in the low 20 bits of a field that has exactly that width.
    pub const fn from_field(field: u32) -> Self {
        Self(field & Self::MAX.0)
    }

    /// Its number.
    pub const fn get(self) -> u32 {
        self.0
    }
}

impl fmt::Display for Pasid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

impl fmt::Debug for Pasid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pasid({:#x})", self.0)
    }
}

/// The tag under which translations are cached (VT-d: domain-id; SMMUv3: ASID or VMID).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct DomainId(pub u16);

/// A PASID as the host's space numbers it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct HostPasid(pub Pasid);

/// A PASID as a VM numbers it: what its devices put on the bus and its tables are indexed by.
/// Which host PASID stands behind it, only the VM's own grants say.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct GuestPasid(pub Pasid);

impl fmt::Display for HostPasid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for GuestPasid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// PASIDs from `first` to `last`, both included.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct PasidRange {
    /// The lowest.
    pub first: Pasid,
    /// The highest. A range made by hand with this below `first` holds nothing.
    pub last: Pasid,
}

impl PasidRange {
    /// All that may name an address space: zero is what requests without PASID are usually
    /// translated by, and never handed out.
    pub const ALL: Self = Self { first: Pasid::from_field(1), last: Pasid::MAX };

    /// The range from `first` to `last`, or `None` if `last` is below `first`.
    pub const fn new(first: Pasid, last: Pasid) -> Option<Self> {
        if first.get() <= last.get() {
            Some(Self { first, last })
        } else {
            None
        }
    }

    /// Whether `pasid` lies in it.
    pub fn contains(&self, pasid: Pasid) -> bool {
        self.first <= pasid && pasid <= self.last
    }

    /// What lies in both, or `None` if nothing does.
    pub fn intersection(&self, other: &Self) -> Option<Self> {
        Self::new(self.first.max(other.first), self.last.min(other.last))
    }
}

impl fmt::Display for PasidRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}..={}", self.first, self.last)
    }
}
