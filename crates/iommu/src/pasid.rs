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
