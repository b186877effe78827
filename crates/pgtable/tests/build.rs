//! The builder: one suite over every format, with an ordered map as judge.

mod common;

use std::collections::BTreeMap;

use common::twin::Twin;
use common::{Arena, ArenaError};
use pgtable::{walk, Access, Format, Map, MapError, PageTable, Request, Rights, UnmapError};
use proptest::prelude::*;
use proptest::test_runner::TestRunner;

for_every_format!(
    mixed_sizes_cover_a_range,
    random_maps_match_an_ordered_map,
    a_failed_allocation_leaves_nothing,
    an_unreachable_table_loses_no_page,
    what_cannot_be_mapped_is_refused,
    what_cannot_be_unmapped_is_refused,
    the_last_page_takes_its_tables_along,
    a_flush_keeps_tables_until_it_is_complete,
    flags_set_meanwhile_do_not_stop_unmapping,
);

const READ_WRITE: Rights = Rights::all();
const READ: Request = Request::user(Access::Read);
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

fn new<F: Format>(format: F) -> (Arena, PageTable<F>) {
    let mut arena = Arena::default();
    let table = PageTable::new(format, &mut arena).unwrap();
    (arena, table)
}

fn map(address: u64, output: u64, len: u64, largest: u8) -> Map {
    Map { address, output, len, rights: READ_WRITE, largest }
}

fn level_at<F: Format>(arena: &Arena, table: &PageTable<F>, at: u64) -> Option<u8> {
    walk(table.format(), table.root(), at, &READ, arena).ok().map(|leaf| leaf.level)
}

fn mixed_sizes_cover_a_range<F: Format + Copy>(format: F, _: Twin) {
    let (mut arena, mut table) = new(format);
    // One small page, two of 2 MiB, one of 1 GiB, one of 2 MiB, one small page.
    let start = GIB - 4 * MIB - 0x1000;
    let len = 0x1000 + 4 * MIB + GIB + 2 * MIB + 0x1000;
    table.map(&mut arena, &map(start, 4 * GIB + start, len, 3)).unwrap();
    let expected = [
        (start, Some(1)),
        (start + 0x1000, Some(2)),
        (GIB - 1, Some(2)),
        (GIB, Some(3)),
        (2 * GIB - 1, Some(3)),
        (2 * GIB, Some(2)),
        (2 * GIB + 2 * MIB, Some(1)),
        (start - 1, None),
        (start + len, None),
    ];
    for (at, level) in expected {
        assert_eq!(level_at(&arena, &table, at), level, "{at:#x}");
    }
    let flush = table.unmap(&mut arena, start, len).unwrap();
    assert_eq!(flush.unmapped(), len);
    flush.complete(&mut arena);
    assert_eq!(arena.live(), 1);

    // The output's alignment counts as well.
    table.map(&mut arena, &map(2 * GIB, 2 * MIB, 4 * MIB, 3)).unwrap();
    assert_eq!(level_at(&arena, &table, 2 * GIB), Some(2));
    table.map(&mut arena, &map(3 * GIB, 0x1000, 4 * MIB, 3)).unwrap();
    assert_eq!(level_at(&arena, &table, 3 * GIB), Some(1));
    table.destroy(&mut arena).unwrap().complete(&mut arena);
    assert_eq!(arena.live(), 0);
}

/// A small world in which ranges collide often: pages around a 1 GiB border.
fn a_range() -> impl Strategy<Value = (u64, u64)> {
    let place = prop_oneof![
        2 => (0u64..6).prop_map(|page| page << 12),
        2 => (0u64..5).prop_map(|page| page << 21),
        2 => (0u64..3).prop_map(|page| page << 30),
        1 => (0u64..6).prop_map(|page| GIB - (page << 12)),
        1 => (0u64..4).prop_map(|page| 2 * MIB - (page << 12)),
    ];
    let len = prop_oneof![
        3 => (1u64..6).prop_map(|pages| pages << 12),
        2 => (1u64..4).prop_map(|pages| pages << 21),
        1 => (1u64..3).prop_map(|pages| pages << 30),
    ];
    (place, len)
}

/// What is mapped, by page: first address to (output, size).
#[derive(Default)]
struct Model(BTreeMap<u64, (u64, u64)>);

impl Model {
    /// The pages that share an address with `len` bytes from `start`.
    fn in_range(&self, start: u64, len: u64) -> Vec<(u64, u64)> {
        let pages = self.0.iter().map(|(&at, &(_, size))| (at, size));
        pages.filter(|&(at, size)| at < start + len && start < at + size).collect()
    }

    fn map(&mut self, map: &Map) -> bool {
        if !self.in_range(map.address, map.len).is_empty() {
            return false;
        }
        let mut done = 0;
        while done < map.len {
            let (at, output) = (map.address + done, map.output + done);
            let sizes = [GIB, 2 * MIB, 0x1000].into_iter().skip(3 - usize::from(map.largest));
            let fits = |size: &u64| at % size == 0 && output % size == 0 && map.len - done >= *size;
            let size = sizes.into_iter().find(fits).unwrap();
            self.0.insert(at, (output, size));
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
        Some(pages.iter().map(|&(at, size)| self.0.remove(&at).map_or(0, |_| size)).sum())
    }

    fn lookup(&self, at: u64) -> Option<u64> {
        let (&start, &(output, size)) = self.0.range(..=at).next_back()?;
        (at - start < size).then_some(output + (at - start))
    }
}

fn random_maps_match_an_ordered_map<F: Format + Copy>(format: F, twin: Twin) {
    let step = (any::<bool>(), a_range(), 0u64..8, 1u8..=3);
    let steps = proptest::collection::vec(step, 1..25);
    // Small pages by the thousand would take the test too long.
    let cap = |len: u64, largest| if largest == 1 { len.min(0x2_0000) } else { len };
    let config = ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(24) };
    TestRunner::new(config)
        .run(&steps, |steps| {
            let (mut arena, mut table) = new(format);
            let mut model = Model::default();
            for (mapping, (address, len), output, largest) in steps {
                if mapping {
                    let map = map(
                        address,
                        (output << 30) + (address & (GIB - 1)),
                        cap(len, largest),
                        largest,
                    );
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
                let stride = model.0.len() / 16 + 1;
                let sampled = model.0.keys().step_by(stride);
                for at in sampled.flat_map(|&at| [at, at + 0xfff, at.saturating_sub(1)]) {
                    let found = walk(&format, table.root(), at, &READ, &arena).ok();
                    prop_assert_eq!(found.map(|leaf| leaf.translate(at)), model.lookup(at));
                    let judged = twin.walk(&arena, table.root(), at, &READ).ok();
                    prop_assert_eq!(judged.map(|found| found.output), model.lookup(at));
                }
            }
            // No table outlives its last page.
            for (at, (_, size)) in std::mem::take(&mut model.0) {
                table.unmap(&mut arena, at, size).unwrap().complete(&mut arena);
            }
            prop_assert_eq!(arena.live(), 1);
            table.destroy(&mut arena).unwrap().complete(&mut arena);
            prop_assert_eq!(arena.live(), 0);
            Ok(())
        })
        .unwrap();
}

fn a_failed_allocation_leaves_nothing<F: Format + Copy>(format: F, twin: Twin) {
    let range = map(GIB - 0x1000, 0, 0x2000, 1);
    // Two pages on both sides of a border: two tables at levels 1 and 2 each, one a level above.
    let needed = 4 + usize::from(twin.levels) - 3;
    for spare in 0..=needed {
        let (mut arena, mut table) = new(format);
        arena.limit = Some(1 + spare);
        let outcome = table.map(&mut arena, &range);
        if spare < needed {
            assert_eq!(outcome, Err(MapError::OutOfPages));
            assert_eq!(arena.live(), 1);
            assert_eq!(level_at(&arena, &table, GIB), None);
        } else {
            assert_eq!(outcome, Ok(()));
            assert_eq!(arena.live(), 1 + needed, "not a page more than needed");
        }
    }
}

fn an_unreachable_table_loses_no_page<F: Format + Copy>(format: F, _: Twin) {
    let range = map(GIB - 0x1000, 0, 0x2000, 1);
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
        assert_eq!(level_at(&arena, &table, GIB), None);
        table.destroy(&mut arena).unwrap().complete(&mut arena);
        assert_eq!(arena.live(), 0);
    }
    assert!(failures > 10, "{failures}");

    // Most accesses here look for entries left in a table: of those, one in 37 will do.
    for nth in (1..50).chain((50..).step_by(37)) {
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

fn what_cannot_be_mapped_is_refused<F: Format + Copy>(format: F, twin: Twin) {
    let (mut arena, mut table) = new(format);
    table.map(&mut arena, &map(2 * MIB, 0, 2 * MIB, 2)).unwrap();
    let misaligned = |address| MapError::Misaligned { address };
    let unsupported = |address| MapError::Unsupported { address };
    let mapped = |address| MapError::Mapped { address };
    let no_read = Map { rights: Rights::USER, ..map(0, 0, 0x1000, 1) };
    let cases = [
        (map(0x800, 0, 0x1000, 1), misaligned(0x800)),
        (map(0, 0x800, 0x1000, 1), misaligned(0)),
        (map(0, 0, 0x1800, 1), misaligned(0)),
        (map(0, 0, 0, 1), misaligned(0)),
        (map(0x2000, 0, u64::MAX - 0xfff, 3), misaligned(0x2000)),
        (map(0, u64::MAX - 0xfff, 0x2000, 1), misaligned(0)),
        (map(0, 0, 0x1000, 0), unsupported(0)),
        (map(0, 1 << 52, 0x1000, 1), unsupported(0)),
        (map(twin.end(), 0, 0x1000, 1), unsupported(twin.end())),
        (map(twin.end() - 0x1000, 0, 0x2000, 1), unsupported(twin.end())),
        (no_read, unsupported(0)),
        (map(2 * MIB + 0x1000, 0, 0x1000, 1), mapped(2 * MIB + 0x1000)),
        (map(2 * MIB - 0x1000, 0, 0x2000, 1), mapped(2 * MIB)),
        (map(0, 0, GIB, 3), mapped(0)),
    ];
    for (range, error) in cases {
        assert_eq!(table.map(&mut arena, &range), Err(error), "{range:x?}");
        assert_eq!(arena.live(), usize::from(twin.levels) - 1, "{range:x?}");
    }
}

fn what_cannot_be_unmapped_is_refused<F: Format + Copy>(format: F, twin: Twin) {
    let (mut arena, mut table) = new(format);
    table.map(&mut arena, &map(2 * MIB, 0, 2 * MIB, 2)).unwrap();
    table.map(&mut arena, &map(GIB, 0, 0x3000, 1)).unwrap();
    let mut refused = |address, len| table.unmap(&mut arena, address, len).unwrap_err();
    assert_eq!(refused(0, 0), UnmapError::Misaligned { address: 0 });
    assert_eq!(refused(0x10, 0x1000), UnmapError::Misaligned { address: 0x10 });
    assert_eq!(refused(0, 0x1001), UnmapError::Misaligned { address: 0 });
    let splits = UnmapError::Splits { address: 2 * MIB };
    assert_eq!(refused(2 * MIB, MIB), splits);
    assert_eq!(refused(3 * MIB, MIB), splits);
    assert_eq!(refused(3 * MIB, GIB), splits);
    assert_eq!(refused(0, 3 * MIB), splits);
    assert_eq!(refused(4 * MIB, MIB), UnmapError::NotMapped { address: 4 * MIB });
    let beyond = UnmapError::Unsupported { address: twin.end() };
    assert_eq!(refused(twin.end(), 4 * MIB), beyond);
    assert_eq!(refused(0, twin.end() + 0x1000), UnmapError::Unsupported { address: 0 });
    if !twin.second_stage {
        // Both ends are good, what lies between is not.
        let across = UnmapError::Unsupported { address: 0x1000 };
        assert_eq!(refused(0x1000, u64::MAX - 0xfff - 0x1000), across);
    }
    for at in [2 * MIB, GIB, GIB + 0x2000] {
        assert!(level_at(&arena, &table, at).is_some(), "{at:#x}");
    }
    // Whole pages and the holes between them are fine.
    let flush = table.unmap(&mut arena, 0, 2 * GIB).unwrap();
    assert_eq!(flush.unmapped(), 2 * MIB + 0x3000);
    flush.complete(&mut arena);
    assert_eq!(arena.live(), 1);
}

fn the_last_page_takes_its_tables_along<F: Format + Copy>(format: F, twin: Twin) {
    let (mut arena, mut table) = new(format);
    table.map(&mut arena, &map(0, 0, 0x2000, 1)).unwrap();
    assert_eq!(arena.live(), usize::from(twin.levels));
    let flush = table.unmap(&mut arena, 0, 0x1000).unwrap();
    assert!(!flush.has_tables());
    flush.complete(&mut arena);
    assert_eq!(arena.live(), usize::from(twin.levels));
    let flush = table.unmap(&mut arena, 0x1000, 0x1000).unwrap();
    assert!(flush.has_tables());
    flush.complete(&mut arena);
    assert_eq!(arena.live(), 1);
}

fn a_flush_keeps_tables_until_it_is_complete<F: Format + Copy>(format: F, twin: Twin) {
    let (mut arena, mut table) = new(format);
    table.map(&mut arena, &map(0, 0, 0x1000, 1)).unwrap();
    let flush = table.unmap(&mut arena, 0, 0x1000).unwrap();
    // A walker that still has the old entries sees empty tables, not somebody else's pages.
    assert_eq!(arena.live(), usize::from(twin.levels));
    table.map(&mut arena, &map(0, 0, 0x1000, 1)).unwrap();
    assert_eq!(arena.live(), 2 * usize::from(twin.levels) - 1);
    flush.complete(&mut arena);
    assert_eq!(arena.live(), usize::from(twin.levels));
    assert_eq!(level_at(&arena, &table, 0), Some(1));
}

fn flags_set_meanwhile_do_not_stop_unmapping<F: Format + Copy>(format: F, _: Twin) {
    let (mut arena, mut table) = new(format);
    table.map(&mut arena, &map(0, 0, 0x1000, 1)).unwrap();
    arena.before_exchange = Some(Box::new(|arena, entry| {
        let flags = 0x360;
        let value = arena.get(entry).unwrap();
        arena.set(entry, value | flags);
    }));
    let flush = table.unmap(&mut arena, 0, 0x1000).unwrap();
    arena.before_exchange = None;
    flush.complete(&mut arena);
    assert_eq!(arena.live(), 1);
    assert_eq!(level_at(&arena, &table, 0), None);
}
