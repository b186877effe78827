//! What the accelerator should have computed: an independent software account of its operations.
//!
//! Nothing here shares code with the accelerator's model. The test vectors come from the
//! accelerator's reference and from published catalogues of check values.

pub(crate) mod crc32c;
pub(crate) mod delta;
pub(crate) mod dif;
pub(crate) mod pattern;

use dsa::spec::BlockSize;

/// One known answer: what is computed, what must come out, what did.
struct Vector {
    name: &'static str,
    expected: u64,
    got: u64,
}

/// Runs every known answer and prints a line for each. True when all agree.
pub(crate) fn self_test() -> bool {
    let mut good = true;
    for vector in vectors() {
        let agrees = vector.got == vector.expected;
        let word = if agrees { "ok  " } else { "FAIL" };
        println!("{word} {}: {:#x}, expected {:#x}", vector.name, vector.got, vector.expected);
        good &= agrees;
    }
    good
}

fn vectors() -> Vec<Vector> {
    let mut all = crc32c_vectors();
    all.extend(dif_vectors());
    all.extend(delta_vectors());
    all
}

fn crc32c_vectors() -> Vec<Vector> {
    use crc32c::{crc32c, Bypass};
    let plain = Bypass::default();
    let inversion = Bypass { inversion: true, data_reflection: false };
    let reflection = Bypass { inversion: false, data_reflection: true };
    let both = Bypass { inversion: true, data_reflection: true };
    let block = test_block(65536);
    let seed = 0x1234_5678;
    [
        ("crc32c of \"123456789\"", 0xe306_9283, crc32c(0, b"123456789", plain)),
        ("crc32c of 1 byte", 0x140d_fffb, crc32c(seed, &block[..1], plain)),
        ("crc32c of 4 KiB", 0x1b6f_4410, crc32c(seed, &block[..4096], plain)),
        ("crc32c, inversion bypassed", 0xbda3_79a6, crc32c(seed, &block[..4096], inversion)),
        ("crc32c, reflection bypassed", 0x065d_cb75, crc32c(seed, &block[..4096], reflection)),
        ("crc32c, both bypassed", 0x1b52_351e, crc32c(seed, &block[..4096], both)),
        ("crc32c of 64 KiB", 0xfc6e_b848, crc32c(seed, &block, plain)),
    ]
    .map(|(name, expected, got)| Vector { name, expected, got: got.into() })
    .into()
}

fn dif_vectors() -> Vec<Vector> {
    let block = test_block(BlockSize::B4104.data());
    let guard = |size: BlockSize| dif::guard(&block[..size.data()], 0).into();
    [
        ("t10 guard of \"123456789\"", 0xd0db, dif::guard(b"123456789", 0).into()),
        ("t10 guard of 512 bytes", 0x03c7, guard(BlockSize::B512)),
        ("t10 guard of 520 bytes", 0xccb3, guard(BlockSize::B520)),
        ("t10 guard of 4096 bytes", 0xa083, guard(BlockSize::B4096)),
        ("t10 guard of 4104 bytes", 0x85c9, guard(BlockSize::B4104)),
    ]
    .map(|(name, expected, got)| Vector { name, expected, got })
    .into()
}

fn delta_vectors() -> Vec<Vector> {
    let original = [0u8; 24];
    let mut modified = original;
    modified[8..16].copy_from_slice(&0x0807_0605_0403_0201u64.to_le_bytes());
    let record = delta::create(&original, &modified);
    let mut restored = original;
    let applied = delta::apply(&record, &mut restored);
    let mut entry = [0u8; 8];
    entry.copy_from_slice(record.get(2..10).unwrap_or(&[0; 8]));
    [
        ("delta record of one word: bytes", 10, record.len() as u64),
        ("delta record of one word: offset", 1, record.first().copied().unwrap_or(0).into()),
        ("delta record of one word: data", 0x0807_0605_0403_0201, u64::from_le_bytes(entry)),
        (
            "delta record applied gives the modified data",
            1,
            (applied && restored == modified).into(),
        ),
    ]
    .map(|(name, expected, got)| Vector { name, expected, got })
    .into()
}

/// The buffer that the reference's check values are over: one little-endian word, repeated.
fn test_block(length: usize) -> Vec<u8> {
    pattern::repeated(0x0123_4567_89ab_cdef, length)
}

#[cfg(test)]
mod tests;
