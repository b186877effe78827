//! What a descriptor asks for: one closed enum, used to build descriptors and to decode them.

use mem::Iova;

use super::{Descriptor, DestinationFlags, DifFlags, DifTags, Opcode, SourceFlags};

/// An operation with its operands. Sizes are in bytes; no alignment unless said.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Operation {
    /// Does nothing.
    Noop,
    /// Executes the `count` descriptors at `list`, which is 64-byte aligned.
    Batch {
        /// Descriptor list.
        list: Iova,
        /// Number of descriptors, at least 2.
        count: u32,
    },
    /// Completes when every earlier descriptor has.
    Drain {
        /// Address to read from, with [`DRAIN_READBACK1`](super::Flags::DRAIN_READBACK1).
        readback1: Iova,
        /// Address to read from, with [`DRAIN_READBACK2`](super::Flags::DRAIN_READBACK2).
        readback2: Iova,
    },
    /// Copies, as if through a temporary.
    MemoryMove {
        /// From where.
        source: Iova,
        /// To where.
        destination: Iova,
        /// How much.
        size: u32,
    },
    /// Repeats a pattern.
    Fill {
        /// Eight bytes, the first in the low bits.
        pattern: u64,
        /// To where.
        destination: Iova,
        /// How much; the last pattern may be cut short.
        size: u32,
    },
    /// Compares: result 0 if equal, 1 if not.
    Compare {
        /// One side.
        source1: Iova,
        /// The other side.
        source2: Iova,
        /// How much.
        size: u32,
        /// Result (bit 0) that is a success under [`CHECK_RESULT`](super::Flags::CHECK_RESULT).
        expected: u8,
    },
    /// Compares with a repeated pattern: result 0 if equal, 1 if not.
    ComparePattern {
        /// What to look at.
        source: Iova,
        /// Eight bytes, the first in the low bits.
        pattern: u64,
        /// How much.
        size: u32,
        /// Result (bit 0) that is a success under [`CHECK_RESULT`](super::Flags::CHECK_RESULT).
        expected: u8,
    },
    /// Records how two pieces of memory differ. All addresses and sizes are multiples of 8, but
    /// `max_delta_size`.
    CreateDelta {
        /// The original.
        source1: Iova,
        /// The changed one.
        source2: Iova,
        /// How much, at most 0x80000.
        size: u32,
        /// Where the record goes: 10 bytes for each 8 that differ.
        delta: Iova,
        /// Room for the record, at least 80.
        max_delta_size: u32,
        /// Bit n: result n is a success under [`CHECK_RESULT`](super::Flags::CHECK_RESULT).
        expected_mask: u8,
    },
    /// Applies a delta record.
    ApplyDelta {
        /// The record.
        delta: Iova,
        /// A copy of the original.
        destination: Iova,
        /// Size of the original, as it was for create delta.
        size: u32,
        /// Size of the record, at least 10.
        delta_size: u32,
    },
    /// Copies to two places, whose low 12 address bits are equal.
    Dualcast {
        /// From where.
        source: Iova,
        /// To where.
        destination1: Iova,
        /// And to where.
        destination2: Iova,
        /// How much.
        size: u32,
    },
    /// Computes a CRC-32C.
    Crc {
        /// Of what.
        source: Iova,
        /// How much.
        size: u32,
        /// CRC of what came before.
        seed: u32,
        /// Where the seed is instead, with [`CRC_READ_SEED`](super::Flags::CRC_READ_SEED); a
        /// multiple of 4.
        seed_address: Iova,
    },
    /// Copies and computes a CRC-32C.
    CopyCrc {
        /// From where.
        source: Iova,
        /// To where.
        destination: Iova,
        /// How much.
        size: u32,
        /// CRC of what came before.
        seed: u32,
        /// Where the seed is instead, with [`CRC_READ_SEED`](super::Flags::CRC_READ_SEED); a
        /// multiple of 4.
        seed_address: Iova,
    },
    /// Checks the DIF of each block.
    DifCheck {
        /// Blocks, each followed by its DIF.
        source: Iova,
        /// Length of the source with its DIFs.
        size: u32,
        /// How the DIF is checked.
        source_flags: SourceFlags,
        /// Block size and guard.
        flags: DifFlags,
        /// Expected tags of the first block.
        source_tags: DifTags,
    },
    /// Copies blocks and adds a DIF to each.
    DifInsert {
        /// Blocks without DIF.
        source: Iova,
        /// To where.
        destination: Iova,
        /// Length of the source.
        size: u32,
        /// How the DIF is made.
        destination_flags: DestinationFlags,
        /// Block size and guard.
        flags: DifFlags,
        /// Tags of the first block.
        destination_tags: DifTags,
    },
    /// Copies blocks, checks the DIF of each and leaves it out.
    DifStrip {
        /// Blocks, each followed by its DIF.
        source: Iova,
        /// To where.
        destination: Iova,
        /// Length of the source with its DIFs.
        size: u32,
        /// How the DIF is checked.
        source_flags: SourceFlags,
        /// Block size and guard.
        flags: DifFlags,
        /// Expected tags of the first block.
        source_tags: DifTags,
    },
    /// Copies blocks, checks the DIF of each and replaces it.
    DifUpdate {
        /// Blocks, each followed by its DIF.
        source: Iova,
        /// To where.
        destination: Iova,
        /// Length of the source with its DIFs.
        size: u32,
        /// How the DIF is checked.
        source_flags: SourceFlags,
        /// How the new DIF is made.
        destination_flags: DestinationFlags,
        /// Block size and guard.
        flags: DifFlags,
        /// Expected tags of the first block.
        source_tags: DifTags,
        /// New tags of the first block.
        destination_tags: DifTags,
    },
    /// Flushes caches.
    CacheFlush {
        /// Which memory.
        destination: Iova,
        /// How much.
        size: u32,
    },
}

impl Operation {
    /// Its code.
    pub const fn opcode(&self) -> Opcode {
        match self {
            Self::Noop => Opcode::Noop,
            Self::Batch { .. } => Opcode::Batch,
            Self::Drain { .. } => Opcode::Drain,
            Self::MemoryMove { .. } => Opcode::MemoryMove,
            Self::Fill { .. } => Opcode::Fill,
            Self::Compare { .. } => Opcode::Compare,
            Self::ComparePattern { .. } => Opcode::ComparePattern,
            Self::CreateDelta { .. } => Opcode::CreateDelta,
            Self::ApplyDelta { .. } => Opcode::ApplyDelta,
            Self::Dualcast { .. } => Opcode::Dualcast,
            Self::Crc { .. } => Opcode::Crc,
            Self::CopyCrc { .. } => Opcode::CopyCrc,
            Self::DifCheck { .. } => Opcode::DifCheck,
            Self::DifInsert { .. } => Opcode::DifInsert,
            Self::DifStrip { .. } => Opcode::DifStrip,
            Self::DifUpdate { .. } => Opcode::DifUpdate,
            Self::CacheFlush { .. } => Opcode::CacheFlush,
        }
    }

    /// Its transfer size in bytes; `None` if it has none.
    pub const fn size(&self) -> Option<u32> {
        match *self {
            Self::Noop | Self::Batch { .. } | Self::Drain { .. } => None,
            Self::MemoryMove { size, .. }
            | Self::Fill { size, .. }
            | Self::Compare { size, .. }
            | Self::ComparePattern { size, .. }
            | Self::CreateDelta { size, .. }
            | Self::ApplyDelta { size, .. }
            | Self::Dualcast { size, .. }
            | Self::Crc { size, .. }
            | Self::CopyCrc { size, .. }
            | Self::DifCheck { size, .. }
            | Self::DifInsert { size, .. }
            | Self::DifStrip { size, .. }
            | Self::DifUpdate { size, .. }
            | Self::CacheFlush { size, .. } => Some(size),
        }
    }

    /// The operation of `opcode` with these operands.
    pub(super) fn decode(opcode: Opcode, operands: &[u8; Descriptor::OPERANDS]) -> Self {
        let o = Reader(operands);
        match opcode {
            Opcode::Noop => Self::Noop,
            Opcode::Batch => Self::Batch { list: o.iova(16), count: o.u32(32) },
            Opcode::Drain => Self::Drain { readback1: o.iova(16), readback2: o.iova(24) },
            Opcode::MemoryMove => {
                Self::MemoryMove { source: o.iova(16), destination: o.iova(24), size: o.u32(32) }
            }
            Opcode::Fill => {
                Self::Fill { pattern: o.u64(16), destination: o.iova(24), size: o.u32(32) }
            }
            Opcode::Compare => Self::Compare {
                source1: o.iova(16),
                source2: o.iova(24),
                size: o.u32(32),
                expected: o.u8(40),
            },
            Opcode::ComparePattern => Self::ComparePattern {
                source: o.iova(16),
                pattern: o.u64(24),
                size: o.u32(32),
                expected: o.u8(40),
            },
            Opcode::CreateDelta => Self::CreateDelta {
                source1: o.iova(16),
                source2: o.iova(24),
                size: o.u32(32),
                delta: o.iova(40),
                max_delta_size: o.u32(48),
                expected_mask: o.u8(56),
            },
            Opcode::ApplyDelta => Self::ApplyDelta {
                delta: o.iova(16),
                destination: o.iova(24),
                size: o.u32(32),
                delta_size: o.u32(40),
            },
            Opcode::Dualcast => Self::Dualcast {
                source: o.iova(16),
                destination1: o.iova(24),
                destination2: o.iova(40),
                size: o.u32(32),
            },
            Opcode::Crc => Self::Crc {
                source: o.iova(16),
                size: o.u32(32),
                seed: o.u32(40),
                seed_address: o.iova(48),
            },
            Opcode::CopyCrc => Self::CopyCrc {
                source: o.iova(16),
                destination: o.iova(24),
                size: o.u32(32),
                seed: o.u32(40),
                seed_address: o.iova(48),
            },
            Opcode::DifCheck => Self::DifCheck {
                source: o.iova(16),
                size: o.u32(32),
                source_flags: SourceFlags::from_bits(o.u8(40)),
                flags: DifFlags::from_bits(o.u8(42)),
                source_tags: DifTags::from_bytes(o.bytes(48)),
            },
            Opcode::DifInsert => Self::DifInsert {
                source: o.iova(16),
                destination: o.iova(24),
                size: o.u32(32),
                destination_flags: DestinationFlags::from_bits(o.u8(41)),
                flags: DifFlags::from_bits(o.u8(42)),
                destination_tags: DifTags::from_bytes(o.bytes(56)),
            },
            Opcode::DifStrip => Self::DifStrip {
                source: o.iova(16),
                destination: o.iova(24),
                size: o.u32(32),
                source_flags: SourceFlags::from_bits(o.u8(40)),
                flags: DifFlags::from_bits(o.u8(42)),
                source_tags: DifTags::from_bytes(o.bytes(48)),
            },
            Opcode::DifUpdate => Self::DifUpdate {
                source: o.iova(16),
                destination: o.iova(24),
                size: o.u32(32),
                source_flags: SourceFlags::from_bits(o.u8(40)),
                destination_flags: DestinationFlags::from_bits(o.u8(41)),
                flags: DifFlags::from_bits(o.u8(42)),
                source_tags: DifTags::from_bytes(o.bytes(48)),
                destination_tags: DifTags::from_bytes(o.bytes(56)),
            },
            Opcode::CacheFlush => Self::CacheFlush { destination: o.iova(24), size: o.u32(32) },
        }
    }

    /// The operands of this operation, everything else zero.
    pub(super) fn encode(&self) -> [u8; Descriptor::OPERANDS] {
        let w = Writer([0; Descriptor::OPERANDS]);
        let w = match *self {
            Self::Noop => w,
            Self::Batch { list, count } => w.iova(16, list).u32(32, count),
            Self::Drain { readback1, readback2 } => w.iova(16, readback1).iova(24, readback2),
            Self::MemoryMove { source, destination, size } => w.copy(source, destination, size),
            Self::Fill { pattern, destination, size } => {
                w.u64(16, pattern).iova(24, destination).u32(32, size)
            }
            Self::Compare { source1, source2, size, expected } => {
                w.copy(source1, source2, size).u8(40, expected)
            }
            Self::ComparePattern { source, pattern, size, expected } => {
                w.iova(16, source).u64(24, pattern).u32(32, size).u8(40, expected)
            }
            Self::CreateDelta { source1, source2, size, delta, max_delta_size, expected_mask } => w
                .copy(source1, source2, size)
                .iova(40, delta)
                .u32(48, max_delta_size)
                .u8(56, expected_mask),
            Self::ApplyDelta { delta, destination, size, delta_size } => {
                w.copy(delta, destination, size).u32(40, delta_size)
            }
            Self::Dualcast { source, destination1, destination2, size } => {
                w.copy(source, destination1, size).iova(40, destination2)
            }
            Self::Crc { source, size, seed, seed_address } => {
                w.iova(16, source).u32(32, size).u32(40, seed).iova(48, seed_address)
            }
            Self::CopyCrc { source, destination, size, seed, seed_address } => {
                w.copy(source, destination, size).u32(40, seed).iova(48, seed_address)
            }
            Self::DifCheck { source, size, source_flags, flags, source_tags } => w
                .iova(16, source)
                .u32(32, size)
                .dif(source_flags, DestinationFlags::new(), flags)
                .bytes(48, source_tags.to_bytes()),
            Self::DifInsert {
                source,
                destination,
                size,
                destination_flags,
                flags,
                destination_tags,
            } => w
                .copy(source, destination, size)
                .dif(SourceFlags::new(), destination_flags, flags)
                .bytes(56, destination_tags.to_bytes()),
            Self::DifStrip { source, destination, size, source_flags, flags, source_tags } => w
                .copy(source, destination, size)
                .dif(source_flags, DestinationFlags::new(), flags)
                .bytes(48, source_tags.to_bytes()),
            Self::DifUpdate {
                source,
                destination,
                size,
                source_flags,
                destination_flags,
                flags,
                source_tags,
                destination_tags,
            } => w
                .copy(source, destination, size)
                .dif(source_flags, destination_flags, flags)
                .bytes(48, source_tags.to_bytes())
                .bytes(56, destination_tags.to_bytes()),
            Self::CacheFlush { destination, size } => w.iova(24, destination).u32(32, size),
        };
        w.0
    }
}

/// Reads operands by their offset in the descriptor.
struct Reader<'a>(&'a [u8; Descriptor::OPERANDS]);

/// Where the operands start in a descriptor.
const START: usize = Descriptor::SIZE - Descriptor::OPERANDS;

impl Reader<'_> {
    fn bytes<const N: usize>(&self, at: usize) -> [u8; N] {
        core::array::from_fn(|i| self.0[at - START + i])
    }

    fn u8(&self, at: usize) -> u8 {
        self.0[at - START]
    }

    fn u32(&self, at: usize) -> u32 {
        u32::from_le_bytes(self.bytes(at))
    }

    fn u64(&self, at: usize) -> u64 {
        u64::from_le_bytes(self.bytes(at))
    }

    fn iova(&self, at: usize) -> Iova {
        Iova(self.u64(at))
    }
}

/// Writes operands by their offset in the descriptor.
struct Writer([u8; Descriptor::OPERANDS]);

impl Writer {
    fn bytes<const N: usize>(mut self, at: usize, bytes: [u8; N]) -> Self {
        self.0[at - START..at - START + N].copy_from_slice(&bytes);
        self
    }

    fn u8(self, at: usize, value: u8) -> Self {
        self.bytes(at, [value])
    }

    fn u32(self, at: usize, value: u32) -> Self {
        self.bytes(at, value.to_le_bytes())
    }

    fn u64(self, at: usize, value: u64) -> Self {
        self.bytes(at, value.to_le_bytes())
    }

    fn iova(self, at: usize, value: Iova) -> Self {
        self.u64(at, value.0)
    }

    /// The operands that most operations share.
    fn copy(self, first: Iova, second: Iova, size: u32) -> Self {
        self.iova(16, first).iova(24, second).u32(32, size)
    }

    fn dif(self, source: SourceFlags, destination: DestinationFlags, flags: DifFlags) -> Self {
        self.u8(40, source.into_bits()).u8(41, destination.into_bits()).u8(42, flags.into_bits())
    }
}
