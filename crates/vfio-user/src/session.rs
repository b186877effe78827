//! One connection: what each message of a client means.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use mem::{Gpa, Range};
use pci::Function;
use rustix::io::Errno;
use vfio_bindings::bindings::vfio::{
    VFIO_DEVICE_FLAGS_PCI, VFIO_DEVICE_FLAGS_RESET, VFIO_DMA_MAP_FLAG_READ,
    VFIO_DMA_MAP_FLAG_WRITE, VFIO_DMA_UNMAP_FLAG_ALL, VFIO_PCI_NUM_IRQS, VFIO_PCI_NUM_REGIONS,
};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::connection::{Connection, Link};
use crate::error::{Consequence, Disconnect, DmaRefusal, ProtocolError};
use crate::irqs::{self, Irqs};
use crate::platform::{DmaMap, Platform, UnmapRange};
use crate::regions;
use crate::stats::Stats;
use crate::stream::{receive, Message};
use crate::version::{negotiate, reply_data, Agreement, MAJOR, MINOR};
use crate::wire::{
    Command, DeviceInfo, DmaMapPayload, DmaUnmapPayload, Flags, Header, Version, REPLY, REQUEST,
};

/// Why a request got no good reply.
pub(crate) enum Failure {
    Protocol(ProtocolError),
    Refused(DmaRefusal),
}

impl From<ProtocolError> for Failure {
    fn from(error: ProtocolError) -> Self {
        Self::Protocol(error)
    }
}

/// The reading side of a connection.
pub(crate) struct Session<'a> {
    pub(crate) link: &'a Arc<Link>,
    pub(crate) function: &'a dyn Function,
    pub(crate) platform: &'a dyn Platform,
    pub(crate) stats: &'a Stats,
    pub(crate) irqs: &'a Irqs,
    pub(crate) agreement: Option<Agreement>,
    /// The platform was told of this connection.
    pub(crate) connected: bool,
    /// Payload of the reply being made; the buffer is used again.
    pub(crate) reply: Vec<u8>,
}

impl Session<'_> {
    /// Handles messages until the connection ends.
    pub(crate) fn serve(&mut self) -> Disconnect {
        let mut buffer = Vec::new();
        loop {
            let handled = receive(self.link.socket().as_fd(), buffer).and_then(|mut message| {
                self.stats.messages.add();
                self.message(&mut message).map(|()| message.payload)
            });
            match handled {
                Ok(payload) => buffer = payload,
                Err(why) => return why,
            }
        }
    }

    fn message(&mut self, message: &mut Message) -> Result<(), Disconnect> {
        let flags = Flags::from_bits(message.header.flags);
        match flags.kind() {
            REQUEST => self.request(message, flags.no_reply()),
            REPLY => self.link.take_reply(message).map_err(Disconnect::Protocol),
            _ => Err(Disconnect::Protocol(ProtocolError::MessageType(message.header.flags))),
        }
    }

    fn request(&mut self, message: &mut Message, no_reply: bool) -> Result<(), Disconnect> {
        let header = message.header;
        self.reply.clear();
        let errno = match self.dispatch(message) {
            Ok(()) => {
                if !no_reply {
                    self.send(|link, reply| link.reply(&header, reply))?;
                }
                if header.command == Command::Version as u16 {
                    self.connected = true;
                    self.platform.connected(Connection::new(self.link.clone()));
                }
                return Ok(());
            }
            Err(Failure::Refused(DmaRefusal { errno })) => {
                self.stats.dma_refusals.add();
                errno
            }
            Err(Failure::Protocol(error)) => match error.consequence() {
                Consequence::Reply(errno) => {
                    self.stats.error(error.kind());
                    errno
                }
                Consequence::ReplyAndEnd(errno) => {
                    self.fail(&header, no_reply, errno)?;
                    return Err(Disconnect::Protocol(error));
                }
                Consequence::End => return Err(Disconnect::Protocol(error)),
            },
        };
        self.fail(&header, no_reply, errno)
    }

    fn fail(&self, header: &Header, no_reply: bool, errno: Errno) -> Result<(), Disconnect> {
        self.stats.failed_requests.add();
        if no_reply {
            return Ok(());
        }
        self.send(|link, _| link.reply_error(header, errno))
    }

    /// Sends; if that fails the connection has ended, and the link knows why.
    fn send<E>(&self, send: impl FnOnce(&Link, &[u8]) -> Result<(), E>) -> Result<(), Disconnect> {
        let closed = |_| self.link.ended().unwrap_or(Disconnect::ClosedByClient);
        send(self.link, &self.reply).map_err(closed)
    }

    fn dispatch(&mut self, message: &mut Message) -> Result<(), Failure> {
        let fds = std::mem::take(&mut message.fds);
        let payload = message.payload.as_slice();
        let number = message.header.command;
        let command = Command::from_wire(number);
        let Some(agreement) = self.agreement else {
            return match command {
                Some(Command::Version) => self.version(payload, &fds),
                _ => Err(ProtocolError::BeforeVersion(number).into()),
            };
        };
        let command = command.ok_or(ProtocolError::UnknownCommand(number))?;
        let takes_fds = matches!(command, Command::DmaMap | Command::DeviceSetIrqs);
        if !takes_fds && !fds.is_empty() {
            return Err(ProtocolError::Descriptors { command, got: fds.len() }.into());
        }
        match command {
            Command::Version => Err(ProtocolError::VersionAgain.into()),
            Command::DmaMap => self.dma_map(payload, fds),
            Command::DmaUnmap => self.dma_unmap(payload),
            Command::DeviceGetInfo => self.device_info(payload),
            Command::DeviceGetRegionInfo => {
                self.reply_with(regions::info(self.function, payload)?);
                Ok(())
            }
            Command::DeviceGetIrqInfo => {
                self.reply_with(irqs::info(self.irqs, payload)?);
                Ok(())
            }
            Command::DeviceSetIrqs => Ok(irqs::set(self.irqs, payload, fds)?),
            Command::RegionRead => {
                self.stats.region_reads.add();
                Ok(regions::read(self.function, payload, &mut self.reply)?)
            }
            Command::RegionWrite => {
                self.stats.region_writes.add();
                Ok(regions::write(self.function, payload, &mut self.reply)?)
            }
            Command::RegionWriteMulti if agreement.write_multiple => {
                self.stats.region_writes.add();
                Ok(regions::write_multi(self.function, payload, &mut self.reply)?)
            }
            Command::DeviceReset => self.reset(payload),
            Command::DmaRead | Command::DmaWrite | Command::RegionWriteMulti => {
                Err(ProtocolError::UnknownCommand(number).into())
            }
        }
    }

    fn reply_with<T: IntoBytes + Immutable>(&mut self, payload: T) {
        self.reply.extend_from_slice(payload.as_bytes());
    }

    fn version(&mut self, payload: &[u8], fds: &[OwnedFd]) -> Result<(), Failure> {
        let Ok((version, data)) = Version::read_from_prefix(payload) else {
            return Err(ProtocolError::VersionData.into());
        };
        if !fds.is_empty() {
            return Err(ProtocolError::VersionData.into());
        }
        let agreement = negotiate(version.major, data)?;
        self.link.set_max_transfer(agreement.max_transfer);
        self.agreement = Some(agreement);
        self.function.set_interrupts(Some(self.irqs.sink()));
        self.reply_with(Version { major: MAJOR, minor: MINOR });
        self.reply.extend_from_slice(&reply_data(agreement));
        Ok(())
    }

    fn device_info(&mut self, payload: &[u8]) -> Result<(), Failure> {
        const SIZE: u32 = size_of::<DeviceInfo>() as u32;
        let request: DeviceInfo = exactly(Command::DeviceGetInfo, payload)?;
        check_argsz(Command::DeviceGetInfo, request.argsz, SIZE)?;
        self.reply_with(DeviceInfo {
            argsz: SIZE,
            flags: VFIO_DEVICE_FLAGS_PCI | VFIO_DEVICE_FLAGS_RESET,
            regions: VFIO_PCI_NUM_REGIONS,
            irqs: VFIO_PCI_NUM_IRQS,
        });
        Ok(())
    }

    fn reset(&self, payload: &[u8]) -> Result<(), Failure> {
        let command = Command::DeviceReset;
        if !payload.is_empty() {
            return Err(ProtocolError::PayloadSize { command, got: payload.len() }.into());
        }
        self.stats.resets.add();
        self.function.reset();
        Ok(())
    }

    fn dma_map(&self, payload: &[u8], fds: Vec<OwnedFd>) -> Result<(), Failure> {
        let command = Command::DmaMap;
        let DmaMapPayload { argsz, flags, offset, address, size } = exactly(command, payload)?;
        check_argsz(command, argsz, size_of::<DmaMapPayload>() as u32)?;
        let known = VFIO_DMA_MAP_FLAG_READ | VFIO_DMA_MAP_FLAG_WRITE;
        if flags & !known != 0 || flags == 0 {
            return Err(ProtocolError::RequestFlags { command, flags }.into());
        }
        let refused = ProtocolError::DmaRange { address, size };
        let range = Range::<Gpa>::new(Gpa(address), size).ok_or(refused)?;
        offset.checked_add(size).ok_or(refused)?;
        if fds.len() > 1 {
            return Err(ProtocolError::Descriptors { command, got: fds.len() }.into());
        }
        let map = DmaMap {
            range,
            fd: fds.into_iter().next(),
            offset,
            readable: flags & VFIO_DMA_MAP_FLAG_READ != 0,
            writable: flags & VFIO_DMA_MAP_FLAG_WRITE != 0,
        };
        self.platform.dma_map(map).map_err(Failure::Refused)?;
        self.stats.dma_maps.add();
        Ok(())
    }

    fn dma_unmap(&mut self, payload: &[u8]) -> Result<(), Failure> {
        let command = Command::DmaUnmap;
        let request: DmaUnmapPayload = exactly(command, payload)?;
        let DmaUnmapPayload { argsz, flags, address, size } = request;
        check_argsz(command, argsz, size_of::<DmaUnmapPayload>() as u32)?;
        let refused = ProtocolError::DmaRange { address, size };
        let range = match flags {
            0 => UnmapRange::Range(Range::<Gpa>::new(Gpa(address), size).ok_or(refused)?),
            VFIO_DMA_UNMAP_FLAG_ALL if address == 0 && size == 0 => UnmapRange::All,
            VFIO_DMA_UNMAP_FLAG_ALL => return Err(refused.into()),
            // Dirty bitmaps among them: there is no migration yet.
            _ => return Err(ProtocolError::RequestFlags { command, flags }.into()),
        };
        self.platform.dma_unmap(range).map_err(Failure::Refused)?;
        self.stats.dma_unmaps.add();
        self.reply_with(request);
        Ok(())
    }
}

/// The payload of a command that has this and nothing else.
pub(crate) fn exactly<T: FromBytes + KnownLayout + Immutable>(
    command: Command,
    payload: &[u8],
) -> Result<T, ProtocolError> {
    let refused = ProtocolError::PayloadSize { command, got: payload.len() };
    T::read_from_bytes(payload).map_err(|_| refused)
}

/// The fixed part of a payload, and what follows it.
pub(crate) fn prefix<T: FromBytes + KnownLayout + Immutable>(
    command: Command,
    payload: &[u8],
) -> Result<(T, &[u8]), ProtocolError> {
    let refused = ProtocolError::PayloadSize { command, got: payload.len() };
    T::read_from_prefix(payload).map_err(|_| refused)
}

/// `argsz` is how much the client says it has room for: no less than the structure.
pub(crate) fn check_argsz(command: Command, argsz: u32, least: u32) -> Result<(), ProtocolError> {
    if argsz < least {
        return Err(ProtocolError::PayloadSize { command, got: argsz as usize });
    }
    Ok(())
}
