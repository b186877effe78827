use mem::Gpa;

use super::*;

const CAPS: TableCaps = TableCaps { address_bits: 46, second_stage_large: 0b01, ..TableCaps::FULL };

fn entry(words: &[(usize, u64)]) -> PasidEntry {
    let mut all = [0; 8];
    for &(at, bits) in words {
        all[at] |= bits;
    }
    PasidEntry::from_words(all)
}

#[test]
fn directory_entry_bits() {
    let entry = DirectoryEntry::from_bits(0x0000_0012_3456_7003);
    assert!(entry.present() && entry.fault_disable());
    assert_eq!(entry.table(), Gpa(0x12_3456_7000));
    assert_eq!(DirectoryEntry::to_table(Gpa(0x5000)).into_bits(), 0x5001);
    assert_eq!(DirectoryEntry::from_bits(0xffc).reserved(), 0x3ff);
}

#[test]
fn addresses_of_entries() {
    let pasid = Pasid::new(0x12345).unwrap();
    // 0x12345 = 0x48d * 64 + 5
    assert_eq!(DirectoryEntry::address(Gpa(0x1000), pasid), Some(Gpa(0x1000 + 0x48d * 8)));
    assert_eq!(PasidEntry::address(Gpa(0x7000), pasid), Some(Gpa(0x7000 + 5 * 64)));
    let top = Gpa(u64::MAX - 0xfff);
    assert_eq!(DirectoryEntry::address(top, Pasid::MAX), None);
    assert_eq!(PasidEntry::address(Gpa(u64::MAX), pasid), None);
}

/// Each field set alone, typed from the specification's table (9.6).
#[test]
fn pasid_entry_bits() {
    let word0 = PasidWord0::new;
    assert_eq!(word0().with_present(true).into_bits(), 1);
    assert_eq!(word0().with_fault_disable(true).into_bits(), 1 << 1);
    assert_eq!(word0().with_address_width(7).into_bits(), 7 << 2);
    assert_eq!(word0().with_translation_type(7).into_bits(), 7 << 6);
    assert_eq!(word0().with_second_stage_accessed_dirty(true).into_bits(), 1 << 9);
    assert_eq!(word0().with_second_stage_page(1).into_bits(), 1 << 12);
    let word1 = PasidWord1::new;
    assert_eq!(word1().with_domain(0xffff).into_bits(), 0xffff);
    assert_eq!(word1().with_page_walk_snoop(true).into_bits(), 1 << 23);
    assert_eq!(word1().with_page_snoop(true).into_bits(), 1 << 24);
    assert_eq!(word1().with_memory_type(1).into_bits(), 1 << 25);
    let word2 = PasidWord2::new;
    assert_eq!(word2().with_supervisor(true).into_bits(), 1);
    assert_eq!(word2().with_execute(true).into_bits(), 1 << 1);
    assert_eq!(word2().with_first_stage_mode(3).into_bits(), 3 << 2);
    assert_eq!(word2().with_write_protect(true).into_bits(), 1 << 4);
    assert_eq!(word2().with_no_execute(true).into_bits(), 1 << 5);
    assert_eq!(word2().with_supervisor_no_execute(true).into_bits(), 1 << 6);
    assert_eq!(word2().with_extended_accessed(true).into_bits(), 1 << 7);
    assert_eq!(word2().with_first_stage_page(1).into_bits(), 1 << 12);
}

#[test]
fn words_round_trip() {
    let words = [1, 2 << 24, 3, 4, 5, 6, 7, 8];
    assert_eq!(PasidEntry::from_words(words).words(), words);
}

/// What Linux writes for a bound process on a 4-level machine: PGTT 1, AW 2, DID 1, PWSNP. Not
/// NXE, though the process's tables disable execution.
#[test]
fn first_stage_as_linux_binds_it() {
    let entry = PasidEntry::from_words([0x49, 0x0080_0001, 0x1_2345_6000, 0, 0, 0, 0, 0]);
    assert_eq!(entry.domain(), DomainId(1));
    let Ok(Translation::FirstStage(one)) = entry.decode(&CAPS) else { panic!("{entry:?}") };
    assert_eq!(one.root, Gpa(0x1_2345_6000));
    assert!(!one.supervisor && !one.write_protect);
    assert!(!one.format.five_level && one.format.no_execute && one.format.one_gib_pages);
    assert_eq!(one.format.output_bits, 46);
}

#[test]
fn second_stage_nested_and_pass_through() {
    // AW 1 (3 levels), SSADE, root 0x8000.
    let second = entry(&[(0, 1 | 1 << 2 | 2 << 6 | 1 << 9 | 0x8000)]);
    let Ok(Translation::SecondStage(root, format)) = second.decode(&CAPS) else { panic!() };
    assert_eq!(root, Gpa(0x8000));
    assert_eq!(format.levels, SecondStageLevels::Three);
    assert!(format.accessed_dirty && format.two_mib_pages && !format.one_gib_pages);

    // Five levels in both; the first-stage root is beyond 46 bits, as an input may be.
    let both = entry(&[(0, 1 | 3 << 2 | 3 << 6 | 0x8000), (2, 1 << 50 | 1 << 2 | 1 << 4 | 1)]);
    let Ok(Translation::Nested(one, root, format)) = both.decode(&CAPS) else { panic!() };
    assert_eq!((one.root, root), (Gpa(1 << 50), Gpa(0x8000)));
    assert!(one.format.five_level && one.supervisor && one.write_protect);
    assert_eq!(format.levels, SecondStageLevels::Five);

    assert_eq!(entry(&[(0, 1 | 4 << 6)]).decode(&CAPS), Ok(Translation::PassThrough));
}

#[test]
fn every_translation_type_has_its_capability() {
    let base = |kind: u64| entry(&[(0, 1 | 2 << 2 | kind << 6)]);
    for kind in 0..8 {
        let supported = (1..=4).contains(&kind);
        assert_eq!(base(kind).decode(&CAPS).is_ok(), supported, "{kind}");
    }
    let refused = |kind: u64, caps: TableCaps| {
        let got = kind as u8;
        assert_eq!(base(kind).decode(&caps), Err(EntryError::TranslationType { got }), "{kind}");
    };
    refused(1, TableCaps { first_stage: false, ..CAPS });
    refused(2, TableCaps { second_stage: false, ..CAPS });
    refused(3, TableCaps { nested: false, ..CAPS });
    refused(3, TableCaps { first_stage: false, ..CAPS });
    refused(3, TableCaps { second_stage: false, ..CAPS });
    refused(4, TableCaps { pass_through: false, ..CAPS });
}

#[test]
fn every_reserved_bit_is_refused() {
    let first = (0, 1 | 1 << 6);
    let refused = |word: usize, bit: u32, caps: &TableCaps| {
        let decoded = entry(&[first, (word, 1 << bit)]).decode(caps);
        let word = if word > 2 { 3 } else { word as u8 };
        assert_eq!(decoded, Err(EntryError::Reserved { word }), "word {word} bit {bit}");
    };
    let reserved: [(usize, &[u32]); 3] =
        [(0, &[5, 10, 11]), (1, &[16, 22, 25, 30, 63]), (2, &[1, 7, 8, 11, 46, 63])];
    for (word, bits) in reserved {
        for &bit in bits {
            refused(word, bit, &CAPS);
        }
    }
    for word in 3..8 {
        refused(word, 0, &CAPS);
        refused(word, 63, &CAPS);
    }
    refused(0, 9, &TableCaps { second_stage_accessed_dirty: false, ..CAPS });
    refused(1, 23, &TableCaps { page_walk_snoop: false, ..CAPS });
    refused(2, 0, &TableCaps { supervisor: false, ..CAPS });
    // A second-stage root beyond the address width; of no account in a first-stage entry.
    let beyond = entry(&[(0, 1 | 2 << 2 | 2 << 6 | 1 << 46)]);
    assert_eq!(beyond.decode(&CAPS), Err(EntryError::Reserved { word: 0 }));
    assert!(entry(&[first, (0, 1 << 46)]).decode(&CAPS).is_ok());
}

#[test]
fn widths_and_modes() {
    for got in 0..8u8 {
        let decoded = entry(&[(0, 1 | u64::from(got) << 2 | 2 << 6)]).decode(&CAPS);
        let expected = (1..=3).contains(&got);
        assert_eq!(decoded.is_ok(), expected, "AW {got}");
        if !expected {
            assert_eq!(decoded, Err(EntryError::AddressWidth { got }));
        }
        if expected {
            let without = TableCaps { second_stage_levels: 0b1110 & !(1 << got), ..CAPS };
            let decoded = entry(&[(0, 1 | u64::from(got) << 2 | 2 << 6)]).decode(&without);
            assert_eq!(decoded, Err(EntryError::AddressWidth { got }));
        }
    }
    for got in 0..4u8 {
        let decoded = entry(&[(0, 1 | 1 << 6), (2, u64::from(got) << 2)]).decode(&CAPS);
        assert_eq!(decoded.is_ok(), got < 2, "FSPM {got}");
    }
    let four = TableCaps { first_stage_5_level: false, ..CAPS };
    let decoded = entry(&[(0, 1 | 1 << 6), (2, 1 << 2)]).decode(&four);
    assert_eq!(decoded, Err(EntryError::PagingMode { got: 1 }));
}
