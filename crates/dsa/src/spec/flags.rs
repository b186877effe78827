//! Descriptor flags: which exist, and which each operation allows and requires.

use super::Opcode;

bitflags::bitflags! {
    /// The 24 flag bits of a descriptor. Bits 16 and up mean something else for each operation,
    /// so several names share a bit there.
    #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
    pub struct Flags: u32 {
        /// Wait for all earlier descriptors of the batch.
        const FENCE = 1 << 0;
        /// Wait for the page when a source or destination faults.
        const BLOCK_ON_FAULT = 1 << 1;
        /// The completion record address is valid (CRAV).
        const RECORD_ADDRESS_VALID = 1 << 2;
        /// Write the completion record on success too (RCR).
        const REQUEST_RECORD = 1 << 3;
        /// Raise the completion interrupt (RCI).
        const REQUEST_INTERRUPT = 1 << 4;
        /// Steering tag of the completion record.
        const RECORD_STEERING = 1 << 5;
        /// Compare the result with the expected one.
        const CHECK_RESULT = 1 << 7;
        /// Allocate written data in the cache (cache flush: evict).
        const CACHE_CONTROL = 1 << 8;
        /// Traffic class B for the first address.
        const ADDRESS1_TC = 1 << 9;
        /// Traffic class B for the second address.
        const ADDRESS2_TC = 1 << 10;
        /// Traffic class B for the third address.
        const ADDRESS3_TC = 1 << 11;
        /// Traffic class B for the completion record.
        const RECORD_TC = 1 << 12;
        /// Write strictly in order.
        const STRICT_ORDERING = 1 << 13;
        /// Read back from the destination before completing.
        const DESTINATION_READBACK = 1 << 14;
        /// Steering tag of the destination.
        const DESTINATION_STEERING = 1 << 15;

        /// Drain: the first readback address is valid.
        const DRAIN_READBACK1 = 1 << 16;
        /// Drain: the second readback address is valid.
        const DRAIN_READBACK2 = 1 << 17;
        /// Drain: no implicit readback on traffic class A.
        const DRAIN_NO_READBACK_A = 1 << 18;
        /// Drain: no implicit readback on traffic class B.
        const DRAIN_NO_READBACK_B = 1 << 19;

        /// CRC: the seed is read from memory.
        const CRC_READ_SEED = 1 << 16;
        /// CRC: neither inversion nor reflection of seed and result.
        const CRC_BYPASS_INVERSION = 1 << 17;
        /// CRC: no reflection of the data's bytes.
        const CRC_BYPASS_REFLECTION = 1 << 18;

        // Every other bit of the 24 is kept too: flags are a wire type.
        const _ = 0x00ff_ffff;
    }
}

impl Flags {
    /// Flags that every operation allows.
    const COMMON: Self = Self::RECORD_ADDRESS_VALID
        .union(Self::REQUEST_RECORD)
        .union(Self::REQUEST_INTERRUPT)
        .union(Self::RECORD_TC);
    /// Flags of everything that writes a destination.
    const WRITE: Self = Self::BLOCK_ON_FAULT
        .union(Self::CACHE_CONTROL)
        .union(Self::DESTINATION_READBACK)
        .union(Self::STRICT_ORDERING);
    /// Both addresses of a copy.
    const ADDRESSES_1_2: Self = Self::ADDRESS1_TC.union(Self::ADDRESS2_TC);
    /// How a CRC is computed.
    const CRC: Self =
        Self::CRC_READ_SEED.union(Self::CRC_BYPASS_INVERSION).union(Self::CRC_BYPASS_REFLECTION);

    /// The flags that `opcode` allows on a device with every optional capability, in a batch.
    /// Section "Descriptor flags"; a flag outside is an error (status 0x11).
    pub const fn allowed(opcode: Opcode) -> Self {
        let own = match opcode {
            Opcode::Noop => Self::empty(),
            Opcode::Batch => Self::ADDRESS1_TC,
            Opcode::Drain => Self::ADDRESSES_1_2
                .union(Self::DRAIN_READBACK1)
                .union(Self::DRAIN_READBACK2)
                .union(Self::DRAIN_NO_READBACK_A)
                .union(Self::DRAIN_NO_READBACK_B),
            Opcode::MemoryMove
            | Opcode::ApplyDelta
            | Opcode::DifInsert
            | Opcode::DifStrip
            | Opcode::DifUpdate => Self::WRITE.union(Self::ADDRESSES_1_2),
            Opcode::Fill => Self::WRITE.union(Self::ADDRESS2_TC),
            Opcode::Compare => {
                Self::BLOCK_ON_FAULT.union(Self::CHECK_RESULT).union(Self::ADDRESSES_1_2)
            }
            Opcode::ComparePattern => {
                Self::BLOCK_ON_FAULT.union(Self::CHECK_RESULT).union(Self::ADDRESS1_TC)
            }
            Opcode::CreateDelta => Self::WRITE
                .union(Self::CHECK_RESULT)
                .union(Self::ADDRESSES_1_2)
                .union(Self::ADDRESS3_TC),
            Opcode::Dualcast => Self::WRITE.union(Self::ADDRESSES_1_2).union(Self::ADDRESS3_TC),
            Opcode::CopyCrc => {
                Self::WRITE.union(Self::ADDRESSES_1_2).union(Self::ADDRESS3_TC).union(Self::CRC)
            }
            Opcode::Crc => Self::BLOCK_ON_FAULT
                .union(Self::ADDRESS1_TC)
                .union(Self::ADDRESS3_TC)
                .union(Self::CRC),
            Opcode::DifCheck => Self::BLOCK_ON_FAULT.union(Self::ADDRESS1_TC),
            Opcode::CacheFlush => Self::BLOCK_ON_FAULT
                .union(Self::CACHE_CONTROL)
                .union(Self::STRICT_ORDERING)
                .union(Self::ADDRESS2_TC),
        };
        own.union(Self::COMMON).union(Self::FENCE)
    }

    /// The flags without which `opcode` is an error (status 0x11): its result is in the record.
    /// Drain, which needs a record or an interrupt, is not covered by this.
    pub const fn required(opcode: Opcode) -> Self {
        match opcode {
            Opcode::Compare
            | Opcode::ComparePattern
            | Opcode::CreateDelta
            | Opcode::Crc
            | Opcode::CopyCrc
            | Opcode::DifCheck => Self::RECORD_ADDRESS_VALID.union(Self::REQUEST_RECORD),
            _ => Self::empty(),
        }
    }
}
