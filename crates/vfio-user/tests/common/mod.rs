//! A register file as a function, a platform that records, and a client that writes raw bytes.
#![allow(dead_code)] // each test program uses a part

use std::io::{IoSlice, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use pci::spec::ClassCode;
use pci::{
    Bar, BarKind, BarOffset, ConfigSpace, ExpressCapability, Function, Header, InterruptSink,
    MsiXCapability, SerialNumber,
};
use rustix::event::{eventfd, EventfdFlags};
use rustix::net::{sendmsg, SendAncillaryBuffer, SendAncillaryMessage, SendFlags};
use tempfile::TempDir;
use vfio_user::{Connection, Disconnect, DmaMap, DmaRefusal, Errno, Platform, Server, UnmapRange};

pub(crate) const BAR0_SIZE: u64 = 0x1_0000;
pub(crate) const VECTORS: u16 = 40;
/// A write here raises the vector that is written.
pub(crate) const DOORBELL: u64 = 0x100;
/// A write here panics.
pub(crate) const PANIC: u64 = 0x108;
/// What a test waits for at most.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) const VERSION: u16 = 1;
pub(crate) const DMA_MAP: u16 = 2;
pub(crate) const DMA_UNMAP: u16 = 3;
pub(crate) const GET_INFO: u16 = 4;
pub(crate) const GET_REGION_INFO: u16 = 5;
pub(crate) const GET_IRQ_INFO: u16 = 7;
pub(crate) const SET_IRQS: u16 = 8;
pub(crate) const REGION_READ: u16 = 9;
pub(crate) const REGION_WRITE: u16 = 10;
pub(crate) const DMA_READ: u16 = 11;
pub(crate) const DMA_WRITE: u16 = 12;
pub(crate) const RESET: u16 = 13;
pub(crate) const WRITE_MULTI: u16 = 15;

pub(crate) const REPLY: u32 = 1;
pub(crate) const NO_REPLY: u32 = 1 << 4;
pub(crate) const ERROR: u32 = 1 << 5;
pub(crate) const EINVAL: u32 = 22;
pub(crate) const EOPNOTSUPP: u32 = 95;

/// A function that is 64 KiB of registers.
pub(crate) struct RegisterFile {
    state: Mutex<Registers>,
    bars: [Bar; 1],
    pub(crate) resets: AtomicU64,
}

struct Registers {
    config: ConfigSpace,
    bar: Vec<u8>,
    sink: Option<Arc<dyn InterruptSink>>,
}

impl RegisterFile {
    pub(crate) fn new() -> Arc<Self> {
        let bars = [Bar { index: 0, kind: BarKind::Memory64, prefetchable: true, size: BAR0_SIZE }];
        let header = Header {
            vendor: 0x1b36,
            device: 0x00fe,
            class: ClassCode::SYSTEM_PERIPHERAL,
            revision: 1,
            subsystem_vendor: 0x1b36,
            subsystem: 0x1100,
        };
        let msix = MsiXCapability {
            vectors: VECTORS,
            table: BarOffset { bar: 0, offset: 0x2000 },
            pending: BarOffset { bar: 0, offset: 0x3000 },
        };
        let config = ConfigSpace::builder(header)
            .bars(&bars)
            .express(0x40, ExpressCapability::new())
            .msix(0x80, msix)
            .serial_number(0x100, SerialNumber(1))
            .build()
            .unwrap();
        let bar = vec![0; BAR0_SIZE as usize];
        let state = Mutex::new(Registers { config, bar, sink: None });
        Arc::new(Self { state, bars, resets: AtomicU64::new(0) })
    }

    pub(crate) fn sink(&self) -> Option<Arc<dyn InterruptSink>> {
        self.state.lock().unwrap().sink.clone()
    }
}

impl Function for RegisterFile {
    fn bars(&self) -> &[Bar] {
        &self.bars
    }

    fn vectors(&self) -> u16 {
        VECTORS
    }

    fn config_read(&self, offset: u16, data: &mut [u8]) {
        self.state.lock().unwrap().config.read(offset, data);
    }

    fn config_write(&self, offset: u16, data: &[u8]) {
        let _ = self.state.lock().unwrap().config.write(offset, data);
    }

    fn bar_read(&self, bar: u8, offset: u64, data: &mut [u8]) {
        assert_eq!(bar, 0, "the server checks what exists");
        let offset = offset as usize;
        data.copy_from_slice(&self.state.lock().unwrap().bar[offset..offset + data.len()]);
    }

    fn bar_write(&self, bar: u8, offset: u64, data: &[u8]) {
        assert_eq!(bar, 0, "the server checks what exists");
        assert_ne!(offset, PANIC, "a device that panics, on purpose");
        let at = offset as usize;
        self.state.lock().unwrap().bar[at..at + data.len()].copy_from_slice(data);
        if let (DOORBELL, Some(&vector), Some(sink)) = (offset, data.first(), self.sink()) {
            sink.raise(vector.into());
        }
    }

    fn reset(&self) {
        let mut state = self.state.lock().unwrap();
        state.config.reset();
        state.bar.fill(0);
        self.resets.fetch_add(1, Ordering::SeqCst);
    }

    fn set_interrupts(&self, sink: Option<Arc<dyn InterruptSink>>) {
        self.state.lock().unwrap().sink = sink;
    }
}

/// What a platform was told.
#[derive(Default)]
pub(crate) struct Log {
    pub(crate) maps: Vec<DmaMap>,
    pub(crate) unmaps: Vec<UnmapRange>,
    pub(crate) connections: Vec<Connection>,
    pub(crate) ends: Vec<Disconnect>,
}

/// Records, and refuses maps at one address.
#[derive(Default)]
pub(crate) struct Recorder {
    pub(crate) log: Mutex<Log>,
    changed: Condvar,
}

/// Where [`Recorder`] maps nothing.
pub(crate) const REFUSED: u64 = 0xdead_0000;

impl Recorder {
    pub(crate) fn new() -> Arc<Self> {
        Arc::default()
    }

    fn note(&self, change: impl FnOnce(&mut Log)) {
        change(&mut self.log.lock().unwrap());
        self.changed.notify_all();
    }

    /// Waits until `ready` gives something.
    pub(crate) fn wait_for<T>(&self, mut ready: impl FnMut(&mut Log) -> Option<T>) -> T {
        let mut found = None;
        let log = self.log.lock().unwrap();
        let _log = self
            .changed
            .wait_timeout_while(log, PATIENCE, |log| {
                found = ready(log);
                found.is_none()
            })
            .unwrap();
        found.expect("waited in vain")
    }

    pub(crate) fn connection(&self) -> Connection {
        self.wait_for(|log| log.connections.last().cloned())
    }

    /// Waits for the `count`th end of a connection.
    pub(crate) fn end(&self, count: usize) -> Disconnect {
        self.wait_for(|log| log.ends.get(count - 1).copied())
    }
}

impl Platform for Recorder {
    fn dma_map(&self, map: DmaMap) -> Result<(), DmaRefusal> {
        if map.range.start.0 == REFUSED {
            return Err(DmaRefusal { errno: Errno::PERM });
        }
        self.note(|log| log.maps.push(map));
        Ok(())
    }

    fn dma_unmap(&self, range: UnmapRange) -> Result<(), DmaRefusal> {
        if matches!(range, UnmapRange::Range(range) if range.start.0 == REFUSED) {
            return Err(DmaRefusal { errno: Errno::NOENT });
        }
        self.note(|log| log.unmaps.push(range));
        Ok(())
    }

    fn connected(&self, connection: Connection) {
        self.note(|log| log.connections.push(connection));
    }

    fn disconnected(&self, why: Disconnect) {
        self.note(|log| log.ends.push(why));
    }
}

/// A directory, gone when it is dropped, and where in it a socket goes.
pub(crate) fn place() -> (TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("socket");
    (directory, socket)
}

/// A server of a register file.
pub(crate) struct Rig {
    pub(crate) server: Server,
    pub(crate) function: Arc<RegisterFile>,
    pub(crate) platform: Arc<Recorder>,
    _directory: TempDir,
}

impl Rig {
    pub(crate) fn new() -> Self {
        let (directory, socket) = place();
        let function = RegisterFile::new();
        let platform = Recorder::new();
        let server = Server::start(&socket, function.clone(), platform.clone()).unwrap();
        Self { server, function, platform, _directory: directory }
    }

    /// A client that has agreed on the version.
    pub(crate) fn client(&self) -> Client {
        let mut client = self.stranger();
        let reply = client.call(VERSION, &[0, 0, 0, 0], &[]);
        assert_eq!(reply.error(), None);
        client
    }

    /// A client that has said nothing.
    pub(crate) fn stranger(&self) -> Client {
        Client::connect(self.server.path())
    }

    pub(crate) fn errors(&self, kind: vfio_user::ErrorKind) -> u64 {
        self.server.counters().errors(kind)
    }
}

/// A message as it stands on the wire.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Wire {
    pub(crate) id: u16,
    pub(crate) command: u16,
    pub(crate) flags: u32,
    pub(crate) errno: u32,
    pub(crate) payload: Vec<u8>,
}

impl Wire {
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let size = 16 + self.payload.len() as u32;
        let mut bytes = Vec::new();
        bytes.extend(self.id.to_le_bytes());
        bytes.extend(self.command.to_le_bytes());
        bytes.extend(size.to_le_bytes());
        bytes.extend(self.flags.to_le_bytes());
        bytes.extend(self.errno.to_le_bytes());
        bytes.extend(&self.payload);
        bytes
    }

    /// The errno, if it says that something failed.
    pub(crate) fn error(&self) -> Option<u32> {
        assert_eq!(self.flags & 0xf, REPLY, "{self:?}");
        if self.flags & ERROR == 0 {
            assert_eq!(self.errno, 0);
            return None;
        }
        assert!(self.payload.is_empty());
        Some(self.errno)
    }
}

/// The other end of a socket, without any idea of the protocol but its header.
pub(crate) struct Client {
    pub(crate) socket: UnixStream,
    next_id: u16,
}

impl From<UnixStream> for Client {
    fn from(socket: UnixStream) -> Self {
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket.set_write_timeout(Some(PATIENCE)).unwrap();
        Self { socket, next_id: 0x1000 }
    }
}

impl Client {
    pub(crate) fn connect(path: &Path) -> Self {
        Self::from(UnixStream::connect(path).unwrap())
    }

    /// Sends bytes with descriptors.
    pub(crate) fn send_raw(&mut self, bytes: &[u8], fds: &[BorrowedFd<'_>]) {
        assert!(self.try_send_raw(bytes, fds));
    }

    /// The same; `false` if the server closed the connection.
    pub(crate) fn try_send_raw(&mut self, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> bool {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(253))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() {
            assert!(control.push(SendAncillaryMessage::ScmRights(fds)));
        }
        let iov = [IoSlice::new(bytes)];
        match sendmsg(&self.socket, &iov, &mut control, SendFlags::NOSIGNAL) {
            Ok(sent) => self.socket.write_all(&bytes[sent..]).is_ok(),
            Err(errno) => {
                assert!(matches!(errno, Errno::PIPE | Errno::CONNRESET), "{errno}");
                false
            }
        }
    }

    /// Sends a request and gives its id.
    pub(crate) fn send(
        &mut self,
        command: u16,
        flags: u32,
        payload: &[u8],
        fds: &[&OwnedFd],
    ) -> u16 {
        let id = self.next_id;
        self.next_id = id.wrapping_add(1);
        let message = Wire { id, command, flags, errno: 0, payload: payload.to_vec() };
        let fds: Vec<_> = fds.iter().map(|fd| fd.as_fd()).collect();
        self.send_raw(&message.bytes(), &fds);
        id
    }

    /// The next message, or `None` if the server closed the connection.
    pub(crate) fn receive(&mut self) -> Option<Wire> {
        let mut header = [0; 16];
        match self.socket.read(&mut header) {
            Ok(0) => return None,
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => return None,
            Ok(got) => self.socket.read_exact(&mut header[got..]).unwrap(),
            Err(error) => panic!("{error}"),
        }
        let half = |at: usize| u16::from_le_bytes(header[at..at + 2].try_into().unwrap());
        let word = |at: usize| u32::from_le_bytes(header[at..at + 4].try_into().unwrap());
        let mut payload = vec![0; word(4) as usize - 16];
        self.socket.read_exact(&mut payload).unwrap();
        Some(Wire { id: half(0), command: half(2), flags: word(8), errno: word(12), payload })
    }

    /// A request and its reply.
    pub(crate) fn call(&mut self, command: u16, payload: &[u8], fds: &[&OwnedFd]) -> Wire {
        let id = self.send(command, 0, payload, fds);
        let reply = self.receive().expect("connection closed instead of a reply");
        assert_eq!((reply.id, reply.command, reply.flags & 0xf), (id, command, REPLY));
        reply
    }

    /// Still served?
    pub(crate) fn works(&mut self) -> bool {
        self.call(GET_INFO, &words(&[16, 0, 0, 0]), &[]).error().is_none()
    }

    /// Waits for the server to close the connection.
    pub(crate) fn closed(&mut self) -> bool {
        self.receive().is_none()
    }

    pub(crate) fn read(&mut self, region: u32, offset: u64, count: u32) -> Vec<u8> {
        let reply = self.call(REGION_READ, &access(region, offset, count), &[]);
        assert_eq!(reply.error(), None);
        assert_eq!(reply.payload[..16], access(region, offset, count));
        reply.payload[16..].to_vec()
    }

    pub(crate) fn write(&mut self, region: u32, offset: u64, data: &[u8]) {
        let mut payload = access(region, offset, data.len() as u32);
        payload.extend(data);
        let reply = self.call(REGION_WRITE, &payload, &[]);
        assert_eq!(reply.error(), None);
        assert_eq!(reply.payload, payload[..16]);
    }
}

pub(crate) fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

pub(crate) fn access(region: u32, offset: u64, count: u32) -> Vec<u8> {
    [&offset.to_le_bytes()[..], &words(&[region, count])].concat()
}

pub(crate) fn dma(address: u64, count: u64) -> Vec<u8> {
    [address.to_le_bytes(), count.to_le_bytes()].concat()
}

pub(crate) fn dma_map(flags: u32, offset: u64, address: u64, size: u64) -> Vec<u8> {
    [&words(&[32, flags])[..], &offset.to_le_bytes(), &dma(address, size)].concat()
}

pub(crate) fn dma_unmap(flags: u32, address: u64, size: u64) -> Vec<u8> {
    [words(&[24, flags]), dma(address, size)].concat()
}

pub(crate) fn irq_set(flags: u32, index: u32, start: u32, count: u32) -> Vec<u8> {
    words(&[20, flags, index, start, count])
}

pub(crate) fn event() -> OwnedFd {
    eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).unwrap()
}

/// How often an eventfd was signalled since it was last asked.
pub(crate) fn signals(event: &OwnedFd) -> u64 {
    let mut count = [0; 8];
    match rustix::io::read(event, &mut count) {
        Ok(_) => u64::from_ne_bytes(count),
        Err(errno) => {
            assert_eq!(errno, Errno::AGAIN);
            0
        }
    }
}
