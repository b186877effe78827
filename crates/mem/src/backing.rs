//! What guest memory is made of: a piece of host memory that outlives everything pointing at it.

use alloc::alloc::{alloc_zeroed, dealloc};
use core::alloc::Layout;
use core::fmt;
use core::ptr::NonNull;

use crate::Access;

/// A contiguous piece of host memory that [`MemoryMap`](crate::MemoryMap) segments point into.
///
/// # Safety
///
/// For as long as the value lives, [`base`](Self::base), [`len`](Self::len) and
/// [`access`](Self::access) give the same answers, and the `len` bytes from `base` are mapped,
/// readable, and writable if `access` is [`Access::Write`]; they cannot be unmapped or shrunk
/// away; and no Rust reference to any of them exists. These are the terms of
/// [`Window::new`](crate::Window::new).
#[allow(clippy::len_without_is_empty)] // a backing without a byte backs nothing
pub unsafe trait Backing: Send + Sync + fmt::Debug {
    /// The first byte.
    fn base(&self) -> NonNull<u8>;
    /// Length in bytes.
    fn len(&self) -> usize;
    /// [`Access::Read`] if the host itself may only read the bytes.
    fn access(&self) -> Access;
}

/// Alignment of the first byte of a [`HeapMemory`]: a page of every guest architecture here.
const PAGE: usize = 4096;

/// Zeroed memory from the global allocator, page-aligned: for tests, and for embedders whose
/// guests live inside one address space.
pub struct HeapMemory {
    allocation: NonNull<u8>,
    layout: Layout,
    base: NonNull<u8>,
    len: usize,
}

impl HeapMemory {
    /// `len` zeroed bytes, or `None` if `len` is zero or the allocator has no room.
    pub fn new(len: usize) -> Option<Self> {
        // The alignment is made here instead of asked of the allocator: allocators hand out
        // untouched zero pages only for small alignments, and a guest's memory is mostly untouched.
        let layout = Layout::from_size_align(len.checked_add(PAGE)?, align_of::<u64>()).ok()?;
        if len == 0 {
            return None;
        }
        // SAFETY: the layout's size is at least `PAGE`, so it is not zero.
        let allocation = NonNull::new(unsafe { alloc_zeroed(layout) })?;
        let skip = allocation.as_ptr().align_offset(PAGE);
        if skip > PAGE {
            // SAFETY: allocated just above with this layout, and given to nobody.
            unsafe { dealloc(allocation.as_ptr(), layout) };
            return None;
        }
        // SAFETY: `skip` is at most `PAGE`, which the allocation has beside the `len` bytes.
        let base = unsafe { allocation.add(skip) };
        Some(Self { allocation, layout, base, len })
    }
}

impl Drop for HeapMemory {
    fn drop(&mut self) {
        // SAFETY: allocated in `new` with this layout; whoever points in holds this value.
        unsafe { dealloc(self.allocation.as_ptr(), self.layout) };
    }
}

// SAFETY: the value owns its memory as a `Box` would, and hands out its address only.
unsafe impl Send for HeapMemory {}
// SAFETY: no method of the value touches the bytes.
unsafe impl Sync for HeapMemory {}

// SAFETY: the allocation lives as long as the value, is readable and writable, never moves, and
// no reference to its bytes is ever made.
unsafe impl Backing for HeapMemory {
    fn base(&self) -> NonNull<u8> {
        self.base
    }

    fn len(&self) -> usize {
        self.len
    }

    fn access(&self) -> Access {
        Access::Write
    }
}

impl fmt::Debug for HeapMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HeapMemory").field("len", &self.len).finish_non_exhaustive()
    }
}
