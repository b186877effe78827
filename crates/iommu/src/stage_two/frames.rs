//! Where a guest's memory lies in the host's: a permutation of frames, computed both ways.

use mem::{Gpa, HostAddr};

use super::Layout;

/// Bits of the guest physical addresses that are laid out. Beyond that there is no memory.
pub(super) const GUEST_BITS: u32 = 44;
/// Bits of every host address here: guests' memory in place or shuffled above it, then tables.
pub(super) const HOST_BITS: u8 = 46;
/// First host address of shuffled frames: beyond every identical one and the interrupt range.
const SHUFFLED: u64 = 1 << GUEST_BITS;

/// Which frame of a guest lies where.
#[derive(Clone, Debug)]
pub(crate) struct Frames {
    page_bits: u32,
    large_bits: u32,
    shuffle: Option<Shuffle>,
}

#[derive(Clone, Debug)]
struct Shuffle {
    seed: u64,
    /// Of large frames.
    large: Permutation,
    /// Of the pages of a large frame.
    pages: Permutation,
}

impl Frames {
    /// Frames of 2^`large_bits` bytes, made of pages of 2^`page_bits`.
    pub(crate) fn new(layout: Layout, page_bits: u32, large_bits: u32) -> Self {
        let shuffle = match layout {
            Layout::Identity => None,
            Layout::Shuffled { seed } => Some(Shuffle {
                seed,
                large: Permutation::new(GUEST_BITS - large_bits, scramble(seed)),
                pages: Permutation::new(large_bits - page_bits, scramble(!seed)),
            }),
        };
        Self { page_bits, large_bits, shuffle }
    }

    /// log2 of the bytes of a page.
    pub(super) fn page_bits(&self) -> u32 {
        self.page_bits
    }

    /// log2 of the bytes of a large frame.
    pub(super) fn large_bits(&self) -> u32 {
        self.large_bits
    }

    /// Where the byte at `gpa` lies; `None` beyond what is laid out.
    pub(crate) fn host(&self, gpa: Gpa) -> Option<HostAddr> {
        if gpa.0 >> GUEST_BITS != 0 {
            return None;
        }
        let Some(shuffle) = &self.shuffle else { return Some(HostAddr(gpa.0)) };
        let frame = gpa.0 >> self.large_bits;
        let mut inside = gpa.0 & mask(self.large_bits);
        if shuffle.splits(frame) {
            let page = shuffle.pages.forward(inside >> self.page_bits ^ shuffle.key(frame));
            inside = page << self.page_bits | inside & mask(self.page_bits);
        }
        Some(HostAddr(SHUFFLED | shuffle.large.forward(frame) << self.large_bits | inside))
    }

    /// Which byte of the guest lies at `host`; `None` where none ever does.
    pub(crate) fn guest(&self, host: HostAddr) -> Option<Gpa> {
        let Some(shuffle) = &self.shuffle else {
            return (host.0 >> GUEST_BITS == 0).then_some(Gpa(host.0));
        };
        if host.0 >> GUEST_BITS != 1 {
            return None;
        }
        let frame = shuffle.large.backward((host.0 & mask(GUEST_BITS)) >> self.large_bits);
        let mut inside = host.0 & mask(self.large_bits);
        if shuffle.splits(frame) {
            let page = shuffle.pages.backward(inside >> self.page_bits) ^ shuffle.key(frame);
            inside = page << self.page_bits | inside & mask(self.page_bits);
        }
        Some(Gpa(frame << self.large_bits | inside))
    }

    /// Whether the pages of the large frame of `gpa` are apart, so that none maps it as a whole.
    pub(super) fn splits(&self, gpa: Gpa) -> bool {
        self.shuffle.as_ref().is_some_and(|shuffle| shuffle.splits(gpa.0 >> self.large_bits))
    }
}

impl Shuffle {
    /// A quarter of the frames, by the seed.
    fn splits(&self, frame: u64) -> bool {
        scramble(self.seed ^ frame) & 3 == 0
    }

    /// Lets the pages of each frame lie differently.
    fn key(&self, frame: u64) -> u64 {
        scramble(self.seed.rotate_left(32) ^ frame) & self.pages.mask
    }
}

/// A permutation of the numbers below a power of two: multiplied, added to, folded, and multiplied
/// again, each of which can be undone.
#[derive(Clone, Debug)]
struct Permutation {
    mask: u64,
    /// At least half of the bits, so that folding twice is not folding.
    fold: u32,
    factors: [u64; 2],
    inverses: [u64; 2],
    summand: u64,
}

impl Permutation {
    /// One of the permutations of the numbers of `bits` bits.
    fn new(bits: u32, seed: u64) -> Self {
        let factors = [scramble(seed) | 1, scramble(seed ^ 1) | 1];
        let mask = mask(bits);
        Self {
            mask,
            fold: bits.div_ceil(2),
            factors,
            inverses: factors.map(inverse),
            summand: scramble(seed ^ 2) & mask,
        }
    }

    fn forward(&self, number: u64) -> u64 {
        let number = number.wrapping_mul(self.factors[0]).wrapping_add(self.summand) & self.mask;
        (number ^ number >> self.fold).wrapping_mul(self.factors[1]) & self.mask
    }

    fn backward(&self, number: u64) -> u64 {
        let number = number.wrapping_mul(self.inverses[1]) & self.mask;
        let number = (number ^ number >> self.fold).wrapping_sub(self.summand);
        number.wrapping_mul(self.inverses[0]) & self.mask
    }
}

/// What an odd number is to be multiplied with for 1, modulo 2^64.
fn inverse(odd: u64) -> u64 {
    // Newton: each step doubles the bits that are right, and an odd number is right in three.
    (0..5)
        .fold(odd, |inverse, _| inverse.wrapping_mul(2u64.wrapping_sub(odd.wrapping_mul(inverse))))
}

/// The finalizer of SplitMix64: close numbers become far ones.
const fn scramble(number: u64) -> u64 {
    let number = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let number = (number ^ number >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let number = (number ^ number >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    number ^ number >> 31
}

const fn mask(bits: u32) -> u64 {
    (1 << bits) - 1
}
