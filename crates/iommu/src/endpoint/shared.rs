//! A device of the host's that several VMs share by PASID.
//!
//! ```text
//!   request with PASID ─► of which VM is that number of the host's? ─► that VM's attachment
//!   request without   ─► the host's own VM                              with the VM's number
//! ```
//!
//! Such a device names the host's PASIDs: its work comes from processors that have translated
//! theirs (see [`crate::pasid::translation`]). On hardware one table has the entries of all of them;
//! here each VM has its own part of it, and the host's number says which. Caches, faults and page
//! requests are the VM's, under the VM's number, as a host's driver would tell it.

use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::cell::OnceCell;
use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use pci::RequesterId;

use super::{Channel, Endpoint};
use crate::in_flight::Side;
use crate::sabotage::{self, Sabotage};
use crate::software::GrantCheck;
use crate::sync::Mutex;
use crate::{PageRequest, PageResponse, PageResponses, Pasid, PrgIndex, ResponseCode, SHARED_VMS};

/// How long a defect is ahead of its time ([`Sabotage::RouteEarly`]).
const EARLY: u32 = 200_000;

/// Why a device is not shared.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ShareError {
    /// More VMs than one device takes.
    #[error("{vms} VMs; a device takes {SHARED_VMS} at most")]
    TooMany {
        /// How many there were.
        vms: usize,
    },
    /// One of them is shared itself.
    #[error("a device is shared once")]
    Nested,
}

/// The attachments of a shared device to the VMs that share it.
pub(super) struct Guests {
    pub(super) endpoints: Vec<Endpoint>,
    routes: Mutex<Vec<GrantCheck>>,
    groups: Arc<Groups>,
    sink: Mutex<Option<Arc<dyn PageResponses>>>,
}

impl Guests {
    pub(super) fn new(endpoints: Vec<Endpoint>) -> Result<Box<Self>, ShareError> {
        if endpoints.len() > SHARED_VMS {
            return Err(ShareError::TooMany { vms: endpoints.len() });
        }
        if endpoints.iter().any(|endpoint| endpoint.guests.is_some()) {
            return Err(ShareError::Nested);
        }
        let routes = Mutex::new(routes(&endpoints));
        let groups = Arc::new(Groups::default());
        Ok(Box::new(Self { endpoints, routes, groups, sink: Mutex::new(None) }))
    }

    pub(super) fn channels(&self) -> GuestChannels {
        GuestChannels {
            channels: self.endpoints.iter().map(Endpoint::channel).collect(),
            routes: Mutex::new(routes(&self.endpoints)),
            last: AtomicUsize::new(0),
        }
    }

    pub(super) fn set_page_responses(
        &self,
        requester: RequesterId,
        responses: Option<&Arc<dyn PageResponses>>,
    ) {
        *self.sink.lock() = responses.cloned();
        for (vm, endpoint) in self.endpoints.iter().enumerate() {
            let (groups, sink) = (self.groups.clone(), responses.cloned());
            let responses = sink.map(|sink| {
                Arc::new(GuestResponses { vm, requester, groups, sink }) as Arc<dyn PageResponses>
            });
            endpoint.set_page_responses(responses);
        }
    }

    /// Sends a request with the host's PASID `host` to whom that is. If it is nobody's, it is
    /// answered here.
    pub(super) fn send_page_request(&self, host: Pasid, request: PageRequest) {
        let found = {
            let routes = self.routes.lock();
            let of = |(vm, route): (usize, &GrantCheck)| Some((vm, route.guest_of(host)?));
            routes.iter().enumerate().find_map(of)
        };
        if let Some((vm, guest)) = found {
            if let Some(endpoint) = self.endpoints.get(vm) {
                if !request.is_stop_marker() {
                    self.groups.put(request.group, vm, host);
                }
                endpoint.send_page_request(PageRequest { pasid: Some(guest), ..request });
            }
            return;
        }
        let sink = self.sink.lock().clone();
        if let Some(sink) = sink.filter(|_| request.wants_response()) {
            let PageRequest { requester, pasid, group, .. } = request;
            sink.respond(PageResponse { requester, pasid, group, code: ResponseCode::Invalid });
        }
    }

    pub(super) fn forget_page_requests(&self) {
        self.endpoints.iter().for_each(Endpoint::forget_page_requests);
        self.groups.clear();
    }
}

fn routes(endpoints: &[Endpoint]) -> Vec<GrantCheck> {
    endpoints.iter().map(|endpoint| endpoint.device.vm.grant_check()).collect()
}

/// To which VM each page request group that is out went, and with which PASID of the host's.
struct Groups([AtomicU64; PrgIndex::COUNT as usize]);

impl Default for Groups {
    fn default() -> Self {
        Self([const { AtomicU64::new(0) }; PrgIndex::COUNT as usize])
    }
}

impl Groups {
    fn put(&self, group: PrgIndex, vm: usize, host: Pasid) {
        // One more, so that nothing is zero.
        let word = (vm as u64 + 1) << 32 | u64::from(host.get());
        self.0[usize::from(group.get())].store(word, Ordering::Release);
    }

    /// The PASID of a group that is out to `vm`; once.
    fn take(&self, group: PrgIndex, vm: usize) -> Option<Pasid> {
        let slot = &self.0[usize::from(group.get())];
        let word = slot.load(Ordering::Acquire);
        if word >> 32 != vm as u64 + 1 {
            return None;
        }
        let taken = slot.compare_exchange(word, 0, Ordering::AcqRel, Ordering::Relaxed).is_ok();
        taken.then(|| Pasid::from_field(word as u32))
    }

    fn clear(&self) {
        self.0.iter().for_each(|slot| slot.store(0, Ordering::Release));
    }
}

/// Brings a VM's answers to the device, under the number that this has asked with.
struct GuestResponses {
    vm: usize,
    requester: RequesterId,
    groups: Arc<Groups>,
    sink: Arc<dyn PageResponses>,
}

impl PageResponses for GuestResponses {
    fn respond(&self, response: PageResponse) {
        // One that is not out, or another VM's, is not for the device to hear.
        if let Some(host) = self.groups.take(response.group, self.vm) {
            let (requester, pasid) = (self.requester, Some(host));
            self.sink.respond(PageResponse { requester, pasid, ..response });
        }
    }
}

/// The channels of a shared device's channel.
pub(crate) struct GuestChannels {
    channels: Vec<Channel>,
    /// Taken by whoever has the channel in use.
    routes: Mutex<Vec<GrantCheck>>,
    /// The VM that the last access was of: the next one often is, too.
    last: AtomicUsize,
}

/// The part of an access that is a VM's: in the name of one of them.
pub(crate) struct GuestSide<'c> {
    guests: &'c GuestChannels,
    entered: OnceCell<(usize, Side<'c>)>,
}

impl<'c> GuestSide<'c> {
    pub(crate) fn new(guests: &'c GuestChannels) -> Self {
        Self { guests, entered: OnceCell::new() }
    }

    /// Where requests with the host's PASID `host` go, and the VM's number for it; `None` if it is
    /// nobody's, or another VM's than this access has been of so far.
    pub(crate) fn route(&self, host: Pasid) -> Option<(&Side<'c>, Pasid)> {
        let routes = self.guests.routes.lock();
        let of = |vm: usize| routes.get(vm)?.guest_of(host);
        let (vm, side) = match self.entered.get() {
            Some(entered) => entered,
            None => {
                let count = routes.len().max(1);
                let last = self.guests.last.load(Ordering::Relaxed);
                let mut vms = (0..routes.len()).map(|vm| (last + vm) % count);
                let vm = vms.find(|vm| of(*vm).is_some())?;
                self.guests.last.store(vm, Ordering::Relaxed);
                let early = sabotage::is(Sabotage::RouteEarly).then(|| of(vm)).flatten();
                if early.is_some() {
                    (0..EARLY).for_each(|_| core::hint::spin_loop());
                }
                let side = self.guests.channels.get(vm)?.side();
                let entered = self.entered.get_or_init(|| (vm, side));
                if let Some(guest) = early {
                    return Some((&entered.1, guest));
                }
                entered
            }
        };
        // Once more now that the access is in flight: whoever takes the PASID back from here on
        // waits for it, and what was taken back before is not used.
        Some((side, of(*vm)?))
    }
}
