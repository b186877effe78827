//! The 64-byte descriptor as it is on the wire.

use bitfield_struct::bitfield;
use mem::Iova;

use super::{Flags, Opcode, Operation, UnknownOpcode};

/// In whose name a descriptor was submitted (bytes 0-3). Only shared work queues look at it.
#[bitfield(u32)]
#[derive(PartialEq, Eq, Hash)]
pub struct Submitter {
    /// PASID.
    #[bits(20)]
    pub pasid: u32,
    /// Reserved.
    #[bits(11)]
    pub reserved: u16,
    /// Privileged (supervisor) request.
    pub privileged: bool,
}

/// Flags and operation code (bytes 4-7).
#[bitfield(u32)]
#[derive(PartialEq, Eq, Hash)]
pub struct Control {
    /// Flag bits, see [`Flags`].
    #[bits(24)]
    pub flags: u32,
    /// Operation code, see [`Opcode`].
    pub opcode: u8,
}

/// A descriptor: what software writes to a portal, or puts in a batch list. Every 64 bytes are
/// one; [`Descriptor::operation`] says what it means.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Descriptor {
    /// In whose name (bytes 0-3).
    pub submitter: Submitter,
    /// Flags and operation code (bytes 4-7).
    pub control: Control,
    /// Where the completion record goes (bytes 8-15), a multiple of 32.
    pub record: Iova,
    /// Operands (bytes 16-63), laid out by the operation.
    pub operands: [u8; Self::OPERANDS],
}

impl Descriptor {
    /// Length of a descriptor in bytes.
    pub const SIZE: usize = 64;
    /// Length of its operands in bytes.
    pub(super) const OPERANDS: usize = 48;

    /// A descriptor for `operation`: no flags, no record, no interrupt and PASID 0.
    pub fn new(operation: Operation) -> Self {
        Self {
            submitter: Submitter::new(),
            control: Control::new().with_opcode(operation.opcode() as u8),
            record: Iova(0),
            operands: operation.encode(),
        }
    }

    /// Adds flags.
    pub fn with_flags(mut self, flags: Flags) -> Self {
        self.control.set_flags(self.control.flags() | flags.bits());
        self
    }

    /// Sets the completion record address and says that it is valid.
    pub fn with_record(mut self, record: Iova) -> Self {
        self.record = record;
        self.with_flags(Flags::RECORD_ADDRESS_VALID)
    }

    /// Asks for a completion interrupt with `handle`.
    pub fn with_interrupt(mut self, handle: u16) -> Self {
        let [low, high] = handle.to_le_bytes();
        self.operands[20] = low;
        self.operands[21] = high;
        self.with_flags(Flags::REQUEST_INTERRUPT)
    }

    /// Sets the PASID and privilege that a shared work queue takes from the descriptor.
    pub fn with_submitter(mut self, submitter: Submitter) -> Self {
        self.submitter = submitter;
        self
    }

    /// The descriptor in these bytes.
    pub fn from_bytes(bytes: &[u8; Self::SIZE]) -> Self {
        let mut operands = [0; Self::OPERANDS];
        operands.copy_from_slice(&bytes[16..]);
        Self {
            submitter: Submitter::from_bits(word(bytes, 0)),
            control: Control::from_bits(word(bytes, 4)),
            record: Iova(u64::from(word(bytes, 8)) | u64::from(word(bytes, 12)) << 32),
            operands,
        }
    }

    /// The bytes of this descriptor.
    pub fn to_bytes(&self) -> [u8; Self::SIZE] {
        let mut bytes = [0; Self::SIZE];
        bytes[0..4].copy_from_slice(&self.submitter.into_bits().to_le_bytes());
        bytes[4..8].copy_from_slice(&self.control.into_bits().to_le_bytes());
        bytes[8..16].copy_from_slice(&self.record.0.to_le_bytes());
        bytes[16..].copy_from_slice(&self.operands);
        bytes
    }

    /// Its flags.
    pub fn flags(&self) -> Flags {
        Flags::from_bits_retain(self.control.flags())
    }

    /// Its operation code.
    ///
    /// # Errors
    ///
    /// The code is no operation of DSA 1.0.
    pub fn opcode(&self) -> Result<Opcode, UnknownOpcode> {
        Opcode::try_from(self.control.opcode())
    }

    /// What it asks for. Reserved fields are not looked at; see [`Descriptor::has_reserved`].
    ///
    /// # Errors
    ///
    /// The code is no operation of DSA 1.0.
    pub fn operation(&self) -> Result<Operation, UnknownOpcode> {
        Ok(Operation::decode(self.opcode()?, &self.operands))
    }

    /// The completion interrupt handle (bytes 36-37).
    pub const fn interrupt_handle(&self) -> u16 {
        u16::from_le_bytes([self.operands[20], self.operands[21]])
    }

    /// Whether a field that is reserved for `operation`, which was decoded from this descriptor,
    /// is not zero (status 0x12).
    pub fn has_reserved(&self, operation: &Operation) -> bool {
        let mut known = operation.encode();
        if self.flags().contains(Flags::REQUEST_INTERRUPT) {
            known[20..22].copy_from_slice(&self.operands[20..22]);
        }
        let record = !self.flags().contains(Flags::RECORD_ADDRESS_VALID) && self.record.0 != 0;
        known != self.operands || record
    }
}

/// The little-endian word at `at` of a descriptor.
fn word(bytes: &[u8; Descriptor::SIZE], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}
