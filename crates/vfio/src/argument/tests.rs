use std::vec;
use std::vec::Vec;

use super::*;
use crate::spec::*;

/// What a test knows of a structure: its size, the least, its flags and its reserved bytes, typed
/// from the reference and not taken from the code.
struct Facts {
    size: usize,
    needed: usize,
    flags: Option<u32>,
    reserved: Range<usize>,
}

const fn facts(size: usize, flags: u32, reserved: Range<usize>) -> Facts {
    Facts { size, needed: size, flags: Some(flags), reserved }
}

type CopyIn = fn(&[u8]) -> Result<Vec<u8>, ArgumentError>;

fn bytes_of<T: Argument>(bytes: &[u8]) -> Result<Vec<u8>, ArgumentError> {
    copy_in::<T>(bytes).map(|value| value.as_bytes().to_vec())
}

fn structures() -> Vec<(&'static str, CopyIn, Facts)> {
    let info = Facts { size: 56, needed: 16, flags: None, reserved: 10..16 };
    let posted_invalidate = Facts { size: 64, needed: 24, flags: Some(0), reserved: 0..0 };
    let counters = Facts { size: 128, needed: 8, flags: Some(0), reserved: 0..0 };
    vec![
        ("MapDma", bytes_of::<MapDma>, facts(32, 3, 0..0)),
        ("UnmapDma", bytes_of::<UnmapDma>, facts(24, 2, 0..0)),
        ("PasidRequest", bytes_of::<PasidRequest>, facts(16, 3, 0..0)),
        ("CacheInvalidate", bytes_of::<CacheInvalidate>, posted_invalidate),
        ("CacheInvalidateInfo", bytes_of::<CacheInvalidateInfo>, info),
        ("CreateVm", bytes_of::<CreateVm>, Facts { needed: 128, ..facts(144, 3, 20..24) }),
        ("Ticketed", bytes_of::<Ticketed>, facts(16, 7, 0..0)),
        ("SetHandle", bytes_of::<SetHandle>, facts(8, 3, 0..0)),
        ("OwnCacheInvalidate", bytes_of::<OwnCacheInvalidate>, facts(80, 3, 76..80)),
        ("OwnPasidRequest", bytes_of::<OwnPasidRequest>, facts(48, 15, 36..40)),
        ("Completion", bytes_of::<Completion>, facts(24, 0, 20..24)),
        ("ReadFault", bytes_of::<ReadFault>, facts(96, 0, 0..0)),
        ("AttachDevice", bytes_of::<AttachDevice>, facts(16, 0, 10..12)),
        ("CountersArgument", bytes_of::<CountersArgument>, counters),
    ]
}

/// A structure of zeroes that says it has `argsz` bytes, and has `given`.
fn zeroes(argsz: usize, given: usize) -> Vec<u8> {
    let mut bytes = (argsz as u32).to_ne_bytes().to_vec();
    bytes.resize(given, 0);
    bytes
}

#[test]
fn every_length() {
    for (name, copy_in, Facts { size, needed, .. }) in structures() {
        for given in 0..4 {
            let truncated = ArgumentError::Truncated { given, claimed: 4 };
            assert_eq!(copy_in(&zeroes(size, given)), Err(truncated), "{name}");
        }
        for argsz in 0..needed {
            // However much there is.
            for given in [argsz.max(4), size] {
                let short = ArgumentError::TooShort { argsz: argsz as u32, needed };
                assert_eq!(copy_in(&zeroes(argsz, given)), Err(short), "{name}");
            }
        }
        for argsz in needed..=size + 16 {
            let whole = zeroes(argsz, argsz);
            let mut copy = whole.clone();
            copy.resize(size, 0);
            assert_eq!(copy_in(&whole), Ok(copy), "{name}");
            for given in 4..argsz {
                let truncated = ArgumentError::Truncated { given, claimed: argsz };
                assert_eq!(copy_in(&whole[..given]), Err(truncated), "{name}");
            }
        }
        assert!(copy_in(&zeroes(MAX_ARGUMENT, MAX_ARGUMENT)).is_ok(), "{name}");
        let long = MAX_ARGUMENT + 1;
        let too_long = ArgumentError::TooLong { argsz: long as u32 };
        assert_eq!(copy_in(&zeroes(long, long)), Err(too_long), "{name}");
        assert_eq!(copy_in(&[0xff; 4]), Err(ArgumentError::TooLong { argsz: u32::MAX }), "{name}");
    }
}

#[test]
fn what_a_caller_leaves_out_is_zero_and_what_follows_is_not_looked_at() {
    let mut bytes = zeroes(24, 64);
    bytes[24..].fill(0xee);
    let copy: CacheInvalidate = copy_in(&bytes).unwrap();
    assert_eq!(copy.info.scope, [0; 40]);
}

#[test]
fn a_tail_that_is_not_zero() {
    for (name, copy_in, Facts { size, .. }) in structures() {
        for offset in size..size + 16 {
            let mut bytes = zeroes(size + 16, size + 16);
            bytes[offset] = 1;
            assert_eq!(copy_in(&bytes), Err(ArgumentError::UnknownTail { offset }), "{name}");
        }
    }
}

#[test]
fn every_flag() {
    for (name, copy_in, Facts { size, flags, .. }) in structures() {
        let Some(known) = flags else { continue };
        for bit in 0..32 {
            let flag = 1u32 << bit;
            let mut bytes = zeroes(size, size);
            bytes[4..8].copy_from_slice(&flag.to_ne_bytes());
            let result = copy_in(&bytes);
            if known & flag != 0 {
                assert_eq!(result, Ok(bytes.clone()), "{name}");
            } else {
                assert_eq!(result, Err(ArgumentError::UnknownFlags { flags: flag }), "{name}");
            }
            // The known ones are not blamed.
            bytes[4..8].copy_from_slice(&(flag | known).to_ne_bytes());
            if known & flag == 0 {
                let unknown = ArgumentError::UnknownFlags { flags: flag };
                assert_eq!(copy_in(&bytes), Err(unknown), "{name}");
            }
        }
    }
}

#[test]
fn every_byte_that_may_not_be_set() {
    for (name, copy_in, Facts { size, flags, reserved, .. }) in structures() {
        // Where there are no flags the word means something else.
        let first = if flags.is_some() { 8 } else { 4 };
        for offset in first..size {
            let mut bytes = zeroes(size, size);
            bytes[offset] = 0x80;
            let expected = if reserved.contains(&offset) {
                Err(ArgumentError::Reserved { offset })
            } else {
                Ok(bytes.clone())
            };
            assert_eq!(copy_in(&bytes), expected, "{name} {offset}");
        }
    }
}

#[test]
fn each_has_its_number() {
    let numbers = [
        (ArgumentError::Truncated { given: 0, claimed: 4 }, 14),
        (ArgumentError::TooShort { argsz: 0, needed: 8 }, 22),
        (ArgumentError::TooLong { argsz: 5000 }, 7),
        (ArgumentError::UnknownTail { offset: 8 }, 7),
        (ArgumentError::UnknownFlags { flags: 8 }, 22),
        (ArgumentError::Reserved { offset: 8 }, 22),
    ];
    for (error, number) in numbers {
        assert_eq!(error.errno(), Errno(number));
    }
}

#[test]
fn results_go_no_further_than_the_caller_knows() {
    let value = CountersArgument { argsz: 24, flags: 0, counts: [u64::MAX; 15] };
    let mut bytes = zeroes(24, 128);
    copy_out(&value, &mut bytes);
    assert_eq!(bytes[8..24], [0xff; 16]);
    assert_eq!(bytes[24..], [0; 104]);
    // Nor beyond the bytes, or the structure.
    let mut bytes = zeroes(24, 10);
    copy_out(&value, &mut bytes);
    assert_eq!(bytes[8..], [0xff; 2]);
    let mut bytes = zeroes(136, 136);
    copy_out(&value, &mut bytes);
    assert_eq!(bytes[128..], [0; 8]);
    copy_out(&value, &mut []);
}
