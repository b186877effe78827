//! Telling those who use PASIDs besides the IOMMU when one is bound to a device, when it no longer
//! is, and when it is given back.
//!
//! ```text
//!   attach:  prepare everybody ─► the host's table entry ─► commit (a CPU's table opens)
//!   detach:  unbind everybody (a CPU's table closes) ─► entry cleared, caches forget ─► reference
//!   free:    FREE to everybody ─► the VM's driver takes down what is attached still
//! ```

use alloc::sync::{Arc, Weak};

use ioasid::{Event, HoldError, Priority, Refusal, SubscribeError, Tag};

use super::pasids::{Cut, Kept, Ref};
use super::vm::VmShared;
use crate::{GuestPasid, HostPasid, Pasid};

pub(crate) type Binding = ioasid::Binding<Kept, Cut>;

/// What somebody is told of a PASID of a VM.
#[derive(Clone, Copy, Debug)]
pub struct PasidEvent<'e> {
    /// The VM's name, for people.
    pub vm: &'e str,
    /// As the VM numbers it.
    pub guest: GuestPasid,
    /// As the host does.
    pub host: HostPasid,
    /// Which life of the host's number it is.
    pub tag: Tag,
    event: &'e Event<'e, Kept, Cut>,
}

impl PasidEvent<'_> {
    /// A reference to the host's PASID in the subscriber's own name: the number is not granted
    /// again before that is dropped.
    ///
    /// # Errors
    ///
    /// [`HoldError::Parked`] if the PASID was given back, so always in
    /// [`PasidSubscriber::free`]: who needs time then holds it since it was attached.
    /// [`HoldError::NoMemory`].
    pub fn hold(&self) -> Result<PasidHold, HoldError> {
        self.event.hold().map(|reference| PasidHold { _reference: reference })
    }
}

/// A reference to a PASID of the host: see [`PasidEvent::hold`].
#[derive(Debug)]
#[must_use = "dropping it ends the reference"]
pub struct PasidHold {
    _reference: Ref,
}

/// Somebody who is told: a table by which processors translate a guest's PASIDs, for example.
///
/// No lock is held while one of these runs: it may call the host for anything, and may sleep; what
/// it holds up is said in [`ioasid::Subscriber`]. Only the first attachment of a PASID is told,
/// and the end of the last one.
pub trait PasidSubscriber: Send + Sync {
    /// The PASID is about to be attached to a device: get ready, without opening anything.
    ///
    /// # Errors
    ///
    /// A refusal: it is not attached ([`ObjectError::Refused`](crate::ObjectError::Refused)).
    fn prepare(&self, event: &PasidEvent<'_>) -> Result<(), Refusal> {
        let _ = event;
        Ok(())
    }

    /// It is attached, and the host's table has its entry: open.
    fn commit(&self, event: &PasidEvent<'_>) {
        let _ = event;
    }

    /// What was got ready for does not happen.
    fn abort(&self, event: &PasidEvent<'_>) {
        let _ = event;
    }

    /// It is about to be detached from its last device: close.
    fn unbind(&self, event: &PasidEvent<'_>) {
        let _ = event;
    }

    /// The VM gave it back, maybe while it was attached: close. No [`unbind`](Self::unbind) comes
    /// any more.
    fn free(&self, event: &PasidEvent<'_>) {
        let _ = event;
    }
}

/// Being told; dropping it ends that.
#[derive(Debug)]
#[must_use = "dropping a subscription ends it"]
pub struct PasidSubscription {
    _subscription: ioasid::Subscription<Kept, Cut>,
}

/// A [`PasidSubscriber`] as the space tells it.
pub(super) struct Adapter(pub(super) Arc<dyn PasidSubscriber>);

impl Adapter {
    /// Not of PASIDs outside of VMs, which are the host's own.
    fn tell(event: &Event<'_, Kept, Cut>, tell: impl FnOnce(&PasidEvent<'_>)) {
        let Some(vm) = event.set_name() else { return };
        let host = Pasid::from_field(event.id().0);
        // Without a number in its set it has the host's.
        let guest = event.spid().map_or(host, |spid| Pasid::from_field(spid.0));
        let (guest, host) = (GuestPasid(guest), HostPasid(host));
        tell(&PasidEvent { vm, guest, host, tag: event.tag(), event });
    }
}

impl ioasid::Subscriber<Kept, Cut> for Adapter {
    fn prepare_bind(&self, event: &Event<'_, Kept, Cut>) -> Result<(), Refusal> {
        let mut answer = Ok(());
        Self::tell(event, |event| answer = self.0.prepare(event));
        answer
    }

    fn commit_bind(&self, event: &Event<'_, Kept, Cut>) {
        Self::tell(event, |event| self.0.commit(event));
    }

    fn abort_bind(&self, event: &Event<'_, Kept, Cut>) {
        Self::tell(event, |event| self.0.abort(event));
    }

    fn unbind(&self, event: &Event<'_, Kept, Cut>) {
        Self::tell(event, |event| self.0.unbind(event));
    }

    fn free(&self, event: &Event<'_, Kept, Cut>) {
        Self::tell(event, |event| self.0.free(event));
    }
}

/// The IOMMU's driver as a subscriber of a VM's PASIDs: it takes down what is attached of one that
/// is given back.
pub(super) struct Driver {
    pub(super) vm: Weak<VmShared>,
}

impl ioasid::Subscriber<Kept, Cut> for Driver {
    fn free(&self, event: &Event<'_, Kept, Cut>) {
        if let Some(vm) = self.vm.upgrade() {
            vm.take_down(event.tag());
        }
    }
}

/// The driver's subscription to the PASIDs of its VM.
pub(super) type Watch = ioasid::Subscription<Kept, Cut>;

/// Wraps a subscription that was begun.
pub(super) fn subscription(
    begun: Result<Watch, SubscribeError>,
) -> Result<PasidSubscription, SubscribeError> {
    begun.map(|subscription| PasidSubscription { _subscription: subscription })
}

/// Where in the order of subscribers the IOMMU's driver stands.
pub(super) const DRIVER: Priority = Priority::Iommu;
