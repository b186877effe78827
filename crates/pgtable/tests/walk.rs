//! The walker: one suite over every format, with the naive twin as judge.

mod common;

use common::formats::UnderTest;
use common::twin::{Class, Fault, Twin};
use common::{one_page, Arena, ArenaError, READ, RIGHTS, WRITE};
use pgtable::{
    walk, Access, Denied, Map, PageTable, Request, Rights, WalkFault, MAX_ATTEMPTS, MAX_LEVELS,
};
use proptest::prelude::*;
use proptest::test_runner::TestRunner;

for_every_format!(
    every_size_at_every_level,
    no_page_above_the_highest,
    first_and_last_addresses,
    rights_of_all_levels_count,
    every_bit_of_every_entry_is_judged_as_by_the_twin,
    flags_are_set_exactly_where_used,
    a_fault_changes_nothing,
    garbage_is_judged_as_by_the_twin,
    a_table_of_itself_ends,
    flags_set_by_others_are_kept,
    an_entry_that_keeps_changing_is_contended,
    an_unreachable_table_is_named,
);

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

/// The entries that a walk to `address` uses: (address, level).
fn path_of<F: UnderTest>(arena: &Arena, table: &PageTable<F>, at: u64) -> Vec<(u64, u8)> {
    let twin = table.format().twin();
    let found = twin.walk(arena, table.root(), at, &READ).unwrap();
    found
        .entries
        .iter()
        .zip((1..=twin.levels()).rev())
        .map(|(&(at, _), level)| (at, level))
        .collect()
}

/// Walks with the crate and with the twin; everything must agree, the tables afterwards too.
fn check<F: UnderTest>(format: &F, arena: &Arena, root: u64, at: u64, request: &Request) {
    let mut expected = arena.contents();
    let judged = format.twin().walk(arena, root, at, request);
    arena.reset_counters();
    let found = walk(format, root, at, request, arena);
    let steps = u64::from(MAX_ATTEMPTS) * MAX_LEVELS as u64;
    assert!(arena.loads.get() <= steps && arena.exchanges.get() <= steps);
    match (judged, found) {
        (Ok(judged), Ok(leaf)) => {
            assert_eq!((leaf.translate(at), leaf.size_bits), (judged.output, judged.size_bits));
            expected.extend(judged.entries);
        }
        (Err(judged), Err(fault)) => assert_eq!(Fault::from(fault), judged, "{at:#x} {request:?}"),
        (judged, found) => panic!("{at:#x} {request:?}: {found:?}, judged {judged:?}"),
    }
    assert_eq!(arena.contents(), expected, "tables after {at:#x} {request:?}");
}

/// A place for a page of `level`, not the first if there is another, and one that it can lead to.
fn place_of<T: Twin>(twin: &T, level: u8) -> (u64, u64) {
    let size = twin.size(level);
    let last_input = twin.end() / size - 1;
    let last_output = (1 << (twin.output_bits() - twin.size_bits(level))) - 1;
    (last_input.min(5) * size, last_output.min(9) * size)
}

fn every_size_at_every_level<F: UnderTest>(format: F) {
    let twin = format.twin();
    for level in 1..=twin.highest_page() {
        let size = twin.size(level);
        let (address, output) = place_of(&twin, level);
        let (arena, table) = one_page(format, level, address, output);
        assert_eq!(arena.live(), usize::from(twin.levels() - level) + 1);
        for offset in [0, 1, size / 2, size - 1] {
            let at = address + offset;
            let leaf = walk(&format, table.root(), at, &READ, &arena).unwrap();
            assert_eq!((leaf.base, leaf.level), (output, level));
            assert_eq!(1 << leaf.size_bits, size);
            assert_eq!(leaf.translate(at), output + offset);
            for request in requests() {
                check(&format, &arena, table.root(), at, &request);
            }
        }
        for outside in [address.wrapping_sub(1), address + size] {
            assert!(walk(&format, table.root(), outside, &READ, &arena).is_err());
            check(&format, &arena, table.root(), outside, &READ);
        }
    }
}

fn no_page_above_the_highest<F: UnderTest>(format: F) {
    let twin = format.twin();
    for level in twin.highest_page() + 1..=twin.levels() {
        let entry = format.leaf_entry(level, 0, RIGHTS);
        assert!(matches!(twin.class(level, entry), Class::Absent | Class::Reserved));
        let mut arena = Arena::default();
        let table = PageTable::new(format, &mut arena).unwrap();
        let mut at = table.root();
        for above in (level + 1..=twin.levels()).rev() {
            let next = (0x100 + u64::from(above)) << 16;
            arena.add(next, twin.page_bits());
            assert_eq!(twin.class(above, format.table_entry(next)), Class::Table);
            arena.set(at, format.table_entry(next));
            at = next;
        }
        arena.set(at, entry);
        check(&format, &arena, table.root(), 0, &READ);
        let found = Fault::from(walk(&format, table.root(), 0, &READ, &arena).unwrap_err());
        assert!([Fault::NotPresent(level), Fault::Reserved(level)].contains(&found), "{found:?}");
    }
}

fn first_and_last_addresses<F: UnderTest>(format: F) {
    let twin = format.twin();
    let (end, page) = (twin.end(), twin.size(1));
    let mut valid = vec![0, end - page];
    let mut invalid = vec![end, end + page, 1 << 63];
    if twin.is_canonical() {
        valid.extend([end.wrapping_neg(), page.wrapping_neg()]);
        invalid.extend([end.wrapping_neg() - page]);
    } else {
        invalid.extend([page.wrapping_neg(), u64::MAX, end | page]);
    }
    let output = 7 << twin.page_bits();
    for address in valid {
        let (arena, table) = one_page(format, 1, address, output);
        for offset in [0, page - 1] {
            let leaf = walk(&format, table.root(), address + offset, &WRITE, &arena).unwrap();
            assert_eq!(leaf.translate(address + offset), output + offset);
            // The same index bits at an invalid address reach nothing.
            for flipped in (twin.input_bits()..64).map(|bit| address ^ 1 << bit) {
                invalid.push(flipped + offset);
            }
        }
        for &address in &invalid {
            let fault = walk(&format, table.root(), address, &READ, &arena).unwrap_err();
            let expected =
                if twin.is_canonical() { WalkFault::NonCanonical } else { WalkFault::BeyondWidth };
            assert_eq!(fault, expected, "{address:#x}");
        }
    }
}

fn rights_of_all_levels_count<F: UnderTest>(format: F) {
    let twin = format.twin();
    for leaf_level in 1..=twin.highest_page() {
        let (address, output) = place_of(&twin, leaf_level);
        let (arena, table) = one_page(format, leaf_level, address, output);
        let at = address + 0x123;
        for (entry, level) in path_of(&arena, &table, at) {
            let before = arena.contents();
            let value = arena.get(entry).unwrap();
            let toggles = twin.fateful_bits(level == leaf_level);
            for subset in 0u32..1 << toggles.len() {
                let toggled = toggles.iter().zip(0..).filter(|(_, bit)| subset >> bit & 1 != 0);
                let changed = toggled.fold(value, |value, (toggle, _)| value ^ 1 << toggle);
                for request in requests() {
                    arena.set(entry, changed);
                    check(&format, &arena, table.root(), at, &request);
                }
            }
            arena.restore(before);
        }
    }
}

fn every_bit_of_every_entry_is_judged_as_by_the_twin<F: UnderTest>(format: F) {
    let twin = format.twin();
    let mut found = 0;
    for leaf_level in 1..=twin.highest_page() {
        let (address, output) = place_of(&twin, leaf_level);
        let (arena, table) = one_page(format, leaf_level, address, output);
        for (entry, level) in path_of(&arena, &table, address) {
            let before = arena.contents();
            let value = arena.get(entry).unwrap();
            for bit in 0..64 {
                let value = value ^ 1 << bit;
                arena.set(entry, value);
                if twin.class(level, value) == Class::Reserved {
                    let fault = walk(&format, table.root(), address, &READ, &arena);
                    assert!(
                        matches!(fault, Err(WalkFault::Reserved { level: at, .. }) if at == level),
                        "bit {bit} at level {level}: {fault:?}"
                    );
                    found += 1;
                }
                for request in [READ, WRITE] {
                    arena.set(entry, value);
                    check(&format, &arena, table.root(), address, &request);
                }
                arena.restore(before.clone());
            }
        }
    }
    assert_eq!(found > 0, twin.has_reserved_bits());
}

fn flags_are_set_exactly_where_used<F: UnderTest>(format: F) {
    let twin = format.twin();
    let (mut arena, mut table) = one_page(format, 1, twin.size(1), 0);
    let mut map_page = |address| {
        let map = Map { address, output: 0, len: twin.size(1), rights: RIGHTS, largest: 1 };
        table.map(&mut arena, &map).unwrap();
    };
    // A page in the same table, and one in another.
    map_page(2 * twin.size(1));
    let elsewhere = (twin.levels() > 1).then(|| twin.size(2));
    elsewhere.into_iter().for_each(map_page);

    let untouched = arena.contents();
    let changed = |arena: &Arena| {
        arena.contents().iter().filter(|(at, value)| untouched[at] != **value).count()
    };
    let updates = twin.updates();
    let on_tables = if updates.tables { usize::from(twin.levels()) - 1 } else { 0 };
    let first = usize::from(updates.accessed) + on_tables;
    let (root, page) = (table.root(), twin.size(1));

    check(&format, &arena, root, page, &READ);
    assert_eq!(changed(&arena), first);
    // Once the flags are set, nothing is written any more.
    check(&format, &arena, root, 2 * page - 1, &READ);
    assert_eq!(arena.exchanges.get(), 0);
    check(&format, &arena, root, page + 8, &WRITE);
    assert_eq!(changed(&arena), first);
    assert_eq!(arena.exchanges.get(), u64::from(updates.dirty));
    check(&format, &arena, root, page + 8, &WRITE);
    assert_eq!(arena.exchanges.get(), 0);
    if let Some(elsewhere) = elsewhere {
        // The entry that points at the other table, and its leaf.
        check(&format, &arena, root, elsewhere, &WRITE);
        let second = usize::from(updates.accessed) + usize::from(updates.tables);
        assert_eq!(changed(&arena), first + second);
    }

    let clean = walk(&format, root, 2 * page, &READ, &arena).unwrap();
    assert_eq!(clean.dirty, !updates.dirty);
    let dirty = walk(&format, root, 2 * page, &WRITE, &arena).unwrap();
    assert!(dirty.dirty);
    assert!(walk(&format, root, 2 * page, &READ, &arena).unwrap().dirty);
}

fn a_fault_changes_nothing<F: UnderTest>(format: F) {
    let page = format.twin().size(1);
    let mut arena = Arena::default();
    let mut table = PageTable::new(format, &mut arena).unwrap();
    let rights = RIGHTS.difference(Rights::WRITE);
    let map = Map { address: page, output: 9 * page, len: page, rights, largest: 1 };
    table.map(&mut arena, &map).unwrap();
    let before = arena.contents();
    let denied = WalkFault::Permission { level: 1, kind: Denied::Write };
    assert_eq!(walk(&format, table.root(), page, &WRITE, &arena), Err(denied));
    let absent = WalkFault::NotPresent { level: 1 };
    assert_eq!(walk(&format, table.root(), 2 * page, &WRITE, &arena), Err(absent));
    assert_eq!(arena.contents(), before);
}

/// Tables below the root in [`garbage_is_judged_as_by_the_twin`].
const TABLES: u64 = 3;

/// Entries for a root and for the tables, three in each; they mostly make sense, so that walks get
/// far, and some point nowhere.
fn garbage<T: Twin + 'static>(twin: T) -> impl Strategy<Value = Vec<u64>> {
    let (usual, besides) = twin.plausible();
    let flags = prop_oneof![
        4 => Just(usual),
        2 => any::<u64>().prop_map(move |bits| bits & besides),
        2 => any::<u64>().prop_map(move |bits| bits & besides | usual),
        1 => any::<u64>().prop_map(move |bits| bits & 0xfff | 3),
        1 => Just(u64::MAX),
    ];
    let highest = twin.size_bits(twin.highest_page());
    let frame = prop_oneof![
        8 => (1..=TABLES).prop_map(move |table| table << twin.page_bits()),
        1 => (0u64..1 << 6).prop_map(move |index| index << highest),
        1 => any::<u64>().prop_map(|bits| bits & 0x000f_ffff_ffff_f000),
    ];
    let entry = (flags, frame).prop_map(|(flags, frame)| flags | frame);
    proptest::collection::vec(entry, 3 * (1 + TABLES as usize))
}

fn garbage_is_judged_as_by_the_twin<F: UnderTest>(format: F) {
    let twin = format.twin();
    // The indices in use: the first two and the last.
    let index = move |level, choice: usize| [0, 1, (1u64 << twin.index_bits(level)) - 1][choice];
    let address = proptest::collection::vec(0usize..3, MAX_LEVELS).prop_map(move |choices| {
        let parts = (1..=twin.levels())
            .zip(choices)
            .map(|(level, choice)| index(level, choice) * twin.size(level));
        let address = parts.sum::<u64>();
        if twin.is_canonical() && address >= twin.end() {
            address | twin.end().wrapping_neg()
        } else {
            address
        }
    });
    let request = proptest::sample::select(requests().collect::<Vec<_>>());
    let config = ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(400) };
    TestRunner::new(config)
        .run(&(garbage(twin), address, 0..twin.size(1), request), |case| {
            let (entries, page, offset, request) = case;
            let (mut arena, root) = (Arena::default(), 1 << 24);
            arena.add(root, twin.index_bits(twin.levels()) + 3);
            let (top, tables) = entries.split_at(3);
            for (choice, &entry) in top.iter().enumerate() {
                arena.set(root + 8 * index(twin.levels(), choice), entry);
            }
            for (table, entries) in (1..).zip(tables.chunks(3)) {
                arena.add(table << twin.page_bits(), twin.page_bits());
                for (choice, &entry) in entries.iter().enumerate() {
                    let last = (1 << (twin.page_bits() - 3)) - 1;
                    let at = (table << twin.page_bits()) + 8 * [0, 1, last][choice];
                    arena.set(at, entry);
                }
            }
            check(&format, &arena, root, page | offset, &request);
            Ok(())
        })
        .unwrap();
}

fn a_table_of_itself_ends<F: UnderTest>(format: F) {
    let twin = format.twin();
    let (mut arena, page) = (Arena::default(), twin.size(1));
    let (root, table) = (1 << 24, page);
    arena.add(root, twin.index_bits(twin.levels()) + 3);
    arena.add(table, twin.page_bits());
    let fill = |value: u64| {
        (0..1 << twin.index_bits(twin.levels())).for_each(|at| arena.set(root + 8 * at, value));
        (0..page / 8).for_each(|at| arena.set(table + 8 * at, value));
    };
    // At level 1 the table is its own page; further up the same bits make a table entry.
    fill(format.leaf_entry(1, table, RIGHTS));
    let at = (twin.end() - 1) & !7;
    let leaf = walk(&format, root, at, &WRITE, &arena).unwrap();
    assert_eq!(leaf.translate(at), 2 * page - 8);
    assert!(arena.loads.get() <= u64::from(MAX_ATTEMPTS) * u64::from(twin.levels()));
    fill(u64::MAX);
    check(&format, &arena, root, at, &WRITE);
}

fn flags_set_by_others_are_kept<F: UnderTest>(format: F) {
    let twin = format.twin();
    let (address, output) = (twin.size(1), 9 * twin.size(1));
    let (mut arena, table) = one_page(format, 1, address, output);
    let leaf = path_of(&arena, &table, address).pop().unwrap().0;
    // Just before our update of an entry, somebody else sets every flag it may set.
    arena.before_exchange = Some(Box::new(move |arena, entry| {
        let value = arena.get(entry).unwrap();
        arena.set(entry, twin.used(value, entry == leaf, entry == leaf));
    }));
    let found = walk(&format, table.root(), address, &READ, &arena).unwrap();
    assert_eq!(found.translate(address), output);
    assert!(found.dirty || !twin.updates().accessed, "the leaf is as its last load found it");
}

fn an_entry_that_keeps_changing_is_contended<F: UnderTest>(format: F) {
    let twin = format.twin();
    let (mut arena, table) = one_page(format, 1, twin.size(1), 9 * twin.size(1));
    let leaf = path_of(&arena, &table, twin.size(1)).pop().unwrap().0;
    arena.before_exchange = Some(Box::new(move |arena, entry| {
        if entry == leaf {
            arena.set(entry, arena.get(entry).unwrap() ^ 2 << twin.page_bits());
        }
    }));
    arena.reset_counters();
    let found = walk(&format, table.root(), twin.size(1), &WRITE, &arena);
    if twin.updates().accessed {
        assert_eq!(found, Err(WalkFault::Contended));
        assert_eq!(arena.loads.get(), u64::from(MAX_ATTEMPTS) * u64::from(twin.levels()));
    } else {
        assert!(found.is_ok());
    }
}

fn an_unreachable_table_is_named<F: UnderTest>(format: F) {
    let twin = format.twin();
    let address = twin.size(1);
    let (arena, table) = one_page(format, 1, address, 9 * address);
    let before = arena.contents();
    // First every entry is loaded, then every entry's flags are set, both from the root on.
    let mut accesses: Vec<u8> = (1..=twin.levels()).rev().collect();
    let updated = twin.updates();
    accesses.extend((2..=twin.levels()).rev().filter(|_| updated.tables));
    accesses.extend(updated.accessed.then_some(1));
    for (level, nth) in accesses.into_iter().zip(1..) {
        arena.reset_counters();
        arena.fail_access.set(Some(nth));
        let found = walk(&format, table.root(), address, &WRITE, &arena);
        assert_eq!(found, Err(WalkFault::Tables { level, error: ArenaError::Told }));
        arena.restore(before.clone());
    }
    arena.fail_access.set(None);
    assert!(walk(&format, table.root(), address, &WRITE, &arena).is_ok());
}

/// Formats that cannot map much, under the same judge.
mod restricted {
    use pgtable::{FirstStage, SecondStage, SecondStageLevels};

    use crate::garbage_is_judged_as_by_the_twin as judge;

    #[test]
    fn first_stage() {
        let bare = FirstStage {
            output_bits: 39,
            one_gib_pages: false,
            no_execute: false,
            ..FirstStage::FOUR_LEVEL
        };
        judge(bare);
        judge(FirstStage { output_bits: 12, ..FirstStage::FIVE_LEVEL });
    }

    #[test]
    fn second_stage() {
        judge(SecondStage {
            output_bits: 39,
            two_mib_pages: false,
            one_gib_pages: false,
            snoop_control: false,
            device_tlb: false,
            ..SecondStage::new(SecondStageLevels::Four)
        });
        judge(SecondStage {
            one_gib_pages: false,
            accessed_dirty: false,
            ..SecondStage::new(SecondStageLevels::Three)
        });
    }
}
