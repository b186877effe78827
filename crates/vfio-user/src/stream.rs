//! Whole messages out of a byte stream, each with the descriptors that came with it and no others.

use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::time::Instant;

use rustix::cmsg_space;
use rustix::io::Errno;
use rustix::net::{
    recvmsg, send, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendFlags,
};
use zerocopy::FromBytes;

use crate::error::{Disconnect, ProtocolError};
use crate::limits::{MAX_FDS, MAX_MESSAGE, SEND_DEADLINE};
use crate::wire::{Header, HEADER_SIZE};

/// A message as it came. Descriptors that nobody takes out are closed with it.
#[derive(Debug)]
pub(crate) struct Message {
    pub(crate) header: Header,
    pub(crate) payload: Vec<u8>,
    pub(crate) fds: Vec<OwnedFd>,
}

/// Reads the next message, blocking; `payload` is a buffer to use again.
///
/// It is read by its own length, so bytes of the next message, and the descriptors with them, stay
/// in the socket.
pub(crate) fn receive(socket: BorrowedFd<'_>, payload: Vec<u8>) -> Result<Message, Disconnect> {
    let mut fds = Vec::new();
    let mut bytes = [0; HEADER_SIZE];
    let got = fill(socket, &mut bytes, &mut fds)?;
    if got == 0 {
        return Err(Disconnect::ClosedByClient);
    }
    let truncated = |wanted, got| Disconnect::Protocol(ProtocolError::Truncated { wanted, got });
    let header = match Header::read_from_bytes(&bytes) {
        Ok(header) if got == HEADER_SIZE => header,
        _ => return Err(truncated(HEADER_SIZE, got)),
    };
    let rest = (header.size as usize).checked_sub(HEADER_SIZE);
    let Some(rest) = rest.filter(|rest| rest + HEADER_SIZE <= MAX_MESSAGE) else {
        return Err(Disconnect::Protocol(ProtocolError::MessageSize(header.size)));
    };
    let mut payload = payload;
    payload.clear();
    payload.resize(rest, 0);
    let got = fill(socket, &mut payload, &mut fds)?;
    if got < rest {
        return Err(truncated(rest, got));
    }
    Ok(Message { header, payload, fds })
}

/// Reads until `buf` is full or the stream ends; gives the bytes read.
fn fill(
    socket: BorrowedFd<'_>,
    buf: &mut [u8],
    fds: &mut Vec<OwnedFd>,
) -> Result<usize, Disconnect> {
    let mut done = 0;
    while let Some(rest) = buf.get_mut(done..).filter(|rest| !rest.is_empty()) {
        match fill_some(socket, rest, fds)? {
            0 => break,
            more => done += more,
        }
    }
    Ok(done)
}

fn fill_some(
    socket: BorrowedFd<'_>,
    buf: &mut [u8],
    fds: &mut Vec<OwnedFd>,
) -> Result<usize, Disconnect> {
    let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(MAX_FDS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = loop {
        let bytes = &mut [IoSliceMut::new(buf)];
        match recvmsg(socket, bytes, &mut control, RecvFlags::CMSG_CLOEXEC) {
            Err(Errno::INTR) => {}
            // Our own end was shut down, or the client was killed.
            Err(Errno::CONNRESET) => return Ok(0),
            result => break result.map_err(Disconnect::Socket)?,
        }
    };
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            fds.extend(rights);
        }
    }
    // The kernel keeps, and closes, what did not fit the control buffer.
    if received.flags.contains(ReturnFlags::CTRUNC) || fds.len() > MAX_FDS {
        return Err(Disconnect::Protocol(ProtocolError::TooManyDescriptors));
    }
    Ok(received.bytes)
}

/// Writes all of `bytes`, within [`SEND_DEADLINE`]; the socket has that as its send timeout too.
pub(crate) fn send_all(socket: BorrowedFd<'_>, bytes: &[u8]) -> Result<(), Disconnect> {
    let begun = Instant::now();
    let mut rest = bytes;
    while !rest.is_empty() {
        match send(socket, rest, SendFlags::NOSIGNAL) {
            Ok(sent) => rest = rest.get(sent..).unwrap_or(&[]),
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => return Err(Disconnect::Stalled),
            Err(Errno::PIPE | Errno::CONNRESET) => return Err(Disconnect::ClosedByClient),
            Err(errno) => return Err(Disconnect::Socket(errno)),
        }
        if !rest.is_empty() && begun.elapsed() > SEND_DEADLINE {
            return Err(Disconnect::Stalled);
        }
    }
    Ok(())
}
