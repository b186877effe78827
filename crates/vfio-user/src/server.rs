//! A listening socket for one function, and the threads behind it.

use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

use pci::Function;
use rustix::fs::{fchmod, Mode};
use rustix::io::Errno;
use rustix::net::sockopt::{set_socket_timeout, Timeout};
use rustix::net::{
    accept_with, bind, listen, shutdown, socket_with, AddressFamily, Shutdown, SocketAddrUnix,
    SocketFlags, SocketType,
};

use crate::connection::{lock, Link};
use crate::error::Disconnect;
use crate::irqs::Irqs;
use crate::limits::{ACCEPT_RETRY, BACKLOG, DEPARTURE_DEADLINE, SEND_DEADLINE};
use crate::platform::Platform;
use crate::session::Session;
use crate::stats::{Counters, Stats};

/// Serves one PCI function on one unix socket, to one client at a time.
///
/// A second client is accepted and closed at once, and counted. Each connection has a thread of its
/// own that blocks until a message comes. Dropping the server stops it.
pub struct Server {
    inner: Arc<Inner>,
    acceptor: Mutex<Option<JoinHandle<()>>>,
}

struct Inner {
    path: PathBuf,
    listener: OwnedFd,
    function: Arc<dyn Function>,
    platform: Arc<dyn Platform>,
    stats: Arc<Stats>,
    stopping: AtomicBool,
    client: Mutex<Client>,
    /// The client changed, or the server stops.
    changed: Condvar,
}

/// The client being served, if there is one.
#[derive(Default)]
struct Client {
    link: Option<Arc<Link>>,
    /// The thread of this client, or of the last one.
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Listens at `path`, which only the owner may connect to (mode 0600), and serves `function`.
    ///
    /// # Errors
    ///
    /// What binding the socket or starting a thread fails with; [`io::ErrorKind::AddrInUse`] if
    /// there is a file at `path`.
    pub fn start(
        path: &Path,
        function: Arc<dyn Function>,
        platform: Arc<dyn Platform>,
    ) -> io::Result<Self> {
        let inner = Arc::new(Inner {
            listener: listen_at(path)?,
            path: path.to_owned(),
            function,
            platform,
            stats: Arc::default(),
            stopping: AtomicBool::new(false),
            client: Mutex::default(),
            changed: Condvar::new(),
        });
        let accepting = inner.clone();
        let acceptor = spawn(&inner.path, "accept", move || accepting.accept_clients())?;
        Ok(Self { inner, acceptor: Mutex::new(Some(acceptor)) })
    }

    /// Where it listens.
    pub fn path(&self) -> &Path {
        &self.inner.path
    }

    /// What happened so far.
    pub fn counters(&self) -> Counters {
        self.inner.stats.snapshot()
    }

    /// Ends the connection, if there is one, waits for its threads, and removes the socket. Never to
    /// be called from the platform's or the function's own calls, which run on these threads.
    pub fn stop(&self) {
        let inner = &self.inner;
        let Some(acceptor) = lock(&self.acceptor).take() else { return };
        inner.stopping.store(true, Ordering::SeqCst);
        // Wakes the acceptor.
        let _ = shutdown(&inner.listener, Shutdown::Both);
        if let Some(link) = &lock(&inner.client).link {
            link.close(Disconnect::Stopped);
        }
        inner.changed.notify_all();
        // Threads of ours do not panic; what a device does is caught where it is called.
        let _ = acceptor.join();
        let last = lock(&inner.client).thread.take();
        let _ = last.map(JoinHandle::join);
        let _ = std::fs::remove_file(&inner.path);
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop();
    }
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server").field("path", &self.inner.path).finish_non_exhaustive()
    }
}

/// A socket that listens at `path` and was never open to others, not even for a moment.
fn listen_at(path: &Path) -> io::Result<OwnedFd> {
    let address = SocketAddrUnix::new(path)?;
    let flags = SocketFlags::CLOEXEC;
    let listener = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    // Linux takes the mode of the file that `bind` makes from the socket.
    fchmod(&listener, Mode::RUSR | Mode::WUSR)?;
    bind(&listener, &address)?;
    listen(&listener, BACKLOG)?;
    Ok(listener)
}

fn spawn(
    path: &Path,
    task: &str,
    body: impl FnOnce() + Send + 'static,
) -> io::Result<JoinHandle<()>> {
    let name = path.file_name().unwrap_or(path.as_os_str()).to_string_lossy();
    thread::Builder::new().name(format!("{name} {task}")).spawn(body)
}

impl Inner {
    fn stopping(&self) -> bool {
        self.stopping.load(Ordering::SeqCst)
    }

    fn accept_clients(self: Arc<Self>) {
        while !self.stopping() {
            match accept_with(&self.listener, SocketFlags::CLOEXEC) {
                Ok(socket) if !self.stopping() => self.welcome(socket),
                Ok(_) | Err(Errno::INTR | Errno::CONNABORTED) => {}
                Err(_) if self.stopping() => {}
                // Nothing but time frees descriptors.
                Err(_) => thread::sleep(ACCEPT_RETRY),
            }
        }
    }

    /// Serves this client, or refuses it by closing its socket.
    fn welcome(self: &Arc<Self>, socket: OwnedFd) {
        let mut client = lock(&self.client);
        if client.link.as_ref().is_some_and(|link| link.client_is_gone()) {
            // A client that was killed and started again comes while it is still cleaned up.
            let busy = |client: &mut Client| client.link.is_some() && !self.stopping();
            client = self
                .changed
                .wait_timeout_while(client, DEPARTURE_DEADLINE, busy)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
        if client.link.is_some() || self.stopping() {
            self.stats.refused.add();
            return;
        }
        if set_socket_timeout(&socket, Timeout::Send, Some(SEND_DEADLINE)).is_err() {
            self.stats.refused.add();
            return;
        }
        // The last client's thread has nothing left to do.
        let _ = client.thread.take().map(JoinHandle::join);
        let link = Arc::new(Link::new(socket, self.stats.clone()));
        let (serving, its_link) = (self.clone(), link.clone());
        match spawn(&self.path, "client", move || serving.serve(&its_link)) {
            Ok(thread) => {
                *client = Client { link: Some(link), thread: Some(thread) };
            }
            Err(_) => self.stats.refused.add(),
        }
    }

    /// All of a connection's life.
    fn serve(&self, link: &Arc<Link>) {
        self.stats.connections.add();
        link.read_by_this_thread();
        let irqs = Irqs::new(self.function.vectors(), &self.stats);
        let mut session = Session {
            link,
            function: &*self.function,
            platform: &*self.platform,
            stats: &self.stats,
            irqs: &irqs,
            agreement: None,
            connected: false,
            reply: Vec::new(),
        };
        let why = self.guarded(|| session.serve()).unwrap_or(Disconnect::Panicked);
        link.close(why);
        let why = link.ended().unwrap_or(why);
        if let Disconnect::Protocol(error) = why {
            self.stats.error(error.kind());
        }
        if session.agreement.is_some() {
            // Each on its own, so that a panic in one does not keep the others from being done.
            self.guarded(|| self.function.set_interrupts(None));
            self.guarded(|| self.function.reset());
        }
        if session.connected {
            self.guarded(|| self.platform.disconnected(why));
        }
        lock(&self.client).link = None;
        self.changed.notify_all();
    }

    /// Runs what calls into a device: if that panics, it is this connection's end and no other's.
    fn guarded<T>(&self, body: impl FnOnce() -> T) -> Option<T> {
        // Nothing here is used again after a panic but what locks keep valid.
        let result = catch_unwind(AssertUnwindSafe(body)).ok();
        if result.is_none() {
            self.stats.panics.add();
        }
        result
    }
}
