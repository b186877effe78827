//! The MSI-X capability and its table (7.7.2).

use bitfield_struct::bitfield;

/// Message control (7.7.2.2).
#[bitfield(u16)]
#[derive(PartialEq, Eq)]
pub struct MsiXControl {
    /// Number of vectors less one.
    #[bits(11)]
    pub table_size: u16,
    #[bits(3)]
    __: u8,
    /// All vectors are masked.
    pub function_mask: bool,
    /// MSI-X is in use.
    pub enable: bool,
}

/// Where the table, or the pending bits, begin (7.7.2.3 and 7.7.2.4).
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct TableOffset {
    /// Index of the BAR.
    #[bits(3)]
    pub bar: u8,
    /// Offset into it, in units of 8 bytes.
    #[bits(29)]
    pub qwords: u32,
}

/// Vector control, the last double word of a table entry (7.7.2.9).
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct VectorControl {
    /// No message is sent for this vector.
    pub mask: bool,
    #[bits(31)]
    __: u32,
}
