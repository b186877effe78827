//! Entries typed by hand from the specifications' tables, and each reserved bit by its name.

use pgtable::{
    Entry, FirstStage, FirstStageEntry, Format, LeafEntry, ReservedBits, Rights, SecondStage,
    SecondStageEntry, SecondStageLevels, TableEntry,
};

const FIRST: FirstStage = FirstStage::FIVE_LEVEL;
const SECOND: SecondStage = SecondStage::new(SecondStageLevels::Five);

const FETCHES: Rights = Rights::READ.union(Rights::EXECUTE);
const SUPERVISOR: Rights = FETCHES.union(Rights::WRITE);
const ALL: Rights = Rights::all();

fn leaf(address: u64, rights: Rights) -> LeafEntry {
    LeafEntry { address, rights, accessed: false, dirty: false, global: false }
}

#[test]
fn first_stage_entries() {
    let decode = |level, entry| FIRST.decode(level, entry);
    for level in 1..=5 {
        for absent in [0, 0xffff_ffff_ffff_fffe, 0x1234_5000] {
            assert_eq!(decode(level, absent), Entry::NotPresent);
        }
    }
    // P alone: a supervisor page for reading.
    assert_eq!(decode(1, 0x1234_5001), Entry::Leaf(leaf(0x1234_5000, FETCHES)));
    // P, R/W.
    assert_eq!(decode(1, 0x1234_5003), Entry::Leaf(leaf(0x1234_5000, SUPERVISOR)));
    // P, R/W, U/S, PWT, PCD, PAT, software bits, ignored bits 62:52.
    assert_eq!(decode(1, 0x7ff0_0000_1234_5e9f), Entry::Leaf(leaf(0x1234_5000, ALL)));
    // XD.
    let data = ALL.difference(Rights::EXECUTE);
    assert_eq!(decode(1, 0x8000_0000_1234_5007), Entry::Leaf(leaf(0x1234_5000, data)));
    // A, D and G.
    let used = LeafEntry { accessed: true, dirty: true, global: true, ..leaf(0x5000, ALL) };
    assert_eq!(decode(1, 0x5167), Entry::Leaf(used));
    // Large pages, with their PAT bit 12 set.
    assert_eq!(decode(2, 0x20_1087), Entry::Leaf(leaf(0x20_0000, ALL)));
    assert_eq!(decode(3, 0xc000_1087), Entry::Leaf(leaf(0xc000_0000, ALL)));
    // Tables; D and G mean nothing in them.
    let table = TableEntry { address: 0xf_ffff_ffff_f000, rights: ALL, accessed: true };
    for level in 2..=5 {
        assert_eq!(decode(level, 0xf_ffff_ffff_f167), Entry::Table(table));
    }
}

#[test]
fn second_stage_entries() {
    let decode = |level, entry| SECOND.decode(level, entry);
    for level in 1..=5 {
        // Without R and W nothing is there, whatever else is set.
        for absent in [0, 0x1234_5004, !3] {
            assert_eq!(decode(level, absent), Entry::NotPresent);
        }
    }
    let user = Rights::USER;
    assert_eq!(decode(1, 0x5001), Entry::Leaf(leaf(0x5000, user | Rights::READ)));
    assert_eq!(decode(1, 0x5002), Entry::Leaf(leaf(0x5000, user | Rights::WRITE)));
    assert_eq!(decode(1, 0x5007), Entry::Leaf(leaf(0x5000, ALL)));
    // EMT, IPAT, the ignored bit 7, bit 10, SNP, bits 61:52, TM, bit 63.
    assert_eq!(decode(1, 0xfff0_0000_0000_5cff), Entry::Leaf(leaf(0x5000, ALL)));
    // A and D.
    let used = LeafEntry { accessed: true, dirty: true, ..leaf(0x5000, ALL) };
    assert_eq!(decode(1, 0x5307), Entry::Leaf(used));
    assert_eq!(decode(2, 0x20_0087), Entry::Leaf(leaf(0x20_0000, ALL)));
    assert_eq!(decode(3, 0xc000_0087), Entry::Leaf(leaf(0xc000_0000, ALL)));
    let table = TableEntry { address: 0xf_ffff_ffff_f000, rights: ALL, accessed: true };
    for level in 2..=5 {
        assert_eq!(decode(level, 0xbfff_ffff_ffff_f37f), Entry::Table(table));
    }
    // Without SSADE the flags are ignored: nothing is left to set.
    let no_flags = SecondStage { accessed_dirty: false, ..SECOND };
    assert_eq!(no_flags.decode(1, 0x5007), Entry::Leaf(used));
}

#[test]
fn entries_as_they_are_written() {
    assert_eq!(FIRST.table_entry(0x1234_5000), 0x1234_5007);
    assert_eq!(FIRST.leaf_entry(1, 0x1234_5000, ALL), 0x1234_5007);
    assert_eq!(FIRST.leaf_entry(1, 0x1234_5000, Rights::READ), 0x8000_0000_1234_5001);
    assert_eq!(FIRST.leaf_entry(2, 0x20_0000, ALL), 0x20_0087);
    assert_eq!(FIRST.leaf_entry(3, 0x4000_0000, SUPERVISOR), 0x4000_0083);
    assert_eq!(SECOND.table_entry(0x1234_5000), 0x1234_5007);
    assert_eq!(SECOND.leaf_entry(1, 0x1234_5000, Rights::READ | Rights::WRITE), 0x1234_5003);
    assert_eq!(SECOND.leaf_entry(3, 0x4000_0000, ALL), 0x4000_0087);
}

#[test]
fn flags_as_they_are_set() {
    assert_eq!(FIRST.mark(0x1007, false), 0x1027);
    assert_eq!(FIRST.mark(0x1007, true), 0x1067);
    assert_eq!(FIRST.mark(0x1067, false), 0x1067);
    assert_eq!(SECOND.mark(0x1007, false), 0x1107);
    assert_eq!(SECOND.mark(0x1007, true), 0x1307);
    assert_eq!(SECOND.mark(0x1307, false), 0x1307);
    // Everything else stays.
    assert_eq!(FIRST.mark(!0x60, true), u64::MAX);
    assert_eq!(SECOND.mark(!0x300, true), u64::MAX);
}

#[test]
fn bits_have_their_places() {
    let first = FirstStageEntry::new;
    assert_eq!(first().with_present(true).into_bits(), 1);
    assert_eq!(first().with_writable(true).into_bits(), 1 << 1);
    assert_eq!(first().with_user(true).into_bits(), 1 << 2);
    assert_eq!(first().with_accessed(true).into_bits(), 1 << 5);
    assert_eq!(first().with_dirty(true).into_bits(), 1 << 6);
    assert_eq!(first().with_page_size(true).into_bits(), 1 << 7);
    assert_eq!(first().with_global(true).into_bits(), 1 << 8);
    assert_eq!(first().with_frame((1 << 40) - 1).into_bits(), 0x000f_ffff_ffff_f000);
    assert_eq!(first().with_execute_disable(true).into_bits(), 1 << 63);
    let second = SecondStageEntry::new;
    assert_eq!(second().with_readable(true).into_bits(), 1);
    assert_eq!(second().with_writable(true).into_bits(), 1 << 1);
    assert_eq!(second().with_executable(true).into_bits(), 1 << 2);
    assert_eq!(second().with_page_size(true).into_bits(), 1 << 7);
    assert_eq!(second().with_accessed(true).into_bits(), 1 << 8);
    assert_eq!(second().with_dirty(true).into_bits(), 1 << 9);
    assert_eq!(second().with_snoop(true).into_bits(), 1 << 11);
    assert_eq!(second().with_frame((1 << 40) - 1).into_bits(), 0x000f_ffff_ffff_f000);
    assert_eq!(second().with_transient(true).into_bits(), 1 << 62);
}

/// Asserts that each bit of `bits` in a present entry of `level` is reserved as `which`, and that
/// the format with everything allowed takes it.
#[track_caller]
fn reserved<F: Format>(
    strict: F,
    lax: Option<F>,
    level: u8,
    base: u64,
    bits: u64,
    which: ReservedBits,
) {
    for bit in (0..64).filter(|bit| bits >> bit & 1 != 0) {
        let entry = base | 1 << bit;
        assert_eq!(strict.decode(level, entry), Entry::Reserved(which), "bit {bit}");
        if let Some(lax) = &lax {
            assert!(!matches!(lax.decode(level, entry), Entry::Reserved(_)), "bit {bit}");
        }
    }
}

#[test]
fn first_stage_reserved_bits() {
    let narrow = FirstStage { output_bits: 46, ..FIRST };
    for level in 1..=5 {
        reserved(narrow, Some(FIRST), level, 7, 0x000f_c000_0000_0000, ReservedBits::Address);
    }
    let no_nx = FirstStage { no_execute: false, ..FIRST };
    for level in 1..=5 {
        reserved(no_nx, Some(FIRST), level, 7, 1 << 63, ReservedBits::ExecuteDisable);
    }
    let no_gib = FirstStage { one_gib_pages: false, ..FIRST };
    reserved(no_gib, Some(FIRST), 3, 7, 0x80, ReservedBits::PageSize);
    for level in [4, 5] {
        reserved(FIRST, None, level, 7, 0x80, ReservedBits::PageSize);
    }
    reserved(FIRST, None, 2, 0x87, 0x001f_e000, ReservedBits::Alignment);
    reserved(FIRST, None, 3, 0x87, 0x3fff_e000, ReservedBits::Alignment);
}

#[test]
fn second_stage_reserved_bits() {
    let narrow = SecondStage { output_bits: 39, ..SECOND };
    for level in 1..=5 {
        reserved(narrow, Some(SECOND), level, 3, 0x000f_ff80_0000_0000, ReservedBits::Address);
    }
    let small_only = SecondStage { two_mib_pages: false, one_gib_pages: false, ..SECOND };
    for level in [2, 3] {
        reserved(small_only, Some(SECOND), level, 3, 0x80, ReservedBits::PageSize);
    }
    for level in [4, 5] {
        reserved(SECOND, None, level, 3, 0x80, ReservedBits::PageSize);
    }
    reserved(SECOND, None, 2, 0x83, 0x001f_f000, ReservedBits::Alignment);
    reserved(SECOND, None, 3, 0x83, 0x3fff_f000, ReservedBits::Alignment);
    let plain = SecondStage { snoop_control: false, device_tlb: false, ..SECOND };
    reserved(plain, Some(SECOND), 1, 3, 1 << 11, ReservedBits::Snoop);
    reserved(plain, Some(SECOND), 1, 3, 1 << 62, ReservedBits::Transient);
    for level in 2..=5 {
        reserved(SECOND, None, level, 3, 1 << 11, ReservedBits::Snoop);
        reserved(SECOND, None, level, 3, 1 << 62, ReservedBits::Transient);
    }
}
