use std::sync::Arc;
use std::vec::Vec;

use mem::{Access, Backing, HeapMemory, LayoutError};
use proptest::prelude::*;

use super::*;

const LEN: usize = 0x4000;

fn backing() -> Arc<dyn Backing> {
    Arc::new(HeapMemory::new(LEN).unwrap())
}

fn range(start: u64, last: u64) -> Range<Gpa> {
    Range { start: Gpa(start), last: Gpa(last) }
}

fn segment(start: u64, last: u64) -> Segment {
    Segment { range: range(start, last), backing: backing(), offset: 0, access: Access::Write }
}

fn ranges(map: &MemoryMap) -> Vec<(u64, u64)> {
    map.segments().iter().map(|segment| (segment.range.start.0, segment.range.last.0)).collect()
}

#[test]
fn mappings_do_not_overlap() {
    let mut memory = Memory::default();
    assert_eq!(ranges(&memory.map(segment(0x1000, 0x1fff)).unwrap().unwrap()), [(0x1000, 0x1fff)]);
    for (start, last) in [(0x1000, 0x1fff), (0, 0x1000), (0x1fff, 0x2000), (0x1800, 0x1800)] {
        let refused = memory.map(segment(start, last)).unwrap_err();
        assert_eq!(refused, Refusal::Mapped { gpa: Gpa(0x1000) });
    }
    assert_eq!(memory.map(segment(0, 0xfff)).unwrap().unwrap().segments().len(), 2);
    let top = segment(u64::MAX - 0xfff, u64::MAX);
    assert_eq!(memory.map(top).unwrap().unwrap().segments().len(), 3);
}

#[test]
fn a_mapping_fits_its_memory() {
    let mut memory = Memory::default();
    for begun in [false, true] {
        let long = memory.map(segment(0, LEN as u64)).unwrap_err();
        let past = LayoutError::PastBacking { gpa: Gpa(0), backing: LEN };
        assert_eq!(long, Refusal::Layout(past));
        let offset = Segment { offset: usize::MAX, ..segment(0, 0xfff) };
        assert!(matches!(memory.map(offset).unwrap_err(), Refusal::Layout(_)));
        if !begun {
            memory.begin().unwrap();
        }
    }
    assert!(memory.commit().unwrap().segments().is_empty());
}

#[test]
fn unmapping_takes_whole_mappings() {
    let mut memory = Memory::default();
    for start in [0x1000, 0x3000, 0x5000] {
        memory.map(segment(start, start + 0xfff)).unwrap();
    }
    for (start, last, gpa) in [
        (0x1001, 0x1fff, 0x1000),
        (0x1000, 0x1ffe, 0x1000),
        (0, 0x37ff, 0x3000),
        (0x1800, 0x6000, 0x1000),
        (0x3800, 0x3800, 0x3000),
    ] {
        let refused = memory.unmap(range(start, last)).unwrap_err();
        assert_eq!(refused, Refusal::Cuts { gpa: Gpa(gpa) }, "{start:#x} {last:#x}");
    }
    let (bytes, map) = memory.unmap(range(0x2000, 0x2fff)).unwrap();
    assert_eq!((bytes, map.unwrap().segments().len()), (0, 3));
    let (bytes, map) = memory.unmap(range(0, 0x4000)).unwrap();
    assert_eq!((bytes, ranges(&map.unwrap())), (0x2000, [(0x5000, 0x5fff)].to_vec()));
    let (bytes, map) = memory.unmap(range(0, u64::MAX)).unwrap();
    assert_eq!((bytes, ranges(&map.unwrap())), (0x1000, [].to_vec()));
}

#[test]
fn a_change_takes_effect_as_one() {
    let mut memory = Memory::default();
    assert_eq!(memory.commit().unwrap_err(), Refusal::NoUpdate);
    assert_eq!(memory.abandon().unwrap_err(), Refusal::NoUpdate);
    memory.map(segment(0x1000, 0x1fff)).unwrap();
    memory.begin().unwrap();
    assert_eq!(memory.begin().unwrap_err(), Refusal::UpdateOpen);
    assert!(memory.map(segment(0x2000, 0x2fff)).unwrap().is_none());
    assert!(memory.unmap(range(0x1000, 0x1fff)).unwrap().1.is_none());
    memory.abandon().unwrap();
    assert_eq!(memory.unmap(range(0x2000, 0x2fff)).unwrap().0, 0, "abandoned");

    memory.begin().unwrap();
    memory.unmap(range(0x1000, 0x1fff)).unwrap();
    memory.map(segment(0x1000, 0x2fff)).unwrap();
    assert_eq!(ranges(&memory.commit().unwrap()), [(0x1000, 0x2fff)]);
    assert_eq!(memory.abandon().unwrap_err(), Refusal::NoUpdate);
}

#[test]
fn a_closed_vm_has_no_mappings() {
    let mut memory = Memory::default();
    memory.map(segment(0x1000, 0x1fff)).unwrap();
    memory.begin().unwrap();
    memory.close();
    assert_eq!(memory.map(segment(0, 0xfff)).unwrap_err(), Refusal::Closed);
    assert_eq!(memory.unmap(range(0, 0xfff)).unwrap_err(), Refusal::Closed);
    assert!(memory.commit().unwrap().segments().is_empty(), "what was begun can end");
    memory.begin().unwrap();
    assert!(memory.commit().unwrap().segments().is_empty());
}

#[test]
fn mappings_are_bounded() {
    let mut memory = Memory::default();
    memory.begin().unwrap();
    let backing = backing();
    let byte = |at| Segment {
        range: range(2 * at, 2 * at),
        backing: backing.clone(),
        offset: 0,
        access: Access::Read,
    };
    for at in 0..MAX_MAPPINGS as u64 {
        memory.map(byte(at)).unwrap();
    }
    let refused = memory.map(byte(MAX_MAPPINGS as u64)).unwrap_err();
    assert_eq!(refused, Refusal::TooManyMappings { limit: 65535 });
    memory.unmap(range(0, 0)).unwrap();
    memory.map(byte(MAX_MAPPINGS as u64)).unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    /// Against a plain list, one entry for each address.
    #[test]
    fn as_a_list_of_addresses(steps in prop::collection::vec((any::<bool>(), 0u64..64, 0u64..12), 1..60)) {
        let mut memory = Memory::default();
        let mut model: [Option<u64>; 80] = [None; 80];
        for (map, start, more) in steps {
            let last = start + more;
            let inside = |at: &u64| (start..=last).contains(at);
            let refused = if map {
                let free = (start..=last).all(|at| model[at as usize].is_none());
                if free {
                    (start..=last).for_each(|at| model[at as usize] = Some(start));
                }
                prop_assert_eq!(memory.map(segment(start, last)).is_ok(), free);
                continue;
            } else {
                (0..80).any(|at| !inside(&at) && model[at as usize].is_some()
                    && (start..=last).any(|other| model[other as usize] == model[at as usize]))
            };
            let there = (start..=last).filter(|&at| model[at as usize].is_some()).count() as u64;
            match memory.unmap(range(start, last)) {
                Ok((bytes, _)) => {
                    prop_assert!(!refused);
                    prop_assert_eq!(bytes, there);
                    (start..=last).for_each(|at| model[at as usize] = None);
                }
                Err(_) => prop_assert!(refused),
            }
        }
    }
}
