//! Addresses of different spaces are different types, and ranges are closed.

use core::fmt;

macro_rules! address {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        #[repr(transparent)]
        pub struct $name(pub u64);

        impl $name {
            /// This address plus `bytes`, or `None` past the end of the 64-bit space.
            pub const fn checked_add(self, bytes: u64) -> Option<Self> {
                match self.0.checked_add(bytes) {
                    Some(sum) => Some(Self(sum)),
                    None => None,
                }
            }

            /// This address rounded down to a multiple of `1 << bits`.
            pub const fn align_down(self, bits: u32) -> Self {
                Self(self.0 & !((1u64 << bits) - 1))
            }

            /// Whether this address is a multiple of `1 << bits`.
            pub const fn is_aligned(self, bits: u32) -> bool {
                self.0 & ((1u64 << bits) - 1) == 0
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({:#x})"), self.0)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:#x}", self.0)
            }
        }
    };
}

address! {
    /// A guest physical address: what a guest's own page tables and registers hold.
    Gpa
}
address! {
    /// An address as a device puts it on the bus, before any translation.
    Iova
}
address! {
    /// An address in the host's own memory.
    HostAddr
}

/// A closed range of addresses: `start` and `last` both belong to it, so a range may end at the
/// very top of its space.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Range<A> {
    /// First address of the range.
    pub start: A,
    /// Last address of the range, never below `start`.
    pub last: A,
}

macro_rules! ranges {
    ($($name:ident),*) => {$(
        impl Range<$name> {
            /// The `len` bytes from `start`, or `None` if `len` is zero or the range would wrap.
            pub const fn new(start: $name, len: u64) -> Option<Self> {
                if len == 0 {
                    return None;
                }
                match start.0.checked_add(len - 1) {
                    Some(last) => Some(Self { start, last: $name(last) }),
                    None => None,
                }
            }

            /// Length in bytes less one: the length itself of the whole space does not fit 64 bits.
            pub const fn len_minus_one(&self) -> u64 {
                self.last.0 - self.start.0
            }

            /// Whether `address` lies inside.
            pub const fn contains(&self, address: $name) -> bool {
                self.start.0 <= address.0 && address.0 <= self.last.0
            }

            /// Whether the two ranges share an address.
            pub const fn overlaps(&self, other: &Self) -> bool {
                self.start.0 <= other.last.0 && other.start.0 <= self.last.0
            }
        }
    )*};
}
ranges!(Gpa, Iova, HostAddr);

#[cfg(test)]
mod tests;
