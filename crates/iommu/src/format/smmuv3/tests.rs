//! Encodings typed from IHI 0070, and what becomes of every field.

mod command;
mod descriptor;
mod event;
mod nested;
mod stream;

use crate::SmmuCaps;

const CAPS: SmmuCaps = SmmuCaps {
    stage_one: true,
    stage_two: true,
    substream_bits: 16,
    two_level_descriptors: true,
    granule_4k: true,
    granule_16k: true,
    granule_64k: true,
    output_bits: 48,
    wide_addresses: false,
    hardware_updates: 2,
    asid_16: true,
    ats: true,
};

/// Eight words with some bits set.
fn words(bits: &[(usize, u64)]) -> [u64; 8] {
    let mut words = [0; 8];
    for &(at, bits) in bits {
        words[at] |= bits;
    }
    words
}
