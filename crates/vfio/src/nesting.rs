//! The posted structures for a guest's PASID tables as the values of [`iommu::nesting`].
//!
//! Where a structure inside of another has a size of its own, it is read as it was posted: the part
//! that every caller has to give, then as much as the size says and is known. A posted revision
//! does not look at what is beyond that, nor at padding; our own refuses both.

mod cache;
mod config;
mod gpasid;
mod info;
mod response;

use zerocopy::{FromBytes, Immutable, IntoBytes};

pub(crate) use cache::decode_cache;
pub(crate) use config::decode_config;
pub(crate) use gpasid::decode_gpasid;
pub(crate) use info::nesting_info;
pub(crate) use response::decode_response;

use crate::ArgumentError;

/// A structure that begins with its own size, of which `fixed` bytes have to be there.
///
/// The size may be more than the structure has: what follows is passed over, or, if `strict`, has
/// to be zero.
fn copy_sized<T: FromBytes + IntoBytes + Immutable>(
    bytes: &[u8],
    fixed: usize,
    strict: bool,
) -> Result<(T, usize), ArgumentError> {
    let truncated = |claimed| ArgumentError::Truncated { given: bytes.len(), claimed };
    let fixed_part = bytes.get(..fixed).ok_or(truncated(fixed))?;
    let argsz = u32::read_from_prefix(fixed_part).map_or(0, |(argsz, _)| argsz);
    let claimed = argsz as usize;
    if claimed < fixed {
        return Err(ArgumentError::TooShort { argsz, needed: fixed });
    }
    let known = claimed.min(size_of::<T>());
    let given = bytes.get(..known).ok_or(truncated(known))?;
    if strict {
        let all = bytes.get(..claimed).ok_or(truncated(claimed))?;
        if let Some(at) = all[known..].iter().position(|&byte| byte != 0) {
            return Err(ArgumentError::UnknownTail { offset: known + at });
        }
    }
    let mut value = T::new_zeroed();
    value.as_mut_bytes()[..known].copy_from_slice(given);
    Ok((value, claimed))
}

/// A structure without a size of its own.
fn copy_unsized<T: FromBytes>(bytes: &[u8]) -> Result<T, ArgumentError> {
    let claimed = size_of::<T>();
    T::read_from_prefix(bytes)
        .map(|(value, _)| value)
        .map_err(|_| ArgumentError::Truncated { given: bytes.len(), claimed })
}

/// Refuses padding that is not zero, at `offset`.
fn check_padding(padding: &[u8], offset: usize) -> Result<(), ArgumentError> {
    match padding.iter().position(|&byte| byte != 0) {
        Some(at) => Err(ArgumentError::Reserved { offset: offset + at }),
        None => Ok(()),
    }
}
