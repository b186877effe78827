use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::Arc;
use std::time::Duration;
use std::vec::Vec;

use iommu::{
    AddressSpace, AllocPasidError, AttachError, Channel, DmaError, FreePasidError, GuestPasid,
    Invalidation, PageRequest, PageRequestCounters, PageRequestPolicy, Pasid, PasidRange, PrgIndex,
    SoftwareHost, Vm,
};
use mem::{Gpa, Iova, MemoryMap};
use pci::RequesterId;

use super::*;
use crate::{Container, Dispatcher};

const DEVICE: RequesterId = RequesterId::from_bits(0x80);
const SPACE: AddressSpace = AddressSpace { pasid: None, privileged: false };

/// A transport whose n-th call, and every call after it, fails or gets there, as told.
struct Flaky {
    dispatcher: Dispatcher<SoftwareHost>,
    calls: Arc<AtomicUsize>,
    /// Calls from this one …
    from: Arc<AtomicUsize>,
    /// … to before this one fail.
    to: Arc<AtomicUsize>,
}

struct FlakyFile {
    file: Container<SoftwareHost>,
    calls: Arc<AtomicUsize>,
    from: Arc<AtomicUsize>,
    to: Arc<AtomicUsize>,
}

const EIO: Errno = Errno(5);

impl Flaky {
    fn new() -> Self {
        let never = || Arc::new(AtomicUsize::new(usize::MAX));
        let dispatcher = Dispatcher::new(SoftwareHost::new(), Revision::Own);
        Self { dispatcher, calls: Arc::default(), from: never(), to: never() }
    }

    /// Lets the n-th call from now on fail, and `count` in all.
    fn fail(&self, n: usize, count: usize) {
        let from = self.calls.load(Ordering::Relaxed) + n;
        self.from.store(from, Ordering::Relaxed);
        self.to.store(from.saturating_add(count), Ordering::Relaxed);
    }
}

impl Transport for Flaky {
    type File = FlakyFile;

    fn open(&self) -> Result<FlakyFile, Errno> {
        let file = self.dispatcher.open()?;
        let Self { calls, from, to, .. } = self;
        Ok(FlakyFile { file, calls: calls.clone(), from: from.clone(), to: to.clone() })
    }
}

impl File for FlakyFile {
    fn ioctl(
        &self,
        number: u32,
        argument: &mut [u8],
        handle: Option<Handle>,
    ) -> Result<Reply, Errno> {
        let call = self.calls.fetch_add(1, Ordering::Relaxed);
        let range = self.from.load(Ordering::Relaxed)..self.to.load(Ordering::Relaxed);
        if range.contains(&call) {
            return Err(EIO);
        }
        self.file.ioctl(number, argument, handle)
    }
}

type FlakyVm = ClientVm<FlakyFile>;

fn config(name: &str) -> VmConfig {
    VmConfig { name: name.into(), quota: 2, ..VmConfig::default() }
}

fn rig() -> (Client<Flaky>, FlakyVm) {
    let client = Client::new(Flaky::new());
    let vm = client.create_vm(config("flaky")).unwrap();
    (client, vm)
}

fn memory(ranges: &[u64]) -> MemoryMap {
    let ranges: Vec<_> = ranges.iter().map(|&start| (Gpa(start), 0x1000)).collect();
    MemoryMap::anonymous(&ranges).unwrap()
}

fn reaches(channel: &Channel, address: u64) -> bool {
    channel.enter().read(SPACE, Iova(address), &mut [0]).is_ok()
}

#[test]
fn names_are_cut_at_a_character() {
    assert_eq!(shortened("plain"), "plain");
    assert_eq!(shortened("a\0b"), "ab");
    let long = "ä".repeat(NAME_BYTES);
    assert_eq!(shortened(&long), "ä".repeat(NAME_BYTES / 2));
    let odd = std::format!("x{long}");
    assert_eq!(shortened(&odd).len(), NAME_BYTES - 1);
    let client = Client::new(Dispatcher::new(SoftwareHost::new(), Revision::Own));
    assert!(client.create_vm(config(&odd)).is_ok());
}

#[test]
fn configurations_arrive() {
    for numbering in [Numbering::Identity, Numbering::Private] {
        for enforce_grants in [false, true] {
            let config = VmConfig { numbering, enforce_grants, ..config("one") };
            let flags = encode(&config).flags;
            assert_eq!(flags & VM_PRIVATE_PASIDS != 0, numbering == Numbering::Private);
            assert_eq!(flags & VM_ENFORCE_GRANTS != 0, enforce_grants);
        }
    }
}

#[test]
fn the_policy_of_page_requests_arrives() {
    let host = SoftwareHost::new();
    let client = Client::new(Dispatcher::new(host, Revision::Own));
    let timeout = Some(Duration::from_secs(3));
    let page_requests = PageRequestPolicy { per_device: 2, timeout, ..Default::default() };
    let vm = client.create_vm(VmConfig { page_requests, ..config("one") }).unwrap();
    let endpoint = vm.attach(DEVICE).unwrap();
    for group in 0..3 {
        let group = PrgIndex::from_field(group);
        let marker = PageRequest::stop_marker(DEVICE, Pasid::from_field(1));
        endpoint.send_page_request(PageRequest { group, read: true, ..marker });
    }
    let counts = || {
        let PageRequestCounters { requests, refused, timed_out, outstanding, .. } =
            vm.page_request_counters();
        [requests, refused, timed_out, outstanding]
    };
    assert_eq!(counts(), [3, 1, 0, 2]);
    assert_eq!(vm.tick(Duration::from_secs(10)), Some(Duration::from_secs(13)));
    // However late it hears of the time, nothing is out twice as long afterwards.
    let _next = vm.tick(Duration::from_secs(16));
    assert_eq!(counts(), [3, 1, 2, 0]);
}

#[test]
fn hosts_refuse_as_they_would_directly() {
    let host = SoftwareHost::new();
    let client = Client::new(Dispatcher::new(host.clone(), Revision::Own));
    let greedy = || VmConfig { quota: u32::MAX, ..config("greedy") };
    let direct = host.create_vm(greedy()).unwrap_err();
    assert!(matches!(direct, HostError::QuotaUnavailable { .. }));
    assert_eq!(client.create_vm(greedy()).unwrap_err(), direct);

    let none = || VmConfig { quota: 0, ..config("none") };
    let vms: Vec<_> = (0..iommu::MAX_VMS).map(|_| client.create_vm(none()).unwrap()).collect();
    let direct = host.create_vm(none()).unwrap_err();
    assert!(matches!(direct, HostError::TooManyVms { .. }));
    assert_eq!(client.create_vm(none()).unwrap_err(), direct);
    // What was refused leaves no container behind.
    assert_eq!(client.transport().counts().containers, iommu::MAX_VMS);
    drop(vms);
    assert_eq!((host.vms(), client.transport().counts().containers), (0, 0));
}

#[test]
fn a_host_end_that_speaks_otherwise_takes_no_part() {
    let client = Client::new(Dispatcher::new(SoftwareHost::new(), Revision::PasidRequestV7));
    let vm = client.create_vm(config("posted")).unwrap();
    let refused = vm.alloc_pasid(PasidRange::ALL).unwrap_err();
    assert_eq!(refused, AllocPasidError::Closed);
    let _ticket = vm.invalidate(Invalidation::IotlbAll);
    assert_eq!(vm.failures(), Failures { count: 1, last: Some(Errno::ENOTTY) });
    assert_eq!(vm.attach(DEVICE).unwrap_err(), AttachError::Closed);
}

#[test]
fn a_vm_that_cannot_be_created() {
    let client = Client::new(Flaky::new());
    client.transport().fail(0, 1);
    let refused = client.create_vm(config("none")).unwrap_err();
    assert_eq!(refused, HostError::TooManyVms { limit: 0 });
    assert_eq!(client.transport().dispatcher.counts().containers, 0);
}

/// Each call of a change of the memory map fails in turn: what was to go is gone all the same.
#[test]
fn a_change_that_fails_half_way_leaves_no_memory() {
    // Begin, two mappings gone, two new ones, commit.
    for failing in 0..6 {
        for count in [1, usize::MAX] {
            let (client, vm) = rig();
            let kept = memory(&[0x8000]);
            let with = |others: MemoryMap| {
                let segments = [kept.segments(), others.segments()].concat();
                MemoryMap::new(segments).unwrap()
            };
            let ticket = vm.set_memory(with(memory(&[0x1000, 0x3000])));
            assert!(vm.is_complete(ticket));
            let device = vm.attach(DEVICE).unwrap();
            let channel = device.channel();
            assert!([0x1000, 0x3000, 0x8000].iter().all(|&at| reaches(&channel, at)));

            client.transport().fail(failing, count);
            let ticket = vm.set_memory(with(memory(&[0x5000, 0x7000])));
            assert_eq!(vm.failures().last, Some(EIO), "{failing}");
            assert!(vm.memory().segments().is_empty());
            if count == 1 {
                assert!(vm.is_complete(ticket));
                let refused = channel.enter().read(SPACE, Iova(0x8000), &mut [0]).unwrap_err();
                assert_eq!(refused, DmaError::Detached);
                assert_eq!(vm.attach(DEVICE).unwrap_err(), AttachError::Closed);
            } else {
                // Nobody can say that it is over, so it is not; when the last handle goes, it is.
                assert!(!vm.is_complete(ticket));
                drop(vm);
                assert!(!reaches(&channel, 0x8000));
            }
        }
    }
}

#[test]
fn what_cannot_be_forgotten_is_closed() {
    let calls: [fn(&FlakyVm); 3] = [
        |vm| _ = vm.invalidate(Invalidation::IotlbAll),
        |vm| vm.set_contexts(None),
        |vm| _ = vm.release_pasids(),
    ];
    for call in calls {
        let (client, vm) = rig();
        vm.alloc_pasid(PasidRange::ALL).unwrap();
        client.transport().fail(0, 1);
        call(&vm);
        assert_eq!(vm.failures(), Failures { count: 1, last: Some(EIO) });
        assert_eq!(vm.attach(DEVICE).unwrap_err(), AttachError::Closed);
        assert_eq!(client.transport().dispatcher.host().vms(), 0);
    }
}

#[test]
fn what_can_wait_is_counted() {
    let (client, vm) = rig();
    client.transport().fail(0, usize::MAX);
    assert_eq!(vm.take_fault(), None);
    vm.set_fault_waker(None);
    assert_eq!(vm.counters(), iommu::Counters::default());
    assert_eq!(vm.pasid_usage(), iommu::PasidUsage::default());
    assert!(!vm.is_complete(iommu::Ticket::new(0)));
    let in_flight = vm.in_flight();
    vm.give_up_answers(in_flight);
    assert_eq!(vm.failures(), Failures { count: 7, last: Some(EIO) });
    assert_eq!(vm.attach(DEVICE).unwrap_err(), AttachError::Closed);
    let pasid = GuestPasid(Pasid::from_field(1));
    assert_eq!(vm.free_pasid(pasid), Err(FreePasidError::Closed));
    // It goes on when the host end can be reached again.
    client.transport().fail(usize::MAX / 2, 0);
    assert!(!vm.is_complete(in_flight), "nobody has ever looked");
    let in_flight = vm.in_flight();
    assert!(vm.is_complete(in_flight));
    assert!(vm.attach(DEVICE).is_ok());
}

#[test]
fn a_segment_that_stays_is_not_sent_again() {
    let (client, vm) = rig();
    let calls = || client.transport().calls.load(Ordering::Relaxed);
    let kept = memory(&[0x1000, 0x3000]);
    let _ticket = vm.set_memory(kept.clone());
    let before = calls();
    let segments = [kept.segments(), memory(&[0x5000]).segments()].concat();
    let _ticket = vm.set_memory(MemoryMap::new(segments).unwrap());
    assert_eq!(calls() - before, 3, "begin, one mapping, commit");
    assert_eq!(vm.memory().segments().len(), 3);
}

#[test]
fn the_last_handle_closes() {
    let (client, vm) = rig();
    let other = vm.clone();
    let _ticket = vm.set_memory(memory(&[0]));
    let device = vm.attach(DEVICE).unwrap();
    let channel = device.channel();
    drop(vm);
    assert!(reaches(&channel, 0));
    drop(other);
    assert!(!reaches(&channel, 0));
    assert_eq!(client.transport().dispatcher.host().vms(), 0);
}
