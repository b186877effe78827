//! Completion status codes.

use bitfield_struct::bitfield;

/// The status byte of a completion record. Software zeroes it before it submits and polls it
/// until it is not.
#[bitfield(u8)]
#[derive(PartialEq, Eq, Hash)]
pub struct StatusByte {
    /// Status code, see [`Status`].
    #[bits(6)]
    pub code: u8,
    #[bits(1)]
    __: u8,
    /// Whether the access that faulted was a write.
    pub write: bool,
}

impl StatusByte {
    /// The byte for `status`, of an access that was a write or not.
    pub fn of(status: Status, write: bool) -> Self {
        Self::new().with_code(status as u8).with_write(write)
    }

    /// Whether the device has not written the record yet.
    pub const fn is_pending(self) -> bool {
        self.into_bits() == 0
    }

    /// The status.
    ///
    /// # Errors
    ///
    /// The code is none of DSA 1.0's (0 included: nothing was written yet).
    pub fn status(self) -> Result<Status, UnknownStatus> {
        Status::try_from(self.code())
    }
}

macro_rules! statuses {
    ($($(#[$doc:meta])* $name:ident = $code:literal,)*) => {
        /// How a descriptor ended.
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
        #[repr(u8)]
        pub enum Status {
            $($(#[$doc])* $name = $code,)*
        }

        impl Status {
            /// All status codes, in order.
            pub const ALL: &'static [Self] = &[$(Self::$name),*];
        }

        impl TryFrom<u8> for Status {
            type Error = UnknownStatus;

            fn try_from(code: u8) -> Result<Self, UnknownStatus> {
                match code {
                    $($code => Ok(Self::$name),)*
                    _ => Err(UnknownStatus(code)),
                }
            }
        }
    };
}

statuses! {
    /// Done.
    Success = 0x01,
    /// Done, but the result is not the expected one.
    FalsePredicate = 0x02,
    /// A page fault stopped it part way: the rest may be submitted again.
    PageFault = 0x03,
    /// A page request for a source or destination was answered "invalid".
    PageRequestInvalid = 0x04,
    /// A descriptor of the batch did not end with success.
    BatchError = 0x05,
    /// A page fault on the descriptor list.
    BatchListFault = 0x06,
    /// Offsets in a delta record do not increase.
    DeltaOffsetOrder = 0x07,
    /// An offset in a delta record lies past the transfer size.
    DeltaOffsetRange = 0x08,
    /// A data integrity field is wrong.
    DifError = 0x09,
    /// No such operation, or not here.
    BadOpcode = 0x10,
    /// A flag is not allowed, or one is missing.
    BadFlags = 0x11,
    /// A reserved field is not zero.
    ReservedField = 0x12,
    /// The transfer size is zero or too large.
    BadTransferSize = 0x13,
    /// The number of descriptors of a batch is below 2 or too large.
    BadBatchCount = 0x14,
    /// The size of a delta record is out of range.
    BadDeltaSize = 0x15,
    /// Operands overlap.
    Overlap = 0x16,
    /// The destinations of a dualcast differ in their low 12 bits.
    DualcastAlignment = 0x17,
    /// The descriptor list is not 64-byte aligned.
    ListAlignment = 0x18,
    /// The interrupt handle is out of range, or not for this PASID.
    BadInterruptHandle = 0x19,
    /// A fault on the completion record address.
    RecordFault = 0x1a,
    /// The completion record address is not 32-byte aligned.
    RecordAlignment = 0x1b,
    /// An operand is not aligned as its operation wants it.
    Misaligned = 0x1c,
    /// A privileged descriptor, and privileged mode is off.
    PrivilegeDisabled = 0x1d,
    /// A traffic class that is not mapped to a virtual channel.
    TrafficClass = 0x1e,
    /// A fault on a drain's readback address.
    ReadbackFault = 0x1f,
    /// A read failed on the bus.
    ReadError = 0x20,
    /// A write or readback failed on the bus.
    WriteError = 0x21,
    /// A translation request was refused.
    TranslationError = 0x22,
}

/// No status of DSA 1.0 has this code.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct UnknownStatus(pub u8);
