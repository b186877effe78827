//! The submission portal of a dedicated queue: one page of device registers.
#![allow(unsafe_code)]

use std::os::fd::BorrowedFd;
use std::ptr::NonNull;
use std::sync::atomic::{fence, Ordering};

use rustix::io::Errno;
use rustix::mm::{mmap, munmap, MapFlags, ProtFlags};

use crate::dma::PAGE;

/// Bytes of a descriptor, and of a slot of the portal.
pub(crate) const DESCRIPTOR: usize = 64;
const WORDS: usize = DESCRIPTOR / 8;
const SLOTS: usize = PAGE / DESCRIPTOR;

/// The mapped portal page. Every slot of 64 bytes in it is the same portal.
#[derive(Debug)]
pub(crate) struct Portal {
    page: NonNull<u64>,
    slot: usize,
}

// SAFETY: the page belongs to the process, and `submit` takes `&mut self`, so that two threads
// cannot interleave the stores of two descriptors.
unsafe impl Send for Portal {}

impl Portal {
    /// Maps the portal of an open queue. The kernel wants `MAP_SHARED` and `CAP_SYS_RAWIO`.
    pub(crate) fn map(queue: BorrowedFd<'_>) -> Result<Self, Errno> {
        let none = std::ptr::null_mut();
        // SAFETY: without MAP_FIXED the kernel replaces nothing.
        let page = unsafe { mmap(none, PAGE, ProtFlags::WRITE, MapFlags::SHARED, queue, 0)? };
        let page = NonNull::new(page.cast()).ok_or(Errno::NOMEM)?;
        Ok(Self { page, slot: 0 })
    }

    /// Writes one descriptor as eight stores in ascending order; the device puts it together.
    pub(crate) fn submit(&mut self, descriptor: &[u8; DESCRIPTOR]) {
        let mut words = [0u64; WORDS];
        for (word, bytes) in words.iter_mut().zip(descriptor.chunks_exact(8)) {
            *word = u64::from_le_bytes(bytes.try_into().unwrap_or_default());
        }
        // What the descriptor points at is in memory before the device can look.
        fence(Ordering::SeqCst);
        for (index, word) in words.into_iter().enumerate() {
            let offset = self.slot * WORDS + index;
            // SAFETY: slot < SLOTS and index < WORDS, so the word is inside the mapped page.
            let register = unsafe { self.page.add(offset) };
            // SAFETY: the page is mapped writable for as long as this value lives; a device
            // register is written whole, once, and in program order.
            unsafe { register.as_ptr().write_volatile(word) };
        }
        self.slot = (self.slot + 1) % SLOTS;
    }
}

impl Drop for Portal {
    fn drop(&mut self) {
        // SAFETY: the page belongs to this value.
        let unmapped = unsafe { munmap(self.page.as_ptr().cast(), PAGE) };
        debug_assert_eq!(unmapped, Ok(()));
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use rustix::fs::{ftruncate, memfd_create, MemfdFlags};

    use super::*;
    use crate::dma::Mapping;

    #[test]
    fn descriptors_go_to_one_slot_after_the_other() {
        let file = memfd_create("portal", MemfdFlags::CLOEXEC).unwrap();
        ftruncate(&file, PAGE as u64).unwrap();
        let device = Mapping::shared(file.as_fd(), 0, PAGE, ProtFlags::READ).unwrap();
        let mut portal = Portal::map(file.as_fd()).unwrap();
        for round in 0..=SLOTS {
            let descriptor = std::array::from_fn(|byte| (byte + round) as u8);
            portal.submit(&descriptor);
            let slot = device.span().part(round % SLOTS * DESCRIPTOR, DESCRIPTOR);
            assert_eq!(slot.read(), descriptor);
        }
    }
}
