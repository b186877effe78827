//! CRC generation, and copy with CRC generation.

use crc::{Algorithm, Table};
use mem::Iova;

use super::{overlap, Progress, Scratch, Step, CHUNK, PIECE};
use crate::model::engine::{Dma, Short};
use crate::spec::{Flags, Status};

/// CRC-32C without inversion; `reflect` is about the data's bytes, and with them the remainder.
const fn castagnoli(reflect: bool) -> Algorithm<u32> {
    Algorithm {
        width: 32,
        poly: 0x1edc_6f41,
        init: 0,
        refin: reflect,
        refout: reflect,
        xorout: 0,
        check: 0,
        residue: 0,
    }
}

static REFLECTED: crc::Crc<u32, Table<16>> = crc::Crc::<u32, Table<16>>::new(&castagnoli(true));
static PLAIN: crc::Crc<u32, Table<16>> = crc::Crc::<u32, Table<16>>::new(&castagnoli(false));

/// Where the CRC starts from.
#[derive(Clone, Copy, Debug)]
pub(super) enum Seed {
    Value(u32),
    At(Iova),
}

impl Seed {
    pub(super) fn new(flags: Flags, value: u32, address: Iova) -> Result<Self, Status> {
        if !flags.contains(Flags::CRC_READ_SEED) {
            return Ok(Self::Value(value));
        }
        if address.0 % 4 != 0 {
            return Err(Status::Misaligned);
        }
        Ok(Self::At(address))
    }
}

/// A CRC-32C under way. The remainder is kept unreflected: its top bit is the highest power.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Remainder {
    value: u32,
    bypass_inversion: bool,
    bypass_reflection: bool,
}

impl Remainder {
    fn new(seed: u32, flags: Flags) -> Self {
        let bypass_inversion = flags.contains(Flags::CRC_BYPASS_INVERSION);
        Self {
            value: if bypass_inversion { seed } else { (!seed).reverse_bits() },
            bypass_inversion,
            bypass_reflection: flags.contains(Flags::CRC_BYPASS_REFLECTION),
        }
    }

    fn update(&mut self, bytes: &[u8]) {
        let crc = if self.bypass_reflection { &PLAIN } else { &REFLECTED };
        let mut digest = crc.digest_with_initial(self.value);
        digest.update(bytes);
        let value = digest.finalize();
        self.value = if self.bypass_reflection { value } else { value.reverse_bits() };
    }

    /// What goes into the record: the CRC so far, and the seed of what follows.
    fn result(&self) -> u32 {
        if self.bypass_inversion {
            self.value
        } else {
            !self.value.reverse_bits()
        }
    }
}

/// CRC generation, with a copy or without.
#[derive(Debug)]
pub(in crate::model) struct Crc {
    source: Iova,
    destination: Option<Iova>,
    progress: Progress,
    flags: Flags,
    seed: Seed,
    /// Once the seed is known.
    remainder: Option<Remainder>,
}

impl Crc {
    pub(super) fn new(
        source: Iova,
        destination: Option<Iova>,
        size: u32,
        seed: Seed,
        flags: Flags,
    ) -> Result<Self, Status> {
        let len = u64::from(size);
        if destination.is_some_and(|destination| overlap(source, len, destination, len)) {
            return Err(Status::Overlap);
        }
        let progress = Progress::new(size);
        Ok(Self { source, destination, progress, flags, seed, remainder: None })
    }

    pub(super) fn step(&mut self, dma: &Dma<'_>, scratch: &mut Scratch) -> Step {
        let mut remainder = match self.start(dma) {
            Ok(remainder) => remainder,
            Err(short) => return Step::stopped(short.stop, 0),
        };
        let mut step = Step::More;
        for _ in 0..CHUNK / PIECE {
            step = self.piece(&mut remainder, dma, scratch);
            if step != Step::More {
                break;
            }
        }
        self.remainder = Some(remainder);
        let crc = u64::from(remainder.result());
        step.map(|outcome| outcome.with_tail(0, crc.to_le_bytes()))
    }

    /// The remainder so far; reads the seed first if it is in memory.
    fn start(&self, dma: &Dma<'_>) -> Result<Remainder, Short> {
        if let Some(remainder) = self.remainder {
            return Ok(remainder);
        }
        let seed = match self.seed {
            Seed::Value(seed) => seed,
            Seed::At(address) => {
                let mut bytes = [0; 4];
                dma.read(address, &mut bytes)?;
                u32::from_le_bytes(bytes)
            }
        };
        Ok(Remainder::new(seed, self.flags))
    }

    /// The bytes whose CRC is taken are the bytes that are written, whatever happens to the source
    /// meanwhile.
    fn piece(&mut self, crc: &mut Remainder, dma: &Dma<'_>, scratch: &mut Scratch) -> Step {
        let len = self.progress.next(PIECE);
        let piece = &mut scratch.first[..len];
        let mut result = dma.read(self.progress.at(self.source), piece);
        let read = result.map_or_else(|short| short.done, |()| len);
        if let Some(destination) = self.destination {
            result = dma.write(self.progress.at(destination), &piece[..read]).and(result);
        }
        let done = result.map_or_else(|short| short.done, |()| len);
        crc.update(&piece[..done]);
        self.progress.step(len, result)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Known answers: a seed, flags, the data of the accelerator's own test suite.
    #[test]
    fn known_answers() {
        let pattern = 0x0123_4567_89ab_cdef_u64.to_le_bytes().repeat(0x1_0000 / 8);
        let crc = |seed, flags, data: &[u8]| {
            let mut remainder = Remainder::new(seed, flags);
            remainder.update(data);
            remainder.result()
        };
        let (none, seed) = (Flags::empty(), 0x1234_5678);
        assert_eq!(crc(0, none, b"123456789"), 0xe306_9283);
        assert_eq!(crc(seed, none, &pattern[..1]), 0x140d_fffb);
        assert_eq!(crc(seed, none, &pattern[..4096]), 0x1b6f_4410);
        assert_eq!(crc(seed, Flags::CRC_BYPASS_INVERSION, &pattern[..4096]), 0xbda3_79a6);
        assert_eq!(crc(seed, Flags::CRC_BYPASS_REFLECTION, &pattern[..4096]), 0x065d_cb75);
        let both = Flags::CRC_BYPASS_INVERSION | Flags::CRC_BYPASS_REFLECTION;
        assert_eq!(crc(seed, both, &pattern[..4096]), 0x1b52_351e);
        assert_eq!(crc(seed, none, &pattern), 0xfc6e_b848);
    }

    /// A CRC in pieces, each seeded with the one before, is the CRC of the whole.
    #[test]
    fn the_result_is_the_next_seed() {
        let data: [u8; 97] = core::array::from_fn(|i| (i * 7 + 3) as u8);
        for bits in 0..4 {
            let flags = Flags::from_bits_retain(bits << 17);
            for cut in 0..data.len() {
                let mut whole = Remainder::new(0xdead_beef, flags);
                whole.update(&data);
                let mut first = Remainder::new(0xdead_beef, flags);
                first.update(&data[..cut]);
                let mut second = Remainder::new(first.result(), flags);
                second.update(&data[cut..]);
                assert_eq!(second.result(), whole.result(), "{flags:?} cut at {cut}");
            }
        }
    }
}
