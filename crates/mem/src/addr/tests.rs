use alloc::format;

use super::*;

#[test]
fn addresses_do_not_wrap() {
    assert_eq!(Gpa(0x1000).checked_add(0x234), Some(Gpa(0x1234)));
    assert_eq!(Iova(u64::MAX).checked_add(0), Some(Iova(u64::MAX)));
    assert_eq!(HostAddr(u64::MAX).checked_add(1), None);
}

#[test]
fn alignment_is_in_bits() {
    assert_eq!(Iova(0x12_3456).align_down(12), Iova(0x12_3000));
    assert_eq!(Iova(0x12_3456).align_down(0), Iova(0x12_3456));
    assert_eq!(Iova(u64::MAX).align_down(63), Iova(1 << 63));
    assert!(Gpa(0x3000).is_aligned(12));
    assert!(!Gpa(0x3000).is_aligned(13));
    assert!(Gpa(7).is_aligned(0));
}

#[test]
fn a_range_knows_its_ends() {
    assert_eq!(Range::<Gpa>::new(Gpa(5), 0), None);
    assert_eq!(Range::<Gpa>::new(Gpa(u64::MAX), 2), None);
    assert_eq!(Range::<Gpa>::new(Gpa(2), u64::MAX), None);
    let top = Range::<Gpa>::new(Gpa(u64::MAX - 3), 4).unwrap();
    assert_eq!((top.last, top.len_minus_one()), (Gpa(u64::MAX), 3));
    assert!(top.contains(Gpa(u64::MAX)) && top.contains(top.start));
    assert!(!top.contains(Gpa(u64::MAX - 4)));
}

#[test]
fn ranges_overlap_if_they_share_an_address() {
    let range = |start, len| Range::<Iova>::new(Iova(start), len).unwrap();
    let middle = range(0x1000, 0x1000);
    for (start, len) in [(0x1000, 1), (0x1fff, 1), (0, 0x1001), (0x1fff, 0x10), (0, 0x9000)] {
        assert!(middle.overlaps(&range(start, len)) && range(start, len).overlaps(&middle));
    }
    for (start, len) in [(0, 0x1000), (0x2000, 1), (u64::MAX, 1)] {
        assert!(!middle.overlaps(&range(start, len)) && !range(start, len).overlaps(&middle));
    }
}

#[test]
fn addresses_print_in_hexadecimal() {
    assert_eq!(format!("{} {:?}", Gpa(0x10), Iova(0xff)), "0x10 Iova(0xff)");
}
