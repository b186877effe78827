//! One register of configuration space, as data: what reads, writes, resets and tests go by.

/// A register and what a write may do to it. Bits in none of the masks are read-only.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Register {
    /// Its name in the specification.
    pub name: &'static str,
    /// Offset in configuration space.
    pub offset: u16,
    /// Width in bytes: 1, 2 or 4.
    pub width: u8,
    /// Value after reset.
    pub reset: u32,
    /// Bits that a write stores.
    pub writable: u32,
    /// Bits that writing 1 clears.
    pub write_one_clears: u32,
    /// Bits that writing 1 acts on; they always read as 0.
    pub action: u32,
}

impl Register {
    /// A register of `width` bytes that no write changes.
    pub(crate) const fn fixed(name: &'static str, offset: u16, width: u8, reset: u32) -> Self {
        Self { name, offset, width, reset, writable: 0, write_one_clears: 0, action: 0 }
    }

    /// The same with these bits writable.
    pub(crate) const fn writable(self, mask: u32) -> Self {
        Self { writable: mask, ..self }
    }

    /// The same with these bits cleared by writing 1.
    pub(crate) const fn write_one_clears(self, mask: u32) -> Self {
        Self { write_one_clears: mask, ..self }
    }

    /// The same with these bits acting when written as 1.
    pub(crate) const fn action(self, mask: u32) -> Self {
        Self { action: mask, ..self }
    }
}
