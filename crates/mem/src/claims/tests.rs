use alloc::vec;

use proptest::prelude::*;

use super::*;
use crate::{GuestMemory, HeapMemory, MemError};

const A: ReporterId = ReporterId(1);
const B: ReporterId = ReporterId(2);

fn range(start: u64, len: u64) -> Range<Gpa> {
    Range::<Gpa>::new(Gpa(start), len).unwrap()
}

/// A file of 64 KiB whose every byte is `ino`, mapped whole.
fn file(ino: u8) -> Arc<HeapMemory> {
    let memory = HeapMemory::new(0x1_0000).unwrap();
    // SAFETY: the memory is alive, and nobody else has it yet.
    let all = unsafe { crate::Window::new(memory.base(), memory.len(), Access::Write) };
    all.fill(&[ino], 0);
    Arc::new(memory)
}

/// The claim that the `len` bytes from `start` are those of `file` from `offset`.
fn claim(start: u64, len: u64, file: &Arc<HeapMemory>, offset: usize) -> Claim {
    let id = BackingId { dev: 1, ino: Arc::as_ptr(file) as u64, offset: offset as u64 };
    Claim { range: range(start, len), id, backing: file.clone(), offset, access: Access::Write }
}

fn byte(map: &MemoryMap, gpa: u64) -> Option<u8> {
    let mut byte = [0];
    map.read(Gpa(gpa), &mut byte).ok().map(|()| byte[0])
}

fn ranges(map: &MemoryMap) -> Vec<(u64, u64)> {
    map.segments().iter().map(|segment| (segment.range.start.0, segment.range.last.0)).collect()
}

#[test]
fn memory_lives_until_the_last_reporter_withdraws() {
    let ram = file(1);
    let mut claims = Claims::new();
    claims.add(A, claim(0x1000, 0x2000, &ram, 0)).unwrap();
    claims.add(B, claim(0x1000, 0x2000, &ram, 0)).unwrap();
    assert_eq!(ranges(&claims.build()), [(0x1000, 0x2fff)]);
    assert_eq!(claims.remove(A, range(0x1000, 0x2000)), Ok(1));
    assert_eq!(ranges(&claims.build()), [(0x1000, 0x2fff)]);
    assert_eq!(claims.remove_all(B), 1);
    assert_eq!(ranges(&claims.build()), []);
    assert_eq!((claims.len(), claims.contradictions()), (0, 0));
    assert_eq!(Arc::strong_count(&ram), 1);
}

#[test]
fn agreeing_claims_may_differ_in_extent() {
    let ram = file(1);
    let mut claims = Claims::new();
    claims.add(A, claim(0x1000, 0x4000, &ram, 0x1000)).unwrap();
    claims.add(B, claim(0x2000, 0x1000, &ram, 0x2000)).unwrap();
    claims.add(B, claim(0x4000, 0x4000, &ram, 0x4000)).unwrap();
    assert_eq!(claims.contradictions(), 0);
    assert_eq!(ranges(&claims.build()), [(0x1000, 0x7fff)], "one window covers all of it");
}

#[test]
fn the_newest_holds_where_claims_contradict() {
    let (old, new) = (file(1), file(2));
    let mut claims = Claims::new();
    claims.add(A, claim(0x1000, 0x3000, &old, 0)).unwrap();
    claims.add(B, claim(0x2000, 0x1000, &new, 0)).unwrap();
    assert_eq!(claims.contradictions(), 1);
    let map = claims.build();
    let seen = [0xfff, 0x1fff, 0x2000, 0x2fff, 0x3000, 0x4000].map(|gpa| byte(&map, gpa));
    assert_eq!(seen, [None, Some(1), Some(2), Some(2), Some(1), None]);
    // The old claim is back in force once the new one is gone.
    claims.remove_all(B);
    assert_eq!(ranges(&claims.build()), [(0x1000, 0x3fff)]);
    // Newer is a matter of time, not of who reports.
    claims.add(B, claim(0x1000, 0x3000, &new, 0)).unwrap();
    claims.remove_all(A);
    claims.add(A, claim(0x1000, 0x3000, &old, 0)).unwrap();
    assert_eq!(byte(&claims.build(), 0x2000), Some(1));
    assert_eq!(claims.contradictions(), 3);
}

#[test]
fn another_offset_and_another_access_are_contradictions() {
    let ram = file(1);
    let mut claims = Claims::new();
    claims.add(A, claim(0x1000, 0x1000, &ram, 0)).unwrap();
    claims.add(B, claim(0x1000, 0x1000, &ram, 0x1000)).unwrap();
    assert_eq!(claims.contradictions(), 1);
    claims.remove_all(B);
    let read_only = Claim { access: Access::Read, ..claim(0x1000, 0x1000, &ram, 0) };
    claims.add(B, read_only).unwrap();
    assert_eq!(claims.contradictions(), 2);
    let refused = Err(MemError::ReadOnly { gpa: Gpa(0x1000) });
    assert_eq!(claims.build().store_u32(Gpa(0x1000), 1), refused);
}

#[test]
fn the_end_of_the_vm_withdraws_everything_and_keeps_the_count() {
    let mut claims = Claims::new();
    claims.add(A, claim(0, 0x1000, &file(1), 0)).unwrap();
    claims.add(B, claim(0, 0x1000, &file(2), 0)).unwrap();
    claims.clear();
    assert!(claims.is_empty());
    assert_eq!(claims.contradictions(), 1);
    assert_eq!(claims.build().segments().len(), 0);
}

#[test]
fn a_withdrawal_takes_whole_claims() {
    let ram = file(1);
    let mut claims = Claims::new();
    for start in [0x1000, 0x2000, 0x4000] {
        claims.add(A, claim(start, 0x1000, &ram, 0)).unwrap();
    }
    claims.add(B, claim(0x1000, 0x8000, &ram, 0)).unwrap();
    let mut refused = |start, len| claims.remove(A, range(start, len)).unwrap_err();
    assert_eq!(refused(0x1000, 0x800), ClaimError::Splits { gpa: Gpa(0x1000) });
    assert_eq!(refused(0x1000, 0x1001), ClaimError::Splits { gpa: Gpa(0x2000) });
    assert_eq!(refused(0x1fff, 0x2001), ClaimError::Splits { gpa: Gpa(0x1000) });
    assert_eq!(refused(0x3000, 0x1000), ClaimError::NotClaimed { gpa: Gpa(0x3000) });
    assert_eq!(claims.len(), 4);
    // Two claims and the gap behind them; the other reporter's claim is its own.
    assert_eq!(claims.remove(A, range(0x1000, 0x3000)), Ok(2));
    assert_eq!(claims.len(), 2);
    assert_eq!(
        claims.remove(A, range(0x1000, 0x3000)),
        Err(ClaimError::NotClaimed { gpa: Gpa(0x1000) })
    );
}

#[test]
fn what_makes_no_sense_is_refused() {
    let ram = file(1);
    let mut claims = Claims::new();
    claims.add(A, claim(0x1000, 0x1000, &ram, 0)).unwrap();
    for again in [claim(0x1000, 0x1000, &ram, 0), claim(0x1800, 0x1000, &ram, 0x800)] {
        assert_eq!(claims.add(A, again), Err(ClaimError::Claimed { gpa: Gpa(0x1000) }));
    }
    let gpa = Gpa(0x8000);
    let past = ClaimError::Layout(LayoutError::PastBacking { gpa, backing: 0x1_0000 });
    assert_eq!(claims.add(A, claim(0x8000, 0x1000, &ram, 0xf001)), Err(past));
    assert_eq!(claims.add(A, claim(0x8000, 0x1000, &ram, usize::MAX)), Err(past));
    let backwards = Range { start: gpa, last: Gpa(0) };
    let backwards = Claim { range: backwards, ..claim(0, 1, &ram, 0) };
    let bad = ClaimError::Layout(LayoutError::BadRange { gpa });
    assert_eq!(claims.add(A, backwards), Err(bad));
    assert_eq!(claims.len(), 1);
}

#[test]
fn claims_are_bounded() {
    let ram = file(1);
    let mut claims = Claims::new();
    for index in 0..MAX_CLAIMS as u64 {
        claims.add(ReporterId((index % 7) as u32), claim(index << 12, 0x1000, &ram, 0)).unwrap();
    }
    let more = claim(1 << 40, 0x1000, &ram, 0);
    assert_eq!(claims.add(A, more.clone()), Err(ClaimError::TooMany));
    assert_eq!(claims.build().segments().len(), MAX_CLAIMS);
    claims.remove(ReporterId(0), range(0, 0x1000)).unwrap();
    assert_eq!(claims.add(A, more), Ok(()));
}

#[test]
fn a_claim_may_end_at_the_top_of_the_address_space() {
    let (old, new) = (file(1), file(2));
    let mut claims = Claims::new();
    claims.add(A, claim(u64::MAX - 0xfff, 0x1000, &old, 0)).unwrap();
    claims.add(B, claim(u64::MAX - 0x7ff, 0x800, &new, 0)).unwrap();
    let map = claims.build();
    assert_eq!(ranges(&map), [(u64::MAX - 0xfff, u64::MAX - 0x800), (u64::MAX - 0x7ff, u64::MAX)]);
    assert_eq!(byte(&map, u64::MAX), Some(2));
}

/// One step of the random test: a claim of `file` or a withdrawal by `reporter`.
#[derive(Clone, Debug)]
enum Step {
    Add { reporter: u32, page: u64, pages: u64, file: usize, shift: usize },
    Remove { reporter: u32, page: u64, pages: u64 },
    RemoveAll { reporter: u32 },
}

fn step() -> impl Strategy<Value = Step> {
    let place = (0u32..3, 0u64..10, 1u64..5);
    prop_oneof![
        6 => (place.clone(), 0usize..2, 0usize..2).prop_map(|((reporter, page, pages), file, shift)| {
            Step::Add { reporter, page, pages, file, shift }
        }),
        3 => place.prop_map(|(reporter, page, pages)| Step::Remove { reporter, page, pages }),
        1 => (0u32..3).prop_map(|reporter| Step::RemoveAll { reporter }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    /// Against a model that keeps, for each page, a list of who says what.
    #[test]
    fn the_map_is_what_the_newest_say(steps in proptest::collection::vec(step(), 1..30)) {
        let files = [file(0), file(1)];
        // Each page of each file is known by its first two bytes.
        for (number, file) in files.iter().enumerate() {
            let id = BackingId { dev: 0, ino: 0, offset: 0 };
            let whole = Claim { id, ..claim(0, 0x1_0000, file, 0) };
            let mut one = Claims::new();
            one.add(A, whole).unwrap();
            for page in 0u8..16 {
                one.build().write(Gpa(u64::from(page) << 12), &[number as u8, page]).unwrap();
            }
        }
        let mut claims = Claims::new();
        // (reporter, first page, pages, file, page of the file for page 0), oldest first.
        let mut model: Vec<(u32, u64, u64, usize, usize)> = vec![];
        for step in steps {
            match step {
                Step::Add { reporter, page, pages, file, shift } => {
                    let offset = (page as usize + shift) << 12;
                    let new = claim(page << 12, pages << 12, &files[file], offset);
                    let free = model.iter().all(|&(by, first, count, ..)| {
                        by != reporter || first + count <= page || page + pages <= first
                    });
                    prop_assert_eq!(claims.add(ReporterId(reporter), new).is_ok(), free);
                    if free {
                        model.push((reporter, page, pages, file, shift));
                    }
                }
                Step::Remove { reporter, page, pages } => {
                    let hits = |&(by, first, count, ..): &(u32, u64, u64, usize, usize)| {
                        by == reporter && first < page + pages && page < first + count
                    };
                    let cuts = model.iter().any(|entry| {
                        hits(entry) && !(page <= entry.1 && entry.1 + entry.2 <= page + pages)
                    });
                    let expected = model.iter().filter(|entry| hits(entry)).count();
                    let removed = claims.remove(ReporterId(reporter), range(page << 12, pages << 12));
                    if cuts || expected == 0 {
                        prop_assert!(removed.is_err());
                    } else {
                        prop_assert_eq!(removed, Ok(expected));
                        model.retain(|entry| !hits(entry));
                    }
                }
                Step::RemoveAll { reporter } => {
                    let before = model.len();
                    model.retain(|entry| entry.0 != reporter);
                    let removed = claims.remove_all(ReporterId(reporter));
                    prop_assert_eq!(removed, before - model.len());
                }
            }
            let map = claims.build();
            for page in 0..16u64 {
                let newest = model.iter().rfind(|entry| (entry.1..entry.1 + entry.2).contains(&page));
                let expected = newest.map(|&(.., file, shift)| [file as u8, page as u8 + shift as u8]);
                let mut seen = [0; 2];
                let seen = map.read(Gpa(page << 12), &mut seen).ok().map(|()| seen);
                prop_assert_eq!(seen, expected);
            }
        }
    }
}
