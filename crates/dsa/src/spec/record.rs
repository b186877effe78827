//! The 32-byte completion record.

use mem::Iova;

use super::{DifTags, StatusByte};

/// A completion record: what the device writes when a descriptor has ended.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct CompletionRecord {
    /// Status (byte 0).
    pub status: StatusByte,
    /// Result of the operation, or DIF status (byte 1).
    pub result: u8,
    /// Bytes completed, of a batch descriptors completed (bytes 4-7). Zero if all of it is done.
    pub bytes_completed: u32,
    /// Address of the fault (bytes 8-15).
    pub fault_address: Iova,
    /// Specific to the operation (bytes 16-31).
    pub tail: [u8; Self::TAIL],
}

impl CompletionRecord {
    /// Length of a record in bytes, and the alignment of its address.
    pub const SIZE: usize = 32;
    /// Length of the part that is specific to the operation.
    pub const TAIL: usize = 16;

    /// The record in these bytes.
    pub fn from_bytes(bytes: &[u8; Self::SIZE]) -> Self {
        let field = |at: usize| u64::from_le_bytes(core::array::from_fn(|i| bytes[at + i]));
        Self {
            status: StatusByte::from_bits(bytes[0]),
            result: bytes[1],
            bytes_completed: (field(0) >> 32) as u32,
            fault_address: Iova(field(8)),
            tail: core::array::from_fn(|i| bytes[16 + i]),
        }
    }

    /// The bytes of this record.
    pub fn to_bytes(&self) -> [u8; Self::SIZE] {
        let mut bytes = [0; Self::SIZE];
        bytes[0] = self.status.into_bits();
        bytes[1] = self.result;
        bytes[4..8].copy_from_slice(&self.bytes_completed.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.fault_address.0.to_le_bytes());
        bytes[16..].copy_from_slice(&self.tail);
        bytes
    }

    /// The flags that were wrong (status 0x11; bytes 16-18).
    pub const fn invalid_flags(&self) -> u32 {
        u32::from_le_bytes([self.tail[0], self.tail[1], self.tail[2], 0])
    }

    /// Size of the delta record written (create delta; bytes 16-19).
    pub const fn delta_size(&self) -> u32 {
        u32::from_le_bytes([self.tail[0], self.tail[1], self.tail[2], self.tail[3]])
    }

    /// The CRC so far (bytes 16-19; the upper half of the 64-bit field is zero).
    pub const fn crc(&self) -> u32 {
        self.delta_size()
    }

    /// Tags that the source's next block should have (DIF check, strip, update; bytes 16-23).
    pub fn source_tags(&self) -> DifTags {
        DifTags::from_bytes(core::array::from_fn(|i| self.tail[i]))
    }

    /// Tags that the destination's next block gets (DIF insert, update; bytes 24-31).
    pub fn destination_tags(&self) -> DifTags {
        DifTags::from_bytes(core::array::from_fn(|i| self.tail[8 + i]))
    }
}
