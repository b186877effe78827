//! Disks in memory (Linux's `brd`), with a small file system or a swap area on them.
//!
//! A page of a file on one is in the page cache or on the disk only, as on any disk: what the disk
//! itself keeps is nothing that a process can map.

use std::ffi::CStr;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::mount::{mount, unmount, MountFlags, UnmountFlags};

use crate::calls;
use crate::failure::{Context, Failure, Outcome};
use crate::init;

/// The module, and what it is told: how many disks, and how big in KiB.
const MODULE: (&str, &CStr) = ("brd", c"rd_nr=2 rd_size=32768");
/// Bytes of a disk.
pub(crate) const DISK: u64 = 32 << 20;
const FILES: &str = "/dev/ram0";
const SWAP: &CStr = c"/dev/ram1";
const MOUNTED_AT: &str = "/tmp/disk";
/// How long the disks may take to appear.
const APPEARS_WITHIN: Duration = Duration::from_secs(5);

fn appear(device: &str) -> Outcome<()> {
    if !Path::new(device).exists() {
        init::load_on_demand(MODULE.0, MODULE.1).at("a disk in memory")?;
    }
    let deadline = Instant::now() + APPEARS_WITHIN;
    while !Path::new(device).exists() {
        if Instant::now() >= deadline {
            return Err(Failure::new(format!("{device} did not appear")));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

/// An empty file system on a disk, mounted until dropped.
pub(crate) struct FileSystem(());

impl FileSystem {
    /// Makes and mounts it.
    pub(crate) fn new() -> Outcome<Self> {
        appear(FILES)?;
        init::load_on_demand("minix", c"").at("a file system for the disk")?;
        let disk = File::options().write(true).open(FILES).at(FILES)?;
        minix::make(&disk, DISK).at(FILES)?;
        disk.sync_all().at(FILES)?;
        drop(disk);
        fs::create_dir_all(MOUNTED_AT).at(MOUNTED_AT)?;
        mount(FILES, MOUNTED_AT, "minix", MountFlags::empty(), None).at("mounting")?;
        Ok(Self(()))
    }

    /// A name in it.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        Path::new(MOUNTED_AT).join(name)
    }
}

impl Drop for FileSystem {
    fn drop(&mut self) {
        // Lazily: a process that was killed may still hold a file.
        let _gone_with_the_machine = unmount(MOUNTED_AT, UnmountFlags::DETACH);
    }
}

/// A disk that the kernel swaps to, until dropped.
pub(crate) struct SwapSpace(());

impl SwapSpace {
    /// Makes the area and has the kernel use it.
    pub(crate) fn new() -> Outcome<Self> {
        let name = SWAP.to_string_lossy();
        appear(&name)?;
        let disk = File::options().write(true).open(&*name).at(&name)?;
        disk.write_all_at(&swap_header(DISK), 0).at(&name)?;
        disk.sync_all().at(&name)?;
        drop(disk);
        calls::swap_on(SWAP).at("swapon")?;
        Ok(Self(()))
    }
}

impl Drop for SwapSpace {
    fn drop(&mut self) {
        let _gone_with_the_machine = calls::swap_off(SWAP);
    }
}

/// The first page of a swap area (Linux `include/linux/swap.h`, union `swap_header`).
fn swap_header(bytes: u64) -> [u8; 4096] {
    const INFO: usize = 1024;
    const MAGIC: &[u8; 10] = b"SWAPSPACE2";
    let mut page = [0; 4096];
    let last = u32::try_from(bytes / 4096 - 1).unwrap_or(u32::MAX);
    page[INFO..INFO + 4].copy_from_slice(&1u32.to_le_bytes());
    page[INFO + 4..INFO + 8].copy_from_slice(&last.to_le_bytes());
    page[4096 - MAGIC.len()..].copy_from_slice(MAGIC);
    page
}

/// A Minix file system of version 1 (Linux `include/uapi/linux/minix_fs.h`): the simplest that Linux
/// still writes.
mod minix {
    use super::*;

    const BLOCK: usize = 1024;
    const INODES: u16 = 64;
    const INODE: usize = 32;
    /// With names of 14 bytes.
    const MAGIC: u16 = 0x137f;
    const MAX_FILE: u32 = (7 + 512 + 512 * 512) * BLOCK as u32;
    const BITS: u16 = 8 * BLOCK as u16;
    const ROOT_MODE: u16 = 0o040_755;

    /// Writes an empty one over the first blocks of `disk`, which has `bytes`.
    pub(super) fn make(disk: &File, bytes: u64) -> io::Result<()> {
        disk.write_all_at(&blocks(bytes), 0)
    }

    /// The blocks up to and with the root directory.
    pub(super) fn blocks(bytes: u64) -> Vec<u8> {
        let zones = u16::try_from(bytes / BLOCK as u64).unwrap_or(u16::MAX);
        let zone_maps = zones.div_ceil(BITS);
        let inode_blocks = (usize::from(INODES) * INODE).div_ceil(BLOCK) as u16;
        let first = 2 + 1 + zone_maps + inode_blocks;
        let mut image = vec![0; (usize::from(first) + 1) * BLOCK];
        let mut put = |at: usize, value: &[u8]| image[at..at + value.len()].copy_from_slice(value);
        for (index, field) in [INODES, zones, 1, zone_maps, first, 0].into_iter().enumerate() {
            put(BLOCK + 2 * index, &field.to_le_bytes());
        }
        put(BLOCK + 12, &MAX_FILE.to_le_bytes());
        put(BLOCK + 16, &MAGIC.to_le_bytes());
        // Unmounted cleanly.
        put(BLOCK + 18, &1u16.to_le_bytes());
        // Inode 0 does not exist, and 1 is the root's.
        put(2 * BLOCK, &map(2, INODES + 1, 1));
        // Bit 0 stands for nothing, bit 1 for the first zone, which is the root directory's.
        put(3 * BLOCK, &map(2, zones - first + 1, zone_maps));
        let root = (3 + usize::from(zone_maps)) * BLOCK;
        put(root, &ROOT_MODE.to_le_bytes());
        put(root + 4, &32u32.to_le_bytes());
        // Two names of it: its own and its parent's.
        put(root + 13, &[2]);
        put(root + 14, &first.to_le_bytes());
        let directory = usize::from(first) * BLOCK;
        for (index, name) in [".", ".."].into_iter().enumerate() {
            put(directory + 16 * index, &1u16.to_le_bytes());
            put(directory + 16 * index + 2, name.as_bytes());
        }
        image
    }

    /// A bitmap of `blocks` blocks whose first `used` bits are set, and all from `end` on.
    fn map(used: u16, end: u16, blocks: u16) -> Vec<u8> {
        let mut bytes = vec![0; usize::from(blocks) * BLOCK];
        for bit in 0..bytes.len() * 8 {
            if bit < used.into() || bit >= end.into() {
                bytes[bit / 8] |= 1 << (bit % 8);
            }
        }
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_swap_area_says_its_last_page() {
        let page = swap_header(8 << 20);
        assert_eq!(&page[4086..], b"SWAPSPACE2");
        assert_eq!(page[1024..1032], [1, 0, 0, 0, 0xff, 0x07, 0, 0]);
    }

    #[test]
    fn an_empty_file_system_field_by_field() {
        let image = minix::blocks(32 << 20);
        let word = |at: usize| u16::from_le_bytes([image[at], image[at + 1]]);
        // 64 inodes; 32768 zones; maps of 1 and 4 blocks; data from block 2 + 1 + 4 + 2 on.
        let fields: Vec<_> = (0..6).map(|index| word(1024 + 2 * index)).collect();
        assert_eq!(fields, [64, 32768, 1, 4, 9, 0]);
        assert_eq!(image[1036..1044], [0x00, 0x1c, 0x08, 0x10, 0x7f, 0x13, 1, 0]);
        // Inodes 0 and 1 are taken, 64 is the last one.
        assert_eq!((image[2048], image[2056], image[2057]), (0x03, 0xfe, 0xff));
        // Zones 9 to 32767 are bits 1 to 32759.
        assert_eq!((image[3072], image[3072 + 32759 / 8]), (0x03, 0x00));
        assert_eq!(image[3072 + 32760 / 8], 0xff);
        let root = 7 * 1024;
        assert_eq!((word(root), image[root + 13], word(root + 14)), (0o040_755, 2, 9));
        assert_eq!(&image[9 * 1024..9 * 1024 + 4], b"\x01\0.\0");
        assert_eq!(&image[9 * 1024 + 16..9 * 1024 + 21], b"\x01\0..\0");
        assert_eq!(image.len(), 10 * 1024);
    }
}
