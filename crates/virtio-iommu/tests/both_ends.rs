//! The driver on the model.

mod common;

use std::collections::BTreeSet;
use std::sync::Arc;

use common::*;
use iommu::pasid::{
    AllocError, CommandError, Consumer, Exited, FreeError, PasidAllocator, Route, Scope,
};
use iommu::{Numbering, PasidRange, SoftwareHost, SoftwareVm, Vm, VmConfig};
use virtio_iommu::driver::{Error, SetupError, SharedDriver};
use virtio_iommu::model::{Options, PROBE_SIZE};
use virtio_iommu::spec::{RequestStatus, Revision, Status};

fn config(quota: u32) -> VmConfig {
    VmConfig { quota, ..VmConfig::named("guest") }
}

fn rig(options: Options, quota: u32) -> (SoftwareVm, Device, TestDriver<Device>) {
    let vm = vm_of(&SoftwareHost::new(), config(quota));
    let device = Device::new(options, vm.clone());
    let driver = driver_of(device.clone(), vm.memory()).unwrap();
    (vm, device, driver)
}

#[test]
fn pasids_come_from_the_host_and_go_back() {
    let (vm, device, mut driver) = rig(Options::default(), 100);
    let mut granted = BTreeSet::new();
    // More than the queue has entries, so that both rings wrap.
    for _ in 0..100 {
        assert!(granted.insert(driver.alloc(range(0x10, 0x200)).unwrap()));
    }
    assert_eq!(vm.pasid_usage().live, 100);
    assert!(granted.iter().all(|pasid| range(0x10, 0x200).contains(*pasid)));
    for pasid in granted {
        driver.free(pasid).unwrap();
    }
    assert_eq!(vm.pasid_usage().live, 0);
    let counters = device.model().counters();
    assert_eq!((counters.requests, counters.requests_refused), (200, 0));
    assert_eq!((counters.pasids_allocated, counters.pasids_freed), (100, 100));
    assert_eq!(driver.counters().requests, 200);
}

#[test]
fn every_revision_speaks_the_same_language() {
    for revision in Revision::ALL {
        let options = Options { revisions: vec![revision], ..Options::default() };
        let (vm, device, mut driver) = rig(options, 10);
        assert_eq!(driver.revision(), revision);
        assert_eq!(device.model().revision(), Some(revision));
        let pasid = driver.alloc(PasidRange::ALL).unwrap();
        driver.free(pasid).unwrap();
        assert_eq!(vm.pasid_usage().live, 0);
    }
    let (_, _, driver) = rig(Options::default(), 10);
    assert_eq!(driver.revision(), Revision::ALL[0]);
}

#[test]
fn a_device_without_the_extension_is_said_to_be_one() {
    let vm = vm_of(&SoftwareHost::new(), config(10));
    let options = Options { revisions: Vec::new(), ..Options::default() };
    let device = Device::new(options, vm.clone());
    let error = driver_of(device.clone(), vm.memory()).unwrap_err();
    assert_eq!(error, SetupError::NoPasidRequests);
    assert!(device.model().status().failed());
}

#[test]
fn over_quota_and_out_of_numbers_are_told_apart() {
    let (vm, _, mut driver) = rig(Options::default(), 2);
    let refused = |status| Err(Error::Refused(status));
    driver.alloc(range(5, 5)).unwrap();
    assert_eq!(driver.alloc(range(5, 5)), refused(RequestStatus::NotFound));
    driver.alloc(PasidRange::ALL).unwrap();
    assert_eq!(driver.alloc(PasidRange::ALL), refused(RequestStatus::NoMemory));
    assert_eq!(vm.pasid_usage().live, 2);
    // The memory is gone with the VM, and with it the queue.
    let closed = vm.close();
    assert!(vm.is_complete(closed));
    assert_eq!(driver.alloc(PasidRange::ALL), Err(Error::NeedsReset));
    assert_eq!(driver.alloc(PasidRange::ALL), Err(Error::NeedsReset));
}

#[test]
fn a_forged_free_changes_nothing() {
    let host = SoftwareHost::new();
    let (one, two) = (vm_of(&host, config(10)), vm_of(&host, config(10)));
    let mut first = driver_of(Device::new(Options::default(), one.clone()), one.memory()).unwrap();
    let mut second = driver_of(Device::new(Options::default(), two.clone()), two.memory()).unwrap();
    let theirs = first.alloc(PasidRange::ALL).unwrap();
    let ours = second.alloc(PasidRange::ALL).unwrap();
    assert_ne!(ours, theirs);
    let not_found = Err(Error::Refused(RequestStatus::NotFound));
    assert_eq!(second.free(theirs), not_found);
    assert_eq!(second.free(pasid(0xf_ffff)), not_found);
    assert_eq!((one.pasid_usage().live, two.pasid_usage().live), (1, 1));
    second.free(ours).unwrap();
    assert_eq!(second.free(ours), not_found);
}

#[test]
fn with_private_numbers_two_guests_use_the_same_one() {
    let host = SoftwareHost::new();
    let config = VmConfig { numbering: Numbering::Private, ..config(10) };
    let (one, two) = (vm_of(&host, config.clone()), vm_of(&host, config));
    let mut first = driver_of(Device::new(Options::default(), one.clone()), one.memory()).unwrap();
    let mut second = driver_of(Device::new(Options::default(), two.clone()), two.memory()).unwrap();
    assert_eq!(first.alloc(range(7, 7)), Ok(pasid(7)));
    assert_eq!(second.alloc(range(7, 7)), Ok(pasid(7)));
    second.free(pasid(7)).unwrap();
    assert_eq!((one.pasid_usage().live, two.pasid_usage().live), (1, 0));
}

#[test]
fn an_endpoint_behind_the_device_has_no_properties() {
    let options = Options { endpoints: BTreeSet::from([8]), ..Options::default() };
    let (_, device, mut driver) = rig(options, 1);
    assert_eq!(driver.probe(8), Ok(vec![0; PROBE_SIZE]));
    assert_eq!(driver.probe(9), Err(Error::Refused(RequestStatus::NotFound)));
    assert_eq!(device.model().counters().requests_refused, 1);
}

#[test]
fn a_reset_gives_everything_back() {
    let (vm, device, mut driver) = rig(Options::default(), 10);
    driver.alloc(PasidRange::ALL).unwrap();
    driver.alloc(PasidRange::ALL).unwrap();
    let device_again = driver.close().unwrap();
    assert_eq!((vm.pasid_usage().live, vm.pasid_usage().parked), (0, 0));
    assert_eq!(device.model().status(), Status::new());
    assert_eq!(device.model().revision(), None);
    let mut driver = driver_of(device_again, vm.memory()).unwrap();
    driver.alloc(PasidRange::ALL).unwrap();
    assert_eq!(vm.pasid_usage().live, 1);
}

#[test]
fn a_reset_is_not_over_while_dma_is_in_flight() {
    let (vm, device, mut driver) = rig(Options::default(), 10);
    let endpoint = vm.attach(pci::RequesterId::new(0, 16, 0).unwrap()).unwrap();
    let channel = endpoint.channel();
    driver.alloc(PasidRange::ALL).unwrap();
    let access = channel.enter();
    let error = driver.close().unwrap_err();
    assert_eq!(error, SetupError::ResetTimedOut { patience_ns: PATIENCE });
    assert_ne!(device.model().status().into_bits(), 0);
    drop(access);
    assert_eq!(device.model().status().into_bits(), 0);
    assert_eq!(vm.pasid_usage().parked, 0);
}

#[test]
fn what_comes_too_late_is_given_back() {
    let (vm, device, mut driver) = rig(Options::default(), 10);
    let kept = driver.alloc(PasidRange::ALL).unwrap();
    device.sleep();
    let late = Err(Error::TimedOut { patience_ns: PATIENCE });
    assert_eq!(driver.alloc(PasidRange::ALL), late);
    assert_eq!(driver.free(kept), late.map(|_: iommu::Pasid| ()));
    assert_eq!(vm.pasid_usage().live, 1);
    device.wake();
    // The device did both by now; nobody knows of the PASID that it granted.
    assert_eq!(vm.pasid_usage().live, 1);
    let pasid = driver.alloc(PasidRange::ALL).unwrap();
    assert_eq!(vm.pasid_usage().live, 1, "only the new one is out");
    assert_eq!(driver.counters().given_back, 1);
    assert_eq!(driver.counters().timed_out, 2);
    driver.free(pasid).unwrap();
    assert_eq!(vm.pasid_usage().live, 0);
}

#[test]
fn a_device_that_sleeps_for_good_is_left_alone() {
    let (vm, device, mut driver) = rig(Options::default(), 100);
    device.sleep();
    let errors: Vec<Error> = (0..10).map(|_| driver.alloc(PasidRange::ALL).unwrap_err()).collect();
    assert!(errors[..8].iter().all(|error| matches!(error, Error::TimedOut { .. })), "{errors:?}");
    assert_eq!(errors[8..], [Error::Stuck; 2]);
    // When it wakes up, everything is put in order.
    device.wake();
    assert_eq!(vm.pasid_usage().live, 8);
    driver.alloc(PasidRange::ALL).unwrap();
    assert_eq!(vm.pasid_usage().live, 1);
    assert_eq!(driver.counters().given_back, 8);
}

#[test]
fn a_guest_s_allocator_takes_its_pasids_from_the_host() {
    let (vm, _, driver) = rig(Options::default(), 2);
    let allocator = PasidAllocator::guest(Arc::new(SharedDriver::new(driver)));
    let interface = "virtio-iommu requests";
    assert_eq!(allocator.route(), Route::Guest { interface });
    let one = Consumer::init(&allocator, Scope::Bus(0)).unwrap();
    let two = Consumer::init(&allocator, Scope::Bus(1)).unwrap();
    let first = one.alloc(range(100, 200), "one's").unwrap();
    let second = two.alloc(range(100, 200), "two's").unwrap();
    assert_eq!(vm.pasid_usage().live, 2);
    let none = AllocError::Command(CommandError::NoneAvailable);
    assert_eq!(one.alloc(range(100, 200), "too many"), Err(none));
    assert_eq!(one.free(second), Err(FreeError::NotFound(second)));
    assert_eq!(one.free(first).as_deref(), Ok(&"one's"));
    assert_eq!(two.exit(), Exited { freed: 1, lost: Vec::new() });
    assert_eq!(vm.pasid_usage().live, 0);
    // What the host takes behind the guest's back is not the guest's to free.
    let third = one.alloc(range(100, 200), "soon gone").unwrap();
    assert!(vm.is_complete(vm.release_pasids()));
    assert_eq!(one.free(third), Err(FreeError::Command(CommandError::NotGranted)));
}
