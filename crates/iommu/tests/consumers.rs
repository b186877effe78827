//! Consumers of PASIDs: on bare metal, in a guest, and in a guest whose host means harm.
#![cfg(not(loom))]

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

use iommu::pasid::*;
use iommu::{Host, SoftwareHost, SoftwareVm, Vm, VmConfig};
use pci::RequesterId;

const BUS: Scope = Scope::Bus(0);

fn pasid(number: u32) -> Pasid {
    Pasid::new(number).unwrap()
}

fn range(first: u32, last: u32) -> PasidRange {
    PasidRange::new(pasid(first), pasid(last)).unwrap()
}

fn consumer<T>(pasids: &PasidAllocator) -> Consumer<T> {
    Consumer::init(pasids, BUS).unwrap()
}

/// The VMM between a guest's driver and the guest's VM, without a device in between.
struct ThroughVm(SoftwareVm);

impl PasidCommands for ThroughVm {
    fn interface(&self) -> &'static str {
        "function calls"
    }

    fn alloc(&self, range: PasidRange) -> Result<Pasid, CommandError> {
        let granted = self.0.alloc_pasid(range).map_err(|_| CommandError::NoneAvailable)?;
        Ok(granted.0)
    }

    fn free(&self, pasid: Pasid) -> Result<(), CommandError> {
        self.0.free_pasid(GuestPasid(pasid)).map_err(|_| CommandError::NotGranted)
    }
}

/// A host that answers as it was told to, and as an honest one when there is nothing left.
#[derive(Default)]
struct Scripted {
    allocs: Mutex<VecDeque<Result<Pasid, CommandError>>>,
    frees: Mutex<VecDeque<Result<(), CommandError>>>,
    freed: Mutex<Vec<Pasid>>,
    next: AtomicUsize,
    /// Called while a free is under way.
    during_free: OnceLock<Box<dyn Fn() + Send + Sync>>,
}

impl Scripted {
    fn new() -> Arc<Self> {
        Arc::new(Self { next: AtomicUsize::new(1), ..Self::default() })
    }

    fn will_give(&self, answer: Result<u32, CommandError>) {
        self.allocs.lock().unwrap().push_back(answer.map(pasid));
    }

    fn will_take(&self, answer: Result<(), CommandError>) {
        self.frees.lock().unwrap().push_back(answer);
    }

    fn freed(&self) -> Vec<u32> {
        self.freed.lock().unwrap().drain(..).map(Pasid::get).collect()
    }
}

impl PasidCommands for Scripted {
    fn interface(&self) -> &'static str {
        "a script"
    }

    fn alloc(&self, _range: PasidRange) -> Result<Pasid, CommandError> {
        let told = self.allocs.lock().unwrap().pop_front();
        told.unwrap_or_else(|| Ok(pasid(self.next.fetch_add(1, Ordering::Relaxed) as u32)))
    }

    fn free(&self, pasid: Pasid) -> Result<(), CommandError> {
        let answer = self.frees.lock().unwrap().pop_front().unwrap_or(Ok(()));
        self.freed.lock().unwrap().push(pasid);
        if let Some(f) = self.during_free.get() {
            f();
        }
        answer
    }
}

#[test]
fn a_number_of_another_consumer_is_not_found() {
    let host = SoftwareHost::new();
    let scripted = PasidAllocator::guest(Scripted::new());
    for pasids in [host.pasid_allocator(), scripted] {
        let (one, other) = (consumer(&pasids), consumer::<u8>(&pasids));
        let held = one.alloc(PasidRange::ALL, "mine").unwrap();
        assert_eq!(other.find(held), None);
        assert_eq!(other.free(held), Err(FreeError::NotFound(held)));
        assert_eq!(other.for_each(|_, _| Err(())), Ok(()));
        assert_eq!((one.len(), other.len()), (1, 0));
        assert_eq!(one.find(held).as_deref(), Some(&"mine"));
        assert_eq!(one.free(held).as_deref(), Ok(&"mine"));
        assert_eq!(one.free(held), Err(FreeError::NotFound(held)));
        assert_eq!(one.find(held), None);
    }
}

#[test]
fn the_iommu_driver_narrows_the_range_by_bus_and_by_device() {
    struct Vendor;
    impl PasidOps for Vendor {
        fn bus_range(&self, bus: u8) -> Option<PasidRange> {
            (bus != 9).then(|| range(0, 99))
        }
        fn device_range(&self, requester: RequesterId) -> Option<PasidRange> {
            match requester.device() {
                1 => Some(range(50, 200)),
                2 => Some(range(100, 200)),
                3 => None,
                _ => Some(PasidRange::ALL),
            }
        }
    }
    let pasids = SoftwareHost::new().pasid_allocator().with_ops(Arc::new(Vendor));
    let device = |number| Scope::Device(RequesterId::new(0, number, 0).unwrap());
    let init = |scope| Consumer::<()>::init(&pasids, scope);
    assert_eq!(init(BUS).unwrap().range(), range(1, 99), "zero is nobody's");
    assert_eq!(init(device(0)).unwrap().range(), range(1, 99));
    assert_eq!(init(device(2)).unwrap_err(), InitError::NoPasids(device(2)));
    assert_eq!(init(device(3)).unwrap_err(), InitError::NoPasids(device(3)));
    assert_eq!(init(Scope::Bus(9)).unwrap_err(), InitError::NoPasids(Scope::Bus(9)));
    let narrow = init(device(1)).unwrap();
    assert_eq!(narrow.range(), range(50, 99));
    assert_eq!(narrow.alloc(range(10, 60), ()), Ok(pasid(50)));
    let outside = AllocError::OutsideRange { wanted: range(100, 200), range: range(50, 99) };
    assert_eq!(narrow.alloc(range(100, 200), ()), Err(outside));
}

#[test]
fn for_each_stops_at_the_first_error_and_may_use_the_consumer() {
    let consumer = consumer(&SoftwareHost::new().pasid_allocator());
    for number in 1..=5 {
        consumer.alloc(PasidRange::ALL, number).unwrap();
    }
    let mut seen = Vec::new();
    let result = consumer.for_each(|pasid, number| {
        seen.push((pasid.get(), *number));
        // Freeing what comes, and what is there, disturbs nothing.
        consumer.free(pasid).unwrap();
        let _ = consumer.free(Pasid::new(4).unwrap());
        consumer.alloc(range(100, 200), 0).unwrap();
        if *number == 3 {
            Err("three")
        } else {
            Ok(())
        }
    });
    assert_eq!(result, Err("three"));
    assert_eq!(seen, [(1, 1), (2, 2), (3, 3)]);
    assert_eq!(consumer.len(), 4);
}

#[test]
fn a_consumer_that_ends_leaves_nothing_behind() {
    let host = SoftwareHost::new();
    let pasids = host.pasid_allocator();
    let (ends, dropped) = (consumer(&pasids), consumer(&pasids));
    let value = Arc::new(());
    for consumer in [&ends, &ends, &dropped] {
        consumer.alloc(PasidRange::ALL, value.clone()).unwrap();
    }
    assert_eq!(host.pasid_report().live, 3);
    assert_eq!(ends.exit(), Exited { freed: 2, lost: Vec::new() });
    assert_eq!(host.pasid_report().live, 1);
    drop(dropped);
    let report = host.pasid_report();
    assert_eq!((report.live, report.parked, report.promised), (0, 0, 0));
    assert_eq!(Arc::strong_count(&value), 1);
}

#[test]
fn on_bare_metal_nothing_that_is_promised_to_a_vm_is_taken() {
    let config = ioasid::Config { capacity: Some(3), ..ioasid::Config::default() };
    let host = SoftwareHost::with_pasids(config, None).unwrap();
    let vm = host.create_vm(VmConfig { quota: 2, ..VmConfig::named("vm") }).unwrap();
    let own = consumer(&host.pasid_allocator());
    own.alloc(PasidRange::ALL, ()).unwrap();
    assert_eq!(own.alloc(PasidRange::ALL, ()), Err(AllocError::NoneAvailable));
    assert!(host.create_vm(VmConfig { quota: 1, ..VmConfig::default() }).is_err());
    assert!(vm.alloc_pasid(PasidRange::ALL).is_ok());
    assert!(vm.alloc_pasid(PasidRange::ALL).is_ok());
    let _ = vm.close();
    drop(vm);
    assert!(own.alloc(PasidRange::ALL, ()).is_ok());
}

#[test]
fn a_guest_s_requests_go_to_its_host() {
    let host = SoftwareHost::new();
    let config = VmConfig { quota: 2, ..VmConfig::named("guest") };
    let vm = host.create_vm(config).unwrap();
    let pasids = PasidAllocator::guest(Arc::new(ThroughVm(vm.clone())));
    assert_eq!(pasids.route(), Route::Guest { interface: "function calls" });
    assert_eq!(pasids.route().to_string(), "function calls, then the VMM, then the host");
    let native = consumer(&host.pasid_allocator());
    assert_eq!(native.alloc(PasidRange::ALL, ()), Ok(pasid(1)));

    let (one, other) = (consumer(&pasids), consumer(&pasids));
    assert_eq!(one.alloc(PasidRange::ALL, ()), Ok(pasid(2)), "one space for host and guest");
    assert_eq!(other.alloc(range(8, 9), ()), Ok(pasid(8)));
    let refused = AllocError::Command(CommandError::NoneAvailable);
    assert_eq!(one.alloc(PasidRange::ALL, ()), Err(refused), "the quota is the guest's");
    assert_eq!(vm.pasid_usage().live, 2);
    assert_eq!(one.exit().freed, 1);
    assert_eq!(vm.pasid_usage().live, 1);
    // A host that took everything back meanwhile says so.
    let _ = vm.release_pasids();
    let lost = vec![(pasid(8), CommandError::NotGranted)];
    assert_eq!(other.exit(), Exited { freed: 0, lost });
}

#[test]
fn a_number_that_is_in_use_is_refused_and_left_to_its_user() {
    let host = Scripted::new();
    let pasids = PasidAllocator::guest(host.clone());
    let (one, other) = (consumer(&pasids), consumer(&pasids));
    host.will_give(Ok(5));
    let held = one.alloc(PasidRange::ALL, "first").unwrap();
    for consumer in [&one, &other] {
        host.will_give(Ok(5));
        let in_use = AllocError::InUse { pasid: held };
        assert_eq!(consumer.alloc(PasidRange::ALL, "second"), Err(in_use));
    }
    assert_eq!(host.freed(), [0u32; 0], "it is not given back: its user has it");
    assert_eq!(one.find(held).as_deref(), Some(&"first"));
}

#[test]
fn a_number_that_was_not_asked_for_is_offered_back() {
    let host = Scripted::new();
    let consumer = consumer(&PasidAllocator::guest(host.clone()));
    let wanted = range(10, 20);
    for number in [0, 9, 21] {
        host.will_give(Ok(number));
        let unasked = AllocError::Unasked { pasid: pasid(number), range: wanted };
        assert_eq!(consumer.alloc(wanted, ()), Err(unasked));
    }
    assert_eq!(host.freed(), [0, 9, 21]);
    assert!(consumer.is_empty());
    // If the host does not want it, it stays out.
    host.will_give(Ok(30));
    host.will_take(Err(CommandError::Deadline));
    assert!(consumer.alloc(wanted, ()).is_err());
    host.will_give(Ok(30));
    let in_use = AllocError::InUse { pasid: pasid(30) };
    assert_eq!(consumer.alloc(PasidRange::ALL, ()), Err(in_use));
}

#[test]
fn a_free_that_fails_can_be_tried_again() {
    let host = Scripted::new();
    let consumer = consumer(&PasidAllocator::guest(host.clone()));
    let held = consumer.alloc(PasidRange::ALL, ()).unwrap();
    for error in [CommandError::Deadline, CommandError::Status { status: 7 }, CommandError::Broken]
    {
        host.will_take(Err(error));
        assert_eq!(consumer.free(held), Err(FreeError::Command(error)));
        assert!(consumer.find(held).is_some());
    }
    assert!(consumer.free(held).is_ok());

    let held = consumer.alloc(PasidRange::ALL, ()).unwrap();
    host.will_take(Err(CommandError::NotGranted));
    assert_eq!(consumer.free(held), Err(FreeError::Command(CommandError::NotGranted)));
    assert_eq!(consumer.free(held), Err(FreeError::NotFound(held)), "there is nothing to free");

    let held = consumer.alloc(PasidRange::ALL, ()).unwrap();
    host.will_take(Err(CommandError::Deadline));
    let lost = vec![(held, CommandError::Deadline)];
    assert_eq!(consumer.exit(), Exited { freed: 0, lost });
}

#[test]
fn a_number_may_come_back_before_its_free_is_answered() {
    for answer in [Ok(()), Err(CommandError::Deadline)] {
        let host = Scripted::new();
        let consumer = Arc::new(consumer(&PasidAllocator::guest(host.clone())));
        host.will_give(Ok(3));
        let held = consumer.alloc(PasidRange::ALL, "old").unwrap();
        host.will_take(answer);
        let (script, again) = (host.clone(), consumer.clone());
        let hook = move || {
            assert_eq!(again.find(held), None, "on its way back");
            assert_eq!(again.free(held), Err(FreeError::NotFound(held)));
            script.will_give(Ok(3));
            assert_eq!(again.alloc(PasidRange::ALL, "new"), Ok(held));
        };
        assert!(host.during_free.set(Box::new(hook)).is_ok());
        let result = consumer.free(held).map(|old| *old);
        assert_eq!(result, answer.map(|()| "old").map_err(FreeError::Command));
        assert_eq!(consumer.find(held).as_deref(), Some(&"new"));
        assert_eq!(consumer.len(), 1);
    }
}
