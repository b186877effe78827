use alloc::vec;

use super::*;

fn numbers(width: u32, reserved: Vec<(u32, u32)>) -> Numbers {
    Numbers::new((1 << width) - 1, reserved).unwrap()
}

fn take(numbers: &Numbers, min: u32, max: u32) -> Option<u32> {
    numbers.moving().take_one(min, max).unwrap()
}

#[test]
fn the_ends_of_the_widest_space_can_be_taken() {
    let numbers = numbers(31, vec![]);
    let last = (1 << 31) - 1;
    assert_eq!(take(&numbers, last, last), Some(last));
    assert_eq!(take(&numbers, last, last), None);
    assert_eq!(take(&numbers, 0, last), Some(0));
    numbers.moving().put(last);
    assert_eq!(take(&numbers, last, last), Some(last));
}

#[test]
fn a_reservation_over_several_words_is_stepped_over() {
    let numbers = numbers(20, vec![(0, 0), (1000, 5000), (5002, 5100)]);
    assert_eq!(take(&numbers, 0, 10), Some(1));
    assert_eq!(take(&numbers, 999, 4999), Some(999));
    assert_eq!(take(&numbers, 999, 5000), None);
    assert_eq!(take(&numbers, 999, 9999), Some(5001));
    assert_eq!(take(&numbers, 999, 9999), Some(5101));
    let made = (0..1 << 8).filter(|chunk| numbers.words.has(chunk * 64)).count();
    assert_eq!(made, 2);
}

#[test]
fn a_batch_shares_a_word_and_its_lowest_comes_last() {
    let numbers = numbers(20, vec![(0, 0)]);
    let mut got = vec![];
    assert_eq!(numbers.moving().take(60, 200, 64, |number| got.push(number)), Ok(4));
    assert_eq!(got, [63, 62, 61, 60]);
    got.clear();
    assert_eq!(numbers.moving().take(60, 200, 3, |number| got.push(number)), Ok(3));
    assert_eq!(got, [66, 65, 64]);
    assert_eq!(take(&numbers, 190, 200), Some(190));
}

#[test]
fn every_number_of_a_space_comes_out_once_and_in_order() {
    for width in [1, 2, 5, 6, 7, 8, 13] {
        let numbers = numbers(width, vec![]);
        let last = (1 << width) - 1;
        for expected in 0..=last {
            assert!(!numbers.surely_none(0, last), "width {width}");
            assert_eq!(take(&numbers, 0, last), Some(expected), "width {width}");
        }
        assert!(numbers.surely_none(0, last), "width {width}");
        assert_eq!(take(&numbers, 0, last), None, "width {width}");
        for number in (0..=last).rev() {
            numbers.moving().put(number);
            assert_eq!(take(&numbers, 0, last), Some(number), "width {width}");
        }
    }
}

#[test]
fn a_move_is_noticed() {
    let numbers = numbers(3, vec![]);
    let before = numbers.moves();
    assert!(numbers.unmoved_since(before));
    let moving = numbers.moving();
    assert!(!numbers.unmoved_since(before));
    assert!(!numbers.unmoved_since(numbers.moves()), "while it moves nothing can be said");
    let after = moving.end();
    assert!(!numbers.unmoved_since(before));
    assert!(numbers.unmoved_since(after));
}

#[test]
fn summaries_agree_with_a_plain_set_under_random_moves() {
    let numbers = numbers(14, vec![(0, 0), (64, 127), (4000, 8200)]);
    let mut free: alloc::collections::BTreeSet<u32> = (1..64).chain(128..4000).collect();
    free.extend(8201..1 << 14);
    let (mut out, mut seed) = (vec![], 1u64);
    let mut random = |below: u32| {
        seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        ((seed >> 33) as u32) % below
    };
    for _ in 0..20_000 {
        let min = random(1 << 14);
        let length = random(14);
        let max = (min + random(1 << length)).min((1 << 14) - 1);
        if random(3) > 0 {
            let expected = free.range(min..=max).next().copied();
            assert!(expected.is_none() || !numbers.surely_none(min, max));
            assert_eq!(take(&numbers, min, max), expected, "{min}..={max}");
            free.retain(|&number| Some(number) != expected);
            out.extend(expected);
        } else if !out.is_empty() {
            let number = out.swap_remove(random(out.len() as u32) as usize);
            numbers.moving().put(number);
            free.insert(number);
        }
    }
}
