//! Memory that the accelerator reads and writes while this program runs.
//!
//! A [`Span`] is an address range that a device may change at any time. It hands out no reference,
//! only copies: bulk copies for data (taken after a completion record says that the device is
//! done) and volatile single loads for what is polled.
#![allow(unsafe_code)]

use std::ffi::c_void;
use std::marker::PhantomData;
use std::os::fd::BorrowedFd;
use std::ptr::NonNull;
use std::sync::atomic::{fence, Ordering};

use rustix::io::Errno;
use rustix::mm::{
    madvise, mmap, mmap_anonymous, mprotect, munmap, Advice, MapFlags, MprotectFlags, ProtFlags,
};

/// Bytes of a base page.
pub(crate) const PAGE: usize = 4096;
/// Bytes of a huge page.
pub(crate) const HUGE_PAGE: usize = 2 << 20;

/// A range of bytes that a device may access, valid for `'a`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Span<'a> {
    base: NonNull<u8>,
    len: usize,
    memory: PhantomData<&'a mut [u8]>,
}

impl<'a> Span<'a> {
    /// Lends a slice to the device: nobody else may use it for `'a`.
    pub(crate) fn lend(slice: &'a mut [u8]) -> Self {
        let len = slice.len();
        let base = NonNull::from(slice).cast();
        Self { base, len, memory: PhantomData }
    }

    /// First address, as a descriptor names it.
    pub(crate) fn address(self) -> u64 {
        self.base.as_ptr().expose_provenance() as u64
    }

    /// Bytes.
    pub(crate) fn len(self) -> usize {
        self.len
    }

    /// `len` bytes from `offset` on.
    ///
    /// # Panics
    /// When they are not inside: the layout of a test is wrong.
    pub(crate) fn part(self, offset: usize, len: usize) -> Self {
        let inside = offset.checked_add(len).is_some_and(|end| end <= self.len);
        assert!(inside, "{len} bytes at {offset} of a span of {}", self.len);
        // SAFETY: the offset is inside the allocation that `base` points into, checked above.
        let base = unsafe { self.base.add(offset) };
        Self { base, len, memory: PhantomData }
    }

    /// A copy of all bytes.
    pub(crate) fn read(self) -> Vec<u8> {
        let mut bytes = vec![0; self.len];
        fence(Ordering::Acquire);
        // SAFETY: `base` is valid for `len` bytes for `'a`, and the vector for as many. The device
        // has finished with the bytes (the caller saw its completion), or the copy may be mixed.
        unsafe { bytes.as_mut_ptr().copy_from_nonoverlapping(self.base.as_ptr(), self.len) };
        bytes
    }

    /// Overwrites the first bytes.
    ///
    /// # Panics
    /// When `bytes` is longer than the span.
    pub(crate) fn write(self, bytes: &[u8]) {
        assert!(bytes.len() <= self.len, "{} bytes into a span of {}", bytes.len(), self.len);
        // SAFETY: `base` is valid for `len` bytes for `'a`, and `bytes` is no longer (above) and
        // does not overlap: nobody else holds a reference into the span.
        unsafe { self.base.as_ptr().copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) };
        fence(Ordering::Release);
    }

    /// Sets all bytes.
    pub(crate) fn fill(self, byte: u8) {
        // SAFETY: `base` is valid for `len` bytes for `'a`.
        unsafe { self.base.as_ptr().write_bytes(byte, self.len) };
        fence(Ordering::Release);
    }

    /// The byte at `offset` as it is now.
    pub(crate) fn load(self, offset: usize) -> u8 {
        let byte = self.part(offset, 1).base;
        // SAFETY: `part` checked that the byte is inside.
        let value = unsafe { byte.as_ptr().read_volatile() };
        fence(Ordering::Acquire);
        value
    }

    /// Loads one byte of each page, so that the kernel maps what is not there for reading.
    pub(crate) fn touch_for_reading(self) {
        (0..self.len).step_by(PAGE).for_each(|offset| {
            self.load(offset);
        });
    }
}

/// A mapping of this process, unmapped on drop.
#[derive(Debug)]
pub(crate) struct Mapping {
    base: NonNull<u8>,
    len: usize,
}

// SAFETY: the mapping belongs to the process, not to a thread, and gives out no references.
unsafe impl Send for Mapping {}

/// Where a mapping goes.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Place {
    /// Anywhere the kernel likes.
    Anywhere,
    /// At this address, which must be free.
    At(usize),
}

impl Place {
    fn address_and_flags(self) -> (*mut c_void, MapFlags) {
        match self {
            Self::Anywhere => (std::ptr::null_mut(), MapFlags::empty()),
            Self::At(address) => {
                (std::ptr::without_provenance_mut(address), MapFlags::FIXED_NOREPLACE)
            }
        }
    }
}

impl Mapping {
    /// Private anonymous memory, readable and writable.
    pub(crate) fn anonymous(place: Place, len: usize) -> Result<Self, Errno> {
        let (address, flags) = place.address_and_flags();
        let access = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: without MAP_FIXED the kernel replaces nothing.
        let base = unsafe { mmap_anonymous(address, len, access, flags | MapFlags::PRIVATE)? };
        Self::own(base, len)
    }

    /// A file's bytes, shared.
    pub(crate) fn shared(
        file: BorrowedFd<'_>,
        offset: u64,
        len: usize,
        access: ProtFlags,
    ) -> Result<Self, Errno> {
        Self::shared_at(Place::Anywhere, file, offset, len, access)
    }

    /// A file's bytes, shared, at a place.
    pub(crate) fn shared_at(
        place: Place,
        file: BorrowedFd<'_>,
        offset: u64,
        len: usize,
        access: ProtFlags,
    ) -> Result<Self, Errno> {
        let (address, flags) = place.address_and_flags();
        // SAFETY: without MAP_FIXED the kernel replaces nothing.
        let base = unsafe { mmap(address, len, access, flags | MapFlags::SHARED, file, offset)? };
        Self::own(base, len)
    }

    /// A file's bytes, copied page by page when they are written.
    pub(crate) fn private(file: BorrowedFd<'_>, offset: u64, len: usize) -> Result<Self, Errno> {
        let access = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: without MAP_FIXED the kernel replaces nothing.
        let base =
            unsafe { mmap(std::ptr::null_mut(), len, access, MapFlags::PRIVATE, file, offset)? };
        Self::own(base, len)
    }

    fn own(base: *mut c_void, len: usize) -> Result<Self, Errno> {
        let base = NonNull::new(base.cast()).ok_or(Errno::NOMEM)?;
        Ok(Self { base, len })
    }

    /// All bytes of the mapping.
    pub(crate) fn span(&self) -> Span<'_> {
        Span { base: self.base, len: self.len, memory: PhantomData }
    }

    /// The part of the mapping that begins at a multiple of `align`.
    pub(crate) fn aligned(&self, align: usize) -> Span<'_> {
        let skip = self.base.as_ptr().align_offset(align).min(self.len);
        self.span().part(skip, self.len - skip)
    }

    /// Replaces the whole mapping by another part of a file, in one step: whoever uses the address
    /// finds the old page or the new one. When this returns, the kernel has invalidated the old
    /// translation everywhere.
    pub(crate) fn replace(&self, file: BorrowedFd<'_>, offset: u64) -> Result<(), Errno> {
        let access = ProtFlags::READ | ProtFlags::WRITE;
        let flags = MapFlags::SHARED | MapFlags::FIXED;
        // SAFETY: MAP_FIXED replaces exactly the range that this value owns, and no reference into
        // it exists anywhere.
        unsafe { mmap(self.base.as_ptr().cast(), self.len, access, flags, file, offset)? };
        Ok(())
    }

    /// Makes the kernel invalidate every translation of the mapping, the device's included, with
    /// the pages left in place: it has to when it takes the right to write away, for a moment.
    pub(crate) fn flush_translations(&self) -> Result<(), Errno> {
        for access in [MprotectFlags::READ, MprotectFlags::READ | MprotectFlags::WRITE] {
            // SAFETY: the range belongs to this value, nobody holds a reference into it, and it is
            // writable again before anyone can write.
            unsafe { mprotect(self.base.as_ptr().cast(), self.len, access)? };
        }
        Ok(())
    }

    /// Asks for small pages, one fault each.
    pub(crate) fn want_small_pages(&self) -> Result<(), Errno> {
        // SAFETY: the advice changes how the kernel backs this value's range, not its contents.
        unsafe { madvise(self.base.as_ptr().cast(), self.len, Advice::LinuxNoHugepage) }
    }

    /// Has the kernel take the pages out of memory: what is anonymous goes to swap.
    pub(crate) fn page_out(&self) -> Result<(), Errno> {
        // SAFETY: the advice changes where this value's bytes are kept, not the bytes.
        unsafe { madvise(self.base.as_ptr().cast(), self.len, Advice::LinuxPageOut) }
    }

    /// Changes what may be done with the mapping. Spans of it are then no good for what is not allowed.
    pub(crate) fn protect(&self, access: MprotectFlags) -> Result<(), Errno> {
        // SAFETY: the range belongs to this value and nobody holds a reference into it.
        unsafe { mprotect(self.base.as_ptr().cast(), self.len, access) }
    }

    /// Asks for transparent huge pages.
    pub(crate) fn want_huge_pages(&self) -> Result<(), Errno> {
        // SAFETY: the advice changes how the kernel backs this value's range, not its contents.
        unsafe { madvise(self.base.as_ptr().cast(), self.len, Advice::LinuxHugepage) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the range belongs to this value and no span outlives the borrow of it.
        let unmapped = unsafe { munmap(self.base.as_ptr().cast(), self.len) };
        debug_assert_eq!(unmapped, Ok(()));
    }
}

/// Faults in the page of `address` for reading or writing, as an access by this process would.
///
/// The address may come from a device: where nothing is mapped, or not for this access, the kernel
/// answers with an error and nothing happens.
pub(crate) fn fault_in(address: u64, write: bool) -> Result<(), Errno> {
    let page = usize::try_from(address).map_err(|_| Errno::FAULT)? & !(PAGE - 1);
    let advice = if write { Advice::LinuxPopulateWrite } else { Advice::LinuxPopulateRead };
    // SAFETY: populating a page table never changes the contents of memory.
    unsafe { madvise(std::ptr::without_provenance_mut(page), PAGE, advice) }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use rustix::fs::{ftruncate, memfd_create, MemfdFlags};

    use super::*;

    #[test]
    fn a_lent_slice_is_read_and_written_through_its_span() {
        let mut slice = [0u8; 64];
        let span = Span::lend(&mut slice);
        span.part(8, 8).write(&[7; 8]);
        span.part(62, 2).fill(9);
        assert_eq!((span.load(7), span.load(8), span.load(16), span.load(63)), (0, 7, 0, 9));
        assert_eq!(span.read()[6..10], [0, 0, 7, 7]);
        assert_eq!(slice[63], 9);
    }

    #[test]
    #[should_panic(expected = "of a span of 16")]
    fn a_part_outside_is_refused() {
        Span::lend(&mut [0u8; 16]).part(9, 8);
    }

    #[test]
    fn faulting_in_reports_what_is_not_mapped() {
        let mapping = Mapping::anonymous(Place::Anywhere, PAGE).unwrap();
        let address = mapping.span().address();
        assert_eq!(fault_in(address + 17, true), Ok(()));
        drop(mapping);
        assert!(fault_in(address, false).is_err());
        assert!(fault_in(u64::MAX, false).is_err());
    }

    #[test]
    fn a_replaced_mapping_shows_the_other_page() {
        let file = memfd_create("pages", MemfdFlags::CLOEXEC).unwrap();
        ftruncate(&file, 2 * PAGE as u64).unwrap();
        let access = ProtFlags::READ | ProtFlags::WRITE;
        let twin = Mapping::shared(file.as_fd(), 0, 2 * PAGE, access).unwrap();
        twin.span().part(0, PAGE).fill(1);
        twin.span().part(PAGE, PAGE).fill(2);
        let page = Mapping::shared(file.as_fd(), 0, PAGE, access).unwrap();
        assert_eq!(page.span().load(5), 1);
        page.replace(file.as_fd(), PAGE as u64).unwrap();
        assert_eq!(page.span().load(5), 2);
    }

    #[test]
    fn flushed_memory_keeps_its_contents_and_stays_writable() {
        let mapping = Mapping::anonymous(Place::Anywhere, PAGE).unwrap();
        mapping.span().fill(3);
        mapping.flush_translations().unwrap();
        assert_eq!(mapping.span().load(100), 3);
        mapping.span().fill(4);
        assert_eq!(mapping.span().load(100), 4);
    }

    #[test]
    fn a_taken_address_is_not_mapped_again() {
        let first = Mapping::anonymous(Place::Anywhere, PAGE).unwrap();
        let taken = Place::At(first.span().address() as usize);
        assert_eq!(Mapping::anonymous(taken, PAGE).unwrap_err(), Errno::EXIST);
    }
}
