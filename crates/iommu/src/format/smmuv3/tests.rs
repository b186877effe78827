//! Encodings typed from IHI 0070, and what becomes of every field.

mod command;
mod descriptor;
mod event;
mod nested;
mod stream;

use crate::SmmuCaps;

const CAPS: SmmuCaps =
    SmmuCaps { substream_bits: 16, output_bits: 48, wide_addresses: false, ..SmmuCaps::FULL };

/// Eight words with some bits set.
fn words(bits: &[(usize, u64)]) -> [u64; 8] {
    let mut words = [0; 8];
    for &(at, bits) in bits {
        words[at] |= bits;
    }
    words
}
