//! The trait through which everything above reaches guest memory.

use alloc::sync::Arc;

use crate::{Gpa, Window};

/// What an access does to memory. A read-modify-write counts as [`Access::Write`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum Access {
    /// The memory is only read.
    Read,
    /// The memory is written (and may be read).
    Write,
}

/// Why guest memory could not be reached. The guest (or the device working for it) named the
/// address, so each of these is an ordinary outcome, never a reason to panic.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum MemError {
    /// No memory of this guest is at `gpa`.
    #[error("no guest memory at {gpa}")]
    Unmapped {
        /// First address that is not memory; the last there is, if the access goes past it.
        gpa: Gpa,
    },
    /// The memory at `gpa` may only be read.
    #[error("guest memory at {gpa} is read-only")]
    ReadOnly {
        /// First address that may not be written.
        gpa: Gpa,
    },
    /// An atomic access at `gpa` is not aligned to its own size, or crosses a region's end.
    #[error("atomic access to guest memory at {gpa} is misaligned")]
    Misaligned {
        /// The address asked for.
        gpa: Gpa,
    },
}

/// Guest memory. One method is required; the rest follow from it.
///
/// Memory is shared with a running guest, so nothing here hands out a Rust reference to bytes:
/// a [`Window`] copies, compares and updates through raw accesses that tolerate concurrent
/// writers.
pub trait GuestMemory {
    /// The memory from `gpa`, as much of `len` bytes as is contiguous in the host (at least one
    /// byte unless `len` is zero, which gives an empty window).
    fn window(&self, gpa: Gpa, len: usize, access: Access) -> Result<Window<'_>, MemError>;

    /// Copies `buf.len()` bytes from `gpa` out of guest memory.
    fn read(&self, gpa: Gpa, buf: &mut [u8]) -> Result<(), MemError> {
        for_each_window(self, gpa, buf.len(), Access::Read, |at, window| {
            window.read(0, &mut buf[at..]);
        })
    }

    /// Copies `buf` into guest memory from `gpa` on.
    ///
    /// On an error nothing past the first unreachable byte was written; earlier bytes may be.
    fn write(&self, gpa: Gpa, buf: &[u8]) -> Result<(), MemError> {
        for_each_window(self, gpa, buf.len(), Access::Write, |at, window| {
            window.write(0, &buf[at..]);
        })
    }

    /// Loads an aligned little-endian 16-bit word in one access, with acquire ordering.
    fn load_u16(&self, gpa: Gpa) -> Result<u16, MemError> {
        self.aligned(gpa, 2, Access::Read)?.load_u16(0).ok_or(MemError::Misaligned { gpa })
    }

    /// Stores an aligned little-endian 16-bit word in one access, with release ordering.
    fn store_u16(&self, gpa: Gpa, value: u16) -> Result<(), MemError> {
        self.aligned(gpa, 2, Access::Write)?.store_u16(0, value).ok_or(MemError::Misaligned { gpa })
    }

    /// Loads an aligned little-endian 32-bit word in one access, with acquire ordering.
    fn load_u32(&self, gpa: Gpa) -> Result<u32, MemError> {
        self.aligned(gpa, 4, Access::Read)?.load_u32(0).ok_or(MemError::Misaligned { gpa })
    }

    /// Stores an aligned little-endian 32-bit word in one access, with release ordering.
    fn store_u32(&self, gpa: Gpa, value: u32) -> Result<(), MemError> {
        self.aligned(gpa, 4, Access::Write)?.store_u32(0, value).ok_or(MemError::Misaligned { gpa })
    }

    /// Loads an aligned little-endian 64-bit word in one access, with acquire ordering.
    fn load_u64(&self, gpa: Gpa) -> Result<u64, MemError> {
        self.aligned(gpa, 8, Access::Read)?.load_u64(0).ok_or(MemError::Misaligned { gpa })
    }

    /// Stores an aligned little-endian 64-bit word in one access, with release ordering.
    fn store_u64(&self, gpa: Gpa, value: u64) -> Result<(), MemError> {
        self.aligned(gpa, 8, Access::Write)?.store_u64(0, value).ok_or(MemError::Misaligned { gpa })
    }

    /// Replaces an aligned 64-bit word with `new` if it holds `current`; gives `Ok(Err(found))`
    /// if it holds something else. Sequentially consistent.
    fn compare_exchange_u64(
        &self,
        gpa: Gpa,
        current: u64,
        new: u64,
    ) -> Result<Result<u64, u64>, MemError> {
        self.aligned(gpa, 8, Access::Write)?
            .compare_exchange_u64(0, current, new)
            .ok_or(MemError::Misaligned { gpa })
    }

    /// A window of exactly `size` bytes at an address aligned to `size`.
    #[doc(hidden)]
    fn aligned(&self, gpa: Gpa, size: usize, access: Access) -> Result<Window<'_>, MemError> {
        if gpa.0 % size as u64 != 0 {
            return Err(MemError::Misaligned { gpa });
        }
        let window = self.window(gpa, size, access)?;
        if window.len() < size {
            return Err(MemError::Misaligned { gpa });
        }
        Ok(window)
    }
}

impl<M: GuestMemory + ?Sized> GuestMemory for &M {
    fn window(&self, gpa: Gpa, len: usize, access: Access) -> Result<Window<'_>, MemError> {
        (**self).window(gpa, len, access)
    }
}

impl<M: GuestMemory + ?Sized> GuestMemory for Arc<M> {
    fn window(&self, gpa: Gpa, len: usize, access: Access) -> Result<Window<'_>, MemError> {
        (**self).window(gpa, len, access)
    }
}

/// Calls `f(offset, window)` with each contiguous piece of the `len` bytes from `gpa`, in order.
fn for_each_window<M: GuestMemory + ?Sized>(
    memory: &M,
    gpa: Gpa,
    len: usize,
    access: Access,
    mut f: impl FnMut(usize, &Window<'_>),
) -> Result<(), MemError> {
    let mut done = 0;
    while done < len {
        let past_everything = MemError::Unmapped { gpa: Gpa(u64::MAX) };
        let at = gpa.checked_add(done as u64).ok_or(past_everything)?;
        let window = memory.window(at, len - done, access)?;
        if window.is_empty() {
            // No window is empty here, by contract; without it this would never end.
            return Err(MemError::Unmapped { gpa: at });
        }
        f(done, &window);
        done += window.len();
    }
    Ok(())
}

#[cfg(test)]
mod tests;
