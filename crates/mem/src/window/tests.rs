use alloc::vec;
use alloc::vec::Vec;

use proptest::collection::vec as bytes_of;
use proptest::prelude::*;

use super::*;
use crate::{Backing, HeapMemory};

/// A window over all of `memory`.
fn window(memory: &HeapMemory, access: Access) -> Window<'_> {
    // SAFETY: the window borrows the memory, which is writable.
    unsafe { Window::new(memory.base(), memory.len(), access) }
}

/// Memory that holds `bytes`.
fn holding(bytes: &[u8]) -> HeapMemory {
    let memory = HeapMemory::new(bytes.len()).unwrap();
    assert_eq!(window(&memory, Access::Write).write(0, bytes), bytes.len());
    memory
}

/// Everything in the window.
fn contents(window: &Window<'_>) -> Vec<u8> {
    let mut bytes = vec![0; window.len()];
    assert_eq!(window.read(0, &mut bytes), bytes.len());
    bytes
}

/// `len` bytes that differ from their neighbours.
fn ramp(len: usize) -> Vec<u8> {
    (0..len).map(|index| (index * 7 + index / 256) as u8).collect()
}

#[test]
fn copies_stop_at_the_end() {
    let memory = holding(&[1, 2, 3, 4]);
    let window = window(&memory, Access::Write);
    let mut buf = [9; 3];
    assert_eq!(window.read(2, &mut buf), 2);
    assert_eq!(buf, [3, 4, 9]);
    assert_eq!(window.read(4, &mut buf), 0);
    assert_eq!(window.read(usize::MAX, &mut buf), 0);
    assert_eq!(window.write(3, &[7, 8]), 1);
    assert_eq!(window.write(usize::MAX, &[7]), 0);
    assert_eq!(contents(&window), [1, 2, 3, 7]);
}

#[test]
fn a_part_never_leaves_its_window() {
    let memory = holding(&ramp(16));
    let all = window(&memory, Access::Read);
    for offset in [0, 1, 15, 16, 17, usize::MAX] {
        for len in [0, 1, 16, usize::MAX] {
            let from = offset.min(16);
            let expected = &ramp(16)[from..(from + len.min(16)).min(16)];
            assert_eq!(contents(&all.part(offset, len)), expected, "{offset} {len}");
        }
    }
    assert!(all.part(16, 1).is_empty());
    assert_eq!(all.part(4, 4).part(2, 9).len(), 2);
}

#[test]
fn a_window_for_reading_refuses_every_store() {
    let memory = holding(&[0; 64]);
    let source = holding(&[1; 64]);
    let reading = window(&memory, Access::Read);
    assert_eq!(reading.write(0, &[1]), 0);
    assert_eq!(window(&source, Access::Read).copy_to(&reading), 0);
    assert_eq!(reading.fill(&[1], 0), 0);
    assert_eq!(reading.store_u8(0, 1), None);
    assert_eq!(reading.store_u32(0, 1), None);
    assert_eq!(reading.store_u64(0, 1), None);
    assert_eq!(reading.compare_exchange_u64(0, 0, 1), None);
    assert_eq!(reading.part(8, 8).store_u64(0, 1), None);
    assert_eq!(contents(&reading), [0; 64]);
}

#[test]
fn words_are_little_endian() {
    let memory = holding(&[1, 2, 3, 4, 5, 6, 7, 8]);
    let window = window(&memory, Access::Write);
    assert_eq!(window.load_u8(7), Some(8));
    assert_eq!(window.load_u32(4), Some(0x0807_0605));
    assert_eq!(window.load_u64(0), Some(0x0807_0605_0403_0201));
    assert_eq!(window.store_u32(0, 0x4433_2211), Some(()));
    assert_eq!(window.store_u8(4, 0x55), Some(()));
    assert_eq!(contents(&window), [0x11, 0x22, 0x33, 0x44, 0x55, 6, 7, 8]);
    assert_eq!(window.store_u64(0, 0x0102_0304_0506_0708), Some(()));
    assert_eq!(contents(&window), [8, 7, 6, 5, 4, 3, 2, 1]);
}

#[test]
fn words_must_be_aligned_and_inside() {
    let memory = holding(&[0; 16]);
    let window = window(&memory, Access::Write);
    for offset in 1..8 {
        assert_eq!(window.load_u64(offset), None);
        assert_eq!(window.store_u64(offset, 1), None);
        assert_eq!(window.compare_exchange_u64(offset, 0, 1), None);
    }
    for offset in [1, 2, 3] {
        assert_eq!(window.load_u32(offset), None);
        assert_eq!(window.store_u32(offset, 1), None);
    }
    for outside in [16, 24, usize::MAX - 7, usize::MAX] {
        assert_eq!(window.load_u8(outside), None);
        assert_eq!(window.load_u32(outside), None);
        assert_eq!(window.load_u64(outside), None);
        assert_eq!(window.compare_exchange_u64(outside, 0, 1), None);
    }
    // Alignment is that of the host's memory, not of the offset in a shifted part.
    assert_eq!(window.part(4, 12).load_u64(0), None);
    assert_eq!(window.part(4, 12).load_u64(4), Some(0));
    assert_eq!(window.part(8, 7).load_u64(0), None);
}

#[test]
fn compare_exchange_tells_what_it_found() {
    let memory = holding(&[0; 8]);
    let window = window(&memory, Access::Write);
    assert_eq!(window.compare_exchange_u64(0, 0, 0x1234), Some(Ok(0)));
    assert_eq!(window.compare_exchange_u64(0, 0, 1), Some(Err(0x1234)));
    assert_eq!(contents(&window)[..2], [0x34, 0x12]);
}

#[test]
fn concurrent_compare_exchanges_lose_no_increment() {
    const EACH: u64 = 2000;
    let memory = holding(&[0; 8]);
    let window = window(&memory, Access::Write);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                for _ in 0..EACH {
                    let mut seen = window.load_u64(0).unwrap();
                    while let Err(now) = window.compare_exchange_u64(0, seen, seen + 1).unwrap() {
                        seen = now;
                    }
                }
            });
        }
    });
    assert_eq!(window.load_u64(0), Some(2 * EACH));
}

#[test]
fn long_and_short_patterns_fill_across_blocks() {
    for pattern_len in [1, 2, 3, 8, 16, 511, 512, 513, 1024, 1025, 3000] {
        for phase in [0, 1, pattern_len - 1, pattern_len, 7 * pattern_len + 2, usize::MAX] {
            let pattern = ramp(pattern_len);
            let memory = holding(&[0xee; 5000]);
            let window = window(&memory, Access::Write).part(3, 4990);
            assert_eq!(window.fill(&pattern, phase), 4990);
            let from = phase % pattern_len;
            let expected: Vec<u8> = pattern.iter().copied().cycle().skip(from).take(4990).collect();
            assert_eq!(contents(&window), expected, "pattern {pattern_len}, phase {phase}");
            assert_eq!(window.mismatch_pattern(&pattern, phase), None);
            let all = contents(&super::tests::window(&memory, Access::Read));
            assert!(all[..3].iter().chain(&all[4993..]).all(|&byte| byte == 0xee));
        }
    }
}

#[test]
fn an_empty_pattern_changes_and_finds_nothing() {
    let memory = holding(&[5; 8]);
    let window = window(&memory, Access::Write);
    assert_eq!(window.fill(&[], 3), 0);
    assert_eq!(window.mismatch_pattern(&[], 3), None);
    assert_eq!(contents(&window), [5; 8]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn copy_to_is_memmove(
        len in 1usize..3000, from in 0usize..3000, to in 0usize..3000, count in 0usize..3000,
    ) {
        let mut expected = ramp(len);
        let memory = holding(&expected);
        let all = window(&memory, Access::Write);
        let copied = all.part(from, count).copy_to(&all.part(to, count));
        let (from, to) = (from.min(len), to.min(len));
        prop_assert_eq!(copied, count.min(len - from).min(len - to));
        expected.copy_within(from..from + copied, to);
        prop_assert_eq!(contents(&all), expected);
    }

    #[test]
    fn mismatch_is_the_first_difference(
        len in 0usize..4000, extra in 0usize..10, changes in bytes_of(0usize..4000, 0..4),
    ) {
        let ours = ramp(len + extra + 1);
        let mut theirs = ours[..len + 1].to_vec();
        for &change in changes.iter().filter(|&&change| change < len + 1) {
            theirs[change] ^= 0x80;
        }
        let expected = ours.iter().zip(&theirs).position(|(a, b)| a != b);
        let (a, b) = (holding(&ours), holding(&theirs));
        let (a, b) = (window(&a, Access::Read), window(&b, Access::Read));
        prop_assert_eq!(a.mismatch(&b), expected);
        prop_assert_eq!(b.mismatch(&a), expected);
    }

    #[test]
    fn mismatch_pattern_is_the_first_difference(
        len in 1usize..4000,
        pattern in bytes_of(any::<u8>(), 1..40),
        phase in any::<usize>(),
        change in 0usize..5000,
    ) {
        let memory = holding(&vec![0; len]);
        let all = window(&memory, Access::Write);
        all.fill(&pattern, phase);
        let expected = all.load_u8(change).map(|byte| {
            all.store_u8(change, !byte).unwrap();
            change
        });
        prop_assert_eq!(all.mismatch_pattern(&pattern, phase), expected);
    }
}
