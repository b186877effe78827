//! The host end: bytes in, calls of a [`Host`] and its [`Vm`]s.

mod calls;
mod memory;
mod objects;
mod pasids;

use alloc::sync::Arc;
use core::fmt;
use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use iommu::{Host, Vm};
use spin::mutex::SpinMutex;

pub use memory::MAX_MAPPINGS;
pub use objects::MAX_INVALIDATE_ENTRIES;

use crate::{Errno, File, Handle, Refusal, Reply, Request, Revision, Transport};
use calls::Machine;

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
        Ok(Container { shared: self.shared.clone(), machine: SpinMutex::new(None) })
    }

    /// What was counted.
    pub fn counts(&self) -> DispatcherCounts {
        let Shared { containers, calls, refused, host: _, revision: _ } = &*self.shared;
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

/// An open container: the handle that stands for one VM, and for nothing else. Dropping it closes
/// the VM, so that what held it can die at any time.
pub struct Container<H: Host> {
    shared: Arc<Shared<H>>,
    machine: SpinMutex<Option<Arc<Machine<H::Vm>>>>,
}

impl<H: Host> Container<H> {
    /// The host's own handle of the container's VM, if it has one: for whoever runs the host end
    /// in this process. No call gives it.
    pub fn host_vm(&self) -> Option<H::Vm> {
        self.machine.lock().as_ref().map(|machine| machine.vm.clone())
    }

    /// Carries out one call. Reads and writes no byte outside of `argument`, and takes a bounded
    /// number of steps, whatever that holds.
    ///
    /// # Errors
    ///
    /// See [`Refusal`]. Nothing has changed then; where the structure has a place for what was
    /// allowed, that is written.
    pub fn call(
        &self,
        number: u32,
        argument: &mut [u8],
        handle: Option<Handle>,
    ) -> Result<Reply, Refusal> {
        self.shared.calls.fetch_add(1, Ordering::Relaxed);
        let result = self.dispatch(number, argument, handle);
        if result.is_err() {
            self.shared.refused.fetch_add(1, Ordering::Relaxed);
        }
        result
    }

    fn dispatch(
        &self,
        number: u32,
        argument: &mut [u8],
        handle: Option<Handle>,
    ) -> Result<Reply, Refusal> {
        let revision = self.shared.revision;
        let request = Request::of(number, revision).ok_or(Refusal::UnknownRequest { number })?;
        if request == Request::CreateVm {
            return self.create_vm(argument, handle);
        }
        let machine = self.machine.lock().clone().ok_or(Refusal::NoVm)?;
        machine.dispatch(request, revision, argument, handle)
    }

    fn create_vm(&self, argument: &mut [u8], handle: Option<Handle>) -> Result<Reply, Refusal> {
        calls::no_handle(handle)?;
        let mut machine = self.machine.lock();
        if machine.is_some() {
            return Err(Refusal::VmExists);
        }
        *machine = Some(Arc::new(calls::create_vm(&self.shared.host, argument)?));
        Ok(Reply::default())
    }
}

impl<H: Host> Drop for Container<H> {
    fn drop(&mut self) {
        if let Some(machine) = self.machine.get_mut().take() {
            let _ticket = machine.vm.close();
        }
        self.shared.containers.fetch_sub(1, Ordering::AcqRel);
    }
}

impl<H: Host> fmt::Debug for Container<H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let has_vm = self.machine.lock().is_some();
        f.debug_struct("Container").field("has_vm", &has_vm).finish_non_exhaustive()
    }
}

impl<H: Host + 'static> Transport for Dispatcher<H> {
    type File = Container<H>;

    fn open(&self) -> Result<Container<H>, Errno> {
        self.open_container().map_err(|refusal| refusal.errno())
    }
}

impl<H: Host + 'static> File for Container<H> {
    fn ioctl(
        &self,
        number: u32,
        argument: &mut [u8],
        handle: Option<Handle>,
    ) -> Result<Reply, Errno> {
        self.call(number, argument, handle).map_err(|refusal| refusal.errno())
    }
}

#[cfg(test)]
mod tests;
