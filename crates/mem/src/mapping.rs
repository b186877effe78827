//! Guest memory out of files that somebody else owns.
//!
//! A file that shrinks takes the pages of its mappings along, and the next access is a SIGBUS:
//! the process dies, and every other guest that it serves with it. So a file is mapped only if it
//! is sealed against shrinking (`F_SEAL_SHRINK`), which its owner cannot undo. QEMU's
//! `memory-backend-memfd` seals its files so by default.

use alloc::collections::BTreeMap;
use alloc::sync::{Arc, Weak};
use core::fmt;
use core::ptr::NonNull;
use std::fs::File;
use std::os::fd::OwnedFd;

use rustix::fs::{FileType, OFlags, SealFlags};
use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags};
use vm_memory::{FileOffset, MmapRegion};

use crate::{Access, Backing, BackingId};

/// Most bytes that [`Mappings`] maps at a time unless told otherwise: a small part of the address
/// space, so that no client can use it up with a huge sparse file.
pub const MAX_MAPPED: u64 = 1 << 44;

/// Granularity of offsets and lengths.
const PAGE: u64 = 4096;

/// Filesystem type of files made of huge pages.
const HUGETLBFS_MAGIC: u64 = 0x9584_58f6;

/// Which files are mapped.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Policy {
    /// Only files whose owner cannot take pages away: sealed against shrinking, and not made of
    /// huge pages, of which punching a hole gives the reservation up.
    #[default]
    SealedOnly,
    /// Any regular file. If its owner truncates it, or punches holes into huge pages and no others
    /// are left, the next access to what is gone kills this process with SIGBUS. For owners that
    /// are trusted as much as this process itself.
    AllowUnsealed,
}

/// Why a file, or a part of one, is not mapped. The fault of whoever sent it, except for
/// [`System`](Self::System).
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum MapError {
    /// The descriptor is not that of a regular file.
    #[error("not a regular file")]
    NotRegular,
    /// The file lacks a seal.
    #[error("the file is not sealed: it lacks {missing}")]
    Unsealed {
        /// Name of the seal.
        missing: &'static str,
    },
    /// The file is made of huge pages, and [`Policy::SealedOnly`] holds.
    #[error("the file is made of huge pages, which its owner can take away despite seals")]
    HugePages,
    /// The descriptor does not allow the access asked for.
    #[error("the descriptor does not allow this access ({access:?})")]
    Forbidden {
        /// The access.
        access: Access,
    },
    /// The range is empty, or its ends are no multiples of 4 KiB.
    #[error("file range of {len} bytes at {offset:#x} is empty or misaligned")]
    Misaligned {
        /// Offset in the file.
        offset: u64,
        /// Length in bytes.
        len: u64,
    },
    /// The range passes the end of the file.
    #[error("file range of {len} bytes at {offset:#x} passes the file's end at {file_len:#x}")]
    PastEnd {
        /// Offset in the file.
        offset: u64,
        /// Length in bytes.
        len: u64,
        /// Length of the file in bytes.
        file_len: u64,
    },
    /// More would be mapped at a time than allowed.
    #[error("{len} bytes are more than the {left} that may still be mapped")]
    TooMuch {
        /// Length asked for in bytes.
        len: u64,
        /// Bytes left.
        left: u64,
    },
    /// The system refused.
    #[error("{call}: error {errno}")]
    System {
        /// The system call.
        call: &'static str,
        /// Its error number.
        errno: i32,
    },
}

/// Makes an error of a failed system call.
fn system(call: &'static str) -> impl Fn(Errno) -> MapError {
    move |errno| MapError::System { call, errno: errno.raw_os_error() }
}

/// A file that may be mapped.
#[derive(Debug)]
pub struct SealedFile {
    file: Arc<File>,
    dev: u64,
    ino: u64,
    writable: bool,
}

impl SealedFile {
    /// Checks the file of `fd` against `policy`.
    ///
    /// # Errors
    ///
    /// If it is no regular file, or not one that `policy` admits.
    pub fn new(fd: OwnedFd, policy: Policy) -> Result<Self, MapError> {
        let stat = rustix::fs::fstat(&fd).map_err(system("fstat"))?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(MapError::NotRegular);
        }
        if policy == Policy::SealedOnly {
            // The call fails on files that cannot have seals, which is to have none.
            let seals = rustix::fs::fcntl_get_seals(&fd).unwrap_or(SealFlags::empty());
            if !seals.contains(SealFlags::SHRINK) {
                return Err(MapError::Unsealed { missing: "F_SEAL_SHRINK" });
            }
            let filesystem = rustix::fs::fstatfs(&fd).map_err(system("fstatfs"))?;
            if filesystem.f_type as u64 == HUGETLBFS_MAGIC {
                return Err(MapError::HugePages);
            }
        }
        let mode = rustix::fs::fcntl_getfl(&fd).map_err(system("fcntl"))? & OFlags::RWMODE;
        if mode == OFlags::WRONLY {
            return Err(MapError::Forbidden { access: Access::Read });
        }
        let file = Arc::new(File::from(fd));
        Ok(Self { file, dev: stat.st_dev, ino: stat.st_ino, writable: mode == OFlags::RDWR })
    }

    /// The identity of the byte at `offset`.
    pub fn id(&self, offset: u64) -> BackingId {
        BackingId { dev: self.dev, ino: self.ino, offset }
    }

    /// The file's length in bytes, now. A sealed file can still grow.
    fn file_len(&self) -> Result<u64, MapError> {
        let stat = rustix::fs::fstat(&*self.file).map_err(system("fstat"))?;
        Ok(u64::try_from(stat.st_size).unwrap_or(0))
    }

    /// Whether `access` to `len` bytes at `offset` can be mapped.
    fn check(&self, offset: u64, len: u64, access: Access) -> Result<(), MapError> {
        if len == 0 || (offset | len) % PAGE != 0 {
            return Err(MapError::Misaligned { offset, len });
        }
        let file_len = self.file_len()?;
        if offset.checked_add(len).is_none_or(|end| end > file_len) {
            return Err(MapError::PastEnd { offset, len, file_len });
        }
        if access == Access::Write && !self.writable {
            return Err(MapError::Forbidden { access });
        }
        Ok(())
    }
}

/// A part of a file, mapped: gone from the address space when the last reference is.
pub struct Mapping {
    region: MmapRegion<()>,
    base: NonNull<u8>,
    access: Access,
}

impl Mapping {
    /// Maps `len` bytes at `offset`, which passed [`SealedFile::check`].
    fn new(file: &SealedFile, offset: u64, len: u64, access: Access) -> Result<Self, MapError> {
        let too_much = MapError::TooMuch { len, left: usize::MAX as u64 };
        let len = usize::try_from(len).map_err(|_| too_much)?;
        let protection = match access {
            Access::Read => ProtFlags::READ,
            Access::Write => ProtFlags::READ | ProtFlags::WRITE,
        };
        let region = MmapRegion::build(
            Some(FileOffset::from_arc(file.file.clone(), offset)),
            len,
            protection.bits() as i32,
            MapFlags::SHARED.bits() as i32,
        );
        let region = region.map_err(|error| system("mmap")(errno(&error)))?;
        let base = NonNull::new(region.as_ptr()).ok_or(system("mmap")(Errno::NOMEM))?;
        Ok(Self { region, base, access })
    }
}

/// The system's error number in an error of `mmap`.
fn errno(error: &vm_memory::mmap::MmapRegionError) -> Errno {
    match error {
        vm_memory::mmap::MmapRegionError::Mmap(error) => {
            Errno::from_io_error(error).unwrap_or(Errno::INVAL)
        }
        _ => Errno::INVAL,
    }
}

// SAFETY: the pointer is the region's own, which is `Send` itself.
unsafe impl Send for Mapping {}
// SAFETY: no method of the value touches the bytes.
unsafe impl Sync for Mapping {}

// SAFETY: the bytes stay mapped, with this access, until the value is dropped; they lay inside
// the file when they were mapped, and the file cannot shrink (or its owner is trusted not to let
// it: `Policy::AllowUnsealed`); nothing makes references to them.
unsafe impl Backing for Mapping {
    fn base(&self) -> NonNull<u8> {
        self.base
    }

    fn len(&self) -> usize {
        self.region.size()
    }

    fn access(&self) -> Access {
        self.access
    }
}

impl fmt::Debug for Mapping {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { region, base: _, access } = self;
        f.debug_struct("Mapping")
            .field("len", &region.size())
            .field("access", access)
            .finish_non_exhaustive()
    }
}

/// Device, file, offset, length and whether for writing.
type Key = (u64, u64, u64, u64, bool);

/// The mappings of a process: what several functions report is mapped once.
#[derive(Debug)]
pub struct Mappings {
    limit: u64,
    known: BTreeMap<Key, Weak<Mapping>>,
}

impl Default for Mappings {
    fn default() -> Self {
        Self::with_limit(MAX_MAPPED)
    }
}

impl Mappings {
    /// No mappings, and never more than `limit` bytes.
    pub const fn with_limit(limit: u64) -> Self {
        Self { limit, known: BTreeMap::new() }
    }

    /// The mapping of `len` bytes of `file` at `offset`: the one that exists, or a new one. It
    /// lives as long as anyone holds it; `file` may be closed.
    ///
    /// # Errors
    ///
    /// If the range is misaligned, empty, past the file's end or too much, or the descriptor does
    /// not allow `access`.
    pub fn map(
        &mut self,
        file: &SealedFile,
        offset: u64,
        len: u64,
        access: Access,
    ) -> Result<Arc<Mapping>, MapError> {
        // The descriptor's own rights count even if another one's mapping is there already.
        file.check(offset, len, access)?;
        let key = (file.dev, file.ino, offset, len, access == Access::Write);
        if let Some(mapping) = self.known.get(&key).and_then(Weak::upgrade) {
            return Ok(mapping);
        }
        let left = self.limit.saturating_sub(self.mapped());
        if len > left {
            return Err(MapError::TooMuch { len, left });
        }
        let mapping = Arc::new(Mapping::new(file, offset, len, access)?);
        self.known.insert(key, Arc::downgrade(&mapping));
        Ok(mapping)
    }

    /// Bytes mapped now.
    pub fn mapped(&mut self) -> u64 {
        self.known.retain(|_, mapping| mapping.strong_count() > 0);
        self.known.keys().map(|&(.., len, _)| len).sum()
    }
}

#[cfg(test)]
mod tests;
