use super::*;

fn descriptor(seed: u8) -> [u8; 64] {
    core::array::from_fn(|i| (i as u8).wrapping_mul(7).wrapping_add(seed))
}

/// Feeds `whole` in pieces of `size`; gives what the last one led to.
fn feed(assembler: &mut Assembler, at: u64, whole: &[u8], size: usize) -> Fed {
    let mut fed = Fed::Incomplete;
    for (index, piece) in whole.chunks(size).enumerate() {
        assert_eq!(fed, Fed::Incomplete, "piece {index}");
        fed = assembler.store(at + (index * size) as u64, piece);
    }
    fed
}

#[test]
fn pieces_of_every_size_make_a_descriptor() {
    for size in [8, 16, 32, 64] {
        let mut assembler = Assembler::default();
        for round in 0..20 {
            let whole = descriptor(round);
            let at = u64::from(round) * 64;
            assert_eq!(feed(&mut assembler, at, &whole, size), Fed::Complete(whole), "{size}");
        }
    }
}

#[test]
fn pieces_of_different_sizes_mix() {
    let whole = descriptor(3);
    let mut assembler = Assembler::default();
    assert_eq!(assembler.store(0x40, &whole[..32]), Fed::Incomplete);
    assert_eq!(assembler.store(0x60, &whole[32..40]), Fed::Incomplete);
    assert_eq!(assembler.store(0x68, &whole[40..48]), Fed::Incomplete);
    assert_eq!(assembler.store(0x70, &whole[48..]), Fed::Complete(whole));
}

#[test]
fn what_is_no_piece_is_dropped() {
    let mut assembler = Assembler::default();
    for (at, len) in [(0, 0), (0, 1), (0, 4), (4, 8), (8, 16), (0, 24), (0, 63), (0, 65), (8, 64)] {
        assert_eq!(assembler.store(at, &[0; 65][..len]), Fed::Misordered, "{len} at {at}");
    }
    assert_eq!(assembler.store(u64::MAX - 7, &[0; 8]), Fed::Misordered);
}

#[test]
fn a_gap_drops_the_descriptor() {
    let whole = descriptor(1);
    let mut assembler = Assembler::default();
    assert_eq!(assembler.store(0, &whole[..8]), Fed::Incomplete);
    assert_eq!(assembler.store(16, &whole[16..24]), Fed::Misordered);
    assert_eq!(assembler.store(8, &whole[8..16]), Fed::Misordered, "its start is gone");
    assert_eq!(feed(&mut assembler, 0, &whole, 8), Fed::Complete(whole));
}

#[test]
fn a_new_start_drops_what_was_begun() {
    let (old, new) = (descriptor(1), descriptor(2));
    let mut assembler = Assembler::default();
    assert_eq!(assembler.store(0, &old[..8]), Fed::Incomplete);
    assert_eq!(assembler.store(8, &old[8..16]), Fed::Incomplete);
    assert_eq!(assembler.store(0, &new[..8]), Fed::Misordered);
    assert_eq!(assembler.store(16, &old[16..24]), Fed::Misordered);
    assert_eq!(feed(&mut assembler, 0, &new, 8), Fed::Complete(new));
}

#[test]
fn submitters_at_different_slots_do_not_meet() {
    let mut assembler = Assembler::default();
    let all: [[u8; 64]; ASSEMBLIES] = core::array::from_fn(|i| descriptor(i as u8));
    for piece in 0..8 {
        for (slot, whole) in all.iter().enumerate() {
            let (at, from) = (slot as u64 * 64 + piece * 8, piece as usize * 8);
            let fed = assembler.store(at, &whole[from..from + 8]);
            let expected = if piece == 7 { Fed::Complete(*whole) } else { Fed::Incomplete };
            assert_eq!(fed, expected);
        }
    }
}

#[test]
fn more_incomplete_descriptors_than_slots_push_out_the_oldest() {
    let whole = descriptor(0);
    let mut assembler = Assembler::default();
    for slot in 0..ASSEMBLIES as u64 {
        assert_eq!(assembler.store(slot * 64, &whole[..32]), Fed::Incomplete);
    }
    assert_eq!(assembler.store(0x1000, &whole[..32]), Fed::Misordered);
    assert_eq!(assembler.store(0x20, &whole[32..]), Fed::Misordered, "the oldest is gone");
    assert_eq!(assembler.store(0x60, &whole[32..]), Fed::Complete(whole), "the next is not");
    assert_eq!(assembler.store(0x1020, &whole[32..]), Fed::Complete(whole));
}
