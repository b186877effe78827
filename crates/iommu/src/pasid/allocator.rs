//! Where the PASIDs of a kernel's own users come from: decided once, for the whole machine.

use alloc::sync::Arc;
use core::fmt;

use pci::RequesterId;

use super::asked::Asked;
use super::{AllocError, CommandError, Pasid, PasidCommands, PasidRange};
use crate::software::{HostPasids, Lease};
use crate::AllocPasidError;

/// What an IOMMU driver says about the PASIDs that its hardware can use. A device gets what its
/// bus and itself can use; `None` is a bus or device without PASIDs.
pub trait PasidOps: Send + Sync {
    /// PASIDs that can be used on a bus.
    fn bus_range(&self, bus: u8) -> Option<PasidRange> {
        let _ = bus;
        Some(PasidRange::ALL)
    }

    /// PASIDs that a device can use.
    fn device_range(&self, requester: RequesterId) -> Option<PasidRange> {
        let _ = requester;
        Some(PasidRange::ALL)
    }
}

/// For which devices a consumer wants PASIDs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Scope {
    /// Those on a bus.
    Bus(u8),
    /// One.
    Device(RequesterId),
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bus(bus) => write!(f, "bus {bus:02x}"),
            Self::Device(requester) => write!(f, "device {requester}"),
        }
    }
}

/// The way that a request for a PASID takes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Route {
    /// This machine has no host above it: its own ID space answers.
    BareMetal,
    /// This machine is a guest: its host is asked, through this interface.
    Guest {
        /// As [`PasidCommands::interface`] calls it.
        interface: &'static str,
    },
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BareMetal => f.write_str("the host's own ID space"),
            Self::Guest { interface } => write!(f, "{interface}, then the VMM, then the host"),
        }
    }
}

/// The PASIDs of one machine, for the drivers of the kernel that runs on it. Clones are the same.
///
/// It needs no domain, no VM and no device: drivers ask at their initialisation.
#[derive(Clone)]
pub struct PasidAllocator {
    source: Arc<Source>,
    ops: Option<Arc<dyn PasidOps>>,
}

enum Source {
    Host(Arc<HostPasids>),
    Asked(Asked),
}

/// A PASID that is out, and the right to give it back.
pub(super) enum Held {
    /// On bare metal.
    Own(Lease),
    /// In a guest.
    Asked(ioasid::Lease<()>),
}

impl Held {
    pub(super) fn pasid(&self) -> Pasid {
        Pasid::from_field(match self {
            Self::Own(lease) => lease.id().0,
            Self::Asked(lease) => lease.id().0,
        })
    }
}

impl PasidAllocator {
    /// For the kernel of the machine whose PASIDs `host` hands out; see
    /// [`SoftwareHost::pasid_allocator`](crate::SoftwareHost::pasid_allocator).
    pub(crate) fn bare_metal(host: Arc<HostPasids>) -> Self {
        Self { source: Arc::new(Source::Host(host)), ops: None }
    }

    /// For the kernel of a guest, whose IOMMU driver found a way to ask the host.
    ///
    /// # Panics
    ///
    /// If there is no memory for it.
    pub fn guest(commands: Arc<dyn PasidCommands>) -> Self {
        Self { source: Arc::new(Source::Asked(Asked::new(commands))), ops: None }
    }

    /// The same, for consumers whose range `ops` narrows.
    pub fn with_ops(self, ops: Arc<dyn PasidOps>) -> Self {
        Self { ops: Some(ops), ..self }
    }

    /// The way that every request takes.
    pub fn route(&self) -> Route {
        match &*self.source {
            Source::Host(_) => Route::BareMetal,
            Source::Asked(asked) => Route::Guest { interface: asked.interface() },
        }
    }

    /// PASIDs that can be used in `scope`.
    pub(super) fn range(&self, scope: Scope) -> Option<PasidRange> {
        let Some(ops) = &self.ops else { return Some(PasidRange::ALL) };
        let bus = match scope {
            Scope::Bus(bus) => bus,
            Scope::Device(requester) => requester.bus(),
        };
        let range = PasidRange::ALL.intersection(&ops.bus_range(bus)?)?;
        match scope {
            Scope::Bus(_) => Some(range),
            Scope::Device(requester) => range.intersection(&ops.device_range(requester)?),
        }
    }

    /// Gets a PASID in `range`.
    pub(super) fn alloc(&self, range: PasidRange) -> Result<Held, AllocError> {
        match &*self.source {
            Source::Host(host) => host.alloc(range).map(Held::Own).map_err(|error| match error {
                AllocPasidError::NoMemory => AllocError::NoMemory,
                _ => AllocError::NoneAvailable,
            }),
            Source::Asked(asked) => asked.alloc(range).map(Held::Asked),
        }
    }

    /// Gives a PASID back; if the host does not take it, it is still held.
    pub(super) fn free(&self, held: Held) -> Result<(), (Option<Held>, CommandError)> {
        match (&*self.source, held) {
            (Source::Asked(asked), Held::Asked(lease)) => {
                asked.free(lease).map_err(|(lease, error)| (lease.map(Held::Asked), error))
            }
            // Dropping the lease is all that there is to it.
            _ => Ok(()),
        }
    }

    /// Leaves a PASID out for good that the host did not take back and nobody has any more.
    pub(super) fn lose(&self, held: Held) {
        if let (Source::Asked(asked), Held::Asked(lease)) = (&*self.source, held) {
            asked.lose(lease);
        }
    }
}

impl fmt::Debug for PasidAllocator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PasidAllocator").field("route", &self.route()).finish_non_exhaustive()
    }
}
