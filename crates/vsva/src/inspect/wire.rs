//! How `inspect` asks and a server answers: one JSON object a line, over a unix socket in the server's directory.
//!
//! ```text
//!  client ──► {"version":1,"guest":null}                  at most MAX_REQUEST bytes
//!  client ◄── {"version":1,"snapshot":{…}}                at most MAX_REPLY bytes
//!         ◄── {"version":1,"refused":{"no_guest":{…}}}
//! ```
//!
//! A connection carries any number of these, one after the other. Neither side trusts the other: lines have a longest
//! length, every wait an end, and what is no message ends the connection.

use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::snapshot::Snapshot;

/// The version of the protocol. Both sides must have the same one.
pub const VERSION: u32 = 1;

/// The socket's name in the server's directory.
pub const SOCKET: &str = "inspect.sock";

/// Longest request in bytes, its newline included.
pub const MAX_REQUEST: usize = 256;

/// Longest reply in bytes, its newline included.
pub const MAX_REPLY: usize = 32 << 20;

/// PASIDs listed in one reply at most, those of all guests together: they fit [`MAX_REPLY`].
pub const MAX_LISTED: usize = 1 << 16;

/// Unanswered page requests listed for one guest at most: as many groups as a device can have out.
pub const MAX_PAGE_GROUPS: usize = 512;

/// Holders listed for one PASID at most.
pub const MAX_HOLDERS: usize = 8;

/// Longest time for all of a message to pass once it has begun.
pub const MESSAGE_LIMIT: Duration = Duration::from_secs(5);

/// Bytes taken from a stream at a time.
const CHUNK: usize = 16 << 10;

/// What a client asks for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// The client's [`VERSION`].
    pub version: u32,
    /// The one guest to be told of, or all.
    #[serde(default)]
    pub guest: Option<String>,
}

/// What a server says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reply {
    /// The server's [`VERSION`].
    pub version: u32,
    /// The answer.
    #[serde(flatten)]
    pub answer: Answer,
}

/// The answer to a request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// The server as it is.
    Snapshot(Box<Snapshot>),
    /// There is none.
    Refused(Refusal),
}

/// Why a server refuses.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Refusal {
    /// The client speaks another version.
    #[error(
        "the server speaks version {known} of the protocol, not {got}; use the same vsva for both"
    )]
    Version {
        /// The client's.
        got: u32,
        /// The server's.
        known: u32,
    },
    /// The request is no message, or a longer one than is taken. The connection ends.
    #[error("the server did not understand the request")]
    Malformed,
    /// There is no such guest.
    #[error("there is no guest {name:?}; there are: {}", known.join(", "))]
    NoGuest {
        /// What was asked for.
        name: String,
        /// What there is.
        known: Vec<String>,
    },
    /// As many clients are connected as the server takes. The connection ends.
    #[error("the server has {limit} such connections already")]
    Busy {
        /// The limit.
        limit: usize,
    },
    /// The client is another user's process. The connection ends.
    #[error("the server is another user's")]
    NotYours,
}

/// Why a line could not be read.
#[derive(Debug, thiserror::Error)]
pub enum LineError {
    /// The peer has gone, or not said all of a message in time.
    #[error("the connection was closed")]
    Closed,
    /// It is longer than the other side may send.
    #[error("a message of more than {limit} bytes")]
    TooLong {
        /// The limit.
        limit: usize,
    },
    /// Not all of it came within [`MESSAGE_LIMIT`], or nothing within the time that was given.
    #[error("no whole message came in time")]
    TooSlow,
    /// The operating system failed.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// A stream cut into lines of a limited length.
pub struct Lines {
    stream: UnixStream,
    limit: usize,
    /// Read, and not taken yet.
    pending: Vec<u8>,
}

impl Lines {
    /// Lines of at most `limit` bytes from `stream`.
    pub fn new(stream: UnixStream, limit: usize) -> Self {
        Self { stream, limit, pending: Vec::new() }
    }

    /// The next line, without its newline, if it begins within `patience` and ends within [`MESSAGE_LIMIT`] of that.
    ///
    /// # Errors
    /// [`LineError`]; the stream is of no more use then.
    pub fn next(&mut self, patience: Duration) -> Result<Vec<u8>, LineError> {
        let mut deadline = Instant::now() + patience;
        let mut searched = 0;
        let mut begun = false;
        loop {
            if let Some(at) = self.pending.iter().skip(searched).position(|byte| *byte == b'\n') {
                let rest = self.pending.split_off(searched + at + 1);
                let mut line = std::mem::replace(&mut self.pending, rest);
                return if line.len() > self.limit {
                    Err(LineError::TooLong { limit: self.limit })
                } else {
                    line.pop();
                    Ok(line)
                };
            }
            searched = self.pending.len();
            if searched >= self.limit {
                return Err(LineError::TooLong { limit: self.limit });
            }
            if searched > 0 && !begun {
                begun = true;
                deadline = Instant::now() + MESSAGE_LIMIT;
            }
            self.read_some(deadline)?;
        }
    }

    fn read_some(&mut self, deadline: Instant) -> Result<(), LineError> {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(LineError::TooSlow);
        }
        self.stream.set_read_timeout(Some(left))?;
        let mut chunk = [0; CHUNK];
        match self.stream.read(&mut chunk) {
            Ok(0) => Err(LineError::Closed),
            Ok(count) => {
                self.pending.extend_from_slice(&chunk[..count]);
                Ok(())
            }
            Err(error) => match error.kind() {
                ErrorKind::Interrupted => Ok(()),
                ErrorKind::WouldBlock | ErrorKind::TimedOut => Err(LineError::TooSlow),
                ErrorKind::ConnectionReset => Err(LineError::Closed),
                _ => Err(error.into()),
            },
        }
    }

    /// The stream, to write to.
    pub fn stream(&mut self) -> &mut UnixStream {
        &mut self.stream
    }
}

/// Sends one message as a line, within [`MESSAGE_LIMIT`] however slowly the peer reads.
///
/// # Errors
/// The operating system's; [`ErrorKind::TimedOut`] at the limit.
pub fn send(stream: &mut UnixStream, message: &impl Serialize) -> io::Result<()> {
    let mut line = serde_json::to_vec(message)?;
    line.push(b'\n');
    let deadline = Instant::now() + MESSAGE_LIMIT;
    let mut rest = line.as_slice();
    while !rest.is_empty() {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(ErrorKind::TimedOut.into());
        }
        stream.set_write_timeout(Some(left))?;
        match stream.write(rest) {
            Ok(0) => return Err(ErrorKind::WriteZero.into()),
            Ok(count) => rest = rest.get(count..).unwrap_or_default(),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
