//! The control channel: messages of [`guest_protocol`] over a byte stream, with a limit on every wait.

use std::fs::File;
use std::io::{self, ErrorKind, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use guest_protocol::{decode, encode, FromGuest, LineError, Lines, ToGuest};

/// The longest that a message to the guest may take to be accepted; its serial port takes one at once.
const SEND_LIMIT: Duration = Duration::from_secs(10);

/// Bytes taken from the stream at a time: bounds the whole lines that wait in memory.
const CHUNK: usize = 4096;

/// Bytes of a line that an error shows.
const SHOWN: usize = 120;

/// Why the channel is of no use any more.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// The other end is gone.
    #[error("the control channel was closed")]
    Closed,
    /// The operating system failed a read or a write.
    #[error("the control channel failed: {0}")]
    Io(#[source] io::Error),
    /// The guest sent what is no message.
    #[error("the guest sent a line that is no message: {error} (it begins {begins:?})")]
    Garbled {
        /// What is wrong with it.
        error: LineError,
        /// Its first characters.
        begins: String,
    },
    /// A message of ours does not fit a line.
    #[error("a message to the guest cannot be sent: {0}")]
    Unsendable(#[source] LineError),
}

/// The lab's end of the channel.
#[derive(Debug)]
pub struct Control {
    stream: UnixStream,
    lines: Lines,
    transcript: Option<File>,
}

impl Control {
    /// Speaks over `stream`, and writes all that is said to `transcript`, if there is one.
    ///
    /// # Errors
    /// [`ControlError::Io`] when the stream takes no time limit.
    pub fn new(stream: UnixStream, transcript: Option<File>) -> Result<Self, ControlError> {
        stream.set_write_timeout(Some(SEND_LIMIT)).map_err(ControlError::Io)?;
        Ok(Self { stream, lines: Lines::new(), transcript })
    }

    /// Sends one message.
    ///
    /// # Errors
    /// [`ControlError::Closed`], [`ControlError::Io`], [`ControlError::Unsendable`].
    pub fn send(&mut self, message: &ToGuest) -> Result<(), ControlError> {
        let line = encode(message).map_err(ControlError::Unsendable)?;
        self.record("> ", line.trim_end().as_bytes());
        self.stream.write_all(line.as_bytes()).map_err(|error| match error.kind() {
            ErrorKind::BrokenPipe | ErrorKind::ConnectionReset => ControlError::Closed,
            _ => ControlError::Io(error),
        })
    }

    /// The guest's next message, or `None` if none came within `limit` (more than zero).
    ///
    /// # Errors
    /// [`ControlError::Closed`], [`ControlError::Io`], [`ControlError::Garbled`]. After a garbled line the next one can
    /// still be received.
    pub fn receive(&mut self, limit: Duration) -> Result<Option<FromGuest>, ControlError> {
        if let Some(message) = self.take_line()? {
            return Ok(Some(message));
        }
        self.stream.set_read_timeout(Some(limit)).map_err(ControlError::Io)?;
        let mut chunk = [0; CHUNK];
        match self.stream.read(&mut chunk) {
            Ok(0) => Err(ControlError::Closed),
            Ok(count) => {
                self.lines.feed(&chunk[..count]);
                self.take_line()
            }
            Err(error) => match error.kind() {
                ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted => Ok(None),
                ErrorKind::ConnectionReset => Err(ControlError::Closed),
                _ => Err(ControlError::Io(error)),
            },
        }
    }

    fn take_line(&mut self) -> Result<Option<FromGuest>, ControlError> {
        let Some(line) = self.lines.next() else { return Ok(None) };
        let line = line.map_err(|error| ControlError::Garbled { error, begins: String::new() })?;
        self.record("< ", &line);
        match decode(&line) {
            Ok(message) => Ok(Some(message)),
            Err(error) => {
                let begins = String::from_utf8_lossy(&line).chars().take(SHOWN).collect();
                Err(ControlError::Garbled { error, begins })
            }
        }
    }

    fn record(&mut self, direction: &str, line: &[u8]) {
        if let Some(transcript) = &mut self.transcript {
            // A full disk costs the transcript, not the run.
            let text = [direction.as_bytes(), line, b"\n"].concat();
            let _ = transcript.write_all(&text);
        }
    }
}

#[cfg(test)]
mod tests {
    use guest_protocol::MAX_LINE;

    use super::*;

    const SOON: Duration = Duration::from_millis(10);
    const LONG: Duration = Duration::from_secs(10);

    fn pair() -> (Control, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        (Control::new(ours, None).unwrap(), theirs)
    }

    /// Receives until there is something, as callers do.
    fn next(control: &mut Control) -> Result<FromGuest, ControlError> {
        loop {
            if let Some(message) = control.receive(LONG)? {
                return Ok(message);
            }
        }
    }

    #[test]
    fn messages_cross_in_pieces_and_together() {
        let (mut control, mut guest) = pair();
        assert!(control.receive(SOON).unwrap().is_none());
        guest.write_all(br#"{"type":"Hello","kernel":"7.3","#).unwrap();
        assert!(control.receive(SOON).unwrap().is_none());
        guest.write_all(b"\"cpus\":2}\n{\"type\":\"Done\",\"scenario\":\"x\"}\n").unwrap();
        let hello = FromGuest::Hello { kernel: "7.3".to_owned(), cpus: 2 };
        assert_eq!(next(&mut control).unwrap(), hello);
        assert_eq!(next(&mut control).unwrap(), FromGuest::Done { scenario: "x".to_owned() });
        control.send(&ToGuest::PowerOff).unwrap();
        let mut got = [0; 20];
        guest.read_exact(&mut got).unwrap();
        assert_eq!(&got, b"{\"type\":\"PowerOff\"}\n");
    }

    #[test]
    fn a_garbled_line_is_an_error_and_the_next_one_is_whole() {
        let (mut control, mut guest) = pair();
        guest.write_all(b"[ 0.1] kernel text\n{\"type\":\"Note\",\"text\":\"t\"}\n").unwrap();
        let error = next(&mut control).unwrap_err();
        assert!(
            matches!(&error, ControlError::Garbled { begins, .. } if begins.starts_with("[ 0.1]"))
        );
        assert_eq!(next(&mut control).unwrap(), FromGuest::Note { text: "t".to_owned() });
    }

    #[test]
    fn an_endless_line_is_an_error_in_bounded_memory() {
        let (mut control, mut guest) = pair();
        let writer = std::thread::spawn(move || {
            guest.write_all(&vec![b'x'; 4 * MAX_LINE]).unwrap();
            guest.write_all(b"\n").unwrap();
        });
        let error = next(&mut control).unwrap_err();
        assert!(matches!(error, ControlError::Garbled { error: LineError::TooLong { .. }, .. }));
        writer.join().unwrap();
    }

    #[test]
    fn a_gone_guest_is_told_from_a_silent_one() {
        let (mut control, guest) = pair();
        assert!(control.receive(SOON).unwrap().is_none());
        drop(guest);
        assert!(matches!(control.receive(SOON), Err(ControlError::Closed)));
        assert!(matches!(control.send(&ToGuest::PowerOff), Err(ControlError::Closed)));
    }
}
