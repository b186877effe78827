//! Arrays that grow by leaves which never move: anybody may read while one is added.

use alloc::boxed::Box;
use core::marker::PhantomData;
use core::ptr;

use crate::geometry::{index_of, leaf_len, leaf_of, Shape};
use crate::memory::{filled, NoMemory};
use crate::sync::{AtomicPtr, Ordering};

/// A directory of leaves that are made when first needed.
#[derive(Debug)]
pub(crate) struct Leaves<E, G> {
    directory: Box<[AtomicPtr<E>]>,
    /// The pointers own entries, so the directory is `Send` and `Sync` when they are.
    owned: PhantomData<(Box<[E]>, G)>,
}

impl<E, G: Shape> Leaves<E, G> {
    pub(crate) fn new(last: u32) -> Result<Self, NoMemory> {
        let directory = filled(leaf_of::<G>(last) + 1, || AtomicPtr::new(ptr::null_mut()))?;
        Ok(Self { directory, owned: PhantomData })
    }

    /// Makes the leaf of `number` unless it is there. One caller at a time; readers may be about.
    pub(crate) fn prepare(&self, number: u32, entry: impl FnMut() -> E) -> Result<(), NoMemory> {
        let leaf = &self.directory[leaf_of::<G>(number)];
        if leaf.load(Ordering::Acquire).is_null() {
            let entries: Box<[E]> = filled(leaf_len::<G>(), entry)?;
            leaf.store(Box::into_raw(entries).cast(), Ordering::Release);
        }
        Ok(())
    }

    pub(crate) fn has(&self, number: u32) -> bool {
        !self.directory[leaf_of::<G>(number)].load(Ordering::Acquire).is_null()
    }

    #[inline]
    pub(crate) fn get(&self, number: u32) -> Option<&E> {
        let leaf = self.directory.get(leaf_of::<G>(number))?.load(Ordering::Acquire);
        if leaf.is_null() {
            return None;
        }
        // SAFETY: a leaf that is not null came from a box of `leaf_len` entries, and `index_of` is
        // below that.
        let entry = unsafe { leaf.add(index_of::<G>(number)) };
        // SAFETY: leaves are freed only with the directory, and entries never moved or replaced.
        Some(unsafe { &*entry })
    }

    /// Every leaf that was made, for the end.
    pub(crate) fn take_leaves(&mut self) -> impl Iterator<Item = Box<[E]>> + '_ {
        self.directory.iter().filter_map(|entry| {
            let leaf = entry.load(Ordering::Acquire);
            entry.store(ptr::null_mut(), Ordering::Relaxed);
            let entries = ptr::slice_from_raw_parts_mut(leaf, leaf_len::<G>());
            // SAFETY: a pointer that is not null came from a box of that many entries; it was
            // cleared above, and `&mut self` says that nothing borrows an entry.
            (!leaf.is_null()).then(|| unsafe { Box::from_raw(entries) })
        })
    }
}

impl<E, G> Drop for Leaves<E, G> {
    fn drop(&mut self) {
        debug_assert!(
            self.directory.iter().all(|leaf| leaf.load(Ordering::Relaxed).is_null()),
            "whoever has leaves takes them out at the end"
        );
    }
}
