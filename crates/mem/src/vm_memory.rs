//! Adapters for embedders whose guest memory is that of the `vm-memory` crate.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::ptr::NonNull;

use vm_memory::{
    Address, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, MmapRegion,
};

use crate::{Access, Backing, Gpa, GuestMemory, LayoutError, MemError, MemoryMap, Range};
use crate::{Segment, Window};

/// Guest memory over any memory of the `vm-memory` crate.
///
/// All its regions must be mapped for writing, as `vm-memory`'s own access methods require. Only
/// memory without a dirty bitmap fits: accesses through a [`Window`] mark none.
///
/// ```
/// use mem::{Gpa, GuestMemory, VmMemory};
/// use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
///
/// let theirs = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0x1000), 0x1000)])?;
/// theirs.write_obj(0x1234_5678u32, GuestAddress(0x1800))?;
/// let memory = VmMemory(&theirs);
/// assert_eq!(memory.load_u32(Gpa(0x1800)), Ok(0x1234_5678));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug)]
pub struct VmMemory<'m, M>(pub &'m M);

impl<M> GuestMemory for VmMemory<'_, M>
where
    M: GuestMemoryBackend,
    M::R: GuestMemoryRegion<B = ()>,
{
    fn window(&self, gpa: Gpa, len: usize, access: Access) -> Result<Window<'_>, MemError> {
        let unmapped = MemError::Unmapped { gpa };
        if len == 0 {
            // SAFETY: no byte is ever reached through a window of length zero.
            return Ok(unsafe { Window::new(NonNull::dangling(), 0, access) });
        }
        let (region, at) = self.0.to_region_addr(GuestAddress(gpa.0)).ok_or(unmapped)?;
        let left = usize::try_from(region.len().saturating_sub(at.raw_value()));
        let len = len.min(left.unwrap_or(usize::MAX));
        let slice = region.get_slice(at, len).map_err(|_| unmapped)?;
        let base = NonNull::new(slice.ptr_guard_mut().as_ptr()).ok_or(unmapped)?;
        // SAFETY: a volatile slice promises `len` accessible bytes for as long as its region is
        // borrowed, which is as long as the window lives; `vm-memory` makes no references to them.
        Ok(unsafe { Window::new(base, len, access) })
    }
}

/// A region of `vm-memory`, kept alive.
#[derive(Debug)]
struct Region(Arc<MmapRegion>);

// SAFETY: a region stays mapped as it is for as long as it lives, and `vm-memory` makes no
// references to its bytes. Whoever made it vouches for its file, if it has one.
unsafe impl Backing for Region {
    fn base(&self) -> NonNull<u8> {
        NonNull::new(self.0.as_ptr()).unwrap_or(NonNull::dangling())
    }

    fn len(&self) -> usize {
        if self.0.as_ptr().is_null() {
            0
        } else {
            self.0.size()
        }
    }

    fn access(&self) -> Access {
        let write = rustix::mm::ProtFlags::WRITE.bits() as i32;
        if self.0.prot() & write != 0 {
            Access::Write
        } else {
            Access::Read
        }
    }
}

/// The map of everything in a `vm-memory` guest memory, which the map keeps alive. Regions that
/// are mapped for reading are read-only here too.
impl TryFrom<&GuestMemoryMmap> for MemoryMap {
    type Error = LayoutError;

    fn try_from(memory: &GuestMemoryMmap) -> Result<Self, LayoutError> {
        let segment = |region: &vm_memory::GuestRegionMmap| {
            let gpa = Gpa(region.start_addr().raw_value());
            let range =
                Range::<Gpa>::new(gpa, region.len()).ok_or(LayoutError::BadRange { gpa })?;
            let backing = Arc::new(Region(region.get_mmap()));
            let access = backing.access();
            Ok(Segment { range, backing, offset: 0, access })
        };
        Self::new(memory.iter().map(segment).collect::<Result<Vec<_>, _>>()?)
    }
}

#[cfg(test)]
mod tests {
    use alloc::vec;

    use vm_memory::Bytes;

    use super::*;

    fn theirs() -> GuestMemoryMmap {
        let ranges = [(GuestAddress(0x1000), 0x1000), (GuestAddress(0x2000), 0x1000)];
        GuestMemoryMmap::from_ranges(&ranges).unwrap()
    }

    /// What `memory` and `theirs` hold is the same, whoever wrote it.
    fn same_memory(memory: &dyn GuestMemory, theirs: &GuestMemoryMmap) {
        let bytes: Vec<u8> = (0..=255).collect();
        theirs.write_slice(&bytes, GuestAddress(0x1f80)).unwrap();
        let mut back = vec![0; 256];
        memory.read(Gpa(0x1f80), &mut back).unwrap();
        assert_eq!(back, bytes);
        memory.store_u64(Gpa(0x2800), 0x0102_0304_0506_0708).unwrap();
        let word: u64 = theirs.read_obj(GuestAddress(0x2800)).unwrap();
        assert_eq!(word, 0x0102_0304_0506_0708);

        let len = |gpa, len| memory.window(Gpa(gpa), len, Access::Write).map(|window| window.len());
        let missing = |gpa| Err(MemError::Unmapped { gpa: Gpa(gpa) });
        assert_eq!(len(0x1fff, 9), Ok(1));
        assert_eq!(len(0x2fff, usize::MAX), Ok(1));
        assert_eq!(len(0x3000, 0), Ok(0));
        assert_eq!(len(0x3000, 1), missing(0x3000));
        assert_eq!(len(0xfff, 1), missing(0xfff));
        assert_eq!(len(u64::MAX, 1), missing(u64::MAX));
    }

    #[test]
    fn we_read_what_vm_memory_wrote() {
        let theirs = theirs();
        same_memory(&VmMemory(&theirs), &theirs);
    }

    #[test]
    fn a_map_keeps_vm_memory_alive() {
        let theirs = theirs();
        let map = MemoryMap::try_from(&theirs).unwrap();
        same_memory(&map, &theirs);
        drop(theirs);
        assert_eq!(map.load_u64(Gpa(0x2800)), Ok(0x0102_0304_0506_0708));
    }
}
