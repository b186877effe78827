//! What the embedder does with the client's memory and with its life.

use std::os::fd::OwnedFd;

use mem::{Gpa, Range};

use crate::connection::Connection;
use crate::error::{Disconnect, DmaRefusal};

/// Guest memory that a client makes accessible.
#[derive(Debug)]
pub struct DmaMap {
    /// Where the guest sees it.
    pub range: Range<Gpa>,
    /// The file it is in; without one it can only be reached through
    /// [`dma_read`](Connection::dma_read) and [`dma_write`](Connection::dma_write).
    pub fd: Option<OwnedFd>,
    /// Where in the file it begins, in bytes; offset plus length does not wrap.
    pub offset: u64,
    /// Devices may read it.
    pub readable: bool,
    /// Devices may write it.
    pub writable: bool,
}

/// Guest memory that a client withdraws.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum UnmapRange {
    /// All of it.
    All,
    /// What lies in this range.
    Range(Range<Gpa>),
}

/// The embedder's side of a server.
///
/// All calls but those that follow [`Connection::close`] and [`Server::stop`](crate::Server::stop)
/// come from the connection's own thread, one at a time. The client waits for
/// [`dma_map`](Self::dma_map) and [`dma_unmap`](Self::dma_unmap), and a guest's processors may wait
/// with it.
pub trait Platform: Send + Sync {
    /// Makes guest memory accessible.
    ///
    /// # Errors
    ///
    /// A refusal, whose errno the client gets.
    fn dma_map(&self, map: DmaMap) -> Result<(), DmaRefusal>;

    /// Withdraws guest memory; returns only when nothing uses it any more.
    ///
    /// # Errors
    ///
    /// A refusal, whose errno the client gets.
    fn dma_unmap(&self, range: UnmapRange) -> Result<(), DmaRefusal>;

    /// A client agreed on a version. `connection` can be used from any thread.
    fn connected(&self, connection: Connection);

    /// The connection ended: called once for every [`connected`](Self::connected), after the last
    /// message of it was handled, its interrupts were removed and the function was reset. The
    /// client's memory is still to be given up, and no new client is served until this returns.
    fn disconnected(&self, why: Disconnect);
}
