//! A window: a checked, contiguous piece of guest memory.

use core::marker::PhantomData;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicU16, AtomicU32, AtomicU64, AtomicU8, Ordering};

use crate::Access;

mod bulk;
#[cfg(test)]
mod tests;

/// A contiguous piece of guest memory, reachable for as long as `'a`.
///
/// The guest's processors and other devices may change the bytes at any time, so a window never
/// gives out a reference to them: it copies in and out, and its words are loaded and updated
/// atomically. A copy that races with a writer gets some of the old bytes and some of the new. A
/// window made for [`Access::Read`] refuses every store.
#[derive(Clone, Copy, Debug)]
pub struct Window<'a> {
    base: NonNull<u8>,
    len: usize,
    access: Access,
    memory: PhantomData<&'a AtomicU8>,
}

// SAFETY: a window is a shared reference to bytes that are only accessed through atomics and raw
// copies that tolerate concurrent writers; nothing in it belongs to one thread.
unsafe impl Send for Window<'_> {}
// SAFETY: as for `Send`; every method takes `&self` and keeps no state.
unsafe impl Sync for Window<'_> {}

impl<'a> Window<'a> {
    /// A window over `len` bytes from `base`.
    ///
    /// # Safety
    ///
    /// For all of `'a`, the `len` bytes from `base` are mapped, readable, and writable if
    /// `access` is [`Access::Write`]; they cannot be unmapped or shrunk away; and no Rust
    /// reference to any of them exists.
    pub const unsafe fn new(base: NonNull<u8>, len: usize, access: Access) -> Self {
        Self { base, len, access, memory: PhantomData }
    }

    /// Length in bytes.
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Whether the window has no byte.
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The part of this window from `offset`, at most `len` bytes; empty if `offset` is past it.
    pub fn part(&self, offset: usize, len: usize) -> Window<'a> {
        let offset = offset.min(self.len);
        // SAFETY: `offset` is at most `len`, so the sum stays inside (or one past) the window.
        let base = unsafe { self.base.add(offset) };
        Window { base, len: len.min(self.len - offset), ..*self }
    }

    /// Copies out from `offset`, as much as fits both; gives the number of bytes copied.
    pub fn read(&self, offset: usize, buf: &mut [u8]) -> usize {
        let part = self.part(offset, buf.len());
        // SAFETY: `part` lies inside the window and is no longer than `buf`; `buf` is a Rust
        // reference, so by the contract of `new` it does not overlap guest memory.
        unsafe { part.base.as_ptr().copy_to_nonoverlapping(buf.as_mut_ptr(), part.len) };
        part.len
    }

    /// Copies in at `offset`, as much as fits both; gives the number of bytes copied (none on a
    /// window made for reading).
    pub fn write(&self, offset: usize, buf: &[u8]) -> usize {
        if self.access != Access::Write {
            return 0;
        }
        let part = self.part(offset, buf.len());
        // SAFETY: as in `read`, and the window is writable.
        unsafe { part.base.as_ptr().copy_from_nonoverlapping(buf.as_ptr(), part.len) };
        part.len
    }

    /// Copies from the start of this window to the start of `to`, as much as fits both and as if
    /// through a temporary when they overlap; gives the number of bytes copied (none if `to` was
    /// made for reading).
    pub fn copy_to(&self, to: &Window<'_>) -> usize {
        if to.access != Access::Write {
            return 0;
        }
        let len = self.len.min(to.len);
        // SAFETY: both windows hold at least `len` bytes, `to` is writable, and `copy_to` allows
        // overlap.
        unsafe { self.base.as_ptr().copy_to(to.base.as_ptr(), len) };
        len
    }

    /// Loads a byte with acquire ordering; `None` if it is outside.
    pub fn load_u8(&self, offset: usize) -> Option<u8> {
        Some(self.atomic::<AtomicU8>(offset)?.load(Ordering::Acquire))
    }

    /// Stores a byte with release ordering; `None` if it is outside or the window is for reading.
    pub fn store_u8(&self, offset: usize, value: u8) -> Option<()> {
        self.writable()?.atomic::<AtomicU8>(offset)?.store(value, Ordering::Release);
        Some(())
    }

    /// Loads an aligned little-endian word with acquire ordering; `None` if outside or misaligned.
    pub fn load_u16(&self, offset: usize) -> Option<u16> {
        Some(u16::from_le(self.atomic::<AtomicU16>(offset)?.load(Ordering::Acquire)))
    }

    /// Stores an aligned little-endian word with release ordering; `None` if outside, misaligned
    /// or the window is for reading.
    pub fn store_u16(&self, offset: usize, value: u16) -> Option<()> {
        self.writable()?.atomic::<AtomicU16>(offset)?.store(value.to_le(), Ordering::Release);
        Some(())
    }

    /// Loads an aligned little-endian word with acquire ordering; `None` if outside or misaligned.
    pub fn load_u32(&self, offset: usize) -> Option<u32> {
        Some(u32::from_le(self.atomic::<AtomicU32>(offset)?.load(Ordering::Acquire)))
    }

    /// Stores an aligned little-endian word with release ordering; `None` if outside, misaligned
    /// or the window is for reading.
    pub fn store_u32(&self, offset: usize, value: u32) -> Option<()> {
        self.writable()?.atomic::<AtomicU32>(offset)?.store(value.to_le(), Ordering::Release);
        Some(())
    }

    /// Loads an aligned little-endian word with acquire ordering; `None` if outside or misaligned.
    pub fn load_u64(&self, offset: usize) -> Option<u64> {
        Some(u64::from_le(self.atomic::<AtomicU64>(offset)?.load(Ordering::Acquire)))
    }

    /// Stores an aligned little-endian word with release ordering; `None` if outside, misaligned
    /// or the window is for reading.
    pub fn store_u64(&self, offset: usize, value: u64) -> Option<()> {
        self.writable()?.atomic::<AtomicU64>(offset)?.store(value.to_le(), Ordering::Release);
        Some(())
    }

    /// Replaces an aligned word with `new` if it holds `current`, else gives `Err(found)`;
    /// `None` if outside, misaligned or the window is for reading. Sequentially consistent.
    pub fn compare_exchange_u64(
        &self,
        offset: usize,
        current: u64,
        new: u64,
    ) -> Option<Result<u64, u64>> {
        let word = self.writable()?.atomic::<AtomicU64>(offset)?;
        Some(
            word.compare_exchange(current.to_le(), new.to_le(), Ordering::SeqCst, Ordering::SeqCst)
                .map(u64::from_le)
                .map_err(u64::from_le),
        )
    }

    fn writable(&self) -> Option<&Self> {
        (self.access == Access::Write).then_some(self)
    }

    /// The word at `offset` as an atomic, if it lies inside and is aligned in host memory.
    fn atomic<T: AtomicWord>(&self, offset: usize) -> Option<&'a T> {
        let end = offset.checked_add(size_of::<T>())?;
        if end > self.len {
            return None;
        }
        // SAFETY: `offset` is below `len`.
        let word = unsafe { self.base.add(offset) }.cast::<T>();
        if !word.is_aligned() {
            return None;
        }
        // SAFETY: the word lies inside the window and is aligned; the memory lives for `'a` and
        // an atomic tolerates concurrent writers. A load through it needs no write permission,
        // and stores are guarded by `writable`.
        Some(unsafe { word.as_ref() })
    }
}

/// The atomic words a window may be viewed as; sealed, because every bit pattern must be valid.
trait AtomicWord {}
impl AtomicWord for AtomicU8 {}
impl AtomicWord for AtomicU16 {}
impl AtomicWord for AtomicU32 {}
impl AtomicWord for AtomicU64 {}
