//! The socket at which `vsva inspect` asks.
//!
//! A thread of its own accepts, and each client has one. None of them is in a guest's way: a snapshot takes the locks
//! that counters and reports take, one client at a time and a few times a second.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use rustix::fs::{fchmod, Mode};
use rustix::io::Errno;
use rustix::net::sockopt::socket_peercred;
use rustix::net::{
    accept_with, bind, listen, shutdown, socket_with, AddressFamily, Shutdown, SocketAddrUnix,
    SocketFlags, SocketType,
};
use rustix::process::{geteuid, Uid};

use super::way::make_way;
use super::ServeError;
use crate::inspect::snapshot::{Inspections, Snapshot};
use crate::inspect::wire::{
    send, Answer, LineError, Lines, Refusal, Reply, Request, MAX_REQUEST, SOCKET, VERSION,
};

/// Clients that are served at a time.
pub const MAX_CLIENTS: usize = 8;

/// How long a client may say nothing.
const IDLE: Duration = Duration::from_secs(60);

/// The least time between two answers to one client.
const PACE: Duration = Duration::from_millis(20);

/// How long to wait when no connection can be accepted: nothing but time frees descriptors.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

/// Connections that wait to be accepted.
const BACKLOG: i32 = 8;

/// Takes the snapshot: of all guests, or of the one that is named.
pub type Ask = Box<dyn Fn(Option<&str>) -> Result<Snapshot, Refusal> + Send + Sync>;

/// Answers `vsva inspect` until it is dropped.
pub struct Inspector {
    inner: Arc<Inner>,
    path: PathBuf,
    acceptor: Option<JoinHandle<()>>,
}

struct Inner {
    listener: OwnedFd,
    ask: Ask,
    /// One snapshot is taken at a time, however many clients there are.
    turn: Mutex<()>,
    stopping: AtomicBool,
    clients: Mutex<Clients>,
    answers: AtomicU64,
    refusals: AtomicU64,
}

#[derive(Default)]
struct Clients {
    next: u64,
    /// Each with its stream, to be ended by, and its thread.
    served: BTreeMap<u64, (UnixStream, JoinHandle<()>)>,
}

impl Inspector {
    /// Listens in `dir`; only the user's own processes are answered.
    ///
    /// # Errors
    /// [`ServeError`]: the socket cannot be made, or the thread.
    pub fn start(dir: &Path, ask: Ask) -> Result<Self, ServeError> {
        let path = dir.join(SOCKET);
        make_way(&path)?;
        let failed = |source| ServeError::File { path: path.clone(), source };
        let inner = Arc::new(Inner {
            listener: listen_at(&path).map_err(failed)?,
            ask,
            turn: Mutex::default(),
            stopping: AtomicBool::new(false),
            clients: Mutex::default(),
            answers: AtomicU64::new(0),
            refusals: AtomicU64::new(0),
        });
        // From here on, dropping it removes the socket.
        let mut inspector = Self { inner: inner.clone(), path, acceptor: None };
        let thread = thread::Builder::new().name("inspect".to_owned());
        let thread = thread.spawn(move || inner.accept());
        inspector.acceptor = Some(thread.map_err(|source| ServeError::Thread { source })?);
        Ok(inspector)
    }
}

impl Drop for Inspector {
    fn drop(&mut self) {
        let inner = &self.inner;
        inner.stopping.store(true, Ordering::SeqCst);
        // Wakes the acceptor.
        let _ = shutdown(&inner.listener, Shutdown::Both);
        // A panic in a thread has been shown already.
        let _ = self.acceptor.take().map(JoinHandle::join);
        let served = std::mem::take(&mut lock(&inner.clients).served);
        for (stream, thread) in served.into_values() {
            let _ = stream.shutdown(std::net::Shutdown::Both);
            let _ = thread.join();
        }
        let _ = fs::remove_file(&self.path);
    }
}

/// A socket that listens at `path` and was never open to others, not even for a moment.
fn listen_at(path: &Path) -> io::Result<OwnedFd> {
    let address = SocketAddrUnix::new(path)?;
    let listener =
        socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    // Linux takes the mode of the file that `bind` makes from the socket.
    fchmod(&listener, Mode::RUSR | Mode::WUSR)?;
    bind(&listener, &address)?;
    listen(&listener, BACKLOG)?;
    Ok(listener)
}

/// Whether a process of `peer` may ask a server of `own`: nobody else owns the directory.
fn may_ask(peer: Uid, own: Uid) -> bool {
    peer == own || peer.is_root()
}

impl Inner {
    fn accept(self: Arc<Self>) {
        while !self.stopping() {
            match accept_with(&self.listener, SocketFlags::CLOEXEC) {
                Ok(socket) if !self.stopping() => self.welcome(socket),
                Ok(_) | Err(Errno::INTR | Errno::CONNABORTED) => {}
                Err(_) if self.stopping() => {}
                Err(_) => thread::sleep(ACCEPT_RETRY),
            }
        }
    }

    fn welcome(self: &Arc<Self>, socket: OwnedFd) {
        let allowed = socket_peercred(&socket).is_ok_and(|peer| may_ask(peer.uid, geteuid()));
        let mut stream = UnixStream::from(socket);
        let mut clients = lock(&self.clients);
        // A thread that is over is joined here or at the end; it has given up all but its place.
        clients.served.retain(|_, (_, thread)| !thread.is_finished());
        let refusal = if !allowed {
            Some(Refusal::NotYours)
        } else if clients.served.len() >= MAX_CLIENTS {
            Some(Refusal::Busy { limit: MAX_CLIENTS })
        } else {
            None
        };
        if let Some(refusal) = refusal {
            drop(clients);
            let _ = self.reply(&mut stream, Err(refusal));
            return;
        }
        let Ok(end) = stream.try_clone() else { return };
        let this = self.clone();
        let thread = thread::Builder::new().name("inspect client".to_owned());
        // Without a thread the stream is closed, which is all that can be said.
        if let Ok(thread) = thread.spawn(move || this.serve(stream)) {
            let id = clients.next;
            clients.next += 1;
            clients.served.insert(id, (end, thread));
        }
    }

    fn serve(&self, stream: UnixStream) {
        let mut lines = Lines::new(stream, MAX_REQUEST);
        while !self.stopping() {
            let request = match lines.next(IDLE) {
                Ok(line) => serde_json::from_slice(&line).map_err(|_| Refusal::Malformed),
                Err(LineError::TooLong { .. }) => Err(Refusal::Malformed),
                Err(_) => break,
            };
            let malformed = request.is_err();
            let answer = request.and_then(|request: Request| self.answer(&request));
            if self.reply(lines.stream(), answer).is_err() || malformed {
                break;
            }
            thread::sleep(PACE);
        }
        // Its other handle is kept until the next client comes.
        let _ = lines.stream().shutdown(std::net::Shutdown::Both);
    }

    fn answer(&self, request: &Request) -> Result<Snapshot, Refusal> {
        if request.version != VERSION {
            return Err(Refusal::Version { got: request.version, known: VERSION });
        }
        let _turn = lock(&self.turn);
        let mut snapshot = (self.ask)(request.guest.as_deref())?;
        snapshot.inspections = Inspections {
            answers: self.answers.load(Ordering::Relaxed),
            refusals: self.refusals.load(Ordering::Relaxed),
        };
        Ok(snapshot)
    }

    fn reply(&self, stream: &mut UnixStream, answer: Result<Snapshot, Refusal>) -> io::Result<()> {
        let count = if answer.is_ok() { &self.answers } else { &self.refusals };
        count.fetch_add(1, Ordering::Relaxed);
        let answer =
            answer.map_or_else(Answer::Refused, |snapshot| Answer::Snapshot(Box::new(snapshot)));
        send(stream, &Reply { version: VERSION, answer })
    }

    fn stopping(&self) -> bool {
        self.stopping.load(Ordering::SeqCst)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_owner_and_root_may_ask() {
        let [root, own, other] = [0, 1000, 1001].map(Uid::from_raw);
        assert!(may_ask(own, own) && may_ask(root, own) && may_ask(root, root));
        assert!(!may_ask(other, own) && !may_ask(own, root));
    }
}
