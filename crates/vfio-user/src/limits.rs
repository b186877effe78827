//! Every bound that a peer can run into, by name.

use std::time::Duration;

/// Most descriptors that one message may carry; what QEMU sends at most.
pub const MAX_FDS: usize = 16;
/// Most bytes of data in one region access or one DMA message.
pub const MAX_TRANSFER: usize = 64 * 1024;
/// Most bytes of a message: data, and what stands before it.
pub const MAX_MESSAGE: usize = MAX_TRANSFER + 64;
/// Most bytes of the JSON object of a version message.
pub const MAX_VERSION_DATA: usize = 4096;
/// Most writes in one message of several.
pub const MAX_MULTI_WRITES: usize = 256;
/// Most requests to the client that may wait for their reply.
pub const MAX_OUTSTANDING: usize = 1024;
/// How long a client may leave a message of ours unread before its connection ends.
pub const SEND_DEADLINE: Duration = Duration::from_secs(2);
/// How long a new client waits while the one before it, already gone, is being cleaned up.
pub const DEPARTURE_DEADLINE: Duration = Duration::from_secs(10);
/// How long to wait after the machine refused to accept a client (no descriptors left, say).
pub const ACCEPT_RETRY: Duration = Duration::from_millis(100);
/// Clients that the kernel queues until they are accepted or refused.
pub const BACKLOG: i32 = 16;

// A message of several writes is no longer than any other.
const _: () = assert!(MAX_MULTI_WRITES * 24 + 24 <= MAX_MESSAGE);
