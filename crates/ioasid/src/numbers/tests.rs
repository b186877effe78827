use alloc::vec;

use super::*;
use crate::Config;

fn numbers(width: u32, reserved: Vec<(u32, u32)>) -> Numbers {
    let config = Config { width, ..Config::default() };
    Numbers::new(config.check().unwrap().geometry, reserved).unwrap()
}

#[test]
fn first_clear_honours_both_ends_of_the_range() {
    let words = [0b1011u64, u64::MAX, 0];
    assert_eq!(first_clear(&words, 0, 191), Some(2));
    assert_eq!(first_clear(&words, 2, 2), Some(2));
    assert_eq!(first_clear(&words, 3, 3), None);
    assert_eq!(first_clear(&words, 3, 63), Some(4));
    assert_eq!(first_clear(&words, 64, 127), None);
    assert_eq!(first_clear(&words, 64, 128), Some(128));
    assert_eq!(first_clear(&words, 191, 191), Some(191));
    assert_eq!(first_clear(&words, 5, 4), None);
}

#[test]
fn the_ends_of_the_widest_space_can_be_taken() {
    let mut numbers = numbers(31, vec![]);
    let last = (1 << 31) - 1;
    assert_eq!(numbers.take(last, last), Ok(Some(last)));
    assert_eq!(numbers.take(last, last), Ok(None));
    assert_eq!(numbers.take(0, last), Ok(Some(0)));
    numbers.put(last);
    assert_eq!(numbers.take(last, last), Ok(Some(last)));
}

#[test]
fn a_reservation_over_several_leaves_is_stepped_over() {
    let mut numbers = numbers(20, vec![(0, 0), (1000, 5000)]);
    assert_eq!(numbers.take(0, 10), Ok(Some(1)));
    assert_eq!(numbers.take(999, 4999), Ok(Some(999)));
    assert_eq!(numbers.take(999, 5000), Ok(None));
    assert_eq!(numbers.take(999, 9999), Ok(Some(5001)));
    let made = numbers.leaves.iter().filter(|leaf| leaf.is_some()).count();
    assert_eq!(made, 2, "1024 to 4095 is reserved whole");
}

#[test]
fn every_number_of_a_space_comes_out_once_and_in_order() {
    for width in 1..=8 {
        let mut numbers = numbers(width, vec![]);
        let last = (1 << width) - 1;
        for expected in 0..=last {
            assert_eq!(numbers.take(0, last), Ok(Some(expected)), "width {width}");
        }
        assert_eq!(numbers.take(0, last), Ok(None), "width {width}");
        for number in (0..=last).rev() {
            numbers.put(number);
            assert_eq!(numbers.take(0, last), Ok(Some(number)), "width {width}");
        }
    }
}
