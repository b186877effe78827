//! A guest's place, and clients of it that speak vfio-user by hand.

#![allow(dead_code)] // each test program uses a part

pub(crate) mod holdings;
pub(crate) mod kernel;
pub(crate) mod memory;
pub(crate) mod waiting;

use std::fs::File;
use std::io::{IoSlice, Read as _};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::os::unix::fs::FileExt as _;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use dsa::spec::{
    offset, Cmd, CmdStatus, CommandCode, CompletionRecord, Descriptor, Flags, Offsets, Operation,
    Portal, WqConfig, WqLimits, WqMode, GRPCFG_ENGINES, GRPCFG_WQS,
};
use mem::{Iova, Policy};
use rustix::cmsg_space;
use rustix::fs::{MemfdFlags, SealFlags};
use rustix::net::{sendmsg, SendAncillaryBuffer, SendAncillaryMessage, SendFlags};
use vsva::server::{GuestPlace, HostCalls, Server};

/// What a test waits for at most.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);
/// Size of a guest's memory in bytes.
pub(crate) const RAM: u64 = 64 << 20;
/// Length of the copies of [`Accelerator::copy`].
pub(crate) const COPY: u32 = 2 << 20;
/// Entries of the accelerator's queue.
pub(crate) const QUEUE: u16 = 16;

pub(crate) const EPERM: u32 = 1;

const VERSION: u16 = 1;
const DMA_MAP: u16 = 2;
const DEVICE_RESET: u16 = 13;
const REGION_READ: u16 = 9;
const REGION_WRITE: u16 = 10;
const ERROR: u32 = 1 << 5;
const READ_WRITE: u32 = 3;
/// Region of configuration space.
pub(crate) const CONFIG: u32 = 7;

/// Lines that a server said.
pub(crate) type Said = Arc<Mutex<Vec<(Instant, String)>>>;

/// A server, and what it says.
pub(crate) fn server(policy: Policy) -> (Server, Said) {
    server_calling(HostCalls::Direct, policy)
}

/// The same, whose host is called as `calls` says.
pub(crate) fn server_calling(calls: HostCalls, policy: Policy) -> (Server, Said) {
    let said = Said::default();
    let sink = said.clone();
    let line = move |line: &str| sink.lock().unwrap().push((Instant::now(), line.to_owned()));
    (Server::calling(calls, policy, Arc::new(line)), said)
}

/// A guest's RAM: a file, sealed against shrinking if `sealed`.
pub(crate) fn ram(name: &str, sealed: bool) -> File {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let file = File::from(rustix::fs::memfd_create(name, flags).unwrap());
    file.set_len(RAM).unwrap();
    if sealed {
        rustix::fs::fcntl_add_seals(&file, SealFlags::SHRINK).unwrap();
    }
    file
}

/// A connection to one function.
pub(crate) struct Client {
    pub(crate) socket: UnixStream,
    next: u16,
}

impl Client {
    /// A client that has agreed on the version.
    pub(crate) fn new(path: &Path) -> Self {
        let mut client = Self::stranger(path);
        client.call(VERSION, &[0; 4], None).unwrap();
        client
    }

    /// A client that has said nothing.
    pub(crate) fn stranger(path: &Path) -> Self {
        let socket = UnixStream::connect(path).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        Self { socket, next: 0 }
    }

    /// A request; gives the payload of its reply, or the errno in it.
    pub(crate) fn call(
        &mut self,
        command: u16,
        payload: &[u8],
        fd: Option<BorrowedFd<'_>>,
    ) -> Result<Vec<u8>, u32> {
        self.send(command, payload, fd);
        let mut header = [0; 16];
        self.socket.read_exact(&mut header).unwrap();
        let word = |at: usize| u32::from_le_bytes(header[at..at + 4].try_into().unwrap());
        let mut reply = vec![0; word(4) as usize - header.len()];
        self.socket.read_exact(&mut reply).unwrap();
        if word(8) & ERROR != 0 {
            return Err(word(12));
        }
        Ok(reply)
    }

    fn send(&mut self, command: u16, payload: &[u8], fd: Option<BorrowedFd<'_>>) {
        self.next = self.next.wrapping_add(1);
        let size = 16 + payload.len() as u32;
        let mut message = [self.next.to_le_bytes(), command.to_le_bytes()].concat();
        message.extend([size.to_le_bytes(), [0; 4], [0; 4]].concat());
        message.extend(payload);
        let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let fds: Vec<_> = fd.into_iter().collect();
        if !fds.is_empty() {
            assert!(control.push(SendAncillaryMessage::ScmRights(&fds)));
        }
        let sent =
            sendmsg(&self.socket, &[IoSlice::new(&message)], &mut control, SendFlags::NOSIGNAL);
        assert_eq!(sent, Ok(message.len()));
    }

    /// Reports all of `file` as memory at `at`.
    pub(crate) fn map(&mut self, file: &File, at: u64) -> Result<(), u32> {
        let mut payload = [32u32.to_le_bytes(), READ_WRITE.to_le_bytes()].concat();
        payload.extend([0u64.to_le_bytes(), at.to_le_bytes(), RAM.to_le_bytes()].concat());
        self.call(DMA_MAP, &payload, Some(file.as_fd())).map(drop)
    }

    pub(crate) fn read<const N: usize>(&mut self, region: u32, at: u64) -> [u8; N] {
        let reply = self.call(REGION_READ, &access(region, at, N), None).unwrap();
        reply[16..].try_into().unwrap()
    }

    pub(crate) fn write(&mut self, region: u32, at: u64, data: &[u8]) {
        let payload = [&access(region, at, data.len())[..], data].concat();
        self.call(REGION_WRITE, &payload, None).unwrap();
    }

    /// Has the function reset, as a VMM does when its VM is reset.
    pub(crate) fn reset(&mut self) {
        self.call(DEVICE_RESET, &[], None).unwrap();
    }

    /// Waits for the server to close the connection.
    pub(crate) fn closed(&mut self) -> bool {
        match self.socket.read(&mut [0; 64]) {
            Ok(0) => true,
            Err(error) => error.kind() == std::io::ErrorKind::ConnectionReset,
            Ok(_) => self.closed(),
        }
    }
}

fn access(region: u32, at: u64, count: usize) -> Vec<u8> {
    [&at.to_le_bytes()[..], &region.to_le_bytes(), &(count as u32).to_le_bytes()].concat()
}

/// A client of a place's accelerator, driven by its registers, without PASIDs.
pub(crate) struct Accelerator(pub(crate) Client);

impl Accelerator {
    /// Connects, reports `ram`, and enables a dedicated queue.
    pub(crate) fn new(place: &GuestPlace, ram: &File) -> Self {
        let mut client = Client::new(&place.devices().functions[0].path);
        client.map(ram, 0).unwrap();
        Self::enable(&mut client, WqMode::new());
        Self(client)
    }

    /// Enables a dedicated queue, with what else `mode` says, of an accelerator as after power-on.
    pub(crate) fn enable(client: &mut Client, mode: WqMode) {
        client.write(CONFIG, 0x04, &6u16.to_le_bytes());
        let low: [u8; 8] = client.read(0, offset::OFFSETS.into());
        let offsets = Offsets::from_bits(u64::from_le_bytes(low).into());
        let queue = WqConfig {
            size: QUEUE,
            mode: mode.with_dedicated(true).with_priority(1),
            limits: WqLimits::new().with_max_transfer_shift(21).with_max_batch_shift(4),
            ..WqConfig::default()
        };
        for (index, dword) in (0u64..).zip(queue.to_dwords()) {
            let at = u64::from(offsets.wqcfg()) * 0x100 + 4 * index;
            client.write(0, at, &dword.to_le_bytes());
        }
        for member in [GRPCFG_WQS, GRPCFG_ENGINES] {
            let at = u64::from(offsets.grpcfg()) * 0x100 + u64::from(member);
            client.write(0, at, &1u64.to_le_bytes());
        }
        for code in [CommandCode::EnableDevice, CommandCode::EnableWq] {
            let command = Cmd::new().with_code(code as u8).into_bits();
            client.write(0, offset::CMD.into(), &command.to_le_bytes());
            let status =
                CmdStatus::from_bits(u32::from_le_bytes(client.read(0, offset::CMDSTATUS.into())));
            assert_eq!(status, CmdStatus::new(), "{code:?}");
        }
    }

    /// Submits a copy of [`COPY`] bytes with its record at `record`.
    pub(crate) fn copy(&mut self, from: u64, to: u64, record: u64) {
        let copy = Operation::MemoryMove { source: Iova(from), destination: Iova(to), size: COPY };
        self.submit(copy, record, Flags::REQUEST_RECORD);
    }

    /// Submits `operation` with its record at `record`.
    pub(crate) fn submit(&mut self, operation: Operation, record: u64, flags: Flags) {
        let descriptor = Descriptor::new(operation).with_record(Iova(record)).with_flags(flags);
        self.0.write(2, Portal::UNLIMITED.offset(0), &descriptor.to_bytes());
    }
}

/// The record at `at`, once there is one.
pub(crate) fn completed(ram: &File, at: u64) -> CompletionRecord {
    let mut bytes = [0; CompletionRecord::SIZE];
    eventually("a completion record", || {
        ram.read_exact_at(&mut bytes, at).unwrap();
        bytes[0] != 0
    });
    ram.read_exact_at(&mut bytes, at).unwrap();
    CompletionRecord::from_bytes(&bytes)
}

/// Waits until it holds.
pub(crate) fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < PATIENCE, "waited in vain: {what}");
        std::thread::sleep(Duration::from_micros(200));
    }
}

/// A place's count of this name.
pub(crate) fn count(place: &GuestPlace, name: &str) -> u64 {
    place.counters().iter().find(|(known, _)| *known == name).unwrap().1
}

/// Stops threads when it is dropped. A scope waits for its threads, so a test whose own thread has panicked would
/// otherwise wait for those that go on until they are told.
pub(crate) struct StopOnDrop<'a>(pub(crate) &'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}
