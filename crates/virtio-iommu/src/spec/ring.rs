//! Split virtqueues (2.7): a table of descriptors, the available ring and the used ring.

use bitfield_struct::bitfield;
use mem::Gpa;
use zerocopy::byteorder::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// The most entries that a queue has here (the specification's limit is 32768).
pub const MAX_QUEUE_SIZE: u16 = 64;

/// Bytes of a descriptor.
pub const DESCRIPTOR_SIZE: u64 = size_of::<Descriptor>() as u64;

/// Bytes of an entry of the used ring.
pub const USED_ELEMENT_SIZE: u64 = size_of::<UsedElement>() as u64;

/// Bytes of either ring before its entries: flags and index.
const RING_HEADER: u64 = 4;

/// Flags of a descriptor (2.7.5).
#[bitfield(u16)]
#[derive(PartialEq, Eq)]
pub struct DescriptorFlags {
    /// NEXT: the chain goes on.
    pub next: bool,
    /// WRITE: the buffer is for the device to write; otherwise for it to read.
    pub write: bool,
    /// INDIRECT: the buffer is a table of descriptors.
    pub indirect: bool,
    #[bits(13)]
    __: u16,
}

/// A descriptor: one buffer of a chain (2.7.5).
#[derive(
    FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy, PartialEq, Eq, Debug,
)]
#[repr(C)]
pub struct Descriptor {
    /// Where the buffer begins, a guest physical address.
    pub address: U64,
    /// Its bytes.
    pub len: U32,
    flags: U16,
    /// The next descriptor of the chain, with NEXT.
    pub next: U16,
}

impl Descriptor {
    /// The descriptor of a buffer, followed by `next` if there is one.
    pub fn new(address: Gpa, len: u32, write: bool, next: Option<u16>) -> Self {
        let flags = DescriptorFlags::new().with_write(write).with_next(next.is_some());
        Self {
            address: address.0.into(),
            len: len.into(),
            flags: flags.into_bits().into(),
            next: next.unwrap_or(0).into(),
        }
    }

    /// Its flags.
    pub fn flags(&self) -> DescriptorFlags {
        DescriptorFlags::from_bits(self.flags.get())
    }

    /// The same with other flags.
    pub fn with_flags(self, flags: DescriptorFlags) -> Self {
        Self { flags: flags.into_bits().into(), ..self }
    }
}

/// An entry of the used ring (2.7.8).
#[derive(
    FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy, PartialEq, Eq, Debug,
)]
#[repr(C)]
pub struct UsedElement {
    /// The first descriptor of the chain that is over.
    pub id: U32,
    /// Bytes that the device wrote, from the first device-written one on.
    pub len: U32,
}

/// The available ring (2.7.6): flags, index, entries.
pub mod available {
    use super::RING_HEADER;

    /// Flag: the driver wants no interrupt.
    pub const NO_INTERRUPT: u16 = 1;
    /// Offset of the flags.
    pub const FLAGS: u64 = 0;
    /// Offset of the index: how many entries were ever made available, modulo 2^16.
    pub const INDEX: u64 = 2;

    /// Offset of the entry for the `index`-th chain in a ring of `size`.
    pub const fn entry(index: u16, size: u16) -> u64 {
        RING_HEADER + 2 * (index % size) as u64
    }
}

/// The used ring (2.7.8): flags, index, entries.
pub mod used {
    use super::{RING_HEADER, USED_ELEMENT_SIZE};

    /// Flag: the device wants no notification.
    pub const NO_NOTIFY: u16 = 1;
    /// Offset of the flags.
    pub const FLAGS: u64 = 0;
    /// Offset of the index: how many chains were ever used, modulo 2^16.
    pub const INDEX: u64 = 2;

    /// Offset of the entry for the `index`-th used chain in a ring of `size`.
    pub const fn entry(index: u16, size: u16) -> u64 {
        RING_HEADER + USED_ELEMENT_SIZE * (index % size) as u64
    }
}

/// Where a queue is: what a driver tells a device through the transport.
///
/// The fields are the driver's word; [`checked`](Self::checked) is the door.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct QueueLayout {
    /// Number of entries.
    pub size: u16,
    /// The descriptors.
    pub descriptors: Gpa,
    /// The available ring.
    pub available: Gpa,
    /// The used ring.
    pub used: Gpa,
}

/// Why a queue cannot be there. The driver's mistake.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum QueueLayoutError {
    /// The size is no power of two from 1 to [`MAX_QUEUE_SIZE`].
    #[error("a queue of {0} entries")]
    BadSize(u16),
    /// A part is not aligned as 2.7 asks (16, 2 and 4 bytes).
    #[error("a part of a queue is misaligned at {0}")]
    Misaligned(Gpa),
    /// A part would pass the end of the address space.
    #[error("a part of a queue wraps around from {0}")]
    Wraps(Gpa),
}

impl QueueLayout {
    /// A queue of `size` entries from `base` on, its parts one behind the other (2.7.2); aligned
    /// if `base` is aligned to 16 bytes. `None` if it would pass the end of the address space.
    pub fn contiguous(base: Gpa, size: u16) -> Option<Self> {
        let available = base.checked_add(DESCRIPTOR_SIZE * u64::from(size))?;
        let used = available.checked_add(available_size(size))?;
        let used = Gpa(used.0.checked_next_multiple_of(4)?);
        used.checked_add(used_size(size))?;
        Some(Self { size, descriptors: base, available, used })
    }

    /// Bytes that [`contiguous`](Self::contiguous) takes.
    pub const fn contiguous_size(size: u16) -> u64 {
        let rings = available_size(size).next_multiple_of(4);
        DESCRIPTOR_SIZE * size as u64 + rings + used_size(size)
    }

    /// This queue, if every one of its bytes has an address and its parts are aligned.
    ///
    /// # Errors
    ///
    /// See [`QueueLayoutError`].
    pub fn checked(self) -> Result<Self, QueueLayoutError> {
        if !self.size.is_power_of_two() || self.size > MAX_QUEUE_SIZE {
            return Err(QueueLayoutError::BadSize(self.size));
        }
        let parts = [
            (self.descriptors, 4, DESCRIPTOR_SIZE * u64::from(self.size)),
            (self.available, 1, available_size(self.size)),
            (self.used, 2, used_size(self.size)),
        ];
        for (at, alignment, bytes) in parts {
            if !at.is_aligned(alignment) {
                return Err(QueueLayoutError::Misaligned(at));
            }
            at.checked_add(bytes).ok_or(QueueLayoutError::Wraps(at))?;
        }
        Ok(self)
    }
}

/// Bytes of the available ring.
const fn available_size(size: u16) -> u64 {
    RING_HEADER + 2 * size as u64
}

/// Bytes of the used ring.
pub(crate) const fn used_size(size: u16) -> u64 {
    RING_HEADER + USED_ELEMENT_SIZE * size as u64
}
