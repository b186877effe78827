//! PCI functions over a vfio-user socket: the server side of the protocol, version 0.0, as
//! QEMU 11.1 speaks it.
//!
//! ```text
//!   client (QEMU: vfio-user-pci)
//!        │ messages, each with its descriptors
//!        ▼
//!     Server ── config and BAR accesses, reset ──► pci::Function ── vectors ──► eventfds
//!        │
//!        └──── DMA maps, connected, disconnected ──► Platform
//!                                                        │
//!   client ◄── DMA_READ, DMA_WRITE ── Connection ◄───────┘
//! ```
//!
//! A [`Server`] listens for one function and serves one client at a time, on a thread that blocks
//! until a message comes. Everything a client can send is bounded by a named constant. A request
//! that cannot be done is answered with an errno; a client that breaks the framing is disconnected;
//! both are counted by [kind](ErrorKind), and neither is noticed by other servers.

mod connection;
mod error;
mod interrupts;
mod irqs;
mod limits;
mod platform;
mod regions;
mod server;
mod session;
mod stats;
mod stream;
mod version;
mod wire;

pub use connection::Connection;
pub use error::{Disconnect, DmaRefusal, ErrorKind, ProtocolError, SendError};
pub use limits::{
    ACCEPT_RETRY, BACKLOG, DEPARTURE_DEADLINE, MAX_FDS, MAX_MESSAGE, MAX_MULTI_WRITES,
    MAX_OUTSTANDING, MAX_TRANSFER, MAX_VERSION_DATA, SEND_DEADLINE,
};
pub use platform::{DmaMap, Platform, UnmapRange};
pub use rustix::io::Errno;
pub use server::Server;
pub use stats::Counters;
pub use wire::Command;
