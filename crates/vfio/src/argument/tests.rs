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
    reserved: [Range<usize>; 2],
}

const NONE: [Range<usize>; 2] = [0..0, 0..0];

const fn facts(size: usize, flags: u32, reserved: [Range<usize>; 2]) -> Facts {
    Facts { size, needed: size, flags: Some(flags), reserved }
}

/// One of iommufd's, of which `needed` bytes are iommufd's own.
const fn object(
    size: usize,
    needed: usize,
    flags: Option<u32>,
    reserved: [Range<usize>; 2],
) -> Facts {
    Facts { size, needed, flags, reserved }
}

type CopyIn = fn(&[u8]) -> Result<Vec<u8>, ArgumentError>;

fn bytes_of<T: Argument>(bytes: &[u8]) -> Result<Vec<u8>, ArgumentError> {
    copy_in::<T>(bytes).map(|value| value.as_bytes().to_vec())
}

fn structures() -> Vec<(&'static str, CopyIn, Facts)> {
    let info = Facts { size: 56, needed: 16, flags: None, reserved: [10..16, 0..0] };
    let posted_invalidate = Facts { size: 64, needed: 24, flags: Some(0), reserved: NONE };
    let attach = Some(0x8000_0001);
    let create = Facts { needed: 128, ..facts(168, 3, [20..24, 164..168]) };
    let counters = Facts { size: 168, needed: 8, flags: Some(0), reserved: NONE };
    vec![
        ("MapDma", bytes_of::<MapDma>, facts(32, 3, NONE)),
        ("UnmapDma", bytes_of::<UnmapDma>, facts(24, 2, NONE)),
        ("PasidRequest", bytes_of::<PasidRequest>, facts(16, 3, NONE)),
        ("CacheInvalidate", bytes_of::<CacheInvalidate>, posted_invalidate),
        ("CacheInvalidateInfo", bytes_of::<CacheInvalidateInfo>, info),
        ("CreateVm", bytes_of::<CreateVm>, create),
        ("Ticketed", bytes_of::<Ticketed>, facts(16, 7, NONE)),
        ("SetHandle", bytes_of::<SetHandle>, facts(8, 3, NONE)),
        ("OwnCacheInvalidate", bytes_of::<OwnCacheInvalidate>, facts(80, 3, [76..80, 0..0])),
        ("OwnPasidRequest", bytes_of::<OwnPasidRequest>, facts(48, 15, [36..40, 0..0])),
        ("Completion", bytes_of::<Completion>, facts(24, 0, [20..24, 0..0])),
        ("ReadFault", bytes_of::<ReadFault>, facts(96, 0, NONE)),
        ("AttachDevice", bytes_of::<AttachDevice>, facts(16, 0, [10..12, 0..0])),
        ("CountersArgument", bytes_of::<CountersArgument>, counters),
        ("Destroy", bytes_of::<Destroy>, object(24, 8, None, NONE)),
        ("IoasAlloc", bytes_of::<IoasAlloc>, object(32, 12, Some(0), [12..16, 0..0])),
        ("HwptAlloc", bytes_of::<HwptAlloc>, object(72, 48, Some(15), [20..24, 44..48])),
        ("GetHwInfo", bytes_of::<GetHwInfo>, object(56, 40, Some(0), [29..32, 0..0])),
        ("HwptInvalidate", bytes_of::<HwptInvalidate>, object(56, 32, None, [28..32, 0..0])),
        ("FaultQueueAlloc", bytes_of::<FaultQueueAlloc>, object(32, 16, Some(0), NONE)),
        ("ViommuAlloc", bytes_of::<ViommuAlloc>, object(56, 40, Some(0), [24..32, 0..0])),
        ("VdeviceAlloc", bytes_of::<VdeviceAlloc>, object(40, 24, None, NONE)),
        ("VeventqAlloc", bytes_of::<VeventqAlloc>, object(48, 32, Some(0), [28..32, 0..0])),
        ("AttachPageTable", bytes_of::<AttachPageTable>, object(48, 24, attach, [20..24, 0..0])),
        ("DetachPageTable", bytes_of::<DetachPageTable>, object(40, 16, Some(1), NONE)),
        ("SetMsiBinding", bytes_of::<SetMsiBinding>, object(32, 8, Some(3), NONE)),
        ("IrqSet", bytes_of::<IrqSet>, object(24, 20, Some(0x3f), NONE)),
        ("AttachIommufdPt", bytes_of::<AttachIommufdPt>, object(16, 12, Some(1), NONE)),
        ("DetachIommufdPt", bytes_of::<DetachIommufdPt>, object(12, 8, Some(1), NONE)),
        ("ReadEvent", bytes_of::<ReadEvent>, object(136, 8, None, NONE)),
        ("ReadPageRequest", bytes_of::<ReadPageRequest>, facts(80, 0, NONE)),
        ("RespondPageRequest", bytes_of::<RespondPageRequest>, facts(40, 0, [34..36, 0..0])),
        ("ReadPageFault", bytes_of::<ReadPageFault>, object(88, 12, Some(0), NONE)),
        ("RespondPageFault", bytes_of::<RespondPageFault>, object(40, 24, Some(0), [12..16, 0..0])),
        ("UnansweredArgument", bytes_of::<UnansweredArgument>, facts(32, 0, [26..28, 0..0])),
        ("GiveUpAnswersArgument", bytes_of::<GiveUpAnswersArgument>, facts(16, 0, NONE)),
        ("TickArgument", bytes_of::<TickArgument>, facts(40, 0, [36..40, 0..0])),
        (
            "PageRequestCountersArgument",
            bytes_of::<PageRequestCountersArgument>,
            object(104, 8, Some(0), NONE),
        ),
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
            let expected = if reserved.iter().any(|range| range.contains(&offset)) {
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
        (ArgumentError::BadAddress { address: 8, len: 8 }, 14),
    ];
    for (error, number) in numbers {
        assert_eq!(error.errno(), Errno(number));
    }
}

#[test]
fn results_go_no_further_than_the_caller_knows() {
    let value = CountersArgument { argsz: 24, flags: 0, counts: [u64::MAX; 20] };
    let mut bytes = zeroes(24, 128);
    copy_out(&value, &mut bytes);
    assert_eq!(bytes[8..24], [0xff; 16]);
    assert_eq!(bytes[24..], [0; 104]);
    // Nor beyond the bytes, or the structure.
    let mut bytes = zeroes(24, 10);
    copy_out(&value, &mut bytes);
    assert_eq!(bytes[8..], [0xff; 2]);
    let mut bytes = zeroes(176, 176);
    copy_out(&value, &mut bytes);
    assert_eq!(bytes[168..], [0; 8]);
    copy_out(&value, &mut []);
}

#[test]
fn an_address_is_an_offset_past_the_structure() {
    let argument = [0; 64];
    let at = |address, len| pointed_at(&argument, 48, address, len);
    assert_eq!(at(48, 16), Ok(48..64));
    assert_eq!(at(64, 0), Ok(64..64));
    for (address, len) in [(47, 1), (0, 0), (48, 17), (65, 0), (u64::MAX, 2), (48, u64::MAX)] {
        assert_eq!(at(address, len), Err(ArgumentError::BadAddress { address, len }));
    }
}

#[test]
fn data_is_all_there_and_has_no_unknown_tail() {
    assert_eq!(copy_data::<[u8; 4]>(&[1, 2, 3, 4, 0, 0]), Ok([1, 2, 3, 4]));
    let short = ArgumentError::TooShort { argsz: 3, needed: 4 };
    assert_eq!(copy_data::<[u8; 4]>(&[0; 3]), Err(short));
    let tail = ArgumentError::UnknownTail { offset: 5 };
    assert_eq!(copy_data::<[u8; 4]>(&[1, 2, 3, 4, 0, 1]), Err(tail));
}
