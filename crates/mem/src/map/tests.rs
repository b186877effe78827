use alloc::sync::Arc;
use alloc::vec;
use alloc::vec::Vec;

use super::*;

fn range(start: u64, len: u64) -> Range<Gpa> {
    Range::<Gpa>::new(Gpa(start), len).unwrap()
}

fn segment(start: u64, len: u64, backing: &Arc<HeapMemory>, offset: usize) -> Segment {
    Segment { range: range(start, len), backing: backing.clone(), offset, access: Access::Write }
}

#[test]
fn an_empty_map_has_no_memory() {
    let map = MemoryMap::default();
    assert_eq!(map.load_u32(Gpa(0)), Err(MemError::Unmapped { gpa: Gpa(0) }));
    assert_eq!(map.window(Gpa(0), 0, Access::Write).unwrap().len(), 0);
}

#[test]
fn a_window_ends_where_the_memory_does() {
    let map = MemoryMap::anonymous(&[(Gpa(0x1000), 0x1000), (Gpa(0x3000), 0x10)]).unwrap();
    let len = |gpa, len| map.window(Gpa(gpa), len, Access::Write).map(|window| window.len());
    assert_eq!(len(0xfff, 1), Err(MemError::Unmapped { gpa: Gpa(0xfff) }));
    assert_eq!(len(0x1000, 0x1000), Ok(0x1000));
    assert_eq!(len(0x1000, usize::MAX), Ok(0x1000));
    assert_eq!(len(0x1fff, 2), Ok(1));
    assert_eq!(len(0x2000, 1), Err(MemError::Unmapped { gpa: Gpa(0x2000) }));
    assert_eq!(len(0x300f, 8), Ok(1));
    assert_eq!(len(0x3010, 8), Err(MemError::Unmapped { gpa: Gpa(0x3010) }));
}

#[test]
fn bytes_cross_from_one_backing_to_the_next() {
    let map = MemoryMap::anonymous(&[(Gpa(0x2000), 0x1000), (Gpa(0x1000), 0x1000)]).unwrap();
    assert_eq!(map.segments().len(), 2);
    let bytes: Vec<u8> = (0..=255).collect();
    map.write(Gpa(0x1f80), &bytes).unwrap();
    let mut back = vec![0; 256];
    map.read(Gpa(0x1f80), &mut back).unwrap();
    assert_eq!(back, bytes);
    assert_eq!(map.load_u32(Gpa(0x2000)), Ok(0x8382_8180));
}

#[test]
fn an_access_past_the_end_names_the_first_missing_byte() {
    let map = MemoryMap::anonymous(&[(Gpa(0), 0x1000)]).unwrap();
    let missing = MemError::Unmapped { gpa: Gpa(0x1000) };
    assert_eq!(map.read(Gpa(0xffe), &mut [0; 4]), Err(missing));
    assert_eq!(map.write(Gpa(0xffe), &[1; 4]), Err(missing));
    assert_eq!(map.load_u32(Gpa(0xffc)), Ok(0x0101_0000));
}

#[test]
fn memory_may_end_at_the_top_of_the_address_space() {
    let top = u64::MAX - 0xfff;
    let map = MemoryMap::anonymous(&[(Gpa(top), 0x1000)]).unwrap();
    map.write(Gpa(u64::MAX), &[7]).unwrap();
    assert_eq!(map.load_u64(Gpa(u64::MAX - 7)), Ok(7 << 56));
    let past = Err(MemError::Unmapped { gpa: Gpa(u64::MAX) });
    assert_eq!(map.read(Gpa(u64::MAX), &mut [0; 2]), past);
}

#[test]
fn neighbours_in_one_backing_are_one_segment() {
    let backing = Arc::new(HeapMemory::new(0x4000).unwrap());
    let map = MemoryMap::new(vec![
        segment(0x1000, 0x1000, &backing, 0x1000),
        segment(0, 0x1000, &backing, 0),
        segment(0x2000, 0x1000, &backing, 0x3000),
    ])
    .unwrap();
    let ranges: Vec<_> = map.segments().iter().map(|segment| segment.range).collect();
    assert_eq!(ranges, [range(0, 0x2000), range(0x2000, 0x1000)]);
    assert_eq!(map.window(Gpa(0), 0x3000, Access::Read).unwrap().len(), 0x2000);
}

#[test]
fn a_segment_allows_no_more_than_it_says() {
    let backing = Arc::new(HeapMemory::new(0x1000).unwrap());
    let map = MemoryMap::new(vec![Segment {
        access: Access::Read,
        ..segment(0x1000, 0x1000, &backing, 0)
    }])
    .unwrap();
    assert_eq!(map.load_u64(Gpa(0x1000)), Ok(0));
    assert_eq!(map.store_u64(Gpa(0x1000), 1), Err(MemError::ReadOnly { gpa: Gpa(0x1000) }));
    let window = map.window(Gpa(0x1000), 8, Access::Read).unwrap();
    assert_eq!(window.store_u64(0, 1), None);
}

#[test]
fn what_does_not_fit_is_refused_by_name() {
    let backing = Arc::new(HeapMemory::new(0x1000).unwrap());
    let gpa = Gpa(0x1000);
    let past = LayoutError::PastBacking { gpa, backing: 0x1000 };
    let refused = |segments| MemoryMap::new(segments).unwrap_err();

    assert_eq!(refused(vec![segment(0x1000, 0x1001, &backing, 0)]), past);
    assert_eq!(refused(vec![segment(0x1000, 0x1000, &backing, 1)]), past);
    assert_eq!(refused(vec![segment(0x1000, 0x1000, &backing, usize::MAX)]), past);
    let backwards = Range { start: gpa, last: Gpa(0xfff) };
    let backwards = Segment { range: backwards, ..segment(0, 1, &backing, 0) };
    assert_eq!(refused(vec![backwards]), LayoutError::BadRange { gpa });
    assert_eq!(
        refused(vec![segment(0x1000, 0x100, &backing, 0), segment(0x800, 0x801, &backing, 0)]),
        LayoutError::Overlap { gpa }
    );
    assert_eq!(MemoryMap::anonymous(&[(gpa, 0)]).unwrap_err(), LayoutError::BadRange { gpa });
    assert_eq!(
        MemoryMap::anonymous(&[(gpa, u64::MAX)]).unwrap_err(),
        LayoutError::BadRange { gpa }
    );
    assert_eq!(
        MemoryMap::anonymous(&[(gpa, u64::MAX / 2 + 1)]).unwrap_err(),
        LayoutError::OutOfMemory { gpa }
    );
}

#[test]
fn a_clone_keeps_the_memory_alive() {
    let backing = Arc::new(HeapMemory::new(0x1000).unwrap());
    let map = MemoryMap::new(vec![segment(0, 0x1000, &backing, 0)]).unwrap();
    let clone = map.clone();
    drop(map);
    assert_eq!(Arc::strong_count(&backing), 2);
    drop(clone);
    assert_eq!(Arc::strong_count(&backing), 1);
}

#[test]
fn heap_memory_is_zeroed_and_page_aligned() {
    for len in [1, 4095, 4096, 70_000] {
        let memory = HeapMemory::new(len).unwrap();
        assert_eq!(memory.base().as_ptr() as usize % 4096, 0);
        assert_eq!(memory.len(), len);
        // SAFETY: the memory lives for the block and nobody else reaches it.
        let window = unsafe { Window::new(memory.base(), len, Access::Write) };
        let mut bytes = vec![1; len];
        assert_eq!(window.read(0, &mut bytes), len);
        assert!(bytes.iter().all(|&byte| byte == 0));
        assert_eq!(window.write(0, &vec![2; len]), len);
    }
    assert!(HeapMemory::new(0).is_none());
    assert!(HeapMemory::new(usize::MAX).is_none());
}
