//! The PCI Express capability, version 2 (7.5.3).

use bitfield_struct::bitfield;

/// PCI Express capabilities (7.5.3.2).
#[bitfield(u16)]
#[derive(PartialEq, Eq)]
pub struct ExpressCapabilities {
    /// Version of this structure; 2.
    #[bits(4)]
    pub version: u8,
    /// Kind of port or function.
    #[bits(4)]
    pub port_type: u8,
    #[bits(1)]
    __: u8,
    /// Vector of its own events.
    #[bits(5)]
    pub interrupt_message: u8,
    #[bits(2)]
    __: u8,
}

impl ExpressCapabilities {
    /// `port_type` of an endpoint integrated into the root complex.
    pub const INTEGRATED_ENDPOINT: u8 = 9;
}

/// Device capabilities (7.5.3.3).
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct DeviceCapabilities {
    /// Largest payload, 128 bytes shifted left by this.
    #[bits(3)]
    pub max_payload: u8,
    #[bits(2)]
    __: u8,
    /// Tags of 8 bits.
    pub extended_tag: bool,
    #[bits(9)]
    __: u16,
    /// Role-based error reporting.
    pub role_based_errors: bool,
    #[bits(12)]
    __: u16,
    /// Function-level reset.
    pub function_reset: bool,
    #[bits(3)]
    __: u8,
}

/// Device control (7.5.3.4).
#[bitfield(u16)]
#[derive(PartialEq, Eq)]
pub struct DeviceControl {
    /// Which errors are reported: correctable, non-fatal, fatal, unsupported request.
    #[bits(4)]
    pub error_reporting: u8,
    /// May set the relaxed ordering attribute.
    pub relaxed_ordering: bool,
    /// Largest payload to use, 128 bytes shifted left by this.
    #[bits(3)]
    pub max_payload: u8,
    /// May use 8-bit tags.
    pub extended_tag: bool,
    #[bits(2)]
    __: u8,
    /// May set the no-snoop attribute.
    pub no_snoop: bool,
    /// Largest read request, 128 bytes shifted left by this.
    #[bits(3)]
    pub max_read_request: u8,
    /// Starts a function-level reset; always reads as zero.
    pub function_reset: bool,
}

/// Device status (7.5.3.5).
#[bitfield(u16)]
#[derive(PartialEq, Eq)]
pub struct DeviceStatus {
    /// Errors seen: correctable, non-fatal, fatal, unsupported request.
    #[bits(4)]
    pub errors: u8,
    #[bits(1)]
    __: u8,
    /// Requests of this function are not completed yet.
    pub transactions_pending: bool,
    #[bits(10)]
    __: u16,
}

/// Device capabilities 2 (7.5.3.15).
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct DeviceCapabilities2 {
    #[bits(4)]
    __: u8,
    /// Completion timeouts can be turned off.
    pub timeout_disable: bool,
    #[bits(6)]
    __: u8,
    /// Latency tolerance reporting.
    pub latency_tolerance: bool,
    #[bits(4)]
    __: u8,
    /// Completes requests with 10-bit tags.
    pub tag10_completer: bool,
    /// Can issue requests with 10-bit tags.
    pub tag10_requester: bool,
    #[bits(2)]
    __: u8,
    /// The format field has three bits.
    pub extended_format: bool,
    /// End-to-end TLP prefixes, which carry PASIDs.
    pub end_to_end_prefix: bool,
    /// How many such prefixes; 0 stands for 4.
    #[bits(2)]
    pub max_prefixes: u8,
    #[bits(4)]
    __: u8,
    /// Completes deferrable memory writes.
    pub deferrable_write_completer: bool,
    #[bits(3)]
    __: u8,
}

/// Device control 2 (7.5.3.16).
#[bitfield(u16)]
#[derive(PartialEq, Eq)]
pub struct DeviceControl2 {
    #[bits(4)]
    __: u8,
    /// Completion timeouts are off.
    pub timeout_disable: bool,
    #[bits(5)]
    __: u8,
    /// Reports its latency tolerance.
    pub latency_tolerance: bool,
    #[bits(1)]
    __: u8,
    /// May issue requests with 10-bit tags.
    pub tag10_requester: bool,
    #[bits(3)]
    __: u8,
}
