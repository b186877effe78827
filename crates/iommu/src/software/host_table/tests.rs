//! The words in memory, typed from the specification, and what each change leaves of them.

use super::*;

fn pasid(number: u32) -> Pasid {
    Pasid::new(number).unwrap()
}

fn entry(words: [u64; 3]) -> PasidEntry {
    let [word0, word1, word2] = words;
    PasidEntry::from_words([word0, word1, word2, 0, 0, 0, 0, 0])
}

/// Nested, 4 levels each, second-stage root at 0x5000, domain 9.
fn nested(root: u64) -> PasidEntry {
    entry([1 | 2 << 2 | 3 << 6 | 0x5000, 9, root])
}

/// Second stage only.
fn second(root: u64, domain: u64) -> PasidEntry {
    entry([1 | 2 << 2 | 2 << 6 | root, domain, 0])
}

fn table(pasid_bits: u32) -> HostTable {
    HostTable::new(pasid_bits, &Arc::new(HostTables::new())).unwrap()
}

#[test]
fn an_entry_lies_where_the_specification_puts_it() {
    let table = table(20);
    let number = pasid(0xa_bcde);
    table.program(number, &nested(0x1234_5000)).unwrap();
    // A directory of 2^14 entries of 8 bytes; tables of 64 entries of 64 bytes.
    let load = |at: u64| table.tables.load(at).unwrap();
    let directory = load(table.directory.0 + (0xa_bcde >> 6) * 8);
    assert_eq!(directory & 0xfff, 1, "present, and nothing else");
    let at = (directory & !0xfff) + (0xa_bcde & 63) * 64;
    let words: [u64; 8] = core::array::from_fn(|word| load(at + 8 * word as u64));
    assert_eq!(words, [0x50c9, 9, 0x1234_5000, 0, 0, 0, 0, 0]);
    assert_eq!(table.read(number), Ok(nested(0x1234_5000)));
    // Its neighbours are not there, and those of other tables not even on the way.
    assert_eq!(table.read(pasid(0xa_bcdf)), Err(FaultReason::PasidEntryNotPresent));
    assert_eq!(table.read(pasid(1)), Err(FaultReason::PasidDirectoryNotPresent));
}

#[test]
fn its_memory_goes_with_it() {
    let tables = Arc::new(HostTables::new());
    let table = HostTable::new(20, &tables).unwrap();
    assert_eq!(tables.used(), 1 << 17);
    for number in [1, 2, 63, 64, 0xf_ffff] {
        table.program(pasid(number), &nested(0)).unwrap();
    }
    assert_eq!(tables.used(), (1 << 17) + 3 * 0x1000);
    drop(table);
    assert_eq!(tables.used(), 0);
}

#[test]
fn a_small_directory_refuses_what_is_beyond_it() {
    let table = table(7);
    table.program(pasid(127), &nested(0)).unwrap();
    assert_eq!(table.program(pasid(128), &nested(0)), Err(ProgramError::Range));
    assert_eq!(table.read(pasid(128)), Err(FaultReason::PasidRange));
    assert_eq!(table.replace(pasid(128), &nested(0)), None);
    table.clear(pasid(128));
    table.wipe(pasid(128));
    assert_eq!(table.read(pasid(127)), Ok(nested(0)));
}

#[test]
fn a_present_entry_is_not_overwritten() {
    let table = table(20);
    table.program(pasid(5), &nested(0x1000)).unwrap();
    assert_eq!(table.program(pasid(5), &nested(0x2000)), Err(ProgramError::Present));
    assert_eq!(table.read(pasid(5)), Ok(nested(0x1000)));
    table.clear(pasid(5));
    assert_eq!(table.read(pasid(5)), Err(FaultReason::PasidEntryNotPresent));
    assert_eq!(table.replace(pasid(5), &nested(0x2000)), None, "nothing to replace");
    table.program(pasid(5), &nested(0x2000)).unwrap();
    assert_eq!(table.read(pasid(5)), Ok(nested(0x2000)));
}

#[test]
fn an_entry_is_cleared_by_p_and_wiped_later() {
    let table = table(20);
    table.program(pasid(5), &nested(0x1000)).unwrap();
    let raw = || {
        let words = table.find(pasid(5)).unwrap();
        [0, 1, 2].map(|word| words.load(word).unwrap())
    };
    table.wipe(pasid(5));
    assert_eq!(table.read(pasid(5)), Ok(nested(0x1000)), "a present entry is not wiped");
    table.clear(pasid(5));
    assert_eq!(raw(), [0, 9, 0x1000]);
    table.wipe(pasid(5));
    assert_eq!(raw(), [0; 3]);
}

#[test]
fn one_word_that_is_in_use_is_replaced_in_one_store() {
    let table = table(20);
    let replace = |new: PasidEntry| {
        let change = table.replace(pasid(5), &new).unwrap();
        let read = table.read(pasid(5)).unwrap();
        assert_eq!((read.word0, read.word1), (new.word0, new.word1));
        assert!(!uses_first_stage(new.word0) || read.word2 == new.word2);
        change
    };
    table.program(pasid(5), &nested(0x1000)).unwrap();
    for (new, change) in [
        (nested(0x1000), Change::Hitless),            // the same
        (nested(0x2000), Change::Hitless),            // word 2
        (second(0x5000, 9), Change::Hitless),         // word 0; word 2 is ignored from then on
        (nested(0x3000), Change::Hitless),            // word 2 while it is ignored, then word 0
        (second(0x6000, 9), Change::Hitless),         // word 0
        (second(0x6000, 8), Change::Hitless),         // word 1
        (second(0x7000, 9), Change::Blocked),         // words 0 and 1
        (nested(0x3000), Change::Hitless),            // word 0, and 2 while it is ignored
        (entry([1 | 1 << 6, 9, 0]), Change::Blocked), // words 0 and 2
    ] {
        assert_eq!(replace(new), change, "{new:?}");
    }
}
