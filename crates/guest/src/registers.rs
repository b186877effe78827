//! A PCI function's registers, mapped.
#![allow(unsafe_code)]

use std::os::fd::BorrowedFd;
use std::ptr::NonNull;

use rustix::io::Errno;
use rustix::mm::{mmap, munmap, MapFlags, ProtFlags};

/// The registers of one BAR. Each access is one load or store of its width, at a multiple of it.
#[derive(Debug)]
pub(crate) struct Registers {
    base: NonNull<u8>,
    len: usize,
}

impl Registers {
    /// Maps the first `len` bytes of a BAR (a `resource` file of sysfs).
    pub(crate) fn map(bar: BorrowedFd<'_>, len: usize) -> Result<Self, Errno> {
        let none = std::ptr::null_mut();
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: without MAP_FIXED the kernel replaces nothing.
        let base = unsafe { mmap(none, len, protection, MapFlags::SHARED, bar, 0)? };
        Ok(Self { base: NonNull::new(base.cast()).ok_or(Errno::NOMEM)?, len })
    }

    /// The register at `offset`.
    ///
    /// # Panics
    /// When it is not inside, or not at a multiple of its width.
    fn register<T>(&self, offset: usize) -> *mut T {
        let width = size_of::<T>();
        let inside = offset.checked_add(width).is_some_and(|end| end <= self.len);
        assert!(inside && offset % width == 0, "{width} bytes at {offset} of {}", self.len);
        // SAFETY: the register is inside the mapping, checked above.
        let register = unsafe { self.base.add(offset) };
        register.as_ptr().cast()
    }

    /// Reads 32 bits.
    pub(crate) fn read32(&self, offset: usize) -> u32 {
        // SAFETY: inside the mapping and aligned, says `register`; any value is a number.
        unsafe { self.register::<u32>(offset).read_volatile() }
    }

    /// Reads 64 bits.
    pub(crate) fn read64(&self, offset: usize) -> u64 {
        // SAFETY: as in `read32`.
        unsafe { self.register::<u64>(offset).read_volatile() }
    }

    /// Writes 32 bits.
    pub(crate) fn write32(&mut self, offset: usize, value: u32) {
        // SAFETY: as in `read32`, and mapped writable.
        unsafe { self.register::<u32>(offset).write_volatile(value) }
    }

    /// Writes 64 bits.
    pub(crate) fn write64(&mut self, offset: usize, value: u64) {
        // SAFETY: as in `write32`.
        unsafe { self.register::<u64>(offset).write_volatile(value) }
    }
}

impl Drop for Registers {
    fn drop(&mut self) {
        // SAFETY: the mapping belongs to this value.
        let unmapped = unsafe { munmap(self.base.as_ptr().cast(), self.len) };
        debug_assert_eq!(unmapped, Ok(()));
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use rustix::fs::{ftruncate, memfd_create, MemfdFlags};

    use super::*;
    use crate::dma::PAGE;

    fn registers() -> Registers {
        let file = memfd_create("registers", MemfdFlags::CLOEXEC).unwrap();
        ftruncate(&file, PAGE as u64).unwrap();
        Registers::map(file.as_fd(), PAGE).unwrap()
    }

    #[test]
    fn what_is_written_is_read() {
        let mut registers = registers();
        registers.write64(8, 0x1122_3344_5566_7788);
        assert_eq!((registers.read32(8), registers.read32(12)), (0x5566_7788, 0x1122_3344));
        registers.write32(PAGE - 4, 7);
        assert_eq!(registers.read64(PAGE - 8), 7 << 32);
    }

    #[test]
    #[should_panic(expected = "8 bytes at 4092 of 4096")]
    fn nothing_outside_is_reached() {
        registers().read64(PAGE - 4);
    }
}
