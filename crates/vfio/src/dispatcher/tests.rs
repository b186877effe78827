use std::collections::BTreeSet;
use std::sync::Arc;
use std::vec;
use std::vec::Vec;

use iommu::{
    AllocPasidError, AttachError, Counters, FreePasidError, HostError, Invalidation,
    PageResponseError, Pasid, PasidUsage, SoftwareHost, SoftwareVm, Ticket, Vm, VmConfig,
};
use mem::{Gpa, GuestMemory, HeapMemory, LayoutError};
use pci::RequesterId;
use proptest::prelude::*;
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes};

use super::*;

mod hostile;

use crate::spec::flags::*;
use crate::spec::*;
use crate::{invalidation, ArgumentError, Handle, Request};

const DEVICE: RequesterId = RequesterId::from_bits(0x80);

/// A container on a host end of its own.
struct Rig {
    dispatcher: Dispatcher<SoftwareHost>,
    container: Container<SoftwareHost>,
    revision: Revision,
}

impl Rig {
    fn without_vm(revision: Revision) -> Self {
        let dispatcher = Dispatcher::new(SoftwareHost::new(), revision);
        let container = dispatcher.open_container().unwrap();
        Self { dispatcher, container, revision }
    }

    fn with(revision: Revision, quota: u32) -> Self {
        let rig = Self::without_vm(revision);
        rig.call(Request::CreateVm, &mut create(quota)).unwrap();
        rig
    }

    fn new() -> Self {
        Self::with(Revision::Own, 4)
    }

    fn vm(&self) -> SoftwareVm {
        self.container.0.machine.lock().as_ref().unwrap().vm.clone()
    }

    fn call_with<A: IntoBytes + FromBytes>(
        &self,
        request: Request,
        argument: &mut A,
        handle: Option<Handle>,
    ) -> Result<Reply, Refusal> {
        let number = request.number(self.revision).unwrap();
        self.container.call(number, argument.as_mut_bytes(), handle)
    }

    fn call<A: IntoBytes + FromBytes>(
        &self,
        request: Request,
        argument: &mut A,
    ) -> Result<Reply, Refusal> {
        self.call_with(request, argument, None)
    }

    fn refusal<A: IntoBytes + FromBytes>(&self, request: Request, mut argument: A) -> Refusal {
        self.call(request, &mut argument).unwrap_err()
    }

    fn pasids(&self, flags: u32, min: u32, max: u32) -> Result<OwnPasidRequest, Refusal> {
        let mut request =
            OwnPasidRequest { argsz: 48, flags, min, max, ..OwnPasidRequest::new_zeroed() };
        self.call(Request::PasidRequest, &mut request)?;
        Ok(request)
    }

    fn posted_pasids(&self, flags: u32, min: u32, max: u32) -> Result<u32, Refusal> {
        let mut request = PasidRequest { argsz: 16, flags, min, max };
        self.call(Request::PasidRequest, &mut request).map(|reply| reply.value)
    }
}

fn create(quota: u32) -> CreateVm {
    CreateVm { argsz: 144, quota, ..CreateVm::new_zeroed() }
}

fn ticketed(flags: u32) -> Ticketed {
    Ticketed { argsz: 16, flags, ticket: 0 }
}

fn map(iova: u64, size: u64) -> MapDma {
    MapDma { argsz: 32, flags: MAP_READ | MAP_WRITE, vaddr: 0, iova, size }
}

fn memory() -> Option<Handle> {
    Some(Handle::Memory(Arc::new(HeapMemory::new(0x4000).unwrap())))
}

fn bell() -> Option<Handle> {
    Some(Handle::Event(Arc::new(|| ())))
}

#[test]
fn a_container_begins_without_a_vm_and_gets_one() {
    let rig = Rig::without_vm(Revision::Own);
    assert_eq!(rig.refusal(Request::CloseVm, ticketed(0)), Refusal::NoVm);
    let number = 0x3b73;
    let unknown = rig.container.call(number, &mut [], None).unwrap_err();
    assert_eq!((unknown, unknown.errno()), (Refusal::UnknownRequest { number }, Errno::ENOTTY));
    let unwanted = rig.call_with(Request::CreateVm, &mut create(1), bell()).unwrap_err();
    assert_eq!(unwanted, Refusal::UnwantedHandle);

    let mut request = create(5);
    request.name[..4].copy_from_slice("käe".as_bytes());
    rig.call(Request::CreateVm, &mut request).unwrap();
    assert_eq!(rig.vm().name(), "käe");
    assert_eq!(rig.vm().pasid_usage().quota, 5);
    assert_eq!(rig.refusal(Request::CreateVm, create(5)), Refusal::VmExists);
    assert_eq!(rig.dispatcher.host().vms(), 1);
    let counts = rig.dispatcher.counts();
    assert_eq!(counts, DispatcherCounts { containers: 1, calls: 5, refused: 4 });
}

#[test]
fn a_name_is_text_and_then_zeroes() {
    let rig = Rig::without_vm(Revision::Own);
    for name in [&b"\xff"[..], b"a\0b", b"\0b"] {
        let mut request = create(1);
        request.name[..name.len()].copy_from_slice(name);
        assert_eq!(rig.refusal(Request::CreateVm, request), Refusal::Value { offset: 24 });
    }
    let full = CreateVm { name: [b'x'; NAME_BYTES], ..create(1) };
    rig.call(Request::CreateVm, &mut { full }).unwrap();
    assert_eq!(rig.vm().name().len(), NAME_BYTES);
}

#[test]
fn what_a_host_refuses_is_told_with_its_limit() {
    let rig = Rig::with(Revision::Own, 1000);
    let other = rig.dispatcher.open_container().unwrap();
    let number = Request::CreateVm.number(Revision::Own).unwrap();
    let mut request = create(u32::MAX);
    let refusal = other.call(number, request.as_mut_bytes(), None).unwrap_err();
    let Refusal::Host(HostError::QuotaUnavailable { quota: u32::MAX, available }) = refusal else {
        panic!("{refusal:?}");
    };
    assert_eq!((request.available, refusal.errno()), (available, Errno::EDQUOT));
    assert!(available > 1000);
}

#[test]
fn containers_are_bounded_and_closing_one_ends_its_vm() {
    let rig = Rig::new();
    let more: Vec<_> = (1..MAX_CONTAINERS).map(|_| rig.dispatcher.open_container()).collect();
    let limit = MAX_CONTAINERS;
    assert_eq!(rig.dispatcher.open_container().unwrap_err(), Refusal::TooManyContainers { limit });
    drop(more);
    let (vm, dispatcher) = (rig.vm(), rig.dispatcher.clone());
    let channel = vm.attach(DEVICE).unwrap().channel();
    assert_eq!(dispatcher.host().vms(), 1);
    drop(rig);
    assert_eq!((dispatcher.host().vms(), dispatcher.counts().containers), (0, 0));
    assert_eq!(vm.attach(DEVICE).unwrap_err(), AttachError::Closed);
    drop(channel);
}

#[test]
fn handles_belong_to_their_requests() {
    let rig = Rig::new();
    let set = |flags| SetHandle { argsz: 8, flags };
    let refused =
        |request, flags, handle| rig.call_with(request, &mut set(flags), handle).unwrap_err();
    for (request, other) in
        [(Request::SetContexts, bell as fn() -> _), (Request::SetFaultEvent, memory)]
    {
        assert_eq!(refused(request, HANDLE_SET, None), Refusal::NoHandle);
        assert_eq!(refused(request, HANDLE_SET, other()), Refusal::NoHandle);
        assert_eq!(refused(request, HANDLE_UNSET, other()), Refusal::UnwantedHandle);
        assert_eq!(refused(request, 0, None), Refusal::Flags { flags: 0 });
        assert_eq!(refused(request, 3, other()), Refusal::Flags { flags: 3 });
        rig.call(request, &mut set(HANDLE_UNSET)).unwrap();
    }
    rig.call_with(Request::SetFaultEvent, &mut set(HANDLE_SET), bell()).unwrap();
    assert_eq!(rig.refusal(Request::MapDma, map(0, 0x1000)), Refusal::NoHandle);
    let wrong = rig.call_with(Request::MapDma, &mut map(0, 0x1000), bell()).unwrap_err();
    assert_eq!((wrong, wrong.errno()), (Refusal::NoHandle, Errno::EBADF));
    let extra = rig.call_with(Request::CloseVm, &mut ticketed(0), bell()).unwrap_err();
    assert_eq!(extra, Refusal::UnwantedHandle);
}

#[test]
fn mapping_as_posted() {
    let rig = Rig::new();
    rig.call_with(Request::MapDma, &mut map(0x1000, 0x4000), memory()).unwrap();
    rig.vm().memory().write(Gpa(0x4fff), &[1]).unwrap();
    let refused =
        |request: MapDma| rig.call_with(Request::MapDma, &mut { request }, memory()).unwrap_err();
    assert_eq!(refused(map(0x1000, 0x1000)), Refusal::Mapped { gpa: Gpa(0x1000) });
    assert_eq!(refused(map(0x8000, 0)), Refusal::Value { offset: 24 });
    assert_eq!(refused(map(u64::MAX, 2)), Refusal::Value { offset: 24 });
    assert_eq!(refused(MapDma { flags: 0, ..map(0x8000, 1) }), Refusal::Flags { flags: 0 });
    let write_only = MapDma { flags: MAP_WRITE, ..map(0x8000, 1) };
    assert_eq!(refused(write_only), Refusal::Unsupported { offset: 4 });
    let past = LayoutError::PastBacking { gpa: Gpa(0x8000), backing: 0x4000 };
    assert_eq!(refused(MapDma { vaddr: 0x4000, ..map(0x8000, 1) }), Refusal::Layout(past));

    let mut unmap = UnmapDma { argsz: 24, flags: 0, iova: 0x1000, size: 0x1000 };
    assert_eq!(rig.refusal(Request::UnmapDma, unmap), Refusal::Cuts { gpa: Gpa(0x1000) });
    unmap.size = 0;
    assert_eq!(rig.refusal(Request::UnmapDma, unmap), Refusal::Value { offset: 16 });
    unmap.flags = UNMAP_ALL;
    assert_eq!(rig.refusal(Request::UnmapDma, unmap), Refusal::Value { offset: 16 });
    unmap.iova = 0;
    let access = rig.vm().attach(DEVICE).unwrap();
    let channel = access.channel();
    let entered = channel.enter();
    let reply = rig.call(Request::UnmapDma, &mut unmap).unwrap();
    assert_eq!(unmap.size, 0x4000);
    assert!(rig.vm().memory().segments().is_empty());
    // As posted, it returns when no access that began before is left.
    let pending = reply.pending.unwrap();
    assert!(!rig.vm().is_complete(pending));
    drop(entered);
    assert!(rig.vm().is_complete(pending));
}

#[test]
fn read_only_mappings_are_read_only() {
    let rig = Rig::new();
    let request = MapDma { flags: MAP_READ, ..map(0, 0x1000) };
    rig.call_with(Request::MapDma, &mut { request }, memory()).unwrap();
    assert!(rig.vm().memory().read(Gpa(0), &mut [0]).is_ok());
    assert!(rig.vm().memory().write(Gpa(0), &[1]).is_err());
}

#[test]
fn a_change_of_the_map_is_seen_when_it_is_committed() {
    let rig = Rig::new();
    let update = |flags| rig.call(Request::UpdateMemory, &mut ticketed(flags));
    for flags in [0, UPDATE_BEGIN | UPDATE_COMMIT, 7] {
        assert_eq!(update(flags).unwrap_err(), Refusal::Flags { flags });
    }
    assert_eq!(update(UPDATE_COMMIT).unwrap_err(), Refusal::NoUpdate);
    update(UPDATE_BEGIN).unwrap();
    assert_eq!(update(UPDATE_BEGIN).unwrap_err(), Refusal::UpdateOpen);
    rig.call_with(Request::MapDma, &mut map(0, 0x1000), memory()).unwrap();
    assert!(rig.vm().memory().segments().is_empty());
    update(UPDATE_COMMIT).unwrap();
    assert_eq!(rig.vm().memory().segments().len(), 1);
}

#[test]
fn pasids_with_results_in_the_structure() {
    let rig = Rig::with(Revision::Own, 2);
    assert_eq!(rig.pasids(PASID_ALLOC, 5, 9).unwrap().pasid, 5);
    assert_eq!(rig.pasids(PASID_ALLOC, 5, u32::MAX).unwrap().pasid, 6);
    let mut request =
        OwnPasidRequest { argsz: 48, flags: 1, min: 1, max: 9, ..OwnPasidRequest::new_zeroed() };
    let refusal = rig.call(Request::PasidRequest, &mut request).unwrap_err();
    assert_eq!(refusal, Refusal::AllocPasid(AllocPasidError::QuotaExceeded { quota: 2 }));
    assert_eq!((request.quota, refusal.errno()), (2, Errno::EDQUOT));
    let usage = |quota, live, parked| {
        let answer = rig.pasids(PASID_QUERY, 0, 0).unwrap();
        assert_eq!((answer.quota, answer.live, answer.parked), (quota, live, parked));
    };
    usage(2, 2, 0);
    let not_granted = rig.pasids(PASID_FREE, 7, 7).unwrap_err();
    assert!(matches!(not_granted, Refusal::FreePasid(FreePasidError::NotGranted(_))));
    assert_eq!(rig.pasids(PASID_FREE, 7, 100).unwrap_err(), Refusal::NoPasidThere);
    assert_eq!(rig.pasids(PASID_FREE, 1 << 20, u32::MAX).unwrap_err(), Refusal::NoPasidThere);
    assert_eq!(rig.pasids(PASID_FREE, 0, u32::MAX).unwrap().count, 2);
    let usage_now = rig.vm().pasid_usage();
    assert_eq!(usage_now, PasidUsage { quota: 2, live: 0, parked: 0 });
    assert_eq!(rig.pasids(PASID_ALLOC, 1 << 20, u32::MAX).unwrap_err().errno(), Errno::ENOSPC);
    for (min, max) in [(2, 1), (u32::MAX, 0)] {
        assert_eq!(rig.pasids(PASID_ALLOC, min, max).unwrap_err(), Refusal::Value { offset: 8 });
        assert_eq!(rig.pasids(PASID_FREE, min, max).unwrap_err(), Refusal::Value { offset: 8 });
    }
    for flags in [0, 3, 5, 10, 15] {
        assert_eq!(rig.pasids(flags, 1, 9).unwrap_err(), Refusal::Flags { flags });
    }
    rig.pasids(PASID_ALLOC, 1, 9).unwrap();
    let released = rig.pasids(PASID_RELEASE, 0, 0).unwrap();
    assert!(rig.vm().is_complete(Ticket::new(released.ticket)));
    usage(2, 0, 0);
    assert!(state(&rig).granted.is_empty());
    assert_eq!(rig.pasids(PASID_FREE, 0, u32::MAX).unwrap_err(), Refusal::NoPasidThere);
}

#[test]
fn pasids_as_posted() {
    let rig = Rig::with(Revision::PasidRequestV7, 2);
    assert_eq!(rig.posted_pasids(PASID_ALLOC, 5, 9), Ok(5));
    assert_eq!(rig.posted_pasids(PASID_ALLOC, 5, 9), Ok(6));
    let refused = rig.posted_pasids(PASID_ALLOC, 5, 9).unwrap_err();
    assert_eq!(refused.errno(), Errno::ENOSPC, "one error, whatever the reason");
    assert_eq!(rig.posted_pasids(PASID_FREE, 7, 7), Ok(0), "nobody's, and no error");
    assert_eq!(rig.vm().pasid_usage().live, 2);
    assert_eq!(rig.posted_pasids(PASID_FREE, 0, u32::MAX), Ok(0));
    assert_eq!(rig.vm().pasid_usage().live, 0);
    assert_eq!(rig.posted_pasids(PASID_ALLOC, 9, 5).unwrap_err().errno(), Errno::EINVAL);
    assert_eq!(rig.posted_pasids(0, 1, 5).unwrap_err(), Refusal::Flags { flags: 0 });
    assert_eq!(rig.posted_pasids(3, 1, 5).unwrap_err(), Refusal::Flags { flags: 3 });
    let unknown = ArgumentError::UnknownFlags { flags: PASID_QUERY };
    assert_eq!(rig.posted_pasids(PASID_QUERY, 1, 5).unwrap_err(), unknown.into());
    let number = Request::SetMsiBinding.number(Revision::PasidTableV13).unwrap();
    let absent = rig.container.call(number, &mut [0; 64], None).unwrap_err();
    assert_eq!(absent, Refusal::UnknownRequest { number });
}

#[test]
fn a_range_of_numbers_reaches_only_what_is_owned() {
    let mine = Rig::new();
    mine.pasids(PASID_ALLOC, 5, 5).unwrap();
    let theirs = mine.dispatcher.open_container().unwrap();
    let call = |request: Request, argument: &mut [u8]| {
        theirs.call(request.number(Revision::Own).unwrap(), argument, None)
    };
    call(Request::CreateVm, create(4).as_mut_bytes()).unwrap();
    for (min, max) in [(5, 5), (0, u32::MAX)] {
        let mut free =
            OwnPasidRequest { argsz: 48, flags: 2, min, max, ..OwnPasidRequest::new_zeroed() };
        let refusal = call(Request::PasidRequest, free.as_mut_bytes()).unwrap_err();
        assert_eq!(refusal.errno(), Errno::ENOENT);
        assert_eq!(free.count, 0);
    }
    assert_eq!(mine.vm().pasid_usage().live, 1);
}

#[test]
fn invalidating_as_posted() {
    let rig = Rig::with(Revision::PasidTableV13, 0);
    let mut request = CacheInvalidate { argsz: 24, ..CacheInvalidate::new_zeroed() };
    request.info = CacheInvalidateInfo {
        argsz: 16,
        version: 1,
        cache: 5,
        ..CacheInvalidateInfo::new_zeroed()
    };
    let channel = rig.vm().attach(DEVICE).unwrap().channel();
    let entered = channel.enter();
    let pending = rig.call(Request::CacheInvalidate, &mut request).unwrap().pending.unwrap();
    assert_eq!(rig.vm().counters().invalidations, 2);
    assert!(!rig.vm().is_complete(pending));
    drop(entered);
    assert!(rig.vm().is_complete(pending));
}

#[test]
fn tickets() {
    let rig = Rig::new();
    let channel = rig.vm().attach(DEVICE).unwrap().channel();
    let entered = channel.enter();
    let mut request = invalidation::encode(Invalidation::IotlbAll);
    rig.call(Request::CacheInvalidate, &mut request).unwrap();
    let complete = |ticket| {
        let mut query = Completion { argsz: 24, ticket, complete: 7, ..Completion::new_zeroed() };
        rig.call(Request::Completion, &mut query).unwrap();
        query.complete
    };
    assert_eq!(complete(request.ticket), 0);
    drop(entered);
    // Not even now those that were never given.
    assert_eq!([complete(request.ticket + 1), complete(u64::MAX)], [0, 0]);
    assert_eq!(complete(request.ticket), 1);
}

#[test]
fn a_closed_vm_stays_closed() {
    let rig = Rig::new();
    rig.call_with(Request::MapDma, &mut map(0, 0x1000), memory()).unwrap();
    rig.pasids(PASID_ALLOC, 5, 5).unwrap();
    for _ in 0..2 {
        let mut close = ticketed(0);
        rig.call(Request::CloseVm, &mut close).unwrap();
        assert!(rig.vm().is_complete(Ticket::new(close.ticket)));
    }
    for request in [Request::CloseVm, Request::InFlight] {
        assert_eq!(rig.refusal(request, ticketed(1)), Refusal::Flags { flags: 1 });
    }
    assert!(state(&rig).granted.is_empty());
    let errno = rig.call_with(Request::MapDma, &mut map(0, 0x1000), memory()).unwrap_err().errno();
    assert_eq!(errno, Errno::ENODEV);
    assert_eq!(rig.pasids(PASID_ALLOC, 5, 5).unwrap_err().errno(), Errno::ENODEV);
    assert_eq!(rig.pasids(PASID_FREE, 5, 5).unwrap_err().errno(), Errno::ENODEV);
    let attach = AttachDevice { argsz: 16, requester: 0x80, ..AttachDevice::new_zeroed() };
    assert_eq!(rig.refusal(Request::AttachDevice, attach).errno(), Errno::ENODEV);
    assert_eq!(rig.refusal(Request::CreateVm, create(1)), Refusal::VmExists);
}

/// All that a client could have changed.
#[derive(PartialEq, Debug)]
struct State {
    counters: Counters,
    usage: PasidUsage,
    granted: BTreeSet<Pasid>,
    segments: Vec<(mem::Range<Gpa>, usize)>,
    memory: std::string::String,
    posted: std::string::String,
    vms: usize,
}

fn state(rig: &Rig) -> State {
    let machine = rig.container.0.machine.lock().clone().unwrap();
    let segments = machine.vm.memory();
    State {
        counters: machine.vm.counters(),
        usage: machine.vm.pasid_usage(),
        granted: machine.granted_pasids(),
        segments: segments.segments().iter().map(|s| (s.range, s.offset)).collect(),
        memory: std::format!("{:?}", machine.memory.lock()),
        posted: rig.container.0.posted.peek(|posted| posted.snapshot()),
        vms: rig.dispatcher.host().vms(),
    }
}

#[test]
fn a_host_end_can_be_named() {
    let rig = Rig::new();
    assert_eq!(rig.dispatcher.revision(), Revision::Own);
    assert!(std::format!("{:?} {:?}", rig.dispatcher, rig.container).contains("has_vm: true"));
    let named = rig.dispatcher.host().create_vm(VmConfig::named("directly")).unwrap();
    assert_eq!(rig.dispatcher.clone().host().vms(), 2);
    drop(named);
}
