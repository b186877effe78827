//! What happened, counted.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::error::ErrorKind;

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// What a server has done since it was started, over all its clients.
        #[derive(Clone, PartialEq, Eq, Debug, Default)]
        pub struct Counters {
            $($(#[$doc])* pub $name: u64,)*
            errors: [u64; ErrorKind::ALL.len()],
        }

        impl Counters {
            /// Every count with its name; those of errors begin with `error_`.
            pub fn iter(&self) -> impl Iterator<Item = (String, u64)> + '_ {
                let counts = [$((stringify!($name).to_owned(), self.$name)),*];
                let errors = ErrorKind::ALL.iter();
                counts.into_iter().chain(
                    errors.map(|&kind| (format!("error_{}", kind.name()), self.errors(kind))),
                )
            }
        }

        /// The same while it goes on.
        #[derive(Default, Debug)]
        pub(crate) struct Stats {
            $(pub(crate) $name: Count,)*
            errors: [Count; ErrorKind::ALL.len()],
        }

        impl Stats {
            pub(crate) fn snapshot(&self) -> Counters {
                Counters {
                    $($name: self.$name.get(),)*
                    errors: std::array::from_fn(|kind| self.errors[kind].get()),
                }
            }
        }
    };
}

counters! {
    /// Clients that were served.
    connections,
    /// Clients that were refused because the function was busy.
    refused,
    /// Messages that were received whole.
    messages,
    /// Requests that failed and were answered with an error, or dropped if they wanted no reply.
    failed_requests,
    /// Reads of BARs and configuration space.
    region_reads,
    /// Writes of BARs and configuration space.
    region_writes,
    /// Ranges of guest memory that were mapped.
    dma_maps,
    /// Requests to unmap that were done.
    dma_unmaps,
    /// Requests to map or unmap that the embedder refused.
    dma_refusals,
    /// Resets that the client asked for.
    resets,
    /// Interrupts that were signalled.
    interrupts,
    /// Interrupts that had no eventfd to go to.
    interrupts_dropped,
    /// Writes to guest memory that were sent to the client.
    dma_writes,
    /// Of these, those that the client refused.
    dma_write_failures,
    /// Reads of guest memory that were sent to the client.
    dma_reads,
    /// Connections that ended because a device panicked.
    panics,
}

impl Counters {
    /// How often a peer made this error.
    pub fn errors(&self, kind: ErrorKind) -> u64 {
        self.errors[kind as usize]
    }

    /// How many errors peers made, of all kinds.
    pub fn all_errors(&self) -> u64 {
        self.errors.iter().sum()
    }
}

impl Stats {
    pub(crate) fn error(&self, kind: ErrorKind) {
        self.errors[kind as usize].add();
    }
}

/// One count. Nothing is ordered by it.
#[derive(Default, Debug)]
pub(crate) struct Count(AtomicU64);

impl Count {
    pub(crate) fn add(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}
