//! The power management capability (7.5.2).

use bitfield_struct::bitfield;

/// Power management capabilities, PMC (7.5.2.1).
#[bitfield(u16)]
#[derive(PartialEq, Eq)]
pub struct PowerCapabilities {
    /// Version of the interface; 3.
    #[bits(3)]
    pub version: u8,
    #[bits(6)]
    __: u8,
    /// D1 is supported.
    pub d1: bool,
    /// D2 is supported.
    pub d2: bool,
    /// States in which PME# can be sent.
    #[bits(5)]
    pub pme: u8,
}

/// Power management control and status, PMCSR (7.5.2.2).
#[bitfield(u16)]
#[derive(PartialEq, Eq)]
pub struct PowerControl {
    /// D0 to D3hot.
    #[bits(2)]
    pub state: u8,
    #[bits(1)]
    __: u8,
    /// Going from D3hot to D0 keeps the function's state.
    pub no_soft_reset: bool,
    #[bits(12)]
    __: u16,
}
