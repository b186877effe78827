//! Data integrity fields (T10 DIF): the flag bytes and tags of the DIF operations.

use bitfield_struct::bitfield;

/// Length of the data of a protected block; its 8-byte DIF comes after it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(u8)]
pub enum BlockSize {
    /// 512 bytes.
    B512 = 0,
    /// 520 bytes.
    B520 = 1,
    /// 4096 bytes.
    B4096 = 2,
    /// 4104 bytes.
    B4104 = 3,
}

impl BlockSize {
    /// Length of a DIF in bytes.
    pub const DIF: usize = 8;

    /// Length of the data in bytes, without the DIF.
    pub const fn data(self) -> usize {
        match self {
            Self::B512 => 512,
            Self::B520 => 520,
            Self::B4096 => 4096,
            Self::B4104 => 4104,
        }
    }

    const fn from_bits(bits: u8) -> Self {
        match bits & 3 {
            0 => Self::B512,
            1 => Self::B520,
            2 => Self::B4096,
            _ => Self::B4104,
        }
    }

    const fn into_bits(self) -> u8 {
        self as u8
    }
}

/// DIF flags (byte 42): how blocks are laid out and guards computed.
#[bitfield(u8)]
#[derive(PartialEq, Eq, Hash)]
pub struct DifFlags {
    /// Block size.
    #[bits(2, default = BlockSize::B512)]
    pub block: BlockSize,
    /// The guard's CRC starts from 0xffff instead of 0.
    pub seed_ones: bool,
    /// The guard is the inverted CRC.
    pub invert: bool,
    /// Reserved.
    #[bits(4)]
    pub reserved: u8,
}

/// Source DIF flags (byte 40): how the DIF of the source is checked.
#[bitfield(u8)]
#[derive(PartialEq, Eq, Hash)]
pub struct SourceFlags {
    /// A block whose DIF is all ones is an error.
    pub all_ones_error: bool,
    /// A block whose whole DIF is all ones is not checked.
    pub detect_all: bool,
    /// A block whose application tag is all ones is not checked.
    pub detect_app: bool,
    /// A block whose application and reference tags are all ones is not checked.
    pub detect_app_ref: bool,
    /// The application tag counts up by one for each block.
    pub app_incrementing: bool,
    /// The guard is not checked.
    pub guard_disable: bool,
    /// The reference tag is not checked.
    pub ref_disable: bool,
    /// The reference tag is the same for all blocks; else it counts up by one for each.
    pub ref_fixed: bool,
}

/// Destination DIF flags (byte 41): how the DIF of the destination is made.
#[bitfield(u8)]
#[derive(PartialEq, Eq, Hash)]
pub struct DestinationFlags {
    /// Reserved.
    #[bits(3)]
    pub reserved: u8,
    /// The application tag is copied from the source.
    pub app_pass: bool,
    /// The application tag counts up by one for each block.
    pub app_incrementing: bool,
    /// The guard is copied from the source.
    pub guard_pass: bool,
    /// The reference tag is copied from the source.
    pub ref_pass: bool,
    /// The reference tag is the same for all blocks; else it counts up by one for each.
    pub ref_fixed: bool,
}

/// DIF status (result byte of a completion record with status DIF error).
#[bitfield(u8)]
#[derive(PartialEq, Eq, Hash)]
pub struct DifStatus {
    /// The guard did not match.
    pub guard: bool,
    /// The application tag did not match.
    pub app: bool,
    /// The reference tag did not match.
    pub reference: bool,
    /// The DIF was all ones.
    pub all_ones: bool,
    #[bits(4)]
    __: u8,
}

/// Tags of the first block, and how much of the application tag counts: eight bytes of a
/// descriptor or completion record.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct DifTags {
    /// Reference tag.
    pub reference: u32,
    /// Bits of the application tag that are taken as zero.
    pub app_mask: u16,
    /// Application tag.
    pub app: u16,
}

impl DifTags {
    /// The tags in these bytes.
    pub const fn from_bytes(bytes: [u8; 8]) -> Self {
        let [r0, r1, r2, r3, m0, m1, a0, a1] = bytes;
        Self {
            reference: u32::from_le_bytes([r0, r1, r2, r3]),
            app_mask: u16::from_le_bytes([m0, m1]),
            app: u16::from_le_bytes([a0, a1]),
        }
    }

    /// These tags as bytes.
    pub const fn to_bytes(self) -> [u8; 8] {
        let [r0, r1, r2, r3] = self.reference.to_le_bytes();
        let [m0, m1] = self.app_mask.to_le_bytes();
        let [a0, a1] = self.app.to_le_bytes();
        [r0, r1, r2, r3, m0, m1, a0, a1]
    }
}
