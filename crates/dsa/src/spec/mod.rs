//! The layouts of Intel DSA 1.0, and nothing else: descriptors, completion records, registers,
//! configuration tables, commands and error codes.
//!
//! Wire types ([`Descriptor`], [`CompletionRecord`], the registers) take every bit pattern. What
//! is known after decoding is closed: [`Opcode`], [`Operation`], [`Status`], [`Command`].
//!
//! ```
//! use dsa::spec::{CompletionRecord, Descriptor, Flags, Iova, Operation};
//!
//! let descriptor = Descriptor::new(Operation::MemoryMove {
//!     source: Iova(0x1000),
//!     destination: Iova(0x9000),
//!     size: 4096,
//! })
//! .with_record(Iova(0x2000))
//! .with_flags(Flags::REQUEST_RECORD);
//! let portal_bytes = descriptor.to_bytes();
//! assert_eq!(portal_bytes[7], 3);
//! // ... store them to a portal, poll the record until its first byte is not zero ...
//! let record = CompletionRecord::from_bytes(&[0; CompletionRecord::SIZE]);
//! assert!(record.status.is_pending());
//! ```

mod command;
mod config;
mod descriptor;
mod dif;
mod flags;
mod opcode;
mod operation;
mod portal;
mod record;
mod registers;
mod status;
mod swerror;

pub use command::{
    Cmd, CmdStatus, Command, CommandCode, CommandError, HandleOperand, UnknownCommand, WqSet,
};
pub use config::{
    GroupFlags, MsixPerm, WqConfig, WqLimits, WqMode, WqOccupancy, WqOccupancyHandle,
    WqOccupancyLimit, WqState, GRPCFG_ENGINES, GRPCFG_FLAGS, GRPCFG_SIZE, GRPCFG_WQS,
    MSIXPERM_STRIDE,
};
pub use descriptor::{Control, Descriptor, Submitter};
pub use dif::{BlockSize, DestinationFlags, DifFlags, DifStatus, DifTags, SourceFlags};
pub use flags::Flags;
pub use mem::Iova;
pub use opcode::{Opcode, UnknownOpcode};
pub use operation::Operation;
pub use portal::{Portal, PORTAL_SIZE, PORTAL_STRIDE};
pub use record::CompletionRecord;
pub use registers::{
    offset, DeviceState, EngCap, GenCap, GenCfg, GenCtrl, GenSts, GrpCap, IntCause, Offsets,
    Register, RegisterAccess, ResetType, WqCap, REGISTERS, VERSION_1_0,
};
pub use status::{Status, StatusByte, UnknownStatus};
pub use swerror::{SwError, SwErrorHead};

#[cfg(test)]
mod tests;
