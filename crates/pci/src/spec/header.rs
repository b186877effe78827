//! Command and status of the common header (7.5.1.1).

use bitfield_struct::bitfield;

/// A 24-bit class code (7.5.1.1.6).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ClassCode {
    /// Base class.
    pub base: u8,
    /// Sub-class.
    pub sub: u8,
    /// Programming interface.
    pub interface: u8,
}

impl ClassCode {
    /// Host bridge: what Linux never moves to another address.
    pub const HOST_BRIDGE: Self = Self { base: 0x06, sub: 0x00, interface: 0x00 };
    /// Base system peripheral, other.
    pub const SYSTEM_PERIPHERAL: Self = Self { base: 0x08, sub: 0x80, interface: 0x00 };
}

/// Command (7.5.1.1.3).
#[bitfield(u16)]
#[derive(PartialEq, Eq)]
pub struct Command {
    /// Decodes its I/O BARs.
    pub io_space: bool,
    /// Decodes its memory BARs.
    pub memory_space: bool,
    /// May issue memory requests, interrupts included.
    pub bus_master: bool,
    #[bits(3)]
    __: u8,
    /// Reports poisoned requests.
    pub parity_error_response: bool,
    #[bits(1)]
    __: u8,
    /// Reports errors to the root complex.
    pub serr: bool,
    #[bits(1)]
    __: u8,
    /// May not assert INTx.
    pub interrupt_disable: bool,
    #[bits(5)]
    __: u8,
}

/// Status (7.5.1.1.4).
#[bitfield(u16)]
#[derive(PartialEq, Eq)]
pub struct Status {
    /// Can be ready without delay after a reset.
    pub immediate_readiness: bool,
    #[bits(2)]
    __: u8,
    /// INTx is pending.
    pub interrupt: bool,
    /// There is a capability list.
    pub capabilities: bool,
    #[bits(3)]
    __: u8,
    /// A poisoned completion was received.
    pub master_data_parity_error: bool,
    #[bits(2)]
    __: u8,
    /// Completed a request with Completer Abort.
    pub signaled_target_abort: bool,
    /// A request of this function ended in Completer Abort.
    pub received_target_abort: bool,
    /// A request of this function ended in Unsupported Request.
    pub received_master_abort: bool,
    /// Sent an error message.
    pub signaled_system_error: bool,
    /// Received a poisoned request.
    pub detected_parity_error: bool,
}
