use alloc::vec;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::fs::File;

use rustix::fs::{fallocate, fcntl_add_seals, ftruncate, memfd_create, FallocateFlags, MemfdFlags};

use super::*;
use crate::{Gpa, GuestMemory, MemError, MemoryMap, Range, Segment};

const LEN: u64 = 0x10_0000;

/// A file of `len` bytes with these seals.
fn file(len: u64, seals: SealFlags) -> OwnedFd {
    let fd = memfd_create("test", MemfdFlags::ALLOW_SEALING | MemfdFlags::CLOEXEC).unwrap();
    ftruncate(&fd, len).unwrap();
    fcntl_add_seals(&fd, seals).unwrap();
    fd
}

fn sealed(len: u64) -> SealedFile {
    SealedFile::new(file(len, SealFlags::SHRINK), Policy::SealedOnly).unwrap()
}

fn map_of(mapping: Arc<Mapping>) -> MemoryMap {
    let range = Range::<Gpa>::new(Gpa(0), mapping.len() as u64).unwrap();
    let access = mapping.access();
    MemoryMap::new(vec![Segment { range, backing: mapping, offset: 0, access }]).unwrap()
}

#[test]
fn a_file_without_the_seal_is_refused_by_its_name() {
    let refused = MapError::Unsealed { missing: "F_SEAL_SHRINK" };
    for seals in [SealFlags::empty(), SealFlags::GROW | SealFlags::SEAL] {
        let result = SealedFile::new(file(LEN, seals), Policy::SealedOnly);
        assert_eq!(result.unwrap_err(), refused);
        SealedFile::new(file(LEN, seals), Policy::AllowUnsealed).unwrap();
    }
    // A file on a disk cannot have seals at all.
    let disk = File::open(std::env::current_exe().unwrap()).unwrap();
    assert_eq!(SealedFile::new(disk.into(), Policy::SealedOnly).unwrap_err(), refused);
    assert!(std::format!("{refused}").contains("F_SEAL_SHRINK"));
}

#[test]
fn what_is_no_file_is_refused() {
    let (socket, _peer) = std::os::unix::net::UnixStream::pair().unwrap();
    let directory = File::open("/").unwrap();
    let device = File::open("/dev/zero").unwrap();
    for fd in [OwnedFd::from(socket), directory.into(), device.into()] {
        let result = SealedFile::new(fd, Policy::AllowUnsealed);
        assert_eq!(result.unwrap_err(), MapError::NotRegular);
    }
}

#[test]
fn ranges_lie_inside_the_file_and_on_page_borders() {
    let file = sealed(LEN);
    let mut mappings = Mappings::default();
    let mut refused = |offset, len| mappings.map(&file, offset, len, Access::Write).unwrap_err();
    for (offset, len) in [(0, 0), (0x800, 0x1000), (0, 0x800), (1, u64::MAX)] {
        assert_eq!(refused(offset, len), MapError::Misaligned { offset, len });
    }
    for (offset, len) in [(0, LEN + 0x1000), (LEN, 0x1000), (0x1000, LEN), (!0xfff, 0x1000)] {
        assert_eq!(refused(offset, len), MapError::PastEnd { offset, len, file_len: LEN });
    }
    // A sealed file may grow, and then there is more to map.
    ftruncate(&*file.file, 2 * LEN).unwrap();
    mappings.map(&file, LEN, 0x1000, Access::Write).unwrap();
}

#[test]
fn a_truncation_in_the_middle_of_a_copy_fails_and_the_copy_goes_on() {
    const HALF: u64 = LEN / 2;
    let fd = file(LEN, SealFlags::SHRINK);
    let owner = fd.try_clone().unwrap();
    let file = SealedFile::new(fd, Policy::SealedOnly).unwrap();
    let map = map_of(Mappings::default().map(&file, 0, LEN, Access::Write).unwrap());
    map.window(Gpa(0), HALF as usize, Access::Write).unwrap().fill(&[1, 2, 3, 4, 5, 6, 7], 0);

    let (copies, stop) = (AtomicU64::new(0), AtomicBool::new(false));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let from = map.window(Gpa(0), HALF as usize, Access::Read).unwrap();
            let to = map.window(Gpa(HALF), HALF as usize, Access::Write).unwrap();
            while !stop.load(Ordering::Relaxed) {
                assert_eq!(from.copy_to(&to), HALF as usize);
                copies.fetch_add(1, Ordering::Relaxed);
            }
        });
        let wait_for = |count| {
            while copies.load(Ordering::Relaxed) < count {
                std::thread::yield_now();
            }
        };
        wait_for(1);
        for size in [0, HALF, LEN - 1] {
            assert_eq!(ftruncate(&owner, size), Err(Errno::PERM));
        }
        wait_for(copies.load(Ordering::Relaxed) + 2);
        stop.store(true, Ordering::Relaxed);
    });
    let copied = map.window(Gpa(HALF), HALF as usize, Access::Read).unwrap();
    assert_eq!(copied.mismatch_pattern(&[1, 2, 3, 4, 5, 6, 7], 0), None);
}

#[test]
fn a_hole_in_a_sealed_file_reads_as_zeroes() {
    let fd = file(LEN, SealFlags::SHRINK);
    let owner = fd.try_clone().unwrap();
    let file = SealedFile::new(fd, Policy::SealedOnly).unwrap();
    let map = map_of(Mappings::default().map(&file, 0, LEN, Access::Write).unwrap());
    map.store_u64(Gpa(0x2000), 7).unwrap();
    let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    fallocate(&owner, punch, 0, LEN).unwrap();
    assert_eq!(map.load_u64(Gpa(0x2000)), Ok(0));
}

#[test]
fn the_owner_sees_what_is_written_and_may_close_the_file() {
    let fd = file(LEN, SealFlags::SHRINK);
    let owner = fd.try_clone().unwrap();
    let file = SealedFile::new(fd, Policy::SealedOnly).unwrap();
    let mapping = Mappings::default().map(&file, 0x1000, 0x1000, Access::Write).unwrap();
    drop(file);
    map_of(mapping).write(Gpa(0x10), b"here").unwrap();
    let mut seen = [0; 4];
    assert_eq!(rustix::io::pread(&owner, &mut seen, 0x1010), Ok(4));
    assert_eq!(&seen, b"here");
}

#[test]
fn a_range_is_mapped_once() {
    let fd = file(LEN, SealFlags::SHRINK);
    let again = fd.try_clone().unwrap();
    let first = SealedFile::new(fd, Policy::SealedOnly).unwrap();
    let second = SealedFile::new(again, Policy::SealedOnly).unwrap();
    assert_eq!(first.id(0x1000), second.id(0x1000));
    assert_ne!(first.id(0x1000), sealed(LEN).id(0x1000));

    let mut mappings = Mappings::default();
    let one = mappings.map(&first, 0, 0x2000, Access::Write).unwrap();
    let same = mappings.map(&second, 0, 0x2000, Access::Write).unwrap();
    assert!(Arc::ptr_eq(&one, &same));
    let others = [
        mappings.map(&first, 0, 0x2000, Access::Read).unwrap(),
        mappings.map(&first, 0, 0x1000, Access::Write).unwrap(),
        mappings.map(&first, 0x1000, 0x1000, Access::Write).unwrap(),
        mappings.map(&sealed(LEN), 0, 0x2000, Access::Write).unwrap(),
    ];
    assert!(others.iter().all(|other| !Arc::ptr_eq(&one, other)));
    assert_eq!(mappings.mapped(), 0x8000);
    drop((one, others));
    assert_eq!(mappings.mapped(), 0x2000, "one report of it is left");
    drop(same);
    assert_eq!(mappings.mapped(), 0);
}

#[test]
fn no_more_than_the_limit_is_mapped() {
    let file = sealed(LEN);
    let mut mappings = Mappings::with_limit(0x3000);
    let held = mappings.map(&file, 0, 0x2000, Access::Write).unwrap();
    let refused = mappings.map(&file, 0x2000, 0x2000, Access::Write).unwrap_err();
    assert_eq!(refused, MapError::TooMuch { len: 0x2000, left: 0x1000 });
    mappings.map(&file, 0, 0x2000, Access::Write).expect("that one is there already");
    drop(held);
    mappings.map(&file, 0x2000, 0x2000, Access::Write).expect("there is room again");
}

#[test]
fn a_region_without_the_write_flag_is_mapped_for_reading() {
    let file = sealed(LEN);
    let mapping = Mappings::default().map(&file, 0, 0x1000, Access::Read).unwrap();
    assert_eq!(mapping.access(), Access::Read);
    // Not even a segment that claims otherwise gets a writable window over it.
    let range = Range::<Gpa>::new(Gpa(0), 0x1000).unwrap();
    let segment = Segment { range, backing: mapping.clone(), offset: 0, access: Access::Write };
    let refused = MemoryMap::new(vec![segment]).unwrap_err();
    assert_eq!(refused, crate::LayoutError::ReadOnlyBacking { gpa: Gpa(0) });

    let address = mapping.base().as_ptr() as usize;
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let start = std::format!("{address:x}-");
    let line = maps.lines().find(|line| line.starts_with(&start)).unwrap();
    assert!(line.contains(" r--s "), "{line}");
    assert_eq!(map_of(mapping).store_u32(Gpa(0), 1), Err(MemError::ReadOnly { gpa: Gpa(0) }));
}

#[test]
fn a_descriptor_gives_no_more_than_its_own_rights() {
    let fd = file(LEN, SealFlags::SHRINK);
    let path = std::format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&fd));
    let reading = SealedFile::new(File::open(&path).unwrap().into(), Policy::SealedOnly).unwrap();
    let writing = File::options().write(true).open(&path).unwrap();
    let refused = SealedFile::new(writing.into(), Policy::SealedOnly).unwrap_err();
    assert_eq!(refused, MapError::Forbidden { access: Access::Read });

    let both = SealedFile::new(fd, Policy::SealedOnly).unwrap();
    let mut mappings = Mappings::default();
    let _held = mappings.map(&both, 0, LEN, Access::Write).unwrap();
    // The same bytes are mapped for writing already, but by somebody else's right.
    let refused = mappings.map(&reading, 0, LEN, Access::Write).unwrap_err();
    assert_eq!(refused, MapError::Forbidden { access: Access::Write });
    mappings.map(&reading, 0, LEN, Access::Read).unwrap();
}

#[test]
fn huge_pages_need_a_trusted_owner() {
    let flags = MemfdFlags::HUGETLB | MemfdFlags::ALLOW_SEALING | MemfdFlags::CLOEXEC;
    let fd = match memfd_create("huge", flags) {
        Ok(fd) => fd,
        // A kernel without huge pages has no such files to refuse.
        Err(errno) => return assert!([Errno::INVAL, Errno::NOSYS, Errno::NOENT].contains(&errno)),
    };
    fcntl_add_seals(&fd, SealFlags::SHRINK).unwrap();
    let again = fd.try_clone().unwrap();
    assert_eq!(SealedFile::new(fd, Policy::SealedOnly).unwrap_err(), MapError::HugePages);
    SealedFile::new(again, Policy::AllowUnsealed).unwrap();
}
