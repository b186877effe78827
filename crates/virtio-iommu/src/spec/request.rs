//! Requests and their answers (5.13.6.1), with those of the extension.
//!
//! A request is a head and its fields, which the device reads; its answer is fields and a tail,
//! which the device writes. The tail is always last, so the status of a request whose type nobody
//! knows has a place, too.
//!
//! | request | read | written |
//! |---|---|---|
//! | PROBE | head, endpoint @4, 64 reserved | properties, tail |
//! | allocate a PASID (ours) | head, first @4, last @8, reserved @12 | PASID @0, tail |
//! | free a PASID (ours) | head, PASID @4, reserved @8 | tail |

use zerocopy::byteorder::little_endian::U32;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::Numbers;

/// Bytes of a tail: the status and three reserved.
pub const TAIL_SIZE: usize = 4;

/// Reserved bytes behind the endpoint of PROBE (5.13.6.7).
pub const ENDPOINT_RESERVED_SIZE: usize = 64;

/// The most bytes that a request known here has for the device to read.
pub const MAX_REQUEST_SIZE: usize = size_of::<ProbeRequest>();

/// The request types of the specification. MAP and its like are known by name only: a device
/// without MAP_UNMAP has none of them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum RequestType {
    /// Attaches an endpoint to a domain.
    Attach = 1,
    /// Detaches it.
    Detach = 2,
    /// Makes a mapping in a domain.
    Map = 3,
    /// Removes mappings.
    Unmap = 4,
    /// Asks for an endpoint's properties.
    Probe = 5,
}

/// Status of a request that is over (5.13.6.1).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, thiserror::Error)]
#[repr(u8)]
pub enum RequestStatus {
    /// OK.
    #[error("done")]
    Ok = 0,
    /// IOERR: it could not be done.
    #[error("virtio error")]
    IoError = 1,
    /// UNSUPP: there is no such request here.
    #[error("unsupported request")]
    Unsupported = 2,
    /// DEVERR: the device is in trouble.
    #[error("internal device error")]
    DeviceError = 3,
    /// INVAL: a parameter makes no sense.
    #[error("invalid parameter")]
    Invalid = 4,
    /// RANGE: a parameter is out of range.
    #[error("out-of-range parameter")]
    Range = 5,
    /// NOENT: nothing is there by that name.
    #[error("entry not found")]
    NotFound = 6,
    /// FAULT: a bad address.
    #[error("bad address")]
    Fault = 7,
    /// NOMEM: a limit is reached.
    #[error("insufficient resources")]
    NoMemory = 8,
}

impl RequestStatus {
    /// The status of this number, or `None` if there is none.
    pub const fn from_number(number: u8) -> Option<Self> {
        Some(match number {
            0 => Self::Ok,
            1 => Self::IoError,
            2 => Self::Unsupported,
            3 => Self::DeviceError,
            4 => Self::Invalid,
            5 => Self::Range,
            6 => Self::NotFound,
            7 => Self::Fault,
            8 => Self::NoMemory,
            _ => return None,
        })
    }
}

/// What begins every request.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy)]
#[repr(C)]
struct Head {
    kind: u8,
    /// Ignored by the device.
    reserved: [u8; 3],
}

impl Head {
    const fn new(kind: u8) -> Self {
        Self { kind, reserved: [0; 3] }
    }
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct ProbeRequest {
    head: Head,
    endpoint: U32,
    /// Ignored by the device.
    reserved: [u8; ENDPOINT_RESERVED_SIZE],
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct AllocRequest {
    head: Head,
    first: U32,
    last: U32,
    /// Zero, or the device refuses.
    reserved: U32,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct FreeRequest {
    head: Head,
    pasid: U32,
    /// Zero, or the device refuses.
    reserved: U32,
}

/// A request, decoded. Numbers are as the driver wrote them: whether they are PASIDs or name
/// anything is for the device to find out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Request {
    /// Asks for the properties of an endpoint.
    Probe {
        /// Its number.
        endpoint: u32,
    },
    /// Asks for a PASID from a closed range.
    AllocPasid {
        /// The lowest that will do.
        first: u32,
        /// The highest.
        last: u32,
    },
    /// Gives a PASID back.
    FreePasid {
        /// Which.
        pasid: u32,
    },
}

/// Why bytes are no request. The driver's mistake.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum DecodeError {
    /// The type is unknown, or of a feature that was not negotiated.
    #[error("unsupported request type {0:#x}")]
    Unsupported(u8),
    /// There are `read` bytes to read or `written` bytes to write, which the type does not have.
    #[error("a request of type {kind:#x} does not have {read} and {written} bytes")]
    BadSize {
        /// The type.
        kind: u8,
        /// Bytes that the device reads.
        read: usize,
        /// Bytes that the device writes, tail included.
        written: usize,
    },
    /// There is not even a head.
    #[error("{0} bytes are no request")]
    NoHead(usize),
    /// A reserved field is not zero.
    #[error("a reserved field of a request of type {0:#x} is not zero")]
    Reserved(u8),
}

impl DecodeError {
    /// The status that says so.
    pub const fn status(self) -> RequestStatus {
        match self {
            Self::Unsupported(_) => RequestStatus::Unsupported,
            Self::BadSize { .. } | Self::NoHead(_) | Self::Reserved(_) => RequestStatus::Invalid,
        }
    }
}

/// The device-written part of a request, without its tail.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Reply {
    /// Of PROBE: no properties (a property of type zero ends the list).
    NoProperties,
    /// The PASID that was allocated.
    Pasid(u32),
    /// Nothing.
    Empty,
}

impl Reply {
    /// Puts it into `body`, which is zeroed and has the size that its request was decoded with.
    pub fn encode(self, body: &mut [u8]) {
        if let Self::Pasid(pasid) = self {
            // A body of another size belongs to another request: then nothing is said.
            let _ = U32::new(pasid).write_to(body);
        }
    }
}

impl Request {
    /// Its type, with the numbers of the extension's revision.
    pub const fn kind(&self, numbers: &Numbers) -> u8 {
        match self {
            Self::Probe { .. } => RequestType::Probe as u8,
            Self::AllocPasid { .. } => numbers.alloc_pasid,
            Self::FreePasid { .. } => numbers.free_pasid,
        }
    }

    /// Writes it to the front of `buffer`; how many bytes that took. The rest is as it was.
    pub fn encode(&self, numbers: &Numbers, buffer: &mut [u8; MAX_REQUEST_SIZE]) -> usize {
        let head = Head::new(self.kind(numbers));
        match *self {
            Self::Probe { endpoint } => {
                let reserved = [0; ENDPOINT_RESERVED_SIZE];
                put(buffer, &ProbeRequest { head, endpoint: endpoint.into(), reserved })
            }
            Self::AllocPasid { first, last } => {
                let (first, last) = (first.into(), last.into());
                put(buffer, &AllocRequest { head, first, last, reserved: U32::ZERO })
            }
            Self::FreePasid { pasid } => {
                put(buffer, &FreeRequest { head, pasid: pasid.into(), reserved: U32::ZERO })
            }
        }
    }

    /// Bytes that the device writes before the tail, where PROBE gives up to `probe_size`.
    pub const fn body_size(&self, probe_size: usize) -> usize {
        match self {
            Self::Probe { .. } => probe_size,
            Self::AllocPasid { .. } => size_of::<U32>(),
            Self::FreePasid { .. } => 0,
        }
    }

    /// Decodes what the device reads. Whoever has more than [`MAX_REQUEST_SIZE`] bytes may give
    /// any longer part of them: no request is that long. `written` are the bytes that the device
    /// may write, tail included; `numbers` are those of the negotiated revision, if there is one.
    ///
    /// # Errors
    ///
    /// See [`DecodeError`], each with the status to answer.
    pub fn decode(
        bytes: &[u8],
        written: usize,
        probe_size: Option<usize>,
        numbers: Option<&Numbers>,
    ) -> Result<Self, DecodeError> {
        let (head, _) =
            Head::read_from_prefix(bytes).map_err(|_| DecodeError::NoHead(bytes.len()))?;
        let kind = head.kind;
        let bad_size = DecodeError::BadSize { kind, read: bytes.len(), written };
        let request = match (probe_size, numbers) {
            (Some(_), _) if kind == RequestType::Probe as u8 => {
                let probe = ProbeRequest::read_from_bytes(bytes).map_err(|_| bad_size)?;
                Self::Probe { endpoint: probe.endpoint.get() }
            }
            (_, Some(numbers)) if kind == numbers.alloc_pasid => {
                let alloc = AllocRequest::read_from_bytes(bytes).map_err(|_| bad_size)?;
                reserved_is_zero(alloc.reserved, kind)?;
                Self::AllocPasid { first: alloc.first.get(), last: alloc.last.get() }
            }
            (_, Some(numbers)) if kind == numbers.free_pasid => {
                let free = FreeRequest::read_from_bytes(bytes).map_err(|_| bad_size)?;
                reserved_is_zero(free.reserved, kind)?;
                Self::FreePasid { pasid: free.pasid.get() }
            }
            _ => return Err(DecodeError::Unsupported(kind)),
        };
        if written != request.body_size(probe_size.unwrap_or(0)) + TAIL_SIZE {
            return Err(bad_size);
        }
        Ok(request)
    }
}

fn reserved_is_zero(field: U32, kind: u8) -> Result<(), DecodeError> {
    if field == U32::ZERO {
        Ok(())
    } else {
        Err(DecodeError::Reserved(kind))
    }
}

fn put<T: IntoBytes + Immutable>(buffer: &mut [u8; MAX_REQUEST_SIZE], request: &T) -> usize {
    // No layout is longer than the buffer, by the definition of its size.
    let _ = request.write_to_prefix(buffer);
    size_of::<T>()
}

/// What a device-written part says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Answer {
    /// The status as it stands there; not every number is a [`RequestStatus`].
    pub status: u8,
    /// The first four bytes before the tail: the PASID of an allocation. Zero if there are none.
    pub word: u32,
}

impl Answer {
    /// Reads a device-written part, tail included; `None` if it has no room for a tail.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let (body, tail) = bytes.split_last_chunk::<TAIL_SIZE>()?;
        let word = U32::read_from_prefix(body).map_or(0, |(word, _)| word.get());
        Some(Self { status: tail[0], word })
    }
}

const _: () = assert!(
    size_of::<AllocRequest>() <= MAX_REQUEST_SIZE && size_of::<FreeRequest>() <= MAX_REQUEST_SIZE
);
