//! The way to a client: replies to it, and requests for its memory.

use std::collections::HashMap;
use std::fmt;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{sync_channel, Receiver, SyncSender};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::ThreadId;
use std::time::{Duration, Instant};

use mem::Gpa;
use rustix::event::{poll, PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::net::{shutdown, Shutdown};
use zerocopy::{FromBytes, IntoBytes};

use crate::error::{Disconnect, ProtocolError, SendError};
use crate::limits::{MAX_OUTSTANDING, MAX_TRANSFER};
use crate::stats::Stats;
use crate::stream::{send_all, Message};
use crate::wire::{Command, DmaAccess, Flags, Header, HEADER_SIZE, REPLY, REQUEST};

/// A handle to a connected client, to be cloned and used from any thread. It outlives the
/// connection; then everything fails with [`SendError::Closed`].
#[derive(Clone)]
pub struct Connection {
    link: Arc<Link>,
}

impl Connection {
    pub(crate) fn new(link: Arc<Link>) -> Self {
        Self { link }
    }

    /// Writes guest memory through the client. The write is posted: this returns when it is sent,
    /// and what the client says to it is counted later. A client takes messages in order, so two
    /// writes, or a write and a read after it, happen in this order.
    ///
    /// # Errors
    ///
    /// [`SendError::Range`], [`SendError::TooManyOutstanding`] (what was sent of a write longer than
    /// one message stays sent), or [`SendError::Closed`], also when a client does not read for
    /// [`SEND_DEADLINE`](crate::SEND_DEADLINE), which ends its connection.
    pub fn dma_write(&self, gpa: Gpa, data: &[u8]) -> Result<(), SendError> {
        let link = &self.link;
        check_range(gpa, data.len())?;
        let mut address = gpa.0;
        for part in data.chunks(link.max_transfer()) {
            let access = DmaAccess { address, count: part.len() as u64 };
            link.request(Command::DmaWrite, access, part, Waiting::Write)?;
            link.stats.dma_writes.add();
            address = address.wrapping_add(part.len() as u64);
        }
        Ok(())
    }

    /// Reads guest memory through the client and waits for it, `deadline` at most. Never to be
    /// called while the client waits for us: inside a region access, say.
    ///
    /// # Errors
    ///
    /// Those of [`dma_write`](Self::dma_write), [`SendError::Deadline`], [`SendError::Refused`] with
    /// what the client said, or [`SendError::OnReaderThread`].
    pub fn dma_read(&self, gpa: Gpa, buf: &mut [u8], deadline: Duration) -> Result<(), SendError> {
        let link = &self.link;
        if link.reader.get() == Some(&std::thread::current().id()) {
            return Err(SendError::OnReaderThread);
        }
        check_range(gpa, buf.len())?;
        let begun = Instant::now();
        let mut address = gpa.0;
        for part in buf.chunks_mut(link.max_transfer()) {
            let access = DmaAccess { address, count: part.len() as u64 };
            let (waiting, reply) = Waiting::read(access);
            link.request(Command::DmaRead, access, &[], waiting)?;
            link.stats.dma_reads.add();
            let left = deadline.saturating_sub(begun.elapsed());
            // The reader checked that the reply has the length that was asked for.
            part.copy_from_slice(&wait(&reply, left)?);
            address = address.wrapping_add(part.len() as u64);
        }
        Ok(())
    }

    /// Ends the connection. The platform hears of it as of any other end.
    pub fn close(&self) {
        self.link.close(Disconnect::ClosedByEmbedder);
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection").finish_non_exhaustive()
    }
}

fn check_range(gpa: Gpa, len: usize) -> Result<(), SendError> {
    let last = (len as u64).saturating_sub(1);
    gpa.checked_add(last).map(|_| ()).ok_or(SendError::Range)
}

fn wait(reply: &Receiver<Result<Vec<u8>, Errno>>, left: Duration) -> Result<Vec<u8>, SendError> {
    use std::sync::mpsc::RecvTimeoutError::{Disconnected, Timeout};
    match reply.recv_timeout(left) {
        Ok(result) => result.map_err(SendError::Refused),
        Err(Timeout) => Err(SendError::Deadline),
        Err(Disconnected) => Err(SendError::Closed),
    }
}

/// A request of ours without a reply yet.
enum Waiting {
    Write,
    /// Stays until its reply even if nobody waits any more, so that a late reply is still known.
    Read {
        access: DmaAccess,
        reply: SyncSender<Result<Vec<u8>, Errno>>,
    },
}

impl Waiting {
    fn read(access: DmaAccess) -> (Self, Receiver<Result<Vec<u8>, Errno>>) {
        let (reply, receiver) = sync_channel(1);
        (Self::Read { access, reply }, receiver)
    }

    const fn command(&self) -> Command {
        match self {
            Self::Write => Command::DmaWrite,
            Self::Read { .. } => Command::DmaRead,
        }
    }
}

/// Our requests without a reply; `None` once the connection has ended.
struct Outstanding {
    next_id: u16,
    waiting: Option<HashMap<u16, Waiting>>,
}

/// What the reader of a connection and the users of its [`Connection`]s share.
pub(crate) struct Link {
    socket: OwnedFd,
    /// Held while a message is sent, which keeps messages whole; the buffer is used again.
    outbox: Mutex<Vec<u8>>,
    outstanding: Mutex<Outstanding>,
    max_transfer: AtomicUsize,
    /// Why the connection ended; the first reason stays.
    ended: Mutex<Option<Disconnect>>,
    reader: OnceLock<ThreadId>,
    stats: Arc<Stats>,
}

impl Link {
    pub(crate) fn new(socket: OwnedFd, stats: Arc<Stats>) -> Self {
        Self {
            socket,
            outbox: Mutex::default(),
            outstanding: Mutex::new(Outstanding { next_id: 0, waiting: Some(HashMap::new()) }),
            max_transfer: AtomicUsize::new(MAX_TRANSFER),
            ended: Mutex::new(None),
            reader: OnceLock::new(),
            stats,
        }
    }

    pub(crate) fn socket(&self) -> &OwnedFd {
        &self.socket
    }

    /// Notes that the calling thread is the one that reads replies.
    pub(crate) fn read_by_this_thread(&self) {
        let _ = self.reader.set(std::thread::current().id());
    }

    pub(crate) fn set_max_transfer(&self, bytes: usize) {
        self.max_transfer.store(bytes.max(1), Ordering::Relaxed);
    }

    fn max_transfer(&self) -> usize {
        self.max_transfer.load(Ordering::Relaxed)
    }

    /// Ends the connection for this reason, unless it has another already: the reader wakes up, and
    /// whoever waits for a reply is told.
    pub(crate) fn close(&self, why: Disconnect) {
        lock(&self.ended).get_or_insert(why);
        // Fails only if the client is gone already.
        let _ = shutdown(&self.socket, Shutdown::Both);
        // Dropping the senders wakes their receivers.
        drop(lock(&self.outstanding).waiting.take());
    }

    pub(crate) fn ended(&self) -> Option<Disconnect> {
        *lock(&self.ended)
    }

    /// Whether the client is gone, known or not to the reader.
    pub(crate) fn client_is_gone(&self) -> bool {
        if self.ended().is_some() {
            return true;
        }
        let mut fds = [PollFd::new(&self.socket, PollFlags::RDHUP)];
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        let gone = PollFlags::HUP | PollFlags::RDHUP | PollFlags::ERR;
        poll(&mut fds, Some(&now)).is_ok() && fds[0].revents().intersects(gone)
    }

    /// Replies to the request that `request` begins.
    pub(crate) fn reply(&self, request: &Header, payload: &[u8]) -> Result<(), SendError> {
        let flags = Flags::new().with_kind(REPLY);
        self.send(Header { flags: flags.into_bits(), error: 0, ..*request }, &[payload])
    }

    /// Replies that the request failed.
    pub(crate) fn reply_error(&self, request: &Header, errno: Errno) -> Result<(), SendError> {
        let flags = Flags::new().with_kind(REPLY).with_error(true);
        let error = errno.raw_os_error().unsigned_abs();
        self.send(Header { flags: flags.into_bits(), error, ..*request }, &[])
    }

    fn request(
        &self,
        command: Command,
        access: DmaAccess,
        data: &[u8],
        waiting: Waiting,
    ) -> Result<(), SendError> {
        // Known before it is sent: the reply may be faster than this thread.
        let id = self.expect_reply(waiting)?;
        let header = Header {
            id,
            command: command as u16,
            size: 0,
            flags: Flags::new().with_kind(REQUEST).into_bits(),
            error: 0,
        };
        // If this fails the connection has ended, and with it what was expected.
        self.send(header, &[access.as_bytes(), data])
    }

    fn expect_reply(&self, new: Waiting) -> Result<u16, SendError> {
        let mut outstanding = lock(&self.outstanding);
        let Outstanding { next_id, waiting } = &mut *outstanding;
        let waiting = waiting.as_mut().ok_or(SendError::Closed)?;
        if waiting.len() >= MAX_OUTSTANDING {
            return Err(SendError::TooManyOutstanding);
        }
        // There are many more ids than may be outstanding, so a free one is near.
        while waiting.contains_key(next_id) {
            *next_id = next_id.wrapping_add(1);
        }
        let id = *next_id;
        *next_id = id.wrapping_add(1);
        waiting.insert(id, new);
        Ok(id)
    }

    /// Sends `header`, with its size filled in, and what follows it as one message.
    fn send(&self, header: Header, parts: &[&[u8]]) -> Result<(), SendError> {
        let len: usize = parts.iter().map(|part| part.len()).sum();
        let mut outbox = lock(&self.outbox);
        if self.ended().is_some() {
            return Err(SendError::Closed);
        }
        outbox.clear();
        // Nothing sent here is anywhere near 4 GiB.
        let size = (HEADER_SIZE + len) as u32;
        outbox.extend_from_slice(Header { size, ..header }.as_bytes());
        parts.iter().for_each(|part| outbox.extend_from_slice(part));
        send_all(self.socket.as_fd(), &outbox).map_err(|why| {
            self.close(why);
            SendError::Closed
        })
    }

    /// Takes the client's reply to a request of ours.
    pub(crate) fn take_reply(&self, message: &Message) -> Result<(), ProtocolError> {
        let Header { id, command, flags, error, .. } = message.header;
        let waiting = match &mut lock(&self.outstanding).waiting {
            Some(waiting) => waiting.remove(&id).ok_or(ProtocolError::UnsolicitedReply(id))?,
            None => return Ok(()),
        };
        if command != waiting.command() as u16 || !message.fds.is_empty() {
            return Err(ProtocolError::ReplyContent(id));
        }
        let failed = Flags::from_bits(flags).error();
        match waiting {
            Waiting::Write if failed => self.stats.dma_write_failures.add(),
            Waiting::Write => {}
            Waiting::Read { reply, .. } if failed => {
                let _ = reply.send(Err(errno(error)));
            }
            Waiting::Read { access, reply } => {
                let data = match DmaAccess::read_from_prefix(&message.payload) {
                    Ok((echo, data)) if echo == access && data.len() as u64 == access.count => data,
                    _ => return Err(ProtocolError::ReplyContent(id)),
                };
                // Nobody may be waiting any more.
                let _ = reply.send(Ok(data.to_vec()));
            }
        }
        Ok(())
    }
}

/// An errno as a peer wrote it; what is none becomes EIO.
fn errno(number: u32) -> Errno {
    const LAST_ERRNO: u32 = 4095;
    match i32::try_from(number) {
        Ok(raw) if (1..=LAST_ERRNO).contains(&number) => Errno::from_raw_os_error(raw),
        _ => Errno::IO,
    }
}

/// Locks, also after a thread panicked with the lock held: every value here is valid at all times.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
