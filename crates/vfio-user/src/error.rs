//! Errors, split by whose fault they are: the peer's bytes, the embedder's refusal, our caller.

use rustix::io::Errno;

use crate::wire::Command;

/// What a peer did that the protocol, or this server, does not allow.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ProtocolError {
    /// The connection ended inside a message.
    #[error("connection ended after {got} of {wanted} bytes")]
    Truncated {
        /// Bytes of the part that was being read.
        wanted: usize,
        /// Bytes of it that came.
        got: usize,
    },
    /// A message is shorter than its header or longer than [`MAX_MESSAGE`](crate::MAX_MESSAGE).
    #[error("message of {0} bytes")]
    MessageSize(u32),
    /// Neither a request nor a reply.
    #[error("message with flags {0:#x}")]
    MessageType(u32),
    /// More than [`MAX_FDS`](crate::MAX_FDS) descriptors came with one message, or more than this
    /// process may still open: the kernel does not tell the two apart.
    #[error("too many descriptors with one message")]
    TooManyDescriptors,
    /// A reply to no request of ours.
    #[error("reply {0:#x} to no request")]
    UnsolicitedReply(u16),
    /// A reply of another command than its request, or with the wrong data.
    #[error("reply {0:#x} does not fit its request")]
    ReplyContent(u16),
    /// Another command than the version before the version.
    #[error("command {0} before the version")]
    BeforeVersion(u16),
    /// A major version that is not spoken here.
    #[error("major version {0}")]
    MajorVersion(u16),
    /// Version data that are too long, do not end in NUL, or are not the JSON object expected.
    #[error("malformed version data")]
    VersionData,
    /// A second version.
    #[error("the version again")]
    VersionAgain,
    /// A command that does not exist, or is not for a server.
    #[error("unknown command {0}")]
    UnknownCommand(u16),
    /// A payload shorter or longer than its command has, or an `argsz` that does not fit.
    #[error("{command:?} with {got} bytes of payload")]
    PayloadSize {
        /// The command.
        command: Command,
        /// Bytes that came.
        got: usize,
    },
    /// Descriptors with a command that takes none, or not that many.
    #[error("{command:?} with {got} descriptors")]
    Descriptors {
        /// The command.
        command: Command,
        /// Descriptors that came.
        got: usize,
    },
    /// No such region, or an access outside it.
    #[error("region {region}: {count} bytes at {offset:#x}")]
    Region {
        /// Index of the region.
        region: u32,
        /// Offset of the access.
        offset: u64,
        /// Its length.
        count: u32,
    },
    /// No such kind of interrupt, or vectors outside it.
    #[error("interrupts {start}+{count} of kind {index}")]
    Irq {
        /// Kind of interrupt.
        index: u32,
        /// First vector.
        start: u32,
        /// Number of vectors.
        count: u32,
    },
    /// Flags of a request that are unknown or exclude each other.
    #[error("{command:?} with flags {flags:#x}")]
    RequestFlags {
        /// The command.
        command: Command,
        /// The flags.
        flags: u32,
    },
    /// A descriptor to signal an interrupt that is not an eventfd.
    #[error("interrupt descriptor is not an eventfd")]
    NotAnEventfd,
    /// Guest memory that is empty or wraps around.
    #[error("memory of {size:#x} bytes at {address:#x}")]
    DmaRange {
        /// Guest physical address.
        address: u64,
        /// Size in bytes.
        size: u64,
    },
}

macro_rules! kinds {
    ($($(#[$doc:meta])* $kind:ident = $name:literal: $pattern:pat,)*) => {
        /// The kinds of [`ProtocolError`], for counting them.
        #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
        pub enum ErrorKind {
            $($(#[$doc])* $kind,)*
        }

        impl ErrorKind {
            /// Every kind, in the order of its number.
            pub const ALL: &'static [Self] = &[$(Self::$kind),*];

            /// A name for counters.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$kind => $name,)* }
            }
        }

        impl ProtocolError {
            /// Which kind of error it is.
            pub const fn kind(&self) -> ErrorKind {
                match self { $($pattern => ErrorKind::$kind,)* }
            }
        }
    };
}

kinds! {
    /// [`ProtocolError::Truncated`].
    Truncated = "truncated": ProtocolError::Truncated { .. },
    /// [`ProtocolError::MessageSize`].
    MessageSize = "message_size": ProtocolError::MessageSize(_),
    /// [`ProtocolError::MessageType`].
    MessageType = "message_type": ProtocolError::MessageType(_),
    /// [`ProtocolError::TooManyDescriptors`].
    TooManyDescriptors = "too_many_descriptors": ProtocolError::TooManyDescriptors,
    /// [`ProtocolError::UnsolicitedReply`].
    UnsolicitedReply = "unsolicited_reply": ProtocolError::UnsolicitedReply(_),
    /// [`ProtocolError::ReplyContent`].
    ReplyContent = "reply_content": ProtocolError::ReplyContent(_),
    /// [`ProtocolError::BeforeVersion`].
    BeforeVersion = "before_version": ProtocolError::BeforeVersion(_),
    /// [`ProtocolError::MajorVersion`].
    MajorVersion = "major_version": ProtocolError::MajorVersion(_),
    /// [`ProtocolError::VersionData`].
    VersionData = "version_data": ProtocolError::VersionData,
    /// [`ProtocolError::VersionAgain`].
    VersionAgain = "version_again": ProtocolError::VersionAgain,
    /// [`ProtocolError::UnknownCommand`].
    UnknownCommand = "unknown_command": ProtocolError::UnknownCommand(_),
    /// [`ProtocolError::PayloadSize`].
    PayloadSize = "payload_size": ProtocolError::PayloadSize { .. },
    /// [`ProtocolError::Descriptors`].
    Descriptors = "descriptors": ProtocolError::Descriptors { .. },
    /// [`ProtocolError::Region`].
    Region = "region": ProtocolError::Region { .. },
    /// [`ProtocolError::Irq`].
    Irq = "irq": ProtocolError::Irq { .. },
    /// [`ProtocolError::RequestFlags`].
    RequestFlags = "request_flags": ProtocolError::RequestFlags { .. },
    /// [`ProtocolError::NotAnEventfd`].
    NotAnEventfd = "not_an_eventfd": ProtocolError::NotAnEventfd,
    /// [`ProtocolError::DmaRange`].
    DmaRange = "dma_range": ProtocolError::DmaRange { .. },
}

/// What follows from an error in a message.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Consequence {
    /// An error reply; the connection goes on.
    Reply(Errno),
    /// An error reply, and the connection ends: the two sides do not understand each other.
    ReplyAndEnd(Errno),
    /// The connection ends: what follows in the stream cannot be trusted.
    End,
}

impl ProtocolError {
    pub(crate) const fn consequence(&self) -> Consequence {
        match self {
            Self::Truncated { .. }
            | Self::MessageSize(_)
            | Self::MessageType(_)
            | Self::TooManyDescriptors
            | Self::UnsolicitedReply(_)
            | Self::ReplyContent(_) => Consequence::End,
            Self::BeforeVersion(_) | Self::MajorVersion(_) | Self::VersionData => {
                Consequence::ReplyAndEnd(Errno::INVAL)
            }
            Self::UnknownCommand(_) => Consequence::Reply(Errno::OPNOTSUPP),
            Self::VersionAgain
            | Self::PayloadSize { .. }
            | Self::Descriptors { .. }
            | Self::Region { .. }
            | Self::Irq { .. }
            | Self::RequestFlags { .. }
            | Self::NotAnEventfd
            | Self::DmaRange { .. } => Consequence::Reply(Errno::INVAL),
        }
    }
}

/// Why the embedder did not map or unmap memory; the client is told the errno.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("refused: {errno}")]
pub struct DmaRefusal {
    /// What the client is told.
    pub errno: Errno,
}

/// Why a message to the client was not sent, or not answered well.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum SendError {
    /// The connection has ended.
    #[error("the connection has ended")]
    Closed,
    /// [`MAX_OUTSTANDING`](crate::MAX_OUTSTANDING) requests wait for their reply already.
    #[error("too many requests without a reply")]
    TooManyOutstanding,
    /// The range of guest memory wraps around.
    #[error("the range wraps around")]
    Range,
    /// The reply did not come in time.
    #[error("no reply in time")]
    Deadline,
    /// The client refused.
    #[error("the client refused: {0}")]
    Refused(Errno),
    /// Called from the thread that would have to read the reply.
    #[error("a reply cannot be waited for on the thread that reads replies")]
    OnReaderThread,
}

/// Why a connection ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Disconnect {
    /// The client closed it, between two messages.
    #[error("closed by the client")]
    ClosedByClient,
    /// The client broke the protocol.
    #[error("protocol error: {0}")]
    Protocol(ProtocolError),
    /// The client did not read what it was sent for [`SEND_DEADLINE`](crate::SEND_DEADLINE).
    #[error("the client does not read")]
    Stalled,
    /// The socket failed.
    #[error("socket error: {0}")]
    Socket(Errno),
    /// [`Connection::close`](crate::Connection::close).
    #[error("closed by the embedder")]
    ClosedByEmbedder,
    /// The server was stopped.
    #[error("server stopped")]
    Stopped,
    /// The function, or the platform, panicked while it handled a message.
    #[error("a device panicked")]
    Panicked,
}
