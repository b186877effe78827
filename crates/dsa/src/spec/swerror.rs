//! The software error register (SWERROR), 32 bytes.

use bitfield_struct::bitfield;
use mem::Iova;

/// The first quadword of SWERROR.
#[bitfield(u64)]
#[derive(PartialEq, Eq, Hash)]
pub struct SwErrorHead {
    /// An error is recorded. Write 1 to clear.
    pub valid: bool,
    /// Errors came while one was recorded. Write 1 to clear.
    pub overflow: bool,
    /// Operation, PASID and batch fields are valid.
    pub descriptor_valid: bool,
    /// The work queue field is valid.
    pub wq_valid: bool,
    /// The descriptor was in a batch; the batch index is valid.
    pub batch: bool,
    /// The access that faulted was a write.
    pub write: bool,
    /// The access was privileged.
    pub privileged: bool,
    /// Error information is valid (DSA 2.0).
    pub info_valid: bool,
    /// Error code: a [`Status`](super::Status), or one of [`SwError`]'s own.
    pub code: u8,
    /// Work queue.
    pub wq: u8,
    #[bits(8)]
    __: u8,
    /// Operation code.
    pub opcode: u8,
    /// PASID.
    #[bits(20)]
    pub pasid: u32,
    #[bits(4)]
    __: u8,
}

/// What SWERROR holds.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct SwError {
    /// What happened, and to which descriptor.
    pub head: SwErrorHead,
    /// Index of the descriptor in its batch.
    pub batch_index: u16,
    /// Address of the fault.
    pub address: Iova,
}

impl SwError {
    /// Code: the function's configuration changed while the device was not disabled.
    pub const CONFIG_CHANGE: u8 = 0x51;
    /// Code: CMD was written while a command was active.
    pub const COMMAND_ACTIVE: u8 = 0x52;
    /// Code: a descriptor was dropped, its dedicated queue was full.
    pub const WQ_FULL: u8 = 0x53;

    /// The four quadwords of the register.
    pub const fn to_qwords(self) -> [u64; 4] {
        [self.head.into_bits(), self.batch_index as u64, self.address.0, 0]
    }

    /// The error in these quadwords.
    pub const fn from_qwords(qwords: [u64; 4]) -> Self {
        Self {
            head: SwErrorHead::from_bits(qwords[0]),
            batch_index: qwords[1] as u16,
            address: Iova(qwords[2]),
        }
    }
}
