//! The register table: one page of registers at the unit's base (11.4).

use super::virtual_command::VcmdLayout;

/// Size of the register page in bytes.
pub const PAGE_SIZE: u64 = 4096;

/// Offset of the version register.
pub const VERSION_OFFSET: u16 = 0x00;

/// Offset of the capability register.
pub const CAPABILITY_OFFSET: u16 = 0x08;

/// Offset of the extended capability register.
pub const EXTENDED_CAPABILITY_OFFSET: u16 = 0x10;

/// VER: major version 5 in 7:4, the last one with the register-based invalidation interface
/// (6.5.1); minor version 0.
pub const VERSION: u32 = 0x50;

/// Number of fault recording registers (CAP.NFR + 1).
pub const FAULT_RECORDS: usize = 8;

/// Offset of the first fault recording register (16 × CAP.FRO).
pub const FAULT_RECORD_OFFSET: u16 = 0x220;

/// Offset of the invalidate address register; the IOTLB invalidate register follows it
/// (16 × ECAP.IRO).
pub const IOTLB_OFFSET: u16 = 0xf0;

/// Names a register.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
#[allow(missing_docs)] // the table has the specification's name and section of each
pub enum RegisterId {
    Version,
    Capability,
    ExtendedCapability,
    GlobalCommand,
    GlobalStatus,
    RootTableAddress,
    ContextCommand,
    FaultStatus,
    FaultEventControl,
    FaultEventData,
    FaultEventAddress,
    FaultEventUpperAddress,
    QueueHead,
    QueueTail,
    QueueAddress,
    CompletionStatus,
    CompletionEventControl,
    CompletionEventData,
    CompletionEventAddress,
    CompletionEventUpperAddress,
    QueueErrorRecord,
    PageRequestHead,
    PageRequestTail,
    PageRequestAddress,
    PageRequestStatus,
    PageRequestEventControl,
    PageRequestEventData,
    PageRequestEventAddress,
    PageRequestEventUpperAddress,
    InvalidateAddress,
    IotlbInvalidate,
    VirtualCommandCapability,
    VirtualCommand,
    VirtualCommandResponse,
    /// Low half of a fault recording register.
    FaultRecordLow(u8),
    /// High half of a fault recording register.
    FaultRecordHigh(u8),
}

impl RegisterId {
    /// Whether it belongs to the page request queue: a unit without page requests does not have it.
    pub const fn is_of_page_requests(self) -> bool {
        matches!(
            self,
            Self::PageRequestHead
                | Self::PageRequestTail
                | Self::PageRequestAddress
                | Self::PageRequestStatus
                | Self::PageRequestEventControl
                | Self::PageRequestEventData
                | Self::PageRequestEventAddress
                | Self::PageRequestEventUpperAddress
        )
    }
}

/// Width of a register.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Width {
    /// 32 bits.
    Bits32,
    /// 64 bits.
    Bits64,
}

impl Width {
    /// Width in bytes.
    pub const fn bytes(self) -> u16 {
        match self {
            Self::Bits32 => 4,
            Self::Bits64 => 8,
        }
    }
}

/// What software may do with a register.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum AccessClass {
    /// Writes change nothing.
    ReadOnly,
    /// Writes change the writable bits.
    ReadWrite,
    /// Writing a one to a bit clears it.
    WriteOneToClear,
    /// A write is a command or an operand; reads give zero.
    WriteOnly,
}

/// The value of a register after reset.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Reset {
    /// This value.
    Value(u64),
    /// A capability register: fixed by the unit's configuration.
    Capabilities,
}

/// A register of the table.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Register {
    /// Which it is.
    pub id: RegisterId,
    /// The specification's abbreviation.
    pub name: &'static str,
    /// Offset in the register page in bytes, a multiple of its width.
    pub offset: u16,
    /// Its width.
    pub width: Width,
    /// What software may do with it.
    pub access: AccessClass,
    /// Bits that a write may change; the others are reserved or read-only.
    pub writable: u64,
    /// Bits that writing a one clears.
    pub clears: u64,
    /// Its value after reset.
    pub reset: Reset,
    /// Section of the specification.
    pub section: &'static str,
}

impl Register {
    /// First offset past it.
    pub const fn end(&self) -> u16 {
        self.offset + self.width.bytes()
    }
}

use AccessClass::{ReadOnly as Ro, ReadWrite as Rw, WriteOneToClear as W1c, WriteOnly as Wo};
use RegisterId as Id;
use Width::{Bits32, Bits64};

macro_rules! register {
    ($id:expr, $name:literal, $offset:expr, $width:ident, $access:ident,
     writable $writable:expr, clears $clears:expr, reset $reset:expr, $section:literal) => {
        Register {
            id: $id,
            name: $name,
            offset: $offset,
            width: $width,
            access: $access,
            writable: $writable,
            clears: $clears,
            reset: $reset,
            section: $section,
        }
    };
}

const ZERO: Reset = Reset::Value(0);
/// Event control registers come up masked.
const MASKED: Reset = Reset::Value(1 << 31);
const PAGE_FRAME: u64 = !0xfff;
const ADDRESS: u64 = 0xffff_fffc;
/// QH and QT: bits 18:4.
const QUEUE_OFFSET: u64 = 0x7_fff0;

/// PQH and PQT: bits 18:5.
const PAGE_REQUEST_OFFSET: u64 = 0x7_ffe0;

const FIXED: [Register; 31] = [
    register!(Id::Version, "VER_REG", VERSION_OFFSET, Bits32, Ro,
        writable 0, clears 0, reset Reset::Value(VERSION as u64), "11.4.1"),
    register!(Id::Capability, "CAP_REG", CAPABILITY_OFFSET, Bits64, Ro,
        writable 0, clears 0, reset Reset::Capabilities, "11.4.2"),
    register!(Id::ExtendedCapability, "ECAP_REG", EXTENDED_CAPABILITY_OFFSET, Bits64, Ro,
        writable 0, clears 0, reset Reset::Capabilities, "11.4.3"),
    register!(Id::GlobalCommand, "GCMD_REG", 0x18, Bits32, Wo,
        writable 0xcf80_0000, clears 0, reset ZERO, "11.4.4.1"),
    register!(Id::GlobalStatus, "GSTS_REG", 0x1c, Bits32, Ro,
        writable 0, clears 0, reset ZERO, "11.4.4.2"),
    register!(Id::RootTableAddress, "RTADDR_REG", 0x20, Bits64, Rw,
        writable PAGE_FRAME | 0xc00, clears 0, reset ZERO, "11.4.5"),
    register!(Id::ContextCommand, "CCMD_REG", 0x28, Bits64, Rw,
        writable 0xe000_0003_ffff_ffff, clears 0, reset ZERO, "11.4.6.1"),
    register!(Id::FaultStatus, "FSTS_REG", 0x34, Bits32, W1c,
        writable 0, clears 0x71, reset ZERO, "11.4.7.1"),
    register!(Id::FaultEventControl, "FECTL_REG", 0x38, Bits32, Rw,
        writable 1 << 31, clears 0, reset MASKED, "11.4.7.2"),
    register!(Id::FaultEventData, "FEDATA_REG", 0x3c, Bits32, Rw,
        writable 0xffff, clears 0, reset ZERO, "11.4.7.3"),
    register!(Id::FaultEventAddress, "FEADDR_REG", 0x40, Bits32, Rw,
        writable ADDRESS, clears 0, reset ZERO, "11.4.7.4"),
    register!(Id::FaultEventUpperAddress, "FEUADDR_REG", 0x44, Bits32, Ro,
        writable 0, clears 0, reset ZERO, "11.4.7.5"),
    register!(Id::QueueHead, "IQH_REG", 0x80, Bits64, Ro,
        writable 0, clears 0, reset ZERO, "11.4.9.1"),
    register!(Id::QueueTail, "IQT_REG", 0x88, Bits64, Rw,
        writable QUEUE_OFFSET, clears 0, reset ZERO, "11.4.9.2"),
    register!(Id::QueueAddress, "IQA_REG", 0x90, Bits64, Rw,
        writable PAGE_FRAME | 0x807, clears 0, reset ZERO, "11.4.9.3"),
    register!(Id::CompletionStatus, "ICS_REG", 0x9c, Bits32, W1c,
        writable 0, clears 1, reset ZERO, "11.4.9.4"),
    register!(Id::CompletionEventControl, "IECTL_REG", 0xa0, Bits32, Rw,
        writable 1 << 31, clears 0, reset MASKED, "11.4.9.5"),
    register!(Id::CompletionEventData, "IEDATA_REG", 0xa4, Bits32, Rw,
        writable 0xffff, clears 0, reset ZERO, "11.4.9.6"),
    register!(Id::CompletionEventAddress, "IEADDR_REG", 0xa8, Bits32, Rw,
        writable ADDRESS, clears 0, reset ZERO, "11.4.9.7"),
    register!(Id::CompletionEventUpperAddress, "IEUADDR_REG", 0xac, Bits32, Ro,
        writable 0, clears 0, reset ZERO, "11.4.9.8"),
    register!(Id::QueueErrorRecord, "IQERCD_REG", 0xb0, Bits64, Ro,
        writable 0, clears 0, reset ZERO, "11.4.9.9"),
    register!(Id::PageRequestHead, "PQH_REG", 0xc0, Bits64, Rw,
        writable PAGE_REQUEST_OFFSET, clears 0, reset ZERO, "11.4.11.1"),
    register!(Id::PageRequestTail, "PQT_REG", 0xc8, Bits64, Rw,
        writable PAGE_REQUEST_OFFSET, clears 0, reset ZERO, "11.4.11.2"),
    register!(Id::PageRequestAddress, "PQA_REG", 0xd0, Bits64, Rw,
        writable PAGE_FRAME | 7, clears 0, reset ZERO, "11.4.11.3"),
    register!(Id::PageRequestStatus, "PRS_REG", 0xdc, Bits32, W1c,
        writable 0, clears 3, reset ZERO, "11.4.11.4"),
    register!(Id::PageRequestEventControl, "PECTL_REG", 0xe0, Bits32, Rw,
        writable 1 << 31, clears 0, reset MASKED, "11.4.11.5"),
    register!(Id::PageRequestEventData, "PEDATA_REG", 0xe4, Bits32, Rw,
        writable 0xffff, clears 0, reset ZERO, "11.4.11.6"),
    register!(Id::PageRequestEventAddress, "PEADDR_REG", 0xe8, Bits32, Rw,
        writable ADDRESS, clears 0, reset ZERO, "11.4.11.7"),
    register!(Id::PageRequestEventUpperAddress, "PEUADDR_REG", 0xec, Bits32, Ro,
        writable 0, clears 0, reset ZERO, "11.4.11.8"),
    register!(Id::InvalidateAddress, "IVA_REG", IOTLB_OFFSET, Bits64, Wo,
        writable PAGE_FRAME | 0x7f, clears 0, reset ZERO, "11.4.6.4"),
    register!(Id::IotlbInvalidate, "IOTLB_REG", IOTLB_OFFSET + 8, Bits64, Rw,
        writable 0xb003_ffff_0000_0000, clears 0, reset ZERO, "11.4.6.3"),
];

/// Every register but those of virtual commands, which have two layouts
/// ([`VcmdLayout::registers`]), by rising offset. What lies between them reads zero and ignores
/// writes, as do those of the page request queue in a unit without one.
pub const REGISTERS: [Register; FIXED.len() + 2 * FAULT_RECORDS] = {
    let mut all = [FIXED[0]; FIXED.len() + 2 * FAULT_RECORDS];
    let mut i = 0;
    while i < FIXED.len() {
        all[i] = FIXED[i];
        i += 1;
    }
    let mut record = 0;
    while record < FAULT_RECORDS {
        let offset = FAULT_RECORD_OFFSET + 16 * record as u16;
        all[i] = register!(Id::FaultRecordLow(record as u8), "FRCD_REG", offset, Bits64, Ro,
            writable 0, clears 0, reset ZERO, "11.4.7.6");
        all[i + 1] = register!(Id::FaultRecordHigh(record as u8), "FRCD_REG", offset + 8, Bits64,
            W1c, writable 0, clears 1 << 63, reset ZERO, "11.4.7.6");
        i += 2;
        record += 1;
    }
    all
};

/// Every register of a unit that has these virtual commands, by rising offset.
pub fn registers(virtual_commands: Option<VcmdLayout>) -> impl Iterator<Item = &'static Register> {
    const TABLE: &[Register] = &REGISTERS;
    TABLE.iter().chain(virtual_registers(virtual_commands))
}

/// Those of them that share a byte with the `len` bytes from `offset`, by rising offset.
pub fn registers_in(
    virtual_commands: Option<VcmdLayout>,
    offset: u64,
    len: usize,
) -> impl Iterator<Item = &'static Register> {
    const TABLE: &[Register] = &REGISTERS;
    let end = offset.saturating_add(len as u64);
    let first = TABLE.partition_point(|register| u64::from(register.end()) <= offset);
    let more = virtual_registers(virtual_commands)
        .iter()
        .skip_while(move |register| u64::from(register.end()) <= offset);
    TABLE[first..].iter().chain(more).take_while(move |register| u64::from(register.offset) < end)
}

fn virtual_registers(layout: Option<VcmdLayout>) -> &'static [Register] {
    layout.map_or(&[], |layout| layout.registers())
}
