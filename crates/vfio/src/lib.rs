//! VFIO's user API byte for byte: a host end that carries out its calls, and a client that is an
//! [`iommu::Host`].
//!
//! ```text
//!   IOMMU model, machine                                        host
//!          │ trait Host, trait Vm                                ▲ trait Host, trait Vm
//!          ▼                                                     │
//!   Client, ClientVm ──► number, bytes, handle ──► Transport ──► Dispatcher, Container
//!                   ◄── bytes, value, device  ◄──
//!   Endpoint ─────────────────────────── DMA ───────────────────────────► engine
//! ```
//!
//! So a host can be used through the door that a kernel would have, with nothing lost on the way:
//! a model and its machine do not notice. DMA passes no door: what attaching gives is the device's
//! own [`Endpoint`](iommu::Endpoint).
//!
//! A program that is to run either way takes a [`Door`], which is a host called directly or through
//! bytes, as chosen when it starts.
//!
//! # What the bytes say, and what they do not
//!
//! Where VFIO or iommufd has a structure, or a series for them posted one, that is used (`MAP_DMA`,
//! `UNMAP_DMA`, `CACHE_INVALIDATE`, `PASID_REQUEST`, `struct iommu_fault`, `IOMMU_HWPT_ALLOC` and
//! the other objects); what none of them says has a structure of ours, or stands after theirs
//! ([`spec`]). Where posted series differ or collide, a [`Revision`] selects numbers and layouts,
//! from one table.
//!
//! | calls | carry | where |
//! |---|---|---|
//! | ours, and iommufd's objects | every method of [`iommu::Vm`], with every error | container |
//! | VFIO's, as posted | a VMM of 2018 to 2021: [`iommu::nesting`] | container, group, device |
//!
//! iommufd's structures end where iommufd's do; a longer one has, *out*, exactly why a call failed
//! and a ticket for what takes time. Today's kernel takes the longer one too, as long as that is
//! zero.
//!
//! Authority is a handle and never a number. These go beside the bytes, as descriptors would:
//!
//! | handle | stands for |
//! |---|---|
//! | the open container ([`File`]) | one VM: its memory, devices, PASIDs, faults. Numbers in the bytes (a PASID, a requester id, a ticket) select within it and reach nothing else |
//! | [`Handle::Memory`] | memory that may be mapped; `vaddr` is an offset in it |
//! | [`Handle::Contexts`] | the model's own tables, which the host asks for device contexts |
//! | [`Handle::Event`] | what is rung when a fault or a page request arrives |
//! | [`Reply::device`] | a device that was attached, until it is dropped |
//! | [`Handle::Container`] | a container, for a group that is to join it |
//! | an open group ([`Group`]) | devices that can only be in one container together |
//! | [`Reply::file`] | a device of a group: what VFIO has in its file ([`DeviceFile`]) |
//! | [`Reply::fault_file`] | a fault queue: page requests are read, answers written ([`FaultFile`]) |
//!
//! What takes time ends with a ticket, which is asked for ([`Request::Completion`]) and never waited
//! for. The posted calls have no place for one; [`Reply::pending`] is for a transport whose clients
//! expect them to be over when they return.
//!
//! A memory map is replaced as one: mappings change in a draft ([`Request::UpdateMemory`]) that
//! takes effect when it is committed, so that no access finds a hole in what both maps have.
//!
//! # As it was posted
//!
//! Whoever runs the host end says which groups there are ([`Dispatcher::add_group`]). A client opens
//! a container and a group, has the group join, chooses the kind of IOMMU (which makes the
//! container's VM, if it has none), and asks the group for its devices' files. In a container for
//! nested translation the devices behind one IOMMU are a [`Domain`](iommu::nesting::Domain), to
//! which `SET_PASID_TABLE`, `CACHE_INVALIDATE`, `SET_MSI_BINDING` and `NESTING_OP` go. Faults come
//! in the ring of their device, which has an interrupt.
//!
//! As in the kernel, the posted calls of one container come one after the other; but none holds a
//! lock while it asks the host, which asks others: whether a PASID may be bound
//! ([`iommu::PasidSubscriber`]), or tells devices that a page request is answered. Those may call
//! the same container. A second posted call waits for the first for some milliseconds and is then
//! refused (`EBUSY`), all others go on. A group that is closed meanwhile leaves when the call is
//! over.
//!
//! # Page requests
//!
//! | whose | is told | answers |
//! |---|---|---|
//! | of devices that the guest's own tables translate ([`Handle::Contexts`]) | [`Request::ReadPageRequest`] | [`Request::RespondPageRequest`] |
//! | of what is attached by a table with a fault queue | that queue's file, or [`Request::ReadPageFault`] | the file, or [`Request::RespondPageFault`] |
//! | of a domain's devices | the ring of faults of their own files | the ring of responses; our `NESTING_OP` |
//!
//! A fault queue's file is iommufd's: whole groups are read (`EINVAL` if the first does not fit,
//! `ESPIPE` for a position or a length that is no multiple), and an answer is success or invalid.
//! That the interface is broken (failure) is not for iommufd's callers to say, only for those of
//! [`Request::RespondPageFault`] and of the older generation.
//!
//! In the rings the rules are those of `iommu_report_device_fault` and `iommu_page_response`
//! ([`iommu::nesting::DeviceFaults`]): an answer is matched by its group, and by its PASID if the
//! request had one; one that matches nothing is counted ([`RingCounts`]) and nobody is told. What
//! finds the ring full, or no open file, is counted and answered with invalid at once, and so is
//! what a client leaves unanswered that closes its file; what is out when a PASID is unbound or a
//! table goes, the host answers, unless the VM was made ([`Request::CreateVm`]) to leave that to its
//! client ([`iommu::TakenGroups`]). An answer by `NESTING_OP` does not say of which device it is:
//! if several have such a group unanswered it is refused. No posted series has that operation.
//!
//! What the posted code did is kept where a revision of it is selected: a tail of `SET_PASID_TABLE`
//! that is not known is passed over, and what could not fail there does not (a `SET_PASID_TABLE`
//! without domains, `UNSET`, unbinding). Ours says so in each case. What review asked for is done in
//! all of them: a call over several devices that fails restores what each had, a group that joins
//! later has the table, S1DSS is applied.
//!
//! # Whose word is trusted
//!
//! Every structure comes in through one checked copy, with an error for each thing that can be wrong
//! with it ([`ArgumentError`]); after that it is a value. What is refused ([`Refusal`]) changes
//! nothing. A call's work is bounded by what its container holds ([`MAX_MAPPINGS`], its VM's quota)
//! and never by the numbers in it: a range of PASIDs reaches those that the container was granted,
//! and a ticket that was never given is not complete. A list of invalidations is decoded some at a
//! time ([`MAX_INVALIDATE_ENTRIES`]). A ring takes from its client an index and responses, and no
//! fault and no page request waits for room. A client that dies takes its VM along.
//!
//! ```
//! use iommu::{Host, PasidRange, SoftwareHost, Vm, VmConfig};
//! use mem::{Gpa, MemoryMap};
//! use pci::RequesterId;
//! use vfio::{Client, Dispatcher, Revision};
//!
//! // The host end; and a client of it, within one process.
//! let dispatcher = Dispatcher::new(SoftwareHost::new(), Revision::Own);
//! let host = Client::new(dispatcher.clone());
//!
//! // A VM as any other host's.
//! let vm = host.create_vm(VmConfig::named("guest")).unwrap();
//! let ticket = vm.set_memory(MemoryMap::anonymous(&[(Gpa(0), 0x10000)]).unwrap());
//! assert!(vm.is_complete(ticket));
//! let device = vm.attach(RequesterId::new(0, 16, 0).unwrap()).unwrap();
//! let pasid = vm.alloc_pasid(PasidRange::ALL).unwrap();
//! assert_eq!(vm.pasid_usage().live, 1);
//! vm.free_pasid(pasid).unwrap();
//!
//! // All of which went as bytes, but for what the device does.
//! assert_eq!(dispatcher.counts().refused, 0);
//! assert!(dispatcher.counts().calls >= 7);
//! drop((device, vm));
//! assert_eq!(dispatcher.host().vms(), 0);
//! ```
#![no_std]

extern crate alloc;
#[cfg(test)]
extern crate std;

mod argument;
mod capability;
mod client;
mod counters;
mod dispatcher;
mod door;
mod errno;
mod fault;
mod invalidation;
mod nesting;
mod number;
mod objects;
mod page_request;
mod refusal;
pub mod spec;
mod stage_two;
mod transport;

pub use argument::{ArgumentError, MAX_ARGUMENT};
pub use client::{Client, ClientVm, Failures};
pub use dispatcher::{
    Container, Dispatcher, DispatcherCounts, Group, GroupDevice, RingCounts, MAX_CONTAINERS,
    MAX_GROUPS, MAX_GROUP_DEVICES, MAX_INVALIDATE_ENTRIES, MAX_MAPPINGS, RING_ENTRIES,
};
pub use door::{Door, DoorVm};
pub use errno::Errno;
pub use number::{Request, Revision};
pub use refusal::Refusal;
pub use transport::{DeviceFile, FaultFile, File, Handle, Reply, Transport};
