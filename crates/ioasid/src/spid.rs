//! Numbers that a set gives its IDs itself.

use core::fmt;

/// An ID's number in its set: a guest's own PASID. It means nothing outside the set.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(transparent)]
pub struct Spid(pub u32);

impl fmt::Display for Spid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}
