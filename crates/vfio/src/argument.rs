//! The one way in for a structure: copied once, checked, and from then on a value.
//!
//! Every structure of the user API begins with its own size as the caller knows it (`argsz`). A
//! caller may know a longer structure than this crate, as long as it does not use what is unknown
//! here; and a shorter one, as long as it has what the call needs.

use core::ops::Range;

use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::Errno;

/// Most bytes of an argument: a page, as the kernel's own copy of extensible structures allows.
pub const MAX_ARGUMENT: usize = 4096;

/// A structure of the user API.
pub(crate) trait Argument: FromBytes + IntoBytes + Immutable + Sized {
    /// Bytes that every caller has to give; what a longer `argsz` leaves out of the rest is zero.
    const NEEDED: usize = size_of::<Self>();
    /// The flags that are known, if the second word holds flags.
    const FLAGS: Option<u32> = Some(0);
    /// Where bytes have to be zero, in up to two places.
    const RESERVED: [Range<usize>; 2] = [0..0, 0..0];
}

/// What is wrong with the bytes of a structure, before anything is made of its values. The
/// caller's mistake.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ArgumentError {
    /// The bytes end before the size that they begin with.
    #[error("{given} bytes of an argument that says it has {claimed}")]
    Truncated {
        /// Bytes that are there.
        given: usize,
        /// Bytes that should be.
        claimed: usize,
    },
    /// `argsz` is less than the call needs.
    #[error("an argument of {argsz} bytes; the call needs {needed}")]
    TooShort {
        /// What was given.
        argsz: u32,
        /// The least.
        needed: usize,
    },
    /// `argsz` is more than any structure has.
    #[error("an argument of {argsz} bytes; at most {MAX_ARGUMENT} are looked at")]
    TooLong {
        /// What was given.
        argsz: u32,
    },
    /// A byte past the end of what is known here is not zero.
    #[error("byte {offset} lies past the known structure and is not zero")]
    UnknownTail {
        /// The first such byte.
        offset: usize,
    },
    /// Flags that are not known.
    #[error("unknown flags {flags:#x}")]
    UnknownFlags {
        /// Only those.
        flags: u32,
    },
    /// What the structure points at is not past it in the argument.
    #[error("{len} bytes at offset {address} are not in the argument")]
    BadAddress {
        /// The offset that was given.
        address: u64,
        /// How many bytes should be there.
        len: u64,
    },
    /// A reserved byte is not zero.
    #[error("reserved byte {offset} is not zero")]
    Reserved {
        /// The first such byte.
        offset: usize,
    },
}

impl ArgumentError {
    /// The number for it.
    pub const fn errno(&self) -> Errno {
        match self {
            Self::Truncated { .. } | Self::BadAddress { .. } => Errno::EFAULT,
            Self::TooLong { .. } | Self::UnknownTail { .. } => Errno::E2BIG,
            Self::TooShort { .. } | Self::UnknownFlags { .. } | Self::Reserved { .. } => {
                Errno::EINVAL
            }
        }
    }
}

/// Copies a structure in. The bytes may change meanwhile, or afterwards: only the copy counts.
pub(crate) fn copy_in<T: Argument>(bytes: &[u8]) -> Result<T, ArgumentError> {
    let given = claimed_bytes(bytes, T::NEEDED)?;
    let mut value: T = copy_known(given)?;
    let copy = value.as_mut_bytes();
    check_flags(copy, T::FLAGS)?;
    let mut reserved = T::RESERVED.into_iter().flatten();
    if let Some(offset) = reserved.find(|&offset| copy[offset] != 0) {
        return Err(ArgumentError::Reserved { offset });
    }
    Ok(value)
}

/// Copies in a structure of which what follows is room for an answer, whatever is there.
pub(crate) fn copy_question<T: Argument>(bytes: &[u8]) -> Result<T, ArgumentError> {
    let given = claimed_bytes(bytes, T::NEEDED)?;
    copy_known(&given[..given.len().min(size_of::<T>())])
}

/// As many of the bytes as they say that they are, which are at least `needed`.
pub(crate) fn claimed_bytes(bytes: &[u8], needed: usize) -> Result<&[u8], ArgumentError> {
    let truncated = |claimed| ArgumentError::Truncated { given: bytes.len(), claimed };
    let argsz = claimed_size(bytes).ok_or(truncated(size_of::<u32>()))?;
    let claimed = argsz as usize;
    if claimed < needed {
        return Err(ArgumentError::TooShort { argsz, needed });
    }
    if claimed > MAX_ARGUMENT {
        return Err(ArgumentError::TooLong { argsz });
    }
    bytes.get(..claimed).ok_or(truncated(claimed))
}

/// Copies a structure that another one points at, of which all that is known has to be there.
pub(crate) fn copy_data<T: FromBytes + IntoBytes>(bytes: &[u8]) -> Result<T, ArgumentError> {
    if bytes.len() < size_of::<T>() {
        let argsz = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        return Err(ArgumentError::TooShort { argsz, needed: size_of::<T>() });
    }
    copy_known(bytes)
}

/// As much of a structure as `given` has, and zeroes; past the structure there may be only zeroes.
fn copy_known<T: FromBytes + IntoBytes>(given: &[u8]) -> Result<T, ArgumentError> {
    let (known, tail) = given.split_at(given.len().min(size_of::<T>()));
    if let Some(at) = tail.iter().position(|&byte| byte != 0) {
        return Err(ArgumentError::UnknownTail { offset: size_of::<T>() + at });
    }
    let mut value = T::new_zeroed();
    value.as_mut_bytes()[..known.len()].copy_from_slice(known);
    Ok(value)
}

/// The bytes that an address in a structure of `size` bytes points at: an offset in the argument
/// that the structure begins, past the structure.
pub(crate) fn pointed_at(
    argument: &[u8],
    size: u32,
    address: u64,
    len: u64,
) -> Result<Range<usize>, ArgumentError> {
    let bad = ArgumentError::BadAddress { address, len };
    let end = address.checked_add(len).ok_or(bad)?;
    if address < u64::from(size) || end > argument.len() as u64 {
        return Err(bad);
    }
    // Both lie within the argument.
    Ok(address as usize..end as usize)
}

/// Copies a structure back over the bytes that it was copied from, as far as the caller knows it.
pub(crate) fn copy_out<T: Argument>(value: &T, bytes: &mut [u8]) {
    let claimed = claimed_size(bytes).unwrap_or(0) as usize;
    for (to, from) in bytes.iter_mut().zip(value.as_bytes()).take(claimed) {
        *to = *from;
    }
}

/// The size that the bytes begin with.
fn claimed_size(bytes: &[u8]) -> Option<u32> {
    u32::read_from_prefix(bytes).ok().map(|(argsz, _)| argsz)
}

fn check_flags(copy: &[u8], known: Option<u32>) -> Result<(), ArgumentError> {
    let Some(known) = known else { return Ok(()) };
    let flags = copy.get(4..).and_then(|rest| u32::read_from_prefix(rest).ok());
    match flags.map_or(0, |(flags, _)| flags & !known) {
        0 => Ok(()),
        flags => Err(ArgumentError::UnknownFlags { flags }),
    }
}

#[cfg(test)]
mod tests;
