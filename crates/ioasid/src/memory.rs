//! Running out of memory, as an error like any other.

use alloc::boxed::Box;
use alloc::collections::TryReserveError;
use alloc::string::String;
use alloc::vec::Vec;

/// There was no memory. Each public error has a variant for it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct NoMemory;

impl From<TryReserveError> for NoMemory {
    fn from(_: TryReserveError) -> Self {
        Self
    }
}

impl From<hashbrown::TryReserveError> for NoMemory {
    fn from(_: hashbrown::TryReserveError) -> Self {
        Self
    }
}

/// A copy of `text`.
pub(crate) fn copied(text: &str) -> Result<String, NoMemory> {
    let mut copy = String::new();
    copy.try_reserve_exact(text.len())?;
    copy.push_str(text);
    Ok(copy)
}

/// `len` values, or an error where a plain `collect` would abort.
pub(crate) fn filled<V>(len: usize, value: impl FnMut() -> V) -> Result<Box<[V]>, NoMemory> {
    let mut values = Vec::new();
    values.try_reserve_exact(len)?;
    values.extend(core::iter::repeat_with(value).take(len));
    Ok(values.into_boxed_slice())
}
