//! The device side: endpoints and their channels.

use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;
use core::sync::atomic::{AtomicBool, Ordering};

use mem::MemoryMap;
use pci::RequesterId;

use crate::channel::ChannelShared;
use crate::in_flight::Side;
use crate::software::VmShared;
use crate::{InFlight, PageRequest, PageResponses, Ticket};

mod shared;

use shared::Guests;
pub use shared::ShareError;
pub(crate) use shared::{GuestChannels, GuestSide};

/// VMs that one device is shared by at most.
pub const SHARED_VMS: usize = 64;

/// A device attached to a VM. Dropping it detaches the device: no access through its channels
/// that begins later passes; [`detach`](Self::detach) also tells when the last one is over.
pub struct Endpoint {
    device: Arc<Device>,
    /// The VMs that share it.
    guests: Option<Box<Guests>>,
}

/// What an endpoint's channels share.
pub(crate) struct Device {
    pub(crate) vm: Arc<VmShared>,
    pub(crate) requester: RequesterId,
    /// Tells attachments of one requester apart.
    pub(crate) attachment: u64,
    ats: AtomicBool,
    /// See [`Endpoint::identity`].
    pub(crate) identity: bool,
}

impl Endpoint {
    pub(crate) fn new(vm: Arc<VmShared>, requester: RequesterId, attachment: u64) -> Self {
        Self::of(vm, requester, attachment, false)
    }

    fn of(vm: Arc<VmShared>, requester: RequesterId, attachment: u64, identity: bool) -> Self {
        let ats = AtomicBool::new(false);
        let device = Arc::new(Device { vm, requester, attachment, ats, identity });
        Self { device, guests: None }
    }

    /// Makes one device of this attachment, to a VM of the host's own, and those of `guests`: it
    /// names the host's PASIDs, and each request with one is translated as the VM's that has it
    /// now. Requests without PASID, and those with one that is none of these VMs', are this VM's.
    ///
    /// An access in flight is in the name of one of the guests. Of an answer to a page request the
    /// device hears under the number that it has asked with.
    ///
    /// # Errors
    ///
    /// [`ShareError`]; the device is detached from all of them.
    pub fn shared_by(mut self, guests: Vec<Self>) -> Result<Self, ShareError> {
        if self.guests.is_some() {
            return Err(ShareError::Nested);
        }
        self.guests = Some(Guests::new(guests)?);
        Ok(self)
    }

    /// An endpoint without a VM whose accesses are not translated, whatever their PASID, and
    /// where a hole in `map` is a page fault: for tests of device models.
    pub fn identity(requester: RequesterId, map: Arc<MemoryMap>) -> Self {
        let (vm, attachment) = VmShared::with_one_device(requester, map);
        Self::of(vm, requester, attachment, true)
    }

    /// Who this device is on the bus.
    pub fn requester(&self) -> RequesterId {
        self.device.requester
    }

    /// A channel for DMA: one for each of the device's engines that work at the same time. Each
    /// has its own cache of translations (some 50 KiB, and 20 KiB more while the device's ATS is on),
    /// so channels never wait for each other.
    ///
    /// A channel of a device whose VM is closed refuses every access.
    pub fn channel(&self) -> Channel {
        let shared = self.device.vm.add_channel(&self.device);
        let guests = self.guests.as_ref().map(|guests| Box::new(guests.channels()));
        Channel { shared, device: self.device.clone(), guests }
    }

    /// Whether accesses are made with translation requests (the device's ATS is enabled): page
    /// faults are then the device's business and are not recorded, and what the requests bring is
    /// kept in the device's own TLB, which only [`Invalidation::DeviceTlb`](crate::Invalidation)
    /// and its kin, the host itself and the end of ATS empty. Off at first.
    ///
    /// Returns at once, also from inside an access: accesses that begin later find the TLB empty,
    /// and every ticket that is given later covers those that are in flight.
    pub fn set_ats(&self, enabled: bool) {
        self.guests().for_each(|guest| guest.set_ats(enabled));
        self.device.vm.set_ats(&self.device, enabled);
    }

    /// For tests of what is above: has the device not answer invalidations of its own TLB while its
    /// ATS is on. What it holds is forgotten all the same, but the tickets of those invalidations,
    /// and of what the guest asks for after them, stay incomplete
    /// ([`Vm::unanswered`](crate::Vm::unanswered)) until this is called with `false`, the ATS is
    /// switched off or the device is detached.
    pub fn withhold_invalidation_answers(&self, withhold: bool) {
        self.guests().for_each(|guest| guest.withhold_invalidation_answers(withhold));
        self.device.vm.withhold_invalidation_answers(&self.device, withhold);
    }

    /// Sets where answers to the device's page requests go. The endpoint keeps it until it is
    /// detached or dropped, so it must not keep the endpoint.
    pub fn set_page_responses(&self, responses: Option<Arc<dyn PageResponses>>) {
        if let Some(guests) = &self.guests {
            guests.set_page_responses(self.requester(), responses.as_ref());
        }
        self.device.vm.set_page_responses(&self.device, responses);
    }

    /// Sends a page request message; its requester is this device, whatever it says. Returns at
    /// once: an answer comes as [`set_page_responses`](Self::set_page_responses) has it, maybe from
    /// inside this call. Which groups are out is for the device to know.
    ///
    /// ```
    /// # use std::sync::{Arc, Mutex};
    /// # use iommu::{Host, SoftwareHost, Vm, VmConfig};
    /// use iommu::{PageRequest, PageResponse, PageResponses, PrgIndex, ResponseCode};
    ///
    /// #[derive(Default)]
    /// struct Heard(Mutex<Vec<ResponseCode>>);
    ///
    /// impl PageResponses for Heard {
    ///     fn respond(&self, response: PageResponse) {
    ///         self.0.lock().unwrap().push(response.code);
    ///     }
    /// }
    ///
    /// # let vm = SoftwareHost::new().create_vm(VmConfig::named("guest"))?;
    /// # let requester = pci::RequesterId::from_bits(0x80);
    /// let device = vm.attach(requester)?;
    /// let heard = Arc::new(Heard::default());
    /// device.set_page_responses(Some(heard.clone()));
    /// device.send_page_request(PageRequest {
    ///     requester,
    ///     pasid: None,
    ///     privileged: false,
    ///     execute: false,
    ///     read: true,
    ///     write: false,
    ///     address: mem::Iova(0x5000),
    ///     group: PrgIndex::from_field(7),
    ///     last: true,
    ///     private_data: None,
    /// });
    ///
    /// // The IOMMU model, in the guest's name.
    /// let PageRequest { pasid, group, .. } = vm.take_page_request().expect("it waits");
    /// let code = ResponseCode::Success;
    /// let response = PageResponse { requester, pasid, group, code };
    /// vm.respond_page_request(response)?;
    /// assert_eq!(*heard.0.lock().unwrap(), [code]);
    /// assert!(vm.respond_page_request(response).is_err(), "once");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn send_page_request(&self, request: PageRequest) {
        let requester = self.device.requester;
        let request = PageRequest { requester, ..request };
        if let Some((guests, host)) = self.guests.as_ref().zip(request.pasid) {
            return guests.send_page_request(host, request);
        }
        self.device.vm.send_page_request(&self.device, request);
    }

    /// Gives up what the device has asked, as its reset does: no answer to it will come, but for
    /// one that another thread is just telling. A device that goes on counting its group indices
    /// across a reset takes that for no other's.
    pub fn forget_page_requests(&self) {
        if let Some(guests) = &self.guests {
            guests.forget_page_requests();
        }
        self.device.vm.forget_page_requests(&self.device);
    }

    /// The attachments to the VMs that share the device.
    fn guests(&self) -> impl Iterator<Item = &Self> {
        self.guests.iter().flat_map(|guests| &guests.endpoints)
    }

    /// Detaches the device. Once the ticket is complete, none of its accesses is in flight; of those
    /// of VMs that share it, tickets of theirs say so that are given later.
    pub fn detach(mut self) -> Ticket {
        drop(self.guests.take());
        // `drop` detaches once more, which finds nothing to do.
        self.device.vm.detach(&self.device)
    }
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        let _ = self.device.vm.detach(&self.device);
    }
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Endpoint").field("requester", &self.requester()).finish_non_exhaustive()
    }
}

impl Device {
    /// To be called by the VM, which has to know, too.
    pub(crate) fn switch_ats(&self, on: bool) {
        self.ats.store(on, Ordering::Relaxed);
    }

    pub(crate) fn ats(&self) -> bool {
        self.ats.load(Ordering::Relaxed)
    }
}

/// A path for a device's DMA. Usable through `&self`; a second user of the same channel waits.
pub struct Channel {
    shared: Arc<ChannelShared>,
    device: Arc<Device>,
    /// Those of the VMs that share the device.
    guests: Option<Box<GuestChannels>>,
}

impl Channel {
    /// Marks an access as in flight, until the value is dropped. Hold it for one bounded piece of
    /// work (at most some tens of KiB): an invalidation is not complete before it is dropped.
    ///
    /// A thread that holds one must not enter the same channel again: it would wait for itself.
    pub fn enter(&self) -> InFlight<'_> {
        InFlight::new(self.side(), self.guests.as_deref())
    }

    /// Of this VM alone.
    fn side(&self) -> Side<'_> {
        Side::new(self.shared.slot.enter(), &self.device)
    }
}

impl Drop for Channel {
    fn drop(&mut self) {
        // No access is in flight: each borrows the channel.
        self.device.vm.remove_channel(&self.shared);
    }
}

impl fmt::Debug for Channel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Channel").field("requester", &self.device.requester).finish_non_exhaustive()
    }
}
