//! The protocol's layouts: the header of every message and the fixed part of every payload.
//!
//! A message goes between two processes of one machine, so its numbers have the machine's own byte
//! order. The layouts are those of the vfio-user specification 0.1; where QEMU 11.1 differs from its
//! text, the field says so.

use bitfield_struct::bitfield;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Bytes of a header.
pub(crate) const HEADER_SIZE: usize = size_of::<Header>();

/// What begins every message, in both directions.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub(crate) struct Header {
    /// Chosen by whoever sends a request, repeated in its reply.
    pub(crate) id: u16,
    /// A [`Command`].
    pub(crate) command: u16,
    /// Bytes of the whole message, this header included.
    pub(crate) size: u32,
    /// [`Flags`].
    pub(crate) flags: u32,
    /// An errno in a reply with the error flag.
    pub(crate) error: u32,
}

/// Flags of a header.
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub(crate) struct Flags {
    /// [`REQUEST`] or [`REPLY`].
    #[bits(4)]
    pub(crate) kind: u8,
    /// A request that wants no reply.
    pub(crate) no_reply: bool,
    /// A reply that says why the request failed.
    pub(crate) error: bool,
    #[bits(26)]
    __: u32,
}

/// [`Flags::kind`] of a request.
pub(crate) const REQUEST: u8 = 0;
/// [`Flags::kind`] of a reply.
pub(crate) const REPLY: u8 = 1;

/// The commands that are known here; what else a peer may send is answered with an error.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(u16)]
pub enum Command {
    /// Agrees on a version and on limits.
    Version = 1,
    /// Makes a range of guest memory accessible.
    DmaMap = 2,
    /// Withdraws it.
    DmaUnmap = 3,
    /// Asks how many regions and interrupt kinds there are.
    DeviceGetInfo = 4,
    /// Asks for a region's size.
    DeviceGetRegionInfo = 5,
    /// Asks for the number of interrupts of a kind.
    DeviceGetIrqInfo = 7,
    /// Binds, unbinds, masks or triggers interrupts.
    DeviceSetIrqs = 8,
    /// Reads a region.
    RegionRead = 9,
    /// Writes a region.
    RegionWrite = 10,
    /// Reads guest memory; from server to client.
    DmaRead = 11,
    /// Writes guest memory; from server to client.
    DmaWrite = 12,
    /// Resets the function.
    DeviceReset = 13,
    /// Several writes of up to 8 bytes.
    RegionWriteMulti = 15,
}

impl Command {
    pub(crate) const fn from_wire(number: u16) -> Option<Self> {
        Some(match number {
            1 => Self::Version,
            2 => Self::DmaMap,
            3 => Self::DmaUnmap,
            4 => Self::DeviceGetInfo,
            5 => Self::DeviceGetRegionInfo,
            7 => Self::DeviceGetIrqInfo,
            8 => Self::DeviceSetIrqs,
            9 => Self::RegionRead,
            10 => Self::RegionWrite,
            11 => Self::DmaRead,
            12 => Self::DmaWrite,
            13 => Self::DeviceReset,
            15 => Self::RegionWriteMulti,
            _ => return None,
        })
    }
}

/// Begins the payload of [`Command::Version`]; a JSON object that ends in NUL may follow.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Clone, Copy, Debug)]
#[repr(C)]
pub(crate) struct Version {
    pub(crate) major: u16,
    pub(crate) minor: u16,
}

/// Payload of [`Command::DmaMap`]; the memory's descriptor, if it has one, comes beside it.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Clone, Copy, Debug)]
#[repr(C)]
pub(crate) struct DmaMapPayload {
    pub(crate) argsz: u32,
    pub(crate) flags: u32,
    /// Into the file of the descriptor.
    pub(crate) offset: u64,
    pub(crate) address: u64,
    pub(crate) size: u64,
}

/// Payload of [`Command::DmaUnmap`] and of its reply.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Clone, Copy, Debug)]
#[repr(C)]
pub(crate) struct DmaUnmapPayload {
    pub(crate) argsz: u32,
    pub(crate) flags: u32,
    pub(crate) address: u64,
    pub(crate) size: u64,
}

/// Payload of [`Command::DeviceGetInfo`] and of its reply.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Clone, Copy, Debug)]
#[repr(C)]
pub(crate) struct DeviceInfo {
    pub(crate) argsz: u32,
    pub(crate) flags: u32,
    pub(crate) regions: u32,
    pub(crate) irqs: u32,
}

/// Payload of [`Command::DeviceGetRegionInfo`] and of its reply.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Clone, Copy, Debug)]
#[repr(C)]
pub(crate) struct RegionInfo {
    pub(crate) argsz: u32,
    pub(crate) flags: u32,
    pub(crate) index: u32,
    pub(crate) cap_offset: u32,
    pub(crate) size: u64,
    pub(crate) offset: u64,
}

/// Payload of [`Command::DeviceGetIrqInfo`] and of its reply.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Clone, Copy, Debug)]
#[repr(C)]
pub(crate) struct IrqInfo {
    pub(crate) argsz: u32,
    pub(crate) flags: u32,
    pub(crate) index: u32,
    pub(crate) count: u32,
}

/// Begins the payload of [`Command::DeviceSetIrqs`]; a byte per interrupt may follow, and
/// descriptors may come beside it.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Clone, Copy, Debug)]
#[repr(C)]
pub(crate) struct IrqSet {
    pub(crate) argsz: u32,
    pub(crate) flags: u32,
    pub(crate) index: u32,
    pub(crate) start: u32,
    pub(crate) count: u32,
}

/// Begins the payload of [`Command::RegionRead`] and [`Command::RegionWrite`] and of their
/// replies; the data follow in a write and in the reply to a read.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Clone, Copy, Debug)]
#[repr(C)]
pub(crate) struct RegionAccess {
    pub(crate) offset: u64,
    pub(crate) region: u32,
    pub(crate) count: u32,
}

/// One of the writes of [`Command::RegionWriteMulti`], whose payload begins with their number as a
/// quad word.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Clone, Copy, Debug)]
#[repr(C)]
pub(crate) struct SmallWrite {
    pub(crate) access: RegionAccess,
    pub(crate) data: [u8; 8],
}

/// Begins the payload of [`Command::DmaRead`] and [`Command::DmaWrite`] and of the reply to a read;
/// the data follow in a write and in the reply to a read. QEMU 11.1 replies to a write without a
/// payload.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub(crate) struct DmaAccess {
    pub(crate) address: u64,
    pub(crate) count: u64,
}
