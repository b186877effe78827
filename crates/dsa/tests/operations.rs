//! Every operation against the naive twin: over scattered memory with holes, and over pages that
//! come only when they are asked for, or never.

mod rig;

use dsa::model::Config;
use dsa::spec::*;
use mem::Gpa;
use proptest::prelude::*;
use rig::naive::{End, Memory};
use rig::paged::{recorded, Mapped, Paged};
use rig::*;

/// Where scattered memory is: pages, each a piece of host memory of its own.
const BASE: u64 = 0x20_0000;
const PAGES: u64 = 24;

/// Two devices that are to do the same.
struct Bench {
    /// In scattered memory, where a hole is a page fault.
    rig: Rig,
    /// Behind a guest that pages, where a hole is a page that does not exist.
    lazy: Paged,
    /// What pages are there before an operation goes by this.
    seed: u64,
}

/// Devices with the pages in `holes` missing, and their twin's memory.
fn scattered(holes: u32, seed: u64) -> (Bench, Memory) {
    let pages: Vec<u64> = (0..PAGES).filter(|page| holes >> page & 1 == 0).collect();
    let ranges: Vec<(Gpa, u64)> = pages.iter().map(|p| (Gpa(BASE + p * 4096), 4096)).collect();
    let rig = Rig::with(Config::default(), &ranges);
    rig.enable_function();
    rig.configure(0, 0, 16, user_mode(true).with_pasid(PASID));
    rig.set_engines(0, 1);
    rig.enable(&[0]);
    let lazy = Paged::dedicated(1);
    let bytes = noise(seed, (PAGES * 4096) as usize);
    for page in pages {
        let (at, bytes) = (BASE + page * 4096, &bytes[page as usize * 4096..][..4096]);
        rig.fill(at, bytes);
        lazy.rig.fill(at, bytes);
    }
    (Bench { rig, lazy, seed }, Memory { base: BASE, bytes, holes })
}

/// Changes a byte of all, if it is there.
fn change(bench: &Bench, twin: &mut Memory, at: u64, bits: u8) {
    if let Some(byte) = twin.change(at, |byte| byte ^ bits) {
        bench.rig.fill(at, &[byte]);
        bench.lazy.rig.fill(at, &[byte]);
    }
}

/// Runs `operation` on all, and compares what came of it: the record and all of memory.
fn compare(bench: &mut Bench, twin: &mut Memory, operation: Operation, flags: Flags) -> End {
    let Bench { rig, lazy, seed } = bench;
    let record = rig.execute(Descriptor::new(operation).with_flags(flags));
    let expected = twin.run(operation, flags);
    assert_eq!(End::of(&record), expected, "{operation:?} {flags:?}: {record:?}");
    same_memory(rig, twin, operation);

    *seed = seed.wrapping_add(1);
    for (page, byte) in (0..PAGES).zip(noise(*seed, PAGES as usize)) {
        let hole = twin.holes >> page & 1 != 0;
        let mapped = match byte % 3 {
            _ if hole => Mapped::No,
            0 => Mapped::No,
            1 => Mapped::ReadOnly,
            _ => Mapped::Yes,
        };
        lazy.set(PASID, BASE + page * 4096, mapped);
    }
    lazy.rig.clear_records();
    lazy.rig.post(0, &recorded(operation, 0).with_flags(flags));
    lazy.settle_but(|request| {
        let page = request.address.0.wrapping_sub(BASE) / 4096;
        page < PAGES && twin.holes >> page & 1 == 0
    });
    let refused = match expected.status {
        Status::PageFault => End { status: Status::PageRequestInvalid, ..expected },
        _ => expected,
    };
    let record = lazy.rig.record(0);
    assert_eq!(End::of(&record), refused, "paged {operation:?} {flags:?}: {record:?}");
    same_memory(&lazy.rig, twin, operation);
    expected
}

fn same_memory(rig: &Rig, twin: &Memory, operation: Operation) {
    for page in (0..PAGES).filter(|page| twin.holes >> page & 1 == 0) {
        let expected = &twin.bytes[page as usize * 4096..][..4096];
        assert_eq!(rig.bytes(BASE + page * 4096, 4096), expected, "{operation:?}: page {page}");
    }
}

/// An address inside scattered memory.
fn address() -> impl Strategy<Value = u64> {
    (0..PAGES * 4096 - 0x3000).prop_map(|offset| BASE + offset)
}

fn size() -> impl Strategy<Value = u32> {
    prop_oneof![1u32..64, 4000u32..4200, 1u32..0x3000]
}

/// Few holes, so that most operations get somewhere.
fn holes() -> impl Strategy<Value = u32> {
    prop_oneof![
        Just(0u32),
        (0..PAGES).prop_map(|page| 1 << page),
        any::<u32>().prop_map(|b| b & b >> 7 & b >> 13)
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..Default::default() })]

    #[test]
    fn memory_move_and_fill(holes in holes(), seed: u64, from in address(), to in address(), size in size(), near in any::<bool>()) {
        let (mut bench, mut twin) = scattered(holes, seed);
        let to = if near { (from + to % 64).saturating_sub(to % 37) } else { to };
        compare(&mut bench, &mut twin, memory_move(from, to, size), Flags::empty());
        let fill = Operation::Fill { pattern: seed, destination: Iova(from), size };
        compare(&mut bench, &mut twin, fill, Flags::empty());
        let flush = Operation::CacheFlush { destination: Iova(to), size };
        compare(&mut bench, &mut twin, flush, Flags::empty());
    }

    #[test]
    fn comparisons(holes in holes(), seed: u64, a in address(), b in address(), size in size(), spot: u32, check: bool, expected in 0u8..2) {
        let (mut bench, mut twin) = scattered(holes, seed);
        let flags = if check { Flags::CHECK_RESULT } else { Flags::empty() };
        // Equal up to a spot, as far as there is memory.
        compare(&mut bench, &mut twin, memory_move(a, b, size), Flags::empty());
        let at = b + u64::from(spot % size);
        if spot % 3 != 0 {
            change(&bench, &mut twin, at, 0x10);
        }
        let operation = Operation::Compare { source1: Iova(a), source2: Iova(b), size, expected };
        compare(&mut bench, &mut twin, operation, flags);

        let fill = Operation::Fill { pattern: seed, destination: Iova(a), size };
        compare(&mut bench, &mut twin, fill, Flags::empty());
        let at = a + u64::from(spot % size);
        if spot % 2 != 0 {
            change(&bench, &mut twin, at, 1);
        }
        let operation = Operation::ComparePattern { source: Iova(a), pattern: seed, size, expected };
        compare(&mut bench, &mut twin, operation, flags);
    }

    #[test]
    fn deltas(holes in holes(), seed: u64, a in address(), b in address(), words in 1u32..0x300, changes in 0usize..40, room in 80u32..600, mask in proptest::option::of(0u8..8)) {
        let (mut bench, mut twin) = scattered(holes, seed);
        let (a, b) = (a & !7, b & !7);
        let size = words * 8;
        // The record goes to the last three pages but one, unless a source is there.
        let delta = BASE + (PAGES - 3) * 4096 + 8;
        let apart = |x: u64, x_len: u32, y: u64, y_len: u32| x + u64::from(x_len) <= y || y + u64::from(y_len) <= x;
        prop_assume!(apart(a, size, delta, room) && apart(b, size, delta, room) && apart(a, size, b, size));
        compare(&mut bench, &mut twin, memory_move(a, b, size), Flags::empty());
        for spot in noise(seed, changes * 2).chunks(2) {
            let at = b + u64::from(u16::from_le_bytes([spot[0], spot[1]])) % u64::from(size);
            change(&bench, &mut twin, at, 0x55);
        }
        let create = Operation::CreateDelta {
            source1: Iova(a), source2: Iova(b), size, delta: Iova(delta), max_delta_size: room, expected_mask: mask.unwrap_or(0),
        };
        let flags = mask.map_or(Flags::empty(), |_| Flags::CHECK_RESULT);
        let end = compare(&mut bench, &mut twin, create, flags);
        let delta_size = u32::from_le_bytes([end.tail[0], end.tail[1], end.tail[2], end.tail[3]]);
        if delta_size != 0 {
            let apply = Operation::ApplyDelta { delta: Iova(delta), destination: Iova(a), size, delta_size };
            let end = compare(&mut bench, &mut twin, apply, Flags::empty());
            if holes == 0 {
                prop_assert_eq!(end.status, Status::Success);
            }
        }
        // A record that is noise.
        let apply = Operation::ApplyDelta { delta: Iova(delta), destination: Iova(a), size, delta_size: 80 };
        compare(&mut bench, &mut twin, apply, Flags::empty());
    }

    #[test]
    fn dualcast(holes in holes(), seed: u64, from in address(), to in address(), size in size()) {
        let (mut bench, mut twin) = scattered(holes, seed);
        let offset = to & 0xfff;
        let (first, second) = (BASE + offset, BASE + 0x4000 + offset);
        let from = from.clamp(BASE + 0x8000, BASE + (PAGES - 4) * 4096);
        let operation = Operation::Dualcast {
            source: Iova(from), destination1: Iova(first), destination2: Iova(second), size,
        };
        compare(&mut bench, &mut twin, operation, Flags::empty());
    }

    #[test]
    fn crcs(holes in holes(), seed: u64, from in address(), to in address(), size in size(), bypass in 0u32..4, read_seed: bool, seed_at in address()) {
        let (mut bench, mut twin) = scattered(holes, seed);
        let mut flags = Flags::from_bits_retain(bypass << 17);
        flags.set(Flags::CRC_READ_SEED, read_seed);
        let seed_address = if read_seed { Iova(seed_at & !3) } else { Iova(0) };
        let crc = Operation::Crc { source: Iova(from), size, seed: seed as u32, seed_address };
        compare(&mut bench, &mut twin, crc, flags);
        prop_assume!(from.abs_diff(to) >= u64::from(size));
        let copy = Operation::CopyCrc {
            source: Iova(from), destination: Iova(to), size, seed: seed as u32, seed_address,
        };
        compare(&mut bench, &mut twin, copy, flags);
    }

    #[test]
    fn difs(holes in holes(), seed: u64, blocks in 1u32..4, flags in 0u8..16, source_flags: u8, destination_flags in 0u8..32, app_mask in prop_oneof![Just(0u16), Just(0xffff), any::<u16>()], harm in proptest::option::of(0u64..9000)) {
        let (mut bench, mut twin) = scattered(holes, seed);
        let flags = DifFlags::from_bits(flags);
        let tags = DifTags { reference: u32::MAX - 1, app_mask, app: 0xface };
        let (plain, protected, stripped) = (BASE, BASE + 0x8008, BASE + 0x1_0010);
        let size = flags.block().data() as u32 * blocks;
        let with_dif = size + 8 * blocks;
        // The same tags are made and expected: incrementing and fixed in the same places.
        let made = DestinationFlags::from_bits(source_flags & 0x90);
        let insert = Operation::DifInsert {
            source: Iova(plain), destination: Iova(protected), size, destination_flags: made, flags, destination_tags: tags,
        };
        let end = compare(&mut bench, &mut twin, insert, Flags::empty());
        if let Some(harm) = harm {
            let at = protected + harm % u64::from(with_dif);
            change(&bench, &mut twin, at, 0x80);
        }
        let source_flags = SourceFlags::from_bits(source_flags & 0xf0 | (seed as u8 & 0x0f));
        let check = Operation::DifCheck { source: Iova(protected), size: with_dif, source_flags, flags, source_tags: tags };
        let checked = compare(&mut bench, &mut twin, check, Flags::empty());
        if holes == 0 && harm.is_none() {
            prop_assert_eq!((end.status, checked.status), (Status::Success, Status::Success));
        }
        let strip = Operation::DifStrip {
            source: Iova(protected), destination: Iova(stripped), size: with_dif, source_flags, flags, source_tags: tags,
        };
        compare(&mut bench, &mut twin, strip, Flags::empty());
        let update = Operation::DifUpdate {
            source: Iova(protected), destination: Iova(stripped), size: with_dif, source_flags,
            destination_flags: DestinationFlags::from_bits(destination_flags << 3), flags,
            source_tags: tags, destination_tags: DifTags { reference: 7, app_mask: 0xf, app: 0xffff },
        };
        compare(&mut bench, &mut twin, update, Flags::empty());
    }
}

/// Blocks whose DIF is all ones: checked, skipped or refused, by the source flags.
#[test]
fn blocks_without_protection() {
    for detect in 0..16u8 {
        for (guard, app, reference) in [
            (0xffff, 0xffff, u32::MAX),
            (1, 0xffff, u32::MAX),
            (1, 0xffff, 2),
            (0xffff, 3, u32::MAX),
        ] {
            let (mut bench, mut twin) = scattered(0, 9);
            let mut dif = u16::to_be_bytes(guard).to_vec();
            dif.extend(u16::to_be_bytes(app));
            dif.extend(u32::to_be_bytes(reference));
            let at = BASE + 512;
            bench.rig.fill(at, &dif);
            bench.lazy.rig.fill(at, &dif);
            for (at, &byte) in (at..).zip(&dif) {
                twin.change(at, |_| byte);
            }
            let check = Operation::DifCheck {
                source: Iova(BASE),
                size: 520,
                source_flags: SourceFlags::from_bits(detect),
                flags: DifFlags::new(),
                source_tags: DifTags::default(),
            };
            compare(&mut bench, &mut twin, check, Flags::empty());
        }
    }
}
