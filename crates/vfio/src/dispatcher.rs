//! The host end: bytes in, calls of a [`Host`] and its [`Vm`]s.

mod calls;
mod container;
mod device;
mod fault_file;
mod group;
mod memory;
mod objects;
mod page_faults;
mod page_requests;
mod pasids;
mod posted;
mod ring;
mod roster;
mod turn;

use alloc::sync::Arc;
use core::fmt;
use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use iommu::Host;

pub use container::Container;
pub use device::RingCounts;
pub use group::{Group, GroupDevice, MAX_GROUPS, MAX_GROUP_DEVICES};
pub use memory::MAX_MAPPINGS;
pub use objects::MAX_INVALIDATE_ENTRIES;
pub use ring::RING_ENTRIES;

use crate::{Errno, Refusal, Reply, Revision, Transport};
use container::Inner;
use group::Groups;

/// Containers that are open at most. Each has at most one VM, of which the host has its own limit.
pub const MAX_CONTAINERS: usize = 2048;

/// The host end for clients: what opens containers. Clones are the same.
///
/// It is a [`Transport`] itself, within one process.
pub struct Dispatcher<H: Host> {
    shared: Arc<Shared<H>>,
}

struct Shared<H> {
    host: H,
    revision: Revision,
    containers: AtomicUsize,
    calls: AtomicU64,
    refused: AtomicU64,
    groups: Groups,
}

impl<H> Shared<H> {
    /// Makes a call, and counts it.
    fn counted(&self, call: impl FnOnce() -> Result<Reply, Refusal>) -> Result<Reply, Refusal> {
        self.calls.fetch_add(1, Ordering::Relaxed);
        let result = call();
        if result.is_err() {
            self.refused.fetch_add(1, Ordering::Relaxed);
        }
        result
    }
}

/// What a dispatcher has counted, over all of its containers.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct DispatcherCounts {
    /// Containers open now.
    pub containers: usize,
    /// Calls so far.
    pub calls: u64,
    /// … that were refused.
    pub refused: u64,
}

impl<H: Host> Dispatcher<H> {
    /// A host end of `host` that speaks `revision`.
    pub fn new(host: H, revision: Revision) -> Self {
        let shared = Shared {
            host,
            revision,
            containers: AtomicUsize::new(0),
            calls: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            groups: Groups::default(),
        };
        Self { shared: Arc::new(shared) }
    }

    /// The host behind it.
    pub fn host(&self) -> &H {
        &self.shared.host
    }

    /// What numbers and layouts it speaks.
    pub fn revision(&self) -> Revision {
        self.shared.revision
    }

    /// Opens a container, which has no VM yet.
    ///
    /// # Errors
    ///
    /// [`Refusal::TooManyContainers`] beyond [`MAX_CONTAINERS`].
    pub fn open_container(&self) -> Result<Container<H>, Refusal> {
        let one_more = |containers| (containers < MAX_CONTAINERS).then_some(containers + 1);
        self.shared
            .containers
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, one_more)
            .map_err(|_| Refusal::TooManyContainers { limit: MAX_CONTAINERS })?;
        Ok(Container(Arc::new(Inner::new(self.shared.clone()))))
    }

    /// What was counted.
    pub fn counts(&self) -> DispatcherCounts {
        let Shared { containers, calls, refused, host: _, revision: _, groups: _ } = &*self.shared;
        DispatcherCounts {
            containers: containers.load(Ordering::Relaxed),
            calls: calls.load(Ordering::Relaxed),
            refused: refused.load(Ordering::Relaxed),
        }
    }
}

impl<H: Host> Clone for Dispatcher<H> {
    fn clone(&self) -> Self {
        Self { shared: self.shared.clone() }
    }
}

impl<H: Host> fmt::Debug for Dispatcher<H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Dispatcher")
            .field("revision", &self.revision())
            .field("counts", &self.counts())
            .finish_non_exhaustive()
    }
}

impl<H: Host + 'static> Transport for Dispatcher<H> {
    type File = Container<H>;

    fn open(&self) -> Result<Container<H>, Errno> {
        self.open_container().map_err(|refusal| refusal.errno())
    }
}

#[cfg(test)]
mod tests;
