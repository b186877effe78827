//! The builder: one suite over every format, with an ordered map as judge.

mod common;

use std::collections::BTreeMap;

use common::formats::UnderTest;
use common::twin::Twin;
use common::{one_page, Arena, ArenaError, READ, RIGHTS};
use pgtable::{walk, Format, Map, MapError, PageTable, Rights, UnmapError, MIN_TABLE_BITS};
use proptest::prelude::*;
use proptest::test_runner::TestRunner;

for_every_format!(
    mixed_sizes_cover_a_range,
    random_maps_match_an_ordered_map,
    a_failed_allocation_leaves_nothing,
    an_unreachable_table_loses_no_page,
    every_right_that_can_be_asked_for_is_given,
    what_cannot_be_mapped_is_refused,
    what_is_mapped_is_not_mapped_again,
    what_cannot_be_unmapped_is_refused,
    pages_are_not_split,
    the_last_page_takes_its_tables_along,
    a_flush_keeps_tables_until_it_is_complete,
    flags_set_meanwhile_do_not_stop_unmapping,
);

fn new<F: Format>(format: F) -> (Arena, PageTable<F>) {
    let mut arena = Arena::default();
    let table = PageTable::new(format, &mut arena).unwrap();
    (arena, table)
}

fn map(address: u64, output: u64, len: u64, largest: u8) -> Map {
    Map { address, output, len, rights: RIGHTS, largest }
}

fn level_at<F: Format>(arena: &Arena, table: &PageTable<F>, at: u64) -> Option<u8> {
    walk(table.format(), table.root(), at, &READ, arena).ok().map(|leaf| leaf.level)
}

/// The highest of the lowest three levels that `places` entries of fit into the input.
fn level_with<T: Twin>(twin: &T, places: u64) -> u8 {
    (1..=twin.levels().min(3))
        .filter(|&level| twin.end() >> twin.size_bits(level) >= places)
        .max()
        .unwrap()
}

/// The same, but a level of pages.
fn page_with<T: Twin>(twin: &T, places: u64) -> u8 {
    level_with(twin, places).min(twin.highest_page())
}

fn mixed_sizes_cover_a_range<F: UnderTest>(format: F) {
    let twin = format.twin();
    let (mut arena, mut table) = new(format);
    // One page of each size up to the largest, and down again.
    let top = page_with(&twin, 3);
    let levels = || (1..=top).chain((1..top).rev());
    let start = twin.size(top) - (1..top).map(|level| twin.size(level)).sum::<u64>();
    let len = levels().map(|level| twin.size(level)).sum();
    let range = map(start, start + twin.size(top), len, top);
    table.map(&mut arena, &range).unwrap();
    let mut at = start;
    for level in levels() {
        for offset in [0, twin.size(level) - 1] {
            assert_eq!(level_at(&arena, &table, at + offset), Some(level), "{at:#x}");
        }
        at += twin.size(level);
    }
    assert_eq!(level_at(&arena, &table, start.wrapping_sub(1)), None);
    assert_eq!(level_at(&arena, &table, start + len), None);
    let flush = table.unmap(&mut arena, start, len).unwrap();
    assert_eq!(flush.unmapped(), len);
    flush.complete(&mut arena);
    assert_eq!(arena.live(), 1);

    // The output's alignment counts as well.
    for lower in 1..top {
        table.map(&mut arena, &map(0, twin.size(lower), twin.size(lower + 1), top)).unwrap();
        assert_eq!(level_at(&arena, &table, 0), Some(lower));
        table.unmap(&mut arena, 0, twin.size(lower + 1)).unwrap().complete(&mut arena);
    }
    table.map(&mut arena, &range).unwrap();
    table.destroy(&mut arena).unwrap().complete(&mut arena);
    assert_eq!(arena.live(), 0);
}

/// A small world in which ranges collide often: pages around borders of larger ones.
fn a_range<T: Twin>(twin: &T) -> impl Strategy<Value = (u64, u64)> {
    let (end, top) = (twin.end(), level_with(twin, 2));
    let size = [1, 2.min(top), top].map(|level| twin.size(level));
    let place = prop_oneof![
        2 => (0u64..6).prop_map(move |page| page * size[0]),
        2 => (0u64..5).prop_map(move |page| page * size[1]),
        2 => (0u64..3).prop_map(move |page| page * size[2]),
        1 => (0u64..6).prop_map(move |page| size[2].saturating_sub(page * size[0])),
        1 => (0u64..4).prop_map(move |page| size[1].saturating_sub(page * size[0])),
    ];
    let len = prop_oneof![
        3 => (1u64..6).prop_map(move |pages| pages * size[0]),
        2 => (1u64..4).prop_map(move |pages| pages * size[1]),
        1 => (1u64..3).prop_map(move |pages| pages * size[2]),
    ];
    (place, len).prop_map(move |(place, len)| {
        let place = place % end;
        (place, len.min(end - place))
    })
}

/// What is mapped, by page: first address to (output, size).
struct Model {
    pages: BTreeMap<u64, (u64, u64)>,
    /// By level, from 1 on.
    sizes: Vec<u64>,
}

impl Model {
    fn new<T: Twin>(twin: &T) -> Self {
        let sizes = (1..=twin.highest_page()).map(|level| twin.size(level)).collect();
        Self { pages: BTreeMap::new(), sizes }
    }

    /// The pages that share an address with `len` bytes from `start`.
    fn in_range(&self, start: u64, len: u64) -> Vec<(u64, u64)> {
        let pages = self.pages.iter().map(|(&at, &(_, size))| (at, size));
        pages.filter(|&(at, size)| at < start + len && start < at + size).collect()
    }

    fn map(&mut self, map: &Map) -> bool {
        if !self.in_range(map.address, map.len).is_empty() {
            return false;
        }
        let mut done = 0;
        while done < map.len {
            let (at, output) = (map.address + done, map.output + done);
            let mut sizes = self.sizes.iter().take(map.largest.into()).rev();
            let fits = |size: u64| at % size == 0 && output % size == 0 && map.len - done >= size;
            let size = *sizes.find(|&&size| fits(size)).unwrap();
            self.pages.insert(at, (output, size));
            done += size;
        }
        true
    }

    /// The bytes unmapped, or `None` if a page would be split or there is none.
    fn unmap(&mut self, start: u64, len: u64) -> Option<u64> {
        let pages = self.in_range(start, len);
        let whole = |&(at, size): &(u64, u64)| start <= at && at + size <= start + len;
        if pages.is_empty() || !pages.iter().all(whole) {
            return None;
        }
        Some(pages.iter().map(|&(at, size)| self.pages.remove(&at).map_or(0, |_| size)).sum())
    }

    fn lookup(&self, at: u64) -> Option<u64> {
        let (&start, &(output, size)) = self.pages.range(..=at).next_back()?;
        (at - start < size).then_some(output + (at - start))
    }
}

/// How many pages of the largest size that may be used a random range has at most: small pages by
/// the thousand would take the test too long.
const RANDOM_PAGES: u64 = 48;

fn random_maps_match_an_ordered_map<F: UnderTest>(format: F) {
    let twin = format.twin();
    let step = (any::<bool>(), a_range(&twin), 0u64..8, 1u8..=3);
    let steps = proptest::collection::vec(step, 1..25);
    // Tables of larger granules take longer to look through.
    let cases = 24 >> ((twin.page_bits() - 12) / 2);
    let config = ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(cases) };
    let top = twin.size(level_with(&twin, 2));
    let outputs = (1 << twin.output_bits()) / top - 2;
    TestRunner::new(config)
        .run(&steps, |steps| {
            let (mut arena, mut table) = new(format);
            let mut model = Model::new(&twin);
            for (mapping, (address, len), output, largest) in steps {
                if mapping {
                    let output = output % outputs * top + address % top;
                    let most = twin.size(largest.min(twin.highest_page())) * RANDOM_PAGES;
                    let map = map(address, output, len.min(most), largest);
                    let done = table.map(&mut arena, &map);
                    prop_assert_eq!(done.is_ok(), model.map(&map), "{:x?}: {:?}", map, done);
                } else {
                    let flush = table.unmap(&mut arena, address, len);
                    prop_assert_eq!(
                        flush.as_ref().ok().map(|flush| flush.unmapped()),
                        model.unmap(address, len)
                    );
                    if let Ok(flush) = flush {
                        flush.complete(&mut arena);
                    }
                }
                let stride = model.pages.len() / 16 + 1;
                let sampled = model.pages.keys().step_by(stride);
                for at in sampled.flat_map(|&at| [at, at + 0xfff, at.saturating_sub(1)]) {
                    let found = walk(&format, table.root(), at, &READ, &arena).ok();
                    prop_assert_eq!(found.map(|leaf| leaf.translate(at)), model.lookup(at));
                    let judged = twin.walk(&arena, table.root(), at, &READ).ok();
                    prop_assert_eq!(judged.map(|found| found.output), model.lookup(at));
                }
            }
            // No table outlives its last page. From the end on, the look for what is left in a
            // table is a short one.
            for (at, (_, size)) in std::mem::take(&mut model.pages).into_iter().rev() {
                table.unmap(&mut arena, at, size).unwrap().complete(&mut arena);
            }
            prop_assert_eq!(arena.live(), 1);
            table.destroy(&mut arena).unwrap().complete(&mut arena);
            prop_assert_eq!(arena.live(), 0);
            Ok(())
        })
        .unwrap();
}

/// Two pages on both sides of a border, and how many tables they need besides the root: one on
/// either side at each level below the border's, one at each level from there on.
fn at_a_border<T: Twin>(twin: &T) -> (Map, usize) {
    let level = level_with(twin, 2);
    let range = map(twin.size(level) - twin.size(1), 0, 2 * twin.size(1), 1);
    (range, 2 * usize::from(level - 1) + usize::from(twin.levels() - level))
}

fn a_failed_allocation_leaves_nothing<F: UnderTest>(format: F) {
    let (range, needed) = at_a_border(&format.twin());
    let mut none = Arena::default();
    none.limit = Some(0);
    assert!(PageTable::new(format, &mut none).is_none());
    for spare in 0..=needed {
        let (mut arena, mut table) = new(format);
        arena.limit = Some(1 + spare);
        let outcome = table.map(&mut arena, &range);
        if spare < needed {
            assert_eq!(outcome, Err(MapError::OutOfPages));
            assert_eq!(arena.live(), 1);
            assert_eq!(level_at(&arena, &table, range.address), None);
        } else {
            assert_eq!(outcome, Ok(()));
            assert_eq!(arena.live(), 1 + needed, "not a page more than needed");
        }
    }
}

fn an_unreachable_table_loses_no_page<F: UnderTest>(format: F) {
    let twin = format.twin();
    let (range, tables) = at_a_border(&twin);
    let mut failures = 0;
    for nth in 1.. {
        let (mut arena, mut table) = new(format);
        arena.fail_access.set(Some(nth));
        let outcome = table.map(&mut arena, &range);
        arena.fail_access.set(None);
        match outcome {
            Ok(()) => break,
            Err(MapError::Tables { error, .. }) => assert_eq!(error, Some(ArenaError::Told)),
            Err(other) => panic!("{other}"),
        }
        failures += 1;
        if let Ok(flush) = table.unmap(&mut arena, range.address, range.len) {
            flush.complete(&mut arena);
        }
        assert_eq!(level_at(&arena, &table, range.address), None);
        table.destroy(&mut arena).unwrap().complete(&mut arena);
        assert_eq!(arena.live(), 0);
    }
    assert!(failures > 2 * tables, "{failures}");

    // Most accesses here look for entries left in a table: of those, a few will do.
    let stride = 37 << (2 * (twin.page_bits() - 12));
    for nth in (1..50).chain((50..).step_by(stride)) {
        let (mut arena, mut table) = new(format);
        table.map(&mut arena, &range).unwrap();
        arena.fail_access.set(Some(arena.loads.get() + arena.exchanges.get() + nth));
        let outcome = table.unmap(&mut arena, range.address, range.len);
        arena.fail_access.set(None);
        let flush = match outcome {
            Ok(flush) => {
                flush.complete(&mut arena);
                break;
            }
            Err(UnmapError::Tables { error, flush, .. }) => {
                assert_eq!(error, ArenaError::Told);
                flush
            }
            Err(other) => panic!("{other}"),
        };
        flush.complete(&mut arena);
        table.destroy(&mut arena).unwrap().complete(&mut arena);
        assert_eq!(arena.live(), 0);
    }
}

fn every_right_that_can_be_asked_for_is_given<F: UnderTest>(format: F) {
    let page = format.twin().size(1);
    let mut given = 0;
    for rights in (0..=Rights::all().bits()).map(Rights::from_bits_truncate) {
        let (mut arena, mut table) = new(format);
        match table.map(&mut arena, &Map { rights, ..map(page, 2 * page, page, 1) }) {
            Ok(()) => given += 1,
            Err(error) => {
                assert_eq!(error, MapError::Unsupported { address: page });
                continue;
            }
        }
        // What a request may do is what its rights say, whoever judges.
        for access in [pgtable::Access::Read, pgtable::Access::Write, pgtable::Access::Execute] {
            for privileged in [false, true] {
                let request = pgtable::Request { privileged, ..pgtable::Request::user(access) };
                let denied = format.denied(&request, rights);
                let judged = format.twin().walk(&arena, table.root(), page, &request).err();
                let found = walk(&format, table.root(), page, &request, &arena).err();
                assert_eq!(judged.is_some(), denied.is_some(), "{rights:?} {request:?}");
                assert_eq!(found.is_some(), denied.is_some(), "{rights:?} {request:?}");
            }
        }
    }
    // At the least: read-only or writable, with fetches or without.
    assert!(given >= 4, "{given}");
}

fn what_cannot_be_mapped_is_refused<F: UnderTest>(format: F) {
    let twin = format.twin();
    let (mut arena, mut table) = new(format);
    let (end, page) = (twin.end(), twin.size(1));
    let misaligned = |address| MapError::Misaligned { address };
    let unsupported = |address| MapError::Unsupported { address };
    let mut cases = vec![
        (map(page / 2, 0, page, 1), misaligned(page / 2)),
        (map(0, page / 2, page, 1), misaligned(0)),
        (map(0, 0, page + page / 2, 1), misaligned(0)),
        (map(0, 0, 0, 1), misaligned(0)),
        (map(2 * page, 0, page.wrapping_neg(), 3), misaligned(2 * page)),
        (map(0, page.wrapping_neg(), 2 * page, 1), misaligned(0)),
        (map(0, 0, page, 0), unsupported(0)),
        (map(0, 1 << 52, page, 1), unsupported(0)),
        (map(0, 1 << twin.output_bits(), page, 1), unsupported(0)),
        (map(0, (1 << twin.output_bits()) - page, 2 * page, 1), unsupported(page)),
        (map(end, 0, page, 1), unsupported(end)),
        (map(end - page, 0, 2 * page, 1), unsupported(end)),
    ];
    if !twin.has_unreadable_pages() {
        let no_read = Map { rights: RIGHTS.difference(Rights::READ), ..map(0, 0, page, 1) };
        cases.push((no_read, unsupported(0)));
    }
    for (range, error) in cases {
        assert_eq!(table.map(&mut arena, &range), Err(error), "{range:x?}");
        assert_eq!(arena.live(), 1, "{range:x?}");
        assert!(arena.contents().is_empty());
    }
}

fn what_is_mapped_is_not_mapped_again<F: UnderTest>(format: F) {
    let twin = format.twin();
    let (page, level) = (twin.size(1), page_with(&twin, 4).min(2));
    let size = twin.size(level);
    let (mut arena, mut table) = one_page(format, level, 2 * size, 0);
    let (before, tables) = (arena.contents(), arena.live());
    let last = 3 * size - page;
    let mut cases = vec![
        (map(2 * size, 0, size, level), 2 * size),
        (map(last, 0, page, 1), last),
        (map(2 * size - page, 0, 2 * page, 1), 2 * size),
        (map(last, 0, 2 * page, 1), last),
    ];
    if level < twin.highest_page() {
        // Around it all.
        cases.push((map(0, 0, twin.size(level + 1), level + 1), 0));
    }
    for (range, address) in cases {
        assert_eq!(table.map(&mut arena, &range), Err(MapError::Mapped { address }), "{range:x?}");
        assert_eq!(arena.contents(), before, "{range:x?}");
        assert_eq!(arena.live(), tables);
    }
}

fn what_cannot_be_unmapped_is_refused<F: UnderTest>(format: F) {
    let twin = format.twin();
    let (mut arena, mut table) = one_page(format, 1, 0, 0);
    let (end, page) = (twin.end(), twin.size(1));
    let mut refused = |address, len| table.unmap(&mut arena, address, len).unwrap_err();
    assert_eq!(refused(0, 0), UnmapError::Misaligned { address: 0 });
    assert_eq!(refused(page / 2, page), UnmapError::Misaligned { address: page / 2 });
    assert_eq!(refused(0, page + 1), UnmapError::Misaligned { address: 0 });
    assert_eq!(refused(page, page), UnmapError::NotMapped { address: page });
    assert_eq!(refused(end, 4 * page), UnmapError::Unsupported { address: end });
    assert_eq!(refused(0, end + page), UnmapError::Unsupported { address: 0 });
    if twin.is_canonical() {
        // Both ends are good, what lies between is not.
        let across = UnmapError::Unsupported { address: page };
        assert_eq!(refused(page, (2 * page).wrapping_neg()), across);
    }
    assert_eq!(level_at(&arena, &table, 0), Some(1));
}

fn pages_are_not_split<F: UnderTest>(format: F) {
    let twin = format.twin();
    let level = page_with(&twin, 4);
    let (size, half) = (twin.size(level), twin.size(level) / 2);
    if level == 1 {
        // Nothing here could be split: there are no larger pages, or too few.
        assert!(twin.highest_page() == 1 || twin.end() >> twin.size_bits(2) < 4);
        return;
    }
    let (mut arena, mut table) = one_page(format, level, size, 0);
    table.map(&mut arena, &map(3 * size, 0, 3 * twin.size(1), 1)).unwrap();
    let mut refused = |address, len| table.unmap(&mut arena, address, len).unwrap_err();
    let splits = UnmapError::Splits { address: size };
    assert_eq!(refused(size, half), splits);
    assert_eq!(refused(size + half, half), splits);
    assert_eq!(refused(size + half, 2 * size), splits);
    assert_eq!(refused(0, size + half), splits);
    assert_eq!(refused(2 * size, half), UnmapError::NotMapped { address: 2 * size });
    for at in [size, 3 * size, 3 * size + 2 * twin.size(1)] {
        assert!(level_at(&arena, &table, at).is_some(), "{at:#x}");
    }
    // Whole pages and the holes between them are fine.
    let flush = table.unmap(&mut arena, 0, 4 * size).unwrap();
    assert_eq!(flush.unmapped(), size + 3 * twin.size(1));
    flush.complete(&mut arena);
    assert_eq!(arena.live(), 1);
}

fn the_last_page_takes_its_tables_along<F: UnderTest>(format: F) {
    let page = format.twin().size(1);
    let levels = usize::from(format.twin().levels());
    let (mut arena, mut table) = new(format);
    table.map(&mut arena, &map(0, 0, 2 * page, 1)).unwrap();
    assert_eq!(arena.live(), levels);
    let flush = table.unmap(&mut arena, 0, page).unwrap();
    assert!(!flush.has_tables());
    flush.complete(&mut arena);
    assert_eq!(arena.live(), levels);
    let flush = table.unmap(&mut arena, page, page).unwrap();
    assert_eq!(flush.has_tables(), levels > 1);
    flush.complete(&mut arena);
    assert_eq!(arena.live(), 1);
}

fn a_flush_keeps_tables_until_it_is_complete<F: UnderTest>(format: F) {
    let page = format.twin().size(1);
    let levels = usize::from(format.twin().levels());
    let (mut arena, mut table) = new(format);
    table.map(&mut arena, &map(0, 0, page, 1)).unwrap();
    let flush = table.unmap(&mut arena, 0, page).unwrap();
    // A walker that still has the old entries sees empty tables, not somebody else's pages.
    assert_eq!(arena.live(), levels);
    table.map(&mut arena, &map(0, 0, page, 1)).unwrap();
    assert_eq!(arena.live(), 2 * levels - 1);
    flush.complete(&mut arena);
    assert_eq!(arena.live(), levels);
    assert_eq!(level_at(&arena, &table, 0), Some(1));
}

fn flags_set_meanwhile_do_not_stop_unmapping<F: UnderTest>(format: F) {
    let twin = format.twin();
    let (mut arena, mut table) = one_page(format, 1, 0, 0);
    let leaf = twin.walk(&arena, table.root(), 0, &READ).unwrap().entries.pop().unwrap().0;
    arena.before_exchange = Some(Box::new(move |arena, entry| {
        let value = arena.get(entry).unwrap();
        arena.set(entry, twin.used(value, entry == leaf, entry == leaf));
    }));
    let flush = table.unmap(&mut arena, 0, twin.size(1)).unwrap();
    arena.before_exchange = None;
    flush.complete(&mut arena);
    assert_eq!(arena.live(), 1);
    assert_eq!(level_at(&arena, &table, 0), None);
    assert!(arena.contents().is_empty());
}

/// Tables have the sizes that the architecture wants, and no root takes less than a page.
#[test]
fn tables_of_their_sizes() {
    use common::formats::{one, two};
    use pgtable::{ArmFlags::Fault, Granule};

    assert_eq!(MIN_TABLE_BITS, 12);
    let root_bits = |root: u64| root.trailing_zeros();
    // The root is allocated first, right at its alignment.
    let (_, table) = new(two(Granule::Kib4, 34, 40, Fault));
    assert_eq!(root_bits(table.root()), 16);
    let (_, table) = new(two(Granule::Kib64, 33, 40, Fault));
    assert_eq!(root_bits(table.root()), 20);
    let (_, table) = new(one(Granule::Kib64, 43, 40, Fault));
    assert_eq!(root_bits(table.root()), 12);
    let (_, table) = new(one(Granule::Kib16, 36, 40, Fault));
    assert_eq!(root_bits(table.root()), 14);
}
