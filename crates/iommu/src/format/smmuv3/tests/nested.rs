use super::super::*;
use super::{words, CAPS};
use crate::{SmmuCaps, StreamTranslation};

/// The host's entry for stage 2: VMID 7, 40 bits from level 1, S2TTB 0x8000, SHCFG 1.
fn stage_two() -> StreamEntry {
    StreamEntry::from_words(words(&[
        (0, 1 | 6 << 1),
        (1, 1 << 44),
        (2, 7 | 24 << 32 | 1 << 38 | 5 << 48 | 1 << 51 | 1 << 58),
        (3, 0x8000),
    ]))
}

fn nested(guest: [u64; 2]) -> Result<NestedEntry, NestedError> {
    nested_entry(guest, &stage_two(), &CAPS)
}

/// A guest's entry as Linux has it: stage 1, S1Fmt 2, S1CDMax 10; S1DSS 2, write-back, S1STALLD.
const GUEST: [u64; 2] = [0x5000_0001_2345_6000 | 1 | 5 << 1 | 2 << 4, 0x800_00d6];

#[test]
fn stage_one_goes_over_stage_two() {
    let NestedEntry { entry, ats } = nested(GUEST).unwrap();
    let expected = [
        0x5000_0001_2345_6000 | 1 | 7 << 1 | 2 << 4,
        0x800_00d6 | 1 << 44 | 1 << 19,
        stage_two().words()[2],
        0x8000,
        0,
        0,
        0,
        0,
    ];
    assert_eq!((entry.words(), ats), (expected, false));
    let over_host = entry.decode_over_host(&CAPS).unwrap();
    assert!(matches!(over_host.translation, StreamTranslation::StageOne(_)));
}

#[test]
fn ats_is_kept_apart() {
    let with_ats = [GUEST[0], GUEST[1] | 1 << 28];
    let NestedEntry { entry, ats } = nested(with_ats).unwrap();
    assert_eq!((entry.word1.ats(), ats), (0, true));
    let without = SmmuCaps { ats: false, ..CAPS };
    assert!(!nested_entry(with_ats, &stage_two(), &without).unwrap().ats);
    // It is only there with stage 1.
    assert!(!nested([1 | 4 << 1, 1 << 28]).unwrap().ats);
    for got in [2, 3] {
        let error = nested([GUEST[0], GUEST[1] | u64::from(got) << 28]);
        assert_eq!(error, Err(NestedError::Ats { got }));
    }
}

#[test]
fn abort_and_bypass() {
    let abort = [1, 0, 0, 0, 0, 0, 0, 0];
    assert_eq!(nested([1, 0]).unwrap().entry.words(), abort);
    // Not valid: what else is there does not count.
    assert_eq!(nested([!1, !0]).unwrap().entry.words(), abort);
    assert_eq!(nested([1 | 4 << 1, 0]).unwrap().entry, stage_two());
    for got in [1, 2, 3, 6, 7] {
        assert_eq!(nested([1 | u64::from(got) << 1, 0]), Err(NestedError::Config { got }));
    }
}

/// Every bit by itself, typed from the list of those that a guest may set.
#[test]
fn what_a_guest_may_set() {
    let settable: [u64; 2] = [0xf80f_ffff_ffff_ffff, 0x3800_00ff];
    for word in [0, 1] {
        for bit in 0..64 {
            let mut guest = [1u64, 0];
            guest[word] |= 1 << bit;
            let refused = Err(NestedError::NotSettable { word: word as u8 });
            let allowed = settable[word] >> bit & 1 == 1;
            assert_eq!(nested(guest) != refused, allowed, "word {word}, bit {bit}");
        }
    }
}

#[test]
fn what_comes_out_can_be_used() {
    // S1CDMax 31.
    let error = nested([GUEST[0] | 31 << 59, GUEST[1]]);
    let inner = StreamEntryError::DescriptorBits { got: 31, allowed: 16 };
    assert_eq!(error, Err(NestedError::Entry(inner)));
}
