//! The asking end.

use std::io;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;

use super::snapshot::Snapshot;
use super::wire::{
    send, Answer, LineError, Lines, Refusal, Reply, Request, MAX_REPLY, SOCKET, VERSION,
};

/// The longest that a server may take to begin its answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// Why nothing could be learned of a server.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nobody serves from the directory.
    #[error("{}: no server runs in this directory ({source}); `vsva serve --dir` starts one", dir.display())]
    NoServer {
        /// The directory.
        dir: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// The connection cannot be used.
    #[error("the connection to the server failed: {0}")]
    Connection(#[source] io::Error),
    /// The server did not say a whole line.
    #[error("the server's answer: {0}")]
    Line(#[source] LineError),
    /// The server's line is no reply.
    #[error("the server's answer is no message of the protocol: {0}")]
    Garbled(#[source] serde_json::Error),
    /// The server speaks another version.
    #[error("the server speaks version {got} of the protocol, this program {VERSION}; use the same vsva for both")]
    Version {
        /// The server's.
        got: u32,
    },
    /// The server said why not.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// Signals cannot be handled.
    #[error("signals cannot be handled: {0}")]
    Signals(#[source] io::Error),
    /// The output cannot be written.
    #[error("the output cannot be written: {0}")]
    Output(#[source] io::Error),
}

/// A connection to a running server.
pub struct Client {
    lines: Lines,
}

/// What every version of a reply has.
#[derive(Deserialize)]
struct Head {
    version: u32,
}

impl Client {
    /// Connects to the server whose directory `dir` is.
    ///
    /// # Errors
    /// [`Error::NoServer`], [`Error::Connection`].
    pub fn connect(dir: &Path) -> Result<Self, Error> {
        let stream =
            UnixStream::connect(dir.join(SOCKET)).map_err(|source| match source.kind() {
                io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
                    Error::NoServer { dir: dir.to_owned(), source }
                }
                _ => Error::Connection(source),
            })?;
        Ok(Self { lines: Lines::new(stream, MAX_REPLY) })
    }

    /// Asks for everything, or for one guest.
    ///
    /// # Errors
    /// [`Error`]. After [`Refusal::NoGuest`] the connection can still be used.
    pub fn ask(&mut self, guest: Option<&str>) -> Result<Snapshot, Error> {
        let request = Request { version: VERSION, guest: guest.map(str::to_owned) };
        // A server that turned us away has said so and closed: its answer comes before our complaint.
        let sent = send(self.lines.stream(), &request);
        let line = match (self.lines.next(PATIENCE), sent) {
            (Ok(line), _) => line,
            (Err(_), Err(error)) => return Err(Error::Connection(error)),
            (Err(error), Ok(())) => return Err(Error::Line(error)),
        };
        let Head { version } = serde_json::from_slice(&line).map_err(Error::Garbled)?;
        if version != VERSION {
            return Err(Error::Version { got: version });
        }
        let reply: Reply = serde_json::from_slice(&line).map_err(Error::Garbled)?;
        match reply.answer {
            Answer::Snapshot(snapshot) => Ok(*snapshot),
            Answer::Refused(refusal) => Err(refusal.into()),
        }
    }
}
