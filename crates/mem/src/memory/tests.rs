use alloc::vec;
use alloc::vec::Vec;

use proptest::prelude::*;

use super::*;
use crate::MemoryMap;

const MISALIGNED: MemError = MemError::Misaligned { gpa: Gpa(0x1004) };

/// Two neighbouring regions, the first of which ends in the middle of a word, and a third.
fn memory() -> MemoryMap {
    MemoryMap::anonymous(&[(Gpa(0x1000), 0xffc), (Gpa(0x1ffc), 0x1004), (Gpa(0x8000), 0x10)])
        .unwrap()
}

#[test]
fn words_go_in_and_out() {
    let memory = memory();
    memory.store_u32(Gpa(0x1004), 0x0403_0201).unwrap();
    memory.store_u64(Gpa(0x1008), 0x0c0b_0a09_0807_0605).unwrap();
    let mut bytes = [0; 12];
    memory.read(Gpa(0x1004), &mut bytes).unwrap();
    assert_eq!(bytes, [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]);
    assert_eq!(memory.load_u32(Gpa(0x100c)), Ok(0x0c0b_0a09));
    let found = memory.compare_exchange_u64(Gpa(0x1008), 0, 1);
    assert_eq!(found, Ok(Err(0x0c0b_0a09_0807_0605)));
    let found = memory.compare_exchange_u64(Gpa(0x1008), 0x0c0b_0a09_0807_0605, 1);
    assert_eq!(found, Ok(Ok(0x0c0b_0a09_0807_0605)));
    assert_eq!(memory.load_u64(Gpa(0x1008)), Ok(1));
}

#[test]
fn words_are_aligned_and_in_one_piece() {
    let memory = memory();
    assert_eq!(memory.load_u64(Gpa(0x1004)), Err(MISALIGNED));
    assert_eq!(memory.store_u64(Gpa(0x1004), 0), Err(MISALIGNED));
    assert_eq!(memory.compare_exchange_u64(Gpa(0x1004), 0, 0), Err(MISALIGNED));
    let odd = Err(MemError::Misaligned { gpa: Gpa(0x1002) });
    assert_eq!(memory.load_u32(Gpa(0x1002)), odd);
    // Aligned, but half of it is in another region.
    let across = Err(MemError::Misaligned { gpa: Gpa(0x1ff8) });
    assert_eq!(memory.load_u64(Gpa(0x1ff8)), across);
    assert_eq!(memory.load_u32(Gpa(0x1ff8)), Ok(0));
    let nowhere = Err(MemError::Unmapped { gpa: Gpa(0x4000) });
    assert_eq!(memory.load_u64(Gpa(0x4000)), nowhere);
}

#[test]
fn memory_behind_pointers_is_memory() {
    fn check(memory: impl GuestMemory) {
        memory.store_u32(Gpa(0x1004), 7).unwrap();
        assert_eq!(memory.load_u32(Gpa(0x1004)), Ok(7));
    }
    let memory = memory();
    check(&memory);
    check(&memory as &dyn GuestMemory);
    check(Arc::new(memory.clone()));
    check(Arc::new(memory) as Arc<dyn GuestMemory>);
}

/// Memory whose windows are always empty, against the contract.
struct Hollow;

impl GuestMemory for Hollow {
    fn window(&self, _: Gpa, _: usize, access: Access) -> Result<Window<'_>, MemError> {
        // SAFETY: no byte is ever reached through a window of length zero.
        Ok(unsafe { Window::new(core::ptr::NonNull::dangling(), 0, access) })
    }
}

#[test]
fn empty_windows_end_a_copy() {
    let nothing = Err(MemError::Unmapped { gpa: Gpa(0x10) });
    assert_eq!(Hollow.read(Gpa(0x10), &mut [0; 4]), nothing);
    assert_eq!(Hollow.write(Gpa(0x10), &[0; 4]), nothing);
    assert_eq!(Hollow.write(Gpa(0x10), &[]), Ok(()));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Against a plain array in which holes are `None`.
    #[test]
    fn copies_reach_exactly_what_is_memory(
        steps in proptest::collection::vec((0usize..0x100, 0usize..0x60, any::<u8>()), 1..20),
        regions in proptest::collection::vec((1u64..0x30, 0u64..0x10), 1..5),
    ) {
        let mut model = [None; 0x200];
        let (mut at, mut ranges) = (0, vec![]);
        for (len, gap) in regions {
            ranges.push((Gpa(at), len));
            model[at as usize..(at + len) as usize].fill(Some(0u8));
            at += len + gap;
        }
        let memory = MemoryMap::anonymous(&ranges).unwrap();
        for (at, len, value) in steps {
            let bytes: Vec<u8> = (0..len).map(|index| value.wrapping_add(index as u8)).collect();
            let hole = model[at..at + len].iter().position(Option::is_none);
            let error = hole.map(|hole| MemError::Unmapped { gpa: Gpa((at + hole) as u64) });
            let gpa = Gpa(at as u64);
            prop_assert_eq!(memory.write(gpa, &bytes).err(), error);
            for (byte, new) in model[at..at + hole.unwrap_or(len)].iter_mut().zip(&bytes) {
                *byte = Some(*new);
            }
            let mut back = vec![0; len];
            prop_assert_eq!(memory.read(gpa, &mut back).err(), error);
            if hole.is_none() {
                prop_assert_eq!(back, bytes);
            }
        }
        for (at, byte) in model.iter().enumerate() {
            let mut seen = [0];
            let seen = memory.read(Gpa(at as u64), &mut seen).ok().map(|()| seen[0]);
            prop_assert_eq!(seen, *byte);
        }
    }
}

#[test]
fn a_word_of_16_bits_is_little_endian_and_aligned() {
    let memory = MemoryMap::anonymous(&[(Gpa(0x1000), 0x1000)]).unwrap();
    memory.store_u16(Gpa(0x1ffe), 0x0201).unwrap();
    let mut bytes = [0; 2];
    memory.read(Gpa(0x1ffe), &mut bytes).unwrap();
    assert_eq!(bytes, [1, 2]);
    assert_eq!(memory.load_u16(Gpa(0x1ffe)), Ok(0x0201));
    let odd = MemError::Misaligned { gpa: Gpa(0x1001) };
    assert_eq!(memory.load_u16(Gpa(0x1001)), Err(odd));
    assert_eq!(memory.store_u16(Gpa(0x1001), 1), Err(odd));
    let gone = MemError::Unmapped { gpa: Gpa(0x2000) };
    assert_eq!(memory.store_u16(Gpa(0x2000), 1), Err(gone));
}
