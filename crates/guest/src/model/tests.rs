use super::crc32c::{crc32c, Bypass};
use super::dif::{protected, Tags, BLOCK_SIZES};
use super::*;

#[test]
fn known_answers() {
    for vector in vectors() {
        assert_eq!(vector.got, vector.expected, "{}", vector.name);
    }
    assert!(self_test());
}

#[test]
fn a_crc_continues_from_its_own_result() {
    let data = pattern::Random::new(1).bytes(1000);
    for inversion in [false, true] {
        for data_reflection in [false, true] {
            let bypass = Bypass { inversion, data_reflection };
            let whole = crc32c(7, &data, bypass);
            for cut in [0, 1, 7, 512, 1000] {
                let first = crc32c(7, &data[..cut], bypass);
                assert_eq!(crc32c(first, &data[cut..], bypass), whole, "{bypass:?} cut at {cut}");
            }
        }
    }
}

fn tags() -> Tags {
    Tags {
        application: 0xffff,
        application_grows: true,
        application_mask: 0x00f0,
        reference: u32::MAX,
        reference_grows: true,
        guard_seed: 0,
        guard_inverted: false,
    }
}

#[test]
fn fields_are_big_endian_and_tags_wrap() {
    let data = test_block(2 * 512);
    let blocks = dif::insert(&data, BlockSize::B512, tags());
    assert_eq!(blocks.len(), 2 * 520);
    assert_eq!(blocks[512..520], [0x03, 0xc7, 0xff, 0x0f, 0xff, 0xff, 0xff, 0xff]);
    assert_eq!(blocks[1032..], [0x03, 0xc7, 0, 0, 0, 0, 0, 0]);
    assert_eq!(dif::strip(&blocks, BlockSize::B512), data);
}

#[test]
fn fixed_tags_stay_and_guards_invert() {
    let fixed = Tags { application_grows: false, reference_grows: false, ..tags() };
    let inverted = Tags { guard_inverted: true, ..fixed };
    let data = test_block(512);
    assert_eq!(fixed.after(9).field(&data), fixed.field(&data));
    assert_eq!(inverted.field(&data)[..2], (!0x03c7u16).to_be_bytes());
    assert_ne!(dif::guard(&data, 0xffff), dif::guard(&data, 0));
}

#[test]
fn every_block_size_round_trips() {
    for size in BLOCK_SIZES {
        let data = pattern::Random::new(size.data() as u64).bytes(3 * size.data());
        let blocks = dif::insert(&data, size, tags());
        assert_eq!(blocks.len(), 3 * protected(size));
        assert_eq!(dif::strip(&blocks, size), data);
    }
}

#[test]
fn a_delta_record_restores_what_it_was_made_from() {
    let mut random = pattern::Random::new(3);
    let original = random.bytes(4096);
    let mut modified = original.clone();
    for _ in 0..40 {
        let at = random.below(modified.len());
        modified[at] ^= 0x5a;
    }
    let record = delta::create(&original, &modified);
    let mut restored = original.clone();
    assert!(delta::apply(&record, &mut restored));
    assert_eq!(restored, modified);
    assert_eq!(delta::covered(&original, &modified, record.len()), None);
    let short = delta::covered(&original, &modified, record.len() - 1).unwrap();
    let last = record.len() - delta::ENTRY;
    assert_eq!(short, usize::from(u16::from_le_bytes([record[last], record[last + 1]])) * 8);
    assert!(delta::create(&original, &original).is_empty());
}

#[test]
fn a_delta_entry_outside_the_target_is_refused() {
    let mut target = [0u8; 16];
    assert!(!delta::apply(&[2, 0, 1, 1, 1, 1, 1, 1, 1, 1], &mut target));
    assert!(!delta::apply(&[0, 0, 1], &mut target));
    assert_eq!(target, [0; 16]);
}

#[test]
fn random_bytes_repeat_and_differ_by_seed() {
    let bytes = |seed, length| pattern::Random::new(seed).bytes(length);
    assert_eq!(bytes(9, 100), bytes(9, 100));
    assert_eq!(bytes(9, 100)[..13], bytes(9, 13));
    assert_ne!(bytes(9, 100), bytes(10, 100));
    assert_eq!(pattern::Random::new(0).below(0), 0);
}
