//! Who a transaction comes from.

use core::fmt;

/// A PCI requester ID: bus, device and function of the function that issues a request.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequesterId(u16);

impl RequesterId {
    /// The requester at `bus`:`device`.`function`; `None` if `device` exceeds 31 or `function` 7.
    pub const fn new(bus: u8, device: u8, function: u8) -> Option<Self> {
        if device > 31 || function > 7 {
            return None;
        }
        Some(Self((bus as u16) << 8 | (device as u16) << 3 | function as u16))
    }

    /// The requester with this 16-bit number, as tables and descriptors hold it.
    pub const fn from_bits(bits: u16) -> Self {
        Self(bits)
    }

    /// The 16-bit number: bus in 15:8, device in 7:3, function in 2:0.
    pub const fn bits(self) -> u16 {
        self.0
    }

    /// Bus number.
    pub const fn bus(self) -> u8 {
        (self.0 >> 8) as u8
    }

    /// Device and function as one byte.
    pub const fn devfn(self) -> u8 {
        self.0 as u8
    }

    /// Device number on its bus.
    pub const fn device(self) -> u8 {
        self.devfn() >> 3
    }

    /// Function number in its device.
    pub const fn function(self) -> u8 {
        self.devfn() & 7
    }
}

impl fmt::Display for RequesterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:02x}:{:02x}.{}", self.bus(), self.device(), self.function())
    }
}

impl fmt::Debug for RequesterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RequesterId({self})")
    }
}
