//! What whoever runs a VM reads of its devices' faults and page requests, whatever the guest takes.
#![cfg(not(loom))]

mod common;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::Arc;
use std::time::Duration;

use common::hosted::*;
use common::requests::*;
use common::*;
use iommu::ResponseCode::{Invalid, Success};
use iommu::{
    Answerer, FaultEvent, FaultReader, FaultReason, FaultRecord, Host, HostPasid, Numbering,
    PageRequest, PageRequestPolicy, SoftwareHost, Stage, StageTwoOwner, Vm, VmConfig,
};
use mem::Iova;
use pci::RequesterId;

fn read(reader: &FaultReader) -> Vec<FaultRecord> {
    core::iter::from_fn(|| reader.read()).collect()
}

fn events(reader: &FaultReader) -> Vec<FaultEvent> {
    read(reader).into_iter().map(|record| record.event).collect()
}

#[test]
fn faults_are_read_whatever_the_guest_takes() {
    let mut hosted = Hosted::on(&SoftwareHost::new(), Numbering::Private);
    let (before, early) = (hosted.guest.vm.fault_reader(4), hosted.grant(700));
    let space = hosted.space(0x10_0000, 11);
    hosted.attach(700, space);
    hosted.read(700).unwrap();
    assert_eq!(read(&before), []);
    assert!(dma(&hosted.channel, with(700), VA + 0x1000, Op::Write).is_err());
    assert!(dma(&hosted.channel, with(3), VA, Op::Read).is_err());
    let taken: Vec<_> = core::iter::from_fn(|| hosted.guest.vm.take_fault()).collect();
    assert_eq!(taken.len(), 2);
    let records = read(&before);
    let of_host = hosted.guest.host.pasid_report().vms[0].entries[0].host;
    assert_ne!(of_host, HostPasid(early.0), "private numbers");
    assert_eq!(records.len(), 2);
    assert_eq!(records[0].event, FaultEvent::Unrecoverable(taken[0]));
    assert_eq!((records[0].host_pasid, records[0].lost), (Some(of_host), 0));
    let FaultEvent::Unrecoverable(fault) = records[0].event else { unreachable!() };
    assert_eq!((fault.pasid, fault.address), (Some(early.0), Iova(VA + 0x1000)));
    assert!(matches!(fault.reason, FaultReason::NotPresent { stage: Stage::One, .. }));
    // A PASID that is nobody's has no number.
    assert_eq!((records[1].event.pasid(), records[1].host_pasid), (Some(pasid(3)), None));
    assert_eq!(records[1].event.requester(), DEVICE);
}

#[test]
fn what_the_hosts_stage_two_stops_says_so() {
    let mut hosted = Hosted::shuffled(iommu::SecondStageLevels::Four);
    let reader = hosted.guest.vm.fault_reader(4);
    let root = hosted.guest.table();
    hosted.guest.set_first(root, VA, 1, NOWHERE | PRESENT | WRITABLE | USER);
    let space = hosted.nested(root).unwrap();
    hosted.grant(5);
    hosted.attach(5, space);
    hosted.read(5).unwrap_err();
    let [FaultEvent::Unrecoverable(fault)] = events(&reader)[..] else { panic!("one fault") };
    let stop = fault.stage_two.unwrap();
    assert_eq!((stop.owner, stop.gpa.0, stop.table), (StageTwoOwner::Host, NOWHERE, false));
}

#[test]
fn page_requests_and_their_answers_are_read() {
    let timeout = Some(Duration::from_secs(1));
    let page_requests =
        PageRequestPolicy { timeout, per_device: 2, ..PageRequestPolicy::default() };
    let config = VmConfig { page_requests, ..VmConfig::named("read") };
    let vm = SoftwareHost::new().create_vm(config).unwrap();
    let endpoint = vm.attach(DEVICE).unwrap();
    let reader = vm.fault_reader(16);
    let asked = |index| PageRequest { requester: DEVICE, ..request(Some(1), index) };
    for index in 1..4 {
        endpoint.send_page_request(asked(index));
    }
    vm.respond_page_request(answer(&asked(1), Success)).unwrap();
    vm.respond_page_request(answer(&asked(1), Success)).unwrap_err();
    vm.tick(Duration::ZERO);
    vm.tick(Duration::from_secs(1));
    endpoint.send_page_request(asked(4));
    endpoint.forget_page_requests();
    endpoint.send_page_request(asked(5));
    let _ = vm.close();
    let sent = |index| FaultEvent::PageRequest(asked(index));
    let heard =
        |index, code, by| FaultEvent::PageResponse { response: answer(&asked(index), code), by };
    let expected = [
        sent(1),
        sent(2),
        sent(3),
        heard(3, Success, Answerer::Limit),
        heard(1, Success, Answerer::Guest),
        heard(2, Invalid, Answerer::Timeout),
        sent(4),
        sent(5),
        heard(5, Invalid, Answerer::Teardown),
    ];
    assert_eq!(events(&reader), expected);
}

#[test]
fn a_device_that_floods_loses_its_own_records() {
    let vm = SoftwareHost::new().create_vm(VmConfig::named("flooded")).unwrap();
    let other = RequesterId::from_bits(0x90);
    let (flooding, quiet) = (vm.attach(DEVICE).unwrap(), vm.attach(other).unwrap());
    let rung = Arc::new(AtomicUsize::new(0));
    let (reader, second) = (vm.fault_reader(3), vm.fault_reader(1000));
    let bell = rung.clone();
    reader.set_waker(Some(Arc::new(move || {
        bell.fetch_add(1, Ordering::Relaxed);
    })));
    for index in 0..100 {
        flooding.send_page_request(request(None, index));
    }
    quiet.send_page_request(request(None, 7));
    assert_eq!(rung.load(Ordering::Relaxed), 1, "once, until it is read");
    let records = read(&reader);
    let order: Vec<_> = records.iter().map(|of| (of.event.requester(), of.lost)).collect();
    assert_eq!(order, [(DEVICE, 0), (other, 0), (DEVICE, 0), (DEVICE, 0)]);
    assert_eq!((reader.lost(DEVICE), reader.lost(other)), (97, 0));
    flooding.send_page_request(request(None, 200));
    flooding.send_page_request(request(None, 201));
    assert_eq!(rung.load(Ordering::Relaxed), 2);
    let lost: Vec<_> = read(&reader).iter().map(|record| record.lost).collect();
    assert_eq!(lost, [97, 0], "it says where the gap is");
    assert_eq!(read(&second).len(), 103, "readers do not disturb each other");
    drop(reader);
    flooding.send_page_request(request(None, 202));
    assert_eq!(rung.load(Ordering::Relaxed), 2);
    assert_eq!(read(&second).len(), 1);
}
