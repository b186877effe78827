//! The walker: one suite over every format, with the naive twin as judge.

mod common;

use common::twin::{Fault, Twin};
use common::{Arena, ArenaError};
use pgtable::{
    walk, Access, Denied, Format, Map, PageTable, Request, Rights, WalkFault, MAX_ATTEMPTS,
    MAX_LEVELS,
};
use proptest::prelude::*;
use proptest::test_runner::TestRunner;

for_every_format!(
    every_size_at_every_level,
    first_and_last_addresses,
    rights_of_all_levels_count,
    each_reserved_bit_is_found,
    flags_are_set_exactly_where_used,
    a_fault_changes_nothing,
    garbage_is_judged_as_by_the_twin,
    a_table_of_itself_ends,
    flags_set_by_others_are_kept,
    an_entry_that_keeps_changing_is_contended,
    an_unreachable_table_is_named,
);

const RIGHTS: Rights = Rights::all();
const READ: Request = Request::user(Access::Read);
const WRITE: Request = Request::user(Access::Write);

/// Every request there is.
fn requests() -> impl Iterator<Item = Request> {
    let accesses = [Access::Read, Access::Write, Access::Execute];
    accesses.into_iter().flat_map(|access| {
        (0..8).map(move |bits| Request {
            access,
            privileged: bits & 1 != 0,
            write_protect: bits & 2 != 0,
            smep: bits & 4 != 0,
        })
    })
}

/// A table with one page of level `level` at `address`.
fn one_page<F: Format>(format: F, level: u8, address: u64, output: u64) -> (Arena, PageTable<F>) {
    let mut arena = Arena::default();
    let len = 1 << format.size_bits(level);
    let mut table = PageTable::new(format, &mut arena).unwrap();
    let map = Map { address, output, len, rights: RIGHTS, largest: level };
    table.map(&mut arena, &map).unwrap();
    (arena, table)
}

/// The entries that a walk to `address` uses: (address, level).
fn path_of<F: Format>(arena: &Arena, table: &PageTable<F>, twin: &Twin, at: u64) -> Vec<(u64, u8)> {
    let found = twin.walk(arena, table.root(), at, &READ).unwrap();
    found.entries.iter().zip((1..=twin.levels).rev()).map(|(&(at, _), level)| (at, level)).collect()
}

/// Everything in the arena.
fn contents(arena: &Arena) -> Vec<(u64, u64)> {
    let pages = arena.pages.borrow();
    let entries = pages.iter().flat_map(|(&page, entries)| {
        entries.iter().zip(0..).map(move |(&value, index)| (page + 8 * index, value))
    });
    entries.collect()
}

/// Walks with the crate and with the twin; everything must agree, the tables afterwards too.
fn check<F: Format>(format: &F, twin: &Twin, arena: &Arena, root: u64, at: u64, request: &Request) {
    let mut expected = contents(arena);
    let judged = twin.walk(arena, root, at, request);
    arena.loads.set(0);
    arena.exchanges.set(0);
    let found = walk(format, root, at, request, arena);
    let steps = u64::from(MAX_ATTEMPTS) * MAX_LEVELS as u64;
    assert!(arena.loads.get() <= steps && arena.exchanges.get() <= steps);
    match (judged, found) {
        (Ok(judged), Ok(leaf)) => {
            assert_eq!((leaf.translate(at), leaf.size_bits), (judged.output, judged.size_bits));
            for (entry, value) in judged.entries {
                let slot = expected.iter_mut().find(|(at, _)| *at == entry).unwrap();
                slot.1 = value;
            }
        }
        (Err(judged), Err(fault)) => assert_eq!(Fault::from(fault), judged, "{at:#x} {request:?}"),
        (judged, found) => panic!("{at:#x} {request:?}: {found:?}, judged {judged:?}"),
    }
    assert_eq!(contents(arena), expected, "tables after {at:#x} {request:?}");
}

fn every_size_at_every_level<F: Format + Copy>(format: F, twin: Twin) {
    for level in 1..=3 {
        let size = 1u64 << (12 + 9 * (u32::from(level) - 1));
        let (address, output) = (5 * size, 9 * size);
        let (arena, table) = one_page(format, level, address, output);
        assert_eq!(arena.live(), usize::from(twin.levels - level) + 1);
        for offset in [0, 1, size / 2, size - 1] {
            let at = address + offset;
            let leaf = walk(&format, table.root(), at, &READ, &arena).unwrap();
            assert_eq!((leaf.base, leaf.level), (output, level));
            assert_eq!(1 << leaf.size_bits, size);
            assert_eq!(leaf.translate(at), output + offset);
        }
        for outside in [address - 1, address + size] {
            let fault = walk(&format, table.root(), outside, &READ, &arena);
            assert_eq!(fault, Err(WalkFault::NotPresent { level }));
        }
    }
}

fn first_and_last_addresses<F: Format + Copy>(format: F, twin: Twin) {
    let end = twin.end();
    let mut valid = vec![0, end - 0x1000];
    let mut invalid = vec![end, end + 0x1000, 1 << 63];
    if twin.second_stage {
        invalid.extend([u64::MAX - 0xfff, end | 0x1000]);
    } else {
        valid.extend([end.wrapping_neg(), u64::MAX - 0xfff]);
        invalid.extend([end.wrapping_neg() - 0x1000]);
    }
    for address in valid {
        let (arena, table) = one_page(format, 1, address, 0x7000);
        for offset in [0, 0xfff] {
            let leaf = walk(&format, table.root(), address + offset, &WRITE, &arena).unwrap();
            assert_eq!(leaf.translate(address + offset), 0x7000 + offset);
            // The same index bits at an invalid address reach nothing.
            for flipped in (12 + 9 * u32::from(twin.levels)..64).map(|bit| address ^ 1 << bit) {
                invalid.push(flipped + offset);
            }
        }
        for &address in &invalid {
            let fault = walk(&format, table.root(), address, &READ, &arena).unwrap_err();
            let expected =
                if twin.second_stage { WalkFault::BeyondWidth } else { WalkFault::NonCanonical };
            assert_eq!(fault, expected, "{address:#x}");
        }
    }
}

fn rights_of_all_levels_count<F: Format + Copy>(format: F, twin: Twin) {
    // The bits that give or take rights in an entry.
    let toggles: &[u64] = if twin.second_stage { &[1, 2, 4] } else { &[2, 4, 1 << 63] };
    for leaf_level in 1..=3 {
        let (arena, table) = one_page(format, leaf_level, 0, 0x4000_0000);
        for (entry, _) in path_of(&arena, &table, &twin, 0) {
            let before = arena.get(entry).unwrap();
            for subset in 0u32..8 {
                let toggled = toggles.iter().zip(0..).filter(|(_, bit)| subset >> bit & 1 != 0);
                arena.set(entry, toggled.fold(before, |value, (toggle, _)| value ^ toggle));
                for request in requests() {
                    check(&format, &twin, &arena, table.root(), 0x123, &request);
                }
            }
            arena.set(entry, before);
        }
    }
}

fn each_reserved_bit_is_found<F: Format + Copy>(format: F, twin: Twin) {
    for leaf_level in 1..=3 {
        let (arena, table) = one_page(format, leaf_level, 0, 0x4000_0000);
        for (entry, level) in path_of(&arena, &table, &twin, 0) {
            let before = arena.get(entry).unwrap();
            let mut found = 0;
            for bit in 0..64 {
                let value = before ^ 1 << bit;
                arena.set(entry, value);
                if twin.is_present(value) && twin.is_reserved(level, value) {
                    let fault = walk(&format, table.root(), 0, &READ, &arena);
                    assert!(
                        matches!(fault, Err(WalkFault::Reserved { level: at, .. }) if at == level),
                        "bit {bit} at level {level}: {fault:?}"
                    );
                    found += 1;
                }
                check(&format, &twin, &arena, table.root(), 0, &READ);
            }
            arena.set(entry, before);
            // The upper levels have a reserved bit in every format here: no page there.
            assert!(level < 4 || found > 0, "no reserved bit at level {level}");
        }
    }
}

fn flags_are_set_exactly_where_used<F: Format + Copy>(format: F, twin: Twin) {
    let mut arena = Arena::default();
    let mut table = PageTable::new(format, &mut arena).unwrap();
    let map = Map { address: 0, output: 0, len: 0x60_0000, rights: RIGHTS, largest: 1 };
    table.map(&mut arena, &map).unwrap();
    let flags_of = |arena: &Arena| {
        let (accessed, dirty) = if twin.second_stage { (1 << 8, 1 << 9) } else { (1 << 5, 1 << 6) };
        let all = contents(arena);
        let with = |flag| all.iter().filter(|(_, value)| value & flag != 0).count();
        (with(accessed), with(dirty))
    };
    let levels = usize::from(twin.levels);
    let expect = |accessed, dirty| if twin.flags { (accessed, dirty) } else { (0, 0) };

    assert_eq!(flags_of(&arena), (0, 0));
    check(&format, &twin, &arena, table.root(), 0x1000, &READ);
    assert_eq!(flags_of(&arena), expect(levels, 0));
    // Once the flags are set, nothing is written any more.
    check(&format, &twin, &arena, table.root(), 0x1fff, &READ);
    assert_eq!(arena.exchanges.get(), 0);
    check(&format, &twin, &arena, table.root(), 0x1008, &WRITE);
    assert_eq!(flags_of(&arena), expect(levels, 1));
    assert_eq!(arena.exchanges.get(), u64::from(twin.flags));
    // Another table at level 1: the entry that points at it, and its leaf.
    check(&format, &twin, &arena, table.root(), 0x40_0000, &WRITE);
    assert_eq!(flags_of(&arena), expect(levels + 2, 2));

    let clean = walk(&format, table.root(), 0x2000, &READ, &arena).unwrap();
    assert_eq!(clean.dirty, !twin.flags);
    let dirty = walk(&format, table.root(), 0x2000, &WRITE, &arena).unwrap();
    assert!(dirty.dirty);
}

fn a_fault_changes_nothing<F: Format + Copy>(format: F, twin: Twin) {
    let (arena, table) = one_page(format, 1, 0x1000, 0x9000);
    let leaf = path_of(&arena, &table, &twin, 0x1000).pop().unwrap().0;
    let unwritable = arena.get(leaf).unwrap() & !2;
    arena.set(leaf, unwritable);
    let before = contents(&arena);
    let denied = WalkFault::Permission { level: 1, kind: Denied::Write };
    assert_eq!(walk(&format, table.root(), 0x1000, &WRITE, &arena), Err(denied));
    let absent = WalkFault::NotPresent { level: 1 };
    assert_eq!(walk(&format, table.root(), 0x2000, &WRITE, &arena), Err(absent));
    assert_eq!(contents(&arena), before);
}

/// Four pages of entries that mostly make sense, so that walks get far; some point nowhere.
fn garbage() -> impl Strategy<Value = Vec<u64>> {
    let flags = prop_oneof![
        4 => Just(0x007u64),
        2 => any::<u64>().prop_map(|bits| bits & 0x800f_0000_0000_0fff),
        1 => any::<u64>().prop_map(|bits| bits & 0xfff | 3),
        1 => Just(u64::MAX),
    ];
    let frame = prop_oneof![
        8 => (1u64..5).prop_map(|page| page << 12),
        1 => (0u64..1 << 22).prop_map(|gib| gib << 30),
        1 => any::<u64>().prop_map(|bits| bits & 0x000f_ffff_ffff_f000),
    ];
    proptest::collection::vec((flags, frame).prop_map(|(flags, frame)| flags | frame), 12)
}

fn garbage_is_judged_as_by_the_twin<F: Format + Copy>(format: F, twin: Twin) {
    let address = proptest::collection::vec(0usize..3, 5).prop_map(move |choice| {
        let indices = choice.iter().map(|&choice| [0u64, 1, 511][choice]);
        let address = indices.fold(0, |address, index| address << 9 | index) << 12;
        let bits = 12 + 9 * u32::from(twin.levels);
        if twin.second_stage {
            address & ((1 << bits) - 1)
        } else {
            ((address << (64 - bits)) as i64 >> (64 - bits)) as u64
        }
    });
    let request = proptest::sample::select(requests().collect::<Vec<_>>());
    let config = ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(400) };
    TestRunner::new(config)
        .run(&(garbage(), address, 0u64..4096, request), |(entries, page, offset, request)| {
            let arena = Arena::default();
            for (entry, at) in entries.iter().zip(0u64..) {
                let index = [0u64, 1, 511][at as usize % 3];
                arena.set((1 + at / 3) * 0x1000 + index * 8, *entry);
            }
            check(&format, &twin, &arena, 0x1000, page | offset, &request);
            Ok(())
        })
        .unwrap();
}

fn a_table_of_itself_ends<F: Format + Copy>(format: F, twin: Twin) {
    let arena = Arena::default();
    for index in 0..512 {
        arena.set(0x1000 + 8 * index, 0x1007);
    }
    // At level 1 the table is its own page.
    let leaf = walk(&format, 0x1000, 0x7654, &WRITE, &arena).unwrap();
    assert_eq!(leaf.translate(0x7654), 0x1654);
    assert!(arena.loads.get() <= u64::from(MAX_ATTEMPTS) * u64::from(twin.levels));
    for index in 0..512 {
        arena.set(0x1000 + 8 * index, u64::MAX);
    }
    let fault = WalkFault::Reserved { level: twin.levels, which: pgtable::ReservedBits::PageSize };
    let found = walk(&format, 0x1000, 0x7654, &WRITE, &arena);
    if twin.levels > 3 {
        assert_eq!(found, Err(fault));
    } else {
        assert!(matches!(found, Err(WalkFault::Reserved { level: 3, .. })), "{found:?}");
    }
}

fn flags_set_by_others_are_kept<F: Format + Copy>(format: F, twin: Twin) {
    let (mut arena, table) = one_page(format, 1, 0x1000, 0x9000);
    let leaf = path_of(&arena, &table, &twin, 0x1000).pop().unwrap().0;
    // Just before our update of an entry, somebody else sets every flag it may set.
    arena.before_exchange = Some(Box::new(move |arena, entry| {
        let dirty = if entry == leaf { 0x40 } else { 0 };
        let flags = if twin.second_stage { 0x100 | dirty << 3 } else { 0x20 | dirty };
        arena.set(entry, arena.get(entry).unwrap() | flags);
    }));
    let found = walk(&format, table.root(), 0x1000, &READ, &arena).unwrap();
    assert_eq!(found.translate(0x1000), 0x9000);
    assert!(found.dirty, "the leaf is as the last look at it found it");
}

fn an_entry_that_keeps_changing_is_contended<F: Format + Copy>(format: F, twin: Twin) {
    let (mut arena, table) = one_page(format, 1, 0x1000, 0x9000);
    let leaf = path_of(&arena, &table, &twin, 0x1000).pop().unwrap().0;
    arena.before_exchange = Some(Box::new(move |arena, entry| {
        if entry == leaf {
            arena.set(entry, arena.get(entry).unwrap() ^ 0x2000);
        }
    }));
    arena.loads.set(0);
    let found = walk(&format, table.root(), 0x1000, &WRITE, &arena);
    if twin.flags {
        assert_eq!(found, Err(WalkFault::Contended));
        assert_eq!(arena.loads.get(), u64::from(MAX_ATTEMPTS) * u64::from(twin.levels));
    } else {
        assert!(found.is_ok());
    }
}

fn an_unreachable_table_is_named<F: Format + Copy>(format: F, twin: Twin) {
    let (arena, table) = one_page(format, 1, 0x1000, 0x9000);
    let accesses = u64::from(twin.levels) * if twin.flags { 2 } else { 1 };
    for nth in 1..=accesses {
        arena.loads.set(0);
        arena.exchanges.set(0);
        arena.fail_access.set(Some(nth));
        let found = walk(&format, table.root(), 0x1000, &WRITE, &arena);
        // First every entry is loaded, then every entry's flags are set, both from the root on.
        let level = twin.levels - ((nth - 1) % u64::from(twin.levels)) as u8;
        assert_eq!(found, Err(WalkFault::Tables { level, error: ArenaError::Told }));
        for (entry, value) in contents(&arena) {
            let flags = if twin.second_stage { 0x300 } else { 0x60 };
            arena.set(entry, value & !flags);
        }
    }
    arena.fail_access.set(None);
    assert!(walk(&format, table.root(), 0x1000, &WRITE, &arena).is_ok());
}

/// Formats with everything off that can be, under the same judge.
mod restricted {
    use pgtable::{FirstStage, SecondStage};

    use crate::common::{FIRST_4, FIRST_5, SECOND_3, SECOND_4};
    use crate::garbage_is_judged_as_by_the_twin as judge;

    #[test]
    fn first_stage() {
        let bare =
            FirstStage { output_bits: 39, one_gib_pages: false, no_execute: false, ..FIRST_4 };
        judge(bare, bare.into());
        let narrow = FirstStage { output_bits: 12, ..FIRST_5 };
        judge(narrow, narrow.into());
    }

    #[test]
    fn second_stage() {
        let bare = SecondStage {
            output_bits: 39,
            two_mib_pages: false,
            one_gib_pages: false,
            snoop_control: false,
            device_tlb: false,
            ..SECOND_4
        };
        judge(bare, bare.into());
        let no_gib = SecondStage { one_gib_pages: false, accessed_dirty: false, ..SECOND_3 };
        judge(no_gib, no_gib.into());
    }
}
