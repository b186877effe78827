//! Running out of memory, as an error like any other.
//!
//! Stable Rust has no `Arc` that can fail. The few that the crate makes are made by [`shared`],
//! and end the program as any `Arc` does: one for a set, a subscription and a list of such, a
//! reader, a pool, and those that make up a space. `tests/fail_nth.rs` knows them by that name
//! and lets every other allocation fail.

use alloc::boxed::Box;
use alloc::collections::TryReserveError;
use alloc::string::String;
use alloc::sync::Arc;
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

/// A box, or an error where `Box::new` would abort.
pub(crate) fn boxed<V>(value: V) -> Result<Box<V>, NoMemory> {
    let mut one = Vec::new();
    one.try_reserve_exact(1)?;
    one.push(value);
    let one = Box::into_raw(one.into_boxed_slice()).cast::<V>();
    // SAFETY: it comes from a box of one value, which has the layout of a box of the value.
    Ok(unsafe { Box::from_raw(one) })
}

/// `Arc::new`. Not inlined, so that a test can tell it by its name.
#[inline(never)]
pub(crate) fn shared<V>(value: V) -> Arc<V> {
    Arc::new(value)
}
