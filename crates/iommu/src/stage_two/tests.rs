use alloc::collections::BTreeSet;
use alloc::sync::Arc;
use alloc::vec::Vec;

use mem::{Access, Gpa, GuestMemory, HeapMemory, HostAddr, MemoryMap, Range, Segment};
use pgtable::{Tables, Vtcr};
use proptest::prelude::*;

use super::editor::MAX_HOLES;
use super::*;
use crate::FaultReason;

const SHUFFLED: Layout = Layout::Shuffled { seed: 7 };

fn frames(layout: Layout) -> Frames {
    Frames::new(layout, 12, 21)
}

fn range(start: u64, len: u64) -> Range<Gpa> {
    Range::<Gpa>::new(Gpa(start), len).unwrap()
}

/// An editor and its tables; `levels` of VT-d.
fn editor(levels: SecondStageLevels, layout: Layout) -> (Editor, Arc<HostTables>) {
    editor_of(StageTwoFormat::Vtd { levels }, layout)
}

fn editor_of(format: StageTwoFormat, layout: Layout) -> (Editor, Arc<HostTables>) {
    let tables = Arc::new(HostTables::with_chunks(16));
    let config = StageTwoConfig { format, layout };
    let editor = Editor::new(HostStageTwo::new(&config, &tables).unwrap());
    (editor, tables)
}

fn reads_and_writes(editor: &Editor, gpa: u64) -> (bool, bool) {
    let walk = |access| editor.stage_two().walk(Gpa(gpa), access).is_ok();
    (walk(Access::Read), walk(Access::Write))
}

#[test]
fn frames_are_dealt_out_once() {
    for seed in [0, 1, u64::MAX] {
        let frames = frames(Layout::Shuffled { seed });
        let mut split = 0;
        let mut hosts = BTreeSet::new();
        for frame in 0..2048 {
            let gpa = Gpa(frame << 21);
            split += u32::from(frames.splits(gpa));
            let pages = (gpa.0..).step_by(4096).take(512);
            let mut of_frame = BTreeSet::new();
            for page in pages {
                let host = frames.host(Gpa(page)).unwrap();
                assert_ne!(host.0, page);
                assert!(host.0 > 0xffff_ffff, "below 4 GiB are interrupts");
                assert_eq!(frames.guest(host), Some(Gpa(page)));
                assert_eq!(frames.guest(HostAddr(host.0 + 0x123)), Some(Gpa(page + 0x123)));
                of_frame.insert(host.0);
            }
            // A frame stays together, in order or not, and aligned.
            assert_eq!(of_frame.len(), 512);
            let (first, last) = (of_frame.first().unwrap(), of_frame.last().unwrap());
            assert_eq!((first % (2 << 20), last - first), (0, 511 << 12));
            assert!(hosts.insert(*first), "two frames at {first:#x}");
            let in_order = frames.host(gpa).unwrap().0 == *first
                && frames.host(Gpa(gpa.0 + 0x1000)).unwrap().0 == first + 0x1000;
            assert!(in_order || frames.splits(gpa));
        }
        assert!((400..624).contains(&split), "{split} of 2048 is no quarter");
        let ordered: Vec<_> = (0..2048).map(|frame| frames.host(Gpa(frame << 21))).collect();
        assert!(!ordered.is_sorted());
    }
}

#[test]
fn frames_in_place() {
    let frames = frames(Layout::Identity);
    assert_eq!(frames.host(Gpa(0x1234_5678)), Some(HostAddr(0x1234_5678)));
    assert_eq!(frames.guest(HostAddr(0x1234_5678)), Some(Gpa(0x1234_5678)));
    assert!(!frames.splits(Gpa(0)));
}

#[test]
fn nothing_is_laid_out_beyond_the_width() {
    for layout in [Layout::Identity, SHUFFLED] {
        let frames = frames(layout);
        assert!(frames.host(Gpa((1 << 44) - 1)).is_some());
        for far in [1 << 44, 1 << 52, u64::MAX] {
            assert_eq!(frames.host(Gpa(far)), None);
        }
        for nowhere in [1 << 45, 1 << 63, u64::MAX] {
            assert_eq!(frames.guest(HostAddr(nowhere)), None);
        }
    }
    assert_eq!(frames(SHUFFLED).guest(HostAddr(0x1000)), None);
    assert_eq!(frames(Layout::Identity).guest(HostAddr(1 << 44)), None);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_layout_can_be_undone(
        seed in any::<u64>(),
        gpa in 0..1u64 << 44,
        granule in prop::sample::select(alloc::vec![(12, 21), (14, 25), (16, 29)]),
    ) {
        let frames = Frames::new(Layout::Shuffled { seed }, granule.0, granule.1);
        let host = frames.host(Gpa(gpa)).unwrap();
        prop_assert_eq!(host.0 >> 44, 1);
        prop_assert_eq!(frames.guest(host), Some(Gpa(gpa)));
    }
}

#[test]
fn tables_are_zeroed_aligned_and_used_again() {
    let tables = HostTables::new();
    let first = tables.allocate(12).unwrap();
    tables.store(first, 7).unwrap();
    assert_eq!(tables.load(first.0), Ok(7));
    assert_eq!(tables.compare_exchange(first.0, 6, 8), Ok(Err(7)));
    assert_eq!(tables.compare_exchange(first.0, 7, 8), Ok(Ok(7)));
    assert_eq!(tables.swap(first, 9), Ok(8));
    let large = tables.allocate(16).unwrap();
    assert_eq!(large.0 % (64 << 10), 0);
    assert_eq!(tables.used(), 4096 + (64 << 10));
    // What the alignment passed over is not lost.
    let between: Vec<_> = (0..15).map(|_| tables.allocate(12).unwrap()).collect();
    assert!(between.iter().all(|table| (first..large).contains(table)));
    tables.free(first, 12);
    assert_eq!(tables.allocate(12), Some(first));
    assert_eq!(tables.load(first.0), Ok(0), "zero again");
    for bits in [0, 11, 21, 64] {
        assert_eq!(tables.allocate(bits), None);
    }
}

#[test]
fn words_that_are_no_tables() {
    let tables = HostTables::new();
    let table = tables.allocate(12).unwrap();
    for nowhere in [0, 0x1000, table.0 - 8, table.0 + 4, table.0 + (1 << 18), u64::MAX] {
        assert!(tables.load(nowhere).is_err(), "{nowhere:#x}");
        assert!(tables.store(HostAddr(nowhere), 1).is_err());
        assert!(tables.compare_exchange(nowhere, 0, 1).is_err());
    }
}

#[test]
fn memory_for_tables_ends() {
    let tables = HostTables::with_chunks(16);
    let mut last = None;
    let count = core::iter::from_fn(|| tables.allocate(20).inspect(|table| last = Some(*table)));
    assert_eq!(count.count(), 4);
    assert_eq!(tables.allocate(20), None);
    assert_eq!(tables.allocate(12), None);
    tables.free(last.unwrap(), 20);
    assert_eq!(tables.allocate(20), last);
}

/// A map of some segments; each has its own memory.
fn map(segments: &[(u64, u64, Access)]) -> MemoryMap {
    let segment = |&(start, len, access): &(u64, u64, Access)| Segment {
        range: range(start, len),
        backing: Arc::new(HeapMemory::new(len as usize).unwrap()),
        offset: 0,
        access,
    };
    MemoryMap::new(segments.iter().map(segment).collect()).unwrap()
}

#[test]
fn memory_is_mapped_and_nothing_else() {
    use Access::{Read, Write};
    for levels in [SecondStageLevels::Three, SecondStageLevels::Four, SecondStageLevels::Five] {
        for layout in [Layout::Identity, SHUFFLED] {
            let (mut editor, _) = editor(levels, layout);
            assert_eq!(reads_and_writes(&editor, 0), (false, false));
            let rom = (0x1f_f000, 0x2000, Read);
            let memory = [(0, 0x9_f000, Write), rom, (0x40_0000, 0x40_0000, Write)];
            drop(editor.set_memory(map(&memory)));
            for (gpa, expected) in [
                (0, (true, true)),
                (0x9_efff, (true, true)),
                (0x9_f000, (false, false)),
                (0x1f_efff, (false, false)),
                (0x1f_f000, (true, false)),
                (0x20_0fff, (true, false)),
                (0x20_1000, (false, false)),
                (0x3f_ffff, (false, false)),
                (0x40_0000, (true, true)),
                (0x7f_ffff, (true, true)),
                (0x80_0000, (false, false)),
                (1 << 43, (false, false)),
                (u64::MAX, (false, false)),
            ] {
                assert_eq!(reads_and_writes(&editor, gpa), expected, "{gpa:#x} {levels:?}");
            }
            // What is gone is gone, and what stays was not touched.
            let stays = editor.stage_two().walk(Gpa(0x1000), Read).unwrap();
            drop(editor.set_memory(map(&memory[..1])));
            assert_eq!(reads_and_writes(&editor, 0x40_0000), (false, false));
            assert_eq!(editor.stage_two().walk(Gpa(0x1000), Read), Ok(stays));
        }
    }
}

#[test]
fn whole_frames_are_one_page_unless_shuffled_apart() {
    for layout in [Layout::Identity, SHUFFLED] {
        let (mut editor, tables) = editor(SecondStageLevels::Three, layout);
        drop(editor.set_memory(map(&[(0, 128 << 20, Access::Write)])));
        let frames = frames(layout);
        let mut apart = 0;
        for frame in 0..64 {
            let gpa = Gpa(frame << 21 | 0x12_3456);
            let leaf = editor.stage_two().walk(gpa, Access::Read).unwrap();
            assert_eq!(leaf.size_bits, if frames.splits(gpa) { 12 } else { 21 });
            assert_eq!(Some(leaf.translate(gpa).0), frames.host(gpa));
            apart += u64::from(frames.splits(gpa));
        }
        // The root, one table of large frames, and one for each that is apart.
        assert_eq!(tables.used(), (2 + apart) << 12);
        assert_eq!(apart > 0, layout != Layout::Identity);
    }
}

#[test]
fn cleared_until_restored() {
    let (mut editor, tables) = editor(SecondStageLevels::Four, Layout::Identity);
    drop(editor.set_memory(map(&[(0, 8 << 20, Access::Write)])));
    let used = tables.used();
    // In the middle of a page of 2 MiB, which falls apart; both ends in the same page.
    drop(editor.clear(range(0x20_1004, 1)).unwrap());
    assert_eq!(tables.used(), used + 4096);
    for (gpa, there) in
        [(0x20_0fff, true), (0x20_1000, false), (0x20_1fff, false), (0x20_2000, true)]
    {
        assert_eq!(reads_and_writes(&editor, gpa), (there, there), "{gpa:#x}");
    }
    let stop = editor.stage_two().walk(Gpa(0x20_1234), Access::Write).unwrap_err();
    let absent = FaultReason::NotPresent { stage: crate::Stage::Two, level: 1 };
    assert_eq!((stop.gpa, stop.level()), (Gpa(0x20_1234), 1));
    assert_eq!(stop.reason(crate::Stage::Two), absent);
    // A new map does not undo it.
    drop(editor.set_memory(map(&[(0, 16 << 20, Access::Write)])));
    assert_eq!(reads_and_writes(&editor, 0x20_1000), (false, false));
    assert_eq!(reads_and_writes(&editor, 0xff_f000), (true, true));
    // All there is, and a part of it back.
    drop(editor.clear(Range { start: Gpa(0), last: Gpa(u64::MAX) }).unwrap());
    assert_eq!(tables.used(), 2 << 12, "the root and the table under it");
    drop(editor.restore(range(0x3000, 0x1000)).unwrap());
    assert_eq!(reads_and_writes(&editor, 0x3000), (true, true));
    assert_eq!(reads_and_writes(&editor, 0x4000), (false, false));
    drop(editor.restore(Range { start: Gpa(0), last: Gpa(u64::MAX) }).unwrap());
    assert_eq!(reads_and_writes(&editor, 0x20_1000), (true, true));
    assert_eq!(tables.used(), used, "whole again");
}

#[test]
fn holes_have_a_limit() {
    let (mut editor, _) = editor(SecondStageLevels::Four, Layout::Identity);
    let page = |number: usize| range(number as u64 * 0x2000, 0x1000);
    for number in 0..MAX_HOLES {
        drop(editor.clear(page(number)).unwrap());
    }
    let refused = StageTwoError::TooManyHoles { limit: MAX_HOLES };
    assert_eq!(editor.clear(page(MAX_HOLES)).unwrap_err(), refused);
    // Splitting one makes two; joining two makes one.
    assert_eq!(editor.restore(range(0x10, 1)).unwrap_err(), refused);
    drop(editor.clear(range(0x1000, 0x1000)).unwrap());
    drop(editor.clear(page(MAX_HOLES)).unwrap());
}

#[test]
fn everything_is_given_back() {
    let tables = {
        let (mut editor, tables) = editor(SecondStageLevels::Five, SHUFFLED);
        let retired =
            editor.set_memory(map(&[(0, 32 << 20, Access::Write), (1 << 40, 4096, Access::Read)]));
        assert!(tables.used() > 8 << 12);
        drop(retired);
        let retired = editor.set_memory(MemoryMap::default());
        let used = tables.used();
        drop(retired);
        assert!(tables.used() < used, "retired, not freed before");
        drop(editor.set_memory(map(&[(0, 32 << 20, Access::Write)])));
        let last = editor.close();
        assert!(tables.used() > 0);
        drop(last);
        assert_eq!(tables.used(), 0);
        drop(editor.set_memory(map(&[(0, 4096, Access::Write)])));
        assert_eq!(editor.clear(range(0, 1)).unwrap_err(), StageTwoError::Closed);
        tables
    };
    assert_eq!(tables.used(), 0);
}

#[test]
fn a_vm_without_memory_for_tables_faults_and_recovers() {
    let (mut editor, tables) = editor(SecondStageLevels::Three, Layout::Identity);
    let hog: Vec<_> = core::iter::from_fn(|| tables.allocate(12)).collect();
    let small = map(&[(0, 0x3000, Access::Write)]);
    drop(editor.set_memory(small.clone()));
    assert_eq!(reads_and_writes(&editor, 0), (false, false));
    hog.into_iter().for_each(|table| tables.free(table, 12));
    // The same map once more.
    drop(editor.set_memory(small));
    assert_eq!(reads_and_writes(&editor, 0), (true, true));
}

/// What cannot be mapped as it should be is not left as it was.
#[test]
fn a_page_is_cleared_even_if_its_frame_cannot_be_split() {
    let (mut editor, tables) = editor(SecondStageLevels::Three, Layout::Identity);
    drop(editor.set_memory(map(&[(0, 4 << 20, Access::Write)])));
    let hog: Vec<_> = core::iter::from_fn(|| tables.allocate(12)).collect();
    drop(editor.clear(range(0x5000, 0x1000)).unwrap());
    assert_eq!(reads_and_writes(&editor, 0x5000), (false, false));
    assert_eq!(reads_and_writes(&editor, 0x6000), (false, false), "no table for it");
    assert_eq!(reads_and_writes(&editor, 0x20_0000), (true, true));
    hog.into_iter().for_each(|table| tables.free(table, 12));
    // A change elsewhere does not mend it, the next map does.
    drop(editor.clear(range(0x20_0000, 0x1000)).unwrap());
    assert_eq!(reads_and_writes(&editor, 0x6000), (false, false));
    drop(editor.set_memory(map(&[(0, 4 << 20, Access::Write)])));
    assert_eq!(reads_and_writes(&editor, 0x5000), (false, false));
    assert_eq!(reads_and_writes(&editor, 0x6000), (true, true));
}

/// Every VTCR: a format that is taken can carry memory.
#[test]
fn any_format_of_arm_is_refused_or_works() {
    let tables = Arc::new(HostTables::with_chunks(16));
    let memory = map(&[(0, 0x1_0000, Access::Write)]);
    let mut carried = 0;
    let fields = (0..64u8).flat_map(|t0sz| (0..4u8).map(move |sl0| (t0sz, sl0)));
    let sizes = (0..4u8).flat_map(|tg0| (0..8u8).map(move |ps| (tg0, ps)));
    for ((t0sz, sl0), (tg0, ps)) in fields.flat_map(|a| sizes.clone().map(move |b| (a, b))) {
        for wide in [false, true] {
            let vtcr = Vtcr { t0sz, sl0, tg0, ps, wide };
            let Ok(format) = ArmStageTwo::from_vtcr(&vtcr) else { continue };
            let config = StageTwoConfig { format: StageTwoFormat::Arm(format), layout: SHUFFLED };
            let Ok(stage_two) = HostStageTwo::new(&config, &tables) else { continue };
            let mut editor = Editor::new(stage_two);
            drop(editor.set_memory(memory.clone()));
            assert_eq!(reads_and_writes(&editor, 0xf000), (true, true), "{vtcr:?}");
            carried += 1;
        }
    }
    assert!(carried > 100, "{carried}");
    assert_eq!(tables.used(), 0);
}

/// Pages of the small memory of the property test.
const PAGES: u64 = 1536;

#[derive(Clone, Debug)]
enum Change {
    Memory(Vec<(u64, u64, bool)>),
    Clear(u64, u64),
    Restore(u64, u64),
}

fn change() -> impl Strategy<Value = Change> {
    let pages = || (0..PAGES, prop_oneof![1..4u64, Just(512), 1..700u64]);
    let memory = prop::collection::vec((pages(), any::<bool>()), 0..5);
    prop_oneof![
        memory.prop_map(|list| Change::Memory(
            list.into_iter().map(|((at, len), write)| (at, len, write)).collect()
        )),
        pages().prop_map(|(at, len)| Change::Clear(at, len)),
        pages().prop_map(|(at, len)| Change::Restore(at, len)),
    ]
}

/// The segments that do not overlap one before them.
fn disjoint(list: &[(u64, u64, bool)]) -> Vec<(u64, u64, Access)> {
    let mut kept: Vec<(u64, u64, Access)> = Vec::new();
    for &(at, len, write) in list {
        let new = range(at << 12, len << 12);
        if kept.iter().all(|&(start, len, _)| !range(start, len).overlaps(&new)) {
            let access = if write { Access::Write } else { Access::Read };
            kept.push((at << 12, len << 12, access));
        }
    }
    kept
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    /// After any changes the tables say what the map and the holes say, page by page, and every
    /// mapping leads back to the page.
    #[test]
    fn tables_follow_the_map(
        changes in prop::collection::vec(change(), 1..8),
        seed in prop::option::of(any::<u64>()),
    ) {
        let layout = seed.map_or(Layout::Identity, |seed| Layout::Shuffled { seed });
        let (mut editor, tables) = editor(SecondStageLevels::Three, layout);
        let mut memory = Vec::new();
        let mut holes = BTreeSet::new();
        for change in changes {
            match change {
                Change::Memory(list) => {
                    memory = disjoint(&list);
                    drop(editor.set_memory(map(&memory)));
                }
                Change::Clear(at, len) => {
                    holes.extend(at..at + len);
                    drop(editor.clear(range(at << 12, len << 12)).unwrap());
                }
                Change::Restore(at, len) => {
                    holes.retain(|page| !(at..at + len).contains(page));
                    drop(editor.restore(range(at << 12, len << 12)).unwrap());
                }
            }
            for page in 0..2 * PAGES {
                let gpa = Gpa(page << 12);
                let of = memory.iter().find(|&&(start, len, _)| range(start, len).contains(gpa));
                let of = of.filter(|_| !holes.contains(&page));
                let expected = (of.is_some(), of.is_some_and(|of| of.2 == Access::Write));
                prop_assert_eq!(reads_and_writes(&editor, gpa.0), expected);
                if let Ok(leaf) = editor.stage_two().walk(gpa, Access::Read) {
                    let host = leaf.translate(gpa).0;
                    prop_assert_eq!(editor.stage_two().frames.guest(host), Some(gpa));
                }
            }
        }
        drop(editor);
        prop_assert_eq!(tables.used(), 0);
    }
}

/// Formats of Arm with their frames: log2 of a page, and of what an entry of level 2 maps.
fn arm_formats() -> Vec<(ArmStageTwo, u32, u32)> {
    let of = |granule, input, output| ArmStageTwo::new(granule, input, output).unwrap();
    alloc::vec![
        (of(Granule::Kib4, 34, 48), 12, 21),
        (of(Granule::Kib4, 40, 48).with_flags(ArmFlags::AccessDirty), 12, 21),
        (of(Granule::Kib4, 44, 48).with_flags(ArmFlags::Ignore), 12, 21),
        (of(Granule::Kib16, 40, 48), 14, 25),
        (of(Granule::Kib16, 48, 52).with_flags(ArmFlags::Access), 14, 25),
        (of(Granule::Kib64, 42, 48), 16, 29),
        (of(Granule::Kib64, 52, 52).with_flags(ArmFlags::AccessDirty), 16, 29),
    ]
}

#[test]
fn every_arm_granule() {
    use Access::{Read, Write};
    for (format, page, large) in arm_formats() {
        for layout in [Layout::Identity, SHUFFLED] {
            let (mut editor, tables) = editor_of(StageTwoFormat::Arm(format), layout);
            // Its memory is never touched, so it is never there.
            let (far, len) = (1 << large, 3 << large);
            let memory = [(0, 0x2_0000, Write), (0x10_0000, 0x1_0000, Read), (far, len, Write)];
            drop(editor.set_memory(map(&memory)));
            for (gpa, expected) in [
                (0, (true, true)),
                (0x1_ffff, (true, true)),
                (0x2_0000, (false, false)),
                (0x10_0000, (true, false)),
                (0x11_0000, (false, false)),
                (far, (true, true)),
                (far + len - 1, (true, true)),
                (far + len, (false, false)),
            ] {
                assert_eq!(reads_and_writes(&editor, gpa), expected, "{gpa:#x} {format:?}");
            }
            let frames = Frames::new(layout, page, large);
            for frame in 1..4 {
                let gpa = Gpa(frame << large | 0x1_2345);
                let leaf = editor.stage_two().walk(gpa, Write).unwrap();
                assert_eq!(leaf.size_bits, if frames.splits(gpa) { page } else { large });
                assert_eq!(Some(leaf.translate(gpa).0), frames.host(gpa));
            }
            drop(editor.clear(range(far + 0x123, 1)).unwrap());
            let stop = editor.stage_two().walk(Gpa(far), Read).unwrap_err();
            assert_eq!((stop.gpa, stop.level()), (Gpa(far), 1));
            assert!(editor.stage_two().walk(Gpa(far + (1 << page)), Read).is_ok());
            drop(editor);
            assert_eq!(tables.used(), 0);
        }
    }
}

#[test]
fn formats_that_cannot_map_the_memory() {
    let tables = Arc::new(HostTables::with_chunks(1));
    let narrow = ArmStageTwo::new(Granule::Kib4, 40, 44).unwrap();
    let shallow = ArmStageTwo::new(Granule::Kib64, 32, 48).unwrap();
    assert_eq!(pgtable::Format::levels(&shallow), 1);
    for format in [narrow, shallow] {
        let config =
            StageTwoConfig { format: StageTwoFormat::Arm(format), layout: Layout::Identity };
        let refused = HostStageTwo::new(&config, &tables).unwrap_err();
        assert_eq!(refused, crate::HostError::UnsupportedStageTwo);
    }
    assert_eq!(tables.used(), 0);
}

#[test]
fn walks_mark_what_they_use() {
    let (mut editor, tables) = editor(SecondStageLevels::Three, Layout::Identity);
    drop(editor.set_memory(map(&[(0, 4 << 20, Access::Write)])));
    let stage_two = editor.stage_two();
    let root = tables.load(stage_two.root().0).unwrap();
    let large = root & !0xfff;
    let flags = |at: u64| tables.load(at).unwrap() >> 8 & 3;
    assert_eq!((flags(stage_two.root().0), flags(large)), (0, 0));
    stage_two.walk(Gpa(0x1000), Access::Read).unwrap();
    assert_eq!((flags(stage_two.root().0), flags(large), flags(large + 8)), (1, 1, 0));
    stage_two.walk(Gpa(0x20_1000), Access::Write).unwrap();
    assert_eq!((flags(large), flags(large + 8)), (1, 3));
}

#[test]
fn guest_memory_through_a_stage_two() {
    let reads = crate::counters::TableReads::default();
    let (mut editor, _) = editor(SecondStageLevels::Four, SHUFFLED);
    let memory = map(&[(0, 4 << 20, Access::Write)]);
    drop(editor.set_memory(memory.clone()));
    drop(editor.clear(range(0x5000, 0x1000)).unwrap());
    let physical = GuestPhysical::new(&memory, Some(editor.stage_two()), &reads);
    let bytes: Vec<u8> = (0..0x3000u32).map(|at| at as u8 ^ (at >> 8) as u8).collect();
    memory.write(Gpa(0x1800), &bytes).unwrap();
    let mut read = alloc::vec![0; bytes.len()];
    physical.read(Gpa(0x1800), &mut read).unwrap();
    assert_eq!(read, bytes);
    assert!(reads.stage_two_walks.get() >= 1);
    assert_eq!(physical.take_stop(), None);
    assert!(physical.load_u64(Gpa(0x5008)).is_err());
    let stop = physical.take_stop().unwrap();
    assert_eq!((stop.gpa, stop.level()), (Gpa(0x5008), 1));
    assert_eq!(physical.take_stop(), None, "said once");
    // A transfer that runs into it has done what comes before.
    assert!(physical.write(Gpa(0x4ff8), &[9; 16]).is_err());
    assert_eq!(memory.load_u64(Gpa(0x4ff8)), Ok(0x0909_0909_0909_0909));
    assert_eq!(physical.take_stop().unwrap().gpa, Gpa(0x5000));
}
