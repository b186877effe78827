//! Layouts only: the registers of configuration space and their bits, by the PCI Express Base
//! Specification 6.0 (its section 7 where no other is named).

mod ats;
mod express;
mod header;
mod msix;
mod power;

pub use ats::{
    AtsCapabilities, AtsControl, PasidCapabilities, PasidControl, PriControl, PriStatus,
};
pub use express::{
    DeviceCapabilities, DeviceCapabilities2, DeviceControl, DeviceControl2, DeviceStatus,
    ExpressCapabilities,
};
pub use header::{ClassCode, Command, Status};
pub use msix::{MsiXControl, TableOffset, VectorControl};
pub use power::{PowerCapabilities, PowerControl};

/// Bytes of configuration space of a PCI Express function (7.2).
pub const CONFIG_SPACE_SIZE: u16 = 4096;
/// Where the capability list may begin: the end of the header (7.5.1).
pub const CAPABILITIES_START: u16 = 0x40;
/// Where the extended capabilities begin, and the end of the others (7.6).
pub const EXTENDED_START: u16 = 0x100;

/// Offsets of the type 0 header (7.5.1.1 and 7.5.1.2).
pub mod offset {
    /// Vendor ID, 16 bits.
    pub const VENDOR: u16 = 0x00;
    /// Device ID, 16 bits.
    pub const DEVICE: u16 = 0x02;
    /// Command, 16 bits.
    pub const COMMAND: u16 = 0x04;
    /// Status, 16 bits.
    pub const STATUS: u16 = 0x06;
    /// Revision ID, 8 bits.
    pub const REVISION: u16 = 0x08;
    /// Class code: interface, sub-class and base class, a byte each.
    pub const CLASS: u16 = 0x09;
    /// Cache line size, 8 bits.
    pub const CACHE_LINE: u16 = 0x0c;
    /// Header type, 8 bits.
    pub const HEADER_TYPE: u16 = 0x0e;
    /// The first of six base address registers, 32 bits each.
    pub const BAR0: u16 = 0x10;
    /// Subsystem vendor ID, 16 bits.
    pub const SUBSYSTEM_VENDOR: u16 = 0x2c;
    /// Subsystem ID, 16 bits.
    pub const SUBSYSTEM: u16 = 0x2e;
    /// Capabilities pointer, 8 bits.
    pub const CAPABILITIES: u16 = 0x34;
    /// Interrupt line, 8 bits.
    pub const INTERRUPT_LINE: u16 = 0x3c;
    /// Interrupt pin, 8 bits.
    pub const INTERRUPT_PIN: u16 = 0x3d;
}

/// Capability ids in the first 256 bytes (PCI Code and ID Assignment Specification, 2).
pub mod capability {
    /// Power management.
    pub const POWER: u8 = 0x01;
    /// PCI Express.
    pub const EXPRESS: u8 = 0x10;
    /// MSI-X.
    pub const MSIX: u8 = 0x11;
}

/// Extended capability ids (PCI Code and ID Assignment Specification, 3).
pub mod extended {
    /// Device serial number.
    pub const SERIAL_NUMBER: u16 = 0x0003;
    /// Address translation services.
    pub const ATS: u16 = 0x000f;
    /// Page request interface.
    pub const PRI: u16 = 0x0013;
    /// Process address space ID.
    pub const PASID: u16 = 0x001b;
}
