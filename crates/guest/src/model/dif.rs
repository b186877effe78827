//! T10 data integrity fields: eight bytes after each block, big-endian.
//!
//! ```text
//!  block (512, 520, 4096 or 4104 bytes) | guard u16 | application tag u16 | reference tag u32
//! ```

use dsa::spec::BlockSize;

/// Polynomial of the T10 guard, most significant bit first.
const POLYNOMIAL: u16 = 0x8bb7;

/// Bytes of one integrity field.
pub(crate) const FIELD: usize = BlockSize::DIF;

/// All block sizes.
pub(crate) const BLOCK_SIZES: [BlockSize; 4] =
    [BlockSize::B512, BlockSize::B520, BlockSize::B4096, BlockSize::B4104];

/// Bytes of a block with its field.
pub(crate) const fn protected(block: BlockSize) -> usize {
    block.data() + FIELD
}

/// How the tags of successive blocks are made, and which guard.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Tags {
    /// Application tag of the first block.
    pub(crate) application: u16,
    /// Whether it grows by one a block.
    pub(crate) application_grows: bool,
    /// Bits of the application tag that are forced to zero.
    pub(crate) application_mask: u16,
    /// Reference tag of the first block.
    pub(crate) reference: u32,
    /// Whether it grows by one a block.
    pub(crate) reference_grows: bool,
    /// Seed of the guard: 0 or 0xffff.
    pub(crate) guard_seed: u16,
    /// Whether the guard is inverted.
    pub(crate) guard_inverted: bool,
}

impl Tags {
    /// The tags after `blocks` blocks.
    pub(crate) fn after(self, blocks: usize) -> Self {
        let application = self.application.wrapping_add(blocks as u16);
        let reference = self.reference.wrapping_add(blocks as u32);
        Self {
            application: if self.application_grows { application } else { self.application },
            reference: if self.reference_grows { reference } else { self.reference },
            ..self
        }
    }

    /// The field of one block with these tags.
    pub(crate) fn field(self, block: &[u8]) -> [u8; FIELD] {
        let guard = guard(block, self.guard_seed);
        let guard = if self.guard_inverted { !guard } else { guard };
        let [g0, g1] = guard.to_be_bytes();
        let [a0, a1] = (self.application & !self.application_mask).to_be_bytes();
        let [r0, r1, r2, r3] = self.reference.to_be_bytes();
        [g0, g1, a0, a1, r0, r1, r2, r3]
    }
}

const TABLE: [u16; 256] = table();

const fn table() -> [u16; 256] {
    let mut table = [0; 256];
    let mut index = 0;
    while index < 256 {
        let mut value = (index as u16) << 8;
        let mut bit = 0;
        while bit < 8 {
            value = if value >> 15 == 1 { (value << 1) ^ POLYNOMIAL } else { value << 1 };
            bit += 1;
        }
        table[index] = value;
        index += 1;
    }
    table
}

/// The T10 guard of one block: CRC-16 without reflection.
pub(crate) fn guard(block: &[u8], seed: u16) -> u16 {
    block.iter().fold(seed, |register, byte| {
        let [high, _] = register.to_be_bytes();
        TABLE[usize::from(high ^ byte)] ^ (register << 8)
    })
}

/// `data` with a field after each block.
pub(crate) fn insert(data: &[u8], size: BlockSize, tags: Tags) -> Vec<u8> {
    let mut output = Vec::with_capacity(data.len() / size.data() * protected(size));
    for (index, block) in data.chunks(size.data()).enumerate() {
        output.extend_from_slice(block);
        output.extend_from_slice(&tags.after(index).field(block));
    }
    output
}

/// `blocks` without their fields.
#[cfg(test)]
pub(crate) fn strip(blocks: &[u8], size: BlockSize) -> Vec<u8> {
    blocks
        .chunks(protected(size))
        .flat_map(|block| block.get(..size.data()).unwrap_or_default())
        .copied()
        .collect()
}
